"""Forecasts from a bundle: the numbers, the dates after the last row, the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ofa_jax.build import build_model
from ofa_jax.data.catalog.load import CATALOG
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.inference import forecast, plot_forecast, read_input, save_figure, write_forecast
from ofa_jax.runs.train import BundleWriter, Loaded, load_bundle, read_data, resolved
from ofa_jax.train.loop import Progress


@pytest.fixture(scope="module")
def loaded(tiny_run) -> Loaded:
    return load_bundle(tiny_run)


def test_a_forecast_is_scale_network_unscale(loaded, tiny):
    frame = tiny.frame(60, seed=5)
    table = forecast(loaded, frame)
    scaled = ((frame.values[-32:] - loaded.scaler.mean) / loaded.scaler.std).astype(np.float32)
    model = loaded.model
    pred = np.asarray(jax.jit(model.predict)(model.frozen, model.trainable, jnp.asarray(scaled[None])))[0]
    np.testing.assert_array_equal(
        table[["a", "b"]].to_numpy(), pred.astype(np.float64) * loaded.scaler.std + loaded.scaler.mean
    )
    assert list(table.columns) == ["date", "a", "b"]
    assert table["date"].tolist() == list(pd.date_range("2024-01-03 12:00", periods=8, freq="h"))
    level = tiny.values(68, seed=5)[60:].mean(axis=0)  # how the two series go on
    assert (abs(table[["a", "b"]].mean() - level) < level / 2).all()  # in original units: around 7 and 90


def test_only_the_last_rows_are_read(loaded, tiny):
    frame = tiny.frame(60)
    last = replace(frame, values=frame.values[-32:], timestamps=frame.timestamps[-32:])
    pd.testing.assert_frame_equal(forecast(loaded, frame), forecast(loaded, last))


def test_too_few_rows_are_refused(loaded, tiny):
    with pytest.raises(DataError, match=r"31 rows, but the model reads the last 32\. Give at least 32 rows"):
        forecast(loaded, tiny.frame(31))


def test_columns_in_another_order_are_put_right(loaded, tiny):
    frame = tiny.frame(40)
    swapped = replace(frame, values=frame.values[:, ::-1], names=("b", "a"))
    pd.testing.assert_frame_equal(forecast(loaded, swapped), forecast(loaded, frame))


@pytest.mark.parametrize(
    ("names", "said"), [(("a", "c"), r"missing: `b`; extra: `c`"), (("a",), "missing: `b`")]
)
def test_other_columns_are_refused(loaded, tiny, names, said):
    frame = tiny.frame(40)
    with pytest.raises(DataError, match=said):
        forecast(loaded, replace(frame, values=frame.values[:, : len(names)], names=names))


def test_without_timestamps_steps_are_counted(loaded, tiny):
    frame = replace(tiny.frame(40), timestamps=None)
    table = forecast(loaded, frame)
    assert table["step"].tolist() == list(range(1, 9))
    figure = plot_forecast(frame, table, title="steps", history=10)
    assert figure.axes[-1].get_xlabel() == "steps from the last row"
    history, line = (figure.axes[0].lines[index].get_xdata() for index in (0, 1))
    np.testing.assert_array_equal(history, np.arange(-9, 1))
    np.testing.assert_array_equal(line, np.arange(9))  # joined to the last row


def test_a_series_may_have_the_name_of_the_first_column(loaded, tiny):
    names = ("step", "date")
    renamed = replace(loaded, scaler=replace(loaded.scaler, names=names))
    for timestamps, first in ((None, "step_"), (tiny.frame(40).timestamps, "date_")):
        frame = replace(tiny.frame(40), names=names, timestamps=timestamps)
        table = forecast(renamed, frame)
        assert list(table.columns) == [first, *names]
        assert len(plot_forecast(frame, table, title="", history=5).axes) == 2


def test_new_rows_are_read_as_the_training_data_were(loaded, tiny, tmp_path):
    path = tiny.csv(tmp_path / "new.csv", rows=40)
    frame = read_input(loaded, path)
    np.testing.assert_array_equal(frame.values, tiny.frame(40).values)
    path.write_text(path.read_text().replace("2024-01-01T05", "2024-01-01T04"))
    with pytest.raises(DataError, match="stands in two rows"):
        read_input(loaded, path)

    data = loaded.experiment.data
    for changed in (
        data.model_copy(update={"timestamps": "as_is"}),
        data.model_copy(update={"source": "weather"}),
    ):
        lenient = replace(loaded, experiment=loaded.experiment.model_copy(update={"data": changed}))
        assert read_input(lenient, path).n_rows == 40
    assert CATALOG["weather"].timestamps == "as_is"


def test_chosen_columns_are_taken_from_a_wider_file(loaded, tiny, tmp_path):
    frame = tiny.frame(40)
    table = pd.DataFrame({"note": ["text"] * 40, "b": frame.values[:, 1], "a": frame.values[:, 0]})
    data = loaded.experiment.data.model_copy(update={"columns": ("a", "b")})
    chosen = replace(loaded, experiment=loaded.experiment.model_copy(update={"data": data}))
    np.testing.assert_array_equal(read_input(chosen, table).values, frame.values)
    with pytest.raises(DataError):
        read_input(loaded, table)


def test_the_table_as_a_file(loaded, tiny, tmp_path):
    table = forecast(loaded, tiny.frame(40))
    write_forecast(table, tmp_path / "new folder" / "f.csv")
    again = pd.read_csv(tmp_path / "new folder" / "f.csv", parse_dates=["date"])
    np.testing.assert_array_equal(again[["a", "b"]].to_numpy(), table[["a", "b"]].to_numpy())
    assert again["date"].tolist() == table["date"].tolist()


def test_a_picture_of_each_series(loaded, tiny):
    frame = tiny.frame(60)
    table = forecast(loaded, frame)
    figure = plot_forecast(
        frame, table, title="Two series", history=20, actual=np.zeros((8, 2)), note="a note"
    )
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2
    assert [axis.get_ylabel() for axis in figure.axes] == ["a", "b"]
    assert figure.get_suptitle() == "Two series"
    for index, axis in enumerate(figure.axes):
        history, came, predicted, _ = axis.lines
        np.testing.assert_array_equal(history.get_ydata(), frame.values[-20:, index])
        np.testing.assert_array_equal(came.get_ydata(), np.zeros(8))
        np.testing.assert_array_equal(
            predicted.get_ydata(), [frame.values[-1, index], *table[frame.names[index]]]
        )


def test_at_most_six_series_are_drawn_and_said(tiny):
    names = tuple("abcdefgh")
    frame = replace(tiny.frame(10), values=np.zeros((10, 8)), names=names)
    table = pd.DataFrame({"date": frame.future_timestamps(3), **{name: np.zeros(3) for name in names}})
    figure = plot_forecast(frame, table, title="Many", history=50)
    assert len(figure.axes) == 6
    assert figure.get_suptitle() == "Many (first 6 of 8 series)"
    assert len(figure.axes[0].lines[0].get_xdata()) == 10


@pytest.mark.parametrize(("name", "magic"), [("f.png", b"\x89PNG"), ("f.svg", b"<?xml"), ("f.PDF", b"%PDF")])
def test_pictures_are_written_whole(loaded, tiny, tmp_path, name, magic):
    frame = tiny.frame(40)
    save_figure(plot_forecast(frame, forecast(loaded, frame), title="t", history=20), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["f.docx", "f"])
def test_an_unknown_kind_of_picture_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"Use \.png, \.svg or \.pdf"):
        save_figure(Figure(), tmp_path / name)


def test_a_time_zone_is_kept_as_utc_and_the_column_keeps_its_name(loaded, tiny):
    frame = tiny.frame(60)
    local = pd.DatetimeIndex(frame.timestamps).tz_localize("+02:00")
    table = pd.DataFrame(frame.values, columns=["a", "b"])
    table.insert(0, "timestamp", local)
    found = forecast(loaded, read_input(loaded, table))
    assert found.columns[0] == "timestamp"
    assert found["timestamp"].iloc[0] == local[-1] + pd.Timedelta(hours=1)
    text = found.to_csv(index=False)
    assert "+00:00" in text.splitlines()[1]
    plot_forecast(read_input(loaded, table), found, title="zones", history=24)


def test_rows_at_another_step_are_refused(loaded, tiny):
    frame = tiny.frame(60)
    days = np.datetime64("2024-01-01", "ns") + np.arange(60) * np.timedelta64(1, "D")
    with pytest.raises(DataError, match="the rows are 'D' apart, but the model was trained on steps of 'h'"):
        forecast(loaded, replace(frame, timestamps=days))


def untrained(tiny, task: str, folder: Path, *overrides: str) -> Loaded:
    """A bundle of a task as training would begin it, written and read back."""
    experiment = resolved(tiny.of_task(task, folder, *overrides))
    data = read_data(experiment)
    experiment = experiment.model_copy(update={"task": data.settings})
    model = build_model(experiment)
    BundleWriter(folder / "bundle", experiment, model, data)(model.trainable, Progress())
    return load_bundle(folder / "bundle")


@pytest.fixture(scope="module", params=["zero_shot", "short_term"])
def of_any_series(request, tiny, tmp_path_factory) -> Loaded:
    return untrained(tiny, request.param, tmp_path_factory.mktemp(request.param))


def other_series(rows: int = 30) -> pd.DataFrame:
    draw = np.random.default_rng(3)
    columns = {
        name: level + draw.normal(size=rows).cumsum()
        for name, level in {"x": 5, "y": -300, "z": 4000}.items()
    }
    return pd.DataFrame({"when": pd.date_range("2024-02-01", periods=rows, freq="D"), **columns})


def test_a_model_of_single_series_forecasts_any_table(of_any_series, tmp_path):
    """Other columns, another number of them and another frequency than anything in training; in their own units."""
    assert of_any_series.names is None
    other_series().to_csv(tmp_path / "other.csv", index=False)
    frame = read_input(of_any_series, tmp_path / "other.csv")
    table = forecast(of_any_series, frame)
    assert list(table.columns) == ["when", "x", "y", "z"]
    assert table["when"].tolist() == list(pd.date_range("2024-03-02", periods=3, freq="D"))
    model, length = of_any_series.model, of_any_series.experiment.task.input_length
    last = frame.values[-length:].astype(np.float32)
    wanted = jax.jit(model.network.apply)({"params": model.merged()}, last[None])[0]
    np.testing.assert_allclose(
        table[["x", "y", "z"]].to_numpy(), wanted, rtol=1e-5
    )  # float32 sums in another order
    level = frame.values[-length:].mean(axis=0)
    assert (abs(table[["x", "y", "z"]].mean() - level) < 20).all()

    alone = forecast(
        of_any_series, replace(frame, values=frame.values[:, 1:2], names=("y",), timestamps=None)
    )
    assert alone["step"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(alone["y"], table["y"], rtol=1e-5)


def test_bad_tables_for_a_model_of_single_series_are_one_error(of_any_series):
    length = of_any_series.experiment.task.input_length
    with pytest.raises(
        DataError, match=rf"{length - 1} rows, but the model reads the last {length}\. Give at least"
    ):
        forecast(of_any_series, read_input(of_any_series, other_series(length - 1)))
    gap = other_series()
    gap.loc[7, "y"] = np.nan
    with pytest.raises(DataError, match="`y`"):
        read_input(of_any_series, gap)
    with pytest.raises(DataError, match="note"):
        read_input(of_any_series, other_series().assign(note="text"))


def test_a_bundle_without_a_trunk_forecasts_like_any_other(tiny, tmp_path):
    loaded = untrained(tiny, "forecast", tmp_path, "trunk.source=attention", "recipe=full")
    assert "gpt2" not in loaded.model.trainable["base"]
    table = forecast(loaded, tiny.frame(40))
    assert table.shape == (3, 3)
    assert np.isfinite(table[["a", "b"]].to_numpy()).all()


@pytest.mark.parametrize("task", ["anomaly", "classification", "imputation"])
def test_a_model_that_forecasts_nothing_says_so(tiny, tmp_path, task):
    loaded = untrained(tiny, task, tmp_path)
    said = rf"predict: this model was trained for {task}, it forecasts nothing\. Use `ofa-jax evaluate`"
    with pytest.raises(ConfigError, match=said):
        read_input(loaded, other_series())
    with pytest.raises(ConfigError, match=said):
        forecast(loaded, tiny.frame(60))


def test_a_second_forecast_compiles_nothing(loaded, tiny, caplog):
    forecast(loaded, tiny.frame(60))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        forecast(loaded, tiny.frame(60, seed=1))
    assert not [
        record.message
        for record in caplog.records
        if "Finished XLA compilation of jit(predict)" in record.message
    ]


def test_a_value_beyond_float32_is_refused_before_it_becomes_a_gap(of_any_series):
    frame = read_input(of_any_series, other_series().assign(y=1e39))
    with pytest.raises(
        DataError, match=r"series `y` has values beyond float32's range\. Give it in larger units"
    ):
        forecast(of_any_series, frame)

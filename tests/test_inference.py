"""A bundle applied to new data, for every task: the numbers, the rows they belong to, the figure."""

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
from ofa_jax.data.frames import Frame, read_frame
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.inference import apply_model, evaluate, predict, read_input, write_table
from ofa_jax.runs.bundle import BundleWriter, LoadedModel, about_data, load_bundle
from ofa_jax.runs.folder import resolved
from ofa_jax.runs.train import open_run, read_data, train_run
from ofa_jax.tasks.forecast import forecast_panels, time_index
from ofa_jax.train.evaluate import _compiled
from ofa_jax.train.lanes import Progress


@pytest.fixture(scope="module")
def loaded(tiny_run) -> LoadedModel:
    return load_bundle(tiny_run)


def as_table(frame: Frame) -> pd.DataFrame:
    table = pd.DataFrame(frame.values, columns=list(frame.names))
    if frame.timestamps is not None:
        table.insert(0, "date", pd.DatetimeIndex(frame.timestamps))
    return table


def rows(tiny, count: int, seed: int = 0) -> pd.DataFrame:
    return as_table(tiny.frame(count, seed))


def test_a_forecast_is_scale_network_unscale(loaded, tiny):
    frame = tiny.frame(60, seed=5)
    table = predict(loaded, as_table(frame))
    scaled = ((frame.values[-32:] - loaded.scaler.mean) / loaded.scaler.std).astype(np.float32)
    model = loaded.model
    pred = np.asarray(jax.jit(model.predict)(model.frozen, model.trainable, jnp.asarray(scaled[None])))[0]
    wanted = pred.astype(np.float64) * loaded.scaler.std + loaded.scaler.mean
    # another program, whose float32 sums may be in another order
    np.testing.assert_allclose(table[["a", "b"]].to_numpy(), wanted, rtol=1e-6)
    assert list(table.columns) == ["date", "a", "b"]
    assert table["date"].tolist() == list(pd.date_range("2024-01-03 12:00", periods=8, freq="h"))
    level = tiny.values(68, seed=5)[60:].mean(axis=0)  # how the two series continue
    assert (abs(table[["a", "b"]].mean() - level) < level / 2).all()  # in original units: around 7 and 90


def test_only_the_last_rows_are_read(loaded, tiny):
    table = rows(tiny, 60)
    pd.testing.assert_frame_equal(predict(loaded, table), predict(loaded, table[-32:]))


def test_too_few_rows_are_refused(loaded, tiny):
    with pytest.raises(DataError, match=r"31 rows, but the model reads 32\. Give at least 32 rows"):
        predict(loaded, rows(tiny, 31))


def test_columns_in_another_order_are_put_right(loaded, tiny):
    table = rows(tiny, 40)
    pd.testing.assert_frame_equal(predict(loaded, table[["date", "b", "a"]]), predict(loaded, table))


@pytest.mark.parametrize(
    ("names", "said"), [(("a", "c"), r"missing: `b`; extra: `c`"), (("a",), "missing: `b`")]
)
def test_other_columns_are_refused(loaded, tiny, names, said):
    frame = tiny.frame(40)
    with pytest.raises(DataError, match=said):
        predict(loaded, as_table(replace(frame, values=frame.values[:, : len(names)], names=names)))


def test_without_timestamps_steps_are_counted(loaded, tiny):
    new = read_input(loaded, rows(tiny, 40).drop(columns="date"))
    table = apply_model(loaded, new)
    assert table["step"].tolist() == list(range(1, 9))
    panels = forecast_panels(tiny.frame(40), table.drop(columns="step"), 10)
    assert list(panels["panel"].unique()) == ["a", "b"]
    untimed = forecast_panels(replace(tiny.frame(40), timestamps=None), table, 10)
    np.testing.assert_array_equal(untimed["time"][untimed["panel"] == "a"], np.arange(-9, 9))
    assert isinstance(new.plot(table, "a note"), Figure)


def test_a_series_may_have_the_name_of_the_first_column(loaded, tiny):
    names = ["step", "step_"]
    renamed = replace(loaded, scaler=replace(loaded.scaler, names=tuple(names)))
    table = pd.DataFrame(tiny.frame(40).values, columns=names)
    assert list(predict(renamed, table).columns) == ["step__", *names]
    assert time_index(replace(tiny.frame(40), names=("step", "date"))).name == "date_"


def test_new_rows_are_read_as_the_training_data_were(loaded, tiny, tmp_path):
    path = tiny.csv(tmp_path / "new.csv", rows=40)
    pd.testing.assert_frame_equal(predict(loaded, path), predict(loaded, rows(tiny, 40)))
    path.write_text(path.read_text().replace("2024-01-01T20", "2024-01-01T19"))
    with pytest.raises(DataError, match="repeats the previous row"):
        read_input(loaded, path)
    lenient = (
        ("data.timestamps", "as_is"),
        ("data.source", "weather"),
    )  # the catalog keeps its timestamps as they are
    for setting in lenient:
        changed = replace(loaded, experiment=loaded.experiment.replace(dict([setting])))
        assert len(read_input(changed, path).buffer) == 32


def test_faults_of_rows_that_the_model_does_not_read(loaded, tiny):
    """Text, gaps and missing rows before the last 32 change nothing; in them each is refused."""
    table = rows(tiny, 60).astype({"a": object})
    wanted = predict(loaded, table)
    for at in (5, 40):
        text, gap = table.copy(), table.copy()
        text.loc[at, "a"], gap.loc[at, "b"] = "broken", np.nan
        for faulty, said in ((text, "broken"), (gap, "missing"), (table.drop(index=at), "irregular")):
            if at == 5:
                pd.testing.assert_frame_equal(predict(loaded, faulty), wanted)
            else:
                with pytest.raises(DataError, match=said):
                    predict(loaded, faulty)
    gap.loc[28, "b"] = np.nan  # the first row that is read is filled from the one before
    filled = read_input(loaded, gap, missing="ffill").buffer
    before = loaded.scaler.transform(table.iloc[27, 1:].to_numpy(float))
    assert filled[0, 1] == before[1]


def test_new_rows_may_be_read_by_other_settings(loaded, tiny):
    table = rows(tiny, 60).astype({"a": object})
    table.loc[50, "a"] = "nil"
    again = table.copy()
    again.loc[50, "a"] = (table.loc[49, "a"] + table.loc[51, "a"]) / 2
    read = predict(loaded, table, missing_words=["nil"], missing="linear")
    pd.testing.assert_frame_equal(read, predict(loaded, again))


def test_chosen_columns_are_taken_from_a_wider_file(loaded, tiny):
    table = rows(tiny, 40)
    wider = table.assign(note="text")
    chosen = replace(loaded, experiment=loaded.experiment.replace({"data.columns": ("a", "b")}))
    pd.testing.assert_frame_equal(predict(chosen, wider), predict(loaded, table))
    pd.testing.assert_frame_equal(predict(loaded, wider), predict(loaded, table))


@pytest.mark.parametrize("choice", [{"columns": ["a"]}, {"columns": ["z"]}, {"exclude": ["a"]}])
def test_another_choice_of_columns_is_refused(loaded, tiny, choice):
    table = rows(tiny, 40).assign(z=1.5)
    with pytest.raises(ConfigError, match=r"columns of training \(`a`, `b`\), no other choice\. Leave"):
        predict(loaded, table, **choice)
    kept = predict(loaded, table, columns=["b", "a"], exclude=["z"])
    pd.testing.assert_frame_equal(kept, predict(loaded, table))


def test_the_table_as_a_file(loaded, tiny, tmp_path):
    table = predict(loaded, rows(tiny, 40))
    write_table(table, tmp_path / "new folder" / "f.csv")
    again = pd.read_csv(tmp_path / "new folder" / "f.csv", parse_dates=["date"])
    np.testing.assert_array_equal(again[["a", "b"]].to_numpy(), table[["a", "b"]].to_numpy())
    assert again["date"].tolist() == table["date"].tolist()


def test_a_figure_of_each_series(loaded, tiny):
    new = read_input(loaded, rows(tiny, 60))
    figure = new.plot(apply_model(loaded, new), "a note")
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["a", "b"]


def test_panels_have_history_then_forecast_and_what_came(loaded, tiny):
    frame = tiny.frame(60)
    table = predict(loaded, as_table(frame))
    panels = forecast_panels(frame, table, 20, np.zeros((8, 2))).set_index("panel")
    for index, name in enumerate(frame.names):
        panel = panels.loc[name]
        np.testing.assert_array_equal(panel["actual"], [*frame.values[-20:, index], *np.zeros(8)])
        np.testing.assert_array_equal(panel["forecast"], [*[np.nan] * 20, *table[name]])


def test_time_zone_name_and_data_type_of_the_times_are_kept(loaded, tiny):
    table = rows(tiny, 60)
    local = pd.DatetimeIndex(table["date"]).tz_localize("+02:00")
    found = predict(loaded, table.assign(date=local).rename(columns={"date": "timestamp"}))
    assert found.columns[0] == "timestamp"
    assert found["timestamp"].iloc[0] == local[-1] + pd.Timedelta(hours=1)
    assert found["timestamp"].dtype == local.dtype
    assert "+02:00" in found.to_csv(index=False).splitlines()[1]


def of_steps(loaded: LoadedModel, alias: str, **settings: str) -> LoadedModel:
    """The model as if it had been trained on such steps."""
    changed = loaded.experiment.replace({f"data.{name}": value for name, value in settings.items()})
    return replace(loaded, experiment=changed, record=loaded.record.model_copy(update={"frequency": alias}))


def test_few_rows_are_continued_by_the_models_step(loaded, tiny):
    """The last rows of a table of business days, and rows that are too few to show their step."""
    short = of_steps(loaded, "B", timestamps="as_is", frequency="B")
    days = pd.date_range("2024-01-01", periods=32, freq="B")
    gaps = pd.date_range("2024-01-01", periods=33, freq="B").delete(7)  # a holiday
    for model, index in ((of_steps(loaded, "B"), days), (short, gaps)):
        found = predict(model, rows(tiny, 32).assign(date=index))
        assert found["date"].tolist() == list(pd.date_range(index[-1], periods=9, freq="B")[1:])
    with pytest.raises(DataError, match="the rows are 'D' apart, but the model was trained on steps of 'B'"):
        predict(of_steps(loaded, "B"), rows(tiny, 32).assign(date=pd.date_range("2024-01-01", periods=32)))


def test_counted_rows_are_forecast_as_steps_and_said(loaded, tiny):
    times = pd.date_range("2024-01-01", periods=45, freq="h").delete([7, 9, 20, 21, 22])
    table = rows(tiny, 40).assign(date=times)
    new = read_input(of_steps(loaded, "h", timestamps="as_is"), table)
    found = apply_model(loaded, new)
    assert found["step"].tolist() == list(range(1, 9))
    assert "rows are counted" in new.notices[-1]
    assert isinstance(new.plot(found, "a note"), Figure)
    dated = predict(of_steps(loaded, "h", timestamps="as_is", frequency="h"), table)
    assert dated["date"].tolist() == list(pd.date_range("2024-01-02 21:00", periods=8, freq="h"))


@pytest.mark.parametrize("source", ["table", "csv"])
def test_days_in_new_york_stay_business_days_there(loaded, tiny, tmp_path, source):
    index = pd.date_range("2024-02-05", periods=40, freq="B", tz="America/New_York")
    table, path = rows(tiny, 32).assign(date=index[:32]), tmp_path / "x.csv"
    table.to_csv(path, index=False)
    found = predict(of_steps(loaded, "B"), table if source == "table" else path)
    assert found["date"].tolist() == list(index[32:])
    assert found["date"].dtype == table["date"].dtype or source == "csv"


def test_numbers_as_times_are_continued(loaded, tiny):
    chosen = of_steps(loaded, "h", timestamp_column="t")
    seconds = 1_700_000_000 + 3600 * np.arange(40)
    for numbers in (seconds, np.arange(40) * 5):
        table = rows(tiny, 32).drop(columns="date").assign(t=numbers[:32])
        found = predict(chosen, table)
        assert found["t"].tolist() == numbers[32:].tolist()
        assert found["t"].dtype == np.int64


def test_a_forecast_reaches_beyond_the_year_2262(loaded, tiny, tmp_path):
    table = rows(tiny, 32).assign(date=pd.date_range("2230-01-01", periods=32, freq="YS"))
    model = of_steps(loaded, "YS-JAN")
    found = predict(model, table)
    assert str(found["date"].iloc[-1])[:10] == "2269-01-01"
    write_table(found, tmp_path / "x.csv")
    assert "\n2269-01-01," in (tmp_path / "x.csv").read_text()
    new = read_input(model, table)
    assert isinstance(new.plot(found, "a note"), Figure)


def test_rows_at_another_step_are_refused(loaded, tiny):
    days = pd.date_range("2024-01-01", periods=60, freq="D")
    with pytest.raises(DataError, match="the rows are 'D' apart, but the model was trained on steps of 'h'"):
        predict(loaded, rows(tiny, 60).assign(date=days))


def test_evaluating_gives_the_stored_validation_metrics(tiny_run, loaded):
    data = open_run(tiny_run)[1]
    assert evaluate(loaded, data, "validation") == loaded.record.validation
    assert evaluate(loaded, data).keys() == {"mse", "mae"}


def test_nothing_that_is_not_finite_leaves_the_model(loaded, tiny_run, tiny):
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.inf), loaded.model.trainable)
    model = replace(loaded, model=replace(loaded.model, trainable=broken))
    with pytest.raises(DataError, match=r"the model gives (nan|inf|-inf) for `a` in row 1\. Look for values"):
        predict(model, rows(tiny, 60))
    with pytest.raises(DataError, match=r"on the test part mse is (nan|inf)\. Look for extreme values"):
        evaluate(model, open_run(tiny_run)[1])


def untrained(tiny, task: str, folder: Path, *overrides: str) -> LoadedModel:
    """A bundle of a task as training would begin it, written and read back."""
    experiment = resolved(tiny.of_task(task, folder, *overrides))
    data = read_data(experiment)
    experiment = experiment.replace({"task": data.settings})
    model = build_model(experiment)
    BundleWriter(folder / "bundle", experiment, model, about_data(data))(
        model.trainable, Progress(best_epoch=1)
    )
    return load_bundle(folder / "bundle")


@pytest.fixture(scope="module", params=["zero_shot", "short_term"])
def of_any_series(request, tiny, tmp_path_factory) -> LoadedModel:
    return untrained(tiny, request.param, tmp_path_factory.mktemp(request.param))


def other_series(rows: int = 30) -> pd.DataFrame:
    draw = np.random.default_rng(3)
    columns = {
        name: level + draw.normal(size=rows).cumsum()
        for name, level in {"x": 5, "y": -300, "z": 4000}.items()
    }
    return pd.DataFrame({"when": pd.date_range("2024-02-01", periods=rows, freq="D"), **columns})


@pytest.mark.slow
def test_a_model_of_single_series_forecasts_any_table(of_any_series, tmp_path):
    """Other columns, another number and another frequency than in training; in their own units."""
    assert of_any_series.names is None
    other_series().to_csv(tmp_path / "other.csv", index=False)
    table = predict(of_any_series, tmp_path / "other.csv")
    assert list(table.columns) == ["when", "x", "y", "z"]
    assert table["when"].tolist() == list(pd.date_range("2024-03-02", periods=3, freq="D"))
    model, length = of_any_series.model, of_any_series.experiment.task.input_length
    last = read_frame(other_series()).values[-length:].astype(np.float32)
    wanted = jax.jit(model.network.apply)({"params": model.merged()}, last[None])[0]
    # float32 sums in another order
    np.testing.assert_allclose(table[["x", "y", "z"]].to_numpy(), wanted, rtol=1e-5)
    assert (abs(table[["x", "y", "z"]].mean() - last.mean(axis=0)) < 20).all()

    alone = predict(of_any_series, other_series()[["y"]])
    assert alone["step"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(alone["y"], table["y"], rtol=1e-5)


@pytest.mark.slow
def test_a_model_of_single_series_forecasts_the_series_of_a_tsf_file(of_any_series, tmp_path):
    """The last steps of each, as from a table of them; also such as a table would take for a counter."""
    length = of_any_series.experiment.task.input_length
    own = [np.arange(40.0), np.random.default_rng(1).normal(size=35)]
    head = "@attribute series_name string\n@frequency yearly\n@missing false\n@data\n"
    lines = [f"T{number}:{','.join(map(repr, one.tolist()))}\n" for number, one in enumerate(own)]
    (tmp_path / "new.tsf").write_text(head + "".join(lines))
    found = predict(of_any_series, tmp_path / "new.tsf")
    assert list(found.columns) == ["step", "T0", "T1"]
    alone = predict(of_any_series, pd.DataFrame({"T1": own[1][-length:]}))
    np.testing.assert_allclose(found["T1"], alone["T1"], rtol=1e-5)
    (tmp_path / "new.tsf").write_text(head + lines[0] + "T1:1,2\n")
    with pytest.raises(
        DataError, match=rf"new\.tsf: the series 'T1' has 2 steps, but the model reads {length}"
    ):
        predict(of_any_series, tmp_path / "new.tsf")


def test_bad_tables_for_a_model_of_single_series_are_one_error(of_any_series):
    length = of_any_series.experiment.task.input_length
    few = rf"{length - 1} rows, but the model reads {length}\. Give at least"
    with pytest.raises(DataError, match=few):
        predict(of_any_series, other_series(length - 1))
    gap = other_series()
    gap.loc[29, "y"] = np.nan
    with pytest.raises(DataError, match="`y`"):
        predict(of_any_series, gap)
    with pytest.raises(DataError, match="note"):
        predict(of_any_series, other_series().assign(note="text"))
    with pytest.raises(DataError, match=r"column `y`, row 1: 30 value\(s\) are too large .* is 1e\+39"):
        predict(of_any_series, other_series().assign(y=1e39))


def test_a_bundle_without_a_trunk_forecasts_like_any_other(tiny, tmp_path):
    loaded = untrained(tiny, "forecast", tmp_path, "trunk.source=attention", "recipe=full")
    assert "gpt2" not in loaded.model.trainable["base"]
    table = predict(loaded, rows(tiny, 40))
    assert table.shape == (3, 3)
    assert np.isfinite(table[["a", "b"]].to_numpy()).all()


@pytest.mark.slow
def test_anomalies_of_a_table(tiny, tmp_path):
    """A run stores the threshold of its report; every row is scored once, by the window that the report
    uses."""
    train_run(tiny.of_task("anomaly", tmp_path, "train.epochs=1"), tmp_path / "run")
    loaded, data = open_run(tmp_path / "run")
    threshold = loaded.record.threshold
    stream = data.scaler.invert(data.task.buffer[-120:])
    new = read_input(loaded, pd.DataFrame(stream, columns=["u", "v", "w"]))
    table = apply_model(loaded, new)
    assert list(table.columns) == ["step", "score", "anomaly"]
    assert table["step"].tolist() == list(range(1, 121))
    assert table["anomaly"].tolist() == (table["score"] > threshold).tolist()
    metrics, label = evaluate(loaded, data), data.labels["test_label"].astype(bool)
    caught = (table["anomaly"] & label).sum() / table["anomaly"].sum()
    assert caught == pytest.approx(metrics["precision"])
    assert table["anomaly"][label].any()
    assert "rows above" in new.summary(table)
    assert isinstance(new.plot(table, ""), Figure)
    with pytest.raises(DataError, match="2 channels, the model reads 3"):
        predict(loaded, pd.DataFrame(stream[:, :2], columns=["u", "v"]))
    with pytest.raises(DataError, match="the bundle has no threshold"):
        predict(untrained(tiny, "anomaly", tmp_path), pd.DataFrame(stream, columns=["u", "v", "w"]))


@pytest.mark.slow
def test_classes_of_cases(tiny, tmp_path):
    loaded = untrained(tiny, "classification", tmp_path)
    table = predict(loaded, tmp_path / "Tiny_TEST.ts")
    assert list(table.columns) == ["case", "predicted", "p(a)", "p(b)", "p(c)"]
    probability = table[["p(a)", "p(b)", "p(c)"]].to_numpy()
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-6)
    assert table["predicted"].tolist() == [
        loaded.record.classes[index] for index in probability.argmax(axis=1)
    ]
    data = read_data(loaded.experiment.replace({"data.source": str(tmp_path)}))
    hits = (table["predicted"].map(loaded.record.classes.index) == data.task.tables["test"].label).mean()
    assert evaluate(loaded, data)["accuracy"] == pytest.approx(hits)
    with pytest.raises(DataError, match="there is no column `case` among `date`, `a`, `b`"):
        predict(loaded, rows(tiny, 40))


def test_gaps_of_a_table_are_filled(tiny, tmp_path):
    loaded = untrained(tiny, "imputation", tmp_path)
    table = rows(tiny, 40)
    gaps = table.copy()
    gaps.loc[5:9, "a"] = np.nan
    gaps.loc[20, "b"] = np.nan
    filled = predict(loaded, gaps)
    assert list(filled.columns) == ["date", "a", "b"]
    known = gaps[["a", "b"]].notna().to_numpy()
    np.testing.assert_array_equal(filled[["a", "b"]].to_numpy()[known], table[["a", "b"]].to_numpy()[known])
    assert np.isfinite(filled[["a", "b"]].to_numpy()).all()
    with pytest.raises(DataError, match="no value is missing"):
        predict(loaded, table)
    with pytest.raises(DataError, match="`a` has no value at all"):
        predict(loaded, gaps.assign(a=np.nan))
    with pytest.raises(DataError, match="calendar"):
        predict(loaded, gaps.drop(columns="date"))


def test_a_second_forecast_compiles_nothing(loaded, tiny, caplog):
    predict(loaded, rows(tiny, 60))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        predict(loaded, rows(tiny, 60, seed=1))
    assert not [record.message for record in caplog.records if "Finished XLA" in record.message]


@pytest.mark.parametrize("task", ["forecast", "short_term", "classification", "imputation"])
def test_applying_a_model_again_compiles_nothing(tiny, tmp_path, task):
    loaded = untrained(tiny, task, tmp_path)
    gaps = rows(tiny, 40)
    gaps.loc[5:9, "a"] = np.nan
    given = {"classification": tmp_path / "Tiny_TEST.ts", "imputation": gaps}.get(task, rows(tiny, 40))
    predict(loaded, given)
    compiled = _compiled.cache_info().misses
    predict(loaded, given)
    assert _compiled.cache_info().misses == compiled

"""Forecasts of tables without training: intervals in the table and in the picture, and the commands."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ofa_jax import OneForAllForecaster, forecast
from ofa_jax.cli.main import app
from ofa_jax.errors import ConfigError, DataError, OfaError
from ofa_jax.estimators.zero_shot import zero_shot
from tests.estimators.conftest import long_frame


def wide(lengths=(50, 50)):
    return long_frame(lengths).pivot(index="ds", columns="unique_id", values="y").reset_index()


def test_intervals_follow_their_series_and_are_those_of_the_forecaster(small):
    found = forecast(wide(), 5, level=[90, 50], trunk=small)
    ends = ["lo-90", "lo-50", "hi-50", "hi-90"]
    assert list(found) == ["ds", "a", *(f"a-{end}" for end in ends), "b", *(f"b-{end}" for end in ends)]
    wanted = OneForAllForecaster(5, trunk=small).predict(long_frame((50, 50)), level=[50, 90])
    for name in "ab":
        own = wanted[wanted.unique_id == name]
        np.testing.assert_allclose(found[f"{name}-lo-90"], own["OneForAll-lo-90"], rtol=1e-6)
        np.testing.assert_allclose(found[f"{name}-hi-50"], own["OneForAll-hi-50"], rtol=1e-6)
        assert (found[f"{name}-lo-50"] <= found[f"{name}-hi-50"]).all()
    plain = forecast(wide(), 5, trunk=small)
    pd.testing.assert_frame_equal(plain, found[["ds", "a", "b"]])


def test_the_widest_interval_is_drawn(small):
    made = zero_shot(wide(), 5, levels=[50, 90], trunk=small)
    assert made.plot is not None
    table, figure = made.table, made.plot("")
    (band,) = figure.axes[0].collections
    reach = band.get_paths()[0].get_extents()
    assert reach.y0 == pytest.approx(table["a-lo-90"].min())
    assert reach.y1 == pytest.approx(table["a-hi-90"].max())


def test_names_that_would_collide_are_refused(small):
    with pytest.raises(DataError, match="name of an interval of another"):
        forecast(wide().rename(columns={"b": "a-lo-90"}), 3, level=90, trunk=small)
    with pytest.raises(ConfigError, match="level: 120 is out of range"):
        forecast(wide(), 3, level=120, trunk=small)


def test_the_command_writes_intervals_and_names_a_wrong_level(small, tmp_path):
    wide().to_csv(tmp_path / "data.csv", index=False)
    arguments = ["forecast", str(tmp_path / "data.csv"), "--horizon", "3", "--trunk", small, "--level"]
    done = CliRunner().invoke(app, [*arguments, "80,90"])
    assert done.exit_code == 0, done.output
    assert (
        done.stdout.splitlines()[0]
        == "ds,a,a-lo-90,a-lo-80,a-hi-80,a-hi-90,b,b-lo-90,b-lo-80,b-hi-80,b-hi-90"
    )
    wrong = CliRunner().invoke(app, [*arguments, "80,x"])
    assert "'80,x' is no list of numbers" in str(wrong.exception)


def test_fit_is_train_csv_with_a_file_and_a_horizon(tmp_path, monkeypatch):
    source = tmp_path / "data, of mine #1.csv"
    wide().to_csv(source, index=False)
    begun = {}
    monkeypatch.setattr("ofa_jax.cli.runs._train", lambda experiment, out: begun.update({out: experiment}))
    arguments = [
        "fit",
        str(source),
        "--horizon",
        "7",
        "--out",
        str(tmp_path / "run"),
        "--set",
        "train.epochs=2",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    experiment = begun[tmp_path / "run"]
    assert (experiment.data.source, experiment.task.horizon) == (str(source), 7)
    assert (experiment.trunk.source, experiment.recipe, experiment.train.epochs) == ("nano", "output", 2)


def test_long_series_of_unequal_times_are_forecast_each_after_its_own_end(small, tmp_path):
    path, frame = tmp_path / "long.csv", long_frame((50, 30, 41))
    frame.rename(columns={"unique_id": "shop", "ds": "day", "y": "sales"}).to_csv(path, index=False)
    wanted = OneForAllForecaster(3, trunk=small).predict(frame, level=80)
    found = forecast(path, 3, level=80, trunk=small)
    assert list(found) == ["shop", "day", *wanted.columns[2:]]
    assert found["shop"].tolist() == wanted["unique_id"].tolist()
    assert pd.to_datetime(found["day"]).tolist() == wanted["ds"].tolist()
    np.testing.assert_allclose(found.iloc[:, 2:], wanted.iloc[:, 2:], rtol=1e-6)
    some = forecast(path, 3, trunk=small, columns=["c", "b"])
    np.testing.assert_allclose(some.loc[some["shop"] == "c", "OneForAll"], wanted["OneForAll"][6:], rtol=1e-6)
    arguments = ["forecast", str(path), "--horizon", "3", "--trunk", small]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == "shop,day,OneForAll"
    assert len(done.stdout.splitlines()) == 10
    assert "long.csv: a long table of 3 series, named by `shop`, of different times" in done.stderr
    assert "3 steps of 3 series: -" in done.stderr
    drawn = CliRunner().invoke(app, [*arguments, "--plot", str(tmp_path / "p.png")])
    assert isinstance(drawn.exception, OfaError)
    assert "only tables whose series have the same times are drawn" in str(drawn.exception)


@pytest.mark.slow
def test_long_series_are_read_as_any_table(small, tmp_path):
    """What is refused or inferred of a wide table is so of a long one, with its line."""
    path, frame = tmp_path / "long.csv", long_frame((50, 30, 41), freq="D")

    def read(table: pd.DataFrame, **reading: object) -> pd.DataFrame:
        table.to_csv(path, index=False)
        return forecast(path, 2, trunk=small, **reading)

    def refused(table: pd.DataFrame, **reading: object) -> str:
        with pytest.raises(DataError) as caught:
            read(table, **reading)
        return str(caught.value)

    assert "line 15): 1 value(s) are missing" in refused(frame.assign(y=frame["y"].where(frame.index != 13)))
    assert len(read(frame.assign(y=frame["y"].where(frame.index != 13)), missing="linear")) == 6
    assert "line 15): the timestamp is missing" in refused(
        frame.assign(ds=frame["ds"].astype(str).where(frame.index != 13, ""))
    )
    assert "line 15): the step is irregular" in refused(frame.drop(index=13))
    assert "`unique_id` names series, but 'b' repeats a time" in refused(pd.concat([frame[:4], frame[3:]]))
    assert "column `unique_id`, row 4 (line 5): no series is named" in refused(
        frame.assign(unique_id=frame["unique_id"].where(frame.index != 3))
    )
    assert "there is no series or column `z`" in refused(frame, columns=["a", "b", "z"])
    assert "0, 1, 2, … is a counter" in refused(frame.assign(row=range(len(frame))))
    clock = frame.assign(clock=frame["ds"].dt.strftime("%H:%M"))
    assert "`timestamp_column: ds + clock`" in refused(clock)
    assert read(frame, exclude=["a"])["unique_id"].unique().tolist() == ["b", "c"]
    noted = frame.assign(order=[f"no {number}" for number in range(len(frame))])
    wanted = read(frame)
    pd.testing.assert_frame_equal(read(noted[["order", *frame]]), wanted)
    assert "; not used: `order`" in zero_shot(path, 2, trunk=small).notices[0]
    commas = frame.assign(y=frame["y"].map("{:.6f}".format).str.replace(".", ","))
    np.testing.assert_allclose(read(commas, decimal="comma")["OneForAll"], wanted["OneForAll"], rtol=1e-4)


def test_ids_and_times_of_a_long_frame_keep_their_kinds(small):
    frame = long_frame((50, 30))
    frame["unique_id"] = frame["unique_id"].map({"b": 7, "a": 5})
    frame["ds"] = frame.groupby("unique_id").cumcount()
    found = forecast(frame, 2, trunk=small)
    assert found[["unique_id", "ds"]].values.tolist() == [[7, 50], [7, 51], [5, 30], [5, 31]]
    assert found.dtypes.iloc[:2].tolist() == [np.dtype(int)] * 2
    with pytest.raises(DataError, match="`OneForAll-lo-80` is a column of forecasts"):
        forecast(
            long_frame((9, 8)).rename(columns={"unique_id": "OneForAll-lo-80"}), 2, level=80, trunk=small
        )


def test_long_series_of_several_columns_are_named_by_both(small, tmp_path):
    frame = long_frame((20, 30))
    frame["z"] = -frame["y"]
    frame.to_csv(tmp_path / "long.csv", index=False)
    found = forecast(tmp_path / "long.csv", 2, trunk=small)
    assert found["unique_id"].unique().tolist() == ["b y", "a y", "b z", "a z"]
    np.testing.assert_allclose(found["OneForAll"][:4], -found["OneForAll"][4:].to_numpy(), rtol=1e-5)


def test_the_series_of_a_tsf_file_are_forecast_by_steps(small, tmp_path):
    lines = ["@attribute series_name string", "@frequency daily", "@missing true", "@equallength false"]
    lines += ["@data", "p:1,2,3,4,5,6,7,8,9", "q:5,?,5,6,5,6"]
    (tmp_path / "few.tsf").write_text("\n".join(lines))
    found = forecast(tmp_path / "few.tsf", 2, trunk=small, missing="linear")
    assert found[["series", "step"]].values.tolist() == [["p", 10], ["p", 11], ["q", 7], ["q", 8]]
    frame = pd.DataFrame({"unique_id": "q", "ds": range(1, 7), "y": [5, np.nan, 5, 6, 5, 6]})
    wanted = OneForAllForecaster(2, trunk=small).predict(frame)["OneForAll"]
    np.testing.assert_allclose(found["OneForAll"][2:], wanted, rtol=1e-6)
    with pytest.raises(DataError, match="missing"):
        forecast(tmp_path / "few.tsf", 2, trunk=small)


def test_the_times_of_a_tsf_file_follow_from_its_starts(small, tmp_path):
    lines = ["@attribute series_name string", "@attribute start_timestamp date", "@frequency monthly"]
    lines += ["@missing true", "@equallength false", "@data"]
    lines += ["p:1999-10-31 06-00-00:1,2,3,4", "q:2000-01-01 00-00-00:?,5,6,5,6,5"]
    (tmp_path / "few.tsf").write_text("\n".join(lines))
    found = forecast(tmp_path / "few.tsf", 2, trunk=small, missing="linear")
    wanted = ["2000-02-29T06", "2000-03-31T06", "2000-07-01T00", "2000-08-01T00"]
    assert found["time"].tolist() == [pd.Timestamp(when) for when in wanted]
    with pytest.raises(ConfigError, match=r"data\.columns: a \.tsf file says itself how it is read"):
        forecast(tmp_path / "few.tsf", 2, trunk=small, columns=["p"])
    (tmp_path / "few.tsf").write_text("\n".join(lines).replace("monthly", "lunar"))
    assert "step" in forecast(tmp_path / "few.tsf", 2, trunk=small, missing="linear")

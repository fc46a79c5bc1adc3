"""Forecasts of tables without training: intervals in the table and in the picture, and the commands."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ofa_jax import OneForAllForecaster, forecast
from ofa_jax.cli.main import app
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.estimators.zero_shot import read_zero_shot
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
    _, new = read_zero_shot(wide(), 5, trunk=small)
    table = forecast(wide(), 5, level=[50, 90], trunk=small)
    figure = new.plot(table, "")
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

"""The trunk in the package: what it is, and what it does without and with training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import ofa_jax
from ofa_jax.cli.main import app
from ofa_jax.config.load import load_experiment
from ofa_jax.errors import ConfigError
from ofa_jax.model.gpt2 import Forecaster
from ofa_jax.model.weights import load_trunk, read_config

FOLDER = Path(ofa_jax.__file__).parent / "trunks" / "nano"
GOLDEN = json.loads((Path(__file__).parent / "golden" / "digests.json").read_text())


def load(rows: int = 700) -> pd.DataFrame:
    """A day, a week and noise, of two sizes."""
    at = np.arange(rows)
    day = np.sin(2 * np.pi * at / 24) + 0.5 * np.sin(4 * np.pi * at / 24 + 1)
    free = (at // 24 % 7 >= 5) * 1.5
    noise = np.random.default_rng(0).normal(0, 0.4, (rows, 2))
    values = np.stack([100 + 10 * (day - free), 5e6 + 1e5 * (day + free)], axis=1) + noise * [10, 1e5]
    table = pd.DataFrame(values, columns=["small", "large"])
    table.insert(0, "date", pd.date_range("2024-01-01", periods=rows, freq="h"))
    return table


def test_nano_is_the_trunk_of_its_card_to_the_bit():
    trunk = load_trunk("nano")
    assert trunk.source == "nano"
    assert trunk.config.forecaster == Forecaster(patch=16, context=512, horizon=384)
    assert trunk.sha256 == GOLDEN["nano"]
    card = (FOLDER / "README.md").read_text()
    assert trunk.sha256 in card
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4e6
    assert read_config("nano", n_layer=4) == trunk.config


def test_it_forecasts_a_day_and_a_week_better_than_either_repeats():
    table = load()
    before, after = table[:-96], table[-96:]
    forecast = ofa_jax.forecast(before, 96)
    assert forecast["date"].tolist() == after["date"].tolist()
    for name in ("small", "large"):
        error = np.abs(forecast[name].to_numpy() - after[name].to_numpy()).mean()
        for season in (24, 168):
            naive = np.tile(before[name].to_numpy()[-season:], 5)[:96]
            assert error < np.abs(naive - after[name].to_numpy()).mean()


@pytest.mark.parametrize("rows", [3, 40, 512])
def test_few_rows_are_enough_and_a_long_horizon_is_rolled_out(rows):
    forecast = ofa_jax.forecast(load(rows), 200)
    assert len(forecast) == 200
    assert np.isfinite(forecast[["small", "large"]]).all(axis=None)


def test_a_trunk_that_saw_no_series_forecasts_nothing_without_training():
    with pytest.raises(ConfigError, match="gpt2 was not pretrained on series"):
        ofa_jax.forecast(load(50), 3, trunk="gpt2")


@pytest.mark.slow
def test_the_command_writes_what_the_function_gives(tmp_path):
    load(100).to_csv(tmp_path / "load.csv", index=False)
    arguments = ["forecast", str(tmp_path / "load.csv"), "--horizon", "5"]
    done = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out.csv")])
    assert done.exit_code == 0, done.output
    found = pd.read_csv(tmp_path / "out.csv", parse_dates=["date"])
    wanted = ofa_jax.forecast(pd.read_csv(tmp_path / "load.csv"), 5)
    np.testing.assert_allclose(found[["small", "large"]], wanted[["small", "large"]], rtol=1e-12)
    printed = CliRunner().invoke(app, arguments)
    assert printed.stdout == (tmp_path / "out.csv").read_text()


def test_defaults_of_nano_are_what_it_was_trained_with_and_yield_to_short_data(tmp_path):
    experiment = load_experiment("csv")
    assert (experiment.trunk.n_layer, experiment.task.input_length) == (4, 512)
    assert "input_length" not in experiment.task.model_fields_set
    given = load_experiment("csv", ["task.input_length=100"])
    assert (given.task.input_length, given.task.model_fields_set >= {"input_length"}) == (100, True)
    assert load_experiment("csv", ["trunk.source=random"]).task.input_length == 336


@pytest.mark.slow
def test_an_adapted_run_starts_at_the_zero_shot_forecast_and_may_keep_it(tmp_path):
    source = tmp_path / "load.csv"
    load(900).to_csv(source, index=False)
    absurd = ["train.solver=gradient", "train.learning_rate=1e4", "train.epochs=1"]
    settings = [f"data.source={source}", "task.horizon=24", *absurd]
    ofa_jax.train_run(load_experiment("csv", settings), tmp_path / "run")
    model, data = ofa_jax.open_run(tmp_path / "run")
    assert model.record.best_epoch == 0  # an absurd learning rate makes everything worse
    compared = {row.method: row.metrics for row in ofa_jax.compare(model, data).rows}
    assert compared["One-for-All (output, trunk nano)"] == compared["zero-shot"]
    new = pd.read_csv(source)[:-24]
    pd.testing.assert_frame_equal(
        ofa_jax.predict(model, new), ofa_jax.forecast(new, 24)[list(new)], rtol=1e-3
    )

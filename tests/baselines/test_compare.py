"""Baselines of a forecast: exact forecasts, trained once, kept, and checked when read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.baselines.compare import baseline_rows, compare, model_name
from ofa_jax.build import build_network, trunk_config
from ofa_jax.errors import CheckpointError
from ofa_jax.files import run_lock
from ofa_jax.model.linear import init_nlinear, nlinear
from ofa_jax.runs.folder import BASELINES
from ofa_jax.runs.train import open_run, read_data
from ofa_jax.tasks.forecast import prepare_frame
from ofa_jax.tasks.naive import seasonal_naive
from ofa_jax.train.progress import SilentReporter


@pytest.mark.parametrize(
    ("season", "length", "horizon"), [(1, 5, 3), (4, 12, 9), (4, 4, 3), (7, 10, 20), (12, 8, 5)]
)
def test_seasonal_naive_repeats_the_last_cycle(season, length, horizon):
    x_btc = np.random.default_rng(0).normal(size=(3, length, 2)).astype(np.float32)
    cycle = season if season <= length else 1  # a window shorter than the cycle repeats its last value
    wanted = np.empty((3, horizon, 2), np.float32)
    for window in range(3):
        for channel in range(2):
            known = x_btc[window, :, channel].tolist()
            for step in range(horizon):
                known.append(known[len(known) - cycle])
                wanted[window, step, channel] = known[-1]
    np.testing.assert_array_equal(
        seasonal_naive({}, {}, jnp.asarray(x_btc), season=season, horizon=horizon), wanted
    )


def test_a_season_longer_than_the_input_is_read_before_the_window(tiny, tmp_path):
    lines = ["date,a"]
    cycle = np.random.default_rng(0).normal(size=52)
    days = np.datetime64("2015-01-04") + 7 * np.arange(400)
    lines += [f"{day},{value!r}" for day, value in zip(days, np.resize(cycle, 400).tolist(), strict=True)]
    (tmp_path / "weeks.csv").write_text("\n".join(lines) + "\n")
    experiment = tiny.experiment(tmp_path / "weeks.csv", "task.input_length=24", "data.percent=50")
    data = read_data(experiment)
    assert list(data.untrained) == ["seasonal naive (52 steps)", "last value"]
    assert any("longer than task.input_length 24" in text for text in data.notices)
    network = build_network(experiment, trunk_config(experiment.trunk))

    def rows(split: Any) -> dict[str, float]:
        made = baseline_rows(
            experiment, network, data, split=split, wanted=[], folder=None, reporter=SilentReporter()
        )
        return {row.method: row.metrics["mse"] for row in made}

    found, buffer = rows("test"), data.task.buffer[:, 0].astype(np.float64)
    assert found["seasonal naive (52 steps)"] == 0  # the series repeats itself
    ahead = np.arange(8)
    origins = np.arange(320, 400 - 8 + 1)
    error = buffer[origins[:, None] + ahead] - buffer[origins - 1][:, None]
    assert found["last value"] == pytest.approx(np.square(error).mean(), rel=1e-5)  # float32 squares
    assert list(rows("train")) == ["last value"]  # no year precedes the first windows


def test_with_a_season_of_one_step_the_baseline_is_named_last_value(tiny):
    experiment = tiny.experiment("unused.csv", "data.season=1")
    data = prepare_frame(tiny.frame(), experiment.data, experiment.task)
    assert (list(data.untrained), dict(data.lookback)) == (["last value"], {})


def test_nlinear_is_a_linear_map_around_the_last_value():
    draw = np.random.default_rng(1)
    x_btc = draw.normal(size=(4, 6, 3)).astype(np.float32)
    kernel, bias = draw.normal(size=(6, 2)).astype(np.float32), draw.normal(size=2).astype(np.float32)
    found = nlinear({}, {"kernel": kernel, "bias": bias}, jnp.asarray(x_btc))
    wanted = np.empty((4, 2, 3))
    for window, channel in np.ndindex(4, 3):
        series = x_btc[window, :, channel].astype(np.float64)
        wanted[window, :, channel] = (series - series[-1]) @ kernel + bias + series[-1]
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # float32 sums of six products
    shifted = nlinear({}, {"kernel": kernel, "bias": bias}, jnp.asarray(x_btc) + 8)
    np.testing.assert_allclose(shifted, np.asarray(found) + 8, atol=1e-5)


def test_nlinear_starts_at_the_mean_of_the_window():
    weights = init_nlinear(6, 2)
    x_btc = np.arange(6, dtype=np.float32)[None, :, None]
    np.testing.assert_allclose(nlinear({}, weights, jnp.asarray(x_btc)), np.full((1, 2, 1), 2.5), rtol=1e-6)


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


class Counter(SilentReporter):
    epochs = 0

    def begin(self, epoch: int, epochs: int, windows: int, done: int) -> None:
        self.epochs += 1


def scores(run: Path, *, trained: bool = True, split: Any = "test") -> tuple[Any, int]:
    loaded, data = open_run(run)
    reporter = Counter()
    folder = run / BASELINES if trained else None
    comparison = compare(loaded, data, split=split, baselines=folder, reporter=reporter, only=("nlinear",))
    return comparison, reporter.epochs


def test_model_and_seasonal_naive_on_every_window(run):
    comparison, epochs = scores(run, trained=False)
    assert epochs == 0
    assert not (run / BASELINES).exists()
    assert (comparison.split, comparison.windows) == ("test", 2 * 33)
    assert [row.method for row in comparison.rows] == [
        "One-for-All (reference, random trunk)",
        "seasonal naive (24 steps)",
    ]
    model, naive = comparison.rows
    assert (model.trainable, naive.trainable) == (4 * (8 + 16) + 4 * (80 + 8), 0)

    data = open_run(run)[1]
    first, end = data.borders["test"]
    errors = [
        data.task.buffer[start + 32 : start + 40, channel].astype(np.float64)
        - data.task.buffer[start + 8 : start + 16, channel]
        for channel in range(2)
        for start in range(first, end - 39)
    ]
    # rtol: each window's sum is made in float32
    assert naive.metrics == pytest.approx(
        {"mse": np.mean(np.square(errors)), "mae": np.mean(np.abs(errors))}, rel=1e-6
    )


@pytest.mark.slow
def test_a_trained_baseline_is_kept_and_reused(run):
    first, epochs = scores(run)
    assert 1 <= epochs <= 10
    assert first.rows[-1].method == "NLinear"
    assert first.rows[-1].trainable == 32 * 8 + 8
    record = json.loads((run / BASELINES / "nlinear" / "control.json").read_text())
    assert record["settings"]["seed"] == 2021
    again, epochs = scores(run)
    assert epochs == 0
    assert again == first
    other, epochs = scores(run, split="validation")
    assert epochs == 0
    assert other.rows[-1].metrics == record["validation"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("flipped", r"nlinear: the weights of NLinear are damaged\. Delete this folder"),
        ("deleted", r"nlinear: the weights of NLinear are damaged\. Delete this folder"),
        ("no digest", r"control\.json: control: field required\. Delete this folder"),
    ],
)
def test_a_damaged_baseline_is_refused(run, how, said):
    scores(run)
    weights, record = (run / BASELINES / "nlinear" / name for name in ("weights.safetensors", "control.json"))
    if how == "flipped":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif how == "deleted":
        weights.unlink()
    else:
        record.write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match=said):
        scores(run)
    shutil.rmtree(run / BASELINES / "nlinear")
    assert scores(run)[1] >= 1


def test_baselines_are_trained_by_one_process_at_a_time(run):
    with run_lock(run / BASELINES), pytest.raises(CheckpointError, match="another process"):
        scores(run)


def test_a_random_trunk_is_always_named(run):
    loaded, _ = open_run(run)
    assert "random trunk" in model_name(loaded)

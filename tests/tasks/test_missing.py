"""Missing values that were filled are no targets: not in the loss, not in a metric, in no task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.config.load import build_experiment
from ofa_jax.errors import DataError
from ofa_jax.tasks.base import TaskData
from ofa_jax.tasks.losses import squared_error
from ofa_jax.tasks.metrics import mean_scaled_error, naive_scale
from ofa_jax.tasks.table import prepare
from ofa_jax.train.evaluate import evaluate
from ofa_jax.train.progress import SilentReporter
from ofa_jax.windows.batch import Rows, gather
from ofa_jax.windows.table import WindowTable

L, H = 6, 3


def read(path: Path, task: str, missing: str = "ffill", **more: Any) -> TaskData:
    horizon = {} if task == "imputation" else {"horizon": H}
    section = {"name": task, "input_length": L, **horizon}
    data = {"source": str(path), "missing": missing, **more}
    experiment = build_experiment({"data": data, "task": section})
    return prepare(experiment.data, experiment.task, protocol="strict", batch_size=4)


def table(path: Path, gone: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """Writes two channels of 100 days with empty cells where ``gone``; returns the values."""
    if values is None:
        values = np.random.default_rng(0).normal(size=(100, 2)).cumsum(axis=0)
    dates = np.datetime64("2024-01-01") + np.arange(len(values))
    cells = [
        ",".join(
            [str(day), *("" if hole else repr(float(value)) for value, hole in zip(row, holes, strict=True))]
        )
        for day, row, holes in zip(dates, values, gone, strict=True)
    ]
    path.write_text("\n".join(["date,a,b", *cells]) + "\n")
    return values


def last_value(frozen, trainable, x_btc, x_mask=None, *, dropout_keys=None):
    return jnp.repeat(x_btc[:, -1:], H, axis=1)


@pytest.fixture
def gone() -> np.ndarray:
    holes = np.random.default_rng(1).random((100, 2)) < 0.3
    holes[[0, -1]] = False
    return holes


@pytest.mark.parametrize("missing", ["linear", "ffill"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_forecast_is_scored_on_observed_values_alone(tmp_path, gone, missing, split):
    true = table(tmp_path / "a.csv", gone)
    data = read(tmp_path / "a.csv", "forecast", missing)
    made, windows = data.task, data.task.tables[split]
    sums = evaluate(last_value, made, windows, {}, {}, batch_size=7)
    rows = (windows.first + windows.x_valid)[:, None] + np.arange(H)
    column = windows.channel[:, None]
    assert data.scaler is not None
    target = ((true - data.scaler.mean) / data.scaler.std)[rows, column]
    error = made.buffer[rows[:, :1] - 1, column] - target  # the input is filled as asked
    counted = ~gone[rows, column]
    assert not counted.all()
    wanted = {"mse": np.square(error[counted]).mean(), "mae": np.abs(error[counted]).mean()}
    assert made.metrics(sums) == pytest.approx(wanted, rel=1e-5)  # float32 differences
    np.testing.assert_array_equal(sums["count"], counted.sum(axis=1))


def test_77_of_80_test_points_missing(tmp_path):
    true = np.stack([np.sin(np.arange(400)), np.cos(np.arange(400))], axis=1)
    holes = np.zeros((400, 2), bool)
    holes[320:, 0] = True
    holes[[330, 350, 399], 0] = False
    table(tmp_path / "a.csv", holes, true)
    data = read(tmp_path / "a.csv", "forecast", "linear", columns=["a"])
    windows = data.task.tables["test"]
    found = data.task.metrics(evaluate(last_value, data.task, windows, {}, {}))
    said = "a.csv: 77 missing value(s) were filled; as targets they do not count"
    assert data.notices[1] == said
    assert data.meta["filled"] == 77
    target = data.task.buffer[[330, 350, 399], 0]
    error = [
        (data.task.buffer[row - ahead, 0] - value) ** 2
        for row, value in zip((330, 350, 399), target, strict=True)
        for ahead in range(1, H + 1)
        if row - ahead + H < 400
    ]
    assert found["mse"] == pytest.approx(np.mean(error), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["forecast", "short_term", "zero_shot"])
def test_the_loss_and_its_gradient_ignore_filled_targets(tmp_path, gone, task):
    table(tmp_path / "a.csv", gone)
    more = {"target": str(tmp_path / "a.csv")} if task == "zero_shot" else {}
    made = read(tmp_path / "a.csv", task, **more).task
    index = jnp.arange(made.tables["train"].size)
    batch = gather(Rows(made.buffer, made.observed), made.tables["train"], index, made.spec)
    assert made.observed is not None
    assert not np.asarray(batch.y_mask).all()
    assert np.asarray(batch.x_mask).all() or task != "forecast"

    def loss(pred: jax.Array, batch: Any) -> jax.Array:
        return squared_error(pred, batch)[0]

    pred = jnp.zeros_like(batch.y) + 3
    gradient = np.asarray(jax.grad(loss)(pred, batch))
    np.testing.assert_array_equal(gradient != 0, np.asarray(batch.y_mask))
    other = batch._replace(y=jnp.where(batch.y_mask, batch.y, 1e6))
    assert loss(pred, other) == loss(pred, batch)


@pytest.mark.slow
def test_imputation_neither_shows_nor_scores_filled_values(tmp_path, gone):
    true = table(tmp_path / "a.csv", gone)
    data = read(tmp_path / "a.csv", "imputation", "linear")
    made, windows = data.task, data.task.tables["test"]
    assert made.corrupt is not None
    assert data.scaler is not None
    table_of = WindowTable(*map(jnp.asarray, windows))
    index = jnp.arange(windows.size)
    batch = gather(Rows(made.buffer, made.observed), table_of, index, made.spec)
    rows = windows.first[:, None] + np.arange(L)
    np.testing.assert_array_equal(batch.x_mask[..., :2], ~gone[rows])
    assert np.asarray(batch.x_mask)[..., 2:].all()  # the calendar is known
    assert not np.asarray(batch.x)[..., :2][gone[rows]].any()
    keys = jax.vmap(jax.random.key)(index)
    hidden = made.corrupt(batch, keys)
    assert not (np.asarray(hidden.y_mask) & gone[rows]).any()
    assert np.asarray(hidden.y_mask).any()

    def zeros(frozen, trainable, x_btc, x_mask, *, dropout_keys=None):
        return jnp.zeros((*x_btc.shape[:2], 2))

    whole = read_whole(tmp_path, true, data)
    found, wanted = (
        evaluate(zeros, one.task, one.task.tables["test"], {}, {})["count"].sum() for one in (data, whole)
    )
    assert 0.5 < found / wanted < 0.9  # 30 % of the points are missing


def read_whole(folder: Path, true: np.ndarray, data: TaskData) -> TaskData:
    table(folder / "whole.csv", np.zeros(true.shape, bool), true)
    return read(folder / "whole.csv", data.settings.name)


def tsf(path: Path, series: list[list[float]]) -> Path:
    head = ["@attribute series_name string", "@frequency yearly", "@missing true", "@data"]
    lines = [
        f"T{number}:" + ",".join("?" if value != value else repr(value) for value in values)
        for number, values in enumerate(series)
    ]
    path.write_text("\n".join([*head, *lines]) + "\n")
    return path


def test_single_series_are_scored_on_observed_values_alone(tmp_path):
    gap = float("nan")
    known = [1.0, 3, 2, 5, gap, 4, 6, 8, 7, 9, 12, gap, 11]
    path = tsf(
        tmp_path / "a.tsf", [known, [*map(float, range(20))], [*map(float, range(9)), 8.0, gap, gap, 8]]
    )
    data = read(path, "short_term")
    found = data.naive["Naive2"]("test")
    steps = np.array([2, 1, 3, 2, 2, 1, 2])  # differences of neighbors that are both observed
    first = (np.abs(9 - 12) + np.abs(9 - 11)) / 2 / steps.mean()
    second = (1 + 2 + 3) / 3 / 1
    third = 0  # 8 repeated, against the one observed target 8
    assert found is not None
    assert found["mase"] == pytest.approx(np.mean([first, second, third]), rel=1e-6)
    terms = [200 * 3 / 21, 200 * 2 / 20, *(200 * e / (16 + 16 + e) for e in (1, 2, 3)), 0]
    assert found["smape"] == pytest.approx(np.mean(terms), rel=1e-6)
    sums = evaluate(last_value, data.task, data.task.tables["test"], {}, {})
    np.testing.assert_array_equal(sums["count"], [2, 3, 1])
    assert data.task.final_metrics(lambda _: sums, "test")["mase"] == pytest.approx(found["mase"], rel=1e-5)
    assert data.meta["filled"] == 4
    assert any(
        text.endswith("4 missing value(s) were filled; as targets they do not count") for text in data.notices
    )


def test_a_scale_without_two_observed_neighbors_is_none():
    seen = np.array([True, False, True, False])
    assert np.isnan(naive_scale(np.arange(4.0), 1, seen))
    assert naive_scale(np.arange(4.0), 2, seen) == 2
    sums = {"absolute_error": np.array([3.0, 1.0]), "count": np.array([0, 2])}
    assert mean_scaled_error(sums, np.array([1.0, 0.25])) == 2


def test_a_part_without_any_target_is_refused(tmp_path):
    holes = np.zeros((100, 2), bool)
    holes[80:] = True
    table(tmp_path / "a.csv", holes)
    with pytest.raises(DataError, match="every target of the test part is missing in the data"):
        read(tmp_path / "a.csv", "forecast")


def test_which_values_were_filled_belongs_to_the_data(tmp_path, gone):
    true = table(tmp_path / "a.csv", gone)
    data = read(tmp_path / "a.csv", "forecast")
    assert data.task.observed is not None
    same = replace(data, task=replace(data.task, observed=None))
    assert data.fingerprint != same.fingerprint
    assert read_whole(tmp_path, true, data).task.observed is None


@pytest.mark.slow
def test_evaluate_and_the_bundle_name_the_number_of_filled_values(tiny, tmp_path, capsys):
    from ofa_jax.baselines.compare import compare
    from ofa_jax.runs.train import open_run, train_run

    lines = tiny.csv(tmp_path / "a.csv").read_text().splitlines()
    lines[170] = lines[170].split(",")[0] + ",,"
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    said: list[str] = []

    class Reporter(SilentReporter):
        def notice(self, text: str) -> None:
            said.append(text)

    train_run(
        tiny.experiment(tmp_path / "a.csv", "train.epochs=1", "data.missing=ffill"),
        tmp_path / "run",
        Reporter(),
    )
    notice = "a.csv: 2 missing value(s) were filled; as targets they do not count"
    assert notice in said
    loaded, data = open_run(tmp_path / "run")
    assert loaded.record.filled == 2
    assert json.loads((tmp_path / "run" / "bundle" / "ofa.json").read_text())["filled"] == 2
    assert compare(loaded, data).to_dict()["notices"][1] == notice

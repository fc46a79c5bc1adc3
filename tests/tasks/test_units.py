"""Series in other units, and series on another level, get the same sMAPE and MASE from the same model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.build import build_model
from ofa_jax.config.load import build_experiment
from ofa_jax.config.schema import TrainConfig
from ofa_jax.errors import DataError
from ofa_jax.inference import predict
from ofa_jax.model.linear import init_nlinear, nlinear
from ofa_jax.runs.bundle import load_bundle
from ofa_jax.runs.train import open_run, read_data, train_run
from ofa_jax.tasks.base import TaskData
from ofa_jax.tasks.forecast import as_pairs
from ofa_jax.tasks.losses import smape
from ofa_jax.train.evaluate import evaluate
from ofa_jax.train.fit import fit
from ofa_jax.windows.batch import SPREAD, Rows, gather
from ofa_jax.windows.table import WindowSpec, WindowTable

HORIZON, LENGTH = 4, 8
FLOAT32 = 2e-5
"""Inputs in other units differ by a float32 rounding, 6e-8; networks and sums of some hundred terms add a few
hundred of them."""
PAIRS = 2.0**-49
"""What a pair of float32 numbers resolves, relative to the level; float64 itself resolves 2^-53."""


def generated(seed: int = 0, level: float = 500.0) -> list[np.ndarray]:
    """Series that differ in length, of a spread near 100."""
    draw = np.random.default_rng(seed)
    return [level + 20 * draw.normal(size=size).cumsum() for size in (60, 41, 33, 50)]


def prepared(folder: Path, series: list[np.ndarray], task: str = "short_term", **more: Any) -> TaskData:
    path = folder / "series.tsf"
    rows = [f"T{number}:{','.join(map(repr, one.tolist()))}" for number, one in enumerate(series)]
    head = ["@attribute series_name string", "@frequency yearly", "@missing false", "@data"]
    path.write_text("\n".join([*head, *rows]) + "\n")
    data = {"source": str(path)} | ({"target": str(path)} if task == "zero_shot" else {})
    sizes = {"name": task, "input_length": LENGTH, "horizon": HORIZON, **more}
    experiment = build_experiment({"data": data, "task": sizes})
    return read_data(experiment)


@cache
def metrics_as_generated(folder: Path, task: str, loss: str) -> dict[str, float]:
    """What other units and levels must give too."""
    return trained_metrics(prepared(folder, generated(), task, loss=loss))


def trained_metrics(data: TaskData) -> dict[str, float]:
    """The metrics of a model that was trained on the data."""
    options = TrainConfig(epochs=3, batch_size=16, learning_rate=0.01, schedule="constant", seed=1)
    start = init_nlinear(LENGTH, HORIZON)
    best = fit(nlinear, data.task, frozen={}, trainable=start, settings=options).best
    return data.task.final_metrics(lambda table: evaluate(nlinear, data.task, table, {}, best), "test")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """Where series are written that are read at once."""
    return tmp_path_factory.mktemp("units")


@pytest.fixture(scope="module", params=["short_term", "zero_shot"])
def task(request):
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["smape", "mape", "mse"])
def test_other_units_give_the_same_metrics(tmp_path, shared, task, loss):
    wanted = metrics_as_generated(shared, task, loss)
    assert set(wanted) == {"smape", "mase", "owa"}
    for unit in (1e-12, 1 / 3, 1e12):  # units between them are drawn below
        found = trained_metrics(prepared(tmp_path, [one * unit for one in generated()], task, loss=loss))
        assert found == pytest.approx(wanted, rel=FLOAT32), unit


def assert_own_units(folder: Path, units: list[float], series: list[np.ndarray], wanted: Any) -> None:
    scaled = [one * 10.0**power for one, power in zip(series, units, strict=True)]
    assert trained_metrics(prepared(folder, scaled)) == pytest.approx(wanted, rel=FLOAT32)


POWERS = st.lists(st.floats(-12, 12), min_size=4, max_size=4)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(units=POWERS)
def test_each_series_may_have_its_own_unit(shared, units):
    wanted = metrics_as_generated(shared, "short_term", "smape")
    assert_own_units(shared, units, generated(), wanted)


@pytest.mark.slow  # forty trainings
@settings(max_examples=20, deadline=None)
@given(units=POWERS, seed=st.integers(0, 99))
def test_each_of_any_series_may_have_its_own_unit(shared, units, seed):
    wanted = trained_metrics(prepared(shared, generated(seed)))
    assert_own_units(shared, units, generated(seed), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("level", [1e6, 1e9, 1e12, -1e12])
def test_another_level_gives_the_same_mase(tmp_path, shared, task, level):
    # by the loss that does not read the level itself
    wanted = metrics_as_generated(shared, task, "mse")["mase"]
    found = trained_metrics(prepared(tmp_path, [one + level for one in generated()], task, loss="mse"))
    # a mean of errors, each of which is a difference of two values right to PAIRS * level; MASE divides by
    # steps near 16, and training follows
    assert found["mase"] == pytest.approx(wanted, rel=FLOAT32 + 4 * PAIRS * abs(level) / 16)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e6])
def test_a_series_that_grows_by_ten_orders_is_read_in_every_window(tmp_path, unit):
    series = unit * 10.0 ** np.linspace(0, 10, 60) * (1 + 0.1 * np.sin(np.arange(60)))
    data = prepared(tmp_path, [series], "zero_shot")
    rows, table = Rows.of(data.task), data.task.tables["train"]
    batch = gather(rows, table, jnp.arange(table.size, dtype=jnp.int32), data.task.spec)
    for number in range(table.size):
        first = int(table.first[number])
        x, y = np.split(series[first : first + LENGTH + HORIZON] - series[first + LENGTH - 1], [LENGTH])
        assert batch.unit is not None
        own = float(batch.unit[number].item())
        assert abs(x / own).max() == pytest.approx(SPREAD, rel=2e-7)
        np.testing.assert_allclose(batch.x[number, :, 0], x / own, rtol=2e-7, atol=1e-4)  # 1e-7 of SPREAD
        np.testing.assert_allclose(batch.y[number, :, 0], y / own, rtol=2e-7, atol=1e-4)


@pytest.mark.slow
def test_the_loss_of_a_relative_window_is_that_of_its_values():
    values = np.array([[5.0], [7.0], [6.0], [9.0], [4.0]])
    buffer, residue = as_pairs(values, ["a"], "a")
    table = WindowTable.of(np.zeros(1), x_valid=3, y_valid=2, channel=0)
    batch = gather(Rows(buffer, None, residue), table, jnp.zeros(1, jnp.int32), WindowSpec(3, 2))
    assert batch.unit is not None
    pred = (np.array([8.0, 5.0])[None, :, None] - 6) / np.asarray(batch.unit)
    total, count = smape(jnp.asarray(pred, jnp.float32), batch)
    assert float(total) == pytest.approx(200 * (1 / 17 + 1 / 9), rel=1e-6)
    assert float(count) == 2


@pytest.mark.parametrize("value", [0.0, 3.0, 1e-9])
def test_a_window_that_does_not_vary_is_forecast_as_its_value(tmp_path, value):
    series = np.full(40, value)
    series[:5] = [1e-9, 2e-9, 1e-9, 3e-9, 2e-9]
    data = prepared(tmp_path, [series])
    start = init_nlinear(LENGTH, HORIZON)
    start["bias"] += 1
    found = evaluate(nlinear, data.task, data.task.tables["test"], {}, start)
    assert found["absolute_error"].tolist() == [0]
    assert found["symmetric"].tolist() == [0]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A short-term run over series of spread 100."""
    folder = tmp_path_factory.mktemp("run")
    data = prepared(folder, generated())
    assert data.relative
    settings = dict(tiny.settings) | {"network": {"patch": 1, "stride": 1, "embed_width": 8, "read_width": 8}}
    settings["trunk"] = settings["trunk"] | {"random": {"n_embd": 16, "n_head": 2, "n_positions": 12}}
    settings["task"] = {"name": "short_term", "input_length": LENGTH, "horizon": HORIZON}
    experiment = build_experiment({"data": {"source": str(folder / "series.tsf")}, **settings})
    train_run(experiment, folder / "run")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "level"), [(1e-12, 0), (1e12, 0), (1, 1e12), (1, 1e9), (1e-6, 1e3), (3, -1e9)]
)
def test_a_forecast_has_the_units_and_the_level_of_its_input(run, unit, level):
    loaded = load_bundle(run)
    assert loaded.record.relative
    table = pd.DataFrame({"a": generated(5)[0], "b": generated(6)[0] / 7})
    wanted = predict(loaded, table)
    found = predict(loaded, table * unit + level)
    for name in ("a", "b"):
        change = (wanted[name] - table[name].iloc[-1]) * unit
        slack = FLOAT32 * abs(change).max() + 20 * PAIRS * abs(level)
        np.testing.assert_allclose(
            found[name] - (table[name].iloc[-1] * unit + level), change, rtol=0, atol=slack
        )


@pytest.mark.slow
def test_a_run_notices_changes_that_float32_does_not_see(run, tmp_path):
    loaded, data = open_run(run)
    assert loaded.trained_on.meta["relative"]
    moved = prepared(tmp_path, [one + 1e-9 for one in generated()])
    np.testing.assert_array_equal(moved.task.buffer, data.task.buffer)
    assert moved.fingerprint != data.fingerprint
    assert moved.absolute().fingerprint == data.absolute().fingerprint


def test_series_too_small_for_float32_are_refused():
    with pytest.raises(DataError, match=r"table: series `b` has values up to 1e-24, too .*above 1e-23"):
        as_pairs(np.array([[0.0, -1e-24], [0.0, 0.0]]), ["a", "b"], "table")
    assert not as_pairs(np.zeros((2, 1)), ["a"], "table")[1].any()


@pytest.mark.slow
def test_the_published_collections_keep_their_metrics(data_root):
    experiment = build_experiment(
        {
            "data": {"source": "m3_yearly", "target": "m3_yearly"},
            "task": {"name": "zero_shot", "input_length": 9, "horizon": 6},
            "trunk": {
                "source": "random",
                "n_layer": 1,
                "random": {"n_embd": 16, "n_head": 2, "n_positions": 16},
            },
        }
    )
    data, model = read_data(experiment), build_model(experiment)

    def metrics(data: TaskData) -> dict[str, float]:
        trees = (model.frozen, model.trainable)
        return data.task.final_metrics(
            lambda table: evaluate(model.predict, data.task, table, *trees), "test"
        )

    # measured: 5e-9
    assert metrics(data) == pytest.approx(metrics(data.absolute()), rel=1e-7)

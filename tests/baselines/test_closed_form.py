"""NLinear in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from ofa_jax.baselines.ridge import solve_nlinear
from ofa_jax.model.linear import nlinear
from ofa_jax.runs import reduced_rank
from ofa_jax.runs.train import read_data
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.progress import SILENT


@pytest.fixture(scope="module")
def task(tiny, tmp_path_factory):
    source = tiny.csv(tmp_path_factory.mktemp("ridge") / "tiny.csv", rows=400)
    return read_data(tiny.experiment(source)).task


def windows(task, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [w, t] and targets [w, h] of a split."""
    read = WindowPredictor(lambda *given: given[2], task, lambda x, batch: {"x": x, "y": batch.y})
    found = read(task.tables[split], {}, {})
    return found["x"][..., 0], found["y"][..., 0]


def test_with_hardly_a_penalty_it_is_least_squares(task, monkeypatch):
    monkeypatch.setattr(reduced_rank, "PENALTIES", np.array([1e-9]))
    (x, y), found = windows(task, "train"), solve_nlinear(task, SILENT)
    given = np.column_stack([x - x[:, -1:], np.ones(len(x))])
    forecast = np.asarray(nlinear({}, found, x[..., None]))[..., 0]
    best = given @ np.linalg.lstsq(given, y - x[:, -1:], rcond=None)[0] + x[:, -1:]
    step = np.sum((forecast - x[:, -1:]) * (best - x[:, -1:])) / np.sum((best - x[:, -1:]) ** 2)
    assert 0.5 < step <= 1 + 1e-6  # what validation chose
    np.testing.assert_allclose(forecast, x[:, -1:] + step * (best - x[:, -1:]), atol=1e-3)


def test_its_penalty_is_that_with_the_least_error_on_validation(task, monkeypatch):
    x, y = windows(task, "validation")

    def error() -> float:
        forecast = np.asarray(nlinear({}, solve_nlinear(task, SILENT), x[..., None]))[..., 0]
        return float(((forecast - y) ** 2).mean())

    chosen, each = error(), []
    for penalty in reduced_rank.PENALTIES.tolist():
        monkeypatch.setattr(reduced_rank, "PENALTIES", np.array([penalty]))
        each.append(error())
    assert chosen == pytest.approx(min(each), rel=1e-5)
    assert max(each) > 1.001 * chosen

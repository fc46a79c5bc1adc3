"""The adapter of the last layer in closed form."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scipy.optimize import minimize

from ofa_jax import evaluate, open_run, train_run
from ofa_jax.build import build_model
from ofa_jax.errors import ConfigError
from ofa_jax.report.page import write_report
from ofa_jax.runs import ridge
from ofa_jax.runs.ridge import SOLVED, Moments, is_closed_form, moments, reduced_rank
from ofa_jax.runs.train import read_data
from ofa_jax.studies.sweep.cells import Axes
from ofa_jax.studies.sweep.folder import run_sweep
from ofa_jax.train.progress import SILENT, SilentReporter


def drawn(windows: int, seed: int, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Features [w, 6] of unequal size and targets [w, 4] that depend on them."""
    draw, size = np.random.default_rng(seed), np.array([3, 2, 1, 1, 0.3, 0.1])
    x = draw.normal(size=(windows, 6)) * size
    kernel = np.random.default_rng(9).normal(size=(6, 4))
    return x, x @ kernel + noise * draw.normal(size=(windows, 4))


def summed(x: np.ndarray, y: np.ndarray) -> Moments:
    return Moments(x.T @ x, x.T @ y, float((y * y).sum()), y.size)


def test_of_full_rank_it_is_ridge_regression():
    train, other = drawn(40, 0), drawn(30, 1)
    found = reduced_rank(summed(*train), summed(*other), 4)
    x, y = train
    unit = np.trace(x.T @ x) / 6
    kernel = np.linalg.solve(x.T @ x + found.penalty * unit * np.eye(6), x.T @ y)
    np.testing.assert_allclose(found.a @ found.b, found.step * kernel, atol=1e-10)
    assert found.train_mse == pytest.approx(((y - x @ found.a @ found.b) ** 2).mean())


@pytest.mark.parametrize("rank", [1, 2])
def test_no_adapter_of_its_rank_has_a_smaller_penalized_error(rank, monkeypatch):
    monkeypatch.setattr(ridge, "PENALTIES", np.array([0.1]))
    x, y = drawn(40, 0)
    found = reduced_rank(summed(x, y), summed(x, y), rank)
    unit = 0.1 * np.trace(x.T @ x) / 6

    def error(kernel: np.ndarray) -> float:
        return float(((y - x @ kernel) ** 2).sum() + unit * (kernel**2).sum())

    def of_factors(flat: np.ndarray) -> float:
        return error(flat[: 6 * rank].reshape(6, rank) @ flat[6 * rank :].reshape(rank, 4))

    starts = np.random.default_rng(0).normal(size=(5, 10 * rank))
    least = min(minimize(of_factors, start, tol=1e-12).fun for start in starts)
    own = error(found.a @ found.b / found.step)
    assert own == pytest.approx(least, rel=1e-7)
    assert np.linalg.matrix_rank(found.a @ found.b) == rank


def test_validation_chooses_penalty_and_step(monkeypatch):
    train, other = drawn(12, 0, noise=4), drawn(400, 1, noise=4)
    found = reduced_rank(summed(*train), summed(*other), 4)
    errors, penalties = [], ridge.PENALTIES
    for penalty in penalties:
        monkeypatch.setattr(ridge, "PENALTIES", np.array([penalty]))
        one = reduced_rank(summed(*train), summed(*other), 4)
        for share in (0.9, 1, 1.1):
            kernel = share * one.a @ one.b
            errors.append(((other[1] - other[0] @ kernel) ** 2).mean())
    before, own = (((other[1] - other[0] @ kernel) ** 2).mean() for kernel in (0 * kernel, found.a @ found.b))
    assert before - own >= 0.9 * (before - min(errors))
    assert penalties[0] > found.penalty > penalties[-1]
    (larger,) = np.flatnonzero(penalties == found.penalty) - 1
    assert before - min(errors[3 * larger : 3 * larger + 3]) < 0.9 * (before - min(errors))


def test_an_adapter_that_makes_validation_worse_is_not_taken():
    x, y = drawn(40, 0)
    found = reduced_rank(summed(x, y), summed(x, -y), 2)
    assert found.step == 0
    assert not (found.a @ found.b).any()


def test_numbers_that_are_not_finite_are_no_solution():
    x, y = drawn(40, 0)
    assert reduced_rank(summed(x, y), summed(x * np.nan, y), 2) is None


def test_a_rank_beyond_the_horizon_is_filled_with_zeros():
    x, y = drawn(40, 0)
    found = reduced_rank(summed(x, y), summed(x, y), 16)
    assert (found.a.shape, found.b.shape) == ((6, 16), (16, 4))
    four = reduced_rank(summed(x, y), summed(x, y), 4)
    np.testing.assert_allclose(found.a @ found.b, four.a @ four.b)


def test_moments_weigh_hidden_states_by_scale_and_leave_out_missing_targets():
    draw = np.random.default_rng(0)
    hidden, scale, forecast, target = (draw.normal(size=(5, n)) for n in (3, 1, 2, 2))
    known = np.array([[1, 1], [1, 0], [0, 0], [1, 1], [1, 1]])
    rows, weights = np.concatenate([hidden, scale, forecast, target, known], axis=1), np.array([0.25, 1, 1])
    found = moments(rows.astype(np.float32), 2, weights)
    x, y = hidden * scale * weights, (target - forecast) * known
    np.testing.assert_allclose(found.xx, x.T @ x, rtol=1e-5)
    np.testing.assert_allclose(found.xy, x.T @ y, rtol=1e-5)
    assert found.targets == 7
    assert found.yy == pytest.approx((y**2).sum(), rel=1e-5)


RIDGE = {
    "task.input_length": 48,
    "task.horizon": 24,
    "trunk.source": "nano",
    "trunk.n_layer": 4,
    "rules": [["adapt", "out_layer/kernel"], ["freeze", ".*"]],
    "train.solver": "ridge",
}


class Messages(SilentReporter):
    text = ""

    def notice(self, text: str) -> None:
        self.text += f"{text}\n"


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ridge")
    experiment = tiny.experiment(tiny.csv(folder / "tiny.csv", rows=400)).replace(RIDGE)
    said = Messages()
    return experiment, folder / "run", train_run(experiment, folder / "run", said), said.text


def test_a_run_keeps_the_adapter_that_it_scored(trained):
    _, folder, result, said = trained
    loaded, data = open_run(folder)
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    initial, epoch, finished = events
    assert (result.reason, finished["reason"], loaded.record.best_epoch) == (SOLVED, SOLVED, 1)
    assert epoch["validation_mse"] < initial["validation_mse"]
    kept = evaluate(loaded, data, "validation")
    for name in ("mse", "mae"):
        assert kept[name] == pytest.approx(epoch[f"validation_{name}"], rel=1e-5)
        assert result.progress.best_metrics[name] == epoch[f"validation_{name}"]
    assert evaluate(loaded, data, "train")["mse"] == pytest.approx(epoch["train_loss"], rel=1e-4)
    assert f"validation mse {epoch['validation_mse']:.4f}" in said
    assert loaded.model.trainable["adapters"]["out_layer"]["a"].shape[1] == 4
    assert "reduced-rank ridge regression" in write_report(folder, SILENT).read_text()


def test_the_same_command_gives_the_same_bits_and_one_log(trained):
    experiment, folder, result, _ = trained
    before = len((folder / "metrics.jsonl").read_text().splitlines())
    again = train_run(experiment, folder)
    for name in ("a", "b"):
        was, now = (one.best["adapters"]["out_layer"][name] for one in (result, again))
        assert was.tobytes() == now.tobytes()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == before


@pytest.mark.slow
def test_windows_that_are_read_are_evenly_spaced_and_said(trained, tmp_path, monkeypatch):
    experiment, _, result, _ = trained
    monkeypatch.setattr(ridge, "MAX_WINDOWS", {"train": 100, "validation": 20})
    said = Messages()
    fewer = train_run(experiment, tmp_path / "run", said)
    assert re.search(r"100 of \d+ train windows .*\n20 of \d+ validation windows", said.text)
    assert fewer.progress.best == pytest.approx(result.progress.best, rel=0.1)
    assert fewer.progress.best != result.progress.best


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"rules": [["train", ".*"]]}, "the rules do not train an adapter of out_layer alone"),
        ({"task.loss": "smape"}, "the loss is not MSE"),
        ({"train.refit": True}, "train.refit is set"),
        ({"adapters.alpha": 0}, "without effect"),
        ({"trunk.source": "random", "trunk.n_layer": 1}, "no forecaster over a trunk that was pretrained"),
    ],
)
def test_what_closed_form_cannot_train_is_refused_if_asked_for_and_else_trained_by_steps(
    tiny, source, tmp_path, changes, what
):
    experiment = tiny.experiment(source).replace(RIDGE | {"task.horizon": 8} | changes)
    with pytest.raises(ConfigError, match=f"it is ridge, but .*{what}"):
        train_run(experiment, tmp_path / "run")
    assert not list((tmp_path / "run").glob("config.yaml"))
    automatic = experiment.replace({"train.solver": "auto"})
    model, task = build_model(automatic), read_data(automatic).task
    assert not is_closed_form(model, task, automatic.train)


def test_the_recipe_output_over_nano_is_trained_in_closed_form(tiny, source):
    experiment = tiny.experiment(source).replace(RIDGE | {"task.horizon": 8, "train.solver": "auto"})
    model, task = build_model(experiment), read_data(experiment).task
    assert is_closed_form(model, task, experiment.train)
    by_steps = experiment.replace({"train.solver": "gradient"}).train
    assert not is_closed_form(model, task, by_steps)


def test_a_sweep_is_refused(tiny, source, tmp_path):
    with pytest.raises(ConfigError, match="a sweep is trained by gradient steps"):
        run_sweep(tiny.experiment(source).replace(RIDGE), Axes(ranks=(1, 2)), tmp_path / "sweep", SILENT)

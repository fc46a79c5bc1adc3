"""The adapter of the last layer in closed form."""

from __future__ import annotations

import json
import re
import signal

import numpy as np
import pytest
from scipy.optimize import minimize

from ofa_jax import evaluate, open_run, train_run
from ofa_jax.build import build_model
from ofa_jax.cli.show import training_summary
from ofa_jax.errors import ConfigError, Interrupted, TrainError
from ofa_jax.report.page import write_report
from ofa_jax.runs import reduced_rank as closed_form
from ofa_jax.runs import ridge
from ofa_jax.runs.bundle import load_bundle
from ofa_jax.runs.features import features_of
from ofa_jax.runs.reduced_rank import Moments, Watch, Windows, choose, moments, reduced_rank, windows_of
from ofa_jax.runs.ridge import is_closed_form
from ofa_jax.runs.train import read_data
from ofa_jax.studies.sweep.cells import Axes
from ofa_jax.studies.sweep.folder import run_sweep
from ofa_jax.train.fit import SOLVED
from ofa_jax.train.program import evaluation_options
from ofa_jax.train.progress import SILENT, SilentReporter
from ofa_jax.train.signals import StopRequest


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
    found = choose(summed(*train), Windows(*other), 4)
    x, y = train
    unit = np.trace(x.T @ x) / 6
    kernel = np.linalg.solve(x.T @ x + found.choice.penalty * unit * np.eye(6), x.T @ y)
    np.testing.assert_allclose(found.a @ found.b, found.choice.step * kernel, atol=1e-10)
    assert found.train_mse == pytest.approx(((y - x @ found.a @ found.b) ** 2).mean())


@pytest.mark.parametrize("rank", [1, 2])
def test_no_adapter_of_its_rank_has_a_smaller_penalized_error(rank, monkeypatch):
    monkeypatch.setattr(closed_form, "PENALTIES", np.array([0.1]))
    x, y = drawn(40, 0)
    found = choose(summed(x, y), Windows(x, y), rank)
    unit = 0.1 * np.trace(x.T @ x) / 6

    def error(kernel: np.ndarray) -> float:
        return float(((y - x @ kernel) ** 2).sum() + unit * (kernel**2).sum())

    def of_factors(flat: np.ndarray) -> float:
        return error(flat[: 6 * rank].reshape(6, rank) @ flat[6 * rank :].reshape(rank, 4))

    starts = np.random.default_rng(0).normal(size=(5, 10 * rank))
    least = min(minimize(of_factors, start, tol=1e-12).fun for start in starts)
    own = error(found.a @ found.b / found.choice.step)
    assert own == pytest.approx(least, rel=1e-7)
    assert np.linalg.matrix_rank(found.a @ found.b) == rank


def test_validation_chooses_penalty_and_step(monkeypatch):
    train, other = drawn(12, 0, noise=4), drawn(400, 1, noise=4)
    monkeypatch.setattr(closed_form, "STANDARD_ERRORS", 0.0)
    found = choose(summed(*train), Windows(*other), 4)
    errors, penalties = [], closed_form.PENALTIES
    for penalty in penalties:
        monkeypatch.setattr(closed_form, "PENALTIES", np.array([penalty]))
        one = choose(summed(*train), Windows(*other), 4)
        for share in (0.9, 1, 1.1):
            kernel = share * one.a @ one.b
            errors.append(((other[1] - other[0] @ kernel) ** 2).mean())
    before, own = (((other[1] - other[0] @ kernel) ** 2).mean() for kernel in (0 * kernel, found.a @ found.b))
    assert before - own >= 0.9 * (before - min(errors))
    assert penalties[0] > found.choice.penalty > penalties[-1]
    (larger,) = np.flatnonzero(penalties == found.choice.penalty) - 1
    assert before - min(errors[3 * larger : 3 * larger + 3]) < 0.9 * (before - min(errors))


@pytest.mark.parametrize("spread", [0.2, 3.0])
def test_a_gain_counts_where_it_is_sure_over_five_spans(spread):
    """Each span gains, or loses, by its own level; the rule is recomputed here by hand."""
    levels = 1 + spread * np.array([1.0, -1, 0.5, -0.7, 0.2])
    x, y = np.ones((50, 1)), np.repeat(levels, 10)[:, None] + 0.01 * np.arange(50)[:, None] % 2
    train = summed(np.ones((4, 1)), np.ones((4, 1)))
    gains = [1 - ((part - y.mean()) ** 2).sum() / (part**2).sum() for part in np.split(y, 5)]
    sure = np.mean(gains) > 2 * np.std(gains, ddof=1) / np.sqrt(5)
    assert sure == (spread == 0.2)
    found = choose(train, Windows(x, y), 1)
    assert (found.choice.step > 0) == sure
    one = choose(train, Windows(x, y), 1, spans=1)
    assert one.choice.step > 0
    assert one.choice == found.choice or not sure


def test_an_adapter_that_makes_validation_worse_is_not_taken():
    x, y = drawn(40, 0)
    found = choose(summed(x, y), Windows(x, -y), 2)
    assert found.choice.step == 0
    assert not (found.a @ found.b).any()


def test_a_rank_beyond_the_horizon_is_filled_with_zeros():
    x, y = drawn(40, 0)
    found = choose(summed(x, y), Windows(x, y), 16)
    assert (found.a.shape, found.b.shape) == ((6, 16), (16, 4))
    four = choose(summed(x, y), Windows(x, y), 4)
    np.testing.assert_allclose(found.a @ found.b, four.a @ four.b)


def test_moments_weigh_hidden_states_by_scale_and_leave_out_missing_targets():
    draw = np.random.default_rng(0)
    hidden, scale, forecast, target = (draw.normal(size=(5, n)) for n in (3, 1, 2, 2))
    known = np.array([[1, 1], [1, 0], [0, 0], [1, 1], [1, 1]])
    rows, weights = np.concatenate([hidden, scale, forecast, target, known], axis=1), np.array([0.25, 1, 1])
    found = moments(rows.astype(np.float32), weights)
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
    shown = ""

    def notice(self, text: str) -> None:
        self.text += f"{text}\n"

    def status(self, text: str) -> None:
        self.shown += f"{text}\n"


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


@pytest.mark.slow
def test_its_report_says_how_it_was_computed(trained):
    _, folder, *_ = trained
    said = write_report(folder, SILENT).read_text()
    assert "reduced-rank ridge regression in closed form, of at most 32,768 windows" in said


@pytest.mark.slow
def test_windows_are_scored_in_parts_by_one_compiled_network(trained, tmp_path, monkeypatch):
    experiment, _, whole, _ = trained
    monkeypatch.setattr(closed_form, "AT_ONCE", 64)
    parts = train_run(experiment, tmp_path / "run", SILENT)
    assert parts.progress.best_metrics == pytest.approx(whole.progress.best_metrics, rel=1e-6)
    one, other = (build_model(experiment).network for _ in range(2))
    assert features_of(one) is features_of(other)  # compiled programs are found by it


def test_a_finished_run_is_read_back_with_one_log(trained, monkeypatch):
    experiment, folder, result, _ = trained
    before = (folder / "metrics.jsonl").read_text()
    (folder / "bundle" / "adapter_model.safetensors").unlink()
    monkeypatch.setattr(ridge, "_solve", None)
    again = train_run(experiment, folder)
    assert (again.reason, again.progress.best_metrics) == (SOLVED, result.progress.best_metrics)
    for name in ("a", "b"):
        was, now = (one.best["adapters"]["out_layer"][name] for one in (result, again))
        assert was.tobytes() == now.tobytes()
    assert (folder / "metrics.jsonl").read_text() == before
    assert open_run(folder)[0].record.best_epoch == 1


@pytest.mark.slow
def test_another_folder_has_the_same_bits(trained, tmp_path):
    experiment, _, result, _ = trained
    again = train_run(experiment, tmp_path / "run")
    for name in ("a", "b"):
        was, now = (one.best["adapters"]["out_layer"][name] for one in (result, again))
        assert was.tobytes() == now.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("at", ["train 0/", "validation 0/", "solving 3/", "solving 12/", "scoring 0/"])
def test_a_signal_ends_it_and_the_same_command_begins_again(trained, tmp_path, at):
    experiment, _, result, _ = trained

    class Impatient(SilentReporter):
        def status(self, text: str) -> None:
            if text.startswith(at):
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as stop:
        train_run(experiment, tmp_path / "run", Impatient())
    assert (stop.value.signal_number, stop.value.saved) == (signal.SIGTERM, False)
    assert not (tmp_path / "run" / "bundle").exists()
    assert train_run(experiment, tmp_path / "run").progress.best == result.progress.best


@pytest.mark.slow
def test_refit_takes_penalty_and_step_to_the_windows_of_all_parts(trained, tmp_path):
    experiment, _, result, _ = trained
    experiment = experiment.replace({"train.refit": True})
    said = Messages()
    assert train_run(experiment, tmp_path / "run", said).progress.best == result.progress.best
    assert "penalty and step that were chosen" in said.text
    model, task = build_model(experiment), read_data(experiment).task
    options = evaluation_options(experiment.train, model.network)
    watch = Watch(StopRequest(), SILENT)
    reader = ridge._reader(model, task, options, watch)
    parts = [reader.moments(table) for table in task.tables.values()]
    validation = windows_of(reader.validation_rows(task.tables["validation"])[1], reader.weights_f)
    chosen = choose(parts[0], validation, model.lora.rank).choice
    left, right = reduced_rank(parts[0].plus(parts[1]).plus(parts[2]), chosen.penalty, model.lora.rank)
    kept = load_bundle(tmp_path / "run" / "final").model.trainable["adapters"]["out_layer"]
    kernel = ridge._weights(model)[:, None] * chosen.step * left @ right.T
    np.testing.assert_allclose(model.lora.scale * kept["a"] @ kept["b"], kernel, rtol=1e-3, atol=1e-6)
    assert not np.allclose(kept["a"], result.best["adapters"]["out_layer"]["a"], rtol=1e-2)


def test_sums_that_are_not_finite_are_refused(trained, tmp_path, monkeypatch):
    given = closed_form.moments
    monkeypatch.setattr(closed_form, "moments", lambda *args: given(*args)._replace(yy=np.nan))
    with pytest.raises(TrainError, match="a hidden state or a train target is not finite"):
        train_run(trained[0], tmp_path / "run")


@pytest.mark.slow
def test_what_is_said_is_of_the_closed_form(tiny, tmp_path):
    experiment = tiny.experiment(tiny.csv(tmp_path / "tiny.csv", rows=400)).replace(
        {path: value for path, value in RIDGE.items() if path != "train.batch_size"}
    )
    said = Messages()
    result = train_run(experiment, tmp_path / "run", said)
    assert not re.search("an epoch has|epochs", said.text)
    assert training_summary(result, "strict").startswith(f"{SOLVED}; adapted, validation MSE ")
    kept = result._replace(progress=result.progress.model_copy(update={"best_epoch": 0}))
    assert "zero-shot is better and is kept" in training_summary(kept, "strict")


@pytest.mark.slow
def test_windows_that_are_read_are_evenly_spaced_and_said(trained, tmp_path, monkeypatch):
    experiment, _, result, _ = trained
    monkeypatch.setattr(closed_form, "MAX_WINDOWS", {"train": 100, "validation": 20})
    said = Messages()
    fewer = train_run(experiment, tmp_path / "run", said)
    assert re.search(r"100 of \d+ train windows .*\n20 of \d+ validation windows", said.text)
    assert re.findall("(?:train|validation) 0/.*", said.shown) == ["train 0/100", "validation 0/20"]
    assert fewer.progress.best == pytest.approx(result.progress.best, rel=0.1)
    assert fewer.progress.best != result.progress.best


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"rules": [["train", ".*"]]}, "the rules do not train an adapter of out_layer alone"),
        ({"task.loss": "smape"}, "the loss is not MSE"),
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

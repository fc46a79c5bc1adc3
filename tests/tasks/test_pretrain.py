"""Pretraining: contexts, loss, windows by epoch, and the trunk that a run makes."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax import Experiment, evaluate, open_run, train_run
from ofa_jax.errors import ConfigError, Interrupted
from ofa_jax.model import trees
from ofa_jax.model.convert import save_trunk
from ofa_jax.model.gpt2 import Forecaster
from ofa_jax.model.quantiles import Quantiles
from ofa_jax.model.weights import load_trunk
from ofa_jax.report.page import write_report
from ofa_jax.runs.trunk import trunk_of_run
from ofa_jax.tasks import pretrain
from ofa_jax.tasks.table import prepare
from ofa_jax.train.progress import SILENT, SilentReporter
from ofa_jax.train.step import dropout_key
from ofa_jax.windows.batch import Batch

SMALL = {
    "data": {"source": "generated"},
    "task": {"name": "pretrain", "input_length": 64, "horizon": 16, "series": 96, "held_out": 40},
    "trunk": {
        "source": "random",
        "n_layer": 1,
        "random": {"n_embd": 16, "n_head": 2, "n_positions": 10},
        "dropout": 0,
    },
    "recipe": "full",
    "network": {"patch": 8, "stride": 8},
    "train": {
        "epochs": 3,
        "batch_size": 32,
        "optimizer": "adamw",
        "schedule": "trapezoid",
        "learning_rate": 3e-3,
        "clip_norm": 1,
    },
}


class Messages(SilentReporter):
    text = ""

    def notice(self, text: str) -> None:
        self.text += f"{text}\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrain") / "run"
    train_run(Experiment.model_validate(SMALL), out)
    return out


def drawn(windows=400, length=64, horizon=16):
    values = np.random.default_rng(0).normal(3, 2, (windows, length + horizon, 1)).astype(np.float32)
    known = np.ones(values.shape, bool)
    known[:, 60:62] = known[:, 70] = False
    values[~known] = 0
    parts = np.split(values, [length], axis=1), np.split(known, [length], axis=1)
    batch = Batch(
        *map(jnp.asarray, (*parts[0], *parts[1])), weight=jnp.ones(windows), window_id=jnp.arange(windows)
    )
    return batch, pretrain.draw_context(batch, jax.random.split(dropout_key(1), windows))


@pytest.mark.slow
def test_the_end_of_a_context_is_seen_and_standardizes_the_window():
    batch, made = drawn()
    seen = np.asarray(made.x_mask[..., 0])
    first = seen.argmax(axis=1)
    whole = first == 0
    assert 0.3 < whole.mean() < 0.55
    assert first.max() <= 64 - 8
    assert len(set(first.tolist())) > 20
    for row in range(40):
        np.testing.assert_array_equal(
            seen[row], np.asarray(batch.x_mask[row, :, 0]) & (np.arange(64) >= first[row])
        )
        values = np.asarray(batch.x[row, seen[row], 0], np.float64)
        np.testing.assert_allclose(
            made.x[row, seen[row], 0], (values - values.mean()) / values.std(), atol=1e-4
        )
        wanted = (np.asarray(batch.y[row, :, 0]) - values.mean()) / values.std()
        np.testing.assert_allclose(made.y[row, :, 0], wanted, atol=1e-4)
    assert not np.asarray(made.x)[~np.asarray(made.x_mask)].any()
    counted, known = np.asarray(made.y_mask[..., 0]), np.asarray(batch.y_mask[..., 0])
    ahead = np.where(counted.any(axis=1), 16 - counted[:, ::-1].argmax(axis=1), 0)
    np.testing.assert_array_equal(counted, known & (np.arange(16) < ahead[:, None]))
    assert 0.4 < (ahead == 16).mean() < 0.7
    assert set(ahead.tolist()) == {*range(8, 17)}
    assert (ahead <= 2 * (64 - first)).all()


def test_no_target_counts_beyond_twice_the_steps_that_are_seen():
    _, made = drawn(length=16, horizon=64)
    seen = 16 - np.asarray(made.x_mask[..., 0]).argmax(axis=1)
    assert (np.asarray(made.y_mask[..., 0]) <= (np.arange(64) < 2 * seen[:, None])).all()
    assert seen.min() < 12


@pytest.mark.slow
def test_windows_with_a_constant_context_are_not_scored():
    batch, _ = drawn(4)
    flat = batch._replace(x=jnp.full(batch.x.shape, 2.0))
    made = pretrain.draw_context(flat, jax.random.split(dropout_key(1), 4))
    assert not made.y_mask.any()
    forecast = Quantiles(jnp.zeros((4, 16, 9)), jnp.zeros((4, 16)))
    assert [float(part) for part in pretrain.quantile_loss(forecast, made)] == [0, 0]


def test_the_loss_by_hand():
    z = np.arcsinh(np.array([[0.5, -2.0, 9.0]]))
    mask = np.array([[True, True, False]])
    batch = drawn(1)[1]._replace(y=jnp.sinh(z)[..., None], y_mask=jnp.asarray(mask)[..., None])
    levels = np.linspace(-1, 1, 9) * np.ones((1, 3, 1))
    mean = np.array([[1.0, 0.0, 0.0]])
    total, count = pretrain.quantile_loss(Quantiles(jnp.asarray(levels), jnp.asarray(mean)), batch)
    by_hand = []
    for step in range(2):
        error = z[0, step] - levels[0, step]
        share = np.arange(1, 10) / 10
        pinball = 2 * np.mean(np.where(error >= 0, share, share - 1) * error)
        by_hand.append(pinball + 0.1 * (np.sinh(z[0, step]) - mean[0, step]) ** 2)
    assert float(count) == 1
    assert float(total) == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_every_epoch_has_series_of_its_own_and_the_held_out_stay():
    experiment = Experiment.model_validate(SMALL)
    data = prepare(experiment.data, experiment.task, protocol="strict", batch_size=32)
    rows = data.task.tables["train"].size * 80
    first, second = (np.asarray(data.task.refresh(epoch).values) for epoch in (0, 1))
    np.testing.assert_array_equal(first, data.task.buffer)
    assert (first[:rows] != second[:rows]).any()
    np.testing.assert_array_equal(first[rows:], second[rows:])
    names = [data.task.tables[split].window_id for split in ("train", "validation", "test")]
    assert len(np.unique(np.concatenate(names))) == sum(map(len, names))


@pytest.mark.slow
def test_training_lowers_the_loss_and_a_resumed_run_has_the_same_bits(run, tmp_path, monkeypatch):
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [event["validation_pinball"] for event in events if event["event"] == "epoch"]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    from ofa_jax.train.loop import Trainer

    ended = Trainer.close_epoch

    def stop_after_one(self, epoch, *rest):
        ended(self, epoch, *rest)
        if epoch == 1:
            self.request.signal_number = 15

    monkeypatch.setattr(Trainer, "close_epoch", stop_after_one)
    with pytest.raises(Interrupted):
        train_run(Experiment.model_validate(SMALL), tmp_path / "run")
    monkeypatch.undo()
    train_run(Experiment.model_validate(SMALL), tmp_path / "run")
    again, before = (load_bundle_leaves(folder) for folder in (tmp_path / "run", run))
    assert again == before


def load_bundle_leaves(run):
    return trunk_of_run(run).sha256


@pytest.mark.slow
def test_a_run_becomes_a_trunk_that_forecasts_and_is_adapted(run, tiny, tmp_path):
    made = trunk_of_run(run)
    assert made.config.forecaster == Forecaster(patch=8, context=64, horizon=16)
    save_trunk(made, tmp_path / "trunk")
    loaded = load_trunk(tmp_path / "trunk")
    assert loaded.config == made.config
    assert loaded.sha256 == made.sha256
    assert trees.shapes(loaded.params)["in_layer/kernel"] == (48, 16)

    source = tiny.csv(tmp_path / "tiny.csv")
    experiment = tiny.experiment(source).replace(
        {"trunk.source": str(tmp_path / "trunk"), "trunk.n_layer": 1, "train.epochs": 1}
    )
    train_run(experiment, tmp_path / "adapted")
    model, data = open_run(tmp_path / "adapted")
    assert model.model.network.pretrained
    events = [json.loads(line) for line in (tmp_path / "adapted" / "metrics.jsonl").read_text().splitlines()]
    assert events[0]["event"] == "initial"
    assert min(event["validation_mse"] for event in events if "validation_mse" in event) == pytest.approx(
        evaluate(model, data, "validation")["mse"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [13, 20])
def test_the_last_layer_is_trained_on_features_of_one_pass(run, tiny, tmp_path, horizon, monkeypatch):
    save_trunk(trunk_of_run(run), tmp_path / "trunk")
    experiment = tiny.experiment(tiny.csv(tmp_path / "tiny.csv")).replace(
        {
            "task.horizon": horizon,
            "trunk.source": str(tmp_path / "trunk"),
            "trunk.n_layer": 1,
            "rules": [["adapt", "out_layer/kernel"], ["freeze", ".*"]],
            "train.solver": "gradient",
            "train.epochs": 2,
            "train.learning_rate": 1e-2,
        }
    )
    said = Messages()
    train_run(experiment, tmp_path / "cached", said)
    assert "hidden states were computed once" in said.text
    monkeypatch.setattr("ofa_jax.runs.fitting.cache_features", lambda *_: None)
    train_run(experiment, tmp_path / "plain")
    (cached, data), (plain, _) = (open_run(tmp_path / name) for name in ("cached", "plain"))
    assert cached.record.best_epoch > 0
    factors = [model.model.trainable["adapters"]["out_layer"] for model in (cached, plain)]
    for name in ("a", "b"):
        np.testing.assert_allclose(factors[0][name], factors[1][name], atol=2e-4)
    assert evaluate(cached, data)["mse"] == pytest.approx(evaluate(plain, data)["mse"], rel=1e-4)


@pytest.mark.slow
def test_a_report_shows_held_out_windows(run):
    page = write_report(run, SILENT).read_text()
    assert "Held-out windows" in page
    assert "Squared error of the mean by step" in page


def test_only_a_pretraining_run_makes_a_trunk(tiny, tmp_path):
    train_run(tiny.experiment(tiny.csv(tmp_path / "tiny.csv"), "train.epochs=1"), tmp_path / "run")
    with pytest.raises(ConfigError, match="'forecast' makes no trunk"):
        trunk_of_run(tmp_path / "run")


def test_steps_that_are_no_whole_tokens_are_refused():
    with pytest.raises(ValueError, match=r"task\.horizon 20 is not a multiple of network\.patch 8"):
        Experiment.model_validate(SMALL | {"task": SMALL["task"] | {"horizon": 20}})

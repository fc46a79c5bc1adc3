"""One step, chunks of steps, and what the optimiser holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.config import TrainConfig
from ofa_jax.data.windows import IndexStream, WindowTable, gather
from ofa_jax.model.trees import flatten
from ofa_jax.tasks.forecasting import prepare_frame
from ofa_jax.train.assemble import build_model
from ofa_jax.train.events import EventLog
from ofa_jax.train.loop import StopRequest, Trainer, fit
from ofa_jax.train.optim import adam, learning_rate
from ofa_jax.train.progress import SilentReporter
from ofa_jax.train.step import TrainState, chunk_rows, dropout_key, init_state, make_chunk, sample_keys


class Setting:
    """A tiny model with its data, and what a step needs."""

    def __init__(self, tiny: Any, *overrides: str) -> None:
        self.experiment = tiny.experiment("unused.csv", *overrides)
        self.task = prepare_frame(tiny.frame(), self.experiment.data, self.experiment.task).task
        self.model = build_model(self.experiment)
        self.frozen = jax.tree.map(jnp.asarray, self.model.frozen)
        self.schedule = learning_rate(self.experiment.train, 7)
        self.optimizer = adam(self.schedule)
        self.table = WindowTable(*map(jnp.asarray, self.task.tables["train"]))
        self.buffer = jnp.asarray(self.task.buffer)
        self.key = dropout_key(2021)

    def trainer(self) -> Trainer:
        model, settings = self.model, self.experiment.train
        return Trainer(model.predict, self.task, self.frozen, model.trainable, settings, SilentReporter(), EventLog(None), None, None)

    def state(self) -> TrainState:
        return init_state(self.model.trainable, self.optimizer)


@pytest.fixture(scope="module")
def setting(tiny) -> Setting:
    return Setting(tiny)


@pytest.fixture(scope="module")
def chunk(setting):
    return make_chunk(setting.model.predict, setting.task.loss, setting.optimizer, setting.task.spec)


def run_chunks(setting: Setting, chunk: Any, length: int, steps: int) -> tuple[TrainState, np.ndarray]:
    stream = IndexStream(202, 32, seed=2021)
    state, losses = setting.state(), []
    for first in range(0, steps, length):
        count = min(length, steps - first)
        index = np.full((chunk_rows(length), 32), -1, np.int32)
        index[:count] = stream.batches(first, first + count)
        state, values = chunk(setting.frozen, state, setting.buffer, setting.table, jnp.asarray(index), count, setting.key)
        losses.append(np.asarray(values)[:count])
    return state, np.concatenate(losses)


@pytest.fixture(scope="module")
def after_seven(setting, chunk) -> tuple[TrainState, np.ndarray]:
    return run_chunks(setting, chunk, 3, 7)


def test_steps_are_counted(setting, after_seven):
    assert int(setting.state().step) == 0
    assert int(after_seven[0].step) == 7


def test_the_optimiser_holds_adapters_alone(setting):
    shapes = {path: leaf.shape for path, leaf in flatten(setting.model.trainable).items()}
    assert shapes == {
        "adapters/gpt2/wpe/a": (8, 4),
        "adapters/gpt2/wpe/b": (4, 16),
        "adapters/out_layer/a": (80, 4),
        "adapters/out_layer/b": (4, 8),
    }
    leaves = [leaf.shape for leaf in jax.tree.leaves(setting.state().opt_state)]
    assert sorted(leaves) == sorted([*shapes.values(), *shapes.values(), (), ()])  # two moments; two counters


def test_only_the_trainable_tree_changes(setting, after_seven):
    before, after = flatten(setting.model.trainable), flatten(after_seven[0].trainable)
    assert before.keys() == after.keys()
    assert all(np.any(np.asarray(after[path]) != before[path]) for path in before)


@pytest.mark.parametrize("recipe", ["reference", "gpt4ts"])
def test_every_frozen_leaf_keeps_its_bits(tiny, recipe):
    used = Setting(tiny, f"recipe={recipe}")
    before = {path: np.array(leaf) for path, leaf in flatten(used.frozen).items()}
    trainer = used.trainer()
    trainer.run_chunk(3)
    after = flatten(trainer.frozen)
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        np.testing.assert_array_equal(np.asarray(after[path]).view(np.uint32), leaf.view(np.uint32), err_msg=path)
    trained = flatten(trainer.state.trainable)
    assert trained.keys().isdisjoint({f"base/{path}" for path in before})
    assert any(np.any(np.asarray(trained[path]) != leaf) for path, leaf in flatten(used.model.trainable).items())


def test_gradients_add_over_slices_and_ignore_padding(setting):
    @jax.jit
    def gradient(frozen, trainable, batch):
        predict, loss = setting.model.predict, setting.task.loss
        return jax.grad(lambda leaves: loss(predict(frozen, leaves, batch.x, batch.x_mask), batch)[0])(trainable)

    def of(*rows):
        index = jnp.array(rows + (-1,) * (8 - len(rows)), jnp.int32)
        return gradient(setting.frozen, setting.model.trainable, gather(setting.buffer, setting.table, index, setting.task.spec))

    whole = of(0, 1, 2, 3, 4, 5, 100, 101)
    parts = jax.tree.map(jnp.add, of(0, 1, 2, 3, 4, 5), of(100, 101))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(float(jnp.abs(one).max()), 1e-6))  # float32 sums in another order
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(of()))


GOLDEN = {"loss": 2.418858, "gpt2/wpe": 54.94179, "out_layer": 68.71858}


def test_golden_metrics_of_one_step(setting, chunk):
    state, losses = run_chunks(setting, chunk, 3, 1)
    found = {"loss": float(losses[0])}
    for path, factors in state.trainable["adapters"].items():
        found[path] = float(sum(np.abs(np.asarray(leaf, np.float64)).sum() for leaf in factors.values()))
    assert found == pytest.approx(GOLDEN, rel=1e-6), (
        "one step gives other numbers than before. If that is meant (another initialisation, order, dropout or optimiser), say so in "
        f"CHANGELOG.md and write these as GOLDEN: { {name: float(f'{value:.7g}') for name, value in found.items()} }"
    )


@pytest.mark.parametrize("length", [1, 2, 32, pytest.param(40, marks=pytest.mark.slow)])
def test_results_do_not_depend_on_the_length_of_chunks(setting, chunk, after_seven, length):
    state, losses = run_chunks(setting, chunk, length, 7)
    np.testing.assert_array_equal(losses.view(np.uint32), after_seven[1].view(np.uint32))
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(after_seven[0]), strict=True):
        np.testing.assert_array_equal(np.asarray(one).view(np.uint32), np.asarray(other).view(np.uint32))


def test_chunks_of_any_usual_length_share_one_program():
    assert [chunk_rows(steps) for steps in (1, 3, 32, 33, 64, 65)] == [32, 32, 32, 64, 64, 96]


def test_a_fit_compiles_its_chunk_once(tiny):
    used = Setting(tiny, "train.epochs=2")
    trainer = used.trainer()
    trainer.run(StopRequest())
    assert trainer.progress.step == 14
    assert trainer.chunk._cache_size() == 1  # 3 + 3 + 1 steps an epoch; the design allows two programs, one is made


def test_the_chunk_never_takes_the_frozen_buffers(setting, chunk):
    run_chunks(setting, chunk, 3, 3)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(setting.frozen))
    state = setting.state()
    index = jnp.zeros((chunk_rows(3), 32), jnp.int32)
    chunk(setting.frozen, state, setting.buffer, setting.table, index, 1, setting.key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.trainable))


def test_starting_copies_the_trainable_tree(setting):
    trainable = jax.tree.map(jnp.asarray, setting.model.trainable)
    state = init_state(trainable, setting.optimizer)
    for leaf in jax.tree.leaves(state.trainable):
        leaf.delete()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(trainable))


def test_keys_belong_to_step_and_row():
    key = dropout_key(7)
    few, many = (jax.random.key_data(sample_keys(key, jnp.int32(5), rows)) for rows in (3, 8))
    np.testing.assert_array_equal(few, many[:3])
    later = jax.random.key_data(sample_keys(key, jnp.int32(6), 8))
    assert len({tuple(row) for row in np.concatenate([many, later]).tolist()}) == 16
    assert str(jax.random.key_impl(key)) == "threefry2x32"


TORCH_COSINE = [1e-2, 7.5000025e-3, 2.5000075e-3, 1e-8, 2.5000075e-3]
"""``CosineAnnealingLR(T_max=3, eta_min=1e-8)`` from 1e-2, epochs 0 to 4: lowest + (highest - lowest) (1 + cos(pi epoch / 3)) / 2."""


def test_the_cosine_is_that_of_torch():
    schedule = learning_rate(TrainConfig(learning_rate=1e-2, cosine_epochs=3), 7)
    for epoch, rate in enumerate(TORCH_COSINE):
        for step in (7 * epoch, 7 * epoch + 6):
            # float32 cancels near the lowest rate: an error of one part in 1e7 of the highest
            assert float(schedule(step)) == pytest.approx(rate, rel=1e-6, abs=1e-9)
            assert float(schedule(jnp.int32(step))) == float(schedule(step))


def test_a_constant_rate_stays():
    schedule = learning_rate(TrainConfig(learning_rate=0.5, schedule="constant"), 7)
    assert [float(schedule(step)) for step in (0, 1000)] == [0.5, 0.5]


@pytest.mark.parametrize("gradients", [(0.5, -0.25), (1e-8, 1e-8)])
def test_adam_is_that_of_torch(gradients):
    """Two steps by Kingma and Ba's formulas with PyTorch's defaults, epsilon added to the corrected root."""
    optimizer = adam(lambda count: 0.1)
    first, second = 0.0, 0.0
    params = {"w": jnp.float32(1)}
    state = optimizer.init(params)
    for step, gradient in enumerate(gradients, start=1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        wanted = -0.1 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        updates, state = optimizer.update({"w": jnp.float32(gradient)}, state, params)
        assert float(updates["w"]) == pytest.approx(wanted, rel=1e-4)  # 1 - 0.999**step loses four digits in float32


def test_patience_counts_epochs_without_a_better_validation_and_the_best_is_kept(setting):
    def scripted(*objectives, epochs=10):
        left = iter(objectives)
        task = replace(setting.task, metrics=lambda sums: {"mse": next(left)})
        settings = setting.experiment.train.model_copy(update={"epochs": epochs, "patience": 3})
        return fit(
            setting.model.predict, task, frozen=setting.model.frozen, trainable=setting.model.trainable, settings=settings,
            reporter=SilentReporter(),
        )  # fmt: skip

    stopped = scripted(3.0, 2.0, 2.5, 2.0, 2.6, 1.0)  # an equal value is not better
    assert stopped.reason == "no better validation mse for 3 epochs"
    assert stopped.progress.step == 5 * 7
    assert (stopped.progress.best_epoch, stopped.progress.best) == (2, 2.0)
    second = scripted(3.0, 2.0, epochs=2)
    assert second.progress.best_epoch == 2
    jax.tree.map(np.testing.assert_array_equal, stopped.best, second.best)

    recovered = scripted(3.0, 3.5, 3.5, 2.0, 2.5, 2.5, 2.5)  # a better epoch starts the count anew
    assert recovered.progress.step == 7 * 7
    assert recovered.progress.best_epoch == 4


def test_fit_keeps_the_best_epoch(setting, tiny):
    seen = []
    settings = setting.experiment.train.model_copy(update={"epochs": 2})
    result = fit(
        setting.model.predict, setting.task, frozen=setting.model.frozen, trainable=setting.model.trainable, settings=settings,
        reporter=SilentReporter(), keep_best=lambda best, progress: seen.append((progress.best_epoch, progress.best)),
    )  # fmt: skip
    assert result.reason == "all epochs done"
    assert result.progress.best == result.progress.best_metrics["mse"]
    assert seen[-1] == (result.progress.best_epoch, result.progress.best)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(result.best))

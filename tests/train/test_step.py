"""One step, chunks of steps, and the optimizer's state."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ofa_jax.build import build_model
from ofa_jax.model.trees import flatten
from ofa_jax.tasks.forecast import prepare_frame
from ofa_jax.tasks.losses import reconstruction_error
from ofa_jax.train.devices import SINGLE
from ofa_jax.train.fit import fit
from ofa_jax.train.lanes import Lane
from ofa_jax.train.loop import Trainer
from ofa_jax.train.optim import make_optimizer, make_schedule
from ofa_jax.train.program import Program
from ofa_jax.train.signals import StopRequest
from ofa_jax.train.step import (
    TrainState,
    chunk_rows,
    dropout_key,
    eval_step,
    init_state,
    sample_keys,
    train_chunk,
)
from ofa_jax.windows.batch import Batch, gather
from ofa_jax.windows.order import IndexStream
from ofa_jax.windows.table import WindowSpec, WindowTable


class Setting:
    """A tiny model with its data, and what a step needs."""

    def __init__(self, tiny: Any, *overrides: str) -> None:
        self.experiment = tiny.experiment("unused.csv", *overrides)
        self.task = prepare_frame(tiny.frame(), self.experiment.data, self.experiment.task).task
        self.model = build_model(self.experiment)
        self.frozen = jax.tree.map(jnp.asarray, self.model.frozen)
        settings = self.experiment.train
        schedule = make_schedule("cosine", settings.learning_rate, 7, cosine_epochs=settings.cosine_epochs)
        self.optimizer = make_optimizer("adam", schedule)
        self.table = WindowTable(*map(jnp.asarray, self.task.tables["train"]))
        self.buffer = jnp.asarray(self.task.buffer)
        self.key = dropout_key(2021)

    def trainer(self) -> Trainer:
        program = Program(self.model.predict, self.task, self.frozen, self.experiment.train)
        return Trainer(program, [Lane(self.model.trainable, self.experiment.train.seed)])

    def state(self) -> TrainState:
        return init_state(self.model.trainable, self.optimizer)


@pytest.fixture(scope="module")
def setting(tiny) -> Setting:
    return Setting(tiny)


@pytest.fixture(scope="module")
def chunk(setting):
    return compiled(setting.model.predict, setting.task.loss, setting.optimizer, setting.task.spec)


def compiled(
    predict: Any, loss: Any, optimizer: Any, spec: WindowSpec, corrupt: Any = None, **how: Any
) -> Any:
    return SINGLE.compile_chunk(partial(train_chunk, predict, loss, optimizer, spec, corrupt, **how))


def run_chunks(setting: Setting, chunk: Any, length: int, steps: int) -> tuple[TrainState, np.ndarray]:
    stream = IndexStream(202, 32, seed=2021)
    state, losses = setting.state(), []
    for first in range(0, steps, length):
        count = min(length, steps - first)
        index = np.full((chunk_rows(length), 32), -1, np.int32)
        index[:count] = stream.batches(first, first + count)
        state, values = chunk(
            setting.frozen, state, setting.buffer, setting.table, jnp.asarray(index), count, setting.key
        )
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
    after = flatten(trainer.program.frozen)
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        np.testing.assert_array_equal(
            np.asarray(after[path]).view(np.uint32), leaf.view(np.uint32), err_msg=path
        )
    trained = flatten(trainer.trainable(0))
    assert trained.keys().isdisjoint({f"base/{path}" for path in before})
    assert any(
        np.any(np.asarray(trained[path]) != leaf) for path, leaf in flatten(used.model.trainable).items()
    )


@pytest.mark.slow
def test_gradients_add_over_slices_and_ignore_padding(setting):
    @jax.jit
    def gradient(frozen, trainable, batch):
        predict, loss = setting.model.predict, setting.task.loss
        return jax.grad(lambda leaves: loss(predict(frozen, leaves, batch.x, batch.x_mask), batch)[0])(
            trainable
        )

    def of(*rows):
        index = jnp.array(rows + (-1,) * (8 - len(rows)), jnp.int32)
        return gradient(
            setting.frozen,
            setting.model.trainable,
            gather(setting.buffer, setting.table, index, setting.task.spec),
        )

    whole = of(0, 1, 2, 3, 4, 5, 100, 101)
    parts = jax.tree.map(jnp.add, of(0, 1, 2, 3, 4, 5), of(100, 101))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(
            one, other, atol=1e-5 * max(float(jnp.abs(one).max()), 1e-6)
        )  # float32 sums in another order
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(of()))


@pytest.fixture(scope="module")
def dropping(tiny) -> Setting:
    """With much dropout, so that a key at another row would show."""
    return Setting(tiny, "trunk.dropout=0.3", "adapters.dropout=0.3")


def sliced(setting: Setting, slices: int, rows: int, steps: int = 5) -> tuple[TrainState, np.ndarray]:
    """So many steps of 32 windows and of padding up to ``rows``, in slices."""
    chunk = compiled(
        setting.model.predict, setting.task.loss, setting.optimizer, setting.task.spec, slices=slices
    )
    index = np.full((chunk_rows(steps), rows), -1, np.int32)
    index[:steps, :32] = IndexStream(202, 32, seed=2021).batches(
        2, 2 + steps
    )  # the last one is the end of an epoch: 10 windows
    state, losses = chunk(
        setting.frozen, setting.state(), setting.buffer, setting.table, jnp.asarray(index), steps, setting.key
    )
    return state, np.asarray(losses)[:steps]


@pytest.mark.slow
@pytest.mark.parametrize(("slices", "rows"), [(4, 32), (5, 35), (32, 32)])
def test_slices_give_the_numbers_of_the_whole_batch(dropping, slices, rows):
    (whole, losses), (state, found) = sliced(dropping, 1, 32), sliced(dropping, slices, rows)
    np.testing.assert_allclose(found, losses, rtol=1e-6)  # float32 sums in another order
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        # five steps of Adam pass the rounding of small gradients on
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(np.asarray(other)).max())


@pytest.mark.slow
def test_memory_is_that_of_a_slice(setting):
    """Compiled, not run: 2048 windows of 862 channels, 32 at a time, need little more than 32 windows."""
    channels, length = 862, 96
    spec = WindowSpec(length, 0, univariate=False)
    frozen = {"kernel": jax.ShapeDtypeStruct((channels, 64), jnp.float32)}
    trainable = {"out": jnp.zeros((64, channels))}

    def predict(frozen, trainable, x_btc, x_mask, *, dropout_keys=None):
        return jax.nn.gelu(x_btc @ frozen["kernel"]) @ trainable["out"]

    def temporary(rows: int, slices: int) -> int:
        chunk = compiled(predict, reconstruction_error, setting.optimizer, spec, slices=slices)
        table = WindowTable(*(jax.ShapeDtypeStruct((5000,), jnp.int32) for _ in WindowTable._fields))
        buffer, index = (
            jax.ShapeDtypeStruct((9000, channels), jnp.float32),
            jax.ShapeDtypeStruct((32, rows), jnp.int32),
        )
        lowered = chunk.lower(
            frozen, init_state(trainable, setting.optimizer), buffer, table, index, 1, setting.key
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    one_slice = temporary(32, 1)
    gathered = 2048 * length * channels * 4  # bytes of the inputs alone
    assert temporary(2048, 1) > gathered
    assert temporary(2048, 64) < min(1.2 * one_slice, gathered / 10)


GOLDEN = {"loss": 2.371474, "gpt2/wpe": 54.94179, "out_layer": 68.71858}


def test_golden_metrics_of_one_step(setting, chunk):
    state, losses = run_chunks(setting, chunk, 3, 1)
    found = {"loss": float(losses[0])}
    for path, factors in state.trainable["adapters"].items():
        found[path] = float(sum(np.abs(np.asarray(leaf, np.float64)).sum() for leaf in factors.values()))
    assert found == pytest.approx(GOLDEN, rel=1e-6), (
        "one step gives other numbers than before. If that is meant (another initialization, order, dropout, "
        "optimizer), say so in CHANGELOG.md and write these as GOLDEN: "
        f"{ {name: float(f'{value:.7g}') for name, value in found.items()} }"
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
    assert trainer.lanes[0].progress.step == 14
    assert (
        trainer.program.chunk._cache_size() == 1
    )  # 3 + 3 + 1 steps an epoch; the design allows two programs, one is made


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
    few, many = (jax.random.key_data(sample_keys(key, jnp.int32(5), jnp.arange(rows))) for rows in (3, 8))
    np.testing.assert_array_equal(few, many[:3])
    later = jax.random.key_data(sample_keys(key, jnp.int32(6), jnp.arange(8)))
    assert len({tuple(row) for row in np.concatenate([many, later]).tolist()}) == 16
    assert str(jax.random.key_impl(key)) == "threefry2x32"


def random_targets(batch: Batch, keys_b: jax.Array) -> Batch:
    """What a task may make of its windows: here, targets between 0 and 1 by each window's key."""
    return batch._replace(y=jax.vmap(lambda key: jax.random.uniform(key, batch.y.shape[1:]))(keys_b))


def target_sums(setting: Setting, length: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The sum of each row's random targets after so many steps, ``[32]``, and the losses."""

    def predict(frozen, trainable, x, x_mask, *, dropout_keys=None):
        return jnp.broadcast_to(trainable["v"][:, None, None], (32, setting.task.spec.horizon, 1))

    def loss(pred, batch):
        return jnp.sum(pred * batch.y), jnp.float32(1)

    chunk = compiled(predict, loss, optax.sgd(-1.0), setting.task.spec, random_targets)
    state, stream, losses = (
        init_state({"v": np.zeros(32, np.float32)}, optax.sgd(-1.0)),
        IndexStream(202, 32, seed=2021),
        [],
    )
    for first in range(0, steps, length):
        index = np.full((chunk_rows(length), 32), -1, np.int32)
        index[:length] = stream.batches(first, first + length)
        state, values = chunk(
            {}, state, setting.buffer, setting.table, jnp.asarray(index), length, setting.key
        )
        losses.append(np.asarray(values)[:length])
    return np.asarray(state.trainable["v"]), np.concatenate(losses)


def test_windows_are_corrupted_anew_in_every_step_and_row(setting):
    first, second = target_sums(setting, 1, 1)[0], target_sums(setting, 1, 2)[0]
    rows = np.concatenate([first, second - first])
    assert len(np.unique(rows.round(4))) == 64
    assert abs(rows.mean() - 4) < 5 * np.sqrt(8 / 12 / 64)  # eight uniform numbers each; five standard errors
    # dropout draws from the rows' keys themselves, so those of corruption must differ
    horizon = (setting.task.spec.horizon, 1)
    with_dropout_s = jax.vmap(lambda key: jax.random.uniform(key, horizon).sum())(
        sample_keys(setting.key, jnp.int32(0), jnp.arange(32))
    )
    assert np.abs(with_dropout_s - first).min() > 1e-4


def test_corruption_does_not_depend_on_the_length_of_chunks(setting):
    (one, losses), (other, other_losses) = (target_sums(setting, length, 4) for length in (1, 4))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(losses, other_losses)
    assert losses[0] == 0  # the loss is of the parameters before the step
    assert (losses[1:] > 0).all()


@pytest.mark.slow
def test_evaluation_changes_each_window_in_one_way(setting):
    """By the window's id: in any batch and row."""

    def sums(pred, batch):
        return {"target": batch.y[:, :, 0], "id": batch.window_id}

    predict = lambda frozen, trainable, x, x_mask: x  # noqa: E731
    step = jax.jit(partial(eval_step, predict, sums, setting.task.spec, random_targets))

    def of(*rows):
        found = step({}, {}, setting.buffer, setting.table, jnp.asarray(rows, jnp.int32))
        return dict(
            zip(
                np.asarray(found["id"]).tolist(),
                map(tuple, np.asarray(found["target"]).tolist()),
                strict=True,
            )
        )

    whole = of(*range(8))
    assert len(set(whole.values())) == 8
    for rows in ((5, 1, 3, 7, -1, 0, 2, 6), (7, 100), (4,)):
        assert all(target == whole[window] for window, target in of(*rows).items() if window in whole)
    plain = jax.jit(partial(eval_step, predict, sums, setting.task.spec, None))
    batch = gather(setting.buffer, setting.table, jnp.arange(3), setting.task.spec)
    np.testing.assert_array_equal(
        plain({}, {}, setting.buffer, setting.table, jnp.arange(3))["target"], batch.y[:, :, 0]
    )


@pytest.mark.slow
def test_rectified_adam_behind_a_limit_trains_through_the_chunk(tiny):
    """Its state is donated, so none of its buffers may occur twice."""
    used = Setting(tiny, "train.optimizer=radam", "train.clip_norm=0.5")
    trainer = used.trainer()
    trainer.run_chunk(3)
    after = flatten(trainer.trainable(0))
    assert all(np.isfinite(leaf).all() for leaf in after.values())
    assert all(
        np.any(np.asarray(after[path]) != leaf) for path, leaf in flatten(used.model.trainable).items()
    )
    # three steps that are not rectified: each moves by the mean of gradients whose norm is at most 0.5, at
    # rate 0.01
    moved = sum(
        np.square(np.asarray(after[path]) - leaf).sum()
        for path, leaf in flatten(used.model.trainable).items()
    )
    assert 0 < np.sqrt(moved) <= 3 * 0.5 * 0.01 * (1 + 1e-5)


@pytest.mark.slow
def test_patience_counts_epochs_without_a_better_validation_and_the_best_is_kept(setting):
    def scripted(*objectives, epochs=10):
        left = iter(objectives)
        task = replace(setting.task, metrics=lambda sums: {"mse": next(left)})
        settings = setting.experiment.train.model_copy(update={"epochs": epochs, "patience": 3})
        return fit(
            setting.model.predict,
            task,
            frozen=setting.model.frozen,
            trainable=setting.model.trainable,
            settings=settings,
        )

    stopped = scripted(3.0, 2.0, 2.5, 2.0, 2.6, 1.0)  # an equal value is not better
    assert stopped.reason == "no better validation mse for 3 epochs"
    assert stopped.progress.step == 5 * 7
    assert (stopped.progress.best_epoch, stopped.progress.best) == (2, 2.0)
    second = scripted(3.0, 2.0, epochs=2)
    assert second.progress.best_epoch == 2
    jax.tree.map(np.testing.assert_array_equal, stopped.best, second.best)

    recovered = scripted(3.0, 3.5, 3.5, 2.0, 2.5, 2.5, 2.5)  # a better epoch restarts the count
    assert recovered.progress.step == 7 * 7
    assert recovered.progress.best_epoch == 4


def test_fit_keeps_the_best_epoch(setting, tiny):
    seen = []
    settings = setting.experiment.train.model_copy(update={"epochs": 2})
    result = fit(
        setting.model.predict,
        setting.task,
        frozen=setting.model.frozen,
        trainable=setting.model.trainable,
        settings=settings,
        keep_best=lambda best, progress: seen.append((progress.best_epoch, progress.best)),
    )
    assert result.reason == "all epochs done"
    assert result.progress.best == result.progress.best_metrics["mse"]
    assert seen[-1] == (result.progress.best_epoch, result.progress.best)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(result.best))

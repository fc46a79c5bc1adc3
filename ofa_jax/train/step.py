"""The training step, a chunk of steps, and the evaluation step, as pure functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ofa_jax.tasks.base import Outputs, Predict
from ofa_jax.windows.batch import Batch, gather
from ofa_jax.windows.table import WindowSpec, WindowTable

Params = dict[str, Any]
Loss = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
"""``loss(prediction, batch) -> (sum of losses, their number)``."""
Corrupt = Callable[[Batch, jax.Array], Batch]
"""``corrupt(batch, keys_b) -> batch``: hides points of gathered windows, with one key per sample."""

_CORRUPT_STREAM = 0x1D
"""Separates the keys of :data:`Corrupt` from those of dropout."""


class TrainState(NamedTuple):
    """What training changes: the step count, the trainable tree and the optimizer's state over it."""

    step: jax.Array
    trainable: Params
    opt_state: optax.OptState


def init_state(trainable: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; leaves are copied, since the chunk donates its state."""
    trainable = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), trainable)
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


def dropout_key(seed: int) -> jax.Array:
    """The key of a run. The generator is named, so no environment setting changes a run's numbers."""
    return jax.random.key(seed, impl="threefry2x32")


def sample_keys(key: jax.Array, step: jax.Array, row_b: jax.Array) -> jax.Array:
    """One key per row of the global batch, ``[b]``: depends on step and row, not on slice or device."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(step_key, row))(row_b)


class StepSharding(NamedTuple):
    """How a step is distributed over devices; default: one. :mod:`ofa_jax.train.devices` has the others.

    Attributes:
        local_rows: ``[b, …] -> [b', …]``: the rows that this device processes (in a program that XLA
            partitions: all rows, with a sharding constraint).
        total: Sums a tree of partial sums over the devices.
        gather_frozen: The frozen tree as a step uses it; the second argument is any value of that step.
    """

    local_rows: Callable[[jax.Array], jax.Array] = lambda rows: rows
    total: Callable[[Any], Any] = lambda sums: sums
    gather_frozen: Callable[[Params, jax.Array], Params] = lambda frozen, step: frozen


ONE_DEVICE = StepSharding()


def train_step(
    predict: Predict,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    frozen: Params,
    state: TrainState,
    rows: Any,
    key: jax.Array,
    read_batch: Callable[[Any, jax.Array], Batch] | None = None,
    *,
    slices: int = 1,
    sharding: StepSharding = ONE_DEVICE,
) -> tuple[TrainState, jax.Array]:
    """One step: gradient of the mean loss over the trainable tree, then the optimizer's update.

    The gradient is that of the *sum* of losses; slices and devices are summed, then divided by the number of
    losses once. So neither slices nor devices change more than rounding, and masked padding rows do not
    count.

    Args:
        rows: The global batch, leaves ``[b, …]``: a :class:`Batch`, or what ``read_batch`` turns into one.
        key: The run's key.
        read_batch: ``(rows, keys_b) -> batch``, applied slice by slice.
        slices: Number of equal parts of the batch that are processed one after the other; it divides b.
        sharding: Which rows are this device's, and how devices are summed.

    Returns:
        The next state, and this step's loss, a float32 scalar.
    """
    frozen = sharding.gather_frozen(frozen, state.step)

    def sums_of(numbered: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array, Params]:
        row_b, batch = jax.tree.map(sharding.local_rows, numbered)
        keys = sample_keys(key, state.step, row_b)
        if read_batch is not None:
            batch = read_batch(batch, jax.vmap(lambda one: jax.random.fold_in(one, _CORRUPT_STREAM))(keys))

        def objective(trainable: Params) -> tuple[jax.Array, jax.Array]:
            return loss(predict(frozen, trainable, batch.x, batch.x_mask, dropout_keys=keys), batch)

        (total, count), gradient = jax.value_and_grad(objective, has_aux=True)(state.trainable)
        return total, count, gradient

    numbered = (jnp.arange(jax.tree.leaves(rows)[0].shape[0]), rows)
    sums = sums_of(numbered) if slices == 1 else _over_slices(sums_of, numbered, slices, state.trainable)
    total, count, gradient = sharding.total(sums)
    count = jnp.maximum(count, 1)
    gradient = jax.tree.map(lambda leaf: leaf / count, gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    return TrainState(state.step + 1, trainable, opt_state), total / count


def _over_slices(
    sums_of: Callable[[Any], Any], rows: Any, slices: int, trainable: Params
) -> tuple[jax.Array, jax.Array, Params]:
    parts = jax.tree.map(lambda leaf: leaf.reshape(slices, -1, *leaf.shape[1:]), rows)

    def add(number: jax.Array, before: Any) -> Any:
        return jax.tree.map(jnp.add, before, sums_of(jax.tree.map(lambda leaf: leaf[number], parts)))

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trainable)
    return jax.lax.fori_loop(0, slices, add, (jnp.float32(0), jnp.float32(0), zeros))


def chunk_rows(steps: int) -> int:
    """The k of :func:`train_chunk` for chunks of ``steps`` steps: a multiple of 32, so that many share it."""
    return -(-steps // 32) * 32


def train_chunk(
    predict: Predict,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    spec: WindowSpec,
    corrupt: Corrupt | None,
    frozen: Params,
    state: TrainState,
    buffer: jax.Array,
    table: WindowTable,
    index_kb: jax.Array,
    steps: int,
    key: jax.Array,
    *,
    slices: int = 1,
    sharding: StepSharding = ONE_DEVICE,
) -> tuple[TrainState, jax.Array]:
    """Train on the first ``steps`` of k batches: the next state, and the losses ``[k]``.

    ``steps`` is traced, so full and partial chunks share one program and one compiled loop body: results do
    not depend on how steps are grouped. Another k is another program, which may round otherwise (k = 1 does),
    so take k from :func:`chunk_rows`.
    """

    def read_batch(index_b: jax.Array, keys_b: jax.Array) -> Batch:
        batch = gather(buffer, table, index_b, spec)
        return batch if corrupt is None else corrupt(batch, keys_b)

    step = partial(train_step, predict, loss, optimizer, frozen, slices=slices, sharding=sharding)

    def body(number: jax.Array, carry: tuple[TrainState, jax.Array]) -> tuple[TrainState, jax.Array]:
        state, value = step(carry[0], index_kb[number], key, read_batch)
        return state, carry[1].at[number].set(value)

    return jax.lax.fori_loop(0, steps, body, (state, jnp.zeros(index_kb.shape[0], jnp.float32)))


def eval_step(
    predict: Predict,
    outputs: Outputs,
    spec: WindowSpec,
    corrupt: Corrupt | None,
    frozen: Params,
    trainable: Params,
    buffer: jax.Array,
    table: WindowTable,
    index_b: jax.Array,
    *,
    sharding: StepSharding = ONE_DEVICE,
) -> dict[str, jax.Array]:
    """Outputs of a batch of windows, ``{name: [b, …]}``, without dropout.

    ``corrupt`` gets a key per window id, so that a window looks the same in every evaluation.
    """
    batch = gather(buffer, table, sharding.local_rows(index_b), spec)
    if corrupt is not None:
        batch = corrupt(batch, jax.vmap(partial(jax.random.fold_in, dropout_key(0)))(batch.window_id))
    frozen = sharding.gather_frozen(frozen, index_b)
    return outputs(predict(frozen, trainable, batch.x, batch.x_mask), batch)

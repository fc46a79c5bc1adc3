"""The training step and the evaluation step as pure functions, and the program that runs a chunk of steps in one dispatch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ofa_jax.windows.batch import Batch, gather
from ofa_jax.windows.table import WindowSpec, WindowTable

Params = dict[str, Any]
Predict = Callable[..., jax.Array]
"""``predict(frozen, trainable, x_btc, x_mask, dropout_keys=None) -> prediction``."""
Loss = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
Tell = Callable[[Params, Params, Params], jax.Array]
"""``tell(gradient, updates, trainable) -> numbers``: what a step tells of itself, ``trainable`` being the tree after it."""
Inputs = Callable[[Batch, jax.Array], Batch]
"""``inputs(batch, keys_b) -> batch``: what a task makes of the gathered windows, with one key per sample."""

_INPUTS_PLACE = 0x1D
"""Sets the keys of :data:`Inputs` apart from those of dropout."""


class TrainState(NamedTuple):
    """What training changes: the number of steps taken, the trainable tree, the optimiser's state over that tree alone."""

    step: jax.Array
    trainable: Params
    opt_state: optax.OptState


def init_state(trainable: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, with copies of the leaves: the chunk donates its state."""
    trainable = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), trainable)
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


def dropout_key(seed: int) -> jax.Array:
    """The key of a run. The generator is named, so that no environment setting changes a run's numbers."""
    return jax.random.key(seed, impl="threefry2x32")


def sample_keys(key: jax.Array, step: jax.Array, row_b: jax.Array) -> jax.Array:
    """One key per row of the global batch, ``[b]``: a function of step and row number alone, not of slicing or device."""
    at_step = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(at_step, row))(row_b)


class Spread(NamedTuple):
    """How a step is spread over devices; as it stands, over one. :mod:`ofa_jax.train.devices` makes the others.

    Attributes:
        rows: ``[b, …] -> [b', …]``: of all rows, those that this device works on (for a program that one compiler spreads over
            all devices: all rows, and where each of them lies).
        total: Adds up a tree of sums over the devices.
        frozen: The frozen tree as a step uses it; the second argument is something of this step, for which it may wait.
    """

    rows: Callable[[jax.Array], jax.Array] = lambda rows: rows
    total: Callable[[Any], Any] = lambda sums: sums
    frozen: Callable[[Params, jax.Array], Params] = lambda frozen, step: frozen


ONE_DEVICE = Spread()


def train_step(
    predict: Predict,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    frozen: Params,
    state: TrainState,
    batch: Any,
    key: jax.Array,
    inputs: Callable[[Any, jax.Array], Batch] | None = None,
    *,
    slices: int = 1,
    spread: Spread = ONE_DEVICE,
    tell: Tell | None = None,
) -> tuple[TrainState, Any]:
    """One step: gradient of the mean loss over the trainable tree alone, then the optimiser's update.

    The gradient is that of the *sum* of losses, slice by slice and device by device; all of it is added up and divided by the
    number of losses once. So neither slices nor devices change more than rounding, and rows of padding count for nothing.

    Args:
        predict: The network.
        loss: Its sum of losses and their number.
        optimizer: What makes updates of gradients.
        frozen: Parameters that never change.
        state: Where the step starts.
        batch: The global batch, leaves ``[b, …]``: a :class:`Batch`, or what ``inputs`` makes one of, slice by slice.
        key: The run's key.
        inputs: Changes rows of the batch first, with a key for each; a task hides points so.
        slices: Number of equal parts, which divides b, that are worked on one after the other; memory is that of one part.
        spread: Which rows are this device's, and how devices add up.
        tell: What else the step tells of itself.

    Returns:
        The next state and this step's loss, a float32 scalar; with ``tell`` the loss and what was told, as a pair.
    """
    frozen = spread.frozen(frozen, state.step)

    def sums_of(rows: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array, Params]:
        row_b, part = jax.tree.map(spread.rows, rows)
        keys = sample_keys(key, state.step, row_b)
        if inputs is not None:
            part = inputs(part, jax.vmap(lambda one: jax.random.fold_in(one, _INPUTS_PLACE))(keys))

        def objective(trainable: Params) -> tuple[jax.Array, jax.Array]:
            prediction = predict(frozen, trainable, part.x, part.x_mask, dropout_keys=keys)
            return loss(prediction, part)

        (total, count), gradient = jax.value_and_grad(objective, has_aux=True)(state.trainable)
        return total, count, gradient

    numbered = (jnp.arange(jax.tree.leaves(batch)[0].shape[0]), batch)
    total, count, gradient = spread.total(
        sums_of(numbered) if slices == 1 else _sum_of_slices(sums_of, numbered, slices, state.trainable)
    )
    count = jnp.maximum(count, 1)
    gradient = jax.tree.map(lambda leaf: leaf / count, gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
    after = TrainState(state.step + 1, optax.apply_updates(state.trainable, updates), opt_state)
    value = total / count
    return after, value if tell is None else (value, tell(gradient, updates, after.trainable))


def _sum_of_slices(
    sums_of: Callable[[Any], Any], rows: Any, slices: int, trainable: Params
) -> tuple[jax.Array, jax.Array, Params]:
    """``sums_of`` every slice of the rows, one after the other, added up in float32."""
    parts = jax.tree.map(lambda leaf: leaf.reshape(slices, -1, *leaf.shape[1:]), rows)

    def add(number: jax.Array, before: Any) -> Any:
        return jax.tree.map(jnp.add, before, sums_of(jax.tree.map(lambda leaf: leaf[number], parts)))

    nothing = (
        jnp.float32(0),
        jnp.float32(0),
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trainable),
    )
    return jax.lax.fori_loop(0, slices, add, nothing)


def chunk_rows(steps: int) -> int:
    """The k of :func:`make_chunk` for chunks of ``steps`` steps: the next multiple of 32, so that shorter chunks share one program."""
    return -(-steps // 32) * 32


jit_donating_state = partial(jax.jit, donate_argnums=1)
"""Makes a program of a chunk."""


def make_chunk(
    predict: Predict,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    spec: WindowSpec,
    inputs: Inputs | None = None,
    *,
    slices: int = 1,
    spread: Spread = ONE_DEVICE,
    compiled: Callable[..., Any] = jit_donating_state,
    tell: Tell | None = None,
) -> Callable[..., Any]:
    """The compiled program ``chunk(frozen, state, buffer, table, index_kb, steps, key) -> (state, losses_k)``.

    ``steps`` (at most k) of the k batches are run. It is a traced number, so full and partial chunks share one program and one
    compiled loop body: results do not depend on how the steps are grouped. For another k the program is compiled anew and may
    round otherwise (k = 1 does), so let k come from :func:`chunk_rows`. ``state`` is donated, ``frozen`` never is.

    ``slices`` and ``spread`` are those of :func:`train_step`; ``compiled`` is what makes a program of the pure function. With ``tell``
    the second result is the pair ``(losses_k, told_k)``, ``[k, …]``.
    """

    def chunk(
        frozen: Params,
        state: TrainState,
        buffer: jax.Array,
        table: WindowTable,
        index_kb: jax.Array,
        steps: int,
        key: jax.Array,
    ) -> tuple[TrainState, Any]:
        def windows(index_b: jax.Array, keys_b: jax.Array) -> Batch:
            batch = gather(buffer, table, index_b, spec)
            return batch if inputs is None else inputs(batch, keys_b)

        def body(position: jax.Array, carry: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
            state, values = carry
            state, value = train_step(
                predict,
                loss,
                optimizer,
                frozen,
                state,
                index_kb[position],
                key,
                windows,
                slices=slices,
                spread=spread,
                tell=tell,
            )
            return state, jax.tree.map(lambda column, new: column.at[position].set(new), values, value)

        values: Any = jnp.zeros(index_kb.shape[0], jnp.float32)
        if tell is not None:
            told = jax.eval_shape(tell, state.trainable, state.trainable, state.trainable)
            values = (values, jnp.zeros((index_kb.shape[0], *told.shape), told.dtype))
        return jax.lax.fori_loop(0, steps, body, (state, values))

    return compiled(chunk)


def make_eval_step(
    predict: Predict,
    sums: Callable[..., dict[str, jax.Array]],
    spec: WindowSpec,
    inputs: Inputs | None = None,
    *,
    spread: Spread = ONE_DEVICE,
    compiled: Callable[..., Any] = jax.jit,
) -> Callable[..., dict[str, jax.Array]]:
    """The compiled ``evaluate(frozen, trainable, buffer, table, index_b) -> {name: [b, …]}``, dropout off.

    ``inputs`` has a key per window id, so that a window looks the same in every evaluation.
    """
    key = dropout_key(0)

    def evaluate(
        frozen: Params, trainable: Params, buffer: jax.Array, table: WindowTable, index_b: jax.Array
    ) -> dict[str, jax.Array]:
        batch = gather(buffer, table, spread.rows(index_b), spec)
        if inputs is not None:
            batch = inputs(batch, jax.vmap(lambda window: jax.random.fold_in(key, window))(batch.window_id))
        return sums(predict(spread.frozen(frozen, index_b), trainable, batch.x, batch.x_mask), batch)

    return compiled(evaluate)

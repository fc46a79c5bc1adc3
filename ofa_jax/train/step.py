"""The training step and the evaluation step as pure functions, and the program that runs a chunk of steps in one dispatch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ofa_jax.data.windows import Batch, WindowSpec, WindowTable, gather

Params = dict[str, Any]
Predict = Callable[..., jax.Array]
"""``predict(frozen, trainable, x_btc, x_mask, dropout_keys=None) -> prediction``."""
Loss = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
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


def sample_keys(key: jax.Array, step: jax.Array, rows: int) -> jax.Array:
    """One key per row of the global batch, ``[rows]``: a function of step and row alone, not of slicing or device."""
    at_step = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(at_step, row))(jnp.arange(rows))


def train_step(
    predict: Predict,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    frozen: Params,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    inputs: Inputs | None = None,
) -> tuple[TrainState, jax.Array]:
    """One step: gradient of the mean loss over the trainable tree alone, then the optimiser's update.

    ``inputs``, where a task has it, changes the batch first: it hides points, say.

    Returns:
        The next state and this step's loss, a float32 scalar.
    """
    keys = sample_keys(key, state.step, batch.weight.shape[0])
    if inputs is not None:
        batch = inputs(batch, jax.vmap(lambda one: jax.random.fold_in(one, _INPUTS_PLACE))(keys))

    def objective(trainable: Params) -> jax.Array:
        prediction = predict(frozen, trainable, batch.x, batch.x_mask, dropout_keys=keys)
        total, count = loss(prediction, batch)
        return total / jnp.maximum(count, 1)

    value, gradients = jax.value_and_grad(objective)(state.trainable)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    return TrainState(state.step + 1, optax.apply_updates(state.trainable, updates), opt_state), value


def chunk_rows(steps: int) -> int:
    """The k of :func:`make_chunk` for chunks of ``steps`` steps: the next multiple of 32, so that shorter chunks share one program."""
    return -(-steps // 32) * 32


def make_chunk(
    predict: Predict, loss: Loss, optimizer: optax.GradientTransformation, spec: WindowSpec, inputs: Inputs | None = None
) -> Callable[..., Any]:
    """The compiled program ``chunk(frozen, state, buffer, table, index_kb, steps, key) -> (state, losses_k)``.

    ``steps`` (at most k) of the k batches are run. It is a traced number, so full and partial chunks share one program and one
    compiled loop body: results do not depend on how the steps are grouped. For another k the program is compiled anew and may
    round otherwise (k = 1 does), so let k come from :func:`chunk_rows`. ``state`` is donated, ``frozen`` never is.
    """

    @partial(jax.jit, donate_argnames="state")
    def chunk(
        frozen: Params, state: TrainState, buffer: jax.Array, table: WindowTable, index_kb: jax.Array, steps: int, key: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        def body(position: jax.Array, carry: tuple[TrainState, jax.Array]) -> tuple[TrainState, jax.Array]:
            state, losses = carry
            batch = gather(buffer, table, index_kb[position], spec)
            state, value = train_step(predict, loss, optimizer, frozen, state, batch, key, inputs)
            return state, losses.at[position].set(value)

        losses = jnp.zeros(index_kb.shape[0], jnp.float32)
        return jax.lax.fori_loop(0, steps, body, (state, losses))

    return chunk


def make_eval_step(
    predict: Predict, sums: Callable[..., dict[str, jax.Array]], spec: WindowSpec, inputs: Inputs | None = None
) -> Callable[..., dict[str, jax.Array]]:
    """The compiled ``evaluate(frozen, trainable, buffer, table, index_b) -> {name: [b, …]}``, dropout off.

    ``inputs`` has a key per window id, so that a window looks the same in every evaluation.
    """
    key = dropout_key(0)

    @jax.jit
    def evaluate(frozen: Params, trainable: Params, buffer: jax.Array, table: WindowTable, index_b: jax.Array) -> dict[str, jax.Array]:
        batch = gather(buffer, table, index_b, spec)
        if inputs is not None:
            batch = inputs(batch, jax.vmap(lambda window: jax.random.fold_in(key, window))(batch.window_id))
        return sums(predict(frozen, trainable, batch.x, batch.x_mask), batch)

    return evaluate

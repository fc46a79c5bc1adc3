"""Several adapters in one compiled step: ranks padded to one width, and the step of a run mapped over a leading axis of adapters.

**Padding.** Adapters of ranks r ≤ w are brought to one width w: ``a: [in, r]`` gets w − r columns of zeros, ``b: [r, out]`` as many rows
of zeros. They change no number and never move, whatever else is trained, dropped out or clipped. Of a dense layer with input ``x``
(after dropout), output gradient ``g`` and scale ``s``, for a padded place j:

- forward, ``s (x a) b`` gets from it ``s (x a_j) b_j``, where ``a_j`` and ``b_j`` are zeros: nothing is added;
- backward, ``∂a_j = s xᵀ (g b_jᵀ)`` has the factor ``b_j`` and ``∂b_j = s (x a_j)ᵀ g`` the factor ``x a_j``: sums of products with a zero,
  so zeros to the bit while x and g are finite. An embedding has a row of ``a`` in the place of ``x a``, and the same follows;
- a zero gradient leaves the norm of the whole gradient as it is, and clipping multiplies it by a number;
- Adam's and RAdam's means of gradients that were always zero are zero, and so is their update, whatever the denominator.

So by induction over the steps the zeros stay. Only the order in which a product over w places is summed may differ from that over
r places: rounding.

**Buckets.** Padding costs work, so ranks share a width within a bucket (:func:`bucket`) and every bucket has a program of its own.

The axis letter is ``v``: adapters that are trained side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ofa_jax.adapters.rslora import Adapters, LoraConfig
from ofa_jax.build import predict_function
from ofa_jax.config import TrainConfig
from ofa_jax.model.networks import Network
from ofa_jax.tasks.base import Task
from ofa_jax.train.optim import learning_rate, make_optimizer
from ofa_jax.train.step import Params, TrainState, init_state, make_chunk, make_eval_step
from ofa_jax.windows.table import WindowTable

SMALLEST_BUCKET, BUCKET_FACTOR = 16, 8
"""Ranks up to 16 share a program, those up to 128, those up to 1024, and so on."""


class Numbers(NamedTuple):
    """What adapters of one program may differ in besides their values, each ``[v]`` float32."""

    scale: jax.Array
    learning_rate: jax.Array


def bucket(rank: int) -> int:
    """The largest rank that shares a program with this one: 16, 128, 1024, …"""
    limit = SMALLEST_BUCKET
    while limit < rank:
        limit *= BUCKET_FACTOR
    return limit


def padded(adapters: Adapters, width: int) -> Adapters:
    """Adapters with zero columns of ``a`` and zero rows of ``b`` up to a width."""

    def pad(factors: dict[str, Any]) -> dict[str, Any]:
        extra = width - factors["a"].shape[1]
        return {
            "a": np.pad(factors["a"], ((0, 0), (0, extra))),
            "b": np.pad(factors["b"], ((0, extra), (0, 0))),
        }

    return {path: pad(factors) for path, factors in adapters.items()}


def cut(adapters: Adapters, rank: int) -> Adapters:
    """The first ``rank`` columns of ``a`` and rows of ``b``: what :func:`padded` padded."""
    return {
        path: {"a": factors["a"][:, :rank], "b": factors["b"][:rank]} for path, factors in adapters.items()
    }


def stacked(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one tree with leaves ``[v, …]``, on the host."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


class Programs(NamedTuple):
    """The two compiled programs of a bucket; both take and give leaves ``[v, …]``.

    Attributes:
        chunk: ``(frozen, states, buffer, table, index_vkb, steps, keys_v, numbers, active_v) -> (states, losses_vk)``; the states are
            donated, those of adapters that are not active come back as they were.
        evaluate: ``(frozen, trainables, scale_v, buffer, table, index_b) -> {name: [v, b, …]}``.
    """

    chunk: Callable[..., Any]
    evaluate: Callable[..., Any]


def make_programs(
    network: Network,
    lora: LoraConfig,
    task: Task,
    settings: TrainConfig,
    steps_per_epoch: int,
    *,
    slices: int,
    lanes: int,
) -> Programs:
    """The chunk and the evaluation of a run (:mod:`ofa_jax.train.step`), mapped over adapters; the frozen tree is there once.

    Args:
        network: Their common network.
        lora: Dropout of the adapters; rank and scale are each adapter's own.
        task: Windows, loss and sums.
        settings: How they are trained; the learning rate is each adapter's own.
        steps_per_epoch: For the schedule.
        slices: Parts of a batch that are worked on one after the other.
        lanes: How many adapters are trained side by side, v. One alone is active as long as it is asked for steps.
    """

    def chunk(
        frozen: Params,
        state: TrainState,
        buffer: jax.Array,
        table: WindowTable,
        index_kb: jax.Array,
        steps: int,
        key: jax.Array,
        numbers: Numbers,
        active: jax.Array,
    ) -> tuple[TrainState, jax.Array]:
        run = make_chunk(
            predict_function(network, lora, scale=numbers.scale),
            task.loss,
            optimizer(settings, numbers.learning_rate, steps_per_epoch),
            task.spec,
            task.inputs,
            slices=slices,
            compiled=lambda pure: pure,
        )
        then, losses_k = run(frozen, state, buffer, table, index_kb, steps, key)
        if lanes > 1:
            then = jax.tree.map(lambda after, before: jnp.where(active, after, before), then, state)
        return then, losses_k

    def evaluate(
        frozen: Params,
        trainable: Params,
        scale: jax.Array,
        buffer: jax.Array,
        table: WindowTable,
        index_b: jax.Array,
    ) -> dict[str, jax.Array]:
        run = make_eval_step(
            predict_function(network, lora, scale=scale),
            task.sums,
            task.spec,
            task.inputs,
            compiled=lambda pure: pure,
        )
        return run(frozen, trainable, buffer, table, index_b)

    return Programs(
        chunk=jax.jit(_over_lanes(chunk, (None, 0, None, None, 0, None, 0, 0, 0), lanes), donate_argnums=1),
        evaluate=jax.jit(_over_lanes(evaluate, (None, 0, 0, None, None, None), lanes)),
    )


def _over_lanes(function: Callable[..., Any], axes: tuple[int | None, ...], lanes: int) -> Callable[..., Any]:
    """``jax.vmap``, but one lane is worked on as it stands: XLA has slower products for CPUs where an axis of length one is left."""
    if lanes > 1:
        return jax.vmap(function, in_axes=axes)

    def alone(*arguments: Any) -> Any:
        own = (
            jax.tree.map(lambda leaf: leaf[0], given) if axis == 0 else given
            for given, axis in zip(arguments, axes, strict=True)
        )
        return jax.tree.map(lambda leaf: leaf[None], function(*own))

    return alone


def optimizer(
    settings: TrainConfig, rate: float | jax.Array, steps_per_epoch: int
) -> optax.GradientTransformation:
    """The run's optimiser with another learning rate, which may be traced."""
    own = settings.model_copy(
        update={"learning_rate": rate}
    )  # not validated again, so a traced number passes
    return make_optimizer(own, learning_rate(own, steps_per_epoch))


def first_states(trainables: Sequence[Params], settings: TrainConfig, steps_per_epoch: int) -> TrainState:
    """The states before the first step, leaves ``[v, …]`` on the host."""
    plain = optimizer(settings, settings.learning_rate, steps_per_epoch)
    return stacked([init_state(trainable, plain) for trainable in trainables])

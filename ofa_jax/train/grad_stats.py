"""Sizes of gradients and updates during training: summed by an optax transform, logged every so many steps.

A line of metrics.jsonl covers the N = ``train.gradient_log`` steps since the previous one::

    {"event": "gradient", "step": 100, "epoch": 2, "clip_rate": 0.25,
     "modules": {"gpt2/wpe/a": {"gradient_norm": …, "update_ratio": …}, …}}

- ``gradient_norm``: root mean square over those steps of the norm of the leaf's gradient, before clipping;
- ``update_ratio``: root mean square of the norm of the leaf's update over its norm after the update;
- ``clip_rate``: share of those steps in which the global norm reached ``train.clip_norm``; null without it.

Norms are Frobenius norms. A leaf is an adapter factor (``a`` or ``b``) or a trained parameter, named by its
path. A number that is not finite is null. A checkpoint keeps the sums apart from its arrays, so the log may
be switched on or off, or N changed, when a run is resumed: the next line covers the steps since the last one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ofa_jax.model import trees
from ofa_jax.train.step import Params

LARGEST = float(np.finfo(np.float32).max)
"""Replaces a sum that is not finite, since checkpoints and logs contain finite numbers only."""


class GradStatsState(NamedTuple):
    """The state of :func:`with_grad_stats`: the inner optimizer's, and ``sums`` ``[2 + 2 leaves]`` float32.

    The sums are: steps, clipped steps, squared gradient norms by leaf, squared update ratios by leaf.
    """

    inner: optax.OptState
    sums: Any


def with_grad_stats(
    optimizer: optax.GradientTransformation, clip_norm: float | None
) -> optax.GradientTransformation:
    """The same optimizer, whose state also sums the statistics of its gradients and updates."""

    def init(params: Params) -> GradStatsState:
        return GradStatsState(optimizer.init(params), jnp.zeros(2 + 2 * len(trees.flatten(params))))

    def update(
        gradient: Params, state: GradStatsState, params: Params | None = None
    ) -> tuple[Params, GradStatsState]:
        updates, inner = optimizer.update(gradient, state.inner, params)
        # behind a barrier, so that XLA compiles the step itself as it does without statistics
        seen: tuple[Any, ...] = jax.lax.optimization_barrier((gradient, updates, params))
        return updates, GradStatsState(inner, state.sums + _of_step(*seen, clip_norm=clip_norm))

    return optax.GradientTransformation(init, update)


def _of_step(gradient: Params, updates: Params, params: Params, *, clip_norm: float | None) -> jax.Array:
    after = optax.apply_updates(params, updates)
    squares, changes, sizes = (_squared_norms(tree) for tree in (gradient, updates, after))
    clipped = 0 if clip_norm is None else optax.tree.norm(gradient) >= clip_norm
    ratios = jnp.where(sizes > 0, changes / jnp.where(sizes > 0, sizes, 1), 0)
    return jnp.concatenate([jnp.array([1, clipped], jnp.float32), squares, ratios])


def _squared_norms(tree: Params) -> jax.Array:
    return jnp.stack([jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in trees.flatten(tree).values()])


def as_json(sums: np.ndarray) -> list[float]:
    """Sums as a checkpoint's JSON stores them."""
    return [float(number) for number in np.nan_to_num(sums, nan=LARGEST, posinf=LARGEST)]


def log_fields(sums: Sequence[float], trainable: Params, clip_norm: float | None) -> dict[str, Any]:
    """The fields ``clip_rate`` and ``modules`` of a line, from :func:`as_json`'s sums."""
    steps, clipped, *squares = sums
    names = [path.removeprefix("adapters/").removeprefix("base/") for path in trees.flatten(trainable)]

    def root(total: float) -> float | None:
        return math.sqrt(total / steps) if total < LARGEST else None

    modules = {
        name: {"gradient_norm": root(square), "update_ratio": root(ratio)}
        for name, square, ratio in zip(names, squares[: len(names)], squares[len(names) :], strict=True)
    }
    return {"clip_rate": None if clip_norm is None else clipped / steps, "modules": modules}


def sums_of(opt_state: Any) -> Any:
    """Statistics since the last line, ``[v, …]`` float32, on the host; None where none are logged."""
    return np.array(opt_state.sums) if isinstance(opt_state, GradStatsState) else None

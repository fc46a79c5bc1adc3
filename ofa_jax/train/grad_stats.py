"""How large gradients and updates are while a run trains: told by every step, put together on the host, a line every so many steps.

A line of metrics.jsonl is about the N steps since the last one, N being ``train.gradient_log``::

    {"event": "gradient", "step": 100, "epoch": 2, "clip_rate": 0.25, "modules": {"gpt2/wpe/a": {"gradient_norm": …, "update_ratio": …}, …}}

- ``gradient_norm``: root mean square over those steps of the length of the leaf's gradient (of the mean loss, before it is clipped);
- ``update_ratio``: root mean square over those steps of the length of the leaf's change over its length after it;
- ``clip_rate``: the share of those steps whose whole gradient was at least ``train.clip_norm`` long; null without a limit.

Lengths are Frobenius norms. A leaf is an adapter's factor, by its layer's path and ``a`` or ``b``, or a trained parameter by its own path.
A number that is not finite is null. Steps are added up one by one in float64 and a checkpoint keeps the sums, so neither the chunk length
nor an interruption changes a line; where a run is resumed with another N, its next line is about the steps since the last one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ofa_jax.model import trees
from ofa_jax.train.step import Params


def leaf_names(trainable: Params) -> list[str]:
    """What lines call the leaves, in the order in which steps tell of them."""
    return [path.removeprefix("adapters/").removeprefix("base/") for path in trees.flatten(trainable)]


def make_teller(clip_norm: float | None) -> Callable[[Params, Params, Params], jax.Array]:
    """``tell(gradient, updates, trainable)``: of one step, ``[1 + 2 leaves]`` float32.

    First whether the gradient was clipped, then the squared length of each leaf's gradient, then its squared update ratio;
    ``trainable`` is the tree after the update.
    """

    def tell(gradient: Params, updates: Params, trainable: Params) -> jax.Array:
        # behind a barrier, so that the step itself is computed as it is without being watched
        gradient, updates, trainable = jax.lax.optimization_barrier((gradient, updates, trainable))
        lengths, changes, sizes = (_squared_lengths(tree) for tree in (gradient, updates, trainable))
        clipped = (
            jnp.float32(0)
            if clip_norm is None
            else (optax.tree.norm(gradient) >= clip_norm).astype(jnp.float32)
        )
        return jnp.concatenate(
            [clipped[None], lengths, jnp.where(sizes > 0, changes / jnp.where(sizes > 0, sizes, 1), 0)]
        )

    return tell


def _squared_lengths(tree: Params) -> jax.Array:
    return jnp.stack([jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in trees.flatten(tree).values()])


def add(sums: Sequence[float], told: np.ndarray) -> list[float]:
    """The sums with one more step: how many steps, and what they told, ``[2 + 2 leaves]``; an empty list is none yet."""
    row = [1.0, *np.asarray(told, np.float64).tolist()]
    added = [one + other for one, other in zip(sums, row, strict=True)] if sums else row
    return [
        number if math.isfinite(number) else sys.float_info.max for number in added
    ]  # a checkpoint holds finite numbers alone


def line(sums: Sequence[float], names: Sequence[str], clip_norm: float | None) -> Mapping[str, Any]:
    """The fields ``clip_rate`` and ``modules`` of a line."""
    steps, clipped, *squares = sums

    def root(total: float) -> float | None:
        return math.sqrt(total / steps) if total < sys.float_info.max else None

    lengths, ratios = squares[: len(names)], squares[len(names) :]
    modules = {
        name: {"gradient_norm": root(length), "update_ratio": root(ratio)}
        for name, length, ratio in zip(names, lengths, ratios, strict=True)
    }
    return {"clip_rate": None if clip_norm is None else clipped / steps, "modules": modules}

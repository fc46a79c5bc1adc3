"""Baselines without parameters: seasonal naive, linear interpolation, the window's mean, zeros."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.tasks.base import Predict


def last_cycle(length: int, season: int, horizon: int) -> np.ndarray:
    """Steps ``[h]`` of a series of ``length`` that seasonal naive repeats; the last one where no cycle fits."""
    cycle = season if season <= length else 1
    return length - cycle + np.arange(horizon) % cycle


def seasonal_naive(season: int, horizon: int) -> Predict:
    """Predict ``[b, h, c]``: the last cycle of the input, repeated."""

    def predict(
        frozen: Any, trainable: Any, x_btc: Any, x_mask: Any = None, *, dropout_keys: Any = None
    ) -> jax.Array:
        return x_btc[:, last_cycle(x_btc.shape[1], season, horizon)]

    return predict


def interpolate(channels: int) -> Predict:
    """Linear interpolation of hidden points; at the ends the nearest value, 0 where nothing is observed."""

    def predict(
        frozen: Any, trainable: Any, x_btc: Any, x_mask: Any, *, dropout_keys: Any = None
    ) -> jax.Array:
        values, known = x_btc[..., :channels], x_mask[..., :channels]
        step = jnp.arange(values.shape[1], dtype=jnp.float32)

        def one(value_t: jax.Array, known_t: jax.Array) -> jax.Array:
            order = jnp.argsort(jnp.where(known_t, step, jnp.inf))  # observed points first, in order of time
            count = known_t.sum()
            order = order[
                jnp.minimum(jnp.arange(len(step)), jnp.maximum(count - 1, 0))
            ]  # then the last one again
            filled = jnp.interp(step, step[order], value_t[order])
            return jnp.where(known_t, value_t, jnp.where(count > 0, filled, 0))

        over_channels = jax.vmap(one, in_axes=1, out_axes=1)
        return jax.vmap(over_channels)(values, known)

    return predict


def window_mean(channels: int) -> Predict:
    """Every point as the mean of its channel's observed points in the window."""

    def predict(
        frozen: Any, trainable: Any, x_btc: Any, x_mask: Any, *, dropout_keys: Any = None
    ) -> jax.Array:
        values, known = x_btc[..., :channels], x_mask[..., :channels]
        count = jnp.maximum(known.sum(axis=1, keepdims=True), 1)
        mean = jnp.where(known, values, 0).sum(axis=1, keepdims=True) / count
        return jnp.broadcast_to(mean, values.shape)

    return predict


def zeros(
    frozen: Any, trainable: Any, x_btc: Any, x_mask: Any = None, *, dropout_keys: Any = None
) -> jax.Array:
    """Zeros, so that an anomaly score is the distance from the training mean."""
    return jnp.zeros_like(x_btc)

"""Baselines without parameters: seasonal naive, linear interpolation, the window's mean, zeros.

All are ``predict(frozen, trainable, x_btc, x_mask, dropout_keys=None)`` once their own arguments are given.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def last_cycle(length: int, season: int, horizon: int) -> np.ndarray:
    """Steps ``[h]`` of a series of ``length`` that seasonal naive repeats: its last cycle or step."""
    cycle = season if season <= length else 1
    return length - cycle + np.arange(horizon) % cycle


def seasonal_naive(frozen, trainable, x_btc, x_mask=None, *, season, horizon, dropout_keys=None):
    """Predict ``[b, h, c]``: the last cycle of the input, repeated."""
    return x_btc[:, last_cycle(x_btc.shape[1], season, horizon)]


def interpolate(frozen, trainable, x_btc, x_mask, *, channels, dropout_keys=None):
    """Linear interpolation of hidden points; at the ends the nearest value, 0 where nothing is observed."""
    values, known = x_btc[..., :channels], x_mask[..., :channels]
    step = jnp.arange(values.shape[1], dtype=jnp.float32)

    def one(value_t: jax.Array, known_t: jax.Array) -> jax.Array:
        count = known_t.sum()
        order = jnp.argsort(jnp.where(known_t, step, jnp.inf))  # observed points first, in order of time
        order = order[jnp.minimum(jnp.arange(len(step)), jnp.maximum(count - 1, 0))]  # then the last one
        filled = jnp.interp(step, step[order], value_t[order])
        return jnp.where(known_t, value_t, jnp.where(count > 0, filled, 0))

    return jax.vmap(jax.vmap(one, in_axes=1, out_axes=1))(values, known)


def window_mean(frozen, trainable, x_btc, x_mask, *, channels, dropout_keys=None):
    """Every point as the mean of its channel's observed points in the window."""
    values, known = x_btc[..., :channels], x_mask[..., :channels]
    count = jnp.maximum(known.sum(axis=1, keepdims=True), 1)
    mean = jnp.where(known, values, 0).sum(axis=1, keepdims=True) / count
    return jnp.broadcast_to(mean, values.shape)


def zeros(frozen, trainable, x_btc, x_mask=None, *, dropout_keys=None):
    """Zeros, so that an anomaly score is the distance from the training mean."""
    return jnp.zeros_like(x_btc)

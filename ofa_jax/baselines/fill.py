"""Controls without parameters for reconstruction: interpolate, take the mean, or give nothing back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Predict = Callable[..., jax.Array]


def interpolate(channels: int) -> Predict:
    """Hidden points from the nearest observed ones on both sides by a straight line; beyond the ends the nearest one's value."""

    def predict(
        frozen: Any, trainable: Any, x_btc: jax.Array, x_mask: jax.Array, *, dropout_keys: Any = None
    ) -> jax.Array:
        values, known = x_btc[..., :channels], x_mask[..., :channels]
        length = values.shape[1]
        step = jnp.arange(length)[None, :, None]
        before = jax.lax.cummax(jnp.where(known, step, -1), axis=1)
        after = jax.lax.cummin(jnp.where(known, step, length), axis=1, reverse=True)
        left = jnp.take_along_axis(values, jnp.maximum(before, 0), axis=1)
        right = jnp.take_along_axis(values, jnp.minimum(after, length - 1), axis=1)
        share = jnp.where(after > before, (step - before) / jnp.maximum(after - before, 1), 0)
        inside = left + share * (right - left)
        only_left, only_right = (after == length) & (before >= 0), (before < 0) & (after < length)
        nothing = (before < 0) & (after == length)
        return jnp.where(nothing, 0, jnp.where(only_left, left, jnp.where(only_right, right, inside)))

    return predict


def window_mean(channels: int) -> Predict:
    """Every point as the mean of its channel's observed points in the window."""

    def predict(
        frozen: Any, trainable: Any, x_btc: jax.Array, x_mask: jax.Array, *, dropout_keys: Any = None
    ) -> jax.Array:
        values, known = x_btc[..., :channels], x_mask[..., :channels]
        mean = jnp.where(known, values, 0).sum(axis=1, keepdims=True) / jnp.maximum(
            known.sum(axis=1, keepdims=True), 1
        )
        return jnp.broadcast_to(mean, values.shape)

    return predict


def zeros(
    frozen: Any, trainable: Any, x_btc: jax.Array, x_mask: Any = None, *, dropout_keys: Any = None
) -> jax.Array:
    """Nothing: a step's score is then its distance from the training mean."""
    return jnp.zeros_like(x_btc)

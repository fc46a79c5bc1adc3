"""DLinear (Zeng et al., arXiv 2205.13504): trend and remainder of a window, a linear map over time for each, summed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.baselines.nlinear import start_filled

KERNEL = 25
"""Steps of the moving average that is called the trend, as published."""


def init_dlinear(input_length: int, output_length: int) -> dict[str, Any]:
    """``{"trend": {kernel, bias}, "rest": {kernel, bias}}``, kernels ``[t, h]`` that start as the mean, as the published code offers."""

    def one() -> dict[str, Any]:
        return {
            "kernel": np.full((input_length, output_length), 1 / input_length, np.float32),
            "bias": np.zeros(output_length, np.float32),
        }

    return {"trend": one(), "rest": one()}


def dlinear(
    frozen: Any, trainable: dict[str, Any], x_btc: jax.Array, x_mask: Any = None, *, dropout_keys: Any = None
) -> jax.Array:
    """``[b, h, c]``; the same maps serve every channel. ``frozen`` is not used."""
    x_btc = start_filled(x_btc, x_mask)
    trend = moving_average(x_btc)
    parts = zip((trend, x_btc - trend), (trainable["trend"], trainable["rest"]), strict=True)
    return sum(
        jnp.einsum("btc,th->bhc", part, weights["kernel"]) + weights["bias"][None, :, None]
        for part, weights in parts
    )


def moving_average(x_btc: jax.Array, width: int = KERNEL) -> jax.Array:
    """Centred mean of ``width`` steps, the ends repeated; ``[b, t, c]``."""
    length, half = x_btc.shape[1], (width - 1) // 2
    index = np.clip(np.arange(length)[:, None] + np.arange(-half, width - half), 0, length - 1)
    weights = np.zeros((length, length), np.float32)
    np.add.at(weights, (np.repeat(np.arange(length), width), index.reshape(-1)), 1 / width)
    return jnp.einsum("btc,lt->blc", x_btc, weights)


def filled_dlinear(
    frozen: Any, trainable: Any, x_btc: jax.Array, x_mask: Any = None, *, dropout_keys: Any = None
) -> jax.Array:
    """DLinear for windows with hidden points: each holds its channel's mean over the window's observed points."""
    if x_mask is not None:
        count = jnp.maximum(x_mask.sum(axis=1, keepdims=True), 1)
        x_btc = jnp.where(x_mask, x_btc, jnp.where(x_mask, x_btc, 0).sum(axis=1, keepdims=True) / count)
    return dlinear(frozen, trainable, x_btc)


def init_linear_classifier(input_length: int, channels: int, classes: int) -> dict[str, Any]:
    """``{"kernel": [t * c, k], "bias": [k]}``, all zero."""
    return {
        "kernel": np.zeros((input_length * channels, classes), np.float32),
        "bias": np.zeros(classes, np.float32),
    }


def linear_classifier(
    frozen: Any, trainable: Any, x_btc: jax.Array, x_mask: Any = None, *, dropout_keys: Any = None
) -> jax.Array:
    """Logits ``[b, k]``: one linear map of all values of a case (softmax regression)."""
    return x_btc.reshape(len(x_btc), -1) @ trainable["kernel"] + trainable["bias"]

"""Linear baselines: NLinear and DLinear (Zeng et al., arXiv 2205.13504), and softmax regression.

All are ``predict(frozen, trainable, x_btc, x_mask, dropout_keys=None)``; ``frozen`` is not used, and one map
serves every channel, as in the published runs without ``--individual``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.model.patching import instance_stats

KERNEL = 25
"""Steps of DLinear's moving average, as published."""


def init_nlinear(input_length: int, horizon: int) -> dict[str, Any]:
    """``{"kernel": [t, h], "bias": [h]}``, initialized to the window's mean, as the published code offers."""
    kernel = np.full((input_length, horizon), 1 / input_length, np.float32)
    return {"kernel": kernel, "bias": np.zeros(horizon, np.float32)}


def nlinear(
    frozen: Any, trainable: Any, x_btc: Any, x_mask: Any = None, *, dropout_keys: Any = None
) -> jax.Array:
    """Forecast ``[b, h, c]``: subtract each window's last value, map linearly, add it again."""
    rest, last = less_last(x_btc, x_mask)
    return _over_time(rest, trainable) + last


def less_last(x_btc: jax.Array, x_mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """What :func:`nlinear` maps, ``[b, t, c]``, and each window's last value ``[b, 1, c]``."""
    x_btc = _backfill_start(x_btc, x_mask)
    last = x_btc[:, -1:]
    return x_btc - last, last


def init_dlinear(input_length: int, output_length: int) -> dict[str, Any]:
    """``{"trend": {kernel, bias}, "rest": {kernel, bias}}``, each initialized as :func:`init_nlinear`."""
    return {part: init_nlinear(input_length, output_length) for part in ("trend", "rest")}


def dlinear(
    frozen: Any, trainable: Any, x_btc: Any, x_mask: Any = None, *, dropout_keys: Any = None
) -> jax.Array:
    """``[b, h, c]``: a linear map over time of the trend, another of the remainder, summed."""
    x_btc = _backfill_start(x_btc, x_mask)
    trend = moving_average(x_btc)
    return _over_time(trend, trainable["trend"]) + _over_time(x_btc - trend, trainable["rest"])


def masked_dlinear(
    frozen: Any, trainable: Any, x_btc: Any, x_mask: Any = None, *, dropout_keys: Any = None
) -> jax.Array:
    """DLinear for windows with hidden points, which take the mean of their channel's observed points."""
    if x_mask is not None:
        x_btc = jnp.where(x_mask, x_btc, instance_stats(x_btc, x_mask).mean)
    return dlinear(frozen, trainable, x_btc)


def moving_average(x_btc: jax.Array, width: int = KERNEL) -> jax.Array:
    """Centered mean of ``width`` steps with the ends repeated; ``[b, t, c]``."""
    length, half = x_btc.shape[1], (width - 1) // 2
    index = np.clip(np.arange(length)[:, None] + np.arange(-half, width - half), 0, length - 1)
    weights = np.zeros((length, length), np.float32)
    np.add.at(weights, (np.repeat(np.arange(length), width), index.reshape(-1)), 1 / width)
    return jnp.einsum("btc,lt->blc", x_btc, weights)


def init_linear_classifier(input_length: int, channels: int, classes: int) -> dict[str, Any]:
    """``{"kernel": [t * c, k], "bias": [k]}``, all zero."""
    kernel = np.zeros((input_length * channels, classes), np.float32)
    return {"kernel": kernel, "bias": np.zeros(classes, np.float32)}


def linear_classifier(
    frozen: Any, trainable: Any, x_btc: Any, x_mask: Any = None, *, dropout_keys: Any = None
) -> jax.Array:
    """Logits ``[b, k]``: one linear map of all values of a case (softmax regression)."""
    return x_btc.reshape(len(x_btc), -1) @ trainable["kernel"] + trainable["bias"]


def _over_time(x_btc: jax.Array, weights: Any) -> jax.Array:
    return jnp.einsum("btc,th->bhc", x_btc, weights["kernel"]) + weights["bias"][None, :, None]


def _backfill_start(x_btc: jax.Array, x_mask: jax.Array | None) -> jax.Array:
    """Padding before the first observed step takes that step's value."""
    if x_mask is None:
        return x_btc
    first = jnp.take_along_axis(x_btc, jnp.argmax(x_mask, axis=1, keepdims=True), axis=1)
    return jnp.where(x_mask, x_btc, first)

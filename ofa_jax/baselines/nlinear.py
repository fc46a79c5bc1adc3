"""NLinear (Zeng et al., arXiv 2205.13504): one linear map from input to horizon, around the last value.

The same map serves every channel, as in the published runs without ``--individual``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def init_nlinear(input_length: int, horizon: int) -> dict[str, Any]:
    """``{"kernel": [t, h], "bias": [h]}`` that starts as the window's mean, as the published code offers beside a random start."""
    return {
        "kernel": np.full((input_length, horizon), 1 / input_length, np.float32),
        "bias": np.zeros(horizon, np.float32),
    }


def nlinear(
    frozen: Any, trainable: dict[str, Any], x_btc: jax.Array, x_mask: Any = None, *, dropout_keys: Any = None
) -> jax.Array:
    """Forecast ``[b, h, c]``: subtract each window's last value, map linearly, add it again. ``frozen`` is not used.

    Steps before a short window's start (``x_mask`` False) hold its first value.
    """
    x_btc = start_filled(x_btc, x_mask)
    last = x_btc[:, -1:]
    return (
        jnp.einsum("btc,th->bhc", x_btc - last, trainable["kernel"]) + trainable["bias"][None, :, None] + last
    )


def start_filled(x_btc: jax.Array, x_mask: jax.Array | None) -> jax.Array:
    """Windows whose padding before the first observed step holds that step's value."""
    if x_mask is None:
        return x_btc
    first = jnp.take_along_axis(x_btc, jnp.argmax(x_mask, axis=1, keepdims=True), axis=1)
    return jnp.where(x_mask, x_btc, first)

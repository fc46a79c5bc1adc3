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
    return {"kernel": np.full((input_length, horizon), 1 / input_length, np.float32), "bias": np.zeros(horizon, np.float32)}


def nlinear(frozen: Any, trainable: dict[str, Any], x_btc: jax.Array, x_mask: Any = None, *, dropout_keys: Any = None) -> jax.Array:
    """Forecast ``[b, h, c]``: subtract each window's last value, map linearly, add it again. ``frozen`` is not used."""
    last = x_btc[:, -1:]
    return jnp.einsum("btc,th->bhc", x_btc - last, trainable["kernel"]) + trainable["bias"][None, :, None] + last

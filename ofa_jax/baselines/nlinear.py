"""NLinear (Zeng et al., arXiv 2205.13504): one linear map from input to horizon, around the last value.

The same map serves every channel, as in the published runs without ``--individual``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ofa_jax.model import frozen_init


def init_nlinear(input_length: int, horizon: int, *, seed: int) -> dict[str, Any]:
    """``{"kernel": [t, h], "bias": [h]}``, drawn as PyTorch's ``nn.Linear``."""
    return frozen_init.linear(seed, "nlinear", input_length, horizon)


def nlinear(frozen, trainable: dict[str, Any], x_btc: jax.Array, x_mask=None, *, dropout_keys=None) -> jax.Array:
    """Forecast ``[b, h, c]``: subtract each window's last value, map linearly, add it again. ``frozen`` is not used."""
    last = x_btc[:, -1:]
    return jnp.einsum("btc,th->bhc", x_btc - last, trainable["kernel"]) + trainable["bias"][None, :, None] + last

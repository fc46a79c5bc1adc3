"""The network of a pretrained trunk: a context of any length to the quantiles and mean of the steps that follow.

Values are standardized over the observed steps and pass arcsinh. A token holds ``patch`` values and as many flags
of which are observed; a shorter context is masked at its left. Every token predicts the ``horizon`` steps after it,
and the last one's are the forecast.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ofa_jax.model.gpt2 import GPT2Trunk

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The quantile levels of the head."""

CLIP = 10.0
"""Standardized values are limited to this many deviations, after arcsinh."""


class Forecast(NamedTuple):
    """Per token: quantiles ``[m, n, h, 9]`` in arcsinh units and the mean ``[m, n, h]`` in standardized units."""

    quantiles: jax.Array
    mean: jax.Array


def standardize_stats(x_mt: jax.Array, seen_mt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation ``[m, 1]`` over the steps that are seen."""
    count = jnp.maximum(seen_mt.sum(axis=1, keepdims=True), 1)
    mean = jnp.where(seen_mt, x_mt, 0).sum(axis=1, keepdims=True) / count
    variance = jnp.where(seen_mt, jnp.square(x_mt - mean), 0).sum(axis=1, keepdims=True) / count
    return mean, jnp.sqrt(variance)


class QuantileNetwork(nn.Module):
    trunk: GPT2Trunk
    patch: int
    horizon: int

    @nn.compact
    def __call__(self, z_mt: jax.Array, seen_mt: jax.Array) -> Forecast:
        """``z_mt``: standardized values in arcsinh units ``[m, t]``, 0 where not seen."""
        m = len(z_mt)
        tokens = jnp.concatenate(
            [z_mt.reshape(m, -1, self.patch), seen_mt.reshape(m, -1, self.patch).astype(z_mt.dtype)], axis=-1
        )
        dtype = self.trunk.compute_dtype
        embeds = nn.Dense(self.trunk.config.n_embd, dtype=dtype, name="in_layer")(tokens)
        hidden = self.trunk.clone(parent=self, name="gpt2")(embeds)
        hidden = hidden.astype(dtype)
        median = nn.Dense(self.horizon, dtype=dtype, name="out_layer")(hidden).astype(jnp.float32)
        spread = nn.Dense(self.horizon * len(LEVELS), dtype=dtype, name="spread_layer")(hidden)
        spread = spread.astype(jnp.float32).reshape(*median.shape, len(LEVELS))
        half = len(LEVELS) // 2
        gaps = jax.nn.softplus(spread[..., :-1] - 2)
        up, down = jnp.cumsum(gaps[..., half:], axis=-1), jnp.cumsum(gaps[..., :half], axis=-1)[..., ::-1]
        center = median[..., None]
        quantiles = jnp.concatenate([center - down, center, center + up], axis=-1)
        return Forecast(quantiles, jnp.sinh(jnp.clip(median, -4, 4)) + spread[..., -1])

"""The network of a pretrained trunk: a context in, quantiles of the steps ahead out.

Values are standardized over the observed steps of the context and pass arcsinh. A token holds ``patch``
values and as many flags of which are observed; a short context is masked at its left, so the last token
always ends with the last step. The head reads a token's hidden state and forecasts the ``horizon`` steps
after it.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ofa_jax.model.gpt2 import LEVELS
from ofa_jax.model.networks import Network

LIMIT = 10.0
"""Standardized values are limited to ± sinh of it (11,013 standard deviations)."""

_MEDIAN_LIMIT = 4.0
_MIDDLE = len(LEVELS) // 2
_GAP_SHIFT = -2.0  # at first the gaps between quantiles are softplus(-2) = 0.13


class Quantiles(NamedTuple):
    """A forecast in the standardized units of a context, per token k.

    Attributes:
        levels: ``[m, k, h, q]``, the quantiles after arcsinh, ascending in q.
        mean: ``[m, k, h]``, not after arcsinh.
    """

    levels: jax.Array
    mean: jax.Array


class Units(NamedTuple):
    """Mean and scale ``[m, 1]`` that standardize a context; ``known`` is False where it is constant."""

    mean: jax.Array
    scale: jax.Array
    known: jax.Array

    def standardize(self, x_mt: jax.Array) -> jax.Array:
        return (x_mt - self.mean) / self.scale


def units_of(x_mt: jax.Array, counted_mt: jax.Array) -> Units:
    """Mean and standard deviation over the steps that are counted; a constant has scale 1."""
    count = jnp.maximum(counted_mt.sum(axis=1, keepdims=True), 1)
    mean = jnp.where(counted_mt, x_mt, 0).sum(axis=1, keepdims=True) / count
    variance = jnp.where(counted_mt, jnp.square(x_mt - mean), 0).sum(axis=1, keepdims=True) / count
    spread = jnp.sqrt(variance)
    known = spread > 1e-6 * (1 + jnp.abs(mean))
    return Units(mean, jnp.where(known, spread, 1), known)


def compress(z_mt: jax.Array) -> jax.Array:
    """arcsinh of standardized values, limited."""
    return jnp.clip(jnp.arcsinh(z_mt), -LIMIT, LIMIT)


class QuantileNetwork(Network):
    """The pretrained layers: ``in_layer``, the trunk, and the head's ``out_layer`` and ``spread_layer``.

    Attributes:
        horizon: Steps that a token forecasts.
        patch: Steps of a token; divides ``input_length``.
    """

    horizon: int
    patch: int = 16

    @property
    def tokens(self) -> int:
        return self.input_length // self.patch

    def _hidden(self, z_mt: jax.Array, seen_mt: jax.Array, keys_m: jax.Array | None) -> jax.Array:
        """Hidden states ``[m, n, d]`` of a context after :func:`compress`."""
        m, dtype = len(z_mt), self.trunk.compute_dtype
        values = jnp.where(seen_mt, z_mt, 0).reshape(m, -1, self.patch)
        flags = seen_mt.reshape(m, -1, self.patch)
        tokens_mnq = jnp.concatenate([values, flags.astype(values.dtype)], axis=-1)
        embeds_mnd = self._dense(self.width, "in_layer")(tokens_mnq)
        return self._run_trunk(embeds_mnd, keys_m).astype(dtype)

    def _head(self, hidden_mkd: jax.Array) -> Quantiles:
        median = self._dense(self.horizon, "out_layer")(hidden_mkd).astype(jnp.float32)
        spread = self._dense(self.horizon * len(LEVELS), "spread_layer")(hidden_mkd).astype(jnp.float32)
        spread = spread.reshape(*median.shape, len(LEVELS))
        gaps, shift = jax.nn.softplus(spread[..., :-1] + _GAP_SHIFT), spread[..., -1]
        center = median[..., None]
        above = center + jnp.cumsum(gaps[..., _MIDDLE:], axis=-1)
        below = center - jnp.cumsum(gaps[..., :_MIDDLE], axis=-1)[..., ::-1]
        mean = jnp.sinh(jnp.clip(median, -_MEDIAN_LIMIT, _MEDIAN_LIMIT)) + shift
        return Quantiles(jnp.concatenate([below, center, above], axis=-1), mean)


class PretrainNetwork(QuantileNetwork):
    """Pretraining: forecasts of every ``every``-th token, of windows that were standardized before."""

    every: int = 4

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> Quantiles:
        """Forecasts ``[b, n / every, h]`` of contexts ``x_btc`` ``[b, t, 1]`` after :func:`compress`."""
        z_bt = x_btc[..., 0]
        seen_bt = jnp.ones(z_bt.shape, bool) if x_mask is None else x_mask[..., 0]
        return self._head(self._hidden(z_bt, seen_bt, dropout_keys)[:, self.every - 1 :: self.every])

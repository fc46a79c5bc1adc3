"""The network of a pretrained trunk: a context in, quantiles of the steps ahead out.

Values are standardized over the observed steps of the context and pass arcsinh. A token holds ``patch``
values and as many flags of which are observed; a short context is masked at its left, so the last token
always ends with the last step. The steps to forecast follow as tokens of which nothing is observed; the head
reads their hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ofa_jax.model.gpt2 import LEVELS
from ofa_jax.model.networks import Network, channel_keys, join_channels, split_channels
from ofa_jax.model.season import cycles_before, find_cycle

LIMIT = 10.0
"""Standardized values are limited to ± sinh of it (11,013 standard deviations)."""

Layer = Callable[..., jax.Array]

_MEDIAN_LIMIT = 4.0
_MIDDLE = len(LEVELS) // 2
_GAP_SHIFT = -2.0  # at first the gaps between quantiles are softplus(-2) = 0.13


class Quantiles(NamedTuple):
    """A forecast in the standardized units of a context.

    Attributes:
        levels: ``[m, h, q]``, the quantiles after arcsinh, ascending in q.
        mean: ``[m, h]``, not after arcsinh.
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
    """The pretrained layers: ``in_layer``, the trunk, and the head's ``median_layer`` and ``spread_layer``.

    Attributes:
        horizon: Forecast steps.
        patch: Steps of a token; divides ``input_length`` and ``horizon``.
    """

    horizon: int
    patch: int = 16

    @property
    def tokens(self) -> int:
        return (self.input_length + self.horizon) // self.patch

    def _forecaster(self) -> Callable[..., Quantiles]:
        """``(x_mt, seen_mt, horizon, keys_m) -> forecast`` of standardized contexts, in their units."""
        return partial(
            self._ahead,
            self._dense(self.width, "in_layer"),
            self.trunk.clone(parent=self, name=self.trunk.path_name),
            self._dense(self.patch, "median_layer"),
            self._dense(self.patch * len(LEVELS), "spread_layer"),
        )

    def _ahead(
        self,
        embed: Layer,
        trunk: Layer,
        middle: Layer,
        around: Layer,
        x_mt: jax.Array,
        seen_mt: jax.Array,
        horizon: int,
        keys_m: jax.Array | None,
    ) -> Quantiles:
        m, first = len(x_mt), x_mt.shape[1] // self.patch
        z_mt = jnp.where(seen_mt, compress(x_mt), 0)
        cycle = find_cycle(z_mt, seen_mt)
        last, mean = cycles_before(z_mt, seen_mt, cycle, horizon)
        padding = ((0, 0), (0, horizon))
        columns = (jnp.pad(z_mt, padding), jnp.pad(seen_mt, padding).astype(z_mt.dtype), last, mean)
        parts = [part.reshape(m, -1, self.patch) for part in columns]
        embeds_mnd = embed(jnp.concatenate(parts, axis=-1))
        hidden_mkd = trunk(embeds_mnd, keys_m)[:, first:].astype(self.trunk.compute_dtype)
        median = middle(hidden_mkd).astype(jnp.float32)
        spread = around(hidden_mkd).astype(jnp.float32)
        median, spread = median.reshape(m, horizon), spread.reshape(m, horizon, len(LEVELS))
        gaps, shift = jax.nn.softplus(spread[..., :-1] + _GAP_SHIFT), spread[..., -1]
        center = median[..., None]
        above = center + jnp.cumsum(gaps[..., _MIDDLE:], axis=-1)
        below = center - jnp.cumsum(gaps[..., :_MIDDLE], axis=-1)[..., ::-1]
        mean = jnp.sinh(jnp.clip(median, -_MEDIAN_LIMIT, _MEDIAN_LIMIT)) + shift
        return Quantiles(jnp.concatenate([below, center, above], axis=-1), mean)


class PretrainNetwork(QuantileNetwork):
    """Pretraining, on windows that are standardized where they are drawn."""

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> Quantiles:
        """Forecasts ``[b, h]`` of standardized contexts ``x_btc`` ``[b, t, 1]``."""
        seen_btc = jnp.ones(x_btc.shape, bool) if x_mask is None else x_mask
        return self._forecaster()(x_btc[..., 0], seen_btc[..., 0], self.horizon, dropout_keys)


class PretrainedForecastNetwork(QuantileNetwork):
    """Forecasting with the layers of pretraining: channel by channel, of any horizon.

    Contexts shorter than the trunk's are masked at their left. A horizon beyond the trunk's is rolled out:
    the mean forecast becomes context until there are enough steps.
    """

    pretrained = True

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Forecast ``[b, h, c]`` in the units of ``x_btc``, each channel independently."""
        c, around = x_btc.shape[2], self.trunk.config.forecaster
        assert around is not None
        keys_m = channel_keys(dropout_keys, c)
        x_mt = split_channels(x_btc)
        seen_mt = jnp.ones(x_mt.shape, bool) if x_mask is None else split_channels(x_mask)
        left = ((0, 0), (around.context - self.input_length, 0))
        x_mt, seen_mt = jnp.pad(x_mt, left), jnp.pad(seen_mt, left)
        ahead, parts, missing = self._forecaster(), [], self.horizon
        while missing > 0:
            steps = min(-(-missing // self.patch) * self.patch, around.horizon)
            units = units_of(x_mt, seen_mt)
            z_mt = jnp.where(seen_mt, units.standardize(x_mt), 0)
            mean_mh = ahead(z_mt, seen_mt, steps, keys_m).mean * units.scale + units.mean
            parts.append(mean_mh)
            missing -= steps
            x_mt = jnp.concatenate([x_mt, mean_mh], axis=1)[:, steps:]
            seen_mt = jnp.concatenate([seen_mt, jnp.ones(mean_mh.shape, bool)], axis=1)[:, steps:]
        return join_channels(jnp.concatenate(parts, axis=1)[:, : self.horizon], c)

    @property
    def tokens(self) -> int:
        around = self.trunk.config.forecaster
        assert around is not None
        return (around.context + min(self.horizon, around.horizon)) // self.patch

"""The network of a pretrained trunk: a context in, quantiles of the steps ahead out.

Values are standardized over the observed steps of the context and pass arcsinh. A token holds ``patch``
values and as many flags of which are observed; a short context is masked at its left, so the last token
always ends with the last step. The steps to forecast follow as tokens of which nothing is observed, with the
last observed value in place of theirs; the head reads their hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ofa_jax.errors import ConfigError
from ofa_jax.model.gpt2 import LEVELS
from ofa_jax.model.networks import Network, channel_keys, join_channels, split_channels
from ofa_jax.model.season import cycles_before, find_cycles

LIMIT = 10.0
"""Standardized values are limited to ± sinh of it (11,013 standard deviations)."""

READ_BEFORE = 8
"""Tokens at the end of the context that ``out_layer`` reads, besides those of the steps ahead."""

Layer = Callable[..., jax.Array]

_MEDIAN_LIMIT = 4.0
_MIDDLE = len(LEVELS) // 2
_FLAGS = 1  # the columns of a token are values, flags, and values of earlier cycles
_GAP_SHIFT = -2.0  # at first the gaps between quantiles are softplus(-2) = 0.13


class Quantiles(NamedTuple):
    """A forecast.

    Attributes:
        levels: ``[m, h, q]``, ascending in q; in the standardized units of a context after arcsinh.
        mean: ``[m, h]``, never after arcsinh.
    """

    levels: jax.Array
    mean: jax.Array


Forecasts = Callable[..., tuple[Quantiles, jax.Array]]


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


def last_seen(z_mt: jax.Array, seen_mt: jax.Array) -> jax.Array:
    """The last observed value ``[m, 1]``."""
    at = jnp.max(jnp.where(seen_mt, jnp.arange(z_mt.shape[1]), 0), axis=1, keepdims=True)
    return jnp.take_along_axis(z_mt, at, axis=1)


class Features(NamedTuple):
    """What adaptation of the last layer needs of a window.

    Attributes:
        hidden: Hidden states of the last tokens of the context and of those ahead, ``[m, k · d]``.
        scale: Of the window, ``[m, 1]``.
        forecast: The zero-shot forecast, ``[m, h]``.
    """

    hidden: jax.Array
    scale: jax.Array
    forecast: jax.Array


def read_features(given: Features, out_layer: Layer) -> jax.Array:
    """The adapted forecast ``[m, h]``."""
    return given.forecast + _change(given, out_layer)


def _change(given: Features, out_layer: Layer) -> jax.Array:
    return out_layer(given.hidden).astype(jnp.float32) * given.scale


class QuantileNetwork(Network):
    """The pretrained layers: ``in_layer``, the trunk, and the head's ``median_layer`` and ``spread_layer``.

    Attributes:
        horizon: Forecast steps.
        patch: Steps of a token; divides ``input_length`` and ``horizon``.
    """

    horizon: int
    patch: int = 16
    computes_all_tokens: ClassVar[bool] = False
    """Whether the last block also computes tokens that nothing reads."""

    @property
    def tokens(self) -> int:
        return (self.input_length + self.horizon) // self.patch

    def _forecaster(self) -> Forecasts:
        """``(x_mt, seen_mt, horizon, keys_m) -> forecast, hidden_mkd`` of standardized contexts.

        The forecast is in their units; the hidden states are those of the last :data:`READ_BEFORE` tokens of
        the context and of all ahead. Given ``mirrored=True``, those of the mirror images (-x) follow.
        """
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
        *,
        mirrored: bool = False,
    ) -> tuple[Quantiles, jax.Array]:
        context, ahead = x_mt.shape[1] // self.patch, horizon // self.patch
        z_mt = jnp.where(seen_mt, compress(x_mt), 0)
        columns = [
            jnp.concatenate([z_mt, jnp.repeat(last_seen(z_mt, seen_mt), horizon, axis=1)], axis=1),
            jnp.pad(seen_mt, ((0, 0), (0, horizon))).astype(z_mt.dtype),
        ]
        for cycle_m in find_cycles(z_mt, seen_mt):
            columns += cycles_before(z_mt, seen_mt, cycle_m, horizon)
        if mirrored:  # all but the flags change their sign; the cycles are the same
            columns = [
                jnp.concatenate([part, part if at == _FLAGS else -part]) for at, part in enumerate(columns)
            ]
        m = len(columns[0])
        parts = [part.reshape(m, -1, self.patch) for part in columns]
        embeds_mnd = embed(jnp.concatenate(parts, axis=-1))
        read = min(READ_BEFORE, context) + ahead
        every = self.computes_all_tokens or self.is_mutable_collection("intermediates")
        hidden_mnd = trunk(embeds_mnd, keys_m, last_tokens=None if every else read)
        read_mkd = hidden_mnd[:, -read:].astype(self.trunk.compute_dtype)
        median, spread = (head(read_mkd[:, -ahead:]).astype(jnp.float32) for head in (middle, around))
        median, spread = median.reshape(m, horizon), spread.reshape(m, horizon, len(LEVELS))
        gaps, shift = jax.nn.softplus(spread[..., :-1] + _GAP_SHIFT), spread[..., -1]
        center = median[..., None]
        above = center + jnp.cumsum(gaps[..., _MIDDLE:], axis=-1)
        below = center - jnp.cumsum(gaps[..., :_MIDDLE], axis=-1)[..., ::-1]
        mean = jnp.sinh(jnp.clip(median, -_MEDIAN_LIMIT, _MEDIAN_LIMIT)) + shift
        return Quantiles(jnp.concatenate([below, center, above], axis=-1), mean), read_mkd


class PretrainNetwork(QuantileNetwork):
    """Pretraining, on windows that are standardized where they are drawn."""

    computes_all_tokens = True  # else its rounding and dropout would not be those of nano's own run

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> Quantiles:
        """Forecasts ``[b, h]`` of standardized contexts ``x_btc`` ``[b, t, 1]``."""
        seen_btc = jnp.ones(x_btc.shape, bool) if x_mask is None else x_mask
        forecast, _ = self._forecaster()(x_btc[..., 0], seen_btc[..., 0], self.horizon, dropout_keys)
        return forecast


class PretrainedForecastNetwork(QuantileNetwork):
    """Forecasting with the layers of pretraining: channel by channel, of any horizon.

    Contexts shorter than the trunk's are masked at their left. A horizon beyond the trunk's is rolled out:
    the mean forecast becomes context until there are enough steps. A context and its mirror image (-x) are
    both read, and their forecasts averaged. To the forecast is added what ``out_layer`` reads from the first
    round's tokens: nothing, until it is adapted or trained.
    """

    pretrained = True
    zero = ("out_layer",)

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Forecast ``[b, h, c]`` in the units of ``x_btc``, each channel independently."""
        c, out_layer = x_btc.shape[2], self._dense(self.horizon, "out_layer")
        given, _ = self._zero_shot(x_btc, x_mask, channel_keys(dropout_keys, c))
        return join_channels(read_features(given, out_layer), c)

    def _zero_shot(
        self, x_btc: jax.Array, x_mask: jax.Array | None, keys_m: jax.Array | None
    ) -> tuple[Features, jax.Array]:
        around = self.trunk.config.forecaster
        assert around is not None
        if self.input_length > around.context:
            what = f"{self.input_length} input steps, but the trunk reads at most {around.context}"
            raise ConfigError(what, where="task.input_length", fix=f"Set it to {around.context} or fewer")
        x_mt = split_channels(x_btc)
        seen_mt = jnp.ones(x_mt.shape, bool) if x_mask is None else split_channels(x_mask)
        left = ((0, 0), (around.context - self.input_length, 0))
        x_mt, seen_mt = jnp.pad(x_mt, left), jnp.pad(seen_mt, left)
        ahead, parts, missing, first = _of_both_signs(self._forecaster()), [], self.horizon, None
        while missing > 0:
            steps = min(-(-missing // self.patch) * self.patch, around.horizon)
            units = units_of(x_mt, seen_mt)
            z_mt = jnp.where(seen_mt, units.standardize(x_mt), 0)
            forecast, hidden_mkd = ahead(z_mt, seen_mt, steps, keys_m)
            first = first or (hidden_mkd.reshape(len(x_mt), -1), units.scale)
            mean_mh = forecast.mean * units.scale + units.mean
            levels_mhq = jnp.sinh(forecast.levels) * units.scale[..., None] + units.mean[..., None]
            parts.append((mean_mh, levels_mhq))
            missing -= steps
            x_mt = jnp.concatenate([x_mt, mean_mh], axis=1)[:, steps:]
            seen_mt = jnp.concatenate([seen_mt, jnp.ones(mean_mh.shape, bool)], axis=1)[:, steps:]
        assert first is not None
        rounds = zip(*parts, strict=True)
        mean_mh, levels_mhq = (jnp.concatenate(part, axis=1)[:, : self.horizon] for part in rounds)
        return Features(*first, mean_mh), levels_mhq

    @property
    def tokens(self) -> int:
        around = self.trunk.config.forecaster
        assert around is not None
        return around.context // self.patch + self.tokens_ahead

    @property
    def tokens_ahead(self) -> int:
        """Tokens of the steps ahead in the first round."""
        around = self.trunk.config.forecaster
        assert around is not None
        return -(-min(self.horizon, around.horizon) // self.patch)

    @property
    def tokens_read(self) -> int:
        """Tokens whose hidden states ``out_layer`` reads."""
        around = self.trunk.config.forecaster
        assert around is not None
        return min(READ_BEFORE, around.context // self.patch) + self.tokens_ahead


class QuantileForecastNetwork(PretrainedForecastNetwork):
    """The same forecaster with its quantiles, which adaptation moves as it does the mean."""

    @nn.compact
    def __call__(  # type: ignore[override]
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> Quantiles:
        """Levels ``[b, h, q]`` and mean ``[b, h]`` of univariate windows ``[b, t, 1]`` in their units."""
        given, levels_mhq = self._zero_shot(x_btc, x_mask, dropout_keys)
        change_mh = _change(given, self._dense(self.horizon, "out_layer"))
        return Quantiles(levels_mhq + change_mh[..., None], given.forecast + change_mh)


def _of_both_signs(ahead: Forecasts) -> Forecasts:
    """Forecasts that change their sign with the context: half the difference to those of its mirror image."""

    def both(
        x_mt: jax.Array, seen_mt: jax.Array, horizon: int, keys_m: jax.Array | None
    ) -> tuple[Quantiles, jax.Array]:
        keys = None if keys_m is None else jnp.concatenate([keys_m, keys_m])
        forecast, hidden = ahead(x_mt, seen_mt, horizon, keys, mirrored=True)
        (levels, mirrored), (mean, other) = (jnp.split(part, 2) for part in forecast)
        own, opposite = jnp.split(hidden, 2)
        return Quantiles((levels - mirrored[..., ::-1]) / 2, (mean - other) / 2), (own - opposite) / 2

    return both


class FeatureNetwork(PretrainedForecastNetwork):
    """The same forecaster up to its last layer."""

    @nn.compact
    def __call__(  # type: ignore[override]
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> Features:
        """Features of univariate windows ``[b, t, 1]``."""
        return self._zero_shot(x_btc, x_mask, dropout_keys)[0]

"""Losses as masked sums and counts, so that slices, devices and padding add up to the same number."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from ofa_jax.config.tasks import ForecastLoss
from ofa_jax.windows.batch import Batch

MAPE_FLOOR = 1e-8
"""Added to the target's size before it divides (protocol §2)."""


def forecast_error(pred_bhc: jax.Array, batch: Batch) -> jax.Array:
    """Prediction minus target ``[b, h, c]`` in the batch's unit, 0 where the target is missing."""
    return jnp.where(batch.y_mask, forecast_change(pred_bhc, batch) - batch.y, 0)


def forecast_change(pred_bhc: jax.Array, batch: Batch) -> jax.Array:
    """Predictions; of relative windows 0 where the input does not vary, which gives them no scale."""
    if batch.level is None:
        return pred_bhc
    return jnp.where(jnp.any(batch.x != 0, axis=1, keepdims=True), pred_bhc, 0)


def squared_error(pred_bhc: jax.Array, batch: Batch, *, unit: float = 1) -> tuple[jax.Array, jax.Array]:
    """Sum of squared errors over the observed targets and their count, float32 scalars.

    Of relative windows, errors are multiples of ``unit``.
    """
    error = forecast_error(pred_bhc, batch)
    return _total(jnp.square(error if batch.unit is None else error * (batch.unit / unit)), batch.y_mask)


def smape(pred_bhc: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Sum of :func:`symmetric_terms` over the observed targets, and their count."""
    return _total(symmetric_terms(pred_bhc, batch), batch.y_mask)


def mape(pred_bhc: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Sum of ``100 |p - t| / (|t| + 1e-8)`` over the observed targets (protocol §2), and their count.

    The floor of relative windows is a multiple of their unit.
    """
    terms = 100 * _size(forecast_error(pred_bhc, batch)) / (jnp.abs(_complete(batch.y, batch)) + MAPE_FLOOR)
    return _total(terms, batch.y_mask)


def reconstruction_error(pred_btc: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Sum of squared differences to the input itself over its observed values, and how many there are."""
    return _total(jnp.square(jnp.where(batch.x_mask, pred_btc - batch.x, 0)), batch.x_mask)


def cross_entropy(logits_bk: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Sum over the labeled cases of :func:`entropy_terms`, and how many there are."""
    return _total(entropy_terms(logits_bk, batch), batch.y_mask)


def symmetric_terms(pred_bhc: jax.Array, batch: Batch) -> jax.Array:
    """``200 |p - t| / (|p| + |t|)``, 0 where both are 0; the denominator has no gradient (protocol §2)."""
    forecast = jax.lax.stop_gradient(forecast_change(pred_bhc, batch))
    size = jnp.abs(_complete(forecast, batch)) + jnp.abs(_complete(batch.y, batch))
    error = _size(forecast_error(pred_bhc, batch))
    return jnp.where(size > 0, 200 * error / jnp.where(size > 0, size, 1), 0)


def entropy_terms(logits_bk: jax.Array, batch: Batch) -> jax.Array:
    """``-log softmax`` ``[b]`` at the class of each labeled case."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_bk, jnp.maximum(batch.y, 0))


def _complete(values_bhc: jax.Array, batch: Batch) -> jax.Array:
    """Forecasts or targets with the level that relative ones leave out."""
    return values_bhc if batch.level is None else values_bhc + batch.level


def _size(error: jax.Array) -> jax.Array:
    """``|error|`` with gradient 0 at 0, as in PyTorch; ``jnp.abs`` has gradient 1 there."""
    return error * jax.lax.stop_gradient(jnp.sign(error))


def _total(terms: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(jnp.where(mask, terms, 0)), jnp.sum(mask).astype(jnp.float32)


FORECAST_LOSSES: Mapping[ForecastLoss, Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array]]] = {
    "mse": squared_error,
    "smape": smape,
    "mape": mape,
}
"""What a forecast can be trained with, by ``task.loss``."""

"""Metrics as sums per window, added on the host in float64: independent of batch size and padding."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.tasks.losses import entropy_terms, forecast_error, symmetric_terms
from ofa_jax.windows.batch import Batch


def forecast_sums(pred_bhc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Per window ``[b]``: squared error, absolute error and number of observed targets."""
    error = forecast_error(pred_bhc, batch)
    return {
        "squared_error": jnp.sum(jnp.square(error), axis=(1, 2)),
        "absolute_error": jnp.sum(jnp.abs(error), axis=(1, 2)),
        "count": jnp.sum(batch.y_mask, axis=(1, 2)).astype(jnp.float32),
    }


def forecast_metrics(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """MSE and MAE over every observed (window, channel, step), on the scale of the windows (protocol §3)."""
    mean = _means(sums)
    return {"mse": mean["squared_error"], "mae": mean["absolute_error"]}


def series_sums(pred_bhc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Per window ``[b]``: sum of ``200 |p - t| / (|p| + |t|)`` (0/0 is 0), absolute error, target count.

    The absolute error is in the series' units.
    """
    terms, sums = symmetric_terms(pred_bhc, batch), forecast_sums(pred_bhc, batch)
    error = sums["absolute_error"]
    return {
        "symmetric": jnp.sum(jnp.where(batch.y_mask, terms, 0), axis=(1, 2)),
        "absolute_error": error if batch.unit is None else error * batch.unit[:, 0, 0],
        "count": sums["count"],
    }


def series_metrics(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """sMAPE over every observed (window, step), in percent between 0 and 200 (protocol §3)."""
    return {"smape": _means(sums)["symmetric"]}


def naive_scale(insample: np.ndarray, season: int, observed: np.ndarray | None = None) -> float:
    """MASE's denominator: ``mean |in[m:] - in[:-m]|`` of the input ``[T]`` (protocol §3).

    Differences to or from a value that is not ``observed`` are left out; NaN where none is left.
    """
    step = np.abs(insample[season:] - insample[:-season])
    if observed is not None:
        step = step[observed[season:] & observed[:-season]]
    return float(step.mean()) if len(step) else float("nan")


def mean_scaled_error(sums: Mapping[str, np.ndarray], scale: np.ndarray) -> float:
    """MASE: mean over windows of MAE over ``scale`` ``[windows]``.

    Windows of scale 0 or NaN and those without an observed target are left out.
    """
    known = np.isfinite(scale) & (scale > 0) & (sums["count"] > 0)
    if not known.any():
        return float("nan")
    error = sums["absolute_error"][known].astype(np.float64) / sums["count"][known]
    return float((error / scale[known]).mean())


def classification_sums(logits_bk: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Per case ``[b]``: cross-entropy, whether the largest logit is at its class, and 1."""
    labeled = batch.y_mask
    return {
        "cross_entropy": jnp.where(labeled, entropy_terms(logits_bk, batch), 0),
        "right": (labeled & (jnp.argmax(logits_bk, axis=1) == batch.y)).astype(jnp.float32),
        "count": labeled.astype(jnp.float32),
    }


def classification_metrics(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Accuracy between 0 and 1, its complement (for choosing the epoch), and mean cross-entropy."""
    mean = _means(sums)
    return {"accuracy": mean["right"], "error": 1 - mean["right"], "cross_entropy": mean["cross_entropy"]}


def reconstruction_sums(pred_btc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Per window, ``step_error`` ``[b, t]``: mean squared error over channels (protocol §3)."""
    return {"step_error": jnp.mean(jnp.square(pred_btc - batch.x), axis=2)}


def observed_sums(pred_btc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """As :func:`reconstruction_sums` over observed channels, and ``seen`` ``[b, t]``: whether one is."""
    seen = jnp.any(batch.x_mask, axis=2)
    error = jnp.mean(jnp.square(pred_btc - batch.x), axis=2, where=batch.x_mask)
    return {"step_error": jnp.where(seen, error, 0), "seen": seen}


def reconstruction_metrics(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """MSE over every step of every window that has a value."""
    error = sums["step_error"]
    if "seen" in sums:
        error = error[sums["seen"]]
    return {"mse": float(np.mean(error, dtype=np.float64))}


def _means(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    total = {name: float(np.sum(values, dtype=np.float64)) for name, values in sums.items()}
    return {name: value / total["count"] for name, value in total.items()}

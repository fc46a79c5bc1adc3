"""Metrics as sums per window that are added on the host in float64: the same number for any batch size and padding."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.data.windows import Batch


def forecast_sums(pred_bhc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Per window ``[b]``: squared error, absolute error and number of observed targets."""
    error = jnp.where(batch.y_mask, pred_bhc - batch.y, 0)
    return {
        "squared_error": jnp.sum(jnp.square(error), axis=(1, 2)),
        "absolute_error": jnp.sum(jnp.abs(error), axis=(1, 2)),
        "count": jnp.sum(batch.y_mask, axis=(1, 2)).astype(jnp.float32),
    }


def forecast_metrics(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """MSE and MAE over every observed (window, channel, step), on the scale of the windows (protocol §3)."""
    total = {name: float(np.sum(values, dtype=np.float64)) for name, values in sums.items()}
    return {"mse": total["squared_error"] / total["count"], "mae": total["absolute_error"] / total["count"]}

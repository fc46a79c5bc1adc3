"""Losses as masked sums: a numerator and a denominator, so that slices, devices and padding add up to the same number."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ofa_jax.data.windows import Batch


def squared_error(pred_bhc: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Sum of squared errors over the observed targets, and how many there are; both scalars, float32. Padding rows have none."""
    error = jnp.where(batch.y_mask, pred_bhc - batch.y, 0)
    return jnp.sum(jnp.square(error)), jnp.sum(batch.y_mask).astype(jnp.float32)

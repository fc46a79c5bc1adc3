"""Optimizers and learning-rate schedules, as in the authors' scripts (protocol §2)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax


def make_schedule(
    kind: Literal["cosine", "decay", "constant"],
    learning_rate: float | jax.Array,
    steps_per_epoch: int,
    *,
    decay: float = 0.5,
    cosine_epochs: int = 20,
    min_learning_rate: float = 1e-8,
) -> optax.Schedule:
    """Learning rate by step; it changes between epochs only (protocol §2).

    ``decay`` multiplies by ``decay`` per epoch from the third on. ``cosine`` is the closed form of PyTorch's
    ``CosineAnnealingLR(T_max=cosine_epochs, eta_min=min_learning_rate)``. The learning rate may be traced.
    """
    if kind == "constant":
        return optax.constant_schedule(learning_rate)

    def schedule(step: jax.Array) -> jax.Array:
        epoch = step // steps_per_epoch
        if kind == "decay":
            return learning_rate * decay ** jnp.maximum(epoch - 1, 0)
        share = (1 + jnp.cos(jnp.pi * epoch / cosine_epochs)) / 2
        return min_learning_rate + (learning_rate - min_learning_rate) * share

    return schedule


def remark_on_schedule(kind: str, epochs: int, cosine_epochs: int) -> str | None:
    """What is unusual about so many epochs of a schedule; None if nothing is."""
    if kind != "cosine" or epochs <= cosine_epochs:
        return None
    lowest = f"the learning rate is lowest in epoch {cosine_epochs + 1} and rises again after it"
    return f"train.epochs is {epochs} and train.cosine_epochs {cosine_epochs}: {lowest}"


def make_optimizer(
    name: Literal["adam", "radam"], schedule: optax.Schedule, clip_norm: float | None = None
) -> optax.GradientTransformation:
    """Adam or rectified Adam with PyTorch's defaults, after clipping the gradient's global norm.

    Rectified Adam is optax's: it adds epsilon after the bias correction, PyTorch before, and computes the
    rectification in float32, which is 0.6 % off at its first step, the sixth.
    """
    optimizer = optax.adam(schedule) if name == "adam" else optax.radam(schedule)
    return optimizer if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)

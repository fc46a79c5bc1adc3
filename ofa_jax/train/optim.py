"""Optimizers and learning-rate schedules, as in the authors' scripts (protocol §2)."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax


def make_schedule(
    kind: Literal["cosine", "decay", "constant", "trapezoid"],
    learning_rate: float | jax.Array,
    steps_per_epoch: int,
    *,
    decay: float = 0.5,
    cosine_epochs: int = 20,
    min_learning_rate: float = 1e-8,
    epochs: int = 1,
) -> optax.Schedule:
    """Learning rate by step; but for ``trapezoid`` it changes between epochs only (protocol §2).

    ``decay`` multiplies by ``decay`` per epoch from the third on. ``cosine`` is the closed form of PyTorch's
    ``CosineAnnealingLR(T_max=cosine_epochs, eta_min=min_learning_rate)``. ``trapezoid``: linear from 0
    over the first 3 % of all steps, constant, linear to 0 over the last 35 %. The learning rate may be
    traced.
    """
    if kind == "constant":
        return optax.constant_schedule(learning_rate)

    if kind == "trapezoid":
        total = epochs * steps_per_epoch
        return lambda step: (
            learning_rate
            * jnp.clip(jnp.minimum((step + 1) / (0.03 * total), (total - step) / (0.35 * total)), 0, 1)
        )

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
    name: Literal["adam", "radam", "adamw"], schedule: optax.Schedule, clip_norm: float | None = None
) -> optax.GradientTransformation:
    """Adam or rectified Adam with PyTorch's defaults, after clipping the gradient's global norm.

    Rectified Adam is optax's: it adds epsilon after the bias correction, PyTorch before, and computes the
    rectification in float32, which is 0.6 % off at its first step, the sixth.
    ``adamw`` is for pretraining: b2 0.95, weight decay 0.05 on matrices.
    """
    if name == "adamw":
        optimizer = optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0.05, mask=_matrices)
    else:
        optimizer = optax.adam(schedule) if name == "adam" else optax.radam(schedule)
    return optimizer if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def _matrices(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)

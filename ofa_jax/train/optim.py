"""Optimisers and step-size schedules, as the authors' scripts have them (protocol §2)."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from ofa_jax.config import TrainConfig


def learning_rate(settings: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Step size by step number; it changes from epoch to epoch only.

    ``cosine`` is PyTorch's ``CosineAnnealingLR(T_max, eta_min)`` in closed form, stepped once per epoch (protocol §2).
    """
    if settings.schedule == "constant":
        return optax.constant_schedule(settings.learning_rate)
    highest, lowest = settings.learning_rate, settings.lowest_rate

    def cosine(step):
        epoch = step // steps_per_epoch
        return lowest + (highest - lowest) * (1 + jnp.cos(jnp.pi * epoch / settings.cosine_epochs)) / 2

    return cosine


def adam(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adam with PyTorch's defaults: decay rates 0.9 and 0.999, epsilon 1e-8 added to the root."""
    return optax.adam(schedule, b1=0.9, b2=0.999, eps=1e-8)

"""Optimisers and step-size schedules, as the authors' scripts have them (protocol §2)."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from ofa_jax.config import TrainConfig


def learning_rate(settings: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Step size by step number; it changes from epoch to epoch only.

    ``decay`` multiplies by ``settings.decay`` per epoch from the third on: the first two run at the full step size (protocol §2).
    ``cosine`` is PyTorch's ``CosineAnnealingLR(T_max, eta_min)`` in closed form, stepped once per epoch (protocol §2).
    """
    if settings.schedule == "constant":
        return optax.constant_schedule(settings.learning_rate)
    if settings.schedule == "decay":
        return lambda step: settings.learning_rate * settings.decay ** jnp.maximum(step // steps_per_epoch - 1, 0)
    highest, lowest = settings.learning_rate, settings.lowest_rate

    def cosine(step):
        epoch = step // steps_per_epoch
        return lowest + (highest - lowest) * (1 + jnp.cos(jnp.pi * epoch / settings.cosine_epochs)) / 2

    return cosine


def make_optimizer(settings: TrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser that the settings name, behind a limit on the norm of the whole gradient where they give one."""
    chosen = adam(schedule) if settings.optimizer == "adam" else radam(schedule)
    return chosen if settings.clip_norm is None else optax.chain(optax.clip_by_global_norm(settings.clip_norm), chosen)


def radam(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Rectified Adam (Liu et al., arXiv 1908.03265) with PyTorch's defaults."""
    return optax.radam(schedule, b1=0.9, b2=0.999, eps=1e-8)


def adam(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adam with PyTorch's defaults: decay rates 0.9 and 0.999, epsilon 1e-8 added to the root."""
    return optax.adam(schedule, b1=0.9, b2=0.999, eps=1e-8)

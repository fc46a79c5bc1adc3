"""Optimisers and step-size schedules, as the authors' scripts have them (protocol §2)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ofa_jax.config.schema import TrainConfig


def learning_rate(settings: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Step size by step number; it changes from epoch to epoch only.

    ``decay`` multiplies by ``settings.decay`` per epoch from the third on: the first two run at the full step size (protocol §2).
    ``cosine`` is PyTorch's ``CosineAnnealingLR(T_max, eta_min)`` in closed form, stepped once per epoch (protocol §2).
    """
    if settings.schedule == "constant":
        return optax.constant_schedule(settings.learning_rate)
    if settings.schedule == "decay":
        return lambda step: (
            settings.learning_rate * settings.decay ** jnp.maximum(step // steps_per_epoch - 1, 0)
        )
    highest, lowest = settings.learning_rate, settings.lowest_rate

    def cosine(step):
        epoch = step // steps_per_epoch
        return lowest + (highest - lowest) * (1 + jnp.cos(jnp.pi * epoch / settings.cosine_epochs)) / 2

    return cosine


def make_optimizer(settings: TrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser that the settings name, behind a limit on the norm of the whole gradient where they give one."""
    chosen = adam(schedule) if settings.optimizer == "adam" else radam(schedule)
    return (
        chosen
        if settings.clip_norm is None
        else optax.chain(optax.clip_by_global_norm(settings.clip_norm), chosen)
    )


def radam(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Rectified Adam (Liu et al., arXiv 1908.03265) with PyTorch's defaults: decay rates 0.9 and 0.999, epsilon 1e-8.

    As in PyTorch, epsilon is added to the root before its bias is corrected. ``optax.radam`` adds it after, and works the
    rectification out in float32, where it cancels: 0.6 % off at its first step, the sixth.
    """
    return optax.chain(_scale_by_radam(), optax.scale_by_learning_rate(schedule))


def _scale_by_radam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    mean_correction, root_factor = _radam_tables(b1, b2)

    def init(params: Any) -> optax.ScaleByAdamState:
        mean, square = (
            jax.tree.map(jnp.zeros_like, params) for _ in range(2)
        )  # no buffer twice: the state is donated
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mean, square)

    def update(
        gradients: Any, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradients)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, gradients)
        place = jnp.minimum(state.count, len(root_factor) - 1)
        correction, factor = jnp.asarray(mean_correction)[place], jnp.asarray(root_factor)[place]

        def direction(m: jax.Array, v: jax.Array) -> jax.Array:
            return m * correction * jnp.where(factor > 0, factor / (jnp.sqrt(v) + eps), 1)

        return jax.tree.map(direction, mean, square), optax.ScaleByAdamState(state.count + 1, mean, square)

    return optax.GradientTransformation(init, update)


def _radam_tables(b1: float, b2: float) -> tuple[np.ndarray, np.ndarray]:
    """By step: ``1 / (1 - b1^t)``, and rectification times ``sqrt(1 - b2^t)``, 0 where the step is not rectified; float32.

    They end where both are 1 to float32's last digit.
    """
    step = np.arange(1, 20_001, dtype=np.float64)
    decayed, longest = b2**step, 2 / (1 - b2) - 1
    length = longest - 2 * step * decayed / (1 - decayed)
    known = np.where(length > 5, length, 5)
    rectified = np.sqrt((known - 4) * (known - 2) * longest / ((longest - 4) * (longest - 2) * known))
    factor = np.where(length > 5, rectified * np.sqrt(1 - decayed), 0)
    return (1 / (1 - b1**step)).astype(np.float32), factor.astype(np.float32)


def adam(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adam with PyTorch's defaults: decay rates 0.9 and 0.999, epsilon 1e-8 added to the root."""
    return optax.adam(schedule, b1=0.9, b2=0.999, eps=1e-8)

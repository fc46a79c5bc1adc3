"""Series for pretraining by number: a random family or a mix of several, changed by overlays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ofa_jax.prior.families import Draw, autoregression, draw_family, smooth_noise, standardized

VERSION = "prior-3"
"""Named in every pretrained trunk: a series depends on it, the seed and the number alone."""


@dataclass(frozen=True)
class Prior:
    """Random access to generated series; any worker draws any of them.

    Attributes:
        seed: Seed of all series.
        length: Steps T of a series.
        size: How many numbers there are.
    """

    seed: int
    length: int
    size: int = 2**31 - 1

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> np.ndarray:
        """Series ``number`` as ``[T]`` float32 of about unit scale, NaN where it is not observed."""
        draw = np.random.Generator(np.random.Philox(key=[self.seed, int(number)]))
        return draw_series(draw, self.length).astype(np.float32)


def draw_series(draw: Draw, n: int) -> np.ndarray:
    """One series ``[n]``: a family or a mix, resampled, flipped, and with overlays."""
    factor = int(draw.choice([1, 1, 1, 1, 2, 3, 4]))  # decimated, so that other frequencies arise
    series = draw_family(draw, n * factor)[draw.integers(factor) :: factor]
    if draw.random() < 0.25:
        weight = draw.dirichlet(np.full(2, 1.5))
        series = weight[0] * series + weight[1] * draw_family(draw, n)
    if draw.random() < 0.4:  # a level that wanders and comes back
        kept = np.exp(-1 / np.exp(draw.uniform(np.log(3), np.log(n / 4))))
        level = autoregression(draw, n, np.array([kept])) * np.sqrt(1 - kept * kept)
        series = series + level * np.exp(draw.uniform(-1.5, 0.3))
    if draw.random() < 0.5:
        series = -series
    if draw.random() < 0.1:
        series = series[::-1]
    if draw.random() < 0.08:
        series = series * np.exp(draw.uniform(0.3, 1.5) * smooth_noise(draw, n, draw.uniform(1, 6)))
    return overlaid(draw, standardized(series))


def overlaid(draw: Draw, series: np.ndarray) -> np.ndarray:
    """Spikes, shifts of level, limits, whole numbers, missing steps and blocks."""
    n = len(series)
    if draw.random() < 0.1:
        hit = draw.random(n) < draw.uniform(0.5, 8) / n
        series = series + hit * draw.standard_t(3, n) * draw.uniform(2, 6)
    if draw.random() < 0.07:
        series = series + (np.arange(n) >= draw.integers(n)) * draw.normal() * 2
    if draw.random() < 0.06:
        low, high = np.quantile(series, [draw.uniform(0, 0.3), draw.uniform(0.8, 1)])
        series = np.clip(series, low, high)
    if draw.random() < 0.1:
        grain = np.exp(draw.uniform(-3, -0.3))
        series = np.round(series / grain) * grain
    if draw.random() < 0.1:
        missing = draw.random(n) < draw.uniform(0, 0.1)
        for _ in range(draw.integers(0, 3)):
            first = draw.integers(n)
            missing[first : first + draw.integers(1, max(2, n // 12))] = True
        series = np.where(missing, np.nan, series)
    return np.clip(series, -1e4, 1e4)

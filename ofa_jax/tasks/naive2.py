"""Naive2, the M4 competition's reference: the last seasonally adjusted value, with seasonal indices."""

from __future__ import annotations

import numpy as np

_CRITICAL = 1.645
"""90 % quantile (two-sided) of the normal distribution, as the competition tests for seasonality."""


def naive2(insample: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """Forecast ``[h]`` of the steps after ``insample`` ``[T]``, as the M4 competition's ``Naive2``.

    Where the series is not seasonal (:func:`is_seasonal`) or an index is not positive: the last value.
    """
    last = np.full(horizon, insample[-1], np.float64)
    if not is_seasonal(insample, season):
        return last
    indices = seasonal_indices(insample, season)
    if not (indices > 0).all():
        return last
    ahead = (len(insample) + np.arange(horizon)) % season
    return insample[-1] / indices[(len(insample) - 1) % season] * indices[ahead]


def is_seasonal(insample: np.ndarray, season: int) -> bool:
    """The competition's test: autocorrelation at lag ``season`` beyond the 90 % limit; needs three cycles."""
    if season <= 1 or len(insample) < 3 * season:
        return False
    centred = insample - insample.mean()
    power = centred @ centred
    if np.ptp(insample) == 0 or power == 0:  # the mean of equal values may be a rounding away from them
        return False
    correlation = np.array([centred[lag:] @ centred[:-lag] for lag in range(1, season + 1)]) / power
    limit = _CRITICAL * np.sqrt((1 + 2 * np.square(correlation[:-1]).sum()) / len(insample))
    return bool(abs(correlation[-1]) > limit)


def seasonal_indices(insample: np.ndarray, season: int) -> np.ndarray:
    """Multiplicative indices ``[season]`` of steps i + k·season, by classical decomposition; their mean is 1.

    Needs two full cycles. Steps where value and trend are both 0 are ignored; an index without steps is NaN.
    """
    weights = np.ones(season + 1 - season % 2)
    if season % 2 == 0:
        weights[[0, -1]] = 0.5
    half = len(weights) // 2
    step = np.arange(half, len(insample) - half)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = insample[step] / np.convolve(insample, weights / season, mode="valid")
        known = ~np.isnan(ratio)
        counts = np.bincount(step[known] % season, minlength=season)
        indices = np.bincount(step[known] % season, ratio[known], minlength=season) / counts
        return indices / indices.mean()

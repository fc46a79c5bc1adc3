"""Prediction intervals: a pretrained forecaster's quantiles, and split conformal calibration of them.

Errors of n held-out windows are divided by the spread that the quantiles state for their step (separately
above and below the median), so that they can be pooled over series. Per step of the horizon a level then
takes the ⌈(n + 1)(1 + level) / 2⌉-th smallest of them upwards, and the same downwards, which covers at least
that share where windows are exchangeable (Vovk et al.; Romano et al. 2019). Where n is too small for that, it
takes the ⌈(n + 1) level⌉-th smallest of their sizes (Lei et al. 2018), at least the farthest of each side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from ofa_jax.errors import ConfigError, DataError
from ofa_jax.model.gpt2 import LEVELS

Method = Literal["split", "adaptive"]
_MIDDLE = len(LEVELS) // 2
_HUGE = 1e30  # an error where no spread is stated; float32 holds it
ENOUGH = 20
"""Windows of each series that ``n_windows="auto"`` takes where series are long enough; 95 % needs 19."""
_RATE = 0.05
"""Step of the adaptive level (gamma of Gibbs and Candès 2021)."""


@dataclass(frozen=True)
class PredictionIntervals:
    """How intervals are calibrated.

    Attributes:
        n_windows: Held-out windows per series, the last ones; default: as many as the validation part has, or
            more, up to :data:`ENOUGH`, from the last two thirds of a series of median length. Those before
            the validation part are among the windows that ``fit`` trains on.
        method: ``split``; or ``adaptive``, which goes through the windows in time and raises or lowers the
            level by how often the last ones were covered (for series that drift).
        step_size: Steps from one window to the next; default: the horizon, so that targets do not overlap.
        pool: Whether errors of all series are taken together, or those of each by itself.
    """

    n_windows: int | Literal["auto"] = "auto"
    method: Method = "split"
    step_size: int | Literal["auto"] = "auto"
    pool: Literal["all", "series"] = "all"

    def __post_init__(self) -> None:
        for name in ("n_windows", "step_size"):
            value = getattr(self, name)
            if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(
                    f"{name} is {value!r}", where="prediction_intervals", fix="Give 1 or more, or 'auto'"
                )
        for name, options in (("method", ("split", "adaptive")), ("pool", ("all", "series"))):
            if getattr(self, name) not in options:
                what = f"{name} is {getattr(self, name)!r}"
                raise ConfigError(what, where="prediction_intervals", fix=f"Give one of {', '.join(options)}")

    def cuts(self, lengths_n: np.ndarray, horizon: int, held_out: int | None) -> np.ndarray:
        """How many steps of each series precede its held-out windows, ``[windows, n]``, oldest window first.

        Some are below 0 where series are short. ``held_out`` is the validation part of each; without one a
        fifth of the median length.
        """
        step = horizon if self.step_size == "auto" else self.step_size
        median, longest = int(np.median(lengths_n)), int(lengths_n.max())
        validation = median // 5 if held_out is None else held_out
        several = min(ENOUGH, (2 * median // 3 - horizon) // step + 1)
        enough = max((validation - horizon) // step + 1, several)
        windows = enough if self.n_windows == "auto" else self.n_windows
        windows = max(1, min(windows, (longest - horizon) // step + 1))
        return lengths_n - horizon - step * np.arange(windows - 1, -1, -1)[:, None]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Errors of held-out windows.

    Attributes:
        errors: ``[windows, series, h]``, oldest window first: the error in units of the spread on its side of
            the median, below 0 where the value is below it; NaN where there was no window or no value.
        settings: How they are used.
    """

    errors: np.ndarray
    settings: PredictionIntervals

    def reach(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """How many spreads an interval reaches below and above the median: ``[1, h]``, or ``[series, h]``.

        Raises:
            DataError: There are too few windows for the level.
        """
        _, series, horizon = self.errors.shape
        groups = series if self.settings.pool == "series" else 1
        errors_wkgh = self.errors.reshape(len(self.errors), -1, groups, horizon)
        share, fewest = level / 100, int(np.isfinite(errors_wkgh).sum(axis=(0, 1)).min())
        if fewest < (least := _least(share)):
            what = f"{level:g} % intervals need {least} held-out windows, and there are {fewest}"
            fix = "Give more windows (PredictionIntervals(n_windows=…)) or longer series"
            best = math.floor(100 * fewest / (fewest + 1))
            raise DataError(what, fix=f"{fix}, or a level of at most {best}" if best else fix)
        of_side = (1 + share) / 2
        errors_kgh = errors_wkgh.reshape(-1, groups, horizon)
        sides = (-errors_kgh, errors_kgh)
        if self.settings.method == "adaptive":
            below = above = self._adapted(np.abs(errors_wkgh), share)
        elif fewest >= _least(of_side):
            below, above = (
                np.maximum(_ranked(side, np.full((groups, horizon), of_side)), 0) for side in sides
            )
        else:
            both = _ranked(np.abs(errors_kgh), np.full((groups, horizon), share))
            below, above = (np.maximum(both, np.nanmax(side, axis=0)) for side in sides)
        return below, above

    def _adapted(self, sizes_wkgh: np.ndarray, share: float) -> np.ndarray:
        """The size that this share of errors does not exceed, ``[g, h]``, adapted window by window."""
        windows, _, groups, horizon = sizes_wkgh.shape
        asked = np.full((groups, horizon), share)
        for number in range(1, windows):
            new = sizes_wkgh[number]
            reach = _ranked(sizes_wkgh[:number].reshape(-1, groups, horizon), asked)
            count = np.isfinite(new).sum(axis=0)
            missed = (new > reach).sum(axis=0) / np.maximum(count, 1)
            asked = np.where(count > 0, asked + _RATE * (missed - (1 - share)), asked)
        sizes_kgh = sizes_wkgh.reshape(-1, groups, horizon)
        reach = _ranked(sizes_kgh, np.clip(asked, 0, 1))
        return np.where(np.isinf(reach), np.nanmax(sizes_kgh, axis=0), reach)


def _least(share: float) -> int:
    """How many errors have a ⌈(n + 1) · share⌉-th smallest one."""
    return math.ceil(share / (1 - share) - 1e-9)


def _ranked(errors_kgh: np.ndarray, share_gh: np.ndarray) -> np.ndarray:
    """The ⌈(n + 1) · share⌉-th smallest of n errors, ``[g, h]``; infinite where there are fewer."""
    count = np.isfinite(errors_kgh).sum(axis=0)
    rank = np.maximum(np.ceil((count + 1) * share_gh - 1e-9).astype(int), 1)
    ordered = np.sort(errors_kgh, axis=0)  # NaN last
    found = np.take_along_axis(ordered, np.minimum(rank, len(ordered))[None] - 1, axis=0)[0]
    return np.where(rank > count, np.inf, found)


def scaled_errors(levels_whq: np.ndarray, target_wh: np.ndarray) -> np.ndarray:
    """Errors ``[w, h]`` in units of the spread on their side of the median."""
    median = levels_whq[..., _MIDDLE]
    above, below = _spreads(levels_whq)
    error = target_wh - median
    size, spread = np.abs(error), np.where(error >= 0, above, below)
    scaled = np.divide(size, spread, out=np.full_like(size, _HUGE), where=spread > 0)
    return np.sign(error) * np.where(size == 0, 0, np.minimum(scaled, _HUGE))  # NaN where there is no target


def interval(
    levels_nhq: np.ndarray, level: float, calibration: Calibration | None
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of an interval, ``[n, h]`` each; without calibration by the quantiles alone."""
    if calibration is None:
        share = (1 - level / 100) / 2
        return quantile(levels_nhq, share), quantile(levels_nhq, 1 - share)
    median = levels_nhq[..., _MIDDLE]
    above, below = _spreads(levels_nhq)
    reach_below, reach_above = calibration.reach(level)
    return median - reach_below * below, median + reach_above * above


def quantile(levels_nhq: np.ndarray, share: float) -> np.ndarray:
    """The quantile ``share`` ``[n, h]``: linear between the levels, normal beyond them."""
    if LEVELS[0] <= share <= LEVELS[-1]:
        at = (share - LEVELS[0]) / (LEVELS[1] - LEVELS[0])
        left = min(int(at + 1e-9), len(LEVELS) - 2)
        weight = at - left
        if weight < 1e-9:  # other levels may be unknown
            return levels_nhq[..., left]
        return levels_nhq[..., left] * (1 - weight) + levels_nhq[..., left + 1] * weight
    median = levels_nhq[..., _MIDDLE]
    edge, normal = 0 if share < LEVELS[0] else -1, NormalDist()
    factor = normal.inv_cdf(share) / normal.inv_cdf(LEVELS[edge])
    return median + (levels_nhq[..., edge] - median) * factor


def _spreads(levels_nhq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances from the median to the highest and to the lowest level."""
    median = levels_nhq[..., _MIDDLE]
    return levels_nhq[..., -1] - median, median - levels_nhq[..., 0]


def result_columns(
    name: str,
    mean_nh: np.ndarray,
    levels_nhq: np.ndarray,
    calibration: Calibration | None,
    level: Sequence[float] | float | None,
    quantiles: Sequence[float] | float | None,
) -> dict[str, np.ndarray]:
    """The columns of a forecast, ``[n, h]`` each, in their order: mean, ends of intervals, quantiles.

    Raises:
        ConfigError: A level or quantile is out of range.
        DataError: There are too few held-out windows for one.
    """
    levels = check_levels(level)
    if calibration is not None:
        calibration = replace(calibration, errors=calibration.errors[..., : mean_nh.shape[1]])
    ends = {one: interval(levels_nhq, one, calibration) for one in levels}
    found = {name: mean_nh}
    found |= {f"{name}-lo-{one:g}": ends[one][0] for one in reversed(levels)}
    found |= {f"{name}-hi-{one:g}": ends[one][1] for one in levels}
    for share in check_quantiles(quantiles):
        if calibration is None or share == 0.5:
            found[f"{name}_ql{share:g}"] = quantile(levels_nhq, share)
        else:
            both = interval(levels_nhq, 100 * abs(1 - 2 * share), calibration)
            found[f"{name}_ql{share:g}"] = both[share > 0.5]
    return found


def check_settings(given: Any) -> None:
    """Refuse what is neither :class:`PredictionIntervals` nor None.

    Raises:
        ConfigError: It is something else.
    """
    if given is not None and not isinstance(given, PredictionIntervals):
        fix = "Give PredictionIntervals(), or leave it out"
        raise ConfigError(f"it is {given!r}", where="prediction_intervals", fix=fix)


def check_levels(level: Sequence[float] | float | None) -> list[float]:
    """Levels in percent, ascending.

    Raises:
        ConfigError: One is not between 1 and 100.
    """
    found = sorted(_numbers_between(level, 0, 100, "level", "percentages such as 90"))
    if found and found[0] < 1:
        what = f"{found[0]:g} is in percent, so next to nothing"
        raise ConfigError(what, where="level", fix=f"Give {100 * found[0]:g} for the share {found[0]:g}")
    return found


def check_quantiles(quantiles: Sequence[float] | float | None) -> list[float]:
    """Quantiles between 0 and 1, ascending.

    Raises:
        ConfigError: One is not.
    """
    return sorted(_numbers_between(quantiles, 0, 1, "quantiles", "shares such as 0.9"))


def _numbers_between(given: Any, low: float, high: float, name: str, kind: str) -> list[float]:
    if given is None:
        return []
    several = isinstance(given, Sequence | np.ndarray) and not isinstance(given, str)
    values = list(given) if several else [given]
    for value in values:
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not low < value < high:
            fix = f"Give {kind}, above {low} and below {high}"
            raise ConfigError(f"{value!r} is out of range", where=name, fix=fix)
    if len(set(values)) < len(values):
        raise ConfigError(f"{values} has a value twice", where=name, fix="Give each once")
    return [float(value) for value in values]

"""Gaps of series, filled between a straight line and forecasts of a pretrained trunk from both sides."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ofa_jax.build import Model
from ofa_jax.errors import DataError
from ofa_jax.estimators.engine import LEAST, forecast_windows
from ofa_jax.estimators.panel import Panel

SIZES = (1, 2, 4, 8, 16, 32)
"""Steps from which on a gap is of the next size; each size has its weight."""
_TRIED = 128
"""Gaps of each size that weights are found with."""
_AT_ONCE = 2048
_LEAST_WEIGHT = 0.1
"""Of forecasts; a smaller one is 0, which saves the forecasts of short gaps."""


class Gaps(NamedTuple):
    """Runs of missing steps: the series of each, its first step and the step after its last, ``[g]``."""

    series: np.ndarray
    begin: np.ndarray
    end: np.ndarray


class _Steps(NamedTuple):
    """The steps of gaps, one after the other: rows, and two values of each, ``[s]``; NaN where unknown."""

    gap: np.ndarray
    rows: np.ndarray
    line: np.ndarray
    forecast: np.ndarray


def size_of(steps: np.ndarray) -> np.ndarray:
    """The index into :data:`SIZES` of gaps of so many steps."""
    return np.searchsorted(SIZES, steps, side="right") - 1


def find_gaps(panel: Panel) -> Gaps:
    """Every run of missing values."""
    gone = ~np.isfinite(panel.values)
    edge = np.diff(panel.series, prepend=-1, append=-1) != 0
    opens = np.flatnonzero(gone & (edge[:-1] | ~np.append(False, gone[:-1])))
    closes = np.flatnonzero(gone & (edge[1:] | ~np.append(gone[1:], False)))
    series = panel.series[opens]
    return Gaps(series, opens - panel.first[series], closes + 1 - panel.first[series])


def find_weights(model: Model, panel: Panel, seed: int) -> list[float]:
    """How much forecasts count against a straight line, 0 to 1, by the size of a gap.

    Values that are there are hidden, and weights are those of least squares; sizes that no series has room
    for take the weight of the next smaller one.

    Raises:
        DataError: No series has room for a gap of one step.
    """
    draw, weights = np.random.default_rng(seed), [0.0] * len(SIZES)
    scale = panel.seasonal_change(panel.lengths)
    for number, least in enumerate(SIZES):
        room = panel.lengths - 2 * LEAST - 2 * least + 1
        usable = np.flatnonzero((room > 0) & (scale > 0))
        if not len(usable):
            if number:
                weights[number:] = [weights[number - 1]] * (len(SIZES) - number)
                break
            longest, needed = int(panel.lengths.max()), 2 * LEAST + 2
            what = f"no series that varies has {needed} steps, the longest of all has {longest}"
            raise DataError(what, fix="Give longer series")
        share = room[usable] / room[usable].sum()
        series = draw.choice(usable, _TRIED, p=share)
        begin = LEAST + draw.integers(room[series])
        tried = Gaps(series, begin, begin + draw.integers(least, 2 * least, _TRIED))
        found = _at(model, panel, tried)
        target, unit = panel.values[found.rows], scale[tried.series[found.gap]]
        apart = (found.forecast - found.line) / unit
        wanted = (target - found.line) / unit
        known = np.isfinite(apart) & np.isfinite(wanted)
        total = float(np.square(apart[known]).sum())
        weight = float((apart[known] * wanted[known]).sum()) / total if total > 0 else 0.0
        weights[number] = min(weight, 1.0) if weight >= _LEAST_WEIGHT else 0.0
    return weights


def fill_gaps(model: Model, panel: Panel, weights: list[float]) -> np.ndarray:
    """The values ``[rows]`` float64 with the missing ones filled.

    Gaps at an end of a series are forecast. Steps that are farther from both ends of a gap than the model
    forecasts are on the straight line.
    """
    values, gaps = panel.values.copy(), find_gaps(panel)
    weight = np.array(weights)[size_of(gaps.end - gaps.begin)]
    weight = np.where((gaps.begin == 0) | (gaps.end == panel.lengths[gaps.series]), 1, weight)
    for chosen in (weight == 0, weight > 0):
        for part in _parts(np.flatnonzero(chosen)):
            own, share = Gaps(*(column[part] for column in gaps)), weight[part]
            found = _at(model if share.any() else None, panel, own)
            ahead = np.where(np.isfinite(found.forecast), found.forecast, found.line)
            values[found.rows] = found.line + share[found.gap] * (ahead - found.line)
    return values


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, -(-len(rows) // _AT_ONCE)) if len(rows) else []


def _at(model: Model | None, panel: Panel, gaps: Gaps) -> _Steps:
    """Straight line and forecasts of the steps of gaps; what is in them is not read."""
    steps = gaps.end - gaps.begin
    gap = np.repeat(np.arange(len(steps)), steps)
    place = np.arange(len(gap)) - np.repeat(np.cumsum(steps) - steps, steps)
    rows = (panel.first[gaps.series] + gaps.begin)[gap] + place
    after = (steps[gap] - place) / (steps[gap] + 1)  # how much the value before the gap counts
    left, right = (_edge(panel, gaps, side) for side in (-1, 1))
    left, right = np.where(np.isfinite(left), left, right), np.where(np.isfinite(right), right, left)
    line = after * left[gap] + (1 - after) * right[gap]
    if model is None:
        return _Steps(gap, rows, line, np.full(len(rows), np.nan))
    length = model.network.input_length
    ahead = _ahead(model, panel.before(gaps.series, gaps.begin, length))
    back = _ahead(model, panel.after(gaps.series, gaps.end, length)[:, ::-1])
    forward, backward = (
        np.where(at < made.shape[1], made[gap, np.minimum(at, made.shape[1] - 1)], np.nan)
        for made, at in ((ahead, place), (back, steps[gap] - 1 - place))
    )
    forward_known, backward_known = np.isfinite(forward), np.isfinite(backward)
    both = after * np.where(forward_known, forward, 0) + (1 - after) * np.where(backward_known, backward, 0)
    one = np.where(forward_known, forward, backward)
    return _Steps(gap, rows, line, np.where(forward_known & backward_known, both, one))


def _edge(panel: Panel, gaps: Gaps, side: int) -> np.ndarray:
    """The value next to each gap, ``[g]``; NaN where there is none."""
    at = gaps.begin - 1 if side < 0 else gaps.end
    return panel.after(gaps.series, at, 1)[:, 0]


def _ahead(model: Model, inputs_wt: np.ndarray) -> np.ndarray:
    """Forecasts ``[w, h]``; NaN where there is nothing to read."""
    some = np.isfinite(inputs_wt).any(axis=1)
    made = np.full((len(inputs_wt), getattr(model.network, "horizon", 0)), np.nan)
    if some.any():
        made[some] = forecast_windows(model, inputs_wt[some]).mean
    return made

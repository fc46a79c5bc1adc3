"""Columns of numbers that are not series: counters, identifiers, and times or dates in digits."""

from __future__ import annotations

import re

import numpy as np

_DATED = {"date", "datetime", "time", "timestamp", "ts", "unix", "epoch", "seconds", "ms"}
_COUNTING = {"index", "idx", "id", "no", "nr", "number", "row", "step", "t", "seq", "obs", "unnamed"}
_IDENTIFIERS = {"id", "uid", "uuid", "identifier"}
_PARTS = {
    "year": (1600, 2400),
    "quarter": (1, 4),
    "month": (1, 12),
    "week": (1, 53),
    "day": (1, 366),
    "weekday": (0, 7),
    "hour": (0, 24),
    "minute": (0, 59),
    "second": (0, 59),
}
"""Parts of a date that a column can be named after, with their range."""

_EPOCHS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
_SINCE, _UNTIL = 10**8, 41 * 10**8  # seconds since 1970, in the years 1973 to 2099
_LEAST_ROWS, _LEAST_NAMED = 10, 3  # of a counter whose name says nothing, and of one whose name says it


def no_series(name: str, values: np.ndarray, *, alone: bool = False) -> str | None:
    """What a column ``[T]`` is that only looks like a series; None where it may be one.

    A counter has a constant step; a date in digits (``20240131``, ``202401``) or a time since 1970 never
    decreases (or never increases). Names decide only where they say it: ``id``, ``year``, ``hour``. Where
    a table has no other columns (``alone``), they are counters only by name: there is nothing to count.
    """
    words = set(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower().split())
    words = {re.sub(r"\W", "", word) for word in words}
    rows = np.flatnonzero(np.isfinite(values))
    if len(rows) < _LEAST_NAMED:
        return None
    between = np.interp(np.arange(rows[0], rows[-1] + 1), rows, values[rows])  # missing ones interpolated
    values = values[rows]
    with np.errstate(over="ignore"):
        steps = np.diff(between)
    whole = bool((values == np.rint(values)).all())
    ordered = bool((steps >= 0).all() or (steps <= 0).all()) and len(np.unique(values)) >= _LEAST_NAMED
    if whole and ordered and (found := _date_in_digits(values) or _epoch(values, steps, words)):
        return found
    part = next((part for part in _PARTS if words == {part}), None)
    if whole and part is not None and _within(values, *_PARTS[part]):
        return "a part of a date"
    named = bool(words & (_DATED | _COUNTING | set(_PARTS)))
    long_enough = named or (len(values) >= _LEAST_ROWS and not alone)
    if long_enough and _is_counter(values, steps, named):
        return "a counter"
    return "an identifier" if whole and words & _IDENTIFIERS else None


def _is_counter(values: np.ndarray, steps: np.ndarray, named: bool) -> bool:
    step = float(np.median(steps))
    rounding = 8 * np.finfo(float).eps * float(np.abs(values).max())
    tolerance = 0.05 if named else 1e-9  # times rounded to some decimals
    return step != 0 and bool((np.abs(steps - step) <= tolerance * abs(step) + rounding).all())


def _within(values: np.ndarray, low: float, high: float) -> bool:
    return bool(low <= values.min() and values.max() <= high)


def _date_in_digits(values: np.ndarray) -> str | None:
    for digits, clock in ((8, ()), (6, ()), (10, (24,)), (12, (24, 60)), (14, (24, 60, 60))):
        if not _within(values, 18 * 10 ** (digits - 2), 22 * 10 ** (digits - 2)):
            continue
        rest, fits = values, True
        for size in reversed(clock):
            rest, part = np.divmod(rest, 100)
            fits = fits and _within(part, 0, size - 1)
        if digits != 6:
            rest, day = np.divmod(rest, 100)
            fits = fits and _within(day, 1, 31)
        if fits and _within(rest % 100, 1, 12):
            return "a date in digits"
    return None


def _epoch(values: np.ndarray, steps: np.ndarray, words: set[str]) -> str | None:
    kinds, counts = np.unique(steps, return_counts=True)
    regular = bool(2 * counts.max() >= len(steps) and kinds[np.argmax(counts)] != 0)
    for unit, per_second in _EPOCHS.items():
        if _within(values, _SINCE * per_second, _UNTIL * per_second) and (regular or words & _DATED):
            return f"a time in {unit} since 1970"
    return None

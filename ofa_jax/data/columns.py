"""Columns of numbers that are not series: counters, identifiers, and times or dates in digits."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ofa_jax.data.dates import EPOCHS, YEARS, digits_of
from ofa_jax.data.tables import Table, as_list
from ofa_jax.errors import DataError

_DATED = {"date", "datetime", "time", "timestamp", "ts", "unix", "epoch", "seconds", "ms"}
_COUNTING = {"index", "idx", "id", "no", "nr", "number", "row", "step", "t", "seq", "obs", "unnamed"}
_IDENTIFIERS = {"id", "uid", "uuid", "identifier"}
PARTS = {
    "year": (YEARS.low, YEARS.high),
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

_LEAST_ROWS, _LEAST_NAMED = 10, 3  # of a counter whose name says nothing, and of one whose name says it


def no_series(name: str, values: np.ndarray, *, alone: bool = False) -> str | None:
    """What a column ``[T]`` is that only looks like a series; None where it may be one.

    A counter has a constant step; a date in digits (``20240131``, ``202401``) or a time since 1970 never
    decreases (or never increases). Names decide only where they say it: ``id``, ``year``, ``hour``. Where
    a table has no other columns (``alone``), they are counters only by name: there is nothing to count.
    """
    words = words_of(name)
    rows = np.flatnonzero(np.isfinite(values))
    if len(rows) < _LEAST_NAMED:
        return None
    between = np.interp(np.arange(rows[0], rows[-1] + 1), rows, values[rows])  # missing ones interpolated
    values = values[rows]
    with np.errstate(over="ignore"):
        steps = np.diff(between)
    whole = bool((values == np.rint(values)).all())
    ordered = bool((steps >= 0).all() or (steps <= 0).all()) and len(np.unique(values)) >= _LEAST_NAMED
    digits = digits_of(values) if whole and ordered else None
    if digits is not None and digits.form not in EPOCHS:
        return "a date in digits"
    if digits is not None and (words & _DATED or _is_regular(steps)):
        return f"a time in {digits.words}"
    part = next((part for part in PARTS if words == {part}), None)
    if whole and part is not None and _within(values, *PARTS[part]):
        return "a part of a date"
    named = bool(words & (_DATED | _COUNTING | set(PARTS)))
    long_enough = named or (len(values) >= _LEAST_ROWS and not alone)
    if long_enough and _is_counter(values, steps, named):
        return "a counter"
    return "an identifier" if whole and words & _IDENTIFIERS else None


def words_of(name: str) -> set[str]:
    """The words of a column's name, in lower case."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower().split()
    return {re.sub(r"\W", "", word) for word in words}


def _is_counter(values: np.ndarray, steps: np.ndarray, named: bool) -> bool:
    step = float(np.median(steps))
    rounding = 8 * np.finfo(float).eps * float(np.abs(values).max())
    tolerance = 0.05 if named else 1e-9  # times rounded to some decimals
    return step != 0 and bool((np.abs(steps - step) <= tolerance * abs(step) + rounding).all())


def require_series(table: Table, names: Sequence[str], values: np.ndarray, *, timed: bool) -> None:
    """Refuse columns that are no series: they would be trained on and forecast.

    Raises:
        DataError: A column is a counter, an identifier or a time; ``past`` leaves it out.
    """
    columns = list(zip(names, values.T, strict=True))
    kinds = [no_series(name, column) for name, column in columns]
    if all(kinds):
        kinds = [no_series(name, column, alone=True) for name, column in columns]
    wrong = {name: kind for name, kind in zip(names, kinds, strict=True) if kind}
    if not wrong:
        return
    first, *others = wrong
    cells = ", ".join(f"{value:.15g}" for value in values[:3, names.index(first)])
    what = f"{cells}, … is {wrong[first]}, not a series"
    if others:
        what += "; so are " + ", ".join(f"`{name}` ({wrong[name]})" for name in others)
    left_out = table.columns_of(list(wrong))
    past: dict[str, object] = {"exclude": left_out}
    fix = f"Leave it out with `exclude: {as_list(left_out)}`"
    if len(wrong) == len(names):
        fix, past = "Give at least one series", {}
    parts = {next(iter(words)): name for name in wrong if len(words := words_of(name)) == 1}
    if not timed and {"year", "month"} <= set(parts) and not {"day", "week", "hour"} & set(parts):
        both = f"{parts['year']} + {parts['month']}"
        fix, past = f"Read both as the time with `timestamp_column: {both}`", {"timestamp_column": both}
        fix += f", or leave both out with `exclude: {as_list(left_out)}`"
    elif not timed:
        fix += f", or read it as the time with `timestamp_column: {first}`"
    fix += ", or list the series in `columns`"
    raise DataError(what, where=table.place(first, None), fix=fix, past=past)


def _is_regular(steps: np.ndarray) -> bool:
    """Whether half of the steps are equal."""
    kinds, counts = np.unique(steps, return_counts=True)
    return bool(2 * counts.max() >= len(steps) and kinds[np.argmax(counts)] != 0)


def _within(values: np.ndarray, low: float, high: float) -> bool:
    return bool(low <= values.min() and values.max() <= high)

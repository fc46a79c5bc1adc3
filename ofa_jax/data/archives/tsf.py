"""Monash `.tsf`: collections of single series (Monash Time Series Forecasting Archive)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ofa_jax.config.tasks import Missing
from ofa_jax.data.archives.records import SeriesCollection
from ofa_jax.data.archives.text import CUT_SHORT, Header, fill, numbers, place, read_lines
from ofa_jax.data.calendar import Months, days_of_month, following, step_of
from ofa_jax.data.seasons import ARCHIVE_ALIASES
from ofa_jax.data.tables import NUMBER
from ofa_jax.errors import DataError, shorten

if TYPE_CHECKING:
    import pandas as pd

_TAGS = ("relation", "attribute", "frequency", "horizon", "missing", "equallength")
_TYPES = ("string", "numeric", "date")
_NAME, _START = "series_name", "start_timestamp"
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}-[0-9]{2}-[0-9]{2}")


def read_tsf(path: str | Path, *, missing: Missing = "error") -> SeriesCollection:
    """A Monash archive file, ``.tsf``, packed or not; every series complete, its test part at its end.

    A series begins with its first value: missing ones before it are left out. Attributes other than the
    series' names and starts are checked and not kept.

    Args:
        path: The file.
        missing: Policy for ``?`` and ``NaN``: refuse them, interpolate, or carry the last value forward.

    Raises:
        DataError: Anything that is not as the header says or cannot be read as asked, with file and line.
    """
    path = Path(path)
    notices: list[str] = []
    lines = read_lines(path, notices)
    header = Header(path, lines, _TAGS, several=("attribute",))
    attributes = _attributes(header, path)
    never_missing = header.never_missing
    horizon, frequency = header.count("horizon"), header.text("frequency")

    line_of: dict[str, int] = {}
    values, observed, lengths, begins, starts = [], [], [], [], []
    for number, line in lines:
        if not line:
            continue
        where = place(path, number)
        fields = line.split(":")
        if line.startswith("@") or len(fields) != len(attributes) + 1:
            what = f"has {len(fields)} part(s) separated by `:` where the header makes {len(attributes) + 1}"
            fix = "Correct the line; it may be cut short or be in the wrong place"
            raise DataError(what, where=where, fix=fix)
        cells = {name: cell.strip() for name, cell in zip(attributes, fields, strict=False)}
        for name, cell in cells.items():
            _check_cell(name, attributes[name], cell, where)
        series = cells[_NAME]
        if series in line_of:
            what = f"the series {shorten(series)} is repeated, first in line {line_of[series]}"
            raise DataError(what, where=where, fix="Name each series once")
        line_of[series] = number
        read = numbers(fields[-1], where, never_missing=never_missing)
        lengths.append(len(read))
        begins.append(0 if np.isnan(read).all() else int(np.isnan(read).argmin()))
        read = read[begins[-1] :]
        values.append(fill(read, missing, where))
        observed.append(~np.isnan(read))
        starts.append(cells.get(_START))
    if not values:
        raise DataError("there are no series below `@data`", where=str(path), fix=CUT_SHORT)
    header.check_lengths(lengths, [place(path, line) for line in line_of.values()])
    if later := np.count_nonzero(begins):
        what = f"{later:,} series begin with missing values, {sum(begins):,} in all, which are left out"
        notices.append(f"{path.name}: {what}")
    return SeriesCollection(
        names=tuple(line_of),
        values=tuple(values),
        frequency=frequency,
        horizon=horizon,
        observed=None if all(mask.all() for mask in observed) else tuple(observed),
        source=str(path),
        notices=tuple(notices),
        times=_times(starts, begins, frequency),
    )


def _times(
    given: list[str | None], begins: list[int], frequency: str | None
) -> Callable[[int, int], np.ndarray] | None:
    """The times of each series, which begins so many steps after the start in the file."""
    alias, cells = ARCHIVE_ALIASES.get((frequency or "").lower()), [cell for cell in given if cell]
    if alias is None or len(cells) < len(given):
        return None
    starts = [_time(cell) for cell in cells]

    def times(series: int, count: int) -> np.ndarray:
        begin = begins[series]
        return _from(alias, starts[series], begin + count)[begin:]

    return times


def _time(cell: str) -> np.datetime64:
    """A checked cell as a time."""
    date, clock = cell.split(" ")
    return np.datetime64(f"{date}T{clock.replace('-', ':')}", "s")


def _from(alias: str, start: np.datetime64, count: int) -> np.ndarray:
    """``count`` times from a start, as ``[count]`` datetime64 of its unit.

    ``M``, ``Q`` and ``Y`` keep the day of the start, or have the last of a month without it.

    Raises:
        DataError: As of :func:`step_of` and :func:`following`.
    """
    step, day = None, int((start.astype("M8[D]") - start.astype("M8[M]").astype("M8[D]")).astype(int)) + 1
    if months := {"M": 1, "Q": 3, "Y": 12}.get(alias):
        step = Months(f"{months}M-{day}", days_of_month(day), months)
    first = np.array([start])
    return np.concatenate([first, following(first, step or step_of(alias), count - 1)])[:count]


def last_steps(path: str | Path, length: int, *, missing: Missing = "error") -> pd.DataFrame:
    """The last ``length`` steps of every series of a file, a column each.

    Raises:
        DataError: As :func:`read_tsf`; or a series has fewer steps.
    """
    import pandas as pd

    found = read_tsf(path, missing=missing)
    for name, values in zip(found.names, found.values, strict=True):
        if len(values) < length:
            what = f"the series {shorten(name)} has {len(values)} steps, but the model reads {length}"
            raise DataError(what, where=found.source, fix="Leave out such series")
    return pd.DataFrame(
        {name: values[-length:] for name, values in zip(found.names, found.values, strict=True)}
    )


class LongSeries(NamedTuple):
    """All series of a file.

    Attributes:
        frame: A row per series and step: ``series``, ``step`` (from 1) and ``y``, NaN where it was filled.
        times_after: Gives the times of so many steps after each series, end to end; None without starts.
        notices: What reading inferred, one line each.
    """

    frame: pd.DataFrame
    times_after: Callable[[int], np.ndarray] | None
    notices: tuple[str, ...]


def long_series(path: str | Path, *, missing: Missing = "error") -> LongSeries:
    """The series of a file as a long frame.

    Raises:
        DataError: As :func:`read_tsf`.
    """
    import pandas as pd

    found = read_tsf(path, missing=missing)
    values = np.concatenate(found.values)
    if found.observed is not None:
        values = np.where(np.concatenate(found.observed), values, np.nan)
    steps = np.concatenate([np.arange(1, 1 + length) for length in found.lengths])
    names = np.repeat(np.array(found.names, object), found.lengths)
    frame = pd.DataFrame({"series": names, "step": steps, "y": values})
    if (of := found.times) is None:
        return LongSeries(frame, None, found.notices)
    lengths = found.lengths.tolist()

    def times(count: int) -> np.ndarray:
        return np.concatenate([of(index, length + count)[length:] for index, length in enumerate(lengths)])

    return LongSeries(frame, times, found.notices)


def _attributes(header: Header, path: Path) -> dict[str, str]:
    """The type of each attribute, in the order of a line's parts."""
    found: dict[str, str] = {}
    for number, value in header.all("attribute"):
        name, kind, *rest = (*value.split(), "", "")
        where = place(path, number)
        if kind not in _TYPES or any(rest):
            fix = f"Write a name and one of {', '.join(_TYPES)}"
            raise DataError(f"`@attribute` says {shorten(value)}", where=where, fix=fix)
        if name in found:
            what = f"the attribute {shorten(name)} is repeated"
            raise DataError(what, where=where, fix="Name each attribute once")
        if kind != {_NAME: "string", _START: "date"}.get(name, kind):
            what = f"the attribute `{name}` cannot be of type {kind}"
            raise DataError(what, where=where, fix="Correct its type")
        found[name] = kind
    if _NAME not in found:
        what = f"there is no `@attribute {_NAME} string`"
        raise DataError(what, where=str(path), fix="Give every series a name")
    return found


def _check_cell(name: str, kind: str, cell: str, where: str) -> None:
    if name == _NAME and not cell:
        raise DataError("the series has no name", where=where, fix="Give it one")
    if kind == "numeric" and not (NUMBER.fullmatch(cell) and np.isfinite(float(cell))):
        what = f"the attribute `{name}` is {shorten(cell)}, not a number"
        raise DataError(what, where=where, fix="Correct the value or its type")
    if kind == "date":
        try:
            _time(cell if _DATE.fullmatch(cell) else "no date")
        except ValueError:
            what = f"the attribute `{name}` is {shorten(cell)}, not a date"
            raise DataError(what, where=where, fix="Write it as 1979-01-01 00-00-00") from None

"""The files of the M4 competition: training and test parts, the table of series, and submitted forecasts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ofa_jax.data.archives.records import SeriesCollection
from ofa_jax.data.archives.text import CUT_SHORT, fill, numbers, place, read_lines
from ofa_jax.errors import DataError, shorten

_INFO_COLUMNS = ["M4id", "category", "Frequency", "Horizon", "SP"]
_CELLS = re.compile(r'(?:"[^",]*"|[^",]*)(?:,(?:"[^",]*"|[^",]*))*+')
_FETCH_AGAIN = "Fetch the file again"


def read_m4(train: str | Path, test: str | Path, info: str | Path | None = None) -> SeriesCollection:
    """One frequency of M4 as complete series, the training part followed by the test part of H steps.

    Args:
        train: ``Yearly-train.csv`` or the like, also ``.gz``.
        test: ``Yearly-test.csv`` or the like; the horizon is its width, and every series must have all of it.
        info: ``M4-info.csv``; ids and horizon must agree with it; adds the frequency.

    Raises:
        DataError: As :func:`read_m4_part`; a series in one part that the other lacks, an incomplete test
            part, ids or a horizon that the table of series does not confirm.
    """
    past, future = read_m4_part(train), read_m4_part(test)
    for part, other in ((future, past), (past, future)):
        absent = sorted(set(other.names) - set(part.names))
        if absent:
            counts = f"{other.n_series} and {part.n_series} series"
            what = f"the series {shorten(absent[0])} of {other.source} is not there ({counts})"
            raise DataError(what, where=part.source, fix="Give both complete parts of the same set")
    horizon = int(future.lengths.max())
    for name, steps in zip(future.names, future.lengths, strict=True):
        if steps != horizon:
            what = f"the series {shorten(name)} has {steps} test values where others have {horizon}"
            raise DataError(what, where=future.source, fix=_FETCH_AGAIN)
    after = dict(zip(future.names, future.values, strict=True))
    before = zip(past.names, past.values, strict=True)
    return SeriesCollection(
        names=past.names,
        values=tuple(np.concatenate([series, after[name]]) for name, series in before),
        frequency=None if info is None else _frequency(past, horizon, Path(info)),
        horizon=horizon,
        observed=None,
        source=f"{past.source}, {future.source}",
    )


def _frequency(past: SeriesCollection, horizon: int, info: Path) -> str:
    known = read_m4_info(info)
    for name in past.names:
        if name not in known:
            what = f"the series {shorten(name)} of {past.source} is not there"
            raise DataError(what, where=str(info), fix="Give the complete table")
        if known[name][0] != horizon:
            what = f"the horizon of {shorten(name)} is {known[name][0]}, the test part has {horizon} steps"
            raise DataError(what, where=str(info), fix="Give the test part of the same set")
    frequencies = sorted({known[name][1] for name in past.names})
    if len(frequencies) > 1:
        what = f"the series are of several frequencies: {', '.join(frequencies)}"
        raise DataError(what, where=past.source, fix="Give one of them")
    return frequencies[0]


def read_m4_part(path: str | Path) -> SeriesCollection:
    """One file of M4 with a series per row: training part, test part, or submitted forecasts.

    The cells after a series' last value are empty or ``NA``; a gap within a series is an error.

    Raises:
        DataError: A row of another width than the header, a repeated or empty id, text among the numbers, a
            missing value, no rows; with file, line and place in the line.
    """
    rows = _rows(Path(path))
    next(rows)
    names, values = [], []
    for where, line in rows:
        cells = line.split(",")
        while cells and cells[-1] in ("", "NA"):
            cells.pop()
        name, _, rest = ",".join(cells).partition(",")
        if not rest:
            raise DataError(f"the series {shorten(name)} has no values", where=where, fix=_FETCH_AGAIN)
        names.append(name.strip())
        read = numbers(rest, where, never_missing="others follow it in the series")
        values.append(fill(read, "error", where))
    return SeriesCollection(tuple(names), tuple(values), None, None, None, str(path))


def read_m4_info(path: str | Path) -> dict[str, tuple[int, str]]:
    """``M4-info.csv``, the table of all series: horizon and frequency (``Yearly``, ``Weekly``, …) by id.

    Raises:
        DataError: Other columns, a row of another width, a repeated or empty id, a season or horizon that is
            not a whole number.
    """
    rows = _rows(Path(path))
    where, line = next(rows)
    header = _cells(line)
    if header not in (_INFO_COLUMNS, [*_INFO_COLUMNS, "StartingDate"]):
        what = f"the columns are {', '.join(header)[:100]}"
        raise DataError(what, where=where, fix=f"Expected are {', '.join(_INFO_COLUMNS)}")
    found = {}
    for where, line in rows:
        name, _, season, horizon, frequency, *_ = _cells(line)
        for column, text in (("Frequency", season), ("Horizon", horizon)):
            if not re.fullmatch(r"0*[1-9][0-9]{0,5}", text):
                what = f"`{column}` is {shorten(text)}"
                raise DataError(what, where=where, fix="Write a whole number of at least 1")
        found[name] = (int(horizon), frequency)
    return found


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """Place and text (without quotes) of the header and of every row; rows are as wide as it, ids unique."""
    width = 0
    line_of: dict[str, int] = {}
    for number, line in read_lines(path):
        where, text = place(path, number), line.replace('"', "")
        if number == 1:
            cells = _cells(text)
            width = len(cells)
            if width < 2 or len(set(cells)) < width or any(re.match(r"[0-9.+-]|\Z", cell) for cell in cells):
                what = f"the first line is {shorten(line)}, not a header with the names of the columns"
                raise DataError(what, where=where, fix=_FETCH_AGAIN)
            yield where, text
            continue
        found = line.count(",") + 1
        if found != width:
            what = f"has {found} field(s) where the header has {width}"
            raise DataError(what, where=where, fix="Fetch the file again; the line may be cut short")
        if '"' in line and not _CELLS.fullmatch(line):
            what = "a quote is unbalanced or encloses several cells"
            raise DataError(what, where=where, fix="Quote complete cells, or none")
        name = text.partition(",")[0].strip()
        if not name:
            raise DataError("the series has no id", where=where, fix=_FETCH_AGAIN)
        if name in line_of:
            what = f"the id {shorten(name)} is repeated, first in line {line_of[name]}"
            raise DataError(what, where=where, fix="Name each series once")
        line_of[name] = number
        yield where, text
    if not line_of:
        raise DataError("there are no series below the header", where=str(path), fix=CUT_SHORT)


def _cells(text: str) -> list[str]:
    return [cell.strip() for cell in text.split(",")]

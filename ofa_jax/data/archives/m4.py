"""The files of the M4 competition: training and test parts, the table of series, and submitted forecasts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ofa_jax.data.archives.records import SeriesCollection
from ofa_jax.data.archives.text import numbers, place, read_lines
from ofa_jax.data.timestamps import shorten
from ofa_jax.errors import DataError

_INFO_COLUMNS = ("M4id", "category", "Frequency", "Horizon", "SP")
_EMPTY_TAIL = re.compile(r'(?:,(?:"?NA"?|"")?)++\Z')

_CELLS = re.compile(r'(?:"[^",]*"|[^",]*)(?:,(?:"[^",]*"|[^",]*))*+')


@dataclass(frozen=True, eq=False)
class M4Info:
    """What the competition says of its series; every column ``[S]`` in the file's order.

    Attributes:
        names: The series' ids, unique.
        categories: Where each comes from (``Macro``, ``Micro``, …).
        seasons: int64, the steps of the cycle that MASE and Naive2 take.
        horizons: int64, the steps H to forecast.
        frequencies: ``Yearly``, ``Quarterly``, ``Monthly``, ``Weekly``, ``Daily`` or ``Hourly``.
        source: The file, for messages.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    seasons: np.ndarray
    horizons: np.ndarray
    frequencies: tuple[str, ...]
    source: str


def read_m4(train: str | Path, test: str | Path, info: str | Path | M4Info | None = None) -> SeriesCollection:
    """One frequency of M4 as whole series, the training part followed by the test part of ``horizon`` steps.

    Args:
        train: ``Yearly-train.csv`` or the like, also ``.gz``.
        test: ``Yearly-test.csv`` or the like; the horizon is its width, and every series must have all of it.
        info: ``M4-info.csv``; ids and horizon must agree with it; adds category and frequency.

    Raises:
        DataError: As :func:`read_m4_part`; a series in one part that the other lacks, an incomplete test
            part, ids or a horizon that the table of series does not confirm.
    """
    past, future = read_m4_part(train), read_m4_part(test)
    for here, there in ((past, future), (future, past)):
        known = set(there.names)
        absent = next((name for name in here.names if name not in known), None)
        if absent is not None:
            counts = f"{here.n_series} and {there.n_series} series"
            what = f"the series {shorten(absent)} of {here.source} is not there ({counts})"
            raise DataError(what, where=there.source, fix="Give both complete parts of the same set")
    horizon = int(future.lengths.max())
    short = np.flatnonzero(future.lengths != horizon)
    if len(short):
        name, steps = shorten(future.names[short[0]]), future.lengths[short[0]]
        what = f"the series {name} has {steps} test values where others have {horizon}"
        raise DataError(what, where=future.source, fix="Fetch the file again")
    after = dict(zip(future.names, future.values, strict=True))
    attributes, frequency = _from_info(past, horizon, info)
    return SeriesCollection(
        names=past.names,
        values=tuple(
            np.concatenate([series, after[name]])
            for name, series in zip(past.names, past.values, strict=True)
        ),
        frequency=frequency,
        horizon=horizon,
        starts=None,
        observed=None,
        attributes=attributes,
        source=f"{past.source}, {future.source}",
    )


def _from_info(
    past: SeriesCollection, horizon: int, info: str | Path | M4Info | None
) -> tuple[dict[str, tuple[str, ...]], str | None]:
    if info is None:
        return {}, None
    known = info if isinstance(info, M4Info) else read_m4_info(info)
    row = {name: index for index, name in enumerate(known.names)}
    for name in past.names:
        if name not in row:
            what = f"the series {shorten(name)} of {past.source} is not there"
            raise DataError(what, where=known.source, fix="Give the whole table")
        if known.horizons[row[name]] != horizon:
            found = f"the horizon of {shorten(name)} is {known.horizons[row[name]]}"
            what, fix = f"{found}, the test part has {horizon} steps", "Give the test part of the same set"
            raise DataError(what, where=known.source, fix=fix)
    rows = [row[name] for name in past.names]
    frequencies = {known.frequencies[index] for index in rows}
    if len(frequencies) > 1:
        what = f"the series are of several frequencies: {', '.join(sorted(frequencies))}"
        raise DataError(what, where=past.source, fix="Give one of them")
    return {"category": tuple(known.categories[index] for index in rows)}, frequencies.pop()


def read_m4_part(path: str | Path) -> SeriesCollection:
    """One file of M4 with a series per row: training part, test part, or submitted forecasts.

    The cells after a series' last value are empty or ``NA``; a gap within a series is an error.

    Raises:
        DataError: A row of another width than the header, a repeated or empty id, text among the numbers, a
            missing value, no rows; with file, line and place in the line.
    """
    path = Path(path)
    lines = read_lines(path)
    width = len(_cells(_first(lines, path)))
    line_of: dict[str, int] = {}
    values = []
    for number, line in lines:
        where = place(path, number)
        _check_cells(line, width, where)
        name, _, rest = _EMPTY_TAIL.sub("", line).partition(",")
        name = _bare(name)
        _check_id(name, line_of, number, where)
        if not rest:
            raise DataError(
                f"the series {shorten(name)} has no values", where=where, fix="Fetch the file again"
            )
        values.append(numbers(rest.replace('"', ""), where, never_missing="others follow it in the series"))
    if not values:
        what = "there are no series below the header"
        raise DataError(what, where=str(path), fix="Fetch the file again: it is cut short")
    return SeriesCollection(tuple(line_of), tuple(values), None, None, None, None, {}, str(path))


def read_m4_info(path: str | Path) -> M4Info:
    """``M4-info.csv``, the table of all series; a column ``StartingDate`` is ignored (two-digit years).

    Raises:
        DataError: Other columns, a row of another width, a repeated or empty id, a season or horizon that is
            not a whole number.
    """
    path = Path(path)
    lines = read_lines(path)
    header = _cells(_first(lines, path))
    if tuple(header) not in (_INFO_COLUMNS, (*_INFO_COLUMNS, "StartingDate")):
        what = f"the columns are {', '.join(header)[:100]}"
        raise DataError(what, where=place(path, 1), fix=f"Expected are {', '.join(_INFO_COLUMNS)}")
    line_of: dict[str, int] = {}
    rows = []
    for number, line in lines:
        where = place(path, number)
        _check_cells(line, len(header), where)
        name, category, season, horizon, frequency = _cells(line)[:5]
        _check_id(name, line_of, number, where)
        for column, text in (("Frequency", season), ("Horizon", horizon)):
            if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < 1:
                raise DataError(
                    f"`{column}` is {shorten(text)}", where=where, fix="Write a whole number of at least 1"
                )
        rows.append((category, int(season), int(horizon), frequency))
    if not rows:
        raise DataError(
            "there are no rows below the header", where=str(path), fix="Fetch the file again: it is cut short"
        )
    categories, seasons, horizons, frequencies = zip(*rows, strict=True)
    return M4Info(
        tuple(line_of),
        categories,
        np.array(seasons, np.int64),
        np.array(horizons, np.int64),
        frequencies,
        str(path),
    )


def _first(lines: Iterator[tuple[int, str]], path: Path) -> str:
    _, line = next(lines, (0, ""))
    cells = _cells(line)
    if (
        len(cells) < 2
        or len(set(cells)) != len(cells)
        or "" in cells
        or any(cell[0] in "0123456789.+-" for cell in cells)
    ):
        what = f"the first line is {shorten(line)}, not a header with the names of the columns"
        raise DataError(what, where=place(path, 1), fix="Fetch the file again")
    return line


def _cells(line: str) -> list[str]:
    return [_bare(cell) for cell in line.split(",")]


def _bare(cell: str) -> str:
    cell = cell.strip()
    return cell[1:-1].strip() if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _check_cells(line: str, width: int, where: str) -> None:
    found = line.count(",") + 1
    if found != width:
        what = f"has {found} field(s) where the header has {width}"
        raise DataError(what, where=where, fix="Fetch the file again; the line may be cut short")
    if '"' in line and not _CELLS.fullmatch(line):
        raise DataError(
            "a quote is unbalanced or encloses several cells", where=where, fix="Quote whole cells, or none"
        )


def _check_id(name: str, line_of: dict[str, int], number: int, where: str) -> None:
    if not name:
        raise DataError("the series has no id", where=where, fix="Fetch the file again")
    if name in line_of:
        what = f"the id {shorten(name)} is repeated, first in line {line_of[name]}"
        raise DataError(what, where=where, fix="Name each series once")
    line_of[name] = number

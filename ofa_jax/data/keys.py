"""Which columns of a long table name its series."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ofa_jax.data.columns import PARTS, words_of
from ofa_jax.data.tables import NO_VALUE, Table
from ofa_jax.errors import DataError, shorten

if TYPE_CHECKING:
    import pandas as pd

ID = re.compile(r"(.*[_ ])?id", re.IGNORECASE)
CLOCK = re.compile(r"\d{1,2}[:.]\d\d")
"""How a time of day begins."""
DATE = re.compile(r"\s*(\d{8}\s*$|\w+[-/. ,]+\w+[-/. ,]+\w+)")
"""How a date begins that has a day, so that a number after it is an hour."""
_MOST_KEYS = 3  # columns that name series together
_MOST_NUMBERS = 8  # columns of whole numbers that may name series, the first ones
_HOURS = {"hour", "hours", "hr", "he", "stunde"}
_PARTS_OF_DAY = {24, 48, 96, 144, 288, 1440}
_PARTS_OF_YEAR = {4, 12, 52, 53, 365, 366}


def key_of(
    table: Table, cells: pd.DataFrame, keys: list[int], times: pd.Series, time: Sequence[int]
) -> list[int] | None:
    """The fewest columns by which no time repeats within a series; None where they name one series.

    Raises:
        DataError: Times repeat by all of them, the cell of a row is empty, or as :func:`_numbered`.
    """
    groups = _Groups(cells, times)
    best: tuple[int, list[int]] | None = None
    for option in groups.options(keys):
        again = groups.repeats(option)
        if again == 0:
            _refuse_empty(table, cells, option)
            return option
        best = (again, option) if best is None or again < best[0] else best
    if (numbered := _numbered(table, groups, keys, time)) is not None:
        _refuse_empty(table, cells, numbered)
        return numbered
    if best is None or best[0] > len(times) / 4:
        return None
    option = best[1]
    row = int(np.flatnonzero(groups.repeated(option))[0])
    by = " and ".join(f"`{table.names[at]}`" for at in option)
    name = shorten(" ".join(str(cells[at][row]) for at in option))
    what = f"this is a long table: {by} names series, but {name} repeats a time: {shorten(times[row])}"
    fix = "Remove rows that repeat a time of a series, or give every series its own name"
    raise DataError(what, where=table.place(table.names[option[0]], row), fix=fix)


class _Groups:
    """The rows of a long table by the cells of some of its columns."""

    def __init__(self, cells: pd.DataFrame, times: pd.Series) -> None:
        self.cells, self.times = cells, self._coded(times.astype(str))
        self._of: dict[int, np.ndarray] = {}

    @staticmethod
    def _coded(values: Any) -> np.ndarray:
        import pandas as pd

        return pd.factorize(values)[0].astype(np.int64)

    def options(self, columns: Sequence[int]) -> Iterator[list[int]]:
        """Columns, alone and together, that name more than one series and at most half as many as rows."""
        for count in range(1, min(len(columns), _MOST_KEYS) + 1):
            for option in combinations(columns, count):
                if 1 < self.series(option).max() + 1 <= len(self.times) / 2:
                    yield list(option)

    def series(self, option: Sequence[int]) -> np.ndarray:
        """The number of each row's series ``[rows]``, from 0 in order of appearance."""
        for at in option:
            if at not in self._of:
                self._of[at] = self._coded(self.cells[at].astype(str))
        codes = self._of[option[0]]
        for at in option[1:]:
            codes = self._coded(codes * (self._of[at].max() + 1) + self._of[at])
        return codes

    def repeated(self, option: Sequence[int]) -> np.ndarray:
        """The rows ``[rows]`` whose time an earlier one of the same series has."""
        import pandas as pd

        return pd.Series(self.series(option) * (self.times.max() + 1) + self.times).duplicated().to_numpy()

    def repeats(self, option: Sequence[int]) -> int:
        return int(self.repeated(option).sum())

    def is_dense(self, option: Sequence[int]) -> bool:
        """Whether half of the series have at least half of all times."""
        return bool(2 * np.median(np.bincount(self.series(option))) >= self.times.max() + 1)

    def counts_within_times(self, at: int) -> bool:
        """Whether cells rise from row to row as long as the time is the same."""
        numbers, same = self.cells[at].astype(float).to_numpy(), np.diff(self.times) == 0
        return bool((np.diff(numbers)[same] > 0).all()) and bool((np.diff(self.times) >= 0).all())


def _numbered(table: Table, groups: _Groups, keys: Sequence[int], time: Sequence[int]) -> list[int] | None:
    """The columns, whole numbers among them, that name series which have most times; None without any.

    Raises:
        DataError: A column has hours, or may have other parts of the time; several may name the series.
    """
    cells, most = groups.cells, 4 * len(groups.times) / (groups.times.max() + 1)
    whole = [int(at) for at in cells if at not in keys and is_whole(cells[at])]  # type: ignore[call-overload]
    numbers = [at for at in whole if groups.series([at]).max() < most][:_MOST_NUMBERS]
    _refuse_parts(table, groups, numbers, time)
    numbers = [at for at in numbers if not words_of(table.names[at]) & {*PARTS, *_HOURS}]
    found: list[list[int]] = []
    for option in groups.options([*keys, *numbers]):
        if found and len(option) > len(found[0]):
            break
        if set(option) <= set(keys) or not groups.is_dense(option) or groups.repeats(option):
            continue
        if not any(np.array_equal(groups.series(option), groups.series(other)) for other in found):
            found.append(option)
    if len(found) > 1:
        ways = [" and ".join(f"`{table.names[at]}`" for at in option) for option in found[:2]]
        what = f"this is a long table whose series may be named by {ways[0]} or by {ways[1]}"
        ends = [next(at for at in one if at not in other) for one, other in (found[:2], found[1::-1])]
        ways = [f"`exclude: [{table.names[at]}]`" for at in ends]
        fix = f"Leave out what does not name series: {ways[0]} or {ways[1]}"
        raise DataError(what, where=table.source, fix=fix)
    return found[0] if found else None


def _refuse_parts(table: Table, groups: _Groups, numbers: Sequence[int], time: Sequence[int]) -> None:
    """Refuse to take the hours of a date, or other parts of a time, for names of series."""
    if len(time) != 1:
        return
    day, first = table.names[time[0]], str(table.read(time, object).iloc[0, 0]).strip()
    parts = _PARTS_OF_YEAR if re.fullmatch(r"\d{4}", first) else _PARTS_OF_DAY
    dated = DATE.match(first) is not None and ":" not in first.removesuffix(" 00:00:00")
    for at in numbers:
        name, values = table.names[at], groups.cells[at].astype(float)
        low, count = values.min(), int(values.max() - values.min()) + 1
        hours = dated and low <= 1 and values.max() <= 24 and bool(words_of(name) & _HOURS)
        counting = low <= 1 and count in parts and groups.counts_within_times(at)
        if not (hours or counting) or groups.repeats([at]) > len(values) / 100:  # clocks are set back
            continue
        if dated and values.max() <= 24:
            what = f"`{name}` has the hours of each `{day}`" if hours else f"`{name}` counts from {low:g} to "
            what += "" if hours else f"{values.max():g} within each `{day}`, as hours do"
            fix = f"Read both as the time by `timestamp_column: {day} + {name}`"
            past: dict[str, Any] = {"timestamp_column": f"{day} + {name}"}
        else:
            what = f"`{name}` counts from {low:g} to {values.max():g} within each `{day}`, as parts of it do"
            fix = f"Count rows by `timestamps: as_is` and `exclude: [{name}]`, or write the time of each row"
            past = {"timestamps": "as_is", "exclude": [name]}
        fix += "" if hours else ". If it names series, give them names with letters"
        raise DataError(what, where=table.source, fix=fix, past=past)


def _refuse_empty(table: Table, cells: pd.DataFrame, keys: list[int]) -> None:
    for at in keys:
        empty = cells[at].isna() | cells[at].astype(str).str.strip().isin(NO_VALUE)
        if empty.any():
            where = table.place(table.names[at], int(np.flatnonzero(empty)[0]))
            raise DataError("no series is named", where=where, fix="Name the series, or remove the row")


def joined(cells: pd.DataFrame) -> pd.Series:
    """The texts of each row's cells, one after the other."""
    first, *others = (cells[name].astype(str) for name in cells)
    for texts in others:
        first = first + " " + texts
    return first


def is_whole(cells: pd.Series) -> bool:
    """Whether every cell is a whole number."""
    return bool(cells.astype(str).str.strip().str.fullmatch(r"\d{1,9}(\.0*)?").all())


def is_text(cells: pd.Series, comma: bool) -> bool:
    """Whether no cell is a number, or a truth value."""
    import pandas as pd

    known = cells.dropna().astype(object)
    texts = known.astype(str).str.strip()
    texts = texts[~texts.isin(NO_VALUE)]
    if texts.empty or texts.str.lower().isin(["true", "false"]).all():
        return False
    texts = texts.str.replace(",", ".") if comma else texts
    return bool(pd.to_numeric(texts, errors="coerce").isna().all())


def refuse_clock(table: Table, cells: pd.DataFrame, texts: Sequence[int], time: Sequence[int]) -> None:
    """Refuse to take a column of times of day for one that names series."""
    clock = next((at for at in texts if cells[at].astype(str).str.strip().str.match(CLOCK).all()), None)
    if clock is None or len(time) != 1:
        return
    name, day = table.names[clock], table.names[time[0]]
    what = f"`{name}` has times of day, and `{day}` has each date in several rows"
    fix = f"Read both as the time by `timestamp_column: {day} + {name}`"
    raise DataError(what, where=table.source, fix=fix, past={"timestamp_column": f"{day} + {name}"})

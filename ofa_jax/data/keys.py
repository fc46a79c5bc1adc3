"""Which columns of a long table name its series."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ofa_jax.config.tasks import Decimal
from ofa_jax.data.columns import PARTS, words_of
from ofa_jax.data.tables import COMMA, MARKS, NO_VALUE, Table, as_list
from ofa_jax.errors import DataError, listed, shorten

if TYPE_CHECKING:
    import pandas as pd

ID = re.compile(r"(.*[_ ])?id", re.IGNORECASE)
_CLOCK = re.compile(r"\d{1,2}[:.]\d\d")
"""How a time of day begins."""
_DAY_BEGINS = re.compile(r"[T ]00?:00(:00(\.0+)?)?$|[T ]12:00(:00)? ?AM$", re.IGNORECASE)
DATE = re.compile(r"\s*(\d{8}\s*$|\w+[-/. ,]+\w+[-/. ,]+\w+)")
"""How a date begins that has a day, so that a number after it is an hour."""
_MOST_KEYS = 3  # columns that name series together
_MOST_NUMBERS = 12  # columns of whole numbers that are proposed as names of series, the first ones
_FEW = 0.02  # of rows that repeat a time, as errors
_LEAST_PARTS = 20  # numbers that may be hours or shorter parts of a day
_MOST_WAYS = 3  # ways to read a table that an error lists
_HOURS = {"hour", "hours", "hr", "he", "hh", "stunde", "heure", "hora", "uur"}
_MONTHS = {"month", "mon"}
_OF_CLOCKS = {"time", "clock", "hhmm", "hhmmss"}


def given_key(
    table: Table, cells: pd.DataFrame, others: Sequence[int], names: Sequence[str], times: pd.Series
) -> list[int]:
    """The positions of columns, of ``others`` than the time, that are said to name the series.

    Raises:
        DataError: There is no such column, a time repeats within a series, or a cell is empty.
    """
    found = {table.names[at]: at for at in others}
    for name in names:
        if name not in found:
            what = f"`id_columns` names `{name}`, and there is no such column"
            if name in table.names:
                what = f"`id_columns` names `{name}`, which is the time or excluded"
            raise DataError(what, where=table.source, fix=f"The columns are {listed(list(found))}")
    option = list(dict.fromkeys(found[name] for name in names))
    groups = _Groups(cells, times)
    if groups.repeats(option):
        raise _repeats(table, groups, option, times)
    _refuse_empty(table, cells, option)
    return option


def key_of(
    table: Table, cells: pd.DataFrame, keys: list[int], times: pd.Series, time: Sequence[int], counted: bool
) -> list[int] | None:
    """The fewest columns of text by which no time repeats within a series; None where they name one series.

    Raises:
        DataError: Times repeat by all of them, or the cell of a row is empty. Unless rows are ``counted``:
            whole numbers may name the series, or be hours of a date.
    """
    groups = _Groups(cells, times)
    best: tuple[int, list[int]] | None = None
    for option in groups.options(keys):
        again = groups.repeats(option)
        if again == 0:
            _refuse_empty(table, cells, option)
            return option
        best = (again, option) if best is None or again < best[0] else best
    if best is not None and best[0] <= len(times) / 4:
        raise _repeats(table, groups, best[1], times)
    if not counted:
        _propose(table, groups, keys, time)
    return None


def _repeats(table: Table, groups: _Groups, option: Sequence[int], times: pd.Series) -> DataError:
    row = int(np.flatnonzero(groups.repeated(option))[0])
    name = shorten(" ".join(str(groups.cells[at][row]) for at in option))
    by = _listed(table, option)
    what = f"this is a long table: {by} names series, but {name} repeats a time: {shorten(times[row])}"
    fix = "Remove rows that repeat a time of a series, or give every series its own name"
    return DataError(what, where=table.place(table.names[option[0]], row), fix=fix)


def _listed(table: Table, option: Sequence[int]) -> str:
    return " and ".join(f"`{table.names[at]}`" for at in option)


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

    def counts(self, option: Sequence[int], at: int) -> bool:
        """Whether one of these columns counts up or down within each time and cells of the others."""
        others = [other for other in option if other != at]
        groups = self.times
        if others:
            groups = self._coded(self.series(others) * (self.times.max() + 1) + self.times)
        order = np.argsort(groups, kind="stable")
        steps, same = np.diff(self.cells[at].astype(float).to_numpy()[order]), np.diff(groups[order]) == 0
        return bool(same.any() and (np.abs(steps[same]) == 1).mean() > 0.9)


def _propose(table: Table, groups: _Groups, keys: Sequence[int], time: Sequence[int]) -> None:
    """Refuse a table that whole numbers make a long one, with the settings that read it.

    Raises:
        DataError: A column has the hours of a date or the months of a year, or columns may name the series.
    """
    numbers = [int(at) for at in groups.cells if at not in keys and is_whole(groups.cells[at])]  # type: ignore[call-overload]
    _propose_hours(table, groups, numbers, time)
    most = 4 * len(groups.times) / (groups.times.max() + 1)
    numbers = [at for at in numbers if not words_of(table.names[at]) & {*PARTS, *_HOURS, *_OF_CLOCKS}]
    numbers = [at for at in numbers if 1 < groups.series([at]).max() + 1 <= most][:_MOST_NUMBERS]
    found: list[list[int]] = []
    for option in groups.options([*keys, *numbers]):
        if found and len(option) > len(found[0]) + 1:
            break
        if set(option) <= set(keys) or any(set(known) <= set(option) for known in found):
            continue
        if groups.is_dense(option) and groups.repeats(option) <= _FEW * len(groups.times):
            found.append(option)
    if not found:
        return
    day = table.names[time[0]]
    ways = [f"`id_columns: {as_list([table.names[at] for at in option])}`" for option in found[:_MOST_WAYS]]
    what = f"`{day}` has each time in several rows, so this may be a long table whose series "
    what += " or ".join(_listed(table, option) for option in found[:_MOST_WAYS]) + " may name"
    fix, past = f"If so, set {' or '.join(ways)}", {"id_columns": [table.names[at] for at in found[0]]}
    many = [at for at in found[0] if at in numbers and groups.series([at]).max() + 1 >= _LEAST_PARTS]
    counting = next((at for at in many if groups.counts(found[0], at)), None)
    if counting is not None:
        name, others = table.names[counting], []
        if _is_date(table, time) and groups.cells[counting].astype(float).max() <= 24:
            others.append(f"`timestamp_column: {day} + {name}` for hours")
        if len(found[0]) == 1:
            others.append(f"`timestamps: as_is` and `exclude: [{name}]` to count rows")
        fix += f". If `{name}` counts parts of `{day}`, "
        fix += f"set {', or '.join(others)}" if others else "write the time of each row into one column"
    if counting is not None or len(found) > 1:
        past = {}
    raise DataError(what, where=table.source, fix=fix, past=past)


def _is_date(table: Table, time: Sequence[int]) -> bool:
    """Whether the time is a single column of dates without a time of day."""
    first = without_midnight(str(table.read(time, object).iloc[0, 0]).strip())
    return len(time) == 1 and DATE.match(first) is not None and ":" not in first


def _propose_hours(table: Table, groups: _Groups, numbers: Sequence[int], time: Sequence[int]) -> None:
    """Refuse hours of a date, or months of a year, in a separate column that is called so."""
    if len(time) != 1:
        return
    day, dated = table.names[time[0]], _is_date(table, time)
    year = re.fullmatch(r"[12]\d{3}", str(table.read(time, object).iloc[0, 0]).strip()) is not None
    for at in numbers:
        name, largest = table.names[at], groups.cells[at].astype(float).max()
        words = {part for word in words_of(name) for part in re.split(r"[^a-z]+", word)}
        words |= set(re.split(r"[^a-z]+", name.lower()))
        if (dated and words & _HOURS and largest <= 24) or (year and words & _MONTHS and largest <= 12):
            what = f"`{name}` has the {'hours' if dated else 'months'} of each `{day}`"
            fix = f"Read both as the time by `timestamp_column: {day} + {name}`"
            past = {"timestamp_column": f"{day} + {name}"}
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


def without_midnight(text: str) -> str:
    """A date without the midnight after it."""
    return _DAY_BEGINS.sub("", text)


def are_hours(cells: pd.Series) -> bool:
    """Whether every cell is a whole number from 0 to 24."""
    texts = cells.astype(str).str.strip()
    return bool(texts.str.fullmatch(r"\d{1,2}(\.0*)?").all()) and float(texts.astype(float).max()) <= 24


def is_whole(cells: pd.Series) -> bool:
    """Whether every cell is a whole number."""
    return bool(cells.astype(str).str.strip().str.fullmatch(r"\d{1,18}(\.0*)?").all())


def is_text(cells: pd.Series, decimal: Decimal) -> bool:
    """Whether no cell is a number, or a truth value."""
    import pandas as pd

    known = cells.dropna().astype(object)
    texts = known.astype(str).str.strip()
    texts = texts[~texts.isin(NO_VALUE)]
    if texts.empty or texts.str.lower().isin(["true", "false"]).all():
        return False
    if decimal in MARKS:
        texts = texts.str.replace(MARKS[decimal][0], "")
    texts = texts.str.replace(",", ".") if decimal in COMMA else texts
    return bool(pd.to_numeric(texts, errors="coerce").isna().all())


def refuse_clock(table: Table, cells: pd.DataFrame, texts: Sequence[int], time: Sequence[int]) -> None:
    """Refuse to take a column of times of day for one that names series."""
    clock = next((at for at in texts if cells[at].astype(str).str.strip().str.match(_CLOCK).all()), None)
    if clock is None or len(time) != 1:
        return
    name, day = table.names[clock], table.names[time[0]]
    what = f"`{name}` has times of day, and `{day}` has each date in several rows"
    fix = f"Read both as the time by `timestamp_column: {day} + {name}`"
    raise DataError(what, where=table.source, fix=fix, past={"timestamp_column": f"{day} + {name}"})

"""Long tables: one row per series and time, read as one column per series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ofa_jax.data.keys import (
    DATE,
    ID,
    are_hours,
    given_key,
    is_text,
    joined,
    key_of,
    refuse_clock,
    without_midnight,
)
from ofa_jax.data.tables import Table, as_list
from ofa_jax.errors import DataError, listed, shorten

if TYPE_CHECKING:
    import pandas as pd


class Part(NamedTuple):
    """One series of a long table: what names it, and a table of its time and values."""

    series: Any
    table: Table


class UnequalTimes(DataError):
    """A long table whose series do not have the same times.

    Attributes:
        column: What names the series.
        parts: Gives the series one by one.
        unused: Columns that are not read, as the end of a notice.
    """

    def __init__(
        self, what: str, *, column: str, parts: Callable[[], list[Part]], unused: str, **more: Any
    ) -> None:
        super().__init__(what, **more)
        self.column, self.parts, self.unused = column, parts, unused


def time_cells(table: Table, time: Sequence[int]) -> pd.Series:
    """The cells of the timestamps' column; those of a date and its time of day, or hour, as one text."""
    cells = table.read(time, object).reset_index(drop=True)
    if len(time) == 1:
        return cells.iloc[:, 0]
    cells = cells.astype(str)
    if len(time) == 2 and are_hours(cells.iloc[:, 1]) and cells.iloc[:, 0].str.match(DATE).all():
        hours = cells.iloc[:, 1].str.strip().str.split(".").str[0].str.zfill(2)
        return cells.iloc[:, 0].str.strip().map(without_midnight) + " " + hours + ":00"
    return joined(cells)


def widen(
    table: Table,
    time: list[int],
    *,
    columns: Sequence[str] | None = None,
    trained_on: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    id_columns: Sequence[str] | None = None,
    counted: bool = False,
) -> tuple[Table, list[int]]:
    """A long table as a wide one, and the position of its timestamps; any other table as it is.

    Most timestamps of a long table repeat, and a column of text (or one called ``id``, ``unique_id``, …),
    or several of them together, name the series that a row is of; otherwise ``id_columns`` do. Series are
    called by that name, and by the column where there are several columns of values. ``columns`` and
    ``trained_on`` are names of series or columns of values; rows are ``counted`` whatever their times.

    Raises:
        UnequalTimes: The series do not have the same timestamps.
        DataError: A time repeats within each series, or a row names none; columns of whole numbers may name
            the series, or be hours of a date.
    """
    import pandas as pd

    times = time_cells(table, time) if time else pd.Series(dtype=object)
    if table.origins or (id_columns and trained_on and set(trained_on) <= set(table.names)):
        return table, time  # it is part of a long table, or wide as the model's series are
    if not id_columns and not times.duplicated(keep=False).mean() > 0.5:
        return table, time
    if id_columns and not time:
        what, fix = "`id_columns` names the series of a table without timestamps", "Set `timestamp_column`"
        raise DataError(what, where=table.source, fix=fix)
    others = [at for at, name in enumerate(table.names) if at not in time and name not in exclude]
    cells = table.read(others, object).reset_index(drop=True)
    cells.columns = pd.Index(others)
    texts = [at for at in others if at not in table.dated and is_text(cells[at], table.decimal)]
    keys = [at for at in others if at in texts or ID.fullmatch(table.names[at])]
    if id_columns:
        by: list[int] | None = given_key(table, cells, others, id_columns, times)
    else:
        refuse_clock(table, cells, texts, time)
        by = key_of(table, cells, keys, times, time, counted)
    values = [at for at in others if at not in (*keys, *(by or ()))]
    if id_columns and not values:
        what, fix = "`id_columns` leaves no column of values", "Leave a column of numbers out of it"
        raise DataError(what, where=table.source, fix=fix)
    if not by or not values:
        return table, time
    series, chosen = joined(cells[by]), columns if trained_on is None else trained_on
    if len(by) > 1 and series.nunique() < len(cells[by].astype(str).drop_duplicates()):
        what = (
            f"two series have one name, as their cells of {listed([table.names[at] for at in by])} read alike"
        )
        raise DataError(what, where=table.source, fix="Give them other names")
    for names in (columns, trained_on):
        if names and all(name in [table.names[at] for at in values] for name in names):
            values, chosen = [table.names.index(name) for name in names], None if names is chosen else chosen
    one_column = len(values) == 1
    time_name = " ".join(table.names[at] for at in time)
    long = _Long(table, time_name, times, tuple(by), tuple(values), one_column, tuple(keys))
    named = [(one, long.name(one, at)) for one in series.unique() for at in values]
    unknown = [name for name in exclude if name not in (*table.names, *(name for _, name in named))]
    long = replace(long, unknown=tuple(unknown))
    wanted = {one for one, name in named if name not in exclude and (not chosen or name in chosen)}
    rows = long.rows(series[series.isin(wanted)] if wanted else series)
    if (aligned := _aligned(rows, times)) is not None:
        return long.wide(
            [(long.name(one, at), at, where) for one, where in aligned.items() for at in values]
        ), [0]

    def parts() -> list[Part]:
        names = [name for _, name in named if name not in exclude]
        if unknown := [name for name in chosen or () if name not in names]:
            what = f"there is no series or column `{unknown[0]}`"
            raise DataError(what, where=table.source, fix=f"The series are {listed(names)}")
        return long.parts(rows, cells, set(chosen or names))

    raise _unequal(long, rows, parts)


@dataclass(frozen=True, eq=False)
class _Long:
    """A long table, and which of its columns are what."""

    table: Table
    time_name: str
    times: pd.Series
    by: tuple[int, ...]
    values: tuple[int, ...]
    one_column: bool
    keys: tuple[int, ...]
    unknown: tuple[str, ...] = ()

    @property
    def unused(self) -> str:
        names = [self.table.names[at] for at in self.keys if at not in self.by]
        return f"; not used: {listed(names)}" if names else ""

    def name(self, series: str, value: int) -> str:
        return series if self.one_column else f"{series} {self.table.names[value]}"

    @property
    def named_by(self) -> str:
        return " and ".join(f"`{self.table.names[at]}`" for at in self.by)

    @cached_property
    def _read(self) -> Callable[[type], pd.DataFrame]:
        """The columns of values, read once of each type."""
        import pandas as pd

        kept: dict[type, pd.DataFrame | ValueError] = {}

        def read(dtype: type) -> pd.DataFrame:
            if dtype not in kept:
                try:
                    found = self.table.read(self.values, dtype)
                    found.columns = pd.Index(self.values)
                    kept[dtype] = found
                except ValueError as error:  # there is text: another type will be asked for
                    kept[dtype] = error
            if isinstance(known := kept[dtype], ValueError):
                raise known
            return known

        return read

    def rows(self, series: pd.Series) -> dict[str, np.ndarray]:
        """The rows of each series, in the order of the first ones."""
        row_of = series.index.to_numpy()
        groups = series.groupby(series, sort=False).indices
        return {str(one): row_of[where] for one, where in groups.items()}

    def wide(self, columns: Sequence[tuple[str, int, np.ndarray]], *, part: bool = False) -> Table:
        """A table of columns of values, each of a name, a column of the long table and its rows."""
        import pandas as pd

        table, times, first = self.table, self.times, columns[0][2]

        def read(positions: Sequence[int], dtype: type) -> pd.DataFrame:
            if list(positions) == [0]:
                return times.iloc[first].reset_index(drop=True).to_frame()
            picked = [columns[position - 1] for position in positions]
            original = self._read(dtype)
            parts = [original[at].iloc[where].reset_index(drop=True) for _, at, where in picked]
            return pd.concat(parts, axis=1)

        series = len({where[0] for _, _, where in columns})
        about = f"{Path(table.source).name}: a long table of {series} series, named by {self.named_by}"
        said = [about + self.unused]
        if self.unknown:
            said.append(
                f"{Path(table.source).name}: `exclude` names no column or series: {listed(self.unknown)}"
            )
        labels = {name: (f"{table.names[at]}` of `{name}", where) for name, at, where in columns}
        return Table(
            source=table.source,
            names=(self.time_name, *(name for name, _, _ in columns)),
            n_rows=len(first),
            first_row=(),
            read=read,
            time_index=0,
            lines=table.lines,
            missing_words=table.missing_words,
            decimal=table.decimal,
            european=table.european,
            notices=table.notices if part else (*table.notices, *said),
            origins={self.time_name: (self.time_name, first), **labels},
        )

    def parts(self, rows: Mapping[str, np.ndarray], cells: pd.DataFrame, names: set[str]) -> list[Part]:
        """The series of these names, one by one; a single column names them by its own values."""
        found = []
        for at in self.values:
            for one, where in rows.items():
                if (name := self.name(one, at)) in names:
                    own = cells[self.by[0]].iloc[where[0]] if self.one_column and len(self.by) == 1 else name
                    found.append(Part(own, self.wide([(name, at, where)], part=True)))
        return found


def _aligned(rows: Mapping[str, np.ndarray], times: pd.Series) -> dict[str, np.ndarray] | None:
    """The rows of each series in the order of the first one's times; None unless all have these."""
    at = {one: dict(zip(times.iloc[where], where, strict=True)) for one, where in rows.items()}
    order = next(iter(at.values()))
    if any(known.keys() != order.keys() for known in at.values()):
        return None
    return {one: np.array([known[time] for time in order]) for one, known in at.items()}


def _unequal(long: _Long, rows: Mapping[str, np.ndarray], parts: Callable[[], list[Part]]) -> UnequalTimes:
    at = {one: set(long.times.iloc[where]) for one, where in rows.items()}
    longest = max(at, key=lambda one: len(at[one]))
    alike = [one for one in at if at[one] == at[longest]]
    odd = next(one for one in at if one not in alike)
    lacking = next((time for time in long.times.iloc[rows[longest]] if time not in at[odd]), None)
    what = f"this is a long table: {long.named_by} names {len(at)} series, which do not have the same times: "
    if lacking is None:
        what += f"{shorten(odd)} has {len(at[odd])}, {shorten(longest)} other ones"
    else:
        what += f"{shorten(odd)} has {len(at[odd])} and lacks {shorten(lacking)}, {shorten(longest)} has "
        what += str(len(at[longest]))
    fix = "Give every series all times, with empty cells where there is no value"
    if len(alike) <= 20:
        fix = f"Read those with the same times by `columns: {as_list(alike)}`. {fix}"
    fix += ". `ofa-jax forecast` and OneForAllForecaster read series of any times"
    column = " ".join(long.table.names[one] for one in long.by)
    more: dict[str, Any] = {"where": long.table.source, "fix": fix, "past": {"columns": alike}}
    return UnequalTimes(what, column=column, parts=parts, unused=long.unused, **more)

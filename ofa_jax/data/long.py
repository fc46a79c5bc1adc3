"""Long tables: one row per series and time, read as one column per series."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ofa_jax.data.tables import Table, as_list
from ofa_jax.errors import DataError, shorten

if TYPE_CHECKING:
    import pandas as pd

_ID = re.compile(r"(.*[_ ])?id", re.IGNORECASE)


class LongSeries(NamedTuple):
    """Series that need not have the same times.

    Attributes:
        frame: A row per series and time, with the values in ``y``.
        series: Its column that names the series.
        time: Its column of times.
    """

    frame: pd.DataFrame
    series: str
    time: str


class UnequalTimes(DataError):
    """A long table whose series do not have the same times; ``read`` gives them nevertheless."""

    def __init__(self, what: str, *, read: Callable[[], LongSeries], **more: Any) -> None:
        super().__init__(what, **more)
        self.read = read


def time_cells(table: Table, time: Sequence[int]) -> pd.Series:
    """The cells of the timestamps' column; those of a date and its time of day as one text."""
    cells = table.read(time, object).reset_index(drop=True)
    return cells.iloc[:, 0] if len(time) == 1 else cells.astype(str).agg(" ".join, axis=1)


def widen(
    table: Table, time: list[int], chosen: Sequence[str] | None, exclude: Sequence[str]
) -> tuple[Table, list[int]]:
    """A long table as a wide one, and the position of its timestamps; any other table as it is.

    Most timestamps of a long table repeat, and a column of text (or one called ``id``, ``unique_id``, …),
    or all of them together, name the series that a row is of. Series are called by that name, and by the
    column where there are several columns of values. ``chosen`` are names of series or columns of values.

    Raises:
        UnequalTimes: The series do not have the same timestamps.
        DataError: A column of values has text.
    """
    import pandas as pd

    times = time_cells(table, time) if time else pd.Series(dtype=object)
    if not times.duplicated(keep=False).mean() > 0.5:
        return table, time
    others = [at for at, name in enumerate(table.names) if at not in time and name not in exclude]
    cells = table.read(others, object).reset_index(drop=True)
    cells.columns = pd.Index(others)
    texts = [at for at in others if _is_text(cells[at])]
    keys = [at for at in others if at in texts or _ID.fullmatch(table.names[at])]
    values = [at for at in others if at not in keys]
    found = _series_of_rows(table, cells[keys].astype(str), times)
    if found is None or not values:
        return table, time
    by, series = found
    if chosen and all(name in [table.names[at] for at in values] for name in chosen):
        values, chosen = [table.names.index(name) for name in chosen], None
    several = len(values) > 1
    wanted = None
    if chosen:
        named = [(one, at) for one in series.unique() for at in values]
        wanted = {one for one, at in named if _name(table, one, at, several) in chosen}
    series = series[series.isin(wanted)] if wanted else series
    time_name = " ".join(table.names[at] for at in time)

    def long() -> LongSeries:
        found, kept = table.numbers(values), series.index.to_numpy()
        parts = {
            by.replace("`", ""): [_name(table, one, at, several) for at in values for one in series],
            time_name: np.tile(times.to_numpy(object)[kept], len(values)),
            "y": found[kept].T.ravel(),
        }
        frame = pd.DataFrame(parts)
        named = frame.iloc[:, 0].isin(list(chosen)) if chosen else slice(None)
        return LongSeries(frame[named], *frame.columns[:2])

    rows = _grid(table, by, series, times, long)
    columns = [(_name(table, one, at, several), at, rows[one]) for one in rows for at in values]
    first = next(iter(rows.values()))

    def read(positions: Sequence[int], dtype: type) -> pd.DataFrame:
        if list(positions) == [0]:
            return times.iloc[first].reset_index(drop=True).to_frame()
        picked = [columns[position - 1] for position in positions]
        original = table.read(values, dtype)
        original.columns = pd.Index(values)
        parts = [original[at].iloc[where].reset_index(drop=True) for _, at, where in picked]
        return pd.concat(parts, axis=1)

    labels = {name: (f"{table.names[at]}` of `{name}", where) for name, at, where in columns}
    about = f"a long table of {len(rows)} series, named by {by}"
    wide = Table(
        source=table.source,
        names=(time_name, *(name for name, _, _ in columns)),
        n_rows=len(first),
        first_row=(),
        read=read,
        lines=table.lines,
        missing_words=table.missing_words,
        comma=table.comma,
        notices=(*table.notices, f"{Path(table.source).name}: {about}"),
        origins={time_name: (time_name, first), **labels},
    )
    return wide, [0]


def _is_text(cells: pd.Series) -> bool:
    import pandas as pd

    return bool(cells.notna().any() and pd.to_numeric(cells, errors="coerce").isna().all())


def _name(table: Table, series: str, value: int, several: bool) -> str:
    return f"{series} {table.names[value]}" if several else series


def _series_of_rows(table: Table, keys: pd.DataFrame, times: pd.Series) -> tuple[str, pd.Series] | None:
    """The column, or columns, by which no time repeats within a series, and the series of each row."""
    named = [int(at) for at in keys.columns]
    options = [[at] for at in named] + ([named] if len(named) > 1 else [])
    for option in options:
        series = keys[option].agg(" ".join, axis=1) if len(option) > 1 else keys[option[0]]
        if not (series + "\n" + times.astype(str)).duplicated().any() and series.nunique() > 1:
            return " and ".join(f"`{table.names[at]}`" for at in option), series
    return None


def _grid(
    table: Table, by: str, series: pd.Series, times: pd.Series, long: Callable[[], LongSeries]
) -> dict[str, np.ndarray]:
    """The rows of each series, in the order of the first one's times, which all must have."""
    row_of = series.index.to_numpy()
    rows = {str(one): row_of[where] for one, where in series.groupby(series, sort=False).indices.items()}
    at = {one: dict(zip(times.iloc[where], where, strict=True)) for one, where in rows.items()}
    longest = max(at, key=lambda one: len(at[one]))
    grid = at[longest]
    alike = [one for one in at if at[one].keys() == grid.keys()]
    if len(alike) == len(at):
        order = list(next(iter(at.values())))
        return {one: np.array([known[time] for time in order]) for one, known in at.items()}
    odd = next(one for one in at if one not in alike)
    lacking = next((time for time in grid if time not in at[odd]), None)
    what = f"this is a long table: {by} names {len(at)} series, which do not have the same times: "
    if lacking is None:
        what += f"{shorten(odd)} has {len(at[odd])}, {shorten(longest)} other ones"
    else:
        what += f"{shorten(odd)} has {len(at[odd])} and lacks {shorten(lacking)}, {shorten(longest)} has "
        what += str(len(grid))
    fix = "Give every series all times, with empty cells where there is no value"
    if len(alike) <= 20:
        fix = f"Read those with the same times by `columns: {as_list(alike)}`. {fix}"
    fix += ". ofa-jax forecast and OneForAllForecaster read them as they are"
    raise UnequalTimes(what, read=long, where=table.source, fix=fix, past={"columns": alike})

"""Frames: series that share timestamps, read from CSV, Parquet or a DataFrame and checked."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ofa_jax.config.tasks import Missing, Timestamps
from ofa_jax.data.calendar import Step, following, step_of, wall_clock
from ofa_jax.data.clock import NAIVE, Clock
from ofa_jax.data.missing import fill_missing
from ofa_jax.data.tables import Table, as_table, read_parquet, read_text, require_file
from ofa_jax.data.timestamps import looks_like_date, read_times, step_between
from ofa_jax.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_TIME_NAMES = ("date", "timestamp", "time", "datetime", "ds")
_TEXT, _PARQUET = (".csv", ".csv.gz"), (".parquet", ".pq")


@dataclass(frozen=True, eq=False)
class Frame:
    """Series that share timestamps.

    Attributes:
        values: ``[T, C]`` float64, in original units, all finite.
        names: The C series' names, unique.
        timestamps: ``[T]`` datetime64, non-decreasing, UTC where the source had a time zone; None without any
            or where the source counts its rows.
        source: Origin of the values, for messages.
        time_name: Name of the source's timestamp column.
        clock: How the source counts and writes times.
        observed: ``[T, C]`` bool, False where a missing value was filled; None without any.
        notices: What reading inferred, one line each, for the user.
    """

    values: np.ndarray
    names: tuple[str, ...]
    timestamps: np.ndarray | None
    source: str
    time_name: str = "date"
    clock: Clock = NAIVE
    observed: np.ndarray | None = None
    notices: tuple[str, ...] = ()

    @property
    def n_rows(self) -> int:
        """Number of time steps T."""
        return int(self.values.shape[0])

    @property
    def n_channels(self) -> int:
        """Number of series C."""
        return int(self.values.shape[1])

    @cached_property
    def step(self) -> Step | None:
        """The step between rows; None without timestamps, or with fewer than three and no known frequency."""
        return None if self.timestamps is None else step_between(self.timestamps, self.clock)

    @property
    def frequency(self) -> str | None:
        """The alias of the step (``h``, ``15min``, ``D``, ``W-TUE``, ``MS``, ``M-15``), if there is one."""
        return self.clock.frequency if self.step is None else self.step.alias

    @property
    def dated(self) -> bool:
        """Whether the steps after the last row have dates; of counted rows only with a known frequency."""
        return self.timestamps is not None and (not self.clock.counted or self.clock.frequency is not None)

    def local_times(self, ahead: int | None = None) -> np.ndarray:
        """Times of the rows, or of the ``ahead`` steps after them, on their zone's clock; datetime64[us].

        Raises:
            DataError: As of :meth:`future_timestamps`.
        """
        times = self.future_timestamps(ahead or 0) if ahead or self.timestamps is None else self.timestamps
        return wall_clock(times.astype("M8[us]"), self.clock.zone)

    def future_timestamps(self, n: int) -> np.ndarray:
        """The ``n`` timestamps after the last row, ``[n]`` datetime64; days and months follow the calendar.

        Raises:
            DataError: There are no timestamps, they do not give the step, or they end with the year 9999.
        """
        if self.timestamps is not None and not self.dated:
            what = (
                "rows are counted whatever their times (`timestamps: as_is`), so the next times are unknown"
            )
            raise DataError(what, where=self.source, fix="Give the step between rows as `frequency`")
        if self.timestamps is None:
            what, fix = "there are no timestamps to continue", "Give the rows a timestamp column"
            raise DataError(what, where=self.source, fix=fix)
        if self.step is None:
            what = f"{self.n_rows} row(s) are too few to infer the step between timestamps"
            raise DataError(what, where=self.source, fix="Give at least three distinct ones")
        try:
            return following(self.timestamps, self.step, n, self.clock.zone)
        except DataError as error:
            raise DataError(error.what, where=self.source, fix=error.fix) from None


def read_frame(
    source: str | Path | pd.DataFrame,
    *,
    timestamp_column: str | None = None,
    columns: Sequence[str] | None = None,
    missing: Missing | Literal["keep"] = "error",
    timestamps: Timestamps = "error",
    timestamp_format: str | None = None,
    frequency: str | None = None,
    expected: str | None = None,
) -> Frame:
    """Read and check series from a CSV (``.csv``, ``.csv.gz``) or Parquet file or a DataFrame.

    Args:
        source: The file, or a DataFrame with its timestamps in a DatetimeIndex or a column.
        timestamp_column: Its name. Default: a column called date, timestamp, time, datetime or ds (in any
            case), otherwise a first column of dates, otherwise none.
        columns: The series to read, in this order; default: all columns, each of which must then be numeric.
        missing: Policy for empty cells, NaN and infinities: refuse them, interpolate between the neighboring
            rows (by row, not by time), carry the last value forward, or keep them.
        timestamps: Refuse repeated and irregular timestamps, or count the rows whatever their times. Either
            way they must be in order; a table with its newest row first is read from its end.
        timestamp_format: A format of strptime, or what numbers are: ``excel`` (day numbers), ``s``, ``ms``,
            ``us`` or ``ns`` since 1970. Default: recognized where it is unambiguous.
        frequency: The step between rows, such as ``h``, ``B`` or ``M-15``; default: inferred.
        expected: The step that is likely; decides how dates that can be read in several ways are read.

    Raises:
        DataError: Anything that cannot be read as asked, with file, column and row (1-based; the line as well
            for text files).
    """
    table = _open(source)
    time, chosen = _choose(table, timestamp_column, columns)
    names = tuple(table.names[position] for position in chosen)
    values = table.numbers(chosen)
    times, clock, time_name, rows = None, NAIVE, "date", slice(None)
    if time is not None:
        time_name = table.names[time]
        times, clock, newest_first = read_times(
            table.read([time], object).iloc[:, 0],
            partial(table.place, time_name),
            form=timestamp_format,
            frequency=frequency,
            expected=expected,
            counted=timestamps == "as_is",
        )
        rows = slice(None, None, -1 if newest_first else 1)
    elif frequency is not None:
        step_of(frequency)
        clock = Clock(frequency=frequency)
    values, order, observed = np.ascontiguousarray(values[rows]), range(table.n_rows)[rows], None
    if missing != "keep":
        known = np.isfinite(values)

        def place(column: int, row: int | None) -> str:
            return table.place(names[column], None if row is None else order[row])

        values = fill_missing(values, missing, place)
        observed = None if known.all() else known
    about = f"{Path(table.source).name}, column `{time_name}`"  # reports name no folders
    notices = tuple(f"{about}: {text}" for text in clock.notices)
    return Frame(values, names, times, table.source, time_name, clock, observed, notices)


def check_columns(frame: Frame, expected_names: Sequence[str]) -> Frame:
    """The frame with its series in the expected order.

    Raises:
        DataError: The set of names differs; missing and extra names are listed.
    """
    expected = tuple(expected_names)
    if frame.names == expected:
        return frame
    absent = [name for name in expected if name not in frame.names]
    extra = [name for name in frame.names if name not in expected]
    if absent or extra:
        kinds = (("missing", absent), ("extra", extra))
        listed = "; ".join(f"{kind}: {_listed(names, len(names))}" for kind, names in kinds if names)
        what = f"the columns are not the {len(expected)} used in training ({listed})"
        raise DataError(what, where=frame.source, fix="Give the same columns; their order does not matter")
    order = [frame.names.index(name) for name in expected]
    observed = None if frame.observed is None else frame.observed[:, order]
    values = np.ascontiguousarray(frame.values[:, order])
    return dataclasses.replace(frame, values=values, names=expected, observed=observed)


def _open(source: str | Path | pd.DataFrame) -> Table:
    if not isinstance(source, str | Path):
        return as_table(source, "DataFrame")
    path = Path(source)
    require_file(path)
    if path.name.lower().endswith(_TEXT):
        return read_text(path)
    if path.name.lower().endswith(_PARQUET):
        return read_parquet(path)
    fix = f"Give a file that ends in {', '.join([*_TEXT, *_PARQUET])}"
    raise DataError(f"the ending {path.suffix!r} is not supported", where=str(path), fix=fix)


def _choose(
    table: Table, timestamp_column: str | None, columns: Sequence[str] | None
) -> tuple[int | None, list[int]]:
    """Positions of the timestamp column (None where there is none) and of the value columns."""
    repeated = sorted({name for name in table.names if name and table.names.count(name) > 1})
    if repeated:
        what = f"{len(repeated)} column name(s) occur more than once: {_listed(repeated)}"
        raise DataError(what, where=table.source, fix="Give each column its own name")
    if table.n_rows == 0:
        what, fix = "there are no data rows", "Give at least one row below the header"
        raise DataError(what, where=table.source, fix=fix)
    time = _find_time(table, timestamp_column)
    chosen = [position for position in range(len(table.names)) if position not in (time, table.time_index)]
    if columns is not None:
        chosen = [_position(table, name) for name in columns]
        if len(set(chosen)) != len(chosen) or time in chosen:
            what = f"`columns` ({_listed(columns)}) repeats a series or includes the timestamps"
            raise DataError(what, where=table.source, fix="Name each series once in `columns`")
    if not chosen:
        what, fix = "there is no numeric column", "Give at least one column of numbers"
        raise DataError(what, where=table.source, fix=fix)
    unnamed = [position for position in chosen if not table.names[position]]
    if unnamed:
        fix = "Name it in the header, or list the series to read in `columns`"
        raise DataError(f"column {unnamed[0] + 1} has no name", where=table.source, fix=fix)
    return time, chosen


def _find_time(table: Table, timestamp_column: str | None) -> int | None:
    if timestamp_column is not None:
        return _position(table, timestamp_column)
    if table.time_index is not None:
        return table.time_index
    usual = [position for position, name in enumerate(table.names) if name.lower() in _TIME_NAMES]
    if len(usual) > 1:
        names = _listed([table.names[position] for position in usual])
        what = f"{len(usual)} columns could be the timestamps: {names}"
        raise DataError(what, where=table.source, fix="Name one as `timestamp_column`")
    if usual:
        return usual[0]
    return 0 if looks_like_date(table.first_cell) else None


def _position(table: Table, name: str) -> int:
    if name in table.names and name:
        return table.names.index(name)
    named = [known for known in table.names if known]
    nearest = difflib.get_close_matches(name, named, n=3, cutoff=0.4) or table.names[:10]
    fix = f"The nearest names are {_listed(nearest)}"
    raise DataError(f"there is no column `{name}`", where=table.source, fix=fix)


def _listed(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown

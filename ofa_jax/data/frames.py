"""Frames: series that share timestamps, read from text, Excel, Parquet or a DataFrame and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ofa_jax.config.tasks import Decimal, Missing, Timestamps
from ofa_jax.data import delimited, sheets
from ofa_jax.data.ambiguous import refuse_ambiguous, refuse_times_in_columns
from ofa_jax.data.calendar import Step, following, step_of, wall_clock
from ofa_jax.data.clock import NAIVE, Clock
from ofa_jax.data.columns import require_series
from ofa_jax.data.last_rows import times_needed
from ofa_jax.data.long import time_cells, widen
from ofa_jax.data.missing import check_sizes, fill_missing
from ofa_jax.data.tables import Table, as_list, as_table, read_parquet, require_file, unpacked_name
from ofa_jax.data.time_column import find_time, position_of
from ofa_jax.data.timestamps import read_times, step_between
from ofa_jax.errors import DataError, listed

if TYPE_CHECKING:
    import pandas as pd

PARQUET = (".parquet", ".pq")


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
            raise DataError(what, where=self.source, fix="Give three distinct ones, or set `frequency`")
        try:
            return following(self.timestamps, self.step, n, self.clock.zone)
        except DataError as error:
            raise DataError(error.what, where=self.source, fix=error.fix) from None


def read_frame(
    source: str | Path | pd.DataFrame | Table,
    *,
    timestamp_column: str | None = None,
    columns: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    id_columns: Sequence[str] | None = None,
    missing: Missing | Literal["keep"] = "error",
    missing_words: Sequence[str] | None = None,
    decimal: Decimal = "point",
    comment: str | None = None,
    sheet: str | None = None,
    timestamps: Timestamps = "error",
    timestamp_format: str | None = None,
    frequency: str | None = None,
    expected: str | None = None,
    trained_on: Sequence[str] | None = None,
    last: int | None = None,
    faults: list[DataError] | None = None,
    labels: str | None = None,
) -> Frame:
    """Read and check series from text (``.csv``, ``.tsv``, ``.txt``), Excel, Parquet or a DataFrame.

    Args:
        source: The file, a DataFrame with its timestamps in a DatetimeIndex or a column, or a table.
        timestamp_column: Its name, or ``date + time`` for two columns of these names. Default: one called
            date, timestamp, time, datetime or ds (in any case), else the first column if it has dates, else
            the only one that has.
        columns: The series to read, in this order; default: all columns, each of which must then be a series
            of numbers, and not a counter, an identifier or a date.
        exclude: Columns to leave out.
        id_columns: Columns that name the series of a long table; default: those of text.
        missing: Policy for empty cells, NaN and infinities: refuse them, interpolate between the neighboring
            rows (by row, not by time), carry the last value forward, or keep them.
        missing_words: What cells say that have no value, besides the usual words (``NA``, ``?``, ``-``, …).
        decimal: Whether numbers have a decimal point or comma, or how they are written where the other sign
            marks thousands. Numbers that may have such signs are refused unless it says so.
        comment: How lines of text begin that are comments; above the header also ``#``.
        sheet: Of an Excel file with several sheets.
        timestamps: Refuse repeated and irregular timestamps, or count the rows whatever their times. Either
            way they must be in order; a table with its newest row first is read from its end.
        timestamp_format: A format of strptime, or what numbers are: ``excel`` (day numbers), ``s``, ``ms``,
            ``us`` or ``ns`` since 1970. Default: recognized where it is unambiguous.
        frequency: The step between rows, such as ``h``, ``B`` or ``M-15``; default: inferred.
        expected: The step that is likely; decides how dates that can be read in several ways are read.
        trained_on: The series of a trained model, which are read instead of ``columns``; the others are not.
        last: How many rows at the end are needed. Where something is wrong with earlier rows alone, they are
            left out, but for times that go back.
        faults: Takes the error about rows of another width than the header's, which are left out; default:
            it is raised.
        labels: A column of the frame that is no series: its True and False are 1 and 0.

    Raises:
        DataError: Anything that cannot be read as asked, with file, column and row (1-based; the line as well
            for text files).
    """
    table = open_table(source, missing_words or (), decimal, comment, sheet, faults)
    table = dataclasses.replace(table, flags=labels)
    time = find_time(table, timestamp_column, exclude or ())
    table, time = widen(
        table,
        time,
        columns=columns,
        trained_on=trained_on,
        exclude=exclude or (),
        id_columns=id_columns,
        counted=timestamps == "as_is",
    )
    origins = [origin for name, origin in table.origins.items() if name != table.names[0]]
    if trained_on is not None:
        series = [name for position, name in enumerate(table.names) if position not in time]
        _require_columns(series, trained_on, table.source)
        columns = trained_on
    elif columns is not None and set(columns) <= {label.partition("` of `")[0] for label, _ in origins}:
        columns = None  # they were columns of a long table
    chosen = _choose(table, time, columns, exclude or ())
    names = tuple(table.names[position] for position in chosen)
    first = 0 if last is None else max(0, table.n_rows - last)
    times, clock, newest_first, time_name, cut = None, NAIVE, False, "date", 0
    if time:
        time_name = " ".join(table.names[position] for position in time)
        read = partial(
            read_times,
            form=timestamp_format,
            frequency=frequency,
            expected=expected,
            counted=timestamps == "as_is",
        )
        place = partial(table.place, time_name)
        cells = time_cells(table, time)
        times, clock, newest_first, cut, read_cells = times_needed(
            cells, place, first, read, timestamp_format
        )
        if timestamp_format is None and frequency is None and timestamps != "as_is":
            refuse_ambiguous(time_name, read_cells, times, place)
    else:
        if columns is None and trained_on is None:
            refuse_times_in_columns(table)
        if frequency is not None:
            step_of(frequency)
            clock = Clock(frequency=frequency)
    values = table.numbers(chosen, 0 if newest_first else first)
    if columns is None:
        require_series(table, names, values, timed=bool(time))
    values = np.ascontiguousarray(values[::-1] if newest_first else values)
    order = range(table.n_rows)[:: -1 if newest_first else 1]

    def place_of(column: int, row: int | None) -> str:
        return table.place(names[column], None if row is None else order[row])

    begin, observed = cut, None
    if missing == "keep":
        check_sizes(values, place_of)
    else:
        known = np.isfinite(values)
        empty = [name for name, column in zip(names, known.T, strict=True) if not column.any()]
        if empty and len(empty) < len(names) and trained_on is None:
            fix, past = f"Leave it out with `exclude: {as_list(empty)}`", {"exclude": empty}
            where = table.place(empty[0], None)
            raise DataError("has no finite value at all", where=where, fix=fix, past=past)
        late = [name for name, column in zip(names, known.T, strict=True) if not column[: first + 1].any()]
        if missing != "error" and 0 < len(late) < len(names) and trained_on is None:
            fix = f"Remove the rows before the first value, or leave it out with `exclude: {as_list(late)}`"
            past = {"exclude": late}
            what = f"the first values are missing, and `missing: {missing}` has nothing to fill them from"
            raise DataError(what, where=table.place(late[0], order[first]), fix=fix, past=past)
        values = fill_missing(values, missing, place_of, first)
        begin = cut if np.isfinite(values).all() else first
        observed = None if known[begin:].all() else known[begin:]
    values, times = values[begin:], None if times is None else times[begin - cut :]
    if clock.counter is not None:
        start, step = clock.counter
        clock = dataclasses.replace(clock, counter=(start + (begin - cut) * step, step))
    unused = []
    if trained_on is not None:
        unused = [name for at, name in enumerate(table.names) if name and at not in (*time, *chosen)]
    about = f"{Path(table.source).name}, column `{time_name}`"  # reports name no folders
    series = [name for name in names if name != labels]
    unknown = [name for name in exclude or () if name not in table.names and not origins]
    notices = _notices(table, series, time_name if time else None, unused, unknown)
    notices += tuple(f"{about}: {text}" for text in clock.notices)
    return Frame(values, names, times, table.source, time_name, clock, observed, notices)


def _notices(
    table: Table, names: Sequence[str], time_name: str | None, unused: Sequence[str], unknown: Sequence[str]
) -> tuple[str, ...]:
    """Which series are read, by which time, and what is not."""
    source, time = Path(table.source).name, "no timestamps" if time_name is None else f"time in `{time_name}`"
    used = f"{source}: {len(names)} series ({listed(names)}), {time}"
    used += f"; not used: {listed(unused)}" if unused else ""
    return (
        used,
        *table.notices,
        *([f"{source}: `exclude` names no column: {listed(unknown)}"] if unknown else []),
    )


def _require_columns(found: Sequence[str], expected: Sequence[str], source: str) -> None:
    absent = [name for name in expected if name not in found]
    if absent:
        extra = [name for name in found if name not in expected]
        kinds = (("missing", absent), ("extra", extra))
        differ = "; ".join(f"{kind}: {listed(names, len(names))}" for kind, names in kinds if names)
        what = f"the columns are not the {len(expected)} used in training ({differ})"
        raise DataError(what, where=source, fix="Give the same columns; their order does not matter")


def open_table(
    source: str | Path | pd.DataFrame | Table,
    missing_words: Sequence[str],
    decimal: Decimal,
    comment: str | None,
    sheet: str | None,
    faults: list[DataError] | None = None,
) -> Table:
    """A table with a name for each column and at least one row; arguments are those of :func:`read_frame`.

    Raises:
        DataError: The file cannot be read, names repeat, or there is no row.
    """
    table = _open(source, missing_words, decimal, comment, sheet, faults)
    _require_names(table)
    return table


def _open(
    source: str | Path | pd.DataFrame | Table,
    missing_words: Sequence[str],
    decimal: Decimal,
    comment: str | None,
    sheet: str | None,
    faults: list[DataError] | None,
) -> Table:
    words = tuple(missing_words)
    if isinstance(source, Table):
        return source
    if not isinstance(source, str | Path):
        return dataclasses.replace(as_table(source, "DataFrame"), missing_words=words, decimal=decimal)
    path = Path(source)
    require_file(path)
    if unpacked_name(path).endswith(delimited.ENDINGS):
        return delimited.read_text(path, missing_words=words, decimal=decimal, comment=comment, faults=faults)
    if path.suffix.lower() in PARQUET:
        table = read_parquet(path)
    elif path.suffix.lower() in sheets.ENDINGS:
        table = sheets.read_sheet(path, sheet)
    else:
        fix = f"Give a file that ends in {', '.join([*delimited.ENDINGS, *sheets.ENDINGS, *PARQUET])}"
        raise DataError(f"the ending {path.suffix!r} is not supported", where=str(path), fix=fix)
    return dataclasses.replace(table, missing_words=words, decimal=decimal)


def _require_names(table: Table) -> None:
    repeated = sorted({name for name in table.names if name and table.names.count(name) > 1})
    if repeated:
        what = f"{len(repeated)} column name(s) occur more than once: {listed(repeated)}"
        raise DataError(what, where=table.source, fix="Give each column its own name")
    if table.n_rows == 0:
        what, fix = "there are no data rows", "Give at least one row below the header"
        raise DataError(what, where=table.source, fix=fix)


def _choose(
    table: Table, time: Sequence[int], columns: Sequence[str] | None, exclude: Sequence[str]
) -> list[int]:
    """Positions of the series' columns."""
    used = [position for position, name in enumerate(table.names) if name not in exclude]
    chosen = [position for position in used if position not in (*time, table.time_index)]
    if columns is not None:
        chosen = [position_of(table, name) for name in columns]
        if len(set(chosen)) != len(chosen) or set(time) & set(chosen):
            what = f"`columns` ({listed(columns)}) repeats a series or includes the timestamps"
            raise DataError(what, where=table.source, fix="Name each series once in `columns`")
    if not chosen:
        what, fix = "there is no numeric column", "Give at least one column of numbers"
        raise DataError(what, where=table.source, fix=fix)
    unnamed = [position for position in chosen if not table.names[position]]
    if unnamed:
        named = [table.names[position] for position in chosen if table.names[position]]
        fix = f"Name it in the header, or set `columns: {as_list(named)}`"
        raise DataError(f"column {unnamed[0] + 1} has no name", where=table.source, fix=fix)
    return chosen

"""Frames: series that share timestamps, read from CSV, Parquet or a DataFrame, checked before anything else sees them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ofa_jax.config.tasks import Missing, Timestamps
from ofa_jax.data.tables import PandasTable, TextTable, read_parquet, read_text
from ofa_jax.data.timestamps import check_order, following, has_zone, infer_step, looks_like_date, parse_times
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
        timestamps: ``[T]`` datetime64[ns] in non-decreasing order (UTC where the source had a time zone), or None.
        source: Where the values come from, for messages.
        time_name: What the source calls its timestamps.
        zoned: Whether the source's timestamps had a time zone.
    """

    values: np.ndarray
    names: tuple[str, ...]
    timestamps: np.ndarray | None
    source: str
    time_name: str = "date"
    zoned: bool = False

    @property
    def n_rows(self) -> int:
        """Number of time steps T."""
        return int(self.values.shape[0])

    @property
    def n_channels(self) -> int:
        """Number of series C."""
        return int(self.values.shape[1])

    @property
    def frequency(self) -> str | None:
        """The pandas alias of the step (``h``, ``15min``, ``D``, ``W-TUE``, ``MS``), the most common one where steps differ.

        None without timestamps, with fewer than three of them, or for a step that pandas has no alias for.
        """
        step = None if self.timestamps is None else infer_step(self.timestamps)
        return None if step is None else step.alias

    def future_timestamps(self, n: int) -> np.ndarray:
        """The ``n`` timestamps after the last row, ``[n]`` datetime64[ns], by the calendar where the step is one of it.

        Raises:
            DataError: There are no timestamps, or too few to know their step.
        """
        if self.timestamps is None:
            raise DataError(
                "there are no timestamps to continue",
                where=self.source,
                fix="Give the rows a timestamp column",
            )
        step = infer_step(self.timestamps)
        if step is None:
            raise DataError(
                f"{self.n_rows} row(s) do not tell the step between timestamps",
                where=self.source,
                fix="Give at least three distinct ones",
            )
        return following(self.timestamps, step, n)


def read_frame(
    source: str | Path | pd.DataFrame,
    *,
    timestamp_column: str | None = None,
    columns: Sequence[str] | None = None,
    missing: Missing = "error",
    timestamps: Timestamps = "error",
) -> Frame:
    """Read and check series from a CSV (``.csv``, ``.csv.gz``) or Parquet file or a DataFrame.

    Args:
        source: The file, or a DataFrame with its timestamps in a DatetimeIndex or a column.
        timestamp_column: Its name. By default a column called date, timestamp, time, datetime or ds in any case, otherwise
            a first column of dates, otherwise none.
        columns: The series to read, in this order; by default all columns, each of which must then be numeric.
        missing: What to do about empty cells, NaN and infinities: refuse them, draw a line between the neighbouring rows
            (by row, not by time), or carry the last value forward.
        timestamps: Refuse repeated and irregular timestamps, or keep all rows as they are. Order is required either way.

    Raises:
        DataError: Anything that cannot be read as asked, with file, column and row (1-based; for text files also the line).
    """
    table = _open(source)
    time, chosen = _choose(table, timestamp_column, columns)
    values = table.numbers(chosen)
    names = tuple(table.names[position] for position in chosen)
    if time is None:
        return Frame(_fill(values, names, missing, table), names, None, table.source)
    place, cells = table.place(table.names[time]), table.cells(time)
    times = parse_times(cells, place)
    check_order(times, timestamps, place)
    return Frame(
        _fill(values, names, missing, table), names, times, table.source, table.names[time], has_zone(cells)
    )


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
        parts = [
            f"{word}: {', '.join(f'`{name}`' for name in names)}"
            for word, names in (("missing", absent), ("extra", extra))
            if names
        ]
        raise DataError(
            f"the columns are not the {len(expected)} that were trained on ({'; '.join(parts)})",
            where=frame.source,
            fix="Give the same columns; their order does not matter",
        )
    order = [frame.names.index(name) for name in expected]
    return dataclasses.replace(frame, values=np.ascontiguousarray(frame.values[:, order]), names=expected)


def _open(source: str | Path | pd.DataFrame) -> TextTable | PandasTable:
    if not isinstance(source, str | Path):
        return PandasTable.of(source, "DataFrame")
    path = Path(source)
    if not path.exists():
        raise DataError("there is no such file", where=str(path), fix="Check the path")
    if path.is_file() and path.name.lower().endswith(_TEXT):
        return read_text(path)
    if path.is_file() and path.name.lower().endswith(_PARQUET):
        return read_parquet(path)
    raise DataError(
        "is a folder" if path.is_dir() else f"the ending {path.suffix!r} is not one that is read",
        where=str(path),
        fix=f"Give a file that ends in {', '.join([*_TEXT, *_PARQUET])}",
    )


def _choose(
    table: TextTable | PandasTable, timestamp_column: str | None, columns: Sequence[str] | None
) -> tuple[int | None, list[int]]:
    """Positions of the timestamp column (None where there is none) and of the value columns."""
    repeated = sorted({name for name in table.names if name and table.names.count(name) > 1})
    if repeated:
        raise DataError(
            f"{len(repeated)} column name(s) stand more than once: {_listed(repeated)}",
            where=table.source,
            fix="Give each column its own name",
        )
    if table.n_rows == 0:
        raise DataError(
            "there are no data rows", where=table.source, fix="Give at least one row below the header"
        )
    time = _find_time(table, timestamp_column)
    chosen = [position for position in range(len(table.names)) if position not in (time, table.time_index)]
    if columns is not None:
        chosen = [_position(table, name) for name in columns]
        if len(set(chosen)) != len(chosen) or time in chosen:
            raise DataError(
                f"the columns asked for ({_listed(columns)}) repeat one or include the timestamps",
                where=table.source,
                fix="Name each series once in `columns`",
            )
    if not chosen:
        raise DataError(
            "there is no numeric column", where=table.source, fix="Give at least one column of numbers"
        )
    unnamed = [position for position in chosen if not table.names[position]]
    if unnamed:
        raise DataError(
            f"column {unnamed[0] + 1} has no name",
            where=table.source,
            fix="Name it in the header, or list the series wanted in `columns`",
        )
    return time, chosen


def _find_time(table: TextTable | PandasTable, timestamp_column: str | None) -> int | None:
    if timestamp_column is not None:
        return _position(table, timestamp_column)
    if table.time_index is not None:
        return table.time_index
    usual = [position for position, name in enumerate(table.names) if name.lower() in _TIME_NAMES]
    if len(usual) > 1:
        raise DataError(
            f"{len(usual)} columns could hold the timestamps: {_listed([table.names[position] for position in usual])}",
            where=table.source,
            fix="Name one as `timestamp_column`",
        )
    if usual:
        return usual[0]
    return 0 if looks_like_date(table.first_cell) else None


def _position(table: TextTable | PandasTable, name: str) -> int:
    if name in table.names and name:
        return table.names.index(name)
    nearest = difflib.get_close_matches(
        name, [known for known in table.names if known], n=3, cutoff=0.4
    ) or list(table.names[:10])
    raise DataError(
        f"there is no column `{name}`", where=table.source, fix=f"The nearest names are {_listed(nearest)}"
    )


def _listed(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _fill(
    values: np.ndarray, names: tuple[str, ...], missing: Missing, table: TextTable | PandasTable
) -> np.ndarray:
    gone = ~np.isfinite(values)
    if not gone.any():
        return values
    entirely = np.flatnonzero(gone.all(axis=0))
    if len(entirely):
        raise DataError(
            "has no finite value at all",
            where=table.place(names[entirely[0]])(None),
            fix="Leave the column out with `columns`",
        )
    row, column = (int(position) for position in np.argwhere(gone)[0])
    if missing == "error":
        raise DataError(
            f"{int(gone.sum())} value(s) are missing or infinite, the first {'missing' if np.isnan(values[row, column]) else 'infinite'}",
            where=table.place(names[column])(row),
            fix="Fill them, or set `missing: linear` or `missing: ffill`",
        )
    first = gone[0] | (gone[-1] if missing == "linear" else False)
    if first.any():
        column = int(np.flatnonzero(first)[0])
        row = 0 if gone[0, column] else len(values) - 1
        raise DataError(
            f"the {'first' if row == 0 else 'last'} value is missing or infinite and `missing: {missing}` has nothing to fill it from",
            where=table.place(names[column])(row),
            fix="Remove the rows up to the first complete one"
            if row == 0
            else "Remove the last rows, or set `missing: ffill`",
        )
    rows = np.arange(len(values))
    filled = values.copy()
    for column in np.flatnonzero(gone.any(axis=0)).tolist():
        known = rows[~gone[:, column]]
        if missing == "linear":
            filled[:, column] = np.interp(rows, known, values[known, column])
        else:
            filled[:, column] = values[known[np.searchsorted(known, rows, side="right") - 1], column]
    return filled

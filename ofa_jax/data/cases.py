"""Cases in the rows of a long table: a column that says which case, one per channel, and their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ofa_jax.data import delimited, sheets
from ofa_jax.data.archives import LabelledCases
from ofa_jax.data.frames import PARQUET, open_table
from ofa_jax.data.missing import fill_missing
from ofa_jax.data.tables import NO_VALUE, TIME_NAMES, Table, as_list, unpacked_name
from ofa_jax.errors import DataError, listed, shorten

if TYPE_CHECKING:
    import pandas as pd

CASE = "case"
LABEL = "label"
"""The usual name of the column of classes."""
_LEAST_COUNTED = 3  # cases of more than two rows that show that a column counts them


class CaseTable(NamedTuple):
    """Cases, and the names of their channels."""

    cases: LabelledCases
    channels: tuple[str, ...]


def names_table(source: str | Path) -> bool:
    """Whether a path ends as tables do, and not as the files of an archive."""
    return unpacked_name(Path(source)).endswith((*delimited.ENDINGS, *sheets.ENDINGS, *PARQUET))


def read_case_table(
    source: str | Path | pd.DataFrame,
    reading: Mapping[str, Any],
    *,
    labels: str | None = None,
    label_column: str | None = None,
    channels: Sequence[str] | None = None,
    unlabeled: bool = False,
) -> CaseTable:
    """Cases of a long table, in the order of their first rows; the rows of a case are its steps.

    A column ``case`` says which case a row is of. Columns of times (date, timestamp, time, datetime, ds) only
    have to ascend within each case. Other columns are channels; one that counts rows is refused.

    Args:
        source: A CSV, Excel or Parquet file or a DataFrame.
        reading: Settings of how it is read: ``columns`` (the channels), ``exclude``, ``missing``,
            ``missing_words``, ``decimal``, ``comment``, ``sheet``.
        labels: A table with the column ``case`` and that of the classes, a row per case; default: the classes
            are in ``source``, the same in all rows of a case.
        label_column: The column of classes; default: ``label``.
        channels: The channels of a trained model; other columns are not read.
        unlabeled: Whether classes are not read.

    Raises:
        DataError: A column is missing or counts rows, a cell is no number, a case has no class or several,
            times do not ascend.
    """
    table = _open(source, reading)
    names_w = _texts(table, CASE, "Call the column `case` that says of which case a row is")
    ids, number_w = _numbered(names_w)
    order = np.argsort(number_w, kind="stable")
    rows_of = np.split(order, np.flatnonzero(np.diff(number_w[order])) + 1)
    left_out = reading.get("exclude") or ()
    times = [name for name in table.names if name.lower() in TIME_NAMES and name not in left_out]
    for name in times:
        _check_times(table, name, rows_of, ids)
    column = label_column or LABEL
    within = {CASE, *times} | ({column} if labels is None else set())
    chosen = _channels(table, within, channels, reading)
    values = table.numbers([table.names.index(name) for name in chosen])
    if channels is None and reading.get("columns") is None:
        _refuse_counters(table, chosen, [values[rows] for rows in rows_of])
    parts = []
    for number, rows in enumerate(rows_of):

        def place(channel: int, row: int | None, rows: np.ndarray = rows, number: int = number) -> str:
            return table.place(chosen[channel], int(rows[row or 0])) + f", case {shorten(ids[number])}"

        parts.append(fill_missing(values[rows], reading.get("missing", "error"), place))
    known = [np.isfinite(values[rows]) for rows in rows_of]
    classes = [""] * len(ids)
    if not unlabeled:
        source_of_labels = table if labels is None else _open(labels, reading)
        classes = _classes(source_of_labels, column, ids)
    used = f"{Path(table.source).name}: {len(ids):,} cases of {len(chosen)} channels ({listed(chosen)})"
    unused = [name for name in table.names if name not in (*within, *chosen)]
    made = LabelledCases(
        cases=tuple(parts),
        labels=tuple(classes),
        classes=tuple(sorted(set(classes))),
        observed=None if all(one.all() for one in known) else tuple(known),
        source=table.source,
        notices=(used + (f"; not used: {listed(unused)}" if unused else ""), *table.notices),
        names=tuple(ids),
    )
    return CaseTable(made, chosen)


def names_of(source: str | Path | pd.DataFrame, reading: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a table's columns; none where it cannot be opened."""
    try:
        return _open(source, reading, []).names
    except DataError:
        return ()


def _open(
    source: str | Path | pd.DataFrame, reading: Mapping[str, Any], faults: list[DataError] | None = None
) -> Table:
    return open_table(
        source,
        reading.get("missing_words", ()),
        reading.get("decimal", "point"),
        reading.get("comment"),
        reading.get("sheet"),
        faults,
    )


def _texts(table: Table, name: str, fix: str) -> list[str]:
    """The cells of a column as text; none may be empty.

    Raises:
        DataError: There is no such column, or a cell is empty.
    """
    if name not in table.names:
        what = f"there is no column `{name}` among {listed(table.names)}"
        raise DataError(what, where=table.source, fix=fix)
    cells = table.read([table.names.index(name)], object).iloc[:, 0].tolist()
    found = [_text(cell) for cell in cells]
    if "" in found:
        row = found.index("")
        raise DataError("the cell is empty", where=table.place(name, row), fix="Fill it, or remove the row")
    return found


def _text(cell: Any) -> str:
    """A cell as text, a whole number without a decimal point; empty where it has no value."""
    if cell is None or type(cell).__name__ == "NAType" or cell != cell:
        return ""
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        cell = int(cell)
    text = str(cell).strip()
    return "" if text in NO_VALUE else text


def _numbered(names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different names in the order in which they come, and the number of each."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return list(numbers), np.array([numbers[name] for name in names])


def _check_times(table: Table, name: str, rows_of: Sequence[np.ndarray], ids: Sequence[str]) -> None:
    """Refuse times that do not ascend within a case.

    Raises:
        DataError: They do not, or are neither numbers nor times.
    """
    import pandas as pd

    cells = table.read([table.names.index(name)], object).iloc[:, 0]
    try:
        times = pd.to_numeric(cells).to_numpy(np.float64)
    except (ValueError, TypeError):
        try:
            times = pd.to_datetime(cells, format="ISO8601", utc=True).to_numpy("M8[us]").astype(np.float64)
        except (ValueError, TypeError, OverflowError):
            fix = f"Write times as 2024-01-31 12:00 or as numbers, or set data.exclude to [{name}]"
            where = table.place(name, None)
            raise DataError("times of cases cannot be read", where=where, fix=fix) from None
    for number, rows in enumerate(rows_of):
        wrong = np.flatnonzero(~(np.diff(times[rows]) > 0))
        if len(wrong):
            where = table.place(name, int(rows[wrong[0] + 1]))
            what = f"the times of case {shorten(ids[number])} do not ascend"
            raise DataError(what, where=where, fix="Sort the rows of each case by time")


def _refuse_counters(table: Table, names: Sequence[str], cases: Sequence[np.ndarray]) -> None:
    """Refuse columns that count rows, of each case or of the table: their order would give the classes away.

    Raises:
        DataError: There are such columns, of more than two rows in a case.
    """
    steps = [np.diff(np.sort(values, axis=0), axis=0) for values in cases if len(values) > 2]
    if len(steps) < _LEAST_COUNTED:
        return
    every = np.concatenate(steps)
    counting = np.isclose(every, every[0], rtol=1e-6, atol=0).all(axis=0) & (every[0] != 0)
    if found := [name for name, is_one in zip(names, counting, strict=True) if is_one]:
        what = "it counts rows, and is no channel"
        fix = f"Leave it out with `exclude: {as_list(found)}`, call it `time` to have the order of rows "
        fix += "checked, or list the channels in `columns`"
        raise DataError(what, where=table.place(found[0], None), fix=fix, past={"exclude": found})


def _channels(
    table: Table, taken: set[str], channels: Sequence[str] | None, reading: Mapping[str, Any]
) -> tuple[str, ...]:
    """The columns that are channels.

    Raises:
        DataError: A column that is asked for is missing, or none is left.
    """
    asked = reading.get("columns") if channels is None else channels
    left_out = reading.get("exclude") or ()
    others = [name for name in table.names if name not in taken and name not in left_out]
    chosen = others if asked is None else [name for name in asked if name not in taken]
    if missing := [name for name in chosen if name not in table.names]:
        what = f"there is no column {listed(missing)}; the table has {listed(table.names)}"
        raise DataError(what, where=table.source, fix="Give a column per channel, under the same names")
    if not chosen:
        raise DataError("no column is a channel", where=table.source, fix="Give a column per channel")
    return tuple(chosen)


def _classes(table: Table, column: str, ids: Sequence[str]) -> list[str]:
    """The class of each case.

    Raises:
        DataError: A case has none, or several.
    """
    names = _texts(table, CASE, "Give the case of each row as `case`")
    fix = "Name the column of classes in data.label_column, or a table of them in data.labels"
    found: dict[str, str] = {}
    for row, (name, text) in enumerate(zip(names, _texts(table, column, fix), strict=True)):
        if found.setdefault(name, text) != text:
            what = f"case {shorten(name)} has the classes {shorten(found[name])} and {shorten(text)}"
            raise DataError(what, where=table.place(column, row), fix="Give each case one class")
    if without := [name for name in ids if name not in found]:
        what = f"{len(without):,} case(s) have no class, the first is {shorten(without[0])}"
        raise DataError(what, where=table.source, fix="Give each case a class")
    return [found[name] for name in ids]

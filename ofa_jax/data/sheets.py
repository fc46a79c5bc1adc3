"""Sheets of Excel workbooks as tables, checked like text; they are read by openpyxl, an extra."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import datetime
from datetime import time as clock
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ofa_jax.data.dates import on_grid
from ofa_jax.data.delimited import check_header
from ofa_jax.data.tables import Table
from ofa_jax.errors import DataError, shorten

if TYPE_CHECKING:
    import pandas as pd

ENDINGS = (".xlsx", ".xlsm")
_LAST_ROW, _MOST_CELLS = 2**20, 2**26  # the first is Excel's

Rows = Mapping[int, tuple[Any, ...]]
"""Rows that have cells, by their number in Excel."""


def read_sheet(path: Path, sheet: str | None = None) -> Table:
    """Read a sheet of a workbook; default: the only one that has cells.

    The first row with cells is the header; a row's line is its number in Excel. Dates at midnight are dates
    without a time of day.

    Raises:
        DataError: openpyxl is not installed, the file is damaged or too large, it is not clear which sheet to
            read, or its first row is no header.
    """
    import pandas as pd

    sheets = _sheets(path)
    if sheet is None and len(sheets) == 1:
        (sheet,) = sheets
    if sheet not in sheets:
        what = f"{len(sheets)} sheets have cells" if sheets else "all sheets are empty"
        if sheet is not None:
            what = f"there is no sheet {shorten(sheet)} with cells"
        fix = f"Choose one: set {' or '.join(f'`sheet: {name}`' for name in list(sheets)[:10])}"
        raise DataError(what, where=str(path), fix=fix if sheets else "Give one with a header and data rows")
    rows = sheets[sheet]
    columns = sorted({at for row in rows.values() for at, cell in enumerate(row) if _is_filled(cell)})
    first, *lines = range(min(rows), max(rows) + 1)
    if len(lines) * len(columns) > _MOST_CELLS:
        what = (
            f"the sheet has {len(lines):,} rows and {len(columns):,} columns, more than {_MOST_CELLS:,} cells"
        )
        raise DataError(what, where=str(path), fix="Clear stray cells far from the table, or save it as CSV")

    def cells(number: int) -> list[Any]:
        row = rows.get(number, ())
        return [row[at] if at < len(row) and row[at] is not None else "" for at in columns]

    names = tuple(str(name).strip() for name in cells(first))
    check_header(names, f"{path}, line {first}")
    frame = pd.DataFrame([cells(line) for line in lines], columns=range(len(names)), dtype=object)
    notices = []
    for at, name in enumerate(names):
        frame[at], rounded = _dates(frame[at])
        notices += [f"{path.name}, column `{name}`: {rounded}"] if rounded else []
    return Table(
        source=str(path),
        names=names,
        n_rows=len(lines),
        first_row=tuple(map(str, frame.iloc[0])) if lines else (),
        read=lambda positions, dtype: frame.iloc[:, list(positions)],
        lines=lines,
        notices=tuple(notices),
    )


def _sheets(path: Path) -> dict[str, Rows]:
    """The sheets that have cells."""
    found: dict[str, Rows] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions
            from openpyxl import load_workbook

            with open(path, "rb") as file:
                book = load_workbook(file, read_only=True, data_only=True)
                for sheet in book.worksheets:
                    sheet.reset_dimensions()  # the ones in the file may be wrong
                    rows = {}
                    for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
                        if number > _LAST_ROW:
                            raise ValueError(f"there is a row beyond {_LAST_ROW:,}")
                        if any(map(_is_filled, row)):
                            rows[number] = row
                    if rows:
                        found[sheet.title] = rows
    except ImportError:
        what, fix = "reading Excel files needs openpyxl", "Run `pip install 'ofa-jax[excel]'`"
        raise DataError(what, where=str(path), fix=fix) from None
    except Exception as error:  # of openpyxl and what it reads with
        what = f"not readable as .xlsx ({type(error).__name__}: {' '.join(str(error).split())})"
        raise DataError(what, where=str(path), fix="Check that the file is complete") from None
    return found


def _is_filled(cell: object) -> bool:
    return cell is not None and cell != ""


def _dates(cells: pd.Series) -> tuple[pd.Series, str | None]:
    """Cells with times as Excel shows them, and a notice where they were rounded; midnights are dates."""
    import pandas as pd

    dated = cells.map(lambda cell: isinstance(cell, datetime)).astype(bool)
    if not dated.any():
        return cells, None
    times, rounded = on_grid(pd.Series(np.array(cells[dated].tolist(), "M8[us]")))
    found = [time.date() if time.time() == clock() else time for time in times.to_numpy().astype(object)]
    return cells.mask(dated, pd.Series(found, cells.index[dated], dtype=object)), rounded

"""Tables: delimited text, Parquet and DataFrames as named columns that know where each cell is."""

from __future__ import annotations

import csv
import gzip
import io
import numbers
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from ofa_jax.data.timestamps import looks_like_date, shorten
from ofa_jax.errors import DataError
from ofa_jax.files import check_regular

if TYPE_CHECKING:
    import pandas as pd

_DELIMITERS = (",", ";", "\t")
_NO_VALUE = ("", "NaN", "nan", "-nan", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None", "<NA>")
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|infinity|nan)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, eq=False)
class Table:
    """Named columns of text or numbers.

    Attributes:
        source: Their origin, for messages.
        names: The columns' names.
        n_rows: Number of data rows T.
        first_cell: The first column of the first row as text; empty where it is a number.
        read: ``read(positions, dtype)``: those columns as a DataFrame. Text files read ``float``
            (ValueError on text) or ``object``; other sources ignore ``dtype``.
        time_index: Position of the column that was the DataFrame's index, or None.
        lines: The file's line of each data row, 1-based; None where there are no lines.
    """

    source: str
    names: tuple[str, ...]
    n_rows: int
    first_cell: str
    read: Callable[[Sequence[int], type], pd.DataFrame]
    time_index: int | None = None
    lines: Sequence[int] | None = None

    def numbers(self, positions: Sequence[int]) -> np.ndarray:
        """The columns at ``positions`` as ``[T, C]`` float64, NaN where a cell is empty.

        Raises:
            DataError: A cell that is not a real number, with column and row.
        """
        try:
            frame = self.read(positions, float)
        except ValueError:  # it names neither column nor line: search cell by cell
            frame = self.read(positions, object)
        if {dtype.kind for dtype in frame.dtypes} <= set("iuf"):
            return np.array(frame.to_numpy(np.float64, na_value=np.nan), order="C")
        cells = [frame.iloc[:, index].tolist() for index in range(len(positions))]
        values = [[_number(cell) for cell in column] for column in cells]
        only_text = [all(value is None for value in column) for column in values]
        for index, column in enumerate(values):
            if None not in column:
                continue
            row = column.index(None)
            text = cells[index][row]
            what, fix = "among numbers the column", "Correct it, or leave the cell empty"
            if only_text[index]:
                what, fix = "the column", "List the columns of numbers in `columns`"
            if all(only_text):
                what, fix = "there is no numeric column; this one", "Give at least one column of numbers"
            if re.fullmatch(r"[+-]?[\d.]+,\d+", str(text).strip()):
                fix = "Write numbers with a decimal point and without thousands signs"
            where = self.place(self.names[positions[index]], row)
            raise DataError(f"{what} contains the text {shorten(text)}", where=where, fix=fix)
        return np.array(values, dtype=np.float64).T.copy()

    def place(self, name: str, row: int | None) -> str:
        """How messages name a column, or its cell in a row (0-based)."""
        if row is None:
            return f"{self.source}, column `{name}`"
        line = "" if self.lines is None else f" (line {self.lines[row]})"
        return f"{self.source}, column `{name}`, row {row + 1}{line}"


def _number(cell: object) -> float | None:
    if isinstance(cell, str):
        text = cell.strip()
        return float("nan") if text in _NO_VALUE else float(text) if NUMBER.fullmatch(text) else None
    if cell is None or type(cell).__name__ == "NAType":
        return float("nan")
    if isinstance(cell, bool) or not isinstance(cell, numbers.Real | Decimal):
        return None
    try:
        return float(cell)
    except OverflowError:
        return None


def as_table(frame: pd.DataFrame, source: str) -> Table:
    """A DataFrame's columns, its index first if that contains timestamps (row numbers are ignored).

    Raises:
        DataError: Not a DataFrame, several levels of columns or index, an index that is neither
            timestamps nor row numbers.
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        what = f"a {type(frame).__name__} is neither a path nor a DataFrame"
        raise DataError(what, fix="Give one of the two")
    if isinstance(frame.columns, pd.MultiIndex) or isinstance(frame.index, pd.MultiIndex):
        what = "the columns or the index have several levels"
        raise DataError(what, where=source, fix="Flatten them to one level")
    index = frame.index.to_timestamp() if isinstance(frame.index, pd.PeriodIndex) else frame.index
    dated = isinstance(index, pd.DatetimeIndex)
    if len(index) and isinstance(index[0], str):
        dated = looks_like_date(index[0])
    if dated:
        frame = frame.copy(deep=False)
        frame.insert(0, "index" if index.name is None else index.name, index, allow_duplicates=True)
    elif len(index) and not pd.api.types.is_integer_dtype(index.dtype):
        what = f"the index contains {shorten(index[0])}, neither timestamps nor row numbers"
        fix = "Set a DatetimeIndex, or turn the index into a column with `reset_index()`"
        raise DataError(what, where=source, fix=fix)
    first = frame.iat[0, 0] if frame.size else ""
    return Table(
        source=source,
        names=tuple(map(str, frame.columns)),
        n_rows=len(frame),
        first_cell=str(first) if isinstance(first, str) or hasattr(first, "year") else "",
        read=lambda positions, dtype: frame.iloc[:, list(positions)],
        time_index=0 if dated else None,
    )


def read_parquet(path: Path) -> Table:
    """Read a Parquet file, with the index that pandas stored in it.

    Raises:
        DataError: The file is not Parquet or is damaged.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # of pyarrow, or anything where pandas' metadata of the file are damaged
        what = f"not readable as Parquet ({type(error).__name__}: {' '.join(str(error).split())})"
        raise DataError(what, where=str(path), fix="Check that the file is complete") from None
    return as_table(frame, str(path))


def read_text(path: Path) -> Table:
    """Read a delimited text file (``,``, ``;`` or tab; UTF-8, UTF-16 with BOM, else Latin-1; gzip by name).

    Raises:
        DataError: The file is damaged, empty or not text, has no header, or a row does not have its width.
    """
    with open_data(path) as file:
        content = file.read()
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = content.decode("utf-16", errors="replace") if utf16 else decode(content)
    if "\0" in text:
        raise DataError("the file contains binary data, not text", where=str(path), fix="Give CSV or Parquet")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    body = text.lstrip("\n")
    skipped = len(text) - len(body)
    if not body.strip():
        fix = "Give a file with a header line and data rows"
        raise DataError("the file is empty", where=str(path), fix=fix)
    # blank lines at the end are not rows; one in the middle is a row with nothing in it
    body = re.sub(r"(?:\n *)+\Z", "", body) + "\n"
    delimiter = max(_DELIMITERS, key=re.sub(r'"[^"]*"', "", body.split("\n", 1)[0]).count)
    reader = csv.reader(io.StringIO(body), delimiter=delimiter, skipinitialspace=True)
    lines, first_cell = [], ""
    try:
        names = tuple(name.strip() for name in next(reader))
        _check_header(names, f"{path}, line {skipped + 1}")
        for fields in reader:
            lines.append(skipped + reader.line_num)
            fields = fields or [""]
            if len(lines) == 1:
                first_cell = fields[0].strip()
            if len(fields) != len(names):
                what = f"has {len(fields)} field(s) where the header has {len(names)}"
                fix = "Correct the row; a text with the delimiter in it needs quotes"
                raise DataError(what, where=f"{path}, row {len(lines)} (line {lines[-1]})", fix=fix)
    except csv.Error as error:
        raise _not_text(path, error) from None
    read = partial(_read_csv, path, body, delimiter, len(names))
    return Table(str(path), names, len(lines), first_cell, read, lines=lines)


def _not_text(path: Path, error: Exception) -> DataError:
    what = f"not readable as delimited text ({' '.join(str(error).split())})"
    return DataError(what, where=str(path), fix="Check the quotes in the file")


def _read_csv(
    path: Path, text: str, delimiter: str, width: int, positions: Sequence[int], dtype: type
) -> pd.DataFrame:
    import pandas as pd

    # from pandas 3.1 on every number is read exactly and the option that asks for it warns
    old = tuple(int(part) for part in pd.__version__.split(".")[:2]) < (3, 1)
    exact: dict[str, Any] = {"float_precision": "round_trip"} if old else {}
    try:
        frame = pd.read_csv(
            io.StringIO(text),
            sep=delimiter,
            header=0,
            names=list(range(width)),
            usecols=sorted(positions),
            dtype=dict.fromkeys(positions, dtype),
            na_values=list(_NO_VALUE) if dtype is float else [],
            keep_default_na=False,
            skip_blank_lines=False,
            skipinitialspace=True,
            index_col=False,
            **exact,
        )
    except ValueError as error:  # pandas' ParserError is one
        if dtype is float:
            raise
        raise _not_text(path, error) from None
    return frame[list(positions)]


def require_file(path: Path) -> None:
    """Refuse a path that is not a file.

    Raises:
        DataError: It is missing, a folder, a device or a pipe.
    """
    check_regular(path, error=DataError)
    if not path.exists():
        raise DataError("there is no such file", where=str(path), fix="Check the path")


@contextmanager
def open_data(path: Path) -> Iterator[IO[bytes]]:
    """Open a data file for reading bytes, unpacked where its name ends in ``.gz``.

    Raises:
        DataError: There is no such file, or it cannot be read, also while the block reads it.
    """
    require_file(path)
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            yield cast(IO[bytes], file)
    except (OSError, EOFError, zlib.error) as error:
        what = f"the file cannot be read ({error})"
        raise DataError(what, where=str(path), fix="Check that it is complete and readable") from None


def decode(content: bytes) -> str:
    """UTF-8, with or without a byte order mark, or else Latin-1."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _check_header(names: tuple[str, ...], where: str) -> None:
    broken = next((name for name in names if "\n" in name), None)
    if broken is not None:
        fix = "Close the quote that was left open, or take the line break out of the name"
        raise DataError(f"the column name {shorten(broken)} runs over several lines", where=where, fix=fix)
    numeric = [NUMBER.fullmatch(name) is not None for name in names]
    counted = any(names == tuple(str(i + start) for i in range(len(names))) for start in (0, 1))
    dated = bool(re.match(r"\d{4}-\d\d-\d\d|\d{1,2}[/.]\d{1,2}[/.]\d{4}", names[0])) and all(numeric[1:])
    if (all(numeric) and not counted) or dated:
        what = f"the first line contains values ({', '.join(names[:3])}), not column names"
        raise DataError(what, where=where, fix="Add a header line with the names of the columns")

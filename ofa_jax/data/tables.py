"""Tables: delimited text, Parquet and DataFrames as named columns whose numbers and places can be asked for."""

from __future__ import annotations

import csv
import gzip
import io
import numbers
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ofa_jax.data.timestamps import Place, looks_like_date, shorten
from ofa_jax.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_DELIMITERS = (",", ";", "\t")
_NO_VALUE = ("", "NaN", "nan", "-nan", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None", "<NA>")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|infinity|nan)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, eq=False)
class TextTable:
    """A text file whose rows all have as many fields as its header."""

    source: str
    names: tuple[str, ...]
    n_rows: int
    text: str
    delimiter: str
    lines: Sequence[int]
    """The file's line of each data row, 1-based."""

    time_index = None

    @property
    def first_cell(self) -> str:
        """The first column of the first row."""
        return self.cells(0, n_rows=1)[0]

    def numbers(self, positions: Sequence[int]) -> np.ndarray:
        """The columns at ``positions`` as ``[T, C]`` float64, NaN where a cell is empty.

        Raises:
            DataError: Text among the numbers, with column, row and line; a file that is not a table after all.
        """
        try:
            return self._read(positions, [])[list(positions)].to_numpy()
        except (
            ValueError
        ):  # pandas' ParserError is one; it names no column and no line, so look again cell by cell
            columns = [self.cells(position) for position in positions]
        return _readby_cell(columns, [self.names[position] for position in positions], self)

    def cells(self, position: int, n_rows: int | None = None) -> list[str]:
        """The cells of one column (its first ``n_rows``) as text, stripped.

        Raises:
            DataError: The file is not a table after all.
        """
        try:
            return [str(cell).strip() for cell in self._read([], [position], n_rows).iloc[:, 0].tolist()]
        except ValueError as error:
            raise DataError(
                f"not readable as delimited text ({' '.join(str(error).split())})",
                where=self.source,
                fix="Check the quotes in the file",
            ) from None

    def place(self, name: str) -> Place:
        """Says where a row of the column ``name`` lies."""
        return lambda row: (
            f"{self.source}, column `{name}`"
            + ("" if row is None else f", row {row + 1} (line {self.lines[row]})")
        )

    def _read(self, numeric: Sequence[int], text: Sequence[int], n_rows: int | None = None) -> pd.DataFrame:
        import pandas as pd

        options: dict[str, Any] = {
            "sep": self.delimiter,
            "header": 0,
            "names": list(range(len(self.names))),
            "usecols": sorted([*numeric, *text]),
            "dtype": {**dict.fromkeys(numeric, "float64"), **dict.fromkeys(text, object)},
            "nrows": n_rows,
            "keep_default_na": False,
            "na_values": {position: list(_NO_VALUE) for position in numeric},
            "skip_blank_lines": False,
            "skipinitialspace": True,
            "index_col": False,
        }
        # from pandas 3.1 on every number is read exactly and the option that asks for it warns
        if tuple(int(part) for part in pd.__version__.split(".")[:2]) < (3, 1):
            options["float_precision"] = "round_trip"
        frame: pd.DataFrame = pd.read_csv(io.StringIO(self.text), **options)
        return frame


@dataclass(frozen=True, eq=False)
class PandasTable:
    """A DataFrame whose index, where it holds timestamps, stands as the first column."""

    source: str
    names: tuple[str, ...]
    n_rows: int
    columns: tuple[pd.Series, ...]
    time_index: int | None

    @classmethod
    def of(cls, frame: pd.DataFrame, source: str) -> PandasTable:
        """Take a DataFrame's columns, and its index if that holds timestamps (row numbers are passed over).

        Raises:
            DataError: No DataFrame, levels in the columns or the index, an index of something else than timestamps or row numbers.
        """
        import pandas as pd

        if not isinstance(frame, pd.DataFrame):
            raise DataError(
                f"a {type(frame).__name__} is neither a path nor a DataFrame", fix="Give one of the two"
            )
        if isinstance(frame.columns, pd.MultiIndex) or isinstance(frame.index, pd.MultiIndex):
            raise DataError(
                "the columns or the index have several levels", where=source, fix="Flatten them to one level"
            )
        names = [str(name) for name in frame.columns]
        columns = [frame.iloc[:, position] for position in range(len(names))]
        index = frame.index.to_timestamp() if isinstance(frame.index, pd.PeriodIndex) else frame.index
        if isinstance(index, pd.DatetimeIndex) or (
            len(index) and isinstance(index[0], str) and looks_like_date(index[0])
        ):
            names.insert(0, "index" if index.name is None else str(index.name))
            columns.insert(0, index.to_series())
            return cls(source, tuple(names), len(frame), tuple(columns), 0)
        if len(index) and not pd.api.types.is_integer_dtype(index.dtype):
            raise DataError(
                f"the index holds {shorten(index[0])}, neither timestamps nor row numbers",
                where=source,
                fix="Set a DatetimeIndex, or turn the index into a column with `reset_index()`",
            )
        return cls(source, tuple(names), len(frame), tuple(columns), None)

    @property
    def first_cell(self) -> str:
        """The first column of the first row, where that is text."""
        cell = self.columns[0].iloc[0]
        return cell if isinstance(cell, str) else str(cell) if hasattr(cell, "year") else ""

    def numbers(self, positions: Sequence[int]) -> np.ndarray:
        """The columns at ``positions`` as ``[T, C]`` float64, NaN where a value is missing.

        Raises:
            DataError: Something else than real numbers, with column and row.
        """
        from pandas.api.types import is_bool_dtype, is_complex_dtype, is_numeric_dtype

        columns = [self.columns[position] for position in positions]
        if all(
            is_numeric_dtype(c.dtype) and not is_bool_dtype(c.dtype) and not is_complex_dtype(c.dtype)
            for c in columns
        ):
            return np.stack(
                [column.to_numpy(dtype=np.float64, na_value=np.nan) for column in columns], axis=1
            )
        return _readby_cell(
            [column.tolist() for column in columns], [self.names[position] for position in positions], self
        )

    def cells(self, position: int) -> pd.Series:
        """One column as it is."""
        return self.columns[position]

    def place(self, name: str) -> Place:
        """Says where a row of the column ``name`` lies."""
        return lambda row: f"{self.source}, column `{name}`" + ("" if row is None else f", row {row + 1}")


def _readby_cell(
    columns: Sequence[Sequence[Any]], names: Sequence[str], table: TextTable | PandasTable
) -> np.ndarray:
    """The cells as ``[T, C]`` float64, or the error that names the first that is no number."""
    values = [[_number(cell) for cell in column] for column in columns]
    wholly_text = [all(value is None for value in column) for column in values]
    for name, column, read, text_only in zip(names, columns, values, wholly_text, strict=True):
        row = next((row for row, value in enumerate(read) if value is None), None)
        if row is None:
            continue
        if re.fullmatch(r"[+-]?[\d.]+,\d+", str(column[row]).strip()):
            fix = "Write numbers with a decimal point and without thousands signs"
        elif all(wholly_text):
            fix = "Give at least one column of numbers"
        else:
            fix = (
                "List the columns of numbers in `columns`"
                if text_only
                else "Correct the value, or leave the cell empty"
            )
        what = (
            "there is no numeric column; this one"
            if all(wholly_text)
            else "the column"
            if text_only
            else "among numbers the column"
        )
        raise DataError(
            f"{what} holds the text {shorten(column[row])}", where=table.place(name)(row), fix=fix
        )
    return np.array(values, dtype=np.float64).T.copy()


def _number(cell: object) -> float | None:
    if isinstance(cell, str):
        text = cell.strip()
        return float("nan") if text in _NO_VALUE else float(text) if _NUMBER.fullmatch(text) else None
    if cell is None or type(cell).__name__ == "NAType":
        return float("nan")
    if (
        isinstance(cell, bool | np.bool_)
        or not isinstance(cell, numbers.Number)
        or isinstance(cell, complex | np.complexfloating)
    ):
        return None
    try:
        return float(cell)  # type: ignore[arg-type]  # Decimal and Fraction have __float__, which Number does not promise
    except OverflowError:
        return None


def read_parquet(path: Path) -> PandasTable:
    """Read a Parquet file, with the index that pandas stored in it.

    Raises:
        DataError: The file is no Parquet or is damaged.
    """
    import pandas as pd
    import pyarrow as pa

    try:
        frame = pd.read_parquet(path)
    except (ValueError, OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"not readable as Parquet ({reason})", where=str(path), fix="Check that the file is whole"
        ) from None
    return PandasTable.of(frame, str(path))


def read_text(path: Path) -> TextTable:
    """Read a delimited text file (``,``, ``;`` or tab; UTF-8, UTF-16 with its mark, otherwise Latin-1; gzip by name).

    Raises:
        DataError: The file is damaged, empty or not text, a row has more or fewer fields than the header, the header is missing.
    """
    text = _decode(_bytes(path), path)
    body = text.lstrip("\n")
    if not body.strip():
        raise DataError(
            "the file is empty", where=str(path), fix="Give a file with a header line and data rows"
        )
    header_line = len(text) - len(body) + 1
    # blank lines at the end are no rows; one in the middle is a row with nothing in it
    body = re.sub(r"(?:\n *)+\Z", "", body) + "\n"
    delimiter = _delimiter(body.split("\n", 1)[0])
    try:
        names, widths, lines = _fields(body, delimiter)
    except csv.Error as error:
        raise DataError(
            f"not readable as delimited text ({error})", where=str(path), fix="Check the quotes in the file"
        ) from None
    lines = lines if header_line == 1 else [line + header_line - 1 for line in lines]
    _check_header(names, path, header_line)
    wrong = np.flatnonzero(widths != len(names))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"has {widths[row]} field(s) where the header has {len(names)}",
            where=f"{path}, row {row + 1} (line {lines[row]})",
            fix="Correct the row; a text with the delimiter in it needs quotes",
        )
    return TextTable(str(path), names, len(lines), body, delimiter, lines)


def _bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.name.lower().endswith(".gz") else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"the file cannot be read ({error})",
            where=str(path),
            fix="Check that it is whole and that you may read it",
        ) from None


def _decode(content: bytes, path: Path) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", errors="replace")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
    if "\0" in text:
        raise DataError("the file holds binary data, not text", where=str(path), fix="Give CSV or Parquet")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _delimiter(header: str) -> str:
    outside_quotes = re.sub(r'"[^"]*"', "", header)
    return max(_DELIMITERS, key=outside_quotes.count)


def _fields(body: str, delimiter: str) -> tuple[tuple[str, ...], np.ndarray, Sequence[int]]:
    if '"' not in body:
        rows = body[:-1].split("\n")
        widths = np.fromiter((row.count(delimiter) + 1 for row in rows), np.int64, len(rows))
        return tuple(name.strip() for name in rows[0].split(delimiter)), widths[1:], range(2, len(rows) + 1)
    reader = csv.reader(io.StringIO(body), delimiter=delimiter, skipinitialspace=True)
    header = next(reader)
    found, lines = [], []
    for fields in reader:
        found.append(max(len(fields), 1))
        lines.append(reader.line_num)
    return tuple(name.strip() for name in header), np.array(found, np.int64), lines


def _check_header(names: tuple[str, ...], path: Path, line: int) -> None:
    broken = next((name for name in names if "\n" in name), None)
    if broken is not None:
        raise DataError(
            f"the column name {shorten(broken)} runs over several lines",
            where=f"{path}, line {line}",
            fix="Close the quote that was left open, or take the line break out of the name",
        )
    numbers = [_NUMBER.fullmatch(name) is not None for name in names]
    counted = [name for name in names if name.isdigit()] in (
        [str(i + start) for i in range(len(names))] for start in (0, 1)
    )
    dated = bool(re.match(r"\d{4}-\d\d-\d\d|\d{1,2}[/.]\d{1,2}[/.]\d{4}", names[0])) and all(numbers[1:])
    if (all(numbers) and not counted) or dated:
        raise DataError(
            f"the first line holds values ({', '.join(names[:3])}), not column names",
            where=f"{path}, line {line}",
            fix="Add a header line with the names of the columns",
        )

"""Tables: named columns that know where each cell is, of Parquet and DataFrames; files that may be packed."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import numbers
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal as ExactNumber
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from ofa_jax.config.tasks import Decimal
from ofa_jax.data.dates import looks_like_date
from ofa_jax.errors import DataError, shorten
from ofa_jax.files import check_regular

if TYPE_CHECKING:
    import pandas as pd

_WORDS = ("", "NaN", "nan", "-nan", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None", "<NA>")
NO_VALUE = (*_WORDS, "?", "-", "--", ".")
"""Cells that hold no value."""
_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d*)?")
"""Numbers whose points may mark thousands."""
_COMMAS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")
"""Numbers whose commas may mark thousands."""
MARKS = {"1,234.5": (",", _COMMAS), "1.234,5": (".", _POINTS)}
"""The sign that marks thousands, by how numbers are written, and numbers with it."""
COMMA = ("comma", "1.234,5")
"""How numbers with a decimal comma are written."""
TIME_NAMES = ("date", "timestamp", "time", "datetime", "ds")
"""Usual names of columns of times, in lower case."""
_LONGEST_WORD = 20  # of one that may mean that there is no value

NUMBER = re.compile(r"[+-]?((\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|inf|infinity|nan)", re.IGNORECASE | re.ASCII)
_LABELS = re.compile("label|anomal|outlier", re.IGNORECASE)
"""In the name of a column of labels."""
_PACKED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zip": zipfile.ZipFile,
}


@dataclass(frozen=True, eq=False)
class Table:
    """Named columns of text or numbers.

    Attributes:
        source: Their origin, for messages.
        names: The columns' names.
        n_rows: Number of data rows T.
        first_row: The cells of the first row as text; empty where they are no text or times.
        read: ``read(positions, dtype)``: those columns as a DataFrame. Text files read ``float``
            (ValueError on text) or ``object``; other sources ignore ``dtype``.
        time_index: Position of the column that was the DataFrame's index, or None.
        lines: The file's line of each data row, 1-based; None where there are no lines.
        missing_words: What cells say that have no value, besides :data:`NO_VALUE`.
        decimal: How numbers in text are written.
        european: Signs that numbers may have a decimal comma: semicolons between columns, days before months.
        flags: A column whose True and False are 1 and 0.
        notices: What reading inferred, one line each.
        origins: For columns that were put together from cells of others: what to call the column, and the
            source's row of each row.
    """

    source: str
    names: tuple[str, ...]
    n_rows: int
    first_row: tuple[str, ...]
    read: Callable[[Sequence[int], type], pd.DataFrame]
    time_index: int | None = None
    lines: Sequence[int] | None = None
    missing_words: tuple[str, ...] = ()
    decimal: Decimal = "point"
    european: int = 0
    flags: str | None = None
    notices: tuple[str, ...] = ()
    origins: Mapping[str, tuple[str, np.ndarray]] = field(default_factory=dict)

    @property
    def dated(self) -> list[int]:
        """The columns whose first cell reads as a date."""
        return [at for at, cell in enumerate(self.first_row) if looks_like_date(cell)]

    @property
    def texts(self) -> list[int]:
        """The columns whose first cell is neither a date nor a number."""
        known = set(self.dated)
        cells = enumerate(self.first_row)
        return [at for at, cell in cells if cell and at not in known and not NUMBER.fullmatch(cell)]

    def numbers(self, positions: Sequence[int], first: int = 0) -> np.ndarray:
        """The columns at ``positions`` as ``[T, C]`` float64, NaN where a cell is empty.

        Text in rows before ``first`` is NaN too.

        Raises:
            DataError: A cell that is not a real number, with column and row; points that may mark thousands.
        """
        values = self._numbers(positions, first)
        if self.decimal == "point" and self.european:
            self._refuse_thousands(positions, values)
        return values

    def _numbers(self, positions: Sequence[int], first: int) -> np.ndarray:
        try:
            frame = self.read(positions, float)
        except ValueError:  # it names neither column nor line: search cell by cell
            frame = self.read(positions, object)
        if {dtype.kind for dtype in frame.dtypes} <= set("iuf"):
            return np.array(frame.to_numpy(np.float64, na_value=np.nan), order="C")
        cells = [frame.iloc[:, index].tolist() for index in range(len(positions))]
        flags = [self.names[at] == self.flags for at in positions]
        marks = [self._mark(column) for column in cells]
        values = [
            [self._number(cell, flag, mark) for cell in column]
            for column, flag, mark in zip(cells, flags, marks, strict=True)
        ]
        only_text = [all(value is None for value in column[first:]) for column in values]
        for index, column in enumerate(values):
            if None in column[first:]:
                row = column.index(None, first)
                others = [self.names[positions[i]] for i, alone in enumerate(only_text) if alone]
                raise self._not_a_number(
                    self.names[positions[index]], row, cells[index][row], others, all(only_text)
                )
        return np.array(values, dtype=np.float64).T.copy()

    def _mark(self, cells: Sequence[object]) -> str | None:
        """The sign that marks thousands in a column, if it does so wherever it is."""
        if self.decimal not in MARKS:
            return None
        sign, pattern = MARKS[self.decimal]
        texts = {cell.strip() for cell in cells if isinstance(cell, str) and sign in cell}
        marked = [text for text in texts if any(map(str.isdigit, text)) and text not in self.missing_words]
        return sign if marked and all(map(pattern.fullmatch, marked)) else None

    def _refuse_thousands(self, positions: Sequence[int], values: np.ndarray) -> None:
        """Refuse points that are followed by three digits everywhere in a table that seems to be European."""
        thousandths = np.abs(1000 * values - np.rint(1000 * values)) < 1e-6
        doubtful = np.flatnonzero((thousandths | ~np.isfinite(values)).all(axis=0))
        if not len(doubtful):
            return
        columns = [positions[at] for at in doubtful.tolist()]
        cells = self.read(columns, object)
        for number, at in enumerate(columns):
            texts = cells.iloc[:, number]
            texts = texts[[isinstance(cell, str) for cell in texts]].astype(object).astype(str).str.strip()
            pointed = texts[texts.str.contains(".", regex=False) & texts.str.contains(r"\d")]
            plain = texts.str.fullmatch(r"[+-]?[1-9]\d*").any()
            if len(pointed) and pointed.str.fullmatch(_POINTS).all() and (plain or self.european > 1):
                what = f"the points of numbers such as {pointed.iloc[0]} may mark thousands"
                fix = "Set `decimal: 1.234,5` if they do, or `decimal: 1,234.5` if they are decimal points"
                where = self.place(self.names[at], int(pointed.index[0]))
                raise DataError(what, where=where, fix=fix)

    def _number(self, cell: object, flag: bool, mark: str | None) -> float | None:
        if flag and str(cell).strip().lower() in ("true", "false"):
            return float(str(cell).strip().lower() == "true")
        if isinstance(cell, str):
            text = cell.strip()
            if text in NO_VALUE or text in self.missing_words:
                return float("nan")
            if mark is not None:
                text = text.replace(mark, "")
            elif self.decimal in COMMA and _POINTS.fullmatch(text):
                return None
            text = text.replace(",", ".") if self.decimal in COMMA else text
            return float(text) if NUMBER.fullmatch(text) else None
        if cell is None or type(cell).__name__ == "NAType":
            return float("nan")
        if isinstance(cell, bool) or not isinstance(cell, numbers.Real | ExactNumber):
            return None
        try:
            return float(cell)
        except OverflowError:
            return None

    def _not_a_number(
        self, name: str, row: int, cell: object, text_columns: Sequence[str], all_text: bool
    ) -> DataError:
        """The error about a cell of text in a column; ``text_columns`` have nothing else."""
        text = str(cell).strip()
        past: dict[str, object] = {"missing_words": [text]}
        what = f"among numbers the column contains the text {shorten(text)}"
        fix = "Correct it, or leave the cell empty"
        if len(text) <= _LONGEST_WORD and not any(map(str.isdigit, text)):
            fix += f"; set `missing_words: {as_list([text])}` if it means that there is no value"
        if name == self.flags:
            what = f"labels are 0 and 1, or True and False, and this is {shorten(text)}"
            return DataError(
                what, where=self.place(name, row), fix="Write 1 for an anomaly and 0 for the rest"
            )
        if name in text_columns:
            left_out = self.columns_of(text_columns)
            what, past = f"the column contains the text {shorten(text)}", {"exclude": left_out}
            fix = f"Leave it out with `exclude: {as_list(left_out)}`, or list the series in `columns`"
        unit = re.fullmatch(r"([$€£¥]?) ?[+-]?[\d.,]*\d ?(%|[$€£¥]|[A-Za-zµ°]{1,3})?", text)
        if unit and (unit[1] or unit[2]):
            fix = f"Write numbers without `{unit[1] or unit[2]}`"
            fix += f", or leave the column out with `exclude: {as_list(self.columns_of([name]))}`"
        if all_text:
            what = f"there is no numeric column; this one contains the text {shorten(text)}"
            fix, past = fix if unit else "Give at least one column of numbers", {}
        if text.lower() in ("true", "false"):
            fix = f"Write 1 and 0, or leave it out with `exclude: {as_list(self.columns_of([name]))}`"
            fix += "; labels of anomalies are named by data.label_column" * bool(_LABELS.search(name))
            past = {"exclude": self.columns_of([name])}
        elif self.decimal in MARKS and MARKS[self.decimal][0] in text:
            fix = f"Write it without `{MARKS[self.decimal][0]}`, since others in the column mark no thousands"
        elif self.decimal == "comma" and _POINTS.fullmatch(text):
            fix, past = "Set `decimal: 1.234,5` if the point marks thousands, or write a decimal comma", {}
        elif self.decimal == "point" and re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", text):
            fix = "Set `decimal: 1,234.5` if the comma marks thousands, or `decimal: comma` if it is the "
            fix, past = f"{fix}decimal sign", {}
        elif self.decimal == "point" and _COMMAS.fullmatch(text):
            fix, past = "Set `decimal: 1,234.5`, since commas mark thousands", {"decimal": "1,234.5"}
        elif _POINTS.fullmatch(text):
            fix, past = "Set `decimal: 1.234,5`, since points mark thousands", {"decimal": "1.234,5"}
        elif re.fullmatch(r"[+-]?\d+,\d+", text):
            fix = "Set `decimal: comma`, or write numbers with a decimal point and without thousands signs"
            past = {"decimal": "comma"}
        return DataError(what, where=self.place(name, row), fix=fix, past=past)

    def columns_of(self, names: Sequence[str]) -> list[str]:
        """Columns of the source; of a long table with several columns of values those of the series."""
        columns = {
            name: self.origins[name][0].partition("` of `")[0] for name in names if name in self.origins
        }
        found = (columns[name] if name.endswith(f" {columns.get(name)}") else name for name in names)
        return list(dict.fromkeys(found))

    def place(self, name: str, row: int | None) -> str:
        """How messages name a column, or its cell in a row (0-based)."""
        if name in self.origins:
            name, rows = self.origins[name]
            row = None if row is None else int(rows[row])
        if row is None:
            return f"{self.source}, column `{name}`"
        line = "" if self.lines is None else f" (line {self.lines[row]})"
        return f"{self.source}, column `{name}`, row {row + 1}{line}"


def as_list(names: Sequence[str]) -> str:
    """Names as a setting's value in YAML: ``[a, "b, c"]``."""
    return f"[{', '.join(name if plain_text(name) else json.dumps(name) for name in names)}]"


def plain_text(text: str) -> bool:
    """Whether advice can name a text as a setting's value as it is."""
    return re.fullmatch(r"[\w.+-]+( [\w.+-]+)*", text) is not None and len(text) <= 40


def as_table(frame: pd.DataFrame, source: str) -> Table:
    """A DataFrame's columns, its index first if that contains timestamps, or is called as they are.

    Another index of whole numbers counts rows, and is not read.

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
    index = frame.index
    dated = isinstance(index, pd.DatetimeIndex | pd.PeriodIndex)
    if len(index) and isinstance(index[0], str | date):
        dated = isinstance(index[0], date) or looks_like_date(index[0])
    if dated:
        frame = frame.copy(deep=False)
        frame.insert(0, "index" if index.name is None else index.name, index, allow_duplicates=True)
    elif len(index) and pd.api.types.is_integer_dtype(index.dtype):
        timed = str(index.name).lower() in (*TIME_NAMES, "year")
        if timed and not any(str(name).lower() in TIME_NAMES for name in frame.columns):
            frame = frame.reset_index()
    elif len(index):
        what = f"the index contains {shorten(index[0])}, neither timestamps nor row numbers"
        fix = "Set a DatetimeIndex, or turn the index into a column with `reset_index()`"
        raise DataError(what, where=source, fix=fix)
    first = [frame.iat[0, at] for at in range(frame.shape[1])] if len(frame) else []
    return Table(
        source=source,
        names=tuple(map(str, frame.columns)),
        n_rows=len(frame),
        first_row=tuple(
            str(cell) if isinstance(cell, str) or hasattr(cell, "year") else "" for cell in first
        ),
        read=lambda positions, dtype: frame.iloc[:, list(positions)],
        time_index=0 if dated else None,
    )


def read_parquet(path: Path) -> Table:
    """Read a Parquet file, with the index that pandas stored in it.

    Raises:
        DataError: The file is not Parquet or is damaged.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        # names that repeat are refused where any table is checked; pyarrow's words for them are its own
        frame = pd.read_parquet(path) if len(set(names)) == len(names) else pd.DataFrame(columns=names)
    except Exception as error:  # of pyarrow, or anything where pandas' metadata of the file are damaged
        what = f"not readable as Parquet ({type(error).__name__}: {' '.join(str(error).split())})"
        raise DataError(what, where=str(path), fix="Check that the file is complete") from None
    return as_table(frame, str(path))


def require_file(path: Path) -> None:
    """Refuse a path that is not a file.

    Raises:
        DataError: It is missing, a folder, a device or a pipe.
    """
    check_regular(path, error=DataError)
    if not path.exists():
        raise DataError("there is no such file", where=str(path), fix="Check the path")


def unpacked_name(path: Path) -> str:
    """A file's name in lower case, without the ending of what packed it."""
    name = path.name.lower()
    return name.removesuffix(path.suffix.lower()) if path.suffix.lower() in _PACKED else name


@contextmanager
def open_data(path: Path) -> Iterator[IO[bytes]]:
    """Open a data file for reading bytes, unpacked where its name ends in .gz, .bz2, .xz or .zip.

    Raises:
        DataError: There is no such file, or it cannot be read, also while the block reads it; a .zip does not
            hold exactly one file.
    """
    require_file(path)
    packed = _PACKED.get(path.suffix.lower())
    try:
        with open(path, "rb") if packed is None else packed(path) as file:
            if isinstance(file, zipfile.ZipFile):
                names = [name for name in file.namelist() if not name.endswith("/")]
                if len(names) != 1:
                    what = f"the archive holds {len(names)} files"
                    raise DataError(what, where=str(path), fix="Unpack it, and give one of them")
                with file.open(names[0]) as member:
                    yield member
            else:
                yield cast(IO[bytes], file)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError) as error:
        what = f"the file cannot be read ({error})"
        raise DataError(what, where=str(path), fix="Check that it is complete and readable") from None


def decode(content: bytes) -> tuple[str, str | None]:
    """Text, and its encoding where that is a guess: Windows-1252, or Latin-1 where that has no letter."""
    for encoding, guess in (("utf-8-sig", None), ("cp1252", "Windows-1252")):
        try:
            return content.decode(encoding), guess
        except UnicodeDecodeError:
            continue
    return content.decode("latin-1"), "Latin-1"

"""Delimited text as a table: CSV and its relatives, read exactly or refused with row and line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofa_jax.config.tasks import Decimal
from ofa_jax.data.dates import looks_like_date
from ofa_jax.data.tables import COMMA, NO_VALUE, NUMBER, Table, decode, open_data
from ofa_jax.errors import DataError, shorten

if TYPE_CHECKING:
    import pandas as pd

ENDINGS = (".csv", ".tsv", ".txt")
_DAY_FIRST = re.compile(r"\d{1,2}\.\d{1,2}\.\d{4}\b")
_TRUTHS = ("True", "TRUE", "true", "False", "FALSE", "false")
_THOUSANDS = re.compile(r"(?<![^,\s])[+-]?\d{1,3}(,\d{3})+(?=,|\.\d|$)")
_DECIMALS = re.compile(r"(?<![^,\s])[+-]?\d+,\d+(?=,|$)")
_DELIMITERS = (",", ";", "\t", "|")


def read_text(
    path: Path,
    *,
    missing_words: Sequence[str] = (),
    decimal: Decimal = "point",
    comment: str | None = None,
    faults: list[DataError] | None = None,
) -> Table:
    """Read a text file with ``,``, ``;``, tab, ``|`` or spaces; UTF-8, UTF-16 with BOM, else Windows-1252.

    Args:
        path: The file, packed or not (:func:`~ofa_jax.data.tables.open_data`).
        missing_words: What cells say that have no value, besides the usual words.
        decimal: How numbers are written.
        comment: How lines begin that are comments; above the header also ``#``.
        faults: Takes the error about rows of another width, which are left out; default: it is raised.

    Raises:
        DataError: The file is damaged, empty or not text, has no header, or a row does not have its width.
    """
    text, notices = _content(path)
    kept, line_numbers, skipped = _kept_lines(text, comment, path)
    delimiter = _delimiter(kept)
    if delimiter is None and (spaced := _split_spaces(kept)):
        kept, delimiter = spaced, "\t"
    delimiter = delimiter or ","
    reader = csv.reader((f"{line}\n" for line in kept), delimiter=delimiter, skipinitialspace=True)
    lines: list[int] = []
    ragged: list[tuple[int, int, range]] = []
    first_row: tuple[str, ...] = ()
    try:
        names = tuple(name.strip() for name in next(reader))
        check_header(names, f"{path}, line {line_numbers[0]}")
        end = reader.line_num
        for row, fields in enumerate(reader, start=1):
            fields = fields or [""]
            if len(fields) == len(names):
                first_row = first_row or tuple(field.strip() for field in fields)
                lines.append(line_numbers[reader.line_num - 1])
            else:
                ragged.append((row, len(fields), range(end, reader.line_num)))
            end = reader.line_num
    except csv.Error as error:
        raise _not_text(path, error) from None
    if len(names) == 1 and names[0] == "1" and re.fullmatch(r"-?\d+", "".join(first_row)):
        raise _no_header(names, f"{path}, line {line_numbers[0]}")
    if ragged:
        fault = _ragged(path, ragged, line_numbers, len(names), kept if delimiter == "," else ())
        if faults is None:
            raise fault
        faults.append(fault)
        gone = {at for _, _, where in ragged for at in where}
        kept = [line for at, line in enumerate(kept) if at not in gone]
    words = tuple(missing_words)
    return Table(
        source=str(path),
        names=names,
        n_rows=len(lines),
        first_row=first_row,
        read=partial(_read_csv, path, "\n".join(kept) + "\n", delimiter, len(names), words, decimal),
        lines=lines,
        missing_words=words,
        decimal=decimal,
        european=(delimiter == ";") + any(map(_DAY_FIRST.match, first_row)),
        notices=(*notices, *([f"{path.name}: {skipped} comment line(s) skipped"] if skipped else [])),
    )


def _content(path: Path) -> tuple[str, list[str]]:
    """The text of a file, and a notice where its encoding is a guess."""
    with open_data(path) as file:
        content = file.read()
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    text, guess = (content.decode("utf-16", errors="replace"), None) if utf16 else decode(content)
    if "\0" in text:
        raise DataError(
            "the file contains binary data, not text", where=str(path), fix="Give CSV, Excel or Parquet"
        )
    said = [f"{path.name}: not UTF-8, so letters are read as {guess}"] if guess else []
    return text.replace("\r\n", "\n").replace("\r", "\n"), said


def _kept_lines(text: str, comment: str | None, path: Path) -> tuple[list[str], list[int], int]:
    """Header and rows, their line numbers, and how many comments were skipped.

    Blank lines at the start and end are not rows; one in the middle is a row with nothing in it. A header may
    be the last comment above rows of its width.
    """
    lines = text.split("\n")
    while lines and not lines[-1].strip(" "):
        lines.pop()
    kept: list[str] = []
    numbers: list[int] = []
    comments: list[int] = []
    quotes = 0
    for number, line in enumerate(lines, start=1):
        between = quotes % 2 == 0
        if not kept and (not line or line.startswith("#")):
            comments += [number] if line else []
        elif between and comment and line.startswith(comment):
            comments.append(number)
        else:
            quotes += line.count('"')
            kept.append(line)
            numbers.append(number)
    if comments and (not kept or comments[-1] < numbers[0]):
        above = lines[comments[-1] - 1]
        if kept and _are_values(_cells(kept[0])):
            above = above.lstrip("# ")
            if len(_cells(above)) == len(_cells(kept[0])):
                kept.insert(0, above)
                numbers.insert(0, comments.pop())
    if not any(line.strip() for line in kept):
        fix = "Give a file with a header line and data rows"
        raise DataError("the file is empty", where=str(path), fix=fix)
    return kept, numbers, len(comments)


def _delimiter(kept: Sequence[str]) -> str | None:
    """The sign that separates the header's names; None where it has none."""
    header = re.sub(r'"[^"]*"', "", kept[0])
    found = max(_DELIMITERS, key=header.count)
    return found if found in header else None


def _cells(line: str) -> list[str]:
    delimiter = _delimiter([line])
    cells = line.split() if delimiter is None else line.split(delimiter)
    return [cell.strip().strip('"') for cell in cells]


def _split_spaces(kept: Sequence[str]) -> list[str] | None:
    """The lines with tabs for spaces, where header and first row have as many words, and more than one."""
    if len(kept) < 2 or '"' in kept[0] or not 1 < len(kept[0].split()) == len(kept[1].split()):
        return None
    return ["\t".join(line.split()) for line in kept]


def _ragged(
    path: Path,
    rows: Sequence[tuple[int, int, range]],
    line_numbers: Sequence[int],
    width: int,
    lines: Sequence[str],
) -> DataError:
    """The error about rows (their number, fields and lines) of another width than the header.

    ``lines`` of the file are given where commas separate columns, and may be in numbers too.
    """
    first, *others = [(f"row {row} (line {line_numbers[at[-1]]})", count) for row, count, at in rows]
    what = f"has {first[1]} field(s) where the header has {width}"
    wider = [lines[at[-1]] for _, count, at in rows if lines and count > width]
    if len(wider) == len(rows) and not wider[0].endswith(","):
        doubled = all(count in (2 * width, 2 * width - 1) for _, count, _ in rows)
        kinds = [("thousands signs", _THOUSANDS)] + [("decimal commas", _DECIMALS)] * doubled
        for kind, pattern in kinds:
            if (found := pattern.search(wider[0])) and all(map(pattern.search, wider)):
                what += f", and so have {len(others)} more row(s)" if others else ""
                what += f". {kind.capitalize()} without quotes, as in {found[0]}, are the likely cause"
                fix = "Write numbers with a decimal point and without thousands signs (1000.5), or separate "
                fix += "columns by semicolons"
                return DataError(what, where=f"{path}, {first[0]}", fix=fix)
    if others:
        shown = ", ".join(f"{place} has {count}" for place, count in others[:9])
        what += f"; {len(others)} more row(s) differ: {shown}{', …' * (len(others) > 9)}"
    fix = "Correct the row; a text with the delimiter in it needs quotes"
    if 2 * len(rows) > len(line_numbers):
        fix += ". Remove lines above the header"
    return DataError(what, where=f"{path}, {first[0]}", fix=fix)


def _not_text(path: Path, error: Exception) -> DataError:
    what = f"not readable as delimited text ({' '.join(str(error).split())})"
    return DataError(what, where=str(path), fix="Check the quotes in the file")


def _read_csv(
    path: Path,
    text: str,
    delimiter: str,
    width: int,
    words: tuple[str, ...],
    decimal: Decimal,
    positions: Sequence[int],
    dtype: type,
) -> pd.DataFrame:
    import pandas as pd

    # from pandas 3.1 on every number is read exactly and the option that asks for it warns
    old = tuple(int(part) for part in pd.__version__.split(".")[:2]) < (3, 1)
    exact: dict[str, Any] = {"float_precision": "round_trip"} if old else {}

    def read(columns: Sequence[int], kind: type) -> pd.DataFrame:
        frame = pd.read_csv(
            io.StringIO(text),
            sep=delimiter,
            header=0,
            names=list(range(width)),
            usecols=sorted(columns),
            dtype=dict.fromkeys(columns, kind),
            na_values=[*NO_VALUE, *words] if kind is float else [],
            keep_default_na=False,
            skip_blank_lines=False,
            skipinitialspace=True,
            index_col=False,
            decimal="," if decimal in COMMA else ".",
            **exact,
        )
        return frame[list(columns)]

    try:
        frame = read(positions, dtype)
        bits = [at for at in positions if dtype is float and frame[at].dropna().isin([0, 1]).all()]
        # pandas reads a column of True and False as 1 and 0
        if bits and read(bits, object).isin(_TRUTHS).any(axis=None):
            raise ValueError("a column of True and False")
    except ValueError as error:  # pandas' ParserError is one
        if dtype is float:
            raise
        raise _not_text(path, error) from None
    return frame


def check_header(names: tuple[str, ...], where: str) -> None:
    """Refuse a first line that does not name the columns.

    Raises:
        DataError: A name with a line break, values, or a title.
    """
    broken = next((name for name in names if "\n" in name), None)
    if broken is not None:
        fix = "Close the quote that was left open, or take the line break out of the name"
        raise DataError(f"the column name {shorten(broken)} runs over several lines", where=where, fix=fix)
    if _are_values(names):
        raise _no_header(names, where)
    if names[0] and len(names) > 1 and not any(names[1:]):
        what = f"only the first of {len(names)} columns has a name, {shorten(names[0])}, which may be a title"
        raise DataError(what, where=where, fix="Name every column, and remove lines above the header")


def _no_header(names: Sequence[str], where: str) -> DataError:
    what = f"the first line contains values ({', '.join(names[:3])}), not column names"
    return DataError(what, where=where, fix="Add a header line with the names of the columns")


def _are_values(cells: Sequence[str]) -> bool:
    """Whether a line holds data: numbers (but not names counted from 0 or 1), or a date and numbers."""
    valued = [NUMBER.fullmatch(cell) is not None or (cell in NO_VALUE and cell != "") for cell in cells]
    counted = any(list(cells) == [str(i + start) for i in range(len(cells))] for start in (0, 1))
    if all(valued) and not counted:
        return True
    rest = [cell for cell, value in zip(cells, valued, strict=True) if not value and cell]
    dated = [cell for cell in rest[:3] if looks_like_date(cell) or _DAY_FIRST.match(cell)]
    return bool(dated) and (any(valued) or "" in cells[1:] or len(cells) == 1)

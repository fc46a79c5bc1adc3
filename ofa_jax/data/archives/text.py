"""Archives that are text: their lines, headers and numbers, each with its place for messages."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ofa_jax.config.tasks import Missing
from ofa_jax.data.missing import fill_missing
from ofa_jax.data.tables import NUMBER, decode, open_data
from ofa_jax.errors import DataError, shorten

_BLANK = " \t\r\n"
_MISSING = ("?", "NaN", "nan", "NA")
_FOREIGN = re.compile(r"[^0-9eE+\-.,]")
CUT_SHORT = "Fetch the file again: it is cut short"
"""What to do about a file without data."""


def read_lines(path: Path, notices: list[str] | None = None) -> Iterator[tuple[int, str]]:
    """The stripped lines of a text file, packed or not, with numbers from 1; each UTF-8 or else Windows-1252.

    A last line without an end, of a file that may be cut short, is put into ``notices`` where they are given.

    Raises:
        DataError: The file is missing, damaged, empty or binary; its last line has no end.
    """
    number, raw = 0, b""
    with open_data(path) as file:
        for number, raw in enumerate(file, start=1):
            if b"\0" in raw:
                what, fix = "the file contains binary data, not text", "Give the archive's own text file"
                raise DataError(what, where=place(path, number), fix=fix)
            yield number, decode(raw)[0].strip(_BLANK)
    if not number:
        raise DataError("the file is empty", where=str(path), fix="Fetch it again")
    if not raw.endswith(b"\n"):
        what = "the last line has no line end, so the file may be cut short"
        fix = "Fetch it again, or end the line if the file is complete"
        if notices is None:
            raise DataError(what, where=place(path, number), fix=fix)
        notices.append(f"{path.name}, line {number}: {what}. {fix}")


def place(path: Path, line: int) -> str:
    """How messages name a line of a file."""
    return f"{path}, line {line}"


class Header:
    """The ``@tag value`` lines above an archive's data; each tag once, in any case.

    Args:
        path: The file, for messages.
        lines: Its lines, which are read up to and with ``@data``.
        known: The allowed tags.
        several: Those that may be repeated.

    Raises:
        DataError: An unknown or repeated tag, a line that is neither tag nor comment, no ``@data``.
    """

    def __init__(
        self, path: Path, lines: Iterator[tuple[int, str]], known: Sequence[str], several: Sequence[str] = ()
    ) -> None:
        self._path = path
        self._found: dict[str, list[tuple[int, str]]] = {}
        number = 0
        for number, line in lines:
            if not line or line.startswith(("#", "%")):
                continue
            where = place(path, number)
            if not line.startswith("@"):
                what = f"the header contains {shorten(line)}"
                raise DataError(what, where=where, fix="Data belong below the line `@data`")
            name, value = (*re.split(r"\s+", line[1:], maxsplit=1), "")[:2]
            name = name.lower()
            if name == "data":
                return
            if name not in known:
                what = f"the header tag {shorten(name)} is not known"
                raise DataError(what, where=where, fix=f"Known are {', '.join(known)}")
            if name in self._found and name not in several:
                raise DataError(f"`@{name}` is repeated", where=where, fix="Keep one of the two")
            self._found.setdefault(name, []).append((number, value))
        raise DataError("there is no line `@data`", where=place(path, number), fix=CUT_SHORT)

    def where(self, name: str) -> str:
        """The place of a tag; the file where it is absent."""
        return place(self._path, self._found[name][0][0]) if name in self._found else str(self._path)

    def all(self, name: str) -> list[tuple[int, str]]:
        """Line and value of each occurrence of a tag."""
        return self._found.get(name, [])

    def text(self, name: str, form: str = ".+", expected: str = "a value, or remove the line") -> str | None:
        """A tag's value, which must have a form (a regular expression); None where the tag is absent."""
        if name not in self._found:
            return None
        value = self._found[name][0][1]
        if not re.fullmatch(form, value, re.IGNORECASE):
            what = f"`@{name}` is {shorten(value)}"
            raise DataError(what, where=self.where(name), fix=f"Write {expected}")
        return value

    def flag(self, name: str) -> bool | None:
        """A tag that is ``true`` or ``false``, or None where it is absent."""
        text = self.text(name, "true|false", "true or false")
        return None if text is None else text.lower() == "true"

    def count(self, name: str) -> int | None:
        """A tag that is a whole number of at least 1, or None where it is absent."""
        text = self.text(name, "0*[1-9][0-9]{0,8}", "a whole number of at least 1")
        return None if text is None else int(text)

    @property
    def never_missing(self) -> str | None:
        """Why no value may be missing, as :func:`numbers` takes it; None where values may be."""
        return "the header says `@missing false`" if self.flag("missing") is False else None

    def check_lengths(self, lengths: Sequence[int], places: Sequence[str]) -> None:
        """Refuse series of other lengths than the header says (``@equallength``, ``@serieslength``)."""
        equal, length = self.flag("equallength"), self.count("serieslength")
        if equal or (equal is None and length):
            length = length or lengths[0]
            for found, where in zip(lengths, places, strict=True):
                if found != length:
                    what = f"has {found} steps where the header says that all have {length}"
                    raise DataError(what, where=where, fix="Correct the header or the line")


def numbers(text: str, where: str, *, never_missing: str | None = None) -> np.ndarray:
    """Comma-separated numbers as ``[T]`` float64, NaN where one is missing (``?``, ``NaN``, ``NA``).

    Args:
        text: The numbers.
        where: Their place, for messages.
        never_missing: Why none may be missing, for the message; None where they may.

    Raises:
        DataError: A field that is not a finite number (with its position), a missing one where none may be.
    """
    fields = text.split(",")
    if not _FOREIGN.search(text):
        with contextlib.suppress(ValueError):
            values = np.array(list(map(float, fields)))
            if np.isfinite(values).all():
                return values
    return np.array(
        [
            _number(field.strip(_BLANK), f"{where}, value {index}", never_missing)
            for index, field in enumerate(fields, start=1)
        ]
    )


def _number(field: str, where: str, never_missing: str | None) -> float:
    if field in _MISSING:
        if never_missing is None:
            return np.nan
        what = f"a value is missing although {never_missing}"
        raise DataError(what, where=where, fix="Correct the one or the other")
    if not field:
        what = "there is nothing between two separators"
        raise DataError(what, where=where, fix="Write the value, or `?` for a missing one")
    value = float(field) if NUMBER.fullmatch(field) else np.inf
    if not np.isfinite(value):
        what = f"{shorten(field)} is not a finite number"
        raise DataError(what, where=where, fix="Correct the value; `?` means a missing one")
    return value


def fill(values: np.ndarray, missing: Missing, where: str) -> np.ndarray:
    """A series ``[T]`` with missing values filled (:func:`ofa_jax.data.missing.fill_missing`)."""

    def place_of(column: int, row: int | None) -> str:
        return where if row is None else f"{where}, value {row + 1}"

    return fill_missing(values[:, None], missing, place_of)[:, 0]

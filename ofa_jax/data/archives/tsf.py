"""Monash `.tsf`: collections of single series with attributes (Monash Time Series Forecasting Archive)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ofa_jax.config.tasks import Missing
from ofa_jax.data.archives.records import SeriesCollection
from ofa_jax.data.archives.text import Header, fill, numbers, place, read_lines
from ofa_jax.data.timestamps import shorten
from ofa_jax.errors import DataError

_TAGS = ("relation", "attribute", "frequency", "horizon", "missing", "equallength")
_TYPES = ("string", "numeric", "date")
_NAME, _START = "series_name", "start_timestamp"
_DATE = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}) ([0-9]{2})-([0-9]{2})-([0-9]{2})")


def read_tsf(path: str | Path, *, missing: Missing = "error") -> SeriesCollection:
    """A Monash archive file, ``.tsf`` or ``.tsf.gz``; every series whole, its test part at its end.

    Args:
        path: The file.
        missing: Policy for ``?`` and ``NaN``: refuse them, interpolate, or carry the last value forward.

    Raises:
        DataError: Anything that is not as the header says or cannot be read as asked, with file and line.
    """
    path = Path(path)
    lines = read_lines(path)
    header = Header(path, _TAGS, several=("attribute",))
    header.read(lines)
    attributes = _attributes(header, path)
    never_missing = header.never_missing
    horizon, frequency = header.count("horizon"), header.text("frequency")

    cells: dict[str, list[str]] = {name: [] for name in attributes}
    line_of: dict[str, int] = {}
    values, observed = [], []
    for number, line in lines:
        if not line:
            continue
        where = place(path, number)
        fields = line.split(":")
        if line.startswith("@") or len(fields) != len(attributes) + 1:
            raise DataError(
                f"has {len(fields)} part(s) separated by `:` where the header makes {len(attributes) + 1}",
                where=where,
                fix="Correct the line; it may be cut short or be in the wrong place",
            )
        for (name, kind), cell in zip(attributes.items(), fields, strict=False):
            cells[name].append(_attribute(name, kind, cell.strip(), where))
        series = cells[_NAME][-1]
        if series in line_of:
            what = f"the series {shorten(series)} is repeated, first in line {line_of[series]}"
            raise DataError(what, where=where, fix="Name each series once")
        line_of[series] = number
        read = numbers(fields[-1], where, never_missing=never_missing)
        values.append(fill(read, missing, where))
        observed.append(~np.isnan(read))
    if not values:
        raise DataError(
            "there are no series below `@data`", where=str(path), fix="Fetch the file again: it is cut short"
        )
    _check_lengths(header, values, [place(path, number) for number in line_of.values()])
    names, starts = cells.pop(_NAME), cells.pop(_START, None)
    return SeriesCollection(
        names=tuple(names),
        values=tuple(values),
        frequency=frequency,
        horizon=horizon,
        starts=None if starts is None else np.array(starts, "datetime64[s]"),
        observed=None if all(mask.all() for mask in observed) else tuple(observed),
        attributes={name: tuple(column) for name, column in cells.items()},
        source=str(path),
    )


def _attributes(header: Header, path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, value in header.all("attribute"):
        name, kind, *rest = (*value.split(), "", "")
        where = place(path, number)
        if kind not in _TYPES or any(rest):
            what = f"`@attribute` says {shorten(value)}"
            raise DataError(what, where=where, fix=f"Write a name and one of {', '.join(_TYPES)}")
        if name in found:
            raise DataError(
                f"the attribute {shorten(name)} is repeated", where=where, fix="Name each attribute once"
            )
        if (name == _NAME and kind != "string") or (name == _START and kind != "date"):
            raise DataError(
                f"the attribute `{name}` cannot be of type {kind}", where=where, fix="Correct its type"
            )
        found[name] = kind
    if _NAME not in found:
        raise DataError(
            f"there is no `@attribute {_NAME} string`", where=str(path), fix="Give every series a name"
        )
    return found


def _attribute(name: str, kind: str, cell: str, where: str) -> str:
    if name == _NAME and not cell:
        raise DataError("the series has no name", where=where, fix="Give it one")
    if kind == "numeric" and not np.isfinite(_float(cell)):
        what = f"the attribute `{name}` is {shorten(cell)}, not a number"
        raise DataError(what, where=where, fix="Correct the value or its type")
    if kind != "date":
        return cell
    found = _DATE.fullmatch(cell)
    text = f"{found[1]}T{found[2]}:{found[3]}:{found[4]}" if found else ""
    try:
        return str(np.datetime64(text or "no date", "s"))
    except ValueError:
        what = f"the attribute `{name}` is {shorten(cell)}, not a date"
        raise DataError(what, where=where, fix="Write it as 1979-01-01 00-00-00") from None


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _check_lengths(header: Header, values: list[np.ndarray], places: list[str]) -> None:
    if not header.flag("equallength"):
        return
    for series, where in zip(values, places, strict=True):
        if len(series) != len(values[0]):
            raise DataError(
                f"the series has {len(series)} values, the first one {len(values[0])} (`@equallength true`)",
                where=where,
                fix="Correct the header or the series",
            )

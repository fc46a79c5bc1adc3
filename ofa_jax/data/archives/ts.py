"""UEA `.ts`: labeled cases of one or several channels (UEA and UCR classification archives)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ofa_jax.config.tasks import Missing
from ofa_jax.data.archives.records import LabelledCases
from ofa_jax.data.archives.text import Header, fill, numbers, place, read_lines
from ofa_jax.data.timestamps import shorten
from ofa_jax.errors import DataError

_TAGS = (
    "problemname",
    "timestamps",
    "missing",
    "univariate",
    "dimensions",
    "dimension",
    "equallength",
    "serieslength",
    "classlabel",
    "targetlabel",
)


def read_ts(path: str | Path, *, missing: Missing = "error") -> LabelledCases:
    """One part (train or test) of a classification problem, ``.ts`` or ``.ts.gz``.

    Args:
        path: The file.
        missing: Policy for ``?`` and ``NaN``: refuse them, interpolate, or carry the last value forward.

    Raises:
        DataError: Anything that is not as the header says (channels, lengths, classes) or cannot be read as
            asked, with file and line; timestamped values and numeric targets are not read.
    """
    path = Path(path)
    lines = read_lines(path)
    header = Header(path, _TAGS)
    header.read(lines)
    classes = _classes(header, path)
    channels = _channels(header)
    never_missing = header.never_missing

    cases, labels, observed, places = [], [], [], []
    for number, line in lines:
        if not line:
            continue
        where = place(path, number)
        *parts, label = line.split(":")
        label = label.strip()
        if not parts or (channels is not None and len(parts) != channels):
            raise DataError(
                f"has {len(parts)} channel(s) and a label, separated by `:`, where "
                + ("at least one channel is needed" if channels is None else f"{channels} are expected"),
                where=where,
                fix="Correct the line or the header; the line may be cut short or be in the wrong place",
            )
        channels = len(parts)
        if label not in classes:
            raise DataError(
                f"the label {shorten(label)} is none of the header's classes ({shorten(' '.join(classes))})",
                where=where,
                fix="Correct the header or the label; the line may be cut short",
            )
        read = [
            numbers(part, f"{where}, channel {index}", never_missing=never_missing)
            for index, part in enumerate(parts, start=1)
        ]
        _check_channel_lengths(read, where)
        filled = [
            fill(series, missing, f"{where}, channel {index}") for index, series in enumerate(read, start=1)
        ]
        cases.append(np.stack(filled, axis=1))
        observed.append(~np.isnan(np.stack(read, axis=1)))
        labels.append(label)
        places.append(where)
    if not cases:
        raise DataError(
            "there are no cases below `@data`", where=str(path), fix="Fetch the file again: it is cut short"
        )
    _check_lengths(header, cases, places)
    return LabelledCases(
        name=header.text("problemname") or path.name.split(".")[0],
        cases=tuple(cases),
        labels=tuple(labels),
        classes=classes,
        observed=None if all(mask.all() for mask in observed) else tuple(observed),
        source=str(path),
    )


def _classes(header: Header, path: Path) -> tuple[str, ...]:
    if header.flag("timestamps"):
        what = "the values carry timestamps, which are not read"
        fix = "Write the values alone, with `@timestamps false`"
        raise DataError(what, where=header.where("timestamps"), fix=fix)
    if (header.text("targetlabel") or "false").lower() != "false":
        what = "the cases carry numbers to predict, not classes"
        raise DataError(what, where=header.where("targetlabel"), fix="Give a classification problem")
    text = header.text("classlabel")
    if text is None or text.split()[0].lower() != "true":
        what = "there are no class labels (`@classLabel true …`)"
        fix = "Give a classification problem"
        raise DataError(what, where=str(path) if text is None else header.where("classlabel"), fix=fix)
    classes = tuple(text.split()[1:])
    twice = next((name for name in classes if classes.count(name) > 1), None)
    if not classes or twice is not None:
        raise DataError(
            "`@classLabel` names no class" if not classes else f"`@classLabel` names {shorten(twice)} twice",
            where=header.where("classlabel"),
            fix="Name each class once, separated by spaces",
        )
    return classes


def _channels(header: Header) -> int | None:
    tag = "dimension" if header.text("dimension") else "dimensions"
    dimensions, univariate = header.count(tag), header.flag("univariate")
    if univariate and dimensions not in (None, 1):
        what = f"`@{tag}` is {dimensions} although the header says `@univariate true`"
        raise DataError(what, where=header.where(tag), fix="Correct one")
    return 1 if univariate else dimensions


def _check_channel_lengths(read: list[np.ndarray], where: str) -> None:
    for index, series in enumerate(read, start=1):
        if len(series) != len(read[0]):
            what = f"channel {index} has {len(series)} values, channel 1 has {len(read[0])}"
            raise DataError(what, where=where, fix="Give the channels one length")


def _check_lengths(header: Header, cases: list[np.ndarray], places: list[str]) -> None:
    equal, length = header.flag("equallength"), header.count("serieslength")
    if equal is False or (equal is None and length is None):
        return
    length = length or len(cases[0])
    for case, where in zip(cases, places, strict=True):
        if len(case) != length:
            what = f"the case has {len(case)} steps where the header says that all have {length}"
            raise DataError(what, where=where, fix="Correct the header or the case")

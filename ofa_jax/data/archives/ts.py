"""UEA `.ts`: labeled cases of one or several channels (UEA and UCR classification archives)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ofa_jax.config.tasks import Missing
from ofa_jax.data.archives.records import LabelledCases
from ofa_jax.data.archives.text import CUT_SHORT, Header, fill, numbers, place, read_lines
from ofa_jax.errors import DataError, shorten

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
    """One part (train or test) of a classification problem, ``.ts``, packed or not.

    Of values with timestamps only the order is kept.

    Args:
        path: The file.
        missing: Policy for ``?`` and ``NaN``: refuse them, interpolate, or carry the last value forward.

    Raises:
        DataError: Anything that is not as the header says (channels, lengths, classes) or cannot be read as
            asked, with file and line; numeric targets are not read.
    """
    path = Path(path)
    notices: list[str] = []
    lines = read_lines(path, notices)
    header = Header(path, lines, _TAGS)
    classes, channels, never_missing = _classes(header), _channels(header), header.never_missing

    stamped = header.flag("timestamps")
    if stamped:
        notices.append(f"{path.name}: the timestamps of the values are not used, only their order")
    cases, labels, observed, places = [], [], [], []
    read: list[np.ndarray]
    for number, line in lines:
        if not line:
            continue
        where = place(path, number)
        line = _values_alone(line, where) if stamped else line
        *parts, label = line.split(":")
        label = label.strip()
        channels = channels or max(len(parts), 1)
        if len(parts) != channels:
            what = f"has {len(parts)} channel(s) and a label, separated by `:`, where {channels} are expected"
            fix = "Correct the line or the header; the line may be cut short or be in the wrong place"
            raise DataError(what, where=where, fix=fix)
        if label not in classes:
            listed = shorten(" ".join(classes))
            what = f"the label {shorten(label)} is none of the header's classes ({listed})"
            fix = "Correct the header or the label; the line may be cut short"
            raise DataError(what, where=where, fix=fix)
        read, filled = [], []
        for index, part in enumerate(parts, start=1):
            series = numbers(part, f"{where}, channel {index}", never_missing=never_missing)
            if read and len(series) != len(read[0]):
                what = f"channel {index} has {len(series)} values, channel 1 has {len(read[0])}"
                raise DataError(what, where=where, fix="Give the channels one length")
            read.append(series)
            filled.append(fill(series, missing, f"{where}, channel {index}"))
        cases.append(np.stack(filled, axis=1))
        observed.append(~np.isnan(np.stack(read, axis=1)))
        labels.append(label)
        places.append(where)
    if not cases:
        raise DataError("there are no cases below `@data`", where=str(path), fix=CUT_SHORT)
    header.check_lengths([len(case) for case in cases], places)
    return LabelledCases(
        cases=tuple(cases),
        labels=tuple(labels),
        classes=classes,
        observed=None if all(mask.all() for mask in observed) else tuple(observed),
        source=str(path),
        notices=tuple(notices),
    )


def _values_alone(line: str, where: str) -> str:
    """A line of ``(time,value),(time,value):…:label`` as ``value,value:…:label``."""
    body, _, label = line.rpartition(":")
    channels = re.split(r"\) *: *\(", body.strip())
    pairs = [re.split(r"\) *, *\(", channel) for channel in channels]
    bare = [[pair.removeprefix("(").removesuffix(")").rpartition(",") for pair in part] for part in pairs]
    if not body.startswith("(") or any(not comma for part in bare for _, comma, _ in part):
        what = "the header says `@timestamps true`, but the line is not like (time,value),(time,value):label"
        raise DataError(what, where=where, fix="Correct the header or the line")
    return ":".join([*(",".join(value for *_, value in part) for part in bare), label])


def _classes(header: Header) -> tuple[str, ...]:
    if (header.text("targetlabel") or "false").lower() != "false":
        what = "the cases carry numbers to predict, not classes"
        raise DataError(what, where=header.where("targetlabel"), fix="Give a classification problem")
    given, *classes = (header.text("classlabel") or "false").split()
    if given.lower() != "true":
        what = "there are no class labels (`@classLabel true …`)"
        raise DataError(what, where=header.where("classlabel"), fix="Give a classification problem")
    twice = [name for name in classes if classes.count(name) > 1]
    if twice or not classes:
        what = f"`@classLabel` names {f'{shorten(twice[0])} twice' if twice else 'no class'}"
        fix = "Name each class once, separated by spaces"
        raise DataError(what, where=header.where("classlabel"), fix=fix)
    return tuple(classes)


def _channels(header: Header) -> int | None:
    tag = "dimension" if header.text("dimension") else "dimensions"
    dimensions, univariate = header.count(tag), header.flag("univariate")
    if univariate and dimensions not in (None, 1):
        what = f"`@{tag}` is {dimensions} although the header says `@univariate true`"
        raise DataError(what, where=header.where(tag), fix="Correct one")
    return 1 if univariate else dimensions

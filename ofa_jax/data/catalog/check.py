"""What a data file holds, or what is wrong with it."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.data.archives import (
    LabelledCases,
    LabelledStream,
    SeriesCollection,
    read_m4_info,
    read_m4_part,
    read_stream,
    read_ts,
    read_tsf,
)
from ofa_jax.data.archives.text import read_lines
from ofa_jax.data.calendar import follows
from ofa_jax.data.cases import CASE, LABEL, names_of, names_table, read_case_table
from ofa_jax.data.catalog.entries import ENTRIES
from ofa_jax.data.catalog.load import content_sha256
from ofa_jax.data.dates import looks_like_date
from ofa_jax.data.frames import Frame, read_frame
from ofa_jax.data.missing import count_filled
from ofa_jax.data.seasons import season_of
from ofa_jax.data.tables import as_list, unpacked_name
from ofa_jax.errors import DataError

_MOST_FAULTS = 20

Record = Frame | SeriesCollection | LabelledCases | LabelledStream | dict[str, tuple[int, str]]


def check_file(path: str | Path, **options: Any) -> dict[str, Any]:
    """Read a file of any known format with every check of its reader, and summarize it in plain values.

    Args:
        path: Text, Excel, Parquet (a frame), ``.tsf``, ``.ts``, an M4 csv, or ``.npz``; text also packed.
        options: As of :func:`ofa_jax.data.frames.read_frame`; ``timestamps`` defaults to the catalog's policy
            for a known file.

    Returns:
        ``path``, ``kind``, ``sha256`` (of the content, unpacked), ``known_as`` (the data sets of the
        catalog that have this file), and the contents: counts, lengths, names, classes, anomaly share, what
        was inferred (``notices``).

    Raises:
        DataError: Everything that is wrong, as far as settings or leaving out rows get past it, with its
            place; ``past`` has the settings that read the file, where there are such.
    """
    path = Path(path)
    digest = content_sha256(path)
    known = [
        entry for entry in ENTRIES if any(digest in (file.sha256, file.copy_sha256) for file in entry.files)
    ]
    if known:
        options = {"timestamps": known[0].timestamps} | options
    faults: list[DataError] = []
    record, past = _read_past(path, options, faults)
    if faults:
        raise _joined(faults, past if record is not None else None)
    names = [entry.name for entry in known]
    assert record is not None, "a file that is not read has a fault"
    return {"path": str(path), "sha256": digest, "known_as": names} | _summary(record)


def _read_past(
    path: Path, options: dict[str, Any], faults: list[DataError]
) -> tuple[Record | None, dict[str, Any]]:
    """What the file holds, read past its faults, which are added to ``faults``; and the settings for it."""
    past: dict[str, Any] = {}
    for _ in range(_MOST_FAULTS):
        found: list[DataError] = []
        try:
            record = _read(path, options, found)
        except DataError as error:
            faults += [fault for fault in found if str(fault) not in map(str, faults)]
            faults.append(error)
            new = {name: value for name, value in error.past.items() if value != past.get(name)}
            if not new:
                return None, past
            for name, value in new.items():
                before = options.get(name) or []
                past[name] = options[name] = [*before, *value] if isinstance(value, list) else value
        else:
            faults += [fault for fault in found if str(fault) not in map(str, faults)]
            return record, past
    return None, past


def _joined(faults: list[DataError], past: dict[str, Any] | None) -> DataError:
    """One error about all faults; ``past`` are settings that read the file."""
    by_settings = past is not None and all(
        any(f"`{name}: " in (fault.fix or "") for name in fault.past) for fault in faults
    )
    if len(faults) == 1:
        return faults[0]
    lines = [f"{len(faults)} faults:", *(f"({number}) {fault}" for number, fault in enumerate(faults, 1))]
    fix = "Correct these first; others may follow" if past is None else "Correct them"
    if past and by_settings:
        settings = [f"`{name}: {as_list(v) if isinstance(v, list) else v}`" for name, v in past.items()]
        fix = f"All of them are got past by: set {' and '.join(settings)}"
    return DataError(" ".join(lines), fix=fix, past=past)


def _read(path: Path, options: dict[str, Any], faults: list[DataError]) -> Record:
    missing = options.get("missing", "error")
    name = unpacked_name(path)
    if name.endswith(".tsf"):
        return read_tsf(path, missing=missing)
    if name.endswith(".ts"):
        return read_ts(path, missing=missing)
    if name.endswith(".npz"):
        return read_stream(path)
    if name.endswith(".csv"):
        first, second = _first_cells(path)
        if first[:1] == ["M4id"]:
            return read_m4_info(path)
        if first[:2] in (["V1", "V2"], ["id", "F1"]) and not looks_like_date(second[0] if second else ""):
            return read_m4_part(path)
    if names_table(path):
        names = names_of(path, options)
        if CASE in names and (LABEL in names or names[0] == CASE):
            return read_case_table(path, options, unlabeled=LABEL not in names).cases
    return read_frame(path, **options, faults=faults)


def _first_cells(path: Path) -> tuple[list[str], list[str]]:
    """The cells of the first two lines of a comma-separated text; none where it is no plain text."""
    try:
        lines = [line.replace('"', "").split(",") for _, line in islice(read_lines(path, []), 2)]
    except DataError:
        return [], []
    return lines[0] if lines else [], lines[1] if len(lines) > 1 else []


def _gaps(frame: Frame) -> int:
    """How many steps between rows are not the usual one (repeated rows aside)."""
    assert frame.timestamps is not None
    if frame.step is None:
        return 0
    return int((~follows(frame.step, np.unique(frame.timestamps), frame.clock.zone)).sum())


def _summary(record: Record) -> dict[str, Any]:
    if isinstance(record, Frame):
        times = None if record.timestamps is None else record.local_times()
        ends = (None, None) if times is None else times[[0, -1]].astype("datetime64[s]").astype(str).tolist()
        return {
            "kind": "frame",
            "rows": record.n_rows,
            "channels": record.n_channels,
            "names": list(record.names),
            "frequency": record.frequency,
            "season": season_of(record.frequency),
            "filled": count_filled(record.observed),
            "gaps": None if times is None else _gaps(record),
            "first": ends[0],
            "last": ends[1],
            "notices": list(record.notices),
        }
    if isinstance(record, LabelledStream):
        return {
            "kind": "stream",
            "channels": record.n_channels,
            "train_steps": len(record.train),
            "test_steps": len(record.test),
            "segments": len(record.segments),
            "anomaly_ratio": record.anomaly_ratio,
        }
    if isinstance(record, dict):
        frequencies = Counter(frequency for _, frequency in record.values())
        return {
            "kind": "table of series",
            "series": len(record),
            "frequencies": dict(sorted(frequencies.items())),
        }
    lengths = {
        "shortest": int(record.lengths.min()),
        "longest": int(record.lengths.max()),
        "filled": count_filled(record.observed),
        "notices": list(record.notices),
    }
    if isinstance(record, SeriesCollection):
        names = {"kind": "collection", "series": record.n_series, "frequency": record.frequency}
        return names | {"season": season_of(record.frequency), "horizon": record.horizon} | lengths
    classes = {name: record.labels.count(name) for name in record.classes if name}
    sizes = {"kind": "cases", "cases": record.n_cases, "channels": record.n_channels}
    return sizes | {"classes": classes} | lengths

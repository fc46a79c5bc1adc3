"""What a data file holds, or what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.data.archives import (
    LabelledCases,
    LabelledStream,
    M4Info,
    SeriesCollection,
    read_m4_info,
    read_m4_part,
    read_stream,
    read_ts,
    read_tsf,
)
from ofa_jax.data.archives.text import read_lines
from ofa_jax.data.catalog.entries import ENTRIES
from ofa_jax.data.catalog.load import content_sha256
from ofa_jax.data.frames import Frame, Missing, Timestamps, read_frame
from ofa_jax.data.missing import count_filled
from ofa_jax.data.seasons import season_of

Record = Frame | SeriesCollection | LabelledCases | LabelledStream | M4Info


def check_file(
    path: str | Path, *, missing: Missing = "error", timestamps: Timestamps | None = None
) -> dict[str, Any]:
    """Read a file of any known format with every check of its reader, and summarize it in plain values.

    Args:
        path: CSV or Parquet (a frame), ``.tsf``, ``.ts``, an M4 csv, or ``.npz``; text also as ``.gz``.
        missing: As of the readers.
        timestamps: As of :func:`ofa_jax.data.frames.read_frame`; default: the catalog's policy for a known
            file, else ``error``.

    Returns:
        ``path``, ``kind``, ``sha256`` (of the content, unpacked), ``known_as`` (the data sets of the
        catalog that have this file), and the contents: counts, lengths, names, classes, anomaly share.

    Raises:
        DataError: The first thing that is wrong, with its place.
    """
    path = Path(path)
    digest = content_sha256(path)
    known = [
        entry for entry in ENTRIES if any(digest in (file.sha256, file.copy_sha256) for file in entry.files)
    ]
    if timestamps is None:
        timestamps = known[0].timestamps if known else "error"
    record = _read(path, missing, timestamps)
    return {
        "path": str(path),
        "sha256": digest,
        "known_as": [entry.name for entry in known],
        **_summary(record),
    }


def _read(path: Path, missing: Missing, timestamps: Timestamps) -> Record:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".tsf"):
        return read_tsf(path, missing=missing)
    if name.endswith(".ts"):
        return read_ts(path, missing=missing)
    if name.endswith(".npz"):
        return read_stream(path)
    if name.endswith(".csv"):
        first = next(read_lines(path), (0, ""))[1].replace('"', "").split(",")
        if first[0] == "M4id":
            return read_m4_info(path)
        if first[:2] in (["V1", "V2"], ["id", "F1"]):
            return read_m4_part(path)
    return read_frame(path, missing=missing, timestamps=timestamps)


def _summary(record: Record) -> dict[str, Any]:
    if isinstance(record, Frame):
        return {
            "kind": "frame",
            "rows": record.n_rows,
            "channels": record.n_channels,
            "names": list(record.names),
            "frequency": record.frequency,
            "season": season_of(record.frequency),
            "filled": count_filled(record.observed),
            "first": None if record.timestamps is None else str(record.timestamps[0].astype("datetime64[s]")),
            "last": None if record.timestamps is None else str(record.timestamps[-1].astype("datetime64[s]")),
        }
    if isinstance(record, SeriesCollection):
        return {
            "kind": "collection",
            "series": record.n_series,
            "frequency": record.frequency,
            "season": season_of(record.frequency),
            "horizon": record.horizon,
            "filled": count_filled(record.observed),
            **_lengths(record.lengths),
        }
    if isinstance(record, LabelledCases):
        return {
            "kind": "cases",
            "cases": record.n_cases,
            "channels": record.n_channels,
            "classes": {
                name: int((record.class_index == index).sum()) for index, name in enumerate(record.classes)
            },
            "filled": count_filled(record.observed),
            **_lengths(record.lengths),
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
    kinds, counts = np.unique(np.array(record.frequencies), return_counts=True)
    return {
        "kind": "table of series",
        "series": len(record.names),
        "frequencies": dict(zip(kinds.tolist(), counts.tolist(), strict=True)),
    }


def _lengths(lengths: np.ndarray) -> dict[str, int]:
    return {"shortest": int(lengths.min()), "longest": int(lengths.max())}

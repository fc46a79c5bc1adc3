"""What a data file holds, or what is wrong with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

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
from ofa_jax.data.catalog.entries import ENTRIES
from ofa_jax.data.catalog.load import content_sha256
from ofa_jax.data.frames import Frame, Missing, Timestamps, read_frame
from ofa_jax.data.missing import count_filled
from ofa_jax.data.seasons import season_of
from ofa_jax.data.tables import unpacked_name

Record = Frame | SeriesCollection | LabelledCases | LabelledStream | dict[str, tuple[int, str]]


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
    names = [entry.name for entry in known]
    return {"path": str(path), "sha256": digest, "known_as": names} | _summary(
        _read(path, missing, timestamps)
    )


def _read(path: Path, missing: Missing, timestamps: Timestamps) -> Record:
    name = unpacked_name(path)
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
            "first": ends[0],
            "last": ends[1],
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
        "filled": sum(int((~mask).sum()) for mask in record.observed or ()),
        "shortest": int(record.lengths.min()),
        "longest": int(record.lengths.max()),
    }
    lengths |= {"filled": count_filled(record.observed)}
    if isinstance(record, SeriesCollection):
        names = {"kind": "collection", "series": record.n_series, "frequency": record.frequency}
        return names | {"season": season_of(record.frequency), "horizon": record.horizon} | lengths
    classes = {name: record.labels.count(name) for name in record.classes}
    sizes = {"kind": "cases", "cases": record.n_cases, "channels": record.n_channels}
    return sizes | {"classes": classes} | lengths

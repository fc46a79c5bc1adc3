"""The catalogue: benchmark data sets that are known by name, where a user gets them, and how their protocol reads them."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofa_jax.data.frames import Frame, Timestamps, read_frame
from ofa_jax.data.splits import Rule
from ofa_jax.errors import DataError
from ofa_jax.files import sha256_file

DATA_VARIABLE = "OFA_JAX_DATA"


@dataclass(frozen=True)
class DatasetEntry:
    """A benchmark data set.

    Attributes:
        name: What commands and configs call it.
        title: One line about it.
        file: Its path below the data root.
        url: The file itself where it has a stable address, otherwise None.
        pages: Where a person finds it.
        sha256: Of the file, in hexadecimal.
        licence: What its owners allow.
        split: The split rule (protocol §3).
        frequency: The pandas alias of its step.
        season: Steps of its main cycle (one day).
        horizons: The published horizons, in steps.
        n_rows: Data rows T.
        n_channels: Series C.
        timestamps: How its protocol treats repeated and missing timestamps (see :func:`ofa_jax.data.frames.read_frame`).
        citation: The paper that introduced it.
    """

    name: str
    title: str
    file: str
    url: str | None
    pages: tuple[str, ...]
    sha256: str
    licence: str
    split: Rule
    frequency: str
    season: int
    horizons: tuple[int, ...]
    n_rows: int
    n_channels: int
    timestamps: Timestamps
    citation: str


_LONG_HORIZONS = (96, 192, 336, 720)


def _ett(number: int, letter: str, sha256: str) -> DatasetEntry:
    hourly = letter == "h"
    file = f"ETT-small/ETT{letter}{number}.csv"
    return DatasetEntry(
        name=f"ett{letter}{number}",
        title=f"Electricity transformer {number}, oil temperature and six loads, {'hourly' if hourly else 'every 15 minutes'}, 2016-2018",
        file=file,
        url=f"https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/{file}",
        pages=("https://github.com/zhouhaoyi/ETDataset",),
        sha256=sha256,
        licence="CC BY-ND 4.0",
        split="ett_hour" if hourly else "ett_minute",
        frequency="h" if hourly else "15min",
        season=24 if hourly else 96,
        horizons=_LONG_HORIZONS,
        n_rows=17420 if hourly else 69680,
        n_channels=7,
        timestamps="error",
        citation="Zhou et al., Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting, AAAI 2021",
    )


_ENTRIES = (
    _ett(1, "h", "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"),
    _ett(2, "h", "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b"),
    _ett(1, "m", "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e"),
    _ett(2, "m", "db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd"),
    DatasetEntry(
        name="weather",
        title="Weather station on the roof of the Max Planck Institute for Biogeochemistry, Jena, every 10 minutes, 2020",
        file="weather/weather.csv",
        url=None,
        pages=(
            "https://github.com/thuml/Time-Series-Library (its README links the collection; take weather/weather.csv)",
            "https://github.com/thuml/Autoformer (the same collection)",
            "https://www.bgc-jena.mpg.de/wetter/ (the station's own files, laid out differently)",
        ),
        sha256="34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63",
        licence="none stated",
        split="ratio",
        frequency="10min",
        season=144,
        horizons=_LONG_HORIZONS,
        n_rows=52696,
        n_channels=21,
        # one timestamp stands twice and 100 minutes are missing; the protocol counts rows
        timestamps="as_is",
        citation="Wu et al., Autoformer: Decomposition Transformers with Auto-Correlation for Long-Term Series Forecasting, NeurIPS 2021",
    ),
)

CATALOG: dict[str, DatasetEntry] = {entry.name: entry for entry in _ENTRIES}
"""Every known data set by name."""


def data_root() -> Path:
    """The folder that the environment variable OFA_JAX_DATA names.

    Raises:
        DataError: It is not set, or names no folder.
    """
    value = os.environ.get(DATA_VARIABLE, "")
    if not value:
        raise DataError(
            f"{DATA_VARIABLE} is not set", fix=f"Set it to the folder that holds the data sets: export {DATA_VARIABLE}=/path/to/data"
        )
    root = Path(value).expanduser()
    if not root.is_dir():
        raise DataError(f"{DATA_VARIABLE} names {value!r}, which is no folder", fix="Set it to the folder that holds the data sets")
    return root


def locate(entry: DatasetEntry, root: str | Path | None = None) -> Path:
    """The file of a known data set below ``root`` (by default :func:`data_root`).

    Raises:
        DataError: It is not there: where it was looked for, where to get it, where to put it.
    """
    root = data_root() if root is None else Path(root)
    path = root / entry.file
    if path.is_file():
        return path
    raise DataError(
        f"the data set `{entry.name}` is not there",
        where=str(path),
        fix=f"Download it from {entry.url or ' or '.join(entry.pages)} and put it at {entry.file} below {root}",
    )


def verify(entry: DatasetEntry, path: str | Path) -> None:
    """Check a file against the catalogue's sha256.

    Raises:
        DataError: It is another file.
    """
    found = sha256_file(path)
    if found != entry.sha256:
        raise DataError(
            f"this is not the published file of `{entry.name}`: its sha256 is {found}, expected {entry.sha256}",
            where=str(path),
            fix=f"Download it again from {entry.url or entry.pages[0]}, or rename it to use it as a file of your own",
        )


def load(name_or_path: str | Path, *, root: str | Path | None = None, **options: Any) -> tuple[Frame, DatasetEntry | None]:
    """A known data set by name, verified and read as its protocol says, or a user's own file.

    Args:
        name_or_path: A name in :data:`CATALOG`, or a path.
        root: Data root for known data sets; by default :func:`data_root`.
        options: As of :func:`ofa_jax.data.frames.read_frame`; for a known data set ``timestamps`` is the catalogue's own unless given.

    Returns:
        The frame, and the catalogue's entry or None.

    Raises:
        DataError: As :func:`locate`, :func:`verify` and ``read_frame``; a name that is neither known nor a file.
    """
    entry = CATALOG.get(str(name_or_path))
    if entry is not None:
        path = locate(entry, root)
        verify(entry, path)
        return read_frame(path, **{"timestamps": entry.timestamps, **options}), entry
    path = Path(name_or_path)
    if not path.exists() and not path.suffix:
        nearest = difflib.get_close_matches(str(name_or_path).lower(), CATALOG, n=3) or list(CATALOG)
        raise DataError(
            f"`{name_or_path}` is neither a known data set nor a file",
            fix=f"Known names nearest to it: {', '.join(nearest)}; or give a path",
        )
    return read_frame(path, **options), None

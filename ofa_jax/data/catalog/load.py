"""The catalog: benchmark data sets by name, located, verified and read."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ofa_jax.data.archives import (
    LabelledCases,
    LabelledStream,
    SeriesCollection,
    read_m4,
    read_stream,
    read_ts,
    read_tsf,
)
from ofa_jax.data.catalog.entries import ENTRIES, DataFile, DatasetEntry, Kind
from ofa_jax.data.frames import Frame, Missing, read_frame
from ofa_jax.data.tables import open_data
from ofa_jax.errors import DataError
from ofa_jax.files import is_there

DATA_VARIABLE = "OFA_JAX_DATA"

CATALOG: dict[str, DatasetEntry] = {entry.name: entry for entry in ENTRIES}
"""Every known data set by name."""

_KINDS: dict[Kind, tuple[str, str]] = {
    "frame": ("table of series (forecast, imputation)", "load"),
    "collection": ("collection of single series (zero_shot, short_term)", "load_collection"),
    "cases": ("set of labeled cases (classification)", "load_cases"),
    "stream": ("labeled stream (anomaly)", "load_streams"),
}
"""What messages call each kind, with the tasks that read it, and the function that loads it."""


def data_root() -> Path:
    """The folder that the environment variable OFA_JAX_DATA names.

    Raises:
        DataError: It is not set, or names no folder.
    """
    value = os.environ.get(DATA_VARIABLE, "")
    root = Path(value).expanduser()
    if not value or not root.is_dir():
        what = f"{DATA_VARIABLE} " + (f"names {value!r}, which is no folder" if value else "is not set")
        fix = f"Set it to the folder that holds the data sets: export {DATA_VARIABLE}=/path/to/data"
        raise DataError(what, fix=fix)
    return root


def find(file: DataFile, root: Path) -> Path | None:
    """A file of the catalog below ``root``, as itself or with ``.gz``; None where it is not there."""
    for path in (root / file.path, root / f"{file.path}.gz"):
        if path.is_file():
            return path
    return None


def locate(entry: DatasetEntry, *, role: str = "data") -> Path:
    """The file of a data set with a role, below :func:`data_root`.

    Raises:
        DataError: It is not there: where it was looked for, where to get it, where to put it.
    """
    file = entry.file(role)
    try:
        root = data_root()
    except DataError as error:
        fix = f"Export {DATA_VARIABLE}=FOLDER; {_how_to_get(entry, file, 'that folder')}"
        raise DataError(f"{error.what}, so `{entry.name}` cannot be looked for", fix=fix) from None
    path = find(file, root)
    if path is None:
        missing = "the data set" if file.needed else f"the file `{file.role}` of"
        what, fix = f"{missing} `{entry.name}` is not there", _how_to_get(entry, file, str(root))
        raise DataError(what, where=str(root / file.path), fix=fix)
    return path


def _how_to_get(entry: DatasetEntry, file: DataFile, root: str) -> str:
    by_hand = f"download it from {source_of(entry, file)} and put it at {file.path} below {root}"
    return f"run `ofa-jax data fetch {entry.name}`, or {by_hand}" if file.url else by_hand


def source_of(entry: DatasetEntry, file: DataFile) -> str:
    """In words, where a file of a known data set comes from."""
    if file.url is None:
        return " or ".join(entry.pages) + (f" ({entry.note.rstrip('.')})" if entry.note else "")
    return f"{file.url} ({file.member} in it)" if file.member else file.url


def content_sha256(path: Path) -> str:
    """The sha256 of a file's content in hexadecimal; of a ``.gz`` file's, unpacked.

    Raises:
        DataError: The file cannot be read or unpacked.
    """
    with open_data(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # no getbuffer


def verify(entry: DatasetEntry, path: Path, *, role: str = "data") -> bool:
    """Check a file's content against the catalog's sha256; False where the catalog has none for it.

    Raises:
        DataError: The published file's sha256 is known and this is another file.
    """
    file, found = entry.file(role), content_sha256(path)
    if file.sha256 not in (None, found):
        what = f"this is not the published file of `{entry.name}`: its sha256 is {found}, not {file.sha256}"
        fix = f"Download it again from {source_of(entry, file)}, or rename it to use it as a file of your own"
        raise DataError(what, where=str(path), fix=fix)
    return found in (file.sha256, file.copy_sha256)


def load(name_or_path: str | Path, **options: Any) -> tuple[Frame, DatasetEntry | None]:
    """A known frame by name, verified and read as its protocol says, or a user's own file.

    Args:
        name_or_path: A name in :data:`CATALOG`, or a path.
        options: As of :func:`ofa_jax.data.frames.read_frame`; ``timestamps`` defaults to the catalog's
            for a known data set.

    Returns:
        The frame, and the catalog's entry or None.

    Raises:
        DataError: As :func:`locate`, :func:`verify` and ``read_frame``; a name that is neither known
            nor a file; a known data set that is not a frame.
    """
    entry, paths = _files(name_or_path, "frame")
    policy = {} if entry is None else {"timestamps": entry.timestamps, "frequency": entry.frequency}
    return read_frame(paths["data"], **(policy | options)), entry


def load_collection(
    name_or_path: str | Path, *, missing: Missing = "error"
) -> tuple[SeriesCollection, DatasetEntry | None]:
    """A known collection of single series (M3, M4) or a user's ``.tsf`` file; test part at each series' end.

    Raises:
        DataError: As :func:`load`, ``read_tsf`` and ``read_m4``; another number of series
            than the catalog's.
    """
    entry, paths = _files(name_or_path, "collection")
    m4 = [paths[role] for role in ("train", "test", "info") if role in paths]
    collection = read_m4(*m4) if m4 else read_tsf(paths["data"], missing=missing)
    if entry is not None:
        _expect(entry, collection.source, "series", collection.n_series, entry.n_series)
    return collection, entry


def load_cases(
    name_or_folder: str | Path, *, missing: Missing = "error"
) -> tuple[LabelledCases, LabelledCases, DatasetEntry | None]:
    """Training and test cases of a known problem, or of a folder with ``*_TRAIN.ts`` and ``*_TEST.ts``.

    Raises:
        DataError: As :func:`load` and :func:`ofa_jax.data.archives.read_ts`; parts that differ in channels
            or classes; other numbers of cases or channels than the catalog's.
    """
    entry, paths = _files(name_or_folder, "cases")
    if entry is None:
        paths = {part: _case_file(paths["data"], part) for part in ("train", "test")}
    train, test = (read_ts(paths[part], missing=missing) for part in ("train", "test"))
    if train.n_channels != test.n_channels or train.classes != test.classes:
        raise DataError(
            f"training and test cases differ: {train.n_channels} and {test.n_channels} channels, "
            f"classes {' '.join(train.classes)[:100]} and {' '.join(test.classes)[:100]}",
            where=test.source,
            fix="Give both parts of the same problem",
        )
    if entry is not None:
        for part, count in ((train, entry.n_train), (test, entry.n_test)):
            _expect(entry, part.source, "cases", part.n_cases, count)
            _expect(entry, part.source, "channels", part.n_channels, entry.n_channels)
    return train, test, entry


def load_streams(
    name_or_path: str | Path, *, only: Sequence[str] | None = None
) -> tuple[tuple[LabelledStream, ...], DatasetEntry | None]:
    """The streams of a known anomaly set (one, or one per machine), or the one of a user's own ``.npz``.

    Args:
        name_or_path: A name in :data:`CATALOG`, or a path.
        only: Roles of the files to read (``machine-1-2``, …); default: all, and all must be there.

    Raises:
        DataError: As :func:`load` and :func:`ofa_jax.data.archives.read_stream`; other channels or,
            when all are read, other steps than the catalog's.
    """
    entry, paths = _files(name_or_path, "stream", only)
    streams = tuple(read_stream(path) for path in paths.values())
    if entry is not None:
        for stream in streams:
            _expect(entry, stream.source, "channels", stream.n_channels, entry.n_channels)
        if only is None:
            train_steps = sum(len(stream.train) for stream in streams)
            test_steps = sum(len(stream.test) for stream in streams)
            _expect(entry, streams[0].source, "training steps", train_steps, entry.n_train)
            _expect(entry, streams[0].source, "test steps", test_steps, entry.n_test)
    return streams, entry


def known(name: str) -> DatasetEntry:
    """A data set's entry by name.

    Raises:
        DataError: There is none of that name; the nearest ones are listed.
    """
    if name in CATALOG:
        return CATALOG[name]
    nearest = difflib.get_close_matches(name.lower(), CATALOG, n=3) or list(CATALOG)
    raise DataError(f"`{name}` is not a known data set", fix=f"The nearest names are {', '.join(nearest)}")


def list_entries(root: Path | None = None) -> list[dict[str, Any]]:
    """Every known data set as a dictionary of plain values; ``present`` is None without a data root."""
    return [_listing(entry, root) for entry in ENTRIES]


def _listing(entry: DatasetEntry, root: Path | None) -> dict[str, Any]:
    files = [
        {name: getattr(file, name) for name in ("path", "role", "needed", "sha256", "url")}
        | {"present": None if root is None else find(file, root) is not None}
        for file in entry.files
    ]
    needed = [file for file in files if file["needed"]]
    plain = asdict(entry)
    sizes = {name: plain.pop(name) for name in _SIZES}
    del plain["timestamps"]
    return plain | {
        "present": None if root is None else all(file["present"] for file in needed),
        "fetchable": all(file["url"] is not None for file in needed),
        "files": files,
        "split": entry.split if entry.kind == "frame" else None,
        "sizes": {name: size for name, size in sizes.items() if size is not None},
    }


_SIZES = ("n_rows", "n_channels", "n_series", "n_train", "n_test", "length", "n_classes")


def _files(
    name_or_path: str | Path, kind: Kind, only: Sequence[str] | None = None
) -> tuple[DatasetEntry | None, dict[str, Path]]:
    """A known set with its verified files by role (of all: optional ones if present), or a user's path."""
    entry = CATALOG.get(str(name_or_path))
    names = [name for name, other in CATALOG.items() if other.kind == kind]
    if entry is None:
        path = Path(name_or_path)
        if not is_there(path, error=DataError) and not path.suffix:
            nearest = difflib.get_close_matches(str(name_or_path).lower(), CATALOG, n=3) or names
            what = f"`{name_or_path}` is neither a known data set nor a file"
            raise DataError(what, fix=f"Known names nearest to it: {', '.join(nearest)}; or give a path")
        return None, {"data": path}
    if entry.kind != kind:
        (is_a, reader), needed = _KINDS[entry.kind], _KINDS[kind][0]
        fix = f"Name one of {', '.join(names)}, or set task.name to a task that reads it"
        what = f"`{entry.name}` is a {is_a}, here a {needed} is needed"
        raise DataError(what, fix=f"{fix} (in Python: `{reader}`)")
    paths = {}
    for file in entry.files if only is None else map(entry.file, only):
        if file.needed or find(file, data_root()):
            paths[file.role] = locate(entry, role=file.role)
            verify(entry, paths[file.role], role=file.role)
    return entry, paths


def _case_file(folder: Path, part: str) -> Path:
    pattern = f"*_{part.upper()}.ts"
    matches = [*folder.glob(pattern), *folder.glob(f"{pattern}.gz")]
    if len(matches) != 1:
        what = f"there are {len(matches)} files `{pattern}`"
        raise DataError(what, where=str(folder), fix="Give a folder that holds one problem's two parts")
    return matches[0]


def _expect(entry: DatasetEntry, where: str, what: str, found: int, expected: int | None) -> None:
    if expected not in (None, found):
        what = f"has {found} {what}, `{entry.name}` has {expected}"
        raise DataError(what, where=where, fix="Download it again")

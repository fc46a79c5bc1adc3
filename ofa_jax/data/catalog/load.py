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
    if not value:
        fix = f"Set it to the folder that holds the data sets: export {DATA_VARIABLE}=/path/to/data"
        raise DataError(f"{DATA_VARIABLE} is not set", fix=fix)
    root = Path(value).expanduser()
    if not root.is_dir():
        what = f"{DATA_VARIABLE} names {value!r}, which is no folder"
        raise DataError(what, fix="Set it to the folder that holds the data sets")
    return root


def find(file: DataFile, root: Path) -> Path | None:
    """A file of the catalog below ``root``, as itself or with ``.gz``; None where it is not there."""
    for path in (root / file.path, root / f"{file.path}.gz"):
        if path.is_file():
            return path
    return None


def locate(entry: DatasetEntry, root: str | Path | None = None, *, role: str | None = None) -> Path:
    """The file of a data set with a role (default: the first) below ``root`` (default: :func:`data_root`).

    Raises:
        DataError: It is not there: where it was looked for, where to get it, where to put it.
    """
    file = entry.files[0] if role is None else entry.file(role)
    try:
        root = data_root() if root is None else Path(root)
    except DataError as error:
        fix = f"Export {DATA_VARIABLE}=FOLDER; {_how_to_get(entry, file, 'that folder')}"
        raise DataError(f"{error.what}, so `{entry.name}` cannot be looked for", fix=fix) from None
    path = find(file, root)
    if path is not None:
        return path
    raise DataError(
        f"the data set `{entry.name}` is not there"
        if file.needed
        else f"the file `{file.role}` of `{entry.name}` is not there",
        where=str(root / file.path),
        fix=_how_to_get(entry, file, str(root)),
    )


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
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # gzip's lacks getbuffer


def verify(entry: DatasetEntry, path: str | Path, *, role: str | None = None) -> bool:
    """Check a file's content against the catalog's sha256; False where the catalog has none for it.

    Raises:
        DataError: The published file's sha256 is known and this is another file.
    """
    path = Path(path)
    file = entry.files[0] if role is None else entry.file(role)
    found = content_sha256(path)
    if found in (file.sha256, file.copy_sha256):
        return True
    if file.sha256 is None:
        return False
    what = f"this is not the published file of `{entry.name}`: its sha256 is {found}, expected {file.sha256}"
    fix = f"Download it again from {source_of(entry, file)}, or rename it to use it as a file of your own"
    raise DataError(what, where=str(path), fix=fix)


def load(
    name_or_path: str | Path, *, root: str | Path | None = None, **options: Any
) -> tuple[Frame, DatasetEntry | None]:
    """A known frame by name, verified and read as its protocol says, or a user's own file.

    Args:
        name_or_path: A name in :data:`CATALOG`, or a path.
        root: Data root for known data sets; by default :func:`data_root`.
        options: As of :func:`ofa_jax.data.frames.read_frame`; ``timestamps`` defaults to the catalog's
            for a known data set.

    Returns:
        The frame, and the catalog's entry or None.

    Raises:
        DataError: As :func:`locate`, :func:`verify` and ``read_frame``; a name that is neither known
            nor a file; a known data set that is not a frame.
    """
    entry = _entry(name_or_path, "frame")
    if entry is not None:
        return read_frame(_checked(entry, root), **{"timestamps": entry.timestamps, **options}), entry
    return read_frame(_own(name_or_path, "frame"), **options), None


def load_collection(
    name_or_path: str | Path, *, root: str | Path | None = None, missing: Missing = "error"
) -> tuple[SeriesCollection, DatasetEntry | None]:
    """A known collection of single series (M3, M4) or a user's ``.tsf`` file; test part at each series' end.

    Raises:
        DataError: As :func:`load`, ``read_tsf`` and ``read_m4``; another number of series
            than the catalog's.
    """
    entry = _entry(name_or_path, "collection")
    if entry is None:
        return read_tsf(_own(name_or_path, "collection"), missing=missing), None
    roles = [file.role for file in entry.files]
    if "train" in roles:
        train, test = (_checked(entry, root, role) for role in ("train", "test"))
        base = data_root() if root is None else Path(root)
        info = _checked(entry, root, "info") if "info" in roles and find(entry.file("info"), base) else None
        collection = read_m4(train, test, info)
    else:
        collection = read_tsf(_checked(entry, root), missing=missing)
    _expect(entry, {"series": (collection.n_series, entry.n_series)}, collection.source)
    return collection, entry


def load_cases(
    name_or_folder: str | Path, *, root: str | Path | None = None, missing: Missing = "error"
) -> tuple[LabelledCases, LabelledCases, DatasetEntry | None]:
    """Training and test cases of a known problem, or of a folder with ``*_TRAIN.ts`` and ``*_TEST.ts``.

    Raises:
        DataError: As :func:`load` and :func:`ofa_jax.data.archives.read_ts`; parts that differ in channels
            or classes; other numbers of cases or channels than the catalog's.
    """
    entry = _entry(name_or_folder, "cases")
    known = [] if entry is None else [_checked(entry, root, role) for role in ("train", "test")]
    paths = known or _case_files(_own(name_or_folder, "cases"))
    train, test = (read_ts(path, missing=missing) for path in paths)
    if train.n_channels != test.n_channels or train.classes != test.classes:
        raise DataError(
            f"training and test cases differ: {train.n_channels} and {test.n_channels} channels, "
            f"classes {' '.join(train.classes)[:100]} and {' '.join(test.classes)[:100]}",
            where=test.source,
            fix="Give both parts of the same problem",
        )
    if entry is not None:
        for part, count in ((train, entry.n_train), (test, entry.n_test)):
            _expect(
                entry,
                {"cases": (part.n_cases, count), "channels": (part.n_channels, entry.n_channels)},
                part.source,
            )
    return train, test, entry


def load_streams(
    name_or_path: str | Path, *, root: str | Path | None = None, only: Sequence[str] | None = None
) -> tuple[tuple[LabelledStream, ...], DatasetEntry | None]:
    """The streams of a known anomaly set (one, or one per machine), or the one of a user's own ``.npz``.

    Args:
        name_or_path: A name in :data:`CATALOG`, or a path.
        root: Data root for known data sets; by default :func:`data_root`.
        only: Roles of the files to read (``machine-1-2``, …) ; default: all, and all must be there.

    Raises:
        DataError: As :func:`load` and :func:`ofa_jax.data.archives.read_stream`; other channels or,
            when all are read, other steps than the catalog's.
    """
    entry = _entry(name_or_path, "stream")
    if entry is None:
        return (read_stream(_own(name_or_path, "stream")),), None
    roles = [file.role for file in entry.files] if only is None else list(only)
    streams = tuple(read_stream(_checked(entry, root, role)) for role in roles)
    for stream in streams:
        _expect(entry, {"channels": (stream.n_channels, entry.n_channels)}, stream.source)
    if only is None:
        steps = {
            "training steps": (sum(len(stream.train) for stream in streams), entry.n_train),
            "test steps": (sum(len(stream.test) for stream in streams), entry.n_test),
        }
        _expect(entry, steps, streams[0].source)
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


def list_entries(root: str | Path | None = None) -> list[dict[str, Any]]:
    """Every known data set as a dictionary of plain values.

    Args:
        root: Data root to look for the files in; None leaves ``present`` out (None) of every file.
    """
    return [_listing(entry, None if root is None else Path(root)) for entry in ENTRIES]


def _listing(entry: DatasetEntry, root: Path | None) -> dict[str, Any]:
    def present(file: DataFile) -> bool | None:
        return None if root is None else find(file, root) is not None

    plain = asdict(entry)
    sizes = {name: plain[name] for name in _SIZES if plain[name] is not None}
    fields = ("path", "role", "needed", "sha256", "url")
    files = [
        {name: getattr(file, name) for name in fields} | {"present": present(file)} for file in entry.files
    ]
    needed = [file for file in files if file["needed"]]
    return {
        **{name: plain[name] for name in ("name", "kind", "title")},
        "present": None if root is None else all(file["present"] for file in needed),
        "fetchable": all(file["url"] is not None for file in needed),
        "files": files,
        **{name: plain[name] for name in ("pages", "licence", "citation", "note")},
        "split": entry.split if entry.kind == "frame" else None,
        **{name: plain[name] for name in ("frequency", "season", "horizons")},
        "sizes": sizes,
    }


_SIZES = ("n_rows", "n_channels", "n_series", "n_train", "n_test", "length", "n_classes")


def _entry(name_or_path: str | Path, kind: Kind) -> DatasetEntry | None:
    entry = CATALOG.get(str(name_or_path))
    if entry is None or entry.kind == kind:
        return entry
    names = [name for name, other in CATALOG.items() if other.kind == kind]
    (is_a, reader), needed = _KINDS[entry.kind], _KINDS[kind][0]
    what, fix = f"`{entry.name}` is a {is_a}, here a {needed} is needed", f"Name one of {', '.join(names)}"
    raise DataError(what, fix=f"{fix}, or set task.name to a task that reads it (in Python: `{reader}`)")


def _own(name_or_path: str | Path, kind: Kind) -> Path:
    path = Path(name_or_path)
    if not path.exists() and not path.suffix:
        nearest = difflib.get_close_matches(str(name_or_path).lower(), CATALOG, n=3) or [
            name for name, entry in CATALOG.items() if entry.kind == kind
        ]
        what = f"`{name_or_path}` is neither a known data set nor a file"
        raise DataError(what, fix=f"Known names nearest to it: {', '.join(nearest)}; or give a path")
    return path


def _checked(entry: DatasetEntry, root: str | Path | None, role: str | None = None) -> Path:
    path = locate(entry, root, role=role)
    verify(entry, path, role=role)
    return path


def _case_files(folder: Path) -> list[Path]:
    found = []
    for part in ("TRAIN", "TEST"):
        matches = sorted([*folder.glob(f"*_{part}.ts"), *folder.glob(f"*_{part}.ts.gz")])
        if len(matches) != 1:
            what = f"there are {len(matches)} files `*_{part}.ts`"
            raise DataError(what, where=str(folder), fix="Give a folder that holds one problem's two parts")
        found += matches
    return found


def _expect(entry: DatasetEntry, counts: dict[str, tuple[int, int | None]], source: str) -> None:
    for what, (found, expected) in counts.items():
        if expected is not None and found != expected:
            raise DataError(
                f"has {found} {what}, `{entry.name}` has {expected}", where=source, fix="Download it again"
            )

"""Fetch published data sets: download, verify, unpack, move into place."""

from __future__ import annotations

import contextlib
import gzip
import logging
import lzma
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from ofa_jax.data.catalog.entries import DataFile, DatasetEntry
from ofa_jax.data.catalog.load import content_sha256, data_root, find, source_of, verify
from ofa_jax.errors import DataError
from ofa_jax.files import umask

MAX_BYTES = 4 << 30
"""Largest uncompressed file; larger than any in the catalog."""


@dataclass(frozen=True)
class Fetched:
    """The result for one file of a data set.

    Attributes:
        path: Where it is, or would be.
        status: ``by hand`` files are not needed and have no address.
        verified: Whether its content has the catalog's sha256; False where the catalog has none.
        sha256: Of its uncompressed content; None where it is absent.
    """

    path: Path
    status: Literal["present", "downloaded", "by hand"]
    verified: bool
    sha256: str | None


def fetch(entry: DatasetEntry, root: str | Path | None = None) -> tuple[Fetched, ...]:
    """Download the missing files of a data set below ``root``.

    Present files are verified and left alone. A file is moved into place only when it is complete and,
    where its sha256 is known, right.

    Args:
        entry: The data set.
        root: The data root, created if missing; default: :func:`ofa_jax.data.catalog.load.data_root`.

    Raises:
        DataError: A needed file has no address; the download fails; the sha256 differs; an archive is damaged
            or lacks the file.
    """
    root = data_root() if root is None else Path(root)
    missing = [file for file in entry.files if find(file, root) is None]
    for file in missing:
        if not (root / file.path).resolve().is_relative_to(root.resolve()):
            raise DataError(f"{file.path} is outside the data root", where=str(root))
        if file.url is None and file.needed:
            what = f"`{entry.name}` cannot be downloaded: there is no address for {file.path}"
            fix = f"Get it from {source_of(entry, file)} and put it at {file.path} below {root}"
            raise DataError(what, where=str(root / file.path), fix=fix)
    for url in dict.fromkeys(file.url for file in missing if file.url is not None):
        with _scratch(root) as scratch:
            _fetch_url(url, [file for file in missing if file.url == url], root, scratch)
    return tuple(_result(entry, file, root, file in missing) for file in entry.files)


def _result(entry: DatasetEntry, file: DataFile, root: Path, new: bool) -> Fetched:
    path = find(file, root)
    if path is None:
        return Fetched(root / file.path, "by hand", False, None)
    verified = verify(entry, path, role=file.role)
    digest = (file.sha256 or file.copy_sha256) if verified else content_sha256(path)
    return Fetched(path, "downloaded" if new else "present", verified, digest)


@contextlib.contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """A temporary folder on the file system of the data root."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as scratch:
            yield Path(scratch)
    except OSError as error:
        what = f"the data root cannot be written to ({error})"
        raise DataError(what, where=str(root), fix="Free space, or choose another folder") from None


def _fetch_url(url: str, files: Sequence[DataFile], root: Path, scratch: Path) -> None:
    archive = _download(url, scratch)
    plain = files[0].member is None and not url.endswith(".gz")
    unpacked = {files[0].path: archive} if plain else _unpack(archive, files, scratch, url)
    for file in files:
        found = content_sha256(unpacked[file.path])
        if file.sha256 is not None and found != file.sha256:
            what = f"the download of {file.path} has the sha256 {found}, expected {file.sha256}"
            raise DataError(
                f"{what}; it was discarded",
                where=url,
                fix="Try again; if it persists, the published file has changed",
            )
    for file in files:
        target = root / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(unpacked[file.path], "rb") as content:
            os.fsync(content.fileno())
        os.chmod(unpacked[file.path], 0o666 & ~umask())  # temporary files are their owner's alone
        os.replace(unpacked[file.path], target)


def _download(url: str, scratch: Path) -> Path:
    import pooch  # type: ignore[import-untyped]
    import requests

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        return Path(pooch.retrieve(url, known_hash=None, fname="download", path=scratch))
    except requests.RequestException as error:
        what = f"the download failed ({error})"
        raise DataError(what, where=url, fix="Check the connection and try again") from None
    finally:
        logger.setLevel(level)


def _unpack(archive: Path, files: Sequence[DataFile], scratch: Path, url: str) -> dict[str, Path]:
    """The wanted files of a zip archive, or the one of a gzip file; names inside never become paths."""
    try:
        if files[0].member is None:
            with gzip.open(archive) as content:
                return {files[0].path: _copy(content, scratch / "0", url)}
        with zipfile.ZipFile(archive) as opened:
            found = {}
            for number, file in enumerate(files):
                names = [entry for entry in opened.namelist() if PurePosixPath(entry).name == file.member]
                if len(names) != 1:
                    what = f"the archive has {len(names)} files `{file.member}`"
                    raise DataError(what, where=url, fix="See the data set's pages")
                with opened.open(names[0]) as content:
                    found[file.path] = _copy(content, scratch / str(number), url)
            return found
    # RuntimeError and its NotImplementedError are encrypted or exotic entries
    except (
        EOFError,
        ValueError,
        RuntimeError,
        zipfile.BadZipFile,
        gzip.BadGzipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        what = f"the archive cannot be unpacked ({error})"
        raise DataError(what, where=url, fix="Try again, or download it by hand") from None


def _copy(content: IO[bytes] | gzip.GzipFile, path: Path, url: str) -> Path:
    with open(path, "wb") as target:
        bounded: Any = _Bounded(content, url)
        shutil.copyfileobj(bounded, target, 1 << 20)
    return path


class _Bounded:
    """A stream that refuses to be larger than :data:`MAX_BYTES`."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, url: str) -> None:
        self._stream, self._url, self._left = stream, url, MAX_BYTES

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._left -= len(block)
        if self._left < 0:
            what = f"a file unpacks to more than {MAX_BYTES} bytes"
            raise DataError(what, where=self._url, fix="Do not use this archive")
        return block

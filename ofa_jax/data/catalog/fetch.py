"""Fetch published data sets: download, verify, unpack, move into place."""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Literal
from zipfile import BadZipFile, ZipFile

from ofa_jax.data.catalog.entries import DataFile, DatasetEntry
from ofa_jax.data.catalog.load import content_sha256, data_root, find, source_of, verify
from ofa_jax.errors import DataError
from ofa_jax.files import umask

MAX_BYTES = 4 << 30
"""Largest uncompressed file; larger than any in the catalog."""

# what zipfile raises on damaged archives; RuntimeError: encrypted or exotic entries
_DAMAGE = (EOFError, ValueError, RuntimeError, BadZipFile, zlib.error, LZMAError)


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


def fetch(entry: DatasetEntry) -> tuple[Fetched, ...]:
    """Download the missing files of a data set below :func:`ofa_jax.data.catalog.load.data_root`.

    Present files are verified and left alone. A file is moved into place only when it is complete and,
    where its sha256 is known, right.

    Raises:
        DataError: There is no data root; a needed file has no address; the download fails; the sha256
            differs; an archive is damaged or lacks the file.
    """
    root = data_root()
    missing = [file for file in entry.files if find(file, root) is None]
    for file in missing:
        if not (root / file.path).resolve().is_relative_to(root.resolve()):
            raise DataError(f"{file.path} is outside the data root", where=str(root))
        if file.url is None and file.needed:
            what = f"`{entry.name}` cannot be downloaded: there is no address for {file.path}"
            fix = f"Get it from {source_of(entry, file)} and put it at {file.path} below {root}"
            raise DataError(what, where=str(root / file.path), fix=fix)
    try:
        for url in dict.fromkeys(file.url for file in missing if file.url is not None):
            with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as scratch:
                _fetch_url(url, [file for file in missing if file.url == url], root, Path(scratch))
    except OSError as error:
        what = f"the data root cannot be written to ({error})"
        raise DataError(what, where=str(root), fix="Free space, or choose another folder") from None
    return tuple(_result(entry, file, root, file in missing) for file in entry.files)


def _result(entry: DatasetEntry, file: DataFile, root: Path, new: bool) -> Fetched:
    path = find(file, root)
    if path is None:
        return Fetched(root / file.path, "by hand", False, None)
    verified = verify(entry, path, role=file.role)
    digest = (file.sha256 or file.copy_sha256) if verified else content_sha256(path)
    return Fetched(path, "downloaded" if new else "present", verified, digest)


def _fetch_url(url: str, files: Sequence[DataFile], root: Path, scratch: Path) -> None:
    """Move the files that come from one address into place, all or none."""
    download = _download(url, scratch)
    unpacked = [download] if files[0].member is None else _unpack(download, files, scratch, url)
    for file, path in zip(files, unpacked, strict=True):
        found = content_sha256(path)
        if file.sha256 not in (None, found):
            what = f"the download of {file.path} has the sha256 {found}, expected {file.sha256}"
            fix = "Try again; if it persists, the published file has changed"
            raise DataError(f"{what}; it was discarded", where=url, fix=fix)
    for file, path in zip(files, unpacked, strict=True):
        target = root / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "rb") as content:
            os.fsync(content.fileno())
        os.chmod(path, 0o666 & ~umask())  # temporary files are their owner's alone
        os.replace(path, target)


def _download(url: str, scratch: Path) -> Path:
    import pooch  # type: ignore[import-untyped]
    import requests

    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(pooch.retrieve(url, known_hash=None, fname="download", path=scratch))
    except requests.RequestException as error:
        what = f"the download failed ({error})"
        raise DataError(what, where=url, fix="Check the connection and try again") from None


def _unpack(archive: Path, files: Sequence[DataFile], scratch: Path, url: str) -> list[Path]:
    """The wanted files of a zip archive; names inside never become paths."""
    found = []
    try:
        with ZipFile(archive) as opened:
            for number, file in enumerate(files):
                members = [
                    info for info in opened.infolist() if PurePosixPath(info.filename).name == file.member
                ]
                if len(members) != 1:
                    what = f"the archive has {len(members)} files `{file.member}`"
                    raise DataError(what, where=url, fix="See the data set's pages")
                if members[0].file_size > MAX_BYTES:  # zipfile reads no more than that size
                    what = f"a file unpacks to more than {MAX_BYTES} bytes"
                    raise DataError(what, where=url, fix="Do not use this archive")
                found.append(scratch / str(number))
                with opened.open(members[0]) as content, open(found[-1], "wb") as target:
                    shutil.copyfileobj(content, target, 1 << 20)
    except _DAMAGE as error:
        what = f"the archive cannot be unpacked ({error})"
        raise DataError(what, where=url, fix="Try again, or download it by hand") from None
    return found

"""Taking files out of downloaded archives: nothing outside its folder, no links, no more bytes than a disk can bear."""

from __future__ import annotations

import gzip
import lzma
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from ofa_jax.data.catalog.entries import DataFile
from ofa_jax.errors import DataError

LARGEST_FILE = 4 << 30
"""Bytes of one unpacked file; larger than any in the catalogue."""

_BLOCK = 1 << 20


def unpack(
    archive: Path, files: Sequence[DataFile], folder: Path, *, url: str, limit: int = LARGEST_FILE
) -> list[tuple[DataFile, Path]]:
    """Take the catalogued files out of a ``.zip``, or the one out of a ``.gz``, each to a new file in ``folder``.

    Names inside an archive never become paths. An archive with an entry that would lead out of its folder or is a link is refused
    as a whole, whether or not that entry is wanted.

    Args:
        archive: The download.
        files: The files wanted; those with a ``member`` come from a zip.
        folder: Where the new files go, under names of their own.
        url: Where the archive comes from, for messages and to tell the formats apart.
        limit: The most bytes that one file may unpack to.

    Raises:
        DataError: The archive is damaged, unsafe, encrypted, lacks a file, has it twice, or unpacks to more than ``limit``.
    """
    done: list[tuple[DataFile, Path]] = []
    try:
        if files[0].member is None:
            with gzip.open(archive) as content:
                done.append((files[0], _copy(content, folder, url, files[0].path, limit)))
            return done
        with zipfile.ZipFile(archive) as content_of:
            entries = content_of.infolist()
            for entry in entries:
                _check_safe(entry, url)
            for file in files:
                entry = _member(entries, file, url)
                with content_of.open(entry) as content:
                    done.append((file, _copy(content, folder, url, entry.filename, limit)))
        return done
    # RuntimeError and its NotImplementedError are encrypted or exotic entries
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        _remove(done)
        raise DataError(
            f"the archive cannot be unpacked ({error})", where=url, fix="Try again, or download it by hand"
        ) from None
    except BaseException:
        _remove(done)
        raise


def _remove(done: list[tuple[DataFile, Path]]) -> None:
    for _, path in done:
        path.unlink(missing_ok=True)


def _check_safe(entry: zipfile.ZipInfo, url: str) -> None:
    name = entry.orig_filename
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    if (
        not name
        or ".." in parts
        or PurePosixPath(name).is_absolute()
        or PureWindowsPath(name).anchor
        or "\0" in name
    ):
        what = f"the archive holds an entry that leads out of its folder ({name!r})"
        raise DataError(what, where=url, fix="Do not use this archive")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(
            f"the archive holds a link or device ({name!r})", where=url, fix="Do not use this archive"
        )


def _member(entries: list[zipfile.ZipInfo], file: DataFile, url: str) -> zipfile.ZipInfo:
    found = [
        entry for entry in entries if not entry.is_dir() and PurePosixPath(entry.filename).name == file.member
    ]
    if len(found) != 1:
        raise DataError(
            f"the archive holds {len(found)} files `{file.member}`", where=url, fix="See the data set's pages"
        )
    return found[0]


def _copy(content: gzip.GzipFile | IO[bytes], folder: Path, url: str, name: str, limit: int) -> Path:
    with tempfile.NamedTemporaryFile(dir=folder, prefix="unpacked-", delete=False) as target:
        path, size = Path(target.name), 0
        try:
            while block := content.read(_BLOCK):
                size += len(block)
                if size > limit:
                    raise DataError(
                        f"{name} unpacks to more than {limit} bytes", where=url, fix="Do not use this archive"
                    )
                target.write(block)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return path

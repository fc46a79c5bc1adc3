"""Fetching published data sets: resumed where a download broke off, checked, unpacked safely, moved into place whole."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from ofa_jax.data.catalog.download import Progress, ResumingDownloader
from ofa_jax.data.catalog.entries import DataFile, DatasetEntry
from ofa_jax.data.catalog.load import content_sha256, data_root, find, source_of, verify
from ofa_jax.data.catalog.unpack import unpack
from ofa_jax.errors import DataError

_STAGING = ".ofa-jax-fetch"


@dataclass(frozen=True)
class Fetched:
    """What became of one file of a data set.

    Attributes:
        path: Where it lies, or would lie.
        status: Whether it was there before, was downloaded now, or has to be got by hand (only files that are not needed).
        verified: Whether its content has the catalogue's sha256; False where the catalogue knows none for it.
        sha256: Of its content, unpacked; None where it is not there.
    """

    path: Path
    status: Literal["present", "downloaded", "by hand"]
    verified: bool
    sha256: str | None


def fetch(
    entry: DatasetEntry, root: str | Path | None = None, progress: Progress | None = None
) -> tuple[Fetched, ...]:
    """Bring the files of a known data set below ``root`` and say of each what happened.

    Files that are there already are checked and left as they are. A broken download is taken up where it stopped, now or at the
    next call, where the server allows it. A file appears in its place only when it is whole and, where its sha256 is known, right;
    until then nothing is written but ``.ofa-jax-fetch`` below ``root``, which goes when all is done.

    Args:
        entry: The data set.
        root: The data root, made where it is missing; by default :func:`ofa_jax.data.catalog.load.data_root`.
        progress: Called as ``progress(name, bytes so far, bytes in all or None)`` while a download runs.

    Raises:
        DataError: A needed file has no address that a program can read (where a person gets it); the connection fails or breaks
            off; the sha256 is another; the archive is damaged, unsafe or lacks the file; another process is fetching.
    """
    root = data_root() if root is None else Path(root)
    missing = [file for file in entry.files if find(file, root) is None]
    for file in missing:
        _inside(file, root)
        if file.url is None and file.needed:
            what = f"`{entry.name}` cannot be fetched by a program: there is no address for {file.path}"
            fix = f"Get it from {source_of(entry, file)} and put it at {file.path} below {root}"
            raise DataError(what, where=str(root / file.path), fix=fix)
    status = {file.path: _check_present(entry, file, root) for file in entry.files if file not in missing}
    urls = list(dict.fromkeys(file.url for file in missing if file.url is not None))
    if urls:
        with _staging(root) as staging:
            for url in urls:
                _fetch_url(url, [file for file in missing if file.url == url], root, staging, progress)
    for file in missing:
        status[file.path] = _by_hand(file, root) if file.url is None else _downloaded(entry, file, root)
    return tuple(status[file.path] for file in entry.files)


def _inside(file: DataFile, root: Path) -> None:
    path = PurePosixPath(file.path)
    if path.is_absolute() or ".." in path.parts or not (root / path).resolve().is_relative_to(root.resolve()):
        what = f"{file.path} would lie outside the data root"
        raise DataError(what, where=str(root), fix="Remove the link that leads out of it")


def _check_present(entry: DatasetEntry, file: DataFile, root: Path) -> Fetched:
    path = find(file, root)
    assert path is not None
    return Fetched(path, "present", verify(entry, path, role=file.role), content_sha256(path))


def _by_hand(file: DataFile, root: Path) -> Fetched:
    return Fetched(root / file.path, "by hand", False, None)


def _downloaded(entry: DatasetEntry, file: DataFile, root: Path) -> Fetched:
    path = root / file.path
    return Fetched(path, "downloaded", verify(entry, path, role=file.role), content_sha256(path))


@contextlib.contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """A folder beside the data for downloads under way; it stays only while it holds a part to go on from."""
    from filelock import FileLock, Timeout

    staging = root / _STAGING
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = FileLock(staging / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(
            "another process is fetching into this data root", where=str(root), fix="Wait for it to end"
        ) from None
    except OSError as error:
        what = f"the data root cannot be written to ({error})"
        raise DataError(what, where=str(root), fix="Choose a folder of your own") from None
    try:
        for leftover in staging.iterdir():
            if not leftover.name.endswith((".part", ".part.json", ".lock")):
                leftover.unlink()  # a killed process left it
        yield staging
    except OSError as error:
        what = f"the data root cannot be written to ({error})"
        raise DataError(what, where=str(root), fix="Make room, or choose another folder") from None
    finally:
        if all(entry.name == ".lock" for entry in staging.iterdir()):
            (staging / ".lock").unlink()
        lock.release()
        with contextlib.suppress(OSError):
            staging.rmdir()  # only where it is empty


def _fetch_url(url: str, files: list[DataFile], root: Path, staging: Path, progress: Progress | None) -> None:
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    plain = len(files) == 1 and files[0].member is None and not url.endswith(".gz")
    archive = _retrieve(url, files[0].sha256 if plain else None, f"{name}.download", staging, progress)
    unpacked: list[tuple[DataFile, Path]] = []
    try:
        unpacked = [(files[0], archive)] if plain else unpack(archive, files, staging, url=url)
        for file, content in unpacked:
            found = content_sha256(content)
            if file.sha256 is not None and found != file.sha256:
                raise _wrong(file.path, found, file.sha256, url)
        for file, content in unpacked:
            _place(content, root / file.path)
    finally:
        for leftover in (archive, *(content for _, content in unpacked)):
            leftover.unlink(missing_ok=True)


def _wrong(name: str, found: str, expected: str, url: str) -> DataError:
    return DataError(
        f"the download of {name} has the sha256 {found}, expected {expected}; it was thrown away",
        where=url,
        fix="Try again; if it stays so, the published file has changed",
    )


def _retrieve(url: str, sha256: str | None, name: str, staging: Path, progress: Progress | None) -> Path:
    """Download one address through pooch, which checks the sha256 and moves the whole file to its name."""
    import pooch  # type: ignore[import-untyped]
    import requests

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(
        logging.WARNING
    )  # what it says of a file without a known sha256, `Fetched.verified` says as well
    try:
        return Path(
            pooch.retrieve(
                url,
                known_hash=None if sha256 is None else f"sha256:{sha256}",
                fname=name,
                path=staging,
                downloader=ResumingDownloader(staging / f"{name}.part", progress),
            )
        )
    except requests.RequestException as error:
        raise DataError(
            f"the download failed ({error})", where=url, fix="Check the connection and try again"
        ) from None
    except ValueError as error:  # pooch's word for a wrong sha256; it has removed the file
        if sha256 is None:
            raise
        what = f"the download does not have the sha256 {sha256} of the published file; it was thrown away"
        fix = "Try again; if it stays so, the published file has changed"
        raise DataError(what, where=url, fix=fix) from error
    finally:
        logger.setLevel(level)


def _place(content: Path, path: Path) -> None:
    """Move a whole file to its place in one step; the staging folder lies on the same file system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(content, "rb") as file:
        os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(content, 0o666 & ~mask)
    os.replace(content, path)

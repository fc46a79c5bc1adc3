"""Files that are either whole or not there: atomic writes, checksums, format numbers and the lock of a run folder."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ofa_jax.errors import CheckpointError, OfaError

FORMAT = 1
"""The version that every file format of this package carries; a newer one is refused by name."""


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems cannot sync a folder; the rename itself is still atomic there
        pass
    finally:
        os.close(handle)


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write ``content`` so that a kill at any moment leaves the old file or the new one, never a part of either.

    Raises:
        OfaError: ``path`` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise OfaError(
            "this is a folder, so no file can be written there", where=str(path), fix="Name a file"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A scratch folder that becomes ``path`` (replacing it) when the block ends without an error.

    On most file systems two folders cannot be exchanged in one step, so an existing ``path`` is first renamed to
    ``.NAME.old`` beside it; a kill between the two renames is healed by the next writer, or by :func:`clear_leftovers`. Readers take
    :func:`readable_folder`, which changes nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _recover_folder(path)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield scratch
        mask = _umask()
        for entry in [scratch, *scratch.rglob("*")]:
            if entry.is_dir():
                os.chmod(entry, 0o777 & ~mask)
                _sync_folder(entry)
            else:
                os.chmod(entry, 0o666 & ~mask)  # safetensors writes files that only their owner can read
                with open(entry, "rb") as handle:
                    os.fsync(handle.fileno())
        old = _old_name(path)
        if path.exists():
            os.replace(path, old)
        os.replace(scratch, path)
        _sync_folder(path.parent)
        if old.exists():
            shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        _recover_folder(path)
        raise


def _old_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def readable_folder(path: str | Path) -> Path:
    """``path``, or what it held before where a writer is just exchanging it or was killed in between."""
    path = Path(path)
    old = _old_name(path)
    return old if not path.exists() and old.exists() else path


def _recover_folder(path: Path) -> None:
    """Finish or undo an exchange of folders that a kill interrupted; for writers alone."""
    old = _old_name(path)
    if not old.exists():
        return
    if path.exists():
        shutil.rmtree(old)
    else:
        os.replace(old, path)


def clear_leftovers(path: str | Path) -> None:
    """Heal an interrupted exchange of ``path`` and remove what killed writers left beside it; for the process that holds it alone."""
    path = Path(path)
    _recover_folder(path)
    for entry in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write a JSON object atomically, with ``format`` first."""
    write_atomic(path, json.dumps({"format": FORMAT, **content}, indent=2) + "\n")


def read_json(path: str | Path, *, kind: str) -> dict[str, Any]:
    """Read a JSON object that :func:`write_json` wrote.

    Raises:
        CheckpointError: The file is missing, is not a JSON object, has no ``format``, or a newer one.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"there is no {path.name} here", where=str(path.parent), fix=f"Name a folder that holds a {kind}"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"not readable as JSON ({error})", where=str(path), fix=f"The {kind} is damaged; make it anew"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise CheckpointError(
            "has no whole-number `format`", where=str(path), fix=f"This is not a {kind} of ofa-jax"
        )
    if content["format"] > FORMAT:
        raise CheckpointError(
            f"format {content['format']} is newer than this version of ofa-jax reads ({FORMAT})",
            where=str(path),
            fix="Upgrade ofa-jax",
        )
    return content


@contextlib.contextmanager
def run_lock(folder: str | Path) -> Iterator[None]:
    """Hold a run folder for one process; the operating system frees it when the process ends, however it ends.

    Raises:
        CheckpointError: Another process holds the folder.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            "another process is working in this run folder",
            where=str(folder),
            fix="Wait for it to end, or choose another --out",
        ) from None
    try:
        yield
    finally:
        lock.release()

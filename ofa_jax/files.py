"""Files that are complete or absent, and JSON records that are validated once, when they are read."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import reprlib
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from ofa_jax.errors import CheckpointError, OfaError

FORMAT = 1
"""The version that a file format carries where it does not name its own; a newer one is refused by name."""
MAX_JSON_BYTES = 2**26
SCRATCH, OLD = ".ofa-tmp", ".ofa-old"
"""How names of unfinished and of replaced files and folders end; nothing else is ever cleaned up."""

STANDARD_OUTPUT = frozenset({"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})
UNREADABLE = "Check its permissions and the disk, then run the same command again"
DAMAGED = "The file is damaged or was edited; restore the original or create it again"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A JSON object with typed fields and finite numbers; fields that are not named are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class FileRecord(Record):
    """A record that carries the ``format`` of its file; ``newest`` is the newest that this version reads."""

    newest: ClassVar[int] = FORMAT
    format: int = Field(ge=1)


R = TypeVar("R", bound=Record)
T = TypeVar("T")


def read_record(path: Path, model: type[R], *, kind: str, error: type[OfaError] = CheckpointError) -> R:
    """:func:`read_json`, then :func:`parse_record`."""
    return parse_record(read_json(path, kind=kind, error=error), model, where=str(path), error=error)


def parse_record(
    content: str | bytes | Mapping[str, Any],
    model: type[R],
    *,
    where: str,
    error: type[OfaError] = CheckpointError,
    fix: str = DAMAGED,
) -> R:
    """Validate a JSON text, or an object that was parsed from one, as a record.

    Raises:
        error: Not JSON, a newer ``format``, or a field (named) that is missing, mistyped or out of range.
    """
    if isinstance(content, str | bytes):
        content = _parse_json(content, where, error)
    version = content.get("format")
    if issubclass(model, FileRecord) and isinstance(version, int) and version > model.newest:
        what = f"format {version} is newer than this version of ofa-jax reads ({model.newest})"
        raise error(what, where=where, fix="Upgrade ofa-jax")
    try:
        return model.model_validate(content)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"])) or "the object"
        raise error(f"{field}: {describe(first)}", where=where, fix=fix) from None


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 100
short = _short.repr
"""A value as Python writes it, cut where it is long."""


def describe(problem: Any, *, value: bool = True) -> str:
    """An entry of pydantic's ``errors()`` in words: what is wrong and, by default, the value."""
    message = problem["msg"].removeprefix("Value error, ")
    found = f" (found {short(problem['input'])})" if value and problem["type"] != "missing" else ""
    return f"{message[:1].lower()}{message[1:]}{found}"


def read_json(path: Path, *, kind: str, error: type[OfaError] = CheckpointError) -> dict[str, Any]:
    """Read a JSON object: at most 64 MiB, at most 200 levels deep, without NaN and Infinity.

    Raises:
        error: The file, part of a ``kind`` ("bundle"), is missing, too large, or not such an object.
    """
    check_regular(path, error=error)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        fix = f"Name a folder that contains a {kind}"
        raise error(f"there is no {path.name} here", where=str(path.parent), fix=fix) from None
    except OSError as failure:
        raise error(f"cannot be read ({failure.strerror})", where=str(path), fix=UNREADABLE) from failure
    return _parse_json(data, str(path), error)


def _parse_json(data: str | bytes, where: str, error: type[OfaError]) -> dict[str, Any]:
    if len(data) > MAX_JSON_BYTES:
        raise error(f"larger than {MAX_JSON_BYTES // 2**20} MiB", where=where, fix=DAMAGED)
    try:
        content = from_json(data, allow_inf_nan=False)
    except ValueError as failure:
        raise error(f"not readable as JSON ({failure})", where=where, fix=DAMAGED) from None
    if not isinstance(content, dict):
        raise error(f"{short(content)} is not a JSON object", where=where, fix=DAMAGED)
    return content


def write_json(path: str | Path, content: Mapping[str, Any], *, version: int = FORMAT) -> None:
    """Write a JSON object atomically, with ``format`` first."""
    write_atomic(path, json.dumps({"format": version, **content}, indent=2, allow_nan=False) + "\n")


def json_digest(content: Mapping[str, Any]) -> str:
    """The sha256 of a JSON object in canonical form: sorted keys, ASCII, no line breaks."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, by its relative path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in found}


def find_damage(folder: Path, digests: Mapping[str, str]) -> str | None:
    """What is wrong with the first file whose sha256 differs; None where all are intact.

    Raises:
        CheckpointError: A file cannot be read, which says nothing about its content.
    """
    for name, digest in digests.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{name} is outside the folder"
        try:
            if (folder / name).exists() and not (folder / name).is_file():
                return f"{name} is not a file"
            found = sha256_file(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as failure:
            what = f"cannot be read ({failure.strerror})"
            raise CheckpointError(what, where=str(folder / name), fix=UNREADABLE) from failure
        if found != digest:
            return f"{name} is not the file that was saved (its sha256 differs)"
    return None


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write a file so that a kill at any moment leaves the old content or the new.

    Raises:
        OfaError: ``path`` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise OfaError("this is a folder, not a file", where=str(path), fix="Name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=SCRATCH)
    with enough_space(path, len(data)):
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~umask())
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextlib.contextmanager
def enough_space(path: Path, size: int) -> Iterator[None]:
    """Turn any library's error of a full disk or quota while ``path``, of ``size`` bytes, is written into an
    OfaError that says what is needed and where.
    """
    try:
        yield
    except Exception as error:
        full = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
        if not any(text in str(error) for text in full):
            raise
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        free = shutil.disk_usage(folder).free
        what = f"no space left on the disk or quota: {size:,} bytes are needed, {free:,} are free"
        fix = "Free some space, then run the same command again"
        raise OfaError(what, where=str(path), fix=fix) from error


def check_output(path: str | Path, *, inputs: Iterable[str | Path] = (), where: str = "output") -> None:
    """Refuse an output, the argument ``where``, that is a folder or one of the ``inputs``, before any work.

    Raises:
        OfaError: It is; or there is a file where its folder should be.
    """
    path = Path(path)
    if str(path) in STANDARD_OUTPUT:
        return
    is_there(path, error=OfaError)
    if path.is_dir():
        raise OfaError(f"{path} is a folder, not a file", where=where, fix="Name a file")
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        raise OfaError(f"{folder} is a file, not a folder", where=where, fix="Name a file in a folder")
    for source in inputs:
        same = path.absolute() == Path(source).absolute()
        if same or (path.exists() and Path(source).exists() and path.samefile(source)):
            what = f"{path} is also read or written otherwise and would be overwritten"
            raise OfaError(what, where=where, fix="Name another file")


def write_output(path: str | Path, content: bytes | str) -> None:
    """Write a file that a user named: a stream, device or pipe is written through, the target of a link
    replaced.

    Raises:
        OfaError: ``path`` is a folder.
    """
    data = content.encode() if isinstance(content, str) else content
    path = Path(path)
    if str(path) in STANDARD_OUTPUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    elif path.exists() and not path.is_dir() and not path.is_file():
        with open(path, "wb") as stream:
            stream.write(data)
    else:
        write_atomic(path.resolve() if path.is_symlink() else path, data)


def is_there(path: Path, *, error: type[OfaError] = CheckpointError) -> bool:
    """Whether there is anything at a path; raises ``error`` where the system cannot say (a closed folder)."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last one: a NUL in the path
        return False
    except OSError as failure:
        raise error(f"cannot be read ({failure.strerror})", where=str(path)) from None
    return True


def check_regular(path: Path, *, links: bool = True, error: type[OfaError] = CheckpointError) -> None:
    """Raise ``error`` for a folder, device, pipe, socket or, unless ``links``, link; nothing is opened."""
    there = is_there(path, error=error)
    if path.is_symlink() and not links:
        raise error("is a symbolic link, not a file", where=str(path), fix="Put the file itself in its place")
    if there and not path.is_file():
        kinds = {"d": "a folder", "p": "a pipe", "s": "a socket"}
        kind = kinds.get(stat.filemode(path.stat().st_mode)[0], "a device")
        raise error(f"is {kind}, not a file", where=str(path), fix="Name a file, or put one in its place")


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, size: int = 0) -> Iterator[Path]:
    """A scratch folder that becomes ``path`` (replacing it) when the block ends without an error.

    Two folders cannot be exchanged in one step on most file systems, so an existing ``path`` is first renamed
    to ``.NAME.ofa-old`` next to it; the next writer, or :func:`clear_leftovers`, repairs a kill between the
    two renames. Readers use :func:`readable_folder`, which changes nothing.

    Args:
        path: The folder.
        size: Roughly how many bytes will be in it, for the error of a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _recover_folder(path)
    with enough_space(path, size):
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=SCRATCH))
        try:
            yield scratch
            mask = umask()
            for entry in [scratch, *scratch.rglob("*")]:
                if entry.is_dir():
                    os.chmod(entry, 0o777 & ~mask)
                    _sync_folder(entry)
                else:
                    os.chmod(entry, 0o666 & ~mask)  # safetensors writes files that only their owner can read
                    with open(entry, "rb") as handle:
                        os.fsync(handle.fileno())
            if path.exists():
                os.replace(path, _old_name(path))
            os.replace(scratch, path)
            _sync_folder(path.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            _recover_folder(path)


def readable_folder(path: str | Path) -> Path:
    """``path``, or its previous content where a writer is exchanging it or was killed in between."""
    path = Path(path)
    old = _old_name(path)
    return old if not is_there(path) and old.exists() else path


def read_folder(path: str | Path, read: Callable[[Path], T]) -> T:
    """``read(folder)``; once more with the new folder if a writer exchanged it meanwhile."""
    folder = readable_folder(path)
    number = folder.stat().st_ino if folder.exists() else None
    try:
        return read(folder)
    except (OfaError, OSError):
        newer = readable_folder(path)
        if not newer.exists() or newer.stat().st_ino == number:
            raise
        return read(newer)


def clear_leftovers(path: str | Path) -> None:
    """Repair an interrupted exchange of ``path``, remove leftovers of killed writers; for its owner only."""
    path = Path(path)
    _recover_folder(path)
    for entry in path.parent.glob(f".{glob.escape(path.name)}.*{SCRATCH}"):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def is_leftover(name: str, of: str) -> bool:
    """Whether a killed writer of the file or folder ``of`` left an entry of this name."""
    return name == f".{of}{OLD}" or (name.startswith(f".{of}.") and name.endswith(SCRATCH))


def _old_name(path: Path) -> Path:
    return path.with_name(f".{path.name}{OLD}")


def _recover_folder(path: Path) -> None:
    """Finish or undo an exchange of folders; nothing where there is none."""
    old = _old_name(path)
    if old.exists() and path.exists():
        shutil.rmtree(old)
    elif old.exists():
        os.replace(old, path)


def umask() -> int:
    """The permission bits that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # some network file systems cannot; the rename itself is atomic there
        os.fsync(handle)
    os.close(handle)


@contextlib.contextmanager
def run_lock(
    folder: str | Path, *, kind: str = "run folder", fix: str = "Wait for it to end, or use another folder"
) -> Iterator[None]:
    """Reserve a folder for one process; the operating system frees it when the process ends.

    Raises:
        CheckpointError: Another process uses the folder.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise CheckpointError(f"another process is using this {kind}", where=str(folder), fix=fix) from None
    with lock:
        yield

"""Labeled streams as `.npz`: `train`, `test`, `test_label`, and the borders of several segments."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile, ZipFile

import numpy as np

from ofa_jax.data.archives.records import LabelledStream
from ofa_jax.data.missing import check_sizes
from ofa_jax.data.tables import require_file
from ofa_jax.errors import DataError, shorten
from ofa_jax.files import write_atomic

_NEEDED = ("train", "test", "test_label")
_BORDERS = ("channels", "train_len", "test_len")
_END_RECORD = 22  # bytes of a zip file's last record without a comment
# what zipfile (exotic entries: RuntimeError) and numpy's parser of headers raise on damaged files
_NO_ZIP = (OSError, EOFError, BadZipFile, zlib.error, RuntimeError)
_NO_ARRAY = (ValueError, KeyError, TypeError, SyntaxError, TokenError, MemoryError)
MAX_BYTES = 16 << 30
"""Largest uncompressed content; larger than any published stream."""


def read_stream(path: str | Path) -> LabelledStream:
    """A stream from an ``.npz``: ``train`` and ``test`` ``[T, C]`` each, and 0/1 ``test_label`` ``[T_test]``.

    Streams of several recordings also have ``channels`` (names of the S segments) and ``train_len``,
    ``test_len`` ``[S]`` (their rows). Pickled arrays are never loaded.

    Raises:
        DataError: The file is damaged; an array is missing, unknown, or of another shape or type; a value is
            not finite; a label is neither 0 nor 1; the segments' rows do not add up.
    """
    path = Path(path)
    arrays = _load(path)
    several = any(name in arrays for name in _BORDERS)
    if not set(_NEEDED + _BORDERS if several else _NEEDED) <= set(arrays):
        what = f"has the arrays {', '.join(sorted(arrays)) or '(none)'}"
        fix = f"Give {', '.join(_NEEDED)}, and for several segments all of {', '.join(_BORDERS)}"
        raise DataError(what, where=str(path), fix=fix)
    train, test = (_values(arrays[name], f"{path}, array `{name}`") for name in ("train", "test"))
    if train.shape[1] != test.shape[1]:
        what = f"train has {train.shape[1]} channels, test {test.shape[1]}"
        raise DataError(what, where=str(path), fix="Give both the same channels")
    label = _labels(arrays["test_label"], len(test), f"{path}, array `test_label`")
    segments: tuple[str, ...] = (path.name.removesuffix(".npz"),)
    train_len, test_len = np.array([len(train)]), np.array([len(test)])
    if several:
        segments = _segments(arrays["channels"], f"{path}, array `channels`")
        train_len = _lengths(arrays["train_len"], segments, len(train), f"{path}, array `train_len`")
        test_len = _lengths(arrays["test_len"], segments, len(test), f"{path}, array `test_len`")
    borders = [np.cumsum([0, *lengths], dtype=np.int64) for lengths in (train_len, test_len)]
    return LabelledStream(train, test, label, segments, borders[0], borders[1], str(path))


def write_stream(path: str | Path, stream: LabelledStream) -> None:
    """Write a stream as :func:`read_stream` reads it, to bring in data of any other layout."""
    content = io.BytesIO()
    np.savez_compressed(
        content,
        train=stream.train,
        test=stream.test,
        test_label=stream.test_label.astype(np.int8),
        channels=np.array(stream.segments),
        train_len=np.diff(stream.train_borders),
        test_len=np.diff(stream.test_borders),
    )
    write_atomic(path, content.getvalue())


def _load(path: Path) -> dict[str, np.ndarray]:
    require_file(path)
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
        names = [entry.filename.removesuffix(".npy") for entry in entries]
        with open(path, "rb") as file:
            file.seek(-_END_RECORD, io.SEEK_END)
            record = file.read()
        promised = int.from_bytes(record[10:12], "little") if record.startswith(b"PK\5\6") else -1
        if len(names) != promised:  # a damaged entry can swallow those after it
            raise BadZipFile("its directory is damaged")
        for name in names:
            if name not in _NEEDED + _BORDERS or names.count(name) > 1:
                what = f"the array {shorten(name)} is unknown or duplicate"
                raise DataError(what, where=str(path), fix=f"Give only {', '.join(_NEEDED + _BORDERS)}")
        size = sum(entry.file_size for entry in entries)
        if size > MAX_BYTES:
            raise DataError(f"unpacks to {size} bytes", where=str(path), fix="Check the file")
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in names}
        if wrong := [name for name in names if not isinstance(found[name], np.ndarray)]:
            raise ValueError(f"{wrong[0]} is not an array")  # NumPy gives the bytes of any other file
        return found
    except (*_NO_ZIP, *_NO_ARRAY) as error:
        reason = " ".join(str(error).split())[:200]
        fix = "Check that the file is complete; fetch it again"
        if path.suffix != ".npz":
            fix = f"Anomaly detection reads .npz with {', '.join(_NEEDED)}; write_stream writes one"
        raise DataError(f"not readable as .npz ({reason})", where=str(path), fix=fix) from None


def _require(correct: bool, array: np.ndarray, where: str, fix: str) -> None:
    if not correct:
        raise DataError(f"is {array.dtype} {array.shape}", where=where, fix=fix)


def _values(array: np.ndarray, where: str) -> np.ndarray:
    numeric = array.ndim == 2 and array.size > 0 and array.dtype.kind in "fiu"
    _require(numeric, array, where, "Give numbers of shape [steps, channels]")
    values = array.astype(np.float64)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0] + 1
        what = f"{len(wrong)} value(s) are missing or infinite"
        raise DataError(what, where=f"{where}, row {row}, channel {column}", fix="Fill them before saving")
    check_sizes(values, lambda column, row: f"{where}, row {(row or 0) + 1}, channel {column + 1}")
    return values


def _labels(array: np.ndarray, steps: int, where: str) -> np.ndarray:
    numeric = array.shape == (steps,) and array.dtype.kind in "biuf"
    _require(numeric, array, where, f"Give one label for each of the {steps} steps of `test`")
    wrong = np.flatnonzero((array != 0) & (array != 1))
    if len(wrong):
        what, row = f"the label is {array[wrong[0]]}", wrong[0] + 1
        raise DataError(what, where=f"{where}, row {row}", fix="Write 1 for anomalous, else 0")
    return array.astype(bool)


def _segments(array: np.ndarray, where: str) -> tuple[str, ...]:
    text = array.ndim == 1 and array.dtype.kind == "U" and array.size > 0
    _require(text, array, where, "Give the segments' names as text")
    names = tuple(array.tolist())
    if len(set(names)) < len(names):
        raise DataError("a segment's name is duplicate", where=where, fix="Name each segment once")
    return names


def _lengths(array: np.ndarray, segments: tuple[str, ...], total: int, where: str) -> np.ndarray:
    counts = array.shape == (len(segments),) and array.dtype.kind in "iu"
    counts = counts and bool((array >= 0).all() and (array <= total).all())
    _require(counts, array, where, f"Give the rows of each of the {len(segments)} segments")
    if array.sum() != total:
        what = f"the segments' rows add up to {array.sum()} of {total}"
        raise DataError(what, where=where, fix="Correct the rows")
    return array

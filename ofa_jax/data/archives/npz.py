"""Labeled streams as `.npz`: `train`, `test`, `test_label`, and the borders of several segments."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ofa_jax.data.archives.records import LabelledStream
from ofa_jax.data.tables import require_file
from ofa_jax.data.timestamps import shorten
from ofa_jax.errors import DataError
from ofa_jax.files import write_atomic

_NEEDED = ("train", "test", "test_label")
_BORDERS = ("channels", "train_len", "test_len")
_END_RECORD = 22  # bytes of a zip file's last record without a comment
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
    absent = [name for name in _NEEDED if name not in arrays]
    given = [name for name in _BORDERS if name in arrays]
    if absent or (given and len(given) != len(_BORDERS)):
        what = f"has the arrays {', '.join(sorted(arrays)) or '(none)'}"
        fix = f"Give {', '.join(_NEEDED)}, and for several segments all of {', '.join(_BORDERS)}"
        raise DataError(what, where=str(path), fix=fix)
    train, test = (_values(arrays[name], f"{path}, array `{name}`") for name in ("train", "test"))
    if train.shape[1] != test.shape[1]:
        what = f"train has {train.shape[1]} channels, test {test.shape[1]}"
        raise DataError(what, where=str(path), fix="Give both the same channels")
    label = _labels(arrays["test_label"], len(test), f"{path}, array `test_label`")
    segments: tuple[str, ...] = (path.name.removesuffix(".npz"),)
    lengths = [np.array([len(train)]), np.array([len(test)])]
    if given:
        segments, lengths = _segments(arrays, (len(train), len(test)), path)
    borders = [np.concatenate([[0], np.cumsum(rows)]).astype(np.int64) for rows in lengths]
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
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename.removesuffix(".npy") for entry in archive.infolist()]
            size = sum(entry.file_size for entry in archive.infolist())
        if len(names) != _entries_promised(path):  # a damaged entry can swallow those after it
            raise zipfile.BadZipFile("its directory is damaged")
        for name in names:
            if name not in (*_NEEDED, *_BORDERS) or names.count(name) > 1:
                what = f"the array {shorten(name)} is unknown or duplicate"
                raise DataError(what, where=str(path), fix=f"Give only {', '.join((*_NEEDED, *_BORDERS))}")
        if size > MAX_BYTES:
            raise DataError(f"unpacks to {size} bytes", where=str(path), fix="Check the file")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except DataError:
        raise
    # what zipfile and numpy raise on damaged files; RuntimeError: exotic entries
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        SyntaxError,
        MemoryError,
        tokenize.TokenError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        fix = "Check that the file is complete; fetch it again"
        if path.suffix != ".npz":
            fix = f"Anomaly detection reads .npz with {', '.join(_NEEDED)}; write_stream writes one"
        raise DataError(f"not readable as .npz ({reason})", where=str(path), fix=fix) from None


def _entries_promised(path: Path) -> int:
    with open(path, "rb") as file:
        file.seek(-_END_RECORD, io.SEEK_END)
        record = file.read()
    return int.from_bytes(record[10:12], "little") if record.startswith(b"PK\5\6") else -1


def _values(array: np.ndarray, where: str) -> np.ndarray:
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        what, fix = f"is {array.dtype} {array.shape}", "Give numbers of shape [steps, channels]"
        raise DataError(what, where=where, fix=fix)
    values = array.astype(np.float64)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = (int(position) + 1 for position in wrong[0])
        what, place = (
            f"{len(wrong)} value(s) are missing or infinite",
            f"{where}, row {row}, channel {column}",
        )
        raise DataError(what, where=place, fix="Fill them before saving")
    return values


def _labels(array: np.ndarray, steps: int, where: str) -> np.ndarray:
    if array.shape != (steps,) or array.dtype.kind not in "biuf":
        what = f"is {array.dtype} {array.shape}, but the test stream has {steps} steps"
        raise DataError(what, where=where, fix="Give one label per step")
    wrong = np.flatnonzero((array != 0) & (array != 1))
    if len(wrong):
        what, place = f"the label is {array[wrong[0]]}", f"{where}, row {int(wrong[0]) + 1}"
        raise DataError(what, where=place, fix="Write 1 for anomalous, else 0")
    return array.astype(bool)


def _segments(
    arrays: dict[str, np.ndarray], totals: tuple[int, int], path: Path
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    names, where = arrays["channels"], f"{path}, array `channels`"
    if names.ndim != 1 or names.dtype.kind != "U" or not len(names):
        raise DataError(
            f"is {names.dtype} {names.shape}", where=where, fix="Give the segments' names as text"
        )
    if len(set(names.tolist())) != len(names):
        raise DataError("a segment's name is duplicate", where=where, fix="Name each segment once")
    lengths = []
    for name, total in zip(("train_len", "test_len"), totals, strict=True):
        rows, where = arrays[name], f"{path}, array `{name}`"
        if rows.shape != names.shape or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() > total:
            fix = f"Give the rows of each of the {len(names)} segments"
            raise DataError(f"is {rows.dtype} {rows.shape}", where=where, fix=fix)
        if int(rows.sum()) != total:
            what = f"the segments' rows add up to {int(rows.sum())} of {total}"
            raise DataError(what, where=where, fix="Correct the rows")
        lengths.append(rows)
    return tuple(names.tolist()), lengths

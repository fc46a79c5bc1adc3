"""Labelled streams as `.npz`: `train`, `test`, `test_label`, and the borders of their segments where there are several."""

from __future__ import annotations

import io
import lzma
import math
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ofa_jax.data.archives.records import LabelledStream
from ofa_jax.data.timestamps import shorten
from ofa_jax.errors import DataError
from ofa_jax.files import write_atomic

_NEEDED = ("train", "test", "test_label")
_BORDERS = ("channels", "train_len", "test_len")
_LARGEST_HEADER = 10_000
_END_RECORD = 22  # bytes of a zip file's last record, where nothing follows it
# what zipfile and numpy raise on damaged files; RuntimeError and its NotImplementedError are encrypted or exotic entries
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def read_stream(path: str | Path) -> LabelledStream:
    """A stream from an ``.npz`` with ``train`` ``[T_train, C]``, ``test`` ``[T_test, C]`` and ``test_label`` ``[T_test]`` of 0 and 1.

    Streams of several recordings also hold ``channels`` (the S segments' names) and ``train_len``, ``test_len`` ``[S]`` (their
    rows); without them the file is one segment of its own name. Pickled arrays are never loaded.

    Raises:
        DataError: The file is damaged, an array is missing, not known, or of another shape or kind than these, a value is not
            finite, a label is neither 0 nor 1, the segments' rows do not add up.
    """
    path = Path(path)
    arrays = _load(path)
    for name in _NEEDED:
        if name not in arrays:
            what = f"there is no array `{name}` (found: {', '.join(sorted(arrays)) or 'none'})"
            raise DataError(what, where=str(path), fix="Give an .npz with train, test and test_label")
    given = [name for name in _BORDERS if name in arrays]
    if given and len(given) != len(_BORDERS):
        what = f"of the segments' arrays there is only {', '.join(given)}"
        raise DataError(what, where=str(path), fix=f"Give all of {', '.join(_BORDERS)}")
    train, test = (_values(arrays[name], f"{path}, array `{name}`") for name in ("train", "test"))
    if train.shape[1] != test.shape[1]:
        what = f"train has {train.shape[1]} channels, test {test.shape[1]}"
        raise DataError(what, where=str(path), fix="Give both the same channels")
    label = _labels(arrays["test_label"], len(test), f"{path}, array `test_label`")
    segments: tuple[str, ...]
    segments, lengths = (path.name.removesuffix(".npz"),), (np.array([len(train)]), np.array([len(test)]))
    if given:
        segments, lengths = _segments(arrays, (len(train), len(test)), path)
    borders = [np.concatenate([[0], np.cumsum(rows)]).astype(np.int64) for rows in lengths]
    return LabelledStream(train, test, label, segments, borders[0], borders[1], str(path))


def write_stream(path: str | Path, stream: LabelledStream) -> None:
    """Write a stream as :func:`read_stream` reads it, so that data of any other layout can be brought in."""
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
    if not path.is_file():
        raise DataError(
            "is a folder" if path.is_dir() else "there is no such file", where=str(path), fix="Check the path"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # a damaged entry of the archive's directory can swallow those after it, and zipfile does not count them
            if len(entries) != _entries_promised(path):
                raise zipfile.BadZipFile("its directory does not hold as many entries as it says")
            names = [entry.filename.removesuffix(".npy") for entry in entries]
            for name in names:
                if name not in (*_NEEDED, *_BORDERS) or names.count(name) > 1:
                    raise DataError(
                        f"the array {shorten(name)} is "
                        + ("there twice" if names.count(name) > 1 else "not known"),
                        where=str(path),
                        fix=f"Give only {', '.join((*_NEEDED, *_BORDERS))}, each once",
                    )
            return {name: _array(archive, entry, path) for name, entry in zip(names, entries, strict=True)}
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        fix = "Check that the file is whole; fetch it again"
        if path.suffix != ".npz":
            fix = "Anomaly detection reads .npz with train, test and test_label; `ofa_jax.data.archives.write_stream` writes one"
        raise DataError(f"not readable as .npz ({reason})", where=str(path), fix=fix) from None


def _entries_promised(path: Path) -> int:
    with open(path, "rb") as file:
        file.seek(-_END_RECORD, io.SEEK_END)
        record = file.read()
    return int.from_bytes(record[10:12], "little") if record.startswith(b"PK\5\6") else -1


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> np.ndarray:
    with archive.open(entry) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of headers that Python 2 wrote, and reads them rightly
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(file, max_header_size=_LARGEST_HEADER)
    where = f"{path}, array `{entry.filename.removesuffix('.npy')}`"
    if dtype.hasobject:
        raise DataError(
            "holds pickled objects, which are never loaded", where=where, fix="Save it as numbers or text"
        )
    # a header may claim any size: believe it only as far as there are bytes; deflate packs 1032 into one at most
    if (
        entry.file_size > 1032 * path.stat().st_size
        or min(shape, default=0) < 0
        or not 0 <= entry.file_size - math.prod(shape) * dtype.itemsize < 2 * _LARGEST_HEADER
    ):
        what = f"its header says {dtype} {shape}, which its {entry.file_size} bytes do not hold"
        raise DataError(what, where=where, fix="Fetch the file again")
    with archive.open(entry) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array: np.ndarray = np.lib.format.read_array(
            file, allow_pickle=False, max_header_size=_LARGEST_HEADER
        )
        if file.read(1):
            raise DataError("more bytes follow than its header says", where=where, fix="Fetch the file again")
    return array


def _values(array: np.ndarray, where: str) -> np.ndarray:
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        raise DataError(
            f"is {array.dtype} {array.shape}", where=where, fix="Give numbers of shape [steps, channels]"
        )
    values = array.astype(np.float64)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = (int(position) + 1 for position in wrong[0])
        what = f"{len(wrong)} value(s) are missing or infinite"
        raise DataError(what, where=f"{where}, row {row}, channel {column}", fix="Fill them before saving")
    return values


def _labels(array: np.ndarray, steps: int, where: str) -> np.ndarray:
    if array.shape != (steps,) or array.dtype.kind not in "biuf":
        what = f"is {array.dtype} {array.shape} where the test stream has {steps} steps"
        raise DataError(what, where=where, fix="Give one label per step")
    wrong = np.flatnonzero((array != 0) & (array != 1))
    if len(wrong):
        what = f"the label is {array[wrong[0]]}"
        raise DataError(what, where=f"{where}, row {int(wrong[0]) + 1}", fix="Write 1 for anomalous, else 0")
    return array.astype(bool)


def _segments(
    arrays: dict[str, np.ndarray], totals: tuple[int, int], path: Path
) -> tuple[tuple[str, ...], tuple[np.ndarray, np.ndarray]]:
    names = arrays["channels"]
    if names.ndim != 1 or names.dtype.kind != "U" or not len(names):
        what = f"is {names.dtype} {names.shape}"
        raise DataError(what, where=f"{path}, array `channels`", fix="Give the segments' names as text")
    if len(set(names.tolist())) != len(names):
        raise DataError(
            "a segment's name stands twice", where=f"{path}, array `channels`", fix="Name each segment once"
        )
    lengths = []
    for name, total in zip(("train_len", "test_len"), totals, strict=True):
        rows, where = arrays[name], f"{path}, array `{name}`"
        if rows.shape != names.shape or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() > total:
            what = f"is {rows.dtype} {rows.shape}"
            raise DataError(what, where=where, fix=f"Give the rows of each of the {len(names)} segments")
        if int(rows.sum()) != total:
            what = f"the segments' rows add up to {int(rows.sum())} of {total}"
            raise DataError(what, where=where, fix="Correct the rows")
        lengths.append(rows)
    return tuple(names.tolist()), (lengths[0], lengths[1])

"""Tables and archives: valid ones, their readers, and what the changed files say when they are read again."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from model_files import TABLE
from plain import cells, number, plain, text_lines, timestamp


def write_table(folder: Path, *, kind: str) -> None:
    import pandas as pd

    text = "\n".join(TABLE.read_text().splitlines()[:41]) + "\n"
    if kind == "csv":
        (folder / "table.csv").write_text(text)
    elif kind == "tsv":
        (folder / "table.csv").write_text(text.replace(",", "\t"))
    elif kind == "csv.gz":
        (folder / "table.csv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        (folder / "table.csv").write_text(text)
        frame = pd.read_csv(folder / "table.csv", parse_dates=["date"])
        (folder / "table.csv").unlink()
        if kind == "xlsx":
            frame.to_excel(folder / "table.xlsx", index=False)
        else:
            frame.to_parquet(folder / "table.parquet", index=False)


def read_table(folder: Path, *, name: str) -> Any:
    from ofa_jax.data.frames import read_frame

    frame = read_frame(folder / name)
    return frame.names, frame.timestamps, frame.values, frame.frequency, frame.observed


def table_says(folder: Path, found: Any, before: Any, *, name: str) -> bool:
    """Whether names, times and every number are those of the cells."""
    header, *rows = cells(folder / name)
    names, times, values, _, observed = found
    comments = [row for row in (header, *rows) if row[0].startswith("#")]
    rows = [row for row in rows if row not in comments]
    if observed is not None or len(rows) != values[1][0]:
        return False
    read = np.frombuffer(values[2]).reshape(values[1])
    for index, title in enumerate(header):
        column = [row[index] for row in rows]
        if title in names:
            if [number(cell) for cell in column] != read[:, names.index(title)].tolist():
                return False
        elif times is None or [timestamp(cell) for cell in column] != list(np.frombuffer(times[2], times[0])):
            return False
    return True


def parquet_says(folder: Path, found: Any, before: Any) -> bool:
    """Whether pyarrow reads the same numbers: a page of Parquet has no checksum by default."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "table.parquet")
    names, _, values, _, _ = found
    read = np.frombuffer(values[2]).reshape(values[1])
    return all(
        np.array_equal(table.column(name).to_numpy().astype(float), read[:, index])
        for index, name in enumerate(names)
    )


def sheet_says(folder: Path, found: Any, before: Any) -> bool:
    """Whether pandas reads the same numbers."""
    import pandas as pd

    names, _, values, _, _ = found
    table = pd.read_excel(folder / "table.xlsx", engine="openpyxl")
    table.columns = table.columns.map(str).str.strip()
    return np.array_equal(table[list(names)].to_numpy(float), np.frombuffer(values[2]).reshape(values[1]))


def read_collection(folder: Path) -> Any:
    from ofa_jax.data.archives import read_tsf

    found = read_tsf(folder / "source.tsf")
    return found.names, found.values, found.horizon, found.frequency, found.observed


def collection_says(folder: Path, found: Any, before: Any) -> bool:
    names, values, horizon, frequency, observed = found
    lines = text_lines(folder / "source.tsf")
    start = next(index for index, line in enumerate(lines) if line.lower() == "@data")
    head = {line.split()[0].lower(): line.split()[1:] for line in lines[:start] if line.startswith("@")}
    series = [line for line in lines[start + 1 :] if not line.startswith("#")]
    said = [[float(cell) for cell in line.split(":")[-1].split(",")] for line in series]
    return (
        observed is None
        and [line.split(":")[0].strip() for line in series] == list(names)
        and [plain(np.array(one)) for one in said] == list(values)
        and [horizon] == ([int(word) for word in head.get("@horizon", [])] or [None])
        and [frequency] == head.get("@frequency", [None])
    )


def read_cases(folder: Path) -> Any:
    from ofa_jax.data.archives import read_ts

    found = read_ts(folder / "Tiny_TEST.ts")
    return found.cases, found.labels, found.classes, found.observed


def cases_say(folder: Path, found: Any, before: Any) -> bool:
    cases, labels, classes, observed = found
    lines = text_lines(folder / "Tiny_TEST.ts")
    start = next(index for index, line in enumerate(lines) if line.lower() == "@data")
    [named] = [line.split()[2:] for line in lines[:start] if line.lower().startswith("@classlabel")]
    rows = [line.split(":") for line in lines[start + 1 :] if not line.startswith("#")]
    said = [np.array([[float(cell) for cell in part.split(",")] for part in row[:-1]]).T for row in rows]
    return (
        observed is None
        and [plain(case) for case in said] == list(cases)
        and [row[-1].strip() for row in rows] == list(labels)
        and named == list(classes)
    )


def read_stream(folder: Path) -> Any:
    from ofa_jax.data.archives import read_stream

    found = read_stream(folder / "stream.npz")
    return found.train, found.test, found.test_label, found.segments, found.train_borders, found.test_borders


def change_arrays(path: Path, draw: random.Random) -> str:
    """Another array, type, shape or value in an npz."""
    with np.load(path) as stored:
        arrays = dict(stored)
    name = draw.choice(sorted(arrays))
    array = arrays[name]
    odd: dict[str, Callable[[], Any]] = {
        "empty": lambda: array[:0],
        "shorter": lambda: array[:-1],
        "flat": lambda: array.ravel(),
        "deep": lambda: array[None, None],
        "number": lambda: array.ravel()[0],
        "text": lambda: array.astype(str),
        "bytes": lambda: array.astype("S8"),
        "complex": lambda: np.full(array.shape, 1j),
        "object": lambda: array.astype(object),
        "half": lambda: (array if array.dtype.kind in "fiu" else np.zeros(3)).astype(np.float16),
        "big-endian": lambda: array.astype(array.dtype.newbyteorder(">")),
        "columns first": lambda: np.asfortranarray(array),
        "record": lambda: np.zeros(4, [("a", float), ("b", int)]),
        "time": lambda: np.zeros(array.shape, "datetime64[s]"),
        "NaN": lambda: np.full(array.shape, np.nan),
        "infinite": lambda: np.full(array.shape, np.inf),
        "huge": lambda: np.full(array.shape, 1e300),
        "negative": lambda: -np.ones(array.shape, np.int64),
        "unsigned": lambda: np.full(array.shape, 2**64 - 1, np.uint64),
        "bool": lambda: np.ones(array.shape, bool),
    }
    kind = draw.choice([*odd, "drop", "rename", "extra"])
    value = arrays.pop(name) if kind in ("drop", "rename") else array
    if kind == "rename":
        arrays[draw.choice(("Train", "a/b", "../x", "file", "train.npy"))] = value
    elif kind == "extra":
        arrays["more"] = value
    elif kind in odd:
        arrays[name] = odd[kind]()
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # stubs take the names for options
    return f"{name}: {kind}"


def stream_says(folder: Path, found: Any, before: Any) -> bool:
    with np.load(folder / "stream.npz") as stored:
        arrays = dict(stored)
    return (
        found[0] == plain(arrays["train"].astype(float))
        and found[1] == plain(arrays["test"].astype(float))
        and found[2] == plain(arrays["test_label"].astype(bool))
        and ("channels" not in arrays or list(found[3]) == arrays["channels"].tolist())
    )


def write_m4(folder: Path) -> None:
    rows = [[f"W{n}", *(f"{10 * n + step}.5" for step in range(4 + n))] for n in range(1, 6)]
    width = max(map(len, rows))
    header = ",".join(f'"V{index}"' for index in range(1, width + 1))
    lines = [",".join((f'"{name}"', *values, *[""] * (width - 1 - len(values)))) for name, *values in rows]
    (folder / "Weekly-train.csv").write_text("\n".join([header, *lines]) + "\n")


def read_m4(folder: Path) -> Any:
    from ofa_jax.data.archives import read_m4_part

    found = read_m4_part(folder / "Weekly-train.csv")
    return found.names, found.values


def m4_says(folder: Path, found: Any, before: Any) -> bool:
    rows = [line.replace('"', "").split(",") for line in text_lines(folder / "Weekly-train.csv")[1:]]
    said = [[float(cell) for cell in row[1:] if cell.strip() not in ("", "NA")] for row in rows]
    names = tuple(row[0].strip() for row in rows)
    return (names, tuple(plain(np.array(one)) for one in said)) == found

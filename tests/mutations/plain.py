"""What was read as plain values that compare bit for bit, and files read again without the package."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import io
import json
import math
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel


def plain(value: Any) -> Any:
    """Anything that a reader returns, as tuples, texts and numbers; arrays with type, shape and bytes."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(inner) for inner in value)
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, np.ascontiguousarray(value).tobytes()
    return repr(value) if isinstance(value, float) and math.isnan(value) else value


def leaves(content: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted path."""
    if not isinstance(content, Mapping):
        return {path: content}
    below = (leaves(inner, f"{path}.{key}".lstrip(".")) for key, inner in content.items())
    return {name: value for part in below for name, value in part.items()}


def snapshot(folder: Path) -> dict[str, Any]:
    """Every entry below a folder: its kind, permissions, content or target."""
    found: dict[str, Any] = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            mode = path.lstat().st_mode
            content: Any = None
            if stat.S_ISREG(mode) and os.access(path, os.R_OK):
                content = path.read_bytes()
            elif stat.S_ISLNK(mode):
                content = os.readlink(path)
            found[str(path.relative_to(folder))] = mode, content
    return found


def tensors(path: Path) -> dict[str, np.ndarray]:
    """A safetensors file in float32, read by its specification."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        kind = {"F32": "<f4", "F64": "<f8", "F16": "<f2"}.get(entry["dtype"])
        bits = np.frombuffer(body[start:end], kind or "<u2")
        if kind is None:
            assert entry["dtype"] == "BF16"
            bits = (bits.astype(np.uint32) << 16).view(np.float32)
        found[name] = bits.reshape(entry["shape"]).astype(np.float32)
    return found


def windows_1252(data: bytes) -> str:
    """Bytes as Windows-1252, or as Latin-1 where that has no character for one of them."""
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def text_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, gzip by name."""
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        text = windows_1252(data)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line.strip(" \t\ufeff") for line in lines if line.strip(" \t\ufeff")]


def cells(path: Path) -> list[list[str]]:
    """The cells of a delimited text file, row by row, the header first."""
    lines = text_lines(path)
    delimiter = max(",;\t", key=lines[0].count)
    rows = csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter, skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in rows]


def number(text: str) -> float:
    """A number with a decimal point, or with a decimal comma."""
    return float(text if "," not in text else text.replace(",", "."))


def yaml_texts(path: Path) -> dict[str, Any]:
    """A YAML file of nested mappings, each key once, with its values as texts."""
    data = path.read_bytes()
    waiting = [yaml.compose(data, yaml.BaseLoader)]
    for node in waiting:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"a key of {keys} is repeated"
            waiting += [value for _, value in node.value]
    return yaml.load(data, yaml.BaseLoader)


def finite(value: Any) -> bool:
    """Whether no number in plain values is infinite or NaN."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, tuple) and len(value) == 3 and isinstance(value[2], bytes):
        return np.dtype(value[0]).kind != "f" or bool(np.isfinite(np.frombuffer(value[2], value[0])).all())
    if isinstance(value, tuple):
        return all(map(finite, value))
    return (
        value not in ("nan", "inf", "-inf") if isinstance(value, str) else value not in (math.inf, -math.inf)
    )


def yaml_value(text: str) -> set[Any]:
    """The values that a plain text of YAML may stand for."""
    found: set[Any] = {text}
    if text in ("", "~", "null", "Null", "NULL"):
        found.add(None)
    if text.lower() in ("true", "false"):
        found.add(text.lower() == "true")
    with contextlib.suppress(ValueError, OverflowError):
        found |= {float(text), int(float(text))}
    return found


def timestamp(text: str) -> np.datetime64:
    """A date and time of any usual form."""
    return pd.Timestamp(text).to_datetime64().astype("datetime64[ns]")

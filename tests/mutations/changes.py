"""What can happen to a file: seeded changes of its bytes, its values, its type and its size."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import re
import shutil
import socket
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path, random.Random], str]
"""Changes a file in place and says how."""

SHOWN = b"0123456789.,;:-+eE \t\n\r\"'{}[]#@%?/\\=~NaNinf\x00\x1b\xff\xfe\x80\xc3\xa9"


def change_bytes(path: Path, draw: random.Random) -> str:
    """Flip, replace, insert, repeat, drop or append bytes at one to three places."""
    data, said = bytearray(path.read_bytes()), []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        at = draw.randrange(len(data) + 1)
        size = min(draw.choice((1, 1, 1, 2, 5, 30)), len(data) - at)
        kind = draw.choice(("flip", "replace", "insert", "insert", "drop", "repeat", "append", "prefix"))
        token = bytes(draw.choices(SHOWN, k=draw.choice((1, 1, 2, 4, 9))))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == "replace":
            data[at : at + len(token)] = token
        elif kind == "insert":
            data[at:at] = token
        elif kind == "drop":
            del data[at : at + size]
        elif kind == "repeat":
            data[at:at] = data[at : at + size]
        elif kind == "append":
            data += draw.choice((token, b"\0" * 300, b"\n" * 50, bytes(data[:size])))
        elif kind == "prefix":
            data[:0] = draw.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\n\n", b" ", b"#\n", b"\0", token))
        said.append(f"{kind} {token!r} at {at}")
    path.write_bytes(data)
    return "; ".join(said)


def cut_short(path: Path, draw: random.Random) -> str:
    """Keep the beginning, or fill its end with zeros as a power cut does."""
    data = path.read_bytes()
    kept = draw.choice((0, 1, 7, 8, 9, len(data) - 1, draw.randrange(len(data) + 1)))
    zeros = draw.choice((0, len(data) - kept))
    path.write_bytes(data[:kept] + bytes(max(zeros, 0)))
    return f"{kept} of {len(data)} bytes kept, {zeros} zeros after them"


def change_type(path: Path, draw: random.Random) -> str:
    """Put something else in the place of a file: nothing, a folder, a link, a pipe, a socket, a device."""
    kind = draw.choice(
        (
            *("absent", "empty", "folder", "full folder", "pipe", "socket", "dangling", "loop", "long name"),
            *("link", "link to a folder", "/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem", "closed"),
        )
    )
    content = path.read_bytes()
    elsewhere = path.parents[1] / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind.endswith("folder") and not kind.startswith("link"):
        path.mkdir()
        if kind == "full folder":
            (path / "file").write_bytes(content)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is at most 108 bytes long
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)
    elif kind == "dangling":
        path.symlink_to(elsewhere / "absent")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "long name":
        path.symlink_to("n" * 300)
    elif kind == "link":
        (elsewhere / path.name).write_bytes(content)
        path.symlink_to(elsewhere / path.name)
    elif kind == "link to a folder":
        path.symlink_to(elsewhere)
    elif kind.startswith("/"):
        path.symlink_to(kind)
    elif kind == "closed":
        path.write_bytes(content)
        path.chmod(0)
    return kind


NUMBERS = ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-400", "-0.0", "-1", "0", "1", "0.5", "1e30")
NUMBERS += ("3.0", "2.5", "1000000000000", "9" * 30, "9" * 5000, "123456789012345678901234567890")
TEXTS = ("", "x", "random", "true", "false", "null", "NaN", "1", "2.5", "../../etc/passwd", "/dev/zero", "~")
TEXTS += ("\x1b[31mred", "[red]", "\ud800", "\0", "é", "x" * 100_000, "a{99999999999999}", "(a+)+$", "=1+1")
TEXTS += ("0" * 64, "f" * 64, "2024-13-45", "forecast", "1" * 400, "./.", "a/b/c", "(" * 400)
WHOLE = ("null", "true", "false", "[]", "{}", "[[]]", '{"": {}}', '[1, 2, "x"]', "[" * 5000 + "]" * 5000)
WHOLE += ('{"a": ' * 300 + "1" + "}" * 300, "[" + "1, " * 3000 + "1]")


def change_json(path: Path, draw: random.Random, sign: Callable[[dict[str, Any]], None] | None = None) -> str:
    """Replace a value of a JSON file, or of a line of one; or rename, drop, repeat or add a key.

    ``sign`` then writes the file's digest of itself into the changed object.
    """
    text = path.read_text()
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    line = draw.randrange(len(lines))
    content = json.loads(lines[line])
    *_, (parent, key) = [_place(content, draw)]
    kind = draw.choice(("value",) * 6 + ("neighbor", "rename", "drop", "repeat", "add"))
    raw = draw.choice((draw.choice(NUMBERS), json.dumps(draw.choice(TEXTS)), draw.choice(WHOLE)))
    said = f"{kind} at {key!r}: {raw[:60]}"
    if kind == "neighbor":  # a value of this file in another's place
        other, name = _place(content, draw)
        parent[key] = copy.deepcopy(other[name])
        said = f"{key!r} is the value of {name!r}"
    elif kind in ("rename", "drop", "repeat", "add") and isinstance(parent, dict):
        if kind == "add":
            parent[draw.choice(("x", "format", "sha256", "__class__", ""))] = "<RAW>"
        elif kind != "repeat":
            value = parent.pop(key)
            if kind == "rename":
                parent[draw.choice((key.upper(), f"{key} ", f"{key}_", "x"))] = value
    else:
        parent[key] = "<RAW>"
    if sign is not None:
        try:
            mended = json.loads(json.dumps(content).replace('"<RAW>"', raw))
        except (ValueError, RecursionError):
            mended = None
        if isinstance(mended, dict):
            sign(mended)
            content, said = mended, f"{said}, signed"
    written = json.dumps(content, indent=None if len(lines) > 1 else 2).replace('"<RAW>"', raw)
    if kind == "repeat" and isinstance(key, str):
        written = written.replace(f"{json.dumps(key)}:", f"{json.dumps(key)}: {raw}, {json.dumps(key)}:", 1)
    lines[line] = written
    path.write_bytes("\n".join([*lines, ""]).encode(errors="surrogatepass"))
    return said


def _place(content: Any, draw: random.Random) -> tuple[Any, Any]:
    """A container within a JSON value and one of its keys, each place as likely as another."""
    found: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            found.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(content)
    return draw.choice(found)


def change_yaml(path: Path, draw: random.Random) -> str:
    """Replace the value of a line of YAML, or rename, drop, repeat or indent the line."""
    lines = path.read_text().splitlines()
    at = draw.choice([index for index, line in enumerate(lines) if ":" in line])
    name, _, _ = lines[at].partition(":")
    odd = (
        "&a [*a]",
        "*x",
        "!!python/object:os.system x",
        "!!int abc",
        "!!float x",
        "2020-13-45",
        "012",
        "1:30",
    )
    odd += ("NO", "on", "~", "{a: 1}", "[1, 2]", "|\n    text", "'open", "<<: *x", "- - - 1", "%", "@", "\t1")
    odd += ("1_000", "0x10", ".5", "+3", ".inf", "-.inf", ".nan", "!!null x", "!!binary x", "? a", "{" * 50)
    value = draw.choice((draw.choice(NUMBERS), draw.choice(odd), draw.choice(TEXTS[:12])))
    kind = draw.choice(("value",) * 5 + ("rename", "drop", "repeat", "indent"))
    if kind == "value":
        lines[at] = f"{name}: {value}"
    elif kind == "rename":
        lines[at] = lines[at].replace(name, f"{name}{draw.choice(('s', '_', '.', ' '))}", 1)
    elif kind == "drop":
        del lines[at]
    elif kind == "repeat":
        lines.insert(at, draw.choice((lines[at], f"{name}: {value}")))
    else:
        lines[at] = f"  {lines[at]}"
    path.write_text("\n".join(lines) + "\n")
    return f"{kind} in line {at + 1}: {value[:60]!r}"


def change_cell(path: Path, draw: random.Random) -> str:
    """Replace what is between two separators of a text file."""
    lines = path.read_text().splitlines()
    at = draw.randrange(len(lines))
    separator = draw.choice([one for one in ",:; " if one in lines[at]] or [","])
    cells = lines[at].split(separator)
    cell = draw.randrange(len(cells))
    odd = ("?", "", " ", "NA", "1,5", '"', '"1"', "'1'", "1e5", "1E-3", "+1", "1_0", "0x1p3", "١", "½", "1 2")
    odd += (
        "inf",
        "nan",
        "1e309",
        "9.97e36",
        "1e20",
        "TRUE",
        "12:30",
        "2024-02-30",
        "$5",
        "5%",
        "(5)",
        "1.2.3",
    )
    odd += ("1.5", "-2.25", "7", "0.1", "123.456")
    value = draw.choice((draw.choice(NUMBERS), draw.choice(odd), draw.choice(odd), draw.choice(TEXTS[:12])))
    cells[cell] = value
    lines[at] = separator.join(cells)
    path.write_bytes("\n".join([*lines, ""]).encode(errors="surrogatepass"))
    return f"line {at + 1}, part {cell + 1} is {value[:60]!r}"


def change_lines(path: Path, draw: random.Random) -> str:
    """Drop, repeat, exchange or blank lines, or give them other ends."""
    lines = path.read_text().splitlines()
    kind = draw.choice(("drop", "repeat", "exchange", "blank", "ends", "open end", "pad"))
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    end = "\n"
    if kind == "drop":
        del lines[one]
    elif kind == "repeat":
        lines.insert(other, lines[one])
    elif kind == "exchange":
        lines[one], lines[other] = lines[other], lines[one]
    elif kind == "blank":
        lines[one:one] = [draw.choice(("", "  ", ",", ",,"))] * draw.choice((1, 2, 50))
    elif kind == "ends":
        end = draw.choice(("\r\n", "\r", "\n\n"))
    elif kind == "pad":
        lines = [f" {line} " for line in lines]
    path.write_bytes((end.join(lines) + ("" if kind == "open end" else end)).encode())
    return f"{kind}: lines {one + 1} and {other + 1}"


def change_tensors(path: Path, draw: random.Random) -> str:
    """Change the header of a safetensors file: its length, or a type, a shape, a place, a name in it."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = draw.choice([name for name in header if name != "__metadata__"])
    kind = draw.choice(
        ("length", "dtype", "shape", "place", "values", "values", "rename", "drop", "metadata", "tail")
    )
    entry, huge = header[name], draw.choice((2**31, 2**40, 2**62, 2**64 - 1, 2**70, 10**30))
    start, end = entry["data_offsets"]
    length = None
    if kind == "length":
        length = draw.choice((0, 1, size - 1, size + 1, len(data), 100_000_001, 2**40, 2**63, 2**64 - 1))
    elif kind == "dtype":
        entry["dtype"] = draw.choice(
            ("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X", "", 1)
        )
    elif kind == "shape":
        odd = ([], [-1], [0], [huge], [huge, huge], [1.5], ["3"], entry["shape"][::-1], [1, *entry["shape"]])
        entry["shape"] = draw.choice(odd)
    elif kind == "place":
        odd = (
            (start, start),
            (end, start),
            (start, huge),
            (0, end),
            (start + 4, end + 4),
            (-4, end),
            (0, huge),
        )
        entry["data_offsets"] = draw.choice(odd)
    elif kind == "rename":
        header[draw.choice((name.upper(), f"{name}.x", "", "../x", "\x1b[0m", "a" * 5000))] = header.pop(name)
    elif kind == "drop":
        del header[name]
    elif kind == "metadata":
        header["__metadata__"] = draw.choice(({"format": 1}, {"a": {"b": "c"}}, [], "x", {"x": "y" * 10_000}))
    elif kind == "values":
        value = draw.choice((0.0, -1.5, 1e-40, math.nan, math.inf, -math.inf))
        body = body[:start] + struct.pack("<f", value) + body[start + 4 :]
    else:
        body = draw.choice((body + b"\0" * 8, body[:-4], b""))
    text = json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + text + body)
    return f"{kind} of {name}: {length}, {entry}"


def change_zip(path: Path, draw: random.Random) -> str:
    """Change an entry of a zip file: its name, its packing, the size that it declares, the array's header."""
    with zipfile.ZipFile(path) as archive:
        stored = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = draw.choice(sorted(stored))
    content = stored[name]
    kind = draw.choice(
        ("shape", "type", "name", "twice", "packing", "size", "size", "version", "zip", "junk")
    )
    if kind in ("shape", "type"):
        shape = draw.choice(
            ("(10**12,)", "(1000000000000, 3)", "(-1, 3)", "(2, 2", "()", "(1.5,)", "((), ())")
        )
        dtype = draw.choice(
            ("'|O'", "'<f8' ", "'<U999999999'", "'V9'", "[('a', '<f8')]", "'x'", "1", "'<M8[ns]'")
        )
        wanted = (
            ("'shape': (", f"'shape': {shape}, 'x': (")
            if kind == "shape"
            else ("'descr': '", f"'descr': {dtype}, 'x': '")
        )
        start = 10 + int.from_bytes(content[8:10], "little")
        text = content[10:start].decode().replace(*wanted)
        stored[name] = content[:8] + len(text).to_bytes(2, "little") + text.encode() + content[start:]
    elif kind == "name":
        stored[draw.choice(("../x.npy", "/x.npy", "x", "train", "a" * 1000, "\x1b[0m.npy"))] = stored.pop(
            name
        )
    elif kind == "version":
        stored[name] = content[:6] + bytes((draw.randrange(5), draw.randrange(5))) + content[8:]
    elif kind == "zip":
        stored[name] = path.read_bytes()
    packing = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that occurs twice
        with zipfile.ZipFile(path, "w", packing) as archive:
            for entry, value in stored.items():
                archive.writestr(entry, value)
            if kind == "twice":
                archive.writestr(name, content[:-8])
    data = bytearray(path.read_bytes())
    if kind == "size":  # in the directory or in the entry's own header, packed or not
        mark, at = draw.choice(((b"PK\1\2", (20, 24)), (b"PK\3\4", (18, 22))))
        place = data.index(mark) + draw.choice(at)
        data[place : place + 4] = draw.choice((0, 1, 2**31, 2**32 - 2, 2**32 - 1)).to_bytes(4, "little")
    elif kind == "junk":
        data = draw.choice((b"MZ" * 20 + data, data + b"PK\5\6" + bytes(18), data + bytes(100)))
    path.write_bytes(data)
    return f"{kind} of {name}, packed by {packing}"


def change_entry(path: Path, draw: random.Random) -> str:
    """Change the numbers, or any bytes, of an entry of a zip file."""
    with zipfile.ZipFile(path) as archive:
        stored = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = draw.choice([*stored, *[name for name in stored if "sheet" in name] * 5])
    entry = path.with_suffix(".entry")
    if draw.random() < 0.5:
        entry.write_bytes(stored[name])
        said = change_bytes(entry, draw)
        stored[name] = entry.read_bytes()
        entry.unlink()
    else:
        found = draw.choice(list(re.finditer(rb"\d+", stored[name])))
        said = draw.choice(("", "0", "-1", "1e999", "1048576", "1048577", "99999999999", "XFD1048576", "x"))
        stored[name] = stored[name][: found.start()] + said.encode() + stored[name][found.end() :]
    with zipfile.ZipFile(path, "w") as archive:
        for entry_name, value in stored.items():
            archive.writestr(entry_name, value)
    return f"{said} in {name}"


def restore(path: Path, content: bytes) -> None:
    """Put a file back, whatever was put in its place."""
    if not path.is_symlink() and path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(content)

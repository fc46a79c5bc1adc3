"""metrics.jsonl: one JSON object per event, in order, cut back to the restored step on resume."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from ofa_jax.errors import CheckpointError, OfaError
from ofa_jax.files import UNREADABLE, Record, check_regular, enough_space, parse_record, write_atomic

CLOCK_FIELDS = ("time", "seconds", "windows_per_second")
"""Fields that differ between two runs that are otherwise the same to the bit."""


class _Event(Record):
    event: Literal["initial", "train", "gradient", "epoch", "finished"]
    step: int = Field(ge=0)


class _Initial(_Event):
    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, float]  # validation_*


class _Train(_Event):
    epoch: int
    loss: float
    learning_rate: float


class _Gradient(_Event):
    epoch: int
    clip_rate: float | None
    modules: dict[str, dict[Literal["gradient_norm", "update_ratio"], float | None]]


class _Epoch(_Event):
    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, float]  # validation_*
    epoch: int
    protocol: str
    train_loss: float
    learning_rate: float
    best: bool
    time: float
    seconds: float
    windows_per_second: float


class _Finished(_Event):
    reason: str
    best_epoch: int


_RECORDS: dict[str, type[_Event]] = {
    "initial": _Initial,
    "train": _Train,
    "gradient": _Gradient,
    "epoch": _Epoch,
    "finished": _Finished,
}


class EventLog:
    """Append-only log of a run; without a path nothing is kept.

    ``failure`` is why an event could not be written; :meth:`sync` raises it, where all processes learn of it.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.failure: OfaError | None = None
        if path:
            check_regular(path, links=False)  # cutting it back would shorten the file that a link names

    def append(self, event: str, **fields: Any) -> None:
        """Add an event; it is in the file at once and on the disk at the next :meth:`sync`."""
        if self._path and self.failure is None:
            line = json.dumps({"event": event, **fields}) + "\n"
            try:
                with enough_space(self._path, len(line)), open(self._path, "a") as file:
                    file.write(line)
            except OfaError as error:
                self.failure = error

    def last_step(self) -> int:
        """The step of the last intact event, 0 where there is none."""
        lines = _read_lines(self._path) if self._path else []
        return next((event["step"] for line in reversed(lines) if (event := _intact(line))), 0)

    def is_finished(self) -> bool:
        """Whether the event that ends a log is in it."""
        lines = _read_lines(self._path) if self._path else []
        return any((_intact(line) or {}).get("event") == "finished" for line in lines)

    def sync(self) -> int:
        """Make sure that everything is on the disk; returns the file's size in bytes, for :meth:`cut`."""
        if self.failure is not None:
            raise self.failure
        if not self._path or not self._path.exists():
            return 0
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def cut(self, size: int, step: int, *, finished: bool) -> list[str]:
        """Drop what was written after the checkpoint of a step, and lines that are damaged.

        ``size`` is what :meth:`sync` gave for it; the end is dropped unless training is still ``finished``.
        Returns what is lost, in words.
        """
        if not self._path or not self._path.exists():
            return [_SHORTER] * (size > 0)
        found = self._path.read_bytes()
        *lines, rest = found[:size].split(b"\n")
        if rest and len(found) >= size:
            lines.append(rest)  # a checkpoint follows a complete line
        events = [(line, _intact(line)) for line in lines]
        kept = [
            line
            for line, event in events
            if event and event["step"] <= step and (finished or event["event"] != "finished")
        ]
        content = b"".join(line + b"\n" for line in kept)
        if found.startswith(content):
            os.truncate(self._path, len(content))
        else:
            write_atomic(self._path, content)
        damaged = [number for number, (_, event) in enumerate(events, start=1) if event is None]
        return [_SHORTER] * (len(found) < size) + [f"{_listed(damaged)}; removed"] * bool(damaged)


_SHORTER = "is shorter than at the last checkpoint; earlier events are lost"


def _listed(numbers: list[int]) -> str:
    lines = ", ".join(map(str, numbers[:5])) + ", …" * (len(numbers) > 5)
    return f"line{'s' * (len(numbers) > 1)} {lines} cannot be read as an event"


def read_events(path: Path, notice: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The events of a log, oldest first, with the fields of their kind; an incomplete last line is left out.

    Args:
        path: The log.
        notice: Gets a text about damaged lines, which are then left out.

    Raises:
        CheckpointError: A line is not such an event, and there is no ``notice``.
    """
    lines = list(enumerate(_read_lines(path), start=1))
    if notice is not None and (damaged := [number for number, line in lines if _intact(line) is None]):
        notice(f"{path.name}: {_listed(damaged)}; left out")
        lines = [(number, line) for number, line in lines if number not in set(damaged)]
    return [_parse(line, f"{path}, line {number}") for number, line in lines]


def _parse(line: bytes, where: str) -> dict[str, Any]:
    kind = parse_record(line, _Event, where=where).event
    return parse_record(line, _RECORDS[kind], where=where).model_dump()


def _intact(line: bytes) -> dict[str, Any] | None:
    try:
        return _parse(line, "")
    except CheckpointError:
        return None


def _read_lines(path: Path) -> list[bytes]:
    check_regular(path)
    try:
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as failure:
        what = f"cannot be read ({failure.strerror})"
        raise CheckpointError(what, where=str(path), fix=UNREADABLE) from None

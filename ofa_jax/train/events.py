"""metrics.jsonl: one JSON object per event, in order, cut back to the restored step on resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from ofa_jax.errors import CheckpointError
from ofa_jax.files import Record, check_regular, parse_record

CLOCK_FIELDS = ("time", "seconds", "windows_per_second")
"""Fields that differ between two runs that are otherwise the same to the bit."""


class _Event(Record):
    event: Literal["train", "gradient", "epoch", "finished"]
    step: int = Field(ge=0)


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
    "train": _Train,
    "gradient": _Gradient,
    "epoch": _Epoch,
    "finished": _Finished,
}


class EventLog:
    """Append-only log of a run; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path:
            check_regular(path, links=False)  # cutting it back would shorten the file that a link names

    def append(self, event: str, **fields: Any) -> None:
        """Add an event; it is in the file at once and on the disk at the next :meth:`sync`."""
        if self._path:
            with open(self._path, "a") as file:
                file.write(json.dumps({"event": event, **fields}) + "\n")

    def last_step(self) -> int:
        """The step of the last event, 0 where there is none."""
        lines = _read_lines(self._path) if self._path else []
        return parse_record(lines[-1], _Event, where=str(self._path)).step if lines else 0

    def sync(self) -> int:
        """Make sure that everything is on the disk; returns the file's size in bytes, for :meth:`cut`."""
        if not self._path or not self._path.exists():
            return 0
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def cut(self, size: int) -> bool:
        """Drop everything after ``size`` bytes and any incomplete line; False where the file is shorter."""
        if not self._path:
            return True
        with open(self._path, "a+b") as file:
            found = file.tell()
            file.seek(0)
            file.truncate(file.read(min(size, found)).rfind(b"\n") + 1)
        return found >= size


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a log, oldest first, with the fields of their kind; an incomplete last line is left out.

    Raises:
        CheckpointError: A line is not such an event.
    """
    events = []
    for number, line in enumerate(_read_lines(path), start=1):
        where = f"{path}, line {number}"
        kind = parse_record(line, _Event, where=where).event
        events.append(parse_record(line, _RECORDS[kind], where=where).model_dump())
    return events


def _read_lines(path: Path) -> list[bytes]:
    check_regular(path)
    try:
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as failure:
        raise CheckpointError(f"cannot be read ({failure.strerror})", where=str(path)) from None

"""metrics.jsonl: one JSON object per event, in the order of training, cut back to the restored step when a run resumes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

CLOCK_FIELDS = ("time", "seconds", "windows_per_second")
"""Fields that differ between two runs that are otherwise the same to the bit."""


class EventLog:
    """Append-only log of a run; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def append(self, event: str, **fields: Any) -> None:
        """Add an event; it is in the file at once and on the disk at the next :meth:`sync`."""
        if self._path:
            with open(self._path, "a") as file:
                file.write(json.dumps({"event": event, **fields}) + "\n")

    def last_step(self) -> int:
        """The step of the last event, 0 where there is none."""
        events = read_events(self._path) if self._path else []
        return int(events[-1].get("step", 0)) if events else 0

    def sync(self) -> int:
        """Make sure that everything is on the disk; returns the file's size in bytes, a place to cut back to."""
        if not self._path or not self._path.exists():
            return 0
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def cut(self, size: int) -> bool:
        """Drop everything after ``size`` bytes; False where the file is shorter than that and earlier events are lost.

        What is kept ends with a whole line.
        """
        if not self._path:
            return True
        with open(self._path, "a+b") as file:
            found = file.tell()
            file.seek(0)
            file.truncate(file.read(min(size, found)).rfind(b"\n") + 1)
        return found >= size


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a log, oldest first; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines if line]

"""Progress reporters, on stderr: a live line in a terminal, one line per epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ofa_jax.errors import printable


class Reporter(Protocol):
    """Progress reporter."""

    def begin(self, epoch: int, epochs: int, windows: int, done: int) -> None: ...
    def advance(self, windows: int, loss: float) -> None: ...
    def end_epoch(self, record: Mapping[str, Any]) -> None: ...
    def status(self, text: str) -> None: ...
    def notice(self, text: str) -> None: ...


class SilentReporter:
    """Prints nothing."""

    def begin(self, epoch: int, epochs: int, windows: int, done: int) -> None: ...

    def advance(self, windows: int, loss: float) -> None: ...

    def end_epoch(self, record: Mapping[str, Any]) -> None: ...

    def status(self, text: str) -> None: ...

    def notice(self, text: str) -> None: ...


SILENT = SilentReporter()


class ConsoleReporter:
    """Loss, windows per second and time left during an epoch; a line with its results at its end."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
        self._progress: Progress | None = None
        self._began, self._resumed_at = 0.0, 0

    def __enter__(self) -> ConsoleReporter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def begin(self, epoch: int, epochs: int, windows: int, done: int) -> None:
        state = "loss {task.fields[loss]}  {task.fields[speed]} windows/s  {task.fields[left]} left"
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(state))
        fields = {"total": windows, "completed": done, "loss": "—", "speed": "—", "left": "—"}
        self._show(
            Progress(*columns, console=self._console, transient=True), f"epoch {epoch}/{epochs}", fields
        )
        self._began, self._resumed_at = time.monotonic(), done

    def _show(self, progress: Progress, description: str, fields: dict[str, Any]) -> None:
        self.close()
        if self._console.is_terminal:
            progress.add_task(description, **fields)
            progress.start()
            self._progress = progress

    def advance(self, windows: int, loss: float) -> None:
        if self._progress is not None:
            (task,) = self._progress.tasks
            done = task.completed + windows
            speed = (done - self._resumed_at) / max(time.monotonic() - self._began, 1e-9)
            left = str(timedelta(seconds=round(((task.total or 0) - done) / speed)))
            shown = f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"
            self._progress.update(task.id, completed=done, loss=f"{loss:.4f}", speed=shown, left=left)

    def status(self, text: str) -> None:
        """Show what happens now in the live line."""
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn())
            progress = Progress(*columns, console=self._console, transient=True)
            self._show(progress, text, {"total": None})
        else:
            self._progress.update(self._progress.task_ids[0], description=text)

    def end_epoch(self, record: Mapping[str, Any]) -> None:
        self.close()
        cell = f"{record['cell']}, " if "cell" in record else ""  # of a sweep
        names = [name for name in record if name.startswith("validation_")]
        metrics = "  ".join(f"{name.replace('_', ' ')} {record[name]:.4f}" for name in names)
        speed = f"protocol {record['protocol']}, {record['windows_per_second']:.0f} windows/s"
        best = "  best" if record["best"] else ""
        loss = f"train loss {record['train_loss']:.4f}"
        self._console.print(f"{printable(cell)}epoch {record['epoch']}: {loss}  {metrics}  ({speed}){best}")

    def notice(self, text: str) -> None:
        self._console.print(printable(text))  # names of series may contain anything

    def close(self) -> None:
        """Remove the live line; safe to call at any time."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

"""Progress reporters, on stderr: a live line in a terminal, one line per epoch elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ofa_jax.errors import printable


class SilentReporter:
    """Prints nothing."""

    def begin(self, epoch: int, epochs: int, windows: int, done: int) -> None: ...

    def advance(self, windows: int, loss: float) -> None: ...

    def end_epoch(self, record: Mapping[str, Any]) -> None: ...

    def notice(self, text: str) -> None: ...


class ConsoleReporter:
    """Loss, windows per second and time left during an epoch; a line with its results at its end."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
        self._progress: Progress | None = None

    def __enter__(self) -> ConsoleReporter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def begin(self, epoch: int, epochs: int, windows: int, done: int) -> None:
        if not self._console.is_terminal:
            return
        state = TextColumn("loss {task.fields[loss]}  {task.fields[speed]} windows/s")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), state)
        self._progress = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
        description, done = f"epoch {epoch}/{epochs}", min(done, windows)
        self._progress.add_task(description, total=windows, completed=done, loss="—", speed="—")
        self._progress.start()

    def advance(self, windows: int, loss: float) -> None:
        if self._progress is not None:
            (task,) = self._progress.tasks
            speed = f"{task.speed:.0f}" if task.speed else "—"
            self._progress.update(task.id, advance=windows, loss=f"{loss:.4f}", speed=speed)

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

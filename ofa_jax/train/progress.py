"""What a person sees of training, on stderr: a live line in a terminal, one line per epoch elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class SilentReporter:
    """Says nothing."""

    def begin(self, epoch: int, epochs: int, windows: int, done: int) -> None: ...

    def advance(self, windows: int, loss: float) -> None: ...

    def end_epoch(self, record: Mapping[str, Any]) -> None: ...

    def notice(self, text: str) -> None: ...


class ConsoleReporter:
    """Loss, windows per second and time left while an epoch runs; a line with its results when it ends."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> ConsoleReporter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def begin(self, epoch: int, epochs: int, windows: int, done: int) -> None:
        if not self._console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} windows/s"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task(
            f"epoch {epoch}/{epochs}", total=windows, completed=min(done, windows), loss="—", speed="—"
        )
        self._progress.start()

    def advance(self, windows: int, loss: float) -> None:
        if self._progress is None:
            return
        self._progress.update(self._task, advance=windows, loss=f"{loss:.4f}")
        speed = self._progress.tasks[0].speed
        if speed:
            self._progress.update(self._task, speed=f"{speed:.0f}")

    def end_epoch(self, record: Mapping[str, Any]) -> None:
        self.close()
        metrics = "  ".join(
            f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in record.items()
            if name.startswith("validation_")
        )
        cell = f"{record['cell']}, " if "cell" in record else ""  # of a sweep
        self._console.print(
            f"{cell}epoch {record['epoch']}: train loss {record['train_loss']:.4f}  {metrics}  "
            f"(protocol {record['protocol']}, {record['windows_per_second']:.0f} windows/s){'  best' if record['best'] else ''}"
        )

    def notice(self, text: str) -> None:
        self._console.print(text, markup=False)  # names of series may hold brackets

    def close(self) -> None:
        """Take the live line away; safe to call at any time."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

"""Fit and evaluate: epochs of chunks, early stopping on validation, checkpoints, an exact resume, a clean stop.

The order of a resume is always the same:

1. restore the newest whole checkpoint: trainable tree, optimiser, best tree so far, counters and data position (one integer);
2. cut metrics.jsonl back to the length it had then;
3. go on at that position of the global index stream, which is a function of the seed and the position alone.

Losses are added up per step in float64 on the host, so neither the chunk length nor an interruption changes a logged number.

Several processes run this loop side by side, on the same numbers, each with its own devices (:mod:`ofa_jax.train.devices`). What
hangs on the clock or on a signal they agree on at the end of a chunk (:mod:`ofa_jax.train.processes`).
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from ofa_jax.config import TrainConfig
from ofa_jax.errors import CheckpointError, Interrupted, TrainError
from ofa_jax.tasks.base import Task
from ofa_jax.train import grad_stats as gradient_log
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.devices import Layout, check_room, make_layout, slices_and_rows
from ofa_jax.train.events import EventLog
from ofa_jax.train.memory import EVAL_WINDOWS
from ofa_jax.train.optim import learning_rate, make_optimizer
from ofa_jax.train.processes import MultiProcessCheckpoints, max_over_processes, raise_together
from ofa_jax.train.step import (
    Params,
    Predict,
    TrainState,
    chunk_rows,
    dropout_key,
    init_state,
    make_chunk,
    make_eval_step,
)
from ofa_jax.windows.order import IndexStream
from ofa_jax.windows.table import PADDING, WindowTable


class Reporter(Protocol):
    """What the loop tells a person; see :mod:`ofa_jax.train.progress`."""

    def begin(self, epoch: int, epochs: int, windows: int, done: int) -> None: ...
    def advance(self, windows: int, loss: float) -> None: ...
    def end_epoch(self, record: Mapping[str, Any]) -> None: ...
    def notice(self, text: str) -> None: ...


@dataclass
class Progress:
    """The counters that a checkpoint keeps beside the arrays."""

    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    bad_epochs: int = 0
    epoch_loss: float = 0.0
    logged_loss: float = 0.0
    events_size: int = 0
    finished: str = ""
    best_metrics: dict[str, float] = field(default_factory=dict)
    gradients: list[float] = field(default_factory=list)


class FitResult(NamedTuple):
    """The best trainable tree on validation (NumPy leaves), the counters at the end, and why training ended."""

    best: Params
    progress: Progress
    reason: str


class StopRequest:
    """Set by SIGINT or SIGTERM, 0 before; the loop looks at it between chunks."""

    def __init__(self) -> None:
        self.signal_number = 0


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """While inside, the first SIGINT or SIGTERM asks for a clean stop; a second one acts as usual.

    Outside the main thread signals cannot be caught, so there they keep their usual meaning.
    """
    request = StopRequest()
    previous: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal_number = number
        signal.signal(number, previous[number])

    for number in map(int, (signal.SIGINT, signal.SIGTERM)):
        handler = signal.getsignal(number)
        previous[number] = (
            signal.SIG_DFL if handler is None else handler
        )  # None: set by something other than Python
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def evaluate(
    predict: Predict,
    task: Task,
    table: WindowTable,
    frozen: Params,
    trainable: Params,
    *,
    batch_size: int | None,
) -> dict[str, np.ndarray]:
    """The task's sums for every window of a table, once each, in the table's order: ``{name: [windows, …]}``; on all devices."""
    return Evaluator(predict, task, batch_size)(table, frozen, trainable)


class Evaluator:
    """A compiled evaluation, for use on several tables or many times."""

    def __init__(
        self, predict: Predict, task: Task, batch_size: int | None, layout: Layout | None = None
    ) -> None:
        self._layout = layout = layout or make_layout(TrainConfig())
        self._step = make_eval_step(
            predict,
            task.sums,
            task.spec,
            task.inputs,
            spread=layout.eval_spread,
            compiled=layout.compile_eval,
        )
        self.buffer = layout.place(task.buffer)
        self._batch_size = batch_size or EVAL_WINDOWS

    def __call__(self, table: WindowTable, frozen: Params, trainable: Params) -> dict[str, np.ndarray]:
        layout = self._layout
        _, rows = slices_and_rows(min(self._batch_size, table.size), None, layout.devices)
        stream = IndexStream(table.size, rows, seed=None)
        frozen, trainable, columns = layout.place_frozen(frozen), layout.place(trainable), layout.place(table)
        parts = []
        for index in stream.batches(0, stream.steps_per_epoch):
            sums = self._step(frozen, trainable, self.buffer, columns, layout.place(index))
            # waited for batch by batch: with many batches under way at once, devices that share few threads wait for each other for ever
            parts.append({name: np.asarray(values) for name, values in sums.items()})
        return {name: np.concatenate([part[name] for part in parts])[: table.size] for name in parts[0]}


def keep(keep_best: Callable[[Params, Progress], None] | None, best: Params, progress: Progress) -> None:
    """Hand the best tree to whoever keeps it; with several processes only the leader has somebody, and all wait for it."""
    with raise_together("writing the bundle"):
        if keep_best is not None:
            keep_best(best, progress)


class Trainer:
    """One fit, from the restored or the first step to the last; use :func:`fit`."""

    def __init__(
        self,
        predict: Predict,
        task: Task,
        frozen: Params,
        trainable: Params,
        settings: TrainConfig,
        reporter: Reporter,
        log: EventLog,
        checkpoints: Checkpoints | MultiProcessCheckpoints | None,
        keep_best: Callable[[Params, Progress], None] | None,
        layout: Layout | None = None,
    ) -> None:
        self.task, self.settings, self.reporter, self.log = task, settings, reporter, log
        self.checkpoints, self.keep_best = checkpoints, keep_best
        table = task.tables["train"]
        self.stream = IndexStream(
            table.size, settings.batch_size, seed=settings.seed, drop_last=task.drop_last, groups=task.groups
        )
        self.windows = self.stream.windows
        self.epoch_steps = self.stream.steps_per_epoch
        self.schedule = learning_rate(settings, self.epoch_steps)
        optimizer = make_optimizer(settings, self.schedule)
        self.layout = layout = layout or make_layout(settings)
        slices, self.rows = slices_and_rows(settings.batch_size, settings.micro_batch, layout.devices)
        self.chunk = make_chunk(
            predict,
            task.loss,
            optimizer,
            task.spec,
            task.inputs,
            slices=slices,
            spread=layout.spread,
            compiled=layout.compile_chunk,
            tell=None if settings.gradient_log is None else gradient_log.make_teller(settings.clip_norm),
        )
        self.leaf_names = gradient_log.leaf_names(trainable)
        self.evaluator = Evaluator(predict, task, settings.eval_batch_size, layout)
        self.frozen = layout.place_frozen(frozen)
        self.state = layout.place(init_state(trainable, optimizer))
        self.best = jax.tree.map(np.asarray, trainable)
        self.progress = Progress()
        self.table = layout.place(table)
        self.buffer = self.evaluator.buffer
        self.key = layout.place(dropout_key(settings.seed))
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Restore, in the order that the module's docstring gives."""
        if self.checkpoints is None:
            return
        restored = self.checkpoints.restore({"state": self.state, "best": self.best})
        for text in restored.skipped if restored else ():
            self.reporter.notice(text)
        reached, found = self.log.last_step(), restored.step if restored else 0
        if reached > found:
            whole = (
                f"the newest whole checkpoint is of step {found}" if restored else "there is no checkpoint"
            )
            self.reporter.notice(
                f"metrics.jsonl reached step {reached}, but {whole}: the steps since are trained again"
            )
        if restored is None:
            self.log.cut(0)
            return
        self.state = self.layout.place(TrainState(*restored.arrays["state"]))
        self.best = restored.arrays["best"]
        self.progress = Progress(**restored.meta)
        if self.settings.gradient_log is None:
            self.progress.gradients = []  # switched on again later, lines are about the steps from then on
        if int(self.state.step) != self.progress.step:
            raise CheckpointError(
                f"the arrays are of step {int(self.state.step)}, the counters of step {self.progress.step}"
            )
        if not self.log.cut(self.progress.events_size):
            self.reporter.notice(
                "metrics.jsonl is shorter than at the last checkpoint; its earlier events are lost"
            )
        if not self.progress.finished:
            self.reporter.notice(f"resumed at step {self.progress.step}")

    def save(self) -> None:
        """Write a checkpoint, after everything that was logged so far is on the disk."""
        self.saved_at = time.monotonic()
        if self.checkpoints is None:
            return
        # a finite loss may still give an infinite gradient; such a state must not pass for the last good one
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(self.state.trainable)):
            raise self.diverged("the trained parameters are no longer finite", self.progress.step - 1)
        self.progress.events_size = self.log.sync()
        self.checkpoints.save(
            self.progress.step, {"state": self.state, "best": self.best}, asdict(self.progress)
        )

    def run(self, request: StopRequest) -> None:
        """Train until the last epoch, until patience ends, or until a signal asks to stop."""
        last = self.settings.epochs * self.epoch_steps
        if not self.progress.finished:
            with raise_together("finding room for a step"):
                check_room(self.chunk, self.arguments(0), self.settings)
        while not self.progress.finished:
            epoch, position = divmod(self.progress.step, self.epoch_steps)
            self.reporter.begin(
                epoch + 1, self.settings.epochs, self.windows, position * self.settings.batch_size
            )
            began = time.monotonic()
            self.run_epoch(position, request)
            self.close_epoch(
                epoch + 1, self.windows - position * self.settings.batch_size, time.monotonic() - began
            )
            if self.progress.bad_epochs >= self.settings.patience:
                self.progress.finished = (
                    f"no better validation {self.task.objective} for {self.settings.patience} epochs"
                )
            elif self.progress.step >= last:
                self.progress.finished = "all epochs done"
            if self.progress.finished:
                self.log.append(
                    "finished",
                    step=self.progress.step,
                    reason=self.progress.finished,
                    best_epoch=self.progress.best_epoch,
                )
            self.save()
            self.stop(*max_over_processes(request.signal_number))

    def run_epoch(self, position: int, request: StopRequest) -> None:
        """Train from a step of the epoch to its end, saving when it is time or a signal asks for it."""
        while position < self.epoch_steps:
            steps = min(self.settings.chunk, self.epoch_steps - position)
            self.run_chunk(steps)
            position += steps
            if position < self.epoch_steps:
                overdue = time.monotonic() - self.saved_at > 60 * self.settings.checkpoint_minutes
                signal_number, due = max_over_processes(request.signal_number, overdue)
                if signal_number or due:
                    self.save()
                self.stop(signal_number)

    def run_chunk(self, steps: int) -> None:
        """Dispatch so many steps and account for them."""
        first = self.progress.step
        index = self.stream.batches(first, first + steps)
        self.state, values = self.chunk(*self.arguments(steps, index))
        losses, told = (values, None) if self.settings.gradient_log is None else values
        then = first + steps  # the devices are at work now, and the host has time for the next chunk's order
        self.stream.prepare(then, then + min(self.settings.chunk, self.epoch_steps - then % self.epoch_steps))
        losses_k = np.asarray(losses)[:steps].astype(np.float64)
        told_k = None if told is None else np.asarray(told)
        self.check_finite(first, losses_k)
        windows_k = (index >= 0).sum(axis=1)
        for offset, loss in enumerate(losses_k):
            self.account(first + offset, float(loss), int(windows_k[offset]))
            if told_k is not None:
                self.account_gradients(first + offset, told_k[offset])
        self.reporter.advance(int(windows_k.sum()), float(losses_k.mean()))

    def arguments(self, steps: int, index: np.ndarray | None = None) -> tuple[Any, ...]:
        """What the chunk takes for so many steps; without an index, no window at all."""
        filled = np.full(
            (chunk_rows(min(self.settings.chunk, self.epoch_steps)), self.rows), PADDING, np.int32
        )
        if index is not None:
            filled[:steps, : self.settings.batch_size] = index
        return self.frozen, self.state, self.buffer, self.table, self.layout.place(filled), steps, self.key

    def check_finite(self, first: int, losses_k: np.ndarray) -> None:
        """Stop at the first loss that is not a finite number; the chunk began at step ``first``."""
        bad = np.flatnonzero(~np.isfinite(losses_k))
        if not len(bad):
            return
        raise self.diverged(f"the loss became {losses_k[bad[0]]}", first + int(bad[0]))

    def diverged(self, what: str, step: int) -> TrainError:
        """The error for numbers that are no longer finite at a step, counted from 0."""
        kept = self.checkpoints.steps() if self.checkpoints else []
        saved = f"The last good checkpoint is at step {kept[-1]}" if kept else "Nothing was saved yet"
        return TrainError(
            f"{what} at step {step + 1} (learning rate {float(self.schedule(step)):.3g})",
            where="training",
            fix=f"{saved}; begin anew in another folder with a lower train.learning_rate, or look for extreme values in the data",
        )

    def account(self, step: int, loss: float, windows: int) -> None:
        """Add one step's loss to the counters, and log the mean of the last ``log_every`` steps when it is time."""
        self.progress.step = step + 1
        self.progress.epoch_loss += loss * windows
        self.progress.logged_loss += loss
        if (step + 1) % self.settings.log_every == 0:
            mean = self.progress.logged_loss / self.settings.log_every
            self.log.append(
                "train",
                step=step + 1,
                epoch=step // self.epoch_steps + 1,
                loss=mean,
                learning_rate=float(self.schedule(step)),
            )
            self.progress.logged_loss = 0.0

    def account_gradients(self, step: int, told: np.ndarray) -> None:
        """Add what one step told of its gradient to the sums, and log them when it is time."""
        self.progress.gradients = gradient_log.add(self.progress.gradients, told)
        if (step + 1) % (self.settings.gradient_log or 1) == 0:
            found = gradient_log.line(self.progress.gradients, self.leaf_names, self.settings.clip_norm)
            self.log.append("gradient", step=step + 1, epoch=step // self.epoch_steps + 1, **found)
            self.progress.gradients = []

    def close_epoch(self, epoch: int, windows: int, seconds: float) -> None:
        """Validate, keep the best, log the epoch, of which this process trained ``windows`` windows in ``seconds``."""
        sums = self.evaluator(self.task.tables["validation"], self.frozen, self.state.trainable)
        metrics = self.task.metrics(sums)
        objective = metrics[self.task.objective]
        if not math.isfinite(objective):
            raise self.diverged(
                f"the validation {self.task.objective} became {objective} after epoch {epoch},",
                self.progress.step - 1,
            )
        better = self.progress.best is None or objective < self.progress.best
        if better:
            self.progress.best, self.progress.best_epoch, self.progress.bad_epochs = objective, epoch, 0
            self.progress.best_metrics = metrics
            self.best = jax.tree.map(np.array, self.state.trainable)
        else:
            self.progress.bad_epochs += 1
        record = {
            "epoch": epoch,
            "protocol": self.task.protocol,
            "step": self.progress.step,
            "train_loss": self.progress.epoch_loss / self.windows,
            **{f"validation_{name}": value for name, value in metrics.items()},
            "learning_rate": float(self.schedule(self.progress.step - 1)),
            "best": better,
        }
        self.progress.epoch_loss = 0.0
        speed = windows / max(seconds, 1e-9)
        clock = {"time": time.time(), "seconds": round(seconds, 3), "windows_per_second": round(speed, 1)}
        self.log.append("epoch", **record, **clock)
        self.reporter.end_epoch(record | clock)
        if better:
            keep(self.keep_best, self.best, self.progress)

    def stop(self, signal_number: int) -> None:
        """End here if a signal asked for it: not 0, and there is something left to train."""
        if signal_number and not self.progress.finished:
            raise Interrupted(signal_number, self.progress.step, saved=self.checkpoints is not None)


def fit(
    predict: Predict,
    task: Task,
    *,
    frozen: Params,
    trainable: Params,
    settings: TrainConfig,
    reporter: Reporter,
    log: EventLog | None = None,
    checkpoints: Checkpoints | MultiProcessCheckpoints | None = None,
    keep_best: Callable[[Params, Progress], None] | None = None,
    layout: Layout | None = None,
) -> FitResult:
    """Train ``trainable`` on a task's training windows, choosing the epoch by validation.

    Args:
        predict: ``predict(frozen, trainable, x_btc, x_mask, dropout_keys=None)``.
        task: Windows, loss and metrics.
        frozen: Parameters that never change.
        trainable: Where training starts.
        settings: Epochs, batch size, step sizes and so on.
        reporter: What tells a person how it goes.
        log: Events go there.
        checkpoints: Where given, the newest one is resumed and new ones are written.
        keep_best: Called with the best tree whenever validation improves, and once more at the end.
        layout: The devices; all there are, as the settings say, when not given.

    Raises:
        TrainError: There is no room for a step; the loss is no longer finite.
        ConfigError: The settings do not fit the devices.
        Interrupted: A signal asked to stop; everything is saved.
        CheckpointError: The checkpoints are of another experiment, or all damaged.
    """
    trainer = Trainer(
        predict,
        task,
        frozen,
        trainable,
        settings,
        reporter,
        log or EventLog(None),
        checkpoints,
        keep_best,
        layout,
    )
    trainer.resume()
    with stop_on_signal() as request:
        trainer.run(request)
    keep(keep_best, trainer.best, trainer.progress)
    return FitResult(trainer.best, trainer.progress, trainer.progress.finished)

"""Training a group of cells side by side: epochs, validation, patience of each, checkpoints, an exact resume, a clean stop.

What :mod:`ofa_jax.train.loop` does with one adapter happens here with several: each has its own order of windows, dropout keys,
scale and step size, its own log, and ends by itself, when its patience or its numbers do. An adapter that has ended changes no
more; the others go on. The order of a resume is the same:

1. restore the newest whole checkpoint: states, best trees so far, counters of every cell;
2. cut the log of every cell back to the length it had then;
3. go on at that position of each cell's own index stream.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.adapters.rslora import init_adapters
from ofa_jax.build import Model
from ofa_jax.config import TrainConfig
from ofa_jax.data.splits import Split
from ofa_jax.errors import Interrupted, OfaError, TrainError
from ofa_jax.studies.sweep.cells import Cell, Group
from ofa_jax.studies.sweep.program import Numbers, Programs, cut, first_states, make_programs, padded, stacked
from ofa_jax.tasks.base import Task
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.devices import check_room, slices_and_rows
from ofa_jax.train.events import EventLog
from ofa_jax.train.loop import Params, Progress, Reporter, StopRequest
from ofa_jax.train.memory import EVAL_WINDOWS, settled
from ofa_jax.train.optim import learning_rate
from ofa_jax.train.step import TrainState, chunk_rows, dropout_key
from ofa_jax.windows.order import IndexStream
from ofa_jax.windows.table import PADDING, WindowTable


@dataclass
class CellProgress(Progress):
    """The counters of a cell; ``diverged`` says that it ended because a number was no longer finite."""

    diverged: bool = False


class Bench:
    """What all groups of a sweep share, on the device: data, the frozen tree (once), and the programs of each bucket.

    Args:
        model: The network with its frozen tree; the adapters are each cell's own.
        task: Windows, loss and metrics.
        settings: How the cells are trained; seed and learning rate are each cell's own.
    """

    def __init__(self, model: Model, task: Task, settings: TrainConfig) -> None:
        self.model, self.task, self.settings = model, task, settled(settings, model.network)
        self.buffer = jnp.asarray(task.buffer)
        self.tables = {split: jax.tree.map(jnp.asarray, table) for split, table in task.tables.items()}
        self.frozen = jax.device_put(model.frozen)
        self.epoch_steps = self.stream(settings.seed).steps_per_epoch
        self._programs: dict[tuple[int, int], Programs] = {}

    def stream(self, seed: int) -> IndexStream:
        """The order of training windows that a seed gives."""
        task = self.task
        return IndexStream(
            task.tables["train"].size,
            self.settings.batch_size,
            seed=seed,
            drop_last=task.drop_last,
            groups=task.groups,
        )

    def rows(self, lanes: int) -> tuple[int, int]:
        """Slices of a step and rows of its padded batch: as many windows at a time as one adapter alone would take, over all lanes."""
        micro = self.settings.micro_batch
        return slices_and_rows(self.settings.batch_size, None if micro is None else max(1, micro // lanes), 1)

    def programs(self, group: Group) -> Programs:
        """Those of the group's width and lanes, the same ones for every group of a bucket."""
        key = (group.width, group.lanes)
        if key not in self._programs:
            self._programs[key] = make_programs(
                self.model.network,
                self.model.lora,
                self.task,
                self.settings,
                self.epoch_steps,
                slices=self.rows(group.lanes)[0],
                lanes=group.lanes,
            )
        return self._programs[key]

    def start(self, cell: Cell) -> Params:
        """The trainable tree that the cell starts from, as a run of its own would."""
        drawn = init_adapters(self.model.targets, cell.lora, seed=cell.experiment.adapters.seed)
        return {"adapters": drawn, "base": self.model.trainable["base"]}

    def sums(self, group: Group, trainables: Params, table: WindowTable) -> dict[str, np.ndarray]:
        """The task's sums of every window of a table for every lane, ``{name: [v, windows, …]}``; trainables are ``[v, …]``, padded."""
        programs, scale = self.programs(group), scales(group)
        rows = min(max(1, (self.settings.eval_batch_size or EVAL_WINDOWS) // group.lanes), table.size)
        stream = IndexStream(table.size, rows, seed=None)
        trainables, columns = jax.tree.map(jnp.asarray, trainables), jax.tree.map(jnp.asarray, table)
        parts = []
        for index in stream.batches(0, stream.steps_per_epoch):
            found = programs.evaluate(
                self.frozen, trainables, scale, self.buffer, columns, jnp.asarray(index)
            )
            parts.append({name: np.asarray(values) for name, values in found.items()})
        return {
            name: np.concatenate([part[name] for part in parts], axis=1)[:, : table.size] for name in parts[0]
        }


def scales(group: Group) -> jax.Array:
    """The factor before ``a b`` of every lane, ``[v]``."""
    return jnp.asarray([cell.lora.scale for cell in lanes_of(group)], jnp.float32)


def lanes_of(group: Group) -> list[Cell]:
    """What lies in each lane; idle ones hold the last cell once more."""
    return [*group.cells, *[group.cells[-1]] * (group.lanes - len(group.cells))]


class GroupTrainer:
    """One group, from the restored or the first step to the end of its last cell.

    Args:
        bench: What all groups share.
        group: The cells.
        logs: The log of each cell.
        checkpoints: Of this group alone.
        reporter: What tells a person how it goes.
    """

    def __init__(
        self,
        bench: Bench,
        group: Group,
        logs: Sequence[EventLog],
        checkpoints: Checkpoints,
        reporter: Reporter,
    ) -> None:
        self.bench, self.group, self.logs = bench, group, logs
        self.checkpoints, self.reporter = checkpoints, reporter
        self.programs = bench.programs(group)
        self.lanes = lanes_of(group)
        self.settings = [cell.experiment.train for cell in group.cells]
        self.streams = [bench.stream(cell.experiment.train.seed) for cell in self.lanes]
        self.schedules = [learning_rate(settings, bench.epoch_steps) for settings in self.settings]
        self.keys = jnp.stack([dropout_key(cell.experiment.train.seed) for cell in self.lanes])
        rates = jnp.asarray([cell.experiment.train.learning_rate for cell in self.lanes], jnp.float32)
        self.numbers = Numbers(scales(group), rates)
        starts = [self._wide(bench.start(cell)) for cell in self.lanes]
        self.state: TrainState = jax.tree.map(
            jnp.asarray, first_states(starts, bench.settings, bench.epoch_steps)
        )
        self.best: Params = stacked(starts)
        self.progress = [CellProgress() for _ in group.cells]
        self.step = 0
        self.saved_at = time.monotonic()

    def _wide(self, trainable: Params) -> Params:
        return {**trainable, "adapters": padded(trainable["adapters"], self.group.width)}

    @property
    def finished(self) -> bool:
        return all(progress.finished for progress in self.progress)

    def best_of(self, place: int) -> Params:
        """The best trainable tree of a cell so far, in its own rank."""
        own = jax.tree.map(lambda leaf: leaf[place], self.best)
        return {**own, "adapters": cut(own["adapters"], self.group.cells[place].rank)}

    def resume(self) -> None:
        """Restore, in the order that the module's docstring gives."""
        restored = self.checkpoints.restore({"state": self.state, "best": self.best})
        for text in restored.skipped if restored else ():
            self.reporter.notice(text)
        if restored is not None:
            self.state = jax.tree.map(jnp.asarray, TrainState(*restored.arrays["state"]))
            self.best = restored.arrays["best"]
            self.progress = [CellProgress(**counters) for counters in restored.meta["cells"]]
            self.step = restored.step
            self.reporter.notice(f"{self.group.name} resumed at step {self.step}")
        for log, cell, progress in zip(self.logs, self.group.cells, self.progress, strict=True):
            if not log.cut(progress.events_size):
                self.reporter.notice(
                    f"the metrics.jsonl of {cell.name} is shorter than at the last checkpoint; its earlier events are lost"
                )

    def save(self) -> None:
        """Write a checkpoint, after everything that was logged so far is on the disk."""
        self.saved_at = time.monotonic()
        for log, progress in zip(self.logs, self.progress, strict=True):
            progress.events_size = log.sync()
        meta = {"cells": [asdict(progress) for progress in self.progress]}
        self.checkpoints.save(self.step, {"state": self.state, "best": self.best}, meta)

    def run(self, request: StopRequest) -> None:
        """Train until every cell has ended, or until a signal asks to stop."""
        if not self.finished:
            self._check_room()
        epoch_steps = self.bench.epoch_steps
        while not self.finished:
            epoch, position = divmod(self.step, epoch_steps)
            settings, windows = self.bench.settings, self.streams[0].windows
            self.reporter.begin(epoch + 1, settings.epochs, windows, position * settings.batch_size)
            began = time.monotonic()
            while position < epoch_steps and not self.finished:
                steps = min(settings.chunk, epoch_steps - position)
                self.run_chunk(steps)
                position += steps
                overdue = time.monotonic() - self.saved_at > 60 * settings.checkpoint_minutes
                if position < epoch_steps and (request.signal_number or overdue):
                    self.save()
                    self.stop(request)
            self.close_epoch(epoch + 1, time.monotonic() - began)
            self.save()
            self.stop(request)

    def _check_room(self) -> None:
        try:
            check_room(self.programs.chunk, self.arguments(0), self.bench.settings)
        except TrainError as error:
            fix, lanes = error.fix or "", self.group.lanes
            if lanes > 1:
                fix = f"Take fewer adapters than {lanes} at a time with --at-once, or else: {fix[:1].lower()}{fix[1:]}"
            raise TrainError(error.what, where=error.where, fix=fix) from None

    def stop(self, request: StopRequest) -> None:
        if request.signal_number and not self.finished:
            raise Interrupted(request.signal_number, self.step, saved=True)

    def arguments(self, steps: int, index: Sequence[np.ndarray] = ()) -> tuple[Any, ...]:
        """What the chunk takes for so many steps; without an index of each lane, no window at all."""
        bench = self.bench
        filled = np.full(
            (
                len(self.lanes),
                chunk_rows(min(bench.settings.chunk, bench.epoch_steps)),
                bench.rows(self.group.lanes)[1],
            ),
            PADDING,
            np.int32,
        )
        for lane, batches in enumerate(index):
            filled[lane, :steps, : bench.settings.batch_size] = batches
        active = [not progress.finished for progress in self.progress] + [False] * (
            len(self.lanes) - len(self.progress)
        )
        table = bench.tables["train"]
        return (
            bench.frozen,
            self.state,
            bench.buffer,
            table,
            jnp.asarray(filled),
            steps,
            self.keys,
            self.numbers,
            jnp.asarray(active),
        )

    def run_chunk(self, steps: int) -> None:
        """Dispatch so many steps of all lanes and account for them."""
        first, then = self.step, self.step + steps
        index = [stream.batches(first, then) for stream in self.streams]
        self.state, losses = self.programs.chunk(*self.arguments(steps, index))
        following = min(self.bench.settings.chunk, self.bench.epoch_steps - then % self.bench.epoch_steps)
        for stream in self.streams:
            stream.prepare(then, then + following)
        losses_vk = np.asarray(losses)[:, :steps].astype(np.float64)
        running = [place for place, progress in enumerate(self.progress) if not progress.finished]
        for place in running:
            windows_k = (index[place] >= 0).sum(axis=1)
            for offset, loss in enumerate(losses_vk[place].tolist()):
                if not math.isfinite(loss):
                    self.end_diverged(place, f"the loss became {loss}", first + offset)
                    break
                self.account(place, first + offset, loss, int(windows_k[offset]))
        self.step = then
        self.reporter.advance(
            int((index[running[0]] >= 0).sum()) if running else 0, float(np.mean(losses_vk[running]))
        )

    def account(self, place: int, step: int, loss: float, windows: int) -> None:
        """Add one step's loss to a cell's counters, and log the mean of the last ``log_every`` steps when it is time."""
        progress, every = self.progress[place], self.bench.settings.log_every
        progress.step = step + 1
        progress.epoch_loss += loss * windows
        progress.logged_loss += loss
        if (step + 1) % every == 0:
            rate, epoch = float(self.schedules[place](step)), step // self.bench.epoch_steps + 1
            self.logs[place].append(
                "train", step=step + 1, epoch=epoch, loss=progress.logged_loss / every, learning_rate=rate
            )
            progress.logged_loss = 0.0

    def end_diverged(self, place: int, what: str, step: int) -> None:
        """End a cell whose numbers are no longer finite at a step, counted from 0; the others go on."""
        reason = f"{what} at step {step + 1} (learning rate {float(self.schedules[place](step)):.3g})"
        self.progress[place].diverged = True
        self.reporter.notice(f"{self.group.cells[place].name} ended: {reason}")
        self.end(place, reason)

    def end(self, place: int, reason: str) -> None:
        progress = self.progress[place]
        progress.finished = reason
        self.logs[place].append("finished", step=progress.step, reason=reason, best_epoch=progress.best_epoch)

    def close_epoch(self, epoch: int, seconds: float) -> None:
        """Validate the cells that are still trained, keep the best of each, and end those whose patience or epochs are used up."""
        if self.finished:
            return
        task, settings = self.bench.task, self.bench.settings
        sums = self.bench.sums(self.group, self.state.trainable, task.tables["validation"])
        for place, progress in enumerate(self.progress):
            if progress.finished:
                continue
            metrics = task.metrics({name: values[place] for name, values in sums.items()})
            objective = metrics[task.objective]
            own = jax.tree.map(lambda leaf, place=place: np.array(leaf[place]), self.state.trainable)
            if not math.isfinite(objective) or not all(
                np.isfinite(leaf).all() for leaf in jax.tree.leaves(own)
            ):
                self.end_diverged(
                    place,
                    f"the validation {task.objective} became {objective} after epoch {epoch},",
                    self.step - 1,
                )
                continue
            better = progress.best is None or objective < progress.best
            if better:
                progress.best, progress.best_epoch, progress.bad_epochs, progress.best_metrics = (
                    objective,
                    epoch,
                    0,
                    metrics,
                )
                self.best = jax.tree.map(
                    lambda leaf, new, place=place: _with(leaf, place, new), self.best, own
                )
            else:
                progress.bad_epochs += 1
            self._log_epoch(place, epoch, metrics, better, seconds)
            if progress.bad_epochs >= settings.patience:
                self.end(place, f"no better validation {task.objective} for {settings.patience} epochs")
            elif epoch == settings.epochs:
                self.end(place, "all epochs done")

    def _log_epoch(
        self, place: int, epoch: int, metrics: Mapping[str, float], better: bool, seconds: float
    ) -> None:
        progress, windows = self.progress[place], self.streams[place].windows
        record = {
            "epoch": epoch,
            "protocol": self.bench.task.protocol,
            "step": progress.step,
            "train_loss": progress.epoch_loss / windows,
            **{f"validation_{name}": value for name, value in metrics.items()},
            "learning_rate": float(self.schedules[place](progress.step - 1)),
            "best": better,
        }
        progress.epoch_loss = 0.0
        clock = {
            "time": time.time(),
            "seconds": round(seconds, 3),
            "windows_per_second": round(windows / max(seconds, 1e-9), 1),
        }
        self.logs[place].append("epoch", **record, **clock)
        self.reporter.end_epoch({"cell": self.group.cells[place].name, **record, **clock})


def _with(leaf: np.ndarray, place: int, new: np.ndarray) -> np.ndarray:
    changed = leaf.copy()
    changed[place] = new
    return changed


def final_metrics(bench: Bench, trainer: GroupTrainer, split: Split) -> list[dict[str, float] | None]:
    """The metrics of a split for the best tree of every cell, None where it diverged; every table is evaluated once for all lanes."""
    known: dict[int, tuple[WindowTable, dict[str, np.ndarray]]] = {}

    def scored(place: int) -> Callable[[WindowTable], dict[str, np.ndarray]]:
        def score(table: WindowTable) -> dict[str, np.ndarray]:
            if id(table) not in known:
                known[id(table)] = (table, bench.sums(trainer.group, trainer.best, table))
            return {name: values[place] for name, values in known[id(table)][1].items()}

        return score

    def metrics(place: int, progress: CellProgress) -> dict[str, float] | None:
        if progress.diverged:
            return None
        try:
            return bench.task.final_metrics(scored(place), split)
        except OfaError as error:  # of this cell alone: scores that are not finite, say
            progress.diverged, progress.finished = True, str(error)
            return None

    return [metrics(place, progress) for place, progress in enumerate(trainer.progress)]

"""Fit: epochs of chunks, validation, early stopping, checkpoints, an exact resume, a clean stop.

A :class:`Trainer` advances v *lanes* in lockstep: trainings on the same task that differ in their initial
parameters, seed, learning rate or adapter scale. A run is one lane; a sweep (:mod:`ofa_jax.studies.sweep`)
trains several at a time. Each lane has its own order of windows, dropout keys, log and counters, and ends by
its own patience.

A resume always has the same order:

1. restore the newest intact checkpoint: trainable trees, optimizer, best trees, counters, data position;
2. cut every metrics.jsonl back to its length at that time;
3. continue at that position of each lane's index stream, which depends on its seed and the position alone.

A chunk takes about :data:`DISPATCH_SECONDS`, by the time that a step of the last one took, so that progress
is seen and a signal obeyed on slow devices too. Losses are summed step by step in float64 on the host, so
neither the chunk length nor an interruption changes a logged number. Several processes run this loop on the
same numbers, each with its own devices; on what depends on the clock or on a signal they agree at the end of
a chunk (:mod:`ofa_jax.train.processes`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.errors import Interrupted, TrainError
from ofa_jax.tasks.base import Sums
from ofa_jax.train.checkpoints import Checkpoints, Restored
from ofa_jax.train.grad_stats import GradStatsState, as_json, log_fields, sums_of
from ofa_jax.train.lanes import Lane, Progress, column, read_counters, stack, take
from ofa_jax.train.memory import check_room
from ofa_jax.train.processes import max_over_processes, raise_together, restore_on_all
from ofa_jax.train.program import LaneInputs, Program
from ofa_jax.train.progress import SILENT, Reporter
from ofa_jax.train.signals import StopRequest
from ofa_jax.train.step import Params, TrainState, chunk_rows, dropout_key, init_state
from ofa_jax.windows.table import PADDING, WindowTable

DISPATCH_SECONDS = 2.0
"""Longest time of a chunk, unless a single step takes longer."""

ALL_EPOCHS = "all epochs done"
"""Why training ended; it continues if ``train.epochs`` is raised."""

_FIRST_GUESS = 2.0
"""Seconds of a step before one was measured."""


class Trainer:
    """Advances lanes from the first or restored step to their end; for a single run use :func:`fit`.

    Args:
        program: Compiled for at least as many lanes; the others stay idle.
        lanes: What is trained.
        reporter: Progress reporter.
        checkpoints: Where given, the newest one is resumed and new ones are written. With several processes,
            only the main one has them.
        score_initial: Whether the initial tree is validated as well and may remain the best: epoch 0.
    """

    def __init__(
        self,
        program: Program,
        lanes: Sequence[Lane],
        *,
        reporter: Reporter = SILENT,
        checkpoints: Checkpoints | None = None,
        score_initial: bool = False,
    ) -> None:
        self.score_initial = score_initial
        self.program, self.lanes, self.reporter, self.checkpoints = program, lanes, reporter, checkpoints
        self.task, self.settings, self.epoch_steps = program.task, program.settings, program.epoch_steps
        self._slots = [*lanes, *[lanes[-1]] * (program.lanes - len(lanes))]
        self.schedules = [program.schedule(lane.learning_rate) for lane in lanes]
        self.streams = [program.stream(lane.seed) for lane in lanes]
        self.inputs = LaneInputs(
            key=program.layout.place(jnp.stack([dropout_key(lane.seed) for lane in self._slots])),
            learning_rate=column([lane.learning_rate for lane in self._slots]),
            scale=column([lane.scale for lane in self._slots]),
        )
        init = jax.vmap(partial(init_state, optimizer=program.optimizer()))
        self.state: TrainState = program.layout.place(init(self._best()))
        self.step, self.step_seconds, self.request = 0, _FIRST_GUESS, StopRequest()
        self.saved_at = time.monotonic()

    def _best(self) -> Params:
        return stack([lane.best for lane in self._slots])

    @property
    def running(self) -> list[int]:
        """Numbers of the lanes that have not ended."""
        return [number for number, lane in enumerate(self.lanes) if not lane.progress.finished]

    def trainable(self, number: int) -> Params:
        """A lane's current trainable tree, as a copy on the host."""
        return take(self.state.trainable, number)

    def resume(self) -> None:
        """Restore, in the order of the module's docstring."""
        restored = restore_on_all(self.checkpoints, self._arrays())
        newest = "there is no checkpoint"
        if restored:
            newest = f"the newest intact checkpoint is of step {restored.step}"
            for text in restored.skipped:
                self.reporter.notice(text)
            self._load(restored)
        reopened = [lane for lane in self.lanes if self._reopen(lane.progress)]
        if self.checkpoints is not None:
            self._restore_logs(newest)
        if reopened:  # with the length of its log without its end
            self.save()
        if restored and self.running:
            self.reporter.notice(f"resumed at step {self.step}")

    def _reopen(self, progress: Progress) -> bool:
        """Whether a lane that has seen all epochs has more of them now; then it has not ended."""
        more = progress.finished == ALL_EPOCHS and progress.epochs < self.settings.epochs
        if more:
            progress.finished = ""
        return more

    def _restore_logs(self, newest: str) -> None:
        for lane in self.lanes:
            log = f"the metrics.jsonl of {lane.name}" if lane.name else "metrics.jsonl"
            if (reached := lane.log.last_step()) > self.step:
                self.reporter.notice(f"{log} reached step {reached}, but {newest}: repeating the steps since")
            progress = lane.progress
            if lost := lane.log.cut(progress.events_size, progress.step, finished=bool(progress.finished)):
                self.reporter.notice(f"{log} {'; '.join(lost)}")
                if progress.finished and not lane.log.is_finished():
                    self.end(lane, progress.finished)

    def _arrays(self) -> dict[str, Any]:
        """The arrays of a checkpoint, without statistics of gradients; those of a run have no lane axis."""
        state = self.state
        if isinstance(state.opt_state, GradStatsState):
            state = state._replace(opt_state=state.opt_state.inner)
        arrays = {"state": state, "best": self._best()}
        return arrays if self.lanes[0].name else take(arrays, 0)

    def _load(self, restored: Restored) -> None:
        arrays = restored.arrays if self.lanes[0].name else stack([restored.arrays])
        state, sums = arrays["state"], sums_of(self.state.opt_state)
        sizes = {"lanes": len(self.lanes), "epoch_steps": self.epoch_steps}
        width = 0 if sums is None else sums.shape[1]
        found = read_counters(restored.meta, restored.step, gradients=width, **sizes)
        for number, (lane, progress) in enumerate(zip(self.lanes, found, strict=True)):
            lane.progress, lane.best = progress, take(arrays["best"], number)
            if sums is not None and lane.progress.gradients:
                sums[number] = lane.progress.gradients
        self.step = restored.step
        if sums is not None:
            state = state._replace(opt_state=GradStatsState(state.opt_state, sums))
        self.state = self.program.layout.place(state)

    def save(self) -> None:
        """Write a checkpoint, after everything that was logged so far is on disk."""
        self.saved_at = time.monotonic()
        sums = sums_of(self.state.opt_state)
        with raise_together("saving a checkpoint"):
            for number, lane in enumerate(self.lanes):
                lane.progress.events_size = lane.log.sync()
                lane.progress.gradients = [] if sums is None else as_json(sums[number])
            counters = [lane.progress.model_dump() for lane in self.lanes]
            meta = {"cells": counters} if self.lanes[0].name else counters[0]
            if self.checkpoints is not None:
                self.checkpoints.save(self.step, self._arrays(), meta)

    def run(self, request: StopRequest) -> None:
        """Train until every lane has ended or a signal asks for a stop."""
        self.request = request
        settings, windows = self.settings, self.program.windows
        if self.running:
            self.reporter.status("compiling")
            with raise_together("checking memory"):
                self.check_room()
            # no step: compiles the program, so that the first chunk's time is that of its steps
            self.state, _ = self.program.chunk(*self.arguments(0))
            self.check_stop()  # a step may take as long as a compilation
            if self.score_initial and self.step == 0:
                self._score_initial()
        while self.running:
            closed = self.lanes[self.running[0]].progress.epochs
            done = min((self.step - closed * self.epoch_steps) * settings.batch_size, windows)
            self.program.begin_epoch(closed)
            self.reporter.begin(closed + 1, settings.epochs, windows, done)
            began = time.monotonic()
            self.run_epoch((closed + 1) * self.epoch_steps)
            if self.running:
                self.close_epoch(closed + 1, windows - done, time.monotonic() - began)
            self.save()
            self.stop(*max_over_processes(request.signal_number))

    def check_room(self) -> None:
        """Refuse a step that does not fit into memory (:func:`~ofa_jax.train.memory.check_room`)."""
        settings, lanes = self.settings, self.program.lanes
        shardable = settings.parallel == "jit" and jax.device_count() > 1 and not self.lanes[0].name
        windows = min(settings.micro_batch or self.program.rows, self.program.rows)
        check_room(self.program.chunk, self.arguments(0), windows=windows, shardable=shardable, lanes=lanes)

    def run_epoch(self, end: int) -> None:
        """Train to the step that ends the epoch, saving when it is time or a signal asks for it."""
        while self.running and self.step < end:
            began, first = time.monotonic(), self.step
            self.run_chunk(self._chunk_steps())
            now = time.monotonic()
            overdue = now - self.saved_at > 60 * self.settings.checkpoint_minutes
            overdue |= any(lane.log.failure is not None for lane in self.lanes)
            microseconds = min(1e6 * (now - began) / (self.step - first), 1e9)
            agreed = max_over_processes(self.request.signal_number, overdue, math.ceil(microseconds))
            signal_number, due, microseconds = agreed
            self.step_seconds = max(microseconds, 1) / 1e6
            if (signal_number or due) and self.step < end:
                self._check_and_save()
                self.stop(signal_number)

    def check_stop(self) -> None:
        """Save and end here if a signal asked for it; called between batches of an evaluation."""
        (signal_number,) = max_over_processes(self.request.signal_number)
        if signal_number:
            self._check_and_save()
            raise self._interrupted(signal_number)

    def _check_and_save(self) -> None:
        for number in self.running:
            self._check_finite(number, self.trainable(number))
        self.save()

    def stop(self, signal_number: int) -> None:
        """End here if a signal asked for it and there is something left to train."""
        if signal_number and self.running:
            raise self._interrupted(signal_number)

    def _interrupted(self, signal_number: int) -> Interrupted:
        (saved,) = max_over_processes(self.checkpoints is not None)  # only the main process has them
        return Interrupted(signal_number, self.step, saved=bool(saved))

    def _chunk_steps(self) -> int:
        """Steps of the next chunk, which ends in time, with the epoch and where gradients are logged."""
        quick = max(int(min(DISPATCH_SECONDS / self.step_seconds, self.settings.chunk)), 1)
        return min(quick, self._most_steps())

    def _most_steps(self) -> int:
        logged = self.settings.gradient_log or self.epoch_steps
        left = self.epoch_steps - self.step % self.epoch_steps
        return min(self.settings.chunk, left, logged - self.step % logged)

    def run_chunk(self, steps: int) -> None:
        """Dispatch so many steps of all lanes and account for them."""
        first, running = self.step, self.running
        index = [stream.batches(first, first + steps) for stream in self.streams]
        self.state, losses = self.program.chunk(*self.arguments(steps, index))
        self.step += steps
        following = self.step + self._most_steps()
        for stream in self.streams:  # the devices are busy now, so the host prepares the next chunk's order
            stream.prepare(self.step, following)
        losses_vk = np.asarray(losses)[:, :steps].astype(np.float64)
        for number in running:
            self._account(number, first, losses_vk[number], (index[number] >= 0).sum(axis=1))
        if self.step % (self.settings.gradient_log or math.inf) == 0:
            self._log_gradients()
        self.reporter.advance(int((index[running[0]] >= 0).sum()), float(losses_vk[running].mean()))

    def arguments(self, steps: int, index: Sequence[np.ndarray] = ()) -> tuple[Any, ...]:
        """The chunk's arguments for so many steps, with each lane's batches; without them, only padding."""
        program, place = self.program, self.program.layout.place
        rows = chunk_rows(min(self.settings.chunk, self.epoch_steps))
        filled = np.full((program.lanes, rows, program.rows), PADDING, np.int32)
        for number, batches in enumerate(index):
            filled[number, :steps, : batches.shape[1]] = batches
        inputs = self.inputs
        if program.lanes > 1:
            inputs = inputs._replace(active=np.isin(np.arange(program.lanes), self.running))
        return program.frozen, self.state, program.buffer, program.table, place(filled), steps, inputs

    def _account(self, number: int, first: int, losses_k: np.ndarray, windows_k: np.ndarray) -> None:
        """Add a chunk's losses to a lane's counters, and log the mean loss every ``log_every`` steps."""
        lane, every = self.lanes[number], self.settings.log_every
        progress = lane.progress
        for step, loss in enumerate(losses_k.tolist(), start=first):
            if not math.isfinite(loss):
                self._diverged(number, f"the loss became {loss}", step)
                return
            progress.step = step + 1
            progress.epoch_loss += loss * int(windows_k[step - first])
            progress.logged_loss += loss
            if progress.step % every == 0:
                rate, epoch = float(self.schedules[number](step)), step // self.epoch_steps + 1
                event = {"epoch": epoch, "loss": progress.logged_loss / every, "learning_rate": rate}
                lane.log.append("train", step=progress.step, **event)
                progress.logged_loss = 0.0

    def _log_gradients(self) -> None:
        sums, epoch = sums_of(self.state.opt_state), (self.step - 1) // self.epoch_steps + 1
        for number in self.running:
            lane = self.lanes[number]
            fields = log_fields(as_json(sums[number]), lane.best, self.settings.clip_norm)
            lane.log.append("gradient", step=self.step, epoch=epoch, **fields)
        cleared = self.program.layout.place(np.zeros_like(sums))
        self.state = self.state._replace(opt_state=self.state.opt_state._replace(sums=cleared))

    def _diverged(self, number: int, what: str, step: int) -> None:
        """End a lane whose numbers are no longer finite at a step, from 0; for a run this is an error."""
        lane, rate = self.lanes[number], float(self.schedules[number](step))
        reason = f"{what} at step {step + 1} (learning rate {rate:.3g})"
        if lane.name:
            lane.progress.diverged = True
            self.reporter.notice(f"{lane.name} ended: {reason}")
            self.end(lane, reason)
            return
        kept = self.checkpoints.steps() if self.checkpoints else []
        saved = f"The last good checkpoint is at step {kept[-1]}" if kept else "Nothing was saved yet"
        advice = "use another folder and a lower train.learning_rate, or check the data for extreme values"
        raise TrainError(reason, where="training", fix=f"{saved}; {advice}")

    def _check_finite(self, number: int, trainable: Params) -> None:
        # a finite loss may still give an infinite gradient; such parameters must not be kept
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trainable)):
            self._diverged(number, "the trained parameters are no longer finite", self.step - 1)

    def end(self, lane: Lane, reason: str) -> None:
        """End a lane."""
        progress = lane.progress
        progress.finished = reason
        lane.log.append("finished", step=progress.step, reason=reason, best_epoch=progress.best_epoch)

    def close_epoch(self, epoch: int, windows: int, seconds: float) -> None:
        """Validate after an epoch, of which this process trained ``windows`` windows in ``seconds``."""
        table = self.task.tables["validation"]
        what = f"epoch {epoch}/{self.settings.epochs}, validation"
        sums = self._evaluate(table, self.state.trainable, what)
        speed = round(windows / max(seconds, 1e-9), 1)
        clock = {"time": time.time(), "seconds": round(seconds, 3), "windows_per_second": speed}
        for number in self.running:
            self._close_lane(number, epoch, self.task.metrics(sums[number]), clock)

    def _score_initial(self) -> None:
        """Validate the initial trees, which are the best until an epoch is better."""
        sums = self._evaluate(self.task.tables["validation"], self.state.trainable, "before training")
        for number in self.running:
            lane, metrics = self.lanes[number], self.task.metrics(sums[number])
            lane.progress.best, lane.progress.best_metrics = metrics[self.task.objective], metrics
            lane.log.append("initial", step=0, **{f"validation_{name}": metrics[name] for name in metrics})
            listed = [f"validation {name} {value:.4f}" for name, value in metrics.items()]
            self.reporter.notice(f"before training: {'  '.join(listed)}")
            lane.keep()

    def evaluate_best(self, table: WindowTable) -> Sequence[Sums]:
        """For each lane the task's sums of every window with its best tree, ``{name: [windows, …]}``."""
        return self._evaluate(table, self._best(), "evaluation")

    def _evaluate(self, table: WindowTable, trainable: Params, what: str) -> Sequence[Sums]:
        def between(done: int) -> None:
            self.check_stop()
            self.reporter.status(f"{what} {done:,}/{table.size:,}")

        return self.program.evaluate(table, trainable, self.inputs.scale, between=between)

    def _close_lane(self, number: int, epoch: int, metrics: dict[str, float], clock: dict[str, Any]) -> None:
        """Keep the best tree, log the epoch, and end the lane if its patience or its epochs are used up."""
        lane, settings, name = self.lanes[number], self.settings, self.task.objective
        progress, objective, trainable = lane.progress, metrics[name], self.trainable(number)
        if not math.isfinite(objective):
            what = f"the validation {name} became {objective} after epoch {epoch},"
            self._diverged(number, what, self.step - 1)
        else:
            self._check_finite(number, trainable)
        if progress.finished:
            return
        better = progress.best is None or objective < progress.best
        if better:
            progress.best, progress.best_epoch, progress.bad_epochs = objective, epoch, 0
            progress.best_metrics, lane.best = metrics, trainable
        else:
            progress.bad_epochs += 1
        record = {
            "epoch": epoch,
            "protocol": self.task.protocol,
            "step": progress.step,
            "train_loss": progress.epoch_loss / self.program.windows,
            **{f"validation_{name}": value for name, value in metrics.items()},
            "learning_rate": float(self.schedules[number](progress.step - 1)),
            "best": better,
        }
        progress.epoch_loss = 0.0
        lane.log.append("epoch", **record, **clock)
        self.reporter.end_epoch(({"cell": lane.name} if lane.name else {}) | record | clock)
        if better:
            lane.keep()
        if progress.bad_epochs >= settings.patience:
            self.end(lane, f"no better validation {name} for {settings.patience} epochs")
        elif epoch == settings.epochs:
            self.end(lane, ALL_EPOCHS)

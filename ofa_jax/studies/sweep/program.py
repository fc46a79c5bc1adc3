"""Adapters of different rank in one program: padded to one width, trained as lanes.

**Padding.** Adapters of ranks r ≤ w are brought to one width w: ``a: [in, r]`` gets w − r columns of zeros,
``b: [r, out]`` as many rows of zeros. They change no number and never move, whatever else is trained, dropped
out or clipped. For a dense layer with input ``x`` (after dropout), output gradient ``g`` and scale ``s``, and
padded column j:

- forward, ``s (x a) b`` receives ``s (x a_j) b_j``, where ``a_j`` and ``b_j`` are zeros: nothing is added;
- backward, ``∂a_j = s xᵀ (g b_jᵀ)`` has the factor ``b_j`` and ``∂b_j = s (x a_j)ᵀ g`` the factor ``x a_j``:
  sums of products with zero, so exactly zero while x and g are finite. In an embedding a row of ``a``
  replaces ``x a``, with the same result;
- a zero gradient leaves the global norm as it is, and clipping multiplies it by a number;
- the moments of Adam and RAdam of gradients that were always zero are zero, and so are their updates.

By induction over the steps the zeros stay. Only the order in which a product over w columns is summed may
differ from that over r columns: rounding.

**Buckets.** Padding costs time, so ranks share a width within a bucket (:func:`bucket`), and every bucket has
its own program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.adapters.rslora import Adapters, init_adapters
from ofa_jax.build import Model, lora_config
from ofa_jax.config.schema import TrainConfig
from ofa_jax.data.splits import Split
from ofa_jax.errors import OfaError
from ofa_jax.tasks.base import Sums, Task
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.devices import SINGLE
from ofa_jax.train.events import EventLog
from ofa_jax.train.lanes import Lane
from ofa_jax.train.loop import Reporter, Trainer
from ofa_jax.train.program import Program, resolve_auto_batch_sizes
from ofa_jax.train.step import Params
from ofa_jax.windows.table import WindowTable

if TYPE_CHECKING:
    from ofa_jax.studies.sweep.cells import Cell, Group

SMALLEST_BUCKET, BUCKET_FACTOR = 16, 8


def bucket(rank: int) -> int:
    """The largest rank that shares a program with this one: 16, 128, 1024, …"""
    limit = SMALLEST_BUCKET
    while limit < rank:
        limit *= BUCKET_FACTOR
    return limit


def padded(adapters: Adapters, width: int) -> Adapters:
    """Adapters with zero columns of ``a`` and zero rows of ``b`` up to a width."""

    def pad(factors: dict[str, Any]) -> dict[str, Any]:
        columns, rows = ((0, 0), (0, width - factors["a"].shape[1])), ((0, width - len(factors["b"])), (0, 0))
        return {"a": np.pad(factors["a"], columns), "b": np.pad(factors["b"], rows)}

    return {path: pad(factors) for path, factors in adapters.items()}


def cut(adapters: Adapters, rank: int) -> Adapters:
    """The inverse of :func:`padded`: the first ``rank`` columns of ``a`` and rows of ``b``."""
    return {path: {"a": both["a"][:, :rank], "b": both["b"][:rank]} for path, both in adapters.items()}


class SweepPrograms:
    """The programs of a sweep by number of lanes; data and frozen tree are on the device once.

    Args:
        model: The network and its frozen tree; the adapters are each cell's own.
        task: Windows, loss and metrics.
        settings: How cells are trained; seed and learning rate are each cell's own.
    """

    def __init__(self, model: Model, task: Task, settings: TrainConfig) -> None:
        self.model, self.settings = model, resolve_auto_batch_sizes(settings, model.network)
        buffer: Any = jnp.asarray(task.buffer)
        self._task = replace(task, buffer=buffer)
        self._frozen = jax.device_put(model.frozen)
        self._programs: dict[int, Program] = {}

    def program(self, lanes: int) -> Program:
        """Compiled once per bucket: jax keeps a program per shape of the adapters."""
        if lanes not in self._programs:
            given = (self.model.predict, self._task, self._frozen, self.settings)
            self._programs[lanes] = Program(*given, lanes=lanes, layout=SINGLE)
        return self._programs[lanes]

    def initial(self, cell: Cell) -> Params:
        """The trainable tree that the cell starts from, as a run with its settings would."""
        settings = cell.experiment.adapters
        adapters = init_adapters(self.model.targets, lora_config(settings), seed=settings.seed)
        return {"adapters": adapters, "base": self.model.trainable["base"]}

    def trainer(
        self, group: Group, logs: Sequence[EventLog], checkpoints: Checkpoints, reporter: Reporter
    ) -> Trainer:
        """A trainer of a group's cells, which writes to their logs."""
        lanes = []
        for cell, log in zip(group.cells, logs, strict=True):
            train, initial = cell.experiment.train, self.initial(cell)
            best = {**initial, "adapters": padded(initial["adapters"], group.width)}
            scale = lora_config(cell.experiment.adapters).scale
            lanes.append(Lane(best, train.seed, train.learning_rate, scale, cell.name, log))
        return Trainer(self.program(group.lanes), lanes, reporter=reporter, checkpoints=checkpoints)


def final_metrics(trainer: Trainer, split: Split) -> list[dict[str, float] | None]:
    """The metrics of a split for each lane's best tree, None where it diverged; evaluated together."""
    known: dict[int, tuple[WindowTable, Sequence[Sums]]] = {}

    def score(number: int) -> Callable[[WindowTable], Sums]:
        def sums(table: WindowTable) -> Sums:
            if id(table) not in known:
                known[id(table)] = (table, trainer.evaluate_best(table))
            return known[id(table)][1][number]

        return sums

    found: list[dict[str, float] | None] = []
    for number, lane in enumerate(trainer.lanes):
        metrics = None
        if not lane.progress.diverged:
            try:
                metrics = trainer.task.final_metrics(score(number), split)
            except OfaError as error:  # of this lane alone, such as scores that are not finite
                lane.progress.diverged, lane.progress.finished = True, str(error)
        found.append(metrics)
    return found

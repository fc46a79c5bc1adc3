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

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.adapters.rslora import Adapters, init_adapters
from ofa_jax.build import Model, lora_config
from ofa_jax.config.schema import TrainConfig
from ofa_jax.errors import OfaError
from ofa_jax.tasks.base import Sums, Task
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.devices import SINGLE
from ofa_jax.train.events import EventLog
from ofa_jax.train.lanes import Lane
from ofa_jax.train.loop import Trainer
from ofa_jax.train.program import Program, resolve_auto_batch_sizes
from ofa_jax.train.progress import Reporter
from ofa_jax.windows.table import WindowTable

if TYPE_CHECKING:
    from ofa_jax.studies.sweep.cells import Group

SMALLEST_BUCKET, BUCKET_FACTOR = 16, 8


def bucket(rank: int) -> int:
    """The largest rank that shares a program with this one: 16, 128, 1024, …"""
    limit = SMALLEST_BUCKET
    while limit < rank:
        limit *= BUCKET_FACTOR
    return limit


def padded(adapters: Adapters, width: int) -> Adapters:
    """Adapters with zero columns of ``a`` and zero rows of ``b`` up to a width."""
    found = {}
    for path, both in adapters.items():
        more = (0, width - len(both["b"]))
        found[path] = {"a": np.pad(both["a"], ((0, 0), more)), "b": np.pad(both["b"], (more, (0, 0)))}
    return found


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

    def trainer(
        self, group: Group, logs: Sequence[EventLog], checkpoints: Checkpoints, reporter: Reporter
    ) -> Trainer:
        """A trainer of a group's cells, each from its run's initial adapters, which writes to their logs."""
        lanes = []
        for cell, log in zip(group.cells, logs, strict=True):
            settings, train = cell.experiment.adapters, cell.experiment.train
            lora = lora_config(settings)
            adapters = init_adapters(self.model.targets, lora, seed=settings.seed)
            best = {"adapters": padded(adapters, group.width), "base": self.model.trainable["base"]}
            lanes.append(Lane(best, train.seed, train.learning_rate, lora.scale, cell.name, log))
        return Trainer(self.program(group.lanes), lanes, reporter=reporter, checkpoints=checkpoints)


def final_metrics(trainer: Trainer) -> list[dict[str, float]]:
    """The metrics of the test part for each lane's best tree; none where it diverged."""
    known: dict[int, Sequence[Sums]] = {}  # evaluated together, by table; a task keeps its tables

    def sums(number: int, table: WindowTable) -> Sums:
        if id(table) not in known:
            known[id(table)] = trainer.evaluate_best(table)
        return known[id(table)][number]

    found: list[dict[str, float]] = [{} for _ in trainer.lanes]
    for number, lane in enumerate(trainer.lanes):
        if not lane.progress.diverged:
            try:
                found[number] = trainer.task.final_metrics(partial(sums, number), "test")
            except OfaError as error:  # of this lane alone, such as scores that are not finite
                lane.progress.diverged, lane.progress.finished = True, str(error)
    return found

"""Lanes: the trainings that a Trainer advances together, their counters, and their trees side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import numpy as np
from pydantic import ConfigDict, Field

from ofa_jax.errors import CheckpointError
from ofa_jax.files import DAMAGED, Record, parse_record
from ofa_jax.train.events import EventLog
from ofa_jax.train.processes import raise_together
from ofa_jax.train.step import Params

Count = Annotated[int, Field(ge=0)]


class Progress(Record):
    """The counters of a lane, which a checkpoint keeps as JSON."""

    model_config = ConfigDict(frozen=False)

    step: Count = 0
    best: float | None = None
    best_epoch: Count = 0
    bad_epochs: Count = 0
    epoch_loss: float = 0.0
    logged_loss: float = 0.0
    events_size: Count = 0
    finished: str = ""
    diverged: bool = False
    best_metrics: dict[str, float] = Field(default_factory=dict)
    gradients: list[float] = Field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Number of epochs that were validated."""
        return self.best_epoch + self.bad_epochs


class _Cells(Record):
    cells: list[Progress]


def read_counters(
    meta: Mapping[str, Any], step: int, *, lanes: int, epoch_steps: int, gradients: int
) -> list[Progress]:
    """The counters of each lane from the ``meta`` of a step's checkpoint, which for a run are its own.

    Args:
        meta: As saved.
        step: The checkpoint's step.
        lanes: Number of lanes.
        epoch_steps: Steps of an epoch.
        gradients: How many sums of gradients each lane has; 0 where they are not logged.

    Raises:
        CheckpointError: A field is missing, mistyped or out of range, or does not agree with the others.
    """
    where = f"checkpoints/{step}/checkpoint.json, meta"
    if "cells" in meta:
        found = parse_record(meta, _Cells, where=where).cells
    else:
        found = [parse_record(meta, Progress, where=where)]
    what = f"counters of {len(found)} cells, not of {lanes}" if len(found) != lanes else ""
    for own in found:
        into = step - own.epochs * epoch_steps  # all of them where a save came before the validation
        if not own.finished and not (own.step == step and 0 <= into <= epoch_steps):
            what = f"step {own.step} of epoch {own.epochs + 1} is not step {step}, at {epoch_steps} an epoch"
        if gradients and len(own.gradients) not in (0, gradients):
            what = f"{len(own.gradients)} sums of gradients, not {gradients}"
    if what:
        raise CheckpointError(what, where=where, fix=DAMAGED)
    return found


@dataclass
class Lane:
    """One of the trainings that a Trainer advances together.

    Attributes:
        best: The trainable tree, NumPy leaves: the initial one, later the best one on validation.
        seed: Of the order of batches and of dropout.
        learning_rate: At the start; default: that of the settings.
        scale: Of the adapters; default: the network function's own.
        name: Of a sweep's cell, which ends alone if it diverges; a run has none and raises an error.
        log: Where events are written.
        keep_best: Called with the best tree whenever validation improves.
        progress: The counters.
    """

    best: Params
    seed: int
    learning_rate: float | None = None
    scale: float | None = None
    name: str = ""
    log: EventLog = field(default_factory=lambda: EventLog(None))
    keep_best: Callable[[Params, Progress], None] | None = None
    progress: Progress = field(default_factory=Progress)

    def keep(self) -> None:
        """Hand over the best tree; with several processes only the main one keeps it, and all wait."""
        with raise_together("writing the bundle"):
            if self.keep_best is not None:
                self.keep_best(self.best, self.progress)


def stack(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one tree with leaves ``[v, …]``, on the host."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def take(tree: Any, number: int) -> Any:
    """A lane of :func:`stack`, as a copy on the host."""
    return jax.tree.map(lambda leaf: np.array(np.asarray(leaf)[number]), tree)


def column(values: Sequence[float | None]) -> Any:
    """One number per lane, ``[v]`` float32; None where all have the settings'."""
    return None if values[0] is None else np.asarray(values, np.float32)

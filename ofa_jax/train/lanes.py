"""Lanes: the trainings that a Trainer advances together, their counters, and their trees side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from ofa_jax.train.events import EventLog
from ofa_jax.train.processes import raise_together
from ofa_jax.train.step import Params


@dataclass
class Progress:
    """The counters of a lane, which a checkpoint keeps as JSON."""

    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    bad_epochs: int = 0
    epoch_loss: float = 0.0
    logged_loss: float = 0.0
    events_size: int = 0
    finished: str = ""
    diverged: bool = False
    best_metrics: dict[str, float] = field(default_factory=dict)
    gradients: list[float] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Number of epochs that were validated."""
        return self.best_epoch + self.bad_epochs


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

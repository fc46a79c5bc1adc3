"""What a task is: windows, network, loss and metrics as one frozen record. Loop, step and checkpoints know nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from ofa_jax.config import Protocol, TaskConfig
from ofa_jax.data.splits import Scaler, Split
from ofa_jax.errors import DataError
from ofa_jax.model import trees
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.table import WindowSpec, WindowTable

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Sums = Mapping[str, np.ndarray]
"""What an evaluation gives: ``{name: [windows, …]}``, in the order of a table."""
Score = Callable[[WindowTable], Sums]
"""Evaluates a model on a table."""


@dataclass(frozen=True)
class Task:
    """A task on one data set.

    Attributes:
        name: As in ``task.name``.
        spec: What all windows have in common.
        buffer: The scaled series, end to end, ``[rows, channels]`` float32.
        tables: The windows of each split.
        loss: ``(prediction, batch) -> (sum, count)``; the training loss is their ratio.
        sums: ``(prediction, batch) -> {name: [b, …]}``, what is kept of every window.
        metrics: ``{name: [windows, …]} -> {metric: value}``.
        objective: The metric that validation chooses by; smaller is better.
        protocol: Whose practice splits, batches and thresholds follow (protocol §5); every metric is told with it.
        corrupt: ``(batch, keys_b) -> batch``, where points are hidden before the network sees the windows.
        drop_last: Whether an epoch's last batch is left out where it is not full.
        groups: Borders ``[groups + 1]`` of groups of training windows of which every epoch sees one each, or None.
        report: ``(score, split) -> {metric: value}`` where a split's final metrics need more than its own windows (a threshold
            from training scores); None takes ``metrics`` of the split's windows.
    """

    name: str
    spec: WindowSpec
    buffer: np.ndarray
    tables: Mapping[Split, WindowTable]
    loss: Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
    sums: Callable[[Any, Batch], dict[str, jax.Array]]
    metrics: Callable[[Sums], dict[str, float]]
    objective: str
    protocol: Protocol = "strict"
    corrupt: Callable[[Batch, jax.Array], Batch] | None = None
    drop_last: bool = False
    groups: np.ndarray | None = None
    report: Callable[[Score, Split], dict[str, float]] | None = None

    def final_metrics(self, score: Score, split: Split) -> dict[str, float]:
        """The metrics of a split that go into tables."""
        return self.metrics(score(self.tables[split])) if self.report is None else self.report(score, split)


@dataclass(frozen=True)
class TaskData:
    """A task with what else was learnt from its data.

    Attributes:
        task: Windows, loss and metrics.
        settings: The task's settings, completed with the data's own numbers (channels, classes).
        scaler: What standardised the series; None where they are read as they are.
        season: Steps of the main cycle; 1 where there is none.
        notices: What a person should know, one line each.
        meta: What a bundle says of the data besides: names of classes, frequency.
        labels: Arrays besides the buffer that results hang on, by name.
        naive: Methods that need neither windows nor training: ``name -> (split -> metrics)``, None for a split they cannot tell.
    """

    task: Task
    settings: TaskConfig
    scaler: Scaler | None
    season: int
    notices: tuple[str, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    naive: Mapping[str, Callable[[Split], dict[str, float] | None]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """The sha256 over everything that was read, so that a run notices when its data changed."""
        return trees.fingerprint([("buffer", self.task.buffer), *sorted(self.labels.items())])


def whole_batches(table: WindowTable, batch_size: int, *, protocol: Protocol, where: str) -> WindowTable:
    """A table to evaluate: every window, or under the published protocol all but those of a last batch that is not full (§5 row 6).

    Raises:
        DataError: No full batch is left.
    """
    if protocol == "strict":
        return table
    kept = table.size - table.size % batch_size
    if not kept:
        raise DataError(
            f"{table.size} windows make no full batch of {batch_size}, and the published protocol drops the others",
            where=where,
            fix="Take a smaller train.batch_size, or protocol: strict",
        )
    return WindowTable(*(column[:kept] for column in table))

"""What a task is: windows, network, loss and metrics as one frozen record. Loop, step and checkpoints know nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ofa_jax.data.splits import Split
from ofa_jax.data.windows import Batch, WindowSpec, WindowTable

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """A task on one data set.

    Attributes:
        name: As in ``task.name``.
        spec: What all windows have in common.
        buffer: The scaled series, end to end, ``[rows, channels]`` float32.
        tables: The windows of each split.
        loss: ``(prediction, batch) -> (sum, count)``; the training loss is their ratio.
        sums: ``(prediction, batch) -> {name: [b]}``, what is added up over windows.
        metrics: ``{name: [windows]} -> {metric: value}``.
        objective: The metric that validation chooses by; smaller is better.
    """

    name: str
    spec: WindowSpec
    buffer: np.ndarray
    tables: Mapping[Split, WindowTable]
    loss: Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
    sums: Callable[[Any, Batch], dict[str, jax.Array]]
    metrics: Callable[[Mapping[str, np.ndarray]], dict[str, float]]
    objective: str

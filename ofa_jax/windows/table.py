"""The window table: where the windows of a data set lie in its buffer.

The frames of a data set are concatenated in one float32 buffer ``[rows, channels]``. A **window** is a row of
a table that points into it: its first observed row, one channel or all, its observed input and target steps,
and an id. That represents overlapping forecasting windows, thousands of short series and labeled cases alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

ALL_CHANNELS = -1
"""In a table's ``channel`` column: the window takes every channel."""

PADDING = -1
"""In a batch's index: a row that is no window; its weight is 0."""


class WindowTable(NamedTuple):
    """One row per window; every column is ``[windows]`` int32, in NumPy on the host or in jax on a device.

    Attributes:
        first: Buffer row of the first observed input step.
        channel: Channel of a univariate window, or :data:`ALL_CHANNELS`.
        x_valid: Observed input steps, at most the input length; the rest is padded (:class:`WindowSpec`).
        y_valid: Observed target steps, at most the horizon; they follow the observed input steps.
        window_id: Its name in outputs (place in the protocol's order, number of the series or case).
        label: Class of the window, or -1.
    """

    first: Any
    channel: Any
    x_valid: Any
    y_valid: Any
    window_id: Any
    label: Any

    @property
    def size(self) -> int:
        """Number of windows."""
        return len(self.first)

    @classmethod
    def of(
        cls,
        first: np.ndarray,
        *,
        x_valid: Any,
        y_valid: Any = 0,
        channel: Any = ALL_CHANNELS,
        window_id: Any = None,
        label: Any = -1,
    ) -> WindowTable:
        """A table on the host; numbers are repeated for every window, ids count from 0 by default."""
        ids = np.arange(len(first)) if window_id is None else window_id
        columns = (first, channel, x_valid, y_valid, ids, label)
        return cls(*(np.broadcast_to(column, len(first)).astype(np.int32) for column in columns))

    def take(self, rows: Any) -> WindowTable:
        """The windows of some rows: an index array, a mask or a slice."""
        return WindowTable(*(column[rows] for column in self))


@dataclass(frozen=True)
class WindowSpec:
    """What all windows of a table have in common.

    Attributes:
        input_length: Input steps, L.
        horizon: Target steps, H; 0 where the task has none.
        univariate: Whether each window is one channel (then batches have ``c = 1``).
        align: Alignment of short inputs: ``end`` pads before them (forecasting), ``start`` after them.
        labelled: Whether the target is the window's class label instead of steps.
        hide_filled: Whether filled values are masked in the input as well; always in the target.
    """

    input_length: int
    horizon: int
    univariate: bool = True
    align: Literal["start", "end"] = "end"
    labelled: bool = False
    hide_filled: bool = False


def sliding_windows(
    rows: tuple[int, int],
    *,
    input_length: int,
    horizon: int,
    channels: int,
    univariate: bool = True,
    step: int = 1,
) -> WindowTable:
    """Every complete window of a stretch of rows; univariate ones in channel-major order (protocol §1.1).

    Args:
        rows: First row and the row after the last.
        input_length: L.
        horizon: H; may be 0.
        channels: Number of channels of the buffer.
        univariate: One window per channel and start, in that order; otherwise one per start with all of them.
        step: Rows from one start to the next.
    """
    starts = np.arange(rows[0], rows[1] - input_length - horizon + 1, step)
    columns = np.arange(channels) if univariate else np.array([ALL_CHANNELS])
    return WindowTable.of(
        np.tile(starts, len(columns)),
        channel=np.repeat(columns, len(starts)),
        x_valid=input_length,
        y_valid=horizon,
    )


def lay_end_to_end(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Frames ``[T_i, C]`` as one float32 buffer ``[rows, C]``, and the first row of each, ``[frames]``."""
    first = np.cumsum([0, *(len(part) for part in parts)])[:-1]
    return np.concatenate(parts).astype(np.float32, copy=False), first

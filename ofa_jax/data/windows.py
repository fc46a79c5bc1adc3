"""The window table, the batch record, the gathering of windows on the device, and the one global order of batches.

The frames of a data set lie end to end in one float32 buffer ``[rows, channels]``. A **window** is a row of a table that points into
it: its first observed row, one channel or all, how many of its input and target steps are observed, and an id. That is enough for
overlapping forecasting windows, thousands of short series, cases of unequal length and labelled cases alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.errors import DataError

ALL_CHANNELS = -1
"""In a table's ``channel`` column: the window takes every channel."""

PADDING = -1
"""In a batch's index: a row that is no window; its weight is 0."""


class WindowTable(NamedTuple):
    """One row per window; every column is ``[windows]`` int32, in NumPy on the host or in jax on a device.

    Attributes:
        first: Buffer row of the first observed input step.
        channel: Channel of a univariate window, or :data:`ALL_CHANNELS`.
        x_valid: Observed input steps, at most the input length; the missing ones are padded (see :class:`WindowSpec`).
        y_valid: Observed target steps, at most the horizon; they follow the observed input steps.
        window_id: What the window is called in outputs (its place in the protocol's order, a series or case number).
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
        return len(self.first)


@dataclass(frozen=True)
class WindowSpec:
    """What all windows of a table have in common.

    Attributes:
        input_length: Input steps, L.
        horizon: Target steps, H; 0 where the task has none.
        univariate: Whether each window is one channel (then batches have ``c = 1``).
        align: Where short inputs stand: ``end`` pads before them (a forecast goes on from the last value), ``start`` after them.
        labelled: Whether the target is the window's class label instead of steps.
    """

    input_length: int
    horizon: int
    univariate: bool = True
    align: Literal["start", "end"] = "end"
    labelled: bool = False


class Batch(NamedTuple):
    """What every task's network, loss and metrics read.

    Attributes:
        x: Input ``[b, t, c]`` float32, 0 where padded.
        y: Target ``[b, h, c]`` float32, 0 where missing; class labels ``[b]`` int32 where windows are labelled.
        x_mask: ``[b, t, c]``, True where ``x`` is observed.
        y_mask: Like ``y``, True where it counts.
        weight: ``[b]`` float32, 1 for a window and 0 for a row that only fills the batch.
        window_id: ``[b]`` int32, :data:`PADDING` for a row that only fills the batch.
    """

    x: jax.Array
    y: jax.Array
    x_mask: jax.Array
    y_mask: jax.Array
    weight: jax.Array
    window_id: jax.Array


def sliding_windows(
    rows: tuple[int, int],
    *,
    input_length: int,
    horizon: int,
    channels: int,
    univariate: bool = True,
    step: int = 1,
    source: str = "data",
) -> WindowTable:
    """Every complete window of a stretch of rows; univariate ones in channel-major order (protocol §1.1).

    Args:
        rows: First row and the row after the last.
        input_length: L.
        horizon: H; may be 0.
        channels: Number of channels of the buffer.
        univariate: One window per start and channel, index = (channel, start); otherwise one per start with all channels.
        step: Rows from one start to the next.
        source: Named in the error.

    Raises:
        DataError: Fewer rows than one window needs.
    """
    span = input_length + horizon
    starts = np.arange(rows[0], rows[1] - span + 1, step, dtype=np.int32)
    if not len(starts):
        raise DataError(
            f"{rows[1] - rows[0]} rows hold no window of {input_length} input and {horizon} target steps",
            where=source,
            fix=f"At least {span} rows are needed in this part; shorten task.input_length or task.horizon, or bring more rows",
        )
    columns = np.arange(channels, dtype=np.int32) if univariate else np.array([ALL_CHANNELS], np.int32)
    count = len(columns) * len(starts)
    return WindowTable(
        first=np.tile(starts, len(columns)),
        channel=np.repeat(columns, len(starts)),
        x_valid=np.full(count, input_length, np.int32),
        y_valid=np.full(count, horizon, np.int32),
        window_id=np.arange(count, dtype=np.int32),
        label=np.full(count, -1, np.int32),
    )


def lay_end_to_end(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Frames ``[T_i, C]`` as one float32 buffer ``[rows, C]``, and the first row of each, ``[frames]``."""
    lengths = [len(part) for part in parts]
    return np.concatenate(parts).astype(np.float32, copy=False), np.concatenate(
        [[0], np.cumsum(lengths)[:-1]]
    ).astype(np.int64)


def gather(buffer: jax.Array, table: WindowTable, index: jax.Array, spec: WindowSpec) -> Batch:
    """The windows ``index`` of a table as a batch, gathered where the buffer lies; pure and traceable.

    Args:
        buffer: ``[rows, channels]`` float32.
        table: Columns as arrays on the same device.
        index: ``[b]`` int32 rows of the table; :data:`PADDING` gives a row of weight 0.
        spec: What the windows have in common.
    """
    real = index >= 0
    row = WindowTable(*(jnp.take(jnp.asarray(column), jnp.maximum(index, 0), axis=0) for column in table))
    channels = 1 if spec.univariate else buffer.shape[1]

    def take(rows_bt: jax.Array, valid_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows_bt = jnp.clip(rows_bt, 0, buffer.shape[0] - 1)
        values = buffer[rows_bt, row.channel[:, None]][..., None] if spec.univariate else buffer[rows_bt]
        mask = jnp.broadcast_to((valid_bt & real[:, None])[..., None], (*rows_bt.shape, channels))
        return jnp.where(mask, values, 0), mask

    steps = jnp.arange(spec.input_length)[None]
    padded = (
        spec.input_length - row.x_valid[:, None]
        if spec.align == "end"
        else jnp.zeros_like(row.x_valid[:, None])
    )
    offset = steps - padded
    x, x_mask = take(row.first[:, None] + offset, (offset >= 0) & (offset < row.x_valid[:, None]))
    ahead = jnp.arange(spec.horizon)[None]
    y, y_mask = take((row.first + row.x_valid)[:, None] + ahead, ahead < row.y_valid[:, None])
    if spec.labelled:
        y, y_mask = row.label, real & (row.label >= 0)
    weight = real.astype(jnp.float32)
    return Batch(x, y, x_mask, y_mask, weight, jnp.where(real, row.window_id, PADDING))


class IndexStream:
    """The one order in which all processes see the windows: shuffled per epoch, cut into batches, repeated.

    Batches are numbered from 0 through all epochs, so a position in the stream is one integer and no batch crosses an epoch. The
    order is that of grain's index shuffle, a seeded permutation that gives any place of it at once. (grain's own pipeline over a range
    makes the same kind of order at three times the cost a window, which shows beside a small network.)

    Args:
        windows: Number of windows in the table.
        batch_size: Windows per batch; the last batch of an epoch is filled up with :data:`PADDING`.
        seed: Seed of the order, between 0 and 2**32 - 1; every epoch has an order of its own. None keeps the table's order.
        drop_last: Leave out an epoch's last batch where it is not full, as published code does (protocol §3).
        groups: ``[groups + 1]``: borders of groups of rows, 0 first and ``windows`` last, of which every epoch sees one row each,
            drawn by seed, epoch and group alone. None makes every row a group of its own.

    Attributes:
        windows: Windows that one epoch sees.
    """

    def __init__(
        self,
        windows: int,
        batch_size: int,
        *,
        seed: int | None,
        drop_last: bool = False,
        groups: np.ndarray | None = None,
    ) -> None:
        import grain

        count = windows if groups is None else len(groups) - 1
        if count < 1 or batch_size < 1 or (drop_last and count < batch_size):
            raise DataError(
                f"{count} windows in batches of {batch_size} make no batch",
                fix="The published protocol drops the last batch where it is not full; take a smaller train.batch_size"
                if drop_last
                else "",
            )
        if groups is not None and (groups[0] != 0 or groups[-1] != windows or (np.diff(groups) < 1).any()):
            raise DataError(f"the borders of {count} groups do not divide {windows} windows", where="groups")
        self._shuffled = grain.experimental.index_shuffle
        self._count, self._seed = count, seed
        self._prepared: tuple[int, int, np.ndarray] | None = None
        self._groups = groups
        self._drawn: tuple[int, np.ndarray] | None = None
        self.batch_size = batch_size
        self.steps_per_epoch = count // batch_size if drop_last else -(-count // batch_size)
        self.windows = self.steps_per_epoch * batch_size if drop_last else count

    def batches(self, start: int, stop: int) -> np.ndarray:
        """Batches ``start`` … ``stop - 1`` as ``[stop - start, batch_size]`` int32."""
        if self._prepared is not None and self._prepared[:2] == (start, stop):
            return self._prepared[2]
        index = np.full((stop - start, self.batch_size), PADDING, np.int32)
        for row, position in enumerate(range(start, stop)):
            epoch, number = divmod(position, self.steps_per_epoch)
            first = number * self.batch_size
            batch = self._order(epoch, first, min(first + self.batch_size, self._count))
            if self._groups is not None:
                batch = self._members(epoch)[batch]
            index[row, : len(batch)] = batch
        return index

    def _order(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows (or groups) ``start`` … ``stop - 1`` of an epoch's order, without making the whole of it."""
        if self._seed is None:
            return np.arange(start, stop)
        seed = int(
            np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0]
        )  # neighbouring seeds share no epoch's order
        places = map(self._shuffled, range(start, stop), repeat(self._count - 1), repeat(seed), repeat(4))
        return np.fromiter(places, np.int32, stop - start)

    def prepare(self, start: int, stop: int) -> None:
        """Make :meth:`batches` of the same numbers ready, which takes a microsecond or two a window."""
        self._prepared = (start, stop, self.batches(start, stop))

    def _members(self, epoch: int) -> np.ndarray:
        """The row that each group shows in an epoch."""
        assert self._groups is not None
        if self._drawn is None or self._drawn[0] != epoch:
            raw = np.random.Philox(key=np.array([self._seed or 0, epoch], np.uint64)).random_raw(
                len(self._groups) - 1
            )
            sizes = np.diff(self._groups).astype(np.uint64)
            self._drawn = (epoch, self._groups[:-1] + (raw % sizes).astype(np.int64))
        return self._drawn[1]

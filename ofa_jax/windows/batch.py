"""The batch record, and the gathering of windows on the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ofa_jax.windows.table import PADDING, WindowSpec, WindowTable

SPREAD = 2.0**10
"""The largest distance from the last input of a relative window: so large that the variance floor of instance
norm (protocol §1.2) is below a rounding."""


class Rows(NamedTuple):
    """A buffer with what else is known of its values.

    Attributes:
        values: ``[rows, channels]`` float32.
        observed: ``[rows, channels]`` bool, False where a missing value was filled; None without any.
        residue: ``[rows, channels]`` float32, what rounding to ``values`` left of series in their own units,
            whose windows are then relative to their last input and of like size; None where ``values`` are
            standardized.
    """

    values: Any
    observed: Any = None
    residue: Any = None

    @classmethod
    def of(cls, source: Any) -> Any:
        """What a task or new data have, as :func:`gather` takes it: the buffer itself where that is all."""
        rows = cls(source.buffer, source.observed, source.residue)
        return rows.values if rows.observed is None and rows.residue is None else rows


class Batch(NamedTuple):
    """What every task's network, loss and metrics read.

    Attributes:
        x: Input ``[b, t, c]`` float32, 0 where padded.
        y: Target ``[b, h, c]`` float32, 0 where missing; class labels ``[b]`` int32 of labeled windows.
        x_mask: ``[b, t, c]``, True where ``x`` is observed.
        y_mask: Like ``y``, True where it counts.
        weight: ``[b]`` float32, 1 for a window and 0 for a row that only fills the batch.
        window_id: ``[b]`` int32, :data:`PADDING` for a row that only fills the batch.
        level: ``[b, 1, c]``: what ``x``, ``y`` and predictions leave out of every value; None: nothing.
        unit: ``[b, 1, c]``: what they are multiples of, in the series' units; None: 1.
    """

    x: jax.Array
    y: jax.Array
    x_mask: jax.Array
    y_mask: jax.Array
    weight: jax.Array
    window_id: jax.Array
    level: jax.Array | None = None
    unit: jax.Array | None = None


def gather(buffer: jax.Array | Rows, table: WindowTable, index: jax.Array, spec: WindowSpec) -> Batch:
    """The windows ``index`` of a table as a batch, gathered where the buffer lies; pure and traceable.

    Args:
        buffer: ``[rows, channels]`` float32; of :class:`Rows`, filled targets are masked, and windows with a
            ``residue`` are relative to their last input step, in a unit of :data:`SPREAD`.
        table: Columns as arrays on the same device.
        index: ``[b]`` int32 rows of the table; :data:`PADDING` gives a row of weight 0.
        spec: What the windows have in common.
    """
    real = index >= 0
    row = WindowTable(*(jnp.take(jnp.asarray(column), jnp.maximum(index, 0), axis=0) for column in table))
    values, observed, residue = buffer if isinstance(buffer, Rows) else Rows(buffer)
    channels = 1 if spec.univariate else values.shape[1]

    def at(column: jax.Array, rows_bt: jax.Array) -> jax.Array:
        rows_bt = jnp.clip(rows_bt, 0, len(values) - 1)
        return column[rows_bt, row.channel[:, None]][..., None] if spec.univariate else column[rows_bt]

    last_b1 = (row.first + row.x_valid - 1)[:, None]

    def take(rows_bt: jax.Array, valid_bt: jax.Array, known: Any) -> tuple[jax.Array, jax.Array]:
        mask = jnp.broadcast_to((valid_bt & real[:, None])[..., None], (*rows_bt.shape, channels))
        if known is not None:
            mask = mask & at(known, rows_bt)
        found = at(values, rows_bt)
        if residue is not None:  # float32 pairs hold 48 bits, which such a difference keeps
            found = (found - at(values, last_b1)) + (at(residue, rows_bt) - at(residue, last_b1))
        return jnp.where(mask, found, 0), mask

    steps = jnp.arange(spec.input_length)[None]
    padded = spec.input_length - row.x_valid[:, None] if spec.align == "end" else 0
    offset = steps - padded
    x_valid = (offset >= 0) & (offset < row.x_valid[:, None])
    x, x_mask = take(row.first[:, None] + offset, x_valid, observed if spec.hide_filled else None)
    ahead = jnp.arange(spec.horizon)[None]
    y, y_mask = take((row.first + row.x_valid)[:, None] + ahead, ahead < row.y_valid[:, None], observed)
    if spec.labelled:
        y, y_mask = row.label, real & (row.label >= 0)
    weight = real.astype(jnp.float32)
    batch = Batch(x, y, x_mask, y_mask, weight, jnp.where(real, row.window_id, PADDING))
    return batch if residue is None else _of_like_size(batch, at(values, last_b1))


def _of_like_size(batch: Batch, last_b1c: jax.Array) -> Batch:
    """Relative windows in the unit that makes their largest distance from their last step :data:`SPREAD`."""
    largest = jnp.max(jnp.abs(batch.x), axis=1, keepdims=True)
    unit = jnp.where(largest > 0, largest, 1) / SPREAD
    return batch._replace(x=batch.x / unit, y=batch.y / unit, level=last_b1c / unit, unit=unit)

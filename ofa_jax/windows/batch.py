"""The batch record, and the gathering of windows on the device."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ofa_jax.windows.table import PADDING, WindowSpec, WindowTable


class Batch(NamedTuple):
    """What every task's network, loss and metrics read.

    Attributes:
        x: Input ``[b, t, c]`` float32, 0 where padded.
        y: Target ``[b, h, c]`` float32, 0 where missing; class labels ``[b]`` int32 of labeled windows.
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
    padded = spec.input_length - row.x_valid[:, None] if spec.align == "end" else 0
    offset = steps - padded
    x, x_mask = take(row.first[:, None] + offset, (offset >= 0) & (offset < row.x_valid[:, None]))
    ahead = jnp.arange(spec.horizon)[None]
    y, y_mask = take((row.first + row.x_valid)[:, None] + ahead, ahead < row.y_valid[:, None])
    if spec.labelled:
        y, y_mask = row.label, real & (row.label >= 0)
    weight = real.astype(jnp.float32)
    return Batch(x, y, x_mask, y_mask, weight, jnp.where(real, row.window_id, PADDING))

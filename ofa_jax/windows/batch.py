"""The batch record, and the gathering of windows on the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ofa_jax.windows.table import PADDING, WindowSpec, WindowTable


class Rows(NamedTuple):
    """A buffer some of whose values were missing and have been filled.

    Attributes:
        values: ``[rows, channels]`` float32.
        observed: ``[rows, channels]`` bool, False where filled.
    """

    values: Any
    observed: Any

    @classmethod
    def of(cls, buffer: Any, observed: Any | None) -> Any:
        """A buffer as :func:`gather` takes it: the array itself where nothing was filled."""
        return buffer if observed is None else cls(buffer, observed)


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


def gather(buffer: jax.Array | Rows, table: WindowTable, index: jax.Array, spec: WindowSpec) -> Batch:
    """The windows ``index`` of a table as a batch, gathered where the buffer lies; pure and traceable.

    Args:
        buffer: ``[rows, channels]`` float32; of :class:`Rows`, filled targets are masked.
        table: Columns as arrays on the same device.
        index: ``[b]`` int32 rows of the table; :data:`PADDING` gives a row of weight 0.
        spec: What the windows have in common.
    """
    real = index >= 0
    row = WindowTable(*(jnp.take(jnp.asarray(column), jnp.maximum(index, 0), axis=0) for column in table))
    buffer, observed = buffer if isinstance(buffer, Rows) else (buffer, None)
    channels = 1 if spec.univariate else buffer.shape[1]

    def take(rows_bt: jax.Array, valid_bt: jax.Array, known: Any) -> tuple[jax.Array, jax.Array]:
        rows_bt = jnp.clip(rows_bt, 0, buffer.shape[0] - 1)

        def at_rows(column: jax.Array) -> jax.Array:
            return column[rows_bt, row.channel[:, None]][..., None] if spec.univariate else column[rows_bt]

        mask = jnp.broadcast_to((valid_bt & real[:, None])[..., None], (*rows_bt.shape, channels))
        if known is not None:
            mask = mask & at_rows(known)
        return jnp.where(mask, at_rows(buffer), 0), mask

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
    return Batch(x, y, x_mask, y_mask, weight, jnp.where(real, row.window_id, PADDING))

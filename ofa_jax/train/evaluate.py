"""Predictions, or what is computed from them, for every window of a table."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from ofa_jax.tasks.base import NewData, Task
from ofa_jax.train.devices import Layout, make_layout
from ofa_jax.train.memory import EVAL_WINDOWS, slices_and_rows
from ofa_jax.train.side_by_side import batches_in_flight, side_by_side
from ofa_jax.train.step import Outputs, Params, Predict, eval_step
from ofa_jax.windows.batch import Rows
from ofa_jax.windows.order import IndexStream
from ofa_jax.windows.table import WindowSpec, WindowTable

Between = Callable[[int], None]
"""Called at first and after every batch but the last, with the number of windows that are done; may raise."""


class WindowPredictor:
    """A compiled model, to be applied to any number of tables.

    Args:
        predict: ``predict(frozen, trainable, x_btc, x_mask) -> prediction``.
        task: Whose buffer and windows are read.
        outputs: ``outputs(prediction, batch) -> {name: [b, …]}``; default: ``{"prediction": prediction}``.
        batch_size: Windows at a time; default: 512.
        layout: The devices; default: all.
    """

    def __init__(
        self,
        predict: Predict,
        task: Task | NewData,
        outputs: Outputs | None = None,
        *,
        batch_size: int | None = None,
        layout: Layout | None = None,
    ) -> None:
        self._layout = layout = layout or make_layout()
        self._step = _compiled(predict, outputs or _prediction, task.spec, task.corrupt, layout)
        self.buffer = layout.place(Rows.of(task))
        self._batch_size = batch_size

    def __call__(
        self, table: WindowTable, frozen: Params, trainable: Params, *, between: Between | None = None
    ) -> dict[str, np.ndarray]:
        """``{name: [windows, …]}``: every window of the table once, in its order."""
        layout = self._layout
        # tables of nearly one size share a compiled program
        room = 2 ** (table.size - 1).bit_length()
        _, rows = slices_and_rows(min(self._batch_size or EVAL_WINDOWS, room), None, layout.devices)
        stream = IndexStream(table.size, rows, seed=None)
        columns = layout.place(WindowTable(*(np.pad(column, (0, room - table.size)) for column in table)))
        frozen, trainable = layout.place_frozen(frozen), layout.place(trainable)

        def outputs(index: np.ndarray) -> dict[str, np.ndarray]:
            found = self._step(frozen, trainable, self.buffer, columns, layout.place(index))
            return jax.tree.map(np.asarray, found)

        parts: list[dict[str, np.ndarray]] = []
        batches = stream.batches(0, stream.steps_per_epoch)
        if between is not None:
            between(0)
        for part in side_by_side(outputs, batches, self._in_flight(stream.steps_per_epoch)):
            parts.append(part)
            if between is not None and len(parts) < stream.steps_per_epoch:
                between(len(parts) * rows)
        return {name: np.concatenate([part[name] for part in parts])[: table.size] for name in parts[0]}

    def _in_flight(self, batches: int) -> int:
        """Batches at a time: several only if the caller chose their size, as memory allows them."""
        return batches_in_flight(batches, self._layout.devices) if self._batch_size else 1


def _prediction(prediction: jax.Array, batch: Any) -> dict[str, jax.Array]:
    return {"prediction": prediction}


@lru_cache(maxsize=64)
def _compiled(predict: Predict, outputs: Outputs, spec: WindowSpec, corrupt: Any, layout: Layout) -> Any:
    # cached, so that applying a model again does not compile it again
    return layout.compile_eval(
        partial(eval_step, predict, outputs, spec, corrupt, sharding=layout.eval_sharding)
    )


def evaluate(
    predict: Predict,
    task: Task,
    table: WindowTable,
    frozen: Params,
    trainable: Params,
    *,
    batch_size: int | None = None,
) -> dict[str, np.ndarray]:
    """The task's sums of every window, which its metrics are computed from: ``{name: [windows, …]}``."""
    return WindowPredictor(predict, task, task.sums, batch_size=batch_size)(table, frozen, trainable)

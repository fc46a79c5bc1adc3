"""What runs on the devices: training chunk and evaluation of a task, compiled for one or several lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ofa_jax.config.schema import TrainConfig
from ofa_jax.model.networks import Network
from ofa_jax.tasks.base import Predict, Task
from ofa_jax.train.devices import Layout, make_layout, usable_fsdp
from ofa_jax.train.evaluate import Between, WindowPredictor
from ofa_jax.train.grad_stats import with_grad_stats
from ofa_jax.train.memory import EVAL_WINDOWS, slices_and_rows, windows_at_once
from ofa_jax.train.optim import make_optimizer, make_schedule
from ofa_jax.train.step import Params, TrainState, train_chunk
from ofa_jax.windows.order import IndexStream
from ofa_jax.windows.table import WindowTable


def resolve_auto_batch_sizes(settings: TrainConfig, network: Network) -> TrainConfig:
    """Settings with ``micro_batch`` and ``eval_batch_size`` chosen if absent; this changes rounding only."""
    chosen, given = windows_at_once(network, jax.default_backend()), settings.model_dump()
    if settings.micro_batch is None and chosen is not None:
        given["micro_batch"] = min(chosen, settings.batch_size)
    if settings.eval_batch_size is None:
        given["eval_batch_size"] = min(chosen or EVAL_WINDOWS, EVAL_WINDOWS)
    return TrainConfig.model_validate(given)


def evaluation_options(settings: TrainConfig, network: Network) -> dict[str, Any]:
    """Batch size and layout of a WindowPredictor for a model that may have been trained on other devices."""
    layout = make_layout(settings.parallel, usable_fsdp(settings.fsdp))
    return {"batch_size": resolve_auto_batch_sizes(settings, network).eval_batch_size, "layout": layout}


class LaneInputs(NamedTuple):
    """What a chunk takes per lane, ``[v]``; None where all lanes have the settings' value or are active."""

    key: jax.Array
    learning_rate: Any = None
    scale: Any = None
    active: Any = None


class Program:
    """Training chunk and evaluation, shared by all Trainers whose lanes have the same shapes.

    Args:
        predict: ``predict(frozen, trainable, x_btc, x_mask, dropout_keys=None)``; also ``scale=`` if lanes
            have one.
        task: Windows, loss and metrics.
        frozen: Parameters that never change.
        settings: How to train; seed, learning rate and adapter scale may be each lane's own.
        lanes: Number of lanes, v; more than one need a single device.
        layout: The devices; default: all, as the settings say.

    Attributes:
        chunk: ``(frozen, state, buffer, table, index_kb, steps, lane inputs) -> (state, losses_k)``,
            compiled; state, index, inputs and losses are ``[v, …]``. Inactive lanes keep their state.
        rows: Rows of a padded batch, per lane.
    """

    def __init__(
        self,
        predict: Predict,
        task: Task,
        frozen: Params,
        settings: TrainConfig,
        *,
        lanes: int = 1,
        layout: Layout | None = None,
    ) -> None:
        self.task, self.settings, self.lanes, self._predict = task, settings, lanes, predict
        self.layout = layout = layout or make_layout(settings.parallel, settings.fsdp)
        micro = settings.micro_batch and max(settings.micro_batch // lanes, 1)
        stream = self.stream(settings.seed)
        self._slices, self.rows = slices_and_rows(stream.batch_size, micro, layout.devices)
        self.windows, self.epoch_steps = stream.windows, stream.steps_per_epoch

        chunk = _over_lanes(self._chunk, lanes, (None, 0, None, None, 0, None, 0))
        self.chunk: Any = layout.compile_chunk(chunk)
        predict_lanes = _over_lanes(self._predict_trained, lanes, (None, 0, None, None))
        sums = _over_lanes(task.sums, lanes, (0, None), out_axis=1)  # [b, v, …]
        size = max((settings.eval_batch_size or EVAL_WINDOWS) // lanes, 1)
        self._predictor = WindowPredictor(predict_lanes, task, sums, batch_size=size, layout=layout)
        self.frozen, self.table = layout.place_frozen(frozen), layout.place(task.tables["train"])
        self.buffer, self._placed = self._predictor.buffer, 0  # the task has the windows of the first epoch

    def begin_epoch(self, number: int) -> None:
        """Place the windows of an epoch, from 0, on the devices where each has its own."""
        if self.task.refresh is not None and number != self._placed:
            self.buffer = self._predictor.buffer = self.layout.place(self.task.refresh(number))
            self._placed = number

    def stream(self, seed: int) -> IndexStream:
        """The order of training windows that a seed gives, in batches of at most an epoch's windows."""
        task, size, batch_size = self.task, self.task.tables["train"].size, self.settings.batch_size
        if not task.drop_last:
            batch_size = min(batch_size, size if task.groups is None else len(task.groups) - 1)
        return IndexStream(size, batch_size, seed=seed, drop_last=task.drop_last, groups=task.groups)

    def schedule(self, learning_rate: Any = None) -> optax.Schedule:
        """Learning rate by step, from the given one or the settings' own."""
        s = self.settings
        return make_schedule(
            s.schedule,
            s.learning_rate if learning_rate is None else learning_rate,
            self.epoch_steps,
            decay=s.decay,
            cosine_epochs=s.cosine_epochs,
            min_learning_rate=s.min_learning_rate,
            epochs=s.epochs,
        )

    def optimizer(self, learning_rate: Any = None) -> optax.GradientTransformation:
        """The optimizer, which also sums statistics of gradients if they are logged."""
        s = self.settings
        chosen = make_optimizer(s.optimizer, self.schedule(learning_rate), s.clip_norm)
        return chosen if s.gradient_log is None else with_grad_stats(chosen, s.clip_norm)

    def evaluate(
        self, table: WindowTable, trainable: Params, scale: Any = None, between: Between | None = None
    ) -> Sequence[dict[str, np.ndarray]]:
        """For each lane the task's sums of every window, ``{name: [windows, …]}``; trees are ``[v, …]``."""
        trained = {"trainable": trainable, "scale": scale}
        sums = self._predictor(table, self.frozen, trained, between=between)
        return [{name: values[:, lane] for name, values in sums.items()} for lane in range(self.lanes)]

    def _predict_trained(
        self, frozen: Params, trained: Params, x_btc: jax.Array, x_mask: jax.Array
    ) -> jax.Array:
        return self._scaled(trained["scale"])(frozen, trained["trainable"], x_btc, x_mask)

    def _scaled(self, scale: Any) -> Predict:
        return self._predict if scale is None else partial(self._predict, scale=scale)

    def _chunk(
        self,
        frozen: Params,
        state: TrainState,
        buffer: jax.Array,
        table: WindowTable,
        index_kb: jax.Array,
        steps: int,
        lane: LaneInputs,
    ) -> tuple[TrainState, jax.Array]:
        task, predict, optimizer = self.task, self._scaled(lane.scale), self.optimizer(lane.learning_rate)
        chunk = partial(train_chunk, predict, task.loss, optimizer, task.spec, task.corrupt)
        given = (frozen, state, buffer, table, index_kb, steps, lane.key)
        after, losses_k = chunk(*given, slices=self._slices, sharding=self.layout.sharding)
        if lane.active is not None:
            after = jax.tree.map(lambda new, old: jnp.where(lane.active, new, old), after, state)
        return after, losses_k


def _over_lanes(
    function: Callable[..., Any], lanes: int, in_axes: tuple[int | None, ...], out_axis: int = 0
) -> Callable[..., Any]:
    """``vmap``; a single lane loses its axis inside, with which XLA's matrix products for CPUs are slower."""
    if lanes > 1:
        return jax.vmap(function, in_axes, out_axis)

    def single(*arguments: Any) -> Any:
        given = [
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, in_axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, out_axis), function(*given))

    return single

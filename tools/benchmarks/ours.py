"""ofa-jax's side: network, training step, forecasts and input pipeline, through the package's API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sizes import Shape
from ofa_jax.build import Model
from ofa_jax.config.load import build_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.config.tasks import ForecastSettings
from ofa_jax.data.synthetic import hourly_load
from ofa_jax.model import trees
from ofa_jax.tasks.base import Task
from ofa_jax.tasks.forecast import prepare_frame
from ofa_jax.tasks.losses import FORECAST_LOSSES
from ofa_jax.tasks.metrics import forecast_metrics, forecast_sums
from ofa_jax.train.lanes import Lane
from ofa_jax.train.loop import Trainer
from ofa_jax.train.program import Program, resolve_auto_batch_sizes
from ofa_jax.train.progress import Reporter, SilentReporter
from ofa_jax.windows.batch import gather
from ofa_jax.windows.order import IndexStream
from ofa_jax.windows.table import WindowSpec, WindowTable, sliding_windows

LEARNING_RATE = 1e-4
NO_DROPOUT = ("trunk.dropout=0", "adapters.dropout=0")


def experiment_of(shape: Shape, batch: int, *overrides: str) -> Experiment:
    """Settings of a network of this shape with a random trunk; weights change no timing."""
    trunk = {"n_embd": shape.n_embd, "n_head": shape.n_head, "n_positions": shape.n_positions}
    settings: dict[str, Any] = {
        "data": {"source": "generated"},
        "task": {"input_length": shape.input_length, "horizon": shape.horizon},
        "trunk": {"source": "random", "n_layer": shape.n_layer, "random": trunk},
        "network": {"patch": shape.patch, "stride": shape.stride},
        "adapters": {"rank": shape.rank, "alpha": shape.alpha},
        "train": {"batch_size": batch, "learning_rate": LEARNING_RATE, "schedule": "constant"},
    }
    return build_experiment(settings, overrides)


def forecast_settings(experiment: Experiment) -> ForecastSettings:
    assert isinstance(experiment.task, ForecastSettings)
    return experiment.task


def shape_of(experiment: Experiment) -> Shape:
    """The shape of an experiment's network."""
    task, network, trunk = forecast_settings(experiment), experiment.network, experiment.trunk
    adapters, size = experiment.adapters, trunk.random
    return Shape(
        *(task.input_length, task.horizon, network.patch, network.stride, size.n_embd, trunk.n_layer),
        *(size.n_head, size.n_positions, adapters.rank, adapters.alpha),
    )


def generated_task(experiment: Experiment) -> Task:
    """Forecasting on four generated series of twenty weeks."""
    return prepare_frame(hourly_load(24 * 7 * 20).frame, experiment.data, forecast_settings(experiment)).task


def random_task(experiment: Experiment, *, channels: int, windows: int, univariate: bool) -> Task:
    """Forecasting on noise; unless ``univariate``, a window has all channels."""
    settings = forecast_settings(experiment)
    length, horizon = settings.input_length, settings.horizon
    rows = length + horizon - 1 + (-(-windows // channels) if univariate else windows)
    values = np.random.default_rng(0).standard_normal((rows, channels), np.float32)
    shape: dict[str, Any] = {"input_length": length, "horizon": horizon, "univariate": univariate}
    table = sliding_windows((0, rows), channels=channels, **shape)
    return Task(
        spec=WindowSpec(**shape),
        buffer=values,
        tables={"train": table, "validation": table, "test": table},
        loss=FORECAST_LOSSES[settings.loss],
        sums=forecast_sums,
        metrics=forecast_metrics,
        objective="mse",
    )


def stream_of(experiment: Experiment, task: Task) -> IndexStream:
    """The order of an experiment's training batches."""
    return IndexStream(task.tables["train"].size, experiment.train.batch_size, seed=experiment.train.seed)


def trainer_of(experiment: Experiment, task: Task, model: Model, reporter: Reporter) -> Trainer:
    """A trainer as ``ofa-jax train`` makes it, without files; the benchmarks construct one only here."""
    settings = resolve_auto_batch_sizes(experiment.train, model.network)
    program = Program(model.predict, task, model.frozen, settings)
    return Trainer(program, [Lane(model.trainable, settings.seed)], reporter=reporter)


def training_step(experiment: Experiment, task: Task, model: Model, steps: int = 1) -> Callable[[], float]:
    """A call that takes the next ``steps`` training steps and gives their mean loss."""
    losses = LastLoss()
    trainer = trainer_of(experiment, task, model, losses)
    trainer.check_room()

    def step() -> float:
        trainer.run_chunk(steps)
        return losses.last

    return step


class LastLoss(SilentReporter):
    """Keeps the last loss that training reports."""

    last = float("nan")

    def advance(self, windows: int, loss: float) -> None:
        self.last = loss


def batches(experiment: Experiment, task: Task, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The windows of the first training steps, inputs ``[b, t, 1]`` and targets ``[b, h, 1]``."""
    stream = stream_of(experiment, task)
    for index in stream.batches(0, steps):
        batch = gather(jnp.asarray(task.buffer), task.tables["train"], jnp.asarray(index), task.spec)
        yield np.asarray(batch.x), np.asarray(batch.y)


def flat_parameters(model: Model) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Base parameters by path, and the adapters."""
    base = {**trees.flatten(model.frozen), **trees.flatten(model.trainable["base"])}
    return {path: np.asarray(leaf) for path, leaf in base.items()}, model.trainable["adapters"]


@dataclass(frozen=True)
class Forecasts:
    """Compiled forecasts ``[b, h, 1]`` of windows ``[b, t, 1]``, host to host."""

    model: Model

    @cached_property
    def unmerged(self) -> Callable[[np.ndarray], np.ndarray]:
        predict = jax.jit(self.model.predict)
        frozen, trainable = jax.device_put((self.model.frozen, self.model.trainable))
        return lambda x_btc: np.asarray(predict(frozen, trainable, x_btc))

    @cached_property
    def merged(self) -> Callable[[np.ndarray], np.ndarray]:
        params = jax.device_put(self.model.merged())
        apply = jax.jit(lambda params, x_btc: self.model.network.apply({"params": params}, x_btc))
        return lambda x_btc: np.asarray(apply(params, x_btc))


def with_moved_adapters(model: Model) -> Model:
    """The model with nonzero factors in every adapter."""
    draw = np.random.default_rng(0)

    def moved(leaf: np.ndarray) -> np.ndarray:
        return leaf + 0.02 * draw.standard_normal(leaf.shape, np.float32)

    adapters = jax.tree.map(moved, model.trainable["adapters"])
    return replace(model, trainable={**model.trainable, "adapters": adapters})


def input_pipeline(experiment: Experiment, task: Task, steps: int) -> Callable[[], Any]:
    """A call that makes the index of some steps, moves it to the device and gathers their windows."""
    stream = stream_of(experiment, task)
    buffer, table = jax.device_put((task.buffer, WindowTable(*task.tables["train"])))
    gathered = jax.jit(lambda buffer, table, index: gather(buffer, table, index, task.spec))
    steps = min(steps, stream.steps_per_epoch)

    def call() -> None:
        index_kb = jnp.asarray(stream.batches(0, steps))
        for row in range(steps):
            jax.block_until_ready(gathered(buffer, table, index_kb[row]))

    return call

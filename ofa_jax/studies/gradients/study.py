"""The gradient-stability study: what a few steps do to every adapter, by rank, scaling, init and optimizer.

For every combination an experiment's adapters are drawn once per seed and take steps on its own training
windows, dropout off. Before, between and after the steps each adapter is measured on the windows of the
**first** step, so a number after one step is about the windows that the step used. With ``out`` the adapter's
output, ``L`` the mean loss, ``a`` and ``b`` the factors, and Frobenius norms:

======================  ==================================================================================
``output_rms``          root mean square of ``out``, over tokens and features
``output_moment_m``     mean of ``out^m``, m 4 and 6
``input_gradient_rms``  root mean square of the adapter's own gradient to its input, ``s dL/dout b^T a^T``;
                        an embedding's input is the one-hot row of the index
``gradient_norm_a/b``   norm of ``dL/da``, ``dL/db``
``update_ratio_a/b``    norm of the last step's change of the factor over the norm of the factor after it
``weight_ratio``        norm of ``s a b`` over the norm of the layer's own weight
``first_order_change``  ``-<dL/dout, out>`` with ``dL/dout`` from before the first step: the decrease of the
                        loss through this adapter, to first order
======================  ==================================================================================

The expected values (:mod:`.theory`) are computed from the same windows; docs/theory.md has the derivation.

One program serves all ranks of a bucket: factors are padded with zeros, which no step changes (proof in
:mod:`ofa_jax.studies.sweep.program`; for SGD too, whose update is a multiple of the gradient). As many seeds
run side by side as :data:`WINDOWS_AT_ONCE` allows: memory grows with neither seeds nor combinations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
from pydantic import Field, NonNegativeInt, PositiveInt

from ofa_jax.adapters.partition import AdapterTarget, combine
from ofa_jax.adapters.rslora import Adapters, LoraConfig, init_adapters
from ofa_jax.build import build_model
from ofa_jax.config.schema import Experiment, Scaling
from ofa_jax.errors import ConfigError
from ofa_jax.model import trees
from ofa_jax.runs.train import read_data
from ofa_jax.studies import Choices, Listed
from ofa_jax.studies.gradients.taps import Taps, quantities, tap
from ofa_jax.studies.gradients.theory import FirstStep, Optimizer, StudyInit, init_std
from ofa_jax.studies.sweep.program import bucket, padded
from ofa_jax.tasks.base import Task
from ofa_jax.train.lanes import stack
from ofa_jax.train.step import Params, TrainState, dropout_key, init_state, train_step
from ofa_jax.windows.batch import Batch, Rows, gather
from ofa_jax.windows.order import IndexStream
from ofa_jax.windows.table import WindowTable

if TYPE_CHECKING:
    import pandas as pd

RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""The paper's ranks (protocol §2)."""

Quantities = dict[str, dict[str, Any]]
"""``{module: {quantity: [draws]}}``."""

WINDOWS_AT_ONCE = 256
"""Limit on the total number of windows of the seeds that run side by side; at least one seed runs."""

Rate = Annotated[float, Field(gt=0, le=1e12)]
"""A learning rate."""


@pydantic.dataclasses.dataclass(frozen=True)
class Grid(Choices):
    """What varies, and how it is measured. Lists may be comma-separated texts.

    Attributes:
        ranks, scalings, inits, optimizers: Every combination is measured.
        steps: Numbers of steps after which to measure.
        seeds: Random initializations per combination, from ``adapters.seed`` and the rank.
        windows: Windows per step; all of them if there are fewer.
        sgd_learning_rate: Small by default, since the theory covers small steps.
        adam_learning_rate: Default: the experiment's ``train.learning_rate``.

    Raises:
        ConfigError: A value of another kind or out of range, an empty list or a duplicate.
    """

    ranks: Listed[PositiveInt] = RANKS
    scalings: Listed[Scaling] = get_args(Scaling)
    inits: Listed[StudyInit] = ("theorem", "peft_gaussian", "kaiming")
    optimizers: Listed[Optimizer] = ("sgd", "adam")
    steps: Listed[NonNegativeInt] = (0, 1, 10)
    seeds: PositiveInt = 5
    windows: PositiveInt = 64
    sgd_learning_rate: Rate = 1e-6
    adam_learning_rate: Rate | None = None


@dataclass(frozen=True)
class Study:
    """What was measured, and what theory expects.

    Attributes:
        table: Columns ``module, kind, rank, scaling, init, optimizer, steps, seed, quantity, value``.
        curves: The same without ``seed``: expected values (roots and norms: of the mean square), where known.
        windows: Windows per step.
        experiment: The settings used.
        trunk_source: Origin of the trunk's weights.
        trunk_sha256, data_sha256: Digests of the trunk's weights and of the data.
    """

    table: pd.DataFrame
    curves: pd.DataFrame
    windows: int
    experiment: Experiment
    trunk_source: str
    trunk_sha256: str
    data_sha256: str


def study(
    experiment: Experiment,
    grid: Grid,
    *,
    task: Task | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Study:
    """Measure every combination of a grid.

    Args:
        experiment: Trunk, task, adapted layers and alpha; rank, scaling, init and dropout are not used.
        grid: What varies.
        task: The windows, if they are in memory already.
        say: Receives a message for every finished rank.

    Raises:
        ConfigError: There is no adapter to measure, or its alpha is 0.
        OfaError: As :func:`~ofa_jax.runs.train.read_data` and :func:`~ofa_jax.build.build_model`.
    """
    import pandas as pd

    alpha = experiment.adapters.alpha
    if alpha == 0:
        fix = "Set a positive value"
        raise ConfigError("with alpha 0 adapters have no effect", where="adapters.alpha", fix=fix)
    # a tap cannot reach the values inside rematerialized blocks
    experiment = experiment.replace({"trunk.dropout": 0.0, "trunk.remat": False, "adapters.dropout": 0.0})
    if task is None:
        data = read_data(experiment)
        task, experiment = data.task, experiment.replace({"task": data.settings})
    runner = StudyRunner(experiment, grid, task)
    targets = runner.model.targets
    measured, curves = [], []
    for rank in grid.ranks:
        seeds = np.random.SeedSequence([experiment.adapters.seed, rank]).generate_state(grid.seeds)
        for init in grid.inits:
            drawn = [draw_adapters(targets, rank, init, int(seed)) for seed in seeds]
            for scaling, optimizer in itertools.product(grid.scalings, grid.optimizers):
                cell, scale = (rank, scaling, init, optimizer), LoraConfig(rank, alpha, scaling).scale
                for path, *values in runner.measure(drawn, rank, scale, optimizer):
                    measured.append((path, targets[path].kind, *cell, *values))
                for path, *values in runner.expect(rank, scale, init, optimizer):
                    curves.append((path, targets[path].kind, *cell, *values))
        say(f"rank {rank} measured")
    columns = ["module", "kind", "rank", "scaling", "init", "optimizer", "steps", "seed", "quantity", "value"]
    return Study(
        table=pd.DataFrame(measured, columns=columns),
        curves=pd.DataFrame(curves, columns=[name for name in columns if name != "seed"]),
        windows=runner.windows,
        experiment=experiment,
        trunk_source=runner.model.trunk_source,
        trunk_sha256=runner.model.trunk_sha256,
        data_sha256=trees.fingerprint([("buffer", task.buffer)]),
    )


def draw_adapters(targets: Mapping[str, AdapterTarget], rank: int, init: StudyInit, seed: int) -> Adapters:
    """Fresh adapters as :func:`~ofa_jax.adapters.rslora.init_adapters` draws them.

    ``inverse_rank`` is ``peft_gaussian`` with an embedding's ``b`` divided by the rank.
    """
    if init != "inverse_rank":
        return init_adapters(targets, LoraConfig(rank, 1, init=init), seed=seed)
    adapters = init_adapters(targets, LoraConfig(rank, 1), seed=seed)
    for path, target in targets.items():
        if target.kind == "embedding":
            adapters[path]["b"] = adapters[path]["b"] / np.float32(rank)
    return adapters


class StudyRunner:
    """A network and the windows that its adapters are measured on, with one program per bucket of ranks.

    Attributes:
        model: The network, whose own adapters are not used.
        windows: Windows per step.

    Raises:
        ConfigError: There is no adapter.
    """

    def __init__(self, experiment: Experiment, grid: Grid, task: Task) -> None:
        self.model = model = build_model(experiment)
        if not model.targets:
            fix = "Adapt one, as recipe `reference` does"
            raise ConfigError("the rules give no layer an adapter", where="rules", fix=fix)
        self._task, self._steps = task, set(grid.steps)
        table, groups, seed = task.tables["train"], task.groups, experiment.train.seed
        self.windows = min(grid.windows, table.size if groups is None else len(groups) - 1)
        self._stream = IndexStream(table.size, self.windows, seed=seed, groups=groups)
        self._key = dropout_key(seed)
        self._frozen = jax.tree.map(jnp.asarray, model.frozen)
        self._data = jax.tree.map(jnp.asarray, (Rows.of(task), table))
        adam_rate = grid.adam_learning_rate or experiment.train.learning_rate
        self._rates = {"sgd": grid.sgd_learning_rate, "adam": adam_rate}
        self._optimizers = {"sgd": optax.sgd(grid.sgd_learning_rate), "adam": optax.adam(adam_rate)}
        self._gather = jax.jit(self._windows)
        self._step = {name: jax.jit(partial(self._take_step, name)) for name in self._optimizers}
        self._measure = jax.jit(self._quantities)
        self._batch = self._gather(*self._data, self._stream.batches(0, 1)[0])
        look = jax.jit(partial(tap, model.predict, task.loss, model.targets))
        # before the first step every adapter's output is 0, as without adapters
        self._first = look(self._frozen, {**model.trainable, "adapters": {}}, self._batch)
        weights = self._weights(model.frozen, model.trainable["base"])
        self._theory = {
            path: FirstStep.of(target, *map(np.asarray, (*self._first[path], weights[path])))
            for path, target in model.targets.items()
        }

    def expect(
        self, rank: int, scale: float, init: StudyInit, optimizer: Optimizer
    ) -> Iterator[tuple[str, int, str, float]]:
        """What theory expects: ``(module, steps, quantity, value)``."""
        rate = self._rates[optimizer]
        for steps, (path, theory) in itertools.product(sorted(self._steps), self._theory.items()):
            sigma = init_std(theory.target, init, rank)
            for quantity, value in theory.expected(rank, scale, sigma, rate, steps, optimizer):
                yield path, steps, quantity, value

    def measure(
        self, drawn: Sequence[Adapters], rank: int, scale: float, optimizer: Optimizer
    ) -> Iterator[tuple[str, int, int, str, float]]:
        """Take the steps from every draw: ``(module, steps, number of the draw, quantity, value)``."""
        size = max(1, min(len(drawn), WINDOWS_AT_ONCE // self.windows))
        wide = [padded(adapters, bucket(rank)) for adapters in drawn]
        wide += [wide[-1]] * (-len(wide) % size)  # parts of equal size share one program
        starts = range(0, len(wide), size)
        parts = [self._run(wide[start : start + size], scale, optimizer) for start in starts]
        found = jax.tree.map(lambda *columns: np.concatenate(columns), *parts)
        for steps, modules in found.items():
            for path, columns in modules.items():
                for quantity, values in _reported(columns, steps):
                    for seed in range(len(drawn)):
                        yield path, steps, seed, quantity, float(values[seed])

    def _run(self, adapters: Sequence[Adapters], scale: float, optimizer: Optimizer) -> dict[int, Quantities]:
        """Take the steps from some draws side by side: what is measured, by the number of steps taken."""
        trees_v = stack([{**self.model.trainable, "adapters": each} for each in adapters])
        state = jax.vmap(partial(init_state, optimizer=self._optimizers[optimizer]))(trees_v)
        before, found = state, {}
        for step in range(max(self._steps) + 1):
            if step:
                batch = self._gather(*self._data, self._stream.batches(step - 1, step)[0])
                before, state = state, self._step[optimizer](self._frozen, state, np.float32(scale), batch)
            if step in self._steps:
                moved = before.trainable, state.trainable
                values = self._measure(self._frozen, *moved, np.float32(scale), self._batch, self._first)
                found[step] = jax.device_get(values)
        return found

    def _windows(self, buffer: jax.Array, table: WindowTable, index_b: jax.Array) -> Batch:
        """Windows of the table; a task hides the same points of a window in every step, as in evaluation."""
        batch = gather(buffer, table, index_b, self._task.spec)
        if self._task.corrupt is None:
            return batch
        keys = jax.vmap(partial(jax.random.fold_in, self._key))(batch.window_id)
        return self._task.corrupt(batch, keys)

    def _take_step(
        self, optimizer: str, frozen: Params, states: TrainState, scale: jax.Array, batch: Batch
    ) -> TrainState:
        """One training step of every draw, as ``ofa-jax train`` takes it but for dropout; pure."""
        predict, chosen = partial(self.model.predict, scale=scale), self._optimizers[optimizer]
        step = partial(train_step, predict, self._task.loss, chosen, frozen)
        return jax.vmap(lambda state: step(state, batch, self._key)[0])(states)

    def _quantities(
        self, frozen: Params, before: Params, after: Params, scale: jax.Array, batch: Batch, first: Taps
    ) -> Quantities:
        """Every adapter's quantities by module, ``[draws]`` each; pure."""
        targets = self.model.targets
        look = partial(tap, partial(self.model.predict, scale=scale), self._task.loss, targets)

        def of_one(before: Params, after: Params) -> Quantities:
            seen, weights = look(frozen, after, batch), self._weights(frozen, after["base"])
            old, new = before["adapters"], after["adapters"]
            return {
                path: quantities(seen[path], first[path].gradient, old[path], new[path], weights[path], scale)
                for path in targets
            }

        return jax.vmap(of_one)(before, after)

    def _weights(self, frozen: Params, base: Params) -> dict[str, jax.Array]:
        """The own weight of every adapted layer."""
        flat, leaf = trees.flatten(combine(frozen, base)), {"dense": "kernel", "embedding": "embedding"}
        return {path: flat[f"{path}/{leaf[target.kind]}"] for path, target in self.model.targets.items()}


def _reported(columns: Mapping[str, np.ndarray], steps: int) -> Iterator[tuple[str, np.ndarray]]:
    """The quantities of the table; moments are multiplied out in float64, where they do not underflow."""
    rms = columns["output_rms"].astype(np.float64)
    for name, values in columns.items():
        if name.startswith("output_shape_"):
            order = name.removeprefix("output_shape_")
            yield f"output_moment_{order}", values * rms ** int(order)
        elif steps or not name.startswith("update_ratio"):
            yield name, values

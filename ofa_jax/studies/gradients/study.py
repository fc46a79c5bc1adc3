"""The gradient-stability study: what a few steps do to every adapter, by rank, scaling, start and optimiser.

For every combination the adapters of an experiment start anew, once per seed, and take steps on the experiment's own training windows,
dropout off. Before, between and after the steps each adapter is measured on the windows of the **first** step, so a number after one
step is about the windows that the step was taken on. With ``out`` the adapter's output, ``L`` the mean loss, ``a`` and ``b`` its factors:

======================  ============================================================================================================
``output_rms``          root mean square of ``out``, over tokens and features
``output_moment_m``     mean of ``out^m``, m 4 and 6
``input_gradient_rms``  root mean square of the gradient that the adapter hands to its input, ``s dL/dout b^T a^T``; an embedding's
                        input is the one-hot row of the index
``gradient_norm_a/b``   length of ``dL/da``, ``dL/db``
``update_ratio_a/b``    length of the last step's change of the factor over the length of the factor after it
``weight_ratio``        length of ``s a b`` over the length of the layer's own weight
``first_order_change``  ``-<dL/dout, out>`` with ``dL/dout`` as it was before the first step: how much smaller the loss becomes, to
                        first order, through this adapter
======================  ============================================================================================================

Lengths are Frobenius norms. What theory expects of them is worked out from the windows (:mod:`ofa_jax.studies.gradients.theory`;
docs/theory.md derives it).

One program serves all ranks of a bucket: factors are padded with zeros, which no step moves (:mod:`ofa_jax.studies.sweep.program` has the
proof; it holds for SGD as well, whose update is a multiple of the gradient). Several seeds are worked on at a time, as many as
:data:`WINDOWS_AT_ONCE` allows, so memory hangs neither on the number of seeds nor on that of combinations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ofa_jax.adapters.partition import AdapterTarget, combine
from ofa_jax.adapters.rslora import Adapters, LoraConfig, init_adapters
from ofa_jax.build import Model, build_model, predict_function
from ofa_jax.config import Experiment, Init, Scaling
from ofa_jax.errors import ConfigError
from ofa_jax.model import trees
from ofa_jax.runs.train import read_data
from ofa_jax.studies.gradients.taps import Tap, numbers, tap
from ofa_jax.studies.gradients.theory import Expected, Optimizer, StudyInit, start_std
from ofa_jax.studies.sweep.program import bucket, padded, stacked
from ofa_jax.tasks.base import Task
from ofa_jax.train.optim import adam
from ofa_jax.train.step import Params, TrainState, chunk_rows, dropout_key, init_state, make_chunk
from ofa_jax.windows.batch import Batch, gather
from ofa_jax.windows.order import IndexStream
from ofa_jax.windows.table import PADDING, WindowTable

if TYPE_CHECKING:
    import pandas as pd

RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""The paper's ranks (protocol §2)."""

WINDOWS_AT_ONCE = 256
"""Seeds that are worked on at a time have no more windows than this in all; one seed always is."""


@dataclass(frozen=True)
class Grid:
    """What is varied, and how it is measured.

    Attributes:
        ranks, scalings, inits, optimizers: Every combination is measured.
        steps: After how many steps.
        seeds: Starts of the adapters per combination, drawn by the experiment's ``adapters.seed`` and the rank.
        windows: Windows of a step; all there are where there are fewer.
        sgd_rate: Step size of SGD; small, since theory speaks of small steps.
        adam_rate: Step size of Adam; the experiment's ``train.learning_rate`` when None.

    Raises:
        ConfigError: A value that cannot be.
    """

    ranks: tuple[int, ...] = RANKS
    scalings: tuple[Scaling, ...] = get_args(Scaling)
    inits: tuple[StudyInit, ...] = ("theorem", "peft_gaussian", "kaiming")
    optimizers: tuple[Optimizer, ...] = ("sgd", "adam")
    steps: tuple[int, ...] = (0, 1, 10)
    seeds: int = 5
    windows: int = 64
    sgd_rate: float = 1e-6
    adam_rate: float | None = None

    def __post_init__(self) -> None:
        known = {
            "scalings": get_args(Scaling),
            "inits": get_args(StudyInit),
            "optimizers": get_args(Optimizer),
        }
        for name in ("ranks", "steps", *known):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(
                    f"{list(values)} is empty or names something twice",
                    where=name,
                    fix="Name each value once",
                )
            for value in values:
                if name in known and value not in known[name]:
                    raise ConfigError(f"{value!r} is not one of {', '.join(known[name])}", where=name)
        for name, values, least in (
            ("ranks", self.ranks, 1),
            ("steps", self.steps, 0),
            ("seeds", (self.seeds,), 1),
            ("windows", (self.windows,), 1),
        ):
            if min(values) < least:
                raise ConfigError(f"{min(values)} is less than {least}", where=name)
        for rate in (self.sgd_rate, self.adam_rate):
            if rate is not None and not (rate > 0 and math.isfinite(rate)):
                raise ConfigError(
                    f"the step size {rate} is not a positive number", where="sgd_rate, adam_rate"
                )


@dataclass(frozen=True)
class Study:
    """What was measured, and what theory expects.

    Attributes:
        table: Columns ``module, kind, rank, scaling, init, optimizer, steps, seed, quantity, value``.
        curves: The same columns without ``seed``: expected values (roots and norms: of the mean square), where theory has one.
        windows: Windows of a step.
        experiment: The settings, as they were used.
        trunk_sha256, data_sha256: What it was measured on.
    """

    table: pd.DataFrame
    curves: pd.DataFrame
    windows: int
    experiment: Experiment
    grid: Grid
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
        experiment: Trunk, task and adapted layers. Its rank, scaling, init and dropout are not read, its ``alpha`` is.
        grid: What is varied.
        task: The windows, where they are in memory already.
        say: Told of every rank that is done.

    Raises:
        ConfigError: There is no adapter to measure, or its alpha is 0.
        OfaError: As :func:`~ofa_jax.runs.train.read_data` and :func:`~ofa_jax.build.build_model`.
    """
    import pandas as pd

    if experiment.adapters.alpha == 0:
        raise ConfigError(
            "with alpha 0 an adapter does nothing, and every number is 0",
            where="adapters.alpha",
            fix="Take a larger one",
        )
    experiment = _still(experiment)
    if task is None:
        data = read_data(experiment)
        task, experiment = data.task, experiment.model_copy(update={"task": data.settings})
    bench = Bench(experiment, grid, task)
    measured, expected = [], []
    for rank in grid.ranks:
        for init in grid.inits:
            drawn_by = np.random.SeedSequence([experiment.adapters.seed, rank]).generate_state(
                grid.seeds
            )  # no rank shares another's draw
            starts = [start(bench.model.targets, rank, init, int(seed)) for seed in drawn_by]
            for scaling in grid.scalings:
                scale = LoraConfig(rank, experiment.adapters.alpha, scaling).scale
                for optimizer in grid.optimizers:
                    place = (rank, scaling, init, optimizer)
                    found = bench.fit(starts, rank, scale, optimizer)
                    for steps, seed, path, quantity, value in sorted(found, key=lambda row: row[:2]):
                        measured.append(
                            (path, bench.model.targets[path].kind, *place, steps, seed, quantity, value)
                        )
                    for steps, path, quantity, value in bench.expect(rank, scale, init, optimizer):
                        expected.append(
                            (path, bench.model.targets[path].kind, *place, steps, quantity, value)
                        )
        say(f"rank {rank}: {len(grid.inits) * len(grid.scalings) * len(grid.optimizers) * grid.seeds} starts")
    columns = ["module", "kind", "rank", "scaling", "init", "optimizer", "steps", "seed", "quantity", "value"]
    return Study(
        table=pd.DataFrame(measured, columns=columns),
        curves=pd.DataFrame(expected, columns=[name for name in columns if name != "seed"]),
        windows=bench.windows,
        experiment=experiment,
        grid=grid,
        trunk_sha256=bench.model.trunk_sha256,
        data_sha256=trees.fingerprint([("buffer", task.buffer)]),
    )


def _still(experiment: Experiment) -> Experiment:
    """Without dropout; and without recomputed blocks, out of which nothing can be told."""
    trunk = experiment.trunk.model_copy(update={"dropout": 0.0, "remat": False})
    adapters = experiment.adapters.model_copy(update={"dropout": 0.0})
    return experiment.model_copy(update={"trunk": trunk, "adapters": adapters})


def start(targets: Mapping[str, AdapterTarget], rank: int, init: StudyInit, seed: int) -> Adapters:
    """Fresh adapters, as :func:`~ofa_jax.adapters.rslora.init_adapters` and with ``inverse_rank``: peft's, the embedding's ``b`` over r."""
    drawn: Init = "peft_gaussian" if init == "inverse_rank" else init
    adapters = init_adapters(targets, LoraConfig(rank, 1, init=drawn), seed=seed)
    if init == "inverse_rank":
        for path, target in targets.items():
            if target.kind == "embedding":
                adapters[path]["b"] = adapters[path]["b"] / np.float32(rank)
    return adapters


class Bench:
    """A network with the windows that its adapters are measured on; its programs are compiled once per bucket of ranks.

    Attributes:
        model: The network, whose own adapters are not used.
        windows: Windows of a step.

    Raises:
        ConfigError: There is no adapter.
    """

    def __init__(self, experiment: Experiment, grid: Grid, task: Task) -> None:
        self.model = model = build_model(experiment)
        if not model.targets:
            raise ConfigError(
                "the rules give no layer an adapter",
                where="rules",
                fix="Adapt one, as recipe `reference` does",
            )
        self._steps = tuple(sorted(grid.steps))
        table = task.tables["train"]
        self.windows = windows = min(
            grid.windows, table.size if task.groups is None else len(task.groups) - 1
        )
        self._stream = IndexStream(table.size, windows, seed=experiment.train.seed, groups=task.groups)
        self._frozen = jax.tree.map(jnp.asarray, model.frozen)
        self._table, self._buffer = WindowTable(*map(jnp.asarray, table)), jnp.asarray(task.buffer)
        self._key = dropout_key(experiment.train.seed)
        self._rates = {"sgd": grid.sgd_rate, "adam": grid.adam_rate or experiment.train.learning_rate}
        rates = {name: optax.constant_schedule(rate) for name, rate in self._rates.items()}
        self._optimizers = {"sgd": optax.sgd(rates["sgd"]), "adam": adam(rates["adam"])}
        task = _same_inputs(task, self._key)
        self._advance = {
            name: jax.jit(partial(_advance, model, task, optimizer))
            for name, optimizer in self._optimizers.items()
        }
        self._measure = jax.jit(partial(_measure, model, task))
        index = jnp.asarray(self._stream.batches(0, 1)[0])
        batch = jax.jit(partial(_windows, task))(self._buffer, self._table, index)
        self._before = self._look(task, batch)
        self._batch = batch
        self._expected = {path: self._expectation(path, seen) for path, seen in self._before.items()}

    def _look(self, task: Task, batch: Batch) -> dict[str, Tap]:
        """What the adapters see before the first step; as their outputs are zero then, it is the same whatever they are."""
        adapters = {
            path: {"a": own["a"][:, :1], "b": own["b"][:1]}
            for path, own in self.model.trainable["adapters"].items()
        }
        trainable = {**self.model.trainable, "adapters": adapters}
        look = jax.jit(
            lambda frozen, trainable, batch: tap(
                self.model.predict, task.loss, self.model.targets, frozen, trainable, batch
            )
        )
        return look(self._frozen, trainable, batch)

    def _expectation(self, path: str, seen: Tap) -> Expected:
        return Expected.of(
            self.model.targets[path],
            np.asarray(seen.entered),
            np.asarray(seen.gradient),
            np.asarray(_weight(self.model, path)),
        )

    def expect(
        self, rank: int, scale: float, init: StudyInit, optimizer: Optimizer
    ) -> Iterator[tuple[int, str, str, float]]:
        """What theory has: ``(steps, module, quantity, value)``."""
        for steps in self._steps:
            for path, expected in self._expected.items():
                sigma = start_std(self.model.targets[path], init, rank)
                for quantity, value in expected.values(
                    rank, scale, sigma, self._rates[optimizer], steps, optimizer
                ):
                    yield steps, path, quantity, value

    def fit(
        self, starts: Sequence[Adapters], rank: int, scale: float, optimizer: Optimizer
    ) -> Iterator[tuple[int, int, str, str, float]]:
        """Take the steps from every start: ``(steps, number of the start, module, quantity, value)``."""
        size = max(1, min(len(starts), WINDOWS_AT_ONCE // self.windows))
        for first in range(0, len(starts), size):
            some = starts[first : first + size]
            filled = [
                *some,
                *[some[-1]] * (size - len(some)),
            ]  # every slice is of one size, so that one program serves them all
            for steps, values in self._together(filled, rank, scale, optimizer):
                for path, of_path in values.items():
                    for number in range(len(some)):
                        for quantity, value in _told(
                            {name: column[number] for name, column in of_path.items()}, steps
                        ):
                            yield steps, first + number, path, quantity, value

    def _together(
        self, starts: Sequence[Adapters], rank: int, scale: float, optimizer: Optimizer
    ) -> Iterator[tuple[int, dict[str, dict[str, np.ndarray]]]]:
        """Take the steps from some starts at once: after how many, ``{module: {name: [starts]}}``."""
        adapters = stacked([padded(one, bucket(rank)) for one in starts])
        base = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (len(starts), *leaf.shape)), self.model.trainable["base"]
        )
        state = jax.vmap(partial(init_state, optimizer=self._optimizers[optimizer]))(
            {"adapters": adapters, "base": base}
        )
        reached = 0
        for steps in self._steps:
            before = state
            if steps:
                before = self._advanced(state, scale, optimizer, reached, steps - 1)
                state = self._advanced(before, scale, optimizer, steps - 1, steps)
            found = self._measure(
                self._frozen, before.trainable, state.trainable, np.float32(scale), self._batch, self._before
            )
            yield steps, jax.device_get(found)
            reached = steps

    def _advanced(
        self, state: TrainState, scale: float, optimizer: Optimizer, reached: int, steps: int
    ) -> TrainState:
        if reached == steps:
            return state
        index = np.full((chunk_rows(self._steps[-1]), self.windows), PADDING, np.int32)
        index[: steps - reached] = self._stream.batches(reached, steps)
        advance = self._advance[optimizer]
        return advance(
            self._frozen,
            state,
            np.float32(scale),
            self._buffer,
            self._table,
            index,
            steps - reached,
            self._key,
        )


def _told(values: Mapping[str, np.ndarray], steps: int) -> Iterator[tuple[str, float]]:
    """The quantities of one adapter as they stand in the table; moments are put together in float64, where they have room."""
    rms = float(values["output_rms"])
    for name, value in values.items():
        if name.startswith("output_shape_"):
            order = name.removeprefix("output_shape_")
            yield f"output_moment_{order}", float(value) * rms ** int(order)
        elif steps or not name.startswith("update_ratio"):
            yield name, float(value)


def _same_inputs(task: Task, key: jax.Array) -> Task:
    """The task whose windows look the same whenever they come: what it hides hangs on the window alone, as in evaluation."""
    hide = task.inputs
    if hide is None:
        return task

    def inputs(batch: Batch, keys_b: jax.Array) -> Batch:
        return hide(batch, jax.vmap(lambda window: jax.random.fold_in(key, window))(batch.window_id))

    return replace(task, inputs=inputs)


def _windows(task: Task, buffer: jax.Array, table: WindowTable, index: jax.Array) -> Batch:
    batch = gather(buffer, table, index, task.spec)
    return batch if task.inputs is None else task.inputs(batch, index)


def _advance(
    model: Model,
    task: Task,
    optimizer: optax.GradientTransformation,
    frozen: Params,
    state: TrainState,
    scale: jax.Array,
    *rest: Any,
) -> TrainState:
    """Some steps of training from every start, as ``ofa-jax train`` takes them but for dropout; pure."""
    predict = predict_function(model.network, model.lora, scale=scale)
    chunk = make_chunk(predict, task.loss, optimizer, task.spec, task.inputs, compiled=lambda pure: pure)
    return jax.vmap(lambda one: chunk(frozen, one, *rest)[0])(state)


def _measure(
    model: Model,
    task: Task,
    frozen: Params,
    before: Params,
    after: Params,
    scale: jax.Array,
    batch: Batch,
    first: dict[str, Tap],
) -> dict[str, dict[str, jax.Array]]:
    """Every adapter's numbers by module, ``[starts]`` each; pure."""
    predict = predict_function(model.network, model.lora, scale=scale)

    def of_one(before: Params, after: Params) -> dict[str, dict[str, jax.Array]]:
        seen = tap(predict, task.loss, model.targets, frozen, after, batch)
        base, old, new = trees.flatten(combine(frozen, after["base"])), before["adapters"], after["adapters"]
        return {
            path: numbers(
                seen[path],
                first[path].gradient,
                old[path],
                new[path],
                base[_weight_name(target, path)],
                scale,
            )
            for path, target in model.targets.items()
        }

    return jax.vmap(of_one)(before, after)


def _weight_name(target: AdapterTarget, path: str) -> str:
    return f"{path}/{'embedding' if target.kind == 'embedding' else 'kernel'}"


def _weight(model: Model, path: str) -> np.ndarray:
    return trees.flatten(combine(model.frozen, model.trainable["base"]))[
        _weight_name(model.targets[path], path)
    ]

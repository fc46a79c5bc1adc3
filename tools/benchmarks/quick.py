"""One epoch of configs/quick/etth1.yaml: ``ofa-jax train`` against a PyTorch loop with a DataLoader."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ours
from benchmarks.paper import check_same
from benchmarks.schema import Row, Section, Target, make_row, stat
from benchmarks.sizes import ROOT, Sizes
from benchmarks.timing import Taken, alternate, timed_row
from ofa_jax.build import build_model
from ofa_jax.config.load import load_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.data.catalog.load import DATA_VARIABLE
from ofa_jax.data.synthetic import hourly_load
from ofa_jax.errors import OfaError
from ofa_jax.files import write_atomic
from ofa_jax.runs.train import read_data, train_run
from ofa_jax.tasks.forecast import ForecastData
from ofa_jax.train.evaluate import evaluate
from ofa_jax.train.progress import SilentReporter

CONFIG = ROOT / "configs" / "quick" / "etth1.yaml"
EPOCH_TARGET = Target(of="ratio", bound="at least", value=2.5)
INPUT_TARGET = Target(of="ours", bound="at most", value=0.02)


def overrides(sizes: Sizes, folder: Path, epochs: int) -> list[str]:
    """``--set`` arguments for epochs of the quick settings, on ETTh1 or generated series of its size."""
    given = [f"train.epochs={epochs}", f"train.patience={epochs}", "train.checkpoint_minutes=1000"]
    given += sizes.quick
    if os.environ.get(DATA_VARIABLE) and sizes.real_data:
        return given
    path = folder / "generated.csv"
    if not path.exists():
        write_generated(path, sizes.generated_rows)
    return [f"data.source={path}", "data.split=ett_hour", *given]


def write_generated(path: Path, rows: int) -> None:
    """Seven generated hourly series as CSV."""
    import pandas as pd

    frame = hourly_load(rows, n_series=7).frame
    table = pd.DataFrame(frame.values, columns=list(frame.names))
    table.insert(0, "date", frame.timestamps)
    write_atomic(path, table.to_csv(index=False))


class TakeTurns(SilentReporter):
    """A reporter that times ofa-jax's epochs, and after each but the first lets the other side train for one.

    Attributes:
        training, validation, keeping: Seconds per epoch; ``keeping`` is from validation to the next epoch:
            checkpoint and
            bundle.
    """

    def __init__(self, other: Callable[[], object]) -> None:
        self.training: list[float] = []
        self.validation: list[float] = []
        self.keeping: list[float] = []
        self._other, self._mark = other, 0.0

    def begin(self, epoch: int, epochs: int, windows: int, done: int) -> None:
        if self.training:
            self.keeping.append(time.perf_counter() - self._mark)
        self._mark = time.perf_counter()

    def end_epoch(self, record: Mapping[str, Any]) -> None:
        self.training.append(record["seconds"])
        self.validation.append(time.perf_counter() - self._mark - record["seconds"])
        if len(self.training) > 1:
            self._other()
        self._mark = time.perf_counter()


class TheirEpochs:
    """PyTorch's epochs over the same windows.

    Attributes:
        training, validation: Seconds per epoch.
    """

    def __init__(self, experiment: Experiment, data: ForecastData) -> None:
        from benchmarks import theirs

        theirs.use_all_cores()
        shape, batch, rate = (
            ours.shape_of(experiment),
            experiment.train.batch_size,
            experiment.train.learning_rate,
        )
        self.model = build_model(experiment)
        network = theirs.build(shape, *ours.flat_parameters(self.model))
        self._side = theirs.Training(network, rate)
        rows, tables = data.borders, data.task.tables
        train, validation = (
            theirs.Windows(data.task.buffer, rows[part], shape) for part in ("train", "validation")
        )
        found, wanted = (len(train), len(validation)), (tables["train"].size, tables["validation"].size)
        if found != wanted:
            raise OfaError(f"PyTorch sees {found} windows, ofa-jax {wanted}: not comparable")
        self._train = theirs.loader(train, batch, shuffle=True)
        self._validate = theirs.loader(validation, batch, shuffle=False)
        self.training: list[float] = []
        self.validation: list[float] = []

    def error(self) -> float:
        """The current validation error."""
        return self._side.validate(self._validate)

    def warm_up(self) -> None:
        self._side.epoch(islice(self._train, 3))

    def __call__(self) -> None:
        """One epoch and its validation."""
        start = time.perf_counter()
        self._side.epoch(self._train)
        middle = time.perf_counter()
        self.error()
        self.training.append(middle - start)
        self.validation.append(time.perf_counter() - middle)


def epoch_section(sizes: Sizes) -> Section:
    """The section ``epoch``."""
    with tempfile.TemporaryDirectory() as scratch:
        experiment = load_experiment(CONFIG, overrides(sizes, Path(scratch), sizes.epoch_rounds + 1))
        data = read_data(experiment)
        assert isinstance(data, ForecastData)
        other = TheirEpochs(experiment, data)
        _check_same_start(experiment, data, other)
        other.warm_up()
        turns = TakeTurns(other)
        train_run(experiment, Path(scratch) / "run", turns)
    steps = ours.stream_of(experiment, data.task).steps_per_epoch
    windows = data.task.tables["train"].size, data.task.tables["validation"].size
    generated = "series generated to ETTh1's size, as OFA_JAX_DATA was not set"
    return Section(
        name="epoch",
        title="Quick epoch",
        text="configs/quick/etth1.yaml as `ofa-jax train` runs it, on "
        f"{'ETTh1' if experiment.data.source == 'etth1' else generated}: {windows[0]:,} training windows in "
        f"{steps} steps of {experiment.train.batch_size}, then all {windows[1]:,} validation windows. "
        "PyTorch: a Dataset that slices windows, a DataLoader without workers, the same network, adapters "
        "and Adam. Before training both sides gave the same validation error. ofa-jax's first epoch, with "
        "compilation, is not counted.",
        rows=[*_epoch_rows(turns, other), _input_row(experiment, data, turns, steps)],
    )


def _check_same_start(experiment: Experiment, data: ForecastData, other: TheirEpochs) -> None:
    task, model = data.task, other.model
    table, size = task.tables["validation"], experiment.train.eval_batch_size
    sums = evaluate(model.predict, task, table, model.frozen, model.trainable, batch_size=size)
    wanted = other.error()
    if model.network.trunk.compute_dtype == np.float32:  # in bfloat16 the two sides round differently
        check_same("validation errors before training", np.array(task.metrics(sums)["mse"]), np.array(wanted))


def _epoch_rows(turns: TakeTurns, other: TheirEpochs) -> list[Row]:
    def both(mine: list[float], their: list[float]) -> tuple[Taken, Taken]:
        return Taken(mine[0], mine[1:]), Taken(None, their)

    def added(training: list[float], validation: list[float]) -> list[float]:
        return [a + b for a, b in zip(training, validation, strict=True)]

    epochs = added(turns.training, turns.validation), added(other.training, other.validation)
    return [
        timed_row("epoch, training and validation", *both(*epochs), EPOCH_TARGET),
        timed_row("training pass", *both(turns.training, other.training)),
        timed_row("validation pass", *both(turns.validation, other.validation)),
        timed_row("checkpoint and bundle after an epoch", Taken(None, turns.keeping)),
    ]


def _input_row(experiment: Experiment, data: ForecastData, turns: TakeTurns, steps: int) -> Row:
    some = min(steps, experiment.train.chunk)
    taken = alternate({"input": ours.input_pipeline(experiment, data.task, some)}, 5)["input"]
    step = statistics.median(turns.training[1:]) / steps
    shares = stat([seconds / some / step for seconds in taken.seconds])
    what, note = (
        "input pipeline's share of a training step",
        "indexing, transfer to the device and gathering alone",
    )
    return make_row(what, "share", shares, target=INPUT_TARGET, note=note)

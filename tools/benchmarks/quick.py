"""One epoch of configs/quick/etth1.yaml: what `ofa-jax train` runs beside the same loop in PyTorch with a DataLoader."""

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
from benchmarks.schema import Row, Section, Target, reached, stat
from benchmarks.sizes import ROOT, Sizes
from benchmarks.timing import Taken, alternate, timed_row
from ofa_jax.config.load import load_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.data.catalog.load import DATA_VARIABLE
from ofa_jax.data.splits import Split
from ofa_jax.data.synthetic import hourly_load
from ofa_jax.errors import OfaError
from ofa_jax.files import write_atomic
from ofa_jax.runs.train import read_data, train_run
from ofa_jax.tasks.forecast import ForecastData
from ofa_jax.train.evaluate import evaluate

CONFIG = ROOT / "configs" / "quick" / "etth1.yaml"
EPOCH = "epoch, training and validation"
EPOCH_TARGET = Target(of="ratio", bound="at least", value=2.5)
INPUT_TARGET = Target(of="ours", bound="at most", value=0.02)


def overrides(sizes: Sizes, folder: Path, epochs: int) -> list[str]:
    """``--set`` texts for so many epochs of the quick settings, on ETTh1 or, where there is no such data, on a generated stand-in."""
    given = [
        f"train.epochs={epochs}",
        f"train.patience={epochs}",
        "train.checkpoint_minutes=1000",
        *sizes.quick,
    ]
    if os.environ.get(DATA_VARIABLE) and sizes.real_data:
        return given
    path = folder / "generated.csv"
    if not path.exists():
        write_generated(path, sizes.generated_rows)
    return [f"data.source={path}", "data.split=ett_hour", *given]


def write_generated(path: Path, rows: int) -> None:
    """Seven generated hourly series as CSV, as long as ETTh1."""
    import pandas as pd

    frame = hourly_load(rows, n_series=7).frame
    table = pd.DataFrame(frame.values, columns=list(frame.names))
    table.insert(0, "date", frame.timestamps)
    write_atomic(path, table.to_csv(index=False))


class TakeTurns:
    """A reporter that times our epochs, undisturbed, and after each but the first lets the other side train for one.

    Attributes:
        training, validation, keeping: Seconds by epoch; ``keeping`` goes from validation to the next epoch: checkpoint and bundle.
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

    def advance(self, windows: int, loss: float) -> None: ...

    def end_epoch(self, record: Mapping[str, Any]) -> None:
        self.training.append(record["seconds"])
        self.validation.append(time.perf_counter() - self._mark - record["seconds"])
        if len(self.training) > 1:
            self._other()
        self._mark = time.perf_counter()

    def notice(self, text: str) -> None: ...


class TheirEpochs:
    """PyTorch's epochs over the same windows.

    Attributes:
        training, validation: Seconds by epoch.
    """

    def __init__(self, experiment: Experiment, data: ForecastData) -> None:
        from benchmarks import theirs

        theirs.use_all_cores()
        shape, batch = ours.shape_of(experiment), experiment.train.batch_size
        self.model = ours.model_of(experiment)
        self._side = theirs.Training(
            theirs.build(shape, *ours.flat_parameters(self.model)), experiment.train.learning_rate
        )
        parts: tuple[Split, ...] = ("train", "validation")
        sets = [theirs.Windows(data.task.buffer, data.borders[part], shape) for part in parts]
        found, wanted = [len(windows) for windows in sets], [data.task.tables[part].size for part in parts]
        if found != wanted:
            raise OfaError(
                f"PyTorch's side sees {found} windows, ours {wanted}: the comparison would mean nothing"
            )
        self._train, self._validate = (
            theirs.loader(each, batch, shuffle=first) for each, first in zip(sets, (True, False), strict=True)
        )
        self.training: list[float] = []
        self.validation: list[float] = []

    def error(self) -> float:
        """The validation error as it stands."""
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
    """Section 4."""
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
    rows = [*_epoch_rows(turns, other), _input_row(experiment, data, turns, steps)]
    windows = data.task.tables["train"].size, data.task.tables["validation"].size
    what = (
        "ETTh1"
        if experiment.data.source == "etth1"
        else "series generated to ETTh1's size, as OFA_JAX_DATA was not set"
    )
    return Section(
        name="epoch",
        title="Quick epoch",
        text=f"configs/quick/etth1.yaml as `ofa-jax train` runs it, on {what}: {windows[0]:,} training windows in {steps} steps of "
        f"{experiment.train.batch_size}, then all {windows[1]:,} validation windows. PyTorch: a Dataset that slices windows, a DataLoader "
        "without workers, the same network, adapters and Adam. Before training both sides gave the same validation error. Our first "
        "epoch, with compilation, is not counted.",
        rows=rows,
    )


def _check_same_start(experiment: Experiment, data: ForecastData, other: TheirEpochs) -> None:
    task, model = data.task, other.model
    size = experiment.train.eval_batch_size
    found = task.metrics(
        evaluate(
            model.predict, task, task.tables["validation"], model.frozen, model.trainable, batch_size=size
        )
    )
    wanted = other.error()
    if model.network.trunk.compute_dtype == np.float32:  # in bfloat16 the two sides round apart
        check_same("validation errors before training", np.array(found["mse"]), np.array(wanted))


def _epoch_rows(turns: TakeTurns, other: TheirEpochs) -> list[Row]:
    def both(mine: list[float], his: list[float]) -> tuple[Taken, Taken]:
        return Taken(mine[0], mine[1:]), Taken(None, his)

    def added(*parts: list[float]) -> list[float]:
        return [sum(part) for part in zip(*parts, strict=True)]

    return [
        timed_row(
            EPOCH,
            *both(added(turns.training, turns.validation), added(other.training, other.validation)),
            EPOCH_TARGET,
        ),
        timed_row("training pass", *both(turns.training, other.training)),
        timed_row("validation pass", *both(turns.validation, other.validation)),
        timed_row("checkpoint and bundle after an epoch", Taken(None, turns.keeping)),
    ]


def _input_row(experiment: Experiment, data: ForecastData, turns: TakeTurns, steps: int) -> Row:
    some = min(steps, experiment.train.chunk)
    taken = alternate({"input": ours.input_pipeline(experiment, data.task, some)}, 5)["input"]
    shares = [seconds / some / (statistics.median(turns.training[1:]) / steps) for seconds in taken.seconds]
    return reached(
        Row(
            what="input pipeline's share of a training step",
            unit="share",
            ours=stat(shares),
            target=INPUT_TARGET,
            note="index made, brought to the device, windows gathered, by themselves",
        )
    )

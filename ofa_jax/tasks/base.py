"""The records of a task: its kind, the task on one data set, and new data to apply a trained model to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import DataConfig, TaskSettings
from ofa_jax.data.splits import Scaler, Split
from ofa_jax.errors import DataError
from ofa_jax.model import trees
from ofa_jax.model.networks import Network
from ofa_jax.windows.batch import Batch, Rows
from ofa_jax.windows.table import WindowSpec, WindowTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ofa_jax.data.archives import SeriesCollection

Predict = Callable[..., jax.Array]
"""``predict(frozen, trainable, x_btc, x_mask, dropout_keys=None) -> prediction``."""
Outputs = Callable[[Any, Batch], dict[str, jax.Array]]
"""``(prediction, batch) -> {name: [b, …]}``: what is kept of every window."""
Sums = Mapping[str, np.ndarray]
"""Outputs of an evaluation, ``{name: [windows, …]}`` in the order of a table."""
Score = Callable[[WindowTable], Sums]
"""Evaluates a model on a table."""


@dataclass(frozen=True, eq=False)
class Task:
    """A task on one data set. Training loop, step and checkpoints know nothing else of it.

    Attributes:
        spec: What all windows have in common.
        buffer: The series, end to end, ``[rows, channels]`` float32.
        observed: ``[rows, channels]`` bool, False where a missing value was filled; None without any.
        residue: What rounding to ``buffer`` left of series in their own units, float32
            (:class:`~ofa_jax.windows.batch.Rows`); None where they are standardized.
        tables: The windows of each split.
        loss: ``(prediction, batch) -> (sum, count)``; the training loss is their ratio.
        sums: What an evaluation keeps of every window.
        metrics: ``{name: [windows, …]} -> {metric: value}``.
        objective: The metric that validation minimizes.
        protocol: The practice that splits, batches and thresholds follow (protocol §5).
        corrupt: ``(batch, keys_b) -> batch``, hides points before the network sees them.
        drop_last: Whether an epoch leaves out a partial last batch.
        full_batches: Whether validation and test leave it out too.
        groups: Borders ``[groups + 1]`` of groups of training windows; every epoch sees one window of each.
        refresh: ``epoch -> rows`` in place of ``buffer``, ``observed`` and ``residue``, for epochs from 0.
        report: ``(score, split) -> metrics`` where final metrics need more than the split (a threshold).
    """

    spec: WindowSpec
    buffer: np.ndarray
    tables: Mapping[Split, WindowTable]
    loss: Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
    sums: Outputs
    metrics: Callable[[Sums], dict[str, float]]
    objective: str
    protocol: Protocol = "strict"
    corrupt: Callable[[Batch, jax.Array], Batch] | None = None
    drop_last: bool = False
    full_batches: bool = False
    groups: np.ndarray | None = None
    report: Callable[[Score, Split], dict[str, float]] | None = None
    observed: np.ndarray | None = None
    residue: np.ndarray | None = None
    refresh: Callable[[int], Rows] | None = None

    def check_targets(self, source: str) -> None:
        """Refuse a split all of whose targets, as far as they follow the input, are missing.

        Raises:
            DataError: There is one.
        """
        if self.observed is None or not self.spec.horizon:
            return
        known = np.concatenate([np.zeros((1, self.observed.shape[1]), int), self.observed.cumsum(axis=0)])
        for split, table in self.tables.items():
            end = table.first + table.x_valid + table.y_valid
            counted = known[end] - known[table.first + table.x_valid]
            if self.spec.univariate:
                counted = counted[np.arange(table.size), table.channel]
            if not counted.any():
                what = f"every target of the {split} part is missing in the data"
                raise DataError(what, where=source, fix="Give rows with values there, or set data.ratios")

    def final_metrics(self, score: Score, split: Split) -> dict[str, float]:
        """The reported metrics of a split."""
        return self.metrics(score(self.tables[split])) if self.report is None else self.report(score, split)

    def reading(self, length: int) -> Task:
        """The same targets with at least ``length`` input steps; without splits that begin too early."""
        if length <= self.spec.input_length:
            return self
        tables = {
            split: table._replace(
                first=table.first + table.x_valid - length, x_valid=np.full_like(table.first, length)
            )
            for split, table in self.tables.items()
            if (table.first + table.x_valid >= length).all()
        }
        return replace(self, spec=replace(self.spec, input_length=length), tables=tables)

    def on_all_parts(self) -> Task:
        """The same task whose training windows are those of all parts, for a model that only forecasts."""
        every = [np.concatenate(columns) for columns in zip(*self.tables.values(), strict=True)]
        table, groups = WindowTable(*every), self.groups
        if groups is not None:
            table = table.take(np.argsort(table.window_id, kind="stable"))
            groups = np.append(0, np.cumsum(np.unique(table.window_id, return_counts=True)[1]))
        return replace(self, tables={**self.tables, "train": table}, groups=groups)

    def with_full_batches(self, batch_size: int) -> Task:
        """Validation and test cut to full batches where the published protocol drops the rest (§5 row 6).

        Raises:
            DataError: No full batch is left.
        """
        if not self.full_batches:
            return self
        tables = dict(self.tables)
        for split in ("validation", "test"):
            table = tables[split]
            kept = table.size - table.size % batch_size
            if not kept:
                what = f"{table.size} {split} windows make no full batch of {batch_size}"
                raise DataError(what, fix="Use a smaller train.batch_size, or protocol: strict")
            tables[split] = table.take(slice(kept))
        return replace(self, tables=tables)


@dataclass(frozen=True)
class TaskData:
    """A task with everything else that was read from its data.

    Attributes:
        task: Windows, loss and metrics.
        settings: The task's settings, completed with sizes of the data (channels, classes).
        scaler: What standardized the series; None where they keep their units.
        season: Season length m in steps; 1 where there is none.
        validation_season: That of the validation part where it is of other series (zero-shot).
        notices: Messages for the user, one line each.
        meta: What a bundle stores about the data: names of classes, frequency.
        labels: Arrays that metrics depend on besides the buffer, by name.
        untrained: Baselines without parameters, by title: predict functions on the task's windows.
        lookback: Input steps of those that need more than the model reads.
        collection: The single series that test windows are of, by their number.
        timestamps: Of the buffer's rows, where these have any.
        naive: Baselines that need no windows: ``title -> (split -> metrics)``, None where undefined.
        calibrate: ``score -> values`` that a bundle stores after training, to apply the model to new data.
    """

    task: Task
    settings: TaskSettings
    scaler: Scaler | None
    season: int = 1
    validation_season: int | None = None
    notices: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    untrained: Mapping[str, Predict] = field(default_factory=dict)
    lookback: Mapping[str, int] = field(default_factory=dict)
    collection: SeriesCollection | None = None
    timestamps: np.ndarray | None = None
    naive: Mapping[str, Callable[[Split], dict[str, float] | None]] = field(default_factory=dict)
    calibrate: Callable[[Score], dict[str, Any]] | None = None

    def as_read_by(self, title: str) -> Task:
        """The task with the input steps that an untrained baseline needs."""
        return self.task.reading(self.lookback.get(title, 0))

    def season_in(self, split: Split) -> int | None:
        """The season length m that a split is scored with; None where the task has none."""
        if "data.season" not in self.settings.reads:
            return None
        return (split == "validation" and self.validation_season) or self.season

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything that was read, so that a run notices changed data."""
        read = [("buffer", self.task.buffer), *sorted(self.labels.items())]
        for name in ("observed", "residue"):
            if (found := getattr(self.task, name)) is not None:
                read.append((name, found))
        return trees.fingerprint(read)

    @property
    def relative(self) -> bool:
        """Whether windows are relative to their last input, as those of series in their own units are."""
        return self.task.residue is not None

    def absolute(self) -> TaskData:
        """With windows of float32 values in the series' units, as format 2 of runs read them."""
        return replace(self, task=replace(self.task, residue=None))


def with_sizes(task: TaskSettings, source: str, **sizes: int) -> Any:
    """The settings of a task, completed with sizes of its data.

    Raises:
        DataError: The settings give another size.
    """
    for name, found in sizes.items():
        expected = getattr(task, name)
        if expected not in (None, found):
            noun = "calendar features" if name == "calendar" else name
            what = f"has {found} {noun}, but task.{name} is {expected}"
            raise DataError(what, where=source, fix=f"Set task.{name} to {found}")
    return task.model_copy(update=sizes)


@dataclass(frozen=True)
class TrainedOn:
    """What applying a model to new data needs to know about its training.

    ``reading`` has settings of how the new data are read, in place of those of ``data``.
    """

    task: TaskSettings
    data: DataConfig
    scaler: Scaler | None
    meta: Mapping[str, Any]
    reading: Mapping[str, Any] = field(default_factory=dict)

    def scaler_of(self, channels: int, source: str) -> Scaler:
        """The scaler, for new data of so many channels.

        Raises:
            DataError: It was fitted on another number.
        """
        assert self.scaler is not None
        if channels != len(self.scaler.names):
            what = f"has {channels} channels, the model reads {len(self.scaler.names)}"
            raise DataError(what, where=source, fix="Give the channels of training, in their order")
        return self.scaler


@dataclass(frozen=True, eq=False)
class NewData:
    """New data laid out for a trained model.

    Attributes:
        spec, buffer, corrupt, observed, residue: As in :class:`Task`.
        table: The windows to predict.
        to_table: Outputs of all windows as a table in original units.
        plot: ``(table, note) -> Figure``.
        summary: ``table -> text``: one line for the user.
        outputs: What is kept of every window; default: ``{"prediction": prediction}``.
        without: Rows of the table that have no numbers, ``[rows]`` bool; None: none.
        notices: What reading inferred, one line each, for the user.
    """

    spec: WindowSpec
    buffer: np.ndarray
    table: WindowTable
    to_table: Callable[[Sums], pd.DataFrame]
    plot: Callable[[pd.DataFrame, str], Figure]
    summary: Callable[[pd.DataFrame], str]
    outputs: Outputs | None = None
    corrupt: Callable[[Batch, jax.Array], Batch] | None = None
    observed: np.ndarray | None = None
    residue: np.ndarray | None = None
    without: np.ndarray | None = None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class LinearBaseline:
    """A baseline with a few parameters.

    Attributes:
        name: Its folder, and what ``--baseline`` calls it.
        title: What tables call it.
        make: ``settings -> (predict, initial parameters)``.
        training: Training settings that differ from the defaults; None trains it like the run.
        closed_form: Whether it is solved (:mod:`ofa_jax.baselines.ridge`) and not trained.
    """

    name: str
    title: str
    make: Callable[[Any], tuple[Predict, dict[str, Any]]]
    training: Mapping[str, Any] | None = None
    closed_form: bool = False


@dataclass(frozen=True)
class TaskKind:
    """One row of the table of tasks.

    Attributes:
        settings: The settings class; ``task.name`` is the key of the row.
        title: What people call the task.
        prepare: ``(data, settings, protocol) -> TaskData``: reads, splits, scales, lays out windows.
        network: The class; it takes the settings of the task and of ``network`` that have its fields' names.
        apply: ``(trained_on, source) -> NewData``: reads a file or DataFrame to apply a trained model to.
        baselines: The trained linear baselines.
        pretrained: The class over a trunk with pretrained layers around it; None: ``network``, with its own.
    """

    settings: type[TaskSettings]
    title: str
    prepare: Callable[[DataConfig, Any, Protocol], TaskData]
    network: type[Network]
    apply: Callable[[TrainedOn, str | Path | pd.DataFrame], NewData]
    baselines: tuple[LinearBaseline, ...] = ()
    pretrained: type[Network] | None = None

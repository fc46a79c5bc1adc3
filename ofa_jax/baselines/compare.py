"""One table: the trained model and baselines, on the same windows and metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from ofa_jax.baselines.trained import Baseline, load_or_train, trained_baselines, trunk_remark
from ofa_jax.build import build_model, footprint
from ofa_jax.config.schema import Experiment, Protocol
from ofa_jax.inference import evaluate
from ofa_jax.model.networks import Network
from ofa_jax.plots.style import aligned, spelled
from ofa_jax.runs.bundle import LoadedModel
from ofa_jax.tasks.base import Predict, Split, Task, TaskData
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.program import evaluation_options
from ofa_jax.train.progress import SILENT, Reporter
from ofa_jax.train.step import Params

LARGER_IS_BETTER = {"accuracy", "average_precision", "range_pr_auc", "precision", "recall", "f1"}
LARGER_IS_BETTER |= {f"adjusted_{name}" for name in ("precision", "recall", "f1")}


@dataclass(frozen=True)
class Row:
    """A method: its metrics and trainable parameters; ``bytes`` is their size in float32.

    ``bound`` marks what no method can reach, as the noise floor of generated data.
    """

    method: str
    metrics: Mapping[str, float]
    trainable: int
    bound: bool = False

    @property
    def bytes(self) -> int:
        return 4 * self.trainable


@dataclass(frozen=True)
class Comparison:
    """Metrics of several methods on every window of one split, under one protocol.

    ``model`` is the name of the row that the others are baselines of.
    """

    task: str
    protocol: Protocol
    split: Split
    windows: int
    rows: tuple[Row, ...]
    notices: tuple[str, ...] = ()
    season: int | None = None
    model: str = ""

    @property
    def conditions(self) -> str:
        """Conditions of the numbers: the protocol, and the season length m where the task has one."""
        return f"protocol {self.protocol}" + (f", m = {self.season}" if self.season else "")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Every metric of any row, in order."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.metrics))

    @property
    def ranked(self) -> tuple[Row, ...]:
        """The rows by the first metric, the best first."""
        return tuple(sorted(self.rows, key=partial(_rank, self.metric_names[0])))

    @property
    def best(self) -> dict[str, float]:
        """The best value of each metric that some method reaches."""
        values = {name: [row.metrics[name] for row in self._methods(name)] for name in self.metric_names}
        return {name: (max if name in LARGER_IS_BETTER else min)(own) for name, own in values.items() if own}

    @property
    def verdict(self) -> str | None:
        """A sentence where a baseline has a better first metric than the model."""
        name = self.metric_names[0]
        methods = sorted(self._methods(name), key=partial(_rank, name))
        own = next((row for row in methods if row.method == self.model), None)
        if own is None or _rank(name, first := methods[0]) == _rank(name, own):
            return None
        theirs, ours = aligned([first.metrics[name], own.metrics[name]])
        metric = f"{spelled(name)} {theirs} against {ours}"
        return f"A baseline is better than the model: {first.method}, {metric}."

    def _methods(self, metric: str) -> list[Row]:
        """The rows that have a metric, without bounds."""
        found = [row for row in self.rows if not row.bound and metric in row.metrics]
        return [row for row in found if not math.isnan(row.metrics[metric])]

    def to_dict(self) -> dict[str, Any]:
        """As one JSON object."""
        methods = [
            {"method": row.method, **row.metrics, "trainable": row.trainable, "bytes": row.bytes}
            for row in self.rows
        ]
        table: dict[str, Any] = {"task": self.task, "split": self.split, "windows": self.windows}
        table |= {"protocol": self.protocol, "season": self.season, "notices": list(self.notices)}
        return {**table, "methods": methods}


def compare(
    loaded: LoadedModel,
    data: TaskData,
    *,
    split: Split = "test",
    baselines: Path | None = None,
    reporter: Reporter = SILENT,
    only: tuple[str, ...] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Comparison:
    """Score the model, baselines without parameters and, given a folder for them, trained baselines.

    Args:
        loaded: The model.
        data: The data it was trained on.
        split: Which windows.
        baselines: Folder where trained baselines are kept; default: none are trained.
        reporter: Progress reporter; default: silent.
        only: Names of trained baselines; default: all.
        metrics: The model's metrics, if they are known already.
    """
    task, experiment, network = data.task, loaded.experiment, loaded.model.network
    wanted = trained_baselines(experiment, data, only=only) if baselines is not None else []
    metrics = evaluate(loaded, data, split) if metrics is None else metrics
    rows = [Row(model_name(loaded), metrics, footprint(experiment).trainable)]
    if network.pretrained:
        rows.append(Row("zero-shot", evaluate(untrained(loaded), data, split), 0))
    rows += baseline_rows(
        experiment, network, data, split=split, wanted=wanted, folder=baselines, reporter=reporter
    )
    windows = task.tables[split].size
    stated = (data.notices, data.season_in(split), rows[0].method)
    return Comparison(data.settings.name, task.protocol, split, windows, tuple(rows), *stated)


def untrained(loaded: LoadedModel) -> LoadedModel:
    """The same model as it was before training."""
    return replace(loaded, model=build_model(loaded.experiment))


def _rank(metric: str, row: Row) -> float:
    """The place of a row by a metric: the smaller, the better; rows without it are last."""
    value = row.metrics.get(metric, math.nan)
    return math.inf if math.isnan(value) else -value if metric in LARGER_IS_BETTER else value


def baseline_rows(
    experiment: Experiment,
    network: Network,
    data: TaskData,
    *,
    split: Split,
    wanted: Sequence[Baseline],
    folder: Path | None,
    reporter: Reporter,
) -> list[Row]:
    """The rows of baselines: those without parameters, then the trained ones that are ``wanted``."""
    options, task = evaluation_options(experiment.train, network), data.task

    def score(predict: Predict, frozen: Params, trainable: Params, task: Task = task) -> dict[str, float]:
        predictor = WindowPredictor(predict, task, task.sums, **options)
        return task.final_metrics(lambda table: predictor(table, frozen, trainable), split)

    untrained = ((title, predict, data.as_read_by(title)) for title, predict in data.untrained.items())
    rows = [
        Row(title, score(predict, {}, {}, own), 0) for title, predict, own in untrained if split in own.tables
    ]
    rows += [
        Row(title, found, 0) for title, metrics in data.naive.items() if (found := metrics(split)) is not None
    ]
    for baseline in wanted:
        assert folder is not None
        predict, frozen, trainable = load_or_train(baseline, data, folder, reporter)
        size = sum(leaf.size for leaf in jax.tree.leaves(trainable))
        rows.append(Row(baseline.title, score(predict, frozen, trainable), size))
    return rows


def model_name(loaded: LoadedModel) -> str:
    """What tables call the model; a random trunk is always named."""
    recipe, remark = loaded.experiment.recipe, trunk_remark(loaded.experiment.trunk.source)
    ours = recipe in ("reference", "paper", "uniform", "output")
    return f"One-for-All ({recipe}{remark})" if ours else f"{recipe}{remark}"

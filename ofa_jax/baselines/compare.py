"""One table: the trained model beside honest controls, on the same windows and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from ofa_jax.baselines.controls import (
    Control,
    kept_or_trained,
    trained_controls,
    trunk_remark,
    untrained_controls,
)
from ofa_jax.build import footprint
from ofa_jax.config import Experiment, Protocol
from ofa_jax.model.networks import Network
from ofa_jax.runs.train import Loaded
from ofa_jax.tasks.base import Split, TaskData
from ofa_jax.train.devices import as_devices_allow, make_layout
from ofa_jax.train.loop import Evaluator, Params, Predict, Reporter
from ofa_jax.train.memory import settled


@dataclass(frozen=True)
class Row:
    """A method's line: its metrics and how many parameters were trained; ``bytes`` is what they take in float32."""

    method: str
    metrics: Mapping[str, float]
    trainable: int

    @property
    def bytes(self) -> int:
        return 4 * self.trainable


@dataclass(frozen=True)
class Comparison:
    """Metrics of several methods over every window of one split, under one protocol."""

    task: str
    protocol: Protocol
    split: Split
    windows: int
    rows: tuple[Row, ...]

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Every metric that some row has, in order."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.metrics))

    def to_dict(self) -> dict[str, Any]:
        """As one JSON object."""
        return {
            "task": self.task,
            "split": self.split,
            "windows": self.windows,
            "protocol": self.protocol,
            "methods": [
                {"method": row.method, **row.metrics, "trainable": row.trainable, "bytes": row.bytes}
                for row in self.rows
            ],
        }


def compare(
    loaded: Loaded,
    data: TaskData,
    *,
    split: Split,
    controls: Path | None,
    reporter: Reporter,
    only: tuple[str, ...] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Comparison:
    """Score the model beside methods that need no training; with a folder for controls also trained ones, trained once and kept there.

    Args:
        loaded: The model.
        data: The data it was trained on.
        split: Which windows.
        controls: The run's folder of trained controls, or None to train none.
        reporter: What tells a person how it goes.
        only: Names of the trained controls that are wanted; all when None.
        metrics: The model's own metrics, if they are known; default: evaluate the model.
    """
    task, experiment, model = data.task, loaded.experiment, loaded.model
    wanted = trained_controls(experiment, data, only=only) if controls is not None else []
    if metrics is None:
        metrics = _Scores(experiment, model.network, data, split)(
            model.predict, model.frozen, model.trainable
        )
    rows = [Row(model_name(loaded), metrics, footprint(experiment).trainable)]
    rows += control_rows(
        experiment, model.network, data, split=split, wanted=wanted, folder=controls, reporter=reporter
    )
    return Comparison(task.name, task.protocol, split, task.tables[split].size, tuple(rows))


def control_rows(
    experiment: Experiment,
    network: Network,
    data: TaskData,
    *,
    split: Split,
    wanted: Sequence[Control],
    folder: Path | None,
    reporter: Reporter,
) -> list[Row]:
    """The lines of the methods beside a model: those that need no training, then the trained ones that are ``wanted``, kept in a folder."""
    score = _Scores(experiment, network, data, split)
    rows = [Row(title, score(predict, {}, {}), 0) for title, predict in untrained_controls(data).items()]
    rows += [Row(title, found, 0) for title, tell in data.naive.items() if (found := tell(split)) is not None]
    for control in wanted:
        assert folder is not None
        predict, frozen, trainable = kept_or_trained(control, data, folder, reporter)
        rows.append(
            Row(
                control.title,
                score(predict, frozen, trainable),
                sum(leaf.size for leaf in jax.tree.leaves(trainable)),
            )
        )
    return rows


class _Scores:
    """Scores a method on a split, as the experiment's devices and batch sizes allow."""

    def __init__(self, experiment: Experiment, network: Network, data: TaskData, split: Split) -> None:
        self._settings = settled(experiment.train, network)
        self._layout = make_layout(as_devices_allow(self._settings))
        self._task, self._split = data.task, split

    def __call__(self, predict: Predict, frozen: Params, trainable: Params) -> dict[str, float]:
        evaluator = Evaluator(predict, self._task, self._settings.eval_batch_size, self._layout)
        return self._task.final_metrics(lambda table: evaluator(table, frozen, trainable), self._split)


def model_name(loaded: Loaded) -> str:
    """What the table calls the model; a random trunk is always named."""
    recipe, source = loaded.experiment.recipe, loaded.experiment.trunk.source
    trunk = trunk_remark(source)
    return (
        f"One-for-All ({recipe}{trunk})"
        if recipe in ("reference", "paper", "uniform")
        else f"{recipe}{trunk}"
    )

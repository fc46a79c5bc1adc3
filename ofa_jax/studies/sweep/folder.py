"""A sweep: many adapters on one network and one set of data, trained by one program per bucket of ranks, in a folder of their own.

::

    sweep/
      sweep.json          settings, what varies, provenance, a row per finished cell, controls
      sweep.csv           the rows as a table                 accuracy_by_rank.png, accuracy_by_bytes.png
      cells/NAME/         a run folder without checkpoints: config.yaml, metrics.jsonl and bundle, for `ofa-jax evaluate` and `predict`
      checkpoints/        of the group of cells that is being trained
      controls/           trained controls, when asked for

A sweep uses one device. A cell that diverges ends alone, with neither metrics nor a bundle. Any other cell is the run that ``ofa-jax
train`` makes of its config.yaml: the same batches, dropout, steps, choice of the best epoch on the
validation part and patience. Parameters differ by rounding alone, since a product over padded ranks is summed in another order; where
two epochs score almost the same, rounding may decide which is the best.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from ofa_jax.baselines.compare import control_rows
from ofa_jax.baselines.controls import trained_controls
from ofa_jax.build import Model, build_model
from ofa_jax.config import Experiment, build_experiment, dump_experiment
from ofa_jax.errors import CheckpointError, ConfigError, Interrupted
from ofa_jax.files import clear_leftovers, read_json, run_lock, write_atomic, write_json
from ofa_jax.runs.train import (
    BUNDLE,
    CHECKPOINTS,
    CONFIG_FILE,
    METRICS_FILE,
    BundleWriter,
    begin_or_check,
    differences,
    provenance,
    read_data,
    resolved,
)
from ofa_jax.studies.sweep.cells import Axes, Cell, Group, adapters_at_once, cells_of, groups_of
from ofa_jax.studies.sweep.loop import Bench, GroupTrainer, final_metrics
from ofa_jax.studies.sweep.program import bucket
from ofa_jax.tasks.base import TaskData
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.events import EventLog
from ofa_jax.train.loop import Reporter, stop_on_signal

if TYPE_CHECKING:
    import pandas as pd

RECORD, TABLE, CELLS, CONTROLS = "sweep.json", "sweep.csv", "cells", "controls"
FIGURES = ("accuracy_by_rank", "accuracy_by_bytes")
"""Figures of a sweep: functions of :mod:`ofa_jax.plots.studies` and files of the folder."""

_KIND = "ofa-jax sweep"
_NUMBERS = (
    "rank",
    "alpha",
    "scaling",
    "init",
    "learning_rate",
    "seed",
    "trainable",
    "bytes",
    "best_epoch",
    "epochs",
)


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder and what its sweep.json holds."""

    folder: Path
    record: dict[str, Any]

    @property
    def cells(self) -> pd.DataFrame:
        """A row per finished cell, in the order of the axes.

        Columns are ``rank, alpha, scaling, init, learning_rate, seed, trainable, bytes, best_epoch, epochs``, then ``validation_`` and
        ``test_`` metrics of the best epoch (NaN where the cell diverged), ``cell`` (its folder) and ``ended`` (why).
        """
        return _table(self.record["cells"])

    @property
    def controls(self) -> pd.DataFrame | None:
        """Columns ``method, trainable, bytes`` and ``test_`` metrics; None where they were not asked for."""
        import pandas as pd

        found = self.record["controls"]
        return None if found is None else pd.DataFrame(found)

    @property
    def metric(self) -> str:
        """The column that figures show: the test part's value of what validation chooses by, or its first metric."""
        columns = [name for name in self.cells.columns if name.startswith("test_")]
        objective = f"test_{self.record['objective']}"
        return objective if objective in columns else columns[0]


def run_sweep(
    experiment: Experiment,
    axes: Axes,
    out: str | Path,
    reporter: Reporter,
    *,
    at_once: int | None = None,
    controls: bool = False,
) -> Sweep:
    """Train every cell of a sweep in a folder; a folder that already holds this sweep goes on where it stopped.

    Args:
        experiment: The settings of every cell, but for what varies.
        axes: What varies.
        out: The sweep's folder.
        reporter: What tells a person how it goes.
        at_once: Adapters that are trained side by side, at most; what fits when not given. It changes rounding alone.
        controls: Also train the controls that the task has, once, and keep them.

    Raises:
        ConfigError: A value of an axis is wrong, the recipe adapts no layer, or the folder's sweep was begun with other settings.
        CheckpointError: Another process holds the folder, it holds something else, or its checkpoints are damaged.
        TrainError: There is no room for a step.
        Interrupted: A signal asked to stop; everything is saved.
        OfaError: As :func:`~ofa_jax.runs.train.train_run`.
    """
    out = Path(out)
    cells_of(experiment, axes)  # for its errors, before anything is read or made
    if jax.process_count() > 1:
        raise ConfigError(
            "a sweep is trained by one process",
            fix="Start it on one machine, or share out the ranks among several sweeps",
        )
    if experiment.train.gradient_log is not None:
        raise ConfigError(
            "a sweep logs no gradients",
            where="train.gradient_log",
            fix="Leave it out, or train the cell by itself",
        )
    if at_once is not None and at_once < 1:
        raise ConfigError(
            f"{at_once} adapters at a time train nothing", where="--at-once", fix="Take at least 1"
        )
    if experiment.train.fsdp > 1:
        raise ConfigError("a sweep is trained on one device", where="train.fsdp", fix="Leave it out")
    if jax.local_device_count() > 1:
        reporter.notice(f"a sweep uses one of the {jax.local_device_count()} devices")
    with sweep_folder(out):
        begun = read_json(out / RECORD, kind="sweep") if (out / RECORD).exists() else None
        experiment = resolved(
            experiment,
            None if begun is None else build_experiment(begun["settings"], where=str(out / RECORD)),
        )
        data = read_data(experiment)
        experiment = experiment.model_copy(update={"task": data.settings})
        for notice in data.notices:
            reporter.notice(notice)
        model = build_model(experiment)
        if not model.targets:
            raise ConfigError(
                "the rules adapt no layer, so there is no rank to sweep",
                where=f"recipe {experiment.recipe}",
                fix="Take a recipe with adapters (reference, paper, uniform), or adapt a layer by a rule",
            )
        work = _Work(out, experiment, axes, model, data, reporter)
        work.begin(begun, at_once)
        with stop_on_signal() as request:
            for group in work.groups:
                if not work.is_done(group):
                    if request.signal_number:
                        raise Interrupted(request.signal_number, work.step, saved=True)
                    work.train(group, request)
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
            wanting = controls and work.record["controls"] is None
            if wanting and request.signal_number:
                raise Interrupted(request.signal_number, work.step, saved=True)
        if wanting:  # each of them answers signals itself while it is trained; in between they act as usual, and nothing is lost
            work.add_controls()
        work.draw()
        return Sweep(out, work.record)


@contextlib.contextmanager
def sweep_folder(out: Path) -> Iterator[None]:
    """Hold a sweep's folder, or make one; what a kill left behind in it is cleared.

    Raises:
        CheckpointError: Another process holds it, or it holds something else than a sweep.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError(
            "this is a file, not a sweep's folder", where=str(out), fix="Choose another --out"
        )
    leftover = (".lock", f".{RECORD}.")
    if (
        out.is_dir()
        and not (out / RECORD).exists()
        and any(not entry.name.startswith(leftover) for entry in out.iterdir())
    ):
        raise CheckpointError(
            "this folder holds something else than a sweep",
            where=str(out),
            fix="Choose a new folder for --out",
        )
    try:
        with run_lock(out):
            for name in (RECORD, TABLE, *(f"{figure}.png" for figure in FIGURES)):
                clear_leftovers(out / name)
            yield
    finally:
        if out.is_dir() and [entry.name for entry in out.iterdir()] == [
            ".lock"
        ]:  # it failed before the sweep began
            shutil.rmtree(out)


class _Work:
    """One sweep in its folder."""

    def __init__(
        self, out: Path, experiment: Experiment, axes: Axes, model: Model, data: TaskData, reporter: Reporter
    ) -> None:
        self.out, self.experiment, self.axes, self.model, self.data, self.reporter = (
            out,
            experiment,
            axes,
            model,
            data,
            reporter,
        )
        self.cells = cells_of(experiment, axes)
        self.bench = Bench(model, data.task, experiment.train)
        self.groups: list[Group] = []
        self.step = 0
        self.record: dict[str, Any] = {}

    def begin(self, begun: dict[str, Any] | None, at_once: int | None) -> None:
        """Write the record of a new sweep, or make sure that the folder's own has these settings, axes, data and trunk."""
        if begun is None:
            self.record = {
                "kind": _KIND,
                "provenance": provenance(self.model, self.data),
                "settings": dump_experiment(self.experiment),
                "axes": self.axes.to_dict(),
                "at_once": {str(limit): number for limit, number in self._at_once(at_once).items()},
                "protocol": self.data.task.protocol,
                "objective": self.data.task.objective,
                "windows": {split: table.size for split, table in self.data.task.tables.items()},
                "cells": [],
                "controls": None,
            }
        else:
            if (
                at_once is not None
                and not begun["cells"]
                and not any((self.out / CHECKPOINTS).glob("*/[0-9]*"))
            ):
                begun = {
                    **begun,
                    "at_once": dict.fromkeys(begun["at_once"], at_once),
                }  # nothing hangs on it yet
            self._check(begun, at_once)
            self.record = {name: value for name, value in begun.items() if name != "format"}
        self.write()  # also of a sweep that goes on: a kill may have come between its two files
        self.groups = groups_of(
            self.cells, {int(limit): number for limit, number in self.record["at_once"].items()}
        )

    def _at_once(self, asked: int | None) -> dict[int, int]:
        chosen = {}
        for limit in {bucket(cell.rank) for cell in self.cells}:
            largest = max(
                (cell for cell in self.cells if bucket(cell.rank) == limit), key=lambda cell: cell.rank
            )
            size = 4 * sum(leaf.size for leaf in jax.tree.leaves(self.bench.start(largest)))
            batch = self.bench.settings.micro_batch or self.bench.settings.batch_size
            chosen[limit] = asked or adapters_at_once(self.model.network, size, batch, jax.default_backend())
        return chosen

    def _check(self, begun: Mapping[str, Any], at_once: int | None) -> None:
        if begun.get("kind") != _KIND:
            raise CheckpointError(
                f"is not the record of a sweep (kind {begun.get('kind')!r})", where=str(self.out / RECORD)
            )
        now = self.axes.to_dict()
        changed = [
            (f"--{name.replace('_', '-')}", begun["axes"].get(name), now[name])
            for name in now
            if begun["axes"].get(name) != now[name]
        ]
        changed += differences(begun["settings"], dump_experiment(self.experiment))
        if at_once is not None:
            changed += [
                ("--at-once", old, at_once)
                for old in sorted(set(begun["at_once"].values()))
                if old != at_once
            ][:1]
        if changed:
            listed = "; ".join(f"{name} was {old!r}, is now {new!r}" for name, old, new in changed[:5])
            raise ConfigError(
                f"the sweep there was begun with other settings: {listed}",
                where=str(self.out),
                fix="Use its own settings to go on with it, or another --out",
            )
        made = provenance(self.model, self.data)
        for key, what in (
            ("data_sha256", "data"),
            ("trunk_sha256", "trunk weights"),
            ("trunk_config", "trunk's shapes"),
        ):
            if begun["provenance"].get(key) != made[key]:
                raise CheckpointError(
                    f"the {what} are not those the sweep was begun with",
                    where=str(self.out),
                    fix=f"Restore the original {what}, or choose another --out",
                )

    def is_done(self, group: Group) -> bool:
        done = {row["cell"] for row in self.record["cells"]}
        return all(cell.name in done for cell in group.cells)

    def train(self, group: Group, request: Any) -> None:
        """Train a group to its end and keep what came of it."""
        named = ", ".join(cell.name for cell in group.cells[:4]) + (", …" if len(group.cells) > 4 else "")
        self.reporter.notice(f"{group.name} of {len(self.groups)}: {named}")
        for cell in group.cells:
            folder = self._folder(cell)
            folder.mkdir(parents=True, exist_ok=True)
            for name in (CONFIG_FILE, BUNDLE):
                clear_leftovers(folder / name)
            begin_or_check(folder, cell.experiment, self.model, self.data, self.reporter)
        logs = [EventLog(self._folder(cell) / METRICS_FILE) for cell in group.cells]
        place = self.out / CHECKPOINTS / group.name
        checkpoints = Checkpoints(place)
        try:
            trainer = GroupTrainer(self.bench, group, logs, checkpoints, self.reporter)
            trainer.resume()
            trainer.run(request)
        finally:
            checkpoints.close()
        self._keep(group, trainer)
        self.step = trainer.step
        shutil.rmtree(place)

    def _folder(self, cell: Cell) -> Path:
        return self.out / CELLS / cell.name

    def _keep(self, group: Group, trainer: GroupTrainer) -> None:
        """Score the test part, write the bundles, then the rows: a cell with a row has everything."""
        tested = final_metrics(self.bench, trainer, "test")
        rows = []
        for place, (cell, progress, metrics) in enumerate(
            zip(group.cells, trainer.progress, tested, strict=True)
        ):
            best = trainer.best_of(place)
            if not progress.diverged:
                own = replace(self.model, trainable=best, lora=cell.lora)
                BundleWriter(self._folder(cell) / BUNDLE, cell.experiment, own, self.data)(best, progress)
            trainable = sum(leaf.size for leaf in jax.tree.leaves(best))
            found = (
                {}
                if progress.diverged
                else {f"validation_{name}": value for name, value in progress.best_metrics.items()}
            )
            found |= {f"test_{name}": value for name, value in (metrics or {}).items()}
            counts = {"trainable": trainable, "bytes": 4 * trainable, "best_epoch": progress.best_epoch}
            epochs = -(-progress.step // self.bench.epoch_steps)
            rows.append(
                {
                    **cell.columns(),
                    **counts,
                    "epochs": epochs,
                    **found,
                    "cell": cell.name,
                    "ended": progress.finished,
                }
            )
        order = {cell.name: number for number, cell in enumerate(self.cells)}
        self.record["cells"] = sorted([*self.record["cells"], *rows], key=lambda row: order[row["cell"]])
        self.write()

    def add_controls(self) -> None:
        """Train and score the controls of the settings as they stand, on the test part."""
        wanted = trained_controls(self.experiment, self.data)
        try:
            rows = control_rows(
                self.experiment,
                self.model.network,
                self.data,
                split="test",
                wanted=wanted,
                folder=self.out / CONTROLS,
                reporter=self.reporter,
            )
        except Interrupted as stop:
            raise Interrupted(
                stop.signal_number, stop.step, saved=True
            ) from None  # the cells are, and every control that had ended
        self.record["controls"] = [
            {
                "method": row.method,
                "trainable": row.trainable,
                "bytes": row.bytes,
                **{f"test_{name}": v for name, v in row.metrics.items()},
            }
            for row in rows
        ]
        self.write()

    def write(self) -> None:
        """Write the record and the table, each whole."""
        write_json(self.out / RECORD, self.record)
        if self.record["cells"]:
            write_atomic(self.out / TABLE, _table(self.record["cells"]).to_csv(index=False))

    def draw(self) -> None:
        """The figures, of the cells that have numbers."""
        from ofa_jax.plots import studies as plots
        from ofa_jax.plots import style as plots_style

        made = Sweep(self.out, self.record)
        if all(not name.startswith("test_") for name in made.cells.columns):
            return
        cells = made.cells.dropna(subset=[made.metric])
        for name, figure in (
            ("accuracy_by_rank", plots.accuracy_by_rank),
            ("accuracy_by_bytes", plots.accuracy_by_bytes),
        ):
            write_atomic(
                self.out / f"{name}.png",
                plots_style.as_png(figure(cells, made.metric, controls=made.controls)),
            )


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    names = dict.fromkeys(name for row in rows for name in row)
    metrics = [name for start in ("validation_", "test_") for name in names if name.startswith(start)]
    return pd.DataFrame(rows, columns=[*_NUMBERS, *metrics, "cell", "ended"])


def read_sweep(folder: str | Path) -> Sweep:
    """A sweep's record, with the cells that have ended so far.

    Raises:
        CheckpointError: There is none.
    """
    folder = Path(folder)
    record = read_json(folder / RECORD, kind="sweep")
    if record.get("kind") != _KIND:
        raise CheckpointError(
            f"is not the record of a sweep (kind {record.get('kind')!r})", where=str(folder / RECORD)
        )
    return Sweep(folder, record)


def summary(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (n − 1) over the seeds: a row per combination of the other axes.

    Returns:
        Columns ``rank, alpha, scaling, init, learning_rate, trainable, bytes, seeds`` and, for each metric, ``NAME`` (mean) and
        ``NAME_std``; cells that diverged count in neither, and ``seeds`` counts the others.
    """
    apart = ["rank", "alpha", "scaling", "init", "learning_rate", "trainable", "bytes"]
    metrics = [name for name in cells.columns if name.startswith(("validation_", "test_"))]
    grouped = cells.groupby(apart, sort=False)
    found = grouped[metrics].mean()
    for name in metrics:
        found[f"{name}_std"] = grouped[name].std()
    found.insert(0, "seeds", grouped[metrics[0]].count() if metrics else 0)
    return found.reset_index()

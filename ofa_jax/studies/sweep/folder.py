"""A sweep: many adapters on one network and one data set, in one folder.

::

    sweep/
      sweep.json          settings, axes, provenance, a row per finished cell, baselines
      sweep.csv           the rows as a table                 accuracy_by_rank.png, accuracy_by_bytes.png
      cells/NAME/         a run folder without checkpoints: config.yaml, metrics.jsonl and bundle,
                          for `ofa-jax evaluate` and `predict`
      checkpoints/        of the group of cells that is being trained
      controls/           trained baselines, if requested

A sweep uses one device. A cell that diverges ends alone, without metrics or bundle. Any other cell is the run
that ``ofa-jax train`` makes of its config.yaml: the same batches, dropout, steps, patience and choice of the
best epoch. Parameters differ by rounding, since a product over padded ranks is summed in another order; where
two epochs score almost the same, rounding may decide which is the best.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
from pydantic import ConfigDict, Field, PositiveInt
from pydantic_core import to_jsonable_python

from ofa_jax.baselines.compare import baseline_rows
from ofa_jax.baselines.trained import trained_baselines
from ofa_jax.build import build_model, lora_config
from ofa_jax.config.load import build_experiment, dump_experiment, upgrade_settings
from ofa_jax.config.schema import Experiment
from ofa_jax.errors import CheckpointError, ConfigError, Interrupted
from ofa_jax.files import (
    FileRecord,
    clear_leftovers,
    json_digest,
    parse_record,
    read_json,
    write_atomic,
    write_json,
)
from ofa_jax.runs.bundle import BundleWriter, about_data
from ofa_jax.runs.folder import (
    BASELINES,
    BUNDLE,
    CHECKPOINTS,
    CONFIG_FILE,
    METRICS_FILE,
    Provenance,
    begin_or_check,
    check_same,
    locked_folder,
    provenance,
    resolved,
)
from ofa_jax.runs.train import read_data, saved_sizes, with_fitted_epochs
from ofa_jax.studies.sweep.cells import SETTINGS, Axes, Cell, Group, adapters_at_once, cells_of, groups_of
from ofa_jax.studies.sweep.program import SweepPrograms, bucket, cut, final_metrics
from ofa_jax.tasks.base import TaskData
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.events import EventLog
from ofa_jax.train.loop import Trainer
from ofa_jax.train.progress import Reporter
from ofa_jax.train.signals import StopRequest, stop_on_signal

if TYPE_CHECKING:
    import pandas as pd

SWEEP_FORMAT = 4
"""Of sweep.json; format 3 added the season length m of the test part, format 4 the digest ``sha256``."""

RECORD, TABLE, CELLS = "sweep.json", "sweep.csv", "cells"
FIGURES = ("accuracy_by_rank", "accuracy_by_bytes")
"""Figures of a sweep: functions of :mod:`ofa_jax.plots.studies` and files of the folder."""


class Sweep(FileRecord):
    """A sweep: its folder, and the content of sweep.json."""

    model_config = ConfigDict(frozen=False, validate_by_name=True)
    newest = SWEEP_FORMAT

    folder: Path = Field(Path(), exclude=True)
    format: int = SWEEP_FORMAT
    kind: Literal["ofa-jax sweep"] = "ofa-jax sweep"
    provenance: Provenance
    settings: dict[str, Any]
    axes: dict[str, Any]
    at_once: dict[Annotated[int, Field(strict=False)], PositiveInt]
    protocol: str
    season: int | None = None
    objective: str
    windows: dict[str, int]
    cell_rows: list[dict[str, Any]] = Field(default_factory=list, alias="cells")
    baseline_rows: list[dict[str, Any]] | None = Field(None, alias="controls")

    @property
    def record(self) -> dict[str, Any]:
        """The content of sweep.json."""
        return self.model_dump(mode="json", by_alias=True, exclude={"format"})

    @property
    def cells(self) -> pd.DataFrame:
        """A row per finished cell, in the order of the axes.

        Columns are ``rank, alpha, scaling, init, learning_rate, seed, trainable, bytes, best_epoch, epochs``,
        then the ``validation_`` and ``test_`` metrics of the best epoch (NaN where the cell diverged),
        ``cell`` (its folder) and ``ended`` (why).
        """
        import pandas as pd

        table = pd.DataFrame(self.cell_rows)
        metrics = [*table.filter(regex="^validation_"), *table.filter(regex="^test_")]
        counts = ["seed", "trainable", "bytes", "best_epoch", "epochs"]
        return table.reindex(columns=[*SETTINGS, *counts, *metrics, "cell", "ended"])

    @property
    def baselines(self) -> pd.DataFrame | None:
        """Columns ``method, trainable, bytes`` and ``test_`` metrics; None if they were not requested."""
        import pandas as pd

        return None if self.baseline_rows is None else pd.DataFrame(self.baseline_rows)

    @property
    def seeds(self) -> int:
        """Number of seeds per configuration."""
        return int(self.axes["seeds"])

    def write(self) -> None:
        """Write record and table, each atomically."""
        content = self.record
        content["sha256"] = json_digest({"format": SWEEP_FORMAT, **content})
        write_json(self.folder / RECORD, content, version=SWEEP_FORMAT)
        if self.cell_rows:
            write_atomic(self.folder / TABLE, self.cells.to_csv(index=False))

    def draw(self) -> None:
        """Write the figures, of the objective on the test part or else the first test metric."""
        from ofa_jax.plots import studies as plots
        from ofa_jax.plots.style import save_figure

        shown = list(self.cells.filter(regex="^test_"))
        if not shown:  # every cell diverged
            return
        objective = f"test_{self.objective}"
        metric = objective if objective in shown else shown[0]
        for name in FIGURES:
            figure = getattr(plots, name)(self.cells.dropna(subset=[metric]), metric, self.baselines)
            save_figure(figure, self.folder / f"{name}.png")


def read_sweep(folder: str | Path) -> Sweep:
    """A sweep, with the cells that have ended so far.

    Raises:
        CheckpointError: There is none, or its record is damaged or was edited.
    """
    path = Path(folder) / RECORD
    content = read_json(path, kind="sweep")
    sweep, digest = parse_record(content, Sweep, where=str(path)), content.pop("sha256", None)
    if sweep.format >= 4 and digest != json_digest(content):
        fix = "Restore the original file; the cells have their own records"
        raise CheckpointError("was edited after it was saved (its sha256 differs)", where=str(path), fix=fix)
    sweep.folder, sweep.settings = Path(folder), upgrade_settings(sweep.settings, sweep.format)
    return sweep


def run_sweep(
    experiment: Experiment,
    axes: Axes,
    out: str | Path,
    reporter: Reporter,
    *,
    at_once: int | None = None,
    baselines: bool = False,
) -> Sweep:
    """Train every cell of a sweep in a folder; a folder that already contains this sweep is resumed.

    Args:
        experiment: The settings of every cell, except for what varies.
        axes: What varies.
        out: The sweep's folder.
        reporter: Progress reporter.
        at_once: Largest number of adapters to train together; default: what fits. It changes rounding only.
        baselines: Also train the task's baselines, once, and keep them.

    Raises:
        ConfigError: An axis is wrong, the rules adapt no layer, or the folder's sweep has other settings.
        Interrupted: A signal asked for a stop; everything is saved.
        OfaError: As :func:`~ofa_jax.runs.train.train_run`.
    """
    out = Path(out)
    cells_of(experiment, axes)  # for its errors, before anything is read or made
    if jax.process_count() > 1:
        fix = "Run it on one machine, or divide the ranks among several sweeps"
        raise ConfigError("a sweep is trained by one process", fix=fix)
    if at_once is not None and at_once < 1:
        raise ConfigError(f"{at_once} is less than 1", where="at_once")
    if experiment.train.fsdp > 1:
        raise ConfigError("a sweep is trained on one device", where="train.fsdp", fix="Omit it")
    if experiment.train.solver == "ridge":
        raise ConfigError("a sweep is trained by gradient steps", where="train.solver", fix="Omit it")
    if jax.local_device_count() > 1:
        reporter.notice(f"a sweep uses one of the {jax.local_device_count()} devices")
    files = [TABLE, *(f"{figure}.png" for figure in FIGURES)]
    with locked_folder(out, RECORD, files, kind="sweep folder"):
        begun = read_sweep(out) if (out / RECORD).exists() else None
        before = build_experiment(begun.settings, where=str(out / RECORD)) if begun else None
        experiment = experiment.replace(saved_sizes(experiment, before) if before else {})
        experiment = resolved(experiment, before.trunk.compute_dtype if before else None)
        data = read_data(experiment, relative=begun is None or begun.provenance.relative)
        experiment, added = with_fitted_epochs(experiment.replace({"task": data.settings}), data.task)
        for notice in [*data.notices, *added]:
            reporter.notice(notice)
        model = build_model(experiment)
        if not model.targets:
            fix = "Use a recipe with adapters (reference, paper, uniform), or adapt a layer by a rule"
            raise ConfigError("there is no adapted layer, so no rank to sweep", where="rules", fix=fix)
        programs = SweepPrograms(model, data.task, experiment.train)
        fresh = Sweep(
            folder=out,
            provenance=provenance(model, data),
            settings=dump_experiment(experiment),
            axes=to_jsonable_python(axes),
            at_once=_sizes(axes, programs, at_once),
            protocol=data.task.protocol,
            objective=data.task.objective,
            season=data.season_in("test"),
            windows={split: table.size for split, table in data.task.tables.items()},
        )
        made = fresh if begun is None else _same_sweep(begun, fresh, at_once)
        work = _Work(made, cells_of(experiment, axes), programs, data, fresh.provenance, reporter)
        wanted = baselines and made.baseline_rows is None
        with stop_on_signal(reporter.notice) as request:
            work.train(request)
            if wanted and request.signal_number:
                raise Interrupted(request.signal_number, work.step, saved=True)
        if wanted:  # each handles signals itself while it is trained
            work.add_baselines(experiment)
        made.draw()
        return made


def _sizes(axes: Axes, programs: SweepPrograms, at_once: int | None) -> dict[int, int]:
    """For each bucket, how many adapters to train together."""
    model, settings = programs.model, programs.settings
    batch, backend = settings.micro_batch or settings.batch_size, jax.default_backend()
    per_rank = sum(sum(target.shape) for target in model.targets.values())
    sizes = {}
    for rank in sorted(axes.ranks):  # the largest of a bucket decides
        size = 4 * (_parameters(model.trainable["base"]) + rank * per_rank)
        sizes[bucket(rank)] = at_once or adapters_at_once(model.network, size, batch, backend)
    return sizes


def _parameters(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _same_sweep(begun: Sweep, fresh: Sweep, at_once: int | None) -> Sweep:
    """The folder's sweep, once it is certain that it is this one."""
    trained = begun.cell_rows or any((begun.folder / CHECKPOINTS).glob("*/[0-9]*"))
    if at_once is not None and not trained:
        begun.at_once = fresh.at_once  # nothing depends on it yet
    settings = dump_experiment(build_experiment(begun.settings, where=str(begun.folder / RECORD)))
    old, new = {"axes": begun.axes, **settings}, {"axes": fresh.axes, **fresh.settings}
    if at_once is not None and (other := sorted(set(begun.at_once.values()) - {at_once})):
        old, new = old | {"at_once": other[0]}, new | {"at_once": at_once}
    check_same(old, begun.provenance, new, fresh.provenance, where=begun.folder)
    return begun


@dataclass
class _Work:
    """A sweep in its folder, with what is needed to train it."""

    sweep: Sweep
    cells: list[Cell]
    programs: SweepPrograms
    data: TaskData
    made: Provenance
    reporter: Reporter
    step: int = 0

    def train(self, request: StopRequest) -> None:
        """Train the groups that are not done."""
        self.sweep.write()  # also of a resumed sweep, which may have been killed between its two files
        done = {row["cell"] for row in self.sweep.cell_rows}
        groups = groups_of(self.cells, self.sweep.at_once)
        for group in groups:
            if done.issuperset(cell.name for cell in group.cells):
                continue
            if request.signal_number:
                raise Interrupted(request.signal_number, self.step, saved=True)
            names = ", ".join(cell.name for cell in group.cells[:4]) + ", …" * (len(group.cells) > 4)
            self.reporter.notice(f"{group.name} of {len(groups)}: {names}")
            self.train_group(group, request)
        shutil.rmtree(self.sweep.folder / CHECKPOINTS, ignore_errors=True)

    def train_group(self, group: Group, request: StopRequest) -> None:
        """Train a group to its end, evaluate it, and write its bundles and rows."""
        for cell in group.cells:
            folder = self._folder(cell)
            folder.mkdir(parents=True, exist_ok=True)
            for name in (CONFIG_FILE, BUNDLE, METRICS_FILE):
                clear_leftovers(folder / name)
            begin_or_check(folder, cell.experiment, self.made, self.reporter)
        logs = [EventLog(self._folder(cell) / METRICS_FILE) for cell in group.cells]
        checkpoints = Checkpoints(self.sweep.folder / CHECKPOINTS / group.name)
        trainer = self.programs.trainer(group, logs, checkpoints, self.reporter)
        trainer.resume()
        trainer.run(request)
        self._keep(group, trainer)
        self.step = trainer.step
        shutil.rmtree(self.sweep.folder / CHECKPOINTS / group.name)

    def _folder(self, cell: Cell) -> Path:
        return self.sweep.folder / CELLS / cell.name

    def _keep(self, group: Group, trainer: Trainer) -> None:
        """Evaluate the test part, write the bundles, then the rows: a cell with a row is complete."""
        rows = self.sweep.cell_rows
        for cell, lane, tested in zip(group.cells, trainer.lanes, final_metrics(trainer), strict=True):
            progress, settings = lane.progress, dump_experiment(cell.experiment)
            best = {**lane.best, "adapters": cut(lane.best["adapters"], cell.rank)}
            if not progress.diverged:
                own = replace(self.programs.model, trainable=best, lora=lora_config(cell.experiment.adapters))
                BundleWriter(self._folder(cell) / BUNDLE, cell.experiment, own, about_data(self.data))(
                    best, progress
                )
                tested = _named("validation", progress.best_metrics) | _named("test", tested)
            row = {name: settings[section][name] for name, (_, section, _) in SETTINGS.items()}
            row |= {"seed": cell.seed, "trainable": _parameters(best), "bytes": 4 * _parameters(best)}
            row |= {"best_epoch": progress.best_epoch, "epochs": -(-progress.step // trainer.epoch_steps)}
            rows.append({**row, **tested, "cell": cell.name, "ended": progress.finished})
        order = [cell.name for cell in self.cells]
        rows.sort(key=lambda row: order.index(row["cell"]))
        self.sweep.write()

    def add_baselines(self, experiment: Experiment) -> None:
        """Train and evaluate the baselines with the sweep's own settings, on the test part."""
        wanted, network = trained_baselines(experiment, self.data), self.programs.model.network
        how: dict[str, Any] = {"wanted": wanted, "folder": self.sweep.folder / BASELINES}
        try:
            rows = baseline_rows(experiment, network, self.data, split="test", reporter=self.reporter, **how)
        except Interrupted as stop:  # the cells are saved, and every baseline that had ended
            raise Interrupted(stop.signal_number, stop.step, saved=True) from None
        self.sweep.baseline_rows = [
            {
                "method": row.method,
                "trainable": row.trainable,
                "bytes": row.bytes,
                **_named("test", row.metrics),
            }
            for row in rows
        ]
        self.sweep.write()


def _named(split: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{split}_{name}": value for name, value in metrics.items()}


def summary(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (n − 1) over the seeds: a row per combination of the other axes.

    Returns:
        Columns ``rank, alpha, scaling, init, learning_rate, trainable, bytes, seeds`` and, for each metric,
        ``NAME`` (mean) and ``NAME_std``. Diverged cells count in none of them.
    """
    metrics = [name for name in cells.columns if name.startswith(("validation_", "test_"))]
    grouped = cells.groupby([*SETTINGS, "trainable", "bytes"], sort=False)
    found = grouped[metrics].mean()
    for name in metrics:
        found[f"{name}_std"] = grouped[name].std()
    found.insert(0, "seeds", grouped[metrics[0]].count() if metrics else 0)
    return found.reset_index()

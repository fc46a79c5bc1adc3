"""Train in a run folder, and open one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ofa_jax.adapters.bundle import META_FILE
from ofa_jax.build import Model, build_model
from ofa_jax.config.load import dump_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.config.tasks import GENERATED
from ofa_jax.data.catalog.load import CATALOG
from ofa_jax.errors import CheckpointError, ConfigError, DataError
from ofa_jax.files import is_there, readable_folder
from ofa_jax.runs.bundle import BundleWriter, LoadedModel, about_data, load_bundle
from ofa_jax.runs.fitting import fit_model
from ofa_jax.runs.folder import (
    BUNDLE,
    CHECKPOINTS,
    CONFIG_FILE,
    METRICS_FILE,
    PLACES,
    begin_or_check,
    leaves,
    locked_folder,
    provenance,
    read_config,
    resolved,
)
from ofa_jax.runs.ridge import check_solver, is_closed_form, solve_on_all_parts
from ofa_jax.tasks.base import Task, TaskData
from ofa_jax.tasks.table import prepare
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.events import EventLog
from ofa_jax.train.fit import FitResult, fit
from ofa_jax.train.optim import remark_on_schedule
from ofa_jax.train.processes import (
    broadcast_from_main,
    check_alike,
    detect_lost_peers,
    is_main_process,
    raise_together,
)
from ofa_jax.train.program import evaluation_options, resolve_auto_batch_sizes
from ofa_jax.train.progress import SILENT, Reporter

FINAL = "final"
"""Folder of the bundle that ``train.refit`` writes."""

FITTED = ("task.input_length", "task.horizon", "train.batch_size", "train.patience")
"""Settings that depend on the data where they are not given."""

FEWEST_STEPS = 8
"""Steps of an epoch below which a default batch size is too large."""


def train_run(
    experiment: Experiment,
    out: str | Path,
    reporter: Reporter = SILENT,
    *,
    saved: Callable[[], None] | None = None,
) -> FitResult:
    """Train in a run folder; a folder that already has this run is resumed.

    Where several processes train one run, each calls this with the same settings. Only the main process uses
    the folder and reports.

    Args:
        experiment: The settings.
        out: The run folder.
        reporter: Progress reporter; default: silent.
        saved: Called on the main process after every new checkpoint and at the end; it may copy the folder.

    Raises:
        CheckpointError: The folder is in use or not a run folder, or its checkpoints are damaged.
        ConfigError: The folder's run has other settings.
        PeerLost: Another process of the run is gone.
        OfaError: As :func:`~ofa_jax.tasks.table.prepare`, :func:`~ofa_jax.build.build_model` and
            :func:`~ofa_jax.train.fit.fit`.
    """
    out, main = Path(out), is_main_process()
    reporter = reporter if main else SILENT
    with detect_lost_peers(), contextlib.ExitStack() as stack:
        begun = b"{}"
        with raise_together("opening the run folder"):
            if main:
                stack.enter_context(
                    locked_folder(out, CONFIG_FILE, [BUNDLE, FINAL, METRICS_FILE], kind="run folder")
                )
                if (out / CONFIG_FILE).exists():
                    saved_run, made = read_config(out)
                    dtype = saved_run.trunk.compute_dtype
                    sizes = saved_sizes(experiment, saved_run)
                    facts = {"dtype": dtype, "relative": made.relative, "sizes": sizes}
                    begun = json.dumps(facts).encode()
        before = json.loads(broadcast_from_main(begun))
        experiment = resolved(experiment.replace(before.get("sizes", {})), before.get("dtype"))
        with raise_together("reading data and trunk"):
            data = read_data(experiment, relative=before.get("relative", True))
            experiment, added = experiment.replace({"task": data.settings}), list[str]()
            model = build_model(experiment)
            check_solver(model, data.task, experiment.train)
            if not is_closed_form(model, data.task, experiment.train):
                experiment, added = with_fitted_epochs(experiment, data.task)
            for notice in [*data.notices, *added]:
                reporter.notice(notice)
        made = provenance(model, data)
        facts = {**dump_experiment(experiment), **made.model_dump()}
        check_alike({name: value for name, value in leaves(facts).items() if name not in PLACES})
        with raise_together("starting the run"):
            recorded = begin_or_check(out, experiment, made, reporter) if main else experiment
        writer = BundleWriter(out / BUNDLE, recorded, model, about_data(data)) if main else None
        result = fit_model(
            model,
            data.task,
            experiment.train,
            reporter=reporter,
            log=EventLog(out / METRICS_FILE if main else None),
            checkpoints=Checkpoints(out / CHECKPOINTS, saved=saved) if main else None,
            keep_best=writer,
        )
        values: dict[str, Any] = {}
        if data.calibrate is not None:
            options = evaluation_options(experiment.train, model.network)
            evaluator = WindowPredictor(model.predict, data.task, data.task.sums, **options)
            values = data.calibrate(lambda table: evaluator(table, model.frozen, result.best))
        with raise_together("saving the bundle"):
            if writer is not None and values:
                writer(result.best, result.progress, values)
            if main and saved is not None:
                saved()
        if experiment.train.refit:
            _refit(out, experiment, model, data, result, reporter, main=main)
        return result


def _refit(
    out: Path,
    experiment: Experiment,
    model: Model,
    data: TaskData,
    result: FitResult,
    reporter: Reporter,
    *,
    main: bool,
) -> None:
    """Train from the start on all parts, for as many epochs as were best, and write the bundle ``FINAL``."""
    into = f"into {out / FINAL}, for `predict` alone"
    if is_closed_form(model, data.task, experiment.train):
        reporter.notice(f"training on all parts with the penalty and step that were chosen, {into}")
        made = solve_on_all_parts(
            model, data.task, experiment.train, Checkpoints(out / CHECKPOINTS), reporter
        )
    else:
        epochs = max(1, result.progress.best_epoch)
        reporter.notice(f"training on all parts for {epochs} epoch(s), {into}")
        settings = experiment.train.model_copy(update={"epochs": epochs, "patience": epochs})
        made = fit(
            model.predict,
            data.task.on_all_parts(),
            frozen=model.frozen,
            trainable=model.trainable,
            settings=resolve_auto_batch_sizes(settings, model.network),
            reporter=reporter,
            checkpoints=Checkpoints(out / f"{FINAL}_{CHECKPOINTS}") if main else None,
        ).last
    with raise_together("saving the final bundle"):
        if main:
            BundleWriter(out / FINAL, experiment, model, about_data(data))(made, result.progress)


def with_fitted_epochs(experiment: Experiment, task: Task) -> tuple[Experiment, list[str]]:
    """The settings of training by gradient steps that fit the number of windows, and notices about them.

    Where the default batch size makes fewer than :data:`FEWEST_STEPS` steps an epoch, it becomes the power of
    two that makes more, and the default patience all epochs, since few windows validate roughly.
    """
    train, notices = experiment.train, list[str]()
    windows = task.tables["train"].size if task.groups is None else len(task.groups) - 1
    few = windows < FEWEST_STEPS * train.batch_size and task.protocol == "strict"
    if few and "batch_size" not in train.model_fields_set:
        size = 2 ** ((max(windows, FEWEST_STEPS) // FEWEST_STEPS).bit_length() - 1)
        fitted = {"train.batch_size": max(size, train.micro_batch or 1)}
        if "patience" not in train.model_fields_set and train.patience < train.epochs:
            fitted["train.patience"] = train.epochs
        listed = " and ".join(f"{path} = {value}" for path, value in fitted.items())
        notices.append(f"an epoch has {windows:,} window(s), so settings that were not given fit: {listed}")
        experiment = experiment.replace(fitted)
    remark = remark_on_schedule(train.schedule, train.epochs, train.cosine_epochs)
    return experiment, [*notices, *filter(None, [remark])]


def saved_sizes(experiment: Experiment, saved: Experiment) -> dict[str, int]:
    """The values of a saved run for those of :data:`FITTED` that are not given."""
    found = {}
    for path in FITTED:
        section, _, name = path.partition(".")
        given, kept = getattr(experiment, section), getattr(saved, section)
        if name not in given.model_fields_set and hasattr(given, name) and hasattr(kept, name):
            found[path] = getattr(kept, name)
    return found


def read_data(experiment: Experiment, *, relative: bool = True) -> TaskData:
    """The data of an experiment as its task reads them, or once did (:meth:`TaskData.absolute`)."""
    data = prepare(
        experiment.data,
        experiment.task,
        protocol=experiment.protocol,
        batch_size=experiment.train.batch_size,
        segment=experiment.network.segment,
    )
    return data if relative else data.absolute()


def open_run(
    run: str | Path, *, trunk: str | None = None, source: str | None = None, target: str | None = None
) -> tuple[LoadedModel, TaskData]:
    """The best model of a run and the data it was trained on.

    Args:
        run: The run folder.
        trunk: Current path or hub id of the trunk's weights, if they moved.
        source: Current path of the data, if they moved.
        target: Current path of the zero-shot target data set, if it moved.

    Raises:
        CheckpointError: The folder has no bundle, or the data changed since.
        ConfigError: A ``target`` for a run that has none.
        DataError: The data are not where they were.
    """
    experiment, made = read_config(run)
    if not is_there(readable_folder(Path(run) / BUNDLE) / META_FILE):
        what = "the run has no bundle yet"
        raise CheckpointError(what, where=str(run), fix="Let `ofa-jax train` finish at least one epoch")
    if target and experiment.data.target is None:
        what = f"a run of the task {experiment.task.name!r} has no target"
        raise ConfigError(what, where="target", fix="Leave it out")
    moved: dict[str, Any] = {}
    for name, given in (("source", source), ("target", target)):
        place = given or getattr(experiment.data, name)
        if given:
            moved[f"data.{name}"] = given
        elif place not in (None, GENERATED, *CATALOG) and not is_there(Path(place), error=DataError):
            raise DataError(f"the data file {place} is gone", where=name, fix="Give its current path")
    data = read_data(experiment.replace(moved), relative=made.relative)
    if data.fingerprint != made.data_sha256:
        what = "the data are not those the run was trained on"
        raise CheckpointError(what, where=str(run), fix="Restore the original data file")
    return load_bundle(run, trunk=trunk), data

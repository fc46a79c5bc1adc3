"""Train in a run folder, and open one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ofa_jax.adapters.bundle import META_FILE
from ofa_jax.build import build_model
from ofa_jax.config.load import dump_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.data.catalog.load import CATALOG
from ofa_jax.errors import CheckpointError, ConfigError, DataError
from ofa_jax.files import is_there, readable_folder
from ofa_jax.runs.bundle import BundleWriter, LoadedModel, load_bundle
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
from ofa_jax.tasks.base import TaskData
from ofa_jax.tasks.table import prepare
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.events import EventLog
from ofa_jax.train.loop import SILENT, FitResult, Reporter, fit
from ofa_jax.train.processes import (
    broadcast_from_main,
    check_alike,
    detect_lost_peers,
    is_main_process,
    raise_together,
)
from ofa_jax.train.program import evaluation_options, resolve_auto_batch_sizes


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
            :func:`~ofa_jax.train.loop.fit`.
    """
    out, main = Path(out), is_main_process()
    reporter = reporter if main else SILENT
    with detect_lost_peers(), contextlib.ExitStack() as stack:
        dtype = ""
        with raise_together("opening the run folder"):
            if main:
                stack.enter_context(locked_folder(out, CONFIG_FILE, [BUNDLE], kind="run folder"))
                if (out / CONFIG_FILE).exists():
                    dtype = read_config(out)[0].trunk.compute_dtype
        experiment = resolved(experiment, broadcast_from_main(dtype.encode()).decode())
        with raise_together("reading data and trunk"):
            data = read_data(experiment)
            experiment = experiment.replace({"task": data.settings})
            for notice in data.notices:
                reporter.notice(notice)
            model = build_model(experiment)
        made = provenance(model, data)
        facts = {**dump_experiment(experiment), **made.model_dump()}
        check_alike({name: value for name, value in leaves(facts).items() if name not in PLACES})
        with raise_together("starting the run"):
            recorded = begin_or_check(out, experiment, made, reporter) if main else experiment
        writer = BundleWriter(out / BUNDLE, recorded, model, data) if main else None
        result = fit(
            model.predict,
            data.task,
            frozen=model.frozen,
            trainable=model.trainable,
            settings=resolve_auto_batch_sizes(experiment.train, model.network),
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
        return result


def read_data(experiment: Experiment) -> TaskData:
    """The data of an experiment as its task reads them."""
    batch_size = experiment.train.batch_size
    return prepare(experiment.data, experiment.task, protocol=experiment.protocol, batch_size=batch_size)


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
        elif place is not None and place not in CATALOG and not is_there(Path(place), error=DataError):
            raise DataError(f"the data file {place} is gone", where=name, fix="Give its current path")
    data = read_data(experiment.replace(moved))
    if data.fingerprint != made.data_sha256:
        what = "the data are not those the run was trained on"
        raise CheckpointError(what, where=str(run), fix="Restore the original data file")
    return load_bundle(run, trunk=trunk), data

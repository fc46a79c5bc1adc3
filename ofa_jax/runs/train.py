"""A run: a folder that holds its settings, checkpoints, metrics and the bundle; made, resumed and opened here."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from ofa_jax import __version__
from ofa_jax.adapters.bundle import META_FILE, BundleRecord, read_bundle, write_bundle
from ofa_jax.build import (
    RANDOM,
    WITHOUT,
    Model,
    build_model,
    compute_dtype,
    frozen_record,
    restore_model,
    trunk_mathematics,
)
from ofa_jax.config import Experiment, build_experiment, dump_experiment
from ofa_jax.data.catalog.load import CATALOG
from ofa_jax.data.splits import Scaler
from ofa_jax.errors import CheckpointError, ConfigError, DataError, WeightsError
from ofa_jax.files import FORMAT, clear_leftovers, readable_folder, run_lock, write_atomic
from ofa_jax.tasks.base import TaskData
from ofa_jax.tasks.prepare import prepare
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.events import EventLog, read_events
from ofa_jax.train.loop import FitResult, Params, Progress, Reporter, fit
from ofa_jax.train.memory import settled
from ofa_jax.train.processes import (
    MultiProcessCheckpoints,
    broadcast_from_main,
    check_alike,
    detect_lost_peers,
    is_main_process,
    raise_together,
)
from ofa_jax.train.progress import SilentReporter

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
BUNDLE = "bundle"
CHECKPOINTS = "checkpoints"

PLACES = ("data.source", "data.target", "trunk.source", "trunk.revision")
"""Settings that say where data and trunk are; what is there is compared by its bits instead."""

NEUTRAL = (
    *PLACES,
    "train.chunk",
    "train.checkpoint_minutes",
    "train.gradient_log",
    "train.micro_batch",
    "train.eval_batch_size",
    "train.parallel",
    "train.fsdp",
)
"""Settings that change no number of a run (from gradient_log on: none beyond rounding) and may differ when it is resumed."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    """Versions of ofa-jax and of the packages that decide numbers and formats."""
    return {"ofa-jax": __version__, **{name: metadata.version(name) for name in _PACKAGES}}


@dataclass(frozen=True)
class Loaded:
    """A bundle brought back to life: settings, network with trained parameters, and the scaler of its series (None: read as they are)."""

    experiment: Experiment
    model: Model
    scaler: Scaler | None
    record: BundleRecord

    @property
    def names(self) -> tuple[str, ...] | None:
        """The series that the model was trained on; None where it reads any series."""
        return None if self.scaler is None else self.scaler.names


def train_run(
    experiment: Experiment, out: str | Path, reporter: Reporter, *, saved: Callable[[], None] | None = None
) -> FitResult:
    """Train in a run folder; a folder that already holds this run is resumed.

    Where several processes train one run, each calls this with the same settings. The folder is the leader's: the others neither
    see nor need it, and report nothing.

    Args:
        experiment: The settings.
        out: The run folder.
        reporter: What tells a person how it goes.
        saved: Called on the leader whenever the folder holds a new whole checkpoint, and at the end; it may copy it elsewhere.

    Raises:
        CheckpointError: Another process holds the folder; it holds another run, or something else; or its checkpoints are damaged.
        PeerLost: Another process of the run is gone.
        OfaError: As :func:`~ofa_jax.tasks.prepare.prepare`, :func:`~ofa_jax.build.build_model` and
            :func:`~ofa_jax.train.loop.fit`.
    """
    out, leader = Path(out), is_main_process()
    reporter = reporter if leader else SilentReporter()
    with detect_lost_peers(), contextlib.ExitStack() as held:
        begun = None
        with raise_together("opening the run folder"):
            if leader:
                held.enter_context(run_folder(out))
                begun = dump_experiment(read_config(out)[0]) if (out / CONFIG_FILE).exists() else None
        begun = json.loads(broadcast_from_main(json.dumps(begun).encode()))
        experiment = resolved(experiment, None if begun is None else build_experiment(begun))
        with raise_together("reading data and trunk"):
            data = read_data(experiment)
            experiment = experiment.model_copy(update={"task": data.settings})
            for notice in data.notices:
                reporter.notice(notice)
            model = build_model(experiment)
        check_alike(_told_apart_by(experiment, provenance(model, data)))
        with raise_together("beginning the run"):
            recorded = begin_or_check(out, experiment, model, data, reporter) if leader else experiment
        checkpoints = Checkpoints(out / CHECKPOINTS, saved=saved) if leader else None
        try:
            result = fit(
                model.predict,
                data.task,
                frozen=model.frozen,
                trainable=model.trainable,
                settings=settled(experiment.train, model.network),
                reporter=reporter,
                log=EventLog(out / METRICS_FILE if leader else None),
                checkpoints=MultiProcessCheckpoints(checkpoints),
                keep_best=BundleWriter(out / BUNDLE, recorded, model, data) if leader else None,
            )
        finally:
            if checkpoints is not None:
                checkpoints.close()
        with raise_together("keeping the bundle"):
            if leader and saved is not None:
                saved()
        return result


@contextlib.contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """Hold a run folder, or make one; what a kill left behind in it is cleared.

    Raises:
        CheckpointError: Another process holds it, or it holds something else than a run.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError("this is a file, not a run folder", where=str(out), fix="Choose another --out")
    if (
        out.is_dir()
        and not (out / CONFIG_FILE).exists()
        and any(not _is_leftover(entry) for entry in out.iterdir())
    ):
        raise CheckpointError(
            "this folder holds something else than a run", where=str(out), fix="Choose a new folder for --out"
        )
    try:
        with run_lock(out):
            for name in (CONFIG_FILE, BUNDLE):
                clear_leftovers(out / name)
            yield
    finally:
        if out.is_dir() and [entry.name for entry in out.iterdir()] == [
            ".lock"
        ]:  # it failed before the run began
            shutil.rmtree(out)


def _is_leftover(entry: Path) -> bool:
    return entry.name == ".lock" or entry.name.startswith((f".{CONFIG_FILE}.", f".{BUNDLE}."))


def resolved(experiment: Experiment, begun: Experiment | None = None) -> Experiment:
    """The same settings, saying what would otherwise hang on the place: files by absolute path, the computing type by name.

    So a run can be resumed and scored from any working directory, and goes on in the type it was ``begun`` with on any device.
    """

    def absolute(name: str) -> str:
        return str(Path(name).absolute()) if Path(name).exists() else name

    given = {"source": experiment.data.source, "target": experiment.data.target}
    places = {
        name: value if value is None or value in CATALOG else absolute(value) for name, value in given.items()
    }
    data = experiment.data.model_copy(update=places)
    keep = begun is not None and experiment.trunk.compute_dtype == "auto"
    dtype = compute_dtype(begun.trunk if begun is not None and keep else experiment.trunk)
    trunk = experiment.trunk.model_copy(update={"compute_dtype": dtype})
    if trunk.source != RANDOM and trunk.source not in WITHOUT:
        trunk = trunk.model_copy(update={"source": absolute(trunk.source)})
    return experiment.model_copy(update={"data": data, "trunk": trunk})


def provenance(model: Model, data: TaskData) -> dict[str, Any]:
    """What a run's numbers hang on besides its settings: versions, and the bits of data and trunk."""
    return {
        "format": FORMAT,
        "versions": versions(),
        "data_sha256": data.fingerprint,
        "trunk_sha256": model.trunk_sha256,
        "trunk_config": trunk_mathematics(model.network.trunk),
    }


def read_data(experiment: Experiment) -> TaskData:
    """The data of an experiment as its task sees them."""
    return prepare(
        experiment.data, experiment.task, protocol=experiment.protocol, batch_size=experiment.train.batch_size
    )


def _told_apart_by(experiment: Experiment, made: Mapping[str, Any]) -> dict[str, Any]:
    """What all processes of a run have to have alike, by name."""
    return {
        name: value for name, value in _leaves({**dump_experiment(experiment), **made}) if name not in PLACES
    }


def is_finished(run: str | Path) -> bool:
    """Whether training in a run folder came to its end."""
    return any(event["event"] == "finished" for event in read_events(Path(run) / METRICS_FILE))


def begin_or_check(
    out: Path, experiment: Experiment, model: Model, data: TaskData, reporter: Reporter
) -> Experiment:
    """Write a new run's config.yaml, or make sure that the folder's own run has these settings, data and trunk.

    Returns:
        The settings in config.yaml; only those in :data:`NEUTRAL` may differ from ``experiment``.
    """
    path = out / CONFIG_FILE
    made = provenance(model, data)
    if not path.exists():
        content = {"provenance": made, **dump_experiment(experiment)}
        write_atomic(
            path,
            "# Settings of this run, resolved; ofa-jax reads them back.\n"
            + yaml.safe_dump(content, sort_keys=False),
        )
        return experiment
    saved, before = read_config(out)
    changed = differences(dump_experiment(saved), dump_experiment(experiment))
    if changed:
        listed = "; ".join(f"{name} was {old!r}, is now {new!r}" for name, old, new in changed[:5])
        raise ConfigError(
            f"the run there was begun with other settings: {listed}",
            where=str(out),
            fix="Use its own settings to resume it, or another --out",
        )
    for key, what in (
        ("data_sha256", "data"),
        ("trunk_sha256", "trunk weights"),
        ("trunk_config", "trunk's shapes"),
    ):
        if before.get(key) != made[key]:
            raise CheckpointError(
                f"the {what} are not those the run was begun with",
                where=str(out),
                fix=f"Restore the original {what}, or choose another --out",
            )
    newer = [
        f"{name} {old} then, {made['versions'].get(name)} now"
        for name, old in before["versions"].items()
        if made["versions"].get(name) != old
    ]
    if newer:
        reporter.notice(
            f"resumed with other packages, so the last digits may differ from an undisturbed run: {'; '.join(newer)}"
        )
    return saved


def read_config(run: str | Path) -> tuple[Experiment, dict[str, Any]]:
    """The settings of a run and its ``provenance``.

    Raises:
        CheckpointError: The folder holds no run, or one of a newer format.
    """
    path = Path(run) / CONFIG_FILE
    try:
        content = yaml.safe_load(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"there is no run here (no {CONFIG_FILE})",
            where=str(run),
            fix="Name a folder that `ofa-jax train` made",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"not readable as YAML ({' '.join(str(error).split())})", where=str(path)
        ) from None
    made = content.pop("provenance", None) if isinstance(content, dict) else None
    if not isinstance(made, dict) or not isinstance(made.get("format"), int):
        raise CheckpointError(
            "has no `provenance` with a format",
            where=str(path),
            fix="Name a folder that `ofa-jax train` made",
        )
    if made["format"] > FORMAT:
        raise CheckpointError(
            f"format {made['format']} is newer than this version reads ({FORMAT})",
            where=str(path),
            fix="Upgrade ofa-jax",
        )
    return build_experiment(content, where=str(path)), made


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings that differ and matter, as ``(path, old value, new value)``."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    paths = [path for path in after if path not in NEUTRAL]
    return [(path, before.get(path), after[path]) for path in paths if before.get(path) != after[path]]


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


class BundleWriter:
    """Writes the best trainable tree as the run's bundle."""

    def __init__(self, folder: Path, experiment: Experiment, model: Model, data: TaskData) -> None:
        self._folder, self._experiment, self._model = folder, experiment, model
        settings = dump_experiment(experiment)
        for name in ("source", "target"):
            place = settings["data"][name]
            if place is not None and place not in CATALOG:
                settings["data"][name] = Path(
                    place
                ).name  # a bundle is passed on; where its data lay is no one's business
        self._meta = {
            "kind": "ofa-jax bundle",
            "versions": versions(),
            "settings": settings,
            "scaler": None if data.scaler is None else data.scaler.to_dict(),
            "season": data.season,
            "protocol": experiment.protocol,
            **data.meta,
            "frozen": frozen_record(model, experiment.network.seed),
        }

    def __call__(self, best: Params, progress: Progress) -> None:
        write_bundle(
            self._folder,
            adapters=best["adapters"],
            targets=self._model.targets,
            trained=best["base"],
            lora=self._model.lora,
            meta={**self._meta, "best_epoch": progress.best_epoch, "validation": progress.best_metrics},
        )


def load_bundle(path: str | Path, *, trunk: str | None = None) -> Loaded:
    """Load a bundle, or the bundle of a run folder, bit for bit as it was saved.

    Args:
        path: A bundle folder or a run folder.
        trunk: Where the trunk's weights are now, if not where they were.

    Raises:
        CheckpointError: There is no bundle, it is damaged, or trunk, frozen layers or scaling are not those it was trained with.
        WeightsError: The trunk cannot be had.
    """
    path = Path(path)
    folder = path if (path / META_FILE).exists() else path / BUNDLE
    bundle = read_bundle(folder)
    experiment = build_experiment(bundle.record.settings, where=str(folder / META_FILE))
    if trunk is not None:
        moved = experiment.trunk.model_copy(update={"source": trunk})
        experiment = experiment.model_copy(update={"trunk": moved})
    try:
        model = restore_model(experiment, bundle, where=str(folder))
    except WeightsError as error:
        if trunk is not None:
            raise
        raise WeightsError(
            error.what, where=error.where, fix="If the trunk's weights moved, give their place with --trunk"
        ) from None
    saved = bundle.record.scaler
    scaler = None if saved is None else Scaler.from_dict(saved.model_dump())
    return Loaded(experiment, model, scaler, bundle.record)


def open_run(
    run: str | Path, *, trunk: str | None = None, source: str | None = None, target: str | None = None
) -> tuple[Loaded, TaskData]:
    """The best model of a run and the data it was trained on.

    Args:
        run: The run folder.
        trunk: Where the trunk's weights are now, if not where they were.
        source: Where the data are now, if not where they were.
        target: The same of the data that a zero-shot run forecasts.

    Raises:
        CheckpointError: The folder holds no finished bundle, or the data changed since.
        ConfigError: A ``target`` for a run that has none.
        DataError: The data are not where they were.
    """
    experiment, made = read_config(run)
    if not (readable_folder(Path(run) / BUNDLE) / META_FILE).exists():
        raise CheckpointError(
            "the run has no bundle yet", where=str(run), fix="Let `ofa-jax train` finish at least one epoch"
        )
    if target and experiment.data.target is None:
        raise ConfigError(
            f"a run of the task {experiment.task.name!r} has no target", where="--target", fix="Leave it out"
        )
    moved = {name: place for name, place in (("source", source), ("target", target)) if place}
    settings = experiment.data.model_copy(update=moved)
    for name, option in (("source", "--data"), ("target", "--target")):
        place = getattr(settings, name)
        if name not in moved and place is not None and place not in CATALOG and not Path(place).exists():
            raise DataError(
                "the data file is not there any more", where=place, fix=f"Give its place now with {option}"
            )
    data = read_data(experiment.model_copy(update={"data": settings}))
    if data.fingerprint != made["data_sha256"]:
        raise CheckpointError(
            "the data are not those the run was trained on",
            where=str(run),
            fix="Restore the original data file",
        )
    return load_bundle(run, trunk=trunk), data

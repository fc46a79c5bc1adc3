"""Run folders: locking, config.yaml with its provenance, and what must be equal to resume."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from ofa_jax import __version__
from ofa_jax.adapters.bundle import BUNDLE_FORMAT, META_FILE
from ofa_jax.build import NAMED, Model, compute_dtype, trunk_mathematics
from ofa_jax.config.load import FORMAT, build_experiment, dump_experiment, read_yaml, upgrade_settings
from ofa_jax.config.schema import Experiment
from ofa_jax.data.catalog.load import CATALOG
from ofa_jax.errors import CheckpointError, ConfigError
from ofa_jax.files import (
    FileRecord,
    Sha256,
    check_regular,
    clear_leftovers,
    is_leftover,
    is_there,
    json_digest,
    parse_record,
    read_record,
    readable_folder,
    run_lock,
    write_atomic,
)
from ofa_jax.model import trees
from ofa_jax.tasks.base import TaskData
from ofa_jax.train.events import read_events
from ofa_jax.train.progress import SILENT, Reporter

CONFIG_FILE, METRICS_FILE, BUNDLE, CHECKPOINTS = "config.yaml", "metrics.jsonl", "bundle", "checkpoints"
BASELINES = "controls"
"""Folder of trained baselines; the name is that of the first format."""

PLACES = ("data.source", "data.target", "trunk.source", "trunk.revision")
"""Settings that locate data and trunk; their content is compared by its bits instead."""

_SPEED = "chunk checkpoint_minutes gradient_log micro_batch eval_batch_size parallel fsdp"
SPEED = frozenset(f"train.{name}" for name in _SPEED.split())
NEUTRAL = SPEED.union(PLACES, ["train.refit"])
"""Settings that change no number of a run beyond rounding and may differ when it is resumed."""

_EDITABLE = NEUTRAL | {"train.epochs"}
"""Settings that may be changed in a run's config.yaml by hand."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Provenance(FileRecord):
    """What a run's numbers depend on besides its settings: versions, and the bits of data and trunk.

    In config.yaml it has ``sha256``, of itself and of the settings that decide what is measured. Format 3
    added it, and ``relative``: whether windows are relative to their last input.
    """

    newest = FORMAT
    versions: dict[str, str]
    data_sha256: Sha256
    trunk_sha256: Sha256
    trunk_config: dict[str, int | float | bool | str | None]
    sha256: Sha256 | None = None
    relative: bool = False


def versions() -> dict[str, str]:
    """Versions of ofa-jax and of the packages that determine numbers and formats."""
    return {"ofa-jax": __version__, **{name: metadata.version(name) for name in _PACKAGES}}


def provenance(model: Model, data: TaskData) -> Provenance:
    """The provenance of a run that starts now."""
    return Provenance(
        format=FORMAT,
        versions=versions(),
        data_sha256=data.fingerprint,
        trunk_sha256=model.trunk_sha256,
        trunk_config=trunk_mathematics(model.network.trunk.config),
        relative=data.relative,
    )


@contextlib.contextmanager
def locked_folder(out: Path, record: str, files: Sequence[str], *, kind: str) -> Iterator[None]:
    """Create or lock a folder that has a ``record`` once it is in use, and remove killed writers' leftovers.

    Args:
        out: The folder.
        record: The file that identifies it.
        files: Files and folders in it that are written atomically.
        kind: What it is called in errors ("run folder").

    Raises:
        CheckpointError: Another process uses it, or it is not empty and of another kind.
    """
    if is_there(out) and not out.is_dir():
        raise CheckpointError(f"is a file, not a {kind}", where=str(out), fix="Choose another folder")
    if str(out.absolute()).encode(errors="replace") != os.fsencode(out.absolute()):  # checkpoints cannot be
        raise CheckpointError("its path is not UTF-8", where=str(out), fix="Choose another folder")
    found = os.listdir(out) if out.is_dir() else []
    if record not in found and not all(
        name == ".lock" or any(is_leftover(name, of) for of in (record, *files)) for name in found
    ):
        raise CheckpointError(f"not empty and not a {kind}", where=str(out), fix="Choose a new folder")
    with run_lock(out, kind=kind):
        try:
            for name in (record, *files):
                clear_leftovers(out / name)
            yield
        finally:
            if os.listdir(out) == [".lock"]:  # it failed before the start
                shutil.rmtree(out)


def resolved(experiment: Experiment, dtype: str | None = None) -> Experiment:
    """The same settings independent of working directory and device: absolute paths, a named compute dtype.

    The dtype ``auto`` becomes ``dtype``, that of the run that is resumed; default: the device's.
    """
    data, trunk = experiment.data, experiment.trunk
    chosen = dtype if dtype and trunk.compute_dtype == "auto" else compute_dtype(trunk)
    changes = {"trunk.compute_dtype": chosen}
    places = (("data.source", data.source, CATALOG), ("data.target", data.target, CATALOG))
    for path, name, known in (*places, ("trunk.source", trunk.source, NAMED)):
        if name is not None and name not in known and os.path.exists(name):  # False where it cannot be said
            changes[path] = str(Path(name).absolute())
    return experiment.replace(changes)


def write_config(out: Path, experiment: Experiment, made: Provenance) -> None:
    """Write config.yaml."""
    settings, own = dump_experiment(experiment), made.model_dump(exclude={"sha256"})
    content = {"provenance": {**own, "sha256": _digest(settings, own)}, **settings}
    text = yaml.safe_dump(content, sort_keys=False)
    write_atomic(out / CONFIG_FILE, f"# Resolved settings of this run; ofa-jax reads them.\n{text}")


def read_config(run: str | Path) -> tuple[Experiment, Provenance]:
    """The settings and provenance of a run.

    Raises:
        CheckpointError: The folder is not a run folder, or of a newer format, or the settings were edited.
    """
    path = Path(run) / CONFIG_FILE
    check_regular(path)
    if not path.exists():
        what, fix = f"not a run folder (no {CONFIG_FILE})", "Name a folder that `ofa-jax train` created"
        raise CheckpointError(what, where=str(run), fix=fix)
    try:
        content = read_yaml(path)
    except ConfigError as error:
        raise CheckpointError(error.what, where=error.where) from None
    made = content.pop("provenance", None)
    if not isinstance(made, dict):
        raise CheckpointError("has no `provenance`", where=str(path), fix="Restore the original file")
    record = parse_record(made, Provenance, where=str(path))
    experiment = build_experiment(upgrade_settings(content, record.format), where=str(path))
    edited = record.format >= 3 and record.sha256 != _digest(content, made)
    _check_unedited(path, experiment, edited)
    return experiment, record


def _digest(settings: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    deciding = {name: value for name, value in leaves(settings).items() if name not in _EDITABLE}
    own = {name: value for name, value in made.items() if name != "sha256"}
    return json_digest({"settings": deciding, "provenance": own})


def _check_unedited(path: Path, experiment: Experiment, edited: bool) -> None:
    """Refuse settings that are not those of training, which the bundle has too, if there is one."""
    where = readable_folder(path.parent / BUNDLE) / META_FILE
    changed = []
    with contextlib.suppress(CheckpointError, ConfigError):  # opening the bundle says what is wrong with it
        bundle = read_record(where, _Settings, kind="bundle")
        trained = build_experiment(upgrade_settings(bundle.settings, bundle.format), where=str(where))
        found = differences(dump_experiment(trained), dump_experiment(experiment))
        changed = [
            f"{name} was {then!r}, is now {now!r}" for name, then, now in found if name not in _EDITABLE
        ]
    if not changed and not edited:
        return
    what = "; ".join(changed[:5]) or "settings or provenance differ from their sha256"
    fix = "Restore the original file, or train with other settings in another folder"
    raise CheckpointError(f"was changed since training: {what}", where=str(path), fix=fix)


class _Settings(FileRecord):
    newest = BUNDLE_FORMAT
    settings: dict[str, Any]


def begin_or_check(out: Path, experiment: Experiment, made: Provenance, reporter: Reporter) -> Experiment:
    """Write a new run's config.yaml, or check that the folder's run has these settings, data and trunk.

    Returns:
        The settings in config.yaml; only those in :data:`NEUTRAL` may differ from ``experiment``, and
        ``train.epochs`` may be raised, which is written there.

    Raises:
        ConfigError: The run has other settings.
        CheckpointError: The data or the trunk are not those of the run.
    """
    if not (out / CONFIG_FILE).exists():
        write_config(out, experiment, made)
        return experiment
    saved, before = read_config(out)
    fewer, epochs = saved.train.epochs, experiment.train.epochs
    if epochs > fewer:
        saved = saved.replace({"train.epochs": epochs})
    check_same(dump_experiment(saved), before, dump_experiment(experiment), made, where=out)
    if epochs > fewer:
        reporter.notice(f"train.epochs raised from {fewer} to {epochs}")
        write_config(out, saved, before.model_copy(update={"format": FORMAT}))
    now, then = made.versions, before.versions
    if changed := [name for name in then if now.get(name) != then[name]]:
        listed = "; ".join(f"{name} {then[name]} then, {now.get(name)} now" for name in changed)
        reporter.notice(f"resumed with other package versions, so last digits may differ: {listed}")
    return saved


def check_same(
    old: Mapping[str, Any], before: Provenance, new: Mapping[str, Any], now: Provenance, *, where: Path
) -> None:
    """Refuse to resume with other settings, data or trunk.

    Raises:
        ConfigError: Settings differ.
        CheckpointError: The bits of data or trunk differ.
    """
    if changed := differences(old, new):
        listed = "; ".join(f"{name} was {then!r}, is now {value!r}" for name, then, value in changed[:5])
        what = f"the folder was started with other settings: {listed}"
        raise ConfigError(what, where=str(where), fix="Use its settings to resume it, or another folder")
    named = (("data_sha256", "data"), ("trunk_sha256", "trunk weights"), ("trunk_config", "trunk's shapes"))
    for field, name in named:
        if getattr(before, field) != getattr(now, field):
            fix = f"Restore the original {name}, or use another folder"
            raise CheckpointError(f"the {name} differ from those at the start", where=str(where), fix=fix)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings that differ and matter, as ``(path, old value, new value)``."""
    before, after = leaves(old), leaves(new)
    paths = [path for path in before | after if path not in NEUTRAL]
    return [
        (path, before.get(path), after.get(path)) for path in paths if before.get(path) != after.get(path)
    ]


def leaves(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting in a nested mapping by its path."""
    return {path.replace("/", "."): value for path, value in trees.flatten(settings).items()}


def is_finished(run: str | Path, reporter: Reporter = SILENT) -> bool:
    """Whether training in a run folder has ended, as far as its log can be read."""
    events = read_events(Path(run) / METRICS_FILE, reporter.notice)
    return any(event["event"] == "finished" for event in events)

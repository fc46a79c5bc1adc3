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
from ofa_jax.build import RANDOM, REPLACED, Model, compute_dtype, trunk_mathematics
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
    parse_record,
    run_lock,
    write_atomic,
)
from ofa_jax.model import trees
from ofa_jax.tasks.base import TaskData
from ofa_jax.train.events import read_events
from ofa_jax.train.loop import Reporter

CONFIG_FILE, METRICS_FILE, BUNDLE, CHECKPOINTS = "config.yaml", "metrics.jsonl", "bundle", "checkpoints"
BASELINES = "controls"
"""Folder of trained baselines; the name is that of the first format."""

PLACES = ("data.source", "data.target", "trunk.source", "trunk.revision")
"""Settings that locate data and trunk; their content is compared by its bits instead."""

_SPEED = "chunk checkpoint_minutes gradient_log micro_batch eval_batch_size parallel fsdp"
SPEED = frozenset(f"train.{name}" for name in _SPEED.split())
NEUTRAL = SPEED.union(PLACES)
"""Settings that change no number of a run beyond rounding and may differ when it is resumed."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Provenance(FileRecord):
    """What a run's numbers depend on besides its settings: versions, and the bits of data and trunk."""

    newest = FORMAT
    versions: dict[str, str]
    data_sha256: Sha256
    trunk_sha256: Sha256
    trunk_config: dict[str, int | float | bool | str | None]


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
    with run_lock(out):
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
    for path, name, known in (*places, ("trunk.source", trunk.source, (RANDOM, *REPLACED))):
        if name is not None and name not in known and os.path.exists(name):  # False where it cannot be said
            changes[path] = str(Path(name).absolute())
    return experiment.replace(changes)


def write_config(out: Path, experiment: Experiment, made: Provenance) -> None:
    """Write config.yaml."""
    content = {"provenance": made.model_dump(), **dump_experiment(experiment)}
    text = yaml.safe_dump(content, sort_keys=False)
    write_atomic(out / CONFIG_FILE, f"# Resolved settings of this run; ofa-jax reads them.\n{text}")


def read_config(run: str | Path) -> tuple[Experiment, Provenance]:
    """The settings and provenance of a run.

    Raises:
        CheckpointError: The folder is not a run folder, or of a newer format.
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
    content = upgrade_settings(content, record.format)
    return build_experiment(content, where=str(path)), record


def begin_or_check(out: Path, experiment: Experiment, made: Provenance, reporter: Reporter) -> Experiment:
    """Write a new run's config.yaml, or check that the folder's run has these settings, data and trunk.

    Returns:
        The settings in config.yaml; only those in :data:`NEUTRAL` may differ from ``experiment``.

    Raises:
        ConfigError: The run has other settings.
        CheckpointError: The data or the trunk are not those of the run.
    """
    if not (out / CONFIG_FILE).exists():
        write_config(out, experiment, made)
        return experiment
    saved, before = read_config(out)
    check_same(dump_experiment(saved), before, dump_experiment(experiment), made, where=out)
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
    paths = [path for path in after if path not in NEUTRAL]
    return [(path, before.get(path), after[path]) for path in paths if before.get(path) != after[path]]


def leaves(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting in a nested mapping by its path."""
    return {path.replace("/", "."): value for path, value in trees.flatten(settings).items()}


def is_finished(run: str | Path) -> bool:
    """Whether training in a run folder has ended."""
    return any(event["event"] == "finished" for event in read_events(Path(run) / METRICS_FILE))

"""Checkpoints of a run: complete or absent, and checked bit for bit when read back.

``FOLDER/STEP/`` contains ``arrays/``, which orbax writes and reads, and ``checkpoint.json``
(:class:`CheckpointRecord`), written last. Orbax alone restores a flipped byte without an error, so a
checkpoint counts as intact only if its record agrees with its own digest and every file that orbax wrote is
there with its sha256. Files rather than leaves are checked: orbax never parses a damaged file (its threads
print tracebacks when it does), and damage is distinct from an orbax version that cannot read the layout.

A damaged checkpoint is skipped in favor of the previous one and renamed to ``damaged-STEP``; nothing damaged
is deleted. An intact checkpoint of another structure, or of a newer format, is an error and never a reason to
go back one.

What a run saves is the same on every device and process, so one process writes and reads it, from and into
host memory, and a checkpoint fits any number of devices. :mod:`ofa_jax.train.processes` brings it to the
others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import numpy as np
from pydantic import Field

from ofa_jax import files
from ofa_jax.errors import CheckpointError
from ofa_jax.files import FileRecord, Record, Sha256

PyTree = Any

RECORD = "checkpoint.json"
_ARRAYS = "arrays"
_KEPT = 2
"""How many checkpoints stay."""


class LeafRecord(Record):
    """Name and kind of a saved leaf."""

    path: str
    dtype: str
    shape: list[Annotated[int, Field(ge=0)]]


class CheckpointRecord(FileRecord):
    """``checkpoint.json``; ``digest`` is over all other fields. Format 1 also had a sha256 per leaf."""

    newest: ClassVar[int] = 2
    step: int = Field(ge=0)
    meta: dict[str, Any]
    leaves: list[LeafRecord]
    files: dict[str, Sha256]


class Restored(NamedTuple):
    """A checkpoint read back: ``arrays`` in the requested structure, ``meta`` as saved.

    ``skipped`` has one sentence per damaged newer checkpoint.
    """

    step: int
    arrays: PyTree
    meta: dict[str, Any]
    skipped: tuple[str, ...]


class Checkpoints:
    """The checkpoints in ``folder``; leftovers of an interrupted save are removed.

    Only one process may use the folder at a time: take ``files.run_lock`` on the run first.

    Args:
        folder: Where they are.
        saved: Called after every save, when the folder is complete; it may copy it elsewhere.
    """

    def __init__(self, folder: Path, *, saved: Callable[[], None] | None = None) -> None:
        self._folder = Path(folder).absolute()
        self._saved = saved
        for entry in list(self._folder.glob(".*")):
            if match := re.fullmatch(r"\.(\d+)\..+", entry.name):
                files.clear_leftovers(self._folder / match[1])

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first, damaged ones included."""
        names = (entry.name for entry in self._folder.glob("[0-9]*") if entry.is_dir())
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name))

    def save(self, step: int, arrays: PyTree, meta: dict[str, Any]) -> None:
        """Write the checkpoint of ``step``, then drop all but the newest two.

        ``meta`` is a JSON object. Leaves of ``arrays`` are NumPy arrays, or jax arrays that are complete on
        this process; save a typed PRNG key as ``jax.random.key_data``. A checkpoint of the same step is
        replaced. Returns when everything is on disk.

        Raises:
            CheckpointError: ``meta`` is not JSON.
            OfaError: The disk is full; the checkpoints that were there stay.
        """
        leaves = {path: np.asarray(leaf) for path, leaf in _named_leaves(arrays).items()}
        described = [
            {"path": path, "dtype": leaf.dtype.name, "shape": list(leaf.shape)}
            for path, leaf in leaves.items()
        ]
        size = sum(leaf.nbytes for leaf in leaves.values())
        with files.atomic_folder(self._folder / str(step), size=size) as scratch:
            with _orbax() as orbax:  # keyed by index, so that no name needs escaping
                orbax.save(
                    scratch / _ARRAYS, {str(index): leaf for index, leaf in enumerate(leaves.values())}
                )
            content = {"step": step, "meta": meta, "leaves": described, "files": files.file_digests(scratch)}
            try:
                content["digest"] = files.json_digest({"format": CheckpointRecord.newest, **content})
                files.write_json(scratch / RECORD, content, version=CheckpointRecord.newest)
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"the meta of a checkpoint is not a JSON object ({error})") from None
        for old in self.steps()[:-_KEPT]:
            # renamed first, so that a kill leaves no half-deleted checkpoint
            doomed = self._folder / f".{old}.discarded{files.SCRATCH}"
            os.replace(self._folder / str(old), doomed)
            shutil.rmtree(doomed)
        if self._saved is not None:
            self._saved()

    def restore(self, like: PyTree) -> Restored | None:
        """The newest intact checkpoint, or None where there is none at all.

        ``like`` has the structure of what was saved, each leaf with its shape and dtype (an array or
        ``jax.ShapeDtypeStruct``). Leaves come back as NumPy arrays, bit for bit whatever jax's 64-bit mode.
        Damaged newer checkpoints are renamed only once an intact one is found.

        Raises:
            CheckpointError: Structure, shape or dtype differ from ``like``; a format is newer than this code;
                every checkpoint is damaged (each is named, none is renamed); a file cannot be read; or orbax
                cannot read an intact checkpoint.
        """
        damaged: list[tuple[Path, str]] = []
        for step in reversed(self.steps()):
            folder = self._folder / str(step)
            try:
                record = _read_record(folder)
                _check_structure(folder, record.leaves, like)
                if damage := files.find_damage(folder, record.files):
                    raise _Damage(damage)
            except _Damage as error:
                damaged.append((folder, str(error)))
                continue
            arrays = _read_arrays(folder, record.leaves, like)
            return Restored(step, arrays, record.meta, tuple(_set_aside(*entry) for entry in damaged))
        found = [f"{folder.name} ({reason})" for folder, reason in damaged]
        found += sorted(f"{path.name} (renamed earlier)" for path in self._folder.glob("damaged-*"))
        if not found:
            return None
        fix = "Restore the folder from a copy, or delete it to start again from step 0"
        what = f"every checkpoint is damaged: {'; '.join(found)}"
        raise CheckpointError(what, where=str(self._folder), fix=fix)


class _Damage(Exception):
    """Why a checkpoint is skipped."""


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    """Orbax's reader and writer for this process alone, without its warnings and its log by absl."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import orbax.checkpoint as ocp
        from absl import logging as absl_logging  # a dependency of orbax

        own = jax.process_index()  # by default orbax would wait for all processes of a run
        alone = ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix="alone"
        )
        logger = absl_logging.get_absl_logger()
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
            with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
                yield checkpointer
        finally:
            logger.setLevel(level)


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}


def _read_arrays(folder: Path, saved: list[LeafRecord], like: PyTree) -> PyTree:
    place = {leaf.path: str(index) for index, leaf in enumerate(saved)}
    try:
        with _orbax() as orbax:
            values = orbax.restore(folder / _ARRAYS)
        return jax.tree.unflatten(
            jax.tree.structure(like), [values[place[path]] for path in _named_leaves(like)]
        )
    except Exception as error:  # the files are intact, so an older checkpoint would not help
        what = f"orbax cannot read a checkpoint whose files are intact ({type(error).__name__}: {error})"
        fix = "Install the orbax version that wrote it"
        raise CheckpointError(what, where=str(folder), fix=fix) from error


def _read_record(folder: Path) -> CheckpointRecord:
    try:
        content = files.read_json(folder / RECORD, kind="checkpoint")
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise  # it may be intact
        raise _Damage(f"{RECORD}: {error.what}") from None
    digest = content.pop("digest", None)
    compact = json.dumps(content, sort_keys=True, separators=(",", ":"))
    # checked before the format, so that a newer one is distinct from a damaged number; format 1 had no spaces
    if digest not in (files.json_digest(content), hashlib.sha256(compact.encode()).hexdigest()):
        raise _Damage(f"{RECORD} does not agree with its own digest")
    record = files.parse_record(content, CheckpointRecord, where=str(folder / RECORD))
    if record.step != int(folder.name):
        raise _Damage(f"it was saved as step {record.step}")
    return record


def _check_structure(folder: Path, saved: list[LeafRecord], like: PyTree) -> None:
    have = {leaf.path: f"{leaf.dtype}{leaf.shape}" for leaf in saved}
    want = {path: f"{leaf.dtype.name}{list(leaf.shape)}" for path, leaf in _named_leaves(like).items()}
    differences = [
        f"`{path}` is {have.get(path, 'absent')} here and {want.get(path, 'absent')} in this run"
        for path in sorted(have.keys() | want.keys())
        if have.get(path) != want.get(path)
    ]
    if not differences:
        return
    more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
    raise CheckpointError(
        f"the checkpoint is from another experiment: {'; '.join(differences[:5])}{more}",
        where=str(folder),
        fix="Choose another folder, or go back to the configuration that wrote this one",
    )


def _set_aside(folder: Path, reason: str) -> str:
    target, again = folder.with_name(f"damaged-{folder.name}"), 2
    while target.exists():
        target, again = folder.with_name(f"damaged-{folder.name}-{again}"), again + 1
    os.replace(folder, target)
    return f"checkpoint {folder.name} was skipped: {reason}; it is now in {target.name}"

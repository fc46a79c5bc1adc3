"""Checkpoints of a run: complete or absent, and checked bit for bit when read back.

``FOLDER/STEP/`` contains ``arrays/``, which orbax writes and reads, and ``checkpoint.json``
(:class:`CheckpointRecord`), written last. Orbax alone restores a flipped byte without an error, so a
checkpoint counts as intact only if its record agrees with its own digest and every file that orbax wrote is
there with its sha256. Files rather than leaves are checked: orbax never parses a damaged file (its threads print
tracebacks when it does), damage is distinct from an orbax version that cannot read the layout, and no byte is exempt.

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


class LeafRecord(Record):
    """Name and kind of a saved leaf."""

    path: str
    dtype: str
    shape: list[Annotated[int, Field(ge=0)]]

    @property
    def kind(self) -> str:
        return f"{self.dtype}{self.shape}"


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
        keep: How many stay.
        saved: Called after every save, when the folder is complete; it may copy it elsewhere.
    """

    def __init__(self, folder: Path, *, keep: int = 2, saved: Callable[[], None] | None = None) -> None:
        self._folder = Path(folder).absolute()
        self._keep = keep
        self._saved = saved
        self._writer: Any = None
        for entry in list(self._folder.iterdir()) if self._folder.is_dir() else ():
            if match := re.fullmatch(r"\.(\d+)\..+", entry.name):
                files.clear_leftovers(self._folder / match[1])

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first, damaged ones included."""
        if not self._folder.is_dir():
            return []
        names = (entry.name for entry in self._folder.iterdir() if entry.is_dir())
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name))

    def save(self, step: int, arrays: PyTree, meta: dict[str, Any]) -> None:
        """Write the checkpoint of ``step``, then drop all but the newest ``keep``.

        ``meta`` is a JSON object. Leaves of ``arrays`` are numeric or boolean: NumPy arrays, jax arrays that are
        complete on this process, or Python scalars; save a typed PRNG key as ``jax.random.key_data``. A
        checkpoint of the same step is replaced. Returns when everything is on disk.

        Raises:
            CheckpointError: ``meta`` is not JSON.
        """
        leaves = {path: np.asarray(leaf) for path, leaf in _named_leaves(arrays).items()}
        described = [_describe(path, leaf).model_dump() for path, leaf in leaves.items()]
        with files.atomic_folder(self._folder / str(step)) as scratch:
            # keyed by index, so that no name needs escaping; orbax refuses arrays without elements
            stored = {str(index): leaf for index, leaf in enumerate(leaves.values()) if leaf.size}
            with _quiet():
                self._orbax().save(scratch / _ARRAYS, stored)
            content = {"step": step, "meta": meta, "leaves": described, "files": files.file_digests(scratch)}
            try:
                content["digest"] = files.json_digest({"format": CheckpointRecord.newest, **content})
                files.write_json(scratch / RECORD, content, version=CheckpointRecord.newest)
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"the meta of a checkpoint is not a JSON object ({error})") from None
        for old in self.steps()[: -self._keep]:
            _discard(self._folder / str(old))
        if self._saved is not None:
            self._saved()

    def restore(self, like: PyTree) -> Restored | None:
        """The newest intact checkpoint, or None where there is none at all.

        ``like`` has the structure of what was saved, each leaf with its shape and dtype (an array or
        ``jax.ShapeDtypeStruct``). A Python scalar comes back as a Python scalar, every other leaf as a NumPy
        array, bit for bit whatever jax's 64-bit mode. Damaged newer checkpoints are renamed only once an
        intact one is found.

        Raises:
            CheckpointError: Structure, shape or dtype differ from ``like``; a format is newer than this code;
                every checkpoint is damaged (each is named, none is renamed); or orbax cannot read an intact
                checkpoint.
        """
        damaged: list[tuple[Path, str]] = []
        for step in reversed(self.steps()):
            folder = self._folder / str(step)
            try:
                record = _read_record(folder)
                _check_structure(folder, record.leaves, like)
                if damage := files.find_damage(folder, record.files):
                    raise _Damage(damage)
                arrays = self._read_arrays(folder, record.leaves, like)
            except _Damage as error:
                damaged.append((folder, str(error)))
                continue
            return Restored(step, arrays, record.meta, tuple(_set_aside(*entry) for entry in damaged))
        self._refuse_damaged(damaged)
        return None

    def close(self) -> None:
        """Free orbax's threads; the object can still be used afterwards."""
        if self._writer is not None:
            with _quiet():
                self._writer.close()
            self._writer = None

    def _orbax(self) -> Any:
        if self._writer is None:
            import orbax.checkpoint as ocp

            own = jax.process_index()  # by default orbax would wait for all processes of a run
            alone = ocp.options.MultiprocessingOptions(
                primary_host=own, active_processes={own}, barrier_sync_key_prefix="alone"
            )
            handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
            self._writer = ocp.Checkpointer(handler, multiprocessing_options=alone)
        return self._writer

    def _read_arrays(self, folder: Path, saved: list[LeafRecord], like: PyTree) -> PyTree:
        wanted, structure = jax.tree.flatten(like)
        with _quiet():
            import orbax.checkpoint as ocp

            stored = [str(index) for index, leaf in enumerate(saved) if 0 not in leaf.shape]
            how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored}
            try:
                values = self._orbax().restore(folder / _ARRAYS, restore_args=how)
                leaves = [
                    values[str(index)] if str(index) in how else np.empty(leaf.shape, leaf.dtype)
                    for index, leaf in enumerate(wanted)
                ]
            except Exception as error:  # the files are intact, so an older checkpoint would not help
                reason, fix = f"{type(error).__name__}: {error}", "Install the orbax version that wrote it"
                what = f"orbax cannot read a checkpoint whose files are intact ({reason})"
                raise CheckpointError(what, where=str(folder), fix=fix) from error
        scalars = (bool, int, float)
        leaves = [
            leaf.item() if isinstance(one, scalars) else leaf
            for leaf, one in zip(leaves, wanted, strict=True)
        ]
        arrays = jax.tree.unflatten(structure, leaves)
        _check_structure(folder, saved, arrays)
        return arrays

    def _refuse_damaged(self, damaged: list[tuple[Path, str]]) -> None:
        found = [f"{folder.name} ({reason})" for folder, reason in damaged]
        aside = sorted(path.name for path in self._folder.glob("damaged-*"))
        found += [f"{name} (renamed earlier)" for name in aside]
        if found:
            fix = "Restore the folder from a copy, or delete it to start again from step 0"
            what = f"every checkpoint is damaged: {'; '.join(found)}"
            raise CheckpointError(what, where=str(self._folder), fix=fix)


class _Damage(Exception):
    """Why a checkpoint is skipped."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax reports through absl's logger and Python warnings; what matters is raised as an error of ours."""
    from absl import logging as absl_logging  # a dependency of orbax

    logger = absl_logging.get_absl_logger()
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}


def _describe(path: str, leaf: Any) -> LeafRecord:
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return LeafRecord(path=path, dtype=np.dtype(array.dtype).name, shape=list(array.shape))


def _read_record(folder: Path) -> CheckpointRecord:
    try:
        content = files.read_json(folder / RECORD, kind="checkpoint")
    except CheckpointError as error:
        raise _Damage(f"{RECORD}: {error.what}") from None
    digest = content.pop("digest", None)
    # the digest is checked before the format, so that a newer format and a damaged number are told apart
    if digest not in (files.json_digest(content), _digest_of_format_1(content)):
        raise _Damage(f"{RECORD} does not agree with its own digest")
    record = files.parse_record(content, CheckpointRecord, where=str(folder / RECORD))
    if record.step != int(folder.name):
        raise _Damage(f"it was saved as step {record.step}")
    return record


def _digest_of_format_1(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_structure(folder: Path, saved: list[LeafRecord], like: PyTree) -> None:
    have = {leaf.path: leaf.kind for leaf in saved}
    want = {path: _describe(path, leaf).kind for path, leaf in _named_leaves(like).items()}
    if list(have.items()) == list(want.items()):
        return
    differences = [
        f"`{path}` is {have.get(path, 'absent')} here and {want.get(path, 'absent')} in this run"
        for path in sorted(have.keys() | want.keys())
        if have.get(path) != want.get(path)
    ]
    shown = "; ".join(differences[:5] or ["the leaves are in another order"])
    more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
    raise CheckpointError(
        f"the checkpoint is from another experiment: {shown}{more}",
        where=str(folder),
        fix="Choose another folder, or go back to the configuration that wrote this one",
    )


def _set_aside(folder: Path, reason: str) -> str:
    target, again = folder.with_name(f"damaged-{folder.name}"), 2
    while target.exists():
        target, again = folder.with_name(f"damaged-{folder.name}-{again}"), again + 1
    os.replace(folder, target)
    return f"checkpoint {folder.name} was skipped: {reason}; it is now in {target.name}"


def _discard(folder: Path) -> None:
    # renamed first, so that a kill leaves no half-deleted checkpoint
    doomed = folder.with_name(f".{folder.name}.discarded")
    os.replace(folder, doomed)
    shutil.rmtree(doomed)

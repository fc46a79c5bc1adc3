"""Checkpoints of a run: written whole or not there, checked bit for bit when read back.

``FOLDER/STEP/`` holds ``arrays/``, which orbax writes and reads, and ``checkpoint.json``: format, step, the caller's ``meta``,
one sha256 per leaf (path, dtype, shape and bytes), one per file that orbax wrote, and a digest over all of that. Orbax alone
restores a flipped byte without a word, so three things are checked before a checkpoint counts as whole:

1. ``checkpoint.json`` agrees with its own digest. The rule of that digest is the same in every format, so that a newer format
   (refused by name) and a damaged number are told apart;
2. every file that was written is there with its bytes: orbax never parses a damaged one, and no file is exempt as harmless;
3. every restored leaf has the sha256 of the leaf that was saved.

A damaged checkpoint is passed over for the one before it and moved to ``damaged-STEP``; nothing damaged is ever deleted. A
checkpoint that is whole but of another structure, or of a newer format, is an error and never a reason to go back one.

What a run saves is the same on every device and process, so one process writes and reads it, from and into host memory, and a
checkpoint fits any number of devices. :mod:`ofa_jax.train.processes` brings it to the others.
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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.errors import CheckpointError, ConfigError
from ofa_jax.files import FORMAT, atomic_folder, clear_leftovers, read_json, sha256_file, write_json

PyTree = Any

RECORD = "checkpoint.json"
"""A checkpoint's own record, written last."""

_ARRAYS = "arrays"


class Restored(NamedTuple):
    """A checkpoint read back: ``arrays`` in the structure asked for, ``meta`` as saved.

    ``skipped`` holds one sentence per damaged newer checkpoint that was passed over and moved aside.
    """

    step: int
    arrays: PyTree
    meta: dict[str, Any]
    skipped: tuple[str, ...]


class Checkpoints:
    """The checkpoints in ``folder``, of which the newest ``keep`` stay; leftovers of an interrupted save are cleared at once.

    One process at a time may hold the folder: take ``files.run_lock`` on the run first.

    Args:
        folder: Where they are.
        keep: How many stay.
        saved: Called after every save, when the folder is whole again; it may copy it elsewhere.

    Raises:
        ConfigError: ``keep`` is below 1.
    """

    def __init__(self, folder: Path, *, keep: int = 2, saved: Callable[[], None] | None = None) -> None:
        if keep < 1:
            raise ConfigError(f"keep = {keep} would leave no checkpoint", fix="Keep at least 1")
        self._folder = Path(folder).absolute()
        self._keep = keep
        self._saved = saved
        self._writer: Any = None
        _clear_leftovers(self._folder)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first; damaged ones count until :meth:`restore` moves them aside."""
        if not self._folder.is_dir():
            return []
        return sorted(
            int(entry.name)
            for entry in self._folder.iterdir()
            if entry.is_dir() and re.fullmatch(r"0|[1-9]\d*", entry.name)
        )

    def save(self, step: int, arrays: PyTree, meta: dict[str, Any]) -> None:
        """Write ``arrays`` and the JSON object ``meta`` as the checkpoint of ``step``, then drop all but the newest ``keep``.

        Leaves are numbers: NumPy arrays, or jax arrays that this process has whole, of any numeric or boolean dtype, or Python
        scalars; a typed PRNG key goes in as ``jax.random.key_data``. A checkpoint of the same step is replaced. Returns when
        everything is on disk.

        Raises:
            CheckpointError: A leaf is not numeric, none has elements, ``meta`` is not JSON, or a newer step has a checkpoint already.
        """
        newest = max(self.steps(), default=step)
        if newest > step:
            raise CheckpointError(
                f"step {step} is older than the newest checkpoint ({newest})",
                where=str(self._folder),
                fix="Resume from the newest checkpoint, or choose another folder",
            )
        paths, leaves = _named_leaves(arrays)
        leaves = [np.asarray(leaf) for leaf in leaves]
        if not any(leaf.size for leaf in leaves):
            raise CheckpointError(
                "there is no array to save",
                where=str(self._folder),
                fix="Save at least one leaf that has elements",
            )
        content: dict[str, Any] = {
            "format": FORMAT,
            "step": step,
            "meta": _as_json(meta),
            "leaves": [
                _describe(path, leaf) | {"sha256": _leaf_digest(path, leaf)}
                for path, leaf in zip(paths, leaves, strict=True)
            ],
        }
        with atomic_folder(self._folder / str(step)) as scratch:
            self._write_arrays(scratch / _ARRAYS, leaves)
            content["files"] = _file_digests(scratch)
            write_json(scratch / RECORD, content | {"digest": _digest(content)})
        for old in self.steps()[: -self._keep]:
            _discard(self._folder / str(old))
        if self._saved is not None:
            self._saved()

    def restore(self, like: PyTree) -> Restored | None:
        """The newest whole checkpoint, or None where there is none at all.

        ``like`` has the structure of what was saved, each leaf with its shape and dtype (an array or ``jax.ShapeDtypeStruct``).
        A Python scalar comes back as a Python scalar, every other leaf as a NumPy array, bit for bit whatever jax's 64-bit mode.
        Damaged newer checkpoints are moved aside only once a whole one is found.

        Raises:
            CheckpointError: Structure, shape or dtype differ from ``like``; a format is newer than this code; every checkpoint
                is damaged (each is named, none is moved); or orbax cannot read a checkpoint whose files are whole.
        """
        damaged: list[tuple[Path, str]] = []
        for step in reversed(self.steps()):
            folder = self._folder / str(step)
            try:
                content = _read_record(folder)
                _check_structure(folder, content["leaves"], like)
                _check_files(folder, content["files"])
                arrays = self._read_arrays(folder, content["leaves"], like)
            except _Damage as damage:
                damaged.append((folder, str(damage)))
                continue
            return Restored(step, arrays, content["meta"], tuple(_set_aside(*entry) for entry in damaged))
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

    def _write_arrays(self, folder: Path, leaves: list[Any]) -> None:
        # Keyed by index, so no name needs escaping. Orbax refuses arrays without elements, which have no bytes to keep.
        with _quiet():
            self._orbax().save(folder, {str(index): leaf for index, leaf in enumerate(leaves) if leaf.size})

    def _read_arrays(self, folder: Path, saved: list[dict[str, Any]], like: PyTree) -> PyTree:
        wanted, structure = jax.tree.flatten(like)
        stored = [str(index) for index, entry in enumerate(saved) if 0 not in entry["shape"]]
        values = self._read_stored(folder, stored)
        leaves = []
        for index, (entry, leaf) in enumerate(zip(saved, wanted, strict=True)):
            value = values[str(index)] if str(index) in stored else np.empty(entry["shape"], entry["dtype"])
            if _leaf_digest(entry["path"], value) != entry["sha256"]:
                raise _Damage(f"leaf `{entry['path']}` came back with other bits than were saved")
            leaves.append(value.item() if isinstance(leaf, bool | int | float) else value)
        return jax.tree.unflatten(structure, leaves)

    def _read_stored(self, folder: Path, names: list[str]) -> dict[str, Any]:
        with _quiet():
            import orbax.checkpoint as ocp

            how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            try:
                return self._orbax().restore(folder / _ARRAYS, restore_args=how)
            except (
                Exception
            ) as error:  # the bytes are the written ones: not damage, so going back one would not help
                raise CheckpointError(
                    f"orbax cannot read a checkpoint whose files are whole ({type(error).__name__}: {error})",
                    where=str(folder),
                    fix="Install the orbax-checkpoint version that wrote it",
                ) from error

    def _refuse_damaged(self, damaged: list[tuple[Path, str]]) -> None:
        aside = (
            [path.name for path in sorted(self._folder.glob("damaged-*"))] if self._folder.is_dir() else []
        )
        if not damaged and not aside:
            return
        found = [f"{folder.name} ({reason})" for folder, reason in damaged] + [
            f"{name} (moved aside earlier)" for name in aside
        ]
        raise CheckpointError(
            f"every checkpoint is damaged: {'; '.join(found)}",
            where=str(self._folder),
            fix="Restore the folder from a copy, or delete it to start again from step 0",
        )


class _Damage(Exception):
    """What is wrong with a checkpoint that has to be passed over."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax reports through absl's logger and Python warnings; what matters is raised as an error of ours."""
    from absl import logging as absl_logging  # orbax's own dependency, and the maker of that logger

    logger = absl_logging.get_absl_logger()
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


def _named_leaves(tree: PyTree) -> tuple[list[str], list[Any]]:
    paths, leaves = [], []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
            fix = "Pass jax.random.key_data of a key; keep text in meta"
            raise CheckpointError(f"leaf `{path}` has dtype {dtype}, which is not numeric", fix=fix)
        paths.append(path)
        leaves.append(leaf)
    return paths, leaves


def _describe(path: str, leaf: Any) -> dict[str, Any]:
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return {"path": path, "dtype": np.dtype(array.dtype).name, "shape": list(array.shape)}


def _leaf_digest(path: str, leaf: Any) -> str:
    array = np.asarray(leaf)
    little = (
        array.astype(array.dtype.newbyteorder("<"), copy=False) if array.dtype.byteorder == ">" else array
    )
    return hashlib.sha256(
        f"{path} {array.dtype.name} {array.shape}\n".encode() + little.tobytes()
    ).hexdigest()


def _as_json(meta: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(meta, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the meta of a checkpoint is not a JSON object ({error})",
            fix="Use null for a number that is not finite",
        ) from None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _file_digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _Damage(f"{RECORD} is missing") from None
    except (OSError, ValueError) as error:
        raise _Damage(f"{RECORD} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.pop("digest", None) != _digest(content):
        raise _Damage(f"{RECORD} does not agree with its own digest")
    content = read_json(path, kind="checkpoint")
    if content["step"] != int(folder.name):
        raise _Damage(f"it was saved as step {content['step']}")
    return content


def _check_files(folder: Path, digests: dict[str, str]) -> None:
    for name, digest in digests.items():
        try:
            same = sha256_file(folder / name) == digest
        except FileNotFoundError:
            raise _Damage(f"{name} is missing") from None
        except OSError as error:
            raise _Damage(f"{name} cannot be read: {error.strerror}") from None
        if not same:
            raise _Damage(f"{name} is not the file that was written (sha256 differs)")


def _check_structure(folder: Path, saved: list[dict[str, Any]], like: PyTree) -> None:
    asked = [_describe(path, leaf) for path, leaf in zip(*_named_leaves(like), strict=True)]
    if [{key: entry[key] for key in ("path", "dtype", "shape")} for entry in saved] == asked:
        return
    have = {entry["path"]: f"{entry['dtype']}{entry['shape']}" for entry in saved}
    want = {entry["path"]: f"{entry['dtype']}{entry['shape']}" for entry in asked}
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
    target = folder.with_name(f"damaged-{folder.name}")
    again = 2
    while target.exists():
        target = folder.with_name(f"damaged-{folder.name}-{again}")
        again += 1
    os.replace(folder, target)
    return f"checkpoint {folder.name} was passed over: {reason}; it is now in {target.name}"


def _discard(folder: Path) -> None:
    doomed = folder.with_name(
        f".{folder.name}.discarded"
    )  # renamed first, so that a kill leaves no half-deleted checkpoint
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def _clear_leftovers(folder: Path) -> None:
    if not folder.is_dir():
        return
    for entry in list(folder.iterdir()):
        if match := re.fullmatch(r"\.(\d+)\..+", entry.name):
            clear_leftovers(folder / match[1])

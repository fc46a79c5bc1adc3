"""The adapter bundle: what was trained, small, and enough to rebuild the network anywhere the trunk exists.

A bundle is a folder:

- ``adapter_model.safetensors``, ``adapter_config.json``: the adapters in peft's format; absent where a recipe
  has none
- ``trained.safetensors``: base parameters that the recipe trains, by path; absent where none
- ``ofa.json``: everything else (:class:`BundleRecord`), with the sha256 of the other files and of itself
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from ofa_jax import files
from ofa_jax.adapters.partition import AdapterTarget
from ofa_jax.adapters.peft import ADAPTER_CONFIG, ADAPTER_FILE, read_peft, write_peft
from ofa_jax.adapters.rslora import Adapters, LoraConfig
from ofa_jax.config.schema import AdapterConfig
from ofa_jax.errors import CheckpointError
from ofa_jax.files import FileRecord, Record, Sha256
from ofa_jax.model import trees
from ofa_jax.tensors import read_tensors

TRAINED_FILE = "trained.safetensors"
META_FILE = "ofa.json"
BUNDLE_FORMAT = 4

_Spread = Annotated[float, Field(ge=1e-30, le=1e30)]
_STANDARDIZED = 1e12
"""Largest size of a standardized zero: its square, summed over a window, is finite in float32."""


class ScalerRecord(Record):
    """Means and standard deviations of the series; ``constant`` names those that have no spread."""

    names: list[str]
    mean: list[float]
    std: list[_Spread]
    constant: list[str]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not len(self.names) == len(self.mean) == len(self.std):
            raise ValueError("names, mean and std differ in length")
        for name, mean, std in zip(self.names, self.mean, self.std, strict=True):
            if abs(mean) > _STANDARDIZED * std:
                raise ValueError(f"mean {mean:g} of {name!r} is too large for its std {std:g}")
        return self


class FrozenRecord(Record):
    """What identifies the parameters that are not in a bundle: the trunk and the frozen layers around it.

    ``trunk_source`` is ``id@commit`` of the hub, ``random`` or another trunk without weights; None: a folder.
    """

    trunk_source: str | None
    trunk_sha256: Sha256
    trunk_config: dict[str, int | float | bool | str | None]
    rule: str
    seed: int = Field(ge=0, lt=2**64)
    sha256: Sha256


class BundleRecord(FileRecord):
    """``ofa.json``. ``settings`` are checked where an experiment is built from them; format 2 changed their
    names.

    Format 3 added ``filled``, the number of missing values that were filled in the data of training, and its
    ``sha256`` covers ``format``. Format 4 added ``relative``, whether windows are relative to their last
    input, and names no folder: ``trunk.source`` of its settings is null where the trunk's weights are in one
    that did not come from the hub. ``covariates``: forecasts are completed by effects that are not in it.
    """

    newest = BUNDLE_FORMAT

    kind: Literal["ofa-jax bundle"]
    versions: dict[str, str]
    settings: dict[str, Any]
    scaler: ScalerRecord | None
    season: int = Field(ge=1, le=10**6)
    protocol: Literal["strict", "published"]
    frozen: FrozenRecord
    frequency: str | None = None
    classes: list[str] | None = None
    threshold: float | None = None
    filled: int = Field(0, ge=0)
    relative: bool = False
    covariates: bool = False
    best_epoch: int = Field(ge=0)
    validation: dict[str, float]
    adapters: AdapterConfig | None
    files: dict[str, Sha256]
    sha256: Sha256

    @model_validator(mode="after")
    def _complete(self) -> Self:
        own = {ADAPTER_FILE, ADAPTER_CONFIG} if self.adapters else set()
        if self.files.keys() - {TRAINED_FILE} != own:
            raise ValueError("adapters and files do not agree")
        return self


@dataclass(frozen=True)
class Bundle:
    """A bundle read back: adapters, trained base parameters (nested) and ``ofa.json``."""

    adapters: Adapters
    trained: dict[str, Any]
    record: BundleRecord


def write_bundle(
    folder: str | Path,
    *,
    adapters: Adapters,
    targets: Mapping[str, AdapterTarget],
    trained: Mapping[str, Any],
    lora: LoraConfig,
    meta: Mapping[str, Any],
) -> None:
    """Write a bundle, or replace one; a kill at any moment leaves the old or the new.

    Adapters and trained base parameters may be empty; ``meta`` has the other fields of :class:`BundleRecord`.

    Raises:
        CheckpointError: ``meta`` does not fit the record.
    """
    from safetensors.numpy import save_file

    leaves = [*trees.flatten(adapters).values(), *trees.flatten(trained).values()]
    with files.atomic_folder(folder, size=sum(leaf.nbytes for leaf in leaves)) as scratch:
        if adapters:
            write_peft(scratch, adapters, targets, lora)
        if trained:
            flat = {path: np.ascontiguousarray(leaf) for path, leaf in trees.flatten(trained).items()}
            save_file(flat, scratch / TRAINED_FILE)
        content = {**meta, "adapters": asdict(lora) if adapters else None}
        content["files"] = files.file_digests(scratch)
        content["sha256"] = files.json_digest({"format": BUNDLE_FORMAT, **content})
        files.write_json(scratch / META_FILE, content, version=BUNDLE_FORMAT)
        _read_meta(scratch)


def read_bundle(folder: str | Path) -> Bundle:
    """Read a bundle and check it against itself; a run that is trained meanwhile may exchange it.

    Raises:
        CheckpointError: No bundle here, a file is missing, damaged or edited, a field is wrong.
        WeightsError: The adapters cannot be read or are not finite.
    """
    return files.read_folder(folder, _read)


def _read(folder: Path) -> Bundle:
    record = _read_meta(folder)
    if damage := files.find_damage(folder, record.files):
        fix = "The bundle is damaged or was edited; copy the complete folder again"
        raise CheckpointError(damage, where=str(folder), fix=fix)
    adapters = read_peft(folder)[0] if record.adapters else {}
    trained = read_tensors(folder / TRAINED_FILE) if TRAINED_FILE in record.files else {}
    return Bundle(adapters, trees.unflatten(trained), record)


def _read_meta(folder: Path) -> BundleRecord:
    where = folder / META_FILE
    content = files.read_json(where, kind="bundle")
    record = files.parse_record(content, BundleRecord, where=str(where))
    unsigned = ("sha256",) if record.format >= 3 else ("format", "sha256")
    signed = {key: value for key, value in content.items() if key not in unsigned}
    if record.sha256 != files.json_digest(signed):
        what = "was edited after it was saved (its sha256 differs)"
        raise CheckpointError(what, where=str(where), fix="Copy the bundle again")
    return record

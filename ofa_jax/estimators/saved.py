"""Estimators in folders: a record of their parameters, and a bundle where they were fitted.

The folder has no values of the series. ``bundle`` in it is one as of a run, which :func:`ofa_jax.load_bundle`
reads; ``ofa-jax predict`` applies that of a forecaster or a classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import Field

from ofa_jax import files
from ofa_jax.build import NAMED, Model
from ofa_jax.config.schema import Experiment
from ofa_jax.errors import CheckpointError, ConfigError
from ofa_jax.estimators.covariates import Effects
from ofa_jax.estimators.intervals import Calibration, PredictionIntervals
from ofa_jax.files import FileRecord, Record, Sha256
from ofa_jax.runs.bundle import ESTIMATOR_FILE, FORECAST_FROM, BundleWriter, load_bundle
from ofa_jax.tensors import read_tensors

CALIBRATION_FILE = "calibration.safetensors"
EFFECTS_FILE = "covariates.safetensors"
BUNDLE = "bundle"
CLASSES = {
    "ofa-jax forecaster": "OneForAllForecaster",
    "ofa-jax classifier": "OneForAllClassifier",
    **FORECAST_FROM,
}
_ARRAYS = ("spread", "kernel")
_ERRORS = "signed_errors"
_NONE = 1e35  # in place of NaN in a file of tensors; errors are smaller


class SavedRecord(FileRecord):
    """``estimator.json``: parameters of the constructor, and the sha256 of the other files.

    ``trunk`` of the parameters is null where the trunk is in a folder.
    """

    kind: str
    params: dict[str, int | float | bool | str | list[str] | None]
    files: dict[str, Sha256]
    sha256: Sha256


R = TypeVar("R", bound=SavedRecord)


class EffectsRecord(Record):
    """What a forecaster's effects of covariates are besides their arrays."""

    names: list[str]
    calendar: bool
    penalty: float = Field(ge=0)
    share: float = Field(ge=0, le=1)
    before: float = Field(ge=0)
    after: float = Field(ge=0)


class EstimatorRecord(SavedRecord):
    """``estimator.json`` of a forecaster."""

    kind: Literal["ofa-jax forecaster"]
    val_size: int | None = Field(None, ge=1)
    intervals: dict[str, int | str] | None = None
    effects: EffectsRecord | None = None


class Fitted(NamedTuple):
    """What ``fit`` makes of a forecaster, with the validation metrics of its best epoch."""

    model: Model
    experiment: Experiment
    best_epoch: int
    best_metrics: dict[str, float]
    held_out: int
    season: int
    frequency: str
    effects: Effects | None = None


Saved = tuple[dict[str, Any], Fitted | None, Calibration | None]


def write_folder(
    path: str | Path,
    noun: str,
    params: Mapping[str, Any],
    fill: Callable[[Path], Mapping[str, Any]],
    *,
    overwrite: bool,
) -> None:
    """Write an estimator, or replace one; ``fill`` writes the other files and returns further fields.

    Raises:
        ConfigError: There is something else, or there is one and ``overwrite`` is not set.
    """
    path = Path(path)
    if files.is_there(path, error=ConfigError):
        if not (path / ESTIMATOR_FILE).is_file():
            raise ConfigError(f"is there and no saved {noun}", where=str(path), fix="Name another folder")
        if not overwrite:
            raise ConfigError("is there", where=str(path), fix="Name another folder, or set overwrite=True")
    with files.atomic_folder(path) as scratch:
        further = fill(scratch)
        # a folder of this machine says nothing elsewhere
        trunk = params["trunk"] if params["trunk"] in NAMED else None
        content = {"kind": f"ofa-jax {noun}", "params": {**params, "trunk": trunk}, **further}
        content["files"] = files.file_digests(scratch)
        content["sha256"] = files.json_digest(content)
        files.write_json(scratch / ESTIMATOR_FILE, content)


def read_folder(folder: Path, noun: str, kind: type[R], trunk: str | None) -> R:
    """The record of a saved estimator, checked against itself and the other files.

    Raises:
        CheckpointError: There is none, or it is damaged, edited or newer than this version, or ``trunk`` is
            missing.
    """
    where = folder / ESTIMATOR_FILE
    content = files.read_json(where, kind=noun)
    kind_of = content.get("kind")
    if isinstance(kind_of, str) and kind_of in CLASSES and kind_of != f"ofa-jax {noun}":
        fix = f"Load it by {CLASSES[kind_of]}.load"
        what = f"this is an {kind_of}, not an ofa-jax {noun}"
        raise CheckpointError(what, where=str(folder), fix=fix)
    record = files.parse_record(content, kind, where=str(where))
    signed = {name: value for name, value in content.items() if name not in ("format", "sha256")}
    damage = files.find_damage(folder, record.files)
    if damage or record.sha256 != files.json_digest(signed):
        what = damage or "was edited after it was saved (its sha256 differs)"
        raise CheckpointError(what, where=str(folder), fix="Copy the complete folder again")
    if (trunk or record.params.get("trunk")) is None:
        what = f"the trunk is in a folder, which a saved {noun} does not name"
        raise CheckpointError(what, where=str(where), fix="Pass its current path as `trunk`")
    return record


def save(
    path: str | Path,
    params: Mapping[str, Any],
    fitted: Fitted | None,
    calibration: Calibration | None,
    *,
    overwrite: bool,
) -> None:
    """Write a forecaster, or replace one.

    Raises:
        ConfigError: As :func:`write_folder`.
    """
    from safetensors.numpy import save_file

    def fill(scratch: Path) -> dict[str, Any]:
        if fitted is not None:
            about = {"scaler": None, "season": fitted.season, "frequency": fitted.frequency, "relative": True}
            about |= {"covariates": True} if fitted.effects is not None else {}
            writer = BundleWriter(scratch / BUNDLE, fitted.experiment, fitted.model, about)
            writer(fitted.model.trainable, fitted)
        if calibration is not None:
            errors = np.nan_to_num(calibration.errors, nan=_NONE)
            save_file({_ERRORS: errors}, scratch / CALIBRATION_FILE)
        intervals = asdict(calibration.settings) if calibration else None
        made = {"val_size": fitted.held_out if fitted else None, "intervals": intervals}
        if fitted is not None and fitted.effects is not None:
            effects = asdict(fitted.effects)
            save_file({name: effects.pop(name) for name in _ARRAYS}, scratch / EFFECTS_FILE)
            made["effects"] = effects
        return made

    write_folder(path, "forecaster", params, fill, overwrite=overwrite)


def load(path: str | Path, trunk: str | None = None) -> Saved:
    """Read a saved forecaster and check it against itself: parameters, what was fitted, and calibration.

    Args:
        path: Its folder.
        trunk: The trunk's current folder, if it moved.

    Raises:
        CheckpointError: There is none, or it is damaged, edited or newer than this version.
        WeightsError: Its trunk cannot be loaded.
    """
    return files.read_folder(path, lambda folder: _load(folder, trunk))


def _load(folder: Path, trunk: str | None) -> Saved:
    record = read_folder(folder, "forecaster", EstimatorRecord, trunk)
    calibration = None
    if record.intervals is not None:
        errors = read_tensors(folder / CALIBRATION_FILE).get(_ERRORS, np.zeros(0))
        if errors.ndim != 3 or not len(errors):
            what, fix = f"has no {_ERRORS}", "Calibrate and save the forecaster again"
            raise CheckpointError(what, where=str(folder / CALIBRATION_FILE), fix=fix)
        settings = PredictionIntervals(**record.intervals)  # type: ignore[arg-type]
        calibration = Calibration(np.where(errors == _NONE, np.nan, errors).astype(np.float32), settings)
    if record.val_size is None:
        return record.params, None, calibration
    made = load_bundle(folder / BUNDLE, trunk=trunk)
    best, frequency = made.record, made.record.frequency or ""
    fitted = Fitted(
        *(made.model, made.experiment, best.best_epoch, best.validation),
        *(record.val_size, best.season, frequency),
        _effects(folder, record),
    )
    return record.params, fitted, calibration


def _effects(folder: Path, record: EstimatorRecord) -> Effects | None:
    if record.effects is None:
        return None
    tensors, where = read_tensors(folder / EFFECTS_FILE), str(folder / EFFECTS_FILE)
    spread, kernel = (tensors.get(name, np.zeros(0)) for name in _ARRAYS)
    sizes = spread.ndim == kernel.ndim == 1 and len(kernel) == 2 * (spread > 0).sum()
    if not sizes:
        raise CheckpointError("has no effects of covariates", where=where)
    rest = record.effects.model_dump()
    return Effects(spread, kernel, tuple(rest.pop("names")), **rest)

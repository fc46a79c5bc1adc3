"""The bundle of a run: written while it trains, loaded as a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ofa_jax.adapters.bundle import META_FILE, BundleRecord, read_bundle, write_bundle
from ofa_jax.build import NAMED, Model, frozen_record, restore_model
from ofa_jax.config.load import build_experiment, dump_experiment, upgrade_settings
from ofa_jax.config.schema import Experiment
from ofa_jax.data.catalog.load import CATALOG
from ofa_jax.data.splits import Scaler
from ofa_jax.errors import CheckpointError, WeightsError
from ofa_jax.files import is_there, read_json
from ofa_jax.model.weights import hub_origin
from ofa_jax.runs.folder import BUNDLE, CONFIG_FILE, read_config, versions
from ofa_jax.tasks.base import TaskData, TrainedOn
from ofa_jax.train.step import Params

ESTIMATOR_FILE = "estimator.json"
FORECAST_FROM = {
    "ofa-jax anomaly detector": "OneForAllAnomalyDetector",
    "ofa-jax imputer": "OneForAllImputer",
}
"""Saved estimators that do something else with forecasts."""


@dataclass(frozen=True)
class LoadedModel:
    """A bundle as a model: settings, trained network, scaler of the series (None: their own units)."""

    experiment: Experiment
    model: Model
    scaler: Scaler | None
    record: BundleRecord

    @property
    def names(self) -> tuple[str, ...] | None:
        """The series that the model was trained on; None where it reads any series."""
        return None if self.scaler is None else self.scaler.names

    @property
    def trained_on(self) -> TrainedOn:
        """What applying the model to new data needs to know."""
        meta = self.record.model_dump(include={"frequency", "classes", "threshold", "relative"})
        return TrainedOn(self.experiment.task, self.experiment.data, self.scaler, meta)


def public_settings(experiment: Experiment, trunk_origin: str) -> dict[str, Any]:
    """Settings to pass on: of data files the name, of the trunk the hub id, and no folder of this machine."""
    settings = dump_experiment(experiment)
    for name in ("source", "target", "labels"):
        place = settings["data"][name]
        if place is not None and place not in CATALOG:  # JSON has no bytes that are not UTF-8
            settings["data"][name] = os.fsencode(Path(place).name).decode(errors="replace")
    trunk = settings["trunk"]
    if trunk["source"] not in NAMED:
        origin = hub_origin(trunk_origin)
        if origin is None or Path(trunk["source"]).expanduser().is_dir():
            trunk["source"], trunk["revision"] = origin or (None, None)
    return settings


class Best(Protocol):
    """The epoch that was best on validation, from 1, and its metrics."""

    @property
    def best_epoch(self) -> int: ...

    @property
    def best_metrics(self) -> dict[str, float]: ...


def about_data(data: TaskData) -> dict[str, Any]:
    """What a bundle stores about the data of training."""
    scaler = None if data.scaler is None else data.scaler.to_dict()
    return {"scaler": scaler, "season": data.season, **data.meta, "relative": data.relative}


class BundleWriter:
    """Writes the best trainable tree as a bundle.

    Args:
        folder: The bundle's folder.
        experiment: The run's settings.
        model: Its network, targets and adapter configuration.
        about: What new data need to know about those of training (:func:`about_data`).
    """

    def __init__(self, folder: Path, experiment: Experiment, model: Model, about: Mapping[str, Any]) -> None:
        self._folder, self._model = folder, model
        self._meta: dict[str, Any] = {
            "kind": "ofa-jax bundle",
            "versions": versions(),
            "settings": public_settings(experiment, model.trunk_source),
            "protocol": experiment.protocol,
            **about,
            "frozen": frozen_record(model, experiment.network.seed),
        }

    def __call__(self, best: Params, progress: Best, calibration: dict[str, Any] | None = None) -> None:
        found = {"best_epoch": progress.best_epoch, "validation": progress.best_metrics}
        write_bundle(
            self._folder,
            adapters=best["adapters"],
            targets=self._model.targets,
            trained=best["base"],
            lora=self._model.lora,
            meta={**self._meta, **(calibration or {}), **found},
        )


def load_bundle(path: str | Path, *, trunk: str | None = None) -> LoadedModel:
    """Load a bundle, or the bundle of a run folder, bit for bit as it was saved.

    Args:
        path: A bundle folder or a run folder.
        trunk: Current path or hub id of the trunk's weights, if they moved.

    Raises:
        CheckpointError: There is no bundle, it is damaged, or trunk or frozen layers differ from training, or
            it is the forecaster of a saved anomaly detector or imputer.
        WeightsError: The trunk cannot be loaded, or it is in a folder, which a bundle does not
            name, and ``trunk`` is not given; within a run folder the run's settings name it.
    """
    path = Path(path)
    folder = path if is_there(path / META_FILE) else path / BUNDLE
    if folder != path and (path / ESTIMATOR_FILE).is_file():
        _refuse_part(path)
    bundle = read_bundle(folder)
    settings = upgrade_settings(bundle.record.settings, bundle.record.format)
    settings["trunk"] = _trunk_settings(settings.get("trunk"), folder, bundle.record, trunk)
    experiment = build_experiment(settings, where=str(folder / META_FILE))
    try:
        model = restore_model(experiment, bundle, where=str(folder))
    except WeightsError as error:
        if trunk is not None:
            raise
        fix = "If the trunk's weights moved, pass their path as `trunk`"
        raise WeightsError(error.what, where=error.where, fix=fix) from None
    stored = bundle.record.scaler
    scaler = None
    if stored is not None:
        mean, std = np.array(stored.mean), np.array(stored.std)
        scaler = Scaler(mean, std, tuple(stored.names), tuple(stored.constant))
    return LoadedModel(experiment, model, scaler, bundle.record)


def _refuse_part(path: Path) -> None:
    """Refuse a saved estimator that does more with forecasts than to forecast."""
    where = path / ESTIMATOR_FILE
    content = read_json(where, kind="estimator")
    name = FORECAST_FROM.get(str(content.get("kind")))
    params = content.get("params")
    if name and isinstance(params, dict) and params.get("method") == "forecast":
        what = f"this is a saved {name}, whose bundle alone only forecasts"
        raise CheckpointError(what, where=str(where), fix=f"Load it in Python by {name}.load")


def _trunk_settings(stored: Any, folder: Path, record: BundleRecord, moved: str | None) -> Any:
    """Settings of the trunk with its place: where it moved to, else that of the run, else the stored one."""
    if not isinstance(stored, dict):
        return stored
    if moved is not None:
        return stored | {"source": moved} | ({"revision": None} if Path(moved).is_dir() else {})
    if stored.get("source") in NAMED or record.format < 4:
        return stored
    if (folder.parent / CONFIG_FILE).is_file():
        trunk = read_config(folder.parent)[0].trunk
        return stored | {"source": trunk.source, "revision": trunk.revision}
    if stored.get("source") is None:
        digest = record.frozen.trunk_sha256
        what = f"the trunk's weights are in a folder, which a bundle does not name (sha256 {digest})"
        raise WeightsError(what, where=str(folder / META_FILE), fix="Pass its current path as `trunk`")
    return stored

"""What the classifier, the detector and the imputer share: they train before they are used."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from ofa_jax import files
from ofa_jax.build import RANDOM, REPLACED, Model, build_model, trunk_config
from ofa_jax.config.load import build_experiment
from ofa_jax.config.schema import Experiment, TrunkConfig
from ofa_jax.data.splits import Scaler
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.estimators.base import Estimator, NotFittedError, is_whole
from ofa_jax.estimators.saved import BUNDLE, SavedRecord, read_folder, write_folder
from ofa_jax.model.gpt2 import Forecaster
from ofa_jax.model.weights import read_config
from ofa_jax.runs.bundle import BundleWriter, load_bundle
from ofa_jax.runs.fitting import fit_model
from ofa_jax.tasks.base import NewData, Outputs, Task, TrainedOn
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.program import evaluation_options
from ofa_jax.train.progress import SILENT, ConsoleReporter
from ofa_jax.windows.table import WindowTable

_META = {"frequency", "classes", "threshold", "filled"}


class AdaptedRecord(SavedRecord):
    """``estimator.json`` of an estimator that is fitted; classes and type are a classifier's, weights an
    imputer's.
    """

    kind: Literal["ofa-jax classifier", "ofa-jax anomaly detector", "ofa-jax imputer"]
    classes: list[bool | int | float | str] | None = None
    weights: list[float] | None = None
    dtype: str | None = Field(None, pattern=r"^[<>|]([biuf]\d+|U\d+|O|M8\[\w+\])$")


@dataclass(frozen=True)
class Adapted:
    """What ``fit`` makes: the model, what it knows of the data, and the validation of its best epoch."""

    model: Model
    experiment: Experiment
    scaler: Scaler | None
    meta: Mapping[str, Any]
    best_epoch: int
    best_metrics: dict[str, float]

    @property
    def trained_on(self) -> TrainedOn:
        """What applying the model to new data needs to know."""
        return TrainedOn(self.experiment.task, self.experiment.data, self.scaler, self.meta)

    def apply(
        self, data: Task | NewData, table: WindowTable, outputs: Outputs | None = None
    ) -> dict[str, np.ndarray]:
        """Outputs of every window of a table, by default ``prediction``.

        Raises:
            DataError: One is not finite.
        """
        model = self.model
        options = evaluation_options(self.experiment.train, model.network)
        predictor = WindowPredictor(model.predict, data, outputs, **options)
        found = predictor(table, model.frozen, model.trainable)
        if not all(np.isfinite(values).all() for values in found.values()):
            fix = "Look for values in the input that are far outside those of training"
            raise DataError("the model gives a value that is not finite", fix=fix)
        return found


@dataclass(kw_only=True, eq=False, repr=False)
class AdaptedEstimator(Estimator):
    """An estimator that is trained before it is used."""

    noun: ClassVar[str]
    """What messages and saved folders call it."""

    fitted_: Adapted = field(init=False)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write parameters and what was trained into a folder; none of the data's values.

        Raises:
            NotFittedError: Before :meth:`fit`.
            ConfigError: The folder is there.
        """
        fitted = self._known()

        def fill(scratch: Path) -> dict[str, Any]:
            scaler = fitted.scaler and fitted.scaler.to_dict()
            about = {"scaler": scaler, "season": 1, **fitted.meta, "relative": False}
            writer = BundleWriter(scratch / BUNDLE, fitted.experiment, fitted.model, about)
            writer(fitted.model.trainable, fitted)
            return self._further()

        write_folder(path, self.noun, self.get_params(), fill, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, *, trunk: str | None = None) -> Self:
        """Read what :meth:`save` wrote.

        Args:
            path: The folder.
            trunk: The trunk's current folder, if it is in one.

        Raises:
            CheckpointError: There is no such estimator, or it is damaged.
            WeightsError: Its trunk cannot be loaded.
        """
        return files.read_folder(path, lambda folder: cls._read_saved(folder, trunk))

    @classmethod
    def _read_saved(cls, folder: Path, trunk: str | None) -> Self:
        record = read_folder(folder, cls.noun, AdaptedRecord, trunk)
        params = record.params | ({} if trunk is None else {"trunk": trunk})
        made, bundle = cls._of(params, folder), load_bundle(folder / BUNDLE, trunk=trunk)
        best = bundle.record
        meta = {name: value for name, value in best.model_dump(include=_META).items() if value is not None}
        found = (best.best_epoch, best.validation)
        made.fitted_ = Adapted(bundle.model, bundle.experiment, bundle.scaler, meta, *found)
        made._restore(record)
        return made

    def _further(self) -> dict[str, Any]:
        """Fields of the record that only this class has."""
        return {}

    def _restore(self, record: AdaptedRecord) -> None:
        """Take what only this class has from a record."""

    def _known(self) -> Adapted:
        if (fitted := getattr(self, "fitted_", None)) is None:
            raise NotFittedError(f"the {self.noun} was not fitted", fix="Call fit first")
        return fitted

    def _seed(self) -> int:
        """The seed, checked before anything is drawn by it."""
        if not is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed!r}", fix="Give a whole number from 0 to 4294967295")
        return int(self.seed)

    def _positions(self) -> int:
        """Tokens that the trunk reads at most."""
        return trunk_config(TrunkConfig(**self._trunk_settings())).n_positions

    def _trunk_settings(self) -> dict[str, Any]:
        if not isinstance(self.trunk, str) or not self.trunk:
            fix = "Give nano, a folder, the hub id of a GPT-2, or random"
            raise ConfigError(f"trunk is {self.trunk!r}", fix=fix)
        if self.trunk in (RANDOM, *REPLACED):
            return {"source": self.trunk}
        return {"source": self.trunk, "n_layer": read_config(self.trunk).n_layer}

    def _around(self, method: Any) -> Forecaster | None:
        """What the trunk was pretrained with, for the method ``forecast``; None for ``reconstruction``.

        Raises:
            ConfigError: There is no such method, or the trunk was not pretrained on series.
        """
        if method == "reconstruction":
            return None
        if method != "forecast":
            raise ConfigError(f"method is {method!r}", fix="Give forecast or reconstruction")
        around = trunk_config(TrunkConfig(**self._trunk_settings())).forecaster
        if around is None:
            what = f"the trunk {self.trunk} was not pretrained on series, so it forecasts none"
            fix = "Name nano or a folder of such a trunk, or set method='reconstruction'"
            raise ConfigError(what, where="trunk", fix=fix)
        return around

    def _experiment(
        self,
        windows: int,
        task: Mapping[str, Any],
        network: Mapping[str, Any] | None = None,
        *,
        recipe: str | None = None,
        **training: Any,
    ) -> Experiment:
        """Settings of training on so many windows."""
        if not is_whole(self.batch_size) or self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size!r}", fix="Give 1 or more")
        fitting = 2 ** max(3, (windows // 8).bit_length() - 1)
        return build_experiment(
            {
                "data": {"source": "arrays"},
                "task": task,
                "trunk": self._trunk_settings(),
                "recipe": recipe or self.recipe,
                "network": network or {},
                "adapters": {"rank": self.rank, "alpha": self.alpha, "seed": self.seed},
                "train": {
                    "epochs": self.epochs,
                    "patience": self.epochs,
                    "learning_rate": self.learning_rate,
                    "batch_size": min(self.batch_size, fitting),
                    "cosine_epochs": self.epochs,
                    "seed": self.seed,
                    **training,
                },
            },
            where="parameters",
        )

    def _adapt(
        self, experiment: Experiment, task: Task, scaler: Scaler | None, meta: Mapping[str, Any]
    ) -> Adapted:
        """Train on a task."""
        model = build_model(experiment)
        with ConsoleReporter() if self.verbose else contextlib.nullcontext(SILENT) as reporter:
            result = fit_model(model, task, experiment.train, reporter=reporter)
        best, model = result.progress, replace(model, trainable=result.best)
        return Adapted(model, experiment, scaler, meta, best.best_epoch, best.best_metrics)


def check_share(name: str, value: Any) -> None:
    """Refuse a parameter that is no share between 0 and 1, both excluded.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(value, int | float | np.floating) or isinstance(value, bool) or not 0 < value < 1:
        raise ConfigError(f"{name} is {value!r}", fix="Give a share between 0 and 1, such as 0.1")

"""The classifier: arrays of cases in, classes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd

from ofa_jax.config.tasks import ClassificationSettings
from ofa_jax.data.archives import LabelledCases
from ofa_jax.data.missing import LARGEST
from ofa_jax.errors import ConfigError, DataError, shorten
from ofa_jax.estimators.adapted import AdaptedEstimator, AdaptedRecord, check_share
from ofa_jax.estimators.base import is_whole
from ofa_jax.model.patching import patch_count
from ofa_jax.tasks.classification import apply_cases, prepare_cases

_SOURCE = "X"


@dataclass(kw_only=True, eq=False, repr=False)
class OneForAllClassifier(AdaptedEstimator):
    """Classes of cases of one or several channels, by a frozen trunk that :meth:`fit` adapts.

    A case is read in patches of all its channels. Channels are standardized by the cases of :meth:`fit`;
    shorter cases are zero-padded at their end.

    Args:
        input_length: Steps of the longest case that can be read; default: that of :meth:`fit`'s longest.
        patch: Steps of a patch; default: as few as the trunk has positions for.
        stride: Steps from one patch to the next; default: ``patch``.
        recipe: What :meth:`fit` trains (:data:`ofa_jax.RECIPES`).
        trunk: ``nano``, which comes with the package, the folder or hub id of a GPT-2, or ``random``.
        rank: Rank of the adapters.
        alpha: Their scale is alpha / sqrt(rank).
        epochs: Passes over the cases; the one with the lowest cross-entropy on held-out cases is kept.
        learning_rate: Constant learning rate.
        batch_size: Cases per step, at most; fewer where that makes fewer than 8 steps an epoch.
        validation_fraction: Share of each class's cases that is held out to choose the epoch.
        seed: Seed of adapters, batches and held-out cases.
        verbose: Whether :meth:`fit` shows its progress.

    Attributes:
        classes_: The classes ``[k]``, sorted, as ``y`` has them.
    """

    noun: ClassVar[str] = "classifier"
    classes_: np.ndarray = field(init=False)

    input_length: int | Literal["auto"] = "auto"
    patch: int | Literal["auto"] = "auto"
    stride: int | Literal["auto"] = "auto"
    recipe: str = "gpt4ts"
    epochs: int = 30
    batch_size: int = 64
    validation_fraction: float = 0.2

    def fit(self, X: Any, y: Any) -> Self:
        """Adapt the trunk to labeled cases.

        Args:
            X: Cases ``[n, c, t]`` or ``[n, t]`` (one channel), or a list of cases ``[c, t_i]`` or ``[t_i]``.
            y: Their classes ``[n]``: texts, numbers, booleans or dates.

        Raises:
            DataError: Cases or classes cannot be read, or there are fewer than two classes.
            ConfigError: A parameter is out of range.
        """
        check_share("validation_fraction", self.validation_fraction)
        classes, codes = _read_classes(y)
        names = tuple(str(value) for value in classes.tolist())
        train = _read_cases(X, tuple(names[code] for code in codes), names)
        counts = np.bincount(codes)
        if counts.max() < 2:
            what = f"each of the {len(classes)} classes has one case, so none can be held out"
            raise DataError(what, where="y", fix="Give classes, not numbers to predict, and more cases")
        none = LabelledCases((), (), names, None, _SOURCE)
        experiment = self._experiment(
            train.n_cases - len(classes),
            {
                "name": "classification",
                "input_length": (length := self._length(train)),
                "channels": train.n_channels,
                "classes": max(len(classes), 2),
            },
            self._patches(length),
            optimizer="radam",
            clip_norm=4,
            schedule="constant",
        )
        task = experiment.task
        assert isinstance(task, ClassificationSettings)
        data = prepare_cases(train, none, task, share=self.validation_fraction, seed=experiment.train.seed)
        self.fitted_ = self._adapt(experiment, data.task, data.scaler, data.meta)
        self.classes_ = classes
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each case, ``[n]``, as ``y`` of :meth:`fit` has them.

        Raises:
            NotFittedError: Before :meth:`fit`.
            DataError: The cases cannot be read, or have other channels or more steps than the model reads.
        """
        chosen = self.predict_proba(X).argmax(axis=1)
        return self.classes_[chosen]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, ``[n, k]`` float64, in the order of ``classes_``.

        Raises:
            As :meth:`predict`.
        """
        fitted = self._known()
        new = apply_cases(fitted.trained_on, _read_cases(X))
        found = fitted.apply(new, new.table, new.outputs)["probability"].astype(np.float64)
        return found / found.sum(axis=1, keepdims=True)

    def score(self, X: Any, y: Any) -> float:
        """The share of cases whose most probable class is that of ``y`` ``[n]``.

        Raises:
            As :meth:`predict`; ``y`` has another number of classes than there are cases.
        """
        found, (classes, codes) = self.predict(X), _read_classes(y)
        if len(codes) != len(found):
            raise DataError(f"there are {len(found)} cases and {len(codes)} classes", where="y")
        return float(np.mean(found == classes[codes]))

    def _length(self, train: LabelledCases) -> int:
        longest = int(train.lengths.max())
        length = longest if self.input_length == "auto" else self.input_length
        if not is_whole(length) or length < longest:
            what = f"input_length is {length!r}, but the longest case has {longest} steps"
            raise ConfigError(what, fix=f"Give {longest} or more, or 'auto'")
        return int(length)

    def _patches(self, length: int) -> dict[str, int]:
        """Patch and stride with which a case fits the positions of the trunk."""
        positions = self._positions()
        for name in ("patch", "stride"):
            value = getattr(self, name)
            if value != "auto" and (not is_whole(value) or value < 1):
                raise ConfigError(f"{name} is {value!r}", fix="Give 1 or more steps, or 'auto'")
        patch, step = (None if value == "auto" else value for value in (self.patch, self.stride))
        if patch is None:
            sizes = range(step or 1, length + (step or 1) + 1)
            patch = next(size for size in sizes if patch_count(length, size, step or size) <= positions)
        stride = step or patch
        if (tokens := patch_count(length, patch, stride)) > positions:
            what = f"patches of {patch} steps, one every {stride}, are {tokens} for a case of {length} steps"
            fix = "Give a larger stride and patch, or 'auto'"
            raise ConfigError(f"{what}, and the trunk reads {positions}", fix=fix)
        return {"patch": int(patch), "stride": int(stride)}

    def _further(self) -> dict[str, Any]:
        values = self.classes_.astype(str) if self.classes_.dtype.kind == "M" else self.classes_
        return {"classes": values.tolist(), "dtype": self.classes_.dtype.str}

    def _restore(self, record: AdaptedRecord) -> None:
        self.classes_ = np.array(record.classes, dtype=record.dtype)


def _read_classes(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """The classes ``[k]``, sorted, and which each case has, ``[n]``."""
    values = np.asarray(y)
    if values.ndim != 1 or not len(values):
        what = f"the classes are an array of shape {list(values.shape)}"
        raise DataError(what, where="y", fix="Give one class per case, [n]")
    if len(missing := np.flatnonzero(pd.isna(values))):
        what = f"the class of case {missing[0]} is missing ({len(missing)} in all)"
        raise DataError(what, where="y", fix="Leave those cases out")
    wrong = [] if values.dtype.kind != "O" else [v for v in values if not isinstance(v, str | int | float)]
    if wrong or values.dtype.kind not in "biufUOM":
        what = f"a class is a {type(wrong[0]).__name__ if wrong else values.dtype}"
        raise DataError(what, where="y", fix="Give texts, numbers or dates")
    try:
        return np.unique(values, return_inverse=True)
    except TypeError:
        what = "the classes are texts and numbers together"
        raise DataError(what, where="y", fix="Give one kind, such as y.astype(str)") from None


def _read_cases(X: Any, labels: tuple[str, ...] = (), classes: tuple[str, ...] = ()) -> LabelledCases:
    """Cases, ``[T_i, C]`` each, checked."""
    try:
        ones = list(X) if isinstance(X, list | tuple) else list(np.asarray(X, np.float64))
    except (TypeError, ValueError):
        what = f"the cases ({shorten(type(X).__name__)}) are not an array of numbers"
        fix = "Give an array [cases, channels, steps], or a list of arrays [channels, steps]; "
        fix += "`ofa-jax train` reads long tables"
        raise DataError(what, where=_SOURCE, fix=fix) from None
    if not ones:
        raise DataError("there are no cases", where=_SOURCE, fix="Give at least one")
    if labels and len(labels) != len(ones):
        what = f"there are {len(ones)} cases and {len(labels)} classes"
        raise DataError(what, where="y", fix="Give one class per case")
    cases: list[np.ndarray] = []
    for number, one in enumerate(ones):
        where = f"{_SOURCE}[{number}]"
        try:
            case = np.atleast_2d(np.asarray(one, np.float64))
        except (TypeError, ValueError):
            raise DataError("is no array of numbers", where=where, fix="Give [c, t_i]") from None
        if case.ndim != 2 or not case.size or np.ndim(one) == 0:
            what = f"is an array of shape {list(np.shape(one))}"
            raise DataError(what, where=where, fix="Give channels and steps, [c, t_i]")
        if cases and len(case) != cases[0].shape[1]:
            what = f"has {len(case)} channels, the first case has {cases[0].shape[1]}"
            raise DataError(what, where=where, fix="Give all cases the same channels, [c, t_i]")
        wrong = np.argwhere(~(np.abs(case) <= LARGEST))
        if len(wrong):
            channel, step = wrong[0]
            what = f"the value of channel {channel} in step {step} is {case[channel, step]:g}"
            raise DataError(what, where=where, fix="Fill missing values first")
        cases.append(case.T)
    return LabelledCases(tuple(cases), labels, classes, None, _SOURCE)

"""The anomaly detector: data frames in, a score and a verdict for every row out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import numpy as np
import pandas as pd

from ofa_jax.config.tasks import ForecastSettings
from ofa_jax.data.splits import Scaler
from ofa_jax.errors import DataError, shorten
from ofa_jax.estimators.adapted import Adapted, AdaptedEstimator, check_share
from ofa_jax.estimators.base import OfFrames
from ofa_jax.estimators.engine import LEAST, training_task
from ofa_jax.estimators.panel import Panel
from ofa_jax.estimators.steps import READ, Steps, forecast_steps, length_of, spread_of
from ofa_jax.model.gpt2 import Forecaster
from ofa_jax.tasks.streams import VALIDATION_SHARE
from ofa_jax.windows.batch import Batch

_LENGTH = 40
_HORIZONS = (8, 48)


class _Scored(NamedTuple):
    """A panel with the score and the expected value of every row, ``[rows]``."""

    panel: Panel
    score: np.ndarray
    expected: np.ndarray


@dataclass(kw_only=True, eq=False, repr=False)
class OneForAllAnomalyDetector(AdaptedEstimator, OfFrames):
    """Unusual values of many series: those far from what a frozen trunk, adapted by :meth:`fit`, expects.

    No labels are needed. A value's score is its squared distance from what is expected, in units of its
    series' variance in :meth:`fit` (of a constant series, of its squared size). There are two methods.
    ``forecast`` needs a trunk that was pretrained on series. A value is expected where forecasts of up to a
    season (8 to 48 steps) see it, on average; the first two times as many steps of a series have no score,
    so give :meth:`predict` earlier rows, too. ``reconstruction`` is for any trunk. A value is expected where
    short windows that include it reconstruct it.

    Args:
        freq: Step between rows, as pandas or polars call it (``"h"``, ``"1h"``, ``"ME"``); an integer of
            integer times; default: inferred for each series. Rows are checked to follow it.
        method: ``forecast`` or ``reconstruction``.
        input_length: Steps that are read; default: what the trunk reads, for reconstruction at most 40. For
            reconstruction each step takes one of the trunk's positions.
        contamination: Share of the scores of :meth:`fit`'s values that are above the threshold.
        recipe: What :meth:`fit` trains (:data:`ofa_jax.RECIPES`).
        trunk: ``nano``, which comes with the package, the folder or hub id of a GPT-2, or ``random``.
        rank: Rank of the adapters.
        alpha: Their scale is alpha / sqrt(rank).
        epochs: Passes over the training windows; the best on the last fifth of each series is kept.
        learning_rate: Initial learning rate.
        batch_size: Windows per step.
        seed: Seed of adapters, batches and drawn windows.
        id_col, time_col, target_col: Names of columns of long frames.
        verbose: Whether :meth:`fit` shows its progress.

    Attributes:
        threshold_: The score above which a value is an anomaly.
    """

    noun: ClassVar[str] = "anomaly detector"

    method: Literal["forecast", "reconstruction"] = "forecast"
    input_length: int | Literal["auto"] = "auto"
    contamination: float = 0.01

    @property
    def threshold_(self) -> float:
        """The score above which a value is an anomaly."""
        return float(self._known().meta["threshold"])

    def fit(self, df: Any) -> Self:
        """Adapt the trunk to series that are mostly normal, and set the threshold by their scores.

        Args:
            df: A long or wide frame of pandas or polars (:func:`~ofa_jax.estimators.reading.read_panel`).

        Raises:
            DataError: The frame cannot be read, or its series are too short.
            ConfigError: A parameter is out of range.
        """
        check_share("contamination", self.contamination)
        around, panel = self._around(self.method), self._read(df, "score", "anomaly", "expected")
        scaler = spread_of(panel)
        adapted = self._forecaster(panel, scaler, around) if around else self._reconstructor(panel, scaler)
        score = _score(panel, scaler, _expected(adapted, panel, scaler))
        threshold = float(np.percentile(score[np.isfinite(score)], 100 * (1 - self.contamination)))
        self.fitted_ = replace(adapted, meta={"frequency": panel.frequency, "threshold": threshold})
        return self

    def predict(self, df: Any) -> Any:
        """Score every value of series that :meth:`fit` has seen, by id.

        Args:
            df: Their values, of any time.

        Returns:
            A row per row of ``df``, in its order (of a wide frame, one series after the other): id, time,
            ``score`` (NaN where the value is missing or nothing is expected), ``anomaly`` (whether it is
            above the threshold) and ``expected``, in original units. Library and types are those of ``df``.

        Raises:
            NotFittedError: Before :meth:`fit`.
            DataError: The frame cannot be read, or has a series that is unknown.
        """
        panel, score, expected = self._scores(df)
        order, threshold = _in_source(panel), self.threshold_
        found = {"score": score, "anomaly": score > threshold, "expected": expected}
        found = {name: values[order] for name, values in found.items()}
        return panel.to_frame(panel.series[order], panel.times[order], found)

    def decision_function(self, df: Any) -> np.ndarray:
        """The scores of :meth:`predict`, ``[rows]`` float64; higher is less usual; NaN as there."""
        panel, score, _ = self._scores(df)
        return score[_in_source(panel)]

    def _scores(self, df: Any) -> _Scored:
        fitted, panel = self._known(), self._read(df, "score", "anomaly", "expected")
        scaler = _of_series(fitted, panel)
        expected = _expected(fitted, panel, scaler)
        return _Scored(panel, _score(panel, scaler, expected), expected)

    def _forecaster(self, panel: Panel, scaler: Scaler, around: Forecaster) -> Adapted:
        length = length_of(self.input_length, around.context, around.context, least=LEAST)
        horizon = min(max(panel.season, _HORIZONS[0]), _HORIZONS[1])
        held_out = max(horizon, int(np.median(panel.lengths) * VALIDATION_SHARE))
        task = training_task(panel, length, horizon, held_out, self._seed(), settable=False)
        settings = {"name": "forecast", "input_length": length, "horizon": horizon}
        experiment = self._experiment(task.tables["train"].size, settings)
        return self._adapt(experiment, task, scaler, {})

    def _reconstructor(self, panel: Panel, scaler: Scaler) -> Adapted:
        length = length_of(self.input_length, self._positions(), _LENGTH)
        task = Steps(panel, scaler).training(length, VALIDATION_SHARE, reconstruct, self._seed())
        settings = {
            "name": "anomaly",
            "input_length": length,
            "channels": 1,
            "anomaly_ratio": 100 * self.contamination,
        }
        experiment = self._experiment(task.tables["train"].size, settings, {"segment": length})
        return self._adapt(experiment, task, scaler, {})


def _in_source(panel: Panel) -> np.ndarray:
    """The panel's rows in the order of a long frame's."""
    long = len(np.unique(panel.rows)) == len(panel.rows)
    return np.argsort(panel.rows) if long else np.arange(len(panel.rows))


def reconstruct(batch: Batch, keys_b: jax.Array) -> Batch:
    """The input itself as the target."""
    return batch._replace(y=batch.x, y_mask=batch.x_mask)


def _expected(fitted: Adapted, panel: Panel, scaler: Scaler) -> np.ndarray:
    """What a value of every row would be expected to be, ``[rows]``; NaN where nothing says it."""
    task = fitted.experiment.task
    if isinstance(task, ForecastSettings):
        expected = forecast_steps(fitted.model, panel)
        if not np.isfinite(panel.values + expected).any():
            first, longest = READ * task.horizon, int(panel.lengths.max())
            what = f"no value can be scored: the first {first} steps of a series are only read"
            raise DataError(f"{what}, and the longest has {longest}", fix="Give earlier rows, too")
        return expected
    return Steps(panel, scaler).mean(fitted, task.input_length)


def _score(panel: Panel, scaler: Scaler, expected: np.ndarray) -> np.ndarray:
    """Squared distance from what is expected, in the series' variance, ``[rows]``; NaN where missing."""
    return ((panel.values - expected) / scaler.std[panel.series]) ** 2


def _of_series(fitted: Adapted, panel: Panel) -> Scaler:
    """The level and spread that ``fit`` found for each series of a panel."""
    scaler = fitted.scaler
    assert scaler is not None
    at = pd.Index(scaler.names).get_indexer(pd.Index([str(name) for name in panel.ids]))
    if len(unknown := np.flatnonzero(at < 0)):
        what = f"series {shorten(panel.ids[unknown[0]])} was not among those of fit ({len(unknown)} such)"
        raise DataError(what, fix="Fit the detector with it, so that its usual spread is known")
    return Scaler(scaler.mean[at], scaler.std[at], tuple(scaler.names[one] for one in at))

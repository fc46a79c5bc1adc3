"""The forecaster: data frames in, data frames out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from ofa_jax.build import build_model
from ofa_jax.config.schema import Experiment
from ofa_jax.errors import ConfigError, DataError, shorten
from ofa_jax.estimators.base import NotFittedError, OfFrames, is_whole
from ofa_jax.estimators.covariates import fit_effects, future_covariates, with_calendar
from ofa_jax.estimators.engine import (
    LEAST,
    MOST,
    Forecast,
    Places,
    check_cycle,
    errors_of_series,
    forecast_experiment,
    forecast_windows,
    places_of_parts,
    training_task,
)
from ofa_jax.estimators.intervals import (
    Calibration,
    PredictionIntervals,
    check_settings,
    result_columns,
    scaled_errors,
)
from ofa_jax.estimators.panel import Panel
from ofa_jax.estimators.saved import Fitted, load, save
from ofa_jax.runs.fitting import fit_model
from ofa_jax.train.progress import SILENT, ConsoleReporter

_Numbers = Sequence[float] | float | None


@dataclass(kw_only=True, eq=False, repr=False)
class OneForAllForecaster(OfFrames):
    """Forecasts of many series by a pretrained trunk, adapted to them by :meth:`fit`.

    Before :meth:`fit`, :meth:`predict` forecasts without training.

    Args:
        horizon: Steps to forecast.
        freq: Step between rows, as pandas or polars call it (``"h"``, ``"1h"``, ``"ME"``); an integer where
            times are integers; default: inferred for each series. Rows are checked to follow it.
        context: Steps that a forecast reads at most; default: what the trunk reads.
        recipe: What :meth:`fit` trains (:data:`ofa_jax.RECIPES`).
        trunk: ``nano``, which comes with the package, or the folder of another pretrained trunk.
        rank: Rank of the adapters.
        alpha: Their scale is alpha / sqrt(rank).
        solver: ``ridge`` for the best output adapter in closed form, or ``gradient``; default: ``ridge``
            where the recipe is ``output``.
        epochs: Of ``gradient``: passes over the training windows; the best on the validation part is kept, or
            the zero-shot forecaster.
        learning_rate: Of ``gradient``: the initial one.
        batch_size: Of ``gradient``: windows per step.
        seed: Seed of adapters, batches and drawn windows.
        covariates: Names of columns of long frames that are known ahead, such as holidays; :meth:`fit` finds
            what they say of the errors of forecasts.
        calendar: Whether month, weekday and hour are taken as covariates.
        alias: Name of the forecast's column.
        id_col, time_col, target_col: Names of columns of long frames.
        verbose: Whether :meth:`fit` shows its progress.
    """

    horizon: int = field(kw_only=False)
    context: int | Literal["auto"] = "auto"
    solver: Literal["auto", "gradient", "ridge"] = "auto"
    covariates: Sequence[str] = ()
    calendar: bool = False
    alias: str = "OneForAll"

    def fit(
        self,
        df: Any,
        *,
        val_size: int | Literal["auto"] = "auto",
        prediction_intervals: PredictionIntervals | None = None,
        static_df: None = None,
    ) -> Self:
        """Adapt the trunk to series; where that is not better on their last steps, it stays as it was.

        Args:
            df: A long or wide frame of pandas or polars (:func:`~ofa_jax.estimators.reading.read_panel`).
            val_size: Last steps of each series that choose penalty or epoch; default: a fifth of the median
                length, at least the horizon.
            prediction_intervals: How intervals are calibrated on held-out windows; default: not.
            static_df: Refused: columns that are constant over time are not used.

        Raises:
            DataError: The frame cannot be read, or its series are too short.
            ConfigError: A parameter is out of range.
        """
        if static_df is not None:
            what, fix = "static covariates are not used", "Leave it out, or fit one forecaster per group"
            raise ConfigError(what, where="static_df", fix=fix)
        check_settings(prediction_intervals)
        experiment = self._experiment(self.horizon)
        panel = self._read(df)
        length, horizon = experiment.task.input_length, self.horizon
        held_out = max(horizon, int(np.median(panel.lengths)) // 5) if val_size == "auto" else val_size
        if not is_whole(held_out) or held_out < horizon:
            fix = "Give a number of steps, at least the horizon"
            raise ConfigError(f"val_size is {held_out!r}, the horizon {horizon}", fix=fix)
        task = training_task(panel, length, horizon, held_out, self.seed)
        batch = min(self.batch_size, 2 ** max(3, (task.tables["train"].size // 8).bit_length() - 1))
        experiment = experiment.replace({"train.batch_size": batch})
        model = build_model(experiment)
        with ConsoleReporter() if self.verbose else contextlib.nullcontext(SILENT) as reporter:
            result = fit_model(model, task, experiment.train, reporter=reporter)
        best, fitted = result.progress, replace(model, trainable=result.best)
        found = (best.best_epoch, best.best_metrics, held_out, panel.season, panel.frequency)
        effects, names, calendar = None, self._known_columns, self.calendar
        if names or calendar:
            parts = places_of_parts(panel, horizon, held_out, self.seed)
            effects = fit_effects(panel, model, fitted, horizon, parts, names, calendar=calendar)
        now, settings = Fitted(fitted, experiment, *found, effects), prediction_intervals
        calibration = None if settings is None else self._calibrated(panel, settings, now)
        self.fitted_, self.calibration_ = now, calibration
        self.panel_ = panel.last(max(length, panel.season) if effects else length)
        return self

    def calibrate(self, df: Any, prediction_intervals: PredictionIntervals | None = None) -> Self:
        """Calibrate intervals on the last windows of series, without training.

        Raises:
            DataError: The frame cannot be read, or no series is long enough.
        """
        check_settings(prediction_intervals)
        panel = self._read_more(df)
        fitted, settings = getattr(self, "fitted_", None), prediction_intervals or PredictionIntervals()
        self.calibration_ = self._calibrated(panel, settings, fitted)
        return self

    def predict(
        self,
        df: Any = None,
        *,
        futr_df: Any = None,
        h: int | None = None,
        level: _Numbers = None,
        quantiles: _Numbers = None,
    ) -> Any:
        """Forecast the steps after each series' last row.

        Args:
            df: The series; default: those of :meth:`fit`.
            futr_df: :meth:`make_future_dataframe` with the covariates in the steps that are forecast.
            h: Steps; default: the horizon. More than it only before :meth:`fit`.
            level: Percentages of intervals; columns ``OneForAll-lo-90``, ``OneForAll-hi-90``.
            quantiles: Shares; columns ``OneForAll_ql0.1``.

        Returns:
            ``h`` rows per series, in the order of the series' first rows: id, time, the mean forecast
            ``OneForAll``, and what was asked for. Library and types are those of ``df``.

        Raises:
            NotFittedError: Without ``df`` before :meth:`fit`.
            DataError: The frame cannot be read, or there are too few held-out windows for a level.
            ConfigError: A level or quantile is out of range, or ``h`` is longer than the fitted horizon.
        """
        panel, steps = self._series(df), self._steps(h)
        names = self._known_columns
        if futr_df is not None and not names:
            fix = "Leave it out, or name its columns as `covariates`"
            raise ConfigError("the forecaster reads no such columns", where="futr_df", fix=fix)
        if names or self.calendar:
            ahead = future_covariates(panel, futr_df, names, steps, calendar=self.calendar)
            panel = replace(panel, ahead=ahead)
        made = self._forecast(panel, np.arange(panel.n), panel.lengths, steps)
        if len(wrong := np.flatnonzero(np.isnan(made.mean[:, 0]))):
            what = f"series {shorten(panel.ids[wrong[0]])} has no value in the last steps that are read"
            raise DataError(what, fix="Leave it out")
        table = self._table(made, level, quantiles)
        series, times = np.repeat(np.arange(panel.n), steps), panel.times_after(steps).ravel()
        return panel.to_frame(series, times, {name: values.ravel() for name, values in table.items()})

    def cross_validation(
        self,
        df: Any,
        *,
        n_windows: int = 1,
        step_size: int | None = None,
        h: int | None = None,
        refit: bool = False,
        level: _Numbers = None,
        quantiles: _Numbers = None,
    ) -> Any:
        """Forecast the last windows of each series from what precedes them.

        Args:
            df: The series.
            n_windows: Windows of each; series have fewer where nothing is known before a window.
            step_size: Steps from one to the next; default: ``h``.
            h, level, quantiles: As of :meth:`predict`.
            refit: Whether the model is fitted again on what precedes each window.

        Returns:
            As :meth:`predict`, with ``cutoff``, the last time that was read, and the value itself.

        Raises:
            DataError: The frame cannot be read, or no series is long enough.
        """
        panel, steps = self._read(df) if refit else self._read_more(df), self._steps(h)
        step = steps if step_size is None else step_size
        for name, value in (("n_windows", n_windows), ("step_size", step)):
            if not is_whole(value) or value < 1:
                raise ConfigError(f"{name} is {value!r}", fix="Give 1 or more")
        parts = []
        for number in range(n_windows):
            cut = panel.lengths - steps - (n_windows - 1 - number) * step
            series = np.flatnonzero(cut >= 1)
            if not len(series):
                continue
            own = self
            if refit:
                own = type(self)(**self.get_params()).fit(panel.until(cut))
            made = own._forecast(panel, series, cut[series], steps)
            some = np.isfinite(made.mean[:, 0])
            made, series = Forecast(made.levels[some], made.mean[some]), series[some]
            rows = (panel.first[series] + cut[series])[:, None] + np.arange(steps)
            cutoff = np.repeat(panel.times[rows[:, 0] - 1], steps)
            parts.append((np.repeat(series, steps), rows.ravel(), cutoff, own._table(made, level, quantiles)))
        if not parts:
            what = f"no series has {steps + 1} steps, one to read and {steps} to forecast"
            raise DataError(what, fix="Give longer series or a smaller h")
        series, rows, cutoff = (np.concatenate([part[at] for part in parts]) for at in range(3))
        named = {name: np.concatenate([part[3][name].ravel() for part in parts]) for name in parts[0][3]}
        order = np.argsort(series, kind="stable")
        values = {"cutoff": cutoff, self.target_col: panel.values[rows], **named}
        ordered = {name: column[order] for name, column in values.items()}
        return panel.to_frame(series[order], panel.times[rows][order], ordered)

    def make_future_dataframe(self, df: Any = None, h: int | None = None) -> Any:
        """Ids and times of the ``h`` steps after each series, as :meth:`predict` gives them."""
        panel, steps = self._series(df), self._steps(h)
        return panel.to_frame(np.repeat(np.arange(panel.n), steps), panel.times_after(steps).ravel(), {})

    def score(self, df: Any, metric: Literal["mase", "mae", "mse", "smape"] = "mase") -> float:
        """The error on the last ``horizon`` steps of each series, forecast from what precedes them.

        The mean over series; MASE divides by the mean change over a season before those steps, and leaves out
        series that do not change. Missing values do not count.

        Raises:
            DataError: No series is long enough, or none has a scale.
        """
        panel, steps = self._read_more(df), self.horizon
        cut = panel.lengths - steps
        series = np.flatnonzero(cut >= 1)
        if metric not in ("mase", "mae", "mse", "smape"):
            raise ConfigError(f"metric is {metric!r}", fix="Give mase, mae, mse or smape")
        if not len(series):
            raise DataError(f"no series has {steps + 1} steps", fix="Give longer series or a smaller horizon")
        made = self._forecast(panel, series, cut[series], steps).mean
        scale = panel.seasonal_change(cut)[series] if metric == "mase" else np.ones(len(series))
        errors = errors_of_series(made, panel.after(series, cut[series], steps), metric)
        errors = errors / np.where(scale > 0, scale, np.nan)
        used = np.isfinite(errors)
        if not used.any():
            raise DataError("no series can be scored: all are constant or unknown at their end")
        return float(errors[used].mean())

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write parameters, adapters and calibration into a folder; none of the series' values.

        Raises:
            ConfigError: The folder is there.
        """
        fitted, calibration = getattr(self, "fitted_", None), getattr(self, "calibration_", None)
        save(path, self.get_params(), fitted, calibration, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, *, trunk: str | None = None) -> Self:
        """Read what :meth:`save` wrote; :meth:`predict` then needs the series, which are not in it.

        Args:
            path: The folder.
            trunk: The trunk's current folder, if it moved.

        Raises:
            CheckpointError: There is no saved forecaster, or it is damaged.
            WeightsError: Its trunk cannot be loaded.
        """
        params, fitted, calibration = load(path, trunk)
        params |= {} if trunk is None else {"trunk": trunk}
        made = cls._of(params, path)
        made.calibration_ = calibration
        if fitted is not None:
            made.fitted_ = fitted
        return made

    @property
    def _known_columns(self) -> Sequence[str]:
        if isinstance(self.covariates, str):
            raise ConfigError(f"covariates is {self.covariates!r}", fix="Give a list of names of columns")
        return tuple(self.covariates)

    def _read(self, df: Any, *made: str) -> Panel:
        if isinstance(df, Panel):
            return df
        panel = super()._read(df, self.alias, *made)
        return with_calendar(panel) if self.calendar else panel

    def _read_more(self, df: Any) -> Panel:
        """Series for a model that may have been fitted on others."""
        panel, fitted = self._read(df), getattr(self, "fitted_", None)
        check_cycle(panel, fitted.frequency if fitted else "")
        return panel

    def _series(self, df: Any) -> Panel:
        """The series of ``df``, or without one those of fit."""
        panel = getattr(self, "panel_", None) if df is None else self._read_more(df)
        if panel is None:
            raise NotFittedError("there are no series to forecast", fix="Call fit(df) first, or give df")
        return panel

    def _steps(self, h: int | None) -> int:
        steps = self.horizon if h is None else h
        if not is_whole(steps) or steps < 1:
            raise ConfigError(f"{'horizon' if h is None else 'h'} is {steps!r}", fix="Give 1 or more")
        if hasattr(self, "fitted_") and steps > self.horizon:
            what = f"h is {steps}, but the model was fitted for {self.horizon} steps"
            raise ConfigError(what, fix=f"Fit one with horizon={steps}")
        return steps

    def _experiment(self, horizon: int) -> Experiment:
        train = {
            "solver": self.solver,
            "epochs": self.epochs,
            "patience": self.epochs,
            "cosine_epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        return forecast_experiment(
            *(self.trunk, self.context, horizon, self.recipe),
            adapters={"rank": self.rank, "alpha": self.alpha, "seed": self.seed},
            train=train,
        )

    def _forecast(
        self, panel: Panel, series: np.ndarray, cut: np.ndarray, steps: int, fitted: Fitted | None = None
    ) -> Forecast:
        """Forecasts of windows, ``steps`` long, by ``fitted`` or else by what :meth:`fit` left."""
        fitted = fitted or getattr(self, "fitted_", None)
        model = fitted.model if fitted else None
        if model is None:
            known = self.__dict__.setdefault("_untrained", {})
            key = (self.trunk, self.context, steps)
            model = known.get(key) or build_model(self._experiment(steps))
            self._untrained = {key: model}
        length = model.network.input_length
        made = forecast_windows(model, panel.before(series, cut, length))
        made = Forecast(made.levels[:, :steps], made.mean[:, :steps])
        effects = fitted.effects if fitted else None
        if (self._known_columns, self.calendar) != (effects.of if effects else ((), False)):
            raise NotFittedError("the effects of these covariates are not known", fix="Call fit(df) first")
        return made if effects is None else effects.added_to(made, panel, Places(series, cut), length)

    def _calibrated(self, panel: Panel, settings: PredictionIntervals, fitted: Fitted | None) -> Calibration:
        cut = settings.cuts(panel.lengths, self.horizon, fitted.held_out if fitted else None)
        number, series = np.nonzero(cut >= LEAST)
        if not len(series):
            what = f"no series has {LEAST + self.horizon} steps, so no held-out window"
            raise DataError(what, fix="Give longer series or a smaller horizon")
        if len(series) > (most := 4 * MOST["train"]):
            chosen = np.sort(np.random.default_rng(self.seed).choice(len(series), most, replace=False))
            number, series = number[chosen], series[chosen]
        made = self._forecast(panel, series, cut[number, series], self.horizon, fitted)
        target = panel.after(series, cut[number, series], self.horizon)
        errors = np.full((*cut.shape, self.horizon), np.nan, np.float32)
        errors[number, series] = scaled_errors(made.levels, target)
        return Calibration(errors, settings)

    def _table(self, made: Forecast, level: _Numbers, quantiles: _Numbers) -> dict[str, np.ndarray]:
        calibration = getattr(self, "calibration_", None)
        return result_columns(self.alias, made.mean, made.levels, calibration, level, quantiles)

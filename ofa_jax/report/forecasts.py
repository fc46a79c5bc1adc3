"""A model evaluated on the test part, and what a report shows of it for tasks that forecast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from ofa_jax.baselines.compare import model_name
from ofa_jax.data.frames import Frame
from ofa_jax.errors import DataError, OfaError
from ofa_jax.inference import predict as predict_next
from ofa_jax.model.quantiles import Quantiles
from ofa_jax.plots import run as plots
from ofa_jax.plots import style
from ofa_jax.report.parts import Picture, Section, Table, best_median_worst, number, number_table, picture
from ofa_jax.runs.bundle import LoadedModel
from ofa_jax.tasks.base import Outputs, Predict, Score, Sums, Task, TaskData
from ofa_jax.tasks.forecast import forecast_panels, time_index
from ofa_jax.tasks.losses import forecast_change, symmetric_terms
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.program import evaluation_options
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.table import WindowTable

SLICE = 8192
"""Windows whose errors per step are in memory at a time."""

HISTORY = 3
"""Horizons of history in a figure, at most."""

SERIES = 3
"""Series of a collection whose future is drawn."""


@dataclass(frozen=True)
class Evaluation:
    """A model and the data that it is evaluated on."""

    loaded: LoadedModel
    data: TaskData

    @property
    def task(self) -> Task:
        return self.data.task

    @property
    def table(self) -> WindowTable:
        """The windows of the test part."""
        return self.task.tables["test"]

    def predictor(self, outputs: Outputs, predict: Predict | None = None) -> Score:
        """Outputs for every window of a table, by the model or by a function without parameters."""
        model = self.loaded.model
        options = evaluation_options(self.loaded.experiment.train, model.network)
        predictor = WindowPredictor(predict or model.predict, self.task, outputs, **options)
        frozen, trainable = (model.frozen, model.trainable) if predict is None else ({}, {})
        return lambda table: predictor(table, frozen, trainable)

    def windows(self, places: Iterable[int]) -> list[dict[str, np.ndarray]]:
        """Some test windows as the network saw them: ``x, x_mask, y, y_mask, prediction``.

        Relative ones have their ``unit`` and the value ``last`` that they are relative to as well.
        """

        def outputs(prediction: Any, batch: Batch) -> dict[str, jax.Array]:
            prediction = prediction.mean[..., None] if isinstance(prediction, Quantiles) else prediction
            fields = {name: leaf for name, leaf in batch._asdict().items() if leaf is not None}
            return {**fields, "prediction": forecast_change(prediction, batch)}

        table = self.table.take(np.asarray(list(places)))
        found = dict(self.predictor(outputs)(table))
        if self.task.residue is not None:
            last = (table.first + table.x_valid - 1, table.channel)
            found["last"] = self.task.buffer[last].astype(np.float64) + self.task.residue[last]
        return [{name: values[index] for name, values in found.items()} for index in range(table.size)]


class Results(NamedTuple):
    """Test metrics, and what a report shows of the same evaluation; ``future`` where the task forecasts."""

    metrics: Mapping[str, float]
    windows: Section
    errors: Section
    future: Section | None = None


def forecast_results(evaluation: Evaluation) -> Results:
    """Forecasting tasks: three forecasts, errors by channel and step."""
    task, loaded, table = evaluation.task, evaluation.loaded, evaluation.table
    names, standardized = loaded.names, loaded.scaler is not None
    measure, key = ("MSE", "squared_error") if standardized else ("sMAPE", "symmetric")
    terms = _squared if standardized else symmetric_terms
    sums, curve = _evaluate(evaluation, terms)
    per_window = ratio(sums[key], sums["count"])

    curves = {model_name(loaded): curve}
    for title, predict in evaluation.data.untrained.items():
        own = evaluation.data.as_read_by(title)
        if "test" in own.tables:
            seen = replace(evaluation, data=replace(evaluation.data, task=own))
            curves[title] = _evaluate(seen, terms, predict)[1]
    steps = pd.DataFrame(curves, index=pd.RangeIndex(1, len(curve) + 1, name="step"))
    over = "over all test windows, " + ("on the standardized scale" if standardized else "in percent")
    least, most = number(curve[0]), number(curve.max())
    shown = picture(
        plots.error_by_step(steps, f"{measure}, {'standardized' if standardized else 'percent'}"),
        f"{measure} by step of the forecast: {least} at step 1, {number(curve[-1])} at step {len(curve)}, "
        f"largest {most} at step {int(curve.argmax()) + 1}.",
        f"{measure} by step of the forecast, {over}.",
    )
    listed = number_table(f"{measure} by step", ("step", *steps.columns), steps)
    if names is None:
        said = "The series are not channels of one table, so there are no errors by channel."
        errors = Section("errors", "Errors", [said], pictures=[shown], folded=[listed])
    else:
        by_channel = pd.Series(per_window).groupby(np.asarray(names)[table.channel], sort=False).mean()
        bars, by_name = channel_parts(by_channel, measure, over)
        errors = Section("errors", "Errors", pictures=[shown, *bars], folded=[by_name, listed])
    metrics = task.final_metrics(lambda _: sums, "test")
    windows = _windows_section(evaluation, per_window, measure)
    return Results(metrics, windows, errors, future_section(evaluation))


def _evaluate(
    evaluation: Evaluation, terms: Callable[[jax.Array, Batch], jax.Array], predict: Predict | None = None
) -> tuple[Sums, np.ndarray]:
    """The task's sums of every test window, and the mean error of each step of the forecast ``[h]``."""

    def outputs(pred_bhc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        by_step = jnp.sum(jnp.where(batch.y_mask, terms(pred_bhc, batch), 0), axis=2)
        counted = jnp.sum(batch.y_mask, axis=2)
        return {**evaluation.task.sums(pred_bhc, batch), "step_error": by_step, "step_count": counted}

    predictor, table = evaluation.predictor(outputs, predict), evaluation.table
    parts: list[dict[str, np.ndarray]] = []
    error, count = np.zeros(evaluation.task.spec.horizon), np.zeros(evaluation.task.spec.horizon)
    for begin in range(0, table.size, SLICE):
        parts.append(dict(predictor(table.take(slice(begin, begin + SLICE)))))
        error += parts[-1].pop("step_error").sum(axis=0, dtype=np.float64)
        count += parts[-1].pop("step_count").sum(axis=0, dtype=np.float64)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, ratio(error, count)


def _squared(pred_bhc: jax.Array, batch: Batch) -> jax.Array:
    return jnp.square(pred_bhc - batch.y)


def ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Means in float64; NaN where nothing was counted."""
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def channel_parts(errors: pd.Series, measure: str, over: str) -> tuple[list[Picture], Table]:
    """A figure, unless there is a single channel, and a table of errors, indexed by channel."""
    errors = errors.dropna().sort_values(ascending=False, kind="stable")
    table = number_table(f"{measure} by channel", ("channel", measure), errors)
    if len(errors) < 2:
        return [], table
    (worst, most), (best, least) = table.rows[0], table.rows[-1]
    shown = picture(
        plots.error_by_channel(errors, f"{measure}, standardized"),
        f"{measure} by channel as bars: largest for {worst} ({most}), smallest for {best} ({least}).",
        f"{measure} by channel, {over}.",
    )
    return [shown], table


def rule(evaluation: Evaluation, measure: str) -> str:
    """How the windows shown are chosen."""
    return (
        f"Of all {evaluation.table.size:,} test windows, these have the smallest, the median and the largest "
        f"{measure}; of equal ones the first is taken."
    )


def _windows_section(evaluation: Evaluation, errors: np.ndarray, measure: str) -> Section:
    places, spec, parts = best_median_worst(errors), evaluation.task.spec, {}
    for (name, place), window in zip(places.items(), evaluation.windows(places.values()), strict=True):
        title = f"{name}: {_window_name(evaluation, place)}, {measure} {number(errors[place])}"
        parts[title] = _forecast_table(evaluation, place, window)
    table, titles = pd.concat(parts, names=["panel"]).reset_index("panel"), "; ".join(parts)
    history = min(HISTORY * spec.horizon, spec.input_length)
    units = "original units" if evaluation.loaded.scaler is not None else "the series' own units"
    shown = picture(
        plots.forecast(table, history=history, label="original units"),
        f"Forecasts of {spec.horizon} steps with the actual values. {titles}.",
        f"{titles}.",
    )
    said = f"In {units}, with the last {history} of the {spec.input_length} input steps."
    sentences = [rule(evaluation, measure), said]
    return Section("windows", "Forecasts on test windows", sentences, pictures=[shown])


def _forecast_table(evaluation: Evaluation, place: int, window: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The columns of :func:`~ofa_jax.plots.run.forecast`, in original units."""
    length, horizon, valid = len(window["x"]), len(window["y"]), int(evaluation.table.x_valid[place])
    values = np.concatenate([window["x"], window["y"]])[:, 0].astype(np.float64)
    known = np.concatenate([window["x_mask"], window["y_mask"]])[:, 0]
    ahead = np.concatenate([np.full(length, np.nan), window["prediction"][:, 0]])
    table = pd.DataFrame({"actual": np.where(known, values, np.nan), "forecast": ahead})
    if "unit" in window:
        table = table * float(window["unit"].item()) + float(window["last"])
    if (scaler := evaluation.loaded.scaler) is not None:
        channel = evaluation.table.channel[place]
        table = table * scaler.std[channel] + scaler.mean[channel]
    table = table.iloc[length - valid :]  # a series may begin within the window
    time = window_times(evaluation, place, valid + horizon)
    return table.assign(time=np.arange(1 - valid, horizon + 1) if time is None else time)


def window_times(evaluation: Evaluation, place: int, steps: int) -> np.ndarray | None:
    """The times of so many steps from a test window's first observed one on, where the series have any."""
    times, table, collection = evaluation.data.timestamps, evaluation.table, evaluation.data.collection
    if collection is not None:
        series = int(table.window_id[place])
        begin = int(collection.lengths[series] - evaluation.task.spec.horizon - table.x_valid[place])
        return None if collection.times is None else collection.times(series, begin + steps)[begin:]
    first = int(table.first[place])
    return None if times is None else times[first : first + steps]


def _window_name(evaluation: Evaluation, place: int) -> str:
    """Series, number and time of a window's first target, as far as they are known."""
    table, names, collection = evaluation.table, evaluation.loaded.names, evaluation.data.collection
    window_id, valid = int(table.window_id[place]), int(table.x_valid[place])
    times = window_times(evaluation, place, valid + 1)
    when = "" if times is None else f" from {_spelled_time(times)}"
    if names is None:
        return (
            f"series {window_id:,}" if collection is None else f"series {collection.names[window_id]}{when}"
        )
    return f"{names[table.channel[place]]}, window {window_id:,}{when}"


def _spelled_time(times: np.ndarray) -> str:
    """The last of some timestamps, with its hour unless all are at midnight."""
    index = pd.DatetimeIndex(times)
    return f"{index[-1]:%Y-%m-%d}" if (index == index.normalize()).all() else f"{index[-1]:%Y-%m-%d %H:%M}"


def future_section(evaluation: Evaluation) -> Section:
    """The forecast of the steps after the last row, as ``ofa-jax predict`` makes it of the same data."""
    title, spec, collection = "Forecast after the last row", evaluation.task.spec, evaluation.data.collection
    try:
        frame, chosen = _last_rows(evaluation)
        table, reading = pd.DataFrame(frame.values, columns=list(frame.names)), {}
        if frame.timestamps is not None:
            times = time_index(frame)
            table.insert(0, times.name, times)
            reading = {"timestamp_column": times.name}
        predicted = predict_next(evaluation.loaded, table, **reading)
        history = min(spec.input_length, HISTORY * spec.horizon)
        panels = forecast_panels(frame, predicted, history)
        if collection is not None and (of := collection.times) is not None:
            ends = [(one, collection.lengths[one] + spec.horizon) for one in chosen]
            panels["time"] = np.concatenate([of(one, end)[-history - spec.horizon :] for one, end in ends])
    except OfaError as error:
        return Section("future", title, [f"There is none: {error}"])
    names = panels["panel"].unique()[: style.MAX_PANELS]
    series = frame.n_channels if collection is None else collection.n_series
    said = f"The next {spec.horizon} steps, in original units, of {len(names)} of {series:,} series."
    shown = picture(
        plots.forecast(panels[panels["panel"].isin(names)], label="original units"),
        f"Forecasts of the {spec.horizon} steps after the last row of {', '.join(map(str, names))}.",
        "Nobody has seen these steps yet, so there are no actual values.",
    )
    return Section("future", title, [said], pictures=[shown])


def _last_rows(evaluation: Evaluation) -> tuple[Frame, Sequence[int]]:
    """The series that end the data: those of the table, or the first of a collection that are long enough.

    Of a collection also their numbers.

    Raises:
        DataError: No series of the collection has as many steps as the model reads.
    """
    frame, collection = getattr(evaluation.data, "frame", None), evaluation.data.collection
    if frame is not None:
        return frame, ()
    assert collection is not None, "either is there"
    length = evaluation.task.spec.input_length
    chosen = np.flatnonzero(collection.lengths >= length)[:SERIES].tolist()
    if not chosen:
        what = f"no series has the {length} steps that the model reads"
        raise DataError(what, where=Path(collection.source).name)
    values = np.stack([collection.values[index][-length:] for index in chosen], axis=1)
    return Frame(values, tuple(collection.names[index] for index in chosen), None, collection.source), chosen

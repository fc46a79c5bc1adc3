"""What a report shows of the test part: chosen windows, and where the errors are; a function per kind of task.

Every function takes a :class:`Scored` and returns two sections, ``windows`` and ``errors``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from ofa_jax.baselines.compare import model_name
from ofa_jax.baselines.controls import untrained_controls
from ofa_jax.plots import run as plots_run
from ofa_jax.report.parts import Picture, Section, Table, number, picture, place_in_order
from ofa_jax.runs.train import Loaded
from ofa_jax.tasks.base import Sums, TaskData
from ofa_jax.tasks.losses import symmetric_terms
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.program import evaluation_options
from ofa_jax.train.step import Predict
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.table import WindowTable

SLICE = 8192
"""Windows whose errors per step are held at a time."""

HISTORY = 3
"""A picture shows so many horizons before the forecast, at most."""

Told = Callable[[Any, Batch], dict[str, jax.Array]]


@dataclass(frozen=True)
class Scored:
    """A model on its data, ready to be asked about windows."""

    loaded: Loaded
    data: TaskData

    @property
    def table(self) -> WindowTable:
        return self.data.task.tables["test"]

    def asker(self, told: Told, predict: Predict | None = None) -> Callable[[WindowTable], Sums]:
        """What ``told`` says of every window of a table, by the model or another predict function without parameters."""
        model = self.loaded.model
        options = evaluation_options(self.loaded.experiment.train, model.network)
        evaluator = WindowPredictor(predict or model.predict, self.data.task, told, **options)
        frozen, trainable = (model.frozen, model.trainable) if predict is None else ({}, {})
        return lambda table: evaluator(table, frozen, trainable)

    def windows(self, places: list[int]) -> list[Mapping[str, np.ndarray]]:
        """Everything about some test windows, as the network saw them: ``x, x_mask, y, y_mask, prediction``."""

        def told(prediction: Any, batch: Batch) -> dict[str, jax.Array]:
            return {
                "x": batch.x,
                "x_mask": batch.x_mask,
                "y": batch.y,
                "y_mask": batch.y_mask,
                "prediction": prediction,
            }

        found = self.asker(told)(rows_of(self.table, np.asarray(places)))
        return [{name: values[index] for name, values in found.items()} for index in range(len(places))]


def rows_of(table: WindowTable, rows: np.ndarray | slice) -> WindowTable:
    """Some rows of a table."""
    return WindowTable(*(np.asarray(column)[rows] for column in table))


def forecast_sections(scored: Scored) -> list[Section]:
    """Forecasting (long-term, few-shot, zero-shot, short-term): three forecasts, errors per channel and per step."""
    data, standardised = scored.data, scored.loaded.scaler is not None
    measure = "MSE" if standardised else "sMAPE"
    told = _squared if standardised else _symmetric
    per_window, per_step = _accumulated(scored.asker(told), scored.table)
    places = place_in_order(per_window)
    windows = _forecast_windows(scored, places, per_window, measure)

    curves = {model_name(scored.loaded): per_step}
    if data.task.name == "forecast":
        curves |= {
            title: _accumulated(scored.asker(told, predict), scored.table)[1]
            for title, predict in untrained_controls(data).items()
        }
    steps = pd.concat(
        [
            pd.DataFrame({"method": title, "step": np.arange(1, len(curve) + 1), "error": curve})
            for title, curve in curves.items()
        ]
    )
    first, last = per_step[0], per_step[-1]
    scale = ", on the scale of the standardised series" if standardised else ", in percent"
    pictures = [
        picture(
            plots_run.error_by_step(steps, measure),
            f"{measure} against the step of the forecast: {number(first)} at step 1, {number(last)} at step {len(per_step)}, "
            f"largest {number(per_step.max())} at step {int(per_step.argmax()) + 1}.",
            f"{measure} of each step of the forecast, over all test windows{scale}.",
        )
    ]
    folded = [_table_by_step(steps, measure)]
    names = scored.loaded.names
    if names is not None:
        channel = np.asarray(scored.table.channel)
        errors = pd.DataFrame(
            {"channel": names, "error": [_mean(per_window[channel == index]) for index in range(len(names))]}
        )
        shown, table = channel_parts(errors, measure, "over all test windows" + scale)
        pictures, folded = [*pictures, shown], [table, *folded]
    sentences = (
        ["The model treats every series alike: they have no channels to tell apart."] if names is None else []
    )
    return [windows, Section("errors", "Where the errors are", sentences, (), pictures, folded=folded)]


def channel_parts(errors: pd.DataFrame, measure: str, over: str) -> tuple[Picture, Table]:
    """A picture and a table of errors by channel."""
    errors = errors.dropna(subset=["error"])
    rows = [
        (str(name), number(value))
        for name, value in errors.sort_values("error", ascending=False, kind="stable").to_numpy().tolist()
    ]
    worst, best = rows[0], rows[-1]
    shown = picture(
        plots_run.error_by_channel(errors, measure),
        f"{measure} by channel as bars: largest for {worst[0]} ({worst[1]}), smallest for {best[0]} ({best[1]}).",
        f"{measure} by channel, {over}.",
    )
    return shown, Table(f"{measure} by channel, {over}", ("channel", measure), rows)


def _forecast_windows(scored: Scored, places: dict[str, int], errors: np.ndarray, measure: str) -> Section:
    parts, shown = [], scored.windows(list(places.values()))
    for (name, place), window in zip(places.items(), shown, strict=True):
        title = f"{name}: {_window_name(scored, place)}, {measure} {number(errors[place])}"
        parts.append(_forecast_table(scored, place, window).assign(window=title))
    table = pd.concat(parts)
    horizon = scored.data.task.spec.horizon
    original = "in original units" if scored.loaded.scaler is not None else "in the series' own units"
    figure = plots_run.forecast(table, history=HISTORY * horizon)
    titles = "; ".join(dict.fromkeys(table["window"]))
    return Section(
        "windows",
        "Forecasts on test windows",
        [
            rule(scored, measure),
            f"The picture is {original}, with the last {min(HISTORY * horizon, scored.data.task.spec.input_length)} "
            f"of the {scored.data.task.spec.input_length} steps that the model reads.",
        ],
        pictures=[
            picture(
                figure,
                f"Forecasts of {horizon} steps beside what came. {titles}.",
                f"Chosen by that rule alone. {titles}.",
            )
        ],
    )


def rule(scored: Scored, measure: str) -> str:
    """How the shown windows are chosen."""
    return (
        f"Of all {scored.table.size:,} test windows these are the ones with the smallest, the median and the largest {measure}; "
        "among equal ones the first."
    )


def _forecast_table(scored: Scored, place: int, window: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The columns of :func:`~ofa_jax.plots.run.forecast`, in original units."""
    scaler, channel = scored.loaded.scaler, int(np.asarray(scored.table.channel)[place])

    def units(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        values = np.where(mask, values, np.nan).astype(np.float64)[:, 0]
        return values if scaler is None else values * scaler.std[channel] + scaler.mean[channel]

    length, horizon = len(window["x"]), len(window["y"])
    truth = np.concatenate([units(window["x"], window["x_mask"]), units(window["y"], window["y_mask"])])
    prediction = units(window["prediction"], np.ones_like(window["y_mask"]))
    return pd.DataFrame(
        {
            "step": np.arange(1 - length, horizon + 1),
            "truth": truth,
            "forecast": np.concatenate([np.full(length, np.nan), prediction]),
        }
    )


def _window_name(scored: Scored, place: int) -> str:
    """Series, number and time of a window's first target, as far as they are known."""
    table, names = scored.table, scored.loaded.names
    said = f"window {int(np.asarray(table.window_id)[place]):,}"
    if names is None:
        return f"series {int(np.asarray(table.window_id)[place]):,}"
    frame = getattr(scored.data, "frame", None)
    row = int(np.asarray(table.first)[place]) + int(np.asarray(table.x_valid)[place])
    when = (
        ""
        if frame is None or frame.timestamps is None
        else f" from {str(frame.timestamps[row].astype('datetime64[m]')).replace('T', ' ')}"
    )
    return f"{names[int(np.asarray(table.channel)[place])]}, {said}{when}"


def _squared(pred_bhc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return _by_step(jnp.square(pred_bhc - batch.y), batch)


def _symmetric(pred_bhc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return _by_step(symmetric_terms(pred_bhc, batch.y, size=jnp.abs(pred_bhc) + jnp.abs(batch.y)), batch)


def _by_step(terms_bhc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return {
        "term": jnp.sum(jnp.where(batch.y_mask, terms_bhc, 0), axis=2),
        "count": jnp.sum(batch.y_mask, axis=2),
    }


def _accumulated(ask: Callable[[WindowTable], Sums], table: WindowTable) -> tuple[np.ndarray, np.ndarray]:
    """Mean error per window ``[windows]`` and per step ``[h]``, float64; NaN where nothing was observed."""
    windows, total, count = [], 0.0, 0.0
    for start in range(0, table.size, SLICE):
        found = ask(rows_of(table, slice(start, start + SLICE)))
        term, seen = found["term"].astype(np.float64), found["count"].astype(np.float64)
        windows.append(_ratio(term.sum(axis=1), seen.sum(axis=1)))
        total, count = total + term.sum(axis=0), count + seen.sum(axis=0)
    return np.concatenate(windows), _ratio(np.asarray(total), np.asarray(count))


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _table_by_step(steps: pd.DataFrame, measure: str) -> Table:
    wide = steps.pivot(index="step", columns="method", values="error")[list(dict.fromkeys(steps["method"]))]
    rows = [
        (str(step), *map(number, values))
        for step, values in zip(wide.index, wide.to_numpy().tolist(), strict=True)
    ]
    return Table(f"{measure} by step", ("step", *map(str, wide.columns)), rows)

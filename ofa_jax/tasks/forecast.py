"""Long-term forecasting: univariate windows of every channel, standardized (protocol §1, §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import DataConfig, ForecastSettings
from ofa_jax.data.catalog.load import CATALOG, DatasetEntry, load
from ofa_jax.data.frames import Frame, read_frame
from ofa_jax.data.missing import count_filled, filled_notices
from ofa_jax.data.seasons import season_length, season_notices, season_of
from ofa_jax.data.splits import Borders, Scaler, Split, borders, fit_scaler
from ofa_jax.errors import DataError
from ofa_jax.model.linear import dlinear, init_dlinear, init_nlinear, nlinear
from ofa_jax.model.networks import ForecastNetwork
from ofa_jax.plots import run as plots
from ofa_jax.tasks.base import LinearBaseline, NewData, Predict, Sums, Task, TaskData, TaskKind, TrainedOn
from ofa_jax.tasks.losses import FORECAST_LOSSES
from ofa_jax.tasks.metrics import forecast_metrics, forecast_sums
from ofa_jax.tasks.naive import seasonal_naive
from ofa_jax.windows.table import WindowSpec, WindowTable, sliding_windows


@dataclass(frozen=True)
class ForecastData(TaskData):
    """A forecasting task with its series; few-shot, too, fits the scaler on the complete training part.

    Attributes:
        frame: The series in original units.
        borders: Rows of each part.
    """

    scaler: Scaler
    frame: Frame = field(kw_only=True)
    borders: Borders = field(kw_only=True)


def read_series(data: DataConfig, source: str | None = None) -> tuple[Frame, DatasetEntry | None]:
    """The series that the settings name, checked."""
    return load(source or data.source, **data.reading)


def prepare(data: DataConfig, task: ForecastSettings, protocol: Protocol = "strict") -> ForecastData:
    """Read the series, split and scale them, and lay out the windows of each split.

    Raises:
        DataError: The series cannot be read, are too short for one window, or their season is unknown.
        ConfigError: ``data.percent`` or ``data.ratios`` are out of range.
    """
    frame, entry = read_series(data)
    return prepare_frame(frame, data, task, entry, protocol)


def prepare_frame(
    frame: Frame,
    data: DataConfig,
    task: ForecastSettings,
    entry: DatasetEntry | None = None,
    protocol: Protocol = "strict",
) -> ForecastData:
    """As :func:`prepare`, for series in memory."""
    length, horizon = task.input_length, task.horizon
    parts, scaler, tables = split_and_scale(frame, data, entry, input_length=length, horizon=horizon)
    known = (data.season, entry.season if entry else None)
    season = season_length(*known, None) or season_of_frame(frame)
    made = Task(
        spec=WindowSpec(length, horizon, univariate=True),
        buffer=scaler.transform(frame.values),
        tables=tables,
        loss=FORECAST_LOSSES[task.loss],
        sums=forecast_sums,
        metrics=forecast_metrics,
        objective="mse",
        protocol=protocol,
        drop_last=protocol == "published",
        full_batches=protocol == "published",
        observed=frame.observed,
    )
    untrained, notices = naive_forecasts(season, length, horizon)
    return ForecastData(
        made,
        task,
        scaler,
        season,
        notices=(
            *frame.notices,
            *filled_notices(frame.observed, frame.source),
            *season_notices(*known, frame.frequency, frame.source),
            *notices,
            *scaler.notices,
        ),
        meta={"frequency": frame.frequency, "filled": count_filled(frame.observed)},
        untrained=untrained,
        lookback={title: season for title in untrained if title.startswith("seasonal")},
        frame=frame,
        borders=parts,
    )


def naive_forecasts(season: int, length: int, horizon: int) -> tuple[dict[str, Predict], list[str]]:
    """Seasonal naive, by the name of what it does, and its notices.

    With a season longer than the L input steps it reads the series before the window, and the last value,
    which is all that the window shows of a cycle, is a baseline as well.
    """
    repeat: dict[str, Predict] = {"last value": partial(seasonal_naive, season=1, horizon=horizon)}
    if season == 1:
        return repeat, []
    cycle: dict[str, Predict] = {
        f"seasonal naive ({season} steps)": partial(seasonal_naive, season=season, horizon=horizon)
    }
    if season <= length:
        return cycle, []
    what = f"the season of {season} steps is longer than task.input_length {length}"
    return cycle | repeat, [f"{what}, so seasonal naive reads the series before the window"]


def split_and_scale(
    frame: Frame,
    data: DataConfig,
    entry: DatasetEntry | None,
    *,
    input_length: int,
    horizon: int,
    univariate: bool = True,
) -> tuple[Borders, Scaler, dict[Split, WindowTable]]:
    """The rows of each part, the scaler of the complete training part, and the windows of each part.

    Raises:
        DataError: A part is too short for one window.
        ConfigError: ``data.percent`` or ``data.ratios`` are out of range.
    """
    rule = data.split or (entry.split if entry else "ratio")
    cut = partial(
        borders, frame.n_rows, rule, input_length=input_length, ratios=data.ratios, source=frame.source
    )
    parts, complete = cut(horizon=horizon, percent=data.percent), cut()["train"]
    fitted, later = np.split(frame.values, [complete[1]])
    scaler = fit_scaler(fitted, frame.names, source=frame.source, later=later)
    shape: dict[str, Any] = {"input_length": input_length, "horizon": horizon, "univariate": univariate}
    tables = {
        split: sliding_windows(rows, channels=frame.n_channels, **shape) for split, rows in parts.items()
    }
    return parts, scaler, tables


def season_of_frame(frame: Frame) -> int:
    """Season length from the frequency: a day for hours and minutes, a week for days, a year above.

    Raises:
        DataError: The frequency is unknown or has no usual season of whole steps.
    """
    season = season_of(frame.frequency)
    if season is None:
        what = f"the season length is unknown for steps of {frame.frequency or 'unknown length'}"
        raise DataError(what, where=frame.source, fix="Set data.season to it, or to 1 for none")
    return season


def read_new(trained: TrainedOn, source: Any, *, last: int | None = None, **options: Any) -> Frame:
    """New rows, read as the training data were: the model's columns where it knows them.

    ``last`` and ``options`` are those of :func:`~ofa_jax.data.frames.read_frame`.

    Raises:
        DataError: The rows cannot be read, are too few, lack columns or have another frequency.
    """
    data, entry = trained.data, CATALOG.get(trained.data.source)
    policy = {"timestamps": entry.timestamps} if entry else {}
    names = None if trained.scaler is None else trained.scaler.names
    options = policy | data.reading | dict(trained.reading) | options
    frame = read_frame(source, **options, trained_on=names, last=last)
    expected, found = trained.meta.get("frequency"), frame.frequency
    if expected and found and expected.split("-")[0] != found.split("-")[0]:
        what = f"the rows are {found!r} apart, but the model was trained on steps of {expected!r}"
        raise DataError(what, where=frame.source, fix="Resample the rows to the model's step")
    check_rows(frame, trained.task.input_length)
    return frame


def check_rows(frame: Frame, length: int) -> None:
    """Refuse new data with fewer rows than the model reads.

    Raises:
        DataError: There are fewer.
    """
    if frame.n_rows < length:
        what = f"{frame.n_rows} rows, but the model reads {length}"
        raise DataError(what, where=frame.source, fix=f"Give at least {length} rows")


def as_float32(values: np.ndarray, names: Sequence[str], source: str) -> np.ndarray:
    """Values ``[T, C]`` of the series ``names``, float32.

    Raises:
        DataError: A value beyond float32's range.
    """
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if not np.isfinite(found).all():
        name = names[int(np.argwhere(~np.isfinite(found))[0][-1])]
        what = f"series `{name}` has values beyond float32's range"
        raise DataError(what, where=source, fix="Look for wrong units in it, or give it in larger ones")
    return found


def apply(trained: TrainedOn, source: str | Path | pd.DataFrame) -> NewData:
    """The horizon after the last row of new series.

    The table has one row per step: its timestamp under the input's name (in UTC where the input had a time
    zone) or its number, and a column per series in original units.

    Raises:
        DataError: Other columns than the model's, too few rows, or an unknown frequency.
    """
    frame, scaler = read_new(trained, source, last=trained.task.input_length), trained.scaler
    length, horizon = trained.task.input_length, getattr(trained.task, "horizon", 0)
    last, index = frame.values[-length:], time_index(frame, horizon)
    filled = 0 if frame.observed is None else int((~frame.observed[-length:]).sum())
    panels = partial(forecast_panels, frame, history=min(length, 3 * horizon))
    title = f"{frame.source}: the next {horizon} steps"

    def to_table(outputs: Sums) -> pd.DataFrame:
        pred_hc = outputs["prediction"][0]
        values = scaler.invert(pred_hc) if scaler else pred_hc
        return pd.DataFrame(values, index, list(frame.names)).reset_index()

    return NewData(
        notices=frame.notices,
        spec=WindowSpec(length, 0, univariate=False),
        buffer=scaler.transform(last) if scaler else as_float32(last, frame.names, frame.source),
        table=WindowTable.of(np.zeros(1), x_valid=length),
        to_table=to_table,
        plot=lambda table, note: plots.forecast(panels(table), title=title, note=note),
        summary=lambda table: (
            f"{horizon} steps of {frame.n_channels} series"
            + (f" ({filled:,} of the values they are read from were missing and filled)" if filled else "")
        ),
    )


def forecast_panels(
    frame: Frame, table: pd.DataFrame, history: int, actual: np.ndarray | None = None
) -> pd.DataFrame:
    """The last ``history`` rows and the forecast, as :func:`ofa_jax.plots.run.forecast` draws them.

    ``actual`` are the values that were forecast, ``[h, c]`` in original units, where they are known.
    """
    rows, history, names = len(table), min(history, frame.n_rows), list(frame.names)
    time = np.arange(1 - history, rows + 1)
    if frame.timestamps is not None:
        time = np.concatenate([frame.timestamps[-history:], frame.future_timestamps(rows)])
    after = np.full((rows, len(names)), np.nan) if actual is None else actual
    before = np.full((history, len(names)), np.nan)
    return pd.DataFrame(
        {
            "panel": np.repeat(names, len(time)),
            "time": np.tile(time, len(names)),
            "actual": np.concatenate([frame.values[-history:], after]).ravel("F"),
            "forecast": np.concatenate([before, table[names]]).ravel("F"),
        }
    )


def time_index(frame: Frame, ahead: int | None = None) -> pd.Index:
    """Timestamps (or numbers) of the rows, or of the ``ahead`` steps after them; its name is no series'.

    Raises:
        DataError: Too few timestamps to continue.
    """
    name = "step" if frame.timestamps is None else frame.time_name
    while name in frame.names:
        name += "_"
    if frame.timestamps is None:
        return pd.RangeIndex(1, (ahead or frame.n_rows) + 1, name=name)
    times = frame.future_timestamps(ahead) if ahead else frame.timestamps
    dates = pd.DatetimeIndex(times, name=name)
    return dates.tz_localize("UTC") if frame.zoned else dates


def _nlinear(task):
    return nlinear, init_nlinear(task.input_length, task.horizon)


def _dlinear(task):
    return dlinear, init_dlinear(task.input_length, task.horizon)


def linear_baselines(**training: Any) -> tuple[LinearBaseline, ...]:
    """NLinear and DLinear with these training settings."""
    return (
        LinearBaseline("nlinear", "NLinear", _nlinear, training),
        LinearBaseline("dlinear", "DLinear", _dlinear, training),
    )


FORECAST = TaskKind(
    settings=ForecastSettings,
    title="Long-term forecasting",
    prepare=prepare,
    network=ForecastNetwork,
    apply=apply,
    # The learning rate was chosen for NLinear on ETTh1's validation part.
    baselines=linear_baselines(learning_rate=1e-3, epochs=10, batch_size=256, cosine_epochs=10),
)

"""Long-term forecasting: univariate windows of every channel, standardized (protocol §1, §3)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import DataConfig, ForecastSettings, NetworkConfig
from ofa_jax.data.catalog.load import CATALOG, DatasetEntry, load
from ofa_jax.data.frames import Frame, check_columns, read_frame
from ofa_jax.data.seasons import season_of
from ofa_jax.data.splits import Borders, Scaler, borders, fit_scaler
from ofa_jax.errors import DataError
from ofa_jax.model.linear import dlinear, init_dlinear, init_nlinear, nlinear
from ofa_jax.model.networks import ForecastNetwork, TrunkModule
from ofa_jax.plots import run as plots
from ofa_jax.tasks.base import (
    SPLITS,
    LinearBaseline,
    NewData,
    Split,
    Sums,
    Task,
    TaskData,
    TaskKind,
    TrainedOn,
)
from ofa_jax.tasks.losses import FORECAST_LOSSES
from ofa_jax.tasks.metrics import forecast_metrics, forecast_sums
from ofa_jax.tasks.naive import seasonal_naive
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.table import WindowSpec, WindowTable, sliding_windows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


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
    options = {"timestamps": data.timestamps} if data.timestamps else {}
    return load(
        source or data.source,
        timestamp_column=data.timestamp_column,
        columns=data.columns,
        missing=data.missing,
        **options,
    )


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
    rule = data.split or (entry.split if entry else "ratio")
    length, horizon = task.input_length, task.horizon
    cut = partial(borders, frame.n_rows, rule, input_length=length, ratios=data.ratios, source=frame.source)
    parts, complete = cut(horizon=horizon, percent=data.percent), cut()["train"]
    scaler = fit_scaler(frame.values[slice(*complete)], frame.names)
    tables: dict[Split, WindowTable] = {
        split: sliding_windows(parts[split], input_length=length, horizon=horizon, channels=frame.n_channels)
        for split in SPLITS
    }
    season = data.season or (entry.season if entry else season_of_frame(frame))
    return ForecastData(
        task=forecast_task(scaler.transform(frame.values), tables, task, protocol),
        settings=task,
        scaler=scaler,
        season=season,
        notices=tuple(scaler.notices),
        meta={"frequency": frame.frequency},
        untrained={f"seasonal naive ({season} steps)": seasonal_naive(season, horizon)},
        frame=frame,
        borders=parts,
    )


def forecast_task(
    buffer: np.ndarray,
    tables: dict[Split, WindowTable],
    task: ForecastSettings,
    protocol: Protocol = "strict",
) -> Task:
    """The task over univariate windows of a standardized buffer ``[rows, channels]``."""
    return Task(
        name=task.name,
        spec=WindowSpec(task.input_length, task.horizon, univariate=True),
        buffer=buffer,
        tables=tables,
        loss=FORECAST_LOSSES[task.loss],
        sums=forecast_sums,
        metrics=forecast_metrics,
        objective="mse",
        protocol=protocol,
        drop_last=protocol == "published",
        full_batches=protocol == "published",
    )


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


def forecast_network(task: Any, network: NetworkConfig, trunk: TrunkModule) -> ForecastNetwork:
    """The method's own network (protocol §1)."""
    return ForecastNetwork(
        trunk=trunk,
        input_length=task.input_length,
        horizon=task.horizon,
        patch=network.patch,
        stride=network.stride,
    )


def read_new(trained: TrainedOn, source: Any, *, missing: Any = None) -> Frame:
    """New rows, read as the training data were; their columns must be the model's where it knows them.

    Raises:
        DataError: The rows cannot be read, or their columns or frequency are not those of training.
    """
    data, entry = trained.data, CATALOG.get(trained.data.source)
    names = None if trained.scaler is None else trained.scaler.names
    frame = read_frame(
        source,
        timestamp_column=data.timestamp_column,
        columns=names if data.columns else None,
        missing=missing or data.missing,
        timestamps=data.timestamps or (entry.timestamps if entry else "error"),
    )
    frame = frame if names is None else check_columns(frame, names)
    expected, found = trained.meta.get("frequency"), frame.frequency
    if expected and found and expected.split("-")[0] != found.split("-")[0]:
        what = f"the rows are {found!r} apart, but the model was trained on steps of {expected!r}"
        raise DataError(what, where=frame.source, fix="Resample the rows to the model's step")
    return frame


def scaled(trained: TrainedOn, frame: Frame) -> np.ndarray:
    """Values ``[T, C]`` as the network reads them, float32.

    Raises:
        DataError: A value beyond float32's range.
    """
    if trained.scaler is not None:
        return trained.scaler.transform(frame.values)
    with np.errstate(over="ignore"):
        values = frame.values.astype(np.float32)
    if not np.isfinite(values).all():
        name = frame.names[int(np.argwhere(~np.isfinite(values))[0][-1])]
        what = f"series `{name}` has values beyond float32's range"
        raise DataError(what, where=frame.source, fix="Give it in larger units")
    return values


def apply(trained: TrainedOn, source: str | Path | pd.DataFrame) -> NewData:
    """The horizon after the last row of new series.

    The table has one row per step: its timestamp under the input's name (in UTC where the input had a time
    zone) or its number, and a column per series in original units.

    Raises:
        DataError: Other columns than the model's, too few rows, or an unknown frequency.
    """
    frame = read_new(trained, source)
    length, horizon = trained.task.input_length, getattr(trained.task, "horizon", 0)
    if frame.n_rows < length:
        what = f"{frame.n_rows} rows, but the model reads the last {length}"
        raise DataError(what, where=frame.source, fix=f"Give at least {length} rows")
    last = replace(frame, values=frame.values[-length:], timestamps=None)
    index = _future_index(frame, horizon)

    def to_table(outputs: Sums) -> pd.DataFrame:
        import pandas as pd

        pred_hc = outputs["forecast"][0]
        values = pred_hc.astype(np.float64) if trained.scaler is None else trained.scaler.invert(pred_hc)
        table = pd.DataFrame(values if trained.scaler else pred_hc, columns=list(frame.names))
        table.insert(0, index.name, index)
        return table

    def plot(table: pd.DataFrame, note: str) -> Figure:
        title = f"{frame.source}: the next {horizon} steps"
        return plots.forecast(forecast_panels(frame, table, min(length, 3 * horizon)), title=title, note=note)

    return NewData(
        spec=WindowSpec(length, 0, univariate=False),
        buffer=scaled(trained, last),
        table=WindowTable.of(np.zeros(1), x_valid=length),
        outputs=_outputs,
        to_table=to_table,
        plot=plot,
        summary=lambda table: f"{horizon} steps of {frame.n_channels} series",
    )


def forecast_panels(
    frame: Frame, table: pd.DataFrame, history: int, actual: np.ndarray | None = None
) -> pd.DataFrame:
    """The last ``history`` rows and the forecast, as :func:`ofa_jax.plots.run.forecast` draws them.

    ``actual`` are the values that were forecast, ``[h, c]`` in original units, where they are known.
    """
    import pandas as pd

    rows, history = len(table), min(history, frame.n_rows)
    past, ahead = np.arange(-history + 1, 1), np.arange(1, rows + 1)
    if frame.timestamps is not None:
        past, ahead = frame.timestamps[-history:], frame.future_timestamps(rows)
    after = np.full((rows, frame.n_channels), np.nan) if actual is None else actual
    values = np.concatenate([frame.values[-history:], after])
    empty = np.full(history, np.nan)
    panels = {
        name: pd.DataFrame(
            {
                "time": np.concatenate([past, ahead]),
                "actual": values[:, index],
                "forecast": np.concatenate([empty, table[name]]),
            }
        )
        for index, name in enumerate(frame.names)
    }
    return pd.concat(panels, names=["panel"]).reset_index("panel")


def _outputs(prediction: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return {"forecast": prediction}


def time_index(frame: Frame) -> pd.Index:
    """Timestamps of all rows under a name that no series has, or the rows' numbers from 1."""
    return _index(frame, frame.timestamps, frame.n_rows)


def _future_index(frame: Frame, horizon: int) -> pd.Index:
    return _index(frame, None if frame.timestamps is None else frame.future_timestamps(horizon), horizon)


def _index(frame: Frame, times: np.ndarray | None, count: int) -> pd.Index:
    import pandas as pd

    name = "step" if times is None else frame.time_name
    while name in frame.names:
        name += "_"
    if times is None:
        return pd.RangeIndex(1, count + 1, name=name)
    dates = pd.DatetimeIndex(times, name=name)
    return dates.tz_localize("UTC") if frame.zoned else dates


def _nlinear(task: Any) -> tuple[Any, dict[str, Any]]:
    return nlinear, init_nlinear(task.input_length, task.horizon)


def _dlinear(task: Any) -> tuple[Any, dict[str, Any]]:
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
    network=forecast_network,
    apply=apply,
    # The learning rate was chosen for NLinear on ETTh1's validation part.
    baselines=linear_baselines(learning_rate=1e-3, epochs=10, batch_size=256, cosine_epochs=10),
)

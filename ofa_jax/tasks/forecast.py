"""Long-term forecasting: univariate windows of every channel, standardised, all horizons' errors counted (protocol §1, §3)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ofa_jax.config import DataConfig, Protocol, TaskConfig
from ofa_jax.data.catalog.load import DatasetEntry, load
from ofa_jax.data.frames import Frame
from ofa_jax.data.splits import Borders, Scaler, borders, fit_scaler
from ofa_jax.errors import DataError
from ofa_jax.tasks.base import SPLITS, Split, Task, TaskData, whole_batches
from ofa_jax.tasks.losses import FORECAST_LOSSES
from ofa_jax.tasks.metrics import forecast_metrics, forecast_sums
from ofa_jax.windows.table import WindowSpec, WindowTable, sliding_windows

SEASONS = {"h": 24, "min": 1440, "D": 7, "B": 5, "W": 52, "M": 12, "BM": 12, "Q": 4, "BQ": 4, "Y": 1, "BY": 1}
"""Steps of the main cycle by frequency, where neither the settings nor the catalog say."""


@dataclass(frozen=True)
class ForecastData(TaskData):
    """A forecasting task with the series it was made from; its scaler was fitted on the whole training part, also in few-shot.

    Attributes:
        frame: The series in original units.
        borders: Rows of each part.
    """

    scaler: Scaler
    frame: Frame = field(kw_only=True)
    borders: Borders = field(kw_only=True)


def read_series(data: DataConfig) -> tuple[Frame, DatasetEntry | None]:
    """The series that the settings name, checked."""
    options = {"timestamps": data.timestamps} if data.timestamps else {}
    return load(
        data.source,
        timestamp_column=data.timestamp_column,
        columns=data.columns,
        missing=data.missing,
        **options,
    )


def prepare(
    data: DataConfig, task: TaskConfig, *, protocol: Protocol = "strict", batch_size: int = 1
) -> ForecastData:
    """Read the series, split and scale them, and lay out the windows of each split.

    Raises:
        DataError: The series cannot be read, are too short for one window, or their cycle is not known.
        ConfigError: ``data.percent`` or ``data.ratios`` are out of range.
    """
    frame, entry = read_series(data)
    return prepare_frame(frame, data, task, entry, protocol=protocol, batch_size=batch_size)


def prepare_frame(
    frame: Frame,
    data: DataConfig,
    task: TaskConfig,
    entry: DatasetEntry | None = None,
    *,
    protocol: Protocol = "strict",
    batch_size: int = 1,
) -> ForecastData:
    """As :func:`prepare`, for series that are already in memory."""
    rule = data.split or (entry.split if entry else "ratio")
    parts = borders(
        frame.n_rows,
        rule,
        input_length=task.input_length,
        horizon=task.horizon,
        percent=data.percent,
        ratios=data.ratios,
        source=frame.source,
    )
    whole = borders(
        frame.n_rows, rule, input_length=task.input_length, ratios=data.ratios, source=frame.source
    )["train"]
    scaler = fit_scaler(frame.values[slice(*whole)], frame.names)
    tables: dict[Split, WindowTable] = {
        split: sliding_windows(
            parts[split],
            input_length=task.input_length,
            horizon=task.horizon,
            channels=frame.n_channels,
            source=f"{frame.source} ({split} part)",
        )
        for split in SPLITS
    }
    for split in ("validation", "test"):
        tables[split] = whole_batches(
            tables[split], batch_size, protocol=protocol, where=f"{frame.source} ({split} part)"
        )
    season = data.season or (entry.season if entry else season_of(frame))
    return ForecastData(
        task=forecast_task(scaler.transform(frame.values), tables, task, protocol),
        settings=task,
        scaler=scaler,
        season=season,
        notices=tuple(scaler.notices),
        meta={"frequency": frame.frequency},
        frame=frame,
        borders=parts,
    )


def forecast_task(
    buffer: np.ndarray, tables: dict[Split, WindowTable], task: TaskConfig, protocol: Protocol = "strict"
) -> Task:
    """The record of a forecasting task over univariate windows of a standardised buffer ``[rows, channels]``."""
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
    )


def season_of(frame: Frame) -> int:
    """Steps of the main cycle, from the frequency: a day for hours and minutes, a week for days, a year above.

    Raises:
        DataError: The frequency is unknown or has no usual cycle of whole steps.
    """
    import re

    match = re.fullmatch(r"(\d*)([A-Za-z]+?)([SE]?)(-[A-Z]+)?", frame.frequency or "")
    count, unit = (int(match[1] or 1), match[2]) if match else (1, "")
    cycle = SEASONS.get(unit)
    if cycle is None or (cycle > 1 and cycle % count):
        raise DataError(
            f"the main cycle is not known for steps of {frame.frequency or 'no known length'}",
            where=frame.source,
            fix="Say how many steps it has with --set data.season=…, or 1 for none",
        )
    return max(1, cycle // count)

"""Imputation: single points of multivariate windows are hidden and filled in (the protocol of GPT4TS; protocol §2)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.config import DataConfig, Protocol, TaskConfig
from ofa_jax.data.frames import Frame
from ofa_jax.data.splits import Split, borders, fit_scaler
from ofa_jax.errors import DataError
from ofa_jax.tasks.base import SPLITS, Sums, Task, TaskData
from ofa_jax.tasks.forecast import read_series
from ofa_jax.tasks.losses import squared_error
from ofa_jax.tasks.metrics import forecast_metrics, forecast_sums
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.table import WindowSpec, WindowTable, sliding_windows


def prepare_imputation(
    data: DataConfig, task: TaskConfig, *, protocol: Protocol = "strict", batch_size: int = 1
) -> TaskData:
    """Windows of all channels whose points are hidden by chance: anew in every step of training, always the same ones in evaluation.

    Raises:
        DataError: The series cannot be read or are too short for a window; other channels than the settings say.
    """
    frame, entry = read_series(data)
    if task.channels not in (None, frame.n_channels):
        raise DataError(
            f"has {frame.n_channels} series, task.channels is {task.channels}",
            where=frame.source,
            fix=f"--set task.channels={frame.n_channels}",
        )
    rule = data.split or (entry.split if entry else "ratio")
    cut = partial(
        borders, frame.n_rows, rule, input_length=task.input_length, ratios=data.ratios, source=frame.source
    )
    parts, whole = cut(horizon=0, percent=data.percent), cut()["train"]
    scaler = fit_scaler(frame.values[slice(*whole)], frame.names)
    features = calendar_features(frame)
    if task.calendar not in (None, features.shape[1]):
        raise DataError(
            f"has {features.shape[1]} calendar features, task.calendar is {task.calendar}",
            where=frame.source,
            fix=f"--set task.calendar={features.shape[1]}",
        )
    notices = scaler.notices
    if frame.timestamps is None:
        notices.append("there are no timestamps, so the network sees no calendar")
    tables: dict[Split, WindowTable] = {
        split: sliding_windows(
            parts[split],
            input_length=task.input_length,
            horizon=0,
            channels=frame.n_channels,
            univariate=False,
            source=f"{frame.source} ({split} part)",
        )
        for split in SPLITS
    }
    made = Task(
        name=task.name,
        spec=WindowSpec(task.input_length, 0, univariate=False),
        buffer=np.concatenate([scaler.transform(frame.values), features], axis=1),
        tables=tables,
        loss=squared_error,
        sums=forecast_sums,
        metrics=imputation_metrics,
        objective="mse",
        protocol=protocol,
        corrupt=partial(hide_points, rate=task.mask_rate, channels=frame.n_channels),
    )
    settings = task.model_copy(update={"channels": frame.n_channels, "calendar": features.shape[1]})
    return TaskData(made, settings, scaler, 1, tuple(notices), meta={"frequency": frame.frequency})


def imputation_metrics(sums: Sums) -> dict[str, float]:
    """MSE and MAE over every hidden point, on the scale of the windows.

    Raises:
        DataError: No point of any window was hidden.
    """
    if not sums["count"].any():
        raise DataError(
            f"chance hid no point in any of {len(sums['count'])} window(s)",
            where="task.mask_rate",
            fix="Raise task.mask_rate, or give more windows",
        )
    return forecast_metrics(sums)


def hide_points(batch: Batch, keys_b: jax.Array, *, rate: float, channels: int) -> Batch:
    """Hide each observed point with probability ``rate``; the hidden ones become the target.

    Args:
        batch: Windows ``[b, t, channels + calendar]``; calendar features are never hidden.
        keys_b: One key per window.
        rate: Share of hidden points.
        channels: Columns that can be hidden, from the first.

    Returns:
        ``x`` with 0 where hidden, ``x_mask`` False there; ``y`` the windows' own values ``[b, t, channels]``, ``y_mask`` True where hidden.
    """
    threshold = jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    shape = (*batch.x.shape[1:-1], channels)
    drawn = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys_b) < threshold
    observed = batch.x_mask[..., :channels]
    hidden = jnp.pad(drawn & observed, ((0, 0), (0, 0), (0, batch.x.shape[-1] - channels)))
    return batch._replace(
        x=jnp.where(hidden, 0, batch.x),
        x_mask=batch.x_mask & ~hidden,
        y=batch.x[..., :channels],
        y_mask=drawn & observed,
    )


def calendar_features(frame: Frame) -> np.ndarray:
    """Hour of day, day of week, day of month and day of year of each row; minute of hour before them where most steps are below an hour.

    Returns:
        ``[T, 4]`` or ``[T, 5]`` float32 between -0.5 and 0.5; ``[T, 0]`` where there are no timestamps.
    """
    import pandas as pd

    if frame.timestamps is None:
        return np.zeros((frame.n_rows, 0), np.float32)
    times = pd.DatetimeIndex(frame.timestamps)
    columns = [times.hour / 23, times.day_of_week / 6, (times.day - 1) / 30, (times.day_of_year - 1) / 365]
    hours = np.diff(frame.timestamps) / np.timedelta64(1, "h")
    hours = hours[hours > 0]  # timestamps may repeat
    if len(hours) and np.median(hours) < 1:
        columns.insert(0, times.minute / 59)
    return np.stack([np.asarray(column, np.float64) - 0.5 for column in columns], axis=1).astype(np.float32)

"""Imputation: points of multivariate windows are hidden and filled in, as in GPT4TS (protocol §2)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import DataConfig, ImputationSettings
from ofa_jax.data.frames import Frame
from ofa_jax.data.missing import count_filled, filled_notices
from ofa_jax.errors import DataError
from ofa_jax.model.linear import init_dlinear, masked_dlinear
from ofa_jax.model.networks import ImputeNetwork
from ofa_jax.plots.tasks import filled_table
from ofa_jax.tasks.base import LinearBaseline, NewData, Sums, Task, TaskData, TaskKind, TrainedOn, with_sizes
from ofa_jax.tasks.forecast import read_new, read_series, split_and_scale, time_index
from ofa_jax.tasks.losses import squared_error
from ofa_jax.tasks.metrics import forecast_metrics, forecast_sums
from ofa_jax.tasks.naive import interpolate, window_mean
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.cover import each_step_once
from ofa_jax.windows.table import WindowSpec


def prepare(data: DataConfig, task: ImputationSettings, protocol: Protocol = "strict") -> TaskData:
    """Windows of all channels with points hidden at random, redrawn each training step, fixed in evaluation.

    Raises:
        DataError: The series cannot be read or are too short, or their sizes contradict the settings.
    """
    frame, entry = read_series(data)
    features = calendar_features(frame)
    channels, length = frame.n_channels, task.input_length
    task = with_sizes(task, frame.source, channels=channels, calendar=features.shape[1])
    _, scaler, tables = split_and_scale(frame, data, entry, input_length=length, horizon=0, univariate=False)
    untimed = ["no timestamps, so the network reads no calendar features"]
    made = Task(
        spec=WindowSpec(length, 0, univariate=False, hide_filled=True),
        buffer=np.concatenate([scaler.transform(frame.values, frame.source), features], axis=1),
        observed=None if frame.observed is None else _with_calendar(frame.observed, features),
        tables=tables,
        loss=squared_error,
        sums=forecast_sums,
        metrics=imputation_metrics,
        objective="mse",
        protocol=protocol,
        corrupt=partial(hide_points, rate=task.mask_rate, channels=channels),
    )
    return TaskData(
        made,
        task,
        scaler,
        notices=(
            *frame.notices,
            *filled_notices(frame.observed, frame.source),
            *scaler.notices,
            *(untimed if frame.timestamps is None else []),
        ),
        timestamps=None if frame.timestamps is None else frame.local_times(),
        meta={"frequency": frame.frequency, "filled": count_filled(frame.observed)},
        untrained={
            "linear interpolation": partial(interpolate, channels=channels),
            "mean of the window": partial(window_mean, channels=channels),
        },
    )


def _with_calendar(observed: np.ndarray, features: np.ndarray) -> np.ndarray:
    """A mask of channels ``[T, C]``, with the calendar features, which are never missing."""
    return np.concatenate([observed, np.ones(features.shape, bool)], axis=1)


def imputation_metrics(sums: Sums) -> dict[str, float]:
    """MSE and MAE over every hidden point, on the scale of the windows.

    Raises:
        DataError: No point of any window was hidden.
    """
    if not sums["count"].any():
        what = f"chance hid no point in any of {len(sums['count'])} window(s)"
        raise DataError(what, where="task.mask_rate", fix="Raise task.mask_rate, or give more windows")
    return forecast_metrics(sums)


def hide_points(batch: Batch, keys_b: jax.Array, *, rate: float, channels: int) -> Batch:
    """Hide each observed point with probability ``rate``; the hidden ones become the target.

    Args:
        batch: Windows ``[b, t, channels + calendar]``; calendar features are never hidden.
        keys_b: One key per window.
        rate: Share of hidden points.
        channels: Columns that can be hidden, from the first.

    Returns:
        ``x`` with 0 where hidden, ``x_mask`` False there; ``y`` the true values ``[b, t, channels]``,
        ``y_mask`` True where hidden.
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
    """Hour, day of week, day of month and day of year of each row, preceded by minute for sub-hourly steps.

    Returns:
        ``[T, 4]`` or ``[T, 5]`` float32 between -0.5 and 0.5; ``[T, 0]`` where there are no timestamps.
    """
    if frame.timestamps is None:
        return np.zeros((frame.n_rows, 0), np.float32)
    times = pd.DatetimeIndex(frame.timestamps)
    columns = [times.hour / 23, times.day_of_week / 6, (times.day - 1) / 30, (times.day_of_year - 1) / 365]
    hours = np.diff(frame.timestamps) / np.timedelta64(1, "h")
    hours = hours[hours > 0]  # timestamps may repeat
    if len(hours) and np.median(hours) < 1:
        columns.insert(0, times.minute / 59)
    return np.stack([np.asarray(column, np.float64) - 0.5 for column in columns], axis=1).astype(np.float32)


def apply(trained: TrainedOn, source: str | Path | pd.DataFrame) -> NewData:
    """Series with missing values, to fill them; the table has the input's rows with the gaps filled.

    Raises:
        DataError: The rows cannot be read, are too few, have other columns or timestamps, or have no gap; a
            series has no value.
    """
    if (scaler := trained.scaler) is None:
        fix = "If the bundle is in a saved estimator's folder, load that by its class"
        raise DataError("the bundle has no scaler of series", fix=fix)
    frame = read_new(trained, source, missing="keep")
    channels, features, known = frame.n_channels, calendar_features(frame), np.isfinite(frame.values)
    calendar = getattr(trained.task, "calendar", 0)
    if features.shape[1] != calendar:
        what = f"has {features.shape[1]} calendar features, the model reads {calendar}"
        fix = "Give timestamps" if calendar else "Leave the timestamps out"
        raise DataError(what, where=frame.source, fix=f"{fix}, at the step of training")
    if known.all():
        what = "no value is missing, so there is nothing to fill"
        raise DataError(what, where=frame.source, fix="Leave the cells to fill empty")
    if empty := [name for name, column in zip(frame.names, known.T, strict=True) if not column.any()]:
        what = f"`{empty[0]}` has no value at all, so there is nothing to fill it from"
        raise DataError(what, where=frame.source, fix="Give rows with some of its values")
    values = scaler.transform(np.where(known, frame.values, scaler.mean), frame.source)
    windows = each_step_once(np.array([0, frame.n_rows]), trained.task.input_length)
    index, names = time_index(frame), list(frame.names)
    given = pd.DataFrame(frame.values, index, names).reset_index()

    def to_table(outputs: Sums) -> pd.DataFrame:
        filled = scaler.invert(windows.steps(outputs["prediction"]))
        return pd.DataFrame(np.where(known, frame.values, filled), index, names).reset_index()

    return NewData(
        notices=frame.notices,
        spec=WindowSpec(trained.task.input_length, 0, univariate=False, hide_filled=True),
        buffer=np.concatenate([values, features], axis=1),
        observed=_with_calendar(known, features),
        table=windows.table,
        to_table=to_table,
        plot=lambda filled, note: filled_table(given, filled, note),
        summary=lambda filled: f"{int((~known).sum()):,} missing values of {channels} series filled",
    )


def _dlinear(task):
    def predict(frozen, trainable, x_btc, x_mask, *, dropout_keys=None):
        return masked_dlinear(frozen, trainable, x_btc[..., : task.channels], x_mask[..., : task.channels])

    return predict, init_dlinear(task.input_length, task.input_length)


# Chosen on ETTh1's validation part.
_TRAINING = {"learning_rate": 2e-3, "epochs": 10, "batch_size": 256, "schedule": "decay", "decay": 0.5}

IMPUTATION = TaskKind(
    settings=ImputationSettings,
    title="Imputation",
    prepare=prepare,
    network=ImputeNetwork,
    apply=apply,
    baselines=(LinearBaseline("dlinear", "DLinear", _dlinear, _TRAINING),),
)

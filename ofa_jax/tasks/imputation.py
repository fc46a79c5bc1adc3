"""Imputation: points of multivariate windows are hidden and filled in, as in GPT4TS (protocol §2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import DataConfig, ImputationSettings, NetworkConfig
from ofa_jax.data.frames import Frame
from ofa_jax.data.splits import Split, borders, fit_scaler
from ofa_jax.errors import DataError
from ofa_jax.model.linear import init_dlinear, masked_dlinear
from ofa_jax.model.networks import ImputeNetwork, TrunkModule
from ofa_jax.plots.tasks import filled_table
from ofa_jax.tasks.base import (
    SPLITS,
    LinearBaseline,
    NewData,
    Predict,
    Sums,
    Task,
    TaskData,
    TaskKind,
    TrainedOn,
    check_size,
)
from ofa_jax.tasks.forecast import read_new, read_series, scaled, time_index
from ofa_jax.tasks.losses import squared_error
from ofa_jax.tasks.metrics import forecast_metrics, forecast_sums
from ofa_jax.tasks.naive import interpolate, window_mean
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.cover import each_step_once
from ofa_jax.windows.table import WindowSpec, WindowTable, sliding_windows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def prepare(data: DataConfig, task: ImputationSettings, protocol: Protocol = "strict") -> TaskData:
    """Windows of all channels with points hidden at random: redrawn each step in training, fixed in evaluation.

    Raises:
        DataError: The series cannot be read or are too short, or their sizes contradict the settings.
    """
    frame, entry = read_series(data)
    features = calendar_features(frame)
    channels = check_size("channels", frame.n_channels, task.channels, frame.source)
    calendar = check_size("calendar", features.shape[1], task.calendar, frame.source)
    rule, length = data.split or (entry.split if entry else "ratio"), task.input_length
    cut = partial(borders, frame.n_rows, rule, input_length=length, ratios=data.ratios, source=frame.source)
    parts, complete = cut(horizon=0, percent=data.percent), cut()["train"]
    scaler = fit_scaler(frame.values[slice(*complete)], frame.names)
    notices = scaler.notices
    if frame.timestamps is None:
        notices.append("no timestamps, so the network reads no calendar features")
    tables: dict[Split, WindowTable] = {
        split: sliding_windows(
            parts[split], input_length=length, horizon=0, channels=channels, univariate=False
        )
        for split in SPLITS
    }
    made = Task(
        name=task.name,
        spec=WindowSpec(length, 0, univariate=False),
        buffer=np.concatenate([scaler.transform(frame.values), features], axis=1),
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
        task.model_copy(update={"channels": channels, "calendar": calendar}),
        scaler,
        notices=tuple(notices),
        meta={"frequency": frame.frequency},
        untrained={
            "linear interpolation": interpolate(channels),
            "mean of the window": window_mean(channels),
        },
    )


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


def apply(trained: TrainedOn, source: str | Path | pd.DataFrame) -> NewData:
    """Series with missing values, to fill them; the table has the input's rows with the gaps filled.

    Raises:
        DataError: The rows cannot be read, are too few or have other columns or timestamps; nothing is missing.
    """
    frame = read_new(trained, source, missing="keep")
    length, channels, features = trained.task.input_length, frame.n_channels, calendar_features(frame)
    known, calendar = np.isfinite(frame.values), getattr(trained.task, "calendar", 0)
    if features.shape[1] != calendar:
        what = f"has {features.shape[1]} calendar features, the model reads {calendar}"
        fix = "Give timestamps" if calendar else "Leave the timestamps out"
        raise DataError(what, where=frame.source, fix=f"{fix}, at the step of training")
    if known.all():
        what = "no value is missing, so there is nothing to fill"
        raise DataError(what, where=frame.source, fix="Leave the cells to fill empty")
    assert trained.scaler is not None
    values = scaled(trained, replace(frame, values=np.where(known, frame.values, trained.scaler.mean)))
    windows = each_step_once(np.array([0, frame.n_rows]), length)
    if not windows.table.size:
        what = f"{frame.n_rows} rows, but the model reads {length}"
        raise DataError(what, where=frame.source, fix=f"Give at least {length} rows")

    def to_table(outputs: Sums) -> pd.DataFrame:
        import pandas as pd

        filled = windows.steps(outputs["filled"])
        shown = np.where(known, frame.values, trained.scaler.invert(filled))  # type: ignore[union-attr]
        result = pd.DataFrame(shown, columns=list(frame.names))
        index = time_index(frame)
        result.insert(0, index.name, index)
        return result

    def plot(result: pd.DataFrame, note: str) -> Figure:
        before = result.copy()
        before[list(frame.names)] = frame.values
        return filled_table(before, result)

    return NewData(
        spec=WindowSpec(length, 0, univariate=False),
        buffer=np.concatenate([values, features, known.astype(np.float32)], axis=1),
        table=windows.table,
        outputs=_filled,
        to_table=to_table,
        plot=plot,
        summary=lambda result: f"{int((~known).sum()):,} missing values of {channels} series filled",
        corrupt=_ShowKnown(channels, channels + features.shape[1]),
    )


@dataclass(frozen=True)
class _ShowKnown:
    """Takes the last ``channels`` of ``[b, t, width + channels]``, 1 where known, as the mask of the first.

    Equal ones share a compiled program, so that applying a model again does not compile it again.
    """

    channels: int
    width: int

    def __call__(self, batch: Batch, keys_b: jax.Array) -> Batch:
        seen = batch.x_mask[..., : self.width].at[..., : self.channels].set(batch.x[..., self.width :] > 0)
        return batch._replace(x=batch.x[..., : self.width], x_mask=seen)


def _filled(prediction: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return {"filled": prediction}


def _network(task: ImputationSettings, network: NetworkConfig, trunk: TrunkModule) -> ImputeNetwork:
    return ImputeNetwork(
        trunk=trunk, input_length=task.input_length, channels=task.channels or 1, calendar=task.calendar or 0
    )


def _dlinear(task: ImputationSettings) -> tuple[Predict, dict]:
    channels = task.channels or 1

    def predict(frozen, trainable, x_btc, x_mask, *, dropout_keys=None):
        return masked_dlinear(frozen, trainable, x_btc[..., :channels], x_mask[..., :channels])

    return predict, init_dlinear(task.input_length, task.input_length)


# Chosen on ETTh1's validation part.
_TRAINING = {"learning_rate": 2e-3, "epochs": 10, "batch_size": 256, "schedule": "decay", "decay": 0.5}

IMPUTATION = TaskKind(
    settings=ImputationSettings,
    title="Imputation",
    prepare=prepare,
    network=_network,
    apply=apply,
    baselines=(LinearBaseline("dlinear", "DLinear", _dlinear, _TRAINING),),
)

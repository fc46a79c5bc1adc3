"""From a bundle and new rows in original units to a forecast with its timestamps, as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.data.catalog.load import CATALOG
from ofa_jax.data.frames import Frame, check_columns, read_frame
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.files import write_atomic
from ofa_jax.runs.train import Loaded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def read_input(loaded: Loaded, source: str | Path | pd.DataFrame) -> Frame:
    """New rows, read as the training data were; their columns must be the model's.

    Raises:
        DataError: The rows cannot be read, or their columns are not those of training.
        ConfigError: The bundle is of a task that forecasts nothing.
    """
    data = loaded.experiment.data
    names = _names(loaded)
    if names is None:
        return read_frame(
            source,
            timestamp_column=data.timestamp_column,
            missing=data.missing,
            timestamps=data.timestamps or "error",
        )
    entry = CATALOG.get(data.source)
    frame = read_frame(
        source,
        timestamp_column=data.timestamp_column,
        columns=names if data.columns else None,
        missing=data.missing,
        timestamps=data.timestamps or (entry.timestamps if entry else "error"),
    )
    return check_columns(frame, names)


def _names(loaded: Loaded) -> tuple[str, ...] | None:
    """The series that the model knows; None where it forecasts any series in its own units (zero_shot, short_term)."""
    task = loaded.experiment.task.name
    if task not in ("forecast", "zero_shot", "short_term"):
        raise ConfigError(
            f"this model was trained for {task}, it forecasts nothing",
            where="predict",
            fix="Use `ofa-jax evaluate`",
        )
    return loaded.names


def forecast(loaded: Loaded, frame: Frame) -> pd.DataFrame:
    """The horizon after a frame's last row, in original units.

    Args:
        loaded: The model.
        frame: At least ``task.input_length`` rows of the model's series; the last ones are read.

    Returns:
        One row per step: the timestamp under the input's own name (marked as UTC where the input had a time zone), or the step's
        number where the frame has no timestamps; and a column per series, in the model's order.

    Raises:
        DataError: Other columns than the model's, too few rows, or a frequency that does not say what comes next.
    """
    import pandas as pd

    names = _names(loaded)
    frame = frame if names is None else check_columns(frame, names)
    length, horizon = loaded.experiment.task.input_length, loaded.experiment.task.horizon
    if frame.n_rows < length:
        raise DataError(
            f"{frame.n_rows} rows, but the model reads the last {length}",
            where=frame.source,
            fix=f"Give at least {length} rows",
        )
    expected, found = loaded.record.frequency, frame.frequency
    if expected and found and expected.split("-")[0] != found.split("-")[0]:
        raise DataError(
            f"the rows are {found!r} apart, but the model was trained on steps of {expected!r}",
            where=frame.source,
            fix="Resample the rows to the model's step",
        )
    when = None if frame.timestamps is None else frame.future_timestamps(horizon)
    last = frame.values[-length:]
    x_btc = jnp.asarray(_as_float32(last, frame) if loaded.scaler is None else loaded.scaler.transform(last))[
        None
    ]
    model = loaded.model
    pred_hc = np.asarray(jax.jit(model.predict)(model.frozen, model.trainable, x_btc))[0]
    table = pd.DataFrame(
        pred_hc if loaded.scaler is None else loaded.scaler.invert(pred_hc), columns=list(frame.names)
    )
    if when is None:
        table.insert(0, _free("step", frame.names), np.arange(1, horizon + 1))
    else:
        dates = pd.DatetimeIndex(when)
        table.insert(
            0, _free(frame.time_name, frame.names), dates.tz_localize("UTC") if frame.zoned else dates
        )
    return table


def _as_float32(values: np.ndarray, frame: Frame) -> np.ndarray:
    with np.errstate(over="ignore"):
        converted = values.astype(np.float32)
    if not np.isfinite(converted).all():
        name = frame.names[int(np.argwhere(~np.isfinite(converted))[0][-1])]
        raise DataError(
            f"series `{name}` has values beyond float32's range",
            where=frame.source,
            fix="Give it in larger units",
        )
    return converted


def _free(name: str, taken: tuple[str, ...]) -> str:
    while name in taken:
        name += "_"
    return name


def write_forecast(table: pd.DataFrame, path: str | Path) -> None:
    """Write a forecast as CSV, atomically."""
    write_atomic(path, table.to_csv(index=False))


def plot_forecast(
    frame: Frame,
    table: pd.DataFrame,
    *,
    title: str,
    history: int,
    actual: np.ndarray | None = None,
    note: str = "",
) -> Figure:
    """A panel per series: the last ``history`` rows, then the forecast.

    Args:
        frame: The rows before the forecast.
        table: From :func:`forecast`.
        title: Above the panels.
        history: Rows shown before the forecast.
        actual: The values that were forecast, ``[h, c]`` in original units, where they are known.
        note: A line below the panels.
    """
    import pandas as pd

    from ofa_jax.plots import run as plots

    rows, history = len(table), min(history, frame.n_rows)
    past, ahead = np.arange(-history + 1, 1), np.arange(1, rows + 1)
    if frame.timestamps is not None:
        past, ahead = frame.timestamps[-history:], frame.future_timestamps(rows)
    after = np.full((rows, frame.n_channels), np.nan) if actual is None else actual
    values = np.concatenate([frame.values[-history:], after])
    panels = {
        name: {"time": np.concatenate([past, ahead]), "actual": values[:, index]}
        | {"forecast": np.concatenate([np.full(history, np.nan), table[name]])}
        for index, name in enumerate(frame.names)
    }
    long = pd.concat({name: pd.DataFrame(own) for name, own in panels.items()}, names=["panel"])
    return plots.forecast(long.reset_index("panel"), title=title, note=note)

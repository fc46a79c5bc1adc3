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
    """A panel per series (at most six): the last ``history`` rows, then the forecast.

    Args:
        frame: The rows before the forecast.
        table: From :func:`forecast`.
        title: Above the panels.
        history: Rows shown before the forecast.
        actual: What really came, ``[h, c]`` in original units, where it is known.
        note: A line below the panels.
    """
    from matplotlib.dates import ConciseDateFormatter
    from matplotlib.figure import Figure

    shown = min(frame.n_channels, 6)
    history = min(history, frame.n_rows)
    dated = frame.timestamps is not None
    past = frame.timestamps[-history:] if frame.timestamps is not None else np.arange(-history + 1, 1)
    ahead = frame.future_timestamps(len(table)) if dated else np.arange(1, len(table) + 1)
    figure = Figure(figsize=(10, 1.2 + 1.9 * shown), layout="constrained")
    axes = figure.subplots(shown, 1, sharex=True, squeeze=False)[:, 0]
    for index, (axis, name) in enumerate(zip(axes, frame.names[:shown], strict=True)):
        axis.plot(past, frame.values[-history:, index], color="0.35", linewidth=1, label="history")
        if actual is not None:
            axis.plot(ahead, actual[:, index], color="0.35", linewidth=1, linestyle=":", label="what came")
        joined = np.concatenate([frame.values[-1:, index], table[name].to_numpy()])
        axis.plot(
            np.concatenate([past[-1:], ahead]), joined, color="#0072b2", linewidth=1.8, label="forecast"
        )
        axis.axvline(past[-1], color="0.8", linewidth=0.8)
        axis.set_ylabel(name, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=8, frameon=False
    )
    if dated:
        axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(axes[-1].xaxis.get_major_locator()))
    else:
        axes[-1].set_xlabel("steps from the last row")
    hidden = frame.n_channels - shown
    figure.suptitle(title + (f" (first {shown} of {frame.n_channels} series)" if hidden else ""), fontsize=11)
    if note:
        figure.supxlabel(note, fontsize=8, color="0.4")
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure atomically, in the format that the file's ending names.

    Raises:
        DataError: The ending names no format that can be drawn.
    """
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    kind = Path(path).suffix.lstrip(".").lower()
    if kind not in FigureCanvasAgg.get_supported_filetypes():
        raise DataError(
            f"pictures cannot be written as {kind or 'a file without an ending'!r}",
            where=str(path),
            fix="Use .png, .svg or .pdf",
        )
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150)
    write_atomic(path, content.getvalue())

"""Long-term forecasting: univariate windows of every channel, standardized (protocol §1, §3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import DataConfig, ForecastSettings
from ofa_jax.data.calendar import fit_step
from ofa_jax.data.catalog.load import CATALOG, DatasetEntry, load
from ofa_jax.data.frames import Frame, read_frame
from ofa_jax.data.missing import count_filled, filled_notices
from ofa_jax.data.seasons import season_length, season_notices, season_of
from ofa_jax.data.splits import Borders, Scaler, Split, borders, fit_scaler
from ofa_jax.data.tables import Table
from ofa_jax.errors import ConfigError, DataError, listed
from ofa_jax.model.linear import dlinear, init_dlinear, init_nlinear, nlinear
from ofa_jax.model.networks import ForecastNetwork
from ofa_jax.model.quantiles import PretrainedForecastNetwork
from ofa_jax.plots import run as plots
from ofa_jax.tasks.base import LinearBaseline, NewData, Predict, Sums, Task, TaskData, TaskKind, TrainedOn
from ofa_jax.tasks.losses import FORECAST_LOSSES, forecast_change
from ofa_jax.tasks.metrics import forecast_metrics, forecast_sums
from ofa_jax.tasks.naive import seasonal_naive
from ofa_jax.windows.batch import Batch
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
        buffer=scaler.transform(frame.values, frame.source),
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
        timestamps=None if frame.timestamps is None else frame.local_times(),
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
    seen = "so the model sees no whole season, and seasonal naive reads the series before the window"
    more = "`ofa-jax forecast` and OneForAllForecaster read all rows that there are"
    return cycle | repeat, [f"{what}, {seen}. {more}"]


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
        raise DataError(
            what, where=frame.source, fix="Set data.season to it, or to 1 for none; or data.frequency"
        )
    return season


def read_new(trained: TrainedOn, source: Any, *, last: int | None = None, **options: Any) -> Frame:
    """New rows, read as the training data were: the model's columns where it knows them.

    ``last`` and ``options`` are those of :func:`~ofa_jax.data.frames.read_frame`.

    Raises:
        ConfigError: Settings choose other columns than the model's.
        DataError: The rows cannot be read, are too few, lack columns or have another frequency.
    """
    data, entry = trained.data, CATALOG.get(trained.data.source)
    names = None if trained.scaler is None else trained.scaler.names
    if names is not None:
        _check_choice(trained, names)
    expected, policy = trained.meta.get("frequency"), {}
    if entry is not None:
        policy = {"timestamps": entry.timestamps, "frequency": entry.frequency}
    options = policy | data.reading | dict(trained.reading) | options
    frame = read_frame(source, **options, trained_on=names, last=last, expected=expected)
    if expected and frame.timestamps is not None:
        frame = _on_step(frame, expected)
    check_rows(frame, trained.task.input_length)
    return frame


def _check_choice(trained: TrainedOn, names: Sequence[str]) -> None:
    """Refuse settings for new data that choose other columns than the model's or those of training.

    Raises:
        ConfigError: They do.
    """
    chosen, left_out = (set(trained.reading.get(name) or ()) for name in ("columns", "exclude"))
    other = chosen not in (set(), set(names), set(trained.data.columns or ()))
    for name, wrong in (("columns", other), ("exclude", bool(left_out & set(names)))):
        if wrong:
            what = f"the model reads the columns of training ({listed(names)}), no other choice"
            raise ConfigError(what, where=f"data.{name}", fix="Leave it out")


def _on_step(frame: Frame, expected: str) -> Frame:
    """The frame with the model's step, which its rows, maybe few, have to follow; of counted rows most."""
    assert frame.timestamps is not None
    clock = frame.clock
    found = fit_step(expected, frame.timestamps, clock.zone, most=clock.counted)
    if found is None:
        what = f"the rows are {frame.frequency!r} apart, but the model was trained on steps of {expected!r}"
        raise DataError(what, where=frame.source, fix="Resample the rows to the model's step")
    if clock.counted:
        return frame
    return dataclasses.replace(frame, clock=dataclasses.replace(clock, frequency=found.alias))


def check_rows(frame: Frame, length: int) -> None:
    """Refuse new data with fewer rows than the model reads.

    Raises:
        DataError: There are fewer.
    """
    if frame.n_rows < length:
        what = f"{frame.n_rows} rows, but the model reads {length}"
        raise DataError(what, where=frame.source, fix=f"Give at least {length} rows")


SMALLEST = 2.0**-76
"""A series below it (1.3e-23) loses digits in float32 pairs, whose second parts are 2^-49 of the values."""


def as_pairs(values: np.ndarray, names: Sequence[str], source: str) -> tuple[np.ndarray, np.ndarray]:
    """Values ``[T, C]`` of the series ``names`` as float32, and what that rounding leaves, float32 too.

    Raises:
        DataError: A series so small that float32 cannot compute with it.
    """
    size = np.abs(values).max(axis=0, initial=0)
    if len(wrong := np.flatnonzero((size > 0) & (size < SMALLEST))):
        largest = f"{size[wrong[0]]:g}, too small for float32 arithmetic"
        what = f"series `{names[wrong[0]]}` has values up to {largest}"
        fix = f"Use units in which its largest value is above {SMALLEST:.1g}"
        raise DataError(what, where=source, fix=fix)
    rounded = values.astype(np.float32)
    return rounded, (values - rounded).astype(np.float32)


def ahead(pred_bhc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Forecasts in the series' units, relative to the last input step."""
    assert batch.unit is not None, "windows without a scaler are relative"
    return {"prediction": forecast_change(pred_bhc, batch) * batch.unit}


def apply(trained: TrainedOn, source: str | Path | pd.DataFrame | Table) -> NewData:
    """The horizon after the last row of new series.

    The table has one row per step: its time under the input's name, in its time zone and data type, or its
    number, and a column per series in original units.

    Raises:
        DataError: Other columns than the model's, too few rows, or an unknown frequency.
    """
    frame, scaler = read_new(trained, source, last=trained.task.input_length), trained.scaler
    length, horizon = trained.task.input_length, getattr(trained.task, "horizon", 0)
    last, index = frame.values[-length:], time_index(frame, horizon)
    filled = 0 if frame.observed is None else int((~frame.observed[-length:]).sum())
    panels = partial(forecast_panels, frame, history=min(length, 3 * horizon))
    title = f"{Path(frame.source).name}: the next {horizon} steps"
    counted = "rows are counted (`timestamps: as_is`), so the forecast has numbers of steps and no times"
    undated = [] if frame.timestamps is None or frame.dated else [f"{Path(frame.source).name}: {counted}"]

    relative, residue = bool(trained.meta.get("relative")), None
    if scaler:
        buffer = scaler.transform(last, frame.source, frame.n_rows - length + 1)
    else:
        buffer, residue = as_pairs(last, frame.names, frame.source)

    def to_table(outputs: Sums) -> pd.DataFrame:
        pred_hc = outputs["prediction"][0]
        values = scaler.invert(pred_hc) if scaler else pred_hc + (last[-1] if relative else 0)
        return pd.DataFrame(values, index, list(frame.names)).reset_index()

    return NewData(
        notices=(*frame.notices, *undated),
        spec=WindowSpec(length, 0, univariate=False),
        buffer=buffer,
        residue=residue if relative else None,
        outputs=ahead if relative else None,
        table=WindowTable.of(np.zeros(1), x_valid=length),
        to_table=to_table,
        plot=lambda table, note: plots.forecast(
            panels(table), title=title, note=note, label="original units"
        ),
        summary=lambda table: (
            f"{horizon} steps of {frame.n_channels} series"
            + (f" ({filled:,} of the values they are read from were missing and filled)" if filled else "")
        ),
    )


def forecast_panels(
    frame: Frame, table: pd.DataFrame, history: int, actual: np.ndarray | None = None
) -> pd.DataFrame:
    """The last ``history`` rows and the forecast, as :func:`ofa_jax.plots.run.forecast` draws them.

    ``actual`` are the values that were forecast, ``[h, c]`` in original units, where they are known. Of
    prediction intervals (columns ``name-lo-90``, ``name-hi-90``) the widest is drawn.
    """
    rows, history, names = len(table), min(history, frame.n_rows), list(frame.names)
    time = np.arange(1 - history, rows + 1)
    if frame.dated:
        time = np.concatenate([frame.local_times()[-history:], frame.local_times(rows)])
    after = np.full((rows, len(names)), np.nan) if actual is None else actual
    before = np.full((history, len(names)), np.nan)
    drawn = {"forecast": names}
    columns = list(map(str, table))
    ends = [[name for name in columns if name.startswith(f"{names[0]}-{end}-")] for end in ("lo", "hi")]
    if all(ends):
        lower, upper = (one[at].removeprefix(names[0]) for one, at in zip(ends, (0, -1), strict=True))
        drawn |= {"lower": [name + lower for name in names], "upper": [name + upper for name in names]}
    return pd.DataFrame(
        {
            "panel": np.repeat(names, len(time)),
            "time": np.tile(time, len(names)),
            "actual": np.concatenate([frame.values[-history:], after]).ravel("F"),
            **{kind: np.concatenate([before, table[own]]).ravel("F") for kind, own in drawn.items()},
        }
    )


def time_index(frame: Frame, ahead: int | None = None) -> pd.Index:
    """Times (or numbers) of the rows, or of the ``ahead`` steps after them; its name is no series'.

    They are in the source's time zone and kind. Steps of counted rows are numbered without a frequency.

    Raises:
        DataError: Too few timestamps to continue.
    """
    times, counted = frame.timestamps, frame.clock.counter is not None
    if ahead:
        times = frame.future_timestamps(ahead) if frame.dated else None
    name = "step" if times is None and not counted else frame.time_name
    while name in frame.names:
        name += "_"
    if times is None:
        return frame.clock.numbers(frame.n_rows if ahead and counted else 0, ahead or frame.n_rows, name)
    return frame.clock.index(times, name)


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
    baselines=(
        *linear_baselines(learning_rate=1e-3, epochs=10, batch_size=256, cosine_epochs=10),
        LinearBaseline("ridge", "ridge regression", _nlinear, {}, closed_form=True),
    ),
    pretrained=PretrainedForecastNetwork,
)

"""Forecasts of a table by a pretrained trunk, without training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ofa_jax.build import Model, build_model
from ofa_jax.data.archives.tsf import long_series
from ofa_jax.data.long import LongSeries, UnequalTimes
from ofa_jax.data.tables import unpacked_name
from ofa_jax.errors import DataError
from ofa_jax.estimators.engine import forecast_experiment, forecast_windows
from ofa_jax.estimators.intervals import check_levels, interval
from ofa_jax.tasks.base import NewData, TrainedOn
from ofa_jax.tasks.forecast import read_new
from ofa_jax.tasks.table import TASKS


def forecast(
    source: str | Path | pd.DataFrame,
    horizon: int,
    *,
    level: Sequence[float] | float | None = None,
    trunk: str = "nano",
    **reading: Any,
) -> pd.DataFrame:
    """Forecast series without training, by a pretrained trunk.

    Args:
        source: A CSV, Excel or Parquet file or a DataFrame with times and a column per series.
        horizon: Steps H after the last row.
        level: Percentages of intervals by the trunk's own quantiles; for calibrated ones see
            :class:`~ofa_jax.estimators.forecaster.OneForAllForecaster`.
        trunk: A pretrained trunk: ``nano``, which comes with the package, or a folder.
        reading: Settings of how the data are read (:data:`~ofa_jax.config.tasks.READING`).

    Returns:
        A row per step, in the data's units; with levels a column ``name-lo-90`` and ``name-hi-90`` after that
        of each series. Of a long table whose series do not have the same times, and of a ``.tsf`` file, a row
        per series and step, with columns ``OneForAll``, ``OneForAll-lo-90``, ….

    Raises:
        ConfigError: The trunk was not pretrained on series, or a level is out of range.
        DataError: The data cannot be read.
    """
    levels = check_levels(level)
    given = read_zero_shot(source, horizon, trunk=trunk, **reading)
    if isinstance(given, LongSeries):
        return forecast_long(given, horizon, levels, trunk, reading.get("frequency"))[0]
    return apply_zero_shot(*given, levels)


def forecast_long(
    given: LongSeries, horizon: int, levels: Sequence[float], trunk: str, freq: str | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """The long table of :func:`forecast`, and what was inferred of the times, one line each."""
    from ofa_jax.estimators.forecaster import OneForAllForecaster  # takes long, and tables need none of it

    model = OneForAllForecaster(horizon, trunk=trunk, freq=freq, id_col=given.series, time_col=given.time)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = model.predict(given.frame, level=levels or None)
    return table, [str(one.message) for one in caught]


def read_zero_shot(
    source: str | Path | pd.DataFrame, horizon: int, *, trunk: str = "nano", **reading: Any
) -> tuple[Model, NewData] | LongSeries:
    """A pretrained trunk as a model, and new data laid out for it, or series for :func:`forecast_long`."""
    if not isinstance(source, pd.DataFrame) and unpacked_name(Path(source)).endswith(".tsf"):
        return long_series(source, missing=reading.get("missing", "error"))
    experiment = forecast_experiment(trunk, "auto", horizon, "output", adapters={}, train={})
    name = "a table" if isinstance(source, pd.DataFrame) else str(source)
    experiment, context = experiment.replace({"data.source": name}), experiment.task.input_length
    row, meta = TASKS["forecast"], {"relative": True}
    some = experiment.task.model_copy(update={"input_length": 1})
    trained = TrainedOn(some, experiment.data, None, meta, reading)
    try:
        rows = read_new(trained, source, last=context).n_rows
    except UnequalTimes as error:
        return error.read()
    task = some.model_copy(update={"input_length": min(rows, context)})
    return build_model(experiment), row.apply(replace(trained, task=task), source)


def apply_zero_shot(model: Model, new: NewData, levels: Sequence[float] = ()) -> pd.DataFrame:
    """The table of :func:`forecast` for data that were read."""
    assert new.residue is not None
    inputs_ct = (new.buffer.astype(np.float64) + new.residue).T
    missing = model.network.input_length - inputs_ct.shape[1]
    made = forecast_windows(model, np.pad(inputs_ct, ((0, 0), (missing, 0)), constant_values=np.nan))
    table = new.to_table({"prediction": (made.mean - inputs_ct[:, -1:]).T[None]})
    if not levels:
        return table
    ends = {level: interval(made.levels, level, None) for level in levels}
    columns: dict[Any, Any] = {table.columns[0]: table.iloc[:, 0]}
    for number, name in enumerate(table.columns[1:]):
        columns[name] = table[name]
        for level in reversed(levels):
            columns[f"{name}-lo-{level:g}"] = ends[level][0][number]
        for level in levels:
            columns[f"{name}-hi-{level:g}"] = ends[level][1][number]
    if len(columns) < 1 + len(inputs_ct) * (1 + 2 * len(levels)):
        raise DataError("a series has the name of an interval of another", fix="Rename the column")
    return pd.DataFrame(columns)

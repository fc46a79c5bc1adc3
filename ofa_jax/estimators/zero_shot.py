"""Forecasts of files and tables by a pretrained trunk, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from ofa_jax.build import Model, build_model
from ofa_jax.data.ambiguous import refuse_kinds_of_times
from ofa_jax.data.archives.tsf import long_series
from ofa_jax.data.long import UnequalTimes, time_cells
from ofa_jax.data.tables import Table, unpacked_name
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.estimators.engine import Forecast, forecast_experiment, forecast_windows
from ofa_jax.estimators.intervals import check_levels, interval
from ofa_jax.tasks.base import NewData, TrainedOn
from ofa_jax.tasks.forecast import apply, read_new

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALIAS = "OneForAll"
"""The column of the forecast where a row is of one series."""


class ZeroShot(NamedTuple):
    """A forecast of a file or table.

    Attributes:
        table: As :func:`forecast` gives it.
        notices: What reading inferred, one line each.
        summary: What the table holds, in words.
        plot: Draws the table, with a note; None where series do not have the same times.
    """

    table: pd.DataFrame
    notices: tuple[str, ...]
    summary: str
    plot: Callable[[str], Figure] | None


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
        source: A CSV, Excel, Parquet or ``.tsf`` file or a DataFrame, with times and a column per series, or
            a row per series and time.
        horizon: Steps H after the last row of a series.
        level: Percentages of intervals by the trunk's own quantiles; for calibrated ones see
            :class:`~ofa_jax.estimators.forecaster.OneForAllForecaster`.
        trunk: A pretrained trunk: ``nano``, which comes with the package, or a folder.
        reading: Settings of how the data are read (:data:`~ofa_jax.config.tasks.READING`).

    Returns:
        A row per step, in the data's units; with levels a column ``name-lo-90`` and ``name-hi-90`` after that
        of each series. If the series of a long table have different times, or the file is a ``.tsf``: a row
        per series and step, with columns ``OneForAll``, ``OneForAll-lo-90``, ….

    Raises:
        ConfigError: The trunk was not pretrained on series, or a level is out of range.
        DataError: The data cannot be read.
    """
    return zero_shot(source, horizon, levels=check_levels(level), trunk=trunk, reading=reading).table


def zero_shot(
    source: str | Path | pd.DataFrame,
    horizon: int,
    *,
    levels: Sequence[float] = (),
    trunk: str = "nano",
    reading: Mapping[str, Any] | None = None,
) -> ZeroShot:
    """As :func:`forecast`, with notices, a summary and a picture."""
    reading = reading or {}
    if not isinstance(source, pd.DataFrame) and unpacked_name(Path(source)).endswith(".tsf"):
        return _of_archive(source, horizon, levels, trunk, reading)
    experiment = forecast_experiment(trunk, "auto", horizon, "output", adapters={}, train={})
    name = "a table" if isinstance(source, pd.DataFrame) else str(source)
    experiment = experiment.replace({"data.source": name})
    trained = TrainedOn(experiment.task, experiment.data, None, {"relative": True}, reading)
    try:
        new, parts, column, unused = [_read(trained, source)], [], "", ""
    except UnequalTimes as error:
        parts, column, unused = error.parts(), error.column, error.unused
        if "timestamp_format" not in reading and reading.get("timestamps") != "as_is":
            refuse_kinds_of_times([time_cells(part.table, [0]) for part in parts], name)
        own = {name: value for name, value in reading.items() if name not in _OF_LONG_TABLES}
        new = [_read(replace(trained, reading=own), part.table) for part in parts]
    tables = _tables(build_model(experiment), new, levels)
    if not parts:
        (one,), (table,) = new, tables
        return ZeroShot(table, one.notices, one.summary(table), lambda note: one.plot(table, note))
    _check_names([column, tables[0].columns[0]], levels)
    named = [_of_one(part.series, column, table) for part, table in zip(parts, tables, strict=True)]
    used = (
        f"{Path(name).name}: a long table of {len(parts):,} series, named by `{column}`, of different times"
    )
    about = dict.fromkeys(notice for one in new for notice in one.notices if " 1 series (" not in notice)
    notices = (used + unused, *list(about)[:_MOST_NOTICES])
    return ZeroShot(pd.concat(named, ignore_index=True), notices, _count(len(parts), horizon), None)


_MOST_NOTICES = 5
_OF_LONG_TABLES = ("columns", "exclude", "timestamp_column")
"""Settings that choose among the columns of a long table, and so are not read of its parts."""


def _read(trained: TrainedOn, source: str | Path | pd.DataFrame | Table) -> NewData:
    """New data of as many steps as the trunk reads, or as there are."""
    context = trained.task.input_length
    some = trained.task.model_copy(update={"input_length": 1})
    rows = read_new(replace(trained, task=some), source, last=context).n_rows
    task = some.model_copy(update={"input_length": min(rows, context)})
    return apply(replace(trained, task=task), source)


def _tables(model: Model, new: Sequence[NewData], levels: Sequence[float]) -> list[pd.DataFrame]:
    """The forecast of each, all by one call."""
    context, inputs = model.network.input_length, []
    for one in new:
        assert one.residue is not None
        values_ct = (one.buffer.astype(np.float64) + one.residue).T
        missing = context - values_ct.shape[1]
        inputs.append(np.pad(values_ct, ((0, 0), (missing, 0)), constant_values=np.nan))
    made = forecast_windows(model, np.concatenate(inputs))
    ends = np.cumsum([len(part) for part in inputs])[:-1]
    parts = zip(np.split(made.levels, ends), np.split(made.mean, ends), strict=True)
    return [
        _table(one, Forecast(*part), inputs_ct[:, -1:], levels)
        for one, part, inputs_ct in zip(new, parts, inputs, strict=True)
    ]


def _table(new: NewData, made: Forecast, last_c1: np.ndarray, levels: Sequence[float]) -> pd.DataFrame:
    table = new.to_table({"prediction": (made.mean - last_c1).T[None]})
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
    if len(columns) < 1 + len(last_c1) * (1 + 2 * len(levels)):
        raise DataError("a series has the name of an interval of another", fix="Rename the column")
    return pd.DataFrame(columns)


def _of_one(series: Any, column: str, table: pd.DataFrame) -> pd.DataFrame:
    """The table of one series with columns of any."""
    _, name, *ends = table.columns
    table = table.rename(columns={name: ALIAS} | {end: f"{ALIAS}{end[len(name) :]}" for end in ends})
    table.insert(0, column, series)
    return table


def _check_names(names: Sequence[str], levels: Sequence[float]) -> None:
    made = [ALIAS, *(f"{ALIAS}-{end}-{level:g}" for level in levels for end in ("lo", "hi"))]
    if taken := [name for name in names if name in made]:
        raise DataError(f"`{taken[0]}` is a column of forecasts", fix="Rename the column")


def _count(series: int, horizon: int) -> str:
    return f"{horizon} steps of {series:,} series"


def _of_archive(
    source: str | Path, horizon: int, levels: Sequence[float], trunk: str, reading: Mapping[str, Any]
) -> ZeroShot:
    """All series of a ``.tsf`` file."""
    from ofa_jax.estimators.forecaster import OneForAllForecaster  # takes long, and tables need none of it

    if wrong := [name for name in reading if name != "missing"]:
        what = "a .tsf file says itself how it is read"
        raise ConfigError(what, where=f"data.{wrong[0]}", fix="Leave it out; data.missing alone is read")
    given = long_series(source, missing=reading.get("missing", "error"))
    model = OneForAllForecaster(horizon, trunk=trunk, freq=1, id_col="series", time_col="step")
    table = model.predict(given.frame, level=levels or None)
    if given.times_after is not None:
        table["step"] = given.times_after(horizon)
        table = table.rename(columns={"step": "time"})
    return ZeroShot(table, given.notices, _count(len(table) // horizon, horizon), None)

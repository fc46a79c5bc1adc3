"""Known covariates: what calendar and given columns say of the errors of forecasts, by ridge regression.

A column enters twice: its value at a step ahead less its mean over what the forecast reads, and less its
value a season before. Both are in units of the column's spread, targets in units of the window's, so that one
kernel serves all series and steps. It is fitted on errors of the zero-shot forecast, which has seen no value
of the data; errors of the final forecast on the validation part choose its penalty and how much of it is
added, which may be nothing (:mod:`ofa_jax.runs.reduced_rank`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ofa_jax.build import Model
from ofa_jax.errors import ConfigError, DataError, listed, shorten
from ofa_jax.estimators.engine import Forecast, Places, forecast_windows
from ofa_jax.estimators.panel import Panel
from ofa_jax.estimators.reading import covariate_values, ids_in, table_of, times_of
from ofa_jax.runs.reduced_rank import Moments, Windows, choose

_AT_ONCE = 256  # windows
_LEAST_SPREAD = 1e-9


@dataclass(frozen=True, eq=False)
class Effects:
    """A fitted kernel.

    Attributes:
        spread: Of each column, ``[k]`` float32; 0 where it is constant, and the column is not used.
        kernel: Of the used columns, twice, float32; in units of the window's spread.
        names: Of the columns, without those of the calendar.
        calendar: Whether these are among them.
        penalty: Multiple of the mean eigenvalue that validation chose.
        share: How much of the kernel was taken, 0 to 1.
        before, after: MSE on validation without and with it, in units of the windows' spreads.
    """

    spread: np.ndarray
    kernel: np.ndarray
    names: tuple[str, ...]
    calendar: bool
    penalty: float
    share: float
    before: float
    after: float

    @property
    def of(self) -> tuple[tuple[str, ...], bool]:
        """Names of the covariates, and whether those of the calendar are among them."""
        return self.names, self.calendar

    def added_to(self, made: Forecast, panel: Panel, places: Places, length: int) -> Forecast:
        """Forecasts with the effects of the panel's covariates."""
        if not self.kernel.any():
            return made
        change = np.empty_like(made.mean)
        for first in range(0, len(change), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            own = Places(places.series[part], places.cut[part])
            x = _features(panel, own, length, change.shape[1], self.spread)
            change[part] = window_spread(panel, own, length)[:, None] * (x @ self.kernel)
        return Forecast(made.levels + change[..., None], made.mean + change)


def fit_effects(
    panel: Panel,
    zero_shot: Model,
    final: Model,
    horizon: int,
    parts: Mapping[str, Places],
    names: Sequence[str],
    *,
    calendar: bool,
) -> Effects:
    """Effects of a panel's covariates on forecasts.

    Args:
        panel: The series with their covariates.
        zero_shot: Whose errors on training windows are explained.
        final: To whose forecasts the effects are added.
        horizon: Steps ahead.
        parts: Windows of ``train`` and ``validation``.
        names: Of the covariates, without those of the calendar.
        calendar: Whether these are among them.

    Raises:
        DataError: No covariate changes.
    """
    values, length = panel.covariates, final.network.input_length
    assert values is not None
    spread = values.std(axis=0)
    spread = np.where(spread > _LEAST_SPREAD * np.abs(values).max(axis=0), spread, 0).astype(np.float32)
    if not spread.any():
        what = f"no covariate changes: {listed(list(names))}"
        raise DataError(what, where="covariates", fix="Leave them out")
    pairs = []
    for split, model in (("train", zero_shot), ("validation", final)):
        places, found = parts[split], []
        for first in range(0, len(places.cut), _AT_ONCE):
            own = Places(*(part[first : first + _AT_ONCE] for part in places))
            x = _features(panel, own, length, horizon, spread)
            unit = window_spread(panel, own, length)[:, None]
            lack = panel.after(*own, horizon) - forecast_windows(model, panel.before(*own, length)).mean
            known = np.isfinite(lack) & (unit > 0)
            found.append((x[known], (lack / np.where(unit > 0, unit, 1))[known][:, None]))
        pairs.append([np.concatenate(part) for part in zip(*found, strict=True)])
    (x, y), other = pairs[0], Windows(*pairs[1])
    made = choose(Moments(x.T @ x, x.T @ y, float(np.sum(y * y)), len(y)), other, 1, spans=1)
    kernel = (made.a @ made.b)[:, 0].astype(np.float32)
    lacks = other.y[:, 0], other.y[:, 0] - other.x @ kernel
    before, after = (float(np.sum(lack**2)) / max(len(lack), 1) for lack in lacks)
    return Effects(
        spread, kernel, tuple(names), calendar, made.choice.penalty, made.choice.step, before, after
    )


def window_spread(panel: Panel, places: Places, length: int) -> np.ndarray:
    """Standard deviation of the known values that each forecast reads, ``[w]``; 0 where there are none."""
    read = panel.before(*places, length)
    known = np.isfinite(read)
    count = np.maximum(known.sum(axis=1), 1)
    mean = np.where(known, read, 0).sum(axis=1) / count
    apart = np.where(known, read - mean[:, None], 0)
    found = np.sqrt((apart**2).sum(axis=1) / count)
    return np.where(found > _LEAST_SPREAD * np.where(known, np.abs(read), 0).max(axis=1), found, 0)


def _features(panel: Panel, places: Places, length: int, horizon: int, spread: np.ndarray) -> np.ndarray:
    """``[w, h, …]``: each used column ahead less its mean before, then less its value a season before."""
    (series, cut), used = places, spread > 0

    def at(steps: np.ndarray) -> np.ndarray:
        return panel.covariates_at(series, np.maximum(cut[:, None] + steps, 0))[..., used] / spread[used]

    ahead = at(np.arange(horizon))
    read = cut[:, None] - length + np.arange(length)
    inside, past = (read >= 0)[..., None], at(np.arange(-length, 0))
    mean = np.where(inside, past, 0).sum(axis=1, keepdims=True) / np.maximum(inside.sum(axis=1), 1)[:, None]
    season = panel.season
    lag = np.arange(horizon) % season - season
    before = np.where((cut[:, None] + lag >= 0)[..., None], at(lag), mean)
    return np.concatenate([ahead - mean, ahead - before], axis=2)


def with_calendar(panel: Panel) -> Panel:
    """A panel that has month, weekday and hour of its rows among its covariates."""
    found = [] if panel.covariates is None else [panel.covariates]
    return replace(panel, covariates=np.concatenate([*found, _calendar(panel, panel.times)], axis=1))


def _calendar(panel: Panel, times: np.ndarray) -> np.ndarray:
    """Which month, weekday and hour times are in, ``[rows, 43]`` of 0 and 1."""
    if times.dtype.kind == "i":
        what = "times are integers, which have no calendar"
        raise ConfigError(what, where="calendar", fix="Set it to False, or give dates")
    index = pd.DatetimeIndex(panel.clock.index(times, "t"))
    parts = ((index.month - 1, 12), (index.day_of_week, 7), (index.hour, 24))
    return np.concatenate([np.eye(size)[np.asarray(part)] for part, size in parts], axis=1)


def future_covariates(
    panel: Panel, frame: Any, names: Sequence[str], steps: int, *, calendar: bool
) -> np.ndarray:
    """The columns for the ``steps`` after each series' last row, ``[n, h, k]``.

    Raises:
        DataError: A row is missing, or one is there that is not among them.
    """
    times = panel.times_after(steps)
    found = []
    if names:
        if frame is None:
            what = f"futr_df is missing, with {listed(list(names))} in the next {steps} steps"
            raise DataError(what, fix="Take make_future_dataframe() and add the columns")
        found.append(_read_future(panel, frame, names, times))
    if calendar:
        found.append(_calendar(panel, times.ravel()).reshape(*times.shape, -1))
    return np.concatenate(found, axis=2)


def _read_future(panel: Panel, frame: Any, names: Sequence[str], times: np.ndarray) -> np.ndarray:
    columns = panel.columns
    table = table_of(frame, columns)
    needed = [columns.id] * (columns.id in panel.like.columns) + [columns.time, *names]
    if missing := [name for name in needed if name not in table.columns]:
        raise DataError(f"futr_df has no column {listed(missing)}", fix="Add it")
    codes, ids = ids_in(table, columns)
    series = panel.ids.get_indexer(ids)[codes]
    if len(wrong := np.flatnonzero(series < 0)):
        what = f"futr_df has the series {shorten(ids[codes[wrong[0]]])}, which is not forecast"
        raise DataError(what, fix="Leave it out")
    when, clock = times_of(table[columns.time], columns.time)
    if when.dtype.kind != times.dtype.kind or (clock.zone is None) != (panel.clock.zone is None):
        what = f"`{columns.time}` of futr_df is of another kind than that of the series"
        raise DataError(what, fix="Take make_future_dataframe() and add the columns")
    values = covariate_values(table, names, "futr_df")
    unit = np.promote_types(times.dtype, when.dtype)
    asked = (np.repeat(np.arange(panel.n), times.shape[1]), times.ravel().astype(unit))
    wanted, given = map(pd.MultiIndex.from_arrays, (asked, (series, when.astype(unit))))
    if given.has_duplicates:
        what = f"futr_df has a step of series {shorten(panel.ids[series[given.duplicated().argmax()]])} twice"
        raise DataError(what, fix="Give each once")
    place = given.get_indexer(wanted)
    if (lacking := place < 0).any():
        number, step = divmod(int(lacking.argmax()), times.shape[1])
        what = f"futr_df has no row for series {shorten(panel.ids[number])} at {times[number, step]}"
        raise DataError(f"{what} ({int(lacking.sum())} rows in all)", fix="Take make_future_dataframe()")
    if len(given) > len(wanted):
        row = int((wanted.get_indexer(given) < 0).argmax())
        what = f"futr_df has series {shorten(panel.ids[series[row]])} at {when[row]}, which is not forecast"
        raise DataError(what, fix=f"Give the {times.shape[1]} steps after each series' last row")
    return values[place].reshape(*times.shape, -1)

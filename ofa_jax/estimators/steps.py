"""A value for every step of a panel: windows to train on, windows that cover all steps, and their mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
import pandas as pd

from ofa_jax.build import Model
from ofa_jax.data.splits import RESOLUTION, Scaler
from ofa_jax.errors import ConfigError, DataError, shorten
from ofa_jax.estimators.adapted import Adapted
from ofa_jax.estimators.base import is_whole
from ofa_jax.estimators.engine import LEAST, forecast_windows, places
from ofa_jax.estimators.panel import Panel
from ofa_jax.tasks.base import Task
from ofa_jax.tasks.losses import squared_error
from ofa_jax.tasks.metrics import forecast_metrics, forecast_sums
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.table import WindowSpec, WindowTable

MOST = {"train": 2048, "validation": 512}
"""Windows that are drawn from all of a split, at most."""
OVERLAP = 4
"""Windows that cover a step; its value is their mean."""
READ = 2
"""Horizons at the beginning of a series that are only read: forecasts of less find too much unusual."""
_FARTHEST = 1e4
"""Standard deviations; the network reads no larger values."""
_SMALLEST = 1e-30
_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Steps:
    """A panel as windows of a network read it.

    Attributes:
        panel: The series.
        scaler: Their levels and spreads, in the panel's order.
    """

    panel: Panel
    scaler: Scaler

    @cached_property
    def known(self) -> np.ndarray:
        """Whether a value is there, ``[rows]``."""
        return np.isfinite(self.panel.values)

    @property
    def standardized(self) -> np.ndarray:
        """The values ``[rows]`` float64 in their series' standard deviations; 0 where missing."""
        series = self.panel.series
        apart = np.where(self.known, self.panel.values - self.scaler.mean[series], 0)
        return apart / self.scaler.std[series]

    def task(self, length: int, corrupt: Callable[[Batch, jax.Array], Batch] | None = None) -> Task:
        """A task over windows of ``length`` steps, without any yet."""
        values = np.clip(self.standardized, -_FARTHEST, _FARTHEST).astype(np.float32)[:, None]
        return Task(
            spec=WindowSpec(length, 0, univariate=False, hide_filled=True),
            buffer=values,
            observed=self.known[:, None],
            tables={},
            loss=squared_error,
            sums=forecast_sums,
            metrics=forecast_metrics,
            objective="mse",
            corrupt=corrupt,
        )

    def training(self, length: int, share: float, corrupt: Any, seed: int) -> Task:
        """The task on windows that end before the last ``share`` of each series; those at its end validate.

        Raises:
            DataError: No series is long enough.
        """
        steps = self.panel.lengths
        held_out = np.maximum(1, np.round(share * steps).astype(int))
        fitted = steps - held_out
        least = np.minimum(LEAST, length)
        last = {"train": fitted, "validation": np.where(fitted >= least, steps, 0)}
        first = {
            "train": np.maximum(np.minimum(fitted, length), least),
            "validation": np.minimum(fitted + length, steps),
        }
        cuts = {
            split: places(self.panel, first[split], last[split], MOST[split], seed)
            for split in ("train", "validation")
        }
        if not len(cuts["train"].cut):
            longest = int(steps.max())
            what = f"the longest series has {longest} steps; without those held out, training reads {least}"
            raise DataError(what, fix="Give longer series")
        tables: Any = {split: self._windows(*found, length) for split, found in cuts.items()}
        return replace(self.task(length, corrupt), tables=tables)

    def mean(self, adapted: Adapted, length: int) -> np.ndarray:
        """The network's value of every step in original units, ``[rows]`` float64."""
        stride = max(1, length // OVERLAP)
        ends = [np.append(np.arange(length, steps, stride), steps) for steps in self.panel.lengths.tolist()]
        series = np.repeat(np.arange(self.panel.n), [len(end) for end in ends])
        table = self._windows(series, np.concatenate(ends), length)
        found = adapted.apply(self.task(length), table)["prediction"][..., 0].astype(np.float64)
        at = table.first[:, None] + table.x_valid[:, None] - length + np.arange(length)
        inside = np.arange(length) >= length - table.x_valid[:, None]
        rows, size = at[inside], len(self.panel.values)
        mean = np.bincount(rows, found[inside], size) / np.bincount(rows, minlength=size)
        return mean * self.scaler.std[self.panel.series] + self.scaler.mean[self.panel.series]

    def _windows(self, series: np.ndarray, cut: np.ndarray, length: int) -> WindowTable:
        """The windows that end before step ``cut[w]`` of ``series[w]``."""
        read = np.minimum(cut, length)
        return WindowTable.of(self.panel.first[series] + cut - read, x_valid=read)


def forecast_steps(model: Model, panel: Panel) -> np.ndarray:
    """The mean of the forecasts of every step, ``[rows]`` float64; NaN where there is none.

    Forecasts begin every quarter of the horizon, the first after :data:`READ` horizons.
    """
    length, horizon = model.network.input_length, model.network.horizon
    stride, size = max(1, horizon // OVERLAP), len(panel.values)
    cuts = [np.arange(READ * horizon, steps, stride) for steps in panel.lengths.tolist()]
    all_series, all_cuts = np.repeat(np.arange(panel.n), [len(one) for one in cuts]), np.concatenate(cuts)
    total, count = np.zeros(size), np.zeros(size)
    for begin in range(0, len(all_cuts), _AT_ONCE):
        series, cut = (column[begin : begin + _AT_ONCE] for column in (all_series, all_cuts))
        inputs = panel.before(series, cut, length)
        some = np.isfinite(inputs).any(axis=1)
        if some.any():
            series, cut = series[some], cut[some]
            found = forecast_windows(model, inputs[some]).mean
            at = cut[:, None] + np.arange(horizon)
            inside = at < panel.lengths[series][:, None]
            rows = (panel.first[series][:, None] + at)[inside]
            total += np.bincount(rows, found[inside], size)
            count += np.bincount(rows, minlength=size)
    return np.divide(total, count, out=np.full(size, np.nan), where=count > 0)


def spread_of(panel: Panel) -> Scaler:
    """Mean and standard deviation of each series; of one without spread, its size or 1.

    Raises:
        DataError: A spread is too small for float32, or two series have one name.
    """
    known, series = np.isfinite(panel.values), panel.series
    names = tuple(str(name) for name in panel.ids)
    if len(set(names)) < len(names):
        twice = pd.Index(names)[pd.Index(names).duplicated()][0]
        raise DataError(f"two series are called {shorten(twice)}, as text", fix="Rename one")
    count = np.bincount(series, known, panel.n)
    mean = np.bincount(series, np.where(known, panel.values, 0), panel.n) / count
    apart = np.where(known, panel.values - mean[series], 0)
    std = np.sqrt(np.bincount(series, apart**2, panel.n) / count)
    size = np.zeros(panel.n)
    np.maximum.at(size, series, np.where(known, np.abs(panel.values), 0))
    flat = std <= RESOLUTION * size
    std = np.where(flat, np.where(size > 0, size, 1), std)
    if len(small := np.flatnonzero(std < _SMALLEST)):
        what = f"series {shorten(names[small[0]])} varies by {std[small[0]]:g}, too little for float32"
        raise DataError(what, fix="Give it in other units")
    constant = tuple(name for name, one in zip(names, flat, strict=True) if one)
    return Scaler(mean, std, names, constant)


def length_of(given: Any, positions: int, most: int, *, least: int = 2) -> int:
    """The input length of a parameter: ``auto`` is ``most``, or what the trunk has positions for.

    Raises:
        ConfigError: It is out of range.
    """
    length = min(most, positions) if given == "auto" else given
    if not is_whole(length) or not least <= length <= positions:
        what = f"input_length is {given!r}, and the trunk has {positions} positions"
        raise ConfigError(what, fix=f"Give {least} to {positions} steps, or 'auto'")
    return int(length)

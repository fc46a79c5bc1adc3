"""Data frames as panels: many series of unequal length, checked, and results as frames of the same kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import pandas as pd

from ofa_jax.data.calendar import Step, following
from ofa_jax.data.clock import Clock
from ofa_jax.data.seasons import season_of
from ofa_jax.errors import DataError, listed


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a long frame."""

    id: str = "unique_id"
    time: str = "ds"
    target: str = "y"


@dataclass(frozen=True, eq=False)
class Panel:
    """Series one after the other, each ordered by time and without gaps in it.

    Attributes:
        ids: ``[n]``, in the order of their first row.
        first: Row at which each begins, and the number of rows, ``[n + 1]``.
        values: ``[rows]`` float64, NaN where missing.
        times: ``[rows]`` int64, or datetime64 in UTC where there is a time zone.
        steps: Their steps between rows, mostly one.
        rows: The row of the source that each was, ``[rows]``; of a wide frame those of each column.
        step_of: Index into ``steps`` of each series, ``[n]``.
        columns: Names for frames that are made of it.
        clock: How the source writes times.
        like: The source's empty frame, whose library and types results have.
        covariates: Columns that are known ahead, ``[rows, k]``.
        ahead: These columns in the steps after each series' last, ``[n, h, k]``.
    """

    ids: pd.Index
    first: np.ndarray
    values: np.ndarray
    times: np.ndarray
    steps: tuple[Step, ...]
    step_of: np.ndarray
    rows: np.ndarray
    columns: Columns
    clock: Clock
    like: nw.DataFrame[Any]
    covariates: np.ndarray | None = None
    ahead: np.ndarray | None = None

    @property
    def n(self) -> int:
        """Number of series."""
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each series, ``[n]``."""
        return np.diff(self.first)

    @cached_property
    def series(self) -> np.ndarray:
        """The series of each row, ``[rows]``."""
        return np.repeat(np.arange(self.n), self.lengths)

    @property
    def frequency(self) -> str:
        """The alias of the step; of several, the one that most series have."""
        return self.steps[np.bincount(self.step_of).argmax()].alias

    @property
    def season(self) -> int:
        """Steps of the usual cycle of the frequency; 1 where there is none."""
        return season_of(self.frequency) or 1

    def before(self, series: np.ndarray, cut: np.ndarray, length: int) -> np.ndarray:
        """The ``length`` values before step ``cut[w]`` of ``series[w]``, ``[w, length]``."""
        at = cut[:, None] - length + np.arange(length)
        return self._at(series, at)

    def after(self, series: np.ndarray, cut: np.ndarray, horizon: int) -> np.ndarray:
        """The ``horizon`` values from step ``cut[w]`` of ``series[w]`` on, ``[w, horizon]``."""
        return self._at(series, cut[:, None] + np.arange(horizon))

    def _at(self, series: np.ndarray, at: np.ndarray) -> np.ndarray:
        inside = (at >= 0) & (at < self.lengths[series][:, None])
        rows = self.first[series][:, None] + np.where(inside, at, 0)
        return np.where(inside, self.values[rows], np.nan)

    def covariates_at(self, series: np.ndarray, at_wt: np.ndarray) -> np.ndarray:
        """Covariates of steps ``at[w, t]``, which are not negative, of ``series[w]``, ``[w, t, k]``."""
        assert self.covariates is not None
        length = self.lengths[series][:, None]
        found = self.covariates[self.first[series][:, None] + np.minimum(at_wt, length - 1)]
        if (beyond := at_wt >= length).any():
            assert self.ahead is not None
            step = np.where(beyond, at_wt - length, 0)
            found = np.where(beyond[..., None], self.ahead[series[:, None], step], found)
        return found

    def until(self, cut: np.ndarray) -> Panel:
        """The first ``cut[n]`` steps of each series; those without any are left out."""
        kept = np.flatnonzero(cut > 0)
        steps = np.minimum(cut, self.lengths)[kept]
        inside = np.arange(len(self.values)) - self.first[self.series] < cut[self.series]
        return replace(
            self,
            ids=self.ids[kept],
            first=np.concatenate([[0], np.cumsum(steps)]),
            values=self.values[inside],
            times=self.times[inside],
            rows=self.rows[inside],
            step_of=self.step_of[kept],
            covariates=None if self.covariates is None else self.covariates[inside],
            ahead=None,
        )

    def last(self, length: int) -> Panel:
        """The last ``length`` steps of each series."""
        kept = np.arange(len(self.values)) >= (self.first[1:] - length)[self.series]
        steps = np.minimum(self.lengths, length)
        first = np.concatenate([[0], np.cumsum(steps)])
        names = ("values", "times", "rows", *["covariates"] * (self.covariates is not None))
        return replace(self, first=first, **{name: getattr(self, name)[kept] for name in names})

    def seasonal_change(self, cut: np.ndarray) -> np.ndarray:
        """The mean size of changes over a season in the first ``cut[n]`` steps of each series, ``[n]``.

        NaN where there are none; of series whose season is longer, over one step.
        """
        found = np.full(self.n, np.nan)
        place = np.arange(len(self.values)) - self.first[self.series]
        for lag in (1, self.season):
            apart = np.full(len(self.values), np.nan)
            apart[lag:] = np.abs(self.values[lag:] - self.values[:-lag])
            counted = np.isfinite(apart) & (place >= lag) & (place < cut[self.series])
            count = np.bincount(self.series, counted, self.n)
            total = np.bincount(self.series, np.where(counted, apart, 0), self.n)
            found = np.where(count > 0, total / np.maximum(count, 1), found)
        return found

    def times_after(self, horizon: int) -> np.ndarray:
        """The ``horizon`` times after each series' last, ``[n, horizon]``.

        Raises:
            DataError: They lie beyond the year 9999.
        """
        last = self.times[self.first[1:] - 1]
        pairs = np.stack([last.astype(np.int64), self.step_of], axis=1)
        _, one, of_series = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        zone = self.clock.zone
        made = [following(last[at : at + 1], self.steps[self.step_of[at]], horizon, zone) for at in one]
        return np.stack(made)[of_series.ravel()]

    def to_frame(self, series: np.ndarray, times: np.ndarray, values: Mapping[str, np.ndarray]) -> Any:
        """Rows as a frame of the source's library and types.

        Args:
            series: The series of each row, ``[rows]``.
            times: ``[rows]``.
            values: Further columns by name, ``[rows]`` each.
        """
        names = self.columns
        when = times if times.dtype.kind == "i" else self.clock.index(times, names.time)
        table = pd.DataFrame({names.id: self.ids.take(series), names.time: when, **values})
        if self.like.implementation.is_pandas():
            kinds = nw.to_native(self.like).dtypes
            return table.astype({name: kinds[name] for name in table.columns if name in kinds})
        import pyarrow as pa

        made = nw.from_arrow(
            pa.Table.from_pandas(table, preserve_index=False), backend=self.like.implementation
        )
        known = {name: kind for name, kind in self.like.schema.items() if name in table.columns}
        return nw.to_native(made.with_columns(nw.col(name).cast(kind) for name, kind in known.items()))


def check_names(given: Sequence[str]) -> None:
    """Refuse names of columns that are equal or no texts.

    Raises:
        DataError: There are some.
    """
    if not all(isinstance(name, str) and name for name in given):
        raise DataError(f"names of columns are {listed([str(name) for name in given])}", fix="Give texts")
    if len(set(given)) < len(given):
        raise DataError(
            f"columns have one name: {listed(list(given))}", fix="Give id, time and target different ones"
        )

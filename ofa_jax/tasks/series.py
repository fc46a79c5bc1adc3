"""Forecasting of many single series by one model: transfer to another collection (zero-shot), and the M4 competition (short-term).

Series are read in their own units, one window each for validation and test; they differ in length, so short inputs are padded at their
start and missing targets are masked (protocol §2, §3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ofa_jax.config import DataConfig, Protocol, TaskConfig
from ofa_jax.data.archives import SeriesCollection
from ofa_jax.data.catalog import CATALOG, DatasetEntry, load, load_collection
from ofa_jax.data.splits import Split
from ofa_jax.data.windows import Batch, WindowSpec, WindowTable, lay_end_to_end
from ofa_jax.errors import DataError
from ofa_jax.tasks.base import Score, Sums, Task, TaskData, whole_batches
from ofa_jax.tasks.losses import FORECAST_LOSSES
from ofa_jax.tasks.metrics import mean_scaled_error, naive_scale, series_metrics, series_sums
from ofa_jax.tasks.naive2 import naive2

Naive = Callable[[np.ndarray, int, int], np.ndarray]
"""``naive(insample, season, horizon) -> [h]``."""


def prepare_zero_shot(data: DataConfig, task: TaskConfig, *, protocol: Protocol = "strict", batch_size: int = 1) -> TaskData:
    """Training and validation windows of ``data.source``, test windows of ``data.target``, one model.

    Of a source series of n steps the last H are set aside (its own test part), the H before them are its validation target, and every
    window of L + H steps before those trains; ``data.percent`` keeps the first part of them. A target series is forecast over its
    last H steps from the L before.

    Raises:
        DataError: A collection cannot be read, no series is long enough to train on, or a target series is too short to forecast.
    """
    assert data.target is not None, "the settings make sure of it"
    (source, source_entry), (target, target_entry) = (read_collection(name, data) for name in (data.source, data.target))
    length, horizon = task.input_length, task.horizon
    buffer, first, far = _lay(source, target)
    ends = source.lengths - 2 * horizon
    kept = np.where(ends > length, (ends - length) * data.percent // 100 + length, ends)
    counts = np.maximum(kept - length - horizon + 1, 0)
    if not counts.any():
        raise DataError(
            f"no series has a training window: {length} input, {horizon} target steps and {2 * horizon} set aside at its end",
            where=source.source,
            fix=f"Series of at least {length + 3 * horizon} steps are needed (more with data.percent below 100); "
            "shorten task.input_length or task.horizon",
        )
    tables: dict[Split, WindowTable] = {
        "train": _sliding(first, counts, length, horizon),
        "validation": _last_windows(first, ends, length, horizon),
        "test": _last_windows(far, _forecastable(target, horizon), length, horizon),
    }
    places: dict[Split, str] = {"validation": source.source, "test": target.source}
    for split, place in places.items():
        tables[split] = whole_batches(tables[split], batch_size, protocol=protocol, where=place)
    season = _season(data, target_entry)
    yardsticks = {
        "validation": _yardstick(source, ends, tables["validation"], _season(data, source_entry), horizon),
        "test": _yardstick(target, target.lengths - horizon, tables["test"], season, horizon),
    }
    notices = [f"{int((counts == 0).sum()):,} of {source.n_series:,} series are too short to train on"] if (counts == 0).any() else []
    made = _series_task(buffer, tables, yardsticks, task, protocol, drop_last=protocol == "published")
    return TaskData(made, task, None, season, tuple(notices), naive=_naive_rows(yardsticks, season))


def prepare_short_term(data: DataConfig, task: TaskConfig, *, protocol: Protocol = "strict", batch_size: int = 1) -> TaskData:
    """The M4 competition's way: in every epoch each series is cut once at random near its end, and its last H steps are forecast.

    The cut lies within ``task.cut_range`` horizons of the end of the training part. ``strict`` holds back the last H training
    steps for validation; ``published`` trains on them and validates on the test part (protocol §5 row 5).

    Raises:
        DataError: The collection cannot be read, or a series is too short.
    """
    collection, entry = read_collection(data.source, data)
    length, horizon = task.input_length, task.horizon
    buffer, first, _ = _lay(collection, collection)
    origin = _forecastable(collection, horizon)
    ends = origin - horizon if protocol == "strict" else origin
    lowest = np.maximum(1, ends - int(task.cut_range * horizon))
    counts = np.maximum(ends - lowest, 0)
    if not counts.any():
        raise DataError(
            "no series is long enough to train on", where=collection.source, fix=f"Series of more than {2 * horizon + 1} steps are needed"
        )
    test = _last_windows(first, origin, length, horizon)
    tables: dict[Split, WindowTable] = {
        "train": _cut_windows(first, lowest, ends, length, horizon),
        "validation": _last_windows(first, ends, length, horizon) if protocol == "strict" else test,
        "test": test,
    }
    season = _season(data, entry)
    yardsticks = {
        split: _yardstick(collection, ends if split == "validation" else origin, tables[split], season, horizon)
        for split in ("validation", "test")
    }
    notices = [f"{int((counts == 0).sum()):,} of {collection.n_series:,} series are too short to train on"] if (counts == 0).any() else []
    groups = np.concatenate([[0], np.cumsum(counts[counts > 0])]).astype(np.int64)
    made = _series_task(buffer, tables, yardsticks, task, protocol, groups=groups)
    return TaskData(made, task, None, season, tuple(notices), naive=_naive_rows(yardsticks, season))


def read_collection(name: str, data: DataConfig) -> tuple[SeriesCollection, DatasetEntry | None]:
    """A collection of single series: a known one, a ``.tsf`` file, or the columns of a known or own table.

    Raises:
        DataError: It cannot be read.
    """
    entry = CATALOG.get(name)
    if (entry.kind == "collection") if entry else Path(name).name.removesuffix(".gz").endswith(".tsf"):
        return load_collection(name, missing=data.missing)
    options = {"timestamps": data.timestamps} if data.timestamps else {}
    frame, entry = load(name, missing=data.missing, **options)
    columns = tuple(np.ascontiguousarray(column) for column in frame.values.T)
    return SeriesCollection(frame.names, columns, frame.frequency, None, None, None, {}, frame.source), entry


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What a split's forecasts are measured by: the steps before each window, and the naive forecasts from them.

    Attributes:
        insample: The observed steps before each window's target, ``[T_w]``.
        target: ``[windows, h]``.
        season: Steps m of the cycle.
    """

    insample: Sequence[np.ndarray]
    target: np.ndarray
    season: int

    @cached_property
    def scale(self) -> np.ndarray:
        """``[windows]``: what MASE divides by."""
        return np.array([naive_scale(series, self.season) for series in self.insample])

    @cached_property
    def naive2_metrics(self) -> dict[str, float]:
        return self.plain(self.naive_sums(naive2))

    def naive_sums(self, naive: Naive) -> Sums:
        """The sums of a naive method's forecasts."""
        horizon = self.target.shape[1]
        forecast = np.stack([naive(series, self.season, horizon) for series in self.insample])
        return score_forecasts(forecast, self.target)

    def plain(self, sums: Sums) -> dict[str, float]:
        """sMAPE and MASE."""
        return series_metrics(sums) | {"mase": mean_scaled_error(sums, self.scale)}

    def metrics(self, sums: Sums) -> dict[str, float]:
        """sMAPE, MASE, and OWA: the mean of both over Naive2's (protocol §3)."""
        found, yard = self.plain(sums), self.naive2_metrics
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = [np.float64(found[name]) / np.float64(yard[name]) for name in ("smape", "mase")]
        return found | {"owa": float(np.mean(ratios))}


def score_forecasts(forecast: np.ndarray, target: np.ndarray) -> Sums:
    """The sums of forecasts ``[windows, h]`` that were made elsewhere, as an evaluation would give them."""
    everything = np.ones((*target.shape, 1), bool)
    count = len(target)
    batch = Batch(everything, target[..., None], everything, everything, np.ones(count), np.arange(count))  # type: ignore[arg-type]
    return {name: np.asarray(values) for name, values in series_sums(forecast[..., None], batch).items()}  # type: ignore[arg-type]


def seasonal_last(insample: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """The last cycle, repeated; the last value where there is no whole cycle."""
    cycle = season if season <= len(insample) else 1
    return insample[len(insample) - cycle + np.arange(horizon) % cycle]


def _naive_rows(yardsticks: Mapping[str, Yardstick], season: int) -> dict[str, Callable[[Split], dict[str, float] | None]]:
    def row(naive: Naive, split: Split) -> dict[str, float] | None:
        return yardsticks[split].metrics(yardsticks[split].naive_sums(naive)) if split in yardsticks else None

    return {f"seasonal naive ({season} steps)": partial(row, seasonal_last), "Naive2": partial(row, naive2)}


def _series_task(
    buffer: np.ndarray,
    tables: dict[Split, WindowTable],
    yardsticks: Mapping[str, Yardstick],
    task: TaskConfig,
    protocol: Protocol,
    *,
    drop_last: bool = False,
    groups: np.ndarray | None = None,
) -> Task:
    def report(score: Score, split: Split) -> dict[str, float]:
        sums = score(tables[split])
        return yardsticks[split].metrics(sums) if split in yardsticks else series_metrics(sums)

    return Task(
        name=task.name,
        spec=WindowSpec(task.input_length, task.horizon, univariate=True),
        buffer=buffer,
        tables=tables,
        loss=FORECAST_LOSSES[task.loss],
        sums=series_sums,
        metrics=series_metrics,
        objective="smape",
        protocol=protocol,
        drop_last=drop_last,
        groups=groups,
        report=report,
    )


def _lay(source: SeriesCollection, target: SeriesCollection) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One buffer ``[rows, 1]`` of both, and the first row of each of their series."""
    both = [source] if source is target else [source, target]
    parts = [series[:, None] for collection in both for series in collection.values]
    with np.errstate(over="ignore"):
        buffer, first = lay_end_to_end(parts)
    if not np.isfinite(buffer).all():
        row = int(np.argwhere(~np.isfinite(buffer))[0][0])
        place = int(np.searchsorted(first, row, side="right")) - 1
        collection, index = (source, place) if place < source.n_series else (target, place - source.n_series)
        raise DataError(f"series `{collection.names[index]}` has values beyond float32's range", where=collection.source)
    return buffer, first[: source.n_series], first[-target.n_series :]


def _forecastable(collection: SeriesCollection, horizon: int) -> np.ndarray:
    """Steps before each series' last H ``[S]``, at least one."""
    origin = collection.lengths - horizon
    if (origin < 1).any():
        index = int(np.flatnonzero(origin < 1)[0])
        raise DataError(
            f"series `{collection.names[index]}` has {collection.lengths[index]} steps, too few to forecast its last {horizon}",
            where=collection.source,
            fix="Shorten task.horizon, or leave such series out",
        )
    return origin


def _sliding(first: np.ndarray, counts: np.ndarray, length: int, horizon: int) -> WindowTable:
    """``counts[s]`` windows of series s, one step apart from its first row."""
    series = np.repeat(np.arange(len(counts)), counts)
    offset = np.arange(len(series)) - np.repeat(np.cumsum(counts) - counts, counts)
    return _table(first[series] + offset, np.full(len(series), length), np.full(len(series), horizon), series)


def _last_windows(first: np.ndarray, origin: np.ndarray, length: int, horizon: int) -> WindowTable:
    """One window per series that has a step before ``origin``: at most L input steps before it, H target steps after."""
    series = np.flatnonzero(origin >= 1)
    valid = np.minimum(origin[series], length)
    return _table(first[series] + origin[series] - valid, valid, np.full(len(series), horizon), series)


def _cut_windows(first: np.ndarray, lowest: np.ndarray, ends: np.ndarray, length: int, horizon: int) -> WindowTable:
    """A window for every cut from ``lowest`` to before the end of each series: what was, and what of H steps is left."""
    counts = np.maximum(ends - lowest, 0)
    series = np.repeat(np.arange(len(counts)), counts)
    cut = lowest[series] + np.arange(len(series)) - np.repeat(np.cumsum(counts) - counts, counts)
    valid = np.minimum(cut, length)
    return _table(first[series] + cut - valid, valid, np.minimum(ends[series] - cut, horizon), series)


def _table(first: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray, series: np.ndarray) -> WindowTable:
    columns = (first, np.zeros(len(first)), x_valid, y_valid, series, np.full(len(first), -1))
    return WindowTable(*(np.asarray(column).astype(np.int32) for column in columns))


def _yardstick(collection: SeriesCollection, origin: np.ndarray, table: WindowTable, season: int, horizon: int) -> Yardstick:
    pairs = [(collection.values[index], int(origin[index])) for index in table.window_id]
    target = np.stack([series[cut : cut + horizon] for series, cut in pairs])
    return Yardstick([series[:cut] for series, cut in pairs], target, season)


def _season(data: DataConfig, entry: DatasetEntry | None) -> int:
    return data.season or (entry.season if entry else 1)

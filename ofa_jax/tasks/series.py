"""Forecasting single series with one model: transfer to another collection (zero-shot), and M4 (short-term).

Series keep their units and differ in length; each has one validation and one test window. Short inputs are padded at
their start and missing targets are masked (protocol §2, §3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import DataConfig, NetworkConfig, ShortTermSettings, ZeroShotSettings
from ofa_jax.data.archives import SeriesCollection
from ofa_jax.data.catalog.load import CATALOG, load_collection
from ofa_jax.data.seasons import season_of
from ofa_jax.data.splits import Split
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.model.networks import ShortTermNetwork, TrunkModule
from ofa_jax.tasks.base import Score, Sums, Task, TaskData, TaskKind
from ofa_jax.tasks.forecast import apply, forecast_network, linear_baselines, read_series
from ofa_jax.tasks.losses import FORECAST_LOSSES
from ofa_jax.tasks.metrics import mean_scaled_error, naive_scale, series_metrics, series_sums
from ofa_jax.tasks.naive import last_cycle
from ofa_jax.tasks.naive2 import naive2
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.table import WindowSpec, WindowTable, lay_end_to_end

Naive = Callable[[np.ndarray, int, int], np.ndarray]
"""``naive(insample, season, horizon) -> [h]``."""


def prepare_zero_shot(data: DataConfig, task: ZeroShotSettings, protocol: Protocol = "strict") -> TaskData:
    """Training and validation windows of ``data.source``, test windows of ``data.target``, one model.

    The last H steps of a source series are held out (its own test part), the H before them are its validation
    target, and every window of L + H steps before those trains; ``data.percent`` keeps the first of them. A target
    series is forecast over its last H steps. ``published`` drops an epoch's partial last batch (protocol §3).

    Raises:
        DataError: A collection cannot be read, or its series are too short to train on or to forecast.
    """
    assert data.target is not None, "the settings make sure of it"
    source, source_season = read_collection(data.source, data)
    target, target_season = (
        (source, source_season) if data.target == data.source else read_collection(data.target, data)
    )
    length, horizon = task.input_length, task.horizon
    ends = source.lengths - 2 * horizon
    kept = np.where(ends > length, (ends - length) * data.percent // 100 + length, ends)
    counts = np.maximum(kept - length - horizon + 1, 0)
    if not counts.any():
        raise DataError(
            f"no series has {length} input, {horizon} target and {2 * horizon} held-out steps",
            where=source.source,
            fix=f"Series of at least {length + 2 * horizon - (-100 * horizon // data.percent)} steps are needed; shorten task.input_length "
            "or task.horizon"
            + (f", or raise data.percent from {data.percent}" if data.percent < 100 else ""),
        )
    origin = _forecastable(target, horizon)
    buffer, first, far = _lay(source, target)
    tables: dict[Split, WindowTable] = {
        "train": _sliding(first, counts, length, horizon),
        "validation": _last_windows(first, ends, length, horizon),
        "test": _last_windows(far, origin, length, horizon),
    }
    references: dict[Split, NaiveReference] = {
        "validation": _reference(source, ends, tables["validation"], source_season or 1, horizon),
        "test": _reference(target, origin, tables["test"], target_season or 1, horizon),
    }
    notices = [
        *_too_short(source, counts),
        *_unknown_season(source, source_season),
        *(_unknown_season(target, target_season) if target is not source else ()),
        *_without_scale(references),
    ]
    made = _series_task(buffer, tables, references, task, protocol, drop_last=protocol == "published")
    lengths = {"source_lengths": source.lengths, "target_lengths": target.lengths}
    naive = _naive_rows(references)
    return TaskData(made, task, None, target_season or 1, tuple(notices), labels=lengths, naive=naive)


def prepare_short_term(data: DataConfig, task: ShortTermSettings, protocol: Protocol = "strict") -> TaskData:
    """Short-term forecasting: every epoch cuts each series once at random near its end; its last H steps are tested.

    The cut is within ``task.cut_range`` horizons of the end of the training part. ``strict`` holds out the last H
    training steps for validation; ``published`` trains on them and validates on the test part (protocol §5 row 5).

    Raises:
        DataError: The collection cannot be read, or a series is too short.
        ConfigError: ``task.cut_range`` holds no cut.
    """
    length, horizon = task.input_length, task.horizon
    reach = int(task.cut_range * horizon)
    if reach < 1:
        what = f"a range of {task.cut_range:g} horizons of {horizon} step(s) holds no cut"
        raise ConfigError(what, where="task.cut_range", fix="Widen it")
    collection, season = read_collection(data.source, data)
    origin = _forecastable(collection, horizon)
    ends = origin - horizon if protocol == "strict" else origin
    lowest = np.maximum(1, ends - reach)
    counts = np.maximum(ends - lowest, 0)
    if not counts.any():
        held = 2 * horizon if protocol == "strict" else horizon
        what = f"no series is long enough to train on: the last {held} steps of each are held out"
        fix = f"Series of at least {held + 2} steps are needed; shorten task.horizon"
        raise DataError(what, where=collection.source, fix=fix)
    buffer, first, _ = _lay(collection, collection)
    test = _last_windows(first, origin, length, horizon)
    tables: dict[Split, WindowTable] = {
        "train": _cut_windows(first, lowest, ends, length, horizon),
        "validation": _last_windows(first, ends, length, horizon) if protocol == "strict" else test,
        "test": test,
    }
    references: dict[Split, NaiveReference] = {
        "validation": _reference(collection, ends, tables["validation"], season or 1, horizon),
        "test": _reference(collection, origin, tables["test"], season or 1, horizon),
    }
    notices = [
        *_too_short(collection, counts),
        *_unknown_season(collection, season),
        *_without_scale(references),
    ]
    groups = np.concatenate([[0], np.cumsum(counts[counts > 0])]).astype(np.int64)
    made = _series_task(buffer, tables, references, task, protocol, groups=groups)
    naive = _naive_rows(references)
    return TaskData(
        made, task, None, season or 1, tuple(notices), labels={"lengths": collection.lengths}, naive=naive
    )


def read_collection(name: str, data: DataConfig) -> tuple[SeriesCollection, int | None]:
    """A collection of single series, and the steps of its main cycle where anything tells them.

    The series are those of a catalogued collection or ``.tsf`` file, or the columns of a table. The season length is
    that of the settings, else the catalog's, else the frequency's.

    Raises:
        DataError: It cannot be read.
    """
    entry = CATALOG.get(name)
    if (entry.kind != "frame") if entry else Path(name).name.removesuffix(".gz").endswith(".tsf"):
        collection, entry = load_collection(name, missing=data.missing)
        found = entry.season if entry else season_of(collection.frequency)
        return collection, data.season or found
    frame, entry = read_series(data, name)
    columns = tuple(np.ascontiguousarray(column) for column in frame.values.T)
    collection = SeriesCollection(frame.names, columns, frame.frequency, None, None, frame.source)
    return collection, data.season or (entry.season if entry else season_of(frame.frequency))


@dataclass(frozen=True, eq=False)
class NaiveReference:
    """What scales a split's errors: the steps before each window, and naive forecasts from them.

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
        """sMAPE and, where some window has a scale, MASE."""
        mase = {"mase": mean_scaled_error(sums, self.scale)} if (self.scale > 0).any() else {}
        return series_metrics(sums) | mase

    def metrics(self, sums: Sums) -> dict[str, float]:
        """sMAPE, MASE, and OWA, the mean of both relative to Naive2 (protocol §3), where defined."""
        found, reference = self.plain(sums), self.naive2_metrics
        if not all(reference.get(name) for name in ("smape", "mase")):
            return found
        return found | {"owa": (found["smape"] / reference["smape"] + found["mase"] / reference["mase"]) / 2}


def score_forecasts(forecast: np.ndarray, target: np.ndarray) -> Sums:
    """The sums of forecasts ``[windows, h]`` that were made elsewhere, as an evaluation would give them."""
    everything = np.ones((*target.shape, 1), bool)
    count = len(target)
    batch = Batch(everything, target[..., None], everything, everything, np.ones(count), np.arange(count))  # type: ignore[arg-type]
    return {name: np.asarray(values) for name, values in series_sums(forecast[..., None], batch).items()}  # type: ignore[arg-type]


def seasonal_last(insample: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """Seasonal naive forecast ``[h]``."""
    return insample[last_cycle(len(insample), season, horizon)]


def _naive_rows(
    references: Mapping[Split, NaiveReference],
) -> dict[str, Callable[[Split], dict[str, float] | None]]:
    def row(naive: Naive, split: Split) -> dict[str, float] | None:
        return references[split].metrics(references[split].naive_sums(naive)) if split in references else None

    return {"seasonal naive": partial(row, seasonal_last), "Naive2": partial(row, naive2)}


def _too_short(collection: SeriesCollection, counts: np.ndarray) -> list[str]:
    short = int((counts == 0).sum())
    return [f"{short:,} of {collection.n_series:,} series are too short to train on"] if short else []


def _unknown_season(collection: SeriesCollection, season: int | None) -> list[str]:
    if season:
        return []
    return [f"{collection.source}: unknown season length, so MASE and Naive2 use 1; set data.season"]


def _without_scale(references: Mapping[Split, NaiveReference]) -> list[str]:
    missing = {
        split: (len(reference.scale), int((~(reference.scale > 0)).sum()))
        for split, reference in references.items()
    }
    return [
        f"MASE omits {missed:,} of {total:,} {split} windows whose input is constant or shorter than a season"
        for split, (total, missed) in missing.items()
        if missed
    ]


def _series_task(
    buffer: np.ndarray,
    tables: dict[Split, WindowTable],
    references: Mapping[Split, NaiveReference],
    task: ZeroShotSettings | ShortTermSettings,
    protocol: Protocol,
    *,
    drop_last: bool = False,
    groups: np.ndarray | None = None,
) -> Task:
    def report(score: Score, split: Split) -> dict[str, float]:
        sums = score(tables[split])
        return references[split].metrics(sums) if split in references else series_metrics(sums)

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
        what = f"series `{collection.names[index]}` has values beyond float32's range"
        raise DataError(what, where=collection.source, fix="Look for wrong units in it, or scale it")
    return buffer, first[: source.n_series], first[-target.n_series :]


def _forecastable(collection: SeriesCollection, horizon: int) -> np.ndarray:
    """Steps before each series' last H ``[S]``, at least one."""
    origin = collection.lengths - horizon
    if (origin < 1).any():
        index = int(np.flatnonzero(origin < 1)[0])
        raise DataError(
            f"series `{collection.names[index]}` has {collection.lengths[index]} step(s), horizon is {horizon}",
            where=collection.source,
            fix="Shorten task.horizon, or leave such series out",
        )
    return origin


def _windows(first: np.ndarray, x_valid: Any, y_valid: Any, series: np.ndarray) -> WindowTable:
    return WindowTable.of(first, channel=0, x_valid=x_valid, y_valid=y_valid, window_id=series)


def _sliding(first: np.ndarray, counts: np.ndarray, length: int, horizon: int) -> WindowTable:
    """``counts[s]`` windows of series s, one step apart from its first row."""
    series = np.repeat(np.arange(len(counts)), counts)
    offset = np.arange(len(series)) - np.repeat(np.cumsum(counts) - counts, counts)
    return _windows(first[series] + offset, length, horizon, series)


def _last_windows(first: np.ndarray, origin: np.ndarray, length: int, horizon: int) -> WindowTable:
    """One window per series with a step before ``origin``: up to L input steps, then H target steps."""
    series = np.flatnonzero(origin >= 1)
    valid = np.minimum(origin[series], length)
    return _windows(first[series] + origin[series] - valid, valid, horizon, series)


def _cut_windows(
    first: np.ndarray, lowest: np.ndarray, ends: np.ndarray, length: int, horizon: int
) -> WindowTable:
    """A window for every cut from ``lowest`` to the end of each series, with up to H target steps."""
    counts = np.maximum(ends - lowest, 0)
    series = np.repeat(np.arange(len(counts)), counts)
    cut = lowest[series] + np.arange(len(series)) - np.repeat(np.cumsum(counts) - counts, counts)
    valid = np.minimum(cut, length)
    return _windows(first[series] + cut - valid, valid, np.minimum(ends[series] - cut, horizon), series)


def _reference(
    collection: SeriesCollection, origin: np.ndarray, table: WindowTable, season: int, horizon: int
) -> NaiveReference:
    pairs = [(collection.values[index], int(origin[index])) for index in table.window_id]
    target = np.stack([series[cut : cut + horizon] for series, cut in pairs])
    return NaiveReference([series[:cut] for series, cut in pairs], target, season)


def _short_term_network(
    task: ShortTermSettings, network: NetworkConfig, trunk: TrunkModule
) -> ShortTermNetwork:
    return ShortTermNetwork(
        trunk=trunk,
        input_length=task.input_length,
        horizon=task.horizon,
        embed_width=network.embed_width,
        read_width=network.read_width,
    )


# Chosen on validation of M3 Yearly and M4 Weekly.
_BASELINES = linear_baselines(learning_rate=1e-2, epochs=10, batch_size=256, schedule="decay", decay=0.5)

ZERO_SHOT = TaskKind(
    settings=ZeroShotSettings,
    title="Zero-shot transfer",
    prepare=prepare_zero_shot,
    network=forecast_network,
    apply=apply,
    baselines=_BASELINES,
)
SHORT_TERM = TaskKind(
    settings=ShortTermSettings,
    title="Short-term forecasting",
    prepare=prepare_short_term,
    network=_short_term_network,
    apply=apply,
    baselines=_BASELINES,
)

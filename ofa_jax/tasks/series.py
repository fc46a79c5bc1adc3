"""Forecasting single series with one model: transfer to another collection (zero-shot), and M4 (short-term).

Series keep their units and differ in length; each has one validation and one test window. Short inputs are
padded at their start and missing targets are masked (protocol §2, §3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import DataConfig, ShortTermSettings, ZeroShotSettings
from ofa_jax.data.archives import SeriesCollection
from ofa_jax.data.archives.tsf import last_steps
from ofa_jax.data.catalog.load import CATALOG, load_collection
from ofa_jax.data.missing import count_filled, filled_notices
from ofa_jax.data.seasons import season_length, season_notices
from ofa_jax.data.splits import Split
from ofa_jax.data.tables import as_table, unpacked_name
from ofa_jax.errors import ConfigError, TooShort, sizes_text
from ofa_jax.model.networks import ForecastNetwork, ShortTermNetwork
from ofa_jax.tasks.base import NewData, Score, Sums, Task, TaskData, TaskKind, TrainedOn
from ofa_jax.tasks.forecast import apply as apply_table
from ofa_jax.tasks.forecast import as_pairs, linear_baselines, read_series
from ofa_jax.tasks.losses import FORECAST_LOSSES, squared_error
from ofa_jax.tasks.metrics import mean_scaled_error, naive_scale, series_metrics, series_sums
from ofa_jax.tasks.naive import last_cycle
from ofa_jax.tasks.naive2 import naive2
from ofa_jax.windows.batch import Rows
from ofa_jax.windows.table import WindowSpec, WindowTable, lay_end_to_end

Naive = Callable[[np.ndarray, int, int], np.ndarray]
"""``naive(insample, season, horizon) -> [h]``."""


def prepare_zero_shot(data: DataConfig, task: ZeroShotSettings, protocol: Protocol = "strict") -> TaskData:
    """Training and validation windows of ``data.source``, test windows of ``data.target``, one model.

    The last H steps of a source series are held out (its test part), the H before them are its validation
    target, and every window of L + H steps before those trains; ``data.percent`` keeps the first of them. A
    target series is forecast over its last H steps. ``published`` drops an epoch's partial last batch
    (protocol §3).

    Raises:
        DataError: A collection cannot be read, or its series are too short to train on or to forecast.
    """
    assert data.target is not None, "the settings make sure of it"
    source, source_season, notices = read_collection(data.source, data)
    target, target_season = source, source_season
    if data.target != data.source:
        target, target_season, more = read_collection(data.target, data)
        notices += more
    length, horizon = task.input_length, task.horizon
    ends = source.lengths - 2 * horizon
    kept = np.where(ends > length, (ends - length) * data.percent // 100 + length, ends)
    counts = np.maximum(kept - length - horizon + 1, 0)
    if not counts.any():
        least = length + 2 * horizon - (-100 * horizon // data.percent)
        sizes = _fitting(int(source.lengths.max()), length, horizon, data.percent)
        fitting = f"set {sizes_text(sizes)}" if sizes else "these are too short for any task.horizon"
        what = f"no series has {length} input, {horizon} target and {2 * horizon} held-out steps"
        fix = f"Series of at least {least} steps are needed; {fitting}"
        fix += f", or raise data.percent from {data.percent}" if data.percent < 100 else ""
        raise TooShort(what, where=source.source, fix=fix, sizes=sizes)
    origin = _forecastable(target, horizon)
    rows, first, far = _lay(source, target)
    train = _windows(first, length, counts, source.lengths, length, horizon)
    held: dict[Split, HeldOut] = {
        "validation": HeldOut(source, first, ends, source_season, horizon),
        "test": HeldOut(target, far, origin, target_season, horizon),
    }
    lengths = {"source_lengths": source.lengths, "target_lengths": target.lengths}
    return _series_data(
        task, protocol, rows, train, held, lengths, notices, drop_last=protocol == "published"
    )


def _fitting(steps: int, length: int, horizon: int, percent: int) -> dict[str, int]:
    """The input length and horizon that a series of so many steps can be trained with, in several windows."""

    def longest(horizon: int) -> int:
        return steps - 2 * horizon + (-100 * horizon // percent)

    if longest(horizon) < 2 * horizon:
        horizon = min(horizon, max(1, steps * percent // (6 * percent + 200)))  # an eighth, of all steps
    if longest(horizon) < 1:
        return {}
    own = length if length <= longest(horizon) else max(1, longest(horizon) // 2)
    return {"input_length": own, "horizon": horizon}


def _eighth(steps: int) -> dict[str, int]:
    """Sizes for a series of so many steps, with the input twice the horizon as in M4 (protocol §2)."""
    horizon = max(1, steps // 8)
    return {"input_length": 2 * horizon, "horizon": horizon}


def prepare_short_term(data: DataConfig, task: ShortTermSettings, protocol: Protocol = "strict") -> TaskData:
    """Every epoch cuts each series once at random near its end; its last H steps are tested.

    The cut is within ``task.cut_range`` horizons of the end of the training part. ``strict`` holds out the
    last H training steps for validation; ``published`` validates on the test part (protocol §5 row 5).

    Raises:
        DataError: The collection cannot be read, or a series is too short.
        ConfigError: ``task.cut_range`` holds no cut.
    """
    length, horizon = task.input_length, task.horizon
    reach = int(task.cut_range * horizon)
    if reach < 1:
        what = f"a range of {task.cut_range:g} horizons of {horizon} step(s) holds no cut"
        raise ConfigError(what, where="task.cut_range", fix="Widen it")
    collection, season, notices = read_collection(data.source, data)
    origin = _forecastable(collection, horizon)
    ends = origin - horizon if protocol == "strict" else origin
    lowest = np.maximum(1, ends - reach)
    counts = np.maximum(ends - lowest, 0)
    if not counts.any():
        rest = 2 * horizon if protocol == "strict" else horizon
        what = f"no series is long enough to train on: the last {rest} steps of each are held out"
        most = int(collection.lengths.max())
        sizes = _eighth(most) if most >= 2 + rest // horizon else {}
        shorten = f"; set task.horizon to {sizes['horizon']}" if sizes else ""
        fix = f"Series of at least {rest + 2} steps are needed{shorten}"
        raise TooShort(what, where=collection.source, fix=fix, sizes=sizes)
    rows, first, _ = _lay(collection, collection)
    train = _windows(first, lowest, counts, ends, length, horizon)
    held: dict[Split, HeldOut] = {
        "validation": HeldOut(collection, first, ends, season, horizon),
        "test": HeldOut(collection, first, origin, season, horizon),
    }
    groups = np.concatenate([[0], np.cumsum(counts[counts > 0])]).astype(np.int64)
    lengths = {"lengths": collection.lengths}
    return _series_data(task, protocol, rows, train, held, lengths, notices, groups=groups)


def read_collection(name: str, data: DataConfig) -> tuple[SeriesCollection, int | None, list[str]]:
    """Single series of a collection, a ``.tsf`` file or a table's columns; their season if known; notices.

    Raises:
        DataError: It cannot be read.
    """
    entry = CATALOG.get(name)
    notices: tuple[str, ...] = ()
    if (entry.kind != "frame") if entry else unpacked_name(Path(name)).endswith(".tsf"):
        collection, entry = load_collection(name, missing=data.missing)
        notices = collection.notices
    else:
        frame, entry = read_series(data, name)
        collection = SeriesCollection.of(frame)
        notices = frame.notices
    known = (data.season, entry.season if entry else None, collection.frequency)
    return collection, season_length(*known), [*notices, *season_notices(*known, collection.source)]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The H steps after a cut of every series with a step before it: windows and what scales their errors.

    Attributes:
        collection: The S series.
        first: Their first rows in the buffer, ``[S]``.
        cut: Steps before the target, ``[S]``.
        season: Steps m of the cycle; None where unknown, and then 1.
        horizon: H.
    """

    collection: SeriesCollection
    first: np.ndarray
    cut: np.ndarray
    season: int | None
    horizon: int

    def windows(self, length: int) -> WindowTable:
        """The windows, with up to L input steps."""
        counts = (self.cut >= 1).astype(np.int64)
        return _windows(self.first, self.cut, counts, self.collection.lengths, length, self.horizon)

    def _parts(self, series: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        cuts = zip(series, self.cut.tolist(), strict=True)
        return [(steps[:cut], steps[cut : cut + self.horizon]) for steps, cut in cuts if cut >= 1]

    @cached_property
    def parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each window all steps before its target, and the target."""
        return self._parts(self.collection.values)

    @cached_property
    def observed(self) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """As :attr:`parts`, False where a value was filled; None without any."""
        return None if self.collection.observed is None else self._parts(self.collection.observed)

    @cached_property
    def scale(self) -> np.ndarray:
        """``[windows]``: what MASE divides by."""
        season, pasts = self.season or 1, [past for past, _ in self.parts]
        seen = [None] * len(pasts) if self.observed is None else [past for past, _ in self.observed]
        return np.array([naive_scale(past, season, known) for past, known in zip(pasts, seen, strict=True)])

    @cached_property
    def naive2_metrics(self) -> dict[str, float]:
        return self.plain(self.naive_sums(naive2))

    def naive_sums(self, naive: Naive) -> Sums:
        """The sums of a naive method's forecasts."""
        forecast = [naive(past, self.season or 1, self.horizon) for past, _ in self.parts]
        seen = None if self.observed is None else np.stack([after for _, after in self.observed])
        return score_forecasts(np.stack(forecast), np.stack([after for _, after in self.parts]), seen)

    def plain(self, sums: Sums) -> dict[str, float]:
        """sMAPE and, where some window has a scale, MASE."""
        mase = mean_scaled_error(sums, self.scale)
        return series_metrics(sums) | ({} if np.isnan(mase) else {"mase": mase})

    def metrics(self, sums: Sums) -> dict[str, float]:
        """sMAPE, MASE, and OWA, the mean of both relative to Naive2 (protocol §3), where defined."""
        found, reference = self.plain(sums), self.naive2_metrics
        if not all(reference.get(name) for name in ("smape", "mase")):
            return found
        return found | {"owa": (found["smape"] / reference["smape"] + found["mase"] / reference["mase"]) / 2}


def score_forecasts(forecast: Any, target: Any, observed: np.ndarray | None = None) -> Sums:
    """The sums of forecasts ``[windows, h]`` made elsewhere, in float64, as an evaluation names them."""
    seen = np.ones(target.shape, bool) if observed is None else observed
    error, size = np.abs(forecast - target), np.abs(forecast) + np.abs(target)
    terms = np.divide(200 * error, size, out=np.zeros(size.shape), where=size > 0)
    sums = {"symmetric": terms, "absolute_error": error}
    return {name: np.where(seen, values, 0).sum(axis=1) for name, values in sums.items()} | {
        "count": seen.sum(axis=1)
    }


def seasonal_last(insample: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """Seasonal naive forecast ``[h]``."""
    return insample[last_cycle(len(insample), season, horizon)]


def _series_data(
    task: ZeroShotSettings | ShortTermSettings,
    protocol: Protocol,
    rows: Rows,
    train: WindowTable,
    held: Mapping[Split, HeldOut],
    lengths: Mapping[str, np.ndarray],
    notices: Sequence[str],
    **practice: Any,
) -> TaskData:
    """The task that trains on a table and is scored on held-out parts."""
    tables = {"train": train, **{split: part.windows(task.input_length) for split, part in held.items()}}
    source = held["validation"].collection
    short = source.n_series - len(np.unique(train.window_id))
    collections = {part.collection.source: part.collection.observed for part in held.values()}
    filled = (text for name, seen in collections.items() for text in filled_notices(seen, name))
    notices = [*filled, *notices]
    if short:
        notices.append(f"{short:,} of {source.n_series:,} series are too short to train on")
    for part in held.values():
        if not part.season:
            unknown = "unknown season length, so MASE and Naive2 use 1; set data.season"
            notices.append(f"{Path(part.collection.source).name}: {unknown}")
    for split, part in held.items():
        if missed := int((~(part.scale > 0)).sum()):
            windows = f"{missed:,} of {len(part.scale):,} {split} windows"
            notices.append(f"MASE omits {windows} whose input is constant or shorter than a season")
        if brief := sum(len(past) < (part.season or 1) for past, _ in part.parts):
            windows = f"{brief:,} of {len(part.parts):,} {split} windows"
            windows += f", which no season of {part.season} steps precedes"
            notices.append(f"seasonal naive repeats the last value in {windows}")

    def report(score: Score, split: Split) -> dict[str, float]:
        sums = score(tables[split])
        return held[split].metrics(sums) if split in held else series_metrics(sums)

    def naive(method: Naive, split: Split) -> dict[str, float] | None:
        return held[split].metrics(held[split].naive_sums(method)) if split in held else None

    loss = FORECAST_LOSSES[task.loss]
    if task.loss == "mse":  # in one unit for all series, so that it is of like size in any
        loss = partial(squared_error, unit=_largest_range(source))
    made = Task(
        spec=WindowSpec(task.input_length, task.horizon, univariate=True),
        buffer=rows.values,
        observed=rows.observed,
        residue=rows.residue,
        tables=tables,
        loss=loss,
        sums=series_sums,
        metrics=series_metrics,
        objective="smape",
        protocol=protocol,
        report=report,
        **practice,
    )
    return TaskData(
        made,
        task,
        None,
        season=held["test"].season or 1,
        validation_season=held["validation"].season or 1,
        notices=tuple(dict.fromkeys(notices)),  # both parts may be of one collection
        meta={"filled": sum(map(count_filled, collections.values()))},
        labels=lengths,
        collection=held["test"].collection,
        naive={"seasonal naive": partial(naive, seasonal_last), "Naive2": partial(naive, naive2)},
    )


def _largest_range(collection: SeriesCollection) -> float:
    """The largest distance between two values of a series, 1 where all are constant."""
    return max(float(np.ptp(series)) for series in collection.values) or 1.0


def _lay(source: SeriesCollection, target: SeriesCollection) -> tuple[Rows, np.ndarray, np.ndarray]:
    """One buffer ``[rows, 1]`` of both, and the first row of each series."""
    both = [source] if source is target else [source, target]
    pairs = [pair for one in both for pair in _pairs(one)]
    buffer, first = lay_end_to_end([rounded for rounded, _ in pairs])
    residue, _ = lay_end_to_end([rest for _, rest in pairs])
    observed = None
    if any(one.observed is not None for one in both):
        masks = [one.observed or [np.ones(steps, bool) for steps in one.lengths] for one in both]
        observed = np.concatenate([mask for one in masks for mask in one])[:, None]
    return Rows(buffer, observed, residue), first[: source.n_series], first[-target.n_series :]


def _pairs(collection: SeriesCollection) -> list[tuple[np.ndarray, np.ndarray]]:
    named = zip(collection.names, collection.values, strict=True)
    return [as_pairs(series[:, None], [name], collection.source) for name, series in named]


def _forecastable(collection: SeriesCollection, horizon: int) -> np.ndarray:
    """Steps before each series' last H ``[S]``, at least one."""
    origin = collection.lengths - horizon
    if (origin < 1).any():
        index = int(np.flatnonzero(origin < 1)[0])
        name, steps = collection.names[index], collection.lengths[index]
        what = f"series `{name}` has {steps} step(s), horizon is {horizon}"
        shortest = int(collection.lengths.min())
        shorten = f"Set task.horizon to at most {shortest - 1}, or leave" if shortest > 1 else "Leave"
        sizes = _eighth(shortest) if shortest >= 16 else {}  # a few steps say nothing of the other series
        raise TooShort(what, where=collection.source, fix=f"{shorten} such series out", sizes=sizes)
    return origin


def _windows(
    first: np.ndarray, lowest: Any, counts: np.ndarray, ends: np.ndarray, length: int, horizon: int
) -> WindowTable:
    """``counts[s]`` windows of series s, the first cut at ``lowest[s]``, the others a step apart.

    A window reads up to L steps before its cut; its target is up to H steps after it, before ``ends[s]``.
    """
    series = np.repeat(np.arange(len(counts)), counts)
    cut = np.arange(len(series)) + (lowest + counts - np.cumsum(counts))[series]
    x_valid, y_valid = np.minimum(cut, length), np.minimum(ends[series] - cut, horizon)
    return WindowTable.of(
        first[series] + cut - x_valid, channel=0, x_valid=x_valid, y_valid=y_valid, window_id=series
    )


def apply(trained: TrainedOn, source: str | Path | pd.DataFrame) -> NewData:
    """As of any forecast, with its errors; of a ``.tsf`` file, from the last steps of every series."""
    if isinstance(source, pd.DataFrame) or not unpacked_name(Path(source)).endswith(".tsf"):
        return apply_table(trained, source)
    reading = {**trained.data.reading, **trained.reading}
    table = last_steps(source, trained.task.input_length, missing=reading["missing"])
    reading["columns"] = tuple(table)
    return apply_table(replace(trained, reading=reading), as_table(table, str(source)))


# Chosen on validation of M3 Yearly and M4 Weekly.
_BASELINES = linear_baselines(learning_rate=1e-2, epochs=10, batch_size=256, schedule="decay", decay=0.5)

ZERO_SHOT = TaskKind(
    settings=ZeroShotSettings,
    title="Zero-shot transfer",
    prepare=prepare_zero_shot,
    network=ForecastNetwork,
    apply=apply,
    baselines=_BASELINES,
)
SHORT_TERM = TaskKind(
    settings=ShortTermSettings,
    title="Short-term forecasting",
    prepare=prepare_short_term,
    network=ShortTermNetwork,
    apply=apply,
    baselines=_BASELINES,
)

"""What estimators do with arrays: windows of a panel, forecasts of windows, and the task of a panel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ofa_jax.adapters.partition import combine
from ofa_jax.adapters.rslora import LoraConfig, with_adapters
from ofa_jax.build import Model
from ofa_jax.config.load import build_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.data.seasons import season_of
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.estimators.base import is_whole
from ofa_jax.estimators.panel import Panel
from ofa_jax.model.gpt2 import LEVELS
from ofa_jax.model.quantiles import PretrainedForecastNetwork, QuantileForecastNetwork
from ofa_jax.model.weights import read_config
from ofa_jax.tasks.base import Task
from ofa_jax.tasks.losses import squared_error
from ofa_jax.tasks.metrics import forecast_metrics, forecast_sums
from ofa_jax.train.side_by_side import batches_in_flight, side_by_side
from ofa_jax.windows.table import WindowSpec, WindowTable

LEAST = 8
"""Steps that training and held-out windows read at least."""
FARTHEST = 10_000
"""Steps that are forecast at most."""
MOST = {"train": 8192, "validation": 2048}
"""Windows that are drawn from all of a split, at most."""
BATCHES = (1, 8, 32, 256)
"""Windows of a program; batches are padded to one of these, so that few programs serve any number. On a
CPU at most 32, which fit into its cache.
"""

FEW = 8
"""Windows for which compiling takes longer than forecasting."""


def forecast_experiment(
    trunk: str,
    context: int | Literal["auto"],
    horizon: int,
    recipe: str,
    *,
    adapters: Mapping[str, Any],
    train: Mapping[str, Any],
) -> Experiment:
    """The settings of forecasting by a pretrained trunk.

    Raises:
        ConfigError: The trunk was not pretrained on series, or a value is out of range.
    """
    config = read_config(trunk)
    around = config.forecaster
    if around is None:
        what = f"the trunk {trunk} was not pretrained on series, so it forecasts nothing without training"
        raise ConfigError(what, where="trunk", fix="Name nano or a folder of such a trunk")
    length = around.context if context == "auto" else context
    if not is_whole(length) or not 1 <= length <= around.context:
        raise ConfigError(f"context is {context!r}", fix=f"Give 1 to {around.context} steps, or 'auto'")
    if not is_whole(horizon) or not 1 <= horizon <= FARTHEST:
        raise ConfigError(f"horizon is {horizon!r}", fix=f"Give 1 to {FARTHEST} steps")
    return build_experiment(
        {
            "data": {"source": "a table"},
            "task": {"name": "forecast", "input_length": int(length), "horizon": int(horizon)},
            "trunk": {"source": trunk, "n_layer": config.n_layer},
            "recipe": recipe,
            "adapters": adapters,
            "train": train,
        },
        where="parameters",
    )


def check_cycle(panel: Panel, fitted: str) -> None:
    """Refuse series whose step has another cycle than the one that a model was fitted on.

    Raises:
        DataError: It has, as days are no hours.
    """
    if fitted not in ("", panel.frequency) and (season_of(fitted) or 1) != panel.season:
        what = f"rows are {panel.frequency!r} apart, but the model was fitted on steps of {fitted!r}"
        raise DataError(what, fix="Fit one on such rows, or forecast them without fit")


class Places(NamedTuple):
    """Windows of a panel: the series of each and the step before which its input ends, ``[w]``."""

    series: np.ndarray
    cut: np.ndarray


class Forecast(NamedTuple):
    """Quantiles ``[w, h, q]`` at :data:`~ofa_jax.model.gpt2.LEVELS` and mean ``[w, h]``, float64."""

    levels: np.ndarray
    mean: np.ndarray


def forecast_windows(model: Model, inputs_wt: np.ndarray) -> Forecast:
    """Forecasts of the inputs ``[w, t]`` (float64, NaN where missing) in their units.

    Inputs are taken relative to their last value and of like size before float32 reads them, so that neither
    a high level nor a small unit costs digits. A constant is forecast as it is; of a window without any
    value the forecast is NaN, and of one with a single value every quantile besides the median.
    """
    seen_wt = np.isfinite(inputs_wt)
    last = np.where(seen_wt, np.arange(inputs_wt.shape[1]), 0).max(axis=1)
    level_w1 = np.take_along_axis(inputs_wt, last[:, None], axis=1)
    change_wt = np.where(seen_wt, inputs_wt - level_w1, 0)
    unit_w1 = np.abs(change_wt).max(axis=1, keepdims=True)
    x_wt = (change_wt / np.where(unit_w1 > 0, unit_w1, 1)).astype(np.float32)
    assert isinstance(model.network, PretrainedForecastNetwork)
    on_cpu = jax.default_backend() == "cpu"
    sizes = BATCHES[:-1] if on_cpu else BATCHES
    rows = next((size for size in sizes if size >= len(x_wt)), sizes[-1])
    program = _program(model.network, model.lora, soon=on_cpu and len(x_wt) <= FEW)

    def part_from(begin: int) -> list[np.ndarray]:
        x, seen = (part[begin : begin + rows, :, None] for part in (x_wt, seen_wt))
        empty = ((0, rows - len(x)), (0, 0), (0, 0))
        found = program(model.frozen, model.trainable, np.pad(x, empty), np.pad(seen, empty))
        return [np.asarray(part)[: len(x)] for part in found]

    begins = range(0, len(x_wt), rows)
    parts = list(side_by_side(part_from, begins, batches_in_flight(len(begins))))
    levels, mean = (np.concatenate(part).astype(np.float64) for part in zip(*parts, strict=True))
    levels_whq = level_w1[..., None] + unit_w1[..., None] * levels
    unknown = np.ix_(seen_wt.sum(axis=1) == 1, [True] * mean.shape[1], np.array(LEVELS) != 0.5)
    levels_whq[unknown] = np.nan
    return Forecast(levels_whq, level_w1 + unit_w1 * mean)


@lru_cache(maxsize=32)
def _program(
    network: PretrainedForecastNetwork, lora: LoraConfig, *, soon: bool = False
) -> Callable[..., Any]:
    """Forecasts of a batch; ``soon`` compiles in two thirds of the time what then runs a little slower."""
    own = QuantileForecastNetwork(network.trunk, network.input_length, network.horizon, network.patch)

    def apply(params: Any, x_btc: jax.Array, x_mask: jax.Array, dropout_keys: None = None) -> Any:
        return own.apply({"params": params}, x_btc, x_mask, dropout_keys=dropout_keys)

    def program(frozen: Any, trainable: Any, x_btc: jax.Array, x_mask: jax.Array) -> Any:
        params = combine(frozen, trainable["base"])
        return with_adapters(apply, lora)(params, trainable["adapters"], x_btc, x_mask)

    return jax.jit(program, compiler_options={"xla_backend_optimization_level": 1} if soon else None)


def places(panel: Panel, first: np.ndarray, last: np.ndarray, most: int, seed: int) -> Places:
    """The windows that are cut from ``first[n]`` to ``last[n]`` of each series, ``most`` of them by lot."""
    counts = np.maximum(last - first + 1, 0)
    end = np.cumsum(counts)
    total = int(end[-1])
    chosen = np.arange(total)
    if total > most:
        chosen = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    series = np.searchsorted(end, chosen, side="right")
    return Places(series, first[series] + chosen - (end - counts)[series])


def places_of_parts(panel: Panel, horizon: int, held_out: int, seed: int) -> dict[str, Places]:
    """Windows of ``train`` and of ``validation``, whose targets are in the last ``held_out`` steps."""
    steps, begin = panel.lengths, np.full(panel.n, LEAST)
    ranges = {
        "train": (begin, steps - held_out - horizon),
        "validation": (np.maximum(begin, steps - held_out), steps - horizon),
    }
    return {split: places(panel, *ends, MOST[split], seed) for split, ends in ranges.items()}


def training_task(
    panel: Panel, length: int, horizon: int, held_out: int, seed: int, *, settable: bool = True
) -> Task:
    """Forecasting the series of a panel, each standardized by what precedes its last ``held_out`` steps.

    Training targets end before these steps, validation targets are within them. ``settable``: whether
    horizon and ``held_out`` are the caller's to set, for the advice of errors.

    Raises:
        DataError: No series is long enough.
    """
    steps, cuts = panel.lengths, places_of_parts(panel, horizon, held_out, seed)
    if not all(len(found.cut) for found in cuts.values()):
        least = LEAST + horizon + held_out
        what = f"no series has {least} steps ({LEAST} to read, {horizon} to forecast, {held_out} held out); "
        fix = "Give longer series"
        fix += " or a smaller horizon or val_size, or call predict without fit" if settable else ""
        raise DataError(f"{what}the longest has {int(steps.max())}", fix=fix)
    known = np.isfinite(panel.values)
    early = known & (np.arange(len(known)) - panel.first[panel.series] < (steps - held_out)[panel.series])
    few = np.bincount(panel.series, early, panel.n) < 2
    used = np.where(few[panel.series], known, early)
    values = np.where(known, panel.values, 0)
    count = np.bincount(panel.series, used, panel.n)
    mean = np.bincount(panel.series, np.where(used, values, 0), panel.n) / count
    apart = np.where(known, panel.values - mean[panel.series], 0)
    spread = np.sqrt(np.bincount(panel.series, np.where(used, apart**2, 0), panel.n) / count)
    scale = np.where(spread > 1e-9 * (np.abs(mean) + np.finfo(float).tiny), spread, np.inf)  # a constant is 0
    before = np.append(0, known.cumsum())  # known values before each row
    for split, (series, cut) in cuts.items():
        begin = panel.first[series] + cut
        if not (before[begin + horizon] > before[begin]).any():
            what = f"no {split} window has a known value to forecast"
            fix = "Leave out the missing values at the end"
            raise DataError(what, fix=fix + ", or give another val_size" if settable else fix)
    tables = {}
    for split, (series, cut) in cuts.items():
        read = np.minimum(cut, length)
        tables[split] = WindowTable.of(
            panel.first[series] + cut - read, x_valid=read, y_valid=horizon, window_id=series
        )
    return Task(
        spec=WindowSpec(length, horizon, univariate=False, hide_filled=True),
        buffer=np.clip(apart / scale[panel.series], -1e4, 1e4).astype(np.float32)[:, None],
        observed=None if known.all() else known[:, None],
        tables=tables,  # type: ignore[arg-type]
        loss=squared_error,
        sums=forecast_sums,
        metrics=forecast_metrics,
        objective="mse",
    )


def errors_of_series(made_wh: np.ndarray, target_wh: np.ndarray, metric: str) -> np.ndarray:
    """The mean error of each forecast ``[w]``: ``mse``, ``smape``, else absolute; NaN without any target."""
    error = np.abs(made_wh - target_wh)
    if metric == "mse":
        error = error**2
    if metric == "smape":
        size = np.abs(made_wh) + np.abs(target_wh)
        error = np.divide(200 * error, size, out=np.where(size == 0, 0, error), where=size > 0)
    known = np.isfinite(target_wh)
    count = known.sum(axis=1)
    total = np.where(known, error, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)

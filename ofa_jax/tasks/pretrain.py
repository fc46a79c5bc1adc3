"""Pretraining of a trunk: quantile forecasts of generated series, or of a collection of one's own.

A window is a context of L steps and the H steps after it. Every training step redraws what of the context is
seen (from its end, log-uniform in length) and where the forecasts begin: statistics come from before that
point, the loss from after it, at every fourth token. Held-out windows are scored at the context's end.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import GENERATED, DataConfig, PretrainSettings
from ofa_jax.data.catalog.load import load_collection
from ofa_jax.errors import ConfigError
from ofa_jax.model.gpt2 import LEVELS
from ofa_jax.model.quantiles import PretrainNetwork, Quantiles, compress, units_of
from ofa_jax.prior.pool import Excerpts, Pool, Source
from ofa_jax.prior.source import Prior
from ofa_jax.tasks.base import Sums, Task, TaskData, TaskKind
from ofa_jax.windows.batch import Batch, Rows
from ofa_jax.windows.table import WindowSpec, WindowTable

HELD_OUT = {"validation": 4096, "test": 4096}
"""Windows that are never trained on, of any size of an epoch."""

_FIRST_HELD_OUT = 2**30  # their numbers; an epoch's begin at 0
_SHORTEST = 8  # steps of a context, and before the first forecast
_COMPLETE = 0.4  # share of contexts that are seen completely
_TARGET_LIMIT = 10.0  # standard deviations; bounds the squared error
_SQUARED = 0.1  # weight of the squared error of the mean


def prepare(data: DataConfig, task: PretrainSettings, protocol: Protocol = "strict") -> TaskData:
    """The windows of the first epoch and the held-out ones; the others are made while training.

    Raises:
        DataError: A collection cannot be read.
    """
    length = task.input_length + task.horizon
    prior = Prior(task.prior_seed, length)
    source: Source = prior
    notices: tuple[str, ...] = ()
    if data.source != GENERATED:
        collection, _ = load_collection(data.source, missing=data.missing)
        source, notices = Excerpts(collection.values, prior, task.generated), collection.notices
    pool = Pool(source, task.series)
    held_out = [
        source[_FIRST_HELD_OUT + number + first]
        for first, count in ((0, HELD_OUT["validation"]), (2**29, HELD_OUT["test"]))
        for number in range(count)
    ]
    refresh = partial(_rows, pool, np.stack(held_out))
    tables, first = {}, 0
    for split, count in {"train": task.series, **HELD_OUT}.items():
        starts = (first + np.arange(count)) * length
        tables[split] = WindowTable.of(
            starts, x_valid=task.input_length, y_valid=task.horizon, window_id=first + np.arange(count)
        )
        first += count
    rows = refresh(0)
    made = Task(
        spec=WindowSpec(task.input_length, task.horizon, univariate=False, hide_filled=True),
        buffer=rows.values,
        observed=rows.observed,
        tables=tables,  # type: ignore[arg-type]
        loss=quantile_loss,
        sums=quantile_sums,
        metrics=quantile_metrics,
        objective="pinball",
        protocol=protocol,
        corrupt=partial(draw_context, patch=16),
        refresh=refresh,
    )
    return TaskData(made, task, None, notices=notices)


def _rows(pool: Pool, held_out: np.ndarray, epoch: int) -> Rows:
    values = np.concatenate([pool.epoch(epoch), held_out]).reshape(-1, 1)
    observed = np.isfinite(values)
    return Rows(np.where(observed, values, 0), observed)


def draw_context(batch: Batch, keys_b: jax.Array, *, patch: int) -> Batch:
    """Draw what of each context is seen and where forecasts begin, and standardize.

    Returns:
        ``x`` ``[b, t, 1]`` after :func:`~ofa_jax.model.quantiles.compress`, ``x_mask`` False where not seen;
        ``y`` ``[b, t + h, 1]``, all steps standardized; ``y_mask`` True where observed and forecast.
    """
    length = batch.x.shape[1]
    whole, size, cut = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys_b).T
    steps = jnp.where(whole < _COMPLETE, length, jnp.round(_SHORTEST * (length / _SHORTEST) ** size))
    low = jnp.minimum(length - steps + _SHORTEST, length)
    begin = jnp.minimum(jnp.ceil((low + (length - low) * cut**0.7) / patch) * patch, length)[:, None]
    at = jnp.arange(length + batch.y.shape[1])[None]
    values = jnp.concatenate([batch.x, batch.y], axis=1)[..., 0]
    observed = jnp.concatenate([batch.x_mask, batch.y_mask], axis=1)[..., 0]
    seen = observed & (at >= length - steps[:, None])
    units = units_of(values, seen & (at < begin))
    z = units.standardize(values)
    return batch._replace(
        x=jnp.where(seen, compress(z), 0)[:, :length, None],
        x_mask=seen[:, :length, None],
        y=jnp.clip(z, -1e3, 1e3)[..., None],
        y_mask=(observed & (at >= begin) & units.known)[..., None],
    )


def quantile_loss(forecast: Quantiles, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Sum over windows of their mean :func:`terms`, and the number of windows with a target."""
    terms_bkh, counted_bkh = terms(forecast, batch)
    count = counted_bkh.sum(axis=(1, 2))
    mean = jnp.where(counted_bkh, terms_bkh, 0).sum(axis=(1, 2)) / jnp.maximum(count, 1)
    return mean.sum(), (count > 0).sum().astype(jnp.float32)


def terms(forecast: Quantiles, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Loss ``[b, k, h]`` of each token's forecasts, and which count.

    The pinball loss (times 2, mean over levels, after arcsinh) and a tenth of the squared error of the mean.
    """
    z_bkh, counted_bkh = _targets(forecast, batch)
    squared = jnp.square(jnp.clip(z_bkh, -_TARGET_LIMIT, _TARGET_LIMIT) - forecast.mean)
    return _pinball(forecast, z_bkh) + _SQUARED * jnp.minimum(squared, 20.0), counted_bkh


def _pinball(forecast: Quantiles, z_bkh: jax.Array) -> jax.Array:
    levels = jnp.array(LEVELS)
    error = compress(z_bkh)[..., None] - forecast.levels
    return 2 * jnp.maximum(levels * error, (levels - 1) * error).mean(axis=-1)


def _targets(forecast: Quantiles, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The steps ``[b, k, h]`` after each token and which count: those of tokens from the begin on."""
    _, tokens, horizon = forecast.mean.shape
    ends = (jnp.arange(tokens) + 1) * (batch.x.shape[1] // tokens)
    after = ends[:, None] + jnp.arange(horizon)
    begun = jnp.cumsum(batch.y_mask[..., 0], axis=1) > 0
    counted = batch.y_mask[:, after, 0] & begun[:, ends, None]
    return batch.y[:, after, 0], counted


def quantile_sums(forecast: Quantiles, batch: Batch) -> dict[str, jax.Array]:
    """Per window ``[b]`` at the context's end: pinball loss, squared error of the mean, coverage, targets."""
    last = Quantiles(forecast.levels[:, -1:], forecast.mean[:, -1:])
    z_bkh, counted = batch.y[:, None, batch.x.shape[1] :, 0], batch.y_mask[:, None, batch.x.shape[1] :, 0]
    compressed = compress(z_bkh)
    inside = (compressed >= last.levels[..., 0]) & (compressed <= last.levels[..., -1])
    squared = jnp.square(jnp.clip(z_bkh, -_TARGET_LIMIT, _TARGET_LIMIT) - last.mean)
    kept = {"pinball": _pinball(last, z_bkh), "squared_error": squared, "covered": inside, "count": counted}
    return {
        name: jnp.sum(jnp.where(counted, values, 0), axis=(1, 2)).astype(jnp.float32)
        for name, values in kept.items()
    }


def quantile_metrics(sums: Sums) -> dict[str, float]:
    """Means over all observed steps: pinball loss, MSE of the mean, and the coverage of the 80 % interval."""
    total = {name: float(np.sum(values, dtype=np.float64)) for name, values in sums.items()}
    count = total["count"]
    return {
        "pinball": total["pinball"] / count,
        "mse": total["squared_error"] / count,
        "coverage": total["covered"] / count,
    }


def apply(trained: Any, source: str | Path | Any) -> NoReturn:
    """A pretraining run is not applied itself.

    Raises:
        ConfigError: Always.
    """
    fix = "Run `ofa-jax convert RUN --out TRUNK`, and name TRUNK as trunk.source"
    raise ConfigError("a pretraining run makes a trunk, not a model", where="task.name", fix=fix)


PRETRAIN = TaskKind(
    settings=PretrainSettings, title="Pretraining", prepare=prepare, network=PretrainNetwork, apply=apply
)

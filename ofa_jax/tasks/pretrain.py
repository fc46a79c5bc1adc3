"""Pretraining of a trunk: quantile forecasts of generated series, or of a collection of one's own.

A window is a context of L steps and the H steps after it. Of the context the last steps are seen, in half
of the windows all, else a log-uniform number; they standardize the window. Of the steps after it the first
count, in half of the windows all, else a log-uniform number, never more than twice the steps that are seen.
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

_FIRST_HELD_OUT = {"validation": 2**30, "test": 2**30 + 2**29}  # numbers; those of epochs begin at 0
_SHORTEST = 8  # steps of a context, and before the first forecast
_COMPLETE = 0.5  # share of windows whose context is seen completely, and of those whose every target counts
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
        source[number] for first in _FIRST_HELD_OUT.values() for number in range(first, first + task.held_out)
    ]
    refresh = partial(_rows, pool, np.stack(held_out))
    tables, first = {}, 0
    for split, count in {"train": task.series, **dict.fromkeys(_FIRST_HELD_OUT, task.held_out)}.items():
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
        corrupt=draw_context,
        refresh=refresh,
    )
    return TaskData(made, task, None, notices=notices)


def _rows(pool: Pool, held_out: np.ndarray, epoch: int) -> Rows:
    values = np.concatenate([pool.epoch(epoch), held_out]).reshape(-1, 1)
    observed = np.isfinite(values)
    return Rows(np.where(observed, values, 0), observed)


def draw_context(batch: Batch, keys_b: jax.Array) -> Batch:
    """Draw what of each context is seen and which targets count, and standardize by what is seen.

    Returns:
        ``x`` and ``y`` in the units of what is seen, ``x_mask`` False where not seen, ``y_mask`` False where
        missing or the context is constant.
    """
    length, horizon = batch.x.shape[1], batch.y.shape[1]
    drawn_b4 = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(keys_b)
    steps, ahead = _some(length, *drawn_b4[:, :2].T), _some(horizon, *drawn_b4[:, 2:].T)
    seen = batch.x_mask & (jnp.arange(length) >= length - steps[:, None])[..., None]
    counted = (jnp.arange(horizon) < jnp.minimum(ahead, 2 * steps)[:, None])[..., None]
    units = units_of(batch.x[..., 0], seen[..., 0])
    x, y = (units.standardize(part[..., 0])[..., None] for part in (batch.x, batch.y))
    return batch._replace(
        x=jnp.where(seen, x, 0),
        x_mask=seen,
        y=jnp.clip(y, -1e3, 1e3),
        y_mask=batch.y_mask & counted & units.known[..., None],
    )


def _some(most: int, whole_b: jax.Array, size_b: jax.Array) -> jax.Array:
    """``most`` steps, or a log-uniform number of them, ``[b]``, by two uniform numbers."""
    fewest = min(_SHORTEST, most)
    return jnp.where(whole_b < _COMPLETE, most, jnp.round(fewest * (most / fewest) ** size_b))


def quantile_loss(forecast: Quantiles, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Sum over windows of their mean loss, and the number of windows with a target.

    The loss of a step is the pinball loss (times 2, mean over levels, after arcsinh) and a tenth of the
    squared error of the mean.
    """
    pinball, squared = _errors(forecast, batch)
    return _per_window(pinball + _SQUARED * jnp.minimum(squared, 20.0), batch)


def _errors(forecast: Quantiles, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Pinball loss and squared error of the mean, ``[b, h]``."""
    z_bh, levels = batch.y[..., 0], jnp.array(LEVELS)
    error = compress(z_bh)[..., None] - forecast.levels
    pinball = 2 * jnp.maximum(levels * error, (levels - 1) * error).mean(axis=-1)
    return pinball, jnp.square(jnp.clip(z_bh, -_TARGET_LIMIT, _TARGET_LIMIT) - forecast.mean)


def _per_window(terms_bh: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    counted_bh = batch.y_mask[..., 0]
    count = counted_bh.sum(axis=1)
    mean = jnp.where(counted_bh, terms_bh, 0).sum(axis=1) / jnp.maximum(count, 1)
    return mean.sum(), (count > 0).sum().astype(jnp.float32)


def quantile_sums(forecast: Quantiles, batch: Batch) -> dict[str, jax.Array]:
    """Per window ``[b]``: pinball loss, squared error of the mean, steps in the 80 % interval, targets."""
    pinball, squared = _errors(forecast, batch)
    z_bh, counted_bh = compress(batch.y[..., 0]), batch.y_mask[..., 0]
    covered = (z_bh >= forecast.levels[..., 0]) & (z_bh <= forecast.levels[..., -1])
    kept = {"pinball": pinball, "squared_error": squared, "covered": covered, "count": counted_bh}
    return {
        name: jnp.sum(jnp.where(counted_bh, terms, 0), axis=1).astype(jnp.float32)
        for name, terms in kept.items()
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

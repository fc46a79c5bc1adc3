"""Training of the last layer alone: hidden states are computed once, and epochs cost a matrix product.

Where everything that is trained is in ``out_layer`` of a pretrained forecaster, the rest of the network gives
the same for a window in every epoch. A window of the returned task is one row: its
:class:`~ofa_jax.model.quantiles.Features` and its targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.adapters.partition import combine
from ofa_jax.adapters.rslora import with_adapters
from ofa_jax.build import Model
from ofa_jax.data.splits import Split
from ofa_jax.model import trees
from ofa_jax.model.quantiles import FeatureNetwork, Features, PretrainedForecastNetwork, read_features
from ofa_jax.tasks.base import Predict, Task
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.memory import host_bytes
from ofa_jax.train.step import Corrupt, Params
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.table import ALL_CHANNELS, WindowSpec, WindowTable

LAST = "out_layer"
_ROOM = 0.2  # share of the machine's memory that features may take


class Cached(NamedTuple):
    """What is trained in place of the whole network; the trained tree is the same."""

    predict: Predict
    task: Task
    frozen: dict[str, Any]


class LastLayer(nn.Module):
    """``out_layer`` over rows ``[b, 1, k · d + 1 + h]`` of features."""

    horizon: int
    compute_dtype: jnp.dtype

    @nn.compact
    def __call__(self, rows_b1f: jax.Array, *, dropout_keys: jax.Array | None = None) -> jax.Array:
        row_bf = rows_b1f[:, 0]
        width = row_bf.shape[1] - 1 - self.horizon
        hidden, scale, forecast = jnp.split(row_bf, [width, width + 1], axis=1)
        layer = nn.Dense(self.horizon, dtype=self.compute_dtype, name=LAST)
        return read_features(Features(hidden.astype(self.compute_dtype), scale, forecast), layer)[..., None]


def cache_features(model: Model, task: Task, options: Mapping[str, Any]) -> Cached | None:
    """The same training on features; None where something else is trained, or they would not fit in memory.

    Args:
        model: With its initial parameters.
        task: Its task.
        options: Of the predictor that computes the features.
    """
    network = model.network
    if not isinstance(network, PretrainedForecastNetwork) or task.residue is not None:
        return None
    others = [path for path in trees.flatten(model.trainable["base"]) if not path.startswith(f"{LAST}/")]
    others += [path for path in model.trainable["adapters"] if path != LAST]
    config = network.trunk.config
    if others or any((config.embd_pdrop, config.attn_pdrop, config.resid_pdrop)):
        return None
    horizon, width = network.horizon, network.tokens_read * network.width
    splits: tuple[Split, ...] = ("train", "validation")
    windows = sum(task.tables[split].size for split in splits)
    if 4 * windows * (width + 1 + 3 * horizon) > _ROOM * host_bytes():
        return None
    read = WindowPredictor(features_of(network), task, row_of, **options)
    rows = {split: read(task.tables[split], model.frozen, model.trainable)["row"] for split in splits}
    cached = task_of_rows(task, {split: task.tables[split] for split in splits}, list(rows.values()), network)
    return Cached(last_layer_of(model), cached, frozen_of_last_layer(model))


def frozen_of_last_layer(model: Model) -> Params:
    """What the last layer has among the frozen parameters."""
    return {LAST: model.frozen[LAST]} if LAST in model.frozen else {}


def task_of_rows(
    task: Task,
    tables: dict[Split, WindowTable],
    rows: Sequence[np.ndarray],
    network: PretrainedForecastNetwork,
) -> Task:
    """The same task for the last layer alone: a window is one row of :func:`row_of`, in the tables' order."""
    first, found = 0, dict[Split, WindowTable]()
    for split, table in tables.items():
        found[split] = table._replace(
            first=np.arange(first, first + table.size, dtype=np.int32),
            channel=np.full(table.size, ALL_CHANNELS, np.int32),
            x_valid=np.ones(table.size, np.int32),
            y_valid=np.zeros(table.size, np.int32),
        )
        first += table.size
    width = network.tokens_read * network.width + 1 + network.horizon
    return replace(
        task,
        spec=WindowSpec(1, 0, univariate=False),
        buffer=np.concatenate(rows),
        observed=None,
        tables=found,
        corrupt=_unpacking(width),
    )


def last_layer_of(model: Model) -> Predict:
    """The rest of ``predict`` after :func:`features_of`, of rows ``[b, 1, k · d + 1 + h]`` of features."""
    own = model.network
    assert isinstance(own, PretrainedForecastNetwork)
    layer = LastLayer(own.horizon, own.trunk.compute_dtype)

    def apply(params: Any, rows_b1f: jax.Array, *, dropout_keys: jax.Array | None = None) -> jax.Array:
        return layer.apply({"params": params}, rows_b1f, dropout_keys=dropout_keys)  # type: ignore[return-value]

    def predict(frozen, trainable, x_btc, x_mask=None, *, dropout_keys=None, scale=None):
        params = combine(frozen, trainable["base"])
        adapted = with_adapters(apply, model.lora, scale=scale)
        return adapted(params, trainable["adapters"], x_btc, dropout_keys=dropout_keys)

    return predict


@lru_cache(maxsize=32)
def features_of(own: PretrainedForecastNetwork) -> Callable[..., Any]:
    """``predict`` up to its last layer, which gives :class:`~ofa_jax.model.quantiles.Features`."""
    network = FeatureNetwork(own.trunk, own.input_length, own.horizon, own.patch)

    def features(frozen, trainable, x_btc, x_mask=None, *, dropout_keys=None):
        params = combine(frozen, trainable["base"])
        return network.apply({"params": params}, x_btc, x_mask)

    return features


def row_of(given: Features, batch: Batch) -> dict[str, jax.Array]:
    """Features, targets and which of these are known as one row of a window, ``[b, k · d + 1 + 3 h]``."""
    targets = (batch.y[..., 0], batch.y_mask[..., 0].astype(jnp.float32))
    return {"row": jnp.concatenate([join(given), *targets], axis=1)}


def join(given: Features) -> jax.Array:
    """Features as one row of a window, ``[b, k · d + 1 + h]``."""
    return jnp.concatenate([given.hidden.astype(jnp.float32), given.scale, given.forecast], axis=1)


@lru_cache(maxsize=32)
def _unpacking(width: int) -> Corrupt:
    return partial(_unpack, width=width)  # one object, so that a compiled program is found again


def _unpack(batch: Batch, keys_b: jax.Array, *, width: int) -> Batch:
    row_bf = batch.x[:, 0]
    y_bh, known_bh = jnp.split(row_bf[:, width:], 2, axis=1)
    real = (batch.weight > 0)[:, None]
    return batch._replace(
        x=row_bf[:, None, :width],
        x_mask=batch.x_mask[..., :width],
        y=y_bh[..., None],
        y_mask=((known_bh > 0.5) & real)[..., None],
    )

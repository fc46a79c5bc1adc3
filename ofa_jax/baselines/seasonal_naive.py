"""Seasonal naive: the last cycle, repeated."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np


def seasonal_naive(season: int, horizon: int) -> Callable[..., jax.Array]:
    """``predict(frozen, trainable, x_btc, x_mask=None) -> [b, h, c]``: step j repeats the value one or more whole cycles before it.

    A window shorter than the cycle repeats its last value (season 1). Nothing is trained; both trees may be empty.
    """

    def predict(frozen, trainable, x_btc, x_mask=None, *, dropout_keys=None):
        length = x_btc.shape[1]
        cycle = season if season <= length else 1
        return x_btc[:, length - cycle + np.arange(horizon) % cycle]

    return predict

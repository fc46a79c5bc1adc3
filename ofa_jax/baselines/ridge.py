"""NLinear in closed form: ridge regression whose penalty is chosen on validation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.model.linear import less_last
from ofa_jax.model.quantiles import Features
from ofa_jax.runs.features import row_of
from ofa_jax.runs.reduced_rank import PENALTIES, Reader, Watch, choose, windows_of
from ofa_jax.tasks.base import Task
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.progress import Reporter
from ofa_jax.train.signals import stop_on_signal
from ofa_jax.train.step import Params


def solve_nlinear(task: Task, reporter: Reporter) -> Params:
    """The parameters of :func:`~ofa_jax.model.linear.nlinear` with the least penalized squared error.

    At most as many windows are read as for an adapter (:mod:`ofa_jax.runs.reduced_rank`).

    Raises:
        TrainError: A window is not finite.
        Interrupted: A signal asked for a stop.
    """
    length, horizon = task.spec.input_length, task.spec.horizon
    predict: Callable[..., Any] = partial(_features, horizon=horizon)
    predictor, weights = WindowPredictor(predict, task, row_of), np.ones(length + 1)
    with stop_on_signal(reporter.notice) as request:
        watch = Watch(request, reporter)
        reader = Reader(predictor, weights, ({}, {}), watch)
        train = reader.moments(task.tables["train"])
        _, rows = reader.validation_rows(task.tables["validation"])
        solving, validation = watch.at("solving", len(PENALTIES)), windows_of(rows, weights)
        found = choose(train, validation, horizon, solving, spans=1, kept_gain=1.0)
    kernel = (found.a @ found.b).astype(np.float32)
    return {"kernel": kernel[:-1], "bias": kernel[-1]}


def _features(
    frozen: Any, trainable: Any, x_btc: jax.Array, x_mask: Any = None, *, horizon: int, **_: Any
) -> Features:
    """Differences from the last value and a one; the forecast that is improved is the last value."""
    x_bt, last_b1 = (part[..., 0] for part in less_last(x_btc, x_mask))
    one_b1 = jnp.ones_like(last_b1)
    forecast_bh = jnp.repeat(last_b1, horizon, axis=1)
    return Features(jnp.concatenate([x_bt, one_b1], axis=1), one_b1, forecast_bh)

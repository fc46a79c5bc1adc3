"""The imputer: a data frame with missing values in, the same frame without them out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import narwhals.stable.v2 as nw
import numpy as np
import pandas as pd

from ofa_jax.build import build_model
from ofa_jax.errors import DataError
from ofa_jax.estimators.adapted import Adapted, AdaptedEstimator, AdaptedRecord, check_share
from ofa_jax.estimators.base import OfFrames
from ofa_jax.estimators.gaps import fill_gaps, find_weights
from ofa_jax.estimators.panel import Panel
from ofa_jax.estimators.steps import Steps, length_of, spread_of
from ofa_jax.tasks.imputation import hide_points
from ofa_jax.windows.batch import Batch

_LENGTH = 40
_HELD_OUT = 0.2


@dataclass(kw_only=True, eq=False, repr=False)
class OneForAllImputer(AdaptedEstimator, OfFrames):
    """Missing values of many series, filled by a frozen trunk.

    Every series is filled separately and relative to its own values, so that :meth:`transform` takes any.
    There are two methods. ``forecast`` needs a trunk that was pretrained on series. It forecasts a gap from
    what precedes and, backwards, from what follows it, and weights that with a straight line by the length of
    the gap; :meth:`fit` finds these weights and trains nothing. ``reconstruction`` is for any trunk.
    :meth:`fit` hides values in short windows and adapts the trunk to reconstruct them.

    Args:
        freq: Step between rows, as pandas or polars call it (``"h"``, ``"1h"``, ``"ME"``); an integer of
            integer times; default: inferred for each series. Rows are checked to follow it.
        method: ``forecast`` or ``reconstruction``.
        input_length: Steps that are read; default: what the trunk reads, for reconstruction at most 40. For
            reconstruction each step takes one of the trunk's positions.
        mask_rate: Share of points that reconstruction hides one by one; in half of the windows a run as well.
        recipe: What reconstruction trains (:data:`ofa_jax.RECIPES`). The following parameters, too, are for
            it alone.
        trunk: ``nano``, which comes with the package, the folder or hub id of a GPT-2, or ``random``.
        rank: Rank of the adapters.
        alpha: Their scale is alpha / sqrt(rank).
        epochs: Passes over the training windows; the best on the last fifth of each series is kept.
        learning_rate: Initial learning rate.
        batch_size: Windows per step.
        seed: Seed of adapters, batches and drawn windows.
        id_col, time_col, target_col: Names of columns of long frames.
        verbose: Whether :meth:`fit` shows its progress.
    """

    noun: ClassVar[str] = "imputer"

    method: Literal["forecast", "reconstruction"] = "forecast"
    input_length: int | Literal["auto"] = "auto"
    mask_rate: float = 0.25
    recipe: str = "gpt4ts"
    batch_size: int = 64

    def fit(self, df: Any) -> Self:
        """Find the weights of forecasts, or adapt the trunk, by hiding values that are there.

        Args:
            df: A long or wide frame of pandas or polars (:func:`~ofa_jax.estimators.reading.read_panel`);
                values may be missing.

        Raises:
            DataError: The frame cannot be read, or its series are too short.
            ConfigError: A parameter is out of range.
        """
        check_share("mask_rate", self.mask_rate)
        around, panel = self._around(self.method), self._read(df)
        if around is not None:
            length = length_of(self.input_length, around.context, around.context)
            settings = {"name": "forecast", "input_length": length, "horizon": around.horizon}
            experiment = self._experiment(panel.n, settings, recipe="output")
            model = build_model(experiment)
            self.weights_ = find_weights(model, panel, self._seed())
            self.fitted_ = Adapted(model, experiment, None, {"frequency": panel.frequency}, 0, {})
            return self
        length = length_of(self.input_length, self._positions(), _LENGTH)
        steps = Steps(panel, spread_of(panel))
        hide = partial(hide_gaps, rate=self.mask_rate)
        task = steps.training(length, _HELD_OUT, hide, self._seed())
        settings = {
            "name": "imputation",
            "input_length": length,
            "channels": 1,
            "calendar": 0,
            "mask_rate": self.mask_rate,
        }
        experiment = self._experiment(task.tables["train"].size, settings)
        self.fitted_ = self._adapt(experiment, task, None, {"frequency": panel.frequency})
        return self

    def transform(self, df: Any, return_mask: bool = False) -> Any:
        """Fill the missing values of the target column, of a wide frame those of every series.

        Args:
            df: A frame as of :meth:`fit`, of any series.
            return_mask: Whether to return also which values were filled.

        Returns:
            ``df`` with its rows, order, library and types; observed values are the same bits, and whole
            numbers are filled with whole numbers. With ``return_mask`` a pair of it and of a boolean array
            ``[rows]``, of a wide frame ``[rows, series]``.

        Raises:
            NotFittedError: Before :meth:`fit`.
            DataError: The frame cannot be read, or a column with missing values has no numbers.
        """
        fitted = self._known()
        columns, panel = self._columns, self._read(df)
        long = columns.target in nw.from_native(df, eager_only=True).columns
        names = [columns.target] if long else list(panel.ids)
        gone, rows = ~np.isfinite(panel.values), panel.rows
        column = np.zeros(len(rows), int) if long else panel.series
        mask = np.zeros((len(rows) // len(names), len(names)), bool)
        mask[rows[gone], column[gone]] = True
        filled = df
        if gone.any():
            values = self._values(fitted, panel)
            for number in np.unique(column[gone]):
                own = gone & (column == number)
                filled = _fill(filled, names[number], rows[own], values[own])
        return (filled, mask[:, 0] if long else mask) if return_mask else filled

    def fit_transform(self, df: Any, return_mask: bool = False) -> Any:
        """:meth:`fit`, then :meth:`transform`."""
        return self.fit(df).transform(df, return_mask)

    def _values(self, fitted: Adapted, panel: Panel) -> np.ndarray:
        """The value of every row, ``[rows]``."""
        task = fitted.experiment.task
        if task.name == "forecast":
            return fill_gaps(fitted.model, panel, self.weights_)
        return Steps(panel, spread_of(panel)).mean(fitted, task.input_length)

    def _further(self) -> dict[str, Any]:
        return {"weights": getattr(self, "weights_", None)}

    def _restore(self, record: AdaptedRecord) -> None:
        if record.weights is not None:
            self.weights_ = record.weights


def hide_gaps(batch: Batch, keys_b: jax.Array, *, rate: float) -> Batch:
    """:func:`~ofa_jax.tasks.imputation.hide_points` of one channel, and in half of the windows a run as well.

    A run has up to half the steps of a window.
    """
    length = batch.x.shape[1]
    made = hide_points(batch, keys_b, rate=rate, channels=1)

    def run(key: jax.Array) -> jax.Array:
        draw = jax.random.uniform(jax.random.fold_in(key, 1), (3,))
        steps = jnp.where(draw[0] < 0.5, 1 + draw[1] * (length // 2), 0).astype(jnp.int32)
        begin = (draw[2] * (length - steps + 1)).astype(jnp.int32)
        at = jnp.arange(length)
        return (at >= begin) & (at < begin + steps)

    run_bt1 = jax.vmap(run)(keys_b)[..., None]
    hidden = jnp.pad(run_bt1, ((0, 0), (0, 0), (0, batch.x.shape[-1] - 1)))
    return made._replace(
        x=jnp.where(hidden, 0, made.x),
        x_mask=made.x_mask & ~hidden,
        y_mask=made.y_mask | (run_bt1 & batch.x_mask[..., :1]),
    )


def _fill(frame: Any, name: str, rows: np.ndarray, values: np.ndarray) -> Any:
    """The frame with ``values`` in ``rows`` of one column, in the column's type."""
    if not len(rows):
        return frame
    table = nw.from_native(frame, eager_only=True)
    kind = table.schema[name]
    if not (kind.is_float() or kind.is_integer()):
        what = f"`{name}` has missing values and is of type {kind}"
        raise DataError(what, fix="Convert it to numbers first")
    made = np.rint(values) if kind.is_integer() else values
    if isinstance(frame, pd.DataFrame):
        column = frame[name].copy()
        column.iloc[rows] = pd.Series(made).astype(column.dtype).array
        return frame.assign(**{name: column})
    filled = nw.new_series(name, made, backend=table.implementation).cast(kind)
    return nw.to_native(table.with_columns(table[name].scatter(rows.tolist(), filled)))

"""The forecaster with the interface of sktime; needs ``pip install 'ofa-jax[sktime]'``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from ofa_jax.errors import DataError
from ofa_jax.estimators.forecaster import OneForAllForecaster
from ofa_jax.integrations import extra

with extra("sktime"):
    from sktime.forecasting.base import BaseForecaster


class OneForAllSktimeForecaster(BaseForecaster):
    """:class:`~ofa_jax.OneForAllForecaster` with the interface of sktime; every column is a separate series.

    Steps without a row are missing values. Covariates are not read.

    Args:
        adapt: Whether ``fit`` adapts the trunk to the columns, up to the last step of ``fh``, which it then
            needs; default: forecasts are zero-shot.
        context: Steps that a forecast reads at most; default: what the trunk reads.
        trunk: ``nano``, which comes with the package, or the folder of another pretrained trunk.
        rank: Rank of the adapter.
        alpha: Its scale is alpha / sqrt(rank).
        seed: Seed of the adapter and of drawn windows.

    Example:
        >>> from sktime.datasets import load_airline
        >>> from ofa_jax.integrations.sktime import OneForAllSktimeForecaster
        >>> forecast = OneForAllSktimeForecaster().fit(load_airline()).predict(fh=[1, 12])
        >>> forecast.index.astype(str).tolist()
        ['1961-01', '1961-12']
    """

    _tags: ClassVar[dict[str, Any]] = {
        "authors": "ofa-jax",
        "maintainers": "ofa-jax",
        "y_inner_mtype": "pd.DataFrame",
        "X_inner_mtype": "pd.DataFrame",
        "capability:multivariate": True,
        "capability:exogenous": False,
        "capability:missing_values": True,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:update": True,
        "requires-fh-in-fit": False,
    }
    _config: ClassVar[dict[str, Any]] = {"remember_data": False}  # the rows are in _cur_y

    def __init__(
        self,
        adapt: bool = False,
        context: int | Literal["auto"] = "auto",
        trunk: str = "nano",
        rank: int = 16,
        alpha: float = 16,
        seed: int = 0,
    ) -> None:
        self.adapt = adapt
        self.context = context
        self.trunk = trunk
        self.rank = rank
        self.alpha = alpha
        self.seed = seed
        super().__init__()
        self._y = self._X = None  # for those who set remember_data
        if adapt:
            self.set_tags(**{"requires-fh-in-fit": True})

    def _fit(self, y: pd.DataFrame, X: Any, fh: Any) -> OneForAllSktimeForecaster:
        self._cur_y = _every_step(y, getattr(self._cutoff, "freq", None))
        parameters = self.get_params()
        adapt = parameters.pop("adapt")
        self.forecaster_ = OneForAllForecaster(int(self._ahead(fh).max()) if adapt else 1, **parameters)
        if adapt:
            self.forecaster_.fit(_long(self._cur_y))
        return self

    def _update(
        self, y: pd.DataFrame, X: Any = None, update_params: bool = True
    ) -> OneForAllSktimeForecaster:
        rows = _every_step(y.combine_first(self._cur_y), getattr(self._cur_y.index, "freq", None))
        if update_params and self.adapt:
            return self._fit(rows, X, self._fh)
        self._cur_y = rows
        return self

    def _predict(self, fh: Any, X: Any) -> pd.DataFrame:
        return self._forecasts(fh, [])["OneForAll"]

    def _predict_quantiles(self, fh: Any, X: Any, alpha: list[float]) -> pd.DataFrame:
        found = self._forecasts(fh, sorted(set(alpha)))
        parts = {share: found[f"OneForAll_ql{share:g}"] for share in alpha}
        values = [parts[share].iloc[:, at] for at in range(self._cur_y.shape[1]) for share in alpha]
        columns = pd.MultiIndex.from_product([self._get_varnames(), alpha])
        return pd.concat(values, axis=1).set_axis(columns, axis=1)

    def _forecasts(self, fh: Any, quantiles: list[float]) -> dict[str, pd.DataFrame]:
        """Each column of a forecast by its name, as a table of the steps of ``fh`` and the series."""
        ahead, y = self._ahead(fh), self._cur_y
        steps, index = int(ahead.max()), fh.to_absolute_index(self._cutoff)
        table = self.forecaster_.predict(_long(y), h=steps, quantiles=quantiles or None).iloc[:, 2:]
        by_series = {name: values.to_numpy().reshape(-1, steps) for name, values in table.items()}
        return {
            name: pd.DataFrame(values.T[ahead - 1], index=index, columns=y.columns)
            for name, values in by_series.items()
        }

    def _ahead(self, fh: Any) -> np.ndarray:
        return fh.to_relative(self._cutoff).to_numpy().astype(int)

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Parameters that sktime's tests use: zero-shot, since each ``fit`` that adapts takes seconds."""
        return [{}, {"context": 24}]


def _every_step(y: pd.DataFrame, freq: Any) -> pd.DataFrame:
    """The table with a row for every step of its index, which is ``freq`` where times do not show it.

    Raises:
        DataError: The rows do not follow a step, one repeats, or no two are neighbors.
    """
    index: pd.Index = y.index
    grid: pd.Index
    if not index.is_unique:
        what = f"there are several rows of {index[index.duplicated()][0]}"
        raise DataError(what, where="y", fix="Give one row per step")
    if isinstance(index, pd.DatetimeIndex):
        freq = index.freq or freq
        if freq is None:
            what = f"the step between the times from {index[0]} to {index[-1]} is unknown"
            raise DataError(what, where="y", fix="State it: y.asfreq('D') gives every day a row")
        grid = pd.date_range(index[0], index[-1], freq=freq)
    elif isinstance(index, pd.PeriodIndex):
        grid = pd.period_range(index[0], index[-1], freq=index.freq)
    else:
        grid = pd.RangeIndex(index[0], index[-1] + 1)
    at = grid.get_indexer(index)
    if (at < 0).any():
        what = f"{index[int((at < 0).argmax())]} is not a whole number of steps after {index[0]}"
        raise DataError(what, where="y", fix="Give every step a row, and NaN where there is no value")
    if len(at) > 1 and np.diff(at).min() > 1:
        what = f"no two rows are neighbors: {index[1]} follows {index[0]}"
        raise DataError(what, where="y", fix="Count rows by one: y.reset_index(drop=True)")
    return y.reindex(grid)


def _long(y: pd.DataFrame) -> pd.DataFrame:
    rows, columns = y.shape
    at = {"unique_id": np.repeat(y.columns.to_numpy(), rows), "ds": np.tile(np.arange(rows), columns)}
    return pd.DataFrame(at | {"y": y.to_numpy(float).T.ravel()})

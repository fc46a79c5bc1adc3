"""The zero-shot forecaster as a model of fev's benchmarks; needs ``pip install 'ofa-jax[fev]'``."""

from __future__ import annotations

from typing import Any, ClassVar

from ofa_jax.estimators.forecaster import OneForAllForecaster
from ofa_jax.integrations import extra

with extra("fev"):
    import fev
    from fev.utils import convert_forecast_df_to_predictions

_SQUARED = ("MSE", "RMSE", "RMSSE")
"""Metrics that the mean minimizes; for others the point forecast is the median."""


class OneForAllModel(fev.ForecastingModel):
    """Zero-shot forecasts by ``nano``; every target is a separate series, and covariates are not read."""

    model_name = "oneforall-nano"
    trained_on_datasets: ClassVar[list[str]] = []  # nano was pretrained on generated series alone

    def _fit_predict(self, task: fev.Task) -> list[Any]:
        metric = task.eval_metric if isinstance(task.eval_metric, str) else task.eval_metric["name"]
        point = "OneForAll" if metric in _SQUARED else "OneForAll_ql0.5"
        names = {f"OneForAll_ql{share:g}": str(share) for share in task.quantile_levels}
        shares = sorted({0.5, *task.quantile_levels})
        model = OneForAllForecaster(task.horizon)
        predictions = []
        for window in task.iter_windows(num_proc=0):  # in this process: one forked from jax may hang
            past, *_ = fev.convert_input_data(window, adapter="nixtla", as_univariate=True)
            # steps are counted, since fev reads only the order of the rows
            past = past.assign(ds=past.groupby("unique_id", sort=False).cumcount())[["unique_id", "ds", "y"]]
            with self._record_inference_time():
                made = model.predict(past, quantiles=shares)
            made = made.assign(predictions=made[point]).rename(columns=names)
            predictions.append(
                convert_forecast_df_to_predictions(
                    made, task.horizon, task.quantile_levels, task.target_columns
                )
            )
        return predictions

"""Apply a trained model to new data, for every task."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ofa_jax.errors import DataError
from ofa_jax.files import write_output
from ofa_jax.runs.bundle import LoadedModel
from ofa_jax.tasks.base import NewData, TaskData
from ofa_jax.tasks.table import TASKS
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.program import evaluation_options

if TYPE_CHECKING:
    from ofa_jax.data.splits import Split


def predict(loaded: LoadedModel, source: str | Path | pd.DataFrame, **reading: Any) -> pd.DataFrame:
    """Apply a model to new data in original units.

    Args:
        loaded: The model, from :func:`~ofa_jax.runs.bundle.load_bundle` or ``open_run``.
        source: A CSV, Excel or Parquet file or a DataFrame; for classification a ``.ts`` file.
        reading: Settings of how it is read where it is not read as the training data were, such as
            ``missing="linear"`` (:data:`~ofa_jax.config.tasks.READING`).

    Returns:
        Forecasting: the horizon after the last row, a row per step. Anomaly detection: ``score`` (NaN where
        all values are missing) and ``anomaly`` per row. Classification: the ``predicted`` class and the
        probability of every class per case. Imputation: the input with its gaps filled.

    Raises:
        DataError: The data cannot be read or do not fit the model.
    """
    return apply_model(loaded, read_input(loaded, source, **reading))


def read_input(loaded: LoadedModel, source: str | Path | pd.DataFrame, **reading: Any) -> NewData:
    """New data laid out for a model, with their table and figure; see :class:`~ofa_jax.tasks.base.NewData`.

    Raises:
        DataError: As :func:`predict`.
    """
    if loaded.record.covariates:
        fix = "Use OneForAllForecaster.load(…).predict(futr_df=…)"
        raise DataError("the forecaster reads covariates, which are not given here", fix=fix)
    return TASKS[loaded.experiment.task.name].apply(replace(loaded.trained_on, reading=reading), source)


def apply_model(loaded: LoadedModel, new: NewData) -> pd.DataFrame:
    """The table of :func:`predict` for data that were read."""
    model = loaded.model
    options = evaluation_options(loaded.experiment.train, model.network)
    predictor = WindowPredictor(model.predict, new, new.outputs, **options)
    table = new.to_table(predictor(new.table, model.frozen, model.trainable))
    numbers = table.select_dtypes("number")
    values = numbers.to_numpy(np.float64)
    known = np.full(len(table), True) if new.without is None else ~new.without
    wrong = np.argwhere(~np.isfinite(values) & known[:, None])
    if len(wrong):
        row, column = wrong[0]
        what = f"the model gives {values[row, column]} for `{numbers.columns[column]}` in row {row + 1}"
        raise DataError(what, fix="Look for values in the input that are far outside those of training")
    return table


def evaluate(loaded: LoadedModel, data: TaskData, split: Split = "test") -> dict[str, float]:
    """The model's metrics on every window of a split of the data it was trained on."""
    model, task = loaded.model, data.task
    options = evaluation_options(loaded.experiment.train, model.network)
    predictor = WindowPredictor(model.predict, task, task.sums, **options)
    metrics = task.final_metrics(lambda table: predictor(table, model.frozen, model.trainable), split)
    if wrong := [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]:
        what = f"on the {split} part {wrong[0]}"
        raise DataError(what, where=loaded.experiment.data.source, fix="Look for extreme values in that part")
    return metrics


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV, atomically; a stream (``-``, a device, a pipe) is written through."""
    write_output(path, table.to_csv(index=False))


def formula_names(table: pd.DataFrame) -> list[str]:
    """Columns and texts of a table that begin with ``=``, ``+``, ``-`` or ``@``; they stay as they are."""
    texts = [name for name in table.columns if isinstance(name, str)]
    for name in table.select_dtypes(["object", "string"]):
        texts += [value for value in table[name].unique() if isinstance(value, str)]
    return [text for text in dict.fromkeys(texts) if text.startswith(("=", "+", "-", "@"))]

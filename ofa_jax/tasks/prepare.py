"""The table of tasks: from an experiment's settings to windows, loss and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ofa_jax.config import DataConfig, Protocol, TaskConfig, TaskName
from ofa_jax.tasks import anomaly, classification, imputation, series
from ofa_jax.tasks import forecast as forecasting
from ofa_jax.tasks.base import TaskData

PREPARE: Mapping[TaskName, Callable[..., TaskData]] = {
    "forecast": forecasting.prepare,  # long-term; few-shot with data.percent
    "zero_shot": series.prepare_zero_shot,
    "short_term": series.prepare_short_term,
    "anomaly": anomaly.prepare_anomaly,
    "classification": classification.prepare_classification,
    "imputation": imputation.prepare_imputation,
}
"""``prepare(data, task, protocol=…, batch_size=…) -> TaskData`` by ``task.name``."""


def prepare(data: DataConfig, task: TaskConfig, *, protocol: Protocol, batch_size: int) -> TaskData:
    """Read the data of a task, split and scale them, and lay out the windows of each split.

    Args:
        data: Which data, and how they are read and split.
        task: What is asked.
        protocol: Whose practice is followed where §5 of the protocol tells two apart.
        batch_size: Training windows a step; the published protocol drops what does not fill a batch.

    Raises:
        DataError: The data cannot be read, or do not fit the task.
        ConfigError: A setting is out of range.
    """
    return PREPARE[task.name](data, task, protocol=protocol, batch_size=batch_size)

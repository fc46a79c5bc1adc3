"""The table of tasks."""

from __future__ import annotations

from dataclasses import replace

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import DataConfig, TaskSettings
from ofa_jax.errors import TooShort
from ofa_jax.tasks import anomaly, classification, forecast, imputation, pretrain, series
from ofa_jax.tasks.base import TaskData, TaskKind

TASKS: dict[str, TaskKind] = {
    "forecast": forecast.FORECAST,  # long-term; few-shot with data.percent
    "zero_shot": series.ZERO_SHOT,
    "short_term": series.SHORT_TERM,
    "anomaly": anomaly.ANOMALY,
    "classification": classification.CLASSIFICATION,
    "imputation": imputation.IMPUTATION,
    "pretrain": pretrain.PRETRAIN,
}
"""Every task by ``task.name``."""


def prepare(
    data: DataConfig, task: TaskSettings, *, protocol: Protocol, batch_size: int, segment: int = 1
) -> TaskData:
    """Read the data of a task, split and scale them, and lay out the windows of each split.

    Args:
        data: Which data, and how they are read and split.
        task: The task's settings.
        protocol: Which practice to follow where protocol §5 distinguishes two.
        batch_size: Windows per training step; the published protocol drops partial batches.
        segment: Steps that anomaly detection normalizes together; its input lengths are multiples of it.

    Raises:
        DataError: The data cannot be read, or do not fit the task.
        ConfigError: A setting is out of range.
    """
    made = _fitted(data, task, protocol, segment if task.name == "anomaly" else 1)
    made.task.check_targets(data.source)
    return replace(made, task=made.task.with_full_batches(batch_size))


def _fitted(data: DataConfig, task: TaskSettings, protocol: Protocol, multiple: int) -> TaskData:
    """The data, with defaults of the task that are too long for them replaced by sizes that fit."""
    now, given = task, task.model_fields_set
    fitted: dict[str, int] = {}
    while True:
        try:
            made = TASKS[task.name].prepare(data, now, protocol)
            break
        except TooShort as error:
            unset = {name: size for name, size in error.sizes.items() if name not in given}
            if "input_length" in unset:
                unset["input_length"] -= unset["input_length"] % multiple
            smaller = {name: size for name, size in unset.items() if 0 < size < getattr(now, name)}
            if not smaller:
                raise
            fitted |= smaller
            now = task.model_copy(update=fitted)
    if not fitted:
        return made
    sizes = " and ".join(f"task.{name} = {size}" for name, size in fitted.items())
    notice = f"the series are short, so sizes that were not given fit them: {sizes}"
    return replace(made, notices=(notice, *made.notices))

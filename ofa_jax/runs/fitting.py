"""Training of a model by the solver that the settings name; the last layer alone trains on features."""

from __future__ import annotations

from collections.abc import Callable

from ofa_jax.build import Model
from ofa_jax.config.schema import TrainConfig
from ofa_jax.runs.features import Cached, cache_features
from ofa_jax.runs.ridge import is_closed_form, solve
from ofa_jax.tasks.base import Task
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.events import EventLog
from ofa_jax.train.fit import FitResult, fit
from ofa_jax.train.lanes import Progress
from ofa_jax.train.program import evaluation_options, resolve_auto_batch_sizes
from ofa_jax.train.progress import SILENT, Reporter
from ofa_jax.train.step import Params


def fit_model(
    model: Model,
    task: Task,
    settings: TrainConfig,
    *,
    reporter: Reporter = SILENT,
    log: EventLog | None = None,
    checkpoints: Checkpoints | None = None,
    keep_best: Callable[[Params, Progress], None] | None = None,
) -> FitResult:
    """Train the model's trainable tree; a pretrained forecaster keeps its initial one if none is better.

    Arguments and errors are those of :func:`~ofa_jax.train.fit.fit` and :func:`~ofa_jax.runs.ridge.solve`.
    """
    if is_closed_form(model, task, settings):
        return solve(
            *(model, task, settings), reporter=reporter, log=log, checkpoints=checkpoints, keep_best=keep_best
        )
    cached = cache_features(model, task, evaluation_options(settings, model.network))
    if cached:
        reporter.notice("only the last layer is trained: hidden states were computed once")
    predict, task, frozen = cached or Cached(model.predict, task, model.frozen)
    return fit(
        predict,
        task,
        frozen=frozen,
        trainable=model.trainable,
        settings=resolve_auto_batch_sizes(settings, model.network),
        reporter=reporter,
        log=log,
        checkpoints=checkpoints,
        keep_best=keep_best,
        score_initial=model.network.pretrained,
    )

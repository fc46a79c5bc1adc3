"""Train one set of parameters on a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ofa_jax.config.schema import TrainConfig
from ofa_jax.tasks.base import Task
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.devices import Layout
from ofa_jax.train.events import EventLog
from ofa_jax.train.lanes import Lane, Progress
from ofa_jax.train.loop import Trainer
from ofa_jax.train.program import Program
from ofa_jax.train.progress import SILENT, Reporter
from ofa_jax.train.signals import stop_on_signal
from ofa_jax.train.step import Params, Predict

SOLVED = "solved in closed form"
"""Why training without steps ended (:mod:`ofa_jax.runs.ridge`)."""


class FitResult(NamedTuple):
    """The best tree on validation and the last one (NumPy leaves), counters, and why training ended."""

    best: Params
    last: Params
    progress: Progress
    reason: str


def fit(
    predict: Predict,
    task: Task,
    *,
    frozen: Params,
    trainable: Params,
    settings: TrainConfig,
    reporter: Reporter = SILENT,
    log: EventLog | None = None,
    checkpoints: Checkpoints | None = None,
    keep_best: Callable[[Params, Progress], None] | None = None,
    layout: Layout | None = None,
    score_initial: bool = False,
) -> FitResult:
    """Train ``trainable`` on a task's training windows, choosing the epoch by validation.

    Args:
        predict: ``predict(frozen, trainable, x_btc, x_mask, dropout_keys=None)``.
        frozen: Parameters that never change.
        trainable: The initial parameters to train.
        log: Where events are written.
        checkpoints: Where given, the newest one is resumed and new ones are written.
        keep_best: Called with the best tree whenever validation improves, and once more at the end.
        layout: The devices; default: all, as the settings say.
        score_initial: Whether the initial tree is validated as well and may be the best, as epoch 0.

    Raises:
        TrainError: A step does not fit into memory; the loss is no longer finite.
        ConfigError: The settings do not fit the devices.
        Interrupted: A signal asked for a stop; everything is saved.
        CheckpointError: The checkpoints are of another experiment, or all damaged.
    """
    program = Program(predict, task, frozen, settings, layout=layout)
    best = jax.tree.map(np.asarray, trainable)
    lane = Lane(best, settings.seed, log=log or EventLog(None), keep_best=keep_best)
    trainer = Trainer(
        program, [lane], reporter=reporter, checkpoints=checkpoints, score_initial=score_initial
    )
    trainer.resume()
    with stop_on_signal(reporter.notice) as request:
        trainer.run(request)
    lane.keep()
    return FitResult(lane.best, trainer.trainable(0), lane.progress, lane.progress.finished)

"""The best adapter of the last layer in closed form: reduced-rank ridge regression on hidden states.

Features ``x`` are hidden states times the window's scale, targets ``y`` what the zero-shot forecast lacks,
and the kernel is the adapters' ``s · a b`` (:mod:`ofa_jax.runs.reduced_rank`). Weights of the context's
tokens are penalized 16 times as much as those of the tokens ahead. The adapted forecast is not worse than
zero-shot on the windows that choose.

The solution is the only step, and its checkpoint the only one: an interrupted run begins again, a finished
one is read back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.build import Model
from ofa_jax.config.schema import TrainConfig
from ofa_jax.data.splits import Split
from ofa_jax.errors import ConfigError
from ofa_jax.files import Record, parse_record
from ofa_jax.model import trees
from ofa_jax.model.quantiles import PretrainedForecastNetwork
from ofa_jax.runs.features import LAST, features_of, frozen_of_last_layer, last_layer_of, row_of, task_of_rows
from ofa_jax.runs.reduced_rank import (
    MAX_WINDOWS,
    PENALTIES,
    Choice,
    Reader,
    Solution,
    Watch,
    choose,
    reduced_rank,
    solution,
    windows_of,
)
from ofa_jax.tasks.base import Task
from ofa_jax.tasks.losses import squared_error
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.devices import Layout
from ofa_jax.train.evaluate import Between, WindowPredictor
from ofa_jax.train.events import EventLog
from ofa_jax.train.fit import SOLVED, FitResult
from ofa_jax.train.lanes import Progress
from ofa_jax.train.program import evaluation_options
from ofa_jax.train.progress import SILENT, Reporter
from ofa_jax.train.signals import stop_on_signal
from ofa_jax.train.step import Params
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.table import WindowTable

CONTEXT_WEIGHT = 0.25
"""Of hidden states of the context's tokens, whose weights so are penalized 16 times as much."""

_LEAST_SCALE = 1e-6


class _Solved(Record):
    """The ``meta`` of a checkpoint."""

    progress: Progress
    choice: Choice


def solve(
    model: Model,
    task: Task,
    settings: TrainConfig,
    *,
    reporter: Reporter = SILENT,
    log: EventLog | None = None,
    checkpoints: Checkpoints | None = None,
    keep_best: Callable[[Params, Progress], None] | None = None,
) -> FitResult:
    """Adapt the last layer in one step; the same result on every call.

    Targets that are missing count as forecast right by zero-shot. Metrics are those of the validation windows
    that are read. Dropout, seed, epochs and what else belongs to gradients is not read.

    Args:
        model: With its initial parameters.
        task: Its task.
        settings: For evaluation.
        reporter: Progress reporter.
        log: Where events are written.
        checkpoints: Where given, a solution that is there is read back, and a new one is written.
        keep_best: Called with the better of the initial and the adapted tree.

    Raises:
        ConfigError: As :func:`check_solver`.
        TrainError: Hidden states or targets are not finite.
        Interrupted: A signal asked for a stop; nothing is saved.
        CheckpointError: The checkpoint is of another experiment, or damaged.
    """
    check_solver(model, task, settings)
    log = log or EventLog(None)
    if restored := _restored(model, checkpoints):
        best, last, made = restored
        if lost := log.cut(made.progress.events_size, 1, finished=True):
            reporter.notice(f"metrics.jsonl {'; '.join(lost)}")
    else:
        log.cut(0, 0, finished=False)
        with stop_on_signal(reporter.notice) as request:
            best, last, made = _solve(model, task, settings, Watch(request, reporter), log)
        made.progress.events_size = log.sync()
        if checkpoints:
            checkpoints.save(1, {"best": best, "last": last}, made.model_dump())
    if keep_best is not None:
        keep_best(best, made.progress)
    return FitResult(best, last, made.progress, SOLVED)


def solve_on_all_parts(
    model: Model, task: Task, settings: TrainConfig, checkpoints: Checkpoints, reporter: Reporter = SILENT
) -> Params:
    """The adapted tree for the windows of all parts, chosen as the solution in ``checkpoints`` was."""
    restored = _restored(model, checkpoints)
    assert restored is not None
    choice = restored[2].choice
    with stop_on_signal(reporter.notice) as request:
        watch = Watch(request, reporter, saved=True)
        everything, options = task.on_all_parts(), evaluation_options(settings, model.network)
        sums = _reader(model, everything, options, watch).moments(everything.tables["train"])
    factors = reduced_rank(sums, choice.penalty, model.lora.rank)
    return _with_adapter(model, solution(sums, factors, choice, model.lora.rank))


def _restored(model: Model, checkpoints: Checkpoints | None) -> tuple[Params, Params, _Solved] | None:
    """What :func:`_solve` gave."""
    like = {"best": model.trainable, "last": model.trainable}
    if checkpoints is None or (found := checkpoints.restore(like)) is None:
        return None
    made = parse_record(found.meta, _Solved, where=f"checkpoints/{found.step}/checkpoint.json, meta")
    return found.arrays["best"], found.arrays["last"], made


def _solve(
    model: Model, task: Task, settings: TrainConfig, watch: Watch, log: EventLog
) -> tuple[Params, Params, _Solved]:
    """The better one of the initial and the adapted tree, the adapted one, and what is recorded of them."""
    began, options = time.monotonic(), evaluation_options(settings, model.network)
    reader = _reader(model, task, options, watch)
    train = reader.moments(task.tables["train"])
    table, rows = reader.validation_rows(task.tables["validation"])
    validation = windows_of(rows, reader.weights_f)
    found = choose(train, validation, model.lora.rank, watch.at("solving", len(PENALTIES)))
    adapted = _with_adapter(model, found)
    scoring = watch.at("scoring", table.size)
    before, after = _scores(
        model, task, "validation", table, rows, [model.trainable, adapted], options["layout"], scoring
    )
    better = after[task.objective] < before[task.objective]
    best, metrics = (adapted, after) if better else (model.trainable, before)
    progress = Progress(
        step=1,
        best=metrics[task.objective],
        best_epoch=int(better),
        bad_epochs=int(not better),
        best_metrics=metrics,
        finished=SOLVED,
    )
    named = [{f"validation_{name}": value for name, value in part.items()} for part in (before, after)]
    seconds = time.monotonic() - began
    windows = sum(min(task.tables[split].size, most) for split, most in MAX_WINDOWS.items())
    epoch = {
        "epoch": 1,
        "protocol": task.protocol,
        "train_loss": found.train_mse,
        "learning_rate": 0.0,
        "best": better,
        "time": time.time(),
        "seconds": round(seconds, 3),
        "windows_per_second": round(windows / seconds, 1),
    }
    log.append("initial", step=0, **named[0])
    log.append("epoch", step=1, **named[1], **epoch)
    log.append("finished", step=1, reason=SOLVED, best_epoch=progress.best_epoch)
    for title, part in zip(("zero-shot", "adapted"), named, strict=True):
        listed = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in part.items())
        watch.reporter.notice(f"{title}: {listed}")
    penalty, step = found.choice.penalty, found.choice.step if better else 0.0
    chosen = f"penalty {penalty:.3g}, {100 * step:.0f} % of the way from zero-shot"
    watch.reporter.notice(f"the adapter was computed in closed form in {seconds:.0f} s: {chosen}")
    return best, adapted, _Solved(progress=progress, choice=Choice(penalty=penalty, step=step))


def is_closed_form(model: Model, task: Task, settings: TrainConfig) -> bool:
    """Whether the settings train a model in closed form."""
    automatic = settings.solver == "auto" and not lacks(model, task, settings)
    return automatic or settings.solver == "ridge"


def check_solver(model: Model, task: Task, settings: TrainConfig) -> None:
    """Refuse ``train.solver: ridge`` for what is not trained in closed form.

    Raises:
        ConfigError: :func:`lacks` names a reason.
    """
    if settings.solver == "ridge" and (lacking := lacks(model, task, settings)):
        raise ConfigError(f"it is ridge, but {lacking}", where="train.solver", fix="Set it to auto")


def lacks(model: Model, task: Task, settings: TrainConfig) -> str:
    """Why a model is not trained in closed form; nothing where it can be."""
    if not isinstance(model.network, PretrainedForecastNetwork) or task.residue is not None:
        return "the model is no forecaster over a trunk that was pretrained on series"
    if trees.flatten(model.trainable["base"]) or set(model.trainable["adapters"]) != {LAST}:
        return f"the rules do not train an adapter of {LAST} alone"
    if model.lora.scale < _LEAST_SCALE:
        return "adapters.alpha leaves an adapter without effect"
    if task.loss is not squared_error:
        return "the loss is not MSE"
    return "several processes train" if jax.process_count() > 1 else ""


def _reader(model: Model, task: Task, options: dict[str, Any], watch: Watch) -> Reader:
    assert isinstance(model.network, PretrainedForecastNetwork)
    predictor = WindowPredictor(features_of(model.network), task, row_of, **options)
    return Reader(predictor, _weights(model), (model.frozen, model.trainable), watch)


def _with_adapter(model: Model, found: Solution) -> Params:
    """The trainable tree with the adapter."""
    a = _weights(model)[:, None] * found.a / model.lora.scale
    adapter = {"a": a.astype(np.float32), "b": found.b.astype(np.float32)}
    return {**model.trainable, "adapters": {LAST: adapter}}


def _weights(model: Model) -> np.ndarray:
    """The weight of every hidden state, ``[f]``."""
    network = model.network
    assert isinstance(network, PretrainedForecastNetwork)
    before = network.tokens_read - network.tokens_ahead
    return np.repeat([CONTEXT_WEIGHT] * before + [1.0] * network.tokens_ahead, network.width)


def score_together(
    model: Model, task: Task, split: Split, trees: list[Params], options: dict[str, Any], watch: Watch
) -> list[dict[str, float]]:
    """Metrics on all windows of a split with each of these trainable trees, in one pass.

    The trees differ from the model's own in the adapter of the last layer at most.
    """
    table = task.tables[split]
    rows = _reader(model, task, options, watch).rows(table, split)
    return _scores(model, task, split, table, rows, trees, options["layout"])


def _scores(
    model: Model,
    task: Task,
    split: Split,
    table: WindowTable,
    rows: Iterable[np.ndarray],
    trees: list[Params],
    layout: Layout,
    between: Between = lambda done: None,
) -> list[dict[str, float]]:
    """Metrics with each of these trainable trees on windows whose rows are given, some at a time."""
    network, last_layer = model.network, last_layer_of(model)
    assert isinstance(network, PretrainedForecastNetwork)
    frozen, parts = frozen_of_last_layer(model), []

    def every(frozen: Params, trained: list[Params], row_b1f: jax.Array, mask: Any = None, **_: Any) -> Any:
        return [last_layer(frozen, tree, row_b1f) for tree in trained]

    def sums(forecasts: Any, batch: Batch) -> dict[str, jax.Array]:
        found = [task.sums(forecast, batch) for forecast in forecasts]
        return {name: jnp.stack([own[name] for own in found], axis=1) for name in found[0]}

    every_tree: Any = trees  # a predictor places any tree
    done = 0
    for rows_wf in rows:
        between(done)
        part = task_of_rows(task, {split: table.take(slice(done, done + len(rows_wf)))}, [rows_wf], network)
        parts.append(
            WindowPredictor(every, part, sums, layout=layout)(part.tables[split], frozen, every_tree)
        )
        done += len(rows_wf)
    between(done)
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return [task.metrics({name: part[:, at] for name, part in found.items()}) for at in range(len(trees))]

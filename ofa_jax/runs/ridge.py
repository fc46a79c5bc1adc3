"""The best adapter of the last layer in closed form: reduced-rank ridge regression on hidden states.

With hidden states times the window's scale ``x``, what the zero-shot forecast lacks ``y`` and adapters
``s · a b``, training minimizes ``Σ |y - s x a b|² + penalty · |s a b|²`` over adapters of rank r, exactly
(Mukherjee and Zhu, 2011). Weights of the context's tokens are penalized 16 times as much as those of the
tokens ahead. For each penalty validation chooses how far to go from the zero-shot forecast, between 0 and 1;
of the penalties, the largest is taken that has nine tenths of the best one's gain. So the adapted forecast is
not worse than zero-shot on the windows that choose.

The solution is the only step, and its checkpoint the only one: an interrupted run begins again, a finished
one is read back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field
from scipy.linalg import cho_factor, cho_solve

from ofa_jax.build import Model
from ofa_jax.config.schema import TrainConfig
from ofa_jax.data.splits import Split
from ofa_jax.errors import ConfigError, Interrupted, TrainError
from ofa_jax.files import Record, parse_record
from ofa_jax.model import trees
from ofa_jax.model.quantiles import PretrainedForecastNetwork
from ofa_jax.runs.features import LAST, features_of, join, last_layer_of, row_of
from ofa_jax.tasks.base import Task
from ofa_jax.tasks.losses import squared_error
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.evaluate import Between, WindowPredictor
from ofa_jax.train.events import EventLog
from ofa_jax.train.fit import SOLVED, FitResult
from ofa_jax.train.lanes import Progress
from ofa_jax.train.program import evaluation_options
from ofa_jax.train.progress import SILENT, Reporter
from ofa_jax.train.signals import StopRequest, stop_on_signal
from ofa_jax.train.step import Params
from ofa_jax.windows.batch import Batch

MAX_WINDOWS: dict[Split, int] = {"train": 2**15, "validation": 2**13}
"""Windows of a split, evenly spaced, that are read to solve; overlapping ones say little more."""

PENALTIES = 10.0 ** np.arange(2.0, -4.5, -0.5)
"""Candidates, as multiples of the mean eigenvalue of ``Σ x xᵀ``."""

KEPT_GAIN = 0.9
"""Share of the largest gain on validation that a larger penalty has to keep."""

CONTEXT_WEIGHT = 0.25
"""Of hidden states of the context's tokens, whose weights so are penalized 16 times as much."""

_LEAST_SCALE = 1e-6
_AT_ONCE = 4096  # windows whose features are in memory
_EXTREME = "Look for values in the data that are far outside the others"


class Moments(NamedTuple):
    """Sums over windows: ``xx`` ``[f, f]``, ``xy`` ``[f, h]``, ``yy`` and the number of targets."""

    xx: np.ndarray
    xy: np.ndarray
    yy: float
    targets: int

    def plus(self, other: Moments) -> Moments:
        """The sums over the windows of both."""
        return Moments(
            self.xx + other.xx, self.xy + other.xy, self.yy + other.yy, self.targets + other.targets
        )


class Choice(Record):
    """What validation chose: a penalty and how far to go, from 0 to 1."""

    penalty: Annotated[float, Field(gt=0)]
    step: Annotated[float, Field(ge=0, le=1)]


class Solution(NamedTuple):
    """Factors ``a [f, r]``, ``b [r, h]`` of the change of the kernel, how they were chosen, and train MSE."""

    a: np.ndarray
    b: np.ndarray
    choice: Choice
    train_mse: float


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

    Targets that are missing count as forecast right by zero-shot. Dropout, seed, epochs and what else belongs
    to gradients is not read.

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
            best, last, made = _solve(model, task, settings, _Watch(request, reporter), log)
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
        watch = _Watch(request, reporter)
        sums = _read(model, task.on_all_parts(), "train", evaluation_options(settings, model.network), watch)
    factors = reduced_rank(sums, choice.penalty, model.lora.rank)
    return _with_adapter(model, _solution(sums, factors, choice, model.lora.rank))


def _restored(model: Model, checkpoints: Checkpoints | None) -> tuple[Params, Params, _Solved] | None:
    """What :func:`_solve` gave."""
    like = {"best": model.trainable, "last": model.trainable}
    if checkpoints is None or (found := checkpoints.restore(like)) is None:
        return None
    made = parse_record(found.meta, _Solved, where=f"checkpoints/{found.step}/checkpoint.json, meta")
    return found.arrays["best"], found.arrays["last"], made


def _solve(
    model: Model, task: Task, settings: TrainConfig, watch: _Watch, log: EventLog
) -> tuple[Params, Params, _Solved]:
    """The better one of the initial and the adapted tree, the adapted one, and what is recorded of them."""
    began, options = time.monotonic(), evaluation_options(settings, model.network)
    train, validation = (_read(model, task, split, options, watch) for split in MAX_WINDOWS)
    found = choose(train, validation, model.lora.rank, watch.at("solving", len(PENALTIES)))
    adapted = _with_adapter(model, found)
    before, after = _validate(model, task, adapted, options, watch)
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


class _Watch(NamedTuple):
    """Shows progress and obeys a signal, between batches."""

    request: StopRequest
    reporter: Reporter

    def at(self, what: str, of: int) -> Between:
        """To be called with the number that is done."""

        def between(done: int) -> None:
            if self.request.signal_number:
                raise Interrupted(self.request.signal_number, 0, saved=False)
            self.reporter.status(f"{what} {done:,}/{of:,}")

        return between


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


def _read(model: Model, task: Task, split: Split, options: dict[str, Any], watch: _Watch) -> Moments:
    """The moments of a split, or of as many of its windows as :data:`MAX_WINDOWS` says."""
    assert isinstance(model.network, PretrainedForecastNetwork)
    predictor = WindowPredictor(features_of(model), task, row_of, **options)
    table, horizon = task.tables[split], model.network.horizon
    size = min(table.size, MAX_WINDOWS[split])
    if size < table.size:
        watch.reporter.notice(f"{size:,} of {table.size:,} {split} windows are read, evenly spaced")
    chosen = table.take(np.linspace(0, table.size - 1, size).round().astype(int))
    total: Moments | None = None
    between = watch.at(split, size)
    for first in range(0, size, _AT_ONCE):
        part = chosen.take(slice(first, first + _AT_ONCE))

        def within(done: int, first: int = first) -> None:
            between(first + done)

        rows = predictor(part, model.frozen, model.trainable, between=within)["row"]
        found = moments(rows, horizon, _weights(model))
        total = found if total is None else total.plus(found)
    assert total is not None
    if not all(np.isfinite(part).all() for part in total):
        raise TrainError(f"a hidden state or a {split} target is not finite", where="training", fix=_EXTREME)
    return total


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


def moments(rows_wf: np.ndarray, horizon: int, weights_f: np.ndarray) -> Moments:
    """Sums over rows of features and targets (:func:`~ofa_jax.runs.features.row_of`)."""
    width = rows_wf.shape[1] - 1 - 3 * horizon
    ends = width + np.array([0, 1, 1 + horizon, 1 + 2 * horizon])
    hidden, scale, forecast, target, known = np.split(rows_wf.astype(np.float64), ends, axis=1)
    x, y = hidden * scale * weights_f, np.where(known > 0.5, target - forecast, 0)
    return Moments(x.T @ x, x.T @ y, float(np.sum(y * y)), int((known > 0.5).sum()))


def choose(train: Moments, validation: Moments, rank: int, between: Between = lambda done: None) -> Solution:
    """The adapter of the penalty and step with the least error on validation, as the module says."""
    tried = []
    for number, penalty in enumerate(PENALTIES.tolist()):
        between(number)
        left, right = factors = reduced_rank(train, penalty, rank)
        along, size = np.sum(left * (validation.xy @ right)), np.sum(left * (validation.xx @ left))
        step = float(np.clip(along / size, 0, 1)) if size > 0 else 0.0
        tried.append((step * (2 * along - step * size), factors, Choice(penalty=penalty, step=step)))
    most = max(gain for gain, *_ in tried)
    _, factors, choice = next(one for one in tried if one[0] >= KEPT_GAIN * most)
    return _solution(train, factors, choice, rank)


def reduced_rank(train: Moments, penalty: float, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors ``[f, k]`` and ``[h, k]``, ``k ≤ rank``, of the kernel with the least penalized error."""
    unit = float(np.trace(train.xx)) / len(train.xx) or 1.0
    penalized = train.xx.copy()
    np.einsum("ii->i", penalized)[:] += penalty * unit
    ridge = cho_solve(cho_factor(penalized, overwrite_a=True), train.xy)
    right = np.linalg.eigh(train.xy.T @ ridge)[1][:, ::-1][:, :rank]
    return ridge @ right, right  # projected on what explains most where the penalty counts


def _solution(train: Moments, factors: tuple[np.ndarray, np.ndarray], choice: Choice, rank: int) -> Solution:
    left, right = choice.step * factors[0], factors[1]
    mse = (train.yy + np.sum(left * (train.xx @ left - 2 * train.xy @ right))) / max(train.targets, 1)
    a, b = np.zeros((len(train.xx), rank)), np.zeros((rank, len(right)))
    a[:, : right.shape[1]], b[: right.shape[1]] = left, right.T
    return Solution(a, b, choice, float(mse))


def _validate(
    model: Model, task: Task, adapted: Params, options: dict[str, Any], watch: _Watch
) -> list[dict[str, float]]:
    """Metrics on all validation windows of the zero-shot and of the adapted forecast, in one pass."""
    features, last_layer = features_of(model), last_layer_of(model)

    def both(frozen: Params, trained: Params, x_btc: jax.Array, x_mask: Any = None, **_: Any) -> Any:
        given = features(frozen, trained, x_btc, x_mask)
        return given.forecast[..., None], last_layer(frozen, trained, join(given)[:, None])

    def sums(forecasts: Any, batch: Batch) -> dict[str, jax.Array]:
        found = [task.sums(forecast, batch) for forecast in forecasts]
        return {name: jnp.stack([own[name] for own in found], axis=1) for name in found[0]}

    table = task.tables["validation"]
    predictor = WindowPredictor(both, task, sums, **options)
    found = predictor(table, model.frozen, adapted, between=watch.at("validation", table.size))
    return [task.metrics({name: part[:, number] for name, part in found.items()}) for number in (0, 1)]

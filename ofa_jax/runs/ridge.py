"""The best adapter of the last layer in closed form: reduced-rank ridge regression on hidden states.

With hidden states times the window's scale ``x``, what the zero-shot forecast lacks ``y`` and adapters
``s · a b``, training minimizes ``Σ |y - s x a b|² + penalty · |s a b|²`` over adapters of rank r, exactly
(Mukherjee and Zhu, 2011). Weights of the context's tokens are penalized 16 times as much as those of the
tokens ahead. For each penalty validation chooses how far to go from the zero-shot forecast, between 0 and 1;
of the penalties, the largest is taken that has nine tenths of the best one's gain. So the adapted forecast is
not worse than zero-shot on the windows that choose.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.build import Model
from ofa_jax.config.schema import TrainConfig
from ofa_jax.data.splits import Split
from ofa_jax.errors import ConfigError, TrainError
from ofa_jax.model import trees
from ofa_jax.model.quantiles import PretrainedForecastNetwork
from ofa_jax.runs.features import LAST, features_of, join, last_layer_of, row_of
from ofa_jax.tasks.base import Task
from ofa_jax.tasks.losses import squared_error
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.events import EventLog
from ofa_jax.train.fit import FitResult
from ofa_jax.train.lanes import Progress
from ofa_jax.train.program import evaluation_options
from ofa_jax.train.progress import SILENT, Reporter
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

SOLVED = "solved in closed form"
"""Why training ended."""

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


class Solution(NamedTuple):
    """Factors ``a [f, r]``, ``b [r, h]`` of the change of the kernel, its penalty and step, and train MSE."""

    a: np.ndarray
    b: np.ndarray
    penalty: float
    step: float
    train_mse: float


def solve(
    model: Model,
    task: Task,
    settings: TrainConfig,
    *,
    reporter: Reporter = SILENT,
    log: EventLog | None = None,
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
        keep_best: Called with the better of the initial and the adapted tree.

    Raises:
        ConfigError: As :func:`check_solver`.
        TrainError: Hidden states or targets are not finite.
    """
    check_solver(model, task, settings)
    log = log or EventLog(None)
    began, options = time.monotonic(), evaluation_options(settings, model.network)
    predictor = WindowPredictor(features_of(model), task, row_of, **options)
    read = {split: _read(predictor, task, split, model, reporter) for split in MAX_WINDOWS}
    found = reduced_rank(read["train"], read["validation"], model.lora.rank)
    if found is None:
        raise TrainError("a hidden state or a target is not finite", where="training", fix=_EXTREME)
    a = _weights(model)[:, None] * found.a / model.lora.scale
    adapter = {"a": a.astype(np.float32), "b": found.b.astype(np.float32)}
    adapted = {**model.trainable, "adapters": {LAST: adapter}}
    before, after = _validate(model, task, adapted, options, reporter)
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
    log.cut(0, 0, finished=False)  # as late as possible: an interrupted repetition loses nothing
    log.append("initial", step=0, **named[0])
    log.append("epoch", step=1, **named[1], **epoch)
    log.append("finished", step=1, reason=SOLVED, best_epoch=progress.best_epoch)
    log.sync()
    for title, part in zip(("zero-shot", "adapted"), named, strict=True):
        listed = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in part.items())
        reporter.notice(f"{title}: {listed}")
    chosen = f"penalty {found.penalty:.3g}, {100 * found.step:.0f} % of the way from zero-shot"
    reporter.notice(f"the adapter was computed in closed form in {seconds:.0f} s: {chosen}")
    if keep_best is not None:
        keep_best(best, progress)
    return FitResult(best, adapted, progress, SOLVED)


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
    if settings.refit:
        return "train.refit is set"
    return "several processes train" if jax.process_count() > 1 else ""


def _read(predictor: WindowPredictor, task: Task, split: Split, model: Model, reporter: Reporter) -> Moments:
    """The moments of a split, or of as many of its windows as :data:`MAX_WINDOWS` says."""
    assert isinstance(model.network, PretrainedForecastNetwork)
    table, horizon = task.tables[split], model.network.horizon
    size = min(table.size, MAX_WINDOWS[split])
    if size < table.size:
        reporter.notice(f"{size:,} of {table.size:,} {split} windows are read, evenly spaced")
    chosen = table.take(np.linspace(0, table.size - 1, size).round().astype(int))
    total: Moments | None = None
    for first in range(0, size, _AT_ONCE):
        reporter.status(f"{split} {first:,}/{size:,}")
        part = chosen.take(slice(first, first + _AT_ONCE))
        rows = predictor(part, model.frozen, model.trainable)["row"]
        found = moments(rows, horizon, _weights(model))
        total = found if total is None else total.plus(found)
    assert total is not None
    return total


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


def reduced_rank(train: Moments, validation: Moments, rank: int) -> Solution | None:
    """The adapter of the penalty and step with the least error on validation; None if that is not finite."""
    if not all(np.isfinite(part).all() for given in (train, validation) for part in given):
        return None
    values, vectors = np.linalg.eigh(train.xx)
    values, unit = np.maximum(values, 0), max(values.mean(), np.finfo(float).tiny)
    xy, other_xy = (vectors.T @ given.xy for given in (train, validation))
    other_xx = vectors.T @ validation.xx @ vectors
    tried = []
    for penalty in PENALTIES:
        ridge = xy / (values + penalty * unit)[:, None]
        _, right = np.linalg.eigh(xy.T @ ridge)
        right = right[:, ::-1][:, :rank]  # of the best approximation of rank r, where the penalty counts
        left = ridge @ right
        along, size = np.sum(left * (other_xy @ right)), np.sum(left * (other_xx @ left))
        step = float(np.clip(along / size, 0, 1)) if size > 0 else 0.0
        tried.append((step * (2 * along - step * size), left, right, float(penalty), step))
    most = max(gain for gain, *_ in tried)
    _, left, right, penalty, step = next(one for one in tried if one[0] >= KEPT_GAIN * most)
    fitted, power = np.sum(left * (xy @ right)), np.sum(left**2 * values[:, None])
    mse = (train.yy + step * (step * power - 2 * fitted)) / max(train.targets, 1)
    a, b = np.zeros((len(values), rank)), np.zeros((rank, right.shape[0]))
    a[:, : right.shape[1]], b[: right.shape[1]] = step * vectors @ left, right.T
    return Solution(a, b, penalty, step, float(mse))


def _validate(
    model: Model, task: Task, adapted: Params, options: dict[str, Any], reporter: Reporter
) -> list[dict[str, float]]:
    """Metrics on all validation windows of the zero-shot and of the adapted forecast, in one pass."""
    features, last_layer = features_of(model), last_layer_of(model)

    def both(frozen: Params, trained: Params, x_btc: jax.Array, x_mask: Any = None, **_: Any) -> Any:
        given = features(frozen, trained, x_btc, x_mask)
        return given.forecast[..., None], last_layer(frozen, trained, join(given)[:, None])

    def sums(forecasts: Any, batch: Batch) -> dict[str, jax.Array]:
        found = [task.sums(forecast, batch) for forecast in forecasts]
        return {name: jnp.stack([own[name] for own in found], axis=1) for name in found[0]}

    def between(done: int) -> None:
        reporter.status(f"validation {done:,}/{table.size:,}")

    table = task.tables["validation"]
    predictor = WindowPredictor(both, task, sums, **options)
    found = predictor(table, model.frozen, adapted, between=between)
    return [task.metrics({name: part[:, number] for name, part in found.items()}) for number in (0, 1)]

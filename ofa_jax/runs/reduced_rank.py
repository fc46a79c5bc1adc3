"""Reduced-rank ridge regression from sums over windows; its penalty and step are chosen on validation.

Minimizes ``Σ |y - x k|² + penalty · |k|²`` over kernels ``k [f, h]`` of a rank, exactly (Mukherjee and Zhu,
2011). For each penalty validation chooses how far to go from no kernel at all, between 0 and 1; of the
penalties, the largest is taken that has nine tenths of the best one's gain.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field
from scipy.linalg import cho_factor, cho_solve

from ofa_jax.data.splits import Split
from ofa_jax.errors import Interrupted, TrainError
from ofa_jax.files import Record
from ofa_jax.train.evaluate import Between, WindowPredictor
from ofa_jax.train.progress import Reporter
from ofa_jax.train.signals import StopRequest
from ofa_jax.train.step import Params
from ofa_jax.windows.table import WindowTable

MAX_WINDOWS: dict[Split, int] = {"train": 2**15, "validation": 2**13}
"""Windows of a split, evenly spaced, that are read to solve; overlapping ones say little more."""

PENALTIES = 10.0 ** np.arange(2.0, -4.5, -0.5)
"""Candidates, as multiples of the mean eigenvalue of ``Σ x xᵀ``."""

KEPT_GAIN = 0.9
"""Share of the largest gain on validation that a larger penalty has to keep."""

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


class Watch(NamedTuple):
    """Shows progress and obeys a signal, between batches."""

    request: StopRequest
    reporter: Reporter
    saved: bool = False

    def at(self, what: str, of: int) -> Between:
        """To be called with the number that is done."""

        def between(done: int) -> None:
            if self.request.signal_number:
                raise Interrupted(self.request.signal_number, int(self.saved), saved=self.saved)
            self.reporter.status(f"{what} {done:,}/{of:,}")

        return between


def read_moments(
    predictor: WindowPredictor,
    table: WindowTable,
    split: Split,
    weights_f: np.ndarray,
    params: tuple[Params, Params],
    watch: Watch,
) -> Moments:
    """The moments of a split, or of as many of its windows as :data:`MAX_WINDOWS` says.

    Args:
        predictor: Gives the rows of windows (:func:`~ofa_jax.runs.features.row_of`).
        table: The split's windows.
        split: Its name, ``train`` or ``validation``.
        weights_f: What features are multiplied by.
        params: The predictor's frozen and trainable tree.
        watch: Shows progress and may end it.

    Raises:
        TrainError: A feature or a target is not finite.
    """
    size = min(table.size, MAX_WINDOWS[split])
    if size < table.size:
        watch.reporter.notice(f"{size:,} of {table.size:,} {split} windows are read, evenly spaced")
    chosen = table.take(np.linspace(0, table.size - 1, size).round().astype(int))
    total: Moments | None = None
    between = watch.at(split, size)
    for first in range(0, size, _AT_ONCE):

        def within(done: int, first: int = first) -> None:
            between(first + done)

        part = chosen.take(slice(first, first + _AT_ONCE))
        found = moments(predictor(part, *params, between=within)["row"], weights_f)
        total = found if total is None else total.plus(found)
    assert total is not None
    if not all(np.isfinite(part).all() for part in total):
        raise TrainError(f"a hidden state or a {split} target is not finite", where="training", fix=_EXTREME)
    return total


def moments(rows_wf: np.ndarray, weights_f: np.ndarray) -> Moments:
    """Sums over rows of features and targets (:func:`~ofa_jax.runs.features.row_of`)."""
    width = len(weights_f)
    horizon = (rows_wf.shape[1] - 1 - width) // 3
    ends = width + np.array([0, 1, 1 + horizon, 1 + 2 * horizon])
    hidden, scale, forecast, target, known = np.split(rows_wf.astype(np.float64), ends, axis=1)
    x, y = hidden * scale * weights_f, np.where(known > 0.5, target - forecast, 0)
    return Moments(x.T @ x, x.T @ y, float(np.sum(y * y)), int((known > 0.5).sum()))


def choose(
    train: Moments,
    validation: Moments,
    rank: int,
    between: Between = lambda done: None,
    *,
    kept_gain: float = KEPT_GAIN,
) -> Solution:
    """The solution of the penalty and step that validation chooses, as the module says."""
    tried = []
    for number, penalty in enumerate(PENALTIES.tolist()):
        between(number)
        left, right = factors = reduced_rank(train, penalty, rank)
        along, size = np.sum(left * (validation.xy @ right)), np.sum(left * (validation.xx @ left))
        step = float(np.clip(along / size, 0, 1)) if size > 0 else 0.0
        tried.append((step * (2 * along - step * size), factors, Choice(penalty=penalty, step=step)))
    most = max(gain for gain, *_ in tried)
    _, factors, choice = next(one for one in tried if one[0] >= kept_gain * most)
    return solution(train, factors, choice, rank)


def reduced_rank(train: Moments, penalty: float, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors ``[f, k]`` and ``[h, k]``, ``k ≤ rank``, of the kernel with the least penalized error."""
    unit = float(np.trace(train.xx)) / len(train.xx) or 1.0
    penalized = train.xx.copy()
    np.einsum("ii->i", penalized)[:] += penalty * unit
    ridge = cho_solve(cho_factor(penalized, overwrite_a=True), train.xy)
    right = np.linalg.eigh(train.xy.T @ ridge)[1][:, ::-1][:, :rank]
    return ridge @ right, right  # projected on what explains most where the penalty counts


def solution(train: Moments, factors: tuple[np.ndarray, np.ndarray], choice: Choice, rank: int) -> Solution:
    """Factors of a rank, filled with zeros, and their error on the windows of ``train``."""
    left, right = choice.step * factors[0], factors[1]
    mse = (train.yy + np.sum(left * (train.xx @ left - 2 * train.xy @ right))) / max(train.targets, 1)
    a, b = np.zeros((len(train.xx), rank)), np.zeros((rank, len(right)))
    a[:, : right.shape[1]], b[: right.shape[1]] = left, right.T
    return Solution(a, b, choice, float(mse))

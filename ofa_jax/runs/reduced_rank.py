"""Reduced-rank ridge regression from sums over windows; its penalty and step are chosen on validation.

Minimizes ``Σ |y - x k|² + penalty · |k|²`` over kernels ``k [f, h]`` of a rank, exactly (Mukherjee and Zhu,
2011). For each penalty validation chooses how far to go from no kernel at all, between 0 and 1. Of the
penalties, those count whose gain is sure: its mean over five spans of time, relative to the error there, is
more than two standard errors. The largest of them is taken that has nine tenths of the best one's gain;
where none is sure, there is no kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

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

SPANS = 5
"""Parts of the validation windows, in order of time, whose gains are compared."""

STANDARD_ERRORS = 2.0
"""Of the mean gain, which it has to exceed."""

AT_ONCE = 4096
"""Windows whose rows are computed at a time."""
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


class Windows(NamedTuple):
    """Features ``x`` ``[w, f]`` and targets ``y`` ``[w, h]`` of validation, in order of time."""

    x: np.ndarray
    y: np.ndarray


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


class Reader(NamedTuple):
    """Reads the windows of a split, or as many of them as :data:`MAX_WINDOWS` says.

    Attributes:
        predictor: Gives the rows of windows (:func:`~ofa_jax.runs.features.row_of`).
        weights_f: What features are multiplied by.
        params: The predictor's frozen and trainable tree.
        watch: Shows progress and may end it.
    """

    predictor: WindowPredictor
    weights_f: np.ndarray
    params: tuple[Params, Params]
    watch: Watch

    def moments(self, table: WindowTable) -> Moments:
        """Sums over training windows.

        Raises:
            TrainError: A feature or a target is not finite.
        """
        total: Moments | None = None
        for rows_wf in self.rows(self._chosen(table, "train"), "train"):
            found = moments(rows_wf, self.weights_f)
            total = found if total is None else total.plus(found)
        assert total is not None
        _check(total, "train")
        return total

    def validation_rows(self, table: WindowTable) -> tuple[WindowTable, list[np.ndarray]]:
        """The windows of validation that choose, in order of time, and their rows, some windows at a time."""
        chosen = self._chosen(table, "validation")
        ordered = chosen.take(np.lexsort((chosen.channel, chosen.first)))
        return ordered, list(self.rows(ordered, "validation"))

    def _chosen(self, table: WindowTable, split: Split) -> WindowTable:
        size = min(table.size, MAX_WINDOWS[split])
        if size < table.size:
            what = f"{size:,} of {table.size:,} {split} windows are read, evenly spaced"
            self.watch.reporter.notice(what)
        return table.take(np.linspace(0, table.size - 1, size).round().astype(int))

    def rows(self, table: WindowTable, split: Split) -> Iterator[np.ndarray]:
        """Rows of all windows of a table in their order, :data:`AT_ONCE` at a time."""
        between = self.watch.at(split, table.size)
        for first in range(0, table.size, AT_ONCE):

            def within(done: int, first: int = first) -> None:
                between(first + done)

            part = table.take(slice(first, first + AT_ONCE))
            yield self.predictor(part, *self.params, between=within)["row"]


def windows_of(rows: Iterable[np.ndarray], weights_f: np.ndarray) -> Windows:
    """Features and targets of validation windows.

    Raises:
        TrainError: A feature or a target is not finite.
    """
    parts = [parts_of(rows_wf, weights_f)[:2] for rows_wf in rows]
    found = Windows(*(np.concatenate(part).astype(np.float32) for part in zip(*parts, strict=True)))
    _check(found, "validation")
    return found


def _check(found: Sequence[Any], split: Split) -> None:
    if not all(np.isfinite(part).all() for part in found):
        raise TrainError(f"a hidden state or a {split} target is not finite", where="training", fix=_EXTREME)


def moments(rows_wf: np.ndarray, weights_f: np.ndarray) -> Moments:
    """Sums over rows of features and targets (:func:`~ofa_jax.runs.features.row_of`)."""
    x, y, targets = parts_of(rows_wf, weights_f)
    return Moments(x.T @ x, x.T @ y, float(np.sum(y * y)), targets)


def parts_of(rows_wf: np.ndarray, weights_f: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Features ``[w, f]`` and targets ``[w, h]`` of rows, and how many targets are known; others are 0."""
    width = len(weights_f)
    horizon = (rows_wf.shape[1] - 1 - width) // 3
    ends = width + np.array([0, 1, 1 + horizon, 1 + 2 * horizon])
    hidden, scale, forecast, target, known = np.split(rows_wf.astype(np.float64), ends, axis=1)
    seen = known > 0.5
    return hidden * scale * weights_f, np.where(seen, target - forecast, 0), int(seen.sum())


def choose(
    train: Moments,
    validation: Windows,
    rank: int,
    between: Between = lambda done: None,
    *,
    spans: int = SPANS,
    kept_gain: float = KEPT_GAIN,
) -> Solution:
    """The solution of the penalty and step that validation chooses, as the module says.

    Args:
        train: The sums over training windows.
        validation: Windows that choose.
        rank: Of the kernel.
        between: Called between penalties.
        spans: Parts of validation whose gains are compared; with 1 every gain counts as sure.
        kept_gain: Share of the best penalty's gain that a larger one has to keep.
    """
    tried = []
    for number, penalty in enumerate(PENALTIES.tolist()):
        between(number)
        factors = reduced_rank(train, penalty, rank)
        gain, step = _gain(validation, factors, spans)
        tried.append((gain, factors, Choice(penalty=penalty, step=step)))
    most = max(gain for gain, *_ in tried)
    _, factors, choice = next(one for one in tried if one[0] >= kept_gain * most)
    return solution(train, factors, choice, rank)


def _gain(validation: Windows, factors: tuple[np.ndarray, np.ndarray], spans: int) -> tuple[float, float]:
    """The largest gain on validation and the step that has it; nothing where it is not sure."""
    change, lack = validation.x @ factors[0], validation.y @ factors[1]
    of_windows = np.stack([(change * lack).sum(1), (change**2).sum(1), (validation.y**2).sum(1)])
    parts = np.array_split(of_windows, min(spans, len(change)), axis=1)
    along, size, error = np.stack([part.sum(1, dtype=np.float64) for part in parts], axis=1)
    step = float(np.clip(along.sum() / size.sum(), 0, 1)) if size.sum() > 0 else 0.0
    gains = 2 * step * along - step**2 * size
    shares = gains[error > 0] / error[error > 0]
    doubt = shares.std(ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else 0.0
    return (float(gains.sum()), step) if shares.sum() > STANDARD_ERRORS * doubt * len(shares) else (0.0, 0.0)


def reduced_rank(train: Moments, penalty: float, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors ``[f, k]`` and ``[h, k]``, ``k ≤ rank``, of the kernel with the least penalized error."""
    from scipy.linalg import cho_factor, cho_solve  # takes long, and forecasts need none of it

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

"""What theory says of an adapter after its first step, at any rank, and the slope of measured numbers against rank.

docs/theory.md derives it. The factor that is not zero has independent Gaussian entries of variance ``sigma²``; ``K`` is its product with
itself over the rank, so ``E K = r sigma² 1``. With ``s`` the scale and ``eta`` the step size, everything that a step makes is
``eta s² L K R`` with matrices ``L`` and ``R`` that do not depend on the rank, and for every entry of ``L K R`` all moments are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ofa_jax.adapters.partition import AdapterTarget
from ofa_jax.errors import ConfigError
from ofa_jax.studies.gradients.taps import MOMENTS

if TYPE_CHECKING:
    import pandas as pd

StudyInit = Literal["theorem", "peft_gaussian", "kaiming", "inverse_rank"]
"""The package's own starts, and ``inverse_rank``: standard deviation 1/r for dense layers and embeddings alike."""

Optimizer = Literal["sgd", "adam"]

MEANS = ("first_order_change", *(f"output_moment_{m}" for m in MOMENTS))
"""Quantities that are averaged over seeds as they are; of the others, which are roots or norms, the root of the mean square is taken."""


def start_std(target: AdapterTarget, init: StudyInit, rank: int) -> float:
    """Standard deviation ``sigma`` of the factor that is not zero."""
    if init == "inverse_rank" or (init == "peft_gaussian" and target.kind == "dense"):
        return 1 / rank
    if target.kind == "embedding":
        return 1 / math.sqrt(target.shape[1]) if init == "theorem" else 1.0
    return 1 / math.sqrt(target.shape[0] * (3 if init == "kaiming" else 1))


@dataclass(frozen=True)
class LKR:
    """The random matrix ``L K R``: lengths of the rows of L ``[t]`` and of the columns of R ``[q]``, and their product LR ``[t, q]``."""

    rows: np.ndarray
    columns: np.ndarray
    product: np.ndarray

    def mean_square(self, rank: int) -> float:
        """``E |L K R|² / (t q)`` for ``sigma = 1``: ``r |L|² |R|² + r (r + 1) |L R|²``, over the number of entries."""
        cross = np.sum(self.rows**2) * np.sum(self.columns**2)
        return float((rank * cross + rank * (rank + 1) * np.sum(self.product**2)) / self.product.size)

    def moment(self, order: int, rank: int) -> float:
        """The mean over all entries of their ``order``-th moment, for ``sigma = 1``.

        An entry is a sum of r independent products of two Gaussian numbers with correlation ``rho``, whose n-th cumulant is
        ``(n - 1)! / 2 ((rho + 1)^n + (rho - 1)^n)``; cumulants of sums add up, and moments follow from them.
        """
        size = self.rows[:, None] * self.columns[None, :]
        rho = np.divide(self.product, size, out=np.zeros_like(size), where=size > 0)
        cumulants = [
            rank * math.factorial(n - 1) / 2 * ((rho + 1) ** n + (rho - 1) ** n) for n in range(1, order + 1)
        ]
        moments = [np.ones_like(rho)]
        for n in range(1, order + 1):
            moments.append(
                sum(math.comb(n - 1, k - 1) * cumulants[k - 1] * moments[n - k] for k in range(1, n + 1))
            )
        return float(np.mean(moments[order] * size**order))


@dataclass(frozen=True)
class Expected:
    """What a module's first step hangs on: the input and the output gradient of its adapter before any step.

    Attributes:
        output: The adapter's output is ``eta s²`` times this.
        input_gradient: And the gradient to its input times this.
        flow: The length of ``x^T G``: the zero factor's gradient is of this length.
        summed: The sum of the lengths of the columns of ``x^T G``, of its rows for an embedding.
        square: The length of the square matrix ``M^T M`` of ``M = x^T G``.
        width: Inputs of a dense layer, outputs of an embedding: the side of K.
        weight: The length of the layer's own weight.
    """

    target: AdapterTarget
    output: LKR
    input_gradient: LKR
    flow: float
    summed: float
    square: float
    width: int
    weight: float

    @classmethod
    def of(
        cls, target: AdapterTarget, entered: np.ndarray, gradient: np.ndarray, weight: np.ndarray
    ) -> Expected:
        """From the adapter's input ``[t, in]`` or indices ``[t]``, its output gradient ``[t, out]`` and the weight ``[in, out]``."""
        g = gradient.astype(np.float64)
        if target.kind == "embedding":
            flow = np.zeros(target.shape)
            np.add.at(flow, entered, g)
            left, width = flow[entered], target.shape[1]
            output = LKR(_lengths(left, 1), np.ones(width), left)
            back = LKR(_lengths(g, 1), _lengths(flow, 1), g @ flow.T)
        else:
            x, width = entered.astype(np.float64), target.shape[0]
            flow = x.T @ g
            output = LKR(_lengths(x, 1), _lengths(flow, 0), x @ flow)
            left = g @ flow.T
            back = LKR(_lengths(left, 1), np.ones(width), left)
        small = flow.T @ flow if flow.shape[1] <= flow.shape[0] else flow @ flow.T
        summed = float(np.sum(_lengths(flow, 1 if target.kind == "embedding" else 0)))
        return cls(
            target, output, back, _norm(flow), summed, _norm(small), width, _norm(weight.astype(np.float64))
        )

    def values(
        self, rank: int, scale: float, sigma: float, rate: float, steps: int, optimizer: Optimizer = "sgd"
    ) -> Iterator[tuple[str, float]]:
        """Quantity and expected value before any step (0) and after one (1); a root or norm is that of the mean square."""
        zero, other = ("a", "b") if self.target.kind == "embedding" else ("b", "a")
        if steps > 1:
            return
        if steps == 0 or optimizer == "sgd":
            yield f"gradient_norm_{zero}", scale * sigma * math.sqrt(rank) * self.flow
        if steps == 0:
            return
        if optimizer == "adam":  # whose first step moves every number by its rate, whatever its gradient
            yield "first_order_change", rate * scale * sigma * rank * math.sqrt(2 / math.pi) * self.summed
            return
        once = rate * scale**2 * sigma**2
        yield f"gradient_norm_{other}", rate * scale**2 * sigma * math.sqrt(rank) * self.square
        yield "first_order_change", once * rank * self.flow**2
        yield "output_rms", once * math.sqrt(self.output.mean_square(rank))
        for m in MOMENTS:
            yield f"output_moment_{m}", once**m * self.output.moment(m, rank)
        yield "input_gradient_rms", once * math.sqrt(self.input_gradient.mean_square(rank))
        yield "weight_ratio", once * math.sqrt(rank * (rank + self.width + 1)) * self.flow / self.weight


def _lengths(matrix: np.ndarray, axis: int) -> np.ndarray:
    return np.sqrt(np.sum(matrix**2, axis=axis))


def _norm(matrix: np.ndarray) -> float:
    return float(np.sqrt(np.sum(matrix**2)))


KEYS = ["module", "kind", "scaling", "init", "optimizer", "steps", "quantity"]
"""What a slope is one of."""


def slopes(table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The slope of every quantity against rank, both logarithmic, with its 95 % interval, beside what theory predicts.

    Each rank's mean over seeds (:data:`MEANS`) is one point. The line is that of least squares, and the interval Student's, from what the
    points leave of it: it holds the scatter of the seeds as well as a curve that is no straight line. It takes three ranks.
    A slope is NaN where a mean is not positive or not finite. Quantities that are 0 everywhere, by construction, are left out.

    Args:
        table: Columns ``module, kind, rank, scaling, init, optimizer, steps, seed, quantity, value``.
        curves: The same without ``seed``: expected values, where theory has one. Their own slope over the same ranks is ``predicted``.

    Returns:
        Columns ``module, kind, scaling, init, optimizer, steps, quantity, slope, low, high, predicted``.

    Raises:
        ConfigError: Fewer than two ranks.
    """
    import pandas as pd

    if table["rank"].nunique() < 2:
        raise ConfigError(
            "a slope against rank needs two ranks at least",
            where="ranks",
            fix="Give more ranks, such as 4,16,64,256",
        )
    expected = {key: group.set_index("rank")["value"] for key, group in curves.groupby(KEYS)}
    rows = []
    for key, group in table.groupby(KEYS, sort=False):
        if not group["value"].any():
            continue
        power = 1 if key[-1] in MEANS else 2
        points = (group["value"] ** power).groupby(group["rank"]).mean(skipna=False) ** (1 / power)
        slope, low, high = _fit(points.index.to_numpy(float), points.to_numpy(float))
        curve = expected.get(key)
        predicted = (
            float("nan") if curve is None else _fit(curve.index.to_numpy(float), curve.to_numpy(float))[0]
        )
        rows.append((*key, slope, low, high, predicted))
    return pd.DataFrame(rows, columns=[*KEYS, "slope", "low", "high", "predicted"])


def _fit(ranks: Sequence[float] | np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Slope of log value on log rank and its interval."""
    from scipy import stats

    nothing = float("nan")
    if not (np.isfinite(values).all() and (values > 0).all()):
        return nothing, nothing, nothing
    line = stats.linregress(np.log(ranks), np.log(values))
    if len(values) < 3:
        return float(line.slope), nothing, nothing
    scatter = 0.0 if np.ptp(values) == 0 else line.stderr  # of values that are all alike, scipy says nothing
    half = stats.t.ppf(0.975, len(values) - 2) * scatter
    return float(line.slope), float(line.slope - half), float(line.slope + half)

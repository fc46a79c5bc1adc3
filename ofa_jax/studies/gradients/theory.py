"""What theory predicts for an adapter after its first step at any rank, and measured slopes against rank.

docs/theory.md has the derivation. The nonzero factor has independent Gaussian entries of variance ``sigma²``;
``K`` is its Gram matrix over the rank, so ``E K = r sigma² 1``. With scale ``s`` and learning rate ``eta``
every quantity after one step is ``eta s² L K R``, where ``L`` and ``R`` do not depend on the rank. All
moments of the entries of ``L K R`` are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.linalg import norm

from ofa_jax.adapters.partition import AdapterTarget
from ofa_jax.studies.gradients.taps import MOMENTS

if TYPE_CHECKING:
    import pandas as pd

StudyInit = Literal["theorem", "peft_gaussian", "kaiming", "inverse_rank"]
"""The package's initializations, and ``inverse_rank``: standard deviation 1/r on every layer."""

Optimizer = Literal["sgd", "adam"]

MEANS = ("first_order_change", *(f"output_moment_{m}" for m in MOMENTS))
"""Quantities averaged over seeds as they are. The others are roots or norms: root mean square over seeds."""


def init_std(target: AdapterTarget, init: StudyInit, rank: int) -> float:
    """Standard deviation ``sigma`` of the nonzero factor."""
    if init == "inverse_rank" or (init == "peft_gaussian" and target.kind == "dense"):
        return 1 / rank
    if target.kind == "embedding":
        return 1 / math.sqrt(target.shape[1]) if init == "theorem" else 1.0
    return 1 / math.sqrt(target.shape[0] * (3 if init == "kaiming" else 1))


@dataclass(frozen=True)
class LKR:
    """The random matrix ``L K R``: row norms of L ``[t]``, column norms of R ``[q]``, and LR ``[t, q]``."""

    rows: np.ndarray
    columns: np.ndarray
    product: np.ndarray

    def mean_square(self, rank: int) -> float:
        """``E |L K R|²`` per entry for ``sigma = 1``; in total ``r |L|² |R|² + r (r + 1) |L R|²``."""
        cross = np.sum(self.rows**2) * np.sum(self.columns**2)
        return float((rank * cross + rank * (rank + 1) * np.sum(self.product**2)) / self.product.size)

    def moment(self, order: int, rank: int) -> float:
        """Mean over all entries of their ``order``-th moment, for ``sigma = 1``.

        An entry is a sum of r independent products of two Gaussians with correlation ``rho``. The n-th
        cumulant of a product is ``(n - 1)! / 2 ((rho + 1)^n + (rho - 1)^n)``; moments follow from cumulants.
        """
        size = self.rows[:, None] * self.columns[None, :]
        rho = np.divide(self.product, size, out=np.zeros_like(size), where=size > 0)
        orders = range(1, order + 1)
        cumulants = [rank * math.factorial(n - 1) / 2 * ((rho + 1) ** n + (rho - 1) ** n) for n in orders]
        moments = [np.ones_like(rho)]
        for n in orders:
            terms = (math.comb(n - 1, k - 1) * cumulants[k - 1] * moments[n - k] for k in range(1, n + 1))
            moments.append(sum(terms))
        return float(np.mean(moments[order] * size**order))


@dataclass(frozen=True)
class FirstStep:
    """What the first step of an adapter depends on: its input and output gradient before any step.

    Attributes:
        target: The adapted layer.
        output: The adapter's output is ``eta s²`` times this.
        input_gradient: The gradient at its input is ``eta s²`` times this.
        flow: Norm of ``M = x^T G``, which scales the gradient of the zero factor.
        summed: Sum of the column norms of ``M``, of its row norms for an embedding.
        square: Norm of ``M^T M``.
        weight: Norm of the layer's own weight.
    """

    target: AdapterTarget
    output: LKR
    input_gradient: LKR
    flow: float
    summed: float
    square: float
    weight: float

    @classmethod
    def of(cls, target: AdapterTarget, x: np.ndarray, gradient: np.ndarray, weight: np.ndarray) -> FirstStep:
        """From input ``[t, in]`` or indices ``[t]``, output gradient ``[t, out]``, weight ``[in, out]``."""
        g, ones = gradient.astype(np.float64), np.ones(_width(target))
        if target.kind == "embedding":
            flow = np.zeros(target.shape)
            np.add.at(flow, x, g)
            output = LKR(norm(flow[x], axis=1), ones, flow[x])
            back = LKR(norm(g, axis=1), norm(flow, axis=1), g @ flow.T)
            summed = float(norm(flow, axis=1).sum())
        else:
            x = x.astype(np.float64)
            flow = x.T @ g
            output = LKR(norm(x, axis=1), norm(flow, axis=0), x @ flow)
            back = LKR(norm(g @ flow.T, axis=1), ones, g @ flow.T)
            summed = float(norm(flow, axis=0).sum())
        small = flow.T @ flow if flow.shape[1] <= flow.shape[0] else flow @ flow.T
        square, size = float(norm(small)), float(norm(weight.astype(np.float64)))
        return cls(target, output, back, float(norm(flow)), summed, square, size)

    def expected(
        self, rank: int, scale: float, sigma: float, learning_rate: float, steps: int, optimizer: Optimizer
    ) -> Iterator[tuple[str, float]]:
        """Expected quantities after 0 or 1 steps, none for more; roots and norms: of the mean square."""
        zero, other = ("a", "b") if self.target.kind == "embedding" else ("b", "a")
        if steps > 1:
            return
        if steps == 0 or optimizer == "sgd":
            yield f"gradient_norm_{zero}", scale * sigma * math.sqrt(rank) * self.flow
        if steps == 0:
            return
        if optimizer == "adam":  # moves every number by the learning rate, whatever its gradient
            change = scale * sigma * rank * math.sqrt(2 / math.pi) * self.summed
            yield "first_order_change", learning_rate * change
            return
        once = learning_rate * scale**2 * sigma**2
        yield f"gradient_norm_{other}", learning_rate * scale**2 * sigma * math.sqrt(rank) * self.square
        yield "first_order_change", once * rank * self.flow**2
        yield "output_rms", once * math.sqrt(self.output.mean_square(rank))
        for m in MOMENTS:
            yield f"output_moment_{m}", once**m * self.output.moment(m, rank)
        yield "input_gradient_rms", once * math.sqrt(self.input_gradient.mean_square(rank))
        spread = math.sqrt(rank * (rank + _width(self.target) + 1))
        yield "weight_ratio", once * spread * self.flow / self.weight


def _width(target: AdapterTarget) -> int:
    return target.shape[1] if target.kind == "embedding" else target.shape[0]


KEYS = ["module", "kind", "scaling", "init", "optimizer", "steps", "quantity"]
"""Columns that identify a slope."""


def seed_mean_power(quantity: str) -> int:
    """The p of the power mean ``mean(value^p)^(1/p)`` over seeds: 1 for :data:`MEANS`, else 2."""
    return 1 if quantity in MEANS else 2


def slopes(table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The log-log slope of every quantity against rank with its 95 % interval, and the predicted slope.

    A least-squares line through one point per rank, the mean over seeds (:func:`seed_mean_power`). The
    interval is Student's, from the residuals, so it covers both scatter over seeds and curvature. A slope is
    NaN if a mean is not positive or not finite or if there is only one rank, an interval with fewer than
    three ranks. Quantities that are 0 everywhere by construction are left out.

    Args:
        table: Columns ``module, kind, rank, scaling, init, optimizer, steps, seed, quantity, value``.
        curves: The same without ``seed``: expected values. Their slope over the same ranks is ``predicted``.

    Returns:
        Columns ``module, kind, scaling, init, optimizer, steps, quantity, slope, low, high, predicted``.
    """
    import pandas as pd

    expected = {key: group.set_index("rank")["value"] for key, group in curves.groupby(KEYS)}
    rows = []
    for key, group in table.groupby(KEYS, sort=False):
        if group["value"].any():
            power = seed_mean_power(str(group["quantity"].iloc[0]))
            points = (group["value"] ** power).groupby(group["rank"]).mean(skipna=False) ** (1 / power)
            predicted = _fit(expected[key])[0] if key in expected else math.nan
            rows.append((*key, *_fit(points), predicted))
    return pd.DataFrame(rows, columns=[*KEYS, "slope", "low", "high", "predicted"])


def _fit(points: pd.Series) -> tuple[float, float, float]:
    """Slope of log value against log rank and its interval."""
    from scipy import stats

    ranks, values = points.index.to_numpy(float), points.to_numpy(float)
    if len(values) < 2 or not (np.isfinite(values) & (values > 0)).all():
        return math.nan, math.nan, math.nan
    line = stats.linregress(np.log(ranks), np.log(values))
    error = 0.0 if np.ptp(values) == 0 else line.stderr  # scipy gives NaN for equal values
    half = stats.t.ppf(0.975, len(values) - 2) * error  # NaN for two points
    return line.slope, line.slope - half, line.slope + half

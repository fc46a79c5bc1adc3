"""Calls that take turns, their seconds, and the exponent of a curve."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.schema import Row, Stat, Target, ratio, reached, stat

Call = Callable[[], object]

WORSE = 1.1
"""An exponent above this counts as worse than linear: a straight line, measured on a busy machine, comes out up to 0.1 off."""

_SETTLE = 0.02  # seconds; OpenMP's idle threads go on spinning for milliseconds after PyTorch's work, on the cores that the next side needs


@dataclass
class Taken:
    """Seconds of the first call, with compilation, where it was taken, and of each round after it."""

    first: float | None
    seconds: list[float] = field(default_factory=list)

    def per(self, count: int) -> Taken:
        """Of one of ``count`` things that each call did."""
        return Taken(self.first, [seconds / count for seconds in self.seconds])

    def stat(self, scale: float = 1.0) -> Stat:
        return stat([scale * seconds for seconds in self.seconds], self.first)


def seconds_of(call: Call) -> float:
    """Wall seconds of one call; a call returns when its result is on the host."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(calls: Mapping[str, Call], rounds: int) -> dict[str, Taken]:
    """Seconds of each call, taken in turns (A B A B …), so that a busy spell of the machine falls on all alike."""
    taken = {name: Taken(seconds_of(call)) for name, call in calls.items()}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(_SETTLE)
            taken[name].seconds.append(seconds_of(call))
    return taken


def alternate_blocks(calls: Mapping[str, Call], rounds: int, size: int) -> dict[str, list[list[float]]]:
    """As :func:`alternate` for short calls: in each round ``size`` of them one after another, behind one that is not counted."""
    taken: dict[str, list[list[float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(_SETTLE)
            call()
            taken[name].append([seconds_of(call) for _ in range(size)])
    return taken


def timed_row(
    what: str, ours: Taken, theirs: Taken | None = None, target: Target | None = None, note: str = ""
) -> Row:
    """A row of seconds; the ratio says how many times faster we are."""
    compared = None if theirs is None else ratio(ours.seconds, theirs.seconds, "theirs/ours")
    return reached(
        Row(
            what=what,
            unit="s",
            ours=ours.stat(),
            theirs=theirs and theirs.stat(),
            ratio=compared,
            target=target,
            note=note,
        )
    )


def rate_row(what: str, windows: int, ours: Taken, theirs: Taken, target: Target | None = None) -> Row:
    """A row of windows per second."""
    rates = [Taken(side.first, [windows / seconds for seconds in side.seconds]) for side in (ours, theirs)]
    compared = ratio(rates[0].seconds, rates[1].seconds, "ours/theirs")
    return reached(
        Row(
            what=what,
            unit="windows/s",
            ours=rates[0].stat(),
            theirs=rates[1].stat(),
            ratio=compared,
            target=target,
        )
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def upper_half(count: int) -> int:
    """How many of a curve's points, from the last, an exponent is fitted to: the upper half, and three where there are as many."""
    return min(count, max(3, math.ceil(count / 2)))


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The k of ``y ~ x ** k``: least squares of log y on log x over the upper half of the points, in order of x."""
    last = upper_half(len(xs))
    us, vs = ([math.log(value) for value in values[-last:]] for values in (xs, ys))
    mean_u, mean_v = sum(us) / last, sum(vs) / last
    return sum((u - mean_u) * (v - mean_v) for u, v in zip(us, vs, strict=True)) / sum(
        (u - mean_u) ** 2 for u in us
    )

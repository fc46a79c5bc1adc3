"""Timing of calls in turns, and the exponent of a growth curve."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.schema import Row, Stat, Target, make_row, ratio, stat

Call = Callable[[], object]

WORSE = 1.1
"""Exponents above this count as worse than linear; noise of the machine is up to 0.1."""

_PAUSE = 0.02  # seconds: OpenMP's idle threads keep spinning for milliseconds after PyTorch's work


@dataclass
class Taken:
    """Seconds of the first call, with compilation, if it was timed, and of each later round."""

    first: float | None
    seconds: list[float] = field(default_factory=list)

    def per(self, count: int) -> Taken:
        """The same per item, for calls that process ``count`` items."""
        return Taken(self.first, [seconds / count for seconds in self.seconds])

    def stat(self) -> Stat:
        return stat(self.seconds, self.first)


def seconds_of(call: Call) -> float:
    """Wall seconds of one call, which returns when its result is on the host."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(calls: Mapping[str, Call], rounds: int) -> dict[str, Taken]:
    """Seconds of each call, in turns (A B A B …), so that a busy machine slows all of them alike."""
    taken = {name: Taken(seconds_of(call)) for name, call in calls.items()}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(_PAUSE)
            taken[name].seconds.append(seconds_of(call))
    return taken


def alternate_blocks(calls: Mapping[str, Call], rounds: int, size: int) -> dict[str, list[list[float]]]:
    """As :func:`alternate` for short calls: ``size`` per round in a row, after an uncounted one."""
    taken: dict[str, list[list[float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(_PAUSE)
            call()
            taken[name].append([seconds_of(call) for _ in range(size)])
    return taken


def timed_row(what: str, ours: Taken, theirs: Taken | None = None, target: Target | None = None) -> Row:
    """A row of seconds; the ratio says how many times faster ofa-jax is."""
    compared = None if theirs is None else ratio(ours.seconds, theirs.seconds, "theirs/ours")
    return make_row(what, "s", ours.stat(), None if theirs is None else theirs.stat(), compared, target)


def rate_row(what: str, windows: int, ours: Taken, theirs: Taken, target: Target | None = None) -> Row:
    """A row of windows per second."""
    mine, other = (
        Taken(side.first, [windows / seconds for seconds in side.seconds]) for side in (ours, theirs)
    )
    compared = ratio(mine.seconds, other.seconds, "ours/theirs")
    return make_row(what, "windows/s", mine.stat(), other.stat(), compared, target)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least a ``share`` of the values do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def upper_half(count: int) -> int:
    """How many of a curve's last points an exponent is fitted to: half, at least three if possible."""
    return min(count, max(3, math.ceil(count / 2)))


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The k of ``y ~ x ** k``: least squares of log y on log x over the upper half of the points."""
    last = upper_half(len(xs))
    us, vs = ([math.log(value) for value in values[-last:]] for values in (xs, ys))
    return statistics.linear_regression(us, vs).slope

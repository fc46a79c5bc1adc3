"""Windows that cover recordings so that every step gets an output."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from ofa_jax.windows.table import WindowTable


@dataclass(frozen=True, eq=False)
class ScoredWindows:
    """Windows, and which of their steps count.

    Attributes:
        table: Windows of L steps.
        scored: ``[windows]``: how many of its last steps count; the others belong to the window before.
        length: L.
    """

    table: WindowTable
    scored: np.ndarray
    length: int

    @cached_property
    def rows(self) -> np.ndarray:
        """``[steps]``: the buffer row of every step that counts."""
        return (self.table.first[:, None] + np.arange(self.length))[self._counts]

    def steps(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs ``[windows, L, …]`` as ``[steps, …]`` in the order of :attr:`rows`."""
        return outputs[self._counts]

    @property
    def _counts(self) -> np.ndarray:
        return np.arange(self.length) >= self.length - self.scored[:, None]


def each_step_once(borders: np.ndarray, length: int) -> ScoredWindows:
    """Adjacent windows, and one at each recording's end for the rest of its steps.

    Args:
        borders: ``[recordings + 1]`` rows; recordings shorter than a window have none.
        length: L.
    """
    firsts, scored = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for begin, end in pairwise(borders.tolist()):
        if end - begin >= length:
            starts = np.union1d(np.arange(begin, end - length + 1, length), end - length)
            firsts.append(starts)
            scored.append(np.diff(starts + length, prepend=begin))
    table = WindowTable.of(np.concatenate(firsts), x_valid=length)
    return ScoredWindows(table, np.concatenate(scored), length)


def every_step(borders: np.ndarray, length: int, step: int = 1) -> ScoredWindows:
    """A window every ``step`` rows of each recording; all steps count, as often as they are covered."""
    starts = [np.arange(begin, end - length + 1, step) for begin, end in pairwise(borders.tolist())]
    first = np.concatenate([np.zeros(0, np.int64), *starts])
    return ScoredWindows(WindowTable.of(first, x_valid=length), np.full(len(first), length), length)

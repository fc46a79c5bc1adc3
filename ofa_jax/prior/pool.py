"""The series of an epoch of pretraining: generated, or cut from a collection, by number alone."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ofa_jax.prior.source import Prior

_BATCH = 256
_MOST_WORKERS = 12  # enough to feed a GPU


class Source(Protocol):
    """Random access to windows ``[length]`` float32 by number, NaN where nothing is observed."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Excerpts:
    """Windows cut from a collection, mixed with generated ones.

    A series is drawn by the square root of its length, its end anywhere; what it lacks of the window at its
    start is not observed.

    Attributes:
        series: Values ``[T_i]``, NaN where missing.
        prior: The generated series, whose seed and length apply.
        generated: Share of these.
    """

    series: Sequence[np.ndarray]
    prior: Prior
    generated: float = 0.0

    @cached_property
    def _shares(self) -> np.ndarray:
        weight = np.sqrt([len(values) for values in self.series])
        return weight / weight.sum()

    def __len__(self) -> int:
        return len(self.prior)

    def __getitem__(self, number: int) -> np.ndarray:
        draw = np.random.Generator(np.random.Philox(key=[self.prior.seed + 2**32, int(number)]))
        if draw.random() < self.generated:
            return self.prior[number]
        values = self.series[draw.choice(len(self.series), p=self._shares)]
        length = self.prior.length
        end = int(draw.integers(min(len(values), length), len(values) + 1))
        window = np.full(length, np.nan)
        cut = values[max(0, end - length) : end]
        window[length - len(cut) :] = cut
        center, spread = np.nanmean(window), np.nanstd(window)
        return ((window - center) / (spread or 1)).astype(np.float32)


class Pool:
    """The windows of each epoch; those of the next are made while one trains.

    Epoch e has the numbers e·size … (e + 1)·size - 1, so a position is one integer.

    Args:
        source: Where windows come from.
        size: Windows of an epoch.
        workers: Worker processes; 0: a thread. Default: all processors but two.
    """

    def __init__(self, source: Source, size: int, workers: int | None = None) -> None:
        self._source, self._size, self._batch = source, size, math.gcd(size, _BATCH)
        self._workers = min((os.cpu_count() or 1) - 2, _MOST_WORKERS) if workers is None else workers
        self._next = -1
        self._open: list[Any] = []  # the iterator of batches, if any
        weakref.finalize(self, _close, self._open)

    def epoch(self, number: int) -> np.ndarray:
        """The windows of epoch ``number``, from 0, as ``[size, length]`` float32."""
        if number != self._next:
            _close(self._open)
            self._open.append(self._read(number))
        self._next = number + 1
        return np.concatenate([next(self._open[0]) for _ in range(self._size // self._batch)])

    def _read(self, number: int) -> Any:
        import grain  # takes long, and only pretraining reads a pool

        ahead = self._size // self._batch
        windows = grain.MapDataset.source(self._source).slice(slice(number * self._size, None))
        batches = windows.batch(self._batch)
        if self._workers < 1:
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
            return iter(batches.to_iter_dataset(options))
        from absl import flags  # a dependency of grain, which reads its flags here

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(self._workers, -(-ahead // self._workers))
        return iter(batches.to_iter_dataset().mp_prefetch(processes))


def _close(iterators: list[Any]) -> None:
    # by hand: when the interpreter ends, grain's own way prints tracebacks
    while iterators:
        iterators.pop().close()

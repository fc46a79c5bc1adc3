"""Batches that a CPU works on side by side.

A small network's program is many short operations, which leave cores idle between them; a second batch at the
same time fills the gaps. Results are those of one batch after the other.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import jax

MAX_IN_FLIGHT = 8
"""Batches at a time, at most: each has its intermediate values in memory."""

Given = TypeVar("Given")
Made = TypeVar("Made")


def batches_in_flight(batches: int, devices: int = 1) -> int:
    """How many of some batches to work on at a time: one per core on one CPU device, else one.

    One as well inside a context of jax (``jax.debug_nans``, ``jax.default_device``, …): it is the caller's
    thread's own.
    """
    if batches < 3:
        return 1  # the first one runs alone
    if devices > 1 or jax.default_backend() != "cpu":
        return 1  # devices that share few threads can wait for each other forever
    known = getattr(os, "sched_getaffinity", None)
    cores = len(known(0)) if known else os.cpu_count() or 1
    alike = cores > 1 and _InThread(lambda _: jax.config.values, None).result() == jax.config.values
    return min(cores, MAX_IN_FLIGHT) if alike else 1


def side_by_side(
    function: Callable[[Given], Made], batches: Iterable[Given], in_flight: int
) -> Iterator[Made]:
    """``function`` of every batch, in order, ``in_flight`` of them at a time.

    Batches are taken in the caller's thread, when they begin. The first one runs there and alone, since it
    may compile. An error, and the end of the iterator before its last result, wait for what has begun.
    """
    running: deque[_InThread[Given, Made]] = deque()
    try:
        for number, batch in enumerate(batches):
            if number == 0 or in_flight == 1:
                yield function(batch)
                continue
            running.append(_InThread(function, batch))
            if len(running) == in_flight:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for one in running:
            one.join()


class _InThread(threading.Thread, Generic[Given, Made]):
    """A call in a new thread. (A pool refuses work once the main thread has ended.)"""

    def __init__(self, function: Callable[[Given], Made], given: Given) -> None:
        super().__init__()
        self._function, self._given = function, given
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._made = self._function(self._given)
        except BaseException as error:
            self._error = error

    def result(self) -> Made:
        """What the call returned; an error is raised as it was there."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._made

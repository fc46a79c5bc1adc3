"""Batches that a CPU works on side by side.

A small network's program is many short operations, which leave cores idle between them; a second program that
runs at the same time fills the gaps. Results are those of one batch after the other.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax

MOST = 8
"""Batches at a time, at most: each has its intermediate values in memory."""

Given = TypeVar("Given")
Made = TypeVar("Made")


def batches_at_once(devices: int = 1) -> int:
    """Batches to work on at a time: one per core on one CPU device, else one."""
    if devices > 1 or jax.default_backend() != "cpu":
        return 1  # devices that share few threads can wait for each other forever
    known = getattr(os, "sched_getaffinity", None)
    return min(len(known(0)) if known else os.cpu_count() or 1, MOST)


def side_by_side(step: Callable[[Given], Made], batches: Iterable[Given], at_once: int) -> Iterator[Made]:
    """``step`` of every batch, in order; the first one alone, since it compiles.

    Batches are taken in the caller's thread, shortly before they begin.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        for number, batch in enumerate(batches):
            if number == 0 or at_once == 1:
                yield step(batch)
                continue
            waiting.append(pool.submit(step, batch))
            if len(waiting) > at_once:  # one is ready when a thread is free
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

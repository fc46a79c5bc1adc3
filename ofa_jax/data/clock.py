"""How a table counts and writes its times, so that what follows them is written in the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import tzinfo
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Clock:
    """How a source's times are counted and written.

    Attributes:
        zone: Their time zone.
        unit: numpy's unit of the source's datetimes.
        write: Makes the source's own kind of column (numbers, periods, days); None for datetimes.
        frequency: The step between rows where it is known and not inferred, as of
            :func:`ofa_jax.data.calendar.step_of`.
        counted: Whether rows are counted whatever their times (``timestamps: as_is``).
        counter: The first number and the step of a source that counts its rows, or None.
        notices: What was inferred.
        written: The time zone in which times are written, if it is another.
    """

    zone: tzinfo | None = None
    unit: str = "ns"
    write: Callable[[pd.DatetimeIndex], pd.Index] | None = None
    frequency: str | None = None
    counted: bool = False
    counter: tuple[int, int] | None = None
    notices: tuple[str, ...] = ()
    written: tzinfo | None = None

    def index(self, times: np.ndarray, name: str) -> pd.Index:
        """Times ``[T]`` in the source's time zone and kind."""
        import pandas as pd

        index = pd.DatetimeIndex(times)
        if self.zone is not None:
            index = index.tz_localize("UTC").tz_convert(self.written or self.zone)
        try:
            index = index.as_unit(self.unit)  # type: ignore[arg-type]
        except pd.errors.OutOfBoundsDatetime:  # nanoseconds end in the year 2262
            index = index.as_unit("us")
        return (index if self.write is None else self.write(index)).rename(name)

    def numbers(self, first: int, count: int, name: str) -> pd.Index:
        """The numbers of ``count`` rows from row ``first`` (0-based) on; 1, 2, … without a counter."""
        import pandas as pd

        begin, step = self.counter or (1, 1)
        begin += first * step
        return pd.RangeIndex(begin, begin + count * step, step, name=name)


NAIVE = Clock()
"""Datetimes without a time zone."""

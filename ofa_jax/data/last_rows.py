"""Times of a table of which the last rows are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ofa_jax.data.clock import Clock
from ofa_jax.data.timestamps import Place, parse_times
from ofa_jax.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def times_needed(
    cells: pd.Series, place: Place, first: int, read: Callable[..., tuple[np.ndarray | None, Clock, bool]]
) -> tuple[np.ndarray | None, Clock, bool, int]:
    """What ``read`` finds, and the first row that it was given: ``first`` where only earlier rows are wrong.

    Raises:
        DataError: As of ``read``; also where earlier rows are wrong and times go to and fro.
    """
    try:
        return *read(cells, place), 0
    except DataError:
        if first == 0 or _goes_back(cells, first):
            raise
        found = read(
            cells.iloc[first:].reset_index(drop=True), lambda row: place(None if row is None else first + row)
        )
        if found[2]:  # the newest row comes first, so these were the oldest ones
            found = read(cells.iloc[: len(cells) - first], place)
        return *found, first


def _goes_back(cells: pd.Series, first: int) -> bool:
    """Whether times before row ``first``, where one of them is wrong, and after it go to and fro.

    Those count that are written as later ones are; an hour back may be a change of clocks.
    """
    shapes = cells.astype(str).str.strip().str.replace(r"\d", "0", regex=True)
    alike = shapes.isin(shapes.iloc[first:].unique()) & cells.notna()
    try:
        times, _ = parse_times(cells[alike], lambda row: "")
    except DataError:
        return False
    steps = np.diff(times)
    least = steps.dtype.type(0) if steps.dtype.kind == "i" else np.timedelta64(1, "h")
    return bool((steps < -least).any() and (steps > least).any())

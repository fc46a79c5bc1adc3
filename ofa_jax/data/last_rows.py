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

_MOST_WRONG = 20  # earlier times that cannot be read


def times_needed(
    cells: pd.Series,
    place: Place,
    first: int,
    read: Callable[..., tuple[np.ndarray | None, Clock, bool]],
    form: str | None,
) -> tuple[np.ndarray | None, Clock, bool, int, pd.Series]:
    """What ``read`` finds, the first row that it was given (``first`` where only earlier ones are wrong), and
    the cells that were read, of times of this form.

    Raises:
        DataError: As of ``read``; also where earlier rows are wrong and times go to and fro.
    """
    try:
        return *read(cells, place), 0, cells
    except DataError:
        if first == 0 or _goes_back(cells, first, form):
            raise
        kept = cells.iloc[first:].reset_index(drop=True)
        found = read(kept, lambda row: place(None if row is None else first + row))
        if found[2]:  # the newest row comes first, so these were the oldest ones
            kept = cells.iloc[: len(cells) - first]
            found = read(kept, place)
        return *found, first, kept


def _goes_back(cells: pd.Series, first: int, form: str | None) -> bool:
    """Whether times before row ``first``, where one of them is wrong, and after it go to and fro.

    Those count that are written as later ones are and can be read; an hour back may be a change of clocks,
    and counters may begin again.
    """
    shapes = cells.astype(str).str.strip().str.replace(r"\d", "0", regex=True)
    alike = cells[shapes.isin(shapes.iloc[first:].unique()) & cells.notna()]
    for _ in range(_MOST_WRONG):
        try:
            times, _ = parse_times(alike, lambda row: "" if row is None else str(row), form)
        except DataError as error:
            if not (error.where or "").isdigit():
                return False
            alike = alike.drop(alike.index[int(error.where or 0)])
        else:
            steps = np.diff(times)
            hour = np.timedelta64(1, "h")
            return times.dtype.kind == "M" and bool((steps < -hour).any() and (steps > 0 * hour).any())
    return False

"""Missing values: refused or filled, for tables and archives alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ofa_jax.config.tasks import Missing
from ofa_jax.errors import DataError

LARGEST = 2.0**60
"""1.2e18. Sums of larger squares overflow float32, and sensors write 1e20 and the like for "missing"."""


def check_sizes(values: np.ndarray, place: Callable[[int, int | None], str]) -> None:
    """Refuse values of ``[T, C]`` beyond :data:`LARGEST`; ``place`` as in :func:`fill_missing`.

    Raises:
        DataError: There is one.
    """
    huge = np.argwhere((np.abs(values) > LARGEST) & np.isfinite(values))
    if len(huge):
        row, column = (int(index) for index in huge[0])
        what = f"{len(huge)} value(s) are too large for float32 arithmetic, the first one is "
        what += f"{values[row, column]:g}"
        fix = (
            f"Leave out values that mean `missing`, or use units in which the largest is below {LARGEST:.1g}"
        )
        raise DataError(what, where=place(column, row), fix=fix)


def fill_missing(
    values: np.ndarray, missing: Missing, place: Callable[[int, int | None], str], first: int = 0
) -> np.ndarray:
    """Refuse NaN and infinities of ``[T, C]``, or fill them by row: linearly, or with the last value before.

    Values too large to compute with (:func:`check_sizes`) are refused under any policy.

    Args:
        values: The values, returned as they are where all are finite.
        missing: The policy.
        place: ``place(column, row)``, the place of a value for messages; of the column where row is None.
        first: The first row that is needed; those before it only help to fill.

    Raises:
        DataError: A value is missing under ``error``, there is nothing to fill it from, or it is too large.
    """
    check_sizes(values, place)
    gone = ~np.isfinite(values)
    if not gone[first:].any():
        return values
    import pandas as pd

    empty = np.flatnonzero(gone.all(axis=0) & gone[first:].any(axis=0))
    if len(empty):
        where = place(int(empty[0]), None)
        raise DataError(
            "has no finite value at all", where=where, fix="Leave it out (for tables: with `columns`)"
        )
    row, column = (int(index) for index in np.argwhere(gone[first:])[0])
    row += first
    if missing == "error":
        kind = "missing" if np.isnan(values[row, column]) else "infinite"
        what = f"{int(gone[first:].sum())} value(s) are missing or infinite, the first one is {kind}"
        fix = "Fill them, or set `missing: linear` or `missing: ffill`"
        raise DataError(what, where=place(column, row), fix=fix, past={"missing": "linear"})
    known = pd.DataFrame(np.where(gone, np.nan, values))
    filled = (known.ffill() if missing == "ffill" else known.interpolate(limit_area="inside")).to_numpy()
    if np.isnan(filled[first:]).any():
        row, column = (int(index) for index in np.argwhere(np.isnan(filled[first:]))[0])
        row += first
        known_rows = np.flatnonzero(~gone[:, column])
        if len(known_rows) and row > known_rows[0]:
            edge, fix = "last", "Remove the last rows, or set `missing: ffill`"
        else:
            edge, fix = "first", "Remove the rows up to the first complete one"
        what = f"the {edge} value is missing or infinite and `missing: {missing}` has nothing to fill it from"
        raise DataError(what, where=place(column, row), fix=fix)
    return filled


def count_filled(observed: np.ndarray | Sequence[np.ndarray] | None) -> int:
    """How many values were filled, by the mask or masks of a frame, a collection or cases."""
    masks = [observed] if isinstance(observed, np.ndarray) else observed or ()
    return sum(int((~mask).sum()) for mask in masks)


def filled_notices(observed: np.ndarray | Sequence[np.ndarray] | None, source: str) -> list[str]:
    """Notices about filled values; empty without any."""
    count = count_filled(observed)
    what = f"{count:,} missing value(s) were filled; as targets they do not count"
    return [f"{Path(source).name}: {what}"] if count else []  # reports name no folders

"""Borders of the training, validation and test parts, and the standard scaler (protocol §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ofa_jax.config.tasks import SplitRule
from ofa_jax.errors import DataError, TooShort, sizes_text

Split = Literal["train", "validation", "test"]
Borders = dict[Split, tuple[int, int]]

CHANNEL_NAME = "channel {}"
"""The name of a channel whose source has none."""

_MONTH = 30 * 24
_ETT_PARTS = (12 * _MONTH, 4 * _MONTH, 4 * _MONTH)
_ETT_ROWS_PER_HOUR: dict[SplitRule, int] = {"ett_hour": 1, "ett_minute": 4}


def borders(
    n_rows: int,
    rule: SplitRule,
    *,
    input_length: int,
    horizon: int | None = None,
    percent: int = 100,
    ratios: tuple[float, float, float] = (0.7, 0.1, 0.2),
    source: str = "series",
) -> Borders:
    """First row and end (exclusive) of each part (protocol §3).

    ``ett_hour`` and ``ett_minute``: 12, 4 and 4 months of 30 days, later rows unused. ``ratio``:
    ``int(n * train)`` rows, ``int(n * test)`` at the end, the rest between. Validation and test start
    ``input_length`` rows early, so that their first target is their first own row. ``percent`` shortens the
    training part (few-shot); the scaler is still fitted on all of it: use ``percent=100`` for that.

    Args:
        n_rows: Rows of the series.
        rule: The split rule.
        input_length: L, in rows.
        horizon: H, in rows; when given, every part must have one window of L + H.
        percent: Share of the training part that is kept, 1 to 100.
        ratios: Training, validation and test shares of the ``ratio`` rule.
        source: Name of the series in errors.

    Raises:
        DataError: A part has too few rows.
    """
    if rule == "ratio":
        # truncated products of floats, as the benchmarks compute them: int(90 * 0.7) is 62
        train, test = int(n_rows * ratios[0]), int(n_rows * ratios[2])
        validation = n_rows - train - test
    else:
        train, validation, test = (rows * _ETT_ROWS_PER_HOUR[rule] for rows in _ETT_PARTS)
    end = train + validation
    kept = (train - input_length) * percent // 100 + input_length
    found: Borders = {
        "train": (0, kept),
        "validation": (train - input_length, end),
        "test": (end - input_length, end + test),
    }
    if n_rows < end + test:
        months = "12, 4 and 4 months of 30 days"
        what = f"{n_rows} row(s) are too few: the rule `{rule}` ({months}) needs {end + test}"
        raise DataError(what, where=source, fix="Give more rows, or split by `ratio`")
    needed = input_length + (horizon or 0)
    rows = {"train": min(train, kept), "validation": validation + input_length, "test": test + input_length}
    short = next((part for part, count in rows.items() if count < needed), None)
    if short is not None:
        share = f" ({percent} % of it kept)" if short == "train" and percent < 100 else ""
        parts = f"the {short} part{share} has {rows[short]} rows and windows need {needed}"
        sizes = _fitting(train, min(validation, test), input_length, horizon or 0, percent)
        fix = f"Set {sizes_text(sizes)}" if sizes else "No input length and horizon fit these rows"
        fix += ", or raise data.percent" if share else ""
        what = f"by the rule `{rule}`, {parts}"
        if rule == "ratio":  # the other rules' parts do not grow with the rows
            what, fix = f"{n_rows} row(s) are too few: {what}", f"{fix}, or give more rows"
        raise TooShort(what, where=source, fix=fix, sizes=sizes)
    return found


def _fitting(train: int, held_out: int, length: int, horizon: int, percent: int) -> dict[str, int]:
    """Which input length and horizon would fit parts of so many rows; those that fit are left out."""
    chosen = min(horizon, held_out, (train - 1) * percent // 100)
    longest = train - -(-100 * chosen // percent)
    if chosen < min(horizon, 1) or longest < 1:
        return {}
    half = max(1, longest // 2)  # so that there is more than one window to train on
    sizes = {"input_length": (length, length if length <= longest else half), "horizon": (horizon, chosen)}
    return {name: now for name, (was, now) in sizes.items() if now != was}


RESOLUTION = 2.0**-24
"""Of float32, relative: half the distance from 1 to the next number."""

FARTHEST = 2.0**50
"""Standard deviations; beyond, sums of squares over the steps and channels of a window overflow float32."""


@dataclass(frozen=True, eq=False)
class Scaler:
    """Mean and standard deviation per series.

    Attributes:
        mean: ``[C]`` float64, in original units.
        std: ``[C]`` float64, in original units, positive.
        names: The C series' names.
        constant: Names of those that were constant where the scaler was fitted; their ``std`` is 1.
        nearly_constant: Names of those whose spread there is below float32's :data:`RESOLUTION` of their
            size; their ``std`` is their size.
    """

    mean: np.ndarray
    std: np.ndarray
    names: tuple[str, ...]
    constant: tuple[str, ...] = ()
    nearly_constant: tuple[str, ...] = ()

    @property
    def notices(self) -> list[str]:
        """Warnings for the user: the series that it leaves unscaled."""
        names, nearly = ", ".join(self.constant), ", ".join(self.nearly_constant)
        found = [f"constant in the training part, so scaled by 1: {names}"] if names else []
        if nearly:
            what = "nearly constant in the training part (a spread below float32's resolution of their size)"
            found.append(
                f"{what}, so scaled by their size; subtract their level to use what varies: {nearly}"
            )
        return found

    def transform(self, values: np.ndarray, source: str | None = None, first: int = 1) -> np.ndarray:
        """Standardize ``[T, C]`` in original units to float32; ``first`` is the number of the first row.

        Raises:
            DataError: A value so far from the training part that float32 cannot compute with it.
        """
        with np.errstate(over="ignore"):
            scaled = (values - self.mean) / self.std
        wrong = np.argwhere(~(np.abs(scaled) <= FARTHEST))
        if len(wrong):
            row, column = wrong[0]
            what = (
                f"series `{self.names[column]}` has the value {values[row, column]:g} in row {row + first}, "
            )
            what += f"{abs(scaled[row, column]):.1g} standard deviations from the mean of training"
            fix = "Look for wrong units and for values that mean `missing`"
            raise DataError(what, where=source, fix=fix)
        return scaled.astype(np.float32)

    def invert(self, values: np.ndarray) -> np.ndarray:
        """Standardized ``[..., C]`` in original units, float64."""
        return np.asarray(values, dtype=np.float64) * self.std + self.mean

    def to_dict(self) -> dict[str, Any]:
        """Plain lists for JSON, which keeps every float64 exactly."""
        lists = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        return {"names": list(self.names), **lists, "constant": list(self.constant)}


def fit_scaler(
    values: np.ndarray,
    names: Sequence[str],
    *,
    ddof: int = 0,
    source: str | None = None,
    later: np.ndarray | None = None,
) -> Scaler:
    """Fit mean and standard deviation on the training rows ``[T, C]``.

    Constant series get std 1. Nearly constant ones get their size, so that rounding noise stays small: the
    largest absolute value of the training rows and of ``later`` rows, if given.

    Raises:
        DataError: No rows, or a spread that float64 cannot square.
    """
    values, names = np.asarray(values, dtype=np.float64), tuple(names)
    if len(values) == 0:
        fix = "Give at least one training row"
        raise DataError("there are no rows to fit the scaler on", where=source, fix=fix)
    constant = values.max(axis=0) == values.min(axis=0)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        # the value itself where constant: a rounded mean would leave a residue
        mean = np.where(constant, values[0], values.mean(axis=0))
        std = np.where(constant, 1.0, values.std(axis=0, ddof=ddof))
    size = np.abs(values if later is None else np.concatenate([values, later])).max(axis=0)
    nearly = ~constant & (std > 0) & (std < RESOLUTION * size)
    std = np.where(nearly, size, std)
    bad = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(std) & (std > 0)))
    if len(bad):
        what = f"series `{names[bad[0]]}` is spread too widely or too narrowly to standardize"
        raise DataError(what, where=source, fix="Give it in other units")
    flat, noisy = (tuple(names[index] for index in np.flatnonzero(kind)) for kind in (constant, nearly))
    return Scaler(mean, std, names, flat, noisy)

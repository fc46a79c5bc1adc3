"""Where training, validation and test begin and end, and the standard scaler (protocol §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ofa_jax.config.tasks import SplitRule
from ofa_jax.errors import ConfigError, DataError

Split = Literal["train", "validation", "test"]
Borders = dict[Split, tuple[int, int]]

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
    """First row and end (exclusive) of each part, as ``{"train": (0, end), "validation": …, "test": …}`` (protocol §3).

    ``ett_hour`` and ``ett_minute``: 12, 4 and 4 months of 30 days, rows after them unused. ``ratio``: ``int(n * train)`` rows,
    ``int(n * test)`` at the end, the rest between. Validation and test start ``input_length`` rows early, so that their first
    target is the first row of their own. ``percent`` shortens the training part (few-shot); the scaler is still fitted on all
    of it: take ``percent=100`` for that.

    Args:
        n_rows: Rows of the series.
        rule: The split rule.
        input_length: L, in rows.
        horizon: H, in rows; when given, every part must hold one window of L + H.
        percent: Share of the training part that is kept, 1 to 100.
        ratios: Training, validation and test shares of the ``ratio`` rule.
        source: Names the series in errors.

    Raises:
        DataError: Too few rows, with how many are needed.
        ConfigError: ``percent`` or ``ratios`` outside their range.
    """
    if not 1 <= percent <= 100:
        raise ConfigError(f"percent is {percent}", fix="Give a whole number from 1 to 100")
    if min(ratios) <= 0 or abs(sum(ratios) - 1) > 1e-6:
        raise ConfigError(f"the split ratios are {ratios}", fix="Give three positive shares that sum to 1")

    def parts(rows: int) -> Borders:
        return _borders(_part_lengths(rows, rule, ratios), input_length, percent)

    needed = 1 if horizon is None else input_length + horizon
    found = parts(n_rows)
    if _fits(found, n_rows, needed):
        return found
    if rule != "ratio":
        _refuse_ett(found, n_rows, rule, needed, percent, source)
    window = f"a window of {input_length} input rows" + (
        "" if horizon is None else f" and {horizon} to forecast"
    )
    what = f"{n_rows} row(s) are too few for {window} in every part, by the rule `ratio` {_shares(ratios, percent)}"
    raise DataError(what, where=source, fix="Give more rows, or choose a shorter input length or horizon")


def _part_lengths(n_rows: int, rule: SplitRule, ratios: tuple[float, float, float]) -> tuple[int, int, int]:
    if rule != "ratio":
        train, validation, test = (rows * _ETT_ROWS_PER_HOUR[rule] for rows in _ETT_PARTS)
        return train, validation, test
    # truncated products of floats, as the benchmarks compute them: int(10 * 0.7) is 7, int(90 * 0.7) is 62
    train, test = int(n_rows * ratios[0]), int(n_rows * ratios[2])
    return train, n_rows - train - test, test


def _borders(lengths: tuple[int, int, int], input_length: int, percent: int) -> Borders:
    train, validation, test = lengths
    end = train + validation
    few = (train - input_length) * percent // 100 + input_length
    return {
        "train": (0, few),
        "validation": (train - input_length, end),
        "test": (end - input_length, end + test),
    }


def _fits(found: Borders, n_rows: int, needed: int) -> bool:
    return all(start >= 0 and stop <= n_rows and stop - start >= needed for start, stop in found.values())


def _refuse_ett(found: Borders, n_rows: int, rule: SplitRule, needed: int, percent: int, source: str) -> None:
    wanted = found["test"][1]
    if n_rows < wanted:
        raise DataError(
            f"{n_rows} row(s) are too few: the rule `{rule}` (12, 4 and 4 months of 30 days) needs {wanted}",
            where=source,
            fix="Give more rows, or split by `ratio`",
        )
    part = next(name for name, (start, stop) in found.items() if start < 0 or stop - start < needed)
    start, stop = found[part]
    kept = f" ({percent} % of it is kept)" if part == "train" and percent < 100 else ""
    raise DataError(
        f"the {part} part of the rule `{rule}`{kept} has {stop - max(start, 0)} rows where one window "
        f"needs {needed}; more rows would not help",
        where=source,
        fix="Choose a shorter input length or horizon" + (", or a larger percent" if kept else ""),
    )


def _shares(ratios: tuple[float, float, float], percent: int) -> str:
    shares = "/".join(f"{100 * share:g}" for share in ratios)
    return f"({shares} %" + (f", {percent} % of the training part kept)" if percent < 100 else ")")


@dataclass(frozen=True, eq=False)
class Scaler:
    """Mean and standard deviation per series.

    Attributes:
        mean: ``[C]`` float64, in original units.
        std: ``[C]`` float64, in original units, positive.
        names: The C series' names.
        constant: Names of those that were constant where the scaler was fitted; their ``std`` is 1.
    """

    mean: np.ndarray
    std: np.ndarray
    names: tuple[str, ...]
    constant: tuple[str, ...] = ()

    @property
    def notices(self) -> list[str]:
        """What a person should know of it: which series it leaves unscaled."""
        return (
            [f"constant in the training part, so scaled by 1: {', '.join(self.constant)}"]
            if self.constant
            else []
        )

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Standardise ``[..., C]`` in original units to float32.

        Raises:
            DataError: A value so far from the training part that float32 cannot hold it.
        """
        with np.errstate(over="ignore"):
            scaled = ((values - self.mean) / self.std).astype(np.float32)
        if not np.isfinite(scaled).all():
            name = self.names[int(np.argwhere(~np.isfinite(scaled))[0][-1])]
            what = f"series `{name}` has values that cannot be standardised"
            raise DataError(what, fix="Look for infinities and wrong units in it")
        return scaled

    def invert(self, values: np.ndarray) -> np.ndarray:
        """Bring standardised ``[..., C]`` back to original units, in float64."""
        return np.asarray(values, dtype=np.float64) * self.std + self.mean

    def to_dict(self) -> dict[str, Any]:
        """Plain lists for JSON, which keeps every float64 exactly."""
        return {
            "names": list(self.names),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "constant": list(self.constant),
        }


def moments(values: np.ndarray, *, ddof: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and whether it is constant, of each column of ``[T, C]``, all ``[C]``; a constant one has std 1."""
    constant = values.max(axis=0) == values.min(axis=0)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        # the value itself where constant: a rounded mean would leave a residue
        mean = np.where(constant, values[0], values.mean(axis=0))
        std = np.where(constant, 1.0, values.std(axis=0, ddof=ddof))
    return mean, std, constant


def fit_scaler(values: np.ndarray, names: Sequence[str]) -> Scaler:
    """Fit mean and standard deviation (ddof 0) on the training rows ``[T, C]``; a constant series gets std 1 and is listed.

    Raises:
        DataError: No rows, or a spread that float64 cannot square.
    """
    values, names = np.asarray(values, dtype=np.float64), tuple(names)
    if len(values) == 0:
        raise DataError("there are no rows to fit the scaler on", fix="Give at least one training row")
    mean, std, constant = moments(values)
    bad = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(std) & (std > 0)))
    if len(bad):
        what = f"series `{names[bad[0]]}` is spread too widely or too narrowly to standardise"
        raise DataError(what, fix="Give it in other units")
    return Scaler(mean, std, names, tuple(name for name, flat in zip(names, constant, strict=True) if flat))

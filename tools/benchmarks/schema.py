"""The report of tools/bench.py: its JSON, field by field, and the statistics in it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
SectionName = Literal["step", "inference", "roof", "nano", "epoch", "memory", "start", "sweep", "growth"]
Unit = Literal["s", "windows/s", "bytes", "FLOP/s", "share"]
Of = Literal["theirs/ours", "ours/theirs"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stat(_Record):
    """One number, measured ``rounds`` times, in its row's unit."""

    median: Finite
    low: Finite | None = Field(None, description="lower quartile; minimum of fewer than five rounds")
    high: Finite | None = Field(None, description="upper quartile, or maximum")
    rounds: int = 1
    first: Finite | None = Field(None, description="seconds of the first call, compilation included")


class Ratio(_Record):
    """A ratio of medians; its spread is that of the ratios per round."""

    of: Of
    value: Finite
    low: Finite | None = None
    high: Finite | None = None


class Target(_Record):
    """What a row must reach, by its ratio or by ofa-jax's own number."""

    of: Literal["ratio", "ours"]
    bound: Literal["at least", "at most"]
    value: Finite


class Row(_Record):
    """One thing measured; ``theirs`` is PyTorch's, None where only ofa-jax is measured."""

    what: str
    unit: Unit
    ours: Stat
    theirs: Stat | None = None
    ratio: Ratio | None = None
    target: Target | None = None
    reached: bool | None = None
    note: str = ""


class Point(_Record):
    """Seconds of a step, and peak bytes above the imported libraries, at one value of an axis."""

    x: int
    seconds: Finite
    bytes: int


class Growth(_Record):
    """A curve and the exponents of its upper half: seconds and bytes grow as ``x ** exponent``."""

    axis: str
    points: list[Point]
    fitted: int = Field(description="number of last points that the exponents are fitted to")
    time_exponent: Finite
    memory_exponent: Finite
    worse_than_linear: bool


class Section(_Record):
    """One part of the suite."""

    name: SectionName
    title: str
    text: str = Field(description="what was measured, against what, and how")
    seconds: Finite = Field(0.0, description="wall time, with building and compilation")
    rows: list[Row] = []
    growth: list[Growth] = []


class Machine(_Record):
    """Where the numbers come from."""

    cpu: str
    cores: int = Field(description="cores this process may use, and threads of both sides")
    memory_bytes: int
    system: str
    device: str = Field(description="jax's name of the device")
    devices: int
    versions: dict[str, str]


class Report(_Record):
    """All sections of one run."""

    format: Literal[1] = 1
    command: str
    commit: str = Field(description="with -dirty if files have changed; unknown outside a checkout")
    date: str
    compute_dtype: str
    machine: Machine
    sections: list[Section]


def stat(values: Sequence[float], first: float | None = None) -> Stat:
    """Median and spread of some rounds."""
    low, high = spread(values)
    return Stat(median=statistics.median(values), low=low, high=high, rounds=len(values), first=first)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The quartiles; minimum and maximum of fewer than five values."""
    if len(values) < 5:
        return min(values), max(values)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def ratio(ours: Sequence[float], theirs: Sequence[float], of: Of) -> Ratio:
    """The ratio of two sides that took turns."""
    over, under = (theirs, ours) if of == "theirs/ours" else (ours, theirs)
    low, high = spread([a / b for a, b in zip(over, under, strict=True)])
    return Ratio(of=of, value=statistics.median(over) / statistics.median(under), low=low, high=high)


def once(ours: float, theirs: float, of: Of) -> Ratio:
    """The ratio of two numbers measured once."""
    return Ratio(of=of, value=theirs / ours if of == "theirs/ours" else ours / theirs)


def make_row(
    what: str,
    unit: Unit,
    ours: Stat,
    theirs: Stat | None = None,
    ratio: Ratio | None = None,
    target: Target | None = None,
    note: str = "",
) -> Row:
    """A row with the verdict on its target."""
    values = {"ratio": None if ratio is None else ratio.value, "ours": ours.median}
    met = None
    if target is not None and (value := values[target.of]) is not None:
        met = value >= target.value if target.bound == "at least" else value <= target.value
    sides: dict[str, Any] = {"ours": ours, "theirs": theirs, "ratio": ratio}
    return Row(what=what, unit=unit, **sides, target=target, reached=met, note=note)


def find(sections: Sequence[Section], name: SectionName, what: str) -> Row | None:
    """A row of an earlier section of the same run."""
    rows = (row for section in sections if section.name == name for row in section.rows)
    return next((row for row in rows if row.what == what), None)

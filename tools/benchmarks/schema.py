"""The report of tools/bench.py: its JSON, field by field, and how its numbers are made from times."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
SectionName = Literal["step", "inference", "roof", "epoch", "memory", "start", "sweep", "growth"]
Of = Literal["theirs/ours", "ours/theirs"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stat(_Record):
    """One number as it was measured ``rounds`` times, in its row's unit."""

    median: Finite
    low: Finite | None = Field(
        None, description="lower quartile; with fewer than five rounds the lowest; None for a percentile"
    )
    high: Finite | None = Field(None, description="upper quartile, or the highest")
    rounds: int = 1
    first: Finite | None = Field(None, description="seconds of the first call, compilation included")


class Ratio(_Record):
    """A quotient of medians; its spread is that of the quotients round by round."""

    of: Of
    value: Finite
    low: Finite | None = None
    high: Finite | None = None


class Target(_Record):
    """What a row must reach, in its ratio or in our own number."""

    of: Literal["ratio", "ours"]
    bound: Literal["at least", "at most"]
    value: Finite


class Row(_Record):
    """One thing measured; ``theirs`` is PyTorch's, None where it is ours alone."""

    what: str
    unit: Literal["s", "windows/s", "bytes", "FLOP/s", "share"]
    ours: Stat | None
    theirs: Stat | None = None
    ratio: Ratio | None = None
    target: Target | None = None
    reached: bool | None = None
    note: str = ""


class Point(_Record):
    """Seconds of a step and peak bytes over the imported libraries, at one place of an axis."""

    x: int
    seconds: Finite
    bytes: int


class Growth(_Record):
    """A curve and the exponents of its upper half: seconds and bytes grow as ``x ** exponent``."""

    axis: str
    points: list[Point]
    fitted: int = Field(description="points that the exponents come from, counted from the last")
    time_exponent: Finite
    memory_exponent: Finite
    worse_than_linear: bool


class Section(_Record):
    """One part of the suite."""

    name: SectionName
    title: str
    text: str = Field(description="what was measured, against what, and how")
    seconds: Finite = Field(0.0, description="wall time of the part, builds and compilation included")
    rows: list[Row] = []
    growth: list[Growth] = []


class Machine(_Record):
    """Where the numbers are from."""

    cpu: str
    cores: int = Field(description="cores that this process may use; both sides use as many threads")
    memory_bytes: int
    system: str
    device: str = Field(description="jax's name of the device")
    devices: int
    versions: dict[str, str]


class Report(_Record):
    """The whole."""

    format: Literal[1] = 1
    command: str
    commit: str = Field(
        description="the source's commit, with -dirty where files were changed since; unknown outside a checkout"
    )
    date: str
    compute_dtype: str
    machine: Machine
    sections: list[Section]


def stat(values: Sequence[float], first: float | None = None) -> Stat:
    """Median and spread of some rounds."""
    low, high = spread(values)
    return Stat(median=statistics.median(values), low=low, high=high, rounds=len(values), first=first)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The quartiles, or lowest and highest where there are fewer than five values."""
    if len(values) < 5:
        return min(values), max(values)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def ratio(ours: Sequence[float], theirs: Sequence[float], of: Of) -> Ratio:
    """The quotient of two sides that took turns."""
    over, under = (theirs, ours) if of == "theirs/ours" else (ours, theirs)
    low, high = spread([a / b for a, b in zip(over, under, strict=True)])
    return Ratio(of=of, value=statistics.median(over) / statistics.median(under), low=low, high=high)


def once(ours: float, theirs: float, of: Of) -> Ratio:
    """The quotient of two numbers that were taken once."""
    return Ratio(of=of, value=theirs / ours if of == "theirs/ours" else ours / theirs)


def reached(row: Row) -> Row:
    """The row with the verdict on its target."""
    if row.target is None:
        return row
    measured = row.ratio if row.target.of == "ratio" else row.ours
    if measured is None:
        return row
    value = measured.value if isinstance(measured, Ratio) else measured.median
    met = value >= row.target.value if row.target.bound == "at least" else value <= row.target.value
    return row.model_copy(update={"reached": met})


def find(sections: Sequence[Section], name: SectionName, what: str) -> Row | None:
    """A row that was measured earlier in the same run."""
    rows: Mapping[str, Row] = {
        row.what: row for section in sections if section.name == name for row in section.rows
    }
    return rows.get(what)

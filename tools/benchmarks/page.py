"""The page of a report in Markdown, readable without knowing the machine or the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.schema import Growth, Ratio, Report, Row, Section, Stat, Target

SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "windows/s": ((1, "windows/s"),),
    "bytes": ((1e6, "MB"),),
    "FLOP/s": ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s")),
    "share": ((0.01, "%"),),
}
"""For each unit those it is written in, from the largest."""

NONE = "—"


def render(report: Report) -> str:
    """The page as Markdown."""
    sections = (line for section in report.sections for line in _section(section))
    return "\n".join([*_head(report), *sections]) + "\n"


def _head(report: Report) -> Iterator[str]:
    machine, total = report.machine, sum(section.seconds for section in report.sections)
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    yield from ("# Benchmarks", "", "This page was written by", "", "```", report.command, "```", "")
    yield (
        f"at commit {report.commit} on {report.date}, in {total / 60:.1f} minutes, on {machine.cpu} "
        f"({machine.cores} cores used, {machine.memory_bytes / 2**30:.0f} GiB, {machine.system}; jax device: "
        f"{machine.devices} x {machine.device}), in {report.compute_dtype}, with {versions}."
    )
    yield ""
    yield (
        "PyTorch's side is what a user would write today: transformers' GPT-2 with `sdpa` attention and "
        "random weights, peft's adapters, torch's Adam (tools/benchmarks/theirs.py). Both sides have the "
        "same cores and the same type. In every comparison they take turns within one process (A B A B …) "
        "after a warm-up. Numbers are medians with quartiles in brackets; with fewer than five rounds, "
        "minimum and maximum. A ratio is one of medians: how many times faster ofa-jax is, or for memory "
        "its share of PyTorch's; its brackets are those of the ratios per round. The first call, with "
        "compilation, is reported separately."
    )
    yield ""


def _section(section: Section) -> Iterator[str]:
    yield from (f"## {section.title}", "", section.text, "")
    if section.rows:
        yield from (*_table(section.rows), "")
    if section.growth:
        yield from (*_curves(section.growth), "")
    yield from (f"This section took {section.seconds:.0f} s.", "")


def _table(rows: list[Row]) -> Iterator[str]:
    headings = ["", "ofa-jax", "first call", "PyTorch", "ratio", "target"]
    cells = [
        [
            row.what + (f" ({row.note})" if row.note else ""),
            *(_stat(row.ours, row.unit), _first(row), _stat(row.theirs, row.unit)),
            *(_ratio(row.ratio), _target(row)),
        ]
        for row in rows
    ]
    kept = [n for n in range(len(headings)) if n < 2 or any(cell[n] != NONE for cell in cells)]
    yield "| " + " | ".join(headings[column] for column in kept) + " |"
    yield "|" + "|".join("---" if column == 0 else "---:" for column in kept) + "|"
    for cell in cells:
        yield "| " + " | ".join(cell[column] for column in kept) + " |"


def _curves(curves: list[Growth]) -> Iterator[str]:
    yield "| axis | step time and memory at each point | time grows as | memory grows as | |"
    yield "|---|---|---|---|---|"
    for curve in curves:
        shown = (f"{p.x:,}: {value(p.seconds, 's')}, {value(p.bytes, 'bytes')}" for p in curve.points)
        powers = " | ".join(f"x^{exponent:.2f}" for exponent in (curve.time_exponent, curve.memory_exponent))
        flag = "**worse than linear**: see docs/performance.md" if curve.worse_than_linear else ""
        yield f"| {curve.axis} | {'; '.join(shown)} | {powers} | {flag} |"


def value(number: float, unit: str) -> str:
    """A number in its unit, three digits of it."""
    scale, name = _scale(number, unit)
    return f"{digits(number / scale)} {name}"


def digits(number: float) -> str:
    """Three significant digits; whole numbers keep all of theirs."""
    places = 0 if number == 0 else max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:,.{places}f}"


def _scale(number: float, unit: str) -> tuple[float, str]:
    scales = SCALES[unit]
    return next((each for each in scales if abs(number) >= each[0]), scales[-1])


def _stat(stat: Stat | None, unit: str) -> str:
    if stat is None:
        return NONE
    scale, _ = _scale(stat.median, unit)
    return value(stat.median, unit) + _between(stat.low, stat.high, scale)


def _first(row: Row) -> str:
    return NONE if row.ours.first is None else value(row.ours.first, "s")


def _ratio(ratio: Ratio | None) -> str:
    return NONE if ratio is None else f"{ratio.value:.2f}×{_between(ratio.low, ratio.high, 1)}"


def _between(low: float | None, high: float | None, scale: float) -> str:
    return "" if low is None or high is None else f" ({digits(low / scale)}–{digits(high / scale)})"


def _target(row: Row) -> str:
    target: Target | None = row.target
    if target is None:
        return NONE
    bound = f"{target.value:g}×" if target.of == "ratio" else value(target.value, row.unit)
    verdict = {True: "reached", False: "**missed**", None: "not measured"}[row.reached]
    return f"{'≥' if target.bound == 'at least' else '≤'} {bound}, {verdict}"

"""The page of a table: measured cells as mean ± standard deviation, with the published figures
(published.yaml)."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ofa_jax.baselines.compare import LARGER_IS_BETTER
from ofa_jax.data.catalog.load import CATALOG

Cell = dict[str, Any]
"""What is kept of one seed of one setting."""

TITLES = {
    "long": "Long-term forecasting",
    "few_shot": "Few-shot forecasting",
    "zero_shot": "Zero-shot transfer",
    "short_term": "Short-term forecasting (M4)",
    "anomaly": "Anomaly detection",
    "classification": "Classification",
    "imputation": "Imputation",
    "ranks": "Rank ablation, long-term forecasting",
}
WORDS = {
    "task.horizon": "horizon",
    "data.percent": "percent of the training part",
    "task.mask_rate": "share hidden",
    "adapters.rank": "rank",
}
AVERAGED = ("task.horizon", "task.mask_rate")
"""Settings over which published figures are means."""
DECISIVE = {
    "zero_shot": ("smape",),
    "short_term": ("owa",),
    "anomaly": ("average_precision", "adjusted_f1"),
    "classification": ("accuracy",),
}
"""The metrics that the sentence is about; MSE where a table is not named."""
HIDDEN = ("error",)
"""Metrics that say nothing new: one minus the accuracy."""


@dataclass(frozen=True)
class Entry:
    """A setting of a table: data set, varied settings, a cell or None per seed, and what data are missing."""

    data: str
    vary: dict[str, Any]
    cells: list[Cell | None]
    absent: str | None

    @property
    def measured(self) -> list[Cell]:
        return [cell for cell in self.cells if cell and "methods" in cell]

    @property
    def why_not(self) -> str:
        reasons = [cell["failed"] for cell in self.cells if cell and "failed" in cell]
        return self.absent or (reasons[0] if reasons else "not run")

    @property
    def gaps(self) -> list[str]:
        """What is missing, in words."""
        name = self.label(*AVERAGED, "adapters.rank") or self.data
        if not self.measured:
            return [f"{name}: {self.why_not}"]
        return [
            f"{name}, seed {seed}: {cell['failed']}"
            for seed, cell in enumerate(self.cells)
            if cell and "failed" in cell
        ]

    def label(self, *paths: str) -> str:
        return ", ".join(f"{WORDS[path]} {self.vary[path]}" for path in paths if path in self.vary)


@dataclass
class Line:
    """A method: per metric the figure of every seed."""

    method: str
    is_model: bool
    trainable: float
    figures: dict[str, dict[int, float]]

    def values(self, metric: str) -> list[float]:
        return list(self.figures.get(metric, {}).values())

    def mean(self, metric: str) -> float:
        return statistics.fmean(self.values(metric)) if self.values(metric) else math.nan

    def spread(self, metric: str) -> float:
        return statistics.stdev(self.values(metric)) if len(self.values(metric)) > 1 else 0.0

    def shown(self, metric: str) -> str:
        mean, spread = self.mean(metric), self.spread(metric)
        if math.isnan(mean):
            return "—"
        digits = 4 if abs(mean) < 10 else 3
        return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread else "")


def lines_of(entries: Sequence[Entry]) -> list[Line]:
    """The methods of settings that share a block (several ranks), models first."""
    lines: dict[str, Line] = {}
    for entry in entries:
        for cell in entry.measured:
            for index, row in enumerate(cell["methods"]):
                suffix = (
                    f", rank {entry.vary['adapters.rank']}"
                    if "adapters.rank" in entry.vary and index == 0
                    else ""
                )
                line = lines.setdefault(
                    row["method"] + suffix, Line(row["method"] + suffix, index == 0, row["trainable"], {})
                )
                for metric, value in row.items():
                    if metric not in ("method", "trainable", "bytes", *HIDDEN):
                        line.figures.setdefault(metric, {})[cell["seed"]] = value
    return sorted(lines.values(), key=lambda line: not line.is_model)


def mean_lines(blocks: Sequence[list[Line]], weights: Sequence[float] | None = None) -> list[Line]:
    """Per method that all blocks have, and per seed, the mean over the blocks; OWA is taken of the means
    (protocol §3) where weighted."""
    made = []
    for first in blocks[0]:
        same = [line for block in blocks for line in block if line.method == first.method]
        if len(same) < len(blocks):
            continue
        figures: dict[str, dict[int, float]] = {}
        for metric in first.figures:
            parts = [line.figures.get(metric, {}) for line in same]
            seeds = [seed for seed in parts[0] if all(seed in part for part in parts)]
            figures[metric] = {
                seed: statistics.fmean([part[seed] for part in parts], weights) for seed in seeds
            }
        made.append(
            Line(first.method, first.is_model, statistics.fmean(line.trainable for line in same), figures)
        )
    yard = next((line.figures for line in made if line.method == "Naive2"), None)
    if weights and yard:
        for line in made:
            for seed in line.figures["owa"]:
                line.figures["owa"][seed] = statistics.fmean(
                    line.figures[name][seed] / yard[name][seed] for name in ("smape", "mase")
                )
    return made


def heading(metric: str) -> str:
    known = {"smape": "sMAPE", "average_precision": "AP", "f1": "F1", "cross_entropy": "cross-entropy"}
    if metric.startswith("adjusted_"):
        return f"adjusted {heading(metric.removeprefix('adjusted_'))}"
    return known.get(metric, metric.upper() if len(metric) <= 4 else metric)


def best_of(lines: Iterable[Line], metric: str) -> Line | None:
    known = [line for line in lines if not math.isnan(line.mean(metric))]
    sign = -1 if metric in LARGER_IS_BETTER else 1
    return min(known, key=lambda line: sign * line.mean(metric), default=None)


def markdown_table(lines: Sequence[Line], published: Sequence[dict[str, Any]]) -> list[str]:
    metrics = list(dict.fromkeys(metric for line in lines for metric in line.figures))
    best = {metric: winner.mean(metric) for metric in metrics if (winner := best_of(lines, metric))}
    rows = [["method", *map(heading, metrics), "trainable", "bytes"], ["---", *["---:"] * (len(metrics) + 2)]]
    for line in lines:
        shown = [
            f"**{line.shown(metric)}**" if line.mean(metric) == best.get(metric) else line.shown(metric)
            for metric in metrics
        ]
        rows.append([line.method, *shown, f"{line.trainable:,.0f}", f"{4 * line.trainable:,.0f}"])
    for row in published:
        rows.append(
            [
                f"*published:* {row['method']} ({row['source']})",
                *(row["shown"].get(metric, "") for metric in metrics),
                "",
                "",
            ]
        )
    return ["| " + " | ".join(row) + " |" for row in rows]


def verdict(lines: Sequence[Line], metric: str) -> str:
    """One sentence: which method has the best figure, and whether a baseline beats the model."""
    models, baselines = (
        [line for line in lines if line.is_model],
        [line for line in lines if not line.is_model],
    )
    model, baseline = best_of(models, metric), best_of(baselines, metric)
    name = heading(metric)
    if model is None or baseline is None:
        only = model or baseline
        return (
            f"Best {name}: {only.method}, {only.shown(metric)}; nothing else has this figure." if only else ""
        )
    first = best_of([baseline, model], metric)
    ahead, behind = (baseline, model) if first is baseline else (model, baseline)
    close = abs(ahead.mean(metric) - behind.mean(metric)) <= ahead.spread(metric) + behind.spread(metric)
    near = (
        " (within their standard deviations)"
        if close and (ahead.spread(metric) or behind.spread(metric))
        else ""
    )
    if ahead.mean(metric) == behind.mean(metric):
        equal = f"{model.method} and the baseline {baseline.method} are equal"
        return f"Best {name}: {equal}, {model.shown(metric)}."
    if ahead is baseline:
        other = f"**a baseline beats the model**: {model.method} has {model.shown(metric)}{near}."
    else:
        other = f"the best baseline, {baseline.method}, has {baseline.shown(metric)}{near}."
    return f"Best {name}: {ahead.method}, {ahead.shown(metric)}; {other}"


@cache
def published(table: str) -> dict[str, Any]:
    """The published figures of a table."""
    return yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())[table]


def published_rows(table: str, data: str, vary: dict[str, Any]) -> list[dict[str, Any]]:
    """The published rows of a data set (or of ``all``) in a setting."""
    known, found = published(table), []
    for row in known["rows"]:
        if data in row["figures"] and all(
            vary.get(path, value) == value for path, value in row.get("when", {}).items()
        ):
            found.append(
                {
                    **row,
                    "shown": dict(zip(known["metrics"], str(row["figures"][data]).split("/"), strict=False)),
                }
            )
    return found


def group_lines(table: str, group: list[Entry]) -> tuple[list[str], list[Line] | None]:
    """A data set's part of the page, and its lines for the mean over data sets if they are complete."""
    title = ", ".join(filter(None, [group[0].data, group[0].label("data.percent")]))
    blocks = [list(block) for _, block in itertools.groupby(group, key=lambda entry: entry.label(*AVERAGED))]
    text: list[str] = [f"## {title}", ""]
    measured: list[tuple[str, list[Line]]] = []
    over = published(table).get("over")
    theirs = published_rows(table, group[0].data, group[0].vary)
    for block in blocks:
        if lines := lines_of(block):
            measured.append((block[0].label(*AVERAGED), lines))
            text += [caption(block), "", *markdown_table(lines, () if over else theirs), ""]
        text += [line for entry in block for gap in entry.gaps for line in (f"Not run: {gap}.", "")]
    mean = mean_lines([lines for _, lines in measured]) if len(measured) == len(blocks) else []
    seeds = max((len(values) for line in mean for values in line.figures.values()), default=0)
    if len(blocks) > 1 and seeds:
        name = f"mean over {', '.join(label for label, _ in measured)}"
        text += [f"{capital(name)}; {seeds} seed{'s' * (seeds > 1)}:", "", *markdown_table(mean, theirs), ""]
        measured = [(name, mean)]
    elif over and theirs:
        figures = "; ".join(f"{row['method']} {row['figures'][group[0].data]}" for row in theirs)
        text += [
            f"Published, but not comparable, as the mean of horizons {', '.join(map(str, over))}: {figures}.",
            "",
        ]
    for name, lines in measured:
        verdicts = " ".join(verdict(lines, metric) for metric in DECISIVE.get(table, ("mse",)))
        text += [capital(f"{name}: {verdicts}") if name else verdicts, ""]
    return text, mean if seeds else None


def caption(block: list[Entry]) -> str:
    cells = [cell for entry in block for cell in entry.measured]
    length = cells[0]["config"]["task"]["input_length"]
    windows, seeds = f"{cells[0]['windows']:,} test windows", count_seeds(cells, len(block[0].cells))
    parts = [block[0].label(*AVERAGED), f"input {length}", windows, seeds, f"protocol {cells[0]['protocol']}"]
    return f"{capital(', '.join(filter(None, parts)))}:"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def count_seeds(cells: Iterable[Cell], asked: int) -> str:
    seeds = len({cell["seed"] for cell in cells})
    return f"{seeds} of {asked} seeds" if seeds < asked else f"{seeds} seed{'s' * (seeds > 1)}"


def provenance(table: str, cells: list[Cell], command: str) -> list[str]:
    """How the figures were measured: command, trunk, seeds, machine and versions."""
    text = ["```", command, "```", ""]
    if any(cell["config"]["trunk"]["source"] == "random" for cell in cells):
        text += ["The trunk is a **random trunk**: this tests the pipeline and says nothing about GPT-2.", ""]
    if not cells:
        return [*text, "Nothing has been run yet.", ""]
    protocols = " and ".join(sorted({cell["protocol"] for cell in cells}))
    machines = sorted(
        {
            "{device}, {cores} cores of {cpu}".format(**cell["machine"]) + f", {cell['compute_dtype']}"
            for cell in cells
        }
    )
    packages = sorted(
        {", ".join(f"{name} {version}" for name, version in cell["versions"].items()) for cell in cells}
    )
    times = [
        sum(cell["seconds"][part] for part in ("train", "score"))
        for cell in cells
        if not cell["seconds"]["resumed"]
    ]
    time = ""
    if times:
        span = " to ".join(dict.fromkeys(f"{seconds:,.0f}" for seconds in (min(times), max(times))))
        time = f" One seed of one setting took {span} s, including baselines."
    return [
        *text,
        f"Test part, protocol `{protocols}` ([protocol.md](../protocol.md), §5). "
        "Mean ± standard deviation (n − 1) over the seeds; **bold**: the best of our own figures. "
        "`bytes` is what the trained parameters take in float32. "
        f"{published(table).get('note', '')}".rstrip(),
        "",
        f"Measured on {'; and on '.join(machines)}; {'; and '.join(packages)}.{time}",
        "",
    ]


def not_run(table: str, entries: list[Entry], *, quick: bool) -> list[str]:
    """Data sets without any run, and why; a full table also lists published sets without a settings file."""
    groups, known = grouped(entries), published(table)
    rows = [(group[0], group[0].why_not) for group in groups if not any(entry.measured for entry in group)]
    listed = {(group[0].data, group[0].label("data.percent")) for group in groups}
    for row in () if quick else known["rows"]:
        for data in row["figures"]:
            entry = Entry(data, row.get("when", {}), [], None)
            if data not in known.get("means", {}) and (data, entry.label("data.percent")) not in listed:
                listed.add((data, entry.label("data.percent")))
                rows.append((entry, "no settings file"))
    if not rows:
        return []
    text = ["## Not run", "", "| data set | published | why not |", "|---|---|---|"]
    for entry, why in rows:
        shown = "; ".join(
            f"{row['method']} {row['figures'][entry.data]}"
            for row in published_rows(table, entry.data, entry.vary)
        )
        named = ", ".join(filter(None, [entry.data, entry.label("data.percent")]))
        text.append(f"| {named} | {shown or 'none'} | {why} |")
    return [*text, ""]


def means(table: str, complete: dict[str, list[Line]], vary: dict[str, Any]) -> list[str]:
    """The published means over data sets and ours, or which sets ours lack."""
    known, text = published(table), []
    for name, sets in known.get("means", {}).items():
        rows = published_rows(table, name, vary)
        if not rows:
            continue
        setting = Entry(name, vary, [], None).label("data.percent")
        text += [f"## Mean of {', '.join(filter(None, [name, setting]))}", ""]
        missing = [data for data in sets if data not in complete]
        if missing:
            figures = "; ".join(f"{row['method']} {row['figures'][name]} ({row['source']})" for row in rows)
            text += [
                f"Published: {figures}. Not comparable with our figures: "
                f"{', '.join(missing)} not run, or only in part.",
                "",
            ]
        else:
            weights = [CATALOG[data].n_series or 1 for data in sets] if known.get("weighted") else None
            text += [*markdown_table(mean_lines([complete[data] for data in sets], weights), rows), ""]
    return text


def grouped(entries: Iterable[Entry]) -> list[list[Entry]]:
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.data, entry.label("data.percent")), []).append(entry)
    return [
        sorted(group, key=lambda entry: [entry.vary.get(path, 0) for path in (*AVERAGED, "adapters.rank")])
        for group in groups.values()
    ]


def render(table: str, entries: list[Entry], *, quick: bool, command: str) -> str:
    """The page as Markdown."""
    text = [
        f"# {TITLES[table]}",
        "",
        *provenance(table, [cell for entry in entries for cell in entry.measured], command),
    ]
    complete: dict[str, dict[str, list[Line]]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for group in grouped(entries):
        setting = group[0].label("data.percent")
        settings[setting] = {path: value for path, value in group[0].vary.items() if path == "data.percent"}
        part, lines = group_lines(table, group) if any(entry.measured for entry in group) else ([], None)
        text += part
        if lines:
            complete.setdefault(setting, {})[group[0].data] = lines
    if not quick or not any(published_rows(table, entry.data, entry.vary) for entry in entries):
        for setting, vary in settings.items():
            text += means(table, complete.get(setting, {}), vary)
    text += not_run(table, entries, quick=quick)
    return "\n".join(text).rstrip() + "\n"


def quick_sections(page: str) -> dict[str, str]:
    """The sections of the quick page, by table."""
    return dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->\n", page, flags=re.DOTALL))


def figures(page: str) -> Counter[str]:
    """How much a page, or a section of one, has measured of each data set: rows times the seeds behind
    them."""
    found, heading, seeds = Counter[str](), "", 1
    for line in page.splitlines():
        if line.startswith("#"):
            heading, seeds = line.strip("# "), 1
        elif line.endswith(":") and (stated := re.search(r"\b(\d+)(?: of \d+)? seeds?\b", line)):
            seeds = int(stated[1])
        elif line.startswith("| ") and not line.startswith(("| method ", "| --- ", "| *published:* ")):
            found[heading] += seeds
    del found["Not run"]
    return found


def replace_section(page: str, table: str, text: str) -> str:
    """The quick page with one table's section replaced."""
    sections = quick_sections(page)
    sections[table] = "\n" + re.sub("^#", "##", text, flags=re.MULTILINE) + "\n"
    head = (
        "# Quick runs: every task on real data with a small random trunk\n\n"
        "Generated by `tools/reproduce.py`; do not edit.\n\n"
    )
    return head + "".join(
        f"<!-- {name} -->\n{sections[name]}<!-- end -->\n" for name in TITLES if name in sections
    )

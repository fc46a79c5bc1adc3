"""What commands print: tables and summaries."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Column, Table

from ofa_jax.errors import printable

if TYPE_CHECKING:
    from ofa_jax.baselines.compare import Comparison
    from ofa_jax.studies.gradients.folder import Written
    from ofa_jax.studies.sweep.folder import Sweep
    from ofa_jax.train.fit import FitResult


def training_summary(result: FitResult, protocol: str) -> str:
    """Why training ended, and the best epoch."""
    best = "  ".join(f"{name} {value:.4f}" for name, value in result.progress.best_metrics.items())
    epoch = result.progress.best_epoch
    return f"{result.reason}; best epoch {epoch}, validation {best} (protocol {protocol})"


def print_comparison(comparison: Comparison) -> None:
    """A row per method: metrics, trainable parameters and kilobytes."""
    names = comparison.metric_names
    part = f"{comparison.split} part, {comparison.windows:,} windows, {comparison.conditions}"
    digits = 4 if len(names) <= 4 else 3
    rows = []
    for row in comparison.rows:
        metrics = (_number(row.metrics.get(name, math.nan), digits) for name in names)
        rows.append((row.method, *metrics, *_size(row.trainable, row.bytes)))
    _print(f"{comparison.task}, {part}", ["method"], [*map(heading, names), "trainable", "kB"], rows)


def print_slopes(made: Written) -> None:
    """The slope of the first-order change against rank, with theory."""
    found = made.slopes[made.slopes["quantity"] == "first_order_change"]
    keys = ["module", "scaling", "init", "optimizer", "steps"]
    rows = []
    for row in found.to_dict("records"):
        slope, low, high, theory = (_number(row[name], 2) for name in ("slope", "low", "high", "predicted"))
        rows.append((*(str(row[name]) for name in keys), slope, f"{low} … {high}", theory))
    if rows:
        title = f"slope of the first-order loss change against rank, {made.study.windows} windows"
        _print(title, keys[:-1], ["steps", "slope", "95 % interval", "theory"], rows)
    folder = made.folder
    say(f"slopes: {folder / 'slopes.csv'}", f"values: {folder / 'study.csv'}", f"figures: {folder}")


def print_sweep(made: Sweep) -> None:
    """A row per configuration, averaged over seeds, and the baselines."""
    from ofa_jax.studies.sweep.folder import summary

    cells, seeds = summary(made.cells), made.seeds
    varied = [name for name in ("alpha", "scaling", "init", "learning_rate") if cells[name].nunique() > 1]
    diverged = bool((cells["seeds"] < seeds).any())
    keys = ["rank", *varied, *["seeds"] * diverged]
    objective = f"validation_{made.objective}"
    names = [name for name in cells.columns if name == objective or re.fullmatch("test_.*(?<!_std)", name)]
    rows = []
    for row in cells.to_dict("records"):
        metrics = (_number(row[name], std=row[f"{name}_std"]) for name in names)
        rows.append((*(str(row[name]) for name in keys), *metrics, *_size(row["trainable"], row["bytes"])))
    for row in [] if made.baselines is None else made.baselines.to_dict("records"):
        metrics = (_number(row.get(name, math.nan)) for name in names)
        empty = [""] * (len(keys) - 1)
        rows.append((row["method"], *empty, *metrics, *_size(row["trainable"], row["bytes"])))
    mean = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "1 seed"
    parts = (name.partition("_") for name in names)
    headings = [*keys, *(f"{part} {heading(metric)}" for part, _, metric in parts), "trainable", "kB"]
    _print(f"{mean}, protocol {made.protocol}", [], headings, rows)
    say("", f"table: {made.folder / 'sweep.csv'}", f"plot:  {made.folder / 'accuracy_by_rank.png'}")
    say(f"a cell: ofa-jax evaluate {made.folder / 'cells' / 'NAME'}")


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print lines that may hold names from outside."""
    print(*map(printable, lines), sep="\n", file=file)


def heading(metric: str) -> str:
    """A metric's name as a column heading."""
    known = {"smape": "sMAPE", "average_precision": "AP", "range_pr_auc": "R-AUC"}
    known |= {"precision": "P", "recall": "R", "f1": "F1"}
    known |= {f"adjusted_{name}": f"adj {known[name]}" for name in ("precision", "recall", "f1")}
    return known.get(metric, metric.upper() if len(metric) <= 4 else metric.replace("_", " "))


def _print(title: str, left: Sequence[str], right: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose first columns are aligned left and the others right."""
    columns = [Column(name, min_width=14 if name == "method" else None) for name in left]
    columns += [Column(name, justify="right") for name in right]
    table = Table(*columns, title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*map(printable, row))
    Console(markup=False).print(table)


def _number(value: float, digits: int = 4, std: float = math.nan) -> str:
    if math.isnan(value):
        return "—"
    return f"{value:.{digits}f}" + ("" if math.isnan(std) else f" ± {std:.{digits}f}")


def _size(trainable: int, size: int) -> tuple[str, str]:
    return (f"{trainable:,}", f"{size / 1000:,.1f}") if trainable else ("—", "—")

"""What commands print: tables and summaries."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from ofa_jax.cli.options import say
from ofa_jax.errors import printable
from ofa_jax.plots.style import MISSING, aligned, spelled

if TYPE_CHECKING:
    from ofa_jax.baselines.compare import Comparison
    from ofa_jax.studies.gradients.folder import Written
    from ofa_jax.studies.sweep.folder import Sweep
    from ofa_jax.train.fit import FitResult


def training_summary(result: FitResult, protocol: str) -> str:
    """Why training ended, and the best epoch or the better forecaster."""
    from ofa_jax.train.fit import SOLVED

    best = "  ".join(f"{spelled(name)} {value:.4f}" for name, value in result.progress.best_metrics.items())
    epoch = result.progress.best_epoch
    kept = f"best epoch {epoch}"
    if result.reason == SOLVED:
        kept = "adapted" if epoch else "zero-shot is better and is kept"
    return f"{result.reason}; {kept}, validation {best} (protocol {protocol})"


def print_comparison(comparison: Comparison) -> None:
    """A row per method, the best first: metrics, trainable parameters and kilobytes."""
    names, ranked = comparison.metric_names, comparison.ranked
    part = f"{comparison.split} part, {comparison.windows:,} windows, {comparison.conditions}"
    columns = [
        _marked([row.metrics.get(name) for row in ranked], comparison.best.get(name)) for name in names
    ]
    sizes = zip(*(_size(row.trainable, row.bytes) for row in ranked), strict=True)
    rows = zip((row.method for row in ranked), *columns, *sizes, strict=True)
    _print(f"{comparison.task}, {part}", ["method"], [*map(heading, names), "trainable", "kB"], rows)
    say("* best", *([comparison.verdict] if comparison.verdict else []))


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
    """A row per configuration, averaged over seeds, the best on validation first, then the baselines."""
    from ofa_jax.studies.sweep.folder import summary

    cells, seeds, objective = summary(made.cells), made.seeds, f"validation_{made.objective}"
    if objective in cells:  # not where all diverged
        cells = cells.sort_values(objective, kind="stable")
    varied = [name for name in ("alpha", "scaling", "init", "learning_rate") if cells[name].nunique() > 1]
    diverged = bool((cells["seeds"] < seeds).any())
    keys = ["rank", *varied, *["seeds"] * diverged]
    names = [name for name in cells.columns if name == objective or re.fullmatch("test_.*(?<!_std)", name)]
    found = cells.to_dict("records") + ([] if made.baselines is None else made.baselines.to_dict("records"))
    columns = [_with_spread([(row.get(name), row.get(f"{name}_std")) for row in found]) for name in names]
    metrics = zip(*columns, strict=True) if columns else [()] * len(found)  # all diverged: no metric
    empty = [""] * (len(keys) - 1)
    heads = (
        (row["method"], *empty) if "method" in row else [str(row[name]) for name in keys] for row in found
    )
    sizes = (_size(row["trainable"], row["bytes"]) for row in found)
    rows = [(*head, *own, *size) for head, own, size in zip(heads, metrics, sizes, strict=True)]
    mean = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "1 seed"
    parts = (name.partition("_") for name in names)
    headings = [*keys, *(f"{part} {heading(metric)}" for part, _, metric in parts), "trainable", "kB"]
    _print(f"{mean}, protocol {made.protocol}", [], headings, rows)
    say("", f"table: {made.folder / 'sweep.csv'}", f"plot:  {made.folder / 'accuracy_by_rank.png'}")
    say(f"a cell: ofa-jax evaluate {made.folder / 'cells' / 'NAME'}")


def heading(metric: str) -> str:
    """A metric's name as a column heading."""
    known = {"smape": "sMAPE", "average_precision": "AP", "range_pr_auc": "R-AUC"}
    known |= {"precision": "P", "recall": "R", "f1": "F1"}
    known |= {f"adjusted_{name}": f"adj {known[name]}" for name in ("precision", "recall", "f1")}
    return known.get(metric, metric.upper() if len(metric) <= 4 else metric.replace("_", " "))


def _print(title: str, left: Sequence[str], right: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose first columns are aligned left and the others right.

    No cell is wrapped or cut: in a narrow terminal the columns at the right follow in tables below.
    """
    cells = [[*left, *right], *([printable(cell) for cell in row] for row in rows)]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(cell_len, column)) + 1 for column in columns]
    console = Console(markup=False, highlight=False)
    room = console.width if console.is_terminal else sum(widths)
    say(title)
    for block in _blocks(widths, max(len(left), 1), room):
        console.width = sum(widths[index] for index in block)
        table = Table(box=None, padding=(0, 1, 0, 0))
        for index in block:
            table.add_column(
                columns[index][0], justify="left" if index < len(left) else "right", no_wrap=True
            )
        for row in zip(*(columns[index][1:] for index in block), strict=True):
            table.add_row(*row)
        console.print(table)


def _blocks(widths: Sequence[int], keys: int, room: int) -> list[list[int]]:
    """Columns that fit next to the first ``keys``, which every block repeats."""
    blocks = [list(range(keys))]
    for column in range(keys, len(widths)):
        if len(blocks[-1]) > keys and sum(widths[i] for i in [*blocks[-1], column]) > room:
            blocks.append(list(range(keys)))
        blocks[-1].append(column)
    return blocks


def _marked(values: Sequence[float | None], best: float | None) -> list[str]:
    """A column of numbers, a star after the best."""
    stars = ("*" if value is not None and value == best else " " for value in values)
    return [number + star for number, star in zip(aligned(values), stars, strict=True)]


def _with_spread(pairs: Sequence[tuple[float | None, float | None]]) -> list[str]:
    """A column of means with their standard deviations, where there are any."""
    means, spreads = zip(*pairs, strict=True)
    shown = aligned([*means, *spreads])
    both = zip(shown[: len(pairs)], shown[len(pairs) :], strict=True)
    return [mean if spread == MISSING else f"{mean} ± {spread}" for mean, spread in both]


def _number(value: float, digits: int) -> str:
    return MISSING if math.isnan(value) else f"{value:.{digits}f}"


def _size(trainable: int, size: int) -> tuple[str, str]:
    return (f"{trainable:,}", f"{size / 1000:,.1f}") if trainable else (MISSING, MISSING)

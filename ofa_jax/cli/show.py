"""Tables that commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ofa_jax.baselines.compare import Comparison
    from ofa_jax.studies.gradients.folder import Written
    from ofa_jax.studies.sweep.folder import Sweep


def print_comparison(comparison: Comparison) -> None:
    """A row per method: metrics, trainable parameters and kilobytes."""
    names = comparison.metric_names
    part = f"{comparison.split} part, {comparison.windows:,} windows, {comparison.conditions}"
    digits = 4 if len(names) <= 4 else 3
    table = _table(f"{comparison.task}, {part}")
    table.add_column("method", min_width=14)
    for name in (*map(heading, names), "trainable", "kB"):
        table.add_column(name, justify="right")
    for row in comparison.rows:
        shown = (f"{row.metrics[name]:.{digits}f}" if name in row.metrics else "—" for name in names)
        table.add_row(row.method, *shown, *_size(row.trainable, row.bytes))
    Console().print(table)


def print_slopes(made: Written) -> None:
    """The slope of the first-order change against rank, with theory."""
    rows = made.slopes[made.slopes["quantity"] == "first_order_change"]
    if len(rows):
        table = _table(f"slope of the first-order loss change against rank, {made.study.windows} windows")
        names = ("module", "scaling", "init", "optimizer", "steps")
        for name in names:
            table.add_column(name, justify="right" if name == "steps" else "left")
        for name in ("slope", "95 % interval", "theory"):
            table.add_column(name, justify="right")
        for row in rows.to_dict("records"):
            slope, low, high, theory = (
                "—" if row[name] != row[name] else f"{row[name]:.2f}"
                for name in ("slope", "low", "high", "predicted")
            )
            table.add_row(*(str(row[name]) for name in names), slope, f"{low} … {high}", theory)
        Console().print(table)
    print(
        f"slopes: {made.folder / 'slopes.csv'}\nvalues: {made.folder / 'study.csv'}\nfigures: {made.folder}"
    )


def print_sweep(made: Sweep) -> None:
    """A row per configuration, averaged over seeds, and the baselines."""
    from ofa_jax.studies.sweep.folder import summary

    cells, baselines, seeds = summary(made.cells), made.baselines, made.seeds
    varied = [name for name in ("alpha", "scaling", "init", "learning_rate") if cells[name].nunique() > 1]
    keys = [
        "rank",
        *varied,
        *(["seeds"] if cells["seeds"].min() < seeds else []),
    ]  # fewer where some diverged
    objective = f"validation_{made.content.objective}"
    shown = [
        name
        for name in cells.columns
        if (name == objective or name.startswith("test_")) and not name.endswith("_std")
    ]
    mean = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "1 seed"
    season = f", m = {made.content.season}" if made.content.season else ""
    table = _table(f"{mean}, protocol {made.content.protocol}{season}")
    for name in (*keys, *map(_part_heading, shown), "trainable", "kB"):
        table.add_column(name, justify="right")
    for row in cells.to_dict("records"):
        metrics = (_number(row, name, row[f"{name}_std"]) for name in shown)
        table.add_row(*(str(row[name]) for name in keys), *metrics, *_size(row["trainable"], row["bytes"]))
    for row in [] if baselines is None else baselines.to_dict("records"):
        metrics = (_number(row, name) for name in shown)
        empty = [""] * (len(keys) - 1)
        table.add_row(row["method"], *empty, *metrics, *_size(row["trainable"], row["bytes"]))
    Console().print(table)
    print(f"\ntable: {made.folder / 'sweep.csv'}\nplot:  {made.folder / 'accuracy_by_rank.png'}")
    print(f"a cell: ofa-jax evaluate {made.folder / 'cells' / 'NAME'}")


def heading(metric: str) -> str:
    """A metric's name as a column heading."""
    known = {"smape": "sMAPE", "average_precision": "AP", "range_pr_auc": "R-AUC"}
    known |= {"precision": "P", "recall": "R", "f1": "F1"}
    known |= {f"adjusted_{name}": f"adj {known[name]}" for name in ("precision", "recall", "f1")}
    return known.get(metric, metric.upper() if len(metric) <= 4 else metric.replace("_", " "))


def _part_heading(column: str) -> str:
    part, _, metric = column.partition("_")
    return f"{part} {heading(metric)}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 1, 0, 0))


def _number(row: Mapping[Any, Any], name: str, std: float = float("nan")) -> str:
    value = row.get(name, float("nan"))
    return "—" if value != value else f"{value:.4f}" + ("" if std != std else f" ± {std:.4f}")


def _size(trainable: int, size: int) -> tuple[str, str]:
    return (f"{trainable:,}", f"{size / 1000:,.1f}") if trainable else ("—", "—")

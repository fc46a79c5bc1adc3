"""Options that several commands share, and the command whose help lists all settings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from ofa_jax.train.progress import ConsoleReporter

Config = Annotated[
    Path, typer.Argument(help="YAML settings file, or the name of an installed one.", metavar="CONFIG")
]
Run = Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a setting (repeatable).")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to standard output and nothing else.")
]
Trunk = Annotated[
    str | None, typer.Option("--trunk", help="Current path of the trunk's weights, if they moved.")
]
DataPath = Annotated[str | None, typer.Option("--data", help="Current path of the data, if they moved.")]
TargetPath = Annotated[
    str | None, typer.Option("--target", help="Current path of the zero-shot target data set, if it moved.")
]
Baselines = Annotated[
    bool,
    typer.Option("--baselines", help="Also train the task's baselines, once, and keep them in the folder."),
]
OldBaselines = Annotated[bool, typer.Option("--controls", hidden=True)]

FLAGS = {
    "overrides": "--set",
    "out": "--out",
    "trunk": "--trunk",
    "source": "--data",
    "target": "--target",
    "baseline": "--baseline",
    "sgd_learning_rate": "--sgd-learning-rate",
    "adam_learning_rate": "--adam-learning-rate",
    "learning_rates": "--learning-rates",
    "at_once": "--at-once",
    **{
        name: f"--{name}"
        for name in ("ranks", "alphas", "scalings", "inits", "optimizers", "steps", "seeds", "windows")
    },
}
"""Command-line options by the argument that library errors name."""


class CommandWithSettings(TyperCommand):
    """A command whose help ends with the table of all settings."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from rich.console import Console
        from rich.table import Table

        from ofa_jax.config.load import settings

        table = Table(title="Settings for --set", title_justify="left", box=None, pad_edge=False)
        table.header_style = "bold"
        for heading in ("path", "default", "meaning"):
            table.add_column(heading, overflow="fold")
        for setting in settings():
            choices = f" ({setting.type})" if " | " in setting.type else ""
            table.add_row(setting.path, setting.default, setting.description + choices)
        Console().print(table)


def print_json(content: Any) -> None:
    """Print strict JSON, where a number that is not finite is null."""

    def strict(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: strict(value) for name, value in node.items()}
        if isinstance(node, list | tuple):
            return [strict(value) for value in node]
        return None if isinstance(node, float) and not math.isfinite(node) else node

    print(json.dumps(strict(content), allow_nan=False))


def console_reporter() -> ConsoleReporter:
    """The progress reporter of a terminal."""
    from ofa_jax.train.progress import ConsoleReporter

    return ConsoleReporter()

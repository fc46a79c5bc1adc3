"""What several commands share: options, the table of settings in their help, and errors that name options."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option
from typer.core import TyperCommand

from ofa_jax.errors import Interrupted, OfaError

Config = Annotated[
    Path, Argument(metavar="CONFIG", help="YAML settings file, or the name of an installed one.")
]
Run = Annotated[Path, Argument(metavar="RUN", help="Run folder.")]
Sets = Annotated[
    list[str] | None, Option("--set", metavar="PATH=VALUE", help="Change a setting (repeatable).")
]
Json = Annotated[bool, Option("--json", help="Print one JSON object to standard output and nothing else.")]
Trunk = Annotated[str | None, Option(help="Current path of the trunk's weights, if they moved.")]
Source = Annotated[str | None, Option("--data", help="Current path of the data, if they moved.")]
Target = Annotated[str | None, Option(help="Current path of the zero-shot target data set, if it moved.")]
Baselines = Annotated[
    bool, Option("--baselines", help="Also train the task's baselines, once, and keep them in the folder.")
]

FORMER_NAMES = {
    "controls": "baselines",
    "control": "baseline",
    "sgd-rate": "sgd-learning-rate",
    "adam-rate": "adam-learning-rate",
}
"""Options that still work under their former names, which no help shows."""

FLAGS = {"overrides": "--set", "source": "--data"} | {
    name: f"--{name.replace('_', '-')}"
    for name in (
        *("out", "output", "plot", "trunk", "target", "baseline", "ranks", "alphas", "scalings", "inits"),
        *("learning_rates", "optimizers", "steps", "seeds", "windows", "at_once"),
        *("sgd_learning_rate", "adam_learning_rate"),
    )
}
"""Command-line options by the argument that library errors name."""


def message(error: OfaError) -> str:
    """An error's text, with the option in place of the argument that it names."""
    where = FLAGS.get(error.where or "", error.where)
    return str(OfaError(error.what, where=where, fix=error.fix and _options(error.fix)))


def _options(fix: str) -> str:
    """Settings of the data that advice names, as options of the command that runs, where it has them."""
    if sys.argv[1:3] == ["data", "check"]:
        return re.sub(r"set `(missing|timestamps): (\w+)`", r"use `--\1 \2`", fix)
    if sys.argv[1:2] and sys.argv[1] in WITH_SETTINGS:
        fix = re.sub(r"set `(missing|timestamps): (\w+)`", r"use `--set data.\1=\2`", fix)
        fix = re.sub(r"with `(missing|timestamps): (\w+)`", r"with `--set data.\1=\2`", fix)
        return re.sub(r"`(columns|timestamp_column)`", r"`--set data.\1=…`", fix)
    return fix


WITH_SETTINGS = ("train", "params", "sweep", "gradients")
"""Commands that have the option ``--set``."""


def interrupted(stop: Interrupted) -> str:
    """Where training stopped, and how to resume it."""
    saved = "checkpoint saved. Re-run the same command to resume." if stop.saved else "nothing was saved."
    return f"Interrupted at step {stop.step}; {saved}"


class Command(TyperCommand):
    """A command whose help ends with the table of all settings, if it takes ``--set``."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        if not any("--set" in parameter.opts for parameter in self.params):
            return
        from rich.console import Console
        from rich.table import Column, Table

        from ofa_jax.config.load import settings

        columns = (Column(name, overflow="fold") for name in ("path", "default", "meaning"))
        table = Table(*columns, title="Settings for --set", title_justify="left", box=None, pad_edge=False)
        for setting in settings():
            choices = f" ({setting.type})" if " | " in setting.type else ""
            table.add_row(setting.path, setting.default, setting.description + choices)
        Console(markup=False).print(table)


def print_json(content: Any) -> None:
    """Print strict JSON, where a number that is not finite is null."""

    def strict(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: strict(value) for name, value in node.items()}
        if isinstance(node, list | tuple):
            return [strict(value) for value in node]
        return None if isinstance(node, float) and not math.isfinite(node) else node

    print(json.dumps(strict(content), allow_nan=False))

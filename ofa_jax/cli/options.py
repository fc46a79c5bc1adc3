"""What several commands share: options, the table of settings in their help, and errors that name options."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

from typer import Argument, Option
from typer.core import TyperCommand

from ofa_jax.errors import ConfigError, Interrupted, OfaError, printable

Config = Annotated[
    Path, Argument(metavar="CONFIG", help="YAML settings file, or the name of an installed one.")
]
Run = Annotated[Path, Argument(metavar="RUN", help="Run folder.")]
Sets = Annotated[
    list[str] | None, Option("--set", metavar="PATH=VALUE", help="Change a setting (repeatable).")
]
Reading = Annotated[
    list[str] | None,
    Option("--set", metavar="PATH=VALUE", help="Change how the data are read (data.missing=linear)."),
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
        *("out", "output", "plot", "trunk", "target", "baseline", "level"),
        *("ranks", "alphas", "scalings", "inits"),
        *("learning_rates", "optimizers", "steps", "seeds", "windows", "at_once"),
        *("sgd_learning_rate", "adam_learning_rate"),
    )
}
"""Command-line options by the argument that library errors name."""


def message(error: OfaError) -> str:
    """An error's text, with the option in place of the argument that it names."""
    where, fix = FLAGS.get(error.where or "", error.where), error.fix or ""
    command = (*sys.argv[1:2], "")[0]
    if command in TRUNK_GIVEN:
        fix = _RANDOM_TRUNK.sub("", fix)
    if command in OF_A_RUN and (_SETTING.search(fix) or _OF_TRAINING.search(fix)):
        fix = f"The data are not those of training: restore them, or train again. There: {fix}"
    return str(OfaError(_options(error.what), where=where, fix=_options(fix) or None))


_READING = r"columns|exclude|id_columns|missing|missing_words|decimal|comment|sheet|timestamp\w*|frequency"
_OF_TRAINING = re.compile(r"\b(task|train|data|network)\.[a-z_]+")
_RANDOM_TRUNK = re.compile(r"; or [^;]*`trunk\.source: random`")
_SETTING = re.compile(rf"`({_READING}): ([^`]+)`")


def _options(text: str) -> str:
    """A text of the library with settings of the data as options of the command that runs."""
    if not set(sys.argv[1:2]) & {*WITH_SETTINGS, *OF_A_RUN}:
        return text
    text = _SETTING.sub(lambda found: f"`--set {shlex.quote(f'data.{found[1]}={found[2]}')}`", text)
    text = re.sub(rf"\b(in|another|set|by|as|with) `({_READING})`", r"\1 `--set data.\2=…`", text)
    return re.sub(r"\bset (`--set)", r"use \1", re.sub(r"\bSet (`--set)", r"Use \1", text))


WITH_SETTINGS = ("train", "fit", "params", "sweep", "gradients", "predict", "forecast", "data")
"""Commands that have the option ``--set``."""
OF_A_RUN = ("evaluate", "report")
"""Commands that read the data of a run, with its settings."""
TRUNK_GIVEN = (*OF_A_RUN, "predict", "forecast", "convert")
"""Commands whose trunk cannot become a random one."""


def reading_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """``data.PATH=VALUE`` texts as arguments of the functions that read data.

    Raises:
        ConfigError: Another setting than those of reading, or a wrong value.
    """
    from ofa_jax.config.load import build_experiment
    from ofa_jax.config.tasks import READING

    names = [override.partition("=")[0].strip().removeprefix("data.") for override in overrides]
    if other := [name for name in names if name not in READING]:
        what = f"{other[0]} is not a setting of how data are read"
        raise ConfigError(what, where="overrides", fix=f"Set {', '.join(f'data.{name}' for name in READING)}")
    data = build_experiment({"data": {"source": "new"}}, overrides).data
    return {name: getattr(data, name) for name in names}


def numbers(text: str, where: str) -> list[float]:
    """Numbers between commas.

    Raises:
        ConfigError: One is no number.
    """
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(
            f"{text!r} is no list of numbers", where=where, fix="Give some like 80,90"
        ) from None


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
        from ofa_jax.config.tasks import READING

        columns = (Column(name, overflow="fold") for name in ("path", "default", "meaning"))
        table = Table(*columns, title="Settings for --set", title_justify="left", box=None, pad_edge=False)
        reading = {f"data.{name}" for name in READING}
        for setting in settings():
            if self.name in ("predict", "forecast") and setting.path not in reading:
                continue
            choices = f" ({setting.type})" if " | " in setting.type else ""
            table.add_row(setting.path, setting.default, setting.description + choices)
        Console(markup=False).print(table)


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print lines that may hold names from outside."""
    print(*map(printable, lines), sep="\n", file=file)


def print_json(content: Any) -> None:
    """Print strict JSON, where a number that is not finite is null."""

    def strict(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: strict(value) for name, value in node.items()}
        if isinstance(node, list | tuple):
            return [strict(value) for value in node]
        return None if isinstance(node, float) and not math.isfinite(node) else node

    print(json.dumps(strict(content), allow_nan=False))

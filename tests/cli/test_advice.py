"""Advice in messages can be followed: its commands, options and settings exist, wherever it is written."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

import ofa_jax
from ofa_jax.cli.main import app
from ofa_jax.cli.options import FLAGS, OF_A_RUN, WITH_SETTINGS, message
from ofa_jax.config import schema
from ofa_jax.config.tasks import task_settings
from ofa_jax.errors import OfaError

PACKAGE = Path(ofa_jax.__file__).parent
SECTIONS = ("task", "train", "data", "network", "trunk", "adapters")
MODULES = {"train.fit", "train.step", "adapters.peft", "adapters.partition", "adapters.rslora", "data.frames"}
NO_SETTINGS = MODULES | {"trunk.json", "task.fields", "task.description"}  # a file, and rich's own names
ALWAYS = {"--help", "--version"}


def options_by_command(command=None, names: tuple[str, ...] = ()) -> dict[str, set[str]]:
    command = command or typer.main.get_command(app)
    if hasattr(command, "commands"):
        found = [options_by_command(own, (*names, name)) for name, own in command.commands.items()]
        return {name: options for part in found for name, options in part.items()}
    return {" ".join(names): {option for own in command.params for option in own.opts} | ALWAYS}


def texts() -> Iterator[tuple[str, str]]:
    """File and line, and text, of every string that is no docstring; what is filled in is ``X``."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree, seen = ast.parse(path.read_text("utf-8")), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr):
                seen.add(id(node.value))
            if isinstance(node, ast.JoinedStr):
                seen |= {id(part) for part in node.values}
                parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
                yield f"{path.name}:{node.lineno}", "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in seen:
                yield f"{path.name}:{node.lineno}", node.value


def settings_of(section: str) -> set[str]:
    if section == "task":
        return {name for kind in task_settings().values() for name in kind.model_fields}
    model = schema.Experiment.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return set(model.model_fields)


def test_commands_options_and_settings_that_texts_name_exist():
    options, wrong, seen = options_by_command(), [], 0
    known = {section: settings_of(section) for section in SECTIONS}
    every = set().union(*options.values())
    for place, text in texts():
        for command, rest in re.findall(r"`ofa-jax ((?:data )?[a-z]+)([^`]*)`", text):
            named = re.findall(r"(?<!\S)--[a-z][a-z-]+", rest)
            seen += 1
            wrong += [place] if command not in options or not {*named} <= options[command] else []
        wrong += [place for name in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text) if name not in every]
        for section, name in re.findall(rf"(?<![\w./])({'|'.join(SECTIONS)})\.([a-z_]+)\b(?![./])", text):
            if f"{section}.{name}" not in NO_SETTINGS:
                seen += 1
                wrong += [f"{place} {section}.{name}"] if name not in known[section] else []
    assert not wrong
    assert seen > 100


def test_errors_name_options_that_some_command_has():
    every = set().union(*options_by_command().values())
    assert set(FLAGS.values()) <= every


def test_the_lists_of_commands_that_take_settings_are_those_that_do():
    taking = {name.split()[0] for name, options in options_by_command().items() if "--set" in options}
    assert taking == set(WITH_SETTINGS)
    assert not taking & set(OF_A_RUN)


@pytest.mark.parametrize("command", ["evaluate", "report"])
@pytest.mark.parametrize("fix", ["Set task.input_length to 2", "Raise data.percent, or give more rows"])
def test_commands_of_a_run_say_that_its_settings_cannot_be_changed(monkeypatch, command, fix):
    monkeypatch.setattr("sys.argv", ["ofa-jax", command, "run"])
    assert f"restore them, or train again. There: {fix}" in message(OfaError("too short", fix=fix))
    monkeypatch.setattr("sys.argv", ["ofa-jax", "train", "x"])
    assert message(OfaError("too short", fix=fix)) == f"too short. {fix}."


@pytest.mark.parametrize("command", ["evaluate", "report", "predict", "forecast", "convert", "train"])
def test_a_random_trunk_is_proposed_only_where_it_can_be_asked_for(monkeypatch, command):
    advice = "or ask for random weights with `trunk.source: random`"
    assert any(advice in text for _, text in texts())
    monkeypatch.setattr("sys.argv", ["ofa-jax", command])
    said = message(OfaError("not found", fix=f"Check the name; or copy FOLDER here; {advice}"))
    assert (advice in said) == (command == "train")
    assert "or copy FOLDER here" in said

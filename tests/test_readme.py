"""The README's two doors open: its Python runs as written, and its table of commands is the command line's own."""

import re
from pathlib import Path

import jax
import pytest

import ofa_jax
from ofa_jax.cli import app
from ofa_jax.config import RECIPES, load_experiment
from ofa_jax.train.assemble import footprint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_functional_example_runs_as_written(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    hub_id = '"openai-community/gpt2", n_layer=6'
    assert hub_id in code
    names: dict = {}
    exec(code.replace(hub_id, f"{str(ROOT / 'tests/golden/forecast_small/gpt2')!r}, n_layer=2"), names)
    assert names["forecast"].shape == (8, 96, 1)
    assert jax.tree.structure(names["gradients"]) == jax.tree.structure(names["adapters"])
    assert set(names["gradients"]) == {"gpt2/wpe", "out_layer"}


def test_the_table_of_commands_is_complete():
    listed = set(re.findall(r"^\| `ofa-jax (\w+)", README, re.MULTILINE))
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert listed == commands | {group.name for group in app.registered_groups}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_table_of_recipes_counts_right(recipe):
    (stated,) = re.findall(rf"^\| `{recipe}` \|.*\| ([\d,]+) \|$", README, re.MULTILINE)
    counted = footprint(load_experiment("long/etth1", [f"recipe={recipe}"])).trainable
    assert int(stated.replace(",", "")) == counted


def test_every_public_name_can_be_had():
    for name in ofa_jax.__all__:
        assert getattr(ofa_jax, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ofa_jax.nothing_of_the_kind

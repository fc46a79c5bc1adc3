"""README and task pages: Python runs as written, commands and counts are right."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
import typer

import ofa_jax
from ofa_jax.build import footprint
from ofa_jax.cli.main import app
from ofa_jax.config.load import installed_configs, load_experiment
from ofa_jax.config.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TASKS = ("forecasting", "few_shot", "zero_shot", "short_term", "anomaly", "classification", "imputation")
PAGES = {"README.md": README} | {
    f"docs/tasks/{name}.md": (ROOT / f"docs/tasks/{name}.md").read_text() for name in TASKS
}


@pytest.mark.slow  # compiles a network of the real length
def test_the_functional_example_runs_as_written(monkeypatch):
    _, code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    hub_id = '"openai-community/gpt2", n_layer=6'
    assert hub_id in code
    names: dict = {}
    exec(code.replace(hub_id, f"{str(ROOT / 'tests/golden/forecast_small/gpt2')!r}, n_layer=2"), names)
    assert names["forecast"].shape == (8, 96, 1)
    assert jax.tree.structure(names["gradients"]) == jax.tree.structure(names["adapters"])
    assert set(names["gradients"]) == {"gpt2/wpe", "out_layer"}


@pytest.mark.slow  # trains
def test_the_python_example_runs_as_written(monkeypatch, tmp_path, capsys):
    code, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(700, 2)), columns=["a", "b"])
    table.insert(0, "date", pd.date_range("2024-01-01", periods=len(table), freq="h"))
    table.to_csv("demo/load.csv", index=False)
    with pd.option_context("display.precision", 6):  # the example sets another
        exec(code, {})
    printed = capsys.readouterr().out
    assert printed.count("2024-01-30 04:00:00") == 2  # the first step, zero-shot and fitted
    assert printed.count("OneForAll-lo-90") == 2
    assert (tmp_path / "load-model" / "estimator.json").is_file()


@pytest.mark.slow  # trains
def test_the_examples_of_dataframes_run_as_written(monkeypatch, tmp_path, capsys):
    forecasts, covariates, others, _, _ = re.findall(  # the last two: tests/integrations
        r"```python\n(.*?)```", (ROOT / "docs/dataframes.md").read_text(), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    draw, days = np.random.default_rng(0), pd.date_range("2024-01-01", periods=900)
    parts = [pd.DataFrame({"unique_id": name, "ds": days, "y": draw.normal(10, 2, 900)}) for name in "xyz"]
    df = pd.concat(parts)
    df.to_csv("sales.csv", index=False)
    exec(forecasts, {})
    printed = capsys.readouterr().out.split("unique_id")[1:]
    assert len(printed) == 2
    assert printed[0] != printed[1]
    exec(covariates, {})
    assert "OneForAll-hi-80" in capsys.readouterr().out
    df.loc[df.ds == days[50], "y"] = np.nan
    cases = draw.normal(size=(12, 2, 40))
    names = {
        "df": df,
        "history": df[df.ds < days[700]],
        "history_and_new": df,
        "X": cases,
        "X_new": cases[:3],
    }
    names["y"] = np.arange(12) % 2
    exec(others, names)
    assert list(names["found"]) == ["unique_id", "ds", "score", "anomaly", "expected"]
    assert not names["filled"].y.isna().any()
    assert len(names["classes"]) == 3


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


@pytest.mark.slow  # trains
@pytest.mark.parametrize("task", TASKS)
def test_the_example_of_a_task_s_page_runs_as_written(capsys, task):
    (code,) = re.findall(r"```python\n(.*?)```", PAGES[f"docs/tasks/{task}.md"], re.DOTALL)
    exec(code, {})
    printed = capsys.readouterr().out
    assert printed
    assert "NaN" not in printed


def commands(text: str) -> list[list[str]]:
    """The command lines in a page's blocks of code, as lists of words; remarks behind ``#`` are no words."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(block for language, block in blocks if not language).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("ofa-jax ")]


def test_every_task_has_a_page_of_two_screens_and_a_line_in_the_readme():
    assert {path.stem for path in (ROOT / "docs/tasks").iterdir()} == set(TASKS)
    rows = re.findall(r"^\| .* \[page\]\(docs/tasks/(\w+)\.md\) \|$", README, re.MULTILINE)
    assert sorted(rows) == sorted(TASKS)
    for name in TASKS:
        page = PAGES[f"docs/tasks/{name}.md"]
        assert len(page.splitlines()) <= 68
        headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
        assert headings == [
            *("What goes in", "Commands", "On your own data"),
            *("What comes out", "What exactly is done", "Baselines"),
        ]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_understood(page):
    """Options are those of the command line, settings files exist and take what ``--set`` gives them."""
    found = commands(PAGES[page])
    names = {words[1] for words in found}
    assert names & {"train", "fit"}
    assert "evaluate" in names
    group = typer.main.get_command(app)
    for _, name, *rest in found:
        command = group.commands[name]
        context = command.make_context(name, rest)
        if name == "train":
            load_experiment(context.params["config"], context.params["overrides"] or ())


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page):
    text, folder = PAGES[page], (ROOT / page).parent
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
        assert (folder / target).exists(), target
    named = re.findall(r"`?configs/([\w/]+?)(/|\.yaml)(?=[`\s,;.)])", text)
    assert named
    known = installed_configs()
    for name, ending in named:
        assert name in known if ending == ".yaml" else any(other.startswith(f"{name}/") for other in known), (
            name
        )


def test_every_folder_of_settings_files_is_in_the_readme():
    folders = {name.partition("/")[0] for name in installed_configs() if "/" in name}
    assert folders == set(re.findall(r"`configs/(\w+)/`", README))

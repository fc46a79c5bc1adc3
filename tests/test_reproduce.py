"""tools/reproduce.py: what is missing is run, what is there is not, and the page says what the cells hold."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from ofa_jax.baselines.compare import compare
from ofa_jax.data.catalog.load import CATALOG
from ofa_jax.errors import TrainError, WeightsError
from ofa_jax.runs.train import open_run, train_run
from ofa_jax.train.progress import ConsoleReporter, SilentReporter

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tools"))
reproduce: Any = importlib.import_module("reproduce")
reproduced: Any = importlib.import_module("reproduced")

PUBLISHED = {
    "metrics": ["mse", "mae"],
    "over": [8, 4],
    "rows": [{"method": "theirs", "source": "a paper", "figures": {"tiny.csv": ".25/.37"}}],
}


class Place:
    """A separate repository: configs/long/tiny.yaml with horizons 8 and 4, and folders for output."""

    def __init__(self, root: Path, tiny: Any) -> None:
        self.root, self.cells, self.docs, self.out = root, root / "cells", root / "docs", root / "out"
        folder = root / "configs" / "long"
        folder.mkdir(parents=True)
        self.config = tiny.config(folder)

    def run(self, *arguments: str, table: str = "long") -> Any:
        places = ["--out", str(self.out), "--cells", str(self.cells), "--docs", str(self.docs)]
        return CliRunner().invoke(reproduce.app, [table, *arguments, *places], catch_exceptions=False)

    def path(self, name: str) -> Path:
        """The newest cell of that name; the rest of a file's name says what decided its numbers."""
        return max(self.cells.glob(f"{name}-*.json"), key=lambda path: path.stat().st_mtime_ns)

    def cell(self, name: str) -> dict[str, Any]:
        return json.loads(self.path(name).read_text())

    @property
    def page(self) -> str:
        return (self.docs / "long.md").read_text()

    def change(self, **settings: Any) -> None:
        content = yaml.safe_load(self.config.read_text())
        for section, values in settings.items():
            content[section] = {**content[section], **values}
        self.config.write_text(yaml.safe_dump(content))
        reproduce._load.cache_clear()


@pytest.fixture
def place(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "PLAN", {"long": ("long", {"task.horizon": (8, 4)})})
    monkeypatch.setattr(reproduced, "published", lambda table: PUBLISHED)
    reproduce._load.cache_clear()
    return Place(tmp_path, tiny)


@pytest.fixture
def measured(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """In place of training: figures that are known; the list says of which cells."""
    calls: list[tuple[str, int]] = []

    def measure(bench: Any, case: Any, seed: int) -> dict[str, Any]:
        calls.append((case.name, seed))
        rows = [
            {"method": "model", "mse": 1.0 + seed, "trainable": 3},
            {"method": "baseline", "mse": 9.0, "trainable": 0},
        ]
        cell = made(seed, rows[: 1 + case.baselines], controls=case.baselines)
        del cell["config"]
        return cell

    monkeypatch.setattr(reproduce.Workspace, "measure", measure)
    return calls


def made(seed: int, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A cell as it is kept, with these rows."""
    return {
        "seed": seed,
        "methods": rows,
        "controls": True,
        "windows": 1000,
        "protocol": "strict",
        "compute_dtype": "float32",
        "config": {"task": {"input_length": 32}, "trunk": {"source": "random"}},
        "versions": {"jax": "1.2"},
        "machine": {"device": "cpu", "platform": "cpu", "cpu": "some cpu", "cores": 2},
        "seconds": {"train": 1.0, "score": 1.0, "resumed": False},
        **more,
    }


def row(method: str, trainable: int = 0, **figures: float) -> dict[str, Any]:
    return {"method": method, **figures, "trainable": trainable, "bytes": 4 * trainable}


def entry(cells: list[Any], data: str = "tiny.csv", absent: str | None = None, **vary: Any) -> Any:
    return reproduced.Entry(
        data, {name.replace("__", "."): value for name, value in vary.items()}, cells, absent
    )


def table_row(page: str, method: str, nth: int = 0) -> list[str]:
    found = [line for line in page.splitlines() if line.startswith(f"| {method} ")]
    return [part.strip() for part in found[nth].strip("| ").split("|")]


# --- running --------------------------------------------------------------------------------------


@pytest.mark.slow  # trains two cells
def test_a_real_cell_stopped_and_continued_holds_what_an_undisturbed_run_gives(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(ConsoleReporter):
        def end_epoch(self, record: Any) -> None:
            super().end_epoch(record)
            os.kill(os.getpid(), signal.SIGTERM)

    baselines = []

    def quick_compare(*given: Any, **named: Any) -> Any:  # baselines are tested elsewhere
        baselines.append(named.pop("baselines"))
        return compare(*given, baselines=None, **named)

    monkeypatch.setattr(reproduce, "PLAN", {"long": ("long", {})})
    monkeypatch.setattr(reproduce, "compare", quick_compare)
    monkeypatch.setattr(
        reproduce.jax, "clear_caches", lambda: None
    )  # here the next cell has the same programs
    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "ConsoleReporter", Stopping)
        stopped = place.run("--seeds", "1")
    assert stopped.exit_code == 128 + signal.SIGTERM
    assert "checkpoint saved. Re-run the same command to resume." in stopped.output
    assert not place.cells.exists()

    resumed = place.run("--seeds", "1")
    assert resumed.exit_code == 0
    assert "resumed at step 7" in resumed.output  # an epoch's steps
    assert [path.name.rpartition("-")[0] for path in place.cells.iterdir()] == ["long-tiny-seed0"]
    assert baselines == [next(place.out.glob("tiny-*")) / reproduce.BASELINES]

    train_run(
        reproduce.cases("long", reproduce.Request())[0].experiment(0),
        place.root / "by_hand",
        SilentReporter(),
    )
    expected = compare(
        *open_run(place.root / "by_hand"), split="test", baselines=None, reporter=SilentReporter()
    ).to_dict()
    cell, model = place.cell("long-tiny-seed0"), "One-for-All (reference, random trunk)"
    assert cell["methods"] == expected["methods"]
    assert (cell["windows"], cell["protocol"], cell["task"]) == (expected["windows"], "strict", "forecast")
    assert (cell["seed"], cell["data"], cell["vary"], cell["quick"]) == (0, "tiny", {}, False)
    assert cell["config"]["train"]["seed"] == 2021
    assert cell["versions"].keys() >= {"python", "jax", "ofa-jax"}
    assert cell["machine"]["cores"] == os.cpu_count()
    assert cell["seconds"]["resumed"]
    assert "One seed of one setting took" not in place.page  # the time of its first part is not known
    assert f"{expected['methods'][0]['mse']:.4f}" in table_row(place.page, model)[1]
    assert str(place.root) not in json.dumps(cell) + place.page  # where things lay is no one's business

    first = place.page
    monkeypatch.setattr(reproduce, "train_run", lambda *given: pytest.fail("this cell is there already"))
    assert place.run("--seeds", "1").exit_code == 0
    assert place.page == first


def test_a_seed_decides_everything_that_is_drawn(place: Place) -> None:
    settings = reproduce.cases("long", reproduce.Request())[0].settings(2)
    drawn = {name: settings[name]["seed"] for name in ("train", "adapters", "network")} | {
        "trunk": settings["trunk"]["random"]["seed"]
    }
    assert drawn == {"train": 2023, "adapters": 2, "network": 2, "trunk": 2}


def test_only_what_is_missing_is_run(place: Place, measured: list[tuple[str, int]]) -> None:
    place.run("--seeds", "1")
    assert measured == [("long-tiny-horizon8", 0), ("long-tiny-horizon4", 0)]
    place.run("--seeds", "2")
    assert measured[2:] == [("long-tiny-horizon8", 1), ("long-tiny-horizon4", 1)]
    place.path("long-tiny-horizon4-seed0").unlink()
    place.run("--seeds", "2")
    assert measured[4:] == [("long-tiny-horizon4", 0)]


def test_cells_of_other_settings_and_rules_are_reported_and_kept(
    place: Place, measured: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.run("--seeds", "1")
    place.change(train={"learning_rate": 0.02})
    before = place.path("long-tiny-horizon8-seed0")
    result = place.run("--seeds", "1")
    assert len(measured) == 4
    assert f"{before.name} was made with other settings" in result.output
    assert place.cell("long-tiny-horizon8-seed0")["config"]["train"]["learning_rate"] == 0.02
    assert json.loads(before.read_text())["config"]["train"]["learning_rate"] == 0.01
    place.change(train={"learning_rate": 0.01})
    place.run("--seeds", "1")
    assert len(measured) == 4
    monkeypatch.setattr(reproduce, "RULES", reproduce.RULES + 1)
    place.run("--seeds", "1")
    assert len(measured) == 6


def test_settings_of_speed_make_no_other_cell(place: Place, measured: list[tuple[str, int]]) -> None:
    place.run("--seeds", "1")
    place.change(train={"chunk": 1, "micro_batch": 4})
    place.run("--seeds", "1")
    assert len(measured) == 2


def test_a_setting_that_came_later_makes_no_cell_old(place: Place, measured: list[tuple[str, int]]) -> None:
    place.run("--seeds", "1")
    path = place.path("long-tiny-horizon8-seed0")
    cell = json.loads(path.read_text())
    del cell["config"]["train"]["fsdp"]  # as a version without this setting would have written it
    path.write_text(json.dumps(cell))
    place.run("--seeds", "1")
    assert len(measured) == 2


def test_a_page_does_not_mix_cells_of_other_settings(place: Place, measured: list[tuple[str, int]]) -> None:
    place.run("--seeds", "2")
    place.change(train={"learning_rate": 0.02})
    kept = place.run("--seeds", "1")
    assert kept.exit_code == 1
    assert (
        "long.md is kept: tiny.csv has 12 measured figures there, the cells of this command 6." in kept.output
    )
    (place.docs / "long.md").unlink()
    case = reproduce.cases("long", reproduce.Request(seeds=2))
    reproduce.write_page(reproduce.Workspace(place.cells, place.out, SilentReporter()), case, place.docs)
    assert "1 of 2 seeds" in place.page


def test_baselines_are_added_to_a_cell_that_lacks_them(place: Place, measured: list[tuple[str, int]]) -> None:
    place.run("--seeds", "1", "--no-baselines")
    assert "baseline" not in place.page.replace("--no-baselines", "").replace("including baselines", "")
    place.run("--seeds", "1")
    assert len(measured) == 4
    assert table_row(place.page, "baseline")[1] == "9.0000"
    place.run("--seeds", "1", "--no-controls")  # the former name; what has them need not be run without
    assert len(measured) == 4


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 1}', '{"format": 99}', '{"format": 1, "config": 7, "methods": []}']
)
def test_a_damaged_cell_is_reported_and_run_again(
    place: Place, measured: list[tuple[str, int]], content: str
) -> None:
    place.run("--seeds", "1")
    place.path("long-tiny-horizon8-seed0").write_text(content)
    result = place.run("--seeds", "1")
    assert result.exit_code == 0
    assert len(measured) == 3
    assert "run again" in result.output


def test_what_fails_is_kept_as_not_run_and_the_rest_is_run(
    place: Place, measured: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = reproduce.Workspace.measure

    def measure(bench: Any, case: Any, seed: int) -> dict[str, Any]:
        if case.name.endswith("horizon8"):
            raise TrainError("the loss became nan", where="training", fix="start again")
        return good(bench, case, seed)

    with monkeypatch.context() as patch:
        patch.setattr(reproduce.Workspace, "measure", measure)
        result = place.run("--seeds", "1")
    assert result.exit_code == 1
    assert "training: the loss became nan. start again." in " ".join(result.output.split())
    assert [path.name.rpartition("-")[0] for path in place.cells.iterdir()] == ["long-tiny-horizon4-seed0"]
    assert measured == [("long-tiny-horizon4", 0)]
    assert "Not run: horizon 8: the loss became nan." in place.page

    assert place.run("--seeds", "1").exit_code == 0  # it is tried again
    assert place.cell("long-tiny-horizon8-seed0")["methods"]
    assert "Not run" not in place.page


def test_a_missing_trunk_is_looked_for_once(
    place: Place, measured: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(bench: Any, case: Any, seed: int) -> dict[str, Any]:
        measured.append((case.name, seed))
        raise WeightsError("not to be fetched from somewhere.example", where="some/gpt2")

    monkeypatch.setattr(reproduce.Workspace, "measure", measure)
    assert place.run("--seeds", "2", "--trunk", "some/gpt2").exit_code == 1
    assert len(measured) == 1
    assert "the trunk some/gpt2 is not available" in place.page
    assert "somewhere.example" not in place.page


def test_a_kill_while_a_cell_is_written_leaves_no_part_of_it(
    place: Place, measured: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.run("--seeds", "1")
    before = {path.name: path.read_bytes() for path in place.cells.iterdir()}
    place.change(train={"learning_rate": 0.02})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        assert place.run("--seeds", "1").exit_code != 0
    assert {path.name: path.read_bytes() for path in place.cells.iterdir()} == before
    place.run("--seeds", "1")
    for name in ("long-tiny-horizon8-seed0", "long-tiny-horizon4-seed0"):
        assert place.cell(name)["config"]["train"]["learning_rate"] == 0.02


def test_missing_data_are_reported_and_a_failure_only_where_named(
    place: Place, measured: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path))
    place.change(data={"source": "etth1"})
    result = place.run("--seeds", "2")
    assert result.exit_code == 0
    assert not measured
    assert (
        result.output.count("the file is missing (`ETT-small/ETTh1.csv`)") == 2
    )  # once per setting, not per seed
    assert "| etth1 | none | the file is missing (`ETT-small/ETTh1.csv`) |" in place.page
    assert "Nothing has been run yet." in place.page
    monkeypatch.setattr(reproduce.Workspace, "measure", lambda bench, case, seed: open_run(tmp_path))
    assert place.run("--seeds", "1", "--data", "tiny").exit_code == 1


def test_a_clone_without_data_keeps_the_measured_pages(
    place: Place, measured: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.delenv("OFA_JAX_DATA", raising=False)
    place.docs.mkdir()
    shipped = (REPOSITORY / "docs" / "results" / "quick.md").read_text()
    (place.docs / "quick.md").write_text(shipped)
    result = place.run("--quick", table="classification")
    assert result.exit_code == 1
    assert "quick.md is kept: japanesevowels has 18 measured figures there" in result.output
    assert (place.docs / "quick.md").read_text() == shipped


def test_a_part_of_a_data_set_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path))
    by_name = {
        case.config.stem: case
        for table in ("short_term", "anomaly")
        for case in reproduce.cases(table, reproduce.Request())
    }
    (tmp_path / "m4").mkdir()
    for name in ("Quarterly-train-partial14891.csv.gz", "Quarterly-test.csv.gz"):
        (tmp_path / "m4" / name).touch()
    said = reproduce.missing_data(by_name["m4_quarterly"].experiment(0))
    partial = "`Quarterly-train-partial14891.csv.gz` is only a part"
    assert said == f"1 of 2 files are missing (`m4/Quarterly-train.csv`); {partial}"
    (tmp_path / "SMD").mkdir()
    for file in CATALOG["smd"].files[:14]:
        (tmp_path / file.path).touch()
    assert reproduce.missing_data(by_name["smd"].experiment(0)).startswith(
        "14 of 28 files are missing (`SMD/machine-2-7.npz`, "
    )
    for file in CATALOG["smd"].files:
        (tmp_path / file.path).touch()
    assert reproduce.missing_data(by_name["smd"].experiment(0)) is None
    monkeypatch.delenv("OFA_JAX_DATA")
    assert reproduce.missing_data(by_name["smd"].experiment(0)) == "OFA_JAX_DATA is not set"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "etth9"], "is not one of tiny"),
        (["--ranks", "2,many"], "not a list of integers"),
        (["--seeds", "0"], "greater than or equal to 1"),
    ],
)
def test_wrong_options_are_refused(place: Place, arguments: list[str], said: str) -> None:
    result = place.run(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())
    assert not place.docs.exists()


def test_the_trunk_and_protocol_that_are_asked_for_reach_the_settings(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "trunks" / "gpt2-six"
    folder.mkdir(parents=True)
    asked = reproduce.Request(trunk=str(folder), protocol="published", ranks=(4, 2), seeds=1, baselines=False)
    case = reproduce.cases("long", asked)[0]
    assert case.experiment(0).trunk.source == str(folder)
    assert case.settings(0)["trunk"]["source"] == "gpt2-six"
    assert case.experiment(0).protocol == "published"
    assert case.name == "long-published-tiny-horizon8"
    options = "--seeds 1 --ranks 4,2 --trunk gpt2-six --protocol published --no-baselines"
    assert asked.command("ranks") == f"python tools/reproduce.py ranks {options}"


# --- the plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
@pytest.mark.parametrize("table", list(reproduce.PLAN))
def test_every_setting_of_the_plan_loads_under_a_name_of_its_own(table: str, quick: bool) -> None:
    cases = reproduce.cases(table, reproduce.Request(quick=quick, ranks=(2, 16)))
    assert len({case.name for case in cases}) == len(cases) > 0
    for case in cases:
        assert case.experiment(0).trunk.source == ("random" if quick else "openai-community/gpt2")
    if not quick and table != "ranks":
        sets = {
            " → ".join(filter(None, (case.settings(0)["data"]["source"], case.settings(0)["data"]["target"])))
            for case in cases
        }
        known = reproduced.published(table)
        per_set = {data for row in known["rows"] for data in row["figures"]} - known.get("means", {}).keys()
        assert per_set | {data for of in known.get("means", {}).values() for data in of} <= sets


def test_the_plan_has_the_published_settings() -> None:
    def vary(table: str, data: str, **asked: Any) -> list[dict[str, Any]]:
        return [
            dict(case.vary)
            for case in reproduce.cases(table, reproduce.Request(**asked))
            if case.config.stem == data
        ]

    assert [case["task.horizon"] for case in vary("long", "etth1")] == [96, 192, 336, 720]
    few = [(case["data.percent"], case["task.horizon"]) for case in vary("few_shot", "etth1")]
    assert few == [
        (10, 96),
        (10, 192),
        (10, 336),
        (10, 720),
        (5, 96),
        (5, 192),
        (5, 336),
    ]  # at 720 no training window is left
    assert len(vary("few_shot", "weather")) == 8
    assert {case["adapters.rank"] for case in vary("ranks", "etth1")} == {2**power for power in range(1, 11)}
    assert {case["adapters.rank"] for case in vary("ranks", "etth1", ranks=(3,))} == {3}
    assert [case["task.mask_rate"] for case in vary("imputation", "etth1")] == [0.125, 0.25, 0.375, 0.5]
    assert [case["data.percent"] for case in vary("zero_shot", "m4_yearly_m3_yearly", quick=True)] == [
        100,
        10,
    ]


def test_baselines_are_trained_at_one_rank_only() -> None:
    for ranks, expected in (((), 16), ((2, 16), 16), ((8, 4), 8)):
        with_baselines = {
            dict(case.vary)["adapters.rank"]
            for case in reproduce.cases("ranks", reproduce.Request(ranks=ranks))
            if case.baselines
        }
        assert with_baselines == {expected}


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduced, "published", lambda table: PUBLISHED)


def page(*entries: Any, table: str = "long", quick: bool = False) -> str:
    return reproduced.render(table, list(entries), quick=quick, command="the command")


def test_mean_deviation_bold_and_verdict_where_a_baseline_wins(known: None) -> None:
    model, baseline = [0.41, 0.44, 0.47], [0.31, 0.32, 0.36]
    cells = [
        made(
            seed,
            [row("M, random trunk", 10, mse=model[seed], mae=0.2), row("C", mse=baseline[seed], mae=0.3)],
        )
        for seed in range(3)
    ]
    text = page(entry(cells))
    assert table_row(text, "M, random trunk") == [
        "M, random trunk",
        "0.4400 ± 0.0300",
        "**0.2000**",
        "10",
        "40",
    ]
    spread = np.std(baseline, ddof=1)
    assert table_row(text, "C") == ["C", f"**0.3300 ± {spread:.4f}**", "0.3000", "0", "0"]
    verdict = "**a baseline beats the model**: M, random trunk has 0.4400 ± 0.0300."
    assert f"Best MSE: C, 0.3300 ± {spread:.4f}; {verdict}" in text
    assert "3 seeds, protocol strict" in text
    assert "random trunk**: this tests the pipeline and says nothing about GPT-2" in text
    assert "cpu, 2 cores of some cpu, float32; jax 1.2" in text
    assert "```\nthe command\n```" in text


def test_verdict_where_the_model_wins_where_both_are_equal_and_where_they_are_close() -> None:
    def said(model: list[float], baseline: list[float], metric: str = "mse") -> str:
        cells = [
            made(seed, [row("M", **{metric: ours}), row("C", **{metric: theirs})])
            for seed, (ours, theirs) in enumerate(zip(model, baseline, strict=True))
        ]
        return reproduced.verdict(reproduced.lines_of([entry(cells)]), metric)

    assert said([0.1, 0.1], [0.2, 0.2]) == "Best MSE: M, 0.1000; the best baseline, C, has 0.2000."
    assert (
        said([0.1, 0.1], [0.2, 0.2], "accuracy")
        == "Best accuracy: C, 0.2000; **a baseline beats the model**: M has 0.1000."
    )
    assert said([0.2], [0.1], "adjusted_f1").startswith("Best adjusted F1: M, 0.2000;")
    assert said([0.2], [0.2]) == "Best MSE: M and the baseline C are equal, 0.2000."
    assert "within their standard deviations" in said([0.1, 0.3], [0.15, 0.31])
    assert "within" not in said([0.10, 0.11], [0.30, 0.31])


def test_a_model_without_baselines_is_no_winner(known: None) -> None:
    text = page(entry([made(0, [row("M", mse=0.5, mae=0.5)])]))
    assert "Best MSE: M, 0.5000; nothing else has this figure." in text


def test_the_mean_over_horizons_is_taken_seed_by_seed_next_to_the_published_figure(known: None) -> None:
    figures = {8: [0.1, 0.3], 4: [0.5, 0.4]}
    entries = [
        entry(
            [made(seed, [row("M", 10 * horizon, mse=figures[horizon][seed], mae=0.1)]) for seed in range(2)],
            task__horizon=horizon,
        )
        for horizon in (8, 4)
    ]
    text = page(*entries)
    means = np.mean([figures[8], figures[4]], axis=0)  # 0.30, 0.35
    assert table_row(text, "M", 2) == [
        "M",
        f"**{means.mean():.4f} ± {np.std(means, ddof=1):.4f}**",
        "**0.1000**",
        "60",
        "240",
    ]
    assert "| *published:* theirs (a paper) | .25 | .37 |  |  |" in text
    assert text.count("*published:*") == 1
    assert "Mean over horizon 4, horizon 8; 2 seeds:" in text

    partly = page(entries[0], entry([None, None], task__horizon=4))
    assert "Not run: horizon 4: not run." in partly
    assert "Mean over" not in partly
    assert "Published, but not comparable, as the mean of horizons 8, 4: theirs .25/.37." in partly


@pytest.mark.parametrize("failing", [4, 8])
def test_seeds_that_only_some_horizons_have_do_not_enter_the_mean(known: None, failing: int) -> None:
    def cells(horizon: int, figure: float) -> list[Any]:
        whole = [made(seed, [row("M", mse=figure + seed, mae=0.1)]) for seed in range(2)]
        return [whole[0], {"seed": 1, "failed": "the loss became nan"}] if horizon == failing else whole

    text = page(entry(cells(8, 0.2), task__horizon=8), entry(cells(4, 0.4), task__horizon=4))
    assert table_row(text, "M", 2)[1] == "**0.3000**"
    assert "Mean over horizon 4, horizon 8; 1 seed:" in text
    assert f"Not run: horizon {failing}, seed 1: the loss became nan." in text
    assert f"Horizon {failing}, input 32, 1,000 test windows, 1 of 2 seeds, protocol strict:" in text


def test_ranks_are_rows_next_to_the_baselines_of_one(known: None) -> None:
    cells = {
        rank: made(
            0, [row("M", rank, mse=rank / 10, mae=0.1), *([row("C", mse=0.9, mae=0.9)] if rank == 2 else [])]
        )
        for rank in (4, 2)
    }
    text = page(*(entry([cell], adapters__rank=rank) for rank, cell in cells.items()), table="ranks")
    methods = [
        line.split("|")[1].strip()
        for line in text.splitlines()
        if line.startswith("| ") and "method" not in line and "---" not in line
    ]
    assert methods[:3] == ["M, rank 2", "M, rank 4", "C"]


def test_nan_is_neither_shown_as_a_figure_nor_the_best(known: None) -> None:
    text = page(entry([made(0, [row("M", mse=float("nan"), mae=0.3), row("C", mse=0.4, mae=0.2)])]))
    assert table_row(text, "M")[1] == "—"
    assert table_row(text, "C")[1] == "**0.4000**"


def test_the_average_of_m4_weighs_by_series_and_takes_owa_of_the_means() -> None:
    sets = reproduced.published("short_term")["means"]["all of M4"]
    smape = {name: 10.0 + index for index, name in enumerate(sets)}
    entries = [
        entry(
            [
                made(
                    0,
                    [
                        row("M", smape=value, mase=2.0, owa=0.7),
                        row("Naive2", smape=2 * value, mase=4.0, owa=1.0),
                    ],
                )
            ],
            data=name,
        )
        for name, value in smape.items()
    ]
    text = page(*entries, table="short_term")
    weights = [CATALOG[name].n_series for name in sets]
    assert sum(weights) == 100_000
    expected = np.average(list(smape.values()), weights=weights)
    assert table_row(text, "M", len(sets))[1:4] == [f"**{expected:.3f}**", "**2.0000**", "**0.5000**"]
    assert table_row(text, "Naive2", len(sets))[3] == "1.0000"
    assert "| *published:* One-for-All, rank 16 (paper) | 12.38 | 1.76 | .91 |" in text


def test_published_sets_that_were_not_run_are_listed_with_the_reason() -> None:
    cell = made(0, [row("M", accuracy=0.9, error=0.1)])
    text = page(
        entry([cell], data="japanesevowels"),
        entry([None], data="heartbeat", absent="the file is missing"),
        table="classification",
    )
    assert "| *published:* GPT4TS (its figures) | .986 |" in text
    assert "| heartbeat | One-for-All, rank 16 .75; GPT4TS .772; DLinear .751 | the file is missing |" in text
    assert (
        "| facedetection | One-for-All, rank 16 .66; GPT4TS .692; DLinear .680 | no settings file |" in text
    )
    assert "error" not in text.replace("published practice", "")
    assert "facedetection" not in page(
        entry([cell], data="japanesevowels"), table="classification", quick=True
    )


def test_published_means_name_the_sets_that_are_missing_from_ours() -> None:
    text = page(
        entry([made(0, [row("M", adjusted_f1=0.9, average_precision=0.1)])], data="smap"), table="anomaly"
    )
    assert "Published: One-for-All .8442 (paper);" in text
    assert "Not comparable with our figures: smd, msl, swat, psm not run, or only in part." in text


def test_few_shot_figures_follow_their_percentage() -> None:
    entries = [
        entry(
            [made(0, [row("M", mse=0.5, mae=0.5)])],
            data="etth2",
            data__percent=percent,
            task__horizon=horizon,
        )
        for percent in (10, 5)
        for horizon in (96, 192)
    ]
    ten, five = re.split(
        r"^## etth2, .* 5$", page(*entries, table="few_shot"), maxsplit=1, flags=re.MULTILINE
    )
    assert "| *published:* One-for-All (paper) | .43 | .44 |" in ten
    assert "| *published:* One-for-All (paper) | .52 | .49 |" in five
    assert ".397" in ten
    assert ".397" not in five


def test_the_quick_page_keeps_the_other_tables(
    place: Place, measured: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place.root / "configs" / "quick"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(place.config.read_text())
    monkeypatch.setattr(reproduce, "QUICK", dict.fromkeys(("anomaly", "long"), (("tiny",), {})))
    place.run("--seeds", "1", "--quick")
    place.run("--seeds", "1", "--quick", table="anomaly")
    place.path("quick-long-tiny-seed0").unlink()
    place.run("--seeds", "2", "--quick")
    text = (place.docs / "quick.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Long-term forecasting",
        "## Anomaly detection",
    ]
    assert text.count("python tools/reproduce.py long --seeds 2 --quick") == 1
    assert text.count("python tools/reproduce.py anomaly --seeds 1 --quick") == 1
    assert text.count("<!-- end -->") == 2
    assert table_row(text, "model")[1] == "**1.5000 ± 0.7071**"


# --- the published figures ------------------------------------------------------------------------


def test_published_figures_are_in_the_protocol() -> None:
    text = (REPOSITORY / "docs" / "protocol.md").read_text()
    section = text.partition("## 4.")[2].partition("## 5.")[0]
    for table in reproduce.PLAN:
        for row in reproduced.published(table)["rows"]:
            for figure in row["figures"].values():
                percent = f"{100 * float(figure):.4g}" if table in ("anomaly", "classification") else figure
                assert re.search(rf"(?<![\d.]){re.escape(percent)}(?!\d)", section), (
                    table,
                    row["method"],
                    figure,
                )


def test_published_means_are_the_means_of_the_published_figures() -> None:
    """To the printed digits; the terms were rounded before, so half a unit of their last digit is added."""
    for table in reproduce.PLAN:
        known = reproduced.published(table)
        for name, sets in known.get("means", {}).items():
            for row in known["rows"]:
                if name not in row["figures"] or not all(data in row["figures"] for data in sets):
                    continue
                parts = np.array(
                    [[float(value) for value in row["figures"][data].split("/")] for data in sets]
                )
                printed = [value for data in (*sets, name) for value in row["figures"][data].split("/")]
                unit = 10.0 ** -min(len(value.partition(".")[2]) for value in printed)
                said = np.array([float(value) for value in row["figures"][name].split("/")])
                assert np.abs(parts.mean(axis=0) - said).max() <= unit, (table, row["method"])

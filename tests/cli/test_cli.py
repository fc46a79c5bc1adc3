"""The command line: every command does what its help says, errors are one paragraph, JSON is alone on
standard output."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer

from ofa_jax import __version__
from ofa_jax.cli import main as cli
from ofa_jax.cli.options import print_json
from ofa_jax.inference import formula_names
from ofa_jax.train.progress import ConsoleReporter

USED = ".csv: 2 series (`a`, `b`), time in `date`"
COMMANDS = ("demo", "train", "evaluate", "predict", "params", "convert", "sweep", "gradients", "report")


@dataclass
class Called:
    status: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process, as the console script does."""

    def run(*arguments: object) -> Called:
        monkeypatch.setattr(sys, "argv", ["ofa-jax", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            status: Any = 0
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return Called(status, captured.out, captured.err)

    return run


def refused(called: Called, *parts: str) -> None:
    """A deliberate error: status 2, nothing on standard output, one paragraph that holds ``parts``."""
    assert called.status == 2, called
    assert called.out == ""
    paragraph = "".join(line for line in called.err.splitlines(keepends=True) if " series (`" not in line)
    assert paragraph.startswith("error: ")
    assert paragraph.endswith("\n")
    assert paragraph.count("\n") == 1, called.err
    for part in parts:
        assert part in called.err


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def test_importing_the_package_is_cheap():
    heavy = "('jax', 'jaxlib', 'pandas', 'numpy', 'flax', 'transformers', 'matplotlib', 'orbax', 'grain')"
    done = python(
        f"import sys, ofa_jax; dir(ofa_jax); print([name for name in {heavy} if name in sys.modules])"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom ofa_jax.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = ('jax', 'pandas', 'flax', 'transformers', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = python(code, *arguments)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_the_version(call):
    assert call("--version") == Called(0, f"{__version__}\n", "")


def test_help_lists_every_command(call):
    called = call("--help")
    assert called.status == 0
    for command in COMMANDS:
        assert f" {command} " in called.out
    assert "Traceback" not in call().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call, command):
    called = call(command, "--help")
    assert (called.status, called.err) == (0, "")
    assert "Usage" in called.out


@pytest.mark.parametrize("command", ["train", "params", "sweep", "gradients"])
def test_help_ends_with_the_table_of_settings(call, command):
    from ofa_jax.config.load import settings

    table = call(command, "--help").out.partition("Settings for --set")[2]
    for setting in settings():
        assert setting.path in table


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["evaluate", "run", "--controls"], "baselines", True),
        (["evaluate", "run", "--control", "nlinear"], "baseline", ["nlinear"]),
        (["report", "run", "--controls"], "baselines", True),
        (["sweep", "csv", "--ranks", "2", "--out", "x", "--controls"], "baselines", True),
        (["gradients", "csv", "--out", "x", "--sgd-rate", "0.5"], "sgd_learning_rate", 0.5),
        (["gradients", "csv", "--out", "x", "--adam-rate=0.5"], "adam_learning_rate", 0.5),
    ],
)
def test_options_keep_their_former_names(call, arguments, name, value):
    group = typer.main.get_command(cli.app)
    command, *rest = arguments
    parent = group.make_context("ofa-jax", [*arguments])  # takes words out of its list
    assert group.commands[command].make_context(command, [*rest], parent=parent).params[name] == value
    former = next(word.partition("=")[0] for word in reversed(rest) if word.startswith("--"))
    assert f"{former} " not in call(command, "--help").out


def test_params_of_the_published_experiment(call):
    called = call("params", "configs/long/etth1.yaml", "--json")
    assert (called.status, called.err) == (0, "")
    assert called.out.count("\n") == 1
    counts = json.loads(called.out)
    assert counts["trainable"] == counts["adapters"] == 546304
    assert counts["bundle_bytes"] == 4 * 546304
    text = call("params", "long/etth1", "--set", "task.horizon=720").out
    assert "556,288  trainable parameters" in text


@dataclass
class Trained:
    folder: Path
    config: Path
    run: Path
    train: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Trained:
    """Trained by the command itself, in a separate process and a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("with space")
    config = tiny.config(folder)
    done = tiny.command("train", config.name, "--out", "my run", "--set", "train.epochs=2", cwd=folder)
    return Trained(folder, config, folder / "my run", done)


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained.run, tmp_path / "run"))


def test_train(trained):
    done = trained.train
    assert done.returncode == 0, done.stderr
    first, bundle, following = done.stdout.splitlines()
    assert first.startswith("all epochs done; best epoch ")
    assert (bundle, following.split()[:3]) == ("bundle: my run/bundle", ["next:", "ofa-jax", "evaluate"])
    used, *lines = done.stderr.splitlines()
    assert used == f"tiny{USED}"
    assert [line[:9] for line in lines] == ["epoch 1: ", "epoch 2: "]
    assert "arning" not in done.stderr


def test_training_a_finished_run_again_is_quick_and_quiet(trained, call):
    called = call("train", trained.config, "--out", trained.run, "--set", "train.epochs=2")
    assert (called.status, called.err) == (0, f"tiny{USED}\n")
    assert called.out.startswith("all epochs done")


def test_json_has_null_where_a_number_is_not_finite(capsys):
    print_json({"a": [1.0, float("inf")], "b": {"c": float("nan")}, "d": (True, None, "x", 3)})
    assert capsys.readouterr().out == '{"a": [1.0, null], "b": {"c": null}, "d": [true, null, "x", 3]}\n'


def test_evaluate_as_json(trained, tiny):
    done = tiny.command("evaluate", trained.run, "--json", cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    content = json.loads(done.stdout)
    assert (content["split"], content["windows"]) == ("test", 66)
    assert [entry["method"] for entry in content["methods"]] == [
        "One-for-All (reference, random trunk)",
        "seasonal naive (24 steps)",
    ]


@pytest.mark.slow
def test_evaluate_with_baselines(run, call):
    called = call("evaluate", run, "--baseline", "nlinear", "--split", "validation")
    assert called.status == 0
    assert "validation part, 26 windows" in called.out
    for method in ("One-for-All (reference, random trunk)", "seasonal naive (24 steps)", "NLinear"):
        assert method in called.out
    used, first, *epochs = called.err.splitlines()
    assert used == f"tiny{USED}"
    assert first == "training the baseline NLinear"
    assert epochs
    assert all(line.startswith("epoch ") for line in epochs)
    again = call("evaluate", run, "--baseline", "nlinear", "--split", "validation")
    assert (again.out, again.err) == (called.out, f"{used}\n")
    assert len(json.loads(call("evaluate", run, "--control", "nlinear", "--json").out)["methods"]) == 3


def test_predict(trained, tiny, tmp_path):
    new = tiny.csv(tmp_path / "new rows.csv", rows=50, seed=3)
    done = tiny.command(
        "predict", trained.run, "--input", new, "--output", "out/f.csv", "--plot", "out/f.png", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, f"new rows{USED}\n")
    assert done.stdout == "8 steps of 2 series: out/f.csv\nplot: out/f.png\n"
    table = pd.read_csv(tmp_path / "out" / "f.csv")
    assert table.columns.tolist() == ["date", "a", "b"]
    assert table["date"].iloc[0] == "2024-01-03 02:00:00"
    assert len(table) == 8
    assert (tmp_path / "out" / "f.png").stat().st_size > 5000


def test_predict_from_the_bundle_alone_without_timestamps(trained, tmp_path, tiny, call):
    shutil.copytree(trained.run / "bundle", tmp_path / "bundle")
    frame = pd.read_csv(tiny.csv(tmp_path / "new.csv", rows=40)).drop(columns="date")[["b", "a"]]
    frame.to_csv(tmp_path / "new.csv", index=False)
    called = call(
        "predict", tmp_path / "bundle", "--input", tmp_path / "new.csv", "--output", tmp_path / "f.csv"
    )
    assert (called.status, called.err) == (0, "new.csv: 2 series (`a`, `b`), no timestamps\n")
    table = pd.read_csv(tmp_path / "f.csv")
    assert table.columns.tolist() == ["step", "a", "b"]
    assert (table["b"] > table["a"]).all()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda table: table.drop(columns="b"), ("new.csv", "missing: `b`")),
        (lambda table: table.rename(columns={"b": "c"}), ("new.csv", "extra: `c`")),
        (lambda table: table.head(20), ("new.csv", "20 rows, but the model reads 32")),
        (lambda table: table.drop(index=20), ("new.csv", "the step is irregular", "row 21")),
        (lambda table: table.assign(a="text"), ("new.csv", "text")),
    ],
)
def test_predict_refuses_other_rows(trained, tiny, tmp_path, call, change, parts):
    path = tmp_path / "new.csv"
    change(pd.read_csv(tiny.csv(path, rows=40))).to_csv(path, index=False)
    refused(call("predict", trained.run, "--input", path, "--output", tmp_path / "f.csv"), *parts)
    assert not (tmp_path / "f.csv").exists()


def test_predict_overwrites_no_input(trained, tiny, tmp_path, call):
    new = tiny.csv(tmp_path / "new.csv", rows=40)
    before = new.read_bytes()
    refused(call("predict", trained.run, "--input", new, "--output", new), "--output: ", "be overwritten")
    out = ("--output", tmp_path / "f.png", "--plot", tmp_path / "f.png")
    refused(call("predict", trained.run, "--input", new, *out), "--plot: ", "be overwritten")
    sheet = tmp_path / "x.xlsx"
    refused(call("predict", trained.run, "--input", new, "--output", sheet), "--output: ", "is no CSV")
    assert not sheet.exists()
    assert new.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["new.csv"]


@pytest.mark.parametrize("name", ["-", pytest.param("/dev/stdout", marks=pytest.mark.slow)])
def test_predict_to_standard_output(trained, tiny, tmp_path, name):
    new = tiny.csv(tmp_path / "new.csv", rows=40)
    with open(tmp_path / "f.csv", "w") as out:
        done = subprocess.run(
            tiny.arguments("predict", trained.run, "--input", new, "--output", name),
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )
    assert (done.returncode, done.stderr) == (0, f"new{USED}\n8 steps of 2 series: {name}\n")
    assert pd.read_csv(tmp_path / "f.csv").shape == (8, 3)


def test_predict_refuses_an_unknown_kind_of_picture(trained, tiny, tmp_path, call):
    new = tiny.csv(tmp_path / "new.csv", rows=40)
    called = call(
        "predict", trained.run, "--input", new, "--output", tmp_path / "f.csv", "--plot", tmp_path / "f.docx"
    )
    refused(called, "f.docx", "Use .png, .svg or .pdf")
    assert not (tmp_path / "f.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "none.yaml", "--out", "x"], ("none.yaml", "file not found", "long/{etth1")),
        (
            ["train", "tiny.yaml", "--out", "x", "--set", "train.epoch=3"],
            ("train.epoch is not a setting", "train.epochs"),
        ),
        (["train", "tiny.yaml", "--out", "x", "--set", "train.epochs=none"], ("train.epochs",)),
        (["train", "tiny.yaml", "--out", "tiny.csv"], ("is a file, not a run folder",)),
        (["train", "tiny.yaml", "--out", "tiny.csv/run"], ("Not a directory",)),
        (
            ["train", "tiny.yaml", "--out", "x", "--set", "data.source=a=b c.csv"],
            ("a=b c.csv", "there is no such file"),
        ),
        (["evaluate", "none"], ("none", "not a run folder")),
        (["evaluate", "."], ("not a run folder",)),
        (["predict", "none", "--input", "tiny.csv", "--output", "f.csv"], ("none",)),
        (["params", "none"], ("none", "file not found")),
        (["convert", "none/such", "--out", "x"], ("none/such",)),
    ],
)
def test_deliberate_errors_are_one_paragraph(trained, tmp_path, monkeypatch, call, arguments, parts):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("tiny.yaml", "tiny.csv"):
        shutil.copy(trained.folder / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    refused(call(*arguments), *parts)


def test_errors_name_the_flag(run, call):
    refused(
        call("params", "csv", "--set", "train.epoch=3"),
        "error: --set: train.epoch is not a setting (did you mean train.epochs",
    )
    refused(
        call("evaluate", run, "--baseline", "nope"), "error: --baseline: the task 'forecast' has no baseline"
    )
    refused(
        call("evaluate", run, "--target", "x"), "error: --target: a run of the task 'forecast' has no target"
    )
    refused(
        call("sweep", run / "config.yaml", "--ranks", "2,x", "--out", run / "s"),
        "error: --ranks: input should be a valid integer",
    )


def test_wrong_usage_is_explained(call):
    for arguments in (["nonsense"], ["train"], ["evaluate", "run", "--split", "all"]):
        called = call(*arguments)
        assert called.status == 2
        assert "Traceback" not in called.err
        assert called.out == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(trained, tmp_path, call):
    tmp_path.chmod(0o555)
    try:
        refused(call("train", trained.config, "--out", tmp_path / "run"), "Permission denied")
    finally:
        tmp_path.chmod(0o755)


def test_a_full_disk_is_one_paragraph(trained, tiny, tmp_path, call, monkeypatch):
    import errno

    from ofa_jax import inference as predict

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(predict, "write_output", full)
    called = call(
        "predict",
        trained.run,
        "--input",
        tiny.csv(tmp_path / "new.csv", rows=40),
        "--output",
        tmp_path / "f.csv",
    )
    refused(called, "f.csv: No space left on device")


def test_an_unexpected_error_keeps_its_traceback(call, monkeypatch):
    from ofa_jax import build as assemble

    def broken(experiment):
        raise ValueError("a bug")

    monkeypatch.setattr(assemble, "footprint", broken)
    with pytest.raises(ValueError, match="a bug"):
        call("params", "long/etth1")


def test_interrupting_anything_but_training_is_quiet(call, monkeypatch):
    from ofa_jax import build as assemble

    def interrupted(experiment):
        raise KeyboardInterrupt

    monkeypatch.setattr(assemble, "footprint", interrupted)
    called = call("params", "long/etth1")
    assert called.status == 130
    assert "Traceback" not in called.err


def test_interrupting_the_training_of_a_baseline_claims_nothing(run, call, monkeypatch):
    import signal

    from ofa_jax.train.progress import ConsoleReporter

    monkeypatch.setattr(
        ConsoleReporter, "advance", lambda self, windows, loss: signal.raise_signal(signal.SIGTERM)
    )
    called = call("evaluate", run, "--baselines")
    assert called.status == 143
    assert called.err.splitlines()[-1] == "Interrupted at step 7; nothing was saved."
    assert called.out == ""
    monkeypatch.undo()


def test_interrupted_training_says_where_it_was_saved(trained, tmp_path, call, monkeypatch):
    import signal

    from ofa_jax.train.progress import ConsoleReporter

    with monkeypatch.context() as patch:
        patch.setattr(
            ConsoleReporter, "advance", lambda self, windows, loss: signal.raise_signal(signal.SIGINT)
        )
        called = call("train", trained.config, "--out", tmp_path / "run")
    assert (called.status, called.out) == (130, "")
    said = called.err.removeprefix(f"tiny{USED}\n")
    assert said.splitlines() == [
        "SIGINT received: stopping after the current step, batch or compilation",
        "Interrupted at step 3; checkpoint saved. Re-run the same command to resume.",
    ]
    called = call("train", trained.config, "--out", tmp_path / "run")
    assert called.status == 0
    assert called.err.removeprefix(f"tiny{USED}\n").startswith("resumed at step 3\n")


def test_data_list(call, monkeypatch, tmp_path):
    monkeypatch.delenv("OFA_JAX_DATA", raising=False)
    called = call("data", "list")
    assert called.status == 0
    assert "etth1" in called.out
    assert called.err.strip() == "OFA_JAX_DATA is not set, so present files are unknown"
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path))
    entries = json.loads(call("data", "list", "--json").out)["data"]
    assert {entry["name"] for entry in entries} >= {"etth1", "weather", "m4_yearly", "japanesevowels", "smap"}
    assert not any(entry["present"] for entry in entries)


def test_data_check(call, tiny, tmp_path):
    path = tiny.csv(tmp_path / "tiny.csv")
    called = call("data", "check", path)
    assert called.status == 0
    assert {"kind: frame", "rows: 200", "channels: 2", "frequency: h"} <= set(called.out.splitlines())
    assert json.loads(call("data", "check", path, "--json").out)["names"] == ["a", "b"]
    path.write_text(path.read_text().replace("2024-01-03T00:00:00,", "2024-01-03T00:30:00,"))
    called = call("data", "check", path)
    assert (called.status, called.out) == (2, "")
    assert "tiny.csv" in called.err


def test_data_fetch_by_name(call, monkeypatch, tmp_path):
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path))
    called = call("data", "fetch", "etth9")
    assert called.status == 2
    assert "`etth9` is not a known data set. The nearest names are etth" in called.err
    called = call("data", "fetch", "smap")  # known, but no program can fetch it in this layout
    assert called.status == 2
    assert "cannot be downloaded" in called.err
    assert not list(tmp_path.iterdir())


def test_data_fetch_makes_its_folder(call, monkeypatch, tmp_path):
    from ofa_jax.data.catalog import fetch

    def download(url, files, root, scratch):
        for file in files:
            (root / file.path).parent.mkdir(parents=True, exist_ok=True)
            (root / file.path).write_text("date,OT\n")

    monkeypatch.setattr(fetch, "_fetch_url", download)
    monkeypatch.setattr(fetch, "verify", lambda *given, **named: True)
    monkeypatch.setenv("OFA_JAX_DATA", str(tmp_path / "new" / "data"))
    called = call("data", "fetch", "etth1")
    assert called.status == 0, called
    assert (tmp_path / "new" / "data" / "ETT-small" / "ETTh1.csv").is_file()


HOSTILE = "\x1b[31m[red]\u202e\x07"
SHOWN = r"\x1b[31m[red]\u202e\x07"


def test_names_reach_the_terminal_escaped(call, tiny, tmp_path):
    path = tiny.csv(tmp_path / f"{HOSTILE}.csv")
    path.write_text(path.read_text().replace("date,a,b", f"date,{HOSTILE},[bold]b"))
    called = call("data", "check", path)
    assert called.status == 0, called
    assert f"names: {SHOWN}, [bold]b" in called.out.splitlines()
    assert f"path: {tmp_path}/{SHOWN}.csv" in called.out.splitlines()
    refused(call("data", "check", tmp_path / f"{HOSTILE}.tsf"), f"{SHOWN}.tsf: ")
    refused(call("params", tmp_path / HOSTILE), SHOWN)


def test_tables_are_sorted_marked_and_never_wrapped(capsys, monkeypatch):
    from ofa_jax.baselines.compare import Comparison, Row
    from ofa_jax.cli.show import print_comparison

    model, linear = "One-for-All (reference, random trunk)", "a linear model with a long name"
    rows = (
        Row(model, {"mse": 0.25, "mae": 12.0}, 1000),
        Row(linear, {"mse": 0.125, "mae": 101.5}, 10),
        Row("floor", {"mse": 0.01}, 0, bound=True),
    )
    made = Comparison("forecast", "strict", "test", 7, rows, model=model)
    print_comparison(made)
    _, *table, star, verdict = capsys.readouterr().out.splitlines()
    assert [line.split() for line in table] == [
        ["method", "MSE", "MAE", "trainable", "kB"],
        ["floor", "0.0100", "—", "—", "—"],
        [*linear.split(), "0.1250*", "101.50", "10", "0.0"],
        [*model.split(), "0.2500", "12.00*", "1,000", "4.0"],
    ]
    assert len({line.rstrip().rindex("0") for line in table[2:]}) == 1, "numbers are aligned at the right"
    assert star == "* best"
    assert verdict == f"A baseline is better than the model: {linear}, MSE 0.1250 against 0.2500."
    accuracy = (Row(model, {"accuracy": 0.9}, 1), Row("b", {"accuracy": 0.8}, 0))
    best = Comparison("classification", "strict", "test", 7, accuracy, model=model)
    assert ([row.method for row in best.ranked], best.verdict) == ([model, "b"], None)

    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    print_comparison(made)
    lines = re.sub("\x1b.*?m", "", capsys.readouterr().out).splitlines()[:-1]
    assert max(map(len, lines)) <= 60
    assert sum(line.startswith(f"{model} ") for line in lines) == 2, "the right columns are in a second table"


def test_notices_and_tables_show_brackets_and_escapes(capsys):
    from ofa_jax.cli.show import _print

    with ConsoleReporter() as reporter:
        reporter.notice(f"series {HOSTILE} is constant")
        values = {"epoch": 1, "train_loss": 1, "windows_per_second": 1, "best": False}
        reporter.end_epoch({"protocol": "[red]", **values})
    _print("[red]title", ["method"], [], [[HOSTILE]])
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == f"series {SHOWN} is constant"
    assert "protocol [red]" in err
    assert [line.strip() for line in out.splitlines()] == ["[red]title", "method", SHOWN]


def test_texts_that_a_spreadsheet_would_run_stay_and_are_named():
    table = pd.DataFrame({"=a": [-1.0], "b": ["+x"], "-c": ["plain"], "d": ["1"]})
    assert formula_names(table) == ["=a", "-c", "+x"]


HOURS = pd.date_range("2024-01-01", periods=60, freq="h")
FAULTY: dict[str, Any] = {
    "a gap": lambda table: table.assign(a=table["a"].where(table.index != 50)),
    "a word": lambda table: table.assign(a=table["a"].astype(object).where(table.index != 50, "nil")),
    "a column of text": lambda table: table.assign(**{"site, name": "north", "other": "x"}),
    "a counter": lambda table: table.assign(No=range(60), id=7),
    "a second time": lambda table: table.assign(timestamp=HOURS.strftime("%Y-%m-%d")),
    "true and false": lambda table: table.assign(open=[True, False] * 30),
    "no hour": lambda table: table.drop(index=[50]),
    "an hour twice": lambda table: pd.concat([table, table.tail(1)]),
    "a decimal comma": lambda table: table.assign(
        a=[f"{value:.2f}".replace(".", ",") for value in table["a"]]
    ),
    "an empty column": lambda table: table.assign(c=None),
    "day and clock": lambda table: table.assign(
        date=HOURS.strftime("%Y-%m-%d"), time=HOURS.strftime("%H:%M")
    ),
    "all of it": lambda table: table.drop(index=[50]).assign(
        a=lambda rows: rows["a"].where(rows.index != 51), site="x", No=range(59)
    ),
}


def clauses(advice: str) -> list[list[str]]:
    """The alternatives in advice, each as options, without those that leave a choice (``…``)."""
    found = []
    for clause in re.split(r", or |`(?:\)|) or ", advice):
        quoted = re.findall(r"`?(--set (?:'[^']*'|[^\s`]+))", clause)
        if quoted and "=…" not in clause:
            found.append([word for option in quoted for word in shlex.split(option)])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTY)
@pytest.mark.parametrize("command", ["check", "train", "predict"])
def test_every_advice_can_be_followed_as_it_is_printed(trained, call, tiny, tmp_path, fault, command):
    """Settings in the advice are tried word for word, error after error, until the data are read."""
    path = tmp_path / "x.csv"
    table = FAULTY[fault](pd.read_csv(tiny.csv(tmp_path / "whole.csv", rows=60)))
    table.to_csv(path, index=False)

    def run(*options: str) -> Called:
        if command == "train":
            small = [
                "--set",
                "task.input_length=8",
                "--set",
                "task.horizon=2",
                "--set",
                "data.source=" + str(path),
            ]
            return call("train", trained.config, *small, *options, "--out", tmp_path / "run")
        if command == "predict":
            return call("predict", trained.run, "--input", path, *options, "--output", tmp_path / "f.csv")
        return call("data", "check", path, *options)

    def follow(options: list[str], depth: int = 0) -> bool:
        called = run(*options)
        if called.status == 0:
            return True
        refused(called)
        alternatives = [merge([*options[1::2], *more[1::2]]) for more in clauses(called.err)]
        assert alternatives or depth, called.err
        return depth < 6 and any(follow(more, depth + 1) for more in alternatives if more != options)

    assert follow([])


def test_holidays_are_left_out_as_it_is_printed(call, tmp_path):
    days = pd.date_range("2024-01-01", periods=61, freq="B", name="date").delete(51)
    pd.DataFrame({"a": np.sqrt(np.arange(60))}, index=days).to_csv(tmp_path / "x.csv")
    called = call("data", "check", tmp_path / "x.csv")
    refused(called)
    (options,) = (found for found in clauses(called.err) if "data.frequency=B" in found)
    assert options == ["--set", "data.timestamps=as_is", "--set", "data.frequency=B"]
    read = call("data", "check", tmp_path / "x.csv", *options)
    assert "rows: 60" in read.out
    assert "frequency: B" in read.out


def merge(settings: list[str]) -> list[str]:
    """``PATH=VALUE`` texts as options; lists of one setting are put together."""
    found: dict[str, str] = {}
    for setting in settings:
        path, _, value = setting.partition("=")
        if value.startswith("[") and found.get(path, "").startswith("["):
            before = found[path][1:-1]
            value = value if before in value else f"[{before}, {value[1:]}"
        found[path] = value
    return [word for path, value in found.items() for word in ("--set", f"{path}={value}")]

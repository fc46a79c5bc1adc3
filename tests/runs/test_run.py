"""The run folder: what it contains, what it refuses, and that its bundle is the trained model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from ofa_jax.adapters.bundle import write_bundle
from ofa_jax.build import build_model
from ofa_jax.config.load import FORMAT
from ofa_jax.errors import CheckpointError, ConfigError, DataError, TrainError, WeightsError
from ofa_jax.files import json_digest
from ofa_jax.model import trees
from ofa_jax.model.convert import save_trunk
from ofa_jax.model.gpt2 import GPT2Config
from ofa_jax.model.weights import random_trunk
from ofa_jax.report.page import write_report
from ofa_jax.runs.bundle import load_bundle
from ofa_jax.runs.folder import locked_folder, read_config, resolved
from ofa_jax.runs.train import open_run, train_run
from ofa_jax.tasks.forecast import prepare
from ofa_jax.train.evaluate import evaluate
from ofa_jax.train.progress import ConsoleReporter, SilentReporter


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_the_bundle_has_the_scaler_exactly(run):
    loaded, data = open_run(run)
    np.testing.assert_array_equal(loaded.scaler.mean, data.scaler.mean)
    np.testing.assert_array_equal(loaded.scaler.std, data.scaler.std)
    assert (loaded.scaler.names, loaded.scaler.constant) == (data.scaler.names, data.scaler.constant)


def test_the_settings_read_back_as_they_were(tiny, run):
    experiment, made = read_config(run)
    assert experiment == resolved(tiny.experiment(experiment.data.source, "train.epochs=1"))
    assert made.format == FORMAT
    packages = {"ofa-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"}
    assert made.versions.keys() == packages
    assert Path(experiment.data.source).is_absolute()


def test_a_run_can_be_repeated_from_its_own_settings_file(tiny, run, tmp_path):
    from ofa_jax.config.load import load_experiment

    train_run(load_experiment(run / "config.yaml"), tmp_path / "again", SilentReporter())
    for name in ("adapter_model.safetensors", "ofa.json"):
        assert (tmp_path / "again" / "bundle" / name).read_bytes() == (run / "bundle" / name).read_bytes()


def test_a_bundle_does_not_reveal_the_path_of_the_data(run):
    content = json.loads((run / "bundle" / "ofa.json").read_text())
    assert content["settings"]["data"]["source"] == "tiny.csv"


def trained_on_a_trunk_folder(tiny, tmp_path, origin: str) -> tuple[Path, Path]:
    """A run folder, and the trunk's folder."""
    shape = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=8)
    trunk = tmp_path / "secret place" / "my trunk"
    trunk.parent.mkdir()
    save_trunk(replace(random_trunk(shape, seed=4), source=origin), trunk)
    experiment = tiny.experiment(tiny.csv(tmp_path / "tiny.csv"), "train.epochs=1")
    train_run(experiment.replace({"trunk.source": str(trunk)}), tmp_path / "run", SilentReporter())
    return tmp_path / "run", trunk


@pytest.mark.slow
def test_what_is_passed_on_names_no_folder_of_the_trunk(tiny, tmp_path):
    run, trunk = trained_on_a_trunk_folder(tiny, tmp_path, "/home/secret place/my trunk")
    page = write_report(run, SilentReporter())
    for file in (*(run / "bundle").iterdir(), *trunk.iterdir(), page):
        for name in (b"secret place", b"my trunk", str(tmp_path).encode()):
            assert name not in file.read_bytes(), file
    content = json.loads((run / "bundle" / "ofa.json").read_text())
    assert content["settings"]["trunk"]["source"] is None
    assert content["frozen"]["trunk_source"] is None
    digest = content["frozen"]["trunk_sha256"]
    assert digest in page.read_text()

    for inside in (run, run / "bundle"):  # the run's own settings name the folder
        assert load_bundle(inside).model.trunk_sha256 == digest
    alone = Path(shutil.copytree(run / "bundle", tmp_path / "passed on" / "bundle"))
    with pytest.raises(WeightsError, match=rf"which a bundle does not name .*{digest}.* as `trunk`"):
        load_bundle(alone)
    found, wanted = load_bundle(alone, trunk=str(trunk)), load_bundle(run)
    assert trees.fingerprint(trees.flatten(found.model.trainable).items()) == trees.fingerprint(
        trees.flatten(wanted.model.trainable).items()
    )


def test_a_bundle_of_an_older_format_with_a_folder_opens(tiny, tmp_path):
    run, trunk = trained_on_a_trunk_folder(tiny, tmp_path, "/home/secret place/my trunk")
    alone = Path(shutil.copytree(run / "bundle", tmp_path / "bundle of format 3"))
    content = json.loads((alone / "ofa.json").read_text()) | {"format": 3}
    content["settings"]["trunk"]["source"] = content["frozen"]["trunk_source"] = str(trunk)
    content["sha256"] = json_digest({name: content[name] for name in content if name != "sha256"})
    (alone / "ofa.json").write_text(json.dumps(content))
    assert load_bundle(alone).experiment.trunk.source == str(trunk)


def test_a_trunk_converted_from_the_hub_is_named_by_its_id(tiny, tmp_path):
    run, trunk = trained_on_a_trunk_folder(tiny, tmp_path, "someone/small-gpt2@abc123")
    content = json.loads((run / "bundle" / "ofa.json").read_text())
    assert content["settings"]["trunk"]["source"] == "someone/small-gpt2"
    assert content["settings"]["trunk"]["revision"] == "abc123"
    assert content["frozen"]["trunk_source"] == "someone/small-gpt2@abc123"
    assert load_bundle(run).experiment.trunk.source == str(trunk), "no download where the folder is known"
    alone = Path(shutil.copytree(run / "bundle", tmp_path / "alone"))
    assert load_bundle(alone, trunk=str(trunk)).experiment.trunk.revision is None


@pytest.mark.parametrize("kind", ["anomaly detector", "imputer"])
def test_the_forecaster_of_a_saved_estimator_is_not_taken_for_it(tmp_path, kind):
    saved = tmp_path / "estimator.json"
    saved.write_text(json.dumps({"kind": f"ofa-jax {kind}", "params": {"method": "forecast"}}))
    with pytest.raises(
        CheckpointError, match=r"saved OneForAll\w+, whose bundle alone only forecasts.*\.load"
    ):
        load_bundle(tmp_path)
    saved.write_text(json.dumps({"kind": f"ofa-jax {kind}", "params": {"method": "reconstruction"}}))
    with pytest.raises(CheckpointError, match=r"ofa\.json"):
        load_bundle(tmp_path)


@pytest.mark.slow
def test_the_bundle_is_the_best_model_to_the_bit(tiny, tmp_path):
    experiment = tiny.experiment(tiny.csv(tmp_path / "tiny.csv"), "train.epochs=2")
    result = train_run(experiment, tmp_path / "run", SilentReporter())
    data = prepare(experiment.data, experiment.task)
    model = build_model(experiment)

    def sums(model, trainable):
        return evaluate(
            model.predict, data.task, data.task.tables["test"], model.frozen, trainable, batch_size=16
        )["squared_error"]

    np.save(tmp_path / "trained.npy", sums(model, result.best))
    script = """
import sys, numpy as np
from ofa_jax.train.evaluate import evaluate
from ofa_jax.runs.train import open_run
loaded, data = open_run(sys.argv[1])
model = loaded.model
trees = model.frozen, model.trainable
found = evaluate(model.predict, data.task, data.task.tables["test"], *trees, batch_size=16)["squared_error"]
np.testing.assert_array_equal(found.view(np.uint32), np.load(sys.argv[2]).view(np.uint32))
print("same bits")
"""
    arguments = [sys.executable, "-c", script, "run", "trained.npy"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("same bits\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["gpt4ts", "paper", "full"])
def test_every_recipe_trains_and_reloads(tiny, tmp_path, recipe):
    experiment = tiny.experiment(
        tiny.csv(tmp_path / "tiny.csv"), f"recipe={recipe}", "train.epochs=1", "train.batch_size=101"
    )
    result = train_run(experiment, tmp_path / "run", SilentReporter())
    loaded = load_bundle(tmp_path / "run" / "bundle")
    assert jax.tree.structure(loaded.model.trainable) == jax.tree.structure(result.best)
    for one, other in zip(jax.tree.leaves(loaded.model.trainable), jax.tree.leaves(result.best), strict=True):
        np.testing.assert_array_equal(one, other)


def test_relative_paths_hold_from_any_folder(tiny, tmp_path, monkeypatch):
    tiny.csv(tmp_path / "my data=1.csv")
    monkeypatch.chdir(tmp_path)
    train_run(tiny.experiment("my data=1.csv", "train.epochs=1"), "my runs/a=b", SilentReporter())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded, data = open_run("../my runs/a=b")
    assert loaded.names == ("a", "b")
    assert data.frame.n_rows == 200


def test_names_of_known_data_and_hub_ids_stay(tiny):
    experiment = tiny.experiment("etth1", "trunk.source=openai-community/gpt2")
    assert resolved(experiment).data == experiment.data
    assert resolved(experiment).trunk.compute_dtype == "float32"  # on the CPU, where the tests run


def test_a_folder_with_something_else_is_refused_untouched(tiny, tmp_path):
    source = tiny.csv(tmp_path / "tiny.csv")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="not empty and not a run folder"):
        train_run(tiny.experiment(source), tmp_path / "thesis", SilentReporter())
    assert os.listdir(tmp_path / "thesis") == ["chapter.txt"]
    with pytest.raises(CheckpointError, match="is a file, not a run folder"):
        train_run(tiny.experiment(source), source, SilentReporter())


def test_a_mistake_in_the_data_leaves_a_folder_that_can_be_used(tiny, tmp_path):
    source = tmp_path / "tiny.csv"
    with pytest.raises(DataError, match="no such file"):
        train_run(tiny.experiment(source, "train.epochs=1"), tmp_path / "run", SilentReporter())
    tiny.csv(source)
    train_run(tiny.experiment(source, "train.epochs=1"), tmp_path / "run", SilentReporter())


def test_a_newer_format_is_refused_by_name(run):
    path = run / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["provenance"]["format"] = FORMAT + 1
    path.write_text(yaml.safe_dump(content))
    newer = rf"format {FORMAT + 1} is newer than this version of ofa-jax reads \({FORMAT}\)\. Upgrade ofa-jax"
    with pytest.raises(CheckpointError, match=newer):
        read_config(run)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [", "not readable as YAML"),
        ("- 1", "is not a mapping of settings"),
        ("provenance: {format: one}", r"format: .*integer \(found 'one'\)"),
        ("provenance: {format: 3}", "versions: field required"),
        ("data: {source: a}", "no `provenance`"),
        ("", "is not a mapping of settings"),
    ],
)
def test_a_settings_file_of_something_else_is_refused(run, content, said):
    (run / "config.yaml").write_text(content)
    with pytest.raises(CheckpointError, match=said):
        read_config(run)


def edit(run: Path, path: str, value: Any) -> None:
    content = yaml.safe_load((run / "config.yaml").read_text())
    *sections, name = path.split(".")
    section = content
    for part in sections:
        section = section[part]
    if value is None:
        del section[name]
    else:
        section[name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("task.horizon", 4, r"was changed since training: task\.horizon was 8, is now 4"),
        ("protocol", "published", "protocol was 'strict', is now 'published'"),
        ("data.ratios", [0.5, 0.25, 0.25], r"data\.ratios was .*, is now \[0\.5, 0\.25, 0\.25\]"),
        ("data.season", 7, r"data\.season was None, is now 7"),
        ("provenance.data_sha256", 64 * "0", "was changed since training: settings or provenance differ"),
    ],
)
def test_settings_that_were_edited_after_training_are_named(run, path, value, said):
    edit(run, path, value)
    with pytest.raises(CheckpointError, match=said):
        open_run(run)
    if not path.startswith("provenance"):
        shutil.rmtree(run / "bundle")  # nothing was measured yet, but the settings are not those of the start
        with pytest.raises(
            CheckpointError, match="was changed since training: settings or provenance differ"
        ):
            read_config(run)


def test_settings_that_change_no_result_may_be_edited(run):
    assert open_run(run)[0].names == ("a", "b")
    for path, value in (("train.eval_batch_size", 8), ("train.epochs", 9), ("data.source", "moved.csv")):
        edit(run, path, value)  # which also lays out the file otherwise
    experiment, _ = read_config(run)
    assert (experiment.train.epochs, experiment.data.source) == (9, "moved.csv")


def test_there_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "none", Path(__file__)):
        with pytest.raises(CheckpointError, match="not a run folder"):
            open_run(path)
        with pytest.raises(CheckpointError):
            load_bundle(path)


def test_a_run_without_a_bundle_yet(run):
    shutil.rmtree(run / "bundle")
    with pytest.raises(
        CheckpointError, match=r"the run has no bundle yet\. Let `ofa-jax train` finish at least one epoch"
    ):
        open_run(run)


def test_data_that_changed_since_are_noticed(tiny, tmp_path):
    source = tiny.csv(tmp_path / "tiny.csv")
    train_run(tiny.experiment(source, "train.epochs=1"), tmp_path / "run", SilentReporter())
    tiny.csv(source, rows=201)
    with pytest.raises(CheckpointError, match="the data are not those the run was trained on"):
        open_run(tmp_path / "run")


def rewrite(run: Path, section: str, value: dict[str, Any]) -> None:
    """Save the run's bundle again with other settings, as a whole and undamaged bundle."""
    loaded = load_bundle(run)
    model, own = loaded.model, {"format", "adapters", "files", "sha256"}
    meta = loaded.record.model_dump(exclude=own)
    meta["settings"] = {**meta["settings"], section: {**meta["settings"][section], **value}}
    write_bundle(
        run / "bundle",
        adapters=model.trainable["adapters"],
        targets=model.targets,
        trained=model.trainable["base"],
        lora=model.lora,
        meta=meta,
    )


@pytest.mark.parametrize(
    ("section", "value", "said"),
    [
        ("network", {"seed": 1}, "the frozen layers around the trunk differ"),
        (
            "trunk",
            {"random": {"n_embd": 16, "n_head": 2, "n_positions": 8, "seed": 1}},
            "the trunk random is not the one",
        ),
        ("adapters", {"rank": 2}, r"LoraConfig\(rank=2, .* but .* LoraConfig\(rank=4, "),
        ("task", {"horizon": 9}, "the frozen layers around the trunk differ"),
    ],
)
def test_a_bundle_that_does_not_fit_its_settings_is_refused(run, section, value, said):
    rewrite(run, section, {})
    assert load_bundle(run).names == ("a", "b")
    rewrite(run, section, value)
    with pytest.raises(CheckpointError, match=said):
        load_bundle(run)


def test_nothing_to_train_is_refused(tiny, tmp_path):
    experiment = tiny.experiment(tiny.csv(tmp_path / "tiny.csv"), "rules=[[freeze, .*]]")
    with pytest.raises(TrainError, match="the rules freeze every parameter"):
        train_run(experiment, tmp_path / "run", SilentReporter())


def test_names_with_brackets_are_printed_as_they_stand(tiny, tmp_path, capsys):
    source = tiny.csv(tmp_path / "tiny.csv")
    lines = source.read_text().splitlines()
    source.write_text(
        "\n".join(["date,a,flow [m3/h] [/x]", *(line.rpartition(",")[0] + ",5" for line in lines[1:])])
    )
    with ConsoleReporter() as reporter:
        train_run(tiny.experiment(source, "train.epochs=1"), tmp_path / "run", reporter)
    captured = capsys.readouterr()
    assert captured.out == ""
    series, season, notice, epoch = captured.err.splitlines()
    assert series == "tiny.csv: 2 series (`a`, `flow [m3/h] [/x]`), time in `date`"
    assert "season length m = 24" in season
    assert notice == "constant in the training part, so scaled by 1: flow [m3/h] [/x]"
    assert epoch.startswith("epoch 1: train loss ")
    assert epoch.endswith("  best")


def test_the_live_line_of_a_terminal(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with ConsoleReporter() as reporter:
        train_run(
            tiny.experiment(tiny.csv(tmp_path / "tiny.csv"), "train.epochs=2"), tmp_path / "run", reporter
        )
    shown = capsys.readouterr().err
    assert "epoch 1/2" in shown
    assert "windows/s" in shown


@pytest.mark.slow  # trains
def test_a_target_that_moved_is_given_by_its_path(tiny, tmp_path):
    experiment = tiny.of_task("zero_shot", tmp_path, "train.epochs=1")
    train_run(experiment, tmp_path / "run", SilentReporter())
    there = Path(experiment.data.target).rename(tmp_path / "elsewhere.tsf")
    with pytest.raises(
        DataError, match=r"target: the data file .*target\.tsf is gone\. Give its current path"
    ):
        open_run(tmp_path / "run")
    assert open_run(tmp_path / "run", target=str(there))[1].task.tables["test"].size > 0


def test_a_target_for_a_run_without_one_is_refused(tiny_run):
    with pytest.raises(ConfigError, match="a run of the task 'forecast' has no target"):
        open_run(tiny_run, target="other.tsf")


def test_a_folder_that_was_begun_and_not_used_is_removed_by_its_owner_alone(tmp_path):
    run = tmp_path / "run"
    with locked_folder(run, "config.yaml", [], kind="run"):
        with pytest.raises(CheckpointError, match="another process"):
            locked_folder(run, "config.yaml", [], kind="run").__enter__()
        assert (run / ".lock").exists()
    assert not run.exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="all names are UTF-8 there")
def test_a_file_and_a_folder_whose_names_are_not_utf8(tiny, tmp_path):
    source = os.fsdecode(os.fsencode(tmp_path) + b"/x\xff.csv")
    experiment = tiny.experiment(tiny.csv(Path(source)), "train.epochs=1")
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff"))
    with pytest.raises(CheckpointError, match=r"/run\\udcff: its path is not UTF-8"):
        train_run(experiment, run, SilentReporter())
    assert not run.exists()
    train_run(experiment, tmp_path / "run", SilentReporter())
    loaded, _ = open_run(tmp_path / "run")
    assert loaded.experiment.data.source == "x\ufffd.csv"


def test_leftovers_of_killed_writers_are_removed_when_a_folder_is_locked(run):
    (run / ".config.yaml.x1.ofa-tmp").write_text("half")
    shutil.copytree(run / "bundle", run / ".bundle.x2.ofa-tmp")
    (run / "bundle").rename(run / ".bundle.ofa-old")
    with locked_folder(run, "config.yaml", ["bundle"], kind="run folder"):
        assert sorted(entry.name for entry in run.iterdir() if entry.name != "checkpoints") == [
            ".lock",
            "bundle",
            "config.yaml",
            "metrics.jsonl",
        ]
        with (
            pytest.raises(CheckpointError, match="another process"),
            locked_folder(run, "config.yaml", [], kind=""),
        ):
            pass

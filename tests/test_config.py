"""Settings: what a file, a recipe and overrides make together, how mistakes are told, and the numbers of every published config."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from ofa_jax.config import RECIPES, Experiment, build_experiment, dump_experiment, installed_configs, load_experiment, settings
from ofa_jax.errors import ConfigError
from ofa_jax.train import assemble
from ofa_jax.train.assemble import footprint

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))
MINIMAL = {"data": {"source": "etth1"}}


def refused(content, *overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        build_experiment(content, overrides)
    return str(caught.value)


def test_recipes_are_these():
    """Rules and numbers word for word, as a whole: a change here is a change of a published method."""
    assert RECIPES == {
        "uniform": {
            "network": {"patch": 16, "stride": 8, "positions": True},
            "adapters": {"rank": 16, "alpha": 16.0, "scaling": "rslora", "init": "peft_gaussian", "dropout": 0.01},
            "rules": [["adapt", "gpt2/wpe/embedding"], ["adapt", "out_layer/kernel"], ["freeze", ".*"]],
        },
        "reference": {
            "network": {"patch": 16, "stride": 8, "positions": True},
            "adapters": {"rank": 16, "alpha": 16.0, "scaling": "rslora", "init": "peft_gaussian", "dropout": 0.01},
            "rules": [["adapt", "gpt2/wpe/embedding"], ["adapt", "out_layer/kernel"], ["freeze", ".*"]],
        },
        "paper": {
            "network": {"patch": 16, "stride": 16, "positions": False},
            "adapters": {"rank": 16, "alpha": 1.0, "scaling": "rslora", "init": "theorem", "dropout": 0.01},
            "rules": [["adapt", "out_layer/kernel"], ["freeze", ".*"]],
        },
        "gpt4ts": {
            "network": {"patch": 16, "stride": 8, "positions": True},
            "rules": [["train", r"gpt2/(wpe|ln_f|h/\d+/ln_[12])/.*"], ["train", "(?!gpt2/).*"], ["freeze", ".*"]],
        },
        "full": {"network": {"patch": 16, "stride": 8, "positions": True}, "rules": [["train", ".*"]]},
        "head_only": {
            "network": {"patch": 16, "stride": 8, "positions": True},
            "rules": [["train", "out_layer/.*"], ["freeze", ".*"]],
        },
    }


def test_defaults_are_these():
    assert dump_experiment(build_experiment(MINIMAL)) == {
        "data": {
            "source": "etth1",
            "target": None,
            "parts": None,
            "timestamp_column": None,
            "columns": None,
            "missing": "error",
            "timestamps": None,
            "split": None,
            "ratios": [0.7, 0.1, 0.2],
            "percent": 100,
            "season": None,
        },
        "task": {
            "name": "forecast",
            "input_length": 336,
            "horizon": 96,
            "channels": None,
            "classes": None,
            "calendar": None,
            "loss": "mse",
            "step": 1,
            "anomaly_ratio": 1,
            "mask_rate": 0.25,
            "cut_range": 1.5,
        },
        "trunk": {
            "source": "openai-community/gpt2",
            "revision": None,
            "n_layer": 6,
            "random": {"n_embd": 768, "n_head": 12, "n_positions": 1024, "seed": 0},
            "dropout": None,
            "compute_dtype": "auto",
            "remat": False,
        },
        "protocol": "strict",
        "recipe": "reference",
        "rules": [["adapt", "gpt2/wpe/embedding"], ["adapt", "out_layer/kernel"], ["freeze", ".*"]],
        "network": {
            "patch": 16,
            "stride": 8,
            "read_width": None,
            "embed_width": None,
            "segment": 25,
            "positions": True,
            "seed": 0,
        },
        "adapters": {"rank": 16, "alpha": 16.0, "scaling": "rslora", "init": "peft_gaussian", "dropout": 0.01, "seed": 0},
        "train": {
            "epochs": 10,
            "batch_size": 256,
            "optimizer": "adam",
            "clip_norm": None,
            "learning_rate": 1e-4,
            "schedule": "cosine",
            "decay": 0.5,
            "cosine_epochs": 20,
            "lowest_rate": 1e-8,
            "patience": 3,
            "seed": 2021,
            "chunk": 32,
            "eval_batch_size": 512,
            "log_every": 50,
            "checkpoint_minutes": 5,
        },
    }


def test_recipe_then_file_then_overrides():
    content = MINIMAL | {"recipe": "paper", "network": {"stride": 4}, "adapters": {"rank": 8}}
    experiment = build_experiment(content, ["adapters.rank=2", "network.seed=7"])
    network = experiment.network
    assert (network.patch, network.stride, network.positions, network.seed) == (16, 4, False, 7)
    assert (experiment.adapters.rank, experiment.adapters.alpha, experiment.adapters.init) == (2, 1.0, "theorem")
    assert experiment.rules == (("adapt", "out_layer/kernel"), ("freeze", ".*"))


def test_an_override_of_the_recipe_changes_the_numbers_below_the_file():
    experiment = build_experiment({**MINIMAL, "network": {"patch": 24}}, ["recipe=paper"])
    assert (experiment.network.patch, experiment.network.stride, experiment.adapters.alpha) == (24, 16, 1.0)


def test_rules_replace_the_recipe_s():
    experiment = build_experiment(MINIMAL, ["rules=[[train, 'out_layer/.*'], [freeze, '.*']]"])
    assert experiment.rules == (("train", "out_layer/.*"), ("freeze", ".*"))


def test_building_changes_neither_its_arguments_nor_the_recipes():
    content = {"data": {"source": "etth1"}, "network": {"stride": 4}}
    before = json.dumps([content, RECIPES])
    build_experiment(content, ["network.stride=2", "data.source=other.csv", "adapters.rank=3", "train.epochs=1"])
    assert json.dumps([content, RECIPES]) == before


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.learning_rate=1e-4", "train.learning_rate", 1e-4),  # YAML 1.1 reads 1e-4 as text
        ("train.learning_rate=5", "train.learning_rate", 5.0),
        (" train.epochs =3", "train.epochs", 3),
        ("train.epochs='4'", "train.epochs", 4),
        ("data.columns=[OT, HUFL]", "data.columns", ("OT", "HUFL")),
        ("data.columns=null", "data.columns", None),
        ("data.columns=", "data.columns", None),
        ("data.source=a=b.csv", "data.source", "a=b.csv"),
        ("data.ratios=[0.6, 0.2, 0.2]", "data.ratios", (0.6, 0.2, 0.2)),
        ("trunk.random.n_embd=64", "trunk.random.n_embd", 64),
        ("trunk.dropout=0", "trunk.dropout", 0.0),
        ("network.positions=no", "network.positions", False),
        ("adapters.alpha=0", "adapters.alpha", 0),
        ("recipe=full", "recipe", "full"),
    ],
)
def test_overrides_are_yaml(override, path, value):
    found = build_experiment(MINIMAL, [override])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_the_last_of_two_overrides_wins():
    assert build_experiment(MINIMAL, ["train.epochs=3", "train.epochs=5"]).train.epochs == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "--set: there is no setting 'train.epoch'. Did you mean train.epochs"),
        ("epochs=3", "--set: there is no setting 'epochs'. Did you mean train.epochs"),
        ("horizon=3", "there is no setting 'horizon'. Did you mean task.horizon"),
        ("task.horzon=3", "Did you mean task.horizon"),
        ("qqqqqq=3", "there is no setting 'qqqqqq'. `ofa-jax train --help` lists all settings"),
        ("trunk.random={n_embd: 4}", "there is no setting 'trunk.random'. Did you mean trunk.random."),
        ("train.epochs", "'train.epochs' is not of the form PATH=VALUE. Write for example train.epochs=3"),
        ("=3", "'=3' is not of the form PATH=VALUE"),
        ("train.epochs=[1", "the value of 'train.epochs' is not readable as YAML"),
    ],
)
def test_an_override_that_cannot_be_is_told(override, message):
    assert message in refused(MINIMAL, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=0", "--set: train.epochs: input should be greater than or equal to 1 (found 0)"),
        ("train.epochs=many", "train.epochs: input should be a valid integer, unable to parse string as an integer (found 'many')"),
        ("train.epochs=2.5", "train.epochs: input should be a valid integer, got a number with a fractional part (found 2.5)"),
        ("train.epochs=true", "train.epochs: input should be neither true nor false (found True)"),
        ("train.learning_rate=0", "train.learning_rate: input should be greater than 0 (found 0)"),
        ("train.learning_rate=.inf", "train.learning_rate: input should be a finite number (found inf)"),
        ("train.learning_rate=yes", "train.learning_rate: input should be neither true nor false (found True)"),
        ("adapters.dropout=1", "adapters.dropout: input should be less than 1 (found 1)"),
        ("adapters.scaling=dora", "adapters.scaling: input should be 'rslora', 'lora' or 'none' (found 'dora')"),
        ("network.seed=4294967296", "network.seed: input should be less than 4294967296 (found 4294967296)"),
        ("data.percent=101", "data.percent: input should be less than or equal to 100 (found 101)"),
        ("data.ratios=[0.7, 0.1, 0.3]", "data: ratios (0.7, 0.1, 0.3) must be positive and add up to 1"),
        ("data.source=", "data.source: input should be a valid string (found None)"),
        ("task.name=imputing", "'classification' or 'imputation' (found 'imputing')"),
        ("rules=[[melt, '.*']]", "rules.0.0: input should be 'freeze', 'train', 'adapt' or 'train_and_adapt' (found 'melt')"),
        ("rules=[[freeze]]", "rules.0.1 is missing"),
    ],
)
def test_a_wrong_value_is_told_with_its_path(override, message):
    assert message in refused(MINIMAL, override)


def test_all_mistakes_are_told_at_once():
    content = {"data": {"sorce": "x"}, "train": {"epochs": 0, "lr": 1}, "trian": {}, "network": {"patch": "p"}}
    message = refused(content, "task.horizon=-1")
    assert message.startswith("config: ")
    for part in (
        "data.source is missing",
        "data.sorce is not a setting (did you mean data.source",
        "train.epochs: input should be greater than or equal to 1 (found 0)",
        "train.lr is not a setting",
        "trian is not a setting",
        "network.patch: input should be a valid integer",
        "task.horizon: input should be greater than or equal to 0 (found -1)",
    ):
        assert part in message
    assert message.count(";") == 6


def test_an_unknown_recipe_is_the_only_mistake_told():
    message = refused(MINIMAL | {"recipe": "papr"})
    assert "recipe: input should be 'uniform', 'reference', 'paper', 'gpt4ts', 'full' or 'head_only' (found 'papr')" in message
    assert ";" not in message


def test_a_section_left_empty_is_told():
    assert "train: input should be a valid dictionary" in refused(MINIMAL | {"train": None})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no mapping of settings"),
        ("- a\n- b\n", "holds no mapping of settings"),
        ("data: [", "not readable as YAML"),
        ("data: {source: !!python/object:os.system x}", "not readable as YAML"),
        ("data: {source: a}\ntrain: {epochs: 1}\ntrain: {patience: 2}\n", "'train' stands twice"),
        ("data: {source: a, source: b}\n", "'source' stands twice in \"<unicode string>\", line 1, column 19"),
    ],
)
def test_a_file_that_is_no_settings_is_told_with_its_name(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_anchors_and_merges_of_yaml_work(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {source: a}\ntrunk: {random: &shape {n_embd: 8, n_head: 2}}\n")
    assert load_experiment(path).trunk.random.n_embd == 8
    path.write_text("data: {source: a}\nnetwork: {<<: {patch: 8, stride: 4}, stride: 2}\n")
    network = load_experiment(path).network
    assert (network.patch, network.stride) == (8, 2)


def test_files_that_are_not_there_or_not_text_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere: there is no such file\. Name a YAML file, or one of csv, demo, long/etth1"):
        load_experiment(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="this is a folder, not a YAML file"):
        load_experiment(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"data: \xff\xfe")
    with pytest.raises(ConfigError, match=r"bytes\.yaml: not readable as YAML"):
        load_experiment(tmp_path / "bytes.yaml")


def test_settings_lists_every_leaf_once_with_a_meaning():
    listed = {setting.path: setting for setting in settings()}
    dumped = dump_experiment(build_experiment(MINIMAL))

    def leaves(node, prefix=""):
        for name, value in node.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    assert list(listed) == list(leaves(dumped))
    assert all(setting.description for setting in listed.values())
    assert listed["data.source"].default == "required"
    assert listed["network.patch"].default == listed["rules"].default == "from the recipe"
    assert listed["adapters.scaling"].type == "rslora | lora | none"
    assert listed["trunk.dropout"].type == "float | none"
    assert listed["data.timestamps"].type == "error | as_is | none"
    assert listed["data.columns"].type == "list | none"
    assert listed["train.epochs"].type == "int"


@pytest.mark.parametrize("recipe", RECIPES)
def test_dumped_settings_build_the_same_experiment(recipe):
    overrides = ["train.learning_rate=3e-7", "data.columns=[a, b]", "trunk.dropout=0.3", "adapters.alpha=0.1", "data.season=7"]
    experiment = build_experiment(MINIMAL | {"recipe": recipe}, overrides)
    dumped = dump_experiment(experiment)
    assert build_experiment(dumped) == experiment
    assert build_experiment(json.loads(json.dumps(dumped))) == experiment
    assert build_experiment(yaml.safe_load(yaml.safe_dump(dumped))) == experiment


def test_a_run_s_own_config_is_read(tmp_path):
    experiment = build_experiment(MINIMAL)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"provenance": {"format": 1}, **dump_experiment(experiment)}))
    assert load_experiment(tmp_path / "config.yaml") == experiment


def test_settings_cannot_be_changed_afterwards():
    experiment = build_experiment(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        experiment.train.epochs = 3


def test_installed_configs_are_those_of_the_repository():
    assert installed_configs() == FILES


@pytest.mark.parametrize("name", FILES)
def test_every_config_loads_by_any_of_its_names(name, tmp_path, monkeypatch):
    experiment = load_experiment(CONFIGS / f"{name}.yaml")
    assert isinstance(experiment, Experiment)
    monkeypatch.chdir(tmp_path)
    for other in (name, f"{name}.yaml", f"configs/{name}.yaml", f"configs/{name}"):
        assert load_experiment(other) == experiment


@pytest.mark.parametrize("name", FILES)
def test_header_states_command_and_trainable_parameters(name):
    """A header without a number is that of a config that has no data of its own."""
    header = "".join(line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "ofa-jax " in header
    stated = re.search(r"Trainable parameters( at horizons 96 / 192 / 336 / 720)?: ([\d,]+(?: / [\d,]+)*)", header)
    if stated is None:
        assert name == "csv"
        return
    numbers = [int(number.replace(",", "")) for number in stated[2].split(" / ")]
    horizons = [f"task.horizon={h}" for h in (96, 192, 336, 720)] if stated[1] else [None]
    assert [footprint(load_experiment(CONFIGS / f"{name}.yaml", [h] if h else [])).trainable for h in horizons] == numbers


PUBLISHED = {  # protocol §1, rank 16
    "etth1": (546_304, 547_840, 550_144, 556_288),
    "etth2": (546_304, 547_840, 550_144, 556_288),
    "ettm1": (816_640, 818_176, 820_480, 826_624),
    "weather": (816_640, 818_176, 820_480, 826_624),
    "ettm2": (435_712, 437_248, 439_552, 445_696),
}


@pytest.mark.parametrize(("name", "index"), [(name, index) for name in PUBLISHED for index in range(4)])
def test_trainable_parameters_are_the_published_ones(name, index):
    counts = footprint(load_experiment(f"long/{name}", [f"task.horizon={(96, 192, 336, 720)[index]}"]))
    assert counts.trainable == counts.adapters == PUBLISHED[name][index]
    assert counts.trained_base == 0
    assert counts.bundle_bytes == 4 * counts.trainable


@pytest.mark.parametrize(
    ("overrides", "trainable"),
    [
        (["recipe=gpt4ts"], 3_916_128),
        (["recipe=gpt4ts", "task.horizon=720"], 24_044_496),
        (["adapters.rank=2"], 68_288),
        (["adapters.rank=2", "task.horizon=336"], 68_768),
        (["adapters.rank=1024"], 34_963_456),
        (["adapters.rank=1024", "task.horizon=336"], 35_209_216),
        (["recipe=head_only"], 768 * 42 * 96 + 96),
        (["recipe=paper"], 16 * (768 * 22 + 96)),
    ],
)
def test_trainable_parameters_of_other_recipes_and_ranks(overrides, trainable):
    assert footprint(load_experiment("long/etth1", overrides)).trainable == trainable


def test_whole_footprint_of_the_first_config():
    """Frozen: six blocks of GPT-2, its positions and last norm, ``in_layer`` and ``out_layer``."""
    block = 12 * 768**2 + 13 * 768
    base = 6 * block + 1024 * 768 + 2 * 768 + (16 + 1) * 768 + 768 * 42 * 96 + 96
    counts = footprint(load_experiment("long/etth1"))
    assert (counts.frozen, counts.inference_bytes) == (base, 4 * base)
    full = footprint(load_experiment("long/etth1", ["recipe=full"]))
    assert (full.trainable, full.frozen, full.adapters) == (base, 0, 0)


def test_counting_needs_no_weights(monkeypatch):
    def loaded(*args, **kwargs):
        raise AssertionError("weights were asked for")

    for name in ("load_trunk", "random_trunk", "init_base", "init_adapters"):
        monkeypatch.setattr(assemble, name, loaded)
    monkeypatch.setattr("ofa_jax.model.weights.resolve", loaded)
    assert footprint(load_experiment("long/etth1")).trainable == 546_304
    assert footprint(load_experiment("quick/etth1")).trainable == 61_952


def test_a_folder_does_not_hide_an_installed_settings_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "csv").mkdir()
    assert load_experiment("csv").data.source == "yours.csv"


def test_mistakes_are_laid_where_they_were_made(tmp_path):
    with pytest.raises(ConfigError, match=r"^--set: train\.epochs: "):
        load_experiment("csv", ["train.epochs=abc"])
    with pytest.raises(ConfigError, match=r"^--set: data\.columns should be a list, such as \[load\]"):
        load_experiment("csv", ["data.columns=load"])
    path = tmp_path / "mine.yaml"
    path.write_text("data: {source: a.csv}\ntrain: {epochs: abc}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: train\.epochs: "):
        load_experiment(path, ["train.chunk=2"])

"""Every task and its baselines: what each computes, how much it trains, and that it is trained once and
kept."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ofa_jax.baselines.compare import compare, model_name
from ofa_jax.baselines.trained import trained_baselines
from ofa_jax.build import RANDOM, footprint
from ofa_jax.config.schema import Experiment
from ofa_jax.errors import CheckpointError, ConfigError, Interrupted
from ofa_jax.files import sha256_file
from ofa_jax.model.convert import save_trunk
from ofa_jax.model.gpt2 import GPT2Config
from ofa_jax.model.linear import (
    dlinear,
    init_dlinear,
    init_linear_classifier,
    linear_classifier,
    masked_dlinear,
    moving_average,
    nlinear,
)
from ofa_jax.model.trees import flatten
from ofa_jax.model.weights import random_trunk
from ofa_jax.runs.folder import BASELINES, NEUTRAL, resolved
from ofa_jax.runs.train import open_run, read_data, train_run
from ofa_jax.tasks.base import TaskData
from ofa_jax.tasks.naive import interpolate, window_mean, zeros
from ofa_jax.train.events import CLOCK_FIELDS, read_events
from ofa_jax.train.progress import SilentReporter

TASKS = ("forecast", "zero_shot", "short_term", "anomaly", "classification", "imputation")

UNTRAINED = {
    "forecast": ["seasonal naive (24 steps)", "last value"],
    "zero_shot": ["seasonal naive", "Naive2"],
    "short_term": ["seasonal naive", "Naive2"],
    "anomaly": ["distance from the mean", "random scores"],
    "classification": ["most frequent class"],
    "imputation": ["linear interpolation", "mean of the window"],
}
LINEAR = {
    "nlinear": "NLinear",
    "dlinear": "DLinear",
    "ridge": "ridge regression",
    "linear": "softmax regression",
}
NETWORKS = {
    "attention": "one attention layer (PAttn)",
    "no_trunk": "no trunk, same recipe",
    "gpt4ts": "gpt4ts, random trunk",
}
# one layer of attention of width 8: four maps and a norm; GPT4TS trains two norms of the block, ln_f and 24
# positions
PATTN, TUNED = 4 * (8 * 8 + 8) + 16, 3 * 16 + 24 * 8
TRAINABLE = {
    "forecast": {
        "nlinear": 8 * 3 + 3,
        "dlinear": 2 * (8 * 3 + 3),
        "ridge": 8 * 3 + 3,
        "attention": PATTN + 115,
        "no_trunk": 2 * (24 + 3),
        "gpt4ts": TUNED + 115,
    },
    "zero_shot": {
        "nlinear": 8 * 3 + 3,
        "dlinear": 2 * (8 * 3 + 3),
        "attention": PATTN + 147,
        "no_trunk": 2 * (40 + 3),
        "gpt4ts": TUNED + 147,
    },
    "short_term": {
        "nlinear": 6 * 3 + 3,
        "dlinear": 2 * (6 * 3 + 3),
        "attention": PATTN + 96,
        "no_trunk": 96,
        "gpt4ts": TUNED + 96,
    },
    "anomaly": {
        "dlinear": 2 * (20 * 20 + 20),
        "attention": PATTN + 21,
        "no_trunk": 2 * (6 + 3),
        "gpt4ts": TUNED + 21,
    },
    "classification": {
        "linear": 20 * 3 + 3,
        "attention": PATTN + 395,
        "no_trunk": 2 * (40 + 3),
        "gpt4ts": TUNED + 395,
    },
    "imputation": {
        "dlinear": 2 * (8 * 8 + 8),
        "attention": PATTN + 114,
        "no_trunk": 2 * (8 + 2),
        "gpt4ts": TUNED + 114,
    },
}
MODEL = {
    "forecast": 118,
    "zero_shot": 150,
    "short_term": 400,
    "anomaly": 82,
    "classification": 150,
    "imputation": 84,
}
WINDOWS = {
    "forecast": 32,
    "zero_shot": 7,
    "short_term": 10,
    "anomaly": 6,
    "classification": 15,
    "imputation": 19,
}
METRICS = {
    "forecast": ["mse", "mae"],
    "zero_shot": ["smape", "mase", "owa"],
    "short_term": ["smape", "mase", "owa"],
    "classification": ["accuracy", "error", "cross_entropy"],
    "imputation": ["mse", "mae"],
}


class Listener(SilentReporter):
    """Counts epochs, and stops the run after some chunks."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.epochs = self.chunks = 0
        self.stop_after = stop_after

    def begin(self, epoch: int, epochs: int, windows: int, done: int) -> None:
        self.epochs += 1

    def advance(self, windows: int, loss: float) -> None:
        self.chunks += 1
        if self.chunks == self.stop_after:
            signal.raise_signal(signal.SIGTERM)


def prepared(experiment: Experiment) -> tuple[Experiment, TaskData]:
    experiment = resolved(experiment)
    data = read_data(experiment)
    return experiment.replace({"task": data.settings}), data


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory) -> Callable[[str], Path]:
    """The run of a task, trained when it is first asked for."""

    @cache
    def run_of(task: str) -> Path:
        folder = tmp_path_factory.mktemp(task)
        train_run(tiny.of_task(task, folder), folder / "run", Listener())
        return Path(folder / "run")

    return run_of


QUICK = ("forecast",)


@pytest.fixture(  # the tests of one run are together; without marks, a run of every task takes a minute
    scope="module",
    params=[pytest.param(task, marks=[] if task in QUICK else pytest.mark.slow) for task in TASKS],
)
def trained(request, runs) -> tuple[str, Path]:
    """A run of each task."""
    return request.param, runs(request.param)


def test_a_run_of_every_task_says_its_protocol_everywhere(trained):
    task, run = trained
    loaded, data = open_run(run)
    comparison = compare(loaded, data, reporter=Listener())
    content = comparison.to_dict()
    assert set(content) == {"task", "split", "windows", "protocol", "season", "notices", "methods"}
    assert set(content["methods"][0]) == {"method", *comparison.rows[0].metrics, "trainable", "bytes"}
    assert (content["task"], content["protocol"], content["split"], content["windows"]) == (
        task,
        "strict",
        "test",
        WINDOWS[task],
    )
    assert json.loads(json.dumps(content)) == content
    assert [row["method"] for row in content["methods"]] == [
        "One-for-All (reference, random trunk)",
        *UNTRAINED[task],
    ]
    assert [row["trainable"] for row in content["methods"]] == [MODEL[task], *(0 for _ in UNTRAINED[task])]
    assert [row["bytes"] for row in content["methods"]] == [4 * MODEL[task], *(0 for _ in UNTRAINED[task])]
    assert list(comparison.metric_names) == METRICS.get(task, list(comparison.rows[0].metrics))
    assert all(np.isfinite(value) for row in comparison.rows for value in row.metrics.values())

    epochs = [event for event in read_events(run / "metrics.jsonl") if event["event"] == "epoch"]
    assert [event["protocol"] for event in epochs] == ["strict", "strict"]
    meta = json.loads((run / "bundle" / "ofa.json").read_text())
    assert meta["protocol"] == meta["settings"]["protocol"] == "strict"
    assert not (run / BASELINES).exists()


def test_the_validation_score_is_the_one_of_training(trained):
    task, run = trained
    loaded, data = open_run(run)
    comparison = compare(loaded, data, split="validation", baselines=None, reporter=Listener())
    stored = json.loads((run / "bundle" / "ofa.json").read_text())["validation"]
    found = comparison.rows[0].metrics
    assert {name: found[name] for name in stored} == stored
    shown = [row.method for row in comparison.rows[1:]]
    assert shown == [
        name for name in UNTRAINED[task] if name != "random scores"
    ]  # a threshold is for the test part alone


@pytest.mark.parametrize("task", TASKS)
def test_baselines_of_every_task(tiny, tmp_path, task):
    """Names, titles, order, how many parameters each trains, and with which settings."""
    experiment, data = prepared(tiny.of_task(task, tmp_path))
    baselines = {baseline.name: baseline for baseline in trained_baselines(experiment, data)}
    assert list(baselines) == list(TRAINABLE[task])
    assert {name: baseline.title for name, baseline in baselines.items()} == {
        name: (LINEAR | NETWORKS)[name] for name in TRAINABLE[task]
    }
    for name, baseline in baselines.items():
        _, frozen, trainable = baseline.build()
        assert sum(leaf.size for leaf in jax.tree.leaves(trainable)) == TRAINABLE[task][name], name
        if name in LINEAR or name == "attention":
            assert not flatten(frozen)
        assert baseline.settings.seed == experiment.train.seed
        if name in NETWORKS:
            chosen = baseline.settings.micro_batch, baseline.settings.eval_batch_size
            assert None not in chosen  # those of a CPU
            unchosen = {"micro_batch": None, "eval_batch_size": None}
            assert baseline.settings.model_dump() | unchosen == experiment.train.model_dump() | unchosen
        if name in ("attention", "no_trunk"):
            assert not [path for path in flatten({"f": frozen, "t": trainable}) if "gpt2" in path]
    assert list(data.untrained) + list(data.naive) == UNTRAINED[task]
    (chosen,) = trained_baselines(experiment, data, only=("no_trunk",))
    assert chosen.name == "no_trunk"


@pytest.mark.parametrize("task", TASKS)
def test_an_unknown_baseline_is_one_error(tiny, tmp_path, task):
    experiment, data = prepared(tiny.of_task(task, tmp_path))
    names = ", ".join(TRAINABLE[task])
    for wrong in ("patchtst", "", "DLinear", "random_trunk"):
        with pytest.raises(ConfigError) as caught:
            trained_baselines(experiment, data, only=("no_trunk", wrong))
        assert (
            str(caught.value)
            == f"baseline: the task {task!r} has no baseline {wrong!r}. Choose from {names}."
        )


def test_baselines_of_a_real_trunk(tiny, tmp_path):
    """Its shape goes into the baselines, and a random trunk of that shape is one of them; nothing is called
    random any more."""
    save_trunk(
        random_trunk(GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=40), seed=9), tmp_path / "trunk"
    )
    experiment, data = prepared(tiny.of_task("forecast", tmp_path, f"trunk.source={tmp_path / 'trunk'}"))
    baselines = {baseline.name: baseline for baseline in trained_baselines(experiment, data)}
    assert list(baselines) == [
        "nlinear",
        "dlinear",
        "ridge",
        "attention",
        "no_trunk",
        "random_trunk",
        "gpt4ts",
    ]
    assert [baselines[name].title for name in ("random_trunk", "gpt4ts")] == [
        "random trunk, same recipe",
        "gpt4ts",
    ]
    _, frozen, trainable = baselines["random_trunk"].build()
    wanted = random_trunk(GPT2Config(n_embd=16, n_layer=1, n_head=4, n_positions=40), seed=0).params
    for path, leaf in flatten(wanted).items():
        np.testing.assert_array_equal(flatten(frozen)[f"gpt2/{path}"], leaf)
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(trainable))
        == footprint(experiment).trainable
        == 2 * (40 + 16) + 2 * (48 + 3)
    )
    _, _, real = baselines["gpt4ts"].build()
    assert not np.array_equal(real["base"]["gpt2"]["wpe"]["embedding"], wanted["wpe"]["embedding"])


@pytest.mark.parametrize(
    ("overrides", "left_out"),
    [
        (["recipe=paper"], set()),  # no position embedding
        (["recipe=full"], set()),
        (["recipe=head_only"], set()),
        (["recipe=uniform"], set()),
        (["recipe=gpt4ts"], {"gpt4ts"}),
        (
            ["rules=[[adapt, gpt2/wpe/embedding], [freeze, '.*']]"],
            {"no_trunk"},
        ),  # nothing to train is left without a trunk
        (["trunk.source=attention", "recipe=full"], set()),
        (["trunk.source=none", "recipe=full"], {"no_trunk"}),
    ],
)
def test_rules_fit_each_baseline(tiny, tmp_path, overrides, left_out):
    experiment, data = prepared(tiny.of_task("forecast", tmp_path, *overrides))
    baselines = {baseline.name: baseline for baseline in trained_baselines(experiment, data)}
    without = experiment.trunk.source != RANDOM
    assert (
        baselines.keys()
        == ({"nlinear", "dlinear", "ridge", *NETWORKS} | ({"random_trunk"} if without else set())) - left_out
    )
    for baseline in baselines.values():
        assert jax.tree.leaves(baseline.build()[2])
    if without and "gpt4ts" in baselines:
        assert baselines["gpt4ts"].title == f"gpt4ts, {experiment.trunk.source} for a trunk"


def test_the_model_s_name_tells_the_trunk(runs):
    loaded, _ = open_run(runs("forecast"))

    def named(recipe: str, source: str) -> str:
        changes = {"recipe": recipe, "trunk.source": source}
        return model_name(replace(loaded, experiment=loaded.experiment.replace(changes)))

    assert named("reference", "openai-community/gpt2") == "One-for-All (reference)"
    assert named("uniform", "random") == "One-for-All (uniform, random trunk)"
    assert named("full", "none") == "full, none for a trunk"
    assert named("gpt4ts", "attention") == "gpt4ts, attention for a trunk"


def scores(run: Path, *names: str, split: Any = "test") -> tuple[Any, int]:
    loaded, data = open_run(run)
    listener = Listener()
    return compare(
        loaded, data, split=split, baselines=run / BASELINES, reporter=listener, only=names or None
    ), listener.epochs


@pytest.mark.slow
def test_a_baseline_with_other_settings_is_refused(runs, tmp_path):
    """By another version, say: other settings, another protocol, other shapes."""
    copied = Path(shutil.copytree(runs("forecast"), tmp_path / "run"))
    first, epochs = scores(copied, "nlinear")
    assert epochs == 10
    assert scores(copied, "nlinear") == (first, 0)
    place = copied / BASELINES / "nlinear"
    record = json.loads((place / "control.json").read_text())
    assert record["protocol"] == "strict"
    weights = load_file(place / "weights.safetensors")
    for changed in (
        record | {"protocol": "published"},
        record | {"settings": record["settings"] | {"epochs": 11}},
        record | {"control": "dlinear"},
    ):
        (place / "control.json").write_text(json.dumps(changed))
        with pytest.raises(
            CheckpointError, match=r"nlinear: the kept NLinear was trained with other settings\. Delete"
        ):
            scores(copied, "nlinear")
    (place / "control.json").write_text(json.dumps({"format": 2, "control": "nlinear"}))
    with pytest.raises(CheckpointError, match="protocol: field required"):
        scores(copied, "nlinear")
    save_file(
        {"kernel": weights["kernel"][:, :2].copy(), "bias": weights["bias"][:2]},
        place / "weights.safetensors",
    )
    (place / "control.json").write_text(
        json.dumps(record | {"sha256": sha256_file(place / "weights.safetensors")})
    )
    with pytest.raises(CheckpointError, match="trained with other settings"):
        scores(copied, "nlinear")


def test_a_kept_baseline_outlives_settings_that_change_no_number(runs, tmp_path):
    """Those of a version that knew fewer of them, too."""
    copied = Path(shutil.copytree(runs("forecast"), tmp_path / "run"))
    first, _ = scores(copied, "nlinear")
    path = copied / BASELINES / "nlinear" / "control.json"
    record = json.loads(path.read_text())
    free = {name.removeprefix("train.") for name in NEUTRAL if name.startswith("train.")}
    assert free == {
        "chunk",
        "checkpoint_minutes",
        "gradient_log",
        "micro_batch",
        "refit",
        "eval_batch_size",
        "parallel",
        "fsdp",
    }
    assert free <= record["settings"].keys()
    other = {
        "chunk": 7,
        "checkpoint_minutes": 1.0,
        "gradient_log": 5,
        "micro_batch": 3,
        "eval_batch_size": 512,
        "parallel": "pmap",
        "fsdp": 1,
    }
    for kept in (
        record["settings"] | other,
        {name: value for name, value in record["settings"].items() if name not in free},
    ):
        path.write_text(json.dumps(record | {"settings": kept}))
        assert scores(copied, "nlinear") == (first, 0)


def test_a_baseline_is_trained_on_fewer_devices_than_the_run(runs, tmp_path):
    """A run may come from a machine with more of them; nothing here could change its settings."""
    copied = Path(shutil.copytree(runs("forecast"), tmp_path / "run"))
    loaded, data = open_run(copied)
    changes = {"train.fsdp": 4, "train.epochs": 1}
    loaded = replace(loaded, experiment=loaded.experiment.replace(changes))
    found = compare(
        loaded, data, split="test", baselines=copied / BASELINES, reporter=Listener(), only=("no_trunk",)
    )
    assert found.rows[-1].method == NETWORKS["no_trunk"]
    assert json.loads((copied / BASELINES / "no_trunk" / "control.json").read_text())["settings"]["fsdp"] == 4


@pytest.mark.slow  # trains every baseline of every task
def test_every_baseline_is_trained_once_and_kept(trained, tmp_path):
    task, copied = trained[0], Path(shutil.copytree(trained[1], tmp_path / "run"))
    first, epochs = scores(copied)
    linear = [
        name for name in TRAINABLE[task] if name in ("nlinear", "dlinear")
    ]  # these have their own epochs, the others the run's 2
    most = (20 if task == "anomaly" else 10) * len(linear) + 2 * (len(TRAINABLE[task]) - len(linear))
    assert len(TRAINABLE[task]) <= epochs <= most
    rows = first.rows[1 + len(UNTRAINED[task]) :]
    assert [row.method for row in rows] == [(LINEAR | NETWORKS)[name] for name in TRAINABLE[task]]
    assert [row.trainable for row in rows] == list(TRAINABLE[task].values())
    assert [row.bytes for row in rows] == [4 * size for size in TRAINABLE[task].values()]
    for row in rows:
        assert row.metrics.keys() == first.rows[0].metrics.keys()
        assert all(np.isfinite(value) for value in row.metrics.values())
    assert sorted(entry.name for entry in (copied / BASELINES).iterdir()) == sorted(
        [".lock", *TRAINABLE[task]]
    )
    assert scores(copied) == (first, 0)
    with pytest.raises(ConfigError, match="has no baseline 'none'"):
        scores(copied, "none")

    for name in TRAINABLE[task]:
        record = json.loads((copied / BASELINES / name / "control.json").read_text())
        assert (record["control"], record["protocol"]) == (name, "strict")
        assert np.isfinite(list(record["validation"].values())).all()
        weights = copied / BASELINES / name / "weights.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        with pytest.raises(
            CheckpointError, match=rf"{name}: the weights of .* are damaged\. Delete this folder"
        ):
            scores(copied, name)


@pytest.mark.slow  # trains every task once more
@pytest.mark.parametrize("task", TASKS)
def test_the_published_protocol_is_said_and_kept(tiny, tmp_path, task):
    batch = {"forecast": 16, "zero_shot": 5, "classification": 8}.get(task, 4)  # fits into the smallest part
    train_run(
        tiny.of_task(task, tmp_path, "protocol=published", f"train.batch_size={batch}"),
        tmp_path / "run",
        Listener(),
    )
    name = next(iter(TRAINABLE[task]))
    comparison, _ = scores(tmp_path / "run", name)
    assert comparison.to_dict()["protocol"] == "published"
    assert comparison.rows[-1].method == LINEAR[name]
    events = read_events(tmp_path / "run" / "metrics.jsonl")
    assert {event["protocol"] for event in events if event["event"] == "epoch"} == {"published"}
    assert json.loads((tmp_path / "run" / "bundle" / "ofa.json").read_text())["protocol"] == "published"
    assert (
        json.loads((tmp_path / "run" / BASELINES / name / "control.json").read_text())["protocol"]
        == "published"
    )


def outcome(run: Path) -> dict[str, Any]:
    """What must not depend on how a run came about: every array of its last checkpoint by digest, its events,
    its bundle."""
    last = max(
        (entry for entry in (run / "checkpoints").iterdir() if entry.name.isdigit()),
        key=lambda entry: int(entry.name),
    )
    events = [
        {name: value for name, value in event.items() if name not in CLOCK_FIELDS}
        for event in read_events(run / "metrics.jsonl")
    ]
    leaves = json.loads((last / "checkpoint.json").read_text())["leaves"]
    return {
        "leaves": leaves,
        "events": events,
        "bundle": {file.name: file.read_bytes() for file in (run / "bundle").iterdir()},
    }


def test_a_stopped_run_of_every_task_ends_with_the_same_bits(trained, tiny, tmp_path):
    task, undisturbed = trained
    for chunk, after in ((2, 1), (1, 1)):
        with pytest.raises(Interrupted):
            train_run(
                tiny.of_task(task, undisturbed.parent, f"train.chunk={chunk}"),
                tmp_path / "run",
                Listener(stop_after=after),
            )
    train_run(tiny.of_task(task, undisturbed.parent), tmp_path / "run", Listener())
    found, wanted = outcome(tmp_path / "run"), outcome(undisturbed)
    assert any(leaf["path"].startswith("state/opt_state") for leaf in wanted["leaves"])
    assert found == wanted


# What each method without a trunk computes.


def windows(b: int = 3, t: int = 12, c: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(b, t, c)).cumsum(axis=1).astype(np.float32), draw.random((b, t, c)) < 0.6


def each(x: np.ndarray) -> Any:
    return np.ndindex(x.shape[0], x.shape[2])


interpolated = jax.jit(lambda x, mask: interpolate({}, {}, x, mask, channels=2))


@settings(deadline=None)  # the first example compiles
@given(st.lists(st.booleans(), min_size=12, max_size=12), st.integers(0, 2**16))
def test_interpolation_is_numpy_s(known, seed):
    x = np.random.default_rng(seed).normal(size=(1, 12, 3)).astype(np.float32)
    mask = np.ones(x.shape, bool)
    mask[0, :, 0] = known
    found = np.asarray(interpolated(np.where(mask, x, np.float32(77)), mask))
    steps, seen = np.arange(12), np.flatnonzero(known)
    wanted = np.interp(steps, seen, x[0, seen, 0].astype(np.float64)) if len(seen) else np.zeros(12)
    assert found.shape == (1, 12, 2)
    np.testing.assert_allclose(found[0, :, 0], wanted, rtol=0, atol=1e-6 * np.abs(x).max())  # float32
    np.testing.assert_array_equal(found[0, :, 1], x[0, :, 1])


def test_interpolation_by_hand():
    x = np.float32([9, 1, 9, 9, 4, 9])[None, :, None]
    mask = np.array([0, 1, 0, 0, 1, 0], bool)[None, :, None]
    np.testing.assert_allclose(
        interpolate({}, {}, x, mask, channels=1)[0, :, 0], [1, 1, 2, 3, 4, 4], rtol=1e-6
    )


def test_the_window_s_mean():
    x, mask = windows(c=3)
    mask[0, :, 0] = False
    found = np.asarray(window_mean({}, {}, jnp.asarray(np.where(mask, x, 55)), jnp.asarray(mask), channels=2))
    assert found.shape == (3, 12, 2)
    for b, c in each(found):
        wanted = x[b, mask[b, :, c], c].astype(np.float64).mean() if mask[b, :, c].any() else 0
        np.testing.assert_allclose(
            found[b, :, c], wanted, rtol=0, atol=1e-5
        )  # float32 sums of twelve values around 1


def test_zeros_give_nothing_back():
    x, _ = windows()
    np.testing.assert_array_equal(zeros({}, {}, jnp.asarray(x)), np.zeros_like(x))


def test_the_moving_average_by_hand():
    """Width 3 and 5, the ends repeated."""
    x = np.float32([3, 6, 0, 9, 12])[None, :, None]
    np.testing.assert_allclose(moving_average(x, 3)[0, :, 0], [4, 3, 5, 7, 11], rtol=1e-6)
    np.testing.assert_allclose(
        moving_average(x, 5)[0, :, 0], [15 / 5, 21 / 5, 30 / 5, 39 / 5, 45 / 5], rtol=1e-6
    )


@pytest.mark.parametrize("length", [5, 24, 25, 26, 60])
def test_the_moving_average_is_pandas_rolling_mean_of_25_steps(length):
    x, _ = windows(t=length)
    found = np.asarray(moving_average(x))
    for b, c in each(x):
        series = x[b, :, c].astype(np.float64)
        padded = pd.Series(np.concatenate([np.full(12, series[0]), series, np.full(12, series[-1])]))
        wanted = padded.rolling(25, center=True).mean().to_numpy()[12:-12]
        np.testing.assert_allclose(
            found[b, :, c], wanted, rtol=0, atol=1e-5 * np.abs(series).max()
        )  # float32 sums
        inside = pd.Series(series).rolling(25, center=True).mean().to_numpy()
        np.testing.assert_allclose(
            found[b, 12:-12, c], inside[12:-12], rtol=0, atol=1e-5 * np.abs(series).max()
        )


def plain_dlinear(weights: Mapping[str, Any], series: np.ndarray) -> np.ndarray:
    series = series.astype(np.float64)
    padded = np.concatenate([np.full(12, series[0]), series, np.full(12, series[-1])])
    trend = np.array([padded[step : step + 25].mean() for step in range(len(series))])
    parts = {"trend": trend, "rest": series - trend}
    return sum(parts[name] @ weights[name]["kernel"] + weights[name]["bias"] for name in parts)


def random_dlinear(length: int, out: int) -> dict[str, Any]:
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), init_dlinear(length, out)
    )


def test_dlinear_maps_trend_and_rest():
    (x, _), weights = windows(t=40), random_dlinear(40, 7)
    found = np.asarray(dlinear({}, weights, jnp.asarray(x)))
    assert found.shape == (3, 7, 2)
    for b, c in each(x):
        wanted = plain_dlinear(weights, x[b, :, c])
        np.testing.assert_allclose(
            found[b, :, c], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max()
        )  # float32 sums


def test_dlinear_starts_at_the_mean_of_the_window():
    x, _ = windows(t=30)
    found = dlinear({}, init_dlinear(30, 4), jnp.asarray(x))
    np.testing.assert_allclose(
        found, np.repeat(x.mean(axis=1, keepdims=True), 4, axis=1), rtol=0, atol=1e-5
    )  # float32 sums


@pytest.mark.parametrize("method", [dlinear, nlinear])
def test_a_short_window_is_filled_with_its_first_value(method):
    (x, _), weights = windows(t=9), random_dlinear(9, 3)
    trainable = weights if method is dlinear else weights["trend"]
    mask = np.broadcast_to(np.arange(9)[:, None] >= np.array([0, 4, 8])[:, None, None], x.shape)
    filled = np.where(mask, x, x[np.arange(3), [0, 4, 8]][:, None])
    found = method({}, trainable, jnp.asarray(np.where(mask, x, -99)), jnp.asarray(mask))
    np.testing.assert_array_equal(found, method({}, trainable, jnp.asarray(filled)))
    assert np.isfinite(
        method({}, trainable, jnp.asarray(x), jnp.zeros(x.shape, bool))
    ).all()  # rows that only fill a batch


def test_dlinear_with_hidden_points_reads_the_mean_of_the_others():
    (x, mask), weights = windows(), random_dlinear(12, 12)
    mask[1, :, 0] = False
    found = masked_dlinear({}, weights, jnp.asarray(np.where(mask, x, 33)), jnp.asarray(mask))
    filled = np.zeros_like(x)
    for b, c in each(x):
        seen = mask[b, :, c]
        filled[b, :, c] = np.where(seen, x[b, :, c], x[b, seen, c].mean() if seen.any() else 0)
    np.testing.assert_allclose(
        found, dlinear({}, weights, jnp.asarray(filled)), rtol=0, atol=1e-4
    )  # the means are of float32 sums


def test_the_imputing_dlinear_sees_no_calendar(tiny, tmp_path):
    experiment, data = prepared(tiny.of_task("imputation", tmp_path))
    predict, frozen, start = trained_baselines(experiment, data, only=("dlinear",))[0].build()
    x, mask = windows(t=8, c=6)
    mask[..., 2:] = True
    found = predict(frozen, start, jnp.asarray(x), jnp.asarray(mask))
    assert found.shape == (3, 8, 2)
    np.testing.assert_array_equal(
        found, predict(frozen, start, jnp.asarray(x).at[..., 2:].set(5), jnp.asarray(mask))
    )


def test_softmax_regression_is_one_map_of_all_values():
    x, _ = windows(t=4)
    weights = init_linear_classifier(4, 2, 5)
    assert {name: leaf.shape for name, leaf in weights.items()} == {"kernel": (8, 5), "bias": (5,)}
    assert not np.asarray(linear_classifier({}, weights, jnp.asarray(x))).any()
    draw = np.random.default_rng(2)
    weights = {name: draw.normal(size=leaf.shape).astype(np.float32) for name, leaf in weights.items()}
    wanted = [
        sum(x[b, t, c] * weights["kernel"][2 * t + c].astype(np.float64) for t in range(4) for c in range(2))
        + weights["bias"]
        for b in range(3)
    ]
    np.testing.assert_allclose(
        linear_classifier({}, weights, jnp.asarray(x)), wanted, rtol=0, atol=1e-5
    )  # float32 sums

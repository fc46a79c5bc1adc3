"""Short series: sizes that were not given fit them and are said, those that were given are kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ofa_jax.config.load import build_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.data.archives import LabelledStream, write_stream
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.inference import predict
from ofa_jax.model.trees import flatten
from ofa_jax.runs.bundle import load_bundle
from ofa_jax.runs.folder import read_config
from ofa_jax.runs.train import open_run, read_data, train_run, with_fitted_epochs
from ofa_jax.tasks.base import TaskData
from ofa_jax.train.progress import SilentReporter

TASKS = ("forecast", "zero_shot", "short_term", "imputation")
TRUNK = {
    "source": "random",
    "n_layer": 1,
    "random": {"n_embd": 8, "n_head": 2, "n_positions": 200},
    "dropout": 0,
}


class Notices(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def notice(self, text: str) -> None:
        self.said.append(text)


def months(path: Path, rows: int = 144) -> Path:
    steps = np.arange(rows)
    values = 100 + 2 * steps + 20 * np.sin(steps * np.pi / 6)
    dates = pd.date_range("1949-01-01", periods=rows, freq="MS")
    pd.DataFrame({"date": dates, "passengers": values}).to_csv(path, index=False)
    return path


def asked(name: str, path: Path, **sections: Any) -> Experiment:
    data = {"source": str(path)} | ({"target": str(path)} if name == "zero_shot" else {})
    settings = {"data": data, "trunk": TRUNK, **sections}
    return build_experiment({**settings, "task": {"name": name, **sections.get("task", {})}})


def completed(experiment: Experiment, data: TaskData) -> tuple[Experiment, list[str]]:
    """The settings with all that fits the data, and what is said of it."""
    found, added = with_fitted_epochs(experiment.replace({"task": data.settings}), data.task)
    return found, [*data.notices, *added]


@pytest.mark.parametrize(
    ("task", "sizes", "train"),
    [
        ("forecast", {"input_length": 42, "horizon": 16}, (4, 10)),  # 43 windows
        ("zero_shot", {"input_length": 45, "horizon": 18}, (4, 10)),
        ("short_term", {"input_length": 36, "horizon": 18}, (1, 10)),
        ("imputation", {"input_length": 96}, (1, 10)),
    ],
)
def test_144_months_are_trained_on_without_any_size(tmp_path, task, sizes, train):
    experiment = asked(task, months(tmp_path / "a.csv"))
    data = read_data(experiment)
    found, notices = completed(experiment, data)
    assert {name: getattr(found.task, name) for name in sizes} == sizes
    assert (found.train.batch_size, found.train.patience) == train
    listed = " and ".join(f"task.{name} = {value}" for name, value in sizes.items())
    said = f"the series are short, so sizes that were not given fit them: {listed}"
    assert (said in notices) == (task != "imputation")
    assert any(text.endswith(f"train.batch_size = {train[0]} and train.patience = 10") for text in notices)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_given_is_kept(tmp_path, task):
    path = months(tmp_path / "a.csv")
    given = {"task": {"input_length": 24}, "train": {"batch_size": 32}}
    experiment = asked(task, path, **given)
    found, _ = completed(experiment, read_data(experiment))
    assert (found.task.input_length, found.train.batch_size, found.train.patience) == (24, 32, 3)
    if task != "imputation":
        experiment = asked(task, path, task={"horizon": 12})
        assert read_data(experiment).settings.horizon == 12
        assert read_data(experiment).settings.input_length < 336 or task == "short_term"


def test_long_series_keep_the_defaults(tmp_path):
    experiment = asked("forecast", months(tmp_path / "a.csv", rows=6000 // 2))
    found, notices = completed(experiment, read_data(experiment))
    assert (found.task.input_length, found.task.horizon) == (336, 96)
    assert (found.train.batch_size, found.train.patience) == (128, 10)  # 1,669 windows
    experiment = asked("forecast", months(tmp_path / "b.csv", rows=3600))
    found, notices = completed(experiment, read_data(experiment))
    assert (found.train.batch_size, found.train.patience) == (256, 3)
    assert not [text for text in notices if "not given" in text]


def refused(task: str, path: Path, sizes: dict[str, int]) -> str | None:
    """What the error says to do; None where the data can be trained on."""
    try:
        data = read_data(asked(task, path, task=sizes))
    except DataError as error:
        return str(error.fix)
    return None if data.task.tables["train"].size else "there is no window"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rows", [20, 40, 144, 300])
def test_the_sizes_that_an_error_names_can_be_used(tmp_path, task, rows):
    path = months(tmp_path / "a.csv", rows)
    sizes = {"input_length": 400} | ({} if task == "imputation" else {"horizon": 250})
    fix = refused(task, path, sizes)
    for _ in range(2):  # the error about a horizon comes before that about what is left to train on
        if fix:
            named = re.findall(r"task\.(\w+) to (?:at most )?(\d+)", fix)
            sizes |= {name: int(value) for name, value in named}
            fix = refused(task, path, sizes)
    assert not fix


@pytest.mark.slow  # trains at sizes that no other test has
def test_a_run_of_fitted_sizes_is_resumed_and_opened(tmp_path):
    experiment = asked("forecast", months(tmp_path / "a.csv"), train={"epochs": 1})
    reporter = Notices()
    train_run(experiment, tmp_path / "run", reporter)
    assert any("task.input_length = 42" in text for text in reporter.said)
    saved, _ = read_config(tmp_path / "run")
    assert (saved.task.input_length, saved.task.horizon, saved.train.batch_size) == (42, 16, 4)
    assert train_run(experiment, tmp_path / "run").progress.step == 11
    loaded, data = open_run(tmp_path / "run")
    assert data.settings.input_length == loaded.experiment.task.input_length == 42
    assert len(predict(loaded, tmp_path / "a.csv")) == 16


@pytest.mark.slow  # trains at sizes that no other test has
def test_a_run_keeps_the_sizes_it_began_with(tmp_path):
    path = months(tmp_path / "a.csv")
    small = {"task": {"input_length": 24, "horizon": 6}, "train": {"epochs": 1, "batch_size": 16}}
    train_run(asked("forecast", path, **small), tmp_path / "run")
    train_run(asked("forecast", path, train={"epochs": 1}), tmp_path / "run")  # the same run, sizes not given
    assert read_config(tmp_path / "run")[0].task.input_length == 24


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    ["forecast", *(pytest.param(task, marks=pytest.mark.slow) for task in ("short_term", "imputation"))],
)
def test_a_refit_sees_every_part_and_leaves_the_run_as_it_is(tmp_path, task):
    path = months(tmp_path / "a.csv")
    plain = asked(task, path, train={"epochs": 2, "batch_size": 16, "learning_rate": 0.01})
    result = train_run(plain, tmp_path / "run")
    bundle = {file.name: file.read_bytes() for file in (tmp_path / "run" / "bundle").iterdir()}
    assert not (tmp_path / "run" / "final").exists()
    reporter = Notices()
    again = train_run(plain.replace({"train.refit": True}), tmp_path / "run", reporter)  # once it is finished
    assert again.progress == result.progress
    assert any("training on all parts for" in text for text in reporter.said)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run" / "bundle").iterdir()} == bundle
    scored, final = load_bundle(tmp_path / "run"), load_bundle(tmp_path / "run" / "final")
    assert final.record.best_epoch == scored.record.best_epoch
    found, first = (flatten(one.model.trainable) for one in (final, scored))
    assert all(np.isfinite(leaf).all() for leaf in found.values())
    assert any(not np.array_equal(leaf, first[name]) for name, leaf in found.items())


def test_the_windows_of_a_refit_have_every_row_after_the_first_input_as_a_target(tmp_path):
    path = months(tmp_path / "a.csv")
    data = read_data(asked("forecast", path, task={"input_length": 24, "horizon": 6}))
    table = data.task.on_all_parts().tables["train"]
    begin = table.first + table.x_valid
    assert {row for first in begin for row in range(first, first + 6)} == set(range(24, 144))
    short = read_data(asked("short_term", path, task={"input_length": 24, "horizon": 6})).task.on_all_parts()
    assert short.groups is not None
    assert short.groups.tolist() == [0, short.tables["train"].size]
    assert (short.tables["train"].first + short.tables["train"].x_valid).max() == 138


def stream(path: Path, train: list[int], test: list[int]) -> Path:
    """Recordings of so many steps, the last step of testing an anomaly."""
    draw, rows = np.random.default_rng(0), [np.cumsum([0, *steps]) for steps in (train, test)]
    values = [draw.normal(size=(borders[-1], 2)) for borders in rows]
    label = np.arange(sum(test)) == sum(test) - 1
    names = tuple(f"r{number}" for number in range(len(train)))
    write_stream(path, LabelledStream(*values, label, names, *rows, source="generated"))
    return path


@pytest.mark.parametrize(
    ("train", "test", "network", "length"),
    [
        ([300], [120], {}, 50),  # 60 steps validate
        ([3000], [40], {}, 25),
        ([3000], [40], {"segment": 5}, 40),
        ([3000, 3000], [300, 80], {}, 75),
        ([3000], [120], {}, 100),
    ],
)
def test_short_recordings_get_an_input_length_that_is_a_multiple_of_the_segment(
    tmp_path, train, test, network, length
):
    experiment = asked("anomaly", stream(tmp_path / "s.npz", train, test), network=network)
    found, notices = completed(experiment, read_data(experiment))
    assert found.task.input_length == length
    said = f"the series are short, so sizes that were not given fit them: task.input_length = {length}"
    assert (said in notices) == (length != 100)
    assert found.task.input_length % found.network.segment == 0
    small = found.train.batch_size != 256
    assert small == any(
        "so settings that were not given fit: train.batch_size = " in text for text in notices
    )


@pytest.mark.parametrize(("train", "test"), [([60], [100]), ([3000], [20]), ([3000, 3000], [300, 7])])
def test_recordings_shorter_than_a_segment_are_refused_with_sizes_that_can_be_used(tmp_path, train, test):
    path = stream(tmp_path / "s.npz", train, test)
    for given in ({}, {"input_length": 100}):
        with pytest.raises(DataError) as caught:
            read_data(asked("anomaly", path, task=given))
        named = re.search(r"Set task\.input_length to at most (\d+) and network\.segment", str(caught.value))
        assert named
        sizes = {"task": {"input_length": int(named[1])}, "network": {"segment": int(named[1])}}
        assert read_data(asked("anomaly", path, **sizes)).task.tables["train"].size


@pytest.mark.slow  # trains at sizes that no other test has
def test_a_detector_of_fitted_sizes_is_resumed_and_opened(tmp_path):
    experiment = asked("anomaly", stream(tmp_path / "s.npz", [300], [120]), train={"epochs": 1})
    step = train_run(experiment, tmp_path / "run").progress.step
    assert train_run(experiment, tmp_path / "run").progress.step == step
    loaded, data = open_run(tmp_path / "run")
    assert data.settings.input_length == loaded.experiment.task.input_length == 50


@pytest.mark.parametrize("task", ["zero_shot", "anomaly"])
def test_a_refit_where_there_is_nothing_to_refit_is_refused(tmp_path, task):
    with pytest.raises(ConfigError, match=f"the task '{task}' trains on no other parts"):
        asked(task, tmp_path / "a", train={"refit": True})

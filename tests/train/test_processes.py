"""Real processes on loopback: the numbers of one, one folder, one stop for all, an end when one is lost."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
from test_devices import TOLERANCE, assert_same
from test_resume import events_of, newest, outcome

from ofa_jax.build import build_model
from ofa_jax.config.load import load_experiment
from ofa_jax.errors import ConfigError, DataError, TrainError
from ofa_jax.model.trees import flatten
from ofa_jax.runs.folder import read_config
from ofa_jax.runs.train import train_run
from ofa_jax.train import processes
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.processes import (
    PeerLost,
    broadcast_from_main,
    check_alike,
    connect,
    is_main_process,
    max_over_processes,
    raise_together,
)
from ofa_jax.train.progress import SilentReporter
from ofa_jax.train.step import init_state

REPOSITORY = Path(__file__).parents[2]
TOOL = REPOSITORY / "tools" / "train_tpu.py"
sys.path.insert(0, str(TOOL.parent))
train_tpu: Any = importlib.import_module("train_tpu")

HEARTBEAT = 10
LONG = ("train.epochs=20", "train.patience=20", "train.chunk=1", "train.checkpoint_minutes=0.001")
"""Long enough to be hit in the middle, with checkpoints inside epochs by the clock."""

ENDLESS = ("train.epochs=4000", "train.patience=4000", "train.chunk=1")


WATCHED = """
import os, runpy, sys, threading
watch = threading.Timer(240, os._exit, (99,))
watch.daemon = True
watch.start()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script that ends after minutes even if the tests that should have ended it were killed."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def running(commands: list[list[Any]], **environment: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of Python, each with its script and arguments; none outlives the block."""
    processes: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", WATCHED, *map(str, command)], env=os.environ | environment, **pipes
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def training(
    count: int, config: Path, out: str | Path, *overrides: str, own: tuple[str, ...] = (), **environment: str
) -> Any:
    """That many processes of tools/train_tpu.py; ``own`` settings are those of the last alone."""
    address = f"127.0.0.1:{free_port()}"
    commands = []
    for number in range(count):
        sets = [*overrides, *(own if number == count - 1 else ())]
        team = (
            ["--coordinator", address, "--processes", count, "--process-id", number, "--heartbeat", HEARTBEAT]
            if count > 1
            else []
        )
        commands.append(
            [
                TOOL,
                "--config",
                config,
                "--out",
                out,
                *(part for text in sets for part in ("--set", text)),
                *team,
            ]
        )
    return running(commands, JAX_PLATFORMS="cpu", **environment)


def ended(processes: list[subprocess.Popen[str]], timeout: float = 120) -> list[tuple[int, str]]:
    """Exit status and standard error of each."""
    found = []
    for process in processes:
        _, errors = process.communicate(timeout=timeout)
        found.append((process.returncode, errors))
    return found


def wait_for_checkpoint(run: Path, processes: list[subprocess.Popen[str]]) -> None:
    limit = time.monotonic() + 90
    while not list((run / "checkpoints").glob("[0-9]*/checkpoint.json")):
        assert all(process.poll() is None for process in processes), [
            process.communicate() for process in processes
        ]
        assert time.monotonic() < limit
        time.sleep(0.02)


def whole(config: Path, run: str | Path, *overrides: str, count: int = 2, **environment: str) -> None:
    """Train to the end."""
    with training(count, config, run, *overrides, **environment) as processes:
        for status, errors in ended(processes):
            assert status == 0, errors


def trained(run: Path) -> dict[str, np.ndarray]:
    """The trainable leaves of the newest checkpoint: the best may be of another epoch, by rounding."""
    experiment = read_config(run)[0]
    model = build_model(experiment)
    start = init_state(model.trainable, optax.adam(lambda step: 0.0))
    restored = Checkpoints(run / "checkpoints").restore({"state": start, "best": model.trainable})
    assert restored is not None
    return flatten(restored.arrays["state"].trainable)


def assert_same_training(one: Path, other: Path) -> None:
    """The same numbers to rounding: what was trained, and what was logged."""
    found, wanted = trained(one), trained(other)
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_allclose(
            found[path], leaf, rtol=0, atol=TOLERANCE * np.abs(leaf).max(), err_msg=path
        )
    assert len(events_of(one)) == len(events_of(other)) > 3
    for event, expected in zip(events_of(one), events_of(other), strict=True):
        assert event.keys() == expected.keys()
        for name in event.keys() - {"best", "best_epoch"}:
            assert event[name] == (
                pytest.approx(expected[name], rel=10 * TOLERANCE)
                if isinstance(event[name], float)
                else expected[name]
            )


@pytest.fixture(scope="module")
def config(tiny, tmp_path_factory) -> Path:
    return tiny.config(tmp_path_factory.mktemp("settings"))


@pytest.fixture(scope="module")
def of_two(config, tmp_path_factory) -> Path:
    """A run of two processes that nothing disturbed."""
    run = tmp_path_factory.mktemp("two") / "run"
    whole(config, run, *LONG)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_two_processes_give_the_numbers_of_one(tmp_path, devices):
    script, address = Path(__file__).parent / "ten_steps.py", f"127.0.0.1:{free_port()}"
    layouts = ["jit2"] if devices == 1 else ["pmap4", "jit4-fsdp2-micro9"]
    alone = [script, tmp_path / "one.npz", "jit1"]
    two = [[script, tmp_path / "two.npz", *layouts, address, 2, number] for number in range(2)]
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    with running([alone, *two], **flags) as processes:
        for status, errors in ended(processes):
            assert (status, errors) == (0, "")
    one, found = dict(np.load(tmp_path / "one.npz")), dict(np.load(tmp_path / "two.npz"))
    for name in layouts:
        assert_same(found, name, one, "jit1")


@pytest.mark.slow
def test_one_folder_with_one_process_s_files(config, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    train_run(load_experiment(config, ["train.epochs=2"]), one, SilentReporter())
    whole(config, two, "train.epochs=2")
    assert_same_training(two, one)
    for run in (one, two):
        assert sorted(entry.name for entry in run.iterdir()) == [
            ".lock",
            "bundle",
            "checkpoints",
            "config.yaml",
            "metrics.jsonl",
        ]
        assert sorted(entry.name for entry in (run / "checkpoints").iterdir()) == ["14", "7"]


@pytest.mark.slow
@pytest.mark.parametrize("signaled", [0, 1])
def test_a_signal_to_one_stops_all_at_the_same_step(config, of_two, tmp_path, signaled):
    run = tmp_path / "run"
    with training(2, config, run, *LONG) as processes:
        wait_for_checkpoint(run, processes)
        processes[signaled].send_signal(signal.SIGTERM)
        found = ended(processes)
    assert [status for status, _ in found] == [75, 75], found
    said = [errors.splitlines()[-1] for _, errors in found]
    assert (
        said[0]
        == said[1]
        == f"Interrupted at step {newest(run).name}; checkpoint saved. Re-run the same command to resume."
    )
    count = 2 if signaled else 1
    whole(config, run, *LONG, count=count)
    if count == 2:
        assert outcome(run) == outcome(of_two)
    else:
        assert_same_training(run, of_two)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, 0])
def test_a_lost_process_ends_the_others_with_an_error(config, tmp_path, lost):
    with training(2, config, tmp_path / "run", *ENDLESS) as processes:
        wait_for_checkpoint(tmp_path / "run", processes)
        processes[lost].kill()
        ((status, errors),) = ended(
            [processes[1 - lost]], timeout=HEARTBEAT + 30
        )  # not a hang: jax alone would end it by then
    paragraph = (
        f"error: process {1 - lost}: a computation over all 2 processes was aborted, most likely because"
    )
    if lost == 1:
        assert status == 1
        assert errors.splitlines()[-1].startswith(paragraph)
        assert "Traceback" not in errors
    else:  # jax itself watches process 0, and may be first
        assert status in (1, -signal.SIGABRT)
        assert paragraph in errors or "the JAX distributed service detected fatal errors" in errors
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()


@pytest.mark.slow
def test_what_one_refuses_ends_all(config, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with training(2, config, tmp_path) as processes:
        (first, leader), (second, other) = ended(processes)
    assert (first, second) == (2, 2)
    assert leader.splitlines()[-1].startswith(
        f"error: {tmp_path}: not empty and not a run folder. Choose a new folder."
    )
    assert other.splitlines()[-1].startswith(
        "error: process 1: process 0 failed at opening the run folder. Its own message says why"
    )
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.slow
def test_processes_that_were_started_otherwise_are_refused(config, tmp_path):
    with training(
        2, config, tmp_path / "run", "train.epochs=1", own=("train.chunk=2", "train.seed=1")
    ) as processes:
        (first, leader), (second, other) = ended(processes)
    assert (first, second) == (2, 2)
    assert other.splitlines()[-1].startswith(
        "error: process 1: this process differs from process 0: "
        "train.chunk is 2 here, 3 there; train.seed is 1 here, 2021 there."
    )
    assert "process 1 failed at comparing itself with process 0" in leader
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_at_a_url_survives_on_machines_that_keep_nothing(config, of_two, tmp_path):
    """Every start is on a machine without the run: only the copy at the URL is left."""
    url, copy = (tmp_path / "bucket" / "run").as_uri(), tmp_path / "bucket" / "run"
    for number in range(2):
        scratch = tmp_path / f"machine{number}"
        scratch.mkdir()
        with training(2, config, url, *LONG, TMPDIR=str(scratch)) as processes:
            wait_for_checkpoint(copy, processes)
            if number:
                break  # killed
            processes[1].send_signal(signal.SIGTERM)
            assert [status for status, _ in ended(processes)] == [75, 75]
        assert not list(scratch.glob("ofa-jax-*"))
    whole(config, url, *LONG)
    assert outcome(copy) == outcome(of_two)
    assert sorted(entry.name for entry in copy.iterdir()) == [
        "bundle",
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
    ]
    assert len(list((copy / "checkpoints").iterdir())) == 2


def test_one_process_agrees_with_itself():
    assert is_main_process()
    assert max_over_processes(3, 0) == (3, 0)
    assert broadcast_from_main(b"\x00\xff") == b"\x00\xff"
    check_alike({"a": (1, 2)})
    with pytest.raises(DataError, match="its own"), raise_together("anything"):
        raise DataError("its own")


def test_another_process_s_failure_ends_this_one(monkeypatch):
    """A refusal would come again at the next start; a full disk or a lost connection may not."""
    for answer, kind in (((2, 0), TrainError), ((2, 1), PeerLost)):
        monkeypatch.setattr(processes, "max_over_processes", lambda *numbers, answer=answer: answer)
        with (
            pytest.raises(TrainError, match="process 1 failed at saving") as caught,
            raise_together("saving"),
        ):
            pass
        assert type(caught.value) is kind
    agreed = []
    monkeypatch.setattr(processes, "max_over_processes", lambda *numbers: agreed.append(numbers) or numbers)
    for failure in (DataError("refused"), OSError("disk")):
        with pytest.raises(type(failure)), raise_together("saving"):
            raise failure
    assert agreed == [(1, 0), (1, 1)]


@pytest.mark.parametrize(
    "given",
    [
        {"coordinator": "a:1"},
        {"coordinator": "a:1", "processes": 2},
        {"process_id": 1},
        {"processes": 2, "process_id": 1},
    ],
)
def test_half_of_who_is_who_is_refused(given):
    with pytest.raises(ConfigError, match=r"these do not identify this process\. Give all three, or none"):
        connect(**given)


class Killed(Exception):
    """The machine went away."""


class Fragile(train_tpu.Mirror):
    """Goes away before its n-th change of what is there."""

    def __init__(self, url: str, folder: Path, left: int) -> None:
        super().__init__(url, folder)
        self.remote, self._remote, self.left = self._remote, self, left

    def __getattr__(self, name: str) -> Any:
        if name in ("put_file", "rm_file", "rm"):
            self.left -= 1
            if self.left < 0:
                raise Killed
        return getattr(self.remote, name)


@pytest.fixture
def stages(tiny, tmp_path) -> list[Path]:
    """A run folder as it stood after its first and after its last checkpoint."""
    source, seen = tiny.csv(tmp_path / "tiny.csv"), []

    def keep() -> None:
        seen.append(Path(shutil.copytree(tmp_path / "run", tmp_path / f"stage{len(seen)}")))

    train_run(tiny.experiment(source), tmp_path / "run", SilentReporter(), saved=keep)
    assert [newest(stage).name for stage in seen] == ["7", "14", "21", "21"]
    assert files(seen[0])["bundle/ofa.json"] != files(seen[3])["bundle/ofa.json"]
    return [seen[0], seen[3]]


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_mirror_brings_back_what_it_was_given(stages, tmp_path):
    url = (tmp_path / "bucket" / "run").as_uri()
    for number, stage in enumerate(stages):
        train_tpu.Mirror(url, stage).push()
        train_tpu.Mirror(url, tmp_path / f"new{number}").fetch()
        assert files(tmp_path / f"new{number}") == files(stage)
    again = Fragile(url, stages[1], 2)
    again.push()  # what is there already is left alone: only settings and log are written
    assert again.left == 0


def test_whenever_a_mirror_is_cut_off_a_whole_run_is_left(stages, tmp_path):
    url, bucket = (tmp_path / "bucket" / "run").as_uri(), tmp_path / "bucket" / "run"
    contents = [files(stage) for stage in stages]
    steps = set()
    for left in itertools.count():
        shutil.rmtree(bucket, ignore_errors=True)
        train_tpu.Mirror(url, stages[0]).push()
        try:
            Fragile(url, stages[1], left).push()
            break
        except Killed:
            pass
        new = tmp_path / f"new{left}"
        train_tpu.Mirror(url, new).fetch()
        found = files(new)
        for part in ("bundle/", "checkpoints/7/", "checkpoints/14/", "checkpoints/21/"):
            inside = {name: content for name, content in found.items() if name.startswith(part)}
            choices = [
                {name: content for name, content in parts.items() if name.startswith(part)}
                for parts in contents
            ]
            assert inside in [*choices, {}], (left, part)
        step = max(Checkpoints(new / "checkpoints").steps())
        steps.add(step)
        assert len(found["metrics.jsonl"]) >= len(files(stages[0 if step == 7 else 1])["metrics.jsonl"])
        assert "config.yaml" in found
        train_tpu.Mirror(url, stages[1]).push()  # what comes later puts it right
        assert files(bucket) == files(stages[1])
        assert sorted(os.listdir(bucket / "checkpoints")) == ["14", "21"]
    assert steps == {7, 14, 21}
    assert left > 10


def test_the_first_copy_is_cut_off_before_there_is_a_checkpoint(stages, tmp_path):
    url = (tmp_path / "bucket" / "run").as_uri()
    for left in range(3):
        with pytest.raises(Killed):
            Fragile(url, stages[0], left).push()
        train_tpu.Mirror(url, tmp_path / f"new{left}").fetch()
        assert set(files(tmp_path / f"new{left}")) <= {"config.yaml", "metrics.jsonl"}


def test_errors_name_the_option(tmp_path):
    given = ["--config", "csv", "--out", tmp_path / "run", "--set", "train.epoch=3"]
    done = subprocess.run([sys.executable, TOOL, *given], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --set: train.epoch is not a setting (did you mean train.epochs")


def test_urls_that_nothing_reads_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="nosuch://bucket/run: this URL cannot be used"):
        train_tpu.Mirror("nosuch://bucket/run", tmp_path)

"""Stopped, killed, damaged: a resumed run gives the bits of the undisturbed one, or a clear error."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ofa_jax.config.load import load_experiment
from ofa_jax.errors import CheckpointError, ConfigError, Interrupted, OfaError, TrainError
from ofa_jax.files import json_digest, run_lock
from ofa_jax.model.trees import flatten
from ofa_jax.runs.bundle import load_bundle
from ofa_jax.runs.folder import is_finished
from ofa_jax.runs.train import train_run
from ofa_jax.train import loop
from ofa_jax.train.events import CLOCK_FIELDS, EventLog, read_events
from ofa_jax.train.lanes import Progress, read_counters
from ofa_jax.train.progress import SilentReporter

STEPS = 21  # 3 epochs of 7


class Listener(SilentReporter):
    """Keeps the notices, and sends a signal after some chunks or at the end of an epoch's validation."""

    def __init__(
        self, *, after_chunks: int | None = None, in_epoch: int | None = None, number: int = signal.SIGTERM
    ) -> None:
        self.notices: list[str] = []
        self.chunks = 0
        self.after_chunks, self.in_epoch, self.number = after_chunks, in_epoch, number

    def advance(self, windows: int, loss: float) -> None:
        self.chunks += 1
        if self.chunks == self.after_chunks:
            signal.raise_signal(self.number)

    def end_epoch(self, record: Mapping[str, Any]) -> None:
        if record["epoch"] == self.in_epoch:
            signal.raise_signal(self.number)

    def notice(self, text: str) -> None:
        if "season length" not in text and "series (" not in text:  # every run begins with them
            self.notices.append(text)


def events_of(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in event.items() if name not in CLOCK_FIELDS}
        for event in read_events(run / "metrics.jsonl")
    ]


def newest(run: Path) -> Path:
    return max(
        (entry for entry in (run / "checkpoints").iterdir() if entry.name.isdigit()),
        key=lambda entry: int(entry.name),
    )


def outcome(run: Path) -> dict[str, Any]:
    """Everything about a run that must not depend on how it came about."""
    record = json.loads((newest(run) / "checkpoint.json").read_text())
    record["meta"].pop("events_size")  # clock fields have no fixed width
    return {
        "step": record["step"],
        "meta": record["meta"],
        "arrays": record[
            "leaves"
        ],  # path, shape, dtype and sha256 of trainable tree, optimizer and best tree
        "events": events_of(run),
        "bundle": {file.name: file.read_bytes() for file in sorted((run / "bundle").iterdir())},
    }


@pytest.fixture(scope="module")
def undisturbed(tiny, source, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    listener = Listener()
    train_run(tiny.experiment(source), run, listener)
    assert listener.chunks == 9
    assert not listener.notices
    return run


@pytest.fixture(scope="module")
def stopped_once(tiny, source, tmp_path_factory) -> Path:
    """A run that was stopped at step 13, with checkpoints at 7 and 13; never changed."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Interrupted):
        train_run(tiny.experiment(source), run, Listener(after_chunks=5))
    assert sorted(int(entry.name) for entry in (run / "checkpoints").iterdir()) == [7, 13]
    return run


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def resume(tiny: Any, source: Path, run: Path, *overrides: str) -> Listener:
    listener = Listener()
    result = train_run(tiny.experiment(source, *overrides), run, listener)
    assert result.progress.step == STEPS
    return listener


def test_the_outcome_covers_everything(undisturbed):
    found = outcome(undisturbed)
    paths = [leaf["path"] for leaf in found["arrays"]]
    for part in ("best/adapters/out_layer/a", "state/trainable/adapters/gpt2/wpe/b"):
        assert part in paths
    assert sum(path.startswith("state/opt_state") for path in paths) == 2 * 4 + 2
    assert [event["event"] for event in found["events"]].count("epoch") == 3
    assert found["events"][-1]["event"] == "finished"
    assert found["meta"]["finished"] == "all epochs done"
    assert set(found["bundle"]) == {"adapter_model.safetensors", "adapter_config.json", "ofa.json"}


def test_logged_losses_are_the_means_of_their_steps(tiny, source, tmp_path):
    steps: list[tuple[int, float]] = []
    listener = Listener()
    listener.advance = lambda windows, loss: steps.append((windows, loss))  # type: ignore[method-assign]
    train_run(tiny.experiment(source, "train.chunk=1", "train.epochs=2"), tmp_path / "run", listener)
    assert [windows for windows, _ in steps] == 2 * [32, 32, 32, 32, 32, 32, 10]
    losses = [loss for _, loss in steps]
    events = events_of(tmp_path / "run")
    assert [(e["step"], e["epoch"]) for e in events if e["event"] == "train"] == [(4, 1), (8, 2), (12, 2)]
    assert [e["loss"] for e in events if e["event"] == "train"] == pytest.approx(
        [np.mean(losses[n : n + 4]) for n in (0, 4, 8)]
    )
    means = [sum(windows * loss for windows, loss in steps[n : n + 7]) / 202 for n in (0, 7)]
    assert [e["train_loss"] for e in events if e["event"] == "epoch"] == pytest.approx(means)


@pytest.mark.parametrize(
    ("after_chunks", "length"),
    [(2, 1), (3, 32), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(1, 3), (4, 2), (8, 7)])],
)
def test_stopped_and_resumed_ends_with_the_same_bits(
    tiny, source, undisturbed, tmp_path, after_chunks, length
):
    run = tmp_path / "run"
    with pytest.raises(Interrupted) as caught:
        train_run(tiny.experiment(source), run, Listener(after_chunks=after_chunks))
    epochs, chunks = divmod(after_chunks, 3)
    assert (caught.value.signal_number, caught.value.step) == (signal.SIGTERM, 7 * epochs + 3 * chunks)
    listener = resume(tiny, source, run, f"train.chunk={length}")
    assert listener.notices == [f"resumed at step {caught.value.step}"]
    assert outcome(run) == outcome(undisturbed)


@pytest.mark.slow
def test_stopped_at_every_chunk_ends_with_the_same_bits(tiny, source, undisturbed, tmp_path):
    run = tmp_path / "run"
    for _ in range(8):
        with pytest.raises(Interrupted):
            train_run(tiny.experiment(source), run, Listener(after_chunks=1))
    resume(tiny, source, run)
    assert outcome(run) == outcome(undisturbed)


def test_a_signal_during_validation_saves_the_finished_epoch(tiny, source, undisturbed, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Interrupted) as caught:
        train_run(tiny.experiment(source), run, Listener(in_epoch=2, number=signal.SIGINT))
    assert (caught.value.signal_number, caught.value.step) == (signal.SIGINT, 14)
    assert (run / "bundle" / "ofa.json").exists()
    resume(tiny, source, run)
    assert outcome(run) == outcome(undisturbed)


def test_a_signal_at_the_very_end_is_no_interruption(tiny, source, undisturbed, tmp_path):
    run = tmp_path / "run"
    result = train_run(tiny.experiment(source), run, Listener(in_epoch=3))
    assert result.reason == "all epochs done"
    assert outcome(run) == outcome(undisturbed)


def windows_of(run: Path) -> list[int]:
    """Windows that were trained in each logged epoch, by its seconds and speed."""
    epochs = [event for event in read_events(run / "metrics.jsonl") if event["event"] == "epoch"]
    return [round(event["seconds"] * event["windows_per_second"]) for event in epochs]


class Clock:
    """In place of ``time``: every look at it takes 10 ms."""

    def __init__(self) -> None:
        self.now, self.time = 0.0, time.time

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now


def test_the_speed_of_a_resumed_epoch_is_that_of_its_rest(tiny, source, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "time", Clock())
    with pytest.raises(Interrupted):
        train_run(tiny.experiment(source), tmp_path / "run", Listener(after_chunks=1))
    resume(tiny, source, tmp_path / "run")
    assert windows_of(tmp_path / "run") == [202 - 3 * 32, 202, 202]


def test_handlers_are_put_back(tiny, source, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted):
        train_run(tiny.experiment(source), tmp_path / "run", Listener(after_chunks=1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_training_works_outside_the_main_thread(tiny, source, undisturbed, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        pool.submit(train_run, tiny.experiment(source), tmp_path / "run", Listener()).result()
    assert outcome(tmp_path / "run") == outcome(undisturbed)


def test_a_finished_run_is_left_as_it_is(tiny, source, undisturbed, tmp_path):
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    shutil.rmtree(run / "bundle")  # killed between the last checkpoint and the last bundle
    listener = resume(tiny, source, run)
    assert (listener.chunks, listener.notices) == (0, [])
    assert outcome(run) == outcome(undisturbed)


def test_leftovers_of_a_kill_are_cleared(tiny, source, undisturbed, stopped):
    (stopped / ".config.yaml.abc123.ofa-tmp").write_text("half")
    (stopped / ".bundle.abc123.ofa-tmp").mkdir()
    (stopped / ".bundle.abc123.ofa-tmp" / "ofa.json").write_text("{")
    os.replace(
        stopped / "bundle", stopped / ".bundle.ofa-old"
    )  # killed between the two renames of an exchange
    resume(tiny, source, stopped)
    assert outcome(stopped) == outcome(undisturbed)
    assert sorted(entry.name for entry in stopped.iterdir()) == [
        ".lock",
        "bundle",
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
    ]


def test_a_folder_with_leftovers_alone_is_a_new_run(tiny, source, tmp_path):
    """Killed while the very first file was written."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / ".config.yaml.abc123.ofa-tmp").write_text("half")
    with pytest.raises(Interrupted):
        train_run(tiny.experiment(source), run, Listener(after_chunks=1))
    assert (run / "config.yaml").exists()


LINE = '{"event": "train", "step": 4, "epoch": 1, "loss": 1.0, "learning_rate": 0.1}\n'


@pytest.mark.parametrize("content", ["", LINE + '{"event": "tr'])
def test_lost_events_are_said_and_the_rest_is_right(tiny, source, undisturbed, stopped, content):
    log = stopped / "metrics.jsonl"
    if content:
        log.write_text(content)
    else:
        log.unlink()
    listener = resume(tiny, source, stopped)
    assert "metrics.jsonl is shorter than at the last checkpoint; earlier events are lost" in listener.notices
    found, wanted = outcome(stopped), outcome(undisturbed)
    events = found.pop("events")
    assert events[-5:] == wanted.pop("events")[-5:]  # steps 16 and 20, epochs 2 and 3, the end
    assert found == wanted


def test_events_after_the_checkpoint_are_cut(tiny, source, undisturbed, stopped):
    with open(stopped / "metrics.jsonl", "a") as file:
        file.write('{"event": "train", "step": 99}\n{"event": "half a l')
    resume(tiny, source, stopped)
    assert outcome(stopped) == outcome(undisturbed)


def test_the_log_keeps_complete_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log, fields = EventLog(path), {"epoch": 1, "loss": 0.5, "learning_rate": 1e-3}
    log.append("train", step=1, **fields)
    size = log.sync()
    log.append("train", step=2, **fields)
    assert log.cut(size, 1, finished=False) == []
    assert read_events(path) == [{"event": "train", "step": 1, **fields}]
    assert log.last_step() == 1
    shorter = ["is shorter than at the last checkpoint; earlier events are lost"]
    assert log.cut(10 * size, 9, finished=False) == shorter
    path.write_text(path.read_text() + '{"event": "tra')
    assert [event["step"] for event in read_events(path)] == [1]
    assert log.cut(10 * size, 9, finished=False) == shorter
    log.append("finished", step=3, reason="all epochs done", best_epoch=2)
    assert [event["event"] for event in read_events(path)] == ["train", "finished"]
    assert read_events(tmp_path / "none.jsonl") == []


def break_log(log: Path, how: str) -> None:
    content = log.read_bytes()
    if how == "byte":  # in the second line
        content = content.replace(b"train", b"tr\xffin", 2).replace(b"tr\xffin", b"train", 1)
    elif how == "zeros":  # as after a power cut
        content = content[:-60] + 60 * b"\0"
    elif how == "more zeros":
        content += 4096 * b"\0" + b"\n"
    log.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said", "lost"),
    [
        ("byte", "metrics.jsonl line 2 cannot be read as an event; removed", [1]),
        ("zeros", "metrics.jsonl line 4 cannot be read as an event; removed", [3]),
        ("more zeros", None, []),
    ],
)
def test_a_damaged_log_is_cut_to_what_is_intact(tiny, source, undisturbed, stopped, how, said, lost):
    break_log(stopped / "metrics.jsonl", how)
    listener = resume(tiny, source, stopped)
    if said:
        assert [text for text in listener.notices if text.startswith(said)]
    else:
        assert listener.notices == ["resumed at step 13"]
    found, wanted = outcome(stopped), outcome(undisturbed)
    events = wanted.pop("events")
    assert found.pop("events") == [event for number, event in enumerate(events) if number not in lost]
    assert found == wanted


def test_the_end_of_a_finished_run_is_logged_again_if_it_is_lost(tiny, source, undisturbed, tmp_path):
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    log = run / "metrics.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"finished"', b'"fin\0shed"'))
    said: list[str] = []
    assert read_events(log, said.append) == read_events(undisturbed / "metrics.jsonl")[:-1]
    assert said == ["metrics.jsonl: line 9 cannot be read as an event; left out"]
    listener = resume(tiny, source, run)
    assert listener.notices == ["metrics.jsonl line 9 cannot be read as an event; removed"]
    assert outcome(run) == outcome(undisturbed)


EVENTS = {
    "train": {"step": 3, "epoch": 1, "loss": 0.5, "learning_rate": 1e-3},
    "gradient": {"step": 3, "epoch": 1, "clip_rate": 0.5, "modules": {"a": {"gradient_norm": 1.0}}},
    "finished": {"step": 3, "reason": "all epochs done", "best_epoch": 1},
    "epoch": {
        "step": 7,
        "epoch": 1,
        "protocol": "strict",
        "train_loss": 0.5,
        "learning_rate": 1e-3,
        "best": True,
        "validation_mse": 0.25,
        "time": 1.5,
        "seconds": 2.0,
        "windows_per_second": 9.0,
    },
}


@pytest.mark.parametrize("kind", EVENTS)
def test_a_wrong_value_in_the_log_names_line_and_field(tmp_path, kind):
    path = tmp_path / "metrics.jsonl"
    good = {"event": kind, **EVENTS[kind]}
    path.write_text(json.dumps(good) + "\n")
    assert read_events(path) == [good]
    for name in good:
        for value in ([1], {"x": "y"}, None, "Infinity"):
            if (value is None and name == "clip_rate") or (
                value == "Infinity" and name in ("reason", "protocol")
            ):
                continue
            path.write_text(json.dumps(good) + "\n" + json.dumps(good | {name: value}) + "\n")
            with pytest.raises(CheckpointError, match=rf"metrics\.jsonl, line 2: {name}"):
                read_events(path)
    for line in ("", "[]", "{", "NaN", '{"event": "x"}', "[" * 10_000):
        path.write_text(line + "\n")
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 1: "):
            read_events(path)


def damage(folder: Path, how: str) -> None:
    if how == "deleted":
        shutil.rmtree(folder)
        return
    target = max(
        (file for file in (folder / "arrays").rglob("*") if file.is_file()),
        key=lambda file: file.stat().st_size,
    )
    content = bytearray(target.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    target.write_bytes(content)


@pytest.mark.parametrize("how", ["flipped", "truncated", "deleted"])
def test_a_damaged_newest_checkpoint_falls_back(tiny, source, undisturbed, stopped, how):
    damage(newest(stopped), how)
    listener = resume(tiny, source, stopped)
    *passed_over, trained_again, resumed_at = listener.notices
    assert resumed_at == "resumed at step 7"
    assert trained_again.startswith(
        "metrics.jsonl reached step 12, but the newest intact checkpoint is of step 7"
    )
    assert ["checkpoint 13 was skipped" in text for text in passed_over] == (
        [] if how == "deleted" else [True]
    )
    assert outcome(stopped) == outcome(undisturbed)


COUNTERS = Progress(
    step=13, best=0.5, best_epoch=1, best_metrics={"mse": 0.5}, gradients=[1.0] * 4
).model_dump()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": "13"}, "step: input should be a valid integer"),
        ({"best": [1]}, "best: input should be a valid number"),
        ({"bad_epochs": -1}, "bad_epochs: input should be greater than or equal to 0"),
        ({"best_metrics": {"mse": None}}, "best_metrics.mse: input should be a valid number"),
        ({"gradients": [1.0] * 3}, "3 sums of gradients, not 4"),
        ({"step": 12}, "step 12 of epoch 2 is not step 13, at 7 an epoch"),
        ({"best_epoch": 2}, "step 13 of epoch 3 is not step 13, at 7 an epoch"),
        ({"cells": [COUNTERS, COUNTERS]}, "counters of 2 cells, not of 1"),
        ({"cells": [COUNTERS | {"finished": 1}]}, "cells.0.finished: input should be a valid string"),
    ],
)
def test_wrong_counters_are_refused_by_name(changes, said):
    sizes = {"lanes": 1, "epoch_steps": 7, "gradients": 4}
    assert read_counters(COUNTERS, 13, **sizes) == [Progress(**COUNTERS)]
    assert read_counters({"cells": [COUNTERS]}, 13, **sizes) == [Progress(**COUNTERS)]
    with pytest.raises(CheckpointError) as caught:
        read_counters(COUNTERS | changes, 13, **sizes)
    assert f"checkpoints/13/checkpoint.json, meta: {said}" in str(caught.value)
    assert "was edited" in str(caught.value)


def test_a_signed_checkpoint_with_wrong_counters_is_no_traceback(tiny, source, stopped):
    record = stopped / "checkpoints" / "13" / "checkpoint.json"
    content = json.loads(record.read_text())
    del content["digest"]
    content["meta"]["best"] = "low"
    record.write_text(json.dumps(content | {"digest": json_digest(content)}))
    with pytest.raises(CheckpointError, match="best: input should be a valid number"):
        resume(tiny, source, stopped)


def test_when_every_checkpoint_is_gone_it_says_so(tiny, source, undisturbed, stopped):
    shutil.rmtree(stopped / "checkpoints")
    listener = resume(tiny, source, stopped)
    assert listener.notices == [
        "metrics.jsonl reached step 12, but there is no checkpoint: repeating the steps since"
    ]
    assert outcome(stopped) == outcome(undisturbed)


@pytest.mark.slow  # two training programs
def test_a_run_goes_on_in_the_computing_type_it_was_begun_with(tiny, source, tmp_path):
    with pytest.raises(Interrupted):
        train_run(
            tiny.experiment(source, "trunk.compute_dtype=bfloat16"),
            tmp_path / "run",
            Listener(after_chunks=1),
        )
    resume(tiny, source, tmp_path / "run")
    assert load_bundle(tmp_path / "run").model.network.trunk.compute_dtype == "bfloat16"
    with pytest.raises(ConfigError, match=r"trunk\.compute_dtype was 'bfloat16', is now 'float32'"):
        train_run(tiny.experiment(source, "trunk.compute_dtype=float32"), tmp_path / "run", Listener())


def test_when_every_checkpoint_is_damaged_nothing_is_lost(tiny, source, stopped):
    for folder in (stopped / "checkpoints").iterdir():
        damage(folder, "flipped")
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        train_run(tiny.experiment(source), stopped, Listener())


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.learning_rate=0.02", r"train\.learning_rate was 0\.01, is now 0\.02"),
        ("train.seed=1", r"train\.seed was 2021, is now 1"),
        ("train.epochs=2", r"train\.epochs was 3, is now 2"),
        ("adapters.rank=8", r"adapters\.rank was 4, is now 8"),
        ("recipe=full", r"recipe was 'reference', is now 'full'; rules was"),
    ],
)
def test_other_settings_are_refused(tiny, source, undisturbed, override, named):
    with pytest.raises(ConfigError, match=named):
        train_run(tiny.experiment(source, override), undisturbed, Listener())


@pytest.mark.slow
def test_a_finished_run_can_be_trained_on(tiny, source, undisturbed, tmp_path):
    longer, run = tmp_path / "longer", Path(shutil.copytree(undisturbed, tmp_path / "run"))
    listener = Listener()
    train_run(tiny.experiment(source, "train.epochs=5"), longer, listener)
    rising = (
        "train.epochs is 5 and train.cosine_epochs 3: the learning rate is lowest in epoch 4 and rises again "
        "after it"
    )
    assert listener.notices == [rising]
    with pytest.raises(Interrupted):
        train_run(tiny.experiment(source, "train.epochs=5"), run, Listener(after_chunks=1))
    assert not is_finished(run)
    listener = Listener()
    train_run(load_experiment(run / "config.yaml"), run, listener)
    assert listener.notices == [rising, "resumed at step 24"]
    assert outcome(run) == outcome(longer)
    again = Listener()
    train_run(tiny.experiment(source, "train.epochs=6"), run, again)
    assert "train.epochs raised from 5 to 6" in again.notices
    assert [event["event"] for event in read_events(run / "metrics.jsonl")].count("finished") == 1


@pytest.mark.slow  # a training program that no other test has
def test_a_run_that_lost_its_patience_is_not_trained_on(tiny, source, tmp_path):
    given = ("train.learning_rate=1", "train.schedule=constant", "train.patience=1", "train.epochs=30")
    result = train_run(tiny.experiment(source, *given), tmp_path / "run")
    assert result.reason == "no better validation mse for 1 epochs"
    listener = Listener()
    again = train_run(tiny.experiment(source, *given, "train.epochs=40"), tmp_path / "run", listener)
    assert (again.reason, again.progress.step, listener.chunks) == (result.reason, result.progress.step, 0)


def test_neutral_settings_may_change(tiny, source, undisturbed, tmp_path):
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    resume(tiny, source, run, "train.chunk=5", "train.checkpoint_minutes=1")


@pytest.mark.slow
def test_a_run_goes_on_in_slices(tiny, source, undisturbed, stopped):
    """Slices change rounding only, so a run can be resumed on a smaller device."""
    listener = resume(tiny, source, stopped, "train.micro_batch=10", "train.parallel=pmap")
    assert listener.notices == ["resumed at step 13"]
    found, wanted = (flatten(load_bundle(run).model.trainable) for run in (stopped, undisturbed))
    for path, leaf in wanted.items():
        np.testing.assert_allclose(
            found[path], leaf, rtol=0, atol=1e-5 * np.abs(leaf).max()
        )  # float32 sums in another order
    assert any((found[path] != leaf).any() for path, leaf in wanted.items())


def test_changed_data_are_refused(tiny, source, undisturbed, tmp_path):
    content = source.read_text()
    try:
        tiny.csv(source, seed=1)
        with pytest.raises(CheckpointError, match="the data differ from those at the start"):
            train_run(tiny.experiment(source), undisturbed, Listener())
    finally:
        source.write_text(content)


def test_a_held_folder_is_refused(tiny, source, undisturbed):
    with (
        run_lock(undisturbed),
        pytest.raises(CheckpointError, match="another process is using this run folder"),
    ):
        train_run(tiny.experiment(source), undisturbed, Listener())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "what"),
    [
        (
            202,
            "the validation mse",
        ),  # of an epoch of one step, whose loss is taken before the parameters move
        (32, "the loss"),
    ],
)
def test_numbers_that_explode_stop_with_the_place(tiny, source, tmp_path, batch_size, what):
    run = tmp_path / "run"
    with pytest.raises(TrainError) as caught:
        train_run(
            tiny.experiment(source, "train.learning_rate=1e+38", f"train.batch_size={batch_size}"),
            run,
            Listener(),
        )
    message = str(caught.value)
    assert re.search(rf"{what} became (nan|inf)", message)
    assert re.search(r"at step [1-7] \(learning rate 1e\+38\)\. Nothing was saved yet", message)
    assert not (run / "checkpoints").exists() or not list((run / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_loss_that_explodes_late_names_the_last_good_checkpoint(tiny, source, stopped, monkeypatch):
    from ofa_jax.tasks import forecast as forecasting

    sound = forecasting.FORECAST_LOSSES["mse"]

    def unsound(pred_bhc, batch):
        total, count = sound(pred_bhc, batch)
        return total * np.float32("inf"), count

    monkeypatch.setattr(forecasting, "FORECAST_LOSSES", {"mse": unsound})
    with pytest.raises(
        TrainError,
        match=r"the loss became inf at step 14 \(learning rate 0\.0075\)\. The last good .* step 13; use",
    ):
        train_run(tiny.experiment(source), stopped, Listener())


@pytest.mark.slow
def test_parameters_that_are_not_finite_are_never_saved(tiny, source, tmp_path, monkeypatch):
    """The loss of a step is finite, its gradient is not: the state after it must not be saved."""
    import jax

    from ofa_jax.tasks import forecast as forecasting

    @jax.custom_jvp
    def steep(value):
        return value

    @steep.defjvp
    def _(primals, tangents):
        return primals[0], tangents[0] * np.float32("inf")

    sound = forecasting.FORECAST_LOSSES["mse"]
    broken = lambda pred, batch: (steep(sound(pred, batch)[0]), sound(pred, batch)[1])  # noqa: E731
    monkeypatch.setattr(forecasting, "FORECAST_LOSSES", {"mse": broken})
    run = tmp_path / "run"
    with pytest.raises(
        TrainError, match=r"the trained parameters are no longer finite at step 1 .*Nothing was saved yet"
    ):
        train_run(tiny.experiment(source, "train.chunk=1"), run, Listener(after_chunks=1))
    assert not list((run / "checkpoints").glob("*"))


@pytest.mark.slow
def test_a_full_disk_leaves_a_run_that_goes_on(tiny, source, undisturbed, tmp_path, monkeypatch):
    import errno

    from ofa_jax.train import checkpoints

    run = tmp_path / "run"
    write = checkpoints.files.write_json

    def full(path, content, **how):
        if content.get("step") == 14:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content, **how)

    monkeypatch.setattr(checkpoints.files, "write_json", full)
    with pytest.raises(OfaError, match=r"checkpoints/14: no space left .* bytes are needed, .* are free"):
        train_run(tiny.experiment(source), run, Listener())
    monkeypatch.undo()
    trained_again, resumed_at = resume(tiny, source, run).notices
    assert trained_again.startswith(
        "metrics.jsonl reached step 14, but the newest intact checkpoint is of step 7"
    )
    assert resumed_at == "resumed at step 7"
    assert outcome(run) == outcome(undisturbed)


@contextlib.contextmanager
def training(tiny: Any, config: Path, run: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    sets = [part for override in overrides for part in ("--set", override)]
    process = subprocess.Popen(
        tiny.arguments("train", config, "--out", run, *sets),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


MANY = ("train.epochs=28", "train.patience=28", "train.chunk=1", "train.checkpoint_minutes=0.0001")
"""Long enough to be hit in the middle, with a checkpoint every few steps."""


@pytest.fixture(scope="module")
def long_run(tiny, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("long")
    config = tiny.config(folder)
    done = tiny.command(
        "train", config, "--out", folder / "run", *(part for override in MANY for part in ("--set", override))
    )
    assert done.returncode == 0, done.stderr
    return config, folder / "run"


@pytest.mark.slow
def test_killed_at_random_moments_ends_with_the_same_bits(tiny, long_run, tmp_path):
    config, undisturbed = long_run
    run = tmp_path / "run"
    dice = random.Random(2021)
    steps, kills = [], 0
    while True:
        length = dice.choice([1, 2, 3, 32]) if kills else 1  # the bundle has the settings of the first start
        with training(tiny, config, run, *MANY, f"train.chunk={length}") as process:
            started = wait_for_progress(process, run)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(dice.uniform(0, 0.7 if kills < 5 else 60))
            if process.poll() is None:
                process.kill()
                kills += 1
                steps.append(started)
                continue
            assert process.returncode == 0, process.stderr.read() if process.stderr else ""
            break
    assert kills >= 3, f"only {kills} kills hit the run; its checkpoints came at {steps}"
    assert outcome(run) == outcome(undisturbed)
    assert not [entry.name for entry in run.iterdir() if entry.name.startswith(".") and entry.name != ".lock"]


def wait_for_progress(process: subprocess.Popen[str], run: Path) -> int:
    """Wait until this process has written a checkpoint or ended; returns the newest step."""

    def found() -> set[str]:
        with contextlib.suppress(OSError):
            return {entry.name for entry in (run / "checkpoints").iterdir() if entry.name.isdigit()}
        return set()

    before = found()
    while process.poll() is None and not found() - before:
        time.sleep(0.01)
    return max(map(int, found()), default=0)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(tiny, long_run, tmp_path, number, status):
    config, undisturbed = long_run
    run = tmp_path / "run"
    with training(tiny, config, run, *MANY) as process:
        wait_for_progress(process, run)
        process.send_signal(number)
        out, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    assert out == ""
    assert "checkpoint saved. Re-run the same command to resume." in errors
    assert "Traceback" not in errors
    done = tiny.command(
        "train", config, "--out", run, *(part for override in MANY for part in ("--set", override))
    )
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    assert outcome(run) == outcome(undisturbed)


@pytest.mark.slow
def test_a_second_process_is_refused(tiny, long_run, tmp_path):
    config, _ = long_run
    run = tmp_path / "run"
    with training(tiny, config, run, *MANY) as process:
        wait_for_progress(process, run)
        second = tiny.command(
            "train", config, "--out", run, *(part for override in MANY for part in ("--set", override))
        )
        assert process.poll() is None
    assert second.returncode == 2
    assert "another process is using this run folder" in second.stderr
    assert "Traceback" not in second.stderr

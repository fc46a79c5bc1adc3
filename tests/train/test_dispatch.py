"""It answers: chunks by measured time, progress from the first step, signals announced and obeyed at once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_resume import Listener, outcome

from ofa_jax.errors import Interrupted
from ofa_jax.runs.train import train_run
from ofa_jax.train import loop, progress
from ofa_jax.train.progress import ConsoleReporter
from ofa_jax.train.signals import stop_on_signal

LONG = (
    "train.batch_size=8",
    "train.chunk=32",
    "train.epochs=2",
    "train.checkpoint_minutes=1e6",
)  # 26 steps an epoch


@pytest.fixture(scope="module")
def full_chunks(tiny, source, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("full") / "run"
    listener = Listener()
    train_run(tiny.experiment(source, *LONG), run, listener)
    assert listener.chunks == 2
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "lengths"),
    [(5, 52 * [1]), (0.5, [1, 4, 4, 4, 4, 4, 4, 1, 4, 4, 4, 4, 4, 4, 2]), (0.01, [1, 25, 26])],
)
@pytest.mark.parametrize("slowest", [1, 4])
def test_chunks_follow_the_measured_time_of_a_step_and_change_no_bit(
    tiny, source, full_chunks, tmp_path, monkeypatch, seconds, lengths, slowest
):
    """``slowest``: how much longer a step takes on the slowest process."""
    clock, found, run_chunk = SimpleNamespace(now=0.0), [], loop.Trainer.run_chunk

    def timed(trainer: Any, steps: int) -> None:
        run_chunk(trainer, steps)
        clock.now += steps * seconds / slowest
        found.append(steps)

    def agree(*values: int) -> tuple[int, ...]:
        return (*values[:2], slowest * values[2]) if len(values) == 3 else values

    monkeypatch.setattr(loop, "DISPATCH_SECONDS", 2.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now, time=time.time))
    monkeypatch.setattr(loop.Trainer, "run_chunk", timed)
    monkeypatch.setattr(loop, "max_over_processes", agree)
    train_run(tiny.experiment(source, *LONG), tmp_path / "run")
    assert found == lengths
    assert outcome(tmp_path / "run") == outcome(full_chunks)


@pytest.mark.slow
def test_a_validation_ends_between_batches_and_is_made_up_for(tiny, source, tmp_path):
    class InValidation(Listener):
        def status(self, text: str) -> None:
            self.seen = text
            if text.startswith("epoch 2/3, validation 16/"):
                signal.raise_signal(signal.SIGINT)

    undisturbed, run, listener = tmp_path / "undisturbed", tmp_path / "run", InValidation()
    experiment = tiny.experiment(source, "train.eval_batch_size=16")
    train_run(experiment, undisturbed)
    with pytest.raises(Interrupted) as caught:
        train_run(experiment, run, listener)
    assert (caught.value.step, caught.value.saved) == (14, True)
    assert listener.seen.startswith("epoch 2/3, validation 16/")
    assert listener.notices[-1:] == ["SIGINT received: stopping after the current step, batch or compilation"]
    again = Listener()
    train_run(experiment, run, again)
    assert again.chunks == 3
    assert outcome(run) == outcome(undisturbed)


@pytest.mark.skipif(sys.platform != "linux", reason="locks a mutex of glibc")
def test_a_signal_is_announced_while_the_main_thread_waits_for_a_computation():
    libc, mutex, said = ctypes.CDLL(None), (ctypes.c_char * 64)(), []
    limit = (ctypes.c_long * 2)(int(time.time()) + 60, 0)

    def announce(text: str) -> None:
        said.append(text)
        libc.pthread_mutex_unlock(mutex)

    libc.pthread_mutex_lock(mutex)
    with stop_on_signal(announce) as request:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert libc.pthread_mutex_timedlock(mutex, limit) == 0  # which no signal interrupts
    assert said == ["SIGTERM received: stopping after the current step, batch or compilation"]
    assert request.signal_number == signal.SIGTERM


@pytest.mark.slow
def test_a_signal_while_compiling_is_obeyed_before_the_first_step(tiny, source, full_chunks, tmp_path):
    class InCompilation(Listener):
        def status(self, text: str) -> None:
            if text == "compiling":
                signal.raise_signal(signal.SIGINT)

    experiment, listener = tiny.experiment(source, *LONG), InCompilation()
    with pytest.raises(Interrupted) as caught:
        train_run(experiment, tmp_path / "run", listener)
    assert (caught.value.step, caught.value.saved, listener.chunks) == (0, True, 0)
    assert listener.notices[-1:] == ["SIGINT received: stopping after the current step, batch or compilation"]
    train_run(experiment, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(full_chunks)


def test_the_live_line_shows_time_left_from_the_first_step(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    clock = SimpleNamespace(now=100.0)
    with ConsoleReporter() as reporter:
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
        reporter.status("compiling")
        assert reporter._progress.tasks[0].total is None
        reporter.begin(2, 10, 1000, 400)
        clock.now += 16
        reporter.advance(32, 0.5)
        (task,) = reporter._progress.tasks
        assert (task.completed, task.total) == (432, 1000)
        assert task.fields == {"loss": "0.5000", "speed": "2", "left": "0:04:44"}
        reporter.status("epoch 2/10, validation 0/50")
        assert task.description == "epoch 2/10, validation 0/50"

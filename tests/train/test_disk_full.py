"""A disk that is full: one error, nothing left behind; later the same command gives the same bits."""

from __future__ import annotations

import contextlib
import errno
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from test_resume import Listener, outcome

from ofa_jax.errors import OfaError
from ofa_jax.runs.train import open_run, train_run
from ofa_jax.train import events, loop


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """An empty disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mount = shutil.which("mount")
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


class Filling(Listener):
    """Fills the disk in epoch 2: before a checkpoint is written, or before the bundle."""

    def __init__(self, disk: Path, before: str) -> None:
        super().__init__()
        self.disk, self.before = disk, before

    def advance(self, windows: int, loss: float) -> None:
        self.chunks += 1
        if self.before == "checkpoint" and self.chunks == 4:
            fill(self.disk)
            signal.raise_signal(signal.SIGTERM)

    def end_epoch(self, record: Mapping[str, Any]) -> None:
        if self.before == "bundle" and record["epoch"] == 2:
            fill(self.disk)


@pytest.mark.slow
def test_a_log_that_cannot_be_written_stops_training_where_all_processes_agree(tiny, tmp_path, monkeypatch):
    experiment, run = tiny.experiment(tiny.csv(tmp_path / "tiny.csv")), tmp_path / "run"
    agreed, agree = [], loop.raise_together

    def together(doing: str) -> Any:
        agreed.append(doing)
        return agree(doing)

    def full(path: Path, *given: Any, **how: Any) -> Any:
        if "epoch 2" in agreed and given == ("a",):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return open(path, *given, **how)

    listener = Listener()
    listener.end_epoch = lambda record: agreed.append("epoch 2")  # type: ignore[method-assign]
    monkeypatch.setattr(loop, "raise_together", together)
    monkeypatch.setattr(events, "open", full, raising=False)
    with pytest.raises(OfaError, match=r"metrics\.jsonl: no space left .* 1\d\d bytes are needed"):
        train_run(experiment, run, listener)
    assert agreed[-1] == "saving a checkpoint"
    assert listener.chunks == 4  # the line of step 8 is in the first chunk of epoch 2
    monkeypatch.undo()
    train_run(experiment, run)
    train_run(experiment, tmp_path / "undisturbed")
    assert outcome(run) == outcome(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "place"), [("checkpoint", "checkpoints/10"), ("bundle", "bundle")])
def test_a_full_disk_is_one_error_and_the_same_command_goes_through_later(
    tiny, small_disk, tmp_path, before, place
):
    experiment, run = tiny.experiment(tiny.csv(tmp_path / "tiny.csv")), small_disk / "run"
    train_run(experiment, tmp_path / "undisturbed")
    said = rf"run/{place}: no space left on the disk or quota: [\d,]+ bytes are needed, [\d,]+ are free"
    with pytest.raises(OfaError, match=said):
        train_run(experiment, run, Filling(small_disk, before))
    assert not list(small_disk.rglob("*ofa-tmp"))
    assert sorted(entry.name for entry in (run / "checkpoints").iterdir()) == ["7"]
    assert open_run(run)[0].record.best_epoch == 1
    (small_disk / "filler").unlink()
    train_run(experiment, run)
    assert outcome(run) == outcome(tmp_path / "undisturbed")

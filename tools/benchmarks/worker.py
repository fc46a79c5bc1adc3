"""Work that is measured in a fresh process: its peak memory, or its time.

:func:`run` starts one. The process calls one of the functions below and prints its result as JSON. Libraries
are imported inside the functions, so that a process has those of one side only.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import held_bytes, peak_bytes
from benchmarks.sizes import Shape
from benchmarks.timing import seconds_of
from ofa_jax.errors import OfaError

TOOLS = Path(__file__).resolve().parents[1]
STARTED = "first step"
"""The line printed when the first step's loss is on the host."""


def command(work: str, **given: Any) -> list[str]:
    """The command line of a process that does ``work``."""
    plain = {name: asdict(value) if isinstance(value, Shape) else value for name, value in given.items()}
    return [sys.executable, "-c", "from benchmarks.worker import main; main()", work, json.dumps(plain)]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with these modules on the path, no compilation cache, no preallocation."""
    path = os.pathsep.join([str(TOOLS), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return {**os.environ, "PYTHONPATH": path, **ours, **(more or {})}


def run(work: str, **given: Any) -> dict[str, float]:
    """Do ``work`` in a fresh process and return what it measured.

    Raises:
        OfaError: The process failed; the message ends with its last line.
    """
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command(work, **given), env=environment(), **options)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise OfaError(f"the process that measures {work} failed: {last[0]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    given = json.loads(sys.argv[2])
    if "shape" in given:
        given["shape"] = Shape(**given["shape"])
    try:
        measured = WORK[sys.argv[1]](**given)
    except Exception as error:
        traceback.print_exc()
        # last, because jax appends a remark to its tracebacks
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        raise SystemExit(1) from None
    print(json.dumps(measured))


def step_ours(shape: Shape, batch: int, steps: int) -> dict[str, float]:
    """Training steps on noise."""
    from benchmarks import ours
    from ofa_jax.build import build_model

    imported = held_bytes()
    experiment = ours.experiment_of(shape, batch)
    task = ours.random_task(experiment, channels=1, windows=batch * steps, univariate=True)
    step = ours.training_step(experiment, task, build_model(experiment))
    for _ in range(steps):
        step()
    return {"imported": imported, "peak": peak_bytes()}


def step_theirs(shape: Shape, batch: int, steps: int) -> dict[str, float]:
    """The same in PyTorch."""
    import torch

    from benchmarks import theirs

    theirs.use_all_cores()
    imported = held_bytes()
    model = theirs.build(shape)
    training = theirs.Training(model, 1e-4)
    shapes = (batch, shape.input_length, 1), (batch, shape.horizon, 1)
    made = [(torch.randn(shapes[0]), torch.randn(shapes[1])) for _ in range(steps)]
    training.epoch(made)
    wte = model.base_model.model.gpt2.wte.weight
    return {"imported": imported, "peak": peak_bytes(), "token_embedding": wte.numel() * wte.element_size()}


def epoch_ours(config: str, overrides: list[str], out: str) -> dict[str, float]:
    """Epochs as ``ofa-jax train`` runs them."""
    from ofa_jax.config.load import load_experiment
    from ofa_jax.runs.train import train_run
    from ofa_jax.train.progress import SilentReporter

    imported = held_bytes()
    train_run(load_experiment(config, overrides), out, SilentReporter())
    return {"imported": imported, "peak": peak_bytes()}


def epoch_theirs(
    shape: Shape, batch: int, series: str, train: list[int], validation: list[int]
) -> dict[str, float]:
    """An epoch and its validation in PyTorch, over the standardized series in a CSV file."""
    import numpy as np
    import pandas as pd

    from benchmarks import theirs

    theirs.use_all_cores()
    imported = held_bytes()
    values = pd.read_csv(series).to_numpy(np.float32)
    training = theirs.Training(theirs.build(shape), 1e-3)
    sets = [theirs.Windows(values, (rows[0], rows[1]), shape) for rows in (train, validation)]
    training.epoch(theirs.loader(sets[0], batch, shuffle=True))
    training.validate(theirs.loader(sets[1], batch, shuffle=False))
    return {"imported": imported, "peak": peak_bytes()}


def first_step(config: str, overrides: list[str], out: str) -> dict[str, float]:
    """The command ``ofa-jax train`` up to the loss of its first step, which it reports on stdout."""
    from unittest.mock import patch

    from ofa_jax.cli.main import main as ofa_jax
    from ofa_jax.train.progress import ConsoleReporter

    def advance(reporter: ConsoleReporter, windows: int, loss: float) -> None:
        print(STARTED, flush=True)
        os._exit(0)

    sets = [word for text in overrides for word in ("--set", text)]
    sys.argv = ["ofa-jax", "train", config, "--out", out, *sets]
    with patch.object(ConsoleReporter, "advance", advance):
        ofa_jax()
    raise OfaError("training ended without a step")


def growth(
    shape: Shape, batch: int, channels: int, windows: int, univariate: bool, steps: int
) -> dict[str, float]:
    """Median seconds of a training step, and the peak above the imported libraries."""
    from benchmarks import ours
    from ofa_jax.build import build_model

    imported = held_bytes()
    experiment = ours.experiment_of(shape, batch)
    task = ours.random_task(experiment, channels=channels, windows=windows, univariate=univariate)
    step = ours.training_step(experiment, task, build_model(experiment))
    step()
    seconds = [seconds_of(step) for _ in range(steps)]
    return {"seconds": statistics.median(seconds), "bytes": peak_bytes() - imported}


WORK = {
    work.__name__: work for work in (step_ours, step_theirs, epoch_ours, epoch_theirs, first_step, growth)
}

"""Measure one training step, one evaluation step and start-up on the machine at hand.

The network is recipe `reference` at full size (six GPT-2 blocks of width 768, L 336, H 96) on a random trunk and generated series:
weights and data change no timing, so nothing is downloaded. What is measured takes turns, round by round, so that a busy spell of
the machine falls on all alike; medians stand beside the fastest and slowest round. Compilation is reported apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from ofa_jax.config import Experiment, build_experiment
from ofa_jax.data.synthetic import hourly_load
from ofa_jax.data.windows import IndexStream, WindowTable
from ofa_jax.tasks.base import Task
from ofa_jax.tasks.forecasting import prepare_frame
from ofa_jax.train.assemble import Model, build_model
from ofa_jax.train.optim import adam, learning_rate
from ofa_jax.train.step import dropout_key, init_state, make_chunk, make_eval_step

Measured = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure training, evaluation and start-up on this machine.")
    parser.add_argument("--batch-size", type=int, default=32, help="windows per step (default 32; the published runs use 256)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each measurement is taken (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    report = measure(arguments.batch_size, arguments.rounds)
    print(json.dumps(report) if arguments.json else _table(report))


def measure(batch_size: int, rounds: int) -> dict[str, object]:
    """Seconds of each measurement: ``first`` (with compilation), then median, fastest and slowest of the rounds after it."""
    experiment = build_experiment({"data": {"source": "generated"}, "trunk": {"source": "random"}, "train": {"batch_size": batch_size}})
    task = prepare_frame(hourly_load(24 * 7 * 20).frame, experiment.data, experiment.task).task
    model = build_model(experiment)
    script = str(Path(sys.executable).with_name("ofa-jax"))
    measured: dict[str, Measured] = {
        "training step": training_step(experiment, task, model),
        "evaluation step": evaluation_step(task, model, batch_size),
        "python, empty": _process(sys.executable, "-c", "pass"),
        "import ofa_jax": _process(sys.executable, "-c", "import ofa_jax"),
        "ofa-jax --help": _process(script, "--help"),
    }
    first = {name: _seconds(call) for name, call in measured.items()}
    taken: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, call in measured.items():
            taken[name].append(_seconds(call))
    return {
        "machine": {
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "cores": os.cpu_count(),
            "jax": jax.__version__,
            "python": sys.version.split()[0],
        },
        "batch_size": batch_size,
        "rounds": rounds,
        "compute_dtype": str(model.network.compute_dtype),
        "seconds": {
            name: {"first": first[name], "median": statistics.median(times), "fastest": min(times), "slowest": max(times)}
            for name, times in taken.items()
        },
    }


def training_step(experiment: Experiment, task: Task, model: Model) -> Measured:
    """One step as training takes it, gathering and dropout included, in a chunk of one."""
    table = task.tables["train"]
    batch_size = experiment.train.batch_size
    stream = IndexStream(table.size, batch_size, seed=experiment.train.seed)
    optimizer = adam(learning_rate(experiment.train, stream.steps_per_epoch))
    chunk = make_chunk(model.predict, task.loss, optimizer, task.spec)
    frozen, buffer, columns = jax.device_put((model.frozen, task.buffer, WindowTable(*table)))
    index_kb = jnp.asarray(stream.batches(0, 1))
    key = dropout_key(experiment.train.seed)
    state = init_state(model.trainable, optimizer)

    def step() -> None:
        nonlocal state
        state, losses = chunk(frozen, state, buffer, columns, index_kb, 1, key)
        jax.block_until_ready((state, losses))

    return step


def evaluation_step(task: Task, model: Model, batch_size: int) -> Measured:
    """One evaluation step: forecasts of a batch of test windows and their errors."""
    table = task.tables["test"]
    evaluate = make_eval_step(model.predict, task.sums, task.spec)
    frozen, trainable, buffer, columns = jax.device_put((model.frozen, model.trainable, task.buffer, WindowTable(*table)))
    index_b = jnp.asarray(IndexStream(table.size, batch_size, seed=None).batches(0, 1)[0])
    return lambda: jax.block_until_ready(evaluate(frozen, trainable, buffer, columns, index_b))


def _process(*command: str) -> Measured:
    return lambda: subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _seconds(call: Measured) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _table(report: dict) -> str:
    machine = report["machine"]
    lines = [
        f"{machine['devices']} x {machine['device']}, {machine['cores']} CPU cores, jax {machine['jax']}, Python {machine['python']}",
        f"batches of {report['batch_size']} windows, {report['compute_dtype']}; {report['rounds']} rounds, taken in turns",
        "",
        f"{'seconds':18}{'median':>9}{'fastest':>9}{'slowest':>9}{'first':>9}",
    ]
    for name, taken in report["seconds"].items():
        rate = f"   {report['batch_size'] / taken['median']:.1f} windows/s" if name.endswith(" step") else ""
        lines.append(f"{name:18}{taken['median']:9.3f}{taken['fastest']:9.3f}{taken['slowest']:9.3f}{taken['first']:9.3f}{rate}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

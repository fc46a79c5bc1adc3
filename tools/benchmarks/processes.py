"""Peak memory, start-up and growth: measured in fresh processes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import ours
from benchmarks.quick import CONFIG, overrides
from benchmarks.schema import Growth, Point, Row, Section, Stat, Target, make_row, once
from benchmarks.sizes import Axis, Sizes
from benchmarks.timing import WORSE, Call, Taken, alternate, exponent, timed_row, upper_half
from benchmarks.worker import STARTED, command, environment, run
from ofa_jax.config.load import load_experiment
from ofa_jax.errors import OfaError
from ofa_jax.runs.train import read_data
from ofa_jax.tasks.forecast import ForecastData

MEMORY_TARGET = Target(of="ratio", bound="at most", value=0.6)
HELP_TARGET = Target(of="ours", bound="at most", value=0.5)
FIRST_STEP_TARGET = Target(of="ours", bound="at most", value=5.0)
CACHE = {
    "JAX_ENABLE_COMPILATION_CACHE": "true",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
"""Environment in which jax keeps every program in the folder JAX_COMPILATION_CACHE_DIR."""


def memory_section(sizes: Sizes) -> Section:
    """The section ``memory``."""
    given: dict[str, Any] = {"shape": sizes.shape, "batch": sizes.batch, "steps": sizes.memory_steps}
    step = {side: run(f"step_{side}", **given) for side in ("ours", "theirs")}
    with tempfile.TemporaryDirectory() as scratch:
        settings = [*overrides(sizes, Path(scratch), 1), f"data.percent={sizes.memory_percent}"]
        experiment = load_experiment(CONFIG, settings)
        data = read_data(experiment)
        assert isinstance(data, ForecastData)
        series = Path(scratch) / "series.csv"
        pd.DataFrame(data.task.buffer).to_csv(series, index=False)
        rows = {part: data.borders[part] for part in ("train", "validation")}
        shape, batch = ours.shape_of(experiment), experiment.train.batch_size
        epoch = {
            "ours": run("epoch_ours", config=str(CONFIG), overrides=settings, out=f"{scratch}/run"),
            "theirs": run("epoch_theirs", shape=shape, batch=batch, series=str(series), **rows),
        }
    part = "all" if sizes.memory_percent == 100 else f"the first {sizes.memory_percent} %"
    embedding = step["theirs"]["token_embedding"] / 1e6
    return Section(
        name="memory",
        title="Peak memory",
        text="The peak of a fresh process (resident memory; on an accelerator the device's), frozen "
        f"weights included: {sizes.memory_steps} train steps as above, and an epoch of the quick settings "
        f"over {part} of the training windows with all validation windows, read from a CSV file by pandas "
        "on both sides. The second row of each is without the memory of the imported libraries. PyTorch's "
        f"network has GPT-2's token embedding ({embedding:.0f} MB at this shape), which transformers always "
        "builds and nothing here uses.",
        rows=[*_memory_rows("train step", step, MEMORY_TARGET), *_memory_rows("quick epoch", epoch)],
    )


def _memory_rows(what: str, taken: dict[str, dict[str, float]], target: Target | None = None) -> list[Row]:
    def row(name: str, of: Callable[[dict[str, float]], float], target: Target | None = None) -> Row:
        mine, other = of(taken["ours"]), of(taken["theirs"])
        compared = once(mine, other, "ours/theirs")
        return make_row(f"{what}, {name}", "bytes", Stat(median=mine), Stat(median=other), compared, target)

    return [
        row("whole process", lambda side: side["peak"], target),
        row("over the imported libraries", lambda side: side["peak"] - side["imported"]),
        row("the imported libraries", lambda side: side["imported"]),
    ]


def start_section(sizes: Sizes) -> Section:
    """The section ``start``."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import ofa_jax": [sys.executable, "-c", "import ofa_jax"],
        "ofa-jax --help": [sys.executable, "-c", "from ofa_jax.cli.main import main; main()", "--help"],
    }
    taken = alternate({name: _process(words) for name, words in commands.items()}, sizes.process_rounds)
    with tempfile.TemporaryDirectory() as scratch:
        taken |= _first_steps(sizes, Path(scratch))
    targets = {"ofa-jax --help": HELP_TARGET, "first trained step, cache filled": FIRST_STEP_TARGET}
    return Section(
        name="start",
        title="Start",
        text="From the start of a fresh process to its end; for the quick settings, to the loss of the "
        "first trained step on the host, with data read and network built: with jax's persistent "
        "compilation cache turned off, and with one filled by an earlier run (JAX_COMPILATION_CACHE_DIR, "
        "every program kept).",
        rows=[timed_row(name, found, target=targets.get(name)) for name, found in taken.items()],
    )


def _process(words: list[str]) -> Call:
    return lambda: subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _first_steps(sizes: Sizes, scratch: Path) -> dict[str, Taken]:
    # the program is that of a chunk of 32 steps, of which one is run
    settings = [*overrides(sizes, scratch, 1), "train.chunk=1"]
    cache = {**CACHE, "JAX_COMPILATION_CACHE_DIR": str(scratch / "cache")}
    runs = count()

    def seconds(variables: dict[str, str]) -> float:
        return _until_first_step(settings, scratch / f"run{next(runs)}", environment(variables))

    without, filled = Taken(None), Taken(seconds(cache))
    for _ in range(sizes.start_rounds):
        without.seconds.append(seconds({}))
        filled.seconds.append(seconds(cache))
    return {"first trained step, no compilation cache": without, "first trained step, cache filled": filled}


def _until_first_step(settings: list[str], out: Path, variables: dict[str, str]) -> float:
    """Seconds from the start of a process to the loss of its first step."""
    words = command("first_step", config=str(CONFIG), overrides=settings, out=str(out))
    pipes: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    start = time.perf_counter()
    with subprocess.Popen(words, env=variables, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
        if line.strip() != STARTED:
            last = process.stderr.read().strip().splitlines()[-1:] or ["no message"]
            raise OfaError(f"the quick run took no step: {last[0]}")
    return seconds


def growth_section(sizes: Sizes) -> Section:
    """The section ``growth``."""
    shape = sizes.growth_shape
    return Section(
        name="growth",
        title="Growth",
        text=f"A training step of a small network ({shape.tokens} tokens x {shape.n_embd} x {shape.n_layer} "
        f"blocks, {sizes.growth_batch} windows from a table of {sizes.growth_windows:,}; channels: "
        f"{sizes.growth_samples} windows of all channels), each point in a fresh process: median seconds of "
        "a step, with its index, and peak resident memory above the imported libraries, compilation "
        f"included. The exponents are those of the upper half of each curve; above {WORSE} counts as worse "
        "than linear.",
        growth=[_curve(sizes, axis, xs) for axis, xs in sizes.growth.items()],
    )


def _curve(sizes: Sizes, axis: Axis, xs: tuple[int, ...]) -> Growth:
    points = [Point.model_validate({"x": x, **_point(sizes, axis, x)}) for x in xs]
    of_time, of_memory = exponent(xs, [p.seconds for p in points]), exponent(xs, [p.bytes for p in points])
    return Growth(
        axis=axis,
        points=points,
        fitted=upper_half(len(xs)),
        time_exponent=of_time,
        memory_exponent=of_memory,
        worse_than_linear=max(of_time, of_memory) > WORSE,
    )


def _point(sizes: Sizes, axis: Axis, x: int) -> dict[str, float]:
    shape, windows = sizes.growth_shape, sizes.growth_windows
    given: dict[str, Any] = {
        "batch": sizes.growth_batch,
        "channels": 1,
        "windows": windows,
        "univariate": True,
    }
    if axis == "channels":
        given |= {"batch": sizes.growth_samples, "windows": windows // 10, "univariate": False}
    if axis in ("horizon", "rank"):
        shape = replace(shape, **{axis: x})
    else:
        given[axis] = x
    return run("growth", shape=shape, steps=sizes.growth_steps, **given)

"""Benchmark ofa-jax against PyTorch and the machine's limit, and as its inputs grow; JSON and Markdown.

    python tools/bench.py --json runs/bench.json --markdown runs/bench.md

Nine sections, by name (``--only step,roof``):

- ``step``       one training step at the paper's shape, against transformers' GPT-2 + peft + Adam;
- ``inference``  windows per second, latency of one window, adapters unmerged and merged, against the same;
- ``roof``       the best rate of matrix products, and the share of it that ``step`` and ``inference`` reach;
- ``nano``       the pretrained trunk: forecasts and train step, and what a user waits for;
- ``epoch``      an epoch of configs/quick/etth1.yaml against the same loop with a DataLoader;
- ``memory``     peak memory of ``step`` and ``epoch``, each side in fresh processes;
- ``start``      import, ``--help``, and time to the first trained step without and with a compilation cache;
- ``sweep``      several ranks of the quick settings in one sweep, against separate runs;
- ``growth``     time and memory against channels, windows, horizon, rank and batch, with exponents.

Eleven minutes on two cores; ``--full`` uses the paper's batch of 256. The epoch is of ETTh1 if
``OFA_JAX_DATA`` has it, else of generated series of the same size. PyTorch, transformers and peft are
installed by ``pip install torch==2.13.0`` and ``pip install -e '.[bench]'``; ``start``, ``sweep`` and
``growth`` do not need them. On a GPU the same sections run in bfloat16, PyTorch under autocast and
``torch.compile``; this was never run.

The JSON is a ``Report`` of tools/benchmarks/schema.py, which defines every field and rejects unknown ones.
"""

from __future__ import annotations

import datetime
import importlib.util
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import jax
import typer
from benchmarks.machine import commit, machine
from benchmarks.nano import nano_section
from benchmarks.page import render
from benchmarks.paper import Paper, inference_section, roof_section, step_section
from benchmarks.processes import growth_section, memory_section, start_section
from benchmarks.quick import epoch_section
from benchmarks.schema import Report, Section, SectionName
from benchmarks.sizes import DEFAULT, FULL, Sizes
from benchmarks.sweep import sweep_section
from pydantic.dataclasses import dataclass

from ofa_jax.errors import ConfigError, OfaError
from ofa_jax.files import write_atomic
from ofa_jax.studies import Choices, Listed


@dataclass(frozen=True)
class Asked(Choices):
    """The sections that are asked for."""

    only: Listed[SectionName]


NAMES: tuple[SectionName, ...] = get_args(SectionName)
COMPARED: tuple[SectionName, ...] = ("step", "inference", "roof", "nano", "epoch", "memory")


def measure(sizes: Sizes, names: Sequence[SectionName], say: Callable[[str], object], command: str) -> Report:
    """Run sections in their own order.

    Args:
        sizes: How large everything is.
        names: Which sections.
        say: Receives a message per finished section.
        command: Recorded in the report.

    Raises:
        ConfigError: PyTorch is missing for a section that needs it.
        OfaError: The two sides do not compute the same, or a process failed.
    """
    _check_theirs(names)
    paper, done = Paper(sizes), list[Section]()
    work: dict[SectionName, Callable[[], Section]] = {
        "step": lambda: step_section(paper),
        "inference": lambda: inference_section(paper),
        "roof": lambda: roof_section(paper, done),
        "nano": lambda: nano_section(sizes),
        "epoch": lambda: epoch_section(sizes),
        "memory": lambda: memory_section(sizes),
        "start": lambda: start_section(sizes),
        "sweep": lambda: sweep_section(sizes),
        "growth": lambda: growth_section(sizes),
    }
    for name in NAMES:
        if name in names:
            start = time.perf_counter()
            section = work[name]()
            done.append(section.model_copy(update={"seconds": time.perf_counter() - start}))
            say(f"{name}: {done[-1].seconds:.0f} s")
    return Report(
        command=command,
        commit=commit(),
        date=datetime.date.today().isoformat(),
        compute_dtype=str(paper.compute_dtype),
        machine=machine(),
        sections=done,
    )


def _check_theirs(names: Sequence[SectionName]) -> None:
    packages = ("torch", "transformers", "peft")
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing and (compared := [name for name in names if name in COMPARED]):
        what = f"{' and '.join(missing)} cannot be imported, and {', '.join(compared)} compare with PyTorch"
        fix = "pip install torch==2.13.0; pip install -e '.[bench]'; or measure --only start,sweep,growth"
        raise ConfigError(what, fix=fix)


def _refuse_folder(path: Path | None) -> None:
    if path is not None and path.is_dir():  # now, not after ten minutes
        raise ConfigError("this is a folder, not a file", where=str(path), fix="Name a file")


def main(
    full: Annotated[
        bool, typer.Option("--full", help="Use the paper's batch of 256, and more rounds.")
    ] = False,
    only: Annotated[
        str,
        typer.Option(metavar="NAMES", help=f"Comma-separated sections; default: all of {', '.join(NAMES)}."),
    ] = "",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Windows per training step; default: 16, with --full 256.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the numbers to this file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page to this file; default: print it.")
    ] = None,
) -> None:
    """Benchmark ofa-jax against PyTorch and against this machine's limit."""
    listed: Any = only or NAMES
    asked = Asked(only=listed).only
    names = [name for name in NAMES if name in asked]
    for path in (json, markdown):
        _refuse_folder(path)
    sizes = FULL if full else DEFAULT
    sizes = sizes if batch is None else replace(sizes, batch=batch)
    command = shlex.join(["python", "tools/bench.py", *sys.argv[1:]])
    report = measure(sizes, names, partial(print, file=sys.stderr, flush=True), command)
    if json is not None:
        write_atomic(json, report.model_dump_json(indent=1) + "\n")
    if markdown is not None:
        write_atomic(markdown, render(report))
    else:
        print(render(report), end="")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # first calls include compilation
    try:
        app()
    except OfaError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        raise SystemExit(2) from None

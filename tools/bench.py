"""Measure ofa-jax beside PyTorch, beside the machine's own limit, and as its inputs grow: one JSON, one Markdown page.

    python tools/bench.py --json runs/bench.json --markdown runs/bench.md

Eight sections, by name (``--only step,roof``):

- ``step``       one training step at the paper's shape, against transformers' GPT-2 + peft + Adam;
- ``inference``  forecasts: windows per second, latency of one window, adapters unmerged and merged, against the same;
- ``roof``       the best rate of dense matrix products, and the share of it that ``step`` and ``inference`` reach, where they ran;
- ``epoch``      an epoch of configs/quick/etth1.yaml against the same loop with a DataLoader;
- ``memory``     peak memory of ``step`` and ``epoch``, each side in fresh processes;
- ``start``      import, ``--help``, and the time to the first trained step without and with a compilation cache;
- ``sweep``      several ranks of the quick settings in one sweep, against the same runs one after another, of ours;
- ``growth``     time and memory against channels, windows, horizon, rank and batch, with the exponents of the curves.

Eleven minutes on two cores; ``--full`` takes the paper's batch of 256. The epoch is that of ETTh1 where ``OFA_JAX_DATA`` has it, else of
generated series of the same size. PyTorch, transformers and peft come with ``pip install torch==2.13.0`` and ``pip install -e '.[bench]'``;
``start``, ``sweep`` and ``growth`` need none of them. On a GPU the same sections run in bfloat16, PyTorch's side under autocast and
``torch.compile``: written for it, never run on one.

The JSON is one object (``Report`` in tools/benchmarks/schema.py, whose fields are refused where they are unknown or of another kind):

- ``format`` 1; ``command``; ``commit``, with ``-dirty`` where files had changed; ``date``; ``compute_dtype``;
- ``machine``: ``cpu``, ``cores``, ``memory_bytes``, ``system``, ``device``, ``devices``, ``versions`` by package;
- ``sections``: a list of ``{name, title, text, seconds, rows, growth}``, ``seconds`` being the section's wall time;
- a row is ``{what, unit, ours, theirs, ratio, target, reached, note}``. ``ours`` and ``theirs`` are null or ``{median, low, high, rounds,
  first}`` in ``unit`` (``first``: seconds of the first call), ``ratio`` is null or ``{of, value, low, high}`` with ``of`` either
  ``theirs/ours`` or ``ours/theirs``, ``target`` null or ``{of, bound, value}`` on the ratio or on ours, ``reached`` null or the verdict;
- a growth curve is ``{axis, points: [{x, seconds, bytes}], fitted, time_exponent, memory_exponent, worse_than_linear}``.
"""

from __future__ import annotations

import datetime
import importlib.util
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import jax
import typer
from benchmarks.machine import commit, machine
from benchmarks.page import render
from benchmarks.paper import Paper, inference_section, roof_section, step_section
from benchmarks.processes import growth_section, memory_section, start_section
from benchmarks.quick import epoch_section
from benchmarks.schema import Report, Section, SectionName
from benchmarks.sizes import DEFAULT, FULL, Sizes
from benchmarks.sweep import sweep_section

from ofa_jax.errors import ConfigError, OfaError
from ofa_jax.files import write_atomic

NAMES: tuple[SectionName, ...] = get_args(SectionName)
COMPARED: tuple[SectionName, ...] = ("step", "inference", "roof", "epoch", "memory")


def measure(sizes: Sizes, names: Sequence[SectionName], say: Callable[[str], object], command: str) -> Report:
    """Run sections in their own order.

    Args:
        sizes: How large everything is.
        names: Which sections.
        say: Told of each section when it is done.
        command: What the report says it was made by.

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
    missing = [
        package for package in ("torch", "transformers", "peft") if importlib.util.find_spec(package) is None
    ]
    if missing and any(name in COMPARED for name in names):
        raise ConfigError(
            f"{' and '.join(missing)} cannot be imported, and {', '.join(name for name in names if name in COMPARED)} compare with PyTorch",
            fix="pip install torch==2.13.0; pip install -e '.[bench]'; or measure --only start,sweep,growth",
        )


def chosen(only: str) -> tuple[SectionName, ...]:
    """The sections that ``--only`` names; all where it names none.

    Raises:
        ConfigError: There is no such section.
    """
    asked = [name.strip() for name in only.split(",") if name.strip()]
    if wrong := [name for name in asked if name not in NAMES]:
        raise ConfigError(
            f"{wrong[0]!r} is no section",
            where="--only",
            fix=f"Name some of {', '.join(NAMES)}, with commas between",
        )
    return tuple(name for name in NAMES if name in asked) if asked else NAMES


def _refuse_folder(path: Path | None) -> None:
    if path is not None and path.is_dir():  # now, not after ten minutes
        raise ConfigError(
            "this is a folder, so no file can be written there", where=str(path), fix="Name a file"
        )


def main(
    full: Annotated[bool, typer.Option("--full", help="The paper's batch of 256, and more rounds.")] = False,
    only: Annotated[
        str,
        typer.Option(metavar="NAMES", help=f"Only these sections, with commas between: {', '.join(NAMES)}."),
    ] = "",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Windows of a training step; 16, with --full 256.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the numbers there.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page there; else it is printed.")
    ] = None,
) -> None:
    """Measure ofa-jax beside PyTorch and beside this machine's own limit."""
    names = chosen(only)
    for path in (json, markdown):
        _refuse_folder(path)
    sizes = FULL if full else DEFAULT
    report = measure(
        sizes if batch is None else replace(sizes, batch=batch),
        names,
        lambda text: print(text, file=sys.stderr, flush=True),
        shlex.join(["python", "tools/bench.py", *sys.argv[1:]]),
    )
    if json is not None:
        write_atomic(json, report.model_dump_json(indent=1) + "\n")
    if markdown is not None:
        write_atomic(markdown, render(report))
    else:
        print(render(report), end="")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # first calls are told with their compilation
    try:
        app()
    except OfaError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        raise SystemExit(2) from None

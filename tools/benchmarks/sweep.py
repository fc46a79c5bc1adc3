"""A sweep of several adapters beside the same runs one after another: wall time of either, compilation and all."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.quick import CONFIG, overrides
from benchmarks.schema import Row, Section, Stat
from benchmarks.sizes import Sizes
from ofa_jax.baselines.compare import compare
from ofa_jax.config.load import load_experiment
from ofa_jax.errors import OfaError
from ofa_jax.runs.train import open_run, train_run
from ofa_jax.studies.sweep.cells import Axes, cells_of
from ofa_jax.studies.sweep.folder import run_sweep
from ofa_jax.train.progress import SilentReporter

SHARE = "sweep's share of the time of separate runs"
ALIKE = 1e-3
"""Test errors of the two ways agree to this share of them, or the comparison would mean nothing: rounding alone differs."""


def sweep_section(sizes: Sizes) -> Section:
    """Section 8: each way once, in one process; the separate runs first, so that files are read from memory by both."""
    axes = Axes(ranks=sizes.sweep_ranks, seeds=sizes.sweep_seeds)
    with tempfile.TemporaryDirectory() as scratch:
        experiment = load_experiment(
            CONFIG, [*overrides(sizes, Path(scratch), 1), f"data.percent={sizes.sweep_percent}"]
        )
        errors, begun = [], time.perf_counter()
        for cell in cells_of(experiment, axes):
            train_run(cell.experiment, Path(scratch) / cell.name, SilentReporter())
            row = compare(
                *open_run(Path(scratch) / cell.name), split="test", baselines=None, reporter=SilentReporter()
            ).rows[0]
            errors.append(row.metrics["mse"])
        middle = time.perf_counter()
        sweep = run_sweep(experiment, axes, Path(scratch) / "sweep", SilentReporter())
        ended = time.perf_counter()
        if sizes.sweep_at_once is not None:
            run_sweep(
                experiment, axes, Path(scratch) / "abreast", SilentReporter(), at_once=sizes.sweep_at_once
            )
        seconds = {
            "separate": middle - begun,
            "sweep": ended - middle,
            "abreast": time.perf_counter() - ended,
        }
    for own, other in zip(sweep.cells["test_mse"], errors, strict=True):
        if abs(own - other) > ALIKE * other:
            raise OfaError(
                f"a cell of the sweep has a test error of {own}, its own run {other}: the comparison would mean nothing"
            )
    usual = max(sweep.record["at_once"].values())
    ranks = ", ".join(map(str, sizes.sweep_ranks))
    rows = [
        Row(what=f"a sweep, {usual} at a time as chosen here", unit="s", ours=Stat(median=seconds["sweep"]))
    ]
    if sizes.sweep_at_once is not None:
        rows.append(
            Row(
                what=f"a sweep, {sizes.sweep_at_once} at a time",
                unit="s",
                ours=Stat(median=seconds["abreast"]),
            )
        )
    rows += [
        Row(what="separate runs, one after another", unit="s", ours=Stat(median=seconds["separate"])),
        Row(what=SHARE, unit="share", ours=Stat(median=seconds["sweep"] / seconds["separate"])),
    ]
    return Section(
        name="sweep",
        title="Sweep",
        text=f"Ranks {ranks} by {sizes.sweep_seeds} seed{'s' if sizes.sweep_seeds > 1 else ''} of the quick settings for an epoch of "
        f"{sizes.sweep_percent} % of the training windows, with validation and test: once by `run_sweep`, which is `ofa-jax sweep`, and "
        "once by `train_run` and `compare` for each, in this one process; no process starts and no imports are counted. Compilation is "
        "counted on both sides: the sweep has a program per bucket of ranks, every run has its own. The longer the runs, the less of "
        "the difference is left. The test errors of the two ways were compared and agree."
        + (
            " All ten ranks by three seeds: [benchmarks-sweep.md](benchmarks-sweep.md)."
            if sizes.sweep_seeds == 1
            else ""
        ),
        rows=rows,
    )

"""A sweep of several adapters against separate runs: wall time of both, with compilation."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.quick import CONFIG, overrides
from benchmarks.schema import Section, Stat, make_row
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
"""Largest relative difference of the two ways' test errors; only rounding differs."""


def sweep_section(sizes: Sizes) -> Section:
    """The section ``sweep``: each way once; separate runs first, so that both read cached files."""
    axes, silent = Axes(ranks=sizes.sweep_ranks, seeds=sizes.sweep_seeds), SilentReporter()
    seconds, errors, side_by_side = {}, [], sizes.sweep_at_once
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = [*overrides(sizes, folder, 1), f"data.percent={sizes.sweep_percent}"]
        experiment = load_experiment(CONFIG, settings)
        start = time.perf_counter()
        for cell in cells_of(experiment, axes):
            train_run(cell.experiment, folder / cell.name, silent)
            scored = compare(*open_run(folder / cell.name), split="test", baselines=None, reporter=silent)
            errors.append(scored.rows[0].metrics["mse"])
        separate = time.perf_counter() - start
        for at_once in (None, *([] if side_by_side is None else [side_by_side])):
            start = time.perf_counter()
            made = run_sweep(experiment, axes, folder / f"sweep-{at_once}", silent, at_once=at_once)
            chosen = max(made.record["at_once"].values())
            what = f"a sweep, {chosen} at a time" + (" as chosen here" if at_once is None else "")
            seconds[what] = time.perf_counter() - start
            _check_alike(list(made.cells["test_mse"]), errors)
    rows = [make_row(what, "s", Stat(median=taken)) for what, taken in seconds.items()]
    share = next(iter(seconds.values())) / separate
    ranks, seeds = ", ".join(map(str, sizes.sweep_ranks)), sizes.sweep_seeds
    full = " All ten ranks by three seeds: [benchmarks-sweep.md](benchmarks-sweep.md)." if seeds == 1 else ""
    return Section(
        name="sweep",
        title="Sweep",
        text=f"Ranks {ranks} by {seeds} seed{'s' if seeds > 1 else ''} of the quick settings for an epoch "
        f"of {sizes.sweep_percent} % of the training windows, with validation and test: once by "
        "`run_sweep`, as `ofa-jax sweep` does, and once by `train_run` and `compare` for each, in this one "
        "process, so without process starts and imports. Both include compilation: the sweep has a program "
        "per bucket of ranks, every run its own. The longer the runs, the smaller the difference. The test "
        f"errors of the two ways were compared and agree.{full}",
        rows=[
            *rows,
            make_row("separate runs, one after another", "s", Stat(median=separate)),
            make_row(SHARE, "share", Stat(median=share)),
        ],
    )


def _check_alike(cells: list[float], runs: list[float]) -> None:
    for own, other in zip(cells, runs, strict=True):
        if abs(own - other) > ALIKE * other:
            raise OfaError(f"a cell's test error is {own}, that of a separate run {other}: not comparable")

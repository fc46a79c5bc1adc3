"""The trunk ``nano``: forecasts and train step against PyTorch, and what a user waits for."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from benchmarks import ours
from benchmarks.paper import check_same, matmul_chain
from benchmarks.processes import environment
from benchmarks.schema import Row, Section, Stat, Target, make_row, stat
from benchmarks.sizes import NanoShape, Sizes
from benchmarks.timing import Call, Taken, alternate, rate_row, seconds_of, timed_row
from ofa_jax import OneForAllForecaster, PredictionIntervals
from ofa_jax.build import Model, build_model
from ofa_jax.config.schema import Experiment
from ofa_jax.data.catalog.load import DATA_VARIABLE
from ofa_jax.data.synthetic import hourly_load
from ofa_jax.estimators.engine import forecast_experiment, forecast_windows
from ofa_jax.runs.train import train_run

FASTER = Target(of="ratio", bound="at least", value=2.0)
ROOF_TARGET = Target(of="ours", bound="at least", value=0.6)
COLD_TARGET = Target(of="ours", bound="at most", value=4.0)
FIT_TARGET = Target(of="ours", bound="at most", value=90.0)
PANEL_TARGETS = {
    "zero-shot": Target(of="ours", bound="at most", value=5.0),
    "fit": Target(of="ours", bound="at most", value=60.0),
}
PANEL_STEPS = 500


def experiment_of(shape: NanoShape, batch: int) -> Experiment:
    """Settings of adapting nano by gradient steps, recipe ``reference``."""
    adapters = {"rank": shape.rank, "alpha": shape.alpha, "dropout": 0}
    train = {"batch_size": batch, "learning_rate": 1e-3, "schedule": "constant", "solver": "gradient"}
    length, horizon = shape.input_length, shape.horizon
    return forecast_experiment("nano", length, horizon, "reference", adapters=adapters, train=train)


def forward(shape: NanoShape) -> int:
    """Operations of a forecast's matrix products, of both signs (tools/benchmarks/flops.py).

    Counted as ofa-jax computes them: the last block has queries, keys and values of all tokens, and the rest
    of those that are read.
    """
    d, n, ahead, read = shape.n_embd, shape.tokens, shape.horizon // shape.patch, shape.tokens_read
    blocks = (shape.n_layer - 1) * n * (24 * d**2 + 4 * n * d) + 6 * n * d**2 + read * (18 * d**2 + 4 * n * d)
    heads = 2 * d * 10 * shape.patch * ahead
    return 2 * (blocks + 2 * 6 * n * shape.patch * d + heads) + 2 * read * d * shape.horizon


def nano_section(sizes: Sizes) -> Section:
    """The section ``nano``."""
    from benchmarks import nano_torch, theirs

    theirs.use_all_cores()
    shape = sizes.nano
    experiment = experiment_of(shape, sizes.nano_batch)
    model = ours.with_moved_adapters(build_model(experiment))
    module = theirs.build(shape, *ours.flat_parameters(model), network=nano_torch.Nano)
    task = ours.generated_task(experiment)
    training = theirs.Training(module, 1e-3, fast=False)
    training.model.eval()  # nano has no dropout, and peft's would be of the adapters alone
    step = ours.training_step(experiment, task, model)
    turns = cycle(theirs.tensors(ours.batches(experiment, task, 8)))
    for _ in range(3):
        check_same("losses", np.array(step()), np.array(training.step(*next(turns))))
    x_btc = np.concatenate([x for x, _ in ours.batches(experiment, task, sizes.nano_windows)])
    x_btc = x_btc[: sizes.nano_windows].astype(np.float32)
    module = theirs.build(shape, *ours.flat_parameters(model), network=nano_torch.Nano)
    forecasts = nano_torch.forecasts(module)
    mine = partial(_forecast, model)
    check_same("forecasts", mine(x_btc[:8]), forecasts(x_btc[:8])[..., 0])
    batch = _best_batch(forecasts, x_btc)
    total = forward(shape) * len(x_btc)
    tokens, d = 64 * shape.tokens, shape.n_embd
    chain, work = matmul_chain(tokens, d, 4 * d, total / 2, jnp.dtype(jnp.float32))
    square, area = matmul_chain(1024, 1024, 1024, total / 2, jnp.dtype(jnp.float32))
    calls: dict[str, Call] = {
        "ours": lambda: mine(x_btc),
        "theirs": lambda: [forecasts(x_btc[at : at + batch]) for at in range(0, len(x_btc), batch)],
        "chain": chain,
        "square": square,
    }
    taken = alternate(calls, sizes.rounds)
    roofs = [[flops / s for s in taken[name].seconds] for name, flops in (("chain", work), ("square", area))]
    best = max(roofs, key=statistics.median)
    reached = [total / s / top for s, top in zip(taken["ours"].seconds, best, strict=True)]
    steps = {"ours": step, "theirs": lambda: training.step(*next(turns))}
    trained = alternate(steps, sizes.rounds)
    rows = [
        rate_row("forecasts with quantiles", len(x_btc), taken["ours"], taken["theirs"], FASTER),
        make_row("forecasts' share of the roof", "share", stat(reached), target=ROOF_TARGET),
        timed_row("train step, recipe reference", trained["ours"], trained["theirs"], FASTER),
        *_waits(sizes),
    ]
    return Section(
        name="nano",
        title="The trunk nano",
        text=f"Contexts of {shape.input_length} steps, horizon {shape.horizon}, {len(x_btc)} windows at a "
        f"time: PyTorch in batches of {batch}, the faster of 32 and 256, ofa-jax by the estimators' own "
        "function, which works on a batch per core at the same time and computes the last block for the "
        f"tokens that are read. A forecast takes {forward(shape) / 1e6:.0f} million operations in matrix "
        "products; the roof is the better of two chains of products, of the MLP and of squares, in the same "
        f"turns. A train step of {sizes.nano_batch} windows adapts `wpe` and `out_layer` with rank "
        f"{shape.rank}; the first three losses, and the forecasts, were the same on both sides. Then what a "
        "user waits for: a fresh "
        f"process from start to end; {sizes.nano_panel:,} series of {PANEL_STEPS} steps (horizon 24, with "
        "intervals) in a process that has imported ofa_jax, compilation included; and the closed form on "
        "ETTh1, all training windows, where `OFA_JAX_DATA` has it.",
        rows=rows,
    )


def _forecast(model: Model, x_btc: np.ndarray) -> np.ndarray:
    return forecast_windows(model, x_btc[..., 0].astype(np.float64)).mean.astype(np.float32)


def _best_batch(forecasts: Callable[[np.ndarray], np.ndarray], x_btc: np.ndarray) -> int:
    def seconds(size: int) -> float:
        forecasts(x_btc[:size])
        return seconds_of(partial(forecasts, x_btc[:size])) / size

    return min((32, 256), key=seconds)


def _waits(sizes: Sizes) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "load.csv"
        frame = hourly_load(24 * 7 * 8, n_series=1).frame
        pd.DataFrame({"date": frame.timestamps, "load": frame.values[:, 0]}).to_csv(path, index=False)
        words = [
            sys.executable,
            "-c",
            "from ofa_jax.cli.main import main; main()",
            "forecast",
            str(path),
            "--horizon",
            "24",
        ]
        cold = Taken(None)
        for _ in range(sizes.start_rounds):
            call = partial(subprocess.run, words, check=True, env=environment({}), capture_output=True)
            cold.seconds.append(seconds_of(call))
        yield timed_row("ofa-jax forecast on a CSV of two columns", cold, target=COLD_TARGET)
        yield from _panel(sizes.nano_panel)
        if os.environ.get(DATA_VARIABLE) and sizes.real_data:
            shape = sizes.nano
            experiment = forecast_experiment(
                "nano", shape.input_length, shape.horizon, "output", adapters={}, train={}
            )
            begun = time.perf_counter()
            train_run(experiment.replace({"data.source": "etth1"}), Path(scratch) / "run")
            found = Stat(median=time.perf_counter() - begun)
            yield make_row("closed form on ETTh1", "s", found, target=FIT_TARGET)


def _panel(count: int) -> Iterator[Row]:
    draw = np.random.default_rng(0)
    at = np.arange(PANEL_STEPS)
    values = np.sin(2 * np.pi * (at / 12 + draw.random((count, 1)))) + 0.3 * draw.normal(
        size=(count, PANEL_STEPS)
    )
    days = pd.date_range("2020-01-01", periods=PANEL_STEPS, freq="D")
    names = np.repeat([f"s{number}" for number in range(count)], PANEL_STEPS)
    frame = pd.DataFrame({"unique_id": names, "ds": np.tile(days, count), "y": values.ravel()})
    jax.clear_caches()
    model = OneForAllForecaster(24)
    first = seconds_of(lambda: model.predict(frame, level=[80, 90]))
    fitted = seconds_of(lambda: model.fit(frame, prediction_intervals=PredictionIntervals(n_windows=10)))
    for what, seconds in (("zero-shot", first), ("fit", fitted)):
        row = f"{count:,} series, {what}"
        yield make_row(row, "s", Stat(median=seconds), target=PANEL_TARGETS[what])

"""Errors of a pretrained trunk, zero-shot and adapted: published long-term test windows, and M3 and M4.

    OFA_JAX_DATA=DATA python tools/pretrained.py --out runs/pretrained --percent 10 100
        --record docs/results/nano.json

Every test window with the last 512 steps before it, zero-shot and, given `--percent`, with an adapter (recipe
`output`, rank 16, in closed form) from the first share of the training part, next to ridge regression from
the same windows. M3 and M4: the last H steps of every series, from all before them, as the competitions have
it; the forecast is the median, which minimizes absolute errors, elsewhere the mean.
What RECORD holds already is not computed again, as long as the trunk is the same. Prints the tables in
Markdown.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.baselines.ridge import solve_nlinear
from ofa_jax.build import Model, build_model
from ofa_jax.data.catalog.load import load_collection
from ofa_jax.data.seasons import season_length
from ofa_jax.estimators.engine import forecast_experiment, forecast_windows
from ofa_jax.files import write_json
from ofa_jax.model.gpt2 import LEVELS
from ofa_jax.model.linear import nlinear
from ofa_jax.runs.reduced_rank import Watch
from ofa_jax.runs.ridge import score_together
from ofa_jax.runs.train import read_data, train_run
from ofa_jax.tasks.series import HeldOut, score_forecasts
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.program import evaluation_options
from ofa_jax.train.progress import SILENT, ConsoleReporter
from ofa_jax.train.signals import StopRequest

SETS = ("etth1", "etth2", "ettm1", "ettm2", "weather")
HORIZONS = (96, 192, 336, 720)
COLLECTIONS = {
    "m3_yearly": 6,
    "m3_quarterly": 8,
    "m3_monthly": 18,
    "m3_other": 8,
    "m4_yearly": 6,
    "m4_weekly": 13,
}


def model_for(trunk: str, horizon: int) -> Model:
    """The trunk as a forecaster that is not trained."""
    return build_model(forecast_experiment(trunk, "auto", horizon, "output", adapters={}, train={}))


def long_term(
    trunk: str, name: str, horizon: int, zero_shot: bool, percents: list[int], runs: Path
) -> dict[str, dict[str, float]]:
    """MSE and MAE on the standardized test windows of a set: zero-shot, and from each share of training."""
    experiment = forecast_experiment(trunk, "auto", horizon, "output", adapters={}, train={})
    experiment = experiment.replace({"data.source": name})
    task, model = read_data(experiment).task, build_model(experiment)
    options = evaluation_options(experiment.train, model.network)
    trees, keys, found = [], [], dict[str, dict[str, float]]()
    if zero_shot:
        trees, keys = [model.trainable], [""]
    for percent in percents:
        own, begun = experiment.replace({"data.percent": percent}), time.monotonic()
        kept = runs / f"{name}-{horizon}-{percent}"
        trees.append(train_run(own, kept, ConsoleReporter()).best)
        keys.append(f" adapted {percent}")
        seconds = round(time.monotonic() - begun)
        part = read_data(own).task
        solved = solve_nlinear(part, SILENT)
        table = part.tables["test"]
        errors = part.metrics(WindowPredictor(nlinear, part, part.sums)(table, {}, solved))
        found |= {f" adapted {percent}": {"seconds": seconds}, f" ridge {percent}": errors}
    watch = Watch(StopRequest(), SILENT)
    scored = score_together(model, task, "test", trees, options, watch)
    for key, errors in zip(keys, scored, strict=True):
        found[key] = errors | found.get(key, {})
    return {f"{name} {horizon}{key}": errors for key, errors in found.items()}


def competition(trunk: str, name: str, horizon: int) -> dict[str, dict[str, float]]:
    """sMAPE, MASE and OWA of the last steps of every series."""
    collection, entry = load_collection(name)
    season = season_length(None, entry.season if entry else None, collection.frequency)
    origin = collection.lengths - horizon
    held = HeldOut(collection, np.zeros(collection.n_series, int), origin, season, horizon)
    model = model_for(trunk, horizon)
    length = model.network.input_length
    inputs = np.full((len(held.parts), length), np.nan)
    for row, (past, _) in enumerate(held.parts):
        inputs[row, length - len(past[-length:]) :] = past[-length:]
    target = np.stack([after for _, after in held.parts])
    median = forecast_windows(model, inputs).levels[..., LEVELS.index(0.5)]
    return {f"{name} {horizon}": held.metrics(score_forecasts(median, target))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Errors of a pretrained trunk, zero-shot and adapted.")
    parser.add_argument("--trunk", default="nano", help="nano or a folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--record", type=Path, help="JSON file of the errors; default: OUT/errors.json")
    parser.add_argument("--percent", nargs="*", default=[], type=int, help="shares to adapt to")
    parser.add_argument("--sets", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--horizons", nargs="*", default=HORIZONS, type=int)
    parser.add_argument("--collections", nargs="*", default=list(COLLECTIONS), choices=COLLECTIONS)
    arguments = parser.parse_args()
    sha = model_for(arguments.trunk, 1).trunk_sha256
    kept: dict[str, Any] = {"trunk": sha, "errors": {}}
    record = arguments.record or arguments.out / "errors.json"
    if record.exists():
        found = json.loads(record.read_text())
        kept["errors"] = found["errors"] if found["trunk"] == sha else {}
    errors, runs = kept["errors"], arguments.out / sha[:8]
    runs.mkdir(parents=True, exist_ok=True)
    wanted = [(name, COLLECTIONS[name]) for name in arguments.collections]
    wanted += [(name, horizon) for horizon in arguments.horizons for name in arguments.sets]
    for name, horizon in wanted:
        key, begun = f"{name} {horizon}", time.monotonic()
        if name in COLLECTIONS:
            made = {} if key in errors else competition(arguments.trunk, name, horizon)
        else:
            missing = [share for share in arguments.percent if f"{key} adapted {share}" not in errors]
            made = {}
            if missing or key not in errors:
                made = long_term(arguments.trunk, name, horizon, key not in errors, missing, runs)
        errors |= made
        write_json(record, kept)
        print(f"# {made} in {time.monotonic() - begun:.0f} s" if made else f"# {key} is there", flush=True)
    print_tables(errors, sha, arguments.percent)


def print_tables(errors: dict[str, dict[str, float]], sha: str, percents: list[int]) -> None:
    """The errors as Markdown, and means over sets and horizons where all are there."""
    print(f"\ntrunk {sha[:12]}")
    kinds = ["", *(f" {kind} {percent}" for percent in percents for kind in ("adapted", "ridge"))]
    for kind in kinds:
        print(f"\n|{kind or ' zero-shot'} | {' | '.join(SETS)} | mean |\n|---{'|---' * (len(SETS) + 1)}|")
        every = []
        for horizon in HORIZONS:
            cells = [errors.get(f"{name} {horizon}{kind}") for name in SETS]
            known = [cell for cell in cells if cell]
            every += known
            texts = [f"{cell['mse']:.4f}/{cell['mae']:.4f}" if cell else "—" for cell in cells]
            print(f"| {horizon} | {' | '.join(texts)} | {_mean(known) if len(known) == len(SETS) else '—'} |")
        if len(every) == len(SETS) * len(HORIZONS):
            print(f"\nmean of all: {_mean(every)}")
    print("\n| | sMAPE | MASE | OWA |\n|---|---|---|---|")
    for name, horizon in COLLECTIONS.items():
        if cell := errors.get(f"{name} {horizon}"):
            print(f"| {name} | {cell['smape']:.3f} | {cell['mase']:.3f} | {cell['owa']:.3f} |")


def _mean(cells: list[dict[str, float]]) -> str:
    return "/".join(f"{np.mean([cell[name] for cell in cells]):.4f}" for name in ("mse", "mae"))


if __name__ == "__main__":
    main()

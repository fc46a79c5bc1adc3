"""Zero-shot errors of a pretrained trunk: published long-term test windows, and M3 and M4.

    OFA_JAX_DATA=DATA python tools/zero_shot.py --out runs/zero_shot.json

Every test window with the last 512 steps before it; M3 and M4: the last H steps of every series, from all
before them, as the competitions have it. Errors that are in the file already are not computed again, as long
as the trunk is the same. Prints the tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.build import Model, build_model
from ofa_jax.data.catalog.load import load_collection
from ofa_jax.data.seasons import season_length
from ofa_jax.estimators.engine import forecast_experiment, forecast_windows
from ofa_jax.files import write_json
from ofa_jax.tasks.series import HeldOut, score_forecasts
from ofa_jax.tasks.table import prepare
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.program import evaluation_options

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


def long_term(trunk: str, name: str, horizon: int) -> dict[str, float]:
    """MSE and MAE on the standardized test windows of a set."""
    experiment = forecast_experiment(trunk, "auto", horizon, "output", adapters={}, train={})
    experiment = experiment.replace({"data.source": name})
    data = prepare(experiment.data, experiment.task, protocol="strict", batch_size=256)
    model = build_model(experiment)
    options = evaluation_options(experiment.train, model.network)
    predictor = WindowPredictor(model.predict, data.task, data.task.sums, **options)
    table = data.task.tables["test"]
    return data.task.metrics(predictor(table, model.frozen, model.trainable)) | {"windows": table.size}


def competition(trunk: str, name: str, horizon: int) -> dict[str, float]:
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
    return held.metrics(score_forecasts(forecast_windows(model, inputs).mean, target))


def main() -> None:
    parser = argparse.ArgumentParser(description="Zero-shot errors of a pretrained trunk.")
    parser.add_argument("--trunk", default="nano", help="nano or a folder")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of errors, read and written")
    parser.add_argument("--sets", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--horizons", nargs="*", default=HORIZONS, type=int)
    parser.add_argument("--collections", nargs="*", default=list(COLLECTIONS), choices=COLLECTIONS)
    arguments = parser.parse_args()
    sha = model_for(arguments.trunk, 1).trunk_sha256
    kept: dict[str, Any] = {"trunk": sha, "errors": {}}
    if arguments.out.exists():
        found = json.loads(arguments.out.read_text())
        kept["errors"] = found["errors"] if found["trunk"] == sha else {}
    errors = kept["errors"]
    wanted = [(name, horizon) for horizon in arguments.horizons for name in arguments.sets]
    wanted += [(name, COLLECTIONS[name]) for name in arguments.collections]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name, horizon in wanted:
        if (key := f"{name} {horizon}") in errors:
            continue
        begun, measure = time.monotonic(), long_term if name in SETS else competition
        errors[key] = measure(arguments.trunk, name, horizon)
        write_json(arguments.out, kept)
        print(f"# {key}: {errors[key]} in {time.monotonic() - begun:.0f} s", flush=True)
    print_tables(errors, sha)


def print_tables(errors: dict[str, dict[str, float]], sha: str) -> None:
    """The errors as Markdown, and means over sets and horizons where all are there."""
    print(f"\ntrunk {sha[:12]}\n\n| MSE/MAE | {' | '.join(SETS)} | mean |\n|---{'|---' * (len(SETS) + 1)}|")
    every = []
    for horizon in HORIZONS:
        cells = [errors.get(f"{name} {horizon}") for name in SETS]
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

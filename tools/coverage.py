"""How often prediction intervals cover: M4 Weekly and M3 by length of the series, and ETTh1's test part.

    OFA_JAX_DATA=DATA python tools/coverage.py

M3 and M4: intervals of zero-shot forecasts of the last H steps of every series, calibrated on what precedes
them. ETTh1, H 96: calibrated on the validation part, then every 24th test window. Prints Markdown.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from ofa_jax import OneForAllForecaster, PredictionIntervals
from ofa_jax.data.catalog.load import load, load_collection
from ofa_jax.estimators.intervals import Method

LEVELS = (80, 90, 95)
COLLECTIONS = {"m4_weekly": 13, "m3_monthly": 18, "m3_quarterly": 8, "m3_yearly": 6, "m3_other": 8}
PARTS = 3
"""Classes of series in the order of their lengths, of equal size."""


def covered(found: pd.DataFrame) -> list[float]:
    """Percent of the values ``y`` within each level's interval."""
    ends = [(found[f"OneForAll-lo-{level}"], found[f"OneForAll-hi-{level}"]) for level in LEVELS]
    return [100 * float(found["y"].between(low, high).mean()) for low, high in ends]


def of_collection(name: str, horizon: int, trunk: str) -> dict[str, list[float]]:
    """Coverage without and with calibration, of all series and by length."""
    collection, _ = load_collection(name)
    names = np.arange(collection.n_series)
    steps = np.concatenate([np.arange(length) for length in collection.lengths])
    values = np.concatenate(collection.values)
    frame = pd.DataFrame({"unique_id": np.repeat(names, collection.lengths), "ds": steps, "y": values})
    lengths = np.repeat(collection.lengths, collection.lengths)
    before, after = (frame[part] for part in (steps < lengths - horizon, steps >= lengths - horizon))
    rows = {}
    for title in ("trunk's quantiles", "split"):
        model = OneForAllForecaster(horizon, trunk=trunk)
        if title == "split":
            model.calibrate(before)
        made = model.predict(before, level=LEVELS).merge(after, on=["unique_id", "ds"])
        rows[f"{name}, {title}"] = covered(made)
    order = np.argsort(collection.lengths, kind="stable")
    for chosen in np.array_split(order, PARTS):
        low, high = collection.lengths[chosen[[0, -1]]]
        rows[f"{name}, split, {low} to {high} steps"] = covered(made[made["unique_id"].isin(chosen)])
    return rows


def of_etth1(trunk: str, horizon: int = 96, step: int = 24) -> dict[str, list[float]]:
    """Coverage of every 24th test window, calibrated on windows of the validation part as far apart."""
    frame, _ = load("etth1")
    train, validation, test = (rows * 30 * 24 for rows in (12, 4, 4))
    table = pd.DataFrame(frame.values[: train + validation + test], columns=list(frame.names))
    table.insert(0, "ds", np.arange(len(table)))
    rows = {}
    methods: tuple[Method | None, ...] = (None, "split", "adaptive")
    for method in methods:
        model = OneForAllForecaster(horizon, trunk=trunk)
        if method:
            windows = (validation - horizon) // step + 1
            settings = PredictionIntervals(n_windows=windows, method=method, step_size=step, pool="series")
            model.calibrate(table[: train + validation], settings)
        windows = (test - horizon) // step + 1
        made = model.cross_validation(table, n_windows=windows, step_size=step, level=LEVELS)
        title = f"{method}" if method else "trunk's quantiles"
        rows[f"etth1, {title}"] = covered(made)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of prediction intervals.")
    parser.add_argument("--trunk", default="nano", help="nano or a folder")
    parser.add_argument("--sets", nargs="*", default=["etth1", *COLLECTIONS], choices=["etth1", *COLLECTIONS])
    arguments = parser.parse_args()
    print(f"| | {' | '.join(f'{level} %' for level in LEVELS)} |\n|---{'|---' * len(LEVELS)}|")
    for name in arguments.sets:
        trunk = arguments.trunk
        rows = of_etth1(trunk) if name == "etth1" else of_collection(name, COLLECTIONS[name], trunk)
        for title, shares in rows.items():
            print(f"| {title} | {' | '.join(f'{share:.1f}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()

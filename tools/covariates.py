"""What known covariates give: MASE of forecasts with and without them, where they should help and where not.

    OFA_JAX_DATA=DATA python tools/covariates.py --weather seattle-weather.csv

Electricity, Traffic and ETTh1: month, weekday and hour as covariates, the last 20 windows of 24 hours of each
series, fitted on what precedes them. Daily highs of Seattle from rain and wind of the same day, as if these
were known ahead: the last 20 windows of 7 days (vega-datasets' table). Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ofa_jax import OneForAllForecaster
from ofa_jax.data.catalog.load import data_root

WINDOWS = 20


def hourly(path: Path) -> pd.DataFrame:
    """A table of hourly series as a long frame."""
    table = pd.read_csv(path, parse_dates=["date"])
    long = table.melt(id_vars="date", var_name="unique_id", value_name="y")
    return long.rename(columns={"date": "ds"})


def mase(df: pd.DataFrame, horizon: int, season: int, **covariates: Any) -> tuple[float, float, float]:
    """MASE of the last windows: zero-shot, adapted, and adapted with covariates."""
    cut = df.groupby("unique_id").cumcount(ascending=False) >= WINDOWS * horizon
    names = list(covariates.get("covariates", []))
    plain, found = df.drop(columns=names), []
    change = plain[cut].groupby("unique_id")["y"].apply(lambda y: float(np.mean(np.abs(y.diff(season)))))
    for own, settings, fit in ((plain, {}, False), (plain, {}, True), (df, covariates, True)):
        model = OneForAllForecaster(horizon, **settings)
        if fit:
            model.fit(own[cut])
        made = model.cross_validation(own, n_windows=WINDOWS)
        error = (made["OneForAll"] - made["y"]).abs().groupby(made["unique_id"]).mean()
        found.append(float((error / change).mean()))
    return found[0], found[1], found[2]


def main() -> None:
    parser = argparse.ArgumentParser(description="What known covariates give.")
    parser.add_argument("--weather", type=Path, required=True, help="seattle-weather.csv")
    root, arguments = data_root(), parser.parse_args()
    print("| | zero-shot | adapted | with covariates |\n|---|---|---|---|", flush=True)
    places = {
        "Electricity": root / "electricity_subset/electricity_7ch.csv.gz",
        "Traffic": root / "traffic_subset/traffic_6ch.csv.gz",
        "ETTh1": root / "ETT-small/ETTh1.csv",
    }
    for name, path in places.items():
        row = mase(hourly(path), 24, 24, calendar=True)
        print(f"| {name}, calendar | {' | '.join(f'{one:.3f}' for one in row)} |", flush=True)
    weather = pd.read_csv(arguments.weather, parse_dates=["date"])
    frame = weather.rename(columns={"date": "ds", "temp_max": "y"}).assign(unique_id="Seattle")
    frame = frame[["unique_id", "ds", "y", "precipitation", "wind"]]
    row = mase(frame, 7, 1, covariates=["precipitation", "wind"])
    print(f"| Seattle's highs, rain and wind | {' | '.join(f'{one:.3f}' for one in row)} |")


if __name__ == "__main__":
    main()

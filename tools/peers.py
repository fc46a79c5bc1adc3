"""MASE next to peers: the trunk zero-shot and adapted, AutoETS, AutoTheta, seasonal naive, and fracast.

    pip install 'ofa-jax[peers]' fracast
    OFA_JAX_DATA=DATA python tools/peers.py --files FOLDER

The last H steps of each series from all before them: M3, M4 and M1 Yearly (at most 200 series of a set,
evenly spaced), and four tables in FOLDER. The adapter is fitted on what precedes the last H steps of all
series of a set together; the others are fitted on each series by itself. One-for-All's forecast is its
median, which minimizes absolute errors. fracast (85,001 parameters, the weights of its wheel) was pretrained
on public collections, benchmarks among them. Seconds are of all series, after what is compiled was compiled
once.
Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ofa_jax import OneForAllForecaster
from ofa_jax.data.archives.tsf import read_tsf
from ofa_jax.data.catalog.load import load_collection

MOST = 200
COLLECTIONS = {  # horizon and season, as in the competitions
    "m3_yearly": (6, 1),
    "m3_quarterly": (8, 4),
    "m3_monthly": (18, 12),
    "m3_other": (8, 1),
    "m4_yearly": (6, 1),
    "m4_weekly": (13, 1),
}
FILES = {  # horizon, season, and columns of time and value
    "Airline.csv": (12, 12, "Date", "Passengers"),
    "PBS_dataset.csv": (12, 12, "Month", "Scripts"),
    "seattle-temps.csv": (24, 24, "date", "temp"),
    "co2.csv": (52, 52, "date", "co2"),
}
METHODS = ("zero-shot", "adapted", "AutoETS", "AutoTheta", "SeasonalNaive", "fracast")


class Problem(NamedTuple):
    """Series by number, ``[n]``, their horizon and season."""

    series: Sequence[np.ndarray]
    horizon: int
    season: int


def of_collection(series: Sequence[np.ndarray], horizon: int, season: int) -> Problem:
    """At most :data:`MOST` series that are long enough for a scale."""
    long = [one for one in series if len(one) > horizon + season + 1]
    chosen = np.unique(np.linspace(0, len(long) - 1, min(MOST, len(long))).round().astype(int))
    return Problem([long[number] for number in chosen], horizon, season)


def frame_of(problem: Problem) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A long frame of what is known, and of the last steps."""
    parts = [
        pd.DataFrame({"unique_id": number, "ds": np.arange(len(one)), "y": one})
        for number, one in enumerate(problem.series)
    ]
    table = pd.concat(parts, ignore_index=True)
    last = table.groupby("unique_id").tail(problem.horizon).index
    return table.drop(last), table.loc[last]


def mase(made: pd.DataFrame, name: str, after: pd.DataFrame, problem: Problem) -> float:
    """The mean over series of the absolute error by the mean change over a season before."""
    joined = after.merge(made.rename(columns={name: "made"}), on=["unique_id", "ds"], how="left")
    error = (joined["made"] - joined["y"]).abs().groupby(joined["unique_id"]).mean().to_numpy()
    season, h = problem.season, problem.horizon
    scale = [np.nanmean(np.abs(one[season:-h] - one[: -h - season])) for one in problem.series]
    used = np.array(scale) > 0
    return float(np.mean(error[used] / np.array(scale)[used]))


def timed(run: Callable[[], pd.DataFrame]) -> tuple[pd.DataFrame, float]:
    """What it gives, and seconds."""
    began = time.monotonic()
    found = run()
    return found, time.monotonic() - began


def row(problem: Problem, methods: Sequence[str]) -> list[str]:
    """MASE and seconds of each method."""
    before, after = frame_of(problem)
    cells = []
    for name in methods:
        run = forecaster_of(name, problem, before)
        made, seconds = timed(run)
        cells.append(f"{mase(made, made.columns[-1], after, problem):.3f} ({seconds:.1f} s)")
    return cells


def forecaster_of(name: str, problem: Problem, before: pd.DataFrame) -> Callable[[], pd.DataFrame]:
    """Forecasts of the steps after ``before`` in the last column; what is compiled or loaded was so once."""
    horizon = problem.horizon
    if name == "adapted":
        return lambda: OneForAllForecaster(horizon).fit(before).predict(quantiles=0.5)
    if name == "zero-shot":
        model = OneForAllForecaster(horizon)
        model.predict(before)
        return lambda: model.predict(before, quantiles=0.5)
    if name == "fracast":
        return _fracast(problem)
    from statsforecast import StatsForecast, models

    kind = getattr(models, name)(season_length=problem.season)
    peer = StatsForecast([kind], freq=1, n_jobs=1)
    peer.forecast(df=before[before["unique_id"] == 0], h=horizon)  # compiles
    return lambda: peer.forecast(df=before, h=horizon)


def _fracast(problem: Problem) -> Callable[[], pd.DataFrame]:
    import torch
    from fracast import FracastModel

    torch.set_num_threads(1)  # one series at a time is too little work for more
    model, horizon = FracastModel.from_pretrained(weights="fp32"), problem.horizon
    middle = model.quantiles.index(0.5)

    def run() -> pd.DataFrame:
        made = [model.forecast(one[:-horizon], horizon=horizon)[:, middle] for one in problem.series]
        ahead = [np.arange(len(one) - horizon, len(one)) for one in problem.series]
        number = np.repeat(np.arange(len(made)), horizon)
        return pd.DataFrame({"unique_id": number, "ds": np.concatenate(ahead), "y": np.concatenate(made)})

    return run


def problems(files: Path | None) -> dict[str, Problem]:
    """The sets and tables by name."""
    found = {
        name: of_collection(load_collection(name)[0].values, *sizes) for name, sizes in COLLECTIONS.items()
    }
    if files is not None:
        m1 = files / "m1_yearly_dataset.tsf"
        found["m1_yearly"] = of_collection(read_tsf(m1).values, 6, 1)
        for name, (horizon, season, when, what) in FILES.items():
            table = pd.read_csv(files / name)
            values = table.set_index(when)[what].astype(float).interpolate().to_numpy()
            found[name] = Problem([values], horizon, season)
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description="MASE next to statsforecast.")
    parser.add_argument("--files", type=Path, help="folder of m1_yearly_dataset.tsf and tables")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    arguments = parser.parse_args()
    print(f"| | series | H, m | {' | '.join(arguments.methods)} |")
    print("|---" * (3 + len(arguments.methods)) + "|", flush=True)
    for name, problem in problems(arguments.files).items():
        sizes = f"{len(problem.series)} | {problem.horizon}, {problem.season}"
        print(f"| {name} | {sizes} | {' | '.join(row(problem, arguments.methods))} |", flush=True)


if __name__ == "__main__":
    main()

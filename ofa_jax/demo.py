"""The demo: generated series with a known noise floor, from training to a plot, in minutes on two cores."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ofa_jax.baselines.compare import Comparison, Row, compare
from ofa_jax.config.load import load_experiment
from ofa_jax.data.frames import Frame, read_frame
from ofa_jax.data.synthetic import SyntheticLoad, hourly_load
from ofa_jax.errors import OfaError
from ofa_jax.inference import apply_model, read_input, write_table
from ofa_jax.plots import run as plots
from ofa_jax.plots.style import save_figure
from ofa_jax.runs.folder import BASELINES
from ofa_jax.runs.train import open_run, train_run
from ofa_jax.tasks.forecast import ForecastData, forecast_panels
from ofa_jax.train.loop import Reporter


@dataclass(frozen=True)
class Demo:
    """What the demo made: the table, and where its files are."""

    comparison: Comparison
    data: Path
    run: Path
    forecast: Path
    picture: Path


def run_demo(out: str | Path, reporter: Reporter, *, seed: int = 0) -> Demo:
    """Generate series, train, compare with baselines and the noise floor, forecast, plot.

    Args:
        out: Folder for everything; a second call resumes or reuses what is there.
        reporter: Progress reporter.
        seed: Seed of the generated series.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise OfaError(
            "this is a file, so no folder can be made there", where=str(out), fix="Choose another --out"
        )
    table_path, run = out / "load.csv", out / "run"
    experiment = load_experiment("demo", [f"data.source={json.dumps(str(table_path))}"])
    load = hourly_load(seed=seed)
    table = _as_table(load.frame)
    write_table(table, table_path)
    train_run(experiment, run, reporter)
    loaded, data = open_run(run)
    assert isinstance(data, ForecastData), "the demo forecasts"
    comparison = compare(loaded, data, baselines=run / BASELINES, only=("nlinear",), reporter=reporter)

    horizon = data.task.spec.horizon
    model, naive, nlinear = comparison.rows
    limits = noise_floor_rows(load, data, horizon)
    comparison = replace(comparison, rows=(*limits, naive, nlinear, model))

    before = read_input(loaded, table[:-horizon])
    predicted = apply_model(loaded, before)
    write_table(predicted, out / "forecast.csv")
    frame = read_frame(table[:-horizon])
    shown = forecast_panels(frame, predicted, 24 * 7, data.frame.values[-horizon:])
    title = f"Generated hourly load: forecast of the last {horizon} hours"
    note = "generated data, random trunk; these hours are in the test part"
    save_figure(plots.forecast(shown, title=title, note=note), out / "forecast.png")
    return Demo(comparison, table_path, run, out / "forecast.csv", out / "forecast.png")


def noise_floor_rows(load: SyntheticLoad, data: ForecastData, horizon: int) -> tuple[Row, Row]:
    """The lower bound of any forecast's error: expected, and realized on the test windows of the table."""
    (mse_c, mae_c), std = load.noise_floor(horizon), data.scaler.std
    (first, end), length = data.borders["test"], data.task.spec.input_length
    origins_m = np.arange(first + length - 1, end - horizon)
    actual_mhc = load.frame.values[origins_m[:, None] + np.arange(1, horizon + 1)]
    error = (load.best_forecast(origins_m, horizon) - actual_mhc) / std
    expected = {"mse": float((mse_c / std**2).mean()), "mae": float((mae_c / std).mean())}
    realized = {"mse": float(np.square(error).mean()), "mae": float(np.abs(error).mean())}
    return Row("noise floor, expected", expected, 0), Row("noise floor, on these windows", realized, 0)


def _as_table(frame: Frame) -> pd.DataFrame:
    table = pd.DataFrame(frame.values.round(3), columns=list(frame.names))
    assert frame.timestamps is not None, "generated series have timestamps"
    table.insert(0, "date", pd.DatetimeIndex(frame.timestamps))
    return table

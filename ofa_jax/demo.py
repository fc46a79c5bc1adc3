"""The demo: generated series with a known noise floor, from training to a plot, in minutes on two cores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ofa_jax.baselines.compare import Comparison, Row, compare
from ofa_jax.config.load import load_experiment
from ofa_jax.data.frames import read_frame
from ofa_jax.data.synthetic import SyntheticLoad, hourly_load
from ofa_jax.errors import OfaError
from ofa_jax.files import is_there
from ofa_jax.inference import predict, write_table
from ofa_jax.plots import run as plots
from ofa_jax.plots.style import save_figure
from ofa_jax.runs.folder import BASELINES
from ofa_jax.runs.train import open_run, train_run
from ofa_jax.tasks.forecast import ForecastData, forecast_panels
from ofa_jax.train.progress import Reporter

WEEKS = 20
"""Length of the generated series: few data, for which a pretrained trunk is made."""


def run_demo(out: str | Path, reporter: Reporter) -> Comparison:
    """Generate series, train, compare with baselines and the noise floor, forecast, plot.

    Args:
        out: Folder for ``load.csv``, ``run``, ``forecast.csv`` and ``forecast.png``; a second call resumes or
            reuses what is there.
        reporter: Progress reporter.

    Raises:
        OfaError: ``out`` is a file, or has files of these names that are not the demo's; nothing was written.
    """
    out = Path(out)
    load = hourly_load(24 * 7 * WEEKS)
    table = pd.DataFrame(load.frame.values.round(3), columns=list(load.frame.names))
    table.insert(0, "date", load.frame.timestamps)
    _check_folder(out, table)
    source, run = out / "load.csv", out / "run"
    experiment = load_experiment("demo").replace({"data.source": str(source)})
    write_table(table, source)
    train_run(experiment, run, reporter)
    loaded, data = open_run(run)
    assert isinstance(data, ForecastData), "the demo forecasts"
    comparison = compare(loaded, data, baselines=run / BASELINES, only=("nlinear",), reporter=reporter)

    horizon = data.task.spec.horizon
    model, *baselines = comparison.rows
    rows = (*noise_floor_rows(load, data, horizon), *baselines, model)

    before = table[:-horizon]
    predicted = predict(loaded, before)
    write_table(predicted, out / "forecast.csv")
    shown = forecast_panels(read_frame(before), predicted, 24 * 7, data.frame.values[-horizon:])
    title = f"Generated hourly load: forecast of the last {horizon} hours"
    note = "generated data; these hours are in the test part"
    save_figure(plots.forecast(shown, title=title, note=note), out / "forecast.png")
    return replace(comparison, rows=rows)


def _check_folder(out: Path, table: pd.DataFrame) -> None:
    """Refuse a folder whose files the demo would overwrite, unless it has the demo's series."""
    if is_there(out, error=OfaError) and not out.is_dir():
        raise OfaError("this is a file", where=str(out), fix="Choose a folder")
    source, fix = out / "load.csv", "Choose a new folder"
    if source.exists():
        expected = table.to_csv(index=False).encode()
        if not source.is_file() or source.read_bytes() != expected:
            raise OfaError("not written by this demo; it would be overwritten", where=str(source), fix=fix)
        return
    for name in ("run", "forecast.csv", "forecast.png"):
        if (out / name).exists():
            raise OfaError("not from a demo, since there is no load.csv", where=str(out / name), fix=fix)


def noise_floor_rows(load: SyntheticLoad, data: ForecastData, horizon: int) -> tuple[Row, Row]:
    """The lower bound of any forecast's error: expected, and realized on the test windows of the table."""
    (mse_c, mae_c), std = load.noise_floor(horizon), data.scaler.std
    (first, end), length = data.borders["test"], data.task.spec.input_length
    origins_m = np.arange(first + length - 1, end - horizon)
    actual_mhc = load.frame.values[origins_m[:, None] + np.arange(1, horizon + 1)]
    error = (load.best_forecast(origins_m, horizon) - actual_mhc) / std
    expected = {"mse": float((mse_c / std**2).mean()), "mae": float((mae_c / std).mean())}
    realized = {"mse": float(np.square(error).mean()), "mae": float(np.abs(error).mean())}
    return (
        Row("noise floor, expected", expected, 0, bound=True),
        Row("noise floor, on these windows", realized, 0, bound=True),
    )

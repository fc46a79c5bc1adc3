"""The demo: generated series with a known noise floor, from training to a picture, in a few minutes on two cores."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ofa_jax.baselines.compare import Comparison, Row, compare
from ofa_jax.config.load import load_experiment
from ofa_jax.data.frames import Frame
from ofa_jax.data.synthetic import SyntheticLoad, hourly_load
from ofa_jax.errors import OfaError
from ofa_jax.files import write_atomic
from ofa_jax.inference import forecast, plot_forecast, write_forecast
from ofa_jax.plots.style import save_figure
from ofa_jax.runs.train import open_run, train_run
from ofa_jax.tasks.forecast import ForecastData
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
    """Generate series, train, score beside the controls and the noise floor, forecast, draw.

    Args:
        out: Folder for everything; a second call resumes or reuses what is there.
        reporter: What tells a person how it goes.
        seed: Seed of the generated series.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise OfaError(
            "this is a file, so no folder can be made there", where=str(out), fix="Choose another --out"
        )
    table_path = out / "load.csv"
    experiment = load_experiment("demo", [f"data.source={json.dumps(str(table_path))}"])
    load = hourly_load(seed=seed)
    write_atomic(table_path, _as_csv(load.frame))
    run = out / "run"
    train_run(experiment, run, reporter)
    loaded, data = open_run(run)
    assert isinstance(data, ForecastData), "the demo forecasts"
    comparison = compare(
        loaded, data, split="test", controls=run / "controls", only=("nlinear",), reporter=reporter
    )

    model, naive, nlinear = comparison.rows
    limits = noise_floor_rows(load, data, experiment.task.horizon)
    comparison = replace(comparison, rows=(*limits, naive, nlinear, model))

    horizon = experiment.task.horizon
    frame = data.frame
    before = replace(
        frame, values=frame.values[:-horizon], timestamps=_times(frame)[:-horizon], source=load.frame.source
    )
    predicted = forecast(loaded, before)
    write_forecast(predicted, out / "forecast.csv")
    figure = plot_forecast(
        before,
        predicted,
        title=f"Generated hourly load: the last {horizon} hours, forecast",
        history=24 * 7,
        actual=frame.values[-horizon:],
        note="generated data, random trunk; these hours lie in the test part",
    )
    save_figure(figure, out / "forecast.png")
    return Demo(comparison, table_path, run, out / "forecast.csv", out / "forecast.png")


def noise_floor_rows(load: SyntheticLoad, data: ForecastData, horizon: int) -> tuple[Row, Row]:
    """What no forecast beats: the expected error of the best one, and its error on the very test windows of the table."""
    floor = load.noise_floor(horizon).standardised(data.scaler)
    expected = Row(
        "noise floor, expected", {"mse": float(floor.mse.mean()), "mae": float(floor.mae.mean())}, 0
    )
    first, end = data.borders["test"]
    length = data.task.spec.input_length
    origins_m = np.arange(first + length - 1, end - horizon)
    actual_mhc = load.frame.values[origins_m[:, None] + np.arange(1, horizon + 1)]
    error = (load.best_forecast(origins_m, horizon) - actual_mhc) / data.scaler.std
    realised = Row(
        "noise floor, on these windows",
        {"mse": float(np.square(error).mean()), "mae": float(np.abs(error).mean())},
        0,
    )
    return expected, realised


def _as_csv(frame: Frame) -> str:
    import pandas as pd

    table = pd.DataFrame(frame.values.round(3), columns=list(frame.names))
    table.insert(0, "date", pd.to_datetime(_times(frame)))
    return table.to_csv(index=False)


def _times(frame: Frame) -> np.ndarray:
    assert frame.timestamps is not None, "generated series have timestamps"
    return frame.timestamps

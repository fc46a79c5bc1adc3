"""A new task is a settings class, a row of TASKS and what the report shows; nothing else knows of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from pydantic import Field

from ofa_jax.baselines.compare import compare
from ofa_jax.config.load import build_experiment, dump_experiment, settings
from ofa_jax.config.tasks import Section, TaskSettings
from ofa_jax.errors import ConfigError
from ofa_jax.inference import evaluate, predict
from ofa_jax.model.networks import ForecastNetwork
from ofa_jax.plots.style import new_figure
from ofa_jax.report import parts
from ofa_jax.report.forecasts import Results
from ofa_jax.report.page import write_report
from ofa_jax.report.tasks import RESULTS
from ofa_jax.runs.bundle import load_bundle
from ofa_jax.runs.train import open_run, train_run
from ofa_jax.tasks.base import NewData, Task, TaskData, TaskKind
from ofa_jax.tasks.forecast import as_pairs, read_new, read_series
from ofa_jax.tasks.table import TASKS
from ofa_jax.train.progress import SILENT
from ofa_jax.windows.table import WindowSpec, WindowTable, sliding_windows


def sums(prediction, batch):
    """The task: predict the mean of the steps after each window; squared errors ``[b]``."""
    error = prediction[:, 0, 0] - jnp.mean(batch.y, axis=(1, 2))
    return {"squared_error": jnp.square(error) * batch.weight, "count": batch.weight}


def loss(prediction, batch):
    found = sums(prediction, batch)
    return jnp.sum(found["squared_error"]), jnp.sum(found["count"])


def metrics(found):
    return {"error_of_the_mean": float(np.sqrt(found["squared_error"].sum() / found["count"].sum()))}


def prepare(data, task, protocol):
    frame, _ = read_series(data)
    half = frame.n_rows // 2
    borders = {"train": (0, half), "validation": (half, half + 50), "test": (half + 50, frame.n_rows)}
    size = {"input_length": task.input_length, "horizon": task.ahead, "channels": frame.n_channels}
    toy = Task(
        spec=WindowSpec(task.input_length, task.ahead),
        buffer=frame.values.astype(np.float32),
        tables={split: sliding_windows(rows, **size) for split, rows in borders.items()},
        loss=loss,
        sums=sums,
        metrics=metrics,
        objective="error_of_the_mean",
        protocol=protocol,
    )
    return TaskData(toy, task, scaler=None, untrained={"last value": lambda *given, **_: given[2][:, -1:]})


class LevelNetwork(ForecastNetwork):
    """One value per window, at patches as the settings say."""

    horizon: int = 1


def apply(trained, source):
    frame, length = read_new(trained, source), trained.task.input_length
    return NewData(
        spec=WindowSpec(length, 0, univariate=False),
        buffer=as_pairs(frame.values[-length:], frame.names, frame.source)[0],
        table=WindowTable.of(np.zeros(1), x_valid=length),
        outputs=lambda prediction, batch: {"mean": prediction[:, 0]},
        to_table=lambda outputs: pd.DataFrame(outputs["mean"], columns=list(frame.names)),
        plot=lambda table, note: new_figure(1, 1),
        summary=lambda table: f"the mean of {trained.task.ahead} steps",
    )


def results(evaluation):
    found = evaluation.predictor(sums)(evaluation.table)
    section = parts.Section("windows", "Means of test windows", [f"{evaluation.table.size} windows"])
    return Results(metrics(found), section, parts.Section("errors", "Errors of the mean"))


@pytest.fixture
def toy(monkeypatch) -> Iterator[None]:
    """The task ``level``, as ARCHITECTURE.md says that one is added."""

    class LevelSettings(TaskSettings):
        """Prediction of a mean."""

        name: Literal["level"]
        ahead: int = Field(4, ge=1, description="steps whose mean is predicted")

    kind = TaskKind(
        settings=LevelSettings,
        title="Prediction of a mean",
        prepare=prepare,
        network=LevelNetwork,
        apply=apply,
    )
    monkeypatch.setitem(TASKS, "level", kind)
    monkeypatch.setitem(RESULTS, "level", results)  # type: ignore[arg-type]
    yield
    LevelSettings.__bases__ = (Section,)  # no settings of a task any more


@pytest.mark.usefixtures("toy")
def test_a_new_task_has_settings():
    listed = {setting.path: setting for setting in settings()}
    assert "level" in listed["task.name"].type
    assert listed["task.ahead"].description == "steps whose mean is predicted (level)"
    content = {"data": {"source": "etth1"}, "task": {"name": "level"}}
    experiment = build_experiment(content, ["task.ahead=6"])
    assert experiment.task.model_dump() == {"name": "level", "input_length": 336, "ahead": 6}
    assert build_experiment(dump_experiment(experiment)) == experiment
    with pytest.raises(ConfigError, match="'level' does not read it"):
        build_experiment(content, ["data.parts=[a]"])


@pytest.mark.usefixtures("toy")
@pytest.mark.slow  # trains, evaluates and reports
def test_a_new_task_trains_and_is_evaluated_applied_compared_and_reported(tiny, tmp_path):
    source, run = tiny.csv(tmp_path / "tiny.csv"), tmp_path / "run"
    small = {**tiny.settings, "task": {"name": "level", "input_length": 32}}
    experiment = build_experiment({"data": {"source": str(source)}, **small})
    progress = train_run(experiment, run).progress
    assert "error_of_the_mean" in progress.best_metrics

    loaded, data = open_run(run)
    found = evaluate(loaded, data)
    assert 0 < found["error_of_the_mean"] < 30
    rows = compare(loaded, data).rows
    assert [row.method for row in rows] == ["One-for-All (reference, random trunk)", "last value"]
    assert rows[0].metrics == found

    table = predict(load_bundle(run), source)
    assert table.columns.tolist() == ["a", "b"]
    assert np.isfinite(table.to_numpy()).all()

    text = write_report(run, SILENT).read_text()
    assert "Prediction of a mean of 4 steps" in text
    assert "Means of test windows" in text


def test_it_is_gone_afterwards():
    assert "level" not in {setting.type for setting in settings() if setting.path == "task.name"}.pop()

"""The adapter to fev: a task from a local file, evaluated end to end, offline."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ofa_jax import OneForAllForecaster

pytest.importorskip("fev", reason="needs the extra `fev`: pip install -e '.[fev]'")
pytestmark = [
    pytest.mark.slow,  # fev and datasets are imported and a network is compiled
    pytest.mark.filterwarnings("default"),  # those of fev and datasets are their own
]
IDS = ("z", "a", "m")
SHARES = [0.9, 0.1]


@pytest.fixture
def frame():
    """Hours of three series with two targets and a covariate; ids are not in the order of the alphabet."""
    draw = np.random.default_rng(0)
    parts = []
    for number, steps in enumerate((80, 60, 100)):
        wave = np.sin(2 * np.pi * np.arange(steps) / 24)[:, None] + draw.normal(0, 0.1, (steps, 2))
        part = pd.DataFrame(10.0**number * (5 + wave), columns=["load", "price"])
        part.loc[20, "load"] = np.nan
        times = pd.date_range("2024-01-01", periods=steps, freq="h")
        parts.append(part.assign(id=IDS[number], timestamp=times, holiday=0.0))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def task(frame, tmp_path):
    """A function of the metric."""
    import fev

    frame.to_parquet(path := tmp_path / "series.parquet")
    return lambda metric: fev.Task(
        dataset_path=str(path),
        horizon=4,
        num_windows=2,
        eval_metric=metric,
        quantile_levels=SHARES,
        target=["load", "price"],
        known_dynamic_columns=["holiday"],
    )


@pytest.mark.parametrize(
    ("metric", "point"),
    [("MSE", "OneForAll"), ({"name": "MASE"}, "OneForAll_ql0.5"), ("SQL", "OneForAll_ql0.5")],
)
def test_a_task_is_evaluated_with_the_numbers_of_the_forecaster(task, frame, metric, point):
    import fev

    from ofa_jax.integrations.fev import OneForAllModel

    model, task = OneForAllModel(), task(metric)
    found = model.fit_predict(task)
    assert len(found) == 2
    assert model.inference_time > 0
    for window, made in zip(task.iter_windows(num_proc=0), found, strict=True):
        assert list(made) == ["load", "price"]
        for name in made:
            rows = pd.concat(
                part.iloc[: len(part) + window.cutoff] for _, part in frame.groupby("id", sort=False)
            )
            long = rows.rename(columns={"id": "unique_id", "timestamp": "ds", name: "y"})
            plain = OneForAllForecaster(4).predict(long[["unique_id", "ds", "y"]], quantiles=[0.1, 0.5, 0.9])
            ids = window.get_input_data()[0]["id"]
            plain = plain.set_index("unique_id").loc[ids]
            columns = {"predictions": point} | {str(share): f"OneForAll_ql{share:g}" for share in SHARES}
            for key, column in columns.items():
                wanted = plain[column].to_numpy().reshape(3, 4)
                np.testing.assert_allclose(made[name][key], wanted, rtol=1e-5)
    summary = task.evaluation_summary(
        found, model_name=model.model_name, inference_time_s=model.inference_time
    )
    assert np.isfinite(summary["test_error"])
    assert fev.ForecastingModel.get_model_cls("oneforall-nano") is OneForAllModel


def test_the_example_of_the_docs_runs_as_written(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs/dataframes.md").read_text()
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import fev" in code)
    times = pd.date_range("2024-01-01", periods=200)
    table = pd.DataFrame({"id": "a", "timestamp": times, "target": np.sin(np.arange(200)) + 5})
    table.to_parquet(tmp_path / "sales.parquet")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert 0 < float(capsys.readouterr().out) < 1

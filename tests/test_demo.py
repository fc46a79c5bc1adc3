"""The demo, from generated series to a picture, in the folder that it takes by itself."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import ofa_jax.demo
from ofa_jax.data.synthetic import hourly_load
from ofa_jax.demo import run_demo
from ofa_jax.errors import OfaError
from ofa_jax.train.progress import SilentReporter


@pytest.mark.slow
def test_the_demo_in_its_own_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ofa_jax.demo, "hourly_load", lambda rows: hourly_load(rows * 4 // 7, n_series=2))
    made = run_demo("demo", SilentReporter())
    rows = {row.method.split(",")[0].split(" (")[0]: row for row in made.rows}
    assert list(rows) == ["noise floor", "zero-shot", "seasonal naive", "NLinear", "One-for-All"]
    assert all(row.metrics["mse"] > made.rows[0].metrics["mse"] * 0.5 for row in made.rows)
    assert rows["One-for-All"].trainable == 23_296
    assert len(pd.read_csv("demo/forecast.csv")) == 48
    assert Path("demo/forecast.png").read_bytes().startswith(b"\x89PNG")
    assert run_demo("demo", SilentReporter()) == made


@pytest.mark.parametrize("name", ["load.csv", "run", "forecast.csv", "forecast.png"])
def test_a_folder_with_files_of_others_is_refused_before_anything_is_written(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OfaError, match="Choose a new folder"):
        run_demo(tmp_path, SilentReporter())
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(OfaError, match="this is a file"):
        run_demo(tmp_path / "demo", SilentReporter())

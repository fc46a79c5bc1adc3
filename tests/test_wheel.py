"""The built package: its trunk travels with it and forecasts without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path) -> None:
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_an_installed_wheel_adapts_its_trunk_and_forecasts(tmp_path, tiny):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("ofa_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, source, cwd=tmp_path)
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    # the dependencies are those of this environment; the package itself is the wheel
    (folder,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    places = [place for place in sys.path if place.endswith("site-packages")]
    (folder / "dependencies.pth").write_text("\n".join(places))
    (wheel,) = tmp_path.glob("*.whl")
    run(*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    shutil.rmtree(source)

    program = tmp_path / "env" / "bin" / "ofa-jax"
    data = tiny.csv(tmp_path / "tiny.csv")
    settings = ("--set", f"data.source={data}", "--set", "train.epochs=1", "--set", "task.horizon=8")
    run(program, "train", "csv", *settings, "--out", "run", cwd=tmp_path)
    run(program, "predict", "run", "--input", data, "--output", "forecast.csv", cwd=tmp_path)
    assert len(pd.read_csv(tmp_path / "forecast.csv")) == 8

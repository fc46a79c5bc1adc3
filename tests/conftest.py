"""What tests of several rooms share: an experiment that is small enough to train in a second."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ofa_jax.config import Experiment, build_experiment
from ofa_jax.data.frames import Frame


class Tiny:
    """Two generated series of 200 hours, L 32, H 8, a random trunk of one block; 202 training windows, 7 steps an epoch."""

    settings: Mapping[str, Any] = {
        "task": {"input_length": 32, "horizon": 8},
        "trunk": {"source": "random", "n_layer": 1, "random": {"n_embd": 16, "n_head": 2, "n_positions": 8}},
        "network": {"patch": 8, "stride": 8},
        "adapters": {"rank": 4},
        "train": {"epochs": 3, "batch_size": 32, "learning_rate": 0.01, "cosine_epochs": 3, "chunk": 3, "log_every": 4},
    }

    @staticmethod
    def values(rows: int = 200, seed: int = 0) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(size=(rows, 2))
        angle = 2 * np.pi * np.arange(rows) / 24
        return np.stack([10 + 5 * np.sin(angle), 100 + 20 * np.cos(angle)], axis=1) + noise * [0.5, 2]

    def frame(self, rows: int = 200, seed: int = 0) -> Frame:
        times = np.datetime64("2024-01-01T00", "ns") + np.arange(rows) * np.timedelta64(1, "h")
        return Frame(self.values(rows, seed), ("a", "b"), times, "tiny series")

    def csv(self, path: Path, rows: int = 200, seed: int = 0) -> Path:
        frame = self.frame(rows, seed)
        assert frame.timestamps is not None
        lines = [
            f"{when},{a!r},{b!r}" for when, (a, b) in zip(frame.timestamps.astype("datetime64[s]"), frame.values.tolist(), strict=True)
        ]
        path.write_text("\n".join(["date,a,b", *lines]) + "\n")
        return path

    def experiment(self, source: str | Path, *overrides: str) -> Experiment:
        return build_experiment({"data": {"source": str(source)}, **self.settings}, overrides)

    def config(self, folder: Path) -> Path:
        """A settings file beside its data file."""
        import yaml

        source = self.csv(folder / "tiny.csv")
        path = folder / "tiny.yaml"
        path.write_text(yaml.safe_dump({"data": {"source": str(source)}, **self.settings}))
        return path

    @staticmethod
    def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``ofa-jax`` in a process of its own."""
        return subprocess.run(Tiny.arguments(*arguments), capture_output=True, text=True, timeout=300, **options)

    @staticmethod
    def arguments(*arguments: object) -> list[str]:
        return [sys.executable, "-c", "from ofa_jax.cli import main; main()", *map(str, arguments)]


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Programs that several tests compile are compiled once; most of the time of the tests would go there."""
    import jax

    for name, value in {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for commands in processes of their own


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the published data sets; tests that need it are skipped where there is none."""
    root = os.environ.get("OFA_JAX_DATA")
    if not root:
        pytest.skip("OFA_JAX_DATA is not set")
    return Path(root)

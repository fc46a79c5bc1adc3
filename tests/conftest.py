"""What tests of several rooms share: an experiment that is small enough to train in a second."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ofa_jax.config.load import build_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.data.archives import LabelledStream, write_stream
from ofa_jax.data.frames import Frame


class Tiny:
    """Two generated series of 200 hours, L 32, H 8, a random trunk of one block; 7 steps an epoch."""

    settings: Mapping[str, Any] = {
        "task": {"input_length": 32, "horizon": 8},
        "trunk": {"source": "random", "n_layer": 1, "random": {"n_embd": 16, "n_head": 2, "n_positions": 8}},
        "network": {"patch": 8, "stride": 8},
        "adapters": {"rank": 4},
        "train": {
            "epochs": 3,
            "batch_size": 32,
            "learning_rate": 0.01,
            "cosine_epochs": 3,
            "chunk": 3,
            "log_every": 4,
        },
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
            f"{when},{a!r},{b!r}"
            for when, (a, b) in zip(
                frame.timestamps.astype("datetime64[s]"), frame.values.tolist(), strict=True
            )
        ]
        path.write_text("\n".join(["date,a,b", *lines]) + "\n")
        return path

    def experiment(self, source: str | Path, *overrides: str) -> Experiment:
        return build_experiment({"data": {"source": str(source)}, **self.settings}, overrides)

    def of_task(self, task: str, folder: Path, *overrides: str) -> Experiment:
        """An experiment of any task, on data generated into ``folder``; one block of width 8."""
        write, settings = _TASKS[task]
        written = {**settings, "data": write(folder), "task": {"name": task, **settings["task"]}}
        small = {
            # without dropout a step compiles in half the time
            "trunk": {
                "source": "random",
                "n_layer": 1,
                "random": {"n_embd": 8, "n_head": 2, "n_positions": 24},
                "dropout": 0,
            },
            "adapters": {"rank": 2},
            "train": {
                "epochs": 2,
                "batch_size": 5,
                "learning_rate": 0.01,
                "cosine_epochs": 2,
                "chunk": 2,
                "log_every": 3,
            },
        }
        return build_experiment({**small, **written}, overrides)

    def config(self, folder: Path) -> Path:
        """A settings file next to its data file."""
        import yaml

        source = self.csv(folder / "tiny.csv")
        path = folder / "tiny.yaml"
        path.write_text(yaml.safe_dump({"data": {"source": str(source), "season": 24}, **self.settings}))
        return path

    @staticmethod
    def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``ofa-jax`` in a separate process."""
        return subprocess.run(
            Tiny.arguments(*arguments), capture_output=True, text=True, timeout=300, **options
        )

    @staticmethod
    def arguments(*arguments: object) -> list[str]:
        return [sys.executable, "-c", "from ofa_jax.cli.main import main; main()", *map(str, arguments)]


def _write_table(folder: Path) -> dict[str, Any]:
    return {"source": str(Tiny().csv(folder / "table.csv", rows=90)), "ratios": [0.6, 0.2, 0.2]}


def _write_collection(
    folder: Path, name: str = "source", lengths: range = range(14, 34, 2), seed: int = 0
) -> Path:
    """Series of unequal lengths, by default ten of 14 to 32 steps."""
    draw = np.random.default_rng(seed)
    header = [
        "@relation tiny",
        "@attribute series_name string",
        "@frequency yearly",
        "@horizon 3",
        "@missing false",
        "@equallength false",
    ]
    series = [
        f"T{n}:" + ",".join(f"{value:.3f}" for value in 20 + draw.normal(size=n).cumsum()) for n in lengths
    ]
    path = folder / f"{name}.tsf"
    path.write_text("\n".join([*header, "@data", *series]) + "\n")
    return path


def _write_stream(folder: Path) -> dict[str, Any]:
    """200 training and 120 test steps of three channels; test steps 50 to 59 are anomalous."""
    draw = np.random.default_rng(0)
    train, test = (
        np.sin(np.arange(rows) / 4)[:, None] * [1, 2, 3] + 0.1 * draw.normal(size=(rows, 3))
        for rows in (200, 120)
    )
    label = np.zeros(120, bool)
    label[50:60] = True
    test[label] += 3
    borders = [np.array([0, rows], np.int64) for rows in (200, 120)]
    write_stream(
        folder / "stream.npz",
        LabelledStream(train, test, label, ("one",), borders[0], borders[1], "generated"),
    )
    return {"source": str(folder / "stream.npz")}


def _write_cases(folder: Path) -> dict[str, Any]:
    """Two channels of 6 to 10 steps, three classes that differ in their level."""
    draw = np.random.default_rng(0)
    for part, count in (("TRAIN", 30), ("TEST", 15)):
        lines = [
            "@problemName Tiny",
            "@timestamps false",
            "@univariate false",
            "@dimensions 2",
            "@classLabel true a b c",
            "@data",
        ]
        for case in range(count):
            channels = draw.normal(size=(2, 10 if case == 0 else draw.integers(6, 11))) + 3 * (case % 3)
            lines.append(
                ":".join(
                    [
                        *(",".join(f"{value:.4f}" for value in channel) for channel in channels),
                        "abc"[case % 3],
                    ]
                )
            )
        (folder / f"Tiny_{part}.ts").write_text("\n".join(lines) + "\n")
    return {"source": str(folder)}


def _write_transfer(folder: Path) -> dict[str, Any]:
    target = _write_collection(folder, "target", range(6, 20, 2), seed=1)
    return {"source": str(_write_collection(folder)), "target": str(target)}


_TASKS: dict[str, tuple[Callable[[Path], dict[str, Any]], dict[str, Any]]] = {
    "forecast": (
        _write_table,
        {"task": {"input_length": 8, "horizon": 3}, "network": {"patch": 4, "stride": 4}},
    ),
    "zero_shot": (
        _write_transfer,
        {"task": {"input_length": 8, "horizon": 3}, "network": {"patch": 2, "stride": 2}},
    ),
    "short_term": (
        lambda folder: {"source": str(_write_collection(folder))},
        {"task": {"input_length": 6, "horizon": 3, "loss": "smape"}},
    ),
    "anomaly": (
        _write_stream,
        {
            "task": {"input_length": 20, "step": 5, "anomaly_ratio": 5},
            "network": {"segment": 5, "read_width": 6},
        },
    ),
    "classification": (_write_cases, {"task": {"input_length": 10}, "network": {"patch": 4, "stride": 2}}),
    "imputation": (_write_table, {"task": {"input_length": 8}}),
    "pretrain": (
        lambda folder: {"source": "generated"},
        {
            "task": {"input_length": 16, "horizon": 8, "series": 30, "held_out": 8},
            "network": {"patch": 4, "stride": 4},
            "recipe": "full",
        },
    ),
}
"""For each task: what writes its data and gives their settings, and its other settings."""


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Programs that several tests compile are compiled once; most of the time of the tests would go there."""
    import jax

    for name, value in {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for commands in separate processes


@pytest.fixture(scope="session", autouse=True)
def seldom_collected() -> None:
    """Tracing makes objects by the million; looking for cycles among them took a fifteenth of the tests."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def dispatches_without_a_clock() -> None:
    """Chunks have the length of the setting, however busy the machine is."""
    from ofa_jax.train import loop

    loop.DISPATCH_SECONDS = float("inf")


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """After a module its compiled programs go: no other module calls them, and they would fill gigabytes."""
    yield
    _forget_programs()


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Compiled programs also go when a process has grown to a gigabyte."""
    yield
    pages = Path("/proc/self/statm")
    if pages.exists() and int(pages.read_text().split()[1]) * resource.getpagesize() > 2**30:
        _forget_programs()


def _forget_programs() -> None:
    import jax

    from ofa_jax.train.memory import return_compiler_memory

    jax.clear_caches()
    gc.collect()
    return_compiler_memory()


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="module")
def source(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The series of :class:`Tiny` as a file."""
    return tiny.csv(tmp_path_factory.mktemp("data") / "tiny.csv")


@pytest.fixture
def bundle_meta() -> dict[str, Any]:
    """The fields of a bundle's record that its writer gives, of a forecaster of two series."""
    frozen = {
        "trunk_source": "random",
        "trunk_sha256": "0" * 64,
        "trunk_config": {
            "n_embd": 8,
            "n_inner": None,
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
        },
        "rule": "philox-1",
        "seed": 0,
        "sha256": "f" * 64,
    }
    return {
        "kind": "ofa-jax bundle",
        "versions": {"jax": "0.10.2"},
        "settings": {"task": {"name": "forecast"}},
        "scaler": {"names": ["a", "ö"], "mean": [0.1, 1 / 3], "std": [1e-9, 2.5], "constant": []},
        "season": 24,
        "protocol": "strict",
        "frozen": frozen,
        "frequency": "h",
        "best_epoch": 3,
        "validation": {"mse": 0.25},
    }


@pytest.fixture(scope="session")
def tiny_run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forecasting run of one epoch, to open or copy, never to change; its data: ``tiny.csv`` next to it."""
    from ofa_jax.runs.train import train_run
    from ofa_jax.train.progress import SilentReporter

    folder = tmp_path_factory.mktemp("tiny")
    train_run(
        tiny.experiment(tiny.csv(folder / "tiny.csv"), "train.epochs=1"), folder / "run", SilentReporter()
    )
    return folder / "run"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the published data sets; tests that need it are skipped where there is none."""
    root = os.environ.get("OFA_JAX_DATA")
    if not root:
        pytest.skip("OFA_JAX_DATA is not set")
    return Path(root)

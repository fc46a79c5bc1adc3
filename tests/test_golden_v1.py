"""Runs, bundles, checkpoints and sweeps in format 1 are still read, and give the numbers they gave then.

``tests/golden/README.md`` says what is in ``tests/golden/v1``. Parameters are compared bit for bit. What is
computed from them is not: XLA compiles other kernels for other processors, which sum in another order.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ofa_jax.train.progress import SilentReporter

V1 = Path(__file__).parent / "golden" / "v1"
TABLE = V1 / "data" / "table.csv"
RUNS = [
    "forecast",
    "zero_shot",
    "short_term",
    "anomaly",
    "classification",
    "imputation",
    "gpt4ts",
    "attention",
]
SOURCES = {
    "zero_shot": "source.tsf",
    "short_term": "source.tsf",
    "anomaly": "stream.npz",
    "classification": "cases",
}

# Of a tensor's largest value. Measured between SSE4.2, AVX, AVX2 and AVX-512 (XLA_FLAGS=--xla_cpu_max_isa=…):
# at most 3e-7 for predictions, 2e-7 for adapters after eleven more steps of Adam, 3e-7 for metrics.
TOLERANCE = 1e-5
METRIC_TOLERANCE = 1e-6


class Notices(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def notice(self, text: str) -> None:
        self.said.append(text)


# Every call of the package is in the functions from here to the first fixture.


@dataclass
class Opened:
    """A run or a cell of a sweep, opened with its data at their present place."""

    run: Path
    source: Path
    target: Path | None = None

    @cached_property
    def _opened(self) -> tuple[Any, Any]:
        from ofa_jax.runs.train import open_run

        target = None if self.target is None else str(self.target)
        return open_run(self.run, source=str(self.source), target=target)

    def trees(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The trainable and the frozen parameters, nested."""
        model = self._opened[0].model
        return model.trainable, model.frozen

    @cached_property
    def _evaluate(self) -> Callable[[Any], dict[str, np.ndarray]]:
        """Gives of every window of a table what metrics need, and the network's output, by one program."""
        from ofa_jax.train.evaluate import WindowPredictor

        loaded, data = self._opened
        model, sums = loaded.model, data.task.sums
        outputs = lambda output, batch: {"prediction": output, **sums(output, batch)}  # noqa: E731
        evaluator = WindowPredictor(model.predict, data.task, outputs, batch_size=16)
        return lambda table: evaluator(table, model.frozen, model.trainable)

    def predictions(self) -> np.ndarray:
        """What the network gives for every test window, ``[windows, …]``."""
        return self._evaluate(self._opened[1].task.tables["test"])["prediction"]

    def metrics(self) -> dict[str, float]:
        """The model's line in the table of ``ofa-jax evaluate``."""
        return self._opened[1].task.final_metrics(self._evaluate, "test")

    def comparison(self, *controls: str) -> tuple[dict[str, Any], list[str]]:
        """The table of ``ofa-jax evaluate --json``, and what was said while it was made."""
        from ofa_jax.baselines.compare import compare

        loaded, data = self._opened
        reporter = Notices()
        folder = self.run / "controls" if controls else None
        found = compare(
            loaded, data, split="test", baselines=folder, reporter=reporter, only=controls or None
        )
        return found.to_dict(), reporter.said

    def forecast(self, table: Path) -> pd.DataFrame:
        """What ``ofa-jax predict`` writes; reads nothing of the run but its bundle."""
        from ofa_jax.inference import predict
        from ofa_jax.runs.bundle import load_bundle

        return predict(load_bundle(self.run / "bundle"), table)


def resume(run: Path) -> list[str]:
    """Train a run to its end by its own settings; returns the notices."""
    from ofa_jax.config.load import load_experiment
    from ofa_jax.runs.train import train_run

    reporter = Notices()
    train_run(load_experiment(run / "config.yaml", [f"data.source={TABLE}"]), run, reporter)
    return reporter.said


def sweep_again(folder: Path, ranks: str) -> dict[str, Any]:
    """Repeat the command that made a sweep; returns its record."""
    from ofa_jax.config.load import build_experiment
    from ofa_jax.studies.sweep.cells import Axes
    from ofa_jax.studies.sweep.folder import read_sweep, run_sweep

    experiment = build_experiment(read_sweep(folder).settings, [f"data.source={TABLE}"])
    return run_sweep(experiment, Axes(ranks), folder, SilentReporter()).record


def report(run: Path) -> str:
    from ofa_jax.report.page import write_report

    return Path(write_report(run, SilentReporter(), source=str(TABLE))).read_text()


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, node in tree.items():
        inner = isinstance(node, Mapping)
        found |= flat(node, f"{prefix}{name}/") if inner else {f"{prefix}{name}": np.asarray(node)}
    return found


def digest(leaves: Mapping[str, np.ndarray]) -> str:
    """One sha256 over paths, types, shapes and bytes."""
    found = hashlib.sha256()
    for path, leaf in sorted(leaves.items()):
        found.update(f"{path} {leaf.dtype.name} {leaf.shape}\n".encode() + leaf.tobytes())
    return found.hexdigest()


def expected(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(V1 / name / "expected.npz") as arrays:
        return json.loads((V1 / name / "expected.json").read_text()), dict(arrays)


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(V1 / name / "run", folder / name))


def assert_near(found: Any, wanted: np.ndarray) -> None:
    found = np.asarray(found)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert abs(found - wanted).max() <= TOLERANCE * abs(wanted).max()


def numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if isinstance(value, int | float)}


def assert_same_record(found: Mapping[str, Any], wanted: Mapping[str, Any], tolerance: float) -> None:
    """The same fields; words exactly, numbers nearly. The stored runs were scored without aeon."""
    found = {name: value for name, value in found.items() if name != "range_pr_auc"}
    assert set(found) == set(wanted)
    assert numbers(found) == pytest.approx(numbers(wanted), rel=tolerance)
    assert {**found, **numbers(wanted)} == wanted


def assert_same_comparison(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Every number of every method, in the same order; what tables call a method may change, fields may be
    new."""
    methods = found["methods"]
    if any(method["method"] == "last value" for method in methods):
        # then it had the name of a season longer than the input; what has the name now is another method
        methods = [method for method in methods if not method["method"].startswith("seasonal naive")]
    for method, then in zip(methods, wanted["methods"], strict=True):
        assert_same_record(method, {**then, "method": method["method"]}, METRIC_TOLERANCE)
    assert {**{name: found[name] for name in wanted}, "methods": []} == {**wanted, "methods": []}


@pytest.fixture(scope="module", params=RUNS)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Opened]:
    name = request.param
    run = copied(name, tmp_path_factory.mktemp("golden"))
    target = V1 / "data" / "target.tsf" if name == "zero_shot" else None
    return name, Opened(run, V1 / "data" / SOURCES.get(name, "table.csv"), target)


def test_parameters_have_the_bits_of_training(golden):
    name, opened = golden
    trainable, frozen = opened.trees()
    words, _ = expected(name)
    assert digest(flat(trainable)) == words["trainable_sha256"]
    assert digest(flat(frozen)) == words["frozen_sha256"]


@pytest.mark.slow
def test_predictions_are_those_of_training(golden):
    name, opened = golden
    assert_near(opened.predictions(), expected(name)[1]["prediction"])


@pytest.mark.slow
def test_metrics_are_those_of_training(golden):
    name, opened = golden
    then = expected(name)[0]["comparison"]["methods"][0]
    wanted = {metric: then[metric] for metric in then if metric not in ("method", "trainable", "bytes")}
    assert_same_record(opened.metrics(), wanted, METRIC_TOLERANCE)


@pytest.mark.slow  # each method that reads windows is another program to compile
def test_other_methods_score_as_they_did(golden):
    name, opened = golden
    found, _ = opened.comparison()
    assert_same_comparison(found, expected(name)[0]["comparison"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forecast", "zero_shot", "short_term", "gpt4ts"])
def test_forecasts_are_those_of_training(name, tmp_path):
    found = Opened(copied(name, tmp_path), TABLE).forecast(TABLE)
    words, arrays = expected(name)
    assert list(found.columns) == words["forecast"]["columns"]
    assert str(found.iloc[0, 0]) == words["forecast"]["first"]
    assert_near(found.iloc[:, 1:].to_numpy(), arrays["forecast"])


@pytest.mark.slow
def test_kept_controls_are_used_as_they_are(tmp_path):
    found, said = Opened(copied("forecast", tmp_path), TABLE).comparison("nlinear", "attention")
    assert_same_comparison(found, expected("forecast")[0]["controls"])
    assert not said  # a baseline that is trained again is announced


@pytest.mark.slow
def test_a_stopped_run_is_resumed_to_the_end_it_would_have_had(tmp_path):
    run = copied("interrupted", tmp_path)
    assert "resumed at step 10" in resume(run)
    words, arrays = expected("interrupted")
    found = flat(Opened(run, TABLE).trees()[0])
    assert set(found) == set(arrays)
    for path, wanted in arrays.items():
        assert_near(found[path], wanted)

    clocks = ("time", "seconds", "windows_per_second")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = [{name: value for name, value in line.items() if name not in clocks} for line in lines]
    assert len(events) == len(words["events"])
    for event, then in zip(events, words["events"], strict=True):
        assert_same_record(event, then, TOLERANCE)


def test_cells_of_a_sweep_are_runs(tmp_path):
    folder = copied("sweep", tmp_path)
    words, arrays = expected("sweep")
    assert set(words["cells"]) == {"rank2-seed0", "rank3-seed0"}
    for cell, then in words["cells"].items():
        opened = Opened(folder / "cells" / cell, TABLE)
        trainable, frozen = opened.trees()
        assert digest(flat(trainable)) == then["trainable_sha256"]
        assert digest(flat(frozen)) == then["frozen_sha256"]
        assert_near(opened.predictions(), arrays[f"{cell}/prediction"])


def test_a_finished_sweep_is_left_as_it_is(tmp_path):
    folder = copied("sweep", tmp_path)
    then = json.loads((folder / "sweep.json").read_text())
    assert sweep_again(folder, "2,3")["cells"] == then["cells"]
    assert (folder / "sweep.csv").read_bytes() == (V1 / "sweep" / "run" / "sweep.csv").read_bytes()


@pytest.mark.slow  # a report opens the run, scores it and draws a dozen figures
def test_a_report_is_written(tmp_path):
    page = report(copied("forecast", tmp_path))
    assert f"{expected('forecast')[0]['comparison']['methods'][0]['mse']:.4f}" in page

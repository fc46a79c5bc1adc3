"""One table: the trained model beside honest controls, on the same windows and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.baselines.nlinear import init_nlinear, nlinear
from ofa_jax.baselines.seasonal_naive import seasonal_naive
from ofa_jax.config import TrainConfig
from ofa_jax.errors import CheckpointError
from ofa_jax.files import atomic_folder, read_json, run_lock, sha256_file, write_json
from ofa_jax.tasks.base import Split, Task
from ofa_jax.tasks.forecasting import ForecastData
from ofa_jax.train.assemble import footprint
from ofa_jax.train.loop import Reporter, evaluate, fit
from ofa_jax.train.run import Loaded

NLINEAR_TRAINING = TrainConfig(learning_rate=1e-3, epochs=10, batch_size=256, cosine_epochs=10)
"""How the NLinear control is trained; the step size was chosen on ETTh1's validation part."""


@dataclass(frozen=True)
class Row:
    """A method's line: its metrics on the standardised scale and how many parameters were trained."""

    method: str
    metrics: Mapping[str, float]
    trainable: int


@dataclass(frozen=True)
class Comparison:
    """Metrics of several methods over every window of one split."""

    split: Split
    windows: int
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """As one JSON object."""
        return {
            "split": self.split,
            "windows": self.windows,
            "protocol": "strict",
            "methods": [{"method": row.method, **row.metrics, "trainable": row.trainable} for row in self.rows],
        }


def compare(loaded: Loaded, data: ForecastData, *, split: Split, controls: Path | None, reporter: Reporter) -> Comparison:
    """Score the model and seasonal naive; with a folder for controls also NLinear, trained once and kept there.

    Args:
        loaded: The model.
        data: The data it was trained on.
        split: Which windows.
        controls: The run's folder of trained controls, or None to train none.
        reporter: What tells a person how it goes.
    """
    task, table = data.task, data.task.tables[split]
    batch_size = loaded.experiment.train.eval_batch_size

    def score(predict: Any, frozen: Any, trainable: Any) -> dict[str, float]:
        return task.metrics(evaluate(predict, task, table, frozen, trainable, batch_size=batch_size))

    model = loaded.model
    rows = [
        Row(model_name(loaded), score(model.predict, model.frozen, model.trainable), footprint(loaded.experiment).trainable),
        Row(f"seasonal naive ({data.season} steps)", score(seasonal_naive(data.season, task.spec.horizon), {}, {}), 0),
    ]
    if controls is not None:
        weights = trained_nlinear(task, controls, seed=loaded.experiment.train.seed, reporter=reporter)
        rows.append(Row("NLinear", score(nlinear, {}, weights), sum(int(np.size(leaf)) for leaf in weights.values())))
    return Comparison(split, table.size, tuple(rows))


def model_name(loaded: Loaded) -> str:
    """What the table calls the model; a random trunk is always named."""
    recipe = loaded.experiment.recipe
    trunk = ", random trunk" if loaded.experiment.trunk.source == "random" else ""
    return f"One-for-All ({recipe}{trunk})" if recipe in ("reference", "paper") else f"{recipe}{trunk}"


def trained_nlinear(task: Task, controls: Path, *, seed: int, reporter: Reporter) -> dict[str, Any]:
    """NLinear's weights for a task: read from the run's controls, or trained now and kept there.

    Raises:
        CheckpointError: The kept control is damaged, or another process is working on it.
    """
    from safetensors.numpy import load_file, save_file

    folder = controls / "nlinear"
    with run_lock(controls):
        if folder.exists():
            record = read_json(folder / "control.json", kind="control")
            kept = folder / "weights.safetensors"
            if not kept.exists() or record.get("sha256") != sha256_file(kept):
                raise CheckpointError(
                    "the kept NLinear weights are damaged", where=str(folder), fix="Delete this folder; it is trained anew"
                )
            return load_file(kept)
        settings = NLINEAR_TRAINING.model_copy(update={"seed": seed})
        reporter.notice("training the control NLinear, which is then kept")
        start = init_nlinear(task.spec.input_length, task.spec.horizon)
        result = fit(nlinear, task, frozen={}, trainable=start, settings=settings, reporter=reporter)
        weights = {name: np.asarray(leaf) for name, leaf in result.best.items()}
        with atomic_folder(folder) as scratch:
            save_file(weights, scratch / "weights.safetensors")
            record = {
                "control": "nlinear",
                "settings": settings.model_dump(mode="json"),
                "validation": result.progress.best_metrics,
                "sha256": sha256_file(scratch / "weights.safetensors"),
            }
            write_json(scratch / "control.json", record)
        return weights

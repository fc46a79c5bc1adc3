"""What all tasks share: the protocol that they tell, whole batches, and the fingerprint of their data."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.config.load import build_experiment
from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import GENERATED
from ofa_jax.data.archives import LabelledStream, write_stream
from ofa_jax.errors import DataError
from ofa_jax.model.quantiles import Quantiles
from ofa_jax.tasks.base import Task, TaskData
from ofa_jax.tasks.table import TASKS, prepare
from ofa_jax.train.evaluate import evaluate
from ofa_jax.windows.table import WindowSpec, sliding_windows

SETTINGS: dict[str, dict[str, Any]] = {
    "forecast": {"horizon": 4},
    "zero_shot": {"horizon": 4},
    "short_term": {"horizon": 4},
    "anomaly": {},
    "classification": {},
    "imputation": {},
    "pretrain": {"input_length": 32, "horizon": 16, "series": 8, "held_out": 6},
}


def source_of(name: str, folder: Path, tiny) -> Path | str:
    """Data that the task reads: rows of a table, a labelled stream, or labelled cases."""
    if name == "pretrain":
        return GENERATED
    if name == "anomaly":
        values, borders = np.random.default_rng(0).random((200, 2)), np.array([0, 200])
        label = np.arange(200) == 40
        write_stream(
            folder / "own.npz", LabelledStream(values, values, label, ("a",), borders, borders, "memory")
        )
        return folder / "own.npz"
    if name == "classification":
        header = (
            "@problemName p\n@timeStamps false\n@missing false\n@univariate true\n"
            "@equalLength true\n@classLabel true a b\n@data\n"
        )
        cases = "".join(f"{index},{index + 1},{-index}:{'ab'[index % 2]}\n" for index in range(10))
        for part in ("TRAIN", "TEST"):
            (folder / f"p_{part}.ts").write_text(header + cases)
        return folder
    return tiny.csv(folder / "tiny.csv")


def made(name: str, protocol: Protocol, folder: Path, tiny) -> TaskData:
    source = str(source_of(name, folder, tiny))
    target = {"target": source} if name == "zero_shot" else {}
    task = {"name": name, "input_length": 25, **SETTINGS[name]}
    experiment = build_experiment({"data": {"source": source, **target}, "task": task, "protocol": protocol})
    return prepare(experiment.data, experiment.task, protocol=experiment.protocol, batch_size=1)


@pytest.mark.parametrize("protocol", ["strict", "published"])
@pytest.mark.parametrize("name", TASKS)
def test_every_task_tells_the_protocol_that_it_was_made_by(tiny, tmp_path, name, protocol):
    data = made(name, protocol, tmp_path, tiny)
    task = data.task
    assert (data.settings.name, task.protocol) == (name, protocol)
    assert set(task.tables) == {"train", "validation", "test"}
    assert all(table.size for table in task.tables.values())


@pytest.mark.parametrize("name", TASKS)
def test_every_task_chooses_the_epoch_by_one_of_its_metrics(tiny, tmp_path, name):
    task = made(name, "strict", tmp_path, tiny).task
    shape = {"classification": (2,), "anomaly": (25, 2), "imputation": (25, 2)}.get(name, (4, 1))

    def zeros(frozen, trainable, x_btc, x_mask, *, dropout_keys=None):
        if name == "pretrain":
            return Quantiles(jnp.zeros((len(x_btc), 16, 9)), jnp.zeros((len(x_btc), 16)))
        return jnp.zeros((len(x_btc), *shape))

    table = task.tables["validation"]
    metrics = task.metrics(evaluate(zeros, task, table, {}, {}, batch_size=table.size))
    assert np.isfinite(metrics[task.objective])


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 20))
def test_full_batches_are_the_first_windows(windows, batch_size):
    table = sliding_windows((0, windows + 4), input_length=3, horizon=2, channels=1)
    tables = {"train": table, "validation": table, "test": table}
    spec, nothing = WindowSpec(3, 2), lambda *arguments: {}
    task = Task(spec, np.zeros((9, 1)), tables, nothing, nothing, nothing, "mse")
    assert task.with_full_batches(batch_size) is task
    task = replace(task, full_batches=True)
    if windows < batch_size:
        with pytest.raises(
            DataError, match=rf"{windows} validation windows make no full batch of {batch_size}"
        ):
            task.with_full_batches(batch_size)
        return
    made = task.with_full_batches(batch_size).tables
    assert made["train"] is table
    for kept in (made["validation"], made["test"]):
        assert kept.size % batch_size == 0
        assert 0 <= windows - kept.size < batch_size
        for column, all_of_it in zip(kept, table, strict=True):
            np.testing.assert_array_equal(column, all_of_it[: kept.size])


def test_the_fingerprint_of_series_is_of_their_scaled_rows_alone(tiny, tmp_path):
    data = made("forecast", "strict", tmp_path, tiny)
    buffer = data.task.buffer
    by_hand = hashlib.sha256(
        f"buffer {buffer.shape} <f4\n".encode() + buffer.astype("<f4").tobytes()
    ).hexdigest()
    assert data.fingerprint == by_hand


def test_the_fingerprint_hangs_on_every_label(tiny, tmp_path):
    data = made("forecast", "strict", tmp_path, tiny)
    labels = {"b": np.array([0, 1]), "a": np.array([1.5])}
    variants = [
        data,
        replace(data, labels=labels),
        replace(data, labels={**labels, "b": np.array([1, 1])}),
        replace(data, labels={**labels, "c": labels["a"]}),
        replace(data, labels={"b": labels["b"], "d": labels["a"]}),
        replace(data, task=replace(data.task, buffer=data.task.buffer + 1), labels=labels),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)
    assert replace(data, labels=dict(reversed(labels.items()))).fingerprint == variants[1].fingerprint

"""Classification of multivariate cases of unequal length (protocol §2, §3)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import ClassificationSettings, DataConfig, NetworkConfig
from ofa_jax.data.archives import LabelledCases, read_ts
from ofa_jax.data.catalog.load import load_cases
from ofa_jax.data.splits import Scaler, Split, fit_scaler
from ofa_jax.errors import DataError
from ofa_jax.model.linear import init_linear_classifier, linear_classifier
from ofa_jax.model.networks import ClassifyNetwork, TrunkModule
from ofa_jax.plots.tasks import class_probabilities
from ofa_jax.tasks import base
from ofa_jax.tasks.base import LinearBaseline, NewData, Predict, Sums, Task, TaskData, TaskKind, TrainedOn
from ofa_jax.tasks.losses import cross_entropy
from ofa_jax.tasks.metrics import classification_metrics, classification_sums
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.table import WindowSpec, WindowTable, lay_end_to_end

if TYPE_CHECKING:
    import pandas as pd

VALIDATION_SHARE = 0.2
"""Of each class's training cases."""


def prepare(data: DataConfig, task: ClassificationSettings, protocol: Protocol = "strict") -> TaskData:
    """One window per case from its start, zero-padded at its end; only test cases longer than L are clipped.

    ``strict`` holds out a fifth of each class's training cases and chooses the epoch by their cross-entropy;
    ``published`` trains on all of them and chooses it by the accuracy on the test cases (protocol §5 row 5).

    Raises:
        DataError: The cases cannot be read; training cases of one class only or longer than L; a class that
            only the test part has; sizes that contradict the settings.
    """
    train, test, _ = load_cases(data.source, missing=data.missing)
    present = _present_classes(train, test)
    channels = base.check_size("channels", train.n_channels, task.channels, train.source)
    base.check_size("classes", len(present), task.classes, train.source)
    names = tuple(f"channel {index}" for index in range(train.n_channels))
    # over all steps of the training cases (protocol §2)
    scaler = fit_scaler(np.concatenate(train.cases), names, ddof=1, source=train.source)
    buffer, first = lay_end_to_end([scaler.transform(case) for case in (*train.cases, *test.cases)])
    lengths = np.concatenate([train.lengths, test.lengths])
    longest = int(train.lengths.max())
    if task.input_length < longest:
        what = f"the longest training case has {longest} steps, but task.input_length is {task.input_length}"
        raise DataError(what, where=train.source, fix=f"Set task.input_length to {longest}")
    label = np.array([present.index(name) for name in (*train.labels, *test.labels)], np.int32)

    def table(rows: np.ndarray) -> WindowTable:
        valid = np.minimum(lengths[rows], task.input_length)
        return WindowTable.of(first[rows], x_valid=valid, window_id=rows, label=label[rows])

    everything, tests = np.arange(train.n_cases), np.arange(train.n_cases, len(lengths))
    held = _held_out(label[everything]) if protocol == "strict" else np.zeros(0, np.int64)
    if protocol == "strict" and not len(held):
        what = "no class has two training cases, so none can be held out for validation"
        raise DataError(what, where=train.source, fix="Set protocol to published")
    tables: dict[Split, WindowTable] = {
        "train": table(np.setdiff1d(everything, held)),
        "validation": table(held) if protocol == "strict" else table(tests),
        "test": table(tests),
    }
    made = Task(
        name=task.name,
        spec=WindowSpec(task.input_length, 0, univariate=False, align="start", labelled=True),
        buffer=buffer,
        tables=tables,
        loss=cross_entropy,
        sums=classification_sums,
        metrics=classification_metrics,
        objective="cross_entropy" if protocol == "strict" else "error",
        protocol=protocol,
    )
    return TaskData(
        made,
        task.model_copy(update={"channels": channels, "classes": len(present)}),
        scaler,
        notices=tuple(_notices(train, test, task, scaler, longest)),
        meta={"classes": list(present)},
        labels={"label": label, "length": lengths, "training_cases": np.array(train.n_cases)},
        naive={"most frequent class": partial(_most_frequent, tables)},
    )


def _present_classes(train: LabelledCases, test: LabelledCases) -> tuple[str, ...]:
    """The classes that training has, in the header's order."""
    present = tuple(name for name in train.classes if name in set(train.labels))
    if len(present) < 2:
        what = f"every training case is of the class `{present[0]}`"
        raise DataError(what, where=train.source, fix="Training needs at least two classes")
    unknown = next((name for name in test.labels if name not in present), None)
    if unknown is not None:
        what = f"the test part has cases of the class `{unknown}`, the training part has none"
        fix = "Leave those cases out, or add some of that class to the training part"
        raise DataError(what, where=test.source, fix=fix)
    return present


def _notices(
    train: LabelledCases, test: LabelledCases, task: ClassificationSettings, scaler: Scaler, longest: int
) -> list[str]:
    notices = []
    if task.input_length > longest:
        notices.append(
            f"the longest training case has {longest} steps; all are zero-padded to {task.input_length}"
        )
    clipped = int((test.lengths > task.input_length).sum())
    if clipped:
        notices.append(f"{clipped} test case(s) are clipped to {task.input_length} steps (protocol §2)")
    return notices + scaler.notices


def _held_out(label: np.ndarray) -> np.ndarray:
    """Indices of a fifth of each class's cases, at least one where a class has two; the same in every run."""
    held = []
    for index in range(int(label.max()) + 1):
        members = np.flatnonzero(label == index)
        if len(members) > 1:
            order = (
                np.random.Philox(key=np.array([0, index], np.uint64))
                .random_raw(len(members))
                .argsort(kind="stable")
            )
            held.append(members[order[: max(1, round(VALIDATION_SHARE * len(members)))]])
    return np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)


def _most_frequent(tables: dict[Split, WindowTable], split: Split) -> dict[str, float]:
    winner = int(np.bincount(tables["train"].label).argmax())
    accuracy = float((tables[split].label == winner).mean())
    return {"accuracy": accuracy, "error": 1 - accuracy}


def apply(trained: TrainedOn, source: str | Path | pd.DataFrame) -> NewData:
    """Cases of a ``.ts`` file, to classify them; labels in the file are ignored.

    The table has a row per case: its number from 0, the ``predicted`` class, the probability of every class.

    Raises:
        DataError: The cases cannot be read, or have other channels or more steps than the model reads.
    """
    if not isinstance(source, str | Path):
        raise DataError("cases are read from a .ts file", where="source", fix="Give the path of a .ts file")
    cases = read_ts(source, missing=trained.data.missing)
    assert trained.scaler is not None
    length, classes = trained.task.input_length, [str(name) for name in trained.meta["classes"]]
    if cases.n_channels != len(trained.scaler.names):
        what = f"the cases have {cases.n_channels} channels, the model reads {len(trained.scaler.names)}"
        raise DataError(what, where=cases.source, fix="Give cases of the same problem")
    if cases.lengths.max() > length:
        what = f"a case has {cases.lengths.max()} steps, the model reads {length}"
        raise DataError(what, where=cases.source, fix="Shorten the cases")
    buffer, first = lay_end_to_end([trained.scaler.transform(case) for case in cases.cases])

    def to_table(outputs: Sums) -> pd.DataFrame:
        import pandas as pd

        probability = outputs["probability"].astype(np.float64)
        table = pd.DataFrame(probability, columns=[f"p({name})" for name in classes])
        table.insert(0, "predicted", [classes[index] for index in probability.argmax(axis=1)])
        table.insert(0, "case", np.arange(len(table)))
        return table

    return NewData(
        spec=WindowSpec(length, 0, univariate=False, align="start", labelled=True),
        buffer=buffer,
        table=WindowTable.of(first, x_valid=cases.lengths),
        outputs=_probabilities,
        to_table=to_table,
        plot=lambda table, note: class_probabilities(table),
        summary=lambda table: f"{len(table)} cases of {len(classes)} classes",
    )


def _probabilities(logits_bk: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return {"probability": jax.nn.softmax(logits_bk, axis=1)}


def _network(task: ClassificationSettings, network: NetworkConfig, trunk: TrunkModule) -> ClassifyNetwork:
    return ClassifyNetwork(
        trunk=trunk,
        input_length=task.input_length,
        channels=task.channels or 1,
        classes=task.classes or 2,
        patch=network.patch,
        stride=network.stride,
    )


def _softmax_regression(task: ClassificationSettings) -> tuple[Predict, dict]:
    return linear_classifier, init_linear_classifier(task.input_length, task.channels or 1, task.classes or 2)


CLASSIFICATION = TaskKind(
    settings=ClassificationSettings,
    title="Classification",
    prepare=prepare,
    network=_network,
    apply=apply,
    baselines=(LinearBaseline("linear", "softmax regression", _softmax_regression),),
)

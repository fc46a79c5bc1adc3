"""Classification of multivariate cases of unequal length (protocol §2, §3)."""

from __future__ import annotations

from functools import partial

import numpy as np

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import DataConfig, TaskConfig
from ofa_jax.data.archives import LabelledCases
from ofa_jax.data.catalog.load import load_cases
from ofa_jax.data.splits import Scaler, Split, moments
from ofa_jax.errors import DataError
from ofa_jax.tasks.base import Task, TaskData
from ofa_jax.tasks.losses import cross_entropy
from ofa_jax.tasks.metrics import classification_metrics, classification_sums
from ofa_jax.windows.table import ALL_CHANNELS, WindowSpec, WindowTable, lay_end_to_end

VALIDATION_SHARE = 0.2
"""Of each class's training cases."""


def prepare_classification(
    data: DataConfig, task: TaskConfig, *, protocol: Protocol = "strict", batch_size: int = 1
) -> TaskData:
    """Every case one window from its start, zeros after its end; cases longer than L are clipped in the test part only.

    ``strict`` holds back a fifth of each class's training cases and chooses the epoch by their cross-entropy; ``published``
    trains on all of them and chooses it by the accuracy on the test cases (protocol §5 row 5).

    Raises:
        DataError: The cases cannot be read; training cases of one class only or longer than L; a class that only the test part has;
            other channels or classes than the settings say.
    """
    train, test, _ = load_cases(data.source, missing=data.missing)
    present = _check(train, test, task)
    scaler = _fit_scaler(train)
    buffer, first = lay_end_to_end([scaler.transform(case) for case in (*train.cases, *test.cases)])
    lengths = np.concatenate([train.lengths, test.lengths])
    longest = int(train.lengths.max())
    if task.input_length < longest:
        raise DataError(
            f"the longest training case has {longest} steps, the network reads {task.input_length}",
            where=train.source,
            fix=f"--set task.input_length={longest}",
        )
    place = {label: index for index, label in enumerate(present)}
    label = np.array([place[label] for label in (*train.labels, *test.labels)], np.int32)

    def table(rows: np.ndarray) -> WindowTable:
        valid, none = np.minimum(lengths[rows], task.input_length), np.zeros(len(rows))
        columns = (first[rows], np.full(len(rows), ALL_CHANNELS), valid, none, rows, label[rows])
        return WindowTable(*(np.asarray(column).astype(np.int32) for column in columns))

    everything, tests = np.arange(train.n_cases), np.arange(train.n_cases, len(lengths))
    held = _held_back(label[everything]) if protocol == "strict" else np.zeros(0, np.int64)
    if protocol == "strict" and not len(held):
        raise DataError(
            "no class has two training cases, so none can be held back for validation",
            where=train.source,
            fix="Use --set protocol=published",
        )
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
        task.model_copy(update={"channels": train.n_channels, "classes": len(present)}),
        scaler,
        1,
        tuple(_notices(train, test, task, scaler, longest)),
        meta={"classes": list(present)},
        labels={"label": label, "length": lengths, "training_cases": np.array(train.n_cases)},
        naive={"most frequent class": partial(_most_frequent, tables)},
    )


def _check(train: LabelledCases, test: LabelledCases, task: TaskConfig) -> tuple[str, ...]:
    """The classes that training has, in the header's order."""
    present = tuple(name for name in train.classes if name in set(train.labels))
    if len(present) < 2:
        raise DataError(
            f"every training case is of the class `{present[0]}`",
            where=train.source,
            fix="Training needs at least two classes",
        )
    unknown = next((name for name in test.labels if name not in present), None)
    if unknown is not None:
        raise DataError(
            f"the test part has cases of the class `{unknown}`, the training part has none",
            where=test.source,
            fix="Leave those cases out, or add some of that class to the training part",
        )
    for name, found, given in (
        ("channels", train.n_channels, task.channels),
        ("classes", len(present), task.classes),
    ):
        if given not in (None, found):
            raise DataError(
                f"has {found} {name}, task.{name} is {given}",
                where=train.source,
                fix=f"--set task.{name}={found}",
            )
    return present


def _notices(
    train: LabelledCases, test: LabelledCases, task: TaskConfig, scaler: Scaler, longest: int
) -> list[str]:
    notices = []
    if task.input_length > longest:
        notices.append(
            f"the longest training case has {longest} steps, so all are padded with zeros to {task.input_length}"
        )
    clipped = int((test.lengths > task.input_length).sum())
    if clipped:
        notices.append(
            f"{clipped} test case(s) are longer than {task.input_length} steps; what is beyond is not read (protocol §2)"
        )
    return notices + scaler.notices


def _fit_scaler(train: LabelledCases) -> Scaler:
    """Mean and standard deviation (ddof 1) per channel over all steps of the training cases (protocol §2)."""
    steps = np.concatenate(train.cases)
    names = tuple(f"channel {index}" for index in range(train.n_channels))
    mean, std, constant = moments(steps, ddof=1)
    bad = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(std) & (std > 0)))
    if len(bad):
        raise DataError(
            f"{names[bad[0]]} is spread too widely or too narrowly to standardise",
            where=train.source,
            fix="Change its units",
        )
    return Scaler(mean, std, names, tuple(name for name, flat in zip(names, constant, strict=True) if flat))


def _held_back(label: np.ndarray) -> np.ndarray:
    """Places of a fifth of each class's cases, at least one of every class that has two; the same in every run."""
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

"""Classification of multivariate cases of unequal length (protocol §2, §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import ClassificationSettings, DataConfig
from ofa_jax.data.archives import LabelledCases, read_ts
from ofa_jax.data.cases import names_table, read_case_table
from ofa_jax.data.catalog.load import load_cases
from ofa_jax.data.missing import count_filled, filled_notices
from ofa_jax.data.splits import CHANNEL_NAME, Split, fit_scaler
from ofa_jax.data.tables import unpacked_name
from ofa_jax.errors import ConfigError, DataError, listed
from ofa_jax.model.linear import init_linear_classifier, linear_classifier
from ofa_jax.model.networks import ClassifyNetwork
from ofa_jax.plots.tasks import class_probabilities
from ofa_jax.tasks.base import LinearBaseline, NewData, Sums, Task, TaskData, TaskKind, TrainedOn, with_sizes
from ofa_jax.tasks.losses import cross_entropy
from ofa_jax.tasks.metrics import classification_metrics, classification_sums
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.table import WindowSpec, WindowTable, lay_end_to_end

VALIDATION_SHARE = 0.2
"""Of each class's training cases."""

_OF_TABLES = ("columns", "exclude", "missing_words", "decimal", "comment", "sheet", "labels", "label_column")


def prepare(data: DataConfig, task: ClassificationSettings, protocol: Protocol = "strict") -> TaskData:
    """One window per case from its start, zero-padded at its end; only test cases longer than L are clipped.

    ``strict`` holds out a fifth of each class's training cases and chooses the epoch by their cross-entropy;
    ``published`` trains on all of them and chooses it by the accuracy on the test cases (protocol §5 row 5).

    Raises:
        DataError: The cases cannot be read; training cases of one class only or longer than L; a class that
            only the test part has; sizes that contradict the settings.
    """
    if names_table(data.source):
        return _prepare_table(data, task, protocol)
    given = [name for name in _OF_TABLES if getattr(data, name) != DataConfig.model_fields[name].default]
    if given:
        what = f"{data.source} has the files of an archive, which are not read by data.{given[0]}"
        raise ConfigError(what, where=f"data.{given[0]}", fix="Leave it out")
    train, test, _ = load_cases(data.source, missing=data.missing)
    return prepare_cases(train, test, task, protocol)


def _prepare_table(data: DataConfig, task: ClassificationSettings, protocol: Protocol) -> TaskData:
    """As :func:`prepare`; of each class the last cases test, and some of the others validate."""
    cases, channels = read_case_table(
        data.source, data.reading, labels=data.labels, label_column=data.label_column
    )
    train, validation, share = data.ratios
    codes = np.array([cases.classes.index(name) for name in cases.labels])
    later = [np.flatnonzero(codes == code) for code in range(len(cases.classes))]
    tests = np.sort(np.concatenate([own[len(own) - round(share * len(own)) :] for own in later]))
    if not len(tests):
        what = f"no class has enough cases for a test part of {share:g}"
        raise DataError(what, where=cases.source, fix="Give more cases, or set data.ratios")
    parts = [
        cases.take(np.setdiff1d(np.arange(cases.n_cases), tests)),
        replace(cases.take(tests), notices=()),
    ]
    held = validation / (train + validation)
    return prepare_cases(parts[0], parts[1], task, protocol, share=held, channels=channels)


def prepare_cases(
    train: LabelledCases,
    test: LabelledCases,
    task: ClassificationSettings,
    protocol: Protocol = "strict",
    *,
    share: float = VALIDATION_SHARE,
    seed: int = 0,
    channels: Sequence[str] | None = None,
) -> TaskData:
    """As :func:`prepare`, for cases in memory; of each class ``share`` is held out, drawn by ``seed``."""
    present = _present_classes(train, test)
    longest = int(train.lengths.max())
    length = longest if task.input_length is None else task.input_length
    sizes = {"input_length": length, "channels": train.n_channels, "classes": len(present)}
    task = with_sizes(task, train.source, **sizes)
    names = channels or [CHANNEL_NAME.format(index) for index in range(train.n_channels)]
    scaler = fit_scaler(np.concatenate(train.cases), names, ddof=1, source=train.source)  # ddof: protocol §2
    buffer, first = lay_end_to_end(
        [scaler.transform(case, part.source) for part in (train, test) for case in part.cases]
    )
    lengths = np.concatenate([train.lengths, test.lengths])
    if length < longest:
        what = f"the longest training case has {longest} steps, but task.input_length is {length}"
        raise DataError(what, where=train.source, fix=f"Set task.input_length to {longest}")
    label = np.array([present.index(name) for name in (*train.labels, *test.labels)], np.int32)

    def table(rows: np.ndarray) -> WindowTable:
        valid = np.minimum(lengths[rows], length)
        return WindowTable.of(first[rows], x_valid=valid, window_id=rows, label=label[rows])

    cases, tests = np.arange(train.n_cases), np.arange(train.n_cases, len(lengths))
    held = _held_out(label[cases], train.source, share, seed) if protocol == "strict" else tests
    tables: dict[Split, WindowTable] = {
        "train": table(np.setdiff1d(cases, held)),
        "validation": table(held),
        "test": table(tests),
    }
    made = Task(
        spec=WindowSpec(length, 0, univariate=False, align="start", labelled=True),
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
        task,
        scaler,
        notices=(
            *train.notices,
            *test.notices,
            *(text for part in (train, test) for text in filled_notices(part.observed, part.source)),
            *_notices(longest, test.lengths, length),
            *scaler.notices,
        ),
        meta={"classes": list(present), "filled": count_filled(train.observed) + count_filled(test.observed)},
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


def _notices(longest: int, tested: np.ndarray, length: int) -> list[str]:
    notices = []
    if length > longest:
        notices.append(f"the longest training case has {longest} steps; all are zero-padded to {length}")
    if clipped := int((tested > length).sum()):
        notices.append(f"{clipped} test case(s) are clipped to {length} steps (protocol §2)")
    return notices


def _held_out(label: np.ndarray, source: str, share: float = VALIDATION_SHARE, seed: int = 0) -> np.ndarray:
    """Indices of a share of each class's cases, at least one where a class has two; the same in every run."""
    held = []
    for index in range(int(label.max()) + 1):
        members = np.flatnonzero(label == index)
        if len(members) > 1:
            stream = np.random.Philox(key=np.array([seed, index], np.uint64))
            order = stream.random_raw(len(members)).argsort(kind="stable")
            held.append(members[order[: min(max(1, round(share * len(members))), len(members) - 1)]])
    if not held:
        what = "no class has two training cases, so none can be held out for validation"
        raise DataError(what, where=source, fix="Set protocol to published")
    return np.sort(np.concatenate(held))


def _most_frequent(tables: dict[Split, WindowTable], split: Split) -> dict[str, float]:
    winner = int(np.bincount(tables["train"].label).argmax())
    accuracy = float((tables[split].label == winner).mean())
    return {"accuracy": accuracy, "error": 1 - accuracy}


def apply(trained: TrainedOn, source: str | Path | pd.DataFrame) -> NewData:
    """Cases of a ``.ts`` file or a long table, to classify them; classes that are there are ignored.

    The result has a row per case: its name or its number from 0, the ``predicted`` class, the probability of
    every class.

    Raises:
        DataError: The cases cannot be read, or have other channels or more steps than the model reads.
    """
    names = trained.scaler.names if trained.scaler and names_table(trained.data.source) else None
    if isinstance(source, str | Path) and unpacked_name(Path(source)).endswith(".ts"):
        if names:
            what = f"the model reads the channels {listed(names)}, which a .ts file does not name"
            raise DataError(what, where=str(source), fix="Give a table with these columns")
        missing = trained.reading.get("missing", trained.data.missing)
        return apply_cases(trained, read_ts(source, missing=missing))
    reading = trained.data.reading | dict(trained.reading)
    column = trained.data.label_column
    found = read_case_table(source, reading, label_column=column, channels=names, unlabeled=True)
    return apply_cases(trained, found.cases)


def apply_cases(trained: TrainedOn, cases: LabelledCases) -> NewData:
    """As :func:`apply`, for cases in memory."""
    scaler = trained.scaler_of(cases.n_channels, cases.source)
    length, classes = trained.task.input_length, [str(name) for name in trained.meta["classes"]]
    if cases.lengths.max() > length:
        what = f"a case has {cases.lengths.max()} steps, the model reads {length}"
        raise DataError(what, where=cases.source, fix="Shorten the cases")
    buffer, first = lay_end_to_end([scaler.transform(case, cases.source) for case in cases.cases])

    def to_table(outputs: Sums) -> pd.DataFrame:
        probability = outputs["probability"].astype(np.float64)
        table = pd.DataFrame(probability, columns=[f"p({name})" for name in classes])
        table.insert(0, "predicted", [classes[index] for index in probability.argmax(axis=1)])
        table.insert(0, "case", np.arange(len(table)) if cases.names is None else list(cases.names))
        return table

    return NewData(
        notices=(*cases.notices, *filled_notices(cases.observed, cases.source)),
        spec=WindowSpec(length, 0, univariate=False, align="start", labelled=True),
        buffer=buffer,
        table=WindowTable.of(first, x_valid=cases.lengths),
        outputs=_probabilities,
        to_table=to_table,
        plot=lambda table, note: class_probabilities(table, note),
        summary=lambda table: f"{len(table)} cases of {len(classes)} classes",
    )


def _probabilities(logits_bk: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return {"probability": jax.nn.softmax(logits_bk, axis=1)}


def _softmax_regression(task):
    return linear_classifier, init_linear_classifier(task.input_length, task.channels, task.classes)


CLASSIFICATION = TaskKind(
    settings=ClassificationSettings,
    title="Classification",
    prepare=prepare,
    network=ClassifyNetwork,
    apply=apply,
    baselines=(LinearBaseline("linear", "softmax regression", _softmax_regression),),
)

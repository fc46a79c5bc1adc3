"""Anomaly detection by reconstruction: what the network cannot give back is unusual (protocol §2, §3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from ofa_jax.config import DataConfig, Protocol, TaskConfig
from ofa_jax.data.archives import LabelledStream
from ofa_jax.data.catalog import load_streams
from ofa_jax.data.splits import Split, fit_scaler
from ofa_jax.data.windows import ALL_CHANNELS, WindowSpec, WindowTable
from ofa_jax.errors import DataError
from ofa_jax.tasks.base import Score, Sums, Task, TaskData
from ofa_jax.tasks.detection import detection_metrics, threshold_at
from ofa_jax.tasks.losses import reconstruction_error
from ofa_jax.tasks.metrics import reconstruction_metrics, reconstruction_sums

VALIDATION_SHARE = 0.2
"""Of the training stream, at its end (the share that the published SMD code takes, protocol §5 row 5)."""

_SMD = "smd"


@dataclass(frozen=True, eq=False)
class Stretch:
    """Rows of the buffer that windows lie in, and how their steps are scored.

    Attributes:
        table: Windows of L steps; ``y_valid`` says how many of a window's last steps are scored, so that none is scored twice.
        rows: ``[steps]``: the stream's row of every scored step, in the order of the scores.
    """

    table: WindowTable
    rows: np.ndarray

    def scores(self, sums: Sums) -> np.ndarray:
        """The score of every scored step, ``[steps]``."""
        errors = sums["step_error"]
        steps = np.arange(errors.shape[1])
        return errors[steps >= errors.shape[1] - self.table.y_valid[:, None]].astype(np.float64)


def prepare_anomaly(data: DataConfig, task: TaskConfig, *, protocol: Protocol = "strict", batch_size: int = 1) -> TaskData:
    """Windows of the training stream, and of both streams for the scores.

    ``strict``: the last 20 % of the training stream validate; every test step is scored once; no window crosses from one recording
    into the next; the threshold is the percentile of the training stream's scores alone. ``published``: validation on the test stream
    (SMD: on the last 20 % of what is trained on), overlapping windows across recordings whose steps all count, a threshold that sees
    the test scores (protocol §5 rows 5 and 9).

    Raises:
        DataError: The streams cannot be read, are too short for a window, or their labels are all the same.
    """
    streams, _ = load_streams(data.source, only=data.parts)
    stream = _joined(streams)
    if task.channels not in (None, stream.n_channels):
        raise DataError(f"has {stream.n_channels} channels, task.channels is {task.channels}", where=stream.source)
    if stream.test_label.all() or not stream.test_label.any():
        kind = "anomalous" if stream.test_label.all() else "normal"
        raise DataError(f"every test step is labelled {kind}, so nothing can be detected", where=stream.source, fix="Check the labels")
    names = tuple(f"channel {index}" for index in range(stream.n_channels))
    scaler = fit_scaler(stream.train, names)
    buffer = scaler.transform(np.concatenate([stream.train, stream.test]))
    n_train, length = len(stream.train), task.input_length

    notices = [f"{len(scaler.constant)} channel(s) constant in training are scaled by 1"] if scaler.constant else []
    test_borders = n_train + stream.test_borders
    tables: dict[Split, WindowTable]
    if protocol == "strict":
        cut = int(n_train * (1 - VALIDATION_SHARE))
        fitted, held = _cut_borders(stream.train_borders, cut)
        tables = {"train": _every(fitted, length, task.step), "validation": _once(held, length).table}
        reference, scored = _once(stream.train_borders, length), _once(test_borders, length, whole=True, names=stream.segments)
        left_out = int(n_train - len(reference.rows))
        if left_out:
            notices.append(f"{left_out:,} training steps lie in recordings shorter than {length} steps and are not used")
    else:
        whole = np.array([0, n_train])
        step = task.step if data.source == _SMD else 1
        tables = {"train": _every(whole, length, task.step)}
        reference, scored = _all_steps(whole, length, task.step), _all_steps(n_train + np.array([0, len(stream.test)]), length, step)
        held = np.array([int(n_train * (1 - VALIDATION_SHARE)), n_train])
        tables["validation"] = _every(held, length, task.step) if data.source == _SMD else scored.table
    tables["test"] = scored.table
    for split, table in tables.items():
        if not table.size:
            raise DataError(f"the {split} part holds no window of {length} steps", where=stream.source, fix="Shorten task.input_length")
    label = stream.test_label[scored.rows - n_train]
    threshold = partial(_threshold, task.anomaly_ratio, include_test=protocol == "published")

    def report(score: Score, split: Split) -> dict[str, float]:
        sums = score(tables[split])
        if split != "test":
            return reconstruction_metrics(sums)
        found, known = scored.scores(sums), reference.scores(score(reference.table))
        return detection_metrics(found, label, threshold(known, found))

    made = Task(
        name=task.name,
        spec=WindowSpec(length, 0, univariate=False),
        buffer=buffer,
        tables=tables,
        loss=reconstruction_error,
        sums=reconstruction_sums,
        metrics=reconstruction_metrics,
        objective="mse",
        protocol=protocol,
        report=report,
    )
    return TaskData(
        made,
        task.model_copy(update={"channels": stream.n_channels}),
        scaler,
        1,
        tuple(notices),
        labels={"test_label": stream.test_label.astype(np.int8)},
        naive={"random scores": partial(_random_scores, len(reference.rows), label, threshold)},
    )


def _threshold(ratio: float, train: np.ndarray, test: np.ndarray, *, include_test: bool) -> float:
    return threshold_at(np.concatenate([train, test]) if include_test else train, ratio)


def _random_scores(
    n_train: int, label: np.ndarray, threshold: Callable[[np.ndarray, np.ndarray], float], split: Split
) -> dict[str, float] | None:
    """What scores that know nothing reach: the measure of what point adjustment gives away."""
    if split != "test":
        return None
    draw = np.random.default_rng(0)
    train, test = draw.random(n_train), draw.random(len(label))
    return detection_metrics(test, label, threshold(train, test))


def _joined(streams: tuple[LabelledStream, ...]) -> LabelledStream:
    """Several machines' streams end to end, as the published sets treat them."""
    if len(streams) == 1:
        return streams[0]

    def borders(parts: list[np.ndarray]) -> np.ndarray:
        offsets = np.concatenate([[0], np.cumsum([part[-1] for part in parts])])
        return np.concatenate([[0], *(part[1:] + offset for part, offset in zip(parts, offsets, strict=False))])

    return LabelledStream(
        train=np.concatenate([stream.train for stream in streams]),
        test=np.concatenate([stream.test for stream in streams]),
        test_label=np.concatenate([stream.test_label for stream in streams]),
        segments=tuple(f"{number}/{name}" for number, stream in enumerate(streams) for name in stream.segments),
        train_borders=borders([stream.train_borders for stream in streams]),
        test_borders=borders([stream.test_borders for stream in streams]),
        source=f"{streams[0].source} and {len(streams) - 1} other(s)",
    )


def _cut_borders(borders: np.ndarray, cut: int) -> tuple[np.ndarray, np.ndarray]:
    """Borders before and after a row."""
    return np.unique(np.append(borders[borders < cut], cut)), np.unique(np.append(borders[borders > cut], cut))


def _every(borders: np.ndarray, length: int, step: int) -> WindowTable:
    """A window every ``step`` rows of each recording."""
    starts = [np.arange(begin, end - length + 1, step) for begin, end in pairwise(borders)]
    return _table(np.concatenate(starts), length)


def _once(borders: np.ndarray, length: int, *, whole: bool = False, names: tuple[str, ...] = ()) -> Stretch:
    """Windows side by side, and one at each recording's end for the rest, of which only the rest is scored."""
    firsts, fresh = [], []
    for index, (begin, end) in enumerate(pairwise(borders)):
        if end - begin < length:
            if whole:
                raise DataError(
                    f"the test recording `{names[index]}` has {end - begin} steps, a window needs {length}",
                    fix="Shorten task.input_length, or leave that recording out",
                )
            continue
        starts = np.arange(begin, end - length + 1, length)
        firsts.append(starts)
        fresh.append(np.full(len(starts), length))
        rest = (end - begin) % length
        if rest:
            firsts.append(np.array([end - length]))
            fresh.append(np.array([rest]))
    first = np.concatenate(firsts) if firsts else np.zeros(0, np.int64)
    table = _table(first, length)._replace(y_valid=np.concatenate(fresh).astype(np.int32) if fresh else np.zeros(0, np.int32))
    steps = np.arange(length)
    rows = (table.first[:, None] + steps)[steps >= length - table.y_valid[:, None]]
    return Stretch(table, rows)


def _all_steps(borders: np.ndarray, length: int, step: int) -> Stretch:
    """Overlapping windows of which every step counts, as often as it is covered."""
    table = _every(borders, length, step)
    return Stretch(table, (table.first[:, None] + np.arange(length)).reshape(-1))


def _table(first: np.ndarray, length: int) -> WindowTable:
    count = len(first)
    filled = partial(np.full, count, dtype=np.int32)
    return WindowTable(
        first.astype(np.int32), filled(ALL_CHANNELS), filled(length), filled(length), np.arange(count, dtype=np.int32), filled(-1)
    )

"""Anomaly detection by reconstruction: what the network cannot give back is unusual (protocol §2, §3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import numpy as np

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import DataConfig, TaskConfig
from ofa_jax.data.archives import LabelledStream
from ofa_jax.data.catalog.load import CATALOG, load_streams
from ofa_jax.data.splits import Split, fit_scaler
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.tasks.base import Score, Sums, Task, TaskData
from ofa_jax.tasks.detection import detection_metrics, threshold_at
from ofa_jax.tasks.losses import reconstruction_error
from ofa_jax.tasks.metrics import reconstruction_metrics, reconstruction_sums
from ofa_jax.windows.table import ALL_CHANNELS, WindowSpec, WindowTable

VALIDATION_SHARE = 0.2
"""Of the training stream, at its end (the share that the published SMD code takes, protocol §5 row 5)."""

_SMD = "smd"


@dataclass(frozen=True, eq=False)
class Stretch:
    """Rows of the buffer that windows lie in, and how their steps are scored.

    Attributes:
        table: Windows of L steps.
        scored: ``[windows]``: how many of a window's last steps are scored; the others are scored in the window before.
        length: L.
    """

    table: WindowTable
    scored: np.ndarray
    length: int

    @cached_property
    def rows(self) -> np.ndarray:
        """``[steps]``: the buffer's row of every scored step, in the order of the scores."""
        return (self.table.first[:, None] + np.arange(self.length))[self._counts]

    @property
    def _counts(self) -> np.ndarray:
        """``[windows, L]``: which steps are scored."""
        return np.arange(self.length) >= self.length - self.scored[:, None]

    def scores(self, sums: Sums, source: str) -> np.ndarray:
        """The score of every scored step, ``[steps]`` float64.

        Raises:
            DataError: A score is not a finite number.
        """
        found = sums["step_error"][self._counts].astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(found))
        if len(wrong):
            raise DataError(
                f"the scores of {len(wrong):,} step(s) are not finite, the first is {found[wrong[0]]}",
                where=source,
                fix="Look for values in the streams that are far beyond all others",
            )
        return found


def prepare_anomaly(
    data: DataConfig, task: TaskConfig, *, protocol: Protocol = "strict", batch_size: int = 1
) -> TaskData:
    """Windows of the training stream, and of both streams for the scores.

    ``strict``: the last 20 % of the training stream validate; every test step is scored once; no window crosses from one recording
    into the next; the threshold is the percentile of the training stream's scores alone. ``published``: validation on the test stream
    (SMD: on the last 20 % of what is trained on), overlapping windows across recordings whose steps all count, a threshold that sees
    the test scores (protocol §5 rows 5 and 9).

    Raises:
        ConfigError: ``data.parts`` is empty, names a part twice, or is given for a file of one's own.
        DataError: The streams cannot be read, are too short for a window, or their labels are all the same.
    """
    stream = _joined(_read(data))
    if task.channels not in (None, stream.n_channels):
        raise DataError(
            f"has {stream.n_channels} channels, task.channels is {task.channels}",
            where=stream.source,
            fix=f"--set task.channels={stream.n_channels}",
        )
    names = tuple(f"channel {index}" for index in range(stream.n_channels))
    scaler = fit_scaler(stream.train, names)
    buffer = scaler.transform(np.concatenate([stream.train, stream.test]))
    n_train, length = len(stream.train), task.input_length

    notices = (
        [f"{len(scaler.constant)} channel(s) constant in training are scaled by 1"] if scaler.constant else []
    )
    begins = np.zeros(0, np.int64)
    tables: dict[Split, WindowTable]
    if protocol == "strict":
        cut = int(n_train * (1 - VALIDATION_SHARE))
        fitted, held = _cut_borders(stream.train_borders, cut)
        tables = {"train": _every(fitted, length, task.step), "validation": _once(held, length).table}
        _check_test_lengths(stream, length)
        reference, scored = _once(stream.train_borders, length), _once(n_train + stream.test_borders, length)
        begins = stream.test_borders[stream.test_borders < len(stream.test)]
        left_out = sum(int(rows[rows < length].sum()) for rows in map(np.diff, (fitted, held)))
        if left_out:
            notices.append(
                f"{left_out:,} training steps lie in recordings shorter than {length} steps (or in a short rest of the one in which "
                "validation begins): they neither train nor validate"
            )
    else:
        whole = np.array([0, n_train])
        step = task.step if data.source == _SMD else 1
        tables = {"train": _every(whole, length, task.step)}
        reference, scored = (
            _all_steps(whole, length, task.step),
            _all_steps(n_train + np.array([0, len(stream.test)]), length, step),
        )
        held = np.array([int(n_train * (1 - VALIDATION_SHARE)), n_train])
        tables["validation"] = _every(held, length, task.step) if data.source == _SMD else scored.table
        left_out = (len(stream.test) - length) % step
        if left_out:
            notices.append(
                f"the last {left_out:,} test steps fill no window and are not scored, as published"
            )
    tables["test"] = scored.table
    for split, table in tables.items():
        if not table.size:
            raise DataError(
                f"the {split} part holds no window of {length} steps",
                where=stream.source,
                fix="Shorten task.input_length",
            )
    label = stream.test_label[scored.rows - n_train]
    if label.all() or not label.any():
        kind = "anomalous" if label.all() else "normal"
        raise DataError(
            f"every test step is labelled {kind}, so nothing can be detected",
            where=stream.source,
            fix="Check the labels",
        )
    threshold = partial(_threshold, task.anomaly_ratio, include_test=protocol == "published")

    def report(score: Score, split: Split) -> dict[str, float]:
        sums = score(tables[split])
        if split != "test":
            return reconstruction_metrics(sums)
        found, known = (
            scored.scores(sums, stream.source),
            reference.scores(score(reference.table), stream.source),
        )
        return detection_metrics(found, label, threshold(known, found), begins)

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
        labels={
            "test_label": stream.test_label.astype(np.int8),
            "train_borders": stream.train_borders,
            "test_borders": stream.test_borders,
        },
        naive={
            "random scores": partial(_random_scores, int(reference.scored.sum()), label, threshold, begins)
        },
    )


def _threshold(ratio: float, train: np.ndarray, test: np.ndarray, *, include_test: bool) -> float:
    return threshold_at(np.concatenate([train, test]) if include_test else train, ratio)


def _random_scores(
    n_train: int,
    label: np.ndarray,
    threshold: Callable[[np.ndarray, np.ndarray], float],
    begins: np.ndarray,
    split: Split,
) -> dict[str, float] | None:
    """What scores that know nothing reach: the measure of what point adjustment gives away."""
    if split != "test":
        return None
    draw = np.random.default_rng(0)
    train, test = draw.random(n_train), draw.random(len(label))
    return detection_metrics(test, label, threshold(train, test), begins)


def _read(data: DataConfig) -> tuple[LabelledStream, ...]:
    parts = data.parts
    if parts is not None:
        if data.source not in CATALOG:
            raise ConfigError(
                f"{data.source} is a file of its own and has no parts to choose from",
                where="data.parts",
                fix="Leave data.parts out",
            )
        if not parts or len(set(parts)) < len(parts):
            raise ConfigError(
                "names a part twice" if parts else "names no part",
                where="data.parts",
                fix="Name each part once, or leave data.parts out",
            )
    return load_streams(data.source, only=parts)[0]


def _check_test_lengths(stream: LabelledStream, length: int) -> None:
    """Every test recording must hold a window; one without any test step has nothing to score."""
    for name, steps in zip(stream.segments, np.diff(stream.test_borders).tolist(), strict=True):
        if 0 < steps < length:
            raise DataError(
                f"the test recording `{name}` has {steps} steps, a window needs {length}",
                where=stream.source,
                fix="Shorten task.input_length, or leave that recording out",
            )


def _joined(streams: tuple[LabelledStream, ...]) -> LabelledStream:
    """Several machines' streams end to end, as the published sets treat them."""
    if len(streams) == 1:
        return streams[0]

    def borders(parts: list[np.ndarray]) -> np.ndarray:
        offsets = np.concatenate([[0], np.cumsum([part[-1] for part in parts])])
        return np.concatenate(
            [[0], *(part[1:] + offset for part, offset in zip(parts, offsets, strict=False))]
        )

    names = tuple(name for stream in streams for name in stream.segments)
    if len(set(names)) < len(names):
        names = tuple(
            f"{number}/{name}" for number, stream in enumerate(streams, start=1) for name in stream.segments
        )
    return LabelledStream(
        train=np.concatenate([stream.train for stream in streams]),
        test=np.concatenate([stream.test for stream in streams]),
        test_label=np.concatenate([stream.test_label for stream in streams]),
        segments=names,
        train_borders=borders([stream.train_borders for stream in streams]),
        test_borders=borders([stream.test_borders for stream in streams]),
        source=f"{streams[0].source} and {len(streams) - 1} other(s)",
    )


def _cut_borders(borders: np.ndarray, cut: int) -> tuple[np.ndarray, np.ndarray]:
    """Borders before and after a row."""
    return np.unique(np.append(borders[borders < cut], cut)), np.unique(
        np.append(borders[borders > cut], cut)
    )


def _every(borders: np.ndarray, length: int, step: int) -> WindowTable:
    """A window every ``step`` rows of each recording; none of those that are shorter than a window."""
    starts = [np.arange(begin, end - length + 1, step) for begin, end in pairwise(borders.tolist())]
    return _table(_concatenated(starts), length)


def _once(borders: np.ndarray, length: int) -> Stretch:
    """Windows side by side, and one at each recording's end for the rest, of which only the rest is scored.

    Recordings that are shorter than a window have none.
    """
    firsts, scored = [], []
    for begin, end in pairwise(borders.tolist()):
        starts = np.arange(begin, end - length + 1, length)
        firsts.append(starts)
        scored.append(np.full(len(starts), length))
        rest = (end - begin) % length
        if len(starts) and rest:
            firsts.append(np.array([end - length]))
            scored.append(np.array([rest]))
    return Stretch(_table(_concatenated(firsts), length), _concatenated(scored), length)


def _all_steps(borders: np.ndarray, length: int, step: int) -> Stretch:
    """Overlapping windows of which every step counts, as often as it is covered."""
    table = _every(borders, length, step)
    return Stretch(table, np.full(table.size, length), length)


def _concatenated(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _table(first: np.ndarray, length: int) -> WindowTable:
    count = len(first)
    filled = partial(np.full, count, dtype=np.int32)
    return WindowTable(
        first.astype(np.int32),
        filled(ALL_CHANNELS),
        filled(length),
        filled(0),
        np.arange(count, dtype=np.int32),
        filled(-1),
    )

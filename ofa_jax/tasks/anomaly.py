"""Anomaly detection by reconstruction: what the network cannot reconstruct is unusual (protocol §2, §3)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import AnomalySettings, DataConfig
from ofa_jax.data.archives import LabelledStream
from ofa_jax.data.cases import names_table
from ofa_jax.data.frames import Frame, read_frame
from ofa_jax.data.missing import count_filled, filled_notices
from ofa_jax.data.splits import Split, fit_scaler
from ofa_jax.errors import DataError, TooShort
from ofa_jax.model.linear import dlinear, init_dlinear
from ofa_jax.model.networks import ReconstructNetwork
from ofa_jax.plots.tasks import anomaly_scores
from ofa_jax.tasks.base import (
    LinearBaseline,
    NewData,
    Outputs,
    Score,
    Sums,
    Task,
    TaskData,
    TaskKind,
    TrainedOn,
    with_sizes,
)
from ofa_jax.tasks.detection import detection_metrics
from ofa_jax.tasks.forecast import check_rows, read_new, time_index
from ofa_jax.tasks.losses import reconstruction_error
from ofa_jax.tasks.metrics import observed_sums, reconstruction_metrics, reconstruction_sums
from ofa_jax.tasks.naive import zeros
from ofa_jax.tasks.streams import read_recording
from ofa_jax.windows.cover import ScoredWindows, each_step_once, every_step
from ofa_jax.windows.table import WindowSpec, WindowTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = 3
"""Series in a figure of new data, above their scores."""

Layout = tuple[dict[Split, WindowTable], ScoredWindows, ScoredWindows, np.ndarray, list[str]]
"""Windows by part, those of the reference and of the test scores, beginnings of recordings, and notices."""


def prepare(data: DataConfig, task: AnomalySettings, protocol: Protocol = "strict") -> TaskData:
    """Windows of the training stream, and of both streams for the scores.

    A table's first rows train and validate, its last ones test, by ``data.ratios``; it needs no labels. Of a
    table, missing values that were filled are hidden from the network and not scored.

    ``strict``: the last 20 % of the training stream validate; every test step is scored once; no window
    spans two recordings; the threshold is a percentile of training scores alone. ``published``: validation on
    the test stream (SMD: on the last 20 % of what is trained on), overlapping windows across recordings whose
    steps all count, a threshold that sees the test scores (protocol §5 rows 5 and 9).

    Raises:
        ConfigError: ``data.parts`` is empty, names a part twice, or is given for a file outside the catalog.
        DataError: The streams cannot be read, are too short for a window, or their labels are all the same.
    """
    read = read_recording(data)
    stream, frame, observed = read.stream, read.frame, read.observed
    source, length, published = stream.source, task.input_length, protocol == "published"
    task = with_sizes(task, source, channels=stream.n_channels)
    scaler = fit_scaler(stream.train, read.names, source=source, later=None if frame is None else stream.test)
    layout = partial(_published, smd=data.source == "smd") if published else _strict
    tables, reference, scored, begins, notices = layout(stream, read.cut, length, task.step)
    label = stream.test_label[scored.rows - len(stream.train)]
    seen = None if observed is None else observed[scored.rows].any(axis=1)
    counted = label if seen is None else label[seen]
    _check_observed(observed, tables, source)
    if read.labelled and (counted.all() or not counted.any()):
        kind = "anomalous" if counted.all() else "normal"
        what = f"every test step is labeled {kind}, so nothing can be detected"
        raise DataError(what, where=source, fix="Check the labels")

    def threshold(train: np.ndarray, test: np.ndarray) -> float:
        """The value that ``anomaly_ratio`` percent of the scores exceed (protocol §3)."""
        known = np.concatenate([train, test]) if published else train
        return float(np.nanpercentile(known, 100 - task.anomaly_ratio))

    def both_scores(score: Score) -> tuple[np.ndarray, np.ndarray]:
        known = step_scores(reference, score(reference.table), source)
        return known, step_scores(scored, score(tables["test"]), source)

    def report(score: Score, split: Split) -> dict[str, float]:
        if split != "test" or not read.labelled:
            return reconstruction_metrics(score(tables[split]))
        known, found = both_scores(score)
        return detection_metrics(found, label, threshold(known, found), begins, seen)

    def random_scores(split: Split) -> dict[str, float] | None:
        """What scores that know nothing reach: the measure of what point adjustment gives away."""
        if split != "test" or not read.labelled:
            return None
        draw = np.random.default_rng(0)
        known, found = draw.random(int(reference.scored.sum())), draw.random(len(label))
        return detection_metrics(found, label, threshold(known, found), begins, seen)

    made = Task(
        spec=WindowSpec(length, 0, univariate=False, hide_filled=observed is not None),
        observed=observed,
        buffer=np.concatenate(
            [
                scaler.transform(getattr(stream, part), f"{stream.source}, {part}")
                for part in ("train", "test")
            ]
        ),
        tables=tables,
        loss=reconstruction_error,
        sums=_sums_of(observed),
        metrics=reconstruction_metrics,
        objective="mse",
        protocol=protocol,
        report=report,
    )
    borders = {"train_borders": stream.train_borders, "test_borders": stream.test_borders}
    labels = {"test_label": stream.test_label.astype(np.int8)} if read.labelled else {}
    return TaskData(
        made,
        task,
        scaler,
        notices=(*read.notices, *scaler.notices, *notices),
        timestamps=None if frame is None or frame.timestamps is None else frame.local_times(),
        meta={} if frame is None else {"frequency": frame.frequency, "filled": count_filled(observed)},
        labels=labels | borders,
        untrained={"distance from the mean": zeros},
        naive={"random scores": random_scores},
        calibrate=lambda score: {"threshold": threshold(*both_scores(score))},
    )


def _check_observed(observed: np.ndarray | None, tables: Mapping[Split, WindowTable], source: str) -> None:
    """Refuse a part without any value.

    Raises:
        DataError: There is one.
    """
    if observed is None:
        return
    for split, table in tables.items():
        if not observed[table.first.min() : (table.first + table.x_valid).max()].any():
            what = f"every value of the {split} part is missing"
            raise DataError(what, where=source, fix="Give rows with values there, or set data.ratios")


def _sums_of(observed: np.ndarray | None) -> Outputs:
    return reconstruction_sums if observed is None else observed_sums


def step_scores(windows: ScoredWindows, sums: Sums, source: str) -> np.ndarray:
    """The score of every step that counts, ``[steps]`` float64; NaN where all values are missing.

    Raises:
        DataError: Another score is not finite.
    """
    found = windows.steps(sums["step_error"]).astype(np.float64)
    wrong = found[~np.isfinite(found)]
    if len(wrong):
        what = f"the scores of {len(wrong):,} step(s) are not finite, the first is {wrong[0]}"
        raise DataError(what, where=source, fix="Look for extreme values in the streams")
    return np.where(windows.steps(sums["seen"]), found, np.nan) if "seen" in sums else found


def _strict(stream: LabelledStream, cut: int, length: int, step: int) -> Layout:
    n_train, rows = len(stream.train), stream.train_borders
    fitted, held = np.append(rows[rows < cut], cut), np.append(cut, rows[rows > cut])
    for name, steps in zip(stream.segments, np.diff(stream.test_borders).tolist(), strict=True):
        if 0 < steps < length:  # a recording without any test step has nothing to score
            what = f"the test recording `{name}` has {steps} steps, a window needs {length}"
            fix, sizes = f"{_shorten(steps)}, or leave it out", {"input_length": steps}
            raise TooShort(what, where=stream.source, fix=fix, sizes=sizes)
    _check_length(stream.source, length, train=np.diff(fitted), validation=np.diff(held))
    scored = each_step_once(n_train + stream.test_borders, length)
    tables: dict[Split, WindowTable] = {
        "train": every_step(fitted, length, step).table,
        "validation": each_step_once(held, length).table,
        "test": scored.table,
    }
    recordings = np.concatenate([np.diff(fitted), np.diff(held)])
    unused = int(recordings[recordings < length].sum())
    notice = f"{unused:,} training steps are in recordings shorter than {length} steps and not used"
    begins = stream.test_borders[stream.test_borders < len(stream.test)]
    return tables, each_step_once(rows, length), scored, begins, [notice] if unused else []


def _check_length(source: str, length: int, **recordings: np.ndarray) -> None:
    """Refuse parts without a recording of ``length`` steps."""
    longest = {split: int(steps.max(initial=0)) for split, steps in recordings.items()}
    for split, steps in longest.items():
        if steps < length:
            what, shortest = f"the {split} part has no window of {length} steps", min(longest.values())
            fitting = min(shortest, (longest["train"] + 1) // 2)  # more than one window to train on
            sizes = {"input_length": fitting} if fitting else {}
            raise TooShort(what, where=source, fix=_shorten(shortest), sizes=sizes)


def _shorten(steps: int) -> str:
    if not steps:
        return "Give longer recordings"
    return f"Set task.input_length to at most {steps} and network.segment to a divisor of it"


def _published(stream: LabelledStream, cut: int, length: int, step: int, *, smd: bool) -> Layout:
    n_train, n_test, test_step = len(stream.train), len(stream.test), step if smd else 1
    parts = {"train": n_train, **({"validation": n_train - cut} if smd else {}), "test": n_test}
    _check_length(stream.source, length, **{name: np.array([steps]) for name, steps in parts.items()})
    reference = every_step(np.array([0, n_train]), length, step)
    scored = every_step(np.array([n_train, n_train + n_test]), length, test_step)
    held = every_step(np.array([cut, n_train]), length, step)
    tables: dict[Split, WindowTable] = {
        "train": reference.table,
        "validation": held.table if smd else scored.table,
        "test": scored.table,
    }
    unused = (n_test - length) % test_step
    notice = f"the last {unused:,} test steps fill no window and are not scored, as published"
    return tables, reference, scored, np.zeros(0, int), [notice] if unused else []


def apply(trained: TrainedOn, source: str | Path | pd.DataFrame) -> NewData:
    """A score for every row of a table of channels; labels are not needed.

    The table has a row per input row: its timestamp or number, ``score`` (mean squared error of what is
    observed; NaN where nothing is), and whether that exceeds the threshold of training (``anomaly``).

    Raises:
        DataError: The rows cannot be read, are too few, or have another number of channels than the model
            reads; the bundle has no threshold.
    """
    frame = _read_channels(trained, source)
    length, threshold = trained.task.input_length, trained.meta.get("threshold")
    scaler = trained.scaler_of(frame.n_channels, frame.source)
    if threshold is None:
        what = "the bundle has no threshold; it was made by an older version"
        raise DataError(what, where=frame.source, fix="Train the run again")
    if (reads := getattr(trained.task, "channels", None)) not in (None, frame.n_channels):
        what = f"has {frame.n_channels} channels, the network reads {reads}"
        fix = "If the bundle is in a saved estimator's folder, load that by its class"
        raise DataError(what, where=frame.source, fix=fix)
    check_rows(frame, length)
    windows = each_step_once(np.array([0, frame.n_rows]), length)

    def to_table(outputs: Sums) -> pd.DataFrame:
        score = step_scores(windows, outputs, frame.source)
        index = time_index(frame)
        return pd.DataFrame({index.name: index, "score": score, "anomaly": score > threshold})

    buffer = scaler.transform(frame.values, frame.source)

    def plot(table: pd.DataFrame, note: str) -> Figure:
        """The series that are farthest from their mean in training where the scores are high."""
        high = table["score"] >= min(threshold, table["score"].max())
        far = np.abs(buffer[high.to_numpy()]).mean(axis=0)
        chosen = np.sort(np.argsort(-far, kind="stable")[:DRAWN])
        some = f" ({len(chosen)} of {frame.n_channels} series)" if len(chosen) < frame.n_channels else ""
        values = frame.values if frame.observed is None else np.where(frame.observed, frame.values, np.nan)
        series = pd.DataFrame(values[:, chosen], columns=[frame.names[index] for index in chosen])
        title = f"{Path(frame.source).name}: steps above the threshold{some}"
        return anomaly_scores(table, threshold, series, title=title, note=note, label="original units")

    return NewData(
        notices=(*frame.notices, *filled_notices(frame.observed, frame.source)),
        spec=WindowSpec(length, 0, univariate=False, hide_filled=frame.observed is not None),
        buffer=buffer,
        observed=frame.observed,
        without=None if frame.observed is None else np.logical_not(frame.observed.any(axis=1)),
        table=windows.table,
        outputs=_sums_of(frame.observed),
        to_table=to_table,
        plot=plot,
        summary=lambda table: f"{int(table['anomaly'].sum()):,} of {len(table):,} rows above {threshold:.4g}",
    )


def _read_channels(trained: TrainedOn, source: str | Path | pd.DataFrame) -> Frame:
    """The channels of training, by name where they have names, otherwise in their order."""
    if names_table(trained.data.source):
        return read_new(trained, source)
    return read_frame(source, **trained.reading)


def _dlinear(task):
    return dlinear, init_dlinear(task.input_length, task.input_length)


# The weights have to grow from 1/L to about 1. Chosen on SMAP's validation part.
_TRAINING = {"learning_rate": 1e-2, "epochs": 20, "batch_size": 256, "cosine_epochs": 20}

ANOMALY = TaskKind(
    settings=AnomalySettings,
    title="Anomaly detection",
    prepare=prepare,
    network=ReconstructNetwork,
    apply=apply,
    baselines=(LinearBaseline("dlinear", "DLinear", _dlinear, _TRAINING),),
)

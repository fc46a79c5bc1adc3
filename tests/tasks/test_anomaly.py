"""Anomaly detection: which steps train, validate and are scored, under which threshold, and what is
refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ofa_jax.build import build_model
from ofa_jax.config.load import build_experiment
from ofa_jax.config.schema import Protocol
from ofa_jax.config.tasks import AnomalySettings, DataConfig
from ofa_jax.data.archives import LabelledStream, write_stream
from ofa_jax.errors import ConfigError, DataError, OfaError, TooShort
from ofa_jax.tasks import anomaly
from ofa_jax.tasks import streams as reading
from ofa_jax.tasks.base import TaskData
from ofa_jax.tasks.detection import detection_metrics
from ofa_jax.tasks.naive import zeros
from ofa_jax.train.evaluate import WindowPredictor

L = 10


def stream(
    train: Sequence[int] = (60,),
    test: Sequence[int] = (40,),
    *,
    anomalies: Sequence[int] = (7,),
    seed: int = 0,
) -> LabelledStream:
    """Two channels; recordings of so many training and test steps; ``anomalies`` are steps of the test
    stream."""
    draw = np.random.default_rng(seed)
    count = max(len(train), len(test))
    train, test = ([*lengths, *[0] * (count - len(lengths))] for lengths in (train, test))
    label = np.zeros(sum(test), bool)
    label[list(anomalies)] = True
    return LabelledStream(
        train=draw.normal([3, -50], [2, 10], (sum(train), 2)),
        test=draw.normal([3, -50], [2, 10], (sum(test), 2)),
        test_label=label,
        segments=tuple(f"part-{index}" for index in range(count)),
        train_borders=np.concatenate([[0], np.cumsum(train)]).astype(np.int64),
        test_borders=np.concatenate([[0], np.cumsum(test)]).astype(np.int64),
        source="memory",
    )


def prepared(
    *streams: LabelledStream, protocol: Protocol = "strict", source: str = "memory", **settings: Any
) -> TaskData:
    """The task on streams in memory; ``source="smd"`` makes them the machines of that set."""
    task = AnomalySettings(**{"name": "anomaly", "input_length": L, **settings})
    with mock.patch.object(reading, "load_streams", return_value=(streams, None)):
        return anomaly.prepare(DataConfig(source=source), task, protocol=protocol)


class Verdict:
    """What the final metrics of the test part are made of, where the error of every step is ``error(buffer
    row)``."""

    def __init__(self, data: TaskData, error=lambda rows: rows) -> None:
        def score(table):
            return {
                "step_error": np.asarray(
                    error(table.first[:, None] + np.arange(data.task.spec.input_length)), np.float32
                )
            }

        with mock.patch.object(anomaly, "detection_metrics", side_effect=detection_metrics) as called:
            self.metrics = data.task.final_metrics(score, "test")
        self.scores, self.label, self.threshold, self.begins = called.call_args.args[:4]


def windows_lie_within(table, borders) -> bool:
    place = np.searchsorted(borders, table.first, side="right") - 1
    return bool((table.first + L <= np.asarray(borders)[place + 1]).all())


recordings = st.lists(st.integers(L, 47), min_size=1, max_size=5)
steps = st.integers(1, 13)


@settings(deadline=None)
@given(recordings, recordings, steps)
@example([60], [L], 1)
@example([60], [L, L + 1, 2 * L - 1, 2 * L, 2 * L + 1], 1)
def test_every_test_step_is_scored_exactly_once(train, test, step):
    train = [*train, 60, 60]
    made = stream(train, test, anomalies=[0])
    verdict = Verdict(prepared(made, step=step))
    np.testing.assert_array_equal(verdict.scores, sum(train) + np.arange(sum(test)))
    np.testing.assert_array_equal(verdict.label, made.test_label)
    np.testing.assert_array_equal(verdict.begins, np.cumsum([0, *test[:-1]]))
    assert verdict.threshold == np.percentile(np.arange(sum(train)), 99)


@settings(deadline=None)
@given(st.lists(st.integers(1, 47), min_size=1, max_size=5), recordings, steps)
def test_no_window_crosses_a_recording_and_validation_is_not_trained_on(train, test, step):
    train = [60, *train, 60]
    made = stream(train, test, anomalies=[0])
    task = prepared(made, step=step).task
    total, cut = sum(train), int(sum(train) * 0.8)
    rows = {split: table.first[:, None] + np.arange(L) for split, table in task.tables.items()}
    assert rows["train"].max() < cut <= rows["validation"].min()
    assert rows["validation"].max() < total <= rows["test"].min()
    for split, borders in (
        ("train", made.train_borders),
        ("validation", made.train_borders),
        ("test", total + made.test_borders),
    ):
        assert windows_lie_within(task.tables[split], borders)

    pieces = [
        (begin, end)
        for begin, end in pairwise(np.union1d(made.train_borders, [cut]).tolist())
        if end - begin >= L
    ]
    np.testing.assert_array_equal(
        task.tables["train"].first,
        [first for begin, end in pieces if end <= cut for first in range(begin, end - L + 1, step)],
    )
    np.testing.assert_array_equal(
        np.unique(rows["validation"]),
        [row for begin, end in pieces if begin >= cut for row in range(begin, end)],
    )


def test_the_training_scores_leave_short_recordings_out_and_say_so():
    # 100 training steps: validation begins at 80, inside the last recording; the rest of 4 steps before it is
    # too short
    data = prepared(stream([69, 7, 24], [40]))
    verdict = Verdict(data)
    assert verdict.threshold == np.percentile([*range(69), *range(76, 100)], 99)
    assert data.notices == ("11 training steps are in recordings shorter than 10 steps and not used",)
    assert prepared(stream([80, 20])).notices == ()


def test_the_threshold_hangs_on_training_scores_alone():
    one, other = stream(seed=0), stream(seed=0)
    other.test[:] *= 100

    def threshold(made: LabelledStream, protocol: Protocol) -> float:
        data = prepared(made, protocol=protocol)
        return Verdict(data, lambda rows: np.square(data.task.buffer[rows]).mean(axis=2)).threshold

    assert threshold(one, "strict") == threshold(other, "strict")
    assert threshold(one, "published") < threshold(other, "published")


@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_a_spike_is_scored_where_it_is_labelled(protocol):
    made = stream([60], [23, 25], anomalies=[22, 23, 41])
    made.test[[22, 23, 41], 1] += 1e4
    data = prepared(made, protocol=protocol, anomaly_ratio=10)
    evaluator = WindowPredictor(zeros, data.task, data.task.sums, batch_size=4)
    with mock.patch.object(anomaly, "detection_metrics", side_effect=detection_metrics) as called:
        metrics = data.task.final_metrics(lambda table: evaluator(table, {}, {}), "test")
    scores, label, threshold, _ = called.call_args.args[:4]
    assert metrics["average_precision"] == metrics["recall"] == 1
    if protocol == "published":
        starts = np.arange(48 - L + 1)
        assert len(scores) == len(starts) * L
        np.testing.assert_array_equal(
            scores > 1000, made.test_label[(starts[:, None] + np.arange(L)).reshape(-1)]
        )
        return
    np.testing.assert_array_equal(np.flatnonzero(scores > 1000), [22, 23, 41])
    np.testing.assert_array_equal(label, made.test_label)
    mean, std = made.train.mean(axis=0), made.train.std(axis=0)
    wanted = np.square((made.test - mean) / std).mean(axis=1)
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)  # standardized and squared in float32
    assert threshold == pytest.approx(
        np.percentile(np.square((made.train - mean) / std).mean(axis=1), 90), rel=1e-5
    )


def test_what_is_found_at_the_end_of_one_recording_is_not_found_in_the_next():
    made = stream([60], [20, 20], anomalies=range(15, 25))
    strict, published = (
        Verdict(prepared(made, protocol=protocol, anomaly_ratio=10), lambda rows: rows == 60 + 15).metrics
        for protocol in ("strict", "published")
    )
    assert strict["adjusted_recall"] == 5 / 10
    assert strict["recall"] == 1 / 10
    assert published["adjusted_recall"] > 5 / 10


@pytest.mark.parametrize("ratio", [0.5, 1, 25])
def test_the_published_threshold_sees_every_score_of_every_window(ratio):
    data = prepared(
        stream([60, 41], [23, 30], anomalies=[3]), protocol="published", anomaly_ratio=ratio, step=7
    )
    train = np.concatenate([np.arange(first, first + L) for first in range(0, 101 - L + 1, 7)])
    test = np.concatenate([np.arange(first, first + L) for first in range(101, 154 - L + 1)])
    verdict = Verdict(data)
    np.testing.assert_array_equal(verdict.scores, test)
    np.testing.assert_array_equal(verdict.label, test == 104)
    assert verdict.threshold == np.percentile(np.concatenate([train, test]), 100 - ratio)
    np.testing.assert_array_equal(data.task.tables["train"].first, range(0, 101 - L + 1, 7))
    assert data.task.tables["validation"] is data.task.tables["test"]
    assert len(verdict.begins) == 0
    assert data.notices == ()


def test_published_smd_validates_on_what_it_trains_on_and_takes_steps_in_the_test_stream():
    machines = stream([60], [33]), stream([50], [28], seed=1)
    data = prepared(*machines, protocol="published", source="smd", step=5)
    tables = data.task.tables
    np.testing.assert_array_equal(tables["train"].first, range(0, 110 - L + 1, 5))
    np.testing.assert_array_equal(tables["validation"].first, range(88, 110 - L + 1, 5))
    np.testing.assert_array_equal(tables["test"].first, range(110, 171 - L + 1, 5))
    assert data.notices == ("the last 1 test steps fill no window and are not scored, as published",)
    other = prepared(*machines, protocol="published", source="memory", step=5)
    np.testing.assert_array_equal(other.task.tables["test"].first, range(110, 171 - L + 1))


def test_machines_are_laid_end_to_end_and_their_borders_kept():
    machines = [stream([60, 45], [23, 25]), stream([50], [28], seed=1), stream([31, 32], [11, 12], seed=2)]
    data = prepared(*machines, source="smd")
    train, test = [60, 45, 50, 31, 32], [23, 25, 28, 11, 12]
    scaled = np.concatenate(
        [part for name in ("train", "test") for part in [getattr(machine, name) for machine in machines]]
    )
    np.testing.assert_allclose(data.task.buffer, data.scaler.transform(scaled), rtol=0, atol=0)
    np.testing.assert_allclose(
        data.scaler.mean, np.concatenate([machine.train for machine in machines]).mean(axis=0), rtol=1e-12
    )
    assert windows_lie_within(data.task.tables["train"], np.cumsum([0, *train]))
    assert windows_lie_within(data.task.tables["test"], np.cumsum([sum(train), *test]))
    verdict = Verdict(data)
    np.testing.assert_array_equal(verdict.scores, sum(train) + np.arange(sum(test)))
    np.testing.assert_array_equal(verdict.begins, np.cumsum([0, *test[:-1]]))
    np.testing.assert_array_equal(np.flatnonzero(verdict.label), [7, 48 + 7, 76 + 7])


def test_recordings_of_one_name_on_several_machines_are_told_apart():
    with pytest.raises(
        DataError,
        match=r"memory and 1 other\(s\): the test recording `2/part-0` has 9 steps, a window needs 10",
    ):
        prepared(stream(), stream(test=[9]), source="smd")


def test_a_recording_without_test_steps_has_nothing_to_score():
    made = stream([60, 30, 30], [0, 25, 0], anomalies=[24])
    verdict = Verdict(prepared(made))
    np.testing.assert_array_equal(verdict.scores, 120 + np.arange(25))
    assert verdict.metrics["recall"] == 1  # scored by its row, the last step has the highest score


def test_a_channel_that_is_constant_in_training_is_scaled_by_one_and_said():
    made = stream()
    made.train[:, 1] = made.test[:, 1] = 4
    made.test[30, 1] = 6.5
    data = prepared(made)
    assert data.notices == ("constant in the training part, so scaled by 1: channel 1",)
    np.testing.assert_array_equal(np.unique(data.task.buffer[:, 1]), [0, 2.5])
    assert np.flatnonzero(data.task.buffer[:, 1]) == 60 + 30


def test_standardised_by_the_whole_training_stream():
    data = prepared(stream([60], [40]))
    np.testing.assert_allclose(data.task.buffer[:60].mean(axis=0), 0, atol=1e-6)  # float32
    np.testing.assert_allclose(data.task.buffer[:60].std(axis=0), 1, rtol=1e-5)
    assert data.task.buffer.dtype == np.float32
    assert data.settings.channels == 2


@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_only_the_test_part_is_judged_by_labels(protocol, monkeypatch):
    monkeypatch.setattr("ofa_jax.tasks.detection.range_pr_auc", lambda scores, label: None)  # as without aeon
    data = prepared(stream(), protocol=protocol)
    assert (data.task.protocol, data.task.objective) == (protocol, "mse")

    def score(table):
        return {"step_error": np.ones((table.size, L), np.float32)}

    for split in ("train", "validation"):
        assert data.task.final_metrics(score, split) == {"mse": 1.0}
    assert set(data.task.final_metrics(score, "test")) == {
        "average_precision",
        "precision",
        "recall",
        "f1",
        "adjusted_precision",
        "adjusted_recall",
        "adjusted_f1",
    }


@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_random_scores_show_what_point_adjustment_gives_away(protocol):
    made = stream([400], [400], anomalies=range(100, 300))
    data = prepared(made, protocol=protocol, anomaly_ratio=10)
    tell = data.naive["random scores"]
    found = tell("test")
    assert found == tell("test")
    assert tell("validation") is tell("train") is None
    assert found["adjusted_recall"] > 0.95
    assert found["recall"] < 0.15
    assert found["average_precision"] == pytest.approx(
        (200 if protocol == "strict" else 2000) / len(Verdict(data).scores), abs=0.06
    )


def test_the_fingerprint_tells_labels_and_borders_apart():
    made = stream([60, 40], [20, 20])
    moved = np.array([0, 21, 40])
    variants = [
        made,
        replace(made, test_label=np.roll(made.test_label, 1)),
        replace(made, train_borders=np.array([0, 61, 100])),
        replace(made, test_borders=moved),
        replace(made, test=made.test + 1),
    ]
    assert len({prepared(variant).fingerprint for variant in variants}) == len(variants)
    assert prepared(made).fingerprint == prepared(stream([60, 40], [20, 20]), step=3).fingerprint


def refused(kind: type[OfaError], message: str, *streams: LabelledStream, **options: Any) -> None:
    with pytest.raises(kind, match=message) as caught:
        prepared(*streams, **options)
    assert type(caught.value) is kind


@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_what_cannot_be_used_is_one_clear_error(protocol):
    options = {"protocol": protocol}
    every = range(40)
    refused(
        DataError,
        r"memory: every test step is labeled normal, so nothing can be detected\.",
        stream(anomalies=[]),
        **options,
    )
    refused(DataError, r"memory: every test step is labeled anomalous", stream(anomalies=every), **options)
    refused(
        DataError,
        r"has 2 channels, but task\.channels is 3\. Set task\.channels to 2",
        stream(),
        channels=3,
        **options,
    )
    refused(
        TooShort,
        r"the train part has no window of 10 steps\. Set task\.input_length to at most [29] and",
        stream([9]),
        **options,
    )
    refused(TooShort, r"the train part has no window of 10 steps", stream([1]), **options)
    huge = stream()
    huge.test[3, 1] = 1e300
    refused(
        DataError,
        r"memory, test: series `channel 1` has the value 1e\+300 in row 4, .* standard deviations",
        huge,
        **options,
    )


def test_what_only_strict_refuses():
    refused(
        TooShort,
        r"the test recording `part-1` has 9 steps, a window needs 10\. Set task\.input_length to at most 9",
        stream([60, 60], [11, 9]),
    )
    refused(TooShort, r"memory: the validation part has no window of 10 steps", stream([45]))
    prepared(stream([60, 60], [11, 9]), protocol="published")


def test_what_only_published_refuses():
    message = r"memory: the test part has no window of 10 steps"
    refused(TooShort, message, stream(test=[9]), protocol="published", source="smd")
    # the only anomalous step lies behind the last window
    message = r"every test step is labeled normal"
    refused(DataError, message, stream(test=[40], anomalies=[39]), protocol="published", source="smd", step=7)


def test_scores_that_are_not_finite_are_refused():
    data = prepared(stream())
    for value in (np.nan, np.inf):
        with pytest.raises(
            DataError,
            match=rf"memory: the scores of 2 step\(s\) are not finite, the first is {value}\. Look for",
        ):
            Verdict(data, lambda rows, value=value: np.where((rows == 70) | (rows == 99), value, rows))
        with pytest.raises(DataError, match=r"the scores of 1 step"):
            Verdict(data, lambda rows, value=value: np.where(rows == 7, value, rows))


@pytest.mark.parametrize("ratio", [0, 100, -1, 101])
def test_a_ratio_that_is_no_share_is_refused_with_its_path(ratio):
    content = {"data": {"source": "smap"}, "task": {"name": "anomaly", "anomaly_ratio": ratio}}
    with pytest.raises(
        ConfigError,
        match=rf"^config: task\.anomaly_ratio: input should be (greater|less) than \d+ \(found {ratio}\)\.$",
    ):
        build_experiment(content)


def test_parts_are_of_known_sets_alone(tmp_path):
    write_stream(tmp_path / "own.npz", stream())
    task = AnomalySettings(name="anomaly", input_length=L)

    def read(source: str, *parts: str) -> TaskData:
        return anomaly.prepare(DataConfig(source=source, parts=parts), task)

    own = str(tmp_path / "own.npz")
    assert anomaly.prepare(DataConfig(source=own), task).task.tables["test"].size == 4
    with pytest.raises(
        ConfigError,
        match=r"data\.parts: .*own\.npz is not in the catalog and has no parts to choose from\. Leave",
    ):
        read(own, "part-0")
    with pytest.raises(ConfigError, match=r"data\.parts: names no part"):
        read("smd")
    with pytest.raises(ConfigError, match=r"data\.parts: names a part twice"):
        read("smd", "machine-1-2", "machine-1-2")
    with pytest.raises(
        DataError, match=r"the data set `smd` has no file `machine-9-9`\. It has machine-1-1, "
    ):
        read("smd", "machine-9-9")


def test_labels_that_are_missing_are_one_clear_error(tmp_path):
    made = stream()
    np.savez(tmp_path / "own.npz", train=made.train, test=made.test)
    with pytest.raises(DataError, match=r"own\.npz: has the arrays test, train"):
        anomaly.prepare(
            DataConfig(source=str(tmp_path / "own.npz")), AnomalySettings(name="anomaly", input_length=L)
        )


def test_a_network_is_scored_from_the_file_on(tmp_path):
    made = stream([200], [60], anomalies=range(30, 34))
    made.test[30:34] += 200
    write_stream(tmp_path / "own.npz", made)
    experiment = build_experiment(
        {
            "data": {"source": str(tmp_path / "own.npz")},
            "task": {"name": "anomaly", "input_length": L, "channels": 2},
            "trunk": {
                "source": "random",
                "n_layer": 1,
                "random": {"n_embd": 16, "n_head": 2, "n_positions": 16},
            },
            "network": {"segment": 5},
        }
    )
    data = anomaly.prepare(experiment.data, experiment.task)
    model = build_model(experiment)
    evaluator = WindowPredictor(model.predict, data.task, data.task.sums, batch_size=32)
    metrics = data.task.final_metrics(lambda table: evaluator(table, model.frozen, model.trainable), "test")
    assert all(0 <= value <= 1 for value in metrics.values())
    assert (
        metrics["average_precision"] > 0.5
    )  # an untrained network does not give a jump of many standard deviations back


def smap(protocol: Protocol) -> TaskData:
    return anomaly.prepare(
        DataConfig(source="smap"), AnomalySettings(name="anomaly", input_length=100), protocol=protocol
    )


@pytest.mark.slow  # 400 MB
def test_smap_by_its_numbers(data_root: Path):
    data = smap("strict")
    assert data.task.buffer.shape == (135_183 + 427_617, 25)
    assert {split: table.size for split, table in data.task.tables.items()} == {
        "train": 103_790,
        "validation": 275,
        "test": 4_306,
    }
    verdict = Verdict(data, lambda rows: rows - 135_183)
    np.testing.assert_array_equal(verdict.scores, np.arange(427_617))
    assert int(verdict.label.sum()) == 54_696
    assert len(verdict.begins) == 53
    assert data.notices == ("constant in the training part, so scaled by 1: channel 16",)


@pytest.mark.slow  # 400 MB
def test_smap_as_published(data_root: Path):
    sizes = {split: table.size for split, table in smap("published").task.tables.items()}
    assert sizes == {"train": 135_183 - 99, "validation": 427_617 - 99, "test": 427_617 - 99}


def test_machines_of_smd(data_root: Path):
    task = AnomalySettings(name="anomaly", input_length=100, step=100)
    data = DataConfig(source="smd", parts=("machine-1-2", "machine-1-3"))
    strict = anomaly.prepare(data, task)
    assert strict.settings.channels == 38
    assert {split: table.size for split, table in strict.task.tables.items()} == {
        "train": 378,
        "validation": 95,
        "test": 475,
    }
    verdict = Verdict(strict)
    np.testing.assert_array_equal(verdict.begins, [0, 23_694])
    np.testing.assert_array_equal(verdict.scores - verdict.scores[0], np.arange(23_694 + 23_703))

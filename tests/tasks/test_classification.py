"""Classification: scaling, padding and clipping of cases, which of them validate, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.build import build_model
from ofa_jax.config.load import build_experiment
from ofa_jax.config.schema import Experiment, Protocol
from ofa_jax.config.tasks import ClassificationSettings, DataConfig
from ofa_jax.data.archives import LabelledCases
from ofa_jax.errors import DataError
from ofa_jax.tasks import classification
from ofa_jax.tasks.base import Task, TaskData
from ofa_jax.train.evaluate import evaluate
from ofa_jax.train.fit import fit
from ofa_jax.train.progress import SilentReporter
from ofa_jax.windows.batch import Batch, gather
from ofa_jax.windows.table import WindowTable

CLASSES = ("a", "b", "c", "d")


def cases(
    labels: str, lengths: Sequence[int] | None = None, *, seed: int = 0, classes: Sequence[str] = CLASSES
) -> LabelledCases:
    """A case of two channels for each letter; lengths go from 3 to 7 unless they are given."""
    draw = np.random.default_rng(seed)
    lengths = lengths or [3 + index % 5 for index in range(len(labels))]
    made = tuple(draw.normal([2, -40], [3, 7], (length, 2)) for length in lengths)
    return LabelledCases(made, tuple(labels), tuple(classes), None, f"memory-{seed}")


def prepared(
    train: LabelledCases, test: LabelledCases, *, protocol: Protocol = "strict", **settings: Any
) -> TaskData:
    task = ClassificationSettings(**{"name": "classification", "input_length": 7, **settings})
    with mock.patch.object(classification, "load_cases", return_value=(train, test, None)):
        return classification.prepare(DataConfig(source="memory"), task, protocol=protocol)


def windows(task: Task) -> Batch:
    """The windows of all parts, one part after the other."""
    table = WindowTable(*map(np.concatenate, zip(*task.tables.values(), strict=True)))
    read = jax.jit(gather, static_argnames="spec")(task.buffer, table, np.arange(table.size), task.spec)
    return Batch(*map(np.asarray, read))


def train_and_test() -> tuple[LabelledCases, LabelledCases]:
    return cases("aabbaabbcc"), cases("abcabc", [1, 7, 8, 30, 2, 7], seed=1)


def test_without_an_input_length_it_is_the_longest_training_case():
    train, test = train_and_test()
    data = prepared(train, test, input_length=None)
    assert (
        data.settings.input_length == data.task.spec.input_length == train.lengths.max() < test.lengths.max()
    )


@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_cases_are_standardised_then_padded_with_zeros_and_clipped_in_the_test_part(protocol):
    train, test = train_and_test()
    data = prepared(train, test, protocol=protocol)
    steps = np.concatenate(train.cases)
    mean, std = (
        steps.mean(axis=0),
        np.sqrt(np.square(steps - steps.mean(axis=0)).sum(axis=0) / (len(steps) - 1)),
    )
    np.testing.assert_allclose(data.scaler.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(data.scaler.std, std, rtol=1e-12)
    everything = (*train.cases, *test.cases)
    batch = windows(data.task)
    for x, mask, name in zip(batch.x, batch.x_mask, batch.window_id, strict=True):
        case = everything[name][:7]
        np.testing.assert_allclose(x[: len(case)], (case - mean) / std, rtol=1e-5, atol=1e-6)  # float32
        np.testing.assert_array_equal(x[len(case) :], 0)
        np.testing.assert_array_equal(mask, np.arange(7)[:, None] < np.array([len(case)] * 2))
    assert [note for note in data.notices if "clipped" in note] == [
        "2 test case(s) are clipped to 7 steps (protocol §2)"
    ]


def test_every_case_stands_in_one_part_with_its_label():
    train, test = train_and_test()
    task = prepared(train, test).task
    ids = {split: set(table.window_id.tolist()) for split, table in task.tables.items()}
    assert ids["train"] | ids["validation"] == set(range(10))
    assert not ids["train"] & ids["validation"]
    assert sorted(ids["test"]) == list(range(10, 16))
    batch = windows(task)
    np.testing.assert_array_equal(
        batch.y, ["abc".index((*train.labels, *test.labels)[name]) for name in batch.window_id]
    )


class_sizes = st.lists(st.integers(1, 23), min_size=2, max_size=4).filter(lambda sizes: max(sizes) > 1)


@settings(deadline=None)
@given(class_sizes, st.randoms(use_true_random=False))
def test_a_fifth_of_each_class_validates(sizes, shuffle):
    letters = [name for name, size in zip(CLASSES, sizes, strict=False) for _ in range(size)]
    shuffle.shuffle(letters)
    tables = prepared(cases("".join(letters)), cases("a", seed=1)).task.tables
    held = Counter(tables["validation"].label.tolist())
    assert held == Counter({index: max(1, round(size / 5)) for index, size in enumerate(sizes) if size > 1})
    trained = Counter(tables["train"].label.tolist())
    assert {index: trained[index] + held[index] for index in range(len(sizes))} == dict(enumerate(sizes))
    assert min(trained.values()) >= 1
    again = prepared(cases("".join(letters)), cases("a", seed=1)).task.tables
    np.testing.assert_array_equal(tables["validation"].window_id, again["validation"].window_id)


def test_which_cases_validate_is_fixed():
    """Stored runs and published tables depend on it: a change here is a change of the protocol."""
    tables = prepared(cases("a" * 20 + "b" * 10), cases("a", seed=1)).task.tables
    assert tables["validation"].window_id.tolist() == [0, 2, 11, 17, 23, 25]


def test_published_trains_on_all_cases_and_chooses_by_accuracy_on_the_test_cases():
    train, test = train_and_test()
    data = prepared(train, test, protocol="published")
    tables = data.task.tables
    np.testing.assert_array_equal(tables["train"].window_id, range(10))
    np.testing.assert_array_equal(tables["validation"].window_id, tables["test"].window_id)
    assert (data.task.protocol, data.task.objective) == ("published", "error")
    strict = prepared(train, test).task
    assert (strict.protocol, strict.objective) == ("strict", "cross_entropy")
    np.testing.assert_array_equal(strict.tables["test"].window_id, tables["test"].window_id)


def test_classes_without_a_training_case_are_not_counted():
    data = prepared(cases("bbdd"), cases("db", seed=1))
    assert data.settings.classes == 2
    assert data.meta == {"classes": ["b", "d"], "filled": 0}
    assert data.task.tables["test"].label.tolist() == [1, 0]


def test_longer_windows_than_the_longest_case_are_said():
    data = prepared(cases("aabb"), cases("ab", seed=1), input_length=9)
    assert data.notices == ("the longest training case has 6 steps; all are zero-padded to 9",)


def test_a_channel_that_is_constant_in_training_is_scaled_by_one_and_said():
    train, test = cases("aabb", [7] * 4), cases("ab", [7, 7], seed=1)
    for case in (*train.cases, *test.cases):
        case[:, 1] = 4
    test.cases[0][3, 1] = 6.5
    data = prepared(train, test)
    assert data.notices == ("constant in the training part, so scaled by 1: channel 1",)
    np.testing.assert_array_equal(np.unique(data.task.buffer[:, 1]), [0, 2.5])


def test_most_frequent_class():
    data = prepared(cases("aabbbbbcc"), cases("abbc", seed=1))
    tell = data.naive["most frequent class"]
    assert tell("test") == {"accuracy": 0.5, "error": 0.5}


def test_the_fingerprint_tells_labels_lengths_and_parts_apart():
    train, test = cases("aabb", [5, 5, 5, 5]), cases("ab", [5, 5], seed=1)
    whole = np.concatenate(train.cases)

    def data(labels: str, lengths: list[int]) -> str:
        pieces = tuple(np.split(whole, np.cumsum(lengths)[:-1]))
        made = LabelledCases(pieces, tuple(labels), CLASSES, None, "memory")
        return prepared(made, test).fingerprint

    assert data("aabb", [5, 5, 5, 5]) == prepared(train, test, protocol="published").fingerprint
    assert len({data("aabb", [5, 5, 5, 5]), data("abab", [5, 5, 5, 5]), data("aabb", [5, 4, 6, 5])}) == 3


def refused(message: str, train: LabelledCases, test: LabelledCases, **options: Any) -> None:
    for protocol in ("strict", "published"):
        with pytest.raises(DataError, match=message) as caught:
            prepared(train, test, **{"protocol": protocol, **options})
        assert type(caught.value) is DataError


def test_what_cannot_be_used_is_one_clear_error():
    test = cases("ab", seed=1)
    refused(
        r"memory-0: every training case is of the class `b`\. Training needs at least two classes",
        cases("bbb"),
        test,
    )
    refused(
        r"memory-1: the test part has cases of the class `c`, the training part has none\. Leave",
        cases("aabb"),
        cases("abc", seed=1),
    )
    found = r"memory-0: the longest training case has 7 steps, but task.input_length is 6"
    message = rf"{found}\. Set task.input_length to 7"
    refused(message, cases("aabb", [3, 7, 3, 3]), test, input_length=6)
    refused(
        r"memory-0: has 2 channels, but task\.channels is 12\. Set task\.channels to 2",
        cases("aabb"),
        test,
        channels=12,
    )
    refused(
        r"memory-0: has 2 classes, but task\.classes is 4\. Set task\.classes to 2",
        cases("aabb"),
        test,
        classes=4,
    )
    wide = cases("aabb")
    wide.cases[0][0, 1] = 1e308
    wide.cases[1][0, 1] = -1e308
    refused(r"memory-0: series `channel 1` is spread too widely or too narrowly to standardize\.", wide, test)


def test_without_two_cases_of_a_class_strict_cannot_validate():
    with pytest.raises(DataError, match=r"no class has two training cases.*Set protocol to published"):
        prepared(cases("abc"), cases("ab", seed=1))
    assert prepared(cases("abc"), cases("ab", seed=1), protocol="published").task.tables["train"].size == 3


def ts_file(path: Path, part: LabelledCases) -> None:
    lines = [
        "@problemName letters",
        "@timeStamps false",
        "@missing false",
        "@univariate false",
        "@dimensions 2",
        "@equalLength false",
    ]
    lines += [f"@classLabel true {' '.join(part.classes)}", "@data"]
    for case, label in zip(part.cases, part.labels, strict=True):
        lines.append(":".join([*(",".join(map(repr, channel.tolist())) for channel in case.T), label]))
    path.write_text("\n".join(lines) + "\n")


def letters(folder: Path, patch: int, stride: int) -> Experiment:
    """Files of eight training cases of 5 and 6 steps, and of test cases of 1, 2, 3 and 9."""
    ts_file(folder / "letters_TRAIN.ts", cases("abababab", [5, 6] * 4, classes="ab"))
    ts_file(folder / "letters_TEST.ts", cases("abab", [1, 2, 3, 9], seed=1, classes="ab"))
    return build_experiment(
        {
            "data": {"source": str(folder)},
            "task": {"name": "classification", "input_length": 6, "channels": 2, "classes": 2},
            "trunk": {
                "source": "random",
                "n_layer": 1,
                "random": {"n_embd": 16, "n_head": 2, "n_positions": 8},
            },
            "network": {"patch": patch, "stride": stride},
            "train": {"epochs": 1, "batch_size": 4, "chunk": 1},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize(("patch", "stride"), [(8, 4), (4, 2)])
def test_test_cases_shorter_than_a_patch_are_padded_and_classified(tmp_path, patch, stride):
    """Every case is padded to L, so a test case may be of one step, and L itself shorter than a patch."""
    experiment = letters(tmp_path, patch, stride)
    data, model = classification.prepare(experiment.data, experiment.task), build_model(experiment)
    task = data.task
    sums = evaluate(model.predict, task, task.tables["test"], model.frozen, model.trainable, batch_size=3)
    assert {name: values.shape for name, values in sums.items()} == {
        "cross_entropy": (4,),
        "right": (4,),
        "count": (4,),
    }

    by_hand = np.zeros((4, 6, 2), np.float32)
    for row, case in zip(by_hand, cases("abab", [1, 2, 3, 9], seed=1).cases, strict=True):
        row[: len(case)] = data.scaler.transform(case)[:6]
    logits = np.asarray(jax.jit(model.predict)(model.frozen, model.trainable, by_hand), np.float64)
    terms = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(4), [0, 1, 0, 1]]
    np.testing.assert_allclose(
        sums["cross_entropy"], terms, rtol=1e-5
    )  # the network in float32, in batches of 3 and of 4
    np.testing.assert_array_equal(sums["right"], logits.argmax(axis=1) == [0, 1, 0, 1])
    metrics = task.metrics(sums)
    assert metrics == pytest.approx(
        {"accuracy": sums["right"].mean(), "error": 1 - sums["right"].mean(), "cross_entropy": terms.mean()}
    )


@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_the_epoch_is_chosen_by_the_protocols_metric(tmp_path, protocol):
    experiment = letters(tmp_path, 4, 2)
    data = classification.prepare(experiment.data, experiment.task, protocol=protocol)

    def constant(frozen, trainable, x_btc, x_mask, *, dropout_keys=None):
        return jnp.zeros((len(x_btc), 2)) + trainable["bias"]

    bias = {"bias": jnp.zeros(2)}
    result = fit(
        constant, data.task, frozen={}, trainable=bias, settings=experiment.train, reporter=SilentReporter()
    )
    assert set(result.progress.best_metrics) == {"accuracy", "error", "cross_entropy"}
    assert (
        result.progress.best
        == result.progress.best_metrics["cross_entropy" if protocol == "strict" else "error"]
    )


def test_japanese_vowels_by_its_published_numbers(data_root: Path):
    task = ClassificationSettings(name="classification", input_length=26)
    data = classification.prepare(DataConfig(source="japanesevowels"), task)
    assert (data.settings.channels, data.settings.classes) == (12, 9)
    assert {split: table.size for split, table in data.task.tables.items()} == {
        "train": 216,
        "validation": 54,
        "test": 370,
    }
    np.testing.assert_array_equal(np.bincount(data.task.tables["validation"].label), [6] * 9)
    np.testing.assert_array_equal(np.bincount(data.task.tables["train"].label), [24] * 9)
    np.testing.assert_array_equal(
        np.bincount(data.task.tables["test"].label), [31, 35, 88, 44, 29, 24, 40, 50, 29]
    )
    assert data.notices == ("1 test case(s) are clipped to 26 steps (protocol §2)",)
    assert int(data.task.tables["test"].x_valid.max()) == int(data.task.tables["train"].x_valid.max()) == 26
    assert data.naive["most frequent class"]("test") == {"accuracy": 31 / 370, "error": 1 - 31 / 370}
    published = classification.prepare(DataConfig(source="japanesevowels"), task, protocol="published")
    assert {split: table.size for split, table in published.task.tables.items()} == {
        "train": 270,
        "validation": 370,
        "test": 370,
    }
    assert published.fingerprint == data.fingerprint

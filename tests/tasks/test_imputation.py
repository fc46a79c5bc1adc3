"""Imputation: which points are hidden and when, what the network may see, and what is measured."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.build import Model, build_model
from ofa_jax.config.load import build_experiment
from ofa_jax.config.tasks import DataConfig
from ofa_jax.data.frames import Frame
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.tasks import imputation
from ofa_jax.tasks.base import TaskData
from ofa_jax.tasks.imputation import calendar_features, hide_points
from ofa_jax.train.evaluate import evaluate
from ofa_jax.train.step import dropout_key, eval_step, init_state, train_step
from ofa_jax.windows.batch import Batch, gather
from ofa_jax.windows.table import WindowTable

L, B = 12, 6


def experiment(*overrides: str, **task: Any):
    return build_experiment(
        {
            "data": {"source": "memory"},
            "task": {"name": "imputation", "input_length": L, "channels": 2, "calendar": 4, **task},
            "trunk": {
                "source": "random",
                "n_layer": 1,
                "random": {"n_embd": 16, "n_head": 2, "n_positions": L},
            },
        },
        overrides,
    )


def prepared(frame: Frame, *overrides: str, **task: Any) -> TaskData:
    made = experiment(*overrides, **task)
    with mock.patch.object(imputation, "read_series", return_value=(frame, None)):
        return imputation.prepare(made.data, made.task, protocol=made.protocol)


@pytest.fixture(scope="module")
def data(tiny) -> TaskData:
    """Two series of 200 hours: 140 rows train, 20 validate, 40 test."""
    return prepared(tiny.frame())


@pytest.fixture(scope="module")
def model() -> Model:
    return build_model(experiment())


def keys(count: int, seed: int = 0) -> jax.Array:
    return jax.random.split(dropout_key(seed), count)


def batch_of(
    b: int = B, *, channels: int = 2, calendar: int = 4, seed: int = 0, missing: float = 0.0
) -> Batch:
    """Windows whose last row is padding; a share of the points may be missing from the start."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(b, L, channels + calendar)).astype(np.float32)
    mask = np.ones(x.shape, bool)
    mask[..., :channels] &= draw.random((b, L, channels)) >= missing
    mask[-1] = False
    weight = np.append(np.ones(b - 1, np.float32), 0)
    empty = np.zeros((b, 0, x.shape[2]))
    fields = (np.where(mask, x, 0), empty, mask, empty.astype(bool), weight, np.append(np.arange(b - 1), -1))
    return Batch(*map(jnp.asarray, fields))


@settings(deadline=None)
@given(st.floats(1e-12, 1, exclude_max=True), st.integers(0, 5), st.sampled_from([0.0, 0.3, 1.0]))
def test_observed_points_alone_are_hidden_and_become_the_target(rate, seed, missing):
    before = batch_of(seed=seed, missing=missing)
    after = hide_points(before, keys(B, seed), rate=rate, channels=2)
    hidden = np.asarray(before.x_mask & ~after.x_mask)
    assert not hidden[..., 2:].any()  # the calendar
    assert not hidden[-1].any()  # the row of padding
    assert not (after.x_mask & ~before.x_mask).any()
    np.testing.assert_array_equal(after.y_mask, hidden[..., :2])
    np.testing.assert_array_equal(after.y, before.x[..., :2])
    np.testing.assert_array_equal(after.x, np.where(hidden, 0, before.x))
    for name in ("weight", "window_id"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


@pytest.mark.parametrize("rate", [0.125, 0.25, 0.375, 0.5, 0.9])
def test_as_many_points_are_hidden_as_asked_for(rate):
    count = 2000
    hidden = np.asarray(hide_points(batch_of(count), keys(count), rate=rate, channels=2).y_mask)[:-1]
    deviation = math.sqrt(rate * (1 - rate))
    # five standard deviations of a mean of so many draws; the keys are fixed, so this never fails by chance
    # alone
    assert abs(hidden.mean() - rate) < 5 * deviation / math.sqrt(hidden.size)
    for axes in ((0, 1), (0, 2)):
        spread = (
            5
            * deviation
            / math.sqrt(hidden.size / np.prod([hidden.shape[axis] for axis in {0, 1, 2} - set(axes)]))
        )
        assert np.abs(hidden.mean(axis=axes) - rate).max() < spread


def test_a_rate_next_to_one_hides_everything():
    after = hide_points(batch_of(), keys(B), rate=1 - 1e-12, channels=2)
    np.testing.assert_array_equal(after.y_mask[:-1], True)


def test_what_is_hidden_hangs_on_a_windows_own_key():
    whole = hide_points(batch_of(), keys(B), rate=0.5, channels=2)
    order = np.array([3, 0, 4])
    part = hide_points(
        jax.tree.map(lambda leaf: leaf[order], batch_of()), keys(B)[order], rate=0.5, channels=2
    )
    np.testing.assert_array_equal(part.y_mask, whole.y_mask[order])
    assert len({np.asarray(mask).tobytes() for mask in whole.y_mask[:-1]}) == B - 1


def masks(data: TaskData, split: str, index: np.ndarray) -> np.ndarray:
    """``[b, t, c]``: what an evaluation hides of the windows ``index``."""

    def nothing(frozen, trainable, x_btc, x_mask, *, dropout_keys=None):
        return x_btc

    task = data.task
    outputs = lambda prediction, batch: {"hidden": batch.y_mask}  # noqa: E731
    step = partial(eval_step, nothing, outputs, task.spec, task.corrupt)
    return np.asarray(
        step({}, {}, jnp.asarray(task.buffer), task.tables[split], jnp.asarray(index))["hidden"]
    )


@pytest.mark.slow
def test_a_window_hides_the_same_points_in_every_evaluation(data):
    everything = masks(data, "validation", np.arange(21))
    np.testing.assert_array_equal(masks(data, "validation", np.arange(21)), everything)
    np.testing.assert_array_equal(
        masks(data, "validation", np.array([7, 3, 20, -1])), [*everything[[7, 3, 20]], np.zeros((L, 2))]
    )
    assert len({mask.tobytes() for mask in everything}) == 21
    assert 0.2 < everything.mean() < 0.3


def hidden_by_training(data: TaskData, step: int, *, seed: int = 2021) -> np.ndarray:
    """``[b, t, c]``: where one training step has a gradient, if every point's prediction is a separate
    parameter."""

    def parameter(frozen, trainable, x_btc, x_mask, *, dropout_keys=None):
        return trainable["prediction"]

    task, optimizer = data.task, optax.sgd(1.0)
    state = init_state({"prediction": jnp.full((B, L, 2), 50.0)}, optimizer)._replace(
        step=jnp.asarray(step, jnp.int32)
    )
    table = WindowTable(*map(jnp.asarray, task.tables["train"]))

    @jax.jit
    def run(state, buffer, key):
        batch = gather(buffer, table, jnp.append(jnp.arange(B - 1), -1), task.spec)
        return train_step(parameter, task.loss, optimizer, {}, state, batch, key, task.corrupt)

    after, loss = run(state, task.buffer, dropout_key(seed))
    moved = np.asarray(after.trainable["prediction"] != 50)
    window = np.asarray(data.task.buffer[np.arange(B - 1)[:, None] + np.arange(L), :2])
    np.testing.assert_allclose(
        loss, np.square(50 - window)[moved[:-1]].mean(), rtol=1e-6
    )  # a mean in float32
    return moved


@pytest.mark.slow
def test_every_training_step_hides_other_points_and_learns_from_them_alone(data):
    one, two = hidden_by_training(data, 0), hidden_by_training(data, 1)
    assert 0.1 < one.mean() < 0.4
    assert not one[-1].any()  # the row of padding
    assert len({mask.tobytes() for mask in [*one[:-1], *two[:-1]]}) == 2 * (B - 1)
    np.testing.assert_array_equal(hidden_by_training(data, 0), one)
    assert (hidden_by_training(data, 0, seed=1) != one).any()
    assert (masks(data, "train", np.arange(B - 1)) != one[:-1]).any()


def zeros(frozen, trainable, x_btc, x_mask, *, dropout_keys=None):
    return jnp.zeros((*x_btc.shape[:2], 2))


@pytest.mark.parametrize("batch_size", [4, 512])
def test_metrics_count_hidden_points_alone(data, batch_size):
    table = data.task.tables["test"]
    sums = evaluate(zeros, data.task, table, {}, {}, batch_size=batch_size)
    hidden = masks(data, "test", np.arange(table.size))
    values = data.task.buffer[table.first[:, None] + np.arange(L), :2].astype(np.float64)
    np.testing.assert_array_equal(sums["count"], hidden.sum(axis=(1, 2)))
    wanted = {"mse": np.square(values[hidden]).mean(), "mae": np.abs(values[hidden]).mean()}
    assert data.task.metrics(sums) == pytest.approx(wanted, rel=1e-6)  # every window is summed in float32


def test_the_network_never_sees_a_hidden_value(model):
    predict = jax.jit(model.predict)
    before = batch_of()
    hidden = hide_points(before, keys(B), rate=0.4, channels=2)
    wild = jnp.pad(hidden.y_mask, ((0, 0), (0, 0), (0, 4))) * 1e3
    out = predict(model.frozen, model.trainable, hidden.x, hidden.x_mask)
    again = hide_points(before._replace(x=before.x + wild), keys(B), rate=0.4, channels=2)
    np.testing.assert_array_equal(predict(model.frozen, model.trainable, again.x, again.x_mask), out)
    # nor does it read the value there
    np.testing.assert_array_equal(predict(model.frozen, model.trainable, hidden.x + wild, hidden.x_mask), out)
    # an observed value it does see
    shown = hidden.x.at[:, 0, 0].add(jnp.where(hidden.x_mask[:, 0, 0], 1.0, 0.0))
    assert (predict(model.frozen, model.trainable, shown, hidden.x_mask) != out).any()


def test_windows_are_normalised_by_their_observed_points(model):
    """Shifting and scaling a channel's observed points shifts and scales all that is filled in."""
    predict = jax.jit(model.predict)
    hidden = hide_points(batch_of(), keys(B), rate=0.4, channels=2)
    out = predict(model.frozen, model.trainable, hidden.x, hidden.x_mask)
    moved = hidden.x.at[..., :2].set(hidden.x[..., :2] * 100 + 7000)
    found = predict(model.frozen, model.trainable, moved, hidden.x_mask)
    # float32 at values near 7000, and the variance's floor of 1e-5 next to variances of one; the last row
    # observes nothing
    np.testing.assert_allclose(found[:-1], out[:-1] * 100 + 7000, rtol=1e-5)


def test_windows_with_everything_hidden_give_finite_numbers(tiny):
    task, model = (
        prepared(tiny.frame(), mask_rate=0.999).task,
        build_model(experiment("trunk.source=none", "recipe=full")),
    )

    @jax.jit
    def run(trainable):
        batch = task.corrupt(batch_of(), keys(B))

        def objective(trainable):
            prediction = model.predict(model.frozen, trainable, batch.x, batch.x_mask)
            total, count = task.loss(prediction, batch)
            return total / count, task.sums(prediction, batch)

        return jax.value_and_grad(objective, has_aux=True)(trainable), batch.y_mask

    ((loss, sums), gradients), hidden = run(model.trainable)
    assert hidden.all(axis=(1, 2)).sum() > 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.isfinite(loss)
    assert task.metrics({name: np.asarray(values) for name, values in sums.items()})["mse"] == pytest.approx(
        float(loss), rel=1e-6
    )


def test_where_chance_hides_nothing_there_is_one_clear_error(tiny):
    data = prepared(tiny.frame(), mask_rate=1e-12)
    sums = evaluate(zeros, data.task, data.task.tables["validation"], {}, {}, batch_size=21)
    with pytest.raises(
        DataError,
        match=r"task\.mask_rate: chance hid no point in any of 21 window\(s\)\. Raise task\.mask_rate",
    ):
        data.task.metrics(sums)


@pytest.mark.parametrize("rate", [0, 1, -0.1])
def test_a_rate_that_is_no_share_is_refused_with_its_path(rate):
    with pytest.raises(
        ConfigError, match=rf"task\.mask_rate: input should be (greater|less) than \d \(found {rate}\)"
    ):
        experiment(mask_rate=rate)


def times(*texts: str) -> Frame:
    stamps = np.array(texts, "datetime64[ns]")
    return Frame(np.zeros((len(stamps), 1)), ("a",), stamps, "memory")


def test_calendar_features_by_literal():
    # Thursday, the 60th day; Tuesday, the 366th; Monday, the first
    hourly = times("2024-02-29T22", "2024-02-29T23", "2024-12-31T00", "2025-01-06T01")
    wanted = [
        [22 / 23 - 0.5, 3 / 6 - 0.5, 28 / 30 - 0.5, 59 / 365 - 0.5],
        [0.5, 3 / 6 - 0.5, 28 / 30 - 0.5, 59 / 365 - 0.5],
        [-0.5, 1 / 6 - 0.5, 0.5, 0.5],
        [1 / 23 - 0.5, -0.5, 5 / 30 - 0.5, 5 / 365 - 0.5],
    ]
    found = calendar_features(hourly)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)  # float32
    assert found.dtype == np.float32


def test_the_minute_comes_first_where_steps_are_below_an_hour():
    found = calendar_features(times("2024-02-29T23:15", "2024-02-29T23:30", "2024-02-29T23:45"))
    np.testing.assert_allclose(found[:, 0], np.array([15, 30, 45]) / 59 - 0.5, rtol=1e-6)
    np.testing.assert_allclose(
        found[:, 1:], [[0.5, 0, 28 / 30 - 0.5, 59 / 365 - 0.5]] * 3, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    ("texts", "width"),
    [
        (
            ["2024-01-01T00", "2024-01-01T01", "2024-01-01T01", "2024-01-01T02"],
            4,
        ),  # a repeated hour is no step of zero minutes
        (["2024-01-01T00:00", "2024-01-01T00:10", "2024-01-01T00:10", "2024-01-01T00:20"], 5),
        (["2024-01-01", "2024-01-02"], 4),
        (["2024-01-01"], 4),
        (["2024-01-01", "2024-01-01"], 4),
    ],
)
def test_how_many_calendar_features_there_are(texts, width):
    assert calendar_features(times(*texts)).shape == (len(texts), width)


def test_calendar_features_against_pandas():
    stamps = pd.date_range("2023-12-25", periods=600, freq="10h")
    found = calendar_features(times(*map(str, stamps.to_numpy())))
    columns = [
        stamps.hour / 23,
        stamps.day_of_week / 6,
        (stamps.day - 1) / 30,
        (stamps.day_of_year - 1) / 365,
    ]
    np.testing.assert_allclose(found, np.stack(columns, axis=1) - 0.5, rtol=1e-5, atol=1e-7)  # float32
    assert found.min() >= -0.5
    assert found.max() <= 0.5


def test_the_calendar_stands_behind_the_scaled_series(tiny, data):
    frame = tiny.frame()
    assert data.task.buffer.shape == (200, 6)
    train = frame.values[:140]
    np.testing.assert_allclose(
        data.task.buffer[:, :2], (frame.values - train.mean(axis=0)) / train.std(axis=0), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(data.task.buffer[:, 2:], calendar_features(frame))
    assert (data.settings.channels, data.settings.calendar, data.notices) == (2, 4, ())
    assert {split: table.size for split, table in data.task.tables.items()} == {
        "train": 129,
        "validation": 21,
        "test": 41,
    }
    assert {split: int(table.first[0]) for split, table in data.task.tables.items()} == {
        "train": 0,
        "validation": 128,
        "test": 148,
    }


def test_without_timestamps_there_is_no_calendar_and_that_is_said(tiny):
    bare = replace(tiny.frame(), timestamps=None)
    data = prepared(bare, calendar=0)
    assert data.task.buffer.shape == (200, 2)
    assert data.notices == ("no timestamps, so the network reads no calendar features",)
    small = build_model(experiment(calendar=0))
    sums = evaluate(
        small.predict, data.task, data.task.tables["test"], small.frozen, small.trainable, batch_size=41
    )
    assert np.isfinite(list(data.task.metrics(sums).values())).all()


def test_few_shot_scales_by_the_whole_training_part(tiny):
    few, whole = prepared(tiny.frame(), "data.percent=10"), prepared(tiny.frame())
    np.testing.assert_array_equal(few.task.buffer, whole.task.buffer)
    assert few.task.tables["train"].size == (140 - L) * 10 // 100 + 1


def test_a_constant_series_is_scaled_by_one_and_said(tiny):
    frame = tiny.frame()
    frame.values[:, 1] = 4
    frame.values[150, 1] = 6.5
    data = prepared(frame)
    assert data.notices == ("constant in the training part, so scaled by 1: b",)
    np.testing.assert_array_equal(np.unique(data.task.buffer[:, 1]), [0, 2.5])


def test_published_differs_in_its_name_alone(tiny):
    """Protocol §3 and §5 state no practice of GPT4TS's imputation that would have to be followed."""
    published, strict = (prepared(tiny.frame(), "protocol=published").task, prepared(tiny.frame()).task)
    sizes = {"train": 129, "validation": 21, "test": 41}
    for task, protocol in ((published, "published"), (strict, "strict")):
        assert {split: table.size for split, table in task.tables.items()} == sizes
        assert (task.protocol, task.drop_last, task.objective) == (protocol, False, "mse")
        assert task.with_full_batches(8) is task


def test_what_cannot_be_used_is_one_clear_error(tiny):
    with pytest.raises(
        DataError, match=r"tiny series: has 2 channels, but task\.channels is 7\. Set task\.channels to 2"
    ):
        prepared(tiny.frame(), channels=7)
    with pytest.raises(
        DataError,
        match=r"tiny series: has 4 calendar features, but task\.calendar is 5\. Set task\.calendar to 4",
    ):
        prepared(tiny.frame(), calendar=5)
    with pytest.raises(DataError, match=r"tiny series: 10 row\(s\) are too few: .* windows need 12\."):
        prepared(tiny.frame(10))


@pytest.mark.parametrize(
    ("name", "calendar", "sizes"), [("etth1", 4, (8545, 2881, 2881)), ("ettm1", 5, (34465, 11521, 11521))]
)
def test_windows_of_the_published_sets(data_root: Path, name, calendar, sizes):
    task = build_experiment({"data": {"source": name}, "task": {"name": "imputation"}}).task
    data = imputation.prepare(DataConfig(source=name), task)
    assert task.input_length == 96
    assert tuple(table.size for table in data.task.tables.values()) == sizes
    assert (data.settings.channels, data.settings.calendar) == (7, calendar)

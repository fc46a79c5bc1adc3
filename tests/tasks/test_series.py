"""Transfer between collections and the M4 competition's way: which steps every window reads, and what its
forecast is measured by."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.config.load import build_experiment
from ofa_jax.config.schema import Experiment, TrainConfig
from ofa_jax.config.tasks import task_settings
from ofa_jax.data.archives import read_m4_part
from ofa_jax.data.archives.text import read_lines
from ofa_jax.data.catalog.load import CATALOG, load_collection, locate
from ofa_jax.data.seasons import season_length
from ofa_jax.errors import ConfigError, DataError, OfaError
from ofa_jax.model.linear import init_nlinear, nlinear
from ofa_jax.tasks.base import Task, TaskData
from ofa_jax.tasks.series import (
    prepare_short_term,
    prepare_zero_shot,
    read_collection,
    score_forecasts,
    seasonal_last,
)
from ofa_jax.tasks.table import TASKS, prepare
from ofa_jax.train.evaluate import evaluate
from ofa_jax.train.fit import fit
from ofa_jax.train.progress import SilentReporter
from ofa_jax.windows.batch import gather
from ofa_jax.windows.order import IndexStream
from ofa_jax.windows.table import PADDING

Window = tuple[int, list[float], list[float]]
"""What a window shows: its id, its observed input steps, its observed target steps."""


def numbered(lengths: Sequence[int], start: int = 1) -> list[list[float]]:
    """Series whose values count on from one to the next, so that a value identifies its series and step."""
    ends = np.cumsum([start, *lengths])
    return [list(map(float, range(first, last))) for first, last in pairwise(ends.tolist())]


def tsf(
    path: Path, series: Sequence[Sequence[float]], *, frequency: str | None = "yearly", missing: bool = False
) -> Path:
    head = [
        "@attribute series_name string",
        *([f"@frequency {frequency}"] if frequency else []),
        f"@missing {str(missing).lower()}",
        "@data",
    ]
    body = [
        f"T{number}:{','.join('?' if value != value else repr(float(value)) for value in one)}"
        for number, one in enumerate(series)
    ]
    path.write_text("\n".join([*head, *body]) + "\n")
    return path


def said(data: TaskData) -> list[str]:
    """The notices but that of the season, which the frequency gives."""
    return [text for text in data.notices if "inferred from the frequency" not in text]


def csv(path: Path, columns: dict[str, Sequence[float]], *, step: str | None = "MS") -> Path:
    import pandas as pd

    table = pd.DataFrame(columns)
    if step:
        table.insert(0, "date", pd.date_range("2020-01-01", periods=len(table), freq=step))
    table.to_csv(path, index=False)
    return path


def asked(
    name: str, source: object, target: object = None, *, length: int = 3, horizon: int = 2, **more: Any
) -> Experiment:
    data = {"source": str(source)} | ({} if target is None else {"target": str(target)})
    task = {"name": name, "input_length": length, "horizon": horizon, "loss": "smape"}
    for key, value in more.items():
        (task if key == "cut_range" else data)[key] = value
    return build_experiment({"data": data, "task": task})


def zero_shot(source: object, target: object, *, protocol: Any = "strict", **more: Any) -> TaskData:
    experiment = asked("zero_shot", source, target, **more)
    return prepare_zero_shot(experiment.data, experiment.task, protocol=protocol)


def short_term(source: object, *, protocol: Any = "strict", **more: Any) -> TaskData:
    experiment = asked("short_term", source, **more)
    return prepare_short_term(experiment.data, experiment.task, protocol=protocol)


def shown(task: Task, split: Any, rows: np.ndarray | None = None) -> list[Window]:
    """The windows of a split, or some rows of its table, read from the buffer as a table is defined."""
    table, column = task.tables[split], task.buffer[:, 0]
    found = []
    for row in range(table.size) if rows is None else rows:
        first, cut = int(table.first[row]), int(table.first[row] + table.x_valid[row])
        assert first >= 0
        assert cut + table.y_valid[row] <= len(column)
        found.append(
            (
                int(table.window_id[row]),
                column[first:cut].tolist(),
                column[cut : cut + table.y_valid[row]].tolist(),
            )
        )
    return found


def last_before(series: list[float], cut: int, length: int, horizon: int, number: int) -> Window:
    return number, series[:cut][-length:], series[cut : cut + horizon]


@st.composite
def two_collections(draw: st.DrawFn) -> dict[str, Any]:
    horizon = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    others = draw(st.lists(st.integers(horizon + 1, 20), min_size=1, max_size=6))
    return {"lengths": lengths, "others": others, "length": draw(st.integers(1, 7)), "horizon": horizon}


@settings(max_examples=60, deadline=None)
@given(
    case=two_collections(),
    percent=st.sampled_from([100, 100, 50, 10, 1]),
    protocol=st.sampled_from(["strict", "published"]),
)
def test_zero_shot_windows_are_those_of_plain_slices(tmp_path_factory, case, percent, protocol):
    folder = tmp_path_factory.mktemp("zero_shot")
    length, horizon = case["length"], case["horizon"]
    source = numbered(case["lengths"])
    target = numbered(case["others"], start=1 + sum(case["lengths"]))
    train: list[Window] = []
    validation: list[Window] = []
    for number, series in enumerate(source):
        own = series[
            : max(0, len(series) - 2 * horizon)
        ]  # its test part, then its validation part, set aside
        if own:
            validation.append(last_before(series, len(own), length, horizon, number))
        if len(own) > length:
            own = own[: (len(own) - length) * percent // 100 + length]
        for start in range(len(own) - length - horizon + 1):
            train.append(
                (number, own[start : start + length], own[start + length : start + length + horizon])
            )
    test = [
        last_before(series, len(series) - horizon, length, horizon, number)
        for number, series in enumerate(target)
    ]

    def made() -> TaskData:
        paths = tsf(folder / "source.tsf", source), tsf(folder / "target.tsf", target)
        return zero_shot(*paths, percent=percent, length=length, horizon=horizon, protocol=protocol)

    if not train:
        with pytest.raises(DataError, match="no series has "):
            made()
        return
    data = made()
    np.testing.assert_array_equal(data.task.buffer[:, 0], np.arange(1, 1 + len(data.task.buffer)))
    assert shown(data.task, "train") == train
    assert shown(data.task, "validation") == validation
    assert shown(data.task, "test") == test
    assert data.task.drop_last == (protocol == "published")
    assert data.task.with_full_batches(7) is data.task


@pytest.mark.parametrize(("length", "horizon"), [(3, 2), (1, 1), (5, 4)])
def test_a_source_series_of_l_and_three_h_has_one_training_window(tmp_path, length, horizon):
    least = length + 3 * horizon
    target = tsf(tmp_path / "target.tsf", numbered([horizon + 1]))
    data = zero_shot(tsf(tmp_path / "a.tsf", numbered([least])), target, length=length, horizon=horizon)
    assert shown(data.task, "train") == [
        (0, list(range(1, length + 1)), list(range(length + 1, length + horizon + 1)))
    ]
    with pytest.raises(
        DataError,
        match=rf"b\.tsf: no series has .*at least {least} steps are needed; (set task|these are too short)",
    ) as caught:
        zero_shot(tsf(tmp_path / "b.tsf", numbered([least - 1, 1])), target, length=length, horizon=horizon)
    assert "percent" not in str(caught.value)


@pytest.mark.parametrize("percent", [1, 7, 10, 33, 50, 99])
def test_the_length_that_the_error_asks_for_is_enough_and_the_least(tmp_path, percent):
    target = tsf(tmp_path / "target.tsf", numbered([3]))
    with pytest.raises(DataError, match=rf"or raise data\.percent from {percent}\.") as caught:
        zero_shot(tsf(tmp_path / "a.tsf", numbered([9])), target, percent=percent)
    least = int(str(caught.value.fix).split()[4])
    assert (
        zero_shot(tsf(tmp_path / "b.tsf", numbered([least])), target, percent=percent)
        .task.tables["train"]
        .size
        == 1
    )
    with pytest.raises(DataError, match=f"at least {least} steps"):
        zero_shot(tsf(tmp_path / "c.tsf", numbered([least - 1])), target, percent=percent)


@pytest.mark.parametrize("steps", [4, 5, 9, 30])
@pytest.mark.parametrize("percent", [100, 30])
def test_the_sizes_that_the_error_names_train(tmp_path, steps, percent):
    path = tsf(tmp_path / "a.tsf", numbered([steps, 2]))
    target = tsf(tmp_path / "b.tsf", numbered([200]))
    with pytest.raises(DataError) as caught:
        zero_shot(path, target, length=96, horizon=96, percent=percent)
    named = dict(re.findall(r"task\.(\w+) to (\d+)", str(caught.value.fix)))
    if not named:
        assert "too short for any task.horizon" in str(caught.value.fix)
        with pytest.raises(DataError):
            zero_shot(path, target, length=1, horizon=1, percent=percent)
        return
    sizes = {"length": int(named["input_length"]), "horizon": int(named["horizon"])}
    assert zero_shot(path, target, percent=percent, **sizes).task.tables["train"].size


@pytest.mark.parametrize("protocol", ["strict", "published"])
@pytest.mark.parametrize("steps", [5, 9, 30])
def test_the_horizon_that_the_error_names_trains(tmp_path, steps, protocol):
    path = tsf(tmp_path / "a.tsf", numbered([steps]))
    with pytest.raises(DataError) as caught:
        short_term(path, horizon=steps - 1, protocol=protocol)
    named = re.search(r"set task\.horizon to (\d+)", str(caught.value.fix))
    assert named is not None
    assert short_term(path, horizon=int(named[1]), protocol=protocol).task.tables["train"].size


def test_no_target_of_a_collection_that_is_its_own_target_is_seen_before(tmp_path):
    path = tsf(tmp_path / "both.tsf", numbered([20, 11, 31, 3]))
    data = zero_shot(path, path, length=4, horizon=2)
    assert len(data.task.buffer) == 65  # read and kept once
    targets = {value for _, _, y in shown(data.task, "test") for value in y}
    assert targets == {19, 20, 30, 31, 61, 62, 64, 65}
    read = {
        value for split in ("train", "validation") for _, x, y in shown(data.task, split) for value in x + y
    }
    assert not targets & read
    validated = {value for _, _, y in shown(data.task, "validation") for value in y}
    trained = {value for _, x, y in shown(data.task, "train") for value in x + y}
    assert not validated & trained
    assert validated == {17, 18, 28, 29, 59, 60}


def test_short_series_are_padded_before_their_start(tmp_path):
    source = tsf(tmp_path / "a.tsf", numbered([12, 5]))
    data = zero_shot(source, tsf(tmp_path / "b.tsf", [[7, 8, 9, 10], [5, 6, 7]]), length=4, horizon=2)
    for split, x, y in [
        ("validation", [[5, 6, 7, 8], [0, 0, 0, 13]], [[9, 10], [14, 15]]),
        ("test", [[0, 0, 7, 8], [0, 0, 0, 5]], [[9, 10], [6, 7]]),
    ]:
        table = data.task.tables[split]  # type: ignore[index]
        batch = gather(
            jnp.asarray(data.task.buffer), table, jnp.array([0, 1, PADDING], jnp.int32), data.task.spec
        )
        np.testing.assert_array_equal(batch.x[..., 0], [*x, [0] * 4])
        np.testing.assert_array_equal(batch.x_mask[..., 0], np.array([*x, [0] * 4]) > 0)
        np.testing.assert_array_equal(batch.y[..., 0], [*y, [0] * 2])
        np.testing.assert_array_equal(batch.y_mask[..., 0], [[True] * 2, [True] * 2, [False] * 2])
    assert said(data) == [
        "1 of 2 series are too short to train on",
        "MASE omits 1 of 2 validation windows whose input is constant or shorter than a season",
        "MASE omits 1 of 2 test windows whose input is constant or shorter than a season",
    ]


def test_the_published_transfer_drops_training_batches_and_nothing_else(tmp_path):
    source, target = (
        tsf(tmp_path / "a.tsf", numbered([30, 30, 30])),
        tsf(tmp_path / "b.tsf", numbered([9] * 5)),
    )
    strict, published = (zero_shot(source, target, protocol=protocol) for protocol in ("strict", "published"))
    assert (strict.task.protocol, strict.task.drop_last) == ("strict", False)
    assert (published.task.protocol, published.task.drop_last) == ("published", True)
    assert published.task.with_full_batches(64) is published.task
    for split in ("train", "validation", "test"):
        assert shown(published.task, split) == shown(strict.task, split)
    assert [table.size for table in published.task.tables.values()] == [66, 3, 5]
    assert IndexStream(66, 64, seed=0, drop_last=published.task.drop_last).windows == 64


@pytest.mark.parametrize("step", ["MS", "h", None])
def test_columns_of_a_table_are_series_on_either_side(tmp_path, step):
    series = numbered([15, 15])
    table = csv(tmp_path / "own.csv", {"one": series[0], "two": series[1]}, step=step)
    other = tsf(tmp_path / "a.tsf", numbered([12, 14], start=31), frequency="quarterly")
    season = {"MS": 12, "h": 24, None: 1}[step]
    unknown = [f"{table.name}: unknown season length, so MASE and Naive2 use 1; set data.season"] * (
        step is None
    )

    data = zero_shot(table, other, length=4)
    assert [len(shown(data.task, split)) for split in ("train", "validation", "test")] == [12, 2, 2]
    assert shown(data.task, "validation") == [(0, [8, 9, 10, 11], [12, 13]), (1, [23, 24, 25, 26], [27, 28])]
    assert shown(data.task, "test") == [(0, [37, 38, 39, 40], [41, 42]), (1, [51, 52, 53, 54], [55, 56])]
    assert data.season == 4
    assert [text for text in data.notices if "unknown season" in text] == unknown

    data = zero_shot(other, table, length=4)
    assert shown(data.task, "test") == [(0, [10, 11, 12, 13], [14, 15]), (1, [25, 26, 27, 28], [29, 30])]
    assert [text for text in data.notices if "unknown season" in text] == unknown
    assert data.season == season
    assert list(data.naive) == ["seasonal naive", "Naive2"]


def test_the_column_of_timestamps_can_be_named(tmp_path):
    table = tmp_path / "own.csv"
    values = enumerate(numbered([15])[0], start=1)
    days = [f"{value},2024-01-{day:02},2024-02-{day:02}" for day, value in values]
    table.write_text("\n".join(["value,when,written", *days]) + "\n")
    data = short_term(table, timestamp_column="when", exclude=["written"])
    assert (shown(data.task, "test"), data.season) == ([(0, [11, 12, 13], [14, 15])], 7)
    with pytest.raises(DataError, match=r"own\.csv.*`when`"):
        short_term(table)


@pytest.mark.parametrize(
    ("frequency", "season"),
    [
        ("yearly", 1),
        ("quarterly", 4),
        ("monthly", 12),
        ("weekly", 52),
        ("daily", 7),
        ("hourly", 24),
        ("Hourly", 24),
        ("half_hourly", 48),
    ],
)
def test_the_cycle_of_an_archive_follows_from_its_word_for_the_frequency(tmp_path, frequency, season):
    path = tsf(tmp_path / "a.tsf", numbered([160]), frequency=frequency)
    found = short_term(path)
    assert (found.season, found.season_in("test")) == (season, season)
    inferred = (
        f"season length m = {season}, inferred from the frequency {frequency}; data.season sets another"
    )
    assert found.notices == (f"{path.name}: {inferred}",)
    assert (short_term(path, season=5).season, short_term(path, season=5).notices) == (5, ())


def test_a_table_and_an_archive_of_the_same_days_have_the_same_season_and_metrics(tmp_path):
    series = np.random.default_rng(0).normal(size=60).cumsum() + np.resize([0, 1, 2, 3, 2, 1, 0], 60) * 5 + 50
    archive = short_term(tsf(tmp_path / "a.tsf", [series.tolist()], frequency="daily"), length=14, horizon=7)
    columns = short_term(csv(tmp_path / "a.csv", {"T0": series.tolist()}, step="D"), length=14, horizon=7)
    assert archive.season == columns.season == 7
    for name in ("seasonal naive", "Naive2"):
        assert archive.naive[name]("test") == columns.naive[name]("test")


def test_the_competitions_season_is_that_of_its_own_sets_alone():
    assert {CATALOG[f"m4_{word}"].season for word in ("weekly", "daily", "yearly")} == {1}
    assert (season_length(None, CATALOG["m4_daily"].season, "Daily"), season_length(None, None, "Daily")) == (
        1,
        7,
    )
    assert (
        season_length(5, CATALOG["m4_daily"].season, "Daily") == 5
    )  # a setting that is given is what counts
    assert season_length(None, None, "fortnightly") is None


def test_seasonal_naive_says_where_it_repeats_the_last_value(tmp_path):
    data = short_term(tsf(tmp_path / "a.tsf", numbered([40, 12]), frequency="monthly"))
    windows = "1 of 2 test windows, which no season of 12 steps precedes"
    assert f"seasonal naive repeats the last value in {windows}" in data.notices


@pytest.mark.parametrize("frequency", [None, "fortnightly"])
def test_a_cycle_that_nothing_tells_is_one_step_and_said(tmp_path, frequency):
    path = tsf(tmp_path / "a.tsf", numbered([60]), frequency=frequency)
    found = short_term(path)
    assert found.season == 1
    assert len(found.notices) == 1
    assert "data.season" in found.notices[0]
    assert not short_term(path, season=1).notices


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(4, 30), min_size=1, max_size=6),
    length=st.integers(1, 7),
    horizon=st.integers(1, 3),
    cut_range=st.sampled_from([1.0, 1.5, 10.0]),
    protocol=st.sampled_from(["strict", "published"]),
)
def test_short_term_windows_are_those_of_plain_slices(
    tmp_path_factory, lengths, length, horizon, cut_range, protocol
):
    series = numbered(lengths)
    train: list[Window] = []
    validation: list[Window] = []
    test = [
        last_before(one, len(one) - horizon, length, horizon, number) for number, one in enumerate(series)
    ]
    borders = [0]
    for number, one in enumerate(series):
        own = one[:-horizon]
        if protocol == "strict":
            own = own[:-horizon]
            if own:
                validation.append(last_before(one, len(own), length, horizon, number))
        for cut in range(max(1, len(own) - int(cut_range * horizon)), len(own)):
            train.append((number, own[:cut][-length:], own[cut : cut + horizon]))
        if len(own) >= 2:
            borders.append(len(train))
    path = tsf(tmp_path_factory.mktemp("short_term") / "a.tsf", series)
    asked_for = {"length": length, "horizon": horizon, "cut_range": cut_range, "protocol": protocol}
    if not train:
        with pytest.raises(DataError, match="no series is long enough to train on"):
            short_term(path, **asked_for)
        return
    task = short_term(path, **asked_for).task
    assert shown(task, "train") == train
    assert shown(task, "validation") == (validation if protocol == "strict" else test)
    assert shown(task, "test") == test
    assert task.groups is not None
    assert task.groups.tolist() == borders
    assert not task.drop_last


def test_nothing_that_is_held_back_trains():
    """Strict training reads nothing of the last 2 H steps, published nothing of the last H; every window's
    target follows its input."""
    import tempfile

    lengths, horizon = [9, 30, 17], 3
    ends = np.cumsum(lengths)
    with tempfile.TemporaryDirectory() as folder:
        path = tsf(Path(folder) / "a.tsf", numbered(lengths))
        for protocol, held in (("strict", 6), ("published", 3)):
            task = short_term(path, length=6, horizon=horizon, protocol=protocol).task
            for number, x, y in shown(task, "train"):
                assert x + y == list(range(int(x[0]), int(y[-1]) + 1))
                assert ends[number] - lengths[number] < x[0] <= y[-1] <= ends[number] - held


def epoch_of(task: Task, seed: int, epoch: int, batch_size: int) -> list[Window]:
    stream = IndexStream(
        task.tables["train"].size, batch_size, seed=seed, drop_last=task.drop_last, groups=task.groups
    )
    index = stream.batches(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch).ravel()
    return shown(task, "train", index[index != PADDING])


def test_every_epoch_cuts_each_series_once_and_in_time_everywhere(tmp_path):
    lengths = [3, 30, 8, 4, 30]  # 3 and 4 are too short to train on: 4 steps are set aside
    task = short_term(tsf(tmp_path / "a.tsf", numbered(lengths)), length=4, horizon=2, cut_range=2.5).task
    cuts: dict[int, set[int]] = {1: set(), 2: set(), 4: set()}
    for epoch in range(30):
        windows = epoch_of(task, seed=1, epoch=epoch, batch_size=2)
        assert sorted(number for number, _, _ in windows) == [1, 2, 4]
        if epoch < 5:
            assert sorted(windows) == sorted(epoch_of(task, seed=1, epoch=epoch, batch_size=5))
        for number, x, _ in windows:
            cuts[number].add(int(x[-1]))
    # the last input step: series 1 is 4 … 33, its training part ends with 29; series 2 is 34 … 41, series 4
    # is 46 … 75
    assert cuts == {1: {24, 25, 26, 27, 28}, 2: {34, 35, 36}, 4: {66, 67, 68, 69, 70}}


def test_targets_after_the_end_of_the_training_part_are_missing(tmp_path):
    task = short_term(tsf(tmp_path / "a.tsf", numbered([12])), length=3, horizon=3, cut_range=1.5).task
    index = jnp.arange(task.tables["train"].size, dtype=jnp.int32)
    batch = gather(jnp.asarray(task.buffer), task.tables["train"], index, task.spec)
    np.testing.assert_array_equal(batch.x[..., 0], [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]])
    np.testing.assert_array_equal(batch.y[..., 0], [[3, 4, 5], [4, 5, 6], [5, 6, 0], [6, 0, 0]])
    np.testing.assert_array_equal(
        batch.y_mask[..., 0], np.array([[3, 4, 5], [4, 5, 6], [5, 6, 0], [6, 0, 0]]) > 0
    )


def last_value(horizon: int) -> Callable[..., Any]:
    return lambda frozen, trainable, x_btc, x_mask=None, *, dropout_keys=None: jnp.repeat(
        x_btc[:, -1:], horizon, axis=1
    )


@pytest.mark.parametrize("make", [zero_shot, short_term])
@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_a_models_windows_and_its_yardstick_are_the_same(tmp_path, make, protocol):
    draw = np.random.default_rng(0)
    series = [
        (10.0 ** draw.integers(0, 6) * draw.uniform(1, 2, size)).tolist() for size in (40, 9, 23, 14, 31)
    ]
    path = tsf(tmp_path / "a.tsf", series)
    data = make(path, path, protocol=protocol) if make is zero_shot else make(path, protocol=protocol)
    for split in ("validation", "test"):
        found = data.task.final_metrics(
            lambda table: evaluate(last_value(2), data.task, table, {}, {}, batch_size=3), split
        )
        assert set(found) == {"smape", "mase", "owa"}
        # the model reads float32 values, the reference float64 ones: 6e-8 of a value, some 1e-6 of a
        # difference of two like ones
        assert found == pytest.approx(data.naive["Naive2"](split), rel=1e-5)
        assert found["owa"] == pytest.approx(1, rel=1e-5)
        assert data.naive["seasonal naive"](split) == data.naive["Naive2"](split)
    assert data.naive["Naive2"]("train") is None
    assert set(
        data.task.final_metrics(
            lambda table: evaluate(last_value(2), data.task, table, {}, {}, batch_size=3), "train"
        )
    ) == {"smape"}


@pytest.mark.slow
@pytest.mark.parametrize("make", [zero_shot, short_term])
def test_training_learns_and_does_not_depend_on_the_chunk(tmp_path, make):
    path = tsf(tmp_path / "a.tsf", numbered([30, 20, 25, 14, 17], start=50))
    data = make(path, path, protocol="published") if make is zero_shot else make(path)
    start = init_nlinear(3, 2)
    before = data.task.metrics(
        evaluate(nlinear, data.task, data.task.tables["validation"], {}, start, batch_size=8)
    )["smape"]
    results = [
        fit(
            nlinear,
            data.task,
            frozen={},
            trainable=start,
            reporter=SilentReporter(),
            settings=TrainConfig(
                epochs=4, batch_size=3, learning_rate=0.1, schedule="constant", seed=3, chunk=chunk
            ),
        )
        for chunk in (1, 3)
    ]
    assert results[0].progress == results[1].progress
    np.testing.assert_array_equal(results[0].best["kernel"], results[1].best["kernel"])
    assert results[0].progress.best is not None
    assert results[0].progress.best < before / 2
    assert results[0].progress.step == 4 * (
        2 if make is short_term else sum(max(0, n - 8) for n in (30, 20, 25, 14, 17)) // 3
    )


def test_smape_mase_and_owa_by_hand(tmp_path):
    # before the test part: steps of 2 and of 1 in the mean; Naive2 repeats 6 and 3
    path = tsf(tmp_path / "a.tsf", [[0, 2, 4, 6, 8, 10], [1, 2, 2, 3, 3, 3]])
    data = short_term(path, length=2, horizon=2, protocol="published")
    target = np.array([[8.0, 10], [3, 3]])

    def scored(forecast: object) -> dict[str, float]:
        return data.task.final_metrics(
            lambda table: score_forecasts(np.array(forecast, float), target), "test"
        )

    naive_smape, naive_mase = (200 * 2 / 14 + 200 * 4 / 16 + 0 + 0) / 4, ((2 + 4) / 2 / 2 + 0) / 2
    assert data.naive["Naive2"]("test") == pytest.approx(
        {"smape": naive_smape, "mase": naive_mase, "owa": 1}, rel=1e-6
    )
    # the second series' scale is (1 + 0 + 1) / 3
    smape, mase = (200 * 1 / 17 + 0 + 200 * 1 / 7 + 0) / 4, ((1 / 2) / 2 + (1 / 2) / (2 / 3)) / 2
    owa = (smape / naive_smape + mase / naive_mase) / 2
    assert scored([[9, 10], [4, 3]]) == pytest.approx({"smape": smape, "mase": mase, "owa": owa}, rel=1e-6)
    assert scored(target) == {"smape": 0, "mase": 0, "owa": 0}


def test_the_yardstick_sees_the_whole_series_before_the_window(tmp_path):
    # a season of 4 that the window of two steps cannot show
    series = np.resize([2.0, 5, 4, 9], 31)
    data = short_term(tsf(tmp_path / "a.tsf", [series.tolist()], frequency="quarterly"), length=2, horizon=3)
    for split in ("validation", "test"):
        for name in ("seasonal naive", "Naive2"):
            found = data.naive[name](split)
            assert found is not None
            assert found["smape"] == pytest.approx(
                0, abs=1e-4
            )  # float32 differences of Naive2's float64 products


@pytest.mark.parametrize(("scale", "level"), [(1e-12, 0.0), (1e12, 0.0), (1.0, 1e9), (1e-3, 1e6)])
def test_naive_methods_are_scored_in_float64(tmp_path, scale, level):
    values = np.random.default_rng(0).integers(1, 100, size=40).astype(float)
    paths = (
        tsf(tmp_path / "a.tsf", [values.tolist()]),
        tsf(tmp_path / "b.tsf", [(values * scale + level).tolist()]),
    )
    found, other = (short_term(path).naive["seasonal naive"]("test") for path in paths)
    assert found is not None
    assert other is not None
    assert other["mase"] == pytest.approx(found["mase"], rel=1e-6)
    if not level:
        assert other["smape"] == pytest.approx(found["smape"], rel=1e-9)


def test_seasonal_last_repeats_the_cycle_that_it_knows():
    assert seasonal_last(np.arange(10.0), 4, 6).tolist() == [6, 7, 8, 9, 6, 7]
    assert seasonal_last(np.arange(4.0), 4, 2).tolist() == [0, 1]
    assert seasonal_last(np.arange(3.0), 4, 2).tolist() == [2, 2]


@pytest.mark.parametrize("value", [0.0, 0.1, 7.0, -3.0])
def test_constant_series_have_neither_mase_nor_owa(tmp_path, value):
    data = short_term(tsf(tmp_path / "a.tsf", [[value] * 20, [value] * 15], frequency="quarterly"))
    assert data.naive["Naive2"]("test") == {"smape": 0}
    found = data.task.final_metrics(
        lambda table: evaluate(last_value(2), data.task, table, {}, {}, batch_size=3), "test"
    )
    assert found == {"smape": 0}
    assert [text.startswith("MASE omits 2 of 2") for text in said(data)] == [True, True]


def test_one_constant_series_is_left_out_of_mase_and_said(tmp_path):
    series = [[5.0] * 20, [1.0, 2, 3, 4, 5, 6, 7, 8, 9]]
    data = short_term(tsf(tmp_path / "a.tsf", series))
    found = data.naive["Naive2"]("test")
    assert found is not None
    assert found["mase"] == pytest.approx(1.5, rel=1e-6)  # errors of 1 and 2 over steps of 1
    assert "MASE omits 1 of 2 test windows whose input is constant or shorter than a season" in data.notices


def test_where_naive2_is_never_wrong_there_is_no_owa(tmp_path):
    data = short_term(tsf(tmp_path / "a.tsf", [[1.0, 2, 3, 4, 4, 4, 4, 4]]), length=2, horizon=2)
    assert data.naive["Naive2"]("test") == {"smape": 0, "mase": 0}


def test_data_that_is_cut_elsewhere_is_other_data(tmp_path):
    prints = set()
    for number, lengths in enumerate([[12, 14], [14, 12], [26]]):
        path = tsf(tmp_path / f"{number}.tsf", numbered(lengths))
        made = [short_term(path), zero_shot(path, path)]
        np.testing.assert_array_equal(made[0].task.buffer[:, 0], np.arange(1, 27))
        prints |= {data.fingerprint for data in made}
    assert len(prints) == 6


HUGE = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1e39, 11.0, 12.0]


def on_side(side: str, bad: object, good: object, **more: Any) -> TaskData:
    """A task that reads ``bad`` on one side, and ``good`` on the other where there are two."""
    if side == "short_term":
        return short_term(bad, **more)
    return zero_shot(*((bad, good) if side == "source" else (good, bad)), **more)


TOO_SHORT = "series `T{}` has {} step(s), horizon is {}. "


@pytest.mark.parametrize(
    ("sides", "series", "more", "match"),
    [
        ("target short_term", [[1.0]], {}, TOO_SHORT.format(0, 1, 2)),
        ("target short_term", [range(30), [1.0, 2.0]], {}, TOO_SHORT.format(1, 2, 2)),
        ("target short_term", [range(30)], {"horizon": 30}, TOO_SHORT.format(0, 30, 30)),
        ("source", [[1.0]], {}, "no series has 3 input, 2 target and 4 held-out steps"),
        ("source", [range(30)], {"horizon": 30}, "Series of at least 93 steps are needed"),
        (
            "source target short_term",
            [range(20), HUGE],
            {},
            "line 6, value 10: 1 value(s) are too large for float32 arithmetic, the first one is 1e+39.",
        ),
        ("source target short_term", [HUGE, range(20)], {}, "line 5, value 10: 1 value(s) are too large"),
        (
            "source target short_term",
            [[*range(9), float("nan"), *range(9)]],
            {},
            "line 5, value 10: 1 value(s) are missing or infinite",
        ),
        (
            "source target short_term",
            [[*range(9), float("nan")]],
            {"missing": "linear"},
            "line 5, value 10: the last value is missing",
        ),
    ],
)
def test_a_bad_series_is_one_clear_error(tmp_path, sides, series, more, match):
    bad = tsf(tmp_path / "bad.tsf", series, missing=True)
    good = tsf(tmp_path / "good.tsf", numbered([100, 120]))
    for side in sides.split():
        with pytest.raises(DataError) as caught:
            on_side(side, bad, good, **more)
        assert match in str(caught.value)
        assert str(bad) in str(caught.value)


def test_a_short_source_series_is_no_error_where_others_train(tmp_path):
    data = zero_shot(tsf(tmp_path / "a.tsf", numbered([30, 1])), tsf(tmp_path / "b.tsf", numbered([5])))
    assert said(data)[0] == "1 of 2 series are too short to train on"


@pytest.mark.parametrize(("protocol", "least"), [("strict", 6), ("published", 4)])
def test_short_term_needs_a_step_on_both_sides_of_a_cut(tmp_path, protocol, least):
    assert (
        short_term(tsf(tmp_path / "a.tsf", numbered([least])), protocol=protocol).task.tables["train"].size
        == 1
    )
    with pytest.raises(
        DataError, match=rf"b\.tsf: no series is long enough.*at least {least} steps are needed"
    ):
        short_term(tsf(tmp_path / "b.tsf", numbered([least - 1])), protocol=protocol)


def test_a_range_that_holds_no_cut_is_refused(tmp_path):
    path = tsf(tmp_path / "a.tsf", numbered([30]))
    with pytest.raises(ConfigError, match=r"task\.cut_range: a range of 0\.4 horizons of 2 step"):
        short_term(path, cut_range=0.4)
    assert short_term(path, cut_range=0.5).task.tables["train"].size == 1


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("no_such_set", "`no_such_set` is neither a known data set nor a file"),
        ("gone.tsf", "gone.tsf: there is no such file"),
        ("gone.csv", "gone.csv"),
        (
            "smap",
            "`smap` is a labeled stream (anomaly), here a collection of single series (zero_shot, "
            "short_term)",
        ),
    ],
)
@pytest.mark.parametrize("side", ["source", "target", "short_term"])
def test_a_collection_that_is_not_there_is_one_clear_error(tmp_path, name, match, side, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = tsf(tmp_path / "good.tsf", numbered([30]))
    with pytest.raises(OfaError) as caught:
        on_side(side, name, good)
    assert match in str(caught.value)


def test_every_task_has_its_preparation():
    assert set(TASKS) == set(task_settings())


def test_prepare_passes_protocol_on(tmp_path):
    path = tsf(tmp_path / "a.tsf", numbered([30]))
    for name, target in (("zero_shot", path), ("short_term", None)):
        experiment = asked(name, path, target)
        made = prepare(experiment.data, experiment.task, protocol="published", batch_size=4)
        assert (made.settings.name, made.task.protocol, made.scaler) == (name, "published", None)


# Real collections


M3_YEARLY = {"train": 3181, "validation": 645, "test": 645}
"""L 9, H 6: 193 of the 645 series have the 27 steps that a training window needs."""


def test_windows_of_m3_yearly(data_root):
    data = zero_shot("m3_yearly", "m3_yearly", length=9, horizon=6)
    collection, season, _ = read_collection("m3_yearly", asked("zero_shot", "m3_yearly", "m3_yearly").data)
    assert season == 1
    assert sum(max(0, n - 9 - 3 * 6 + 1) for n in collection.lengths.tolist()) == M3_YEARLY["train"]
    assert {split: table.size for split, table in data.task.tables.items()} == M3_YEARLY
    assert data.notices[0] == "452 of 645 series are too short to train on"


@pytest.mark.parametrize(
    ("part", "horizon", "length", "smape"), [("yearly", 6, 9, 17.88), ("other", 8, 16, 6.30)]
)
def test_naive_forecasts_of_m3_have_their_published_smape(data_root, part, horizon, length, smape):
    """Makridakis and Hibon (2000), Naive2, which is the last value where there is no season."""
    data = zero_shot(f"m3_{part}", f"m3_{part}", length=length, horizon=horizon)
    found = data.naive["Naive2"]("test")
    assert found is not None
    assert found["smape"] == pytest.approx(smape, abs=5e-3)


@pytest.mark.parametrize(
    ("part", "series", "horizon", "cut_range", "train", "smape", "mase"),
    [
        ("weekly", 359, 13, 10, 42510, 9.161, 2.777),
        pytest.param(
            "yearly", 23000, 6, 1.5, 203576, 16.342, 3.974, marks=pytest.mark.slow
        ),  # 23,000 series to read, 5 s
    ],
)
def test_naive2_of_m4_has_its_published_figures(
    data_root, tmp_path, part, series, horizon, cut_range, train, smape, mase
):
    data = short_term(f"m4_{part}", length=2 * horizon, horizon=horizon, cut_range=cut_range)
    # as our forecasts, and as the competition's own; published with three digits
    entry, own = CATALOG[f"m4_{part}"], tmp_path / "naive2.csv"
    wanted = [
        line
        for _, line in read_lines(locate(entry, role="naive2"))
        if line.startswith(("id", part[0].upper()))
    ]
    own.write_text("\n".join(wanted) + "\n")
    submitted, actual = read_m4_part(own), read_m4_part(locate(entry, role="test"))
    forecasts = dict(zip(submitted.names, submitted.values, strict=True))
    sums = score_forecasts(np.stack([forecasts[name] for name in actual.names]), np.stack(actual.values))
    for found in (data.naive["Naive2"]("test"), data.task.final_metrics(lambda table: sums, "test")):
        assert found == pytest.approx({"smape": smape, "mase": mase, "owa": 1}, abs=5e-4)
    assert [table.size for table in data.task.tables.values()] == [train, series, series]
    assert train == sum(
        min(int(cut_range * horizon), max(0, n - 2 * horizon - 1)) for n in data.labels["lengths"].tolist()
    )


@pytest.mark.slow  # 23,000 series to read, 5 s
@pytest.mark.parametrize(
    ("source", "target", "length", "percent", "train", "validation", "test"),
    [
        ("m3_yearly", "m4_yearly", 9, 100, 3181, 645, 23000),
        ("m4_yearly", "m3_yearly", 12, 100, 235460, 23000, 645),
        ("m4_yearly", "m3_yearly", 12, 10, 2723, 23000, 645),
    ],
)
def test_windows_of_the_transfer_between_m3_and_m4(
    data_root, source, target, length, percent, train, validation, test
):
    data = zero_shot(source, target, length=length, horizon=6, percent=percent)
    assert [table.size for table in data.task.tables.values()] == [train, validation, test]
    collection, _ = load_collection(source)
    spans = [n - 12 for n in collection.lengths.tolist()]  # without test and validation part
    assert train == sum(max(0, (span - length) * percent // 100 - 6 + 1) for span in spans if span > length)


def test_m3_yearly_is_too_short_for_a_tenth(data_root):
    """The published transfer trains on a tenth of each series from M4 only; of M3 Yearly a tenth holds no
    window at all."""
    with pytest.raises(
        DataError, match=r"no series has .*at least 81 steps are needed.*raise data\.percent from 10"
    ):
        zero_shot("m3_yearly", "m3_yearly", length=9, horizon=6, percent=10)

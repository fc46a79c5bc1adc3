"""The window table, gathering and the one order of batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.data.splits import borders
from ofa_jax.errors import DataError
from ofa_jax.windows.batch import gather
from ofa_jax.windows.order import IndexStream
from ofa_jax.windows.table import (
    ALL_CHANNELS,
    PADDING,
    WindowSpec,
    WindowTable,
    lay_end_to_end,
    sliding_windows,
)

ETTH1 = {"train": 8209, "validation": 2785, "test": 2785}
"""Windows per channel at L 336, H 96, counted from the months of protocol §3: 8640 - 432 + 1, then 2880 + 336
- 432 + 1."""


def table_of(*rows: tuple[int, int, int, int, int, int]) -> WindowTable:
    return WindowTable(*(np.array(column, np.int32) for column in zip(*rows, strict=True)))


def test_windows_of_etth1_by_its_split_rule():
    parts = borders(17420, "ett_hour", input_length=336, horizon=96)
    for split, count in ETTH1.items():
        table = sliding_windows(parts[split], input_length=336, horizon=96, channels=7)
        assert table.size == 7 * count


def test_windows_of_etth1_from_the_file(data_root):
    from ofa_jax.config.load import build_experiment
    from ofa_jax.tasks.forecast import prepare

    experiment = build_experiment({"data": {"source": "etth1"}, "task": {"input_length": 336, "horizon": 96}})
    data = prepare(experiment.data, experiment.task)
    assert {split: table.size for split, table in data.task.tables.items()} == {
        split: 7 * count for split, count in ETTH1.items()
    }
    assert (data.season, data.notices[1:]) == (24, ())
    last = data.task.tables["test"].first[-1]
    assert last + 336 + 96 == 20 * 30 * 24


def test_univariate_windows_are_channel_major():
    table = sliding_windows((5, 12), input_length=3, horizon=2, channels=2)
    np.testing.assert_array_equal(table.first, [5, 6, 7, 5, 6, 7])
    np.testing.assert_array_equal(table.channel, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(table.window_id, np.arange(6))
    np.testing.assert_array_equal(table.x_valid, [3] * 6)
    np.testing.assert_array_equal(table.y_valid, [2] * 6)
    assert all(column.dtype == np.int32 for column in table)


def test_windows_of_all_channels_and_wider_steps():
    table = sliding_windows((0, 12), input_length=3, horizon=0, channels=4, univariate=False, step=4)
    np.testing.assert_array_equal(table.first, [0, 4, 8])
    assert set(table.channel) == {ALL_CHANNELS}
    assert table.size == 3


def test_one_window_fits_exactly_and_none_with_one_row_less():
    assert sliding_windows((10, 15), input_length=3, horizon=2, channels=1).size == 1
    assert sliding_windows((10, 14), input_length=3, horizon=2, channels=1).size == 0


def test_frames_lie_end_to_end():
    buffer, first = lay_end_to_end([np.ones((2, 3)), np.full((1, 3), 2.0), np.full((4, 3), 3.0)])
    assert (buffer.shape, buffer.dtype) == ((7, 3), np.float32)
    np.testing.assert_array_equal(first, [0, 2, 3])
    np.testing.assert_array_equal(buffer[first, 0], [1, 2, 3])


def naive(
    buffer: np.ndarray, table: WindowTable, index: np.ndarray, spec: WindowSpec
) -> dict[str, np.ndarray]:
    """Gathering as one would write it down, one value at a time."""
    b, length, horizon = len(index), spec.input_length, spec.horizon
    c = 1 if spec.univariate else buffer.shape[1]
    x, y = np.zeros((b, length, c), np.float32), np.zeros((b, horizon, c), np.float32)
    x_mask, y_mask = np.zeros(x.shape, bool), np.zeros(y.shape, bool)
    label, labelled = np.zeros(b, np.int32), np.zeros(b, bool)
    weight, ids = np.zeros(b, np.float32), np.full(b, PADDING, np.int32)
    for place, row in enumerate(index):
        if row < 0:
            label[place] = table.label[0]  # masked, so any class will do
            continue
        weight[place], ids[place] = 1, table.window_id[row]
        label[place], labelled[place] = table.label[row], table.label[row] >= 0
        channels = [table.channel[row]] if spec.univariate else range(c)
        before = length - table.x_valid[row] if spec.align == "end" else 0
        for position, channel in enumerate(channels):
            for step in range(table.x_valid[row]):
                x[place, before + step, position] = buffer[table.first[row] + step, channel]
                x_mask[place, before + step, position] = True
            for step in range(table.y_valid[row]):
                y[place, step, position] = buffer[table.first[row] + table.x_valid[row] + step, channel]
                y_mask[place, step, position] = True
    if spec.labelled:
        y, y_mask = label, labelled
    return {"x": x, "y": y, "x_mask": x_mask, "y_mask": y_mask, "weight": weight, "window_id": ids}


BUFFER = 1 + np.arange(24, dtype=np.float32).reshape(12, 2)
SPECS = [
    *(WindowSpec(4, 3, univariate=u, align=a) for u in (True, False) for a in ("end", "start")),  # type: ignore[arg-type]
    WindowSpec(4, 3, univariate=False, align="start", labelled=True),
    WindowSpec(1, 0, align="end"),
]


@st.composite
def windows_of(draw: st.DrawFn, spec: WindowSpec) -> tuple[WindowTable, np.ndarray]:
    windows = []
    for number in range(3):
        x_valid, y_valid = draw(st.integers(0, spec.input_length)), draw(st.integers(0, spec.horizon))
        first = draw(st.integers(0, len(BUFFER) - x_valid - y_valid))
        channel = draw(st.integers(0, 1)) if spec.univariate else ALL_CHANNELS
        windows.append((first, channel, x_valid, y_valid, 100 + number, draw(st.integers(-1, 3))))
    return table_of(*windows), np.array(draw(st.lists(st.integers(-1, 2), min_size=4, max_size=4)), np.int32)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gathering_agrees_with_plain_slices(spec):
    compiled = jax.jit(lambda buffer, table, index: gather(buffer, table, index, spec))

    @settings(max_examples=40, deadline=None)
    @given(windows_of(spec))
    def check(case):
        table, index = case
        batch = compiled(BUFFER, table, index)
        for name, wanted in naive(BUFFER, table, index, spec).items():
            np.testing.assert_array_equal(getattr(batch, name), wanted, err_msg=name)

    check()


@pytest.mark.slow
def test_a_short_window_and_a_row_of_padding():
    table = table_of((0, 0, 4, 2, 7, -1), (3, 1, 2, 1, 8, -1))
    batch = gather(
        jnp.arange(20, dtype=jnp.float32).reshape(10, 2),
        table,
        jnp.array([1, PADDING, 0], jnp.int32),
        WindowSpec(4, 2),
    )
    np.testing.assert_array_equal(batch.x[0, :, 0], [0, 0, 7, 9])
    np.testing.assert_array_equal(batch.y[0, :, 0], [11, 0])
    np.testing.assert_array_equal(batch.window_id, [8, PADDING, 7])
    np.testing.assert_array_equal(batch.weight, [1, 0, 1])
    assert not batch.x_mask[1].any()
    assert not batch.y_mask[1].any()


@settings(max_examples=25, deadline=None)
@given(windows=st.integers(1, 40), batch_size=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_every_epoch_holds_every_window_once(windows, batch_size, seed):
    stream = IndexStream(windows, batch_size, seed=seed)
    assert stream.steps_per_epoch == -(-windows // batch_size)
    for epoch in range(3):
        first = epoch * stream.steps_per_epoch
        index = stream.batches(first, first + stream.steps_per_epoch)
        assert index.shape == (stream.steps_per_epoch, batch_size)
        real = index[index != PADDING]
        np.testing.assert_array_equal(np.sort(real), np.arange(windows))
        assert (index[:-1] != PADDING).all()
        np.testing.assert_array_equal(
            index[-1] == PADDING, np.arange(batch_size) >= len(real) - batch_size * (len(index) - 1)
        )


def test_epochs_and_seeds_have_orders_of_their_own():
    stream = IndexStream(50, 10, seed=3)
    orders = [tuple(stream.batches(5 * epoch, 5 * epoch + 5).ravel()) for epoch in range(4)]
    orders += [tuple(IndexStream(50, 10, seed=seed).batches(0, 5).ravel()) for seed in (0, 4)]
    assert len(set(orders)) == len(orders)
    assert tuple(range(50)) not in orders


def test_batches_made_ready_are_the_same():
    plain, ahead = IndexStream(37, 8, seed=1), IndexStream(37, 8, seed=1)
    ahead.prepare(5, 9)
    for start, stop in ((5, 9), (5, 8), (0, 4), (5, 9)):  # what was prepared, and what was not
        np.testing.assert_array_equal(ahead.batches(start, stop), plain.batches(start, stop))


def test_any_stretch_of_the_stream_is_the_same_as_reading_on():
    whole = IndexStream(37, 8, seed=1).batches(0, 20)
    fresh = IndexStream(37, 8, seed=1)
    for start, stop in [(13, 17), (0, 3), (4, 6), (19, 20), (5, 5)]:
        np.testing.assert_array_equal(fresh.batches(start, stop), whole[start:stop])


def test_the_size_of_batches_does_not_change_the_order():
    one, other = IndexStream(30, 7, seed=5), IndexStream(30, 4, seed=5)
    for epoch in range(2):
        orders = [
            stream.batches(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch).ravel()
            for stream in (one, other)
        ]
        np.testing.assert_array_equal(orders[0][orders[0] >= 0], orders[1][orders[1] >= 0])


def test_without_a_seed_the_order_is_that_of_the_table():
    index = IndexStream(7, 3, seed=None).batches(0, 6)
    np.testing.assert_array_equal(index[:3].ravel(), [0, 1, 2, 3, 4, 5, 6, PADDING, PADDING])
    np.testing.assert_array_equal(index[:3], index[3:])


FIRST_BATCH = [35170, 54160, 13707, 20309, 3081, 28381, 46566, 47820]


def test_the_order_is_the_one_that_runs_were_trained_in():
    found = IndexStream(57463, 8, seed=2021).batches(0, 1)[0].tolist()
    assert found == FIRST_BATCH, (
        f"the first batch is {found}: grain shuffles differently, so runs cannot be resumed or repeated "
        "to the bit; say so in CHANGELOG.md, then write the new numbers here"
    )


def test_nothing_to_batch_is_refused():
    with pytest.raises(DataError, match="make no batch"):
        IndexStream(0, 4, seed=0)


@settings(max_examples=15, deadline=None)
@given(windows=st.integers(1, 40), batch_size=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_a_last_batch_that_is_not_full_is_left_out_on_request(windows, batch_size, seed):
    if windows < batch_size:
        with pytest.raises(
            DataError, match=rf"{windows} windows in batches of {batch_size} make no batch.*train\.batch_size"
        ):
            IndexStream(windows, batch_size, seed=seed, drop_last=True)
        return
    stream, whole = (IndexStream(windows, batch_size, seed=seed, drop_last=drop) for drop in (True, False))
    steps = windows // batch_size
    assert (stream.steps_per_epoch, stream.windows, whole.windows) == (steps, steps * batch_size, windows)
    for epoch in range(3):
        index = stream.batches(epoch * steps, (epoch + 1) * steps)
        np.testing.assert_array_equal(
            index, whole.batches(epoch * whole.steps_per_epoch, epoch * whole.steps_per_epoch + steps)
        )
        assert (index != PADDING).all()
        assert len(set(index.ravel().tolist())) == steps * batch_size


def test_other_windows_are_left_out_in_other_epochs():
    stream = IndexStream(10, 4, seed=0, drop_last=True)
    left_out = [
        frozenset(range(10)) - set(stream.batches(2 * epoch, 2 * epoch + 2).ravel().tolist())
        for epoch in range(20)
    ]
    assert {len(missing) for missing in left_out} == {2}
    assert frozenset.union(*left_out) == frozenset(range(10))


@st.composite
def grouped(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=15))
    return np.concatenate([[0], np.cumsum(sizes)]), draw(st.integers(1, 20))


def members(stream: IndexStream, borders: np.ndarray, epoch: int) -> np.ndarray:
    """The row that each group shows in an epoch, ``[groups]``."""
    index = stream.batches(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch).ravel()
    rows = np.sort(index[index != PADDING])
    np.testing.assert_array_equal(
        np.searchsorted(borders, rows, side="right") - 1, np.arange(len(borders) - 1)
    )
    return rows


@settings(max_examples=15, deadline=None)
@given(case=grouped(), other=st.integers(1, 20), seed=st.one_of(st.none(), st.integers(0, 2**32 - 1)))
def test_every_epoch_shows_one_row_of_each_group_whatever_the_batch_size(case, other, seed):
    borders, batch_size = case
    streams = [IndexStream(borders[-1], size, seed=seed, groups=borders) for size in (batch_size, other)]
    assert streams[0].windows == len(borders) - 1
    assert streams[0].steps_per_epoch == -(-(len(borders) - 1) // batch_size)
    for epoch in (0, 1, 5):
        np.testing.assert_array_equal(*(members(stream, borders, epoch) for stream in streams))


def test_a_groups_row_depends_on_seed_epoch_and_group_alone():
    def drawn(borders: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        return members(IndexStream(borders[-1], 4, seed=seed, groups=borders), borders, epoch)

    borders = np.arange(0, 70, 7)
    here = drawn(borders, 3, 2)
    np.testing.assert_array_equal(drawn(borders[:5], 3, 2), here[:4])  # other groups after it change nothing
    everything = [tuple(drawn(borders, seed, epoch)) for seed in (3, 4) for epoch in range(4)]
    assert len(set(everything)) == len(everything)


def test_all_rows_of_a_group_come_up_equally_often():
    borders = np.array([0, 1, 4, 9])
    stream = IndexStream(
        9, 3, seed=None, groups=borders
    )  # groups in their own order: to shuffle three is slow
    counts = np.bincount(stream.batches(0, 3000).ravel(), minlength=9)
    assert counts[0] == 3000
    # a fair draw: 3000/3 and 3000/5 with a standard deviation of 26 and 22; 4 of them
    assert np.abs(counts[1:4] - 1000).max() < 104
    assert np.abs(counts[4:] - 600).max() < 88
    assert counts.sum() == 9000


def test_any_stretch_of_a_grouped_stream_is_the_same_as_reading_on():
    borders = np.cumsum([0, 3, 1, 5, 2, 4, 6, 2])
    whole = IndexStream(borders[-1], 3, seed=1, groups=borders).batches(0, 20)
    fresh = IndexStream(borders[-1], 3, seed=1, groups=borders)
    for start, stop in [(13, 17), (0, 3), (2, 4), (19, 20), (5, 5), (7, 13)]:
        np.testing.assert_array_equal(fresh.batches(start, stop), whole[start:stop])


FIRST_MEMBERS = [4, 1, 1, 4, 0, 3, 4, 3, 0, 2]


def test_the_draw_is_the_one_that_runs_were_trained_with():
    stream = IndexStream(70, 5, seed=2021, groups=np.arange(0, 77, 7))
    found = (np.sort(stream.batches(2, 4).ravel()) % 7).tolist()
    assert found == FIRST_MEMBERS, (
        f"the second epoch draws {found}: runs begun before cannot be resumed; say so in CHANGELOG.md"
    )


def test_groups_can_lose_a_batch_too():
    borders = np.arange(0, 22, 2)
    stream = IndexStream(20, 4, seed=0, drop_last=True, groups=borders)
    assert (stream.steps_per_epoch, stream.windows) == (2, 8)
    assert (stream.batches(0, 10) != PADDING).all()
    with pytest.raises(DataError, match="10 windows in batches of 11 make no batch"):
        IndexStream(20, 11, seed=0, drop_last=True, groups=borders)

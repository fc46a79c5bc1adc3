"""Frames as panels: what is read, what is refused, and that results are frames of the same kind."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.errors import DataError
from ofa_jax.estimators.panel import Columns
from ofa_jax.estimators.reading import read_panel, step_named
from tests.estimators.conftest import long_frame

COLUMNS = Columns()


def ahead(panel, horizon=2):
    return panel.to_frame(np.repeat(np.arange(panel.n), horizon), panel.times_after(horizon).ravel(), {})


def test_series_keep_the_order_of_their_first_rows_and_rows_are_sorted_by_time():
    frame = long_frame()
    panel = read_panel(frame, COLUMNS)
    assert panel.ids.tolist() == ["b", "a", "c"]
    assert panel.lengths.tolist() == [90, 40, 120]
    assert (panel.frequency, panel.season) == ("h", 24)
    shuffled = pd.concat([frame[:1], frame[1:].sample(frac=1, random_state=1)])
    again = read_panel(shuffled, COLUMNS)
    own = dict(zip(again.ids, np.split(again.values, again.first[1:-1]), strict=True))
    np.testing.assert_array_equal(own["c"], frame.y[frame.unique_id == "c"])


def test_windows_end_before_their_cut_and_do_not_reach_into_other_series():
    panel = read_panel(long_frame((5, 4)), COLUMNS)
    before = panel.before(np.array([1, 0]), np.array([2, 5]), 3)
    np.testing.assert_array_equal(before[0], [np.nan, *panel.values[5:7]])
    np.testing.assert_array_equal(before[1], panel.values[2:5])
    np.testing.assert_array_equal(panel.after(np.array([1]), np.array([3]), 2), [[panel.values[8], np.nan]])
    cut = panel.until(np.array([3, 0]))
    assert (cut.ids.tolist(), cut.lengths.tolist()) == (["b"], [3])
    assert panel.last(2).values.tolist() == [*panel.values[3:5], *panel.values[7:9]]


def test_the_change_over_a_season_by_hand():
    panel = read_panel(long_frame((40, 20)), COLUMNS)
    one, two = np.split(panel.values, [40])
    found = panel.seasonal_change(np.array([30, 20]))
    assert found[0] == pytest.approx(np.abs(one[24:30] - one[:6]).mean())
    assert found[1] == pytest.approx(np.abs(np.diff(two)).mean())  # shorter than a day


@pytest.mark.parametrize(
    ("freq", "first", "expected"),
    [
        ("ME", "2024-01-31", ["2024-04-30", "2024-05-31"]),
        ("B", "2024-03-06", ["2024-03-11", "2024-03-12"]),
        ("QS-OCT", "2023-10-01", ["2024-07-01", "2024-10-01"]),
        ("W-SUN", "2024-03-03", ["2024-03-24", "2024-03-31"]),
        ("15min", "2024-03-03 23:15", ["2024-03-04 00:00", "2024-03-04 00:15"]),
    ],
)
def test_times_go_on_by_the_calendar(freq, first, expected):
    times = pd.date_range(first, periods=3, freq=freq)
    frame = pd.DataFrame({"ds": times, "y": [1.0, 2.0, 3.0]})
    for given_freq in (freq, None) if freq != "B" else (freq,):
        found = ahead(read_panel(frame, COLUMNS, given_freq))
        assert found.ds.tolist() == [pd.Timestamp(text) for text in expected]
        assert found.unique_id.tolist() == ["0", "0"]


def test_hours_go_on_over_a_change_of_clocks_in_the_zone_of_the_frame():
    times = pd.date_range("2024-03-30 20:00", periods=5, freq="h", tz="Europe/Berlin")
    found = ahead(read_panel(pd.DataFrame({"ds": times, "y": 1.0}), COLUMNS), 3)
    assert found.ds.dtype == times.dtype
    assert found.ds.dt.hour.tolist() == [1, 3, 4]
    days = pd.date_range("2024-03-28", periods=3, freq="D", tz="Europe/Berlin")
    found = ahead(read_panel(pd.DataFrame({"ds": days, "y": 1.0}), COLUMNS), 3)
    assert found.ds.tolist() == list(pd.date_range("2024-03-31", periods=3, freq="D", tz="Europe/Berlin"))


def test_series_of_several_steps_go_on_by_their_own():
    hourly, monthly = long_frame((5,)), long_frame((6, 6), freq="MS")[6:]
    found = ahead(read_panel(pd.concat([hourly, monthly]), COLUMNS), 1)
    assert found.ds.tolist() == [pd.Timestamp("2024-03-01 05:00"), pd.Timestamp("2024-09-01")]


@pytest.mark.parametrize("kind", ["int64", "category", "str"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_types_of_pandas_frames_are_kept(kind, unit):
    frame = long_frame()
    frame["unique_id"] = frame["unique_id"].map({"b": 7, "a": 3, "c": 5}).astype(kind)
    frame["ds"] = frame["ds"].astype(f"datetime64[{unit}]")
    found = ahead(read_panel(frame, COLUMNS))
    assert found.dtypes.to_dict() == frame.dtypes[["unique_id", "ds"]].to_dict()
    assert found.unique_id.astype(int).tolist() == [7, 7, 3, 3, 5, 5]
    assert isinstance(found.index, pd.RangeIndex)
    merged = frame.merge(found, how="outer", on=["unique_id", "ds"])
    assert len(merged) == len(frame) + len(found)


@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_polars_frames_come_back_as_polars_frames(zone):
    frame = pl.from_pandas(long_frame()).with_columns(
        pl.col("ds").cast(pl.Datetime("ms")).dt.replace_time_zone(zone),
        pl.col("unique_id").cast(pl.Categorical),
    )
    found = ahead(read_panel(frame, COLUMNS))
    assert isinstance(found, pl.DataFrame)
    assert found.schema == frame.select("unique_id", "ds").schema
    assert found["unique_id"].to_list() == ["b", "b", "a", "a", "c", "c"]
    joined = pl.concat([frame.select("unique_id", "ds"), found])
    assert joined.unique().height == frame.height + 6


def test_dates_of_polars_stay_dates():
    days = pd.date_range("2024-02-27", periods=3).date.tolist()
    found = ahead(read_panel(pl.DataFrame({"ds": days, "y": [1.0, 2.0, 3.0]}), COLUMNS), 1)
    assert found["ds"].to_list() == [pd.Timestamp("2024-03-01").date()]


def test_integer_times_count_on():
    frame = pd.DataFrame({"unique_id": ["x"] * 4 + ["y"] * 3, "ds": [1, 2, 3, 4, 10, 11, 12], "y": 1.0})
    found = ahead(read_panel(frame, COLUMNS), 1)
    assert found.ds.tolist() == [5, 13]
    assert found.ds.dtype == np.int64
    frame["ds"] *= 5
    assert ahead(read_panel(frame, COLUMNS, 5), 1).ds.tolist() == [25, 65]


def test_a_wide_frame_has_a_series_per_column_and_text_is_read_as_iso():
    times = ["2024-01-01", "2024-01-02", "2024-01-03"]
    wide = pd.DataFrame({"ds": times, "north": [1, 2, 3], "south": [4.0, np.nan, 6]})
    panel = read_panel(wide, COLUMNS)
    assert panel.ids.tolist() == ["north", "south"]
    np.testing.assert_array_equal(panel.values, [1, 2, 3, 4, np.nan, 6])
    found = ahead(panel, 1)
    assert found.unique_id.tolist() == ["north", "south"]
    assert found.ds.tolist() == [pd.Timestamp("2024-01-04")] * 2
    indexed = wide.set_index(pd.DatetimeIndex(wide.pop("ds")))
    np.testing.assert_array_equal(read_panel(indexed, COLUMNS).values, panel.values)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_calendar_step_is_followed_by_itself(data):
    alias = data.draw(st.sampled_from(["h", "15min", "D", "B", "W-WED", "MS", "ME", "QE-DEC", "YS-JAN"]))
    begin = data.draw(st.datetimes(pd.Timestamp("1990-01-01"), pd.Timestamp("2030-01-01")))
    times = pd.date_range(pd.Timestamp(begin).floor("15min"), periods=14, freq=alias)
    frame = pd.DataFrame({"ds": times[:8], "y": np.arange(8.0)})
    found = ahead(read_panel(frame, COLUMNS, alias), 6)
    assert found.ds.tolist() == times[8:].tolist()


@pytest.mark.parametrize(
    ("name", "step"),
    [("H", "h"), ("1h", "h"), ("30m", "30min"), ("1d", "D"), ("M", "ME"), ("1mo", "MS"), ("W", "W")],
)
def test_frequencies_of_older_pandas_and_of_polars_are_known(name, step):
    assert step_named(name).alias == step


def test_wrong_frames_are_refused_with_one_sentence():
    frame = long_frame((5, 4))
    cases = {
        "there is no column `ds`, but `unique_id`, `when`, `y`": frame.rename(columns={"ds": "when"}),
        "there is `unique_id`, but no column `y`": frame.rename(columns={"y": "value"}),
        "further columns, `price`": frame.assign(price=1),
        "`unique_id` is missing in row 3": frame.assign(unique_id=frame.unique_id.where(frame.index != 2)),
        "`ds` is missing in row 2": frame.assign(ds=frame.ds.where(frame.index != 1)),
        "has the time 2024-03-01T01:00.* twice": pd.concat([frame, frame[1:2]]),
        r"03:00.* follows .*01:00.* not one step of h": frame.drop(index=2),
        "has '3,5', which is no number": frame.assign(y=["3,5"] * 9),
        "has '01.02.2024', which is no date": frame.assign(ds="01.02.2024"),
        "'a' has no value": frame.assign(y=frame.y.where(frame.unique_id == "b")),
        "'b' has the value inf": frame.assign(y=np.inf),
        "'b' has the value 1e\\+20": frame.assign(y=1e20),
        "there are no rows": frame[:0],
        "`y` has complex numbers": frame.assign(y=1j),
        "numbers that are not whole": frame.assign(ds=np.arange(9) + 0.5),
        "`unique_id` is in the index": frame.set_index("unique_id"),
        "no series has three rows": frame.iloc[[0, 1, 5, 6]],
        "columns have the same name: `y`": pd.concat([frame, frame[["y"]]], axis=1),
        "the data are a list": [1, 2],
    }
    for text, wrong in cases.items():
        with pytest.raises(DataError, match=text):
            read_panel(wrong, COLUMNS)
    for freq, text in {
        "D": "not one step of D",
        1: "times are dates, but freq is 1",
        "fortnight": "not a frequency that is known",
        0: "freq is 0",
        2.5: "freq is 2.5",
    }.items():
        with pytest.raises(DataError, match=text):
            read_panel(frame, COLUMNS, freq)

"""Frames as panels: what is read, what is refused, and that results are frames of the same kind."""

from __future__ import annotations

import re

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
        "has '3,5' in row 1, which is no number": frame.assign(y=["3,5"] * 9),
        "`ds`, row 1: '01.02.2024' can be read day first or month first": frame.assign(ds="01.02.2024"),
        "`ds`, row 1: 'soon' is not a timestamp": frame.assign(ds="soon"),
        "`ds` has numbers as text, such as '1'": frame.assign(ds="1"),
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


def monthly(times: list[str], **columns: list) -> pd.DataFrame:
    return pd.DataFrame({"ds": times, "y": range(len(times)), **columns})


@pytest.mark.parametrize(
    ("times", "expected", "warned"),
    [
        (["1991 Jul", "1991 Aug", "1991 Sep"], "1991-10-01", None),
        (["Jan 1 2000", "Feb 1 2000", "Mar 1 2000"], "2000-04-01", None),
        (["2000Q1", "2000Q2", "2000Q3"], "2000-10-01", None),
        (["17-Sep-03", "18-Sep-03", "19-Sep-03"], "2003-09-20", "two-digit years"),
        (["30/01/2024", "31/01/2024", "01/02/2024"], "2024-02-02", None),
        (["01/10/2024", "01/11/2024", "01/12/2024", "01/01/2025"], "2025-02-01", "is read as %d/%m/%Y"),
    ],
)
def test_dates_in_text_are_read_as_those_of_files(times, expected, warned, recwarn):
    found = ahead(read_panel(monthly(times), COLUMNS), 1)
    assert found.ds.tolist() == [pd.Timestamp(expected)]
    messages = [str(one.message) for one in recwarn if "`ds`" in str(one.message)]
    assert len(messages) == (warned is not None)
    assert all(warned in message for message in messages)


def test_whole_numbers_that_are_dates_are_no_count_of_rows():
    for times, how in {
        (20240130, 20240131, 20240201): "format='%Y%m%d'",
        (202411, 202412, 202501): "format='%Y%m'",
        (1700000000, 1700003600, 1700007200): "unit='s'",
    }.items():
        with pytest.raises(DataError, match=f"which are .*pd.to_datetime.df.'ds'., {how}"):
            read_panel(monthly(list(times)), COLUMNS)
    assert read_panel(monthly([2001, 2002, 2003]), COLUMNS).times.tolist() == [2001, 2002, 2003]


def test_advice_about_columns_can_be_followed():
    stocks = pd.DataFrame(
        {
            "symbol": ["A"] * 4 + ["B"] * 4,
            "date": [*pd.date_range("2024-01-01", periods=4)] * 2,
            "price": np.arange(8.0) ** 2,
        }
    )
    with pytest.raises(DataError, match="which may be time_col='date'"):
        read_panel(stocks, COLUMNS)
    with pytest.raises(DataError, match="give id_col='symbol' and target_col='price'"):
        read_panel(stocks, Columns(time="date"))
    assert read_panel(stocks, Columns("symbol", "date", "price")).ids.tolist() == ["A", "B"]
    weather = stocks[:4].rename(columns={"date": "ds", "symbol": "station"})
    with pytest.raises(DataError, match=r"'A', which is no number.*df\.drop\(columns=.'station'"):
        read_panel(weather, COLUMNS)
    assert read_panel(weather.drop(columns=["station"]), COLUMNS).ids.tolist() == ["price"]
    gaps = weather.assign(station=["1.5", "nil", "2.5", "3"])
    with pytest.raises(DataError, match=r"pd\.to_numeric\(df.'station'., errors='coerce'"):
        read_panel(gaps, COLUMNS)
    gaps["station"] = pd.to_numeric(gaps["station"], errors="coerce")
    assert np.isnan(read_panel(gaps, COLUMNS).values).sum() == 1


def test_a_counter_is_no_series_of_a_wide_frame():
    times, values = pd.date_range("2024-01-01", periods=12), np.random.default_rng(0).normal(size=12)
    frame = pd.DataFrame({"ds": times, "Unnamed: 0": range(12), "y1": values})
    with pytest.raises(DataError, match="the column `Unnamed: 0` is a counter, no series"):
        read_panel(frame[::-1], COLUMNS)
    assert read_panel(frame.drop(columns="Unnamed: 0"), COLUMNS).n == 1


def test_missing_rows_are_filled_as_the_error_says():
    times = pd.date_range("2024-01-01", periods=9, freq="B").astype(str)
    frame = pd.DataFrame({"date": times, "a": np.arange(9.0) ** 2}).drop(index=6)
    with pytest.raises(
        DataError, match=re.escape("df.set_index(pd.to_datetime(df.pop('date'))).asfreq('B')")
    ):
        read_panel(frame, Columns(time="date"))
    filled = frame.set_index(pd.to_datetime(frame.pop("date"))).asfreq("B").reset_index()
    panel = read_panel(filled, Columns(time="date"))
    np.testing.assert_array_equal(panel.values, [0, 1, 4, 9, 16, 25, np.nan, 49, 64])
    off = [*pd.date_range("2024-01-01", periods=8, freq="MS"), pd.Timestamp("2024-08-20")]
    with pytest.raises(
        DataError, match=r"which is not one step of MS \(1 such rows in all\)\. Leave out or correct"
    ):
        read_panel(pd.DataFrame({"ds": off, "y": range(9)}), COLUMNS)

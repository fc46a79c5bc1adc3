"""Columns of times: the forms of real tables are read, and written back as they were."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ofa_jax.data.columns import no_series
from ofa_jax.data.dates import looks_like_date
from ofa_jax.data.frames import Frame, read_frame
from ofa_jax.data.seasons import season_of
from ofa_jax.data.timestamps import parse_times
from ofa_jax.errors import DataError
from ofa_jax.tasks.forecast import time_index

REAL = Path(os.environ.get("OFA_JAX_DATA", ""), "real_files")
needs_data = pytest.mark.skipif("OFA_JAX_DATA" not in os.environ, reason="OFA_JAX_DATA is not set")


def frame_of(cells: Any, **options: Any) -> Frame:
    table = pd.DataFrame({"when": cells, "a": np.arange(len(cells), dtype=float)})
    return read_frame(table, timestamp_column="when", **options)


def refused(cells: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        frame_of(cells, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("form", "step"),
    [
        *((form, "D") for form in ("%d-%b-%Y", "%d-%b-%y", "%b %d %Y", "%b %d, %Y", "%B %d, %Y", "%d %B %Y")),
        *((form, "D") for form in ("%m/%d/%y", "%d/%m/%y", "%d.%m.%y", "%y/%m/%d", "%a, %d %b %Y", "%Y%m%d")),
        *((form, "h") for form in ("%d.%m.%Y %H:%M", "%m/%d/%Y %I:%M %p", "%d-%b-%y %H:%M:%S", "%Y%m%d%H")),
        *((form, "MS") for form in ("%Y %b", "%b %Y", "%B %Y", "%b-%y", "%m/%Y", "%Y%m", "%Y-%m", "%Y/%m")),
        ("%GW%V", "W-MON"),
        ("%G-W%V", "W-MON"),
        ("%Y", "YS-JAN"),
    ],
)
def test_dates_of_real_tables_are_read(form, step):
    index = pd.date_range("2019-05-01", periods=80 if step != "h" else 600, freq=step)
    frame = frame_of(index.strftime(form))
    np.testing.assert_array_equal(frame.timestamps, index.to_numpy())
    assert frame.frequency == step
    assert looks_like_date(index.strftime(form)[0]) == (form not in ("%Y%m%d", "%Y%m%d%H", "%Y%m", "%Y"))
    assert any("two-digit years" in text for text in frame.notices) == ("%y" in form)


@pytest.mark.parametrize("write", ["{0}Q{1}", "{0}-Q{1}", "{0} q{1}", "Q{1} {0}"])
def test_quarters_are_read(write):
    cells = [write.format(year, quarter) for year in (2020, 2021) for quarter in (1, 2, 3, 4)]
    frame = frame_of(cells)
    np.testing.assert_array_equal(
        frame.timestamps, pd.date_range("2020-01-01", periods=8, freq="QS").to_numpy()
    )
    assert looks_like_date(cells[0])


@pytest.mark.parametrize(
    "text", ["now", "today", "May", "5 May", "load", "1.5", "20240101", "7", "1.2.3.4", "W01", ""]
)
def test_what_is_no_date_does_not_look_like_one(text):
    assert not looks_like_date(text)


@pytest.mark.parametrize(
    ("begin", "size", "step", "words"),
    [
        (1_700_000_000, 3600, "h", "seconds"),
        (1_700_000_000_000, 60_000, "min", "milliseconds"),
        (1_700_000_000_000_000, 3_600_000_000, "h", "microseconds"),
    ],
)
def test_numbers_since_1970_are_read_and_written_back(begin, size, step, words):
    cells = begin + size * np.arange(40)
    frame = frame_of(cells[:35])
    assert frame.frequency == step
    assert words in frame.notices[-1]
    np.testing.assert_array_equal(time_index(frame, 5), cells[35:])


def test_seconds_that_could_be_a_date_of_another_age():
    assert str(frame_of([1611122400]).timestamps[0])[:16] == "2021-01-20T06:00"  # not 24 December 1611, 0:00


def test_numbers_that_write_dates_are_written_back():
    for form, step in (("%Y%m%d%H", "h"), ("%Y%m%d", "B"), ("%Y%m", "MS"), ("%Y", "YS")):
        index = pd.date_range("2021-12-20", periods=40, freq=step)
        numbers = index.strftime(form).astype(int)
        for cells in (numbers[:30], index[:30].strftime(form), numbers[:30].astype(float)):
            np.testing.assert_array_equal(time_index(frame_of(cells), 10), numbers[30:])
    assert "row 3: '20240230' is not a timestamp" in refused(
        [20240228 + day for day in range(3)] + [20240301] * 20
    )


def test_a_counter_is_continued_and_its_step_is_checked():
    frame = frame_of([10, 15, 20, 25])
    assert frame.timestamps is None
    assert "counter" in frame.notices[-1]
    assert time_index(frame).tolist() == [10, 15, 20, 25]
    assert time_index(frame, 2).tolist() == [30, 35]
    assert time_index(frame, 2).name == "when"
    message = refused([1, 2, 3, 5, 6])
    assert "row 4: the step is irregular: 5 follows 3, a step of 2; expected 4" in message
    counted = frame_of([1, 2, 3, 5, 6], timestamps="as_is")
    assert (time_index(counted, 2).tolist(), time_index(counted, 2).name) == ([1, 2], "step")
    assert time_index(frame_of([7, 7, 7], timestamps="as_is"), 2).tolist() == [1, 2]
    assert frame_of([1, 2, 3], frequency="h").frequency == "h"


def test_excel_days_are_read_where_a_setting_says_so():
    frame = frame_of([43831 + hour / 24 for hour in range(40)], timestamp_format="excel")
    np.testing.assert_array_equal(
        frame.timestamps, pd.date_range("2020-01-01", periods=40, freq="h").to_numpy()
    )
    assert "set `timestamp_format: excel`" in frame_of([43831, 43832, 43833]).notices[-1]


@pytest.mark.parametrize(
    ("step", "decimals"),
    [("h", 2), ("h", 3), ("h", 5), ("15min", 3), ("15min", 5), ("7min", 4), ("90s", 5), ("30s", 5), ("s", 6)],
)
def test_excel_days_of_few_decimals_are_on_their_grid(step, decimals):
    index = pd.date_range("2024-02-28 00:00", periods=300, freq=step)
    days = (index - pd.Timestamp("1899-12-30")) / pd.Timedelta(days=1)
    for cells in (days.to_numpy().round(decimals), [f"{day:.{decimals}f}" for day in days]):
        frame = frame_of(cells, timestamp_format="excel")
        np.testing.assert_array_equal(frame.timestamps, index.to_numpy())
        assert "they are read to the nearest" in frame.notices[-1]
    assert "set `timestamp_format: excel`" in refused(cells)
    assert "nearest" not in frame_of(days, timestamp_format="excel").notices[-1]
    added = np.cumsum([days[0], *[np.median(np.diff(days))] * 299])  # off by some microseconds and more
    np.testing.assert_array_equal(frame_of(added, timestamp_format="excel").timestamps, index.to_numpy())
    gap = [*cells[:200], *cells[201:]]
    assert f"expected {index[200]}" in refused(gap, timestamp_format="excel")


def test_a_format_decides_what_is_ambiguous():
    cells = ["01/02/2024", "02/02/2024", "03/02/2024"]
    assert 'set `timestamp_format: "%d/%m/%Y"` or `timestamp_format: "%m/%d/%Y"`' in refused(
        ["01/01/2024", "02/01/2024", "03/01/2024"]
    )
    assert frame_of(cells, timestamp_format="%d/%m/%Y").frequency == "D"
    assert frame_of(cells, timestamp_format="%m/%d/%Y").frequency == "M-2"
    assert "'01/02/2024' is not a timestamp" in refused(cells, timestamp_format="%Y")
    assert "cannot be used" in refused(cells, timestamp_format="%Q")
    zoned = frame_of([f"{cell} 05:00 +0100" for cell in cells], timestamp_format="%d/%m/%Y %H:%M %z")
    assert str(zoned.timestamps[0])[:16] == "2024-02-01T04:00"


def test_the_models_step_decides_between_readings():
    cells = ["01/02/2024", "02/02/2024", "03/02/2024"]
    assert "day first or month first" in refused(cells)
    for expected, last in (("D", "2024-02-03"), ("M-2", "2024-03-02")):
        frame = frame_of(cells, expected=expected)
        assert str(frame.timestamps[-1])[:10] == last
        assert "is read as" in frame.notices[-1]


def test_the_order_of_rows_decides_between_readings():
    days = pd.to_datetime(["2024-01-02", "2024-01-05", "2024-01-11", "2024-02-01", "2024-03-04"])
    for form in ("%d/%m/%Y", "%m/%d/%Y"):
        frame = frame_of(days.strftime(form), timestamps="as_is")
        np.testing.assert_array_equal(frame.timestamps, days.to_numpy())
        assert form in frame.notices[-1]


def test_newest_first_is_put_in_order_and_said():
    days = pd.date_range("2024-01-01", periods=6, freq="D")
    table = pd.DataFrame({"date": days, "a": [1, 2, np.nan, 4, 5, 6.0]})
    turned = read_frame(table.iloc[::-1], missing="ffill")
    np.testing.assert_array_equal(turned.values[:, 0], [1, 2, 2, 4, 5, 6])
    np.testing.assert_array_equal(turned.timestamps, days.to_numpy())
    assert "newest row comes first" in turned.notices[-1]
    with pytest.raises(DataError, match="column `a`, row 4: 1 value"):
        read_frame(table.iloc[::-1])
    with pytest.raises(DataError, match=r"row 1: the step is irregular: 2024-01-06 .* follows 2024-01-04"):
        read_frame(table.drop(index=4).iloc[::-1].assign(a=1.0).reset_index(drop=True).iloc[:5])


def test_daily_data_in_a_time_zone_cross_a_change_of_clocks(tmp_path):
    index = pd.date_range("2024-02-01", periods=80, freq="D", tz="America/New_York", unit="s")
    table = pd.DataFrame({"day": index[:60], "a": np.arange(60.0)})
    table.to_csv(tmp_path / "x.csv", index=False)
    table.to_parquet(tmp_path / "x.parquet")
    for source in (table, tmp_path / "x.parquet", tmp_path / "x.csv"):
        frame = read_frame(source, timestamp_column="day")
        assert frame.frequency == "D"
        ahead = time_index(frame, 20)
        assert ahead.tolist() == index[60:].tolist()
        assert ahead.name == "day"
        assert str(ahead.dtype.tz) == "America/New_York"
    assert time_index(read_frame(table), 1).dtype == index.dtype
    assert "change as in America/New_York" in frame.notices[-1]


def test_stock_days_in_new_york_are_business_days_of_season_5():
    index = pd.date_range("2023-01-02", periods=300, freq="B", tz="America/New_York")
    frame = frame_of(index[:280])
    assert frame.frequency == "B"
    assert season_of(frame.frequency) == 5
    assert time_index(frame, 20).equals(index[280:].rename("when"))


def test_hours_in_a_time_zone_stay_hours(tmp_path):
    index = pd.date_range("2024-10-26", periods=60, freq="h", tz="Europe/Berlin")
    text = pd.Series(index[:40].astype(str))
    for cells in (index[:40], text):
        frame = frame_of(cells)
        assert frame.frequency == "h"
        np.testing.assert_array_equal(time_index(frame, 20).tz_convert("UTC"), index[40:].tz_convert("UTC"))
    errors = refused(index[:40].delete(30))
    assert "2024-10-27 06:00:00+01:00 follows 2024-10-27 04:00:00+01:00" in errors


def test_a_change_of_clocks_in_times_without_their_zone_is_named():
    days = pd.date_range("2024-03-20", periods=20, freq="D", tz="Europe/Berlin").tz_convert("UTC")
    for cells in (days + pd.Timedelta(hours=6), days.tz_localize(None)):
        assert "row 13: the step is irregular" in refused(cells)
        assert "write local times with their offset from UTC" in refused(cells)
    assert "change of clocks" not in refused(pd.date_range("2024-03-20", periods=9, freq="D").delete(5))
    assert "change of clocks" not in refused([1, 2, 4, 5])


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Pacific/Auckland"])
@pytest.mark.parametrize("step", ["D", "B", "W-MON", "MS"])
def test_local_midnights_written_in_utc_are_days_of_their_zone(zone, step):
    local = pd.date_range("2023-01-02", periods=120, freq=step, tz=zone)
    index = local.tz_convert("UTC").rename("when")
    for cells in (index[:100], index[:100].strftime("%Y-%m-%dT%H:%M:%SZ"), index[:100][::-1]):
        frame = frame_of(cells)
        assert frame.frequency == step
        assert time_index(frame, 20).equals(index[100:]), "in UTC, as they were written"
        assert f"in {zone} all times are midnights" in " ".join(frame.notices)
        np.testing.assert_array_equal(frame.local_times(), local[:100].tz_localize(None).to_numpy())
    if step in ("D", "B"):
        assert f"expected {index[4]}" in refused(index[:100].delete(4))


def test_times_of_day_in_utc_are_no_midnights_of_a_zone():
    for step in ("12h", "h", "D"):
        frame = frame_of(pd.date_range("2024-01-01 23:00", periods=500, freq=step, tz="UTC"))
        assert (frame.frequency, str(frame.clock.zone)) == (step, "UTC")


@pytest.mark.parametrize("suffix", ["Z", " UTC", "+00:00", " +0000", " GMT", "+00"])
def test_zones_by_their_suffix(suffix):
    frame = frame_of([f"2024-01-01T{hour:02d}:00{suffix}" for hour in range(9)])
    ahead = time_index(frame, 1)
    assert str(ahead[0]) == "2024-01-01 09:00:00+00:00"
    assert frame.notices[1:] == ()


@pytest.mark.parametrize("zone", ["America/Chicago", "Europe/Berlin"])
def test_names_of_zones_are_offsets(zone):
    index = pd.date_range("2024-10-27", periods=300, freq="h", tz=zone)
    named = index.strftime("%d-%b-%Y %I:%M %p %Z")
    frame = frame_of(named[:250])
    np.testing.assert_array_equal(time_index(frame, 50).tz_convert("UTC"), index[250:].tz_convert("UTC"))
    assert frame.notices[-2] == "DataFrame, column `when`: time zones: " + (
        "CDT is UTC-5, CST is UTC-6" if "Chicago" in zone else "CEST is UTC+2, CET is UTC+1"
    )
    assert frame.notices[-1].endswith(f"change as in {zone}, which is taken as the time zone")


@pytest.mark.parametrize(
    "text", ["AEST", "Europe/Berlin", "[Europe/Berlin]", "Eastern Standard Time", "GMT+0100 (CET)", "Uhr"]
)
def test_unknown_names_of_zones_are_named(text):
    times = [f"2024-01-01 {hour:02d}:00" for hour in range(9)]
    cells = [*(f"{time} EST" for time in times[:4]), *(f"{time} {text}" for time in times[4:])]
    for form in (None, "%Y-%m-%d %H:%M"):
        message = refused(cells, timestamp_format=form)
        assert f"row 5: the text {text!r} after the time is no time zone that is known" in message
        assert "Write an offset from UTC in its place, such as +01:00, or leave it out" in message
    assert frame_of([f"{time}+01:00" for time in times]).frequency == "h"
    assert frame_of(times).frequency == "h"
    assert frame_of([f"{time} Uhr" for time in times], timestamp_format="%Y-%m-%d %H:%M Uhr").frequency == "h"


def test_offsets_of_no_zone_are_said():
    frame = frame_of(["2024-01-01 00:00+00:17", "2024-01-01 02:00+01:17", "2024-01-01 02:00+00:17"])
    assert "no time zone" in frame.notices[-1]
    assert frame.frequency == "h"


def test_kinds_of_columns_are_kept():
    days = pd.date_range("2024-01-01", periods=40, freq="D")
    arrow = pd.ArrowDtype(pa.date32())
    cases: list[Any] = [
        days.as_unit("s"),
        days.as_unit("ns"),
        pd.Series(days[:40].date).astype(arrow),
        pd.Series(days).astype(pd.ArrowDtype(pa.timestamp("us", tz="UTC"))),
        pd.period_range("2020-01", periods=40, freq="M"),
        pd.period_range("2020Q1", periods=40, freq="Q-MAR"),
    ]
    for cells in cases:
        frame = frame_of(cells[:30])
        ahead = time_index(frame, 10)
        assert ahead.dtype == cells.dtype
        assert ahead.tolist() == list(cells[30:])
    assert time_index(frame_of(list(days[:30].date)), 1).tolist() == [date(2024, 1, 31)]


def test_parquet_of_arrow_dates(tmp_path):
    days = pd.Series(pd.date_range("2024-01-01", periods=9).date, dtype=pd.ArrowDtype(pa.date32()))
    for number, table in enumerate(
        (pd.DataFrame({"date": days, "a": 1.0}), pd.DataFrame({"a": 1.0}, index=days))
    ):
        path = tmp_path / f"{number}.parquet"
        table.to_parquet(path)
        frame = read_frame(path)
        assert frame.frequency == "D"
        assert time_index(frame, 1).tolist() == [date(2024, 1, 10)]


def test_years_outside_nanoseconds():
    frame = frame_of(pd.date_range("1600-01-01", periods=5, freq="YS", unit="s"))
    assert str(frame.timestamps[0])[:10] == "1600-01-01"
    late = frame_of([f"{year}-01-01" for year in range(2250, 2262)])
    assert str(time_index(late, 10)[-1])[:10] == "2271-01-01"


@needs_data
@pytest.mark.parametrize(
    ("name", "options", "frequency", "first", "after"),
    [
        ("Airline.csv", {}, "MS", "1949-01-01", "1961-01-01"),
        ("PBS_dataset.csv", {}, "MS", "1991-07-01", "2008-07-01"),
        ("co2.csv", {"missing": "linear"}, "W-SAT", "1958-03-29", "20020105"),
        ("elnino.csv", {"timestamp_column": "YEAR"}, "YS-JAN", "1950-01-01", "2011"),
        ("msft.csv", {"timestamps": "as_is", "frequency": "B"}, "B", "2003-06-19", "2003-09-22"),
        ("msft.csv", {"timestamps": "as_is"}, "B", "2003-06-19", "1"),
    ],
)
def test_real_tables(name, options, frequency, first, after):
    frame = read_frame(REAL / name, **options)
    assert (frame.frequency, str(frame.timestamps[0])[:10]) == (frequency, first)
    assert str(time_index(frame, 1)[0])[: len(after)] == after


@needs_data
def test_a_real_counter():
    frame = read_frame(REAL / "135_UCR_Anomaly_InternalBleeding16_TEST.csv", columns=["value"])
    assert time_index(frame, 1).tolist() == [frame.n_rows]


FORMS = {
    "%Y%m": ("1700-01", "2199-12", 32 * 24),
    "%Y%m%d": ("1700-01-01", "2199-12-31", 24),
    **dict.fromkeys(("%Y%m%d%H", "%Y%m%d%H%M", "%Y%m%d%H%M%S"), ("1900-01-01", "2199-12-31 23:59", 1)),
    **dict.fromkeys(("s", "ms", "us", "ns"), ("1973-03-03 10:00", "2199-12-31 23:59", 1)),
}
"""Forms of whole numbers: the first and last time in each, and the hours between two of its numbers."""


def in_digits(times: pd.DatetimeIndex, form: str) -> np.ndarray:
    return np.asarray(times.strftime(form) if "%" in form else times.as_unit(form).asi8).astype(np.int64)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_numbers_that_are_times_as_timestamps_are_no_series(data):
    form = data.draw(st.sampled_from(sorted(FORMS)))
    first, last, hours = FORMS[form]
    steps = data.draw(st.integers(1, 40))
    rows = data.draw(st.integers(3, 40))
    start, end = (pd.Timestamp(text).as_unit("s") for text in (first, last))
    unit = pd.Timedelta(hours=hours)
    room = (end - start) // unit - rows * steps
    begin = data.draw(st.sampled_from([0, room]) | st.integers(0, room))
    times = pd.date_range(start + begin * unit, periods=rows, freq=steps * unit, unit="s")
    numbers = in_digits(times, form)
    frame = frame_of(numbers, timestamps="as_is")
    assert frame.timestamps is not None
    if form == "%Y%m":
        times = times.to_period("M").to_timestamp()
    np.testing.assert_array_equal(frame.timestamps, times.to_numpy())
    kind = no_series("volume", numbers.astype(float))
    assert kind is not None
    said = "read as year" if kind == "a date in digits" else kind.removeprefix("a time in ")
    assert said in frame.notices[-1]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**8), st.integers(1, 10**5), st.integers(3, 40))
def test_counters_as_timestamps_are_counters_as_columns(first, step, rows):
    numbers = first + step * np.arange(rows)
    try:
        timed = frame_of(numbers).timestamps is not None
    except DataError as error:
        assume("may be" not in error.what)  # such as 10101, 20101, …
        timed = True
    if numbers[-1] < 170_000:
        kind = no_series("row", numbers.astype(float))
        assert kind == "a counter"
        assert timed == (first >= 1000 and numbers[-1] <= 2999)
    else:
        assert timed == (no_series("row", numbers.astype(float)) != "a counter")


@pytest.mark.parametrize(
    "outside", [169912, 220001, 16991231, 22000101, 99_999_999, 7_258_118_400, 22_000_101_000_000]
)
def test_numbers_outside_the_limits_are_neither_times_nor_refused(outside):
    numbers = outside + np.array([0, 1, 2, 3, 5]) * (-1 if str(outside)[:2] in ("16", "99") else 1)
    assert no_series("volume", numbers.astype(float)) is None
    assert frame_of(np.sort(numbers), timestamps="as_is").timestamps is None


def test_times_before_1973_are_counted_with_a_hint():
    numbers = -86400 * np.arange(3000, 2990, -1)
    frame = frame_of(numbers)
    assert frame.timestamps is None
    assert "set `timestamp_format` to s, ms, us or ns" in frame.notices[-1]
    read = frame_of(numbers, timestamp_format="s").timestamps
    assert read is not None
    assert read[0] == np.datetime64("1961-10-15")
    assert "timestamp_format" not in frame_of(np.arange(10)).notices[-1]


def test_an_invalid_date_does_not_make_a_column_of_dates_a_series_or_a_counter():
    numbers = in_digits(pd.date_range("2024-02-10", periods=40), "%Y%m%d")
    numbers[20] = 20240230
    assert no_series("volume", numbers.astype(float)) == "a date in digits"
    assert "20240230" in refused(numbers, timestamps="as_is")


def test_twenty_four_hours_are_the_midnight_that_ends_the_day():
    hours = [f"{day:02d}.02.2024 {hour:02d}:00" for day in (28, 29) for hour in range(1, 25)]
    times, clock = parse_times(pd.Series(hours), str)
    assert (times == np.datetime64("2024-02-28T01", "h") + np.arange(48)).all()
    assert any("24:00 is read as the midnight that ends the day" in text for text in clock.notices)
    iso = parse_times(pd.Series(["2024-12-31T23:00:00", "2024-12-31T24:00:00"]), str)[0]
    assert iso[1] == np.datetime64("2025-01-01")
    given = parse_times(pd.Series(["31/12/2024 23:00", "31/12/2024 24:00"]), str, "%d/%m/%Y %H:%M")[0]
    assert given[1] == np.datetime64("2025-01-01")
    with pytest.raises(DataError, match="'2024-12-31 24:30' is not a timestamp"):
        parse_times(pd.Series(["2024-12-31 23:30", "2024-12-31 24:30"]), str)

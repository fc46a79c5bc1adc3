"""Calendar steps: recognized, named, continued, and on the clock of a time zone."""

from __future__ import annotations

from datetime import timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.data.calendar import fit_step, following, follows, infer_step, step_of
from ofa_jax.data.frames import read_frame
from ofa_jax.data.seasons import season_of
from ofa_jax.errors import DataError

NEW_YORK = ZoneInfo("America/New_York")


def monthly(day: int, months: int, count: int = 60) -> pd.DatetimeIndex:
    """Every ``months``-th month's day, clipped at its end, by pandas' own arithmetic."""
    start = pd.Timestamp(2021, 1, 1) + pd.Timedelta(days=day - 1)
    return pd.DatetimeIndex([start + pd.DateOffset(months=months * step) for step in range(count)])


@pytest.mark.parametrize(
    ("index", "alias"),
    [
        (monthly(30, 1), "M-30"),
        (monthly(29, 3), "3M-29"),
        (monthly(15, 1), "M-15"),
        *(
            (pd.date_range("2021-01-01", periods=60, freq=alias), alias)
            for alias in ("MS", "ME", "BMS", "BME")
        ),
        *(
            (pd.date_range("2021-01-01", periods=60, freq=alias), alias)
            for alias in ("QS-FEB", "YE-JUN", "B")
        ),
        (pd.date_range("2021-01-01", periods=60, freq="WOM-3WED"), "WOM-3WED"),
        (pd.date_range("2021-01-01", periods=60, freq=pd.offsets.LastWeekOfMonth(weekday=4)), "LWOM-FRI"),
        (pd.date_range("2021-01-01 17:30", periods=60, freq="12WOM-4THU"), "12WOM-4THU"),
        (pd.date_range("2021-01-01", periods=60, freq="SME-15"), "SME-15"),
        (pd.date_range("2021-01-01", periods=60, freq="SMS-15"), "SMS-15"),
        (pd.DatetimeIndex([f"2021-{m:02d}-{d}" for m in range(1, 13) for d in ("05", "20")]), "SM-5-20"),
        (pd.date_range("2021-01-06", periods=60, freq="28D"), "28D"),
        (pd.date_range("2021-01-06", periods=60, freq="W-WED"), "W-WED"),
    ],
    ids=str,
)
def test_steps_of_the_calendar_are_named_and_continued(index, alias):
    times, known = index.to_numpy(), len(index) * 2 // 3
    step = infer_step(times[:known])
    assert step is not None
    assert step.alias == alias
    for found in (step, step_of(alias), fit_step(alias, times[:known])):
        assert found is not None
        assert follows(found, times).all()
        np.testing.assert_array_equal(following(times[:known], found, len(times) - known), times[known:])


@given(st.integers(1, 31), st.integers(1, 12), st.integers(0, 200), st.integers(3, 40))
def test_a_day_of_the_month_is_kept_whatever_the_months_length(day, months, start, rows):
    index = (pd.Timestamp("2000-01-31") - pd.Timedelta(days=31 - day)) + pd.DateOffset(months=0)
    dates = [index + pd.DateOffset(months=months * step) for step in range(start, start + rows + 12)]
    times = pd.DatetimeIndex(dates).to_numpy()
    step = fit_step(f"{months}M-{day}", times[:rows])
    assert step is not None
    np.testing.assert_array_equal(following(times[:rows], step, 12), times[rows:])


def test_three_rows_four_weeks_apart_are_a_duration():
    step = infer_step(pd.date_range("2021-01-20", periods=3, freq="28D").to_numpy())
    assert step is not None
    assert step.alias == "28D"


def test_rows_off_the_calendar_are_found_where_they_are():
    times = monthly(30, 1, 12).delete(5).to_numpy()
    step = infer_step(times)
    assert step is not None
    assert step.alias == "M-30"
    assert np.flatnonzero(~follows(step, times)).tolist() == [4]
    third = pd.date_range("2021-01-01", periods=12, freq="WOM-3WED").delete(7).to_numpy()
    frame = pd.DataFrame({"a": np.ones(11)}, index=third)
    with pytest.raises(DataError, match=r"row 8: .* expected 2021-08-18 00:00:00"):
        read_frame(frame)


@pytest.mark.parametrize(
    "alias", ["", "x", "0D", "MS-FEB", "WOM-5FRI", "WOM-FRI", "LWOM-2FRI", "M", "M-32", "SM-5"]
)
def test_what_is_no_frequency_is_refused(alias):
    with pytest.raises(DataError, match="is not a frequency"):
        step_of(alias)


def test_a_known_step_starts_from_the_last_date_on_it():
    last = np.array(["2024-03-17"], "M8[us]")
    for alias, following_date in {
        "QS-FEB": "2024-05-01",
        "M-15": "2024-04-15",
        "W-TUE": "2024-03-19",
        "B": "2024-03-18",
    }.items():
        assert str(following(last, step_of(alias), 1)[0])[:10] == following_date


@pytest.mark.parametrize("alias", ["h", "15min", "6h", "D", "B", "W-FRI", "MS", "ME", "WOM-3FRI"])
@pytest.mark.parametrize("zone", [NEW_YORK, ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kolkata")], ids=str)
def test_steps_in_a_time_zone_follow_its_clock(alias, zone):
    index = pd.date_range("2023-01-03 00:00", periods=9000 if alias == "15min" else 400, freq=alias, tz=zone)
    times, known = index.tz_convert("UTC").tz_localize(None).to_numpy(), len(index) * 3 // 4
    step = infer_step(times[:known], zone)
    assert step is not None
    assert step.alias == alias
    assert follows(step, times, zone).all()
    np.testing.assert_array_equal(following(times[:known], step, len(times) - known, zone), times[known:])


def test_a_time_of_day_that_a_change_of_clocks_skips_is_one_step():
    """2:30 is skipped in New York on 12 March 2023, and comes twice on 5 November."""
    wall = pd.date_range("2023-01-03 02:30", periods=400, freq="D")
    local = wall.tz_localize(NEW_YORK, nonexistent="shift_forward", ambiguous=np.ones(400, bool))
    times = local.tz_convert("UTC").tz_localize(None).to_numpy()
    for known in (69, 200):  # the 69th row is the one that was moved
        step = infer_step(times[:known], NEW_YORK)
        assert step is not None
        assert step.alias == "D"
        np.testing.assert_array_equal(following(times[:known], step, 400 - known, NEW_YORK), times[known:])


def test_days_of_24_hours_are_no_days_of_the_clock():
    elapsed = pd.date_range("2023-03-01 05:00", periods=40, freq="24h").to_numpy()
    step = infer_step(elapsed, NEW_YORK)
    assert step is not None
    assert not step.wall
    assert follows(step, elapsed, NEW_YORK).all()


def test_few_rows_are_held_against_a_known_step():
    week = pd.date_range("2024-01-08", periods=5, freq="D").to_numpy()
    assert infer_step(week).alias == "D"  # type: ignore[union-attr]
    step = fit_step("B", week)
    assert step is not None
    assert str(following(week, step, 1)[0])[:10] == "2024-01-15"
    assert fit_step("h", week) is None
    assert fit_step("B", pd.date_range("2024-01-08", periods=9, freq="D").to_numpy()) is None
    weekly = fit_step("W-TUE", pd.date_range("2024-01-03", periods=5, freq="7D").to_numpy())
    assert weekly is not None
    assert weekly.alias == "W-WED"
    some = pd.date_range("2024-01-01", periods=20, freq="B").delete([3, 9]).to_numpy()
    assert fit_step("B", some) is None
    assert fit_step("B", some, most=True) is not None


def test_years_after_2262_and_the_end_of_time():
    times = pd.date_range("2255-01-01", periods=7, freq="YS").to_numpy()
    step = infer_step(times)
    assert step is not None
    assert str(following(times, step, 5)[-1])[:10] == "2266-01-01"
    with pytest.raises(DataError, match="beyond the year 9999"):
        following(times, step, 8000)
    with pytest.raises(DataError, match="beyond the year 9999"):
        following(times.astype("M8[us]"), step_of("99999D"), 10**6)


def test_seasons_of_calendar_steps():
    known = {
        "M-15": 12,
        "3M-30": 4,
        "WOM-3WED": 12,
        "12WOM-4THU": 1,
        "LWOM-FRI": 12,
        "SME-15": 24,
        "SM-5-20": 24,
    }
    assert {alias: season_of(alias) for alias in known} == known


def test_fixed_offsets_are_zones():
    zone = timezone(timedelta(hours=-5))
    times = pd.date_range("2024-01-01 05:00", periods=90, freq="D").to_numpy()
    step = infer_step(times, zone)
    assert step is not None
    assert step.alias == "D"
    np.testing.assert_array_equal(following(times[:80], step, 10, zone), times[80:])

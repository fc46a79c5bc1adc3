"""Calendar steps: the regular step between rows, on the clock of their time zone, and the times that follow.

Times are ``[T]`` datetime64 in UTC where there is a time zone. Steps of whole days, business days, weeks and
months are counted on the wall clock of that zone, shorter ones in elapsed time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any

import numpy as np

from ofa_jax.errors import DataError

Rule = Callable[[np.ndarray], np.ndarray]
"""The k dates of each month: ``[m]`` datetime64[M] -> ``[m, k]`` datetime64[D], ascending."""

_DAY = np.timedelta64(1, "D")
_LAST_YEAR = np.datetime64("9999", "Y")  # Python's and pandas'
_WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_BUSINESS = "1111100"
_UNITS = ("ns", "us", "ms", "s", "min", "h", "D")
_ALIASES = "h, 15min, D, B, W-MON, MS, ME, QS-JAN, YE-DEC, M-15 (the 15th), WOM-3WED (third Wednesdays)"


@dataclass(frozen=True)
class Duration:
    """A step of constant length (also of counters, int64).

    ``wall``: on the wall clock, so that days keep their time of day.
    """

    alias: str
    size: Any
    wall: bool

    def follows(self, times: np.ndarray) -> np.ndarray:
        """Whether each row is one step after the one before, ``[T - 1]``."""
        return np.diff(times) == self.size

    def after(self, time: np.datetime64, count: int) -> np.ndarray:
        """The next ``count`` times."""
        size = self.size.astype((time - time).dtype)  # in the unit of the time, not finer: range
        return time + np.arange(1, count + 1) * (size if size == self.size else self.size)


@dataclass(frozen=True)
class Weekdays:
    """Steps over the days of a week that ``mask`` (Monday first, of 0 and 1) has, at one time of day."""

    alias: str
    mask: str
    count: int = 1
    wall: bool = True

    def follows(self, times: np.ndarray) -> np.ndarray:
        """As of :class:`Duration`."""
        dates, clocks = _split(times)
        on = np.is_busday(dates, self.mask)
        one = np.busday_count(dates[:-1], dates[1:], self.mask) == self.count
        return one & on[:-1] & on[1:] & (np.diff(clocks) == 0)

    def after(self, time: np.datetime64, count: int) -> np.ndarray:
        """As of :class:`Duration`."""
        date, clock = _split(time)
        ahead = self.count * np.arange(1, count + 1)
        return np.busday_offset(date, ahead, roll="backward", weekmask=self.mask) + clock


@dataclass(frozen=True)
class Months:
    """Steps over the dates that ``rule`` gives every month, at one time of day.

    Attributes:
        alias: Its name.
        rule: The dates of a month.
        count: Dates from one row to the next.
        phase: ``(period, rest)`` of the months that count (``QS-FEB``: 3, 1), or None: those of the rows.
    """

    alias: str
    rule: Rule = field(compare=False)
    count: int = 1
    phase: tuple[int, int] | None = None
    wall: bool = True

    def follows(self, times: np.ndarray) -> np.ndarray:
        """As of :class:`Duration`."""
        place, on = self._places(times)
        same_clock = np.diff(_split(times)[1]) == 0
        return (np.diff(place) == self.count) & on[:-1] & on[1:] & same_clock

    def after(self, time: np.datetime64, count: int) -> np.ndarray:
        """As of :class:`Duration`."""
        clock, (place,) = _split(time)[1], self._places(np.array([time]))[0]
        if self.phase is not None:
            place -= (place - self.phase[1]) % self.phase[0]
        months, slots = np.divmod(place + self.count * np.arange(1, count + 1), self._width)
        return self.rule(months.astype("M8[M]"))[np.arange(count), slots] + clock

    @property
    def _width(self) -> int:
        return self.rule(np.zeros(1, "M8[M]")).shape[1]

    def _places(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of the last date up to each row, over all months, and whether the row is on it."""
        dates = _split(times)[0]
        months = dates.astype("M8[M]")
        slots = self.rule(months)
        place = months.astype(np.int64) * slots.shape[1] + (slots <= dates[:, None]).sum(axis=1) - 1
        return place, (slots == dates[:, None]).any(axis=1)


Step = Duration | Weekdays | Months


def _split(times):
    dates = times.astype("M8[D]")
    return dates, times - dates


def days_of_month(*days: int) -> Rule:
    """These days of every month, or its last day where it is shorter."""

    def rule(months: np.ndarray) -> np.ndarray:
        last = (months + 1).astype("M8[D]") - _DAY
        return np.stack([np.minimum(months.astype("M8[D]") + (day - 1) * _DAY, last) for day in days], axis=1)

    return rule


def nth_weekday(n: int, mask: str) -> Rule:
    """The n-th of the days in ``mask`` of every month; the last for n = -1."""

    def rule(months: np.ndarray) -> np.ndarray:
        begin, move = (months + 1, -1) if n < 0 else (months, n - 1)
        dates = np.busday_offset(begin.astype("M8[D]"), move, roll="forward", weekmask=mask)
        return dates[:, None]

    return rule


def _only(weekday: int) -> str:
    return "".join("1" if day == weekday else "0" for day in range(7))


_RULES: dict[str, Rule] = {
    "MS": days_of_month(1),
    "ME": days_of_month(31),
    "BMS": nth_weekday(1, _BUSINESS),
    "BME": nth_weekday(-1, _BUSINESS),
}


def infer_step(times: np.ndarray, zone: tzinfo | None = None) -> Step | None:
    """The most common step of ordered times ``[T]`` (repeats count once); None for fewer than three.

    Calendar steps (days of the month, its n-th weekdays and business days, half months, quarters, years,
    business days) are recognized where every row fits, months where most rows are on one day of theirs; any
    other step is a fixed duration.
    """
    times = np.unique(times)
    if len(times) < 3:
        return None
    elapsed = _duration(times, wall=False)
    wall = wall_clock(times, zone)
    local = _calendar(wall) or _duration(wall, wall=True)
    if zone is None or (_whole_days(local) and local.follows(wall).all()):
        return local
    if elapsed.follows(times).all():
        return elapsed
    return local if _whole_days(local) or local.follows(wall).all() else elapsed


def _whole_days(step: Step) -> bool:
    return not isinstance(step, Duration) or step.size % _DAY == 0


def most_common(values: np.ndarray) -> Any:
    """The value that occurs most often; of equally frequent ones the smallest."""
    kinds, counts = np.unique(values, return_counts=True)
    return kinds[np.argmax(counts)]


def _duration(times: np.ndarray, wall: bool) -> Duration:
    from pandas import Timedelta
    from pandas.tseries.frequencies import to_offset

    size = most_common(np.diff(times))
    days, rest = divmod(size, _DAY)
    if rest or not wall:
        return Duration(to_offset(Timedelta(size)).freqstr, size, wall)
    weekdays = (times.astype("M8[D]").astype(np.int64) + 3) % 7  # 1970 began on a Thursday
    if days == 7 and len(set(weekdays)) == 1:
        return Duration(f"W-{_WEEKDAYS[weekdays[0]]}", size, wall)
    return Duration(f"{days if days > 1 else ''}D", size, wall)


def _calendar(wall: np.ndarray) -> Step | None:
    """A step over dates of the calendar that every row is on; of months, also where most are on one day."""
    dates, clocks = _split(wall)
    gaps = np.diff(dates)
    size = most_common(gaps)
    if np.ptp(clocks):
        return None
    if size == _DAY:
        # Monday to Friday of a single week are plain days: only a skipped weekend identifies business days
        skips = np.is_busday(dates, _BUSINESS).all() and (gaps == 3 * _DAY).any()
        return Weekdays("B", _BUSINESS) if skips else None
    regular = bool((gaps == size).all())
    if 13 * _DAY <= size <= 18 * _DAY and not regular:
        return _half_months(dates)
    if size < 28 * _DAY:
        return None
    found = _months(dates, regular)
    if found is None and size <= 31 * _DAY and not regular:
        days = dates - dates.astype("M8[M]").astype("M8[D]")
        usual = days == most_common(days)
        found = _months(dates[usual], regular) if 2 * usual.sum() > len(dates) else None
    return found


def _months(dates: np.ndarray, regular: bool) -> Months | None:
    months = dates.astype("M8[M]")
    count = int(most_common(np.diff(months)).astype(int))
    if count == 0:
        return None

    def fits(rule: Rule) -> bool:
        return bool((rule(months)[:, 0] == dates).all())

    anchor = _MONTHS[months[0].astype(int) % 12]
    for kind, rule in _RULES.items():
        if fits(rule):
            return Months(_month_alias(kind, count, anchor), rule, count)
    times = "" if count == 1 else str(count)
    day = int((dates - months.astype("M8[D]")).max() / _DAY) + 1
    if fits(days_of_month(day)):
        return Months(f"{times}M-{day}", days_of_month(day), count)
    if regular:  # four weeks apart, say
        return None
    weekday = int(dates[0].astype(int) + 3) % 7
    for n in (-1, 1, 2, 3, 4):
        if fits(rule := nth_weekday(n, _only(weekday))):
            name = f"{times}WOM-{n}{_WEEKDAYS[weekday]}" if n > 0 else f"{times}LWOM-{_WEEKDAYS[weekday]}"
            return Months(name, rule, count)
    return None


def _half_months(dates: np.ndarray) -> Months | None:
    months = dates.astype("M8[M]")
    days = ((dates - months.astype("M8[D]")) / _DAY).astype(int) + 1
    ends = days_of_month(31)(months)[:, 0] == dates
    last = 31 if ends[days > 15].all() and ends.any() else int(days.max())
    pair = np.unique(np.where(days_of_month(last)(months)[:, 0] == dates, last, days))
    if len(pair) != 2:
        return None
    early, late = int(pair[0]), int(pair[1])
    name = f"SMS-{late}" if early == 1 else f"SME-{early}" if late == 31 else f"SM-{early}-{late}"
    return Months(name, days_of_month(early, late))


def _month_alias(kind: str, count: int, anchor: str) -> str:
    if count % 12 == 0:
        return f"{count // 12 if count > 12 else ''}{kind.replace('M', 'Y')}-{anchor}"
    if count == 3:
        return f"{kind.replace('M', 'Q')}-{anchor}"
    return f"{count if count > 1 else ''}{kind}"


def step_of(alias: str) -> Step:
    """The step of a pandas alias, of ``M-15`` (every month's 15th) or of ``SM-5-20`` (its 5th and 20th).

    Raises:
        DataError: It is none of those that are known.
    """
    match = re.fullmatch(r"([1-9]\d{0,11})?([A-Za-z]+)(?:-([A-Z\d-]+))?", alias.strip())
    found = _step_of(alias, int(match[1] or 1), match[2], match[3]) if match else None
    if found is None:
        raise DataError(f"{alias!r} is not a frequency that is known", fix=f"Give one like {_ALIASES}")
    return found


def _step_of(alias: str, count: int, code: str, anchor: str | None) -> Step | None:
    if anchor is None and code in _UNITS:
        unit = {"min": "m"}.get(code, code)
        return Duration(alias, np.timedelta64(count, unit), wall=code == "D")  # type: ignore[call-overload]
    if code == "B" and anchor is None:
        return Weekdays(alias, _BUSINESS, count)
    if code == "W" and (anchor is None or anchor in _WEEKDAYS):
        if anchor is None:
            return Duration(alias, 7 * count * _DAY, wall=True)
        return Weekdays(alias, _only(_WEEKDAYS.index(anchor)), count)
    if code in ("WOM", "LWOM") and (match := re.fullmatch(r"([1-4]?)([A-Z]{3})", anchor or "")):
        if bool(match[1]) == (code == "WOM") and match[2] in _WEEKDAYS:
            rule = nth_weekday(int(match[1] or -1), _only(_WEEKDAYS.index(match[2])))
            return Months(alias, rule, count)
        return None
    days = [int(day) for day in (anchor or "").split("-") if day.isdigit() and 1 <= int(day) <= 31]
    if code in ("M", "SM", "SMS", "SME") and (days or (anchor is None and code in ("SMS", "SME"))):
        days = days or [15]
        pair = {"SMS": [1, *days], "SME": [*days, 31]}.get(code, days)
        if len(pair) != (1 if code == "M" else 2) or pair[0] >= pair[-1] + (code == "M"):
            return None
        return Months(alias, days_of_month(*pair), count)
    return _anchored(alias, count, code, anchor)


def _anchored(alias: str, count: int, code: str, anchor: str | None) -> Months | None:
    match = re.fullmatch(r"(B?)([MQY])([SE])", code)
    if match is None or (anchor is not None and (match[2] == "M" or anchor not in _MONTHS)):
        return None
    rule, period = _RULES[f"{match[1]}M{match[3]}"], {"M": 1, "Q": 3, "Y": 12}[match[2]]
    month = _MONTHS.index(anchor or ("JAN" if match[3] == "S" else "DEC"))
    return Months(alias, rule, count * period, (period, month % period))


def fit_step(alias: str, times: np.ndarray, zone: tzinfo | None = None, *, most: bool = False) -> Step | None:
    """The step ``alias``, or the same with another anchor (``W-TUE``), that rows follow; None if they do not.

    Args:
        alias: As of :func:`step_of`.
        times: Ordered times.
        zone: Their time zone.
        most: It is enough that most rows do.
    """
    times = np.unique(times)
    step = step_of(alias)
    ok = follows(step, times, zone)
    if ok.all() or (most and ok.mean() >= 0.5):
        return step
    other = infer_step(times, zone)
    if other is None or other.alias.split("-")[0] != alias.split("-")[0]:
        return None
    return other if most or follows(other, times, zone).all() else None


def follows(step: Step, times: np.ndarray, zone: tzinfo | None = None) -> np.ndarray:
    """Whether each row is one step after the one before, ``[T - 1]``."""
    return step.follows(wall_clock(times, zone) if step.wall else times)


def following(times: np.ndarray, step: Step, count: int, zone: tzinfo | None = None) -> np.ndarray:
    """The ``count`` times after the last of ``times``, as ``[count]`` datetime64.

    Raises:
        DataError: They lie beyond the year 9999.
    """
    if times.dtype.kind == "i":
        return step.after(times[-1], count)
    if np.datetime_data(times.dtype)[0] == "ns" and not (times.astype(np.int64) % 1000).any():
        times = times.astype("M8[us]")  # nanoseconds end in the year 2262
    last = wall_clock(times, zone)[-1] if step.wall else times[-1]
    found = step.after(last, count)
    # what overflows comes before what does not
    if (found.astype("M8[Y]") > _LAST_YEAR).any() or (found <= last).any():
        what = f"{count:,} steps of {step.alias} after {str(last)[:19]} lie beyond the year {_LAST_YEAR}"
        raise DataError(what, fix="Correct the last timestamp")
    return _to_utc(found, zone) if step.wall else found


def wall_clock(times: np.ndarray, zone: tzinfo | None) -> np.ndarray:
    """Times as the clock of the zone shows them.

    A time of day that a change of clocks skipped is given as it was meant (02:30, not 03:30).
    """
    import pandas as pd

    if zone is None:
        return times
    wall = pd.DatetimeIndex(times, tz="UTC").tz_convert(zone).tz_localize(None).to_numpy()
    dates, clocks = _split(wall)
    meant = dates + most_common(clocks)
    moved = (meant != wall) & (_to_utc(meant, zone) == times)
    return np.where(moved, meant, wall)


def _to_utc(wall: np.ndarray, zone: tzinfo | None) -> np.ndarray:
    import pandas as pd

    if zone is None:
        return wall
    first = np.ones(len(wall), bool)  # of two equal times the one before the clocks go back
    unit = np.datetime_data(wall.dtype)[0]
    index = pd.DatetimeIndex(wall.astype("M8[us]") if unit in ("D", "h", "m") else wall)
    local = index.tz_localize(zone, ambiguous=first, nonexistent="shift_forward")
    return local.tz_convert("UTC").tz_localize(None).to_numpy()

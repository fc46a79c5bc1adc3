"""Reading dates: text in the forms of real tables, and whole numbers that stand for times."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, available_timezones

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

WHOLE = re.compile(r"-?\d+(\.0*)?")
"""A whole number as text."""
ISO, QUARTER, WEEK, EXCEL = "ISO8601", "quarter", "week", "excel"
EPOCHS = ("s", "ms", "us", "ns")
_QUARTER = re.compile(r"(?P<year>\d{4})[ -]?Q(?P<quarter>[1-4])|Q([1-4])[ -](\d{4})", re.IGNORECASE)
_WEEK = re.compile(r"\d{4}-?W\d\d", re.IGNORECASE)
_ZONE = re.compile(
    r"^(.*[T ]\d[\d:.,]*(?: ?[AP]M)?) ?(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)$"
    r"|^(.*[T ]\d?\d:\d\d[\d:.,]*(?: ?[AP]M)?) *((?![AP]M$)[A-Z([][\w/+:()\]. -]{1,60})$",
    re.IGNORECASE,
)
_AMERICAN = {"EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7}
_EUROPEAN = {"WET": 0, "WEST": 1, "CET": 1, "CEST": 2, "EET": 2, "EEST": 3}
_NAMED_ZONES = {"Z": 0, "UTC": 0, "GMT": 0, "UT": 0} | _AMERICAN | _EUROPEAN
"""Hours east of UTC: those of RFC 5322, and Europe's."""
_CLOCK = re.compile(r"[T ]\d{1,2}:\d\d(?P<seconds>:\d\d(?P<part>\.\d+)?)?(?P<half> ?[AP]M)?$", re.IGNORECASE)
_WEEKDAY = re.compile(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun)([a-z]*day)?(,? )", re.IGNORECASE)
_MONTH = re.compile(r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*", re.IGNORECASE)
_USUAL_ZONES = (
    *("Europe/Berlin", "Europe/London", "Europe/Athens", "Australia/Sydney", "Pacific/Auckland"),
    *("America/New_York", "America/Chicago", "America/Denver", "America/Los_Angeles"),
)


def split_zones(texts: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Texts without their time zone, and what follows the time as one; missing where nothing does."""
    parts = texts.str.extract(_ZONE)
    return parts[0].fillna(parts[2]).fillna(texts), parts[1].fillna(parts[3])


def minutes_of(zone: str) -> float:
    """Minutes east of UTC of an offset or the name of a time zone; NaN where it is not known."""
    if zone[0] not in "+-":
        return 60.0 * _NAMED_ZONES.get(zone.upper(), np.nan)
    minutes = int(zone[1:3]) * 60 + int(zone[3:].removeprefix(":") or 0)
    return -minutes if zone[0] == "-" else minutes


def forms_of(text: str) -> list[str]:
    """The forms in which a text can be read as a date: :func:`read_form` reads them."""
    if _QUARTER.fullmatch(text):
        return [QUARTER]
    if _WEEK.fullmatch(text):
        return [WEEK]
    # pandas reads words such as "now" as the present moment
    if text[:1].isdigit() and _fits(text, ISO):
        return [ISO]
    clock = _CLOCK.search(text)
    date, end = (text[: clock.start()], _clock_form(clock)) if clock else (text, "")
    day = _WEEKDAY.match(date)
    start = "" if day is None else f"{'%A' if day[2] else '%a'}{day[3]}"
    orders = _orders(date[day.end() :] if day else date)
    return [form for form in (start + order + end for order in orders) if _fits(text, form)]


def _clock_form(clock: re.Match[str]) -> str:
    hour = "%I" if clock["half"] else "%H"
    seconds = ("%S.%f" if clock["part"] else "%S") if clock["seconds"] else ""
    half = (" %p" if clock["half"].startswith(" ") else "%p") if clock["half"] else ""
    return f"{clock[0][0]}{hour}:%M{':' if seconds else ''}{seconds}{half}"


def _orders(date: str) -> list[str]:
    """Forms of a date without its clock, day first before month first."""
    *parts, last = re.split(r"([ /.,-]+)", date.strip())
    pieces, signs = [*parts[::2], last], parts[1::2]
    kinds = "".join("b" if _MONTH.fullmatch(piece) else _digits(piece) for piece in pieces)
    orders = {
        "bY": ["bY"],
        "Yb": ["Yb"],
        "b2": ["by"],
        "2b2": ["dby"],
        "2bY": ["dbY"],
        "b2Y": ["bdY"],
        "Yb2": ["Ybd"],
        "2Y": ["mY"],
        "22Y": ["dmY", "mdY"],
        "222": ["dmy", "mdy", "ymd"],
        "Y22": ["Ymd"],
    }.get(kinds, [])
    signs = [*signs, ""]
    forms = ["".join(f"%{code}{sign}" for code, sign in zip(order, signs, strict=True)) for order in orders]
    # Sep or September; the first row may have May, which is both
    return [*forms, *(form.replace("%b", "%B") for form in forms if "%b" in form)]


def _digits(piece: str) -> str:
    return {4: "Y", 2: "2", 1: "2"}.get(len(piece), "?") if piece.isdigit() else "?"


def _fits(text: str, form: str) -> bool:
    import pandas as pd

    return not pd.isna(pd.to_datetime(text, format=form, errors="coerce"))


def read_form(texts: pd.Series, form: str) -> pd.Series:
    """Texts as datetimes; NaT where one does not fit the form.

    Raises:
        ValueError: The form is none of strptime's.
    """
    import pandas as pd

    if form == QUARTER:
        parts = texts.str.extract(_QUARTER)
        year, quarter = parts["year"].fillna(parts[3]), parts["quarter"].fillna(parts[2])
        month = (quarter.astype(float) * 3 - 2).astype("Int64").astype("string")
        return pd.to_datetime(year + "-" + month, format="%Y-%m", errors="coerce")
    if form == WEEK:
        days = texts.str.upper().str.replace("-", "") + "-1"
        return pd.to_datetime(days.where(texts.str.fullmatch(_WEEK)), format="%GW%V-%u", errors="coerce")
    if form == EXCEL:
        days = pd.to_numeric(texts, errors="coerce")
        milliseconds = (days.where(days.between(1, 2958466)) * 86_400_000).round()
        return pd.to_datetime(milliseconds, unit="ms", origin="1899-12-30", errors="coerce")
    if form in EPOCHS:
        return _epochs(texts, form)
    times = pd.to_datetime(texts, format=form, errors="coerce")
    return _with_centuries(times) if "%y" in form else times


def looks_like_date(text: str) -> bool:
    """Whether one cell reads as a date that is not simply a number."""
    import pandas as pd

    text = text.strip()
    if not text[:1].isalnum() or text.replace(".", "", 1).isdigit():
        return False
    body = split_zones(pd.Series([text], dtype=object))[0]
    return any(1000 <= read_form(body, form)[0].year < 3000 for form in forms_of(body[0]))


def _with_centuries(times: pd.Series) -> pd.Series:
    """Datetimes of two-digit years as Excel reads those, 1930 to 2029, unless only others are in order."""
    import pandas as pd

    moved = times.mask(times.dt.year >= 2030, times - pd.DateOffset(years=100))
    known, before = moved.dropna(), times.dropna()
    ordered = [one.is_monotonic_increasing or one.is_monotonic_decreasing for one in (known, before)]
    return times if ordered == [False, True] else moved


def with_leading_zeros(texts: pd.Series, form: str) -> pd.Series:
    """Texts as wide as a form of digits makes them that begins with a day or month: numbers lack its zero."""
    width = width_of(form)
    if form.startswith("%Y") or width is None or not texts.str.fullmatch(r"\d+").all():
        return texts
    return texts.mask(texts.str.len() == width - 1, "0" + texts)


def width_of(form: str) -> int | None:
    """How many digits a time of this form has; None where it has other signs."""
    widths = {"%Y": 4, "%j": 3, **dict.fromkeys(("%y", "%m", "%d", "%H", "%M", "%S"), 2)}
    codes = re.findall(r"%\w|.", form)
    return sum(widths[code] for code in codes) if set(codes) <= set(widths) else None


def on_grid(times: pd.Series, rounding: float = 0.0) -> tuple[pd.Series, str | None]:
    """Times of Excel on the coarsest grid that all are on but for rounding (in days); a notice if any is not.

    Hours that Excel adds up, one after the other, are off by some milliseconds.
    """
    import pandas as pd

    most = pd.Timedelta(days=rounding) + pd.Timedelta(milliseconds=20)
    for grid in ("1D", "1h", "5min", "1min", "10s", "1s"):
        whole = times.dt.round(grid)
        off = (whole - times).abs().max()
        if 4 * most < pd.Timedelta(grid) and off <= most:
            words = f"times are up to {off.total_seconds():.2g} s off, so they are read to the nearest {grid}"
            return whole, words if off else None
    return times, None


def _epochs(texts: pd.Series, unit: str) -> pd.Series:
    import pandas as pd

    values = pd.to_numeric(texts, errors="coerce")
    if values.isna().any() or (values.abs() > 2.5e11 * 1000 ** EPOCHS.index(unit)).any():
        return pd.Series(pd.NaT, index=texts.index).astype("datetime64[us]")
    if (values % 1 == 0).all():
        return pd.Series(values.astype(np.int64).to_numpy().astype(f"M8[{unit}]"))
    return pd.Series((values * 10 ** (6 - 3 * EPOCHS.index(unit))).round().astype(np.int64).astype("M8[us]"))


@dataclass(frozen=True)
class Digits:
    """Whole numbers from ``low`` to ``high`` that are times in a form of :func:`read_form`."""

    form: str
    words: str
    low: int
    high: int

    def read(self, texts: pd.Series) -> pd.Series:
        """Whole numbers as datetimes; NaT where one is out of range or no date."""
        return read_form(texts.where(texts.astype(float).between(self.low, self.high), "-"), self.form)


def _written(form: str, words: str, years: tuple[int, int], digits: int) -> Digits:
    """Dates from the first to the last year, with ``digits`` digits after the year."""
    return Digits(form, words, years[0] * 10**digits, (years[1] + 1) * 10**digits - 1)


FIRST_EPOCH, _END = 10**8, 7_258_118_400  # seconds: 1973, since numbers of rows may be smaller, and 2200
YEARS = _written("%Y", "years", (1000, 2999), 0)
"""Read where they are named as times; anything may have such a size."""
_DIGITS = (
    _written("%Y%m", "year and month", (1700, 2199), 2),
    _written("%Y%m%d", "year, month and day", (1700, 2199), 4),
    _written("%Y%m%d%H", "year, month, day and hour", (1900, 2199), 6),
    _written("%Y%m%d%H%M", "year, month, day, hour and minute", (1900, 2199), 8),
    _written("%Y%m%d%H%M%S", "year, month, day and time of day", (1900, 2199), 10),
    Digits("s", "seconds since 1970", FIRST_EPOCH, _END - 1),
    Digits("ms", "milliseconds since 1970", FIRST_EPOCH * 10**3, _END * 10**3 - 1),
    Digits("us", "microseconds since 1970", FIRST_EPOCH * 10**6, _END * 10**6 - 1),
    Digits("ns", "nanoseconds since 1970", FIRST_EPOCH * 10**9, _END * 10**9 - 1),
)
"""Written dates come first: hardly any times since 1970 are valid as such."""


def time_in_digits(values: np.ndarray) -> Digits | None:
    """How whole numbers ``[T]`` of a column of times are times, years alone included; None for a counter."""
    return YEARS if ((values >= YEARS.low) & (values <= YEARS.high)).all() else digits_of(values)


def digits_of(values: np.ndarray) -> Digits | None:
    """How whole numbers ``[T]`` are times, years alone aside, by size and validity; None for other numbers.

    Up to a tenth of written dates may be invalid, as typing errors.
    """
    import pandas as pd

    for digits in _DIGITS:
        inside = values[(digits.low <= values) & (values <= digits.high)]
        if digits.form in EPOCHS:
            if 0 < len(inside) == len(values):
                return digits
        elif 10 * len(inside) > 9 * len(values):
            times = read_form(pd.Series(inside.astype(np.int64).astype(str), dtype=object), digits.form)
            if 10 * times.notna().sum() > 9 * len(values):
                return digits
    return None


def zone_of(utc: np.ndarray, offsets: np.ndarray) -> tuple[tzinfo, str | None]:
    """The time zone with these minutes east of UTC ``[T]``, and a notice where it is inferred.

    Of several zones that fit, the one most of them continue with is taken.
    """
    if (offsets == offsets[0]).all():
        return _fixed(offsets[0]), None
    name = _zone_with(utc, offsets)
    if name is None:
        words = "the offsets from UTC are those of no time zone; forecasts have the last row's"
        return _fixed(offsets[-1]), words
    return ZoneInfo(name), f"the offsets from UTC change as in {name}, which is taken as the time zone"


def zone_of_midnights(utc: np.ndarray) -> tuple[tzinfo, str] | None:
    """The time zone in which ordered times ``[T]`` of two times of day are all midnights, and a notice."""
    clocks = (utc - utc.astype("M8[D]")) / np.timedelta64(1, "m")
    if len(set(clocks[:1000])) > 2 or len(set(clocks)) != 2:
        return None
    for most in (720, 840):  # minutes east of UTC; New Zealand's are 720 and 780
        name = _zone_with(utc, most - (clocks + most) % 1440)
        if name is not None:
            return ZoneInfo(name), f"in {name} all times are midnights, so it is taken as the time zone"
    return None


def _zone_with(utc: np.ndarray, offsets: np.ndarray) -> str | None:
    changes = np.flatnonzero(np.diff(offsets))
    rows = np.unique([0, *changes, *(changes + 1), len(offsets) - 1])
    known = [(time.astype("M8[us]").item(), offsets[row]) for time, row in zip(utc[rows], rows, strict=True)]
    last = utc[-1].astype("M8[s]").item()
    ahead = [last + timedelta(days=15 * step) for step in range(1, 120)]
    groups: dict[tuple[float, ...], list[str]] = {}
    for name, zone in _zones():
        if all(_offset(zone, time) == offset for time, offset in known):
            groups.setdefault(tuple(_offset(zone, time) for time in ahead), []).append(name)
    if not groups:
        return None
    names = max(groups.values(), key=len)
    return next((usual for usual in _USUAL_ZONES if usual in names), names[0])


def _fixed(minutes: float) -> tzinfo:
    return timezone(timedelta(minutes=float(minutes))) if minutes else UTC


def _zones() -> list[tuple[str, tzinfo]]:
    names = sorted(name for name in available_timezones() if "/" in name and not name.startswith("Etc/"))
    return [(name, ZoneInfo(name)) for name in names]


def _offset(zone: tzinfo, utc: datetime) -> float:
    shown = utc.replace(tzinfo=UTC).astimezone(zone).utcoffset()
    return shown.total_seconds() / 60 if shown is not None else 0.0

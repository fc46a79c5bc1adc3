"""Timestamps: parsing a column of dates, the regular step between rows, and the dates that follow."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ofa_jax.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Place = Callable[[int | None], str]
"""The position of a data row (0-based; None for the column), for the ``where`` of an error."""

_DAY = 24 * 3600 * 10**9
_ZERO = np.timedelta64(0)
_YEARS = range(1678, 2262)  # those that datetime64[ns] has from start to end
_WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_ZONE = re.compile(r"[T ][\d:.,]+\s*(Z|[+-]\d\d?(:?\d\d)?)$", re.IGNORECASE)
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
_FIX_FORMAT = (
    "Write timestamps like 2024-01-31 13:00:00, name another `timestamp_column`, "
    "or rename this one if it contains no timestamps"
)


@dataclass(frozen=True)
class Step:
    """The step between rows.

    Attributes:
        offset: The step as a pandas offset.
        alias: Its pandas alias; None where pandas has none.
        first_break: The first row (0-based) that does not follow its predecessor by one step, or None.
    """

    offset: pd.offsets.BaseOffset
    alias: str | None
    first_break: int | None


def looks_like_date(text: str) -> bool:
    """Whether one cell reads as a date that is not simply a number."""
    import pandas as pd

    text = text.strip()
    if not text[:1].isdigit() or re.fullmatch(r"[\d.]+", text):
        return False
    year = pd.to_datetime(text, format="ISO8601", errors="coerce").year
    return year in _YEARS or bool(_year_last_formats(text))


def parse_times(column: pd.Series, place: Place) -> tuple[np.ndarray, bool]:
    """Timestamps of a column as ``[T]`` datetime64[ns], and whether they have a time zone (then in UTC).

    ISO 8601 comes first, years and months included. Dates with the year last are read day first or month
    first, whichever fits every row; where both fit, whichever gives a regular step.

    Raises:
        DataError: A cell that is missing or not a date, ambiguous dates, time zones in some rows only.
    """
    import pandas as pd

    dated = pd.api.types.is_datetime64_any_dtype(column.dtype)
    gone = column.isna().to_numpy()
    texts = [] if dated else [str(cell).strip() for cell in column]
    missing = np.flatnonzero(gone if dated else gone | (np.array(texts) == ""))
    if len(missing):
        fix = "Fill it, or remove the row"
        raise DataError("the timestamp is missing", where=place(int(missing[0])), fix=fix)
    if dated:
        return _to_ns(column, place), column.dt.tz is not None
    for row, text in enumerate(texts):
        if not text[0].isdigit():  # pandas reads words such as "now" as the present moment
            raise _not_a_date(text, place(row))
    return _parse_text(texts, place)


def _parse_text(texts: list[str], place: Place) -> tuple[np.ndarray, bool]:
    import pandas as pd

    zoned = [_ZONE.search(text) is not None for text in texts]
    fix_zones = "Give every timestamp a time zone, or none"
    if any(zoned) and not all(zoned):
        row = zoned.index(not zoned[0])
        what = f"{texts[row]!r} and {texts[0]!r} in the first row differ in having a time zone"
        raise DataError(what, where=place(row), fix=fix_zones)
    column = pd.Series(texts, dtype=object)
    try:
        parsed = pd.to_datetime(column, format="ISO8601", utc=zoned[0], errors="coerce")
    except ValueError:  # zones in a form that only pandas recognizes
        raise DataError("only some rows have a time zone", where=place(None), fix=fix_zones) from None
    if pd.isna(parsed.iloc[0]):
        return _parse_year_last(column, place), False
    _check_complete(parsed, texts, place)
    return _to_ns(parsed, place), zoned[0] or parsed.dt.tz is not None


def _parse_year_last(texts: pd.Series, place: Place) -> np.ndarray:
    import pandas as pd

    formats = _year_last_formats(texts[0])
    if not formats:
        raise _not_a_date(texts[0], place(0))
    readings = [pd.to_datetime(texts, format=form, errors="coerce") for form in formats]
    _check_complete(max(readings, key=lambda reading: reading.notna().cumprod().sum()), texts, place)
    complete = [_to_ns(reading, place) for reading in readings if reading.notna().all()]
    if len(complete) == 2 and not np.array_equal(complete[0], complete[1]):
        complete = [times for times in complete if _is_regular(times)]
        if len(complete) != 1:
            what = f"{texts[0]!r} can be read day first or month first, and the other rows do not decide it"
            raise DataError(what, where=place(0), fix="Write dates with the year first, such as 2024-01-31")
    return complete[0]


def _year_last_formats(text: str) -> list[str]:
    """The formats with the year last that fit, day first before month first."""
    import pandas as pd

    match = re.match(r"\d{1,2}([/.-])\d{1,2}\1\d{4}", text)
    sign = match[1] if match else "/"
    orders = (f"%d{sign}%m{sign}%Y", f"%m{sign}%d{sign}%Y")
    formats = [order + clock for clock in _CLOCKS for order in orders]
    return [form for form in formats if not pd.isna(pd.to_datetime(text, format=form, errors="coerce"))]


def _is_regular(times: np.ndarray) -> bool:
    if len(times) < 3 or (np.diff(times) <= _ZERO).any():
        return False
    step = infer_step(times)
    return step is not None and step.first_break is None


def _check_complete(parsed: pd.Series, texts: Sequence[str] | pd.Series, place: Place) -> None:
    bad = np.flatnonzero(parsed.isna())
    if len(bad):
        raise _not_a_date(texts[int(bad[0])], place(int(bad[0])))


def _to_ns(parsed: pd.Series, place: Place) -> np.ndarray:
    import pandas as pd

    index = pd.DatetimeIndex(parsed)
    if index.tz is not None:
        index = index.tz_convert("UTC").tz_localize(None)
    try:
        return index.as_unit("ns").to_numpy().astype("datetime64[ns]")
    except pd.errors.OutOfBoundsDatetime as error:
        what = f"a timestamp lies outside the years 1678 to 2262 ({error})"
        raise DataError(what, where=place(None), fix="Correct it, or leave the timestamps out") from None


def _not_a_date(text: str, where: str) -> DataError:
    return DataError(f"{shorten(text)} is not a timestamp", where=where, fix=_FIX_FORMAT)


def shorten(text: object, length: int = 40) -> str:
    """A cell's text, quoted, cut where it is long."""
    quoted = repr(str(text))
    return quoted if len(quoted) <= length else f"{quoted[: length - 4]}...'"


def check_order(times: np.ndarray, policy: str, place: Place) -> None:
    """Check that timestamps ``[T]`` are in order and, unless ``policy`` is ``as_is``, have a regular step.

    Months, quarters, years and business days count as regular steps.

    Raises:
        DataError: Names the first row that is out of order, a duplicate, or off the step.
    """
    import pandas as pd

    index, gaps = pd.DatetimeIndex(times), np.diff(times)
    backwards, repeated = (np.flatnonzero(found) + 1 for found in (gaps < _ZERO, gaps == _ZERO))
    if len(backwards):
        row = int(backwards[0])
        what = f"timestamps are not in order: {index[row]} comes after {index[row - 1]}"
        raise DataError(what, where=place(row), fix="Sort the rows by time, oldest first")
    if policy == "as_is":
        return
    if len(repeated):
        row = int(repeated[0])
        what = f"the timestamp {index[row]} repeats the previous row's ({len(repeated)} repeats in all)"
        fix = "Remove the duplicates, or set `timestamps: as_is` to keep all rows"
        raise DataError(what, where=place(row), fix=fix, past={"timestamps": "as_is"})
    step = infer_step(times)
    if step is not None and step.first_break is not None:
        row = step.first_break
        before, time, expected = index[row - 1], index[row], index[row - 1] + step.offset
        raise DataError(
            f"the step is irregular: {time} follows {before}, a step of {time - before}; "
            f"expected {expected}, a step of {expected - before}",
            where=place(row),
            fix="Insert the missing rows (empty ones with `missing: linear`), or set `timestamps: as_is` "
            "to keep the rows as they are",
            past={"timestamps": "as_is"},
        )


def infer_step(times: np.ndarray) -> Step | None:
    """The most common step of ordered timestamps ``[T]`` (repeats count once); None for fewer than three.

    Calendar steps (months, quarters, years at their start, end, first or last business day, or on one day of
    the month; business days) are recognized where every row fits; any other step is a fixed duration.
    """
    import pandas as pd

    first_rows = np.concatenate([[0], np.flatnonzero(np.diff(times) > _ZERO) + 1])
    index = pd.DatetimeIndex(times[first_rows])
    if len(index) < 3:
        return None
    gaps = np.diff(index.asi8)
    size = _most_common(gaps)
    found = _business_days(index, gaps) if size == _DAY else _months(index) if size >= 28 * _DAY else None
    offset, alias, regular = found or _fixed(index, gaps, size)
    breaks = np.flatnonzero(~regular)
    return Step(offset, alias, int(first_rows[breaks[0] + 1]) if len(breaks) else None)


def _most_common(values: np.ndarray) -> int:
    kinds, counts = np.unique(values, return_counts=True)
    return int(kinds[np.argmax(counts)])


_Found = tuple["pd.offsets.BaseOffset", str | None, np.ndarray]
"""The offset, its alias, and whether each gap is one step."""


def _fixed(index: pd.DatetimeIndex, gaps: np.ndarray, size: int) -> _Found:
    from pandas import Timedelta
    from pandas.tseries.frequencies import to_offset

    offset = to_offset(f"{size // _DAY}D") if size % _DAY == 0 else to_offset(Timedelta(size, "ns"))
    weekly = size == 7 * _DAY and index.day_of_week.nunique() == 1
    return offset, f"W-{_WEEKDAYS[index.day_of_week[0]]}" if weekly else offset.freqstr, gaps == size


def _business_days(index: pd.DatetimeIndex, gaps: np.ndarray) -> _Found | None:
    from pandas.tseries.frequencies import to_offset

    dates = index.to_numpy().astype("datetime64[D]")
    # Monday to Friday of a single week are plain days: only a skipped weekend identifies business days
    if index.day_of_week.max() > 4 or not (gaps == 3 * _DAY).any() or (gaps % _DAY != 0).any():
        return None
    return to_offset("B"), "B", np.busday_count(dates[:-1], dates[1:]) == 1


def _months(index: pd.DatetimeIndex) -> _Found | None:
    import pandas as pd
    from pandas.tseries.frequencies import to_offset

    moves = np.diff(12 * index.year + index.month)
    count = _most_common(moves)
    if count == 0 or (index - index.normalize()).nunique() > 1:
        return None
    for kind in ("MS", "ME", "BMS", "BME"):
        if all(map(to_offset(kind).is_on_offset, index)):
            alias = _month_alias(kind, count, index[0].month_name()[:3].upper())
            return to_offset(alias), alias, moves == count
    if index.day.nunique() > 1:
        return None
    return pd.DateOffset(months=count), None, moves == count


def _month_alias(kind: str, count: int, anchor: str) -> str:
    if count % 12 == 0:
        return f"{count // 12 if count > 12 else ''}{kind.replace('M', 'Y')}-{anchor}"
    if count == 3:
        return f"{kind.replace('M', 'Q')}-{anchor}"
    return f"{count if count > 1 else ''}{kind}"


def following(times: np.ndarray, step: Step, count: int) -> np.ndarray:
    """The ``count`` timestamps after the last of ``times``, as ``[count]`` datetime64[ns]."""
    import pandas as pd

    index = pd.date_range(start=pd.Timestamp(times[-1]), periods=count + 1, freq=step.offset)[1:]
    return index.as_unit("ns").to_numpy().astype("datetime64[ns]")

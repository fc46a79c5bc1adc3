"""Timestamps: what a column of dates means, the regular step between them, and the dates that follow."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ofa_jax.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Place = Callable[[int | None], str]
"""Says where a data row lies (0-based; None for the whole column), for the ``where`` of an error."""

_DAY = 24 * 3600 * 10**9
_WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_ZONE = re.compile(r"[T ][\d:.,]+\s*(Z|[+-]\d\d?(:?\d\d)?)$", re.IGNORECASE)
_DAY_AND_MONTH = re.compile(r"\d{1,2}([/.-])\d{1,2}\1\d{4}(.*)$")
_CLOCKS = (
    (re.compile(r"$"), ""),
    (re.compile(r" \d{1,2}:\d\d$"), " %H:%M"),
    (re.compile(r" \d{1,2}:\d\d:\d\d$"), " %H:%M:%S"),
    (re.compile(r" \d{1,2}:\d\d:\d\d\.\d+$"), " %H:%M:%S.%f"),
    (re.compile(r" \d{1,2}:\d\d [AP]M$", re.IGNORECASE), " %I:%M %p"),
    (re.compile(r" \d{1,2}:\d\d:\d\d [AP]M$", re.IGNORECASE), " %I:%M:%S %p"),
)
_FIX_FORMAT = "Write timestamps like 2024-01-31 13:00:00, name another `timestamp_column`, or rename this one if it holds no timestamps"


@dataclass(frozen=True)
class Step:
    """The step between rows: a pandas offset, its alias (None where pandas has none), the first row that breaks it (0-based)."""

    offset: pd.offsets.BaseOffset
    alias: str | None
    first_break: int | None


def looks_like_date(text: str) -> bool:
    """Whether one cell reads as a date that is not simply a number."""
    if re.fullmatch(r"[+-]?[\d.]*", text):
        return False
    try:
        parse_times([text], lambda row: "")
    except DataError as error:
        return "day first or month first" in error.what
    return True


def parse_times(cells: Sequence[Any] | pd.Series, place: Place) -> np.ndarray:
    """Timestamps of a column as ``[T]`` datetime64[ns]; those with a time zone come out in UTC.

    ISO 8601 in all its lengths (years and months included) is read first. Dates with the year last are read day first or
    month first, whichever fits every row; where both fit, whichever gives a regular step.

    Raises:
        DataError: A cell that is missing or is no date, dates that can be read in two ways, zones in some rows only.
    """
    import pandas as pd

    column = cells if isinstance(cells, pd.Series) else pd.Series(list(cells), dtype=object)
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        missing = np.flatnonzero(column.isna().to_numpy())
        if len(missing):
            raise DataError(
                "the timestamp is missing", where=place(int(missing[0])), fix="Fill it, or remove the row"
            )
        return _to_ns(pd.DatetimeIndex(column), place)
    return _parse_text(_as_text(column, place), place)


def has_zone(cells: Sequence[Any] | pd.Series) -> bool:
    """Whether timestamps that :func:`parse_times` has read carry a time zone; all do or none."""
    import pandas as pd

    if isinstance(cells, pd.Series) and pd.api.types.is_datetime64_any_dtype(cells.dtype):
        return cells.dt.tz is not None
    first = cells.iloc[0] if isinstance(cells, pd.Series) else cells[0]
    return _ZONE.search(str(first).strip()) is not None


def _as_text(column: pd.Series, place: Place) -> list[str]:
    missing = column.isna().to_numpy()
    texts = ["" if gone else str(cell).strip() for cell, gone in zip(column.tolist(), missing, strict=True)]
    for row, text in enumerate(texts):
        if not text:
            raise DataError("the timestamp is missing", where=place(row), fix="Fill it, or remove the row")
        # pandas reads words such as "now" as the present moment
        if not text[0].isdigit():
            raise _not_a_date(text, place(row))
    return texts


def _parse_text(texts: list[str], place: Place) -> np.ndarray:
    import pandas as pd

    zoned = [_ZONE.search(text) is not None for text in texts]
    if any(zoned) and not all(zoned):
        raise _mixed_zones(texts, zoned.index(not zoned[0]), place)
    column = pd.Series(texts, dtype=object)
    try:
        parsed = pd.to_datetime(column, format="ISO8601", utc=zoned[0], errors="coerce")
    except ValueError:  # a zone in a form that only pandas knows
        kinds = [
            pd.to_datetime(pd.Series([text], dtype=object), format="ISO8601", errors="coerce").dtype
            for text in texts
        ]
        raise _mixed_zones(
            texts, next((row for row, kind in enumerate(kinds) if kind != kinds[0]), 0), place
        ) from None
    if pd.notna(parsed.iloc[0]):
        return _whole(parsed, texts, place)
    return _parse_year_last(texts, place)


def _mixed_zones(texts: list[str], row: int, place: Place) -> DataError:
    return DataError(
        f"{texts[row]!r} and {texts[0]!r} in the first row are not both with a time zone or both without",
        where=place(row),
        fix="Give every timestamp a time zone, or none",
    )


def _parse_year_last(texts: list[str], place: Place) -> np.ndarray:
    import pandas as pd

    match = _DAY_AND_MONTH.match(texts[0])
    clock = (
        next((form for pattern, form in _CLOCKS if pattern.match(match.group(2))), None) if match else None
    )
    if match is None or clock is None:
        raise _not_a_date(texts[0], place(0))
    sign = match.group(1)
    series = pd.Series(texts, dtype=object)
    orders = [f"%d{sign}%m{sign}%Y{clock}", f"%m{sign}%d{sign}%Y{clock}"]
    readings = [pd.to_datetime(series, format=order, errors="coerce") for order in orders]
    whole = [_to_ns(pd.DatetimeIndex(reading), place) for reading in readings if reading.notna().all()]
    if not whole:
        return _whole(
            max(readings, key=lambda reading: reading.notna().to_numpy().cumprod().sum()), texts, place
        )
    if len(whole) == 2 and not np.array_equal(whole[0], whole[1]):
        whole = [times for times in whole if _is_regular(times)]
        if len(whole) != 1:
            raise DataError(
                f"{texts[0]!r} can be read day first or month first, and the rows do not tell which",
                where=place(0),
                fix="Write dates with the year first, such as 2024-01-31",
            )
    return whole[0]


def _is_regular(times: np.ndarray) -> bool:
    if len(times) < 3 or (np.diff(times) <= np.timedelta64(0)).any():
        return False
    step = infer_step(times)
    return step is not None and step.first_break is None


def _whole(parsed: pd.Series, texts: list[str], place: Place) -> np.ndarray:
    import pandas as pd

    bad = np.flatnonzero(parsed.isna().to_numpy())
    if len(bad):
        raise _not_a_date(texts[int(bad[0])], place(int(bad[0])))
    return _to_ns(pd.DatetimeIndex(parsed), place)


def _to_ns(index: pd.DatetimeIndex, place: Place) -> np.ndarray:
    import pandas as pd

    if index.tz is not None:
        index = index.tz_convert("UTC").tz_localize(None)
    try:
        return index.as_unit("ns").to_numpy().astype("datetime64[ns]")
    except pd.errors.OutOfBoundsDatetime as error:
        raise DataError(
            f"a timestamp lies outside the years 1678 to 2262 ({error})",
            where=place(None),
            fix="Correct it, or leave the timestamps out",
        ) from None


def _not_a_date(text: str, where: str) -> DataError:
    return DataError(f"{shorten(text)} is not a timestamp", where=where, fix=_FIX_FORMAT)


def shorten(text: object, length: int = 40) -> str:
    """A cell's text, quoted, cut where it is long."""
    quoted = repr(str(text))
    return quoted if len(quoted) <= length else f"{quoted[: length - 4]}...'"


def check_order(times: np.ndarray, policy: str, place: Place) -> None:
    """Refuse timestamps ``[T]`` that run backwards and, unless ``policy`` is ``as_is``, those that repeat or skip.

    Months, quarters, years and business days count as regular steps.

    Raises:
        DataError: Naming the first row that is out of order, a duplicate, or off the step.
    """
    gaps = np.diff(times)
    backwards = np.flatnonzero(gaps < np.timedelta64(0))
    if len(backwards):
        row = int(backwards[0]) + 1
        raise DataError(
            f"timestamps are not in order: {_show(times[row])} comes after {_show(times[row - 1])}",
            where=place(row),
            fix="Sort the rows by time, oldest first",
        )
    if policy == "as_is":
        return
    repeated = np.flatnonzero(gaps == np.timedelta64(0))
    if len(repeated):
        row = int(repeated[0]) + 1
        raise DataError(
            f"the timestamp {_show(times[row])} stands in two rows running ({len(repeated)} such rows in all)",
            where=place(row),
            fix="Remove the duplicates, or set `timestamps: as_is` to count rows as they stand",
        )
    step = infer_step(times)
    if step is not None and step.first_break is not None:
        _raise_irregular(times, step, place)


def _raise_irregular(times: np.ndarray, step: Step, place: Place) -> None:
    import pandas as pd

    row = step.first_break
    assert row is not None
    expected = (pd.Timestamp(times[row - 1]) + step.offset).to_datetime64()
    found, wanted = (str(pd.Timedelta(time - times[row - 1])) for time in (times[row], expected))
    raise DataError(
        f"the step is irregular: {_show(times[row])} follows {_show(times[row - 1])}, a step of {found}; "
        f"expected {_show(expected)}, a step of {wanted}",
        where=place(row),
        fix="Insert the missing rows (they may be empty with `missing: linear`), or set `timestamps: as_is` to count rows as they stand",
    )


def _show(time: np.datetime64) -> str:
    import pandas as pd

    return str(pd.Timestamp(time))


def infer_step(times: np.ndarray) -> Step | None:
    """The most common step of non-decreasing timestamps ``[T]`` (repeated ones count once); None for fewer than three.

    Calendar steps (months, quarters, years at their start, end, first or last business day, or on one day of the month;
    business days) are recognised where every row lies on them; otherwise the step is a fixed duration.
    """
    first_rows = np.concatenate([[0], np.flatnonzero(np.diff(times) > np.timedelta64(0)) + 1])
    times = times[first_rows]
    if len(times) < 3:
        return None
    gaps = np.diff(times).astype("timedelta64[ns]").astype(np.int64)
    size = _most_common(gaps)
    found = _business_days(times, gaps) if size == _DAY else _months(times) if size >= 28 * _DAY else None
    offset, alias, regular = found or _fixed(times, gaps, size)
    breaks = np.flatnonzero(~regular)
    return Step(offset, alias, int(first_rows[breaks[0] + 1]) if len(breaks) else None)


def _most_common(values: np.ndarray) -> int:
    kinds, counts = np.unique(values, return_counts=True)
    return int(kinds[np.argmax(counts)])


_Found = tuple["pd.offsets.BaseOffset", str | None, np.ndarray]


def _fixed(times: np.ndarray, gaps: np.ndarray, size: int) -> _Found:
    from pandas import Timedelta
    from pandas.tseries.frequencies import to_offset

    offset = to_offset(f"{size // _DAY}D") if size % _DAY == 0 else to_offset(Timedelta(size, "ns"))
    alias = offset.freqstr
    weekdays = _weekdays(times)
    if size == 7 * _DAY and (weekdays == weekdays[0]).all():
        alias = f"W-{_WEEKDAYS[weekdays[0]]}"
    return offset, alias, gaps == size


def _weekdays(times: np.ndarray) -> np.ndarray:
    return (times.astype("datetime64[D]").astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday


def _business_days(times: np.ndarray, gaps: np.ndarray) -> _Found | None:
    from pandas.tseries.frequencies import to_offset

    dates = times.astype("datetime64[D]")
    # days from Monday to Friday of one week alone are plain days: only a weekend passed over tells
    if (_weekdays(times) > 4).any() or not (gaps == 3 * _DAY).any() or (gaps % _DAY != 0).any():
        return None
    return to_offset("B"), "B", np.busday_count(dates[:-1], dates[1:]) == 1


def _months(times: np.ndarray) -> _Found | None:
    from pandas import DateOffset
    from pandas.tseries.frequencies import to_offset

    dates = times.astype("datetime64[D]")
    clocks = times - dates
    if (clocks != clocks[0]).any():
        return None
    month = dates.astype("datetime64[M]")
    moves = np.diff(month.astype(np.int64))
    count = _most_common(moves)
    if count == 0:
        return None
    start, end = month.astype("datetime64[D]"), (month + 1).astype("datetime64[D]")
    places = {
        "S": start,
        "E": end - 1,
        "BS": np.busday_offset(start, 0, roll="forward"),
        "BE": np.busday_offset(end, -1, roll="forward"),
    }
    kind = next((name for name, days in places.items() if (dates == days).all()), None)
    if kind is None:
        day = (dates - start).astype(np.int64)
        if (day != day[0]).any():
            return None
        return DateOffset(months=count), None, moves == count
    alias = _month_alias(kind, count, _MONTHS[int(month[0].astype(np.int64)) % 12])
    return to_offset(alias), alias, moves == count


def _month_alias(kind: str, count: int, anchor: str) -> str:
    business, side = kind[:-1], kind[-1]
    if count % 12 == 0:
        return f"{count // 12 if count > 12 else ''}{business}Y{side}-{anchor}"
    if count == 3:
        return f"{business}Q{side}-{anchor}"
    return f"{count if count > 1 else ''}{business}M{side}"


def following(times: np.ndarray, step: Step, count: int) -> np.ndarray:
    """The ``count`` timestamps after the last of ``times``, as ``[count]`` datetime64[ns]."""
    import pandas as pd

    index = pd.date_range(start=pd.Timestamp(times[-1]), periods=count + 1, freq=step.offset)[1:]
    return index.as_unit("ns").to_numpy().astype("datetime64[ns]")

"""Timestamps: a column of times as read and as written back, and the checks of their order and step."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from ofa_jax.data.calendar import (
    Duration,
    Step,
    fit_step,
    following,
    follows,
    infer_step,
    most_common,
    step_of,
)
from ofa_jax.data.clock import Clock
from ofa_jax.data.dates import (
    EPOCHS,
    EXCEL,
    FIRST_EPOCH,
    ISO,
    WHOLE,
    forms_of,
    minutes_of,
    on_grid,
    read_form,
    split_zones,
    time_in_digits,
    with_leading_zeros,
    zone_of,
    zone_of_midnights,
)
from ofa_jax.errors import DataError, shorten

if TYPE_CHECKING:
    import pandas as pd

_MIDNIGHT = re.compile(r"(?<=[T ])24:00(?=(?::00(?:\.0+)?)?$)")
Place = Callable[[int | None], str]
"""The position of a data row (0-based; None for the column), for the ``where`` of an error."""

_FIX_FORMAT = (
    "Write timestamps like 2024-01-31 13:00:00, set `timestamp_format`, name another `timestamp_column`, "
    "or rename this one if it contains no timestamps"
)


def parse_times(
    column: pd.Series, place: Place, form: str | None = None, expected: str | None = None
) -> tuple[np.ndarray, Clock]:
    """Times of a column as ``[T]`` datetime64 (UTC where they have a time zone), int64 for a counter.

    ISO 8601 comes first, years and months included; then dates with names of months, quarters, weeks, and
    dates with the year last, which are read day first or month first, whichever fits every row; where both
    fit, whichever is in order, with the expected or a regular step. Whole numbers are dates written without
    signs, seconds (or smaller units) since 1970, or a counter.

    Args:
        column: The cells.
        place: Where they are, for errors.
        form: A format of strptime, ``excel`` (Excel's day numbers), or ``s``, ``ms``, ``us``, ``ns`` (since
            1970); default: recognized.
        expected: The step between rows that is likely.

    Raises:
        DataError: A cell that is missing or not a date, ambiguous dates, time zones in some rows only.
    """
    import pandas as pd

    column = column.reset_index(drop=True)
    period = isinstance(column.dtype, pd.PeriodDtype)
    dated = period or pd.api.types.is_datetime64_any_dtype(column.dtype)
    gone = column.isna().to_numpy()
    texts = None if dated else pd.Series([str(cell).strip() for cell in column], dtype=object)
    missing = np.flatnonzero(gone if texts is None else gone | (texts == "").to_numpy())
    if len(missing):
        fix = "Fill it, or remove the row"
        raise DataError("the timestamp is missing", where=place(int(missing[0])), fix=fix)
    if texts is None:
        return _parse_dtype(column, period)
    if form in (*EPOCHS, EXCEL):
        return _parse_numbers(texts, form, place)
    if form is None and texts.str.fullmatch(WHOLE).all():
        return _parse_digits(texts.str.split(".").str[0], place)
    times, clock = _parse_text(texts, place, form, expected)
    if all(type(cell) is date for cell in column):
        clock = replace(clock, write=lambda index: pd.Index(index.date, dtype=object))
    return times, clock


def _parse_dtype(column: pd.Series, period: bool) -> tuple[np.ndarray, Clock]:
    import pandas as pd

    dtype: Any = column.dtype
    if period:
        index = pd.DatetimeIndex(column.dt.to_timestamp())
        return _compact(index.to_numpy()), Clock(write=lambda times: times.to_period(dtype.freq))
    arrow = isinstance(dtype, pd.ArrowDtype)
    index = pd.DatetimeIndex(column.astype("datetime64[us]") if "date" in str(dtype) and arrow else column)
    write = (lambda times: pd.Index(times.to_series().astype(dtype))) if arrow else None
    zone, unit = index.tz, index.unit
    if zone is not None:
        index = index.tz_convert("UTC").tz_localize(None)
    return _compact(index.to_numpy()), Clock(zone, unit, write)


def _parse_numbers(texts: pd.Series, form: str, place: Place) -> tuple[np.ndarray, Clock]:
    import pandas as pd

    numbers = pd.to_numeric(texts, errors="coerce")
    parsed = read_form(texts, form)
    _check_complete(parsed, texts, place)
    if form == EXCEL:
        decimals = texts.str.extract(r"\.(\d+)$")[0].str.len().max()
        parsed, rounded = on_grid(parsed, 0.5 * 10.0**-decimals if decimals > 0 else 0.0)
        return _compact(parsed.to_numpy()), Clock(notices=() if rounded is None else (rounded,))
    whole = bool((numbers % 1 == 0).all())
    return _compact(parsed.to_numpy()), Clock(write=_epoch_writer(form) if whole else None)


def _parse_digits(texts: pd.Series, place: Place) -> tuple[np.ndarray, Clock]:
    import pandas as pd

    values = texts.to_numpy(np.float64)
    found = time_in_digits(values)
    example = f"whole numbers such as {texts.iloc[0]}"
    if found is None:
        longest = int(texts.str.len().argmax())
        if len(texts[longest]) > 18:  # beyond int64
            raise _not_a_date(texts[longest], place(longest))
        words = f"{example} are read as a counter of rows"
        if texts.str.fullmatch(r"[2-6]\d{4}").all():
            words += "; if they are Excel's day numbers, set `timestamp_format: excel`"
        elif np.abs(values).max() >= FIRST_EPOCH:
            words += "; if they are times since 1970, set `timestamp_format` to s, ms, us or ns"
        return texts.astype(np.int64).to_numpy(), Clock(notices=(words,))
    parsed = found.read(texts)
    _check_complete(parsed, texts, place)

    def written(index: pd.DatetimeIndex) -> pd.Index:
        return pd.Index(index.strftime(found.form).astype(np.int64))

    write = _epoch_writer(found.form) if found.form in EPOCHS else written
    return _compact(parsed.to_numpy()), Clock(write=write, notices=(f"{example} are read as {found.words}",))


def _epoch_writer(unit: str) -> Callable[[pd.DatetimeIndex], pd.Index]:
    import pandas as pd

    return lambda index: pd.Index(index.as_unit(unit).asi8)  # type: ignore[arg-type]


def _parse_text(
    texts: pd.Series, place: Place, form: str | None, expected: str | None
) -> tuple[np.ndarray, Clock]:
    import pandas as pd

    bodies, zones = split_zones(texts)
    zoned = zones.notna().to_numpy()
    if zoned.any() and not zoned.all():
        row = int(np.flatnonzero(zoned != zoned[0])[0])
        what = f"{texts[row]!r} and {texts[0]!r} in the first row differ in having a time zone"
        raise DataError(what, where=place(row), fix="Give every timestamp a time zone, or none")
    known = {zone: minutes_of(zone) for zone in zones.dropna().unique()}
    unknown = next((zone for zone, minutes in known.items() if np.isnan(minutes)), None)
    # a given form may contain the text
    literal = form is not None and ("%z" in form or np.isnan([*known.values()]).all())
    if unknown is not None and not literal:
        what = f"the text {shorten(unknown)} after the time is no time zone that is known"
        fix = "Write an offset from UTC in its place, such as +01:00, or leave it out"
        raise DataError(what, where=place(int(np.argmax(zones == unknown))), fix=fix)
    notices: list[str] = []
    if form is not None:
        parsed = _read_given(texts if literal else bodies, form, place)
    else:
        parsed, notices = _read_best(bodies, place, expected)
    wall = pd.DatetimeIndex(parsed)
    if wall.tz is not None:  # the given form has %z
        return _compact(wall.tz_convert("UTC").tz_localize(None).to_numpy()), Clock(wall.tz)
    if literal or not zoned[0]:
        return _compact(wall.to_numpy()), Clock(notices=tuple(notices))
    offsets = zones.map(known).to_numpy(np.float64)
    utc = wall.to_numpy() - (offsets * 60).astype("m8[s]")
    named = [f"{zone} is UTC{known[zone] / 60:+.0f}" for zone in known if zone[0].isalpha() and known[zone]]
    notices += [f"time zones: {', '.join(named)}"] if named else []
    zone, inferred = zone_of(utc, offsets)
    notices += [] if inferred is None else [inferred]
    return _compact(utc), Clock(zone, notices=tuple(notices))


def _read_given(texts: pd.Series, form: str, place: Place) -> pd.Series:
    given, (texts, late) = texts, _without_24(texts)
    texts = with_leading_zeros(texts, form)
    if texts.str.contains(r" \d\d:00$").all():  # a date and its hour in two columns
        form += ":%M" if form.endswith("%H") else "" if re.search("%[HIcXT]", form) else " %H:%M"
    try:
        parsed = read_form(texts, form)
        parsed = parsed.mask(late, parsed + timedelta(days=1))
    except ValueError as error:
        what = f"`timestamp_format` {form!r} cannot be used: {error}"
        fix = 'Set one such as `timestamp_format: "%d.%m.%Y %H:%M"`, or excel, s, ms, us or ns'
        raise DataError(what, where=place(None), fix=fix) from None
    _check_complete(parsed, given, place)
    return parsed


def _without_24(texts: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Texts with 00:00 in place of 24:00, and which those were."""
    return texts.str.replace(_MIDNIGHT, "00:00", regex=True), texts.str.contains(_MIDNIGHT)


def _read_best(texts: pd.Series, place: Place, expected: str | None) -> tuple[pd.Series, list[str]]:
    given, (texts, late) = texts, _without_24(texts)
    forms = forms_of(texts[0])
    if not forms:
        raise _not_a_date(texts[0], place(0))
    # pandas' ISO 8601 parser takes words such as "now" for the present moment
    words = ~texts.str[:1].str.isdigit().astype(bool) if forms == [ISO] else None
    try:
        readings = {form: read_form(texts if words is None else texts.mask(words), form) for form in forms}
    except ValueError:  # time zones in a form that only pandas recognizes
        what, fix = "only some rows have a time zone", "Give every timestamp a time zone, or none"
        raise DataError(what, where=place(None), fix=fix) from None
    _check_complete(max(readings.values(), key=lambda times: times.notna().cumprod().sum()), given, place)
    readings = {form: times.mask(late, times + timedelta(days=1)) for form, times in readings.items()}
    complete = {form: times for form, times in readings.items() if times.notna().all()}
    distinct = {times.to_numpy().tobytes(): form for form, times in reversed(complete.items())}
    notices = ["24:00 is read as the midnight that ends the day"] if late.any() else []
    if len(distinct) > 1:
        fitting = [
            form
            for form in distinct.values()
            if _in_order(times := complete[form].to_numpy()) or _in_order(times[::-1])
        ]
        if len(fitting) != 1:
            fitting = [form for form in fitting if _is_regular(complete[form].to_numpy(), expected)]
        if len(fitting) != 1:
            ways = " or ".join(sorted(f'`timestamp_format: "{form}"`' for form in distinct.values()))
            what = f"{texts[0]!r} can be read day first or month first, and the other rows do not decide it"
            fix = f"Write dates with the year first, such as 2024-01-31, or set {ways}"
            raise DataError(what, where=place(0), fix=fix)
        notices.append(f"{texts[0]!r} is read as {fitting[0]}, so that rows are in order and regular")
    else:
        fitting = [next(iter(complete))]
    if "%y" in fitting[0]:
        years = complete[fitting[0]].dt.year
        notices.append(
            f"the two-digit years of dates such as {texts[0]!r} are read as {years.min()} to {years.max()}"
        )
    return complete[fitting[0]], notices


def _in_order(times: np.ndarray) -> bool:
    return bool((times[1:] >= times[:-1]).all())


def _is_regular(times: np.ndarray, expected: str | None) -> bool:
    times = np.sort(times)
    step = infer_step(times) if expected is None else fit_step(expected, times)
    return step is not None and len(np.unique(times)) == len(times) and bool(follows(step, times).all())


def _check_complete(parsed: pd.Series, texts: pd.Series, place: Place) -> None:
    bad = np.flatnonzero(parsed.isna())
    if len(bad):
        raise _not_a_date(texts[int(bad[0])], place(int(bad[0])))


def _compact(times: np.ndarray) -> np.ndarray:
    """Times in nanoseconds, or in microseconds where they lie outside the years 1678 to 2262."""
    years = times.astype("M8[Y]").astype(np.int64) + 1970
    return times.astype("M8[us]" if years.min() < 1678 or years.max() > 2261 else "M8[ns]")


def _not_a_date(text: str, where: str) -> DataError:
    what = f"{shorten(text)} is not a timestamp"
    if re.fullmatch(r"[2-6]\d{4}\.\d+", text):
        fix, past = (
            "If these are Excel's day numbers, set `timestamp_format: excel`",
            {"timestamp_format": EXCEL},
        )
        return DataError(what, where=where, fix=fix, past=past)
    return DataError(what, where=where, fix=_FIX_FORMAT)


def read_times(
    column: pd.Series,
    place: Place,
    *,
    form: str | None = None,
    frequency: str | None = None,
    expected: str | None = None,
    counted: bool = False,
) -> tuple[np.ndarray | None, Clock, bool]:
    """Times of a column, oldest first, their clock, and whether the source has its newest row first.

    Args:
        column, place, form, expected: As of :func:`parse_times`.
        frequency: The step between rows; default: inferred.
        counted: Keep repeated times and irregular steps.

    Raises:
        DataError: As :func:`parse_times` and :func:`check_order`.
    """
    if frequency is not None:
        step_of(frequency)
    times, clock = parse_times(column, place, form, frequency or expected)
    clock = replace(clock, frequency=frequency, counted=counted)
    newest_first = len(times) > 1 and times[0] > times[-1] and _in_order(times[::-1])
    if str(clock.zone) == "UTC" and (found := zone_of_midnights(times[::-1] if newest_first else times)):
        clock = replace(clock, zone=found[0], written=clock.zone, notices=(*clock.notices, found[1]))
    if newest_first:
        times, rows = times[::-1], len(times)
        turned = "the newest row comes first, so rows are read from the last to the first"
        clock = replace(clock, notices=(*clock.notices, turned))
        check_order(times, clock, lambda row: place(None if row is None else rows - 1 - row))
    else:
        check_order(times, clock, place)
    if times.dtype.kind != "i":
        return times, clock, newest_first
    steps = np.diff(times)
    regular = len(steps) == 0 or bool((steps == max(steps[0], 1)).all())
    counter = (int(times[0]), int(steps[0]) if len(steps) else 1) if regular else None
    return None, replace(clock, counter=counter), newest_first


def check_order(times: np.ndarray, clock: Clock, place: Place) -> None:
    """Check that times ``[T]`` are in order and, unless rows are counted, have a regular step.

    Raises:
        DataError: Names the first row that is out of order, a duplicate, or off the step.
    """
    gaps = np.diff(times)
    zero = gaps.dtype.type(0)
    backwards, repeated = (np.flatnonzero(found) + 1 for found in (gaps < zero, gaps == zero))
    if len(backwards):
        row = int(backwards[0])
        before, time = _shown(times[row - 1 : row + 1], clock)
        what = f"timestamps are not in order: {time} comes after {before}"
        raise DataError(what, where=place(row), fix="Sort the rows by time, oldest first")
    if clock.counted:
        return
    if len(repeated):
        row = int(repeated[0])
        (time,) = _shown(times[row : row + 1], clock)
        what = f"the timestamp {time} repeats the previous row's ({len(repeated)} repeats in all)"
        fix = "Remove the duplicates, or set `timestamps: as_is` to count rows whatever their times"
        if times.dtype.kind == "M" and np.median(gaps) < np.timedelta64(1, "D"):
            fix += ". If clocks were changed there, write local times with their offset from UTC "
            fix += "(2024-10-27 02:00+01:00)"
        raise DataError(what, where=place(row), fix=fix, past={"timestamps": "as_is"})
    step = step_between(times, clock)
    if step is not None and not (regular := follows(step, times, clock.zone)).all():
        row = int(np.argmin(regular)) + 1
        expected = following(times[:row], step, 1, clock.zone)
        before, time, next_time = _shown(np.concatenate([times[row - 1 : row + 1], expected]), clock)
        what = (
            f"the step is irregular: {time} follows {before}, a step of {time - before}; "
            f"expected {next_time}, a step of {next_time - before}"
        )
        past = {"timestamps": "as_is"}
        fix = "Insert the missing rows (with `missing: linear` their cells may be empty), or set "
        fix += "`timestamps: as_is` "
        if step.alias == "B":
            past["frequency"] = step.alias
            fix += "and `frequency: B` to leave out holidays"
        else:
            fix += "to count rows whatever their times"
        if abs(time - next_time) == timedelta(hours=1):
            fix += ". If this is a change of clocks, write local times with their offset from UTC "
            fix += "(2024-03-31 00:00+01:00)"
        raise DataError(what, where=place(row), fix=fix, past=past)


def step_between(times: np.ndarray, clock: Clock) -> Step | None:
    """The step between rows: the one that the clock's frequency names, else the most common one."""
    if times.dtype.kind == "i":
        return Duration("counter", most_common(np.diff(times)), wall=False) if len(times) > 2 else None
    if clock.frequency is None:
        return infer_step(times, clock.zone)
    return fit_step(clock.frequency, times, clock.zone) or step_of(clock.frequency)


def _shown(times: np.ndarray, clock: Clock) -> list[Any]:
    if times.dtype.kind == "i":
        return times.tolist()
    return list(replace(clock, write=None).index(times, ""))

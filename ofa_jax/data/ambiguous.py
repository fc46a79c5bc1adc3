"""Tables and times that can be read in several ways, none of which is likelier: they are refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ofa_jax.data.columns import PARTS, words_of
from ofa_jax.data.dates import WHOLE, looks_like_date, read_form, time_in_digits, width_of, with_leading_zeros
from ofa_jax.data.tables import Table
from ofa_jax.data.timestamps import Place
from ofa_jax.errors import DataError, listed

if TYPE_CHECKING:
    import pandas as pd

_DATES = ("%d%m%Y", "%m%d%Y", "%Y%j", "%y%m%d", "%d%m%y", "%m%Y")
"""Dates in whole numbers, which may be a counter as well by their size."""
_YEAR_MONTH = re.compile(r"(\d{4})[-/. ]?(\d{1,2})")
_DAY = re.compile(r"[A-Za-z]{3,9}\W?\d{1,2}")
_NO_MONTHS = {"week": "week", "wk": "week", "kw": "week", "quarter": "quarter", "qtr": "quarter"}
"""Words of a name that say that a number after the year is no month, and which part it is."""
_WRITTEN = {"week": "W01", "quarter": "Q1"}
_TIME = re.compile(r"(1[89]|20|21)\d\d|^\d{1,2}/\d{1,2}/\d\d$")
"""What a name has that is a time."""
_LEAST = 3  # cells, or columns, that show what they are
_LEAST_NUMBERS = 7  # that are all valid dates, and in order
_SHORT = 6  # digits of dates that all have lost a zero: such numbers are too common
_FARTHEST = 31  # days from one such date to the next


def refuse_ambiguous(name: str, cells: pd.Series, times: np.ndarray | None, place: Place) -> None:
    """Refuse times of a column ``name`` that may well be others than those that were read.

    Args:
        name: The column's name.
        cells: Its cells ``[T]``.
        times: What was read, ``[T]`` datetime64 in their order or from the last to the first; None for a
            counter.
        place: Where they are, for errors.

    Raises:
        DataError: Whole numbers that may be dates, months that may be weeks, quarters, financial years or
            days.
    """
    import pandas as pd

    first = str(cells.iloc[0]).strip()
    if len(cells) < _LEAST or isinstance(cells.dtype, pd.PeriodDtype):
        return
    if times is None:
        _refuse_digits(cells.astype(str).str.strip().str.split(".").str[0].reset_index(drop=True), place)
    elif _DAY.fullmatch(first):
        _refuse_days(cells.astype(str).str.strip(), times, place)
    elif _YEAR_MONTH.fullmatch(first):
        _refuse_months(name, cells.astype(str).str.strip(), times, place)


def _refuse_months(name: str, texts: pd.Series, times: np.ndarray, place: Place) -> None:
    first, second = texts.iloc[0], texts.iloc[1]
    numbers = texts.str.extract(_YEAR_MONTH)[1].astype(float)
    part = next((_NO_MONTHS[word] for word in words_of(name) if word in _NO_MONTHS), None)
    if part is not None and numbers.max() <= PARTS[part][1]:
        what = f"{first!r} reads as a year and month, and the column is called {part}"
        fix = f"Write it as {first[:4]}-{_WRITTEN[part]}, or set `timestamp_format` or `frequency`"
        raise DataError(what, where=place(None), fix=fix)
    months = np.unique(np.diff(np.unique(times.astype("M8[M]"))).astype(int)).tolist()
    if months == [13]:
        what = f"{first} and {second} are 13 months apart, so they may be years that end in the next one"
        fix = "Write the year alone, or set the step between rows as `frequency: 13MS`"
        raise DataError(what, where=place(None), fix=fix)
    if months == [12] and texts.str.fullmatch(r"\d{6}").all() and read_form(texts, "%y%m%d").notna().all():
        what = f"{first} and {second} may be a month of two years, or two dates of one"
        fix = 'Set `timestamp_format: "%Y%m"` for months, or `timestamp_format: "%y%m%d"` for dates'
        raise DataError(what, where=place(None), fix=fix)


def _refuse_digits(texts: pd.Series, place: Place) -> None:
    if len(texts) < _LEAST_NUMBERS:
        return
    count = "leave the column out with `exclude` if it counts rows"
    if texts.str.fullmatch(r"(19|20|21)\d\d(0[1-9]|[1-4]\d|5[0-3])").all():
        what = f"whole numbers such as {texts.iloc[0]} may be years and weeks, or count rows"
        fix = f"Write weeks as {texts.iloc[0][:4]}-W{texts.iloc[0][4:]}, or {count}"
        raise DataError(what, where=place(None), fix=fix)
    if found := [form for form in _DATES if _are_dates(texts, form)]:
        ways = " or ".join(f'`timestamp_format: "{form}"`' for form in found)
        what = f"whole numbers such as {texts.iloc[0]} may be dates, or count rows"
        raise DataError(what, where=place(None), fix=f"Set {ways}, or {count}")


def _are_dates(texts: pd.Series, form: str) -> bool:
    """Whether whole numbers are dates of this form, in order and not far apart."""
    width = width_of(form)
    if width == _SHORT and width not in set(texts.str.len()):
        return False
    texts = with_leading_zeros(texts, form)
    if set(texts.str.len()) != {width}:
        return False
    if len(texts) > 1000 and not _are_dates(texts[:1000], form):
        return False
    times = read_form(texts, form)
    steps = times.diff().iloc[1:].dt.days
    near = steps.abs().max() <= _FARTHEST and ((steps > 0).all() or (steps < 0).all())
    return bool(times.notna().all() and times.dt.year.between(1900, 2100).all() and near)


def _refuse_days(texts: pd.Series, times: np.ndarray, place: Place) -> None:
    """Names of one month with numbers that go up from row to row: days rather than years."""
    numbers = texts.str.extract(r"(\d+)$")[0].astype(int)
    one_month = len(np.unique(times.astype("M8[M]").astype(int) % 12)) == 1
    steps = np.diff(numbers)
    if one_month and numbers.max() <= 31 and ((steps > 0).all() or (steps < 0).all()):
        what = f"{texts.iloc[0]!r} may be a day without a year, or a month of a year of two digits"
        form = re.sub(r"[A-Za-z]+(\W?)\d+", r"%b\1%y", texts.iloc[0])
        fix = f'Write days with their year, or set `timestamp_format: "{form}"` for months'
        raise DataError(what, where=place(None), fix=fix)


def refuse_kinds_of_times(series: Sequence[pd.Series], where: str) -> None:
    """Refuse whole numbers that are times of one kind in one series, and of another kind in another.

    Raises:
        DataError: There are such series.
    """
    if not any(WHOLE.fullmatch(str(cells.iloc[0]).strip()) for cells in series):
        return
    kinds = {_kind(cells): str(cells.iloc[0]) for cells in series}
    if len(kinds) > 1:
        read = ", ".join(f"{first} … as {kind}" for kind, first in kinds.items())
        what = f"the times of the series would be read in different ways: {read}"
        every = [texts.str.strip() for texts in (cells.astype(str) for cells in series)]
        forms = ("%Y%m%d", *_DATES)
        fitting = [form for form in forms if all(_are_dates(texts, form) for texts in every)]
        ways = [f'`timestamp_format: "{form}"`' for form in fitting] or ["`timestamps: as_is` to count rows"]
        raise DataError(what, where=where, fix=f"Set {' or '.join(ways)}")


def _kind(cells: pd.Series) -> str:
    texts = cells.astype(str).str.strip()
    if not texts.str.fullmatch(WHOLE).all():
        return "text"
    found = time_in_digits(texts.to_numpy(np.float64))
    return "a counter" if found is None else found.words


def refuse_times_in_columns(table: Table) -> None:
    """Refuse a table without a column of times whose columns are named by times: it has a row per series.

    Raises:
        DataError: Most columns, and at least three, are named by dates or by one year after the other.
    """
    named = [name for name in table.names if looks_like_date(name) and _TIME.search(name)]
    years = [name for name in table.names if re.fullmatch(r"(1[5-9]|20|21)\d\d", name)]
    if len(years) > len(named) and len(years) < len(table.names):
        named = years if set(np.diff(np.array(years, int)).tolist()) <= {1, -1} else named
    others = [name for name in table.names if name not in named]
    if len(named) < _LEAST or len(named) < len(others):
        return
    what = f"columns are named by times ({listed(named)}), so a row may be a series"
    call = f"melt(id_vars={others!r}, var_name='time')" if others else "T"
    fix = f"Give a row per time, or per series and time (pandas: `table.{call}`), or list the series in "
    fix += "`columns`"
    raise DataError(what, where=table.source, fix=fix)

"""Tables and times that can be read in several ways, none of which is likelier: they are refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ofa_jax.data.columns import words_of
from ofa_jax.data.dates import YEARS, digits_of, looks_like_date, read_form
from ofa_jax.data.tables import Table
from ofa_jax.data.timestamps import Place
from ofa_jax.errors import DataError, listed

if TYPE_CHECKING:
    import pandas as pd

_DIGITS = (("%d%m%Y", 8), ("%m%d%Y", 8), ("%Y%j", 7), ("%y%m%d", 6), ("%d%m%y", 6), ("%m%Y", 6))
"""Dates in whole numbers, which may be a counter as well by their size, and their width."""
_MONTH = re.compile(r"(\d{4})\D?(\d{1,2})")
_DAY = re.compile(r"[A-Za-z]{3,9}\W?\d{1,2}")
_PART = {"week": "2024-W01", "wk": "2024-W01", "kw": "2024-W01", "quarter": "2024-Q1", "qtr": "2024-Q1"}
"""Words of a column's name that say that a number after the year is no month, and how to write it."""
_LEAST = 3  # cells, or columns, that show what they are
_LEAST_NUMBERS = 7  # that are all valid dates, and in order


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
    first = str(cells.iloc[0]).strip()
    if len(cells) < _LEAST or not (times is None or _MONTH.fullmatch(first) or _DAY.fullmatch(first)):
        return
    texts = cells.astype(str).str.strip()
    if times is None:
        _refuse_digits(texts.str.split(".").str[0], place)
        return
    months = np.unique(np.diff(np.unique(times.astype("M8[M]"))).astype(int))
    if _DAY.fullmatch(first):
        _refuse_days(texts, times, place)
        return
    part = next((word for word in words_of(name) if word in _PART), None)
    if part is not None:
        what = f"{first!r} reads as a year and month, and the column is called {part}"
        raise DataError(what, where=place(None), fix=f"Write it as {_PART[part]}, or rename the column")
    second = texts.iloc[1]
    if months.tolist() == [13]:
        what = f"{first} and {second} are 13 months apart, so they may be years that end in the next one"
        fix = "Write the year alone, or name the step between rows as `frequency`"
        raise DataError(what, where=place(None), fix=fix)
    if months.tolist() == [12] and texts.str.fullmatch(r"\d{6}").all():
        what = f"{first} and {second} may be a month of two years, or two dates of one"
        fix = 'Set `timestamp_format: "%Y%m"` for months, or `timestamp_format: "%y%m%d"` for dates'
        raise DataError(what, where=place(None), fix=fix)


def _refuse_digits(texts: pd.Series, place: Place) -> None:
    if texts.str.fullmatch(r"(19|20|21)\d\d(0[1-9]|[1-4]\d|5[0-3])").all():
        what = f"whole numbers such as {texts.iloc[0]} may be years and weeks"
        fix = f"Write weeks as {texts.iloc[0][:4]}-W{texts.iloc[0][4:]}, or leave the column out with "
        fix += "`exclude`"
        raise DataError(what, where=place(None), fix=fix)
    found, widths = [], set(texts.str.len())
    for form, width in _DIGITS if len(texts) >= _LEAST_NUMBERS else ():
        if widths <= {width - 1, width}:
            times = read_form(texts.str.zfill(width), form)
            dates = times.notna().all() and times.dt.year.between(1900, 2100).all()
            if dates and (times.is_monotonic_increasing or times.is_monotonic_decreasing):
                found.append(form)
    if found:
        ways = " or ".join(f'`timestamp_format: "{form}"`' for form in found)
        what = f"whole numbers such as {texts.iloc[0]} may be dates, or count rows"
        fix = f"Set {ways}, or leave the column out with `exclude` if they count rows"
        raise DataError(what, where=place(None), fix=fix, past={"timestamp_format": found[0]})


def _refuse_days(texts: pd.Series, times: np.ndarray, place: Place) -> None:
    """Names of one month with numbers that go up from row to row: days rather than years."""
    numbers = texts.str.extract(r"(\d+)$")[0].astype(int)
    one_month = len(np.unique(times.astype("M8[M]").astype(int) % 12)) == 1
    if one_month and numbers.max() <= 31 and (np.abs(numbers.diff().iloc[1:]) == 1).all():
        what = f"{texts.iloc[0]!r} may be a day without a year, or a month of a year of two digits"
        raise DataError(what, where=place(None), fix="Write times with a year of four digits")


def refuse_kinds_of_times(series: Sequence[pd.Series], where: str) -> None:
    """Refuse whole numbers that are times of one kind in one series, and of another kind in another.

    Raises:
        DataError: There are such series.
    """
    kinds = {_kind(cells): str(cells.iloc[0]) for cells in series}
    if len(kinds) > 1:
        read = ", ".join(f"{first} … as {kind}" for kind, first in kinds.items())
        what = f"the times of the series would be read in different ways: {read}"
        fix = 'Set `timestamp_format`, such as `timestamp_format: "%Y%m%d"`'
        raise DataError(what, where=where, fix=fix)


def _kind(cells: pd.Series) -> str:
    texts = cells.astype(str).str.strip()
    if not texts.str.fullmatch(r"-?\d+(\.0*)?").all():
        return "text"
    values = texts.to_numpy(np.float64)
    if ((values >= YEARS.low) & (values <= YEARS.high)).all():
        return YEARS.words
    found = digits_of(values)
    return "a counter" if found is None else found.words


def refuse_times_in_columns(table: Table) -> None:
    """Refuse a table without a column of times whose columns are named by times: it has a row per series.

    Raises:
        DataError: Most columns, and at least three, are named by dates or by one year after the other.
    """
    named = [name for name in table.names if looks_like_date(name)]
    years = [name for name in table.names if re.fullmatch(r"(1[5-9]|20|21)\d\d", name)]
    if len(years) >= _LEAST and set(np.diff(np.array(years, int)).tolist()) <= {1, -1}:
        named = named or years
    others = [name for name in table.names if name not in named]
    if len(named) < _LEAST or len(named) < len(others):
        return
    what = f"columns are named by times ({listed(named)}), so a row may be a series"
    call = f"pandas.read_csv(…).melt(id_vars={others!r}, var_name='time')" if others else "DataFrame.T"
    fix = f"Give a table with a row per series and time, or per time; `{call}` makes one"
    raise DataError(what, where=table.source, fix=fix)

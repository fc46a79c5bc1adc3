"""Frames of pandas, polars and others as panels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import date, tzinfo
from itertools import pairwise
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import pandas as pd

from ofa_jax.data.calendar import Duration, Step, follows, infer_step, step_of
from ofa_jax.data.clock import Clock
from ofa_jax.data.columns import no_series
from ofa_jax.data.dates import EPOCHS, digits_of, looks_like_date
from ofa_jax.data.missing import LARGEST
from ofa_jax.data.timestamps import parse_times
from ofa_jax.errors import DataError, listed, shorten
from ofa_jax.estimators.panel import Columns, Panel

_OLD_NAMES = {"H": "h", "T": "min", "S": "s", "M": "ME", "Q": "QE", "Y": "YE", "A": "YE"}
_POLARS = {"s": "s", "m": "min", "h": "h", "d": "D", "w": "W", "mo": "MS", "q": "QS", "y": "YS"}


def step_named(freq: str | int) -> Step:
    """The step of a frequency as pandas or polars call it, or of counted rows (an integer).

    Raises:
        DataError: It is none of those that are known.
    """
    if isinstance(freq, int) and not isinstance(freq, bool):
        if freq < 1:
            raise DataError(f"freq is {freq}", fix="Give 1 or more for integer times")
        return Duration(str(freq), np.int64(freq), wall=False)
    if not isinstance(freq, str):
        raise DataError(f"freq is {freq!r}", fix="Give an alias such as 'h', 'D' or 'ME', or an integer")
    text = freq.strip()
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    unit, anchor = text[len(digits) :].partition("-")[::2]
    if digits and unit in _POLARS:
        text = f"{digits if digits != '1' else ''}{_POLARS[unit]}"
    elif unit in _OLD_NAMES and not anchor.isdigit():
        text = f"{digits}{_OLD_NAMES[unit]}" + (f"-{anchor}" if anchor else "")
    return step_of(text)


def read_panel(
    frame: Any, columns: Columns, freq: str | int | None = None, covariates: Sequence[str] = ()
) -> Panel:
    """Read a long or a wide frame of pandas, polars or another library that narwhals knows.

    A frame with the column ``columns.target`` is long: a row per series and time; without ``columns.id`` it
    is one series, ``"0"``. Any other frame is wide: every column besides ``columns.time`` is a series. Of a
    pandas frame the index may have the times. Times in text become datetimes
    (:func:`~ofa_jax.data.timestamps.parse_times`), with a warning where their form was inferred.

    Args:
        frame: The data; rows in any order.
        columns: Names of its columns.
        freq: The step between rows, which they have to follow; default: inferred.
        covariates: Names of further columns of a long frame, which are known in every row.

    Raises:
        DataError: Columns are missing or of a wrong kind, times repeat or have gaps, values are infinite.
            In a wide frame a column has text, or is a counter, an identifier or dates in digits.
    """
    table = table_of(frame, columns)
    names = set(table.columns)
    long = columns.target in names
    if columns.time not in names:
        what = f"there is no column `{columns.time}`, but {listed(table.columns) or 'none at all'}"
        dated = next((name for name in table.columns if _has_dates(table[name])), None)
        fix = "Name the column of times as time_col"
        raise DataError(what, fix=f"{fix}, which may be time_col={dated!r}" if dated else fix)
    if not long and columns.id in names:
        what = f"there is `{columns.id}`, but no column `{columns.target}`"
        raise DataError(what, fix="Name the column of values as target_col")
    sought = [("target_col", columns.target, Columns.target)]
    sought += [("id_col", columns.id, Columns.id)] if long else []
    for parameter, name, default in sought:
        if name not in (default, *names):
            what = f"there is no column `{name}`, but {listed(table.columns)}"
            raise DataError(what, fix=f"Name one of them as {parameter}, or leave {parameter} out")
    if covariates and (missing := [name for name in covariates if not long or name not in names]):
        what = f"the covariate {listed(missing)} is no column of a long frame"
        raise DataError(what, fix=f"Give it next to `{columns.target}`, or leave it out of `covariates`")
    times, clock = times_of(table[columns.time], columns.time)
    if long:
        named = (columns.id, columns.time, columns.target, *covariates)
        if extra := [name for name in table.columns if name not in named]:
            what = f"there are further columns, {listed(extra)}, which are not used"
            fix = f"Leave them out, df.drop(columns={extra}), or name them as id_col, time_col, target_col "
            raise DataError(what, fix=f"{fix}or covariates")
        values = numbers(table[columns.target], columns.target)
        codes, ids = ids_in(table, columns)
    else:
        others = [name for name in table.columns if name != columns.time]
        if not others:
            raise DataError("there is no column of values", fix="Name it as target_col")
        values = _wide_values(table, others, times, columns)
        codes, ids = np.repeat(np.arange(len(others)), len(times)), pd.Index(others, dtype=object)
        times = np.tile(times, len(others))
    if not len(values):
        raise DataError("there are no rows", fix="Give at least one row per series")
    order = np.lexsort((times, codes))
    codes, times, values = codes[order], times[order], values[order]
    first = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(ids)))])
    _check_values(values, codes, ids)
    steps, kinds = _steps(times, codes, first, ids, freq, clock, columns)
    text = table.schema[columns.time] in (nw.String, nw.Object)  # comes back as times
    kept = [columns.id] * (columns.id in names) + [columns.time] * (not text)
    like = table.select(kept).head(0)
    known = covariate_values(table, covariates, "the frame")[order] if covariates else None
    return Panel(ids, first, values, times, steps, kinds, order % len(table), columns, clock, like, known)


def _has_dates(column: nw.Series[Any]) -> bool:
    """Whether the first cell is a datetime, or a text that reads as a date."""
    cells = column.drop_nulls().head(1).to_list()
    return bool(cells) and (
        isinstance(cells[0], date) or (isinstance(cells[0], str) and looks_like_date(cells[0]))
    )


def _wide_values(
    table: nw.DataFrame[Any], names: list[str], times: np.ndarray, columns: Columns
) -> np.ndarray:
    """The columns of a wide frame, one after the other."""
    kept = {name: table[name].to_pandas() for name in names}
    texts = [name for name, cells in kept.items() if _is_text(cells)]
    if texts:
        rest = [name for name in names if name not in texts]
        what = f"`{texts[0]}` has {shorten(kept[texts[0]].dropna().iloc[0])}, which is no number"
        fix = f"Leave it out: df.drop(columns={texts})"
        if len(np.unique(times)) < len(times) and rest:
            target = f"target_col={rest[0]!r}" if len(rest) == 1 else f"one of {listed(rest)} as target_col"
            fix = f"If it names the series, give id_col={texts[0]!r} and {target}"
        raise DataError(what, fix=fix)
    order, found = np.argsort(times, kind="stable"), []
    for name in names:
        values = numbers(table[name], name)
        if len(names) > 1 and (kind := no_series(name, values[order])):
            fix = f"Leave it out, df.drop(columns={name!r}), or give a long frame, where every series counts"
            raise DataError(f"the column `{name}` is {kind}, no series", fix=fix)
        found.append(values)
    return np.concatenate(found)


def _is_text(cells: pd.Series) -> bool:
    """Whether there are texts, and hardly any of them are numbers."""
    if cells.dtype != object and not isinstance(cells.dtype, pd.StringDtype | pd.CategoricalDtype):
        return False
    known = cells.dropna()
    return bool(len(known)) and bool(pd.to_numeric(known.astype(str), errors="coerce").isna().mean() > 0.5)


def table_of(frame: Any, columns: Columns) -> nw.DataFrame[Any]:
    if isinstance(frame, pd.DataFrame):
        levels = [name for name in frame.index.names if name is not None]
        if columns.id in levels and columns.id not in frame.columns:
            raise DataError(f"`{columns.id}` is in the index", fix="Call df.reset_index() first")
        timed = isinstance(frame.index, pd.DatetimeIndex | pd.PeriodIndex)
        if columns.time not in frame.columns and (timed or columns.time in levels):
            index = frame.index.to_timestamp() if isinstance(frame.index, pd.PeriodIndex) else frame.index
            frame = frame.set_axis(index.rename(columns.time), axis=0).reset_index()
        if not frame.columns.is_unique:
            twice = listed(list(dict.fromkeys(map(str, frame.columns[frame.columns.duplicated()]))))
            raise DataError(f"columns have the same name: {twice}", fix="Rename one of each")
        if not all(isinstance(name, str) for name in frame.columns):
            raise DataError("names of columns are not texts", fix="Call df.rename(columns=str) first")
    try:
        return nw.from_native(frame, eager_only=True)
    except TypeError:
        what, fix = f"the data are a {type(frame).__name__}", "Give a DataFrame of pandas or polars"
        if isinstance(frame, pd.Series):
            fix += ", such as series.rename('y').rename_axis('ds').reset_index()"
        raise DataError(what, fix=fix) from None


def ids_in(table: nw.DataFrame[Any], columns: Columns) -> tuple[np.ndarray, pd.Index]:
    if columns.id not in table.columns:
        return np.zeros(len(table), int), pd.Index(["0"], dtype=object)
    named = table[columns.id].to_pandas()
    if named.isna().any():
        row = int(named.isna().to_numpy().argmax())
        raise DataError(
            f"`{columns.id}` is missing in row {row + 1}", fix="Give every row the name of its series"
        )
    codes, ids = pd.factorize(named)
    return codes, pd.Index(ids)


def times_of(column: nw.Series[Any], name: str) -> tuple[np.ndarray, Clock]:
    times = column.to_pandas()
    if isinstance(times.dtype, pd.PeriodDtype):
        times = times.dt.to_timestamp()
    if times.isna().any():
        row = int(times.isna().to_numpy().argmax())
        raise DataError(f"`{name}` is missing in row {row + 1}", fix="Give every row its time")
    if pd.api.types.is_bool_dtype(times.dtype) or pd.api.types.is_float_dtype(times.dtype):
        raise DataError(f"`{name}` has numbers that are not whole", fix="Give dates or whole numbers")
    if pd.api.types.is_integer_dtype(times.dtype):
        whole = times.to_numpy(np.int64)
        if (digits := digits_of(np.unique(whole).astype(np.float64))) is not None:
            what = f"`{name}` has whole numbers such as {whole[0]}, which are {digits.words}"
            form = f"unit={digits.form!r}" if digits.form in EPOCHS else f"format={digits.form!r}"
            raise DataError(what, fix=_convert(name, form))
        return whole, Clock()
    if not pd.api.types.is_datetime64_any_dtype(times.dtype):
        try:
            times = pd.to_datetime(times, format="ISO8601")
        except (ValueError, TypeError):
            return _times_of_text(times, name)
    zone: tzinfo | None = times.dt.tz
    if zone is not None:
        times = times.dt.tz_convert("UTC").dt.tz_localize(None)
    return times.to_numpy(), Clock(zone=zone, unit=times.dt.unit)


def _times_of_text(cells: pd.Series, name: str) -> tuple[np.ndarray, Clock]:
    codes, once = pd.factorize(cells)

    def place(row: int | None) -> str:
        return f"`{name}`" if row is None else f"`{name}`, row {int((codes == row).argmax()) + 1}"

    try:
        times, clock = parse_times(pd.Series(once, dtype=object), place)
    except DataError as error:
        raise DataError(error.what, where=error.where, fix=_convert(name, "format='%d.%m.%Y'")) from None
    if times.dtype.kind == "i":
        what = f"`{name}` has numbers as text, such as {shorten(once[0])}"
        raise DataError(what, fix=f"Convert it first: df[{name!r}] = df[{name!r}].astype(int)")
    for notice in clock.notices:
        warnings.warn(f"`{name}`: {notice}", UserWarning, stacklevel=2)
    return times[codes], Clock(clock.zone, clock.unit)


def _convert(name: str, how: str) -> str:
    return f"Convert it first, such as by df[{name!r}] = pd.to_datetime(df[{name!r}], {how})"


def numbers(column: nw.Series[Any], name: str) -> np.ndarray:
    values = column.to_pandas()
    if pd.api.types.is_complex_dtype(values.dtype):
        raise DataError(f"`{name}` has complex numbers", fix="Give real ones")
    if not (pd.api.types.is_numeric_dtype(values.dtype) or pd.api.types.is_bool_dtype(values.dtype)):
        try:
            values = values.astype(np.float64)
        except (ValueError, TypeError):
            wrong = np.flatnonzero(pd.to_numeric(values, errors="coerce").isna() & values.notna())
            found, row = (shorten(values.iloc[wrong[0]]), wrong[0] + 1) if len(wrong) else (values.dtype, 1)
            what = f"`{name}` has {found} in row {row}, which is no number"
            fix = f"If texts stand for missing values: pd.to_numeric(df[{name!r}], errors='coerce')"
            raise DataError(what, fix=fix) from None
    return values.to_numpy(np.float64, na_value=np.nan)


def covariate_values(table: nw.DataFrame[Any], names: Sequence[str], where: str) -> np.ndarray:
    """Columns as numbers ``[rows, k]``.

    Raises:
        DataError: One has text, or is not known everywhere.
    """
    found = []
    for name in names:
        values = numbers(table[name], name)
        if len(wrong := np.flatnonzero(~(np.abs(values) <= LARGEST))):
            what = f"the covariate `{name}` is not known in row {wrong[0] + 1} of {where}"
            fix = "Covariates are finite in every row: fill it, or leave it out of `covariates`"
            raise DataError(f"{what} ({len(wrong)} such rows)", fix=fix)
        found.append(values)
    return np.stack(found, axis=1)


def _check_values(values: np.ndarray, codes: np.ndarray, ids: pd.Index) -> None:
    with np.errstate(invalid="ignore"):
        wrong = np.flatnonzero(np.abs(values) > LARGEST)
    if len(wrong):
        what = (
            f"series {shorten(ids[codes[wrong[0]]])} has the value {values[wrong[0]]:g}, beyond {LARGEST:.1g}"
        )
        raise DataError(what, fix="If it stands for a missing value, put NaN there; else scale it down")
    empty = np.flatnonzero(np.bincount(codes, np.isfinite(values), len(ids)) == 0)
    if len(empty):
        what = f"series {shorten(ids[empty[0]])} has no value ({len(empty)} such series)"
        raise DataError(what, fix="Leave it out")


def _steps(
    times: np.ndarray,
    codes: np.ndarray,
    first: np.ndarray,
    ids: pd.Index,
    freq: str | int | None,
    clock: Clock,
    columns: Columns,
) -> tuple[tuple[Step, ...], np.ndarray]:
    """The steps of the series, and which each has; every row is checked to be a step after the last."""
    within = codes[1:] == codes[:-1]
    same = np.flatnonzero(within & (times[1:] == times[:-1]))
    if len(same):
        what = f"series {shorten(ids[codes[same[0]]])} has the time {times[same[0]]} twice"
        fix = "Give one row per series and time; where rows are of several series, name them by id_col"
        raise DataError(f"{what} ({len(same)} repeats in all)", fix=fix)
    counted = times.dtype.kind == "i"
    if freq is not None:
        step = step_named(freq)
        if counted != (isinstance(step, Duration) and step.size.dtype.kind == "i"):
            kind, wanted = ("whole numbers", "an integer") if counted else ("dates", "an alias such as 'D'")
            raise DataError(f"times are {kind}, but freq is {freq!r}", fix=f"Give {wanted} as freq, or None")
        return _checked(step, times, within, codes, ids, clock, columns), np.zeros(len(ids), int)
    longest = int(np.diff(first).argmax())
    common = _inferred(times[first[longest] : first[longest + 1]], counted, clock)
    if common is None:
        what = "no series has three rows, so the step between them is unknown"
        raise DataError(what, fix="Give it as freq, such as 'D'")
    if follows_within(common, times, within, clock).all():
        return (common,), np.zeros(len(ids), int)
    own = [_inferred(times[start:end], counted, clock) or common for start, end in pairwise(first)]
    found = {step.alias: step for step in own}
    number_of = {alias: number for number, alias in enumerate(found)}
    kinds, steps = np.array([number_of[step.alias] for step in own]), tuple(found.values())
    for number, step in enumerate(steps):
        rows = within & (kinds[codes[1:]] == number)
        _checked(step, times, rows, codes, ids, clock, columns)
    return steps, kinds


def _inferred(times: np.ndarray, counted: bool, clock: Clock) -> Step | None:
    if not counted:
        return infer_step(times, clock.zone)
    gaps, counts = np.unique(np.diff(times), return_counts=True)
    size = int(gaps[counts.argmax()]) if len(gaps) else 1
    return Duration(str(size), np.int64(size), wall=False)


def follows_within(step: Step, times: np.ndarray, within: np.ndarray, clock: Clock) -> np.ndarray:
    """Whether each row is one step after the one before, True between two series, ``[rows - 1]``."""
    return follows(step, times, clock.zone) | ~within


def _checked(
    step: Step,
    times: np.ndarray,
    within: np.ndarray,
    codes: np.ndarray,
    ids: pd.Index,
    clock: Clock,
    columns: Columns,
) -> tuple[Step, ...]:
    wrong = np.flatnonzero(~follows_within(step, times, within, clock))
    if not len(wrong):
        return (step,)
    row = int(wrong[0])
    what = f"in series {shorten(ids[codes[row]])} {times[row + 1]} follows {times[row]}, "
    what += f"which is not one step of {step.alias} ({len(wrong)} such rows in all)"
    fix = "Give a row for every step, with NaN where there is no value"
    if times.dtype.kind == "M" and not _on_grid(times[codes == codes[row]], step.alias):
        fix = "Leave out or correct such rows, or give row numbers in place of times"
    elif times.dtype.kind == "M" and clock.zone is None:
        index = f"pd.to_datetime(df.pop({columns.time!r}))"
        filled = f"df.set_index({index}).asfreq({step.alias!r}).reset_index()"
        fix += f" (of one series or a wide frame {filled}, of a long one utilsforecast's fill_gaps)"
    raise DataError(what, fix=f"{fix}, or another freq")


def _on_grid(times: np.ndarray, alias: str) -> bool:
    """Whether only whole steps are missing between times ``[T]``."""
    try:
        return bool(np.isin(times, pd.date_range(times[0], times[-1], freq=alias).to_numpy()).all())
    except ValueError:  # a step of our own, such as third Wednesdays
        return False

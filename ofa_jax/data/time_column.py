"""Which columns of a table are its times."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from ofa_jax.data.long import time_cells
from ofa_jax.data.tables import TIME_NAMES, Table, as_list
from ofa_jax.errors import DataError, listed


def find_time(table: Table, timestamp_column: str | None, exclude: Sequence[str]) -> list[int]:
    """The positions of the columns of times: those that are named, else what looks like one; none may be.

    Raises:
        DataError: There is no such column, or several could be it.
    """
    if timestamp_column is not None:
        names = [timestamp_column]
        if timestamp_column not in table.names and timestamp_column.count("+") == 1:
            names = [name.strip() for name in timestamp_column.split("+")]
        return [position_of(table, name) for name in names]
    if table.time_index is not None:
        return [table.time_index]
    free = [at for at, name in enumerate(table.names) if name not in exclude]
    dated = [at for at in free if at in table.dated]
    if 0 not in dated and not table.texts and any(time_cells(table, [at]).duplicated().any() for at in dated):
        dated = []  # not the time, such as when a row was last changed
    usual = [at for at in free if table.names[at].lower() in TIME_NAMES]
    usual = usual or dated[: 1 if 0 in dated else None]
    if len(usual) > 1:
        names = [table.names[position] for position in usual]
        what = f"{len(usual)} columns could be the timestamps: {listed(names)}"
        past = {"timestamp_column": names[0], "exclude": names[1:]}
        fix = f"Name the `timestamp_column`: set `timestamp_column: {names[0]}`"
        fix += f" and `exclude: {as_list(names[1:])}`"
        clock = str(table.read(usual[1:], object).iat[0, 0]).strip()
        if len(usual) == 2 and re.match(r"\d{1,2}([:.]\d\d|$)", clock):
            fix += f", or `timestamp_column: {names[0]} + {names[1]}` for a date and its time of day or hour"
        raise DataError(what, where=table.source, fix=fix, past=past)
    return usual


def position_of(table: Table, name: str) -> int:
    """The position of a column.

    Raises:
        DataError: There is none of that name.
    """
    if name in table.names and name:
        return table.names.index(name)
    named = [known for known in table.names if known]
    nearest = difflib.get_close_matches(name, named, n=3, cutoff=0.4) or table.names[:10]
    fix = f"The nearest names are {listed(nearest)}"
    raise DataError(f"there is no column `{name}`", where=table.source, fix=fix)

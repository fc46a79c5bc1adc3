"""What all figures share: palette, axes, the check of a table, and how a figure becomes bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ofa_jax.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#000000", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
"""Okabe and Ito's palette without its yellow, which is too light on white; neighbours differ in lightness."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))

SHADES = "cividis"
"""A colour map that is the same to colour-blind eyes and grows lighter all the way."""

_WORDS = {"smape": "sMAPE", "adam": "Adam"} | {
    word: word.upper() for word in ("mse", "mae", "rms", "sgd", "owa", "mase")
}

_MINUS = "\N{MINUS SIGN}"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that belongs to no window and no list of figures."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain(axis: Axes) -> None:
    """No frame above and at the right, small figures, a faint grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.grid(True, color="0.92", linewidth=0.7, zorder=0)
    axis.set_axisbelow(True)


def log_rank(axis: Axes, ranks: Sequence[float] | pd.Series) -> None:
    """A logarithmic axis of ranks with a tick at each of them, at most a dozen."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    shown = sorted({float(rank) for rank in ranks})
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(shown[:: -(-len(shown) // 12)]))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    if len(shown) == 1:
        axis.set_xlim(shown[0] / 2, shown[0] * 2)
    axis.set_xlabel("rank", fontsize=9)
    plain(axis)


def log_heights(axis: Axes) -> None:
    """A logarithmic height whose figures stay apart: also 2 and 5 where it spans less than two decades. To be called after drawing."""
    from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullFormatter, NullLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high < 100 * low:
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        axis.yaxis.set_major_formatter(LogFormatterMathtext())
        axis.yaxis.set_minor_formatter(NullFormatter())


def stroke(index: int, colour: Any) -> dict[str, Any]:
    """Marker and line style of the line number ``index``, in a colour."""
    return {"color": colour, "marker": MARKERS[index % len(MARKERS)], "linestyle": LINES[index % len(LINES)]}


def whole_ticks(along: Axis) -> None:
    """Ticks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    along.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def shades(count: int) -> list[tuple[float, ...]]:
    """So many colours from dark to light, none too light for white paper."""
    from matplotlib import colormaps

    shades = [tuple(colormaps[SHADES](place)) for place in np.linspace(0, 0.85, count)]
    return shades if count > 1 else [COLOURS[0]]  # type: ignore[list-item]


def checked(
    table: pd.DataFrame,
    columns: Sequence[str],
    what: str,
    *,
    numbers: Sequence[str] = (),
    may_be_empty: bool = False,
) -> pd.DataFrame:
    """The table, once it is sure that it can be drawn.

    Raises:
        DataError: A column is missing or holds something else than numbers, or there is no row.
    """
    from pandas.api.types import is_numeric_dtype

    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(
            f"the {what} has no column {', '.join(f'`{name}`' for name in missing)}",
            where="plots",
            fix=f"It has {', '.join(f'`{name}`' for name in table.columns) or 'none'}",
        )
    if not len(table):
        if may_be_empty:
            return table
        raise DataError(f"the {what} has no rows", where="plots", fix="Give at least one")
    for name in numbers:
        if not is_numeric_dtype(table[name]):
            raise DataError(
                f"the column `{name}` of the {what} holds something else than numbers",
                where="plots",
                fix="Convert it first",
            )
    return table


def chosen(table: pd.DataFrame, values: Mapping[str, Any]) -> pd.DataFrame:
    """The rows that have these values; NaN equals NaN."""
    keep = np.ones(len(table), bool)
    for name, value in values.items():
        column = table[name]
        keep &= (column.isna() if isinstance(value, float) and np.isnan(value) else column == value).to_numpy(
            bool
        )
    return table[keep]


def distinct(*columns: pd.Series) -> list[Any]:
    """Values (or tuples of them) in the order of their first appearance."""
    return (
        list(dict.fromkeys(columns[0]))
        if len(columns) == 1
        else list(dict.fromkeys(zip(*columns, strict=True)))
    )


def spelled(name: object) -> str:
    """A column's name as words."""
    return " ".join(_WORDS.get(word, word) for word in str(name).split("_"))


def text(name: object, most: int = 40) -> str:
    """A name from outside as a figure can show it: cut where it is long, no sign that would be read as mathematics or break an SVG."""
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in str(name))
    return (shown if len(shown) <= most else shown[: most - 1] + "…").replace("$", r"\$")


def signed(number: float, form: str = ".2f") -> str:
    """A number with a true minus sign and no negative zero."""
    text = format(number, form)
    return (text[1:] if float(text) == 0 else _MINUS + text[1:]) if text.startswith("-") else text


def bytes_text(number: float) -> str:
    """Bytes in the largest unit of which there is one: ``61.9 kB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} B"


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places, at most 1, moved apart so that neighbours are at least ``gap`` from each other."""
    moved = list(places)
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    ceiling = 1.0
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def as_svg(figure: Figure) -> str:
    """A figure as SVG, its letters as outlines, so that it looks the same everywhere; the same figure gives the same text."""
    import matplotlib

    content = io.StringIO()
    with (
        matplotlib.rc_context({"svg.hashsalt": "ofa-jax", "svg.fonttype": "path"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings(
            "ignore", message="Glyph"
        )  # a name in a script that the font lacks shows as boxes
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def as_png(figure: Figure, dpi: int = 150) -> bytes:
    """A figure as PNG."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()

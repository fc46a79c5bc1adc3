"""What all figures share: palette, axes, panels, the check of a table, and writing to a file."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ofa_jax.errors import DataError
from ofa_jax.files import write_output

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#E69F00", "#000000", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
"""Okabe and Ito's palette without its yellow, which is too light on white; neighbors differ in lightness."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))

SHADES = "cividis"
"""A color map that looks the same with a color vision deficiency, with lightness increasing throughout."""

WIDTH = 9.0
"""Inches of every figure of a run, so that a page has all of them in one size."""

MISSING = "—"
"""Where a table has no number."""

MAX_PANELS = 6
"""Panels of a figure; of more series the first ones are drawn."""

_WORDS = {"smape": "sMAPE", "adam": "Adam", "mse": "MSE", "mae": "MAE", "rms": "RMS", "sgd": "SGD"}
_WORDS |= {"owa": "OWA", "mase": "MASE"}


@contextlib.contextmanager
def theme() -> Iterator[None]:
    """``ofa.mplstyle`` over matplotlib's defaults; also a decorator, ``@theme()``."""
    import matplotlib.style

    with matplotlib.style.context("ofa_jax.plots.ofa", after_reset=True):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, outside pyplot's state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def panels(
    table: pd.DataFrame, height: float, title: str = ""
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A figure with a panel per value of the column ``panel``, or a single one, each with its rows.

    Panels share their axis where their columns ``time`` have the same ends.
    """
    groups = list(table.groupby("panel", sort=False)) if "panel" in table else [("", table)]
    ends = [own["time"].iloc[[0, -1]].tolist() if "time" in own else None for _, own in groups]
    sharex = None not in ends and all(own == ends[0] for own in ends)
    count = min(len(groups), MAX_PANELS)
    if count < len(groups):
        title = f"{title} (first {count} of {len(groups)} series)".strip()
    figure, drawn = new_figure(WIDTH, height * count + 0.6), []
    axes = figure.subplots(count, 1, squeeze=False, sharex=sharex)[:, 0]
    for axis, (name, own) in zip(axes, groups, strict=False):
        axis.set_title(text(name, 90))
        axis.margins(x=0.01)
        drawn.append((axis, own))
    if title:
        figure.suptitle(text(title, 110))
    return figure, drawn


def time_label(axis: Axes, time: pd.Series, note: str, steps: str = "step") -> None:
    """Below the last panel: time and its zone, or what is counted where there are no dates; then a note."""
    from pandas.api.types import is_numeric_dtype

    zone = getattr(time.dtype, "tz", None)
    unit = steps if is_numeric_dtype(time) else f"time ({zone})" if zone else "time"
    axis.set_xlabel("\n".join([text(unit), *[text(note, 110)] * bool(note)]))


def legend_below(figure: Figure, columns: int = 5) -> None:
    """One legend for all axes, each label once; none of what nobody sees."""
    handles = _visible(figure.axes)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def legend(axis: Axes, **options: Any) -> None:
    """The legend of one axis, where it has something to say."""
    if handles := _visible([axis]):
        axis.legend(list(handles.values()), list(handles), **options)


def _visible(axes: Iterable[Axes]) -> dict[str, Any]:
    """What is drawn, by label: no line without a point (or with one and no marker), no empty area."""
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D

    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            if isinstance(handle, Line2D):
                points = np.isfinite(np.asarray(handle.get_ydata(), float)).sum()
                seen = points > (handle.get_marker() in ("None", "", " ", None))
            else:
                seen = not isinstance(handle, PolyCollection) or len(handle.get_paths()) > 0
            if seen:
                handles.setdefault(label, handle)
    return handles


def log_rank(axis: Axes, ranks: Sequence[float] | pd.Series) -> None:
    """A logarithmic axis of ranks with a tick at each of them, at most a dozen."""
    shown = sorted({float(rank) for rank in ranks})
    ticks = shown[:: -(-len(shown) // 12)]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{rank:g}" for rank in ticks])
    axis.set_xticks([], minor=True)
    if len(shown) == 1:
        axis.set_xlim(shown[0] / 2, shown[0] * 2)
    axis.set_xlabel("rank")


def log_y(axis: Axes) -> None:
    """A logarithmic y axis. Call it after drawing."""
    axis.set_yscale("log")
    ticks = log_ticks(*axis.get_ylim())
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.yaxis.set_minor_formatter("")


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks at decades, in a small range at 1, 2 and 5 times these, in a smaller one evenly spaced."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    for locator in (LogLocator(numticks=8), LogLocator(subs=(1, 2, 5), numticks=8), MaxNLocator(4)):
        ticks = [tick for tick in np.asarray(locator.tick_values(low, high)).tolist() if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks


def stroke(index: int, color: Any) -> dict[str, Any]:
    """Color, marker and line style of line number ``index``, distinct in grayscale print too."""
    return {"color": color, "marker": MARKERS[index % len(MARKERS)], "linestyle": LINES[index % len(LINES)]}


def integer_ticks(axis: Axes, along: Literal["x", "both"] = "x") -> None:
    """Ticks at integers only, two at least."""
    low, high = sorted(axis.get_xlim())
    if along == "x" and math.floor(high) - math.ceil(low) < 1:
        axis.set_xlim(math.floor(low), math.ceil(high))
    axis.locator_params(along, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)


def shades(count: int) -> list[Any]:
    """``count`` colors from dark to light, none too light for white paper."""
    from matplotlib import colormaps

    return list(colormaps[SHADES](np.linspace(0, 0.85, count))) if count > 1 else [COLORS[0]]


def check(table: pd.DataFrame, numbers: Sequence[str], names: Sequence[str] = (), *, where: str) -> None:
    """Refuse a table that cannot be drawn.

    Raises:
        DataError: A column is missing or not numeric, or there is no row.
    """
    from pandas.api.types import is_numeric_dtype

    for name in (*names, *numbers):
        if name not in table:
            found = ", ".join(f"`{column}`" for column in table) or "none"
            raise DataError(f"the table has no column `{name}`", where=where, fix=f"It has {found}")
        if name in numbers and not is_numeric_dtype(table[name]):
            raise DataError(f"the column `{name}` is not numeric", where=where, fix="Convert it to numbers")
    if not len(table):
        raise DataError("the table has no rows", where=where, fix="Give at least one")


def spelled(name: object) -> str:
    """A column's name in words."""
    return " ".join(_WORDS.get(word, word) for word in str(name).split("_"))


def aligned(values: Iterable[float | None]) -> list[str]:
    """Numbers of one column with equal decimals, for alignment at the right; a dash where there is none.

    Numbers below 10 have four decimals, larger ones fewer, and the smallest has at least two digits.
    """
    numbers = [math.nan if value is None else float(value) for value in values]
    sizes = [abs(value) for value in numbers if value and math.isfinite(value)] or [1.0]
    powers = [math.floor(math.log10(size)) for size in (min(sizes), max(sizes))]
    decimals = max(0, 4 - max(powers[1], 0), 1 - powers[0])
    spec = ".3e" if decimals > 6 or powers[1] > 12 else f",.{decimals}f"
    return [MISSING if math.isnan(value) else f"{value:{spec}}" for value in numbers]


def text(name: object, longest: int = 40) -> str:
    """A name from outside, shortened, without the control characters that SVG cannot contain."""
    shown = "".join(char if char.isprintable() else "\ufffd" for char in str(name))
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def bytes_text(number: float) -> str:
    """Bytes in a decimal unit: ``61.9 kB``."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter("B", places=1 if number >= 1000 else 0)(number)


@theme()
def _rendered(figure: Figure, kind: str, dpi: Any = "figure") -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # missing from the font: drawn as boxes
        figure.savefig(content, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def as_svg(figure: Figure) -> str:
    """A figure as SVG; the same figure gives the same text."""
    return _rendered(figure, "svg").decode()


def as_png(figure: Figure, dpi: int = 150) -> bytes:
    """A figure as PNG."""
    return _rendered(figure, "png", dpi)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure atomically, in the format that the file's extension names.

    Raises:
        DataError: As :func:`check_kind`.
    """
    kind = check_kind(path)
    write_output(path, _rendered(figure, kind, 150))


def check_kind(path: str | Path) -> str:
    """The format that a figure's file extension names.

    Raises:
        DataError: It names none that can be drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    kind = Path(path).suffix.lstrip(".").lower()
    if kind not in FigureCanvasAgg.get_supported_filetypes():
        what = f"figures cannot be written as {kind or 'a file without an extension'!r}"
        raise DataError(what, where=str(path), fix="Use .png, .svg or .pdf")
    return kind

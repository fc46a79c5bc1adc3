"""What a report is made of: sections of sentences, tables and figures, and the page around them."""

from __future__ import annotations

import base64
from collections.abc import Sequence, Set
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ofa_jax.plots.style import MISSING, aligned, as_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure as the URL of its SVG, its description for screen readers, and its caption."""

    url: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Text in rows; the first cell of a row is its heading.

    Attributes:
        caption: Above the table.
        head: Names of the columns.
        rows: The cells.
        left: Columns of text, aligned left; the others are numbers, aligned right.
        best: ``(row, column)`` of the cells that are marked as the best of their column.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    best: Set[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: Its anchor.
        title: Its heading.
        sentences: Paragraphs, above everything else.
        tables: Tables.
        pictures: Figures.
        folded: Long tables, collapsed.
        settings: The run's settings as YAML, collapsed.
    """

    name: str
    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    folded: Sequence[Table] = ()
    settings: str = ""


def picture(figure: Figure, alt: str, caption: str) -> Picture:
    """A figure as a part of the page; a separate image, so that its ids cannot clash with another's."""
    encoded = base64.b64encode(as_svg(figure).encode()).decode()
    return Picture(f"data:image/svg+xml;base64,{encoded}", alt, caption)


def number_table(caption: str, head: Sequence[str], numbers: pd.DataFrame | pd.Series) -> Table:
    """A table of measurements, its rows named by the index; a column has equal decimals."""
    frame = numbers if isinstance(numbers, pd.DataFrame) else numbers.to_frame()
    columns = (aligned(frame.iloc[:, index]) for index in range(frame.shape[1]))
    return Table(caption, head, list(zip(map(str, frame.index), *columns, strict=True)))


def page(**content: Any) -> str:
    """The page: ``title, summary, warnings, sections, footer``, all of it escaped."""
    from jinja2 import Environment, StrictUndefined

    source = files("ofa_jax.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(content) + "\n"


def number(value: Any) -> str:
    """A measurement with four significant digits; integers as they are."""
    if value is None or not np.isfinite(value):
        return MISSING
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{value:.4g}"


def best_median_worst(errors: np.ndarray) -> dict[str, int]:
    """Where the smallest, the median and the largest of errors ``[windows]`` are.

    NaN is left out, the first of equal errors is taken, and none is named twice.
    """
    order = np.argsort(errors, kind="stable")
    order = order[np.isfinite(errors[order])].tolist()
    if not order:
        return {}
    places = {order[-1]: "worst", order[(len(order) - 1) // 2]: "median", order[0]: "best"}
    return {name: place for place, name in reversed(places.items())}

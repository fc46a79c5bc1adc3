"""What a report is made of: sections of sentences, tables and pictures, and the page that holds them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from ofa_jax.plots.style import as_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "page.html.j2"


@dataclass(frozen=True)
class Picture:
    """A figure as the address of its own SVG, what it shows in words for those who do not see it, and the line below it."""

    address: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Text in rows; the first cell of a row is its heading."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: What links call it.
        title: Its heading.
        sentences: Paragraphs before everything else.
        tables: Tables.
        pictures: Pictures.
        listing: Lines as they stand in a file, folded away under ``listing_title``.
        folded: Long tables that are folded away.
    """

    name: str
    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    listing: str = ""
    listing_title: str = ""
    folded: Sequence[Table] = ()


def picture(figure: Figure, alt: str, caption: str) -> Picture:
    """A figure as a part of the page; as an image of its own, its names cannot meet those of another one."""
    encoded = base64.b64encode(as_svg(figure).encode()).decode()
    return Picture(f"data:image/svg+xml;base64,{encoded}", alt, caption)


def page(
    title: str, summary: Sequence[str], warnings: Sequence[str], sections: Sequence[Section], footer: str
) -> str:
    """The whole page; everything that is not part of the template is escaped."""
    from jinja2 import Environment, StrictUndefined

    source = files("ofa_jax.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return (
        environment.from_string(source).render(
            title=title, summary=summary, warnings=warnings, sections=sections, footer=footer
        )
        + "\n"
    )


def number(value: Any) -> str:
    """A measurement with four digits that count; whole numbers whole."""
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return "—"
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{value:.4g}"


def place_in_order(errors: np.ndarray) -> dict[str, int]:
    """Where the best, the median and the worst of errors ``[windows]`` are; NaN is none, ties go to the first, none is named twice."""
    order = np.argsort(errors, kind="stable")
    order = order[np.isfinite(errors[order])]
    places: dict[str, int] = {}
    for name, at in (("best", 0), ("median", (len(order) - 1) // 2), ("worst", len(order) - 1)):
        if len(order) and order[at] not in places.values():
            places[name] = int(order[at])
    return places

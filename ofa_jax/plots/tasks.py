"""Figures of a run's errors that only one kind of task has: scores of anomalies, confused classes, points filled in.

A table in, a matplotlib figure out, as in :mod:`~ofa_jax.plots.studies`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ofa_jax.errors import DataError
from ofa_jax.plots import style as style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MOST_POINTS = 2000
"""Points of a long line; of more, each group of neighbours is drawn as its largest."""


def anomaly_scores(scores: pd.DataFrame, threshold: float) -> Figure:
    """The score of every step, the labelled anomalies shaded, the threshold as a line; a panel per stretch.

    Args:
        scores: Columns ``step, score, label`` (true where a step is labelled anomalous), and ``stretch``, which names the panels.
        threshold: Scores above it count as anomalous.

    Raises:
        DataError: A column is missing, or there is no row.
    """
    scores = style.checked(
        scores, ("stretch", "step", "score", "label"), "table of scores", numbers=("step", "score")
    )
    names = style.distinct(scores["stretch"])
    figure = style.new_figure(8.6, 1.9 * len(names) + 0.7)
    axes = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for axis, name in zip(axes, names, strict=True):
        own = scores[scores["stretch"] == name]
        size = -(-len(own) // MOST_POINTS)
        starts = np.arange(0, len(own), size)
        axis.plot(
            own["step"].to_numpy()[starts],
            np.maximum.reduceat(own["score"].to_numpy(float), starts),
            color=style.COLOURS[0],
            linewidth=1,
            label="score",
        )
        axis.broken_barh(
            _stretches(own),
            (0, 1),
            transform=axis.get_xaxis_transform(),
            color=style.COLOURS[1],
            alpha=0.4,
            linewidth=0.8,
            label="labelled anomalous",
        )
        axis.axhline(
            threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:.3g}"
        )
        if (own["score"] > 0).any() and threshold > 0:
            style.log_heights(axis)
        axis.set_title(style.text(name, 90), fontsize=9, loc="left")
        axis.set_ylabel("score", fontsize=9)
        axis.margins(x=0.01)
        style.plain(axis)
    axes[-1].set_xlabel("test step", fontsize=9)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    return figure


def _stretches(own: pd.DataFrame) -> list[tuple[float, float]]:
    """Where labelled stretches begin, and how long they are; half a step wider at both ends."""
    edges = np.diff(np.concatenate([[0], own["label"].to_numpy(bool).astype(int), [0]]))
    step = own["step"].to_numpy(float)
    ends = zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1, strict=True)
    return [(step[first] - 0.5, step[last] - step[first] + 1) for first, last in ends]


def confusion(cases: pd.DataFrame) -> Figure:
    """How many cases of each class were taken for which class.

    Args:
        cases: Columns ``true, predicted, count``, a row for every pair of classes.

    Raises:
        DataError: A column is missing, or there is no row.
    """
    cases = style.checked(cases, ("true", "predicted", "count"), "table of cases", numbers=("count",))
    names = style.distinct(cases["true"])
    table = cases.pivot(index="true", columns="predicted", values="count").reindex(index=names, columns=names)
    if table.isna().to_numpy().any():
        raise DataError(
            "the table of cases lacks a pair of classes",
            where="plots",
            fix="Give every pair, also those that count 0",
        )
    counts = table.to_numpy(float)
    size = min(1.8 + 0.45 * len(names), 8)
    figure = style.new_figure(size + 1.2, size)
    axis = figure.subplots()
    image = axis.imshow(counts, cmap=style.SHADES, vmin=0)
    figure.colorbar(image, ax=axis, shrink=0.8).ax.tick_params(labelsize=8)
    if len(names) <= 20:
        for row, column in np.ndindex(counts.shape):
            light = counts[row, column] > 0.6 * counts.max()
            axis.text(
                column,
                row,
                f"{counts[row, column]:g}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if light else "white",
            )
    shown = [style.text(name, 14) for name in names]
    axis.set_xticks(range(len(names)), shown, fontsize=8, rotation=0 if max(map(len, shown)) < 4 else 90)
    axis.set_yticks(range(len(names)), shown, fontsize=8)
    axis.set_xlabel("taken for", fontsize=9)
    axis.set_ylabel("is", fontsize=9)
    return figure


def filled_in(windows: pd.DataFrame, *, unit: str = "value") -> Figure:
    """Points that were hidden and what was filled in for them, a panel per window.

    Args:
        windows: Columns ``window, step, truth, filled``; ``filled`` is NaN where the point was not hidden.
        unit: What the values are.

    Raises:
        DataError: A column is missing, or there is no row.
    """
    windows = style.checked(
        windows,
        ("window", "step", "truth", "filled"),
        "table of windows",
        numbers=("step", "truth", "filled"),
    )
    names = style.distinct(windows["window"])
    figure = style.new_figure(8, 2.3 * len(names) + 0.6)
    axes = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
    for axis, name in zip(axes, names, strict=True):
        own = windows[windows["window"] == name]
        hidden = own["filled"].notna()
        axis.plot(
            own["step"],
            own["truth"].where(~hidden),
            color="0.35",
            linewidth=1,
            marker=".",
            markersize=3,
            label="what the model reads",
        )
        axis.plot(
            own["step"][hidden],
            own["truth"][hidden],
            linestyle="none",
            marker="o",
            markersize=5,
            markerfacecolor="none",
            color="black",
            label="hidden",
        )
        axis.plot(
            own["step"][hidden],
            own["filled"][hidden],
            linestyle="none",
            marker="X",
            markersize=5,
            color=style.COLOURS[5],
            label="filled in",
        )
        axis.set_title(style.text(name, 90), fontsize=10, loc="left")
        axis.set_ylabel(style.text(unit), fontsize=9)
        style.plain(axis)
    axes[-1].set_xlabel("step of the window", fontsize=9)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    return figure

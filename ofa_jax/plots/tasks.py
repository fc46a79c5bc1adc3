"""Figures of tasks that do not forecast: anomaly scores, class probabilities, imputed points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ofa_jax.errors import DataError
from ofa_jax.plots import style as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 2000
"""Points of a line; of more, each group of neighbors is drawn as its maximum."""

MAX_CASES = 40
"""Cases in a figure; of more, the first ones are drawn."""


@style.theme()
def anomaly_scores(
    table: pd.DataFrame,
    threshold: float,
    series: pd.DataFrame | None = None,
    *,
    title: str = "",
    note: str = "",
    label: str = "",
) -> Figure:
    """Series with the steps whose score is above the threshold, and below them the score of every step.

    Labeled anomalies are shaded.

    Args:
        table: The first column is the time (steps or timestamps); ``score``; where labels are known
            ``label``, true at anomalies, with time as steps; a column ``panel`` names panels.
        threshold: Larger scores count as anomalous.
        series: The values that were scored, a row for each of the table's, a column per series that is drawn;
            the table then has no panels.
        title: Above the figure.
        note: Below it.
        label: What the values of the series are.

    Raises:
        DataError: A column is missing, or there is no row.
    """
    style.check(table, ("score",), where="plots.anomaly_scores")
    if series is None:
        figure, panels = style.panels(table, 1.8, title)
    else:
        figure = style.new_figure(style.WIDTH, 1.6 * (series.shape[1] + 1) + 0.6)
        *above, axis = figure.subplots(series.shape[1] + 1, 1, sharex=True)
        for panel, (name, values) in zip(above, series.items(), strict=True):
            _flagged_series(panel, table, values.to_numpy(float), threshold)
            panel.set_title(style.text(name, 90))
            panel.set_ylabel(label)
        axis.set_title("score" if above else "")
        axis.margins(x=0.01)
        panels = [(axis, table)]
        if title:
            figure.suptitle(style.text(title, 110))
    for axis, own in panels:
        time, score = own.iloc[:, 0].to_numpy(), own["score"].to_numpy()
        begins = np.arange(0, len(own), -(-len(own) // MAX_POINTS))
        drawn = np.fmax.reduceat(score, begins)
        axis.plot(time[begins], drawn, color=style.COLORS[0], linewidth=1, label="score")
        _shade_labels(axis, own)
        if "label" not in own:
            above_it = score > threshold
            axis.plot(
                time[above_it], score[above_it], ".", color=style.COLORS[5], label="above the threshold"
            )
        limit = f"threshold {threshold:.3g}"
        axis.axhline(threshold, color="black", linestyle="--", linewidth=1, label=limit)
        if (score > 0).any() and threshold > 0:
            style.log_y(axis)
        axis.set_ylabel("score")
    style.time_label(axis, table.iloc[:, 0], note)
    style.legend_below(figure)
    return figure


def _flagged_series(axis: Axes, table: pd.DataFrame, values: np.ndarray, threshold: float) -> None:
    """A series with its flagged steps; of many neighbors the smallest and the largest are drawn."""
    time, flagged = table.iloc[:, 0].to_numpy(), table["score"].to_numpy() > threshold
    begins = np.arange(0, len(values), -(-len(values) // MAX_POINTS))
    ends = np.stack([np.fmin.reduceat(values, begins), np.fmax.reduceat(values, begins)], axis=1)
    axis.plot(np.repeat(time[begins], 2), ends.ravel(), color="0.35", linewidth=1, label="series")
    _shade_labels(axis, table)
    axis.plot(time[flagged], values[flagged], ".", color=style.COLORS[5], label="above the threshold")
    axis.margins(x=0.01)


def _shade_labels(axis: Axes, own: pd.DataFrame) -> None:
    """Labeled anomalies, half a step wider at both ends."""
    if "label" in own:
        label = own["label"].astype(bool)
        runs = own.iloc[:, 0][label].groupby((label != label.shift()).cumsum())
        bars = list(zip(runs.min() - 0.5, runs.max() - runs.min() + 1, strict=True))
        look: dict[str, Any] = {"color": style.COLORS[1], "alpha": 0.4, "label": "labeled anomaly"}
        axis.broken_barh(bars, (0, 1), transform=axis.get_xaxis_transform(), linewidth=0.8, **look)


@style.theme()
def confusion(counts: pd.DataFrame) -> Figure:
    """The confusion matrix.

    Args:
        counts: Indexed by true class, a column per predicted class, in the same order.
    """
    figure = style.new_figure(style.WIDTH, min(1.8 + 0.45 * len(counts), 8))
    axis = _matrix(figure, counts, "g" if len(counts) <= 20 else None)
    axis.set(xlabel="predicted class", ylabel="true class")
    return figure


@style.theme()
def class_probabilities(table: pd.DataFrame, note: str = "") -> Figure:
    """The probability of each class for each case; of many cases the first are drawn.

    Args:
        table: The first column is the case; every numeric column after it is a class. Others are left out.
        note: Below the figure.

    Raises:
        DataError: There is no row, or no class.
    """
    shown = table.set_index(table.columns[0]).select_dtypes("number").head(MAX_CASES)
    if not shown.size:
        what, fix = "the table has no probabilities", "Give a row per case, a column per class"
        raise DataError(what, where="plots.class_probabilities", fix=fix)
    figure = style.new_figure(style.WIDTH, 1.6 + 0.24 * len(shown))
    axis = _matrix(figure, shown, ".2f" if shown.shape[1] <= 18 else None, top=1)
    hidden = "" if len(shown) == len(table) else f" (first {len(shown)} of {len(table)})"
    below = "\n".join(["class", *[style.text(note, 110)] * bool(note)])
    axis.set(xlabel=below, ylabel="case" + hidden, title="probability")
    return figure


def _matrix(figure: Figure, values: pd.DataFrame, spec: str | None, top: float | None = None) -> Axes:
    """Values as shades, written in the cells where ``spec`` is given."""
    axis = figure.subplots()
    array = values.to_numpy(float)
    image = axis.imshow(array, cmap=style.SHADES, vmin=0, vmax=top, aspect="auto")
    figure.colorbar(image, ax=axis, shrink=0.8)
    for (row, column), value in np.ndenumerate(array if spec else array[:0]):
        color = "black" if value > 0.6 * (top or array.max()) else "white"
        axis.text(column, row, f"{value:{spec}}", ha="center", va="center", fontsize=8, color=color)
    names = [style.text(name, 14) for name in values.columns]
    axis.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 90)
    axis.set_yticks(range(len(values)), [style.text(name, 24) for name in values.index])
    axis.grid(False)
    return axis


@style.theme()
def filled_in(table: pd.DataFrame, *, note: str = "", label: str = "") -> Figure:
    """Hidden or missing points and the values imputed for them, a panel per series or window.

    Args:
        table: Columns ``time`` (steps or timestamps), ``actual``, NaN where unknown, and ``filled``, NaN
            where the point was observed; a column ``panel`` names panels.
        note: Below the panels.
        label: What the values are.

    Raises:
        DataError: A column is missing, or there is no row.
    """
    style.check(table, ("actual", "filled"), ("time",), where="plots.filled_in")
    figure, panels = style.panels(table, 2)
    for axis, own in panels:
        axis.set_ylabel(label)
        hidden = own["filled"].notna()
        observed, gaps = own["actual"].mask(hidden), own[hidden]
        axis.plot(own["time"], observed, ".-", color="0.35", linewidth=1, ms=5, label="observed")
        if gaps["actual"].notna().any():
            axis.plot(gaps["time"], gaps["actual"], "o", color="black", mfc="none", ms=5, label="hidden")
        axis.plot(gaps["time"], gaps["filled"], "X", color=style.COLORS[5], ms=5, label="imputed")
    style.time_label(axis, table["time"], note)
    style.legend_below(figure)
    return figure


def filled_table(before: pd.DataFrame, after: pd.DataFrame, note: str = "") -> Figure:
    """The imputed points of a table, a panel per series that has any.

    Args:
        before: First the time (steps or timestamps), then a column per series, NaN where missing.
        after: The same table without gaps.
        note: Below the panels.

    Raises:
        DataError: ``before`` has no gap.
    """
    time, parts = before.columns[0], {}
    for name in before.columns[1:]:
        if (missing := before[name].isna()).any():
            filled = after[name].where(missing)
            parts[name] = pd.DataFrame({"time": before[time], "actual": before[name], "filled": filled})
    if not parts:
        raise DataError("no value is missing", where="plots.filled_table", fix="Give a table with gaps")
    return filled_in(
        pd.concat(parts, names=["panel"]).reset_index("panel"), note=note, label="original units"
    )

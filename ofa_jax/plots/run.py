"""Figures of a single run: forecasts, attention, training, errors. A table in, a matplotlib figure out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ofa_jax.errors import DataError
from ofa_jax.plots import style as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ATTENTION_FLOOR = 1e-4
"""Smaller weights are left white."""

MAX_BARS = 30
"""Channels in a figure; of more, those with the largest errors are drawn."""


@style.theme()
def forecast(
    table: pd.DataFrame, *, history: int | None = None, title: str = "", note: str = "", label: str = ""
) -> Figure:
    """Forecasts after their history, with actual values where known, a panel per series or window.

    Args:
        table: Columns ``time`` (steps or timestamps, ascending), ``actual`` and ``forecast``, NaN where
            unknown; the rows before the first forecast are the history. A column ``panel`` names panels,
            ``lower`` and ``upper`` are an interval.
        history: Steps of history that are shown; default: all.
        title: Above the panels.
        note: Below the panels.
        label: What the values are, at the left of each panel.

    Raises:
        DataError: A column is missing, or a panel has no forecast.
    """
    style.check(table, ("actual", "forecast"), ("time",), where="plots.forecast")
    figure, panels = style.panels(table, 1.9, title)
    for axis, own in panels:
        _forecast_panel(axis, own, history)
        axis.set_ylabel(label)
    style.time_label(axis, table["time"], note, steps="steps after the last observed one")
    style.legend_below(figure)
    return figure


def _forecast_panel(axis: Axes, own: pd.DataFrame, history: int | None) -> None:
    known = own["forecast"].notna().to_numpy()
    if not known.any():
        raise DataError("a panel has no forecast", where="plots.forecast", fix="Give one per panel")
    begin = int(known.argmax())
    seen = np.flatnonzero(own["actual"].iloc[:begin].notna())
    last = int(seen[-1]) if len(seen) else begin  # the line starts at the last observed value
    before, after = own.iloc[max(0, begin - (history or begin)) : begin], own.iloc[last:]
    axis.plot(before["time"], before["actual"], color="0.35", linewidth=1, label="history")
    if own["actual"].iloc[begin:].notna().any():
        axis.plot(after["time"], after["actual"], "--", color="black", linewidth=1.1, label="actual")
    joined = after["forecast"].to_numpy(float, copy=True)
    if last < begin:
        joined[0] = after["actual"].iloc[0]
    drawn = np.isfinite(joined)  # a gap between the last observed value and the forecast is bridged
    axis.plot(after["time"][drawn], joined[drawn], color=style.COLORS[0], linewidth=1.8, label="forecast")
    if "lower" in own:
        ahead = own.iloc[begin:]
        lower, upper = ahead["lower"], ahead["upper"]
        band = axis.fill_between(ahead["time"], lower, upper, color=style.COLORS[0], alpha=0.2, linewidth=0)
        band.set_label("prediction interval")
    axis.axvline(after["time"].iloc[0], color="0.75", linewidth=0.8)


@style.theme()
def attention_by_patch(weights: np.ndarray) -> Figure:
    """The mean attention map over layers and heads, and what each patch receives in each layer.

    What a patch receives is the mean weight from itself and the patches after it, the only ones that see
    it; the dotted line is what it would receive from uniform attention.

    Args:
        weights: After the softmax, ``[layers, heads, n, n]``, query before key.
    """
    from matplotlib.colors import LogNorm

    layers = weights.astype(np.float64).mean(axis=1)
    n = layers.shape[-1]
    seen_by = np.arange(n, 0, -1)
    received = layers.sum(axis=1) / seen_by
    uniform = np.cumsum(1 / np.arange(n, 0, -1))[::-1] / seen_by
    figure = style.new_figure(style.WIDTH, 3.9)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    seen = np.ma.masked_less(layers.mean(axis=0), ATTENTION_FLOOR)  # later patches are masked, so white
    floor = min(max(ATTENTION_FLOOR, float(seen.min())), 0.5)
    image = left.imshow(seen, cmap=style.SHADES, norm=LogNorm(floor, 1))
    ticks = style.log_ticks(floor, 1)
    bar = figure.colorbar(image, ax=left, shrink=0.85, ticks=ticks, format=lambda value, _: f"{value:g}")
    bar.minorticks_off()
    left.set(title="mean over layers and heads", xlabel="key patch", ylabel="query patch")
    left.grid(False)
    for index, color in enumerate(style.shades(len(layers))):
        line = style.stroke(index, color)
        right.plot(received[index], **line, markevery=max(1, n // 10), label=f"layer {index + 1}")
    right.plot(uniform, color="0.3", linestyle=":", linewidth=1.8, label="uniform")
    style.log_y(right)
    right.set(title="weight that a patch receives", xlabel="patch", ylabel="mean weight")
    style.integer_ticks(left, "both")
    style.integer_ticks(right)
    style.legend(right, ncols=1 + (len(layers) > 4))
    return figure


@style.theme()
def training_curves(epochs: pd.DataFrame, objective: str, steps: pd.DataFrame | None = None) -> Figure:
    """Training loss on the left, the validation metric that chooses the epoch on the right.

    Args:
        epochs: Columns ``epoch, train_loss, validation_<objective>``, a row per epoch.
        objective: The metric; smaller is better.
        steps: Columns ``epoch`` (with fractions) and ``loss``: means over a few steps.

    Raises:
        DataError: A column is missing, or there is no row.
    """
    column = f"validation_{objective}"
    style.check(epochs, ("epoch", "train_loss", column), where="plots.training_curves")
    figure = style.new_figure(style.WIDTH, 3)
    left, right = figure.subplots(1, 2)
    if steps is not None:
        logged = {"color": style.COLORS[6], "linewidth": 1, "markersize": 3, "label": "logged steps"}
        left.plot(steps["epoch"], steps["loss"], ".-", **logged)
    left.plot(epochs["epoch"], epochs["train_loss"], **style.stroke(0, style.COLORS[0]), label="epoch mean")
    right.plot(epochs["epoch"], epochs[column], **style.stroke(1, style.COLORS[5]))
    best = epochs.iloc[int(epochs[column].argmin())]
    ring = {"markersize": 13, "markerfacecolor": "none", "markeredgecolor": "black", "linestyle": "none"}
    right.plot(best["epoch"], best[column], "o", **ring, label=f"best: epoch {best['epoch']:g}")
    for axis, title in ((left, "training loss"), (right, style.spelled(column))):
        axis.set(title=title, xlabel="epoch")
        axis.margins(x=0.08)
        style.legend(axis)
        style.integer_ticks(axis)
    return figure


@style.theme()
def error_by_step(errors: pd.DataFrame, label: str) -> Figure:
    """The error of each step of the forecast, a line per method.

    Args:
        errors: Indexed by step, a column per method.
        label: Name of the error.
    """
    figure = style.new_figure(style.WIDTH, 3)
    axis = figure.subplots()
    every = max(1, len(errors) // 12)
    for index, (method, own) in enumerate(errors.items()):
        line = style.stroke(index, style.COLORS[index % len(style.COLORS)])
        axis.plot(own.index, own, **line, markevery=every, label=style.text(method))
    axis.set(xlabel="step of the forecast", ylabel=label)
    style.integer_ticks(axis)
    axis.set_ylim(bottom=0)
    style.legend(axis)
    return figure


@style.theme()
def error_by_channel(errors: pd.Series, label: str) -> Figure:
    """A bar per channel, the largest error on top; of many channels the worst are drawn.

    Args:
        errors: Indexed by channel.
        label: Name of the error.
    """
    shown = errors.sort_values(ascending=False, kind="stable").head(MAX_BARS)
    figure = style.new_figure(style.WIDTH, 0.9 + 0.24 * len(shown))
    axis = figure.subplots()
    bars = axis.barh(np.arange(len(shown)), shown, color=style.COLORS[0], height=0.7)
    axis.set_yticks(np.arange(len(shown)), [style.text(name) for name in shown.index])
    axis.bar_label(bars, style.aligned(shown), padding=3, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.14)
    axis.set_xlabel(label + ("" if len(shown) == len(errors) else f", worst {len(shown)} of {len(errors)}"))
    axis.grid(False, axis="y")
    return figure

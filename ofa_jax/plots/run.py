"""Figures of a single run: its forecasts, where its attention goes, how it was trained, where its errors are.

A table in, a matplotlib figure out, as in :mod:`~ofa_jax.plots.studies`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ofa_jax.errors import DataError
from ofa_jax.plots import style as style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ATTENTION_FLOOR = 1e-4
"""Weights below it are drawn as none."""


def forecast(windows: pd.DataFrame, *, unit: str = "value", history: int | None = None) -> Figure:
    """What was before, what came, and what was forecast; a panel per window.

    Where a step has several forecasts (of several seeds, say), their median is drawn within a fan: the ranges that hold the middle
    50 % and the middle 90 % of them.

    Args:
        windows: Columns ``step`` (…, -1, 0 before the forecast, 1 … H of it), ``truth`` and ``forecast``, NaN where there is none; a
            column ``window`` names the panels where it is there.
        unit: What the values are.
        history: Steps shown before the forecast; all when None.

    Raises:
        DataError: A column is missing, or there is no forecast.
    """
    windows = style.checked(
        windows, ("step", "truth", "forecast"), "table of windows", numbers=("step", "truth", "forecast")
    )
    ahead = windows[(windows["step"] > 0) & windows["forecast"].notna()]
    if not len(ahead):
        raise DataError(
            "the table of windows has no forecast at a step above 0",
            where="plots",
            fix="Count its steps from 1",
        )
    names = style.distinct(windows["window"]) if "window" in windows else [None]
    figure = style.new_figure(8, 2.5 * len(names) + 0.5)
    axes = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for axis, name in zip(axes, names, strict=True):
        own = windows if name is None else style.chosen(windows, {"window": name})
        _forecast_panel(axis, own if history is None else own[own["step"] > -history])
        axis.set_ylabel(style.text(unit), fontsize=9)
        if name is not None:
            axis.set_title(style.text(name, 90), fontsize=10, loc="left")
    axes[-1].set_xlabel("steps from the last one that the model reads", fontsize=9)
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper right",
        ncols=len(handles),
        fontsize=8,
        frameon=False,
    )
    return figure


def _forecast_panel(axis: Axes, own: pd.DataFrame) -> None:
    truth = own.groupby("step")["truth"].first()
    before, after = truth[truth.index <= 0], truth[truth.index >= 0]
    by_step = own[own["step"] > 0].groupby("step")["forecast"]
    median = by_step.median()
    axis.plot(before.index, before, color="0.35", linewidth=1, label="what the model reads")
    if after[after.index > 0].notna().any():
        axis.plot(
            after.index, after, color="#000000", linewidth=1.1, linestyle=(0, (3, 1.5)), label="what came"
        )
    if by_step.size().max() > 1:
        for share, alpha in ((90, 0.18), (50, 0.32)):
            low, high = (by_step.quantile(place) for place in (0.5 - share / 200, 0.5 + share / 200))
            axis.fill_between(
                low.index,
                low,
                high,
                color=style.COLOURS[0],
                alpha=alpha,
                linewidth=0,
                label=f"middle {share} %",
            )
    many = int(by_step.size().max())
    axis.plot(
        median.index,
        median,
        color=style.COLOURS[0],
        linewidth=1.9,
        label="forecast" if many == 1 else f"median of {many} forecasts",
    )
    axis.axvline(0, color="0.75", linewidth=0.8)
    style.plain(axis)


def attention_by_patch(weights: np.ndarray | pd.DataFrame) -> Figure:
    """Where attention goes: the mean map over layers and heads, and what each patch receives in each layer.

    What a patch receives is the mean weight that it has for itself and the patches after it, the only ones that see it; the dotted
    line is what it would be if every patch looked at all it sees alike.

    Args:
        weights: ``[layers, heads, n, n]`` (query before key), or a table with the columns ``layer, head, query, key, weight``.

    Raises:
        DataError: Another shape, or weights of a query that do not add up to 1.
    """
    from matplotlib.colors import LogNorm

    layers = _attention_array(weights).mean(axis=1)
    count = layers.shape[-1]
    seen_by = np.arange(count, 0, -1)
    received = layers.sum(axis=1) / seen_by
    alike = np.cumsum((1 / np.arange(1, count + 1))[::-1])[::-1] / seen_by
    figure = style.new_figure(9, 3.9)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    seen = layers.mean(axis=0)
    seen = np.ma.masked_less(
        seen, ATTENTION_FLOOR
    )  # white: patches that come later, which a causal trunk does not see
    image = left.imshow(
        seen,
        cmap=style.SHADES,
        norm=LogNorm(max(ATTENTION_FLOOR, float(seen.min())), 1),
        interpolation="nearest",
    )
    bar = figure.colorbar(image, ax=left, shrink=0.85, format=lambda value, _: f"{value:g}")
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=8)
    left.set_title("mean over layers and heads", fontsize=10)
    left.set_xlabel("patch looked at", fontsize=9)
    left.set_ylabel("patch that looks", fontsize=9)
    left.tick_params(labelsize=8)
    patches, colours = np.arange(count), style.shades(len(layers))
    for index, line in enumerate(received):
        right.plot(
            patches,
            line,
            **style.stroke(index, colours[index]),
            markersize=4,
            markevery=max(1, count // 10),
            linewidth=1.4,
            label=f"layer {index + 1}",
        )
    right.plot(patches, alike, color="0.3", linestyle=":", linewidth=1.8, label="all alike")
    style.log_heights(right)
    right.set_title("weight that a patch receives", fontsize=10)
    right.set_xlabel("patch", fontsize=9)
    for along in (left.xaxis, left.yaxis, right.xaxis):
        style.whole_ticks(along)
    right.set_ylabel("mean weight", fontsize=9)
    right.legend(fontsize=8, frameon=False, ncols=1 + (len(layers) > 4))
    style.plain(right)
    return figure


def _attention_array(weights: np.ndarray | pd.DataFrame) -> np.ndarray:
    """``[layers, heads, n, n]`` float64, checked."""
    if not isinstance(weights, np.ndarray) and hasattr(weights, "columns"):
        axes = ("layer", "head", "query", "key")
        table = style.checked(weights, (*axes, "weight"), "table of attention", numbers=("weight",))
        places = [sorted(set(table[name])) for name in axes]
        array = np.zeros([len(values) for values in places])
        array[
            tuple(
                table[name].map({value: at for at, value in enumerate(values)})
                for name, values in zip(axes, places, strict=True)
            )
        ] = table["weight"]
    else:
        array = np.asarray(weights, np.float64)
    if array.ndim != 4 or array.shape[2] != array.shape[3] or not array.size:
        raise DataError(
            f"attention has the shape {list(array.shape)}",
            where="plots",
            fix="Give [layers, heads, patches, patches]",
        )
    worst = np.abs(array.sum(axis=-1) - 1).max()
    if not worst < 0.01:  # bfloat16 weights of a long row are off by less
        raise DataError(
            f"the attention of a patch adds up to 1 only within {worst:.3g}",
            where="plots",
            fix="Give weights after the softmax",
        )
    return array


def training_curves(epochs: pd.DataFrame, objective: str, steps: pd.DataFrame | None = None) -> Figure:
    """Training loss at the left, what validation chose the epoch by at the right, its best epoch marked.

    Args:
        epochs: Columns ``epoch, train_loss, validation_<objective>``, a row per epoch.
        objective: The metric that validation chooses by; smaller is better.
        steps: Columns ``epoch`` (with fractions) and ``loss``: means over some steps, drawn thin behind the epochs'.
    """
    column = f"validation_{objective}"
    epochs = style.checked(
        epochs, ("epoch", "train_loss", column), "table of epochs", numbers=("epoch", "train_loss", column)
    )
    figure = style.new_figure(8.6, 3)
    left, right = figure.subplots(1, 2)
    if steps is not None and len(steps):
        steps = style.checked(steps, ("epoch", "loss"), "table of steps", numbers=("epoch", "loss"))
        left.plot(
            steps["epoch"], steps["loss"], color=style.COLOURS[6], linewidth=1, label="mean of some steps"
        )
    left.plot(
        epochs["epoch"],
        epochs["train_loss"],
        **style.stroke(0, style.COLOURS[0]),
        linewidth=1.5,
        label="mean of an epoch",
    )
    right.plot(epochs["epoch"], epochs[column], **style.stroke(1, style.COLOURS[5]), linewidth=1.5)
    best = epochs.iloc[int(np.argmin(epochs[column]))]
    right.plot(
        [best["epoch"]],
        [best[column]],
        marker="o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor="black",
        linestyle="none",
        label=f"best: epoch {best['epoch']:g}",
    )
    for axis, title in ((left, "training loss"), (right, style.spelled(column))):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch", fontsize=9)
        axis.legend(fontsize=8, frameon=False)
        style.whole_ticks(axis.xaxis)
        axis.margins(x=0.08)
        style.plain(axis)
    return figure


def error_by_step(errors: pd.DataFrame, label: str) -> Figure:
    """How the error grows with the step that is forecast, a line per method.

    Args:
        errors: Columns ``method, step, error``.
        label: What the error is.
    """
    errors = style.checked(errors, ("method", "step", "error"), "table of errors", numbers=("step", "error"))
    figure = style.new_figure(7, 3)
    axis = figure.subplots()
    for index, method in enumerate(style.distinct(errors["method"])):
        own = errors[errors["method"] == method]
        stroke = style.stroke(index, style.COLOURS[index % len(style.COLOURS)])
        axis.plot(
            own["step"],
            own["error"],
            **stroke,
            markersize=4,
            markevery=max(1, len(own) // 12),
            linewidth=1.5,
            label=style.text(method),
        )
    axis.set_xlabel("step of the forecast", fontsize=9)
    style.whole_ticks(axis.xaxis)
    axis.set_ylabel(label, fontsize=9)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, frameon=False)
    style.plain(axis)
    return figure


MOST_BARS = 30
"""Channels in a picture; of more than these the ones with the largest errors are drawn."""


def error_by_channel(errors: pd.DataFrame, label: str) -> Figure:
    """A bar per channel, the largest error on top; of many channels the worst are drawn.

    Args:
        errors: Columns ``channel, error``.
        label: What the error is.
    """
    errors = style.checked(errors, ("channel", "error"), "table of errors", numbers=("error",))
    shown = errors.sort_values("error", ascending=False, kind="stable").head(MOST_BARS)
    figure = style.new_figure(7, 0.9 + 0.24 * len(shown))
    axis = figure.subplots()
    places = np.arange(len(shown))
    axis.barh(places, shown["error"], color=style.COLOURS[0], height=0.7)
    axis.set_yticks(places, [style.text(name) for name in shown["channel"]])
    for place, value in zip(places, shown["error"], strict=True):
        axis.annotate(
            f"{value:.4g}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8
        )
    axis.invert_yaxis()
    axis.margins(x=0.14)
    axis.set_xlabel(
        label + ("" if len(shown) == len(errors) else f", the worst {len(shown)} of {len(errors)}"),
        fontsize=9,
    )
    style.plain(axis)
    axis.grid(False, axis="y")
    return figure

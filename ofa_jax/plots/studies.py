"""Figures of sweeps and gradient studies: a table in, a matplotlib figure out.

Colors are Okabe and Ito's, made for color vision deficiencies; markers and line styles differ as well, so a
figure printed in grayscale says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ofa_jax.errors import DataError
from ofa_jax.plots import style as style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEYS = ("module", "optimizer", "steps", "scaling", "init")
"""Columns that identify a fitted slope, besides its quantity."""


@style.theme()
def slopes(study: pd.DataFrame, fits: pd.DataFrame, quantity: str, *, power: int = 2) -> Figure:
    """A quantity against rank, log-log: measured, fitted and predicted, for every scaling and initialization.

    A column of panels per module, a row per optimizer and number of steps. Points are means over seeds, bars
    reach from the smallest to the largest seed. The band is the interval of the fitted slope, the dotted line
    the predicted slope; both run through the center of the points. Values that are not positive are counted
    in the panel.

    Args:
        study: Columns :data:`KEYS`, ``quantity, rank, value``, a row per seed.
        fits: Columns :data:`KEYS`, ``quantity, slope, low, high, predicted``; ``predicted`` may be NaN.
        quantity: Which quantity.
        power: 1 for arithmetic means over seeds, 2 for root mean squares.

    Raises:
        DataError: A column is missing, or the study has no positive value of this quantity.
    """
    style.check(study, ("rank", "value"), (*KEYS, "quantity"), where="plots.slopes")
    numbers = ["slope", "low", "high", "predicted"]
    if len(fits):
        style.check(fits, numbers, (*KEYS, "quantity"), where="plots.slopes")
    own = study[study["quantity"] == quantity]
    if not (own["value"] > 0).any():
        found = ", ".join(map(str, study["quantity"].unique()))
        what = f"no positive value of {quantity!r} for a logarithmic axis"
        raise DataError(what, where="plots.slopes", fix=f"The study has {found}")
    known = dict(fits[fits["quantity"] == quantity].set_index(list(KEYS))[numbers].iterrows())
    stages = own.groupby(["optimizer", "steps"], sort=False)
    modules, groups = own["module"].nunique(), own.groupby(["scaling", "init"]).ngroups
    figure = style.new_figure(5.2 * modules, (3.3 + 0.17 * groups) * stages.ngroups)
    axes = figure.subplots(stages.ngroups, modules, squeeze=False)
    for row, ((optimizer, steps), stage) in zip(axes, stages, strict=True):
        for axis, (module, points) in zip(row, stage.groupby("module", sort=False), strict=False):
            _slope_panel(axis, points, known, power)
            after = f"{steps} step{'' if steps == 1 else 's'} of {style.spelled(optimizer)}"
            axis.set(title=f"{style.text(module)}, {after}", ylabel=style.spelled(quantity))
    figure.supxlabel("line: fitted slope, band: its interval, dotted: theory", fontsize=8, color="0.3")
    return figure


def _slope_panel(axis: Axes, points: pd.DataFrame, fits: Mapping[Any, pd.Series], power: int) -> None:
    """Points, fits and predictions of one module, and a legend below with the numbers."""
    style.log_rank(axis, points["rank"])
    positive = points[points["value"] > 0]
    scalings, inits = (list(points[name].unique()) for name in ("scaling", "init"))
    for key, own in positive.groupby(list(KEYS), sort=False):
        *_, scaling, init = key
        which, by_rank = scalings.index(scaling), own.groupby("rank")["value"]
        color, marker = style.COLORS[which], style.MARKERS[inits.index(init) % len(style.MARKERS)]
        center = (own["value"] ** power).groupby(own["rank"]).mean() ** (1 / power)
        spread = np.maximum([center - by_rank.min(), by_rank.max() - center], 0)
        fill = {"fillstyle": "left"} if which % 3 == 2 else {"mfc": "white" if which % 3 else color}
        look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 5.5, **fill}
        look |= {"elinewidth": 0.8, "linestyle": "none", "zorder": 3}
        label = f"{scaling}, {init}" + (_slope_text(fits[key]) if key in fits else "")
        axis.errorbar(center.index.to_numpy(float), center.to_numpy(), yerr=spread, label=label, **look)
        if key in fits:
            _slope_lines(axis, center, fits[key], color)
    style.log_y(axis)
    if dropped := len(points) - len(positive):
        note = f"{dropped} value{'' if dropped == 1 else 's'} not positive, not drawn"
        axis.annotate(note, (0.5, 0.95), xycoords="axes fraction", ha="center", fontsize=7.5, color="0.3")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7.5, handletextpad=0.4)


def _slope_text(fit: pd.Series) -> str:
    theory = "" if np.isnan(fit["predicted"]) else f", theory {round(fit['predicted'], 2):zg}"
    shown = f": slope {fit['slope']:z.2f} [{fit['low']:z.2f}, {fit['high']:z.2f}]{theory}"
    return shown.replace("-", "\N{MINUS SIGN}")


def _slope_lines(axis: Axes, center: pd.Series, fit: pd.Series, color: str) -> None:
    """Fit, interval and prediction as lines through the middle of the points, ``center`` by rank."""
    logs = np.log(center.index.to_numpy(float))
    middle, height = logs.mean(), np.log(center.to_numpy(float)).mean()
    at = np.linspace(logs.min(), logs.max(), 33)
    lines = {name: np.exp(height + slope * (at - middle)) for name, slope in fit.items()}
    low, high = lines["low"], lines["high"]
    if np.isfinite([low, high]).all():
        edges = np.minimum(low, high), np.maximum(low, high)
        axis.fill_between(np.exp(at), *edges, color=color, alpha=0.18, linewidth=0)
    if np.isfinite(lines["slope"]).all():
        axis.plot(np.exp(at), lines["slope"], color=color, linewidth=1.2)
    if np.isfinite(lines["predicted"]).all():
        axis.plot(np.exp(at), lines["predicted"], color="0.2", linewidth=1.6, linestyle=":")


@style.theme()
def gradient_norms(events: pd.DataFrame, column: str = "gradient_norm") -> Figure:
    """Gradient norm over training, a panel per module and a line per rank; norms of 0 leave a gap.

    Args:
        events: Columns ``step, module, rank, gradient_norm``; rows of several seeds are averaged.
        column: Another column to draw instead.

    Raises:
        DataError: A column is missing, or there is no row.
    """
    style.check(events, ("step", "rank", column), ("module",), where="plots.gradient_norms")
    modules, ranks = events.groupby("module", sort=False), sorted(events["rank"].unique())
    columns = min(modules.ngroups, 3 if modules.ngroups > 4 else 2)
    rows = -(-modules.ngroups // columns)
    figure = style.new_figure(style.WIDTH, 2.5 * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    shades = style.shades(len(ranks))
    lines = {rank: style.stroke(index, shades[index]) for index, rank in enumerate(ranks)}
    for axis, (module, own) in zip(axes, modules, strict=False):
        for rank, values in own.groupby("rank"):
            mean = values.groupby("step")[column].mean()
            every = max(1, len(mean) // 8)
            axis.plot(mean.where(mean > 0), **lines[rank], markevery=every, label=f"rank {rank:g}")
        if (own[column] > 0).any():
            style.log_y(axis)
        axis.set_title(style.text(module), fontsize=9)
        axis.set_ylabel(style.text(style.spelled(column)), fontsize=8)
    for axis in axes[modules.ngroups :]:
        axis.set_visible(False)
    for axis in axes[modules.ngroups - columns : modules.ngroups]:
        axis.set_xlabel("training step", fontsize=8)
        axis.tick_params(labelbottom=True)
    if len(ranks) > 1:
        style.legend_below(figure, 5 if columns > 1 else 3)
    return figure


@style.theme()
def accuracy_by_rank(cells: pd.DataFrame, metric: str, baselines: pd.DataFrame | None = None) -> Figure:
    """A metric against rank: mean, standard deviation and every seed; baselines as named lines.

    A line for every scaling, initialization, alpha and learning rate among the cells.

    Args:
        cells: Columns ``rank`` and the metric (``test_mse``, or ``mse`` for the same), a row per cell of a
            sweep; where present, ``scaling, init, alpha, learning_rate``.
        metric: Which metric.
        baselines: Columns ``method`` and the metric.

    Raises:
        DataError: A column is missing, or there is no row.
    """
    figure, axis = _accuracy(cells, "rank", metric, baselines)
    style.log_rank(axis, cells["rank"])
    return figure


@style.theme()
def accuracy_by_bytes(cells: pd.DataFrame, metric: str, baselines: pd.DataFrame | None = None) -> Figure:
    """As :func:`accuracy_by_rank`, against the size of the trained parameters (column ``bytes``)."""
    from matplotlib.ticker import EngFormatter

    figure, axis = _accuracy(cells, "bytes", metric, baselines)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(EngFormatter("B"))
    axis.xaxis.set_minor_formatter("")
    axis.set_xlabel("trainable parameters, as float32")
    return figure


def _accuracy(
    cells: pd.DataFrame, across: str, metric: str, baselines: pd.DataFrame | None
) -> tuple[Figure, Axes]:
    column, where = _metric_column(cells, metric), f"plots.accuracy_by_{across}"
    style.check(cells, (across, column), where=where)
    varied = ("scaling", "init", "alpha", "learning_rate")
    apart = [name for name in varied if name in cells and cells[name].nunique() > 1]
    groups = list(cells.groupby(apart, sort=False, dropna=False)) if apart else [((), cells)]
    figure = style.new_figure(6.8, 4.2)
    axis = figure.subplots()
    for index, (key, own) in enumerate(groups):
        found = own.groupby(across)[column].agg(["mean", "std"])
        color = style.COLORS[index % len(style.COLORS)]
        axis.plot(own[across], own[column], ".", color=color, alpha=0.55, zorder=2)
        line = {**style.stroke(index, color), "markersize": 6, "capsize": 3, "elinewidth": 1}
        label = ", ".join(map(_named, apart, key))
        axis.errorbar(found.index, found["mean"], yerr=found["std"].fillna(0), **line, zorder=3, label=label)
    counts = cells.groupby([across, *apart], dropna=False)[column].count()
    few, most = int(counts.min()), int(counts.max())
    seeds = f"{few} to {most}" if few < most else f"{most}"
    spread = f", mean ± standard deviation of {seeds} seeds" if most > 1 else ""
    axis.set_ylabel(style.text(style.spelled(column)) + spread)
    if baselines is not None:
        name = _metric_column(baselines, metric)
        style.check(baselines, (name,), ("method",), where=where)
        _baseline_lines(axis, baselines.set_index("method")[name].dropna().sort_values(), cells[column])
    if apart:
        style.legend_below(figure, 2)
    return figure, axis


def _named(name: str, value: object) -> str:
    return f"{style.spelled(name)} {value:g}" if isinstance(value, float | int) else style.text(value)


def _metric_column(table: pd.DataFrame, metric: str) -> str:
    plain = metric.removeprefix("test_").removeprefix("validation_")
    return next((name for name in (metric, f"test_{metric}", plain) if name in table), metric)


def _baseline_lines(axis: Axes, baselines: pd.Series, values: pd.Series) -> None:
    """A line per baseline, named on the right; for those far beyond the cells an arrow instead of a line."""
    low, high = values.min(), values.max()
    reach = 2 * max(high - low, 0.05 * abs(high))
    near = baselines[baselines.between(low - reach, high + reach)]
    low, high = min(low, *near, high), max(high, *near, low)
    margin = 0.06 * (high - low or abs(high) or 1)
    axis.set_ylim(low - margin, high + margin)
    heights = ((baselines - low + margin) / (high - low + 2 * margin)).clip(0, 1)
    places = spread_out(heights.tolist(), 0.055)
    for index, ((method, value), height) in enumerate(zip(baselines.items(), heights, strict=True)):
        arrow = "↑ " if value > high else "↓ " if value < low else ""
        if not arrow:
            dashes = style.LINES[1 + index % (len(style.LINES) - 1)]
            axis.axhline(value, color="0.35", linewidth=1, linestyle=dashes, zorder=1)
        link = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
        look: dict[str, Any] = {"xycoords": "axes fraction", "annotation_clip": False, "va": "center"}
        look |= {"fontsize": 8, "color": "0.2", "arrowprops": None if arrow else link}
        shown = f"{arrow}{style.text(method)} {value:.4g}"
        axis.annotate(shown, xy=(1, height), xytext=(1.03, places[index]), **look)


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places, at most 1, moved apart so that neighbors are at least ``gap`` from each other."""
    moved = list(places)
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    ceiling = 1.0
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved

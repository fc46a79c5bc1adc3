"""Figures of a study: a table in, a matplotlib figure out, one function each; nothing of matplotlib's global state is used.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; marker and line style differ as well, so a figure printed in
grey says the same. :mod:`~ofa_jax.plots.style` turns a figure into SVG or PNG; what a single run looks like is drawn in
:mod:`~ofa_jax.plots.run`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ofa_jax.errors import DataError
from ofa_jax.plots import style as style
from ofa_jax.plots.run import attention_by_patch, forecast
from ofa_jax.studies.gradients.theory import MEANS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "accuracy_by_bytes",
    "accuracy_by_rank",
    "attention_by_patch",
    "forecast",
    "gradient_norms",
    "slopes",
    "update_ratios",
]


def slopes(study: pd.DataFrame, slopes_table: pd.DataFrame, quantity: str) -> Figure:
    """A quantity against rank, both logarithmic: measured, fitted and predicted, for every scaling and init.

    A column of panels per module, a row per optimiser and number of steps. Points are geometric means over seeds, bars reach from
    the least to the largest seed; the band is the fitted slope's interval and the dotted line the predicted slope, both turned
    about the centre of the points, as a slope says nothing of the height. Values that are not positive have no place on a
    logarithmic axis: the panel says how many there are.

    Args:
        study: Columns ``module, rank, scaling, init, optimizer, steps, quantity, value``, a row per seed.
        slopes_table: Columns ``module, scaling, init, optimizer, steps, quantity, slope, low, high, predicted``; ``predicted`` may be NaN.
        quantity: Which quantity.

    Raises:
        DataError: A column is missing, or the study has no positive value of this quantity.
    """
    study = style.checked(
        study,
        ("module", "rank", "scaling", "init", "optimizer", "steps", "quantity", "value"),
        "study",
        numbers=("rank", "value"),
    )
    fits = style.checked(
        slopes_table,
        ("module", "scaling", "init", "optimizer", "steps", "quantity", "slope", "low", "high", "predicted"),
        "table of slopes",
        numbers=("slope", "low", "high", "predicted"),
        may_be_empty=True,
    )
    known = style.distinct(study["quantity"])
    if quantity not in known:
        raise DataError(
            f"the study has no quantity {quantity!r}",
            where="slopes",
            fix=f"It has {', '.join(map(str, known))}",
        )
    study = study[study["quantity"] == quantity]
    if not (study["value"] > 0).any():
        raise DataError(
            f"no value of {quantity!r} is positive",
            where="slopes",
            fix="A logarithmic axis shows positive values alone",
        )
    fits = fits[fits["quantity"] == quantity]
    modules, stages = style.distinct(study["module"]), style.distinct(study["optimizer"], study["steps"])
    groups = style.distinct(study["scaling"], study["init"])
    places = {name: style.distinct(study[name]) for name in ("scaling", "init")}
    figure = style.new_figure(5.2 * len(modules), (3.3 + 0.17 * len(groups)) * len(stages))
    axes = figure.subplots(len(stages), len(modules), squeeze=False)
    for row, (optimizer, steps) in enumerate(stages):
        for column, module in enumerate(modules):
            axis = axes[row, column]
            where = {"module": module, "optimizer": optimizer, "steps": steps}
            _slope_panel(axis, style.chosen(study, where), style.chosen(fits, where), groups, places)
            axis.set_title(
                f"{style.text(module)}, {steps} step{'' if steps == 1 else 's'} of {style.spelled(optimizer)}",
                fontsize=10,
            )
            axis.set_ylabel(style.spelled(quantity), fontsize=9)
    figure.supxlabel("line: fitted slope, band: its interval, dotted: theory", fontsize=8, color="0.3")
    return figure


def _slope_panel(
    axis: Axes, points: pd.DataFrame, fits: pd.DataFrame, groups: Sequence[tuple], places: Mapping[str, list]
) -> None:
    """Points, fits and predictions of one module, and a legend below that says the numbers."""
    style.log_rank(axis, points["rank"])
    left_out = 0
    for scaling, init in groups:
        own = style.chosen(points, {"scaling": scaling, "init": init})
        positive = own[own["value"] > 0]
        left_out += len(own) - len(positive)
        if not len(positive):
            continue
        first, second = places["scaling"].index(scaling), places["init"].index(init)
        colour, marker = style.COLOURS[first % len(style.COLOURS)], style.MARKERS[second % len(style.MARKERS)]
        by_rank = positive.groupby("rank")["value"]
        power = 1 if own["quantity"].iloc[0] in MEANS else 2  # the means that slopes are fitted to
        centre = by_rank.apply(lambda values: float(np.mean(values**power) ** (1 / power)))  # noqa: B023
        ranks, heights = centre.index.to_numpy(float), centre.to_numpy(float)
        fit = style.chosen(fits, {"scaling": scaling, "init": init})
        label = f"{scaling}, {init}" + _slope_text(fit)
        spread = np.stack([heights - by_rank.min().to_numpy(float), by_rank.max().to_numpy(float) - heights])
        axis.errorbar(
            ranks,
            heights,
            yerr=np.maximum(spread, 0),
            color=colour,
            marker=marker,
            linestyle="none",
            markersize=5.5,
            elinewidth=0.8,
            markerfacecolor=(colour, "white", colour)[first % 3],
            fillstyle=("full", "full", "left")[first % 3],
            label=label,
            zorder=3,
        )
        if len(fit):
            _slope_lines(axis, centre, fit.iloc[0], colour)
    style.log_heights(axis)
    if left_out:
        axis.text(
            0.5,
            0.98,
            f"{left_out} value{'' if left_out == 1 else 's'} not positive, not drawn",
            transform=axis.transAxes,
            va="top",
            ha="center",
            fontsize=7.5,
            style="italic",
            color="0.3",
        )
    if axis.get_legend_handles_labels()[1]:
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7.5, frameon=False, handletextpad=0.4
        )


def _slope_text(fit: pd.DataFrame) -> str:
    if not len(fit):
        return ""
    slope, low, high, predicted = (float(fit.iloc[0][name]) for name in ("slope", "low", "high", "predicted"))
    said = f": slope {style.signed(slope)} [{style.signed(low)}, {style.signed(high)}]"
    return said + ("" if np.isnan(predicted) else f", theory {style.signed(round(predicted, 2), 'g')}")


def _slope_lines(axis: Axes, centre: pd.Series, fit: pd.Series, colour: str) -> None:
    """Fit, its interval and the prediction as lines through the middle of the points, ``centre`` by rank."""
    logs = np.log(centre.index.to_numpy(float))
    middle, height = logs.mean(), np.log(centre.to_numpy(float)).mean()
    ranks = np.geomspace(np.exp(logs.min()), np.exp(logs.max()), 33)

    def line(slope: float) -> np.ndarray:
        return np.exp(height + slope * (np.log(ranks) - middle))

    low, high = line(float(fit["low"])), line(float(fit["high"]))
    if np.isfinite(low).all() and np.isfinite(high).all():
        axis.fill_between(
            ranks, np.minimum(low, high), np.maximum(low, high), color=colour, alpha=0.18, linewidth=0
        )
    if np.isfinite(fit["slope"]):
        axis.plot(ranks, line(float(fit["slope"])), color=colour, linewidth=1.2)
    if np.isfinite(fit["predicted"]):
        axis.plot(ranks, line(float(fit["predicted"])), color="0.2", linewidth=1.6, linestyle=":")


def gradient_norms(events: pd.DataFrame) -> Figure:
    """Gradient norm over training, a panel per module and a line per rank.

    Norms that are not positive leave a gap.

    Args:
        events: Columns ``step, module, rank, gradient_norm``; several rows of one step, module and rank (seeds) are averaged.

    Raises:
        DataError: A column is missing, or there is no row.
    """
    return _by_module(events, "gradient_norm")


def update_ratios(events: pd.DataFrame) -> Figure:
    """Size of an update over the size of what it changes, as :func:`gradient_norms` from a column ``update_ratio``."""
    return _by_module(events, "update_ratio")


def _by_module(events: pd.DataFrame, column: str) -> Figure:
    events = style.checked(
        events, ("step", "module", "rank", column), "table of gradients", numbers=("step", "rank", column)
    )
    modules, ranks = style.distinct(events["module"]), sorted(set(events["rank"]))
    columns = min(len(modules), 3 if len(modules) > 4 else 2)
    rows = -(-len(modules) // columns)
    figure = style.new_figure(max(4.2, 3.6 * columns), 2.5 * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    colours = style.shades(len(ranks))
    for axis, module in zip(axes, modules, strict=False):
        own = events[events["module"] == module]
        for index, rank in enumerate(ranks):
            line = own[own["rank"] == rank].groupby("step")[column].mean()
            heights = np.where(line > 0, line, np.nan)
            axis.plot(
                line.index,
                heights,
                **style.stroke(index, colours[index]),
                linewidth=1.5,
                label=f"rank {rank:g}",
                markersize=4,
                markevery=max(1, len(line) // 8),
            )
        if (own[column] > 0).any():
            style.log_heights(axis)
        axis.set_title(style.text(module), fontsize=9)
        axis.set_ylabel(style.text(style.spelled(column)), fontsize=8)
        style.plain(axis)
    for axis in axes[len(modules) :]:
        axis.set_visible(False)
    for axis in axes[max(0, len(modules) - columns) : len(modules)]:
        axis.set_xlabel("training step", fontsize=8)
        axis.xaxis.set_tick_params(labelbottom=True)
    if len(ranks) > 1:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(len(ranks), 5 if columns > 1 else 3),
            fontsize=8,
            frameon=False,
        )
    return figure


def accuracy_by_rank(cells: pd.DataFrame, metric: str, controls: pd.DataFrame | None = None) -> Figure:
    """A metric against rank: mean and standard deviation over seeds, every seed as a small point, controls as named lines.

    A line for every scaling, init, alpha and learning rate among the cells.

    Args:
        cells: Columns ``rank`` and the metric (``test_mse``, or ``mse`` for the same), a row per cell of a sweep; ``scaling, init,
            alpha, learning_rate`` tell lines apart where they are there.
        metric: Which metric.
        controls: Columns ``method`` and the metric.

    Raises:
        DataError: A column is missing, or there is no row.
    """
    figure, axis = _accuracy(cells, "rank", metric, controls)
    style.log_rank(axis, cells["rank"])
    return figure


def accuracy_by_bytes(cells: pd.DataFrame, metric: str, controls: pd.DataFrame | None = None) -> Figure:
    """As :func:`accuracy_by_rank`, against the bytes of a bundle's tensors (column ``bytes``), which may be logarithmically far apart."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure, axis = _accuracy(cells, "bytes", metric, controls)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.bytes_text(value)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("trainable parameters, as float32", fontsize=9)
    return figure


def _accuracy(
    cells: pd.DataFrame, across: str, metric: str, controls: pd.DataFrame | None
) -> tuple[Figure, Axes]:
    cells = style.checked(cells, (across,), "table of cells", numbers=(across,))
    column = _metric_column(cells, metric, "table of cells")
    cells = style.checked(cells, (column,), "table of cells", numbers=(column,))
    apart = [
        name
        for name in ("scaling", "init", "alpha", "learning_rate")
        if name in cells and cells[name].nunique() > 1
    ]
    figure = style.new_figure(6.8, 4.2)
    axis = figure.subplots()
    keys = list(dict.fromkeys(cells[apart].itertuples(index=False, name=None))) if apart else [()]
    for index, key in enumerate(keys):
        own = style.chosen(cells, dict(zip(apart, key, strict=True)))
        found = own.groupby(across)[column].agg(["mean", "std"]).sort_index()
        colour = style.COLOURS[index % len(style.COLOURS)]
        axis.plot(
            own[across],
            own[column],
            linestyle="none",
            marker=".",
            markersize=4,
            color=colour,
            alpha=0.55,
            zorder=2,
        )
        axis.errorbar(
            found.index,
            found["mean"],
            yerr=found["std"].fillna(0),
            **style.stroke(index, colour),
            markersize=6,
            linewidth=1.4,
            elinewidth=1,
            capsize=3,
            zorder=3,
            label=", ".join(_named(name, value) for name, value in zip(apart, key, strict=True)),
        )
    counts = cells.groupby([across, *apart], dropna=False)[column].count()
    few, seeds = int(counts.min()), int(counts.max())
    spread = (
        f", mean ± standard deviation of {seeds if few == seeds else f'{few} to {seeds}'} seeds"
        if seeds > 1
        else ""
    )
    axis.set_ylabel(style.text(style.spelled(column)) + spread, fontsize=9)
    style.plain(axis)
    if controls is not None:
        _control_lines(axis, controls, metric, column, cells[column])
    if apart:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure, axis


def _named(name: str, value: object) -> str:
    return f"{style.spelled(name)} {value:g}" if isinstance(value, float | int) else style.text(value)


def _metric_column(table: pd.DataFrame, metric: str, what: str) -> str:
    plain = metric.removeprefix("test_").removeprefix("validation_")
    for name in (metric, f"test_{metric}", plain):
        if name in table.columns:
            return name
    raise DataError(
        f"the {what} has no column `{metric}`",
        where="plots",
        fix=f"It has {', '.join(map(str, table.columns))}",
    )


def _control_lines(axis: Axes, controls: pd.DataFrame, metric: str, column: str, values: pd.Series) -> None:
    """A line per control, its name and value right of the axis; those far beyond the cells are named with an arrow instead."""
    controls = style.checked(controls, ("method",), "table of controls")
    own = _metric_column(controls, metric, "table of controls")
    controls = (
        style.checked(controls, (own,), "table of controls", numbers=(own,))
        .dropna(subset=[own])
        .sort_values(own)
    )
    low, high = float(values.min()), float(values.max())
    room = 2 * max(high - low, 0.05 * abs(high))
    near = controls[controls[own].between(low - room, high + room)]
    low, high = min(low, *near[own], high), max(high, *near[own], low)
    margin = 0.06 * (high - low or abs(high) or 1)
    axis.set_ylim(low - margin, high + margin)
    names = []
    for index, (method, value) in enumerate(controls[["method", own]].itertuples(index=False, name=None)):
        inside = low <= value <= high
        if inside:
            axis.axhline(
                value,
                color="0.35",
                linewidth=1,
                linestyle=style.LINES[1 + index % (len(style.LINES) - 1)],
                zorder=1,
            )
        arrow = "" if inside else ("↑ " if value > high else "↓ ")
        height = float(np.clip((value - low + margin) / (high - low + 2 * margin), 0, 1))
        names.append((height, f"{arrow}{style.text(method)} {value:.4g}", arrow))
    for place, (height, text, arrow) in zip(
        style.spread_out([height for height, *_ in names], 0.055), names, strict=True
    ):
        axis.annotate(
            text,
            (1, height),
            (1.03, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            color="0.2",
            annotation_clip=False,
            arrowprops=None
            if arrow
            else {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0},
        )

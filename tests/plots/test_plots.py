"""Figures: what stands on their axes is what was in the tables; bad tables give one clear error."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ofa_jax.errors import DataError
from ofa_jax.plots import run as plots_run
from ofa_jax.plots import studies as plots
from ofa_jax.plots import style as plots_style
from ofa_jax.plots import tasks as plots_tasks

RANKS = (2, 8, 32)
SLOPES = ["module", "scaling", "init", "optimizer", "steps", "quantity", "slope", "low", "high", "predicted"]


@pytest.fixture
def study() -> pd.DataFrame:
    """An exact power law of the rank for each scaling, three seeds that differ by constant factors."""
    rows = [
        (module, "dense", rank, scaling, "theorem", "sgd", 1, seed, "change", height * rank**slope * factor)
        for module, height in (("out_layer", 3.0), ("gpt2/wpe", 5.0))
        for scaling, slope in (("rslora", 0), ("lora", -1))
        for rank in RANKS
        for seed, factor in enumerate((0.5, 1, 2))
    ]
    return pd.DataFrame(
        rows,
        columns=[
            "module",
            "kind",
            "rank",
            "scaling",
            "init",
            "optimizer",
            "steps",
            "seed",
            "quantity",
            "value",
        ],
    )


@pytest.fixture
def fits() -> pd.DataFrame:
    rows = [
        (
            module,
            "dense",
            scaling,
            "theorem",
            "sgd",
            1,
            "change",
            slope,
            slope - 0.25,
            slope + 0.25,
            predicted,
        )
        for module in ("out_layer", "gpt2/wpe")
        for scaling, slope, predicted in (("rslora", 0.0, 0.0), ("lora", -1.0, np.nan))
    ]
    return pd.DataFrame(
        rows,
        columns=[
            "module",
            "kind",
            "scaling",
            "init",
            "optimizer",
            "steps",
            "quantity",
            "slope",
            "low",
            "high",
            "predicted",
        ],
    )


def labels(axis) -> list[str]:
    return axis.get_legend_handles_labels()[1]


def test_slopes_show_points_fit_interval_and_prediction(study, fits):
    figure = plots.slopes(study, fits, "change")
    assert [axis.get_title() for axis in figure.axes] == [
        "out_layer, 1 step of SGD",
        "gpt2/wpe, 1 step of SGD",
    ]
    for axis, middle in zip(figure.axes, (3.0, 5.0), strict=True):
        height = middle * np.sqrt(1.75)  # the root mean square of half, whole and double
        assert (axis.get_xscale(), axis.get_yscale(), axis.get_xlabel(), axis.get_ylabel()) == (
            "log",
            "log",
            "rank",
            "change",
        )
        assert axis.get_xticks().tolist() == list(RANKS)
        assert labels(axis) == [
            "rslora, theorem: slope 0.00 [−0.25, 0.25], theory 0",
            "lora, theorem: slope −1.00 [−1.25, −0.75]",
        ]
        flat, falling = axis.containers
        np.testing.assert_allclose(flat.lines[0].get_xdata(), RANKS)
        np.testing.assert_allclose(flat.lines[0].get_ydata(), height)
        np.testing.assert_allclose(falling.lines[0].get_ydata(), height / np.array(RANKS))
        bars = np.array(flat.lines[2][0].get_segments())[:, :, 1]
        np.testing.assert_allclose(bars, [[middle / 2, middle * 2]] * 3)
        lines = [line for line in axis.lines if len(line.get_xdata()) == 33]
        assert [line.get_linestyle() for line in lines] == ["-", ":", "-"], (
            "fit and theory of the first, fit of the second"
        )
        for line, slope in zip(lines, (0, 0, -1), strict=True):
            x, y = line.get_xdata(), line.get_ydata()
            np.testing.assert_allclose(np.diff(np.log(y)) / np.diff(np.log(x)), slope, atol=1e-9)
            np.testing.assert_allclose(
                np.exp(np.interp(np.log(8), np.log(x), np.log(y))), height * 8.0**slope
            )
        edge = axis.collections[1].get_paths()[0].vertices  # after the bars of the first group comes its band
        at_end = edge[np.isclose(edge[:, 0], 32)][:, 1]
        np.testing.assert_allclose([at_end.min(), at_end.max()], height * 4.0 ** np.array([-0.25, 0.25]))


def test_slopes_tell_scalings_apart_without_colour(study, fits):
    figure = plots.slopes(study, fits, "change")
    marks = {
        (bar.lines[0].get_marker(), bar.lines[0].get_fillstyle(), str(bar.lines[0].get_markerfacecolor()))
        for bar in figure.axes[0].containers
    }
    assert len({(marker, face == "white") for marker, _, face in marks}) == 2


def test_slopes_say_which_values_a_logarithm_cannot_show(study, fits):
    study.loc[study.index[:2], "value"] = [0.0, -1.0]
    axis = plots.slopes(study, fits, "change").axes[0]
    assert [text.get_text() for text in axis.texts] == ["2 values not positive, not drawn"]
    assert axis.containers[0].lines[0].get_ydata()[0] == pytest.approx(3.0 * 2)  # the seed that is left
    study["value"] = -1.0
    with pytest.raises(DataError, match="no value of 'change' is positive"):
        plots.slopes(study, fits, "change")


def test_slopes_have_a_row_of_panels_per_optimiser_and_steps(study, fits):
    more = pd.concat([study, study.assign(optimizer="adam", steps=10)])
    figure = plots.slopes(more, fits.iloc[:0], "change")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[2:] == ["out_layer, 10 steps of Adam", "gpt2/wpe, 10 steps of Adam"]
    assert labels(figure.axes[2]) == ["rslora, theorem", "lora, theorem"], (
        "without a fit there is no slope to tell"
    )


def test_another_quantity_is_refused_by_name(study, fits):
    with pytest.raises(DataError, match=r"no quantity 'norm'\. It has change"):
        plots.slopes(study, fits, "norm")


@pytest.mark.parametrize(
    ("draw", "column"), [(plots.gradient_norms, "gradient_norm"), (plots.update_ratios, "update_ratio")]
)
def test_gradients_have_a_panel_per_module_and_a_line_per_rank(draw, column):
    rows = [
        (step, module, rank, step * rank)
        for module in ("a", "b", "c")
        for rank in RANKS
        for step in (10, 20, 30)
    ]
    events = pd.DataFrame(rows, columns=["step", "module", "rank", column])
    figure = draw(events)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == ["a", "b", "c"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rank 2", "rank 8", "rank 32"]
    for axis in shown:
        assert axis.get_yscale() == "log"
        for line, rank in zip(axis.lines, RANKS, strict=True):
            assert line.get_xdata().tolist() == [10, 20, 30]
            assert line.get_ydata().tolist() == [10 * rank, 20 * rank, 30 * rank]
        assert len({(line.get_linestyle(), line.get_marker()) for line in axis.lines}) == 3
    one = draw(events[events["rank"] == 8])
    assert not one.legends, "one rank needs no legend"
    events.loc[0, column] = 0.0
    assert np.isnan(draw(events).axes[0].lines[0].get_ydata()[0]), "a logarithm has no place for 0"


def test_no_positive_gradient_at_all_is_drawn_on_a_plain_axis():
    events = pd.DataFrame({"step": [1, 2], "module": "a", "rank": 4, "gradient_norm": 0.0})
    assert plots.gradient_norms(events).axes[0].get_yscale() == "linear"


@pytest.fixture
def cells() -> pd.DataFrame:
    rows = [
        (rank, scaling, "theorem", 16.0, seed, 100 * rank, 400 * rank, 0.4 + 0.1 / rank + 0.01 * seed)
        for scaling in ("rslora", "lora")
        for rank in RANKS
        for seed in (-1, 0, 1)
    ]
    return pd.DataFrame(
        rows, columns=["rank", "scaling", "init", "alpha", "seed", "trainable", "bytes", "test_mse"]
    )


CONTROLS = pd.DataFrame(
    {"method": ["NLinear", "DLinear", "costs $5 or $6", "far"], "mse": [0.41, 0.412, 0.43, 9.0]}
)


@pytest.mark.parametrize("metric", ["mse", "test_mse"])
@pytest.mark.parametrize(
    ("draw", "across", "size"), [(plots.accuracy_by_rank, "rank", 1), (plots.accuracy_by_bytes, "bytes", 400)]
)
def test_accuracy_has_mean_spread_seeds_and_controls(cells, draw, across, size, metric):
    figure = draw(cells, metric, CONTROLS)
    (axis,) = figure.axes
    assert axis.get_xscale() == "log"
    assert axis.get_ylabel() == "test MSE, mean ± standard deviation of 3 seeds"
    assert labels(axis) == ["rslora", "lora"], "only what differs among the cells names a line"
    for bars in axis.containers:
        np.testing.assert_allclose(np.asarray(bars.lines[0].get_xdata(), float), size * np.array(RANKS))
        np.testing.assert_allclose(np.asarray(bars.lines[0].get_ydata(), float), 0.4 + 0.1 / np.array(RANKS))
        ends = np.array(bars.lines[2][0].get_segments())[:, :, 1]
        np.testing.assert_allclose(np.diff(ends, axis=1)[:, 0], 0.02)
    flat = [line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1]]
    assert flat == [0.41, 0.412, 0.43], "a line for each control in reach"
    low, high = axis.get_ylim()
    assert low < 0.39
    assert 0.46 < high < 0.6, "the control far beyond does not press the others together"
    assert [text.get_text() for text in axis.texts] == [
        "NLinear 0.41",
        "DLinear 0.412",
        r"costs \$5 or \$6 0.43",
        "↑ far 9",
    ]
    heights = [text.get_position()[1] for text in axis.texts]
    assert min(np.diff(heights)) >= 0.055 - 1e-9, "names that would lie over one another are moved apart"


def test_ranks_stand_at_the_axis_as_they_are_and_one_cell_is_enough(cells):
    (axis,) = plots.accuracy_by_rank(cells, "mse").axes
    assert [axis.xaxis.get_major_formatter()(tick, 0) for tick in axis.get_xticks()] == ["2", "8", "32"]
    (axis,) = plots.accuracy_by_rank(cells.iloc[:1], "mse").axes
    assert axis.get_ylabel() == "test MSE"
    assert axis.get_xlim() == (1, 4)
    plots_style.as_svg(axis.figure)


def test_bytes_are_written_in_units(cells):
    (axis,) = plots.accuracy_by_bytes(cells, "mse").axes
    assert [axis.xaxis.get_major_formatter()(value, 0) for value in (100, 1e4, 2.2e6, 3e9)] == [
        "100 B",
        "10 kB",
        "2.2 MB",
        "3 GB",
    ]


def windows(members: int = 1) -> pd.DataFrame:
    step = np.arange(-3, 3)
    parts = [
        pd.DataFrame(
            {
                "step": step,
                "truth": step * 1.0,
                "forecast": np.where(step > 0, step + member, np.nan),
                "window": name,
            }
        )
        for name in ("best", "worst")
        for member in range(members)
    ]
    return pd.concat(parts)


def test_a_forecast_beside_what_was_and_what_came():
    figure = plots.forecast(windows(), unit="kW", history=2)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["best", "worst"]
    for axis in figure.axes:
        assert axis.get_ylabel() == "kW"
        before, after, forecast, _ = axis.lines
        assert before.get_xdata().tolist() == [-1, 0], "two steps of history"
        assert after.get_xdata().tolist() == [0, 1, 2]
        assert after.get_ydata().tolist() == [0, 1, 2]
        assert forecast.get_xdata().tolist() == [1, 2]
        assert forecast.get_ydata().tolist() == [1, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "what the model reads",
        "what came",
        "forecast",
    ]


def test_several_forecasts_are_a_fan():
    figure = plots.forecast(windows(members=5))
    axis = figure.axes[0]
    assert labels(axis) == [
        "what the model reads",
        "what came",
        "middle 90 %",
        "middle 50 %",
        "median of 5 forecasts",
    ]
    median = next(line for line in axis.lines if line.get_label() == "median of 5 forecasts")
    assert median.get_ydata().tolist() == [3, 4]
    wide, narrow = (np.unique(part.get_paths()[0].vertices[:, 1]) for part in axis.collections)
    assert (wide.min(), wide.max()) == pytest.approx((1.2, 5.8))  # 5 % and 95 % of 1…5 and of 2…6
    assert (narrow.min(), narrow.max()) == pytest.approx((2, 5))


def test_a_forecast_without_truth_or_without_forecast():
    unknown = windows().assign(truth=lambda table: table["truth"].where(table["step"] <= 0))
    assert "what came" not in labels(plots.forecast(unknown).axes[0])
    with pytest.raises(DataError, match="no forecast at a step above 0"):
        plots.forecast(windows().assign(forecast=np.nan))


def uniform(layers: int = 2, heads: int = 3, count: int = 4) -> np.ndarray:
    rows = np.tril(np.ones((count, count))) / np.arange(1, count + 1)[:, None]
    return np.broadcast_to(rows, (layers, heads, count, count)).copy()


def test_attention_by_patch_of_uniform_attention_is_its_own_reference():
    weights = uniform()
    figure = plots.attention_by_patch(weights)
    left, right = figure.axes[:2]
    np.testing.assert_allclose(left.images[0].get_array().filled(0), weights[0, 0])
    *layers, alike = right.lines
    expected = [np.mean(1 / np.arange(patch + 1, 5)) for patch in range(4)]
    np.testing.assert_allclose(alike.get_ydata(), expected)
    for line in layers:
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert labels(right) == ["layer 1", "layer 2", "all alike"]


def test_attention_may_come_as_a_table():
    weights = uniform()
    weights[0, :, 3] = [0.7, 0.1, 0.1, 0.1]
    index = np.stack(np.meshgrid(*map(np.arange, weights.shape), indexing="ij"), axis=-1).reshape(-1, 4)
    table = pd.DataFrame(index, columns=["layer", "head", "query", "key"]).assign(weight=weights.ravel())
    shuffled = plots.attention_by_patch(table.sample(frac=1, random_state=0))
    for one, other in zip(
        plots.attention_by_patch(weights).axes[1].lines, shuffled.axes[1].lines, strict=True
    ):
        np.testing.assert_array_equal(one.get_ydata(), other.get_ydata())


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (np.zeros((2, 3, 4)), "has the shape"),
        (uniform() * 0.9, "adds up to 1 only within 0.1"),
        (uniform() * np.nan, "nan"),
    ],
)
def test_what_is_no_attention_is_refused(weights, said):
    with pytest.raises(DataError, match=said):
        plots.attention_by_patch(weights)


def test_training_curves_mark_the_best_epoch():
    epochs = pd.DataFrame(
        {"epoch": [1, 2, 3], "train_loss": [3.0, 2.0, 1.0], "validation_mse": [0.5, 0.3, 0.4]}
    )
    steps = pd.DataFrame({"epoch": [0.5, 1.0], "loss": [4.0, 3.0]})
    left, right = plots_run.training_curves(epochs, "mse", steps).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[4, 3], [3, 2, 1]]
    assert (left.get_title(), right.get_title()) == ("training loss", "validation MSE")
    curve, best = right.lines
    assert curve.get_ydata().tolist() == [0.5, 0.3, 0.4]
    assert (best.get_xdata(), best.get_ydata()) == ([2], [0.3])
    assert labels(right) == ["best: epoch 2"]


def test_errors_by_step_and_by_channel():
    errors = pd.DataFrame({"method": ["m", "m", "n", "n"], "step": [1, 2, 1, 2], "error": [1.0, 2, 3, 4]})
    (axis,) = plots_run.error_by_step(errors, "MSE").axes
    assert [line.get_ydata().tolist() for line in axis.lines] == [[1, 2], [3, 4]]
    assert (labels(axis), axis.get_ylabel(), axis.get_ylim()[0]) == (["m", "n"], "MSE", 0)

    many = pd.DataFrame({"channel": [f"c{index}" for index in range(40)], "error": np.arange(40.0)})
    (axis,) = plots_run.error_by_channel(many, "MSE").axes
    assert [bar.get_width() for bar in axis.patches] == list(range(39, 9, -1))
    assert axis.get_yticklabels()[0].get_text() == "c39"
    assert axis.yaxis_inverted(), "the largest error is on top"
    assert axis.get_xlabel() == "MSE, the worst 30 of 40"


def test_anomaly_scores_keep_every_peak_however_long_the_line():
    score = np.full(50_000, 0.5)
    score[33_333] = 7.0
    label = np.zeros(50_000, bool)
    label[33_330:33_340] = True
    table = pd.DataFrame({"stretch": "all", "step": np.arange(50_000), "score": score, "label": label})
    figure = plots_tasks.anomaly_scores(pd.concat([table, table[33_300:33_400].assign(stretch="peak")]), 2.0)
    for axis, points in zip(figure.axes, (2000, 100), strict=True):
        line, threshold = axis.lines
        assert len(line.get_ydata()) == points
        assert line.get_ydata().max() == 7
        assert threshold.get_ydata() == [2, 2]
        assert axis.get_yscale() == "log"
        shaded = axis.collections[0].get_paths()[0].vertices[:, 0]
        assert (shaded.min(), shaded.max()) == (33_329.5, 33_339.5)


def test_confusion_is_true_class_by_row():
    cases = pd.DataFrame(
        {"true": ["a", "a", "b", "b"], "predicted": ["a", "b", "a", "b"], "count": [5, 1, 0, 4]}
    )
    axis = plots_tasks.confusion(cases).axes[0]
    np.testing.assert_array_equal(axis.images[0].get_array(), [[5, 1], [0, 4]])
    assert [text.get_text() for text in axis.texts] == ["5", "1", "0", "4"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("taken for", "is")
    with pytest.raises(DataError, match="lacks a pair"):
        plots_tasks.confusion(cases.iloc[:3])


def test_filled_in_points_stand_beside_the_hidden_ones():
    table = pd.DataFrame(
        {"window": "w", "step": [0, 1, 2], "truth": [1.0, 2.0, 3.0], "filled": [np.nan, 2.5, np.nan]}
    )
    read, hidden, filled = plots_tasks.filled_in(table).axes[0].lines
    np.testing.assert_array_equal(read.get_ydata(), [1, np.nan, 3])
    assert (hidden.get_xdata().tolist(), hidden.get_ydata().tolist()) == ([1], [2])
    assert filled.get_ydata().tolist() == [2.5]


DRAWN = {
    "slopes": (
        lambda table: plots.slopes(table, pd.DataFrame(columns=SLOPES), "q"),
        "module rank scaling init optimizer steps quantity value",
    ),
    "gradient_norms": (plots.gradient_norms, "step module rank gradient_norm"),
    "update_ratios": (plots.update_ratios, "step module rank update_ratio"),
    "accuracy_by_rank": (lambda table: plots.accuracy_by_rank(table, "mse"), "rank test_mse"),
    "accuracy_by_bytes": (lambda table: plots.accuracy_by_bytes(table, "mse"), "bytes test_mse"),
    "forecast": (plots.forecast, "step truth forecast"),
    "attention_by_patch": (plots.attention_by_patch, "layer head query key weight"),
    "training_curves": (
        lambda table: plots_run.training_curves(table, "mse"),
        "epoch train_loss validation_mse",
    ),
    "error_by_step": (lambda table: plots_run.error_by_step(table, "MSE"), "method step error"),
    "error_by_channel": (lambda table: plots_run.error_by_channel(table, "MSE"), "channel error"),
    "anomaly_scores": (lambda table: plots_tasks.anomaly_scores(table, 1.0), "stretch step score label"),
    "confusion": (plots_tasks.confusion, "true predicted count"),
    "filled_in": (plots_tasks.filled_in, "window step truth filled"),
}
TEXT = {
    "module",
    "scaling",
    "init",
    "optimizer",
    "quantity",
    "method",
    "channel",
    "stretch",
    "true",
    "predicted",
    "window",
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_missing_column_no_row_and_no_numbers_are_one_clear_error_each(name):
    draw, columns = DRAWN[name]
    whole = pd.DataFrame({column: ["q"] if column in TEXT else [1.0] for column in columns.split()})
    for column in whole:
        with pytest.raises(DataError, match=r"has no column `(test_)?\w+`. It has `?\w+|has no column `mse`"):
            draw(whole.drop(columns=column))
    with pytest.raises(DataError, match="has no rows"):
        draw(whole.iloc[:0])
    last = whole.columns[-1] if name != "anomaly_scores" else "score"
    with pytest.raises(DataError, match=f"column `{last}` .* something else than numbers"):
        draw(whole.assign(**{last: ["words"]}))


def test_controls_without_the_metric_are_refused(cells):
    with pytest.raises(DataError, match="table of controls has no column `mse`"):
        plots.accuracy_by_rank(cells, "mse", pd.DataFrame({"method": ["NLinear"], "mae": [1.0]}))


@pytest.mark.parametrize(
    "name", ["a $ b", "$x_1$ and $y$", "$\\frac{$", "日本語", "tab\tand \x00 nothing", "x" * 300, "<b>&amp;"]
)
def test_names_from_outside_are_drawn_as_they_are(name):
    """No name breaks a figure or its SVG: neither what matplotlib takes for mathematics nor what XML cannot hold."""
    table = pd.DataFrame({"channel": [name, "other"], "error": [1.0, 2.0]})
    svg = plots_style.as_svg(plots_run.error_by_channel(table, "MSE"))
    ElementTree.fromstring(svg)
    figure = plots.forecast(windows().assign(window=name), unit=name)
    ElementTree.fromstring(plots_style.as_svg(figure))
    events = pd.DataFrame({"step": [1, 2], "module": name, "rank": 4, "gradient_norm": [1.0, 2.0]})
    assert plots_style.as_png(plots.gradient_norms(events), dpi=20).startswith(b"\x89PNG")


def test_the_same_figure_gives_the_same_svg(cells):
    first, second = (plots_style.as_svg(plots.accuracy_by_rank(cells, "mse", CONTROLS)) for _ in range(2))
    assert first == second
    assert "http://www.w3.org" in first


def test_places_are_spread_out_within_one():
    assert plots_style.spread_out([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    np.testing.assert_allclose(plots_style.spread_out([0.5, 0.5, 0.55], 0.1), [0.5, 0.6, 0.7])
    np.testing.assert_allclose(plots_style.spread_out([0.97, 1.0], 0.1), [0.9, 1.0])


def test_no_figure_joins_pyplots_state(cells):
    assert isinstance(plots.accuracy_by_rank(cells, "mse"), Figure)
    assert "matplotlib.pyplot" not in sys.modules

"""Figures: what is drawn is what was in the tables; bad tables give one clear error."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure

from ofa_jax.errors import DataError
from ofa_jax.plots import run, studies, style, tasks

RANKS = (2, 8, 32)
KEYS = [*studies.KEYS, "quantity"]


@pytest.fixture
def study() -> pd.DataFrame:
    """An exact power law of the rank for each scaling, three seeds that differ by constant factors."""
    rows = [
        (module, "sgd", 1, scaling, "theorem", "change", rank, height * rank**slope * factor)
        for module, height in (("out_layer", 3.0), ("gpt2/wpe", 5.0))
        for scaling, slope in (("rslora", 0), ("lora", -1))
        for rank in RANKS
        for factor in (0.5, 1, 2)
    ]
    return pd.DataFrame(rows, columns=[*KEYS, "rank", "value"])


@pytest.fixture
def fits() -> pd.DataFrame:
    rows = [
        (module, "sgd", 1, scaling, "theorem", "change", slope, slope - 0.25, slope + 0.25, predicted)
        for module in ("out_layer", "gpt2/wpe")
        for scaling, slope, predicted in (("rslora", 0.0, 0.0), ("lora", -1.0, np.nan))
    ]
    return pd.DataFrame(rows, columns=[*KEYS, "slope", "low", "high", "predicted"])


def labels(axis) -> list[str]:
    return axis.get_legend_handles_labels()[1]


def titles(figure: Figure) -> list[str]:
    return [axis.get_title(loc="left") for axis in figure.axes if axis.get_visible()]


def legend(figure: Figure) -> list[str]:
    return [entry.get_text() for entry in figure.legends[0].get_texts()]


def test_slopes_show_points_fit_interval_and_prediction(study, fits):
    figure = studies.slopes(study, fits, "change")
    assert titles(figure) == ["out_layer, 1 step of SGD", "gpt2/wpe, 1 step of SGD"]
    for axis, middle in zip(figure.axes, (3.0, 5.0), strict=True):
        height = middle * np.sqrt(1.75)  # the root mean square of half, one and double
        assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("rank", "change")
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
        styles = [line.get_linestyle() for line in lines]
        assert styles == ["-", ":", "-"], "fit and theory of the first, fit of the second"
        for line, slope in zip(lines, (0, 0, -1), strict=True):
            x, y = line.get_xdata(), line.get_ydata()
            np.testing.assert_allclose(np.diff(np.log(y)) / np.diff(np.log(x)), slope, atol=1e-9)
            at_8 = np.exp(np.interp(np.log(8), np.log(x), np.log(y)))
            np.testing.assert_allclose(at_8, height * 8.0**slope)
        edge = axis.collections[1].get_paths()[0].vertices  # after the bars of the first group comes its band
        at_end = edge[np.isclose(edge[:, 0], 32)][:, 1]
        np.testing.assert_allclose([at_end.min(), at_end.max()], height * 4.0 ** np.array([-0.25, 0.25]))


def test_slopes_of_arithmetic_means(study, fits):
    axis = studies.slopes(study, fits, "change", power=1).axes[0]
    np.testing.assert_allclose(axis.containers[0].lines[0].get_ydata(), 3 * 3.5 / 3)


def test_slopes_differ_by_more_than_color(study, fits):
    points = [bar.lines[0] for bar in studies.slopes(study, fits, "change").axes[0].containers]
    assert len({(line.get_marker(), str(line.get_markerfacecolor()) == "white") for line in points}) == 2


def test_slopes_count_the_values_that_a_logarithm_cannot_show(study, fits):
    study.loc[study.index[:2], "value"] = [0.0, -1.0]
    axis = studies.slopes(study, fits, "change").axes[0]
    assert [text.get_text() for text in axis.texts] == ["2 values not positive, not drawn"]
    assert axis.containers[0].lines[0].get_ydata()[0] == pytest.approx(3.0 * 2)  # the remaining seed
    study["value"] = -1.0
    with pytest.raises(DataError, match="no positive value of 'change'"):
        studies.slopes(study, fits, "change")


def test_slopes_have_a_row_of_panels_per_optimizer_and_steps(study, fits):
    more = pd.concat([study, study.assign(optimizer="adam", steps=10)])
    figure = studies.slopes(more, fits.iloc[:0], "change")
    assert titles(figure)[2:] == ["out_layer, 10 steps of Adam", "gpt2/wpe, 10 steps of Adam"]
    assert labels(figure.axes[2]) == ["rslora, theorem", "lora, theorem"], "without a fit there is no slope"


def test_an_unknown_quantity_is_refused_by_name(study, fits):
    with pytest.raises(DataError, match=r"no positive value of 'norm' .* The study has change"):
        studies.slopes(study, fits, "norm")


@pytest.mark.parametrize("column", ["gradient_norm", "update_ratio"])
def test_gradients_have_a_panel_per_module_and_a_line_per_rank(column):
    rows = [(step, name, rank, step * rank) for name in "abc" for rank in RANKS for step in (10, 20, 30)]
    events = pd.DataFrame(rows, columns=["step", "module", "rank", column])
    figure = studies.gradient_norms(events, column)
    assert titles(figure) == ["a", "b", "c"]
    assert legend(figure) == ["rank 2", "rank 8", "rank 32"]
    for axis in figure.axes[:3]:
        assert axis.get_yscale() == "log"
        for line, rank in zip(axis.lines, RANKS, strict=True):
            assert line.get_xdata().tolist() == [10, 20, 30]
            assert line.get_ydata().tolist() == [10 * rank, 20 * rank, 30 * rank]
        assert len({(line.get_linestyle(), line.get_marker()) for line in axis.lines}) == 3
    one = studies.gradient_norms(events[events["rank"] == 8], column)
    assert not one.legends, "one rank needs no legend"
    events[column] = events[column].astype(float).where(events.index > 0, 0.0)
    line = studies.gradient_norms(events, column).axes[0].lines[0]
    assert np.isnan(line.get_ydata()[0]), "a logarithm has no place for 0"


def test_gradients_of_zero_are_drawn_on_a_linear_axis():
    events = pd.DataFrame({"step": [1, 2], "module": "a", "rank": 4, "gradient_norm": 0.0})
    assert studies.gradient_norms(events).axes[0].get_yscale() == "linear"


@pytest.fixture
def cells() -> pd.DataFrame:
    rows = [
        (rank, scaling, "theorem", 16.0, 400 * rank, 0.4 + 0.1 / rank + 0.01 * seed)
        for scaling in ("rslora", "lora")
        for rank in RANKS
        for seed in (-1, 0, 1)
    ]
    return pd.DataFrame(rows, columns=["rank", "scaling", "init", "alpha", "bytes", "test_mse"])


BASELINES = pd.DataFrame(
    {"method": ["NLinear", "DLinear", "costs $5 or $6", "far"], "mse": [0.41, 0.412, 0.43, 9.0]}
)


@pytest.mark.parametrize("metric", ["mse", "test_mse"])
@pytest.mark.parametrize(("draw", "size"), [(studies.accuracy_by_rank, 1), (studies.accuracy_by_bytes, 400)])
def test_accuracy_has_mean_spread_seeds_and_baselines(cells, draw, size, metric):
    (axis,) = draw(cells, metric, BASELINES).axes
    assert axis.get_xscale() == "log"
    assert axis.get_ylabel() == "test MSE, mean ± standard deviation of 3 seeds"
    assert labels(axis) == ["rslora", "lora"], "only what differs among the cells names a line"
    for bars in axis.containers:
        np.testing.assert_allclose(np.asarray(bars.lines[0].get_xdata(), float), size * np.array(RANKS))
        np.testing.assert_allclose(np.asarray(bars.lines[0].get_ydata(), float), 0.4 + 0.1 / np.array(RANKS))
        ends = np.array(bars.lines[2][0].get_segments())[:, :, 1]
        np.testing.assert_allclose(np.diff(ends, axis=1)[:, 0], 0.02)
    flat = [line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1]]
    assert flat == [0.41, 0.412, 0.43], "a line for each baseline in reach"
    low, high = axis.get_ylim()
    assert low < 0.39
    assert 0.46 < high < 0.6, "the baseline far beyond does not press the others together"
    names = [text.get_text() for text in axis.texts]
    assert names == ["NLinear 0.41", "DLinear 0.412", "costs $5 or $6 0.43", "↑ far 9"]
    heights = [text.get_position()[1] for text in axis.texts]
    assert min(np.diff(heights)) >= 0.055 - 1e-9, "names that would overlap are moved apart"


def test_ranks_are_ticks_and_one_cell_is_enough(cells):
    (axis,) = studies.accuracy_by_rank(cells, "mse").axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["2", "8", "32"]
    (axis,) = studies.accuracy_by_rank(cells.iloc[:1], "mse").axes
    assert axis.get_ylabel() == "test MSE"
    assert axis.get_xlim() == (1, 4)
    style.as_svg(axis.figure)


def test_cells_without_a_setting_have_a_line(cells):
    """A row that lacks an alpha, as cells of another sweep may, is drawn like any other."""
    cells["alpha"] = np.where(cells["scaling"] == "lora", np.nan, cells["rank"] % 2 + cells["rank"])
    (axis,) = studies.accuracy_by_rank(cells, "mse").axes
    assert len(axis.containers) == 1 + len(RANKS)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.5, 1, None], ["0.5000", "1.0000", "—"]),
        ([14.538, 9.16, float("nan")], ["14.538", "9.160", "—"]),
        ([123_456.0, 0, -2], ["123,456.0", "0.0", "-2.0"]),
        ([4.25, 0.00123], ["4.2500", "0.0012"]),
        ([1.0, 1e-9], ["1.000e+00", "1.000e-09"]),
        ([], []),
    ],
)
def test_numbers_of_a_column_have_equal_decimals(values, shown):
    assert style.aligned(values) == shown


def test_bytes_have_units(cells):
    (axis,) = studies.accuracy_by_bytes(cells, "mse").axes
    ticks = [axis.xaxis.get_major_formatter()(value, 0) for value in (100, 1e4, 2.2e6, 3e9)]
    assert ticks == ["100 B", "10 kB", "2.2 MB", "3 GB"]
    assert [style.bytes_text(value) for value in (100, 61_952)] == ["100 B", "62.0 kB"]


def windows() -> pd.DataFrame:
    time = np.arange(-3, 3)
    rows = {"time": time, "actual": time * 1.0, "forecast": np.where(time > 0, time + 1.0, np.nan)}
    return pd.concat([pd.DataFrame({"panel": name, **rows}) for name in ("best", "worst")])


def test_a_forecast_continues_its_history():
    figure = run.forecast(windows(), history=2, title="Two windows", note="generated")
    assert titles(figure) == ["best", "worst"]
    assert figure.get_suptitle() == "Two windows"
    for axis in figure.axes:
        history, actual, forecast, _ = axis.lines
        assert history.get_xdata().tolist() == [-1, 0], "two steps of history"
        assert actual.get_xdata().tolist() == [0, 1, 2]
        assert actual.get_ydata().tolist() == [0, 1, 2]
        assert forecast.get_xdata().tolist() == [0, 1, 2], "the line starts at the last observed value"
        assert forecast.get_ydata().tolist() == [0, 2, 3]
    assert legend(figure) == ["history", "actual", "forecast"]
    assert figure.axes[-1].get_xlabel() == "steps after the last observed one\ngenerated"


def test_a_forecast_over_timestamps():
    table = windows().assign(time=lambda own: pd.Timestamp("2024-01-01") + pd.to_timedelta(own["time"], "h"))
    axis = run.forecast(table).axes[-1]
    assert axis.lines[2].get_xdata().tolist() == table["time"].iloc[3:6].tolist()
    assert axis.get_xlabel() == "time"


def test_a_forecast_without_actual_values_or_without_a_forecast():
    unknown = windows().assign(actual=lambda table: table["actual"].where(table["time"] <= 0))
    assert "actual" not in labels(run.forecast(unknown).axes[0])
    with pytest.raises(DataError, match="a panel has no forecast"):
        run.forecast(windows().assign(forecast=np.nan))


def test_at_most_six_panels():
    one = windows().query("panel == 'best'")
    figure = run.forecast(pd.concat([one.assign(panel=name) for name in "abcdefgh"]), title="Many")
    assert titles(figure) == list("abcdef")
    assert figure.get_suptitle() == "Many (first 6 of 8 series)"


def test_attention_by_patch_of_uniform_attention_is_its_own_reference():
    rows = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    figure = run.attention_by_patch(np.broadcast_to(rows, (2, 3, 4, 4)))
    left, right = figure.axes[:2]
    np.testing.assert_allclose(left.images[0].get_array().filled(0), rows)
    *layers, uniform = right.lines
    expected = [np.mean(1 / np.arange(patch + 1, 5)) for patch in range(4)]
    np.testing.assert_allclose(uniform.get_ydata(), expected)
    for line in layers:
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert labels(right) == ["layer 1", "layer 2", "uniform"]


def test_training_curves_mark_the_best_epoch():
    epochs = pd.DataFrame(
        {"epoch": [1, 2, 3], "train_loss": [3.0, 2.0, 1.0], "validation_mse": [0.5, 0.3, 0.4]}
    )
    steps = pd.DataFrame({"epoch": [0.5, 1.0], "loss": [4.0, 3.0]})
    figure = run.training_curves(epochs, "mse", steps)
    left, right = figure.axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[4, 3], [3, 2, 1]]
    assert titles(figure) == ["training loss", "validation MSE"]
    curve, best = right.lines
    assert curve.get_ydata().tolist() == [0.5, 0.3, 0.4]
    assert (best.get_xdata(), best.get_ydata()) == ([2], [0.3])
    assert labels(right) == ["best: epoch 2"]


def test_errors_by_step_and_by_channel():
    errors = pd.DataFrame({"m": [1.0, 2], "n": [3.0, 4]}, index=[1, 2])
    (axis,) = run.error_by_step(errors, "MSE").axes
    assert [line.get_ydata().tolist() for line in axis.lines] == [[1, 2], [3, 4]]
    assert (labels(axis), axis.get_ylabel(), axis.get_ylim()[0]) == (["m", "n"], "MSE", 0)

    many = pd.Series(np.arange(40.0), index=[f"c{index}" for index in range(40)])
    (axis,) = run.error_by_channel(many, "MSE").axes
    assert [bar.get_width() for bar in axis.patches] == list(range(39, 9, -1))
    assert axis.get_yticklabels()[0].get_text() == "c39"
    assert axis.yaxis_inverted(), "the largest error is on top"
    assert axis.get_xlabel() == "MSE, worst 30 of 40"


def test_anomaly_scores_keep_every_peak_however_long_the_line():
    score = np.full(50_000, 0.5)
    score[33_333] = 7.0
    label = np.zeros(50_000, bool)
    label[33_330:33_340] = True
    table = pd.DataFrame({"step": np.arange(50_000), "score": score, "label": label, "panel": "all"})
    figure = tasks.anomaly_scores(pd.concat([table, table[33_300:33_400].assign(panel="peak")]), 2.0)
    assert titles(figure) == ["all", "peak"]
    for axis, points in zip(figure.axes, (2000, 100), strict=True):
        line, threshold = axis.lines
        assert len(line.get_ydata()) == points
        assert line.get_ydata().max() == 7
        assert threshold.get_ydata() == [2, 2]
        assert axis.get_yscale() == "log"
        shaded = axis.collections[0].get_paths()[0].vertices[:, 0]
        assert (shaded.min(), shaded.max()) == (33_329.5, 33_339.5)


def test_a_legend_has_no_entry_for_what_nobody_sees():
    table = pd.DataFrame({"step": np.arange(4), "score": [1.0, 1, 1, 1]})
    assert legend(tasks.anomaly_scores(table, 2.0)) == ["score", "threshold 2"]
    unlabeled = table.assign(label=False)
    assert legend(tasks.anomaly_scores(unlabeled, 2.0)) == ["score", "threshold 2"]


def test_anomalies_are_flagged_in_the_series():
    step = np.arange(5000)
    values = np.sin(step / 50)
    values[3000] = 9
    table = pd.DataFrame({"step": step, "score": np.where(step == 3000, 5.0, 1)})
    series = pd.DataFrame({"pump": values, "fan": -values})
    figure = tasks.anomaly_scores(table, 2.0, series, title="a file", label="original units")
    assert titles(figure) == ["pump", "fan", "score"]
    for axis, name in zip(figure.axes, series, strict=False):
        drawn, flagged = axis.lines
        assert (flagged.get_xdata().tolist(), flagged.get_ydata().tolist()) == ([3000], [series[name][3000]])
        own = drawn.get_ydata()
        assert (own.min(), own.max()) == (series[name].min(), series[name].max()), "no peak is lost"
        assert axis.get_ylabel() == "original units"
    assert legend(figure) == ["series", "above the threshold", "score", "threshold 2"]


def test_no_axis_has_a_single_tick():
    one = pd.DataFrame({"epoch": [1], "train_loss": [1.0], "validation_mse": [0.5]})
    weights = np.tril(np.ones((1, 1, 2, 2))) / [[1], [2]]
    near = pd.DataFrame({"step": [1, 2], "score": [1.02, 1.07]})
    figures = (
        run.training_curves(one, "mse"),
        run.error_by_step(pd.DataFrame({"m": [0.5]}, index=[1]), "MSE"),
        run.attention_by_patch(weights),
        tasks.anomaly_scores(near, 1.05),
    )
    for figure in figures:
        style.as_svg(figure)
        for axis in figure.axes:
            if axis.get_label() == "<colorbar>":
                assert len(axis.get_yticks()) > 1
                continue
            for along, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
                shown = [
                    tick for tick in along.get_majorticklocs() if min(low, high) <= tick <= max(low, high)
                ]
                assert len(shown) != 1, (axis.get_title(), along.axis_name)


def test_figures_of_a_run_have_one_width(study):
    table = pd.DataFrame({"step": [1, 2], "score": [1.0, 3]})
    counts = pd.DataFrame([[5, 1], [0, 4]], index=["a", "b"], columns=["a", "b"])
    errors = pd.DataFrame({"m": [1.0, 2]}, index=[1, 2])
    drawn = (
        tasks.anomaly_scores(table, 2.0),
        tasks.anomaly_scores(table, 2.0, table[["score"]]),
        tasks.confusion(counts),
        run.forecast(windows()),
        run.error_by_step(errors, "MSE"),
        run.error_by_channel(errors["m"], "MSE"),
    )
    assert {figure.get_figwidth() for figure in drawn} == {style.WIDTH}


def test_windows_at_other_times_have_their_own_axes():
    table = windows()
    first, second = run.forecast(table).axes
    assert first.get_shared_x_axes().joined(first, second)
    later = table.assign(time=table["time"] + np.where(table["panel"] == "worst", 100, 0))
    first, second = run.forecast(later).axes
    assert first.get_xlim()[1] < second.get_xlim()[0]


def test_a_forecast_is_joined_to_the_last_value_that_was_observed():
    table = windows().query("panel == 'best'").reset_index(drop=True)
    table.loc[table["time"] == 0, "actual"] = np.nan
    line = run.forecast(table).axes[0].lines[2]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([-1, 1, 2], [-1, 2, 3])


def test_anomaly_scores_of_a_new_file_mark_the_steps_above_the_threshold():
    time = pd.date_range("2024-01-01", periods=4, freq="h")
    figure = tasks.anomaly_scores(pd.DataFrame({"date": time, "score": [1.0, 3, 1, 4]}), 2.0)
    (axis,) = figure.axes
    line, above, _ = axis.lines
    assert line.get_ydata().tolist() == [1, 3, 1, 4]
    assert above.get_ydata().tolist() == [3, 4]
    assert pd.DatetimeIndex(above.get_xdata()).tolist() == [time[1], time[3]]
    assert legend(figure) == ["score", "above the threshold", "threshold 2"]


def test_confusion_has_a_row_per_true_class():
    counts = pd.DataFrame([[5, 1], [0, 4]], index=["a", "b"], columns=["a", "b"])
    axis = tasks.confusion(counts).axes[0]
    np.testing.assert_array_equal(axis.images[0].get_array(), counts)
    assert [text.get_text() for text in axis.texts] == ["5", "1", "0", "4"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted class", "true class")


def test_class_probabilities_have_a_row_per_case():
    table = pd.DataFrame({"case": [7, 8], "predicted": ["no", "yes"], "yes": [0.25, 0.9], "no": [0.75, 0.1]})
    axis = tasks.class_probabilities(table).axes[0]
    np.testing.assert_array_equal(axis.images[0].get_array(), [[0.25, 0.75], [0.9, 0.1]])
    assert [text.get_text() for text in axis.texts] == ["0.25", "0.75", "0.90", "0.10"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["yes", "no"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["7", "8"]
    many = pd.DataFrame({"case": range(50), "yes": 0.5, "no": 0.5})
    axis = tasks.class_probabilities(many).axes[0]
    assert (len(axis.images[0].get_array()), axis.get_ylabel()) == (40, "case (first 40 of 50)")
    with pytest.raises(DataError, match="no probabilities"):
        tasks.class_probabilities(table[["case", "predicted"]])


def test_imputed_and_hidden_points():
    table = pd.DataFrame({"time": [0, 1, 2], "actual": [1.0, 2.0, 3.0], "filled": [np.nan, 2.5, np.nan]})
    observed, hidden, imputed = tasks.filled_in(table).axes[0].lines
    np.testing.assert_array_equal(observed.get_ydata(), [1, np.nan, 3])
    assert (hidden.get_xdata().tolist(), hidden.get_ydata().tolist()) == ([1], [2])
    assert imputed.get_ydata().tolist() == [2.5]


def test_a_filled_table_shows_the_series_that_had_gaps():
    before = pd.DataFrame({"step": [0, 1, 2], "full": [1.0, 2, 3], "time": [4.0, np.nan, 6]})
    figure = tasks.filled_table(before, before.fillna(5.5))
    assert titles(figure) == ["time"]
    observed, imputed = figure.axes[0].lines
    np.testing.assert_array_equal(observed.get_ydata(), [4, np.nan, 6])
    assert (imputed.get_xdata().tolist(), imputed.get_ydata().tolist()) == ([1], [5.5])
    wide = pd.DataFrame({"step": [0, 1]} | {name: [1.0, np.nan] for name in "abcdefgh"})
    assert titles(tasks.filled_table(wide, wide.fillna(2.0))) == list("abcdef")
    with pytest.raises(DataError, match="no value is missing"):
        tasks.filled_table(before[["step", "full"]], before[["step", "full"]])


CHECKED = {
    "gradient_norms": (studies.gradient_norms, "module", "step rank gradient_norm"),
    "accuracy_by_rank": (lambda table: studies.accuracy_by_rank(table, "test_mse"), "", "rank test_mse"),
    "forecast": (run.forecast, "time", "actual forecast"),
    "training_curves": (
        lambda table: run.training_curves(table, "mse"),
        "",
        "epoch train_loss validation_mse",
    ),
    "anomaly_scores": (lambda table: tasks.anomaly_scores(table, 1.0), "step", "score"),
    "filled_in": (tasks.filled_in, "time", "actual filled"),
}


@pytest.mark.parametrize("name", CHECKED)
def test_a_missing_column_no_row_and_no_numbers_are_one_clear_error_each(name):
    draw, names, numbers = CHECKED[name]
    table = pd.DataFrame({**dict.fromkeys(names.split(), "q"), **dict.fromkeys(numbers.split(), 1.0)}, [0])
    for column in numbers.split():
        with pytest.raises(DataError, match=rf"the table has no column `{column}`"):
            draw(table.drop(columns=column))
        with pytest.raises(DataError, match=f"the column `{column}` is not numeric"):
            draw(table.assign(**{column: ["words"]}))
    with pytest.raises(DataError, match="has no rows"):
        draw(table.iloc[:0])


def test_baselines_without_the_metric_are_refused(cells):
    with pytest.raises(DataError, match=r"the table has no column `mse`\. It has `method`, `mae`"):
        studies.accuracy_by_rank(cells, "mse", pd.DataFrame({"method": ["NLinear"], "mae": [1.0]}))


@pytest.mark.parametrize(
    "name",
    [
        "a $ b",
        "$x_1$ and $y$",
        "$\\frac{$",
        "cost $a_{$",
        "日本語",
        "tab\tand \x00 nothing",
        "x" * 300,
        "<b>&amp;",
    ],
)
def test_names_from_outside_are_drawn_as_they_are(name):
    """No name breaks a figure or its SVG: neither mathematics to matplotlib nor control characters."""
    errors = pd.Series([1.0, 2.0], index=[name, "other"])
    ElementTree.fromstring(style.as_svg(run.error_by_channel(errors, "MSE")))
    ElementTree.fromstring(style.as_svg(run.forecast(windows().assign(panel=name), note=name)))
    events = pd.DataFrame({"step": [1, 2], "module": name, "rank": 4, "gradient_norm": [1.0, 2.0]})
    assert style.as_png(studies.gradient_norms(events), dpi=20).startswith(b"\x89PNG")


def test_the_same_figure_gives_the_same_svg_whatever_the_settings_of_matplotlib(cells):
    first = style.as_svg(studies.accuracy_by_rank(cells, "mse", BASELINES))
    before = rcParams["axes.labelsize"]
    rcParams["axes.labelsize"] = 30
    try:
        assert style.as_svg(studies.accuracy_by_rank(cells, "mse", BASELINES)) == first
        assert rcParams["axes.labelsize"] == 30, "the caller's settings are restored"
    finally:
        rcParams["axes.labelsize"] = before
    assert "http://www.w3.org" in first


@pytest.mark.parametrize(("name", "magic"), [("f.png", b"\x89PNG"), ("f.svg", b"<?xml"), ("f.PDF", b"%PDF")])
def test_figures_are_written_in_the_format_of_the_extension(tmp_path, name, magic):
    style.save_figure(run.forecast(windows()), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["f.docx", "f"])
def test_an_unknown_extension_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"Use \.png, \.svg or \.pdf"):
        style.save_figure(Figure(), tmp_path / name)


def test_places_are_spread_out_within_one():
    assert studies.spread_out([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    np.testing.assert_allclose(studies.spread_out([0.5, 0.5, 0.55], 0.1), [0.5, 0.6, 0.7])
    np.testing.assert_allclose(studies.spread_out([0.97, 1.0], 0.1), [0.9, 1.0])


def test_no_figure_joins_pyplots_state(cells):
    assert isinstance(studies.accuracy_by_rank(cells, "mse"), Figure)
    assert "matplotlib.pyplot" not in sys.modules


def test_the_axis_of_time_says_what_it_counts():
    values = {"actual": [1.0, 2.0, np.nan], "forecast": [np.nan, np.nan, 3.0]}
    times = pd.date_range("2024-01-01", periods=3, freq="h")
    for time, label in (
        (times, "time"),
        (times.tz_localize("Europe/Berlin"), "time (Europe/Berlin)"),
        (range(-1, 2), "steps after the last observed one"),
    ):
        figure = run.forecast(pd.DataFrame({"time": time, **values}), note="x")
        assert figure.axes[-1].get_xlabel() == f"{label}\nx"

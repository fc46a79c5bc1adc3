"""What a report shows of the test part, by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from ofa_jax.model.quantiles import Quantiles
from ofa_jax.plots import tasks as plots
from ofa_jax.plots.run import forecast as forecast_figure
from ofa_jax.plots.style import aligned
from ofa_jax.report.forecasts import (
    Evaluation,
    Results,
    channel_parts,
    forecast_results,
    ratio,
    rule,
    window_times,
)
from ofa_jax.report.parts import Section, Table, best_median_worst, number, picture
from ofa_jax.tasks.base import Sums
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.table import WindowTable

AROUND = 100
"""Steps before and after an anomaly in a figure."""


def imputation_results(evaluation: Evaluation) -> Results:
    """Imputation: three windows, each with its worst channel; errors by channel."""
    task, scaler = evaluation.task, evaluation.loaded.scaler
    assert scaler is not None

    def outputs(pred_btc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        squared = jnp.sum(jnp.where(batch.y_mask, jnp.square(pred_btc - batch.y), 0), axis=1)
        return {**task.sums(pred_btc, batch), "squared": squared, "hidden": jnp.sum(batch.y_mask, axis=1)}

    found = evaluation.predictor(outputs)(evaluation.table)
    squared, hidden = found["squared"].astype(np.float64), found["hidden"]
    per_window, per_channel = ratio(found["squared_error"], found["count"]), ratio(squared, hidden)
    places, parts = best_median_worst(per_window), {}
    for (name, place), window in zip(places.items(), evaluation.windows(places.values()), strict=True):
        channel = int(np.nanargmax(per_channel[place]))
        window_id = int(evaluation.table.window_id[place])
        title = (
            f"{name}: window {window_id:,}, MSE {number(per_window[place])}, series {scaler.names[channel]}"
        )
        scaled = {"actual": window["y"][:, channel], "filled": window["prediction"][:, channel]}
        table = pd.DataFrame(scaled, dtype=float) * scaler.std[channel] + scaler.mean[channel]
        table["filled"] = table["filled"].where(window["y_mask"][:, channel])
        time = window_times(evaluation, place, len(table))
        parts[title] = table.assign(time=np.arange(len(table)) if time is None else time)
    shown = picture(
        plots.filled_in(pd.concat(parts, names=["panel"]).reset_index("panel"), label="original units"),
        f"Hidden points and their imputed values. {'; '.join(parts)}.",
        f"{'; '.join(parts)}.",
    )
    said = "Of each window, the series with the largest error is drawn, in original units."
    sentences = [rule(evaluation, "MSE of hidden points"), said]
    windows = Section("windows", "Imputed points on test windows", sentences, pictures=[shown])
    errors = pd.Series(ratio(squared.sum(axis=0), hidden.sum(axis=0)), index=scaler.names)
    over = "over all hidden test points, on the standardized scale"
    reason = "Points are hidden at random, so errors by step would say nothing."
    metrics = task.final_metrics(lambda _: found, "test")
    return Results(metrics, windows, _errors_section(errors, over, reason))


def _errors_section(errors: pd.Series, over: str, reason: str) -> Section:
    bars, listed = channel_parts(errors, "MSE", over)
    return Section("errors", "Errors", [reason], pictures=bars, folded=[listed])


def classification_results(evaluation: Evaluation) -> Results:
    """Classification: three cases by cross-entropy; the confusion matrix."""
    task, classes = evaluation.task, pd.Index(map(str, evaluation.data.meta["classes"]))

    def outputs(logits_bk: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {**task.sums(logits_bk, batch), "predicted": jnp.argmax(logits_bk, axis=1)}

    found = evaluation.predictor(outputs)(evaluation.table)
    label, entropy = np.asarray(evaluation.table.label), found["cross_entropy"]
    codes = (label.astype(int), found["predicted"].astype(int))
    true, predicted = (pd.Categorical([classes[index] for index in code], classes) for code in codes)
    places = best_median_worst(entropy)
    losses = entropy[list(places.values())].astype(np.float64)
    rows = []
    for (name, place), *cells in zip(places.items(), aligned(np.exp(-losses)), aligned(losses), strict=True):
        case = f"{name}: case {int(evaluation.table.window_id[place]):,}"
        rows.append((case, str(true[place]), str(predicted[place]), *cells))
    head = ("case", "true class", "predicted class", "probability of the true class", "cross-entropy")
    cases = Table("Best, median and worst case", head, rows, left=3)
    windows = Section("windows", "Three test cases", [rule(evaluation, "cross-entropy")], [cases])

    counts = pd.crosstab(true, predicted, dropna=False)
    right, of_class = np.diag(counts), counts.sum(axis=1)
    shares = aligned(ratio(right, of_class.to_numpy()))
    by_class = [(name, f"{of_class[name]:,}", share) for name, share in zip(classes, shares, strict=True)]
    said = f"{right.sum():,} of {len(label):,} test cases are classified correctly."
    shown = picture(
        plots.confusion(counts),
        f"Confusion matrix of {len(classes)} classes. {said}",
        "Test cases by true and predicted class.",
    )
    table = Table("Accuracy by class", ("class", "test cases", "accuracy"), by_class)
    errors = Section("errors", "Errors", [said], [table], [shown])
    return Results(task.final_metrics(lambda _: found, "test"), windows, errors)


def anomaly_results(evaluation: Evaluation) -> Results:
    """Anomaly detection: scores of the test part and around three anomalies; errors by channel.

    Without labels, an anomaly is a run of steps above the threshold.
    """
    scores, threshold, errors, metrics = anomaly_scores(evaluation)
    labeled = "label" in scores
    marked = scores["label"] if labeled else scores["score"] > threshold
    runs = scores[marked].groupby((marked != marked.shift()).cumsum())
    peaks, steps = runs["score"].max().to_numpy(), runs["step"].agg(["min", "max"]).to_numpy()
    found = peaks > threshold
    rows = [
        (str(index), f"{first:,}", f"{last:,}", peak, *(["yes" if hit else "no"] if labeled else []))
        for index, ((first, last), peak, hit) in enumerate(zip(steps, aligned(peaks), found, strict=True), 1)
    ]
    words = {"best": "highest peak", "median": "median peak", "worst": "lowest peak"}
    pictures = []
    for name, place in best_median_worst(-peaks).items() if len(peaks) else ():
        first, last = steps[place]
        near = scores["step"].between(first - AROUND, last + AROUND)
        around = scores[near]
        title = f"{words[name]}: steps {first:,} to {last:,}, peak {number(peaks[place])}"
        series = _worst_series(evaluation, around, marked[near])
        drawn = plots.anomaly_scores(around, threshold, series, title=title, label="original units")
        named = ", ".join(map(str, series))
        alt = f"Series and scores around an anomaly, with flagged steps. {title}; {named}."
        text = f"{title}. Of all series, {named} is reconstructed worst there."
        pictures.append(picture(drawn, alt, text))
    every, above = "labeled anomalies", f"the threshold of {number(threshold)}"
    said = f"In {found.sum():,} of {len(rows):,} {every} at least one score is above {above}."
    if not labeled:
        every = "runs of steps above the threshold"
        said = f"Steps whose score is above {above}: {marked.sum():,}, in runs: {len(rows):,}."
    shown = picture(
        plots.anomaly_scores(scores, threshold),
        f"Scores of {len(scores):,} test steps with {'labeled anomalies and ' * labeled}threshold. {said}",
        "Score of each step, logarithmic; of many neighboring steps the largest. A step in several windows "
        "has its score in the first.",
    )
    chosen = (
        f"Of all {every}, these have the highest, the median and the lowest peak, the largest score "
        "of their steps; of equal ones the first is taken."
    )
    head = ("anomaly", "first step", "last step", "peak score", *(["detected"] if labeled else []))
    folded = [Table(f"All {every}", head, rows)] if rows else []
    sentences = [chosen, said] if rows else [said]
    title = f"Scores around {'labeled anomalies' if labeled else 'anomalies'}"
    windows = Section("windows", title, sentences, pictures=[shown, *pictures], folded=folded)
    over = "over all test windows, on the standardized scale"
    reason = "Every step of a window is reconstructed, so errors by step would say nothing."
    return Results(metrics, windows, _errors_section(errors, over, reason))


def _worst_series(evaluation: Evaluation, around: pd.DataFrame, marked: pd.Series) -> pd.DataFrame:
    """The series with the largest error at the largest score of marked steps, in original units."""
    scaler, first, data = evaluation.loaded.scaler, evaluation.table.first, evaluation.data
    assert scaler is not None
    rows = around["step"].to_numpy() + int(data.labels["train_borders"][-1])
    peak = rows[int(around["score"].where(marked).argmax())]
    place = int(np.flatnonzero((first <= peak) & (peak < first + evaluation.task.spec.input_length))[0])
    window, at = evaluation.windows([place])[0], int(peak - first[place])
    error = np.where(window["x_mask"][at], np.square(window["prediction"][at] - window["x"][at]), 0)
    channel = int(error.argmax())
    values = data.task.buffer[rows, channel].astype(float) * scaler.std[channel] + scaler.mean[channel]
    if data.task.observed is not None:
        values[~data.task.observed[rows, channel]] = np.nan
    return pd.DataFrame({scaler.names[channel]: values})


def anomaly_scores(evaluation: Evaluation) -> tuple[pd.DataFrame, float, pd.Series, Mapping[str, float]]:
    """A row ``step, score`` and maybe ``label`` per test step, the threshold, MSE by channel, and metrics."""
    task, labels = evaluation.task, evaluation.data.labels

    def outputs(pred_btc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        by_channel = jnp.sum(jnp.where(batch.x_mask, jnp.square(pred_btc - batch.x), 0), axis=1)
        count = jnp.sum(batch.x_mask, axis=1)
        return {**task.sums(pred_btc, batch), "channel_error": by_channel, "channel_count": count}

    predictor, known = evaluation.predictor(outputs), dict[int, Sums]()

    def score(table: WindowTable) -> Sums:  # metrics and threshold read the same tables
        if id(table) not in known:
            known[id(table)] = predictor(table)
        return known[id(table)]

    assert evaluation.data.calibrate is not None
    metrics, threshold = task.final_metrics(score, "test"), evaluation.data.calibrate(score)["threshold"]
    found = score(evaluation.table)
    rows_bt = evaluation.table.first[:, None] + np.arange(task.spec.input_length)
    rows, first = np.unique(rows_bt, return_index=True)  # of windows that overlap, the first counts
    step = rows - int(labels["train_borders"][-1])
    scores = found["step_error"].ravel()[first].astype(np.float64)
    if "seen" in found:
        scores[~found["seen"].ravel()[first]] = np.nan
    table = pd.DataFrame({"step": step, "score": scores})
    if "test_label" in labels:
        table["label"] = labels["test_label"][step].astype(bool)
    total = found["channel_error"].sum(axis=0, dtype=np.float64)
    errors = ratio(total, found["channel_count"].sum(axis=0, dtype=np.float64))
    return table, threshold, pd.Series(errors, index=evaluation.loaded.names), metrics


def pretrain_results(evaluation: Evaluation) -> Results:
    """Pretraining: three held-out windows and the mean forecast; errors by step."""
    task = evaluation.task

    def outputs(forecast: Quantiles, batch: Batch) -> dict[str, jax.Array]:
        squared = jnp.where(batch.y_mask[..., 0], jnp.square(forecast.mean - batch.y[..., 0]), 0)
        shown = {"x": batch.x, "x_mask": batch.x_mask, "y": batch.y, "y_mask": batch.y_mask}
        return {**task.sums(forecast, batch), **shown, "mean": forecast.mean, "squared": squared}

    found = evaluation.predictor(outputs)(evaluation.table)
    per_window = ratio(found["pinball"], found["count"])
    places, parts = best_median_worst(per_window), {}
    for name, place in places.items():
        x, y = (np.where(found[f"{part}_mask"][place], found[part][place], np.nan)[:, 0] for part in "xy")
        time = np.arange(1 - len(x), len(y) + 1)
        ahead = np.concatenate([np.full(len(x), np.nan), found["mean"][place]])
        table = pd.DataFrame({"time": time, "actual": np.concatenate([x, y]), "forecast": ahead})
        parts[
            f"{name}: window {evaluation.table.window_id[place]:,}, pinball {number(per_window[place])}"
        ] = table
    shown = picture(
        forecast_figure(pd.concat(parts, names=["panel"]).reset_index("panel"), label="standard deviations"),
        f"Held-out windows and the mean forecast. {'; '.join(parts)}.",
        f"{'; '.join(parts)}.",
    )
    windows = Section("windows", "Held-out windows", [rule(evaluation, "pinball loss")], pictures=[shown])
    known = found["y_mask"][..., 0]
    by_step = ratio(found["squared"].sum(axis=0), known.sum(axis=0))
    places_shown = np.unique(np.linspace(0, len(by_step) - 1, 8).astype(int))
    rows = list(zip([f"{step + 1}" for step in places_shown], aligned(by_step[places_shown]), strict=True))
    errors = Section(
        "errors", "Errors", [], [Table("Squared error of the mean by step", ("step", "MSE"), rows)]
    )
    return Results(task.final_metrics(lambda _: found, "test"), windows, errors)


RESULTS: Mapping[str, Callable[[Evaluation], Results]] = {
    "forecast": forecast_results,
    "zero_shot": forecast_results,
    "short_term": forecast_results,
    "anomaly": anomaly_results,
    "classification": classification_results,
    "imputation": imputation_results,
    "pretrain": pretrain_results,
}
"""What to evaluate and show, by ``task.name``."""

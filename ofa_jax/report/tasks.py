"""What a report shows of the test part for tasks that do not forecast, as :mod:`~ofa_jax.report.forecasts` does for those that do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from ofa_jax.config.tasks import TaskName
from ofa_jax.plots import tasks as plots_tasks
from ofa_jax.report.forecasts import Scored, channel_parts, forecast_sections, rule
from ofa_jax.report.parts import Section, Table, number, picture, place_in_order
from ofa_jax.tasks.base import Sums
from ofa_jax.tasks.detection import threshold_at
from ofa_jax.windows.batch import Batch
from ofa_jax.windows.table import WindowTable

AROUND = 100
"""Steps before and after an anomaly that a picture shows."""


def imputation_sections(scored: Scored) -> list[Section]:
    """Imputation: three windows, in each the channel with the largest error; errors per channel."""
    found = scored.asker(_hidden_errors)(scored.table)
    total, count = found["squared"].astype(np.float64), found["count"].astype(np.float64)
    seen = count.sum(axis=1)
    per_window = np.where(seen > 0, total.sum(axis=1) / np.maximum(seen, 1), np.nan)
    places = place_in_order(per_window)
    names, scaler = scored.loaded.names or (), scored.loaded.scaler
    parts = []
    for (name, place), window in zip(places.items(), scored.windows(list(places.values())), strict=True):
        by_channel = np.where(count[place] > 0, total[place] / np.maximum(count[place], 1), -1)
        channel = int(by_channel.argmax())
        std, mean = (1.0, 0.0) if scaler is None else (scaler.std[channel], scaler.mean[channel])
        truth, filled = (
            values[:, channel].astype(np.float64) * std + mean
            for values in (window["y"], window["prediction"])
        )
        title = f"{name}: window {int(np.asarray(scored.table.window_id)[place]):,}, MSE {number(per_window[place])}, shown {names[channel]}"
        hidden = window["y_mask"][:, channel]
        parts.append(
            pd.DataFrame(
                {
                    "window": title,
                    "step": np.arange(len(truth)),
                    "truth": truth,
                    "filled": np.where(hidden, filled, np.nan),
                }
            )
        )
    table = pd.concat(parts)
    titles = "; ".join(dict.fromkeys(table["window"]))
    windows = Section(
        "windows",
        "Points filled in on test windows",
        [
            rule(scored, "MSE of hidden points"),
            "Of each window the series with the largest error is drawn, in original units.",
        ],
        pictures=[
            picture(
                plots_tasks.filled_in(table), f"Hidden points and what was filled in. {titles}.", f"{titles}."
            )
        ],
    )
    errors = pd.DataFrame({"channel": names, "error": total.sum(axis=0) / np.maximum(count.sum(axis=0), 1)})
    bars, listed = channel_parts(
        errors, "MSE", "over all hidden test points, on the scale of the standardised series"
    )
    sentence = "Points are hidden by chance, so no step of a window is apart from the others and errors are not told by step."
    return [windows, Section("errors", "Where the errors are", [sentence], (), [bars], folded=[listed])]


def _hidden_errors(pred_btc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    squared = jnp.where(batch.y_mask, jnp.square(pred_btc - batch.y), 0)
    return {"squared": jnp.sum(squared, axis=1), "count": jnp.sum(batch.y_mask, axis=1)}


def classification_sections(scored: Scored) -> list[Section]:
    """Classification: three cases by cross-entropy; the confusion matrix."""
    found = scored.asker(_verdicts)(scored.table)
    classes = [str(name) for name in scored.data.meta["classes"]]
    true, predicted = np.asarray(scored.table.label), found["predicted"]
    entropy = found["cross_entropy"].astype(np.float64)
    rows = [
        (
            f"{name}: case {int(np.asarray(scored.table.window_id)[place]):,}",
            classes[true[place]],
            classes[predicted[place]],
            number(float(np.exp(-entropy[place]))),
            number(entropy[place]),
        )
        for name, place in place_in_order(entropy).items()
    ]
    head = ("case", "is", "taken for", "probability of its class", "cross-entropy")
    windows = Section(
        "windows",
        "Three test cases",
        [rule(scored, "cross-entropy")],
        [Table("Chosen by that rule alone", head, rows)],
    )

    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (true, predicted), 1)
    cases = pd.DataFrame(
        [(a, b, counts[i, j]) for i, a in enumerate(classes) for j, b in enumerate(classes)],
        columns=["true", "predicted", "count"],
    )
    right = int(np.trace(counts))
    by_class = [
        (
            name,
            f"{counts[index].sum():,}",
            number(counts[index, index] / counts[index].sum()) if counts[index].sum() else "—",
        )
        for index, name in enumerate(classes)
    ]
    said = f"{right:,} of {len(true):,} test cases are told right."
    shown = picture(
        plots_tasks.confusion(cases),
        f"Confusion matrix of {len(classes)} classes. {said}",
        "Cases of each class, and what they were taken for.",
    )
    tables = [Table("Accuracy by class", ("class", "test cases", "accuracy"), by_class)]
    sentences = [
        said,
        "A case has one label and no steps to forecast, so there are no errors by channel or step.",
    ]
    return [windows, Section("errors", "Where the errors are", sentences, tables, [shown])]


def _verdicts(logits_bk: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits_bk), jnp.maximum(batch.y, 0)[:, None], axis=1)[
        :, 0
    ]
    return {"predicted": jnp.argmax(logits_bk, axis=1), "cross_entropy": entropy}


def anomaly_sections(scored: Scored) -> list[Section]:
    """Anomaly detection: the scores of the whole test part and around three labelled anomalies; errors per channel."""
    found, threshold, channel_error = anomaly_results(scored)
    stretches, rows = _labelled_stretches(found, threshold)
    shown = pd.concat([found.assign(stretch="the whole test part"), *stretches])
    detected = sum(row[-1] == "yes" for row in rows)
    said = f"In {detected:,} of {len(rows):,} labelled anomalies at least one step's score is above the threshold of {number(threshold)}."
    windows = Section(
        "windows",
        "Scores around labelled anomalies",
        [
            "Of all labelled anomalies these are the ones with the highest, the median and the lowest peak: the largest score of any of "
            "their steps. Among equal ones the first.",
            said,
        ],
        pictures=[
            picture(
                plots_tasks.anomaly_scores(shown, threshold),
                f"Scores of {len(found):,} test steps, labelled anomalies and threshold; whole and around {len(stretches)} of them. {said}",
                "Score of each step on a logarithmic height; of many neighbouring steps the largest. A step that several windows cover is "
                "drawn with its score in the first of them.",
            )
        ],
        folded=[
            Table(
                "Every labelled anomaly", ("anomaly", "first step", "last step", "peak score", "found"), rows
            )
        ],
    )
    names = scored.loaded.names or tuple(f"channel {index}" for index in range(len(channel_error)))
    errors = pd.DataFrame({"channel": names, "error": channel_error})
    bars, listed = channel_parts(
        errors, "MSE", "over all test windows, on the scale of the standardised series"
    )
    sentence = (
        "Every step of a window is given back, none is forecast, so errors are not told by step of a window."
    )
    return [windows, Section("errors", "Where the errors are", [sentence], (), [bars], folded=[listed])]


def anomaly_results(scored: Scored) -> tuple[pd.DataFrame, float, np.ndarray]:
    """Scores of the test part, the threshold, and the mean squared error per channel ``[c]``.

    The first has the columns ``step, score, label``, a row per scored test step. The threshold is the one that the metrics take.
    """
    ask, seen = scored.asker(_reconstruction), []

    def score(table: WindowTable) -> Sums:
        seen.append((table, ask(table)))
        return seen[-1][1]

    task, settings, labels = scored.data.task, scored.loaded.experiment.task, scored.data.labels
    task.final_metrics(score, "test")
    (test, found), (reference, known) = seen
    rows, scores = _first_cover(test, found["step_error"])
    if task.protocol == "strict":
        threshold = threshold_at(_first_cover(reference, known["step_error"])[1], settings.anomaly_ratio)
    else:
        everything = np.concatenate([known["step_error"].ravel(), found["step_error"].ravel()])
        threshold = threshold_at(everything, settings.anomaly_ratio)
    step = rows - int(labels["train_borders"][-1])
    table = pd.DataFrame({"step": step, "score": scores, "label": labels["test_label"][step].astype(bool)})
    return table, threshold, found["channel_error"].mean(axis=0, dtype=np.float64)


def _reconstruction(pred_btc: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    squared = jnp.square(pred_btc - batch.x)
    return {"step_error": jnp.mean(squared, axis=2), "channel_error": jnp.mean(squared, axis=1)}


def _first_cover(table: WindowTable, error_bt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Buffer rows in order, and each one's error in the first window that covers it."""
    rows_bt = np.asarray(table.first)[:, None] + np.arange(error_bt.shape[1])
    rows, where = np.unique(rows_bt.ravel(), return_index=True)
    return rows, error_bt.ravel()[where].astype(np.float64)


def _labelled_stretches(
    found: pd.DataFrame, threshold: float
) -> tuple[list[pd.DataFrame], list[tuple[str, ...]]]:
    """Scores around three labelled anomalies, and a row of text for each anomaly."""
    label, score, step = found["label"].to_numpy(), found["score"].to_numpy(), found["step"].to_numpy()
    edges = np.diff(np.concatenate([[0], label.astype(int), [0]]))
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    peaks = np.array([score[begin:end].max() for begin, end in zip(begins, ends, strict=True)])
    rows: list[tuple[str, ...]] = [
        (
            str(index + 1),
            f"{step[begin]:,}",
            f"{step[end - 1]:,}",
            f"{peak:.4g}",
            "yes" if peak > threshold else "no",
        )
        for index, (begin, end, peak) in enumerate(zip(begins, ends, peaks, strict=True))
    ]
    words = {"best": "highest peak", "median": "median peak", "worst": "lowest peak"}
    stretches = []
    for name, place in place_in_order(-peaks).items():
        begin, end = begins[place], ends[place]
        around = found.iloc[max(0, begin - AROUND) : end + AROUND]
        title = f"{words[name]}: steps {step[begin]:,} to {step[end - 1]:,}, peak {number(peaks[place])}"
        stretches.append(around.assign(stretch=title))
    return stretches, rows


SECTIONS: Mapping[TaskName, Callable[[Scored], list[Section]]] = {
    "forecast": forecast_sections,
    "zero_shot": forecast_sections,
    "short_term": forecast_sections,
    "anomaly": anomaly_sections,
    "classification": classification_sections,
    "imputation": imputation_sections,
}
"""The sections ``windows`` and ``errors`` by ``task.name``."""

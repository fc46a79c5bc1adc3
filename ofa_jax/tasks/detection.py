"""Anomaly metrics: thresholds; precision, recall and F1, raw and point-adjusted; average precision.

Point adjustment counts every step of an anomaly as detected when one of its steps is. Even random scores do
well under it (Kim et al., arXiv 2109.05257), so raw F1 and a threshold-free score are always reported too.
Where aeon is installed (extra ``range``), so is the area under range-based precision and recall.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np


def point_adjust(found: np.ndarray, label: np.ndarray, begins: Sequence[int] | np.ndarray = ()) -> np.ndarray:
    """Flags ``[T]`` bool in which all steps of an anomaly are set if one of them is.

    Args:
        found: Verdicts ``[T]``.
        label: ``[T]``, True where a step is anomalous.
        begins: Steps at which a recording begins; an anomaly does not span two recordings.
    """
    found, label = np.asarray(found, bool), np.asarray(label, bool)
    before = np.concatenate([[False], label])[: len(label)]
    before[np.asarray(begins, np.int64)] = False
    opens = label & ~before
    stretch = np.cumsum(opens) * label  # 0 outside, otherwise the number of the stretch
    hit = np.zeros(int(opens.sum()) + 1, bool)
    hit[stretch[found & label]] = True
    return found | (label & hit[stretch])


def precision_recall_f1(found: np.ndarray, label: np.ndarray, prefix: str = "") -> dict[str, float]:
    """Precision, recall and F1 of verdicts ``[T]`` bool; each is 0 where its denominator is."""
    both = int((found & label).sum())
    precision = both / int(found.sum()) if both else 0.0
    recall = both / int(label.sum()) if both else 0.0
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    return {f"{prefix}precision": precision, f"{prefix}recall": recall, f"{prefix}f1": f1}


def average_precision(scores: np.ndarray, label: np.ndarray) -> float:
    """Area under precision over recall as a sum of steps, as scikit-learn's ``average_precision_score``.

    0 where no step is anomalous.
    """
    if not label.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(label[order])
    last = np.append(ranked[1:] != ranked[:-1], True)  # the last place of each group of equal scores
    hits, taken = hits[last], np.flatnonzero(last) + 1
    recall = hits / label.sum()
    return float(np.sum(np.diff(recall, prepend=0) * hits / taken))


def range_pr_auc(scores: np.ndarray, label: np.ndarray) -> float | None:
    """Area under range-based precision and recall (R-AUC-PR; Paparrizos et al., VLDB 2022), by aeon.

    The labels are widened by slopes of half the median anomaly's length. None where aeon is not installed.
    """
    try:
        from aeon.benchmarking.metrics.anomaly_detection import range_pr_auc_score
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # equal scores: the area is 0, and aeon warns
        return float(range_pr_auc_score(np.asarray(label, np.int64), np.asarray(scores, np.float64)))


def detection_metrics(
    scores: np.ndarray,
    label: np.ndarray,
    threshold: float,
    begins: Sequence[int] | np.ndarray = (),
    seen: np.ndarray | None = None,
) -> dict[str, float]:
    """All metrics of scores ``[T]`` at a threshold: AP, and precision, recall and F1, raw and point-adjusted.

    ``begins`` are the steps at which a recording begins, as in :func:`point_adjust`. Steps that are not in
    ``seen`` ``[T]`` do not count, but belong to the anomalies around them.
    """
    found, label = scores > threshold, np.asarray(label, bool)
    adjusted = point_adjust(found, label, begins)
    if seen is not None:
        scores, label, found, adjusted = (part[seen] for part in (scores, label, found, adjusted))
    ranged = range_pr_auc(scores, label)
    return {
        "average_precision": average_precision(scores, label),
        **({} if ranged is None else {"range_pr_auc": ranged}),
        **precision_recall_f1(found, label),
        **precision_recall_f1(adjusted, label, "adjusted_"),
    }

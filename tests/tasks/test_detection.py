"""Thresholds, point adjustment and the metrics of detection, against brute force and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from ofa_jax.tasks.detection import average_precision, detection_metrics, point_adjust, precision_recall_f1


@st.composite
def verdicts(draw, *, least=0):
    """Verdicts, labels and recordings' beginnings of one length."""
    label = draw(st.lists(st.booleans(), min_size=least, max_size=40))
    found = draw(st.lists(st.booleans(), min_size=len(label), max_size=len(label)))
    begins = draw(st.lists(st.integers(0, len(label) - 1), max_size=4)) if label else []
    return np.array(found, bool), np.array(label, bool), begins


def brute_force(found, label, begins=()):
    """From every anomalous step, walk both ways to the ends of its stretch and look whether any step there
    was found."""
    adjusted = found.copy()
    for step in np.flatnonzero(label):
        left = step
        while left > 0 and label[left - 1] and left not in begins:
            left -= 1
        right = step
        while right + 1 < len(label) and label[right + 1] and right + 1 not in begins:
            right += 1
        adjusted[step] = any(found[left : right + 1])
    return adjusted


@settings(deadline=None)
@given(verdicts())
@example((np.array([True, False, False]), np.array([True, True, True]), [1]))
def test_point_adjustment_against_brute_force(case):
    found, label, begins = case
    before = found.copy(), label.copy()
    np.testing.assert_array_equal(point_adjust(found, label), brute_force(found, label))
    np.testing.assert_array_equal(point_adjust(found, label, begins), brute_force(found, label, begins))
    np.testing.assert_array_equal((found, label), before)


def test_point_adjustment_by_literal():
    label = np.array([0, 1, 1, 0, 1, 1, 1, 0, 1])
    found = np.array([1, 0, 1, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(point_adjust(found, label), [1, 1, 1, 0, 0, 0, 0, 0, 1])
    # a recording begins inside the second stretch: what is found in one is not found in the other
    np.testing.assert_array_equal(point_adjust([0, 1, 0, 0], [1, 1, 1, 1], begins=[0, 2]), [1, 1, 0, 0])


@settings(deadline=None)
@given(verdicts(least=1))
def test_point_adjustment_takes_nothing_away_and_adds_anomalous_steps_alone(case):
    found, label, begins = case
    adjusted = point_adjust(found, label, begins)
    assert (adjusted >= found).all()
    assert not (adjusted & ~found & ~label).any()
    np.testing.assert_array_equal(point_adjust(adjusted, label, begins), adjusted)


@settings(deadline=None)
@given(verdicts(least=1))
def test_precision_recall_and_f1_against_scikit_learn(case):
    found, label, _ = case
    wanted = [metric(label, found, zero_division=0) for metric in (precision_score, recall_score, f1_score)]
    # rounding of a quotient or two in float64
    found = precision_recall_f1(found, label)
    assert list(found) == ["precision", "recall", "f1"]
    np.testing.assert_allclose(list(found.values()), wanted, rtol=1e-12, atol=0)


few_values = st.sampled_from([0.0, 0.25, 0.5, 1.0])
"""So few that there are ties."""


@settings(deadline=None)
@given(st.lists(st.tuples(st.one_of(few_values, st.floats(0, 1e6)), st.booleans()), min_size=1, max_size=40))
def test_average_precision_against_scikit_learn(pairs):
    scores, label = (np.array(column) for column in zip(*pairs, strict=True))
    label[0] = True  # scikit-learn warns where nothing is anomalous
    assert average_precision(scores, label) == pytest.approx(
        average_precision_score(label, scores), rel=1e-12
    )


@pytest.mark.parametrize(
    ("scores", "label", "wanted"),
    [
        (
            [5, 5, 5, 5],
            [1, 0, 0, 0],
            1 / 4,
        ),  # all equal: the share of anomalous steps, in whatever order they are
        ([5, 5, 5, 5], [0, 0, 0, 1], 1 / 4),
        ([1, 2, 3, 4], [0, 0, 0, 1], 1),
        ([1, 2, 3, 4], [1, 0, 0, 0], 1 / 4),
        ([4, 3, 3, 1], [0, 1, 0, 1], 1 / 2 * 1 / 3 + 1 / 2 * 2 / 4),
        ([math.inf, math.inf, 0, 0], [1, 0, 0, 0], 1 / 2),
        ([1, 2], [0, 0], 0),
        ([1, 2], [1, 1], 1),
    ],
)
def test_average_precision_by_literal(scores, label, wanted):
    assert average_precision(np.array(scores), np.array(label)) == pytest.approx(wanted, rel=1e-12)


def test_average_precision_reads_float32_scores_as_they_are():
    scores = np.array([1, 1 + 2**-23, 1], np.float32)
    assert average_precision(scores, np.array([0, 1, 0])) == 1


def test_everything_that_is_reported(monkeypatch):
    monkeypatch.setattr("ofa_jax.tasks.detection.range_pr_auc", lambda scores, label: None)  # as without aeon
    scores = np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.1])
    label = np.array([0, 1, 1, 0, 0, 1])
    assert detection_metrics(scores, label, 0.5) == pytest.approx(
        {
            "average_precision": average_precision_score(label, scores),
            "precision": 1 / 2,
            "recall": 1 / 3,
            "f1": 2 / 5,
            "adjusted_precision": 2 / 3,
            "adjusted_recall": 2 / 3,
            "adjusted_f1": 2 / 3,
        },
        rel=1e-12,
    )
    # with the recordings' border between the steps 1 and 2 nothing is given away
    assert detection_metrics(scores, label, 0.5, begins=[0, 2])["adjusted_f1"] == pytest.approx(2 / 5)


def test_a_score_at_the_threshold_is_not_above_it(monkeypatch):
    monkeypatch.setattr("ofa_jax.tasks.detection.range_pr_auc", lambda scores, label: None)  # as without aeon
    assert detection_metrics(np.ones(4), np.array([0, 1, 0, 0]), 1.0) == {
        "average_precision": 0.25,
        **dict.fromkeys(
            ("precision", "recall", "f1", "adjusted_precision", "adjusted_recall", "adjusted_f1"), 0.0
        ),
    }


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")  # aeon's own, on import
def test_range_based_area_is_reported_where_aeon_is_installed():
    pytest.importorskip("aeon", reason="the extra `range` is not installed")
    label = np.zeros(200, bool)
    label[50:70] = label[120:140] = True
    late = np.roll(
        label, 3
    )  # every anomaly found three steps late: range-based precision and recall forgive most of it
    slope = np.linspace(0, 1e-6, 200)  # no ties
    exact, shifted, turned = (
        detection_metrics(scores + slope, label, 0.5) for scores in (1.0 * label, 1.0 * late, -1.0 * label)
    )
    assert exact["range_pr_auc"] > shifted["range_pr_auc"] > 0.75 > 0.3 > turned["range_pr_auc"]
    assert (
        exact["average_precision"] - shifted["average_precision"]
        > exact["range_pr_auc"] - shifted["range_pr_auc"]
    )

"""The metrics: closed forms by hand, plain-Python brute force, other people's implementations, and degenerate
series."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.tasks.metrics import (
    classification_metrics,
    classification_sums,
    forecast_metrics,
    forecast_sums,
    mean_scaled_error,
    naive_scale,
    reconstruction_metrics,
    reconstruction_sums,
    series_metrics,
    series_sums,
)
from ofa_jax.windows.batch import Batch

REL = 2e-6
"""Sums per window are made of a few float32 operations, each right to 6e-8; across windows they are added in
float64."""

# no subnormals: XLA's threads take them for 0, as CPUs do in their fast mode
VALUES = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


def batch_of(target: np.ndarray, mask: np.ndarray | None = None) -> Batch:
    y = np.asarray(target, np.float32)[..., None]
    seen = np.ones(y.shape, bool) if mask is None else np.asarray(mask)[..., None]
    x = np.zeros((len(y), 2, 1), np.float32)
    ids = np.arange(len(y), dtype=np.int32)
    return Batch(x, y, np.ones(x.shape, bool), seen, np.ones(len(y), np.float32), ids)  # type: ignore[arg-type]


def sums_of(pred: object, target: object, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
    pred_bhc = jnp.asarray(np.asarray(pred, np.float32)[..., None])
    return {
        name: np.asarray(values)
        for name, values in series_sums(pred_bhc, batch_of(np.asarray(target), mask)).items()
    }


def symmetric(p: float, t: float) -> float:
    return 0.0 if p == 0 and t == 0 else 200 * abs(p - t) / (abs(p) + abs(t))


def test_smape_by_hand():
    sums = sums_of([[1, 5], [0, -3]], [[2, 5], [0, 3]])
    assert series_metrics(sums)["smape"] == pytest.approx((200 / 3 + 0 + 0 + 200) / 4, rel=REL)
    np.testing.assert_allclose(sums["symmetric"], [200 / 3, 200], rtol=REL)
    np.testing.assert_array_equal(sums["absolute_error"], [1, 6])
    np.testing.assert_array_equal(sums["count"], [2, 2])


@settings(max_examples=60, deadline=None)
@given(cells=st.lists(st.tuples(VALUES, VALUES, st.booleans()), min_size=12, max_size=12))
def test_smape_against_a_plain_loop(cells):
    cells[0] = (*cells[0][:2], True)
    pred, target, seen = (np.array(part, float).reshape(4, 3) for part in zip(*cells, strict=True))
    found = series_metrics(sums_of(pred, target, seen.astype(bool)))["smape"]
    terms = [symmetric(p, t) for p, t, s in cells if s]
    assert found == pytest.approx(math.fsum(terms) / len(terms), rel=REL)
    assert 0 <= found <= 200 * (1 + REL)


@settings(max_examples=40, deadline=None)
@given(cells=st.lists(st.tuples(VALUES, VALUES), min_size=6, max_size=6), power=st.integers(-8, 8))
def test_smape_knows_neither_units_nor_which_of_the_two_is_the_forecast(cells, power):
    pred, target = (np.array(part).reshape(2, 3) for part in zip(*cells, strict=True))
    found = series_metrics(sums_of(pred, target))
    assert series_metrics(sums_of(target, pred)) == found
    assert series_metrics(sums_of(-pred, -target)) == found
    assert series_metrics(sums_of(pred * 2.0**power, target * 2.0**power)) == pytest.approx(
        found, rel=1e-12
    )  # powers of two are exact


def test_what_is_missing_counts_nothing_in_any_sum():
    seen = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    target = np.array([[1, 2, 3], [4, 0, 0], [0, 0, 0]])
    pred = np.array([[2, 2, 5], [3, 9, -9], [7, 8, 9]], np.float32)
    sums = sums_of(pred, target, seen)
    np.testing.assert_array_equal(sums["count"], [3, 1, 0])
    np.testing.assert_array_equal(sums["absolute_error"], [3, 1, 0])
    spoilt = sums_of(np.where(seen, pred, np.nan), target, seen)
    for name, values in sums.items():
        np.testing.assert_array_equal(spoilt[name], values, err_msg=name)


def test_the_sums_of_all_channels_are_a_windows_own():
    target, mask = np.arange(12, dtype=np.float32).reshape(2, 3, 2), np.ones((2, 3, 2), bool)
    mask[1, 2, 1] = False
    batch = batch_of(np.zeros((2, 3)))._replace(y=target, y_mask=mask)
    for sums in (forecast_sums(jnp.asarray(target + 2), batch), series_sums(jnp.asarray(target + 2), batch)):
        np.testing.assert_array_equal(sums["absolute_error"], [12, 10])
        np.testing.assert_array_equal(sums["count"], [6, 5])


def test_sums_over_many_windows_do_not_drift():
    many = 200_000
    sums = {
        "squared_error": np.full(many, 0.1, np.float32),
        "absolute_error": np.full(many, 0.3, np.float32),
        "count": np.ones(many),
    }
    found = forecast_metrics(sums)
    assert found == pytest.approx(
        {"mse": float(np.float32(0.1)), "mae": float(np.float32(0.3))}, rel=1e-12
    )  # float32 sums: 1e-5
    parts = {"symmetric": sums["squared_error"], "count": np.ones(many, np.float32)}
    assert series_metrics(parts)["smape"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_mase_by_hand():
    # season 1: steps of 1, 2, 3 before; errors 1 and 3 -> mean 2 over scale 2
    assert naive_scale(np.array([1.0, 2, 4, 7]), 1) == 2
    assert naive_scale(np.array([1.0, 5, 2, 9]), 2) == 2.5
    sums = sums_of([[8, 10], [1, 1]], [[7, 7], [1, 2]])
    assert mean_scaled_error(sums, np.array([2.0, 0.5])) == pytest.approx((2 / 2 + 0.5 / 0.5) / 2, rel=REL)


@settings(max_examples=60, deadline=None)
@given(
    windows=st.lists(
        st.tuples(
            st.lists(VALUES, min_size=1, max_size=9),
            st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=2),
        ),
        min_size=3,
        max_size=3,
    ),
    season=st.integers(1, 5),
)
def test_mase_against_a_plain_loop(windows, season):
    ratios = []
    for insample, pairs in windows:
        steps = [abs(insample[i] - insample[i - season]) for i in range(season, len(insample))]
        if steps and sum(steps) > 0:
            ratios.append(sum(abs(p - t) for p, t in pairs) / len(pairs) / (sum(steps) / len(steps)))
    pred, target = (np.array([[pair[place] for pair in pairs] for _, pairs in windows]) for place in (0, 1))
    found = mean_scaled_error(
        sums_of(pred, target), np.array([naive_scale(np.array(insample), season) for insample, _ in windows])
    )
    if ratios:
        assert found == pytest.approx(math.fsum(ratios) / len(ratios), rel=REL)
    else:
        assert math.isnan(found)


def test_series_without_a_scale_are_left_out_of_mase():
    assert naive_scale(np.full(9, 0.1), 1) == 0
    assert math.isnan(naive_scale(np.array([1.0, 2]), 2))
    assert math.isnan(naive_scale(np.array([1.0]), 1))
    sums = sums_of([[1.0], [2.0], [3.0]], [[2.0], [4.0], [7.0]])
    assert mean_scaled_error(sums, np.array([0.0, 4.0, np.nan])) == pytest.approx(0.5, rel=REL)
    assert math.isnan(mean_scaled_error(sums, np.array([0.0, 0.0, np.nan])))


def test_series_of_zeros_are_forecast_without_error():
    sums = sums_of(np.zeros((2, 3)), np.zeros((2, 3)))
    assert series_metrics(sums) == {"smape": 0}


def test_mse_and_mae_are_scikit_learns():
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    draw = np.random.default_rng(0)
    pred, target = draw.normal(size=(2, 40, 5)).astype(np.float32)
    sums = {
        name: np.asarray(values)
        for name, values in forecast_sums(jnp.asarray(pred[..., None]), batch_of(target)).items()
    }
    wanted = {"mse": mean_squared_error(target, pred), "mae": mean_absolute_error(target, pred)}
    assert forecast_metrics(sums) == pytest.approx(wanted, rel=REL)


def test_accuracy_and_cross_entropy_are_scikit_learns():
    from sklearn.metrics import accuracy_score, log_loss

    draw = np.random.default_rng(0)
    logits, label = draw.normal(size=(60, 4)).astype(np.float32), draw.integers(0, 4, 60).astype(np.int32)
    # the last row fills the batch: it has the class of some case, and counts nothing
    labelled = np.append(label, 0).astype(np.int32)
    batch = batch_of(np.zeros((61, 0)), np.zeros((61, 0), bool))._replace(
        y=labelled, y_mask=np.arange(61) < 60
    )
    sums = classification_sums(jnp.asarray(np.concatenate([logits, [[9, 0, 0, 0]]])), batch)
    found = classification_metrics({name: np.asarray(values) for name, values in sums.items()})
    chances = np.exp(logits.astype(np.float64))
    chances /= chances.sum(axis=1, keepdims=True)
    accuracy = accuracy_score(label, logits.argmax(axis=1))
    assert found == pytest.approx(
        {"accuracy": accuracy, "error": 1 - accuracy, "cross_entropy": log_loss(label, chances)}, rel=REL
    )
    assert float(np.asarray(sums["count"]).sum()) == 60


def test_a_steps_reconstruction_error_is_the_mean_over_channels():
    x = np.zeros((1, 2, 2), np.float32)
    batch = batch_of(np.zeros((1, 0)), np.zeros((1, 0), bool))._replace(x=x)
    sums = reconstruction_sums(jnp.asarray(x + np.array([[1, 3], [2, 0]], np.float32)), batch)
    np.testing.assert_array_equal(sums["step_error"], [[5, 2]])
    assert reconstruction_metrics({"step_error": np.asarray(sums["step_error"])}) == {"mse": 3.5}

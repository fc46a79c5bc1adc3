"""The losses: closed forms by hand, a plain-Python count of every term, gradients, masks and slices."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.tasks.losses import (
    FORECAST_LOSSES,
    cross_entropy,
    mape,
    reconstruction_error,
    smape,
    squared_error,
)
from ofa_jax.windows.batch import Batch

REL = 2e-6
"""A term is a handful of float32 operations (each right to 6e-8) and so is the sum of at most twelve
non-negative terms."""

# no subnormals: XLA's threads take them for 0, as CPUs do in their fast mode
VALUES = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


def batch_of(target: np.ndarray, mask: np.ndarray | None = None, x: np.ndarray | None = None) -> Batch:
    """A batch with the targets ``[b, h]`` of one channel; a row whose targets are all missing fills the
    batch."""
    y = np.asarray(target, np.float32)[..., None]
    seen = np.ones(y.shape, bool) if mask is None else np.asarray(mask)[..., None]
    x = np.zeros((len(y), 2, 1), np.float32) if x is None else x
    rows = seen.any(axis=(1, 2))
    ids = np.where(rows, np.arange(len(y)), -1).astype(np.int32)
    return Batch(x, y, np.ones(x.shape, bool), seen, rows.astype(np.float32), ids)  # type: ignore[arg-type]


def column(values: object) -> jax.Array:
    return jnp.asarray(np.asarray(values, np.float32)[..., None])


def by_hand(name: str, p: float, t: float) -> float:
    """One term, written down as the protocol says it."""
    if name == "mse":
        return (p - t) ** 2
    if name == "mape":
        return 100 * abs(p - t) / (abs(t) + 1e-8)
    return 0.0 if p == 0 and t == 0 else 200 * abs(p - t) / (abs(p) + abs(t))


@pytest.mark.parametrize(
    ("name", "pairs", "total"),
    [
        # (prediction, target): 200 * 1 / 3, equal, opposite signs, one of them 0, both 0
        ("smape", [(1, 2), (5, 5), (-3, 3), (0, 7), (0, 0)], 200 / 3 + 0 + 200 + 200 + 0),
        ("mape", [(1, 2), (5, 5), (-3, 3), (9, -3), (0, 0)], 50 + 0 + 200 + 400 + 0),
        ("mape", [(1, 0)], 1e10),  # 100 / 1e-8
        ("mse", [(1, 2), (5, 5), (-3, 3), (0, 7)], 1 + 0 + 36 + 49),
    ],
)
def test_closed_forms(name, pairs, total):
    pred, target = zip(*pairs, strict=True)
    found, count = FORECAST_LOSSES[name](column([pred]), batch_of([target]))
    assert float(found) == pytest.approx(total, rel=REL)
    assert float(count) == len(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FORECAST_LOSSES))
@settings(max_examples=60, deadline=None)
@given(
    cells=st.lists(st.tuples(VALUES, VALUES, st.booleans()), min_size=12, max_size=12), cut=st.integers(1, 3)
)
def test_every_term_is_counted_once_and_slices_add_up(name, cells, cut):
    pred, target, seen = (np.array(part, float).reshape(4, 3) for part in zip(*cells, strict=True))
    loss, batch = FORECAST_LOSSES[name], batch_of(target, seen.astype(bool))
    total, count = map(float, loss(column(pred), batch))
    wanted = math.fsum(by_hand(name, p, t) for p, t, s in cells if s)
    # |p - t| of float32 numbers is rounded to 6e-8 of the larger one: next to a tiny target mape sees that as
    # 1e-5 points per unit
    slack = (
        sum(100 * 6e-8 * (abs(p) + abs(t)) / (abs(t) + 1e-8) for p, t, s in cells if s)
        if name == "mape"
        else 0
    )
    assert total == pytest.approx(wanted, rel=REL, abs=slack)
    assert count == sum(s for *_, s in cells)
    slices = [slice(cut), slice(cut, None)]
    parts = [
        loss(column(pred)[rows], jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch)) for rows in slices
    ]
    np.testing.assert_allclose(np.sum(np.array(parts, np.float64), axis=0), (total, count), rtol=REL)


@pytest.mark.parametrize("name", list(FORECAST_LOSSES))
def test_missing_targets_and_rows_of_padding_count_nothing(name):
    loss = FORECAST_LOSSES[name]
    target = np.array([[1, 2, 3], [4, 0, 0], [0, 0, 0]])
    seen = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    pred = np.array([[2, 2, 5], [3, 9, -9], [7, 8, 9]], np.float32)
    value, gradient = jax.value_and_grad(lambda p: loss(p, batch_of(target, seen))[0])(column(pred))
    whole = loss(column(pred), batch_of(target, seen))
    alone = [
        loss(column(pred[:1]), batch_of(target[:1])),
        loss(column(pred[1:2, :1]), batch_of(target[1:2, :1])),
    ]
    np.testing.assert_allclose(whole, np.sum(alone, axis=0), rtol=REL)
    assert float(whole[1]) == 4
    elsewhere = np.where(seen, pred, pred + 1000)
    np.testing.assert_array_equal(loss(column(elsewhere), batch_of(target, seen)), whole)
    assert float(value) == float(whole[0])
    np.testing.assert_array_equal(np.asarray(gradient)[..., 0] != 0, seen & (pred != target))


def test_a_batch_of_padding_alone_is_0_of_0():
    nothing = batch_of(np.zeros((2, 3)), np.zeros((2, 3), bool))
    for loss in FORECAST_LOSSES.values():
        assert tuple(map(float, loss(column(np.ones((2, 3))), nothing))) == (0, 0)


def test_the_gradient_of_smape_holds_the_denominator_constant():
    pred, target = np.array([3.0, 1.0, -2.0, 4.0, 0.0, 0.0]), np.array([1.0, 4.0, 2.0, 4.0, 5.0, 0.0])
    gradient = jax.grad(lambda p: smape(p, batch_of(target[None]))[0])(column(pred[None]))[0, :, 0]
    # d/dp of 200 |p - t| / c is 200 sign(p - t) / c; the whole derivative of the first term would be 200 * (4
    # - 2) / 16 = 25
    np.testing.assert_allclose(gradient, [200 / 4, -200 / 5, -200 / 4, 0, -200 / 5, 0], rtol=REL)


def test_the_gradient_of_mape():
    gradient = jax.grad(lambda p: mape(p, batch_of([[2.0, -4.0, 5.0]]))[0])(column([[3.0, -6.0, 5.0]]))[
        0, :, 0
    ]
    np.testing.assert_allclose(gradient, [100 / 2, -100 / 4, 0], rtol=REL)


def test_gradients_stay_finite_where_everything_is_0():
    zeros = batch_of(np.zeros((2, 3)), np.array([[1, 1, 1], [0, 0, 0]], bool))
    for loss in FORECAST_LOSSES.values():
        assert np.isfinite(jax.grad(lambda p, loss=loss: loss(p, zeros)[0])(column(np.zeros((2, 3))))).all()


def test_reconstruction_is_measured_on_the_observed_input():
    x = np.array([[[1.0, 2.0], [3.0, 0.0]], [[5.0, 6.0], [7.0, 8.0]]], np.float32)
    mask = np.ones(x.shape, bool)
    mask[0, 1, 1] = mask[1] = False
    batch = batch_of(np.zeros((2, 0)), np.zeros((2, 0), bool), x)._replace(x_mask=mask)
    pred = x + np.array([[[1, 2], [3, 50]], [[9, 9], [9, 9]]], np.float32)
    assert tuple(map(float, reconstruction_error(jnp.asarray(pred), batch))) == (1 + 4 + 9, 3)


@pytest.mark.parametrize("shift", [0.0, 80.0])
def test_cross_entropy_is_minus_log_softmax_at_the_class(shift):
    logits = np.array([[2.0, 1.0, -1.0], [0.0, 0.5, 3.0], [1.0, 1.0, 1.0]]) + shift
    label = np.array([0, 1, -1], np.int32)
    batch = batch_of(np.zeros((3, 0)), np.zeros((3, 0), bool))._replace(y=label, y_mask=label >= 0)
    wanted = [
        -math.log(math.exp(row[k] - shift) / sum(math.exp(v - shift) for v in row))
        for row, k in zip(logits[:2], (0, 1), strict=True)
    ]
    total, count = cross_entropy(jnp.asarray(logits, jnp.float32), batch)
    # a shift by 80 leaves float32 logits right to 4e-6 (half a step at 80), and the terms no better than that
    assert float(total) == pytest.approx(sum(wanted), rel=REL if not shift else 1e-5)
    assert float(count) == 2


def test_every_name_has_its_loss():
    assert (FORECAST_LOSSES["mse"], FORECAST_LOSSES["smape"], FORECAST_LOSSES["mape"]) == (
        squared_error,
        smape,
        mape,
    )

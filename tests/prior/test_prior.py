"""Generated series: by number alone, finite, of about unit scale, in every family."""

from __future__ import annotations

import numpy as np
import pytest

from ofa_jax.prior.families import FAMILIES
from ofa_jax.prior.pool import Excerpts, Pool
from ofa_jax.prior.source import Prior

PRIOR = Prior(seed=3, length=96)


def test_a_series_depends_on_seed_and_number_alone():
    first = PRIOR[7]
    np.testing.assert_array_equal(Prior(seed=3, length=96)[7], first)
    assert first.shape == (96,)
    assert first.dtype == np.float32
    for other in (PRIOR[8], Prior(seed=4, length=96)[7]):
        assert not np.array_equal(other, first, equal_nan=True)


def test_series_are_finite_where_observed_and_of_like_size():
    series = np.stack([PRIOR[number] for number in range(400)])
    observed = np.isfinite(series)
    assert not np.isinf(series).any()
    assert 0.9 < observed.mean() < 1
    assert observed.any(axis=1).all()
    spread = np.nanstd(series, axis=1)
    assert 0.5 < np.median(spread) < 1.5
    assert np.nanmax(np.abs(series)) <= 1e4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [16, 700])
def test_a_family_gives_finite_series_that_differ(family, steps):
    draw = np.random.default_rng(0)
    drawn = [FAMILIES[family][1](draw, steps) for _ in range(20)]
    assert {values.shape for values in drawn} == {(steps,)}
    assert np.isfinite(drawn).all()
    assert len({values.tobytes() for values in drawn}) == 20


def test_shares_of_families_add_up_to_one():
    assert sum(share for share, _ in FAMILIES.values()) == pytest.approx(1)


def test_a_pool_has_the_series_of_its_epoch_in_any_order_of_epochs():
    pool = Pool(PRIOR, 24, workers=0)
    for epoch in (0, 1, 5, 2):
        wanted = np.stack([PRIOR[24 * epoch + number] for number in range(24)])
        np.testing.assert_array_equal(pool.epoch(epoch), wanted)


@pytest.mark.slow
def test_worker_processes_give_the_same_pool():
    alone, shared = Pool(PRIOR, 64, workers=0), Pool(PRIOR, 64, workers=2)
    for epoch in (3, 4):
        np.testing.assert_array_equal(shared.epoch(epoch), alone.epoch(epoch))


def test_excerpts_are_parts_of_the_series_unobserved_before_their_start():
    series = (np.arange(30.0), np.where(np.arange(300) == 250, np.nan, np.sin(np.arange(300.0))))
    windows = Excerpts(series, PRIOR)
    drawn = [windows[number] for number in range(50)]
    for window in drawn:
        known = np.flatnonzero(np.isfinite(window))
        assert known[-1] == 95 or np.isnan(window[known[-1] + 1 :]).all()
        assert abs(np.nanmean(window)) < 1e-5
        assert np.nanstd(window) == pytest.approx(1, abs=1e-5)
    short = [window for window in drawn if np.isnan(window[0])]
    assert short
    for window in short:  # of the line: what is observed ends with the window and has one slope
        assert np.isfinite(window[-10:]).all()
        steps = np.diff(window[np.isfinite(window)])
        np.testing.assert_allclose(steps, steps[0], rtol=1e-4)


def test_excerpts_may_be_mixed_with_generated_series():
    half = Excerpts((np.arange(500.0),), PRIOR, generated=0.5)
    generated = [np.array_equal(half[number], PRIOR[number], equal_nan=True) for number in range(100)]
    assert 30 < sum(generated) < 70

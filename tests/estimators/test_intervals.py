"""Quantiles between and beyond the levels, and calibration: ranks, refusals, coverage."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from ofa_jax.errors import ConfigError, DataError
from ofa_jax.estimators.intervals import (
    Calibration,
    PredictionIntervals,
    check_levels,
    check_quantiles,
    interval,
    quantile,
    scaled_errors,
)
from ofa_jax.model.gpt2 import LEVELS

NORMAL = norm.ppf(LEVELS)


def test_quantiles_of_a_normal_distribution_are_its_own_beyond_the_levels():
    levels = 5 + 2 * NORMAL[None, None]
    for share in (0.1, 0.5, 0.9, 0.01, 0.025, 0.05, 0.95, 0.999):
        assert quantile(levels, share)[0, 0] == pytest.approx(5 + 2 * norm.ppf(share))
    assert quantile(levels, 0.25)[0, 0] == pytest.approx(5 + NORMAL[1:3].sum())  # halfway between two levels


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 10), min_size=9, max_size=9), st.lists(st.floats(0.5, 99.5), min_size=2, max_size=6)
)
def test_wider_levels_reach_further_with_and_without_calibration(gaps, levels):
    made = np.cumsum(gaps)[None, None] - 20
    errors = np.random.default_rng(0).laplace(size=(400, 1, 1)).astype(np.float32) + 0.5
    for windows in (0, 12, 60, 400):  # 12 give 80 % by sides and 90 % by sizes
        calibration = Calibration(errors[:windows], PredictionIntervals()) if windows else None
        levels = [level for level in levels if not windows or level <= 100 * windows / (windows + 1)]
        ends = [interval(made, level, calibration) for level in sorted(levels)]
        for (low, high), (wider_low, wider_high) in pairwise(ends):
            assert wider_low[0, 0] <= low[0, 0] + 1e-9
            assert wider_high[0, 0] >= high[0, 0] - 1e-9
        assert all(low[0, 0] <= made[0, 0, 4] + 1e-9 <= high[0, 0] + 2e-9 for low, high in ends)


def test_errors_are_measured_in_the_spread_of_their_side():
    levels = np.array([[[-3, 0, 0, 0, 1, 0, 0, 0, 2]]], float)
    assert scaled_errors(levels, np.array([[3.0]])).item() == 2  # two spreads of 1 above
    assert scaled_errors(levels, np.array([[-1.0]])).item() == -0.5  # half a spread of 4 below
    assert scaled_errors(np.zeros((1, 1, 9)), np.array([[-2.0]])).item() == -1e30
    assert scaled_errors(np.zeros((1, 1, 9)), np.array([[2.0]])).item() == 1e30  # no spread at all
    assert np.isnan(scaled_errors(levels, np.array([[np.nan]])).item())
    calibration = Calibration(np.arange(1.0, 10).reshape(9, 1, 1), PredictionIntervals())
    low, high = interval(levels, 90, calibration)  # the ninth of nine
    assert (low.item(), high.item()) == (1 - 9 * 4, 1 + 9 * 1)


@pytest.mark.parametrize(("level", "least"), [(80, 4), (90, 9), (95, 19), (99, 99)])
def test_a_level_that_the_windows_cannot_give_is_refused_with_what_it_needs(level, least):
    def calibration(windows):
        return Calibration(np.arange(float(windows)).reshape(windows, 1, 1), PredictionIntervals())

    below, above = calibration(least).reach(level)
    assert below.item() == above.item() == least - 1
    text = f"{level} % intervals need {least} held-out windows, and there are {least - 1}"
    with pytest.raises(DataError, match=f"{text}.*level of at most {100 * (least - 1) // least}"):
        calibration(least - 1).reach(level)


def test_windows_without_a_value_are_not_counted():
    errors = np.arange(20.0).reshape(20, 1, 1)
    errors[9:] = np.nan
    assert Calibration(errors, PredictionIntervals()).reach(90)[1].item() == 8
    errors[8] = np.nan
    with pytest.raises(DataError, match="there are 8"):
        Calibration(errors, PredictionIntervals()).reach(90)


def test_each_side_has_its_own_rank_where_there_are_enough_windows():
    errors = np.arange(-5.0, 14).reshape(19, 1, 1)  # 5 below and 13 above
    below, above = Calibration(errors, PredictionIntervals()).reach(80)
    assert (below.item(), above.item()) == (4, 12)  # the 18th of 19 each
    below, above = Calibration(errors, PredictionIntervals()).reach(90)
    assert (below.item(), above.item()) == (5, 13)  # the last
    below, above = Calibration(errors, PredictionIntervals()).reach(95)
    assert (below.item(), above.item()) == (13, 13)  # 39 are needed for each side, so the last of the sizes
    below, above = Calibration(np.abs(errors) + 1, PredictionIntervals()).reach(80)
    assert (below.item(), above.item()) == (0, 13)  # an interval holds the median


def test_errors_are_pooled_over_series_or_taken_for_each():
    errors = np.stack([np.arange(9.0), 100 + np.arange(9.0)], axis=1)[..., None]
    _, pooled = Calibration(errors, PredictionIntervals()).reach(50)
    assert pooled.shape == (1, 1)
    assert pooled.item() == 105  # the 15th of 18
    _, own = Calibration(errors, PredictionIntervals(pool="series")).reach(50)
    assert own.ravel().tolist() == [7, 107]  # the eighth of nine


@pytest.mark.parametrize("level", [80, 90, 95])
@pytest.mark.parametrize("windows", [20, 45])
def test_coverage_of_a_wrong_forecaster_is_at_least_nominal(level, windows):
    """Heavy tails, quantiles three times too narrow: what calibration is for."""
    draw = np.random.default_rng(level + windows)
    made = NORMAL[None, None] / 3 * np.ones((4000, 1, 1))
    covered = 0
    seen = scaled_errors(made.repeat(windows, axis=1), draw.standard_t(3, (4000, windows)))
    for errors, target in zip(seen, draw.standard_t(3, 4000), strict=True):
        calibration = Calibration(errors[:, None, None], PredictionIntervals())
        low, high = interval(made[:1], level, calibration)
        covered += low.item() <= target <= high.item()
    share, rank = covered / 4000, np.ceil((windows + 1) * (1 + level / 100) / 2)
    wanted = 1 - 2 * (1 - rank / (windows + 1)) if rank <= windows else windows / (windows + 1)
    assert share == pytest.approx(wanted, abs=0.02)
    assert wanted >= level / 100


def test_adaptive_intervals_follow_a_growing_error():
    grow = np.random.default_rng(0).exponential(size=(60, 30, 1)) * np.linspace(1, 4, 60)[:, None, None]
    ways = [PredictionIntervals(method=method) for method in ("split", "adaptive")]
    grow *= np.where(np.arange(30) % 2, 1, -1)[:, None]
    split, adaptive = (Calibration(grow, way).reach(80)[1].item() for way in ways)
    last = np.quantile(np.abs(grow[-10:]), 0.8)
    assert split < 0.75 * last
    assert abs(adaptive - last) < abs(split - last) / 2


def test_wrong_levels_and_settings_are_refused():
    for wrong in (0, 100, -5, "90", True, [80, 80], [50, 120]):
        with pytest.raises(ConfigError, match="level: "):
            check_levels(wrong)
    for wrong in (0, 1, 1.5, [0.1, "a"]):
        with pytest.raises(ConfigError, match="quantiles: "):
            check_quantiles(wrong)
    assert check_levels([95, 80.5]) == [80.5, 95]
    for settings_ in ({"n_windows": 0}, {"step_size": 1.5}, {"method": "magic"}, {"pool": "none"}):
        with pytest.raises(ConfigError, match=next(iter(settings_))):
            PredictionIntervals(**settings_)

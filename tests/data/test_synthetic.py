"""The generated load: reproducible, plausible, and its noise floor is what the best forecast reaches."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from ofa_jax.data.synthetic import _autoregression, _normal, hourly_load
from ofa_jax.errors import ConfigError


def errors(load, forecast_mhc, origins, horizon):
    targets = load.frame.values[origins[:, None] + np.arange(1, horizon + 1)]
    difference = targets - forecast_mhc
    return (difference**2).mean(axis=(0, 1)), np.abs(difference).mean(axis=(0, 1))


@pytest.fixture(scope="module")
def long_load():
    return hourly_load(n_rows=24 * 365 * 12, n_series=3, seed=5)


def test_frame_is_what_a_user_file_would_give():
    load = hourly_load()
    assert load.frame.values.shape == (24 * 7 * 60, 4)
    assert load.frame.names == ("load_north", "load_south", "load_east", "load_west")
    assert load.frame.frequency == "h"
    assert "generated" in load.frame.source
    np.testing.assert_allclose(
        load.frame.values, load.cycles + load.weather[:, None] * load.response + load.noise, rtol=1e-14
    )


@pytest.mark.parametrize("seed", range(10))
def test_load_is_positive(seed):
    assert hourly_load(n_series=8, seed=seed).frame.values.min() > 100


def test_same_seed_same_series_and_other_seed_other_series():
    first, again, other = hourly_load(500, seed=3), hourly_load(500, seed=3), hourly_load(500, seed=4)
    np.testing.assert_array_equal(first.frame.values, again.frame.values)
    assert np.abs(first.frame.values - other.frame.values).max() > 1


def test_series_do_not_depend_on_the_machine():
    # in tens of megawatts: the last bits of a cosine may differ between C libraries
    whole = np.round(hourly_load(400, 2, seed=0).frame.values / 10).astype("<i8")
    assert (
        hashlib.sha256(whole.tobytes()).hexdigest()
        == "4ee4fd1bfcc29b4b50dfb81f64e4fadc266829a8ea3f06228d91c574564f2de9"
    )


def test_normal_numbers_are_normal():
    draws = _normal(0, 200_000)
    # standard errors: sqrt(1/n) = .0022 of the mean, sqrt(2/n) = .0032 of the variance, sqrt(96/n) = .022
    # of the fourth moment; the bounds are four of each
    assert abs(draws.mean()) < 0.009
    assert abs(draws.var() - 1) < 0.013
    assert abs((draws**4).mean() - 3) < 0.088
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.009


def test_states_are_stationary_from_the_first_row():
    shocks = _normal(1, 40_000 * 6).reshape(6, 40_000)
    states = _autoregression(shocks, np.full(40_000, 0.9), np.full(40_000, 2.0))
    # variance 4 / (1 - .81) = 21.05, known to sqrt(2 / 40000) = .7 %; four of that
    np.testing.assert_allclose(states.var(axis=1), 4 / 0.19, rtol=0.03)


@pytest.mark.parametrize("horizon", [1, 24, 96])
def test_the_best_forecast_reaches_the_floor_and_no_less(long_load, horizon):
    origins = np.arange(0, long_load.frame.n_rows - horizon, 24)
    mse, mae = errors(long_load, long_load.best_forecast(origins, horizon), origins, horizon)
    least_mse, least_mae = long_load.noise_floor(horizon)
    # 4380 origins a day apart; the squared weather state is correlated over about 8 h, so the error stays
    # near sqrt(2 / 4380) = 2 % of the mean square and half of that of the mean absolute error
    np.testing.assert_allclose(mse, least_mse, rtol=0.06)
    np.testing.assert_allclose(mae, least_mae, rtol=0.03)


def test_forecasts_that_know_less_stay_above_the_floor(long_load):
    horizon = 24
    origins = np.arange(168, long_load.frame.n_rows - horizon, 24)
    ahead = origins[:, None] + np.arange(1, horizon + 1)
    best = long_load.best_forecast(origins, horizon)
    without_states = long_load.cycles[ahead]
    seasonal = long_load.frame.values[ahead - 168]
    least_mse, least_mae = errors(long_load, best, origins, horizon)
    for forecast in (without_states, seasonal, best * 1.01, best * 0.99):
        mse, mae = errors(long_load, forecast, origins, horizon)
        assert (mse > 1.02 * least_mse).all()
        assert (mae > 1.01 * least_mae).all()


def test_best_forecast_uses_nothing_after_its_origin():
    short, long = hourly_load(300, 2, seed=1), hourly_load(300, 2, seed=1)
    origin = np.array([200])
    long.weather[201:] += 5
    long.noise[201:] += 50
    long.frame.values[201:] += 500
    np.testing.assert_array_equal(short.best_forecast(origin, 24), long.best_forecast(origin, 24))


def test_floor_grows_with_the_horizon_up_to_the_stationary_variance():
    load = hourly_load(10)
    floors = np.stack([load.noise_floor(horizon)[0] for horizon in (1, 2, 24, 96, 10_000)])
    assert (np.diff(floors, axis=0) > 0).all()
    np.testing.assert_allclose(
        floors[0], load.response**2 * load.weather_shock**2 + load.noise_shock**2, rtol=1e-12
    )
    weather = load.weather_shock**2 / (1 - load.weather_memory**2)
    limit = load.response**2 * weather + load.noise_shock**2 / (1 - load.noise_memory**2)
    # the first steps of 10000 lie below the limit by about 1 / (1 - .94²) = 9 steps' worth, .1 %
    np.testing.assert_allclose(floors[-1], limit, rtol=2e-3)


def test_absolute_floor_is_averaged_after_the_root():
    load = hourly_load(10)
    (first, _), (both, mae) = load.noise_floor(1), load.noise_floor(2)
    second = 2 * both - first
    expected = (np.sqrt(2 * first / np.pi) + np.sqrt(2 * second / np.pi)) / 2
    np.testing.assert_allclose(mae, expected, rtol=1e-12)


def test_counts_out_of_range_are_refused():
    for options in ({"n_rows": 0}, {"n_series": 9}, {"n_series": 0}, {"seed": -1}):
        with pytest.raises(ConfigError):
            hourly_load(**{"n_rows": 10, **options})

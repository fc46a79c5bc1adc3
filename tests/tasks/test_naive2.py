"""Naive2 against the competition's own submission, a plain-Python writing of its rules, and series that break
them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.data.archives import SeriesCollection, read_m4_part
from ofa_jax.data.catalog.load import CATALOG, locate
from ofa_jax.tasks.naive2 import is_seasonal, naive2, seasonal_indices


@pytest.fixture(scope="module")
def submission(data_root) -> dict[str, np.ndarray]:
    """The competition's own Naive2 forecasts of all series, by id."""
    read = read_m4_part(locate(CATALOG["m4_weekly"], role="naive2"))
    return dict(zip(read.names, read.values, strict=True))


def training(data_root, part: str) -> SeriesCollection:
    # the catalog has the whole Quarterly file; a third of it is missing here, and what is there is the
    # competition's
    whole = {"Quarterly": "m4/Quarterly-train-partial14891.csv.gz"}.get(part)
    return read_m4_part(data_root / whole if whole else locate(CATALOG[f"m4_{part.lower()}"], role="train"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "season", "horizon", "series", "seasonal"),
    [
        ("Weekly", 1, 13, 359, 0),
        ("Quarterly", 4, 8, 14891, 11559),
        ("Yearly", 1, 6, 23000, 0),  # reading the file takes most of it
    ],
)
def test_the_competitions_own_forecasts(data_root, submission, part, season, horizon, series, seasonal):
    found = training(data_root, part)
    made = np.stack([naive2(values, season, horizon) for values in found.values])
    wanted = np.stack([submission[name] for name in found.names])
    assert made.shape == (series, horizon)
    np.testing.assert_allclose(
        made, wanted, rtol=1e-9
    )  # the file writes its numbers with ten significant digits
    assert (
        int((np.ptp(wanted, axis=1) > 0).sum())
        == seasonal
        == sum(is_seasonal(values, season) for values in found.values)
    )


def plain_naive2(series: list[float], season: int, horizon: int) -> list[float]:
    """The competition's rules, one number at a time."""
    n, mean = len(series), sum(series) / len(series)
    power = sum((v - mean) ** 2 for v in series)
    if season <= 1 or n < 3 * season or power == 0:
        return [series[-1]] * horizon
    correlation = [
        sum((series[i] - mean) * (series[i - lag] - mean) for i in range(lag, n)) / power
        for lag in range(1, season + 1)
    ]
    limit = 1.645 / math.sqrt(n) * math.sqrt(1 + 2 * sum(r * r for r in correlation[:-1]))
    if abs(correlation[-1]) <= limit:
        return [series[-1]] * horizon
    ratios: list[list[float]] = [[] for _ in range(season)]
    for i in range(season // 2, n - season // 2):
        if season % 2:
            window = series[i - season // 2 : i + season // 2 + 1]
        else:
            middle = series[i - season // 2 + 1 : i + season // 2]
            window = [series[i - season // 2] / 2, *middle, series[i + season // 2] / 2]
        ratios[i % season].append(series[i] / (sum(window) / season))
    raw = [sum(values) / len(values) for values in ratios]
    index = [value / (sum(raw) / season) for value in raw]
    return [series[-1] / index[(n - 1) % season] * index[(n + h) % season] for h in range(horizon)]


@settings(max_examples=150, deadline=None)
@given(
    season=st.integers(1, 7),
    cycles=st.integers(1, 6),
    rest=st.integers(0, 6),
    horizon=st.integers(1, 15),
    noise=st.sampled_from([0.01, 0.1, 0.5]),
    seed=st.integers(0, 999),
)
def test_naive2_against_plain_rules(season, cycles, rest, horizon, noise, seed):
    draw = np.random.default_rng(seed)
    length = season * cycles + rest % season
    pattern = draw.uniform(0.5, 1.5, season)
    series = (
        (100 + draw.uniform(-1, 1) * np.arange(length))
        * pattern[np.arange(length) % season]
        * draw.uniform(1 - noise, 1 + noise, length)
    )
    np.testing.assert_allclose(
        naive2(series, season, horizon), plain_naive2(series.tolist(), season, horizon), rtol=1e-9
    )
    if cycles > 1:
        assert seasonal_indices(series, season).mean() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("season", [3, 4])
def test_a_pure_season_is_found_and_continued(season):
    pattern = np.array([2.0, 5, 4, 9])[:season]
    for length in (4 * season, 5 * season + 1, 6 * season + 2):  # wherever in the cycle the series ends
        series = np.resize(pattern, length)
        np.testing.assert_allclose(seasonal_indices(series, season), pattern / pattern.mean(), rtol=1e-12)
        np.testing.assert_allclose(
            naive2(series, season, 10), np.resize(pattern, length + 10)[length:], rtol=1e-12
        )


def test_less_than_three_cycles_are_never_seasonal():
    pattern = np.array([1.0, 1, 9, 1])
    assert is_seasonal(np.resize(pattern, 12), 4)
    assert not is_seasonal(np.resize(pattern, 11), 4)
    assert naive2(np.resize(pattern, 11), 4, 3).tolist() == [9, 9, 9]


@pytest.mark.parametrize(
    "series",
    [
        [7.0],
        [7.0] * 40,
        [0.0] * 40,
        np.linspace(1, 2, 40),  # a trend without a season
    ],
    ids=["one step", "constant", "zeros", "trend"],
)
def test_series_without_a_season_repeat_their_last_value(series):
    series = np.array(series)
    assert naive2(series, 1, 3).tolist() == [series[-1]] * 3
    assert naive2(series, 12, 3).tolist() == [series[-1]] * 3


def test_a_constant_series_is_not_seasonal_however_its_mean_is_rounded():
    series = np.full(60, 0.1)
    assert series.mean() != 0.1  # so all steps lie on one side of it, and correlate
    assert not is_seasonal(series, 4)


@pytest.mark.parametrize(
    "pattern",
    [
        [0.0, 1, 2, 3],  # an index of 0 cannot be divided by
        [1.0, 2, 3, 0],
        [1.0, -1, 1, -1],  # a trend of 0: every ratio is infinite
        [-3.0, 1, 2, 5],  # an index below 0
        [0.0, 0, 0, 1e-200],  # its square is 0
    ],
    ids=str,
)
def test_indices_that_cannot_be_divided_by_are_no_season(pattern):
    series = np.resize(pattern, 40)
    for end in range(37, 41):
        assert naive2(series[:end], 4, 6).tolist() == [series[end - 1]] * 6


def test_a_stretch_of_zeros_tells_nothing_but_spoils_nothing():
    pattern = np.array([2.0, 5, 4, 9])
    series = np.concatenate([np.resize(pattern, 20), np.zeros(12), np.resize(pattern, 20)])
    assert is_seasonal(series, 4)
    forecast = naive2(series, 4, 8)
    assert (forecast > 0).all()
    assert np.argsort(forecast[:4]).tolist() == np.argsort(pattern).tolist()

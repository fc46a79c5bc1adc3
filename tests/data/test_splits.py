"""Split borders against the numbers of the published protocol, and the scaler against its definition."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.data.splits import borders, fit_scaler
from ofa_jax.errors import DataError


@pytest.mark.parametrize(
    ("n_rows", "rule", "input_length", "percent", "expected"),
    [
        (17420, "ett_hour", 336, 100, ((0, 8640), (8304, 11520), (11184, 14400))),
        (69680, "ett_minute", 512, 100, ((0, 34560), (34048, 46080), (45568, 57600))),
        (52696, "ratio", 512, 100, ((0, 36887), (36375, 42157), (41645, 52696))),
        (17420, "ett_hour", 336, 10, ((0, 1166), (8304, 11520), (11184, 14400))),
        (17420, "ett_hour", 336, 5, ((0, 751), (8304, 11520), (11184, 14400))),
        (52696, "ratio", 512, 5, ((0, 2330), (36375, 42157), (41645, 52696))),
        # 90 * 0.7 is a little less than 63 in floating point, and the benchmarks truncate it
        (90, "ratio", 10, 100, ((0, 62), (52, 72), (62, 90))),
    ],
)
def test_borders_are_the_published_ones(n_rows, rule, input_length, percent, expected):
    found = borders(n_rows, rule, input_length=input_length, percent=percent)
    assert tuple(found.items()) == tuple(zip(("train", "validation", "test"), expected, strict=True))


def test_etth1_has_the_published_number_of_windows():
    found = borders(17420, "ett_hour", input_length=336, horizon=96)
    windows = {part: stop - start - 336 - 96 + 1 for part, (start, stop) in found.items()}
    assert windows == {"train": 8209, "validation": 2785, "test": 2785}


def test_too_few_rows_are_refused():
    with pytest.raises(
        DataError, match=r"mine.csv: 100 row\(s\) are too few.*train part has 70 rows and windows need 432"
    ):
        borders(100, "ratio", input_length=336, horizon=96, source="mine.csv")
    with pytest.raises(DataError, match="needs 14400"):
        borders(14399, "ett_hour", input_length=336)
    with pytest.raises(DataError, match="needs 57600"):
        borders(17420, "ett_minute", input_length=336)


def test_every_part_needs_one_window_and_no_more():
    found = borders(11, "ratio", input_length=3, horizon=2)
    assert found == {"train": (0, 7), "validation": (4, 9), "test": (6, 11)}
    with pytest.raises(DataError, match="validation part has 4 rows and windows need 5"):
        borders(10, "ratio", input_length=3, horizon=2)


def test_an_ett_part_that_no_number_of_rows_can_lengthen():
    with pytest.raises(DataError, match=r"train part.*751 rows.*1056.*raise data\.percent"):
        borders(17420, "ett_hour", input_length=336, horizon=720, percent=5)
    with pytest.raises(DataError, match="validation part"):
        borders(17420, "ett_hour", input_length=336, horizon=3000)
    with pytest.raises(DataError, match="series: by the rule `ett_hour`, the train part"):
        borders(17420, "ett_hour", input_length=9000)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(5, 400),
    length=st.integers(1, 400),
    horizon=st.integers(0, 120),
    percent=st.sampled_from([100, 100, 50, 5]),
    rule=st.sampled_from(["ratio", "ratio", "ett_hour"]),
)
def test_the_sizes_that_the_error_names_fit(rows, length, horizon, percent, rule):
    rows, length, horizon = (number * (40 if rule == "ett_hour" else 1) for number in (rows, length, horizon))
    rows = max(rows, 14_400) if rule == "ett_hour" else rows
    asked = {"input_length": length, "horizon": horizon}
    options = {"rule": rule, "percent": percent}
    fix = ""
    try:
        borders(rows, **asked, **options)
    except DataError as error:
        fix = str(error.fix)
    named = {name: int(value) for name, value in re.findall(r"task\.(\w+) to (\d+)", fix)}
    if named:
        found = borders(rows, **{**asked, **named}, **options)
        assert all(named[name] < asked[name] for name in named)
        assert found["train"][1] >= sum({**asked, **named}.values())
    elif fix:
        assert "No input length and horizon fit" in fix
        with pytest.raises(DataError):
            borders(rows, input_length=1, horizon=min(horizon, 1), **options)


def test_144_months_get_sizes_that_fit():
    with pytest.raises(DataError, match=r"Set task\.input_length to 42 and task\.horizon to 16, or give"):
        borders(144, "ratio", input_length=336, horizon=96)


def test_scaler_standardizes_and_inverts():
    values = np.random.default_rng(0).normal(5.0, 3.0, (200, 3))
    scaler = fit_scaler(values, ("a", "b", "c"))
    scaled = scaler.transform(values)
    assert scaled.dtype == np.float32
    # float32 rounds each value by at most 2^-24 of it, 6e-8
    np.testing.assert_allclose(scaled.mean(axis=0, dtype=np.float64), 0, atol=1e-7)
    np.testing.assert_allclose(scaled.std(axis=0, ddof=0, dtype=np.float64), 1, rtol=1e-6)
    np.testing.assert_allclose(scaler.invert(scaled), values, rtol=1e-6, atol=1e-6)
    assert scaler.constant == ()


def test_values_that_cannot_be_scaled_are_refused():
    with pytest.raises(DataError, match="no rows"):
        fit_scaler(np.empty((0, 2)), ["a", "b"])
    for values in ([1e300, -1e300], [1e-200, 2e-200]):
        with pytest.raises(DataError, match="`a` is spread"):
            fit_scaler(np.array(values)[:, None], ["a"])


def test_a_nearly_constant_series_is_scaled_by_its_size_and_named():
    draw = np.random.default_rng(0)
    noise = np.where(draw.random(1000) < 0.5, 0.1 + 0.2, 0.3)  # which differ in the last bit
    fine = 1e6 + draw.normal(size=1000) * 1e-4
    usual = 1e6 + draw.normal(size=1000)  # a spread that float32 sees
    residue = draw.normal(size=1000) * 1e-17
    names = ("noise", "fine", "usual", "residue")
    values = np.stack([noise, fine, usual, residue], axis=1)
    later = np.array([[5.0, 0.0, 1e6, 1.0]])
    scaler = fit_scaler(values, names, later=later)
    assert (scaler.constant, scaler.nearly_constant) == ((), ("noise", "fine", "residue"))
    assert len(scaler.notices) == 1
    assert scaler.notices[0].endswith("subtract their level to use what varies: noise, fine, residue")
    scaled = scaler.transform(np.concatenate([values, later]))
    assert np.square(scaled[:, [0, 1, 3]]).max() <= 1
    assert scaled[:1000, 2].std() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(scaler.invert(scaled), np.concatenate([values, later]), atol=1e-1, rtol=1e-6)


def test_small_units_are_no_near_constancy():
    scaler = fit_scaler(np.random.default_rng(0).normal(size=(100, 1)) * 1e-12, ["a"])
    assert (scaler.nearly_constant, scaler.notices) == ((), [])


def test_a_constant_series_gets_std_1_and_is_named():
    # 0.1 has no exact mean: its sum over 1000 rows is not 100
    values = np.stack([np.full(1000, 0.1), np.arange(1000.0)], axis=1)
    scaler = fit_scaler(values, ["flat", "b"])
    assert scaler.constant == ("flat",)
    assert scaler.std[0] == 1
    np.testing.assert_array_equal(scaler.transform(values)[:, 0], 0)
    np.testing.assert_array_equal(scaler.transform(np.array([[2.1, 0.0]]))[0, 0], 2)

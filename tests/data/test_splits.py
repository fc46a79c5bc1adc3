"""Split borders against the numbers of the published protocol, and the scaler against its definition."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ofa_jax.data.splits import Scaler, borders, fit_scaler
from ofa_jax.errors import ConfigError, DataError


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


def test_too_few_rows_say_how_many_are_needed():
    with pytest.raises(DataError, match=r"mine.csv: 100 row\(s\) are too few.*need 951"):
        borders(100, "ratio", input_length=336, horizon=96, source="mine.csv")
    with pytest.raises(DataError, match="needs 14400"):
        borders(14399, "ett_hour", input_length=336)
    with pytest.raises(DataError, match="needs 57600"):
        borders(17420, "ett_minute", input_length=336)


def test_an_ett_part_that_no_number_of_rows_can_lengthen():
    with pytest.raises(
        DataError, match=r"train part.*751 rows.*1056.*more rows would not help.*larger percent"
    ):
        borders(17420, "ett_hour", input_length=336, horizon=720, percent=5)
    with pytest.raises(DataError, match="validation part"):
        borders(17420, "ett_hour", input_length=336, horizon=3000)
    with pytest.raises(DataError, match="part of the rule"):
        borders(17420, "ett_hour", input_length=9000)


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 100), st.integers(0, 300))
@example(5, 8, 100, 6)  # 64 rows would do, but 70 would not: truncation takes a validation row away
@settings(max_examples=200, deadline=None)
def test_the_number_of_rows_asked_for_suffices_and_is_the_least(input_length, horizon, percent, more):
    options = {"input_length": input_length, "horizon": horizon, "percent": percent}
    with pytest.raises(DataError) as caught:
        borders(1, "ratio", **options)
    needed = int(str(caught.value).split(" need ")[1].split(".")[0])
    found = borders(needed + more, "ratio", **options)
    assert all(
        start >= 0 and stop <= needed + more and stop - start >= input_length + horizon
        for start, stop in found.values()
    )
    with pytest.raises(DataError, match="too few"):
        borders(needed - 1, "ratio", **options)


@pytest.mark.parametrize(
    "options", [{"percent": 0}, {"percent": 101}, {"ratios": (0.7, 0.2, 0.2)}, {"ratios": (1.0, 0.0, 0.0)}]
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        borders(1000, "ratio", input_length=10, **options)


def test_scaler_standardises_and_inverts():
    values = np.random.default_rng(0).normal(5.0, 3.0, (200, 3))
    scaler = fit_scaler(values, ("a", "b", "c"))
    scaled = scaler.transform(values)
    assert scaled.dtype == np.float32
    # float32 rounds each value by at most 2^-24 of it, 6e-8
    np.testing.assert_allclose(scaled.mean(axis=0, dtype=np.float64), 0, atol=1e-7)
    np.testing.assert_allclose(scaled.std(axis=0, ddof=0, dtype=np.float64), 1, rtol=1e-6)
    np.testing.assert_allclose(scaler.invert(scaled), values, rtol=1e-6, atol=1e-6)
    assert scaler.constant == ()


def test_a_constant_series_gets_std_1_and_is_named():
    # 0.1 has no exact mean: its sum over 1000 rows is not 100
    values = np.stack([np.full(1000, 0.1), np.arange(1000.0)], axis=1)
    scaler = fit_scaler(values, ["flat", "b"])
    assert scaler.constant == ("flat",)
    assert scaler.std[0] == 1
    np.testing.assert_array_equal(scaler.transform(values)[:, 0], 0)
    np.testing.assert_array_equal(scaler.transform(np.array([[2.1, 0.0]]))[0, 0], 2)


def test_scaler_survives_json_exactly():
    scaler = fit_scaler(
        np.random.default_rng(1).normal(size=(50, 4)) * [1e-5, 1, 1e8, 0], ["a", "b", "c", "d"]
    )
    back = Scaler.from_dict(json.loads(json.dumps(scaler.to_dict())))
    np.testing.assert_array_equal(back.mean, scaler.mean)
    np.testing.assert_array_equal(back.std, scaler.std)
    assert (back.names, back.constant) == (scaler.names, scaler.constant) == (("a", "b", "c", "d"), ("d",))


def test_scalers_that_make_no_sense_are_refused():
    good = fit_scaler(np.arange(6.0).reshape(3, 2), ["a", "b"]).to_dict()
    for change in ({"mean": [1.0]}, {"std": [1.0, 0.0]}, {"std": [1.0, None]}, {"names": ["a"]}):
        with pytest.raises(DataError, match="stored scaler"):
            Scaler.from_dict({**good, **change})
    with pytest.raises(DataError, match="stored scaler"):
        Scaler.from_dict({})
    with pytest.raises(DataError, match="no rows"):
        fit_scaler(np.empty((0, 2)), ["a", "b"])
    for values in ([1e300, -1e300], [1e-200, 2e-200]):
        with pytest.raises(DataError, match="`a` is spread"):
            fit_scaler(np.array(values)[:, None], ["a"])
    with pytest.raises(DataError, match="`b` has values"):
        Scaler.from_dict(good).transform(np.array([[0.0, 1e300]]))

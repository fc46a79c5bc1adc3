"""OneForAllImputer: right values, frames that stay as they are, both methods, folders, wrong inputs."""

from __future__ import annotations

import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pandas as pd
import polars as pl
import pytest

from ofa_jax import OfaError, OneForAllImputer, load_bundle, predict
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.estimators import gaps
from ofa_jax.estimators.engine import Forecast
from ofa_jax.estimators.imputer import hide_gaps
from ofa_jax.estimators.panel import Columns
from ofa_jax.estimators.reading import read_panel
from ofa_jax.windows.batch import Batch
from tests.estimators.conftest import long_frame

METHODS = ("forecast", pytest.param("reconstruction", marks=pytest.mark.slow))


def settings(small, method="forecast", **changes):
    return {"trunk": small, "method": method, "epochs": 2, "rank": 4, "learning_rate": 1e-2} | changes


def frame_with_gaps():
    frame = long_frame((90, 60, 120))
    frame.loc[[0, 1, 30, 31, 32, 89, 100, 200], "y"] = np.nan
    return frame


@pytest.fixture(scope="module", params=METHODS)
def fitted(small, request):
    return OneForAllImputer(**settings(small, request.param)).fit(frame_with_gaps())


def cycle(model, inputs_wt):
    """Forecasts that repeat the last twelve steps."""
    mean = np.tile(inputs_wt[:, -12:], 2)[:, :16]
    return Forecast(mean[..., None], mean)


def waves():
    """Two series that repeat every twelve steps, with gaps within, at the ends, of one step and of many."""
    values = [scale * np.sin(2 * np.pi * np.arange(120) / 12 + 0.3) for scale in (1.0, 1e4)]
    complete = pd.DataFrame(
        {"ds": pd.date_range("2024", periods=120, freq="h"), "a": values[0], "b": values[1]}
    )
    gappy = complete.copy()
    for name, first, last in (("a", 0, 4), ("a", 40, 40), ("a", 60, 75), ("b", 50, 60), ("b", 110, 119)):
        gappy.loc[first:last, name] = np.nan
    return complete, gappy


def test_weights_of_perfect_forecasts_are_1_and_gaps_are_filled_exactly(small):
    complete, gappy = waves()
    with mock.patch.object(gaps, "forecast_windows", cycle):
        model = OneForAllImputer(trunk=small).fit(complete)
        found = model.transform(gappy)
    assert model.weights_ == pytest.approx([1] * 6)
    pd.testing.assert_frame_equal(found, complete, rtol=1e-9)


@pytest.mark.slow
def test_forecasts_that_do_not_help_leave_a_straight_line(small):
    complete, gappy = waves()

    def noise(model, inputs_wt):
        mean = np.random.default_rng(0).normal(0, 1e3, (len(inputs_wt), 16))
        return Forecast(mean[..., None], mean)

    with mock.patch.object(gaps, "forecast_windows", noise):
        model = OneForAllImputer(trunk=small).fit(complete[["ds", "a"]])
    assert model.weights_ == [0] * 6
    found = model.transform(gappy[["ds", "a"]]).a
    assert found[40] == pytest.approx((complete.a[39] + complete.a[41]) / 2)
    np.testing.assert_allclose(found[60:76], np.linspace(found[59], found[76], 18)[1:-1])


def test_a_step_is_nearer_to_the_forecast_from_the_nearer_end():
    frame = pd.DataFrame({"ds": np.arange(40), "y": np.r_[np.zeros(15), np.full(3, np.nan), np.ones(22)]})
    panel = read_panel(frame, Columns())
    assert [column.tolist() for column in gaps.find_gaps(panel)] == [[0], [15], [18]]

    def last(model, inputs_wt):
        mean = np.repeat(10 + inputs_wt[:, -1:], 16, axis=1)
        return Forecast(mean[..., None], mean)

    network = mock.Mock(input_length=8, horizon=16)
    with mock.patch.object(gaps, "forecast_windows", last):
        found = gaps.fill_gaps(mock.Mock(network=network), panel, [0.5] * 6)
    np.testing.assert_allclose(found[15:18], np.array([0.25, 0.5, 0.75]) + 5)


def test_the_frame_stays_as_it_was_but_for_the_gaps(fitted):
    frame = frame_with_gaps().sample(frac=1, random_state=1)
    frame["y"] = frame.y.astype(np.float32)
    frame["unique_id"] = frame.unique_id.astype("category")
    before = frame.copy()
    found, mask = fitted.transform(frame, return_mask=True)
    pd.testing.assert_frame_equal(frame, before)  # the input is not written to
    assert found.dtypes.equals(frame.dtypes)
    assert found.index.equals(frame.index)
    assert np.isfinite(found.y).all()
    np.testing.assert_array_equal(mask, frame.y.isna())
    np.testing.assert_array_equal(found.y.to_numpy()[~mask], frame.y.to_numpy()[~mask])
    pd.testing.assert_frame_equal(found.drop(columns="y"), frame.drop(columns="y"))
    again = fitted.transform(frame.sort_index())
    pd.testing.assert_frame_equal(again, found.sort_index())


def test_polars_wide_frames_and_whole_numbers(fitted):
    frame = frame_with_gaps()
    wanted = fitted.transform(frame)
    polars = pl.from_pandas(frame)
    found, mask = fitted.transform(polars, return_mask=True)
    assert found.schema == polars.schema
    np.testing.assert_array_equal(found["y"].to_numpy(), wanted.y)
    np.testing.assert_array_equal(mask, frame.y.isna())
    wide = pd.DataFrame({"b": frame.y[:60], "whole": frame.y[150:210].round().to_numpy()})
    wide = wide.set_index(pd.date_range("2024-03-01", periods=60, freq="h", name="ds"))
    wide = wide.astype({"whole": "Int64"})
    found, mask = fitted.transform(wide, return_mask=True)
    assert found.dtypes.equals(wide.dtypes)
    assert found.index.equals(wide.index)
    assert mask.shape == (60, 2)
    np.testing.assert_array_equal(mask, wide.isna())
    assert not found.isna().any(axis=None)
    kept = ~mask[:, 1]
    assert found.whole[kept].tolist() == wide.whole[kept].tolist()
    integers = pl.DataFrame(
        {"ds": range(60), "y": [*range(2**60, 2**60 + 30), None, *range(2**60 + 31, 2**60 + 60)]}
    )
    found = fitted.transform(integers)
    assert found.schema == integers.schema
    assert found["y"].drop_nulls().len() == 60
    assert found["y"].to_list()[:30] == integers["y"].to_list()[:30]  # float64 would round them


def test_without_gaps_nothing_changes(fitted):
    frame = long_frame((70,))
    found, mask = fitted.transform(frame, return_mask=True)
    pd.testing.assert_frame_equal(found, frame)
    assert not mask.any()


def test_units_do_not_matter(fitted):
    frame = frame_with_gaps()
    wanted = fitted.transform(frame).y
    found = fitted.transform(frame.assign(y=1000 * frame.y - 7)).y
    np.testing.assert_allclose(found, 1000 * wanted - 7, rtol=1e-4)  # the network computes in float32


@pytest.mark.slow
def test_points_and_runs_are_hidden():
    mask = np.ones((400, 20, 1), bool)
    mask[:, :2] = False
    x = mask.astype(np.float32)
    batch = Batch(x, None, mask, None, np.ones(400), np.arange(400))
    made = hide_gaps(batch, jax.random.split(jax.random.key(0), 400), rate=0.25)
    hidden = np.asarray(made.y_mask)[..., 0]
    assert not hidden[:, :2].any()
    np.testing.assert_array_equal(made.x_mask[..., 0], mask[..., 0] & ~hidden)
    np.testing.assert_array_equal(made.x[..., 0] == 0, hidden | ~mask[..., 0])
    np.testing.assert_array_equal(made.y, x)
    texts = ["".join("01"[int(one)] for one in row) for row in hidden]
    longest = np.array([max(map(len, text.split("0"))) for text in texts])
    assert (longest >= 7).mean() == pytest.approx(0.22, abs=0.08)  # half of the windows, four of ten lengths
    assert longest.max() <= 16


_AGAIN = """
import sys, numpy as np, pandas as pd
from ofa_jax import OneForAllImputer
model = OneForAllImputer.load(sys.argv[1], trunk=sys.argv[2])
np.save(sys.argv[4], model.transform(pd.read_parquet(sys.argv[3])).y.to_numpy())
"""


@pytest.mark.slow
def test_a_saved_imputer_gives_the_same_bits_in_another_process(fitted, small, tmp_path):
    frame = frame_with_gaps()
    fitted.save(tmp_path / "model")
    frame.to_parquet(tmp_path / "data.parquet")
    names = ("model", None, "data.parquet", "out.npy")
    arguments = [str(tmp_path / name) if name else small for name in names]
    subprocess.run([sys.executable, "-c", _AGAIN, *arguments], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), fitted.transform(frame).y)
    bundle = load_bundle(tmp_path / "model" / "bundle", trunk=small)
    if fitted.method == "reconstruction":
        with pytest.raises(DataError, match=r"has no scaler.*by its class"):
            predict(bundle, frame[:90][["ds", "y"]])
    with pytest.raises(ConfigError, match="is there"):
        fitted.save(tmp_path / "model")


def test_wrong_calls_are_one_error_each(small):
    frame = frame_with_gaps()

    def make(**changes):
        return OneForAllImputer(**settings(small, **changes))

    fitted = make().fit(frame)
    words = frame.assign(y=frame.y.astype(object))
    made = {
        "imputer was not fitted": lambda: make().transform(frame),
        "has missing values and is of type Object": lambda: fitted.transform(words),
        "series 'b' has no value": lambda: fitted.transform(frame.assign(y=np.nan)),
        "`price`": lambda: fitted.transform(frame.assign(price=1)),
        "follows": lambda: fitted.transform(frame.drop(index=5)),
        "the value inf": lambda: fitted.transform(frame.assign(y=np.inf)),
        "no series that varies has 18 steps, the longest of all has 12": lambda: make().fit(frame[:12]),
        "mask_rate is 1": lambda: make(mask_rate=1).fit(frame),
        "method is None": lambda: make(method=None).fit(frame),
        "input_length is 1, ": lambda: make(method="reconstruction", input_length=1).fit(frame),
        "gpt2 was not pretrained": lambda: make(trunk="gpt2").fit(frame),
        "columns have one name": lambda: make(time_col="y").fit(frame),
    }
    for text, call in made.items():
        with pytest.raises(OfaError, match=text):
            call()

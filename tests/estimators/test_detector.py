"""OneForAllAnomalyDetector: scores and verdicts for both methods, frames, folders, wrong inputs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ofa_jax import OfaError, OneForAllAnomalyDetector, load_bundle, predict
from ofa_jax.errors import CheckpointError, ConfigError, DataError
from ofa_jax.estimators.base import NotFittedError
from ofa_jax.estimators.detector import reconstruct
from ofa_jax.estimators.panel import Columns
from ofa_jax.estimators.reading import read_panel
from ofa_jax.estimators.steps import OVERLAP, Steps, spread_of
from tests.estimators.conftest import long_frame

METHODS = ("forecast", pytest.param("reconstruction", marks=pytest.mark.slow))
UNREAD = 24  # hours that forecasts begin after: two horizons of 12 by the season of a month


def settings(small, method="forecast", **changes):
    return {"trunk": small, "method": method, "epochs": 2, "rank": 4, "learning_rate": 1e-2} | changes


def frames():
    """Monthly waves to fit, and the same with three values that are far away."""
    frame = long_frame((120, 90), freq="MS")
    spoiled = frame.copy()
    for row in (60, 100, 190):
        spoiled.loc[row, "y"] *= 2
    return frame, spoiled


@pytest.fixture(scope="module", params=METHODS)
def fitted(small, request):
    return OneForAllAnomalyDetector(**settings(small, request.param)).fit(frames()[0])


def test_far_values_have_the_highest_scores(fitted):
    found = fitted.predict(frames()[1])
    assert list(found) == ["unique_id", "ds", "score", "anomaly", "expected"]
    most = 3 if fitted.method == "forecast" else 12  # a far value spoils what is reconstructed next to it
    assert set(found.score.fillna(0).to_numpy().argsort()[-most:]) >= {60, 100, 190}
    assert found.anomaly[[60, 100, 190]].all()
    assert found.anomaly.dtype == bool
    np.testing.assert_array_equal(found.anomaly, found.score > fitted.threshold_)


def test_scores_are_squared_distances_and_the_threshold_is_their_percentile(fitted):
    frame = frames()[0]
    found = fitted.predict(frame)
    std = frame.groupby("unique_id", sort=False).y.transform(lambda values: values.std(ddof=0))
    np.testing.assert_allclose(found.score, ((frame.y - found.expected) / std) ** 2, rtol=1e-9)
    assert fitted.threshold_ == pytest.approx(np.nanpercentile(found.score, 99), rel=1e-6)
    unread = UNREAD if fitted.method == "forecast" else 0
    assert found.score.isna().to_numpy().nonzero()[0].tolist() == [*range(unread), *range(120, 120 + unread)]
    np.testing.assert_array_equal(fitted.decision_function(frame), found.score)


def test_a_reconstruction_is_the_mean_of_the_windows_that_cover_a_step(small):
    panel = read_panel(long_frame((23, 6)), Columns())
    steps = Steps(panel, spread_of(panel))

    class Identity:
        def apply(self, task, table):  # the number of the window at every step
            covered.append(table)
            return {"prediction": np.repeat(np.arange(table.size), 10).reshape(-1, 10, 1)}

    covered: list = []
    found = (steps.mean(Identity(), 10) - steps.scaler.mean[panel.series]) / steps.scaler.std[panel.series]
    assert covered[0].first.tolist() == [0, 2, 4, 6, 8, 10, 12, 13, 23]
    assert covered[0].x_valid.tolist() == [10] * 8 + [6]
    np.testing.assert_allclose(found[[0, 2, 9, 22, 23, 28]], [0, 0.5, 2, 7, 8, 8], atol=1e-9)
    assert OVERLAP == 4


def test_training_windows_end_before_those_that_validate():
    panel = read_panel(long_frame((50, 12, 9)), Columns())
    tables = Steps(panel, spread_of(panel)).training(10, 0.2, reconstruct, 0).tables
    begin, end = (tables["train"].first, tables["train"].first + tables["train"].x_valid)
    assert sorted(end) == [*range(10, 41), 60]  # 40 of 50 and 10 of 12 steps; 7 of 9 are too few
    assert ((tables["validation"].first >= 40) & (tables["validation"].first < 62)).all()
    assert (begin >= 0).all()


def test_libraries_order_and_wide_frames_do_not_matter(fitted):
    _, frame = frames()
    wanted = fitted.predict(frame)
    turned = frame.sample(frac=1, random_state=0)
    found = fitted.predict(turned)
    assert found.ds.tolist() == turned.ds.tolist()
    pd.testing.assert_frame_equal(found, wanted.loc[turned.index].reset_index(drop=True))
    polars = fitted.predict(pl.from_pandas(frame))
    assert isinstance(polars, pl.DataFrame)
    assert polars.schema["anomaly"] == pl.Boolean
    np.testing.assert_array_equal(polars["score"].to_numpy(), wanted.score)
    wide = frame[:90].assign(b=frame.y[:90], a=frame.y[120:210].to_numpy())[["ds", "b", "a"]]
    found = fitted.predict(wide)
    assert found.unique_id.tolist() == ["b"] * 90 + ["a"] * 90
    np.testing.assert_allclose(found.score[90:], wanted.score[120:], rtol=1e-4)


def test_missing_values_have_no_score_and_are_expected_anyway(fitted):
    frame, _ = frames()
    frame.loc[[50, 51, 150], "y"] = np.nan
    found = fitted.predict(frame)
    assert found.score[[50, 51, 150]].isna().all()
    assert not found.anomaly[[50, 51, 150]].any()
    assert found.expected[[50, 51, 150]].notna().all()
    assert found.score[52:120].notna().all()


@pytest.mark.slow
def test_a_constant_series_is_scored_by_its_size(small):
    frame, _ = frames()
    frame.loc[frame.unique_id == "a", "y"] = 50.0
    model = OneForAllAnomalyDetector(**settings(small, "reconstruction", epochs=1)).fit(frame)
    found = model.predict(frame)
    assert (found.score[120:] < 1e-3).all()
    frame.loc[180, "y"] = 100.0
    assert model.predict(frame).score[180] == pytest.approx(1, rel=0.9)


_AGAIN = """
import sys, numpy as np, pandas as pd
from ofa_jax import OneForAllAnomalyDetector
model = OneForAllAnomalyDetector.load(sys.argv[1], trunk=sys.argv[2])
found = model.predict(pd.read_parquet(sys.argv[3]))
np.save(sys.argv[4], found[["score", "anomaly", "expected"]].to_numpy(float))
"""


@pytest.mark.slow
def test_a_saved_detector_gives_the_same_bits_in_another_process(fitted, small, tmp_path):
    fitted.save(tmp_path / "model")
    frames()[1].to_parquet(tmp_path / "data.parquet")
    names = ("model", None, "data.parquet", "out.npy")
    arguments = [str(tmp_path / name) if name else small for name in names]
    subprocess.run([sys.executable, "-c", _AGAIN, *arguments], check=True)
    wanted = fitted.predict(frames()[1])[["score", "anomaly", "expected"]].to_numpy(float)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)
    with pytest.raises(CheckpointError, match="trunk is in a folder"):
        OneForAllAnomalyDetector.load(tmp_path / "model")
    loaded = OneForAllAnomalyDetector.load(tmp_path / "model", trunk=small)
    assert loaded.get_params() == fitted.get_params()
    assert loaded.threshold_ == fitted.threshold_
    if fitted.method == "reconstruction":
        wide = frames()[0][:90].assign(a=1.0)[["ds", "y", "a"]]
        with pytest.raises(DataError, match=r"has 2 channels, the network reads 1\..*by its class"):
            predict(load_bundle(tmp_path / "model" / "bundle", trunk=small), wide)


def test_wrong_calls_are_one_error_each(small, tmp_path):
    frame, _ = frames()

    def make(**changes):
        return OneForAllAnomalyDetector(**settings(small, **changes))

    fitted = make(epochs=1).fit(frame)
    other = frame.assign(unique_id=frame.unique_id.replace("a", "z"))
    made = {
        "anomaly detector was not fitted": lambda: make().predict(frame),
        "series 'z' was not among those of fit": lambda: fitted.predict(other),
        "the first 24 steps of a series are only read, and the longest has 20": lambda: fitted.predict(
            frame[:20]
        ),
        r"no series has .* Give longer series\.$": lambda: make().fit(frame[:30]),
        "the longest series has 6 steps": lambda: make(method="reconstruction").fit(frame[:6]),
        "method is 'magic'": lambda: make(method="magic").fit(frame),
        "gpt2 was not pretrained on series.*set method='reconstruction'": lambda: make(trunk="gpt2").fit(
            frame
        ),
        "contamination is 0": lambda: make(contamination=0).fit(frame),
        "contamination is True": lambda: make(contamination=True).fit(frame),
        "input_length is 11, and .* 2 to 10 steps": lambda: make(
            method="reconstruction", input_length=11
        ).fit(frame),
        "input_length is 65, and .* 64": lambda: make(input_length=65).fit(frame),
        "seed is -1": lambda: make(seed=-1).fit(frame),
        "train.epochs": lambda: make(epochs=0).fit(frame),
        "columns have one name: .*`score`": lambda: make(time_col="score").fit(frame),
        "the data are a str": lambda: fitted.predict("file.csv"),
        "no saved anomaly detector": lambda: fitted.save(tmp_path),
    }
    for text, call in made.items():
        with pytest.raises(OfaError, match=text):
            call()
    with pytest.raises(NotFittedError):
        _ = make().threshold_
    with pytest.raises(ConfigError, match="'depth' is no parameter"):
        make().set_params(depth=1)

"""OneForAllForecaster: results as frames, zero-shot and fitted, intervals, windows, folders, wrong inputs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ofa_jax import OfaError, OneForAllForecaster, PredictionIntervals, forecast, load_bundle, predict
from ofa_jax.errors import CheckpointError, ConfigError, DataError
from ofa_jax.estimators.base import NotFittedError
from tests.estimators.conftest import long_frame


def settings(small, **changes):
    return {"horizon": 6, "trunk": small, "epochs": 2, "learning_rate": 1e-2, "rank": 4} | changes


@pytest.fixture(scope="module")
def fitted(small):
    model = OneForAllForecaster(**settings(small))
    return model.fit(long_frame(), prediction_intervals=PredictionIntervals(n_windows=3))


@pytest.mark.slow
def test_it_forecasts_what_the_function_for_wide_tables_does(small):
    frame = long_frame((70, 70))
    found = OneForAllForecaster(6, trunk=small).predict(frame)
    wide = frame.pivot(index="ds", columns="unique_id", values="y")[["b", "a"]].reset_index()
    wanted = forecast(wide, 6, trunk=small)
    np.testing.assert_allclose(found.OneForAll, wanted[["b", "a"]].to_numpy().ravel("F"), rtol=1e-5)
    assert found.ds.tolist() == wanted.ds.tolist() * 2


def test_columns_are_those_that_utilsforecast_expects(fitted):
    found = fitted.predict(level=[80, 62.5], quantiles=[0.9, 0.1])
    assert list(found) == [
        *("unique_id", "ds", "OneForAll", "OneForAll-lo-80", "OneForAll-lo-62.5"),
        *("OneForAll-hi-62.5", "OneForAll-hi-80", "OneForAll_ql0.1", "OneForAll_ql0.9"),
    ]
    assert found.unique_id.tolist() == ["b"] * 6 + ["a"] * 6 + ["c"] * 6
    np.testing.assert_array_equal(found["OneForAll-lo-80"], found["OneForAll_ql0.1"])
    assert (found["OneForAll-lo-80"] <= found["OneForAll-lo-62.5"]).all()
    assert (found["OneForAll-hi-80"] >= found["OneForAll-hi-62.5"]).all()


def test_company_order_and_library_do_not_matter(small):
    model, frame = OneForAllForecaster(6, trunk=small), long_frame()
    together = model.predict(frame, level=80)
    alone = pd.concat([model.predict(frame[frame.unique_id == name], level=80) for name in "bac"])
    numbers = [name for name in together if name.startswith("OneForAll")]
    np.testing.assert_allclose(together[numbers], alone[numbers], rtol=1e-5)
    again = model.predict(pl.from_pandas(frame), level=80)
    assert again.to_pandas()[numbers].equals(together[numbers])
    turned = pd.concat([frame[frame.unique_id == name] for name in "cab"])
    turned = model.predict(turned, level=80).set_index(["unique_id", "ds"])
    assert turned.loc[pd.MultiIndex.from_frame(together[["unique_id", "ds"]])].reset_index().equals(together)


@pytest.mark.parametrize(("scale", "shift"), [(1e-12, 0), (1e12, 0), (1, 1e9), (1e-3, -50)])
def test_forecasts_follow_the_unit_and_the_level_of_a_series(fitted, scale, shift):
    frame = long_frame()
    wanted = fitted.predict(frame, level=90)
    moved = fitted.predict(frame.assign(y=scale * frame.y + shift), level=90)
    for name in list(wanted)[2:]:
        by_series = wanted[name].to_numpy().reshape(3, -1), moved[name].to_numpy().reshape(3, -1)
        for own, (before, after) in zip("bac", zip(*by_series, strict=True), strict=True):
            size = frame.y[frame.unique_id == own].std()
            np.testing.assert_allclose((after - shift) / scale, before, atol=2e-3 * size)


@pytest.mark.slow
def test_a_constant_goes_on_and_missing_values_are_no_values(small):
    model = OneForAllForecaster(4, trunk=small)
    constant = pd.DataFrame({"ds": pd.date_range("2024", periods=9), "y": 1234.5})
    assert (model.predict(constant, level=90).iloc[:, 2:] == 1234.5).all(axis=None)
    frame = long_frame((60,))
    frame.loc[[3, 30, 58], "y"] = np.nan
    found = model.predict(frame)
    assert np.isfinite(found.OneForAll).all()
    filled = model.predict(frame.assign(y=frame.y.fillna(1e6)))
    assert (np.abs(found.OneForAll - filled.OneForAll) > 1).all()


@pytest.mark.slow
def test_a_series_without_a_value_where_it_is_read_is_refused_or_not_scored(small):
    frame = long_frame((100, 40))
    frame.loc[20:99, "y"] = np.nan
    model = OneForAllForecaster(4, trunk=small)
    with pytest.raises(DataError, match="'b' has no value in the last steps that are read"):
        model.predict(frame)
    assert set(model.cross_validation(frame).unique_id) == {"a"}
    alone = model.score(frame[frame.unique_id == "a"])
    assert model.score(frame) == pytest.approx(alone, rel=1e-6)  # in batches of other sizes


@pytest.mark.slow
def test_fit_starts_at_zero_shot_and_keeps_it_where_no_epoch_is_better(small):
    frame = long_frame()
    absurd = OneForAllForecaster(**settings(small, solver="gradient", learning_rate=1e5)).fit(frame)
    assert absurd.fitted_.best_epoch == 0
    pd.testing.assert_frame_equal(absurd.predict(), OneForAllForecaster(6, trunk=small).predict(frame))


def test_fit_learns_what_the_trunk_does_not_know(fitted, small):
    assert fitted.fitted_.best_epoch > 0
    later = long_frame(seed=3)
    assert fitted.score(later) < OneForAllForecaster(6, trunk=small).score(later)


def test_it_reads_only_the_end_of_series_and_needs_no_frame_after_fit(fitted):
    frame = long_frame()
    pd.testing.assert_frame_equal(fitted.predict(), fitted.predict(frame))
    pd.testing.assert_frame_equal(
        fitted.predict(h=2),
        fitted.predict(frame).groupby("unique_id", sort=False).head(2).reset_index(drop=True),
    )
    pd.testing.assert_frame_equal(fitted.make_future_dataframe(), fitted.predict()[["unique_id", "ds"]])
    assert fitted.panel_.lengths.max() == 64


def test_windows_of_cross_validation_see_nothing_after_their_cutoff(small):
    model, frame = OneForAllForecaster(6, trunk=small), long_frame()
    found = model.cross_validation(frame, n_windows=3, step_size=4, level=80)
    assert list(found)[:5] == ["unique_id", "ds", "cutoff", "y", "OneForAll"]
    assert len(found) == 3 * 3 * 6
    assert found.unique_id.tolist() == ["b"] * 18 + ["a"] * 18 + ["c"] * 18
    for (name, cutoff), window in found.groupby(["unique_id", "cutoff"]):
        own = frame[frame.unique_id == name]
        wanted = model.predict(own[own.ds <= cutoff], level=80)
        np.testing.assert_allclose(window.iloc[:, 4:], wanted.iloc[:, 2:], rtol=1e-5)
        assert window.ds.tolist() == wanted.ds.tolist()
        np.testing.assert_array_equal(window.y, own.set_index("ds").y[window.ds])
    cutoffs = sorted(set(found.cutoff[found.unique_id == "a"]))
    assert cutoffs == [frame.ds[90 + 40 - 7 - back] for back in (8, 4, 0)]
    short = model.cross_validation(long_frame((40, 8)), n_windows=2)
    assert short.groupby("unique_id").size().to_dict() == {"a": 6, "b": 12}


@pytest.mark.slow
def test_cross_validation_with_refit_fits_on_what_precedes_each_window(small):
    frame = long_frame((60, 60))
    model = OneForAllForecaster(**settings(small, epochs=1))
    found = model.cross_validation(frame, n_windows=2, refit=True)
    cutoff = found.cutoff.min()
    own = OneForAllForecaster(**model.get_params()).fit(frame[frame.ds <= cutoff])
    np.testing.assert_allclose(found.OneForAll[found.cutoff == cutoff], own.predict().OneForAll, rtol=1e-6)


def test_scores_by_hand(small):
    model, frame = OneForAllForecaster(6, trunk=small), long_frame((60, 40))
    parts = [frame[frame.unique_id == name].reset_index(drop=True) for name in "ba"]
    made = np.split(model.predict(pd.concat([part[:-6] for part in parts])).OneForAll.to_numpy(), 2)
    errors = [np.abs(one - part.y[-6:]) for one, part in zip(made, parts, strict=True)]
    assert model.score(frame, "mae") == pytest.approx(np.mean([error.mean() for error in errors]), rel=1e-5)
    scales = [np.abs(part.y[24:-6].to_numpy() - part.y[:-30].to_numpy()).mean() for part in parts]
    mase = np.mean([error.mean() / scale for error, scale in zip(errors, scales, strict=True)])
    assert model.score(frame) == pytest.approx(mase, rel=1e-5)


def test_calibrated_intervals_cover_and_say_what_they_lack(small):
    frame = long_frame((200,) * 12, seed=1)
    before = frame[frame.groupby("unique_id").cumcount() < 194]
    model = OneForAllForecaster(6, trunk=small).calibrate(before, PredictionIntervals(n_windows=8))
    found = model.predict(before, level=[80, 90])
    actual = frame[frame.groupby("unique_id").cumcount() >= 194].y.to_numpy()
    for level in (80, 90):
        inside = (found[f"OneForAll-lo-{level}"] <= actual) & (actual <= found[f"OneForAll-hi-{level}"])
        assert inside.mean() == pytest.approx(level / 100, abs=0.12)
    with pytest.raises(DataError, match=r"99 % intervals need 99 held-out windows, and there are 96"):
        model.predict(before, level=99)


def test_no_series_has_more_windows_than_fit(small):
    frame = long_frame((60, 40))
    many = PredictionIntervals(n_windows=10**12)
    model = OneForAllForecaster(6, trunk=small).calibrate(frame, many)
    assert model.calibration_.errors.shape == (10, 2, 6)


@pytest.mark.slow
def test_a_fit_whose_calibration_fails_changes_nothing(fitted, small, monkeypatch):
    before = fitted.predict(level=50)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(OneForAllForecaster, "_calibrated", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(long_frame((90, 90)), prediction_intervals=PredictionIntervals())
    monkeypatch.undo()
    pd.testing.assert_frame_equal(fitted.predict(level=50), before)


@pytest.mark.slow
def test_a_few_series_have_enough_windows_by_themselves(small):
    frame = long_frame((120, 120))
    model = OneForAllForecaster(5, trunk=small).calibrate(frame)
    assert model.calibration_.errors.shape == (16, 2, 5)  # as the last two thirds have
    assert np.isfinite(model.predict(frame, level=95)["OneForAll-lo-95"]).all()
    short = OneForAllForecaster(5, trunk=small).calibrate(frame[:40])
    assert short.calibration_.errors.shape == (5, 1, 5)
    long = OneForAllForecaster(5, trunk=small).calibrate(long_frame((400,)))
    assert long.calibration_.errors.shape == (20, 1, 5)
    assert {*np.sign(long.calibration_.errors).ravel()} == {-1, 1}  # of values below and above the median


_AGAIN = """
import sys, numpy as np, pandas as pd
from ofa_jax import OneForAllForecaster
model = OneForAllForecaster.load(sys.argv[1], trunk=sys.argv[2])
found = model.predict(pd.read_parquet(sys.argv[3]), level=[80], quantiles=[0.3])
np.save(sys.argv[4], found.iloc[:, 2:].to_numpy())
"""


@pytest.mark.slow
def test_a_saved_forecaster_gives_the_same_bits_in_another_process(fitted, small, tmp_path):
    fitted.save(tmp_path / "model")
    long_frame().to_parquet(tmp_path / "data.parquet")
    arguments = [str(tmp_path / "model"), small, str(tmp_path / "data.parquet"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-c", _AGAIN, *arguments], check=True)
    wanted = fitted.predict(level=[80], quantiles=[0.3]).iloc[:, 2:]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)


def test_a_saved_forecaster_has_no_values_and_no_folder_of_the_machine(fitted, small, tmp_path):
    folder = tmp_path / "model"
    fitted.save(folder)
    with pytest.raises(CheckpointError, match=r"trunk is in a folder.* Pass its current path as `trunk`"):
        OneForAllForecaster.load(folder)
    content = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert small.encode() not in content
    with pytest.raises(ConfigError, match="is there"):
        fitted.save(folder)
    loaded = OneForAllForecaster.load(folder, trunk=small)
    loaded.save(folder, overwrite=True)
    again = OneForAllForecaster.load(folder, trunk=small)
    pd.testing.assert_frame_equal(again.predict(long_frame(), level=80), fitted.predict(level=80))
    with pytest.raises(NotFittedError, match="no series to forecast"):
        again.predict()


@pytest.mark.slow
def test_its_bundle_is_one_that_predict_reads(fitted, small, tmp_path):
    fitted.save(tmp_path / "model")
    bundle = load_bundle(tmp_path / "model" / "bundle", trunk=small)
    wide = long_frame((70,))[["ds", "y"]]
    found = predict(bundle, wide)
    np.testing.assert_allclose(found.y, fitted.predict(wide).OneForAll, rtol=1e-5)


@pytest.mark.parametrize("change", ["edit", "damage", "lose"])
def test_a_damaged_folder_is_noticed(fitted, small, tmp_path, change):
    folder = tmp_path / "model"
    fitted.save(folder)
    record, errors = folder / "estimator.json", folder / "calibration.safetensors"
    if change == "edit":
        record.write_text(record.read_text().replace('"horizon": 6', '"horizon": 5'))
    elif change == "damage":
        errors.write_bytes(errors.read_bytes()[:-1] + b"x")
    else:
        errors.unlink()
    with pytest.raises(CheckpointError):
        OneForAllForecaster.load(folder, trunk=small)


def test_parameters_as_scikit_learn_has_them(small):
    from sklearn.base import clone

    model = OneForAllForecaster(6, trunk=small, rank=3)
    assert repr(model) == f"OneForAllForecaster(horizon=6, trunk={small!r}, rank=3)"
    assert clone(model).get_params() == model.get_params()
    assert model.set_params(rank=5).rank == 5
    with pytest.raises(ConfigError, match="'depth' is no parameter of OneForAllForecaster"):
        model.set_params(depth=2)


def test_wrong_calls_are_one_error_each(fitted, small, tmp_path):
    frame, model = long_frame((40, 30)), OneForAllForecaster(**settings(small))
    made = {
        "no series to forecast": lambda: model.predict(),
        "no series to forecast. Call fit": lambda: model.make_future_dataframe(),
        "level: 0.9 is in percent.* Give 90 for": lambda: model.predict(frame, level=0.9),
        "there is no column `sales`, but .*target_col": lambda: OneForAllForecaster(
            6, trunk=small, target_col="sales"
        ).predict(frame.drop(columns="unique_id")),
        "there is no column `shop`, but .*id_col": lambda: OneForAllForecaster(
            6, trunk=small, id_col="shop"
        ).predict(frame.drop(columns="unique_id")[:20]),
        "rows are 'D' apart, but the model was fitted on steps of 'h'": lambda: fitted.predict(
            frame.assign(ds=[*pd.date_range("2024", periods=40), *pd.date_range("2024", periods=30)])
        ),
        "prediction_intervals: it is True": lambda: model.fit(frame, prediction_intervals=True),
        "horizon is 10001": lambda: OneForAllForecaster(10_001, trunk=small).predict(frame),
        "horizon is 0": lambda: OneForAllForecaster(0, trunk=small).predict(frame),
        "the data are a Series. .*reset_index": lambda: model.predict(frame["y"]),
        "h is 7, but the model was fitted for 6": lambda: fitted.predict(h=7),
        "h is 0": lambda: model.predict(frame, h=0),
        "h is 2.0": lambda: model.predict(frame, h=2.0),
        "level: 100 is out of range": lambda: model.predict(frame, level=100),
        "quantiles: 'x' is out of range": lambda: model.predict(frame, quantiles="x"),
        "horizon is -1": lambda: OneForAllForecaster(-1, trunk=small).fit(frame),
        "horizon is True": lambda: OneForAllForecaster(True, trunk=small).fit(frame),
        "val_size is 5": lambda: model.fit(frame, val_size=5),
        "val_size is 'some'": lambda: model.fit(frame, val_size="some"),
        "no series has 20 steps .*or call predict without fit": lambda: model.fit(frame[:19]),
        "context is 65": lambda: OneForAllForecaster(6, trunk=small, context=65).predict(frame),
        "gpt2 was not pretrained on series": lambda: OneForAllForecaster(6, trunk="gpt2").predict(frame),
        "adapters.rank": lambda: OneForAllForecaster(6, trunk=small, rank=0).fit(frame),
        "recipe": lambda: OneForAllForecaster(6, trunk=small, recipe="magic").fit(frame),
        "train.epochs": lambda: OneForAllForecaster(6, trunk=small, epochs=0).fit(frame),
        "train.learning_rate": lambda: OneForAllForecaster(6, trunk=small, learning_rate=-1).fit(frame),
        "columns have one name: `ds`, `ds`": lambda: OneForAllForecaster(6, trunk=small, id_col="ds").predict(
            frame
        ),
        "names of columns are": lambda: OneForAllForecaster(6, trunk=small, alias="").predict(frame),
        "n_windows is 0": lambda: model.cross_validation(frame, n_windows=0),
        "step_size is 0": lambda: model.cross_validation(frame, step_size=0),
        "no series has 41 steps": lambda: model.cross_validation(frame, h=40),
        "metric is 'r2'": lambda: model.score(frame, "r2"),
        "no series can be scored": lambda: model.score(frame.assign(y=1.0)),
        "no series has 14 steps": lambda: model.calibrate(frame[:13]),
        "there is no estimator.json": lambda: OneForAllForecaster.load(tmp_path),
        "no saved forecaster": lambda: fitted.save(tmp_path),
        "the data are a str": lambda: model.predict("file.csv"),
    }
    for text, call in made.items():
        with pytest.raises(OfaError, match=text):
            call()


@pytest.mark.parametrize("solver", ["ridge", "gradient"])
def test_a_validation_part_without_any_value_is_refused(small, solver):
    frame = long_frame((100,))
    frame.loc[70:, "y"] = np.nan
    with pytest.raises(DataError, match="no validation window has a known value"):
        OneForAllForecaster(6, trunk=small, solver=solver).fit(frame)


def test_nothing_is_said_about_the_spread_after_a_single_value(small):
    frame = pd.DataFrame({"ds": pd.date_range("2024", periods=2), "y": [5.0, np.nan]})
    found = OneForAllForecaster(3, trunk=small, freq="D").predict(frame, level=90, quantiles=[0.5])
    assert found["OneForAll"].tolist() == found["OneForAll_ql0.5"].tolist() == [5.0] * 3
    assert found[["OneForAll-lo-90", "OneForAll-hi-90"]].isna().all(axis=None)
    frame["y"] = 5.0  # a constant
    found = OneForAllForecaster(3, trunk=small, freq="D").predict(frame, level=90)
    assert found["OneForAll-hi-90"].tolist() == [5.0] * 3

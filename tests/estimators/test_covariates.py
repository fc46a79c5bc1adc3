"""Known covariates of the forecaster."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ofa_jax import OneForAllForecaster, load_bundle, predict
from ofa_jax.errors import ConfigError, DataError
from ofa_jax.estimators.base import NotFittedError
from ofa_jax.estimators.intervals import PredictionIntervals

HORIZON = 6


def frame(rows: int = 300, series: int = 2, effect: float = 3.0, seed: int = 0) -> pd.DataFrame:
    """Daily series of noise that a promotion (0 or 1, never regular) raises by ``effect`` spreads."""
    draw, parts = np.random.default_rng(seed), []
    for number in range(series):
        promotion = (draw.random(rows) < 0.2).astype(float)
        y = 10.0**number * (draw.normal(size=rows) + effect * promotion) + 50
        when = pd.date_range("2024-01-01", periods=rows, freq="D")
        parts.append(pd.DataFrame({"unique_id": f"s{number}", "ds": when, "y": y, "promotion": promotion}))
    return pd.concat(parts, ignore_index=True)


def split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All but the last steps of each series, and these."""
    last = table.groupby("unique_id").tail(HORIZON).index
    return table.drop(last), table.loc[last]


@pytest.fixture(scope="module")
def fitted(small):
    past, _ = split(frame())
    model = OneForAllForecaster(HORIZON, trunk=small, covariates=["promotion"])
    return model.fit(past, prediction_intervals=PredictionIntervals())


def test_an_effect_that_is_there_is_found(fitted):
    effects = fitted.fitted_.effects
    assert effects.after < 0.6 * effects.before
    assert effects.share > 0.8
    past, ahead = split(frame())
    rows = ahead[["unique_id", "ds", "promotion"]]
    made = fitted.predict(past, futr_df=rows, level=80)
    off = fitted.predict(past, futr_df=rows.assign(promotion=0.0), level=80)
    raised = (made["OneForAll"] - off["OneForAll"]).to_numpy().reshape(2, HORIZON)
    on = ahead["promotion"].to_numpy().reshape(2, HORIZON) > 0
    assert on.any()
    assert not raised[~on].any()
    np.testing.assert_allclose(raised[on & [[True], [False]]], 3, rtol=0.25)  # in the series' own units
    np.testing.assert_allclose(raised[on & [[False], [True]]], 30, rtol=0.25)
    for name in ("OneForAll-lo-80", "OneForAll-hi-80"):
        np.testing.assert_allclose((made[name] - off[name]).to_numpy().reshape(2, HORIZON), raised, atol=1e-4)


def test_noise_is_left_alone(small):
    past, ahead = split(frame(effect=0.0, seed=3))
    model = OneForAllForecaster(HORIZON, trunk=small, covariates=["promotion"]).fit(past)
    assert model.fitted_.effects.after <= model.fitted_.effects.before
    plain = OneForAllForecaster(HORIZON, trunk=small).fit(past.drop(columns="promotion"))
    one = model.predict(futr_df=ahead.drop(columns="y"))["OneForAll"]
    two = plain.predict()["OneForAll"]
    np.testing.assert_allclose(one, two, atol=0.15 * past["y"].std())


def test_rows_ahead_are_found_by_series_and_time(fitted):
    past, ahead = split(frame())
    rows = ahead[["unique_id", "ds", "promotion"]]
    made = fitted.predict(futr_df=rows)
    shuffled = fitted.predict(futr_df=rows.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(made, shuffled)
    own = fitted.predict(pl.from_pandas(past), futr_df=pl.from_pandas(rows))
    np.testing.assert_array_equal(own["OneForAll"].to_numpy(), made["OneForAll"].to_numpy())


def test_saved_and_loaded_it_forecasts_the_same(fitted, tmp_path):
    past, ahead = split(frame())
    rows = ahead[["unique_id", "ds", "promotion"]]
    fitted.save(tmp_path / "model")
    again = OneForAllForecaster.load(tmp_path / "model", trunk=fitted.trunk)
    assert list(again.covariates) == ["promotion"]
    pd.testing.assert_frame_equal(again.predict(past, futr_df=rows), fitted.predict(past, futr_df=rows))
    loaded = load_bundle(tmp_path / "model", trunk=fitted.trunk)
    with pytest.raises(DataError, match="reads covariates, which are not given here"):
        predict(loaded, past)


def test_cross_validation_reads_them_from_the_frame(fitted):
    table = frame()
    made = fitted.cross_validation(table, n_windows=2)
    _, ahead = split(table)
    last = made[made["cutoff"] == made["cutoff"].max()]
    direct = fitted.predict(split(table)[0], futr_df=ahead.drop(columns="y"))
    np.testing.assert_allclose(last["OneForAll"].to_numpy(), direct["OneForAll"].to_numpy(), rtol=1e-6)
    assert fitted.score(table) > 0


@pytest.mark.slow
def test_the_calendar_needs_no_columns(small):
    when = pd.date_range("2021-01-01", periods=900, freq="D")
    draw = np.random.default_rng(0)
    y = draw.normal(size=900) + 8 * (when.day_of_week == 2)
    table = pd.DataFrame({"ds": when, "y": y})
    model = OneForAllForecaster(14, trunk=small, calendar=True).fit(table)
    assert model.fitted_.effects.after < 0.95 * model.fitted_.effects.before
    made = model.predict()
    assert set(made.loc[made["OneForAll"].nlargest(2).index, "ds"].dt.day_of_week) == {2}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (lambda rows: None, "futr_df is missing, with `promotion` in the next 6 steps"),
        (lambda rows: rows.drop(columns="promotion"), "futr_df has no column `promotion`"),
        (lambda rows: rows.iloc[1:], "futr_df has no row for series 's0' at .* \\(1 rows in all\\)"),
        (lambda rows: pd.concat([rows, rows.tail(1)]), "has a step of series 's1' twice"),
        (
            lambda rows: rows.assign(promotion=np.nan),
            "the covariate `promotion` is not known in row 1 of futr_df",
        ),
        (lambda rows: rows.assign(promotion="x"), "`promotion` has 'x' in row 1, which is no number"),
        (lambda rows: rows.replace({"s1": "s9"}), "has the series 's9', which is not forecast"),
        (lambda rows: rows.assign(ds=rows["ds"].dt.tz_localize("UTC")), "is of another kind"),
        (
            lambda rows: pd.concat([rows, rows.tail(1).assign(ds=pd.Timestamp("2030-01-01"))]),
            "has series 's1' at 2030-01-01.*, which is not forecast",
        ),
    ],
)
def test_wrong_rows_ahead_are_refused(fitted, changes, what):
    rows = split(frame())[1][["unique_id", "ds", "promotion"]]
    with pytest.raises(DataError, match=what):
        fitted.predict(futr_df=changes(rows))


def test_wrong_covariates_are_refused(small):
    past, ahead = split(frame())
    model = OneForAllForecaster(HORIZON, trunk=small, covariates=["promotion"])
    with pytest.raises(NotFittedError, match="Call fit"):
        model.predict(past, futr_df=ahead.drop(columns="y"))
    with pytest.raises(DataError, match="the covariate `promotion` is no column"):
        model.fit(past.drop(columns="promotion"))
    with pytest.raises(DataError, match="not known in row 3 of the frame"):
        model.fit(past.assign(promotion=np.where(np.arange(len(past)) == 2, np.inf, 0)))
    with pytest.raises(ConfigError, match="list of names"):
        OneForAllForecaster(HORIZON, trunk=small, covariates="promotion").fit(past)
    with pytest.raises(ConfigError, match="static_df: static covariates are not used"):
        model.fit(past, static_df=past)
    plain = OneForAllForecaster(HORIZON, trunk=small)
    with pytest.raises(ConfigError, match="futr_df: the forecaster reads no such columns"):
        plain.predict(past.drop(columns="promotion"), futr_df=ahead)
    with pytest.raises(ConfigError, match="calendar: times are integers"):
        OneForAllForecaster(HORIZON, trunk=small, calendar=True).fit(
            past.drop(columns="promotion").assign(ds=past.groupby("unique_id").cumcount())
        )


@pytest.mark.slow
def test_constant_series_do_not_hide_the_effect(small):
    """Rounding gives a constant's window a spread of about 1e-15, in whose units any error is huge."""
    past, _ = split(frame())
    draw, parts = np.random.default_rng(5), [past]
    for number in range(4):
        sale = (draw.random(290) < 0.02).astype(float)
        when = past["ds"].iloc[:290]
        parts.append(
            pd.DataFrame({"unique_id": f"p{number}", "ds": when, "y": 19.99 - sale, "promotion": sale})
        )
    model = OneForAllForecaster(HORIZON, trunk=small, covariates=["promotion"], context=16)
    model.fit(pd.concat(parts, ignore_index=True))
    assert model.fitted_.effects.share > 0.5
    assert abs(model.fitted_.effects.kernel).max() > 0.1


@pytest.mark.slow
def test_the_kept_rows_reach_a_season_back(small):
    draw, hours = np.random.default_rng(0), pd.date_range("2024-01-01", periods=400, freq="h")
    x = draw.normal(size=400)
    table = pd.DataFrame({"ds": hours, "y": 2 * x + draw.normal(size=400), "x": x})
    model = OneForAllForecaster(HORIZON, trunk=small, covariates=["x"], context=12).fit(table[:394])
    rows = table.loc[394:, ["ds", "x"]]
    kept, given = model.predict(futr_df=rows), model.predict(table[:394], futr_df=rows)
    pd.testing.assert_frame_equal(kept, given)


def test_other_covariates_than_fitted_are_refused(fitted):
    past, ahead = split(frame())
    changed = OneForAllForecaster(**fitted.get_params())
    changed.fitted_, changed.panel_, changed.calibration_ = fitted.fitted_, fitted.panel_, None
    for params in ({"covariates": []}, {"calendar": True}, {"covariates": ["promotion", "z"]}):
        changed.set_params(**({"covariates": ["promotion"], "calendar": False} | params))
        given = past.assign(z=0.0) if "z" in changed.covariates else past
        given = given if changed.covariates else given.drop(columns="promotion")
        rows = ahead.assign(z=0.0)[["unique_id", "ds", *changed.covariates]] if changed.covariates else None
        with pytest.raises(NotFittedError, match="effects of these covariates are not known"):
            changed.predict(given, futr_df=rows)


def test_covariates_that_never_change_are_refused(small):
    past, _ = split(frame())
    model = OneForAllForecaster(HORIZON, trunk=small, covariates=pd.Index(["promotion"]))
    with pytest.raises(DataError, match="no covariate changes: `promotion`"):
        model.fit(past.assign(promotion=1.0))


def test_the_calendar_needs_no_futr_df_and_ignores_none(small):
    past, ahead = split(frame())
    model = OneForAllForecaster(HORIZON, trunk=small, calendar=True)
    model.fit(past.drop(columns="promotion"))
    with pytest.raises(ConfigError, match="reads no such columns"):
        model.predict(futr_df=ahead)

"""The adapter to sktime: its contracts, the numbers of the forecaster, kinds of index, steps without rows."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ofa_jax import OneForAllForecaster
from ofa_jax.errors import DataError

pytest.importorskip("sktime", reason="needs the extra `sktime`: pip install -e '.[sktime]'")
pytestmark = [
    pytest.mark.slow,  # sktime is imported and networks are compiled
    pytest.mark.filterwarnings("default"),  # those of sktime are its own
]


@pytest.fixture(scope="module")
def forecaster(small):
    """A function of parameters."""
    from ofa_jax.integrations.sktime import OneForAllSktimeForecaster

    return lambda **changes: OneForAllSktimeForecaster(**{"trunk": small, "rank": 2} | changes)


def table(rows=60, columns=("load", "price")):
    draw = np.random.default_rng(0)
    waves = np.sin(2 * np.pi * np.arange(rows)[:, None] / 12 + np.arange(len(columns)))
    return pd.DataFrame(50 + 9 * waves + draw.normal(size=waves.shape), columns=list(columns))


def wanted(small, y, steps, *, adapt=False, **asked):
    """The same by the forecaster itself, of a wide frame: a column of all series per column of values."""
    model = OneForAllForecaster(steps, trunk=small, rank=2, freq=1)
    frame = y.reset_index(drop=True).rename_axis("ds").reset_index()
    made = model.fit(frame).predict(**asked) if adapt else model.predict(frame, **asked)
    return made.drop(columns=["unique_id", "ds"])


ADAPTING = (
    *("test_clone", "test_fit_idempotent", "test_persistence_via_pickle", "test_update_tag"),
    *("test_cur_y_when_refitting", "test_different_fh_in_fit_and_predict_error_handling"),
)
"""Of sktime's tests those that concern what an adapted forecaster keeps; all of them take many minutes."""


@pytest.mark.parametrize(("adapt", "chosen"), [(False, None), (True, ADAPTING)])
def test_sktimes_own_tests_pass(forecaster, adapt, chosen, monkeypatch, tmp_path):
    from sktime.utils import check_estimator

    own = type(forecaster())
    tried = [forecaster(adapt=adapt, context=24, seed=seed).get_params() for seed in (0, 1)]
    monkeypatch.setattr(own, "get_test_params", classmethod(lambda cls, parameter_set="default": tried))
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(own, tests_to_run=chosen and list(chosen), verbose=False)
    assert {name.partition("[")[0] for name in found} >= set(chosen or ADAPTING)
    assert {name: result for name, result in found.items() if result != "PASSED"} == {}


@pytest.mark.parametrize("adapt", [False, True])
def test_numbers_are_those_of_the_forecaster(forecaster, small, adapt):
    y, steps, shares = table(), [5, 1, 2], [0.9, 0.1, 0.005]
    model = forecaster(adapt=adapt).fit(y, fh=steps)
    plain = wanted(small, y, 5, adapt=adapt, quantiles=shares)
    rows = np.array([0, 1, 4])  # of the sorted horizon
    found = model.predict()
    assert found.index.tolist() == [60, 61, 64]
    np.testing.assert_array_equal(found.to_numpy().T, plain.OneForAll.to_numpy().reshape(2, 5)[:, rows])
    found = model.predict_quantiles(alpha=shares)
    assert found.columns.tolist() == [(name, share) for name in y for share in shares]
    for at, name in enumerate(y):
        for share in shares:
            values = plain[f"OneForAll_ql{share:g}"].to_numpy().reshape(2, 5)[at, rows]
            np.testing.assert_array_equal(found[name, share], values)
    interval = model.predict_interval(coverage=0.8)
    np.testing.assert_allclose(interval["price", 0.8, "lower"], found["price", 0.1], rtol=1e-9)


@pytest.mark.parametrize(
    ("index", "wanted_index"),
    [
        (pd.RangeIndex(7, 67), [67, 69]),
        (pd.period_range("2020-01", periods=60, freq="M"), ["2025-01", "2025-03"]),
        (pd.date_range("2020-01-31", periods=60, freq="ME"), ["2025-01-31", "2025-03-31"]),
        (pd.DatetimeIndex(pd.date_range("2020-01-01", periods=60).to_numpy()), ["2020-03-01", "2020-03-03"]),
        (
            pd.date_range("2020-03-01", periods=60, tz="Europe/Berlin"),
            ["2020-04-30 00:00:00+02:00", "2020-05-02 00:00:00+02:00"],
        ),
    ],
)
def test_any_index_gives_the_same_numbers_and_is_continued(forecaster, small, index, wanted_index):
    y = table()["load"].set_axis(index)
    found = forecaster().fit(y).predict(fh=[1, 3])
    assert found.name == "load"
    assert found.index.equals(pd.Index(wanted_index, dtype=index.dtype))
    plain = wanted(small, y.to_frame(), 3)
    np.testing.assert_array_equal(found, plain.OneForAll[[0, 2]])


def test_a_step_without_a_row_is_a_missing_value(forecaster):
    for index in (pd.RangeIndex(60), pd.period_range("2020-01", periods=60, freq="M")):
        y = table()["load"].set_axis(index)
        gap = y.where(np.arange(60) != 50)
        found = forecaster().fit(gap.dropna()).predict(fh=[1, 2])
        assert found.equals(forecaster().fit(gap).predict(fh=[1, 2]))
        assert not found.equals(forecaster().fit(y).predict(fh=[1, 2]))


def test_wrong_rows_and_horizons_are_refused(forecaster):
    y = table()["load"]
    days = y.set_axis(pd.date_range("2020-01-01", periods=60))
    for wrong, message in (
        (days.drop(days.index[50]), "the step between the times from 2020-01-01 00:00:00 to 2020-02-29"),
        (y.set_axis(3600 * y.index), "no two rows are neighbors: 3600 follows 0"),
        (y.set_axis([*range(59), 58]), "there are several rows of 58"),
        (y.where(y < 0).rename("load"), "series 'load' has no value"),
    ):
        with pytest.raises(DataError, match=message):
            forecaster().fit(wrong).predict(fh=[1])
    with pytest.raises(NotImplementedError, match="in-sample"):
        forecaster().fit(y).predict(fh=[0, 1])
    with pytest.raises(ValueError, match="must be passed to `fit`"):
        forecaster(adapt=True).fit(y)
    with pytest.raises(DataError, match="no series has 12 steps"):
        forecaster(adapt=True).fit(y[:11], fh=[1, 2])


def test_short_and_constant_series(forecaster):
    found = forecaster().fit(pd.Series([7.0])).predict_interval(fh=[1, 2], coverage=0.9)
    assert found.isna().all(axis=None)  # one value says nothing of the spread
    assert (forecaster().fit(pd.Series([7.0])).predict(fh=[1, 2]) == 7).all()
    found = forecaster().fit(pd.Series([7.0] * 50)).predict_quantiles(fh=[1, 2], alpha=[0.01, 0.5, 0.999])
    assert (found == 7).all(axis=None)


@pytest.mark.parametrize("dates", [False, True])
def test_new_rows_are_read_and_adapt_it_where_asked(forecaster, dates):
    y = table(90)
    if dates:
        y.index = pd.date_range("2020-01-01", periods=90)
    first = forecaster(adapt=True).fit(y[:60], fh=[1, 2])
    kept, fitted = first.predict(), first.forecaster_
    first.update(y[60:61], update_params=False)
    assert first.forecaster_ is fitted
    assert first.predict().index[0] == (y.index[61])
    assert not np.array_equal(first.predict(), kept)
    first.update(y[61:])
    wanted = forecaster(adapt=True).fit(y, fh=[1, 2]).predict()
    assert first.predict().equals(wanted)


def test_the_example_of_the_docs_runs_as_written(capsys):
    page = (Path(__file__).parents[2] / "docs/dataframes.md").read_text()
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "sktime" in code)
    exec(code, {})
    assert "1961-03" in capsys.readouterr().out


def test_it_is_cloned_pickled_and_changed(forecaster):
    y = table()
    model = forecaster(adapt=True).fit(y, fh=[1, 2])
    assert pickle.loads(pickle.dumps(model)).predict().equals(model.predict())
    other = model.clone().set_params(adapt=False, context=16)
    assert not other.get_tag("requires-fh-in-fit")
    assert model.get_tag("requires-fh-in-fit")
    assert not other.fit(y).predict(fh=[1, 2]).equals(model.predict())

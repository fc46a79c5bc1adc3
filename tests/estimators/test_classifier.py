"""OneForAllClassifier: right classes of unequal cases, labels of any kind, folders, wrong inputs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ofa_jax import OfaError, OneForAllClassifier, OneForAllForecaster, OneForAllImputer
from ofa_jax.errors import CheckpointError, ConfigError
from ofa_jax.estimators.base import NotFittedError
from ofa_jax.estimators.classifier import _read_cases, _read_classes
from ofa_jax.tasks.classification import _held_out


def settings(small, **changes):
    return {"trunk": small, "epochs": 12, "learning_rate": 1e-2, "batch_size": 8} | changes


def ramps(n=48, seed=0, classes=("down", "up")):
    """Cases of two channels and 18 to 24 steps; the direction of the second channel is the class."""
    draw, cases, labels = np.random.default_rng(seed), [], []
    for number in range(n):
        steps, up = int(draw.integers(18, 25)), number % 2
        ramp = np.linspace(-1, 1, steps) * (1 if up else -1)
        cases.append(np.stack([draw.normal(5, 1, steps), 100 + 20 * ramp + draw.normal(0, 5, steps)]))
        labels.append(classes[up])
    return cases, np.array(labels)


@pytest.fixture(scope="module")
def fitted(small):
    return OneForAllClassifier(**settings(small)).fit(*ramps())


def test_it_learns_what_separates_the_classes(fitted):
    cases, labels = ramps(40, seed=1)
    assert fitted.classes_.tolist() == ["down", "up"]
    assert fitted.score(cases, labels) >= 0.9
    shuffled = [case[::-1] for case in cases]
    assert fitted.score(shuffled, labels) < 0.8, "the channels do not matter"
    probability = fitted.predict_proba(cases)
    assert probability.shape == (40, 2)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-12)
    assert (fitted.predict(cases) == fitted.classes_[probability.argmax(axis=1)]).all()


@pytest.mark.slow
def test_a_case_has_its_class_in_any_company(fitted):
    cases, _ = ramps(10, seed=2)
    together = fitted.predict_proba(cases)
    alone = np.concatenate([fitted.predict_proba([case]) for case in cases])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([7, 3, 7], np.int32),
        np.array([True, False]),
        np.array([2.5, -1], np.float32),
        np.array(["b", "ä"]),
        np.array(["x", "y"], object),
        np.array(["2024-01-02", "2024-01-01"], "datetime64[ns]"),
        pd.Series(["b", "a"], dtype="category"),
        pl.Series(["b", "a"]),
        ["b", "a"],
    ],
)
def test_classes_come_back_as_they_were(fitted, small, tmp_path, labels):
    model = OneForAllClassifier(**fitted.get_params())
    model.fitted_, (model.classes_, codes) = fitted.fitted_, _read_classes(labels)
    model.save(tmp_path / "model")
    found = OneForAllClassifier.load(tmp_path / "model", trunk=small).classes_
    assert found.dtype == np.asarray(labels).dtype
    assert found[codes].tolist() == np.asarray(labels).tolist()


def test_arrays_and_lists_are_read_alike(fitted):
    block = np.stack([case[:, :18] for case in ramps(5)[0]])
    wanted = fitted.predict_proba(block)
    for X in (list(block), block.tolist(), block.astype(np.float32).astype(object)):
        np.testing.assert_allclose(fitted.predict_proba(X), wanted, atol=1e-6)
    for X in (block[:, 0], list(block[:, 0]), pd.DataFrame(block[:, 0])):  # one channel
        cases = _read_cases(X)
        assert cases.n_channels == 1
        np.testing.assert_array_equal(np.stack(cases.cases)[..., 0], block[:, 0])


def test_held_out_cases_are_of_every_class_and_drawn_by_the_seed():
    labels = np.repeat([0, 1, 2], [20, 10, 1])
    found = [_held_out(labels, "X", 0.3, seed) for seed in (0, 0, 1)]
    assert np.bincount(labels[found[0]], minlength=3).tolist() == [6, 3, 0]
    assert found[0].tolist() == found[1].tolist() != found[2].tolist()
    assert len(_held_out(labels[:2], "X", 0.99)) == 1, "one case is left to train on"


def test_patches_fit_the_positions_of_the_trunk(small):
    def patches(steps, **changes):
        return OneForAllClassifier(trunk=small, **changes)._patches(steps)

    assert patches(9) == {"patch": 1, "stride": 1}  # 10 patches: the end is padded by one
    assert patches(10) == {"patch": 2, "stride": 2}
    assert patches(1000) == {"patch": 101, "stride": 101}
    assert patches(10, patch=5) == {"patch": 5, "stride": 5}
    assert patches(24, stride=2) == {"patch": 7, "stride": 2}
    with pytest.raises(ConfigError, match="are 26 for a case of 50 steps, and the trunk reads 10"):
        patches(50, patch=2)


_AGAIN = """
import sys, numpy as np
from ofa_jax import OneForAllClassifier
model = OneForAllClassifier.load(sys.argv[1], trunk=sys.argv[2])
np.save(sys.argv[4], model.predict_proba(np.load(sys.argv[3])))
"""


@pytest.mark.slow
def test_a_saved_classifier_gives_the_same_bits_in_another_process(fitted, small, tmp_path):
    cases = np.stack([case[:, :18] for case in ramps(10, seed=3)[0]])
    fitted.save(tmp_path / "model")
    np.save(tmp_path / "cases.npy", cases)
    names = ("model", None, "cases.npy", "out.npy")
    arguments = [str(tmp_path / name) if name else small for name in names]
    subprocess.run([sys.executable, "-c", _AGAIN, *arguments], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), fitted.predict_proba(cases))
    content = b"".join(file.read_bytes() for file in (tmp_path / "model").rglob("*") if file.is_file())
    assert small.encode() not in content
    with pytest.raises(ConfigError, match="is there"):
        fitted.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="this is an ofa-jax classifier, not an ofa-jax imputer"):
        OneForAllImputer.load(tmp_path / "model", trunk=small)
    with pytest.raises(CheckpointError, match=r"Load it by OneForAllClassifier\.load"):
        OneForAllForecaster.load(tmp_path / "model", trunk=small)
    record = tmp_path / "model" / "estimator.json"
    content = record.read_text()
    record.write_text(content.replace('"ofa-jax classifier"', "[]"))
    with pytest.raises(CheckpointError, match="kind"):
        OneForAllClassifier.load(tmp_path / "model", trunk=small)
    record.write_text(content.replace('"up"', '"us"'))
    with pytest.raises(CheckpointError, match="was edited"):
        OneForAllClassifier.load(tmp_path / "model", trunk=small)


def test_parameters_as_scikit_learn_has_them(small):
    from sklearn.base import clone

    model = OneForAllClassifier(trunk=small, rank=3)
    assert clone(model).get_params() == model.get_params()
    assert repr(model) == f"OneForAllClassifier(trunk={small!r}, rank=3)"


def test_wrong_calls_are_one_error_each(fitted, small, tmp_path):
    cases, labels = ramps(12)
    block = np.stack([case[:, :18] for case in cases])
    gone = block.copy()
    gone[3, 1, 5] = np.nan

    def make(**changes):
        return OneForAllClassifier(**settings(small, **changes))

    made = {
        "classifier was not fitted. Call fit": lambda: make().predict(cases),
        "not fitted": lambda: make().save(tmp_path / "none"),
        "every training case is of the class `a`": lambda: make().fit(cases, ["a"] * 12),
        "each of the 12 classes has one case": lambda: make().fit(cases, np.arange(12)),
        "12 cases and 11 classes": lambda: make().fit(cases, labels[1:]),
        "class of case 2 is missing": lambda: make().fit(cases, ["a", "b", None] * 4),
        "texts and numbers together": lambda: make().fit(cases, np.array(["a", 1] * 6, object)),
        "a class is a list": lambda: make().fit(cases, pd.Series([[1]] * 12)),
        r"classes are an array of shape \[12, 1\]": lambda: make().fit(cases, labels[:, None]),
        r"X\[3\]: the value of channel 1 in step 5 is nan": lambda: make().fit(gone, labels),
        r"X\[1\]: has 1 channels, the first case has 2": lambda: make().fit(
            [cases[0], cases[1][:1]], list("ab")
        ),
        r"X\[0\]: is an array of shape \[2, 0\]": lambda: fitted.predict(np.zeros((1, 2, 0))),
        r"X\[0\]: is no array of numbers": lambda: fitted.predict([["a"]]),
        r"the cases \('str'\) are not an array": lambda: fitted.predict("cases.ts"),
        "there are no cases": lambda: fitted.predict([]),
        "has 3 channels, the model reads 2": lambda: fitted.predict(np.zeros((1, 3, 9))),
        "a case has 30 steps, the model reads 24": lambda: fitted.predict(np.ones((1, 2, 30))),
        "12 cases and 11 classes.*": lambda: fitted.score(cases, labels[1:]),
        "input_length is 5, but the longest case has": lambda: make(input_length=5).fit(cases, labels),
        "validation_fraction is 1": lambda: make(validation_fraction=1).fit(cases, labels),
        "patch is 0": lambda: make(patch=0).fit(cases, labels),
        "batch_size is 0": lambda: make(batch_size=0).fit(cases, labels),
        "adapters.rank": lambda: make(rank=0).fit(cases, labels),
        "train.seed": lambda: make(seed=-1).fit(cases, labels),
        "trunk is None": lambda: make(trunk=None).fit(cases, labels),
        "there is no estimator.json": lambda: OneForAllClassifier.load(tmp_path),
    }
    for text, call in made.items():
        with pytest.raises(OfaError, match=text):
            call()
    with pytest.raises(NotFittedError):
        make().predict_proba(cases)

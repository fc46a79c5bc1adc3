"""Classifier, imputer and anomaly detector on published data, next to simple rules and a shuffled trunk.

    OFA_JAX_DATA=DATA python tools/estimators.py --files FOLDER

Classes: accuracy on the test cases of UEA problems, mean of three seeds, over nano and over nano with the
values of each of its tensors shuffled; the linear rule is logistic regression on mean, standard deviation and
mean change of each channel. Gaps: mean squared error of values that were hidden in runs of one length, in
variances of their series, on the last 2,000 rows of a table; the straight line joins both ends, the season
repeats the row a day before. Anomalies: whether the highest score of a labeled series of the UCR archive is
within 100 steps of its anomaly, and the rank of the anomaly's highest score among stretches of its length;
the median is that of the 25 values around. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

import ofa_jax
from ofa_jax import OneForAllAnomalyDetector, OneForAllClassifier, OneForAllImputer
from ofa_jax.data.archives import LabelledCases
from ofa_jax.data.catalog.load import load, load_cases

PROBLEMS = ("BasicMotions", "JapaneseVowels")
SEEDS = (0, 1, 2)
RUNS = (1, 6, 24, 96)
ANOMALY = "135_UCR_Anomaly_InternalBleeding16"
NEAR = 100
NANO = Path(ofa_jax.__file__).parent / "trunks" / "nano"


def linear_rule(train: LabelledCases, test: LabelledCases) -> float:
    """Accuracy of multinomial logistic regression on three numbers of each channel, a little penalized."""
    from scipy.optimize import minimize

    def of(cases: LabelledCases) -> np.ndarray:
        rows = [
            np.concatenate([c.mean(0), c.std(0), np.abs(np.diff(c, axis=0)).mean(0)]) for c in cases.cases
        ]
        return np.stack(rows)

    x, other = of(train), of(test)
    mean, scale = x.mean(0), x.std(0) + 1e-9
    x, other = (np.c_[(part - mean) / scale, np.ones(len(part))] for part in (x, other))
    target = np.array([train.classes.index(label) for label in train.labels])
    shape = (x.shape[1], len(train.classes))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(shape)
        z = x @ w
        z -= z.max(1, keepdims=True)
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        picked = p[np.arange(len(x)), target]
        gradient = p.copy()
        gradient[np.arange(len(x)), target] -= 1
        value = -np.log(picked + 1e-12).mean() + 1e-3 * (w**2).sum()
        return value, (x.T @ gradient / len(x) + 2e-3 * w).ravel()

    w = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B").x.reshape(shape)
    found = np.array(train.classes)[(other @ w).argmax(1)]
    return float((found == np.array(test.labels)).mean())


def shuffled(folder: Path) -> str:
    """A trunk folder: the blocks of nano, the values of each tensor shuffled."""
    draw = np.random.default_rng(0)
    tensors = load_file(NANO / "model.safetensors")
    blocks = {name: one for name, one in tensors.items() if "_layer." not in name}
    save_file(
        {name: draw.permuted(one.ravel()).reshape(one.shape) for name, one in blocks.items()},
        folder / "model.safetensors",
    )
    config = json.loads((NANO / "config.json").read_text())
    del config["forecaster"]
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def classes(name: str, other_trunk: str) -> str:
    """A row of accuracies."""
    train, test, _ = load_cases(name)
    x, other = ([case.T for case in part.cases] for part in (train, test))
    longest = max(len(case) for part in (train, test) for case in part.cases)
    cells = []
    for trunk in ("nano", other_trunk):
        found = [
            OneForAllClassifier(trunk=trunk, seed=seed, input_length=longest)
            .fit(x, train.labels)
            .score(other, test.labels)
            for seed in SEEDS
        ]
        cells.append(f"{np.mean(found):.3f} ± {np.std(found):.3f}")
    return f"| {name}, {len(x)} cases | {' | '.join(cells)} | {linear_rule(train, test):.3f} |"


def gaps(name: str, run: int) -> str:
    """A row of errors of hidden runs."""
    frame, _ = load(name)
    values = frame.values[-2000:]
    draw, hidden = np.random.default_rng(0), np.zeros(values.shape, bool)
    for column in range(values.shape[1]):
        for _ in range(max(2, 200 // run)):
            begin = draw.integers(200, len(values) - run - 24)
            hidden[begin : begin + run, column] = True
    wide = pd.DataFrame(np.where(hidden, np.nan, values), columns=list(frame.names))
    assert frame.timestamps is not None
    wide.insert(0, "ds", frame.timestamps[-2000:])
    filled = OneForAllImputer().fit_transform(wide).drop(columns="ds").to_numpy()
    line = wide.drop(columns="ds").interpolate().to_numpy()
    day = {"etth1": 24, "ettm1": 96}[name]
    season = np.where(hidden, np.roll(values, day, axis=0), values)
    scale = values.std(0)
    errors = [np.mean((((made - values) / scale) ** 2)[hidden]) for made in (filled, line, season)]
    return f"| {name.upper()}, runs of {run} | {' | '.join(f'{error:.3f}' for error in errors)} |"


def anomalies(folder: Path) -> str:
    """A row about the highest scores."""
    before, after = (pd.read_csv(folder / f"{ANOMALY}_{part}.csv") for part in ("TRAIN", "TEST"))
    history = pd.DataFrame({"ds": np.arange(len(before)), "y": before["value"]})
    value = np.concatenate([before["value"], after["value"]])
    both = pd.DataFrame({"ds": np.arange(len(value)), "y": value})
    scored = OneForAllAnomalyDetector().fit(history).predict(both)["score"].to_numpy()
    around = pd.Series(value).rolling(25, center=True, min_periods=1).median().to_numpy()
    cells = []
    at = len(before) + np.flatnonzero(after["is_anomaly"])
    for score in (scored, (value - around) ** 2):
        late = np.nan_to_num(score[len(before) :])
        best = len(before) + int(late.argmax())
        hit = at[0] - NEAR <= best <= at[-1] + NEAR
        length = max(len(at), NEAR)
        peaks = np.maximum.reduceat(late, np.arange(0, len(late), length))
        own = np.nan_to_num(score[at[0] : at[-1] + 1]).max()
        cells.append(
            f"{'found' if hit else 'not found'}, rank {1 + int((peaks > own).sum())} of {len(peaks)}"
        )
    return f"| {ANOMALY} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="The other estimators on published data.")
    parser.add_argument("--files", type=Path, help="folder of the labeled series of the UCR archive")
    arguments = parser.parse_args()
    print("| | classifier, nano | nano shuffled | linear rule |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        trunk = shuffled(Path(scratch))
        for name in PROBLEMS:
            print(classes(name.lower(), trunk), flush=True)
    print("\n| | imputer, nano | straight line | a day before |\n|---|---|---|---|", flush=True)
    for name in ("etth1", "ettm1"):
        for run in RUNS:
            print(gaps(name, run), flush=True)
    if arguments.files is not None:
        print("\n| | detector, nano | median of 25 |\n|---|---|---|", flush=True)
        print(anomalies(arguments.files), flush=True)


if __name__ == "__main__":
    main()

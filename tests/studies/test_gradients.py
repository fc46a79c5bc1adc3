"""The gradient-stability study: slopes and finite-rank curves as theory has them, the numbers of an adapter, and what cannot be asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ofa_jax.adapters.partition import AdapterTarget
from ofa_jax.adapters.rslora import LoraConfig, init_adapters
from ofa_jax.build import build_model, predict_function
from ofa_jax.cli.main import app
from ofa_jax.config import load_experiment
from ofa_jax.errors import CheckpointError, ConfigError
from ofa_jax.studies.gradients import study as gradients
from ofa_jax.studies.gradients.study import RANKS, Grid, Study, start, study
from ofa_jax.studies.gradients.taps import Tap, numbers, tap
from ofa_jax.studies.gradients.theory import KEYS, LKR, MEANS, Expected, slopes, start_std
from ofa_jax.studies.sweep.program import bucket, padded
from ofa_jax.tasks.base import Task
from ofa_jax.tasks.forecast import prepare_frame
from ofa_jax.tasks.prepare import prepare
from ofa_jax.windows.batch import gather

FEW = Grid(
    ranks=(2,), scalings=("rslora",), inits=("theorem",), optimizers=("adam",), steps=(2,), seeds=2, windows=8
)
"""What is quick: several tests share its programs."""
MODULES = {"gpt2/wpe": "embedding", "out_layer": "dense"}
STILL = ("trunk.dropout=0", "adapters.dropout=0")
THREE = {("rslora", "theorem"): 0, ("lora", "theorem"): -1, ("rslora", "inverse_rank"): -2}
"""The three slopes of the first-order loss change, protocol §1."""


def task_of(tiny: Any, *overrides: str) -> tuple[Any, Task]:
    experiment = tiny.experiment("unused", *STILL, *overrides)
    return experiment, prepare_frame(tiny.frame(), experiment.data, experiment.task).task


@pytest.fixture(scope="module")
def small(tiny) -> Study:
    """A random trunk of one block on generated series; ranks from one bucket to the next, up to eight times the trunk's width."""
    experiment, task = task_of(tiny)
    grid = Grid(
        ranks=(8, 128),
        scalings=("rslora", "lora"),
        inits=("theorem", "inverse_rank"),
        optimizers=("sgd",),
        steps=(0, 1),
        seeds=64,
        windows=8,
    )
    return study(experiment, grid, task=task)


def first_order(found: Study) -> pd.DataFrame:
    table = slopes(found.table, found.curves)
    return table[(table["quantity"] == "first_order_change") & (table["steps"] == 1)].set_index(
        ["module", "scaling", "init"]
    )


def assert_three_slopes(found: Study) -> None:
    table = first_order(found)
    for module, kind in MODULES.items():
        for (scaling, init), slope in THREE.items():
            row = table.loc[(module, scaling, init)]
            assert row["kind"] == kind
            assert abs(row["slope"] - slope) <= 0.05, (module, scaling, init, row["slope"])
            assert row["predicted"] == pytest.approx(
                slope, abs=1e-9
            )  # the expectation is a power of the rank


def test_the_loss_changes_by_the_three_slopes(small):
    assert_three_slopes(small)


@pytest.mark.slow  # ten ranks of a real configuration, twelve seeds
def test_the_loss_changes_by_the_three_slopes_on_real_windows(data_root):
    assert data_root
    experiment = load_experiment(Path(__file__).parents[2] / "configs" / "quick" / "etth1.yaml")
    assert experiment.trunk.source == "random"
    grid = Grid(
        ranks=RANKS,
        scalings=("rslora", "lora"),
        inits=("theorem", "inverse_rank"),
        optimizers=("sgd",),
        steps=(1,),
        seeds=12,
    )
    found = study(experiment, grid)
    assert found.windows == 64
    assert_three_slopes(found)
    assert_on_the_curves(found)


def assert_on_the_curves(found: Study) -> None:
    """Means over seeds lie within five of their standard errors of what theory has, and within a share that linearisation takes."""
    keys = [*KEYS, "rank"]
    raised = found.table.assign(
        value=[row.value if row.quantity in MEANS else row.value**2 for row in found.table.itertuples()]
    )
    measured = raised.groupby(keys)["value"].agg(["mean", "sem"])
    both = measured.join(found.curves.set_index(keys)["value"], how="inner").reset_index()
    assert set(both["quantity"]) >= {
        "output_rms",
        "output_moment_4",
        "output_moment_6",
        "input_gradient_rms",
        "first_order_change",
    }
    for row in both.itertuples():
        expected = row.value if row.quantity in MEANS else row.value**2
        if row.quantity not in (
            "output_moment_4",
            "output_moment_6",
        ):  # these are heavy-tailed, and so is their standard error
            assert abs(row.mean - expected) <= 5 * row.sem + 0.01 * expected, row


def test_finite_ranks_lie_on_their_curves(small):
    assert_on_the_curves(small)
    rms = small.curves[(small.curves["quantity"] == "output_rms") & (small.curves["module"] == "gpt2/wpe")]
    rslora = rms[(rms["scaling"] == "rslora") & (rms["init"] == "theorem")].set_index("rank")["value"]
    # alpha²/r sqrt(r (r + d + 1)) at d = 16
    assert rslora[8] / rslora[128] == pytest.approx(
        np.sqrt(8 * 25) / 8 / (np.sqrt(128 * 145) / 128), rel=1e-9
    )


@pytest.mark.parametrize("module", MODULES)
def test_the_first_step_makes_the_loss_smaller_by_its_gradient(small, module):
    """``-<G, out> = eta |dL/dzero|²`` for every seed: measured on the windows that the step was taken on, at the right scale and rate."""
    zero = "gradient_norm_a" if module == "gpt2/wpe" else "gradient_norm_b"
    own = small.table[small.table["module"] == module].set_index(["rank", "scaling", "init", "seed"])
    gradient = own[(own["quantity"] == zero) & (own["steps"] == 0)]["value"]
    change = own[(own["quantity"] == "first_order_change") & (own["steps"] == 1)]["value"]
    assert len(change) == 2 * 2 * 2 * 64
    # the other adapter's step moves this one's input by a millionth or so
    np.testing.assert_allclose(change, small.grid.sgd_rate * gradient.reindex(change.index) ** 2, rtol=1e-3)


def test_the_first_step_of_adam_moves_by_the_sum_of_sizes(tiny):
    """``-<G, out> = eta sum |dL/dzero|``, whose slope is higher by a half of ``beta² r sigma²``'s root: rslora is not stable under it."""
    experiment, task = task_of(tiny)
    grid = replace(FEW, ranks=(8, 16), steps=(1,), seeds=32, adam_rate=1e-6)
    found = study(experiment, grid, task=task)
    values = (
        found.table[found.table["quantity"] == "first_order_change"]
        .groupby(["module", "rank"])["value"]
        .agg(["mean", "sem"])
    )
    assert len(values) == 4
    curves = found.curves.set_index(["module", "rank"])
    assert set(curves["quantity"]) == {"first_order_change"}
    for place, row in values.iterrows():
        # linearisation, and Adam's epsilon beside the smallest gradients
        assert abs(row["mean"] - curves["value"][place]) <= 4 * row["sem"] + 0.01 * curves["value"][place]
    assert first_order(found)["predicted"].tolist() == pytest.approx([0.5, 0.5], abs=1e-9)


@pytest.mark.parametrize("kind", ["dense", "embedding"])
def test_numbers_are_those_of_autodiff(kind):
    draw = np.random.default_rng(0)
    rows, width, rank, tokens, scale = 6, 5, 3, 7, 0.7
    a, b, old, weight, gradient, first = (
        draw.normal(size=size).astype(np.float32)
        for size in (
            (rows, rank),
            (rank, width),
            (rows, rank),
            (rows, width),
            (tokens, width),
            (tokens, width),
        )
    )
    index = np.array([0, 2, 2, 5, 1, 0, 2])
    x = (
        np.eye(rows, dtype=np.float32)[index]
        if kind == "embedding"
        else draw.normal(size=(tokens, rows)).astype(np.float32)
    )

    def out(x, a, b):
        return scale * (x @ a) @ b

    d_x, d_a, d_b = jax.grad(lambda x, a, b: jnp.sum(gradient * out(x, a, b)), argnums=(0, 1, 2))(x, a, b)
    y = np.asarray(out(x, a, b), np.float64)
    found = numbers(
        Tap(index if kind == "embedding" else x, gradient),
        first,
        {"a": old, "b": b},
        {"a": a, "b": b},
        weight,
        jnp.float32(scale),
    )
    rms = np.sqrt(np.mean(y**2))
    expected = {
        "output_rms": rms,
        "output_shape_4": np.mean(y**4) / rms**4,
        "output_shape_6": np.mean(y**6) / rms**6,
        "input_gradient_rms": np.sqrt(np.mean(np.square(d_x))),
        "gradient_norm_a": np.linalg.norm(d_a),
        "gradient_norm_b": np.linalg.norm(d_b),
        "update_ratio_a": np.linalg.norm(a - old) / np.linalg.norm(a),
        "update_ratio_b": 0,
        "weight_ratio": np.linalg.norm(scale * a @ b) / np.linalg.norm(weight),
        "first_order_change": -np.sum(first * y),
    }
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-5), (
            name
        )  # float32 sums of some dozen terms


def test_taps_hand_on_the_gradients_of_the_loss(tiny):
    """Gradients of the factors that follow from a tap are those of the loss itself, through the whole network."""
    experiment, task = task_of(tiny)
    model = build_model(experiment)
    draw = np.random.default_rng(3)
    moved = jax.tree.map(
        lambda leaf: leaf + 0.1 * draw.normal(size=leaf.shape).astype(np.float32), model.trainable
    )
    batch = gather(jnp.asarray(task.buffer), task.tables["train"], jnp.array([0, 5, 120, -1]), task.spec)

    @jax.jit
    def both(frozen, trainable):
        def mean(trainable):
            total, count = task.loss(model.predict(frozen, trainable, batch.x, batch.x_mask), batch)
            return total / count

        return tap(model.predict, task.loss, model.targets, frozen, trainable, batch), jax.grad(mean)(
            trainable
        )

    seen, gradient = both(model.frozen, moved)
    assert seen.keys() == MODULES.keys()
    for path, factors in moved["adapters"].items():
        found = numbers(
            seen[path],
            seen[path].gradient,
            factors,
            factors,
            np.ones((2, 2), np.float32),
            jnp.float32(model.lora.scale),
        )
        for name in ("a", "b"):
            expected = np.linalg.norm(gradient["adapters"][path][name])
            assert expected > 0
            assert float(found[f"gradient_norm_{name}"]) == pytest.approx(
                expected, rel=1e-4
            )  # two orders of float32 sums


@pytest.mark.slow  # four programs each
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_padding_changes_nothing_and_never_moves(tiny, monkeypatch, optimizer):
    experiment, task = task_of(tiny)
    grid = replace(FEW, ranks=(3,), optimizers=(optimizer,), steps=(3,), sgd_rate=1e-3)
    after, measure = [], gradients.numbers
    assert bucket(3) == 16
    monkeypatch.setattr(
        gradients, "numbers", lambda *given: jax.debug.callback(after.append, given[3]) or measure(*given)
    )
    wide = study(experiment, grid, task=task).table
    assert len(after) >= 2 * grid.seeds
    for factors in after:
        assert factors["a"].shape[1] == factors["b"].shape[0] == 16
        assert np.any(factors["a"][:, :3])
        assert np.any(factors["b"][:3])
        assert not np.any(factors["a"][:, 3:])
        assert not np.any(factors["b"][3:])
    monkeypatch.undo()
    monkeypatch.setattr(gradients, "bucket", lambda rank: rank)
    plain = study(experiment, grid, task=task).table
    assert plain.drop(columns="value").equals(wide.drop(columns="value"))
    # steps of Adam pass float32's rounding on; the largest moment is a sixth power
    np.testing.assert_allclose(plain["value"], wide["value"], rtol=2e-3, atol=1e-12)


@pytest.mark.slow  # four programs
def test_seeds_at_a_time_change_nothing(tiny, monkeypatch):
    experiment, task = task_of(tiny)
    grid = replace(FEW, seeds=3)
    together = study(experiment, grid, task=task).table
    monkeypatch.setattr(gradients, "WINDOWS_AT_ONCE", 16)  # two at a time, the last one alone beside a filler
    apart = study(experiment, grid, task=task).table
    assert apart.drop(columns="value").equals(together.drop(columns="value"))
    assert apart["seed"].nunique() == 3
    np.testing.assert_allclose(apart["value"], together["value"], rtol=2e-3, atol=1e-12)  # as above
    assert together.groupby("quantity")["value"].nunique().max() > 1


def test_the_package_starts_are_taken_as_they_are():
    targets = {
        "gpt2/wpe": AdapterTarget("embedding", (40, 30)),
        "out_layer": AdapterTarget("dense", (50, 20)),
    }
    for init in ("theorem", "peft_gaussian", "kaiming", "inverse_rank"):
        found = start(targets, 200, init, seed=7)
        for path, zero, other in (("gpt2/wpe", "a", "b"), ("out_layer", "b", "a")):
            assert not found[path][zero].any()
            # 6,000 and 10,000 draws: five standard errors are 5 %
            assert found[path][other].std() == pytest.approx(start_std(targets[path], init, 200), rel=0.05)
            if init != "inverse_rank":
                np.testing.assert_array_equal(
                    found[path][other],
                    init_adapters(targets, LoraConfig(200, 1, init=init), seed=7)[path][other],
                )
    assert (
        start_std(targets["gpt2/wpe"], "inverse_rank", 200)
        == start_std(targets["out_layer"], "peft_gaussian", 200)
        == 1 / 200
    )


def test_moments_of_finite_ranks_are_those_of_many_draws():
    draw = np.random.default_rng(1)
    left, right, rank, sigma = draw.normal(size=(3, 5)), draw.normal(size=(5, 2)), 4, 0.5
    lkr = LKR(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=0), left @ right)
    factors = sigma * draw.normal(size=(200_000, 5, rank))
    drawn = left @ (factors @ factors.transpose(0, 2, 1)) @ right
    assert lkr.mean_square(rank) == pytest.approx(lkr.moment(2, rank), rel=1e-12)
    assert lkr.moment(1, rank) == pytest.approx(rank * np.mean(left @ right), rel=1e-12)
    for order, tolerance in ((2, 0.01), (4, 0.05), (6, 0.2)):  # heavier tails, larger errors of the mean
        assert sigma ** (2 * order) * lkr.moment(order, rank) == pytest.approx(
            np.mean(drawn**order), rel=tolerance
        )


def test_the_curve_of_an_embedding_knows_positions_that_come_twice():
    draw = np.random.default_rng(2)
    index, gradient, rank = np.array([0, 3, 3]), draw.normal(size=(3, 4)), 3
    expected = Expected.of(AdapterTarget("embedding", (5, 4)), index, gradient, np.ones((5, 4)))
    x = np.eye(5)[index]
    b = draw.normal(size=(100_000, rank, 4))
    out = x @ (x.T @ gradient @ b.transpose(0, 2, 1)) @ b
    values = dict(expected.values(rank, 1.0, 1.0, 1.0, 1))
    assert values["output_rms"] == pytest.approx(np.sqrt(np.mean(out**2)), rel=0.01)
    assert values["first_order_change"] == pytest.approx(
        np.mean(np.sum(gradient * out, axis=(1, 2))), rel=0.02
    )


def table_of(values: dict[int, list[float]], quantity: str = "output_rms") -> pd.DataFrame:
    rows = [
        ("out_layer", "dense", rank, "rslora", "theorem", "sgd", 1, seed, quantity, value)
        for rank, per_seed in values.items()
        for seed, value in enumerate(per_seed)
    ]
    return pd.DataFrame(
        rows,
        columns=[
            "module",
            "kind",
            "rank",
            "scaling",
            "init",
            "optimizer",
            "steps",
            "seed",
            "quantity",
            "value",
        ],
    )


NO_CURVES = table_of({}).drop(columns="seed")


def test_a_slope_is_that_of_the_mean_over_seeds():
    exact = slopes(table_of({rank: [3 * rank**-1.5] * 2 for rank in (2, 8, 32, 128)}), NO_CURVES).iloc[0]
    assert exact["slope"] == pytest.approx(-1.5, abs=1e-12)
    assert exact["high"] - exact["low"] < 1e-6
    assert np.isnan(exact["predicted"])
    # a mean quantity: 1 and 3 make 2; a root: the root of the mean square, sqrt 5
    for quantity, first in (("first_order_change", 2.0), ("output_rms", np.sqrt(5))):
        found = slopes(table_of({1: [1, 3], 2: [4, 4]}, quantity), NO_CURVES).iloc[0]
        assert found["slope"] == pytest.approx(np.log2(4 / first), abs=1e-12)
        assert np.isnan(found["low"])  # two points leave nothing of a line


def test_the_interval_of_a_slope_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    held = []
    for _ in range(200):
        values = {rank: list(np.exp(0.3 * draw.normal(size=3))) for rank in (2, 8, 32, 128, 512)}
        found = slopes(table_of(values), NO_CURVES).iloc[0]
        held.append(found["low"] <= 0 <= found["high"])
    assert 0.90 <= np.mean(held) <= 0.99  # 95 % of 200, three standard errors


def test_what_has_no_slope_has_none():
    table = pd.concat(
        [
            table_of({2: [0, 0], 4: [0, 0]}, "output_rms"),
            table_of({2: [-1, 0.5], 4: [1, 1]}, "first_order_change"),
            table_of({2: [np.inf, 1], 4: [1, 1]}, "weight_ratio"),
            table_of({2: [np.nan, 1], 4: [1, 1]}, "gradient_norm_a"),
        ]
    )
    found = slopes(table, NO_CURVES).set_index("quantity")
    assert list(found.index) == ["first_order_change", "weight_ratio", "gradient_norm_a"]
    assert found[["slope", "low", "high"]].isna().all().all()
    with pytest.raises(ConfigError, match="two ranks at least"):
        slopes(table_of({2: [1, 2]}), NO_CURVES)


@pytest.mark.slow  # four programs each
@pytest.mark.parametrize("task", ["imputation", "classification"])
def test_other_tasks_are_measured_too(tiny, tmp_path, task):
    """Many steps, Adam, windows that hide points: the identity of the first step shows that the measured windows are the trained ones."""
    experiment = tiny.of_task(task, tmp_path)
    grid = Grid(
        ranks=(1,),
        scalings=("rslora",),
        inits=("kaiming",),
        optimizers=("sgd",),
        steps=(0, 1, 3),
        seeds=1,
        windows=4,
    )
    found = study(experiment, grid)
    assert found.windows == 4
    assert np.isfinite(found.table["value"]).all()
    values = found.table.set_index(["module", "steps", "quantity"])["value"]
    for module, kind in dict(
        found.table[["module", "kind"]].drop_duplicates().itertuples(index=False)
    ).items():
        gradient = values[module, 0, f"gradient_norm_{'a' if kind == 'embedding' else 'b'}"]
        assert values[module, 1, "first_order_change"] == pytest.approx(1e-6 * gradient**2, rel=1e-3)
        assert 0 < values[module, 1, "output_rms"] != values[module, 3, "output_rms"] > 0
        assert (module, 0, "update_ratio_a") not in values


def test_one_window_one_channel_rank_one_and_a_rank_above_the_layer(tiny):
    experiment, task = task_of(tiny)
    first = next(iter(task.tables.values()))
    single = type(first)(*(column[:1] for column in first))
    one = replace(task, tables={"train": single}, buffer=task.buffer[:, :1])
    grid = Grid(
        ranks=(1, 12), scalings=("none",), inits=("theorem",), optimizers=("adam",), steps=(0, 1), seeds=1
    )
    assert {min(target.shape) for target in build_model(experiment).targets.values()} == {8}
    found = study(experiment, grid, task=one)
    assert found.windows == 1
    assert np.isfinite(found.table["value"]).all()
    assert (
        found.table[(found.table["quantity"] == "output_rms") & (found.table["steps"] == 1)]["value"] > 0
    ).all()
    assert (slopes(found.table, found.curves)["quantity"] == "output_rms").sum() == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("adapters.alpha=0",),
            r"adapters\.alpha: with alpha 0 an adapter does nothing, and every number is 0\. Take a larger one",
        ),
        (("recipe=head_only",), r"rules: the rules give no layer an adapter\. Adapt one"),
    ],
)
def test_a_study_of_nothing_is_refused(tiny, overrides, said):
    experiment, task = task_of(tiny, *overrides)
    with pytest.raises(ConfigError, match=said):
        study(experiment, Grid(ranks=(2,)), task=task)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ranks": ()}, r"ranks: \[\] is empty or names something twice"),
        ({"ranks": (2, 2)}, r"ranks: \[2, 2\] is empty or names something twice"),
        ({"ranks": (4, 0)}, "ranks: 0 is less than 1"),
        ({"steps": (-1, 2)}, "steps: -1 is less than 0"),
        ({"seeds": 0}, "seeds: 0 is less than 1"),
        ({"windows": 0}, "windows: 0 is less than 1"),
        ({"scalings": ("rs",)}, "scalings: 'rs' is not one of rslora, lora, none"),
        ({"inits": ("zero",)}, "inits: 'zero' is not one of theorem, peft_gaussian, kaiming, inverse_rank"),
        ({"optimizers": ("lion",)}, "optimizers: 'lion' is not one of sgd, adam"),
        ({"sgd_rate": 0.0}, "the step size 0.0 is not a positive number"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        Grid(**given)


def test_dropout_and_recomputed_blocks_are_off(tiny):
    experiment, task = task_of(tiny)
    grid = FEW
    loud = tiny.experiment("unused", "trunk.dropout=0.5", "adapters.dropout=0.5", "trunk.remat=true")
    pd.testing.assert_frame_equal(
        study(experiment, grid, task=task).table, study(loud, grid, task=task).table
    )


def test_published_data_are_read_where_no_windows_are_given(tiny, tmp_path):
    experiment = tiny.experiment(tiny.csv(tmp_path / "tiny.csv"), *STILL)
    found = study(experiment, FEW)
    task = prepare(experiment.data, experiment.task, protocol="strict", batch_size=1).task
    pd.testing.assert_frame_equal(found.table, study(experiment, FEW, task=task).table)


def test_scale_enters_as_the_adapters_have_it(tiny):
    """The study's own predict function is the package's, at the rank's own scale also where factors are padded."""
    experiment, task = task_of(tiny)
    model = build_model(experiment)
    batch = gather(jnp.asarray(task.buffer), task.tables["train"], jnp.array([0, 5]), task.spec)
    moved = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.1), model.trainable["adapters"])
    plain = jax.jit(model.predict)(model.frozen, {"adapters": moved, "base": {}}, batch.x, batch.x_mask)
    wide = {"adapters": padded(moved, 16), "base": {}}
    found = jax.jit(predict_function(model.network, model.lora, scale=jnp.float32(model.lora.scale)))(
        model.frozen, wide, batch.x, batch.x_mask
    )
    np.testing.assert_allclose(
        found, plain, rtol=1e-4, atol=1e-5
    )  # sums over sixteen columns instead of four


def test_the_command_writes_tables_and_figures(tiny, tmp_path):
    config, out = tiny.config(tmp_path), tmp_path / "study"
    options = [
        "--ranks",
        "2,4",
        "--scalings",
        "rslora",
        "--inits",
        "theorem",
        "--optimizers",
        "adam",
        "--steps",
        "2",
        "--seeds",
        "2",
    ]
    arguments = ["gradients", str(config), "--windows", "8", *options, "--out", str(out)]
    ran = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert ran.exit_code == 0
    told = json.loads(ran.stdout)
    written = {path.name for path in out.iterdir()}
    assert written >= {
        "study.csv",
        "curves.csv",
        "slopes.csv",
        "study.json",
        "output_rms.png",
        "gradient_norm_a.png",
    }
    table, fitted = pd.read_csv(out / "study.csv"), pd.read_csv(out / "slopes.csv")
    assert list(table.columns) == [
        "module",
        "kind",
        "rank",
        "scaling",
        "init",
        "optimizer",
        "steps",
        "seed",
        "quantity",
        "value",
    ]
    assert list(fitted.columns) == [
        "module",
        "kind",
        "scaling",
        "init",
        "optimizer",
        "steps",
        "quantity",
        "slope",
        "low",
        "high",
        "predicted",
    ]
    assert len(table) == 2 * 2 * 2 * 10  # ranks, seeds, modules, quantities
    assert [row["slope"] for row in told["slopes"]] == pytest.approx(list(fitted["slope"]))
    assert all(row["predicted"] is None for row in told["slopes"])
    about = json.loads((out / "study.json").read_text())
    assert (
        about["format"],
        about["grid"]["ranks"],
        about["windows"],
        about["settings"]["task"]["horizon"],
    ) == (1, [2, 4], 8, 8)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(
        CheckpointError, match=r"study: there is something here already\. Choose a new folder"
    ):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert before == {path: path.read_bytes() for path in out.iterdir()}


def test_mistakes_of_the_command_are_told_before_anything_is_measured(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ofa_jax.studies.gradients.folder.study", lambda *given, **more: pytest.fail("it began")
    )
    config = str(tiny.config(tmp_path))
    for options, said in (
        (["--ranks", "2,x"], r"ranks: '2,x' is no list of whole numbers"),
        (["--ranks", "8"], "ranks: a slope against rank needs two ranks at least"),
        (["--scalings", "rslora,lola"], "scalings: 'lola' is not one of rslora, lora, none"),
        (["--seeds", "0"], "seeds: 0 is less than 1"),
        (["--adam-rate", "-1"], "the step size -1.0 is not a positive number"),
    ):
        with pytest.raises(ConfigError, match=said):
            CliRunner().invoke(
                app, ["gradients", config, *options, "--out", str(tmp_path / "new")], catch_exceptions=False
            )
    assert not (tmp_path / "new").exists()

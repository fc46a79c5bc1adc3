"""The gradient-stability study: measured against theory, the quantities of one adapter, and refused input."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ofa_jax.adapters.partition import AdapterTarget
from ofa_jax.adapters.rslora import LoraConfig, init_adapters
from ofa_jax.build import build_model
from ofa_jax.cli.main import app
from ofa_jax.config.load import load_experiment
from ofa_jax.config.schema import Experiment
from ofa_jax.errors import CheckpointError, ConfigError
from ofa_jax.studies.gradients import study as gradients
from ofa_jax.studies.gradients.study import RANKS, Grid, Study, StudyRunner, draw_adapters, study
from ofa_jax.studies.gradients.taps import Tap, quantities
from ofa_jax.studies.gradients.theory import KEYS, LKR, FirstStep, init_std, seed_mean_power, slopes
from ofa_jax.studies.sweep.program import bucket
from ofa_jax.tasks.base import Task
from ofa_jax.tasks.forecast import prepare_frame
from ofa_jax.windows.batch import gather
from ofa_jax.windows.order import IndexStream
from ofa_jax.windows.table import WindowTable

FEW = Grid(
    ranks=(24,),
    scalings=("rslora",),
    inits=("theorem",),
    optimizers=("sgd",),
    steps=(1,),
    seeds=64,
    windows=8,
)
"""Ranks of the second bucket, 32 seeds side by side: most tests share these compiled programs."""
MODULES = {"gpt2/wpe": "embedding", "out_layer": "dense"}
THREE = {("rslora", "theorem"): 0, ("lora", "theorem"): -1, ("rslora", "inverse_rank"): -2}
"""The three slopes of the first-order loss change, protocol §1."""


@pytest.fixture(scope="module")
def experiment(tiny: Any) -> Experiment:
    """A random trunk of one block."""
    return tiny.experiment("unused", "adapters.rank=24", "trunk.dropout=0", "adapters.dropout=0")


@pytest.fixture(scope="module")
def task(tiny: Any, experiment: Experiment) -> Task:
    return prepare_frame(tiny.frame(), experiment.data, experiment.task).task


@pytest.fixture(scope="module")
def small(experiment: Experiment, task: Task) -> Study:
    """Ranks up to eight times the trunk's width."""
    inits = ("theorem", "inverse_rank")
    grid = replace(FEW, ranks=(24, 128), scalings=("rslora", "lora"), inits=inits, steps=(0, 1))
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


@pytest.mark.slow
def test_the_loss_changes_by_the_three_slopes(small):
    assert_three_slopes(small)


@pytest.mark.slow  # four ranks of a real configuration, twelve seeds
@pytest.mark.usefixtures("data_root")
def test_the_loss_changes_by_the_three_slopes_on_real_windows():
    experiment = load_experiment("quick/etth1")
    assert experiment.trunk.source == "random"
    inits = ("theorem", "inverse_rank")
    found = study(
        experiment,
        replace(FEW, ranks=RANKS[::3], scalings=("rslora", "lora"), inits=inits, seeds=12, windows=32),
    )
    assert found.windows == 32
    assert_three_slopes(found)
    assert_on_the_curves(found)


def assert_on_the_curves(found: Study) -> None:
    """Means over seeds are within five standard errors of theory, plus 1 % for linearization."""
    keys = [*KEYS, "rank"]
    power = found.table["quantity"].map(seed_mean_power)
    measured = found.table.assign(value=found.table["value"] ** power).groupby(keys)["value"]
    both = (
        measured.agg(["mean", "sem"]).join(found.curves.set_index(keys)["value"], how="inner").reset_index()
    )
    heavy_tailed = {"output_moment_4", "output_moment_6"}  # their standard errors are, too
    compared = {"output_rms", "input_gradient_rms", "first_order_change"}
    assert set(both["quantity"]) >= compared | heavy_tailed
    for row in both[~both["quantity"].isin(heavy_tailed)].itertuples():
        expected = row.value ** seed_mean_power(row.quantity)
        assert abs(row.mean - expected) <= 5 * row.sem + 0.01 * expected, row


@pytest.mark.slow
def test_finite_ranks_lie_on_their_curves(small):
    assert_on_the_curves(small)
    rms = small.curves[(small.curves["quantity"] == "output_rms") & (small.curves["module"] == "gpt2/wpe")]
    rslora = rms[(rms["scaling"] == "rslora") & (rms["init"] == "theorem")].set_index("rank")["value"]
    # alpha²/r sqrt(r (r + d + 1)) at d = 16
    expected = np.sqrt(24 * 41) / 24 / (np.sqrt(128 * 145) / 128)
    assert rslora[24] / rslora[128] == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_the_first_step_reduces_the_loss_by_its_squared_gradient(small, module):
    """``-<G, out> = eta |dL/dzero|²`` for every seed: the step's own windows, scale and learning rate."""
    zero = "gradient_norm_a" if module == "gpt2/wpe" else "gradient_norm_b"
    own = small.table[small.table["module"] == module].set_index(["rank", "scaling", "init", "seed"])
    gradient = own[(own["quantity"] == zero) & (own["steps"] == 0)]["value"]
    change = own[(own["quantity"] == "first_order_change") & (own["steps"] == 1)]["value"]
    assert len(change) == 2 * 2 * 2 * 64
    # the other adapter's step moves this one's input by a millionth or so
    expected = FEW.sgd_learning_rate * gradient.reindex(change.index) ** 2
    np.testing.assert_allclose(change, expected, rtol=1e-3)


@pytest.mark.slow
def test_the_first_step_of_adam_moves_by_the_sum_of_sizes(experiment, task):
    """``-<G, out> = eta sum |dL/dzero|``, with slope +1/2 for rslora: it is not stable under Adam."""
    grid = replace(FEW, ranks=(24, 48), optimizers=("adam",), seeds=32, adam_learning_rate=1e-6)
    found = study(experiment, grid, task=task)
    change = found.table[found.table["quantity"] == "first_order_change"]
    values = change.groupby(["module", "rank"])["value"].agg(["mean", "sem"])
    assert len(values) == 4
    curves = found.curves.set_index(["module", "rank"])
    assert set(curves["quantity"]) == {"first_order_change"}
    for place, row in values.iterrows():
        # linearization, and Adam's epsilon, which matters for the smallest gradients
        assert abs(row["mean"] - curves["value"][place]) <= 4 * row["sem"] + 0.01 * curves["value"][place]
    assert first_order(found)["predicted"].tolist() == pytest.approx([0.5, 0.5], abs=1e-9)


@pytest.mark.parametrize("kind", ["dense", "embedding"])
def test_quantities_match_autodiff(kind):
    rows, width, rank, tokens, scale = 6, 5, 3, 7, 0.7
    draw = np.random.default_rng(0)
    shapes = (rows, rank), (rank, width), (rows, rank), (rows, width), (tokens, width), (tokens, width)
    a, b, old, weight, gradient, first = (draw.normal(size=shape).astype(np.float32) for shape in shapes)
    index = np.array([0, 2, 2, 5, 1, 0, 2])
    dense = draw.normal(size=(tokens, rows)).astype(np.float32)
    x = np.eye(rows, dtype=np.float32)[index] if kind == "embedding" else dense

    def out(x, a, b):
        return scale * (x @ a) @ b

    d_x, d_a, d_b = jax.grad(lambda x, a, b: jnp.sum(gradient * out(x, a, b)), argnums=(0, 1, 2))(x, a, b)
    y = np.asarray(out(x, a, b), np.float64)
    seen = Tap(index if kind == "embedding" else x, gradient)
    found = quantities(seen, first, {"a": old, "b": b}, {"a": a, "b": b}, weight, jnp.float32(scale))
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
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-5), name  # float32 sums of dozens


@pytest.mark.slow
def test_gradient_norms_are_those_of_the_loss(experiment, task):
    """Norms that follow from taps, at padded rank, are those of the model's own loss through the network."""
    runner = StudyRunner(experiment, replace(FEW, steps=(0,)), task)
    model, draw, rank = runner.model, np.random.default_rng(3), experiment.adapters.rank
    assert rank < bucket(rank)

    def moved(leaf):
        return leaf + 0.1 * draw.normal(size=leaf.shape).astype(np.float32)

    drawn = [jax.tree.map(moved, model.trainable["adapters"]) for _ in range(32)]
    index = IndexStream(task.tables["train"].size, 8, seed=experiment.train.seed).batches(0, 1)[0]
    batch = gather(jnp.asarray(task.buffer), task.tables["train"], jnp.asarray(index), task.spec)

    def mean_loss(adapters):
        prediction = model.predict(
            model.frozen, {**model.trainable, "adapters": adapters}, batch.x, batch.x_mask
        )
        total, count = task.loss(prediction, batch)
        return total / count

    gradient = jax.jit(jax.grad(mean_loss))(drawn[5])
    found = {
        (path, name): value
        for path, _, seed, name, value in runner.measure(drawn, rank, model.lora.scale, "sgd")
        if seed == 5
    }
    for path in MODULES:
        for name in ("a", "b"):
            expected = np.linalg.norm(gradient[path][name])
            assert expected > 0
            # two orders of float32 sums
            assert found[path, f"gradient_norm_{name}"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_study_reads_its_data_and_turns_dropout_and_remat_off(tiny, tmp_path, small):
    noisy = "trunk.dropout=0.5", "adapters.dropout=0.5", "trunk.remat=true"
    found = study(tiny.experiment(tiny.csv(tmp_path / "tiny.csv"), *noisy), FEW).table
    cell = small.table.query("rank == 24 and scaling == 'rslora' and init == 'theorem' and steps == 1")
    pd.testing.assert_frame_equal(found, cell.reset_index(drop=True))


@pytest.mark.slow  # four programs each
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_padding_changes_nothing_and_never_moves(experiment, task, monkeypatch, optimizer):
    grid = replace(FEW, ranks=(3,), optimizers=(optimizer,), steps=(3,), seeds=2, sgd_learning_rate=1e-3)
    after, measure = [], gradients.quantities
    assert bucket(3) == 16
    monkeypatch.setattr(
        gradients, "quantities", lambda *given: jax.debug.callback(after.append, given[3]) or measure(*given)
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
    # Adam's steps amplify float32 rounding; the largest moment is a sixth power
    np.testing.assert_allclose(plain["value"], wide["value"], rtol=2e-3, atol=1e-12)


@pytest.mark.slow  # four programs
def test_seeds_side_by_side_change_nothing(experiment, task, monkeypatch):
    grid = replace(FEW, optimizers=("adam",), steps=(2,), seeds=3)
    together = study(experiment, grid, task=task).table
    monkeypatch.setattr(gradients, "WINDOWS_AT_ONCE", 16)  # two side by side, the last one with a filler
    apart = study(experiment, grid, task=task).table
    assert apart.drop(columns="value").equals(together.drop(columns="value"))
    assert apart["seed"].nunique() == 3
    np.testing.assert_allclose(apart["value"], together["value"], rtol=2e-3, atol=1e-12)  # as above
    assert together.groupby("quantity")["value"].nunique().max() > 1


def test_inits_are_those_of_the_package():
    sites = {"gpt2/wpe": AdapterTarget("embedding", (40, 30)), "out_layer": AdapterTarget("dense", (50, 20))}
    for init in ("theorem", "peft_gaussian", "kaiming", "inverse_rank"):
        found = draw_adapters(sites, 200, init, seed=7)
        for path, zero, other in (("gpt2/wpe", "a", "b"), ("out_layer", "b", "a")):
            assert not found[path][zero].any()
            # 6,000 and 10,000 draws: five standard errors are 5 %
            assert found[path][other].std() == pytest.approx(init_std(sites[path], init, 200), rel=0.05)
            if init != "inverse_rank":
                own = init_adapters(sites, LoraConfig(200, 1.0, init=init), seed=7)[path][other]
                np.testing.assert_array_equal(found[path][other], own)
    assert (
        init_std(sites["gpt2/wpe"], "inverse_rank", 200)
        == init_std(sites["out_layer"], "peft_gaussian", 200)
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
    expected = FirstStep.of(AdapterTarget("embedding", (5, 4)), index, gradient, np.ones((5, 4)))
    x = np.eye(5)[index]
    b = draw.normal(size=(100_000, rank, 4))
    out = x @ (x.T @ gradient @ b.transpose(0, 2, 1)) @ b
    values = dict(expected.expected(rank, 1.0, 1.0, 1.0, 1, "sgd"))
    assert values["output_rms"] == pytest.approx(np.sqrt(np.mean(out**2)), rel=0.01)
    assert values["first_order_change"] == pytest.approx(
        np.mean(np.sum(gradient * out, axis=(1, 2))), rel=0.02
    )


COLUMNS = ["module", "kind", "rank", "scaling", "init", "optimizer", "steps", "seed", "quantity", "value"]


def table_of(values: dict[int, list[float]], quantity: str = "output_rms") -> pd.DataFrame:
    rows = [
        ("out_layer", "dense", rank, "rslora", "theorem", "sgd", 1, seed, quantity, value)
        for rank, per_seed in values.items()
        for seed, value in enumerate(per_seed)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


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
    assert slopes(table_of({2: [1, 2]}), NO_CURVES)[["slope", "low", "high"]].isna().all().all()  # one rank


@pytest.mark.slow  # four programs each
@pytest.mark.parametrize("name", ["imputation", "classification"])
def test_other_tasks_are_measured_too(tiny, tmp_path, name):
    """The identity of the first step shows that the measured windows are the trained ones."""
    found = study(
        tiny.of_task(name, tmp_path),
        replace(FEW, ranks=(1,), inits=("kaiming",), steps=(0, 1, 3), seeds=1, windows=4),
    )
    assert found.windows == 4
    assert np.isfinite(found.table["value"]).all()
    values = found.table.set_index(["module", "steps", "quantity"])["value"]
    kinds = found.table[["module", "kind"]].drop_duplicates()
    for module, kind in kinds.itertuples(index=False):
        gradient = values[module, 0, f"gradient_norm_{'a' if kind == 'embedding' else 'b'}"]
        assert values[module, 1, "first_order_change"] == pytest.approx(1e-6 * gradient**2, rel=1e-3)
        assert 0 < values[module, 1, "output_rms"] != values[module, 3, "output_rms"] > 0
        assert (module, 0, "update_ratio_a") not in values


@pytest.mark.slow  # its own programs
def test_one_window_one_channel_rank_one_and_a_rank_above_the_layer(experiment, task):
    table = WindowTable(*(column[:1] for column in task.tables["train"]))
    one = replace(task, tables={"train": table}, buffer=task.buffer[:, :1])
    grid = replace(
        FEW, ranks=(1, 12), scalings=("none",), optimizers=("adam",), steps=(0, 1), seeds=1, windows=64
    )
    assert {min(site.shape) for site in build_model(experiment).targets.values()} == {8}
    found = study(experiment, grid, task=one)
    assert found.windows == 1
    assert np.isfinite(found.table["value"]).all()
    assert (found.table.query("quantity == 'output_rms' and steps == 1")["value"] > 0).all()
    assert (slopes(found.table, found.curves)["quantity"] == "output_rms").sum() == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapters.alpha=0", r"adapters\.alpha: with alpha 0 adapters have no effect\. Set a positive value"),
        ("recipe=head_only", r"rules: the rules give no layer an adapter\. Adapt one"),
    ],
)
def test_a_study_of_nothing_is_refused(tiny, task, override, message):
    with pytest.raises(ConfigError, match=message):
        study(tiny.experiment("unused", override), Grid(ranks=(2,)), task=task)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ranks": ()}, r"ranks: list at least one value, and each once \(found \(\)\)"),
        ({"ranks": (2, 2)}, r"ranks: list at least one value, and each once \(found \(2, 2\)\)"),
        ({"ranks": (4, 0)}, r"ranks: input should be greater than 0 \(found 0\)"),
        ({"steps": (-1, 2)}, r"steps: input should be greater than or equal to 0 \(found -1\)"),
        ({"seeds": 0}, r"seeds: input should be greater than 0 \(found 0\)"),
        ({"windows": 0}, r"windows: input should be greater than 0 \(found 0\)"),
        ({"scalings": ("rs",)}, r"scalings: input should be 'rslora', 'lora' or 'none' \(found 'rs'\)"),
        ({"inits": ("zero",)}, r"inits: .*'kaiming' or 'inverse_rank' \(found 'zero'\)"),
        ({"optimizers": ("lion",)}, r"optimizers: input should be 'sgd' or 'adam' \(found 'lion'\)"),
        ({"sgd_learning_rate": 0.0}, r"sgd_learning_rate: input should be greater than 0 \(found 0\.0\)"),
        (
            {"adam_learning_rate": np.inf},
            r"adam_learning_rate: input should be a finite number \(found inf\)",
        ),
    ],
)
def test_an_invalid_grid_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Grid(**given)


@pytest.mark.slow
def test_the_command_writes_tables_and_figures(tiny, tmp_path):
    config, out = tiny.config(tmp_path), tmp_path / "study"
    options = (
        "--ranks 17,24 --scalings rslora --inits theorem --optimizers sgd --steps 2 --seeds 32 --windows 8"
    )
    arguments = ["gradients", str(config), *options.split(), "--out", str(out)]
    ran = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert ran.exit_code == 0
    printed = json.loads(ran.stdout)
    names = {path.name for path in out.iterdir()}
    figures = {"output_rms.png", "gradient_norm_a.png", "first_order_change.png"}
    assert names >= {"study.csv", "curves.csv", "slopes.csv", "study.json"} | figures
    table, fitted = pd.read_csv(out / "study.csv"), pd.read_csv(out / "slopes.csv")
    assert list(table.columns) == COLUMNS
    assert list(fitted.columns) == [*KEYS, "slope", "low", "high", "predicted"]
    assert len(table) == 2 * 32 * 2 * 10  # ranks, seeds, modules, quantities
    assert [row["slope"] for row in printed["slopes"]] == pytest.approx(list(fitted["slope"]))
    assert all(row["predicted"] is None for row in printed["slopes"])
    record = json.loads((out / "study.json").read_text())
    assert (record["format"], record["grid"]["ranks"], record["windows"]) == (1, [17, 24], 8)
    assert record["settings"]["task"]["horizon"] == 8
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(CheckpointError, match=r"study: not an empty folder\. Choose a new folder"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert before == {path: path.read_bytes() for path in out.iterdir()}


def test_invalid_options_are_refused_before_anything_is_measured(tiny, tmp_path, monkeypatch):
    started = "ofa_jax.studies.gradients.folder.study"
    monkeypatch.setattr(started, lambda *given, **more: pytest.fail("it started"))
    config = str(tiny.config(tmp_path))
    for options, message in (
        (["--ranks", "2,x"], r"ranks: .* valid integer.* \(found 'x'\)"),
        (["--ranks", "8"], "ranks: a slope against rank needs at least two ranks"),
        (["--scalings", "rslora,lola"], r"scalings: .*'rslora', 'lora' or 'none' \(found 'lola'\)"),
        (["--seeds", "0"], r"seeds: .* greater than 0 \(found 0\)"),
        (["--adam-learning-rate", "-1"], r"adam_learning_rate: .* greater than 0 \(found -1\.0\)"),
        (["--adam-rate", "-1"], r"adam_learning_rate: .* greater than 0 \(found -1\.0\)"),
    ):
        arguments = ["gradients", config, *options, "--out", str(tmp_path / "new")]
        with pytest.raises(ConfigError, match=message):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not (tmp_path / "new").exists()

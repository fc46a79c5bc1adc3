"""Rules over paths: every leaf is decided once, and every mistake in the rules is named."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from ofa_jax.adapters.partition import AdapterTarget, actions, combine, partition
from ofa_jax.build import build_model, footprint
from ofa_jax.config.load import build_experiment
from ofa_jax.config.recipes import RECIPES
from ofa_jax.errors import ConfigError
from ofa_jax.model.gpt2 import GPT2Config, GPT2Trunk
from ofa_jax.model.networks import ForecastNetwork, base_shapes
from ofa_jax.model.trees import fingerprint, flatten, unflatten
from ofa_jax.runs.bundle import load_bundle
from ofa_jax.runs.train import train_run
from ofa_jax.train.progress import SilentReporter

TREE = {
    "gpt2": {
        "wpe": {"embedding": np.zeros((7, 4))},
        "h": {
            "0": {
                "ln_1": {"scale": np.ones(4), "bias": np.zeros(4)},
                "mlp": {"c_fc": {"kernel": np.zeros((4, 8)), "bias": np.zeros(8)}},
            }
        },
    },
    "out_layer": {"kernel": np.zeros((4, 3)), "bias": np.zeros(3)},
}
PATHS = list(flatten(TREE))


def test_first_rule_that_matches_decides():
    rules = [("train", "out_layer/bias"), ("adapt", "out_layer/.*"), ("freeze", ".*")]
    decided = actions(PATHS, rules)
    assert list(decided) == PATHS
    assert decided["out_layer/bias"] == "train"
    assert decided["out_layer/kernel"] == "adapt"
    assert {action for path, action in decided.items() if not path.startswith("out_layer")} == {"freeze"}
    with pytest.raises(ConfigError, match=r"\[train, 'out_layer/bias'\] decides no parameter"):
        actions(PATHS, [("freeze", ".*"), rules[0]])


def test_an_expression_must_match_the_whole_path():
    with pytest.raises(ConfigError, match=r"\[train, 'bias'\] decides no parameter"):
        actions(PATHS, [("train", "bias"), ("freeze", ".*")])
    assert actions(PATHS, [("train", ".*/bias"), ("freeze", ".*")])["gpt2/h/0/ln_1/bias"] == "train"


def test_a_leaf_without_a_rule_is_named():
    with pytest.raises(ConfigError, match=r"rules: no rule covers the parameter 'out_layer/bias'"):
        partition(TREE, [("freeze", "gpt2/.*"), ("adapt", "out_layer/kernel")])
    with pytest.raises(ConfigError, match="no rule covers the parameter 'gpt2/h/0/ln_1/bias'"):
        partition(TREE, [])


def test_every_idle_rule_is_named_with_some_parameters():
    rules = [("train", "in_layer/.*"), ("adapt", "gpt2/wte/embedding"), ("freeze", ".*")]
    with pytest.raises(ConfigError) as caught:
        partition(TREE, rules)
    assert "[train, 'in_layer/.*'], [adapt, 'gpt2/wte/embedding'] decides no parameter" in str(caught.value)
    assert "gpt2/h/0/ln_1/bias" in str(caught.value)


@pytest.mark.parametrize("expression", ["(", "a**", "[", "(?P<x"])
def test_a_bad_expression_is_named(expression):
    with pytest.raises(ConfigError) as caught:
        partition(TREE, [("freeze", expression)])
    assert f"rules: {expression!r} is not a regular expression" in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("(a+)+x", "repeats a group"),
        ("(a+)(?#)*x", "has comments"),
        ("(?sx)(a+) *x", "has comments"),
        (r"[\](].*.*.*.*x", "has 4 repetitions"),
        (r"[^\])].*.*.*.*x", "has 4 repetitions"),
        ("(a|a)*x", "repeats a group"),
        ("(?:[a-z]|/)*[)]", "repeats a group"),
        ("(a?){30}", "repeats a group"),
        ("a{99999999999999999999}", "not a regular expression"),
        (".*.*.*.*x", "has 4 repetitions in a row, more than 3"),
        ("(.*|a)(.+|b)(.?|c)(d{2}|e)", "has 4 repetitions in a row"),
        ("a?" * 40 + "a" * 40, "has 40 repetitions"),
        ("(" * 300 + ")" * 300, "is too long"),
    ],
)
def test_an_expression_that_may_never_end_is_refused(expression, said):
    with pytest.raises(ConfigError) as caught:
        partition(TREE, [("freeze", expression), ("freeze", ".*")])
    assert said in str(caught.value)
    assert str(caught.value).startswith("rules: ")


@pytest.mark.parametrize(
    "expression",
    [
        r"(gpt2/h/\d+/.*|gpt2/wpe/.*|out_layer/.*|in_layer/.*|.*)",
        r"(?!x/)(gpt2/)?[^)*+]+/.*",
        r"gpt2/(wpe|h/\d+/[a-z_12]+)/.*|.*",
        r"[])*]?.*",
        r"\(?\)*.*",
    ],
)
def test_ordinary_expressions_are_taken(expression):
    actions(["gpt2/h/0/ln_1/scale"], [("freeze", expression)])


@pytest.mark.parametrize("path", ["out_layer/bias", "gpt2/h/0/ln_1/scale", "gpt2/h/0/ln_1/bias"])
def test_an_adapter_where_none_fits_is_refused(path):
    with pytest.raises(ConfigError, match=rf"rules: '{path}' of shape \(\d,\) cannot carry an adapter"):
        partition(TREE, [("adapt", path), ("freeze", ".*")])


def test_a_kernel_that_is_no_matrix_cannot_be_adapted():
    with pytest.raises(ConfigError, match=r"'conv/kernel' of shape \(3, 4, 8\) cannot carry an adapter"):
        partition({"conv": {"kernel": np.zeros((3, 4, 8))}}, [("adapt", "conv/kernel")])


def test_the_parts_of_a_partition():
    rules = [("adapt", "gpt2/wpe/embedding"), ("adapt", ".*/kernel"), ("train", ".*/(scale|bias)")]
    split = partition(TREE, rules)
    assert list(flatten(split.frozen)) == [
        "gpt2/h/0/mlp/c_fc/kernel",
        "gpt2/wpe/embedding",
        "out_layer/kernel",
    ]
    assert list(flatten(split.trained)) == [
        "gpt2/h/0/ln_1/bias",
        "gpt2/h/0/ln_1/scale",
        "gpt2/h/0/mlp/c_fc/bias",
        "out_layer/bias",
    ]
    assert split.targets == {
        "gpt2/wpe": AdapterTarget("embedding", (7, 4)),
        "gpt2/h/0/mlp/c_fc": AdapterTarget("dense", (4, 8)),
        "out_layer": AdapterTarget("dense", (4, 3)),
    }
    assert split.frozen["out_layer"]["kernel"] is TREE["out_layer"]["kernel"]


def test_a_layer_can_be_trained_and_adapted_at_once():
    split = partition(
        TREE,
        [
            ("train_and_adapt", "gpt2/wpe/embedding"),
            ("train_and_adapt", "out_layer/kernel"),
            ("freeze", ".*"),
        ],
    )
    assert list(flatten(split.trained)) == ["gpt2/wpe/embedding", "out_layer/kernel"]
    assert split.targets == {
        "gpt2/wpe": AdapterTarget("embedding", (7, 4)),
        "out_layer": AdapterTarget("dense", (4, 3)),
    }
    assert flatten(split.frozen).keys() == set(PATHS) - {"gpt2/wpe/embedding", "out_layer/kernel"}
    with pytest.raises(
        ConfigError, match=r"rules: 'gpt2/h/0/ln_1/scale' of shape \(4,\) cannot carry an adapter"
    ):
        partition(TREE, [("train_and_adapt", "gpt2/h/0/ln_1/scale"), ("freeze", ".*")])


names = st.text("abc", min_size=1, max_size=2)
trees = st.dictionaries(
    names,
    st.recursive(
        st.just(0), lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=10
    ),
    min_size=1,
    max_size=4,
)


@given(trees, st.data())
def test_combine_undoes_partition(tree, data):
    leaves = {path: np.full(2, index) for index, path in enumerate(flatten(tree))}
    choice = {path: data.draw(st.sampled_from(["freeze", "train"])) for path in leaves}
    split = partition(unflatten(leaves), [(choice[path], path) for path in leaves])
    frozen, trained = flatten(split.frozen), flatten(split.trained)
    assert frozen.keys() == {path for path in leaves if choice[path] == "freeze"}
    assert trained.keys() == {path for path in leaves if choice[path] == "train"}
    joined = flatten(combine(split.frozen, split.trained))
    assert joined.keys() == leaves.keys()
    assert all(joined[path] is leaves[path] for path in leaves)
    assert flatten(combine(split.trained, split.frozen)).keys() == leaves.keys()


def test_combine_leaves_its_arguments_alone_and_refuses_a_common_leaf():
    frozen, trained = {"a": {"x": 1}}, {"a": {"y": 2}, "b": 3}
    assert combine(frozen, trained) == {"a": {"x": 1, "y": 2}, "b": 3}
    assert (frozen, trained) == ({"a": {"x": 1}}, {"a": {"y": 2}, "b": 3})
    for other in ({"a": {"x": 5}}, {"a": 5}):
        with pytest.raises(ConfigError, match=r"both trees contain '[ax]'"):
            combine(frozen, other)


@pytest.mark.parametrize("recipe", RECIPES)
def test_rules_of_every_recipe_cover_its_network(recipe):
    positions = RECIPES[recipe].network["positions"]
    trunk = GPT2Trunk(GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=9), positions)
    network = ForecastNetwork(trunk, 24, 3, patch=8, stride=8)
    decided = actions(base_shapes(network), [tuple(rule) for rule in RECIPES[recipe].rules])
    acted = {path for path, action in decided.items() if action != "freeze"}
    head = {"out_layer/bias", "out_layer/kernel"}
    norms = {
        f"gpt2/{path}/{leaf}"
        for path in ("h/0/ln_1", "h/0/ln_2", "h/1/ln_1", "h/1/ln_2", "ln_f")
        for leaf in ("bias", "scale")
    }
    assert (
        acted
        == {
            "reference": {"gpt2/wpe/embedding", "out_layer/kernel"},
            "uniform": {"gpt2/wpe/embedding", "out_layer/kernel"},
            "paper": {"out_layer/kernel"},
            "output": {"out_layer/kernel"},
            "gpt4ts": head | norms | {"gpt2/wpe/embedding", "in_layer/bias", "in_layer/kernel"},
            "full": set(base_shapes(network)),
            "head_only": head,
        }[recipe]
    )


YEARLY = {
    "data": {"source": "m4_yearly"},
    "task": {"name": "short_term", "input_length": 12, "horizon": 6, "loss": "smape"},
    "network": {"read_width": 32},
}


def test_the_authors_short_term_set_at_gpt2_s_size():
    """Protocol §5 row 4: 0.84 M trained, 28,672 of them in the adapter on top of the trained ``wpe``."""
    counts = footprint(build_experiment(YEARLY))
    norms, wpe, token_conv, time_layer, head = 19_968, 1024 * 768, 3 * 768, 12 * 18 + 18, 32 + 1
    assert (counts.adapters, counts.trained_base) == (28_672, norms + wpe + token_conv + time_layer + head)
    assert counts.trainable == 837_643
    uniform = footprint(build_experiment(YEARLY | {"recipe": "uniform"}))
    assert (uniform.trainable, uniform.adapters) == (28_672 + 16 * (32 + 1), 28_672 + 16 * (32 + 1))


@pytest.fixture(scope="module")
def short_term(tiny, tmp_path_factory):
    """A run whose ``wpe`` is trained and adapted: the settings and the folder."""
    folder = tmp_path_factory.mktemp("short_term")
    experiment = tiny.of_task(
        "short_term", folder, "train.epochs=1", "train.batch_size=4"
    )  # two steps: b has no gradient in the first
    train_run(experiment, folder / "run", SilentReporter())
    return experiment, folder / "run"


@pytest.mark.slow
def test_a_layer_that_is_trained_and_adapted_moves_in_both(short_term):
    experiment, run = short_term
    start, trained = build_model(experiment), load_bundle(run).model
    assert list(trained.targets) == ["gpt2/wpe"]
    before, after = flatten(start.trainable), flatten(trained.trainable)
    assert before.keys() == after.keys()
    assert {"adapters/gpt2/wpe/a", "adapters/gpt2/wpe/b", "base/gpt2/wpe/embedding"} <= after.keys()
    assert not {path for path in before if not np.any(after[path] != before[path])}
    for path in ("base/gpt2/wpe/embedding", "adapters/gpt2/wpe/a"):
        assert (
            list(np.any(after[path] != before[path], axis=1)) == [True] * 9 + [False] * 15
        )  # L + H positions are read


@pytest.mark.slow
def test_what_a_run_trains_is_what_was_counted_and_saved(short_term):
    experiment, run = short_term
    counts, model = footprint(experiment), load_bundle(run).model
    sizes = {
        name: sum(leaf.size for leaf in flatten(tree).values()) for name, tree in model.trainable.items()
    }
    assert sizes == {"adapters": counts.adapters, "base": counts.trained_base}
    assert counts.adapters == 2 * (24 + 8)
    assert counts.frozen == sum(leaf.size for leaf in flatten(model.frozen).values())
    assert counts.inference_bytes == sum(leaf.nbytes for leaf in flatten(model.merged()).values())
    tensors = sum(file.stat().st_size for file in (run / "bundle").glob("*.safetensors"))
    assert counts.bundle_bytes < tensors < counts.bundle_bytes + 4000  # the rest is the files' headers


@pytest.mark.slow
def test_merging_adds_the_adapter_to_the_trained_weight(short_term):
    model = load_bundle(short_term[1]).model
    merged, factors = model.merged(), model.trainable["adapters"]["gpt2/wpe"]
    table = model.trainable["base"]["gpt2"]["wpe"]["embedding"]
    wanted = table + model.lora.scale * factors["a"].astype(np.float64) @ factors["b"]
    np.testing.assert_allclose(
        merged["gpt2"]["wpe"]["embedding"], wanted, rtol=0, atol=1e-6 * np.abs(wanted).max()
    )  # float32
    x = np.random.default_rng(0).normal(size=(2, 6, 1)).cumsum(axis=1).astype(np.float32)
    adapted = np.asarray(jax.jit(model.predict)(model.frozen, model.trainable, x))
    found = jax.jit(model.network.apply)({"params": merged}, x)
    np.testing.assert_allclose(
        found, adapted, rtol=0, atol=1e-5 * np.abs(adapted).max()
    )  # float32 sums in another order


@pytest.mark.slow
def test_such_a_bundle_comes_back_bit_for_bit(short_term, tmp_path):
    run = short_term[1]
    first, meta = load_bundle(run), json.loads((run / "bundle" / "ofa.json").read_text())
    assert sorted(meta["files"]) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "trained.safetensors",
    ]
    shutil.copytree(run / "bundle", tmp_path / "elsewhere")
    again = load_bundle(tmp_path / "elsewhere")
    for name in ("frozen", "trainable"):
        assert fingerprint(flatten(getattr(again.model, name)).items()) == fingerprint(
            flatten(getattr(first.model, name)).items()
        )
    content = load_file(run / "bundle" / "trained.safetensors")
    np.testing.assert_array_equal(
        content["gpt2/wpe/embedding"], first.model.trainable["base"]["gpt2"]["wpe"]["embedding"]
    )

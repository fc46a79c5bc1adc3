"""Rules over paths: every leaf is decided once, and every mistake in the rules is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.adapters.partition import Site, actions, adapter_sites, combine, partition
from ofa_jax.config import RECIPES
from ofa_jax.errors import ConfigError
from ofa_jax.model.gpt2 import GPT2Config
from ofa_jax.model.network import ForecastNetwork, base_shapes
from ofa_jax.model.trees import flatten

TREE = {
    "gpt2": {
        "wpe": {"embedding": np.zeros((7, 4))},
        "h": {
            "0": {"ln_1": {"scale": np.ones(4), "bias": np.zeros(4)}, "mlp": {"c_fc": {"kernel": np.zeros((4, 8)), "bias": np.zeros(8)}}}
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


@pytest.mark.parametrize("path", ["out_layer/bias", "gpt2/h/0/ln_1/scale", "gpt2/h/0/ln_1/bias"])
def test_an_adapter_where_none_fits_is_refused(path):
    with pytest.raises(ConfigError, match=rf"rules: '{path}' of shape \(\d,\) cannot carry an adapter"):
        partition(TREE, [("adapt", path), ("freeze", ".*")])


def test_a_kernel_that_is_no_matrix_cannot_be_adapted():
    with pytest.raises(ConfigError, match=r"'conv/kernel' of shape \(3, 4, 8\) cannot carry an adapter"):
        adapter_sites({"conv/kernel": (3, 4, 8)}, {"conv/kernel": "adapt"})


def test_the_parts_of_a_partition():
    rules = [("adapt", "gpt2/wpe/embedding"), ("adapt", ".*/kernel"), ("train", ".*/(scale|bias)")]
    split = partition(TREE, rules)
    assert list(flatten(split.frozen)) == ["gpt2/h/0/mlp/c_fc/kernel", "gpt2/wpe/embedding", "out_layer/kernel"]
    assert list(flatten(split.trained)) == ["gpt2/h/0/ln_1/bias", "gpt2/h/0/ln_1/scale", "gpt2/h/0/mlp/c_fc/bias", "out_layer/bias"]
    assert split.sites == {
        "gpt2/wpe": Site("embedding", (7, 4)),
        "gpt2/h/0/mlp/c_fc": Site("dense", (4, 8)),
        "out_layer": Site("dense", (4, 3)),
    }
    assert split.frozen["out_layer"]["kernel"] is TREE["out_layer"]["kernel"]


names = st.text("abc", min_size=1, max_size=2)
trees = st.dictionaries(
    names,
    st.recursive(st.just(0), lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=10),
    min_size=1,
    max_size=4,
)


@given(trees, st.data())
def test_combine_undoes_partition(tree, data):
    leaves = {path: np.full(2, index) for index, path in enumerate(flatten(tree))}
    choice = {path: data.draw(st.sampled_from(["freeze", "train"])) for path in leaves}
    flat_tree = _nest(leaves)
    split = partition(flat_tree, [(choice[path], path) for path in leaves])
    frozen, trained = flatten(split.frozen), flatten(split.trained)
    assert frozen.keys() == {path for path in leaves if choice[path] == "freeze"}
    assert trained.keys() == {path for path in leaves if choice[path] == "train"}
    joined = flatten(combine(split.frozen, split.trained))
    assert joined.keys() == leaves.keys()
    assert all(joined[path] is leaves[path] for path in leaves)
    assert flatten(combine(split.trained, split.frozen)).keys() == leaves.keys()


def _nest(flat):
    tree: dict = {}
    for path, leaf in flat.items():
        node = tree
        for folder in path.split("/")[:-1]:
            node = node.setdefault(folder, {})
        node[path.split("/")[-1]] = leaf
    return tree


def test_combine_leaves_its_arguments_alone_and_refuses_a_common_leaf():
    frozen, trained = {"a": {"x": 1}}, {"a": {"y": 2}, "b": 3}
    assert combine(frozen, trained) == {"a": {"x": 1, "y": 2}, "b": 3}
    assert (frozen, trained) == ({"a": {"x": 1}}, {"a": {"y": 2}, "b": 3})
    for other in ({"a": {"x": 5}}, {"a": 5}):
        with pytest.raises(ConfigError, match=r"both trees hold '[ax]'"):
            combine(frozen, other)


@pytest.mark.parametrize("recipe", RECIPES)
def test_rules_of_every_recipe_cover_its_network(recipe):
    positions = RECIPES[recipe]["network"]["positions"]
    network = ForecastNetwork(GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=9), 24, 3, patch=8, stride=8, positions=positions)
    decided = actions(base_shapes(network), [tuple(rule) for rule in RECIPES[recipe]["rules"]])
    acted = {path for path, action in decided.items() if action != "freeze"}
    head = {"out_layer/bias", "out_layer/kernel"}
    norms = {f"gpt2/{path}/{leaf}" for path in ("h/0/ln_1", "h/0/ln_2", "h/1/ln_1", "h/1/ln_2", "ln_f") for leaf in ("bias", "scale")}
    assert (
        acted
        == {
            "reference": {"gpt2/wpe/embedding", "out_layer/kernel"},
            "uniform": {"gpt2/wpe/embedding", "out_layer/kernel"},
            "paper": {"out_layer/kernel"},
            "gpt4ts": head | norms | {"gpt2/wpe/embedding", "in_layer/bias", "in_layer/kernel"},
            "full": set(base_shapes(network)),
            "head_only": head,
        }[recipe]
    )

"""Adapters as transforms: no effect at init, later the same as merged weights, nothing reached by mistake."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.adapters.partition import AdapterTarget, partition
from ofa_jax.adapters.rslora import LoraConfig, init_adapters, merge, with_adapters
from ofa_jax.config.recipes import RECIPES
from ofa_jax.errors import ConfigError, WeightsError
from ofa_jax.model.gpt2 import GPT2Config, GPT2Trunk
from ofa_jax.model.networks import ForecastNetwork, init_base
from ofa_jax.model.trees import flatten
from ofa_jax.model.weights import random_trunk

CONFIG = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=12, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
EVERYWHERE = [("adapt", ".*/(kernel|embedding)"), ("freeze", ".*")]
ADAPTING = {
    name: recipe.rules for name, recipe in RECIPES.items() if any(rule[0] == "adapt" for rule in recipe.rules)
}


def build(rules=EVERYWHERE, positions=True):
    network = ForecastNetwork(GPT2Trunk(CONFIG, positions), input_length=24, horizon=4, patch=8, stride=4)
    base = init_base(network, random_trunk(CONFIG, 0).params, seed=1)

    def apply(params, x, *, dropout_keys=None):
        return network.apply({"params": params}, x, dropout_keys=dropout_keys)

    return apply, base, partition(base, [tuple(rule) for rule in rules]).targets


def scaled(scale, dropout=0.0):
    """A configuration whose scale is exactly this."""
    return LoraConfig(1, scale, "none", dropout)


APPLY, BASE, TARGETS = build()


def series(b=3, c=2):
    return np.random.default_rng(0).normal(size=(b, 24, c)).cumsum(axis=1).astype(np.float32)


def moved(adapters, size=0.3):
    rng = np.random.default_rng(5)
    return jax.tree.map(
        lambda leaf: leaf + np.float32(size) * rng.normal(size=leaf.shape).astype(np.float32), adapters
    )


def keys(b=3, seed=0):
    return jax.random.split(jax.random.key(seed), b)


@pytest.mark.parametrize(
    ("rank", "alpha", "scaling", "scale"),
    [
        (16, 16, "rslora", 4.0),
        (16, 16, "lora", 1.0),
        (16, 16, "none", 16.0),
        (1024, 16, "rslora", 0.5),
        (2, 1, "rslora", 1 / math.sqrt(2)),
        (8, 0, "rslora", 0.0),
        (8, 0, "none", 0.0),
        (1, 3, "lora", 3.0),
    ],
)
def test_scale(rank, alpha, scaling, scale):
    assert LoraConfig(rank, alpha, scaling).scale == scale


@pytest.mark.parametrize("rank", [0, -1])
def test_ranks_below_one_are_refused(rank):
    with pytest.raises(ConfigError, match=rf"adapters\.rank: rank {rank} is not at least 1"):
        LoraConfig(rank, 16)


@pytest.mark.parametrize("name", ["scaling", "init"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ConfigError, match=rf"adapters\.{name}: 'x' is not one of "):
        LoraConfig(4, 16, **{name: "x"})


def test_every_recipe_with_adapters_is_tested_below():
    assert ADAPTING.keys() == {"uniform", "reference", "paper", "output"}
    assert ADAPTING["uniform"] == ADAPTING["reference"]
    assert ADAPTING["output"] == ADAPTING["paper"]


@pytest.mark.parametrize(
    ("recipe", "init"), [("reference", "peft_gaussian"), ("paper", "theorem"), ("reference", "kaiming")]
)
def test_adapters_at_init_change_nothing(recipe, init):
    apply, base, targets = build(ADAPTING[recipe], RECIPES[recipe].network["positions"])
    adapters = init_adapters(targets, LoraConfig(4, 16, init=init), seed=3)
    plain = jax.jit(apply)(base, series())
    np.testing.assert_array_equal(jax.jit(with_adapters(apply, scaled(4.0)))(base, adapters, series()), plain)
    for path, leaf in flatten(merge(base, adapters, scaled(4.0))).items():
        np.testing.assert_array_equal(leaf, flatten(base)[path])


@pytest.mark.parametrize(
    ("recipe", "rank", "scale"),
    [
        ("reference", 4, 8.0),
        ("paper", 4, 0.25),
        ("everywhere", 4, 8.0),
        ("everywhere", 24, 0.7),
        ("reference", 4, 0.0),
    ],
)
def test_with_adapters_equals_merge(recipe, rank, scale):
    """Also at a rank above the layers' smaller side (16), where ``a b`` has full rank; 1e-5 is float32."""
    rules, positions = (
        (EVERYWHERE, True)
        if recipe == "everywhere"
        else (ADAPTING[recipe], RECIPES[recipe].network["positions"])
    )
    apply, base, targets = build(rules, positions)
    adapters = moved(init_adapters(targets, LoraConfig(rank, 16)), 0.1)
    plain = np.asarray(jax.jit(apply)(base, series()))
    adapted = np.asarray(jax.jit(with_adapters(apply, scaled(scale)))(base, adapters, series()))
    merged = np.asarray(jax.jit(apply)(merge(base, adapters, scaled(scale)), series()))
    np.testing.assert_allclose(adapted, merged, rtol=0, atol=1e-5 * np.abs(merged).max())
    assert (np.abs(adapted - plain).max() > 0.01 * np.abs(plain).max()) == (scale > 0)


def test_merge_is_the_sum_in_weight_space_and_passes_the_rest_on():
    adapters = moved({"out_layer": init_adapters(TARGETS, LoraConfig(4, 16))["out_layer"]})
    merged = merge(BASE, adapters, scaled(3.0))
    a, b = adapters["out_layer"]["a"], adapters["out_layer"]["b"]
    np.testing.assert_allclose(
        merged["out_layer"]["kernel"], BASE["out_layer"]["kernel"] + 3 * a @ b, rtol=1e-5, atol=1e-6
    )
    for path, leaf in flatten(merged).items():
        assert path == "out_layer/kernel" or leaf is flatten(BASE)[path]


def test_a_traced_scale_replaces_the_configured_one():
    adapters = moved(init_adapters(TARGETS, LoraConfig(4, 16)), 0.1)

    def predict(scale):
        return with_adapters(APPLY, LoraConfig(4, 16), scale=scale)(BASE, adapters, series())

    wanted = jax.jit(with_adapters(APPLY, scaled(0.5)))(BASE, adapters, series())
    np.testing.assert_allclose(jax.jit(predict)(jnp.float32(0.5)), wanted, rtol=1e-6, atol=1e-6)


def test_every_adapter_has_an_effect():
    plain = jax.jit(APPLY)(BASE, series())
    adapters = moved(init_adapters(TARGETS, LoraConfig(4, 16)))
    adapted = jax.jit(with_adapters(APPLY, scaled(1.0)))
    for path in adapters:
        zeros = {name: jax.tree.map(np.zeros_like, factors) for name, factors in adapters.items()}
        assert np.abs(adapted(BASE, zeros | {path: adapters[path]}, series()) - plain).max() > 1e-4, path


@pytest.mark.parametrize(
    "path", ["wpe", "gpt2/wte", "gpt2/h/1/attn/c_attn", "gpt2/ln_f", "out_layer/kernel", "gpt2"]
)
def test_an_adapter_that_reaches_no_layer_is_refused(path):
    adapters = {path: {"a": np.zeros((16, 2), np.float32), "b": np.zeros((2, 16), np.float32)}}
    with pytest.raises(
        WeightsError, match=f"no dense or embedding layer is called {path}, so its adapter has no effect"
    ):
        jax.eval_shape(with_adapters(APPLY, scaled(1.0)), BASE, adapters, series())
    with pytest.raises(WeightsError, match=f"the parameters have no layer '{path}'"):
        merge(BASE, adapters, scaled(1.0))


@pytest.mark.parametrize(
    ("path", "a", "b"),
    [
        ("out_layer", (96, 2), (2, 1)),  # would broadcast over the horizon
        ("out_layer", (95, 2), (2, 4)),
        ("out_layer", (96, 2), (3, 4)),
        ("gpt2/wpe", (6, 2), (2, 16)),  # as many rows as there are patches, but not the table's
        ("gpt2/wpe", (13, 2), (2, 16)),
        ("gpt2/wpe", (12, 2), (2, 1)),
    ],
)
def test_an_adapter_of_another_shape_is_refused_by_both_transforms(path, a, b):
    assert BASE["out_layer"]["kernel"].shape == (96, 4)
    adapters = {path: {"a": np.ones(a, np.float32), "b": np.ones(b, np.float32)}}
    for call in (
        lambda: jax.eval_shape(with_adapters(APPLY, scaled(1.0)), BASE, adapters, series()),
        lambda: merge(BASE, adapters, scaled(1.0)),
    ):
        with pytest.raises(WeightsError) as caught:
            call()
        shape = (96, 4) if path == "out_layer" else (12, 16)
        found = f"the adapter of {path!r} has factors {a} and {b}, its layer's weight is {shape}"
        assert found in str(caught.value)


def test_gradients_reach_the_adapters():
    adapters = init_adapters(TARGETS, LoraConfig(4, 16))
    adapted = with_adapters(APPLY, scaled(4.0))
    gradients = jax.jit(jax.grad(lambda tree: jnp.square(adapted(BASE, tree, series())).sum()))(adapters)
    assert jax.tree.structure(gradients) == jax.tree.structure(adapters)
    for path, target in TARGETS.items():
        at_zero, other = ("b", "a") if target.kind == "dense" else ("a", "b")
        assert np.abs(gradients[path][at_zero]).max() > 0, path
        assert not np.any(gradients[path][other]), path  # its partner is zero


def test_dropout_acts_on_the_input_of_dense_adapters_only():
    adapters = moved(init_adapters(TARGETS, LoraConfig(4, 16)))
    adapted = jax.jit(with_adapters(APPLY, scaled(1.0, dropout=0.5)))
    for path in ("in_layer", "gpt2/wpe"):
        only = {path: adapters[path]}
        with_keys, without = adapted(BASE, only, series(), dropout_keys=keys()), adapted(BASE, only, series())
        if TARGETS[path].kind == "embedding":
            np.testing.assert_array_equal(with_keys, without)
        else:
            assert np.abs(with_keys - without).max() > 1e-4, path
    np.testing.assert_array_equal(without, jax.jit(with_adapters(APPLY, scaled(1.0)))(BASE, only, series()))


class OneLayer(nn.Module):
    @nn.compact
    def __call__(self, x, *, dropout_keys=None):
        return nn.Dense(1, use_bias=False, dtype=jnp.bfloat16, name="layer")(x)


@pytest.mark.slow
def test_dropout_keeps_its_rate_scale_and_sample():
    """Weights of zero and an adapter of ones: the output counts the inputs that were kept."""
    width, rate = 4000, 0.1

    def apply(params, x, *, dropout_keys=None):
        return OneLayer().apply({"params": params}, x).astype(jnp.float32)

    params = {"layer": {"kernel": np.zeros((width, 1), np.float32)}}
    adapters = {"layer": {"a": np.ones((width, 1), np.float32), "b": np.ones((1, 1), np.float32)}}
    adapted = with_adapters(apply, scaled(1.0, dropout=rate))
    x = np.ones((6, width), np.float32)
    kept = np.asarray(adapted(params, adapters, x, dropout_keys=keys(6)))[:, 0] * (1 - rate) / width
    assert np.all(
        np.abs(kept - (1 - rate)) < 5 * math.sqrt(rate * (1 - rate) / width) + 2**-8
    )  # the output is rounded to bfloat16
    assert len(set(kept)) > 1
    alone = adapted(params, adapters, x[:2], dropout_keys=keys(6)[3:5])[:, 0] * (1 - rate) / width
    np.testing.assert_allclose(alone, kept[3:5], rtol=1e-6)


@pytest.mark.slow
def test_channels_of_a_sample_have_masks_of_their_own():
    adapters = moved({"out_layer": init_adapters(TARGETS, LoraConfig(4, 16))["out_layer"]})
    adapted = jax.jit(with_adapters(APPLY, scaled(1.0, dropout=0.5)))
    twins = np.repeat(series(c=1), 2, axis=2)
    out = np.asarray(adapted(BASE, adapters, twins, dropout_keys=keys()))
    assert out.shape == (3, 4, 2)
    assert np.all(np.abs(out[..., 0] - out[..., 1]).max(axis=1) > 1e-3)
    alone = np.asarray(adapted(BASE, adapters, twins[1:2], dropout_keys=keys()[1:2]))
    np.testing.assert_allclose(alone, out[1:2], rtol=0, atol=1e-5 * np.abs(out).max())


def test_the_sum_is_made_in_float32_and_cast_to_the_layer_s_type():
    """bfloat16 has no number between 1 and 1 + 1/128, so 1 + 1/1024 - 1 shows where the sum was made."""

    def apply(params, x, *, dropout_keys=None):
        return OneLayer().apply({"params": params}, x)

    params = {"layer": {"kernel": -np.ones((1, 1), np.float32)}}
    adapters = {"layer": {"a": np.full((1, 1), 1 + 2**-10, np.float32), "b": np.ones((1, 1), np.float32)}}
    out = with_adapters(apply, scaled(1.0))(params, adapters, np.ones((1, 1), np.float32))
    assert out.dtype == jnp.bfloat16
    assert float(out[0, 0]) == 2**-10


@pytest.mark.parametrize(
    ("init", "dense_std", "embedding_std"),
    [
        ("peft_gaussian", 1 / 32, 1.0),
        ("theorem", 1 / math.sqrt(400), 1 / math.sqrt(300)),
        ("kaiming", 1 / math.sqrt(3 * 400), 1.0),
    ],
)
def test_distributions_of_each_init(init, dense_std, embedding_std):
    targets = {"dense": AdapterTarget("dense", (400, 5)), "table": AdapterTarget("embedding", (7, 300))}
    adapters = init_adapters(targets, LoraConfig(32, 16, init=init), seed=1)
    assert {path: leaf.shape for path, leaf in flatten(adapters).items()} == {
        "dense/a": (400, 32),
        "dense/b": (32, 5),
        "table/a": (7, 32),
        "table/b": (32, 300),
    }
    assert {leaf.dtype for leaf in flatten(adapters).values()} == {np.dtype(np.float32)}
    assert not adapters["dense"]["b"].any()
    assert not adapters["table"]["a"].any()
    for leaf, std in ((adapters["dense"]["a"], dense_std), (adapters["table"]["b"], embedding_std)):
        assert abs(leaf.std() / std - 1) < 4 / math.sqrt(2 * leaf.size)
        assert abs(leaf.mean()) < 4 * std / math.sqrt(leaf.size)
    if init == "kaiming":
        assert np.abs(adapters["dense"]["a"]).max() <= 1 / math.sqrt(400)


def test_the_theorem_s_init_does_not_depend_on_the_rank():
    targets = {"dense": AdapterTarget("dense", (500, 5)), "table": AdapterTarget("embedding", (7, 300))}
    for rank in (4, 64):
        adapters = init_adapters(targets, LoraConfig(rank, 16, init="theorem"))
        assert abs(adapters["dense"]["a"].std() * math.sqrt(500) - 1) < 0.07
        assert abs(adapters["table"]["b"].std() * math.sqrt(300) - 1) < 0.07


def test_a_seed_decides_the_bits_and_each_layer_has_its_own():
    one, same, other = (
        init_adapters(TARGETS, LoraConfig(4, 16), seed=1),
        init_adapters(TARGETS, LoraConfig(4, 16), seed=1),
        init_adapters(TARGETS, LoraConfig(4, 16), seed=2),
    )
    for path in TARGETS:
        for factor in ("a", "b"):
            np.testing.assert_array_equal(one[path][factor], same[path][factor])
            assert not one[path][factor].any() or np.any(one[path][factor] != other[path][factor])
    assert np.any(one["gpt2/h/0/attn/c_proj"]["a"] != one["gpt2/h/0/mlp/c_fc"]["a"])


@pytest.mark.slow
def test_adapters_inside_recomputed_blocks():
    trunks = [GPT2Trunk(CONFIG, remat=remat) for remat in (False, True)]
    adapters = moved(init_adapters(TARGETS, LoraConfig(4, 16)), 0.1)
    gradients = []
    for trunk in trunks:
        module = ForecastNetwork(trunk, input_length=24, horizon=4, patch=8, stride=4)

        def apply(params, x, *, dropout_keys=None, module=module):
            return module.apply({"params": params}, x, dropout_keys=dropout_keys)

        adapted = with_adapters(apply, scaled(1.0))
        gradients.append(
            jax.jit(jax.grad(lambda tree, adapted=adapted: jnp.square(adapted(BASE, tree, series())).sum()))(
                adapters
            )
        )
    for path, gradient in flatten(gradients[0]).items():
        np.testing.assert_allclose(
            flatten(gradients[1])[path], gradient, rtol=0, atol=1e-4 * np.abs(gradient).max(), err_msg=path
        )

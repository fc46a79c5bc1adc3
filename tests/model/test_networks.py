"""The forecast network: equivariances, dropout, precision, and the parameter tree as a literal."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from moved_trunk import moved_trunk

from ofa_jax.errors import ConfigError, WeightsError
from ofa_jax.model import frozen_init
from ofa_jax.model.gpt2 import GPT2Config, GPT2Trunk
from ofa_jax.model.networks import ForecastNetwork, base_shapes, channel_keys, init_base
from ofa_jax.model.trees import flatten
from ofa_jax.model.weights import random_trunk

# one block: most of the time here is compilation
CONFIG = GPT2Config(n_embd=16, n_layer=1, n_head=4, n_positions=12)
NETWORK = ForecastNetwork(GPT2Trunk(CONFIG), input_length=32, horizon=5, patch=8, stride=4)
QUIET = replace(NETWORK, trunk=GPT2Trunk(replace(CONFIG, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)))


BASE = init_base(NETWORK, moved_trunk(CONFIG), seed=1)


@partial(jax.jit, static_argnames="network")
def forecast(x_btc, keys=None, mask=None, network=NETWORK, params=BASE):
    return network.apply({"params": params}, x_btc, mask, dropout_keys=keys)


def series(b: int = 4, c: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(b, 32, c)).cumsum(axis=1) + 5 * rng.normal(size=(b, 1, c))).astype(np.float32)


def keys(b: int = 4, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), b)


def assert_close(found, wanted, tolerance=1e-5):
    """Within ``tolerance`` of the largest value: float32 sums in another order."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_parameter_tree_is_this_one():
    trunk = GPT2Trunk(GPT2Config(n_embd=4, n_layer=2, n_head=2, n_positions=7, n_inner=6))
    network = ForecastNetwork(trunk, 12, 3, patch=5, stride=2)
    assert network.tokens == 5
    assert base_shapes(network) == {
        "gpt2/h/0/attn/c_attn/bias": (12,),
        "gpt2/h/0/attn/c_attn/kernel": (4, 12),
        "gpt2/h/0/attn/c_proj/bias": (4,),
        "gpt2/h/0/attn/c_proj/kernel": (4, 4),
        "gpt2/h/0/ln_1/bias": (4,),
        "gpt2/h/0/ln_1/scale": (4,),
        "gpt2/h/0/ln_2/bias": (4,),
        "gpt2/h/0/ln_2/scale": (4,),
        "gpt2/h/0/mlp/c_fc/bias": (6,),
        "gpt2/h/0/mlp/c_fc/kernel": (4, 6),
        "gpt2/h/0/mlp/c_proj/bias": (4,),
        "gpt2/h/0/mlp/c_proj/kernel": (6, 4),
        "gpt2/h/1/attn/c_attn/bias": (12,),
        "gpt2/h/1/attn/c_attn/kernel": (4, 12),
        "gpt2/h/1/attn/c_proj/bias": (4,),
        "gpt2/h/1/attn/c_proj/kernel": (4, 4),
        "gpt2/h/1/ln_1/bias": (4,),
        "gpt2/h/1/ln_1/scale": (4,),
        "gpt2/h/1/ln_2/bias": (4,),
        "gpt2/h/1/ln_2/scale": (4,),
        "gpt2/h/1/mlp/c_fc/bias": (6,),
        "gpt2/h/1/mlp/c_fc/kernel": (4, 6),
        "gpt2/h/1/mlp/c_proj/bias": (4,),
        "gpt2/h/1/mlp/c_proj/kernel": (6, 4),
        "gpt2/ln_f/bias": (4,),
        "gpt2/ln_f/scale": (4,),
        "gpt2/wpe/embedding": (7, 4),
        "in_layer/bias": (4,),
        "in_layer/kernel": (5, 4),
        "out_layer/bias": (3,),
        "out_layer/kernel": (20, 3),
    }
    without = base_shapes(replace(network, trunk=replace(trunk, positions=False)))
    assert base_shapes(network).keys() - without.keys() == {"gpt2/wpe/embedding"}


def test_base_is_the_trunk_as_given_and_layers_from_the_seed():
    assert {path: leaf.shape for path, leaf in flatten(BASE).items()} == base_shapes(NETWORK)
    assert {leaf.dtype for leaf in flatten(BASE).values()} == {np.dtype(np.float32)}
    for path, leaf in flatten(moved_trunk(CONFIG)).items():
        np.testing.assert_array_equal(flatten(BASE)[f"gpt2/{path}"], leaf)
    for name, (fan_in, fan_out) in {"in_layer": (8, 16), "out_layer": (8 * 16, 5)}.items():
        for leaf, shape in {"kernel": (fan_in, fan_out), "bias": (fan_out,)}.items():
            wanted = frozen_init.uniform(1, f"{name}/{leaf}", shape, 1 / math.sqrt(fan_in))
            np.testing.assert_array_equal(BASE[name][leaf], wanted)


def test_without_positions_a_trunk_s_position_table_is_left_out():
    base = init_base(replace(NETWORK, trunk=GPT2Trunk(CONFIG, positions=False)), moved_trunk(CONFIG), seed=1)
    assert "wpe" not in base["gpt2"]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (replace(CONFIG, n_layer=2), "gpt2/h/1/attn/c_attn/bias"),
        (replace(CONFIG, n_positions=13), "gpt2/wpe/embedding"),
        (replace(CONFIG, n_inner=32), "gpt2/h/0/mlp/c_fc/bias"),
    ],
)
def test_another_trunk_is_refused_with_the_leaf(config, named):
    with pytest.raises(WeightsError, match=f"does not fit the network at {named}"):
        init_base(NETWORK, random_trunk(config, 0).params, seed=0)


def test_more_patches_than_positions_are_refused():
    trunk = GPT2Trunk(replace(CONFIG, n_positions=7))
    network = replace(NETWORK, trunk=trunk)
    with pytest.raises(ConfigError, match="network: 8 tokens, but the trunk has 7 positions"):
        base_shapes(network)
    without = replace(network, trunk=replace(trunk, positions=False))
    assert base_shapes(without)["out_layer/kernel"] == (8 * 16, 5)


@pytest.mark.parametrize("length", [4, 7])
def test_inputs_shorter_than_a_patch_are_forecast(length):
    network = ForecastNetwork(GPT2Trunk(CONFIG), length, 3, patch=8, stride=4)
    out = forecast(series()[:, :length], network=network, params=init_base(network, moved_trunk(CONFIG), 0))
    assert out.shape == (4, 3, 3)
    assert np.isfinite(out).all()


def test_shift_of_a_series_shifts_its_forecast():
    x, offset = series(), np.float32([40, -7, 1000])
    assert_close(forecast(x + offset) - offset, forecast(x), 1e-4)  # x + 1000 has lost 2e-5 of x itself


def test_scale_of_a_series_scales_its_forecast():
    x = series()
    assert_close(forecast(x * 8) / 8, forecast(x), 1e-4)  # the floor under the variance, 1e-5, does not scale
    assert_close(forecast(x / 4) * 4, forecast(x), 1e-4)


def test_channels_do_not_see_each_other_or_their_order():
    x = series()
    order = [2, 0, 1]
    assert_close(forecast(x[..., order]), forecast(x)[..., order])
    assert_close(forecast(x[..., 1:2]), forecast(x)[..., 1:2])


def test_one_window_alone_is_as_in_a_batch():
    x = series()
    for b in range(4):
        assert_close(forecast(x[b : b + 1]), forecast(x)[b : b + 1])


def test_masked_values_are_not_read():
    x = series()
    mask = np.random.default_rng(2).random(x.shape) < 0.8
    found = forecast(np.where(mask, x, np.nan).astype("f4"), mask=mask)
    np.testing.assert_array_equal(found, forecast(np.where(mask, x, -99).astype("f4"), mask=mask))
    assert np.isfinite(found).all()
    assert np.abs(found - forecast(x)).max() > 0.01
    assert_close(forecast(x, mask=np.ones_like(mask)), forecast(x))


def test_bfloat16_computes_near_float32_and_answers_in_float32():
    wide = np.asarray(forecast(series()))
    trunk = GPT2Trunk(CONFIG, compute_dtype=jnp.dtype(jnp.bfloat16))
    narrow = forecast(series(), network=replace(NETWORK, trunk=trunk))
    assert narrow.dtype == jnp.float32
    distance = np.abs(narrow - wide).max() / np.abs(wide).max()
    # bfloat16 keeps 8 bits: 0.4 % per rounding, over two blocks; above 1e-5 it is really used
    assert 1e-5 < distance < 0.03


def test_evaluation_has_no_dropout():
    np.testing.assert_array_equal(forecast(series()), forecast(series()))
    assert_close(forecast(series()), forecast(series(), network=QUIET), 0)
    assert_close(forecast(series(), keys(), network=QUIET), forecast(series(), network=QUIET), 0)
    assert np.abs(forecast(series(), keys()) - forecast(series())).max() > 0.01


def test_a_sample_s_dropout_depends_on_its_key_alone():
    x, k = series(), keys()
    together = forecast(x, k)
    for rows in ([3], [2, 0, 3, 1]):
        rows = np.array(rows)
        assert_close(forecast(x[rows], k[rows]), together[rows])
    twins = np.asarray(forecast(np.repeat(x[:1], 4, axis=0), k))
    assert np.abs(twins[0] - twins[1]).max() > 0.01


def test_each_channel_of_a_sample_has_its_own_mask():
    x = np.repeat(series(c=1), 3, axis=2)
    out = np.asarray(forecast(x, keys()))
    assert np.abs(out[..., 0] - out[..., 1]).max() > 0.01
    assert np.abs(out[..., 1] - out[..., 2]).max() > 0.01
    assert channel_keys(None, 3) is None
    assert channel_keys(keys(), 1).shape == (4,)
    per_channel = channel_keys(keys(), 3)
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(per_channel))}) == 12
    np.testing.assert_array_equal(
        jax.random.key_data(per_channel[3:6]), jax.random.key_data(channel_keys(keys()[1:2], 3))
    )

"""The trunk: attention, causality, positions, derivatives, precision, and each of its dropouts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from moved_trunk import moved_trunk

from ofa_jax.errors import ConfigError
from ofa_jax.model.gpt2 import GPT2Config, GPT2Trunk, attention_weights, gelu_new
from ofa_jax.model.trees import flatten, unflatten

CONFIG = GPT2Config(
    n_embd=16, n_layer=1, n_head=4, n_positions=12
)  # one block: most of the time is compilation
QUIET = replace(CONFIG, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)


PARAMS = moved_trunk(CONFIG)


@partial(jax.jit, static_argnames="config")
def run(embeds, keys=None, config=CONFIG, params=PARAMS):
    return GPT2Trunk(config).apply({"params": params}, embeds, keys)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def keys(rows: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), rows)


def assert_close(found, wanted, tolerance=1e-5):
    """Within ``tolerance`` of the largest value: float32 sums in another order."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "scale"),
    [
        ({}, 7**-0.5),
        ({"scale_attn_weights": False}, 1.0),
        ({"scale_attn_by_inverse_layer_idx": True}, 7**-0.5 / 3),
        ({"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}, 1 / 3),
    ],
)
def test_attention_weights_are_those_of_dot_product_attention(change, scale):
    """Values that are unit vectors show the weights of jax's own function."""
    query, key = normal(1, 2, 3, 4, 7, 7)
    identity = jnp.broadcast_to(jnp.eye(7)[:, None], (3, 7, 4, 7))
    by_token = (part.swapaxes(1, 2) for part in (query, key))
    wanted = jax.nn.dot_product_attention(*by_token, identity, is_causal=True, scale=scale).swapaxes(1, 2)
    np.testing.assert_allclose(
        attention_weights(replace(CONFIG, **change), 2, query, key), wanted, rtol=0, atol=1e-6
    )


def test_attention_weights_are_in_float32_and_exact_zeros_ahead():
    query, key = normal(2, 2, 1, 2, 6, 8).astype(jnp.bfloat16)
    weights = np.asarray(attention_weights(CONFIG, 0, query, key))
    assert weights.dtype == np.float32
    assert not weights[..., np.triu_indices(6, 1)[0], np.triu_indices(6, 1)[1]].any()
    np.testing.assert_array_equal(weights[..., 0, 0], 1)


def test_gelu_and_its_gradient_are_jax_s_and_only_the_input_is_kept():
    x = jnp.linspace(-12, 12, 4001)
    plain = partial(jax.nn.gelu, approximate=True)
    ours, theirs = (jax.grad(lambda x, f=f: (f(x) * jnp.cos(x)).sum())(x) for f in (gelu_new, plain))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)  # the same sums in another order
    np.testing.assert_allclose(gelu_new(x), plain(x), rtol=0, atol=1e-6)
    kept = jax.tree.leaves(jax.vjp(gelu_new, x)[1])
    assert sum(leaf.nbytes for leaf in kept if isinstance(leaf, jax.Array)) <= x.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_forward_and_reverse_derivatives_agree(remat):
    """With dropout: ``jax.jvp`` along a direction is the gradient's product with it."""
    module, embeds, direction = GPT2Trunk(CONFIG, remat=remat), normal(3, 2, 6, 16), normal(4, 2, 6, 16)

    def loss(params, embeds):
        return jnp.square(module.apply({"params": params}, embeds, keys(2))).mean()

    along = jax.tree.map(
        lambda leaf: 0.1 * np.cos(np.arange(leaf.size, dtype="f4")).reshape(leaf.shape), PARAMS
    )
    _, forward = jax.jit(lambda *tangents: jax.jvp(loss, (PARAMS, embeds), tangents))(along, direction)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(PARAMS, embeds)
    products = jax.tree.map(lambda one, other: np.vdot(one, other), gradients, (along, direction))
    reverse = np.array(jax.tree.leaves(products))
    assert np.abs(reverse).max() > 1e-3
    np.testing.assert_allclose(forward, reverse.sum(), rtol=0, atol=1e-5 * np.abs(reverse).sum())


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_no_later_token_reaches_an_earlier_hidden_state(rate):
    config = replace(QUIET, n_layer=2, attn_pdrop=rate)
    params, given = moved_trunk(config), keys(1) if rate else None
    each_step = jax.jit(jax.jacobian(lambda e: run(e, given, config, params).sum(axis=(0, 2))))
    reach = np.abs(np.asarray(each_step(normal(4, 1, 6, 16))))[:, 0].max(axis=-1)  # [output step, input step]
    assert not reach[np.triu_indices(6, 1)].any()
    assert (np.diag(reach) > 0).all()
    if not rate:
        assert (reach[np.tril_indices(6)] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_the_last_tokens_alone_are_those_of_all_tokens(remat):
    config = replace(QUIET, n_layer=2)
    params, embeds, trunk = moved_trunk(config), normal(4, 2, 6, 16), GPT2Trunk(config, remat=remat)

    @partial(jax.jit, static_argnums=1)
    @partial(jax.value_and_grad, has_aux=True)
    def run_both(params, last_tokens):
        hidden = trunk.apply({"params": params}, embeds, last_tokens=last_tokens)
        return jnp.square(hidden[:, -2:]).sum(), hidden

    (_, whole), wanted = run_both(params, None)
    (_, last), gradient = run_both(params, 2)
    assert (whole.shape, last.shape) == ((2, 6, 16), (2, 2, 16))
    assert_close(last, whole[:, -2:])
    for path, leaf in flatten(wanted).items():
        assert_close(flatten(gradient)[path], leaf)


def test_position_embedding_is_added_to_the_first_positions():
    embeds = normal(5, 2, 6, 16)
    bare = {name: leaf for name, leaf in PARAMS.items() if name != "wpe"}
    without = jax.jit(GPT2Trunk(CONFIG, positions=False).apply)
    assert_close(run(embeds), without({"params": bare}, embeds + PARAMS["wpe"]["embedding"][:6]), 1e-6)


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ConfigError, match="network: 13 tokens, but the trunk has 12 positions"):
        run(normal(0, 1, 13, 16))
    jax.eval_shape(GPT2Trunk(CONFIG, positions=False).init, jax.random.key(0), jnp.zeros((1, 13, 16)))


def test_bfloat16_trunk_returns_float32():
    trunk = GPT2Trunk(CONFIG, compute_dtype=jnp.dtype(jnp.bfloat16))
    hidden = jax.eval_shape(trunk.apply, {"params": PARAMS}, jnp.zeros((1, 3, 16)))
    assert (hidden.shape, hidden.dtype) == ((1, 3, 16), jnp.float32)


@pytest.mark.parametrize(
    ("name", "silenced"),
    [
        ("embd_pdrop", None),
        ("attn_pdrop", None),
        ("resid_pdrop", "mlp/c_proj"),
        ("resid_pdrop", "attn/c_proj"),
    ],
)
def test_each_dropout_of_the_trunk_acts(name, silenced):
    """``resid_pdrop`` acts in two places; each is seen with the other's branch at zero."""
    only, embeds = replace(QUIET, **{name: 0.3}), normal(6, 4, 6, 16)
    flat = flatten(PARAMS)
    params = unflatten(
        {path: leaf * (silenced is None or silenced not in path) for path, leaf in flat.items()}
    )
    with_keys, without = run(embeds, keys(4), only, params), run(embeds, None, only, params)
    assert np.abs(with_keys - without).max() > 0.01
    np.testing.assert_array_equal(without, run(embeds, None, CONFIG, params))
    np.testing.assert_array_equal(without, run(embeds, keys(4), QUIET, params))

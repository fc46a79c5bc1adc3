"""Fair, independent bits; a mask per row and site; no mask kept for the backward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.model.dropout import dropout, random_bits


def keys(rows: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), rows)


def words(rows: int, seed: int = 0) -> jax.Array:
    return jax.random.bits(jax.random.key(seed), (rows, 2), jnp.uint32)


def normal(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def kept_bytes(function, *arguments) -> int:
    """Bytes that the backward pass of a function keeps in addition to its arguments."""
    given = {id(leaf) for leaf in arguments}
    leaves = jax.tree.leaves(jax.vjp(function, *arguments)[1])
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, jax.Array) and id(leaf) not in given)


# random bits


def test_random_bits_are_these():
    """A resumed run keeps its masks, whatever version wrote the checkpoint: these bits never change."""
    assert random_bits(jnp.array([[1, 2], [3, 4]], jnp.uint32), (2, 2)).tolist() == BITS


BITS = [
    [[3405767568, 4056789687], [3568491650, 3867407481]],
    [[647968071, 4110861281], [886553860, 2061945869]],
]


def test_an_element_s_bits_depend_on_its_place_in_the_row_alone():
    bits = random_bits(words(5), (6, 7))
    np.testing.assert_array_equal(random_bits(words(5)[2:4], (6, 7)), bits[2:4])
    np.testing.assert_array_equal(random_bits(words(5), (42,)).reshape(5, 6, 7), bits)
    np.testing.assert_array_equal(random_bits(words(5), (3, 7)), bits[:, :3])


def test_every_bit_is_fair():
    bits = np.asarray(random_bits(words(64), (4096,)))
    ones = np.unpackbits(bits.view(np.uint8), bitorder="little").reshape(-1, 32).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(bits.size)  # 5 standard errors of a fair coin


def test_bits_are_uniform_in_their_upper_part():
    """Dropout compares with a threshold, so it is the upper bits that matter."""
    counts = np.bincount(np.asarray(random_bits(words(64), (4096,))).ravel() >> 22, minlength=1024)
    expected = 64 * 4096 / 1024
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 1023) < 5 * np.sqrt(2 * 1023)  # mean and spread of a chi-square of 1023 degrees


@pytest.mark.parametrize("lag", [1, 2, 42, 64, 768, 3072])
def test_masks_of_neighbours_are_independent(lag):
    """Neighbors in a row, at the distances that a trunk has: next value, next head, next token."""
    kept = (np.asarray(random_bits(words(16), (16384,))) >= 2**32 // 10).astype(np.float64) - 0.9
    correlation = (kept[:, lag:] * kept[:, :-lag]).mean() / 0.09
    assert abs(correlation) < 5 / np.sqrt(kept[:, lag:].size)


@pytest.mark.parametrize("differing", ["sites", "samples", "steps", "first word", "second word"])
def test_masks_of_different_draws_are_independent(differing):
    """Also where the words differ in one bit: one stream must not be a shift or permutation of the other."""
    x = jnp.ones((64, 4096))
    key = jax.random.key(3)
    if differing == "sites":
        one, other = (dropout(x, 0.5, keys(64), site) for site in ("h/0/mlp", "h/1/mlp"))
    elif differing == "samples":
        one, other = dropout(x, 0.5, keys(64), "a"), jnp.roll(dropout(x, 0.5, keys(64), "a"), 1, axis=0)
    elif differing == "steps":
        one, other = (
            dropout(x, 0.5, jax.random.split(jax.random.fold_in(key, step), 64), "a") for step in (7, 8)
        )
    else:
        flipped = words(64) ^ jnp.array([[1, 0]] if differing == "first word" else [[0, 1]], jnp.uint32)
        one, other = (random_bits(pair, (4096,)) >> 31 for pair in (words(64), flipped))
    agree = float(((one > 0) == (other > 0)).mean())
    assert abs(agree - 0.5) < 5 * 0.5 / np.sqrt(x.size)


# dropout


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_dropout_keeps_its_rate_and_its_mean(rate):
    x = jnp.full((8, 100, 50), 2.0)
    out = np.asarray(dropout(x, rate, keys(8), "here"))
    dropped = (out == 0).mean(axis=(1, 2))
    assert np.all(np.abs(dropped - rate) < 5 * np.sqrt(rate * (1 - rate) / 5000))
    np.testing.assert_allclose(out[out != 0], 2 / (1 - rate), rtol=1e-6)
    masks = out != 0
    assert len({row.tobytes() for row in masks}) == 8


def test_a_rate_just_below_one_still_drops():
    assert not dropout(jnp.ones((8, 5000)), 1 - 1e-12, keys(8), "here").any()


def test_dropout_has_a_mask_per_site_and_none_without_keys_or_rate():
    x = jnp.ones((2, 40, 40))
    one, other = dropout(x, 0.5, keys(2), "h/0/attn"), dropout(x, 0.5, keys(2), "h/1/attn")
    assert 0.4 < float((one == other).mean()) < 0.6
    np.testing.assert_array_equal(dropout(x, 0.5, keys(2), "h/0/attn"), one)
    assert dropout(x, 0.5, None, "here") is x
    assert dropout(x, 0.0, keys(2), "here") is x
    assert dropout(x.astype(jnp.bfloat16), 0.5, keys(2), "here").dtype == jnp.bfloat16


@pytest.mark.slow
def test_gradient_of_dropout_has_the_mask_of_its_output():
    x = normal(0, 3, 20, 10)
    out, backward = jax.vjp(lambda x: dropout(x, 0.3, keys(3), "here"), x)
    (gradient,) = backward(jnp.ones_like(x))
    np.testing.assert_allclose(gradient, np.asarray(out) / np.asarray(x), rtol=1e-6)
    assert 0.2 < float((gradient == 0).mean()) < 0.4


def test_dropout_keeps_no_mask():
    x = normal(0, 4, 64, 64)
    assert kept_bytes(lambda x: dropout(x, 0.3, keys(4), "here"), x) < 1000  # two words a row

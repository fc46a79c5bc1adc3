"""The trunk's element-wise work and attention, written so that little is kept for the backward pass and none of it is dear.

Beside frozen weights the backward pass needs no activation of a matrix product, so what autodiff would keep are the inputs and
intermediate values of these functions. GELU and dropout keep their input and work the rest out again (``jax.checkpoint``), layer
norm keeps the normalised values instead, and attention its weights too. docs/performance.md has the measurements.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

gelu_new: Callable[[jax.Array], jax.Array] = jax.checkpoint(partial(jax.nn.gelu, approximate=True))
"""GELU in its tanh form, which GPT-2 uses; its derivative is worked out from the input again."""


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Layer norm over the last axis, ``[..., d]``; for the backward pass it keeps the normalised values and one number a token."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
    centred = x - x.mean(axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    normal = centred * factor
    return normal * scale + bias, (normal, factor, scale)


def _layer_norm_backward(epsilon, kept, d_out):
    normal, factor, scale = kept
    d_normal = d_out * scale
    along = jnp.mean(d_normal * normal, axis=-1, keepdims=True)
    d_x = factor * (d_normal - d_normal.mean(axis=-1, keepdims=True) - normal * along)
    tokens = tuple(range(d_out.ndim - 1))
    return d_x, jnp.sum(d_out * normal, axis=tokens), jnp.sum(d_out, axis=tokens)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def dropout(x: jax.Array, rate: float, keys_m: jax.Array | None, site: str) -> jax.Array:
    """Inverted dropout with one key per leading row.

    The bits come from :func:`random_bits`, a counter-based generator cheaper than jax's own, and are drawn again in the backward
    pass. A row's mask depends on its key and the site alone.

    Args:
        x: ``[m, ...]``.
        rate: Probability of a zero.
        keys_m: One key per row, or None for no dropout.
        site: Name of the place in the network; each place draws its own mask.
    """
    if keys_m is None or rate == 0:
        return x
    return _dropped(x, _site_words(keys_m, site), rate)


@partial(jax.checkpoint, static_argnums=2)
def _dropped(x: jax.Array, words_m2: jax.Array, rate: float) -> jax.Array:
    keep = random_bits(words_m2, x.shape[1:]) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(keep, x * (1 / (1 - rate)), 0).astype(x.dtype)


def random_bits(words_m2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform uint32 ``[m, *shape]``, a function of the row's two words and the element's place in the row alone.

    A hash of a counter: the place is mixed with the first word, the result with the second. Threefry, jax's own generator, costs
    several times as much, which shows where dropout acts on every activation. Good enough for dropout, not for cryptography.
    """
    counter = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        counter += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(
            math.prod(shape[axis + 1 :])
        )
    first, second = (words_m2[:, column].reshape(-1, *[1] * len(shape)) for column in (0, 1))
    return _mixed(_mixed(counter + first) ^ second)


def _mixed(bits: jax.Array) -> jax.Array:
    # a bijection of 32 bits in which each input bit flips each output bit about half the time; constants of Wellons' lowbias32
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def _site_words(keys_m: jax.Array, site: str) -> jax.Array:
    """Two words per row, ``[m, 2]``, of the row's key and the site's name."""
    data, place = jax.random.key_data(keys_m), jnp.uint32(zlib.crc32(site.encode()))
    return jnp.stack([_mixed(data[:, 0] ^ place), _mixed(data[:, -1] + place)], axis=1)


def causal_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    scale: float,
    rate: float,
    keys_m: jax.Array | None,
    site: str,
) -> jax.Array:
    """Causal attention over ``[m, n, a, e]``, softmax in float32, dropout with probability ``rate`` on the attention weights.

    Without dropout this is what ``jax.nn.dot_product_attention(..., is_causal=True)`` computes; that function has no dropout.
    """
    if keys_m is None:
        words, rate = jnp.zeros((query.shape[0], 2), jnp.uint32), 0.0
    else:
        words = _site_words(keys_m, site)
    by_head = (part.transpose(0, 2, 1, 3) for part in (query, key, value))
    return _attend(*by_head, words, scale, rate).transpose(0, 2, 1, 3)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, words_m2: jax.Array, scale: float, rate: float
) -> jax.Array:
    """Attention head by head, ``[m, a, n, e]``. Its derivative is written out to choose the shapes of the products."""
    return _attend_forward(query, key, value, words_m2, scale, rate)[0]


def _attend_forward(query, key, value, words_m2, scale, rate):
    scores = _product(query, key, 3, 3) * scale
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, jnp.finfo(jnp.float32).min), axis=-1)
    mixed = _product(_thinned(weights, words_m2, rate).astype(value.dtype), value, 3, 2).astype(value.dtype)
    return mixed, (query, key, value, weights, words_m2)


def _attend_backward(scale, rate, kept, d_mixed):
    query, key, value, weights, words_m2 = kept
    weights, d_mixed = jax.lax.optimization_barrier(
        (weights, d_mixed)
    )  # else what follows from the weights alone is kept as well
    thinned = _thinned(weights, words_m2, rate).astype(value.dtype)
    d_weights = _thinned(_product(d_mixed, value, 3, 3), words_m2, rate)
    d_scores = scale * weights * (d_weights - jnp.sum(d_weights * weights, axis=-1, keepdims=True))
    d_scores = d_scores.astype(value.dtype)
    d_query = _product(d_scores, key, 3, 2)
    d_key = _product(_turned(d_scores), query, 3, 2)
    d_value = _product(_turned(thinned), d_mixed, 3, 2)
    return *(part.astype(value.dtype) for part in (d_query, d_key, d_value)), None


def _turned(scores: jax.Array) -> jax.Array:
    # a real copy: XLA has no fast product over the rows of its left factor on CPUs, and would fold the transposition into it
    return jax.lax.optimization_barrier(scores.transpose(0, 1, 3, 2))


_attend.defvjp(_attend_forward, _attend_backward)


def _thinned(weights: jax.Array, words_m2: jax.Array, rate: float) -> jax.Array:
    return _dropped(weights, words_m2, rate) if rate else weights


def _product(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """A product per window and head over one axis of each, summed in float32."""
    dimensions = (((left_axis,), (right_axis,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)

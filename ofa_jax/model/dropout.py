"""Inverted dropout with one key per sample, from a counter-based generator that is cheaper than jax's own."""

from __future__ import annotations

import math
import zlib
from functools import partial

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, keys_m: jax.Array | None, site: str) -> jax.Array:
    """Inverted dropout; a row's mask depends on its key and on ``site`` alone, not on the rest of the batch.

    The backward pass draws the mask again instead of keeping it.

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
    """Uniform uint32 ``[m, *shape]``, a function of the row's two words and the element's place in the row.

    A hash of a counter: the place is mixed with the first word, the result with the second. Good enough for
    dropout, not for cryptography, and far cheaper than jax's own generator (docs/performance.md).
    """
    counter = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]))
        counter += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    first, second = (words_m2[:, column].reshape(-1, *[1] * len(shape)) for column in (0, 1))
    return _mixed(_mixed(counter + first) ^ second)


def _mixed(bits: jax.Array) -> jax.Array:
    # a bijection in which each input bit flips each output bit about half the time; Wellons' lowbias32
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def _site_words(keys_m: jax.Array, site: str) -> jax.Array:
    """Two words per row, ``[m, 2]``, of the row's key and the site's name."""
    data, place = jax.random.key_data(keys_m), jnp.uint32(zlib.crc32(site.encode()))
    return jnp.stack([_mixed(data[:, 0] ^ place), _mixed(data[:, -1] + place)], axis=1)

"""Instance norm and patches: how a window becomes the sequence that the trunk reads.

Axis letters, used as lower-case suffixes throughout the package:

=====  =======================================================================================
``b``  batch
``t``  input steps
``h``  horizon (forecast steps)
``c``  channels
``m``  windows that go through the trunk (univariate: one per sample and channel, ``m = b * c``)
``n``  patches or tokens
``p``  patch length
``g``  segments of a window, ``s`` steps in one
``d``  width of the trunk
``a``  attention heads, ``e`` width of a head, ``f`` width of the MLP
``r``  rank of an adapter
``k``  classes
=====  =======================================================================================
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.errors import ConfigError

VARIANCE_FLOOR = 1e-5
"""Added to a window's variance before the square root (protocol §1.2)."""


class InstanceStats(NamedTuple):
    """Mean and standard deviation of each window, both ``[b, 1, c]`` in float32."""

    mean: jax.Array
    std: jax.Array


def instance_stats(x_btc: jax.Array, mask_btc: jax.Array | None = None) -> InstanceStats:
    """Mean and standard deviation over time, per window and channel of ``[b, t, c]`` (protocol §1.2).

    ``mask_btc`` is True where a value counts; a window without such a value gets mean 0 and variance 0.
    """
    x_btc = x_btc.astype(jnp.float32)
    if mask_btc is None:
        mean = x_btc.mean(axis=1, keepdims=True)
        variance = x_btc.var(axis=1, keepdims=True)
    else:
        count = jnp.maximum(mask_btc.sum(axis=1, keepdims=True), 1).astype(jnp.float32)
        mean = jnp.where(mask_btc, x_btc, 0).sum(axis=1, keepdims=True) / count
        variance = jnp.where(mask_btc, jnp.square(x_btc - mean), 0).sum(axis=1, keepdims=True) / count
    return InstanceStats(mean, jnp.sqrt(variance + VARIANCE_FLOOR))


def normalize(x_btc: jax.Array, stats: InstanceStats, mask_btc: jax.Array | None = None) -> jax.Array:
    """Values minus their window's mean, over its deviation, ``[b, t, c]`` float32; masked values become 0."""
    normed = (x_btc.astype(jnp.float32) - stats.mean) / stats.std
    return normed if mask_btc is None else jnp.where(mask_btc, normed, 0)


def denormalize(y_bhc: jax.Array, stats: InstanceStats) -> jax.Array:
    """The inverse of :func:`normalize` on any number of steps ``[b, h, c]``."""
    return y_bhc * stats.std + stats.mean


def patch_count(input_length: int, patch: int, stride: int) -> int:
    """Number of patches, ``(L - patch) // stride + 2``, and never less than one (protocol §1.3).

    Raises:
        ConfigError: A stride larger than the patch.
    """
    if stride > patch:
        what = f"stride {stride} is larger than patch {patch}, so steps between patches would never be read"
        raise ConfigError(what, where="network.stride", fix="Choose a stride between 1 and the patch length")
    return max(1, (input_length - patch) // stride + 2)


def patchify(x_mt: jax.Array, patch: int, stride: int) -> jax.Array:
    """Cut windows ``[m, t]`` into patches ``[m, n, p]``, the end padded by repeating the last value.

    The published code pads by ``stride`` and cannot cut a window shorter than ``patch - stride``; here such a
    window is padded to one full patch. For every longer window the patches are the published ones.
    """
    length = x_mt.shape[1]
    steps_np = np.arange(patch_count(length, patch, stride))[:, None] * stride + np.arange(patch)
    return x_mt[:, np.minimum(steps_np, length - 1)]

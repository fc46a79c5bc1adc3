"""Patches against windows cut by hand, instance norm against NumPy, and what is refused."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.errors import ConfigError
from ofa_jax.model.patching import (
    VARIANCE_FLOOR,
    denormalize,
    instance_stats,
    normalize,
    patch_count,
    patchify,
)


def unfold(window: np.ndarray, patch: int, stride: int) -> np.ndarray:
    """As published: repeat the last value ``stride`` times, then take every full patch, ``stride`` apart."""
    padded = np.concatenate([window, np.repeat(window[-1:], stride)])
    cuts, first = [], 0
    while first + patch <= len(padded):
        cuts.append(padded[first : first + patch])
        first += stride
    return np.array(cuts)


@st.composite
def geometries(draw, most: int = 60):
    patch = draw(st.integers(1, most))
    return draw(st.integers(1, 3 * most)), patch, draw(st.integers(1, patch))


@settings(deadline=None)
@given(geometries())
def test_patches_are_those_of_unfold(geometry):
    length, patch, stride = geometry
    window = np.random.default_rng(length).normal(size=length).astype(np.float32)
    found = np.asarray(patchify(window[None], patch, stride))[0]
    assert found.shape == (patch_count(length, patch, stride), patch)
    if length + stride >= patch:
        np.testing.assert_array_equal(found, unfold(window, patch, stride))
    else:  # the published code cannot cut such a window at all
        np.testing.assert_array_equal(
            found, np.concatenate([window, np.repeat(window[-1:], patch - length)])[None]
        )


@given(geometries())
def test_every_step_is_in_a_patch(geometry):
    length, patch, stride = geometry
    found = np.asarray(patchify(np.arange(length)[None], patch, stride))
    assert set(found.ravel()) == set(range(length))


@pytest.mark.parametrize(
    ("length", "patch", "stride", "count"),
    [
        (336, 16, 8, 42),
        (512, 16, 8, 64),
        (512, 16, 16, 33),
        (336, 16, 16, 22),
        (9, 1, 1, 10),
        (16, 2, 1, 16),
        (4, 16, 8, 1),
        (4, 2, 2, 3),
    ],
)
def test_published_patch_counts(length, patch, stride, count):
    assert patch_count(length, patch, stride) == count


def test_windows_are_cut_one_by_one():
    x_mt = np.random.default_rng(0).normal(size=(5, 20)).astype(np.float32)
    together = np.asarray(patchify(x_mt, 8, 3))
    for row in range(5):
        np.testing.assert_array_equal(together[row], unfold(x_mt[row], 8, 3))


@pytest.mark.parametrize(("patch", "stride"), [(4, 5), (16, 17), (1, 2)])
def test_a_stride_that_would_skip_steps_is_refused(patch, stride):
    with pytest.raises(ConfigError, match=rf"network\.stride: stride {stride} is larger than patch {patch}"):
        patch_count(64, patch, stride)
    with pytest.raises(ConfigError, match="never be read"):
        patchify(jnp.zeros((1, 64)), patch, stride)


def batch(seed: int = 0, shape=(3, 24, 2)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=shape) * rng.uniform(0.5, 20, (shape[0], 1, shape[2]))
        + rng.normal(size=(shape[0], 1, shape[2])) * 50
    ).astype("f4")


def test_statistics_are_per_window_and_channel_with_the_population_variance():
    x = batch()
    stats = instance_stats(x)
    assert stats.mean.shape == stats.std.shape == (3, 1, 2)
    np.testing.assert_allclose(stats.mean, x.astype(np.float64).mean(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(
        stats.std, np.sqrt(x.astype(np.float64).var(1, keepdims=True) + 1e-5), rtol=1e-6
    )


def test_statistics_are_float32_whatever_the_input():
    stats = instance_stats(jnp.asarray(batch(), jnp.bfloat16))
    assert stats.mean.dtype == stats.std.dtype == jnp.float32
    assert normalize(jnp.asarray(batch(), jnp.bfloat16), stats).dtype == jnp.float32


def test_a_constant_window_becomes_zeros_and_comes_back():
    x = np.full((1, 12, 1), 7.5, np.float32)
    stats = instance_stats(x)
    np.testing.assert_array_equal(stats.std, np.sqrt(np.float32(VARIANCE_FLOOR)))
    np.testing.assert_array_equal(normalize(x, stats), 0)
    np.testing.assert_array_equal(denormalize(np.zeros((1, 5, 1), np.float32), stats), 7.5)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_denormalize_undoes_normalize(seed):
    x = batch(seed)
    stats = instance_stats(x)
    np.testing.assert_allclose(
        denormalize(normalize(x, stats), stats), x, rtol=0, atol=1e-6 * np.abs(x).max()
    )


def test_denormalize_takes_any_number_of_steps():
    x = batch()
    stats = instance_stats(x)
    np.testing.assert_allclose(
        denormalize(np.ones((3, 7, 2), np.float32), stats),
        np.repeat(stats.mean + stats.std, 7, axis=1),
        rtol=1e-6,
    )


def test_masked_statistics_are_those_of_the_observed_values():
    x = batch()
    mask = np.random.default_rng(1).random(x.shape) < 0.6
    mask[0, :3] = True
    hidden = np.where(mask, x, np.nan).astype(np.float32)
    stats = instance_stats(hidden, mask)
    for b in range(3):
        for c in range(2):
            seen = x[b, mask[b, :, c], c].astype(np.float64)
            np.testing.assert_allclose(stats.mean[b, 0, c], seen.mean(), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(stats.std[b, 0, c], np.sqrt(seen.var() + 1e-5), rtol=1e-5)
    normed = np.asarray(normalize(hidden, stats, mask))
    assert not normed[~mask].any()
    np.testing.assert_allclose(normed[mask], ((x - stats.mean) / stats.std)[mask], rtol=1e-5, atol=1e-6)


def test_a_full_mask_changes_nothing():
    x = batch()
    plain, masked = instance_stats(x), instance_stats(x, np.ones(x.shape, bool))
    np.testing.assert_allclose(plain.mean, masked.mean, rtol=1e-6)
    np.testing.assert_allclose(plain.std, masked.std, rtol=1e-6)


def test_a_window_without_any_value_is_finite():
    x = np.full((2, 8, 1), np.nan, np.float32)
    mask = np.zeros(x.shape, bool)
    stats = instance_stats(x, mask)
    np.testing.assert_array_equal(stats.mean, 0)
    np.testing.assert_array_equal(stats.std, np.sqrt(np.float32(VARIANCE_FLOOR)))
    np.testing.assert_array_equal(normalize(x, stats, mask), 0)

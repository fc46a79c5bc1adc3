"""The seeded layers: the very bits, their distributions, and a fingerprint that sees every change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.errors import ConfigError, WeightsError
from ofa_jax.model import frozen_init
from ofa_jax.model.frozen_init import normal, uniform
from ofa_jax.model.trees import aligned, aligned_empty, fingerprint, flatten, unflatten

DIGESTS = json.loads((Path(__file__).parents[1] / "golden" / "digests.json").read_text())


def digest(**arrays: np.ndarray) -> str:
    return fingerprint(sorted(arrays.items()))


def drawn(kind: str) -> dict[str, np.ndarray]:
    """Arrays of one kind; the far tail, which a million normal draws do not reach, is in ``quantile``."""
    seeds = {"zero": 0, "small": 2021, "large": 2**64 - 1}
    if kind == "uniform":
        return {name: uniform(seed, "in_layer/kernel", (64, 96), 0.25) for name, seed in seeds.items()}
    if kind == "normal":
        return {
            name: normal(seed, "adapters/out_layer/a", (1000, 1000), 0.02) for name, seed in seeds.items()
        }
    if kind == "quantile":
        low = np.ravel(2.0 ** -np.arange(1, 50)[:, None] * np.arange(1, 16) / 16)
        return {"low": frozen_init._normal_quantile(low), "high": frozen_init._normal_quantile(1 - low)}
    layers = {name: linear(seed, "out_layer", 336, 96) for name, seed in seeds.items()}
    return {f"{name}.{leaf}": array for name, layer in layers.items() for leaf, array in layer.items()}


def linear(seed: int, path: str, fan_in: int, fan_out: int) -> dict[str, np.ndarray]:
    """A layer around the trunk, as :func:`~ofa_jax.model.networks.init_base` draws it."""
    shapes = {"kernel": (fan_in, fan_out), "bias": (fan_out,)}
    return {
        leaf: uniform(seed, f"{path}/{leaf}", shape, 1 / math.sqrt(fan_in)) for leaf, shape in shapes.items()
    }


@pytest.mark.parametrize("kind", ["uniform", "normal", "linear", "quantile"])
def test_the_rule_gives_the_same_bits_everywhere(kind):
    assert frozen_init.RULE == "philox-1"
    assert digest(**drawn(kind)) == DIGESTS[f"philox-1/{kind}"]


def test_first_values_of_the_rule():
    """The rule written out for one element, with Python's own integers and floats."""
    import hashlib

    place = int.from_bytes(hashlib.sha256(b"in_layer/kernel").digest()[:8], "little")
    raw = [int(word) for word in np.random.Philox(key=np.array([7, place], np.uint64)).random_raw(6)]
    u = [((word >> 12) + 0.5) / 2**52 for word in raw]
    np.testing.assert_array_equal(
        uniform(7, "in_layer/kernel", (2, 3), 0.5).ravel(), np.float32([(2 * value - 1) * 0.5 for value in u])
    )
    wanted = [NormalDist().inv_cdf(value) * 3 for value in u]
    np.testing.assert_allclose(normal(7, "in_layer/kernel", (2, 3), 3).ravel(), wanted, rtol=2e-7)


def test_seed_and_path_decide_and_nothing_else():
    one = uniform(3, "a/kernel", (4, 5), 1)
    np.testing.assert_array_equal(one, uniform(3, "a/kernel", (4, 5), 1))
    np.testing.assert_array_equal(one.ravel()[:6], uniform(3, "a/kernel", (6,), 1))
    for other in (uniform(4, "a/kernel", (4, 5), 1), uniform(3, "b/kernel", (4, 5), 1)):
        assert not np.any(one == other)
    layer = linear(3, "a", 4, 5)
    assert not np.isin(layer["bias"], layer["kernel"]).any()


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ConfigError, match=rf"network\.seed: seed {seed} is not between"):
        uniform(seed, "a", (1,), 1)


def test_linear_is_pytorch_s_default_distribution():
    layer = linear(1, "in_layer", 16, 4096)
    assert layer["kernel"].shape == (16, 4096)
    assert layer["bias"].shape == (4096,)
    for leaf in layer.values():
        assert leaf.dtype == np.float32
        assert np.abs(leaf).max() <= 0.25
        assert (
            np.abs(leaf).max() > 0.2495
        )  # 4096 draws at least: the bound is nearly reached, and the variance is bound² / 3
        assert abs(leaf.var() / (0.25**2 / 3) - 1) < 0.05
        assert abs(leaf.mean()) < 4 * 0.25 / math.sqrt(3 * leaf.size)


def test_normal_has_the_moments_and_tails_of_a_normal():
    x = normal(5, "x", (500_000,), 2.0).astype(np.float64) / 2
    assert x.dtype == np.float64
    for power, wanted, error in (
        (1, 0, 1),
        (2, 1, math.sqrt(2)),
        (3, 0, math.sqrt(15)),
        (4, 3, math.sqrt(96)),
    ):
        assert abs((x**power).mean() - wanted) < 4 * error / math.sqrt(x.size)
    for z in (1, 2, 3, 4):
        share = 2 * NormalDist().cdf(-z)
        assert abs((np.abs(x) > z).mean() - share) < 4 * math.sqrt(share / x.size)


@given(st.floats(2.0**-53, 1 - 2.0**-53))
def test_quantile_is_the_inverse_of_the_normal_distribution(p):
    found = float(frozen_init._normal_quantile(np.array([p]))[0])
    assert math.isclose(found, NormalDist().inv_cdf(p), rel_tol=1e-14, abs_tol=1e-16)


def test_quantile_at_the_ends_and_seams():
    """Smallest and largest value the generator can give, the middle, and both sides of each branch."""
    far = math.exp(-25)
    points = [
        2.0**-53,
        far * (1 - 1e-9),
        far * (1 + 1e-9),
        0.075 - 1e-12,
        0.075 + 1e-12,
        0.5,
        0.925 - 1e-12,
        0.925 + 1e-12,
        1 - 2.0**-53,
    ]
    found = frozen_init._normal_quantile(np.array(points))
    np.testing.assert_allclose(found, [NormalDist().inv_cdf(p) for p in points], rtol=1e-14, atol=1e-16)
    assert np.all(np.diff(found) > 0)


@given(st.floats(2.0**-60, 1.0, exclude_max=True))
def test_log_is_the_natural_logarithm(x):
    assert math.isclose(float(frozen_init._log(np.array([x]))[0]), math.log(x), rel_tol=2e-15, abs_tol=1e-16)


def test_fingerprint_sees_path_shape_dtype_order_and_every_byte():
    leaf = np.arange(6, dtype=np.float32).reshape(2, 3)
    base = fingerprint([("a/b", leaf)])
    assert base == fingerprint([("a/b", np.asfortranarray(leaf))])
    flipped = leaf.copy()
    flipped.view(np.uint8)[1, 3] ^= 1
    negative_zero = leaf.copy()
    negative_zero[0, 0] = -0.0
    others = [
        [("a/c", leaf)],
        [("a/b", leaf.reshape(3, 2))],
        [("a/b", leaf.ravel())],
        [("a/b", leaf.view(np.int32))],
        [("a/b", flipped)],
        [("a/b", negative_zero)],
        [("a/b", leaf), ("a/c", leaf)],
        [],
    ]
    found = [fingerprint(leaves) for leaves in others]
    assert len({base, *found}) == len(others) + 1
    assert fingerprint([("a", leaf), ("b", leaf + 1)]) != fingerprint([("b", leaf + 1), ("a", leaf)])


def test_fingerprint_is_the_same_for_jax_and_numpy_arrays():
    import jax.numpy as jnp

    leaf = np.linspace(0, 1, 7, dtype=np.float32)
    assert fingerprint([("a", leaf)]) == fingerprint([("a", jnp.asarray(leaf))])


names = st.text("abc_0", min_size=1, max_size=3)
trees = st.recursive(
    st.integers(), lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=12
)


@given(st.dictionaries(names, trees, min_size=1, max_size=4))
def test_unflatten_undoes_flatten_and_paths_are_sorted(tree):
    flat = flatten(tree)
    assert list(flat) == sorted(flat)
    assert unflatten(flat) == tree


@pytest.mark.parametrize(
    "shape", [(), (3,), (257, 255), (300, 300)]
)  # below and above the numbers that are drawn at a time
def test_drawn_arrays_are_taken_over_by_jax_without_a_copy(shape):
    """On a CPU jax takes over memory aligned to 64 bytes; otherwise a trunk would be in memory twice."""
    array = normal(0, "p", shape, 1.0)
    assert array.ctypes.data % 64 == 0
    assert jax.device_put(array).unsafe_buffer_pointer() == array.ctypes.data


def test_aligned_copies_what_is_not():
    wide = np.arange(40, dtype=np.float32)
    for array in (wide[1:], wide.astype(np.float64), wide[::2], wide.reshape(8, 5).T):
        moved = aligned(array)
        assert moved.ctypes.data % 64 == 0
        assert moved.dtype == np.float32
        np.testing.assert_array_equal(moved, array)
        assert not np.shares_memory(moved, array)
    assert np.shares_memory(aligned(moved), moved)


def test_what_jax_takes_over_cannot_be_written_to():
    own = np.arange(64, dtype=np.float32).reshape(8, 8)
    for array in (normal(0, "p", (8, 8), 1.0), aligned(own[1:]), aligned(own)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    own[0] = 1  # its owner's view is as it was


def test_pieces_are_one_stream(monkeypatch):
    whole = normal(3, "p", (1000,), 1.0)
    monkeypatch.setattr(frozen_init, "_BLOCK", 7)
    np.testing.assert_array_equal(normal(3, "p", (1000,), 1.0), whole)


@pytest.mark.parametrize("shape", [(2**45,), (2**62,)], ids=["memory", "address space"])
def test_parameters_that_no_machine_holds_are_refused(shape):
    with pytest.raises(WeightsError, match=r"GiB of memory\. Choose a smaller trunk"):
        aligned_empty(shape)

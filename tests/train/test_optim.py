"""Learning rates and optimizers against PyTorch: as literals, by formula, and in parity tests."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ofa_jax.train.optim import make_optimizer, make_schedule

TORCH_COSINE = [1e-2, 7.5000025e-3, 2.5000075e-3, 1e-8, 2.5000075e-3]
"""``CosineAnnealingLR(T_max=3, eta_min=1e-8)`` from 1e-2, epochs 0 to 4."""


def test_the_cosine_is_that_of_torch():
    schedule = make_schedule("cosine", 1e-2, 7, cosine_epochs=3)
    for epoch, rate in enumerate(TORCH_COSINE):
        for step in (7 * epoch, 7 * epoch + 6):
            # float32 cancels near the lowest rate: an error of one part in 1e7 of the highest
            assert float(schedule(step)) == pytest.approx(rate, rel=1e-6, abs=1e-9)
            assert float(schedule(jnp.int32(step))) == float(schedule(step))


def test_a_constant_rate_stays():
    schedule = make_schedule("constant", 0.5, 7)
    assert [float(schedule(step)) for step in (0, 1000)] == [0.5, 0.5]


@pytest.mark.parametrize("gradients", [(0.5, -0.25), (1e-8, 1e-8)])
def test_adam_is_that_of_torch(gradients):
    """Two steps by Kingma and Ba's formulas with PyTorch's defaults, epsilon added to the corrected root."""
    optimizer = make_optimizer("adam", lambda count: 0.1)
    first, second = 0.0, 0.0
    params = {"w": jnp.float32(1)}
    state = optimizer.init(params)
    for step, gradient in enumerate(gradients, start=1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        wanted = -0.1 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        updates, state = optimizer.update({"w": jnp.float32(gradient)}, state, params)
        assert float(updates["w"]) == pytest.approx(
            wanted, rel=1e-4
        )  # 1 - 0.999**step loses four digits in float32


@pytest.mark.parametrize(
    ("decay", "rates"),
    [
        (0.5, [1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4]),
        (0.75, [1e-3, 1e-3, 7.5e-4, 5.625e-4, 4.21875e-4]),
        (1.0, [1e-3] * 5),
    ],
)
def test_the_decay_acts_from_the_third_epoch(decay, rates):
    schedule = make_schedule("decay", 1e-3, 4, decay=decay)
    for epoch, rate in enumerate(rates):
        for step in (4 * epoch, 4 * epoch + 3):
            assert float(schedule(step)) == pytest.approx(rate, rel=1e-6)  # float32
            assert float(jax.jit(schedule)(jnp.int32(step))) == float(schedule(step))


def test_epochs_of_one_step_decay_too():
    schedule = make_schedule("decay", 1.0, 1, decay=0.5)
    assert [float(schedule(step)) for step in range(5)] == [1, 1, 0.5, 0.25, 0.125]


def steps_of(optimizer: optax.GradientTransformation, gradients: list[np.ndarray]) -> list[np.ndarray]:
    """The parameters after each step, from zero."""
    params = jnp.zeros(gradients[0].shape)
    state, update, found = optimizer.init(params), jax.jit(optimizer.update), []
    for gradient in gradients:
        updates, state = update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        found.append(np.asarray(params))
    return found


def draws(count: int, size: float, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [(size * draw.normal(size=6)).astype(np.float32) for _ in range(count)]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "size", "tolerance"),
    [
        ("adam", 1.0, 1e-4),
        ("adam", 1e-3, 1e-4),
        ("adam", 1e-7, 1e-4),
        # optax adds epsilon after the bias correction, so no gradient near 1e-8
        ("radam", 1.0, 1e-2),
        ("radam", 1e-3, 1e-2),
    ],
)
def test_twenty_steps_are_those_of_torch(name, size, tolerance):
    torch = pytest.importorskip("torch")
    gradients = draws(20, size)
    found = steps_of(make_optimizer(name, lambda count: 0.01), gradients)
    weight = torch.nn.Parameter(torch.zeros(6))
    optimizer = getattr(torch.optim, {"adam": "Adam", "radam": "RAdam"}[name])([weight], lr=0.01)
    for step, gradient in enumerate(gradients):
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
        wanted = weight.detach().numpy()
        # float32 on both sides; optax corrects in float32, PyTorch in float64: 1 - 0.999**step loses four
        # digits
        atol = tolerance * np.abs(wanted).max()
        np.testing.assert_allclose(found[step], wanted, rtol=0, atol=atol, err_msg=f"step {step + 1}")


def clipped(limit: float | None, gradient: Any) -> Any:
    """The first update over minus the rate: RAdam's first step is the gradient."""
    optimizer = make_optimizer("radam", lambda count: 2.0**-20, limit)
    gradient = jax.tree.map(jnp.float32, gradient)
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(gradient), gradient)
    return jax.tree.map(lambda leaf: -np.asarray(leaf) * 2.0**20, updates)


def test_the_norm_of_the_whole_gradient_is_limited():
    """Norm of (3, 4) and 12: 13; limited to 6.5 all are halved. Norm 5, limited to 4: four fifths."""
    found = clipped(6.5, {"a": [3.0, 4.0], "b": 12.0})
    np.testing.assert_allclose(found["a"], [1.5, 2.0], rtol=1e-6)  # float32
    np.testing.assert_allclose(found["b"], 6.0, rtol=1e-6)
    np.testing.assert_allclose(clipped(4.0, [3.0, -4.0]), [2.4, -3.2], rtol=1e-6)


@pytest.mark.parametrize("limit", [None, 5.1, 100.0])
def test_a_smaller_gradient_is_left_alone(limit):
    np.testing.assert_allclose(clipped(limit, [3.0, -4.0]), [3.0, -4.0], rtol=1e-6)  # float32
    assert not np.any(clipped(limit, [0.0, 0.0]))


@pytest.mark.parity
@pytest.mark.parametrize("size", [1e-3, 1.0, 50.0])
def test_the_limit_is_that_of_torch(size):
    torch = pytest.importorskip("torch")
    gradients = draws(2, size)
    weights = [torch.nn.Parameter(torch.zeros(6)) for _ in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = torch.from_numpy(gradient.copy())
    norm = float(torch.nn.utils.clip_grad_norm_(weights, 4.0))
    assert (norm > 4) == (size == 50)
    for weight, found in zip(weights, clipped(4.0, gradients), strict=True):
        wanted = weight.grad.numpy()
        # PyTorch divides by the norm plus 1e-6, which is far below float32's digits of a norm above 4
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(("name", "first"), [("adam", -0.1), ("radam", -0.05)])
def test_names_choose_the_optimizer(name, first):
    """A constant gradient of 0.5 at rate 0.1: Adam moves by the rate, RAdam first by the gradient."""
    optimizer = make_optimizer(name, lambda count: 0.1)
    moves = np.diff(steps_of(optimizer, [np.full(1, 0.5, np.float32)] * 6), axis=0, prepend=0)[:, 0]
    np.testing.assert_allclose(moves[:5], first, rtol=1e-4)  # the corrections of optax.adam lose four digits
    if name == "radam":
        length = 1999 - 2 * 6 * 0.999**6 / (1 - 0.999**6)
        rectified = -0.1 * math.sqrt((length - 4) * (length - 2) * 1999 / (1995 * 1997 * length))
        # optax computes the length in float32: 2000 minus 1994, of which two digits are left
        np.testing.assert_allclose(moves[5], rectified, rtol=1e-2)


def test_the_schedule_is_read_at_the_steps_before_each_update():
    """Rates 1, 2, 3, …: the first update is made at the first rate."""
    rates = lambda count: jnp.asarray(count + 1, jnp.float32)  # noqa: E731
    found = steps_of(make_optimizer("radam", rates), [np.ones(1, np.float32)] * 3)
    np.testing.assert_allclose(np.ravel(found), [-1, -3, -6], rtol=1e-6)

"""The network of a pretrained trunk: quantiles in order, masks, units, roll-out, cycles."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.errors import ConfigError
from ofa_jax.model import quantiles
from ofa_jax.model.gpt2 import Forecaster, GPT2Config, GPT2Trunk
from ofa_jax.model.networks import init_base
from ofa_jax.model.quantiles import (
    PretrainedForecastNetwork,
    PretrainNetwork,
    QuantileForecastNetwork,
    last_seen,
)
from ofa_jax.model.season import cycles_before, find_cycles
from ofa_jax.model.weights import random_trunk, trunk_tensors

AROUND = Forecaster(patch=8, context=64, horizon=16)
CONFIG = GPT2Config(
    n_embd=16,
    n_layer=1,
    n_head=2,
    n_positions=10,
    embd_pdrop=0,
    attn_pdrop=0,
    resid_pdrop=0,
    forecaster=AROUND,
)


@pytest.fixture(scope="module")
def trunk():
    """Random weights of the complete forecaster, large enough to matter."""
    draw = np.random.default_rng(0)
    params = random_trunk(CONFIG, 0).params
    around = {}
    for path, shape in trunk_tensors(CONFIG).values():
        if path.split("/")[0] in ("in_layer", "median_layer", "spread_layer"):
            layer, leaf = path.split("/")
            around.setdefault(layer, {})[leaf] = draw.normal(0, 0.3, shape).astype(np.float32)
    return {**params, **around}


def forecaster(trunk, length=64, horizon=16):
    network = PretrainedForecastNetwork(
        trunk=GPT2Trunk(CONFIG), input_length=length, horizon=horizon, patch=8
    )
    params = init_base(network, trunk, 0)
    return jax.jit(lambda x, mask=None: network.apply({"params": params}, x, mask))


def series(steps=64, channels=2):
    draw = np.random.default_rng(5)
    wave = np.sin(2 * np.pi * np.arange(steps) / 12)[:, None]
    return (wave + 0.3 * draw.standard_normal((3, steps, channels))).astype(np.float32)


def test_quantiles_never_cross_and_the_median_is_between(trunk):
    network = PretrainNetwork(trunk=GPT2Trunk(CONFIG), input_length=64, horizon=16, patch=8)
    params = {"gpt2": {name: trunk[name] for name in ("wpe", "h", "ln_f")}}
    params |= {name: trunk[name] for name in ("in_layer", "median_layer", "spread_layer")}
    forecast = jax.jit(network.apply)({"params": params}, series(channels=1))
    assert forecast.levels.shape == (3, 16, 9)
    assert forecast.mean.shape == (3, 16)
    assert (jnp.diff(forecast.levels, axis=-1) > 0).all()


def test_channels_are_forecast_alone_and_batches_do_not_matter(trunk):
    predict, x = forecaster(trunk), series()
    together = predict(x)
    assert together.shape == (3, 16, 2)
    np.testing.assert_allclose(predict(x[1:2, :, 1:])[0, :, 0], together[1, :, 1], atol=1e-5)


@pytest.mark.parametrize(("scale", "shift"), [(1e-4, 0.0), (250.0, 1e3), (1.0, -40.0)])
def test_forecasts_follow_scale_and_shift(trunk, scale, shift):
    predict, x = forecaster(trunk), series()
    moved = (np.asarray(predict(np.float32(scale) * x + np.float32(shift))) - shift) / scale
    np.testing.assert_allclose(moved, predict(x), atol=5e-3)


@pytest.mark.slow
def test_a_short_context_equals_a_masked_long_one(trunk):
    x, mask = series(), np.ones((3, 64, 2), bool)
    mask[:, :44] = False
    hidden = np.where(mask, x, 123.0).astype(np.float32)
    np.testing.assert_allclose(
        forecaster(trunk, length=20)(x[:, 44:]), forecaster(trunk)(hidden, mask), rtol=1e-5, atol=1e-5
    )


def test_more_steps_than_the_trunk_reads_are_refused(trunk):
    with pytest.raises(ConfigError, match=r"task\.input_length: 65 input steps, .* at most 64"):
        forecaster(trunk, length=65)


@pytest.mark.slow
def test_the_forecast_of_a_mirror_image_is_the_mirrored_forecast(trunk):
    x = series()
    np.testing.assert_allclose(
        forecaster(trunk, horizon=40)(-x), -forecaster(trunk, horizon=40)(x), atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [13, 40])
def test_quantiles_are_in_the_units_of_the_mean_and_adaptation_moves_both(trunk, horizon):
    network = QuantileForecastNetwork(trunk=GPT2Trunk(CONFIG), input_length=64, horizon=horizon, patch=8)
    x = 50 + 3 * series(channels=1)
    params = init_base(network, trunk, 0)
    apply = jax.jit(lambda params, x: network.apply({"params": params}, x))
    found = apply(params, x)
    assert found.levels.shape == (3, horizon, 9)
    assert (jnp.diff(found.levels, axis=-1) > 0).all()
    np.testing.assert_allclose(found.mean, forecaster(trunk, horizon=horizon)(x)[..., 0], rtol=1e-6)
    mirrored = apply(params, -x)
    np.testing.assert_allclose(mirrored.levels, -found.levels[..., ::-1], rtol=1e-5)
    shape = params["out_layer"]["kernel"].shape
    params["out_layer"]["kernel"] = np.random.default_rng(2).normal(0, 0.1, shape).astype(np.float32)
    moved = apply(params, x)
    change = moved.mean - found.mean
    assert (np.abs(change) > 1e-3).any()
    np.testing.assert_allclose(moved.levels - found.levels, np.repeat(change[..., None], 9, 2), atol=1e-4)


def test_the_last_seen_value_is_found_before_missing_ones():
    x = jnp.arange(1.0, 7.0).reshape(2, 3)
    seen = jnp.array([[True, True, False], [False, False, True]])
    np.testing.assert_array_equal(last_seen(x, seen), [[2], [6]])


@pytest.mark.slow
@pytest.mark.parametrize("length", [6, 12])
def test_a_few_points_are_enough(trunk, length):
    assert np.isfinite(forecaster(trunk, length=length)(series(length))).all()


def test_a_constant_is_forecast_in_its_units_without_infinities(trunk):
    x = np.full((1, 64, 1), 5.0, np.float32)
    assert np.isfinite(forecaster(trunk)(x)).all()


@pytest.mark.slow
def test_a_longer_horizon_is_rolled_out_from_its_own_mean(trunk):
    x = series()
    first = forecaster(trunk)(x)
    longer = forecaster(trunk, horizon=40)(x)
    assert longer.shape == (3, 40, 2)
    np.testing.assert_allclose(longer[:, :16], first, atol=1e-5)
    again = forecaster(trunk)(np.concatenate([x[:, 16:], first], axis=1))
    np.testing.assert_allclose(longer[:, 16:32], again, atol=1e-4)
    np.testing.assert_allclose(forecaster(trunk, horizon=21)(x), longer[:, :21], atol=1e-4)


@pytest.mark.parametrize("cycle", [4, 7, 12, 24])
def test_the_cycle_of_a_noisy_season_with_a_trend_is_found(cycle):
    draw, at = np.random.default_rng(cycle), np.arange(128)
    shape = draw.standard_normal(cycle)
    x = np.stack([shape[(at + number) % cycle] + slope * at for number, slope in enumerate((0, 0.05, -0.1))])
    x = (x + 0.2 * draw.standard_normal(x.shape)).astype(np.float32)
    seen = np.ones(x.shape, bool)
    seen[:, 30:37] = False
    shortest, strongest = find_cycles(jnp.where(seen, x, 0), seen)
    np.testing.assert_array_equal(shortest, cycle)
    assert not (np.asarray(strongest) % cycle).any()


def test_noise_and_constants_have_no_strong_cycle():
    x = np.zeros((1, 64), np.float32)
    line = np.arange(64, dtype=np.float32)[None]
    for values in (x, line):
        assert [int(cycle[0]) for cycle in find_cycles(values, np.ones((1, 64), bool))] == [0, 0]


def test_a_day_and_a_week_are_both_found():
    at = np.arange(512)
    load = np.sin(2 * np.pi * at / 24) + 0.8 * (at // 24 % 7 >= 5)
    found = find_cycles(load[None].astype(np.float32), np.ones((1, 512), bool))
    assert [int(cycle[0]) for cycle in found] == [24, 168]


def test_values_of_earlier_cycles_stop_at_the_context():
    x = np.arange(1.0, 9.0, dtype=np.float32)[None]  # 1 … 8
    seen = np.ones((1, 8), bool)
    seen[0, 5] = False  # the value 6
    last, mean = cycles_before(np.where(seen, x, 0), seen, np.array([3]), 4)
    np.testing.assert_array_equal(last[0], [0, 0, 0, 1, 2, 3, 4, 5, 3, 7, 8, 3])
    np.testing.assert_allclose(mean[0], [0, 0, 0, 1, 2, 3, 2.5, 3.5, 3, 4, 5, 3])
    assert not np.asarray(cycles_before(x, seen, np.array([0]), 4)).any()


def test_means_over_earlier_cycles_by_hand():
    draw = np.random.default_rng(1)
    x, seen = draw.normal(size=(4, 90)).astype(np.float32), draw.random((4, 90)) > 0.3
    cycles, x = [2, 5, 17, 90], np.where(seen, x, 0)
    last, mean = cycles_before(x, seen, np.array(cycles), 20)
    for row, cycle in enumerate(cycles):
        for step in range(110):
            places = [place for place in range(step - cycle, -1, -cycle) if place < 90][:32]
            values = [x[row, place] for place in places if seen[row, place]] or [0.0]
            assert float(last[row, step]) == pytest.approx(values[0])
            assert float(mean[row, step]) == pytest.approx(np.mean(values), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "horizon"), [(64, 40), (24, 8)])
def test_tokens_that_nothing_reads_are_left_out_of_the_last_block(trunk, monkeypatch, length, horizon):
    """Also where the horizon takes three rounds, and where the context is short; with an adapted layer."""
    monkeypatch.setattr(quantiles, "READ_BEFORE", 3)
    x = series(length)
    network = PretrainedForecastNetwork(
        trunk=GPT2Trunk(CONFIG), input_length=length, horizon=horizon, patch=8
    )
    params = init_base(network, trunk, 0)
    params["out_layer"]["kernel"] = np.random.default_rng(1).normal(
        0, 0.1, params["out_layer"]["kernel"].shape
    )
    few, every = [], []
    for found, whole in ((few, False), (every, True)):
        monkeypatch.setattr(PretrainedForecastNetwork, "computes_all_tokens", whole)
        found.append(jax.jit(lambda params, x: network.apply({"params": params}, x))(params, x))
    np.testing.assert_allclose(few[0], every[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_last_block_computes_no_other_tokens(trunk, monkeypatch):
    monkeypatch.setattr(quantiles, "READ_BEFORE", 3)
    network = PretrainedForecastNetwork(trunk=GPT2Trunk(CONFIG), input_length=64, horizon=16, patch=8)
    params, widths = init_base(network, trunk, 0), {}

    def read_off(call, args, kwargs, context):
        if args and isinstance(args[0], jax.Array) and args[0].ndim > 1:
            widths["/".join(context.module.path)] = args[0].shape[1]
        return call(*args, **kwargs)

    with nn.intercept_methods(read_off):
        network.apply({"params": params}, series())
    assert widths["gpt2/h/0/attn/c_attn"] == 10
    assert widths["gpt2/h/0/attn/c_proj"] == widths["gpt2/h/0/mlp"] == widths["gpt2/ln_f"] == 3 + 2

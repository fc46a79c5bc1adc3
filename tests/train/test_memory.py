"""How many windows are worked on at a time where the settings leave it open."""

from __future__ import annotations

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.build import build_model, build_network, trunk_config
from ofa_jax.config.load import load_experiment
from ofa_jax.config.schema import TrainConfig
from ofa_jax.model.gpt2 import Blocks, GPT2Config, GPT2Trunk
from ofa_jax.model.networks import (
    ClassifyNetwork,
    ForecastNetwork,
    ImputeNetwork,
    ReconstructNetwork,
    ShortTermNetwork,
)
from ofa_jax.train.memory import EVAL_WINDOWS, activation_bytes, settled, weight_bytes, windows_at_once

SMALL = GPT2Trunk(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64))


@pytest.mark.parametrize(("config", "expected"), [("quick/etth1.yaml", 64), ("long/etth1.yaml", 8)])
def test_windows_of_a_slice(config, expected):
    """The two shapes that docs/performance.md measured."""
    experiment = load_experiment(f"configs/{config}")
    assert windows_at_once(build_network(experiment, trunk_config(experiment.trunk)), "cpu") == expected


def test_only_a_cpu_works_in_slices():
    network = ForecastNetwork(SMALL, 32, 4)
    assert windows_at_once(network, "gpu") is None
    assert windows_at_once(network, "tpu") is None


def test_a_window_too_large_for_the_cache_is_a_slice_of_its_own():
    assert (
        windows_at_once(
            ForecastNetwork(
                GPT2Trunk(replace(SMALL.config, n_positions=100_000)), 40_000, 4, patch=1, stride=1
            ),
            "cpu",
        )
        == 1
    )


def test_settings_that_were_given_stay():
    network = ForecastNetwork(SMALL, 32, 4)
    given = TrainConfig(micro_batch=3, eval_batch_size=5, batch_size=10)
    assert settled(given, network) == given


def test_settings_that_were_not_given_are_chosen(monkeypatch):
    network = ForecastNetwork(SMALL, 32, 4)
    chosen = windows_at_once(network, "cpu")
    assert chosen is not None
    assert chosen > 10
    cpu = settled(TrainConfig(batch_size=10), network)
    assert (cpu.micro_batch, cpu.eval_batch_size) == (10, min(chosen, EVAL_WINDOWS))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    other = settled(TrainConfig(batch_size=10), network)
    assert (other.micro_batch, other.eval_batch_size) == (None, EVAL_WINDOWS)


@pytest.mark.parametrize(
    "network",
    [
        ForecastNetwork(SMALL, 32, 4, patch=8, stride=4),
        ReconstructNetwork(SMALL, 20, channels=3, segment=10),
        ClassifyNetwork(SMALL, 24, channels=3, classes=2),
        ShortTermNetwork(SMALL, 12, horizon=6),
        ImputeNetwork(SMALL, 20, channels=3, calendar=4),
    ],
    ids=lambda network: type(network).__name__,
)
def test_a_network_s_tokens_are_those_its_trunk_sees(network):
    seen = []

    def look(call, args, kwargs, context):
        if isinstance(context.module, Blocks):
            seen.append(args[0].shape)
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(network.example_shape))
    assert {shape[1] for shape in seen} == {network.tokens}


def test_estimates_are_near_what_is_kept_and_read(tiny):
    """Weights to the byte; intermediate values to a factor of two of what XLA allocates for a gradient."""
    model = build_model(tiny.experiment("unused.csv"))
    kernels = sum(
        leaf.nbytes
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.frozen["gpt2"]["h"])
        if "kernel" in str(path)
    )
    assert weight_bytes(model.network) == kernels
    rows = 64
    x = np.zeros((rows, *model.network.example_shape[1:]), np.float32)
    keys = jax.random.split(jax.random.key(0), rows)

    def loss(trainable, frozen):
        return jnp.square(model.predict(frozen, trainable, x, dropout_keys=keys)).mean()

    compiled = jax.jit(jax.grad(loss)).lower(model.trainable, model.frozen).compile()
    allocated = compiled.memory_analysis().temp_size_in_bytes
    assert 0.5 < activation_bytes(model.network) * rows / allocated < 2

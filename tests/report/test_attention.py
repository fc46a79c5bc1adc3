"""Attention weights: a distribution over earlier patches, and the one that the network used."""

from __future__ import annotations

from dataclasses import replace

import flax.linen as nn
import numpy as np
import pytest

from ofa_jax.adapters.bundle import BundleRecord
from ofa_jax.build import Model, build_model
from ofa_jax.estimators.engine import forecast_experiment
from ofa_jax.report.attention import attention_section, attention_weights
from ofa_jax.report.forecasts import Evaluation
from ofa_jax.runs.bundle import LoadedModel
from ofa_jax.runs.train import read_data


@pytest.fixture(scope="module")
def model(tiny) -> Model:
    model = build_model(
        tiny.experiment(
            "unused",
            "trunk.n_layer=2",
            "trunk.random.n_head=4",
            "rules=[[adapt, gpt2/.*/(kernel|embedding)], [freeze, .*]]",
        )
    )
    rng = np.random.default_rng(0)
    adapters = {
        path: {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in factors.items()}
        for path, factors in model.trainable["adapters"].items()
    }
    assert "gpt2/h/0/attn/c_attn" in adapters
    return replace(model, trainable={**model.trainable, "adapters": adapters})


@pytest.fixture(scope="module")
def x_btc(tiny) -> np.ndarray:
    values = tiny.values(40)
    return np.stack([values[start : start + 32] for start in range(3)]).astype(np.float32)


def test_every_patch_shares_out_one_among_those_before_it(model, x_btc):
    weights = attention_weights(model, x_btc, np.ones(x_btc.shape, bool))
    patches = model.network.tokens
    assert weights.shape == (2, 4, patches, patches)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)  # a softmax in float32
    assert (weights >= 0).all()
    assert not weights[..., np.triu_indices(patches, 1)[0], np.triu_indices(patches, 1)[1]].any()
    np.testing.assert_array_equal(weights[..., 0, 0], 1)
    assert weights.std(axis=(0, 1)).max() > 0.01, (
        "layers and heads attend alike, so something was read off twice"
    )


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_they_are_the_weights_that_the_network_mixes_its_values_with(model, x_btc, remat):
    """One window of one channel, so that the mean over windows is the window's own."""
    window = x_btc[:1, :, :1]
    observed = np.ones(window.shape, bool)
    seen: dict[str, np.ndarray] = {}

    def read_off(call, args, kwargs, context):
        output = call(*args, **kwargs)
        path = "/".join(context.module.path)
        if path.endswith("c_attn"):
            seen[path] = np.asarray(output)
        elif path.endswith("attn/c_proj"):
            seen[path] = np.asarray(args[0])
        return output

    params = model.merged()
    with nn.intercept_methods(read_off):
        model.network.apply({"params": params}, window, observed)
    network = replace(model.network, trunk=replace(model.network.trunk, remat=remat))
    weights = attention_weights(replace(model, network=network), window, observed)
    for layer in range(2):
        value = np.split(seen[f"gpt2/h/{layer}/attn/c_attn"], 3, axis=-1)[2][0]
        by_head = value.reshape(len(value), 4, -1)
        mixed = np.einsum("aqk,kae->qae", weights[layer], by_head).reshape(len(value), -1)
        # float32 sums of five terms, of values up to about 100 with these large adapters
        np.testing.assert_allclose(
            mixed, seen[f"gpt2/h/{layer}/attn/c_proj"][0], rtol=1e-4, atol=1e-4 * abs(value).max()
        )


def test_a_pretrained_forecaster_shows_the_attention_of_every_token(x_btc):
    model = build_model(forecast_experiment("nano", 32, 16, "output", adapters={}, train={}))
    weights = attention_weights(model, x_btc, np.ones(x_btc.shape, bool))
    assert weights.shape == (4, 4, model.network.tokens, model.network.tokens)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)


def test_a_network_without_gpt2_has_none(tiny, tmp_path):
    experiment = tiny.of_task("forecast", tmp_path, "trunk.source=none", "rules=[[train, .*]]")
    model = LoadedModel(experiment, build_model(experiment), None, BundleRecord.model_construct())
    section = attention_section(Evaluation(model, read_data(experiment)))
    assert section.sentences == ["The network has no GPT-2, so there is no causal attention."]
    assert not section.pictures

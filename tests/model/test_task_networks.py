"""The other tasks' networks: protocol §2 written out in NumPy and PyTorch, initial bits, wrong sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from moved_trunk import moved_tree

from ofa_jax.adapters.partition import AdapterTarget
from ofa_jax.adapters.rslora import LoraConfig, init_adapters, merge, with_adapters
from ofa_jax.build import build_model, footprint
from ofa_jax.config.load import build_experiment
from ofa_jax.errors import ConfigError, TrainError, WeightsError
from ofa_jax.model import frozen_init
from ofa_jax.model.gpt2 import GPT2Config, GPT2Trunk
from ofa_jax.model.networks import (
    AttentionTrunk,
    ClassifyNetwork,
    ForecastNetwork,
    ImputeNetwork,
    NoTrunk,
    ReconstructNetwork,
    ShortTermNetwork,
    base_shapes,
    init_base,
    sinusoid,
)
from ofa_jax.model.trees import fingerprint, flatten
from ofa_jax.model.weights import random_trunk

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = GPT2Config(n_embd=12, n_layer=1, n_head=2, n_positions=20)
TRUNKS = {"gpt2": GPT2Trunk(CONFIG), "attention": AttentionTrunk(CONFIG), "none": NoTrunk(CONFIG)}
NETWORKS: dict[str, Any] = {
    "reconstruct": ReconstructNetwork(TRUNKS["gpt2"], 12, channels=3, segment=4, read_width=7),
    "classify": ClassifyNetwork(TRUNKS["gpt2"], 11, channels=3, classes=4, patch=4, stride=2),
    "short_term": ShortTermNetwork(TRUNKS["gpt2"], 6, horizon=3, embed_width=8, read_width=5),
    "impute": ImputeNetwork(TRUNKS["gpt2"], 10, channels=3, calendar=2),
}
CHANNELS = {"reconstruct": 3, "classify": 3, "short_term": 2, "impute": 5}

# float32 against float64, of the largest value; measured: at most 2e-6
TOLERANCE = 1e-5

LORA = LoraConfig(rank=4, alpha=16)


def moved(network: Any, seed: int = 1) -> dict[str, Any]:
    """The network's parameters, each leaf moved off its initial value, so that biases are not idle."""
    trunk = random_trunk(network.trunk.config, 0).params if isinstance(network.trunk, GPT2Trunk) else {}
    return moved_tree(init_base(network, trunk, seed), seed)


def windows(name: str, b: int = 3, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    steps = draw.normal(size=(b, NETWORKS[name].input_length, CHANNELS[name]))
    return (steps.cumsum(axis=1) + 4 * draw.normal(size=(b, 1, CHANNELS[name]))).astype(np.float32)


def masks(name: str, b: int = 3) -> np.ndarray:
    """Hidden points: before a short series' start, or anywhere but in calendar features."""
    shape = windows(name, b).shape
    if name == "short_term":
        return np.broadcast_to(np.arange(shape[1])[:, None] >= np.arange(b)[:, None, None], shape)
    mask = np.random.default_rng(5).random(shape) < 0.7
    if name == "impute":
        mask[..., 3:] = True
    return mask


def keys(b: int = 3) -> jax.Array:
    return jax.random.split(jax.random.key(0), b)


@partial(jax.jit, static_argnames="network")
def apply(network: Any, params: Any, x: Any, mask: Any = None, keys: Any = None) -> jax.Array:
    return network.apply({"params": params}, x, mask, dropout_keys=keys)


def assert_close(found: Any, wanted: Any, tolerance: float = TOLERANCE) -> None:
    """Within ``tolerance`` of the largest value."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


# The networks in NumPy, float64, loop by loop as in protocol §2; `through` takes the trunk's place.

Through = Callable[[np.ndarray], np.ndarray]


def dense(params: Any, x: np.ndarray) -> np.ndarray:
    return x @ np.float64(params["kernel"]) + np.float64(params.get("bias", 0))


def norm_of(values: np.ndarray, known: np.ndarray) -> tuple[float, float]:
    """Mean and root of variance (ddof 0) plus 1e-5, of the known values."""
    seen = values[known].astype(np.float64)
    return seen.mean(), math.sqrt(seen.var() + 1e-5)


def circular(tokens: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Three neighboring tokens, the first's left neighbor being the last."""
    n = len(tokens)
    return np.stack(
        [sum(tokens[(i + k - 1) % n] @ np.float64(kernel[k]) for k in range(3)) for i in range(n)]
    )


def waves(n: int, width: int) -> np.ndarray:
    table = np.zeros((n, width))
    for position in range(n):
        for pair in range(width // 2):
            angle = position / 10000 ** (2 * pair / width)
            table[position, 2 * pair : 2 * pair + 2] = math.sin(angle), math.cos(angle)
    return table


def layer_norm(params: Any, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * params["scale"] + params["bias"]
    )


def written_out_reconstruct(params: Any, x: np.ndarray, known: np.ndarray, through: Through) -> np.ndarray:
    out = np.empty(x.shape)
    for window in range(len(x)):
        tokens, scale = np.zeros((12, 12)), np.empty((12, 3, 2))
        for channel in range(3):
            for begin in range(0, 12, 4):
                part = slice(begin, begin + 4)
                mean, std = norm_of(x[window, part, channel], known[window, part, channel])
                tokens[part, channel] = np.where(
                    known[window, part, channel], (x[window, part, channel] - mean) / std, 0
                )
                scale[part, channel] = mean, std
        back = dense(params["out_layer"], through(tokens[None])[0][:, :7])
        out[window] = back * scale[..., 1] + scale[..., 0]
    return out


def written_out_classify(params: Any, x: np.ndarray, known: np.ndarray, through: Through) -> np.ndarray:
    logits = []
    for case in x.astype(np.float64):
        longer = np.concatenate([case, np.repeat(case[-1:], 2, axis=0)])
        tokens = [
            longer[begin : begin + 4].reshape(-1) for begin in range(0, len(longer) - 3, 2)
        ]  # step by step, in each all channels
        hidden = through(
            (circular(np.stack(tokens), params["token_conv"]["kernel"]) + waves(len(tokens), 12))[None]
        )[0]
        gelu = np.vectorize(lambda value: 0.5 * value * (1 + math.erf(value / math.sqrt(2))))(hidden)
        logits.append(dense(params["out_layer"], layer_norm(params["ln_proj"], gelu.reshape(-1))))
    return np.stack(logits)


def written_out_short_term(params: Any, x: np.ndarray, known: np.ndarray, through: Through) -> np.ndarray:
    out = np.empty((len(x), 3, x.shape[2]))
    for window, channel in np.ndindex(len(x), x.shape[2]):
        series, seen = x[window, :, channel], known[window, :, channel]
        mean, std = norm_of(series, seen)
        tokens = np.where(seen, (series - mean) / std, 0)[:, None]
        embedded = circular(tokens, params["token_conv"]["kernel"]) + waves(6, 8)
        longer = dense(params["time_layer"], embedded.T).T
        hidden = through(np.concatenate([longer, np.zeros((9, 4))], axis=1)[None])[0]
        out[window, :, channel] = dense(params["out_layer"], hidden[:, :5])[6:, 0] * std + mean
    return out


def written_out_impute(params: Any, x: np.ndarray, known: np.ndarray, through: Through) -> np.ndarray:
    out = np.empty((*x.shape[:2], 3))
    for window in range(len(x)):
        tokens, scale = np.empty((10, 3)), np.empty((3, 2))
        for channel in range(3):
            seen = known[window, :, channel]
            scale[channel] = norm_of(x[window, :, channel], seen)
            tokens[:, channel] = np.where(
                seen, (x[window, :, channel] - scale[channel, 0]) / scale[channel, 1], 0
            )
        embedded = (
            circular(tokens, params["token_conv"]["kernel"])
            + dense(params["calendar_layer"], x[window, :, 3:])
            + waves(10, 12)
        )
        out[window] = (
            dense(params["out_layer"], layer_norm(params["ln_proj"], through(embedded[None])[0]))
            * scale[:, 1]
            + scale[:, 0]
        )
    return out


WRITTEN_OUT: dict[str, Callable[..., np.ndarray]] = {
    "reconstruct": written_out_reconstruct,
    "classify": written_out_classify,
    "short_term": written_out_short_term,
    "impute": written_out_impute,
}


@pytest.mark.parametrize(("kind", "masked"), [("none", False), ("none", True), ("gpt2", True)])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_is_the_one_of_the_protocol(name, kind, masked):
    network = replace(NETWORKS[name], trunk=TRUNKS[kind])
    params, x = moved(network), windows(name)
    mask = masks(name) if masked else None
    trunk = GPT2Trunk(CONFIG)
    run_trunk = jax.jit(lambda embeds: trunk.apply({"params": params["gpt2"]}, embeds))
    through = (
        (lambda e: e)
        if kind == "none"
        else (lambda e: np.asarray(run_trunk(e.astype(np.float32)), np.float64))
    )
    wanted = WRITTEN_OUT[name](
        params, x, np.ones(x.shape, bool) if mask is None or name == "classify" else mask, through
    )
    assert_close(apply(network, params, x, mask), wanted)


@pytest.mark.parametrize("name", ["reconstruct", "short_term", "impute"])
def test_hidden_points_are_not_read(name):
    network = replace(NETWORKS[name], trunk=TRUNKS["none"])
    params, x, mask = moved(network), windows(name), masks(name)
    found = apply(network, params, np.where(mask, x, np.float32("nan")), mask)
    np.testing.assert_array_equal(found, apply(network, params, np.where(mask, x, np.float32(1e6)), mask))
    assert np.isfinite(found).all()
    assert np.abs(found - apply(network, params, x)).max() > 0.01


@pytest.mark.parametrize("name", ["reconstruct", "short_term", "impute"])
def test_a_window_with_nothing_known_gives_finite_numbers(name):
    network = replace(NETWORKS[name], trunk=TRUNKS["none"])
    assert np.isfinite(
        apply(network, moved(network), windows(name), np.zeros(windows(name).shape, bool))
    ).all()


def test_classification_does_not_read_the_mask():
    network = replace(NETWORKS["classify"], trunk=TRUNKS["none"])
    params, x = moved(network), windows("classify")
    np.testing.assert_array_equal(apply(network, params, x, masks("classify")), apply(network, params, x))


def test_channels_are_forecast_apart():
    network, x = replace(NETWORKS["short_term"], trunk=TRUNKS["none"]), windows("short_term")
    params = moved(network)
    assert_close(apply(network, params, x[..., 1:]), apply(network, params, x)[..., 1:], 1e-6)
    twins = np.asarray(apply(network, params, np.repeat(x[..., :1], 2, axis=2), None, keys()))
    assert np.abs(twins[..., 0] - twins[..., 1]).max() > 0.01  # but each has its own dropout


def test_sinusoid():
    """Sine and cosine side by side, wavelengths growing from 2 pi to 10000 times that."""
    table = sinusoid(20, 12)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, waves(20, 12), rtol=0, atol=2e-6)  # angles to 19 in float32
    np.testing.assert_allclose(
        sinusoid(3, 4)[2], [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)], rtol=1e-6
    )


@partial(jax.jit, static_argnames=("network", "modules"))
def inputs_of(
    modules: tuple[str, ...], network: Any, params: Any, x: Any, keys: Any = None
) -> list[jax.Array]:
    """What submodules are given."""
    seen = {}

    def look(call, call_args, call_kwargs, context):
        if context.method_name == "__call__":
            seen["/".join(context.module.path)] = call_args[0]
        return call(*call_args, **call_kwargs)

    with nn.intercept_methods(look):
        network.apply({"params": params}, x, dropout_keys=keys)
    return [seen[module] for module in modules]


@pytest.mark.parametrize(
    ("name", "reader"), [("classify", "gpt2"), ("short_term", "time_layer"), ("impute", "gpt2")]
)
def test_dropout_acts_on_the_complete_embedding(name, reader):
    """After values, calendar and positions are summed; at the rate ``embd_pdrop``; a mask for each sample."""
    network = replace(
        NETWORKS[name], trunk=GPT2Trunk(replace(CONFIG, embd_pdrop=0.25, attn_pdrop=0.0, resid_pdrop=0.0))
    )
    network, modules = (
        (network, (reader, "gpt2/h"))
        if reader == "gpt2"
        else (replace(network, trunk=NoTrunk(network.trunk.config)), (reader,))
    )
    b = 40
    params, x = (
        moved(network),
        np.repeat(windows(name, 1)[..., : 1 if name == "short_term" else None], b, axis=0),
    )
    complete, *_ = map(np.asarray, inputs_of(modules, network, params, x))
    dropped, *inside = map(np.asarray, inputs_of(modules, network, params, x, keys(b)))
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], complete[kept] / 0.75, rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 5 * math.sqrt(0.25 * 0.75 / kept.size)
    assert len({row.tobytes() for row in kept}) == b
    for later in inside:  # the trunk draws its own mask
        assert 0.2 < (later[kept] == 0).mean() < 0.3
        assert (later[~kept] != 0).any()


def test_reconstruction_has_no_dropout_before_the_trunk():
    network, x = NETWORKS["reconstruct"], windows("reconstruct")
    (without,), (found,) = (
        inputs_of(("gpt2",), network, moved(network), x, given) for given in (None, keys())
    )
    np.testing.assert_array_equal(found, without)
    assert found.shape[-1] == 12
    assert not found[..., 3:].any()


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_computes_near_float32_and_answers_in_float32(name):
    network = replace(NETWORKS[name], trunk=TRUNKS["none"])
    params, x = moved(network), windows(name)
    wide = np.asarray(apply(network, params, x))
    narrow = apply(replace(network, trunk=NoTrunk(CONFIG, jnp.dtype(jnp.bfloat16))), params, x)
    assert narrow.dtype == jnp.float32
    distance = np.abs(narrow - wide).max() / np.abs(wide).max()
    assert 1e-5 < distance < 0.03  # bfloat16 keeps 8 bits: 0.4 % per rounding; above 1e-5 it is really used


TRUNK_SHAPES = {f"gpt2/{path}": leaf.shape for path, leaf in flatten(random_trunk(CONFIG, 0).params).items()}
AROUND = {
    "reconstruct": {"out_layer/bias": (3,), "out_layer/kernel": (7, 3)},
    "classify": {
        "ln_proj/bias": (60,),
        "ln_proj/scale": (60,),
        "out_layer/bias": (4,),
        "out_layer/kernel": (60, 4),
        "token_conv/kernel": (3, 12, 12),
    },
    "short_term": {
        "out_layer/bias": (1,),
        "out_layer/kernel": (5, 1),
        "time_layer/bias": (9,),
        "time_layer/kernel": (6, 9),
        "token_conv/kernel": (3, 1, 8),
    },
    "impute": {
        "calendar_layer/kernel": (2, 12),
        "ln_proj/bias": (12,),
        "ln_proj/scale": (12,),
        "out_layer/bias": (3,),
        "out_layer/kernel": (12, 3),
        "token_conv/kernel": (3, 3, 12),
    },
}
ATTENTION = {f"attention/{name}/kernel": (12, 12) for name in ("query", "key", "value", "out")} | {
    f"attention/{name}": (12,)
    for name in ("query/bias", "key/bias", "value/bias", "out/bias", "norm/scale", "norm/bias")
}


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_trees_are_these(name):
    for kind, inner in {"gpt2": TRUNK_SHAPES, "attention": ATTENTION, "none": {}}.items():
        assert base_shapes(replace(NETWORKS[name], trunk=TRUNKS[kind])) == AROUND[name] | inner
    without = base_shapes(replace(NETWORKS[name], trunk=GPT2Trunk(CONFIG, positions=False)))
    assert base_shapes(NETWORKS[name]).keys() - without.keys() == {"gpt2/wpe/embedding"}


def test_sizes_that_are_not_given_are_the_trunk_s():
    shapes = base_shapes(replace(NETWORKS["short_term"], embed_width=None, read_width=None))
    assert (shapes["token_conv/kernel"], shapes["out_layer/kernel"]) == ((3, 1, 12), (12, 1))
    assert base_shapes(replace(NETWORKS["reconstruct"], read_width=None))["out_layer/kernel"] == (12, 3)
    assert "calendar_layer/kernel" not in base_shapes(replace(NETWORKS["impute"], calendar=0))


STARTS = {**NETWORKS, "forecast": ForecastNetwork(GPT2Trunk(CONFIG), 12, 5, patch=4, stride=2)}


@pytest.mark.parametrize("name", STARTS)
def test_every_layer_around_the_trunk_is_drawn_by_its_rule(name):
    for kind in ("gpt2", "attention"):
        network = replace(STARTS[name], trunk=TRUNKS[kind])
        trunk = random_trunk(CONFIG, 0).params if kind == "gpt2" else {}
        base = flatten(init_base(network, trunk, seed=7))
        assert {path: leaf.shape for path, leaf in base.items()} == base_shapes(network)
        for path, leaf in base.items():
            if path.startswith("gpt2/"):
                np.testing.assert_array_equal(leaf, flatten(trunk)[path.removeprefix("gpt2/")])
                continue
            assert leaf.dtype == np.float32
            module = path.rpartition("/")[0]
            if "norm" in path or "ln_proj" in path:
                wanted = np.full(leaf.shape, path.endswith("scale"), np.float32)
            elif module == "token_conv":
                wanted = frozen_init.normal(7, path, leaf.shape, math.sqrt(2 / (3 * leaf.shape[1])))
            else:
                wanted = frozen_init.uniform(
                    7, path, leaf.shape, 1 / math.sqrt(base[f"{module}/kernel"].shape[0])
                )
            np.testing.assert_array_equal(leaf, wanted, err_msg=path)


def test_the_start_of_a_wide_convolution_has_the_published_spread():
    network = ClassifyNetwork(NoTrunk(replace(CONFIG, n_embd=400, n_head=1)), 16, channels=6, classes=2)
    kernel = init_base(network, {}, 0)["token_conv"]["kernel"]
    assert kernel.shape == (3, 48, 400)
    assert kernel.std() == pytest.approx(
        math.sqrt(2 / (3 * 8 * 6)), rel=4 / math.sqrt(2 * kernel.size)
    )  # four standard errors
    assert np.abs(kernel).max() > 4 * kernel.std()  # no uniform distribution reaches so far


def test_networks_start_with_the_same_bits_everywhere():
    leaves = {
        f"{name}/{path}": leaf
        for name, network in STARTS.items()
        for path, leaf in flatten(init_base(replace(network, trunk=TRUNKS["attention"]), {}, 2021)).items()
    }
    wanted = json.loads((GOLDEN / "digests.json").read_text())["philox-1/networks"]
    assert fingerprint(sorted(leaves.items())) == wanted


def test_trunk_parameters_are_ignored_without_gpt2():
    for kind in ("none", "attention"):
        base = init_base(replace(NETWORKS["impute"], trunk=TRUNKS[kind]), {"anything": np.zeros(3)}, 0)
        assert "gpt2" not in base
    with pytest.raises(WeightsError, match="the trunk does not fit the network at gpt2/h/0/attn"):
        init_base(NETWORKS["impute"], {}, 0)


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_one_attention_layer_is_softmax_residual_and_norm():
    layer, draw = AttentionTrunk(replace(CONFIG, n_head=3)), np.random.default_rng(8)
    x = draw.normal(size=(2, 5, 12)).astype(np.float32)
    params = jax.tree.map(
        lambda leaf: draw.normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(layer.init, jax.random.key(0), x)["params"],
    )
    found = jax.jit(layer.apply)({"params": params}, x)
    wanted = np.empty(x.shape)
    for window, tokens in enumerate(x.astype(np.float64)):
        query, key, value = (dense(params[name], tokens) for name in ("query", "key", "value"))
        heads = []
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            heads.append(softmax(query[:, part] @ key[:, part].T / math.sqrt(4)) @ value[:, part])
        wanted[window] = layer_norm(
            params["norm"], tokens + dense(params["out"], np.concatenate(heads, axis=1))
        )
    assert_close(found, wanted)


def test_one_attention_layer_sees_all_tokens():
    """It is no language model: the first output depends on the last input."""
    layer, x = AttentionTrunk(CONFIG), np.random.default_rng(9).normal(size=(1, 4, 12)).astype(np.float32)
    params = jax.jit(layer.init)(jax.random.key(1), x)
    reach = np.abs(jax.jit(jax.jacobian(lambda e: layer.apply(params, e)[0, :, 0]))(x))[:, 0].max(axis=-1)
    assert (reach > 0).all()


def test_one_attention_layer_takes_the_trunk_s_place():
    name = "short_term"
    network = replace(NETWORKS[name], trunk=TRUNKS["attention"])
    params, x = moved(network), windows(name)
    layer = jax.jit(AttentionTrunk(CONFIG).apply)
    through = lambda e: np.asarray(layer({"params": params["attention"]}, e.astype(np.float32)), np.float64)  # noqa: E731
    assert_close(apply(network, params, x), WRITTEN_OUT[name](params, x, np.ones(x.shape, bool), through))


@pytest.mark.parametrize("name", ["attention", "none"])
def test_a_replaced_trunk_gives_its_last_tokens_alone(name):
    layer, x = TRUNKS[name], np.random.default_rng(10).normal(size=(2, 5, 12)).astype(np.float32)
    params = jax.jit(layer.init)(jax.random.key(1), x)
    every, last = (
        np.asarray(jax.jit(partial(layer.apply, last_tokens=n))(params, x), np.float64) for n in (None, 2)
    )
    assert last.shape == (2, 2, 12)
    assert_close(last, every[:, 3:])


WRONG = {
    "channels": (
        replace(NETWORKS["reconstruct"], channels=13),
        r"task\.channels: 13 values per step exceed the trunk's width 12\. Choose",
    ),
    "segment": (
        replace(NETWORKS["reconstruct"], segment=5),
        r"network\.segment: 12 steps are not a multiple of the segment of 5\. Choose",
    ),
    "read_width": (
        replace(NETWORKS["reconstruct"], read_width=13),
        r"network\.read_width: 13 hidden dimensions cannot be read from .* width 12",
    ),
    "short read_width": (
        replace(NETWORKS["short_term"], read_width=13),
        r"network\.read_width: 13 hidden dimensions",
    ),
    "embed_width": (
        replace(NETWORKS["short_term"], embed_width=14),
        r"network\.embed_width: 14 values per step exceed .* width 12",
    ),
    "odd embed_width": (
        replace(NETWORKS["short_term"], embed_width=7),
        r"network: sinusoidal positions need an even width, not 7\. Choose",
    ),
    "odd trunk": (
        replace(NETWORKS["classify"], trunk=GPT2Trunk(replace(CONFIG, n_embd=9, n_head=3))),
        "need an even width, not 9",
    ),
    "odd trunk, impute": (
        replace(NETWORKS["impute"], trunk=GPT2Trunk(replace(CONFIG, n_embd=9, n_head=3))),
        "need an even width, not 9",
    ),
    "positions": (
        replace(NETWORKS["short_term"], trunk=GPT2Trunk(replace(CONFIG, n_positions=8))),
        "network: 9 tokens, but the trunk has 8 positions",
    ),
    "stride": (replace(NETWORKS["classify"], stride=5), r"network\.stride: stride 5 is larger than patch 4"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_size_is_one_error(what):
    network, said = WRONG[what]
    with pytest.raises(ConfigError, match=said):
        base_shapes(network)


SETTINGS = {
    "data": {"source": "none.npz"},
    "task": {"name": "anomaly", "input_length": 12, "channels": 3},
    "trunk": {"source": "random", "n_layer": 1, "random": {"n_embd": 8, "n_head": 2, "n_positions": 16}},
    "network": {"segment": 4},
}


@pytest.mark.parametrize("call", [build_model, footprint])
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.channels=9", r"task\.channels: 9 values per step"),
        ("network.read_width=9", r"network\.read_width: 9 hidden"),
        ("task.channels=null", r"task\.channels: the data's channels are not known without reading them\."),
        ("trunk.random.n_positions=11", "12 tokens, but the trunk has 11 positions"),
        ("trunk.source=none", r"rules: \[adapt, 'gpt2/wpe/embedding'\] decides no parameter"),
        ("trunk.source=attention", r"rules: \[adapt, 'gpt2/wpe/embedding'\] decides no parameter"),
    ],
)
def test_a_wrong_setting_is_one_error(call, override, said):
    with pytest.raises(ConfigError, match=said):
        call(build_experiment(SETTINGS, [override]))


def test_without_a_trunk_its_rules_are_left_out():
    experiment = build_experiment(
        SETTINGS, ["trunk.source=none", "rules=[[adapt, out_layer/kernel], [freeze, '.*']]"]
    )
    model = build_model(experiment)
    assert set(flatten(model.frozen)) == {"out_layer/kernel", "out_layer/bias"}
    assert footprint(experiment).trainable == 16 * (8 + 3)
    with pytest.raises(TrainError, match="the rules freeze every parameter"):
        build_model(experiment.model_copy(update={"rules": (("freeze", ".*"),)}))
    everything = build_model(build_experiment(SETTINGS, ["trunk.source=attention", "recipe=full"]))
    assert not flatten(everything.frozen)
    assert (
        sum(leaf.size for leaf in flatten(everything.trainable["base"]).values())
        == 4 * (8 * 8 + 8) + 16 + 8 * 3 + 3
    )


# Against PyTorch: the two networks that no golden covers, around transformers' own GPT-2.


def torch_case(name: str) -> dict[str, Any]:
    """A network, its parameters and adapters on both sides; no leaf at its initial value, no factor zero."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=30)
    network = {
        "short_term": ShortTermNetwork(GPT2Trunk(config), 12, horizon=6, embed_width=16, read_width=10),
        "impute": ImputeNetwork(GPT2Trunk(config), 16, channels=5, calendar=4),
    }[name]
    params = moved(network, seed=4)
    out = params["out_layer"]["kernel"].shape
    targets = {"gpt2/wpe": AdapterTarget("embedding", (30, 24)), "out_layer": AdapterTarget("dense", out)}
    draw = np.random.default_rng(6)
    adapters = jax.tree.map(
        lambda leaf: leaf + 0.1 * draw.normal(size=leaf.shape).astype("f4"), init_adapters(targets, LORA)
    )
    shapes = {
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 3,
        "n_positions": 30,
        "vocab_size": 7,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    trunk = transformers.GPT2Model(transformers.GPT2Config(**shapes, attn_implementation="eager")).eval()
    state = {"wte.weight": trunk.wte.weight.detach()}
    for path, leaf in flatten(params["gpt2"]).items():
        stem, _, kind = path.rpartition("/")
        state[f"{stem.replace('/', '.')}.{'bias' if kind == 'bias' else 'weight'}"] = torch.from_numpy(leaf)
    trunk.load_state_dict(state)
    tensors = {
        path: torch.from_numpy(leaf) for path, leaf in flatten(params).items() if not path.startswith("gpt2/")
    }
    factors = {
        path: {key: torch.from_numpy(np.array(f)).requires_grad_() for key, f in pair.items()}
        for path, pair in adapters.items()
    }
    return {"torch": torch, "network": network, "params": params, "adapters": adapters} | {
        "trunk": trunk,
        "tensors": tensors,
        "factors": factors,
    }


def torch_linear(case: dict[str, Any], name: str, x: Any) -> Any:
    kernel, bias = case["tensors"][f"{name}/kernel"], case["tensors"].get(f"{name}/bias")
    out = case["torch"].nn.functional.linear(x, kernel.T, bias)
    pair = case["factors"].get(name)
    return out if pair is None else out + LORA.scale * (x @ pair["a"]) @ pair["b"]


def torch_tokens(case: dict[str, Any], tokens: Any) -> Any:
    """``[m, n, q]`` through a circular ``Conv1d``, plus fixed positions."""
    torch, kernel = case["torch"], case["tensors"]["token_conv/kernel"]
    convolution = torch.nn.Conv1d(
        kernel.shape[1], kernel.shape[2], 3, padding=1, padding_mode="circular", bias=False
    )
    convolution.weight = torch.nn.Parameter(kernel.permute(2, 1, 0), requires_grad=False)
    return convolution(tokens.mT).mT + torch.from_numpy(
        waves(tokens.shape[1], kernel.shape[2]).astype(np.float32)
    )


def torch_trunk(case: dict[str, Any], embeds: Any) -> Any:
    pair = case["factors"]["gpt2/wpe"]
    positions = (
        LORA.scale * pair["a"][: embeds.shape[1]] @ pair["b"]
    )  # on top of wpe, which the trunk adds itself
    return case["trunk"](inputs_embeds=embeds + positions, use_cache=False).last_hidden_state


def torch_short_term(case: dict[str, Any], x_bt: Any) -> Any:
    torch, network = case["torch"], case["network"]
    mean, std = x_bt.mean(1, keepdim=True), (x_bt.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    embeds = torch_tokens(case, ((x_bt - mean) / std)[..., None])
    longer = torch_linear(case, "time_layer", embeds.mT).mT
    wide = torch.nn.functional.pad(longer, (0, network.trunk.config.n_embd - longer.shape[-1]))
    values = torch_linear(case, "out_layer", torch_trunk(case, wide)[..., : network.read_width])[..., 0]
    return values[:, -network.horizon :] * std + mean


def torch_impute(case: dict[str, Any], x_btc: Any, mask_btc: Any) -> Any:
    torch, c = case["torch"], case["network"].channels
    values, seen = x_btc[..., :c], mask_btc[..., :c].float()
    count = seen.sum(1, keepdim=True)
    mean = (values * seen).sum(1, keepdim=True) / count
    std = ((((values - mean) * seen) ** 2).sum(1, keepdim=True) / count + 1e-5).sqrt()
    embeds = torch_tokens(case, (values - mean) * seen / std) + torch_linear(
        case, "calendar_layer", x_btc[..., c:]
    )
    hidden = torch_trunk(case, embeds)
    scale, bias = case["tensors"]["ln_proj/scale"], case["tensors"]["ln_proj/bias"]
    return (
        torch_linear(case, "out_layer", torch.nn.functional.layer_norm(hidden, scale.shape, scale, bias))
        * std
        + mean
    )


@pytest.mark.parity
@pytest.mark.parametrize("name", ["short_term", "impute"])
def test_outputs_and_gradients_are_those_of_pytorch(name):
    case, draw = torch_case(name), np.random.default_rng(7)
    torch, network = case["torch"], case["network"]
    length, channels = network.example_shape[1:]
    x = (
        draw.normal(size=(4, length, channels)).cumsum(axis=1) + 10 * draw.normal(size=(4, 1, channels))
    ).astype(np.float32)
    mask = draw.random(x.shape) < 0.75 if name == "impute" else None
    if name == "short_term":
        theirs = torch_short_term(case, torch.from_numpy(x[..., 0]))[..., None]
    else:
        theirs = torch_impute(case, torch.from_numpy(x), torch.from_numpy(mask))
    target = draw.normal(size=theirs.shape).astype(np.float32)
    ((theirs - torch.from_numpy(target)) ** 2).mean().backward()

    def predict(adapters):
        def call(params, x, mask, *, dropout_keys=None):
            return network.apply({"params": params}, x, mask, dropout_keys=dropout_keys)

        return with_adapters(call, LORA)(case["params"], adapters, x, mask)

    gradients, ours = jax.jit(
        jax.grad(lambda a: (jnp.square(predict(a) - target).mean(), predict(a)), has_aux=True)
    )(case["adapters"])
    # float32 on both sides, sums in another order: as the goldens of the other networks
    assert_close(ours, theirs.detach().numpy(), 1e-5)
    for path, pair in case["factors"].items():
        for factor, tensor in pair.items():
            assert np.abs(tensor.grad.numpy()).max() > 0
            assert_close(gradients[path][factor], tensor.grad.numpy(), 1e-4)
    merged = merge(case["params"], case["adapters"], LORA)
    assert_close(apply(network, merged, x, mask), theirs.detach().numpy(), 1e-5)

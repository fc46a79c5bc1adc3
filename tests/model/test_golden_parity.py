"""The authors' PyTorch classes, in numbers: outputs, gradients and three Adam steps, from Hugging Face and peft files as they are.

The forecast case is the package's own network. The anomaly and classification networks are written here around the package's
trunk and adapters, as protocol §2 describes them, with the package's module names.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ofa_jax.adapters.bundle import peft_tensors, read_peft
from ofa_jax.adapters.rslora import merge, with_adapters
from ofa_jax.model.gpt2 import GPT2Config, GPT2Trunk
from ofa_jax.model.network import ForecastNetwork, base_shapes
from ofa_jax.model.patching import denormalise, instance_stats, normalise, patchify
from ofa_jax.model.trees import flatten
from ofa_jax.model.weights import load_trunk
from ofa_jax.train.optim import adam

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["forecast_small", "anomaly_small", "classify_small"]

# float32 on both sides, sums in another order: of the tensor's largest value. Measured: at most 4e-6 and 1e-5.
OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


class AnomalyNetwork(nn.Module):
    """Every step is a token: channels, normalised per segment of ``segment`` steps and zero-padded to the trunk's width."""

    trunk: GPT2Config
    width: int
    segment: int = 25

    @nn.compact
    def __call__(self, x_btc, *, dropout_keys=None):
        b, t, c = x_btc.shape
        x_gsc = x_btc.reshape(-1, self.segment, c)
        stats = instance_stats(x_gsc)
        tokens_btc = normalise(x_gsc, stats).reshape(b, t, c)
        embeds_btd = jnp.pad(tokens_btc, ((0, 0), (0, 0), (0, self.trunk.n_embd - c)))
        hidden_btd = GPT2Trunk(self.trunk, name="gpt2")(embeds_btd, dropout_keys)
        out_btc = nn.Dense(c, name="out_layer")(hidden_btd[..., : self.width])
        return denormalise(out_btc.reshape(-1, self.segment, c), stats).reshape(b, t, c)


class ClassifyNetwork(nn.Module):
    """Multivariate patches ``b n (p c)``, circular token convolution and sinusoid, GELU (erf), LayerNorm, Dense to classes."""

    trunk: GPT2Config
    patch: int
    stride: int
    classes: int

    @nn.compact
    def __call__(self, x_btc, *, dropout_keys=None):
        b, t, c = x_btc.shape
        patches = patchify(x_btc.transpose(0, 2, 1).reshape(b * c, t), self.patch, self.stride)
        n = patches.shape[1]
        tokens_bnq = patches.reshape(b, c, n, self.patch).transpose(0, 2, 3, 1).reshape(b, n, self.patch * c)
        convolution = nn.Conv(self.trunk.n_embd, (3,), padding="CIRCULAR", use_bias=False, name="token_conv")
        embeds_bnd = convolution(tokens_bnq) + sinusoid(n, self.trunk.n_embd)
        hidden_bnd = GPT2Trunk(self.trunk, name="gpt2")(embeds_bnd, dropout_keys)
        flat = jax.nn.gelu(hidden_bnd, approximate=False).reshape(b, -1)
        normed = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="ln_proj")(flat)
        return nn.Dense(self.classes, name="out_layer")(normed)


def sinusoid(tokens: int, width: int) -> np.ndarray:
    """Sine in even, cosine in odd columns, wavelengths from 2π to 10000 · 2π; computed in float32 like the reference."""
    angles = np.arange(tokens, dtype=np.float32)[:, None] * np.exp(np.arange(0, width, 2, dtype=np.float32) * -(np.log(1e4) / width))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(tokens, width).astype(np.float32)


def squared_error(out, y):
    return jnp.mean(jnp.square(out - y))


def cross_entropy(out, y):
    return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()


@dataclass
class Case:
    folder: Path
    numbers: dict[str, Any]
    golden: dict[str, np.ndarray]
    network: nn.Module
    base: dict[str, Any]
    loss: Callable[..., jax.Array]

    def predict(self, adapters):
        def apply(params, x, *, dropout_keys=None):
            return self.network.apply({"params": params}, x, dropout_keys=dropout_keys)

        _, _, numbers = read_peft(self.folder / "adapter_init")
        return with_adapters(apply, numbers.scale)(self.base, adapters, self.golden["x"])


@cache
def load_case(name: str) -> Case:
    folder = GOLDEN / name
    numbers = json.loads((folder / "case.json").read_text())
    with np.load(folder / "golden.npz") as archive:
        golden = {key: archive[key] for key in archive.files}
    trunk = load_trunk(folder / "gpt2", n_layer=numbers["keep"])
    base = {"gpt2": trunk.params, "out_layer": torch_linear(golden, "out_layer")}
    if numbers["kind"] == "forecast":
        network = ForecastNetwork(trunk.config, numbers["L"], numbers["H"], patch=numbers["p"], stride=numbers["s"])
        return Case(folder, numbers, golden, network, base | {"in_layer": torch_linear(golden, "in_layer")}, squared_error)
    if numbers["kind"] == "anomaly":
        return Case(folder, numbers, golden, AnomalyNetwork(trunk.config, numbers["dff"]), base, squared_error)
    network = ClassifyNetwork(trunk.config, numbers["p"], numbers["s"], numbers["K"])
    base["token_conv"] = {"kernel": golden["base/enc_embedding.value_embedding.tokenConv.weight"].transpose(2, 1, 0)}
    base["ln_proj"] = {"scale": golden["base/ln_proj.weight"], "bias": golden["base/ln_proj.bias"]}
    return Case(folder, numbers, golden, network, base, cross_entropy)


def torch_linear(golden, name):
    return {"kernel": golden[f"base/{name}.weight"].T, "bias": golden[f"base/{name}.bias"]}


def assert_close(found, wanted, tolerance, name):
    """Within ``tolerance`` of the largest reference value; a reference of zeros allows nothing but zeros."""
    assert np.shape(found) == np.shape(wanted), name
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max(), err_msg=name)


@pytest.fixture(params=CASES)
def case(request):
    return load_case(request.param)


def test_the_base_is_complete(case):
    shapes = jax.eval_shape(case.network.init, jax.random.key(0), case.golden["x"])["params"]
    assert {p: leaf.shape for p, leaf in flatten(shapes).items()} == {p: leaf.shape for p, leaf in flatten(case.base).items()}
    if isinstance(case.network, ForecastNetwork):
        assert base_shapes(case.network) == {p: leaf.shape for p, leaf in flatten(case.base).items()}


def test_adapters_are_those_of_the_method(case):
    adapters, sites, numbers = read_peft(case.folder / "adapter_init")
    assert {path: site.kind for path, site in sites.items()} == {"gpt2/wpe": "embedding", "out_layer": "dense"}
    assert sum(leaf.size for leaf in flatten(adapters).values()) == case.numbers["trainable"] == case.golden["trainable"]
    assert (numbers.rank, numbers.alpha, numbers.scaling, numbers.dropout) == (4, 16, "rslora", 0.01)
    assert numbers.scale == 8
    assert not adapters["gpt2/wpe"]["a"].any()
    assert not adapters["out_layer"]["b"].any()


def test_three_adam_steps(case):
    """Four evaluations: before each step, and after the third."""
    adapters, sites, numbers = read_peft(case.folder / "adapter_init")
    golden, optimizer = case.golden, adam(optax.constant_schedule(1e-3))
    opt_state = optimizer.init(adapters)

    def objective(adapters):
        out = case.predict(adapters)
        return case.loss(out, golden["y"]), out

    @jax.jit
    def step(adapters, opt_state):
        (value, out), gradients = jax.value_and_grad(objective, has_aux=True)(adapters)
        updates, opt_state = optimizer.update(gradients, opt_state, adapters)
        return optax.apply_updates(adapters, updates), opt_state, value, out, gradients

    for index in range(3):
        following, opt_state, value, out, gradients = step(adapters, opt_state)
        assert_close(value, golden["losses"][index], OUTPUT_TOLERANCE, f"loss of step {index}")
        if index == 0:
            assert_close(out, golden["out_init"], OUTPUT_TOLERANCE, "out_init")
            assert_close(value, golden["loss_init"], OUTPUT_TOLERANCE, "loss_init")
        found = {name.removeprefix("base_model.model."): leaf for name, leaf in peft_tensors(gradients, sites).items()}
        wanted = {name.removeprefix(f"grad{index}/"): leaf for name, leaf in golden.items() if name.startswith(f"grad{index}/")}
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert_close(found[name], wanted[name], GRADIENT_TOLERANCE, f"gradient {index} of {name}")
        zero = {name for name in wanted if not wanted[name].any()}
        assert zero == ({"gpt2.wpe.lora_embedding_B", "out_layer.lora_A.weight"} if index == 0 else set())
        adapters = following

    _, _, value, out, _ = step(adapters, opt_state)
    assert_close(out, golden["out_step3"], OUTPUT_TOLERANCE, "out_step3")
    assert_close(value, golden["loss_step3"], OUTPUT_TOLERANCE, "loss_step3")

    stepped, _, stepped_numbers = read_peft(case.folder / "adapter_step3")
    assert stepped_numbers == numbers
    wanted = flatten(stepped)
    found = flatten(adapters)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert_close(found[name], wanted[name], GRADIENT_TOLERANCE, name)


def test_adapters_that_peft_stepped_and_their_merged_weights_give_its_output(case):
    adapters, _, numbers = read_peft(case.folder / "adapter_step3")
    assert_close(jax.jit(case.predict)(adapters), case.golden["out_step3"], OUTPUT_TOLERANCE, "out_step3")
    merged = merge(case.base, adapters, numbers.scale)
    out = jax.jit(case.network.apply)({"params": merged}, case.golden["x"])
    assert_close(out, case.golden["out_step3"], OUTPUT_TOLERANCE, "merged")

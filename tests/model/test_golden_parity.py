"""The published PyTorch classes in numbers: outputs, gradients, three Adam steps, read from their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ofa_jax.adapters.peft import peft_tensors, read_peft
from ofa_jax.adapters.rslora import merge, with_adapters
from ofa_jax.model.gpt2 import GPT2Trunk
from ofa_jax.model.networks import (
    ClassifyNetwork,
    ForecastNetwork,
    Network,
    NoTrunk,
    ReconstructNetwork,
    base_shapes,
)
from ofa_jax.model.trees import flatten
from ofa_jax.model.weights import load_trunk
from ofa_jax.train.optim import make_optimizer

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["forecast_small", "anomaly_small", "classify_small"]

# float32 on both sides, sums in another order: of the tensor's largest value; measured: at most 4e-6 and 1e-5
OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


def squared_error(out, y):
    return jnp.mean(jnp.square(out - y))


def cross_entropy(out, y):
    return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()


@dataclass
class Case:
    folder: Path
    numbers: dict[str, Any]
    golden: dict[str, np.ndarray]
    network: Network
    base: dict[str, Any]
    loss: Callable[..., jax.Array]

    def predict(self, adapters):
        def apply(params, x, *, dropout_keys=None):
            return self.network.apply({"params": params}, x, dropout_keys=dropout_keys)

        _, _, numbers = read_peft(self.folder / "adapter_init")
        return with_adapters(apply, numbers)(self.base, adapters, self.golden["x"])


@cache
def load_case(name: str) -> Case:
    folder = GOLDEN / name
    numbers = json.loads((folder / "case.json").read_text())
    with np.load(folder / "golden.npz") as archive:
        golden = {key: archive[key] for key in archive.files}
    loaded = load_trunk(folder / "gpt2", n_layer=numbers["keep"])
    trunk, length = GPT2Trunk(loaded.config), numbers["L"]
    base = {"gpt2": loaded.params, "out_layer": torch_linear(golden, "out_layer")}
    if numbers["kind"] == "forecast":
        base["in_layer"] = torch_linear(golden, "in_layer")
        forecaster = ForecastNetwork(trunk, length, numbers["H"], patch=numbers["p"], stride=numbers["s"])
        return Case(folder, numbers, golden, forecaster, base, squared_error)
    if numbers["kind"] == "anomaly":
        detector = ReconstructNetwork(trunk, length, numbers["C"], read_width=numbers["dff"])
        return Case(folder, numbers, golden, detector, base, squared_error)
    sizes = {"channels": numbers["C"], "classes": numbers["K"], "patch": numbers["p"], "stride": numbers["s"]}
    network = ClassifyNetwork(trunk, length, **sizes)
    base["token_conv"] = {
        "kernel": golden["base/enc_embedding.value_embedding.tokenConv.weight"].transpose(2, 1, 0)
    }
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
    assert base_shapes(case.network) == {path: leaf.shape for path, leaf in flatten(case.base).items()}


def test_adapters_are_those_of_the_method(case):
    adapters, sites, numbers = read_peft(case.folder / "adapter_init")
    assert {path: site.kind for path, site in sites.items()} == {
        "gpt2/wpe": "embedding",
        "out_layer": "dense",
    }
    assert (
        sum(leaf.size for leaf in flatten(adapters).values())
        == case.numbers["trainable"]
        == case.golden["trainable"]
    )
    assert (numbers.rank, numbers.alpha, numbers.scaling, numbers.dropout) == (4, 16, "rslora", 0.01)
    assert numbers.scale == 8
    assert not adapters["gpt2/wpe"]["a"].any()
    assert not adapters["out_layer"]["b"].any()


@pytest.mark.slow
def test_three_adam_steps(case):
    """Four evaluations: before each step, and after the third."""
    adapters, sites, numbers = read_peft(case.folder / "adapter_init")
    golden, optimizer = case.golden, make_optimizer("adam", optax.constant_schedule(1e-3))
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
        found = {
            name.removeprefix("base_model.model."): leaf
            for name, leaf in peft_tensors(gradients, sites).items()
        }
        wanted = {
            name.removeprefix(f"grad{index}/"): leaf
            for name, leaf in golden.items()
            if name.startswith(f"grad{index}/")
        }
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


@pytest.mark.slow
def test_adapters_that_peft_stepped_and_their_merged_weights_give_its_output(case):
    adapters, _, numbers = read_peft(case.folder / "adapter_step3")
    assert_close(jax.jit(case.predict)(adapters), case.golden["out_step3"], OUTPUT_TOLERANCE, "out_step3")
    merged = merge(case.base, adapters, numbers)
    out = jax.jit(case.network.apply)({"params": merged}, case.golden["x"])
    assert_close(out, case.golden["out_step3"], OUTPUT_TOLERANCE, "merged")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("anomaly_small", lambda config: {"segment": 50}),
        ("anomaly_small", lambda config: {"segment": 10}),
        ("anomaly_small", lambda config: {"trunk": GPT2Trunk(config, positions=False)}),
        ("anomaly_small", lambda config: {"trunk": NoTrunk(config)}),
        ("classify_small", lambda config: {"trunk": GPT2Trunk(config, positions=False)}),
        ("classify_small", lambda config: {"trunk": NoTrunk(config)}),
    ],
)
def test_another_network_misses_the_numbers(name, change):
    """The same parameters in another network miss by far more than the tolerance."""
    case = load_case(name)
    other = replace(case.network, **change(case.network.trunk.config))
    out = jax.jit(other.apply)({"params": case.base}, case.golden["x"])
    wanted = case.golden["out_init"]
    assert np.abs(out - wanted).max() > 1000 * OUTPUT_TOLERANCE * np.abs(wanted).max()


def test_the_head_reads_the_first_hidden_dimensions():
    """In the anomaly case ``d_ff`` is smaller than the width, and ``out_layer`` fits no other number."""
    case = load_case("anomaly_small")
    assert (case.numbers["dff"], case.network.trunk.config.n_embd, case.network.segment) == (32, 48, 25)
    assert base_shapes(replace(case.network, read_width=None))["out_layer/kernel"] == (48, 5)

    kernel = np.zeros((48, 5), np.float32)
    kernel[:32] = case.base["out_layer"]["kernel"]
    padded = case.base | {"out_layer": {"kernel": kernel, "bias": case.base["out_layer"]["bias"]}}
    out = jax.jit(replace(case.network, read_width=None).apply)({"params": padded}, case.golden["x"])
    assert_close(out, case.golden["out_init"], OUTPUT_TOLERANCE, "reading the rest with zeros")


def test_one_window_alone_or_in_a_batch_is_the_same():
    """Segments of different windows are normalized separately."""
    case = load_case("anomaly_small")
    alone = jax.jit(case.network.apply)({"params": case.base}, case.golden["x"][1:])
    assert_close(alone, case.golden["out_init"][1:], OUTPUT_TOLERANCE, "second window")

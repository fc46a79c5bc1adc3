"""Adapters against peft: each reads what the other saved, with the same outputs and gradients."""

from __future__ import annotations

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.adapters.partition import AdapterTarget
from ofa_jax.adapters.peft import read_peft, write_peft
from ofa_jax.adapters.rslora import LoraConfig, init_adapters, merge, with_adapters
from ofa_jax.errors import WeightsError
from ofa_jax.model.trees import flatten

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

POSITIONS, WIDTH, OUT, RANK = 11, 6, 5, 4
TARGETS = {
    "gpt2/wpe": AdapterTarget("embedding", (POSITIONS, WIDTH)),
    "out_layer": AdapterTarget("dense", (WIDTH, OUT)),
}
TOLERANCE = 1e-6  # of the largest value: two sums of float32 over at most eleven terms


class TorchNetwork(torch.nn.Module):
    """The two adapted layers of the method with a GELU in between, so that neither is linear in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.gpt2 = torch.nn.Module()
        self.gpt2.wpe = torch.nn.Embedding(POSITIONS, WIDTH)
        self.out_layer = torch.nn.Linear(WIDTH, OUT)

    def forward(self, x):
        hidden = torch.nn.functional.gelu(x + self.gpt2.wpe(torch.arange(x.shape[1])))
        return self.out_layer(hidden)


class Positions(nn.Module):
    @nn.compact
    def __call__(self, n):
        return nn.Embed(POSITIONS, WIDTH, name="wpe")(jnp.arange(n))


class FlaxNetwork(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(OUT, name="out_layer")(
            jax.nn.gelu(x + Positions(name="gpt2")(x.shape[1]), approximate=False)
        )


def apply(params, x, *, dropout_keys=None):
    return FlaxNetwork().apply({"params": params}, x)


def torch_network() -> TorchNetwork:
    torch.manual_seed(0)
    return TorchNetwork().eval()


def flax_params(network: TorchNetwork) -> dict:
    return {
        "gpt2": {"wpe": {"embedding": network.gpt2.wpe.weight.detach().numpy()}},
        "out_layer": {
            "kernel": network.out_layer.weight.detach().numpy().T,
            "bias": network.out_layer.bias.detach().numpy(),
        },
    }


def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 7, WIDTH)).astype(np.float32)


def output(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(inputs())).numpy()


def assert_close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def wrap(rank=RANK, alpha=16, rslora=True, init="gaussian", **config):
    """peft's own model of the torch network."""
    options = {"target_modules": ["wpe", "out_layer"], "lora_dropout": 0.01, "bias": "none"} | config
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rslora, init_lora_weights=init, **options)
    return peft.get_peft_model(torch_network(), config).eval()


def move(model) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += torch.randn_like(parameter)


@pytest.mark.parametrize(("rslora", "scale"), [(True, 8.0), (False, 4.0)])
@pytest.mark.parametrize("moved", [False, True])
def test_what_peft_saves_is_read_and_gives_its_output(tmp_path, rslora, scale, moved):
    model = wrap(rslora=rslora)
    if moved:
        move(model)
    model.save_pretrained(tmp_path)
    adapters, targets, lora = read_peft(tmp_path)
    assert targets == TARGETS
    assert lora == LoraConfig(RANK, 16, "rslora" if rslora else "lora", 0.01)
    assert lora.scale == scale == model.base_model.model.out_layer.scaling["default"]
    params = flax_params(torch_network())
    assert_close(with_adapters(apply, lora)(params, adapters, inputs()), output(model))
    assert_close(apply(merge(params, adapters, lora), inputs()), output(model))
    assert (np.abs(output(model) - output(torch_network())).max() > 0.1) == moved


def test_merged_weights_are_peft_s_merged_weights(tmp_path):
    model = wrap()
    move(model)
    model.save_pretrained(tmp_path)
    adapters, _, lora = read_peft(tmp_path)
    ours = flatten(merge(flax_params(torch_network()), adapters, lora))
    theirs = flatten(flax_params(model.merge_and_unload()))
    for path, leaf in theirs.items():
        assert_close(ours[path], leaf)


@pytest.mark.parametrize(
    "lora",
    [
        LoraConfig(RANK, 16, "rslora", 0.01),
        LoraConfig(RANK, 16, "lora"),
        LoraConfig(RANK, 0.7, "none"),
        LoraConfig(9, 3, "rslora"),  # above the layers' smaller sides
        LoraConfig(1, 16, "rslora"),
    ],
    ids=str,
)
def test_peft_loads_what_is_written_and_gives_the_same_output(tmp_path, lora):
    rng = np.random.default_rng(2)
    shift = lambda leaf: (leaf + rng.normal(size=leaf.shape)).astype(np.float32)  # noqa: E731
    adapters = jax.tree.map(shift, init_adapters(TARGETS, lora))
    write_peft(tmp_path, adapters, TARGETS, lora)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft warns of missing and of unexpected keys
        model = peft.PeftModel.from_pretrained(torch_network(), tmp_path).eval()
    wanted = with_adapters(apply, lora)(flax_params(torch_network()), adapters, inputs())
    assert_close(output(model), wanted)
    assert np.abs(output(model) - output(torch_network())).max() > 0.1


def test_both_ways_round_trips_every_bit(tmp_path):
    model = wrap()
    move(model)
    model.save_pretrained(tmp_path / "theirs")
    adapters, targets, lora = read_peft(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    write_peft(tmp_path / "ours", adapters, targets, lora)
    again = peft.PeftModel.from_pretrained(torch_network(), tmp_path / "ours")
    theirs = peft.get_peft_model_state_dict(model)
    for name, tensor in peft.get_peft_model_state_dict(again).items():
        assert torch.equal(tensor, theirs.pop(name)), name
    assert not theirs


def test_gradients_are_peft_s(tmp_path):
    model = wrap()
    move(model)
    model.save_pretrained(tmp_path)
    adapters, _, lora = read_peft(tmp_path)
    model(torch.from_numpy(inputs())).square().sum().backward()
    params = flax_params(torch_network())
    ours = jax.grad(lambda tree: jnp.square(with_adapters(apply, lora)(params, tree, inputs())).sum())(
        adapters
    )
    layers = model.base_model.model
    theirs = {
        "gpt2/wpe/a": layers.gpt2.wpe.lora_embedding_A["default"].grad,
        "gpt2/wpe/b": layers.gpt2.wpe.lora_embedding_B["default"].grad,
        "out_layer/a": layers.out_layer.lora_A["default"].weight.grad,
        "out_layer/b": layers.out_layer.lora_B["default"].weight.grad,
    }
    for path, gradient in theirs.items():
        np.testing.assert_allclose(
            flatten(ours)[path],
            gradient.numpy().T,
            rtol=0,
            atol=1e-5 * gradient.abs().max().item(),
            err_msg=path,
        )


@pytest.mark.parametrize(("init", "theirs"), [("peft_gaussian", "gaussian"), ("kaiming", True)])
def test_adapters_begin_as_peft_s_do(init, theirs):
    """The same tensors are zero; the others have the same distribution within four standard errors."""
    rank, rows, columns = 16, 3000, 400
    targets = {
        "gpt2/wpe": AdapterTarget("embedding", (rows, columns)),
        "out_layer": AdapterTarget("dense", (rows, columns)),
    }
    torch.manual_seed(3)
    network = torch_network()
    network.gpt2.wpe, network.out_layer = torch.nn.Embedding(rows, columns), torch.nn.Linear(rows, columns)
    config = peft.LoraConfig(
        r=rank, lora_alpha=16, init_lora_weights=theirs, target_modules=["wpe", "out_layer"]
    )
    layers = peft.get_peft_model(network, config).base_model.model
    begun = {
        "gpt2/wpe/a": layers.gpt2.wpe.lora_embedding_A["default"],
        "gpt2/wpe/b": layers.gpt2.wpe.lora_embedding_B["default"],
        "out_layer/a": layers.out_layer.lora_A["default"].weight,
        "out_layer/b": layers.out_layer.lora_B["default"].weight,
    }
    ours = flatten(init_adapters(targets, LoraConfig(rank, 16, init=init), seed=1))
    for path, tensor in begun.items():
        wanted = tensor.detach().numpy().T
        found = ours[path]
        assert found.shape == wanted.shape
        if not wanted.any():
            assert not found.any(), path
            continue
        ratio = found.std() / wanted.std()
        assert abs(ratio - 1) < 4 / np.sqrt(found.size), path
        for share in (0.01, 0.25, 0.75, 0.99):
            np.testing.assert_allclose(
                np.quantile(found, share), np.quantile(wanted, share), rtol=0.1, err_msg=path
            )
    expected = 1 / rank if init == "peft_gaussian" else 1 / np.sqrt(3 * rows)
    assert begun["out_layer/a"].std().item() == pytest.approx(expected, rel=0.02)
    assert begun["gpt2/wpe/b"].std().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"rank_pattern": {"out_layer": 2}}, "rank_pattern="),
        ({"alpha_pattern": {"out_layer": 2}}, "alpha_pattern="),
        ({"modules_to_save": ["out_layer"], "target_modules": ["wpe"]}, "modules_to_save="),
        ({"bias": "lora_only"}, "bias: input should be 'none' (found 'lora_only')"),
        ({"lora_bias": True, "init": True, "target_modules": ["out_layer"]}, "lora_bias=True"),
        (
            {"init": "pissa", "target_modules": ["out_layer"]},
            "init_lora_weights: input should be True, False or 'gaussian' (found 'pissa')",
        ),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:Adapter 'default'"
)  # peft takes its own bias of one dimension for a broken shard
def test_features_of_peft_that_are_not_read_are_refused_by_name(tmp_path, config, named):
    wrap(**config).save_pretrained(tmp_path)
    with pytest.raises(WeightsError) as caught:
        read_peft(tmp_path)
    assert named in str(caught.value)


def test_dropout_is_on_the_dense_adapter_s_input_as_in_peft():
    """With every weight zero but the adapter's, both outputs count the kept inputs: same mean, same
    spread."""
    samples, width, rate = 4000, 50, 0.2
    layer = torch.nn.Sequential()
    layer.add_module("out_layer", torch.nn.Linear(width, 1, bias=False))
    torch.manual_seed(4)
    config = peft.LoraConfig(r=1, lora_alpha=1, lora_dropout=rate, target_modules=["out_layer"])
    model = peft.get_peft_model(layer, config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0)
        model.base_model.model.out_layer.lora_A["default"].weight.fill_(1)
        model.base_model.model.out_layer.lora_B["default"].weight.fill_(1)
        theirs = model(torch.ones(samples, width))[:, 0].numpy()

    class OneLayer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1, use_bias=False, name="out_layer")(x)

    adapted = with_adapters(
        lambda params, x, *, dropout_keys: OneLayer().apply({"params": params}, x),
        LoraConfig(1, 1, dropout=rate),
    )
    adapters = {"out_layer": {"a": np.ones((width, 1), np.float32), "b": np.ones((1, 1), np.float32)}}
    params = {"out_layer": {"kernel": np.zeros((width, 1), np.float32)}}
    keys = jax.random.split(jax.random.key(0), samples)
    ours = np.asarray(adapted(params, adapters, np.ones((samples, width), np.float32), dropout_keys=keys))[
        :, 0
    ]
    spread = np.sqrt(width * rate / (1 - rate))
    assert abs(ours.mean() - theirs.mean()) < 5 * spread / np.sqrt(samples)
    assert ours.std() == pytest.approx(spread, rel=0.05)
    assert theirs.std() == pytest.approx(spread, rel=0.05)

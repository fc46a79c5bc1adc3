"""The trunk against PyTorch's GPT-2: every module's output, gradients, files, dropout in distribution."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.errors import WeightsError
from ofa_jax.model.convert import convert
from ofa_jax.model.gpt2 import GPT2Trunk
from ofa_jax.model.trees import flatten
from ofa_jax.model.weights import load_trunk, random_trunk, read_config

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 11,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
VARIANTS = {
    "plain": {},
    "inverse_layer_idx": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"scale_attn_weights": False},
    "unscaled_inverse": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    "reorder_and_upcast": {"reorder_and_upcast_attn": True},
    "reorder_inverse": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    "gelu": {"activation_function": "gelu"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
    "swish": {"activation_function": "swish"},
    "tanh": {"activation_function": "tanh"},
    "n_inner": {"n_inner": 70},
    "epsilon": {"layer_norm_epsilon": 1e-2},
    "positions_all_used": {"n_positions": 21},
    "one_head": {"n_head": 1},
    "odd_heads": {"n_head": 16},
}


def make_model(cls=None, **changes):
    """A torch GPT-2 with every parameter moved off its initial value, so that no part of it is idle."""
    config = transformers.GPT2Config(**(SMALL | changes), attn_implementation="eager")
    torch.manual_seed(5)
    model = (cls or transformers.GPT2Model)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return model


def embeddings(m: int = 2, n: int = 21, d: int = 48) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(m, n, d)).astype(np.float32)


def torch_outputs(model, embeds: np.ndarray) -> dict[str, np.ndarray]:
    """The output of every module by our path (``h/0/attn/c_attn``)."""
    found = {}

    def keep(name):
        def hook(module, inputs, output):
            found[name.replace(".", "/")] = (
                (output[0] if isinstance(output, tuple) else output).detach().numpy()
            )

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
    with torch.no_grad():
        model(inputs_embeds=torch.from_numpy(embeds), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def flax_outputs(trunk, embeds: np.ndarray) -> dict[str, np.ndarray]:
    _, state = GPT2Trunk(trunk.config).apply(
        {"params": trunk.params}, jnp.asarray(embeds), capture_intermediates=True
    )
    return {
        path.removesuffix("/__call__"): np.asarray(leaf[0])
        for path, leaf in flatten(state["intermediates"]).items()
    }


def assert_close(found, reference, bound: float, what: str = "") -> None:
    worst = np.abs(np.asarray(found) - reference).max()
    assert worst <= bound * np.abs(reference).max(), f"{what}: {worst} against {np.abs(reference).max()}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_module_gives_torch_s_output(tmp_path, variant):
    model = make_model(**VARIANTS[variant])
    model.save_pretrained(tmp_path)
    trunk = load_trunk(tmp_path)
    ours, theirs = flax_outputs(trunk, embeddings()), torch_outputs(model, embeddings())
    compared = sorted(ours.keys() & theirs.keys() - {"wpe"})
    expected = ["ln_1", "ln_2", "attn", "attn/c_attn", "attn/c_proj", "mlp", "mlp/c_fc", "mlp/c_proj"]
    assert compared == sorted(
        [*(f"h/{i}/{name}" for i in range(3) for name in expected), *(f"h/{i}" for i in range(3)), "ln_f"]
    )
    for path in compared:  # float32 on both sides, sums in another order: 4e-7 is usual, 1e-5 the promise
        assert_close(ours[path], theirs[path], 1e-5, path)
    np.testing.assert_array_equal(ours["wpe"], theirs["wpe"].reshape(ours["wpe"].shape))


def test_every_variant_moves_the_output():
    """Each setting moves the output far beyond the tolerance, so the comparison above can fail."""
    base = make_model()
    reference = torch_outputs(base, embeddings())["ln_f"]
    for variant, changes in VARIANTS.items():
        if variant in ("plain", "reorder_and_upcast", "gelu_pytorch_tanh", "positions_all_used", "n_inner"):
            continue
        model = transformers.GPT2Model(
            transformers.GPT2Config(**(SMALL | changes), attn_implementation="eager")
        ).eval()
        model.load_state_dict(base.state_dict())
        assert (
            np.abs(torch_outputs(model, embeddings())["ln_f"] - reference).max()
            > 1e-4 * np.abs(reference).max()
        ), variant


def test_hidden_states_as_transformers_reports_them(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        states = model(inputs_embeds=torch.from_numpy(embeddings()), output_hidden_states=True).hidden_states
    ours = flax_outputs(load_trunk(tmp_path), embeddings())
    assert len(states) == 4
    for state, path in zip(states[1:], ["h/0", "h/1", "ln_f"], strict=True):
        assert_close(ours[path], state.numpy(), 1e-5, path)


@pytest.mark.parametrize("n_layer", [1, 2])
def test_first_layers_are_the_authors_truncated_model(tmp_path, n_layer):
    model = make_model()
    model.save_pretrained(tmp_path)
    model.h = model.h[:n_layer]
    trunk = load_trunk(tmp_path, n_layer=n_layer)
    assert_close(flax_outputs(trunk, embeddings())["ln_f"], torch_outputs(model, embeddings())["ln_f"], 1e-5)


@pytest.mark.parametrize("variant", ["plain", "unscaled_inverse", "gelu", "relu"])
@pytest.mark.parametrize("remat", [False, True])
def test_gradient_with_respect_to_embeddings(tmp_path, variant, remat):
    model = make_model(**VARIANTS[variant])
    model.save_pretrained(tmp_path)
    trunk = load_trunk(tmp_path)
    weight = np.random.default_rng(2).normal(size=embeddings().shape).astype(np.float32)
    inputs = torch.from_numpy(embeddings()).requires_grad_()
    (model(inputs_embeds=inputs).last_hidden_state * torch.from_numpy(weight)).sum().backward()
    module = GPT2Trunk(trunk.config, remat=remat)
    gradient = jax.grad(lambda x: (module.apply({"params": trunk.params}, x) * weight).sum())(
        jnp.asarray(embeddings())
    )
    assert_close(gradient, inputs.grad.numpy(), 1e-4)


@pytest.mark.parametrize("variant", ["plain", "inverse_layer_idx"])
def test_gradient_with_respect_to_parameters(tmp_path, variant):
    model = make_model(**VARIANTS[variant])
    model.save_pretrained(tmp_path)
    trunk = load_trunk(tmp_path)
    weight = np.random.default_rng(2).normal(size=embeddings().shape).astype(np.float32)
    (
        model(inputs_embeds=torch.from_numpy(embeddings())).last_hidden_state * torch.from_numpy(weight)
    ).sum().backward()
    module = GPT2Trunk(trunk.config)
    gradients = jax.grad(lambda params: (module.apply({"params": params}, embeddings()) * weight).sum())(
        trunk.params
    )
    ends = {"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"}
    for path, gradient in flatten(gradients).items():
        *names, end = path.split("/")
        theirs = model.get_parameter(".".join([*names, ends[end]])).grad.numpy()
        assert_close(gradient, theirs, 1e-4, path)


def test_shards_that_transformers_writes(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "single")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    assert load_trunk(tmp_path / "shards").sha256 == load_trunk(tmp_path / "single").sha256


@pytest.mark.parametrize(
    "cls",
    [
        "GPT2LMHeadModel",
        "GPT2ForSequenceClassification",
        "GPT2ForTokenClassification",
        "GPT2DoubleHeadsModel",
    ],
)
def test_models_with_heads(tmp_path, cls):
    model = make_model(getattr(transformers, cls), pad_token_id=0)
    model.save_pretrained(tmp_path / "headed")
    model.transformer.save_pretrained(tmp_path / "bare")
    headed, bare = load_trunk(tmp_path / "headed"), load_trunk(tmp_path / "bare")
    assert headed.sha256 == bare.sha256
    assert "transformer.wte.weight" in headed.dropped


def test_torch_half_precision_files(tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        model = make_model().to(dtype)
        model.save_pretrained(tmp_path)
        found = load_trunk(tmp_path).params["h"]["1"]["mlp"]["c_proj"]["kernel"]
        np.testing.assert_array_equal(found, model.h[1].mlp.c_proj.weight.detach().float().numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_reads_a_converted_folder(tmp_path, dtype):
    make_model(scale_attn_by_inverse_layer_idx=True).save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "trunk", n_layer=2, dtype=dtype)
    model, notes = transformers.GPT2Model.from_pretrained(
        tmp_path / "trunk", output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    assert set(notes["missing_keys"]) == {"wte.weight"}
    assert not notes["unexpected_keys"]
    ours = flax_outputs(load_trunk(tmp_path / "trunk"), embeddings())["ln_f"]
    assert_close(ours, torch_outputs(model.eval(), embeddings())["ln_f"], 1e-5)


def test_the_command_given_for_pickles_converts_them(tmp_path):
    model = make_model()
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(WeightsError) as caught:
        load_trunk(tmp_path / "pickled")
    command = str(caught.value).partition("torch: ")[2].partition("; then")[0]
    python, *arguments = shlex.split(command)
    assert python == "python"
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True, capture_output=True)
    model.save_pretrained(tmp_path / "direct")
    assert load_trunk(tmp_path / "OUT").sha256 == load_trunk(tmp_path / "direct").sha256


def test_random_trunk_is_spread_as_transformers_initialises(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(**(SMALL | {"n_embd": 96}))
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    theirs, ours = (
        flatten(load_trunk(tmp_path).params),
        flatten(random_trunk(read_config(tmp_path), 0).params),
    )
    for path, leaf in theirs.items():
        if path.endswith(("kernel", "embedding")):  # 5 standard errors of a ratio of two sample deviations
            assert abs(ours[path].std() / leaf.std() - 1) < 5 / np.sqrt(leaf.size), path
        else:
            np.testing.assert_array_equal(ours[path], leaf)


@pytest.mark.parametrize(
    "live", [("embd_pdrop",), ("attn_pdrop",), ("resid_pdrop",), ("embd_pdrop", "attn_pdrop", "resid_pdrop")]
)
def test_dropout_has_torch_s_distribution(tmp_path, live):
    """Masks cannot be compared, their effect can: mean and spread of the output over draws of one input."""
    draws = 4096
    rates = {name: 0.3 if name in live else 0.0 for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    model = make_model(n_embd=12, n_layer=2, n_head=2, **rates)
    model.save_pretrained(Path(tmp_path))
    trunk = load_trunk(tmp_path)
    embeds = np.repeat(embeddings(1, 4, 12), draws, axis=0)
    with torch.no_grad():
        theirs = model.train()(inputs_embeds=torch.from_numpy(embeds)).last_hidden_state.numpy()
    keys = jax.random.split(jax.random.key(0), draws)
    ours = np.asarray(jax.jit(GPT2Trunk(trunk.config).apply)({"params": trunk.params}, embeds, keys))
    still = np.asarray(GPT2Trunk(trunk.config).apply({"params": trunk.params}, embeds[:1]))
    spread = theirs.std(0)
    assert spread.max() > 0.1
    assert np.abs(ours - still).max() > 0.1
    # standard errors over 4096 draws: sqrt(2/4096) = 2 % of the spread for a difference of means, 1 to 2 %
    # for a ratio of spreads
    moving = spread > 1e-3
    assert (np.abs(ours.mean(0) - theirs.mean(0))[moving] / spread[moving]).max() < 0.11
    assert np.abs(ours.std(0)[moving] / spread[moving] - 1).max() < 0.1
    assert abs(np.mean(ours.std(0)[moving] / spread[moving]) - 1) < 0.02
    # the first token attends to itself alone: what torch leaves unchanged, we leave unchanged
    np.testing.assert_allclose(ours.std(0)[~moving], spread[~moving], atol=1e-3)

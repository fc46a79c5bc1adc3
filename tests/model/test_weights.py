"""Trunk weights: what is read, what is refused and how it is said."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ofa_jax.errors import WeightsError
from ofa_jax.model import trees
from ofa_jax.model.gpt2 import PRESETS, GPT2Config, GPT2Trunk
from ofa_jax.model.weights import Trunk, load_trunk, random_trunk, read_config, trunk_tensors

GOLDEN = Path(__file__).parents[1] / "golden"
FORECAST = GOLDEN / "forecast_small" / "gpt2"
TINY = GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=5)


@pytest.fixture(scope="module")
def tensors():
    return load_file(FORECAST / "model.safetensors")


def hugging_face(folder: Path, tensors=None, **changes) -> Path:
    """A Hugging Face folder: the golden config with ``changes`` (... removes a field), and ``tensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((FORECAST / "config.json").read_text()) | changes
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not ...})
    )
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def same(one: Trunk, other: Trunk) -> bool:
    return one.config == other.config and one.sha256 == other.sha256


def refuse_hub(*args, **kwargs):
    raise AssertionError("the hub was asked")


@pytest.mark.parametrize("case", ["forecast_small", "anomaly_small", "classify_small"])
def test_golden_folder_is_read_whole(case):
    stored = load_file(GOLDEN / case / "gpt2" / "model.safetensors")
    trunk = load_trunk(GOLDEN / case / "gpt2")
    flat = trees.flatten(trunk.params)
    assert {path: leaf.shape for path, leaf in flat.items()} == dict(trunk_tensors(trunk.config).values())
    assert {leaf.dtype for leaf in flat.values()} == {np.dtype(np.float32)}
    assert len(flat) + len(trunk.dropped) == len(stored)
    assert trunk.dropped == ("wte.weight",)
    assert trunk.source == str(GOLDEN / case / "gpt2")
    for path, name in {
        "wpe/embedding": "wpe.weight",
        "h/0/attn/c_attn/kernel": "h.0.attn.c_attn.weight",
        "h/1/attn/c_proj/kernel": "h.1.attn.c_proj.weight",
        "h/1/mlp/c_proj/kernel": "h.1.mlp.c_proj.weight",
        "h/1/mlp/c_proj/bias": "h.1.mlp.c_proj.bias",
        "h/0/ln_2/scale": "h.0.ln_2.weight",
        "ln_f/bias": "ln_f.bias",
    }.items():
        np.testing.assert_array_equal(flat[path], stored[name])


def test_config_of_golden_folder():
    assert read_config(FORECAST) == GPT2Config(n_embd=48, n_layer=3, n_head=4)
    assert read_config(str(FORECAST), n_layer=1).n_layer == 1
    assert load_trunk(FORECAST).config == read_config(FORECAST)


def test_parameters_cannot_be_changed_in_place():
    for trunk in (load_trunk(FORECAST), random_trunk(TINY, 0)):
        with pytest.raises(ValueError, match="read-only"):
            trunk.params["wpe"]["embedding"][0] = 0


def test_first_layers_are_kept_and_the_rest_named():
    trunk = load_trunk(FORECAST, n_layer=2)
    assert trunk.config.n_layer == 2
    assert sorted(trunk.params["h"]) == ["0", "1"]
    assert len(trunk.dropped) == 13
    assert {"wte.weight", "h.2.attn.c_attn.weight", "h.2.ln_1.bias"} <= set(trunk.dropped)
    np.testing.assert_array_equal(
        trunk.params["h"]["1"]["ln_1"]["bias"], load_trunk(FORECAST).params["h"]["1"]["ln_1"]["bias"]
    )


@pytest.mark.parametrize("n_layer", [4, 0, -1])
def test_more_layers_than_stored_are_refused(n_layer):
    for reader in (load_trunk, read_config):
        with pytest.raises(WeightsError, match=f"{n_layer} blocks were requested, but this trunk has 3"):
            reader(FORECAST, n_layer=n_layer)


def test_prefix_heads_and_buffers(tmp_path, tensors):
    prefixed = {f"transformer.{name}": leaf for name, leaf in tensors.items()}
    prefixed["transformer.h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.uint8)
    prefixed["transformer.h.2.attn.masked_bias"] = np.array(-1e4, np.float32)
    prefixed["lm_head.weight"] = tensors["wte.weight"]
    trunk = load_trunk(hugging_face(tmp_path, prefixed))
    assert same(trunk, load_trunk(FORECAST))
    assert trunk.dropped == (
        "lm_head.weight",
        "transformer.h.0.attn.bias",
        "transformer.h.2.attn.masked_bias",
        "transformer.wte.weight",
    )


def test_mixed_prefixes_are_refused(tmp_path, tensors):
    mixed = {(f"transformer.{name}" if "ln_f" in name else name): leaf for name, leaf in tensors.items()}
    with pytest.raises(WeightsError) as caught:
        load_trunk(hugging_face(tmp_path, mixed))
    assert "missing: transformer.h.0.attn.c_attn.bias, " in str(caught.value)
    assert "unexpected: h.0.attn.c_attn.bias, " in str(caught.value)


def shards(folder: Path, tensors) -> Path:
    hugging_face(folder)
    parts = [dict(list(tensors.items())[:10]), dict(list(tensors.items())[10:])]
    index = {}
    for number, part in enumerate(parts, 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file(part, folder / shard)
        index |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def test_shards(tmp_path, tensors):
    assert same(load_trunk(shards(tmp_path, tensors)), load_trunk(FORECAST))


def test_shards_that_disagree_with_their_index(tmp_path, tensors):
    folder = shards(tmp_path, tensors)
    path = folder / "model.safetensors.index.json"
    good = json.loads(path.read_text())
    first = next(iter(good["weight_map"]))

    def with_map(weight_map):
        path.write_text(json.dumps({"weight_map": weight_map}))

    with_map({name: shard for name, shard in good["weight_map"].items() if name != first})
    with pytest.raises(WeightsError, match=rf"index and shards disagree on {first}\."):
        load_trunk(folder)
    with_map(good["weight_map"] | {"h.9.extra": "model-00001-of-00002.safetensors"})
    with pytest.raises(WeightsError, match=r"index and shards disagree on h\.9\.extra\."):
        load_trunk(folder)
    with_map(good["weight_map"] | {"wpe.weight": "../model.safetensors"})
    with pytest.raises(WeightsError, match="weight_map"):
        load_trunk(folder)
    path.write_text("[]")
    with pytest.raises(WeightsError, match=r"index\.json: \[\] is not a JSON object"):
        load_trunk(folder)
    with_map(good["weight_map"])
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"there is no model-00002-of-00002\.safetensors here"):
        load_trunk(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_stored_types_become_float32(tmp_path, tensors, dtype):
    trunk = load_trunk(hugging_face(tmp_path, {name: leaf.astype(dtype) for name, leaf in tensors.items()}))
    found = trunk.params["h"]["0"]["mlp"]["c_fc"]["kernel"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, tensors["h.0.mlp.c_fc.weight"].astype(dtype).astype(np.float32))


def test_all_faults_stand_in_one_error(tmp_path, tensors):
    broken = dict(tensors)
    del broken["h.0.ln_1.bias"], broken["ln_f.weight"]
    broken["h.3.ln_1.bias"] = broken["h.0.attn.c_attn.lora_A"] = np.zeros(3, np.float32)
    broken["wpe.weight"] = tensors["wpe.weight"].T.copy()
    broken["h.1.mlp.c_fc.bias"] = np.zeros(191, np.float32)
    with pytest.raises(WeightsError) as caught:
        load_trunk(hugging_face(tmp_path, broken))
    message = str(caught.value)
    assert "2 missing: h.0.ln_1.bias, ln_f.weight;" in message
    assert "2 unexpected: h.0.attn.c_attn.lora_A, h.3.ln_1.bias;" in message
    assert "2 of another shape: " in message
    assert "wpe.weight is [48, 1024], not [1024, 48]" in message
    assert "h.1.mlp.c_fc.bias is [191], not [192]" in message


def test_a_tensor_of_integers_is_refused(tmp_path, tensors):
    broken = tensors | {"h.1.mlp.c_fc.bias": np.zeros(192, np.int8)}
    with pytest.raises(WeightsError, match=r"h\.1\.mlp\.c_fc\.bias is of type I8, not a floating-point type"):
        load_trunk(hugging_face(tmp_path, broken))


def test_missing_names_carry_the_file_s_prefix_and_are_shortened(tmp_path, tensors):
    few = {"transformer.ln_f.weight": tensors["ln_f.weight"]}
    with pytest.raises(
        WeightsError, match=r"38 missing: transformer\.h\.0\.attn\.c_attn\.bias, .* and 26 more\."
    ):
        load_trunk(hugging_face(tmp_path, few))


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, np.float32), (-np.inf, np.float16), (1e300, np.float64)]
)
def test_values_that_are_not_finite_are_named(tmp_path, tensors, value, dtype):
    broken = {name: leaf.astype(dtype) for name, leaf in tensors.items()}
    broken["h.1.ln_2.weight"][7] = value
    with pytest.raises(
        WeightsError, match=r"model\.safetensors: h\.1\.ln_2\.weight is not finite in float32\."
    ):
        load_trunk(hugging_face(tmp_path, broken))


def test_pickle_is_refused_with_the_command_that_converts_it(tmp_path):
    folder = hugging_face(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(WeightsError, match=r"only pickled weights \(pytorch_model\.bin\)") as caught:
        load_trunk(folder)
    assert f"GPT2Model.from_pretrained('{folder}').save_pretrained('OUT')" in str(caught.value)


def test_nothing_to_read(tmp_path):
    with pytest.raises(
        WeightsError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json is here"
    ):
        load_trunk(hugging_face(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    with pytest.raises(WeightsError, match=r"there is no config\.json here"):
        load_trunk(tmp_path / "b")
    with pytest.raises(WeightsError, match="is a file"):
        load_trunk(FORECAST / "model.safetensors")
    for absent in (tmp_path / "c", "./gpt2-is-not-here", str(tmp_path / "c")):
        with pytest.raises(WeightsError, match="there is no such folder"):
            load_trunk(absent)
    with pytest.raises(WeightsError, match="revision 'main' is for hub ids"):
        load_trunk(FORECAST, revision="main")


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-100], lambda data: b"version https://git-lfs.github.com\n", lambda data: b""],
)
def test_damaged_safetensors(tmp_path, damage):
    folder = hugging_face(tmp_path)
    (folder / "model.safetensors").write_bytes(damage((FORECAST / "model.safetensors").read_bytes()))
    with pytest.raises(WeightsError, match=r"model\.safetensors: not readable as safetensors"):
        load_trunk(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type: input should be 'gpt2' .found 'llama'.. Choose a plain GPT-2"),
        ({"model_type": ...}, "model_type: field required"),
        ({"add_cross_attention": True}, "add_cross_attention: .*found True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: .*found {'bits': 4}"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads: "),
        ({"is_causal": False}, "is_causal: .*found False"),
        ({"auto_map": {"AutoModel": "mine.Model"}}, "auto_map: "),
        ({"activation_function": "mish"}, "activation_function 'mish' is not supported"),
        ({"n_inner": 0}, "n_inner: .*found 0"),
        ({"n_layer": 10**19}, "n_layer: "),
        ({"n_positions": 10**9}, "n_positions: "),
        ({"n_layer": True}, "n_layer: "),
        ({"layer_norm_epsilon": -1.0}, "layer_norm_epsilon: "),
        ({"layer_norm_epsilon": float("nan")}, "not readable as JSON"),
        ({"attn_pdrop": 1.5}, "attn_pdrop: "),
        ({"scale_attn_weights": "yes"}, "scale_attn_weights: "),
        ({"n_head": 5}, "n_embd 48 cannot be divided among 5 heads"),
        ({"n_embd": "48"}, "n_embd"),
        ({"hidden_size": 64}, "hidden_size is 64, but n_embd is 48"),
    ],
)
def test_config_fields_are_refused_by_name(tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message) as caught:
        read_config(hugging_face(tmp_path, **changes))
    assert str(tmp_path / "config.json") in str(caught.value)


def test_config_fields_are_honoured(tmp_path):
    changes = {
        "n_embd": ...,
        "hidden_size": 96,
        "n_inner": 100,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-6,
        "n_positions": 32,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.2,
        "resid_pdrop": 0.3,
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True,
    }
    assert read_config(hugging_face(tmp_path, **changes)) == GPT2Config(
        96, 3, 4, 32, 100, "gelu", 1e-6, 0.0, 0.2, 0.3, False, True
    )


def test_fields_left_out_take_hugging_face_s_defaults(tmp_path):
    old = {
        "model_type": "gpt2",
        "n_embd": 24,
        "n_head": 2,
        "n_ctx": 1024,
        "architectures": ["GPT2LMHeadModel"],
        "task_specific_params": {},
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert read_config(tmp_path) == GPT2Config(n_embd=24, n_head=2)


@pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 10_000])
def test_config_that_is_not_a_json_object(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json: .*JSON"):
        read_config(tmp_path)


# The published totals (124,439,808 for gpt2, ...) less the token embedding, 50257 times the width.
PUBLISHED = {
    "distilgpt2": 43_315_200,
    "gpt2": 85_842_432,
    "gpt2-medium": 303_360_000,
    "gpt2-large": 709_701_120,
    "gpt2-xl": 1_477_200_000,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_need_no_network(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse_hub)
    monkeypatch.chdir(tmp_path)
    owner = "distilbert" if name == "distilgpt2" else "openai-community"
    assert read_config(name) == read_config(f"{owner}/{name}") == PRESETS[name]
    assert read_config(name, n_layer=6).n_layer == 6
    sizes = [math.prod(shape) for _, shape in trunk_tensors(read_config(name)).values()]
    assert sum(sizes) == PUBLISHED[name]
    with pytest.raises(WeightsError, match="99 blocks were requested"):
        read_config(name, n_layer=99)
    with pytest.raises(WeightsError, match="the hub was asked"):
        read_config(f"somebody/{name}")


def test_a_folder_comes_before_the_name_it_bears(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hugging_face(tmp_path / "gpt2")
    assert read_config("gpt2").n_embd == 48
    (tmp_path / "gpt2" / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"no config\.json here.*openai-community/gpt2"):
        read_config("gpt2")


def test_hub_id_is_fetched_at_its_revision_without_pickles(monkeypatch):
    asked = {}

    def fetch(repo, *, revision, allow_patterns, ignore_patterns):
        asked.update(repo=repo, revision=revision, allow=allow_patterns, ignore=ignore_patterns)
        return str(FORECAST)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    trunk = load_trunk("someone/small-gpt2", revision="v1", n_layer=1)
    assert (asked["repo"], asked["revision"]) == ("someone/small-gpt2", "v1")
    assert trunk.source == "someone/small-gpt2@gpt2"
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in asked["allow"])
    assert asked["ignore"] == ["*/*"]
    assert read_config("someone/small-gpt2") == read_config(FORECAST)
    assert asked["allow"] == ["config.json", "trunk.json"]


def test_hub_out_of_reach_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for reader, name in ((load_trunk, "gpt2"), (load_trunk, "somebody/else"), (read_config, "somebody/else")):
        with pytest.raises(WeightsError) as caught:
            reader(name)
        for advice in ("HF_HUB_OFFLINE", f"ofa-jax convert {name} --out FOLDER", "trunk.source: random"):
            assert advice in str(caught.value)
        assert "\n" not in str(caught.value)


def test_random_trunk_is_the_same_everywhere():
    digests = json.loads((GOLDEN / "digests.json").read_text())
    trunk = random_trunk(TINY, 7)
    assert trunk.sha256 == digests["random_trunk"]
    assert (trunk.source, trunk.dropped) == ("random", ())
    assert random_trunk(TINY, 8).sha256 != trunk.sha256


def test_random_trunk_has_hugging_face_s_distribution():
    trunk = random_trunk(GPT2Config(n_embd=96, n_layer=3, n_head=4, n_positions=200), 3)
    for path, leaf in trees.flatten(trunk.params).items():
        if path.endswith(("bias", "scale")):
            assert set(leaf.ravel()) == {1.0 if path.endswith("scale") else 0.0}
            continue
        std = 0.02 / 6**0.5 if "c_proj" in path else 0.02
        # a standard deviation over n values scatters by 1/sqrt(2 n); 5 of those, and 5/sqrt(n) for the mean
        assert abs(leaf.std() / std - 1) < 5 / np.sqrt(2 * leaf.size), path
        assert abs(leaf.mean() / std) < 5 / np.sqrt(leaf.size), path


@pytest.mark.parametrize("positions", [True, False])
def test_shapes_are_those_of_the_flax_module(positions):
    config = GPT2Config(n_embd=12, n_layer=11, n_head=3, n_positions=7, n_inner=20)
    module = GPT2Trunk(config, positions=positions)
    made = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4, 12), jnp.float32))[
        "params"
    ]
    found = dict(trunk_tensors(config).values())
    assert list(found) == sorted(found)
    if not positions:
        del found["wpe/embedding"]
    assert found == {path: leaf.shape for path, leaf in trees.flatten(made).items()}


def test_loaded_trunk_runs():
    trunk = load_trunk(FORECAST, n_layer=2)
    embeds_mnd = jax.random.normal(jax.random.key(0), (2, 5, 48))
    hidden_mnd = GPT2Trunk(trunk.config).apply({"params": trunk.params}, embeds_mnd)
    assert hidden_mnd.shape == (2, 5, 48)
    assert bool(jnp.isfinite(hidden_mnd).all())
    scrambled = GPT2Trunk(trunk.config).apply({"params": random_trunk(trunk.config, 0).params}, embeds_mnd)
    assert not np.allclose(hidden_mnd, scrambled, atol=0.1)


def test_a_trunk_loads_silently_without_torch_and_transformers():
    program = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from ofa_jax.model.weights import load_trunk
load_trunk({str(FORECAST)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")

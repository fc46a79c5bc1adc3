"""peft's files: names and orientation as peft has them, foreign files read or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_adapters import LORA, TARGETS, adapters, edit

from ofa_jax.adapters.peft import peft_config, peft_tensors, read_peft, write_peft
from ofa_jax.adapters.rslora import LoraConfig
from ofa_jax.errors import WeightsError


@pytest.fixture
def folder(tmp_path) -> Path:
    write_peft(tmp_path, adapters(), TARGETS, LORA)
    return tmp_path


@pytest.mark.parametrize(
    ("lora", "peft", "scale"),
    [
        (LoraConfig(5, 16, "rslora", 0.01), (5, 16, True, 0.01), 16 / 5**0.5),
        (LoraConfig(5, 16.0, "lora"), (5, 16, False, 0.0), 3.2),
        (LoraConfig(5, 0.3, "lora"), (5, 0.3, False, 0.0), 0.06),
        (LoraConfig(5, 0.3, "none"), (5, 1.5, False, 0.0), 0.3),
        (LoraConfig(5, 0, "rslora"), (5, 0, True, 0.0), 0.0),
    ],
)
def test_every_scaling_is_expressed_in_peft_s_fields(tmp_path, lora, peft, scale):
    write_peft(tmp_path, adapters(), TARGETS, lora)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert tuple(content[key] for key in ("r", "lora_alpha", "use_rslora", "lora_dropout")) == peft
    assert lora.scale == pytest.approx(scale, rel=1e-12)
    assert read_peft(tmp_path)[2].scale == pytest.approx(scale, rel=1e-12)


def test_peft_config_as_a_literal():
    assert peft_config(LORA, adapters()) == {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": 5,
        "lora_alpha": 16,
        "use_rslora": True,
        "lora_dropout": 0.01,
        "init_lora_weights": "gaussian",
        "target_modules": ["gpt2.h.0.attn.c_attn", "gpt2.wpe", "out_layer"],
        "bias": "none",
        "fan_in_fan_out": False,
    }
    assert peft_config(LoraConfig(5, 16, init="theorem"), adapters())["init_lora_weights"] is True


def test_peft_tensors_have_peft_s_names_and_orientation():
    tensors = peft_tensors(adapters(), TARGETS)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "base_model.model.gpt2.wpe.lora_embedding_A": (5, 7),
        "base_model.model.gpt2.wpe.lora_embedding_B": (4, 5),
        "base_model.model.gpt2.h.0.attn.c_attn.lora_A.weight": (5, 4),
        "base_model.model.gpt2.h.0.attn.c_attn.lora_B.weight": (12, 5),
        "base_model.model.out_layer.lora_A.weight": (5, 9),
        "base_model.model.out_layer.lora_B.weight": (3, 5),
    }
    written = tensors["base_model.model.out_layer.lora_A.weight"]
    np.testing.assert_array_equal(written, adapters()["out_layer"]["a"].T)
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())


def test_adapters_targets_and_configuration_are_read_back(folder):
    found, targets, lora = read_peft(folder)
    assert (targets, lora) == (TARGETS, LORA)
    for path, factors in adapters().items():
        for name, factor in factors.items():
            np.testing.assert_array_equal(found[path][name], factor)


def test_absent_fields_take_peft_s_defaults(tmp_path):
    ones = {"out_layer": {"a": np.ones((9, 8), np.float32), "b": np.ones((8, 3), np.float32)}}
    write_peft(tmp_path, ones, TARGETS, LoraConfig(8, 16))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert read_peft(tmp_path)[2] == LoraConfig(8, 8, "lora", 0.0, "kaiming")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_adapters_saved_in_half_precision_become_float32(folder, dtype):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: it.astype(dtype) for name, it in tensors.items()}, folder / "adapter_model.safetensors")
    found, _, _ = read_peft(folder)
    assert {factor.dtype for factors in found.values() for factor in factors.values()} == {
        np.dtype("float32")
    }
    np.testing.assert_allclose(found["gpt2/wpe"]["a"], adapters()["gpt2/wpe"]["a"], rtol=2**-8)


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"rank_pattern": {"out_layer": 2}},
        {"alpha_pattern": {"out_layer": 2}},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["in_layer"]},
        {"lora_bias": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq"},
        {"layer_replication": [[0, 2]]},
        {"trainable_token_indices": [1]},
        {"target_parameters": ["x"]},
        {"use_qalora": True},
        {"alora_invocation_tokens": [1]},
        {"a_feature_of_tomorrow": 1},
        {"peft_type": "IA3"},
        {"peft_type": "lora"},
    ],
)
def test_features_that_change_the_mathematics_are_refused_by_name(folder, change):
    edit(folder, change)
    ((key, value),) = change.items()
    with pytest.raises(WeightsError) as caught:
        read_peft(folder)
    assert "adapter_config.json: " in str(caught.value)
    assert key in str(caught.value)
    assert repr(value) in str(caught.value)


WRONG = [None, True, -1, 0, 10**19, 1e300, "x", "5", [], [1], {}, {"x": 1}]


@pytest.mark.parametrize("key", ["peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias"])
def test_a_wrong_value_is_refused_by_name_or_harmless(folder, key):
    """Of twelve values of every type at most three fit a field, and those are read as what they are."""
    refusals = []
    for value in WRONG:
        edit(folder, {key: value})
        try:
            lora = read_peft(folder)[2]
        except WeightsError as error:
            refusals.append(str(error))
        else:
            assert value in (lora.alpha, lora.dropout, lora.scaling == "rslora")
    assert len(refusals) >= len(WRONG) - 3
    assert all(key in text or "does not fit rank" in text for text in refusals)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('"use_rslora": "false"', r"use_rslora: input should be a valid boolean \(found 'false'\)"),
        ('"use_rslora": 0', r"use_rslora: input should be a valid boolean \(found 0\)"),
        ('"lora_alpha": 1e999', "lora_alpha: input should be a finite number"),
        ('"lora_alpha": Infinity', "not readable as JSON"),
        ('"lora_alpha": NaN', "not readable as JSON"),
    ],
)
def test_text_for_a_truth_value_and_an_infinite_alpha_are_refused(folder, content, named):
    (folder / "adapter_config.json").write_text(f'{{"peft_type": "LORA", "r": 5, {content}}}')
    with pytest.raises(WeightsError, match=named):
        read_peft(folder)


def test_a_missing_type_is_refused(folder):
    edit(folder, {"peft_type": ...})
    with pytest.raises(WeightsError, match="peft_type: field required"):
        read_peft(folder)


def foreign(folder: Path, changes: dict) -> Path:
    tensors = peft_tensors(adapters(), TARGETS) | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "adapter_model.safetensors")
    return folder


STEM = "base_model.model.out_layer"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {f"{STEM}.lora_magnitude_vector.weight": np.ones(3, np.float32)},
            r"'base_model.*magnitude_vector\.weight' is not a LoRA factor",
        ),
        (
            {f"{STEM}.lora_A.weight": np.ones((4, 9), np.float32)},
            r"out_layer\.lora_A\.weight has shape \(4, 9\), which does not fit rank 5",
        ),
        (
            {f"{STEM}.lora_B.weight": np.ones((3, 4), np.float32)},
            r"out_layer\.lora_B\.weight has shape \(3, 4\), which does not fit rank 5",
        ),
        ({f"{STEM}.lora_B.weight": None}, "out_layer has only one of its two factors"),
        (
            {f"{STEM}.lora_B.weight": None, f"{STEM}.lora_embedding_B": np.ones((3, 5), np.float32)},
            "out_layer mixes factors of a dense layer and of an embedding",
        ),
        (dict.fromkeys(peft_tensors(adapters(), TARGETS)), "there is no adapter tensor"),
        (
            {f"{STEM}.lora_B.weight": np.full((3, 5), np.nan, np.float32)},
            r"out_layer\.lora_B\.weight is not finite",
        ),
        (
            {f"{STEM}.lora_B.weight": np.ones((3, 5), np.int32)},
            r"out_layer\.lora_B\.weight is of type I32, not a floating-point type",
        ),
    ],
)
def test_tensors_that_are_no_factors_or_do_not_fit_are_named(folder, changes, named):
    with pytest.raises(WeightsError, match=named):
        read_peft(foreign(folder, changes))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_adapters_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"there is no {re.escape(name)} here"):
        read_peft(folder)

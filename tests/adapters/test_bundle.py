"""The bundle on disk: bit for bit back, every kind of damage named, and foreign peft files read or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ofa_jax.adapters.bundle import (
    LoraConfig,
    peft_config,
    peft_tensors,
    read_bundle,
    read_peft,
    write_bundle,
)
from ofa_jax.adapters.partition import AdapterTarget
from ofa_jax.build import build_model, frozen_record
from ofa_jax.config.load import dump_experiment, load_experiment
from ofa_jax.errors import CheckpointError, WeightsError
from ofa_jax.files import FORMAT, sha256_file
from ofa_jax.model.trees import flatten, unflatten

TARGETS = {
    "gpt2/wpe": AdapterTarget("embedding", (7, 4)),
    "gpt2/h/0/attn/c_attn": AdapterTarget("dense", (4, 12)),
    "out_layer": AdapterTarget("dense", (9, 3)),
}
NUMBERS = LoraConfig(rank=5, alpha=16, scaling="rslora", dropout=0.01)
META = {
    "task": "forecast",
    "scaler": {"mean": [0.1, 1 / 3], "std": [1e-30, 2.5]},
    "names": ["a", "ö"],
    "none": None,
}


def adapters() -> dict:
    rng = np.random.default_rng(0)
    made = {}
    for path, target in TARGETS.items():
        made[path] = {
            "a": rng.normal(size=(target.shape[0], 5)).astype(np.float32),
            "b": rng.normal(size=(5, target.shape[1])).astype(np.float32),
        }
    made["out_layer"]["a"].ravel()[:4] = [
        -0.0,
        1e-40,
        np.float32(3.4e38),
        np.nextafter(np.float32(1), np.float32(2)),
    ]
    return made


def trained() -> dict:
    rng = np.random.default_rng(1)
    shapes = {
        "out_layer/bias": (3,),
        "gpt2/ln_f/scale": (4,),
        "gpt2/h/0/ln_1/bias": (4,),
        "in_layer/kernel": (5, 4),
    }
    return unflatten({path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()})


def write(
    folder: Path,
    *,
    adapters=adapters(),  # noqa: B008
    trained=trained(),  # noqa: B008
    numbers=NUMBERS,
    init="peft_gaussian",
    meta=META,
) -> Path:
    write_bundle(
        folder, adapters=adapters, targets=TARGETS, trained=trained, numbers=numbers, init=init, meta=meta
    )
    return folder


def assert_same_bits(found, wanted):
    found, wanted = flatten(found), flatten(wanted)
    assert found.keys() == wanted.keys()
    for path in wanted:
        assert found[path].dtype == wanted[path].dtype == np.float32
        assert found[path].shape == wanted[path].shape
        assert found[path].tobytes() == wanted[path].tobytes(), path


@pytest.mark.parametrize("parts", [("adapters",), ("trained",), ("adapters", "trained")])
def test_round_trip_is_bit_for_bit(tmp_path, parts):
    kept = {"adapters": adapters(), "trained": trained()}
    kept = {name: tree if name in parts else {} for name, tree in kept.items()}
    folder = write(tmp_path / "bundle", **kept)
    bundle = read_bundle(folder)
    assert_same_bits(bundle.adapters, kept["adapters"])
    assert_same_bits(bundle.trained, kept["trained"])
    assert {name: bundle.meta[name] for name in META} == META
    assert bundle.meta["format"] == FORMAT
    lora = {"rank": 5, "alpha": 16, "scaling": "rslora", "dropout": 0.01, "init": "peft_gaussian"}
    assert bundle.meta["adapters"] == (lora if "adapters" in parts else None)
    files = {
        "adapters": {"adapter_model.safetensors", "adapter_config.json"},
        "trained": {"trained.safetensors"},
    }
    present = set().union(*(files[part] for part in parts))
    assert {file.name for file in folder.iterdir()} == present | {"ofa.json"}
    assert bundle.meta["files"] == {name: sha256_file(folder / name) for name in present}


def test_a_bundle_replaces_the_one_before_whole(tmp_path):
    folder = write(tmp_path / "bundle")
    write(folder, trained={}, meta={"task": "other"})
    assert not (folder / "trained.safetensors").exists()
    assert read_bundle(folder).meta["task"] == "other"
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_a_failed_write_leaves_the_bundle_before(tmp_path):
    folder = write(tmp_path / "bundle")
    with pytest.raises(TypeError):
        write(folder, meta={"not": object()})
    assert_same_bits(read_bundle(folder).adapters, adapters())
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_whoever_may_read_one_file_may_read_all(tmp_path):
    folder = write(tmp_path / "bundle")
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


def test_no_bundle_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"there is no ofa\.json here\. Name a folder that holds a bundle"
    ):
        read_bundle(tmp_path)


FILES = ["adapter_model.safetensors", "adapter_config.json", "trained.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    folder = write(tmp_path / "bundle")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"the bundle's file {re.escape(name)} is missing"):
        read_bundle(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["first", "middle", "last", "truncated"])
def test_a_damaged_file_is_named(tmp_path, name, where):
    folder = write(tmp_path / "bundle")
    content = bytearray((folder / name).read_bytes())
    position = {"first": 0, "middle": len(content) // 2, "last": len(content) - 1, "truncated": 0}[where]
    content[position] ^= 1
    (folder / name).write_bytes(content[:-5] if where == "truncated" else content)
    with pytest.raises((CheckpointError, WeightsError), match=re.escape(name)):
        read_bundle(folder)


@pytest.mark.parametrize("bit", range(8))
def test_any_flipped_bit_of_ofa_json_is_noticed(tmp_path, bit):
    folder = write(tmp_path / "bundle")
    content = (folder / "ofa.json").read_bytes()
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        (folder / "ofa.json").write_bytes(flipped)
        try:
            same = json.loads(flipped) == json.loads(content)
        except ValueError:
            same = False
        if (
            not same and b'"format": 0' not in flipped
        ):  # white space may change; a format 0 never was, and means nothing else
            with pytest.raises(CheckpointError, match=r"ofa\.json"):
                read_bundle(folder)


def test_edited_settings_are_noticed(tmp_path):
    folder = write(tmp_path / "bundle")
    content = json.loads((folder / "ofa.json").read_text())
    content["adapters"]["alpha"] = 17
    (folder / "ofa.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"ofa\.json: was changed after it was saved"):
        read_bundle(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json", '{"format": "1"}', '{"format": 1}'])
def test_an_ofa_json_that_is_none_is_named(tmp_path, content):
    folder = write(tmp_path / "bundle")
    (folder / "ofa.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"ofa\.json"):
        read_bundle(folder)


def test_a_newer_format_is_refused_by_name(tmp_path):
    folder = write(tmp_path / "bundle")
    content = json.loads((folder / "ofa.json").read_text())
    (folder / "ofa.json").write_text(json.dumps(content | {"format": FORMAT + 1}))
    with pytest.raises(
        CheckpointError,
        match=rf"ofa\.json: format {FORMAT + 1} is newer than this version of ofa-jax reads \({FORMAT}\)",
    ):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_rslora": False}, "rank 5, alpha 16, lora"),
        ({"lora_alpha": 32}, "rank 5, alpha 32, rslora"),
        ({"lora_alpha": 0}, "rank 5, alpha 0, rslora"),
    ],
)
def test_a_changed_scaling_is_named_with_both(tmp_path, change, named):
    folder = write(tmp_path / "bundle")
    edit(folder, change)
    with pytest.raises(CheckpointError) as caught:
        read_bundle(folder)
    assert (
        f"the scaling in adapter_config.json ({named}) is not the one the adapters were trained with (rank 5, alpha 16, rslora)"
        in str(caught.value)
    )


@pytest.mark.parametrize(
    "change", [{"lora_dropout": 0.5}, {"target_modules": ["wpe"]}, {"peft_version": "9"}]
)
def test_any_other_change_of_the_adapter_config_is_noticed(tmp_path, change):
    folder = write(tmp_path / "bundle")
    edit(folder, change)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is not the file that was saved"):
        read_bundle(folder)


def test_a_changed_rank_is_named(tmp_path):
    folder = write(tmp_path / "bundle")
    edit(folder, {"r": 6})
    with pytest.raises(WeightsError, match="which does not fit rank 6"):
        read_bundle(folder)


def edit(folder: Path, change: dict) -> None:
    path = folder / "adapter_config.json"
    path.write_text(
        json.dumps(
            {key: value for key, value in (json.loads(path.read_text()) | change).items() if value is not ...}
        )
    )


@pytest.mark.parametrize(
    ("numbers", "peft", "scale"),
    [
        (
            LoraConfig(5, 16, "rslora", 0.01),
            {"r": 5, "lora_alpha": 16, "use_rslora": True, "lora_dropout": 0.01},
            16 / 5**0.5,
        ),
        (
            LoraConfig(5, 16.0, "lora"),
            {"r": 5, "lora_alpha": 16, "use_rslora": False, "lora_dropout": 0.0},
            3.2,
        ),
        (
            LoraConfig(5, 0.3, "lora"),
            {"r": 5, "lora_alpha": 0.3, "use_rslora": False, "lora_dropout": 0.0},
            0.06,
        ),
        (
            LoraConfig(5, 0.3, "none"),
            {"r": 5, "lora_alpha": 1.5, "use_rslora": False, "lora_dropout": 0.0},
            0.3,
        ),
        (
            LoraConfig(5, 0, "rslora"),
            {"r": 5, "lora_alpha": 0, "use_rslora": True, "lora_dropout": 0.0},
            0.0,
        ),
    ],
)
def test_every_scaling_is_said_in_peft_s_words(tmp_path, numbers, peft, scale):
    folder = write(tmp_path / "bundle", numbers=numbers)
    content = json.loads((folder / "adapter_config.json").read_text())
    assert {key: content[key] for key in peft} == peft
    assert numbers.scale == pytest.approx(scale, rel=1e-12)
    _, _, found = read_peft(folder)
    assert found.scale == pytest.approx(scale, rel=1e-12)
    assert read_bundle(folder).meta["adapters"]["scaling"] == numbers.scaling


def test_peft_config_as_a_literal():
    assert peft_config(NUMBERS, adapters(), "peft_gaussian") == {
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
    assert peft_config(NUMBERS, adapters(), "theorem")["init_lora_weights"] is True


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
    np.testing.assert_array_equal(
        tensors["base_model.model.out_layer.lora_A.weight"], adapters()["out_layer"]["a"].T
    )
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())


def test_sites_and_numbers_are_read_back(tmp_path):
    found, targets, numbers = read_peft(write(tmp_path / "bundle"))
    assert_same_bits(found, adapters())
    assert targets == TARGETS
    assert numbers == NUMBERS


def test_what_peft_leaves_out_takes_its_defaults(tmp_path):
    folder = write(
        tmp_path / "bundle",
        adapters={"out_layer": {"a": np.ones((9, 8), np.float32), "b": np.ones((8, 3), np.float32)}},
    )
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert read_peft(folder)[2] == LoraConfig(rank=8, alpha=8, scaling="lora", dropout=0.0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_adapters_saved_in_half_precision_become_float32(tmp_path, dtype):
    folder = write(tmp_path / "bundle")
    tensors = {
        name: np.clip(tensor, -100, 100).astype(dtype)
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    found, _, _ = read_peft(folder)
    assert {leaf.dtype for leaf in flatten(found).values()} == {np.dtype(np.float32)}
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
    ],
)
def test_features_that_change_the_mathematics_are_refused_by_name(tmp_path, change):
    folder = write(tmp_path / "bundle")
    edit(folder, change)
    ((key, value),) = change.items()
    with pytest.raises(WeightsError) as caught:
        read_peft(folder)
    assert f"adapter_config.json: the adapter uses {key}={value!r}, which is not supported" in str(
        caught.value
    )


@pytest.mark.parametrize("kind", ["IA3", "LOHA", None, "lora", ...])
def test_another_kind_of_adapter_is_refused_by_name(tmp_path, kind):
    folder = write(tmp_path / "bundle")
    edit(folder, {"peft_type": kind})
    with pytest.raises(
        WeightsError, match=rf"peft_type is {None if kind is ... else kind!r}, only LORA is supported"
    ):
        read_peft(folder)


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_a_config_that_is_no_mapping_is_refused(tmp_path, content):
    folder = write(tmp_path / "bundle")
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(WeightsError, match="only LORA is supported"):
        read_peft(folder)


@pytest.mark.parametrize(
    "change",
    [{"r": "5"}, {"r": 0}, {"r": None}, {"lora_alpha": "x"}, {"lora_alpha": None}, {"lora_dropout": "x"}],
)
def test_numbers_that_are_none_are_refused(tmp_path, change):
    folder = write(tmp_path / "bundle")
    edit(folder, change)
    with pytest.raises(WeightsError, match=next(iter(change))):
        read_peft(folder)


def foreign(folder: Path, changes: dict) -> Path:
    tensors = peft_tensors(adapters(), TARGETS) | changes
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None},
        folder / "adapter_model.safetensors",
    )
    return folder


def test_tensors_that_are_no_factors_or_do_not_fit_are_named(tmp_path):
    folder = write(tmp_path / "bundle")
    stem = "base_model.model.out_layer"
    dora = f"{stem}.lora_magnitude_vector.weight"
    with pytest.raises(WeightsError, match=f"'{re.escape(dora)}' is not a LoRA factor"):
        read_peft(foreign(folder, {dora: np.ones(3, np.float32)}))
    with pytest.raises(
        WeightsError, match=r"out_layer\.lora_A\.weight has shape \(4, 9\), which does not fit rank 5"
    ):
        read_peft(foreign(folder, {f"{stem}.lora_A.weight": np.ones((4, 9), np.float32)}))
    with pytest.raises(
        WeightsError, match=r"out_layer\.lora_B\.weight has shape \(3, 4\), which does not fit rank 5"
    ):
        read_peft(foreign(folder, {f"{stem}.lora_B.weight": np.ones((3, 4), np.float32)}))
    with pytest.raises(WeightsError, match="out_layer has only one of its two factors"):
        read_peft(foreign(folder, {f"{stem}.lora_B.weight": None}))
    swapped = {f"{stem}.lora_B.weight": None, f"{stem}.lora_embedding_B": np.ones((3, 5), np.float32)}
    with pytest.raises(WeightsError, match="out_layer mixes factors of a dense layer and of an embedding"):
        read_peft(foreign(folder, swapped))
    with pytest.raises(WeightsError, match="there is no adapter tensor"):
        read_peft(foreign(folder, dict.fromkeys(peft_tensors(adapters(), TARGETS))))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_adapters_is_named(tmp_path, name):
    folder = write(tmp_path / "bundle")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"there is no {re.escape(name)} here"):
        read_peft(folder)


@pytest.mark.slow
def test_the_bundle_of_the_published_shape_is_small(tmp_path):
    """546,304 adapter parameters, at most 2.3 MB on disk with everything that is in the folder."""
    experiment = load_experiment("long/etth1", ["trunk.source=random"])
    model = build_model(experiment)
    write_bundle(
        tmp_path / "bundle",
        adapters=model.trainable["adapters"],
        targets=model.targets,
        trained={},
        lora=model.lora,
        init=experiment.adapters.init,
        meta={"settings": dump_experiment(experiment), "frozen": frozen_record(model, 0)},
    )
    assert 4 * 546_304 < sum(file.stat().st_size for file in (tmp_path / "bundle").iterdir()) <= 2_300_000

"""Trunk folders: the round trip, half precision, and what is not overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ofa_jax.errors import WeightsError
from ofa_jax.model import trees
from ofa_jax.model.convert import convert, save_trunk
from ofa_jax.model.gpt2 import GPT2Config
from ofa_jax.model.weights import Trunk, load_trunk, read_config

FORECAST = Path(__file__).parents[1] / "golden" / "forecast_small" / "gpt2"


def test_convert_round_trip(tmp_path):
    report = convert(FORECAST, tmp_path / "trunk", n_layer=2)
    trunk = load_trunk(tmp_path / "trunk")
    assert trunk.config == GPT2Config(n_embd=48, n_layer=2, n_head=4)
    assert trunk.sha256 == Trunk(trunk.config, load_trunk_params(n_layer=2), "").sha256
    assert (trunk.dropped, trunk.source) == ((), "a folder")
    assert read_config(tmp_path / "trunk") == trunk.config
    assert load_trunk(tmp_path / "trunk", n_layer=1).config.n_layer == 1
    assert "wte.weight" not in load_file(tmp_path / "trunk" / "model.safetensors")
    assert sorted(file.name for file in (tmp_path / "trunk").iterdir()) == [
        "config.json",
        "model.safetensors",
        "trunk.json",
    ]
    manifest = json.loads((tmp_path / "trunk" / "trunk.json").read_text())
    kept = ("source", "sha256", "config_sha256", "fingerprint")
    assert manifest == {"format": 1, **{name: report[name] for name in kept}}
    assert report["fingerprint"] == trunk.sha256
    assert report["dropped"]["wte.weight"] == report["dropped"]["h.*.ln_1.bias"] == 1
    assert (report["layers"], report["source"], report["dtype"]) == (2, "a folder", "float32")
    assert report["parameters"] == sum(leaf.size for leaf in trees.flatten(trunk.params).values())
    assert (tmp_path / "trunk" / "model.safetensors").stat().st_mode == (
        tmp_path / "trunk" / "trunk.json"
    ).stat().st_mode
    assert report["bytes"] == sum(file.stat().st_size for file in (tmp_path / "trunk").iterdir())


def load_trunk_params(n_layer: int) -> dict:
    """The first layers of the golden trunk, read without the code under test."""
    stored = load_file(FORECAST / "model.safetensors")
    rename = {"wpe.weight": "wpe/embedding"}
    flat = {}
    for name, leaf in stored.items():
        if name == "wte.weight" or name.startswith(tuple(f"h.{i}." for i in range(n_layer, 9))):
            continue
        kind = "bias" if name.endswith("bias") else "scale" if "ln_" in name else "kernel"
        flat[rename.get(name, name.rpartition(".")[0].replace(".", "/") + f"/{kind}")] = leaf
    return trees.unflatten(flat)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_convert_to_half_precision(tmp_path, dtype, bound):
    report = convert(FORECAST, tmp_path / "trunk", dtype=dtype)
    trunk, exact = load_trunk(tmp_path / "trunk"), load_trunk(FORECAST)
    assert report["fingerprint"] == trunk.sha256 != exact.sha256
    assert (tmp_path / "trunk" / "model.safetensors").stat().st_size < 0.55 * sum(
        leaf.nbytes for leaf in trees.flatten(exact.params).values()
    )
    for path, leaf in trees.flatten(trunk.params).items():
        reference = trees.flatten(exact.params)[path]
        # half a unit in the last place, plus float16's subnormal step
        assert np.all(np.abs(leaf - reference) <= bound * np.abs(reference) + 2**-24), path


def test_convert_refuses_a_type_that_does_not_hold_the_weights(tmp_path):
    trunk = load_trunk(FORECAST)
    wpe = trunk.params["wpe"]["embedding"].copy()
    wpe[0, 0] = 1e5
    large = Trunk(trunk.config, trunk.params | {"wpe": {"embedding": wpe}}, "made up")
    with pytest.raises(WeightsError, match=r"wpe\.weight has values beyond the range of float16"):
        save_trunk(large, tmp_path / "trunk", "float16")
    with pytest.raises(WeightsError, match="dtype 'int8' is unknown"):
        save_trunk(large, tmp_path / "trunk", "int8")
    assert list(tmp_path.iterdir()) == []


def test_changed_trunk_folder_is_refused(tmp_path):
    folder = tmp_path / "trunk"
    convert(FORECAST, folder)
    weights, config, manifest = (folder / name for name in ("model.safetensors", "config.json", "trunk.json"))
    good = weights.read_bytes()
    flipped = bytearray(good)
    flipped[-1000] ^= 1
    weights.write_bytes(flipped)
    with pytest.raises(WeightsError, match=r"model\.safetensors is not the file that was saved"):
        load_trunk(folder)
    weights.unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors is missing"):
        load_trunk(folder)
    weights.write_bytes(good)
    text = config.read_text()
    config.write_text(text.replace('"n_head": 4', '"n_head": 2'))
    for reader in (load_trunk, read_config):
        with pytest.raises(WeightsError, match=r"config\.json is not the file that was saved"):
            reader(folder)
    config.write_text(text)
    recorded = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(recorded | {"format": 2}))
    with pytest.raises(WeightsError, match="format 2 is newer"):
        load_trunk(folder)
    manifest.write_text(json.dumps({name: value for name, value in recorded.items() if name != "sha256"}))
    with pytest.raises(WeightsError, match=r"trunk\.json: sha256: field required"):
        load_trunk(folder)
    manifest.write_text(json.dumps(recorded))
    assert load_trunk(folder).sha256 == recorded["fingerprint"]


def test_the_longer_record_of_earlier_versions_is_read(tmp_path):
    report = convert(FORECAST, tmp_path, n_layer=2)
    old = {name: value for name, value in report.items() if name != "bytes"}
    (tmp_path / "trunk.json").write_text(json.dumps({"format": 1, **old}))
    assert load_trunk(tmp_path).sha256 == report["fingerprint"]


@pytest.mark.parametrize("value", [None, -3, ["x"], {}, ...])
@pytest.mark.parametrize("name", ["format", "source", "sha256", "config_sha256"])
def test_a_wrong_value_in_the_record_is_refused(tmp_path, name, value):
    convert(FORECAST, tmp_path, n_layer=1)
    record = json.loads((tmp_path / "trunk.json").read_text()) | {name: value}
    record = {key: field for key, field in record.items() if field is not ...}
    (tmp_path / "trunk.json").write_text(json.dumps(record))
    with pytest.raises(WeightsError, match=rf"trunk\.json: {name}: "):
        load_trunk(tmp_path)


def test_only_a_trunk_folder_is_overwritten(tmp_path, monkeypatch):
    folder = tmp_path / "trunk"
    folder.mkdir()
    convert(FORECAST, folder, n_layer=1)
    convert(FORECAST, folder, n_layer=2)
    assert load_trunk(folder).config.n_layer == 2
    convert(folder, folder, n_layer=1)
    assert load_trunk(folder).config.n_layer == 1
    monkeypatch.setattr("ofa_jax.model.convert.load_trunk", None)  # refused before anything is read
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(
        WeightsError, match=r"not a trunk folder \(it contains notes\.txt\); nothing was written"
    ):
        convert(FORECAST, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.safetensors").write_bytes(b"theirs")
    with pytest.raises(
        WeightsError, match=r"not a trunk folder \(it contains model\.safetensors\); nothing was written"
    ):
        convert(FORECAST, tmp_path / "theirs")
    with pytest.raises(WeightsError, match="is a file"):
        convert(FORECAST, folder / "notes.txt")

"""The bundle on disk: bit for bit back, and every kind of damage named."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_adapters import LORA, TARGETS, adapters, edit

from ofa_jax.adapters.bundle import BUNDLE_FORMAT, read_bundle, write_bundle
from ofa_jax.build import build_model, frozen_record, lora_config
from ofa_jax.config.load import dump_experiment, load_experiment
from ofa_jax.errors import CheckpointError, OfaError, WeightsError
from ofa_jax.files import json_digest, sha256_file
from ofa_jax.model.trees import flatten, unflatten


def trained() -> dict:
    rng = np.random.default_rng(1)
    shapes = {"out_layer/bias": (3,), "gpt2/ln_f/scale": (4,), "gpt2/h/0/ln_1/bias": (4,)}
    return unflatten({path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()})


PARTS = {"adapters": adapters(), "trained": trained()}
EXTREMES = [-0.0, 1e-40, np.float32(3.4e38), np.nextafter(np.float32(1), np.float32(2))]
PARTS["adapters"]["out_layer"]["a"].ravel()[:4] = EXTREMES


@pytest.fixture
def write(bundle_meta):
    def write(folder: Path, *, lora=LORA, parts=PARTS, **meta) -> Path:
        write_bundle(folder, targets=TARGETS, lora=lora, meta=bundle_meta | meta, **parts)
        return folder

    return write


@pytest.fixture
def folder(write, tmp_path) -> Path:
    return write(tmp_path / "bundle")


def assert_same_bits(found, wanted):
    found, wanted = flatten(found), flatten(wanted)
    assert found.keys() == wanted.keys()
    for path in wanted:
        assert found[path].dtype == wanted[path].dtype == np.float32
        assert found[path].shape == wanted[path].shape
        assert found[path].tobytes() == wanted[path].tobytes(), path


@pytest.mark.parametrize("kept", [("adapters",), ("trained",), ("adapters", "trained")])
def test_round_trip_is_bit_for_bit(tmp_path, write, bundle_meta, kept):
    parts = {name: tree if name in kept else {} for name, tree in PARTS.items()}
    folder = write(tmp_path / "bundle", parts=parts)
    bundle = read_bundle(folder)
    assert_same_bits(bundle.adapters, parts["adapters"])
    assert_same_bits(bundle.trained, parts["trained"])
    content = json.loads((folder / "ofa.json").read_text())
    assert {name: content[name] for name in bundle_meta} == bundle_meta
    assert bundle.record.model_dump(exclude_unset=True) == content
    assert content["format"] == BUNDLE_FORMAT
    if "adapters" in kept:
        assert bundle.record.adapters is not None
        assert lora_config(bundle.record.adapters) == LORA
    else:
        assert bundle.record.adapters is None
    files = {
        "adapters": ["adapter_model.safetensors", "adapter_config.json"],
        "trained": ["trained.safetensors"],
    }
    present = {name for part in kept for name in files[part]}
    assert {file.name for file in folder.iterdir()} == present | {"ofa.json"}
    assert bundle.record.files == {name: sha256_file(folder / name) for name in present}


def test_a_new_bundle_replaces_every_file(tmp_path, folder, write):
    write(folder, parts=PARTS | {"trained": {}}, season=7)
    assert not (folder / "trained.safetensors").exists()
    assert read_bundle(folder).record.season == 7
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_a_failed_write_leaves_the_old_bundle(tmp_path, folder, write):
    with pytest.raises(TypeError):
        write(folder, frequency=object())
    with pytest.raises(CheckpointError, match="season: input should be greater than or equal to 1"):
        write(folder, season=0)
    assert_same_bits(read_bundle(folder).adapters, PARTS["adapters"])
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("moment", ["between records and files", "between the two renames"])
def test_a_bundle_that_is_exchanged_while_it_is_read_is_read_once_more(folder, write, monkeypatch, moment):
    from ofa_jax import files

    check, looked = files.find_damage, []

    def exchange(found, digests):
        looked.append(found)
        if len(looked) == 1 and moment == "between the two renames":
            folder.rename(folder.with_name(".bundle.ofa-old"))
        if len(looked) == 1:
            write(folder, parts=PARTS | {"trained": {}}, season=7)
        return check(found, digests)

    monkeypatch.setattr(files, "find_damage", exchange)
    assert read_bundle(folder).record.season == 7
    assert len(looked) == 2


def test_a_file_that_cannot_be_read_is_not_called_damaged(folder, monkeypatch):
    from ofa_jax import files

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "sha256_file", refused)
    with pytest.raises(
        CheckpointError, match=r"cannot be read \(Permission denied\)\. Check its permissions"
    ) as found:
        read_bundle(folder)
    assert "damaged" not in str(found.value)


def test_all_files_have_the_same_permissions(folder):
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"there is no ofa\.json here\. Name a folder that contains a bundle"
    ):
        read_bundle(tmp_path)


FILES = ["adapter_model.safetensors", "adapter_config.json", "trained.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} is missing"):
        read_bundle(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["first", "middle", "last", "truncated"])
def test_a_damaged_file_is_named(folder, name, where):
    content = bytearray((folder / name).read_bytes())
    position = {"first": 0, "middle": len(content) // 2, "last": len(content) - 1, "truncated": 0}[where]
    content[position] ^= 1
    (folder / name).write_bytes(content[:-5] if where == "truncated" else content)
    with pytest.raises((CheckpointError, WeightsError), match=re.escape(name)):
        read_bundle(folder)


@pytest.mark.parametrize("bit", range(8))
def test_any_flipped_bit_of_ofa_json_is_noticed(folder, bit):
    content = (folder / "ofa.json").read_bytes()
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        (folder / "ofa.json").write_bytes(flipped)
        try:
            same = json.loads(flipped) == json.loads(content)
        except ValueError:
            same = False
        if not same:  # white space may change
            with pytest.raises(CheckpointError, match=r"ofa\.json"):
                read_bundle(folder)


def test_edited_settings_are_noticed(folder):
    content = json.loads((folder / "ofa.json").read_text())
    content["adapters"]["alpha"] = 17
    (folder / "ofa.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"ofa\.json: was edited after it was saved"):
        read_bundle(folder)


def test_a_number_beyond_float64_is_noticed(folder):
    text = (folder / "ofa.json").read_text()
    (folder / "ofa.json").write_text(text.replace('"name": "forecast"', '"name": 1e999'))
    with pytest.raises(CheckpointError, match=r"ofa\.json: was edited after it was saved"):
        read_bundle(folder)


def test_a_newer_format_is_refused_by_name(folder):
    content = json.loads((folder / "ofa.json").read_text())
    (folder / "ofa.json").write_text(json.dumps(content | {"format": BUNDLE_FORMAT + 1}))
    newer = BUNDLE_FORMAT + 1
    named = rf"ofa\.json: format {newer} is newer than this version of ofa-jax reads \({BUNDLE_FORMAT}\)"
    with pytest.raises(CheckpointError, match=named):
        read_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        *({"use_rslora": False}, {"lora_alpha": 32}, {"r": 6}, {"lora_dropout": 0.5}),
        *({"target_modules": ["wpe"]}, {"peft_version": "9"}),
    ],
)
def test_any_edit_of_the_adapter_config_is_noticed(folder, change):
    edit(folder, change)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is not the file that was saved"):
        read_bundle(folder)


def sign(folder: Path, content: dict) -> None:
    """Write ``ofa.json`` with a digest that fits, so that nothing but its fields can be wrong."""
    content = {key: value for key, value in content.items() if key not in ("format", "sha256")}
    (folder / "ofa.json").write_text(json.dumps({"format": 1, **content, "sha256": json_digest(content)}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "trained.safetensors"])
def test_numbers_that_are_not_finite_are_refused(folder, name, value):
    tensors = load_file(folder / name)
    next(iter(tensors.values())).ravel()[-1] = value
    save_file(tensors, folder / name)
    content = json.loads((folder / "ofa.json").read_text())
    content["files"] = {file: sha256_file(folder / file) for file in FILES}
    sign(folder, content)
    with pytest.raises(OfaError, match=rf"{name}: .* is not finite"):
        read_bundle(folder)


WRONG = [None, True, -1, 10**19, 1e15, "x", "NaN", [], [1], {}, {"x": 1}, ["a", None]]
"""Values of every JSON type, and numbers far out of range."""


def places(node, path=()):
    """Every field below a JSON object, the elements of lists included."""
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield (*path, key)
            yield from places(child, (*path, key))


def replaced(content, path, value):
    content = copy.deepcopy(content)
    node = content
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return content


def test_a_wrong_value_anywhere_in_ofa_json_is_one_clear_error(folder):
    """Signed, so that the fields themselves are checked."""
    content = json.loads((folder / "ofa.json").read_text())
    refusals = []
    for path in places(content):
        if path[0] in ("settings", "sha256", "format"):  # settings are checked where an experiment is built
            continue
        for value in [..., *WRONG]:
            sign(folder, replaced(content, path, value))
            try:
                read_bundle(folder)
            except OfaError as error:
                refusals.append(str(error))
    assert len(refusals) > 400
    assert all("ofa.json: " in text or "bundle: " in text for text in refusals)


@pytest.mark.parametrize(
    "change",
    [
        {"scaler": {"names": ["a"], "mean": [1e15], "std": [2.5], "constant": []}},
        {"scaler": {"names": ["a"], "mean": [1.0], "std": [0.0], "constant": []}},
        {"scaler": {"names": ["a"], "mean": [1.0], "std": [1e300], "constant": []}},
        {"scaler": {"names": ["a", "b"], "mean": [1.0], "std": [1.0], "constant": []}},
        {"files": {"../outside.safetensors": "0" * 64}},
        {"files": {}},
        {"adapters": None},
        {"season": 10**19},
        {"settings": {"x": float("inf")}},
    ],
)
def test_values_that_would_fail_later_are_refused(folder, change):
    sign(folder, json.loads((folder / "ofa.json").read_text()) | change)
    with pytest.raises(CheckpointError, match=r"ofa\.json: "):
        read_bundle(folder)


NOT_RECORDS = {
    "empty": b"",
    "list": b"[]",
    "object": b"{}",
    "words": b"not json",
    "bytes": bytes(range(256)),
    "NaN": b'{"format": NaN}',
    "infinity": b'{"format": 1, "season": Infinity}',
    "beyond float64": b'{"format": 1, "season": 1e999}',
    "many digits": b'{"format": ' + b"9" * 10_000 + b"}",
    "text for a number": b'{"format": "1"}',
    "only a format": b'{"format": 1}',
    "deep": b"[" * 10_000,
    "deep objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "lone surrogate": rb'{"format": 1, "kind": "\ud800"}',
}


@pytest.mark.parametrize("name", ["ofa.json", "adapter_config.json"])
@pytest.mark.parametrize("content", NOT_RECORDS)
def test_content_that_is_no_record_is_one_clear_error(folder, name, content):
    (folder / name).write_bytes(NOT_RECORDS[content])
    with pytest.raises(OfaError, match=re.escape(name)):
        read_bundle(folder)


@pytest.mark.slow
def test_the_bundle_of_the_published_shape_is_small(tmp_path, bundle_meta):
    """546,304 adapter parameters, at most 2.3 MB on disk with all files of the folder."""
    experiment = load_experiment("long/etth1", ["trunk.source=random"])
    model = build_model(experiment)
    written = {"settings": dump_experiment(experiment), "frozen": frozen_record(model, 0)}
    write_bundle(
        tmp_path / "bundle",
        adapters=model.trainable["adapters"],
        targets=model.targets,
        trained={},
        lora=model.lora,
        meta=bundle_meta | written,
    )
    assert 4 * 546_304 < sum(file.stat().st_size for file in (tmp_path / "bundle").iterdir()) <= 2_300_000

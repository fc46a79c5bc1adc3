import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ofa_jax.errors import CheckpointError, OfaError
from ofa_jax.files import json_digest, sha256_file
from ofa_jax.train import checkpoints
from ofa_jax.train.checkpoints import Checkpoints

META = {"position": 1234, "epoch": 3, "best": 0.1 + 0.2, "metrics_bytes": 0, "stopped": None}


def state(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    trainable = {
        "transformer/wpe": {"a": jnp.zeros((4, 2)), "b": jnp.asarray(rng.normal(size=(2, 6)), jnp.float32)},
        "out_layer": {
            "a": jnp.asarray(rng.normal(size=(6, 2)), jnp.float32),
            "b": jnp.full((2, 3), np.float32(-0.0)),
        },
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.constant_schedule(1e-3)))
    _, moved = optimizer.update(jax.tree.map(lambda leaf: leaf + 0.125, trainable), optimizer.init(trainable))
    return {
        "trainable": trainable,
        "optimizer": moved,
        "best": jax.tree.map(np.asarray, trainable),
        "key": jax.random.key_data(jax.random.key(seed)),
        "step": jnp.asarray(7, jnp.int32),
        "odd": [np.float32(np.nan), np.array([1, -2], np.int64), jnp.ones((2,), jnp.bfloat16)],
        "none": None,
    }


def shapes(tree: dict) -> dict:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf, tree
    )


def assert_same_bits(found: object, expected: object) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    store = Checkpoints(folder)
    store.save(10, state(10), META | {"epoch": 1})
    store.save(20, state(20), META | {"epoch": 2})
    return folder


@pytest.fixture
def folder(two_saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_saved, tmp_path / "checkpoints"))


def files_of(folder: Path, step: int) -> list[Path]:
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file())


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def test_round_trip_keeps_every_bit(folder: Path) -> None:
    restored = Checkpoints(folder).restore(shapes(state()))
    assert restored is not None
    assert (restored.step, restored.meta, restored.skipped) == (20, META | {"epoch": 2}, ())
    assert_same_bits(restored.arrays, state(20))
    assert type(restored.arrays["optimizer"][1][0]).__name__ == "ScaleByAdamState"
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored.arrays))


def test_nothing_saved_restores_nothing(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "none")
    assert store.restore(shapes(state())) is None
    assert store.steps() == []
    assert not (tmp_path / "none").exists()


def test_only_the_newest_stay_and_a_step_can_be_saved_again(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    for step in (9, 10, 100):
        store.save(step, {"a": np.float32(step)}, {})
    store.save(100, {"a": np.float32(-1)}, {"again": True})
    assert store.steps() == [10, 100]
    assert entries(tmp_path) == {"10", "100"}
    restored = store.restore({"a": np.float32(0)})
    assert restored is not None
    assert (restored.arrays["a"], restored.meta) == (np.float32(-1), {"again": True})


def test_meta_that_is_no_json_is_refused(folder: Path) -> None:
    store = Checkpoints(folder)
    with pytest.raises(CheckpointError, match="not a JSON object"):
        store.save(30, state(), {"best": float("inf")})
    assert entries(folder) == {"10", "20"}


def assert_passed_over(folder: Path, reason: str) -> None:
    store = Checkpoints(folder)
    restored = store.restore(shapes(state()))
    assert restored is not None
    assert (restored.step, restored.meta["epoch"]) == (10, 1)
    assert_same_bits(restored.arrays, state(10))
    (sentence,) = restored.skipped
    assert sentence.startswith("checkpoint 20 was skipped: ")
    assert reason in sentence
    assert sentence.endswith("; it is now in damaged-20")
    assert entries(folder) == {"10", "damaged-20"}


def test_a_flipped_bit_in_any_file_is_noticed(folder: Path, two_saved: Path) -> None:
    names = [path.relative_to(two_saved) for path in files_of(two_saved, 20)]
    assert len(names) > 5
    for name in names:
        shutil.rmtree(folder)
        shutil.copytree(two_saved, folder)
        flip(folder / name, (folder / name).stat().st_size // 2)
        assert_passed_over(folder, name.name)


def test_a_flipped_bit_anywhere_in_the_record_is_noticed(folder: Path) -> None:
    record = folder / "20" / "checkpoint.json"
    whole = record.read_bytes()
    for place in range(0, len(whole), 7):
        record.write_bytes(whole)
        flip(record, place, place % 8)
        with pytest.raises(checkpoints._Damage, match=r"checkpoint\.json"):
            checkpoints._read_record(folder / "20")
    record.write_bytes(whole)
    assert checkpoints._read_record(folder / "20").step == 20


def test_a_truncated_or_missing_file_is_noticed(folder: Path, two_saved: Path) -> None:
    for name in [path.relative_to(two_saved) for path in files_of(two_saved, 20)]:
        for spoil in (
            lambda path: os.truncate(path, path.stat().st_size // 2),
            lambda path: os.truncate(path, 0),
            os.unlink,
        ):
            shutil.rmtree(folder)
            shutil.copytree(two_saved, folder)
            spoil(folder / name)
            assert_passed_over(folder, name.name)


def test_the_emptied_and_the_renamed_folder_are_noticed(folder: Path) -> None:
    for path in (folder / "20").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(folder / "10", folder / "30")
    store = Checkpoints(folder)
    restored = store.restore(shapes(state()))
    assert restored is not None
    assert restored.step == 10
    assert [sentence.split(";")[0] for sentence in restored.skipped] == [
        "checkpoint 30 was skipped: it was saved as step 10",
        "checkpoint 20 was skipped: checkpoint.json: there is no checkpoint.json here",
    ]


def test_a_deleted_checkpoint_leaves_the_one_before(folder: Path) -> None:
    shutil.rmtree(folder / "20")
    restored = Checkpoints(folder).restore(shapes(state()))
    assert restored is not None
    assert (restored.step, restored.skipped) == (10, ())


def test_a_damaged_step_can_be_saved_again_and_damage_is_kept(folder: Path) -> None:
    for name in ("damaged-20", "damaged-20-2"):
        (folder / "20" / "checkpoint.json").unlink()
        store = Checkpoints(folder)
        restored = store.restore(shapes(state()))
        assert restored is not None
        assert restored.skipped[0].endswith(name)
        store.save(20, state(20), META)
    again = store.restore(shapes(state()))
    assert again is not None
    assert (again.step, again.skipped) == (20, ())
    assert entries(folder) == {"10", "20", "damaged-20", "damaged-20-2"}


def test_all_damaged_is_an_error_that_names_each_and_moves_none(folder: Path) -> None:
    (folder / "20" / "checkpoint.json").unlink()
    flip(folder / "10" / "arrays" / "manifest.ocdbt", 20)
    each = r"20 \(.* no checkpoint\.json here\); 10 \(arrays/manifest.ocdbt .*\)"
    with pytest.raises(CheckpointError, match=f"every checkpoint is damaged: {each}"):
        Checkpoints(folder).restore(shapes(state()))
    assert entries(folder) == {"10", "20"}


def test_only_damaged_ones_left_is_not_a_fresh_start(folder: Path) -> None:
    (folder / "20" / "checkpoint.json").unlink()
    store = Checkpoints(folder)
    store.restore(shapes(state()))
    shutil.rmtree(folder / "10")
    with pytest.raises(CheckpointError, match=r"damaged-20 \(renamed earlier\)"):
        store.restore(shapes(state()))


def test_another_structure_is_another_experiment(folder: Path) -> None:
    like = shapes(state())
    like["trainable"]["out_layer"]["b"] = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    like["key"] = jax.ShapeDtypeStruct((2,), jnp.int32)
    del like["trainable"]["transformer/wpe"]
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(folder).restore(like)
    message = str(caught.value)
    assert "another experiment" in message
    assert "`trainable/out_layer/b` is float32[2, 3] here and float32[2, 4] in this run" in message
    assert "`key` is uint32[2] here and int32[2] in this run" in message
    assert "`trainable/transformer/wpe/a` is float32[4, 2] here and absent in this run" in message
    assert entries(folder) == {"10", "20"}


def rewrite(record: Path, **changes: object) -> None:
    content = json.loads(record.read_text()) | changes
    del content["digest"]
    record.write_text(json.dumps(content | {"digest": json_digest(content)}))


def test_a_newer_format_is_refused_by_name(folder: Path) -> None:
    rewrite(folder / "20" / "checkpoint.json", format=3)
    with pytest.raises(CheckpointError, match=r"format 3 is newer than this version of ofa-jax reads \(2\)"):
        Checkpoints(folder).restore(shapes(state()))
    assert entries(folder) == {"10", "20"}


def test_format_1_is_read_and_verified(folder: Path) -> None:
    """It had a sha256 per leaf besides, and its digest was over JSON without spaces."""
    record = folder / "20" / "checkpoint.json"
    content = json.loads(record.read_text()) | {"format": 1}
    del content["digest"]
    content["leaves"] = [leaf | {"sha256": "0" * 64} for leaf in content["leaves"]]
    compact = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["digest"] = hashlib.sha256(compact.encode()).hexdigest()
    record.write_text(json.dumps(content))
    restored = Checkpoints(folder).restore(shapes(state()))
    assert restored is not None
    assert_same_bits(restored.arrays, state(20))
    flip(folder / "20" / "arrays" / "manifest.ocdbt", 20)
    assert_passed_over(folder, "arrays/manifest.ocdbt is not the file that was saved")


@pytest.mark.parametrize("field", ["step", "meta", "leaves", "files", "format"])
@pytest.mark.parametrize("value", [None, "x", -1, 1e300, [[]], {"a": 1}])
def test_a_signed_record_with_a_wrong_value_is_one_clear_error(
    folder: Path, field: str, value: object
) -> None:
    if (field, value) == ("meta", {"a": 1}):
        value = [1]
    rewrite(folder / "20" / "checkpoint.json", **{field: value})
    with pytest.raises(CheckpointError, match=rf"checkpoint\.json: {field}"):
        Checkpoints(folder).restore(shapes(state()))


def test_files_outside_the_folder_are_not_read(folder: Path) -> None:
    rewrite(folder / "20" / "checkpoint.json", files={"../10/checkpoint.json": "0" * 64})
    assert_passed_over(folder, "../10/checkpoint.json is outside the folder")


def test_orbax_failing_on_whole_files_is_no_damage(folder: Path) -> None:
    victim = folder / "20" / "arrays" / "_METADATA"
    record = folder / "20" / "checkpoint.json"
    victim.write_text("{}")
    files = json.loads(record.read_text())["files"]
    rewrite(record, files=files | {"arrays/_METADATA": sha256_file(victim)})
    with pytest.raises(CheckpointError, match="orbax cannot read a checkpoint whose files are intact"):
        Checkpoints(folder).restore(shapes(state()))
    assert entries(folder) == {"10", "20"}


def test_leftovers_of_interrupted_saves_are_cleared(folder: Path, two_saved: Path) -> None:
    shutil.copytree(two_saved / "20" / "arrays", folder / ".30.abc123.ofa-tmp" / "arrays.partial")
    shutil.copytree(two_saved / "10", folder / ".5.discarded.ofa-tmp")
    (folder / "20").rename(folder / ".20.ofa-old")
    (folder / ".20.xyz.ofa-tmp").mkdir()
    (folder / ".keep").write_text("not ours")
    assert Checkpoints(folder).steps() == [10, 20]
    assert entries(folder) == {"10", "20", ".keep"}


def test_a_save_that_fails_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Checkpoints(folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.files, "write_json", full)
    for step in (20, 30):
        with pytest.raises(OfaError, match=r"no space left on the disk or quota: 652 bytes are needed"):
            store.save(step, state(1), META)
    monkeypatch.undo()
    restored = store.restore(shapes(state()))
    assert restored is not None
    assert restored.step == 20
    assert_same_bits(restored.arrays, state(20))
    assert entries(folder) == {"10", "20"}


@pytest.mark.parametrize("where", ["checkpoint.json", "arrays"])
def test_a_checkpoint_that_cannot_be_read_is_neither_skipped_nor_renamed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refused(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    if where == "arrays":
        monkeypatch.setattr(checkpoints.files, "sha256_file", refused)
    else:
        monkeypatch.setattr(checkpoints.files, "open", refused, raising=False)
    with pytest.raises(CheckpointError, match=r"20/.*cannot be read \(Permission denied\)"):
        Checkpoints(folder).restore(shapes(state()))
    monkeypatch.undo()
    assert entries(folder) == {"10", "20"}


def test_nothing_reaches_the_terminal(folder: Path) -> None:
    code = """
import sys, numpy as np
from pathlib import Path
from ofa_jax.train.checkpoints import Checkpoints
store = Checkpoints(Path(sys.argv[1]))
like = {"a": np.zeros((3, 2), np.float32)}
for step in (10, 20):
    store.save(step, like, {})
(Path(sys.argv[1]) / "20" / "checkpoint.json").unlink()
assert store.restore(like).step == 10
store.save(20, like, {})

import warnings
from absl import logging
from ofa_jax.train.checkpoints import _orbax
with _orbax():
    logging.error("orbax speaks through this logger")
    warnings.warn("and through warnings", stacklevel=1)
"""
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code, str(folder / "new")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


ENDLESS_SAVES = """
import sys, numpy as np
from pathlib import Path
from ofa_jax.train.checkpoints import Checkpoints
store = Checkpoints(Path(sys.argv[1]))
like = {"a": np.zeros((300, 200), np.float32), "b": np.zeros((), np.int32)}
found = store.restore(like)
step = 0 if found is None else found.step
while True:
    step += 1
    store.save(step, {"a": np.full((300, 200), step, np.float32), "b": np.int32(step)}, {"step": step})
    store.save(step, {"a": np.full((300, 200), step, np.float32), "b": np.int32(step)}, {"step": step})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_whole_checkpoints(tmp_path: Path) -> None:
    like = {"a": np.zeros((300, 200), np.float32), "b": np.zeros((), np.int32)}
    moments = random.Random(2021)
    for _ in range(6):
        command = [sys.executable, "-c", ENDLESS_SAVES, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            time.sleep(moments.uniform(0.0, 0.3))
            process.kill()
            announced = [int(line) for line in process.stdout.read().split()]
            assert process.stderr.read() == ""
        restored = Checkpoints(tmp_path).restore(like)
        assert restored is not None
        assert restored.skipped == ()
        assert restored.step >= max(announced, default=1)
        assert restored.meta == {"step": restored.step}
        assert_same_bits(
            restored.arrays,
            {"a": np.full((300, 200), restored.step, np.float32), "b": np.int32(restored.step)},
        )
        assert all(name.isdigit() for name in entries(tmp_path))

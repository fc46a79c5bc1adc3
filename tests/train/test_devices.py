"""Many devices, the numbers of one: ten steps of a real configuration with dropout, in every layout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ofa_jax.config.load import build_experiment
from ofa_jax.errors import ConfigError
from ofa_jax.train.devices import SINGLE, frozen_sharding, make_layout, put

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
TOLERANCE = 2e-5
"""Of a leaf's largest number: float32 sums in another order over ten steps of Adam."""

LAYOUTS = ("jit1", "jit8", "pmap4", "jit4-fsdp2", "jit8-fsdp4-micro9", "jit1-micro7", "pmap4-micro7")


def assert_same(
    found: dict[str, Any], name: str, reference: dict[str, Any], of: str, tolerance: float = TOLERANCE
) -> None:
    """The losses, trained leaves and validation sums of two layouts of ten_steps.py."""
    parts = [
        key.removeprefix(f"{of}/")
        for key in reference
        if key.startswith(f"{of}/") and "frozen" not in key and "fetched" not in key
    ]
    assert sum("trained" in part for part in parts) == 4
    assert "losses" in parts
    for part in parts:
        one, other = found[f"{name}/{part}"], reference[f"{of}/{part}"]
        assert np.ptp(other) > 0 or "count" in part
        np.testing.assert_allclose(
            one, other, rtol=0, atol=tolerance * np.abs(other).max(), err_msg=f"{name}/{part}"
        )


@pytest.fixture(scope="module")
def ten_steps(tmp_path_factory) -> dict[str, Any]:
    """What ten_steps.py found for every layout, with eight simulated devices."""
    out = tmp_path_factory.mktemp("steps") / "found.npz"
    script = Path(__file__).parent / "ten_steps.py"
    done = subprocess.run(
        [sys.executable, script, out, *LAYOUTS],
        env=os.environ | EIGHT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return dict(np.load(out))


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS[1:])
def test_every_layout_gives_the_numbers_of_one_device(ten_steps, name):
    assert_same(ten_steps, name, ten_steps, "jit1")


EVALUATE = """
import sys
sys.path[:0] = sys.argv[1:2]
from conftest import Tiny
from ofa_jax.tasks.forecast import prepare_frame
from ofa_jax.build import build_model
from ofa_jax.train.evaluate import WindowPredictor

tiny = Tiny()
experiment = tiny.experiment("unused")
task = prepare_frame(tiny.frame(rows=4000), experiment.data, experiment.task).task
model = build_model(experiment)
evaluator = WindowPredictor(model.predict, task, task.sums, batch_size=8)
for _ in range(2):
    print(len(evaluator(task.tables["train"], model.frozen, model.trainable)["count"]))
"""


@pytest.mark.slow  # many seconds of small batches
def test_many_small_evaluation_batches_end():
    """With all of them under way at once, eight devices on two cores waited for each other forever."""
    words = [sys.executable, "-c", EVALUATE, Path(__file__).parents[1]]
    done = subprocess.run(
        words, env=os.environ | EIGHT, capture_output=True, text=True, timeout=120, check=True
    )
    counts = [int(line) for line in done.stdout.split()]
    assert counts[0] == counts[1] > 2000


@pytest.mark.slow
def test_large_frozen_leaves_are_sharded(ten_steps):
    whole = ten_steps["jit1/frozen_bytes"]
    assert ten_steps["jit8/frozen_bytes"] == ten_steps["pmap4/frozen_bytes"] == whole
    assert ten_steps["jit4-fsdp2/frozen_bytes"] < 0.52 * whole  # vectors and small matrices stay in one piece
    assert ten_steps["jit8-fsdp4-micro9/frozen_bytes"] < 0.28 * whole
    # fetched before the loop over steps, they would be complete on every device all the same
    assert ten_steps["jit4-fsdp2/fetched_in_the_loop"] > 0
    assert ten_steps["jit4-fsdp2/fetched_before_it"] == 0


def test_one_device_is_plain_jit():
    layout = make_layout("pmap")
    assert layout == make_layout() == SINGLE
    placed = layout.place({"a": np.ones(3, np.float32)})["a"]
    assert isinstance(placed.sharding, jax.sharding.SingleDeviceSharding)
    assert not placed.committed


def test_more_parts_than_devices_are_refused():
    with pytest.raises(
        ConfigError, match=r"train\.fsdp: 3 does not divide the 1 device of this run\. Use a divisor"
    ):
        make_layout(fsdp=3)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.micro_batch=257", r"micro_batch 257 is larger than batch_size 256"),
        (
            "train.micro_batch=0",
            r"train\.micro_batch: input should be greater than or equal to 1 \(found 0\)",
        ),
        ("train.fsdp=0", r"train\.fsdp: input should be greater than or equal to 1 \(found 0\)"),
        ("train.parallel=both", r"train\.parallel: input should be 'jit' or 'pmap' \(found 'both'\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        build_experiment({"data": {"source": "etth1"}}, [override])


def test_shared_frozen_leaves_need_jit():
    with pytest.raises(ConfigError, match="fsdp is 2, but pmap cannot shard parameters; use parallel jit"):
        build_experiment({"data": {"source": "etth1"}}, ["train.parallel=pmap", "train.fsdp=2"])


def test_a_leaf_is_shared_out_along_its_longest_axis_that_divides():
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "fsdp"))
    spec = {
        shape: tuple(frozen_sharding(mesh, shape).spec)
        for shape in [(768, 2304), (2304, 768), (770, 768), (768,), (771, 769), (64, 96)]
    }
    assert spec == {
        (768, 2304): (None, "fsdp"),
        (2304, 768): ("fsdp",),
        (770, 768): (None, "fsdp"),
        (768,): (),
        (771, 769): (),  # neither divides by 4
        (64, 96): (),  # small
    }


def test_leaves_of_every_kind_are_placed():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key = jax.random.key(3, impl="threefry2x32")
    placed = {
        name: put(leaf, whole)
        for name, leaf in {"host": np.arange(3), "device": jax.numpy.ones(2), "key": key}.items()
    }
    assert all(leaf.sharding == whole for leaf in placed.values())
    assert placed["key"].dtype == key.dtype
    np.testing.assert_array_equal(jax.random.key_data(placed["key"]), jax.random.key_data(key))
    assert put(placed["device"], whole) is placed["device"]


RESUME = """
import sys, signal, pathlib, numpy as np, jax
sys.path[:0] = sys.argv[1:3]
from conftest import Tiny
from test_resume import Listener
from ofa_jax.errors import Interrupted
from ofa_jax.model.trees import flatten
from ofa_jax.tasks.forecast import prepare_frame
from ofa_jax.build import build_model
from ofa_jax.train.checkpoints import Checkpoints
from ofa_jax.train.fit import fit
from ofa_jax.train.devices import make_layout
from ofa_jax.train import loop

loop.DISPATCH_SECONDS = float("inf")  # chunks of the setting's length
tiny, out = Tiny(), pathlib.Path(sys.argv[3])
dropout = ("trunk.dropout=0.1", "adapters.dropout=0.1")
experiment = tiny.experiment("unused", "train.batch_size=30", *dropout, "train.epochs=2")
task = prepare_frame(tiny.frame(), experiment.data, experiment.task).task
model = build_model(experiment)

def run(folder, kind, devices, listener):
    return fit(
        model.predict, task, frozen=model.frozen, trainable=model.trainable, settings=experiment.train,
        reporter=listener, checkpoints=Checkpoints(out / folder), layout=make_layout(kind,
        devices=jax.devices()[:devices]),
    )

undisturbed = run("undisturbed", "jit", 4, Listener())
try:
    run("resumed", "jit", 4, Listener(after_chunks=2))
    raise SystemExit("it was not stopped")
except Interrupted as stop:
    assert stop.step == 6
for step, kind, devices in ((9, "jit", 2), (12, "pmap", 2)):
    try:
        run("resumed", kind, devices, Listener(after_chunks=1))
        raise SystemExit("it was not stopped")
    except Interrupted as stop:
        assert stop.step == (7 if step == 9 else 10), stop.step
resumed = run("resumed", "jit", 1, Listener())
np.savez(out / "undisturbed.npz", loss=undisturbed.progress.best, **flatten(undisturbed.best))
np.savez(out / "resumed.npz", loss=resumed.progress.best, **flatten(resumed.best))
"""


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(tmp_path):
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RESUME, here, here.parent, tmp_path],
        env=os.environ | EIGHT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    resumed, undisturbed = np.load(tmp_path / "resumed.npz"), np.load(tmp_path / "undisturbed.npz")
    assert set(resumed) == set(undisturbed)
    assert len(set(resumed)) == 5
    for name in resumed:
        np.testing.assert_allclose(
            resumed[name], undisturbed[name], rtol=0, atol=TOLERANCE * np.abs(undisturbed[name]).max()
        )

"""Statistics of gradients: what lines say, and that neither chunks nor interruptions change one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ofa_jax.build import build_model
from ofa_jax.config.load import build_experiment
from ofa_jax.errors import ConfigError, Interrupted
from ofa_jax.model.trees import flatten
from ofa_jax.runs.train import train_run
from ofa_jax.tasks.forecast import prepare_frame
from ofa_jax.train.events import EventLog, read_events
from ofa_jax.train.grad_stats import LARGEST, as_json, log_fields, with_grad_stats
from ofa_jax.train.lanes import Lane
from ofa_jax.train.loop import Trainer
from ofa_jax.train.program import Program
from ofa_jax.train.progress import SilentReporter
from ofa_jax.windows.batch import gather

LEAVES = {"gpt2/wpe/a", "gpt2/wpe/b", "out_layer/a", "out_layer/b"}
STILL = ("trunk.dropout=0", "adapters.dropout=0")


def trainer_of(tiny: Any, log: Path | None, *overrides: str) -> Trainer:
    experiment = tiny.experiment("unused", *overrides)
    task = prepare_frame(tiny.frame(), experiment.data, experiment.task).task
    model = build_model(experiment)
    program = Program(model.predict, task, model.frozen, experiment.train)
    return Trainer(program, [Lane(model.trainable, experiment.train.seed, log=EventLog(log))])


def lines(path: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(path) if event["event"] == "gradient"]


@pytest.mark.slow
def test_a_line_says_what_plain_gradients_and_updates_say(tiny, tmp_path):
    """Against four steps of optax by hand, with a limit that clips some of them."""
    trainer = trainer_of(tiny, tmp_path / "log", *STILL, "train.gradient_log=4", "train.clip_norm=17")
    model = build_model(tiny.experiment("unused", *STILL))
    task, settings = trainer.task, trainer.settings
    optimizer = optax.chain(optax.clip_by_global_norm(17), optax.adam(settings.learning_rate, eps=1e-8))

    def mean(trainable: Any, batch: Any) -> jax.Array:
        total, count = task.loss(model.predict(model.frozen, trainable, batch.x, batch.x_mask), batch)
        return total / count

    @jax.jit
    def step(trainable: Any, state: Any, index: jax.Array) -> Any:
        gradient = jax.grad(mean)(
            trainable, gather(jnp.asarray(task.buffer), task.tables["train"], index, task.spec)
        )
        updates, state = optimizer.update(gradient, state, trainable)
        return gradient, updates, optax.apply_updates(trainable, updates), state

    trainable, state = model.trainable, optimizer.init(model.trainable)
    gradients, ratios, clipped = [], [], []
    for index in trainer.streams[0].batches(0, 4):
        gradient, updates, trainable, state = step(trainable, state, jnp.asarray(index))
        gradients.append({path: np.linalg.norm(leaf) for path, leaf in flatten(gradient["adapters"]).items()})
        after = flatten(trainable["adapters"])
        ratios.append(
            {
                path: np.linalg.norm(leaf) / np.linalg.norm(after[path])
                for path, leaf in flatten(updates["adapters"]).items()
            }
        )
        clipped.append(float(optax.tree.norm(gradient)) >= 17)
    assert clipped == [True, False, False, True]
    for steps in (3, 1):
        trainer.run_chunk(steps)
    (found,) = lines(tmp_path / "log")
    assert (found["step"], found["epoch"], found["clip_rate"]) == (4, 1, sum(clipped) / 4)
    assert found["modules"].keys() == LEAVES
    for path, numbers in found["modules"].items():
        for name, rows in (("gradient_norm", gradients), ("update_ratio", ratios)):
            # four steps of Adam, which passes small gradients' rounding on
            assert numbers[name] == pytest.approx(
                np.sqrt(np.mean([row[path] ** 2 for row in rows])), rel=1e-3
            ), (path, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [pytest.param((), marks=pytest.mark.slow), ("train.micro_batch=10", "train.clip_norm=0.5")]
)
def test_watching_changes_no_bit(tiny, tmp_path, overrides):
    plain, watched = (trainer_of(tiny, None, *overrides, *more) for more in ((), ("train.gradient_log=3",)))
    for steps in (3, 3, 1):
        plain.run_chunk(steps)
        watched.run_chunk(steps)
    assert plain.lanes[0].progress.logged_loss == watched.lanes[0].progress.logged_loss != 0
    assert watched.state.opt_state.sums[0, 0] == 1  # steps since the line at 6
    state = watched.state._replace(opt_state=watched.state.opt_state.inner)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(plain.state), strict=True):
        np.testing.assert_array_equal(np.asarray(one).view(np.uint32), np.asarray(other).view(np.uint32))


@pytest.mark.slow
def test_lines_do_not_depend_on_chunks_and_interruptions(tiny, tmp_path):
    from test_resume import Listener

    source = tiny.csv(tmp_path / "tiny.csv")
    common = ("train.gradient_log=5", "train.epochs=2")
    train_run(tiny.experiment(source, *common), tmp_path / "whole", SilentReporter())
    whole = lines(tmp_path / "whole" / "metrics.jsonl")
    assert [(line["step"], line["epoch"]) for line in whole] == [(5, 1), (10, 2)]  # seven steps an epoch
    assert all(line["clip_rate"] is None for line in whole)
    with pytest.raises(Interrupted):
        train_run(
            tiny.experiment(source, *common), tmp_path / "cut", Listener(after_chunks=3)
        )  # after 7 steps
    train_run(tiny.experiment(source, *common, "train.chunk=2"), tmp_path / "cut", SilentReporter())
    assert lines(tmp_path / "cut" / "metrics.jsonl") == whole


@pytest.mark.slow
def test_it_may_be_switched_while_a_run_goes_on(tiny, tmp_path):
    from test_resume import Listener

    source, run = tiny.csv(tmp_path / "tiny.csv"), tmp_path / "run"
    for setting, step in (("5", 3), ("null", 6)):
        with pytest.raises(Interrupted) as stopped:
            train_run(tiny.experiment(source, f"train.gradient_log={setting}"), run, Listener(after_chunks=1))
        assert stopped.value.step == step
    train_run(tiny.experiment(source, "train.gradient_log=4"), run, SilentReporter())
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == [8, 12, 16, 20]


@pytest.mark.slow
def test_trained_leaves_are_named_by_their_own_path(tiny, tmp_path):
    trainer = trainer_of(tiny, tmp_path / "log", "train.gradient_log=1", "recipe=gpt4ts")
    trainer.run_chunk(1)
    names = lines(tmp_path / "log")[0]["modules"].keys()
    assert names == flatten(trainer.trainable(0)["base"]).keys()
    assert {"gpt2/ln_f/scale", "gpt2/wpe/embedding", "out_layer/bias"} <= names


def test_numbers_that_are_not_finite_are_null():
    sums = as_json(np.array([3, 1, np.inf, 0.5 + 1], np.float32))
    assert json.loads(json.dumps(sums, allow_nan=False)) == sums == [3, 1, LARGEST, 1.5]
    assert as_json(np.array([np.nan], np.float32)) == [LARGEST]
    wanted = {"gradient_norm": None, "update_ratio": pytest.approx(np.sqrt(0.5))}
    assert log_fields(sums, {"w": 0}, 1.0) == {"clip_rate": pytest.approx(1 / 3), "modules": {"w": wanted}}
    assert log_fields(sums, {"w": 0}, None)["clip_rate"] is None


def test_a_leaf_of_zeros_that_stays_so_has_ratio_zero():
    ones = {"w": jnp.ones(3)}
    for update, ratio in ((0, 0), (1, 1)):
        optimizer = with_grad_stats(
            optax.stateless(lambda gradient, params, by=update: {"w": jnp.full(3, by)}), None
        )
        params = {"w": jnp.zeros(3)}
        _, state = optimizer.update(ones, optimizer.init(params), params)
        np.testing.assert_array_equal(state.sums, [1, 0, 3, ratio])


def test_a_setting_below_one_is_refused():
    with pytest.raises(
        ConfigError, match=r"train\.gradient_log: input should be greater than or equal to 1 \(found 0\)"
    ):
        build_experiment({"data": {"source": "etth1"}}, ["train.gradient_log=0"])


DEVICES = """
import sys, json, pathlib, jax, numpy as np
sys.path[:0] = sys.argv[1:3]
from conftest import Tiny
from test_grad_stats import lines
from ofa_jax.tasks.forecast import prepare_frame
from ofa_jax.build import build_model
from ofa_jax.train.events import EventLog
from ofa_jax.train.devices import make_layout
from ofa_jax.train.lanes import Lane
from ofa_jax.train.loop import Trainer
from ofa_jax.train.program import Program

tiny, out = Tiny(), pathlib.Path(sys.argv[3])
layouts = [("jit", 1, 1, None), ("jit", 4, 2, None), ("pmap", 4, 1, None)]
layouts += [("jit", 2, 1, 7), ("pmap", 2, 1, 7)]
for kind, devices, fsdp, micro in layouts:
    micro = [f"train.micro_batch={micro}"] * (micro is not None)
    parallel = [f"train.parallel={kind}", f"train.fsdp={fsdp}", *micro]
    experiment = tiny.experiment("unused", "train.gradient_log=3", "train.clip_norm=17", *parallel)
    settings = experiment.train
    task, model = prepare_frame(tiny.frame(), experiment.data, experiment.task).task, build_model(experiment)
    layout = make_layout(kind, fsdp, jax.devices()[:devices])
    program = Program(model.predict, task, model.frozen, settings, layout=layout)
    log = EventLog(out / f"{kind}{devices}-{len(micro)}")
    trainer = Trainer(program, [Lane(model.trainable, settings.seed, log=log)])
    trainer.run_chunk(3)
"""


def assert_same_lines(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert expected
    assert [(line["step"], line["clip_rate"]) for line in found] == [
        (line["step"], line["clip_rate"]) for line in expected
    ]
    for one, other in zip(found, expected, strict=True):
        assert one["modules"].keys() == other["modules"].keys()
        for path, numbers in other["modules"].items():
            assert one["modules"][path] == pytest.approx(
                numbers, rel=1e-3
            )  # float32 sums in another order, passed on by Adam


@pytest.mark.slow
def test_every_layout_of_devices_tells_the_same(tmp_path):
    here = Path(__file__).parent
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DEVICES, here, here.parent, tmp_path],
        env=os.environ | flags | {"PYTHONPATH": str(here)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    logs = sorted(path.name for path in tmp_path.iterdir())
    assert len(logs) == 5
    for name in logs:
        assert_same_lines(lines(tmp_path / name), lines(tmp_path / "jit1-0"))


@pytest.mark.slow
def test_two_processes_tell_the_same_as_one(tiny, tmp_path):
    from test_processes import whole

    config = tiny.config(tmp_path)
    for count, name in ((1, "one"), (2, "two")):
        whole(config, tmp_path / name, "train.gradient_log=3", "train.epochs=1", count=count)
    assert_same_lines(lines(tmp_path / "two" / "metrics.jsonl"), lines(tmp_path / "one" / "metrics.jsonl"))

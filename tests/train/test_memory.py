"""How many windows are worked on at a time where the settings leave it open."""

from __future__ import annotations

import os
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.build import build_model, build_network, trunk_config
from ofa_jax.config.load import load_experiment
from ofa_jax.config.schema import TrainConfig
from ofa_jax.errors import TrainError
from ofa_jax.model.gpt2 import Blocks, GPT2Config, GPT2Trunk
from ofa_jax.model.networks import (
    ClassifyNetwork,
    ForecastNetwork,
    ImputeNetwork,
    ReconstructNetwork,
    ShortTermNetwork,
)
from ofa_jax.runs.train import read_data, train_run
from ofa_jax.train import memory
from ofa_jax.train.lanes import Lane
from ofa_jax.train.loop import Trainer
from ofa_jax.train.memory import (
    EVAL_WINDOWS,
    activation_bytes,
    check_room,
    slices_and_rows,
    weight_bytes,
    windows_at_once,
)
from ofa_jax.train.program import Program, resolve_auto_batch_sizes
from ofa_jax.train.progress import SilentReporter

SMALL = GPT2Trunk(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64))


@pytest.mark.parametrize(("config", "expected"), [("quick/etth1.yaml", 64), ("long/etth1.yaml", 8)])
def test_windows_of_a_slice(config, expected):
    """The two shapes that docs/performance.md measured."""
    experiment = load_experiment(f"configs/{config}")
    assert windows_at_once(build_network(experiment, trunk_config(experiment.trunk)), "cpu") == expected


def test_only_a_cpu_works_in_slices():
    network = ForecastNetwork(SMALL, 32, 4)
    assert windows_at_once(network, "gpu") is None
    assert windows_at_once(network, "tpu") is None


def test_a_window_too_large_for_the_cache_is_a_slice_of_its_own():
    assert (
        windows_at_once(
            ForecastNetwork(
                GPT2Trunk(replace(SMALL.config, n_positions=100_000)), 40_000, 4, patch=1, stride=1
            ),
            "cpu",
        )
        == 1
    )


def test_settings_that_were_given_stay():
    network = ForecastNetwork(SMALL, 32, 4)
    given = TrainConfig(micro_batch=3, eval_batch_size=5, batch_size=10)
    assert resolve_auto_batch_sizes(given, network) == given


def test_settings_that_were_not_given_are_chosen(monkeypatch):
    network = ForecastNetwork(SMALL, 32, 4)
    chosen = windows_at_once(network, "cpu")
    assert chosen is not None
    assert chosen > 10
    cpu = resolve_auto_batch_sizes(TrainConfig(batch_size=10), network)
    assert (cpu.micro_batch, cpu.eval_batch_size) == (10, min(chosen, EVAL_WINDOWS))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    other = resolve_auto_batch_sizes(TrainConfig(batch_size=10), network)
    assert (other.micro_batch, other.eval_batch_size) == (None, EVAL_WINDOWS)


@pytest.mark.parametrize(
    "network",
    [
        ForecastNetwork(SMALL, 32, 4, patch=8, stride=4),
        ReconstructNetwork(SMALL, 20, channels=3, segment=10),
        ClassifyNetwork(SMALL, 24, channels=3, classes=2),
        ShortTermNetwork(SMALL, 12, horizon=6),
        ImputeNetwork(SMALL, 20, channels=3, calendar=4),
    ],
    ids=lambda network: type(network).__name__,
)
def test_a_network_s_tokens_are_those_its_trunk_sees(network):
    seen = []

    def look(call, args, kwargs, context):
        if isinstance(context.module, Blocks):
            seen.append(args[0].shape)
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(network.example_shape))
    assert {shape[1] for shape in seen} == {network.tokens}


def test_estimates_are_near_what_is_kept_and_read(tiny):
    """Weights to the byte; intermediate values to a factor of two of what XLA allocates for a gradient."""
    model = build_model(tiny.experiment("unused.csv"))
    kernels = sum(
        leaf.nbytes
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.frozen["gpt2"]["h"])
        if "kernel" in str(path)
    )
    assert weight_bytes(model.network) == kernels
    rows = 64
    x = np.zeros((rows, *model.network.example_shape[1:]), np.float32)
    keys = jax.random.split(jax.random.key(0), rows)

    def loss(trainable, frozen):
        return jnp.square(model.predict(frozen, trainable, x, dropout_keys=keys)).mean()

    compiled = jax.jit(jax.grad(loss)).lower(model.trainable, model.frozen).compile()
    allocated = compiled.memory_analysis().temp_size_in_bytes
    assert 0.5 < activation_bytes(model.network) * rows / allocated < 2


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "devices", "expected"),
    [
        (256, None, 1, (1, 256)),
        (30, None, 8, (1, 32)),
        (5, None, 8, (1, 8)),
        (256, 256, 1, (1, 256)),
        (256, 100, 1, (3, 258)),  # three slices of 86, not two of 100 and one of 56
        (256, 64, 8, (4, 256)),
        (30, 7, 2, (5, 30)),
        (30, 1, 8, (4, 32)),  # one row per device at least, so fewer slices than were asked for
        (256, 7, 8, (32, 256)),
        (31, 4, 3, (11, 33)),  # three windows at a time, not six
    ],
)
def test_batches_are_padded_to_equal_slices(batch_size, micro_batch, devices, expected):
    slices, rows = slices_and_rows(batch_size, micro_batch, devices)
    assert (slices, rows) == expected
    assert rows % (slices * devices) == 0
    assert rows // slices <= max(micro_batch or rows, devices)
    assert rows - batch_size < rows // slices  # no slice of padding alone


def test_a_step_that_does_not_fit_is_refused_with_numbers(tiny, tmp_path, monkeypatch):
    experiment = tiny.experiment(tiny.csv(tmp_path / "tiny.csv"), "train.epochs=1")
    assert memory.room_per_device() > 2**28
    numbers = (
        r"memory: a step needs 0\.\d\d GiB per device \(0\.\d\d GiB of it for intermediate values\), "
        r"and 0\.00 GiB are available\."
    )
    smaller = r"Lower train\.micro_batch \(now 32 windows; changes rounding only\)\.$"
    less = r"Use devices with more memory, or a smaller network\.$"
    # series and parameters alone take more than 2**10 bytes
    for room, advice in ((2**17, smaller), (2**10, less)):
        monkeypatch.setattr(memory, "room_per_device", lambda room=room: room)
        with pytest.raises(TrainError, match=f"{numbers} {advice}"):
            train_run(experiment, tmp_path / "run", SilentReporter())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    monkeypatch.undo()
    train_run(experiment, tmp_path / "run", SilentReporter())


def test_a_batch_has_no_more_rows_than_an_epoch_has_windows(tiny, tmp_path):
    """Otherwise its index, 134 MB of padding here, and a step's memory would be those of the padding."""
    experiment = tiny.experiment(tiny.csv(tmp_path / "tiny.csv"), "train.epochs=1")
    huge = experiment.replace({"train.batch_size": 2**20, "train.micro_batch": 2**20})
    data, model = read_data(huge), build_model(huge)
    windows = data.task.tables["train"].size
    trainer = Trainer(
        Program(model.predict, data.task, model.frozen, huge.train), [Lane(model.trainable, seed=0)]
    )
    index = trainer.arguments(0)[4]
    assert index.shape == (1, 32, windows)


@pytest.mark.slow
def test_a_batch_larger_than_an_epoch_gives_the_bits_of_one_of_all_windows(tiny, tmp_path):
    experiment = tiny.experiment(tiny.csv(tmp_path / "tiny.csv"), "train.epochs=1")
    windows = read_data(experiment).task.tables["train"].size
    found = []
    for size in (windows, 2**20):
        sizes = {"train.batch_size": size, "train.micro_batch": size}
        found.append(train_run(experiment.replace(sizes), tmp_path / str(size), SilentReporter()))
    assert found[0].progress.step == 1
    for one, other in zip(*(jax.tree.leaves(result.last) for result in found), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("windows", "shardable", "room", "advice"),
    [
        (
            8,
            True,
            2**21,
            "Lower train.micro_batch (now 8 windows; changes rounding only), or shard the frozen",
        ),
        (1, True, 2**21, "Shard the frozen parameters by train.fsdp"),
        (8, True, 2**10, "Shard the frozen parameters by train.fsdp"),
        (8, False, 2**10, "Use devices with more memory"),
    ],
)
def test_advice_is_only_what_can_help(monkeypatch, windows, shardable, room, advice):
    """A program of two megabytes of intermediate values, with more than a kilobyte of arguments."""
    monkeypatch.setattr(memory, "room_per_device", lambda: room)
    program, argument = jax.jit(lambda x: jnp.sort(jnp.outer(x, x), axis=0).sum()), np.ones(1024, np.float32)
    with pytest.raises(TrainError) as refused:
        check_room(program, (argument,), windows=windows, shardable=shardable)
    assert refused.value.fix.startswith(advice)


def test_room_is_that_of_the_container(tmp_path, monkeypatch):
    machine = memory.room_per_device()
    for content, room in (("max\n", None), ("1000000\n", 1_000_000), ("9" * 18, None)):
        monkeypatch.setattr(memory, "CONTAINER_LIMIT", tmp_path / "memory.max")
        (tmp_path / "memory.max").write_text(content)
        assert memory.room_per_device() == (room or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        assert memory.room_per_device() >= min(machine, 1_000_000)

"""How many windows to process at a time, and whether a training step fits into memory.

On a CPU a batch is faster in slices: intermediate values that fit into the cache are read from there, and
memory that is reused need not be requested from the system. But each slice reads all weights once more. So a
slice's intermediate values are about as large as the cache and half the weights together; with all of the
weights, a step of GPT-2's width is 4 % faster and needs twice the memory for these values
(docs/performance.md). Other devices process the batch at once.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ofa_jax.errors import TrainError
from ofa_jax.model.gpt2 import GPT2Trunk
from ofa_jax.model.networks import Network

CACHE_BYTES = 16 * 2**20
"""A processor's last-level cache, roughly: the result is a power of two."""

EVAL_WINDOWS = 512
"""Windows per evaluation step by default."""

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Where Linux shows a container's memory limit."""


def activation_bytes(network: Network) -> int:
    """Bytes of intermediate values that one window's backward pass needs, to a factor of two.

    Per token and block: the inputs of two layer norms, the residual stream, query, key, value and attention
    output (8 d), GELU's input (f), and two rows of attention weights per head. A trunk that is not GPT-2
    counts as one block.
    """
    config = network.trunk.config
    per_token = config.mlp_width + 8 * config.n_embd + 2 * config.n_head * network.tokens
    return 4 * network.tokens * per_token * (config.n_layer if isinstance(network.trunk, GPT2Trunk) else 1)


def weight_bytes(network: Network) -> int:
    """Bytes of the trunk's kernels, which every slice reads."""
    config = network.trunk.config
    blocks = config.n_layer if isinstance(network.trunk, GPT2Trunk) else 0
    return 4 * blocks * config.n_embd * (4 * config.n_embd + 2 * config.mlp_width)


def windows_at_once(network: Network, backend: str) -> int | None:
    """Windows of a slice, a power of two; None where slices bring nothing."""
    if backend != "cpu":
        return None
    fitting = (CACHE_BYTES + weight_bytes(network) / 2) / activation_bytes(network)
    return 2 ** round(math.log2(max(fitting, 1)))


def slices_and_rows(batch_size: int, micro_batch: int | None, devices: int) -> tuple[int, int]:
    """Slices of a step, and rows of its batch, padded so that devices and slices have equally many."""
    rows = -(-batch_size // devices)  # of each device
    slices = 1 if micro_batch is None else -(-rows // max(micro_batch // devices, 1))
    return slices, slices * devices * -(-rows // slices)


def check_room(
    program: Callable[..., Any], arguments: tuple[Any, ...], *, windows: int, shardable: bool, lanes: int = 1
) -> None:
    """Refuse a training program that does not fit into its devices' memory; it is compiled here, once.

    A program of ``pmap`` cannot be checked; memory that other programs use is not known.

    Args:
        program: The compiled chunk.
        arguments: What it is called with.
        windows: Windows that are processed at a time, for advice.
        shardable: Whether ``train.fsdp`` could be raised, for advice.
        lanes: Adapters that are trained at a time, for advice.

    Raises:
        TrainError: It needs more memory than there is.
    """
    if not hasattr(program, "lower"):
        return

    def refuse(what: str, *, smaller_slices: bool = True) -> TrainError:
        advice = [f"train fewer adapters at a time (at_once, now {lanes})"] * (lanes > 1)
        if smaller_slices and windows > 1:
            advice.append(f"lower train.micro_batch (now {windows} windows; changes rounding only)")
        advice += ["shard the frozen parameters by train.fsdp"] * shardable
        text = ", or ".join(advice or ["use devices with more memory, or a smaller network"])
        return TrainError(what, where="memory", fix=text[0].upper() + text[1:])

    try:
        memory = program.lower(*arguments).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:  # a TPU's compiler checks for itself
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        raise refuse(" ".join(str(error).split())[:300]) from error
    return_compiler_memory()
    if memory is None:
        return
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    working, room = memory.temp_size_in_bytes, room_per_device()
    if arrays + working > room:
        need, own, there = (f"{size / 2**30:.2f} GiB" for size in (arrays + working, working, room))
        what = (
            f"a step needs {need} per device ({own} of it for intermediate values), and {there} are available"
        )
        raise refuse(what, smaller_slices=arrays < room)


def return_compiler_memory() -> None:
    """Give memory that the compiler freed back to the system; does nothing where the allocator cannot."""
    # glibc keeps what the compiler freed, 150 MB for six blocks of GPT-2, where jax's arrays do not go
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def room_per_device() -> int:
    """Bytes of memory that a device of this process has for jax; simulated devices share the machine's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", host_bytes() // jax.local_device_count())


def host_bytes() -> int:
    """Memory of this machine, or of the container of this process; no limit if that is not known."""
    known = hasattr(os, "sysconf")
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else sys.maxsize
    try:
        return min(machine, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # no control group, or one without a limit: "max"
        return machine

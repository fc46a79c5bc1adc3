"""One step on many devices: where arrays lie, which rows are whose, and what compiles the step.

The step is the same pure function on any number of devices (:mod:`ofa_jax.train.step`). A :class:`Layout` says the rest:

=========  ==============================================  ======================================================
           ``parallel: jit`` (default)                     ``parallel: pmap``
=========  ==============================================  ======================================================
program    one for all devices; XLA divides it             one per device, of its own rows
rows       where they lie is a constraint on the index     cut out by the device's number
sums       XLA adds them up where a sum crosses devices    ``psum``, after the gradient
frozen     on every device, or shared out (``fsdp``)       on every device
=========  ==============================================  ======================================================

Every process places the whole index, table and series on its devices; each device gathers its own rows of them. One device takes
none of this: plain arrays, plain ``jit``.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ofa_jax.config.schema import TrainConfig
from ofa_jax.errors import ConfigError, TrainError
from ofa_jax.train.step import ONE_DEVICE, Params, Spread, jit_donating_state

DATA, FSDP = "data", "fsdp"
"""The mesh's axes; rows are spread over both, large frozen leaves over the second."""

SHARED_FROM = 8192
"""Frozen leaves of fewer numbers lie whole on every device: they are small, and fetching them costs more than keeping them."""

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Where Linux tells a container how much memory it may use."""

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


def put_on_one(tree: Any) -> Any:
    """A tree on the one device there is."""
    return jax.tree.map(jnp.asarray, tree)


@dataclass(frozen=True)
class Layout:
    """How a run lies on its devices.

    Attributes:
        devices: How many there are; the rows of a batch are a multiple of it.
        place: Puts a tree on every device.
        place_frozen: Puts the frozen tree where it belongs.
        spread: How a training step is spread.
        compile_chunk: What makes a program of a chunk.
        eval_spread: How an evaluation is spread.
        compile_eval: What makes a program of an evaluation; its results are on every device.
    """

    devices: int = 1
    place: Callable[[Any], Any] = put_on_one
    place_frozen: Callable[[Any], Any] = (
        jax.device_put
    )  # which takes over the memory of host arrays that lie right for it
    spread: Spread = ONE_DEVICE
    compile_chunk: Compiler = jit_donating_state
    eval_spread: Spread = ONE_DEVICE
    compile_eval: Compiler = jax.jit


def make_layout(settings: TrainConfig, devices: Sequence[jax.Device] | None = None) -> Layout:
    """The layout that the settings ask for, on all devices of all processes where none are given.

    Raises:
        ConfigError: ``train.fsdp`` does not divide the devices.
    """
    chosen = list(jax.devices() if devices is None else devices)
    if len(chosen) % settings.fsdp:
        raise ConfigError(
            f"{settings.fsdp} does not divide the {len(chosen)} device{'s' if len(chosen) > 1 else ''} of this run",
            where="train.fsdp",
            fix="Take a divisor of the number of devices, 1 to keep all frozen parameters on each",
        )
    if len(chosen) == 1:
        return Layout()
    return by_pmap(chosen) if settings.parallel == "pmap" else by_jit(chosen, settings.fsdp)


def as_devices_allow(settings: TrainConfig) -> TrainConfig:
    """The settings of a run that may be from another machine, frozen parameters shared out among as many devices as divide those here."""
    return settings.model_copy(update={"fsdp": math.gcd(settings.fsdp, jax.device_count())})


def by_jit(devices: Sequence[jax.Device], fsdp: int = 1) -> Layout:
    """One program that XLA divides among the devices."""
    axes = {DATA: len(devices) // fsdp} | ({FSDP: fsdp} if fsdp > 1 else {})
    mesh = jax.make_mesh(
        tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), devices=devices
    )
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(tuple(axes)))

    def gathered(frozen: Params, step: jax.Array) -> Params:
        # a step fetches the shared leaves anew: fetched before the loop over steps, they would lie on every device all the time
        frozen, _ = jax.lax.optimization_barrier((frozen, step))
        return jax.lax.with_sharding_constraint(frozen, whole)

    on_rows = Spread(
        rows=lambda rows_b: jax.lax.with_sharding_constraint(rows_b, rows),
        total=lambda sums: jax.lax.with_sharding_constraint(sums, whole),
    )
    spread = on_rows if fsdp == 1 else on_rows._replace(frozen=gathered)
    return Layout(
        devices=len(devices),
        place=partial(jax.tree.map, partial(put, sharding=whole)),
        place_frozen=partial(jax.tree.map, lambda leaf: put(leaf, shared_out(mesh, np.shape(leaf)))),
        spread=spread,
        compile_chunk=partial(jax.jit, donate_argnums=1, out_shardings=whole),
        eval_spread=spread,
        compile_eval=partial(jax.jit, out_shardings=whole),
    )


def by_pmap(devices: Sequence[jax.Device]) -> Layout:
    """One program per device, of its own rows; evaluation and the places of arrays are those of :func:`by_jit`."""

    def own_rows(rows_b: jax.Array) -> jax.Array:
        return rows_b.reshape(len(devices), -1, *rows_b.shape[1:])[jax.lax.axis_index(DATA)]

    def compile_chunk(chunk: Callable[..., Any]) -> Callable[..., Any]:
        def on_one_device(number: jax.Array, *arguments: Any) -> Any:
            return chunk(*arguments)

        mapped = jax.pmap(
            on_one_device, DATA, in_axes=(0, *[None] * 7), out_axes=None, donate_argnums=2, devices=devices
        )
        numbers = np.arange(
            sum(device.process_index == jax.process_index() for device in devices)
        )  # pmap counts devices by it
        return partial(mapped, numbers)

    spread = Spread(rows=own_rows, total=partial(jax.lax.psum, axis_name=DATA))
    return replace(by_jit(devices), spread=spread, compile_chunk=compile_chunk)


def shared_out(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Where a frozen leaf lies: in equal parts along its longest axis that divides, or whole where it is small or none does."""
    parts = mesh.shape.get(FSDP, 1)
    fitting = [axis for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or math.prod(shape) < SHARED_FROM or not fitting:
        return NamedSharding(mesh, PartitionSpec())
    longest = max(fitting, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, FSDP))


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """A leaf on the devices of this process, of an array over those of all; every process holds the same leaf."""
    if isinstance(leaf, jax.Array):
        if leaf.sharding == sharding:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf)
            )
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)


def slices_and_rows(batch_size: int, micro_batch: int | None, devices: int) -> tuple[int, int]:
    """Slices of a step, and the rows of its batch with the padding that makes every slice the same number of rows per device."""
    rows = -(-batch_size // devices)  # of each device
    slices = 1 if micro_batch is None else -(-rows // max(micro_batch // devices, 1))
    return slices, slices * devices * -(-rows // slices)


def check_room(program: Callable[..., Any], arguments: tuple[Any, ...], settings: TrainConfig) -> None:
    """Refuse a training program that its devices have no room for, before it runs; it is compiled here, and not again.

    What a program of ``pmap`` takes cannot be told, nor can the room that other programs leave.

    Raises:
        TrainError: It takes more memory than there is.
    """
    if not hasattr(program, "lower"):
        return
    try:
        memory = program.lower(*arguments).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:  # a TPU's compiler counts for itself
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        raise _no_room(" ".join(str(error).split())[:300], settings) from error
    _give_back_compiler_memory()
    if memory is None:
        return
    lying = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    working = memory.temp_size_in_bytes
    room = room_per_device()
    if lying + working > room:
        gib = [f"{size / 2**30:.2f} GiB" for size in (lying + working, working, room)]
        what = f"a step takes {gib[0]} on each device ({gib[1]} of it while it works on a slice), and there are {gib[2]}"
        raise _no_room(what, settings, slices_help=lying < room)


def _give_back_compiler_memory() -> None:
    # glibc keeps what the compiler freed, 150 MB for six blocks of GPT-2, and jax's arrays are not taken from there
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def room_per_device() -> int:
    """Bytes of memory that a device of this process has for jax; simulated devices share the machine's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return host_bytes() // jax.local_device_count()


def host_bytes() -> int:
    """Memory of this machine, or of the container that this process is in; no limit where the system does not tell."""
    machine = (
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else sys.maxsize
    )
    try:
        return min(machine, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # no control group, or one without a limit: "max"
        return machine


def _no_room(what: str, settings: TrainConfig, *, slices_help: bool = True) -> TrainError:
    now = settings.micro_batch or settings.batch_size
    smaller = (
        f"take a smaller train.micro_batch (now {now} windows at a time; results stay the same to rounding)"
    )
    several = settings.parallel == "jit" and jax.device_count() > 1
    advice = [smaller] * (slices_help and now > 1) + [
        "share out the frozen parameters with train.fsdp"
    ] * several
    advice += ["take devices with more memory, or a smaller network"] * (not advice)
    text = ", or ".join(advice)
    return TrainError(what, where="memory", fix=text[0].upper() + text[1:])

"""One step on many devices: placement of arrays, distribution of rows, compilation.

The step is the same pure function on any number of devices (:mod:`ofa_jax.train.step`). A :class:`Layout`
says the rest:

=========  ============================================  ============================================
           ``parallel: jit`` (default)                   ``parallel: pmap``
=========  ============================================  ============================================
program    one for all devices, partitioned by XLA       one per device, for its own rows
rows       a sharding constraint on the index            selected by the device's number
sums       XLA adds them where a sum crosses devices     ``psum``, after the gradient
frozen     replicated, or sharded (``fsdp``)             replicated
=========  ============================================  ============================================

Every process places the complete index, table and series on its devices; each device gathers its own rows.
On one device none of this applies: plain arrays, plain ``jit``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ofa_jax.errors import ConfigError
from ofa_jax.train.step import ONE_DEVICE, Params, StepSharding

DATA, FSDP = "data", "fsdp"
"""The mesh's axes; rows are sharded over both, large frozen leaves over the second."""

SHARDED_FROM = 8192
"""Frozen leaves with fewer elements are replicated: fetching them costs more than storing them."""

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Layout:
    """How a run is distributed over devices.

    Attributes:
        devices: Their number; the rows of a batch are a multiple of it.
        place: Puts a tree on every device.
        place_frozen: Puts the frozen tree where it belongs. (``device_put`` reuses aligned host memory.)
        sharding: Of a training step.
        compile_chunk: Compiles a chunk, which takes over its state.
        eval_sharding: Of an evaluation step.
        compile_eval: Compiles an evaluation; its results are replicated.
    """

    devices: int
    place: Callable[[Any], Any]
    place_frozen: Callable[[Any], Any]
    sharding: StepSharding
    compile_chunk: Compiler
    eval_sharding: StepSharding
    compile_eval: Compiler


SINGLE = Layout(
    devices=1,
    place=partial(jax.tree.map, jnp.asarray),
    place_frozen=jax.device_put,
    sharding=ONE_DEVICE,
    compile_chunk=partial(jax.jit, donate_argnums=1),
    eval_sharding=ONE_DEVICE,
    compile_eval=jax.jit,
)


def make_layout(
    parallel: Literal["jit", "pmap"] = "jit", fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> Layout:
    """A layout over some devices; default: all devices of all processes.

    Raises:
        ConfigError: ``fsdp`` does not divide the number of devices.
    """
    chosen = list(jax.devices() if devices is None else devices)
    if len(chosen) % fsdp:
        raise ConfigError(
            f"{fsdp} does not divide the {len(chosen)} device{'s' if len(chosen) > 1 else ''} of this run",
            where="train.fsdp",
            fix="Use a divisor of the number of devices, or 1 to replicate all frozen parameters",
        )
    if len(chosen) == 1:
        return SINGLE
    return _by_pmap(chosen) if parallel == "pmap" else _by_jit(chosen, fsdp)


def usable_fsdp(fsdp: int) -> int:
    """The setting of a run from another machine, lowered to what divides the devices here."""
    return math.gcd(fsdp, jax.device_count())


def _by_jit(devices: Sequence[jax.Device], fsdp: int = 1) -> Layout:
    axes = {DATA: len(devices) // fsdp} | ({FSDP: fsdp} if fsdp > 1 else {})
    kinds = (AxisType.Auto,) * len(axes)
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=kinds, devices=devices)
    replicated, by_row = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in ((), (tuple(axes),)))

    def gather_frozen(frozen: Params, step: jax.Array) -> Params:
        # in every step: gathered before the loop over steps, the leaves would always occupy every device
        frozen, _ = jax.lax.optimization_barrier((frozen, step))
        return jax.lax.with_sharding_constraint(frozen, replicated)

    sharding = StepSharding(
        local_rows=lambda rows_b: jax.lax.with_sharding_constraint(rows_b, by_row),
        total=lambda sums: jax.lax.with_sharding_constraint(sums, replicated),
    )
    if fsdp > 1:
        sharding = sharding._replace(gather_frozen=gather_frozen)
    return Layout(
        devices=len(devices),
        place=partial(jax.tree.map, partial(put, sharding=replicated)),
        place_frozen=partial(jax.tree.map, lambda leaf: put(leaf, frozen_sharding(mesh, np.shape(leaf)))),
        sharding=sharding,
        compile_chunk=partial(jax.jit, donate_argnums=1, out_shardings=replicated),
        eval_sharding=sharding,
        compile_eval=partial(jax.jit, out_shardings=replicated),
    )


def _by_pmap(devices: Sequence[jax.Device]) -> Layout:
    """Only the training step differs from :func:`_by_jit`."""

    def local_rows(rows_b: jax.Array) -> jax.Array:
        return rows_b.reshape(len(devices), -1, *rows_b.shape[1:])[jax.lax.axis_index(DATA)]

    def compile_chunk(chunk: Callable[..., Any]) -> Callable[..., Any]:
        axes = (0, *[None] * 7)
        own = sum(device.process_index == jax.process_index() for device in devices)
        on_one = lambda number, *arguments: chunk(*arguments)  # noqa: E731
        mapped = jax.pmap(on_one, DATA, in_axes=axes, out_axes=None, donate_argnums=2, devices=devices)
        return partial(mapped, np.arange(own))  # by which pmap counts devices

    sharding = StepSharding(local_rows=local_rows, total=partial(jax.lax.psum, axis_name=DATA))
    return replace(_by_jit(devices), sharding=sharding, compile_chunk=compile_chunk)


def frozen_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Of a frozen leaf: along its longest axis that divides; replicated if it is small or none divides."""
    parts = mesh.shape.get(FSDP, 1)
    fitting = [axis for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or math.prod(shape) < SHARDED_FROM or not fitting:
        return NamedSharding(mesh, PartitionSpec())
    longest = max(fitting, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, FSDP))


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """A leaf that every process has, as an array over the devices of all."""
    if isinstance(leaf, jax.Array):
        if leaf.sharding == sharding:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)

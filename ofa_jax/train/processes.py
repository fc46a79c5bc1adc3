"""Several processes in one run: the main process, agreement among all, and the loss of one.

Process 0 is the **main process**: it alone uses the run folder (lock, settings, log, checkpoints, bundle) and
broadcasts what the others need of it, so that no folder has to be shared. Everything else all processes do
alike, on the same values. Whatever depends on the clock or on a signal could differ among them and leave some
waiting forever, so it is agreed on first. With one process all of this is free.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ofa_jax.errors import ConfigError, OfaError, PeerLost, TrainError
from ofa_jax.train.checkpoints import Checkpoints, PyTree, Restored
from ofa_jax.train.rendezvous import meet

_LOST_DEVICE = re.compile(
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN): "
)
"""Status of a computation that lost a device, as opposed to one that ran out of memory."""


def connect(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat: int = 100,
    patience: int = 300,
) -> None:
    """Join the processes of this run; call it before anything else asks jax for its devices.

    Args:
        coordinator: ``HOST:PORT`` of process 0, the same on all. Default: what jax finds in its environment
            (TPU slices, SLURM, Open MPI, Kubernetes); where it finds nothing, this process is alone.
        processes: Number of processes; without a coordinator it is compared with what jax found.
        process_id: Number of this process, with a coordinator.
        heartbeat: Seconds without a sign of life after which a process counts as lost.
        patience: Seconds to wait for all processes to be there.

    Raises:
        ConfigError: The arguments are incomplete, or jax found another number of processes; or as
            :func:`~ofa_jax.train.rendezvous.meet`.
        PeerLost, TrainError: As :func:`~ofa_jax.train.rendezvous.meet`.
    """
    arguments = "coordinator, processes, process_id"
    if (coordinator is None) != (process_id is None) or (coordinator is not None and processes is None):
        fix = "Give all three, or none where jax finds the processes itself"
        raise ConfigError("these do not identify this process", where=arguments, fix=fix)
    if coordinator is not None and processes is not None and process_id is not None:
        meet(coordinator, processes, process_id, patience)
    # SIGTERM is handled by train/loop.py; jax's service would take it away from Python
    jax.config.update("jax_enable_preemption_service", False)
    given = (coordinator, processes if coordinator else None, process_id)
    try:
        jax.distributed.initialize(
            *given, heartbeat_timeout_seconds=heartbeat, initialization_timeout=patience
        )
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            fix = "Give all three arguments"
            raise ConfigError(f"jax found only part of them ({error})", where=arguments, fix=fix) from error
    if processes is not None and jax.process_count() != processes:
        what = f"{processes} processes were requested, but jax found {jax.process_count()}"
        fix = "Give the coordinator (HOST:PORT of process 0) and the process_id to each of them"
        raise ConfigError(what, where="processes", fix=fix)


def is_main_process() -> bool:
    """Whether this process uses the run folder."""
    return jax.process_index() == 0


def max_over_processes(*values: int) -> tuple[int, ...]:
    """The maximum of each value over all processes, which all call this at the same point."""
    if jax.process_count() == 1:
        return values
    from jax.experimental.multihost_utils import process_allgather

    return tuple(process_allgather(np.array(values, np.int32)).max(axis=0).tolist())


def broadcast_from_main(content: bytes) -> bytes:
    """The main process's ``content``, bit for bit, on every process; what the others pass is ignored."""
    if jax.process_count() == 1:
        return content
    from jax.experimental.multihost_utils import broadcast_one_to_all

    # in two parts, for jax has no 64-bit integers by default
    high, low = broadcast_one_to_all(np.array(divmod(len(content), 2**30), np.int32))
    size = int(high) * 2**30 + int(low)
    own = np.frombuffer(content, np.uint8) if is_main_process() else np.zeros(size, np.uint8)
    return np.asarray(broadcast_one_to_all(own)).tobytes()


@contextlib.contextmanager
def raise_together(doing: str) -> Iterator[None]:
    """Leave the block on all processes once all have finished it, or on all with an error.

    Raises:
        OfaError: This process's own error, or TrainError where another process raised one.
        OSError: This process's own error; the others raise PeerLost, since a restart may help.
    """
    failure: OfaError | OSError | None = None
    try:
        yield
    except (OfaError, OSError) as error:
        failure = error
    own = 0 if failure is None else jax.process_index() + 1
    failed, by_system = max_over_processes(own, int(isinstance(failure, OSError)))
    if failure is not None:
        raise failure
    if failed:
        kind = PeerLost if by_system else TrainError
        fix = "Its own message says why; correct that and start all processes again"
        raise kind(f"process {failed - 1} failed at {doing}", where=f"process {jax.process_index()}", fix=fix)


def check_alike(facts: Mapping[str, Any]) -> None:
    """Make sure that all processes were started with the same settings, packages and data.

    Args:
        facts: JSON values that must be the same everywhere, by name.

    Raises:
        ConfigError: They differ from the main process's; each difference is named.
    """
    own = json.loads(json.dumps(facts))
    main = json.loads(broadcast_from_main(json.dumps(own).encode()))
    with raise_together("comparing itself with process 0"):
        names = [name for name in sorted(own.keys() | main.keys()) if own.get(name) != main.get(name)]
        if names:
            shown = [f"{name} is {own.get(name)!r} here, {main.get(name)!r} there" for name in names[:5]]
            raise ConfigError(
                f"this process differs from process 0: {'; '.join(shown)}",
                where=f"process {jax.process_index()}",
                fix="Start every process with the same settings, packages, data and trunk",
            )


@contextlib.contextmanager
def detect_lost_peers() -> Iterator[None]:
    """Turn the error of a computation that lost another process into :class:`PeerLost`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # jax raises either, depending on the phase
        what = " ".join(str(error).split())
        if jax.process_count() == 1 or not _LOST_DEVICE.match(what):
            raise
        raise PeerLost(
            f"a computation over all {jax.process_count()} processes was aborted, most likely because "
            f"another process ended ({what[:200]})",
            where=f"process {jax.process_index()}",
            fix="See the end of the other processes' output; start all again to resume from a checkpoint",
        ) from error


def restore_on_all(checkpoints: Checkpoints | None, like: PyTree) -> Restored | None:
    """The main process's newest intact checkpoint on every process, bit for bit; the others pass None."""
    found = None
    with raise_together("restoring a checkpoint"):
        if checkpoints is not None:
            found = checkpoints.restore(like)
    if jax.process_count() == 1:
        return found
    header = None if found is None else [found.step, found.meta, found.skipped]
    header = json.loads(broadcast_from_main(json.dumps(header).encode()))
    if header is None:
        return None
    own = [] if found is None else [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found.arrays)]
    stored, start, arrays = broadcast_from_main(b"".join(own)), 0, []
    for leaf in map(np.asarray, jax.tree.leaves(like)):
        arrays.append(np.frombuffer(stored, leaf.dtype, leaf.size, start).reshape(leaf.shape).copy())
        start += leaf.nbytes
    step, meta, skipped = header
    return Restored(step, jax.tree.unflatten(jax.tree.structure(like), arrays), meta, tuple(skipped))

"""Several processes on one run: who leads, what all of them agree on, and what becomes of a lost one.

Process 0 **leads**: it alone holds the run folder (lock, settings, log, checkpoints, bundle) and tells the others what they need
of it, so that no folder has to be shared and nobody reads what another is exchanging. Everything else all processes do alike, on
the same numbers. What hangs on the clock or on a signal would differ among them, and each that goes another way leaves the others
waiting: such things are agreed on. With one process nothing here does anything.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ofa_jax.errors import ConfigError, OfaError, TrainError
from ofa_jax.train.checkpoints import Checkpoints, PyTree, Restored

_BROKEN_OFF = re.compile(
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN): "
)
"""How the status begins of a computation that lost a device; not one that lacked memory, say."""


class PeerLost(TrainError):
    """Another process of the run ended, or cannot be reached any more."""


def connect(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat: int = 100,
    wait: int = 300,
) -> None:
    """Join the processes of this run; before anything else asks jax for its devices.

    Args:
        coordinator: ``HOST:PORT`` of process 0, the same on all. Without it jax looks around itself (TPU slices, SLURM, Open MPI,
            Kubernetes); where it finds nothing, this process is alone.
        processes: How many there are; without a coordinator it is compared with what jax found.
        process_id: Which of them this one is, with a coordinator.
        heartbeat: Seconds without a sign of life after which a process counts as lost.
        wait: Seconds until all must have come; where they have not, jax itself ends the process and says so.

    Raises:
        ConfigError: What was given does not say who is who, or fewer processes were found than there are.
    """
    if (coordinator is None) != (process_id is None) or (coordinator is not None and processes is None):
        raise ConfigError(
            "what was given does not say which process this is",
            where="--coordinator, --processes, --process-id",
            fix="Give all three, or none where jax finds the processes itself",
        )
    # a SIGTERM is ours to answer (train/loop.py); jax's service would take it away from Python
    jax.config.update("jax_enable_preemption_service", False)
    given = (coordinator, processes if coordinator else None, process_id)
    try:
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=heartbeat, initialization_timeout=wait)
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            fix = "Give --coordinator, --processes and --process-id"
            raise ConfigError(f"jax found only a part of what it needs to know ({error})", fix=fix) from error
    if processes is not None and jax.process_count() != processes:
        raise ConfigError(
            f"{processes} processes were asked for, but jax found {jax.process_count()}",
            where="--processes",
            fix="Give --coordinator HOST:PORT of process 0 and --process-id to each of them",
        )


def leads() -> bool:
    """Whether this process holds the run folder."""
    return jax.process_index() == 0


def largest(*numbers: int) -> tuple[int, ...]:
    """Of each number, the largest that any process gives; all processes call it at the same point."""
    if jax.process_count() == 1:
        return numbers
    from jax.experimental.multihost_utils import process_allgather

    return tuple(process_allgather(np.array(numbers, np.int32)).max(axis=0).tolist())


def from_leader(content: bytes) -> bytes:
    """The leader's ``content``, bit for bit, on every process; what the others give does not matter."""
    if jax.process_count() == 1:
        return content
    from jax.experimental.multihost_utils import broadcast_one_to_all

    high, low = broadcast_one_to_all(
        np.array(divmod(len(content), 2**30), np.int32)
    )  # jax has no 64-bit integers by default
    size = int(high) * 2**30 + int(low)
    own = np.frombuffer(content, np.uint8) if leads() else np.zeros(size, np.uint8)
    return np.asarray(broadcast_one_to_all(own)).tobytes()


@contextlib.contextmanager
def together(doing: str) -> Iterator[None]:
    """Nobody leaves the block before everybody has come to its end, or everybody leaves it with an error.

    Raises:
        OfaError: This process's own, or that another one refused something.
        OSError: This process's own; the others get PeerLost, for starting again may help.
    """
    failure: OfaError | OSError | None = None
    try:
        yield
    except (OfaError, OSError) as error:
        failure = error
    failed, broken = largest(
        0 if failure is None else jax.process_index() + 1, int(isinstance(failure, OSError))
    )
    if failure is not None:
        raise failure
    if failed:
        raise (PeerLost if broken else TrainError)(
            f"process {failed - 1} failed at {doing}",
            where=f"process {jax.process_index()}",
            fix="Its own message says why; mend that and start all processes again",
        )


def check_alike(facts: Mapping[str, Any]) -> None:
    """Make sure that all processes were started alike.

    Args:
        facts: What has to be the same everywhere, by name; values that JSON holds.

    Raises:
        ConfigError: They differ from the leader's; each difference is named.
    """
    own = json.loads(json.dumps(facts))
    leaders = json.loads(from_leader(json.dumps(own).encode()))
    with together("comparing itself with process 0"):
        names = [name for name in sorted(own.keys() | leaders.keys()) if own.get(name) != leaders.get(name)]
        if names:
            shown = "; ".join(
                f"{name} is {own.get(name)!r} here, {leaders.get(name)!r} there" for name in names[:5]
            )
            raise ConfigError(
                f"this process differs from process 0: {shown}",
                where=f"process {jax.process_index()}",
                fix="Start every process with the same settings, packages, data and trunk",
            )


@contextlib.contextmanager
def peers_needed() -> Iterator[None]:
    """Inside, a computation that breaks off because another process is gone is an error that says so.

    Raises:
        PeerLost: Instead of jax's own error.
    """
    try:
        yield
    except (
        RuntimeError,
        ValueError,
    ) as error:  # jax raises one or the other, by where the computation was when it broke off
        what = " ".join(str(error).split())
        if jax.process_count() == 1 or not _BROKEN_OFF.match(what):
            raise
        raise PeerLost(
            f"a computation of all {jax.process_count()} processes broke off, most likely because another process ended ({what[:200]})",
            where=f"process {jax.process_index()}",
            fix="Look at the end of the other processes' output; start all of them again to go on from the newest checkpoint",
        ) from error


class LedCheckpoints:
    """The leader's :class:`~ofa_jax.train.checkpoints.Checkpoints`, for all processes: every method is called by all of them.

    Args:
        own: On the leader, its checkpoints; None on the others.
    """

    def __init__(self, own: Checkpoints | None) -> None:
        self._own = own

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, on the leader; none are known to the others."""
        return [] if self._own is None else self._own.steps()

    def save(self, step: int, arrays: PyTree, meta: dict[str, Any]) -> None:
        """The leader saves; all wait for it."""
        with together("saving a checkpoint"):
            if self._own is not None:
                self._own.save(step, arrays, meta)

    def restore(self, like: PyTree) -> Restored | None:
        """The leader's newest whole checkpoint, on every process with the same bits."""
        found = None
        with together("restoring a checkpoint"):
            if self._own is not None:
                found = self._own.restore(like)
        if jax.process_count() == 1:
            return found
        header = json.loads(from_leader(_header(found)))
        if header is None:
            return None
        leaves, structure = jax.tree.flatten(like)
        stored = from_leader(
            b""
            if found is None
            else b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found.arrays))
        )
        arrays, start = [], 0
        for leaf in map(np.asarray, leaves):
            arrays.append(np.frombuffer(stored, leaf.dtype, leaf.size, start).reshape(leaf.shape).copy())
            start += leaf.nbytes
        return Restored(
            header["step"], jax.tree.unflatten(structure, arrays), header["meta"], tuple(header["skipped"])
        )

    def close(self) -> None:
        if self._own is not None:
            self._own.close()


def _header(found: Restored | None) -> bytes:
    content = None if found is None else {"step": found.step, "meta": found.meta, "skipped": found.skipped}
    return json.dumps(content).encode()

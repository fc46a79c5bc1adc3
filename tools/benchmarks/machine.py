"""The machine, the source and this process's memory, as the operating system reports them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from benchmarks.schema import Machine
from benchmarks.sizes import ROOT
from ofa_jax.errors import OfaError

PACKAGES = ("jax", "jaxlib", "flax", "ofa-jax", "numpy", "torch", "transformers", "peft")


def machine() -> Machine:
    """What the numbers depend on besides the source."""
    import jax

    from ofa_jax.train.memory import host_bytes

    return Machine(
        cpu=_cpu(),
        cores=cores(),
        memory_bytes=host_bytes(),
        system=_system(),
        device=jax.devices()[0].device_kind,
        devices=jax.device_count(),
        versions={
            "python": platform.python_version(),
            **{name: found for name in PACKAGES if (found := _version(name))},
        },
    )


def cores() -> int:
    """The cores that this process may use, as XLA counts them; PyTorch is given as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The commit of the source, marked where files have changed since."""
    found = _git("rev-parse", "HEAD")
    return (
        "unknown"
        if not found
        else found[:12] + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    )


def peak_bytes() -> int:
    """The most memory that this process held at once: of the accelerator if there is one, else resident.

    Raises:
        OfaError: The system has no /proc.
    """
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    if not _on_accelerator():
        return _status("VmHWM")
    of_jax = [] if jax is None else [device.memory_stats() or {} for device in jax.local_devices()]
    return sum(stats.get("peak_bytes_in_use", 0) for stats in of_jax) + (
        0 if torch is None else torch.cuda.max_memory_allocated()
    )


def held_bytes() -> int:
    """The memory that this process holds now; 0 on an accelerator, where imports take none."""
    return 0 if _on_accelerator() else _status("VmRSS")


def _on_accelerator() -> bool:
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    return (jax is not None and jax.default_backend() != "cpu") or (
        torch is not None and torch.cuda.is_available()
    )


def _status(field: str) -> int:
    path = Path("/proc/self/status")
    if not path.exists():
        raise OfaError(
            "peak memory is read from /proc/self/status, which this system lacks",
            fix="Leave `memory` and `growth` out of --only",
        )
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor() or "unknown",
    )


def _system() -> str:
    kernel = f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except (OSError, KeyError):
        return kernel


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*words: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""

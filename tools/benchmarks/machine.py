"""The machine, the commit and this process's memory, from the operating system."""

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
    """Hardware, system and package versions."""
    import jax

    from ofa_jax.train.devices import host_bytes

    versions = {name: found for name in PACKAGES if (found := _version(name))}
    return Machine(
        cpu=_cpu(),
        cores=cores(),
        memory_bytes=host_bytes(),
        system=_system(),
        device=jax.devices()[0].device_kind,
        devices=jax.device_count(),
        versions={"python": platform.python_version(), **versions},
    )


def cores() -> int:
    """Cores that this process may use, as XLA counts them; PyTorch gets as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The current commit, marked if files have changed."""
    found, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return f"{found[:12]}{'-dirty' if changed else ''}" if found else "unknown"


def peak_bytes() -> int:
    """Peak memory of this process: the accelerator's if there is one, else resident.

    Raises:
        OfaError: The system has no /proc.
    """
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    if not _on_accelerator():
        return _status("VmHWM")
    stats = [] if jax is None else [device.memory_stats() or {} for device in jax.local_devices()]
    of_torch = 0 if torch is None else torch.cuda.max_memory_allocated()
    return sum(each.get("peak_bytes_in_use", 0) for each in stats) + of_torch


def held_bytes() -> int:
    """Memory of this process now; 0 on an accelerator, where imports take none."""
    return 0 if _on_accelerator() else _status("VmRSS")


def _on_accelerator() -> bool:
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    by_jax = jax is not None and jax.default_backend() != "cpu"
    return by_jax or (torch is not None and torch.cuda.is_available())


def _status(field: str) -> int:
    path = Path("/proc/self/status")
    if not path.exists():
        fix = "Leave `memory` and `growth` out of --only"
        raise OfaError("this system has no /proc/self/status to read peak memory from", fix=fix)
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


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
    command = ["git", "-C", str(ROOT), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""

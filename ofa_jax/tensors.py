"""Safetensors files as NumPy arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ofa_jax.errors import CheckpointError, OfaError
from ofa_jax.files import UNREADABLE, check_regular


@contextlib.contextmanager
def open_tensors(path: Path, *, error: type[OfaError] = CheckpointError) -> Iterator[Any]:
    """A safetensors file opened for NumPy; raises ``error`` if it is missing, truncated or something else."""
    check_regular(path, error=error)
    try:
        with safe_open(path, framework="np") as tensors:
            yield tensors
    except FileNotFoundError:
        fix = "Copy or download the folder again"
        raise error(f"there is no {path.name} here", where=str(path.parent), fix=fix) from None
    except OSError as failure:
        what = f"cannot be read ({failure.strerror or failure})"
        raise error(what, where=str(path), fix=UNREADABLE) from failure
    except SafetensorError as failure:
        fix = "Copy or download it again; a file of some 130 bytes is a git-lfs pointer: run `git lfs pull`"
        raise error(f"not readable as safetensors ({failure})", where=str(path), fix=fix) from None


def read_tensors(path: Path, *, error: type[OfaError] = CheckpointError) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file, as :func:`read_tensor`."""
    with open_tensors(path, error=error) as tensors:
        names = tensors.keys()
        return {name: read_tensor(tensors, name, path, error=error) for name in names}


def read_tensor(
    tensors: Any, name: str, path: Path, *, error: type[OfaError] = CheckpointError
) -> np.ndarray:
    """One tensor of an open safetensors file, as float32; raises ``error`` unless all values are finite."""
    dtype = tensors.get_slice(name).get_dtype()
    if dtype not in ("F16", "BF16", "F32", "F64"):
        raise error(f"{name} is of type {dtype}, not a floating-point type", where=str(path))
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite
        array = np.asarray(tensors.get_tensor(name), np.float32)
    if not np.isfinite(array).all():
        fix = "The weights are damaged or their training diverged; use others"
        raise error(f"{name} is not finite in float32", where=str(path), fix=fix)
    return array

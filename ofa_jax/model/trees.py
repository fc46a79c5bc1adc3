"""Parameter trees by path: nested dicts as flat ones and back, and their fingerprint."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ofa_jax.errors import WeightsError

_ALIGNMENT = 64


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict as one flat dict keyed by ``"a/b/c"``, in path order."""
    flat = flatten_dict(tree, sep="/")
    return {path: flat[path] for path in sorted(flat)}


def shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every leaf by path."""
    return {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flatten`."""
    return unflatten_dict(flat, sep="/")


def fingerprint(leaves: Iterable[tuple[str, Any]]) -> str:
    """The sha256 over path, shape, dtype and bytes of arrays, in the order given."""
    digest = hashlib.sha256()
    for path, leaf in leaves:
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.shape} {array.dtype.str}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def aligned_empty(shape: Sequence[int]) -> np.ndarray:
    """An uninitialized float32 array whose memory jax can take over on a CPU without a copy.

    Raises:
        WeightsError: There is not that much memory.
    """
    count = math.prod(shape)
    try:
        memory = np.empty(4 * count + _ALIGNMENT, np.uint8)
    except (MemoryError, ValueError):  # ValueError: more than an array can have
        what = f"a parameter of shape {tuple(shape)} needs {4 * count / 2**30:.3g} GiB of memory"
        raise WeightsError(what, fix="Choose a smaller trunk or network") from None
    offset = -memory.ctypes.data % _ALIGNMENT
    return memory[offset : offset + 4 * count].view(np.float32).reshape(shape)


def aligned(array: np.ndarray) -> np.ndarray:
    """A read-only float32 array as from :func:`aligned_empty`; a view where the memory is aligned already."""
    if array.dtype == np.float32 and array.flags.c_contiguous and array.ctypes.data % _ALIGNMENT == 0:
        copy = array.view()
    else:
        copy = aligned_empty(array.shape)
        copy[...] = array
    copy.flags.writeable = False  # jax may take this memory over, and its arrays never change
    return copy

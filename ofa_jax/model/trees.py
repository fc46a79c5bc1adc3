"""Parameter trees by path: nested dicts as flat ones and back, and their fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as one flat dict keyed by ``"a/b/c"``, in path order."""
    flat: dict[str, Any] = {}
    for name in sorted(tree):
        path = f"{prefix}{name}"
        if isinstance(tree[name], Mapping):
            flat |= flatten(tree[name], f"{path}/")
        else:
            flat[path] = tree[name]
    return dict(sorted(flat.items())) if not prefix else flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def fingerprint(leaves: Iterable[tuple[str, Any]]) -> str:
    """The sha256 over path, shape, dtype and bytes of arrays, in the order given; float32 arrays before any cast."""
    digest = hashlib.sha256()
    for path, leaf in leaves:
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.shape} {array.dtype.str}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()

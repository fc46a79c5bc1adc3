"""Trunk folders: Hugging Face's GPT-2 layout without ``wte``, in safetensors, with a small ``trunk.json``."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ofa_jax.errors import WeightsError, listed
from ofa_jax.files import atomic_folder, is_there, sha256_file, write_json
from ofa_jax.model import trees
from ofa_jax.model.weights import CONFIG, MANIFEST, WEIGHTS, Trunk, hub_origin, load_trunk, trunk_tensors


def convert(
    source: str | Path,
    out: str | Path,
    *,
    n_layer: int | None = None,
    revision: str | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """:func:`~ofa_jax.model.weights.load_trunk`, then :func:`save_trunk`, whose report is returned."""
    _writable(out)
    return save_trunk(load_trunk(source, n_layer=n_layer, revision=revision), out, dtype)


def save_trunk(trunk: Trunk, out: str | Path, dtype: str = "float32") -> dict[str, Any]:
    """Write a trunk folder.

    ``out`` may be new, empty, or a trunk folder, which is replaced; ``dtype`` is ``float32``, ``bfloat16`` or
    ``float16``. Returns what ``trunk.json`` contains (``fingerprint`` is the trunk's sha256 as it will load),
    and ``layers``, ``dtype``, ``parameters``, ``dropped`` and ``bytes``.

    Raises:
        WeightsError: ``out`` contains something else, ``dtype`` is unknown, or values are too large for it.
    """
    from safetensors.numpy import save_file

    out, origin = _writable(out), trunk.source
    leaves = trees.flatten(trunk.params)
    paths = {name: path for name, (path, _) in trunk_tensors(trunk.config).items()}
    stored = {name: _cast(leaves[path], dtype, name) for name, path in paths.items()}
    loaded = {path: stored[name].astype(np.float32, copy=False) for name, path in paths.items()}
    config = {"architectures": ["GPT2Model"], "model_type": "gpt2", **asdict(trunk.config), "dtype": dtype}
    with atomic_folder(out) as scratch:
        (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file(stored, scratch / WEIGHTS, metadata={"format": "pt"})
        record = {
            "source": origin if origin in ("random", "pretrained") or hub_origin(origin) else "a folder",
            "sha256": sha256_file(scratch / WEIGHTS),
            "config_sha256": sha256_file(scratch / CONFIG),
            "fingerprint": trees.fingerprint(sorted(loaded.items())),
        }
        write_json(scratch / MANIFEST, record)
        size = sum(file.stat().st_size for file in scratch.iterdir())
    return {
        **record,
        "layers": trunk.config.n_layer,
        "dtype": dtype,
        "parameters": sum(leaf.size for leaf in stored.values()),
        "dropped": dict(Counter(re.sub(r"(?<=\bh\.)\d+", "*", name) for name in trunk.dropped)),
        "bytes": size,
    }


def _cast(leaf: np.ndarray, dtype: str, name: str) -> np.ndarray:
    if dtype not in ("float32", "bfloat16", "float16"):
        fix = "Choose float32, bfloat16 or float16"
        raise WeightsError(f"dtype {dtype!r} is unknown", where="convert", fix=fix)
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(leaf, jnp.dtype(dtype))
    if not np.isfinite(cast.astype(np.float32)).all():
        what = f"{name} has values beyond the range of {dtype}"
        raise WeightsError(what, where="convert", fix="Choose float32 or bfloat16")
    return cast


def _writable(out: str | Path) -> Path:
    """``out`` as an absolute path, if it may be written: absent, empty, or nothing but a trunk folder."""
    out = Path(out).expanduser().resolve()
    if is_there(out, error=WeightsError) and not out.is_dir():
        raise WeightsError("is a file", where=str(out), fix="Name a new folder")
    present = {file.name for file in out.iterdir()} if out.exists() else set()
    foreign = sorted(present - {CONFIG, WEIGHTS, MANIFEST})
    if foreign or (present and MANIFEST not in present):
        there = listed(foreign or sorted(present), 5, mark="")
        what = f"is not empty and not a trunk folder (it contains {there}); nothing was written"
        raise WeightsError(what, where=str(out), fix="Name a new folder")
    return out

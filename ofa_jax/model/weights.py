"""Hugging Face files -> trunk tree: one table of names, every stored tensor used once or named as dropped.

A trunk comes from a folder or a hub id, from safetensors only: a pickle can run code while it is read. Random weights are
never a fallback; they come from :func:`random_trunk` alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax import files
from ofa_jax.errors import WeightsError
from ofa_jax.model import frozen_init, trees
from ofa_jax.model.gpt2 import PRESETS, GPT2Config
from ofa_jax.model.hf_folder import (
    CONFIG,
    INDEX,
    MANIFEST,
    WEIGHTS,
    Stored,
    check_digest,
    folder_config,
    inventory,
    listing,
    open_tensors,
    read_manifest,
    resolve,
)

_OUTER = (
    ("wpe.weight", "wpe/embedding", "nd"),
    ("ln_f.weight", "ln_f/scale", "d"),
    ("ln_f.bias", "ln_f/bias", "d"),
)
_BLOCK = (
    ("ln_1.weight", "ln_1/scale", "d"),
    ("ln_1.bias", "ln_1/bias", "d"),
    ("attn.c_attn.weight", "attn/c_attn/kernel", "dq"),
    ("attn.c_attn.bias", "attn/c_attn/bias", "q"),
    ("attn.c_proj.weight", "attn/c_proj/kernel", "dd"),
    ("attn.c_proj.bias", "attn/c_proj/bias", "d"),
    ("ln_2.weight", "ln_2/scale", "d"),
    ("ln_2.bias", "ln_2/bias", "d"),
    ("mlp.c_fc.weight", "mlp/c_fc/kernel", "df"),
    ("mlp.c_fc.bias", "mlp/c_fc/bias", "f"),
    ("mlp.c_proj.weight", "mlp/c_proj/kernel", "fd"),
    ("mlp.c_proj.bias", "mlp/c_proj/bias", "d"),
)
"""Hugging Face name, our path, shape in letters. Its Conv1D weight is ``[in, out]``, a Flax kernel as it stands (protocol §1.5)."""

_UNUSED = re.compile(
    r"wte\.weight|h\.\d+\.attn\.(bias|masked_bias)|(lm_head|score|classifier|qa_outputs|multiple_choice_head)\..+"
)
"""Token embedding, mask buffers of old files and the heads of Hugging Face's GPT-2 classes: the trunk has no use for them."""

_DTYPES = {"F16", "BF16", "F32", "F64"}
_INITIALIZER_RANGE = 0.02  # Hugging Face's default `initializer_range`


@dataclass(frozen=True, eq=False)
class Trunk:
    """A checked trunk on the host.

    Attributes:
        config: Shapes and mathematics; ``config.n_layer`` is the number of blocks kept.
        params: Nested dict of read-only float32 arrays, as :class:`~ofa_jax.model.gpt2.GPT2Trunk` takes them.
        source: Where the weights came from (folder, ``id@commit`` of the hub, or ``random``); kept through :func:`convert`.
        dropped: Hugging Face names of stored tensors that the trunk does not use.
    """

    config: GPT2Config
    params: dict[str, Any]
    source: str
    dropped: tuple[str, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Fingerprint over path, shape, dtype and bytes of all parameters, in path order."""
        return trees.fingerprint(trees.flatten(self.params).items())


def _rows(config: GPT2Config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Hugging Face name -> (path, shape), for every tensor of the trunk."""
    size = {"n": config.n_positions, "d": config.n_embd, "q": 3 * config.n_embd, "f": config.mlp_width}
    table = [
        *_OUTER,
        *(
            (f"h.{i}.{name}", f"h/{i}/{path}", letters)
            for i in range(config.n_layer)
            for name, path, letters in _BLOCK
        ),
    ]
    return {name: (path, tuple(size[letter] for letter in letters)) for name, path, letters in table}


def trunk_shapes(config: GPT2Config, positions: bool = True) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every trunk parameter in path order; without ``positions`` there is no ``wpe``. Needs no weights and no jax."""
    shapes = dict(_rows(config).values())
    return {path: shapes[path] for path in sorted(shapes) if positions or not path.startswith("wpe/")}


def read_config(source: str | Path, *, revision: str | None = None, n_layer: int | None = None) -> GPT2Config:
    """Shapes and mathematics of a trunk, without its weights.

    Args:
        source: A folder, a hub id, or the name of a published GPT-2 (``gpt2``, ``distilgpt2``, ...; with or without
            ``openai-community/``, ``distilbert/``), which needs neither files nor network. A folder of that name comes first.
        revision: Branch, tag or commit of a hub id; the published sizes are the same in every revision.
        n_layer: Keep the first ``n_layer`` blocks; None keeps all.

    ``reorder_and_upcast_attn`` is honoured in that attention scores and softmax are float32 here, whatever it says.

    Raises:
        WeightsError: No config found, one that is not GPT-2's, fields that change the mathematics and are not supported
            (by name), or fewer blocks than asked for.
    """
    owner, _, name = str(source).rpartition("/")
    published = (
        PRESETS.get(name)
        if owner in ("", "distilbert" if name == "distilgpt2" else "openai-community")
        else None
    )
    if published is not None and isinstance(source, str) and not Path(source).is_dir():
        return _keep(published, n_layer, str(source))
    folder, _ = resolve(source, revision, [CONFIG, MANIFEST])
    return _keep(folder_config(folder, read_manifest(folder)), n_layer, str(source))


def load_trunk(source: str | Path, *, n_layer: int | None = None, revision: str | None = None) -> Trunk:
    """Read, check and convert GPT-2 weights from a folder or the hub.

    Reads ``model.safetensors``, else the shards of ``model.safetensors.index.json``, with or without the ``transformer.``
    prefix, and what :func:`convert` wrote, whose sha256 is checked. float16, bfloat16, float32 and float64 become float32.

    Args:
        source: A folder of Hugging Face's or of :func:`convert`'s, or a hub id.
        n_layer: Keep the first ``n_layer`` blocks; None keeps all.
        revision: Branch, tag or commit of a hub id.

    Raises:
        WeightsError: Nothing found, pickled weights only, damaged files, tensors that are missing, unexpected, misshapen or
            not finite (all of them named in one error), or what :func:`read_config` refuses.
        CheckpointError: The ``trunk.json`` of a converted folder is unreadable or newer than this version.
    """
    folder, origin = resolve(source, revision, [CONFIG, MANIFEST, WEIGHTS, INDEX, "model-*.safetensors"])
    manifest = read_manifest(folder)
    stored_config = folder_config(folder, manifest)
    config = _keep(stored_config, n_layer, str(source))
    if manifest is not None:
        check_digest(folder, WEIGHTS, manifest["sha256"])
        origin = str(manifest["source"])
    stored = inventory(folder, str(source))
    names, dropped = _match(stored, stored_config, config, folder)
    return Trunk(config, trees.unflatten(_read(stored, names)), origin, dropped)


def random_trunk(config: GPT2Config, seed: int) -> Trunk:
    """A trunk with Hugging Face's initial distribution, the same bits from ``seed`` on every machine.

    Kernels and positions ~ N(0, 0.02²), both ``c_proj`` kernels ~ N(0, 0.02² / (2 n_layer)), biases 0, layer norms 1 and 0; drawn
    by :func:`ofa_jax.model.frozen_init.normal` under ``gpt2/<path>``. ``source`` is ``random``.
    """
    residual_std = _INITIALIZER_RANGE / float(np.sqrt(np.float64(2 * config.n_layer)))
    flat: dict[str, np.ndarray] = {}
    for path, shape in trunk_shapes(config).items():
        kind = path.rpartition("/")[2]
        if kind in ("kernel", "embedding"):
            std = residual_std if path.endswith("c_proj/kernel") else _INITIALIZER_RANGE
            flat[path] = frozen_init.normal(seed, f"gpt2/{path}", shape, std)
        else:
            flat[path] = np.full(shape, 1 if kind == "scale" else 0, np.float32)
        flat[path].flags.writeable = False
    return Trunk(config, trees.unflatten(flat), "random")


def save_trunk(trunk: Trunk, out: str | Path, dtype: str = "float32") -> dict[str, Any]:
    """Write a trunk folder: Hugging Face's GPT-2 layout without ``wte``, plus ``trunk.json`` with its digests.

    Args:
        trunk: What to write.
        out: A folder; it may be new, empty, or a trunk folder, which is replaced.
        dtype: Stored type: ``float32``, ``bfloat16`` or ``float16``. The fingerprint is that of the trunk as it will load.

    Returns:
        What ``trunk.json`` holds (source, layers, dtype, parameters, dropped, sha256, config_sha256, fingerprint) and ``bytes``.

    Raises:
        WeightsError: ``out`` holds something else, an unknown ``dtype``, or values too large for it.
    """
    from safetensors.numpy import save_file

    out = _writable(out)
    leaves = trees.flatten(trunk.params)
    stored = {name: _cast(leaves[path], dtype, name) for name, (path, _) in _rows(trunk.config).items()}
    as_loaded = {
        path: stored[name].astype(np.float32, copy=False) for name, (path, _) in _rows(trunk.config).items()
    }
    config = {"architectures": ["GPT2Model"], "model_type": "gpt2", **asdict(trunk.config), "dtype": dtype}
    with files.atomic_folder(out) as scratch:
        files.write_atomic(scratch / CONFIG, json.dumps(config, indent=2) + "\n")
        save_file(stored, scratch / WEIGHTS, metadata={"format": "pt"})
        (scratch / WEIGHTS).chmod(
            (scratch / CONFIG).stat().st_mode
        )  # safetensors writes 0600; a trunk may be shared
        report = {
            "source": trunk.source,
            "layers": trunk.config.n_layer,
            "dtype": dtype,
            "parameters": sum(leaf.size for leaf in stored.values()),
            "dropped": dict(Counter(re.sub(r"(?<=\bh\.)\d+", "*", name) for name in trunk.dropped)),
            "sha256": files.sha256_file(scratch / WEIGHTS),
            "config_sha256": files.sha256_file(scratch / CONFIG),
            "fingerprint": trees.fingerprint(sorted(as_loaded.items())),
        }
        files.write_json(scratch / MANIFEST, report)
        size = sum(file.stat().st_size for file in scratch.iterdir())
    return {**report, "bytes": size}


def convert(
    source: str | Path,
    out: str | Path,
    *,
    n_layer: int | None = None,
    revision: str | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """:func:`load_trunk`, then :func:`save_trunk`; returns the latter's report. Such a folder loads without ``transformers``."""
    _writable(out)
    return save_trunk(load_trunk(source, n_layer=n_layer, revision=revision), out, dtype)


def _keep(config: GPT2Config, n_layer: int | None, where: str) -> GPT2Config:
    if n_layer is None:
        return config
    if not 1 <= n_layer <= config.n_layer:
        raise WeightsError(
            f"{n_layer} blocks are asked for, but this trunk has {config.n_layer}",
            where=where,
            fix=f"Set n_layer between 1 and {config.n_layer}",
        )
    return replace(config, n_layer=n_layer)


def _match(
    stored: Mapping[str, Stored], stored_config: GPT2Config, config: GPT2Config, folder: Path
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Path -> stored name for every parameter of ``config``, and the names that are dropped."""
    rows, all_rows, root = _rows(config), _rows(stored_config), "transformer."
    prefixed = [name for name in stored if name.startswith(root)]
    bare = [name for name in stored if name in all_rows or name == "wte.weight"]
    if prefixed and bare:
        what = f"some names carry the prefix {root!r} ({listing(prefixed, 3)}) and some do not ({listing(bare, 3)})"
        raise WeightsError(
            what, where=str(folder), fix="The folder mixes two models; save it again with transformers"
        )
    names: dict[str, str] = {}
    dropped, unexpected, unfit = [], [], []
    for full_name, entry in stored.items():
        name = full_name.removeprefix(root)
        if name in rows:
            path, shape = rows[name]
            names[path] = full_name
            if entry.shape != shape or entry.dtype not in _DTYPES:
                unfit.append(f"{full_name} is {entry.dtype} {list(entry.shape)}, not a float {list(shape)}")
        elif name in all_rows or _UNUSED.fullmatch(name):
            dropped.append(full_name)
        else:
            unexpected.append(full_name)
    missing = [(root if prefixed else "") + name for name, (path, _) in rows.items() if path not in names]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape or type": unfit}
    if any(faults.values()):
        what = "; ".join(f"{len(found)} {kind}: {listing(found)}" for kind, found in faults.items() if found)
        fix = "Check that config.json and the weights belong together and are plain GPT-2, with no adapters or compression in them"
        raise WeightsError(f"the tensors are not those of config.json: {what}", where=str(folder), fix=fix)
    return names, tuple(sorted(dropped))


def _read(stored: Mapping[str, Stored], names: Mapping[str, str]) -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    bad = []
    for file in sorted({stored[name].file for name in names.values()}):
        with open_tensors(file) as tensors:
            for path, name in names.items():
                if stored[name].file != file:
                    continue
                with np.errstate(
                    over="ignore"
                ):  # a float64 beyond float32 becomes infinite and is named below
                    flat[path] = np.asarray(tensors.get_tensor(name), np.float32)
                flat[path].flags.writeable = False
                if not np.isfinite(flat[path]).all():
                    bad.append(f"{name} in {file.name}")
    if bad:
        fix = "The weights are damaged or their training diverged; download them again, or choose others"
        raise WeightsError(f"not finite in float32: {listing(bad)}", where=str(file.parent), fix=fix)
    return flat


def _cast(leaf: np.ndarray, dtype: str, name: str) -> np.ndarray:
    import ml_dtypes

    types = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
    if dtype not in types:
        raise WeightsError(
            f"dtype {dtype!r} is unknown", where="convert", fix=f"Choose one of {', '.join(types)}"
        )
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(leaf, types[dtype])
    if not np.isfinite(cast.astype(np.float32)).all():
        raise WeightsError(
            f"{name} holds values beyond the range of {dtype}",
            where="convert",
            fix="Choose float32 or bfloat16",
        )
    return cast


def _writable(out: str | Path) -> Path:
    """``out`` as an absolute path, if it may be written: absent, empty, or nothing but a trunk folder."""
    out = Path(out).expanduser().resolve()
    if out.exists() and not out.is_dir():
        raise WeightsError("is a file", where=str(out), fix="Name a new folder")
    foreign = (
        sorted(file.name for file in out.iterdir() if file.name not in (CONFIG, WEIGHTS, MANIFEST))
        if out.exists()
        else []
    )
    if foreign or (out.exists() and any(out.iterdir()) and not (out / MANIFEST).exists()):
        found = f" (it holds {listing(foreign, 5)})" if foreign else ""
        raise WeightsError(
            f"is not empty and not a trunk folder{found}; it is left alone",
            where=str(out),
            fix="Name a new folder",
        )
    return out

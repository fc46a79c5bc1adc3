"""The adapter bundle: what training made, small, and enough to rebuild the network anywhere the trunk exists.

A bundle is a folder:

=============================  ==============================================================================================
``adapter_model.safetensors``  the adapters under peft's names; absent where a recipe has none
``adapter_config.json``        peft's configuration of them
``trained.safetensors``        base parameters that the recipe trains, by path; absent where none
``ofa.json``                   everything else: settings, scaler, seeds, rule and fingerprints of what is frozen, versions
=============================  ==============================================================================================

The two adapter files are peft's own (0.21): peft reads them, and :func:`read_peft` reads what peft writes. ``ofa.json`` holds the
sha256 of the other files, so a damaged bundle is noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ofa_jax.adapters.partition import Site
from ofa_jax.adapters.rslora import Adapters, adapter_scale
from ofa_jax.config.schema import Scaling
from ofa_jax.errors import CheckpointError, WeightsError
from ofa_jax.files import atomic_folder, read_json, readable_folder, sha256_file, write_json
from ofa_jax.model import trees

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
TRAINED_FILE = "trained.safetensors"
META_FILE = "ofa.json"
PEFT_PREFIX = "base_model.model."

_SUFFIXES: dict[str, tuple[str, str]] = {
    "dense": (".lora_A.weight", ".lora_B.weight"),
    "embedding": (".lora_embedding_A", ".lora_embedding_B"),
}


@dataclass(frozen=True)
class LoraNumbers:
    """Rank, alpha, scaling and dropout of a set of adapters; ``scale`` is the factor before ``a b``."""

    rank: int
    alpha: float
    scaling: Scaling
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        return adapter_scale(self.rank, self.alpha, self.scaling)


@dataclass(frozen=True)
class Bundle:
    """A bundle read back: adapters, trained base parameters (nested) and the contents of ``ofa.json``."""

    adapters: Adapters
    trained: dict[str, Any]
    meta: dict[str, Any]


def peft_tensors(
    adapters: Mapping[str, Mapping[str, Any]], sites: Mapping[str, Site]
) -> dict[str, np.ndarray]:
    """Adapters under peft's tensor names: ``A`` is ``a`` transposed, ``B`` is ``b`` transposed (protocol §1)."""
    tensors = {}
    for path, factors in adapters.items():
        stem = PEFT_PREFIX + path.replace("/", ".")
        for suffix, factor in zip(_SUFFIXES[sites[path].kind], ("a", "b"), strict=True):
            tensors[stem + suffix] = np.ascontiguousarray(np.asarray(factors[factor], np.float32).T)
    return tensors


def peft_config(numbers: LoraNumbers, adapters: Mapping[str, Any], init: str) -> dict[str, Any]:
    """peft's ``adapter_config.json`` for these adapters.

    peft has no scaling ``none``; it is written as LoRA with ``alpha * rank``, which peft divides by the rank again.
    """
    alpha = numbers.alpha * numbers.rank if numbers.scaling == "none" else numbers.alpha
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": numbers.rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "use_rslora": numbers.scaling == "rslora",
        "lora_dropout": numbers.dropout,
        "init_lora_weights": "gaussian" if init == "peft_gaussian" else True,
        "target_modules": sorted({path.replace("/", ".") for path in adapters}),
        "bias": "none",
        "fan_in_fan_out": False,
    }


def write_bundle(
    folder: str | Path,
    *,
    adapters: Mapping[str, Mapping[str, Any]],
    sites: Mapping[str, Site],
    trained: Mapping[str, Any],
    numbers: LoraNumbers,
    init: str,
    meta: Mapping[str, Any],
) -> None:
    """Write a bundle so that the folder holds the old one or the new one, whole, whenever the process is killed.

    Args:
        folder: The bundle's folder; an existing bundle there is replaced.
        adapters: Adapters by module path; may be empty.
        sites: Kind and shape of each adapted layer.
        trained: Trained base parameters, nested; may be empty.
        numbers: The adapters' rank, alpha, scaling and dropout.
        init: How the adapters began.
        meta: What else belongs into ``ofa.json``; must be JSON.
    """
    from safetensors.numpy import save_file

    files = {}
    with atomic_folder(folder) as scratch:
        if adapters:
            save_file(peft_tensors(adapters, sites), scratch / ADAPTER_FILE, metadata={"format": "pt"})
            (scratch / ADAPTER_CONFIG).write_text(
                json.dumps(peft_config(numbers, adapters, init), indent=2) + "\n"
            )
        if trained:
            flat = {path: np.ascontiguousarray(leaf) for path, leaf in trees.flatten(trained).items()}
            save_file(flat, scratch / TRAINED_FILE)
        for file in sorted(scratch.iterdir()):
            files[file.name] = sha256_file(file)
        lora = {
            "rank": numbers.rank,
            "alpha": numbers.alpha,
            "scaling": numbers.scaling,
            "dropout": numbers.dropout,
            "init": init,
        }
        content = {**meta, "adapters": lora if adapters else None, "files": files}
        write_json(scratch / META_FILE, {**content, "sha256": _content_digest(content)})


def _content_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_file(folder: Path, name: str, digest: str) -> None:
    if sha256_file(folder / name) != digest:
        raise CheckpointError(
            f"{name} is not the file that was saved (its sha256 differs from the one in {META_FILE})",
            where=str(folder),
            fix="The bundle is damaged or was changed; copy it again",
        )


def read_bundle(folder: str | Path) -> Bundle:
    """Read a bundle and check it against itself.

    Raises:
        CheckpointError: No bundle here, a file is missing or damaged, or the scaling in the two configurations differs.
    """
    folder = readable_folder(folder)
    meta = read_json(folder / META_FILE, kind="bundle")
    own = {key: value for key, value in meta.items() if key not in ("format", "sha256")}
    if meta.get("sha256") != _content_digest(own):
        raise CheckpointError(
            "was changed after it was saved (its sha256 differs)",
            where=str(folder / META_FILE),
            fix="Copy the bundle again",
        )
    for name, digest in meta["files"].items():
        if not (folder / name).is_file():
            raise CheckpointError(
                f"the bundle's file {name} is missing", where=str(folder), fix="Copy the whole bundle folder"
            )
        if name != ADAPTER_CONFIG:  # its scaling is compared first, for an error that says what was changed
            _check_file(folder, name, digest)
    adapters: Adapters = {}
    if ADAPTER_FILE in meta["files"]:
        adapters, _, peft_numbers = read_peft(folder)
        saved = meta["adapters"]
        numbers = LoraNumbers(saved["rank"], saved["alpha"], saved["scaling"], saved["dropout"])
        if (
            not math.isclose(numbers.scale, peft_numbers.scale, rel_tol=1e-9)
            or numbers.rank != peft_numbers.rank
        ):
            raise CheckpointError(
                f"the scaling in {ADAPTER_CONFIG} (rank {peft_numbers.rank}, alpha {peft_numbers.alpha:g}, {peft_numbers.scaling}) is not "
                f"the one the adapters were trained with (rank {numbers.rank}, alpha {numbers.alpha:g}, {numbers.scaling})",
                where=str(folder),
                fix=f"Restore the original {ADAPTER_CONFIG}",
            )
        _check_file(folder, ADAPTER_CONFIG, meta["files"][ADAPTER_CONFIG])
    trained = trees.unflatten(_read_tensors(folder / TRAINED_FILE)) if TRAINED_FILE in meta["files"] else {}
    return Bundle(adapters, trained, meta)


_FREE_KEYS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "base_model_class",
        "parent_library",
        "inference_mode",
        "init_lora_weights",
        "peft_version",
        "revision",
        "task_type",
        "target_modules",
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        "peft_type",
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "fan_in_fan_out",
        "megatron_core",
        "qalora_group_size",
        "bias",
        "ensure_weight_tying",
    }
)
"""Keys of peft's configuration that are read here or do not change what the saved tensors mean."""


def read_peft(folder: str | Path) -> tuple[Adapters, dict[str, Site], LoraNumbers]:
    """Read a LoRA adapter that peft saved.

    Returns:
        The adapters by module path, kind and shape of their layers, and their numbers.

    Raises:
        CheckpointError: There is no adapter here, or a file cannot be read.
        WeightsError: The adapter uses a feature that would change its mathematics (DoRA, a rank or alpha per layer, trained
            biases, …), a tensor is not a LoRA factor, or shapes contradict the configured rank.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no {ADAPTER_CONFIG} here", where=str(folder), fix="Name a folder that peft saved"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"not readable as JSON ({error})", where=str(folder / ADAPTER_CONFIG)) from None
    _refuse_features(config, folder)
    given = {
        "r": 8,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
    } | config  # peft's own defaults, for files that leave them out
    for key in ("r", "lora_alpha", "lora_dropout"):
        if isinstance(given[key], bool) or not isinstance(given[key], int if key == "r" else int | float):
            raise WeightsError(
                f"{key} is {given[key]!r}, which is not a number", where=str(folder / ADAPTER_CONFIG)
            )
    rank = given["r"]
    scaling: Scaling = "rslora" if config.get("use_rslora", False) else "lora"
    numbers = LoraNumbers(rank, given["lora_alpha"], scaling, given["lora_dropout"])

    factors: dict[str, dict[str, np.ndarray]] = {}
    kinds: dict[str, Literal["dense", "embedding"]] = {}
    for name, tensor in _read_tensors(folder / ADAPTER_FILE).items():
        path, kind, factor = _parse_name(name, folder)
        if tensor.ndim != 2 or tensor.shape[0 if factor == "a" else 1] != rank:
            raise WeightsError(
                f"{name} has shape {tensor.shape}, which does not fit rank {rank}", where=str(folder)
            )
        if kinds.setdefault(path, kind) != kind:
            raise WeightsError(
                f"{path} mixes factors of a dense layer and of an embedding", where=str(folder / ADAPTER_FILE)
            )
        factors.setdefault(path, {})[factor] = np.ascontiguousarray(tensor.T.astype(np.float32))
    half = sorted(path for path, pair in factors.items() if len(pair) < 2)
    if half or not factors:
        problem = (
            f"{', '.join(half)} has only one of its two factors" if half else "there is no adapter tensor"
        )
        raise WeightsError(problem, where=str(folder / ADAPTER_FILE), fix="Save the adapter again")
    sites = {
        path: Site(kinds[path], (pair["a"].shape[0], pair["b"].shape[1])) for path, pair in factors.items()
    }
    return {path: {"a": pair["a"], "b": pair["b"]} for path, pair in factors.items()}, sites, numbers


def _refuse_features(config: Any, folder: Path) -> None:
    place = str(folder / ADAPTER_CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else None
        raise WeightsError(f"peft_type is {found!r}, only LORA is supported", where=place)
    used = [f"{key}={value!r}" for key, value in config.items() if key not in _FREE_KEYS and value]
    if config.get("bias", "none") != "none":
        used.append(f"bias={config['bias']!r}")
    if config.get("init_lora_weights", True) not in (
        True,
        False,
        "gaussian",
    ):  # PiSSA, OLoRA and others change the base weights
        used.append(f"init_lora_weights={config['init_lora_weights']!r}")
    if used:
        raise WeightsError(
            f"the adapter uses {', '.join(used)}, which is not supported",
            where=place,
            fix="Only plain LoRA and rsLoRA with one rank and alpha for all layers can be read",
        )


def _parse_name(name: str, folder: Path) -> tuple[str, Literal["dense", "embedding"], str]:
    for kind, suffixes in _SUFFIXES.items():
        for suffix, factor in zip(suffixes, ("a", "b"), strict=True):
            if name.startswith(PEFT_PREFIX) and name.endswith(suffix):
                path = name.removeprefix(PEFT_PREFIX).removesuffix(suffix).replace(".", "/")
                return path, "dense" if kind == "dense" else "embedding", factor
    raise WeightsError(
        f"{name!r} is not a LoRA factor",
        where=str(folder / ADAPTER_FILE),
        fix="Only LoRA tensors can be read",
    )


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path.name} here", where=str(path.parent)) from None
    except SafetensorError as error:
        raise CheckpointError(
            f"not readable as safetensors ({error})", where=str(path), fix="The file is damaged"
        ) from None

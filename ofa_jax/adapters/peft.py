"""Adapters in the file format of Hugging Face peft (0.21), written and read (protocol §1).

peft stores ``A: [r, in]`` and ``B: [out, r]``, which are our ``a`` and ``b`` transposed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ofa_jax.adapters.partition import AdapterTarget, LayerKind
from ofa_jax.adapters.rslora import Adapters, LoraConfig
from ofa_jax.config.schema import Init, Scaling
from ofa_jax.errors import WeightsError
from ofa_jax.files import Record, parse_record, read_json, short
from ofa_jax.tensors import read_tensors

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

_PREFIX = "base_model.model."
_SUFFIXES: dict[str, tuple[LayerKind, str]] = {
    ".lora_A.weight": ("dense", "a"),
    ".lora_B.weight": ("dense", "b"),
    ".lora_embedding_A": ("embedding", "a"),
    ".lora_embedding_B": ("embedding", "b"),
}

_INERT = re.compile(
    "auto_mapping|base_model_(class|name_or_path)|ensure_weight_tying|exclude_modules|fan_in_fan_out"
    "|inference_mode|layers_pattern|layers_to_transform|megatron_core|parent_library|peft_version"
    "|qalora_group_size|revision|target_modules|task_type"
)
"""Fields of peft's configuration that do not change what the stored tensors mean."""


class _PeftConfig(Record):
    """Fields of ``adapter_config.json`` that decide what the stored tensors mean, with peft's defaults."""

    peft_type: Literal["LORA"]
    r: int = Field(8, ge=1, le=2**16)
    lora_alpha: float = Field(8, ge=0, le=1e12)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    use_rslora: bool = False
    bias: Literal["none"] = "none"
    # PiSSA, OLoRA and others change the base weights
    init_lora_weights: Literal[True, False, "gaussian"] = True


def peft_config(lora: LoraConfig, adapters: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``adapter_config.json``.

    peft has no scaling ``none``; it is written as LoRA with ``alpha * rank``, which peft divides by the rank.
    """
    alpha = lora.alpha * lora.rank if lora.scaling == "none" else lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "use_rslora": lora.scaling == "rslora",
        "lora_dropout": lora.dropout,
        "init_lora_weights": "gaussian" if lora.init == "peft_gaussian" else True,
        "target_modules": sorted(path.replace("/", ".") for path in adapters),
        "bias": "none",
        "fan_in_fan_out": False,
    }


def peft_tensors(adapters: Adapters, targets: Mapping[str, AdapterTarget]) -> dict[str, np.ndarray]:
    """Adapters under peft's tensor names."""
    tensors = {}
    for path, factors in adapters.items():
        for suffix, (kind, factor) in _SUFFIXES.items():
            if kind == targets[path].kind:
                name = _PREFIX + path.replace("/", ".") + suffix
                tensors[name] = np.ascontiguousarray(np.asarray(factors[factor], np.float32).T)
    return tensors


def write_peft(
    folder: Path, adapters: Adapters, targets: Mapping[str, AdapterTarget], lora: LoraConfig
) -> None:
    """Write adapters into an existing folder, as peft does."""
    from safetensors.numpy import save_file

    save_file(peft_tensors(adapters, targets), folder / ADAPTER_FILE, metadata={"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(peft_config(lora, adapters), indent=2) + "\n")


def read_peft(folder: str | Path) -> tuple[Adapters, dict[str, AdapterTarget], LoraConfig]:
    """Read a LoRA adapter that peft saved.

    Returns:
        The adapters by module path, their layers, and their configuration (peft's ``init_lora_weights`` true
        is ``kaiming``).

    Raises:
        WeightsError: A file is missing or unreadable; the adapter uses a feature that would change its
            mathematics (DoRA, a rank or alpha per layer, trained biases, …); a tensor is not a LoRA factor,
            not finite, or does not fit the configured rank.
    """
    lora, path = _read_config(Path(folder) / ADAPTER_CONFIG), Path(folder) / ADAPTER_FILE
    adapters: Adapters = {}
    kinds: dict[str, LayerKind] = {}

    def refused(what: str) -> WeightsError:
        return WeightsError(what, where=str(path), fix="Save the adapter again, as plain LoRA")

    for name, tensor in read_tensors(path, error=WeightsError).items():
        suffix = next((end for end in _SUFFIXES if name.endswith(end)), None)
        if suffix is None or not name.startswith(_PREFIX):
            raise refused(f"{short(name)} is not a LoRA factor")
        kind, factor = _SUFFIXES[suffix]
        module = name.removeprefix(_PREFIX).removesuffix(suffix).replace(".", "/")
        if tensor.ndim != 2 or tensor.shape[0 if factor == "a" else 1] != lora.rank:
            raise refused(f"{name} has shape {tensor.shape}, which does not fit rank {lora.rank}")
        if kinds.setdefault(module, kind) != kind:
            raise refused(f"{module} mixes factors of a dense layer and of an embedding")
        adapters.setdefault(module, {})[factor] = np.ascontiguousarray(tensor.T)
    if not adapters:
        raise refused("there is no adapter tensor")
    if incomplete := sorted(module for module, pair in adapters.items() if len(pair) < 2):
        raise refused(f"{', '.join(incomplete)} has only one of its two factors")
    targets = {
        module: AdapterTarget(kinds[module], (len(pair["a"]), pair["b"].shape[1]))
        for module, pair in adapters.items()
    }
    return adapters, targets, lora


def _read_config(path: Path) -> LoraConfig:
    content = read_json(path, kind="peft adapter", error=WeightsError)
    others = sorted(content.keys() - _PeftConfig.model_fields.keys())
    features = [
        f"{key}={content[key]!r}"[:100] for key in others if content[key] and not _INERT.fullmatch(key)
    ]
    fix = "Save the adapter with peft again, as plain LoRA or rsLoRA with one rank and alpha for all layers"
    if features:
        raise WeightsError(f"{', '.join(features)} is not supported", where=str(path), fix=fix)
    found = parse_record(content, _PeftConfig, where=str(path), error=WeightsError, fix=fix)
    scaling: Scaling = "rslora" if found.use_rslora else "lora"
    init: Init = "peft_gaussian" if found.init_lora_weights == "gaussian" else "kaiming"
    return LoraConfig(found.r, found.lora_alpha, scaling, found.lora_dropout, init)

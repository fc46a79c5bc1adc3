"""Adapters in the file format of Hugging Face peft (0.21), written and read (protocol §1).

peft stores ``A: [r, in]`` and ``B: [out, r]``, which are our ``a`` and ``b`` transposed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ofa_jax.adapters.partition import AdapterTarget, LayerKind
from ofa_jax.adapters.rslora import Adapters, LoraConfig
from ofa_jax.config.schema import Init, Scaling
from ofa_jax.errors import WeightsError
from ofa_jax.files import Record, parse_record, read_json, read_tensors

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

_PREFIX = "base_model.model."
_SUFFIXES: dict[str, tuple[LayerKind, str]] = {
    ".lora_A.weight": ("dense", "a"),
    ".lora_B.weight": ("dense", "b"),
    ".lora_embedding_A": ("embedding", "a"),
    ".lora_embedding_B": ("embedding", "b"),
}

Rank = Annotated[int, Field(ge=1, le=2**16)]
Alpha = Annotated[float, Field(ge=0, le=1e12)]
Dropout = Annotated[float, Field(ge=0, lt=1)]

_INERT_FIELDS = {
    *(
        "auto_mapping",
        "base_model_class",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "exclude_modules",
    ),
    *("fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "megatron_core"),
    *("parent_library", "peft_version", "qalora_group_size", "revision", "target_modules", "task_type"),
}
"""Fields of peft's configuration that do not change what the stored tensors mean."""


class _PeftConfig(Record):
    """Fields of ``adapter_config.json`` that decide what the stored tensors mean, with peft's defaults."""

    peft_type: Literal["LORA"]
    r: Rank = 8
    lora_alpha: Alpha = 8
    lora_dropout: Dropout = 0.0
    use_rslora: bool = False
    bias: Literal["none"] = "none"
    init_lora_weights: Literal[True, False, "gaussian"] = (
        True  # PiSSA, OLoRA and others change the base weights
    )

    def lora(self) -> LoraConfig:
        scaling: Scaling = "rslora" if self.use_rslora else "lora"
        init: Init = "peft_gaussian" if self.init_lora_weights == "gaussian" else "kaiming"
        return LoraConfig(self.r, self.lora_alpha, scaling, self.lora_dropout, init)


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


def peft_tensors(
    adapters: Mapping[str, Mapping[str, Any]], targets: Mapping[str, AdapterTarget]
) -> dict[str, np.ndarray]:
    """Adapters under peft's tensor names."""
    tensors = {}
    for path, factors in adapters.items():
        stem = _PREFIX + path.replace("/", ".")
        for suffix, (kind, factor) in _SUFFIXES.items():
            if kind == targets[path].kind:
                tensors[stem + suffix] = np.ascontiguousarray(np.asarray(factors[factor], np.float32).T)
    return tensors


def write_peft(
    folder: Path,
    adapters: Mapping[str, Mapping[str, Any]],
    targets: Mapping[str, AdapterTarget],
    lora: LoraConfig,
) -> None:
    """Write adapters into an existing folder, as peft does."""
    from safetensors.numpy import save_file

    save_file(peft_tensors(adapters, targets), folder / ADAPTER_FILE, metadata={"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(peft_config(lora, adapters), indent=2) + "\n")


def read_peft(folder: str | Path) -> tuple[Adapters, dict[str, AdapterTarget], LoraConfig]:
    """Read a LoRA adapter that peft saved.

    Returns:
        The adapters by module path, their layers, and their configuration. peft's ``init_lora_weights`` true
        is read as ``kaiming``.

    Raises:
        WeightsError: A file is missing or unreadable; the adapter uses a feature that would change its
            mathematics (DoRA, a rank or alpha per layer, trained biases, …); a tensor is not a LoRA factor,
            not finite, or does not fit the configured rank.
    """
    folder = Path(folder)
    lora = _read_config(folder / ADAPTER_CONFIG)
    factors: dict[str, dict[str, np.ndarray]] = {}
    kinds: dict[str, LayerKind] = {}
    where = str(folder / ADAPTER_FILE)
    for name, tensor in read_tensors(folder / ADAPTER_FILE, error=WeightsError).items():
        suffix = next((end for end in _SUFFIXES if name.endswith(end)), None)
        if suffix is None or not name.startswith(_PREFIX):
            fix = "Only LoRA tensors can be read"
            raise WeightsError(f"{name!r} is not a LoRA factor", where=where, fix=fix)
        kind, factor = _SUFFIXES[suffix]
        path = name.removeprefix(_PREFIX).removesuffix(suffix).replace(".", "/")
        if tensor.ndim != 2 or tensor.shape[0 if factor == "a" else 1] != lora.rank:
            what = f"{name} has shape {tensor.shape}, which does not fit rank {lora.rank}"
            raise WeightsError(what, where=where)
        if kinds.setdefault(path, kind) != kind:
            raise WeightsError(f"{path} mixes factors of a dense layer and of an embedding", where=where)
        factors.setdefault(path, {})[factor] = np.ascontiguousarray(tensor.T)
    incomplete = ", ".join(sorted(path for path, pair in factors.items() if len(pair) < 2))
    if incomplete or not factors:
        what = f"{incomplete} has only one of its two factors" if incomplete else "there is no adapter tensor"
        raise WeightsError(what, where=where, fix="Save the adapter again")
    targets = {
        path: AdapterTarget(kinds[path], (pair["a"].shape[0], pair["b"].shape[1]))
        for path, pair in factors.items()
    }
    return {path: {"a": pair["a"], "b": pair["b"]} for path, pair in factors.items()}, targets, lora


def _read_config(path: Path) -> LoraConfig:
    content = read_json(path, kind="peft adapter", error=WeightsError)
    known = _INERT_FIELDS | _PeftConfig.model_fields.keys()
    features = [f"{key}={value!r}"[:100] for key, value in content.items() if key not in known and value]
    fix = "Only plain LoRA and rsLoRA with one rank and alpha for all layers can be read"
    if features:
        raise WeightsError(f"{', '.join(features)} is not supported", where=str(path), fix=fix)
    return parse_record(content, _PeftConfig, where=str(path), error=WeightsError, fix=fix).lora()

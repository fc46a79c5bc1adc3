"""Adapters of three layers, one of them an embedding, that are small enough to write down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ofa_jax.adapters.partition import AdapterTarget
from ofa_jax.adapters.rslora import LoraConfig

TARGETS = {
    "gpt2/wpe": AdapterTarget("embedding", (7, 4)),
    "gpt2/h/0/attn/c_attn": AdapterTarget("dense", (4, 12)),
    "out_layer": AdapterTarget("dense", (9, 3)),
}
LORA = LoraConfig(rank=5, alpha=16, scaling="rslora", dropout=0.01)


def adapters() -> dict:
    rng = np.random.default_rng(0)
    return {
        path: {
            "a": rng.normal(size=(target.shape[0], 5)).astype(np.float32),
            "b": rng.normal(size=(5, target.shape[1])).astype(np.float32),
        }
        for path, target in TARGETS.items()
    }


def edit(folder: Path, change: dict) -> None:
    """Change fields of ``adapter_config.json``; ... removes one."""
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

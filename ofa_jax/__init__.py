"""One-for-All in JAX: a frozen GPT-2 adapted to time series by rank-stabilised low-rank adapters.

The names below are the public ones; each is imported when it is first used, so that ``import ofa_jax`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "OfaError": "ofa_jax.errors",
    "Frame": "ofa_jax.data.frames",
    "read_frame": "ofa_jax.data.frames",
    "GPT2Config": "ofa_jax.model.gpt2",
    "GPT2Trunk": "ofa_jax.model.gpt2",
    "load_trunk": "ofa_jax.model.weights",
    "random_trunk": "ofa_jax.model.weights",
    "ForecastNetwork": "ofa_jax.model.networks",
    "init_base": "ofa_jax.model.networks",
    "RECIPES": "ofa_jax.config",
    "load_experiment": "ofa_jax.config",
    "partition": "ofa_jax.adapters.partition",
    "combine": "ofa_jax.adapters.partition",
    "LoraConfig": "ofa_jax.adapters.rslora",
    "init_adapters": "ofa_jax.adapters.rslora",
    "with_adapters": "ofa_jax.adapters.rslora",
    "merge": "ofa_jax.adapters.rslora",
    "read_peft": "ofa_jax.adapters.peft",
    "train_run": "ofa_jax.runs.train",
    "load_bundle": "ofa_jax.runs.train",
    "forecast": "ofa_jax.inference",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ofa_jax' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})

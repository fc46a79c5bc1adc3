"""One-for-All in JAX: a frozen GPT-2 adapted to time series by rank-stabilized low-rank adapters.

The names below are public; each is imported on first use, so that ``import ofa_jax`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "errors": ["OfaError"],
    "estimators.forecaster": ["OneForAllForecaster"],
    "estimators.classifier": ["OneForAllClassifier"],
    "estimators.detector": ["OneForAllAnomalyDetector"],
    "estimators.imputer": ["OneForAllImputer"],
    "estimators.intervals": ["PredictionIntervals"],
    "config.schema": ["Experiment"],
    "config.load": ["load_experiment"],
    "config.recipes": ["RECIPES", "Recipe"],
    "data.frames": ["Frame", "read_frame"],
    "model.gpt2": ["GPT2Config", "GPT2Trunk"],
    "model.weights": ["load_trunk", "random_trunk"],
    "model.networks": ["ForecastNetwork", "init_base"],
    "adapters.partition": ["combine", "partition"],
    "adapters.rslora": ["LoraConfig", "init_adapters", "merge", "with_adapters"],
    "adapters.peft": ["read_peft"],
    "train.fit": ["fit"],
    "runs.train": ["open_run", "train_run"],
    "runs.bundle": ["load_bundle"],
    "estimators.zero_shot": ["forecast"],
    "inference": ["evaluate", "predict"],
    "baselines.compare": ["compare"],
}
_PUBLIC = {name: f"ofa_jax.{module}" for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ofa_jax' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})

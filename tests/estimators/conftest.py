"""A small pretrained trunk with random weights: what estimators do with frames does not depend on skill."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ofa_jax.model.convert import save_trunk
from ofa_jax.model.gpt2 import Forecaster, GPT2Config
from ofa_jax.model.weights import Trunk, random_trunk, trunk_tensors


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Its folder: context 64, native horizon 16."""
    around = Forecaster(patch=8, context=64, horizon=16)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=10, forecaster=around)
    draw, params = np.random.default_rng(0), dict(random_trunk(config, 0).params)
    for path, shape in trunk_tensors(config).values():
        layer, _, leaf = path.partition("/")
        if layer in ("in_layer", "median_layer", "spread_layer"):
            params.setdefault(layer, {})[leaf] = draw.normal(0, 0.3, shape).astype(np.float32)
    folder = tmp_path_factory.mktemp("trunks") / "small"
    save_trunk(Trunk(config, params, "pretrained"), folder)
    return str(folder)


def long_frame(lengths=(90, 40, 120), *, freq="h", seed=0):
    """Noisy waves of several sizes; ids ``b``, ``a``, ``c``, … in this order."""
    draw = np.random.default_rng(seed)
    parts = []
    for number, steps in enumerate(lengths):
        name = "bacdefghijklmnop"[number]
        wave = 10.0 ** (number % 3) * (
            5 + np.sin(2 * np.pi * np.arange(steps) / 12) + draw.normal(0, 0.3, steps)
        )
        times = pd.date_range("2024-03-01", periods=steps, freq=freq)
        parts.append(pd.DataFrame({"unique_id": name, "ds": times, "y": 10.0 ** (number % 3) * wave}))
    return pd.concat(parts, ignore_index=True)

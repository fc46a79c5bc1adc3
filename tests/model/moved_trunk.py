"""A random trunk with every leaf moved off its initial value, so that biases and norms are not idle."""

from __future__ import annotations

from typing import Any

import numpy as np

from ofa_jax.model.gpt2 import GPT2Config
from ofa_jax.model.trees import flatten, unflatten
from ofa_jax.model.weights import random_trunk


def moved_tree(tree: dict[str, Any], seed: int = 3) -> dict[str, Any]:
    """A tree with 0.2 times a normal value added to every number."""
    draw = np.random.default_rng(seed)
    flat = flatten(tree)
    return unflatten(
        {path: leaf + 0.2 * draw.normal(size=leaf.shape).astype("f4") for path, leaf in flat.items()}
    )


def moved_trunk(config: GPT2Config) -> dict[str, Any]:
    return moved_tree(random_trunk(config, 0).params)

"""What the trunk attends to in some test windows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.build import Model
from ofa_jax.model.gpt2 import GPT2Trunk
from ofa_jax.plots.run import attention_by_patch
from ofa_jax.report.forecasts import Evaluation
from ofa_jax.report.parts import Section, number, picture

ATTENTION_WINDOWS = 32
"""Test windows, evenly spaced, over which attention is averaged."""


def attention_section(evaluation: Evaluation) -> Section:
    """Attention between patches, averaged over some test windows."""
    model, size, title = evaluation.loaded.model, evaluation.table.size, "Attention"
    if not isinstance(model.network.trunk, GPT2Trunk):
        return Section("attention", title, ["The network has no GPT-2, so there is no causal attention."])
    count = min(ATTENTION_WINDOWS, size)
    windows = evaluation.windows(np.linspace(0, size - 1, count).astype(int))
    weights = attention_weights(
        model, *(np.stack([window[name] for window in windows]) for name in ("x", "x_mask"))
    )
    layers, heads, patches, _ = weights.shape
    received = weights.mean(axis=(0, 1)).sum(axis=0) / np.arange(patches, 0, -1)
    most = int(received.argmax())
    uniform = float(np.mean(1 / np.arange(most + 1, patches + 1)))
    said = (
        f"Of {patches} patches, patch {most} receives most: {number(received[most])} of the attention of "
        f"those that see it; with uniform attention it would be {number(uniform)}."
    )
    alt = (
        f"Attention of {layers} layers with {heads} heads: a map over patches, and what each receives. {said}"
    )
    caption = (
        f"Mean over {count} test windows, evenly spaced. Patches are counted from 0, the oldest; a patch "
        "sees itself and those before it."
    )
    return Section("attention", title, [said], pictures=[picture(attention_by_patch(weights), alt, caption)])


def attention_weights(model: Model, x_btc: np.ndarray, x_mask_btc: np.ndarray) -> np.ndarray:
    """Attention weights of a GPT-2, adapters merged and dropout off, averaged over windows.

    Returns:
        ``[layers, heads, n, n]`` float32, query before key; rows sum to 1, no query sees a later key.
    """
    trunk = model.network.trunk.clone(remat=False)  # a recomputed block keeps no intermediates
    network = model.network.clone(trunk=trunk)

    def run(params: dict[str, Any], x_btc: jax.Array, x_mask_btc: jax.Array) -> jax.Array:
        _, kept = network.apply({"params": params}, x_btc, x_mask_btc, mutable=["intermediates"])
        blocks = kept["intermediates"]["gpt2"]["h"]
        weights = [blocks[name]["attn"]["weights"][0] for name in sorted(blocks, key=int)]
        return jnp.stack([layer.mean(axis=0) for layer in weights])

    return np.asarray(jax.jit(run)(model.merged(), x_btc, x_mask_btc))

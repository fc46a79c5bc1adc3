"""Where the trunk's attention goes on some test windows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.build import Model
from ofa_jax.errors import ConfigError
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
    x, x_mask = (np.stack([window[name] for window in windows]) for name in ("x", "x_mask"))
    weights = attention_weights(model, x, x_mask)
    layers, heads, patches, _ = weights.shape
    received = weights.mean(axis=(0, 1)).sum(axis=0) / np.arange(patches, 0, -1)
    place = int(received.argmax())
    uniform = float(np.mean(1 / np.arange(place + 1, patches + 1)))
    said = (
        f"Of {patches} patches, patch {place} receives most: {number(received[place])} of the attention of "
        f"those that see it; with uniform attention it would be {number(uniform)}."
    )
    alt = (
        f"Attention of {layers} layers with {heads} heads: a map over patches, and what each receives. {said}"
    )
    caption = (
        f"Mean over {count} test windows, evenly spaced. Patches are counted from 0, the oldest; a patch "
        "sees itself and those before it."
    )
    shown = picture(attention_by_patch(weights), alt, caption)
    return Section("attention", title, [said], pictures=[shown])


def attention_weights(
    model: Model, x_btc: np.ndarray | jax.Array, x_mask: np.ndarray | jax.Array | None = None
) -> np.ndarray:
    """The trunk's attention weights on some windows, dropout off, averaged over the windows.

    The adapters are merged into the weights.

    Args:
        model: A network with GPT-2 in it.
        x_btc: Windows as the task hands them to the network, ``[b, t, c]``.
        x_mask: ``[b, t, c]``, True where a value is observed; None where all are.

    Returns:
        ``[layers, heads, n, n]`` float32, query before key; rows sum to 1, no query sees a later key.

    Raises:
        ConfigError: The network has no GPT-2.
    """
    network = model.network
    if not isinstance(network.trunk, GPT2Trunk):
        what = "the network has no GPT-2, so there is no causal attention to show"
        raise ConfigError(what, where="trunk.source")
    network = network.clone(
        trunk=network.trunk.clone(remat=False)
    )  # a recomputed block keeps no intermediates

    def run(params: dict[str, Any], x_btc: jax.Array, x_mask: jax.Array | None) -> jax.Array:
        _, kept = network.apply({"params": params}, x_btc, x_mask, mutable=["intermediates"])
        blocks = kept["intermediates"]["gpt2"]["h"]
        return jnp.stack(
            [blocks[name]["attn"]["weights"][0].mean(axis=0) for name in sorted(blocks, key=int)]
        )

    mask = None if x_mask is None else jnp.asarray(x_mask)
    return np.asarray(jax.jit(run)(model.merged(), jnp.asarray(x_btc), mask))

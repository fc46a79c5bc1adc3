"""The trunk's attention weights on some windows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.build import Model
from ofa_jax.errors import ConfigError
from ofa_jax.model.gpt2 import GPT2Trunk


def attention_weights(
    model: Model, x_btc: np.ndarray | jax.Array, x_mask: np.ndarray | jax.Array | None = None
) -> np.ndarray:
    """The trunk's attention weights, averaged over windows, without dropout and with the adapters merged.

    Args:
        model: A network with GPT-2.
        x_btc: Windows ``[b, t, c]`` as the network reads them.
        x_mask: ``[b, t, c]``, True where a value is observed; None where all are.

    Returns:
        ``[layers, heads, n, n]`` float32, query before key; every row sums to 1, no query sees a later key.

    Raises:
        ConfigError: The network has no GPT-2.
    """
    if not isinstance(model.network.trunk, GPT2Trunk):
        what = "the network has no GPT-2, so it has no causal attention to show"
        raise ConfigError(what, where="trunk.source")

    def run(params: dict[str, Any], x_btc: jax.Array, x_mask: jax.Array | None) -> jax.Array:
        _, state = model.network.apply({"params": params}, x_btc, x_mask, mutable="intermediates")
        blocks = state["intermediates"]["gpt2"]["h"]
        return jnp.stack([blocks[str(i)]["attn"]["weights"][0].mean(axis=0) for i in range(len(blocks))])

    mask = None if x_mask is None else jnp.asarray(x_mask)
    return np.asarray(jax.jit(run)(model.merged(), jnp.asarray(x_btc), mask))

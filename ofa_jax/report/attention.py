"""Where the trunk's attention goes, read off a network as it runs."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.build import Model
from ofa_jax.errors import ConfigError
from ofa_jax.model.gpt2 import Attention, GPT2Trunk


def attention_weights(
    model: Model, x_btc: np.ndarray | jax.Array, x_mask: np.ndarray | jax.Array | None = None
) -> np.ndarray:
    """The trunk's attention weights on some windows, dropout off, averaged over the windows.

    They are worked out again from the queries and keys that each layer makes, with the adapters folded into the weights.

    Args:
        model: A network with GPT-2 in it.
        x_btc: Windows as the task hands them to the network, ``[b, t, c]``.
        x_mask: ``[b, t, c]``, True where a value is observed; None where all are.

    Returns:
        ``[layers, heads, n, n]`` float32, query before key; every row adds up to 1, and no query sees a later key.

    Raises:
        ConfigError: The network has no GPT-2.
    """
    if not isinstance(model.network.trunk, GPT2Trunk):
        raise ConfigError(
            "the network has no GPT-2, so there is no causal attention to show", where="trunk.source"
        )
    trunk = model.network.trunk.clone(remat=False)  # within a recomputed block nothing can be read off
    network = model.network.clone(trunk=trunk)

    def run(params: dict[str, Any], x_btc: jax.Array, x_mask: jax.Array | None) -> jax.Array:
        layers: dict[int, jax.Array] = {}

        def read_off(call: Any, args: tuple, kwargs: dict, context: Any) -> jax.Array:
            output = call(*args, **kwargs)
            parent = context.module.parent
            if (
                context.method_name == "__call__"
                and context.module.name == "c_attn"
                and isinstance(parent, Attention)
            ):
                layers[parent.index] = _weights(output, parent)
            return output

        with nn.intercept_methods(read_off):
            network.apply({"params": params}, x_btc, x_mask)
        return jnp.stack([layers[index].mean(axis=0) for index in sorted(layers)])

    return np.asarray(
        jax.jit(run)(model.merged(), jnp.asarray(x_btc), None if x_mask is None else jnp.asarray(x_mask))
    )


def _weights(qkv_mnd: jax.Array, layer: Attention) -> jax.Array:
    """``[m, heads, n, n]`` float32 from a layer's queries, keys and values side by side ``[m, n, 3 d]``."""
    config = layer.config
    query, key = (
        part.reshape(*part.shape[:2], config.n_head, -1) for part in jnp.split(qkv_mnd, 3, axis=-1)[:2]
    )
    scale = query.shape[-1] ** -0.5 if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        scale /= layer.index + 1
    scores = scale * jnp.einsum("mqae,mkae->maqk", query, key, preferred_element_type=jnp.float32)
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)

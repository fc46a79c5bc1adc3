"""Where the trunk's attention goes on some test windows."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.build import Model
from ofa_jax.errors import ConfigError
from ofa_jax.model.gpt2 import Attention
from ofa_jax.plots.run import attention_by_patch
from ofa_jax.report.forecasts import Evaluation
from ofa_jax.report.parts import Section, number, picture

ATTENTION_WINDOWS = 32
"""Test windows, evenly spaced, over which attention is averaged."""


def attention_section(evaluation: Evaluation) -> Section:
    """Attention between patches, averaged over some test windows."""
    model, size, title = evaluation.loaded.model, evaluation.table.size, "Attention"
    if model.network.kind != "gpt2":
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

    They are recomputed from the queries and keys of each layer, with the adapters merged into the weights.

    Args:
        model: A network with GPT-2 in it.
        x_btc: Windows as the task hands them to the network, ``[b, t, c]``.
        x_mask: ``[b, t, c]``, True where a value is observed; None where all are.

    Returns:
        ``[layers, heads, n, n]`` float32, query before key; rows sum to 1, no query sees a later key.

    Raises:
        ConfigError: The network has no GPT-2.
    """
    if model.network.kind != "gpt2":
        raise ConfigError(
            "the network has no GPT-2, so there is no causal attention to show", where="trunk.source"
        )
    network: Any = model.network
    network = network.clone(remat=False)  # within a recomputed block nothing can be read off

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

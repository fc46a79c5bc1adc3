"""GPT-2's transformer in Flax over input embeddings, with Hugging Face's module names.

Only what One-for-All reads of GPT-2: position embedding, the first ``n_layer`` blocks and the last layer norm
(protocol §1.5). There is no token embedding and no language-model head.

Dropout takes one key per sample (``dropout_keys``, ``[m]``); without keys it is off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ofa_jax.errors import ConfigError
from ofa_jax.model.dropout import dropout

gelu_new: Callable[[jax.Array], jax.Array] = jax.checkpoint(partial(jax.nn.gelu, approximate=True))
"""GELU in GPT-2's tanh form; only its input is kept for the backward pass (docs/performance.md)."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_new": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""Supported ``activation_function`` names of Hugging Face."""


LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The levels of a pretrained trunk's quantiles."""


@dataclass(frozen=True)
class Forecaster:
    """Shape of the layers that a trunk was pretrained with (:mod:`ofa_jax.model.quantiles`).

    Attributes:
        patch: Steps of a token.
        context: Most input steps.
        horizon: Forecast steps without a roll-out.
        version: Of the mathematics around the trunk: 2 since forecasts are of both signs.
    """

    patch: int
    context: int
    horizon: int
    version: int = 2


@dataclass(frozen=True)
class GPT2Config:
    """The part of Hugging Face's GPT-2 config that changes the mathematics; same names and defaults.

    ``forecaster`` is of a trunk that was pretrained on series, with its own layers around it.
    """

    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_positions: int = 1024
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    forecaster: Forecaster | None = None

    def __post_init__(self) -> None:
        sizes = (self.n_embd, self.n_layer, self.n_head, self.n_positions, self.mlp_width)
        rates = (self.embd_pdrop, self.attn_pdrop, self.resid_pdrop)
        if min(sizes) < 1 or min(rates) < 0 or max(rates) >= 1:
            what = f"sizes must be at least 1 and dropout rates in [0, 1), not {self}"
            raise ConfigError(what, where="trunk.random")
        if self.n_embd % self.n_head:
            what = f"n_embd {self.n_embd} cannot be divided among {self.n_head} heads"
            raise ConfigError(what, where="trunk.random")
        if self.activation_function not in ACTIVATIONS:
            what = f"activation_function {self.activation_function!r} is not supported"
            raise ConfigError(what, where="trunk.random", fix=f"Supported are {', '.join(ACTIVATIONS)}")

    @property
    def mlp_width(self) -> int:
        return 4 * self.n_embd if self.n_inner is None else self.n_inner


PRESETS = {
    "distilgpt2": GPT2Config(n_layer=6),
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
}
"""Shapes of the published GPT-2 sizes by hub name, so that parameters can be counted without a download."""

_einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)


def attention_weights(config: GPT2Config, layer: int, query: jax.Array, key: jax.Array) -> jax.Array:
    """Causal attention weights ``[m, a, q, n]`` in float32, of heads ``[m, a, q, e]`` and ``[m, a, n, e]``.

    The queries are those of the last q of n tokens.
    """
    scale = query.shape[-1] ** -0.5 if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        scale /= layer + 1
    scores = _einsum("maqe,make->maqk", query, key) * scale
    queries, keys = scores.shape[-2:]
    causal = jnp.tril(jnp.ones((queries, keys), bool), keys - queries)
    return jax.nn.softmax(jnp.where(causal, scores, jnp.finfo(jnp.float32).min), axis=-1)


class LayerNorm(nn.Module):
    """Layer norm in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, hidden_mnd: jax.Array) -> jax.Array:
        width = hidden_mnd.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        hidden_mnd = hidden_mnd.astype(jnp.float32)
        centered = hidden_mnd - hidden_mnd.mean(axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
        return centered * jax.lax.rsqrt(variance + self.epsilon) * scale + bias


class Attention(nn.Module):
    """GPT-2's causal self-attention (``attn`` in Hugging Face's names); softmax in float32.

    Attributes:
        last_tokens: Tokens at the end whose output is returned, 1 to n; default: all.
    """

    config: GPT2Config
    index: int
    dtype: jnp.dtype
    last_tokens: int | None = None

    @nn.compact
    def __call__(self, hidden_mnd: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        config, path = self.config, "/".join(self.path)
        m, n, d = hidden_mnd.shape
        qkv = nn.Dense(3 * d, dtype=self.dtype, name="c_attn")(hidden_mnd)
        query, key, value = (
            part.reshape(m, n, config.n_head, -1).transpose(0, 2, 1, 3) for part in jnp.split(qkv, 3, axis=-1)
        )
        if self.last_tokens is not None:
            query = query[:, :, n - self.last_tokens :]
        weights = attention_weights(config, self.index, query, key)
        self.sow("intermediates", "weights", weights)  # kept only where a caller asks for intermediates
        weights = dropout(weights, config.attn_pdrop, dropout_keys, f"{path}/weights").astype(value.dtype)
        mixed = _einsum("maqk,make->maqe", weights, value).astype(value.dtype)
        out = nn.Dense(d, dtype=self.dtype, name="c_proj")(mixed.transpose(0, 2, 1, 3).reshape(m, -1, d))
        return dropout(out, config.resid_pdrop, dropout_keys, f"{path}/out")


class MLP(nn.Module):
    """GPT-2's two-layer perceptron (``mlp``)."""

    config: GPT2Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden_mnd: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        hidden_mnf = nn.Dense(self.config.mlp_width, dtype=self.dtype, name="c_fc")(hidden_mnd)
        hidden_mnf = ACTIVATIONS[self.config.activation_function](hidden_mnf)
        out = nn.Dense(hidden_mnd.shape[-1], dtype=self.dtype, name="c_proj")(hidden_mnf)
        return dropout(out, self.config.resid_pdrop, dropout_keys, "/".join(self.path))


class Block(nn.Module):
    """One pre-norm transformer block.

    Attributes:
        last_tokens: Tokens at the end whose hidden states are returned, 1 to n; default: all.
    """

    config: GPT2Config
    index: int
    dtype: jnp.dtype
    last_tokens: int | None = None

    @nn.compact
    def __call__(self, hidden_mnd: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        config, epsilon = self.config, self.config.layer_norm_epsilon
        normed = LayerNorm(epsilon, name="ln_1")(hidden_mnd).astype(self.dtype)
        attention = Attention(config, self.index, self.dtype, self.last_tokens, name="attn")
        if self.last_tokens is not None:
            hidden_mnd = hidden_mnd[:, hidden_mnd.shape[1] - self.last_tokens :]
        hidden_mnd = hidden_mnd + attention(normed, dropout_keys)
        normed = LayerNorm(epsilon, name="ln_2")(hidden_mnd).astype(self.dtype)
        return hidden_mnd + MLP(config, self.dtype, name="mlp")(normed, dropout_keys)


class Blocks(nn.Module):
    """The stack of blocks, so that a block's path is ``h/0`` as in Hugging Face's ``h.0``."""

    config: GPT2Config
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(
        self, hidden_mnd: jax.Array, dropout_keys: jax.Array | None, last_tokens: int | None = None
    ) -> jax.Array:
        kind = nn.remat(Block) if self.remat else Block
        for index in range(self.config.n_layer):
            tokens = last_tokens if index == self.config.n_layer - 1 else None
            block = kind(self.config, index, self.dtype, tokens, name=str(index))
            hidden_mnd = block(hidden_mnd, dropout_keys)
        return hidden_mnd


class GPT2Trunk(nn.Module):
    """GPT-2 over input embeddings ``[m, n, d]``; returns the last hidden states, ``[m, n, d]`` float32.

    Attributes:
        config: Shapes and mathematics; ``config.n_layer`` blocks are run.
        positions: Whether ``wpe[:n]`` is added; without it the trunk has no position parameters at all.
        compute_dtype: Type of matrix products and residual stream. Norms and softmax are always float32.
        remat: Recompute each block in the backward pass instead of keeping its activations.

    Raises:
        ConfigError: More tokens than ``n_positions``.
    """

    config: GPT2Config
    positions: bool = True
    compute_dtype: jnp.dtype = jnp.dtype(jnp.float32)
    remat: bool = False
    path_name = "gpt2"

    @nn.compact
    def __call__(
        self, embeds_mnd: jax.Array, dropout_keys: jax.Array | None = None, last_tokens: int | None = None
    ) -> jax.Array:
        """Hidden states ``[m, n, d]``, or those of the last tokens; the last block computes no others.

        Args:
            embeds_mnd: Input embeddings.
            dropout_keys: One per row; without them there is no dropout.
            last_tokens: Tokens whose hidden states are returned, 1 to n; default: all.
        """
        config, tokens = self.config, embeds_mnd.shape[1]
        if self.positions:
            if tokens > config.n_positions:
                what = f"{tokens} tokens, but the trunk has {config.n_positions} positions"
                fix = "Set a smaller task.input_length, a larger network.stride or, of a random trunk, "
                fix += f"trunk.random.n_positions to {tokens}"
                raise ConfigError(what, where="network", fix=fix)
            wpe = nn.Embed(config.n_positions, config.n_embd, name="wpe")
            embeds_mnd = embeds_mnd.astype(jnp.float32) + wpe(jnp.arange(tokens))
        site = "/".join((*self.path, "wpe"))
        hidden = dropout(embeds_mnd.astype(self.compute_dtype), config.embd_pdrop, dropout_keys, site)
        hidden = Blocks(config, self.compute_dtype, self.remat, name="h")(hidden, dropout_keys, last_tokens)
        return LayerNorm(config.layer_norm_epsilon, name="ln_f")(hidden)

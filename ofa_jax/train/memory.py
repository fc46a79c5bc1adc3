"""How many windows to work on at a time where the settings leave it open.

On a CPU a batch goes faster in slices: intermediate values that lie in the cache are read from there, and memory that is used again
need not be had from the system. But each slice reads all weights once more. So a slice's intermediate values are about as large as
the cache and half the weights together; at all the weights a step of GPT-2's width is 4 % faster and holds twice as many of these
values (docs/performance.md has the measurements). Other devices work on the whole batch.
"""

from __future__ import annotations

import math

import jax

from ofa_jax.config.schema import TrainConfig
from ofa_jax.model.gpt2 import GPT2Trunk
from ofa_jax.model.networks import Network

CACHE_BYTES = 16 * 2**20
"""A processor's last-level cache, roughly: the choice is a power of two."""

EVAL_WINDOWS = 512
"""Windows per evaluation step where nothing else decides."""


def activation_bytes(network: Network) -> int:
    """Bytes of intermediate values that one window's backward pass needs, to a factor of two.

    Per token and block: the inputs of two layer norms, the residual stream, query, key, value and the heads' mixture (8 d), GELU's
    input (f), and two rows of attention weights per head. A trunk that is not GPT-2 counts as one block.
    """
    config = network.trunk.config
    per_token = config.mlp_width + 8 * config.n_embd + 2 * config.n_head * network.tokens
    return 4 * network.tokens * per_token * (config.n_layer if isinstance(network.trunk, GPT2Trunk) else 1)


def weight_bytes(network: Network) -> int:
    """Bytes of the trunk's kernels, which every slice reads."""
    config = network.trunk.config
    blocks = config.n_layer if isinstance(network.trunk, GPT2Trunk) else 0
    return 4 * blocks * config.n_embd * (4 * config.n_embd + 2 * config.mlp_width)


def windows_at_once(network: Network, backend: str) -> int | None:
    """The number of windows of a slice, a power of two; None where slices bring nothing."""
    if backend != "cpu":
        return None
    fitting = (CACHE_BYTES + weight_bytes(network) / 2) / activation_bytes(network)
    return 2 ** round(math.log2(max(fitting, 1)))


def settled(settings: TrainConfig, network: Network) -> TrainConfig:
    """The settings with ``micro_batch`` and ``eval_batch_size`` chosen where they were not given; both change rounding alone."""
    chosen = windows_at_once(network, jax.default_backend())
    changes: dict[str, int] = {}
    if settings.micro_batch is None and chosen is not None:
        changes["micro_batch"] = min(chosen, settings.batch_size)
    if settings.eval_batch_size is None:
        changes["eval_batch_size"] = EVAL_WINDOWS if chosen is None else min(chosen, EVAL_WINDOWS)
    return settings.model_copy(update=changes)

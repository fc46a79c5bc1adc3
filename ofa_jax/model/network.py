"""The whole network around the trunk: embed, trunk, head. Its parameters are one nested dict of arrays."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.errors import ConfigError, WeightsError
from ofa_jax.model import frozen_init, trees
from ofa_jax.model.gpt2 import GPT2Config, GPT2Trunk
from ofa_jax.model.patching import denormalise, instance_stats, normalise, patch_count, patchify

Params = dict[str, Any]
"""A nested dict of arrays keyed by module name, as Flax keeps it under ``params``."""


class ForecastNetwork(nn.Module):
    """Channel-independent forecaster of protocol §1: instance norm, patches, ``in_layer``, ``gpt2``, ``out_layer``.

    Attributes:
        trunk: The trunk's configuration (``n_layer`` blocks are run).
        input_length: Input steps, L.
        horizon: Forecast steps, H.
        patch: Patch length.
        stride: Steps from one patch to the next, at most ``patch``.
        positions: Whether the trunk adds its position embedding.
        compute_dtype: Type of the matrix products (see :class:`~ofa_jax.model.gpt2.GPT2Trunk`).
        remat: Recompute blocks in the backward pass.
    """

    trunk: GPT2Config
    input_length: int
    horizon: int
    patch: int = 16
    stride: int = 8
    positions: bool = True
    compute_dtype: jnp.dtype = jnp.dtype(jnp.float32)
    remat: bool = False

    @nn.compact
    def __call__(self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Forecast ``[b, h, c]`` in the units of ``x_btc`` ``[b, t, c]``; every channel is forecast on its own.

        Args:
            x_btc: Input windows.
            x_mask: ``[b, t, c]``, True where a value is observed; None where all are.
            dropout_keys: One key per sample ``[b]`` while training, None otherwise.

        Raises:
            ConfigError: Windows of another length than ``input_length``.
        """
        b, t, c = x_btc.shape
        if t != self.input_length:
            raise ConfigError(f"the network reads {self.input_length} steps, the batch has {t}", where="x_btc")
        stats = instance_stats(x_btc, x_mask)
        x_mt = normalise(x_btc, stats, x_mask).transpose(0, 2, 1).reshape(b * c, t)
        keys_m = channel_keys(dropout_keys, c)

        patches_mnp = patchify(x_mt, self.patch, self.stride)
        embeds_mnd = nn.Dense(self.trunk.n_embd, dtype=self.compute_dtype, name="in_layer")(patches_mnp)
        trunk = GPT2Trunk(self.trunk, self.positions, self.compute_dtype, self.remat, name="gpt2")
        hidden_mnd = trunk(embeds_mnd, keys_m)
        flat = hidden_mnd.reshape(b * c, -1).astype(self.compute_dtype)
        pred_mh = nn.Dense(self.horizon, dtype=self.compute_dtype, name="out_layer")(flat)

        pred_bhc = pred_mh.astype(jnp.float32).reshape(b, c, self.horizon).transpose(0, 2, 1)
        return denormalise(pred_bhc, stats)

    @property
    def tokens(self) -> int:
        return patch_count(self.input_length, self.patch, self.stride)


def channel_keys(dropout_keys: jax.Array | None, channels: int) -> jax.Array | None:
    """One key per univariate window ``[b * c]`` from one per sample ``[b]``; a sample of one channel keeps its key."""
    if dropout_keys is None or channels == 1:
        return dropout_keys
    per_channel = jax.vmap(lambda key: jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(channels)))
    return per_channel(dropout_keys).reshape(-1)


def base_shapes(network: ForecastNetwork) -> dict[str, tuple[int, ...]]:
    """Shape of every base parameter by path, computed without any array."""
    example = jax.ShapeDtypeStruct((1, network.input_length, 1), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), example)
    return {path: tuple(leaf.shape) for path, leaf in trees.flatten(variables["params"]).items()}


def init_base(network: ForecastNetwork, trunk_params: Params, seed: int) -> Params:
    """The network's base parameters: the trunk as given, every layer around it drawn from ``seed``.

    The layers around the trunk follow PyTorch's default distributions by the rule of
    :mod:`~ofa_jax.model.frozen_init`, so the same seed gives the same bits everywhere.

    Args:
        network: The network.
        trunk_params: The trunk's parameters, as in ``load_trunk(...).params``.
        seed: Seed of the layers around the trunk.

    Returns:
        A nested dict of float32 NumPy arrays, keyed ``gpt2``, ``in_layer``, ``out_layer``.

    Raises:
        WeightsError: The trunk's parameters are not those that the network reads.
    """
    shapes = base_shapes(network)
    base: Params = {}
    for module in sorted({path.split("/")[0] for path in shapes} - {"gpt2"}):
        fan_in, fan_out = shapes[f"{module}/kernel"]
        base[module] = frozen_init.linear(seed, module, fan_in, fan_out)

    given = {f"gpt2/{path}": np.asarray(leaf) for path, leaf in trees.flatten(trunk_params).items()}
    if not network.positions:
        given.pop("gpt2/wpe/embedding", None)
    wanted = {path: shape for path, shape in shapes.items() if path.startswith("gpt2/")}
    wrong = [path for path in sorted(wanted.keys() | given.keys()) if path not in given or given[path].shape != wanted.get(path)]
    if wrong:
        raise WeightsError(
            f"the trunk does not fit the network at {', '.join(wrong[:5])}{' and others' if len(wrong) > 5 else ''}",
            where="gpt2",
            fix="Load the trunk with the configuration that the network was made with",
        )
    return base | trees.unflatten(given)

"""The whole network around the trunk: embed, trunk, head. Its parameters are one nested dict of arrays.

:class:`ForecastNetwork` is the method's own; :mod:`~ofa_jax.model.variants` holds the networks of the other tasks. In each the trunk may
be GPT-2 (module ``gpt2``), one attention layer (``attention``) or nothing at all: the last two are controls.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

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

TrunkKind = Literal["gpt2", "attention", "none"]


class Network(Protocol):
    """What the rest of the package asks of any network."""

    trunk: GPT2Config
    kind: TrunkKind
    compute_dtype: jnp.dtype

    @property
    def tokens(self) -> int: ...
    @property
    def example_shape(self) -> tuple[int, int, int]: ...
    def init(self, *args: Any, **kwargs: Any) -> Any: ...
    def apply(self, *args: Any, **kwargs: Any) -> Any: ...


class OneAttention(nn.Module):
    """One layer of self-attention over all tokens with a residual and a layer norm, ``[m, n, d]`` to the same.

    What stands in the trunk's place in the control PAttn of Tan et al. (arXiv 2406.16964); not causal, no dropout.
    """

    heads: int
    compute_dtype: jnp.dtype = jnp.dtype(jnp.float32)

    @nn.compact
    def __call__(self, x_mnd: jax.Array) -> jax.Array:
        m, n, d = x_mnd.shape
        query, key, value = (
            nn.Dense(d, dtype=self.compute_dtype, name=name)(x_mnd).reshape(m, n, self.heads, d // self.heads)
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value).reshape(m, n, d)
        out = nn.Dense(d, dtype=self.compute_dtype, name="out")(mixed)
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")
        return norm(x_mnd.astype(jnp.float32) + out.astype(jnp.float32))


def through_trunk(
    embeds_mnd: jax.Array,
    keys_m: jax.Array | None,
    *,
    kind: TrunkKind,
    config: GPT2Config,
    positions: bool,
    compute_dtype: jnp.dtype,
    remat: bool,
) -> jax.Array:
    """What stands between embedding and head, within a compact module: ``[m, n, d]`` to the same."""
    if kind == "none":
        return embeds_mnd
    if kind == "attention":
        return OneAttention(config.n_head, compute_dtype, name="attention")(embeds_mnd)
    return GPT2Trunk(config, positions, compute_dtype, remat, name="gpt2")(embeds_mnd, keys_m)


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
        kind: What stands in the trunk's place.
    """

    trunk: GPT2Config
    input_length: int
    horizon: int
    patch: int = 16
    stride: int = 8
    positions: bool = True
    compute_dtype: jnp.dtype = jnp.dtype(jnp.float32)
    remat: bool = False
    kind: TrunkKind = "gpt2"

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
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
            raise ConfigError(
                f"the network reads {self.input_length} steps, the batch has {t}", where="x_btc"
            )
        stats = instance_stats(x_btc, x_mask)
        x_mt = normalise(x_btc, stats, x_mask).transpose(0, 2, 1).reshape(b * c, t)
        keys_m = channel_keys(dropout_keys, c)

        patches_mnp = patchify(x_mt, self.patch, self.stride)
        embeds_mnd = nn.Dense(self.trunk.n_embd, dtype=self.compute_dtype, name="in_layer")(patches_mnp)
        hidden_mnd = through_trunk(
            embeds_mnd,
            keys_m,
            kind=self.kind,
            config=self.trunk,
            positions=self.positions,
            compute_dtype=self.compute_dtype,
            remat=self.remat,
        )
        flat = hidden_mnd.reshape(b * c, -1).astype(self.compute_dtype)
        pred_mh = nn.Dense(self.horizon, dtype=self.compute_dtype, name="out_layer")(flat)

        pred_bhc = pred_mh.astype(jnp.float32).reshape(b, c, self.horizon).transpose(0, 2, 1)
        return denormalise(pred_bhc, stats)

    @property
    def tokens(self) -> int:
        return patch_count(self.input_length, self.patch, self.stride)

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """The shape ``[b, t, c]`` of one window."""
        return (1, self.input_length, 1)


def channel_keys(dropout_keys: jax.Array | None, channels: int) -> jax.Array | None:
    """One key per univariate window ``[b * c]`` from one per sample ``[b]``; a sample of one channel keeps its key."""
    if dropout_keys is None or channels == 1:
        return dropout_keys
    per_channel = jax.vmap(
        lambda key: jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(channels))
    )
    return per_channel(dropout_keys).reshape(-1)


def base_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Shape of every base parameter by path, computed without any array."""
    example = jax.ShapeDtypeStruct(network.example_shape, jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), example)
    return {path: tuple(leaf.shape) for path, leaf in trees.flatten(variables["params"]).items()}


def init_base(network: Network, trunk_params: Params, seed: int) -> Params:
    """The network's base parameters: the trunk as given, every layer around it drawn from ``seed``.

    The layers around the trunk follow PyTorch's default distributions by the rule of
    :mod:`~ofa_jax.model.frozen_init`, so the same seed gives the same bits everywhere. Token convolutions have the normal
    distribution of protocol §2, layer norms start at 1 and 0.

    Args:
        network: The network.
        trunk_params: The trunk's parameters, as in ``load_trunk(...).params``; not read where the network has another trunk.
        seed: Seed of the layers around the trunk.

    Returns:
        A nested dict of float32 NumPy arrays, keyed ``gpt2``, ``in_layer``, ``out_layer``.

    Raises:
        WeightsError: The trunk's parameters are not those that the network reads.
    """
    shapes = base_shapes(network)
    around: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in shapes.items():
        module, _, leaf = path.rpartition("/")
        if not path.startswith("gpt2/"):
            around.setdefault(module, {})[leaf] = shape
    base = trees.unflatten(
        {
            f"{module}/{leaf}": array
            for module, leaves in around.items()
            for leaf, array in _layer(seed, module, leaves).items()
        }
    )
    if network.kind != "gpt2":
        return base

    given = {
        f"gpt2/{path}": trees.aligned(np.asarray(leaf)) for path, leaf in trees.flatten(trunk_params).items()
    }
    if "gpt2/wpe/embedding" not in shapes:
        given.pop("gpt2/wpe/embedding", None)
    wanted = {path: shape for path, shape in shapes.items() if path.startswith("gpt2/")}
    wrong = [
        path
        for path in sorted(wanted.keys() | given.keys())
        if path not in given or given[path].shape != wanted.get(path)
    ]
    if wrong:
        raise WeightsError(
            f"the trunk does not fit the network at {', '.join(wrong[:5])}{' and others' if len(wrong) > 5 else ''}",
            where="gpt2",
            fix="Load the trunk with the configuration that the network was made with",
        )
    return base | trees.unflatten(given)


def _layer(seed: int, module: str, leaves: dict[str, tuple[int, ...]]) -> Params:
    """The parameters of one layer around the trunk, ``{leaf: array}`` for the leaves it has."""
    kernel = leaves.get("kernel")
    if kernel is None:  # a layer norm
        return {
            leaf: np.full(shape, 1 if leaf == "scale" else 0, np.float32) for leaf, shape in leaves.items()
        }
    if len(kernel) == 3:  # [3, in, d], no bias (protocol §2)
        return {
            "kernel": frozen_init.normal(
                seed, f"{module}/kernel", kernel, float(np.sqrt(2 / np.float64(kernel[0] * kernel[1])))
            )
        }
    drawn = frozen_init.linear(seed, module, *kernel)
    return {leaf: drawn[leaf] for leaf in leaves}

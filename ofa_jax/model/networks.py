"""The five networks: an embedding, a trunk module that is passed in, and a head (protocol §1, §2).

The parameters are one nested dict of arrays: the trunk's under ``gpt2`` or ``attention``, the last layer's
under ``out_layer``, so that one set of rules partitions and adapts every network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.errors import ConfigError, WeightsError, listed
from ofa_jax.model import frozen_init, trees
from ofa_jax.model.dropout import dropout
from ofa_jax.model.gpt2 import GPT2Config, GPT2Trunk
from ofa_jax.model.patching import denormalize, instance_stats, normalize, patch_count, patchify

Params = dict[str, Any]
"""A nested dict of arrays keyed by module name, as Flax keeps it under ``params``."""


class AttentionTrunk(nn.Module):
    """Baseline trunk: self-attention over all tokens, residual sum, layer norm, ``[m, n, d]`` to the same.

    As in PAttn (Tan et al., arXiv 2406.16964): one layer, not causal, no dropout. Only the
    width and the number of heads of ``config`` are read.
    """

    config: GPT2Config
    compute_dtype: jnp.dtype = jnp.dtype(jnp.float32)
    path_name = "attention"

    @nn.compact
    def __call__(
        self, x_mnd: jax.Array, dropout_keys: jax.Array | None = None, last_tokens: int | None = None
    ) -> jax.Array:
        m, _, d = x_mnd.shape
        heads = self.config.n_head
        read_mkd = _last(x_mnd, last_tokens)
        query, key, value = (
            nn.Dense(d, dtype=self.compute_dtype, name=name)(tokens).reshape(m, -1, heads, d // heads)
            for name, tokens in (("query", read_mkd), ("key", x_mnd), ("value", x_mnd))
        )
        mixed = jax.nn.dot_product_attention(query, key, value).reshape(read_mkd.shape)
        out = nn.Dense(d, dtype=self.compute_dtype, name="out")(mixed)
        return _layer_norm("norm")(read_mkd.astype(jnp.float32) + out.astype(jnp.float32))


class NoTrunk(nn.Module):
    """Baseline trunk: passes the embedding on to the head. Only the width of ``config`` is read."""

    config: GPT2Config
    compute_dtype: jnp.dtype = jnp.dtype(jnp.float32)
    path_name = "none"

    def __call__(
        self, embeds_mnd: jax.Array, dropout_keys: jax.Array | None = None, last_tokens: int | None = None
    ) -> jax.Array:
        return _last(embeds_mnd, last_tokens)


def _last(x_mnd: jax.Array, tokens: int | None) -> jax.Array:
    return x_mnd if tokens is None else x_mnd[:, x_mnd.shape[1] - tokens :]


TrunkModule = GPT2Trunk | AttentionTrunk | NoTrunk


class Network(nn.Module):
    """What the networks share.

    A network is called with windows ``x_btc`` ``[b, t, c]``, optionally an ``x_mask`` of that shape, True
    where a value is observed, and in training ``dropout_keys``, one per sample ``[b]``.

    Attributes:
        trunk: The module between embedding and head. Its ``compute_dtype`` applies to every product; its
            parameters are under its ``path_name``.
        input_length: Input steps, L.
    """

    trunk: TrunkModule
    input_length: int
    pretrained: ClassVar[bool] = False
    """Whether the layers around the trunk are the ones it was pretrained with."""
    zero: ClassVar[tuple[str, ...]] = ()
    """Layers that are zero until they are adapted or trained."""

    @property
    def tokens(self) -> int:
        """Tokens that the trunk reads per window."""
        return self.input_length

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """The shape ``[b, t, c]`` of one input window; a network without ``channels`` takes any number."""
        return (1, self.input_length, getattr(self, "channels", 1) + getattr(self, "calendar", 0))

    @property
    def width(self) -> int:
        return self.trunk.config.n_embd

    def _run_trunk(self, embeds_mnd: jax.Array, keys_m: jax.Array | None) -> jax.Array:
        return self.trunk.clone(parent=self, name=self.trunk.path_name)(embeds_mnd, keys_m)

    def _pad_width(self, x_mnq: jax.Array, setting: str) -> jax.Array:
        missing = self.width - x_mnq.shape[-1]
        if missing < 0:
            what = f"{x_mnq.shape[-1]} values per step exceed the trunk's width {self.width}"
            raise ConfigError(what, where=setting, fix="Choose a wider trunk")
        return jnp.pad(x_mnq, ((0, 0), (0, 0), (0, missing)))

    def _dense(self, width: int, name: str, *, bias: bool = True) -> Callable[[jax.Array], jax.Array]:
        return nn.Dense(width, use_bias=bias, dtype=self.trunk.compute_dtype, name=name)

    def _token_embedding(self, tokens_mnq: jax.Array, width: int) -> jax.Array:
        """Circular convolution of three tokens plus sinusoid, ``[m, n, q]`` to ``[m, n, width]``."""
        dtype = self.trunk.compute_dtype
        conv = nn.Conv(width, (3,), padding="CIRCULAR", use_bias=False, dtype=dtype, name="token_conv")
        return conv(tokens_mnq) + sinusoid(tokens_mnq.shape[1], width)

    def _embed_dropout(self, embeds_mnd: jax.Array, keys_m: jax.Array | None) -> jax.Array:
        return dropout(embeds_mnd, self.trunk.config.embd_pdrop, keys_m, "embed")

    def _read(self, hidden_mnd: jax.Array, read_width: int | None) -> jax.Array:
        if read_width is not None and read_width > self.width:
            what = f"{read_width} hidden dimensions cannot be read from a trunk of width {self.width}"
            raise ConfigError(what, where="network.read_width", fix=f"Read at most {self.width}")
        return hidden_mnd[..., :read_width].astype(self.trunk.compute_dtype)


class ForecastNetwork(Network):
    """Channel-independent forecasting (protocol §1): instance norm, patches, Dense, trunk, Dense.

    Forecasts ``horizon`` steps from patches of ``patch`` steps, one every ``stride`` ≤ ``patch`` steps.
    """

    horizon: int
    patch: int = 16
    stride: int = 8

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Forecast ``[b, h, c]`` in the units of ``x_btc``, each channel independently."""
        c = x_btc.shape[2]
        stats = instance_stats(x_btc, x_mask)
        x_mt = split_channels(normalize(x_btc, stats, x_mask))
        keys_m = channel_keys(dropout_keys, c)
        patches_mnp = patchify(x_mt, self.patch, self.stride)
        hidden_mnd = self._run_trunk(self._dense(self.width, "in_layer")(patches_mnp), keys_m)
        flat = hidden_mnd.reshape(len(x_mt), -1).astype(self.trunk.compute_dtype)
        pred_mh = self._dense(self.horizon, "out_layer")(flat).astype(jnp.float32)
        return denormalize(join_channels(pred_mh, c), stats)

    @property
    def tokens(self) -> int:
        return patch_count(self.input_length, self.patch, self.stride)


class ReconstructNetwork(Network):
    """Anomaly detection: every step a token, its channels zero-padded to the trunk's width; trunk; Dense.

    Attributes:
        channels: C, at most the trunk's width.
        segment: Steps that are normalized together; divides ``input_length``.
        read_width: Leading hidden dimensions that ``out_layer`` reads (``d_ff``); None reads all.
    """

    channels: int
    segment: int = 25
    read_width: int | None = None

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Reconstruction ``[b, t, c]`` of ``x_btc`` in its units."""
        b, t, c = x_btc.shape
        if t % self.segment:
            what = f"{t} steps are not a multiple of the segment of {self.segment}"
            raise ConfigError(what, where="network.segment", fix=f"Choose a divisor of {t}")
        x_gsc = x_btc.reshape(-1, self.segment, c)
        mask_gsc = None if x_mask is None else x_mask.reshape(x_gsc.shape)
        stats = instance_stats(x_gsc, mask_gsc)
        tokens_btc = normalize(x_gsc, stats, mask_gsc).reshape(b, t, c)
        hidden_btd = self._run_trunk(self._pad_width(tokens_btc, "task.channels"), dropout_keys)
        out_btc = self._dense(c, "out_layer")(self._read(hidden_btd, self.read_width))
        return denormalize(out_btc.astype(jnp.float32).reshape(x_gsc.shape), stats).reshape(b, t, c)


class ClassifyNetwork(Network):
    """Classification of C ``channels`` into K ``classes``; ``patch`` and ``stride`` as in forecasting.

    Multivariate patches, token convolution, sinusoid, trunk, erf GELU, layer norm, Dense.
    """

    channels: int
    classes: int
    patch: int = 8
    stride: int = 8

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Logits ``[b, k]`` of cases ``x_btc``, zero-padded after their end; ``x_mask`` is not read."""
        b, _, c = x_btc.shape
        patches = patchify(split_channels(x_btc), self.patch, self.stride)
        n = patches.shape[1]
        tokens_bnq = patches.reshape(b, c, n, self.patch).transpose(0, 2, 3, 1).reshape(b, n, self.patch * c)
        embeds_bnd = self._embed_dropout(self._token_embedding(tokens_bnq, self.width), dropout_keys)
        hidden_bnd = self._run_trunk(embeds_bnd, dropout_keys)
        flat = jax.nn.gelu(hidden_bnd.astype(jnp.float32), approximate=False).reshape(b, -1)
        return self._dense(self.classes, "out_layer")(_layer_norm("ln_proj")(flat)).astype(jnp.float32)

    @property
    def tokens(self) -> int:
        return patch_count(self.input_length, self.patch, self.stride)


class ShortTermNetwork(Network):
    """Short-term forecasting: token convolution, sinusoid, Dense over time from L to L + H, trunk, Dense.

    Attributes:
        horizon: H.
        embed_width: Width of the embedding, zero-padded to the trunk's; None: the trunk's.
        read_width: Leading hidden dimensions that ``out_layer`` reads (``d_ff``); None reads all.
    """

    horizon: int
    embed_width: int | None = None
    read_width: int | None = None

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Forecast ``[b, h, c]`` in the units of ``x_btc``, each channel independently."""
        c = x_btc.shape[2]
        stats = instance_stats(x_btc, x_mask)
        x_mt = split_channels(normalize(x_btc, stats, x_mask))
        keys_m = channel_keys(dropout_keys, c)
        embeds_mtd = self._token_embedding(x_mt[..., None], self.embed_width or self.width)
        embeds_mdt = self._embed_dropout(embeds_mtd, keys_m).swapaxes(1, 2)
        longer_mnd = self._dense(self.tokens, "time_layer")(embeds_mdt).swapaxes(1, 2)
        hidden_mnd = self._run_trunk(self._pad_width(longer_mnd, "network.embed_width"), keys_m)
        read_mnd = self._read(hidden_mnd, self.read_width)
        pred_mn = self._dense(1, "out_layer")(read_mnd)[..., 0].astype(jnp.float32)
        return denormalize(join_channels(pred_mn[:, -self.horizon :], c), stats)

    @property
    def tokens(self) -> int:
        return self.input_length + self.horizon


class ImputeNetwork(Network):
    """Imputation: token convolution, embedding of calendar features, sinusoid, trunk, layer norm, Dense.

    C ``channels`` are followed in every step by ``calendar`` features, which may be none.
    """

    channels: int
    calendar: int = 0

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """All values ``[b, t, channels]`` in their units from the observed ones."""
        values, features = x_btc[..., : self.channels], x_btc[..., self.channels :]
        mask = None if x_mask is None else x_mask[..., : self.channels]
        stats = instance_stats(values, mask)
        embeds_btd = self._token_embedding(normalize(values, stats, mask), self.width)
        if self.calendar:
            embeds_btd = embeds_btd + self._dense(self.width, "calendar_layer", bias=False)(features)
        hidden_btd = self._run_trunk(self._embed_dropout(embeds_btd, dropout_keys), dropout_keys)
        out_btc = self._dense(self.channels, "out_layer")(_layer_norm("ln_proj")(hidden_btd))
        return denormalize(out_btc.astype(jnp.float32), stats)


def channel_keys(dropout_keys: jax.Array | None, channels: int) -> jax.Array | None:
    """One key per univariate window ``[b * c]`` from one per sample ``[b]``; one channel keeps the key."""
    if dropout_keys is None or channels == 1:
        return dropout_keys
    fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return fold_in(dropout_keys, jnp.arange(channels)).reshape(-1)


def sinusoid(tokens: int, width: int) -> np.ndarray:
    """Positions ``[tokens, width]``: sine in even, cosine in odd columns, wavelengths 2π to 10000 · 2π.

    Raises:
        ConfigError: An odd width.
    """
    if width % 2:
        what = f"sinusoidal positions need an even width, not {width}"
        raise ConfigError(what, where="network", fix="Choose an even network.embed_width or trunk width")
    # in float32, as in the published code
    rates = np.exp(np.arange(0, width, 2, dtype=np.float32) * -(np.log(1e4) / width))
    angles = np.arange(tokens, dtype=np.float32)[:, None] * rates
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(tokens, width).astype(np.float32)


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


def split_channels(x_btc: jax.Array) -> jax.Array:
    """Univariate windows, ``[b, t, c]`` to ``[b * c, t]``."""
    b, t, c = x_btc.shape
    return x_btc.transpose(0, 2, 1).reshape(b * c, t)


def join_channels(y_mh: jax.Array, channels: int) -> jax.Array:
    """The inverse of :func:`split_channels`."""
    return y_mh.reshape(-1, channels, y_mh.shape[1]).transpose(0, 2, 1)


def base_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Shape of every base parameter by path; no array is computed."""
    example = jax.ShapeDtypeStruct(network.example_shape, jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), example)
    return trees.shapes(variables["params"])


def init_base(network: Network, trunk_params: Params, seed: int) -> Params:
    """The network's base parameters, nested float32 NumPy arrays: GPT-2's as given, the others drawn.

    The others follow PyTorch's default distributions, token convolutions a normal one (protocol §2), by the
    rule of :mod:`~ofa_jax.model.frozen_init`: the same seed gives the same bits everywhere.

    ``trunk_params`` are ``load_trunk(...).params``; a network without GPT-2 ignores them.

    Raises:
        WeightsError: ``trunk_params`` are not those that the network reads.
    """
    shapes = base_shapes(network)
    given = {}
    if isinstance(network.trunk, GPT2Trunk):
        given = {_network_path(path): leaf for path, leaf in trees.flatten(trunk_params).items()}
    if not network.pretrained:
        given = {path: leaf for path, leaf in given.items() if path.startswith("gpt2/")}
    if "gpt2/wpe/embedding" not in shapes:
        given.pop("gpt2/wpe/embedding", None)
    found = {path: np.shape(leaf) for path, leaf in given.items()}
    zero = [path for path in shapes if path.split("/")[0] in network.zero]
    wanted = {path: shape for path, shape in shapes.items() if path.startswith("gpt2/") or network.pretrained}
    wanted = {path: shape for path, shape in wanted.items() if path not in zero}
    wrong = sorted(path for path in wanted | found if wanted.get(path) != found.get(path))
    if wrong:
        what = f"the trunk does not fit the network at {listed(wrong, 5, mark='')}"
        fix = "Load the trunk with the configuration that the network was built with"
        raise WeightsError(what, where="gpt2", fix=fix)
    trunk = {path: trees.aligned(np.asarray(leaf)) for path, leaf in given.items()}
    trunk |= {path: np.zeros(shapes[path], np.float32) for path in zero}
    return trees.unflatten(trunk | {path: _draw(seed, path, shapes) for path in shapes if path not in trunk})


def _network_path(path: str) -> str:
    """Where a network has a parameter of a trunk."""
    return f"gpt2/{path}" if path.startswith(("wpe/", "h/", "ln_f/")) else path


def _draw(seed: int, path: str, shapes: dict[str, tuple[int, ...]]) -> np.ndarray:
    """A parameter outside GPT-2, by the kernel of its layer."""
    module, _, leaf = path.rpartition("/")
    kernel = shapes.get(f"{module}/kernel")
    if kernel is None:  # a layer norm
        return np.full(shapes[path], float(leaf == "scale"), np.float32)
    if len(kernel) == 3:  # a token convolution, [3, in, d] (protocol §2)
        return frozen_init.normal(seed, path, kernel, math.sqrt(2 / (kernel[0] * kernel[1])))
    return frozen_init.uniform(seed, path, shapes[path], 1 / math.sqrt(kernel[0]))

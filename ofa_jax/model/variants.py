"""The networks of the other tasks, exactly as protocol §2 has them: reconstruction, classification, short-term forecasting, imputation.

Each is embed, trunk, head like :class:`~ofa_jax.model.networks.ForecastNetwork`, with the trunk under ``gpt2`` and the last layer under
``out_layer``, so the same rules partition and adapt all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.errors import ConfigError
from ofa_jax.model.gpt2 import GPT2Config
from ofa_jax.model.networks import TrunkKind, channel_keys, through_trunk
from ofa_jax.model.operations import dropout
from ofa_jax.model.patching import denormalise, instance_stats, normalise, patch_count, patchify


class _Variant(nn.Module):
    """What the networks share: the trunk's configuration and kind, and the type of the matrix products."""

    trunk: GPT2Config
    input_length: int
    positions: bool = True
    compute_dtype: jnp.dtype = jnp.dtype(jnp.float32)
    remat: bool = False
    kind: TrunkKind = "gpt2"

    def _through_trunk(self, embeds_mnd: jax.Array, keys_m: jax.Array | None) -> jax.Array:
        return through_trunk(
            embeds_mnd,
            keys_m,
            kind=self.kind,
            config=self.trunk,
            positions=self.positions,
            compute_dtype=self.compute_dtype,
            remat=self.remat,
        )

    def _dense(self, width: int, name: str, *, bias: bool = True) -> Callable[[jax.Array], jax.Array]:
        return nn.Dense(width, use_bias=bias, dtype=self.compute_dtype, name=name)

    def _token_convolution(self, tokens_mnq: jax.Array, width: int) -> jax.Array:
        """Circular convolution of three tokens without bias, ``[m, n, q]`` to ``[m, n, width]``."""
        return nn.Conv(
            width, (3,), padding="CIRCULAR", use_bias=False, dtype=self.compute_dtype, name="token_conv"
        )(tokens_mnq)

    def _check_length(self, steps: int) -> None:
        if steps != self.input_length:
            raise ConfigError(
                f"the network reads {self.input_length} steps, the batch has {steps}", where="x_btc"
            )


class ReconstructNetwork(_Variant):
    """Anomaly detection: every step is a token, its channels zero-padded to the trunk's width; the head gives the channels back.

    Attributes:
        channels: C, at most the trunk's width.
        segment: Steps that are normalised together; divides ``input_length``.
        read_width: Hidden dimensions that ``out_layer`` reads, from the first (``d_ff``); None reads all.
    """

    channels: int = 1
    segment: int = 25
    read_width: int | None = None

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Reconstruction ``[b, t, c]`` of ``x_btc`` in its units."""
        b, t, c = x_btc.shape
        self._check_length(t)
        if t % self.segment:
            raise ConfigError(
                f"{t} steps are no multiple of the segment of {self.segment}",
                where="network.segment",
                fix="Choose a divisor of the steps",
            )
        x_gsc = x_btc.reshape(-1, self.segment, c)
        mask_gsc = None if x_mask is None else x_mask.reshape(x_gsc.shape)
        stats = instance_stats(x_gsc, mask_gsc)
        tokens_btc = normalise(x_gsc, stats, mask_gsc).reshape(b, t, c)
        hidden_btd = self._through_trunk(
            _pad_width(tokens_btc, self.trunk.n_embd, "task.channels"), dropout_keys
        )
        read = _read(hidden_btd, self.read_width, self.trunk.n_embd)
        out_btc = self._dense(c, "out_layer")(read.astype(self.compute_dtype)).astype(jnp.float32)
        return denormalise(out_btc.reshape(x_gsc.shape), stats).reshape(b, t, c)

    @property
    def tokens(self) -> int:
        return self.input_length

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """The shape ``[b, t, c]`` of one window."""
        return (1, self.input_length, self.channels)


class ClassifyNetwork(_Variant):
    """Classification: multivariate patches, token convolution and sinusoid, GELU (erf) of the last hidden states, layer norm, Dense.

    Attributes:
        channels: C.
        classes: K.
        patch: Patch length.
        stride: Steps from one patch to the next.
    """

    channels: int = 1
    classes: int = 2
    patch: int = 8
    stride: int = 8

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Logits ``[b, k]`` of cases ``x_btc`` that are padded with zeros after their end; ``x_mask`` is not read."""
        b, t, c = x_btc.shape
        self._check_length(t)
        patches = patchify(x_btc.transpose(0, 2, 1).reshape(b * c, t), self.patch, self.stride)
        n = patches.shape[1]
        tokens_bnq = patches.reshape(b, c, n, self.patch).transpose(0, 2, 3, 1).reshape(b, n, self.patch * c)
        embeds_bnd = self._token_convolution(tokens_bnq, self.trunk.n_embd) + sinusoid(n, self.trunk.n_embd)
        embeds_bnd = dropout(embeds_bnd, self.trunk.embd_pdrop, dropout_keys, "embed")
        hidden_bnd = self._through_trunk(embeds_bnd, dropout_keys)
        flat = jax.nn.gelu(hidden_bnd.astype(jnp.float32), approximate=False).reshape(b, -1)
        normed = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="ln_proj")(flat)
        return self._dense(self.classes, "out_layer")(normed).astype(jnp.float32)

    @property
    def tokens(self) -> int:
        return patch_count(self.input_length, self.patch, self.stride)

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """The shape ``[b, t, c]`` of one case."""
        return (1, self.input_length, self.channels)


class ShortTermNetwork(_Variant):
    """Short-term forecasting: token convolution and sinusoid, a Dense over time from L to L + H steps, trunk, one value per step.

    Attributes:
        horizon: H.
        embed_width: Width of the embedding, zero-padded to the trunk's; None takes the trunk's.
        read_width: Hidden dimensions that ``out_layer`` reads, from the first (``d_ff``); None reads all.
    """

    horizon: int = 1
    embed_width: int | None = None
    read_width: int | None = None

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Forecast ``[b, h, c]`` in the units of ``x_btc``; every channel is forecast on its own."""
        b, t, c = x_btc.shape
        self._check_length(t)
        width = self.embed_width or self.trunk.n_embd
        stats = instance_stats(x_btc, x_mask)
        x_mt = normalise(x_btc, stats, x_mask).transpose(0, 2, 1).reshape(b * c, t)
        keys_m = channel_keys(dropout_keys, c)
        embeds_mtd = self._token_convolution(x_mt[..., None], width) + sinusoid(t, width)
        embeds_mtd = dropout(embeds_mtd, self.trunk.embd_pdrop, keys_m, "embed")
        longer_mnd = self._dense(t + self.horizon, "time_layer")(embeds_mtd.swapaxes(1, 2)).swapaxes(1, 2)
        hidden_mnd = self._through_trunk(
            _pad_width(longer_mnd, self.trunk.n_embd, "network.embed_width"), keys_m
        )
        read = _read(hidden_mnd, self.read_width, self.trunk.n_embd)
        pred_mn = self._dense(1, "out_layer")(read.astype(self.compute_dtype))[..., 0].astype(jnp.float32)
        pred_bhc = pred_mn[:, -self.horizon :].reshape(b, c, self.horizon).transpose(0, 2, 1)
        return denormalise(pred_bhc, stats)

    @property
    def tokens(self) -> int:
        return self.input_length + self.horizon

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """The shape ``[b, t, c]`` of one window."""
        return (1, self.input_length, 1)


class ImputeNetwork(_Variant):
    """Imputation: token convolution of the values, linear embedding of calendar features, sinusoid, trunk, layer norm, Dense.

    Attributes:
        channels: C.
        calendar: Calendar features that stand behind the channels in every step; 0 where there are none.
    """

    channels: int = 1
    calendar: int = 0

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, x_mask: jax.Array | None = None, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """All values ``[b, t, channels]`` in their units from those that ``x_mask`` says are observed.

        Args:
            x_btc: ``[b, t, channels + calendar]``.
            x_mask: Of the same shape; None where every value is observed.
            dropout_keys: One key per sample ``[b]`` while training.
        """
        t = x_btc.shape[1]
        self._check_length(t)
        values, features = x_btc[..., : self.channels], x_btc[..., self.channels :]
        mask = None if x_mask is None else x_mask[..., : self.channels]
        stats = instance_stats(values, mask)
        embeds_btd = self._token_convolution(normalise(values, stats, mask), self.trunk.n_embd) + sinusoid(
            t, self.trunk.n_embd
        )
        if self.calendar:
            embeds_btd = embeds_btd + self._dense(self.trunk.n_embd, "calendar_layer", bias=False)(features)
        embeds_btd = dropout(embeds_btd, self.trunk.embd_pdrop, dropout_keys, "embed")
        hidden_btd = self._through_trunk(embeds_btd, dropout_keys)
        normed = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="ln_proj")(hidden_btd)
        return denormalise(self._dense(self.channels, "out_layer")(normed).astype(jnp.float32), stats)

    @property
    def tokens(self) -> int:
        return self.input_length

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """The shape ``[b, t, c]`` of one window."""
        return (1, self.input_length, self.channels + self.calendar)


def sinusoid(tokens: int, width: int) -> np.ndarray:
    """Fixed positions ``[tokens, width]`` float32: sine in even, cosine in odd columns, wavelengths from 2π to 10000 · 2π.

    Computed in float32, as PyTorch code does.

    Raises:
        ConfigError: An odd width.
    """
    if width % 2:
        raise ConfigError(
            f"sinusoidal positions need an even width, not {width}",
            where="network",
            fix="Take an even network.embed_width or trunk width",
        )
    angles = np.arange(tokens, dtype=np.float32)[:, None] * np.exp(
        np.arange(0, width, 2, dtype=np.float32) * -(np.log(1e4) / width)
    )
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(tokens, width).astype(np.float32)


def _pad_width(x_mnq: jax.Array, width: int, setting: str) -> jax.Array:
    missing = width - x_mnq.shape[-1]
    if missing < 0:
        raise ConfigError(
            f"{x_mnq.shape[-1]} values a step do not fit the trunk's width {width}",
            where=setting,
            fix="Take a wider trunk",
        )
    return jnp.pad(x_mnq, ((0, 0), (0, 0), (0, missing)))


def _read(hidden_mnd: jax.Array, read_width: int | None, width: int) -> jax.Array:
    if read_width is not None and read_width > width:
        raise ConfigError(
            f"{read_width} hidden dimensions cannot be read of a trunk of width {width}",
            where="network.read_width",
            fix=f"Read at most {width}",
        )
    return hidden_mnd[..., :read_width]

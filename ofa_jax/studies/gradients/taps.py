"""What reaches every adapter on one batch: its input and output gradient, and what follows from both.

An adapter computes ``out = s (x a) b``. Its input ``x`` and ``G = dL/dout`` come from one backward pass: a
tensor of zeros, the probe, is added to the output of each adapted layer, and the loss is differentiated with
respect to it. Everything else is a product of these:

    dL/db = s (x a)^T G      dL/da = s x^T (G b^T)      dL/dx = s (G b^T) a^T, of the adapter alone

For an embedding ``x`` is the one-hot row of the index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ofa_jax.adapters.partition import AdapterTarget
from ofa_jax.errors import ConfigError
from ofa_jax.train.step import Loss, Params, Predict
from ofa_jax.windows.batch import Batch

MOMENTS = (4, 6)
"""Moments of the adapter's output besides the second, which is reported as its root."""


class Tap(NamedTuple):
    """What one adapter sees of a batch.

    Attributes:
        x: Its input, ``[t, in]`` float32, every token of every window; for an embedding the indices ``[t]``.
        gradient: The gradient of the mean loss at its output, ``[t, out]`` float32.
    """

    x: jax.Array
    gradient: jax.Array


Taps = dict[str, Tap]
"""By module."""


def tap(
    predict: Predict,
    loss: Loss,
    targets: Mapping[str, AdapterTarget],
    frozen: Params,
    trainable: Params,
    batch: Batch,
) -> Taps:
    """Input and output gradient of every adapter on one batch, dropout off; pure and traceable.

    Raises:
        ConfigError: An adapted layer is called more than once in a pass.
    """

    def forward(probes: dict[str, jax.Array] | None) -> tuple[jax.Array, Any]:
        inputs: dict[str, jax.Array] = {}
        outputs: dict[str, jax.Array] = {}

        def intercept(call: Callable[..., jax.Array], args: tuple, kwargs: dict, context: Any) -> jax.Array:
            out, path = call(*args, **kwargs), "/".join(context.module.path)
            if path not in targets or context.method_name != "__call__":
                return out
            if path in inputs:
                what = f"the adapted layer {path!r} is called more than once per forward pass"
                raise ConfigError(what, where="rules", fix="Adapt another layer")
            inputs[path], outputs[path] = args[0], out
            return out if probes is None else out + probes[path].astype(out.dtype)

        with nn.intercept_methods(intercept):
            total, count = loss(predict(frozen, trainable, batch.x, batch.x_mask), batch)
        return total / jnp.maximum(count, 1), (inputs, outputs)

    _, (_, outputs) = jax.eval_shape(lambda: forward(None))
    probes = {path: jnp.zeros(out.shape, jnp.float32) for path, out in outputs.items()}
    gradients, (inputs, _) = jax.grad(forward, has_aux=True)(probes)
    seen = {}
    for path, target in targets.items():
        x, gradient = inputs[path], gradients[path]
        x = x.reshape(-1) if target.kind == "embedding" else x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        seen[path] = Tap(x, gradient.reshape(-1, gradient.shape[-1]))
    return seen


def quantities(
    seen: Tap,
    first: jax.Array,
    before: Mapping[str, jax.Array],
    after: Mapping[str, jax.Array],
    weight: jax.Array,
    scale: jax.Array,
) -> dict[str, jax.Array]:
    """The study's quantities of one adapter, float32 scalars; :mod:`.study` defines them.

    Args:
        seen: What it sees, with the factors ``after``.
        first: The gradient at its output before the first step, ``[t, out]``.
        before, after: ``{"a": [in, r], "b": [r, out]}`` one step ago and now.
        weight: The layer's own weight, ``[in, out]``.
        scale: The factor before ``a b``.
    """
    a, b, x, gradient = after["a"], after["b"], seen.x, seen.gradient
    indexed = jnp.issubdtype(x.dtype, jnp.integer)
    low = a[x] if indexed else _product(x, a)
    out, back = scale * _product(low, b), scale * _product(gradient, b.T)
    into = _product(back, a.T)
    rms = _norm(out) / math.sqrt(out.size)
    unit = out / jnp.where(rms > 0, rms, 1)
    return {
        "output_rms": rms,
        **{f"output_shape_{m}": jnp.mean(unit**m) for m in MOMENTS},
        "input_gradient_rms": _norm(into) / math.sqrt(into.size),
        "gradient_norm_a": _norm(jnp.zeros_like(a).at[x].add(back) if indexed else _product(x.T, back)),
        "gradient_norm_b": scale * _norm(_product(low.T, gradient)),
        "update_ratio_a": _norm(a - before["a"]) / _norm(a),
        "update_ratio_b": _norm(b - before["b"]) / _norm(b),
        "weight_ratio": scale * _norm(_product(a, b)) / _norm(weight),
        "first_order_change": -jnp.sum(first * out),
    }


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    # full float32: by default GPUs and TPUs round the factors of a float32 product
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _norm(values: jax.Array) -> jax.Array:
    # scaled by the largest value first: squares of small numbers underflow in float32
    largest = jnp.max(jnp.abs(values))
    return largest * jnp.linalg.norm(values / jnp.where(largest > 0, largest, 1))

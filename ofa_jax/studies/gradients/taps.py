"""What flows through every adapter on one batch: its input, the loss gradient at its output, and the numbers that follow from the two.

An adapter computes ``out = s (x a) b``. Its input ``x`` and ``G = dL/dout`` come from one backward pass: a tensor of zeros, the probe, is
added to the output of each adapted layer, and the loss is differentiated to it. Everything else is a product of these:

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
"""Moments of the adapter's output besides the second, which is told as its root."""


class Tap(NamedTuple):
    """What one adapter saw of a batch.

    Attributes:
        entered: Its input, ``[t, in]`` float32, every token of every window; of an embedding the indices ``[t]``.
        gradient: The gradient of the mean loss to its output, ``[t, out]`` float32.
    """

    entered: jax.Array
    gradient: jax.Array


def tap(
    predict: Predict,
    loss: Loss,
    targets: Mapping[str, AdapterTarget],
    frozen: Params,
    trainable: Params,
    batch: Batch,
) -> dict[str, Tap]:
    """Input and output gradient of every adapter on one batch, dropout off; pure and traceable.

    Args:
        predict: The network with its adapters.
        loss: Its sum of losses and their number; the gradient is that of their ratio.
        targets: The adapted layers.
        frozen, trainable: Its parameters.
        batch: The windows.

    Raises:
        ConfigError: An adapted layer is called more than once in a pass.
    """

    def run(
        probes: dict[str, jax.Array] | None,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
        entered: dict[str, jax.Array] = {}
        left: dict[str, jax.Array] = {}

        def listen(call: Callable[..., jax.Array], args: tuple, kwargs: dict, context: Any) -> jax.Array:
            out, path = call(*args, **kwargs), "/".join(context.module.path)
            if path not in targets or context.method_name != "__call__":
                return out
            if path in entered:
                raise ConfigError(
                    f"the adapted layer {path!r} is called more than once in a pass, which is not measured",
                    where="rules",
                )
            entered[path], left[path] = args[0], out
            return out if probes is None else out + probes[path].astype(out.dtype)

        with nn.intercept_methods(listen):
            total, count = loss(predict(frozen, trainable, batch.x, batch.x_mask), batch)
        return total / jnp.maximum(count, 1), (entered, left)

    _, (_, shapes) = jax.eval_shape(lambda: run(None))
    probes = {path: jnp.zeros(out.shape, jnp.float32) for path, out in shapes.items()}
    gradients, (entered, _) = jax.grad(run, has_aux=True)(probes)
    return {
        path: Tap(_by_token(targets[path], entered[path]), _rows(gradient))
        for path, gradient in gradients.items()
    }


def _by_token(target: AdapterTarget, entered: jax.Array) -> jax.Array:
    return entered.reshape(-1) if target.kind == "embedding" else _rows(entered).astype(jnp.float32)


def _rows(values: jax.Array) -> jax.Array:
    return values.reshape(-1, values.shape[-1])


def numbers(
    seen: Tap,
    first: jax.Array,
    before: Mapping[str, jax.Array],
    after: Mapping[str, jax.Array],
    weight: jax.Array,
    scale: jax.Array,
) -> dict[str, jax.Array]:
    """The study's quantities of one adapter, float32 scalars, each defined in :mod:`ofa_jax.studies.gradients.study`.

    Args:
        seen: What it saw, with the factors ``after``.
        first: The gradient to its output before the first step, ``[t, out]``.
        before, after: ``{"a": [in, r], "b": [r, out]}`` one step ago and now.
        weight: The layer's own weight, ``[in, out]``.
        scale: The factor before ``a b``.
    """
    a, b, x, gradient = after["a"], after["b"], seen.entered, seen.gradient
    low = a[x] if jnp.issubdtype(x.dtype, jnp.integer) else product(x, a)
    out, back = scale * product(low, b), scale * product(gradient, b.T)
    rms = root_mean_square(out)
    unit = out / jnp.where(rms > 0, rms, 1)
    return {
        "output_rms": rms,
        **{f"output_shape_{m}": jnp.mean(unit**m) for m in MOMENTS},
        "input_gradient_rms": root_mean_square(product(back, a.T)),
        "gradient_norm_a": length(summed_over_rows(x, back, a.shape[0])),
        "gradient_norm_b": scale * length(product(low.T, gradient)),
        "update_ratio_a": length(a - before["a"]) / length(a),
        "update_ratio_b": length(b - before["b"]) / length(b),
        "weight_ratio": scale * length(product(a, b)) / length(weight),
        "first_order_change": -jnp.sum(first * out),
    }


def summed_over_rows(x: jax.Array, values: jax.Array, rows: int) -> jax.Array:
    """``x^T values``: ``[rows, …]`` from ``[t, …]``, where an index stands for its one-hot row."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.zeros((rows, values.shape[-1]), values.dtype).at[x].add(values)
    return product(x.T, values)


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    # in full float32: by default GPUs and TPUs round the factors of a float32 product
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def length(values: jax.Array) -> jax.Array:
    # divided by the largest first: the squares of small numbers are below float32's smallest
    largest = jnp.max(jnp.abs(values))
    return largest * jnp.linalg.norm(values / jnp.where(largest > 0, largest, 1))


def root_mean_square(values: jax.Array) -> jax.Array:
    return length(values) / math.sqrt(values.size)

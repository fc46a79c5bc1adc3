"""Rank-stabilised low-rank adapters as functional transforms.

An adapter adds ``s · a b`` to the weight ``W`` of one layer, ``W: [in, out]``, ``a: [in, r]``, ``b: [r, out]``. Adapters live in a
tree of their own, ``{module path: {"a": …, "b": …}}``, and reach a network in one of two ways that agree up to rounding::

    adapted = with_adapters(network_apply, scale)             # while training: activations, dropout
    prediction = adapted(params, adapters, x)

    merged = merge(params, adapters, scale)                   # for serving: weights, no extra work
    prediction = network_apply(merged, x)

The scale is ``alpha / sqrt(r)`` (rsLoRA, Kalajdzievski, arXiv 2312.03732) or ``alpha / r`` (LoRA). At the start one factor is zero, so
an adapted network equals the plain one exactly. Which factor is zero follows peft: ``b`` for a dense layer, ``a`` for an
embedding (protocol §1.7); for an embedding ``a: [positions, r]`` holds a row per position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.adapters.partition import Site
from ofa_jax.config.schema import Init, Scaling
from ofa_jax.errors import ConfigError, WeightsError
from ofa_jax.model import frozen_init, trees
from ofa_jax.model.dropout import dropout
from ofa_jax.model.networks import channel_keys

Adapters = dict[str, dict[str, Any]]
"""``{module path: {"a": [in, r], "b": [r, out]}}``."""


def adapter_scale(rank: int, alpha: float, scaling: Scaling) -> float:
    """The factor before ``a b``: ``rslora`` alpha/sqrt(r), ``lora`` alpha/r, ``none`` alpha."""
    if rank < 1:
        raise ConfigError(f"rank {rank} is not a whole number of at least 1", where="adapters.rank")
    return {"rslora": alpha / math.sqrt(rank), "lora": alpha / rank, "none": alpha}[scaling]


def init_adapters(
    sites: Mapping[str, Site], rank: int, *, init: Init = "peft_gaussian", seed: int = 0
) -> Adapters:
    """Fresh adapters, float32 NumPy arrays, drawn on the host by the seeded rule of the frozen layers.

    The factor that is not zero is

    - ``peft_gaussian``: dense ``a`` ~ N(0, std 1/r), embedding ``b`` ~ N(0, std 1), as peft's ``init_lora_weights="gaussian"``;
    - ``theorem``: dense ``a`` ~ N(0, variance 1/in), embedding ``b`` ~ N(0, variance 1/d): no dependence on the rank, as the paper's
      Theorem 1 assumes;
    - ``kaiming``: dense ``a`` ~ U(±1/sqrt(in)), embedding ``b`` ~ N(0, std 1), as peft's ``init_lora_weights=True``.

    Args:
        sites: The layers to adapt, as in ``partition(...).sites``.
        rank: Rank r of every adapter; it may exceed the layer's smaller side.
        init: Distribution of the factor that is not zero.
        seed: Seed of the draw.
    """
    if rank < 1:
        raise ConfigError(f"rank {rank} is not a whole number of at least 1", where="adapters.rank")
    adapters: Adapters = {}
    for path, site in sites.items():
        rows, columns = site.shape
        place = f"adapters/{path}"
        if site.kind == "embedding":
            std = 1 / math.sqrt(columns) if init == "theorem" else 1.0
            b = frozen_init.normal(seed, f"{place}/b", (rank, columns), std)
            adapters[path] = {"a": np.zeros((rows, rank), np.float32), "b": b}
            continue
        if init == "kaiming":
            a = frozen_init.uniform(seed, f"{place}/a", (rows, rank), 1 / math.sqrt(rows))
        else:
            a = frozen_init.normal(
                seed, f"{place}/a", (rows, rank), 1 / rank if init == "peft_gaussian" else 1 / math.sqrt(rows)
            )
        adapters[path] = {"a": a, "b": np.zeros((rank, columns), np.float32)}
    return adapters


def with_adapters(
    apply_fn: Callable[..., jax.Array], scale: float | jax.Array, *, dropout_rate: float = 0.0
) -> Callable[..., jax.Array]:
    """A network function that also takes adapters: ``f(params, *xs) -> g(params, adapters, *xs)``.

    The adapter's sum is made in float32 and cast to the layer's own output type. Dropout acts on the input of dense adapters
    only, never on embeddings, as in peft. Where a layer sees several rows per sample (one per channel), each row has its own mask.

    Args:
        apply_fn: ``f(params, *xs, dropout_keys=None)`` that applies a Flax linen module.
        scale: The factor before ``a b`` (:func:`adapter_scale`): a number, or a float32 scalar that may be traced.
        dropout_rate: Probability of dropping an input value of a dense adapter while ``dropout_keys`` are given.

    Raises:
        WeightsError: While tracing, an adapter that does not fit its layer's shape, or whose path names no dense or embedding
            layer of the network: it would otherwise be trained without effect.
    """

    def adapted(
        params: Any,
        adapters: Mapping[str, Mapping[str, Any]],
        *args: Any,
        dropout_keys: jax.Array | None = None,
        **kwargs: Any,
    ) -> jax.Array:
        reached: set[str] = set()

        def add_delta(
            call: Callable[..., jax.Array], call_args: tuple, call_kwargs: dict, context: Any
        ) -> jax.Array:
            module = context.module
            path = "/".join(module.path)
            if (
                context.method_name != "__call__"
                or path not in adapters
                or not isinstance(module, nn.Dense | nn.Embed)
            ):
                return call(*call_args, **call_kwargs)
            reached.add(path)
            a, b = adapters[path]["a"], adapters[path]["b"]
            base = call(*call_args, **call_kwargs)
            (x,) = call_args
            _check_fit(
                path,
                a,
                b,
                (module.num_embeddings if isinstance(module, nn.Embed) else x.shape[-1], module.features),
            )
            if isinstance(module, nn.Embed):
                low_rank = jnp.take(a, x, axis=0)
            else:
                keys_m = (
                    None
                    if dropout_keys is None
                    else channel_keys(dropout_keys, x.shape[0] // dropout_keys.shape[0])
                )
                low_rank = _product(
                    dropout(x.astype(jnp.float32), dropout_rate, keys_m, f"{path}/adapter"), a
                )
            return (base.astype(jnp.float32) + scale * _product(low_rank, b)).astype(base.dtype)

        with nn.intercept_methods(add_delta):
            output = apply_fn(params, *args, dropout_keys=dropout_keys, **kwargs)
        idle = sorted(set(adapters) - reached)
        if idle:
            raise WeightsError(
                f"no dense or embedding layer is called {', '.join(idle)}, so its adapter has no effect",
                where="adapters",
            )
        return output

    return adapted


def merge(
    params: Mapping[str, Any], adapters: Mapping[str, Mapping[str, Any]], scale: float
) -> dict[str, Any]:
    """Fold adapters into the weights: ``W + s · a b`` for every adapted layer; the other leaves are passed on as they are.

    Args:
        params: A network's base parameters, nested.
        adapters: ``{module path: {"a": [in, r], "b": [r, out]}}``.
        scale: The factor before ``a b``.

    Raises:
        WeightsError: An adapter that names no layer of ``params`` or does not fit its shape.
    """
    flat = dict(trees.flatten(params))
    for path, factors in adapters.items():
        name = next((f"{path}/{leaf}" for leaf in ("kernel", "embedding") if f"{path}/{leaf}" in flat), None)
        if name is None:
            raise WeightsError(
                f"the parameters have no layer {path!r} to merge an adapter into", where="adapters"
            )
        weight = jnp.asarray(flat[name])
        _check_fit(path, factors["a"], factors["b"], weight.shape)
        delta = scale * _product(factors["a"], factors["b"])
        flat[name] = (weight.astype(jnp.float32) + delta).astype(weight.dtype)
    return trees.unflatten(flat)


def _product(left: Any, right: Any) -> jax.Array:
    # in full float32: by default GPUs and TPUs round the factors of a float32 product
    return jnp.matmul(
        jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32), precision=jax.lax.Precision.HIGHEST
    )


def _check_fit(path: str, a: Any, b: Any, shape: tuple[int, ...]) -> None:
    if a.shape[1:] != b.shape[:1] or (*a.shape[:1], *b.shape[1:]) != shape:
        raise WeightsError(
            f"the adapter of {path!r} has factors {a.shape} and {b.shape}, its layer's weight is {shape}",
            where="adapters",
            fix="Use adapters that were made for this network",
        )

"""Rank-stabilized low-rank adapters as functional transforms.

An adapter adds ``s · a b`` to the weight ``W: [in, out]`` of one layer, with ``a: [in, r]``, ``b: [r, out]``.
Adapters live in a separate tree, ``{module path: {"a": …, "b": …}}``, and reach a network in one of two ways
that agree up to rounding::

    lora = LoraConfig(rank=16, alpha=16)
    adapters = init_adapters(partition(params, rules).targets, lora)

    adapted = with_adapters(apply, lora)             # training: activations, dropout
    prediction = adapted(params, adapters, x)

    merged = merge(params, adapters, lora)           # serving: weights, no extra work
    prediction = apply(merged, x)

At initialization one factor is zero, so an adapted network equals the plain one exactly. As in peft, that is
``b`` for a dense layer and ``a`` for an embedding (protocol §1.7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.adapters.partition import AdapterTarget
from ofa_jax.config.schema import Init, Scaling
from ofa_jax.errors import ConfigError, WeightsError
from ofa_jax.model import frozen_init, trees
from ofa_jax.model.dropout import dropout
from ofa_jax.model.networks import channel_keys

Adapters = dict[str, dict[str, Any]]
"""``{module path: {"a": [in, r], "b": [r, out]}}``."""


@dataclass(frozen=True)
class LoraConfig:
    """Shape, scale and initialization of a set of adapters.

    Attributes:
        rank: Rank r of every adapter; it may exceed the smaller side of a layer.
        alpha: Numerator of the scale.
        scaling: ``rslora`` alpha/sqrt(r) (Kalajdzievski, arXiv 2312.03732), ``lora`` alpha/r, ``none`` alpha.
        dropout: Probability of dropping an input value of a dense adapter in training.
        init: Distribution of the factor that is not zero, ``a`` of a dense layer, ``b`` of an embedding:
            ``peft_gaussian`` N(0, std 1/r) and N(0, 1), as peft's ``"gaussian"``; ``theorem`` N(0, variance
            1/in) and N(0, variance 1/d), as the paper's Theorem 1 assumes; ``kaiming`` U(±1/sqrt(in)) and
            N(0, 1), as peft's ``True``.

    Raises:
        ConfigError: The rank is below 1, or ``scaling`` or ``init`` is unknown.
    """

    rank: int
    alpha: float
    scaling: Scaling = "rslora"
    dropout: float = 0.0
    init: Init = "peft_gaussian"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank {self.rank} is not at least 1", where="adapters.rank")
        for name, value, known in (("scaling", self.scaling, Scaling), ("init", self.init, Init)):
            if value not in get_args(known):
                what = f"{value!r} is not one of {', '.join(get_args(known))}"
                raise ConfigError(what, where=f"adapters.{name}")

    @property
    def scale(self) -> float:
        """The factor s in ``W + s · a b``."""
        divisor = {"rslora": math.sqrt(self.rank), "lora": self.rank, "none": 1}
        return self.alpha / divisor[self.scaling]


def init_adapters(targets: Mapping[str, AdapterTarget], lora: LoraConfig, *, seed: int = 0) -> Adapters:
    """Initial adapters of the layers ``partition(...).targets``: float32 NumPy arrays, drawn on the host."""
    adapters: Adapters = {}
    for path, target in targets.items():
        rows, columns = target.shape
        a = np.zeros((rows, lora.rank), np.float32)
        b = np.zeros((lora.rank, columns), np.float32)
        if target.kind == "embedding":
            std = 1 / math.sqrt(columns) if lora.init == "theorem" else 1.0
            b = frozen_init.normal(seed, f"adapters/{path}/b", b.shape, std)
        elif lora.init == "kaiming":
            a = frozen_init.uniform(seed, f"adapters/{path}/a", a.shape, 1 / math.sqrt(rows))
        else:
            std = 1 / lora.rank if lora.init == "peft_gaussian" else 1 / math.sqrt(rows)
            a = frozen_init.normal(seed, f"adapters/{path}/a", a.shape, std)
        adapters[path] = {"a": a, "b": b}
    return adapters


def with_adapters(
    apply_fn: Callable[..., jax.Array], lora: LoraConfig, *, scale: jax.Array | None = None
) -> Callable[..., jax.Array]:
    """A network function that also takes adapters: ``f(params, *xs) -> g(params, adapters, *xs)``.

    The adapter's sum is computed in float32 and cast to the layer's output type. Dropout acts on the input of
    dense adapters only, as in peft; each row of a sample (one per channel) has its own mask.

    Args:
        apply_fn: ``f(params, *xs, dropout_keys=None)`` that applies a Flax linen module.
        lora: Scale and dropout of the adapters.
        scale: Replaces ``lora.scale``: a float32 scalar that may be traced.

    Raises:
        WeightsError: While tracing: an adapter that does not fit its layer's shape, or that would have no
            effect because its path names no dense or embedding layer of the network.
    """
    factor = lora.scale if scale is None else scale

    def adapted(params, adapters, *xs, dropout_keys=None, **kwargs):
        reached = set()

        def add_delta(call, args, named, context):
            module, path = context.module, "/".join(context.module.path)
            output, is_embedding = call(*args, **named), isinstance(module, nn.Embed)
            layer = context.method_name == "__call__" and (is_embedding or isinstance(module, nn.Dense))
            if not layer or path not in adapters:
                return output
            reached.add(path)
            a, b, (x,) = adapters[path]["a"], adapters[path]["b"], args
            rows = module.num_embeddings if is_embedding else x.shape[-1]
            _check_fit(path, a, b, (rows, module.features))
            if is_embedding:
                low_rank = jnp.take(a, x, axis=0)
            else:
                channels = 1 if dropout_keys is None else x.shape[0] // dropout_keys.shape[0]
                keys_m = channel_keys(dropout_keys, channels)
                dropped = dropout(x.astype(jnp.float32), lora.dropout, keys_m, f"{path}/adapter")
                low_rank = _matmul(dropped, a)
            return (output.astype(jnp.float32) + factor * _matmul(low_rank, b)).astype(output.dtype)

        with nn.intercept_methods(add_delta):
            output = apply_fn(params, *xs, dropout_keys=dropout_keys, **kwargs)
        if unused := ", ".join(sorted(adapters.keys() - reached)):
            what = f"no dense or embedding layer is called {unused}, so its adapter has no effect"
            raise WeightsError(what, where="adapters")
        return output

    return adapted


def merge(params: Mapping[str, Any], adapters: Adapters, lora: LoraConfig) -> dict[str, Any]:
    """Fold adapters into the weights, ``W + s · a b``; other leaves stay the same objects.

    Raises:
        WeightsError: An adapter that names no layer of ``params`` or does not fit its shape.
    """
    flat = trees.flatten(params)
    for path, factors in adapters.items():
        name = next((f"{path}/{leaf}" for leaf in ("kernel", "embedding") if f"{path}/{leaf}" in flat), None)
        if name is None:
            what = f"the parameters have no layer {path!r} to merge an adapter into"
            raise WeightsError(what, where="adapters")
        weight = jnp.asarray(flat[name])
        _check_fit(path, factors["a"], factors["b"], weight.shape)
        delta = lora.scale * _matmul(factors["a"], factors["b"])
        flat[name] = (weight.astype(jnp.float32) + delta).astype(weight.dtype)
    return trees.unflatten(flat)


def _matmul(left: Any, right: Any) -> jax.Array:
    # in full float32: by default GPUs and TPUs round the factors of a float32 product
    left, right = jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32)
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _check_fit(path: str, a: Any, b: Any, shape: tuple[int, ...]) -> None:
    if a.shape[1:] != b.shape[:1] or (*a.shape[:1], *b.shape[1:]) != shape:
        what = f"the adapter of {path!r} has factors {a.shape} and {b.shape}, its layer's weight is {shape}"
        raise WeightsError(what, where="adapters", fix="Use adapters that were made for this network")

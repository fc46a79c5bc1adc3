"""Which parameters are frozen, which are trained, which carry an adapter: ordered path rules, every leaf covered once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ofa_jax.config.recipes import Action
from ofa_jax.errors import ConfigError
from ofa_jax.model.trees import flatten, unflatten

Rule = tuple[Action, str]
"""An action and a regular expression that must match a leaf's whole path (``gpt2/h/0/ln_1/scale``)."""

ADAPTABLE = {"kernel": "dense", "embedding": "embedding"}
"""Leaves that can carry an adapter, by the name Flax gives them, and the kind of their layer."""


@dataclass(frozen=True)
class Site:
    """A layer that carries an adapter: its kind and the shape ``[in, out]`` of its weight."""

    kind: Literal["dense", "embedding"]
    shape: tuple[int, int]


@dataclass(frozen=True)
class Partition:
    """A parameter tree in two: ``frozen`` and ``trained``, nested dicts without common leaves, and the adapted layers.

    An adapted layer's own weight is frozen unless its rule is ``train_and_adapt``; ``sites`` names the layer by its module path
    (``gpt2/wpe``, ``out_layer``).
    """

    frozen: dict[str, Any]
    trained: dict[str, Any]
    sites: dict[str, Site]


def actions(paths: Iterable[str], rules: Sequence[Rule]) -> dict[str, Action]:
    """What happens to each leaf: the first rule that matches its whole path decides.

    Raises:
        ConfigError: A leaf that no rule covers, a rule that decides nothing, or an expression that is not one.
    """
    patterns = []
    for action, expression in rules:
        try:
            patterns.append((action, re.compile(expression)))
        except re.error as error:
            raise ConfigError(
                f"{expression!r} is not a regular expression ({error})", where="rules"
            ) from None
    decided: dict[str, Action] = {}
    used = [0] * len(patterns)
    for path in paths:
        for index, (action, pattern) in enumerate(patterns):
            if pattern.fullmatch(path):
                decided[path] = action
                used[index] += 1
                break
        else:
            raise ConfigError(
                f"no rule covers the parameter {path!r}",
                where="rules",
                fix="Add a rule for it, or end the rules with [freeze, '.*']",
            )
    idle = [f"[{rules[index][0]}, {rules[index][1]!r}]" for index, count in enumerate(used) if not count]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} decides no parameter",
            where="rules",
            fix=f"Parameters are {', '.join(sorted(decided)[:4])}, …; an earlier rule may take what this one names"
            + (
                ""
                if any(path.startswith("gpt2/") for path in decided)
                else "; there is no trunk here: use recipe head_only or full"
            ),
        )
    return decided


def is_trained(action: Action) -> bool:
    """Whether an action changes the leaf itself."""
    return action in ("train", "train_and_adapt")


def adapter_sites(shapes: Mapping[str, tuple[int, ...]], decided: Mapping[str, Action]) -> dict[str, Site]:
    """The layers that carry an adapter, by module path.

    Raises:
        ConfigError: An ``adapt`` rule names a leaf that is not a dense kernel or an embedding table.
    """
    sites = {}
    for path, action in decided.items():
        if action not in ("adapt", "train_and_adapt"):
            continue
        module, _, leaf = path.rpartition("/")
        shape = shapes[path]
        if leaf not in ADAPTABLE or len(shape) != 2:
            raise ConfigError(
                f"{path!r} of shape {shape} cannot carry an adapter",
                where="rules",
                fix="Adapt dense kernels and embedding tables only; train or freeze the rest",
            )
        kind: Literal["dense", "embedding"] = "dense" if leaf == "kernel" else "embedding"
        sites[module] = Site(kind, (shape[0], shape[1]))
    return sites


def partition(params: Mapping[str, Any], rules: Sequence[Rule]) -> Partition:
    """Split a network's parameters by ordered rules.

    Args:
        params: A nested dict of arrays.
        rules: Pairs ``(action, path)``; the first whose expression matches a leaf's whole path decides: ``freeze`` it,
            ``train`` it, ``adapt`` it (freeze it and give its layer a low-rank adapter), or ``train_and_adapt`` it.

    Raises:
        ConfigError: A leaf without a rule, a rule without a leaf, or an adapter on a leaf that cannot carry one.
    """
    flat = flatten(params)
    decided = actions(flat, rules)
    sites = adapter_sites({path: tuple(leaf.shape) for path, leaf in flat.items()}, decided)
    trained = {path: leaf for path, leaf in flat.items() if is_trained(decided[path])}
    frozen = {path: leaf for path, leaf in flat.items() if not is_trained(decided[path])}
    return Partition(unflatten(frozen), unflatten(trained), sites)


def combine(frozen: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """Join two nested dicts without common leaves; the inverse of :func:`partition`.

    Raises:
        ConfigError: The two hold the same leaf.
    """
    joined = dict(frozen)
    for name, node in trained.items():
        if name not in joined:
            joined[name] = node
        elif isinstance(joined[name], Mapping) and isinstance(node, Mapping):
            joined[name] = combine(joined[name], node)
        else:
            raise ConfigError(f"both trees hold {name!r}", where="combine")
    return joined

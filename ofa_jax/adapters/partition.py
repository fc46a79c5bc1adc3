"""Which parameters are frozen, trained or adapted: ordered path rules that cover every leaf exactly once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ofa_jax.config.recipes import Action, Rule
from ofa_jax.errors import ConfigError
from ofa_jax.model.trees import flatten, unflatten

LayerKind = Literal["dense", "embedding"]

_KINDS: dict[str, LayerKind] = {"kernel": "dense", "embedding": "embedding"}
"""Flax's name of a leaf that can carry an adapter, and the kind of its layer."""


@dataclass(frozen=True)
class AdapterTarget:
    """A layer that carries an adapter: its kind and the shape ``[in, out]`` of its weight."""

    kind: LayerKind
    shape: tuple[int, int]


@dataclass(frozen=True)
class Partition:
    """A parameter tree in two, nested dicts without common leaves, and the adapted layers.

    ``targets`` is keyed by module path (``gpt2/wpe``, ``out_layer``). The weight of an adapted layer is
    frozen unless its rule is ``train_and_adapt``.
    """

    frozen: dict[str, Any]
    trained: dict[str, Any]
    targets: dict[str, AdapterTarget]


def partition(params: Mapping[str, Any], rules: Sequence[Rule]) -> Partition:
    """Split a network's parameters by ordered rules.

    Args:
        params: A nested dict of arrays.
        rules: Pairs ``(action, path)``; the first whose expression matches a leaf's full path decides:
            ``freeze`` it, ``train`` it, ``adapt`` it (freeze it and give its layer a low-rank adapter), or
            ``train_and_adapt`` it.

    Raises:
        ConfigError: A leaf without a rule, a rule without a leaf, or an adapter on an unsuitable leaf.
    """
    flat, targets = flatten(params), {}
    decided = actions(flat, rules)
    for path, action in decided.items():
        if action in ("adapt", "train_and_adapt"):
            module, _, leaf = path.rpartition("/")
            shape = flat[path].shape
            if leaf not in _KINDS or len(shape) != 2:
                what = f"{path!r} of shape {shape} cannot carry an adapter"
                fix = "Adapt dense kernels and embedding tables only; train or freeze the rest"
                raise ConfigError(what, where="rules", fix=fix)
            targets[module] = AdapterTarget(_KINDS[leaf], shape)
    trained = {path: leaf for path, leaf in flat.items() if decided[path] in ("train", "train_and_adapt")}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return Partition(unflatten(frozen), unflatten(trained), targets)


def combine(frozen: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """Join two nested dicts without common leaves; the inverse of :func:`partition`.

    Raises:
        ConfigError: Both contain the same leaf.
    """
    joined = dict(frozen)
    for name, node in trained.items():
        if name not in joined:
            joined[name] = node
        elif isinstance(joined[name], Mapping) and isinstance(node, Mapping):
            joined[name] = combine(joined[name], node)
        else:
            raise ConfigError(f"both trees contain {name!r}", where="combine")
    return joined


def actions(paths: Iterable[str], rules: Sequence[Rule]) -> dict[str, Action]:
    """What happens to each leaf: the first rule that matches its full path decides.

    Raises:
        ConfigError: A leaf that no rule covers, a rule that decides nothing, or an invalid expression.
    """
    patterns = [_compiled(expression) for _, expression in rules]
    decided: dict[str, Action] = {}
    used = set()
    for path in paths:
        match = next((i for i, pattern in enumerate(patterns) if pattern.fullmatch(path)), None)
        if match is None:
            fix = "Add a rule for it, or end the rules with [freeze, '.*']"
            raise ConfigError(f"no rule covers the parameter {path!r}", where="rules", fix=fix)
        decided[path] = rules[match][0]
        used.add(match)
    unused = [f"[{action}, {path!r}]" for i, (action, path) in enumerate(rules) if i not in used]
    if unused:
        fix = f"Parameters are {', '.join(sorted(decided)[:4])}, …; an earlier rule may already match"
        if not any(path.startswith("gpt2/") for path in decided):
            fix += "; this network has no trunk: use recipe head_only or full"
        raise ConfigError(f"{', '.join(unused)} decides no parameter", where="rules", fix=fix)
    return decided


_LONGEST, _REPETITIONS = 500, 3


def _compiled(expression: str) -> re.Pattern[str]:
    """A rule's expression, refused where matching could take more than a cubic time (a bundle brings its
    rules).

    Raises:
        ConfigError: It is no regular expression, is too long, repeats a group, or repeats too much in a row.
    """
    if len(expression) > _LONGEST:
        what = f"an expression of {len(expression):,} characters, {expression[:20]!r}…, is too long"
        raise ConfigError(what, where="rules", fix=f"Use at most {_LONGEST}, in several rules")
    try:
        pattern = re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        what = f"{expression!r} is not a regular expression ({error})"
        raise ConfigError(what, where="rules") from None
    # escapes and classes are one character each, `(?` begins a group
    plain = re.sub(r"\\.|\[\^?\]?(\\.|[^]\\])*\]", "x", expression, flags=re.DOTALL)
    if re.search(r"\(\?(#|[aiLmsu-]*x)", plain):
        fix = "Write it without (?x) and (?#…)"
        raise ConfigError(f"{expression!r} has comments", where="rules", fix=fix)
    plain = plain.replace("(?", "(")
    if re.search(r"\)([*+]|\{[\d,])", plain):
        fix = "Repeat a single character or class, such as .*, or list alternatives"
        raise ConfigError(f"{expression!r} repeats a group", where="rules", fix=fix)
    if (found := _repetitions(plain)) > _REPETITIONS:
        what = f"{expression!r} has {found} repetitions in a row, more than {_REPETITIONS}"
        raise ConfigError(what, where="rules", fix="Use fewer of * + ? {} or several rules")
    return pattern


def _repetitions(plain: str) -> int:
    """How many repetitions one way through an expression has; alternatives count as their largest."""
    here, largest = [0], [0]
    for token in re.findall(r"[()|*+?]|\{[\d,]", plain):
        if token == "(":
            here.append(0)
            largest.append(0)
        elif token == ")":
            inner = max(here.pop(), largest.pop())
            here[-1] += inner
        elif token == "|":
            largest[-1] = max(here[-1], largest[-1])
            here[-1] = 0
        else:
            here[-1] += 1
    return max(sum(here), *largest)

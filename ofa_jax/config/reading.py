"""YAML as settings read it: YAML 1.2's plain values, names as they are written, bounded in size and depth."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import yaml

MAX_BYTES, MAX_LEVELS, MAX_NODES = 2**20, 20, 100_000

_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "null": ("~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": ("true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": ("[-+]?[0-9]{1,30}", list("-+0123456789")),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    "merge": ("<<", ["<"]),
}
"""Plain values that are no text, with their first characters; YAML 1.1 also has NO, 012, 1:30 and dates.

``1e-3`` is text, as in what PyYAML writes, and a number where its setting is one."""

_KNOWN = {f"{_TAG}{name}" for name in (*_PLAIN, "str", "seq", "map")}


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys instead of keeping the last."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"duplicate key {key.value!r}"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


for _name, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"(?:{_pattern})$"), _first)
_Loader.add_constructor(f"{_TAG}int", lambda loader, node: int(node.value))


def parse_yaml(text: str | bytes, names: Collection[str], path: str = "") -> Any:
    """The value of a YAML text at the settings path ``path``; values of the settings ``names`` stay text.

    Raises:
        ValueError: It is not YAML, is too large or nested too deeply, or has tags.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES // 2**20} MiB")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, names, path, 0, itertools.count())
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_LEVELS} levels") from None
    except (yaml.YAMLError, LookupError) as error:  # a KeyError where `!!bool` is neither true nor false
        raise ValueError(" ".join(str(error).split())) from None


def _check(
    node: yaml.Node, names: Collection[str], path: str, level: int, count: Iterator[int], item: bool = False
) -> None:
    """Refuse tags and a tree that is too large, also by its aliases; make names text."""
    if level > MAX_LEVELS:
        raise ValueError(f"nested deeper than {MAX_LEVELS} levels")
    if next(count) > MAX_NODES:
        raise ValueError(f"more than {MAX_NODES:,} values")
    if node.tag not in _KNOWN:
        raise ValueError(f"the tag {node.tag!r} is not known; leave it out")
    if node.tag == f"{_TAG}null" and not re.fullmatch(_PLAIN["null"][0], node.value):
        raise ValueError(f"{node.value!r} is not null")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            merged = key.tag == f"{_TAG}merge"
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"a key should be the name of a setting, not a {key.id}")
            if not merged:
                key.tag = f"{_TAG}str"
            below = path if merged else f"{path}.{key.value}".lstrip(".")
            _check(value, names, below, level + 1, count)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check(value, names, path, level + 1, count, item=True)
    elif path in names and (item or node.tag != f"{_TAG}null"):
        node.tag = f"{_TAG}str"

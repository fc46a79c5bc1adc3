"""Studies that train many adapters, and the reading of their comma-separated lists."""

from __future__ import annotations

from typing import Any

from ofa_jax.errors import ConfigError


def parse_list(text: str, kind: type[int] | type[float] | tuple[str, ...], *, where: str) -> tuple[Any, ...]:
    """Comma-separated values, such as ``"2, 4,8"``; an empty text gives ``()``.

    Args:
        text: The values.
        kind: ``int``, ``float``, or the names to choose from.
        where: The argument, for errors.

    Raises:
        ConfigError: A value is not of this kind.
    """
    found: list[Any] = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        try:
            found.append(kind[kind.index(part)] if isinstance(kind, tuple) else kind(part))
        except ValueError:
            names = {int: "an integer", float: "a number"}
            expected = f"one of {', '.join(kind)}" if isinstance(kind, tuple) else names[kind]
            fix = "Separate values by commas"
            raise ConfigError(f"{part!r} is not {expected}", where=where, fix=fix) from None
    return tuple(found)

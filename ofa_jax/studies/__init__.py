"""Studies that train many adapters, and the lists of values that vary in them."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from ofa_jax.errors import ConfigError
from ofa_jax.files import describe

T = TypeVar("T")


def _split(values: Any) -> Any:
    return [part.strip() for part in values.split(",") if part.strip()] if isinstance(values, str) else values


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values or len(set(values)) < len(values):
        raise ValueError("list at least one value, and each once")
    return values


Listed = Annotated[tuple[T, ...], BeforeValidator(_split), AfterValidator(_distinct)]
"""Values that differ, at least one; also as a comma-separated text: ``"2, 4,8"``."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Choices:
    """Base of what varies in a study; a value that a field does not take is a ConfigError."""

    @model_validator(mode="wrap")
    @classmethod
    def _one_error(cls, given: Any, validate: Any) -> Any:
        try:
            return validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(describe(first), where=str(first["loc"][0])) from None

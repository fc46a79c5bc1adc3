"""Adapters to other packages of the field; each needs an extra, and nothing else imports them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ofa_jax.errors import OfaError


class MissingPackage(OfaError, ImportError):
    """A package of an extra that is not installed."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Imports of the package ``name``, which an extra of the same name brings."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        what = f"ofa_jax.integrations.{name} needs {name}"
        raise MissingPackage(what, fix=f"Run `pip install 'ofa-jax[{name}]'`") from None

"""What all estimators share: parameters as scikit-learn has them, and the error before fitting."""

from __future__ import annotations

import inspect
from typing import Any, Self

from ofa_jax.errors import ConfigError, OfaError


class NotFittedError(OfaError, ValueError):
    """A method that needs a fitted estimator."""


class Estimator:
    """Parameters of the constructor, which only assigns them (scikit-learn's rules)."""

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters of the constructor by name."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Change parameters by name.

        Raises:
            ConfigError: There is no such parameter.
        """
        for name, value in params.items():
            if name not in self._names():
                what = f"{name!r} is no parameter of {type(self).__name__}"
                raise ConfigError(what, fix=f"They are {', '.join(self._names())}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self).__init__).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if parameters[name].default is inspect.Parameter.empty or value != parameters[name].default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

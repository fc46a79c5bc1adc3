"""What all estimators share: parameters as scikit-learn has them, and the error before fitting."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from ofa_jax.errors import CheckpointError, ConfigError, OfaError
from ofa_jax.estimators.panel import Columns, Panel, check_names
from ofa_jax.estimators.reading import read_panel


class NotFittedError(OfaError, ValueError):
    """A method that needs a fitted estimator."""


@dataclass(kw_only=True, eq=False, repr=False)
class Estimator:
    """Parameters as fields, so that the constructor only assigns them (scikit-learn's rules).

    Here are those of all estimators: what is trained over which trunk, and how.
    """

    recipe: str = "output"
    trunk: str = "nano"
    rank: int = 16
    alpha: float = 16
    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 256
    seed: int = 0
    verbose: bool = False

    @classmethod
    def _names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

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

    @classmethod
    def _of(cls, params: Mapping[str, Any], where: Path | str) -> Self:
        """An estimator with the parameters of a saved one.

        Raises:
            CheckpointError: One of them is unknown.
        """
        if unknown := sorted(params.keys() - set(cls._names())):
            what = f"has parameters that this version does not know: {', '.join(unknown)}"
            raise CheckpointError(what, where=str(where), fix="Use the version of ofa-jax that saved it")
        return cls(**params)

    def __repr__(self) -> str:
        defaults = {field.name: field.default for field in fields(self) if field.init}
        changed = [
            f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name]
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


@dataclass(kw_only=True, eq=False, repr=False)
class OfFrames(Estimator):
    """An estimator that reads frames: the step between rows, and names of columns of long frames."""

    freq: str | int | None = None
    id_col: str = "unique_id"
    time_col: str = "ds"
    target_col: str = "y"

    @property
    def _columns(self) -> Columns:
        return Columns(self.id_col, self.time_col, self.target_col)

    @property
    def _known_columns(self) -> Sequence[str]:
        """Names of covariates."""
        return ()

    def _read(self, df: Any, *made: str) -> Panel:
        """A frame as a panel; ``made`` are names of further columns of results."""
        check_names([self.id_col, self.time_col, self.target_col, *self._known_columns, *made])
        return read_panel(df, self._columns, self.freq, self._known_columns)


def is_whole(value: Any) -> bool:
    """Whether a parameter is an integer, of Python or NumPy."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)

"""The one family of errors that ofa-jax raises on purpose: what was found, where, and what to do next."""

from __future__ import annotations


class OfaError(Exception):
    """Base of every deliberate error.

    Args:
        what: What was found, in one sentence, with the offending value.
        where: The place: a file with column and row, a config path, a parameter path.
        fix: What to do next, in the imperative.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        place = f"{where}: " if where else ""
        advice = f" {fix.rstrip('.')}." if fix else ""
        super().__init__(f"{place}{what.rstrip('.')}.{advice}")


class DataError(OfaError):
    """A data file, frame or window that cannot be used as asked."""


class WeightsError(OfaError):
    """Trunk weights or adapters that are missing, unexpected, misshapen or not the ones asked for."""


class ConfigError(OfaError):
    """A setting that does not exist, does not fit, or contradicts another."""


class CheckpointError(OfaError):
    """A run folder, checkpoint or bundle that is damaged, locked, newer than this code, or from another experiment."""


class TrainError(OfaError):
    """Training that cannot go on: a loss that is no longer finite, nothing to train."""

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
        advice = f" {_sentence(fix)}" if fix else ""
        super().__init__(f"{place}{_sentence(what)}{advice}")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


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


class Interrupted(Exception):
    """A signal asked training to stop, and it did, after saving where checkpoints are kept. Not a mistake, so not an OfaError."""

    def __init__(self, signal_number: int, step: int, *, saved: bool) -> None:
        self.signal_number = signal_number
        self.step = step
        self.saved = saved
        super().__init__(f"stopped by signal {signal_number} at step {step}")

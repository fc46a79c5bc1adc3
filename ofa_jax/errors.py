"""The errors that ofa-jax raises on purpose: what was found, where, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def printable(text: object) -> str:
    """A text from outside as it may be shown in a terminal: control and formatting characters are escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def shorten(text: object, length: int = 40) -> str:
    """A text for a message, quoted, cut where it is long."""
    quoted = repr(str(text))
    return quoted if len(quoted) <= length else f"{quoted[: length - 4]}...'"


def listed(names: Sequence[str], most: int = 10, *, mark: str = "`") -> str:
    """Names for a message, between marks: the first ``most``, cut where they are long, and how many more."""
    shown = [f"{mark}{name if len(name) <= 100 else f'{name[:100]}…'}{mark}" for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


class OfaError(Exception):
    """Base of every deliberate error; its text is :func:`printable`.

    Args:
        what: What was found, in one sentence, with the offending value.
        where: A file with column and row, a configuration path, a parameter path.
        fix: What to do next, in the imperative.
        past: Settings that get past it, by name, so that other faults can be looked for.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        fix: str | None = None,
        past: Mapping[str, Any] | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        self.past = dict(past or {})
        place = f"{where}: " if where else ""
        advice = f" {_sentence(fix)}" if fix else ""
        super().__init__(printable(f"{place}{_sentence(what)}{advice}"))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


class DataError(OfaError):
    """A data file, frame or window that cannot be used."""


class TooShort(DataError):
    """Data with too few steps; ``sizes`` are settings of the task, by name, with which they can be used."""

    def __init__(
        self, what: str, *, where: str | None = None, fix: str | None = None, sizes: Mapping[str, int]
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.sizes = sizes


def sizes_text(sizes: Mapping[str, int]) -> str:
    """Sizes as settings: ``task.input_length to 42 and task.horizon to 16``."""
    return " and ".join(f"task.{name} to {value}" for name, value in sizes.items())


class WeightsError(OfaError):
    """Trunk weights or adapters that are missing, unexpected, misshapen or not finite."""


class ConfigError(OfaError):
    """A setting that does not exist, is out of range, or contradicts another."""


class CheckpointError(OfaError):
    """A run folder, checkpoint or bundle that is damaged, locked, too new, or from another experiment."""


class TrainError(OfaError):
    """Training that cannot continue: a loss that is not finite, nothing to train."""


class PeerLost(TrainError):
    """Another process of the run ended, did not come, or cannot be reached; a restart may help."""


class Interrupted(Exception):
    """Training stopped on a signal, saved where checkpoints are kept; not a mistake, so not an OfaError."""

    def __init__(self, signal_number: int, step: int, *, saved: bool) -> None:
        self.signal_number = signal_number
        self.step = step
        self.saved = saved
        super().__init__(f"stopped by signal {signal_number} at step {step}")

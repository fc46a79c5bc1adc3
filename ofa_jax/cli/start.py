"""The console script: streams that may be full or closed, and an interrupt before the commands are there."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any, TextIO


class _BestEffort:
    """Standard error that loses what it cannot write: a full disk under a log ends no training."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _stop(number: int, frame: FrameType | None) -> None:
    """End with one word; at once while modules are imported, which an exception would break in many ways."""
    with contextlib.suppress(OSError):
        os.write(2, b"Interrupted.\n")
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(130)
        frame = frame.f_back
    raise SystemExit(130)


def main() -> None:
    """Run the command line."""
    # without standard error, print would fall back to standard output
    stream: Any = sys.stderr if sys.stderr is not None else open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = _BestEffort(stream)
    caught = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, as by nohup
    if caught:
        signal.signal(signal.SIGINT, _stop)
    try:
        from ofa_jax.cli.main import main as run

        run()
    finally:
        if caught:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # everything is done

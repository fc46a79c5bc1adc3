"""A clean stop on SIGINT and SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SIGNALS = (int(signal.SIGINT), int(signal.SIGTERM))


class StopRequest:
    """The signal that asked for a stop, 0 before; training checks it between chunks and batches."""

    signal_number = 0


@contextlib.contextmanager
def stop_on_signal(announce: Callable[[str], None]) -> Iterator[StopRequest]:
    """The first SIGINT or SIGTERM inside requests a clean stop; a second one acts as usual.

    It is announced at once, by a thread: Python runs handlers only when the main thread is back from the
    computation that it waits for. Outside the main thread signals cannot be caught and act as usual.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        request.signal_number = number
        signal.signal(number, previous[number])

    with _announced(announce):
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            previous[number] = signal.SIG_DFL if handler is None else handler  # None: not set from Python
            signal.signal(number, handle)
        try:
            yield request
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _announced(announce: Callable[[str], None]) -> Iterator[None]:
    """Announce the first of the signals as soon as it arrives."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def listen() -> None:
        while number := receiver.recv(1):
            if number[0] in _SIGNALS:
                name = signal.Signals(number[0]).name
                announce(f"{name} received: stopping after the current step, batch or compilation")
                return

    listener = threading.Thread(target=listen, daemon=True)
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sender.close()
        listener.join()
        receiver.close()

"""All processes of a run meet before jax connects them: jax's own client aborts where one is missing.

Process 0 listens at the coordinator's port; the others say their number and how many they expect, and all get
the same verdict. Then the port is free for jax.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time

from ofa_jax.errors import ConfigError, PeerLost, TrainError

_HELLO = re.compile(r"ofa-jax (\d{1,9}) of (\d{1,9})\n")

_LATE = "in time"


def meet(coordinator: str, processes: int, process_id: int, patience: float) -> None:
    """Wait for all processes, the same on each.

    Args:
        coordinator: ``HOST:PORT`` of process 0.
        processes: Their number.
        process_id: The number of this one.
        patience: Seconds to wait.

    Raises:
        ConfigError: An argument is wrong, or the port is taken.
        PeerLost: A process did not come in time.
        TrainError: Two have the same number, or they expect different numbers.
    """
    host, port = _checked(coordinator, processes, process_id)
    if processes == 1:
        return
    run = _receive if process_id == 0 else _visit
    verdict = run(host, port, processes, process_id, time.monotonic() + patience)
    if verdict:
        fix = "Start every process once, each with its own process_id, all with the same other arguments"
        kind = PeerLost if verdict.endswith(_LATE) else TrainError
        raise kind(verdict, where=f"process {process_id}", fix=fix)


def _checked(coordinator: str, processes: int, process_id: int) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", host) or not re.fullmatch(r"\d{1,5}", port):
        fix = "Write HOST:PORT, such as 10.0.0.1:9123"
        raise ConfigError(f"{coordinator!r} is not of the form HOST:PORT", where="coordinator", fix=fix)
    if not 0 < int(port) < 2**16:
        raise ConfigError(f"{port} is not a port", where="coordinator", fix="Use one from 1024 to 65535")
    if not 0 <= process_id < processes:
        what = f"there is no process {process_id} of {processes}"
        raise ConfigError(what, where="process_id", fix="Number them from 0")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except OSError as error:
        what, fix = f"the host {host!r} is not known here ({error.strerror})", "Use its address"
        raise ConfigError(what, where="coordinator", fix=fix) from None
    return host.strip("[]"), int(port)


def _receive(host: str, port: int, processes: int, process_id: int, end: float) -> str:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        what = f"process 0 cannot listen at port {port} ({(error.strerror or '').partition(' (')[0]})"
        fix = "Choose another port, the same for all processes; or end the process that uses it"
        raise ConfigError(what, where="coordinator", fix=fix) from None
    verdict, guests = "", dict[int, socket.socket]()
    with server, contextlib.ExitStack() as stack:
        while not verdict and len(guests) < processes - 1:
            server.settimeout(max(end - time.monotonic(), 0.01))
            try:
                guest = stack.enter_context(server.accept()[0])
            except TimeoutError:
                missing = sorted(set(range(1, processes)) - guests.keys())
                verdict = f"process {', '.join(map(str, missing))} of {processes} did not come {_LATE}"
                break
            if hello := _HELLO.fullmatch(_line(guest, time.monotonic() + 10)):
                number, expected = map(int, hello.groups())
                if expected != processes:
                    verdict = f"process {number} expects {expected} processes, process 0 expects {processes}"
                elif number in guests or not 0 < number < processes:
                    verdict = f"two processes have the number {number}"
                guests[-1 if verdict else number] = guest
        for guest in guests.values():
            with contextlib.suppress(OSError):
                guest.sendall(f"{verdict}\n".encode())
    return verdict


def _visit(host: str, port: int, processes: int, process_id: int, end: float) -> str:
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as server:
            server.sendall(f"ofa-jax {process_id} of {processes}\n".encode())
            if verdict := _line(server, end + 10):
                return verdict.rstrip("\n")
        time.sleep(0.2)
    return f"process 0 was not found at {host}:{port} {_LATE}"


def _line(peer: socket.socket, end: float) -> str:
    """What another process says, up to a line break; empty if it ends, or takes too long."""
    said = b""
    with contextlib.suppress(OSError):
        while not said.endswith(b"\n") and len(said) < 1000:
            peer.settimeout(max(end - time.monotonic(), 0.01))
            if not (more := peer.recv(1)):
                return ""
            said += more
    return said.decode(errors="replace") if said.endswith(b"\n") else ""

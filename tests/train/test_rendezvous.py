"""Wrong starts of several processes: one clear error on each, in time, and no abort."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ofa_jax.errors import ConfigError, OfaError
from ofa_jax.train.processes import connect
from ofa_jax.train.rendezvous import meet


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def started(*numbers: int, count: int = 3, patience: float = 60, counts: tuple[int, ...] = ()) -> list[str]:
    """What each of the processes says that were started with these numbers."""
    address = f"127.0.0.1:{free_port()}"

    def start(place: int) -> str:
        try:
            meet(address, counts[place] if counts else count, numbers[place], patience)
        except OfaError as error:
            return error.what
        return ""

    with ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(start, range(len(numbers))))


def test_processes_that_are_all_there_meet_in_any_order():
    assert started(2, 0, 1) == ["", "", ""]
    assert started(0, count=1) == [""]


def test_a_stranger_at_the_port_is_ignored():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, f"127.0.0.1:{port}", 2, 0, 60)
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                time.sleep(0.01)
        with stranger:
            stranger.sendall(b"GET / HTTP/1.1\n")
            second = pool.submit(meet, f"127.0.0.1:{port}", 2, 1, 60)
            assert (first.result(), second.result()) == (None, None)


@pytest.mark.parametrize(
    ("numbers", "options", "said"),
    [
        ((0, 1, 1), {}, "two processes have the number 1"),
        ((0, 1), {"patience": 1}, "process 2 of 3 did not come in time"),
        ((0, 1), {"counts": (2, 3)}, "process 1 expects 3 processes, process 0 expects 2"),
    ],
)
def test_all_say_the_same(numbers, options, said):
    assert started(*numbers, **options) == len(numbers) * [said]


def test_without_process_0_the_others_end_in_time():
    (said,) = started(1, patience=0.5)
    assert said.startswith("process 0 was not found at 127.0.0.1:")


@pytest.mark.parametrize(
    ("coordinator", "said"),
    [
        ("localhost", "'localhost' is not of the form HOST:PORT"),
        ("127.0.0.1:abc", "is not of the form HOST:PORT"),
        ("http://x:80", "is not of the form HOST:PORT"),
        (":123", "is not of the form HOST:PORT"),
        ("127.0.0.1:99999", "99999 is not a port"),
        ("no host:1", "is not of the form HOST:PORT"),
    ],
)
def test_a_malformed_coordinator_is_refused(coordinator, said):
    with pytest.raises(ConfigError, match=f"coordinator: .*{said}"):
        connect(coordinator, 2, 0)


def test_a_number_that_no_process_has_is_refused():
    with pytest.raises(ConfigError, match="process_id: there is no process 2 of 2"):
        connect("127.0.0.1:9", 2, 2)


def test_a_port_that_is_taken_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"0 cannot listen at port \d+ \(Address already in use\)"):
            connect(address, 2, 0)

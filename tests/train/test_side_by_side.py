"""Batches side by side: the results of one after the other."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.build import build_model
from ofa_jax.errors import Interrupted
from ofa_jax.estimators import engine
from ofa_jax.runs.train import read_data
from ofa_jax.train import evaluate
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.side_by_side import MAX_IN_FLIGHT, batches_in_flight, side_by_side


def test_results_are_in_order_although_batches_run_at_the_same_time():
    later = [threading.Event() for _ in range(8)]
    begun = []

    def function(number: int) -> int:
        begun.append((number, threading.current_thread()))
        if number in (1, 3, 5):
            assert later[number + 1].wait(timeout=60)  # the next one ends first
        later[number].set()
        return number * number

    assert list(side_by_side(function, range(7), 2)) == [0, 1, 4, 9, 16, 25, 36]
    assert begun[0] == (0, threading.main_thread())  # which compiles
    assert threading.main_thread() not in [thread for _, thread in begun[1:]]


def test_batches_are_taken_when_they_begin():
    taken = []

    def batches():
        for number in range(20):
            taken.append((number, threading.current_thread()))
            yield number

    results = side_by_side(lambda number: number, batches(), 3)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    assert len(taken) == 4 + 2
    assert {thread for _, thread in taken} == {threading.main_thread()}
    assert list(results) == list(range(4, 20))


@pytest.mark.parametrize("where", ["function", "batches"])
@pytest.mark.parametrize("in_flight", [1, 3])
def test_an_error_ends_it(where, in_flight):
    begun = []

    def batches():
        for number in range(20):
            if number == 5 and where == "batches":
                raise ValueError("of the fifth")
            yield number

    def function(number: int) -> int:
        begun.append(number)
        if number == 5 and where == "function":
            raise ValueError("of the fifth")
        return number

    before = threading.active_count()
    with pytest.raises(ValueError, match="of the fifth"):
        list(side_by_side(function, batches(), in_flight))
    assert threading.active_count() == before
    assert max(begun) <= 5 + 2


def test_one_at_a_time_on_many_devices_on_accelerators_and_in_a_context_of_jax(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert batches_in_flight(9) == MAX_IN_FLIGHT
    assert batches_in_flight(9, devices=2) == batches_in_flight(2) == 1
    for context in (jax.debug_nans(True), jax.default_device(jax.devices()[0]), jax.enable_x64(True)):
        with context:
            assert batches_in_flight(9) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert batches_in_flight(9) == 1


def test_a_thread_may_outlive_the_main_one():
    code = """
import threading
from ofa_jax.train.side_by_side import side_by_side
threading.Thread(target=lambda: print(list(side_by_side(abs, [-1, -2, -3], 2)))).start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("[1, 2, 3]\n", "")


@pytest.fixture
def in_threads(monkeypatch):
    """Sets the batches in flight, and counts those that ran in another thread."""
    inside = []

    def counted(function, batches, in_flight):
        def call(batch):
            inside.append(threading.current_thread() is not threading.main_thread())
            return function(batch)

        return side_by_side(call, batches, in_flight)

    def set_to(in_flight: int) -> list[bool]:
        for module in (engine, evaluate):
            monkeypatch.setattr(module, "batches_in_flight", lambda batches, devices=1: in_flight)
            monkeypatch.setattr(module, "side_by_side", counted)
        inside.clear()
        return inside

    return set_to


@pytest.mark.slow
def test_forecasts_and_evaluations_have_the_same_bits(tiny, source, in_threads):
    model = build_model(engine.forecast_experiment("nano", 64, 8, "output", adapters={}, train={}))
    inputs = np.cumsum(np.random.default_rng(0).normal(size=(100, 64)), axis=1)
    experiment = tiny.experiment(source)
    task, network = read_data(experiment).task, build_model(experiment)
    predictor = WindowPredictor(network.predict, task, task.sums, batch_size=16)

    def results(in_flight: int) -> list[np.ndarray]:
        inside = in_threads(in_flight)
        sums = predictor(task.tables["train"], network.frozen, network.trainable)
        made = [*engine.forecast_windows(model, inputs), *sums.values()]
        assert any(inside) == (in_flight > 1)
        return made

    for one, other in zip(results(1), results(3), strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_whose_size_nobody_chose_are_evaluated_one_by_one(tiny, source, in_threads):
    task = read_data(tiny.experiment(source)).task
    inside = in_threads(3)
    many = task.tables["train"].take(np.zeros(2000, int))
    sums = WindowPredictor(lambda frozen, trainable, x, mask: x[:, -8:], task, task.sums)(many, {}, {})
    assert len(inside) == 4  # of 512 windows
    assert not any(inside)
    assert len(next(iter(sums.values()))) == 2000


@pytest.mark.parametrize("in_flight", [1, 3])
def test_an_evaluation_tells_what_is_done_and_may_be_ended(tiny, source, in_threads, in_flight):
    task, said = read_data(tiny.experiment(source)).task, []
    in_threads(in_flight)
    table = task.tables["train"].take(slice(0, 100))
    predictor = WindowPredictor(
        lambda frozen, trainable, x, mask: jnp.zeros((len(x), 8, 1)), task, task.sums, batch_size=16
    )
    predictor(table, {}, {}, between=said.append)
    assert said == [0, 16, 32, 48, 64, 80, 96]

    def stop(done: int) -> None:
        if done == 32:
            raise Interrupted(signal.SIGTERM, 0, saved=False)

    before = threading.active_count()
    with pytest.raises(Interrupted):
        predictor(table, {}, {}, between=stop)
    assert threading.active_count() == before

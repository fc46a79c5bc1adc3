"""Batches side by side: the results of one after the other."""

from __future__ import annotations

import threading

import jax
import numpy as np
import pytest

from ofa_jax.build import build_model
from ofa_jax.estimators import engine
from ofa_jax.runs.train import read_data
from ofa_jax.train import evaluate
from ofa_jax.train.evaluate import WindowPredictor
from ofa_jax.train.side_by_side import MOST, batches_at_once, side_by_side


def test_results_are_in_order_although_batches_run_at_the_same_time():
    both, begun = threading.Barrier(2, timeout=60), []

    def step(number: int) -> int:
        begun.append((number, threading.current_thread()))
        if number:
            both.wait()  # neither returns before the other has begun
        return number * number

    assert list(side_by_side(step, range(7), 2)) == [0, 1, 4, 9, 16, 25, 36]
    assert begun[0] == (0, threading.main_thread())  # which compiles
    assert threading.main_thread() not in [thread for _, thread in begun[1:]]


def test_batches_are_taken_shortly_before_they_begin():
    taken = []

    def batches():
        for number in range(20):
            taken.append((number, threading.current_thread()))
            yield number

    results = side_by_side(lambda number: number, batches(), 3)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    assert len(taken) <= 4 + 3
    assert {thread for _, thread in taken} == {threading.main_thread()}
    assert list(results) == list(range(4, 20))


@pytest.mark.parametrize("where", ["step", "batches"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_an_error_ends_it(where, at_once):
    def batches():
        for number in range(9):
            if number == 5 and where == "batches":
                raise ValueError("of the fifth")
            yield number

    def step(number: int) -> int:
        if number == 5 and where == "step":
            raise ValueError("of the fifth")
        return number

    before = threading.active_count()
    with pytest.raises(ValueError, match="of the fifth"):
        list(side_by_side(step, batches(), at_once))
    assert threading.active_count() == before


def test_one_at_a_time_on_many_devices_and_on_accelerators(monkeypatch):
    assert 1 <= batches_at_once() <= MOST
    assert batches_at_once(devices=2) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert batches_at_once() == 1


def test_forecasts_and_evaluations_have_the_same_bits(tiny, source, monkeypatch):
    model = build_model(engine.forecast_experiment("nano", 64, 8, "output", adapters={}, train={}))
    inputs = np.cumsum(np.random.default_rng(0).normal(size=(100, 64)), axis=1)
    experiment = tiny.experiment(source)
    task, network = read_data(experiment).task, build_model(experiment)
    predictor = WindowPredictor(network.predict, task, task.sums, batch_size=16)

    def results(at_once: int) -> list[np.ndarray]:
        for module in (engine, evaluate):
            monkeypatch.setattr(module, "batches_at_once", lambda devices=1: at_once)
        sums = predictor(task.tables["train"], network.frozen, network.trainable)
        return [*engine.forecast_windows(model, inputs), *sums.values()]

    for one, other in zip(results(1), results(3), strict=True):
        np.testing.assert_array_equal(one, other)

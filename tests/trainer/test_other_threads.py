"""Other threads than that of `fit` use the trainer: data that is read ahead, or a program that looks at a run."""

from __future__ import annotations

import itertools
import sys
import threading

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from boring_modules import assert_same_bits, host

import elegy as eg
from elegy.trainer import one_fit

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
STEPS = 150
USES = {
    "state": lambda trainer: jax.device_get(trainer.state.params),
    "predict": lambda trainer: trainer.predict(X),
    "predict_iter": lambda trainer: list(trainer.predict_iter(X, batch_size=4)),
    "predict_on_batch": lambda trainer: trainer.predict_on_batch(X),
    "test_on_batch": lambda trainer: dict(trainer.test_on_batch(X, Y)),
    "evaluate": lambda trainer: trainer.evaluate(X, Y, verbose=0),
    "weights": lambda trainer: trainer.predict(X, weights=lambda state: state.params),
}


def make():
    trainer = eg.Trainer(nn.Dense(2), eg.losses.CrossEntropy(), eg.metrics.Accuracy(), optax.adam(0.01))
    trainer.init_on_batch(X, Y)
    return trainer


@pytest.fixture(scope="module")
def alone():
    trainer = make()
    trainer.fit([(X, Y)] * STEPS, verbose=0)
    return trainer


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_data_that_is_read_ahead_uses_the_trainer(use, alone):
    trainer = make()

    def batches():
        for _ in range(STEPS):
            use(trainer)
            yield X, Y

    trainer.fit(batches, verbose=0)
    assert_same_bits(host(trainer.state), host(alone.state))


def test_a_program_looks_at_a_run_in_another_thread(alone):
    trainer, over, seen = make(), threading.Event(), []

    def look():
        while not over.is_set():
            seen.append(trainer.evaluate(X, Y, verbose=0)["loss"])
            seen.append(float(np.sum(trainer.state.params["bias"])))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(5):
            trainer.fit([(X, Y)] * (STEPS // 5), steps_per_execution=1, verbose=0)
    finally:
        over.set()
        thread.join()
    assert np.isfinite(seen).all()
    assert_same_bits(host(trainer.state.params), host(alone.state.params))


def test_threads_evaluate_and_predict_for_the_first_time_at_once():
    trainer, reference = make(), make()
    expected = reference.evaluate(X, Y, batch_size=3, verbose=0), reference.predict(X, batch_size=3)
    begin, found = threading.Barrier(4), []

    def use():
        begin.wait()
        found.append((trainer.evaluate(X, Y, batch_size=3, verbose=0), trainer.predict(X, batch_size=3)))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [values for values, _ in found] == 4 * [expected[0]]
    for _, outputs in found:
        np.testing.assert_array_equal(outputs, expected[1])


@pytest.mark.parametrize("method", ["save", "save_pickle"])
def test_a_state_is_not_saved_with_the_counters_of_another_step(tmp_path, method):
    trainer = make()

    def batches():
        yield X, Y
        getattr(trainer, method)(tmp_path / "saved")

    with pytest.raises(
        RuntimeError, match=f"^{method} was called while fit of the same trainer runs in another thread"
    ):
        trainer.fit(batches, verbose=0)
    assert not list(tmp_path.iterdir())
    trainer.fit(batches, prefetch=0, verbose=0)
    assert list(tmp_path.iterdir())


def test_an_interrupt_as_fit_begins_leaves_a_trainer_that_can_be_fitted():
    """It is raised before each line of the block's beginning."""
    code = one_fit.one_fit.__wrapped__.__code__

    def interrupt_at(line):
        def trace(frame, event, argument):
            nonlocal line
            if event == "line":
                line -= 1
                if not line:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        return lambda frame, event, argument: trace if frame.f_code is code else None

    before = sys.gettrace()
    for line in itertools.count(1):
        trainer = eg.Trainer(nn.Dense(2))
        sys.settrace(interrupt_at(line))
        try:
            with one_fit.one_fit(trainer._session):
                sys.settrace(before)
                break
        except KeyboardInterrupt:
            one_fit.not_in_fit(trainer._session, "fit")
        finally:
            sys.settrace(before)
    assert line > 3

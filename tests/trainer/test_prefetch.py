"""`fit(prefetch=n)`: a thread reads batches ahead, and the run is the same as without it."""

import itertools
import threading

import numpy as np
import pytest
from boring_modules import High, assert_same_bits, host, regression, trainer_of

import elegy as eg
from elegy.callbacks import LambdaCallback, ModelCheckpoint
from elegy.checkpoint import find_checkpoints

X, Y = regression(40)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8)]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    left = [one for one in threading.enumerate() if one.name == "elegy-read-ahead"]
    for thread in left:  # on a slow machine, a run does not wait for it
        thread.join(600)
    assert not any(thread.is_alive() for thread in left)


class Shuffled:
    """A loader that knows its position, and whose order is another one in each pass."""

    def __init__(self):
        self.epoch, self.taken, self.resumes = -1, 0, False

    def __iter__(self):
        if not self.resumes:
            self.epoch, self.taken = self.epoch + 1, 0
        self.resumes = False
        for i in np.random.default_rng(self.epoch).permutation(5)[self.taken :]:
            self.taken += 1
            yield BATCHES[i]

    def state_dict(self):
        return {"epoch": self.epoch, "taken": self.taken}

    def load_state_dict(self, state):
        self.epoch, self.taken, self.resumes = state["epoch"], state["taken"], True


def fitted(prefetch, callbacks=(), data=None, **options):
    trainer = trainer_of(High)
    options = {"epochs": 3, "validation_data": lambda: iter(BATCHES[:2]), **options}
    trainer.fit(Shuffled() if data is None else data, callbacks=callbacks, prefetch=prefetch, verbose=0, **options)
    return trainer


@pytest.mark.parametrize("options", [{}, {"steps_per_epoch": 3, "max_steps": 7, "steps_per_execution": 2}])
def test_a_run_is_the_same_to_the_bit(options):
    one, other = fitted(2, **options), fitted(0, **options)
    assert one.history.history == other.history.history
    assert_same_bits(host(one.state), host(other.state))


def test_checkpoints_go_on_with_the_batch_after_their_last_step(tmp_path):
    saves = ModelCheckpoint(tmp_path, every=eg.Every(steps=1), save_top_k=-1)
    whole = fitted(2, [saves], steps_per_epoch=3)
    for path in find_checkpoints(tmp_path)[1:-1:2]:
        resumed = fitted(2, steps_per_epoch=3, resume=path)
        assert_same_bits(host(resumed.state), host(whole.state))


def test_batches_are_read_while_a_step_is_not_done():
    read = [threading.Event() for _ in range(9)]

    def data():
        for event, batch in zip(read, itertools.cycle(BATCHES), strict=False):
            event.set()
            yield batch

    def wait(event):
        if event.batch < 6:
            assert read[event.batch + 2].wait(600)
        assert event.batch + 3 >= 9 or not read[event.batch + 3].is_set()

    assert fitted(2, [LambdaCallback(on_train_batch_end=wait)], data, epochs=1).step == 9


def test_an_iterator_goes_on_in_the_next_fit_after_a_run_that_was_stopped():
    def stop(event):
        event.trainer.stop_training = event.trainer.step == 2

    trainer = trainer_of(High)
    data = (batch for batch in BATCHES)
    trainer.fit(data, callbacks=[LambdaCallback(on_train_batch_end=stop)], verbose=0)
    assert trainer.step == 2
    trainer.fit(data, verbose=0)
    reference = trainer_of(High)
    reference.fit(BATCHES[:2], verbose=0)
    reference.fit(BATCHES[2:], verbose=0)
    assert_same_bits(host(trainer.state), host(reference.state))


def test_a_thread_ends_with_a_run_that_fails():
    def fail(event):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fitted(2, [LambdaCallback(on_train_batch_end=fail)], lambda: itertools.cycle(BATCHES))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_the_steps_before_a_batch_that_cannot_be_read_are_done_also_if_they_are_fused(prefetch):
    def data():
        yield from BATCHES[:3]
        raise OSError("the disk is gone")

    trainer, whole = trainer_of(High), trainer_of(High)
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.fit(data(), steps_per_execution=2, prefetch=prefetch, verbose=0)
    whole.fit(BATCHES[:3], steps_per_execution=2, verbose=0)
    assert trainer.step == 3
    assert_same_bits(host(trainer.state), host(whole.state))


def test_evaluate_and_predict_read_ahead():
    trainer, threads = fitted(0), set()

    def data():
        for batch in BATCHES:
            threads.add(threading.current_thread().name)
            yield batch

    def results(prefetch):
        return trainer.evaluate(data, verbose=0, prefetch=prefetch), trainer.predict(data, prefetch=prefetch)

    (logs, outputs), (expected_logs, expected) = results(2), results(0)
    assert logs == expected_logs
    np.testing.assert_array_equal(outputs, expected)
    assert threads == {"elegy-read-ahead", threading.current_thread().name}
    for count in (0, 1, 5):  # outputs that are not wanted leave no thread
        list(itertools.islice(trainer.predict_iter(data), count))


@pytest.mark.parametrize("prefetch", [-1, 1.5, "2", None])
def test_a_number_of_batches(prefetch):
    trainer = trainer_of(High)
    for call in (trainer.fit, trainer.evaluate, trainer.predict, trainer.predict_iter):
        with pytest.raises(ValueError, match="prefetch must be a number of batches to read ahead, 0 for none"):
            call(X, Y, prefetch=prefetch) if call in (trainer.fit, trainer.evaluate) else call(X, prefetch=prefetch)

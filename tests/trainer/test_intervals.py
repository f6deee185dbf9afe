"""An interval bounds executions: states are read and runs stop at their own step, whatever is fused."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import optax
import pytest
from boring_modules import High, assert_same_bits, host, make_params, regression, squares

import elegy as eg
from elegy.callbacks import Callback, ModelCheckpoint, PeriodicCallback, TerminateOnNaN
from elegy.engine.executor import Executor
from elegy.trainer import clock

X, Y = regression(44)
STEPS = 11  # of an epoch, with four examples each


class Reads(PeriodicCallback):
    """Keeps the parameters of the steps at which its interval ends."""

    batch_hooks_read = "state"

    def __init__(self, every):
        super().__init__(every)
        self.params = {}

    def on_train_batch_end(self, event):
        if self.due(event):
            self.params[event.step] = host(event.trainer.state.params)


class Stops(PeriodicCallback):
    """Stops when its interval has ended a number of times."""

    batch_hooks_read = "logs"

    def __init__(self, every, times):
        super().__init__(every)
        self.times = times

    def on_train_batch_end(self, event):
        self.times -= self.due(event)
        event.trainer.stop_training = self.times == 0


class Hears(Callback):
    """Hears every step, of which several may be in one execution."""

    batch_hooks_read = "logs"

    def __init__(self):
        self.current = []

    def on_train_batch_end(self, event):
        self.current.append(event.is_current)


def trainer_of(**kwargs):
    return eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1), **kwargs)


def fit(*callbacks, fuse="auto", epochs=2, trainer=None, data=(X, Y), **kwargs):
    trainer = trainer or trainer_of()
    if isinstance(data, tuple):
        kwargs = {"batch_size": 4, "shuffle": False, **kwargs}
    else:
        data = (data,)
    trainer.fit(*data, epochs=epochs, callbacks=callbacks, verbose=0, steps_per_execution=fuse, **kwargs)
    return trainer


@pytest.fixture
def executions(monkeypatch):
    """The numbers of steps of all executions that train."""
    counts, run = [], Executor.run

    def counted(self, phase, buffer, chunk, epoch):
        counts.append(chunk.count)
        return run(self, phase, buffer, chunk, epoch)

    monkeypatch.setattr(Executor, "run", counted)
    return counts


@functools.cache
def by_hand():
    """The parameters after each step of a bare loop over two epochs."""
    params, optimizer = make_params(trainer_of_key()), optax.adam(0.1)
    state, seen = optimizer.init(params), []
    for step in range(2 * STEPS):
        rows = slice(4 * (step % STEPS), 4 * (step % STEPS) + 4)
        grads = jax.grad(lambda p, rows=rows: squares(p, X[rows], Y[rows]).mean())(params)
        updates, state = optimizer.update(grads, state)
        params = optax.apply_updates(params, updates)
        seen.append(host(params))
    return seen


def trainer_of_key():
    """The key from which a trainer makes its first parameters."""
    keys = []

    class Spy(High):
        def init(self, key, inputs):
            keys.append(key)
            return super().init(key, inputs)

    with jax.disable_jit():
        eg.Trainer(Spy(), eg.losses.MeanSquaredError(), strategy="eager").init_on_batch(X, Y)
    return keys[0]


INTERVALS = [
    (eg.Every(steps=1), range(1, 23)),
    (eg.Every(steps=5), [5, 10, 15, 20]),
    (eg.Every(steps=11), [11, 22]),
    (eg.Every(steps=10**6), []),
    (eg.Every(examples=10), [3, 5, 8, 10, 13, 15, 18, 20]),
]


@pytest.mark.parametrize("fuse", ["auto", 1, 4, 64])
@pytest.mark.parametrize(("every", "steps"), INTERVALS)
@pytest.mark.some(8)
def test_the_state_that_is_read_is_that_of_the_step(every, steps, fuse):
    reads = Reads(every)
    fit(reads, Hears(), fuse=fuse)
    assert list(reads.params) == list(steps)
    for step, params in reads.params.items():
        for got, expected in zip(params, by_hand()[step - 1], strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fuse", ["auto", 8])
def test_a_long_interval_does_not_turn_fusing_off(executions, fuse, tmp_path):
    fit(fuse=fuse)
    alone = executions.copy()
    executions.clear()
    fit(Reads(eg.Every(steps=10**6)), ModelCheckpoint(tmp_path, every=eg.Every(seconds=10**6)), fuse=fuse)
    assert executions == alone
    assert max(alone) > 1


def test_executions_end_at_the_interval(executions):
    fit(Reads(eg.Every(steps=7)), epochs=3)
    assert executions == [7, 4, 3, 7, 1, 6, 5]
    executions.clear()
    fit(Reads(eg.Every(steps=7)), Stops(eg.Every(steps=5), 99), fuse=64)
    assert executions == [5, 2, 3, 1, 3, 1, 5, 1, 1]


def test_logs_alone_bound_nothing(executions):
    class Logs(Stops):
        only_logs = True

    fit(Logs(eg.Every(steps=2), 99), Hears(), fuse=4)
    assert executions == [4, 4, 3] * 2


def test_every_chunking_gives_the_same_bits():
    plain = fit(fuse=64)
    for every in (2, 3, 7, 10**6):
        bounded = fit(Reads(eg.Every(steps=every)), fuse=64)
        assert_same_bits(host(bounded.state), host(plain.state))
        assert bounded.history.history == plain.history.history


def batches():
    return [(X[k : k + 4], Y[k : k + 4]) for k in range(0, 44, 4)]


@pytest.mark.parametrize("data", [(X, Y), batches()], ids=["arrays", "iterable"])
@pytest.mark.parametrize("fuse", ["auto", 1, 64])
@pytest.mark.parametrize(
    ("every", "times", "step"),
    [
        (eg.Every(steps=1), 1, 1),
        (eg.Every(steps=1), 3, 3),
        (eg.Every(steps=5), 3, 15),
        (eg.Every(examples=10), 2, 5),
    ],
)
@pytest.mark.some(8)
def test_a_stop_takes_effect_at_its_own_step(every, times, step, fuse, data):
    stopped = fit(Stops(every, times), fuse=fuse, data=data)
    assert stopped.step == step
    for got, expected in zip(host(stopped.state.params), by_hand()[step - 1], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fuse", ["auto", 1, 8, 64])
@pytest.mark.parametrize(("options", "stops_at"), [([1], 3), ([2], 4), ([50], 11), ([], 11)])
def test_nan_is_named_at_its_own_step(fuse, options, stops_at):
    y = Y.copy()
    y[10] = np.nan  # in the third batch
    when = "at step 3" if stops_at == 3 else "since step 3"
    with pytest.warns(RuntimeWarning, match=rf"'loss' is nan {when} of epoch 1.*nonfinite='raise'.*strategy='eager'"):
        trainer = fit(TerminateOnNaN(*(eg.Every(steps=k) for k in options)), fuse=fuse, data=(X, y))
    assert trainer.step == stops_at


@pytest.mark.parametrize("every", [eg.Every(epochs=1), eg.Every(seconds=10**6), eg.Every(examples=10**6)])
def test_nan_is_named_in_a_later_epoch_and_with_every_interval(every):
    class Spoil(PeriodicCallback):
        def on_train_batch_end(self, event):
            if event.step == 14:
                event.trainer.state = event.trainer.state.replace(
                    params=jax.tree.map(lambda leaf: leaf * np.nan, event.trainer.state.params)
                )

    with pytest.warns(RuntimeWarning, match="'loss' is nan since step 15 of epoch 2"):
        trainer = fit(Spoil(eg.Every(steps=7)), TerminateOnNaN(every), epochs=5)
    assert trainer.step == 22


@pytest.mark.parametrize("fuse", ["auto", 64])
@pytest.mark.parametrize("steps", [1, 3, 12])
def test_max_steps_ends_at_its_own_step(executions, steps, fuse):
    assert fit(max_steps=steps, fuse=fuse).step == sum(executions) == steps


def test_a_time_limit_ends_at_its_own_step(executions, monkeypatch):
    assert fit(max_time=10**6, fuse=64).step == sum(executions) == 22
    assert executions == [1, 2, 4, 4, 8, 3]
    executions.clear()
    now = itertools.count().__next__  # a second passes whenever somebody looks
    monkeypatch.setattr(clock.time, "monotonic", lambda: float(now()))
    trainer = fit(max_time=12.0, fuse=64)
    assert set(executions) == {1}
    assert trainer.step == len(executions) < 6


@pytest.mark.parametrize("fuse", ["auto", 64])
def test_a_run_resumes_at_an_interval_within_an_execution(tmp_path, fuse):
    fit(ModelCheckpoint(tmp_path, save_top_k=-1, every=eg.Every(steps=4)), fuse=fuse)
    whole, resumed = fit(fuse=fuse, epochs=4), trainer_of()
    fit(trainer=resumed, fuse=fuse, epochs=4, resume=tmp_path / "step_00000016")
    assert_same_bits(host(resumed.state), host(whole.state))
    assert resumed.history.history == whole.history.history


def test_an_event_says_whether_the_state_is_its_own():
    hears = Hears()
    fit(hears, fuse=4, epochs=1)
    assert hears.current == [False, False, False, True] * 2 + [False, False, True]


def test_a_hook_of_every_step_that_reads_the_state_turns_fusing_off(executions, caplog):
    class Undeclared(Hears):
        batch_hooks_read = None

    with caplog.at_level("INFO", "elegy"):
        fit(Undeclared())
    assert set(executions) == {1}
    assert "because the batch hooks of Undeclared may read the state, or stop the run, after each step" in caplog.text

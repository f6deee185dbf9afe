"""Runs that end early: by a signal, an exception, or a crash after any save. None of them loses a step."""

from __future__ import annotations

import os
import shutil
import signal
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import High, regression

import elegy as eg
from elegy.callbacks import Callback, ModelCheckpoint
from elegy.checkpoint import checkpoint_step, find_checkpoints, is_intact, store
from elegy.errors import CheckpointError, NonFiniteError

SIZE, BATCH, EPOCHS, STEPS = 22, 4, 3, 6


class Noisy(High):
    """Draws random numbers, so that a lost key would show."""

    def apply(self, key, inputs, training):
        if training:
            inputs = inputs * jax.random.bernoulli(key, 0.8, inputs.shape)
        return super().apply(key, inputs, training)


def make(**kwargs):
    return eg.Trainer(Noisy(), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.05), seed=3, **kwargs)


def fit(trainer, data=None, **kwargs):
    x, y = regression(SIZE)
    options = {"epochs": EPOCHS, "verbose": 0, "validation_data": regression(9, seed=5), **kwargs}
    if data is None:
        return trainer.fit(x, y, batch_size=BATCH, **options)
    return trainer.fit(data, **options)


def state(trainer):
    def raw(leaf):
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return {jax.tree_util.keystr(p): raw(v) for p, v in jax.tree_util.tree_leaves_with_path(trainer.state)}


def assert_same_run(one, other):
    assert one.history.history == other.history.history
    assert (one.step, one.epoch) == (other.step, other.epoch)
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path], err_msg=path)


class At(Callback):
    """Does something after a step."""

    batch_hooks_read = "logs"

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_end(self, event):
        if event.step == self.step:
            self.action()


def send(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "step", "fuse"),
    [
        (signal.SIGINT, 1, 1),
        (signal.SIGINT, STEPS, 1),
        (signal.SIGTERM, STEPS, 2),
        (signal.SIGTERM, STEPS + 2, 2),
        (signal.SIGTERM, EPOCHS * STEPS, 1),
    ],
)
@pytest.mark.some(3)
def test_a_signal_saves_where_it_stops_the_run(tmp_path, capsys, number, step, fuse):
    whole, stopped, resumed = make(), make(), make()
    every = eg.Every(epochs=1)
    fit(whole, callbacks=[ModelCheckpoint(tmp_path / "a", every=every)], steps_per_execution=fuse)
    fit(
        stopped,
        callbacks=[At(step, send(number)), ModelCheckpoint(tmp_path / "b", every=every)],
        steps_per_execution=fuse,
    )
    assert ("Terminated" if number == signal.SIGTERM else "Interrupted") in capsys.readouterr().err
    assert stopped.interrupted == number
    assert whole.interrupted is None
    assert step <= stopped.step <= step + 1
    assert find_checkpoints(tmp_path / "b")[-1].name == f"step_{stopped.step:08d}"
    fit(resumed, callbacks=[ModelCheckpoint(tmp_path / "b", every=every)], steps_per_execution=fuse, resume="auto")
    assert_same_run(resumed, whole)


def test_a_second_sigterm_is_patient_and_a_second_ctrl_c_is_not(tmp_path):
    def twice(first, second):
        def act():
            send(first)()
            send(second)()

        return act

    trainer = make()
    fit(trainer, callbacks=[At(2, twice(signal.SIGTERM, signal.SIGTERM))], steps_per_execution=1)
    assert trainer.step == 2
    for first in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt):
            fit(make(), callbacks=[At(2, twice(first, signal.SIGINT))])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(("every", "async_save"), [(3, True), (5, False), (6, True)])
def test_a_run_resumes_from_each_of_its_checkpoints(tmp_path, every, async_save):
    whole = make()
    checkpoint = ModelCheckpoint(tmp_path / "a", save_top_k=-1, every=eg.Every(steps=every), async_save=async_save)
    fit(whole, callbacks=[checkpoint])
    found = find_checkpoints(tmp_path / "a")
    end = EPOCHS * STEPS
    assert [path.name for path in found] == [f"step_{s:08d}" for s in sorted({*range(every, end, every), end})]
    for path in found:
        resumed = make()
        fit(resumed, resume=path)  # with the steps of an execution that the checkpoint names
        assert_same_run(resumed, whole)


@pytest.mark.parametrize("limit", [7, STEPS, 2 * STEPS])
def test_a_run_with_a_last_step_resumes_from_it(tmp_path, limit):
    whole, resumed = make(), make()
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1, every=eg.Every(steps=1))
    fit(whole, callbacks=[checkpoint], max_steps=limit)
    at_epoch_end = limit % STEPS == 0
    fit(resumed, resume=tmp_path / f"step_{limit - (not at_epoch_end):08d}", max_steps=limit)
    assert_same_run(resumed, whole)


class Stateful:
    """A loader with a state of its own: every pass has another order, and a position."""

    def __init__(self, size=SIZE):
        self.data = regression(size)
        self.passes, self.position, self.resumes = 0, 0, False

    def __iter__(self):
        if not self.resumes:
            self.passes, self.position = self.passes + 1, 0
        self.resumes = False
        return self._rest()

    def _rest(self):
        order = np.random.default_rng(self.passes).permutation(len(self.data[0]))
        while self.position * BATCH < len(order):
            rows = order[self.position * BATCH :][:BATCH]
            self.position += 1
            yield tuple(part[rows] for part in self.data)

    def state_dict(self):
        return {"passes": self.passes, "position": self.position}

    def load_state_dict(self, saved):
        self.__dict__.update(saved, resumes=True)


class Endless:
    """An iterator that can be put in its place, in the manner of Grain."""

    def __init__(self):
        self.data, self.i = regression(SIZE), 0

    def __iter__(self):
        return self

    def __next__(self):
        self.i += 1
        rows = np.random.default_rng(self.i).integers(0, SIZE, BATCH)
        return tuple(part[rows] for part in self.data)

    def get_state(self):
        return str(self.i).encode()

    def set_state(self, saved):
        self.i = int(saved)


def batches():
    x, y = regression(SIZE)
    return [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, SIZE, BATCH)]


DATA = {
    "list": (batches, None),
    "function": (lambda: lambda: iter(batches()), None),
    "stateful": (Stateful, None),
    "stateful, cut": (Stateful, 4),
    "endless": (Endless, STEPS),
    "generator": (lambda: (batch for _ in range(10) for batch in batches()), STEPS),
}


@pytest.mark.filterwarnings("ignore:.*is not known: ")
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.some(3)
def test_iterables_resume_at_every_position(tmp_path, kind):
    data, limit = DATA[kind]
    whole = make()
    fit(
        whole,
        data(),
        steps_per_epoch=limit,
        callbacks=[ModelCheckpoint(tmp_path, None, every=eg.Every(steps=1), save_top_k=-1)],
    )
    found = find_checkpoints(tmp_path)
    length = limit or STEPS
    assert len(found) == EPOCHS * length
    for path in (found[1], found[length - 1], found[length]):
        resumed = make()
        fit(resumed, data(), steps_per_epoch=limit, resume=path)
        assert_same_run(resumed, whole)


class Broken(Callback):
    def on_train_batch_end(self, event):
        if event.step == 8:
            raise RuntimeError("broken")


def endless():
    return [batch for _ in range(EPOCHS) for batch in batches()]


def ending():
    yield from endless()[:8]
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("data", "callbacks", "error"),
    [(lambda: iter(endless()), [Broken], RuntimeError), (ending, [], RuntimeError)],
    ids=["callback", "data"],
)
def test_a_failed_run_is_saved_on_request(tmp_path, data, callbacks, error):
    whole, resumed = make(), make()
    fit(whole, iter(endless()), steps_per_epoch=STEPS)
    for wanted, steps in ((False, [6]), (True, [8])):
        checkpoint = ModelCheckpoint(tmp_path / str(wanted), save_on_exception=wanted)
        with pytest.raises(error, match="broken"):
            fit(make(), data(), steps_per_epoch=STEPS, callbacks=[checkpoint, *(cls() for cls in callbacks)])
        found = find_checkpoints(checkpoint.directory)
        assert all(map(is_intact, found))
        assert [checkpoint_step(path) for path in found] == steps
    with pytest.warns(UserWarning, match="is not known: "):
        fit(resumed, iter(endless()), steps_per_epoch=STEPS, resume=tmp_path / "True")
    assert_same_run(resumed, whole)


def test_the_emergency_checkpoint_of_a_bad_step_is_finite(tmp_path):
    data = endless()
    data[8] = (np.full_like(data[8][0], np.nan), data[8][1])
    checkpoint = ModelCheckpoint(tmp_path, save_on_exception=True)
    with pytest.raises(NonFiniteError, match="step 9"):
        fit(make(nonfinite="raise"), iter(data), steps_per_epoch=STEPS, callbacks=[checkpoint])
    saved, _ = store.restore(tmp_path)
    assert all(np.isfinite(value).all() for path, value in saved.items() if path.startswith("params"))


def test_a_save_that_fails_in_the_background_is_raised_at_the_end(tmp_path, monkeypatch):
    write = store.write

    def full(path, content):
        if "step_00000018" in str(path):
            raise CheckpointError("no space left")
        write(path, content)

    monkeypatch.setattr(store, "write", full)
    checkpoint = ModelCheckpoint(tmp_path)
    trainer = make()
    with pytest.raises(CheckpointError, match=r"no space left"):
        fit(trainer, callbacks=[checkpoint])
    assert trainer.epoch == EPOCHS
    assert checkpoint.last_path == tmp_path / "step_00000012"
    assert is_intact(checkpoint.last_path)


def test_a_save_that_fails_in_the_background_ends_the_run_at_the_next(tmp_path, monkeypatch):
    def full(path, content):
        raise CheckpointError("no space left")

    monkeypatch.setattr(store, "write", full)
    trainer = make()
    with pytest.raises(CheckpointError, match=r"no space left"):
        fit(trainer, callbacks=[ModelCheckpoint(tmp_path)])
    assert trainer.epoch == 2


def test_an_emergency_that_cannot_be_saved_hides_nothing(tmp_path, monkeypatch):
    def full(path, content):
        raise CheckpointError("no space left")

    monkeypatch.setattr(store, "write", full)
    callbacks = [ModelCheckpoint(tmp_path, every=eg.Every(epochs=9), save_on_exception=True), Broken()]
    with (
        pytest.warns(UserWarning, match="could not be saved where it stopped: no space left"),
        pytest.raises(RuntimeError, match=r"broken"),
    ):
        fit(make(), callbacks=callbacks)


def test_a_save_deletes_nothing_before_it_is_complete(tmp_path, monkeypatch):
    write, before = store.write, []

    def watched(path, content):
        before.append(sorted(p.name for p in find_checkpoints(tmp_path)))
        write(path, content)

    monkeypatch.setattr(store, "write", watched)
    fit(make(), callbacks=[ModelCheckpoint(tmp_path)])
    assert before == [[], ["step_00000006"], ["step_00000012"]]
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step_00000018"]


def test_what_a_killed_save_left_is_removed(tmp_path):
    (tmp_path / "step_00000003.tmp-1f").mkdir(parents=True)
    fit(make(), callbacks=[ModelCheckpoint(tmp_path)])
    assert os.listdir(tmp_path) == ["step_00000018"]


def test_auto_begins_anew_where_there_is_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = make()
        fit(trainer, callbacks=[ModelCheckpoint(tmp_path / "new")], resume="auto")
    assert trainer.epoch == EPOCHS


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path):
    whole, resumed = make(), make()
    fit(whole, callbacks=[ModelCheckpoint(tmp_path, save_top_k=-1)])
    shutil.rmtree(tmp_path / "step_00000018" / "arrays")
    with pytest.warns(UserWarning, match="skipped damaged checkpoints, using .*step_00000012"):
        fit(resumed, callbacks=[ModelCheckpoint(tmp_path, save_top_k=-1)], resume="auto")
    assert_same_run(resumed, whole)

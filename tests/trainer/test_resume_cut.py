"""Runs that are cut at awkward moments and go on: nothing is lost, nothing is seen twice."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import High, Managed, assert_same_bits, host, regression, trainer_of

import elegy as eg
from elegy.callbacks import LambdaCallback, ModelCheckpoint
from elegy.errors import CheckpointError

X, Y = regression(40)


@pytest.mark.parametrize("cut", range(1, 9))
@pytest.mark.some(3)
def test_with_steps_per_epoch_at_every_step(tmp_path, cut):
    def fit(trainer, **kwargs):
        trainer.fit(X, Y, batch_size=5, steps_per_epoch=4, epochs=2, verbose=0, **kwargs)
        return trainer

    whole = fit(trainer_of(High), callbacks=[ModelCheckpoint(tmp_path, every=eg.Every(steps=1), save_top_k=-1)])
    resumed = fit(trainer_of(High), resume=tmp_path / f"step_{cut:08d}")
    assert resumed.history.history == whole.history.history
    assert_same_bits(host(resumed.state), host(whole.state))


class Noted(eg.ElegyModule):
    """Notes which examples it has seen, by their first number."""

    def init(self, key, inputs):
        return self.replace(params={"w": jnp.zeros(1)})

    def apply(self, key, inputs, training):
        if training:
            jax.debug.callback(lambda rows: SEEN.extend(np.asarray(rows).ravel().tolist()), inputs)
        return inputs @ self.params["w"], self


SEEN: list[float] = []


@pytest.mark.parametrize("sizes", [(20, 40, 40), (40, 20, 20), (40, 10, 50), (25, 40, 5)])
def test_with_another_batch_size_every_example_is_seen_once(tmp_path, sizes):
    x = np.arange(200, dtype=np.float32)[:, None]
    SEEN.clear()
    for size, steps in zip(sizes, (3, 5, None), strict=True):
        trainer = eg.Trainer(Noted(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(1e-9))
        trainer.fit(
            x,
            x[:, 0],
            batch_size=size,
            max_steps=steps,
            steps_per_execution=1,
            resume="auto",
            callbacks=[ModelCheckpoint(tmp_path)],
            verbose=0,
        )
    jax.effects_barrier()
    assert sorted(SEEN) == list(range(200))
    assert trainer.epoch == 1


def test_a_state_that_is_ahead_of_the_counters_is_not_saved(tmp_path):
    save = LambdaCallback(on_train_batch_end=lambda event: event.trainer.save(tmp_path / str(event.step)))
    with pytest.raises(CheckpointError, match=r"^the state has seen 3 steps more than step 1.*batch_hooks_read"):
        trainer_of(High).fit(X, Y, batch_size=5, steps_per_execution=4, callbacks=[save], verbose=0)
    last = LambdaCallback(on_train_batch_end=lambda e: e.step % 4 or e.trainer.save(tmp_path / str(e.step)))
    whole, resumed = trainer_of(High), trainer_of(High)
    whole.fit(X, Y, batch_size=5, epochs=2, steps_per_execution=4, callbacks=[last], verbose=0)
    resumed.fit(X, Y, batch_size=5, epochs=2, steps_per_execution=4, resume=tmp_path / "4", verbose=0)
    assert resumed.history.history == whole.history.history


def test_the_end_of_a_run_has_the_logs_of_the_last_step_of_the_state():
    def stop(event):
        if event.step == 2:
            raise RuntimeError("enough")

    logs, ends = {}, []
    note = LambdaCallback(on_train_batch_end=lambda event: logs.update({event.step: dict(event.logs)}))
    trainer_of(High).fit(X, Y, batch_size=5, steps_per_execution=4, callbacks=[note], verbose=0)
    end = LambdaCallback(on_train_batch_end=stop, on_train_end=lambda event: ends.append(dict(event.logs)))
    with pytest.raises(RuntimeError, match="enough"):
        trainer_of(High).fit(X, Y, batch_size=5, steps_per_execution=4, callbacks=[end], verbose=0)
    assert ends == [logs[4]]


class Validation:
    """An endless iterator, other batches each time."""

    def __init__(self):
        self.count = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.count += 1
        return regression(8, seed=self.count)


class Loader:
    """Gives its batches in another order each time, as loaders do that shuffle."""

    def __init__(self):
        self.random = np.random.default_rng(0)

    def __iter__(self):
        return iter([regression(8, seed=int(seed)) for seed in self.random.permutation(6)])


def validated(trainer, validation, **kwargs):
    trainer.fit(X, Y, batch_size=20, epochs=4, validation_data=validation, validation_steps=2, verbose=0, **kwargs)


@pytest.mark.filterwarnings("ignore:the position of the Validation given to validation")
@pytest.mark.parametrize(
    ("hook", "step"), [("on_train_batch_end", 2), ("on_train_batch_end", 7), ("on_epoch_begin", 4)]
)
def test_the_validation_goes_on_where_it_was(tmp_path, hook, step):
    def stop(event):
        if event.step == step:
            raise RuntimeError("enough")

    def saves():
        return ModelCheckpoint(tmp_path, every=eg.Every(steps=1))

    whole, resumed = trainer_of(High), trainer_of(High)
    validated(whole, Validation())
    with pytest.raises(RuntimeError, match="enough"):
        validated(trainer_of(High), Validation(), callbacks=[saves(), LambdaCallback(**{hook: stop})])
    validated(resumed, Validation(), resume="auto", callbacks=[saves()])
    assert resumed.history.history == whole.history.history


def test_a_loader_that_is_resumed_before_its_first_validation_is_iterated_as_often(tmp_path):
    def stop(event):
        if event.step == 2:
            raise RuntimeError("enough")

    whole, resumed = trainer_of(High), trainer_of(High)
    validated(whole, Loader())
    stopped = [ModelCheckpoint(tmp_path, every=eg.Every(steps=1)), LambdaCallback(on_train_batch_end=stop)]
    with pytest.raises(RuntimeError, match="enough"):
        validated(trainer_of(High), Loader(), callbacks=stopped)
    validated(resumed, Loader(), resume=tmp_path)
    assert resumed.history.history == whole.history.history


@pytest.mark.parametrize("steps", [1, 2])
def test_an_iterator_of_which_nothing_was_used_begins_at_its_beginning(tmp_path, steps):
    def fit(trainer, **kwargs):
        trainer.fit((regression(8, seed=k) for k in range(9)), steps_per_epoch=steps, epochs=3, verbose=0, **kwargs)

    for hook in ("on_train_begin", "on_train_batch_begin"):
        whole, resumed = trainer_of(High), trainer_of(High)
        path = tmp_path / hook
        fit(whole, callbacks=[LambdaCallback(**{hook: lambda e, path=path: path.exists() or e.trainer.save(path)})])
        fit(resumed, resume=path)
        assert resumed.history.history == whole.history.history, hook


class Shuffled:
    """Has another order in each pass, and its state; the last batch of a pass has another shape than the others."""

    def __init__(self):
        self.number = self.read = 0

    def __iter__(self):
        order = np.random.default_rng(self.number).permutation(19)
        while self.read < 4:
            rows, self.read = order[5 * self.read : 5 * self.read + 5], self.read + 1
            yield X[rows], Y[rows]
        self.number, self.read = self.number + 1, 0

    def state_dict(self):
        return {"number": self.number, "read": self.read}

    def load_state_dict(self, state):
        self.__dict__.update(state)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loader_of_which_a_batch_of_another_shape_was_read_ahead(tmp_path, prefetch):
    def fit(**kwargs):
        trainer = trainer_of(Managed)
        trainer.fit(Shuffled(), epochs=3, steps_per_execution=4, prefetch=prefetch, verbose=0, **kwargs)
        return trainer

    def stop(event):
        event.trainer.stop_training = event.step == 7

    whole = fit()
    fit(callbacks=[ModelCheckpoint(tmp_path), LambdaCallback(on_train_batch_end=stop)])
    resumed = fit(resume=tmp_path)
    assert (resumed.step, resumed.history.history) == (12, whole.history.history)
    assert_same_bits(host(resumed.state), host(whole.state))


class Wider(eg.ElegyModule):
    def init(self, key, inputs):
        return self.replace(params={"w": jnp.zeros((inputs.shape[-1], 7))})

    def apply(self, key, inputs, training):
        return inputs @ self.params["w"], self


def test_a_checkpoint_that_waits_and_does_not_fit_goes_on_waiting(tmp_path):
    saved = trainer_of(High)
    saved.init_on_batch(X, Y)
    saved.save(tmp_path / "a")
    other = eg.Trainer(Wider(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    other.restore(tmp_path / "a")
    for _ in range(2):
        with pytest.raises(CheckpointError):
            other.predict(X)


def test_a_resumed_run_that_fails_before_its_first_step_leaves_the_counters(tmp_path):
    trainer_of(High).fit(X, Y, epochs=3, verbose=0, callbacks=[ModelCheckpoint(tmp_path)])
    trainer = trainer_of(High)
    trainer.fit(X, Y, verbose=0)
    before = trainer.step, trainer.epoch, host(trainer.state)

    def fail(event):
        raise RuntimeError("no way")

    with pytest.raises(RuntimeError, match="no way"):
        trainer.fit(X, Y, epochs=5, verbose=0, resume=tmp_path, callbacks=[LambdaCallback(on_train_begin=fail)])
    assert (trainer.step, trainer.epoch) == before[:2]
    assert_same_bits(host(trainer.state), before[2])


def test_a_callback_whose_state_cannot_be_had_leaves_the_trainer_usable():
    class Broken(eg.Callback):
        def state_dict(self):
            raise ValueError("broken")

    trainer = trainer_of(High)
    with pytest.raises(Exception, match="broken"):
        trainer.fit(X, Y, verbose=0, callbacks=[Broken()])
    assert trainer.fit(X, Y, verbose=0).epoch == [1]


@pytest.mark.parametrize("logs", [None, {"loss": None}, {"x": "text"}, {"x": {}}, {"loss": np.zeros(2)}], ids=str)
def test_bad_logs_of_a_core_step_are_named_and_leave_the_trainer_usable(logs):
    class Core(High):
        def train_step(self, batch, batch_idx, epoch_idx):
            return logs, self

    trainer = eg.Trainer(Core())
    for _ in range(2):
        with pytest.raises(eg.errors.StepError, match=r"Core\.train_step"):
            trainer.fit(X, Y, verbose=0)


def test_a_signal_while_the_end_is_saved_is_printed(capsys):
    trainer = trainer_of(High)
    late = LambdaCallback(on_train_end=lambda event: signal.raise_signal(signal.SIGTERM))
    trainer.fit(X, Y, verbose=0, callbacks=[late])
    assert trainer.interrupted == signal.SIGTERM


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_run_that_an_exception_of_any_kind_ends_has_failed(error):
    def stop(event):
        raise error

    ends = []
    end = LambdaCallback(on_train_end=lambda event: ends.append(event.ended))
    with pytest.raises(error):
        trainer_of(High).fit(X, Y, verbose=0, callbacks=[LambdaCallback(on_epoch_end=stop), end])
    assert ends == ["failed"]


@pytest.mark.parametrize("pulled", [0, 1, 3])
def test_an_iterator_of_predictions_outlives_training(pulled):
    trainer = trainer_of(High)
    trainer.fit(X, Y, batch_size=8, verbose=0)
    expected = trainer.predict(X, batch_size=8)
    outputs = trainer.predict_iter(iter([X[i : i + 8] for i in range(0, 40, 8)]))
    first = [next(outputs) for _ in range(pulled)]
    if pulled:
        trainer.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    np.testing.assert_array_equal(np.concatenate([*first, *outputs]), expected)


def test_a_prediction_that_is_over_costs_the_next_step_no_copy():
    trainer = trainer_of(High)
    trainer.fit(X, Y, batch_size=8, verbose=0)
    trainer.predict(X)
    before = trainer._session.buffer.peek()[:]
    trainer.train_on_batch(X[:8], Y[:8])
    assert any(leaf.is_deleted() for leaf in before)

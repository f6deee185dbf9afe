"""The order of things in `fit`, `evaluate` and `predict`: which state runs, and when an epoch ends."""

from __future__ import annotations

import signal
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from boring_modules import Core, High, Managed, Spy, assert_same_bits, bare_loop, host, network, regression, trainer_of

import elegy as eg
from elegy.callbacks import LambdaCallback, ModelCheckpoint

X, Y = regression(22)
LEVELS = pytest.mark.parametrize(
    ("level", "strategy", "k"), [(High, "jit", 4), (High, "eager", 1), (Managed, "jit", 2), (Core, "jit", 1)]
)


def fit(trainer, **kwargs):
    return trainer.fit(X, Y, **{"batch_size": 8, "verbose": 0, **kwargs})


def zeros(state):
    return state.replace(params=jax.tree.map(jnp.zeros_like, state.params))


class Swap(eg.Callback):
    """Evaluates and predicts with parameters of zero, and puts the trained ones back."""

    def on_test_begin(self, event):
        self.kept = event.trainer.state
        event.trainer.state = zeros(self.kept)

    def on_test_end(self, event):
        event.trainer.state = self.kept

    on_predict_begin, on_predict_end = on_test_begin, on_test_end


@LEVELS
def test_a_state_assigned_when_an_evaluation_begins_is_evaluated(level, strategy, k):
    trainer = trainer_of(level, strategy=strategy)
    trainer.init_on_batch(X[:8], Y[:8])
    before = trainer.state
    value = trainer.evaluate(X[:16], Y[:16], batch_size=8, callbacks=[Swap()], verbose=0)["loss"]
    np.testing.assert_allclose(value, np.mean(Y[:16] ** 2), rtol=1e-5)  # float32
    assert np.abs(trainer.predict(X, batch_size=8, callbacks=[Swap()])).max() == 0
    outputs = list(trainer.predict_iter(X, batch_size=8, callbacks=[Swap()]))
    assert np.abs(np.concatenate(outputs)).max() == 0
    assert trainer.state is before
    np.testing.assert_allclose(trainer.predict(X), network(before.params, X), rtol=1e-5, atol=1e-6)


@LEVELS
def test_a_state_that_is_not_put_back_stays(level, strategy, k):
    trainer = trainer_of(level, strategy=strategy)
    trainer.init_on_batch(X[:8], Y[:8])
    begin = Spy("on_test_begin", lambda event: setattr(event.trainer, "state", zeros(event.trainer.state)))
    trainer.evaluate(X, Y, callbacks=[begin], verbose=0)
    assert all((leaf == 0).all() for leaf in host(trainer.state.params))


@LEVELS
def test_validation_of_swapped_parameters_changes_nothing_about_the_training(level, strategy, k):
    plain, swapped = trainer_of(level, strategy=strategy), trainer_of(level, strategy=strategy)
    options = {"epochs": 2, "steps_per_execution": k, "validation_data": (X[:16], Y[:16])}
    within = Spy(
        "on_train_batch_end", lambda event: event.trainer.evaluate(X, Y, callbacks=[Swap()], verbose=0), "logs"
    )
    losses = fit(plain, **options).history["loss"]
    history = fit(swapped, callbacks=[Swap(), within], **options).history
    np.testing.assert_allclose(history["val_loss"], [np.mean(Y[:16] ** 2)] * 2, rtol=1e-5)  # float32
    assert history["loss"] == losses
    assert_same_bits(host(swapped.state), host(plain.state))


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_train_batch_begin"])
@LEVELS
def test_a_state_assigned_before_the_first_step_is_trained(level, strategy, k, hook):
    def assign(event):
        if event.step == 0:
            event.trainer.state = zeros(event.trainer.state)

    trainer = trainer_of(level, strategy=strategy)
    fit(trainer, epochs=2, callbacks=[Spy(hook, assign, "logs")], steps_per_execution=k)
    expected, _, _ = bare_loop({"w": np.zeros((3, 2)), "b": np.zeros(2)}, X, Y, epochs=2)
    np.testing.assert_allclose(trainer.state.params["w"], expected["w"], rtol=2e-5, atol=1e-6)  # float32


PASSES = pytest.mark.parametrize(("phase", "run"), [("test", "evaluate"), ("predict", "predict")])


def run_pass(trainer, run, callbacks):
    return (
        trainer.evaluate(X, Y, callbacks=callbacks, verbose=0)
        if run == "evaluate"
        else trainer.predict(X, callbacks=callbacks)
    )


@PASSES
@pytest.mark.parametrize("when", ["begin", "end"])
def test_a_state_cannot_be_assigned_between_the_batches_of_a_pass(phase, run, when):
    hook = f"on_{phase}_batch_{when}"
    trainer = trainer_of(High)
    fit(trainer)
    before = host(trainer.state)
    assign = Spy(hook, lambda event: setattr(event.trainer, "state", zeros(event.trainer.state)))
    with pytest.raises(RuntimeError, match=f"assigned in {hook}.*assign it in on_{phase}_begin"):
        run_pass(trainer, run, [assign])
    assert_same_bits(host(trainer.state), before)
    trainer.state = zeros(trainer.state)  # afterwards it can


@PASSES
def test_a_swap_is_undone_if_another_begin_hook_fails(phase, run):
    def fail(event):
        raise ZeroDivisionError

    trainer = trainer_of(High)
    fit(trainer)
    before = trainer.state
    with pytest.raises(ZeroDivisionError):
        run_pass(trainer, run, [Swap(), Spy(f"on_{phase}_begin", fail)])
    assert trainer.state is before


# the ends of epochs


class Ends(eg.Callback):
    """Notes the ends of epochs, and changes the parameters depending on how many there were."""

    def __init__(self):
        self.ends, self.begins, self.validations, self.count = [], [], [], 0

    def on_epoch_begin(self, event):
        self.begins.append((event.epoch, event.step, event.resumed))

    def on_epoch_end(self, event):
        self.ends.append((event.epoch, event.step))
        self.count += 1
        state, factor = event.trainer.state, 0.5 if self.count % 2 else 1.5
        event.trainer.state = state.replace(params=jax.tree.map(lambda leaf: factor * leaf, state.params))

    def on_test_end(self, event):
        self.validations.append(event.step)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def stop_at(step, how):
    def stop(event):
        if event.step == step and how == "signal":
            signal.raise_signal(signal.SIGTERM)
        event.trainer.stop_training = event.trainer.stop_training or (event.step == step and how == "stop")

    return LambdaCallback(on_train_batch_end=stop)


def length_unknown():
    return ((X[i : i + 8], Y[i : i + 8]) for i in range(0, 22, 8))


@pytest.mark.parametrize(
    ("how", "step", "ends"),
    [("max_steps", 1, 0), ("max_steps", 3, 1), ("max_steps", 5, 1), ("stop", 4, 1), ("stop", 6, 2), ("signal", 5, 1)],
)
@pytest.mark.filterwarnings("ignore:nothing was validated")
@pytest.mark.parametrize("data", [(X, Y), (length_unknown,)], ids=["arrays", "length unknown"])
@pytest.mark.some(5)
def test_an_epoch_ends_once_however_the_run_was_cut(tmp_path, data, how, step, ends):
    def run(callbacks, **kwargs):
        trainer = trainer_of(High)
        if len(data) == 2:
            kwargs["batch_size"] = 8
        callbacks = [*callbacks, ModelCheckpoint(tmp_path)] if callbacks[1:] else callbacks
        trainer.fit(*data, epochs=3, validation_data=(X, Y), callbacks=callbacks, verbose=0, **kwargs)
        return trainer

    whole, first, second = Ends(), Ends(), Ends()
    expected = run([whole])
    cut = run([first, stop_at(step, how)], **({"max_steps": step} if how == "max_steps" else {}))
    resumed = run([second, LambdaCallback()], resume="auto")
    assert cut.step == step
    if len(data) == 1 and step % 3 == 0:
        ends -= 1  # nobody knows yet that the pass was over
    assert first.ends == [(0, 3), (1, 6)][:ends]
    assert first.ends + second.ends == whole.ends == [(0, 3), (1, 6), (2, 9)]
    assert first.validations + second.validations == [3, 6, 9]
    assert second.begins[0] == (ends, step, step != 3 * ends)
    assert resumed.history.history == expected.history.history
    assert_same_bits(host(resumed.state), host(expected.state))


@pytest.mark.parametrize("how", ["max_steps", "stop", "signal"])
def test_a_cut_epoch_leaves_its_running_values_in_the_history_and_on_the_screen(capsys, how):
    logs, last = {}, []
    spies = [
        LambdaCallback(on_train_batch_end=lambda event: logs.update({event.step: event.logs["loss"]})),
        LambdaCallback(on_train_end=lambda event: last.append((event.epoch, event.step, event.logs["loss"]))),
    ]
    options = {"epochs": 3, "validation_data": (X, Y), "verbose": 2}
    history = fit(
        trainer_of(High), callbacks=[*spies, stop_at(5, how)], **options, max_steps=5 if how == "max_steps" else None
    )
    assert history.epoch == [0, 1]
    assert history.history["loss"] == [logs[3], logs[5]]
    assert len(history.history["val_loss"]) == 1
    assert last == [(1, 5, logs[5])]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  loss")[0] for line in lines] == ["epoch 1/3  step 3", "epoch 2/3 (not finished)  step 5"]


@pytest.mark.parametrize(("steps", "cut"), [(3, False), (2, False), (None, True)])
def test_an_epoch_of_unknown_length_that_ends_at_max_steps_is_not_called_unfinished(capsys, steps, cut):
    def batches():
        for start in (0, 8, 16):
            yield X[start : start + 8], Y[start : start + 8]

    stop = [stop_at(2, "stop")] if steps is None else []
    trainer_of(High).fit(batches(), max_steps=steps, callbacks=stop, verbose=2)
    assert ("(not finished)" in capsys.readouterr().out) == cut


def test_a_stream_that_never_was_validated_is_warned_of():
    def stream():
        while True:
            yield X[:8], Y[:8]

    with pytest.warns(UserWarning, match="nothing was validated.*steps_per_epoch"):
        trainer_of(High).fit(stream, max_steps=4, validation_data=(X, Y), verbose=0)


@pytest.mark.parametrize(
    ("monitor", "match"), [("loss", "EarlyStopping compared nothing: 'loss'"), ("val_loss", "not")]
)
def test_early_stopping_that_compared_nothing_on_a_stream_is_warned_of(monitor, match):
    def stream():
        while True:
            yield X[:8], Y[:8]

    options = {"validation_data": (X, Y)} if monitor == "val_loss" else {}
    callbacks = [eg.callbacks.EarlyStopping(monitor)]
    with pytest.warns(UserWarning, match=match) as caught:
        trainer_of(High).fit(stream, max_steps=4, callbacks=callbacks, verbose=0, **options)
    assert [one.filename for one in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(trainer_of(High), max_steps=2, callbacks=[eg.callbacks.EarlyStopping("loss")])  # a known number of batches
        options = {"steps_per_epoch": 2, "max_steps": 4}
        trainer_of(High).fit(stream, callbacks=[eg.callbacks.EarlyStopping("loss", patience=9)], verbose=0, **options)


# one fit at a time


@pytest.mark.parametrize("where", ["the first batch", "on_train_begin", "on_train_batch_end"])
def test_a_second_thread_cannot_fit_or_train_the_same_trainer(where):
    begun, end = threading.Event(), threading.Event()

    def stand(event=None):
        begun.set()
        end.wait()

    def data():
        if where == "the first batch":
            stand()
        yield from length_unknown()

    callbacks = [Spy(where, stand)] if where.startswith("on_") else []
    trainer, plain = trainer_of(High), trainer_of(High)
    first = threading.Thread(target=lambda: trainer.fit(data, callbacks=callbacks, verbose=0))
    first.start()
    begun.wait()
    try:
        for call in (trainer.fit, trainer.train_on_batch):
            with pytest.raises(RuntimeError, match=f"{call.__name__} was called while fit of the same trainer runs"):
                call(X, Y)
    finally:
        end.set()
        first.join()
    plain.fit(length_unknown, verbose=0)
    assert trainer.step == 3
    assert_same_bits(host(trainer.state), host(plain.state))
    fit(trainer)  # afterwards it can


def test_the_data_cannot_fit_the_trainer_that_reads_it():
    def data():
        trainer.fit(X, Y, verbose=0)
        yield X, Y

    trainer = trainer_of(High)
    with pytest.raises(RuntimeError, match="fit was called while fit of the same trainer runs"):
        trainer.fit(data, verbose=0)
    assert (trainer.step, trainer.epoch) == (0, 0)
    fit(trainer)


def test_the_end_of_an_evaluation_and_of_a_prediction_says_how_it_ended():
    trainer, ended = trainer_of(High), []
    watch = LambdaCallback(
        on_test_end=lambda event: ended.append(event.ended), on_predict_end=lambda event: ended.append(event.ended)
    )
    trainer.init_on_batch(X[:8], Y[:8])
    trainer.evaluate(X, Y, batch_size=8, callbacks=[watch], verbose=0)
    trainer.predict(X, batch_size=8, callbacks=[watch])
    assert ended == ["finished", "finished"]

    outputs = trainer.predict_iter(X, batch_size=8, callbacks=[watch])
    next(outputs)
    outputs.close()
    assert ended[2:] == ["interrupted"]

    def broken():
        yield X[:8], Y[:8]
        raise OSError("the disk is gone")

    for call in (trainer.evaluate, lambda data, **kwargs: trainer.predict(lambda: (x for x, _ in data()), **kwargs)):
        with pytest.raises(OSError, match="the disk is gone"):
            call(broken, callbacks=[watch], verbose=0)
    assert ended[3:] == ["failed", "failed"]

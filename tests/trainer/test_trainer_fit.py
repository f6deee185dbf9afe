"""What `fit` does beside the mathematics: counting, stopping, data of every kind, compilations."""

from __future__ import annotations

import itertools
import math
import signal
import warnings
import weakref

import numpy as np
import optax
import pytest
from boring_modules import (
    TX,
    Core,
    High,
    Managed,
    Spy,
    assert_same_bits,
    bare_loop,
    compilations,
    host,
    make_params,
    network,
    regression,
    trainer_of,
)

import elegy as eg
from elegy.data import epoch_permutation
from elegy.trainer import clock

X, Y = regression(22)
VALIDATION = regression(13, seed=5)


def fit(trainer, epochs=1, data=(X, Y), **kwargs):
    return trainer.fit(*data, **{"batch_size": 8, "epochs": epochs, "verbose": 0, **kwargs})


class Recorder(eg.Callback):
    """Notes every hook with its counters."""

    batch_hooks_read = "logs"

    def __init__(self):
        self.events = []
        for hook in eg.callbacks.HOOKS:
            setattr(self, hook, lambda event, hook=hook: self.events.append((hook, event)))

    def named(self, *hooks):
        return [event for hook, event in self.events if hook in hooks]


# counting and order


@pytest.mark.parametrize("k", [1, 2, 8])
def test_hooks_come_in_order_with_true_counters(k):
    recorder = Recorder()
    trainer = trainer_of(High)
    fit(trainer, 2, callbacks=[recorder], validation_data=VALIDATION, steps_per_execution=k)
    epoch = (
        ["on_epoch_begin"]
        + ["on_train_batch_begin", "on_train_batch_end"] * 3
        + ["on_test_begin"]
        + ["on_test_batch_begin", "on_test_batch_end"] * 2
        + ["on_test_end", "on_epoch_end"]
    )
    assert [hook for hook, _ in recorder.events] == ["on_train_begin", *epoch, *epoch, "on_train_end"]
    ends = recorder.named("on_train_batch_end")
    assert [(e.step, e.epoch, e.batch) for e in ends] == [(1 + i, i // 3, i % 3) for i in range(6)]
    assert [e.examples for e in ends] == [8, 16, 22, 30, 38, 44]
    assert {(e.steps, e.batch_size, e.epochs, e.validates, e.phase) for e in ends} == {(3, 8, 2, True, "train")}
    assert {e.phase for e in recorder.named("on_test_batch_end")} == {"test"}
    assert [e.epoch for e in recorder.named("on_epoch_end")] == [0, 1]


@pytest.mark.parametrize("k", [1, 2, 8])
def test_batch_logs_are_the_running_values_of_the_epoch(k):
    recorder = Recorder()
    trainer = trainer_of(High)
    trainer.init_on_batch(X[:8], Y[:8])
    params = host_tree(trainer.state.params)
    fit(trainer, callbacks=[recorder], shuffle=False, steps_per_execution=k)
    expected = [bare_loop(params, X[:n], Y[:n], epochs=1, shuffle=False)[1][0] for n in (8, 16, 22)]
    logs = [e.logs["loss"] for e in recorder.named("on_train_batch_end")]
    np.testing.assert_allclose(logs, expected, rtol=2e-5)  # float32 in another order


def host_tree(tree):
    return {name: np.array(leaf) for name, leaf in tree.items()}


def test_history_holds_python_floats_and_validation_names():
    trainer = trainer_of(High, metrics={"mae": eg.metrics.MeanAbsoluteError()})
    history = fit(trainer, 3, validation_data=VALIDATION)
    assert history is trainer.history
    assert history.epoch == [0, 1, 2]
    assert {"loss", "mae", "val_loss", "val_mae"} <= history.history.keys()
    for values in history.history.values():
        assert len(values) == 3
        assert all(type(value) is float for value in values)
    np.testing.assert_allclose(
        history.history["val_loss"][-1],
        np.mean((network(trainer.state.params, VALIDATION[0]) - VALIDATION[1]) ** 2),
        rtol=1e-5,
    )


@pytest.mark.parametrize("level", [High, Managed, Core])
def test_a_second_fit_continues_epochs_and_permutations(level):
    once, twice = trainer_of(level), trainer_of(level)
    whole = fit(once, 4)
    fit(twice, 3)
    second = fit(twice, 1)
    assert second.epoch == [3]
    assert second.history["loss"] == whole.history["loss"][3:]
    assert (twice.step, twice.epoch) == (12, 4)
    assert_same_bits(host(once.state), host(twice.state))


def test_the_permutation_depends_on_seed_and_epoch_alone():
    orders = []

    class Order(Core):
        def train_step(self, batch, batch_idx, epoch_idx):
            orders.append((epoch_idx, np.array(batch[0][:, 0])))
            return super().train_step(batch, batch_idx, epoch_idx)

    trainer = eg.Trainer(Order(), seed=9)
    fit(trainer, 2)
    fit(trainer, 1)
    for epoch in range(3):
        seen = np.concatenate([rows for index, rows in orders if index == epoch])
        np.testing.assert_array_equal(seen, X[epoch_permutation(9, epoch, 22), 0])


def test_initial_epoch_names_where_to_start_and_epochs_where_to_end():
    trainer = trainer_of(High)
    trainer.init_on_batch(X[:8], Y[:8])
    params = host_tree(trainer.state.params)
    history = fit(trainer, 5, initial_epoch=3)
    assert history.epoch == [3, 4]
    assert (trainer.step, trainer.epoch) == (6, 5)
    expected, _, _ = bare_loop(params, X, Y, epochs=2, first_epoch=3)
    np.testing.assert_allclose(trainer.state.params["w"], expected["w"], rtol=2e-5)


# limits


ENDS = [(1, 0, [0]), (3, 1, [0]), (5, 1, [0, 1]), (6, 2, [0, 1]), (100, 4, [0, 1, 2, 3])]


@pytest.mark.parametrize(
    ("max_steps", "epochs_done", "recorded", "k"),
    [
        pytest.param(*end, k, marks=pytest.mark.slow if (i + j) % 2 else ())
        for (i, end), (j, k) in itertools.product(enumerate(ENDS), enumerate([1, 8, 2, "auto"]))
    ],
)
def test_max_steps_ends_the_run_there(max_steps, epochs_done, recorded, k):
    trainer = trainer_of(Managed)
    history = fit(trainer, 4, max_steps=max_steps, steps_per_execution=k)
    assert (trainer.step, trainer.epoch) == (min(max_steps, 12), epochs_done)
    assert history.epoch == recorded
    assert len(history.history["loss"]) == len(recorded)


@pytest.mark.parametrize("k", [1, 8])
def test_max_steps_counts_the_steps_of_its_own_call(k):
    trainer = trainer_of(High)
    fit(trainer, 1)
    fit(trainer, 4, max_steps=4, steps_per_execution=k)
    assert trainer.step == 7


@pytest.mark.parametrize("k", [1, 2])
def test_stopped_runs_used_the_first_batches_of_the_order(k):
    trainer = trainer_of(High)
    trainer.init_on_batch(X[:8], Y[:8])
    params = host_tree(trainer.state.params)
    fit(trainer, 1, max_steps=2, steps_per_execution=k)
    rows = epoch_permutation(42, 0, 22)[:16]
    expected, _, _ = bare_loop(params, X[rows], Y[rows], epochs=1, shuffle=False)
    np.testing.assert_allclose(trainer.state.params["w"], expected["w"], rtol=2e-5)


def test_max_time_ends_the_run_after_the_running_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])

    def tick(event):
        now[0] += 1.0

    trainer = trainer_of(High)
    fit(trainer, 10, max_time=4.0, callbacks=[Spy("on_train_batch_end", tick, "logs")], steps_per_execution=1)
    assert trainer.step == 4
    assert trainer.history.epoch == [0, 1]


@pytest.mark.parametrize("k", [1, 8])
def test_steps_per_epoch_takes_the_first_batches_of_each_epochs_order(k):
    trainer = trainer_of(High)
    trainer.init_on_batch(X[:8], Y[:8])
    params = host_tree(trainer.state.params)
    fit(trainer, 2, steps_per_epoch=2, steps_per_execution=k)
    assert (trainer.step, trainer.epoch) == (4, 2)
    state = None
    for epoch in range(2):
        rows = epoch_permutation(42, epoch, 22)[:16]
        params, _, state = bare_loop(params, X[rows], Y[rows], epochs=1, shuffle=False, state=state)
    np.testing.assert_allclose(trainer.state.params["w"], params["w"], rtol=2e-5)


# validation


def test_validation_runs_every_so_many_epochs_and_gives_one_value_each():
    history = fit(trainer_of(High), 5, validation_data=VALIDATION, validation_freq=2)
    assert len(history.history["loss"]) == 5
    values = [v for v in history.history["val_loss"] if not math.isnan(v)]
    assert len(values) == 2
    every = fit(trainer_of(High), 5, validation_data=VALIDATION)
    assert values == [every.history["val_loss"][1], every.history["val_loss"][3]]


def test_validation_split_takes_the_last_rows_before_shuffling():
    split, given = trainer_of(High), trainer_of(High)
    one = fit(split, 2, validation_split=0.25)
    two = fit(given, 2, data=(X[:16], Y[:16]), validation_data=(X[16:], Y[16:]))
    assert one.history == two.history
    assert_same_bits(host(split.state), host(given.state))


def test_validation_takes_weights_batches_and_generators():
    x, y = VALIDATION
    w = np.linspace(0.1, 2.0, 13).astype(np.float32)
    batches = [(x[i : i + 4], y[i : i + 4], w[i : i + 4]) for i in range(0, 13, 4)]
    values = []
    for data in ((x, y, w), batches, lambda: iter(batches)):
        trainer = trainer_of(High)
        values.append(
            fit(trainer, 2, validation_data=data, validation_batch_size=4 if type(data) is tuple else None).history[
                "val_loss"
            ]
        )
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)
    np.testing.assert_allclose(values[2], values[0], rtol=1e-5)


def test_validation_steps_limit_it():
    x, y = VALIDATION
    one = fit(trainer_of(High), 1, validation_data=(x, y), validation_batch_size=4, validation_steps=2)
    two = fit(trainer_of(High), 1, validation_data=(x[:8], y[:8]), validation_batch_size=4)
    assert one.history == two.history


# data of every kind


def batches_of(epochs):
    for epoch in range(epochs):
        order = epoch_permutation(42, epoch, 22)
        for i in range(0, 22, 8):
            rows = order[i : i + 8]
            yield X[rows], Y[rows]


@pytest.mark.parametrize("level", [High, Managed, Core])
def test_a_one_shot_generator_is_read_on_from_epoch_to_epoch(level):
    trainer, arrays = trainer_of(level), trainer_of(level)
    trainer.fit(batches_of(3), steps_per_epoch=3, epochs=3, verbose=0)
    fit(arrays, 3, steps_per_execution=1)
    assert (trainer.step, trainer.epoch) == (9, 3)
    for a, b in zip(host(trainer.state.params), host(arrays.state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)  # short batches: padded here, their own shape there


def test_a_one_shot_generator_serves_one_epoch_to_its_end():
    trainer = trainer_of(High)
    history = trainer.fit(batches_of(2), verbose=0)
    assert (trainer.step, history.epoch) == (6, [0])


def test_no_batch_is_pulled_that_is_not_trained_on():
    pulled = []

    def source():
        for i in range(100):
            pulled.append(i)
            yield X[:8], Y[:8]

    trainer = trainer_of(High)
    trainer.fit(source(), steps_per_epoch=2, epochs=2, verbose=0)
    assert len(pulled) == trainer.step == 4


@pytest.mark.parametrize("length_known", [True, False])
def test_iterables_are_read_anew_each_epoch(length_known):
    items = list(batches_of(1))
    data = items if length_known else (lambda: iter(items))
    recorder = Recorder()
    trainer = trainer_of(High)
    trainer.fit(data, epochs=2, verbose=0, callbacks=[recorder])
    assert trainer.step == 6
    assert {e.steps for e in recorder.named("on_epoch_end")} == {3 if length_known else None}


def test_nested_inputs_and_labels():
    class Two(eg.ElegyModule):
        def init(self, key, inputs):
            return self.replace(params={"a": make_params(key), "b": make_params(key)})

        def apply(self, key, inputs, training):
            return {
                "one": network(self.params["a"], inputs["x"]),
                "two": network(self.params["b"], inputs["z"][0]),
            }, self

    loss = {
        "first": eg.losses.MeanSquaredError().index_into(target="one", preds="one"),
        "second": eg.losses.MeanSquaredError().index_into(target="two", preds="two"),
    }
    trainer = eg.Trainer(Two(), loss, optimizer=TX)
    history = fit(trainer, 2, data=({"x": X, "z": [X]}, {"one": Y, "two": -Y}))
    assert next(iter(history.history)) == "loss"
    np.testing.assert_allclose(
        history.history["loss"], np.add(history.history["first"], history.history["second"]), rtol=1e-6
    )


def test_inputs_alone_train_what_needs_no_labels():
    def energy(preds):
        return preds.mean(-1) ** 2

    trainer = eg.Trainer(High(), energy, optimizer=optax.sgd(0.1))
    history = trainer.fit(X, batch_size=8, epochs=3, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_core_steps_get_batches_exactly_as_given():
    seen = []

    class Look(Core):
        def train_step(self, batch, batch_idx, epoch_idx):
            seen.append(batch)
            return {}, self

        def init_step(self, key, batch):
            return self.replace(key=key)

    eg.Trainer(Look()).fit(X, batch_size=11, verbose=0, shuffle=False)
    assert [np.shape(batch) for batch in seen] == [(11, 3), (11, 3)]
    seen.clear()
    eg.Trainer(Look()).fit(iter([{"x": X[:4]}, {"x": X[:5]}]), verbose=0)
    assert [sorted(batch) for batch in seen] == [["x"], ["x"]]
    seen.clear()
    eg.Trainer(Look()).fit(X, Y, sample_weight=X[:, 0], batch_size=22, verbose=0)
    assert [np.shape(part) for part in seen[0]] == [(22, 3), (22, 2), (22,)]


# stopping


@pytest.mark.parametrize("k", [1, 2])
def test_stop_training_ends_after_the_running_step(k):
    def stop(event):
        if event.step == 4:
            event.trainer.stop_training = True

    trainer = trainer_of(High)
    fit(trainer, 5, callbacks=[Spy("on_train_batch_end", stop)], steps_per_execution=k)
    assert trainer.step == 4
    fit(trainer, 1)
    assert trainer.step == 4 + 3


def test_stop_training_at_the_end_of_an_epoch():
    def stop(event):
        event.trainer.stop_training = event.epoch == 1

    trainer = trainer_of(High)
    history = fit(trainer, 5, callbacks=[Spy("on_epoch_end", stop)])
    assert (trainer.step, trainer.epoch, history.epoch) == (6, 2, [0, 1])


def interrupt(at_step, *more):
    def hook(event):
        if event.step in (at_step, *more):
            signal.raise_signal(signal.SIGINT)

    return Spy("on_train_batch_end", hook)


def test_the_first_interrupt_ends_the_run_cleanly_after_the_running_step(capsys):
    before = signal.getsignal(signal.SIGINT)
    recorder = Recorder()
    trainer, whole = trainer_of(High), trainer_of(High)
    history = fit(trainer, 5, callbacks=[interrupt(4), recorder])
    assert signal.getsignal(signal.SIGINT) is before
    assert (trainer.step, trainer.epoch, history.epoch) == (4, 1, [0, 1])
    assert len(recorder.named("on_train_end")) == 1
    assert "Interrupted" in capsys.readouterr().err
    fit(whole, 5, max_steps=4, steps_per_execution=1)
    assert_same_bits(host(trainer.state), host(whole.state))
    fit(trainer, 1)
    assert (trainer.step, trainer.epoch) == (7, 2)


def test_the_second_interrupt_raises_with_the_state_readable():
    def twice(event):
        if event.step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    recorder = Recorder()
    trainer, whole = trainer_of(High), trainer_of(High)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, 5, callbacks=[recorder, Spy("on_train_batch_end", twice)])
    assert signal.getsignal(signal.SIGINT) is before
    assert trainer.step == 2
    assert len(recorder.named("on_train_end")) == 1
    fit(whole, 1, max_steps=2, steps_per_execution=1)
    assert_same_bits(host(trainer.state), host(whole.state))


@pytest.mark.parametrize("k", [1, 2])
def test_the_second_interrupt_waits_while_a_compiled_step_holds_the_buffers(k, monkeypatch):
    """It comes when the executable has consumed the old state, and the new one is not yet in its place."""
    trainer, whole = trainer_of(High), trainer_of(High)
    fit(trainer, 1, steps_per_execution=k)
    fit(whole, 1, steps_per_execution=k)
    put = trainer._session.buffer.put
    consumed = []

    def interrupted_put(*args):
        consumed.append(not trainer._session.buffer.readable())
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        put(*args)

    monkeypatch.setattr(trainer._session.buffer, "put", interrupted_put)
    # It puts too, but consumes nothing.
    monkeypatch.setattr(trainer._session.executor, "reset", lambda buffer, phase: None)
    monkeypatch.setattr(whole._session.executor, "reset", lambda buffer, phase: None)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, 1, steps_per_execution=k)
    assert consumed == [True]
    assert trainer.step == 3 + k
    fit(whole, 1, max_steps=k, steps_per_execution=k)
    assert_same_bits(host(trainer.state), host(whole.state))


def test_the_second_interrupt_ends_a_step_in_python_at_once():
    class Python(Core):
        def train_step(self, batch, batch_idx, epoch_idx):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the step goes on")

    trainer = eg.Trainer(Python())
    with pytest.raises(KeyboardInterrupt):
        fit(trainer)
    assert trainer.step == 0


def test_ctrl_c_in_train_on_batch_loses_no_state(monkeypatch):
    """It comes, as most do, while the compiled step runs: Python handles it before the results are stored."""
    trainer, whole = trainer_of(High), trainer_of(High)
    for one in (trainer, whole):
        one.train_on_batch(X, Y)
    put = trainer._session.buffer.put

    def interrupted_put(*args):
        signal.raise_signal(signal.SIGINT)
        put(*args)

    monkeypatch.setattr(trainer._session.buffer, "put", interrupted_put)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.train_on_batch(X, Y)
    whole.train_on_batch(X, Y)
    assert trainer.step == 2
    assert_same_bits(host(trainer.state), host(whole.state))
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_while_fit_prepares_is_not_lost_in_the_callback_of_a_weak_reference():
    """Python drops what is raised there, and after a long call into C it is where Ctrl-C often raises."""

    class Traced(High):
        def apply(self, key, inputs, training):
            dropped = set()
            reference = weakref.ref(dropped, lambda _: signal.raise_signal(signal.SIGINT))
            del dropped
            assert reference() is None
            return super().apply(key, inputs, training)

    before = signal.getsignal(signal.SIGINT)
    trainer = trainer_of(Traced)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer)
    assert (trainer.step, trainer.interrupted) == (0, None)
    assert signal.getsignal(signal.SIGINT) is before


def test_after_fit_ctrl_c_raises_as_ever():
    fit(trainer_of(High), 1)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


# Model


def test_model_is_trainer_with_a_warning():
    with pytest.warns(DeprecationWarning, match="elegy.Model is called elegy.Trainer now") as caught:
        model = eg.Model(High(), eg.losses.MeanSquaredError(), optimizer=TX)
    assert caught[0].filename == __file__
    trainer = trainer_of(High)
    assert isinstance(model, eg.Trainer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, 2)
    fit(trainer, 2)
    assert_same_bits(host(model.state), host(trainer.state))


# compilations


@pytest.mark.parametrize("k", [1, "auto"])
def test_fit_with_validation_and_short_batches_compiles_each_program_once(k):
    trainer = trainer_of(High)
    trainer.init_on_batch(X[:8], Y[:8])
    with compilations() as names:
        fit(trainer, 3, validation_data=VALIDATION, steps_per_execution=k)
    assert trainer._session.executor.traces == {"train": 1, "test": 1, "pred": 0}
    compiled = sorted(name for name in names if "step" in name)
    many = "" if k == 1 else "s"
    assert compiled == [f"jit(test_step{many})", f"jit(train_step{many})"]
    with compilations() as names:
        fit(trainer, 2, validation_data=VALIDATION, steps_per_execution=k)
    assert names == []


def test_a_managed_step_compiles_once_more_for_its_short_batch():
    trainer = trainer_of(Managed)
    fit(trainer, 3)
    assert trainer._session.executor.traces["train"] == 2
    with compilations() as names:
        fit(trainer, 2)
    assert names == []


def test_the_filter_of_compilations_sees_the_steps():
    with compilations() as names:
        fit(trainer_of(High), steps_per_execution=1)
    assert {"jit(init_step)", "jit(train_step)"} <= set(names)


def test_the_users_step_is_run_by_python_once_per_form_of_batch():
    calls = []

    class Counted(Managed):
        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            calls.append(batch[0].shape)
            return super().managed_train_step(key, batch, batch_idx, epoch_idx)

    fit(trainer_of(Counted), 3, steps_per_execution=2)
    assert calls == [(8, 3), (6, 3)]


def test_the_sizes_that_the_trainer_cuts_from_arrays_are_not_warned_of():
    trainer = trainer_of(Managed)
    for size in (8, 7, 5):
        fit(trainer, 1, batch_size=size, validation_data=VALIDATION, validation_batch_size=size - 2)
        trainer.evaluate(X, Y, batch_size=size - 1, verbose=0)
        trainer.predict(X, batch_size=size - 1)
    assert min(trainer._session.executor.traces.values()) > 3


def test_dtypes_that_an_iterable_brings_are_warned_of_after_arrays_of_any_size():
    trainer = trainer_of(High)
    for size in (8, 7, 5):
        fit(trainer, 1, batch_size=size)
    kinds = ("f4", "f2", "i4", "i1", "i2", "u1", "u2", "u4", "bool")
    batches = [(X[:4].astype(dtype), Y[:4]) for dtype in kinds]
    with pytest.warns(UserWarning, match=r"9th shape of batch: 0 was float32\[4,3\], now it is bool") as caught:
        trainer.fit(batches, verbose=0)
    assert len(caught) == 1


@pytest.mark.parametrize("phase", ["train", "test", "pred"])
def test_sizes_given_one_batch_at_a_time_are_warned_of_once_in_each_phase(phase):
    trainer = trainer_of(Managed)
    step = {"train": trainer.train_on_batch, "test": trainer.test_on_batch, "pred": trainer.predict_on_batch}[phase]
    sizes = iter(range(1, 11))

    def take(count):
        for size in itertools.islice(sizes, count):
            step(*(a[:size] for a in ((X,) if phase == "pred" else (X, Y))))

    take(8)
    with pytest.warns(UserWarning, match=rf"the {phase} step is compiled for the 9th shape of batch") as caught:
        take(2)
    assert len(caught) == 1

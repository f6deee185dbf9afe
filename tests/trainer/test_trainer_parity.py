"""Every level and strategy, fused or not, computes what a bare JAX loop computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import (
    Core,
    High,
    Managed,
    assert_same_bits,
    bare_loop,
    host,
    regression,
    squares,
    trainer_of,
    weights,
)

import elegy as eg
from elegy.trainer import execution

CLOSE = {"rtol": 2e-5, "atol": 1e-6}  # float32, sums in another order than the reference's

RUNS = [
    (High, "eager", 1, 22),
    (High, "jit", 1, 22),
    (High, "jit", 1, 24),
    (High, "jit", 2, 22),
    (High, "jit", 8, 24),
    (High, "jit", "auto", 22),
    (Managed, "eager", 1, 22),
    (Managed, "jit", 1, 22),
    (Managed, "jit", 2, 24),
    (Managed, "jit", "auto", 22),
    (Core, "eager", 1, 22),
    (Core, "jit", "auto", 22),
]


def fitted(level, strategy, k, data, w=None, epochs=3, **kwargs):
    trainer = trainer_of(level, strategy=strategy)
    trainer.init_on_batch(data[0][:8], data[1][:8])
    start = host(trainer.state.params)
    start = jax.tree.unflatten(jax.tree.structure(trainer.state.params), start)
    trainer.fit(*data, sample_weight=w, batch_size=8, epochs=epochs, verbose=0, steps_per_execution=k, **kwargs)
    return trainer, start


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **CLOSE)


@pytest.mark.parametrize(("level", "strategy", "k", "size"), RUNS)
def test_parameters_and_losses_follow_the_bare_loop(level, strategy, k, size):
    data = regression(size)
    trainer, start = fitted(level, strategy, k, data)
    params, losses, _ = bare_loop(start, *data)
    assert_close(trainer.state.params, params)
    np.testing.assert_allclose(trainer.history.history["loss"], losses, **CLOSE)
    assert (trainer.step, trainer.epoch) == (9, 3)


@pytest.mark.parametrize(("strategy", "k"), [("eager", 1), ("jit", 1), ("jit", 8)])
def test_sample_weights_count_in_gradients_and_logs(strategy, k):
    data, w = regression(), weights()
    trainer, start = fitted(High, strategy, k, data, w)
    params, losses, _ = bare_loop(start, *data, w)
    assert_close(trainer.state.params, params)
    np.testing.assert_allclose(trainer.history.history["loss"], losses, **CLOSE)


@pytest.mark.parametrize("k", [1, 8])
def test_dropping_the_remainder_drops_it(k):
    data = regression()
    trainer, start = fitted(High, "jit", k, data, drop_remaining=True)
    params, losses, _ = bare_loop(start, *data, drop_remaining=True)
    assert_close(trainer.state.params, params)
    np.testing.assert_allclose(trainer.history.history["loss"], losses, **CLOSE)
    assert trainer.step == 6


@pytest.mark.parametrize("k", [1, 8])
def test_without_shuffling_the_order_is_the_datas(k):
    data = regression()
    trainer, start = fitted(High, "jit", k, data, shuffle=False)
    assert_close(trainer.state.params, bare_loop(start, *data, shuffle=False)[0])


@pytest.mark.parametrize(
    ("level", "place", "ks"),
    [
        (High, "resident", (2, 3, 8)),
        (High, "stacked", (2, 8)),
        (High, "iterable", (3, 8)),
        (Managed, "resident", (2, 8)),
        (Managed, "iterable", (2, 8)),
    ],
)
@pytest.mark.some(3)
def test_every_number_of_fused_steps_gives_the_same_bits(level, place, ks, monkeypatch):
    if place == "stacked":
        monkeypatch.setattr(execution, "RESIDENT_BYTES", 0)
    x, y = regression(45)
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 45, 8)]
    states, logs = [], []
    for k in ks:
        trainer = trainer_of(level)
        if place == "iterable":
            trainer.fit(batches, epochs=2, verbose=0, steps_per_execution=k)
        else:
            trainer.fit(x, y, batch_size=8, epochs=2, verbose=0, steps_per_execution=k)
        states.append(host(trainer.state))
        logs.append(trainer.history.history)
    for state, log in zip(states[1:], logs[1:], strict=True):
        assert_same_bits(state, states[0])
        assert log == logs[0]


def test_stacked_data_and_iterables_follow_the_bare_loop(monkeypatch):
    monkeypatch.setattr(execution, "RESIDENT_BYTES", 0)
    data = regression()
    stacked, start = fitted(High, "jit", 4, data)
    assert_close(stacked.state.params, bare_loop(start, *data)[0])
    one_by_one = trainer_of(High)
    batches = [(data[0][i : i + 8], data[1][i : i + 8]) for i in range(0, 22, 8)]
    one_by_one.fit(lambda: iter(batches), epochs=3, verbose=0)
    assert_close(one_by_one.state.params, bare_loop(start, *data, shuffle=False)[0])


@pytest.mark.parametrize("k", [1, 8])
def test_two_runs_give_the_same_bits_and_another_seed_gives_others(k):
    data = regression()
    runs = []
    for seed in (0, 0, 1):
        trainer = trainer_of(High, seed=seed)
        trainer.fit(*data, batch_size=8, epochs=2, verbose=0, steps_per_execution=k)
        runs.append(host(trainer.state))
    assert_same_bits(runs[0], runs[1])
    assert not np.array_equal(runs[0][2], runs[2][2])


def test_jax_arrays_and_lists_and_float64_train_as_float32_numpy_does():
    x, y = regression()
    expected = fitted(High, "jit", 8, (x, y))[0].state.params
    for data in ((jnp.asarray(x), jnp.asarray(y)), (x.tolist(), y.tolist()), (x.astype(np.float64), y)):
        trainer = trainer_of(High)
        trainer.fit(*data, batch_size=8, epochs=3, verbose=0, steps_per_execution=8)
        assert_same_bits(host(trainer.state.params), host(expected))


def test_the_users_arrays_are_read_when_the_fit_begins_and_never_written():
    x, y = regression()
    kept = x.copy(), y.copy()
    trainer, start = fitted(High, "jit", "auto", (x, y))
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(y, kept[1])
    x[:] = 0.0  # a placed copy may not share the memory
    trainer.fit(*kept, batch_size=8, epochs=1, verbose=0)
    assert_close(trainer.state.params, bare_loop(start, *kept, epochs=4)[0])


# class weights


def test_class_weights_are_multiplied_into_the_sample_weights():
    x, _ = regression()
    labels = (x[:, 0] > 0).astype(np.int32)
    w = weights()
    by_class = np.where(labels == 1, np.float32(2.5), np.float32(1.0))
    states = []
    for kwargs in (
        {"class_weight": {1: 2.5}, "sample_weight": w},
        {"sample_weight": w * by_class},
        {"class_weight": {1: 2.5}},
        {"sample_weight": by_class},
    ):
        trainer = eg.Trainer(High(), eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1))
        trainer.fit(x, labels, batch_size=8, epochs=2, verbose=0, **kwargs)
        states.append(host(trainer.state.params))
    assert_same_bits(states[0], states[1])
    assert_same_bits(states[2], states[3])
    assert not np.array_equal(states[1][1], states[3][1])


# one step at a time


@pytest.mark.parametrize("level", [High, Managed, Core])
@pytest.mark.parametrize("strategy", ["eager", "jit"])
def test_train_on_batch_steps_as_the_bare_loop(level, strategy):
    x, y = regression(24)
    trainer = trainer_of(level, strategy=strategy)
    trainer.init_on_batch(x[:8], y[:8])
    start = jax.tree.map(np.array, trainer.state.params)
    seen = [trainer.train_on_batch(x[i : i + 8], y[i : i + 8])["loss"] for i in (0, 8, 16)]
    params, losses, _ = bare_loop(start, x, y, epochs=1, shuffle=False)
    assert_close(trainer.state.params, params)
    np.testing.assert_allclose(seen[-1], losses[0], **CLOSE)
    assert trainer.step == 3
    before = host(trainer.state)
    tested = trainer.test_on_batch(x[:8], y[:8])["loss"]
    np.testing.assert_allclose(tested, np.mean(squares(params, x[:8], y[:8])), **CLOSE)
    outputs = trainer.predict_on_batch(x[:5])
    assert isinstance(outputs, np.ndarray)
    assert outputs.shape == (5, 2)
    assert_same_bits(before, host(trainer.state))
    assert trainer.step == 3


def test_on_batch_methods_take_a_tuple_that_is_a_batch():
    x, y = regression(8)
    w = weights(8)
    one, other = trainer_of(High), trainer_of(High)
    first, second = one.train_on_batch((x, y, w)), other.train_on_batch(x, y, sample_weight=w)
    assert dict(first) == dict(second)
    assert_same_bits(host(one.state), host(other.state))


def test_a_new_epoch_of_single_steps_begins_with_reset_step():
    x, y = regression(16)
    trainer = trainer_of(High)
    trainer.train_on_batch(x[:8], y[:8])
    trainer.state = trainer.state.reset_step()
    before = trainer.state.params
    loss = trainer.train_on_batch(x[8:], y[8:])["loss"]
    np.testing.assert_allclose(loss, np.mean(squares(before, x[8:], y[8:])), **CLOSE)


def test_init_on_batch_depends_on_the_seed_alone():
    x, y = regression(8)
    one, other, third = trainer_of(High), trainer_of(High), trainer_of(High, seed=7)
    for trainer in (one, other, third):
        trainer.init_on_batch(x, y)
    assert_same_bits(host(one.state), host(other.state))
    assert not np.array_equal(host(one.state.params)[1], host(third.state.params)[1])

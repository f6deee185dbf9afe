"""Buffers are donated, and nobody ever meets a deleted one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
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
    host,
    make_params,
    network,
    regression,
    squares,
    trainer_of,
)

import elegy as eg

X, Y = regression(22)
HOOKS = (
    "on_train_begin",
    "on_epoch_begin",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_epoch_end",
    "on_train_end",
)
FITS = pytest.mark.parametrize(("strategy", "k"), [("eager", 1), ("jit", 1), ("jit", 2)])


def fit(trainer, epochs=2, **kwargs):
    return trainer.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, **kwargs)


@pytest.mark.parametrize("level", [High, Managed, Core])
@FITS
def test_states_handed_out_at_any_moment_stay_readable_and_unchanged(level, strategy, k):
    kept = []

    def keep(event):
        kept.append((event.trainer.state, host(event.trainer.state)))

    trainer = trainer_of(level, strategy=strategy)
    trainer.init_on_batch(X[:8], Y[:8])
    keep(type("Event", (), {"trainer": trainer}))
    spies = [Spy(hook, keep, reads="logs") for hook in HOOKS]
    fit(trainer, callbacks=spies, steps_per_execution=k)
    assert len(kept) == 1 + 2 + 2 * 2 + 2 * 6
    kept.append((trainer.state, host(trainer.state)))
    fit(trainer, steps_per_execution=k)
    for state, values in kept:
        assert_same_bits(host(state), values)


def test_parts_of_a_state_stay_readable_too():
    trainer = trainer_of(High)
    fit(trainer)
    params = trainer.state.params
    values, momentum = host(params), trainer.state.optimizer.state
    fit(trainer)
    assert_same_bits(host(params), values)
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(momentum))


def test_a_state_that_was_assigned_while_predictions_were_read_stays_valid():
    trainer = trainer_of(High)
    fit(trainer)
    outputs = trainer.predict_iter(X, batch_size=4)
    mine = jax.tree.map(jnp.array, trainer.state)
    values = host(mine)
    fit(trainer)
    trainer.state = mine
    next(outputs)
    trainer.test_on_batch(X[:8], Y[:8])
    assert len(list(outputs)) > 1
    fit(trainer)
    assert_same_bits(host(mine), values)


@pytest.mark.parametrize("level", [High, Managed])
def test_a_run_that_hands_out_nothing_reuses_the_states_buffers(level):
    """The counterpart: without readers the old buffers are really given up."""
    trainer = trainer_of(level)
    trainer.init_on_batch(X[:8], Y[:8])
    fit(trainer)
    before = [leaf for leaf in trainer._session.buffer.peek() if leaf.size > 1]
    fit(trainer)
    assert any(leaf.is_deleted() for leaf in before)


@FITS
def test_the_users_own_arrays_stay_valid(strategy, k):
    class Ready(eg.ElegyModule):
        scale: Any = None

        def apply(self, key, inputs, training):
            return self.scale * network(self.params, inputs), self

    params, scale = make_params(jax.random.key(1)), jnp.float32(2.0)
    values = host((params, scale))
    module = Ready(params=params, scale=scale)
    trainer = eg.Trainer(module, eg.losses.MeanSquaredError(), optimizer=TX, strategy=strategy)
    fit(trainer, steps_per_execution=k)
    fit(trainer, steps_per_execution=k)
    assert_same_bits(host((params, scale)), values)
    assert_same_bits(host(module.params), values[:2])
    assert not np.array_equal(host(trainer.state.params)[1], values[1])


@FITS
def test_an_assigned_state_stays_valid_and_counts(strategy, k):
    trainer = trainer_of(High, strategy=strategy)
    fit(trainer, steps_per_execution=k)
    mine = trainer.state.replace(params=make_params(jax.random.key(3)))
    values = host(mine)
    trainer.state = mine
    assert trainer.state is mine
    fit(trainer, steps_per_execution=k)
    assert_same_bits(host(mine), values)
    again = trainer_of(High, strategy=strategy)
    fit(again, steps_per_execution=k)
    again.state = mine
    fit(again, steps_per_execution=k)
    assert_same_bits(host(again.state), host(trainer.state))


def test_a_state_that_a_callback_assigns_is_the_one_that_trains():
    def freeze(event):
        event.trainer.state = event.trainer.state.replace(
            params=jax.tree.map(jnp.zeros_like, event.trainer.state.params)
        )

    for k in (1, 2):
        trainer = trainer_of(High)
        fit(trainer, epochs=1, callbacks=[Spy("on_epoch_end", freeze)], steps_per_execution=k)
        assert all((leaf == 0).all() for leaf in host(trainer.state.params))
        fit(trainer, epochs=1, callbacks=[Spy("on_train_batch_begin", freeze)], steps_per_execution=1)
        assert any((leaf != 0).any() for leaf in host(trainer.state.params))


def test_an_assigned_state_of_another_structure_gets_programs_of_its_own():
    class Shifted(High):
        shifts: Any = eg.field(default_factory=lambda: jnp.zeros(1))

        def apply(self, key, inputs, training):
            return network(self.params, inputs) + jnp.sum(self.shifts), self

    for size in (1, 2, 5):
        trainer = trainer_of(Shifted)
        fit(trainer, validation_data=(X, Y))
        for _ in range(3):
            trainer.state = trainer.state.replace(shifts=jnp.ones(size))
            params = trainer.state.params
            expected = np.mean((np.array(network(params, X)) + size - Y) ** 2)
            value = trainer.evaluate(X, Y, batch_size=8, verbose=0)["loss"]
            np.testing.assert_allclose(value, expected, rtol=1e-5)
            trainer.train_on_batch(X[:8], Y[:8])
            size += 1


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_a_callback_cannot_train_the_trainer_that_is_being_fitted(method):
    class Nested(eg.Callback):
        def on_epoch_end(self, event):
            assert event.trainer.evaluate(X, Y, verbose=0)["loss"] >= 0
            assert event.trainer.predict(X).shape == Y.shape
            getattr(event.trainer, method)(X, Y)

    trainer = trainer_of(High)
    with pytest.raises(RuntimeError, match=rf"^{method} was called while fit.*runs"):
        fit(trainer, epochs=3, callbacks=[Nested()])
    assert (trainer.step, trainer.epoch) == (3, 1)
    getattr(trainer, method)(X, Y)  # after the run it may
    assert trainer.step == 4


@pytest.mark.parametrize("wrong", [None, {"params": 1}, High])
def test_only_a_module_can_be_assigned(wrong):
    trainer = trainer_of(High)
    fit(trainer)
    before = host(trainer.state)
    with pytest.raises(TypeError, match="the state must be an ElegyModule, not a"):
        trainer.state = wrong
    assert_same_bits(before, host(trainer.state))


# leaves that share a buffer


class Target(Managed):
    """A target network; `how` says when and how it is made of the other."""

    target: Any = None
    initial: Any = None
    how: str = eg.static_field(default="never")

    def managed_init_step(self, key, batch):
        params = make_params(key)
        return self.replace(params=params, target=params, initial=params)

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        x, y = batch
        wanted = y + 0.1 * network(self.target, x)
        loss, state = jnp.mean(squares(self.params, x, wanted)), self
        if self.how == "delayed":  # the target is what the parameters were
            state = state.replace(target=jax.lax.stop_gradient(self.params))
        elif self.how == "reset":
            state = state.replace(target=self.initial)
        elif self.how == "rotate":
            state = state.replace(target=self.initial, initial=self.target)
        return loss, state

    def reset_step(self):
        state = super().reset_step()
        return state.replace(target=self.initial) if self.how == "epoch" else state


def target_reference(how, steps, start):
    """The same by plain JAX: `steps` is a list of (epoch begins, x, y)."""
    params, target, initial = start, start, start
    state = TX.init(params)
    step = jax.jit(jax.value_and_grad(lambda p, t, x, y: jnp.mean(squares(p, x, y + 0.1 * network(t, x)))))
    for begins, x, y in steps:
        if begins and how == "epoch":
            target = initial
        _, grads = step(params, target, x, y)
        updates, state = TX.update(grads, state, params)
        before, params = params, optax.apply_updates(params, updates)
        if how == "delayed":
            target = before
        elif how == "reset":
            target = initial
        elif how == "rotate":
            target, initial = initial, target
    return params, target, initial


@pytest.mark.parametrize("how", ["never", "delayed", "reset", "rotate", "epoch"])
@FITS
@pytest.mark.some(6)
def test_leaves_that_share_a_buffer_are_separated(how, strategy, k):
    trainer = eg.Trainer(Target(how=how), optimizer=TX, strategy=strategy)
    trainer.init_on_batch(X[:8], Y[:8])
    start = jax.tree.map(np.array, trainer.state.params)
    history = [fit(trainer, epochs=2, shuffle=False, steps_per_execution=k) for _ in range(2)]
    steps = [(i == 0, X[i : i + 8], Y[i : i + 8]) for _ in range(4) for i in (0, 8, 16)]
    expected = target_reference(how, steps, start)
    state = trainer.state
    for ours, theirs in zip((state.params, state.target, state.initial), expected, strict=True):
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, atol=1e-6)  # float32 in another order
    assert all(len(h.history["loss"]) == 2 for h in history)


@FITS
def test_a_given_state_whose_leaves_share_a_buffer_trains(strategy, k):
    shared = make_params(jax.random.key(2))

    class Given(Target):
        def managed_init_step(self, key, batch):
            return self

    trainer = eg.Trainer(Given(params=shared, target=shared, initial=shared), optimizer=TX, strategy=strategy)
    fit(trainer, steps_per_execution=k)
    fit(trainer, steps_per_execution=k)
    assert_same_bits(host(trainer.state.target), host(shared))
    assert not np.array_equal(host(trainer.state.params)[1], host(shared)[1])


# strategies, and what a state is


def test_moving_to_another_strategy_keeps_every_value():
    trainer = trainer_of(High)
    fit(trainer)
    before = trainer.state
    values = host(before)
    trainer.set_strategy("eager")
    assert_same_bits(host(trainer.state), values)
    fit(trainer)
    moved = host(trainer.state)
    trainer.set_strategy("jit")
    assert_same_bits(host(trainer.state), moved)
    stayed = trainer_of(High)
    fit(stayed, epochs=4)
    fit(trainer)
    assert_same_bits(host(before), values)
    for a, b in zip(moved, host(stayed.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # eager and compiled float32 differ in rounding


def test_before_the_first_batch_the_state_is_the_module_itself():
    module = High()
    trainer = eg.Trainer(module)
    assert trainer.state is module
    assert trainer.state.params is None


def test_parameters_are_made_by_the_seed_of_the_trainer():
    params = []
    for _ in range(2):
        np.random.seed(len(params))  # global state must not matter
        trainer = trainer_of(High, seed=3)
        fit(trainer, epochs=1)
        params.append(host(trainer.state))
    assert_same_bits(*params)


def test_weak_types_and_numbers_in_a_state_become_arrays_of_one_dtype():
    class Counter(Managed):
        steps: Any = 0
        scale: Any = 1.5

        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            loss, state = super().managed_train_step(key, batch, batch_idx, epoch_idx)
            return loss * self.scale, state.replace(steps=self.steps + 1)

    for k in (1, 2):
        trainer = trainer_of(Counter)
        fit(trainer, steps_per_execution=k)
        fit(trainer, steps_per_execution=k)
        assert int(trainer.state.steps) == 12
        assert trainer.state.steps.dtype == jnp.int32
        assert not trainer.state.steps.weak_type


def test_save_and_restore_bring_back_every_bit(tmp_path):
    trainer = trainer_of(High)
    fit(trainer)
    trainer.save(tmp_path / "run")
    saved = host(trainer.state)
    fit(trainer)
    later, history = host(trainer.state), trainer.history.history
    trainer.restore(tmp_path / "run")
    assert_same_bits(host(trainer.state), saved)
    assert (trainer.step, trainer.epoch) == (6, 2)
    fit(trainer)
    assert_same_bits(host(trainer.state), later)
    assert trainer.history.history == history
    fresh = trainer_of(High)
    fresh.restore(tmp_path / "run")
    fit(fresh)
    assert_same_bits(host(fresh.state), later)
    assert (fresh.step, fresh.epoch) == (12, 4)

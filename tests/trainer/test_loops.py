"""The order of things in `fit`, `evaluate` and `predict`: which state runs, and when an epoch ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from boring_modules import Core, High, Managed, Spy, assert_same_bits, bare_loop, host, network, regression, trainer_of

import elegy as eg

X, Y = regression(22)
LEVELS = pytest.mark.parametrize(
    ("level", "strategy", "k"), [(High, "jit", 4), (High, "eager", 1), (Managed, "jit", 2), (Core, "jit", 1)]
)


def fit(trainer, **kwargs):
    return trainer.fit(X, Y, verbose=0, **{"batch_size": 8, **kwargs})


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

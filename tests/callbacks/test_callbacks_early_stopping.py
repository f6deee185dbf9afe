"""What EarlyStopping restores: the state that was validated, whole."""

from __future__ import annotations

import gc
import weakref

import flax.linen as nn
import numpy as np
import optax
import pytest
from boring_modules import assert_same_bits, host
from some_cases import some

import elegy as eg
from elegy.callbacks import Callback, EarlyStopping, LambdaCallback

rng = np.random.default_rng(0)
X = rng.normal(size=(40, 3)).astype(np.float32)
Y = rng.integers(0, 2, 40)  # noise: the validation soon gets worse
VALIDATION = (X[32:], Y[32:])


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, training: bool = False):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not training, momentum=0.5)(x))


class Averaged(eg.adapters.LinenModule):
    """Evaluates with an average of its parameters, which is a field of its own."""

    average: dict = eg.field(default=None)

    def init(self, key, inputs):
        module = super().init(key, inputs)
        return module.replace(average=module.params)

    def apply(self, key, inputs, training):
        if not training:
            return eg.adapters.LinenModule.apply(self.replace(params=self.average), key, inputs, False)[0], self
        outputs, module = super().apply(key, inputs, True)
        return outputs, module.replace(average=optax.incremental_update(module.params, module.average, 0.5))


class ScheduleFree(eg.adapters.LinenModule):
    """Evaluates with parameters that are computed from the optimizer's state."""

    def apply(self, key, inputs, training):
        if training:
            return super().apply(key, inputs, True)
        params = optax.contrib.schedule_free_eval_params(self.optimizer.state, self.params)
        return eg.adapters.LinenModule.apply(self.replace(params=params), key, inputs, False)[0], self


def fit(trainer, *callbacks):
    options = {"epochs": 30, "batch_size": 8, "validation_data": VALIDATION, "verbose": 0}
    trainer.fit(X[:32], Y[:32], callbacks=callbacks, **options)
    return trainer


def make(module=None, optimizer=None, **kwargs):
    return eg.Trainer(module or nn.Dense(2), eg.losses.CrossEntropy(), optimizer=optimizer or optax.adam(0.3), **kwargs)


def best_of(patience=4, **kwargs):
    return EarlyStopping("val_loss", patience=patience, restore_best_weights=True, **kwargs)


@pytest.mark.parametrize("strategy", some(["jit", "eager", "data_parallel"], 1))
@pytest.mark.parametrize(
    ("module", "optimizer"),
    [(Averaged(Net()), None), (ScheduleFree(nn.Dense(2)), optax.contrib.schedule_free_adamw(0.3, b1=0.9))],
    ids=["own field and batch statistics", "optimizer"],
)
def test_an_evaluation_afterwards_gives_the_best_value(module, optimizer, strategy):
    stop = best_of()
    trainer = fit(make(module, optimizer, strategy=strategy), stop)
    assert stop.best_epoch < stop.stopped_epoch
    assert stop.best == min(trainer.history.history["val_loss"])
    assert trainer.evaluate(*VALIDATION, verbose=0)["loss"] == pytest.approx(stop.best, rel=1e-6)


def test_the_state_is_that_of_the_best_epoch_but_for_counters_and_keys():
    states, stop = [], best_of()
    optimizer = optax.chain(optax.add_noise(0.1, 0.5, 0), optax.adam(optax.linear_schedule(0.3, 0.1, 100)))
    trainer = fit(
        make(optimizer=optimizer), stop, LambdaCallback(on_epoch_end=lambda event: states.append(event.trainer.state))
    )
    noise, (adam, schedule) = trainer.state.optimizer.state
    best = states[stop.best_epoch]
    best_adam, last = best.optimizer.state[1][0], states[-1]
    assert_same_bits(host((trainer.state.params, adam.mu, adam.nu)), host((best.params, best_adam.mu, best_adam.nu)))
    assert trainer.step == 4 * len(states) == adam.count == schedule.count == noise.count > best_adam.count
    assert_same_bits(host((trainer.state.key, noise.rng_key)), host((last.key, last.optimizer.state[0].rng_key)))
    assert_same_bits(host(trainer.state.losses_and_metrics), host(best.losses_and_metrics))


class EvaluatesElsewhere(Callback):
    """Evaluates on other data, in the middle of the epoch and after its validation."""

    def on_epoch_end(self, event):
        event.trainer.evaluate(X[:8], Y[:8], verbose=0)

    def on_train_batch_end(self, event):
        if event.batch == 1:
            event.trainer.evaluate(X[:8], Y[:8], verbose=0)


def test_other_evaluations_in_between_change_nothing():
    stop, plain = best_of(), best_of()
    trainer = fit(make(callbacks=[stop]), EvaluatesElsewhere())
    fit(make(), plain)
    assert (stop.best, stop.best_epoch) == (plain.best, plain.best_epoch)
    assert trainer.evaluate(*VALIDATION, verbose=0)["loss"] == pytest.approx(stop.best, rel=1e-6)


def test_no_state_is_kept_after_the_run():
    stop = best_of()
    trainer = fit(make(callbacks=[stop]))
    trainer.evaluate(*VALIDATION, verbose=0)
    state = weakref.ref(trainer.state)
    trainer.train_on_batch(X[:8], Y[:8])
    gc.collect()
    assert state() is None


def test_validations_still_fuse():
    assert eg.callbacks.CallbackList([best_of()]).longest_execution("test") == (None, ())

"""A step at the core level that calls the default one: what comes after it sees the updated parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy as eg

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = X @ np.float32([1, -2, 0.5, 0])
START = jnp.full(4, 0.1)
TX = optax.adam(0.05)


class Student(eg.ElegyModule):
    """Learns from the labels and from a teacher, the average of its parameters after each step."""

    error: eg.metrics.MeanAbsoluteError = eg.field(default_factory=eg.metrics.MeanAbsoluteError)
    teacher: jax.Array = eg.field(default=None)

    def managed_init_step(self, key, batch):
        return self.replace(params=START, teacher=START)

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        inputs, target = batch
        preds = inputs @ self.params
        module = self.log("error", self.error.batch_updates(target=target, preds=preds))
        return jnp.mean((preds - target) ** 2) + jnp.mean((preds - inputs @ self.teacher) ** 2), module

    @jax.jit
    def train_step(self, batch, batch_idx, epoch_idx):
        logs, module = super().train_step(batch, batch_idx, epoch_idx)
        return logs, module.replace(teacher=optax.incremental_update(module.params, module.teacher, 0.1))


def by_hand(epochs):
    def loss(params, teacher, inputs, target):
        preds = inputs @ params
        return jnp.mean((preds - target) ** 2) + jnp.mean((preds - inputs @ teacher) ** 2)

    params, teacher, state, values = START, START, TX.init(START), []
    for _ in range(epochs):
        for i in range(0, 60, 25):
            rows = X[i : i + 25], Y[i : i + 25]
            value, grads = jax.value_and_grad(loss)(params, teacher, *rows)
            updates, state = TX.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            teacher = optax.incremental_update(params, teacher, 0.1)
            values.append(float(value))
    means = np.average(np.reshape(values, (epochs, 3)), axis=1, weights=[25, 25, 10])
    return params, teacher, means


@pytest.mark.parametrize("strategy", ["jit", "eager", "sharded"])
def test_a_train_step_goes_on_after_the_default_one(strategy):
    trainer = eg.Trainer(Student(), optimizer=TX, strategy=strategy)
    history = trainer.fit(X, Y, batch_size=25, epochs=2, shuffle=False, verbose=0).history
    params, teacher, losses = by_hand(2)
    np.testing.assert_allclose(trainer.state.params, params, rtol=1e-5)
    np.testing.assert_allclose(trainer.state.teacher, teacher, rtol=1e-5)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    assert list(history) == ["loss", "error"]  # `jax.jit` sorts the names


def test_it_resumes_inside_of_an_epoch(tmp_path):
    def fit(**kwargs):
        trainer = eg.Trainer(Student(), optimizer=TX)
        trainer.fit(X, Y, batch_size=25, epochs=2, verbose=0, **kwargs)
        return trainer

    whole = fit()
    fit(max_steps=4, callbacks=[eg.callbacks.ModelCheckpoint(tmp_path, every=eg.Every(steps=1))])
    resumed = fit(resume=tmp_path)
    assert resumed.history.history == whole.history.history
    np.testing.assert_array_equal(resumed.state.teacher, whole.state.teacher)


class Linear(eg.ElegyModule):
    def init(self, key, inputs):
        return self.replace(params=START)

    def apply(self, key, inputs, training):
        return inputs @ self.params, self


class Evaluated(Linear):
    @jax.jit
    def test_step(self, batch, batch_idx):
        return super().test_step(batch, batch_idx)


def test_a_test_step_may_be_the_default_one():
    loss, metrics = eg.losses.MeanSquaredError(), eg.metrics.MeanAbsoluteError()
    own, plain = (eg.Trainer(module, loss, metrics, TX) for module in (Evaluated(), Linear()))
    assert own.evaluate(X, Y, batch_size=25, verbose=0) == pytest.approx(
        plain.evaluate(X, Y, batch_size=25, verbose=0), rel=1e-6
    )


class Grows(Student):
    spare: jax.Array | None = eg.field(default=None)

    def train_step(self, batch, batch_idx, epoch_idx):
        logs, module = super().train_step(batch, batch_idx, epoch_idx)
        return logs, module.replace(spare=jnp.zeros(2))


def test_other_changes_of_the_structure_are_still_named():
    with pytest.raises(
        eg.errors.StepError, match=r"Grows\.train_step changed the structure of the state: spare is new"
    ):
        eg.Trainer(Grows(), optimizer=TX).fit(X, Y, verbose=0)

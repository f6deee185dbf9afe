"""Steps under `jax.disable_jit()` run operation by operation on one device; several devices are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy as eg

RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 3)).astype(np.float32)
Y = X.argmax(1).astype(np.int32)


class Linear(eg.ElegyModule):
    """A linear model."""

    def init(self, key, inputs):
        return self.replace(params=jnp.eye(3))

    def apply(self, key, inputs, training):
        return inputs @ self.params, self


def trainer(**options):
    return eg.Trainer(Linear(), eg.losses.CrossEntropy(), eg.metrics.Accuracy(), optax.sgd(0.1), **options)


def values_of(**options):
    one = trainer(**options)
    history = one.fit(X, Y, batch_size=4, epochs=2, validation_split=0.3, verbose=0).history
    logs = one.evaluate(X, Y, batch_size=4, verbose=0)
    return history, logs, one.predict(X, batch_size=4), one.state.params


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=["plain", "accumulate"])
def test_a_run_has_the_values_of_a_compiled_one(options):
    expected = values_of(**options)
    with jax.disable_jit():
        found = values_of(**options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_steps_see_values_also_after_compiled_ones(monkeypatch):
    one = trainer()
    one.fit(X, Y, batch_size=4, verbose=0)
    one.train_on_batch(X, Y), one.test_on_batch(X, Y), one.predict_on_batch(X)
    seen = []

    def apply(self, key, inputs, training):
        seen.append(not isinstance(jnp.sum(inputs), jax.core.Tracer))
        return inputs @ self.params, self

    monkeypatch.setattr(Linear, "apply", apply)
    calls = [
        lambda: one.fit(X, Y, batch_size=4, verbose=0),
        lambda: one.train_on_batch(X, Y),
        lambda: one.test_on_batch(X, Y),
        lambda: one.predict_on_batch(X),
    ]
    for call in calls:
        seen.clear()
        with jax.disable_jit():
            call()
        assert True in seen
    assert one.step == 3 + 1 + 3 + 1


def test_predictions_under_way_end_with_the_same_values():
    one = trainer()
    one.fit(X, Y, batch_size=4, verbose=0)
    expected = list(one.predict_iter(X, batch_size=2))
    parts = one.predict_iter(X, batch_size=2)
    found = [next(parts)]
    with jax.disable_jit():
        found += list(parts)
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), rtol=1e-5)


@pytest.mark.parametrize("strategy", ["data_parallel", "fsdp"])
def test_several_devices_are_refused(strategy):
    one = trainer(strategy=strategy)
    calls = [one.fit, one.evaluate, one.predict, one.train_on_batch, one.test_on_batch, one.predict_on_batch]
    calls.append(one.init_on_batch)
    for call in calls:
        with jax.disable_jit(), pytest.raises(RuntimeError, match=r"disable_jit.*strategy=\"eager\""):
            call(X) if call in (one.predict, one.predict_on_batch) else call(X, Y)
    assert one.fit(X, Y, batch_size=4, verbose=0).epoch == [0]


def test_what_needs_a_compiled_step_says_why_there_is_none():
    with jax.disable_jit(), pytest.raises(ValueError, match=r"`jax\.disable_jit\(\)` is set"):
        trainer().cost(X, Y)

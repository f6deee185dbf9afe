"""`Trainer(averaging=...)` and `weights=`: averages of the parameters against Optax and loops by hand."""

from __future__ import annotations

import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import Core, High, Managed, assert_same_bits, network, regression, squares

import elegy as eg
from elegy.errors import CheckpointError
from elegy.losses import MeanSquaredError
from elegy.module.averaging import Average
from elegy.strategies import FSDP, DataParallel

X, Y = regression(16)


def make(averaging=None, cls=High, **kwargs):
    loss = MeanSquaredError() if cls is High else None
    return eg.Trainer(cls(), loss, optimizer=optax.sgd(0.1), averaging=averaging, **kwargs)


def train(trainer, steps):
    """The parameters after each of the steps."""
    seen = []
    for _ in range(steps):
        trainer.train_on_batch(X, Y)
        seen.append(jax.tree.map(np.array, trainer.state.params))
    return seen


def averaged(trainer):
    return trainer.state.averaged_params.params(trainer.state.params)


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)


STRATEGIES = {
    "jit": lambda: "jit",
    "data_parallel": lambda: DataParallel(2),
    "fsdp": lambda: FSDP({"data": 2}, min_size=2),
}


@pytest.mark.parametrize(("cls", "strategy"), [(High, "jit"), (Managed, "data_parallel"), (High, "fsdp")])
def test_an_exponential_average_is_that_of_optax(cls, strategy):
    trainer = make(eg.EMA(0.8), cls, strategy=STRATEGIES[strategy]())
    tx = optax.ema(0.8, debias=True)
    state = None
    for params in train(trainer, 5):
        state = tx.init(params) if state is None else state
        expected, state = tx.update(params, state)
    assert_close(averaged(trainer), expected)


def test_an_exponential_average_from_some_step_at_an_interval():
    trainer = make(eg.EMA(0.8, start=2, every=eg.Every(steps=3)))
    tx = optax.ema(0.8, debias=True)
    seen = train(trainer, 9)
    state = tx.init(seen[0])
    for params in (seen[4], seen[7]):  # after steps 5 and 8
        expected, state = tx.update(params, state)
    assert_close(averaged(trainer), expected)


def test_stochastic_weight_averaging_is_the_mean_of_what_it_took():
    trainer = make(eg.SWA(start=3, every=2))
    seen = train(trainer, 3)
    assert_same_bits(averaged(trainer), trainer.state.params)  # nothing was taken yet
    seen += train(trainer, 5)
    assert_close(averaged(trainer), jax.tree.map(lambda *leaves: np.mean(leaves, 0), seen[4], seen[6]))


def test_what_is_trained_does_not_see_the_average():
    plain, other = make(), make(eg.EMA(0.5), accumulate=1)
    for trainer in (plain, other):
        trainer.fit(X, Y, epochs=3, batch_size=4, verbose=0)
    assert_same_bits(plain.state.params, other.state.params)
    assert plain.state.averaged_params is None


def test_a_step_that_is_left_out_is_not_averaged():
    trainer = make(eg.EMA(0.5), nonfinite="skip")
    train(trainer, 2)
    before = jax.tree.map(np.array, trainer.state.averaged_params)
    trainer.train_on_batch(np.full_like(X, np.nan), Y)
    assert_same_bits(trainer.state.averaged_params, before)


def test_an_average_of_parameters_in_16_bits_is_kept_in_32():
    trainer = make(eg.EMA(0.9), precision="bfloat16")
    seen = train(trainer, 3)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(trainer.state.averaged_params.value)} == {"float32"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(averaged(trainer))} == {"bfloat16"}
    assert seen[0]["w"].dtype == jnp.bfloat16


def test_a_run_is_resumed_with_its_average_to_the_same_bits(tmp_path):
    whole, first, second = (make(eg.EMA(0.9, start=2)) for _ in range(3))
    options = {"batch_size": 4, "verbose": 0, "epochs": 2}
    whole.fit(X, Y, **options)
    first.fit(X, Y, **options, max_steps=5)
    first.save(tmp_path / "run")
    second.fit(X, Y, **options, resume=tmp_path / "run")
    assert_same_bits(second.state.averaged_params, whole.state.averaged_params)
    assert int(whole.state.averaged_params.count) == 6


def halves(state):
    return jax.tree.map(lambda leaf: leaf / 2, state.params)


@pytest.mark.parametrize("strategy", ["jit", "data_parallel"])
def test_evaluation_prediction_and_validation_use_the_given_weights(strategy):
    trainer = make(eg.EMA(0.8), strategy=STRATEGIES[strategy]())
    sets = {"first": (X, Y), "second": eg.Evaluation((X, Y), weights="trained")}
    options = {"validation_data": sets, "validation_weights": "averaged", "verbose": 0}
    history = trainer.fit(X, Y, epochs=2, batch_size=4, **options).history
    before = jax.tree.map(np.array, trainer.state.params)
    for weights, params in (("averaged", averaged(trainer)), (halves, halves(trainer.state)), ("trained", before)):
        loss = trainer.evaluate(X, Y, weights=weights, verbose=0)["loss"]
        np.testing.assert_allclose(loss, jnp.mean(squares(params, X, Y)), rtol=1e-5)
        np.testing.assert_allclose(trainer.predict(X, weights=weights), network(params, X), rtol=1e-5, atol=1e-6)
        (first, *_) = trainer.predict_iter(X, batch_size=8, weights=weights)
        np.testing.assert_allclose(first, network(params, X[:8]), rtol=1e-5, atol=1e-6)
    for name, params in (("first", averaged(trainer)), ("second", before)):
        np.testing.assert_allclose(history[f"val_{name}_loss"][-1], jnp.mean(squares(params, X, Y)), rtol=1e-5)
    assert_same_bits(trainer.state.params, before)


def test_a_validation_split_uses_the_averaged_weights():
    trainer = make(eg.EMA(0.8))
    options = {"validation_split": 0.5, "validation_weights": "averaged", "verbose": 0}
    history = trainer.fit(X, Y, epochs=2, batch_size=4, **options).history
    np.testing.assert_allclose(history["val_loss"][-1], jnp.mean(squares(averaged(trainer), X[8:], Y[8:])), rtol=1e-5)


def test_averaged_weights_are_written_alone(tmp_path):
    trainer, other = make(eg.EMA(0.8), precision="mixed_float16"), make()
    train(trainer, 3)
    trainer.save_weights(tmp_path / "weights", weights="averaged")
    other.init_on_batch(X, Y)
    other.load_weights(tmp_path / "weights")  # neither an average nor a loss scale is among them
    assert_close(other.state.params, averaged(trainer))
    trainer.export(tmp_path / "exported", X, weights="averaged")
    function = jax.export.deserialize(bytearray((tmp_path / "exported" / "pred_step.jax_export").read_bytes()))
    np.testing.assert_allclose(function.call(X), trainer.predict(X, weights="averaged"), rtol=1e-3, atol=1e-3)
    assert json.loads((tmp_path / "exported" / "export.json").read_text())["module"] == "High"


def test_a_function_of_the_state_serves_schedule_free_optimizers():
    tx = optax.contrib.schedule_free_sgd(0.1)
    trainer = eg.Trainer(High(), MeanSquaredError(), optimizer=tx)
    train(trainer, 4)

    def weights(state):
        return optax.contrib.schedule_free_eval_params(state.optimizer.state, state.params)

    expected = jnp.mean(squares(weights(trainer.state), X, Y))
    np.testing.assert_allclose(trainer.evaluate(X, Y, weights=weights, verbose=0)["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: make(0.9), TypeError, r"averaging must be an elegy.EMA, .* not 0.9"),
        (lambda: eg.EMA(1.0), ValueError, "decay of EMA must be a number between 0 and 1, not 1.0"),
        (lambda: eg.SWA(start=-1), ValueError, "start of SWA must not be negative: -1"),
        (lambda: eg.SWA(start=0.5), TypeError, "start of SWA must be a number of steps, not 0.5"),
        (lambda: eg.SWA(every=0), ValueError, "every of SWA must be a positive integer, not 0"),
        (lambda: eg.EMA(0.9, every=eg.Every(epochs=1)), ValueError, "EMA counts steps"),
        (lambda: make().evaluate(X, Y, weights="averaged"), ValueError, "'averaged', but the state has no average"),
        (lambda: make(eg.SWA(), Core).fit(X, Y), eg.errors.StepError, "Core.train_step updates them itself"),
        (lambda: make().predict(X, weights="best"), ValueError, "must be 'trained', 'averaged', or a function"),
        (lambda: make().fit(X, Y, validation_weights="averaged"), ValueError, "there is no validation data"),
        (
            lambda: make().fit(X, Y, validation_data=(X, Y), validation_weights="averaged"),
            ValueError,
            "validation_weights='averaged', but the state has no average",
        ),
        (
            lambda: make().evaluate(X, Y, verbose=0, weights=lambda s: s.params["w"]),
            ValueError,
            "must return parameters",
        ),
    ],
)
def test_what_cannot_be_averaged_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_fields_of_these_names_are_the_users_own():
    """A module with fields that other parts of this package use as words trains as ever."""

    class Own(eg.ElegyModule):
        average: jax.Array | None = eg.field(default=None)
        loss_scale: jax.Array | None = eg.field(default=None)

        def managed_init_step(self, key, batch):
            return self.replace(params=jnp.ones(()), average=jnp.zeros(()), loss_scale=jnp.full((), 3.0))

        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            average = 0.5 * self.average + self.params
            return jnp.mean((self.params - 2.0) ** 2), self.replace(average=average)

    trainer = eg.Trainer(Own(), optimizer=optax.sgd(0.25), averaging=eg.EMA(0.5))
    trainer.fit(np.zeros(8, np.float32), batch_size=4, verbose=0)
    assert (float(trainer.state.params), float(trainer.state.average)) == (1.75, 2.0)
    assert float(trainer.state.loss_scale) == 3.0


@pytest.mark.parametrize("rule", [eg.EMA(0.9), eg.SWA()])
def test_an_average_of_another_rule_starts_anew(tmp_path, rule):
    saved, other = make(averaging=eg.EMA(0.999)), make(averaging=rule)
    train(saved, 4)
    saved.save(tmp_path / "one")
    train(other, 2)
    with pytest.warns(UserWarning, match="the average starts anew"):
        other.restore(tmp_path / "one")
    assert_same_bits(other.predict(X, weights="averaged"), saved.predict(X))
    same = make(averaging=eg.EMA(0.999))
    train(same, 2)
    same.restore(tmp_path / "one")
    assert_same_bits(same.predict(X, weights="averaged"), saved.predict(X, weights="averaged"))


def test_an_average_of_long_memory_is_the_parameters_after_one_step():
    for decay in (0.9999, 0.999999):
        average = Average(eg.EMA(decay)).begin({"w": jnp.ones(3)}).update({"w": jnp.array([1.0, 2.0, 3.0])})
        np.testing.assert_allclose(average.params({"w": jnp.zeros(3)})["w"], [1, 2, 3], rtol=1e-6)


def test_the_average_of_16_bit_parameters_is_float32():
    average = Average(eg.EMA(0.999)).begin({"w": jnp.ones(3, jnp.bfloat16)})
    for _ in range(1000):
        average = average.update({"w": jnp.full(3, 1.25, jnp.bfloat16)})
    assert average.value["w"].dtype == jnp.float32
    assert average.params({"w": jnp.zeros(3, jnp.bfloat16)})["w"].tolist() == [1.25] * 3


def test_weights_from_elsewhere_begin_the_average_anew():
    trainer = make(averaging=eg.EMA(0.9))
    train(trainer, 3)
    trainer.load_weights({"params": jax.tree.map(jnp.zeros_like, trainer.state.params)})
    assert_same_bits(trainer.predict(X, weights="averaged"), trainer.predict(X))


@pytest.mark.parametrize(
    ("before", "now", "what", "how"),
    [
        (None, eg.EMA(0.9), "has no average of the parameters", "without `averaging`, or"),
        (eg.SWA(start=2), None, r"has an average of the parameters by SWA\(start=2", r"`averaging=elegy.SWA\(start=2"),
    ],
)
def test_a_checkpoint_with_or_without_an_average_is_told_from_the_other_kind(tmp_path, before, now, what, how):
    saved, path = make(before), tmp_path / "step_00000003"
    train(saved, 3)
    saved.save(path)
    for use in (lambda one: one.restore(path), lambda one: one.fit(X, Y, resume=path, epochs=9, verbose=0)):
        other = make(now)
        other.init_on_batch(X, Y)
        with pytest.raises(CheckpointError, match=what) as error:
            use(other)
        assert re.search(how, str(error.value))
        assert "\n" not in str(error.value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other.restore(path, strict=False)
    assert any("no average of the parameters" in str(one.message) for one in caught) == (now is not None)
    assert_same_bits(other.state.params, saved.state.params)
    if now is not None:
        assert int(other.state.averaged_params.count) == 0
        (params,) = train(other, 1)
        assert_close(averaged(other), params)  # with the bias correction, the average of one is that one

"""`evaluate` and `predict`: exact for every size, and the state stays what it was."""

from __future__ import annotations

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
    compilations,
    host,
    network,
    regression,
    trainer_of,
    weights,
)

import elegy as eg

X, Y = regression(50)
W = weights(50)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32, sums in another order than NumPy's


def ready(level=High, **kwargs):
    if level is High:
        kwargs = {"metrics": {"mae": eg.metrics.MeanAbsoluteError()}, **kwargs}
    trainer = trainer_of(level, **kwargs)
    trainer.fit(X[:8], Y[:8], batch_size=8, verbose=0)
    return trainer


def expected_of(trainer, size, w=None):
    params = jax.tree.map(np.array, trainer.state.params)
    w = np.ones(size, np.float32) if w is None else w[:size]
    outputs = np.tanh(X[:size] @ params["w"]) + params["b"]
    error = outputs - Y[:size]
    return {
        "loss": np.average(np.mean(error**2, -1), weights=w),
        "mae": np.average(np.mean(np.abs(error), -1), weights=w),
    }


def check(values, expected):
    for name in {"loss", "mae"} & values.keys():
        np.testing.assert_allclose(values[name], expected[name], **CLOSE)
    assert all(type(v) is float for v in values.values())


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_evaluate_is_exact_for_every_size(batch_size):
    trainer = ready()
    one_by_one = Spy("on_test_batch_end", lambda event: None)
    for size in range(1, 51):
        values = trainer.evaluate(X[:size], Y[:size], batch_size=batch_size, callbacks=[one_by_one], verbose=0)
        check(values, expected_of(trainer, size))


@pytest.mark.parametrize("weighted", [False, True])
def test_evaluate_is_exact_when_steps_are_fused(weighted):
    trainer, w = ready(), W if weighted else None
    for size in (2, 6, 7, 8, 29, 50):
        values = trainer.evaluate(
            X[:size], Y[:size], sample_weight=None if w is None else w[:size], batch_size=7, verbose=0
        )
        check(values, expected_of(trainer, size, w))


@pytest.mark.parametrize(("level", "strategy"), [(High, "eager"), (Managed, "eager"), (Managed, "jit"), (Core, "jit")])
def test_evaluate_is_exact_at_every_level(level, strategy):
    trainer = ready(level, strategy=strategy)
    for size, batch_size in ((1, None), (9, 4), (16, 8), (50, 16), (50, 500)):
        values = trainer.evaluate(X[:size], Y[:size], batch_size=batch_size, verbose=0)
        check(values, expected_of(trainer, size))


def test_the_default_batch_size_does_not_limit_the_data():
    x, y = regression(70)
    trainer = ready()
    outputs = network(trainer.state.params, x)
    value = trainer.evaluate(x, y, verbose=0)["loss"]
    np.testing.assert_allclose(value, np.mean((np.array(outputs) - y) ** 2), **CLOSE)


def test_evaluate_takes_iterables_of_uneven_batches_and_limits_steps():
    trainer = ready()
    cuts = [(0, 8), (8, 9), (9, 17), (17, 20)]
    batches = [(X[a:b], Y[a:b], W[a:b]) for a, b in cuts]
    check(trainer.evaluate(batches, verbose=0), expected_of(trainer, 20, W))
    check(trainer.evaluate(iter(batches), steps=2, verbose=0), expected_of(trainer, 9, W))
    check(trainer.evaluate(X, Y, batch_size=5, steps=4, verbose=0), expected_of(trainer, 20))


def test_evaluate_compiles_one_program_for_all_remainders():
    trainer = ready()
    one_by_one = Spy("on_test_batch_end", lambda event: None)
    compiled = []
    for size in (20, 17, 23, 9, 20, 17, 23, 9):
        with compilations() as names:
            trainer.evaluate(X[:size], Y[:size], batch_size=8, callbacks=[one_by_one], verbose=0)
        compiled.append(sum("step" in name for name in names))
    assert compiled == [1, 0, 0, 0, 0, 0, 0, 0]


def test_evaluate_alone_makes_the_first_state():
    one, other = trainer_of(High), trainer_of(High)
    value = one.evaluate(X, Y, batch_size=8, verbose=0)
    other.init_on_batch(X[:8], Y[:8])
    assert_same_bits(host(one.state.params), host(other.state.params))
    check(value, expected_of(other, 50))


# predict


class Nested(High):
    def apply(self, key, inputs, training):
        outputs, state = super().apply(key, inputs["x"], training)
        return {"a": outputs, "b": (inputs["n"], outputs[:, 0])}, state


@pytest.mark.parametrize(("level", "strategy"), [(High, "jit"), (High, "eager"), (Managed, "jit"), (Core, "eager")])
def test_predict_keeps_the_order_and_the_number_of_rows(level, strategy):
    trainer = ready(level, strategy=strategy)
    reference = np.array(network(trainer.state.params, X))
    for size, batch_size in ((1, None), (3, 8), (9, 4), (16, 8), (50, 16), (50, None)):
        outputs = trainer.predict(X[:size], batch_size=batch_size)
        assert isinstance(outputs, np.ndarray)
        assert outputs.shape == (size, 2)
        np.testing.assert_allclose(outputs, reference[:size], **CLOSE)


def test_predict_joins_trees_and_keeps_dtypes():
    inputs = {"x": X, "n": np.arange(50, dtype=np.int32)}
    trainer = eg.Trainer(Nested())
    outputs = trainer.predict(inputs, batch_size=16)
    np.testing.assert_array_equal(outputs["b"][0], inputs["n"])
    assert outputs["b"][0].dtype == np.int32
    np.testing.assert_allclose(outputs["a"], network(trainer.state.params, X), **CLOSE)
    np.testing.assert_array_equal(outputs["b"][1], outputs["a"][:, 0])


def test_predict_of_batches_uses_their_inputs():
    trainer = ready()
    reference = np.array(network(trainer.state.params, X))
    batches = [(X[:8], Y[:8]), (X[8:16], Y[8:16]), (X[16:19], Y[16:19])]
    np.testing.assert_allclose(trainer.predict(batches), reference[:19], **CLOSE)
    np.testing.assert_allclose(trainer.predict(iter(batches), steps=2), reference[:16], **CLOSE)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("good", range(1, 5))  # of none, the call itself raises
def test_predict_iter_yields_the_batches_before_an_error_of_the_data(good, prefetch):
    def source():
        for i in range(good):
            yield X[8 * i : 8 * i + 8]
        raise OSError("gone")

    trainer, seen = ready(), []
    outputs = trainer.predict_iter(source(), prefetch=prefetch)
    with pytest.raises(OSError, match="gone"):
        seen.extend(outputs)
    expected = [np.array(network(trainer.state.params, X[8 * i : 8 * i + 8])) for i in range(good)]
    np.testing.assert_allclose(np.array(seen), np.array(expected), **CLOSE)


def test_predict_iter_yields_batches_as_they_come():
    trainer = ready()
    pulled = []

    def source():
        for i in range(0, 24, 8):
            pulled.append(i)
            yield X[i : i + 8]

    outputs = trainer.predict_iter(source())
    assert len(next(outputs)) == 8
    assert len(pulled) < 3 + 1
    outputs.close()
    shapes = [out.shape for out in trainer.predict_iter(X[:20], batch_size=8)]
    assert shapes == [(8, 2), (8, 2), (4, 2)]


def test_outputs_without_rows_come_from_predict_iter_only():
    class Summing(High):
        def apply(self, key, inputs, training):
            return jnp.sum(inputs), self

    trainer = eg.Trainer(Summing())
    with pytest.raises(ValueError, match=r"output \(root\) cannot be joined.*predict_iter"):
        trainer.predict(X[:16], batch_size=8)
    sums = [float(v) for v in trainer.predict_iter(X[:20], batch_size=8)]
    np.testing.assert_allclose(sums, [X[:8].sum(), X[8:16].sum(), X[16:20].sum()], rtol=1e-4, atol=1e-5)


# the state stays


@pytest.mark.parametrize("level", [High, Managed, Core])
@pytest.mark.parametrize("strategy", ["jit", "eager"])
def test_evaluate_and_predict_leave_the_state_bit_identical(level, strategy):
    trainer = ready(level, strategy=strategy)
    before, step, epoch = host(trainer.state), trainer.step, trainer.epoch
    trainer.evaluate(X[:20], Y[:20], batch_size=8, verbose=0)
    trainer.predict(X[:20], batch_size=8)
    trainer.test_on_batch(X[:8], Y[:8])
    trainer.predict_on_batch(X[:8])
    assert_same_bits(before, host(trainer.state))
    assert (trainer.step, trainer.epoch) == (step, epoch)


@pytest.mark.parametrize(("level", "k"), [(High, 1), (High, 2), (Managed, 1), (Core, 1)])
def test_a_callback_that_evaluates_mid_epoch_changes_nothing(level, k):
    def visit(event):
        trainer = event.trainer
        before = host(trainer.state)
        values = trainer.evaluate(X[:20], Y[:20], batch_size=8, verbose=0)
        check(values, expected_of(trainer, 20))
        trainer.predict(X[:20], batch_size=8)
        trainer.test_on_batch(X[:8], Y[:8])
        assert_same_bits(before, host(trainer.state))

    runs = []
    for callbacks in (
        [Spy("on_train_batch_end", visit, reads="logs")],
        [Spy("on_train_batch_end", lambda e: None, reads="logs")],
    ):
        trainer = trainer_of(level)
        trainer.fit(X[:22], Y[:22], batch_size=8, epochs=2, verbose=0, steps_per_execution=k, callbacks=callbacks)
        runs.append((host(trainer.state), trainer.history.history))
    assert_same_bits(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_validation_changes_nothing_about_the_training():
    runs = []
    for validation in (None, (X[22:], Y[22:])):
        trainer = trainer_of(High)
        trainer.fit(X[:22], Y[:22], batch_size=8, epochs=3, verbose=0, validation_data=validation)
        runs.append((host(trainer.state), trainer.history.history["loss"]))
    assert_same_bits(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_fit_goes_on_after_evaluate_and_predict_as_if_they_had_not_been():
    runs = []
    for between in (True, False):
        trainer = trainer_of(High)
        for _ in range(2):
            trainer.fit(X[:22], Y[:22], batch_size=8, verbose=0)
            if between:
                trainer.evaluate(X, Y, batch_size=8, verbose=0)
                trainer.predict(X, batch_size=8)
        runs.append(host(trainer.state))
    assert_same_bits(*runs)


def test_randomness_of_a_test_step_is_that_of_the_state():
    class Noisy(High):
        def apply(self, key, inputs, training):
            outputs, state = super().apply(key, inputs, training)
            return outputs + jax.random.normal(key, outputs.shape), state

    trainer = eg.Trainer(Noisy(), eg.losses.MeanSquaredError(), optimizer=TX)
    first = trainer.predict(X[:20], batch_size=8)
    np.testing.assert_array_equal(first, trainer.predict(X[:20], batch_size=8))
    assert not np.allclose(
        first[:4] - network(trainer.state.params, X[:4]), first[8:12] - network(trainer.state.params, X[8:12])
    )


class LogsInApply(High):
    def apply(self, key, inputs, training):
        outputs, state = super().apply(key, inputs, training)
        return outputs, state.log("largest", jnp.max(outputs))


class LogsAroundSuper(High):
    def managed_test_step(self, key, batch, batch_idx):
        return super().managed_test_step(key, batch, batch_idx).log("rows", len(batch[0]))


class LogsNothing(High):
    def test_step(self, batch, batch_idx):
        return {}, self


@pytest.mark.parametrize(
    ("level", "names"), [(LogsInApply, ["largest"]), (LogsAroundSuper, ["rows"]), (LogsNothing, [])]
)
@pytest.mark.parametrize("strategy", ["jit", "eager"])
def test_without_loss_and_metrics_a_module_evaluates_what_it_logs_itself(level, names, strategy):
    trainer = trainer_of(level, loss=None, strategy=strategy)
    assert list(trainer.evaluate(X[:8], Y[:8], verbose=0)) == names


@pytest.mark.parametrize("strategy", ["jit", "eager"])
def test_without_labels_a_metric_of_the_outputs_is_enough(strategy):
    trainer = trainer_of(High, loss=None, metrics={"mean": lambda preds: jnp.mean(preds)}, strategy=strategy)
    assert list(trainer.evaluate(X, verbose=0)) == ["mean"]


@jax.tree_util.register_pytree_node_class
class Gaussian:
    """As a distribution of NumPyro: `shape` is a method, and the batch shape lies beside the arrays."""

    def __init__(self, mean, deviation):
        self.mean, self.deviation = mean, deviation
        self.batch_shape = jnp.broadcast_shapes(jnp.shape(mean), jnp.shape(deviation))

    def shape(self):
        return self.batch_shape

    def log_prob(self, x):
        return -0.5 * jnp.square((x - self.mean) / self.deviation) - jnp.log(self.deviation) - 0.5 * np.log(2 * np.pi)

    def tree_flatten(self):
        return (self.mean, self.deviation), self.batch_shape

    @classmethod
    def tree_unflatten(cls, batch_shape, children):
        made = object.__new__(cls)
        made.mean, made.deviation, made.batch_shape = *children, batch_shape
        return made


@pytest.mark.parametrize("strategy", ["jit", "data_parallel", "eager"])
@pytest.mark.parametrize("rows", [16, 48, 50])
@pytest.mark.some(4)
def test_outputs_may_be_distributions(strategy, rows):
    params = {"w": jnp.linspace(-1.0, 1.0, X.shape[1])}
    network = (lambda key, x: params), (lambda params, x: Gaussian(x @ params["w"], jnp.full((1,), 2.0)))
    target = Y[:, 0]
    trainer = eg.Trainer(
        network,
        loss=lambda target, preds: -preds.log_prob(target),
        metrics={"mae": lambda target, preds: abs(target - preds.mean)},
        optimizer=TX,
        strategy=strategy,
    )
    trainer.fit(X, target, batch_size=16, epochs=1, verbose=0)
    found = trainer.predict(X[:rows], batch_size=16)
    w = np.asarray(trainer.state.params["w"])
    np.testing.assert_allclose(found.mean, X[:rows] @ w, **CLOSE)
    assert found.shape() == (rows,)
    assert found.deviation.shape == (1,)
    assert [one.shape() for one in trainer.predict_iter(X[:24], batch_size=16)] == [(16,), (8,)]
    assert trainer.predict_on_batch(X[:16]).shape() == (16,)
    values = trainer.evaluate(X[:rows], target[:rows], batch_size=16, verbose=0)
    error = target[:rows] - X[:rows] @ w
    np.testing.assert_allclose(values["loss"], np.mean(error**2) / 8 + np.log(2 * np.sqrt(2 * np.pi)), **CLOSE)
    np.testing.assert_allclose(values["mae"], np.mean(np.abs(error)), **CLOSE)


@jax.tree_util.register_pytree_node_class
class Strict:
    """A class that is made of arrays only: its flattening and unflattening run what `__init__` checks."""

    def __init__(self, mean):
        self.mean = jnp.asarray(mean)
        assert self.mean.ndim == 1

    def tree_flatten(self):
        return (self.mean,), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


class Opaque:
    """An object that JAX knows nothing of, which a compiled step may make and use."""

    def __init__(self, mean):
        self.mean = mean

    def shape(self):
        return self.mean.shape


@pytest.mark.parametrize("strategy", ["eager"])
@pytest.mark.parametrize("cls", [Strict, Opaque])
def test_outputs_may_be_objects(cls, strategy):
    w = jnp.linspace(-1.0, 1.0, X.shape[1])
    network = (lambda key, x: w, lambda params, x: cls(x @ params))
    trainer = eg.Trainer(
        network, lambda target, preds: abs(target - preds.mean), optimizer=optax.sgd(0.0), strategy=strategy
    )
    options = {"sample_weight": W, "batch_size": 16, "verbose": 0}
    trainer.fit(X, Y[:, 0], **options)
    expected = np.average(np.abs(Y[:, 0] - X @ w), weights=W)
    np.testing.assert_allclose(trainer.evaluate(X, Y[:, 0], **options)["loss"], expected, **CLOSE)
    if cls is Strict:
        np.testing.assert_allclose(trainer.predict(X, batch_size=16).mean, X @ w, **CLOSE)
        assert len(trainer.predict_on_batch(X[:7]).mean) == 7
    elif strategy == "jit":
        with pytest.raises(TypeError, match=r"the output \(root\) is an Opaque, which a compiled step cannot return"):
            trainer.predict(X, batch_size=16)


class Prototypes(High):
    def apply(self, key, inputs, training):
        return {"near": jnp.sum(inputs, 1), "prototypes": jnp.ones((16, 3))}, self


@pytest.mark.parametrize(("rows", "size"), [(20, 8), (40, 16), (32, 8), (24, 8)])
def test_outputs_whose_rows_are_not_those_of_the_examples_are_not_joined(rows, size):
    trainer = eg.Trainer(Prototypes())
    x = np.ones((rows, 3), np.float32)
    with pytest.raises(ValueError, match=r"output prototypes cannot be joined.*\(16, 3\)"):
        trainer.predict(x, batch_size=size)
    assert trainer.predict(x, batch_size=rows)["prototypes"].shape == (16, 3)


@pytest.mark.parametrize("many", [lambda x: jnp.concatenate([x, -x], 1).reshape(-1, 3), lambda x: x[::2]])
def test_outputs_with_a_number_of_rows_for_each_example_are_joined(many):
    class Rows(High):
        def apply(self, key, inputs, training):
            return many(inputs), self

    x = np.arange(60, dtype=np.float32).reshape(20, 3)
    np.testing.assert_array_equal(eg.Trainer(Rows()).predict(x, batch_size=8), many(x))


def test_a_step_of_the_core_level_returns_as_many_rows_as_it_likes():
    class Found(eg.ElegyModule):
        def init_step(self, key, batch):
            return self

        def pred_step(self, batch, batch_idx):
            return batch[batch > 0], self

    x = np.random.default_rng(0).normal(size=20).astype(np.float32)
    np.testing.assert_array_equal(eg.Trainer(Found()).predict(x, batch_size=8), x[x > 0])

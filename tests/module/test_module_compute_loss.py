"""`self.compute_loss(...)` in managed steps: means over tokens, against a bare loop, at every strategy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import STRATEGIES
from some_cases import some

import elegy as eg

ROWS, TOKENS, FEATURES, CLASSES = 22, 5, 4, 3
BATCH, EPOCHS = 8, 2  # the last batch of an epoch has six rows, which four devices cannot share
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, TOKENS, FEATURES)).astype(np.float32)
Y = RNG.integers(0, CLASSES, (ROWS, TOKENS))
MASK = np.arange(TOKENS) < RNG.integers(0, TOKENS + 1, ROWS)[:, None]  # some rows have no token
START = {"w": RNG.normal(size=(FEATURES, CLASSES)).astype(np.float32)}
CLOSE = {"rtol": 2e-5, "atol": 1e-6}  # float32, sums in another order than the reference's


class Tagger(eg.ElegyModule):
    def managed_init_step(self, key, batch):
        return self.replace(params=jax.tree.map(jnp.asarray, START))

    def of_batch(self, batch):
        x, labels, mask = batch
        return self.compute_loss(preds=x @ self.params["w"], target=labels, sample_weight=mask)

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return self.of_batch(batch)

    def managed_test_step(self, key, batch, batch_idx):
        return self.of_batch(batch)[1]


class Root(Tagger):
    """Needs the loss of the whole batch on every replica and in every microbatch."""

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        loss, module = self.add_loss("size", jnp.sum(self.params["w"] ** 2)).of_batch(batch)
        return jnp.sqrt(loss), module


class Twice(Tagger):
    """Two losses, of which the second has other weights and takes the module of the first."""

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        x, labels, mask = batch
        first, module = self.of_batch(batch)
        second, module = module.compute_loss(preds=2 * x @ self.params["w"], target=labels, sample_weight=1 + mask)
        return first + 0.5 * second, module


class Default(Tagger):
    """The same by the default steps."""

    def apply(self, key, inputs, training):
        return inputs @ self.params["w"], self

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return eg.ElegyModule.managed_train_step(self, key, batch, batch_idx, epoch_idx)

    def managed_test_step(self, key, batch, batch_idx):
        return eg.ElegyModule.managed_test_step(self, key, batch, batch_idx)


def mean(params, x, y, weight, factor=1.0):
    values = optax.softmax_cross_entropy_with_integer_labels(factor * x @ params["w"], y)
    return (values * weight).sum() / weight.sum()


def square(params):
    return jnp.sum(params["w"] ** 2)


OBJECTIVES = {
    Tagger: lambda params, x, y, mask: mean(params, x, y, mask) + 0.1 * square(params),
    Root: lambda params, x, y, mask: jnp.sqrt(mean(params, x, y, mask) + 1.1 * square(params)),
    Twice: lambda params, x, y, mask: (
        mean(params, x, y, mask) + 0.5 * mean(params, x, y, 1 + mask, 2.0) + 0.15 * square(params)
    ),
}


def bare(cls):
    """The parameters after each step."""
    step = jax.jit(lambda params, *batch: jax.grad(OBJECTIVES[cls])(params, *batch))
    params, after = START, []
    for _ in range(EPOCHS):
        for start in range(0, ROWS, BATCH):
            grads = step(params, *(a[start : start + BATCH] for a in (X, Y, MASK)))
            params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
            after.append(params)
    return after


def make(cls, strategy="jit", **kwargs):
    kwargs = {"loss": [eg.losses.CrossEntropy(), eg.regularizers.L2(0.1)], "metrics": eg.metrics.Accuracy()} | kwargs
    return eg.Trainer(cls(), optimizer=optax.sgd(0.3), strategy=STRATEGIES[strategy](), **kwargs)


def fit(trainer):
    return trainer.fit(X, Y, sample_weight=MASK, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0).history


CASES = [(cls, name, k) for cls in OBJECTIVES for name in STRATEGIES for k in (1, 3)]


@pytest.mark.parametrize(("cls", "strategy", "accumulate"), some(CASES, 9))
def test_the_parameters_are_those_of_the_mean_over_all_tokens(cls, strategy, accumulate):
    trainer = make(cls, strategy, accumulate=accumulate)
    fit(trainer)
    np.testing.assert_allclose(trainer.state.params["w"], bare(cls)[-1]["w"], **CLOSE)


@pytest.mark.parametrize(("strategy", "accumulate"), [("jit", 1), ("jit", 3), ("data_parallel_4", 1), ("fsdp", 2)])
def test_the_values_of_an_epoch_are_means_over_its_tokens(strategy, accumulate):
    trainer = make(Tagger, strategy, accumulate=accumulate)
    history = fit(trainer)
    assert list(history) == ["loss", "cross_entropy", "l2", "accuracy"]
    before = [START, *bare(Tagger)][-1 - -(-ROWS // BATCH) : -1]  # the parameters of each step of the last epoch
    total = right = 0.0
    for params, start in zip(before, range(0, ROWS, BATCH), strict=True):
        x, y, mask = (a[start : start + BATCH] for a in (X, Y, MASK))
        total += float(mean(params, x, y, mask)) * mask.sum()
        right += (np.argmax(x @ params["w"], -1) == y)[mask].sum()
    np.testing.assert_allclose(history["cross_entropy"][-1], total / MASK.sum(), **CLOSE)
    np.testing.assert_allclose(history["accuracy"][-1], right / MASK.sum(), rtol=1e-6)
    values = trainer.evaluate(X, Y, sample_weight=MASK, batch_size=BATCH, verbose=0)
    params = trainer.state.params
    np.testing.assert_allclose(values["cross_entropy"], mean(params, X, Y, MASK), **CLOSE)
    np.testing.assert_allclose(values["l2"], 0.1 * square(params), **CLOSE)
    np.testing.assert_allclose(values["loss"], values["cross_entropy"] + values["l2"], rtol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_it_computes_what_the_default_step_computes_from_the_same_outputs(precision):
    own, default = (make(cls, "data_parallel", precision=precision, accumulate=2) for cls in (Tagger, Default))
    # The regularizer of a step of one's own gets the parameters of the computation, which are rounded.
    close = CLOSE if precision == "float32" else {"rtol": 2e-2, "atol": 2e-3}
    histories = fit(own), fit(default)
    assert list(histories[0]) == list(histories[1])
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], **close)
    assert own.state.params["w"].dtype == jnp.float32
    np.testing.assert_allclose(own.state.params["w"], default.state.params["w"], **close)


def test_it_works_in_a_step_outside_of_a_trainer():
    trainer = make(Tagger)
    trainer.init_on_batch(X, Y)
    state = trainer.state

    @jax.jit
    def loss(params):
        return state.set_params(params).managed_train_step(state.key, (X, Y, MASK), 0, 0)[0]

    value, grads = jax.value_and_grad(loss)(state.params)
    expected, expected_grads = jax.value_and_grad(OBJECTIVES[Tagger])(state.params, X, Y, MASK)
    np.testing.assert_allclose(value, expected, **CLOSE)
    np.testing.assert_allclose(grads["w"], expected_grads["w"], **CLOSE)
    logs, _ = state.train_step((X, Y, MASK), 0, 0)
    np.testing.assert_allclose(logs["loss"], expected, **CLOSE)


def test_losses_get_further_arguments_by_name():
    class Reads(eg.losses.Loss):
        def call(self, inputs, preds, temperature):
            return jnp.mean((preds - temperature * inputs) ** 2, axis=-1)

    class Module(eg.ElegyModule):
        def managed_init_step(self, key, batch):
            return self.replace(params=jnp.ones(()))

        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            return self.compute_loss(preds=self.params * batch, inputs=batch, temperature=3.0)

    trainer = eg.Trainer(Module(), Reads(), optimizer=optax.sgd(0.0))
    history = trainer.fit(X[:, 0], batch_size=BATCH, verbose=0).history
    np.testing.assert_allclose(history["loss"], [np.mean((2 * X[:, 0]) ** 2)], **CLOSE)


def test_a_trainer_without_a_loss_is_an_error():
    with pytest.raises(eg.errors.StepError, match=r"Tagger has no loss to train with: pass one, `Trainer\(module, lo"):
        fit(make(Tagger, loss=None))


def test_the_module_that_it_returned_has_to_be_returned_with_accumulate():
    class Forgets(Tagger):
        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            return self.of_batch(batch)[0], self

    with pytest.raises(eg.errors.StepError, match="calls the default step or `compute_loss`"):
        fit(make(Forgets, accumulate=2))

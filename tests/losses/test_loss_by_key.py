"""Losses and metrics in a dict over outputs in a dict: each receives the output, label and weight of its key."""

from __future__ import annotations

from collections import namedtuple
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import host
from some_cases import some

import elegy as eg
from elegy.losses import CrossEntropy, MeanAbsoluteError, MeanSquaredError
from elegy.losses.by_key import given_by_key, indexed_arguments
from elegy.metrics import LossesAndMetrics

RNG = np.random.default_rng(0)
N = 22
X, A = RNG.normal(size=(N, 3)).astype("f4"), RNG.normal(size=(N, 2)).astype("f4")
B, W = RNG.integers(0, 4, N), RNG.uniform(0.5, 2, N).astype("f4")
Heads = namedtuple("Heads", ["a", "b"])
CLOSE = {"rtol": 2e-5, "atol": 1e-6}  # float32, sums in another order than the reference's


class TwoHeads(eg.ElegyModule):
    kind: Any = eg.static_field(default=dict)

    def init(self, key, inputs):
        return self.replace(params={"a": jnp.ones((3, 2)) / 3, "b": jnp.linspace(-1, 1, 12).reshape(3, 4)})

    def apply(self, key, inputs, training):
        return self.kind(a=inputs @ self.params["a"], b=inputs @ self.params["b"]), self


def reference(params, x, a, b, weight_a, weight_b):
    loss_a = jnp.sum(weight_a * ((x @ params["a"] - a) ** 2).mean(-1)) / jnp.sum(weight_a)
    loss_b = optax.softmax_cross_entropy_with_integer_labels(x @ params["b"], b)
    return loss_a, jnp.sum(weight_b * loss_b) / jnp.sum(weight_b)


def bare(weight_a, weight_b, epochs=2, size=8):
    params = TwoHeads().init(None, X).params
    for _ in range(epochs):
        for i in range(0, N, size):
            rows = slice(i, i + size)
            part = [leaf[rows] for leaf in (X, A, B, weight_a, weight_b)]
            grads = jax.grad(lambda p, part=part: sum(reference(p, *part)))(params)
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    return params


LOSSES = {"a": MeanSquaredError(), "b": CrossEntropy()}
ONES = np.ones(N, "f4")


OF_A, BOTH = ({"a": W}, (W, ONES)), ({"a": W, "b": W[::-1]}, (W, W[::-1]))
RUNS = [
    (dict, "jit", None, (ONES, ONES)),
    (dict, "jit", W, (W, W)),
    (dict, "jit", *OF_A),
    pytest.param(dict, "eager", *OF_A, marks=pytest.mark.slow),
    (dict, "data_parallel", *BOTH),
    (Heads, "jit", *BOTH),
]


@pytest.mark.parametrize(("kind", "strategy", "weight", "weights"), some(RUNS, 3))
def test_a_trainer_follows_the_bare_loop(kind, strategy, weight, weights):
    trainer = eg.Trainer(TwoHeads(kind=kind), LOSSES, {"b": eg.metrics.Accuracy()}, optax.sgd(0.1), strategy=strategy)
    labels = {"a": A, "b": B}
    history = trainer.fit(X, labels, sample_weight=weight, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert list(history.history) == ["loss", "a_loss", "b_loss", "b_accuracy"]
    params = bare(*weights)
    for ours, theirs in zip(host(trainer.state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)
    logs = trainer.evaluate(X, labels, sample_weight=weight, batch_size=8, verbose=0)
    loss_a, loss_b = reference(params, X, A, B, *weights)
    right = (np.argmax(X @ np.asarray(params["b"]), -1) == B) * weights[1]
    expected = {
        "loss": loss_a + loss_b,
        "a_loss": loss_a,
        "b_loss": loss_b,
        "b_accuracy": right.sum() / weights[1].sum(),
    }
    assert list(logs) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("first", ["predict", "train_on_batch", "variables"])
def test_names_do_not_depend_on_what_is_called_first(first):
    module = TwoHeads()
    if first == "variables":
        module = module.init(None, X).replace(key=jax.random.key(0))
    trainer = eg.Trainer(module, LOSSES, optimizer=optax.sgd(0.1))
    if first == "predict":
        trainer.predict(X)
    elif first == "train_on_batch":
        assert list(trainer.train_on_batch(X, {"a": A, "b": B})) == ["loss", "a_loss", "b_loss"]
    assert list(trainer.evaluate(X, {"a": A, "b": B}, verbose=0)) == ["loss", "a_loss", "b_loss"]


def logs_of(losses, metrics=None, target=None, preds=None, **kwargs):
    state = LossesAndMetrics(losses, metrics)
    state = state.for_outputs(preds)
    logs = state.batch_updates(target=target, preds=preds, **kwargs).compute_logs()
    return {name: float(value) for name, value in logs.items() if name != "loss"}


ZERO, ONE, THREE = jnp.zeros(2), jnp.ones(2), jnp.full(2, 3.0)


@pytest.mark.parametrize("preds", [{"a": ONE, "b": THREE}, Heads(ONE, THREE)])
def test_losses_that_index_into_the_outputs_see_all_of_them_under_any_key(preds):
    losses = {"a": MeanSquaredError().index_into(target="b", preds="b"), "c": MeanAbsoluteError().index_into(preds="a")}
    target = {"a": ZERO, "b": ONE}
    assert logs_of(losses["a"], target=target, preds=preds) == {"mean_squared_error": 4.0}
    assert logs_of({"a": losses["a"]}, target=target, preds=preds) == {"a": 4.0}
    renamed = losses["a"].rename_arguments(target="labels")
    assert logs_of({"a": renamed}, labels=target, preds=preds) == {"a": 4.0}


def test_one_output_is_not_looked_into():
    assert logs_of({"a": MeanSquaredError()}, target=ZERO, preds=THREE) == {"a": 9.0}
    assert logs_of({"a": [MeanSquaredError()]}, target=ZERO, preds=THREE) == {"a/mean_squared_error": 9.0}


def test_under_another_key_a_function_sees_all_outputs():
    losses = {
        "a": MeanSquaredError(),
        "sum": lambda target, preds: preds["a"] + preds["b"],
        "l2": eg.regularizers.L2(1.0),
    }
    logs = logs_of(
        losses, target={"a": ZERO, "b": ZERO}, preds={"a": ONE, "b": THREE}, parameters={"w": jnp.array([2.0])}
    )
    assert logs == {"a_loss": 1.0, "sum": 4.0, "l2": 4.0}


def test_nested_keys_and_lists():
    preds, target = {"h": {"a": ONE}, "b": THREE}, {"h": {"a": ZERO}, "b": ZERO}
    losses = [{"h": {"a": MeanSquaredError()}, "b": [MeanSquaredError(), MeanAbsoluteError()]}]
    assert logs_of(losses, target=target, preds=preds) == {
        "h_a_loss": 1.0,
        "b_mean_squared_error": 9.0,
        "b_mean_absolute_error": 3.0,
    }


def test_metrics_are_named_after_output_and_metric():
    metrics = {"a": MeanAbsoluteError(), "b": [eg.metrics.MSE(), lambda target, preds: preds - target]}
    logs = logs_of(None, metrics, target={"a": ZERO, "b": ONE}, preds={"a": ONE, "b": THREE})
    assert logs == {"a_mean_absolute_error": 1.0, "b_mean_square_error": 4.0, "b_metric_fn": 2.0}


def test_weights_are_chosen_by_key_also_for_a_loss_that_indexes():
    weight = {"a": jnp.array([1.0, 0.0])}
    loss = MeanSquaredError().index_into(target="a", preds="a")
    preds = {"a": jnp.array([1.0, 5.0]), "b": THREE}
    assert logs_of({"a": loss}, target={"a": ZERO}, preds=preds, sample_weight=weight) == {"a": 1.0}
    metrics = {"b": eg.metrics.MSE(), "a": eg.metrics.MSE()}
    mask = jnp.array([False, True])
    logs = logs_of(None, metrics, target={"a": ZERO, "b": ONE}, preds=preds, sample_weight={"a": ONE}, mask=mask)
    assert logs["b_mean_square_error"] == 4.0


def test_a_dict_of_weights_for_one_loss_is_refused():
    for losses, metrics in ((MeanSquaredError(), None), (None, eg.metrics.MSE())):
        with pytest.raises(
            TypeError, match=r"needs one array of sample weights, but they are a dict: the only key is 'a'"
        ):
            logs_of(losses, metrics, target=ZERO, preds=ONE, sample_weight={"a": ONE})


def test_a_key_of_weights_that_nothing_has_is_refused():
    trainer = eg.Trainer(TwoHeads(), LOSSES, optimizer=optax.sgd(0.1))
    labels = {"a": A, "b": B}
    message = "sample_weight has 'c', but no output, loss or metric has this key: the keys are 'a' and 'b'"
    for call in (trainer.fit, trainer.evaluate):
        with pytest.raises(ValueError, match=message):
            call(X, labels, sample_weight={"a": W, "c": W}, verbose=0)
    with pytest.raises(ValueError, match=message):
        trainer.train_on_batch(X, labels, sample_weight={"a": W, "c": W})
    assert trainer.step == 0
    with pytest.raises(ValueError, match="'c'"):  # a regularizer receives the whole dict, and ignores it
        eg.Trainer(TwoHeads(), {**LOSSES, "l2": eg.regularizers.L2()}, optimizer=optax.sgd(0.1)).fit(
            X, labels, sample_weight={"c": W}, verbose=0
        )


def test_weights_may_have_the_key_of_an_output_a_loss_or_an_index():
    labels, first = {"a": A, "b": B}, MeanSquaredError().index_into(target="a", preds="a")
    for losses, weight in (
        ({"a": MeanSquaredError()}, {"b": W}),
        ({"first": first}, {"first": W}),
        ({"a": MeanSquaredError().index_into(sample_weight="mine")}, {"mine": W}),
    ):
        eg.Trainer(TwoHeads(), losses, optimizer=optax.sgd(0.1)).fit(X, labels, sample_weight=weight, verbose=0)


def test_an_error_tells_that_the_output_was_chosen_by_key():
    with pytest.raises(TypeError) as caught:
        logs_of({"a": lambda target, preds: preds["a"] - target["a"]}, target={"a": ZERO}, preds={"a": ONE})
    assert "the loss 'a_loss' received the output of the key 'a' alone" in "".join(caught.value.__notes__)


@pytest.mark.parametrize(
    ("losses", "metrics"), [({"heat": MeanSquaredError()}, None), (None, {"heat": eg.metrics.MSE()})]
)
def test_an_error_tells_that_no_output_has_the_key(losses, metrics):
    with pytest.raises(TypeError) as caught:
        logs_of(losses, metrics, target={"head": ZERO}, preds={"head": ONE, "b": ONE})
    [note] = caught.value.__notes__
    assert "received all outputs, because none of them has the key 'heat': the keys are 'head' and 'b'." in note
    assert note.endswith("Did you mean 'head'?")


def test_an_error_under_the_key_of_an_index_has_no_note_of_keys():
    with pytest.raises(KeyError) as caught:
        logs_of({"c": MeanSquaredError().index_into(preds="z")}, target=ZERO, preds={"a": ONE})
    assert not getattr(caught.value, "__notes__", None)


def test_an_error_tells_that_the_labels_lack_the_key():
    with pytest.raises(TypeError) as caught:
        logs_of({"a": MeanSquaredError()}, target={"b": ZERO}, preds={"a": ONE})
    assert "It received all labels, because they have no key 'a': the only key is 'b'." in caught.value.__notes__


class Point(NamedTuple):
    x: Any
    y: Any


def test_fields_of_named_tuples_are_indexed_by_name():
    loss = MeanSquaredError().index_into(target="x", preds=("p", "y", 0))
    assert loss(target=Point(ZERO, None), preds={"p": Point(None, [THREE])}).item() == 9.0
    with pytest.raises(KeyError, match=r"'preds' has nothing at 'z'.* it is a Point with the fields 'x' and 'y'"):
        MeanSquaredError().index_into(preds="z")(target=ZERO, preds=Point(ONE, ONE))


def test_indexed_arguments_have_the_outer_names():
    loss = MeanSquaredError().index_into(target="a", preds="a").rename_arguments(target="labels")
    assert indexed_arguments(loss) == {"labels", "preds"}
    assert indexed_arguments(eg.metrics.MSE().index_into(preds=0)) == {"preds"}
    kwargs = {"preds": ONE}
    assert given_by_key(loss, ("a",), kwargs) is not None
    assert given_by_key(MeanSquaredError(), (), kwargs) is kwargs


def test_an_anonymous_function_is_named_after_its_place():
    losses, metrics = [lambda preds: preds, lambda preds: 2 * preds], [lambda target, preds: preds - target]
    logs = logs_of(losses, metrics, target=ZERO, preds=ONE)
    assert logs == {"loss_fn": 1.0, "loss_fn_1": 2.0, "metric_fn": 1.0}

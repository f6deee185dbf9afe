"""The look for comparisons of every example with every other sees nothing else, and runs once for every shape."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy as eg
from elegy.losses import FunctionLoss
from elegy.metrics import Metrics

rng = np.random.default_rng(0)


def squares(target, preds, parameters):
    return (target - preds[:, 0]) ** 2 + 1e-3 * sum(jnp.sum(p**2) for p in jax.tree.leaves(parameters))


@pytest.mark.parametrize("count", [2, 31, 32, 33])
def test_a_width_that_is_the_number_of_rows_by_chance(count):
    target, preds = rng.normal(size=count).astype("f4"), rng.normal(size=(count, 1)).astype("f4")
    kernel = jnp.asarray(rng.normal(size=(32, 32)), jnp.float32)
    expected = np.mean((target - preds[:, 0]) ** 2) + 1e-3 * np.sum(kernel**2)
    value = FunctionLoss(squares)(target=target, preds=preds, parameters={"kernel": kernel})
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def by_bins(target, preds):
    """Each example against a table that is as wide as the batch is long."""
    return jnp.mean((preds - jnp.arange(4.0)) ** 2, axis=-1) - target


@pytest.mark.parametrize("count", [3, 4])
def test_examples_by_columns_are_not_examples_by_examples(count):
    target, preds = rng.normal(size=count).astype("f4"), rng.normal(size=(count, 1)).astype("f4")
    expected = np.mean((preds - np.arange(4)) ** 2, axis=-1) - target
    np.testing.assert_allclose(FunctionLoss(by_bins)(target=target, preds=preds), expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("count", [2, 4, 32])
def test_the_trap_is_found_for_every_number_of_rows_and_beside_weights(count):
    loss = FunctionLoss(lambda target, preds, sample_weight: sample_weight * jnp.abs(target - preds).mean(-1))
    with pytest.warns(UserWarning, match="compares every example with every other"):
        jax.jit(lambda t, p, w: loss(target=t, preds=p, sample_weight=w))(
            jnp.ones(count), jnp.ones((count, 1)), jnp.ones(count)
        )


class Squares(eg.losses.Loss):
    inside: bool = eg.static_field(default=False)

    def call(self, target, preds):
        values = (preds - target) ** 2
        return values.mean(-1) if self.inside else values


class SquaresInside(Squares):
    inside: bool = eg.static_field(default=True)


class Bias(eg.metrics.Metric):
    total: jax.Array = eg.field(default=None)

    def __post_init__(self):
        super().__post_init__()
        vars(self).update(total=jnp.zeros(()))

    def update(self, target, preds):
        return self.replace(total=self.total + jnp.abs(preds - target).sum() / len(target))

    def compute(self):
        return self.total

    def reset(self):
        return self.replace(total=jnp.zeros(()))


Y, P = np.ones(5, np.float32), np.zeros((5, 1), np.float32)
WIDE = np.zeros((5, 3), np.float32)


@pytest.mark.parametrize(
    ("loss", "target", "preds"),
    [
        (Squares(), Y, P),
        (Squares().index_into(preds="v"), Y, {"v": P}),
        (FunctionLoss(lambda target, preds: (preds["v"] - target) ** 2), Y, {"v": P}),
        (FunctionLoss(lambda target, preds: preds[1][:, :1] - target[1]), (Y, Y), (P, WIDE)),
        (FunctionLoss(lambda target, preds: preds[:, :1] - target), Y, WIDE),
    ],
)
def test_returned_pairs_are_refused_in_dicts_tuples_and_classes(loss, target, preds):
    with pytest.raises(ValueError, match="compares every example with every other"):
        loss(target=target, preds=preds)


@pytest.mark.parametrize(
    "update",
    [
        lambda: SquaresInside()(target=Y, preds=P),
        lambda: FunctionLoss(lambda target, preds: ((preds["v"] - target) ** 2).mean())(target=Y, preds={"v": P}),
        lambda: Metrics([Bias()]).update(target=Y, preds=P),
        lambda: Metrics([Bias().index_into(preds=1)]).update(target=Y, preds=(WIDE, P)),
    ],
)
def test_reduced_pairs_are_warned_of_in_dicts_tuples_and_classes(update, monkeypatch):
    monkeypatch.setattr("elegy.losses.pairing._by_class", {})
    with pytest.warns(UserWarning, match="compares every example with every other"):
        update()


@pytest.mark.parametrize(
    "function",
    [
        lambda target, preds: -jax.nn.log_softmax(preds)[jnp.arange(len(target)), target],
        lambda target, preds: -jnp.take_along_axis(jax.nn.log_softmax(preds), target[:, None], -1)[:, 0],
        lambda target, preds: -(jax.nn.log_softmax(preds) * jax.nn.one_hot(target, 3)).sum(-1),
        lambda target, preds: jnp.where((target[:, None] == target), preds @ preds.T, 0).mean(),  # contrastive
    ],
)
def test_a_function_that_matches_labels_and_scores_row_by_row_passes(function):
    target, preds = rng.integers(0, 3, 5), rng.normal(size=(5, 3)).astype("f4")
    expected = np.asarray(function(target, preds)).mean()
    np.testing.assert_allclose(FunctionLoss(function)(target=target, preds=preds), expected, rtol=1e-6)


def cox(target, preds):
    """Ranks within the predictions and within the labels, each with explicit axes."""
    later = target[None, :] >= target[:, None]
    return jnp.mean(jnp.where(later, jax.nn.softplus(preds - preds.T), 0.0))


def means(target, preds):
    return (preds.mean() - target.mean()) ** 2


@pytest.mark.parametrize("function", [cox, means])
def test_pairs_within_predictions_or_labels_are_meant(function):
    target, preds = rng.normal(size=8).astype("f4"), rng.normal(size=(8, 1)).astype("f4")
    np.testing.assert_allclose(FunctionLoss(function)(target=target, preds=preds), function(target, preds), rtol=1e-6)


def test_functions_of_numpy():
    def error(target, preds):
        return float(np.mean(np.abs(np.asarray(target) - np.asarray(preds)[:, 0])))

    target, preds = rng.normal(size=4), rng.normal(size=(4, 1))
    value = FunctionLoss(error)(target=target, preds=preds)
    np.testing.assert_allclose(value, np.abs(target - preds[:, 0]).mean(), rtol=1e-6)


def test_the_look_is_taken_once_for_every_shape():
    calls = []

    def error(target, preds):
        calls.append(type(target))
        return jnp.abs(target - preds[:, 0])

    loss = FunctionLoss(error)

    def run(count):
        before = len(calls)
        # A step passes the loss through JAX, which makes another object of it.
        again = jax.tree.unflatten(*reversed(jax.tree.flatten(loss)))
        again(target=jnp.ones(count), preds=jnp.ones((count, 1)))
        return len(calls) - before

    first = run(4)
    assert [run(4), run(4)] == [1, 1]
    assert run(5) == first > 1
    assert [run(4), run(5)] == [1, 1]

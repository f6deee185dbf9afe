"""Losses, metrics and optimizers that no step of a module uses: one warning when the trainer is made."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import optax
import pytest
from boring_modules import Core, High, Managed, network, squares

import elegy as eg

MSE = eg.losses.MeanSquaredError


class OwnTraining(High):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return jnp.mean(squares(self.params, *batch)), self


class OnTop(High):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return super().managed_train_step(key, batch, batch_idx, epoch_idx)

    def managed_test_step(self, key, batch, batch_idx):
        return self.log("one", 1.0)


def by_helper(module, x, y):
    return module.losses_and_metrics.loss_and_update(preds=network(module.params, x), target=y)[0]


class Helped(Managed):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return (lambda: by_helper(self, *batch))(), self


class OwnOptimizer(Core):
    def train_step(self, batch, batch_idx, epoch_idx):
        return {}, self.replace(params=self.optimizer.update(self.params, self.params)[0])


@pytest.mark.parametrize(
    ("module", "given", "message"),
    [
        (Managed, {"loss": MSE()}, "loss= of the trainer .* managed_train_step and managed_test_step"),
        (Managed, {"loss": MSE(), "metrics": MSE()}, "loss= and metrics= of the trainer"),
        (Core, {"metrics": MSE()}, "metrics= of the trainer .* train_step and test_step"),
        (Core, {"optimizer": optax.sgd(0.1)}, "optimizer= of the trainer is not used: Core has its own train_step"),
    ],
)
def test_an_argument_that_no_step_uses_is_named_once(module, given, message):
    with pytest.warns(UserWarning, match=message) as warned:
        eg.Trainer(module(), **given)
    assert [one.filename for one in warned] == [__file__]


@pytest.mark.parametrize("module", [High, OwnTraining, OnTop, Helped, OwnOptimizer])
def test_arguments_that_a_step_uses_are_silent(module):
    given = {} if module is OwnOptimizer else {"loss": MSE(), "metrics": MSE()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eg.Trainer(module(), optimizer=optax.sgd(0.1), **given)
        eg.Trainer(Core() if module is OwnOptimizer else Managed())

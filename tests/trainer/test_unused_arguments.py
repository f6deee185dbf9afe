"""Losses and metrics that no step of a module uses: `fit` warns once, from what it sees in the traced steps."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import optax
import pytest
from boring_modules import High, Managed, network, regression, squares

import elegy as eg

X, Y = regression(8)
MSE = eg.losses.MeanSquaredError


class OwnTraining(High):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return jnp.mean(squares(self.params, *batch)), self


class OnTop(High):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return super().managed_train_step(key, batch, batch_idx, epoch_idx)

    def managed_test_step(self, key, batch, batch_idx):
        return self.log("one", 1.0)


class OnlyTested(High):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return jnp.mean(squares(self.params, *batch)), self

    def managed_test_step(self, key, batch, batch_idx):
        return super().managed_test_step(key, batch, batch_idx)


class Helped(Managed):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        def loss(module, x, y):
            return module.losses_and_metrics.loss_and_update(preds=network(module.params, x), target=y)[0]

        return loss(self, *batch), self


class Computes(Managed):
    """Its test step alone uses the losses."""

    def managed_test_step(self, key, batch, batch_idx):
        x, y = batch
        return self.compute_loss(preds=network(self.params, x), target=y)[1]


class HasAMethodOfThatName(Managed):
    def compute_loss(self, batch):  # type: ignore[override]
        return jnp.mean(squares(self.params, *batch))

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return self.compute_loss(batch), self


def fit(module, **given):
    trainer = eg.Trainer(module(), optimizer=optax.sgd(0.1), **given)
    trainer.fit(X, Y, validation_data=(X, Y), batch_size=4, epochs=2, verbose=0)


@pytest.mark.parametrize(
    ("module", "given"),
    [(Managed, {"loss": MSE()}), (Managed, {"metrics": MSE()}), (HasAMethodOfThatName, {"loss": MSE()})],
)
def test_arguments_that_no_step_uses_are_named_once(module, given):
    message = f"loss and the metrics of the trainer are not used: {module.__name__} has"
    with pytest.warns(UserWarning, match=message) as warned:
        fit(module, **given)
    assert [one.filename for one in warned] == [__file__]


@pytest.mark.parametrize("module", [High, OwnTraining, OnTop, OnlyTested, Helped, Computes])
def test_arguments_that_a_step_uses_are_silent(module):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(module, loss=MSE(), metrics=MSE())
        eg.Trainer(module(), loss=MSE(), optimizer=optax.sgd(0.1)).fit(X, Y, epochs=1, verbose=0)  # no validation
        fit(Managed)

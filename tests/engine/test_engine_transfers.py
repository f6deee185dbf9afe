"""What a step sends to the device: the arrays of its batch, and nothing else."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import High, Managed, regression, squares

import elegy as eg
from elegy.strategies import Jit

X, Y = regression(45)  # the last batch of 8 has 5 rows, so that it is padded and masked
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 45, 8)]
STEPS = len(BATCHES)


class Indexed(Managed):
    """Logs both indices, as the step and the evaluation see them."""

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return jnp.mean(squares(self.params, *batch)), self.log("seen", batch_idx + 100 * epoch_idx, reduce="sum")

    def managed_test_step(self, key, batch, batch_idx):
        return self.log("seen", batch_idx, reduce="sum")


def trainer_of(cls):
    loss = eg.losses.MeanSquaredError() if cls is High else None
    return eg.Trainer(cls(), loss, optimizer=optax.sgd(0.01))


@pytest.fixture
def sent(monkeypatch):
    """For each execution, the shapes of its arguments that are not on the device."""
    calls, compile_ = [], Jit.compile

    def compiled(self, step, args, **options):
        kernel = compile_(self, step, args, **options)
        if kernel.__name__.startswith("reset"):
            return kernel

        def call(*arguments):
            host = [np.shape(leaf) for leaf in jax.tree.leaves(arguments) if not isinstance(leaf, jax.Array)]
            calls.append(sorted(host))
            return kernel(*arguments)

        return call

    monkeypatch.setattr(Jit, "compile", compiled)
    return calls


@pytest.mark.parametrize("cls", [High, Indexed])
@pytest.mark.parametrize("data", ["arrays", "iterable"])
def test_a_single_step_sends_its_batch(cls, data, sent):
    trainer = trainer_of(cls)
    options = {"epochs": 3, "verbose": 0, "steps_per_execution": 1, "shuffle": False}
    given = (X, Y) if data == "arrays" else (BATCHES,)
    trainer.fit(*given, **options, **({"batch_size": 8} if data == "arrays" else {}))
    del sent[:-STEPS]
    assert [len(call) for call in sent] == [2] * STEPS
    assert sent[:-1] == [[(8, 2), (8, 3)]] * (STEPS - 1)


@pytest.mark.parametrize("cls", [High, Indexed])
@pytest.mark.parametrize(("data", "expected"), [("resident", [(3, 8)]), ("iterable", [(3, 8, 2), (3, 8, 3)])])
def test_fused_steps_send_their_batches(cls, data, expected, sent):
    trainer = trainer_of(cls)
    batches = [*BATCHES[:-1], BATCHES[0]]  # whole batches, for a managed step
    if data == "resident":
        x, y = np.concatenate([X, X[:3]]), np.concatenate([Y, Y[:3]])
        trainer.fit(x, y, batch_size=8, epochs=3, verbose=0, steps_per_execution=3)
    else:
        trainer.fit(batches, epochs=3, verbose=0, steps_per_execution=3)
    assert sent[-2:] == [expected] * 2


class Attention(nn.Module):
    """A language model of one causal attention."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(8, 4)(tokens)
        query, key, value = jnp.split(nn.Dense(12)(x)[:, :, None], 3, axis=-1)
        return nn.Dense(8)(x + jax.nn.dot_product_attention(query, key, value, is_causal=True)[:, :, 0])


class LanguageModel(eg.ElegyModule):
    """At the managed level, with a module of Flax as a constant."""

    module: eg.Static = eg.static_field(default_factory=lambda: eg.Static(Attention()))

    def managed_init_step(self, key, batch):
        return self.replace(params=self.module.value.init(key, batch[0])["params"])

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        logits = self.module.value.apply({"params": self.params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), self


@pytest.mark.parametrize(("k", "expected"), [(1, [(4, 5), (4, 5)]), (3, [(3, 4)])])
def test_a_managed_language_model_sends_its_tokens_or_the_indices_of_rows_alone(k, expected, sent):
    """One step sends inputs and labels; fused steps find the data on the device, and send the rows of each batch."""
    tokens = np.zeros((24, 5), np.int32)
    trainer = eg.Trainer(LanguageModel(), optimizer=optax.sgd(0.1, momentum=0.9))
    trainer.fit(tokens, tokens, batch_size=4, epochs=2, verbose=0, steps_per_execution=k)
    assert sent[-2:] == [expected] * 2


@pytest.mark.parametrize("k", [1, 3, 4])
def test_the_step_sees_the_indices_although_nobody_sends_them(k):
    trainer = trainer_of(Indexed)
    trainer.fit(X, Y, batch_size=8, epochs=3, verbose=0, steps_per_execution=k, validation_data=(X, Y))
    of_batches = sum(range(STEPS))
    assert trainer.history.history["seen"] == [of_batches + 100 * epoch * STEPS for epoch in range(3)]
    assert trainer.history.history["val_seen"] == [of_batches] * 3
    assert trainer.evaluate(X, Y, batch_size=16, verbose=0)["seen"] == sum(range(3))
    trainer.fit(X, Y, batch_size=8, verbose=0, steps_per_execution=k)  # the fourth epoch
    assert trainer.history.history["seen"] == [of_batches + 300 * STEPS]


def test_steps_on_batches_that_are_on_the_device_transfer_nothing():
    trainer = trainer_of(High)
    batches = [(jnp.asarray(x), jnp.asarray(y)) for x, y in BATCHES[:-1]]

    class Guard(eg.callbacks.Callback):
        def on_epoch_begin(self, event):
            if event.epoch == 1:  # everything is compiled, and on the device
                jax.config.update("jax_transfer_guard_host_to_device", "disallow_explicit")

        def on_epoch_end(self, event):
            jax.config.update("jax_transfer_guard_host_to_device", None)

    try:
        trainer.fit(batches, epochs=2, verbose=0, callbacks=[Guard()])
    finally:
        jax.config.update("jax_transfer_guard_host_to_device", None)
    assert trainer.step == 2 * len(batches)

"""Batches of several shapes (sequences in buckets by length): each shape compiles once, values are the bare loop's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import TX, High, Managed, host, make_params, network, squares
from some_cases import some

import elegy as eg
from elegy.strategies import DataParallel, Sharded

CLOSE = {"rtol": 2e-5, "atol": 1e-6}  # float32, sums in another order than the reference's
SHAPES = [(8, 5), (8, 7), (3, 5), (2, 9), (8, 9), (5, 7), (8, 5)]  # rows and length


def buckets(shapes=SHAPES):
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(n, length, 3)).astype(np.float32), rng.normal(size=(n, 2)).astype(np.float32))
        for n, length in shapes
    ]


class Pooled(High):
    def apply(self, key, inputs, training):
        return network(self.params, inputs.mean(1)), self


class ManagedPooled(Managed):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return jnp.mean(squares(self.params, batch[0].mean(1), batch[1])), self

    def managed_test_step(self, key, batch, batch_idx):
        return self.log("loss", jnp.mean(squares(self.params, batch[0].mean(1), batch[1])))

    def managed_pred_step(self, key, batch, batch_idx):
        return network(self.params, batch.mean(1)), self


class CorePooled(eg.ElegyModule):
    moments: object = None

    def init_step(self, key, batch):
        params = make_params(key)
        return self.replace(key=key, params=params, moments=TX.init(params))

    def train_step(self, batch, batch_idx, epoch_idx):
        loss, grads = jax.value_and_grad(squares_of)(self.params, *batch)
        updates, moments = TX.update(grads, self.moments, self.params)
        return {"loss": loss}, self.replace(params=optax.apply_updates(self.params, updates), moments=moments)

    def test_step(self, batch, batch_idx):
        return {"loss": squares_of(self.params, *batch)}, self

    def pred_step(self, batch, batch_idx):
        return network(self.params, batch.mean(1)), self


def squares_of(params, x, y):
    return jnp.mean(squares(params, x.mean(1), y))


def bare(params, batches, epochs):
    params = jax.tree.map(jnp.asarray, params)
    state = TX.init(params)
    step = jax.jit(jax.value_and_grad(squares_of))
    for x, y in batches * epochs:
        updates, state = TX.update(step(params, x, y)[1], state, params)
        params = optax.apply_updates(params, updates)
    return params


def trainer_of(level, strategy="jit"):
    loss = eg.losses.MeanSquaredError() if issubclass(level, High) else None
    return eg.Trainer(level(), loss=loss, optimizer=None if level is CorePooled else TX, strategy=strategy)


RUNS = [
    *((Pooled, s) for s in ("jit", "sharded")),
    *((ManagedPooled, s) for s in ("jit", "data_parallel")),
    (CorePooled, "jit"),
    *(pytest.param(*run, marks=pytest.mark.slow) for run in ((Pooled, "eager"), (Pooled, "data_parallel"))),
    pytest.param(ManagedPooled, "eager", marks=pytest.mark.slow),
]
STRATEGIES = {"data_parallel": lambda: DataParallel(2), "sharded": lambda: Sharded({"data": 2})}


@pytest.mark.parametrize(("level", "strategy"), some(RUNS, 3))
def test_buckets_follow_the_bare_loop(level, strategy):
    batches = buckets()
    trainer = trainer_of(level, STRATEGIES.get(strategy, lambda: strategy)())
    trainer.init_on_batch(*batches[0])
    start = jax.tree.map(np.array, trainer.state.params)
    history = trainer.fit(batches, epochs=2, validation_data=iter(batches), validation_freq=2, verbose=0)
    params = bare(start, batches, 2)
    for ours, theirs in zip(host(trainer.state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)
    losses = np.array([squares_of(params, x, y) for x, y in batches])
    mean = losses[-1] if level is CorePooled else np.average(losses, weights=[len(x) for x, _ in batches])
    np.testing.assert_allclose(history.history["val_loss"], mean, **CLOSE)
    np.testing.assert_allclose(trainer.evaluate(batches, verbose=0)["loss"], mean, **CLOSE)
    outputs = list(trainer.predict_iter(iter(x for x, _ in batches)))
    for out, (x, _) in zip(outputs, batches, strict=True):
        np.testing.assert_allclose(out, network(params, x.mean(1)), **CLOSE)


@pytest.mark.parametrize(("level", "train"), [(Pooled, 3), (ManagedPooled, 6)])
def test_every_shape_compiles_once(level, train):
    """At the high level a short batch shares the program of its bucket; a managed step gets its very rows."""
    batches = buckets([(8, 5), (8, 7), (3, 5), (8, 9), (2, 9), (5, 7), (8, 5), (8, 7)])
    trainer = trainer_of(level)
    trainer.fit(batches, epochs=3, verbose=0)
    trainer.evaluate(batches, verbose=0)
    trainer.evaluate(batches, verbose=0)
    assert trainer._session.executor.traces == {"train": train, "test": train, "pred": 0}


def test_rows_that_mix_in_one_bucket_are_not_padded_there():
    """The second bucket's outputs depend on the whole batch, so that a repeated row would change them."""

    class Mixed(Pooled):
        def apply(self, key, inputs, training):
            pooled = inputs.mean(1)
            pooled = pooled - pooled.mean(0) if inputs.shape[1] > 6 else pooled
            return network(self.params, pooled), self

    batches = buckets([(8, 5), (3, 5), (8, 7), (3, 7)])
    trainer = trainer_of(Mixed)
    trainer.init_on_batch(*batches[0])
    loss = trainer.evaluate(batches, verbose=0)["loss"]
    total = 0.0
    for x, y in batches:
        pooled = x.mean(1)
        pooled = pooled - pooled.mean(0) if x.shape[1] > 6 else pooled
        total += float(squares(trainer.state.params, pooled, y).sum())
    np.testing.assert_allclose(loss, total / 22, rtol=1e-5)


def test_many_shapes_are_warned_of_once_in_each_phase():
    batches = buckets([(4, length) for length in range(1, 11)])
    trainer = trainer_of(Pooled)
    trainer.fit(batches[:8], verbose=0)  # eight buckets are no mistake
    with pytest.warns(UserWarning, match=r"the train step is compiled for the 9th shape.*\[4,1,3\].*\[4,9,3\]") as w:
        trainer.fit(batches, epochs=2, verbose=0)
    assert len(w) == 1


def test_the_error_for_a_shape_that_the_module_cannot_take_names_the_first_shape():
    batches = buckets([(4, 5), (4, 7)])
    batches[1] = (batches[1][0][..., :2], batches[1][1])
    with pytest.raises(TypeError) as caught:
        trainer_of(Pooled).fit(batches, verbose=0)
    assert "This batch differs from the first: 0 was float32[4,5,3], now it is float32[4,7,2]" in str(
        caught.value.__notes__
    )


def test_a_list_of_arrays_gives_batches_where_the_module_takes_one_array():
    batches = buckets()
    trainer = trainer_of(Pooled)
    trainer.fit(batches, verbose=0)
    outputs = list(trainer.predict_iter([x for x, _ in batches]))
    assert [len(out) for out in outputs] == [n for n, _ in SHAPES]


def test_a_list_of_arrays_is_one_batch_where_the_module_takes_a_list():
    class Two(High):
        def apply(self, key, inputs, training):
            return network(self.params, inputs[0] + inputs[1]), self

    ((x, y),) = buckets([(8, 5)])
    trainer = eg.Trainer(Two(), loss=eg.losses.MeanSquaredError(), optimizer=TX)
    trainer.fit([x[:, 0], x[:, 1]], y, batch_size=8, verbose=0)
    np.testing.assert_allclose(
        trainer.predict([x[:, 0], x[:, 1]]), network(trainer.state.params, x[:, 0] + x[:, 1]), **CLOSE
    )

"""Checkpoints of a module whose weights were given hold a digest in their place, and restore with the same weights."""

from __future__ import annotations

import hashlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import assert_same_bits, regression

import elegy as eg
from elegy.callbacks import ModelCheckpoint
from elegy.checkpoint import read_metadata, restore, store
from elegy.errors import CheckpointError
from elegy.trainer.saving import given_weights, persistence
from elegy.trainer.state_methods import session_of

X, Y = regression(22)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        calls = self.variable("counts", "calls", lambda: jnp.zeros(()))
        calls.value += 0 if self.is_initializing() else 1
        return nn.Dense(2, name="head")(nn.Dropout(0.2, deterministic=False)(jnp.tanh(nn.Dense(4, name="body")(x))))


rng = np.random.default_rng(0)
PARAMS = {
    layer: {"kernel": rng.normal(size=shape).astype(np.float32), "bias": rng.normal(size=shape[1:]).astype(np.float32)}
    for layer, shape in (("body", (3, 4)), ("head", (4, 2)))
}
OTHER = jax.tree.map(lambda leaf: np.nextafter(leaf, np.float32(9)), PARAMS)
PLAIN = (
    lambda key: jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), PARAMS),
    lambda p, x: (x @ p["body"]["kernel"] + p["body"]["bias"]) @ p["head"]["kernel"] + p["head"]["bias"],
)


def trainer_of(variables=PARAMS, module=PLAIN, **options):
    lora = eg.LoRA(module, "*/kernel", rank=1, train="head/bias", variables=variables)
    return eg.Trainer(lora, eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.01, momentum=0.9), **options)


def fit(trainer, epochs=1, **options):
    return trainer.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, **options)


def leaves(trainer):
    return jax.tree.leaves(trainer.state.replace(key=jax.random.key_data(trainer.state.key)))


SLOW = ["data_parallel", eg.strategies.FSDP({"data": 4}, min_size=1)]
STRATEGIES = ["jit", *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_a_run_resumes_to_the_same_bits_from_a_checkpoint_of_the_adapters_alone(strategy, tmp_path):
    trainer = trainer_of({"params": PARAMS}, Net(), strategy=strategy)
    fit(trainer, epochs=3, callbacks=[ModelCheckpoint(tmp_path, every=eg.Every(steps=4), save_top_k=-1)])
    middle = tmp_path / "step_00000004"
    saved, total = restore(middle, None)[0], hashlib.sha256()
    assert [path for path in saved if path.startswith("base")] == ["base/collections/counts/calls"]
    base = {"params/body/bias": ("body", "bias"), "params/body/kernel": ("body", "kernel")}
    base |= {"params/head/kernel": ("head", "kernel")}  # the bias is trained
    for path, (layer, name) in base.items():
        leaf = PARAMS[layer][name]
        total.update(f"{path}\0float32\0{leaf.shape}\0".encode() + leaf.tobytes())
    assert read_metadata(middle)["given"] == total.hexdigest()
    again = trainer_of({"params": PARAMS}, Net(), strategy=strategy)
    fit(again, epochs=3, resume=middle)
    assert_same_bits(leaves(again), leaves(trainer))


@pytest.mark.parametrize("initialized", [True, False])
def test_other_base_weights_are_an_error_and_change_nothing(initialized, tmp_path):
    trainer = trainer_of()
    fit(trainer)
    trainer.save(tmp_path / "saved")
    for variables, message in ((OTHER, "belongs to other base weights"), (None, "Pass the same base weights")):
        other = trainer_of(variables)
        if initialized:
            other.init_on_batch(X, Y)
            before = leaves(other)
            for load in (other.restore, lambda path, other=other: fit(other, resume=path)):
                with pytest.raises(CheckpointError, match=message):
                    load(tmp_path / "saved")
            assert_same_bits(leaves(other), before)
        else:
            other.restore(tmp_path / "saved")
            with pytest.raises(CheckpointError, match=message):
                other.predict(X)
            assert "not initialised" in repr(other)


def test_weights_alone_and_a_restore_that_is_not_strict_go_on_top_of_the_trainers_base(tmp_path):
    trainer, same, other = trainer_of(), trainer_of(), trainer_of(OTHER)
    fit(trainer)
    trainer.save(tmp_path / "saved")
    same.load_weights(tmp_path / "saved")
    other.init_on_batch(X, Y)
    base = other.state.base.get_params()
    with pytest.raises(CheckpointError, match="belongs to other base weights"):
        other.load_weights(tmp_path / "saved")
    with pytest.warns(UserWarning, match="belongs to other base weights"):
        other.restore(tmp_path / "saved", strict=False)
    same.init_on_batch(X, Y)
    assert_same_bits(same.state.params, trainer.state.params)
    assert_same_bits(other.state.params, trainer.state.params)
    assert_same_bits(other.state.base.get_params(), base)


def test_a_checkpoint_with_the_base_weights_as_older_versions_wrote_it_is_loaded(tmp_path):
    trainer = trainer_of()
    fit(trainer)
    _, metadata = persistence.contents(session_of(trainer))
    del metadata["given"]
    store.save(tmp_path / "old", trainer.state, metadata)
    again = trainer_of()
    again.init_on_batch(X, Y)
    again.restore(tmp_path / "old")
    assert_same_bits(leaves(again), leaves(trainer))
    other = trainer_of(OTHER)
    other.init_on_batch(X, Y)
    with pytest.raises(CheckpointError, match="belongs to other base weights"):
        other.restore(tmp_path / "old")


def test_weights_made_with_the_trainers_seed_are_in_the_checkpoint(tmp_path):
    trainer = trainer_of(None)
    fit(trainer)
    trainer.save(tmp_path / "saved")
    assert read_metadata(tmp_path / "saved")["given"] is None
    assert "base/params/body/kernel" in restore(tmp_path / "saved", None)[0]


def test_the_digest_is_computed_once_for_a_run(tmp_path, monkeypatch):
    digests = []
    monkeypatch.setattr(given_weights, "digest", lambda tree: digests.append(tree) or "0" * 64)
    trainer = trainer_of()
    fit(trainer, epochs=2, callbacks=[ModelCheckpoint(tmp_path, every=eg.Every(steps=2))])
    assert len(digests) == 1
    fit(trainer, epochs=4, resume=tmp_path, callbacks=[ModelCheckpoint(tmp_path, every=eg.Every(steps=2))])
    assert len(digests) == 1


class Scaled(eg.ElegyModule):
    """A module of one's own with a constant that it was given."""

    table: jax.Array | None = None

    def init(self, key, inputs):
        return self.replace(params=jnp.ones(3))

    def apply(self, key, inputs, training):
        return (inputs * self.params) @ self.table, self

    def split_given(self):
        return self.replace(table=None), self.table

    def with_given(self, weights):
        return self.replace(table=weights)


def test_a_module_of_ones_own_leaves_out_what_it_was_given(tmp_path):
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    trainers = [
        eg.Trainer(Scaled(table=jnp.asarray(one)), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.01))
        for one in (table, table, table + 1)
    ]
    fit(trainers[0])
    trainers[0].save(tmp_path / "saved")
    assert "table" not in restore(tmp_path / "saved", None)[0]
    trainers[1].restore(tmp_path / "saved")
    np.testing.assert_array_equal(trainers[1].predict(X), trainers[0].predict(X))
    trainers[2].restore(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="belongs to other base weights"):
        trainers[2].predict(X)

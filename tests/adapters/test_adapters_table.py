"""One network in every module library: shared and frozen parameters, state, casts, shards, files and export."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export
from penzai import pz

import elegy as eg

KEY, D, RATE = jax.random.key(0), 3, 0.1
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 16, D)).astype("f4")


def twice(layer, x):
    """The network: one layer, called twice with the same parameters."""
    return layer(jnp.tanh(layer(x)))


def moved(mean, x):
    return 0.9 * mean + 0.1 * x.mean(0)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        mean = self.variable("batch_stats", "mean", jnp.zeros, D)
        if train and not self.is_initializing():
            mean.value = moved(mean.value, x)
        return twice(nn.Dense(D, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))), x)


class NNX(nnx.Module):
    def __init__(self):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("in", "out"), eager_sharding=False)
        self.layer, self.mean = nnx.Linear(D, D, kernel_init=init, rngs=nnx.Rngs(0)), nnx.BatchStat(jnp.zeros(D))
        self.training = False

    def __call__(self, x):
        if self.training:
            self.mean[...] = moved(self.mean[...], x)
        return twice(self.layer, x)

    def train(self, **attributes):
        self.training = True

    def eval(self, **attributes):
        self.training = False


class Equinox(eqx.Module):
    layer: eqx.nn.Linear
    mean: eqx.nn.StateIndex

    def __init__(self, key):
        self.layer, self.mean = eqx.nn.Linear(D, D, key=key), eqx.nn.StateIndex(jnp.zeros(D))

    def __call__(self, x, state, *, training: bool):
        if training:
            state = state.set(self.mean, 0.9 * state.get(self.mean) + 0.1 * jax.lax.pmean(x, "batch"))
        return twice(self.layer, x), state


def haiku(x, is_training):
    mean = hk.get_state("mean", (D,), init=jnp.zeros)
    if is_training:
        hk.set_state("mean", moved(mean, x))
    return twice(hk.Linear(D), x)


def init(key, x):
    return {"w": jax.random.normal(key, (D, D)), "bias": jnp.zeros(D)}, {"mean": jnp.zeros(D)}


def apply(params, x, state, training):
    out = twice(lambda x: x @ params["w"] + params["bias"], x)
    return out, {"mean": moved(state["mean"], x)} if training else state


@pz.pytree_dataclass
class Penzai(pz.nn.Layer):
    layer: pz.nn.Layer
    mean: pz.StateVariable

    def __call__(self, x, /, *, training, **side_inputs):
        if training:
            self.mean.value = moved(self.mean.value, x)
        named = lambda x: self.layer(pz.nx.wrap(x, "batch", "in")).unwrap("batch", "out")  # noqa: E731
        return twice(named, x)


def penzai():
    layer = pz.nn.Affine.from_config("layer", KEY, input_axes={"in": D}, output_axes={"out": D})
    return Penzai(layer, pz.StateVariable(jnp.zeros(D), label="mean"))


def keras_model():
    import keras  # takes seconds, and every worker collects this file

    class Keras(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.layers.Dense(D, name="layer")
            self.mean = self.add_weight(shape=(D,), initializer="zeros", trainable=False, name="mean")

        def call(self, x, training=False):
            if training:
                self.mean.assign(moved(self.mean.value, x))
            return twice(self.layer, x)

    return Keras()


@dataclasses.dataclass
class Case:
    make: Callable[[], Any]
    bias: str
    rows_first: bool = False  # a kernel of shape (outputs, inputs)
    casts: bool = True  # by the policy of the trainer; Keras has its own
    exports: bool = True  # for any number of rows; the named arrays of Penzai have fixed sizes


TABLE = {
    "linen": Case(Linen, "Dense_0/bias"),
    "nnx": Case(NNX, "layer/bias"),
    "equinox": Case(lambda: eqx.nn.make_with_state(Equinox)(KEY), "layer/bias", rows_first=True),
    "haiku": Case(lambda: hk.transform_with_state(haiku), "linear/b"),
    "functions": Case(lambda: (init, apply), "bias"),
    "penzai": Case(penzai, "*AddBias.bias*", exports=False),
    "keras": Case(keras_model, "layer/bias", casts=False),
}


def trainer_of(case, **kwargs):
    loss = eg.losses.MeanSquaredError()
    trainer = eg.Trainer(case.make(), loss, optimizer=optax.sgd(RATE), freeze=case.bias, **kwargs)
    trainer.init_on_batch(X)
    return trainer


def weights(case, trainer):
    """The kernel and the frozen bias."""
    bias, kernel = sorted((np.asarray(leaf) for leaf in jax.tree.leaves(trainer.state.params)), key=np.ndim)
    assert (bias.shape, kernel.shape) == ((D,), (D, D))
    return (kernel.T if case.rows_first else kernel), bias


def network(w, b, x):
    return twice(lambda x: x @ w + b, x)


def loss_of(w, b):
    return jnp.mean((network(w, b, X) - Y) ** 2)


@pytest.mark.parametrize(
    "strategy", ["jit", *(pytest.param(s, marks=pytest.mark.slow) for s in ("fsdp", "data_parallel"))]
)
@pytest.mark.parametrize("library", TABLE)
def test_every_library_trains_shares_freezes_saves_and_exports(library, strategy, tmp_path):
    """Against JAX by hand: the gradient of a shared kernel is that of both calls; the frozen bias stays."""
    case = TABLE[library]
    trainer = trainer_of(case, strategy=strategy)
    w, bias = weights(case, trainer)
    for _ in range(2):
        trainer.train_on_batch(X, Y)
        w = w - RATE * jax.grad(loss_of)(w, bias)
    np.testing.assert_allclose(weights(case, trainer)[0], w, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(weights(case, trainer)[1], bias)
    (mean,) = jax.tree.leaves(trainer.state.batch_stats)
    np.testing.assert_allclose(mean, (1 - 0.9**2) * X.mean(0), rtol=1e-5, atol=1e-7)
    expected = trainer.predict(X)
    np.testing.assert_allclose(expected, network(w, bias, X), rtol=2e-5, atol=1e-5)

    trainer.save_weights(tmp_path / "weights.safetensors")
    other = trainer_of(case)
    other.load_weights(tmp_path / "weights.safetensors")
    np.testing.assert_allclose(other.predict(X), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(jax.tree.leaves(other.state.batch_stats)[0], mean)
    if not case.exports:
        with pytest.raises(eg.errors.CheckpointError, match="cannot be exported for every batch size"):
            other.export(tmp_path / "exported", X)
        return
    other.export(tmp_path / "exported", X)
    exported = export.deserialize(bytearray((tmp_path / "exported" / "pred_step.jax_export").read_bytes()))
    np.testing.assert_allclose(exported.call(X[:5]), expected[:5], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("library", [name for name, case in TABLE.items() if case.casts])
def test_every_library_computes_in_the_precision_of_the_trainer(library):
    case = TABLE[library]
    trainer = trainer_of(case, precision="mixed_bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(trainer.state.params)} == {jnp.dtype("float32")}
    half = network(*(jnp.asarray(array, jnp.bfloat16) for array in (*weights(case, trainer), X)))
    found = np.asarray(trainer.predict(X))
    assert found.dtype == np.float32
    # Both round to 8 bits, in another order of sums.
    np.testing.assert_allclose(found, np.asarray(half, "f4"), rtol=0.02, atol=0.02)
    assert np.abs(found - network(*weights(case, trainer), X)).max() > 1e-4
    trainer.train_on_batch(X, Y)
    assert {leaf.dtype for leaf in jax.tree.leaves(trainer.state.batch_stats)} == {jnp.dtype("float32")}


def test_names_of_axes_for_shards_are_kept():
    linen = trainer_of(TABLE["linen"])
    linen.train_on_batch(X, Y)
    assert linen.variables()["params"]["Dense_0"]["kernel"].names == ("in", "out")
    module = trainer_of(TABLE["nnx"])
    before, after = NNX().layer.kernel, module.state.to_module().layer.kernel
    assert after.get_metadata() == before.get_metadata()

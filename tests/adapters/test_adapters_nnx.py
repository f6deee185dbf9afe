import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from some_cases import some

import elegy as eg
from elegy.adapters import NNXModule

KEY, STEP = jax.random.key(0), jax.random.key(1)
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


class Counter(nnx.Variable):
    """A variable that is neither parameter nor batch statistic."""


class Net(nnx.Module):
    def __init__(self, rngs, rate=0.0):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.layers.append(self.layers[1])  # shared
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.calls = Counter(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        x = self.norm(x)
        self.calls[...] += 1
        return self.dropout(x)


class Sowing(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, x):
        x = self.linear(x)
        self.sow("losses", "energy", jnp.mean(x**2))
        self.sow("losses", "energy", jnp.ones(2))
        self.sow("metrics", "spread", jnp.std(x))
        self.sow(nnx.Intermediate, "hidden", x)
        return x


class Functional(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, image, scale, training, *, rngs):
        noise = jax.random.normal(rngs.noise(), (4,)) if training else 0.0
        return self.linear(image) * scale + noise


def pure(module, kind):
    return nnx.to_pure_dict(nnx.state(module, kind))


def assert_trees_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("training", [True, False])
def test_apply_is_the_librarys_own(training):
    model = Net(nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState)))
    state = NNXModule(model).init(KEY, X)
    outputs, after = state.apply(STEP, X, training)
    own = nnx.clone(model)
    own.train() if training else own.eval()
    np.testing.assert_array_equal(outputs, own(X))
    assert_trees_equal(after.params, pure(own, nnx.Param))
    assert_trees_equal(after.batch_stats, pure(own, nnx.BatchStat))
    assert_trees_equal(after.variables, pure(own, Counter))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert_trees_equal(nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState))), before)


def test_the_users_mode_is_left_alone():
    model = Net(nnx.Rngs(0), rate=0.5)
    model.eval()
    state = NNXModule(model).init(KEY, X)
    assert (np.asarray(state.apply(STEP, X, True)[0]) == 0).any()
    assert model.dropout.deterministic
    assert model.norm.use_running_average


def test_random_streams_come_from_the_steps_key():
    state = NNXModule(Net(nnx.Rngs(0), rate=0.5)).init(KEY, X)
    one, again, two = (np.asarray(state.apply(key, X, True)[0]) for key in (STEP, STEP, KEY))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(*(np.asarray(state.apply(key, X, False)[0]) for key in (STEP, KEY)))


def test_split_streams_keep_their_shape():
    class Ensemble(nnx.Module):
        def __init__(self, rngs):
            self.members = nnx.vmap(lambda rngs: nnx.Dropout(0.5, rngs=rngs))(rngs.split(2))

        def __call__(self, x):
            return nnx.vmap(lambda member, x: member(x), in_axes=(0, None))(self.members, x)

    state = NNXModule(Ensemble(nnx.Rngs(0))).init(KEY, X)
    outputs = np.asarray(state.apply(STEP, np.ones((32, 3), np.float32), True)[0])
    assert outputs.shape == (2, 32, 3)
    assert not np.array_equal(outputs[0], outputs[1])


@pytest.mark.filterwarnings("error")
def test_sown_losses_and_metrics_are_reported():
    model = Sowing(nnx.Rngs(0))
    state = NNXModule(model).init(KEY, X)
    _, after = state.apply(STEP, X, True)
    h = np.asarray(model.linear(X), np.float64)
    pending = {entry.name: (entry.kind, float(entry.value)) for entry in after._logs.pending}
    # float32 means against float64 means
    assert pending == {
        "energy": ("loss", pytest.approx((h**2).mean() + 2, rel=1e-5)),
        "spread": ("scalar", pytest.approx(h.std(), rel=1e-5)),
    }
    assert jax.tree.structure(after.replace(_logs=state._logs)) == jax.tree.structure(state)


@pytest.mark.parametrize("inputs", [(X, np.float32(2)), {"image": X, "scale": np.float32(2)}])
def test_arguments_are_spread_and_streams_passed(inputs):
    model = Functional(nnx.Rngs(0))
    state = NNXModule(model).init(KEY, inputs)
    np.testing.assert_array_equal(state.apply(STEP, inputs, False)[0], model.linear(X) * np.float32(2))
    one, two = (np.asarray(state.apply(key, inputs, True)[0]) for key in (STEP, KEY))
    assert not np.array_equal(one, two)


def test_jit_and_grad():
    model = Net(nnx.Rngs(0))
    state = NNXModule(model).init(KEY, X)
    model.train()

    def loss(params):
        return jnp.mean(state.set_params(params).apply(STEP, X, True)[0] ** 2)

    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def reference(params):
        return jnp.mean(nnx.merge(graph, params, rest, copy=True)(X) ** 2)

    assert_trees_equal(
        jax.jit(jax.grad(loss))(state.params), nnx.to_pure_dict(nnx.as_pure(jax.jit(jax.grad(reference))(params)))
    )


def test_the_users_object_is_brought_up_to_date():
    model = Net(nnx.Rngs(0))
    module = NNXModule(model)
    state = jax.jit(module.init)(KEY, X)
    state = state.set_params(jax.tree.map(lambda leaf: leaf + 1, state.params)).apply(STEP, X, True)[1]
    before = pure(model, nnx.Param)
    other = state.to_module()
    assert_trees_equal(pure(model, nnx.Param), before)
    state.update(model)
    for updated in (other, model):
        assert_trees_equal(pure(updated, nnx.Param), state.params)
        assert_trees_equal(pure(updated, nnx.BatchStat), state.batch_stats)
        assert updated.calls[...] == 1
        assert updated.layers[1] is updated.layers[2]
    assert model.layers is not other.layers


def test_an_update_needs_a_first_state():
    with pytest.raises(ValueError, match="no values yet"):
        NNXModule(Net(nnx.Rngs(0))).to_module()


@pytest.mark.parametrize("form", [lambda s: s, nnx.to_pure_dict], ids=["state", "dict"])
def test_given_variables_are_taken(form):
    other = Net(nnx.Rngs(7))
    state = NNXModule(Net(nnx.Rngs(0)), variables=form(nnx.state(other))).init(KEY, X)
    assert_trees_equal(state.params, pure(other, nnx.Param))
    only = NNXModule(Net(nnx.Rngs(0)), variables=form(nnx.state(other, nnx.Param))).init(KEY, X)
    assert_trees_equal(only.params, pure(other, nnx.Param))


def test_variables_that_do_not_fit_are_listed():
    given = pure(Net(nnx.Rngs(0)), nnx.Param)
    given["layers"][0] = {"kernel": jnp.ones((2, 2)), "extra": jnp.ones(1)}
    with pytest.raises(ValueError) as caught:
        NNXModule(Net(nnx.Rngs(0)), variables=given).init(KEY, X)
    for line in (
        "params/layers/0/bias: missing; the module has float32[4]",
        "params/layers/0/extra: unexpected float32[1]",
        "params/layers/0/kernel: given float32[2,2], but the module has float32[3,4]",
    ):
        assert line in str(caught.value)


def test_another_object_is_refused():
    with pytest.raises(TypeError, match=r"needs a flax\.nnx\.Module"):
        NNXModule(lambda x: x)


class Record(nnx.Variable):
    """A kind of Variable of one's own."""


class Encoder(nnx.Module):
    """As in Flax's example of a variational autoencoder: the divergence is a Variable that each call makes."""

    def __init__(self, rngs):
        self.mean, self.scale = nnx.Linear(3, 2, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)
        self.rngs = rngs

    def __call__(self, x):
        mean, std = self.mean(x), jnp.exp(self.scale(x))
        self.divergence = Record(jnp.mean(0.5 * jnp.sum(-jnp.log(std**2) - 1.0 + std**2 + mean**2, axis=-1)))
        return mean + std * jax.random.normal(self.rngs.noise(), mean.shape)


class Autoencoder(nnx.Module):
    def __init__(self, rngs):
        self.parts, self.decoder = nnx.List([Encoder(rngs)]), nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, x):
        return self.decoder(self.parts[0](x))


class Lazy(nnx.Module):
    """Makes its parameters in its first call."""

    def __init__(self, rngs):
        self.rngs = rngs

    def __call__(self, x):
        if not hasattr(self, "layer"):
            self.layer = nnx.Linear(x.shape[-1], 2, rngs=self.rngs)
        return self.layer(x)


@pytest.mark.parametrize("strategy", some(["jit", "eager", "sharded"], 1))
def test_variables_that_a_call_makes_are_state(strategy):
    model = Autoencoder(nnx.Rngs(0, noise=1))
    trainer = eg.Trainer(model, eg.losses.MeanSquaredError(), optimizer=optax.adam(0.05), strategy=strategy)
    assert trainer.predict(X).shape == X.shape  # the first state, made by a prediction
    first = trainer.evaluate(X, X, verbose=0)["loss"]
    trainer.fit(X, X, epochs=20, batch_size=4, verbose=0)
    assert trainer.evaluate(X, X, verbose=0)["loss"] < first
    params = trainer.state.params["parts"][0]
    trainer.train_on_batch(X, X)
    last = trainer.state.variables["parts"][0]["divergence"]
    mean, scale = (np.asarray(X @ params[n]["kernel"] + params[n]["bias"], np.float64) for n in ("mean", "scale"))
    expected = np.mean(0.5 * np.sum(-2 * scale - 1 + np.exp(2 * scale) + mean**2, -1))
    np.testing.assert_allclose(last, expected, rtol=1e-5)  # float32
    trainer.state.update(model)
    assert float(model.parts[0].divergence[...]) == float(last)
    assert float(trainer.state.to_module().parts[0].divergence[...]) == float(last)


def test_parameters_that_the_first_call_makes_are_trained():
    trainer = eg.Trainer(Lazy(nnx.Rngs(3)), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    trainer.init_on_batch(X, X[:, :2])
    kernel, bias = (np.array(trainer.state.params["layer"][name]) for name in ("kernel", "bias"))
    assert np.std(kernel) > 0
    trainer.train_on_batch(X, X[:, :2])
    gradient = X.T @ (2 * (X @ kernel + bias - X[:, :2]) / (X.shape[0] * 2))
    np.testing.assert_allclose(trainer.state.params["layer"]["kernel"], kernel - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    trainer.init_on_batch(X, X[:, :2])
    assert not np.array_equal(trainer.state.params["layer"]["kernel"], kernel - 0.1 * gradient)


def test_a_module_that_makes_no_variables_is_only_traced_at_init():
    calls = []

    class Counting(nnx.Linear):
        def __call__(self, x):
            calls.append(isinstance(x, jax.core.Tracer))
            return super().__call__(x)

    NNXModule(Counting(3, 2, rngs=nnx.Rngs(0))).init(KEY, X)
    assert calls == [True]


def test_an_apply_of_ones_own_is_not_called_at_init():
    class Scaled(NNXModule):
        scale: jax.Array = eg.field(default=None, kw_only=True)

        def init(self, key, inputs):
            return super().init(key, inputs).replace(scale=jnp.asarray(2.0))

        def apply(self, key, inputs, training):
            outputs, state = super().apply(key, inputs["x"], training)
            return outputs * self.scale, state

    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    outputs = eg.Trainer(Scaled(model)).predict({"x": X})
    np.testing.assert_allclose(outputs, 2 * model(X), rtol=1e-5)  # compiled otherwise

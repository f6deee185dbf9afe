import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elegy.adapters import EquinoxModule

KEY, STEP = jax.random.key(0), jax.random.key(1)
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


class Stateful(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout

    def __init__(self, key, rate=0.0):
        self.linear = eqx.nn.Linear(3, 4, key=key)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(rate)

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.linear(x), state)
        return self.dropout(x, key=key), state


class Table(eqx.Module):
    """Holds integers and a NumPy array besides its parameters, and takes two inputs."""

    weight: jax.Array
    permutation: jax.Array
    offset: np.ndarray

    def __init__(self):
        self.weight = jnp.ones(3)
        self.permutation = jnp.array([2, 0, 1])
        self.offset = np.array([1, 2, 3])

    def __call__(self, image, scale):
        return self.weight * image[self.permutation] * scale + self.offset


class Batched(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x, key):
        assert x.shape == (8, 3)
        return jax.vmap(self.linear)(x) + jax.random.normal(key, ())


def assert_trees_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def own_call(model, state, key, x):
    keys = jax.random.split(key, len(x))
    call = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
    return call(x, state, keys)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_apply_with_state_is_the_librarys_own(training, rate):
    model, model_state = eqx.nn.make_with_state(Stateful)(KEY, rate)
    state = EquinoxModule(model, state=model_state).init(KEY, X)
    outputs, after = state.apply(STEP, X, training)
    expected, moved = own_call(model if training else eqx.nn.inference_mode(model), model_state, STEP, X)
    np.testing.assert_array_equal(outputs, expected)
    assert_trees_equal(after.to_module(), (model, moved))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.batch_stats))
    assert all(leaf.dtype != jnp.float32 for leaf in jax.tree.leaves(state.counters))


def test_examples_get_keys_of_their_own_in_training_only():
    model = eqx.nn.Sequential([eqx.nn.Linear(3, 64, key=KEY), eqx.nn.Dropout(0.5)])
    state = EquinoxModule(model).init(KEY, X)
    trained = np.asarray(state.apply(STEP, X, True)[0])
    assert not np.array_equal(trained[0] == 0, trained[1] == 0)
    assert not (np.asarray(state.apply(STEP, X, False)[0]) == 0).any()


def test_other_arrays_are_kept_and_not_trained():
    state = EquinoxModule(Table()).init(KEY, (X, np.ones(8, np.float32)))
    assert [leaf.shape for leaf in jax.tree.leaves(state.params)] == [(3,)]
    assert [leaf.dtype for leaf in jax.tree.leaves(state.arrays)] == [jnp.int32, jnp.int32]
    assert_trees_equal(state.to_module(), Table())


@pytest.mark.parametrize("spread", [lambda x, s: (x, s), lambda x, s: {"scale": s, "image": x}])
def test_inputs_are_spread(spread):
    inputs = spread(X, np.arange(8, dtype=np.float32))
    state = EquinoxModule(Table()).init(KEY, inputs)
    expected = X[:, [2, 0, 1]] * np.arange(8, dtype=np.float32)[:, None] + np.array([1, 2, 3], np.float32)
    np.testing.assert_array_equal(state.apply(STEP, inputs, True)[0], expected)


def test_a_batched_module_sees_the_whole_batch():
    model = Batched(eqx.nn.Linear(3, 2, key=KEY))
    state = EquinoxModule(model, batched=True).init(KEY, X)
    np.testing.assert_array_equal(state.apply(STEP, X, True)[0], model(X, STEP))


def test_jit_and_grad():
    model, model_state = eqx.nn.make_with_state(Stateful)(KEY)
    state = EquinoxModule((model, model_state)).init(KEY, X)

    def loss(params):
        return jnp.mean((state.set_params(params).apply(STEP, X, True)[0] + X[:, :1]) ** 2)

    def reference(model):
        return jnp.mean((own_call(model, model_state, STEP, X)[0] + X[:, :1]) ** 2)

    assert_trees_equal(
        jax.tree.leaves(jax.jit(jax.grad(loss))(state.params)),
        jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(reference))(model)),
    )


def test_given_variables_are_taken_and_stay_valid():
    model, other = (eqx.nn.MLP(3, 2, 4, 1, key=key) for key in (KEY, STEP))
    module = EquinoxModule(model, variables=other)
    made = jax.jit(module.init)(KEY, X)
    leaves = jax.tree.leaves(eqx.filter(other, eqx.is_array))
    assert_trees_equal(jax.tree.leaves(made.params), leaves)
    jax.tree.map(lambda leaf: leaf.delete(), made.params)
    assert_trees_equal(jax.tree.leaves(module.init(KEY, X).params), leaves)
    with pytest.raises(TypeError, match="another module of the same structure"):
        EquinoxModule(model, variables={"params": 1})


def test_variables_that_do_not_fit_are_listed():
    model, other = (eqx.nn.MLP(3, 2, width, 1, key=KEY) for width in (4, 5))
    with pytest.raises(ValueError, match=r"params/layers/0/weight: given float32\[5,3\], but the module has"):
        EquinoxModule(model, variables=other).init(KEY, X)


def test_a_missing_state_is_explained():
    model, state = eqx.nn.make_with_state(Stateful)(KEY)
    with pytest.raises(TypeError, match=r"make_with_state\(Stateful\)"):
        EquinoxModule(model)
    with pytest.raises(TypeError, match="must take a parameter named `state`"):
        EquinoxModule(eqx.nn.Linear(3, 2, key=KEY), state=state)
    with pytest.raises(TypeError, match=r"needs an equinox\.Module"):
        EquinoxModule(lambda x: x)
    with pytest.raises(ValueError, match="no parameters yet"):
        EquinoxModule((model, state)).to_module()

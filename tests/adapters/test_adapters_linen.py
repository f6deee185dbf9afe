import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elegy.adapters import LinenModule

KEY, STEP = jax.random.key(0), jax.random.key(1)
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


class Mixed(nn.Module):
    """Batch statistics, dropout, a collection of its own, and everything that can be sown."""

    @nn.compact
    def __call__(self, x, training: bool):
        x = nn.BatchNorm(use_running_average=not training, momentum=0.9)(nn.Dense(4)(x))
        calls = self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        if not self.is_initializing():
            calls.value += 1
        self.sow("losses", "energy", jnp.mean(x**2))
        self.sow("losses", "energy", jnp.ones((2,)))
        self.sow("metrics", "spread", jnp.std(x))
        self.sow("metrics", "spread", jnp.zeros(()))
        self.sow("intermediates", "hidden", x)
        self.sow("features", "hidden", x)
        return nn.Dropout(0.5)(x, deterministic=not training)


class Named(nn.Module):
    """Has an attribute that is called like the mode, which its call requires."""

    train: bool = True

    @nn.compact
    def __call__(self, x, train):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, image, scale):
        return nn.Dense(2)(image) * scale


def assert_trees_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def state():
    return LinenModule(Mixed()).init(KEY, X)


@pytest.mark.parametrize("training", [True, False])
def test_apply_is_the_librarys_own(state, training):
    outputs, after = state.apply(STEP, X, training)
    variables = {"params": state.params, "batch_stats": state.batch_stats, **state.collections}
    expected, updated = Mixed().apply(
        variables, X, training, rngs={"params": STEP}, mutable=["batch_stats", "counters", "losses", "metrics"]
    )
    np.testing.assert_array_equal(outputs, expected)
    assert_trees_equal(after.batch_stats, updated["batch_stats"])
    assert_trees_equal(after.collections, {"counters": updated["counters"]})
    assert jax.tree.structure(after.replace(_logs=state._logs)) == jax.tree.structure(state)


def test_init_is_the_librarys_own(state):
    own = Mixed().init(KEY, X, True)
    assert_trees_equal(state.params, own["params"])
    assert_trees_equal(state.batch_stats, own["batch_stats"])
    assert list(state.collections) == ["counters"]


def test_statistics_move_in_training_only(state):
    trained, tested = (state.apply(STEP, X, training)[1] for training in (True, False))
    assert not np.allclose(trained.batch_stats["BatchNorm_0"]["mean"], 0)
    np.testing.assert_array_equal(tested.batch_stats["BatchNorm_0"]["mean"], np.zeros(4))
    assert trained.collections["counters"]["calls"] == 1


def test_dropout_is_on_in_training_only(state):
    keys = jax.random.split(STEP)
    trained = [np.asarray(state.apply(key, X, True)[0]) for key in keys]
    tested = [np.asarray(state.apply(key, X, False)[0]) for key in keys]
    assert (trained[0] == 0).any()
    assert not np.array_equal(*trained)
    np.testing.assert_array_equal(*tested)


def test_sown_losses_and_metrics_are_reported(state):
    _, after = state.apply(STEP, X, True)
    mutable = ["batch_stats", "counters", "intermediates"]
    _, sown = Mixed().apply(state.variables, X, True, rngs={"params": STEP}, mutable=mutable)
    h = np.asarray(sown["intermediates"]["hidden"][0], np.float64)
    pending = {entry.name: (entry.kind, float(entry.value)) for entry in after._logs.pending}
    # float32 means against float64 means
    assert pending == {
        "energy": ("loss", pytest.approx((h**2).mean() + 2, rel=1e-5)),
        "spread": ("scalar", pytest.approx(h.std() / 2, rel=1e-5)),
    }


def test_many_steps_keep_the_structure(state):
    now = state
    for _ in range(3):
        _, now = now.apply(STEP, X, True)
        now = now.replace(_logs=state._logs)
    assert jax.tree.structure(now) == jax.tree.structure(state)
    assert now.collections["counters"]["calls"] == 3


@pytest.mark.parametrize(
    "inputs", [(X, np.float32(2)), {"scale": np.float32(2), "image": X}], ids=["positional", "keyword"]
)
def test_inputs_are_spread(inputs):
    module = LinenModule(TwoInputs())
    state = module.init(KEY, inputs)
    np.testing.assert_array_equal(
        state.apply(STEP, inputs, False)[0], TwoInputs().apply({"params": state.params}, X, np.float32(2))
    )


def test_a_mode_that_the_constructor_fixed_is_not_passed():
    state = LinenModule(nn.Dropout(0.5, deterministic=True)).init(KEY, X)
    np.testing.assert_array_equal(state.apply(STEP, X, True)[0], X)


@pytest.mark.parametrize("training", [True, False])
def test_a_mode_that_the_call_requires_is_passed(training):
    state = LinenModule(Named()).init(KEY, X)
    expected = Named().apply({"params": state.params}, X, training, rngs={"params": STEP})
    np.testing.assert_array_equal(state.apply(STEP, X, training)[0], expected)


def test_jit_and_grad(state):
    def loss(params, x):
        return jnp.mean(state.set_params(params).apply(STEP, x, True)[0] ** 2)

    def reference(params, x):
        variables = {**state.variables, "params": params}
        out, _ = Mixed().apply(variables, x, True, rngs={"params": STEP}, mutable=["batch_stats", "counters"])
        return jnp.mean(out**2)

    assert_trees_equal(jax.jit(jax.grad(loss))(state.params, X), jax.jit(jax.grad(reference))(state.params, X))


def test_given_variables_are_taken_and_stay_valid():
    own = Mixed().init(jax.random.key(5), X, False)
    module = LinenModule(Mixed(), variables=own)
    made = jax.jit(module.init)(KEY, X)
    assert_trees_equal(made.params, own["params"])
    jax.tree.map(lambda leaf: leaf.delete(), made.params)
    assert_trees_equal(module.init(KEY, X).params, own["params"])


def test_a_collection_that_is_not_given_is_initialised():
    own = Mixed().init(jax.random.key(5), X, False)
    made = LinenModule(Mixed(), variables={"params": own["params"]}).init(KEY, X)
    assert_trees_equal(made.params, own["params"])
    assert set(made.batch_stats["BatchNorm_0"]) == {"mean", "var"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p["Dense_0"].pop("bias"),
            r"Dense_0/bias: missing; the module has float32\[4\]\nA collection is given as a whole",
        ),
        (lambda p: p.update(extra=jnp.ones(1)), r"params/extra: unexpected float32\[1\]"),
        (
            lambda p: p["Dense_0"].update(kernel=jnp.ones((3, 9))),
            r"params/Dense_0/kernel: given float32\[3,9\], but the module has float32\[3,4\]",
        ),
        (
            lambda p: p["Dense_0"].update(bias=jnp.ones(4, jnp.int32)),
            r"params/Dense_0/bias: given int32\[4\], but the module has float32\[4\]",
        ),
    ],
    ids=["missing", "unexpected", "shape", "kind"],
)
def test_variables_that_do_not_fit_are_listed(change, message):
    params = Mixed().init(KEY, X, False)["params"]
    change(params)
    with pytest.raises(ValueError, match=message):
        LinenModule(Mixed(), variables={"params": params}).init(KEY, X)


def test_a_bare_tree_of_parameters_is_explained():
    params = Mixed().init(KEY, X, False)["params"]
    with pytest.raises(ValueError, match=r"Dense_0: unexpected; the collections of Mixed are .*params"):
        LinenModule(Mixed(), variables=params).init(KEY, X)
    with pytest.raises(TypeError, match="dict of collections"):
        LinenModule(Mixed(), variables=[params])


def test_another_object_is_refused():
    with pytest.raises(TypeError, match=r"needs a flax\.linen\.Module"):
        LinenModule(lambda x: x)


def test_a_module_without_parameters():
    state = LinenModule(nn.Dropout(0.5)).init(KEY, X)
    assert state.params == {}
    assert state.apply(STEP, X, True)[0].shape == X.shape

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elegy.adapters import HaikuModule

KEY, STEP = jax.random.key(0), jax.random.key(1)
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def mixed(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training)
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


def mlp(image, scale=1.0):
    return hk.nets.MLP([5, 2])(image) * scale


def assert_trees_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


STATEFUL = hk.transform_with_state(mixed)


@pytest.fixture(scope="module")
def state():
    return HaikuModule(STATEFUL).init(KEY, X)


@pytest.mark.parametrize("training", [True, False])
def test_apply_with_state_is_the_librarys_own(state, training):
    params, own = STATEFUL.init(KEY, X, True)
    assert_trees_equal(state.params, params)
    assert_trees_equal(state.haiku_state, own)
    outputs, after = state.apply(STEP, X, training)
    expected, moved = STATEFUL.apply(params, own, STEP, X, training)
    np.testing.assert_array_equal(outputs, expected)
    assert_trees_equal(after.haiku_state, moved)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_only_floats_are_batch_statistics(state):
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.batch_stats))
    assert [leaf.dtype for leaf in jax.tree.leaves(state.counters)] == [jnp.int32, jnp.int32]


def test_apply_without_state_is_the_librarys_own():
    transformed = hk.transform(mlp)
    state = HaikuModule(transformed).init(KEY, X)
    params = transformed.init(KEY, X)
    assert_trees_equal(state.params, params)
    assert state.batch_stats is None
    np.testing.assert_array_equal(state.apply(STEP, X, True)[0], transformed.apply(params, STEP, X))


def normed(x, is_training):
    return hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training)


@pytest.mark.parametrize("inputs", [X, (X, np.float32(2)), {"scale": np.float32(2), "image": X}])
def test_apply_without_key_is_the_librarys_own(inputs):
    transformed = hk.without_apply_rng(hk.transform(mlp))
    state = HaikuModule(transformed).init(KEY, inputs)
    expected = transformed.apply(state.params, *((X,) if inputs is X else (X, np.float32(2))))
    np.testing.assert_array_equal(state.apply(STEP, inputs, True)[0], expected)


@pytest.mark.parametrize("training", [True, False])
def test_apply_with_state_and_without_key_is_the_librarys_own(training):
    transformed = hk.without_apply_rng(hk.transform_with_state(normed))
    state = HaikuModule(transformed).init(KEY, X)
    outputs, after = state.apply(STEP, X, training)
    expected, moved = transformed.apply(state.params, state.haiku_state, X, training)
    np.testing.assert_array_equal(outputs, expected)
    assert_trees_equal(after.haiku_state, moved)


@pytest.mark.parametrize(
    "transformed",
    [
        hk.without_apply_rng(hk.transform(lambda *xs: hk.Linear(2)(xs[0]))),
        hk.without_apply_rng(hk.without_state(hk.transform_with_state(lambda x: hk.Linear(2)(x)))),
        hk.without_state(hk.without_apply_rng(hk.transform_with_state(lambda x: hk.Linear(2)(x)))),
        hk.Transformed(lambda key, x: {"w": jnp.ones((3, 2))}, lambda params, key, x: x @ params["w"]),
        hk.Transformed(lambda key, *xs: {"w": jnp.ones((3, 2))}, lambda params, rng, x: x @ params["w"]),
        hk.Transformed(lambda *args: {"w": jnp.ones((3, 2))}, lambda *args: args[2] @ args[0]["w"]),
    ],
    ids=["any-number", "key-last", "state-last", "another-name", "open-init", "no-names"],
)
def test_signatures_tell_whether_a_key_is_taken(transformed):
    state = HaikuModule(transformed).init(KEY, X)
    weights = jax.tree.leaves(state.params)[-1]
    np.testing.assert_allclose(state.apply(STEP, X, True)[0], X @ weights, rtol=1e-5, atol=1e-6)


NOISY = hk.transform(lambda x: hk.Linear(2)(x) + jax.random.normal(hk.next_rng_key(), (8, 2)))
NOISY_STATEFUL = hk.transform_with_state(lambda x: mixed(x, True))


@pytest.mark.parametrize(
    ("wrapped", "own"),
    [
        (hk.Transformed(NOISY.init, lambda params, *a: NOISY.apply(params, *a)), NOISY),
        (hk.Transformed(NOISY.init, jax.jit(lambda params, *a: NOISY.apply(params, *a))), NOISY),
        (
            hk.Transformed(lambda rng, *a, **k: NOISY.init(rng, *a, **k), lambda p, *a, **k: NOISY.apply(p, *a, **k)),
            NOISY,
        ),
        (
            hk.TransformedWithState(NOISY_STATEFUL.init, lambda p, s, *a: NOISY_STATEFUL.apply(p, s, *a)),
            NOISY_STATEFUL,
        ),
        (hk.TransformedWithState(NOISY_STATEFUL.init, lambda p, *a: NOISY_STATEFUL.apply(p, *a)), NOISY_STATEFUL),
        (hk.TransformedWithState(NOISY_STATEFUL.init, jax.jit(NOISY_STATEFUL.apply)), NOISY_STATEFUL),
    ],
    ids=["args", "jitted", "args-kwargs", "state-args", "params-args", "state-jitted"],
)
def test_functions_that_catch_all_arguments_get_the_key(wrapped, own):
    state = HaikuModule(wrapped).init(KEY, X)
    made = own.init(KEY, X)
    if isinstance(own, hk.Transformed):
        expected = own.apply(made, STEP, X)
    else:
        expected, _ = own.apply(*made, STEP, X)
    np.testing.assert_allclose(state.apply(STEP, X, True)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("transform", [hk.transform, hk.transform_with_state])
def test_the_librarys_own_functions_without_key_get_none(transform, jitted):
    own = hk.without_apply_rng(transform(lambda *xs: hk.Linear(2)(xs[0]) * len(xs)))
    state = HaikuModule(type(own)(own.init, jax.jit(own.apply)) if jitted else own).init(KEY, X)
    (linear,) = state.params.values()
    np.testing.assert_allclose(state.apply(STEP, X, True)[0], X @ linear["w"] + linear["b"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inputs", [(X, np.float32(2)), {"scale": np.float32(2), "image": X}])
def test_inputs_are_spread(inputs):
    transformed = hk.transform(mlp)
    state = HaikuModule(transformed).init(KEY, inputs)
    np.testing.assert_array_equal(
        state.apply(STEP, inputs, False)[0], transformed.apply(state.params, STEP, X, np.float32(2))
    )


def test_dropout_is_on_in_training_only(state):
    trained = [np.asarray(state.apply(key, X, True)[0]) for key in (KEY, STEP)]
    assert (trained[0] == 0).any()
    assert not np.array_equal(*trained)
    np.testing.assert_array_equal(*(np.asarray(state.apply(key, X, False)[0]) for key in (KEY, STEP)))


def test_jit_and_grad(state):
    def loss(params):
        return jnp.mean(state.set_params(params).apply(STEP, X, True)[0] ** 2)

    def reference(params):
        return jnp.mean(STATEFUL.apply(params, state.haiku_state, STEP, X, True)[0] ** 2)

    assert_trees_equal(jax.jit(jax.grad(loss))(state.params), jax.jit(jax.grad(reference))(state.params))


@pytest.mark.parametrize("with_state", [True, False])
def test_given_variables_are_taken(with_state):
    params, own = STATEFUL.init(jax.random.key(5), X, True)
    own = jax.tree.map(lambda leaf: leaf + 1, own)
    made = HaikuModule(STATEFUL, variables=(params, own) if with_state else params).init(KEY, X)
    assert_trees_equal(made.params, params)
    assert_trees_equal(made.haiku_state, own if with_state else STATEFUL.init(KEY, X, True)[1])


def test_variables_that_do_not_fit_are_listed():
    params, _ = STATEFUL.init(KEY, X, True)
    params["linear"] = {"w": jnp.ones((2, 2))}
    with pytest.raises(ValueError) as caught:
        HaikuModule(STATEFUL, variables=params).init(KEY, X)
    assert "params/linear/b: missing; the module has float32[4]" in str(caught.value)
    assert "A collection is given as a whole" not in str(caught.value)
    assert "params/linear/w: given float32[2,2], but the module has float32[3,4]" in str(caught.value)


def test_another_object_is_refused():
    with pytest.raises(TypeError, match=r"hk\.transform"):
        HaikuModule(mixed)

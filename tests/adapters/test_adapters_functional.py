import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elegy.adapters import FunctionalModule

KEY, STEP = jax.random.key(0), jax.random.key(1)
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def init(key, x):
    return {"w": jax.random.normal(key, (x.shape[-1], 2))}


def apply(params, x):
    return x @ params["w"]


def init_with_state(key, x):
    return init(key, x), {"mean": jnp.zeros(2), "steps": jnp.zeros((), jnp.int32)}


def apply_with_state(params, x, state, training):
    y = x @ params["w"]
    if not training:
        return y, state
    return y, {"mean": 0.9 * state["mean"] + 0.1 * y.mean(0), "steps": state["steps"] + 1}


def test_apply_is_the_functions_own():
    state = FunctionalModule(init, apply).init(KEY, X)
    np.testing.assert_array_equal(state.params["w"], init(KEY, X)["w"])
    outputs, after = state.apply(STEP, X, True)
    np.testing.assert_array_equal(outputs, apply(state.params, X))
    assert after is state


def test_init_may_take_the_key_alone():
    state = FunctionalModule(lambda key: {"w": jax.random.normal(key, (3, 2))}, apply).init(KEY, X)
    np.testing.assert_array_equal(state.params["w"], init(KEY, X)["w"])


def test_apply_is_passed_what_it_names():
    def noisy(params, x, *, key, training):
        return x @ params["w"] + (jax.random.normal(key, (2,)) if training else 0)

    state = FunctionalModule(init, noisy).init(KEY, X)
    expected = X @ state.params["w"]
    np.testing.assert_array_equal(state.apply(STEP, X, False)[0], expected)
    np.testing.assert_array_equal(state.apply(STEP, X, True)[0], expected + jax.random.normal(STEP, (2,)))


@pytest.mark.parametrize("inputs", [(X, 2.0), {"scale": 2.0, "x": X}])
def test_inputs_are_spread(inputs):
    module = FunctionalModule(lambda key, x, scale: init(key, x), lambda params, x, scale: scale * apply(params, x))
    state = module.init(KEY, inputs)
    np.testing.assert_array_equal(state.apply(STEP, inputs, True)[0], 2 * apply(init(KEY, X), X))


def test_state_is_passed_and_returned():
    state = FunctionalModule(init_with_state, apply_with_state).init(KEY, X)
    params, own = init_with_state(KEY, X)
    for training in (True, False, True):
        outputs, state = state.apply(STEP, X, training)
        expected, own = apply_with_state(params, X, own, training)
        np.testing.assert_array_equal(outputs, expected)
    np.testing.assert_array_equal(state.batch_stats["mean"], own["mean"])
    assert state.counters == {"mean": None, "steps": 2}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (init, apply_with_state, r"`init` must return \(params, state\), not a dict"),
        (init_with_state, lambda params, x, state: x, r"must return \(outputs, state\), but it returned a "),
    ],
)
def test_the_rule_for_state_is_explained(first, second, message):
    with pytest.raises(TypeError, match=message):
        FunctionalModule(first, second).init(KEY, X).apply(STEP, X, True)


def test_only_functions_are_taken():
    with pytest.raises(TypeError, match="but apply is None"):
        FunctionalModule(init, None)


def test_given_variables_are_taken():
    params, state = init_with_state(STEP, X)
    plain = FunctionalModule(init, apply, variables=params).init(KEY, X)
    np.testing.assert_array_equal(plain.params["w"], params["w"])
    both = FunctionalModule(init_with_state, apply_with_state, variables=(params, state)).init(KEY, X)
    np.testing.assert_array_equal(both.params["w"], params["w"])
    with pytest.raises(ValueError, match=r"params/w: given float32\[1\], but the module has float32\[3,2\]"):
        FunctionalModule(init, apply, variables={"w": np.ones(1, np.float32)}).init(KEY, X)


def test_jit_and_grad():
    state = FunctionalModule(init, apply).init(KEY, X)
    grads = jax.jit(jax.grad(lambda params: jnp.sum(state.set_params(params).apply(STEP, X, True)[0])))(state.params)
    np.testing.assert_allclose(grads["w"], np.repeat(X.sum(0)[:, None], 2, 1), rtol=1e-5, atol=1e-6)  # float32 sums

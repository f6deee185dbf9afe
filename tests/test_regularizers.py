import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elegy.regularizers import L1, L1L2, L2, Regularizer


@pytest.fixture
def parameters():
    rng = np.random.default_rng(0)
    return {"a": {"w": rng.normal(size=(3, 4)).astype("f4")}, "b": rng.normal(size=5).astype("f4"), "step": np.int32(3)}


def flat(parameters):
    return np.concatenate([parameters["a"]["w"].ravel(), parameters["b"]]).astype("f8")


@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [
        (L1(), lambda p: 0.01 * np.abs(p).sum()),
        (L1(0.3), lambda p: 0.3 * np.abs(p).sum()),
        (L2(l=0.2), lambda p: 0.2 * np.square(p).sum()),
        (L1L2(l1=0.1, l2=0.2), lambda p: 0.1 * np.abs(p).sum() + 0.2 * np.square(p).sum()),
        (L1L2(), lambda p: 0.0),
        (L1L2(l2=0.5, weight=3.0), lambda p: 1.5 * np.square(p).sum()),
    ],
    ids=lambda r: getattr(r, "name", ""),
)
def test_value(regularizer, expected, parameters):
    np.testing.assert_allclose(regularizer(parameters=parameters), expected(flat(parameters)), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(regularizer)(parameters=parameters), expected(flat(parameters)), rtol=1e-6)


def test_gradient():
    w = jnp.array([1.0, -2.0, 0.5])
    grads = jax.grad(lambda w: L1L2(l1=0.1, l2=0.2)(parameters={"w": w}))(w)
    np.testing.assert_allclose(grads, 0.1 * np.sign(w) + 0.4 * w, rtol=1e-6)


def test_terms_count_once_over_replicas(parameters):
    # Two replicas with 3 and 5 real examples: the sum of numerators over the sum of denominators is the value.
    value = float(L2()(parameters=parameters))
    terms = [L2().terms(parameters=parameters, examples=n) for n in (3, 5)]
    total = sum(n for n, _ in terms) / sum(d for _, d in terms)
    np.testing.assert_allclose(total, value, rtol=1e-6)
    masked = L2().terms(parameters=parameters, mask=jnp.array([True, True, False]))
    np.testing.assert_allclose(masked[0] / masked[1], value, rtol=1e-6)
    assert masked[1] == 2.0
    assert L2().terms(parameters=parameters)[1] == 1.0


def test_reduction_has_no_effect(parameters):
    assert L2(reduction="sum").terms(parameters=parameters, examples=4)[1] == 4.0
    assert L2(reduction="none").terms(parameters=parameters, examples=4)[1] == 4.0


def test_ignores_examples(parameters):
    assert L1().maskable(8, parameters=parameters, target=None, preds=None)


def test_bfloat16_is_summed_in_float32():
    w = jnp.full(4096, 1.0, jnp.bfloat16)
    value = L2(1.0)(parameters=w)
    assert value.dtype == jnp.float32
    assert value == 4096.0


def test_names():
    assert [r.name for r in (L1(), L2(), L1L2(), L1(name="penalty"))] == ["l1", "l2", "l1l2", "penalty"]


def test_a_regularizer_returns_a_scalar():
    class Wrong(Regularizer):
        def call(self, parameters):
            return parameters

    with pytest.raises(ValueError, match="must return a scalar"):
        Wrong().terms(parameters=jnp.ones(2))


def test_missing_parameters_are_named():
    with pytest.raises(TypeError, match="needs 'parameters'"):
        L1()(preds=jnp.ones(2))


def test_complex_parameters():
    z = np.array([3.0 + 4.0j, -2.0j, 1.0])
    parameters = {"z": jnp.asarray(z, jnp.complex64), "w": jnp.array([-2.0])}
    for regularizer, expected in ((L1(1.0), np.abs(z).sum() + 2), (L2(1.0), (np.abs(z) ** 2).sum() + 4)):
        value = regularizer(parameters=parameters)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    # JAX's gradient of a real function of z is conj(d/dx + i d/dy): that of |z|² is 2 conj(z).
    grads = jax.grad(lambda z: L2(1.0)(parameters=z))(parameters["z"])
    np.testing.assert_allclose(grads, 2 * np.conj(z), rtol=1e-6)

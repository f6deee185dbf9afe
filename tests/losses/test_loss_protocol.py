import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elegy.errors import FrozenError
from elegy.losses import CrossEntropy, FunctionLoss, Loss, MeanSquaredError, Reduction
from elegy.losses.function import as_loss
from elegy.metrics import Accuracy
from elegy.pytree import static_field


class Identity(Loss):
    """Returns the predictions, so that the reduction alone is under test."""

    def call(self, preds):
        return preds


def data(shape=(6, 3), seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape).astype("f4")
    weight = rng.uniform(0.5, 2.0, size=shape[0]).astype("f4")
    mask = np.arange(shape[0]) < shape[0] - 2
    return values, weight, mask


REFERENCE = {
    Reduction.MEAN: lambda v, w, m: (w * v).sum() / w.sum(),
    Reduction.SUM_OVER_BATCH_SIZE: lambda v, w, m: (w * v).sum() / m.sum(),
    Reduction.SUM: lambda v, w, m: (w * v).sum(),
    Reduction.NONE: lambda v, w, m: w * v,
}


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 2)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_reductions(reduction, shape, weighted, masked):
    values, weight, mask = data(shape)
    kwargs = {}
    if weighted:
        kwargs["sample_weight"] = jnp.asarray(weight)
    if masked:
        kwargs["mask"] = jnp.asarray(mask)
    trailing = (-1,) + (1,) * (len(shape) - 1)
    m = np.broadcast_to((mask if masked else np.ones(shape[0])).reshape(trailing), shape).astype("f8")
    w = m * (weight if weighted else np.ones(shape[0])).reshape(trailing)
    expected = 2.0 * REFERENCE[reduction](values.astype("f8"), w, m)

    loss = Identity(reduction=reduction, weight=2.0)
    got = loss(preds=values, **kwargs)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(jax.jit(loss)(preds=values, **kwargs), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (6,), (6, 1), (6, 3), (1, 3)])
def test_weight_shapes(shape):
    values, *_ = data()
    weight = np.random.default_rng(1).uniform(0.5, 1.5, size=shape).astype("f4")
    aligned = weight[:, None] if weight.ndim == 1 else weight
    w = np.broadcast_to(aligned, values.shape).astype("f8")
    got = Identity()(preds=values, sample_weight=jnp.asarray(weight))
    np.testing.assert_allclose(got, (w * values).sum() / w.sum(), rtol=2e-6)


@pytest.mark.parametrize("shape", [(3,), (5,), (6, 2), (6, 3, 2)])
def test_weights_that_do_not_fit(shape):
    # (3,) would broadcast along the features if it were aligned like NumPy does.
    with pytest.raises(ValueError, match=r"sample_weight has shape .* the values have shape \(6, 3\)"):
        Identity()(preds=jnp.zeros((6, 3)), sample_weight=jnp.ones(shape))


@pytest.mark.parametrize("reduction", [Reduction.MEAN, Reduction.SUM_OVER_BATCH_SIZE, Reduction.SUM])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["target", "preds"])
def test_rows_of_weight_zero_leak_nothing(reduction, bad, key):
    values, weight, mask = data()
    arrays = {"target": np.zeros_like(values), "preds": values}
    clean = {k: jnp.asarray(v) for k, v in arrays.items()}
    arrays[key] = arrays[key].copy()
    arrays[key][4:] = bad
    dirty = {k: jnp.asarray(v) for k, v in arrays.items()}
    loss = MeanSquaredError(reduction=reduction)
    for kwargs in ({"sample_weight": jnp.asarray(weight * mask)}, {"mask": jnp.asarray(mask)}):
        kwargs = {"mask": jnp.asarray(mask), **kwargs}

        def value(preds, target, kwargs=kwargs):
            return loss(target=target, preds=preds, **kwargs)

        expected = jax.value_and_grad(value)(clean["preds"], clean["target"])
        got = jax.value_and_grad(value)(dirty["preds"], dirty["target"])
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1][:4], expected[1][:4])
        np.testing.assert_array_equal(got[1][4:], 0.0)


def test_no_weight_at_all_is_zero_with_a_zero_gradient():
    value, grad = jax.value_and_grad(lambda p: Identity()(preds=p, sample_weight=jnp.zeros(3)))(jnp.ones(3))
    assert value == 0.0
    np.testing.assert_array_equal(grad, 0.0)


def test_terms():
    values, weight, _ = data()
    numerator, denominator = Identity().terms(preds=values, sample_weight=jnp.asarray(weight))
    np.testing.assert_allclose(numerator, (weight[:, None].astype("f8") * values).sum(), rtol=1e-5)
    np.testing.assert_allclose(denominator, weight.astype("f8").sum() * 3, rtol=1e-6)
    assert {numerator.dtype, denominator.dtype} == {jnp.dtype("float32")}
    assert not numerator.weak_type
    assert not denominator.weak_type
    assert Identity(reduction="sum").terms(preds=values)[1] is None


@pytest.mark.parametrize(
    ("kwargs", "examples"),
    [({}, 1.0), ({"examples": 5}, 5.0), ({"mask": jnp.array([True, False, True])}, 2.0), ({"examples": 0}, 0.0)],
)
def test_scalar_values_stand_for_the_examples(kwargs, examples):
    numerator, denominator = Identity().terms(preds=jnp.float32(3.0), **kwargs)
    assert (numerator, denominator) == (3.0 * examples, examples)


def test_scalar_values_of_no_examples_do_not_count():
    numerator, denominator = Identity().terms(preds=jnp.float32(jnp.nan), examples=0)
    assert (numerator, denominator) == (0.0, 0.0)


def test_reduction_none_is_not_a_scalar():
    with pytest.raises(ValueError, match=r"'identity' has Reduction.NONE.*Use Reduction.MEAN"):
        Identity(reduction="none").terms(preds=jnp.ones(2))


def test_unknown_reduction():
    with pytest.raises(ValueError, match=r"'avg' is not a reduction.*'mean'"):
        Identity(reduction="avg")


def test_defaults_and_immutability():
    loss = Identity(reduction=None, weight=None)
    assert (loss.reduction, loss.weight, loss.name) == (Reduction.MEAN, 1.0, "identity")
    assert Identity(name="other").name == "other"
    with pytest.raises(FrozenError):
        loss.weight = 2.0


def test_equal_losses_have_equal_structure():
    assert jax.tree.structure(Identity()) == jax.tree.structure(Identity())
    assert jax.tree.structure(Identity()) != jax.tree.structure(Identity(weight=2.0))


def test_subclass_with_fields_and_subclass_with_init():
    class WithField(Loss):
        power: int = static_field(default=2)

        def call(self, target, preds):
            return jnp.abs(preds - target) ** self.power

    class WithInit(Loss):
        power: int = static_field()

        def __init__(self, power):
            super().__init__(weight=2.0)
            self.power = power

        def call(self, target, preds):
            return jnp.abs(preds - target) ** self.power

    batch = {"target": jnp.zeros(1), "preds": jnp.array([2.0])}
    assert WithField(3)(**batch) == 8.0
    assert WithField(power=3, weight=0.5)(**batch) == 4.0
    assert WithInit(3)(**batch) == 16.0
    assert WithInit(3).name == "with_init"


def test_index_into():
    loss = MeanSquaredError(weight=3.0, reduction="sum").index_into(target="a", preds=["b", 1])
    batch = {"target": {"a": jnp.zeros(2), "z": None}, "preds": {"b": (None, jnp.array([1.0, 2.0]))}}
    assert loss(**batch) == 15.0
    assert loss.terms(**batch)[1] is None
    assert (loss.name, loss.reduction) == ("mean_squared_error", Reduction.SUM)
    assert loss.maskable(2, **batch)
    nan = {"target": {"a": jnp.array([0.0, jnp.nan])}, "preds": batch["preds"]}
    assert loss(**nan, sample_weight=jnp.array([1.0, 0.0])) == 3.0


def test_rename_arguments():
    loss = MeanSquaredError().rename_arguments(target="inputs")
    assert loss(inputs=jnp.zeros(2), preds=jnp.full(2, 3.0), target=jnp.full(2, 100.0)) == 9.0
    nested = MeanSquaredError().index_into(target=0).rename_arguments(target="inputs")
    assert nested(inputs=[jnp.zeros(2)], preds=jnp.full(2, 3.0)) == 9.0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (MeanSquaredError().index_into(target="b"), r"'target' has nothing at 'b': the only key is 'a'"),
        (
            MeanSquaredError().index_into(inputs="b"),
            "indexes into 'inputs', which is missing: there are 'target'",
        ),
        (
            MeanSquaredError().rename_arguments(target="labels"),
            "takes 'labels', which is missing: there are 'target' and 'preds'",
        ),
    ],
)
def test_wrapper_errors(loss, message):
    with pytest.raises(KeyError, match=message):
        loss(target={"a": jnp.zeros(1)}, preds=jnp.zeros(1))


# Arguments by name


def both(target, preds):
    return preds - 2 * target


def swapped(preds, target):
    return preds - 2 * target


def scikit(y_true, y_pred):
    return y_pred - 2 * y_true


def anonymous(a, b):
    return b - 2 * a


def positional_only(a, b, /):
    return b - 2 * a


def one_known(log_predictions, targets):
    return log_predictions - 2 * targets


def extra_default(preds, target, epsilon=0.0):
    return preds - 2 * target + epsilon


def everything(**kwargs):
    return kwargs["preds"] - 2 * kwargs["target"]


def some_and_rest(target, **rest):
    return rest["preds"] - 2 * target


def keyword_only(*, labels, logits):
    return logits - 2 * labels


def undecorated(*args, **kwargs):
    return anonymous(*args, **kwargs)


@pytest.mark.parametrize(
    "function",
    [
        both,
        swapped,
        scikit,
        anonymous,
        positional_only,
        one_known,
        extra_default,
        everything,
        some_and_rest,
        keyword_only,
        undecorated,
        jax.jit(scikit),
        functools.partial(extra_default, epsilon=0.0),
    ],
    ids=lambda f: getattr(f, "__name__", "partial"),
)
def test_functions_receive_what_they_name(function):
    target, preds = jnp.array([1.0, 2.0]), jnp.array([5.0, 9.0])
    kwargs = {"inputs": jnp.ones(7), "parameters": {"w": jnp.ones(2)}, "batch_stats": None, "examples": 2}
    got = FunctionLoss(function)(target=target, preds=preds, **kwargs)
    np.testing.assert_allclose(got, 4.0)


OPTAX = [
    optax.squared_error,
    optax.l2_loss,
    optax.huber_loss,
    optax.log_cosh,
    optax.cosine_distance,
    optax.softmax_cross_entropy,
    optax.safe_softmax_cross_entropy,
    optax.sigmoid_binary_cross_entropy,
    optax.sigmoid_focal_loss,
    optax.losses.poly_loss_cross_entropy,
    optax.losses.kl_divergence,
    optax.losses.hinge_loss,
]


@pytest.mark.parametrize("function", OPTAX, ids=lambda f: f.__name__)
def test_optax_functions(function):
    rng = np.random.default_rng(0)
    preds = rng.normal(size=(5, 4)).astype("f4")
    target = rng.dirichlet(np.ones(4), size=5).astype("f4")
    expected = np.asarray(function(preds, target), "f8").mean()
    loss = FunctionLoss(function)
    np.testing.assert_allclose(loss(target=target, preds=preds), expected, rtol=1e-6)
    assert loss.name == function.__name__
    assert loss.maskable(5, target=target, preds=preds)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda a, b, c: 0,
            "needs 'a', 'b' and 'c', which are missing: there are 'target' and 'preds'.*two positional",
        ),
        (lambda x: 0, "needs 'x'"),
        (lambda target, preds, batch_stats: 0, "needs 'batch_stats'.*Pass it, or give the parameter a default"),
        (lambda target, *, temperature: 0, "needs 'temperature'.*y_true"),
        (lambda target, preds: (target, preds), "returned a tuple"),
        (lambda target, preds: None, "returned None"),
    ],
)
def test_function_errors(function, message):
    with pytest.raises(TypeError, match=message):
        FunctionLoss(function, name="f")(target=jnp.ones(2), preds=jnp.ones(2))


@pytest.mark.parametrize(
    ("target", "preds"), [((4,), (4, 1)), ((4, 1), (4,)), ((3, 3), (3, 3, 1))], ids=["labels", "outputs", "steps"]
)
def test_a_function_that_compares_every_example_with_every_other(target, preds):
    target, preds = (np.random.default_rng(0).normal(size=shape).astype("f4") for shape in (target, preds))
    message = r"'f' broadcasts target of shape .* and preds of shape .*reshape"
    with pytest.raises(ValueError, match=message):
        FunctionLoss(lambda target, preds: (target - preds) ** 2, name="f")(target=target, preds=preds)
    for reduced in (jnp.mean, jax.jit(jnp.mean), lambda values: values.mean(-1)):
        loss = FunctionLoss(lambda target, preds, by=reduced: by((target - preds) ** 2), name="f")
        with pytest.warns(UserWarning, match=message):  # pairs may be meant, as in an energy distance
            value = loss(target=target, preds=preds)
        np.testing.assert_allclose(value, np.mean((target - preds) ** 2), rtol=1e-6)
        assert loss(target=target, preds=preds) == value  # warned of once


@pytest.mark.parametrize(
    ("target", "preds", "function"),
    [
        ((4,), (4, 1), lambda target, preds: target - preds[:, 0]),
        ((4,), (4, 1), lambda target, preds: jnp.mean(preds[:, 0] - target)),
        ((1,), (1, 1), lambda target, preds: target - preds),
        ((4,), (4, 4), lambda target, preds: preds[jnp.arange(4), target.astype(int)]),
        ((4, 6), (4, 6), lambda target, preds: preds[:, 1:] - target[:, :-1]),
        ((4, 1, 3), (4, 2, 1), lambda target, preds: target - preds),
        ((4, 3), (4, 2, 3), lambda target, preds: preds - target[:, None]),
    ],
)
def test_functions_that_compare_each_example_with_its_own(target, preds, function):
    target, preds = jnp.zeros(target), jnp.ones(preds)
    values = np.asarray(function(target, preds), "f8")
    np.testing.assert_allclose(FunctionLoss(function)(target=target, preds=preds), values.mean(), rtol=1e-6)


def test_absent_labels_are_named():
    with pytest.raises(TypeError, match=r"the loss 'mean_squared_error' needs 'target', .*: there is only 'preds'"):
        MeanSquaredError()(target=None, preds=jnp.ones(2))


def test_a_function_that_takes_the_weights_applies_them():
    def weighted(target, preds, sample_weight=None):
        values = jnp.abs(target - preds)
        return values if sample_weight is None else values * sample_weight

    def plain(target, preds):
        return jnp.abs(target - preds)

    values, weight, _ = data((6,))
    kwargs = {"target": jnp.zeros(6), "preds": values, "sample_weight": jnp.asarray(weight)}
    for reduction in ("mean", "sum", "sum_over_batch_size"):
        mine = FunctionLoss(weighted, reduction=reduction)(**kwargs)
        np.testing.assert_allclose(mine, FunctionLoss(plain, reduction=reduction)(**kwargs), rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (MeanSquaredError(), True),
        (FunctionLoss(lambda target, preds: preds[:, 0]), True),
        (FunctionLoss(lambda target, preds: jnp.mean(preds)), False),
        (FunctionLoss(lambda target, preds: preds.T), False),
    ],
)
def test_maskable_looks_at_shapes_only(loss, expected):
    kwargs = {name: jax.ShapeDtypeStruct((6, 3), jnp.float32) for name in ("target", "preds")}
    assert loss.maskable(6, mask=None, examples=jax.ShapeDtypeStruct((), jnp.int32), **kwargs) is expected


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (MeanSquaredError, r"write MeanSquaredError\(\.\.\.\)"),
        ("mse", "'mse' cannot be used as a loss"),
        (dict, "dict cannot be used as a loss"),
    ],
)
def test_objects_that_are_not_losses(thing, message):
    with pytest.raises(TypeError, match=message):
        as_loss(thing)


@pytest.mark.parametrize("loss", [MeanSquaredError, CrossEntropy])
@pytest.mark.parametrize(
    ("preds", "found"),
    [
        ({"logits": np.zeros((4, 3))}, r"a dict with the keys 'logits', not one array.*index_into\(preds='logits'\)"),
        ((np.zeros((4, 3)), np.zeros(4)), r"a tuple of 2, not one array.*index_into\(preds=0\)"),
    ],
)
def test_several_outputs_must_be_chosen_from(loss, preds, found):
    with pytest.raises(TypeError, match=f"{loss.__name__}: preds is {found}"):
        loss()(target=np.zeros(4, np.int32), preds=preds)


@pytest.mark.parametrize("cls", [MeanSquaredError, Accuracy])
def test_the_argument_on_of_earlier_versions_is_explained(cls):
    with pytest.raises(TypeError, match=r"'on'\. Instead of `on=key`, call `\.index_into\(target=key, preds=key\)`"):
        cls(on="labels")
    with pytest.raises(TypeError, match=r"'off'$"):
        cls(off="labels")


def test_an_error_of_a_function_names_it_and_what_it_received():
    loss = FunctionLoss(optax.softmax_cross_entropy)
    with pytest.raises(ValueError, match="broadcasting") as caught:
        loss(target=jnp.zeros(32, int), preds=jnp.zeros((32, 3)))
    note = caught.value.__notes__[-1]
    assert "'softmax_cross_entropy'" in note
    assert "target int32[32]" in note
    assert "preds float32[32,3]" in note

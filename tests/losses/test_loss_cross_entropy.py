import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics
from scipy.special import expit, log_softmax, softmax

from elegy.losses import CrossEntropy, cross_entropy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(9, 4)).astype("f4")
LABELS = RNG.integers(0, 4, size=9)
ONE_HOT = np.eye(4)[LABELS]
SOFT = RNG.dirichlet(np.ones(4), size=9)
LOG_P = log_softmax(LOGITS.astype("f8"), axis=-1)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64"])
def test_indices(dtype):
    labels = LABELS.astype(dtype)  # NumPy input; JAX narrows int64
    np.testing.assert_allclose(cross_entropy(labels, LOGITS), -LOG_P[np.arange(9), LABELS], rtol=2e-6)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"from_logits": False}], ids=str)
@pytest.mark.parametrize(("dtype", "classes"), [("uint8", 256), ("uint8", 300), ("int8", 128), ("int16", 40_000)])
def test_more_classes_than_the_labels_dtype_counts(dtype, classes, options):
    labels = np.array([0, 7, np.iinfo(dtype).max], dtype)
    logits = np.random.default_rng(1).normal(size=(3, classes))
    log_p = log_softmax(logits, axis=-1)
    smoothing = options.get("label_smoothing", 0.0)
    expected = -(1 - smoothing) * log_p[np.arange(3), labels.astype("i8")] - smoothing * log_p.mean(-1)
    preds = logits if options.get("from_logits", True) else np.exp(log_p)
    loss = CrossEntropy(**options)
    np.testing.assert_allclose(loss(target=labels, preds=preds.astype("f4")), expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("label", [-1, -128])
def test_negative_narrow_labels_are_out_of_range(label):
    labels = np.array([3, label], "int8")
    values = cross_entropy(labels, jnp.zeros((2, 200)))
    np.testing.assert_allclose(values, [np.log(200), np.nan], rtol=1e-6)


@pytest.mark.parametrize("shape", [(32, 10), (4, 5, 6), (7,)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_indices_have_the_bits_of_optax(shape, scale):
    logits = (scale * np.random.default_rng(2).normal(size=shape)).astype("f4")
    logits.reshape(-1, shape[-1])[-1, :3] = [-np.inf, logits.max(), -0.0]
    if shape[0] == 32:
        logits[:3] = np.array([-np.inf, np.inf, np.nan])[:, None]  # whole rows
    labels = np.random.default_rng(3).integers(0, shape[-1], shape[:-1])
    weight = np.random.default_rng(4).normal(size=shape[:-1]).astype("f4")

    def weighted(function):
        return jax.jit(jax.value_and_grad(lambda logits: (weight * function(logits)).sum()))

    ours = weighted(lambda logits: cross_entropy(labels, logits))(logits)
    theirs = weighted(lambda logits: optax.softmax_cross_entropy_with_integer_labels(logits, labels))(logits)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    values = jax.jit(lambda logits: optax.softmax_cross_entropy_with_integer_labels(logits, labels))(logits)
    np.testing.assert_array_equal(jax.jit(cross_entropy)(labels, logits), values)


@pytest.mark.parametrize("target", [ONE_HOT, SOFT, ONE_HOT.astype("int32")], ids=["one_hot", "soft", "int_one_hot"])
def test_distributions(target):
    expected = -(target * LOG_P).sum(-1)
    np.testing.assert_allclose(cross_entropy(target.astype(np.result_type(target, "i4")), LOGITS), expected, rtol=2e-6)


def test_against_scikit_learn():
    weight = RNG.uniform(size=9)
    expected = sklearn.metrics.log_loss(LABELS, softmax(LOGITS.astype("f8"), -1), sample_weight=weight, labels=range(4))
    got = CrossEntropy()(target=LABELS, preds=LOGITS, sample_weight=weight.astype("f4"))
    np.testing.assert_allclose(got, expected, rtol=2e-6)
    probabilities = softmax(LOGITS, -1)
    got = CrossEntropy(from_logits=False)(target=LABELS, preds=probabilities, sample_weight=weight.astype("f4"))
    np.testing.assert_allclose(got, expected, rtol=2e-6)


@pytest.mark.parametrize("target", [LABELS, SOFT], ids=["indices", "soft"])
@pytest.mark.parametrize("from_logits", [True, False])
def test_label_smoothing(target, from_logits):
    distribution = np.eye(4)[target] if target.ndim == 1 else target
    expected = -((0.9 * distribution + 0.1 / 4) * LOG_P).sum(-1)
    preds = LOGITS if from_logits else softmax(LOGITS, -1)
    got = cross_entropy(jnp.asarray(target), preds, from_logits=from_logits, label_smoothing=0.1)
    np.testing.assert_allclose(got, expected, rtol=5e-6)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("label_smoothing", [2.0, 1.0, -0.1, float("nan")])
def test_label_smoothing_out_of_range(label_smoothing, binary):
    with pytest.raises(ValueError, match=r"label_smoothing=.* must be at least 0 and less than 1, or None"):
        CrossEntropy(label_smoothing=label_smoothing, binary=binary)


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 5)])
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("label_smoothing", [None, 0.2])
def test_binary(shape, from_logits, label_smoothing):
    logits = RNG.normal(size=shape).astype("f4")
    labels = RNG.integers(0, 2, size=shape)
    t = labels if label_smoothing is None else 0.8 * labels + 0.1
    p = expit(logits.astype("f8"))
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    expected = expected.mean(-1) if len(shape) > 1 else expected
    preds = logits if from_logits else expit(logits)
    got = cross_entropy(labels, preds, binary=True, from_logits=from_logits, label_smoothing=label_smoothing)
    # 1 - p in float32 costs a digit or two for p near 1.
    np.testing.assert_allclose(got, expected, rtol=2e-6 if from_logits else 2e-5)


def test_binary_accepts_a_missing_axis():
    logits, labels = RNG.normal(size=(8, 1)).astype("f4"), RNG.integers(0, 2, size=8)
    np.testing.assert_array_equal(
        cross_entropy(labels, logits, binary=True), cross_entropy(labels[:, None], logits, binary=True)
    )


def test_extra_axes():
    logits, labels = RNG.normal(size=(2, 3, 5, 4)).astype("f4"), RNG.integers(0, 4, size=(2, 3, 5))
    expected = -np.take_along_axis(log_softmax(logits.astype("f8"), -1), labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(cross_entropy(labels, logits), expected, rtol=5e-6)
    np.testing.assert_allclose(cross_entropy(labels[..., None], logits), expected, rtol=5e-6)


@pytest.mark.parametrize("from_logits", [True, False])
def test_extreme_predictions_stay_finite(from_logits):
    preds = jnp.array([[1000.0, -1000.0]]) if from_logits else jnp.array([[1.0, 0.0]])
    for binary, target in ((False, jnp.array([1])), (True, jnp.array([[0.0, 1.0]]))):
        value, grad = jax.value_and_grad(
            lambda p, binary=binary, target=target: CrossEntropy(from_logits=from_logits, binary=binary)(
                target=target, preds=p
            )
        )(preds)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("options", [{}, {"from_logits": False}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("label", [-1, 4, 100])
def test_labels_out_of_range_are_visible(options, label):
    labels = jnp.asarray(LABELS).at[0].set(label)
    values = cross_entropy(labels, jax.nn.softmax(LOGITS), **options)
    assert np.isnan(values[0])
    assert np.isfinite(values[1:]).all()
    assert cross_entropy(labels, jax.nn.softmax(LOGITS), check_bounds=False, **options)[0] == 0.0


def test_labels_out_of_range_with_weight_zero_do_not_count():
    labels, weight = LABELS.copy(), np.ones(9, "f4")
    labels[:2], weight[:2] = -1, 0.0

    def loss(logits, labels, **kwargs):
        return CrossEntropy()(target=labels, preds=logits, **kwargs)

    got = jax.value_and_grad(loss)(jnp.asarray(LOGITS), labels, sample_weight=jnp.asarray(weight))
    expected = jax.value_and_grad(loss)(jnp.asarray(LOGITS[2:]), LABELS[2:])
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(got[1][2:], expected[1], rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(got[1][:2], 0.0)


@pytest.mark.parametrize(
    ("target", "preds", "error", "message"),
    [
        (np.zeros(3, "i4"), np.zeros((4, 2)), ValueError, r"target has shape \(3,\) and preds \(4, 2\)"),
        (np.zeros((4, 3)), np.zeros((4, 2)), ValueError, r"class indices of shape \(\.\.\.\)"),
        (np.zeros(4, "i4"), np.zeros(4), ValueError, r"CrossEntropy\(binary=True\)"),
        (np.zeros(4, "i4"), np.zeros((4, 1)), ValueError, r"CrossEntropy\(binary=True\)"),
        (np.zeros(4), np.zeros((4, 2)), TypeError, "are integers, but it is float32"),
    ],
)
def test_shape_and_type_errors(target, preds, error, message):
    target = target.astype("f4") if target.dtype == np.float64 else target
    with pytest.raises(error, match=message):
        CrossEntropy()(target=target, preds=jnp.asarray(preds, jnp.float32))


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ([0, 1, 7, -1], ValueError, r"contains -1, 7, but the last axis of preds has 3 classes.*0\.\.2"),
        ([0.0, 1.0, 2.0, 1.0], TypeError, "float32"),
        (np.arange(100, 108)[:4], ValueError, "contains 100, 101, 102, 103"),
    ],
)
def test_target_check(target, error, message):
    target = np.asarray(target)
    target = target.astype("f4") if target.dtype == np.float64 else target
    with pytest.raises(error, match=message):
        CrossEntropy().target_check(target, np.zeros((4, 3), "f4"))


@pytest.mark.parametrize(("target", "shown"), [([0, 1, -1, np.nan], "-1.0"), ([0.5, 2, 1, 3], "2.0, 3.0")])
def test_target_check_of_decisions(target, shown):
    with pytest.raises(ValueError, match=rf"binary=True.*contains {shown}, but binary labels are 0 or 1"):
        CrossEntropy(binary=True).target_check(np.asarray(target, "f4"), np.zeros((4, 1), "f4"))


def test_target_check_accepts_what_is_right():
    CrossEntropy().target_check(np.array([0, 2]), np.zeros((2, 3), "f4"))
    CrossEntropy().target_check(np.eye(3, dtype="f4")[:2], np.zeros((2, 3), "f4"))
    CrossEntropy(binary=True).target_check(np.array([0, 1]), np.zeros((2, 1), "f4"))
    CrossEntropy(binary=True).target_check(np.array([[0.25], [np.nan]], "f4"), np.zeros((2, 1), "f4"))
    CrossEntropy(check_bounds=False).target_check(np.array([0, -1]), np.zeros((2, 3), "f4"))
    CrossEntropy().index_into(target="y").target_check({"y": np.array([0, 2])}, np.zeros((2, 3), "f4"))

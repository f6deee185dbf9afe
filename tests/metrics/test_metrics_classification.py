"""Accuracy, precision, recall and F scores against scikit-learn, over uneven weighted batches."""

import itertools

import jax
import numpy as np
import pytest
import sklearn.metrics

from elegy.metrics import F1, Accuracy, ConfusionMatrix, FBeta, Precision, Recall

RNG = np.random.default_rng(0)
N, C = 60, 5
SPLITS = (0, 1, 60)
# Class 4 is never the target and class 3 never predicted: averages must agree on what to leave out.
LABELS = RNG.integers(0, 4, size=N)
SCORES = RNG.normal(size=(N, C)).astype("f4") - 10 * (np.arange(C) == 3)
SCORES[np.arange(N), LABELS] += RNG.normal(size=N).astype("f4") * 2
SCORES = SCORES.astype("f4")
PREDICTED = SCORES.argmax(-1)
BINARY = RNG.integers(0, 2, size=N)
PROBABILITIES = RNG.uniform(size=N).astype("f4")
MULTI = RNG.integers(0, 2, size=(N, 3))
MULTI_P = RNG.uniform(size=(N, 3)).astype("f4")
WEIGHT = RNG.uniform(size=N).astype("f4") * (RNG.uniform(size=N) > 0.2)


def structure(metric):
    return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(metric)], jax.tree.structure(metric)


def over_batches(metric, target, preds, weight=None):
    """Computes the metric from the updates of uneven batches."""
    before = structure(metric)
    for a, b in itertools.pairwise(SPLITS):
        batch = {"target": target[a:b], "preds": preds[a:b]}
        metric = metric.merge(metric.batch_updates(**batch, sample_weight=None if weight is None else weight[a:b]))
    assert structure(metric) == before
    return metric.compute()


SK = {
    Precision: sklearn.metrics.precision_score,
    Recall: sklearn.metrics.recall_score,
    F1: sklearn.metrics.f1_score,
    Accuracy: sklearn.metrics.recall_score,
}


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
@pytest.mark.parametrize("average", ["micro", "macro", "weighted", "none"])
@pytest.mark.parametrize("form", ["scores", "one_hot", "classes"])
@pytest.mark.parametrize("cls", SK)
@pytest.mark.some(32)
def test_multiclass(cls, form, average, weight):
    target = np.eye(C)[LABELS].astype("f4") if form == "one_hot" else LABELS
    preds = PREDICTED if form == "classes" else SCORES
    # scikit-learn's own choice of classes for averages: those in target or predictions.
    labels = np.arange(C) if average == "none" else None
    options = {"average": None if average == "none" else average, "labels": labels, "sample_weight": weight}
    expected = SK[cls](LABELS, PREDICTED, zero_division=0, **options)
    got = over_batches(cls(num_classes=C, average=average), target, preds, weight)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
def test_accuracy(weight):
    expected = sklearn.metrics.accuracy_score(LABELS, PREDICTED, sample_weight=weight)
    for preds in (SCORES, PREDICTED, PREDICTED[:, None]):
        np.testing.assert_allclose(over_batches(Accuracy(), LABELS, preds, weight), expected, rtol=1e-5)
    np.testing.assert_allclose(over_batches(Accuracy(), LABELS[:, None], SCORES, weight), expected, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
def test_top_k(k, weight):
    expected = sklearn.metrics.top_k_accuracy_score(LABELS, SCORES, k=k, labels=np.arange(C), sample_weight=weight)
    np.testing.assert_allclose(over_batches(Accuracy(top_k=k), LABELS, SCORES, weight), expected, rtol=1e-5)


def test_top_k_of_each_class():
    top = np.argsort(-SCORES, axis=-1)[:, :2]
    said, truth = np.zeros((2, N, C), bool)
    said[np.arange(N)[:, None], top] = True
    truth[np.arange(N), LABELS] = True
    tp, fp, fn = (said & truth).sum(0), (said & ~truth).sum(0), (~said & truth).sum(0)
    options = {"top_k": 2, "num_classes": C, "average": "none"}
    np.testing.assert_allclose(
        over_batches(Precision(**options), LABELS, SCORES), tp / np.maximum(tp + fp, 1), rtol=1e-6
    )
    np.testing.assert_allclose(over_batches(Recall(**options), LABELS, SCORES), tp / np.maximum(tp + fn, 1), rtol=1e-6)
    np.testing.assert_allclose(over_batches(Precision(top_k=2), LABELS, SCORES), tp.sum() / (tp + fp).sum(), rtol=1e-6)


SK_BINARY = {**SK, Accuracy: sklearn.metrics.accuracy_score}


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
@pytest.mark.parametrize("cls", SK_BINARY)
def test_binary(cls, threshold, weight):
    expected = SK_BINARY[cls](BINARY, threshold < PROBABILITIES, sample_weight=weight)
    for preds in (PROBABILITIES, PROBABILITIES[:, None]):
        np.testing.assert_allclose(over_batches(cls(threshold), BINARY, preds, weight), expected, rtol=1e-5)
    decisions = threshold < PROBABILITIES
    for preds in (decisions, decisions.astype("i4"), decisions.astype("f4")):
        np.testing.assert_allclose(over_batches(cls(), BINARY, preds, weight), expected, rtol=1e-5)
        np.testing.assert_allclose(over_batches(cls(mode="binary"), BINARY, preds, weight), expected, rtol=1e-5)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
@pytest.mark.parametrize("average", ["micro", "macro", "weighted", "none"])
@pytest.mark.parametrize("cls", [Precision, Recall, F1])
def test_multilabel(cls, average, weight):
    expected = SK[cls](MULTI, MULTI_P > 0.5, average=None if average == "none" else average, sample_weight=weight)
    got = over_batches(cls(num_classes=3, average=average, mode="multilabel"), MULTI, MULTI_P, weight)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_multilabel_accuracy():
    right = (MULTI_P > 0.5) == MULTI
    np.testing.assert_allclose(over_batches(Accuracy(mode="multilabel"), MULTI, MULTI_P), right.mean(), rtol=1e-6)
    got = over_batches(Accuracy(mode="multilabel", num_classes=3, average="none"), MULTI, MULTI_P, WEIGHT)
    np.testing.assert_allclose(got, np.average(right, axis=0, weights=WEIGHT), rtol=1e-5)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
def test_subset_accuracy(weight):
    expected = sklearn.metrics.accuracy_score(MULTI, MULTI_P > 0.5, sample_weight=weight)
    got = over_batches(Accuracy(mode="multilabel", subset_accuracy=True), MULTI, MULTI_P, weight)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    # Positions of a sequence: all of them must be right.
    labels, scores = LABELS.reshape(20, 3), SCORES.reshape(20, 3, C)
    w = None if weight is None else weight[:20]
    expected = np.average((scores.argmax(-1) == labels).all(-1), weights=w)
    metric = Accuracy(subset_accuracy=True).update(target=labels, preds=scores, sample_weight=w)
    np.testing.assert_allclose(metric.compute(), expected, rtol=1e-5)


@pytest.mark.parametrize("weight", [None, WEIGHT[:20]], ids=["even", "weighted"])
@pytest.mark.parametrize("options", [{"average": "samples"}, {"mdmc_average": "samplewise"}])
def test_accuracy_within_each_example(options, weight):
    """Examples of which `ignore_index` leaves one, two or three positions, or none."""
    labels, scores = LABELS.reshape(20, 3).copy(), SCORES.reshape(20, 3, C)
    labels[4] = 2
    weights = np.ones(20) if weight is None else weight
    each = [
        (sklearn.metrics.accuracy_score(label[label != 2], said[label != 2]), w)
        for label, said, w in zip(labels, scores.argmax(-1), weights, strict=True)
        if (label != 2).any()
    ]
    expected = np.average([value for value, _ in each], weights=[w for _, w in each])
    metric = Accuracy(ignore_index=2, **options)
    parts = [
        metric.batch_updates(
            target=labels[part], preds=scores[part], sample_weight=None if weight is None else weight[part]
        )
        for part in (slice(0, 3), slice(3, 20))
    ]
    np.testing.assert_allclose(parts[0].merge(parts[1]).compute(), expected, rtol=1e-5)
    everywhere = Accuracy(ignore_index=2).update(target=labels, preds=scores, sample_weight=weight).compute()
    assert abs(everywhere - expected) > 1e-3
    of_labels = over_batches(Accuracy(mode="multilabel", **options), MULTI, MULTI_P, WEIGHT)
    expected = 1 - sklearn.metrics.hamming_loss(MULTI, MULTI_P > 0.5, sample_weight=WEIGHT)
    np.testing.assert_allclose(of_labels, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "mode", "target", "preds"),
    [
        ({"multiclass": True}, "multiclass", BINARY, (PROBABILITIES > 0.5).astype("i4")),
        ({"multiclass": False}, "binary", BINARY, (PROBABILITIES > 0.5).astype("i4")),
        ({"multiclass": False}, "binary", BINARY, PROBABILITIES),
        ({"mdmc_average": None}, None, LABELS, SCORES),
    ],
)
def test_the_options_of_jax_metrics(options, mode, target, preds):
    metric = Accuracy(**options)
    assert metric.mode == (None if mode is None else Accuracy(mode=mode).mode)
    predicted = preds.argmax(-1) if preds.ndim > 1 else preds > 0.5
    expected = sklearn.metrics.accuracy_score(target, predicted, sample_weight=WEIGHT)
    np.testing.assert_allclose(over_batches(metric, target, preds, WEIGHT), expected, rtol=1e-5)


def test_extra_axes_and_finer_weights():
    labels, scores = LABELS.reshape(12, 5), SCORES.reshape(12, 5, C)
    right = scores.argmax(-1) == labels
    weight = RNG.uniform(size=(12, 5)).astype("f4")
    for w, full in ((weight[:, 0], np.broadcast_to(weight[:, :1], (12, 5))), (weight, weight)):
        got = Accuracy().update(target=labels, preds=scores, sample_weight=w).compute()
        np.testing.assert_allclose(got, np.average(right, weights=full), rtol=1e-5)


def test_ignore_index():
    keep = LABELS != 2
    for cls, kwargs in ((Accuracy, {}), (F1, {"num_classes": C, "average": "macro"})):
        expected = cls(**kwargs).update(target=LABELS[keep], preds=SCORES[keep]).compute()
        np.testing.assert_allclose(over_batches(cls(ignore_index=2, **kwargs), LABELS, SCORES), expected, rtol=1e-6)
    expected = (PREDICTED == LABELS)[keep].mean()
    np.testing.assert_allclose(over_batches(Accuracy(ignore_index=2), LABELS, SCORES), expected, rtol=1e-6)
    labels, scores = LABELS.reshape(20, 3), SCORES.reshape(20, 3, C)
    fine = ((scores.argmax(-1) == labels) | (labels == 2)).all(-1)
    got = Accuracy(ignore_index=2, subset_accuracy=True).update(target=labels, preds=scores).compute()
    np.testing.assert_allclose(got, fine[(labels != 2).any(-1)].mean(), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "classes"), [("int8", 128), ("uint8", 256), ("uint8", 300)])
@pytest.mark.parametrize("form", ["scores", "classes"])
@pytest.mark.parametrize("cls", SK)
@pytest.mark.some(8)
def test_more_classes_than_the_labels_dtype_counts(cls, form, dtype, classes):
    rng = np.random.default_rng(1)
    top = np.iinfo(dtype).max
    labels = rng.integers(top - 3, top + 1, size=N).astype(dtype)
    said = np.where(rng.uniform(size=N) < 0.5, labels, 1).astype(dtype)
    preds = said if form == "classes" else np.eye(classes, dtype="f4")[said]
    for average in ("macro", "none"):
        options = {"average": None, "labels": np.arange(classes)} if average == "none" else {"average": average}
        expected = SK[cls](labels, said, zero_division=0, **options)
        got = over_batches(cls(num_classes=classes, average=average), labels, preds)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    expected = sklearn.metrics.confusion_matrix(labels, said, labels=np.arange(classes))
    np.testing.assert_array_equal(over_batches(ConfusionMatrix(classes), labels, preds), expected)


def test_an_index_that_the_labels_dtype_does_not_count():
    labels = np.array([156, 156, 3, 4], "uint8")
    scores = np.eye(200, dtype="f4")[[156, 156, 3, 5]]
    assert Accuracy(ignore_index=-100).update(target=labels, preds=scores).compute() == 0.75
    assert Accuracy(ignore_index=-100, average="samples").update(target=labels, preds=scores).compute() == 0.75
    assert Recall(class_id=-100).update(target=labels, preds=scores).compute() == 0.0
    signed = np.array([-1, 3, 4], "int8")
    assert Accuracy(ignore_index=255).update(target=signed, preds=scores[1:]).compute() == pytest.approx(1 / 3)
    decisions = Accuracy(mode="binary", ignore_index=-255)
    assert decisions.update(target=np.array([1, 1], "uint8"), preds=np.array([0.9, 0.1])).compute() == 0.5


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
@pytest.mark.parametrize("average", ["macro", "weighted", "none"])
@pytest.mark.parametrize("cls", [Precision, Recall, F1])
def test_labels_that_occur_nowhere(cls, average, weight):
    target, preds = np.insert(MULTI, 1, 0, axis=1), np.insert(MULTI_P, 1, 0.0, axis=1)
    options = {"average": None if average == "none" else average, "sample_weight": weight, "zero_division": 0}
    expected = SK[cls](target, preds > 0.5, **options)
    got = over_batches(cls(num_classes=4, average=average, mode="multilabel"), target, preds, weight)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("class_id", range(3))
@pytest.mark.parametrize("cls", SK_BINARY)
def test_class_id(cls, class_id):
    options = {} if cls is Accuracy else {"zero_division": 0}
    expected = SK_BINARY[cls](class_id == LABELS, class_id == PREDICTED, sample_weight=WEIGHT, **options)
    np.testing.assert_allclose(over_batches(cls(class_id=class_id), LABELS, SCORES, WEIGHT), expected, rtol=1e-5)
    expected = SK_BINARY[cls](MULTI[:, class_id], MULTI_P[:, class_id] > 0.5, sample_weight=WEIGHT, **options)
    got = over_batches(cls(class_id=class_id, mode="multilabel"), MULTI, MULTI_P, WEIGHT)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.5, 2.0])
@pytest.mark.parametrize("average", ["micro", "macro"])
def test_f_beta(beta, average):
    expected = sklearn.metrics.fbeta_score(LABELS, PREDICTED, beta=beta, average=average, zero_division=0)
    got = over_batches(FBeta(num_classes=C, average=average, beta=beta), LABELS, SCORES)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
@pytest.mark.parametrize("normalize", [None, "true", "pred", "all"])
def test_confusion_matrix(normalize, weight):
    expected = sklearn.metrics.confusion_matrix(
        LABELS, PREDICTED, labels=np.arange(C), normalize=normalize, sample_weight=weight
    )
    for preds in (SCORES, PREDICTED):
        got = over_batches(ConfusionMatrix(C, normalize), LABELS, preds, weight)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_binary_confusion_matrix():
    expected = sklearn.metrics.confusion_matrix(BINARY, PROBABILITIES > 0.5)
    for preds in (PROBABILITIES, PROBABILITIES[:, None], (PROBABILITIES > 0.5).astype("i4")):
        np.testing.assert_array_equal(over_batches(ConfusionMatrix(2), BINARY, preds), expected)


@pytest.mark.parametrize("metric", [Accuracy(), F1(num_classes=C, average="macro"), ConfusionMatrix(C)])
def test_labels_out_of_range_hit_nothing(metric):
    odd = LABELS.copy()
    odd[:5], odd[5:8] = -1, C + 3
    weight = (np.arange(N) >= 8).astype("f4")
    got = metric.update(target=odd, preds=SCORES, sample_weight=weight)
    expected = metric.update(target=LABELS[8:], preds=SCORES[8:])
    np.testing.assert_allclose(got.compute(), expected.compute(), rtol=1e-6)


def test_no_data_is_zero():
    assert Accuracy().compute() == 0.0
    assert F1().compute() == 0.0
    np.testing.assert_array_equal(Precision(num_classes=3, average="none").compute(), np.zeros(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Accuracy(average="sample"), "average='sample' is not known. Use one of micro, .*, samples"),
        (lambda: F1(average="samples"), "average='samples' is not known. Use one of micro"),
        (lambda: Accuracy(mdmc_average="all"), "mdmc_average='all' is not known. Use 'global' or 'samplewise'"),
        (
            lambda: Accuracy(mdmc_average="samplewise", average="macro", num_classes=3),
            "'samplewise' averages over examples, average='macro' over classes",
        ),
        (lambda: Accuracy(multiclass=True, mode="binary"), "multiclass=True contradicts mode='binary'"),
        (lambda: Accuracy(multiclass=False, top_k=2), "top_k is for multi-class scores"),
        (lambda: Accuracy(average="samples", subset_accuracy=True), "subset_accuracy is about whole examples"),
        (lambda: Accuracy(average="macro"), "pass num_classes"),
        (lambda: Accuracy(top_k=0), "must be an integer of 1 or more"),
        (lambda: Accuracy(top_k=2, mode="binary"), "top_k is for multi-class scores"),
        (lambda: Accuracy(mode="other"), "'other' is not a mode .*'multilabel'"),
        (lambda: Accuracy(subset_accuracy=True, average="macro", num_classes=3), "subset_accuracy is about whole"),
        (lambda: F1(average="macro", num_classes=3, mode="binary"), "mode='binary' has none"),
        (lambda: Recall(class_id=1, mode="binary"), "mode='binary' has none"),
        (lambda: Recall(class_id=1, average="macro", num_classes=3), "nothing to average"),
        (lambda: FBeta(beta=0.0), "must be positive"),
        (lambda: ConfusionMatrix(1), "must be 2 or more"),
        (lambda: ConfusionMatrix(3, "rows"), "normalize='rows' is not known"),
    ],
)
def test_option_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("metric", "target", "preds", "message"),
    [
        (Accuracy(mode="multiclass"), BINARY, PROBABILITIES, "have no axis of classes. Pass mode='binary'"),
        (Accuracy(top_k=2), LABELS, PREDICTED, "top_k=2 needs scores"),
        (Accuracy(top_k=9), LABELS, SCORES, "top_k=9, but preds of shape"),
        (Accuracy(), LABELS[:5], SCORES, "target has shape"),
        (F1(num_classes=3, average="macro"), LABELS, SCORES, "num_classes=3 does not fit"),
        (F1(num_classes=3, average="macro"), BINARY, PROBABILITIES, "are binary"),
        (ConfusionMatrix(3), LABELS, SCORES, r"must be scores of shape \(\.\.\., 3\)"),
        (ConfusionMatrix(3), BINARY, PROBABILITIES, "must be scores"),
    ],
)
def test_shape_errors(metric, target, preds, message):
    with pytest.raises(ValueError, match=message):
        metric.update(target=target, preds=preds)


@pytest.mark.parametrize(
    ("metric", "target", "preds", "message"),
    [
        (F1(), LABELS, PREDICTED, "are 0 or 1, but there are"),
        (Accuracy(mode="multilabel"), LABELS.reshape(20, 3), MULTI_P[:20], "are 0 or 1"),
        (ConfusionMatrix(3), LABELS, PREDICTED, r"contains \[3\], but num_classes=3"),
    ],
)
def test_target_check(metric, target, preds, message):
    with pytest.raises(ValueError, match=message):
        metric.target_check(target, preds)
    metric.target_check(target % 2, preds)

"""Scores of decisions, numbers, images and token sequences against scikit-learn, SciPy and formulas in float64."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.stats
import sklearn.metrics as sk
from scipy.special import expit, log_softmax, softmax

from elegy import metrics as em

RNG = np.random.default_rng(0)
N, C = 30, 4
WEIGHT, MASK = RNG.integers(0, 4, size=N).astype("f4"), np.arange(N) % 3 != 1
CUTS = (slice(0, 7), slice(7, 14), slice(14, N))
LABELS, LOGITS = RNG.integers(0, C, size=N), RNG.normal(size=(N, C)).astype("f4")
LOGITS[np.arange(N), LABELS] += RNG.normal(size=N).astype("f4") + 0.5
SAID = LOGITS.argmax(-1)
BINARY, GRID = RNG.integers(0, 2, size=N), (RNG.integers(0, 11, size=N) / 10).astype("f4")
TARGET, PREDS = RNG.normal(size=(2, N, 3)).astype("f4")
PREDS = PREDS + 0.5 * TARGET
RATINGS = RNG.integers(0, 6, size=(2, N))
RATINGS[1] = (RATINGS[0] + RATINGS[1]) // 2
IMAGES = RNG.uniform(size=(2, N, 13, 12, 2)).astype("f4")
IMAGES[1] = 0.7 * IMAGES[0] + 0.3 * IMAGES[1]
WORDS = np.where(np.arange(7) < RNG.integers(1, 8, size=(2, N, 1)), RNG.integers(1, 4, size=(2, N, 7)), 0)
OTHER = np.where(np.arange(7) < RNG.integers(1, 8, size=(N, 1)), RNG.integers(1, 4, size=(N, 7)), 0)


def words(row):
    return [int(token) for token in row if token]


def levenshtein(a, b):
    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return distance(len(a), len(b))


def rouge(a, b):
    """The longest of all subsequences, one by one."""
    subsequences = [
        {tuple(x[i] for i in chosen) for n in range(len(x) + 1) for chosen in itertools.combinations(range(len(x)), n)}
        for x in (a, b)
    ]
    longest = max(map(len, subsequences[0] & subsequences[1]))
    precision, recall = longest / len(b), longest / len(a)
    return 2 * precision * recall / (precision + recall) if longest else 0.0


def bleu(target, preds, weight, order, smooth=0):
    matches, possible, lengths = np.zeros(order), np.zeros(order), np.zeros(2)
    for references, said, w in zip(target, preds, weight, strict=True):
        references = [words(row) for row in (references if references.ndim == 2 else references[None])]
        said = words(said)
        closest = min((abs(len(row) - len(said)), len(row)) for row in references)[1]
        lengths += w * np.array([len(said), closest])
        for n in range(order):
            grams = [
                collections.Counter(zip(*(x[k:] for k in range(n + 1)), strict=False)) for x in [said, *references]
            ]
            matches[n] += w * sum(min(c, max(g[gram] for g in grams[1:])) for gram, c in grams[0].items())
            possible[n] += w * max(len(said) - n, 0)
    extra = smooth * (np.arange(order) > 0)
    return min(1, np.exp(1 - lengths[1] / lengths[0])) * np.exp(np.log((matches + extra) / (possible + extra)).mean())


def by_row(function):
    return lambda t, p, w: np.average([function(*pair) for pair in zip(t, p, strict=True)], weights=w)


def word_errors(t, p, w):
    distances = [levenshtein(words(a), words(b)) for a, b in zip(t, p, strict=True)]
    return (w * distances).sum() / (w * (t > 0).sum(-1)).sum()


def at_roc(choose):
    def reference(t, p, w):
        false, true, _ = sk.roc_curve(t, p, sample_weight=w, drop_intermediate=False)
        return choose(true, 1 - false)

    return reference


def at_pr(choose):
    return lambda t, p, w: choose(*(x[:-1] for x in sk.precision_recall_curve(t, p, sample_weight=w)[:2]))


def calibration(confidence, hit, w, bins):
    place = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1)
    return sum(abs((w * (confidence - hit))[place == k].sum()) for k in range(bins)) / w.sum()


def of_classes(t, p, w):
    p = softmax(p, -1)
    return calibration(p.max(-1), p.argmax(-1) == t, w, 15)


def ssim(x, y):
    def blur(image):
        return scipy.ndimage.gaussian_filter(image, 1.5, truncate=3.5, axes=(0, 1))[5:-5, 5:-5]

    mx, my, c1, c2 = blur(x), blur(y), 0.01**2, 0.03**2
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def pearson(t, p, w):
    return np.array([np.corrcoef(*(np.repeat(x[:, k], w.astype(int)) for x in (t, p)))[0, 1] for k in range(3)])


def top_k(t, p, w):
    return sk.top_k_accuracy_score(t, p, k=2, labels=range(C), sample_weight=w)


def jaccard(average):
    labels = range(C) if average is None else None
    return lambda t, p, w: sk.jaccard_score(t, p.argmax(-1), average=average, labels=labels, sample_weight=w)


def frechet(t, p, w):
    (m1, c1), (m2, c2) = ((np.average(x, axis=0, weights=w), np.cov(x.T, fweights=w.astype(int))) for x in (t, p))
    return ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)


def squares(t, p, w):
    return np.average(((t - p) ** 2).mean((1, 2, 3)), weights=w)


def of_codes(p):
    return p.argmax(-1)


CLASSES, BITS, REAL, PIXELS = (LABELS, LOGITS), (BINARY, GRID), (TARGET, PREDS), tuple(IMAGES)
CASES = {
    "mcc": (em.MatthewsCorrelation(C), CLASSES, lambda t, p, w: sk.matthews_corrcoef(t, of_codes(p), sample_weight=w)),
    "mcc_binary": (em.MCC(2), BITS, lambda t, p, w: sk.matthews_corrcoef(t, p > 0.5, sample_weight=w)),
    "kappa": (em.CohenKappa(C), CLASSES, lambda t, p, w: sk.cohen_kappa_score(t, of_codes(p), sample_weight=w)),
    "kappa_linear": (
        em.CohenKappa(C, "linear"),
        CLASSES,
        lambda t, p, w: sk.cohen_kappa_score(t, of_codes(p), weights="linear", sample_weight=w),
    ),
    "kappa_quadratic": (
        em.CohenKappa(C, "quadratic"),
        CLASSES,
        lambda t, p, w: sk.cohen_kappa_score(t, of_codes(p), weights="quadratic", sample_weight=w),
    ),
    "balanced": (
        em.BalancedAccuracy(C + 1),  # a class that never occurs does not count
        (LABELS, SAID),
        lambda t, p, w: sk.balanced_accuracy_score(t, p, sample_weight=w),
    ),
    "balanced_adjusted": (
        em.BalancedAccuracy(C, adjusted=True),
        CLASSES,
        lambda t, p, w: sk.balanced_accuracy_score(t, of_codes(p), sample_weight=w, adjusted=True),
    ),
    "jaccard": (em.JaccardIndex(C), CLASSES, jaccard("macro")),
    "jaccard_micro": (em.JaccardIndex(C, "micro"), CLASSES, jaccard("micro")),
    "jaccard_weighted": (em.JaccardIndex(C, "weighted"), CLASSES, jaccard("weighted")),
    "jaccard_none": (em.MeanIoU(C, None), CLASSES, jaccard(None)),
    "dice": (em.Dice(C), CLASSES, lambda t, p, w: sk.f1_score(t, of_codes(p), average="macro", sample_weight=w)),
    "top_k": (em.TopKAccuracy(2), CLASSES, top_k),
    "average_precision": (
        em.AveragePrecision(11),
        BITS,
        lambda t, p, w: sk.average_precision_score(t, p, sample_weight=w),
    ),
    "specificity": (
        em.SpecificityAtSensitivity(0.7),
        BITS,
        at_roc(lambda sens, spec: spec[sens >= 0.7].max()),
    ),
    "sensitivity": (
        em.SensitivityAtSpecificity(0.4),
        BITS,
        at_roc(lambda sens, spec: sens[spec >= 0.4].max()),
    ),
    "precision": (em.PrecisionAtRecall(0.5, num_bins=11), BITS, at_pr(lambda p, r: p[r >= 0.5].max())),
    "recall": (em.RecallAtPrecision(0.5, num_bins=101), BITS, at_pr(lambda p, r: r[p >= 0.5].max())),
    "cosine": (
        em.CosineSimilarity(),
        REAL,
        by_row(lambda t, p: t @ p / np.linalg.norm(t) / np.linalg.norm(p)),
    ),
    "pearson": (em.PearsonCorrelation(3, "raw_values"), REAL, pearson),
    "pearson_mean": (em.PearsonCorrelation(3), REAL, lambda t, p, w: pearson(t, p, w).mean()),
    "explained": (
        em.ExplainedVariance(3),
        REAL,
        lambda t, p, w: sk.explained_variance_score(t, p, sample_weight=w),
    ),
    "spearman": (
        em.SpearmanCorrelation((0, 5), num_bins=11),
        tuple(RATINGS),
        lambda t, p, w: scipy.stats.spearmanr(*(np.repeat(x, w.astype(int)) for x in (t, p))).statistic,
    ),
    "mape": (
        em.MAPE(),
        REAL,
        lambda t, p, w: 100 * sk.mean_absolute_percentage_error(t, p, sample_weight=w),
    ),
    "smape": (em.SMAPE(), REAL, by_row(lambda t, p: (200 * abs(p - t) / (abs(p) + abs(t))).mean())),
    "ece": (em.ExpectedCalibrationError(), CLASSES, of_classes),
    "ece_binary": (
        em.ECE(10, from_logits=False),
        (BINARY, GRID + 0.01),
        lambda t, p, w: calibration(p, t, w, 10),
    ),
    "ece_binary_logits": (em.ECE(10), (BINARY, LOGITS[:, 0]), lambda t, p, w: calibration(expit(p), t, w, 10)),
    "frechet": (em.FrechetDistance(3), REAL, frechet),
    "psnr": (em.PSNR(2.0), PIXELS, lambda t, p, w: 10 * np.log10(4 / squares(t, p, w))),
    "ssim": (em.SSIM(), PIXELS, by_row(ssim)),
    "edit_distance": (
        em.EditDistance(ignore_index=0),
        tuple(WORDS),
        by_row(lambda t, p: levenshtein(words(t), words(p))),
    ),
    "word_error_rate": (em.WordErrorRate(ignore_index=0), tuple(WORDS), word_errors),
    "rouge": (em.RougeL(ignore_index=0), tuple(WORDS), by_row(lambda t, p: rouge(words(t), words(p)))),
    "bleu": (em.BLEU(3, ignore_index=0), tuple(WORDS), lambda t, p, w: bleu(t, p, w, 3)),
    "bleu_references": (
        em.BLEU(smooth=True, ignore_index=0),
        (np.stack([WORDS[0], OTHER], axis=1), WORDS[1]),
        lambda t, p, w: bleu(t, p, w, 4, smooth=1),
    ),
}


def wide(x):
    return x.astype("f8") if x.dtype == "f4" else x


@pytest.mark.parametrize("case", CASES)
@pytest.mark.some(12, also=["ece_binary", "jaccard_micro"])
def test_values_over_batches_weights_and_masks(case):
    metric, (target, preds), reference = CASES[case]

    @jax.jit
    def merged(batches):
        a, b, c = (metric.batch_updates(**batch) for batch in batches)
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), a, b, c).aggregate()
        return [one.compute() for one in (together, a.merge(b.merge(c)), c.merge(a).merge(b))]

    def values(preds, weight, mask):
        given = {"target": target, "preds": preds, "sample_weight": weight, "mask": mask}
        return merged([{name: array[c] for name, array in given.items()} for c in CUTS])

    expected = reference(wide(target), wide(preds), WEIGHT.astype("f8"))
    for value in values(preds, WEIGHT, np.ones(N, bool)):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)
    spoilt = preds
    if preds.dtype == "f4":
        spoilt = np.where(MASK.reshape(N, *(1,) * (preds.ndim - 1)), preds, np.float32(np.nan))
    expected = reference(wide(target)[MASK], wide(preds)[MASK], np.ones(MASK.sum()))
    for value in values(spoilt, np.ones(N, "f4"), MASK):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)


def test_perplexity_of_tokens_with_masks():
    logits, tokens = RNG.normal(size=(3, 5, C)).astype("f4"), RNG.integers(0, C, size=(3, 5))
    counts = np.arange(5) < np.array([[5], [2], [1]])
    losses = -np.take_along_axis(log_softmax(logits.astype("f8"), -1), tokens[..., None], -1)[..., 0]
    expected = np.exp(losses[counts].mean())
    padded = np.where(counts, tokens, 3)
    by_mask = em.Perplexity().update(target=padded, preds=logits, mask=counts)
    by_weight = em.Perplexity().update(target=padded, preds=logits, sample_weight=counts)
    by_index = em.Perplexity(ignore_index=-100).update(target=np.where(counts, tokens, -100), preds=logits)
    for metric in (by_mask, by_weight, by_index):
        np.testing.assert_allclose(metric.compute(), expected, rtol=1e-5)


@jax.jit
def computed(given):
    """The values of metrics, each after one batch; compiled together, because one program is cheaper than many."""
    return [metric.update(**batch).compute() for metric, batch in given]


def test_sequences_end_where_they_say_so_and_scores_are_decided():
    target, preds = np.array([[5, 6, 2, 9, 9]]), np.array([[5, 0, 7, 6, 2]])
    options = {"ignore_index": 0, "end_id": 2}
    distance, rate = em.EditDistance(**options), em.WER(**options)
    values = computed(
        [
            (distance, {"target": target, "preds": preds}),
            (rate, {"target": target, "preds": np.eye(10, dtype="f4")[preds]}),
            (rate, {"target": target, "preds": np.zeros((1, 0), int)}),
            (em.RougeL(**options), {"target": target, "preds": np.zeros((1, 3), int)}),
            (em.BLEU(2, **options), {"target": target, "preds": target[:, :3]}),
        ]
    )
    assert values == [1.0, 0.5, 1.0, 0.0, 1.0]


def test_of_two_references_as_close_the_shorter_counts():
    target = np.array([[[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 0, 0], [0, 0, 0, 0, 0, 0]]])
    update = jax.jit(em.BLEU(1, ignore_index=0).update)
    assert update(target=target, preds=np.array([[1, 2, 3, 4, 5]])).lengths.value.tolist() == [5.0, 4.0]


def test_undefined_values():
    ones, zeros, grid = np.ones(4, "i4"), np.zeros(4, "i4"), GRID[:4]
    expected = [
        (em.MCC(2), ones, zeros, 0.0),
        (em.CohenKappa(2), ones, ones, np.nan),
        (em.SpecificityAtSensitivity(0.5), ones, ones, np.nan),
        (em.PrecisionAtRecall(0.5), zeros, ones, np.nan),
        (em.RecallAtPrecision(0.9), np.array([0, 1]), np.array([0.9, 0.1], "f4"), 0.0),
        (em.PearsonCorrelation(), np.float32(ones), grid, np.nan),
        (em.ExplainedVariance(), np.float32(ones), np.float32(3 * ones), 1.0),
        (em.SpearmanCorrelation(num_bins=3), np.float32(ones), grid, np.nan),
        (em.SMAPE(), zeros, zeros, 0.0),
        (em.PSNR(), grid, grid, np.inf),
        (em.FrechetDistance(1), grid[:1, None], grid[:1, None], np.nan),
    ]
    values = computed([(metric, {"target": target, "preds": preds}) for metric, target, preds, _ in expected])
    np.testing.assert_array_equal(values, [value for *_, value in expected])
    empty = [em.BLEU(), em.WER(), em.RougeL(), em.JaccardIndex(3), em.BalancedAccuracy(3), em.ECE(), em.SSIM()]
    assert jax.jit(lambda metrics: [metric.compute() for metric in metrics])(empty) == [0.0] * 7


def test_rare_classes_and_large_means_keep_their_digits():
    # 1 - (fraction of the class) ** 2 in float32 would have one digit left.
    matrix = np.array([[10.0**7, 3], [2, 5]])
    rows, columns = np.indices((2, 2)).reshape(2, 4)
    metric = em.MCC(2).update(target=rows, preds=columns, sample_weight=matrix.ravel().astype("f4"))
    expected = sk.matthews_corrcoef(rows, columns, sample_weight=matrix.ravel())
    np.testing.assert_allclose(metric.compute(), expected, rtol=1e-5)
    target = (1e4 + TARGET[:, 0]).astype("f4")
    metric = em.PearsonCorrelation().update(target=target, preds=PREDS[:, 0])
    expected = scipy.stats.pearsonr(target.astype("f8"), PREDS[:, 0].astype("f8")).statistic
    np.testing.assert_allclose(metric.compute(), expected, rtol=1e-4)


def test_merged_metrics_of_large_numbers_keep_the_digits_of_their_means():
    rng = np.random.default_rng(0)
    target = (1000 + rng.normal(size=101)).astype("f4")
    preds = (0.5 * target + rng.normal(size=101) + 20).astype("f4")
    wide_target, wide_preds = target.astype("f8"), preds.astype("f8")
    references = {
        em.ExplainedVariance(): sk.explained_variance_score(wide_target, wide_preds),
        em.PearsonCorrelation(): scipy.stats.pearsonr(wide_target, wide_preds).statistic,
        em.R2(): sk.r2_score(wide_target, wide_preds),
    }
    for metric, expected in references.items():
        cuts = [slice(0, 34), slice(34, 68), slice(68, 101)]
        parts = [metric.update(target=target[cut], preds=preds[cut]) for cut in cuts]
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts).aggregate()
        np.testing.assert_allclose(together.compute(), expected, rtol=5e-6)


def test_ignored_classes_of_segmentations():
    target = np.where(MASK, LABELS, 255).astype("u1")
    metric = em.MeanIoU(C, ignore_index=255)
    metric.target_check(target, LOGITS)
    got = metric.update(target=target, preds=LOGITS).compute()
    np.testing.assert_allclose(got, sk.jaccard_score(LABELS[MASK], SAID[MASK], average="macro"), rtol=1e-6)
    matrix = em.ConfusionMatrix(C, ignore_index=0).update(target=LABELS, preds=LOGITS).compute()
    expected = sk.confusion_matrix(LABELS, SAID, labels=range(C))
    expected[0] = 0
    np.testing.assert_array_equal(matrix, expected)


BAD = [
    (lambda: em.CohenKappa(3, "cubic"), ValueError, "weights='cubic' is not known"),
    (lambda: em.JaccardIndex(3, "sum"), ValueError, "JaccardIndex: average='sum' is not known"),
    (lambda: em.Dice(1), ValueError, "Dice: num_classes=1 must be 2 or more"),
    (lambda: em.MCC(3).target_check(np.array([3]), None), ValueError, "MatthewsCorrelation: the target contains"),
    (lambda: em.TopKAccuracy(0), ValueError, "top_k=0 must be"),
    (lambda: em.TopKAccuracy(9).update(target=LABELS, preds=LOGITS), ValueError, "have 4 classes"),
    (lambda: em.PrecisionAtRecall(1.5), ValueError, "PrecisionAtRecall: 1.5 must be in"),
    (lambda: em.RecallAtPrecision(0.5, num_bins=1), ValueError, "num_bins=1 must be 2 or more"),
    (lambda: em.AveragePrecision().target_check(BINARY, LOGITS[:, 0]), ValueError, "AveragePrecision: preds range"),
    (lambda: em.PearsonCorrelation().update(target=TARGET, preds=PREDS), ValueError, "pass num_outputs=3"),
    (lambda: em.ExplainedVariance(2, "mean"), ValueError, "multioutput='mean' is not known"),
    (lambda: em.SpearmanCorrelation((1, 1)), ValueError, r"must be \(low, high\)"),
    (lambda: em.SpearmanCorrelation().target_check(RATINGS[0], None), ValueError, "beyond target_range"),
    (lambda: em.ECE(0), ValueError, "num_bins=0 must be 1 or more"),
    (lambda: em.PSNR(0.0), ValueError, "data_range=0.0 must be positive"),
    (lambda: em.SSIM(window=4), ValueError, "window=4 must be odd"),
    (lambda: em.SSIM().update(target=TARGET, preds=PREDS), ValueError, "of at least window=11"),
    (lambda: em.BLEU(0), ValueError, "max_order=0 must be 1 or more"),
    (lambda: em.WER().update(target=WORDS[0], preds=TARGET[:, 0]), TypeError, "WordErrorRate: preds must be token ids"),
    (lambda: em.RougeL().update(target=LABELS, preds=WORDS[1]), ValueError, "RougeL: target has shape"),
    (
        lambda: em.WER().update(target=WORDS[0], preds=WORDS[1], sample_weight=np.ones((N, 7))),
        ValueError,
        "sample_weight has shape",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_names():
    named = (em.TopKAccuracy(3), em.ECE(), em.WER(), em.MeanIoU(2), em.PRAUC(), em.BLEU(), em.PSNR(), em.SSIM())
    assert [metric.name for metric in named] == [
        "top_k_accuracy",
        "expected_calibration_error",
        "word_error_rate",
        "jaccard_index",
        "average_precision",
        "bleu",
        "psnr",
        "ssim",
    ]


def test_features_of_another_shape_have_no_frechet_distance():
    with pytest.raises(ValueError, match=r"features are float32\[30,3\], not of shape \(examples, num_features=2\)"):
        em.FrechetDistance(2).update(target=TARGET, preds=PREDS)
    with pytest.raises(ValueError, match="num_features=0 must be 1 or more"):
        em.FrechetDistance(0)

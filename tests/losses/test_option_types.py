"""An argument by position means what it means in Keras and torchmetrics, or is refused with the name of the option."""

import inspect

import numpy as np
import pytest

import elegy as eg

TARGET, PREDS = np.array([1, 1, 1, 0, 0]), np.array([1, 0, 0, 1, 0])  # precision 1/2, recall 1/3


@pytest.mark.parametrize("beta", [0.5, 2.0, 2])
def test_the_first_argument_of_fbeta_is_beta(beta):
    precision, recall = 1 / 2, 1 / 3
    expected = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
    value = eg.metrics.FBeta(beta).update(target=TARGET, preds=PREDS).compute()
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eg.metrics.FBeta(2.0, 0.3), "These are given by name:.* threshold"),
        (lambda: eg.metrics.F1("macro"), "threshold='macro' is not a number"),
        (lambda: eg.metrics.Precision("macro"), "threshold='macro' is not a number"),
        (lambda: eg.metrics.Precision(0.5, "macro"), "num_classes='macro' is not an integer"),
        (lambda: eg.metrics.Accuracy(True), "threshold=True is not a number"),
        (lambda: eg.metrics.R2("uniform_average"), "num_outputs='uniform_average' is not an integer"),
        (lambda: eg.metrics.BalancedAccuracy(3, 0.5), "adjusted=0.5 is not True or False"),
        (lambda: eg.metrics.SSIM(True), "data_range=True is not a number"),
        (lambda: eg.metrics.BinaryAccuracy("accuracy"), "threshold='accuracy' is not a number"),
        (lambda: eg.losses.Huber("sum"), "delta='sum' is not a number"),
        (lambda: eg.losses.CrossEntropy(True), "These are given by name:.* from_logits"),
        (lambda: eg.losses.FocalCrossEntropy(0.25, 2.0), "These are given by name:.* gamma, alpha"),
        (lambda: eg.losses.CTC(1.5), "blank_id=1.5 is not an integer"),
    ],
)
def test_a_value_of_another_option_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eg.losses.Huber(0), "delta=0 must be positive"),
        (lambda: eg.losses.Huber(delta=-1.0), "delta=-1.0 must be positive"),
        (lambda: eg.losses.Contrastive(0.0), "margin=0.0 must be positive"),
        (lambda: eg.losses.Triplet(-1.0), "margin=-1.0 must be 0 or more"),
    ],
)
def test_a_distance_below_zero_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("blank_id", [-1, 4])
def test_the_blank_of_ctc_is_one_of_the_classes(blank_id):
    labels, logits = np.ones((2, 3), np.int32), np.zeros((2, 5, 4), np.float32)
    with pytest.raises(ValueError, match=f"blank_id={blank_id} is not one of the 4 classes .* the last one is 3"):
        eg.losses.CTC(blank_id)(target=labels, preds=logits)


@pytest.mark.parametrize("name", ["Accuracy", "Precision", "Recall", "F1"])
def test_a_number_of_classes_is_not_a_threshold(name):
    with pytest.raises(ValueError, match="write num_classes=10"):
        getattr(eg.metrics, name)(10)
    assert getattr(eg.metrics, name)(2.0).threshold == 2.0


def test_numbers_of_numpy_are_numbers():
    assert eg.losses.Huber(np.float32(0.5)).delta == 0.5
    assert eg.metrics.ConfusionMatrix(np.int64(3)).matrix.value.shape == (3, 3)
    assert eg.metrics.BinaryCrossEntropy(np.bool_(True)).from_logits


def test_every_number_before_the_name_is_the_first_of_keras_and_torchmetrics():
    """What may be given by position. `Precision(thresholds)`, `AUC(num_thresholds, curve)`, ... are so in Keras."""
    found = {}
    for module, base in ((eg.losses, eg.losses.Loss), (eg.metrics, eg.metrics.Metric)):
        for name in module.__all__:
            cls = getattr(module, name)
            if inspect.isclass(cls) and issubclass(cls, base) and cls.__name__ == name:
                parameters = inspect.signature(cls).parameters.values()
                found[module, name] = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert found[eg.metrics, "FBeta"] == ["beta"]
    assert found[eg.losses, "FocalCrossEntropy"] == []
    many = {name: options for (_, name), options in found.items() if len(options) > 1}
    decisions = ["threshold", "num_classes", "average"]
    assert {name: options for name, options in many.items() if options != decisions} == {
        "AUC": ["num_bins", "curve"],
        "BalancedAccuracy": ["num_classes", "adjusted"],
        "CohenKappa": ["num_classes", "weights"],
        "ConfusionMatrix": ["num_classes", "normalize"],
        "Dice": ["num_classes", "average"],
        "ExplainedVariance": ["num_outputs", "multioutput"],
        "JaccardIndex": ["num_classes", "average"],
        "LossesAndMetrics": ["losses", "metrics", "aux_losses", "aux_metrics"],
        "PearsonCorrelation": ["num_outputs", "multioutput"],
        "R2": ["num_outputs", "multioutput"],
        "SpearmanCorrelation": ["target_range", "preds_range"],
    }


@pytest.mark.parametrize("weight", [[1.0, 2.0], "balanced", {0: 1.0}])
def test_a_weight_that_is_not_one_number_names_the_weights_of_classes(weight):
    with pytest.raises(
        TypeError, match=r"the weight of a loss is one number, not .*`fit\(class_weight=\{0: 1\.0, 1: 2\.0\}\)`"
    ):
        eg.losses.CrossEntropy(weight=weight)

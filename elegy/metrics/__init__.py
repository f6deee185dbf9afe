"""Metrics: immutable states that can be merged over batches, devices and processes."""

from elegy.losses.reduction import Reduction
from elegy.metrics.accuracy import Accuracy
from elegy.metrics.auc import AUC
from elegy.metrics.confusion_matrix import ConfusionMatrix
from elegy.metrics.decisions import DataType
from elegy.metrics.function import LossMetric
from elegy.metrics.losses import AuxLosses, Losses
from elegy.metrics.losses_and_metrics import LossesAndMetrics
from elegy.metrics.metric import Metric
from elegy.metrics.metrics import AuxMetrics, Metrics
from elegy.metrics.pair_mean import (
    MAE,
    MSE,
    BinaryAccuracy,
    BinaryCrossEntropy,
    BinaryCrossentropy,
    MeanAbsoluteError,
    MeanSquaredError,
    MeanSquareError,
    RootMeanSquaredError,
    RootMeanSquareError,
)
from elegy.metrics.perplexity import Perplexity
from elegy.metrics.precision_recall import F1, FBeta, Precision, Recall
from elegy.metrics.r2 import R2
from elegy.metrics.reduce import Mean, Reduce, Sum
from elegy.metrics.sums import CompensatedSum

__all__ = [
    "AUC",
    "F1",
    "MAE",
    "MSE",
    "R2",
    "Accuracy",
    "AuxLosses",
    "AuxMetrics",
    "BinaryAccuracy",
    "BinaryCrossEntropy",
    "BinaryCrossentropy",
    "CompensatedSum",
    "ConfusionMatrix",
    "DataType",
    "FBeta",
    "LossMetric",
    "Losses",
    "LossesAndMetrics",
    "Mean",
    "MeanAbsoluteError",
    "MeanSquareError",
    "MeanSquaredError",
    "Metric",
    "Metrics",
    "Perplexity",
    "Precision",
    "Recall",
    "Reduce",
    "Reduction",
    "RootMeanSquareError",
    "RootMeanSquaredError",
    "Sum",
]

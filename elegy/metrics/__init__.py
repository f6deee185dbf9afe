"""Metrics: recipes with an immutable state that merges over batches, devices and hosts."""

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
    MeanSquareError,
    RootMeanSquareError,
)
from elegy.metrics.reduce import Mean, Reduce, Reduction, Sum

__all__ = [
    "MAE",
    "MSE",
    "AuxLosses",
    "AuxMetrics",
    "BinaryAccuracy",
    "BinaryCrossEntropy",
    "BinaryCrossentropy",
    "LossMetric",
    "Losses",
    "LossesAndMetrics",
    "Mean",
    "MeanAbsoluteError",
    "MeanSquareError",
    "Metric",
    "Metrics",
    "Reduce",
    "Reduction",
    "RootMeanSquareError",
    "Sum",
]

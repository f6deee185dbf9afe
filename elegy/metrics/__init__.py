"""Metrics: immutable states that can be merged over batches, devices and processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elegy.lazy import lazy_names

if TYPE_CHECKING:
    from elegy.losses.reduction import Reduction
    from elegy.metrics.accuracy import Accuracy
    from elegy.metrics.agreement import MCC, BalancedAccuracy, CohenKappa, MatthewsCorrelation
    from elegy.metrics.auc import AUC, PRAUC, AveragePrecision
    from elegy.metrics.bleu import BLEU
    from elegy.metrics.calibration import ECE, ExpectedCalibrationError
    from elegy.metrics.confusion_matrix import ConfusionMatrix
    from elegy.metrics.correlation import ExplainedVariance, PearsonCorrelation
    from elegy.metrics.decisions import DataType
    from elegy.metrics.edit_distance import WER, EditDistance, WordErrorRate
    from elegy.metrics.frechet_distance import FrechetDistance
    from elegy.metrics.function import LossMetric
    from elegy.metrics.images import PSNR, SSIM, PeakSignalNoiseRatio, StructuralSimilarity
    from elegy.metrics.losses import AuxLosses, Losses
    from elegy.metrics.losses_and_metrics import LossesAndMetrics
    from elegy.metrics.metric import Metric
    from elegy.metrics.metrics import AuxMetrics, Metrics
    from elegy.metrics.operating_point import (
        PrecisionAtRecall,
        RecallAtPrecision,
        SensitivityAtSpecificity,
        SpecificityAtSensitivity,
    )
    from elegy.metrics.overlap import Dice, DiceScore, JaccardIndex, MeanIoU
    from elegy.metrics.pair_mean import (
        MAE,
        MAPE,
        MSE,
        SMAPE,
        BinaryAccuracy,
        BinaryCrossEntropy,
        BinaryCrossentropy,
        CosineSimilarity,
        MeanAbsoluteError,
        MeanAbsolutePercentageError,
        MeanSquaredError,
        MeanSquareError,
        RootMeanSquaredError,
        RootMeanSquareError,
        SymmetricMeanAbsolutePercentageError,
    )
    from elegy.metrics.perplexity import Perplexity
    from elegy.metrics.precision_recall import F1, FBeta, Precision, Recall
    from elegy.metrics.r2 import R2
    from elegy.metrics.reduce import Mean, Reduce, Sum
    from elegy.metrics.rouge import RougeL
    from elegy.metrics.spearman import SpearmanCorrelation
    from elegy.metrics.sums import CompensatedSum
    from elegy.metrics.top_k_accuracy import TopKAccuracy

__all__ = [
    "AUC",
    "BLEU",
    "ECE",
    "F1",
    "MAE",
    "MAPE",
    "MCC",
    "MSE",
    "PRAUC",
    "PSNR",
    "R2",
    "SMAPE",
    "SSIM",
    "WER",
    "Accuracy",
    "AuxLosses",
    "AuxMetrics",
    "AveragePrecision",
    "BalancedAccuracy",
    "BinaryAccuracy",
    "BinaryCrossEntropy",
    "BinaryCrossentropy",
    "CohenKappa",
    "CompensatedSum",
    "ConfusionMatrix",
    "CosineSimilarity",
    "DataType",
    "Dice",
    "DiceScore",
    "EditDistance",
    "ExpectedCalibrationError",
    "ExplainedVariance",
    "FBeta",
    "FrechetDistance",
    "JaccardIndex",
    "LossMetric",
    "Losses",
    "LossesAndMetrics",
    "MatthewsCorrelation",
    "Mean",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanIoU",
    "MeanSquareError",
    "MeanSquaredError",
    "Metric",
    "Metrics",
    "PeakSignalNoiseRatio",
    "PearsonCorrelation",
    "Perplexity",
    "Precision",
    "PrecisionAtRecall",
    "Recall",
    "RecallAtPrecision",
    "Reduce",
    "Reduction",
    "RootMeanSquareError",
    "RootMeanSquaredError",
    "RougeL",
    "SensitivityAtSpecificity",
    "SpearmanCorrelation",
    "SpecificityAtSensitivity",
    "StructuralSimilarity",
    "Sum",
    "SymmetricMeanAbsolutePercentageError",
    "TopKAccuracy",
    "WordErrorRate",
]

_NAMES = {
    "losses.reduction": ("Reduction",),
    "metrics.accuracy": ("Accuracy",),
    "metrics.agreement": (
        "MCC",
        "BalancedAccuracy",
        "CohenKappa",
        "MatthewsCorrelation",
    ),
    "metrics.auc": (
        "AUC",
        "PRAUC",
        "AveragePrecision",
    ),
    "metrics.bleu": ("BLEU",),
    "metrics.calibration": (
        "ECE",
        "ExpectedCalibrationError",
    ),
    "metrics.confusion_matrix": ("ConfusionMatrix",),
    "metrics.correlation": (
        "ExplainedVariance",
        "PearsonCorrelation",
    ),
    "metrics.decisions": ("DataType",),
    "metrics.edit_distance": (
        "WER",
        "EditDistance",
        "WordErrorRate",
    ),
    "metrics.frechet_distance": ("FrechetDistance",),
    "metrics.function": ("LossMetric",),
    "metrics.images": (
        "PSNR",
        "SSIM",
        "PeakSignalNoiseRatio",
        "StructuralSimilarity",
    ),
    "metrics.losses": (
        "AuxLosses",
        "Losses",
    ),
    "metrics.losses_and_metrics": ("LossesAndMetrics",),
    "metrics.metric": ("Metric",),
    "metrics.metrics": (
        "AuxMetrics",
        "Metrics",
    ),
    "metrics.operating_point": (
        "PrecisionAtRecall",
        "RecallAtPrecision",
        "SensitivityAtSpecificity",
        "SpecificityAtSensitivity",
    ),
    "metrics.overlap": (
        "Dice",
        "DiceScore",
        "JaccardIndex",
        "MeanIoU",
    ),
    "metrics.pair_mean": (
        "MAE",
        "MAPE",
        "MSE",
        "SMAPE",
        "BinaryAccuracy",
        "BinaryCrossEntropy",
        "BinaryCrossentropy",
        "CosineSimilarity",
        "MeanAbsoluteError",
        "MeanAbsolutePercentageError",
        "MeanSquaredError",
        "MeanSquareError",
        "RootMeanSquaredError",
        "RootMeanSquareError",
        "SymmetricMeanAbsolutePercentageError",
    ),
    "metrics.perplexity": ("Perplexity",),
    "metrics.precision_recall": (
        "F1",
        "FBeta",
        "Precision",
        "Recall",
    ),
    "metrics.r2": ("R2",),
    "metrics.reduce": (
        "Mean",
        "Reduce",
        "Sum",
    ),
    "metrics.rouge": ("RougeL",),
    "metrics.spearman": ("SpearmanCorrelation",),
    "metrics.sums": ("CompensatedSum",),
    "metrics.top_k_accuracy": ("TopKAccuracy",),
}

__getattr__, __dir__ = lazy_names(__name__, _NAMES)

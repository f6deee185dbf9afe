"""Losses: classes for a `Trainer`, and the functions that they call."""

from elegy.losses.cosine_similarity import CosineSimilarity, cosine_similarity
from elegy.losses.cross_entropy import CrossEntropy, Crossentropy, cross_entropy, crossentropy
from elegy.losses.function import FunctionLoss
from elegy.losses.huber import Huber, huber
from elegy.losses.loss import Loss
from elegy.losses.mean_absolute_error import MeanAbsoluteError, mean_absolute_error
from elegy.losses.mean_absolute_percentage_error import MeanAbsolutePercentageError, mean_absolute_percentage_error
from elegy.losses.mean_squared_error import MeanSquaredError, MeanSquareError, mean_squared_error
from elegy.losses.mean_squared_logarithmic_error import MeanSquaredLogarithmicError, mean_squared_logarithmic_error
from elegy.losses.reduction import Reduction

__all__ = [
    "CosineSimilarity",
    "CrossEntropy",
    "Crossentropy",
    "FunctionLoss",
    "Huber",
    "Loss",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquareError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Reduction",
    "cosine_similarity",
    "cross_entropy",
    "crossentropy",
    "huber",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
]

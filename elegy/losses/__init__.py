"""Losses: classes for a `Trainer`, and the functions that they call."""

from typing import TYPE_CHECKING

from elegy.losses.contrastive import Contrastive, contrastive
from elegy.losses.cosine_similarity import CosineSimilarity, cosine_similarity
from elegy.losses.cross_entropy import CrossEntropy, Crossentropy, cross_entropy, crossentropy
from elegy.losses.ctc import CTC, ctc
from elegy.losses.focal_cross_entropy import Focal, FocalCrossEntropy, FocalCrossentropy, focal_cross_entropy
from elegy.losses.function import FunctionLoss
from elegy.losses.hinge import CategoricalHinge, Hinge, SquaredHinge, categorical_hinge, hinge, squared_hinge
from elegy.losses.huber import Huber, huber
from elegy.losses.info_nce import InfoNCE, info_nce
from elegy.losses.kl_divergence import KLDivergence, kl_divergence
from elegy.losses.log_cosh import LogCosh, log_cosh
from elegy.losses.loss import Loss
from elegy.losses.mean_absolute_error import MeanAbsoluteError, mean_absolute_error
from elegy.losses.mean_absolute_percentage_error import MeanAbsolutePercentageError, mean_absolute_percentage_error
from elegy.losses.mean_squared_error import MeanSquaredError, MeanSquareError, mean_squared_error
from elegy.losses.mean_squared_logarithmic_error import MeanSquaredLogarithmicError, mean_squared_logarithmic_error
from elegy.losses.negative_log_likelihood import NegativeLogLikelihood, negative_log_likelihood
from elegy.losses.poisson import Poisson, poisson
from elegy.losses.quantile import Pinball, Quantile, quantile
from elegy.losses.reduction import Reduction
from elegy.losses.triplet import Triplet, TripletMargin, triplet
from elegy.suggestions import module_getattr

__all__ = [
    "CTC",
    "CategoricalHinge",
    "Contrastive",
    "CosineSimilarity",
    "CrossEntropy",
    "Crossentropy",
    "Focal",
    "FocalCrossEntropy",
    "FocalCrossentropy",
    "FunctionLoss",
    "Hinge",
    "Huber",
    "InfoNCE",
    "KLDivergence",
    "LogCosh",
    "Loss",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquareError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "NegativeLogLikelihood",
    "Pinball",
    "Poisson",
    "Quantile",
    "Reduction",
    "SquaredHinge",
    "Triplet",
    "TripletMargin",
    "categorical_hinge",
    "contrastive",
    "cosine_similarity",
    "cross_entropy",
    "crossentropy",
    "ctc",
    "focal_cross_entropy",
    "hinge",
    "huber",
    "info_nce",
    "kl_divergence",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "negative_log_likelihood",
    "poisson",
    "quantile",
    "squared_hinge",
    "triplet",
]

if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__)

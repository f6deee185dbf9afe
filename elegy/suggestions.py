"""Finds the known names that are nearest to a misspelled one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

_SCHEDULE = (
    "a schedule for the optimizer, such as `optax.cosine_decay_schedule(...)`, or a callback (see `set_rate` on the "
    "page for those who come from Keras)"
)
THEIRS = {
    **dict.fromkeys(
        ("CategoricalCrossentropy", "SparseCategoricalCrossentropy", "CrossEntropyLoss"), "`eg.losses.CrossEntropy()`"
    ),
    **dict.fromkeys(("BinaryCrossentropy", "BCEWithLogitsLoss"), "`eg.losses.CrossEntropy(binary=True)`"),
    "BCELoss": "`eg.losses.CrossEntropy(binary=True, from_logits=False)`",
    **dict.fromkeys(("MSE", "MSELoss"), "`eg.losses.MeanSquaredError()`"),
    **dict.fromkeys(("MAE", "L1Loss"), "`eg.losses.MeanAbsoluteError()`"),
    **dict.fromkeys(("HuberLoss", "SmoothL1Loss"), "`eg.losses.Huber()`"),
    "KLDivLoss": "`eg.losses.KLDivergence()`",
    "CTCLoss": "`eg.losses.CTC()`",
    "TripletMarginLoss": "`eg.losses.Triplet()`",
    **dict.fromkeys(
        ("CategoricalAccuracy", "SparseCategoricalAccuracy", "MulticlassAccuracy"), "`eg.metrics.Accuracy()`"
    ),
    **dict.fromkeys(("TopKCategoricalAccuracy", "SparseTopKCategoricalAccuracy"), "`eg.metrics.TopKAccuracy()`"),
    "R2Score": "`eg.metrics.R2()`",
    "BLEUScore": "`eg.metrics.BLEU()`",
    "ROUGEScore": "`eg.metrics.RougeL()`",
    "CharErrorRate": "`eg.metrics.WordErrorRate()`, of the ids of characters",
    "LogCoshError": "`eg.losses.LogCosh()`, which is accepted as a metric",
    "FrechetInceptionDistance": "`eg.metrics.FrechetDistance(num_features)`",
    **{
        name: f"`eg.losses.{name}()`, which is accepted as a metric"
        for name in ("CategoricalHinge", "Hinge", "KLDivergence", "LogCosh", "Poisson", "SquaredHinge")
    },
    "MeanMetric": "`eg.metrics.Mean()`",
    "SumMetric": "`eg.metrics.Sum()`",
    **dict.fromkeys(("AUROC", "BinaryAUROC"), "`eg.metrics.AUC()`"),
    **dict.fromkeys(("F1Score", "BinaryF1Score", "MulticlassF1Score"), "`eg.metrics.F1()`"),
    **dict.fromkeys(("LearningRateScheduler", "ReduceLROnPlateau"), _SCHEDULE),
    "BackupAndRestore": "`eg.callbacks.ModelCheckpoint(directory)`, with `fit(resume='auto')`",
    "StochasticWeightAveraging": "`eg.Trainer(averaging=eg.SWA())`",
    "DeviceStatsMonitor": "`eg.callbacks.DeviceMonitor()`",
    "TensorBoardLogger": "`eg.loggers.TensorBoard(directory)`",
    "WandbLogger": "`eg.loggers.WandB(project)`",
}
"""What to write for the names of other libraries."""


def near(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Returns the known names that are nearest to a name, the nearest first: similar ones, and what it abbreviates.

    Args:
        name: the name that is not known.
        known: the names that are.
        count: how many names to return at most.

    Example:
        >>> near("lr", ["steps", "learning_rate"]), near("EarlyStop", ["Timer", "EarlyStopping"]), near("x", ["steps"])
        (['learning_rate'], ['EarlyStopping'], [])
    """
    import difflib  # here, because `import elegy` must cost nothing

    case = name[:1].isupper()
    order = sorted(known, key=lambda one: (one[:1].isupper() == case, sum(map(str.isupper, one))))
    plain = {one.casefold(): one for one in order}  # of names that differ in case alone, the last one
    word = name.casefold()
    short = [one for key, one in plain.items() if word and word == "".join(part[:1] for part in key.split("_") if part)]
    similar = [plain[key] for key in difflib.get_close_matches(word, plain, count)]
    return list(dict.fromkeys([*short, *similar]))[:count]


def module_getattr(module: str) -> Callable[[str], Any]:
    """Makes the `__getattr__` of a module: its AttributeError has the public names that are nearest.

    Args:
        module: the name of the module.

    Example:
        >>> import elegy.losses
        >>> module_getattr("elegy.losses")("Hubr")
        Traceback (most recent call last):
        ...
        AttributeError: module 'elegy.losses' has no attribute 'Hubr'. Did you mean 'Huber'?
    """

    def missing(name: str) -> Any:
        if name in THEIRS:
            raise AttributeError(f"module {module!r} has no attribute {name!r}. Write {THEIRS[name]}.")
        found = [] if name.startswith("_") else near(name, getattr(sys.modules[module], "__all__", ()))
        more = f". Did you mean {' or '.join(map(repr, found))}?" if found else ""
        raise AttributeError(f"module {module!r} has no attribute {name!r}{more}")

    return missing

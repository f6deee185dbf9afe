"""The loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elegy.lazy import lazy_names

if TYPE_CHECKING:
    from elegy.trainer.evaluation.evaluations import Evaluation
    from elegy.trainer.model import Model
    from elegy.trainer.population.population import Population
    from elegy.trainer.trainer import Trainer

__all__ = ["Evaluation", "Model", "Population", "Trainer"]

_NAMES = {
    "trainer.evaluation.evaluations": ("Evaluation",),
    "trainer.model": ("Model",),
    "trainer.population.population": ("Population",),
    "trainer.trainer": ("Trainer",),
}

__getattr__, __dir__ = lazy_names(__name__, _NAMES)

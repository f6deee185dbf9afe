"""The loop."""

from elegy.trainer.evaluations import Evaluation
from elegy.trainer.model import Model
from elegy.trainer.population import Population
from elegy.trainer.trainer import Trainer

__all__ = ["Evaluation", "Model", "Population", "Trainer"]

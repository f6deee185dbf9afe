"""Elegy's side of the pairs."""

from __future__ import annotations

from typing import Any

import elegy as eg
from benchmarks.works import SEED, Work


def trainer_for(work: Work, module: Any = None, **more: Any) -> eg.Trainer:
    """Makes a Trainer with loss and accuracy, with the initial parameters of the hand-written loop.

    Args:
        work: the workload.
        module: another module, which makes its own initial parameters.
        **more: arguments of the Trainer.
    """
    if module is None:
        module = work.module()
        more.setdefault("variables", {"params": work.params()})
    return eg.Trainer(
        module,
        loss=eg.losses.CrossEntropy(),
        metrics=eg.metrics.Accuracy(),
        optimizer=work.optimizer(),
        seed=SEED,
        **more,
    )


def fit(trainer: eg.Trainer, work: Work, data: Any, **more: Any) -> Any:
    """Runs `fit` for the workload's epochs, without output; returns the state's arrays to wait for."""
    x, y = data
    trainer.fit(x, y, batch_size=work.batch_size, epochs=work.epochs, verbose=0, **more)
    return trainer.history

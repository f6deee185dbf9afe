"""Trainers as the members of a population."""

from __future__ import annotations

from typing import Any

import jax

from elegy.module.levels import level_of
from elegy.module.recipe import with_functions_of
from elegy.strategies import Jit
from elegy.trainer.nonfinite import Skipped
from elegy.trainer.population.history import MemberHistory
from elegy.trainer.session import Session
from elegy.trainer.state_methods import session_of
from elegy.trainer.trainer import Trainer


def checked_trainer(trainer: Any) -> Trainer[Any]:
    """Returns what a function has built.

    Raises:
        TypeError: if it is not a Trainer.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(f"the function that builds a member must return an elegy.Trainer, not {trainer!r:.80}.")
    return trainer


def check_member(trainer: Trainer[Any]) -> None:
    """Checks that Trainers like this one can be trained as a population.

    Raises:
        ValueError: saying what a population does not take.
    """
    session = session_of(trainer)
    cls = session.buffer.cls
    if session.initialized:
        raise ValueError(
            "the members of a population start from a Trainer without a state, so that each makes its own. Weights "
            "to start from go into `variables` of the Trainer."
        )
    if trainer.strategy != Jit():
        raise ValueError(
            f"a population divides its members over the devices itself: build a Trainer without "
            f"strategy={trainer.strategy!r}, and pass `devices` to the Population."
        )
    if trainer.nonfinite == "rollback":
        raise ValueError(
            "nonfinite='rollback' goes back to a checkpoint, which has all members, and changes the order of the data: "
            "'skip' leaves out the step of the member that is not finite, and 'raise' ends the run and names it."
        )
    core = [phase for phase in ("init", "train", "test", "pred") if level_of(cls, phase) == "core"]  # type: ignore[arg-type]
    if core:
        raise ValueError(
            f"{cls.__name__} runs at the core level ({', '.join(core)}), where Elegy compiles nothing: write "
            "`jax.vmap` into its steps, or implement the managed level."
        )


def take_member(trainer: Trainer[Any], population: Session, index: int, seed: int, values: MemberHistory) -> None:
    """Gives a Trainer the state of one member of a population, in arrays of its own, and its counters and history.

    Args:
        trainer: built like the member, without a state.
        population: the session that has the stacked states.
        index: the number of the member.
        seed: its seed.
        values: the history of the population.
    """
    session = session_of(trainer)
    session.seed = seed
    if not population.initialized:
        return
    # A leaf that is divided over several devices gives a member that is on all of them.
    member = session.strategy.place_state(jax.tree.map(lambda leaf: leaf[index], population.state))
    trainer.state = with_functions_of(trainer.state, member.replace(_hyperparameters=None))
    skipped = population.monitor.count().by_member
    session.monitor.skipped = Skipped(skipped[index] if skipped else 0)
    end = values.end(index)
    trainer.step, trainer.epoch = (population.step, population.epoch) if end is None else (end.step, end.epoch)
    session.history = values.of(index)

"""What the tests of bad input share: a mistake as a value, and what must hold when it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from boring_modules import High, assert_same_bits, compilations, host, regression, trainer_of

import elegy as eg

X, Y = regression(22)
CLASSES = (X[:, 0] > 0).astype(np.int32)
NAN = np.where(np.arange(22)[:, None] == 3, np.nan, X).astype(np.float32)


def high(**fixed):
    return lambda **kwargs: trainer_of(High, **fixed, **kwargs)


def classifier(**kwargs):
    return trainer_of(High, loss=eg.losses.CrossEntropy(), **kwargs)


def fit(*data, **kwargs):
    data = data or (X, Y)
    kwargs = {"verbose": 0, **({"batch_size": 8} if isinstance(data[0], np.ndarray) else {}), **kwargs}
    return lambda trainer: trainer.fit(*data, **kwargs)


def batches(*cuts, x=X, y=Y):
    return [(x[a:b], y[a:b]) for a, b in cuts]


@dataclasses.dataclass
class Case:
    """One mistake.

    Args:
        name: what is wrong.
        kind: the exception.
        match: what its message says.
        call: makes the mistake.
        build: makes the trainer.
        ready: whether the trainer can be initialised before the mistake is made.
        strategies: where the mistake can be made.
    """

    name: str
    kind: type
    match: str
    call: Callable[[Any], Any] = dataclasses.field(default_factory=fit)
    build: Callable[..., Any] = dataclasses.field(default_factory=high)
    ready: bool = True
    strategies: tuple[str, ...] = ("jit", "eager")


def steps_compiled(names):
    return [name for name in names if "step" in name or "kernel" in name]


def nothing_is_compiled_and_the_state_stays(case: Case) -> None:
    """Makes the mistake with a trainer that has no state yet."""
    trainer = case.build()
    before = trainer.state
    with compilations() as names, pytest.raises(case.kind, match=case.match):
        case.call(trainer)
    assert trainer.state is before
    assert steps_compiled(names) == []
    assert (trainer.step, trainer.epoch, trainer.history.epoch) == (0, 0, [])


def the_state_is_what_it_was(case: Case, strategy: str) -> None:
    """Makes the mistake with a trainer that has a state."""
    trainer = case.build(strategy=strategy)
    trainer.init_on_batch(X[:8], Y[:8])
    trainer.step, trainer.epoch = 5, 2
    before, values, history = trainer.state, host(trainer.state), trainer.history
    with compilations() as names, pytest.raises(case.kind, match=case.match):
        case.call(trainer)
    assert trainer.state is before
    assert_same_bits(host(trainer.state), values)
    assert steps_compiled(names) == []
    assert (trainer.step, trainer.epoch) == (5, 2)
    assert trainer.history is history


def with_strategies(cases: list[Case]) -> list[Any]:
    return [pytest.param(c, s, id=f"{c.name}-{s}") for c in cases if c.ready for s in c.strategies]

"""Data that one call placed on the devices serves the next calls, with the results of a trainer that copies it anew."""

from __future__ import annotations

import copy
import gc
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
from boring_modules import High, assert_same_bits, host, regression, trainer_of

from elegy.loading import DeviceCopies


def trainer_that_finds_arrays():
    trainer = trainer_of(High)
    trainer._session._copies = DeviceCopies(2**20, digests=True)  # on the CPU as on an accelerator
    return trainer


@pytest.fixture
def placed(monkeypatch):
    """The sizes of the arrays that `DeviceCopies` places."""
    from elegy.strategies import Jit

    sizes, place = [], Jit.place

    def counted(self, value, kind):
        if kind == "whole" and value.ndim > 1:  # not a control vector
            sizes.append(len(value))
        return place(self, value, kind)

    monkeypatch.setattr(Jit, "place", counted)
    return sizes


def test_a_second_fit_its_validation_and_evaluate_find_the_data(placed):
    (x, y), trainer = regression(48), trainer_that_finds_arrays()
    options = {"batch_size": 8, "epochs": 2, "verbose": 0, "steps_per_execution": 4}
    trainer.fit(x, y, validation_data=(x[:16], y[:16]), **options)
    assert sorted(placed) == [16, 16, 48, 48]
    trainer.fit(x, y, validation_data=(x[:16], y[:16]), **options)
    trainer.evaluate(x, y, batch_size=8, verbose=0)
    trainer.predict(x, batch_size=8)
    assert len(placed) == 4


def test_data_changed_in_place_is_seen_by_the_next_call():
    (x, y), trainer, other = regression(48), trainer_that_finds_arrays(), trainer_of(High)
    options = {"batch_size": 8, "verbose": 0, "steps_per_execution": 4}
    for one in (trainer, other):
        one.fit(x, y, **options)
    x[47] += 1.0
    y[:8] *= -1.0
    for one in (trainer, other):
        one.fit(x, y, **options)
    assert_same_bits(host(trainer.state), host(other.state))
    values = [one.evaluate(x, y, batch_size=8, verbose=0) for one in (trainer, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)  # gathered on the device and on the host
    outputs = [one.predict(x, batch_size=8) for one in (trainer, other)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-6)


@pytest.mark.parametrize("dropped", ["trainer", "arrays"])
def test_the_copies_go_with_the_trainer_and_with_the_arrays(dropped):
    (x, y), trainer = regression(48), trainer_that_finds_arrays()
    trainer.fit(x, y, batch_size=8, verbose=0, steps_per_execution=4)
    copies = [weakref.ref(one.placed) for one in trainer._session.copies._copies.values()]
    assert len(copies) == 2
    assert copy.copy(trainer)._session.copies.nbytes == 0
    gc.collect()
    assert all(one() is not None for one in copies)
    if dropped == "trainer":
        del trainer
    else:
        del x, y
    gc.collect()
    assert all(one() is None for one in copies)


def test_another_strategy_places_the_data_anew():
    x, y = map(jnp.asarray, regression(48))
    trainer, reference = trainer_of(High), trainer_of(High, strategy="sharded")
    trainer.fit(x, y, batch_size=8, verbose=0, epochs=1)
    trainer.set_strategy("sharded")
    assert trainer._session.copies.nbytes == 0
    reference.state = trainer.state
    values = [one.evaluate(x, y, batch_size=8, verbose=0) for one in (trainer, reference)]
    assert values[0] == values[1]

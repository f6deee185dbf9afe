"""Epochs of `steps_per_epoch` over iterables: they go on, begin again at the end, and resume exactly."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import optax
import pytest
from boring_modules import TX, High, assert_same_bits, host, regression, squares, trainer_of

import elegy as eg
from elegy.callbacks import ModelCheckpoint

EPOCHS, STEPS = 3, 3
BATCHES = [regression(4, seed=k) for k in range(9)]


class Endless:
    def __iter__(self):
        return itertools.cycle(BATCHES)


class Numbered:
    def __init__(self, told):
        self.told = told

    def set_epoch(self, epoch):
        self.told.append(epoch)

    def __iter__(self):
        return iter(BATCHES[:3])


DATA = {  # the data, and which batches nine steps see
    "endless": (Endless, range(9)),
    "list of seven": (lambda: BATCHES[:7], [0, 1, 2, 3, 4, 5, 6, 0, 1]),
    "function of seven": (lambda: lambda: iter(BATCHES[:7]), [0, 1, 2, 3, 4, 5, 6, 0, 1]),
    "three": (lambda: BATCHES[:3], [0, 1, 2] * 3),
}


def fit(data, trainer=None, **kwargs):
    trainer = trainer or trainer_of(High)
    trainer.fit(data, **{"epochs": EPOCHS, "steps_per_epoch": STEPS, "verbose": 0, **kwargs})
    return trainer


def bare(params, order):
    """The parameters and the mean loss of each epoch of a plain loop over some of the batches."""
    state, losses = TX.init(params), []
    step = jax.jit(jax.value_and_grad(lambda params, x, y: squares(params, x, y).mean()))
    for k in order:
        loss, grads = step(params, *BATCHES[k])
        updates, state = TX.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return params, np.reshape(losses, (EPOCHS, STEPS)).mean(1)


@pytest.mark.parametrize("kind", DATA)
def test_epochs_go_on_and_resume_as_a_bare_loop(tmp_path, kind):
    make, order = DATA[kind]
    start = trainer_of(High)
    start.init_on_batch(*BATCHES[0])
    params, losses = bare(start.state.params, order)
    whole = fit(make(), callbacks=[ModelCheckpoint(tmp_path, every=eg.Every(steps=1), save_top_k=-1)])
    np.testing.assert_allclose(whole.history.history["loss"], losses, rtol=1e-5)
    for ours, theirs in zip(host(whole.state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)
    for cut in (1, 3, 5, 8):
        resumed = fit(make(), resume=tmp_path / f"step_{cut:08d}")
        assert resumed.history.history == whole.history.history
        assert_same_bits(host(resumed.state), host(whole.state))


@pytest.mark.parametrize("k", [2, 4])
def test_several_steps_in_one_execution_go_on_and_resume(tmp_path, k):
    every = ModelCheckpoint(tmp_path, every=eg.Every(steps=4), save_top_k=-1)
    data, options = BATCHES[:7], {"steps_per_epoch": 5, "epochs": 2, "steps_per_execution": k}
    whole = fit(data, callbacks=[every], **options)
    resumed = fit(data, resume=tmp_path / "step_00000004", **options)
    assert_same_bits(host(resumed.state), host(whole.state))
    alone = fit(data, **{**options, "steps_per_execution": 1})
    for ours, theirs in zip(host(whole.state), host(alone.state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)  # a loop's sums in another order


def test_a_validation_over_endless_data_sees_the_first_batches_each_time():
    still = trainer_of(High, optimizer=optax.sgd(0.0))
    fit(BATCHES, still, validation_data=Endless(), validation_steps=2)
    mean = np.mean([squares(still.state.params, *batch).mean() for batch in BATCHES[:2]])
    np.testing.assert_allclose(still.history.history["val_loss"], [mean] * EPOCHS, rtol=1e-5)


def test_a_second_fit_begins_at_the_beginning_with_the_number_of_its_epoch():
    told = []
    trainer = fit(Numbered(told), steps_per_epoch=None, epochs=2)
    fit(Numbered(told), trainer, steps_per_epoch=None, epochs=2)
    assert told == [0, 1, 2, 3]


def test_a_restored_epoch_that_waits_for_the_module_counts(tmp_path):
    fit(BATCHES[:3]).save(tmp_path / "saved")
    told = []
    later = trainer_of(High)
    later.restore(tmp_path / "saved")
    fit(Numbered(told), later, epochs=1)
    assert told[-1] == EPOCHS
    assert (later.epoch, later.step) == (4, 12)

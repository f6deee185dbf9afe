"""What `fit` does besides calling the compiled step, counted."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import High, compilations, regression

import elegy as eg

PACKAGE = str(Path(eg.__file__).parent)
X, Y = regression(800)


def trainer_of(cls=High):
    return eg.Trainer(cls(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.01))


def calls_of(function):
    """The number of calls of Python functions of the package while a function runs."""
    calls = []

    def count(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls.append(frame.f_code.co_name)

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return len(calls)


def test_a_single_step_makes_few_python_calls():
    trainer = trainer_of()

    def fit(rows):
        trainer.fit(X[:rows], Y[:rows], batch_size=8, verbose=0, steps_per_execution=1)

    fit(800), fit(80), fit(800)
    # For 90 more steps. Each call costs some 0.1 us, of some 10 us that a step costs besides its batch.
    assert calls_of(lambda: fit(800)) - calls_of(lambda: fit(80)) < 35 * 90


def test_a_second_fit_does_not_trace_the_module():
    class Counted(High):
        def apply(self, key, inputs, training):
            traced.append(np.shape(inputs))
            return super().apply(key, inputs, training)

    traced = []
    trainer = trainer_of(Counted)
    for _ in range(2):
        before = len(traced)
        trainer.fit(X, Y, batch_size=8, verbose=0, validation_data=(X[:80], Y[:80]))
    trainer.evaluate(X[:80], Y[:80], batch_size=8, verbose=0)
    assert before > 0
    assert len(traced) == before


def test_labels_are_checked_against_the_outputs_of_the_steps_own_trace():
    class Counted(High):
        def apply(self, key, inputs, training):
            traced.append((np.shape(inputs), training))
            return super().apply(key, inputs, training)

    traced = []
    trainer_of(Counted).fit(X, Y, batch_size=8, epochs=2, verbose=0, validation_data=(X[:80], Y[:80]))
    assert [training for _, training in traced] == [True, False]


def test_labels_that_do_not_fit_are_named_where_the_step_cannot_be_traced():
    def faulty(target, preds):
        raise ZeroDivisionError("of the step")

    losses, labels = [faulty, eg.losses.CrossEntropy()], np.full(800, 7)
    classes = (lambda key: {"w": jnp.zeros((X.shape[1], 2))}, lambda params, x: x @ params["w"])
    with pytest.raises(ValueError, match="the target contains 7"):
        eg.Trainer(classes, losses, optimizer=optax.sgd(0.01)).fit(X, labels, verbose=0)
    with pytest.raises(ZeroDivisionError, match="of the step"):
        eg.Trainer(classes, losses, optimizer=optax.sgd(0.01)).fit(X, labels % 2, verbose=0)


def test_a_first_state_is_not_reset_again():
    trainer = trainer_of()
    with compilations() as names:
        trainer.fit(X, Y, batch_size=400, verbose=0)
    assert not [name for name in names if "reset" in name]
    first = trainer.history.history["loss"][0]
    with compilations() as names:
        trainer.fit(X, Y, batch_size=400, verbose=0)
    assert [name for name in names if "reset" in name]

    dirty, clean = trainer_of(), trainer_of()  # with sums that are not those of a first state
    clean.init_on_batch(X[:400], Y[:400])
    dirty.state = clean.state.replace(losses_and_metrics=trainer.state.losses_and_metrics)
    dirty.fit(X, Y, batch_size=400, verbose=0)
    assert dirty.history.history["loss"] == [first]


def test_a_reset_of_the_users_runs_in_each_epoch():
    class Counting(High):
        epochs: jax.Array = eg.field(default_factory=lambda: jnp.zeros((), jnp.int32))

        def reset_step(self):
            return super().reset_step().replace(epochs=self.epochs + 1)

    trainer = trainer_of(Counting)
    trainer.init_on_batch(X[:8], Y[:8])
    made = int(trainer.state.epochs)
    again = trainer_of(Counting)
    again.fit(X, Y, batch_size=400, epochs=2, verbose=0)
    assert int(again.state.epochs) == made + 2


def test_an_evaluation_with_metrics_of_its_own_begins_with_a_reset():
    trainer = trainer_of()
    own = eg.Evaluation((X, Y), metrics=eg.metrics.MeanAbsoluteError())
    trainer.fit(X, Y, batch_size=400, validation_data={"own": own, "same": (X, Y)}, verbose=0)
    values = {name: values[-1] for name, values in trainer.history.history.items()}
    assert values["val_own_loss"] == values["val_same_loss"]

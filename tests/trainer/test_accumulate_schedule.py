"""`Trainer(accumulate=<function of the step>)`: each step equals that of the whole batch, against a bare loop."""

import jax
import numpy as np
import optax
import pytest
from boring_modules import Core, High, network, regression

import elegy as eg
from elegy.data import epoch_permutation

X, Y = regression(22)  # batches of 8, 8, 6


def schedule(step):
    return (1, 1, 1, 2, 2, 3, 3, 1)[step]


def trainer(accumulate=schedule, module=High, **options):
    loss = eg.losses.MeanSquaredError()
    return eg.Trainer(module(), loss, optimizer=optax.adam(0.05), accumulate=accumulate, seed=3, **options)


def bare_loop(params, steps):
    """The steps over whole batches."""
    tx = optax.adam(0.05)
    state = tx.init(params)

    def loss(params, x, y):
        return ((network(params, x) - y) ** 2).mean()

    for step in range(steps):
        epoch, batch = divmod(step, 3)
        rows = epoch_permutation(3, epoch, 22)[8 * batch : 8 * batch + 8]
        updates, state = tx.update(jax.grad(loss)(params, X[rows], Y[rows]), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    "options", [{}, {"steps_per_execution": 1}, pytest.param({"strategy": "sharded"}, marks=pytest.mark.slow)]
)
def test_steps_equal_those_of_whole_batches(options):
    made = trainer(strategy=options.pop("strategy", "jit"))
    made.init_on_batch((X[:8], Y[:8]))
    wanted = bare_loop(made.state.params, 8)
    made.fit(X, Y, batch_size=8, epochs=3, max_steps=8, verbose=0, **options)
    for name in wanted:  # Adam divides small gradients, whose sums are taken in another order, by small roots
        np.testing.assert_allclose(made.state.params[name], wanted[name], rtol=1e-4, atol=1e-5)
    assert made.step == 8


def test_each_number_is_compiled_once_and_really_used():
    asked = []

    def alternating(step):
        asked.append(step)
        return 1 + step % 2

    made = trainer(alternating)
    made.fit(X[:16], Y[:16], batch_size=8, epochs=4, verbose=0)
    assert made._session.executor.traces["train"] == 2  # for eight steps
    assert set(range(8)) <= set(asked)
    used = {program for program in made._session.executor._programs.values() if program.phase == "train"}
    assert sorted("scan" in str(program.closed) for program in used) == [False, True]


def test_a_resumed_run_goes_on_in_the_schedule(tmp_path):
    whole, cut = trainer(), trainer()
    whole.fit(X, Y, batch_size=8, epochs=3, max_steps=8, verbose=0)
    cut.fit(X, Y, batch_size=8, max_steps=4, verbose=0)
    cut.save(tmp_path / "half")
    again = trainer()
    again.fit(X, Y, batch_size=8, epochs=3, max_steps=8, verbose=0, resume=tmp_path / "half")
    for one, two in zip(jax.tree.leaves(again.state.params), jax.tree.leaves(whole.state.params), strict=True):
        np.testing.assert_array_equal(one, two)


def test_single_batches_follow_the_schedule():
    made = trainer(lambda step: 1 + step)
    made.init_on_batch((X[:8], Y[:8]))
    for count in (1, 2):
        made.train_on_batch(X[:8], Y[:8])
        assert made._session.executor.options.accumulate == count


@pytest.mark.parametrize(
    ("accumulate", "error", "message"),
    [
        (lambda step: 0, ValueError, "what accumulate returns for step 0 must be a positive integer, not 0"),
        (lambda step: 1.5, TypeError, "must be a positive integer, not 1.5"),
        (lambda step: 9, ValueError, "a batch has 8 rows"),
    ],
)
def test_bad_schedules_are_refused_before_anything_runs(accumulate, error, message):
    with pytest.raises(error, match=message):
        trainer(accumulate).fit(X, Y, batch_size=8, verbose=0)
    with pytest.raises(ValueError, match="sums gradients over microbatches"):
        trainer(lambda step: 2, module=Core).fit(X, Y, batch_size=8, verbose=0)


def test_a_later_bad_number_ends_the_run_with_the_state_of_its_last_step():
    made = trainer(lambda step: 1 if step < 2 else 9)
    with pytest.raises(ValueError, match="a batch has 8 rows"):
        made.fit(X, Y, batch_size=8, verbose=0)
    assert made.step == 2
    assert np.isfinite(made.evaluate(X, Y, verbose=0)["loss"])

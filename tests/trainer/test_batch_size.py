"""`trainer.find_batch_size`: the largest size that fits, by analysis and by trying."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import Core, High, assert_same_bits, regression, trainer_of

import elegy as eg
from elegy.engine.executor import Executor
from elegy.trainer.diagnosis.batch_size import largest_below

X, Y = regression(16)
WIDE = np.ones((4, 500), np.float32)


class Wide(eg.ElegyModule):
    def init(self, key, inputs):
        return self.replace(params={"w": jnp.ones((500, 2))})

    def apply(self, key, inputs, training):
        return jnp.tanh(inputs @ self.params["w"]), self


def wide(strategy="jit", **options):
    return eg.Trainer(Wide(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), strategy=strategy, **options)


@pytest.mark.parametrize(("strategy", "replicas"), [("jit", 1), ("data_parallel", 8)])
def test_the_next_size_takes_more_than_the_budget(strategy, replicas):
    one, y, budget = wide(strategy), np.ones((4, 2), np.float32), 300_000
    size = one.find_batch_size(WIDE, y, budget=budget)
    assert size % replicas == 0
    peaks = [one.cost(WIDE, y, batch_size=n).peak_bytes for n in (size, size + replicas)]
    assert peaks[0] <= budget < peaks[1]
    assert replicas * (budget - 20_000) / 2100 < size < replicas * budget / 2000  # 500 inputs of four bytes a row


def test_multiples_limits_and_shapes():
    one = wide()
    shapes = jax.ShapeDtypeStruct((1, 500), jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.float32)
    assert one.find_batch_size(*shapes, budget=300_000, multiple=64) == 128
    assert one.find_batch_size(*shapes, largest=100, multiple=8) == 96


def test_a_size_that_runs_out_of_memory_is_not_the_result(monkeypatch):
    """As on a GPU whose memory is in use by others: the analysis is right, but the step fails."""
    run, sizes = Executor.run, []

    def limited(self, phase, buffer, chunk, epoch):
        sizes.append(chunk.sizes[0])
        if chunk.sizes[0] > 50:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return run(self, phase, buffer, chunk, epoch)

    monkeypatch.setattr(Executor, "run", limited)
    assert wide().find_batch_size(WIDE, np.ones((4, 2), np.float32), multiple=16, largest=96) == 48
    assert sizes == [96, 80, 64, 48]
    with pytest.raises(ValueError, match="no batch size fits"):
        wide().find_batch_size(WIDE, np.ones((4, 2), np.float32), multiple=64, largest=64)


@pytest.mark.parametrize("used", [False, True])
def test_the_trainer_stays_as_it_was(used):
    states, histories = [], []
    for searched in (False, True):
        one = trainer_of(High)
        if used:
            one.fit(X, Y, batch_size=4, verbose=0)
        before = one.state, one.step, one.epoch, one.history
        if searched:
            one.find_batch_size(X, Y, largest=64)
            assert (one.state, one.step, one.epoch, one.history) == before
        histories.append(one.fit(X, Y, batch_size=4, verbose=0).history)
        states.append(jax.tree.leaves(one.state))
    assert histories[0] == histories[1]
    assert_same_bits(*states)


PEAKS = {
    "a line": lambda n: 100 + 7 * n,
    "a jump to another algorithm": lambda n: 100 + 7 * n + (5000 if n > 300 else 0),
    "blocks of memory": lambda n: 1000 + -(-28 * n // 64) * 64,
    "a kink": lambda n: 100 + 50 * min(n, 100) + 4 * max(n - 100, 0),
    "squares": lambda n: 500 + 3 * n * n,
    "stairs": lambda n: 100 + 1000 * (n // 50),
    "the compiler gives up": lambda n: 100 + 7 * n if n < 9000 else math.inf,
    "constant": lambda n: 10,
}


@pytest.mark.parametrize("limit", [108, 5000, 12_345, 400_000, 10**9])
@pytest.mark.parametrize("kind", PEAKS)
def test_a_search_finds_the_last_size_within_the_limit(limit, kind):
    asked = []
    found = largest_below(lambda n: asked.append(n) or PEAKS[kind](n), limit, 1, 2**16)
    assert found == max((n for n in range(1, 2**16 + 1) if PEAKS[kind](n) <= limit), default=None)
    assert len(asked) == len(set(asked)) <= 32  # twice those of a binary search: each is a compilation
    if kind == "a line":
        assert len(asked) <= 4


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match=r"takes .* on a device, and there are 10 B: no batch size fits"):
        trainer_of(High).find_batch_size(X, Y, budget=10)
    for budget in (0, -5, 1.5, "1GB"):
        with pytest.raises(ValueError, match="the budget is a positive number of bytes"):
            trainer_of(High).find_batch_size(X, Y, budget=budget)
    with pytest.raises(ValueError, match="accumulate=8"):
        trainer_of(High, accumulate=8).find_batch_size(X, Y, largest=4)
    with pytest.raises(ValueError, match=r"Core\.train_step is of the core level"):
        trainer_of(Core).find_batch_size(X, Y)

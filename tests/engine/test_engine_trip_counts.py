"""Constant numbers of fused steps: which are chosen, and that they compute what a number as an argument does."""

from __future__ import annotations

import math
import re

import optax
import pytest
from boring_modules import High, assert_same_bits, host, regression
from hypothesis import given
from hypothesis import strategies as st

import elegy as eg
from elegy.callbacks import ModelCheckpoint
from elegy.engine import fusing
from elegy.engine.trip_counts import trip_counts
from elegy.strategies import Jit
from elegy.trainer import execution

X, Y = regression(8 * 22 + 5)  # 23 batches of 8; the last one is padded in training
VALIDATION = X[:88], Y[:88]


@given(st.integers(1, 64), st.integers(1, 3000), st.none() | st.integers(2, 200), st.booleans(), st.data())
def test_a_pass_needs_two_executables_and_as_few_executions_as_can_be(most, steps, interval, fixed, data):
    counts = trip_counts("gpu", most, steps, interval=interval, fixed=fixed)
    before = data.draw(st.integers(0, interval - 1)) if interval else 0  # since the end of the last interval
    sizes, done = [], 0
    while done < steps:
        until_end = steps if interval is None else interval - (before + done) % interval
        sizes.append(min(counts.full, steps - done, until_end))
        done += sizes[-1]
    assert max(sizes) <= most
    executables = {size if size in counts.static else "any number" for size in sizes}
    assert len(executables) <= 2
    if interval is None:
        assert len(sizes) == math.ceil(steps / most)
        assert all(size in counts.static for size in sizes if size > 1)


@given(st.integers(1, 64), st.none() | st.integers(1, 3000))
def test_on_a_cpu_one_executable_runs_all_numbers(most, steps):
    assert trip_counts("cpu", most, steps).static == ()
    assert trip_counts("cpu", most, steps).full == most


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Chooses the numbers of steps as on a GPU, of at most 16."""
    monkeypatch.setattr(fusing, "MOST", 16)
    monkeypatch.setattr(execution, "trip_counts", lambda platform, *args, **more: trip_counts("gpu", *args, **more))


@pytest.fixture
def trips(monkeypatch):
    """For each compiled loop over steps its constant number of iterations, or None."""
    found, compile_ = [], Jit.compile

    def compiled(self, step, args, **options):
        kernel = compile_(self, step, args, **options)

        def call(*arguments):
            if not known:
                text = kernel.lower(*arguments).compile().as_text()
                known.append([int(n) for n in re.findall(r'known_trip_count":\{"n":"(\d+)"', text)])
                found.append((kernel.__name__, max(known[0], default=None)))
            return kernel(*arguments)

        known = []
        return call if step.__name__.endswith("steps") else kernel

    monkeypatch.setattr(Jit, "compile", compiled)
    return found


def run(**options):
    trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.01))
    trainer.fit(X, Y, batch_size=8, verbose=0, **options)
    return trainer


def test_the_loops_have_constant_numbers_of_iterations(as_on_a_gpu, trips):
    run(epochs=2, validation_data=VALIDATION).predict(X[:80], batch_size=8)
    assert trips == [("train_steps", 12), ("train_steps", 11), ("test_steps", 11), ("pred_steps", 10)]


def test_on_this_cpu_the_number_is_an_argument(trips):
    run()
    assert trips == [("train_steps", None)]


@pytest.mark.parametrize("fuse", ["auto", 10])
def test_they_compute_the_same_bits_as_a_number_that_is_an_argument(fuse, request):
    options = {"epochs": 2, "validation_data": VALIDATION, "steps_per_execution": fuse}
    argument = run(**options)
    request.getfixturevalue("as_on_a_gpu")
    constant = run(**options)
    assert constant.history.history == argument.history.history
    assert_same_bits(host(constant.state), host(argument.state))
    assert_same_bits(constant.predict(X, batch_size=8), argument.predict(X, batch_size=8))


@pytest.mark.parametrize("stop", [5, 12])
def test_a_resumed_run_computes_the_same_bits(tmp_path, as_on_a_gpu, stop):
    whole = run(epochs=2)
    run(epochs=2, max_steps=stop, callbacks=[ModelCheckpoint(tmp_path)])
    resumed = run(epochs=2, resume=tmp_path)
    assert (resumed.step, resumed._session.record["static_steps"]) == (whole.step, (12,))
    assert_same_bits(host(resumed.state), host(whole.state))


def test_executions_end_where_callbacks_act(tmp_path, as_on_a_gpu, trips):
    every = ModelCheckpoint(tmp_path, every=eg.Every(steps=9), save_top_k=-1)
    trainer = run(epochs=2, callbacks=[every])
    assert {f"step_{n:08d}" for n in (9, 18, 27, 36, 45)} < {path.name for path in tmp_path.glob("step_*")}
    assert trips == [("train_steps", 9), ("train_steps", None)]
    resumed = run(epochs=2, resume=tmp_path / "step_00000027")
    assert_same_bits(host(resumed.state), host(trainer.state))

"""Executions before a time limit."""

import itertools

import flax.linen as nn
import numpy as np
import optax
import pytest
from boring_modules import Spy

import elegy as eg
from elegy.trainer import clock
from elegy.trainer.clock import Pace


@pytest.mark.parametrize("seconds", [1e-3, 0.1, 1.0, 7.0, 90.0])
@pytest.mark.parametrize("compilation", [0.0, 20.0])
def test_the_steps_before_the_limit_are_those_that_have_room(monkeypatch, seconds, compilation):
    now = [100.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    limit, steps, sizes = Pace(60.0), 0, []
    while now[0] < 160.0:
        sizes.append(limit.most(steps))
        now[0] += seconds * sizes[-1] + (0 if steps else compilation)
        steps += sizes[-1]
    room = max((60.0 - compilation) / seconds, 1)
    assert room <= steps <= room + 2
    assert sizes[0] == 1
    assert all(after <= 2 * before for before, after in itertools.pairwise(sizes))


def test_a_pace_may_be_asked_again(monkeypatch):
    monkeypatch.setattr(clock.time, "monotonic", lambda: 5.0)
    limit = Pace(60.0)
    assert [limit.most(0), limit.most(0), limit.most(1), limit.most(1), limit.most(3)] == [1, 1, 2, 2, 4]


@pytest.mark.parametrize(("k", "ahead"), [(1, 1), (4, 0)])
def test_a_run_with_a_time_limit_is_not_ahead_of_the_device(k, ahead):
    x = np.random.default_rng(0).normal(size=(8 * 512, 256)).astype(np.float32)
    logs, waits = [], []

    def look(event):
        logs.append(event.logs)
        if event.is_current and len(logs) > ahead:
            waits.append(not logs[-1 - ahead].ready)

    network = nn.Sequential([nn.Dense(2048), nn.relu, nn.Dense(256)])
    trainer = eg.Trainer(network, eg.losses.MeanSquaredError(), optimizer=optax.sgd(1e-3))
    options = {"batch_size": 512, "steps_per_execution": k, "callbacks": [Spy("on_train_batch_end", look, "logs")]}
    trainer.fit(x, x, epochs=2, max_time=1000.0, verbose=0, **options)
    assert len(logs) == 16
    assert len(waits) >= 4
    assert not any(waits)

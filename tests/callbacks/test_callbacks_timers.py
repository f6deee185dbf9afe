"""The time budget of a run, and what its time is spent on; all clocks are the tests' own."""

from __future__ import annotations

import datetime

import flax.linen as nn
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.callbacks import ModelCheckpoint, TimeMonitor, Timer
from elegy.checkpoint import store
from elegy.trainer import clock
from elegy.walltime import PARTS

X = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]


def tick(now, **seconds):
    """Lets time pass in hooks."""
    hooks = {name: lambda event, by=by: now.__setitem__(0, now[0] + by) for name, by in seconds.items()}
    return eg.callbacks.LambdaCallback(**hooks)


def trainer_of():
    return eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))


def fit(trainer, callbacks, epochs=3, **options):
    options = {"batch_size": 8, "steps_per_execution": 1, "verbose": 0, **options}
    return trainer.fit(X, X, epochs=epochs, callbacks=callbacks, **options).history


@pytest.mark.parametrize("save_last", [True, False])
def test_a_used_up_budget_saves_its_own_step_and_the_next_job_goes_on(tmp_path, monkeypatch, save_last):
    now = [0.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    whole = fit(trainer_of(), [])
    steps = []
    for _ in range(3):  # fifteen steps of a second each, seven a job
        keep = ModelCheckpoint(tmp_path, monitor="loss", save_last=save_last)
        timer = Timer(datetime.timedelta(seconds=7))
        trainer = trainer_of()
        history = fit(trainer, [tick(now, on_train_batch_end=1.0), timer, keep], resume="auto")
        steps.append((trainer.step, timer.expired, trainer.interrupted))
        assert keep.last_path.name == f"step_{trainer.step:08d}"
    assert steps == [(7, True, None), (14, True, None), (15, False, None)]
    assert history == whole


def test_executions_become_shorter_before_the_budget_ends(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    trainer = trainer_of()
    fit(trainer, [Timer(9), tick(now, on_train_batch_end=1.0)], epochs=20, steps_per_execution=64)
    assert trainer.step == 9
    fit(trainer, [Timer(9), tick(now, on_train_batch_end=1.0)], epochs=20, max_time=4)
    assert trainer.step == 13


@pytest.mark.parametrize(
    ("budget", "error"),
    [("1 h", TypeError), (True, TypeError), (None, TypeError), (0, ValueError), (float("nan"), ValueError)],
)
def test_budgets_that_cannot_be(budget, error):
    with pytest.raises(error, match=r"Timer\(.*\): (give a number of seconds or|the budget must be positive)"):
        Timer(budget)


def test_the_parts_of_the_time_add_up_and_go_to_their_epochs(monkeypatch):
    now = [0.0]
    monitor = TimeMonitor(lambda: now[0])
    ticks = tick(now, on_train_batch_end=1.0, on_epoch_begin=0.25, on_test_batch_end=4.0)

    monkeypatch.setattr(store, "save", lambda *_: now.__setitem__(0, now[0] + 16))
    save = eg.callbacks.LambdaCallback(on_epoch_end=lambda event: event.trainer.save("anywhere"))
    history = fit(trainer_of(), [ticks, save, monitor], epochs=2, validation_data=(X, X), validation_batch_size=20)
    compiled = history.pop("seconds_compile")  # in seconds of the real clock, taken out of other parts
    rest = {part: history[f"seconds_{part}"] for part in PARTS if part != "compile"}
    assert rest["callbacks"] == pytest.approx([5.25, 5.25])
    assert rest["saving"] == [16, 16]
    assert rest["evaluation"][1] == 8
    assert compiled[0] > 0 == compiled[1]
    assert rest["evaluation"][0] + rest["steps"][0] + rest["other"][0] == pytest.approx(8 - compiled[0])
    assert sum(monitor.seconds.values()) == pytest.approx(now[0])
    table = str(monitor).splitlines()
    assert [line.split()[0] for line in table] == [*PARTS, "all"]
    assert table[-1].split() == ["all", f"{now[0]:.3f}", "s", "100.0", "%"]


def test_a_monitor_measures_each_fit_anew_and_nothing_outside():
    now = [0.0]
    monitor = TimeMonitor(lambda: now[0])
    trainer = trainer_of()
    fit(trainer, [monitor, tick(now, on_train_end=3.0)], epochs=1)
    assert monitor.seconds["callbacks"] == pytest.approx(3)
    fit(trainer, [monitor], epochs=1)
    assert monitor.seconds["callbacks"] == 0
    trainer.evaluate(X, X, callbacks=[monitor], verbose=0)
    assert sum(monitor.seconds.values()) == pytest.approx(0)

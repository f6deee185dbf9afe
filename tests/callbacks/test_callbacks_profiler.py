"""`Profiler`: which steps are in a trace, under which names, and what a run without a trace does."""

import collections
import gzip
import json

import jax
import numpy as np
import pytest
from boring_modules import High, assert_same_bits, regression, trainer_of

import elegy as eg
from elegy.callbacks import Profiler, TimeMonitor

X, Y = regression(48)


def events(directory):
    """The complete events of each trace, in the order of the traces: lists of (name, arguments)."""
    files = sorted(directory.glob("plugins/profile/*/*.trace.json.gz"))
    found = [json.loads(gzip.decompress(file.read_bytes()))["traceEvents"] for file in files]
    return [[(e["name"], e.get("args", {})) for e in some if e.get("ph") == "X"] for some in found]


def steps_of(trace):
    return sorted(int(args["step_num"]) for name, args in trace if name == "train")


@pytest.mark.parametrize(
    ("fused", "expected"), [(1, [5, 6, 7]), (8, [5]), ("auto", [5])], ids=["single", "fused", "auto"]
)
def test_a_trace_has_its_steps_and_the_phases_of_the_loop(tmp_path, fused, expected):
    """Steps 6 to 8 of 12, of two epochs with a validation after the sixth."""
    callbacks = [Profiler(tmp_path, steps=3, start=5), TimeMonitor()]
    expected = [*expected, 6] if fused != 1 else expected  # the first of them ends its epoch
    trainer_of(High).fit(
        X, Y, batch_size=8, epochs=2, validation_data=(X, Y), steps_per_execution=fused, callbacks=callbacks, verbose=0
    )
    (trace,) = events(tmp_path)
    assert steps_of(trace) == expected
    names = collections.Counter(name for name, _ in trace)
    assert names["elegy: evaluation"] >= 1
    assert names["elegy: data"] >= len(expected)
    assert names["elegy: callbacks"] > 0
    assert len(list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))) == 1


def test_traces_at_an_interval(tmp_path, monkeypatch):
    begun, ended, now = [], [], [0]
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: begun.append(now[0]))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: ended.append(now[0]))

    class Counts(eg.Callback):
        batch_hooks_read = "logs"

        def on_train_batch_end(self, event):
            now[0] = event.step

    one = trainer_of(High)
    one.fit(X, Y, batch_size=8, epochs=1, verbose=0)  # 6 steps: the run begins after them
    profiler = Profiler(tmp_path, steps=2, start=0, every=eg.Every(steps=5))
    one.fit(X, Y, batch_size=8, epochs=2, callbacks=[Counts(), profiler], verbose=0)
    assert begun == [0, 11, 16]
    assert ended == [8, 13, 18]


def test_traces_that_begin_in_the_same_second_are_all_kept(tmp_path):
    profiler = Profiler(tmp_path, steps=1, start=1, every=eg.Every(steps=2))
    trainer_of(High).fit(X, Y, batch_size=8, steps_per_execution=1, callbacks=[profiler], verbose=0)
    traces = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert sorted(path.parent.name.partition("_step_")[2] for path in traces) == ["1", "3", "5"]


def test_a_trace_ends_with_the_run(tmp_path):
    """Also when it fails; afterwards another one can begin."""

    class Fails(eg.Callback):
        def on_epoch_end(self, event):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer_of(High).fit(X, Y, callbacks=[Fails(), Profiler(tmp_path / "a", start=0)], verbose=0)
    trainer_of(High).fit(X, Y, callbacks=[Profiler(tmp_path / "b", start=1)], verbose=0)
    assert len(events(tmp_path / "a")) == len(events(tmp_path / "b")) == 1
    trainer_of(High).fit(X, Y, callbacks=[Profiler(tmp_path / "c")], fast_dev_run=True, verbose=0)
    assert not (tmp_path / "c").exists()


def test_a_traced_run_computes_the_same(tmp_path):
    states = []
    for callbacks in ([], [Profiler(tmp_path, steps=2, start=3)]):
        one = trainer_of(High)
        one.fit(X, Y, batch_size=8, epochs=2, callbacks=callbacks, verbose=0)
        states.append(jax.tree.leaves(one.state))
    assert_same_bits(*states)


def test_nothing_is_named_without_a_trace(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("an annotation was made")

    monkeypatch.setattr(jax.profiler, "TraceAnnotation", never)
    monkeypatch.setattr(jax.profiler, "StepTraceAnnotation", never)
    late = Profiler("never", start=99)
    with pytest.warns(UserWarning, match=r"start=99.* only 6 steps"):
        trainer_of(High).fit(X, Y, batch_size=8, validation_data=(X, Y), callbacks=[late], verbose=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "Profiler's steps must be a positive integer"),
        ({"start": -1}, ValueError, "start=-1"),
        ({"every": 5}, TypeError, r"Every\(steps=1000\)"),
        ({"every": eg.Every(epochs=1)}, ValueError, "must be in steps"),
        ({"every": eg.Every(steps=5)}, ValueError, "longer than a trace"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        Profiler("traces", **options)
    with pytest.raises(TypeError):
        Profiler(np.zeros(2))

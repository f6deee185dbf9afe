"""The event, the base class, the dispatcher and the history."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from elegy.callbacks import HOOKS, Callback, CallbackList, Event, History, LambdaCallback, LazyLogs, PeriodicCallback
from elegy.errors import NonFiniteError
from elegy.types import Every


def event(**fields):
    return Event(**{"trainer": None, "phase": "train", "step": 3, "epoch": 1, **fields})


class Recorder(Callback):
    def __init__(self, seen=None):
        self.seen = [] if seen is None else seen

    def on_epoch_end(self, event):
        self.seen.append((self, event))


class TestLazyLogs:
    def test_fetches_once_and_only_when_read(self):
        calls = []

        def fetch():
            calls.append(1)
            return {"b": jnp.float32(0.5), "a": np.int64(2), "c": 1}

        logs = LazyLogs(fetch)
        assert calls == []
        assert logs["b"] == 0.5
        assert list(logs.items()) == [("b", 0.5), ("a", 2.0), ("c", 1.0)]
        assert (len(logs), logs.get("x"), "a" in logs, dict(logs) == logs.copy()) == (3, None, True, True)
        assert repr(logs) == "{'b': 0.5, 'a': 2.0, 'c': 1.0}"
        assert all(type(value) is float for value in logs.values())
        assert calls == [1]

    def test_copy_is_independent(self):
        logs = LazyLogs(lambda: {"a": 1.0})
        logs.copy()["a"] = 2.0
        assert logs["a"] == 1.0

    def test_missing_name_lists_the_logged(self):
        with pytest.raises(KeyError, match="no log named 'x'; logged here: a, b"):
            LazyLogs(lambda: {"a": 1.0, "b": 2.0})["x"]

    def test_a_vector_is_refused_by_name(self):
        with pytest.raises(TypeError, match=r"the log 'm' has shape \(3,\)"):
            LazyLogs(lambda: {"m": jnp.zeros(3)}).copy()

    def test_one_element_array(self):
        assert LazyLogs(lambda: {"m": jnp.ones((1, 1))})["m"] == 1.0


class TestDispatch:
    @pytest.mark.parametrize("hook", HOOKS)
    def test_every_hook_reaches_an_override(self, hook):
        seen = []
        cls = type("Mine", (Callback,), {hook: lambda self, event: seen.append(event)})
        callbacks = CallbackList([cls()])
        given = event()
        callbacks.emit(hook, given)
        assert seen == [given]
        assert [h for h in HOOKS if callbacks.listens(h)] == [hook]

    @pytest.mark.parametrize("hook", HOOKS)
    def test_base_hooks_do_nothing_and_are_not_called(self, hook):
        assert getattr(Callback(), hook)(event()) is None
        assert not CallbackList([Callback()]).listens(hook)

    def test_order_and_identity_of_the_event(self):
        seen = []
        first, second = Recorder(seen), Recorder(seen)
        given = event()
        CallbackList([first, second]).emit("on_epoch_end", given)
        assert seen == [(first, given), (second, given)]

    def test_who_runs_last(self):
        seen = []
        last = type("Last", (Recorder,), {"runs_last": True})(seen)
        others = [Recorder(seen), Recorder(seen)]
        CallbackList([others[0], last, others[1]]).emit("on_epoch_end", event())
        assert [callback for callback, _ in seen] == [*others, last]

    def test_the_event_is_frozen(self):
        with pytest.raises(AttributeError):
            event().step = 5

    def test_inherited_override_is_called(self):
        class Child(Recorder):
            pass

        assert CallbackList([Child()]).listens("on_epoch_end")


class TestErrors:
    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ([Recorder], TypeError, r"callbacks\[0\] is the class Recorder, not an instance: write `Recorder\(...\)`"),
            ([Recorder(), int], TypeError, r"callbacks\[1\] is the class int, which is not an elegy.callbacks"),
            ([print], TypeError, "builtin_function_or_method.*wrap functions"),
            (["history"], TypeError, "str: 'history'.*Derive its class"),
            (Recorder(), TypeError, "must be a list of callbacks, not Recorder"),
            (Recorder, TypeError, "must be a list of callbacks, not the class Recorder"),
            (3, TypeError, "must be a list of callbacks, not int: 3"),
            ([Recorder()] * 2, ValueError, r"Recorder at callbacks\[1\] is listed twice"),
        ],
    )
    def test_objects_that_are_not_callbacks(self, given, error, message):
        with pytest.raises(error, match=message):
            CallbackList(given)

    @pytest.mark.parametrize(
        "hook", [lambda self, epoch, logs=None: None, lambda self, logs=None: None, lambda self: None]
    )
    def test_hook_written_for_another_library(self, hook):
        cls = type("Ported", (Callback,), {"on_epoch_end": hook})
        with pytest.raises(TypeError, match=r"Ported.on_epoch_end takes .*a hook receives one event"):
            CallbackList([cls()])

    @pytest.mark.parametrize(
        ("theirs", "ours"),
        [
            ("on_train_start", "on_train_begin"),
            ("on_fit_end", "on_train_end"),
            ("on_train_epoch_start", "on_epoch_begin"),
            ("on_train_epoch_end", "on_epoch_end"),
            ("on_epoch_start", "on_epoch_begin"),
            ("on_train_batch_start", "on_train_batch_begin"),
            ("on_batch_end", "on_train_batch_end"),
            ("on_validation_start", "on_test_begin"),
            ("on_validation_epoch_end", "on_test_end"),
            ("on_test_batch_start", "on_test_batch_begin"),
            ("on_validation_batch_end", "on_test_batch_end"),
            ("on_predict_epoch_end", "on_predict_end"),
        ],
    )
    def test_hook_of_another_library_that_would_never_fire(self, theirs, ours):
        cls = type("Ported", (Callback,), {theirs: lambda self, event: None})
        with pytest.warns(UserWarning, match=rf"Ported.{theirs} is not a hook.*Did you mean {ours}\?"):
            CallbackList([cls()])
        with pytest.raises(TypeError, match=rf"'{theirs}' is not a hook\. Did you mean {ours}\?"):
            LambdaCallback(**{theirs: print})

    def test_method_that_would_never_fire(self):
        class Typo(Callback):
            def on_epoch_ends(self, event): ...

        with pytest.warns(UserWarning, match=r"Typo.on_epoch_ends is not a hook.*Did you mean on_epoch_end\?"):
            CallbackList([Typo()])

    def test_unknown_declaration(self):
        class Odd(Callback):
            batch_hooks_read = "everything"

        with pytest.raises(ValueError, match=r"Odd.batch_hooks_read is 'everything'"):
            CallbackList([Odd()])

    @pytest.mark.parametrize("method", ["on_epoch_end", "on_train_begin", "on_train_end", "before_end", "meet"])
    def test_what_a_hook_raises_keeps_its_type_and_says_where(self, method):
        error = KeyError("lost")

        def fail(self, event):
            raise error

        hook = {"before_end": "on_train_end", "meet": "on_train_begin"}.get(method, method)
        with pytest.raises(KeyError, match="lost") as caught:
            CallbackList([type("Bad", (Callback,), {method: fail})()]).emit(hook, event(step=7))
        assert caught.value is error
        when = "" if method == "meet" else ", after training step 7"
        assert error.__notes__ == [f"Raised in the callback method Bad.{method}{when}."]

    @pytest.mark.parametrize("method", ["state_dict", "load_state_dict"])
    def test_a_state_that_fails_says_whose_it_is(self, method):
        def fail(self, *state):
            raise KeyError("wait")

        callbacks = CallbackList([type("Bad", (Callback,), {method: fail})()])
        callbacks.emit("on_train_begin", event())
        with pytest.raises(KeyError) as caught:
            callbacks.state_dict() if method == "state_dict" else callbacks.load_state_dict({"Bad": {}})
        assert caught.value.__notes__ == [f"Raised in the callback method Bad.{method}."]

    @pytest.mark.parametrize(
        "error",
        [NonFiniteError("nan"), dataclasses.make_dataclass("Frozen", ["code"], bases=(Exception,), frozen=True)(3)],
    )
    def test_an_error_of_the_step_and_one_that_takes_no_notes_are_raised_as_they_are(self, error):
        def fail(self, event):
            raise error

        with pytest.raises(type(error)) as caught:
            CallbackList([type("Bad", (Callback,), {"on_epoch_end": fail})()]).emit("on_epoch_end", event())
        assert caught.value is error
        assert not hasattr(error, "__notes__")

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_exits_pass_through(self, error):
        class Leave(Callback):
            def on_epoch_end(self, event):
                raise error

        with pytest.raises(error):
            CallbackList([Leave()]).emit("on_epoch_end", event())

    def test_the_end_hook_of_every_callback_is_called(self):
        heard = []

        class End(Callback):
            def __init__(self, error):
                self.error = error

            def on_train_end(self, event):
                heard.append(self.error)
                if self.error:
                    raise self.error

        callbacks = CallbackList([End(OSError("disk")), End(None), End(ValueError("later"))])
        with pytest.raises(OSError, match="disk") as caught:
            callbacks.emit("on_train_end", event())
        assert len(heard) == 3
        assert caught.value.__notes__[1:] == ["Afterwards End.on_train_end raised ValueError: later."]

    @pytest.mark.parametrize("hook", ["on_train_end", "on_test_end", "on_predict_end"])
    def test_what_the_end_raises_does_not_hide_what_ended_the_run(self, hook):
        def fail(self, event):
            raise OSError("disk")

        first = KeyboardInterrupt()
        CallbackList([type("End", (Callback,), {hook: fail})()]).emit(hook, event(), first)
        assert first.__notes__ == [f"Afterwards End.{hook} raised OSError: disk."]

    @pytest.mark.parametrize("hook", ["on_train_end", "on_test_end", "on_predict_end"])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    @pytest.mark.parametrize("failure", [None, ValueError("of the run")])
    def test_an_exit_in_the_end_of_one_is_raised_after_the_ends_of_the_others(self, hook, error, failure):
        heard = []

        def end(self, event):
            heard.append(self.error)
            if self.error:
                raise self.error

        def make(error):
            callback = type("End", (Callback,), {hook: end})()
            callback.error = error
            return callback

        first = error()
        with pytest.raises(error) as caught:
            CallbackList([make(first), make(OSError("disk")), make(None)]).emit(hook, event(), failure)
        assert caught.value is first
        assert len(heard) == 3

    def test_before_end_of_all_is_called_before_any_end_hook(self):
        heard = []

        class End(Callback):
            def __init__(self, name):
                self.name = name

            def before_end(self, event):
                heard.append((self.name, "before", event.ended))
                raise OSError("disk")

            def on_train_end(self, event):
                heard.append((self.name, "end", event.ended))

        with pytest.raises(OSError, match="disk") as caught:
            CallbackList([End("a"), End("b")]).emit("on_train_end", Event(None, "train", 0, 0, ended="finished"))
        assert heard == [(name, when, "finished") for when in ("before", "end") for name in "ab"]
        assert caught.value.__notes__[1:] == ["Afterwards End.before_end raised OSError: disk."]


class TestLongestExecution:
    @pytest.mark.parametrize(("declared", "auto", "explicit"), [("logs", None, None), ("state", 1, 1), (None, 1, None)])
    def test_a_hook_of_every_batch(self, declared, auto, explicit):
        cls = type("C", (Callback,), {"batch_hooks_read": declared, "on_train_batch_end": lambda self, event: None})
        callbacks = CallbackList([cls(), Recorder()])
        assert callbacks.longest_execution("train") == (auto, ("C",) if auto else ())
        assert callbacks.longest_execution("train", undeclared=False) == (explicit, ("C",) if explicit else ())
        assert callbacks.longest_execution("test") == (None, ())

    @pytest.mark.parametrize("declared", ["logs", "state", None])
    @pytest.mark.parametrize(
        ("every", "longest"),
        [
            (Every(steps=7), 7),
            (Every(examples=64), 2),
            (Every(examples=65), 3),
            (Every(seconds=1), None),
            (Every(epochs=1), None),
        ],
    )
    def test_a_hook_at_intervals(self, every, longest, declared):
        body = {"batch_hooks_read": declared, "on_train_batch_end": lambda self, event: None}
        acts = type("Acts", (PeriodicCallback,), body)
        callbacks = CallbackList([acts(every), acts(Every(steps=100))])
        assert callbacks.longest_execution("train", 32)[0] == min(longest or 100, 100)
        logs = type("Logs", (acts,), {"only_logs": True})
        assert CallbackList([logs(every)]).longest_execution("train", 32) == (None, ())
        begins = type("Begins", (acts,), {"on_train_batch_begin": lambda self, event: None})
        assert CallbackList([begins(every)]).longest_execution("train", 32)[0] == (longest if declared == "logs" else 1)

    @pytest.mark.parametrize(
        ("every", "step", "examples", "size"),
        [
            (Every(steps=5), 0, 0, 5),
            (Every(steps=5), 3, 0, 2),
            (Every(steps=5), 4, 0, 1),
            (Every(steps=50), 4, 0, 8),
            (Every(steps=12), 4, 0, 8),
            (Every(examples=10), 0, 0, 3),
            (Every(examples=10), 0, 8, 1),
            (Every(examples=99), 0, 0, 8),
            (Every(seconds=1), 0, 0, 8),
        ],
    )
    def test_an_execution_ends_where_a_callback_acts(self, every, step, examples, size):
        acts = type("Acts", (PeriodicCallback,), {"on_train_batch_end": lambda self, event: None})
        logs = type("Logs", (acts,), {"only_logs": True})
        sizes = [4] * 8
        assert CallbackList([acts(every), logs(Every(steps=1))]).execution_size(step, examples, sizes) == size
        assert CallbackList([acts(every), acts(Every(steps=2))]).execution_size(0, 0, sizes) == 2


class TestState:
    def fill(self):
        history = History()
        callbacks = CallbackList([Recorder(), history])
        callbacks.emit("on_train_begin", event())
        callbacks.emit("on_epoch_end", event(epoch=4, logs={"loss": 2.0}))
        return history, callbacks

    @pytest.mark.parametrize("begun", [False, True])
    def test_loads_before_and_after_the_beginning(self, begun):
        _, callbacks = self.fill()
        saved = json.loads(json.dumps(callbacks.state_dict()))
        assert list(saved) == ["History"]
        history = History()
        resumed = CallbackList([history])
        if begun:
            resumed.emit("on_train_begin", event())
        resumed.load_state_dict(saved)
        if not begun:
            resumed.emit("on_train_begin", event())
        resumed.emit("on_epoch_end", event(epoch=5, logs={"loss": 1.0}))
        assert (history.history, history.epoch) == ({"loss": [2.0, 1.0]}, [4, 5])

    def test_callbacks_of_one_class_are_kept_apart(self):
        first, second = History(), History()
        callbacks = CallbackList([first, second])
        first.on_epoch_end(event(epoch=0, logs={"a": 1.0}))
        second.on_epoch_end(event(epoch=7, logs={"b": 2.0}))
        others = [History(), History()]
        resumed = CallbackList(others)
        resumed.load_state_dict(callbacks.state_dict())
        resumed.emit("on_train_begin", event())
        assert [h.epoch for h in others] == [[0], [7]]


class TestHistory:
    def test_a_late_name_has_its_own_values_only(self):
        history = History()
        for epoch in range(4):
            logs = {"loss": float(epoch)} | ({"val_loss": 10.0 + epoch} if epoch % 2 else {})
            history.on_epoch_end(event(epoch=epoch, logs=logs))
        assert history.history == {"loss": [0.0, 1.0, 2.0, 3.0], "val_loss": [11.0, 13.0]}
        assert history.epoch == [0, 1, 2, 3]

    def test_a_new_run_starts_empty_and_leaves_the_old_lists_alone(self):
        history = History()
        history.on_epoch_end(event(logs={"loss": 1.0}))
        old = history.history
        history.on_train_begin(event())
        assert (history.history, history.epoch, old) == ({}, [], {"loss": [1.0]})


def test_a_hook_that_failed_is_left_when_the_run_goes_back_to_a_checkpoint():
    class Fails(Callback):
        def on_evaluation_end(self, event):
            raise FloatingPointError

    class After(Callback):
        def on_evaluation_end(self, event):
            pass

    callbacks = CallbackList([Fails(), After()])
    event = Event(None, "train", step=3, epoch=0)
    with pytest.raises(FloatingPointError):
        callbacks.emit("on_evaluation_end", event)
    assert callbacks.unfinished == ("on_evaluation_end", event, ["Fails", "After"])
    callbacks.load_state_dict({})
    assert callbacks.unfinished is None  # a later checkpoint must not call it once more

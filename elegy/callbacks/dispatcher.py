"""Checks the callbacks of a run and calls their hooks."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from elegy.callbacks.callback import HOOKS, Callback, meant_hook
from elegy.callbacks.event import Event
from elegy.callbacks.interval import PeriodicCallback, is_by_interval
from elegy.callbacks.items import Item
from elegy.callers import stacklevel_of_caller
from elegy.distributed import is_first
from elegy.errors import NonFiniteError
from elegy.names import unique_names

# In these hooks callbacks close files, so each is called for every callback, even if one raises.
_CLOSING = frozenset({"on_train_end", "on_test_end", "on_predict_end"})

# In these hooks, callbacks that read the logs are called after those that may add to them.
_WITH_LOGS = frozenset({"on_train_batch_end", "on_test_batch_end", "on_test_end", "on_evaluation_end", "on_epoch_end"})
# In these hooks, a callback may save before others have heard of the same values; a resumed run calls those.
_CONTINUED = frozenset({"on_evaluation_end", "on_epoch_end"})


class CallbackList:
    """Checks callbacks and calls their hooks in order, `runs_last` last.

    Args:
        callbacks: instances of `Callback`.

    Attributes:
        has_batch_hooks: by phase (`"train"`, `"test"`, `"predict"`), True if a callback has a batch hook.

    Raises:
        TypeError: if an entry is not a callback instance, or a hook cannot be called with one event.
        ValueError: if a callback is listed twice, or declares an unknown `batch_hooks_read`.

    Example:
        >>> class Count(Callback):
        ...     epochs = 0
        ...     def on_epoch_end(self, event):
        ...         self.epochs += 1
        >>> count = Count()
        >>> callbacks = CallbackList([count])
        >>> callbacks.emit("on_epoch_end", Event(None, "train", step=10, epoch=0))
        >>> count.epochs, callbacks.listens("on_epoch_end"), callbacks.listens("on_train_batch_end")
        (1, True, False)
    """

    def __init__(self, callbacks: Iterable[Callback] = ()):
        if isinstance(callbacks, (Callback, type)) or not isinstance(callbacks, Iterable):
            raise TypeError(f"callbacks must be a list of callbacks, not {_given(callbacks)}.")
        self._callbacks = tuple(callbacks)
        for index, callback in enumerate(self._callbacks):
            _check(callback, index)
            if any(callback is earlier for earlier in self._callbacks[:index]):
                raise ValueError(f"the {type(callback).__name__} at callbacks[{index}] is listed twice; pass it once.")
        self._callbacks = tuple(sorted(self._callbacks, key=lambda callback: callback.runs_last))
        self._listeners: dict[str, tuple[tuple[Callback, Callable[[Event], None]], ...]] = {
            hook: tuple((c, getattr(c, hook)) for c in _in_order(self._callbacks, hook) if c.listens(hook))
            for hook in HOOKS
        }
        for hook, listeners in self._listeners.items():
            for callback, method in listeners:
                _check_signature(callback, hook, method)
        self._selecting = {
            phase: [(c, is_by_interval(c)) for c, _ in self._listeners[f"on_{phase}_batch_end"]]
            for phase in ("train", "test", "predict")
        }
        self.has_batch_hooks = {
            phase: self.listens(f"on_{phase}_batch_begin") or self.listens(f"on_{phase}_batch_end")
            for phase in ("train", "test", "predict")
        }
        # Of all callbacks, also those that run in the first process only: executions are the same in all processes.
        self._acting = [
            c
            for c in self._callbacks
            if c.listens("on_train_batch_end")
            and not (isinstance(c, PeriodicCallback) and c.only_logs)
            and (c.batch_hooks_read == "state" or type(c).acts_on_run is not Callback.acts_on_run)
        ]
        self._receivers = [c for c in self._callbacks if _receives(c) and _runs_here(c)]
        self._begun = False
        self._calling: tuple[str, Event, list[Callback]] | None = None
        self._deferred: tuple[dict[str, Any], dict[str, Any]] = {}, {}

    def __iter__(self) -> Iterator[Callback]:
        return iter(self._callbacks)

    def __len__(self) -> int:
        return len(self._callbacks)

    def listens(self, hook: str) -> bool:
        """True if a callback listens to `hook`. Otherwise the loop makes no event.

        Args:
            hook: a name from `HOOKS`.
        """
        return bool(self._listeners[hook])

    def selected_batches(self, phase: str, step: int, examples: int, sizes: Sequence[int]) -> Sequence[int]:
        """Returns the batches of one execution for which the loop makes events, in order.

        Args:
            phase: `"train"` or `"test"`.
            step: training steps completed before the execution.
            examples: training examples seen by the run before it.
            sizes: the examples of each of its batches.
        """
        if not self.has_batch_hooks[phase]:
            return ()
        if self.listens(f"on_{phase}_batch_begin"):
            return range(len(sizes))
        selected: set[int] = set()
        asked: set[Any] = set()
        for callback, by_interval in self._selecting[phase]:
            if len(selected) == len(sizes):
                break
            if by_interval:  # ten loggers with the same interval select the same batches
                key = type(callback).selected_batches, callback.every  # type: ignore[attr-defined]
                if key in asked:
                    continue
                asked.add(key)
            selected.update(callback.selected_batches(step, examples, sizes))
        return sorted(selected)

    def emit(
        self,
        hook: str,
        event: Event,
        failure: BaseException | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        """Calls `hook` of every callback that listens to it, in order. Calls `before_end` before `on_train_end`.

        The closing hooks (`on_train_end`, `on_test_end`, `on_predict_end`) are called for every callback, even if
        one of them raises. Later exceptions become notes on the first one; Ctrl-C and `sys.exit` are raised themselves.

        Args:
            hook: a name from `HOOKS`.
            event: the event that the hooks receive.
            failure: the exception that ends the run, for a closing hook. Exceptions of the hook become notes on it.
            only: the names of the callbacks to call, as in `state_dict`; None for all. Closing hooks are for all.

        Raises:
            Exception: the exception of a hook, with a note that names the callback and the hook.
        """
        if hook == "on_train_begin":
            for callback in self._callbacks:
                _call(callback, "meet", callback.meet, self._callbacks)
        if hook in _CLOSING:
            self._close(hook, event, failure)
            return
        here = None if only is None else [callback for name, callback in self._named() if name in only]
        calls = [call for call in self._listeners[hook] if here is None or call[0] in here]
        for k, (callback, method) in enumerate(calls):
            if hook in _CONTINUED:
                self._calling = hook, event, [other for other, _ in calls[k + 1 :]]
            try:
                method(event)
            except BaseException as error:
                if self._calling is not None:  # a run that goes on from here calls it again
                    self._calling[2].insert(0, callback)
                if isinstance(error, Exception):
                    _note(error, callback, hook, event)
                raise
        if hook in _CONTINUED:
            self._calling = None
        if hook == "on_train_begin":
            self._begun = True
            self._load_deferred()

    @property
    def unfinished(self) -> tuple[str, Event, list[str]] | None:
        """A hook that not all callbacks have heard of, with its event and the names of those that have not; or None.

        It is one that runs, or that a callback has ended with an exception, at the end of an epoch or of evaluations.
        """
        if self._calling is None or not self._calling[2]:
            return None
        hook, event, left = self._calling
        return hook, event, [name for name, callback in self._named() if any(callback is one for one in left)]

    def _close(self, hook: str, event: Event, failure: BaseException | None) -> None:
        calls = [(hook, *listener) for listener in self._listeners[hook]]
        if hook == "on_train_end":
            calls = [*(("before_end", c, c.before_end) for c in self._callbacks if _runs_here(c)), *calls]
        first = failure
        leaving: BaseException | None = None  # Ctrl-C or `sys.exit`: the other callbacks still close their files
        for name, callback, method in calls:
            try:
                method(event)
            except Exception as error:
                if first is None:
                    _note(error, callback, name, event)
                    first = error
                else:
                    _add_note(first, f"Afterwards {type(callback).__name__}.{name} raised {_line(error)}.")
            except BaseException as error:
                leaving = leaving or error
        raised = leaving or (first if failure is None else None)
        if raised is not None:
            raise raised

    def receive(self, make: Callable[[], Item]) -> None:
        """Gives what a callback logs to the callbacks that receive such items.

        Args:
            make: makes the item; it is called only if a callback receives it.
        """
        if self._receivers:
            item = make()
            for callback in self._receivers:
                _call(callback, "receive", callback.receive, item)

    def longest_execution(
        self, phase: str, batch_size: int | None = None, *, undeclared: bool = True
    ) -> tuple[int | None, tuple[str, ...]]:
        """Returns the largest number of steps in one execution that the callbacks allow.

        Args:
            phase: `"train"`, `"test"` or `"predict"`.
            batch_size: examples of a full batch; None if that is not known.
            undeclared: True to assume that a callback without `batch_hooks_read` reads the state.

        Returns:
            The number (None for no limit), and the class names of the callbacks that set it.
        """
        limits = [(_longest(c, phase, batch_size, undeclared), type(c).__name__) for c in self._callbacks]
        most = min((limit for limit, _ in limits if limit is not None), default=None)
        return most, tuple(name for limit, name in limits if limit is not None and limit == most)

    @property
    def step_values(self) -> tuple[str, ...]:
        """Returns the step values that the callbacks declare, sorted."""
        return tuple(sorted({name for callback in self._callbacks for name in callback.step_values}))

    @property
    def acts_on_run(self) -> bool:
        """True if a callback may read the state, or stop the run, within an epoch."""
        return bool(self._acting)

    def execution_size(self, step: int, examples: int, sizes: Sequence[int]) -> int:
        """Returns how many of the next batches run in one execution, which ends where a callback acts on the run.

        Args:
            step: training steps completed before the execution.
            examples: training examples seen by the run before it.
            sizes: the examples of each batch that the execution may hold.
        """
        ends = (min(c.acts_on_run(step, examples, sizes), default=len(sizes)) for c in self._acting)
        return min(min(ends, default=len(sizes)) + 1, len(sizes))

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Returns the callbacks' own states by class name (`_1`, `_2` for further ones of a class)."""
        states = {name: _call(callback, "state_dict", callback.state_dict) for name, callback in self._named()}
        return {name: state for name, state in states.items() if state}

    def kept_states(self) -> dict[str, dict[str, Any]]:
        """Returns the states of the trainer that the callbacks keep, by class name as in `state_dict`."""
        states = {name: _call(callback, "kept_states", callback.kept_states) for name, callback in self._named()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, states: dict[str, dict[str, Any]], kept: dict[str, dict[str, Any]] | None = None) -> None:
        """Passes each callback its state from `state_dict`: now, or after `on_train_begin` if that comes later.

        Callbacks without a state in `states` start anew. States without a callback are ignored.

        Args:
            states: as from `state_dict`.
            kept: as from `kept_states`.
        """
        self._calling = None  # a run that goes back to a checkpoint is not in the hook that failed any more
        self._deferred = dict(states), dict(kept or {})
        if self._begun:
            self._load_deferred()

    def _load_deferred(self) -> None:
        (states, kept), self._deferred = self._deferred, ({}, {})
        for name, callback in self._named():
            if name in kept or name in states:
                _call(callback, "load_kept_states", callback.load_kept_states, kept.get(name, {}))
            if name in states:
                _call(callback, "load_state_dict", callback.load_state_dict, states[name])

    def _named(self) -> Iterable[tuple[str, Callback]]:
        return zip(unique_names(type(c).__name__ for c in self._callbacks), self._callbacks, strict=True)


def _in_order(callbacks: Sequence[Callback], hook: str) -> list[Callback]:
    """The callbacks of this process in the order in which a hook is called."""
    here = [callback for callback in callbacks if _runs_here(callback)]
    if hook == "on_train_end":  # what others log there is received before loggers close
        return sorted(here, key=_receives)
    return sorted(here, key=lambda c: (c.runs_last, c.reads_logs)) if hook in _WITH_LOGS else here


def _call(callback: Callback, name: str, method: Callable, *args: Any) -> Any:
    """Calls a method of a callback that is not a hook, and adds a note with its name to exceptions."""
    try:
        return method(*args)
    except Exception as error:
        _note(error, callback, name)
        raise


def _note(error: Exception, callback: Callback, name: str, event: Event | None = None) -> None:
    if isinstance(error, NonFiniteError):  # raised by the step; the callback was the first to read its results
        return
    when = "" if event is None else f", after training step {event.step}"
    _add_note(error, f"Raised in the callback method {type(callback).__name__}.{name}{when}.")


def _add_note(error: BaseException, text: str) -> None:
    # Frozen dataclasses that are exceptions cannot get notes.
    with contextlib.suppress(Exception):
        error.add_note(text)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _longest(callback: Callback, phase: str, batch_size: int | None, undeclared: bool) -> int | None:
    begins, ends = (callback.listens(f"on_{phase}_batch_{moment}") for moment in ("begin", "end"))
    reads = callback.batch_hooks_read == "state" or (undeclared and callback.batch_hooks_read is None)
    if reads and (begins or (ends and (phase != "train" or not isinstance(callback, PeriodicCallback)))):
        return 1
    return callback.longest_execution(batch_size) if ends and phase == "train" else None


def _given(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"{type(thing).__name__}: {thing!r:.80}"


def _receives(callback: Callback) -> bool:
    return type(callback).receive is not Callback.receive


def _runs_here(callback: Callback) -> bool:
    return is_first() or not callback.first_process_only


def _check(callback: Any, index: int) -> None:
    where = f"callbacks[{index}]"
    if isinstance(callback, type):
        if issubclass(callback, Callback):
            raise TypeError(
                f"{where} is the class {callback.__name__}, not an instance: write `{callback.__name__}(...)`."
            )
        raise TypeError(f"{where} is {_given(callback)}, which is not an elegy.callbacks.Callback.")
    if not isinstance(callback, Callback):
        raise TypeError(
            f"{where} is {_given(callback)}, which is not an elegy.callbacks.Callback. Derive its class from "
            "Callback, or wrap functions: `LambdaCallback(on_epoch_end=function)`."
        )
    if callback.batch_hooks_read not in ("logs", "state", None):
        raise ValueError(
            f"{type(callback).__name__}.batch_hooks_read is {callback.batch_hooks_read!r}; it must be 'logs', 'state' "
            "or None."
        )
    for name in dir(type(callback)):
        if name.startswith("on_") and name not in HOOKS and callable(getattr(type(callback), name)):
            warnings.warn(
                f"{type(callback).__name__}.{name} is not a hook and is never called.{meant_hook(name)} The hooks are: "
                f"{', '.join(HOOKS)}.",
                stacklevel=stacklevel_of_caller(),
            )


def _check_signature(callback: Callback, hook: str, method: Callable) -> None:
    """Refuses hooks with Keras's signature, which would receive the event as an epoch index or as logs."""
    if _takes_one_event(method):
        return
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # builtins have no signature
        return
    try:
        signature.bind(None)
        fits = "logs" not in signature.parameters
    except TypeError:
        fits = False
    if not fits:
        raise TypeError(
            f"{type(callback).__name__}.{hook} takes {signature}, but a hook receives one event: write "
            f"`def {hook}(self, event)` and read `event.epoch`, `event.batch` and `event.logs`."
        )


def _takes_one_event(method: Any) -> bool:
    """True for a method `(self, event)`; `inspect.signature`, which knows all others, takes a hundred times as long."""
    code = getattr(getattr(method, "__func__", None), "__code__", None)
    if code is None or hasattr(method, "__wrapped__") or code.co_kwonlyargcount or code.co_argcount != 2:
        return False
    return not code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS) and code.co_varnames[1] == "event"

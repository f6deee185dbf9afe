"""The base class of callbacks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from elegy.callbacks.event import Event
from elegy.callbacks.items import Item

HOOKS: tuple[str, ...] = (
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_evaluation_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_begin",
    "on_test_end",
    "on_test_batch_begin",
    "on_test_batch_end",
    "on_predict_begin",
    "on_predict_end",
    "on_predict_batch_begin",
    "on_predict_batch_end",
)
"""The names of all hooks."""

# What Lightning and Keras call them.
_THEIRS = (
    ("_start", "_begin"),
    ("validation", "test"),
    ("on_fit_", "on_train_"),
    ("on_train_epoch_", "on_epoch_"),
    ("on_batch_", "on_train_batch_"),
    ("_epoch_begin", "_begin"),
    ("_epoch_end", "_end"),
)


def meant_hook(name: str) -> str:
    """Returns a sentence with the hook that a name stands for, in another library or misspelt; empty if none is near.

    Example:
        >>> meant_hook("on_validation_epoch_end"), meant_hook("on_epoch_ends"), meant_hook("on_sky")
        (' Did you mean on_test_end?', ' Did you mean on_epoch_end?', '')
    """
    if name == "on_exception":
        return " After an exception on_train_end is called, with event.ended == 'failed'."
    found = name
    for theirs, ours in _THEIRS:
        if found not in HOOKS:
            found = found.replace(theirs, ours)
    near = [found] if found in HOOKS else difflib.get_close_matches(name, HOOKS, n=1)
    return f" Did you mean {near[0]}?" if near else ""


class Callback:
    """Base class of callbacks: override the hooks that you need. Each receives one `Event`.

    Attributes:
        batch_hooks_read: what the batch hooks read. `"logs"`: the event's numbers and logs only, so several
            steps may run in one execution; a stop takes effect after the steps that have run already. `"state"`:
            `event.trainer.state` right after its own step, so an execution ends there; for a hook that is called for
            every batch, this turns such fusing off, with a message. None, not declared: like `"state"` under
            `steps_per_execution="auto"`. A callback without batch hooks need not declare it. See `PeriodicCallback`
            for hooks that act at intervals.
        step_values: names of values that the compiled training step computes for `event.step_logs`, only if a callback
            requests them: `"logs"`, the values of the step alone under the names of the logs; `"learning_rate"`, the
            learning rate of the step, from `optax.inject_hyperparams`; `"grad_norm"`, `"update_norm"`, `"param_norm"`,
            Euclidean norms of gradients, updates and parameters; with the suffix `/*`, one norm for each array of
            parameters.
        reads_logs: True to call the hooks that have logs (`on_train_batch_end`, `on_test_batch_end`, `on_test_end`,
            `on_evaluation_end`, `on_epoch_end`) after those of callbacks that may add values to them with `event.log`.
        runs_last: True to call its hooks after those of all other callbacks, for a callback that saves their state.
        writes_files: True for a callback that writes files; `fit(fast_dev_run=True)` leaves it out.
        time_budget: seconds after which `fit` is interrupted, as by a signal; None for no budget.
        first_process_only: True to call its hooks in the first process only, for a callback that writes a file or to
            the terminal. Such hooks may read logs, but not arrays that are divided over several processes.

    Example:
        >>> class PrintLoss(Callback):
        ...     def on_epoch_end(self, event):
        ...         print(f"epoch {event.epoch}: {event.logs['loss']:.2f}")
        >>> PrintLoss().on_epoch_end(Event(None, "train", step=10, epoch=0, logs={"loss": 0.5}))
        epoch 0: 0.50
    """

    batch_hooks_read: Literal["logs", "state"] | None = None
    step_values: Sequence[str] = ()
    reads_logs: bool = False
    runs_last: bool = False
    writes_files: bool = False
    first_process_only: bool = False
    time_budget: float | None = None

    def on_train_begin(self, event: Event) -> None:
        """Called once, before the first step of `fit`."""

    def on_train_end(self, event: Event) -> None:
        """Called once, at the end of `fit`, also when the run fails."""

    def on_epoch_begin(self, event: Event) -> None:
        """Called before the first batch of an epoch, and when a resumed run continues inside of an epoch."""

    def on_epoch_end(self, event: Event) -> None:
        """Called once for each epoch, after its last batch and its validation, with the logs of both.

        A run that stops inside of an epoch does not call it; the resumed run that trains the rest does.
        """

    def on_evaluation_end(self, event: Event) -> None:
        """Called inside of an epoch, after the evaluations that are due at a step (`Every(steps=...)`).

        `event.logs` are the running values of the epoch and the values of the evaluations that ran, whose names begin
        with one of `event.evaluated`. Evaluations that run when an epoch ends are in the logs of `on_epoch_end`
        instead: for every evaluation, one of the two hooks is called.
        """

    def on_train_batch_begin(self, event: Event) -> None:
        """Called before a training step."""

    def on_train_batch_end(self, event: Event) -> None:
        """Called after a training step, with the epoch's running values."""

    def on_test_begin(self, event: Event) -> None:
        """Called before the first batch of `evaluate`, or of a validation."""

    def on_test_end(self, event: Event) -> None:
        """Called after the last batch of `evaluate`, or of a validation."""

    def on_test_batch_begin(self, event: Event) -> None:
        """Called before a test step."""

    def on_test_batch_end(self, event: Event) -> None:
        """Called after a test step, with the running values."""

    def on_predict_begin(self, event: Event) -> None:
        """Called before the first batch of `predict`."""

    def on_predict_end(self, event: Event) -> None:
        """Called after the last batch of `predict`."""

    def on_predict_batch_begin(self, event: Event) -> None:
        """Called before a prediction step."""

    def on_predict_batch_end(self, event: Event) -> None:
        """Called after a prediction step."""

    def meet(self, callbacks: Sequence[Callback]) -> None:
        """Receives all callbacks of a run, including this one, before any `on_train_begin`.

        Args:
            callbacks: in the order in which they are called.
        """

    def before_end(self, event: Event) -> None:
        """Called at the end of `fit`, before any `on_train_end`, so before a callback may replace the state.

        Args:
            event: that of `on_train_end`.
        """

    def listens(self, hook: str) -> bool:
        """True if `hook` must be called. By default, a hook is called if the class overrides it.

        A hook that no callback listens to costs no time. The method is called once for each hook and run.

        Args:
            hook: a name from `HOOKS`.

        Example:
            >>> Callback().listens("on_epoch_end")
            False
        """
        return getattr(getattr(self, hook), "__func__", None) is not getattr(Callback, hook)

    def longest_execution(self, batch_size: int | None) -> int | None:
        """Returns the largest number of training steps in one execution that this callback allows; None for no limit.

        Args:
            batch_size: examples of a full batch; None if that is not known.
        """
        return 1 if self.batch_hooks_read == "state" else None

    def acts_on_run(self, step: int, examples: int, sizes: Sequence[int]) -> Iterable[int]:
        """Returns the batches after which an execution must end, because the hook reads the state or may stop the run.

        The result must depend on the arguments only: the loop may call this ahead of time.

        Args:
            step: training steps completed before the execution.
            examples: training examples seen by the run before it.
            sizes: the examples of each batch that the execution may hold.

        Returns:
            Indices into `sizes`.
        """
        return self.selected_batches(step, examples, sizes) if self.batch_hooks_read == "state" else ()

    def selected_batches(self, step: int, examples: int, sizes: Sequence[int]) -> Iterable[int]:
        """Returns the batches of one execution after which the batch hook must be called; by default, all.

        An event for every batch costs more than a short step takes. A callback that acts at intervals returns the
        batches at which it acts; it may be called for others, too. The result must depend on the arguments only.

        Args:
            step: training steps completed before the execution.
            examples: training examples seen by the run before it.
            sizes: the examples of each of its batches.

        Returns:
            Indices into `sizes`.
        """
        return range(len(sizes))

    def receive(self, item: Item) -> None:
        """Receives what callbacks of the run log with `event.log_text`, `log_image` and so on; for loggers.

        Args:
            item: the text, image, figure, histogram, file or checkpoint.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a resumed run needs, as JSON values; checkpoints contain it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; called right after `on_train_begin` of a resumed run.

        Args:
            state: the dict from the checkpoint.
        """

    def kept_states(self) -> dict[str, Any]:
        """Returns the states of the trainer, by name, that a resumed run needs beside the last one, without their logs.

        Checkpoints contain them, each with the size of a state.
        """
        return {}

    def load_kept_states(self, states: dict[str, Any]) -> None:
        """Restores what `kept_states` returned; called right before `load_state_dict`.

        Args:
            states: the states from the checkpoint; empty if it has none.
        """

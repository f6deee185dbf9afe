"""The callbacks of one call, and the events that they receive."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

from elegy.callbacks import Callback, CallbackList, Event, History, ModelCheckpoint
from elegy.runs.folder import RunFolder
from elegy.trainer import checks, progress
from elegy.trainer.execution import ExecutionPlan
from elegy.trainer.session import Session
from elegy.walltime import measured

if TYPE_CHECKING:
    from elegy.trainer.trainer import Trainer


class Listeners:
    """Makes events of a trainer for the callbacks of one call.

    Args:
        trainer: the trainer, which every event carries.
        session: its session.
        callbacks: the callbacks of the call, which follow the progress bar and those of the trainer.
        verbose: as for `Trainer.fit`.
        history: records a `fit`, after all others.
        without_files: True to leave out the callbacks that write files.
    """

    def __init__(
        self,
        trainer: Trainer,
        session: Session,
        callbacks: Sequence[Callback] | None,
        verbose: Literal[0, 1, 2],
        history: History | None = None,
        without_files: bool = False,
    ):
        self._trainer, self._session = trainer, session
        recorders = () if history is None else (history,)
        bars = progress.bars(verbose, session.loss_names)
        given: tuple[Callback, ...] = (*trainer.callbacks, *checks.listed(callbacks))
        if history is not None:
            given = _with_run_folder(session.run_folder, given)
        every = CallbackList((*bars, *given, *recorders))
        self.callbacks = CallbackList(c for c in every if not c.writes_files) if without_files else every

    def emit(
        self,
        hook: str,
        phase: Literal["train", "test", "predict"],
        plan: ExecutionPlan,
        *,
        epoch: int | None = None,
        failure: BaseException | None = None,
        added: dict[str, Any] | None = None,
        only: Collection[str] | None = None,
        **fields: Any,
    ) -> None:
        """Calls a hook of the callbacks; no event is made where no callback has it.

        Args:
            hook: the hook's name.
            phase: the phase.
            plan: how its batches run.
            epoch: the epoch's index; None for that of the trainer.
            failure: the exception that ends the phase.
            added: takes what the callbacks add to the logs.
            only: the names of the callbacks to call; None for all.
            **fields: further fields of the `Event`.
        """
        if not self.callbacks.listens(hook) and hook != "on_train_begin":
            return
        session, loader = self._session, plan.loader
        event = Event(
            trainer=self._trainer,
            phase=phase,
            step=session.step,
            epoch=session.epoch if epoch is None else epoch,
            steps=loader.steps,
            batch_size=loader.batch_size,
            elapsed=0.0 if session.run is None else session.run.clock.seconds,
            _added={} if added is None else added,
            _receive=self.callbacks.receive,
            **fields,
        )
        with measured("callbacks"):
            self.callbacks.emit(hook, event, failure, only)

    def emit_in_pass(
        self,
        hook: str,
        phase: Literal["test", "predict"],
        plan: ExecutionPlan,
        failure: BaseException | None = None,
        **fields: Any,
    ) -> None:
        """As `emit`, within an evaluation or a prediction, all of whose batches run with one state."""
        refusal = (
            f"the state was assigned in {hook}, but all batches of one pass run with the same state: assign it in "
            f"on_{phase}_begin, and assign the old one again in on_{phase}_end."
        )
        with self._session.refusing(refusal if "_batch_" in hook else None):
            self.emit(hook, phase, plan, failure=failure, **fields)


def _with_run_folder(folder: RunFolder | None, given: tuple[Callback, ...]) -> tuple[Callback, ...]:
    """The callbacks of a fit, with those of its run folder.

    Raises:
        ValueError: if a `ModelCheckpoint` without a directory has no run folder.
    """
    if folder is not None:
        return folder.with_callbacks(given)
    if any(isinstance(callback, ModelCheckpoint) and callback.in_run_folder for callback in given):
        raise ValueError(
            "ModelCheckpoint() has no directory, and the trainer has no run folder: pass the directory, or make the "
            "trainer with `run_dir='runs/name'`."
        )
    return given

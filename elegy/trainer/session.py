"""What a trainer holds: its state, its counters, and what is compiled. All parts of the trainer take a session."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import jax

from elegy.callbacks import History
from elegy.data import pack, unpack
from elegy.data.batch import rows
from elegy.distributed import collect
from elegy.engine.executor import Executor
from elegy.engine.program import CompiledPhase
from elegy.engine.state_buffer import StateBuffer
from elegy.errors import CheckpointError
from elegy.loading import BatchLoader, DeviceCopies
from elegy.module import ElegyModule
from elegy.module.averaging import Weights, with_weights
from elegy.module.step_values import StepOptions
from elegy.runs.folder import RunFolder
from elegy.strategies import Strategy, resolve_strategy
from elegy.trainer import checks
from elegy.trainer.execution import ExecutionPlan, PhaseRequest, plan_phases, resident_bytes
from elegy.trainer.first_state import planned_state
from elegy.trainer.microbatches import MicrobatchSchedule
from elegy.trainer.nonfinite import NonFiniteMonitor, check_level
from elegy.trainer.pending import PendingLoads
from elegy.types import Batch, PyTree

if TYPE_CHECKING:
    from elegy.trainer.run import Run


_NOT_PICKLED = ("run", "executor", "buffer", "_copies", "_refusal", "given_digest")


class Session:
    """The state of a trainer, its counters, and the executor of its steps.

    Args:
        state: the module, with or without a first state.
        strategy: how steps run on devices.
        monitor: the policy for steps that are not finite.
        seed: where all randomness comes from.
        microbatches: into how many microbatches a training step cuts its batch.
        config: the values that the program was run with, as JSON values.
        run_folder: writes what belongs to a run to a folder; None without one.

    Attributes:
        buffer: holds the state.
        executor: runs compiled steps.
        initialized: whether there is a state.
        pending: what `restore` and `load_weights` were given before there was one.
        step: completed training steps.
        epoch: completed epochs.
        history: the values of the last `fit`.
        stop_training: whether the run ends after the running step.
        interrupted: the signal that ended the last `fit`.
        run: the run that is under way.
        record: where the last run ended, as a checkpoint keeps it.
        kept: the states that callbacks of the last run keep.
        input_tree: the tree of the inputs last trained or evaluated with.
        given_digest: a version of the buffer, and the digest of the weights that the module was given.
    """

    def __init__(
        self,
        state: ElegyModule,
        strategy: Strategy,
        monitor: NonFiniteMonitor,
        seed: int,
        microbatches: MicrobatchSchedule,
        config: Mapping[str, Any] | None,
        run_folder: RunFolder | None,
    ):
        self.seed, self.monitor, self.config = seed, monitor, config
        self.microbatches, self.run_folder = microbatches, run_folder
        self.step = self.epoch = 0
        self.executor = self._executor(strategy)
        self._copies: DeviceCopies | None = None
        self.initialized = state.key is not None
        self.buffer = StateBuffer(strategy, state)
        self.pending = PendingLoads()
        self.history = History()
        self.stop_training = False
        self.interrupted: int | None = None
        self.run: Run | None = None
        self.record: Mapping[str, Any] | None = None
        self.kept: Mapping[str, Any] = {}
        self.input_tree: Any = None
        self.given_digest: tuple[int, str] | None = None
        self._refusal: str | None = None

    def _executor(self, strategy: Strategy) -> Executor:
        return Executor(strategy, StepOptions(self.monitor.guards, self.accumulate))

    @property
    def accumulate(self) -> int:
        """Into how many microbatches the next training step cuts its batch."""
        return self.microbatches.at(self.step)

    def follow_schedule(self, loader: BatchLoader | None = None) -> None:
        """Makes the executor cut batches into as many microbatches as the next training step needs.

        Args:
            loader: has the batches; None for a single batch.

        Raises:
            ValueError, TypeError: if the batches cannot be cut into so many.
        """
        if not self.microbatches.acts_on_run:
            return
        count = self.accumulate
        if count != self.executor.options.accumulate:
            checks.accumulation(count, self.buffer, None if loader is None else loader.batch_size)
            self.executor.accumulate(count)

    @property
    def strategy(self) -> Strategy:
        """How steps run on devices."""
        return self.executor.strategy

    @property
    def copies(self) -> DeviceCopies:
        """The data on the devices: that of the training and of an evaluation, each as large as resident data may be."""
        if self._copies is None:
            self._copies = DeviceCopies(2 * resident_bytes())
        return self._copies

    # the state

    @property
    def state(self) -> ElegyModule:
        """The state; what is read stays valid.

        Raises:
            RuntimeError: if it is assigned inside of a `refusing` block.
        """
        return self.buffer.get()

    @state.setter
    def state(self, state: ElegyModule) -> None:
        if self._refusal is not None:
            raise RuntimeError(self._refusal)
        self.buffer.set(state)
        self.initialized = self.initialized or state.key is not None

    @contextlib.contextmanager
    def refusing(self, message: str | None) -> Iterator[None]:
        """While the block runs, to assign a state raises a RuntimeError with this message; with None it is allowed."""
        before, self._refusal = self._refusal, message
        try:
            yield
        finally:
            self._refusal = before

    def prepare(self, *requests: PhaseRequest, once: bool = False) -> list[ExecutionPlan]:
        """Checks and traces phases before anything is compiled, then makes the first state if there is none.

        Args:
            *requests: the phases of a call.
            once: as for `plan_phases`.
        """
        for request in requests:
            self.executor.shapes.takes_batches[request.phase] = request.loader.plan is None
            self.check_can_run(request.phase)
            if request.phase == "train":
                checks.accumulation(self.accumulate, self.buffer, rows(request.loader.first_batch()))
                self.executor.accumulate(self.accumulate)
        first = requests[0].loader.first_batch()
        buffer = self.planned(first)
        plans = plan_phases(self.executor, buffer, requests, once=once)
        self.adopt(buffer)
        if requests[0].phase != "pred":
            self.note_inputs(first)
        return plans

    def check_can_run(self, phase: CompiledPhase) -> None:
        """Checks that the module says how to run a phase, and that the arguments of the trainer fit; see `checks`."""
        checks.can_run(self.buffer, phase)
        if phase == "train":
            check_level(self.monitor.policy, self.buffer)
            checks.accumulation(self.accumulate, self.buffer)

    def planned(self, batch: Batch) -> StateBuffer:
        """The state; where there is none, one for batches like this that is made when it is needed."""
        return planned_state(self.executor, self.buffer, self.initialized, self.seed, batch)

    def adopt(self, buffer: StateBuffer) -> None:
        """Makes a buffer the trainer's own, and its state if it was only planned; then runs the loads that waited."""
        buffer.materialise()
        with UndoOnFailure(self):
            pending, self.buffer, self.initialized, self.pending = self.pending, buffer, True, PendingLoads()
            pending.run()

    def state_for(self, inputs: PyTree) -> ElegyModule:
        """Returns the state, with its parts from all processes; makes the first one from `inputs` if there is none."""
        if not self.initialized:
            self.adopt(self.planned(pack(inputs)))
        return collect(self.state)

    def with_weights(self, fork: StateBuffer, weights: Weights) -> StateBuffer:
        """Puts other parameters into a fork of the state.

        Args:
            fork: a fork of the buffer.
            weights: `"trained"`, `"averaged"`, or a function of the state that returns parameters.
        """
        if weights != "trained":
            # What a function is given is handed out, and stays valid.
            state = self.state if callable(weights) else fork.get()
            chosen = self.strategy.each_member(lambda one: with_weights(one, weights).get_params())
            fork.set(state.set_params(chosen(state)))
        return fork

    def note_inputs(self, batch: Batch) -> None:
        """Stores the tree of the inputs, by which `predict` distinguishes inputs from batches."""
        self.input_tree = jax.tree.structure(unpack(batch)[0])

    def loss_names(self) -> list[str]:
        """The names of the losses."""
        parts = self.buffer.form.losses_and_metrics
        return [] if parts is None else [n for part in (parts.losses, parts.aux_losses) if part for n in part.names]

    def set_strategy(self, strategy: str | Strategy) -> None:
        """Moves the state to another strategy; see `Trainer.set_strategy`."""
        if self.run is not None:
            raise RuntimeError("the strategy cannot change while fit runs: call set_strategy before or after it.")
        executor = self._executor(resolve_strategy(strategy))
        self.buffer = self.buffer.moved(executor.strategy, place=self.initialized)
        self.executor, self._copies = executor, None

    def kept_states(self) -> Mapping[str, Any]:
        """The states that callbacks keep, of the running or the last run."""
        return self.kept if self.run is None else self.run.callbacks.kept_states()

    def place(self) -> Mapping[str, Any] | None:
        """Where the running run is, or the last one ended, as a checkpoint keeps it."""
        return self.record if self.run is None else self.run.record()

    def check_initialized(self, what: str) -> None:
        """Checks that there is a state.

        Raises:
            CheckpointError: if there is none.
        """
        if not self.initialized:
            raise CheckpointError(f"there {what} to save yet: fit, or call init_on_batch first.")

    # pickles

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is compiled, placed on devices, or under way."""
        kept = {name: value for name, value in self.__dict__.items() if name not in _NOT_PICKLED}
        states = {"kept": collect(dict(self.kept_states())), "state": collect(self.state)}
        return {**kept, **states, "record": self.place(), "strategy": self.strategy}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        """Compiles and places anew."""
        state, strategy = saved.pop("state"), saved.pop("strategy")
        self.__dict__.update(saved, run=None, _refusal=None, _copies=None, given_digest=None)
        self.executor, self.buffer = self._executor(strategy), StateBuffer(strategy, state)


class TrainerSnapshot:
    """What a trainer goes back to when a call fails before its first step.

    Args:
        session: the session of the trainer.
    """

    _NAMES = ("initialized", "pending", "step", "epoch", "history", "run", "record", "kept")

    def __init__(self, session: Session):
        self._session, self._buffer, self._skipped = session, session.buffer.fork(), session.monitor.skipped
        self._values = {name: getattr(session, name) for name in self._NAMES}

    def restore(self) -> None:
        """Returns the trainer to this snapshot, unless a step has consumed its state."""
        if self._buffer.readable():
            self._session.buffer, self._session.monitor.skipped = self._buffer, self._skipped
            for name, value in self._values.items():
                setattr(self._session, name, value)


class UndoOnFailure:
    """A block that returns a session to where it was if it raises, until `keep` is called.

    Args:
        session: the session.
    """

    def __init__(self, session: Session):
        self._session = session
        self._snapshot: TrainerSnapshot | None = TrainerSnapshot(session)

    def keep(self) -> None:
        """Lets go of the snapshot: a step is done."""
        self._snapshot = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and self._snapshot is not None:
            self._snapshot.restore()
        elif isinstance(error, jax.errors.JaxRuntimeError):  # of a step that was queued: its results cannot be read
            self._session.buffer.discard_failed()

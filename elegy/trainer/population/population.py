"""Many runs at once: a population of members that one compiled step trains."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from elegy.callbacks import Callback, EarlyStopping, Monitor
from elegy.callbacks.monitor import Mode
from elegy.checkpoint import store
from elegy.checkpoint.directory import opened
from elegy.errors import CheckpointError
from elegy.lazy_logs import MemberValues
from elegy.pytree import Static
from elegy.strategies.members import Members, members_mesh
from elegy.strategies.mesh import as_devices
from elegy.trainer.population.history import MemberHistory
from elegy.trainer.population.hyperparameters import Values, check_names, check_traceable, differences, equal
from elegy.trainer.population.members import check_member, checked_trainer, take_member
from elegy.trainer.population.stopping import MemberStopping
from elegy.trainer.state_methods import session_of
from elegy.trainer.trainer import Trainer
from elegy.types import Device, PyTree

Order = Literal["own", "shared"]


class Population:
    """Trains many members at once: runs that differ in their seeds and in numbers such as the learning rate.

    The states of the members are stacked, and one compiled step trains all of them (`jax.vmap`; large steps on a CPU
    with a shared order one member after another), divided over the devices if there are several. Each member equals the
    run of a Trainer of its own, up to rounding: its own seed, first parameters, random numbers, order of the examples,
    metrics and early stopping.

    Args:
        build: a function from hyperparameters to a `Trainer`, which is called with traced numbers; or a Trainer
            without a state, whose members differ in their seeds only.
        over: for each hyperparameter the value of each member, `[members]`.
        grid: for each hyperparameter several values: every combination, with every seed, is a member. The first
            hyperparameter changes slowest and the seed fastest.
        seeds: the seed of each member, or their number: 0, 1, and so on. None for the seed of the Trainer.
        order: `"own"`: each member sees arrays in the order that a Trainer with its seed would; `"shared"`: all see
            the batches of the first seed's order, which costs one gather instead of one for each member. Members with
            equal seeds, unshuffled arrays and iterables always share their batches.
        devices: the devices over which the members are divided, or their number: as many are used as divide the number
            of members. None for all devices of this process.

    Raises:
        TypeError: if `build` does not return a Trainer, does not take these hyperparameters, or cannot be called with
            traced ones (a width, a number of layers); if `devices` is neither a number nor a list of devices.
        ValueError: if the numbers of values differ; if there are fewer devices; or if the Trainer has a state, a
            strategy other than `"jit"`, a module of the core level, or `nonfinite="rollback"`.

    Example:
        >>> import numpy as np, optax, flax.linen as nn
        >>> import elegy as eg
        >>> def build(learning_rate):
        ...     return eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(learning_rate))
        >>> population = eg.Population(build, over={"learning_rate": [0.0, 0.01, 0.1]}, seeds=[7, 7, 7])
        >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        >>> history = population.fit(x, 3 * x, epochs=5, verbose=0)
        >>> history["loss"].shape, population.best("loss")
        ((5, 3), 2)
        >>> bool(population[2].evaluate(x, 3 * x, verbose=0)["loss"] < history["loss"][-1, 2])
        True
    """

    def __init__(
        self,
        build: Callable[..., Trainer[Any]] | Trainer[Any],
        *,
        over: Values | None = None,
        grid: Values | None = None,
        seeds: int | Sequence[int] | None = None,
        order: Order = "own",
        devices: Sequence[Device] | int | None = None,
    ):
        if order not in ("own", "shared"):
            raise ValueError(f"order={order!r}: it must be 'own' or 'shared'.")
        given = over or grid or {}
        if isinstance(build, Trainer):
            if given:
                raise TypeError(
                    "hyperparameters need a function that builds a Trainer from them: "
                    f"`def build({', '.join(given)}): return eg.Trainer(...)`, `eg.Population(build, ...)`."
                )
            template: Trainer[Any] = build
        elif callable(build):
            check_names(build, given)
            # The seed is known once a member is built, so the values are read twice.
            values = differences(over, grid, seeds, 0)
            template = checked_trainer(build(**values.member(0)))
            check_traceable(build, values.values)
        else:
            raise TypeError(f"build must be a function that returns a Trainer, or a Trainer, not {build!r}.")
        check_member(template)
        self._build = build
        self._differences = differences(over, grid, seeds, template.seed)
        seeds = self._differences.seeds
        mesh = members_mesh(len(seeds), as_devices(devices, jax.local_devices(), "Population"))
        self._strategy = Members(seeds, order == "own", mesh)
        shown = {name: np.asarray(value).tolist() for name, value in self._differences.values.items()}
        session = session_of(template)
        first = self._first(template)
        self._trainer: Trainer[Any] = Trainer(
            first,
            strategy=self._strategy,
            seed=seeds[0],
            callbacks=template.callbacks,
            accumulate=session.microbatches.given,
            nonfinite=template.nonfinite,
            run_dir=None if session.run_folder is None else session.run_folder.wanted,
            config={"seeds": list(seeds), "hyperparameters": shown, "member": session.config},
        )
        # The arguments of a Trainer replace the precision, the average and the frozen parameters of its module.
        self._trainer.state = first
        self._stopping: MemberStopping | None = None

    def _first(self, template: Trainer[Any]) -> Any:
        """The module of the members before the first state."""
        state = template.state
        if not self._differences.values:
            return state.replace(_initial=self._strategy.for_members(state._initial))

        build = self._build
        assert not isinstance(build, Trainer)  # it has no hyperparameters

        def recipe(hyperparameters: dict[str, Any]) -> Any:
            return checked_trainer(build(**hyperparameters)).state

        return state.replace(_initial=self._differences.values, _recipe=Static(recipe))

    def __len__(self) -> int:
        """The number of members."""
        return len(self.seeds)

    def __repr__(self) -> str:
        """The number of members, what differs, and how far training is."""
        differs = ", ".join([*self._differences.values, *(["seeds"] if len(set(self.seeds)) > 1 else [])])
        return f"<Population of {len(self)} members ({differs or 'equal'}): {self._trainer!r}>"

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each member."""
        return self._differences.seeds

    @property
    def hyperparameters(self) -> dict[str, np.ndarray]:
        """By name, the hyperparameter of each member, `[members]`."""
        return {name: np.asarray(value) for name, value in self._differences.values.items()}

    @property
    def state(self) -> Any:
        """The states of all members, stacked: each leaf is `(members, ...)`. It stays valid."""
        return self._trainer.state

    @property
    def step(self) -> int:
        """The number of completed training steps of the members that did not stop early."""
        return self._trainer.step

    @property
    def epoch(self) -> int:
        """The number of completed epochs of the members that did not stop early."""
        return self._trainer.epoch

    @property
    def skipped_steps(self) -> np.ndarray:
        """How many steps of each member were left out because they were not finite, `int[members]`.

        Reading it waits for all steps. It is 0 under `nonfinite="ignore"`.
        """
        skipped = session_of(self._trainer).monitor.count().by_member
        return np.array(skipped or (0,) * len(self))

    @property
    def history(self) -> dict[str, np.ndarray]:
        """By name, the values of the last `fit`, `float[epochs, members]`; NaN after a member has stopped early."""
        return self._values.table()

    @property
    def _values(self) -> MemberHistory:
        return MemberHistory(self._trainer.history, self._stopping, len(self))

    def fit(
        self, data: PyTree = None, labels: PyTree = None, *, callbacks: Sequence[Callback] | None = None, **options: Any
    ) -> dict[str, np.ndarray]:
        """Trains all members; a second call goes on.

        The bar, loggers and other callbacks see the mean of each value over the members; `event.logs[name].members`
        has those of each. An `EarlyStopping` acts on each member by its own values: a stopped member keeps its state,
        and the run ends when all have stopped. The steps and epochs of a second `fit` count from those of the members
        that did not stop.

        Args:
            data: as for `Trainer.fit`.
            labels: as for `Trainer.fit`.
            callbacks: callbacks of this call.
            **options: all other arguments of `Trainer.fit`.

        Returns:
            `history`: by name `float[epochs, members]`.

        Raises:
            TypeError, ValueError: as `Trainer.fit`; and for several `EarlyStopping`s.
            NonFiniteError: if a step of a member is not finite under `nonfinite="raise"`; the message has its number.
        """
        given = [*self._trainer.callbacks, *(callbacks or ())]
        rules = [one for one in given if isinstance(one, EarlyStopping)]
        if len(rules) > 1:
            raise ValueError("a population takes one EarlyStopping, because each member has one final state.")
        stopping = MemberStopping(rules[0], len(self)) if rules else None
        others = [one for one in given if not isinstance(one, EarlyStopping)]
        own, self._trainer.callbacks = self._trainer.callbacks, ()
        history = self._trainer.history
        session_of(self._trainer).monitor.ends = None if stopping is None else stopping.last_steps
        try:
            self._trainer.fit(data, labels, callbacks=[*others, *([stopping] if stopping else [])], **options)
        finally:
            self._trainer.callbacks = own
            if self._trainer.history is not history:  # otherwise the call was refused
                self._stopping = stopping
        return self.history

    def evaluate(
        self, data: PyTree = None, labels: PyTree = None, *, verbose: Literal[0, 1, 2] = 1, **options: Any
    ) -> dict[str, np.ndarray]:
        """Computes losses and metrics of every member over all of the data.

        Args:
            data: as for `Trainer.evaluate`.
            labels: as for `Trainer.evaluate`.
            verbose: as for `Trainer.evaluate`.
            **options: all other arguments of `Trainer.evaluate`; a function given as `weights` gets the state of one
                member.

        Returns:
            By name, the value of each member, `float[members]`.
        """
        values = self._trainer.evaluate(data, labels, verbose=verbose, **options)
        return {
            name: value.members if isinstance(value, MemberValues) else np.full(len(self), value)
            for name, value in values.items()
        }

    def predict(self, data: PyTree = None, *, combine: Literal["mean"] | None = None, **options: Any) -> PyTree:
        """Computes the outputs of every member, or their mean: the prediction of the ensemble.

        Args:
            data: as for `Trainer.predict`.
            combine: `"mean"` for the mean of the members' outputs; None for all of them.
            **options: all other arguments of `Trainer.predict`; `weights` as for `evaluate`.

        Returns:
            The outputs as NumPy arrays, `(members, examples, ...)`, or `(examples, ...)`; of one batch, also outputs
            that are one number for it, `(members,)`.

        Raises:
            ValueError: if `combine` is something else; as `Trainer.predict`.
        """
        if combine not in ("mean", None):
            raise ValueError(f"combine={combine!r}: it must be 'mean' or None.")
        outputs = self._trainer.predict(data, **options)
        if combine == "mean":
            return jax.tree.map(lambda leaf: leaf.mean(axis=min(1, leaf.ndim - 1)), outputs)
        return jax.tree.map(lambda leaf: np.moveaxis(leaf, min(1, leaf.ndim - 1), 0), outputs)

    def best(self, monitor: str = "val_loss", mode: Mode = "auto") -> int:
        """Returns the index of the member with the best value, of the epoch whose state it has.

        Args:
            monitor: a name of `history`.
            mode: `"min"`, `"max"`, or `"auto"`, as for `EarlyStopping`.

        Raises:
            KeyError: if there is no such value; the message lists the names.
            ValueError: if the values of all members are NaN.
        """
        values = self._values.values(monitor)
        if np.isnan(values).all():
            raise ValueError(f"{monitor!r} is NaN for every member.")
        return int(np.nanargmax(values) if Monitor(monitor, mode).mode == "max" else np.nanargmin(values))

    def __getitem__(self, index: int) -> Trainer[Any]:
        """Returns a member as an ordinary Trainer with a state of its own: it can train on, evaluate and save.

        Args:
            index: the number of the member; negative ones count from the end.

        Raises:
            IndexError: if there is no such member.
            TypeError: if the index is not an integer.
        """
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)):
            raise TypeError(f"a member has an integer for its index, not {index!r}.")
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no member {index}: the population has {len(self)}.")
        index = int(index) % len(self)
        if isinstance(self._build, Trainer):
            trainer = copy.copy(self._build)
        else:
            trainer = self._build(**self._differences.member(index))
        take_member(trainer, session_of(self._trainer), index, self.seeds[index], self._values)
        return trainer

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all members, as `Trainer.save`."""
        self._trainer.save(path)

    def restore(self, path: str | os.PathLike[str], *, strict: bool = True) -> None:
        """Reads what `save` wrote, as `Trainer.restore`. Members that had stopped early go on with the others.

        Raises:
            CheckpointError: if it is damaged, or of members with other seeds or hyperparameters.
        """
        with opened(path) as found:
            saved = store.read_metadata(found).get("config") or {}
        mine = session_of(self._trainer).config or {}
        for name in ("seeds", "hyperparameters"):
            if name not in saved:
                raise CheckpointError(f"the checkpoint {Path(path).name!r} is not of a population.")
            if not equal(saved[name], mine[name]):
                raise CheckpointError(
                    f"the checkpoint is of members with other {name}: {saved[name]}, and those of this population are "
                    f"{mine[name]}. Make a population with the same members to restore it."
                )
        self._trainer.restore(path, strict=strict)
        self._stopping = None

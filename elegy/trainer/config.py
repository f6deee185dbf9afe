"""What a call of `fit` asks for, checked."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Literal, Self

from elegy.integers import positive_int, positive_int_or_none
from elegy.module.averaging import Weights
from elegy.trainer import checks
from elegy.types import Every, Hyperparameters


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """The arguments of `Trainer.fit` beside its data and callbacks, under their names."""

    batch_size: int | None
    epochs: int | None
    steps_per_epoch: int | None
    max_steps: int | None
    max_time: float | None
    initial_epoch: int
    shuffle: bool
    drop_remaining: bool
    validation_batch_size: int | None
    validation_steps: int | None
    validation_freq: Every
    validation_weights: Weights
    steps_per_execution: int | Literal["auto"]
    resume: str | os.PathLike[str] | None
    hyperparameters: Hyperparameters | None
    check_inputs: bool
    fast_dev_run: int
    limit_train: int | float | None
    limit_validation: int | float | None
    overfit_batches: int | None
    sanity_check: int
    prefetch: int

    @classmethod
    def checked(cls, *, epochs: Any, **given: Any) -> Self:
        """Checks the arguments.

        Raises:
            TypeError: if a number is not an integer.
            ValueError: if a number is out of its range.
        """
        optional = ("batch_size", "steps_per_epoch", "max_steps", "validation_batch_size", "validation_steps")
        epochs = positive_int_or_none("epochs", epochs)
        given |= {name: positive_int_or_none(name, given[name]) for name in (*optional, "overfit_batches")}
        given["max_time"] = checks.seconds("max_time", given["max_time"])
        if epochs is None and given["max_steps"] is None and given["max_time"] is None:
            epochs = 1
        given["initial_epoch"] = checks.initial_epoch(given["initial_epoch"], epochs)
        given["validation_freq"] = checks.validation_freq(given["validation_freq"])
        given["steps_per_execution"] = checks.fusing(given["steps_per_execution"])
        for name in ("limit_train", "limit_validation"):
            given[name] = checks.limit(name, given[name])
        given["hyperparameters"] = checks.hyperparameters(given["hyperparameters"])
        given["sanity_check"] = checks.number_or_zero("sanity_check", "validation steps", given["sanity_check"])
        given["prefetch"] = checks.prefetch(given["prefetch"])
        if given["overfit_batches"] is not None:
            if given["steps_per_epoch"] is not None:
                raise ValueError(
                    f"overfit_batches={given['overfit_batches']} and steps_per_epoch={given['steps_per_epoch']} both "
                    "say how many batches make an epoch: use one of them."
                )
            given["shuffle"] = False
        few = given["fast_dev_run"]
        given["fast_dev_run"] = few = int(few) if isinstance(few, bool) else positive_int("fast_dev_run", few)
        if few:
            given |= {"limit_train": few, "limit_validation": few, "validation_freq": Every(epochs=1)}
            given |= {"initial_epoch": 0, "max_steps": None, "max_time": None, "resume": None, "sanity_check": 0}
        return cls(epochs=1 if few else epochs, **given)

    def check_validation(self, validates: bool) -> None:
        """Checks that numbers of a validation come with its data.

        Args:
            validates: whether there is validation data.

        Raises:
            ValueError: if there is none.
        """
        if validates:
            return
        unset: dict[str, Any] = {"validation_batch_size": None, "validation_steps": None, "sanity_check": 0}
        if not self.fast_dev_run:  # which sets these itself
            unset |= {"limit_validation": None, "validation_freq": Every(epochs=1)}
        for name, value in {**unset, "validation_weights": "trained"}.items():
            if (given := getattr(self, name)) != value:
                raise ValueError(
                    f"{name}={given!r}, but there is no validation data: pass validation_data or validation_split."
                )

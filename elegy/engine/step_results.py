"""The results of steps: logs and finite checks, which stay on the device until they are read."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import numpy as np

from elegy.engine.program import FINITE_CHECK, VALUES, Program
from elegy.lazy_logs import LazyLogs, MemberValues
from elegy.module.finite import FiniteCheck
from elegy.types import PyTree


class StepResults:
    """The results of an execution, by step; all are transferred to the host at the first read."""

    __slots__ = ("_arrays", "_columns", "_host", "_packed", "_program", "count")

    def __init__(self, program: Program, packed: dict[str, Any], count: int | None):
        self._program, self._packed, self.count = program, packed, count
        self._arrays: list[jax.Array] | None = None
        self._host: dict[str, Any] | None = None
        self._columns: dict[bool, dict[str, np.ndarray]] = {}

    def logs(self, k: int) -> LazyLogs:
        """Returns the logs of step `k` of the execution."""
        previous = (lambda: self.logs(k - 1)) if k else None
        return LazyLogs(
            lambda: self._row(self._read(), self._program.log_names, k),
            self._ready,
            previous,
            self._program.names,
            self._wait,
        )

    def step_values(self, k: int) -> LazyLogs:
        """Returns the step values of step `k`."""
        rows = self._program.value_names
        return LazyLogs(
            lambda: self._row(self._read()[VALUES], rows, k), self._ready, names=[name for name, _, _ in rows]
        )

    def columns(self, own: bool) -> dict[str, np.ndarray]:
        """Returns the logs of all steps of an execution of several; callers share the arrays, and do not change them.

        Args:
            own: True for the step values of the same names in their place, where the step returns them.

        Returns:
            `float64[steps]` by name, or `float64[steps, members]`.
        """
        if own not in self._columns:
            packed, program = self._read(), self._program
            columns = _columns(packed, program.log_names)
            if own and VALUES in packed:
                values = _columns(packed[VALUES], program.value_names)
                columns = {name: values.get(name, column) for name, column in columns.items()}
            self._columns[own] = columns
        return self._columns[own]

    def _ready(self) -> bool:
        return self._host is not None or _computed(self._on_device())

    def _wait(self) -> None:
        if self._host is None:
            with contextlib.suppress(Exception):  # a read raises the error of a failed execution
                jax.block_until_ready(self._on_device())

    def _on_device(self) -> list[jax.Array]:
        if self._arrays is None:
            self._arrays = _arrays(self._packed)
        return self._arrays

    def finite_checks(self) -> list[FiniteCheck]:
        """Returns the finite check of each step; waits for the device."""
        found = jax.device_get(self._packed[FINITE_CHECK])
        if self.count is None:
            return [found]
        return [FiniteCheck(found.bad[k], found.loss[k]) for k in range(self.count)]

    def _read(self) -> dict[str, Any]:
        host = self._host
        if host is None:
            host = self._host = jax.device_get(self._packed)  # an explicit transfer: `jax.transfer_guard`
        return host

    def _row(self, packed: dict[str, Any], names: list[tuple[str, str, int]], k: int) -> dict[str, Any]:
        """Returns the scalars of one step by name, from the host copy of the executable's results."""
        if self.count is None:
            return {name: _value(packed[dtype][place]) for name, dtype, place in names}
        return {name: _value(packed[dtype][k, place]) for name, dtype, place in names}


def _columns(packed: dict[str, Any], names: list[tuple[str, str, int]]) -> dict[str, np.ndarray]:
    """Returns the values of each name, from arrays of one dtype each."""
    wide = {dtype: packed[dtype].astype(np.float64) for dtype in {dtype for _, dtype, _ in names}}
    return {name: wide[dtype][:, place] for name, dtype, place in names}


def _value(scalar: Any) -> Any:
    """A scalar as it is; an array of one scalar for each member as `MemberValues`."""
    return scalar if scalar.ndim == 0 else MemberValues(scalar)


class PlainStepResults:
    """The results of one step that was not compiled."""

    __slots__ = ("_check", "_logs", "_values")

    def __init__(self, logs: Any, check: FiniteCheck | None = None, values: Any = None):
        self._logs, self._check, self._values = logs, check, {} if values is None else values

    def finite_checks(self) -> list[FiniteCheck]:
        """Returns the finite check."""
        return [jax.device_get(self._check)]

    def logs(self, k: int) -> LazyLogs:
        """Returns the logs of the step."""
        return _scalars(self._logs)

    def columns(self, own: bool) -> dict[str, np.ndarray]:
        """Returns the logs of the step as arrays of one element."""
        values = self._values if own else {}
        return {name: np.array([float(values.get(name, value))]) for name, value in self.logs(0).items()}

    def step_values(self, k: int) -> LazyLogs:
        """Returns the step values of the step."""
        return _scalars(self._values)


def _scalars(values: Any) -> LazyLogs:
    scalars = {name: value for name, value in values.items() if np.shape(value) == ()}
    return LazyLogs(lambda: scalars, lambda: _computed(_arrays(values)), names=scalars)


def _arrays(tree: PyTree) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]


def _computed(arrays: list[jax.Array]) -> bool:
    """True if all arrays are computed."""
    # The type `jax.Array` does not declare `is_ready`.
    return all(array.is_ready() for array in arrays)  # type: ignore[attr-defined]

"""Small arguments of compiled steps, kept on the devices so that no step sends anything but its batch."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from elegy.strategies import Strategy
from elegy.strategies.strategy import Kind

NEXT = "next_control"
"""The key of the next control vector in an execution's logs, if the step reads the indices."""

_MOST = 256
"""The number of arrays of one program above which all are dropped."""


class SmallArrays:
    """The control vectors and masks of one program.

    A control vector is `int32[3]`: epoch, index of the first batch, number of batches. A step that reads the indices
    returns the control vector of the next execution, so that only the first one of a pass is sent. For other steps the
    vector depends on the number of batches alone. A step of a population does not return it, so each one is sent.

    In programs of several processes the arrays stay on the host.

    Args:
        strategy: places the arrays.
        indexed: True if the step reads the index of the epoch or of the batch.
    """

    def __init__(self, strategy: Strategy, indexed: bool):
        self._strategy, self._indexed = strategy, indexed
        self._placed: dict[Any, tuple[Any, Any]] = {}  # with the host array, whose `id` is the key of a mask

    def control(self, epoch: int, first: int, count: int) -> Any:
        """Returns a control vector.

        Args:
            epoch: the index of the epoch.
            first: the index of the first batch.
            count: the number of batches.
        """
        key = (epoch, first, count) if self._indexed else count
        found = self._placed.pop(key, None) if self._indexed else self._placed.get(key)
        if found is not None:
            return found[1]
        host = np.array([epoch, first, count] if self._indexed else [0, 0, count], np.int32)
        placed = self._place(host, "whole")
        if not self._indexed:
            self._keep(key, host, placed)
        return placed

    def returned(self, control: jax.Array, epoch: int, first: int, count: int) -> None:
        """Keeps the control vector that an execution returned for the next one.

        Args:
            control: the vector.
            epoch: as for `control`.
            first: as for `control`.
            count: as for `control`.
        """
        self._keep((epoch, first, count), None, control)

    def mask(self, mask: np.ndarray, kind: Kind) -> Any:
        """Returns a mask on the devices.

        Args:
            mask: the mask, which never changes.
            kind: `"batch"` or `"chunk"`.
        """
        found = self._placed.get(id(mask))
        if found is None:
            found = self._keep(id(mask), mask, self._place(mask, kind))
        return found[1]

    def _place(self, host: np.ndarray, kind: Kind) -> Any:
        if self._strategy.processes > 1:
            return host
        placed = self._strategy.place(host, kind)
        return placed if isinstance(placed, jax.Array) else self._strategy.place(host, "whole")

    def _keep(self, key: Any, host: np.ndarray | None, placed: Any) -> tuple[Any, Any]:
        if len(self._placed) >= _MOST:
            self._placed.clear()
        self._placed[key] = host, placed
        return self._placed[key]

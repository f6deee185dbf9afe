"""How much of the peak of the devices a run uses."""

from __future__ import annotations

import math
import re
from typing import Any

import jax

from elegy.callbacks.event import Event
from elegy.callbacks.monitors import ThroughputMonitor
from elegy.types import Every

_OFTEN = Every(steps=50)

PEAKS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
    "Tesla V100S": 130e12,
    "Tesla V100-PCIE": 112e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
    "TPU v3": 61.5e12,
    "TPU v4 lite": 138e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
"""Operations per second of one device by the first words of its `device_kind`, from the vendors' data sheets:
dense matrix products in bfloat16 (float16 before it existed). The first name that fits counts."""


class MFUMonitor(ThroughputMonitor):
    """Adds `tflops` and `mfu` to the logs: the operations per second of computed steps, and their share of the peak.

    `tflops` counts 10^12 operations a second over all devices. The operations are those of the compiled steps that ran
    (`trainer.step_flops`), so recomputed activations count, too. Intervals are those of `ThroughputMonitor`.

    Args:
        peak: operations a second of one device; None for those of dense bfloat16 products in a small table of devices.
        every: the interval.
        flops_per_example: operations of a training step for each example, if the step contains custom calls, whose
            operations are unknown; None to count them.

    Raises:
        TypeError, ValueError: if a number is not positive and finite, or `every` counts epochs.
        ValueError: when training begins, if there is no `peak`, and the table does not have the device.
        RuntimeError: at the first step, if steps are not compiled, and `flops_per_example` is not given.

    Example:
        >>> import numpy as np, optax, flax.linen as nn
        >>> import elegy as eg
        >>> x = np.ones((64, 1), np.float32)
        >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.5))
        >>> monitor = MFUMonitor(peak=1e12, every=eg.Every(steps=4))
        >>> history = trainer.fit(x, x, batch_size=4, epochs=3, callbacks=[monitor], verbose=0).history
        >>> round(history["tflops"][0] / history["mfu"][0], 6)
        1.0
    """

    def __init__(self, peak: float | None = None, every: Every = _OFTEN, flops_per_example: float | None = None):
        super().__init__(every)
        self.peak = _positive("peak", peak)
        self.flops_per_example = _positive("flops_per_example", flops_per_example)
        self._peak = 0.0  # of all devices
        self._counted = 0.0  # operations since the beginning of the interval
        self._step = 0  # the last step that was counted

    def on_train_begin(self, event: Event) -> None:
        """Finds the peak of the devices."""
        super().on_train_begin(event)
        mesh = getattr(event.trainer.strategy, "mesh", None)
        devices: list[Any] = [jax.local_devices()[0]] if mesh is None else list(mesh.devices.flat)
        self._peak = sum(peak_of(device.device_kind) if self.peak is None else self.peak for device in devices)
        self._counted, self._step = 0.0, event.step

    def on_train_batch_end(self, event: Event) -> None:
        """Counts the operations of an execution."""
        if self.flops_per_example is None:
            self._counted += _step_flops(event) * (event.step - self._step)
        self._step = event.step
        before = self._begin
        super().on_train_batch_end(event)
        if self._begin is not before:
            self._counted = 0.0

    def add_rates(self, event: Event, steps: int, examples: int, seconds: float) -> None:
        """Adds the operations per second of an interval.

        Args:
            event: the event at its end.
            steps: its steps.
            examples: its examples.
            seconds: its seconds.
        """
        given = self.flops_per_example
        rate = (self._counted if given is None else given * examples) / seconds
        event.log("tflops", rate / 1e12)
        event.log("mfu", rate / self._peak)


def _step_flops(event: Event) -> float:
    try:
        return event.trainer.step_flops
    except RuntimeError as error:
        error.add_note("If steps are not compiled, give their operations: `MFUMonitor(flops_per_example=...)`.")
        raise


def _positive(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"MFUMonitor({name}={value!r}): give a number of operations.")
    if not 0 < value < math.inf:
        raise ValueError(f"MFUMonitor({name}={value!r}): the number must be positive and finite.")
    return float(value)


def peak_of(kind: str) -> float:
    """Returns the operations a second of a device.

    Args:
        kind: the device's `device_kind`.

    Raises:
        ValueError: if the table does not have the device.

    Example:
        >>> peak_of("NVIDIA H100 80GB HBM3") / 1e12
        989.0
    """
    for name, peak in PEAKS.items():
        # Whole words: an L40 is not an L4. A part of a GPU (MIG) has the name of the GPU, but not its peak.
        if re.match(rf"{name}(?![A-Za-z0-9])", kind) and " MIG " not in kind:
            return peak
    raise ValueError(
        f"the peak of the device {kind!r} is unknown: write `MFUMonitor(peak=...)` with its operations a second, for "
        f"example `peak=312e12`. Known are: {', '.join(PEAKS)}."
    )

"""Operations per second against a hand count and a clock of the test."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.callbacks import MFUMonitor, event
from elegy.callbacks.mfu import PEAKS
from elegy.trainer import clock

BATCH, WIDE = 256, 256  # so large that the optimizer, which each replica repeats, hardly counts
X = np.random.default_rng(0).normal(size=(4 * BATCH, WIDE)).astype(np.float32)
# A product forward and one for the kernel's gradient; the inputs have none.
BY_HAND = 2 * 2 * BATCH * WIDE * WIDE


def fit(monitor, monkeypatch, strategy="jit", **options):
    """Four epochs of four steps; a step takes two seconds."""
    now = [0.0]
    for module in (clock, event):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    tick = eg.callbacks.LambdaCallback(on_train_batch_begin=lambda event: now.__setitem__(0, now[0] + 2.0))
    trainer = eg.Trainer(nn.Dense(WIDE), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.01), strategy=strategy)
    options = {"batch_size": BATCH, "epochs": 4, "verbose": 0, **options}
    return trainer.fit(X, X, callbacks=[tick, monitor], **options).history


@pytest.mark.parametrize(("strategy", "devices"), [("jit", 1), ("data_parallel", None), ("fsdp", None)])
def test_the_share_of_the_peak_is_that_of_a_hand_count(monkeypatch, strategy, devices):
    history = fit(MFUMonitor(peak=1e9, every=eg.Every(steps=4)), monkeypatch, strategy)
    devices = devices or jax.device_count()
    assert history["tflops"] == pytest.approx([BY_HAND / 2 / 1e12] * 3, rel=0.05)
    assert history["mfu"] == pytest.approx([BY_HAND / 2 / 1e9 / devices] * 3, rel=0.05)


def test_operations_that_are_given_count_by_examples(monkeypatch):
    history = fit(
        MFUMonitor(peak=1e12, every=eg.Every(steps=4), flops_per_example=5e10), monkeypatch, "eager", epochs=2
    )
    assert history["mfu"] == pytest.approx([5e10 * BATCH / 2 / 1e12])


def test_an_unknown_peak_and_uncompiled_steps_say_what_to_write(monkeypatch):
    with pytest.raises(ValueError, match=r"the peak of the device 'cpu' is unknown: write `MFUMonitor\(peak=...\)`"):
        fit(MFUMonitor(), monkeypatch)
    with pytest.raises(RuntimeError, match="not compiled"):
        fit(MFUMonitor(peak=1e12), monkeypatch, "eager")
    with pytest.raises(ValueError, match=r"MFUMonitor\(peak=0\): the number must be positive"):
        MFUMonitor(peak=0)
    with pytest.raises(TypeError, match="flops_per_example='many'"):
        MFUMonitor(flops_per_example="many")


def test_the_first_name_in_the_table_that_fits_is_the_most_special():
    names = list(PEAKS)
    for k, name in enumerate(names):
        assert not any(name.startswith(earlier) for earlier in names[:k])

"""Operations per second against a hand count and a clock of the test."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.callbacks import MFUMonitor, event
from elegy.callbacks.mfu import PEAKS, peak_of
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
    with pytest.raises(RuntimeError, match="not compiled") as caught:
        fit(MFUMonitor(peak=1e12), monkeypatch, "eager")
    assert any("`MFUMonitor(flops_per_example=...)`" in note for note in caught.value.__notes__)
    with pytest.raises(ValueError, match=r"MFUMonitor\(peak=0\): the number must be positive"):
        MFUMonitor(peak=0)
    with pytest.raises(TypeError, match="flops_per_example='many'"):
        MFUMonitor(flops_per_example="many")


def test_the_first_name_in_the_table_that_fits_is_the_most_special():
    names = list(PEAKS)
    for k, name in enumerate(names):
        assert not any(name.startswith(earlier) for earlier in names[:k])


@pytest.mark.parametrize(
    ("kind", "tera"),  # the data sheets of NVIDIA and of Google's TPUs; dense, a product and a sum are two
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-16GB", 112),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
    ],
)
def test_peaks_of_devices(kind, tera):
    assert peak_of(kind) == tera * 1e12


@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA A1000", "NVIDIA H20", "TPU v40"])
def test_a_part_of_a_device_and_a_similar_name_are_unknown(kind):
    with pytest.raises(ValueError, match="is unknown"):
        peak_of(kind)

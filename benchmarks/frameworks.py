"""Other frameworks on the same workloads, if the extra `[bench]` is installed: Keras on JAX, and Lightning."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.options import Options
from benchmarks.ours import fit, trainer_for
from benchmarks.pairs import Row, measure, timed
from benchmarks.works import CONV, WORKS, Work


def run(options: Options) -> list[Row]:
    """One line for each installed framework, without goals."""
    rows = []
    for work in map(options.sized, WORKS[:1] if options.quick else WORKS):
        data = work.data()
        trainer = trainer_for(work)
        for name, other in others(work, data).items():
            rows.append(
                measure(
                    f"{work.name}, default fit",
                    lambda trainer=trainer, work=work, data=data: fit(trainer, work, data),
                    other,
                    pairs=1 if options.quick else max(3, options.repeats // 3),
                    per=work.steps * work.epochs,
                    other=name,
                )
            )
    return rows


def others(work: Work, data: Any) -> dict[str, Callable[[], Any]]:
    """Returns functions that train the workload for its epochs, by name."""
    found: dict[str, Callable[[], Any]] = {}
    os.environ.setdefault("KERAS_BACKEND", "jax")
    if importlib.util.find_spec("keras"):
        for steps in (1, 32):
            found[f"Keras, {steps} steps per execution"] = keras_fit(work, data, steps)
    if importlib.util.find_spec("lightning"):
        found["Lightning"] = lightning_fit(work, data)
    missing = [name for name in ("keras", "lightning") if not importlib.util.find_spec(name)]
    if missing:
        print(f"frameworks: {', '.join(missing)} not installed (pip install -e '.[bench]')", file=sys.stderr)
    return found


def keras_fit(work: Work, data: Any, steps: int) -> Callable[[], Any]:
    """The workload in Keras, with its defaults except for the steps per execution."""
    import keras

    layers: list[Any] = [keras.layers.Input(work.shape)]
    if work.name == CONV.name:
        layers += [keras.layers.Conv2D(n, 3, 2, padding="same", activation="relu") for n in (32, 64)]
        layers += [keras.layers.Flatten()]
    else:
        layers += [keras.layers.Dense(300, activation="relu")]
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=steps,
    )
    return lambda: model.fit(*data, batch_size=work.batch_size, epochs=work.epochs, verbose=0).history and None


def lightning_fit(work: Work, data: Any) -> Callable[[], Any]:
    """The workload in Lightning on PyTorch's CPU, loss and accuracy logged once an epoch, batches in one process.

    It runs with one thread or with all of them, choosing the faster: PyTorch's threads wait by spinning, which on busy
    cores makes small steps many times slower.
    """
    import lightning
    import torch
    from torch import nn

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            if work.name == CONV.name:
                first: list[Any] = [nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()]
                self.net = nn.Sequential(*first, nn.Flatten(), nn.Linear(64 * 7 * 7, 10))
            else:
                self.net = nn.Sequential(nn.Linear(work.shape[0], 300), nn.ReLU(), nn.Linear(300, 10))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            logits = self.net(x)
            loss = nn.functional.cross_entropy(logits, y)
            accuracy = (logits.argmax(-1) == y).float().mean()
            self.log_dict({"loss": loss, "accuracy": accuracy}, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-3)

    x, y = (torch.from_numpy(part) for part in data)
    if work.name == CONV.name:
        x = x.permute(0, 3, 1, 2).contiguous()
    dataset = torch.utils.data.TensorDataset(x, y.long())
    module = Module()

    def train(epochs: int = work.epochs) -> None:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader(dataset, batch_size=work.batch_size, shuffle=True))

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        return min(timed(lambda: train(1)) for _ in range(2))

    torch.set_num_threads(min((1, torch.get_num_threads()), key=seconds))
    return train

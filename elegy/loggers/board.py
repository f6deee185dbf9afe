"""What TensorBoard shows beside numbers, encoded as messages `Summary`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elegy.callbacks.event import Event
from elegy.callbacks.items import Item, checked
from elegy.distributed import collect
from elegy.lazy import require
from elegy.loggers.png import png
from elegy.loggers.values import drawn, flat
from elegy.names import path_name

_FOR = "the TensorBoard callback"


def encoded(item: Item, name: str) -> list[Any]:
    """Returns the messages of an item.

    Args:
        item: a text, an image, a figure, a histogram or a checkpoint.
        name: its name.

    Raises:
        ImportError: if tensorboardX is not installed.
    """
    summary, value = require("tensorboardX.summary", _FOR), item.value
    if item.kind == "histogram":
        finite = value[np.isfinite(value)]  # a histogram has no bin for NaN
        return [summary.histogram(name, finite, _bins())] if finite.size else []
    if item.kind in ("image", "figure"):
        image = drawn(value) if item.kind == "figure" else value
        height, width, channels = image.shape
        message = require("tensorboardX.proto.summary_pb2", _FOR).Summary
        fields = {"height": height, "width": width, "colorspace": channels, "encoded_image_string": png(image)}
        return [message(value=[message.Value(tag=name, image=message.Image(**fields))])]
    return [summary.text(name, value)]


def hyperparameters(config: Mapping[str, Any]) -> list[Any]:
    """Returns the messages of a configuration, which TensorBoard shows beside the last `epoch_loss`.

    Args:
        config: nested dicts.
    """
    values = {name: value for name, value in flat(config).items() if value is not None}
    values = {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in values.items()}
    return list(require("tensorboardX.summary", _FOR).hparams(values, {"epoch_loss": 0.0})) if values else []


def histograms(event: Event) -> Iterator[Item]:
    """Returns the values of every array of parameters; all processes call it, because it collects divided arrays."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(event.trainer.state.get_params()):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            name = f"params/{path_name(path)}"
            yield Item("histogram", name, checked("histogram", name, collect(leaf)), event.step, event.epoch)


def _bins() -> list[float]:
    """The edges of TensorBoard's histograms: powers of 1.1."""
    positive = list(1e-12 * 1.1 ** np.arange(774))  # below 1e20
    return [-edge for edge in reversed(positive)] + [0.0, *positive]


def part_of(name: str) -> tuple[str, str]:
    """Returns the directory of a log, and its name there.

    Example:
        >>> part_of("val_loss"), part_of("loss")
        (('validation', 'loss'), ('train', 'loss'))
    """
    return ("validation", name[4:]) if name.startswith("val_") else ("train", name)


def is_free(path: Path) -> bool:
    """True if the directory has no records of a run."""
    parts = ("train", "validation") if path.exists() else ()
    return not any(any(path.glob(f"{part}/events.out.tfevents.*")) for part in parts)


def directories(path: Path) -> Iterator[Path]:
    """Returns `logs`, `logs/run_1`, `logs/run_2`, ..."""
    yield path
    for number in itertools.count(1):
        yield path / f"run_{number}"

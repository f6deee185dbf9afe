"""What callbacks log beside numbers: texts, images, figures, histograms, files, checkpoints."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from elegy.names import array_name, type_name

Kind = Literal["text", "image", "figure", "histogram", "artifact", "checkpoint"]


@dataclasses.dataclass(frozen=True)
class Item:
    """A text, an image, a figure, a histogram, a file or a checkpoint that a callback has logged.

    Args:
        kind: what it is.
        name: its name.
        value: by kind: a string; an image, `uint8[height, width, 1, 3 or 4]`; a Matplotlib figure; the values of a
            histogram, `float64[n]`; the path of a file; the path or address of a checkpoint, as a string.
        step: the training steps completed.
        epoch: the index of the epoch.
        in_epoch: True if a batch hook of the training has logged it, or `on_evaluation_end`.
        evaluated: True if `on_evaluation_end` has logged it.
    """

    kind: Kind
    name: str
    value: Any
    step: int
    epoch: int
    in_epoch: bool = False
    evaluated: bool = False


def checked(kind: Kind, name: str, value: Any) -> Any:
    """Returns the value of an `Item`; reads arrays from the device.

    Args:
        kind: the kind of item.
        name: its name.
        value: what was logged.

    Raises:
        TypeError, ValueError: if the value is not of this kind.
        FileNotFoundError: if the file of an artifact does not exist.

    Example:
        >>> checked("image", "digit", np.array([[0.0, 1.0]])).tolist()
        [[[0], [255]]]
    """
    what = f"event.log_{kind}({name!r}, ...)"
    if kind == "text":
        if not isinstance(value, str):
            raise TypeError(f"{what} takes a string, not {type_name(value)}.")
        return value
    if kind == "image":
        return _image(what, value)
    if kind == "histogram":
        return _values(what, value)
    if kind == "figure":
        if not hasattr(value, "savefig"):
            raise TypeError(f"{what} takes a Matplotlib figure, not {type_name(value)}.")
        return value
    if kind == "checkpoint":
        return str(value)
    path = Path(os.fspath(value))
    if not path.exists():
        raise FileNotFoundError(f"{what}: there is no file {path}.")
    return path


def _image(what: str, value: Any) -> np.ndarray:
    image = np.array(value)  # a copy, because a logger may send it later
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{what} takes an image of shape (height, width) or (height, width, channels) with 1, 3 or 4 channels, "
            f"not {array_name(np.asarray(value))}."
        )
    if image.dtype == np.uint8:
        return image
    if image.dtype == bool or jnp.issubdtype(image.dtype, jnp.floating):
        return np.round(np.clip(np.nan_to_num(image.astype(np.float32)), 0, 1) * 255).astype(np.uint8)
    raise TypeError(f"{what} takes an image of uint8, or of floats from 0 to 1, not of {image.dtype}.")


def _values(what: str, value: Any) -> np.ndarray:
    values = np.asarray(value)
    if values.dtype != bool and not jnp.issubdtype(values.dtype, jnp.number):
        raise TypeError(f"{what} takes an array of numbers, not {array_name(values)}.")
    if np.iscomplexobj(values):
        raise TypeError(f"{what} takes real numbers, not {array_name(values)}.")
    return values.astype(np.float64).ravel()

"""Shared by the examples: their arguments, the digits, and the directory for figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

OUTPUT = Path(__file__).parent / "output"

Split = tuple[np.ndarray, np.ndarray]


def arguments(
    description: str | None, epochs: int, argv: Sequence[str] | None, **more: dict[str, Any]
) -> argparse.Namespace:
    """Reads `--epochs` and `--output`, and further arguments, given by the options of `add_argument`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=epochs, help="how long to train")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the directory for figures")
    for name, options in more.items():
        parser.add_argument(f"--{name}", **options)
    parsed = parser.parse_args(argv)
    parsed.output.mkdir(parents=True, exist_ok=True)
    return parsed


def digits() -> tuple[Split, Split]:
    """Returns 1,797 handwritten digits of 8 x 8 pixels in [0, 1]; a fifth of each class is the test set."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    x, x_test, y, y_test = train_test_split(
        images, labels.astype(np.int32), test_size=0.2, stratify=labels, random_state=0
    )
    return (x, y), (x_test, y_test)

"""Draws the pictures of the documentation again: the curves of its start page, and what the examples draw.

    python scripts/draw_pictures.py [NAME ...]

The pictures in docs/pictures/ are kept in the repository, small, so that the pages show them on GitHub too. An example
that draws no picture of its own gets the curves of its run.
"""

from __future__ import annotations

import importlib
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

import elegy as eg

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
START = ROOT / "docs" / "index.md"
WIDTH, LARGEST = 960, 50_000


def curves(history: eg.History, path: Path) -> None:
    """Draws each log of a run, with its validation beside it; a loss that has the name of the total too is left out."""
    logs = history.history
    names = [name for name in logs if not name.startswith("val_")]
    names = [name for i, name in enumerate(names) if logs[name] not in [logs[other] for other in names[:i]]][:3]
    figure, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 2.7), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        epochs = [epoch + 1 for epoch in history.epoch]
        axis.plot(epochs, logs[name], label="training")
        if f"val_{name}" in logs:
            axis.plot(epochs, logs[f"val_{name}"], label="validation")
            axis.legend(frameon=False)
        axis.set(xlabel="epoch", title=name)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def shrink(source: Path, target: Path) -> None:
    """Writes a picture with as many colours as fit, and at most `WIDTH` pixels wide.

    Raises:
        ValueError: if the file is larger than `LARGEST` bytes.
    """
    image = Image.open(source).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    for colours in (192, 96, 48):
        image.quantize(colours, dither=Image.Dither.NONE).save(target, optimize=True)
        if target.stat().st_size <= LARGEST:
            return
    raise ValueError(f"{target} has {target.stat().st_size} bytes: more than {LARGEST} are too many to commit.")


def recorded(run: Callable[[], Any]) -> eg.History:
    """Calls `run` and returns the history of the first `fit` in it."""
    histories: list[eg.History] = []
    fit = eg.Trainer.fit

    def recording(*args: Any, **kwargs: Any) -> eg.History:
        histories.append(fit(*args, **kwargs))
        return histories[-1]

    eg.Trainer.fit = recording
    try:
        run()
    finally:
        eg.Trainer.fit = fit
    return histories[0]


def start() -> None:
    """Runs the first block of the start page."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", START.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[:1]
    exec(compile(block, str(START), "exec"), {"__name__": "start"})


def draw(name: str, folder: Path) -> None:
    """Draws `docs/pictures/<name>.png`."""
    if name == "start":
        history = recorded(start)
    else:
        main = importlib.import_module(name).main
        history = recorded(lambda: main(["--output", str(folder)]))
    picture = folder / f"{name}.png"
    if not picture.exists():
        curves(history, picture)
    shrink(picture, PICTURES / picture.name)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "examples"))
    examples = [path.stem for path in sorted((ROOT / "examples").glob("*.py")) if path.stem != "shared"]
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or ["start", *examples]:
            draw(name, Path(folder))

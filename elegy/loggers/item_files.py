"""The base class of loggers that write items to files beside their log."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from elegy import strict_json
from elegy.callbacks.items import Item
from elegy.keywords import OF_LOGGERS, explain_keywords
from elegy.loggers.block_logger import BlockLogger
from elegy.loggers.png import png
from elegy.loggers.record import Position
from elegy.loggers.values import counts


class ItemFiles(BlockLogger):
    """A logger that writes items to files `NAME/STEP.txt`, `.png`, `.json`, and copies files to `NAME/STEP/`.

    Attributes:
        path: the file or the directory of the log.
    """

    path: Path
    _size: int | None = None  # of the file of the log, at the checkpoint from which the run goes on

    def __init_subclass__(cls, **options: Any) -> None:
        """Explains unknown keywords of a logger of this package."""
        super().__init_subclass__(**options)
        if cls.__module__.startswith("elegy.") and "__init__" in vars(cls):
            explain_keywords(cls, "__init__", theirs=OF_LOGGERS)

    @property
    def items(self) -> Path:
        """The directory of the items: `log_items` beside `log.csv`, `items` in a directory of logs."""
        return self.path / "items" if self.path.is_dir() else self.path.with_name(f"{self.path.stem}_items")

    def rewind(self, position: Position) -> None:
        """Removes the items after the checkpoint."""
        for found in list(self.items.rglob("*")):
            if re.fullmatch(r"\d{8,}", found.stem) and int(found.stem) > position.step:
                shutil.rmtree(found) if found.is_dir() else found.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of a logger, and the size of the file of the log."""
        state = super().state_dict()
        return {**state, "size": self.path.stat().st_size if self._is_open and self.path.is_file() else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the run of a checkpoint."""
        self._size = state.get("size")
        super().load_state_dict(state)

    def log_text(self, item: Item) -> None:
        """Writes a text file."""
        self.place_of(item, ".txt").write_text(item.value, "utf-8")

    def log_image(self, item: Item) -> None:
        """Writes a PNG file."""
        self.place_of(item, ".png").write_bytes(png(item.value))

    def log_histogram(self, item: Item) -> None:
        """Writes a JSON file with counts and edges."""
        self.place_of(item, ".json").write_text(strict_json.dumps(counts(item.value)), "utf-8")

    def log_artifact(self, item: Item) -> None:
        """Copies a file or a directory, without the items that may lie in it."""
        place, own = self.place_of(item, ""), self.items.resolve()

        def without(folder: str, names: Iterable[str]) -> list[str]:
            return [name for name in names if Path(folder, name).resolve() == own]

        if item.value.is_dir():
            shutil.copytree(item.value, place / item.value.name, ignore=without, dirs_exist_ok=True)
        else:
            place.mkdir(exist_ok=True)
            shutil.copy2(item.value, place)

    def place_of(self, item: Item, suffix: str) -> Path:
        """Returns the path of an item, and makes its directory.

        Args:
            item: the item, whose name may have slashes.
            suffix: that of the file; empty for a directory.
        """
        parts = [re.sub(r"[^\w.\- ]", "_", part) for part in item.name.split("/") if part.strip(". ")]
        folder = self.items.joinpath(*(parts or ["item"]))
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{item.step:08d}{suffix}"

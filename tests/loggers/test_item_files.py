"""Items in files: what a resume removes, names with slashes, directories that contain the items."""

from __future__ import annotations

import numpy as np
import pytest

from elegy.callbacks.items import Item
from elegy.loggers import CSV, JSONLines, TensorBoard
from elegy.loggers.record import Position

MAKE = {
    "csv": lambda path: CSV(path / "log.csv"),
    "json": lambda path: JSONLines(path / "log.jsonl"),
    "board": lambda path: TensorBoard(path / "board"),
}


@pytest.fixture(params=MAKE)
def logger(request, tmp_path):
    made = MAKE[request.param](tmp_path)
    made.open(None)
    if request.param == "csv":
        made.log_config({})
    yield made
    made.finish("finished")


def test_a_resume_removes_what_came_after_the_checkpoint(logger, tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    for step in (5, 10):
        logger.log_artifact(Item("artifact", "notes.txt", tmp_path / "notes.txt", step, 0))
        if not isinstance(logger, TensorBoard):
            logger.log_image(Item("image", "a/b", np.zeros((2, 2, 3), np.uint8), step, 0))
    logger.rewind(Position(5, 1))
    names = {path.relative_to(logger.items).as_posix() for path in logger.items.rglob("*") if path.is_file()}
    images = set() if isinstance(logger, TensorBoard) else {"a/b/00000005.png"}
    assert names == {"notes.txt/00000005/notes.txt", *images}


def test_names_stay_inside_of_the_directory(logger):
    place = logger.place_of(Item("text", "../../etc/pass*wd", "x", 3, 0), ".txt")
    assert place.relative_to(logger.items).as_posix() == "etc/pass_wd/00000003.txt"


def test_a_directory_that_contains_the_items_is_copied_without_them(logger, tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    for step in (1, 2):
        logger.log_artifact(Item("artifact", "all", tmp_path, step, 0))
    copy = logger.items / "all" / "00000002" / tmp_path.name
    assert (copy / "notes.txt").read_text() == "notes"
    assert not [path for path in copy.rglob("*") if path.name in ("items", "log_items")]

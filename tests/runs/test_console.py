"""The copy of the console: whole lines, the last frame of a bar, exceptions."""

from __future__ import annotations

import io
import sys
import time

import pytest
from tqdm import tqdm

from elegy.runs.console import Console


def copied(tmp_path, action):
    console = Console()
    with console.copying():
        print("early")
        console.attach(tmp_path / "console.txt")
        action()
    return (tmp_path / "console.txt").read_text().splitlines()


def test_a_bar_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    def bar():
        for _ in tqdm(range(500), file=sys.stderr, mininterval=0, ncols=60):
            time.sleep(0)

    lines = copied(tmp_path, bar)
    assert lines[0] == "early"
    assert len(lines) == 2
    assert lines[1].startswith("100%")


def test_streams_are_put_back_and_errors_written(tmp_path):
    before = sys.stdout, sys.stderr

    def fail():
        print("no end", end="")
        sys.stderr.write("\x1b[31mred\x1b[0m\n")
        raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        copied(tmp_path, fail)
    assert (sys.stdout, sys.stderr) == before
    lines = (tmp_path / "console.txt").read_text().splitlines()
    assert lines[:2] == ["early", "red"]
    assert "ValueError: here" in lines
    assert lines[-1] == "no end"

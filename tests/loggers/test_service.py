"""What services keep and receive, at the level of their methods."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from elegy.callbacks.items import Item
from elegy.loggers import ServiceLogger, WandB
from elegy.loggers.logger import Record


class Quiet(ServiceLogger):
    library = "json"

    def connect(self, run, config):
        pass

    def send_item(self, item):
        pass

    def send(self, values, record):
        pass


def test_a_kill_while_the_count_is_written_leaves_the_last_count(tmp_path, monkeypatch):
    logger = Quiet(directory=tmp_path)
    logger.path = tmp_path / "quiet-run.jsonl"
    for step in (1, 2):
        logger._send_counted(Record("step", step, 0, 0, 0.0, {}), step - 1)

    def killed(path, *args, **kwargs):
        path.open("w").close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        logger._send_counted(Record("step", 3, 0, 0, 0.0, {}), 2)
    assert logger.path.with_suffix(".sent").read_text() == "2"


def test_wandb_shows_a_text_as_it_is():
    logged = {}
    logger = WandB("digits")
    logger._wandb = SimpleNamespace(log=lambda values, step: logged.update(values))
    logger.send_item(Item("text", "note", "a <b> & c", step=1, epoch=0))
    assert "<pre>a &lt;b&gt; &amp; c</pre>" in logged["note"].html

"""What services keep and receive, at the level of their methods."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_run import FakeTrainer, run

from elegy.callbacks.items import Item
from elegy.loggers import ServiceLogger, WandB
from elegy.loggers.record import Record
from elegy.types import Every


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


class Refuses(Quiet):
    """A service that always refuses step 2, by an exception of the given type, and knows the others."""

    patience = 30.0  # at the end of a run, it does not wait between attempts

    def __init__(self, directory, error):
        super().__init__(Every(steps=1), directory)
        self.step_values = ()
        self.error, self.got = error, []

    def send(self, values, record):
        if record.step == 2:
            raise self.error("step 2")
        self.got.append(record.step)


@pytest.mark.parametrize("error", [ValueError, ConnectionError])
def test_a_record_that_the_service_refuses_does_not_block_the_others(tmp_path, error):
    logger = Refuses(tmp_path, error)
    trainer = FakeTrainer()
    with pytest.warns(UserWarning, match="Refuses") as caught:
        run([logger], [{"loss": 0.5}], trainer=trainer, steps=5, batch_logs=lambda step: {"loss": float(step)})
    told = [str(warning.message) for warning in caught]
    refused = [text for text in told if "cannot reach its service" not in text]
    assert len(refused) == 1
    assert re.search("the service refuses 1 record .*: step 2.*, which stay in", refused[0])
    # The thread may try step 2 before or after step 3 is written, so the warning before the refusal may be missing.
    assert len(told) == 1 or error is ConnectionError
    assert logger.got == [1, 3, 4, 5, 5]  # the last one is that of the epoch
    assert '"step":2' in logger.path.read_text()
    logger.error = AssertionError  # a run that resumes does not send it again
    state = logger.state_dict()
    run([logger], [{"loss": 0.5}], trainer=trainer, steps=1, batch_logs=lambda step: {}, states={"Refuses": state})
    assert 2 not in logger.got

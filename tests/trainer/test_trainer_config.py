"""The values that a program was run with: checkpoints hold them as JSON, loggers get them with the configuration."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from boring_modules import High

import elegy as eg
from elegy.trainer.saving import configuration

VALUES = {"width": 64, "data": {"rows": [10, 20], "shuffled": True}, "rate": 1e-3, "note": None}


def make(config):
    return eg.Trainer(High(), eg.losses.MeanSquaredError(), config=config)


def test_a_checkpoint_holds_the_config_as_json(tmp_path):
    given = json.loads(json.dumps(VALUES))
    trainer = make(given)
    given["width"] = 65  # the trainer has a copy
    trainer.init_on_batch(np.ones((2, 3), np.float32))
    trainer.save(tmp_path / "one")
    assert json.loads((tmp_path / "one" / "metadata.json").read_text())["config"] == VALUES
    assert eg.checkpoint.read_metadata(tmp_path / "one")["config"] == VALUES
    assert trainer.configuration()["config"] == VALUES
    assert "config" not in make(None).configuration()


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ([1], "a dict of names and JSON values"),
        ({"a": {"b": np.float32(1)}}, r"config\['a'\]\['b'\]: a float32"),
        ({1: 2}, r"config\[1\]: the key is a int"),
    ],
)
def test_values_that_json_cannot_hold_are_refused(config, match):
    with pytest.raises(TypeError, match=match):
        make(config)


def test_git_is_asked_once_in_ten_seconds(monkeypatch):
    now, answers = [1000.0], iter("abc")
    monkeypatch.setattr(configuration, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(configuration.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=next(answers) + "\n"))
    configuration._commit.cache_clear()
    found = []
    for now[0] in (1000.0, 1009.9, 1010.0, 1019.9):
        found += [make(None).configuration()["versions"]["git_commit"] for _ in range(2)]
    configuration._commit.cache_clear()
    assert found == list("aaaabbbb")

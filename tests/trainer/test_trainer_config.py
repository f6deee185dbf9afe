"""The values that a program was run with: checkpoints hold them as JSON, loggers get them with the configuration."""

from __future__ import annotations

import json

import numpy as np
import pytest
from boring_modules import High

import elegy as eg

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

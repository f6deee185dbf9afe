"""Records by columns: loggers write of them what they write of single records, and encode them once."""

import csv
import json
import os

import numpy as np
import pytest
from event_files import read_events
from fake_run import run

from elegy import strict_json
from elegy.lazy_logs import MemberValues
from elegy.loggers import CSV, JSONLines, Logger, Record, TensorBoard, json_text
from elegy.loggers.block import Block, Records
from elegy.types import Every

VALUES = np.array([[0.1, np.nan, 5e-324], [1 / 3, -np.inf, 1e300], [-0.0, 2.5, np.inf]])
NAMES = ("loss", 'a,"b"', "val_\u00e9\u2028")


def block():
    return Block("step", 2, [1.23456] * 3, [7, 8, 9], [70, 80, 90], dict(zip(NAMES, VALUES.T, strict=True)))


@pytest.mark.parametrize("records", [Records([block()]), list(Records([block()]))], ids=["a block", "a list"])
def test_files_have_all_values_of_a_block(tmp_path, records):
    made = JSONLines(tmp_path / "a.jsonl"), CSV(tmp_path / "a.csv"), TensorBoard(tmp_path / "board")
    for logger in made:
        logger.open(None)
        logger.log_block(records)
        logger.finish("finished")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()]
    assert [(e["step"], e["epoch"], e["examples"], e["seconds"]) for e in lines] == [
        (step, 2, 10 * step, 1.235) for step in (7, 8, 9)
    ]
    found = [[strict_json.as_number(e["values"][name]) for name in NAMES] for e in lines]
    np.testing.assert_array_equal(found, VALUES)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("2", "7"), ("2", "8"), ("2", "9")]
    np.testing.assert_array_equal([[float(row[name]) for name in NAMES] for row in rows], VALUES)
    events = read_events(tmp_path / "board" / "train") | read_events(tmp_path / "board" / "validation")
    with np.errstate(over="ignore"):
        expected = VALUES.T.astype(np.float32)
    for name, column in zip(NAMES, expected, strict=True):
        steps, values = zip(*events[f"batch_{name.removeprefix('val_')}"], strict=True)
        assert steps == (7, 8, 9)
        np.testing.assert_array_equal(np.float32(values), column)


def test_a_record_of_the_step_before_it_shares_its_row(tmp_path):
    logger = CSV(tmp_path / "a.csv")
    logger.open(None)
    logger.log_block([Record("step", 7, 2, 70, 1.0, {"early": 4.0})])
    logger.log_block(Records([block()]))
    logger.log_block([Record("epoch", 9, 2, 90, 1.0, {"late": 6.0})])
    logger.finish("finished")
    with logger.path.open(newline="", encoding="utf-8") as file:
        rows = [(row["step"], row["early"], row["loss"], row["late"]) for row in csv.DictReader(file)]
    assert rows == [("7", "4.0", "0.1", ""), ("8", "", repr(1 / 3), ""), ("9", "", "-0.0", "6.0")]


def test_records_of_a_population_have_the_values_of_its_members():
    members = np.array([[1.0, 3.0], [2.0, 6.0]])
    made = Block("step", 0, [1.0, 1.0], [1, 2], [8, 16], {"loss": members, "rate": np.array([0.5, 0.25])})
    assert made.columns == [[2.0, 4.0], [0.5, 0.25]]
    for record, expected in zip(made.records, members, strict=True):
        assert isinstance(record.values["loss"], MemberValues)
        np.testing.assert_array_equal(record.values["loss"].members, expected)
        assert Block.of(record).columns == [[expected.mean()], [record.values["rate"]]]
    later = made.where([False, True])
    assert (later.steps, later.examples, later.columns) == ([2], [16], [[4.0], [0.25]])


def test_loggers_of_one_kind_encode_each_record_once(tmp_path, monkeypatch):
    encoded, joined = [], json_text._joined
    monkeypatch.setattr(json_text, "_joined", lambda block: encoded.extend(block.steps) or joined(block))
    seen = []

    class Seen(Logger):
        def log_scalars(self, record):
            seen.append(record.step)

    made = [JSONLines(tmp_path / f"{k}.jsonl", Every(epochs=1)) for k in range(3)]
    run([*made, Seen(Every(epochs=1))], [{"loss": 0.5}, {"loss": 0.25}])
    assert encoded == seen == [4, 8]
    assert len({logger.path.read_bytes().partition(b"\n")[2] for logger in made}) == 1


def test_no_logger_waits_for_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    made = JSONLines(tmp_path / "a.jsonl"), CSV(tmp_path / "a.csv"), TensorBoard(tmp_path / "board")
    run(made, [{"loss": 0.5}, {"loss": 0.25}])
    assert synced == []
    assert read_events(tmp_path / "board" / "train") == {"epoch_loss": [(4, 0.5), (8, 0.25)]}

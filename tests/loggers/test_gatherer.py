"""Records of all loggers of a run are read and written together, and their encodings are those of the libraries."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moments import wait_until
from tensorboardX.proto.event_pb2 import Event as BoardEvent
from tensorboardX.record_writer import RecordWriter

import elegy as eg
from elegy.callbacks import CallbackList, Event, LazyLogs
from elegy.loggers import CSV, JSONLines, Logger, event_file
from elegy.loggers.block import Block, joined
from elegy.loggers.csv_table import block_lines
from elegy.loggers.gatherer import Gatherer
from elegy.loggers.json_text import json_lines

FLOATS = st.one_of(st.floats(), st.floats(width=32), st.floats(1e-6, 1e-3), st.floats(1e15, 1e18))


@pytest.fixture
def now(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("elegy.loggers.gatherer.time.monotonic", lambda: clock[0])
    return clock


def event(step, reads, **fields):
    def fetch():
        reads.append(step)
        return {"loss": float(step)}

    logs = LazyLogs(fetch, ready=lambda: True)
    return Event(None, "train", step=step, epoch=0, logs=logs, **fields)


def of_step(one):
    return [Block("step", 0, [0.0], [one.step], [8], {name: np.array([v]) for name, v in one.logs.items()})]


def test_events_of_fiftieths_of_a_second_are_read_and_joined_together_and_once(now):
    reads, given_ = [], {"a": [], "b": []}
    targets = {name: (lambda blocks, to=to: to.extend(blocks)) for name, to in given_.items()}
    gatherer = Gatherer()
    for step in range(1, 8):
        one = event(step, reads)
        for target in targets.values():
            gatherer.add(one, target, "step", lambda e=one: of_step(e))
        now[0] += 0.008
    # The first comes after nothing. The oldest of the others is 0.024 s old when the fifth and the eighth come.
    assert [block.steps for block in given_["a"]] == [[1], [2, 3, 4]]
    assert reads == [1, 2, 3, 4]
    gatherer.flush()
    assert reads == list(range(1, 8))
    assert [block.steps for block in given_["a"][2:]] == [[5, 6], [7]]  # half of the rest at a time
    assert all(one is other for one, other in zip(given_["a"], given_["b"], strict=True))


def test_events_are_handed_over_up_to_fifty_times_a_second_if_the_device_is_behind(now):
    computed, given_ = [0], []

    def target(blocks):
        given_.append((now[0], blocks[-1].steps[-1]))

    gatherer = Gatherer()
    for step in range(1, 101):
        logs = LazyLogs(lambda step=step: {"loss": float(step)}, ready=lambda step=step: step <= computed[0])
        one = Event(None, "train", step=step, epoch=0, logs=logs)
        gatherer.add(one, target, "step", lambda e=one: of_step(e))
        now[0] += 0.002
        computed[0] = step - 20  # 0.04 s behind
    times = np.array([time for time, _ in given_[1:]])
    assert np.all(np.diff(times) >= np.maximum(0.02, times[1:] / 4) - 0.002)  # a quarter of the time, by whole steps
    assert np.all(np.diff(times) <= np.maximum(0.02, times[1:] / 4) + 0.002 + 1e-9)
    assert given_[1:] == [(time, round(500 * time) - 20) for time in times]
    gatherer.flush()
    assert given_[-1][1] == 100


def test_no_more_than_thirty_two_events_wait(now):
    read, steps = [], 200
    gatherer = Gatherer()
    for step in range(1, steps + 1):
        logs = LazyLogs(lambda step=step: {"loss": float(step)}, ready=lambda: False)
        one = Event(None, "train", step=step, epoch=0, logs=logs)
        gatherer.add(one, lambda blocks: None, "step", lambda e=one: read.append(e.step) or of_step(e))
        assert step - len(read) <= 32
    assert read == list(range(1, len(read) + 1))
    assert len(read) >= steps - 32


MADE = st.tuples(
    st.sampled_from(["step", "evaluation"]), st.integers(1, 4), st.sampled_from(["loss", "a"]), st.booleans()
)


@given(st.lists(MADE, min_size=1, max_size=8), st.integers(1, 9))
def test_joined_blocks_have_the_records_and_lines_of_their_parts(parts, most):
    blocks, step = [], 0
    for kind, count, name, single in parts:
        steps = list(range(step + 1, step + 1 + count))
        step += count
        columns = {name: np.array(steps) / 7, "other": 1.0 * np.array(steps)}
        block = Block(kind, 3, [0.1 * step] * count, steps, [8 * k for k in steps], columns)
        blocks += [Block.of(record) for record in block.records] if single else [block]
    found = joined(blocks, most)
    assert [r for block in found for r in block.records] == [r for block in blocks for r in block.records]
    assert max(len(b.steps) for b in found) <= max(most, *(len(b.steps) for b in blocks))
    for lines in (json_lines, lambda block: block_lines(block, ("step", "loss", "other"), ",")):
        assert b"".join(map(lines, found)) == b"".join(map(lines, blocks))
    for block in found:
        odd = block.where([step % 2 == 1 for step in block.steps])
        assert odd.steps == [step for step in block.steps if step % 2]
        assert odd.records == [record for record in block.records if record.step % 2]


def test_a_failed_read_leaves_the_records_before_it(now):
    written = []
    gatherer, broken = Gatherer(), LazyLogs(lambda: 1 / 0)
    for step in (1, 2, 3, 4):
        one = event(step, []) if step != 3 else Event(None, "train", step=3, epoch=0, logs=broken)
        gatherer.add(one, lambda blocks: written.extend(blocks), "step", lambda e=one: of_step(e))
    with pytest.raises(ZeroDivisionError):
        gatherer.flush()
    assert [block.steps for block in written] == [[1], [2]]
    gatherer.flush()
    assert [block.steps for block in written] == [[1], [2]]


def test_an_error_is_that_of_the_logger_that_has_it(tmp_path, now):
    class Full(Logger):
        def log_scalars(self, record):
            raise OSError("no space left")

    callbacks = CallbackList([JSONLines(tmp_path / "a.jsonl", eg.Every(epochs=1)), Full(eg.Every(epochs=1))])
    callbacks.emit("on_train_begin", event(0, []))
    callbacks.emit("on_epoch_begin", event(0, []))
    callbacks.emit("on_epoch_end", event(1, []))
    with pytest.raises(OSError, match="no space left") as caught:
        callbacks.emit("on_train_end", event(1, []))
    assert any("Full.on_train_end" in note for note in caught.value.__notes__)
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[-1])["values"] == {"loss": 1.0}


def test_values_that_a_callback_adds_are_in_the_record_of_their_step(tmp_path):
    class Add(eg.Callback):
        batch_hooks_read = "logs"

        def selected_batches(self, step, examples, sizes):
            return [k for k in range(len(sizes)) if (step + k + 1) % 4 == 0]

        def on_train_batch_end(self, event):
            if event.step % 4 == 0:
                event.log("double", 2 * event.step)

    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    module = (lambda key, x: {"w": np.zeros((3, 1), np.float32)}, lambda variables, x: x @ variables["w"])
    made = [JSONLines(tmp_path / "a.jsonl", eg.Every(steps=1)), CSV(tmp_path / "a.csv", every=eg.Every(steps=1))]
    trainer = eg.Trainer(module, eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    trainer.fit(x, x[:, :1], batch_size=4, epochs=1, callbacks=[*made, Add()], steps_per_execution=6, verbose=0)
    lines = [json.loads(line) for line in made[0].path.read_text().splitlines()]
    steps = {line["step"]: line["values"].get("double") for line in lines if line["type"] == "step"}
    assert steps == {k: 2.0 * k if k % 4 == 0 else None for k in range(1, 11)}
    rows = csv.DictReader(io.StringIO(made[1].path.read_text()))
    assert {int(row["step"]): row["double"] for row in rows} == {k: f"{2.0 * k}" if k % 4 == 0 else "" for k in steps}


@given(
    st.lists(st.lists(FLOATS, min_size=20, max_size=20), min_size=1, max_size=3),
    st.sampled_from([1, 120, 127, 16_380, 2_097_140, 10**12]),
)
def test_events_of_many_steps_are_those_of_tensorboardx(columns, first):
    steps, tags = list(range(first, first + 20)), [f"batch_{k}" for k in range(len(columns))]
    buffer, write = event_file._buffer()
    for k, step in enumerate(steps):
        one = BoardEvent(wall_time=7.5, step=step)
        for tag, column in zip(tags, columns, strict=True):
            one.summary.value.add(tag=tag, simple_value=column[k])
        RecordWriter.write(write.__self__, one.SerializeToString())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("elegy.loggers.event_file.time.time", lambda: 7.5)
        assert event_file.scalars(tags, steps, columns) == buffer.getvalue()


@given(st.lists(st.lists(FLOATS, min_size=3, max_size=3), max_size=3), st.sampled_from([",", ";", ".", "1"]))
def test_lines_of_a_block_are_those_of_csv_and_json(columns, separator):
    named = {f"n{k}": np.array(column) for k, column in enumerate(columns)}
    block = Block("step", 3, [1.23456] * 3, [9, 10, 11], [72, 80, 88], named)
    text = io.StringIO()
    rows = [[3, step, "", *(column[k] for column in columns)] for k, step in enumerate(block.steps)]
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
    assert block_lines(block, ("epoch", "step", "other", *named), separator).decode() == text.getvalue()
    read = [json.loads(line) for line in json_lines(block).splitlines()]
    assert [(line["step"], line["examples"], line["seconds"]) for line in read] == [
        (step, 8 * step, 1.235) for step in block.steps
    ]
    found = [[float(line["values"][name]) for line in read] for name in named]
    np.testing.assert_array_equal(np.array(found).reshape(len(columns), 3), np.array(columns).reshape(len(columns), 3))


def test_the_last_records_are_written_while_others_end_the_run(tmp_path):
    """Others may wait for the device in `on_train_end`, and loggers end last."""
    found = []

    class Last(eg.Callback):
        def on_train_end(self, event):
            wait_until(
                lambda: len((tmp_path / "log.jsonl").read_text().splitlines()) == 11
            )  # of 8 steps, 2 epochs, the configuration
            found.append(event.step)

    trainer = eg.Trainer(
        (lambda key, x: {"w": np.zeros((1, 1), np.float32)}, lambda params, x: x @ params["w"]),
        loss=eg.losses.MeanSquaredError(),
        optimizer=optax.sgd(0.1),
    )
    x = np.ones((16, 1), np.float32)
    logger = JSONLines(tmp_path / "log.jsonl", eg.Every(steps=1))
    trainer.fit(x, x, batch_size=4, epochs=2, max_steps=8, verbose=0, callbacks=[logger, Last()])
    assert found == [8]

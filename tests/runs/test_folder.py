"""`Trainer(run_dir=...)`: what a run folder contains, who gets which folder, and how runs resume from it."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import warnings
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from boring_modules import High, regression

import elegy as eg
from elegy.callbacks import Callback, ModelCheckpoint
from elegy.errors import CheckpointError


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trainer(run_dir="runs/a", **options):
    return eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1), run_dir=run_dir, **options)


def fit(trainer, epochs=2, **options):
    x, y = regression()
    return trainer.fit(x, y, batch_size=8, epochs=epochs, **{"verbose": 0, **options})


def read(path):
    return json.loads(Path(path).read_text())


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def same_state(one, other):
    leaves = [jax.tree.leaves(t.state.replace(key=jax.random.key_data(t.state.key))) for t in (one, other)]
    return all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


def test_logs_are_json_that_strict_readers_accept_and_keep_nan_and_infinity():
    one = trainer()
    values = iter([float("nan"), float("inf"), float("-inf"), 0.5])
    strange = eg.callbacks.LambdaCallback(on_epoch_end=lambda event: event.log("strange", next(values)))
    fit(one, epochs=4, callbacks=[strange], validation_data=regression(9, seed=5))

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    lines = (one.run_dir / "log.jsonl").read_text().splitlines()
    logged = [json.loads(line, parse_constant=refuse) for line in lines]
    epochs = [entry["values"]["strange"] for entry in logged if entry["type"] == "epoch"]
    assert epochs == ["NaN", "Infinity", "-Infinity", 0.5]
    expected = [np.nan, np.inf, -np.inf, 0.5]
    np.testing.assert_array_equal(eg.runs.read(one.run_dir).series("epoch")["strange"][1], expected)
    of_epochs = [entry for entry in logged if entry["type"] == "epoch"]
    older = [json.dumps({**entry, "values": {"strange": v}}) for entry, v in zip(of_epochs, expected, strict=True)]
    (one.run_dir / "log.jsonl").write_text("\n".join(older))  # with the bare words NaN and Infinity
    np.testing.assert_array_equal(eg.runs.read(one.run_dir).series("epoch")["strange"][1], expected)


def test_the_folder_has_everything_of_the_run(capsys):
    one = trainer(config={"width": 3})
    history = fit(one, verbose=2)
    shown = capsys.readouterr().out
    folder = Path("runs/a")
    assert one.run_dir == folder
    assert (folder / "console.txt").read_text() == shown
    assert shown.startswith("epoch 1/2  step 3")
    table = rows(folder / "log.csv")
    assert [row["step"] for row in table] == ["3", "6"]
    assert [float(row["loss"]) for row in table] == history.history["loss"]
    config, environment, run = (read(folder / f"{name}.json") for name in ("config", "environment", "run"))
    assert (config["fit"]["epochs"], config["data"]["examples"], config["config"]) == (2, 22, {"width": 3})
    assert environment["versions"]["jax"] == jax.__version__
    assert len(environment["devices"]) == jax.device_count()
    assert (run["status"], run["step"], run["epoch"], run["checkpoints"][0]["last"]) == (
        "finished",
        6,
        2,
        "step_00000006",
    )
    again = trainer(None)
    again.restore(folder)
    fit(again, epochs=1, fast_dev_run=True)
    assert again.step == 7


def test_a_second_run_takes_another_folder_and_a_second_fit_the_same(recwarn):
    one, two = trainer(), trainer()
    fit(one)
    before = {p: p.read_bytes() for p in Path("runs/a").rglob("*") if p.is_file()}
    fit(two)
    assert two.run_dir == Path("runs/a_1")
    assert before == {p: p.read_bytes() for p in Path("runs/a").rglob("*") if p.is_file()}
    fit(one, epochs=1)
    assert one.run_dir == Path("runs/a")
    assert [row["step"] for row in rows("runs/a/log.csv")] == ["3", "6", "9"]
    assert [len(read(f"runs/{name}/run.json")["fits"]) for name in ("a", "a_1")] == [2, 1]
    assert read("runs/a/config_1.json")["fit"]["epochs"] == 2
    assert not list(recwarn)


@pytest.mark.parametrize("how", ["auto", "runs/a", "runs/a/checkpoints"])
def test_a_resumed_run_is_the_uninterrupted_one(how):
    class Stop(Callback):
        def on_train_batch_end(self, event):
            if event.step == 4:
                raise RuntimeError("lost")

    whole = trainer("runs/whole")
    fit(whole, epochs=4)
    with pytest.raises(RuntimeError, match="lost"):
        fit(trainer(), epochs=4, callbacks=[Stop()])
    assert read("runs/a/run.json")["status"] == "failed"
    assert "RuntimeError: lost" in Path("runs/a/console.txt").read_text()
    resumed = trainer()
    fit(resumed, epochs=4, resume=how)
    assert same_state(whole, resumed)
    assert resumed.history.history == whole.history.history
    begins_anew = how == "runs/a/checkpoints"
    assert resumed.run_dir == Path("runs/a_1" if begins_anew else "runs/a")
    there = rows(resumed.run_dir / "log.csv")
    assert there == rows("runs/whole/log.csv")[begins_anew:]


def test_resume_auto_without_a_run_is_a_fresh_start():
    one = trainer()
    fit(one, resume="auto")
    assert (one.run_dir, one.step) == (Path("runs/a"), 6)


def test_a_folder_in_which_a_trainer_trains_is_not_resumed_by_another():
    found = {}

    class Try(Callback):
        def meet(self, callbacks):
            self.saver = next(one for one in callbacks if isinstance(one, eg.callbacks.ModelCheckpoint))

        def on_epoch_begin(self, event):
            if event.epoch == 1:
                self.saver.wait()
                other = trainer()
                fit(other, epochs=1, resume="auto")
                found["folder"], found["step"] = other.run_dir, other.step
                with pytest.raises(CheckpointError, match="another trainer is training in runs/a"):
                    fit(trainer(), resume="runs/a")

    fit(trainer(), callbacks=[Try()])
    assert found == {"folder": Path("runs/a_1"), "step": 3}


def test_a_running_run_has_the_epochs_and_steps_of_its_newest_checkpoint():
    found = []

    class Read(Callback):
        def meet(self, callbacks):
            self.saver = next(one for one in callbacks if isinstance(one, eg.callbacks.ModelCheckpoint))

        def on_epoch_begin(self, event):
            self.saver.wait()
            record = eg.runs.read("runs/a")
            found.append((record.epoch, record.step))

    fit(trainer(), callbacks=[Read()], epochs=3)
    assert found == [(0, 0), (1, 3), (2, 6)]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(start, tmp_path):
    code = """
    import os, signal, numpy as np, optax, elegy as eg
    from tests.boring_modules import High, regression
    class Kill(eg.Callback):
        def on_epoch_begin(self, event):
            if event.epoch == 2:
                os.kill(os.getpid(), signal.SIGKILL)
    loss, optimizer = eg.losses.MeanSquaredError(), optax.adam(0.1)
    t = eg.Trainer(High(), loss, optimizer=optimizer, run_dir="runs/a", callbacks=[Kill()])
    x, y = regression()
    t.fit(x, y, batch_size=8, epochs=4, verbose=2)
    """
    process = start(1, code)
    _, err = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL, err
    assert read("runs/a/run.json")["status"] == "running"
    assert Path("runs/a/console.txt").read_text().startswith("epoch 1/4  step 3")
    whole, resumed = trainer("runs/whole"), trainer()
    fit(whole, epochs=4)
    fit(resumed, epochs=4, resume="auto")
    assert resumed.run_dir == Path("runs/a")
    assert same_state(whole, resumed)
    assert rows("runs/a/log.csv") == rows("runs/whole/log.csv")
    assert read("runs/a/run.json")["status"] == "finished"


def test_the_best_checkpoint_is_in_the_folder():
    one = trainer(callbacks=[ModelCheckpoint(monitor="val_loss")])
    values = fit(one, epochs=3, validation_split=0.2).history["val_loss"]
    (kept,) = read("runs/a/run.json")["checkpoints"]
    assert (kept["monitor"], kept["mode"], kept["best_value"]) == ("val_loss", "min", min(values))
    assert (Path("runs/a/checkpoints") / kept["best"] / "manifest.json").exists()
    with pytest.raises(ValueError, match="no directory, and the trainer has no run folder"):
        fit(trainer(None), callbacks=[ModelCheckpoint()])


def test_a_fast_dev_run_and_refused_data_write_nothing():
    one = trainer()
    fit(one, fast_dev_run=True)
    with pytest.raises(ValueError, match="all arrays need one row"):
        one.fit(np.ones((4, 3), np.float32), np.ones((5, 2), np.float32), verbose=0)
    one.evaluate(*regression(), verbose=0)
    assert one.run_dir is None
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("run_dir", "error", "message"),
    [(3, TypeError, "not 3"), ("gs://b/run", ValueError, "local disk"), ("", ValueError, "has no name")],
)
def test_a_bad_run_dir_is_refused(run_dir, error, message):
    with pytest.raises(error, match=message):
        trainer(run_dir)


def test_auto_names_the_folder_after_the_module():
    one = trainer("auto")
    fit(one)
    assert one.run_dir == Path("runs/High")


def test_warnings_of_the_run_are_noted():
    class Warn(Callback):
        def on_epoch_end(self, event):
            warnings.warn("<look out>", stacklevel=1)

    with pytest.warns(UserWarning, match="look out"):
        fit(trainer(), callbacks=[Warn()])
    (noted,) = read("runs/a/run.json")["fits"][0]["warnings"]
    assert (noted["message"], noted["category"], noted["times"]) == ("<look out>", "UserWarning", 2)


def _emptied(path):
    path.write_bytes(b"")


def _cut(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "given"), [(_emptied, "auto"), (_cut, "auto"), (Path.unlink, "auto"), (_cut, "runs/a_1")]
)
def test_a_run_with_a_damaged_run_json_is_continued_and_a_warning_names_the_file(damage, given):
    whole = trainer("runs/whole")
    fit(whole, epochs=4)
    fit(trainer())
    fit(trainer())
    assert sorted(os.listdir("runs")) == ["a", "a_1", "whole"]
    damage(Path("runs/a_1/run.json"))

    resumed = trainer()
    with pytest.warns(UserWarning, match="runs/a_1/run.json is missing or damaged"):
        fit(resumed, epochs=4, resume=given)
    assert resumed.run_dir == Path("runs/a_1")
    assert same_state(resumed, whole)
    assert read("runs/a_1/run.json")["fits"][0]["first_step"] > 0


@pytest.mark.parametrize("name", ["log.csv.json", "log.csv", "log.jsonl"])
@pytest.mark.parametrize("data", [b"", b"\0" * 300 + b"\n[\n", b"\xff\xfe{\n\x80\n"])
def test_a_damaged_log_is_named_and_does_not_stop_a_run_that_continues(name, data):
    fit(trainer())
    path = Path("runs/a", name)
    path.write_bytes(data)
    one = trainer()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(one, epochs=4, resume="auto")
    assert one.epoch == 4
    assert sum(f"runs/a/{name}" in str(warning.message) for warning in caught) == (len(data) > 0 or "csv.json" in name)
    if name == "log.jsonl":
        assert path.read_bytes().startswith(data)
        written = map(json.loads, path.read_bytes().removeprefix(data).splitlines())
        assert [line["step"] for line in written if line["type"] == "epoch"] == [9, 12]
    elif name == "log.csv":
        assert all(line.split(b",")[0] in path.read_bytes() for line in data.splitlines())


def test_a_full_disk_does_not_hide_the_exception_that_ended_the_run(monkeypatch):
    write_text = Path.write_text

    def full(path, *args, **options):
        if failed and path.name.startswith("run.json"):
            write_text(path, "{", encoding="utf-8")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, *args, **options)

    def fail(event):
        failed.append(event.step)
        raise RuntimeError("mine")

    failed = []
    monkeypatch.setattr(Path, "write_text", full)
    callback = eg.callbacks.LambdaCallback(on_epoch_end=fail)
    with (
        pytest.warns(UserWarning, match=r"its record could not be written: .*'runs/a/run.json'"),
        pytest.raises(RuntimeError, match="mine"),
    ):
        fit(trainer(), callbacks=[callback])
    assert read("runs/a/run.json")["status"] == "running"
    assert not [name for name in os.listdir("runs/a") if "tmp" in name]

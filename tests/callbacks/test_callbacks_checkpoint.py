"""ModelCheckpoint: what is saved when, what is kept, what a resumed run knows."""

import json
import math

import pytest
from fake_run import FakeTrainer, run
from hypothesis import given, settings
from hypothesis import strategies as st

from elegy.callbacks import CallbackList, History, ModelCheckpoint
from elegy.checkpoint.manifest import METADATA
from elegy.types import Every


def names(*steps):
    return [f"step_{step:08d}" for step in steps]


def kept(directory):
    return sorted(path.name for path in directory.iterdir())


def losses(values):
    return [{"loss": 1.0} | ({} if value is None else {"val_loss": value}) for value in values]


# Four steps an epoch.
@pytest.mark.parametrize(
    ("options", "values", "saved", "left"),
    [
        ({}, [3, 2, 1], (4, 8, 12), (12,)),
        ({"every": Every(epochs=2)}, [5, 4, 3, 2, 1], (8, 16), (16,)),
        ({"save_top_k": 2}, [3, 2, 1], (4, 8, 12), (8, 12)),
        ({"save_top_k": -1}, [3, 2, 1], (4, 8, 12), (4, 8, 12)),
        ({"save_top_k": 0}, [3, 2, 1], (4, 8, 12), (12,)),
        ({"monitor": "val_loss"}, [3, 1, 2], (4, 8, 12), (8, 12)),
        ({"monitor": "val_loss", "save_last": False}, [3, 1, 2, 0], (4, 8, 16), (16,)),
        ({"monitor": "val_loss", "save_top_k": 2}, [3, 1, 2, 4, 5], (4, 8, 12, 16, 20), (8, 12, 20)),
        ({"monitor": "val_loss", "save_top_k": -1, "save_last": False}, [3, 1, 2], (4, 8, 12), (4, 8, 12)),
        ({"monitor": "val_loss", "mode": "max"}, [3, 1, 2], (4, 8, 12), (4, 12)),
        ({"monitor": "val_loss"}, [3, math.nan, math.nan], (4, 8, 12), (4, 12)),
        ({"monitor": "val_loss", "save_last": False}, [math.nan, 5, math.nan], (8,), (8,)),
        ({"monitor": "val_loss"}, [3, None, 4], (4, 8, 12), (4, 12)),
        ({"every": Every(steps=3)}, [3, 2, 1], (3, 6, 9, 12), (12,)),
        ({"every": Every(examples=48)}, [3, 2, 1], (6, 12), (12,)),
        ({"every": Every(seconds=2.5)}, [3, 2, 1], (5, 10), (10,)),
        # Within epochs a validation value is not known; after each validation the best is saved.
        ({"monitor": "val_loss", "every": Every(steps=3)}, [3, 1, 2], (3, 4, 6, 8, 9, 12), (8, 12)),
        ({"monitor": "loss", "every": Every(steps=5)}, [3, 1, 2], (5, 10), (5, 10)),
    ],
)
def test_saves_and_keeps(tmp_path, options, values, saved, left):
    callback = ModelCheckpoint(tmp_path / "deep", **options)
    trainer = run([callback], losses(values), batch_logs=lambda step: {"loss": float(step)})
    assert trainer.saved == names(*saved)
    assert kept(tmp_path / "deep") == names(*left)
    assert callback.last_path == tmp_path / "deep" / names(left[-1])[0]


def test_best_and_last_are_kept_apart(tmp_path):
    callback = ModelCheckpoint(tmp_path, monitor="val_loss")
    assert (callback.best_path, callback.best_value, callback.last_path) == (None, None, None)
    run([callback], losses([3, 1, 2]))
    best, last = (tmp_path / name for name in names(8, 12))
    assert (callback.best_path, callback.best_value, callback.last_path) == (best, 1, last)


@settings(max_examples=50)
@given(values=st.lists(st.integers(0, 9), min_size=1, max_size=8), k=st.integers(0, 3), last=st.booleans())
def test_neither_the_newest_nor_the_best_is_ever_deleted(tmp_path_factory, values, k, last):
    if k == 0 and not last:
        return
    directory = tmp_path_factory.mktemp("run")
    callback = ModelCheckpoint(directory, monitor="val_loss", save_top_k=k, save_last=last)
    seen = FakeTrainer()
    for epoch, value in enumerate(values):
        run([callback], losses([value]), trainer=seen, first_epoch=epoch)
        order = sorted(range(epoch + 1), key=lambda i: values[i])  # stable: of equals, the earliest
        expected = {4 * (i + 1) for i in order[:k]} | ({4 * (epoch + 1)} if last else set())
        assert kept(directory) == names(*sorted(expected))


def test_other_files_are_not_changed(tmp_path):
    (tmp_path / "step_00000001").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    run([ModelCheckpoint(tmp_path)], losses([3, 2]))
    assert kept(tmp_path) == ["notes.txt", *names(1, 8)]


def test_a_resumed_run_knows_the_best(tmp_path):
    first = ModelCheckpoint(tmp_path, monitor="val_loss")
    trainer = run([first], losses([3, 1, 2]))
    # What a checkpoint says of itself, as the newest one holds it.
    states = json.loads((first.last_path / METADATA).read_text())
    second = ModelCheckpoint(tmp_path, monitor="val_loss")
    run([second], losses([5, 4]), trainer=trainer, first_epoch=3, states=states)
    assert second.best_path == tmp_path / names(8)[0]
    assert kept(tmp_path) == names(8, 20)


def test_a_checkpoint_knows_what_the_others_learned_in_its_epoch(tmp_path):
    history = History()
    trainer = run([ModelCheckpoint(tmp_path), history], losses([3, 1]))
    states = json.loads((tmp_path / names(8)[0] / METADATA).read_text())
    assert states["History"] == trainer.callbacks.state_dict()["History"] == history.state_dict()


def test_another_name_in_a_checkpoint_is_not_restored(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "precious").mkdir()
    callback = ModelCheckpoint(tmp_path / "inner", monitor="val_loss")
    run([callback], losses([2, 1]), states={"ModelCheckpoint": {"saved": [["../precious", 1, 9.0]]}})
    assert kept(tmp_path) == ["inner", "precious"]


def test_a_failed_save_is_not_counted(tmp_path):
    class Full(FakeTrainer):
        def save(self, path, **background):
            if self.step == 8:
                raise OSError("no space left")
            super().save(path, **background)

    callback = ModelCheckpoint(tmp_path, monitor="val_loss")
    with pytest.raises(OSError, match=r"no space left"):
        run([callback], losses([2, 1]), trainer=Full())
    assert (callback.best_path, callback.last_path) == (tmp_path / names(4)[0],) * 2
    assert kept(tmp_path) == names(4)


def test_missing_monitor_lists_the_logged(tmp_path):
    with pytest.raises(ValueError, match=r"'val_accuracy' is not logged.*Logged are: loss, val_loss"):
        run([ModelCheckpoint(tmp_path, monitor="val_accuracy")], losses([1, 2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_top_k": -2}, "save_top_k=-2"),
        ({"save_top_k": 0, "save_last": False}, "would save nothing"),
        ({"monitor": "loss", "mode": "least"}, "mode='least'"),
        ({"directory": "run/{epoch:02d}-{val_loss:.2f}.keras"}, "not a template of names"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        ModelCheckpoint(**{"directory": tmp_path, **options})


@pytest.mark.parametrize(("every", "most"), [(Every(epochs=1), None), (Every(steps=5), 5), (Every(seconds=60), None)])
def test_executions_are_as_long_as_its_interval(tmp_path, every, most):
    assert CallbackList([ModelCheckpoint(tmp_path, every=every)]).longest_execution("train")[0] == most

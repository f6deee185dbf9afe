"""No run writes into the logs of another one, and none is lost."""

from __future__ import annotations

import warnings

import flax.linen as nn
import numpy as np
import optax
import pytest
from event_files import read_events

import elegy as eg
from elegy.loggers import CSVLogger, TensorBoard

X = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
MOVED = pytest.warns(UserWarning, match=r"has the logs of another run.*this run writes its logs to")


def csv(directory):
    return CSVLogger(directory / "log.csv")


def csv_values(path):
    return [(int(row.split(",")[1]), float(row.split(",")[2])) for row in path.read_text().splitlines()[1:]]


def board_values(path):
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in read_events(path / "train").get("epoch_loss", ())]


# how a logger is made, the places that it takes one after another, and how values are read there
KINDS = pytest.mark.parametrize(
    ("make", "places", "values"),
    [(csv, ["log.csv", "log_1.csv", "log_2.csv"], csv_values), (TensorBoard, ["", "run_1", "run_2"], board_values)],
    ids=["CSVLogger", "TensorBoard"],
)


def trainer_of(rate=0.1):
    return eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(rate))


def fit(callbacks, trainer=None, epochs=2, **kwargs):
    """Four steps an epoch; returns the trainer, the steps at the ends of its epochs and the losses of its history."""
    trainer = trainer or trainer_of()
    trainer.fit(X, X, batch_size=8, epochs=epochs, callbacks=callbacks, verbose=0, **kwargs)
    history = trainer.history
    return trainer, [(4 * (k + 1), value) for k, value in zip(history.epoch, history.history["loss"], strict=True)]


@KINDS
def test_every_run_has_a_place_of_its_own(tmp_path, make, places, values):
    logged = [fit([make(tmp_path)], trainer_of(0.1))[1]]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for rate in (0.2, 0.3):
        logger = make(tmp_path)
        with MOVED as caught:
            logged.append(fit([logger], trainer_of(rate))[1])
        assert [str(tmp_path / places[0]) in str(w.message) and str(logger.path) in str(w.message) for w in caught] == [
            True
        ]
    assert [values(tmp_path / place) for place in places] == logged
    assert before == {path: path.read_bytes() for path in before}


@KINDS
def test_a_trainer_that_trains_on_goes_on_in_the_same_place(tmp_path, make, places, values):
    logger = make(tmp_path)
    trainer, first = fit([logger])
    _, second = fit([logger], trainer, epochs=1)
    assert values(tmp_path / places[0]) == [*first, *second]
    assert second[0][0] == 12
    with MOVED:
        _, other = fit([logger])
    assert values(tmp_path / places[1]) == other


@KINDS
@pytest.mark.parametrize("crash", [0, 1, 2])
@pytest.mark.some(3)
def test_a_resumed_run_goes_on_in_its_own_place(tmp_path, make, places, values, crash):
    """After a run of another trainer; the run itself crashes after an epoch of which the checkpoint may be missing."""

    class Crash(eg.Callback):
        def on_epoch_end(self, event):
            if event.epoch == crash:
                raise ZeroDivisionError

    def saving():
        return eg.callbacks.ModelCheckpoint(tmp_path / "saved", every=eg.Every(steps=3))

    fit([make(tmp_path)])
    whole = fit([], epochs=4)[1]
    with MOVED, pytest.raises(ZeroDivisionError):
        fit([make(tmp_path), saving(), Crash()], epochs=4, resume="auto")
    with warnings.catch_warnings(action="error"):
        fit([make(tmp_path), saving()], epochs=4, resume="auto")
    assert sorted(dict(values(tmp_path / places[1]))) == [4, 8, 12, 16]
    assert values(tmp_path / places[1])[-1] == whole[-1]
    assert not (tmp_path / places[2]).exists()


@KINDS
def test_two_loggers_of_one_run_have_places_of_their_own(tmp_path, make, places, values):
    with MOVED:
        _, logged = fit([make(tmp_path), make(tmp_path)])
    assert values(tmp_path / places[0]) == values(tmp_path / places[1]) == logged


@KINDS
@pytest.mark.parametrize("elsewhere", [{"file": "../log.csv", "run": "../run_1"}, {"file": "a.csv", "log_dir": "a"}])
def test_a_run_that_wrote_elsewhere_resumes_in_a_place_of_its_own(tmp_path, make, places, values, elsewhere):
    before = fit([make(tmp_path)])[1]
    logger = make(tmp_path)
    logger.load_state_dict({"step": 4, "columns": [], "rows": 0, "epoch_row": None, **elsewhere})
    with MOVED:
        after = fit([logger])[1]
    assert (values(tmp_path / places[0]), values(tmp_path / places[1])) == (before, after)


@pytest.mark.parametrize("text", ["", "epoch,step,loss\n"])
def test_a_file_without_rows_is_used(tmp_path, text):
    (tmp_path / "log.csv").write_text(text)
    _, logged = fit([csv(tmp_path)])
    assert csv_values(tmp_path / "log.csv") == logged


def test_a_file_that_is_not_a_log_stays(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"\xff\x00 results")
    with MOVED:
        _, logged = fit([csv(tmp_path)])
    assert (tmp_path / "log.csv").read_bytes() == b"\xff\x00 results"
    assert csv_values(tmp_path / "log_1.csv") == logged


@pytest.mark.parametrize(
    "make",
    [
        lambda path: CSVLogger(f"{path}/log.csv"),
        lambda path: eg.loggers.JSONLines(f"{path}/log.jsonl"),
        TensorBoard,
        lambda path: eg.loggers.WandB(dir=path),
        lambda path: eg.loggers.MLflow(directory=path),
        lambda path: eg.loggers.Trackio("digits", directory=path),
    ],
    ids=["csv", "json lines", "tensorboard", "wandb", "mlflow", "trackio"],
)
def test_an_address_is_refused_instead_of_becoming_a_local_folder(make):
    with pytest.raises(ValueError, match=r"memory://bucket/logs\S* is an address, but a logger writes to a local"):
        make("memory://bucket/logs")

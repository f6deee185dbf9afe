"""What callbacks log beside numbers reaches the callbacks that receive it; histograms of parameters."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
import pytest
from fake_run import run

import elegy as eg
from elegy.callbacks import Event, LambdaCallback, ModelCheckpoint, WeightHistogram
from elegy.callbacks.items import checked

X = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]


class Receiver(eg.Callback):
    def __init__(self):
        self.items = []

    def receive(self, item):
        self.items.append(item)


def fit(callbacks, **options):
    trainer = eg.Trainer(nn.Dense(2), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    options = {"batch_size": 8, "epochs": 2, "verbose": 0, **options}
    trainer.fit(X, np.repeat(X, 2, 1), callbacks=callbacks, **options)
    return trainer


def received(method, *args):
    """What a receiver gets of one call in a hook."""
    receiver = Receiver()
    run([LambdaCallback(on_epoch_end=lambda event: getattr(event, method)(*args)), receiver], [{"loss": 1.0}])
    (item,) = receiver.items
    assert (item.step, item.epoch, item.in_epoch) == (4, 0, False)
    return item


def test_values_are_converted_once_for_all(tmp_path):
    (tmp_path / "file.txt").write_text("x")
    figure = matplotlib.figure.Figure()
    assert received("log_text", "note", "hi").value == "hi"
    assert received("log_figure", "plot", figure).value is figure
    item = received("log_artifact", tmp_path / "file.txt")
    assert (item.name, item.value) == ("file.txt", tmp_path / "file.txt")
    np.testing.assert_array_equal(received("log_histogram", "h", jnp.arange(4.0).reshape(2, 2)).value, [0, 1, 2, 3])
    grey = np.array([[-1.0, 0.5], [np.nan, 2.0]])
    np.testing.assert_array_equal(received("log_image", "i", grey).value, [[[0], [128]], [[0], [255]]])
    colours = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(received("log_image", "i", jnp.asarray(colours)).value, colours)


@pytest.mark.parametrize(
    ("method", "args", "error", "message"),
    [
        ("log_text", ("note", 3), TypeError, "takes a string, not an int"),
        ("log_text", (3, "note"), TypeError, "the name is 3"),
        ("log_image", ("i", np.zeros((2, 2, 5))), ValueError, r"1, 3 or 4 channels, not float64\[2,2,5\]"),
        ("log_image", ("i", np.zeros((2, 2), int)), TypeError, "of floats from 0 to 1, not of int64"),
        ("log_figure", ("f", "plot"), TypeError, "a Matplotlib figure, not a str"),
        ("log_histogram", ("h", np.array(["a"])), TypeError, "an array of numbers"),
        ("log_histogram", ("h", 1j), TypeError, "real numbers"),
        ("log_artifact", ("missing.txt",), FileNotFoundError, "there is no file missing.txt"),
    ],
)
def test_wrong_values_are_named(method, args, error, message):
    with pytest.raises(error, match=message):
        received(method, *args)


def test_without_a_receiver_nothing_is_read():
    run([LambdaCallback(on_epoch_end=lambda event: event.log_histogram("h", object()))], [{"loss": 1.0}])
    Event(None, "train", step=0, epoch=0).log_image("i", object())


def test_an_evaluation_has_its_names_and_a_checkpoint_its_place(tmp_path):
    receiver = Receiver()
    texts = LambdaCallback(
        on_test_end=lambda event: event.log_text("note", str(event.step)),
        on_train_batch_end=lambda event: event.log_text("step", str(event.step)) if event.step == 3 else None,
    )
    fit([texts, receiver, ModelCheckpoint(tmp_path, async_save=False)], validation_data=(X, np.repeat(X, 2, 1)))
    found = [(item.name, item.value, item.step, item.epoch, item.in_epoch) for item in receiver.items]
    assert found == [
        ("step", "3", 3, 0, True),
        ("val_note", "5", 5, 0, False),
        ("checkpoint", str(tmp_path / "step_00000005"), 5, 0, False),
        ("val_note", "10", 10, 1, False),
        ("checkpoint", str(tmp_path / "step_00000010"), 10, 1, False),
    ]


@pytest.mark.parametrize("every", [eg.Every(steps=5), eg.Every(epochs=1)])
def test_histograms_have_the_parameters_of_their_step(every):
    receiver, wanted = Receiver(), []
    keep = LambdaCallback(on_epoch_end=lambda event: wanted.append(event.trainer.state.params))
    fit([receiver, WeightHistogram(every), keep])
    assert [(item.name, item.step) for item in receiver.items] == [
        (f"params/{name}", step) for step in (5, 10) for name in ("bias", "kernel")
    ]
    for item, params in zip(receiver.items[1::2], wanted, strict=True):
        np.testing.assert_array_equal(item.value, np.ravel(params["kernel"]))


def test_a_pattern_chooses_arrays_and_one_that_matches_nothing_is_an_error():
    receiver = Receiver()
    fit([receiver, WeightHistogram(pattern="ker*")])
    assert {item.name for item in receiver.items} == {"params/kernel"}
    with pytest.raises(ValueError, match=r"matches no array of parameters. There are: bias, kernel"):
        fit([receiver, WeightHistogram(pattern="*/kernel")])


def test_an_image_is_a_copy_because_a_logger_may_send_it_later():
    buffer = np.full((2, 2, 3), 7, np.uint8)
    image = checked("image", "digit", buffer)
    buffer[:] = 0
    assert (image == 7).all()

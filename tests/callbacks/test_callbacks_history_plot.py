"""`History.plot`: the lines that matplotlib gets."""

from __future__ import annotations

import sys

import matplotlib
import numpy as np
import optax
import pytest
from boring_modules import High, regression

import elegy as eg

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def history():
    trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    x, y = regression()
    return trainer.fit(x, y, batch_size=8, epochs=4, validation_split=0.2, validation_freq=2, verbose=0)


def test_every_value_is_drawn_at_its_step(history):
    from matplotlib import pyplot

    loss, other = history.plot()
    drawn = {line.get_label(): line.get_xydata() for line in loss.get_lines()}
    np.testing.assert_array_equal(drawn["train"], np.column_stack([[3, 6, 9, 12], history.history["loss"]]))
    np.testing.assert_array_equal(drawn["val"], np.column_stack([[6, 12], history.history["val_loss"]]))
    assert other.get_title() == "mean_squared_error"
    assert history.plot("val_loss", axes=[loss]) == history.plot("val_loss", axes=loss) == [loss]
    array = pyplot.subplots(2, 1)[1]
    assert history.plot(axes=array) == list(array)
    pyplot.close("all")


class Adds(eg.Callback):
    """Adds a value at each epoch, and at each evaluation inside of one."""

    def on_evaluation_end(self, event):
        event.log("mine", float(event.step))

    on_epoch_end = on_evaluation_end


@pytest.mark.parametrize(("freq", "steps"), [(1, [4, 8]), (2, [4, 8]), (eg.Every(steps=3), [3, 4, 6, 8])])
@pytest.mark.parametrize("names", [None, ("near", "far")])
def test_a_value_that_a_callback_adds_is_drawn_under_its_own_name(freq, steps, names):
    from matplotlib import pyplot

    x, y = regression()
    data = (x[:8], y[:8])
    trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    sets = dict.fromkeys(names, data) if names else data
    history = trainer.fit(
        x, y, batch_size=6, epochs=2, validation_data=sets, validation_freq=freq, verbose=0, callbacks=[Adds()]
    )
    (axes,) = history.plot("mine")
    (line,) = axes.get_lines()
    assert (axes.get_title(), line.get_label()) == ("mine", "train")
    np.testing.assert_array_equal(line.get_xydata(), np.column_stack([steps, steps]))
    loss = history.plot("loss")[0]
    labels = [f"val_{name}" for name in names] if names else ["val"]
    assert [one.get_label() for one in loss.get_lines()] == ["train", *labels]
    pyplot.close("all")


def test_what_cannot_be_drawn_is_said(history, monkeypatch):
    with pytest.raises(ValueError, match=r"'acc' is not logged\. Logged are: loss, val_loss, mean_squared_error"):
        history.plot("acc")
    with pytest.raises(ValueError, match="the history is empty"):
        eg.History().plot()
    for axes in ([], [None, None]):
        with pytest.raises(ValueError, match=f"there are {len(axes)} axes for 1 groups of values: loss"):
            history.plot("loss", axes=axes)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="needs the library 'matplotlib': install it with `pip install matplotlib`"):
        history.plot()


def test_steps_survive_a_checkpoint(history):
    other = eg.History()
    other.load_state_dict(history.state_dict())
    assert other.step == history.step == [3, 6, 9, 12]

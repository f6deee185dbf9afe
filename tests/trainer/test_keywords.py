"""Unknown keyword arguments of a Trainer."""

import inspect

import flax.linen as nn
import numpy as np
import optax
import pytest

import elegy as eg

X, Y = np.ones((8, 2), np.float32), np.zeros(8, int)


def trainer():
    return eg.Trainer(nn.Dense(3), eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1))


@pytest.mark.parametrize(
    ("method", "keyword", "message"),
    [
        ("Trainer", "lr", r"Trainer\(\) .* 'lr': the learning rate is an argument of the optimizer"),
        ("Trainer", "learning_rate", r"optimizer=optax.adam\(1e-3\)"),
        ("Trainer", "epochs", "'epochs': it is an argument of `fit`"),
        ("Trainer", "optimiser", "Did you mean 'optimizer'"),
        ("Trainer", "max_epochs", "Did you mean 'epochs' of `fit`"),
        ("Trainer", "gradient_clip_val", r"'gradient_clip_val': write `optax.clip_by_global_norm\(value\)` before"),
        ("Trainer", "devices", r"`Trainer\(strategy=...\)` says on which devices"),
        ("Trainer", "logger", "a logger is one of `callbacks`"),
        ("Trainer", "val_check_interval", r"`eg.Every\(steps=500\)`"),
        ("fit", "x", "'x': the data is the first argument"),
        ("fit", "ckpt_path", r"write `fit\(resume=...\)`"),
        ("evaluate", "return_dict", "`evaluate` always returns a dict"),
        ("Model", "loss_fn", "Did you mean 'loss'"),
        ("fit", "validation_splt", r"fit\(\) .* Did you mean 'validation_split'"),
        ("fit", "optimizer", "it is an argument of `Trainer`"),
        ("evaluate", "epochs", "it is an argument of `fit`"),
        ("predict", "qqqq", "There are: data, inputs, labels"),
    ],
)
@pytest.mark.filterwarnings("ignore:elegy.Model")
def test_an_unknown_keyword_is_explained(method, keyword, message):
    called = getattr(eg, method) if hasattr(eg, method) else getattr(trainer(), method)
    with pytest.raises(TypeError, match=message):
        called(X, **{keyword: 1})


def test_signatures_are_those_of_the_methods():
    for method in (eg.Trainer, eg.Trainer.fit, eg.Trainer.evaluate, eg.Trainer.predict):
        kinds = {name: one.kind for name, one in inspect.signature(method).parameters.items()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds.values()
        assert {"loss", "epochs", "steps"} & kinds.keys()


def test_a_warning_of_fit_is_of_the_line_that_calls_it():
    with pytest.warns(UserWarning, match="will not run") as caught:
        trainer().fit(X, Y, verbose=0, validation_data=(X, Y), validation_freq=eg.Every(steps=500))
    assert [one.filename for one in caught] == [__file__]

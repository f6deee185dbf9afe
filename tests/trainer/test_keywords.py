"""Unknown keyword arguments of a Trainer."""

import inspect
import re

import flax.linen as nn
import numpy as np
import optax
import pytest

import elegy as eg
from elegy import keywords

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
        ("Trainer", "gradient_accumulation_steps", r"write `Trainer\(accumulate=...\)`"),
        ("Trainer", "bf16", r"write `Trainer\(precision='mixed_float16'\)` or `'mixed_bfloat16'`"),
        ("fit", "num_sanity_val_steps", r"write `fit\(sanity_check=2\)`"),
        ("fit", "profile", r"write `fit\(callbacks=\[eg.callbacks.Profiler\(directory\)\]\)`"),
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eg.callbacks.ModelCheckpoint(dirpath="run"), "'dirpath': the directory is the first argument"),
        (lambda: eg.callbacks.ModelCheckpoint("run", filename="{epoch}"), "named `step_00000024`"),
        (lambda: eg.callbacks.ModelCheckpoint("run", save_best_only=True), "'save_best_only': write `save_last=False`"),
        (lambda: eg.callbacks.ModelCheckpoint("run", every_n_epochs=1), r"every=eg.Every\(steps=500\)`, or `epochs="),
        (lambda: eg.callbacks.ModelCheckpoint("run", save_topk=1), "Did you mean 'save_top_k'"),
        (lambda: eg.callbacks.EarlyStopping(n_iter_no_change=3), r"EarlyStopping\(\) .*: write `patience=`"),
        (lambda: eg.callbacks.EarlyStopping(monitr="loss"), "Did you mean 'monitor'"),
        (lambda: eg.loggers.TensorBoard(save_dir="logs"), "the path is the first argument"),
        (lambda: eg.loggers.TensorBoard("logs", update_freq=5), r"every=eg.Every\(steps=50\)"),
        (lambda: eg.loggers.CSVLogger(path="log.csv"), "the path is the first argument"),
        (lambda: eg.loggers.JSONLines("log.jsonl", log_every_n_steps=1), "every=eg.Every"),
        (lambda: eg.loggers.MLflow(experiment_name="digits"), "write `experiment=`"),
    ],
)
def test_an_unknown_keyword_of_a_callback_is_explained(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test", r"no attribute 'test': write `trainer.evaluate\(inputs, labels\)`"),
        ("validate", "trainer.evaluate"),
        ("compile", "arguments of `Trainer`"),
        ("global_step", "write `trainer.step`"),
        ("evalute", "Did you mean 'evaluate'"),
        ("qqqq", "no attribute 'qqqq'$"),
        ("_evaluate", "no attribute '_evaluate'$"),
    ],
)
def test_an_unknown_attribute_of_a_trainer_is_explained(name, message):
    with pytest.raises(AttributeError, match=message):
        getattr(trainer(), name)
    assert not hasattr(trainer(), name)


def test_a_property_that_fails_has_its_own_error():
    class Mine(eg.Trainer):
        @property
        def width(self):
            return None.shape

    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'shape'"):
        _ = Mine(nn.Dense(3)).width


@pytest.mark.parametrize("table", [keywords.ATTRIBUTES_OF_TRAINER, keywords.OF_TRAINER])
def test_what_to_write_exists(table):
    for text in table.values():
        for name in re.findall(r"trainer\.(\w+)", text):
            assert hasattr(eg.Trainer, name)
    if table is keywords.ATTRIBUTES_OF_TRAINER:
        assert not [name for name in table if hasattr(eg.Trainer, name)]


def test_signatures_are_those_of_the_methods():
    for method in (eg.Trainer, eg.Trainer.fit, eg.Trainer.evaluate, eg.Trainer.predict):
        kinds = {name: one.kind for name, one in inspect.signature(method).parameters.items()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds.values()
        assert {"loss", "epochs", "steps"} & kinds.keys()


def test_a_warning_of_fit_is_of_the_line_that_calls_it():
    with pytest.warns(UserWarning, match="will not run") as caught:
        trainer().fit(X, Y, verbose=0, validation_data=(X, Y), validation_freq=eg.Every(steps=500))
    assert [one.filename for one in caught] == [__file__]

"""Errors of names that do not exist have those that were meant."""

from __future__ import annotations

import operator
import re

import pytest

import elegy as eg
from elegy.cli.errors import nearest
from elegy.suggestions import THEIRS


@pytest.mark.parametrize(
    ("module", "name", "meant"),
    [
        (eg, "Trainr", "Trainer"),
        (eg.losses, "CrosEntropy", "CrossEntropy"),
        (eg.metrics, "Acuracy", "Accuracy"),
        (eg.callbacks, "EarlyStop", "EarlyStopping"),
        (eg.data, "pad_sequence", "pad_sequences"),
        (eg.loggers, "Tensorboard", "TensorBoard"),
    ],
)
def test_a_missing_attribute_has_the_nearest_names(module, name, meant):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'. Did you mean .*'{meant}'"):
        getattr(module, name)
    assert not hasattr(module, name)
    assert not hasattr(module, "__wrapped__")
    for public in module.__all__:
        assert hasattr(module, public)


@pytest.mark.parametrize("name", THEIRS)
def test_a_name_of_another_library_has_what_to_write(name):
    for module in (eg, eg.losses, eg.metrics, eg.callbacks, eg.loggers):
        if not hasattr(module, name):
            with pytest.raises(AttributeError, match=f"has no attribute '{name}'. Write {re.escape(THEIRS[name])}"):
                getattr(module, name)
    for path in re.findall(r"eg\.([\w.]+)", THEIRS[name]):
        assert callable(operator.attrgetter(path)(eg))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("optimizer.lr", "Did you mean 'optimizer.learning_rate'?"),
        ("lr", "Did you mean 'optimizer.learning_rate'?"),
        ("fit.bs", "Did you mean 'fit.batch_size'?"),
        ("optimizer.zzz", "Options of 'optimizer': 'optimizer.steps', 'optimizer.learning_rate'."),
    ],
)
def test_an_option_is_found_by_its_initials(given, text):
    known = ["optimizer.steps", "optimizer.learning_rate", "fit.batch_size", "fit.epochs"]
    assert nearest(given, known) == f" {text}"

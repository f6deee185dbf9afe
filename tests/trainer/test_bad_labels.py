"""Invalid labels and weights: all of those in arrays are checked before anything is compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bad_input import (
    CLASSES,
    Case,
    X,
    Y,
    batches,
    classifier,
    fit,
    nothing_is_compiled_and_the_state_stays,
    the_state_is_what_it_was,
    with_strategies,
)
from boring_modules import High, Managed, trainer_of

import elegy as eg

ONE_HOT = np.eye(2, dtype=np.float32)[CLASSES]


def changed(array, row, value):
    array = array.copy()
    array[row] = value
    return array


def binary(**kwargs):
    return trainer_of(High, loss=eg.losses.CrossEntropy(binary=True), **kwargs)


def of_signs():
    one_output = (lambda key: {"w": jnp.zeros(3)}, lambda params, x: x @ params["w"])
    return eg.Trainer(one_output, loss=optax.losses.hinge_loss, optimizer=optax.sgd(0.1))


SEVEN = changed(CLASSES, 20, 7)
BITS = np.stack([CLASSES, 1 - CLASSES], axis=1).astype(np.float32)
NEGATIVE, NAN, INFINITE = (changed(np.ones(22, np.float32), 20, value) for value in (-0.5, np.nan, np.inf))
NO_ROWS = batches((0, 8), (8, 8), (8, 16))

CASES = [
    Case("a late label", ValueError, r"the target contains 7.*has 2 classes.*0\.\.1", fit(X, SEVEN), classifier),
    Case(
        "unknown",
        ValueError,
        r"contains -1, .*no label, give that a sample weight of 0",
        fit(X, CLASSES - 1),
        classifier,
    ),
    Case("unshuffled", ValueError, "the target contains 7", fit(X, SEVEN, shuffle=False), classifier),
    Case("on the device", ValueError, "the target contains 7", fit(X, jnp.asarray(SEVEN)), classifier),
    Case("within an epoch", ValueError, "the target contains 7", fit(X, SEVEN, steps_per_epoch=1), classifier),
    Case("validation", ValueError, "the target contains 7", fit(X, CLASSES, validation_data=(X, SEVEN)), classifier),
    Case("a split", ValueError, "the target contains 7", fit(X, SEVEN, validation_split=0.3), classifier),
    Case("evaluate", ValueError, "the target contains 7", lambda t: t.evaluate(X, SEVEN, verbose=0), classifier),
    Case("signs", ValueError, r"contains -1\.0, but binary labels are 0 or 1", fit(X, 2 * BITS - 1), binary),
    Case("a late sign", ValueError, r"contains -1\.0, but binary", fit(X, changed(BITS, (20, 1), -1)), binary),
    Case("percent", ValueError, r"contains 100\.0, but binary", fit(X, 100 * BITS), binary),
    Case("negative weights", ValueError, r"sample_weight contains -0\.5", fit(X, Y, sample_weight=NEGATIVE)),
    Case("of a batch", ValueError, r"sample_weight contains -0\.5", fit([(X, Y, NEGATIVE)])),
    Case("a weight of NaN", ValueError, "sample_weight contains nan", fit(X, Y, sample_weight=NAN)),
    Case("a weight of inf", ValueError, "contains inf: .*be finite", fit(X, Y, sample_weight=INFINITE)),
    Case(
        "train_on_batch",
        ValueError,
        r"sample_weight contains -0\.5",
        lambda t: t.train_on_batch(X, Y, sample_weight=NEGATIVE),
    ),
    Case(
        "a negative class",
        ValueError,
        "has the key -1, but no label is -1.*count from 0",
        fit(X, CLASSES, class_weight={-1: 2.0}),
        classifier,
    ),
    Case("no class", ValueError, r"keys \[7\].*2 classes.*0\.\.1", fit(X, CLASSES, class_weight={7: 2.0}), classifier),
    Case(
        "no class, with a split",
        ValueError,
        r"keys \[7\], but the outputs have 2 classes",
        fit(X, CLASSES, class_weight={7: 2.0}, validation_split=0.3),
        classifier,
    ),
    Case(
        "no class, iterable",
        ValueError,
        r"keys \[7\], but the outputs have 2 classes",
        fit(batches((0, 8), (8, 16), y=CLASSES), class_weight={0: 1.0, 7: 2.0}),
        classifier,
    ),
    Case(
        "no class, one-hot",
        ValueError,
        r"key 7.*\(22, 2\) have 2 classes",
        fit(X, ONE_HOT, class_weight={7: 2.0}),
        classifier,
    ),
    Case(
        "a negative class, iterable",
        ValueError,
        r"keys \[-1\], but the outputs have 2 classes",
        fit(batches((0, 8), (8, 16), y=CLASSES), class_weight={-1: 2.0}),
        classifier,
    ),
    Case("a first batch without rows", ValueError, r"batch 0 of fit has no rows: inputs .*\(0, 3\)", fit(NO_ROWS[1:])),
    Case(
        "validation without rows",
        ValueError,
        "batch 0 of validation has no rows",
        fit(X, Y, validation_data=NO_ROWS[1:]),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_is_compiled(case):
    nothing_is_compiled_and_the_state_stays(case)


@pytest.mark.parametrize(("case", "strategy"), with_strategies(CASES))
def test_the_state_stays(case, strategy):
    the_state_is_what_it_was(case, strategy)


@pytest.mark.parametrize("module", [High, Managed])
@pytest.mark.parametrize("strategy", ["jit", "eager"])
def test_a_later_batch_without_rows_is_named_before_its_step(module, strategy):
    trainer = trainer_of(module, strategy=strategy)
    with pytest.raises(ValueError, match=r"batch 1 of fit has no rows: inputs has the shape \(0, 3\)"):
        trainer.fit(NO_ROWS, verbose=0)
    assert trainer.step == 1


@pytest.mark.parametrize(
    ("build", "labels", "kwargs"),
    [
        (classifier, SEVEN, {"sample_weight": changed(np.ones(22, np.float32), 20, 0)}),
        (lambda: trainer_of(High, loss=eg.losses.CrossEntropy(check_bounds=False)), SEVEN, {}),
        (binary, BITS, {}),
        (binary, 0.5 * BITS + 0.25, {}),
        (classifier, CLASSES, {"class_weight": {1: 3.0}}),
        (of_signs, 2 * CLASSES - 1, {"class_weight": {-1: 3.0}}),
    ],
    ids=["weight 0", "check_bounds", "bits", "probabilities", "a class", "signs"],
)
def test_valid_labels_are_accepted(build, labels, kwargs):
    build().fit(X, labels, batch_size=8, verbose=0, **kwargs)


def test_data_without_weights_has_no_loss_and_changes_nothing():
    trainer = classifier()
    trainer.init_on_batch(X, CLASSES)
    before = trainer.state.params
    zeros = np.zeros(22, np.float32)
    for weights in ({"sample_weight": zeros}, {"class_weight": {0: 0.0, 1: 0.0}}):
        with pytest.warns(RuntimeWarning) as warned:
            trainer.fit(X, CLASSES, batch_size=8, verbose=0, **weights)
        assert str(warned[0].message).startswith("all sample weights of fit, into")
        assert warned[0].filename == __file__
        assert any("the loss is nan" in str(one.message) for one in warned)
    jax.tree.map(np.testing.assert_array_equal, trainer.state.params, before)
    with pytest.warns(RuntimeWarning, match="all sample weights of validation"), pytest.raises(StopIteration):
        trainer.fit(X, CLASSES, validation_data=(X, CLASSES, zeros), batch_size=8, verbose=0, callbacks=[Ends()])
    with pytest.warns(RuntimeWarning, match="all sample weights of evaluate"):
        assert np.isnan(trainer.evaluate(X, CLASSES, sample_weight=zeros, verbose=0)["loss"])


class Ends(eg.callbacks.Callback):
    """Ends a run before its first step: what is wrong with the data was said by then."""

    def on_train_begin(self, event):
        raise StopIteration


def test_a_batch_without_weights_does_not_warn(recwarn):
    trainer = classifier()
    trainer.fit(X, CLASSES, sample_weight=changed(np.zeros(22, np.float32), 20, 1.0), batch_size=8, verbose=0)
    trainer.train_on_batch(X[:8], CLASSES[:8], sample_weight=np.zeros(8, np.float32))
    trainer.test_on_batch(X[:8], CLASSES[:8], sample_weight=np.zeros(8, np.float32))
    assert not [one for one in recwarn if "sample weights" in str(one.message)]

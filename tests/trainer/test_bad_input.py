"""Bad input: an error that says what is wrong, before anything is compiled, and nothing is lost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bad_input import (
    CLASSES,
    NAN,
    Case,
    X,
    Y,
    batches,
    classifier,
    fit,
    high,
    nothing_is_compiled_and_the_state_stays,
    the_state_is_what_it_was,
    with_strategies,
)
from boring_modules import TX, High, Managed, network

import elegy as eg
from elegy.errors import MissingMethodError, StepError


class ACallback(eg.Callback):
    pass


def by_names(labels, logits):
    return jnp.mean((labels - logits) ** 2)


class OnlyTrain(eg.ElegyModule):
    def managed_init_step(self, key, batch):
        return self.replace(params={"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)})

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return jnp.mean((network(self.params, batch[0]) - batch[1]) ** 2), self


CASES = [
    # what the trainer lacks
    Case("no optimizer", StepError, r"High has no optimizer.*optimizer=optax\.adam", build=high(optimizer=None)),
    Case("no optimizer, managed", StepError, "Managed has no optimizer", build=lambda **k: eg.Trainer(Managed(), **k)),
    Case("no loss", StepError, r"High has no loss to train with.*loss=", build=high(loss=None)),
    Case(
        "metrics, but no loss",
        StepError,
        "High has no loss to train with",
        build=high(loss=None, metrics=eg.metrics.MeanAbsoluteError()),
    ),
    Case(
        "no step at all",
        MissingMethodError,
        r"ElegyModule does not say how to run the train step.*apply.*managed_train_step.*train_step",
        build=lambda **k: eg.Trainer(eg.ElegyModule(), optimizer=TX, **k),
        ready=False,
    ),
    # strategies
    Case(
        "unknown strategy",
        ValueError,
        r"unknown strategy 'jti'.*Did you mean 'jit'.*eager, jit",
        lambda t: t.set_strategy("jti"),
    ),
    Case(
        "a strategy class", TypeError, r"Jit is a class: pass an instance", lambda t: t.set_strategy(eg.strategies.Jit)
    ),
    Case("a number as strategy", TypeError, r"must be a name or a Strategy, not 3", lambda t: t.set_strategy(3)),
    # the data
    Case("lengths differ", ValueError, r"inputs has 22 rows but labels has 21", fit(X, Y[:21])),
    Case(
        "weights' length", ValueError, r"inputs has 22 rows but sample_weight has 3", fit(X, Y, sample_weight=X[:3, 0])
    ),
    Case("nested lengths", ValueError, r"inputs/a has 22 rows but inputs/b has 5", fit({"a": X, "b": X[:5]}, Y)),
    Case("empty arrays", ValueError, r"data is empty: its arrays have 0 rows", fit(X[:0], Y[:0])),
    Case("empty list", ValueError, r"empty", fit([])),
    Case(
        "empty generator",
        ValueError,
        r"the data of fit is empty: the tuple_iterator yielded no batch",
        lambda t: t.fit(iter(()), verbose=0),
    ),
    Case("text as inputs", TypeError, r"the inputs of fit are a str \('x'\)", fit("x")),
    Case("None as inputs", TypeError, r"the inputs of fit are None", fit(None)),
    Case(
        "strings in an array",
        TypeError,
        r"inputs has the dtype <U1, which is not a dtype of numbers",
        fit(np.array(["a", "b"] * 11), Y),
    ),
    Case(
        "batch larger than the data",
        ValueError,
        r"batch_size=23 is larger than the data, which has 22 examples",
        fit(batch_size=23),
    ),
    Case("negative batch size", ValueError, r"batch_size must be a positive integer, not -1", fit(batch_size=-1)),
    Case("zero batch size", ValueError, r"batch_size must be a positive integer, not 0", fit(batch_size=0)),
    Case("fractional batch size", TypeError, r"batch_size must be a positive integer, not 2\.5", fit(batch_size=2.5)),
    Case(
        "batch size with batches",
        ValueError,
        r"batch_size=4 was given to fit with an iterable",
        fit(batches((0, 8)), batch_size=4),
    ),
    Case(
        "labels beside batches",
        TypeError,
        r"labels were given to fit with inputs that are a generator",
        lambda t: t.fit((b for b in batches((0, 8))), Y, verbose=0),
    ),
    Case(
        "a batch of four parts",
        ValueError,
        r"one to three parts.*this one has 4",
        lambda t: t.fit(iter([(X, Y, X, X)]), verbose=0),
    ),
    Case("scalar leaves", ValueError, r"inputs/b is a scalar", fit({"a": X, "b": 3}, Y)),
    Case(
        "dropping the remainder of batches",
        ValueError,
        r"drop_remaining was given to fit with an iterable",
        fit(batches((0, 8)), drop_remaining=True),
    ),
    *(
        Case(f"{name} beyond 32 bits", ValueError, rf"{name} contains \d{{13}}, .*jax_enable_x64", fit(*data))
        for name, data in {"inputs": (X.astype(int) + 2**40, Y), "labels": (X, Y.astype(int) + 2**40)}.items()
    ),
    Case(
        "labels of batches beyond 32 bits",
        ValueError,
        rf"batch 0: labels contains {2**40 + 1}, ",
        fit(batches((0, 8), y=CLASSES.astype(int) + 2**40)),
    ),
    # labels
    Case(
        "labels out of range",
        ValueError,
        r"CrossEntropy: the target contains 2, but the last axis of preds has 2 classes",
        fit(X, CLASSES + 1),
        classifier,
    ),
    Case("negative labels", ValueError, r"the target contains -1.*must be in 0\.\.1", fit(X, CLASSES - 1), classifier),
    Case("float labels", TypeError, r"(?s)CrossEntropy.*float32", fit(X, CLASSES.astype(np.float32)), classifier),
    Case("labels' shape", ValueError, r"(?s)\(8, 3\).*\(8, 2\)|\(8, 2\).*\(8, 3\)", fit(X, X)),
    Case(
        "no labels",
        TypeError,
        r"'mean_squared_error' needs 'target'.*there are 'inputs', 'preds',.*`fit\(x, y\)`.*autoencoder.*`fit\(x, x\)`",
        fit(X),
    ),
    Case(
        "no labels for a function",
        TypeError,
        r"the function 'by_names' needs 'labels'.*`fit\(x, y\)`",
        fit(X),
        high(loss=by_names),
    ),
    Case(
        "class weights of floats",
        TypeError,
        r"class_weight has the key 0\.5",
        fit(X, CLASSES, class_weight={0.5: 1.0}),
        classifier,
    ),
    Case(
        "class weights without labels",
        ValueError,
        r"class_weight needs labels",
        fit(X, class_weight={0: 1.0}),
        classifier,
    ),
    # counts
    Case("zero epochs", ValueError, r"epochs must be a positive integer, not 0", fit(epochs=0)),
    Case("negative epochs", ValueError, r"epochs must be a positive integer, not -2", fit(epochs=-2)),
    Case("fractional epochs", TypeError, r"epochs must be a positive integer, not 1\.5", fit(epochs=1.5)),
    Case("true epochs", TypeError, r"epochs must be a positive integer, not True", fit(epochs=True)),
    Case(
        "initial epoch too late",
        ValueError,
        r"initial_epoch must be .* below epochs=2, not 2",
        fit(epochs=2, initial_epoch=2),
    ),
    Case("zero steps", ValueError, r"steps_per_epoch must be a positive integer, not 0", fit(steps_per_epoch=0)),
    Case(
        "steps beyond the data",
        ValueError,
        r"steps_per_epoch=4 is beyond the data: 22 examples make 3 batches of 8",
        fit(steps_per_epoch=4),
    ),
    Case(
        "steps beyond the whole batches",
        ValueError,
        r"22 examples make 2 batches of 8 \(the short last batch is dropped\)",
        fit(steps_per_epoch=3, drop_remaining=True),
    ),
    Case(
        "steps beyond the batches",
        ValueError,
        r"steps_per_epoch=3 is beyond the data: the list had 2 batches",
        fit(batches((0, 8), (8, 16)), steps_per_epoch=3),
    ),
    Case("zero max_steps", ValueError, r"max_steps must be a positive integer", fit(max_steps=0)),
    Case("negative max_time", ValueError, r"max_time must be a positive number of seconds, not -1", fit(max_time=-1)),
    Case(
        "NaN as max_time", ValueError, r"max_time must be a positive number of seconds, not nan", fit(max_time=np.nan)
    ),
    Case(
        "steps_per_execution",
        ValueError,
        r"steps_per_execution must be 'auto' or a positive integer, not 'all'",
        fit(steps_per_execution="all"),
    ),
    Case("verbose", ValueError, r"verbose must be 0, 1 or 2, not 5", fit(verbose=5)),
    # validation
    Case("a split of one", ValueError, r"validation_split=1\.0 is outside of \(0, 1\)", fit(validation_split=1.0)),
    Case("a negative split", ValueError, r"validation_split=-0\.1 is outside of \(0, 1\)", fit(validation_split=-0.1)),
    Case("a split above one", ValueError, r"validation_split=20 is outside of \(0, 1\)", fit(validation_split=20)),
    Case(
        "a split of nothing",
        ValueError,
        r"leaves 22 for training and 0|leaves 21|both need at least one",
        fit(X[:1], Y[:1], validation_split=0.1, batch_size=1),
    ),
    Case(
        "a split of batches",
        TypeError,
        r"validation_split needs arrays.*iterable",
        fit(batches((0, 8)), validation_split=0.5),
    ),
    Case(
        "split and data",
        ValueError,
        r"validation_data and validation_split were both given",
        fit(validation_split=0.5, validation_data=(X, Y)),
    ),
    Case(
        "validation lengths",
        ValueError,
        r"validation inputs has 22 rows but validation labels has 4",
        fit(validation_data=(X, Y[:4])),
    ),
    Case("empty validation", ValueError, r"the validation data is empty", fit(validation_data=(X[:0], Y[:0]))),
    Case("validation of four parts", ValueError, r"one to three parts", fit(validation_data=(X, Y, X, X))),
    Case(
        "validation steps beyond",
        ValueError,
        r"validation_steps=9 is beyond the data",
        fit(validation_data=(X, Y), validation_steps=9),
    ),
    Case(
        "validation batch size",
        ValueError,
        r"validation_batch_size must be a positive integer, not 0",
        fit(validation_data=(X, Y), validation_batch_size=0),
    ),
    *(
        Case(
            f"{name} without data",
            ValueError,
            f"{name}=2, but there is no validation data: pass validation_data or validation_split",
            fit(**{name: 2}),
        )
        for name in ("validation_steps", "validation_batch_size")
    ),
    Case("validation freq without data", ValueError, r"validation_freq=Every\(epochs=2\), but", fit(validation_freq=2)),
    Case(
        "validation by steps without data",
        ValueError,
        r"validation_freq=Every\(steps=5\), but there is no validation data",
        fit(validation_freq=eg.Every(steps=5)),
    ),
    Case(
        "validation freq",
        ValueError,
        r"validation_freq must be a positive integer, not 0",
        fit(validation_data=(X, Y), validation_freq=0),
    ),
    Case(
        "validation labels out of range",
        ValueError,
        r"the target contains 2",
        fit(X, CLASSES, validation_data=(X, CLASSES + 1)),
        classifier,
    ),
    Case(
        "validation inputs' shape",
        (TypeError, ValueError),
        r"(?s)dot_general|shape",
        fit(validation_data=(X[:, :2], Y)),
    ),
    Case(
        "validation without a test step",
        MissingMethodError,
        r"OnlyTrain does not say how to run the test step",
        fit(validation_data=(X, Y)),
        build=lambda **k: eg.Trainer(OnlyTrain(), optimizer=TX, **k),
    ),
    # callbacks
    Case(
        "a callback class",
        TypeError,
        r"callbacks\[\d\] is the class ACallback, not an instance: write `ACallback\(\.\.\.\)`",
        fit(callbacks=[ACallback]),
    ),
    Case(
        "a function as callback",
        TypeError,
        r"is not an elegy\.callbacks\.Callback.*LambdaCallback",
        fit(callbacks=[print]),
    ),
    Case("one callback, no list", TypeError, r"callbacks", fit(callbacks=ACallback())),
    # NaN
    Case(
        "NaN in inputs",
        ValueError,
        r"not finite \(NaN or infinity\): inputs has 3 of 66",
        fit(NAN, Y, check_inputs=True),
    ),
    Case(
        "NaN in validation",
        ValueError,
        r"not finite.*inputs has 3 of 66",
        fit(validation_data=(NAN, Y), check_inputs=True),
    ),
    Case(
        "NaN in the first batch",
        ValueError,
        r"batch 0.*not finite|not finite.*batch 0",
        fit(batches((0, 8), x=NAN), check_inputs=True),
    ),
    # evaluate and predict
    Case(
        "evaluate: lengths differ",
        ValueError,
        r"inputs has 22 rows but labels has 3",
        lambda t: t.evaluate(X, Y[:3], verbose=0),
    ),
    Case(
        "evaluate: batch size",
        ValueError,
        r"batch_size must be a positive integer, not 0",
        lambda t: t.evaluate(X, Y, batch_size=0, verbose=0),
    ),
    Case(
        "evaluate: steps",
        ValueError,
        r"steps=4 is beyond the data: 22 examples make 3 batches of 8",
        lambda t: t.evaluate(X, Y, batch_size=8, steps=4, verbose=0),
    ),
    Case("evaluate: empty", ValueError, r"empty", lambda t: t.evaluate(X[:0], Y[:0], verbose=0)),
    Case(
        "evaluate: labels out of range",
        ValueError,
        r"the target contains 2",
        lambda t: t.evaluate(X, CLASSES + 1, verbose=0),
        classifier,
    ),
    Case(
        "evaluate: nothing to evaluate",
        StepError,
        r"High has nothing to evaluate.*neither a loss nor metrics.*metrics=.*managed_test_step.*predict",
        lambda t: t.evaluate(X, Y, verbose=0),
        high(loss=None),
    ),
    Case(
        "test_on_batch: nothing to evaluate",
        StepError,
        r"High has nothing to evaluate",
        lambda t: t.test_on_batch(X, Y),
        high(loss=None),
    ),
    Case("predict: empty", ValueError, r"empty", lambda t: t.predict(X[:0])),
    Case("predict: text", TypeError, r"the inputs of predict are a str", lambda t: t.predict("x")),
    Case("predict: steps", ValueError, r"steps must be a positive integer, not -1", lambda t: t.predict(X, steps=-1)),
    Case("predict: inputs' shape", (TypeError, ValueError), r"(?s)dot_general|shape", lambda t: t.predict(X[:, :2])),
    # one batch
    Case(
        "train_on_batch: lengths",
        ValueError,
        r"inputs has 8 rows but labels has 7",
        lambda t: t.train_on_batch(X[:8], Y[:7]),
    ),
    Case(
        "train_on_batch: labels",
        ValueError,
        r"the target contains 2",
        lambda t: t.train_on_batch(X, CLASSES + 1),
        classifier,
    ),
    *(
        Case(
            f"{name}: {what}", kind, match.format(name=name), lambda t, name=name, given=given: getattr(t, name)(*given)
        )
        for name in ("init_on_batch", "train_on_batch", "test_on_batch", "predict_on_batch")
        for what, kind, match, given in (
            ("None", TypeError, r"the inputs of {name} are None\. Give an array", (None,)),
            ("a number", TypeError, r"the inputs of {name} are a float \(1\.0\)", (1.0,)),
            ("text", TypeError, r"the inputs of {name} are a str \('x'\)", ("x",)),
            ("a scalar", ValueError, "inputs is a scalar", (np.float32(1),)),
            ("nothing in a tree", ValueError, "the batch holds no array", ({},)),
            ("empty", ValueError, r"the data is empty: its arrays have 0 rows", (X[:0],)),
            ("None with labels", TypeError, "the inputs of {name} are None", (None, Y)),
            ("None in a tuple", TypeError, "the inputs of {name} are None", ((None, Y),)),
            ("empty with labels", ValueError, r"the data is empty: its arrays have 0 rows", (X[:0], Y[:0])),
        )
        if name != "predict_on_batch" or (len(given) == 1 and type(given[0]) is not tuple)
    ),
    Case(
        "train_on_batch: no optimizer",
        StepError,
        "no optimizer",
        lambda t: t.train_on_batch(X, Y),
        high(optimizer=None),
    ),
]


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES])
def test_before_the_first_batch_nothing_is_compiled_and_the_state_stays(case):
    nothing_is_compiled_and_the_state_stays(case)


@pytest.mark.parametrize(("case", "strategy"), with_strategies(CASES))
def test_afterwards_the_state_is_what_it_was(case, strategy):
    the_state_is_what_it_was(case, strategy)


@pytest.mark.parametrize(
    ("module", "kind", "match"),
    [
        (object(), TypeError, r"(?s)object.*(accept|Flax|ElegyModule)"),
        (High, TypeError, r"(?s)High"),
        (None, TypeError, r"(?s)None"),
    ],
)
def test_the_error_for_an_unknown_module_lists_what_is_accepted(module, kind, match):
    with pytest.raises(kind, match=match):
        eg.Trainer(module)


@pytest.mark.parametrize(
    ("kwargs", "kind", "match"),
    [
        ({"strategy": "jti"}, ValueError, r"unknown strategy 'jti'.*Did you mean 'jit'"),
        ({"optimizer": "adam"}, TypeError, r"must be an optax\.GradientTransformation.*not 'adam'"),
        ({"callbacks": [ACallback]}, TypeError, r"is the class ACallback, not an instance"),
        ({"loss": 3}, TypeError, r"3"),
        ({"metrics": 3}, TypeError, r"3"),
        *(({"seed": seed}, TypeError, rf"seed must be an integer.*not {seed!r}") for seed in ("a", None, 1.5, True)),
        ({"seed": jax.random.key(1)}, TypeError, "seed must be an integer such as 42, not a key"),
        ({"seed": 2**63}, ValueError, "seed must fit into 64 bits"),
    ],
)
def test_a_trainer_is_not_made_of_the_wrong_things(kwargs, kind, match):
    with pytest.raises(kind, match=match):
        eg.Trainer(High(), **kwargs)


@pytest.mark.parametrize("seed", [0, -3, 2**63 - 1, np.uint32(7), np.int64(-1)])
def test_every_whole_number_is_a_seed(seed):
    trainer = classifier(seed=seed)
    assert trainer.seed == int(seed)
    fit(X, Y)(trainer)

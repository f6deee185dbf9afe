"""Steps that return the wrong thing, batches that change, callbacks that raise: named, and nothing is lost."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax.numpy as jnp
import pytest
from bad_input import (
    NAN,
    Case,
    X,
    Y,
    batches,
    high,
    nothing_is_compiled_and_the_state_stays,
    the_state_is_what_it_was,
    with_strategies,
)
from boring_modules import TX, Core, High, Managed, Spy, assert_same_bits, host, trainer_of

import elegy as eg
from elegy.errors import StepError
from elegy.metrics import Mean


class Wrong(Managed):
    """A managed module whose training step returns what a function says."""

    answer: Any = eg.static_field(default=None)
    seen: Mean = eg.field(default_factory=Mean)
    spare: Any = eg.field(default_factory=lambda: jnp.zeros(2))

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        loss, state = super().managed_train_step(key, batch, batch_idx, epoch_idx)
        return self.answer.value(loss, state, batch)


class WrongCore(Core):
    """A core module whose training step returns what a function says."""

    answer: Any = eg.static_field(default=None)
    spare: Any = eg.field(default_factory=lambda: jnp.zeros(2))

    def train_step(self, batch, batch_idx, epoch_idx):
        logs, state = super().train_step(batch, batch_idx, epoch_idx)
        return self.answer.value(logs, state, batch_idx)


class WrongApply(High):
    answer: Any = eg.static_field(default=None)

    def apply(self, key, inputs, training):
        return self.answer.value(*super().apply(key, inputs, training))


class WrongInit(High):
    answer: Any = eg.static_field(default=None)

    def init(self, key, inputs):
        return self.answer.value(super().init(key, inputs))


class WithObject(High):
    name: Any = eg.field(default="an object")


def wrong(answer, level=Wrong):
    return lambda **kwargs: eg.Trainer(
        level(answer=eg.Static(answer)),
        **({"loss": eg.losses.MeanSquaredError()} if issubclass(level, High) else {}),
        **({} if issubclass(level, Core) else {"optimizer": TX}),
        **kwargs,
    )


CASES = [
    # what a step returns
    Case(
        "a loss that is not a scalar",
        StepError,
        r"the loss that Wrong\.managed_train_step returned is not a scalar: an array float32\[8\]",
        build=wrong(lambda loss, s, b: (b[0][:, 0], s)),
    ),
    Case(
        "a loss of integers",  # the derivative of a count is zero
        StepError,
        r"Wrong\.managed_train_step returned is an array int32\[\], and only floating numbers have a gradient",
        build=wrong(lambda loss, s, b: (jnp.sum(b[0] > 0), s)),
    ),
    Case(
        "one of several losses is a truth value",
        StepError,
        r"returned is an array bool\[\], and only floating numbers have a gradient",
        build=wrong(lambda loss, s, b: ({"w": loss > 0}, s)),
    ),
    Case(
        "a loss alone",
        StepError,
        r"Wrong\.managed_train_step must return \(loss, module\), but it returned an array float32\[\]",
        build=wrong(lambda loss, s, b: loss),
    ),
    Case(
        "nothing",
        StepError,
        r"must return \(loss, module\), but it returned None",
        build=wrong(lambda loss, s, b: None),
    ),
    Case(
        "the wrong order",
        StepError,
        r"must return a Wrong \(the new state\), but it returned an array",
        build=wrong(lambda loss, s, b: (s, loss)),
    ),
    Case("three things", StepError, r"but it returned a tuple of 3 \(", build=wrong(lambda loss, s, b: (loss, s, {}))),
    Case(
        "a dict as state",
        StepError,
        r"must return a Wrong \(the new state\), but it returned a dict",
        build=wrong(lambda loss, s, b: (loss, {})),
    ),
    Case(
        "another class",
        StepError,
        r"must return a Wrong \(the new state\), but it returned a High",
        build=wrong(lambda loss, s, b: (loss, High())),
    ),
    Case(
        "a dropped field",
        StepError,
        r"Wrong's train step changed the structure of the state: spare is gone \(it was float32\[2\]\)",
        build=wrong(lambda loss, s, b: (loss, s.replace(spare=None))),
    ),
    Case(
        "a grown field",
        StepError,
        r"spare was float32\[2\], now it is float32\[3\]",
        build=wrong(lambda loss, s, b: (loss, s.replace(spare=jnp.zeros(3)))),
    ),
    Case(
        "another dtype",
        StepError,
        r"spare was float32\[2\], now it is int32\[2\]",
        build=wrong(lambda loss, s, b: (loss, s.replace(spare=jnp.zeros(2, jnp.int32)))),
    ),
    Case(
        "a static value that changes",
        StepError,
        r"static value of answer changed",
        build=wrong(lambda loss, s, b: (loss, s.replace(answer=eg.Static(3)))),
    ),
    Case(
        "a metric without a field",
        ValueError,
        r"Wrong has no metric field 'acc'.*Metric fields: seen",
        build=wrong(lambda loss, s, b: (loss, s.log("acc", s.seen.batch_updates(values=loss)))),
    ),
    Case(
        "a vector in the logs",
        ValueError,
        r"log\('v', \.\.\.\).*its shape is \(8, 3\)",
        build=wrong(lambda loss, s, b: (loss, s.log("v", b[0]))),
    ),
    Case(
        "outputs alone from apply",
        StepError,
        r"WrongApply\.apply must return \(outputs, module\).*returned ArrayImpl|JitTracer|DynamicJaxprTracer|Tracer",
        build=wrong(lambda out, s: out, WrongApply),
    ),
    Case(
        "nothing from init",
        StepError,
        r"managed_init_step must return a WrongInit.*returned None",
        build=wrong(lambda s: None, WrongInit),
        ready=False,
    ),
    Case(
        "logs that are no dict",
        StepError,
        r"WrongCore\.train_step must return \(logs, module\) with a dict of logs.*an array float32\[\]",
        build=wrong(lambda logs, s, i: (logs["loss"], s), WrongCore),
    ),
    Case(
        "core: another class",
        StepError,
        r"train_step \(second element\) must return a WrongCore.*returned a High",
        build=wrong(lambda logs, s, i: (logs, High()), WrongCore),
    ),
    Case(
        "core: a dropped field",
        StepError,
        r"WrongCore\.train_step changed the structure of the state: spare is gone",
        build=wrong(lambda logs, s, i: (logs, s.replace(spare=None)), WrongCore),
    ),
    Case(
        "core: logs alone",
        StepError,
        r"train_step must return \(logs, module\), but it returned a dict",
        build=wrong(lambda logs, s, i: logs, WrongCore),
    ),
    # the state's leaves
    Case(
        "a leaf that is no array",
        TypeError,
        r"the leaf name of WithObject is a str \('an object'\).*static_field",
        build=lambda **k: trainer_of(WithObject, **k),
        ready=False,
    ),
    Case(
        "train_on_batch: step",
        StepError,
        r"it returned None",
        lambda t: t.train_on_batch(X, Y),
        wrong(lambda loss, s, b: None),
    ),
]


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES])
def test_before_the_first_batch_nothing_is_compiled_and_the_state_stays(case):
    nothing_is_compiled_and_the_state_stays(case)


@pytest.mark.parametrize(("case", "strategy"), with_strategies(CASES))
def test_afterwards_the_state_is_what_it_was(case, strategy):
    the_state_is_what_it_was(case, strategy)


# what only a later batch shows: the state is that after the last good step


def after(good, build, **kwargs):
    trainer = build(**kwargs)
    for batch in good:
        trainer.train_on_batch(*batch)
    return trainer


LATER = [
    (
        "another number of features",
        TypeError,
        r"This batch differs from the first: 0 was float32\[8,3\], now it is float32\[8,2\]",
        (X[:8, :2], Y[:8]),
    ),
    ("another tree", ValueError, r"batch 2 has the structure", ({"x": X[:8]}, Y[:8])),
    ("lengths", ValueError, r"batch 2: inputs has 8 rows but batch 2: labels has 7", (X[:8], Y[:7])),
    ("no array", TypeError, r"batch 2: inputs is an object, which is not an array", (object(), Y[:8])),
]


def notes_of(call):
    with pytest.raises(TypeError) as caught:
        call()
    return "\n".join(caught.value.__notes__)


@pytest.mark.parametrize(
    "call",
    [
        lambda trainer: trainer.predict(X[:, :2]),
        lambda trainer: trainer.evaluate(X[:, :2], Y, verbose=0),
        lambda trainer: trainer.fit(X[:, :2], Y, verbose=0),
        lambda trainer: trainer.fit(X, Y, validation_data=(X[:, :2], Y), verbose=0),
        lambda trainer: trainer.predict_on_batch(X[:4, :2]),
        lambda trainer: trainer.predict([X[:4, :2]]),
    ],
)
def test_inputs_unlike_those_of_the_training_are_named(call):
    """The error itself is the library's, and often has the shapes of parameters only."""
    trainer = trainer_of(High)
    trainer.fit(X, Y, batch_size=4, verbose=0)
    notes = notes_of(lambda: call(trainer))
    assert re.search(
        r"differ from those of the training: inputs was float32\[(\d+),3\], now it is float32\[\1,2\]\.", notes
    )
    assert trainer.predict(X[:5]).shape[0] == 5


@pytest.mark.parametrize(
    "call",
    [
        lambda trainer: trainer.predict(X[:4, :2]),
        lambda trainer: trainer.fit(X[:4, :2], Y[:4], verbose=0),
        lambda trainer: trainer.train_on_batch((X[:4, :2], Y[:4])),
    ],
)
def test_inputs_unlike_those_of_the_initialisation_are_named(call):
    trainer = trainer_of(High)
    trainer.init_on_batch((X[:6], Y[:6]))
    notes = notes_of(lambda: call(trainer))
    wanted = "with which the module was initialised: inputs was float32[4,3], now it is float32[4,2]."
    assert wanted in notes


def test_a_batch_that_failed_is_not_the_first():
    trainer = trainer_of(High)
    trainer.fit(X, Y, verbose=0)
    for bad in (X[:4, :2], X[:4, :1]):
        notes = notes_of(lambda bad=bad: trainer.predict_on_batch(bad))
        assert "inputs was float32[4,3]" in notes
        assert "differs from the first" not in notes


@pytest.mark.parametrize(("kind", "match", "bad"), [pytest.param(*c[1:], id=c[0]) for c in LATER])
@pytest.mark.parametrize("strategy", ["jit", "eager"])
def test_a_later_batch_of_another_form_is_named(kind, match, bad, strategy):
    good = batches((0, 8), (8, 16))
    trainer = trainer_of(High, strategy=strategy)
    with pytest.raises(kind) as caught:
        trainer.fit([*good, bad] if strategy == "jit" else iter([*good, bad]), verbose=0)
    assert re.search(match, "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())]))
    assert trainer.step == 2
    assert_same_bits(host(trainer.state), host(after(good, high(), strategy=strategy).state))
    trainer.fit(good, verbose=0)
    assert trainer.step == 4


class OtherLater:
    """Yields dicts from its second pass on."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        yield (X[:8], Y[:8]) if self.passes == 1 else {"x": X[:8], "y": Y[:8]}


def test_batches_of_another_structure_in_a_later_epoch_are_named():
    trainer = trainer_of(High)
    form = r"PyTreeDef\({'x': \*, 'y': \*}\), but the batches of earlier passes have PyTreeDef\(\(\*, \*\)\)"
    with pytest.raises(
        ValueError, match=r"^the first batch of this pass over the data of fit has the structure " + form
    ):
        trainer.fit(OtherLater(), epochs=2, verbose=0)
    assert trainer.step == 1
    assert_same_bits(host(trainer.state.params), host(after(batches((0, 8)), high()).state.params))


@pytest.mark.parametrize("reiterable", [True, False])
def test_nan_in_a_later_batch_is_named_when_asked_for(reiterable):
    good, bad = batches((4, 12), (12, 20)), batches((0, 8), x=NAN)
    trainer = trainer_of(High)
    with pytest.raises(ValueError, match=r"batch 2.*not finite|not finite.*batch 2"):
        trainer.fit([*good, *bad] if reiterable else iter([*good, *bad]), check_inputs=True, verbose=0)
    assert trainer.step == 2
    assert_same_bits(host(trainer.state), host(after(good, high()).state))


def test_an_exhausted_generator_in_a_later_epoch_is_named():
    good = batches((0, 8), (8, 16), (16, 22))
    trainer = trainer_of(High)
    with pytest.raises(
        ValueError, match=r"generator given to fit is exhausted: it yielded 3 batches before.*iterated again"
    ):
        trainer.fit((b for b in good), epochs=2, verbose=0)
    assert (trainer.step, trainer.epoch, trainer.history.epoch) == (3, 1, [0])
    assert len(trainer.history.history["loss"]) == 1
    reference = trainer_of(High)
    reference.fit(good, verbose=0)
    assert_same_bits(host(trainer.state), host(reference.state))


def test_steps_per_epoch_beyond_a_generator_is_named():
    trainer = trainer_of(High)
    with pytest.raises(
        ValueError, match=r"steps_per_epoch=3 is beyond the data: the generator had 2 batches for this pass"
    ):
        trainer.fit((b for b in batches((0, 8), (8, 16))), steps_per_epoch=3, verbose=0)
    assert trainer.step == 2
    assert_same_bits(host(trainer.state), host(after(batches((0, 8), (8, 16)), high()).state))


CHANGING = {
    "managed scalar": wrong(lambda loss, s, b: (loss, s.log("full" if len(b[0]) == 8 else "short", 1.0))),
    "managed scalar that ends": wrong(lambda loss, s, b: (loss, s.log("full", 1.0) if len(b[0]) == 8 else s)),
    "managed metric that ends": wrong(
        lambda loss, s, b: (loss, s.log("seen", s.seen.batch_updates(values=loss)) if len(b[0]) == 8 else s)
    ),
    "core": wrong(lambda logs, s, i: (logs if i < 2 else {**logs, "extra": 1.0}, s), WrongCore),
}


@pytest.mark.parametrize("build", [pytest.param(b, id=name) for name, b in CHANGING.items()])
@pytest.mark.parametrize("strategy", ["jit", "eager"])
def test_logs_whose_keys_change_are_an_error(build, strategy):
    trainer, reference = build(strategy=strategy), build(strategy=strategy)
    with pytest.raises(StepError, match=r"the logs of the train step changed: it used to log .*, now it logs "):
        trainer.fit(X, Y, batch_size=8, shuffle=False, steps_per_execution=1, verbose=0)
    assert trainer.step == 2
    reference.fit(X, Y, batch_size=8, shuffle=False, steps_per_execution=1, max_steps=2, verbose=0)
    assert_same_bits(host(trainer.state), host(reference.state))


@pytest.mark.parametrize("hook", eg.callbacks.HOOKS)
@pytest.mark.some(6, also=["on_train_batch_begin"])
def test_a_callback_that_raises_is_named_and_the_state_is_intact(hook):
    class Broken(eg.Callback):
        batch_hooks_read = "state"

    def fail(event):
        raise KeyError("oops")

    broken = Broken()
    setattr(broken, hook, fail)
    trainer = trainer_of(High)
    trainer.init_on_batch(X[:8], Y[:8])
    steps = []
    count = Spy("on_train_batch_end", lambda event: steps.append(host(event.trainer.state)))
    start = host(trainer.state)
    often = eg.Every(steps=2) if hook == "on_evaluation_end" else 1  # the hook is of evaluations inside of an epoch
    validation = {"validation_data": (X, Y), "validation_freq": often}
    run = (
        functools.partial(trainer.predict, X, callbacks=[broken])
        if "predict" in hook
        else functools.partial(trainer.fit, X, Y, callbacks=[count, broken], verbose=0, **validation)
    )
    with pytest.raises(KeyError, match="oops") as caught:
        run(batch_size=8)
    assert [f"Broken.{hook}" in note for note in caught.value.__notes__] == [True]
    assert trainer.step == len(steps)
    assert_same_bits(host(trainer.state.params), host_of_params(trainer, steps[-1] if steps else start))
    trainer.fit(X, Y, batch_size=8, verbose=0)


@pytest.mark.parametrize("phase", ["train", "test", "predict"])
def test_the_error_that_ends_a_run_is_raised_even_if_its_end_raises(phase):
    class Pruned(Exception):
        pass

    class Prune(eg.Callback):
        pass

    def fail(error):
        raise error

    prune = Prune()
    setattr(prune, f"on_{phase}_batch_end", lambda event: fail(Pruned("at 1")))
    setattr(prune, f"on_{phase}_end", lambda event: fail(OSError("disk")))
    trainer = trainer_of(High)
    run = {
        "train": trainer.fit,
        "test": trainer.evaluate,
        "predict": lambda x, y, **kwargs: trainer.predict(x, **kwargs),
    }
    with pytest.raises(Pruned) as caught:
        run[phase](X, Y, batch_size=8, callbacks=[prune], verbose=0)
    where, after = caught.value.__notes__
    assert f"Prune.on_{phase}_batch_end" in where
    assert after == f"Afterwards Prune.on_{phase}_end raised OSError: disk."


def test_the_end_of_a_partially_read_prediction_may_raise():
    def fail(event):
        raise OSError("disk")

    outputs = trainer_of(High).predict_iter(
        X, batch_size=8, callbacks=[eg.callbacks.LambdaCallback(on_predict_end=fail)]
    )
    next(outputs)
    with pytest.raises(OSError, match="disk"):
        outputs.close()


def host_of_params(trainer, leaves):
    """The parameters among the leaves of a whole state, which begin with the key."""
    return leaves[1 : 1 + len(host(trainer.state.params))]


@pytest.mark.parametrize("k", [1, 2, 8])
def test_after_a_callback_raised_counters_and_state_belong_together(k):
    """Several steps may be done when the first of them is told of."""

    def fail(event):
        if event.step == 5:
            raise KeyError("oops")

    trainer, reference = trainer_of(High), trainer_of(High)
    with pytest.raises(KeyError, match="oops"):
        trainer.fit(
            X,
            Y,
            batch_size=8,
            epochs=2,
            steps_per_execution=k,
            callbacks=[Spy("on_train_batch_end", fail, "logs")],
            verbose=0,
        )
    reference.fit(X, Y, batch_size=8, epochs=2, steps_per_execution=k, max_steps=trainer.step, verbose=0)
    assert trainer.step >= 5
    assert_same_bits(host(trainer.state), host(reference.state))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda trainer: trainer.set_strategy("eager"), "the strategy cannot change while fit runs"),
        (
            lambda trainer: trainer.init_on_batch(X[:8], Y[:8]),
            r"cannot be made anew while fit runs.*trainer\.state = ",
        ),
    ],
    ids=["set_strategy", "init_on_batch"],
)
@pytest.mark.parametrize("hook", ["on_train_begin", "on_train_batch_end", "on_epoch_end"])
def test_what_a_run_stands_on_cannot_change_while_it_runs(hook, change, match):
    trainer, reference = trainer_of(High), trainer_of(High)
    with pytest.raises(RuntimeError, match=match):
        trainer.fit(X, Y, batch_size=8, callbacks=[Spy(hook, lambda event: change(event.trainer))], verbose=0)
    assert trainer.strategy == reference.strategy
    if trainer.step:
        reference.fit(X, Y, batch_size=8, max_steps=trainer.step, verbose=0)
        assert_same_bits(host(trainer.state), host(reference.state))
    change(trainer)

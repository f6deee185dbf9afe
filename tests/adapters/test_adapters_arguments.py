from collections import namedtuple

import flax.linen as nn
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.adapters.arguments import call_arguments

Pair = namedtuple("Pair", "a b")


def one(x): ...
def two(x, y): ...
def optional(x, mask=None): ...
def flagged(x, train, y=None): ...
def keyword(x, *, training=False, key=None): ...
def anything(*args, **kwargs): ...
def keywords_only(**kwargs): ...
def inverted(x, deterministic, use_running_average): ...
def is_training(x, is_training): ...
def positional(x, y, /): ...


@pytest.mark.parametrize(
    ("function", "inputs", "args", "kwargs"),
    [
        (one, 1, (1,), {}),
        (one, (1, 2), ((1, 2),), {}),
        (one, {"x": 1}, (), {"x": 1}),
        (one, {"image": 1}, ({"image": 1},), {}),
        (one, {}, ({},), {}),
        (two, (1, 2), (1, 2), {}),
        (two, [1, 2], ([1, 2],), {}),
        (two, {"y": 2, "x": 1}, (), {"x": 1, "y": 2}),
        (two, {"x": 1, "z": 2}, ({"x": 1, "z": 2},), {}),
        (two, {0: 1}, ({0: 1},), {}),
        (two, (1, 2, 3), ((1, 2, 3),), {}),
        (two, Pair(1, 2), (Pair(1, 2),), {}),
        (optional, (1,), (1,), {}),
        (optional, (1, 2), (1, 2), {}),
        (flagged, 1, (1,), {"train": True}),
        (flagged, (1, 2), (1,), {"train": True, "y": 2}),
        (keyword, 1, (1,), {"training": True, "key": "k"}),
        (keyword, {"x": 1, "key": 2}, ({"x": 1, "key": 2},), {"training": True, "key": "k"}),
        (anything, (1, 2), (1, 2), {}),
        (anything, {"x": 1}, ({"x": 1},), {}),
        (keywords_only, {"x": 1}, (), {"x": 1}),
        (inverted, 1, (1,), {"deterministic": False, "use_running_average": False}),
        (is_training, 1, (1,), {"is_training": True}),
        (positional, (1, 2), (1, 2), {}),
        (positional, {"x": 1, "y": 2}, ({"x": 1, "y": 2},), {}),
        (min, (1, 2), (1, 2), {}),
    ],
)
def test_inputs_are_spread_over_the_parameters(function, inputs, args, kwargs):
    assert call_arguments(function, inputs, True, extra={"key": "k"}) == (args, kwargs)


def test_the_mode_is_inverted_outside_of_training():
    assert call_arguments(inverted, 1, False)[1] == {"deterministic": True, "use_running_average": True}
    assert call_arguments(is_training, 1, False)[1] == {"is_training": False}


def test_skipped_and_hidden_parameters_are_not_filled():
    def call(params, x, state=None, y=None): ...

    assert call_arguments(call, (1, 2), True, skip=1, hide=("state",)) == ((1,), {"y": 2})


@pytest.mark.parametrize(("name", "in_training"), [("is_train", True), ("inference", False)])
def test_these_names_ask_for_the_mode_too(name, in_training):
    namespace: dict = {}
    exec(f"def call(x, {name}=None): ...", namespace)
    for training in (True, False):
        assert call_arguments(namespace["call"], 1, training) == ((1,), {name: in_training == training})


def test_what_only_looks_like_the_mode_is_told():
    def call(x, evaluating=False): ...

    with pytest.warns(UserWarning, match="evaluating=False keeps its default in training and outside of it"):
        assert call_arguments(call, 1, False) == ((1,), {})
    assert call_arguments(call, {"x": 1, "evaluating": True}, False) == ((), {"x": 1, "evaluating": True})


def test_a_module_that_asks_for_inference_predicts_with_its_statistics():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, inference=False):
            return nn.BatchNorm(use_running_average=inference)(nn.Dense(2)(x))

    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    trainer = eg.Trainer(Net(), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    trainer.fit(x, x[:, :2], batch_size=8, verbose=0)
    expected = Net().apply(trainer.variables(), x, inference=True)
    np.testing.assert_allclose(trainer.predict(x, batch_size=5), expected, rtol=1e-5, atol=1e-6)

"""ElegyModule without a Trainer: pure functions at three levels, alone and mixed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import (
    TX,
    Core,
    High,
    Managed,
    assert_same_bits,
    bare_loop,
    make_params,
    network,
    regression,
    squares,
)

import elegy as eg
from elegy.errors import MissingMethodError, StepError
from elegy.metrics import LossesAndMetrics
from elegy.module.levels import level_of

X, Y = regression(24)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]
CLOSE = {"rtol": 2e-5, "atol": 1e-6}  # float32, sums in another order than the reference's


def module_of(level):
    if level is Core:
        return Core()
    module = level(optimizer=eg.Optimizer(TX))
    if level is High:
        module = module.replace(losses_and_metrics=LossesAndMetrics(eg.losses.MeanSquaredError()))
    return module


LEVELS = pytest.mark.parametrize("level", [High, Managed, Core])


def after_first_step(level):
    state = module_of(level).init_step(jax.random.key(0), BATCHES[0])
    return state, state.train_step(BATCHES[0], 0, 0)[1]


@LEVELS
@pytest.mark.parametrize("compiled", [False, True])
def test_steps_outside_of_a_trainer_follow_the_bare_loop(level, compiled):
    state = module_of(level).init_step(jax.random.key(0), BATCHES[0])
    start = jax.tree.map(np.array, state.params)
    # A core step of this class asserts that its indices are Python ints, so they are constants of the trace.
    train = (lambda s, b, i: s.train_step(b, i, 0)) if not compiled else jax.jit(lambda s, b, i: s.train_step(b, 1, 0))
    for index, batch in enumerate(BATCHES):
        logs, state = train(state, batch, index)
    params, losses, _ = bare_loop(start, X, Y, epochs=1, shuffle=False)
    for name in params:
        np.testing.assert_allclose(state.params[name], params[name], **CLOSE)
    np.testing.assert_allclose(logs["loss"], losses[0], **CLOSE)


@LEVELS
def test_steps_are_pure(level):
    _, later = after_first_step(level)
    before = jax.tree.map(np.array, jax.tree.map(_data, later))
    one, two = later.train_step(BATCHES[1], 1, 0), later.train_step(BATCHES[1], 1, 0)
    assert_same_bits(one[1], two[1])
    assert_same_bits(before, jax.tree.map(_data, later))


def _data(leaf):
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


@LEVELS
def test_the_structure_of_the_state_is_constant_after_the_first_step(level):
    _, state = after_first_step(level)
    for phase in (
        lambda s: s.train_step(BATCHES[1], 1, 0)[1],
        lambda s: s.reset_step(),
        lambda s: s.pred_step(X[:4], 0)[1],
    ):
        after = phase(state)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            assert (jnp.shape(a), jnp.result_type(a)) == (jnp.shape(b), jnp.result_type(b))
    _, tested = state.test_step(BATCHES[0], 0)
    _, again = tested.test_step(BATCHES[1], 1)
    assert jax.tree.structure(again) == jax.tree.structure(tested)


@LEVELS
def test_scan_over_train_steps(level):
    _, state = after_first_step(level)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *BATCHES[1:])

    def body(state, batch):
        logs, state = state.train_step(batch, 0, 0)
        return state, logs["loss"]

    scanned, losses = jax.lax.scan(body, state, stacked)
    for batch in BATCHES[1:]:
        logs, state = state.train_step(batch, 0, 0)
    np.testing.assert_allclose(losses[-1], logs["loss"], **CLOSE)
    for name, value in state.params.items():
        np.testing.assert_allclose(scanned.params[name], value, **CLOSE)


@LEVELS
def test_grad_through_a_training_step(level):
    """A gradient of what one step brings, by the state before it: the step itself is differentiable."""
    state, _ = after_first_step(level)

    def after_one_step(bias):
        params = {**state.params, "b": bias}
        return squares(state.replace(params=params).train_step(BATCHES[0], 0, 0)[1].params, X, Y).sum()

    grad = jax.grad(after_one_step)(state.params["b"])
    eps = 1e-2
    for i in range(2):
        step = jnp.zeros(2).at[i].set(eps)
        numeric = (after_one_step(state.params["b"] + step) - after_one_step(state.params["b"] - step)) / (2 * eps)
        np.testing.assert_allclose(grad[i], numeric, rtol=2e-2)  # central differences of float32


@LEVELS
def test_pred_step_computes_the_network(level):
    _, state = after_first_step(level)
    outputs, _ = state.pred_step(X, 0)
    np.testing.assert_allclose(outputs, network(state.params, X), rtol=1e-6)


@LEVELS
def test_test_steps_average_over_examples(level):
    _, state = after_first_step(level)
    params = state.params
    state = state.reset_step()
    for start, stop in ((0, 8), (8, 24), (5, 6)):
        logs, state = state.test_step((X[start:stop], Y[start:stop]), 0)
    rows = np.concatenate([np.arange(24), [5]])
    np.testing.assert_allclose(logs["loss"], np.mean(squares(params, X[rows], Y[rows])), **CLOSE)
    assert_same_bits(params, state.params)


# levels


def test_level_of_reads_the_class():
    table = {
        High: {"init": "high", "train": "high", "test": "high", "pred": "high"},
        Managed: {"init": "managed", "train": "managed", "test": "managed", "pred": "managed"},
        Core: {"init": "core", "train": "core", "test": "core", "pred": "core"},
    }
    for cls, levels in table.items():
        assert {phase: level_of(cls, phase) for phase in levels} == levels


class Mixed(High):
    """High level, but for its own training and evaluation."""

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        x, y = batch
        outputs, state = self.apply(key, x, True)
        return jnp.mean((outputs - y) ** 2), state.log("mae", jnp.mean(jnp.abs(outputs - y)))

    def test_step(self, batch, batch_idx):
        x, y = batch
        outputs, _ = self.pred_step(x, batch_idx)
        return {"worst": jnp.max(jnp.abs(outputs - y))}, self


def test_levels_mix_per_phase():
    assert [level_of(Mixed, p) for p in ("init", "train", "test", "pred")] == ["high", "managed", "core", "high"]
    state = Mixed(optimizer=eg.Optimizer(TX)).init_step(jax.random.key(0), BATCHES[0])
    start = jax.tree.map(np.array, state.params)
    logs, state = state.train_step(BATCHES[0], 0, 0)
    expected = np.abs(network(start, X[:8]) - Y[:8])
    assert list(logs) == ["loss", "mae"]
    np.testing.assert_allclose(logs["mae"], expected.mean(), rtol=1e-5)
    logs, state = state.test_step(BATCHES[0], 0)
    np.testing.assert_allclose(logs["worst"], np.abs(network(state.params, X[:8]) - Y[:8]).max(), rtol=1e-5)
    np.testing.assert_allclose(state.pred_step(X, 0)[0], network(state.params, X), rtol=1e-6)


def test_a_subclass_overrides_a_level_of_its_parent():
    class Louder(Managed):
        def train_step(self, batch, batch_idx, epoch_idx):
            logs, state = super().train_step(batch, batch_idx, epoch_idx)
            return {**logs, "twice": 2 * logs["loss"]}, state

    assert level_of(Louder, "train") == "core"
    state = Louder(optimizer=eg.Optimizer(TX)).init_step(jax.random.key(0), BATCHES[0])
    logs, after = state.train_step(BATCHES[0], 0, 0)
    np.testing.assert_array_equal(logs["twice"], 2 * logs["loss"])
    plain, same = Managed.train_step(state, BATCHES[0], 0, 0)
    np.testing.assert_array_equal(plain["loss"], logs["loss"])
    assert_same_bits(after, same)


@pytest.mark.parametrize(
    ("call", "ways"),
    [
        (
            lambda m: m.init_step(jax.random.key(0), BATCHES[0]),
            ["init(self, key, inputs)", "managed_init_step", "init_step(self, key, batch)"],
        ),
        (
            lambda m: m.train_step(BATCHES[0], 0, 0),
            [
                "apply(self, key, inputs, training)",
                "managed_train_step",
                "train_step(self, batch, batch_idx, epoch_idx)",
            ],
        ),
        (
            lambda m: m.test_step(BATCHES[0], 0),
            ["apply(self, key, inputs, training)", "managed_test_step", "test_step(self, batch, batch_idx)"],
        ),
        (
            lambda m: m.pred_step(X, 0),
            ["apply(self, key, inputs, training)", "managed_pred_step", "pred_step(self, batch, batch_idx)"],
        ),
        (lambda m: m.apply(jax.random.key(0), X, False), ["apply(self, key, inputs, training)"]),
    ],
    ids=["init", "train", "test", "pred", "apply"],
)
def test_the_error_for_a_module_without_steps_lists_the_three_levels(call, ways):
    class Empty(eg.ElegyModule):
        pass

    module = Empty(
        key=jax.random.key(0), params={"w": jnp.ones(2)}, optimizer=eg.Optimizer(TX).init({"w": jnp.ones(2)})
    )
    with pytest.raises(MissingMethodError) as caught:
        call(module)
    assert "Empty" in str(caught.value)
    for way in ways:
        assert way in str(caught.value)


def test_a_module_with_parameters_of_its_own_needs_no_init():
    class Ready(eg.ElegyModule):
        def apply(self, key, inputs, training):
            return network(self.params, inputs), self

    params = make_params(jax.random.key(5))
    state = Ready(params=params, optimizer=eg.Optimizer(TX)).init_step(jax.random.key(0), BATCHES[0])
    assert_same_bits(state.params, params)
    with pytest.raises(MissingMethodError, match="init"):
        Ready(optimizer=eg.Optimizer(TX)).init_step(jax.random.key(0), BATCHES[0])


def test_steps_before_init_step_say_so():
    with pytest.raises(StepError, match=r"no random key yet.*init_step"):
        module_of(High).train_step(BATCHES[0], 0, 0)


def test_training_without_an_optimizer_says_so():
    state = module_of(Managed).init_step(jax.random.key(0), BATCHES[0]).replace(optimizer=None)
    with pytest.raises(StepError, match="no optimizer"):
        state.train_step(BATCHES[0], 0, 0)


# what the driver does for a step


def test_each_step_gets_a_key_of_its_own_and_the_state_another():
    seen = []

    class Keys(Managed):
        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            seen.append(("train", _words(key)))
            return super().managed_train_step(key, batch, batch_idx, epoch_idx)

        def managed_pred_step(self, key, batch, batch_idx):
            seen.append(("pred", _words(key)))
            return super().managed_pred_step(key, batch, batch_idx)

    def _words(key):
        assert jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
        return tuple(jax.random.key_data(key).tolist())

    with jax.disable_jit():
        state = Keys(optimizer=eg.Optimizer(TX)).init_step(jax.random.key(0), BATCHES[0])
        keys = [_words(state.key)]
        for _ in range(3):
            _, state = state.train_step(BATCHES[0], 0, 0)
            keys.append(_words(state.key))
        _, state = state.pred_step(X, 0)
    used = [words for _, words in seen]
    assert len(used) == 4
    assert len({*used, *keys}) == len(used) + len(keys)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_the_keys_of_first_states_and_of_initialisations_are_all_different(impl):
    """Also those that a state has after some steps, and those of other seeds."""

    class Keys(Managed):
        def managed_init_step(self, key, batch):
            given.append(np.asarray(jax.random.key_data(key)))
            return super().managed_init_step(key, batch)

    given = []
    keys = [jax.random.key(seed, impl=impl) for seed in range(20)]
    states = [Keys(optimizer=eg.Optimizer(TX)).init_step(key, BATCHES[0]) for key in keys]
    for _ in range(5):
        given += [np.asarray(jax.random.key_data(state.key)) for state in states]
        states = [state.train_step(BATCHES[0], 0, 0)[1] for state in states]
    given += [np.asarray(jax.random.key_data(key)) for key in keys]
    assert len({tuple(words.tolist()) for words in given}) == len(given) == 20 * 7


def test_managed_steps_get_their_indices():
    class Indexed(Managed):
        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            loss, state = super().managed_train_step(key, batch, batch_idx, epoch_idx)
            return loss, state.log("place", 100 * epoch_idx + batch_idx, reduce="last")

    state = Indexed(optimizer=eg.Optimizer(TX)).init_step(jax.random.key(0), BATCHES[0])
    logs, _ = state.train_step(BATCHES[0], 7, 3)
    assert float(logs["place"]) == 307.0


def test_only_what_get_params_returns_is_moved():
    class Partly(eg.ElegyModule):
        frozen: Any = None

        def init(self, key, inputs):
            return self.replace(params=make_params(key), frozen=jnp.ones(2))

        def apply(self, key, inputs, training):
            return network(self.params, inputs) * self.frozen, self

        def get_params(self):
            return {"w": self.params["w"]}

        def set_params(self, params):
            return self.replace(params={**self.params, **params})

    module = Partly(
        optimizer=eg.Optimizer(optax.adam(0.1)), losses_and_metrics=LossesAndMetrics(eg.losses.MeanSquaredError())
    )
    state = module.init_step(jax.random.key(0), BATCHES[0])
    _, after = state.train_step(BATCHES[0], 0, 0)
    assert not np.array_equal(after.params["w"], state.params["w"])
    assert_same_bits((after.params["b"], after.frozen), (state.params["b"], state.frozen))
    assert jax.tree.structure(optax.tree_utils.tree_get(after.optimizer.state, "mu")) == jax.tree.structure(
        state.get_params()
    )


def test_batch_stats_of_a_step_are_kept():
    class Counting(High):
        def init(self, key, inputs):
            return super().init(key, inputs).replace(batch_stats={"mean": jnp.zeros(3)})

        def apply(self, key, inputs, training):
            outputs, state = super().apply(key, inputs, training)
            mean = jnp.mean(inputs, 0) if training else self.batch_stats["mean"]
            return outputs, state.replace(batch_stats={"mean": mean})

    state = module_of(High)
    state = Counting(optimizer=state.optimizer, losses_and_metrics=state.losses_and_metrics)
    state = state.init_step(jax.random.key(0), BATCHES[0])
    _, state = state.train_step(BATCHES[0], 0, 0)
    np.testing.assert_allclose(state.batch_stats["mean"], X[:8].mean(0), rtol=1e-5)
    _, tested = state.test_step(BATCHES[1], 0)
    assert_same_bits(tested.batch_stats, state.batch_stats)


def test_batches_of_inputs_alone_and_with_weights():
    class AutoEncoder(eg.ElegyModule):
        def init(self, key, inputs):
            return self.replace(params={"w": jnp.eye(3) * 0.5})

        def apply(self, key, inputs, training):
            return inputs @ self.params["w"], self

    def reconstruction(inputs, preds):
        return jnp.mean((inputs - preds) ** 2, -1)

    module = AutoEncoder(optimizer=eg.Optimizer(TX), losses_and_metrics=LossesAndMetrics(reconstruction))
    state = module.init_step(jax.random.key(0), X)
    logs, _ = state.train_step(X, 0, 0)
    np.testing.assert_allclose(logs["loss"], np.mean((X / 2) ** 2), rtol=1e-5)
    w = np.arange(24, dtype=np.float32)
    logs, _ = state.train_step((X, None, w), 0, 0)
    np.testing.assert_allclose(logs["loss"], np.sum(w * np.mean((X / 2) ** 2, -1)) / w.sum(), rtol=1e-5)


class Drawing(eg.ElegyModule):
    """Its output is a draw."""

    def init(self, key, inputs):
        return self.replace(params={"w": jnp.zeros(())})

    def apply(self, key, inputs, training):
        draw = jax.random.uniform(key)
        return jnp.full((len(inputs), 1), draw) + self.params["w"], self.log("draw", draw)


def test_no_two_steps_draw_the_same():
    x = np.zeros((4, 1), np.float32)
    trainer = eg.Trainer(Drawing(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.0))
    drawn = []
    for _ in range(3):
        drawn.append(float(trainer.predict(x).ravel()[0]))
        drawn.append(trainer.evaluate(x, x, verbose=0)["draw"])
        trainer.state = trainer.state.reset_step()
        drawn.append(trainer.train_on_batch(x, x)["draw"])
    assert len({round(value, 6) for value in drawn}) == 9

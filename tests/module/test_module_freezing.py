"""Frozen parameters and groups of optimizers, against bare Optax loops over the trained parameters alone."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import Core, assert_same_bits, regression
from flax import nnx
from some_cases import some

import elegy as eg
from elegy.errors import CheckpointError, NonFiniteError, StepError
from elegy.losses import MeanSquaredError
from elegy.names import path_name
from elegy.strategies import FSDP, DataParallel

X, Y = regression(16)
BATCH = 8
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of microbatches and replicas, in another order


def make_params():
    body, head = (jnp.sin(jnp.arange(size, dtype=jnp.float32)) for size in (12, 8))
    return {"backbone": {"w": body.reshape(3, 4)}, "head": {"w": head.reshape(4, 2), "b": jnp.zeros(2)}}


def network(params, x):
    return jnp.tanh(x @ params["backbone"]["w"]) @ params["head"]["w"] + params["head"]["b"]


def loss_of(params, x, y):
    return jnp.mean((network(params, x) - y) ** 2)


class High(eg.ElegyModule):
    def init(self, key, inputs):
        return self.replace(params=make_params())

    def apply(self, key, inputs, training):
        return network(self.params, inputs), self


class Managed(eg.ElegyModule):
    def managed_init_step(self, key, batch):
        return self.replace(params=make_params())

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return loss_of(self.params, *batch), self


def make(cls=High, optimizer=None, freeze="backbone/*", **kwargs):
    loss = MeanSquaredError() if cls is High else None
    return eg.Trainer(cls(), loss, optimizer=optimizer or optax.adam(0.1), freeze=freeze, **kwargs)


def train(trainer, epochs=2, **kwargs):
    return trainer.fit(X, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, **kwargs)


def bare(tx, params, trained, epochs=2, state=None):
    """Trains `params[name]` for the names in `trained`; the others are constants."""
    part = {name: params[name] for name in trained}
    state = tx.init(part) if state is None else state

    @jax.jit
    def step(part, state, x, y):
        grads = jax.grad(lambda part: loss_of({**params, **part}, x, y))(part)
        updates, state = tx.update(grads, state, part)
        return optax.apply_updates(part, updates), state

    for _ in range(epochs):
        for i in range(0, len(X), BATCH):
            part, state = step(part, state, X[i : i + BATCH], Y[i : i + BATCH])
    return {**params, **part}, state


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), actual, expected)


SETTINGS = {
    "high": (High, {}),
    "eager": (High, {"strategy": "eager"}),
    "replicas": (Managed, {"strategy": lambda: DataParallel(2)}),
    "sharded": (High, {"strategy": lambda: FSDP({"data": 2}, min_size=2)}),
    "microbatches": (High, {"accumulate": 3}),
    "managed microbatches": (Managed, {"accumulate": 2, "strategy": lambda: FSDP({"data": 2}, min_size=2)}),
    "guarded": (Managed, {"nonfinite": "skip"}),
    "averaged": (High, {"averaging": eg.SWA(), "nonfinite": "raise"}),
}


@pytest.mark.parametrize(("cls", "options"), some(SETTINGS.values(), 4), ids=SETTINGS)
def test_only_the_others_are_trained(cls, options):
    """With weight decay, which leaves frozen parameters alone."""
    options = {name: value() if callable(value) else value for name, value in options.items()}
    tx = optax.adamw(0.1, weight_decay=0.3)
    trainer = make(cls, tx, **options)
    train(trainer)
    expected, _ = bare(tx, make_params(), ["head"])
    assert_close(trainer.state.params, expected)
    assert_same_bits(trainer.state.params["backbone"], make_params()["backbone"])
    assert trainer.frozen == ["backbone/w"]
    if trainer.state.averaged_params is not None:
        average = trainer.state.averaged_params.params(trainer.state.params)
        assert_close(average["backbone"], make_params()["backbone"])


@pytest.mark.parametrize("name", some(["high", "replicas", "managed microbatches"], 2))
def test_groups_train_as_a_partition(name):
    cls, options = SETTINGS[name]
    options = {name: value() if callable(value) else value for name, value in options.items()}
    groups = {"head/*": optax.adam(0.1), "*": optax.adamw(0.01, weight_decay=0.3)}
    trainer = make(cls, groups, freeze=(), **options)
    train(trainer)
    tx = optax.partition(groups, {"backbone": "*", "head": "head/*"})
    assert_close(trainer.state.params, bare(tx, make_params(), ["backbone", "head"])[0])


def test_no_gradient_and_no_optimizer_state_of_frozen_parameters():
    flops = {}
    for freeze in ((), "deep/*"):
        trainer = eg.Trainer(Deep(), MeanSquaredError(), optimizer=optax.sgd(0.1), freeze=freeze)
        trainer.init_on_batch(WIDE, WIDE)
        step = jax.jit(lambda state, batch: state.train_step(batch, 0, 0))
        flops[freeze] = step.lower(trainer.state, (WIDE, WIDE)).compile().cost_analysis()["flops"]
    # The three products of a layer: forward, gradient of the weights, gradient of the inputs. Frozen: the first alone.
    assert 0.30 < flops["deep/*"] / flops[()] < 0.40
    trainer = make()
    trainer.init_on_batch(X, Y)
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(trainer.state.optimizer.state)}
    assert shapes == {(), (4, 2), (2,)}


WIDE = np.ones((64, 128), np.float32)


class Deep(eg.ElegyModule):
    def init(self, key, inputs):
        return self.replace(params={"deep": [jnp.eye(128)] * 8, "scale": jnp.ones(())})

    def apply(self, key, inputs, training):
        for weight in self.params["deep"]:
            inputs = jnp.tanh(inputs @ weight)
        return inputs * self.params["scale"], self


def test_freezing_keeps_the_state_of_the_others_and_unfreezing_begins_with_zeros():
    tx = optax.adam(0.1)
    trainer = make(Managed, tx, freeze=())
    train(trainer)
    whole, before = trainer.state.params, trainer.state.optimizer.state[0]
    trainer.freeze("backbone/*")
    adam = trainer.state.optimizer.state[0]
    assert_same_bits(
        (adam.count, adam.mu["head"], adam.nu["head"]), (before.count, before.mu["head"], before.nu["head"])
    )
    train(trainer)
    # By hand: Adam over the head, from its old moments.
    _, state = bare(tx, make_params(), ["backbone", "head"])
    head = (state[0]._replace(mu={"head": state[0].mu["head"]}, nu={"head": state[0].nu["head"]}), state[1])
    expected, state = bare(tx, whole, ["head"], state=head)
    assert_close(trainer.state.params, expected)
    trainer.unfreeze("*")
    zeros = jax.tree.map(jnp.zeros_like, whole["backbone"])
    mu, nu = ({"backbone": zeros, **tree} for tree in (state[0].mu, state[0].nu))
    assert_close(trainer.state.optimizer.state[0], state[0]._replace(mu=mu, nu=nu))
    train(trainer)
    expected, _ = bare(tx, expected, ["backbone", "head"], state=(state[0]._replace(mu=mu, nu=nu), state[1]))
    assert_close(trainer.state.params, expected)


def test_a_group_that_was_frozen_begins_with_its_own_counter():
    groups = {"head/*": optax.adam(0.1), "*": optax.adam(optax.linear_schedule(0.0, 0.1, 4))}
    trainer = make(optimizer=groups)
    train(trainer)
    assert list(trainer.state.optimizer.state.inner_states) == ["head/*"]
    head = trainer.state.optimizer.state.inner_states["head/*"]
    trainer.unfreeze("backbone/*")
    assert_same_bits(
        trainer.state.optimizer.state.inner_states["head/*"].inner_state[0].mu["head"], head.inner_state[0].mu["head"]
    )
    frozen, state = bare(groups["head/*"], make_params(), ["head"])
    tx = optax.partition(groups, {"backbone": "*", "head": "head/*"})
    parts = tx.init(frozen).inner_states
    moments = [{"backbone": optax.MaskedNode(), **tree} for tree in (state[0].mu, state[0].nu)]
    grown = (state[0]._replace(mu=moments[0], nu=moments[1]), state[1])
    parts = {"*": parts["*"], "head/*": parts["head/*"]._replace(inner_state=grown)}
    train(trainer)
    expected, _ = bare(tx, frozen, ["backbone", "head"], state=optax.transforms.PartitionState(parts))
    assert_close(trainer.state.params, expected)


WRAPPERS = {
    "lookahead": lambda: optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5),
    "several steps": lambda: optax.MultiSteps(optax.adam(0.1), 2),
    "sam": lambda: optax.contrib.sam(optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05))),
    "backtracking": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
    "masked decay": lambda: optax.adamw(0.1, mask={"backbone": {"w": True}, "head": {"w": True, "b": False}}),
}


@pytest.mark.parametrize("name", some(WRAPPERS, 3))
def test_wrappers_of_parameters_see_the_trained_ones(name):
    trainer = make(Managed, WRAPPERS[name]())
    tx = WRAPPERS[name]()
    train(trainer)
    pairs = name == "lookahead"
    part = {"backbone": {"w": optax.MaskedNode()}, "head": make_params()["head"]}
    part = optax.LookaheadParams.init_synced(part) if pairs else part
    state = tx.init(part)
    for _ in range(2):
        for i in range(0, len(X), BATCH):
            batch = X[i : i + BATCH], Y[i : i + BATCH]

            def loss(part, batch=batch):
                return loss_of({**make_params(), "head": part["head"]}, *batch)

            value, grads = jax.value_and_grad(loss)(part.fast if pairs else part)
            extra = {"value": value, "grad": grads, "value_fn": loss} if name == "backtracking" else {}
            updates, state = tx.update(grads, state, part, **extra)
            part = optax.apply_updates(part, updates)
    part = part.fast if pairs else part
    assert_close(trainer.state.params["head"], part["head"])
    assert_same_bits(trainer.state.params["backbone"], make_params()["backbone"])


def test_regularizers_of_frozen_parameters_count_in_the_loss():
    trainer = make(optimizer=optax.sgd(0.0))
    plain = trainer.fit(X, Y, verbose=0, batch_size=16).history["loss"][0]
    losses = [MeanSquaredError(), eg.regularizers.L2(0.1)]
    regularized = eg.Trainer(High(), losses, optimizer=optax.sgd(0.0), freeze="backbone/*")
    both = regularized.fit(X, Y, verbose=0, batch_size=16).history["loss"][0]
    squares = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(make_params()))
    np.testing.assert_allclose(both - plain, 0.1 * squares, rtol=1e-5)
    np.testing.assert_allclose(plain, loss_of(make_params(), X, Y), rtol=1e-6)


def test_the_parameter_of_a_gradient_that_is_not_finite_is_named():
    with pytest.raises(NonFiniteError, match=r"the gradients of head/b, head/w hold NaN"):
        make(nonfinite="raise").fit(X * np.float32(np.nan), Y, verbose=0)


def test_monitors_name_the_groups_and_the_trained_parameters():
    rate = optax.inject_hyperparams(optax.adam)
    trainer = make(optimizer={"head/*": optax.chain(optax.clip(1.0), rate(0.1)), "*": rate(0.01)}, freeze="head/b")
    monitors = [eg.callbacks.LearningRateMonitor(), eg.callbacks.GradientMonitor(per_layer=True)]
    history = train(trainer, callbacks=monitors).history
    assert history["learning_rate/head"] == pytest.approx([0.1, 0.1])
    assert history["learning_rate/*"] == pytest.approx([0.01, 0.01])
    assert {name for name in history if name.startswith("grad_norm/")} == {"grad_norm/backbone/w", "grad_norm/head/w"}


# errors


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("neck/*", "'neck/\\*' matches no parameter. There are 'backbone/w', 'head/b' and 'head/w'"),
        (("head/b", "backbone"), "write 'backbone/\\*' for all parameters below 'backbone'"),
        ("*", "all parameters are frozen, 'backbone/w', 'head/b' and 'head/w'"),
        (("head/*", "backbone/*"), "there is nothing to train"),
    ],
)
def test_patterns_that_do_not_fit_are_named_before_training_and_between(freeze, message):
    trainer = make(freeze=freeze)
    with pytest.raises(ValueError, match=message):
        train(trainer)
    assert "not initialised" in repr(trainer)
    trainer = make(freeze=())
    train(trainer)
    state = trainer.state
    with pytest.raises(ValueError, match=message):
        trainer.freeze(*([freeze] if isinstance(freeze, str) else freeze))
    assert trainer.state is state


@pytest.mark.parametrize(
    ("freeze", "kind", "message"),
    [(3, TypeError, "such as 'backbone/\\*', not 3"), ([None], TypeError, "not None"), ("", ValueError, "empty")],
)
def test_patterns_of_another_type_are_refused(freeze, kind, message):
    with pytest.raises(kind, match=message):
        make(freeze=freeze)
    with pytest.raises(kind, match=message):
        make(freeze=()).freeze(*(freeze if isinstance(freeze, list) else [freeze]))


@pytest.mark.parametrize("method", ["freeze", "unfreeze"])
def test_freezing_inside_of_a_run_and_without_a_pattern_is_refused(method):
    class Inside(eg.callbacks.Callback):
        def on_epoch_begin(self, event):
            getattr(event.trainer, method)("backbone/*")

    trainer = make()
    with pytest.raises(RuntimeError, match=f"{method} was called while fit of the same trainer runs"):
        train(trainer, callbacks=[Inside()])
    with pytest.raises(ValueError, match=f"{method} was given no pattern"):
        getattr(trainer, method)()


def test_a_core_level_step_is_refused():
    with pytest.raises(StepError, match=r"Core.init_step is a core-level step"):
        eg.Trainer(Core(), freeze="w")
    with pytest.raises(StepError, match=r"Core.init_step is a core-level step"):
        eg.Trainer(Core()).freeze("w")


def test_a_state_of_several_parameters_in_one_array_is_refused():
    trainer = make(optimizer=optax.flatten(optax.adam(0.1)), freeze=())
    train(trainer)
    state = trainer.state
    with pytest.raises(ValueError, match=r"0/mu has values of several parameters in one array, float32\[22\]"):
        trainer.freeze("backbone/*")
    assert trainer.state is state
    train(make(optimizer=optax.flatten(optax.adam(0.1))))  # from the beginning it may be frozen


# checkpoints


def test_a_run_with_groups_resumes_to_the_same_bits(tmp_path):
    groups = {"head/w": optax.adam(0.1), "head/*": optax.sgd(0.1), "*": optax.adamw(0.01)}
    whole, first, second = (make(optimizer=groups, freeze="backbone/*", averaging=eg.EMA(0.9)) for _ in range(3))
    train(whole, 3)
    train(first, 3, callbacks=[eg.callbacks.ModelCheckpoint(tmp_path, every=eg.Every(steps=3))], max_steps=3)
    train(second, 3, resume=tmp_path)
    states = [trainer.state for trainer in (second, whole)]
    assert_same_bits(*(jax.tree.leaves((one.params, one.optimizer, one.averaged_params)) for one in states))
    other = make(optimizer=groups, freeze=(), averaging=eg.EMA(0.9))
    with pytest.raises(CheckpointError, match="frozen parameters were 'backbone/w', and those of the trainer are none"):
        train(other, 3, resume=tmp_path)
    train(other, 1)
    state = other.state
    with pytest.raises(CheckpointError, match="and those of the trainer are none"):
        other.restore(tmp_path)
    assert other.state is state


def test_a_checkpoint_with_other_hyperparameters_of_a_group_warns(tmp_path):
    def groups(rate):
        return {"head/*": optax.inject_hyperparams(optax.adam)(rate), "*": optax.sgd(0.1)}

    first, second = make(optimizer=groups(0.1)), make(optimizer=groups(0.2))
    train(first)
    first.save(tmp_path / "saved")
    train(second)
    with pytest.warns(UserWarning, match="learning_rate of 'head' is 0.1.* in the checkpoint and 0.2"):
        second.restore(tmp_path / "saved")


def test_a_trainer_of_another_trainers_state_keeps_the_optimizer():
    first = make(freeze=())
    train(first)
    second = eg.Trainer(first.state, freeze="backbone/*")
    adam, before = second.state.optimizer.state[0], first.state.optimizer.state[0]
    assert_same_bits((adam.count, adam.mu["head"]), (before.count, before.mu["head"]))
    assert second.frozen == ["backbone/w"]
    assert eg.Trainer(second.state).frozen == []


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.tanh(nn.Dense(4, name="backbone")(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.backbone, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.backbone(x)))


class Eqx(eqx.Module):
    backbone: eqx.nn.Linear
    head: eqx.nn.Linear

    def __call__(self, x):
        return self.head(jnp.tanh(self.backbone(x)))


def haiku_network(x):
    return hk.Linear(2, name="head")(jnp.tanh(hk.Linear(4, name="backbone")(x)))


KEY = jax.random.key(0)
MODULES = {
    "linen": Linen,
    "nnx": lambda: Nnx(nnx.Rngs(0)),
    "equinox": lambda: Eqx(eqx.nn.Linear(3, 4, key=KEY), eqx.nn.Linear(4, 2, key=KEY)),
    "haiku": lambda: hk.transform(haiku_network),
}


@pytest.mark.parametrize("library", MODULES)
def test_patterns_name_the_parameters_of_every_library(library):
    groups = {"backbone/*": optax.adam(0.1), "head/*": optax.adam(0.1)}
    trainer = eg.Trainer(MODULES[library](), MeanSquaredError(), optimizer=groups, freeze="backbone/*")
    trainer.init_on_batch(X, Y)

    def leaves():
        return {path_name(p): np.array(v) for p, v in jax.tree_util.tree_leaves_with_path(trainer.state.params)}

    before = leaves()
    assert set(trainer.frozen) == {path for path in before if path.startswith("backbone/")}
    assert len(trainer.frozen) == 2
    train(trainer, 1, callbacks=[eg.callbacks.GradientMonitor(per_layer=True)])
    assert {path for path, value in leaves().items() if np.array_equal(value, before[path])} == set(trainer.frozen)

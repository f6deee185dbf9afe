"""`Trainer(accumulate=k)`: steps in microbatches equal those of the whole batch, against bare loops."""

from __future__ import annotations

import gc
import re
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import STRATEGIES, Core, High, Managed, network, regression, squares, weights
from some_cases import some

import elegy as eg
from elegy.loading.chunks import structure
from elegy.losses import MeanSquaredError

X, Y = regression(22)
W = weights(22)
BATCH = 8  # the last batch has six rows, which 4 does not divide, and which four devices cannot share
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32, sums in another order than the reference's


class Penalized(High):
    """A regularizer within the step, and a value that `log` reports."""

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        loss, module = super().managed_train_step(key, batch, batch_idx, epoch_idx)
        return loss, module.add_loss("penalty", 0.1 * jnp.sum(self.params["w"] ** 2)).log("same", loss)


class Nonlinear(High):
    """Needs the loss of the whole batch: the mean of roots is not the root of the mean."""

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        loss, module = super().managed_train_step(key, batch, batch_idx, epoch_idx)
        return jnp.sqrt(loss) + loss * self.params["b"][0], module


class Checkpointed(High):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return jax.checkpoint(lambda module: High.managed_train_step(module, key, batch, batch_idx, epoch_idx))(self)


OBJECTIVES = {
    High: lambda loss, params: loss,
    Checkpointed: lambda loss, params: loss,
    Penalized: lambda loss, params: loss + 0.1 * jnp.sum(params["w"] ** 2),
    Nonlinear: lambda loss, params: jnp.sqrt(loss) + loss * params["b"][0],
}


def mean(params, x, y, w):
    return jnp.sum(w * squares(params, x, y)) / jnp.sum(w)


def bare(params, objective):
    """One epoch of gradient descent on whole batches: the parameters, and the values of the objective."""
    step, values = jax.jit(jax.value_and_grad(objective)), []
    for start in range(0, len(X), BATCH):
        value, grads = step(params, *(a[start : start + BATCH] for a in (X, Y, W)))
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        values.append(float(value))
    return params, np.array(values)


def train(module, loss=None, *, weighted=True, optimizer=None, **kwargs):
    """One epoch: the parameters before it, the trainer and the logs after it."""
    trainer = eg.Trainer(module, loss, optimizer=optimizer or optax.sgd(0.1), **kwargs)
    trainer.init_on_batch(X[:BATCH], Y[:BATCH])
    start = jax.tree.map(np.array, trainer.state.params)
    given = {"sample_weight": W} if weighted else {}
    logs = trainer.fit(X, Y, **given, batch_size=BATCH, shuffle=False, verbose=0).history
    return start, trainer, logs


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), dict(actual), dict(expected))


CASES = [(High, "jit", k) for k in (1, 2, 3, 8)]
CASES += [(High, "data_parallel", 3), (Penalized, "data_parallel_4", 2), (High, "eager", 3)]
CASES += [(Nonlinear, "jit", 3), (Nonlinear, "data_parallel", 3), (Checkpointed, "sharded", 2), (High, "fsdp", 3)]


@pytest.mark.parametrize(("cls", "strategy", "count"), some(CASES, 6))
def test_microbatches_equal_the_whole_batch(cls, strategy, count):
    start, trainer, logs = train(cls(), MeanSquaredError(), strategy=STRATEGIES[strategy](), accumulate=count)
    params, values = bare(start, lambda p, x, y, w: OBJECTIVES[cls](mean(p, x, y, w), p))
    assert_close(trainer.state.params, params)
    if cls in (High, Checkpointed):
        weight = np.array([W[i : i + BATCH].sum() for i in range(0, len(W), BATCH)])
        np.testing.assert_allclose(logs["loss"][0], (values * weight).sum() / weight.sum(), **CLOSE)
        assert logs["loss"] == logs["mean_squared_error"]
    if cls is Penalized:
        assert list(logs) == ["loss", "penalty", "mean_squared_error", "same"]


REDUCED = {
    "mean": mean,
    "sum_over_batch_size": lambda p, x, y, w: jnp.mean(w * squares(p, x, y)),
    "sum": lambda p, x, y, w: jnp.sum(w * squares(p, x, y)),
}


@pytest.mark.parametrize("strategy", ["jit", "data_parallel"])
def test_every_reduction_and_a_regularizer(strategy):
    losses = [MeanSquaredError(reduction=name, name=name, weight=0.3) for name in REDUCED]
    losses.append(eg.regularizers.L2(0.1))
    start, trainer, _ = train(High(), losses, strategy=STRATEGIES[strategy](), accumulate=3)

    def objective(params, *batch):
        penalty = 0.1 * sum(jnp.sum(leaf**2) for leaf in params.values())
        return 0.3 * sum(loss(params, *batch) for loss in REDUCED.values()) + penalty

    assert_close(trainer.state.params, bare(start, objective)[0])


class Logs(Managed):
    accuracy: eg.metrics.MeanAbsoluteError = eg.field(default_factory=eg.metrics.MeanAbsoluteError)
    rows: jax.Array = eg.field(default_factory=lambda: jnp.zeros((), jnp.int32))

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        x, y = batch
        loss, module = super().managed_train_step(key, batch, batch_idx, epoch_idx)
        module = module.log("accuracy", self.accuracy.batch_updates(target=y, preds=network(self.params, x)))
        for reduce in ("mean", "sum", "min", "max", "last"):
            value = {"min": jnp.min, "max": jnp.max, "sum": jnp.sum}.get(reduce, jnp.mean)(x)
            module = module.log(reduce, value, reduce=reduce)
        return loss, module.replace(rows=self.rows + len(x))


@pytest.mark.parametrize("strategy", ["jit", "data_parallel"])
def test_managed_steps_and_their_logs(strategy):
    start, trainer, logs = train(Logs(), weighted=False, strategy=STRATEGIES[strategy](), accumulate=3)
    params, values = bare(start, lambda p, x, y, w: jnp.mean(squares(p, x, y)))
    assert_close(trainer.state.params, params)
    expected = {"mean": X.mean(), "sum": X.sum(), "min": X.min(), "max": X.max(), "last": X[16:].mean()}
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name][0], value, **CLOSE)
    np.testing.assert_allclose(logs["loss"][0], (values * [8, 8, 6]).sum() / 22, **CLOSE)
    assert logs["accuracy"][0] > 0
    assert int(trainer.state.rows) == (22 if strategy == "jit" else 11)  # each microbatch goes on from the one before


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not training, momentum=0.7)(x))


def test_batch_statistics_are_those_of_the_microbatches_in_order():
    start, trainer, _ = train(Norm(), MeanSquaredError(), weighted=False, accumulate=2)
    model, params, stats = Norm(), start, {"BatchNorm_0": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    for i in range(0, len(X), BATCH):
        grads, parts = [], [tuple(a[i : i + BATCH][part::2] for a in (X, Y)) for part in range(2)]
        for x, y in parts:

            def loss(params, x=x, y=y, stats=stats):
                out, updates = model.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
                return jnp.mean((out - y) ** 2), updates["batch_stats"]

            grad, stats = jax.grad(loss, has_aux=True)(params)
            grads.append(grad)
        params = jax.tree.map(lambda p, a, b: p - 0.1 * (a + b) / 2, params, *grads)
    assert_close(trainer.state.params, params)
    assert_close(trainer.state.batch_stats, stats)


class Random(High):
    def apply(self, key, inputs, training):
        drawn = jax.random.uniform(key)
        return network(self.params, inputs), self.log("low", drawn, reduce="min").log("high", drawn, reduce="max")


def test_each_microbatch_draws_from_a_key_of_its_own():
    trainer = eg.Trainer(Random(), MeanSquaredError(), optimizer=optax.sgd(0.1), accumulate=2)
    logs = trainer.train_on_batch(X[:8], Y[:8])
    assert logs["low"] < logs["high"]


def test_an_optimizer_that_evaluates_the_loss_sees_the_whole_batch():
    runs = [
        train(High(), MeanSquaredError(), optimizer=optax.lbfgs(memory_size=2), accumulate=count)[1] for count in (1, 3)
    ]
    # A line search compares losses: rounding that tips a comparison would show as another step.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *(t.state.params for t in runs))


def test_a_microbatch_that_is_not_finite_leaves_out_the_whole_step():
    x = X.copy()
    x[3] = np.nan
    trainer = eg.Trainer(High(), MeanSquaredError(), optimizer=optax.sgd(0.1), accumulate=4, nonfinite="skip")
    trainer.init_on_batch(X[:BATCH], Y[:BATCH])
    before = jax.tree.map(np.array, trainer.state.params)
    trainer.train_on_batch(x[:BATCH], Y[:BATCH])
    jax.tree.map(np.testing.assert_array_equal, trainer.state.params, before)


class Deep(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(4):
            x = nn.gelu(nn.Dense(128)(x))
        return nn.Dense(1)(x)


def compiled(strategy, rows, **kwargs):
    x, y = np.ones((rows, 32), np.float32), np.ones((rows, 1), np.float32)
    trainer = eg.Trainer(Deep(), MeanSquaredError(), optimizer=optax.sgd(0.1), strategy=strategy, **kwargs)
    trainer.init_on_batch(x, y)
    program = trainer._session.executor.program("train", trainer._session.buffer, structure((x, y)), None)
    leaves = trainer._session.buffer.peek()
    changed = [leaves[i] for i in program.changed]
    args = changed[: program.donated], changed[program.donated :], [leaves[i] for i in program.constant]
    batch = trainer.strategy.place((x, y), "batch")
    return program.single().lower(*args, batch, None, np.zeros(3, np.int32)).compile()


@pytest.mark.parametrize("strategy", ["jit", "sharded"])
def test_memory_falls_with_the_number_of_microbatches(strategy):
    whole, parts = (compiled(STRATEGIES[strategy](), 4096, accumulate=k) for k in (1, 4))
    memory = [one.memory_analysis().temp_size_in_bytes for one in (whole, parts)]
    assert memory[1] <= 1.15 / 4 * memory[0]
    # The pass that sums the denominators computes no outputs: no product of matrices is done twice.
    products = [
        len(re.findall(r" dot\(|__onednn\$matmul|custom-call\(.*[mM]at[mM]ul", one.as_text())) for one in (whole, parts)
    ]
    assert products[1] <= products[0] > 0


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (0, ValueError, "accumulate must be a positive integer, not 0"),
        (True, TypeError, "accumulate must be a positive integer, not True"),
        (2.0, TypeError, "accumulate must be a positive integer, not 2.0"),
        ("2", TypeError, "accumulate must be a positive integer, not '2'"),
    ],
)
def test_values_that_are_not_counts_are_refused(value, error, match):
    with pytest.raises(error, match=match):
        eg.Trainer(High(), MeanSquaredError(), optimizer=optax.sgd(0.1), accumulate=value)


class Discards(High):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return super().managed_train_step(key, batch, batch_idx, epoch_idx)[0], self


@pytest.mark.parametrize(
    ("module", "loss", "count", "error", "match"),
    [
        (High, MeanSquaredError(), 9, ValueError, "cuts each batch into 9 microbatches, but a batch has 8 rows"),
        (Core, None, 2, ValueError, "Core.train_step computes its gradients itself"),
        (Discards, MeanSquaredError(), 2, eg.errors.StepError, "does not return the module that it got from there"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_runs(module, loss, count, error, match):
    trainer = eg.Trainer(module(), loss, optimizer=optax.sgd(0.1), accumulate=count)
    with pytest.raises(error, match=match):
        trainer.fit(X, Y, batch_size=BATCH, verbose=0)
    assert trainer.state.params is None
    assert trainer.step == 0


def test_a_step_that_changes_the_state_is_named():
    class Changes(Managed):
        seen: jax.Array = eg.field(default_factory=lambda: jnp.zeros(2))

        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            return super().managed_train_step(key, batch, batch_idx, epoch_idx)[0], self.replace(seen=jnp.zeros(3))

    with pytest.raises(eg.errors.StepError, match="seen"):
        train(Changes(), weighted=False, accumulate=2)


def test_a_dropped_trainer_frees_its_module():
    module = High()
    trainer = train(module, MeanSquaredError(), accumulate=3)[1]
    held = weakref.ref(trainer.state)
    del trainer, module
    gc.collect()
    assert held() is None

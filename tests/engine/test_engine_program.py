"""A step traced once: which leaves it changes, and that fused steps compute what single steps do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import High, make_params, network, regression

import elegy as eg
from elegy.engine.executor import Executor
from elegy.engine.initial_state import initial_state
from elegy.loading.chunks import Chunk, structure
from elegy.strategies import Jit


def init_key():
    """The half of the seed's key that makes the parameters."""
    return jax.random.split(jax.random.key(0))[1]


def started():
    module = High(
        losses_and_metrics=eg.metrics.LossesAndMetrics(eg.losses.MeanSquaredError(), None),
        optimizer=eg.Optimizer(optax.sgd(0.1)),
    )
    executor = Executor(Jit())
    batch = tuple(part[:4] for part in regression())
    return executor, initial_state(executor.strategy, module, jax.random.key(0), batch)


def test_evaluation_changes_no_parameter():
    executor, buffer = started()
    program = executor.program("test", buffer, structure(tuple(part[:4] for part in regression())), None)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(program.state)]
    assert {paths[i] for i in program.constant} >= {".params['b']", ".params['w']"}
    assert ".key" in {paths[i] for i in program.changed}


def test_fused_steps_are_the_single_steps():
    x, y = regression(12)
    single_executor, single = started()
    struct = structure((x[:4], y[:4]))
    for k in range(3):
        rows = slice(4 * k, 4 * k + 4)
        single_executor.run("train", single, Chunk((x[rows], y[rows]), "single", struct, (4,), k), 0)
    fused_executor, fused = started()
    stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf.reshape(3, 4, -1)), (x, y))
    out = fused_executor.run("train", fused, Chunk(stacked, "stacked", struct, (4, 4, 4), 0), 0)
    first = np.mean((network(make_params(init_key()), x[:4]) - y[:4]) ** 2)
    np.testing.assert_allclose(out.logs(0)["loss"], first, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(single.get().params), jax.tree.leaves(fused.get().params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)  # another loop may fuse products and sums differently
    assert fused_executor.traces["train"] == 1


@pytest.mark.parametrize("logs", [{}, {"scale": 2.0, "shift": 3.0}])
def test_the_step_of_the_user_is_traced_once_for_each_phase(logs):
    calls = []

    class Logging(High):
        def apply(self, key, inputs, training):
            outputs, state = super().apply(key, inputs, training)
            calls.append(training)
            for name, value in logs.items():
                state = state.log(name, value + jnp.zeros(()))
            return outputs, state

    module = Logging(losses_and_metrics=eg.metrics.LossesAndMetrics(eg.losses.MeanSquaredError(), None))
    executor, batch = Executor(Jit()), tuple(part[:4] for part in regression())
    module = module.replace(optimizer=eg.Optimizer(optax.sgd(0.0)))
    buffer = initial_state(executor.strategy, module, jax.random.key(0), batch)
    expected = np.mean((network(make_params(init_key()), batch[0]) - batch[1]) ** 2)
    calls.clear()
    for phase in ("train", "train", "test", "test"):
        out = executor.run(phase, buffer, Chunk(batch, "single", structure(batch), (4,), 0), 0).logs(0)
        np.testing.assert_allclose(out["loss"], expected, rtol=1e-6)
        assert {name: out[name] for name in logs} == logs
    assert calls == [True, False]


def test_a_step_without_random_numbers_computes_no_random_key():
    executor, buffer = started()
    closed = executor.program("train", buffer, structure(tuple(part[:4] for part in regression())), None).closed
    used = {id(v) for v in closed.jaxpr.outvars} | {id(v) for equation in closed.eqns for v in equation.invars}
    assert all(any(id(v) in used for v in equation.outvars) for equation in closed.eqns)
    assert sum("fold_in" in str(equation.primitive) for equation in closed.eqns) == 0


def test_a_module_with_a_step_of_its_own_is_not_compiled():
    class Core(High):
        def train_step(self, batch, batch_idx, epoch_idx): ...

    executor = Executor(Jit())
    assert not executor.compiles(Core, "train")
    assert executor.compiles(Core, "test")

"""A step traced once: which leaves it changes, and that fused steps compute what single steps do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def test_a_module_with_a_step_of_its_own_is_not_compiled():
    class Core(High):
        def train_step(self, batch, batch_idx, epoch_idx): ...

    executor = Executor(Jit())
    assert not executor.compiles(Core, "train")
    assert executor.compiles(Core, "test")

"""Optimizers that ask for more than gradients: the loss, or the function to minimise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import High, Managed, host, regression, squares, trainer_of

from elegy.strategies import FSDP, DataParallel

X, Y = regression(22)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums in another order; a line search divides by small differences
EPOCHS = 2

OPTIMIZERS = {
    "reduce_on_plateau": lambda: optax.chain(
        optax.sgd(0.3), optax.contrib.reduce_on_plateau(patience=1, factor=0.5, rtol=0.3)
    ),
    "polyak_sgd": lambda: optax.polyak_sgd(max_learning_rate=0.3),
    "momo": lambda: optax.contrib.momo(0.1),
    "mechanize": lambda: optax.contrib.mechanize(optax.sgd(0.1)),
    "sam": lambda: optax.contrib.sam(optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05))),
    "lbfgs": optax.lbfgs,
    "backtracking": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
    "opaque sam": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True),
    "sophia": lambda: optax.contrib.sophia(0.05, update_interval=2),
    "lookahead": lambda: optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5),
    "several steps": lambda: optax.MultiSteps(optax.polyak_sgd(max_learning_rate=0.3), 2),
}

STRATEGIES = {
    "jit": lambda: "jit",
    "eager": lambda: "eager",
    "data_parallel": lambda: DataParallel(2),
    "fsdp": lambda: FSDP({"data": 2}, min_size=2),
}


def bare(optimizer, params):
    """The loop of Optax's own guides."""
    tx = OPTIMIZERS[optimizer]()
    pairs = optimizer == "lookahead"
    params = optax.LookaheadParams.init_synced(params) if pairs else params
    state = tx.init(params)

    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return jnp.mean(squares(params, x, y))

        value, grads = jax.value_and_grad(loss)(params.fast if pairs else params)
        extra = {"value": value, "grad": grads, "value_fn": loss}
        asked = {"sam": {}, "sophia": {"obj_fn": loss}, "opaque sam": {"grad_fn": jax.grad(lambda p, _: loss(p))}}
        extra = {} if pairs else asked.get(optimizer, extra)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    for _ in range(EPOCHS):
        for start in range(0, len(X), 8):
            params, state = step(params, state, X[start : start + 8], Y[start : start + 8])
    return params.fast if pairs else params


SPREAD = ("eager", "data_parallel", "fsdp")
WRAPPERS = ("opaque sam", "sophia", "lookahead")  # tests/module/test_module_optax.py compares them on one device
PAIRS = [(optimizer, "jit") for optimizer in OPTIMIZERS if optimizer not in WRAPPERS]
PAIRS += [(optimizer, SPREAD[i % 3]) for i, (optimizer, _) in enumerate(PAIRS)]
PAIRS += [("backtracking", strategy) for strategy in SPREAD if ("backtracking", strategy) not in PAIRS]
PAIRS += [(optimizer, "data_parallel") for optimizer in WRAPPERS] + [("opaque sam", "fsdp"), ("lookahead", "fsdp")]


@pytest.mark.parametrize(("optimizer", "strategy"), PAIRS)
@pytest.mark.some(9)
def test_an_optimizer_gets_the_loss_of_the_whole_batch(optimizer, strategy):
    level = Managed if optimizer in ("reduce_on_plateau", "lbfgs") else High
    trainer = trainer_of(level, optimizer=OPTIMIZERS[optimizer](), strategy=STRATEGIES[strategy]())
    trainer.init_on_batch(X[:8], Y[:8])
    start = jax.tree.unflatten(jax.tree.structure(trainer.state.params), host(trainer.state.params))
    trainer.fit(X, Y, batch_size=8, epochs=EPOCHS, shuffle=False, verbose=0)
    expected = bare(optimizer, start)
    for name, value in trainer.state.params.items():
        np.testing.assert_allclose(value, expected[name], **CLOSE)


def test_the_learning_rate_falls_on_a_plateau():
    trainer = trainer_of(High, optimizer=OPTIMIZERS["reduce_on_plateau"]())
    trainer.fit(X, Y, batch_size=8, epochs=4, verbose=0)
    assert optax.tree_utils.tree_get(trainer.state.optimizer.state, "scale") < 1.0

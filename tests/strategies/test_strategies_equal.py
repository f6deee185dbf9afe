"""Whatever the strategy, the numbers are those of one device."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from strategy_table import DATA, MODELS, STRATEGIES, run


@functools.cache
def on_one_device(model: str, dataset: str) -> dict[str, Any]:
    return run(MODELS[model].trainer("jit"), MODELS[model], dataset)


RUNS = [(model, dataset, strategy) for model in MODELS for dataset in DATA for strategy in STRATEGIES]
ONE_DEVICE = [run for run in RUNS if run[2] == "jit"]
# Each replica normalises by its own examples: compared with a hand-written pmap loop instead.
NORMALISES_BY_REPLICA = [("conv", "divisible", "data_parallel")]


# The strategies of one model and dataset side by side: the worker that runs them has the run on one device already.
@pytest.mark.parametrize(
    ("model", "dataset", "strategy"), [run for run in RUNS if run not in ONE_DEVICE + NORMALISES_BY_REPLICA]
)
def test_a_run_equals_the_run_on_one_device(model: str, dataset: str, strategy: str) -> None:
    expected = on_one_device(model, dataset)
    actual = run(MODELS[model].trainer(STRATEGIES[strategy](model)), MODELS[model], dataset)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    # Sums over devices are taken in another order; Adam divides small gradients by small roots of squares.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), actual, expected)

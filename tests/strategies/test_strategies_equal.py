"""Whatever the strategy, the numbers are those of one device."""

import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest
from strategy_table import DATA, MODELS, STRATEGIES, run


@functools.cache
def on_one_device(model: str, dataset: str) -> dict[str, Any]:
    return run(MODELS[model].trainer("jit"), MODELS[model], dataset)


def runs() -> list[Any]:
    """Every model, dataset and strategy; those that are not slow hold each of them several times.

    Models whose rows can be masked take one path, whatever they are: of them, one data set for each model and strategy,
    so that each two of model, data set and strategy meet. The others have all.
    """
    cases = []
    for (i, model), (j, dataset), (k, strategy) in itertools.product(*map(enumerate, (MODELS, DATA, STRATEGIES))):
        # Each replica normalises by its own examples: compared with a hand-written pmap loop instead.
        by_replica = (model, dataset, strategy) == ("conv", "divisible", "data_parallel")
        chosen = (i + j + k + 1) % len(DATA) == 0
        if strategy != "jit" and not by_replica and (chosen or model in ("conv", "managed")):
            marks = () if chosen and (i + k) % 4 == 0 else pytest.mark.slow
            cases.append(pytest.param(model, dataset, strategy, marks=marks))
    return cases


# The strategies of one model and dataset side by side: the worker that runs them has the run on one device already.
@pytest.mark.parametrize(("model", "dataset", "strategy"), runs())
def test_a_run_equals_the_run_on_one_device(model: str, dataset: str, strategy: str) -> None:
    expected = on_one_device(model, dataset)
    actual = run(MODELS[model].trainer(STRATEGIES[strategy](model)), MODELS[model], dataset)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    # Sums over devices are taken in another order; Adam divides small gradients by small roots of squares.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), actual, expected)

"""Every metric is gathered, aggregated and merged on real devices, and has the value of one pass over all data."""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from elegy.strategies import DataParallel

DEVICES = 8


def _metric_cases() -> Any:
    """The table of metrics that their own tests use."""
    path = Path(__file__).parents[1] / "metrics" / "test_metrics_protocol.py"
    spec = importlib.util.spec_from_file_location("metric_cases", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = _metric_cases()


@functools.cache
def on_devices() -> dict[str, Any]:
    """Each metric over its data divided over the devices, as two batches of which one is merged into the other."""
    strategy = DataParallel(DEVICES)
    data = {name: TABLE.part(data, slice(None)) for name, (_, data) in TABLE.CASES.items()}
    placed = jax.tree.map(lambda leaf: leaf.reshape(DEVICES, -1, *leaf.shape[1:]), data)

    @functools.partial(jax.pmap, axis_name=strategy.axis_name)
    def combine(rows: dict[str, Any]) -> dict[str, Any]:
        out = {}
        for name, (metric, _) in TABLE.CASES.items():
            first, second = (jax.tree.map(lambda leaf, s=s: leaf[s], rows[name]) for s in (slice(1), slice(1, None)))
            # A leaf of the batch without any row of positive weight on a device is part of the table.
            (one,) = strategy.combine_metrics((metric.batch_updates(**first),))
            (two,) = strategy.combine_metrics((metric.batch_updates(**second),))
            out[name] = one.merge(two).compute()
        return out

    return combine(placed)


@pytest.mark.parametrize("case", TABLE.CASES)
def test_a_metric_over_devices_has_the_value_of_one_pass(case: str) -> None:
    metric, data = TABLE.CASES[case]
    expected = metric.batch_updates(**TABLE.part(data, slice(None))).compute()
    actual = on_devices()[case]
    for device in range(DEVICES):  # every replica holds the same value
        TABLE.close(jax.tree.map(lambda leaf, d=device: np.asarray(leaf)[d], actual), expected)

"""Every metric is gathered, aggregated and merged on real devices, and has the value of one pass over all data."""

import functools
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from some_cases import some

import elegy as eg
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
CASES = {**TABLE.CASES, **TABLE.FURTHER}
PARAMETERS = some([*TABLE.CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in TABLE.FURTHER)], 12)
SHORT = tuple(case for case in PARAMETERS if isinstance(case, str))
GROUPS = (SHORT, tuple(name for name in TABLE.CASES if name not in SHORT), tuple(TABLE.FURTHER))
"""Metrics whose programs are compiled together: those of the short run, and two groups of the others."""


@functools.cache
def on_devices(group: tuple[str, ...]) -> dict[str, Any]:
    """Each metric over its data divided over the devices, as two batches of which one is merged into the other."""
    strategy, cases = DataParallel(DEVICES), {name: CASES[name] for name in group}
    data = {name: TABLE.part(data, slice(None)) for name, (_, data) in cases.items()}
    placed = jax.tree.map(lambda leaf: leaf.reshape(DEVICES, -1, *leaf.shape[1:]), data)

    @functools.partial(jax.pmap, axis_name=strategy.axis_name)
    def combine(rows: dict[str, Any]) -> dict[str, Any]:
        out = {}
        for name, (metric, _) in cases.items():
            first, second = (jax.tree.map(lambda leaf, s=s: leaf[s], rows[name]) for s in (slice(1), slice(1, None)))
            # A leaf of the batch without any row of positive weight on a device is part of the table.
            (one,) = strategy.combine_metrics((metric.batch_updates(**first),))
            (two,) = strategy.combine_metrics((metric.batch_updates(**second),))
            out[name] = one.merge(two).compute()
        return out

    return combine(placed)


@pytest.mark.parametrize("case", PARAMETERS)
def test_a_metric_over_devices_has_the_value_of_one_pass(case: str) -> None:
    metric, data = CASES[case]
    expected = metric.batch_updates(**TABLE.part(data, slice(None))).compute()
    (group,) = (names for names in GROUPS if case in names)
    actual = on_devices(group)[case]
    for device in range(DEVICES):  # every replica holds the same value
        TABLE.close(jax.tree.map(lambda leaf, d=device: np.asarray(leaf)[d], actual), expected)


@pytest.mark.parametrize("kind", [eg.metrics.AuxLosses, eg.metrics.AuxMetrics])
def test_scalars_of_a_module_over_devices_are_weighted_by_examples(kind: type) -> None:
    values, examples = np.arange(16.0).reshape(DEVICES, 2), np.arange(1.0, 17.0).reshape(DEVICES, 2)
    strategy = DataParallel(DEVICES)

    @functools.partial(jax.pmap, axis_name=strategy.axis_name)
    def combine(values: jax.Array, examples: jax.Array) -> Any:
        updates = [
            kind(["norm"]).update(aux_values={"norm": v}, examples=n) for v, n in zip(values, examples, strict=True)
        ]
        (one,), (two,) = (strategy.combine_metrics((update,)) for update in updates)
        return one.merge(two).compute()

    expected = np.average(values.ravel(), weights=examples.ravel())
    np.testing.assert_allclose(combine(values, examples)["norm"], np.full(DEVICES, expected), rtol=1e-6)


def test_every_metric_is_in_the_table() -> None:
    public = {
        kind
        for kind in (getattr(eg.metrics, name) for name in eg.metrics.__all__)
        if inspect.isclass(kind) and issubclass(kind, eg.metrics.Metric)
    }
    here = {type(metric) for metric, _ in CASES.values()}
    assert public - here == {eg.metrics.Metric, eg.metrics.AuxLosses, eg.metrics.AuxMetrics}

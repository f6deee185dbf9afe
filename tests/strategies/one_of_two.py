"""What each of two processes runs: `python one_of_two.py PORT PROCESS RESULTS`."""

import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from strategy_table import MODELS, data, run

import elegy as eg
from elegy.strategies import FSDP, DataParallel, Sharded

TOGETHER = {
    "data_parallel": lambda model: DataParallel(),
    "sharded": lambda model: Sharded({"data": 2, "model": 2}, rules=MODELS[model].rules),
    "fsdp": lambda model: FSDP(min_size=8),
}


def arrays(make: Any) -> dict[str, Any]:
    """The same as every other strategy's run, over arrays that every process has."""
    model = MODELS["weighted"]
    trainer = model.trainer(make("weighted"))
    results = run(Whole(trainer), model, "not_divisible")
    return {**results, "fused": fused(make)}


def fused(make: Any) -> dict[str, Any]:
    """Several steps in one execution, from resident data."""
    x, y, _, _ = data("divisible")
    trainer = MODELS["mlp"].trainer(make("mlp"))
    return trainer.fit(x, y, epochs=2, batch_size=8, steps_per_execution=4, verbose=0).history


def iterables(make: Any, share: slice) -> dict[str, Any]:
    """Each process brings its own batches: of different sizes, and more of them in one process than in the other."""
    x, y, weight, _ = data("divisible")
    cuts = {0: [5, 5, 4], 1: [4, 3]}  # rows of each batch, by process
    batches, start = {0: [], 1: []}, 0
    for process, sizes in cuts.items():
        for size in sizes:
            batches[process].append(tuple(a[start : start + size] for a in (x, y, weight)))
            start += size
    given = [
        [batches[p][i] for p in range(2)[share] if i < len(batches[p])] for i in range(max(map(len, batches.values())))
    ]
    joined = [tuple(np.concatenate(parts) for parts in zip(*step, strict=True)) for step in given if step]
    trainer = MODELS["weighted"].trainer(make("weighted"))
    return {
        "history": trainer.fit(joined, epochs=2, verbose=0).history,
        "evaluate": trainer.evaluate(joined, verbose=0),
        "predict": trainer.predict([batch[:1] for batch in joined]),
        "params": params(trainer),
    }


def managed(make: Any, share: slice) -> dict[str, Any]:
    """Steps that cannot be masked: uneven shares are seen whole by everybody."""
    x, y, _, _ = data("divisible")
    sizes = [(4, 4), (3, 2)]
    steps, start = [], 0
    for pair in sizes:
        parts = []
        for size in pair:
            parts.append((x[start : start + size], y[start : start + size]))
            start += size
        steps.append(tuple(np.concatenate(leaves) for leaves in zip(*parts[share], strict=True)))
    trainer = MODELS["managed"].trainer(make("managed"))
    return {"history": trainer.fit(steps, epochs=2, verbose=0).history, "params": params(trainer)}


def split(make: Any, wrap: Any) -> dict[str, Any]:
    """An iterable that yields the same batches everywhere, split on request."""
    x, y, _, _ = data("divisible")
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 32, 8)]
    trainer = MODELS["mlp"].trainer(make("mlp"))
    return trainer.fit(wrap(batches), epochs=1, verbose=0).history


def params(trainer: eg.Trainer) -> Any:
    """Logical values, also of what lies in several processes."""
    return trainer.strategy.collect_outputs(trainer.state.get_params())


class Whole:
    """A trainer whose state's arrays are shown as NumPy arrays, whole."""

    def __init__(self, trainer: eg.Trainer):
        self.fit, self.evaluate, self.predict = trainer.fit, trainer.evaluate, trainer.predict
        self._trainer = trainer

    @property
    def state(self) -> Any:
        return self

    def get_params(self) -> Any:
        return params(self._trainer)

    def get_batch_stats(self) -> Any:
        return self._trainer.state.get_batch_stats()


def main() -> None:
    warnings.simplefilter("error")
    jax.config.update("jax_num_cpu_devices", 2)
    port, process, results = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    eg.distributed.initialize(f"127.0.0.1:{port}", 2, process, initialization_timeout=60, heartbeat_timeout=30)
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
    assert eg.distributed.is_first() == (process == 0)
    out = {}
    for name, make in TOGETHER.items():
        mine = slice(process, process + 1)
        out[name] = {
            "arrays": arrays(make),
            "iterables": iterables(make, mine),
            "managed": managed(make, mine),
            "split": split(make, eg.distributed.Split),
        }
    out["steps_in_a_second"] = steps_in_a_second()
    files(results.parent / "files")
    results.write_bytes(pickle.dumps(out))


def steps_in_a_second() -> int:
    """The processes stop after the same step, though their clocks differ."""
    x, y, _, _ = data("divisible")
    trainer = MODELS["mlp"].trainer(DataParallel())
    trainer.fit(x, y, epochs=100_000, batch_size=8, steps_per_execution=1, max_time=1.0, verbose=0)
    return trainer.step


def files(folder: Path) -> None:
    """A log file and a bar come from the first process alone; all processes write one checkpoint together."""
    x, y, _, _ = data("divisible")
    trainer = MODELS["mlp"].trainer(FSDP(min_size=8))
    logger = eg.callbacks.CSVLogger(folder / "log.csv")
    trainer.fit(x, y, epochs=1, batch_size=8, verbose=2, callbacks=[logger])
    trainer.save(folder / "saved")
    other = MODELS["mlp"].trainer(FSDP(min_size=8))
    other.init_on_batch(x[:8], y[:8])
    other.restore(folder / "saved")
    jax.tree.map(np.testing.assert_array_equal, params(other), params(trainer))


if __name__ == "__main__":
    main()

"""What each of two processes runs: `python one_of_two.py PORT PROCESS RESULTS`."""

import itertools
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from strategy_table import MODELS, data, run

import elegy as eg
from elegy.checkpoint import flatten, load_safetensors
from elegy.strategies import FSDP, DataParallel, Sharded

TOGETHER = {
    "data_parallel": lambda model: DataParallel(),
    "sharded": lambda model: Sharded({"data": 2, "model": 2}, rules=MODELS[model].rules),
    "fsdp": lambda model: FSDP(min_size=8),
    "crossed": lambda model: Sharded(crossed(), rules=MODELS[model].rules),
}


def crossed() -> Mesh:
    """Both processes hold parts of every row: none has rows of its own to bring."""
    return Mesh(np.array(jax.devices()).reshape(2, 2).T, ("data", "model"))


def arrays(make: Any) -> dict[str, Any]:
    """The same as every other strategy's run, over arrays that every process has."""
    model = MODELS["weighted"]
    trainer = model.trainer(make("weighted"))
    results = run(Whole(trainer), model, "not_divisible")
    x, y, weight, batch_size = data("not_divisible")
    return {**results, "evaluate": trainer.evaluate(x, y, sample_weight=weight, batch_size=batch_size, verbose=0)}


def fused(make: Any) -> dict[str, Any]:
    """Several steps in one execution, from resident data."""
    x, y, _, _ = data("many")
    trainer = MODELS["mlp"].trainer(make("mlp"))
    return trainer.fit(x, y, epochs=2, batch_size=8, steps_per_execution=4, verbose=0).history


def iterables(make: Any, share: slice) -> dict[str, Any]:
    """Each process brings its own batches: of different sizes, and more of them in one process than in the other."""
    x, y, weight, _ = data("many")
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
    x, y, _, _ = data("many")
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
    """An iterable that yields the same batches everywhere, split on request; of one row somebody gets none."""
    x, y, _, _ = data("many")
    batches = [(x[a:b], y[a:b]) for a, b in itertools.pairwise((0, 1, 32))]
    trainer = MODELS["mlp"].trainer(make("mlp"))
    return trainer.fit(wrap(batches), epochs=1, verbose=0).history


def params(trainer: eg.Trainer) -> Any:
    """Logical values, also of what lies in several processes."""
    return jax.tree.map(np.asarray, eg.distributed.collect(trainer.state.get_params()))


class Whole:
    """A trainer whose state's arrays are shown as NumPy arrays, whole."""

    def __init__(self, trainer: eg.Trainer):
        self.fit, self.predict = trainer.fit, trainer.predict
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
    # The other process writes entries of the cache in place, and this one may read half of one.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
    jax.config.update("jax_num_cpu_devices", 2)
    port, process, results = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dies = sys.argv[4:] == ["dies"]
    heartbeat, shutdown = (10, 10) if dies else (100, 300)  # seconds
    eg.distributed.initialize(
        f"127.0.0.1:{port}",
        2,
        process,
        initialization_timeout=300,
        heartbeat_timeout=heartbeat,
        shutdown_timeout=shutdown,
    )
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
    assert eg.distributed.is_first() == (process == 0)
    if dies:
        die(process)
    mine = slice(process, process + 1)
    out: dict[str, Any] = {run: {name: RUNS[run](TOGETHER[name], mine) for name in RUN_ON[run]} for run in RUNS}
    out["steps_in_a_second"] = steps_in_a_second()
    trainer = files(results.parent / "files")
    share = share_of(process)
    resumes(results.parent / "resumed", share)
    out["messages"] = failures(trainer, process)
    out["counted"] = counted(trainer, share)
    out["outputs"] = outputs_of_a_core_step()
    moves(trainer)
    results.write_bytes(pickle.dumps(out))


RUNS: dict[str, Callable[[Any, slice], Any]] = {
    "arrays": lambda make, share: arrays(make),
    "fused": lambda make, share: fused(make),
    "iterables": iterables,
    "managed": managed,
    "split": lambda make, share: split(make, list if share == ALL else eg.distributed.Split),
}
RUN_ON = {
    "arrays": ("data_parallel", "sharded", "fsdp"),
    "fused": ("data_parallel", "fsdp"),
    "iterables": ("data_parallel", "crossed"),
    "managed": ("data_parallel", "fsdp"),
    "split": ("sharded",),
}
ALL = slice(None)


def die(process: int) -> None:
    """The second process ends without a word in the middle of a run that would go on for hours."""
    x, y, _, _ = data("many")

    def kill(event: Any) -> None:
        if process == 1 and event.epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer = MODELS["mlp"].trainer(DataParallel())
    callback = eg.callbacks.LambdaCallback(on_epoch_end=kill)
    trainer.fit(x, y, epochs=10_000_000, batch_size=8, verbose=0, callbacks=[callback])


def steps_in_a_second() -> int:
    """The processes stop after the same step, though their clocks differ."""
    x, y, _, _ = data("many")
    trainer = MODELS["mlp"].trainer(DataParallel())
    trainer.fit(x, y, epochs=100_000, batch_size=8, steps_per_execution=1, max_time=1.0, verbose=0)
    return trainer.step


def files(folder: Path) -> eg.Trainer:
    """Log files and a bar come from the first process alone; all processes write one checkpoint together."""
    x, y, _, _ = data("many")
    trainer = MODELS["mlp"].trainer(FSDP(min_size=8))
    loggers = [eg.callbacks.CSVLogger(folder / "log.csv"), eg.callbacks.TensorBoard(folder / "board", histograms=True)]
    trainer.fit(x, y, epochs=1, batch_size=8, verbose=2, callbacks=loggers)
    trainer.save(folder / "saved")
    other = MODELS["mlp"].trainer(FSDP(min_size=8))
    other.init_on_batch(x[:8], y[:8])
    other.restore(folder / "saved")
    jax.tree.map(np.testing.assert_array_equal, params(other), params(trainer))
    trainer.save_weights(folder / "weights.safetensors")
    for path, leaf in load_safetensors(folder / "weights.safetensors").items():
        np.testing.assert_array_equal(leaf, flatten({"params": params(trainer)})[path])
    trainer.export(folder / "exported", x[:8])
    trainer.save_pickle(folder / "trainer.pickle")
    loaded = eg.load(folder / "trainer.pickle", allow_code=True)
    np.testing.assert_array_equal(loaded.predict(x, batch_size=8), trainer.predict(x, batch_size=8))
    return trainer


def share_of(process: int) -> list[Any]:
    """Shares of different examples, lengths and batch sizes."""
    x, y, _, _ = data("many")
    cuts = [(0, 3, 8, 12, 17), (17, 22, 25)][process]
    return [(x[a:b], y[a:b]) for a, b in itertools.pairwise(cuts)]


def resumes(folder: Path, share: list[Any]) -> None:
    """Each process goes on in its own share: in the middle of it, and when it has ended before the other's."""
    places = {5: folder / "in_both", 7: folder / "when_one_has_ended"}

    def save(event: Any) -> None:
        if event.step in places:
            event.trainer.save(places[event.step])

    whole = MODELS["mlp"].trainer(DataParallel())
    whole.fit(Counted(share), epochs=3, callbacks=[eg.callbacks.LambdaCallback(on_train_batch_end=save)], verbose=0)
    for path in places.values():
        trainer = MODELS["mlp"].trainer(DataParallel())
        again = Counted(share)
        trainer.fit(again, epochs=3, resume=path, verbose=0)
        assert trainer.step == whole.step == 12
        assert again.passes == 3
        # Batches are filled up to the largest since a pass began, which sums in another order.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params(trainer), params(whole)
        )


class Counted:
    """Batches that come in another order in each pass, and tell which pass it is: their place cannot be counted."""

    def __init__(self, batches: list[Any]):
        self.batches, self.passes, self.place = batches, 0, 0

    def __iter__(self) -> Iterator[Any]:
        if self.place in (0, len(self.batches)):
            self.passes, self.place = self.passes + 1, 0
        while self.place < len(self.batches):
            self.place += 1
            yield self.batches[(self.place + self.passes) % len(self.batches)]

    def state_dict(self) -> dict[str, int]:
        return {"passes": self.passes, "place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passes, self.place = state["passes"], state["place"]


def failures(trainer: eg.Trainer, process: int) -> dict[str, str]:
    """What is wrong in one process ends the call in both, and the next call works."""
    x, y, _, _ = data("many")
    good = (x[:4], y[:4])

    def breaks() -> Iterator[Any]:
        yield good
        if process == 1:
            raise OSError("the disk is gone")
        yield good

    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "no batch": (lambda: iter([good] * (1 - process)), {}),
        "a batch that cannot be read": (breaks, {}),
        "fewer batches than asked for": ([good] * (3 - process), {"steps_per_epoch": 3}),
        "another shape": ([(x[:4, : 8 - process], y[:4])], {}),
        "a label too high": ([(x[:4], y[:4] * 0 + 9 * process)], {}),
    }
    found = {}
    for name, (given, options) in cases.items():
        try:
            trainer.fit(given, epochs=1, verbose=0, **options)
        except (OSError, ValueError, RuntimeError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    for make in (lambda: DataParallel(2), lambda: Sharded({"data": 2}), lambda: FSDP(Mesh(jax.devices()[:2], "data"))):
        try:
            made = make()
            assert process == 0
            assert made.processes == 1
        except ValueError as error:
            found.setdefault("no device", str(error))
    return found


def counted(trainer: eg.Trainer, share: list[Any]) -> tuple[int, ...]:
    """A run that ends when one share has, but not the other, ends inside of the epoch in both processes."""
    before = trainer.step, trainer.epoch
    trainer.fit(share, epochs=5, max_steps=2, verbose=0)
    return trainer.step - before[0], trainer.epoch - before[1]


class Core(eg.ElegyModule):
    """Returns an array of the host beside a global one."""

    def init_step(self, key, batch):
        return self.replace(key=key)

    def pred_step(self, batch, batch_idx):
        return {"host": np.arange(len(batch)), "global": batch * 2}, self


def outputs_of_a_core_step() -> Any:
    x, _, _, _ = data("many")
    return eg.Trainer(Core(), strategy="sharded").predict(x, batch_size=8)


def moves(trainer: eg.Trainer) -> None:
    """A live state moves between devices of both processes and of one."""
    before = params(trainer)
    targets = [TOGETHER["crossed"]("mlp"), DataParallel(3), "jit", "fsdp", "eager", "data_parallel", "fsdp", "jit"]
    for target in targets:
        trainer.set_strategy(target)
        jax.tree.map(np.testing.assert_array_equal, params(trainer), before)


if __name__ == "__main__":
    main()

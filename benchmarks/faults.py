"""Kills training runs at random moments and checks that nothing is lost: `python -m benchmarks.faults --kills 100`.

`--only "an evaluation"` kills while the validation data is evaluated, inside of an epoch or at its end.

Every run keeps an average of its parameters, which it evaluates, and saves checkpoints; it is relaunched with
`resume="auto"` after each SIGKILL, until it ends. It must end with the bits of an undisturbed run, and lose at most the
documented number of steps: one interval with synchronous saves (as those of several processes always are); with
asynchronous saves, one interval and the steps that ran while a checkpoint was written, which are at most one interval,
because the next save waits for it.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[1]
EVERY = 6
MOMENTS = ("a step", "a save", "the manifest", "the rename", "an evaluation")
PATIENCE = 600.0  # seconds for one whole run, which takes ten on two idle cores, and two minutes on crowded ones


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of run: the number of processes, and synchronous or asynchronous saves."""

    processes: int
    beside: bool

    @property
    def most_lost(self) -> int:
        """The largest number of completed steps that a kill may lose."""
        return 2 * EVERY if self.beside and self.processes == 1 else EVERY


def main() -> int:
    """Kills runs; returns 0 if all ended with the right bits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pairs", type=float, default=0.2, help="the fraction of the kills for runs of two processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=MOMENTS, help="kill at this moment only")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, *numbers = arguments.child
        train(Path(folder), *map(int, numbers))
        return 0
    pairs = round(arguments.kills * arguments.pairs)
    shares = {Kind(2, True): pairs, Kind(1, True): (arguments.kills - pairs) // 2}
    shares[Kind(1, False)] = arguments.kills - sum(shares.values())
    problems: list[str] = []
    for kind, kills in shares.items():
        if kills:
            moments = MOMENTS if arguments.only is None else (arguments.only,)
            problems += storm(kind, kills, random.Random(arguments.seed), moments)
    for problem in problems:
        print("FAILED:", problem)
    return 1 if problems else 0


def storm(kind: Kind, kills: int, dice: random.Random, moments: Sequence[str]) -> list[str]:
    """Kills runs of one kind until there were enough kills; returns the problems."""
    problems: list[str] = []
    hit: collections.Counter[str] = collections.Counter()
    lost: list[int] = []
    runs = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        launch = Launch(Path(place) / "undisturbed", kind)
        launch.wait()
        wanted = launch.result()
        while sum(hit.values()) < kills:
            launch = Launch(Path(place) / f"run {runs}", kind)
            runs += 1
            while sum(hit.values()) < kills:
                if not launch.kill_at(dice.choice(moments), dice):
                    break
                hit[launch.what_was_hit()] += 1
                before = launch.steps()
                launch = Launch(launch.folder, kind)
                if (resumed := launch.resumed_at()) is not None:
                    lost.append(before - resumed)
                    if lost[-1] > kind.most_lost:
                        problems.append(f"{launch.folder.name}: {lost[-1]} steps lost, from {before} to {resumed}")
            launch.wait()
            if launch.result() != wanted:
                problems.append(f"{launch.folder.name}: ended with {launch.result()}, not {wanted}")
    counts = ", ".join(f"{name}: {hit[name]}" for name in hit)
    print(
        f"{kind.processes} process(es), {'asynchronous' if kind.beside else 'synchronous'} saves: "
        f"{sum(hit.values())} kills in {runs} runs ({counts}); {sum(lost) / max(len(lost), 1):.1f} steps lost a kill, "
        f"at most {max(lost, default=0)}, allowed {kind.most_lost}, more than an interval ({EVERY}) by "
        f"{sum(steps > EVERY for steps in lost)} kills; {len(problems)} problems; "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    return problems


class Launch:
    """The processes of one run, started once."""

    def __init__(self, folder: Path, kind: Kind):
        self.folder, self.kind = folder, kind
        folder.mkdir(exist_ok=True)
        self.started = folder / "started"
        self.started.unlink(missing_ok=True)
        self.evaluating = folder / "evaluating"
        self.evaluating.unlink(missing_ok=True)
        self._checkpoints = folder / "checkpoints"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "8", "XLA_FLAGS": ""}
        self.processes = []
        for rank in range(kind.processes):
            with open(folder / f"log {rank}", "ab") as log:
                told = [str(folder), *map(str, (kind.processes, int(kind.beside), rank, port))]
                command = [sys.executable, "-m", "benchmarks.faults", "--child", *told]
                self.processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))

    def kill_at(self, moment: str, dice: random.Random) -> bool:
        """Waits for a moment and kills; returns True if the run was still running."""
        if not self._until(lambda: self.started.exists()):
            return False
        if moment == "a step":
            time.sleep(dice.uniform(0, 1.0))
        elif moment == "an evaluation":
            number = dice.randint(1, 8)
            if not self._until(lambda: self._evaluations() >= number):
                return False
            time.sleep(dice.uniform(0, 0.01))
        else:
            known = self._names()
            looks = {
                "a save": lambda names: any(".tmp-" in name for name in names),
                "the manifest": lambda names: any(self._has_manifest(name) for name in names if ".tmp-" in name),
                "the rename": lambda names: any(name not in known and ".tmp-" not in name for name in names),
            }
            if not self._until(lambda: looks[moment](self._names())):
                return False
            time.sleep(dice.choice([0, 0, dice.uniform(0, 0.02)]))
        if any(process.poll() is not None for process in self.processes):
            return False
        victims = self.processes if dice.random() < 0.7 else [dice.choice(self.processes)]
        for process in victims:
            process.send_signal(signal.SIGKILL)
        self.wait(codes=False)  # a process that lost its peer ends by itself
        return True

    def wait(self, *, codes: bool = True) -> None:
        """Waits for the end of all processes."""
        for rank, process in enumerate(self.processes):
            try:
                code = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                code = None
            if code is None or (codes and code != 0):
                self._give_up(rank, "did not end" if code is None else f"ended with {code}")

    def what_was_hit(self) -> str:
        """Describes the state of the directory after the kill."""
        staged = [name for name in self._names() if ".tmp-" in name]
        evaluating = ", in an evaluation" if self.evaluating.exists() else ""
        if any(self._has_manifest(name) for name in staged):
            return f"between manifest and rename{evaluating}"
        return f"during a save{evaluating}" if staged else f"between saves{evaluating}"

    def steps(self) -> int:
        """The last step that was completed."""
        return int((self.folder / "steps").read_text().split()[-1])

    def resumed_at(self) -> int | None:
        """The step from which this launch resumes."""
        found = self._until(lambda: self.started.exists())
        return int(self.started.read_text()) if found or self.started.exists() else None

    def result(self) -> str:
        """The result of the run."""
        return (self.folder / "result").read_text()

    def _until(self, condition: Callable[[], bool]) -> bool:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if condition():
                return True
            if any(process.poll() is not None for process in self.processes):
                return False
            time.sleep(0.0005)
        return self._give_up(0, "does nothing")

    def _give_up(self, rank: int, why: str) -> NoReturn:
        for process in self.processes:
            process.kill()
        log = (self.folder / f"log {rank}").read_text()
        raise SystemExit(f"process {rank} of the run {why}:\n{log[-4000:]}")

    def _names(self) -> set[str]:
        try:
            return set(os.listdir(self._checkpoints))
        except FileNotFoundError:
            return set()

    def _evaluations(self) -> int:
        """The number of the evaluation that runs, counted from the start of the processes; 0 if none runs."""
        try:
            return int(self.evaluating.read_text() or 0)
        except FileNotFoundError:
            return 0

    def _has_manifest(self, name: str) -> bool:
        return (self._checkpoints / name / "manifest.json").exists()


def train(folder: Path, processes: int, beside: int, rank: int, port: int) -> None:
    """Runs or resumes one run."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import elegy as eg

    if processes > 1:
        eg.distributed.initialize(f"127.0.0.1:{port}", 2, rank, heartbeat_timeout=10)

    class Net(eg.ElegyModule):
        """A network with dropout, of some megabytes, so that a save takes a moment."""

        def init(self, key, inputs):
            one, two = jax.random.split(key)
            return self.replace(
                params={"a": jax.random.normal(one, (8, 20_000)) / 8, "b": jax.random.normal(two, (20_000, 3)) / 100}
            )

        def apply(self, key, inputs, training):
            if training:
                inputs = inputs * jax.random.bernoulli(key, 0.9, inputs.shape)
            return jnp.tanh(inputs @ self.params["a"]) @ self.params["b"], self

    class Diary(eg.Callback):
        """Writes each completed step to a file."""

        batch_hooks_read = "logs"

        def on_train_begin(self, event):
            self.first, self.evaluations = True, 0

        def on_train_batch_begin(self, event):
            if self.first and rank == 0:
                (folder / "new").write_text(str(event.step))
                (folder / "new").replace(folder / "started")
            self.first = False

        def on_test_begin(self, event):
            self.evaluations += 1
            if rank == 0:
                (folder / "evaluating").write_text(str(self.evaluations))

        def on_test_batch_end(self, event):
            time.sleep(0.005)

        def on_test_end(self, event):
            if rank == 0:
                (folder / "evaluating").unlink()

        def on_train_batch_end(self, event):
            event.logs["loss"]  # waits until the step is computed
            if rank == 0:
                with open(folder / "steps", "a") as file:
                    file.write(f"{event.step}\n")
            time.sleep(0.005)

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 8)).astype(np.float32), rng.integers(0, 3, 90)
    trainer = eg.Trainer(
        Net(),
        loss=eg.losses.CrossEntropy(),
        metrics=eg.metrics.Accuracy(),
        optimizer=optax.adam(1e-3),
        strategy="data_parallel" if processes > 1 else "jit",
        averaging=eg.EMA(0.9),
    )
    saver = eg.callbacks.ModelCheckpoint(
        folder / "checkpoints", monitor="val_loss", save_top_k=2, every=eg.Every(steps=EVERY), async_save=bool(beside)
    )
    trainer.fit(
        x,
        y,
        batch_size=8,
        epochs=10,
        validation_split=0.1,
        validation_batch_size=2,
        validation_freq=eg.Every(steps=4),
        validation_weights="averaged",
        callbacks=[saver, eg.callbacks.EarlyStopping("val_loss", patience=100), Diary()],
        steps_per_execution=1,
        resume="auto",
        verbose=0,
    )
    history = trainer.history
    digest = hashlib.sha256(json.dumps([history.history, history.evaluations, trainer.step, trainer.epoch]).encode())
    for leaf in jax.tree.leaves(trainer.state):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        digest.update(np.asarray(leaf).tobytes())
    if rank == 0:
        (folder / "result").write_text(digest.hexdigest())


if __name__ == "__main__":
    raise SystemExit(main())

"""How far the loop runs ahead of the device: as far as it likes with small batches, two executions with large ones."""

import threading

import jax
import pytest
from boring_modules import High, assert_same_bits, host, regression, trainer_of

import elegy as eg
from elegy.trainer import runner

X, Y = regression(80)
BYTES = 8 * (X.shape[1] + Y[0].size) * 4  # of a batch


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(
    ("room", "most"), [(100, None), (32, None), (31, 31), (3.5, 3), (3, 3), (2, 2), (1, 2), (0.1, 2)], ids=str
)
def test_the_bytes_of_batches_in_flight_are_bounded(monkeypatch, k, room, most):
    """`room` is what may be in flight, counted in the batches of one execution."""
    waited = []
    wait = jax.block_until_ready
    monkeypatch.setattr(runner, "IN_FLIGHT_BYTES", int(room * k * BYTES))
    monkeypatch.setattr(runner.jax, "block_until_ready", lambda out: waited.append(out) or wait(out))
    trainer, free = trainer_of(High), trainer_of(High)
    data = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 80, 8)]
    trainer.fit(data, epochs=4, steps_per_execution=k, verbose=0)
    executions = 4 * len(data) // k
    assert len(waited) == (0 if most is None else max(0, executions - most))
    monkeypatch.undo()
    free.fit(data, epochs=4, steps_per_execution=k, verbose=0)
    assert_same_bits(host(trainer.state), host(free.state))


def test_no_thread_takes_the_cores_of_the_cpu():
    class Threads(eg.Callback):
        batch_hooks_read = "logs"
        seen: frozenset[str] = frozenset()

        def on_train_batch_end(self, event):
            self.seen |= {thread.name for thread in threading.enumerate()}

    threads = Threads()
    x, y = regression(120_000)  # batches of over a megabyte, which other backends have gathered ahead
    trainer_of(High).fit(x, y, batch_size=60_000, epochs=2, steps_per_execution=1, callbacks=[threads], verbose=0)
    assert "elegy-prefetch" not in threads.seen

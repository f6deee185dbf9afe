"""How far the loop runs ahead of the device: as far as it likes with small batches, two executions with large ones."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import High, assert_same_bits, host, regression, trainer_of

import elegy as eg
from elegy.engine import executor

X, Y = regression(80)
BYTES = 8 * (X.shape[1] + Y[0].size) * 4  # of a batch


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(
    ("room", "most"), [(100, None), (32, None), (31, 31), (3.5, 3), (3, 3), (2, 2), (1, 2), (0.1, 2)], ids=str
)
@pytest.mark.some(7)
def test_the_bytes_of_batches_in_flight_are_bounded(monkeypatch, k, room, most):
    """`room` is what may be in flight, counted in the batches of one execution."""
    waited = []
    wait = jax.block_until_ready
    monkeypatch.setattr(executor, "IN_FLIGHT_BYTES", int(room * k * BYTES))
    monkeypatch.setattr(executor.jax, "block_until_ready", lambda out: waited.append(out) or wait(out))
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


def test_predictions_that_were_taken_leave_the_device(monkeypatch):
    monkeypatch.setattr(executor, "IN_FLIGHT_BYTES", 4 * BYTES)
    trainer = trainer_of(High)
    trainer.predict(X, batch_size=8)
    before = sum(array.nbytes for array in jax.live_arrays())
    trainer.predict(X, batch_size=8)
    assert sum(array.nbytes for array in jax.live_arrays()) <= before


class Flaky(eg.ElegyModule):
    """A sum that the host refuses to compute while `broken` holds something."""

    def init(self, key, inputs):
        return self.replace(params={"w": jnp.zeros(())})

    def apply(self, key, inputs, training):
        def on_the_host(total):
            if BROKEN:
                raise RuntimeError("boom")
            return np.asarray(total)

        total = jax.pure_callback(on_the_host, jax.ShapeDtypeStruct((), jnp.float32), inputs.sum())
        return inputs[:, :2] * 0 + total, self


BROKEN: list[bool] = []


def test_an_execution_that_failed_does_not_fail_later_ones(monkeypatch):
    monkeypatch.setattr(executor, "IN_FLIGHT_BYTES", 4 * BYTES)
    trainer = eg.Trainer(Flaky(), eg.losses.MeanSquaredError())
    data = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 80, 8)]
    expected = trainer.evaluate(data)
    for call in (lambda: trainer.evaluate(data), lambda: trainer.predict(X, batch_size=8)):
        BROKEN.append(True)
        with pytest.raises(Exception, match="boom"):
            call()
        BROKEN.clear()
        for _ in range(6):
            call()
        assert trainer.evaluate(data) == expected


@pytest.mark.parametrize("how", ["arrays", "list"])
def test_the_users_arrays_may_change_once_an_epoch_is_over(how):
    """On the CPU, steps share the memory of aligned arrays; queued ones must not see what comes into it later."""

    def aligned(array):
        buffer = np.empty(array.nbytes + 64, np.uint8)
        start = -buffer.ctypes.data % 64
        copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[:] = array
        return copy

    class Slow(eg.ElegyModule):
        def init(self, key, inputs):
            return self.replace(params={"w": jnp.full((256, 256), 1e-3)})

        def apply(self, key, inputs, training):
            outputs = inputs
            for _ in range(40):
                outputs = outputs @ self.params["w"]
            return outputs, self

    x = np.random.default_rng(0).random((1024, 256), np.float32)

    def loss(change):
        inputs = aligned(x)
        data = inputs if how == "arrays" else [(inputs[i : i + 128], inputs[i : i + 128]) for i in range(0, 1024, 128)]
        labels = {"labels": inputs, "batch_size": 128, "shuffle": False} if how == "arrays" else {}
        double = eg.callbacks.LambdaCallback(on_epoch_end=lambda event: np.multiply(inputs, change, out=inputs))
        trainer = eg.Trainer(Slow(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.0))
        return trainer.fit(data, **labels, callbacks=[double], steps_per_execution=1, verbose=0).history["loss"]

    assert loss(100) == loss(1)

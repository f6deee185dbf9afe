"""Step values and the monitors that log them, against bare loops."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
import pytest
from some_cases import some

import elegy as eg
from elegy.callbacks import DeviceMonitor, Event, GradientMonitor, LearningRateMonitor, ThroughputMonitor

X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 3.0], np.float32))[:, None]
BATCH = 8
RUNS = [("jit", 1), ("jit", 4), ("eager", 1), ("data_parallel", 2), ("fsdp", 1)]


class Own(eg.Callback):
    """Reads the step values of every step."""

    batch_hooks_read = "logs"

    def __init__(self, *names):
        self.step_values, self.rows = names, []

    def on_train_batch_end(self, event):
        self.rows.append(event.step_logs)


def trainer(tx=None, strategy="jit", **options):
    loss = eg.losses.MeanSquaredError()
    return eg.Trainer(
        nn.Dense(1), loss, eg.metrics.MeanAbsoluteError(), tx or optax.adam(0.1), strategy=strategy, **options
    )


def fit(made, callbacks, epochs=2, **options):
    return made.fit(
        X, Y, batch_size=BATCH, epochs=epochs, shuffle=False, callbacks=callbacks, verbose=0, **options
    ).history


def by_hand(params, tx, epochs=2):
    """The values of every step of a bare loop."""

    def loss_of(params, x, y):
        errors = x @ params["kernel"] + params["bias"] - y
        return jnp.mean(errors**2), jnp.mean(jnp.abs(errors))

    def norm(tree):
        return np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree)))

    state, rows = tx.init(params), []
    for start in [*range(0, len(X), BATCH)] * epochs:
        x, y = X[start : start + BATCH], Y[start : start + BATCH]
        (loss, mae), grads = jax.value_and_grad(loss_of, has_aux=True)(params, x, y)
        updates, state = tx.update(grads, state, params)
        after = optax.apply_updates(params, updates)
        row = {"loss": loss, "mean_absolute_error": mae, "grad_norm": norm(grads), "param_norm": norm(after)}
        row["update_norm"] = norm(jax.tree.map(jnp.subtract, after, params))
        row["grad_norm/bias"], row["grad_norm/kernel"] = norm(grads["bias"]), norm(grads["kernel"])
        params = after
        rows.append({name: float(value) for name, value in row.items()})
    return rows, params


@pytest.mark.parametrize(("strategy", "fuse"), some(RUNS, 2))
def test_step_values_are_those_of_a_bare_loop(strategy, fuse):
    own = Own("logs", "grad_norm", "update_norm", "param_norm", "grad_norm/*")
    made = trainer(strategy=strategy)
    made.init_on_batch(X[:BATCH], Y[:BATCH])
    wanted, params = by_hand(made.state.params, optax.adam(0.1))
    fit(made, [own], steps_per_execution=fuse)
    assert len(own.rows) == 10
    for row, values in zip(own.rows, wanted, strict=True):
        assert {name: row[name] for name in values} == pytest.approx(values, rel=2e-5)
        assert row["mean_squared_error"] == row["loss"]
    np.testing.assert_allclose(made.state.params["kernel"], params["kernel"], rtol=1e-5)


@pytest.mark.parametrize("options", [{"nonfinite": "skip"}, {"accumulate": 2}])
def test_step_values_of_guarded_and_accumulated_steps(options):
    own, plain = Own("grad_norm"), Own("grad_norm")
    fit(trainer(**options), [own])
    fit(trainer(), [plain])
    np.testing.assert_allclose(
        [row["grad_norm"] for row in own.rows], [row["grad_norm"] for row in plain.rows], rtol=1e-5
    )


def test_a_gradient_that_is_not_finite_shows_in_its_norm_and_not_in_the_parameters():
    bad = Y.copy()
    bad[9] = np.nan
    own = Own("grad_norm", "param_norm")
    trainer(nonfinite="skip").fit(X, bad, batch_size=BATCH, shuffle=False, callbacks=[own], verbose=0)
    assert [bool(np.isfinite(row["grad_norm"])) for row in own.rows] == [True, False, True, True, True]
    assert all(np.isfinite(row["param_norm"]) for row in own.rows)


def test_values_that_are_not_requested_are_not_computed():
    made = trainer()
    fit(made, [])
    programs = made._session.executor._programs.values()
    assert {tuple(program.value_names) for program in programs} == {()}
    fit(made, [Own("grad_norm")])
    fit(made, [])  # compiled before
    assert made._session.executor.traces["train"] == 2
    with pytest.raises(RuntimeError, match="no step_logs"):
        fit(made, [Own()])


def test_the_gradient_monitor_logs_norms_by_layer():
    history = fit(trainer(), [GradientMonitor(per_layer=True)])
    rows, _ = by_hand(jax.tree.map(np.asarray, _first_params()), optax.adam(0.1))
    for name in ("grad_norm", "update_norm", "param_norm", "grad_norm/bias", "grad_norm/kernel"):
        assert history[name] == pytest.approx([rows[4][name], rows[9][name]], rel=2e-5)
    assert {"update_norm/kernel", "param_norm/bias"} <= history.keys()


def _first_params():
    made = trainer()
    made.init_on_batch(X[:BATCH], Y[:BATCH])
    return made.state.params


@pytest.mark.parametrize(("chain", "fuse"), some([(False, 1), (False, 4), (True, 1), (True, 4)], 2))
def test_the_learning_rate_is_that_of_the_schedule(chain, fuse):
    schedule = optax.linear_schedule(0.1, 0.0, 10)  # 0.06 after four steps, 0.01 after nine
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=schedule)
    tx = optax.chain(optax.clip_by_global_norm(1.0), tx) if chain else tx
    seen = []
    spy = eg.callbacks.LambdaCallback(on_epoch_end=lambda event: seen.append(event.logs["learning_rate"]))
    history = fit(trainer(tx), [spy, LearningRateMonitor()], steps_per_execution=fuse)
    assert history["learning_rate"] == pytest.approx([0.06, 0.01])
    assert seen == history["learning_rate"]
    plain = fit(trainer(optax.adam(schedule)), [LearningRateMonitor(schedule)], steps_per_execution=fuse)
    assert plain["learning_rate"] == pytest.approx([0.06, 0.01])


def test_groups_have_a_learning_rate_each():
    inject = optax.inject_hyperparams(optax.sgd)
    groups = {"slow": inject(learning_rate=0.01), "fast": inject(learning_rate=0.1)}
    tx = optax.partition(groups, {"kernel": "slow", "bias": "fast"})
    history = fit(trainer(tx), [LearningRateMonitor()])
    assert history["learning_rate/slow"] == pytest.approx([0.01] * 2)
    assert history["learning_rate/fast"] == pytest.approx([0.1] * 2)


def at(step, seconds, phase="train"):
    """An event of a run whose clock shows so many seconds; each step has ten examples."""
    return Event(None, phase, step=step, epoch=0, batch=step - 1, examples=10 * step, elapsed=seconds)


def rates(event):
    return {name: round(value, 6) for name, value in event._added.items()}


def test_tokens_of_an_example_are_checked_before_a_run():
    for wrong in ([128], "128", True):
        with pytest.raises(TypeError, match="give the number of tokens of an example"):
            ThroughputMonitor(tokens=wrong)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be positive and finite"):
            ThroughputMonitor(tokens=wrong)
    assert ThroughputMonitor(tokens=np.float32(3)).tokens == 3


def test_rates_leave_out_validation_and_the_first_interval():
    monitor = ThroughputMonitor(eg.Every(steps=4), tokens=3)
    monitor.on_train_begin(at(0, 0.0))
    first, second, third = at(4, 9.0), at(8, 11.0), at(12, 20.0)
    monitor.on_train_batch_end(first)  # with the compilation
    assert rates(first) == {}
    monitor.on_train_batch_end(second)
    assert rates(second) == {"steps_per_second": 2.0, "examples_per_second": 20.0, "tokens_per_second": 60.0}
    monitor.on_train_batch_end(at(10, 12.0))
    monitor.on_test_begin(at(10, 11.5, "test"))  # the steps before are not computed yet
    monitor.on_test_end(at(10, 17.0, "test"))
    monitor.on_train_batch_end(third)
    assert rates(third) == {"steps_per_second": 1.0, "examples_per_second": 10.0, "tokens_per_second": 30.0}


def test_tokens_that_a_function_counts():
    monitor = ThroughputMonitor(eg.Every(steps=4), tokens=lambda event: event.step**2)
    monitor.on_train_begin(at(0, 0.0))
    for event, expected in ((at(4, 9.0), None), (at(8, 11.0), (64 - 16) / 2), (at(12, 15.0), (144 - 64) / 4)):
        monitor.on_train_batch_end(event)
        assert rates(event).get("tokens_per_second") == expected
    with pytest.raises(TypeError, match=r"the function ThroughputMonitor\(tokens=...\) returned 'many'"):
        ThroughputMonitor(eg.Every(steps=4), tokens=lambda event: "many").on_train_batch_end(at(4, 9.0))


@pytest.mark.parametrize("fuse", [1, 5])
def test_rates_are_of_whole_executions(fuse):
    monitor = ThroughputMonitor(eg.Every(steps=2))
    heard = monitor.selected_batches(0, 0, (BATCH,) * fuse)
    assert list(heard) == [fuse - 1]  # steps within an execution have no time of their own
    history = fit(trainer(), [monitor], epochs=4, steps_per_execution=fuse)
    assert len(history["steps_per_second"]) == (4 if fuse == 1 else 3)
    for steps, examples in zip(history["steps_per_second"], history["examples_per_second"], strict=True):
        assert examples == pytest.approx(BATCH * steps)


@pytest.mark.parametrize("kind", [LearningRateMonitor, GradientMonitor, ThroughputMonitor, DeviceMonitor])
def test_monitors_of_steps_refuse_intervals_in_epochs(kind):
    with pytest.raises(ValueError, match="Give an interval in steps, examples or seconds"):
        kind(every=eg.Every(epochs=1))


def test_a_trainer_with_monitors_can_be_pickled(tmp_path):
    made = trainer(
        callbacks=[ThroughputMonitor(eg.Every(steps=1)), DeviceMonitor(eg.Every(steps=1)), GradientMonitor()]
    )
    fit(made, [])
    made.save_pickle(tmp_path / "trainer.pickle")
    assert eg.load(tmp_path / "trainer.pickle", allow_code=True).step == made.step


def test_a_name_that_begins_like_a_step_value_is_the_steps_own():
    class Logs(eg.ElegyModule):
        def managed_init_step(self, key, batch):
            return self.replace(params=jnp.ones(()))

        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            return self.params**2, self.log("grad_norm_clipped", 3.0)

    made = eg.Trainer(Logs(), optimizer=optax.sgd(0.1))
    history = made.fit(X, batch_size=BATCH, callbacks=[GradientMonitor(), Own("logs")], verbose=0).history
    assert history["grad_norm_clipped"] == [3.0]
    assert history["grad_norm"] == pytest.approx([2 * 0.8**4])


def test_the_memory_of_the_process_is_logged():
    before = psutil.Process().memory_info().rss
    history = fit(trainer(), [DeviceMonitor(eg.Every(steps=1))])
    after = psutil.Process().memory_info().rss
    assert 0.5 * before < history["host_memory"][0] < 2 * after


class Core(eg.ElegyModule):
    def init_step(self, key, batch):
        return self.replace(key=key, params=jnp.zeros(()))

    def train_step(self, batch, batch_idx, epoch_idx):
        return {"loss": self.params}, self.replace(params=self.params + 1)


def test_the_own_values_of_a_core_step_are_its_logs():
    own = Own("logs")
    eg.Trainer(Core()).fit(X, Y, batch_size=BATCH, callbacks=[own], verbose=0)
    assert [row["loss"] for row in own.rows] == [0, 1, 2, 3, 4]


class Wrong(eg.Callback):
    step_values = 3


def ask(*names):
    return lambda made: fit(made, [Own(*names)])


@pytest.mark.parametrize(
    ("made", "run", "error", "message"),
    [
        (
            trainer,
            ask("gradient_norm"),
            ValueError,
            "no step value 'gradient_norm'. There are: 'logs', 'learning_rate'",
        ),
        (trainer, ask(3), TypeError, "must be a tuple of names"),
        (trainer, lambda made: fit(made, [Wrong()]), TypeError, "Wrong.step_values must be a tuple of names"),
        (trainer, lambda made: fit(made, [LearningRateMonitor()]), ValueError, "inject_hyperparams"),
        (trainer, lambda made: LearningRateMonitor(0.1), TypeError, "must be a function"),
        (lambda: eg.Trainer(Core()), ask("grad_norm"), ValueError, "Core.train_step computes its own gradients"),
    ],
)
def test_mistakes_are_named_before_anything_runs(made, run, error, message):
    one = made()
    with pytest.raises(error, match=message):
        run(one)
    assert one.step == 0
    assert not one._session.initialized

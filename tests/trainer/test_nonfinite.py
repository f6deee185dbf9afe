"""What a trainer does about steps whose loss or gradients are not finite."""

from __future__ import annotations

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import Core, High, regression

import elegy as eg
from elegy.callbacks import EarlyStopping, ModelCheckpoint, TerminateOnNaN
from elegy.data import epoch_permutation
from elegy.errors import NonFiniteError
from elegy.lazy_logs import LazyLogs
from elegy.trainer.nonfinite import LossWatch

BATCH, SIZE = 4, 40
RUNS = [("eager", 1), ("jit", 1), ("jit", 4), ("jit", "auto"), ("data_parallel", 2), ("sharded", 1)]


def data(bad=()):
    """Forty examples; those of the batches in `bad` are poisoned."""
    x, y = regression(SIZE)
    for batch in bad:
        x[batch * BATCH + 1, 2] = np.nan
    return x, y


def make(strategy="jit", module=High, **kwargs):
    kwargs = {"loss": eg.losses.MeanSquaredError(), "optimizer": optax.adam(0.05), "seed": 0, **kwargs}
    return eg.Trainer(module(), strategy=strategy, **kwargs)


def fit(trainer, x, y, **kwargs):
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0, "epochs": 2, **kwargs}
    return trainer.fit(x, y, **options).history


def weights(trainer):
    return jax.tree.map(np.asarray, trainer.state.params)


def assert_finite(tree):
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(np.asarray(leaf)).all()


@pytest.mark.parametrize("fuse", [1, "auto"])
def test_an_epoch_of_skipped_steps_is_not_the_best(fuse, tmp_path):
    x, y = data()
    x[:] = np.nan
    bad = fit(make(nonfinite="skip"), x, y, steps_per_execution=fuse)["loss"]
    assert np.isnan(bad).all()

    def batches():
        for epoch in range(3):
            one, target = data(bad=range(10) if epoch == 1 else ())
            yield from ((one[i : i + BATCH], target[i : i + BATCH]) for i in range(0, SIZE, BATCH))

    trainer, keep = make(nonfinite="skip"), ModelCheckpoint(tmp_path, monitor="loss")
    options = {"epochs": 3, "steps_per_epoch": 10, "steps_per_execution": fuse, "verbose": 0, "callbacks": [keep]}
    history = trainer.fit(batches(), **options).history["loss"]
    assert [bool(np.isnan(value)) for value in history] == [False, True, False]
    assert keep.best_value == min(history[0], history[2])


@pytest.mark.parametrize(("strategy", "fuse"), RUNS)
@pytest.mark.some(3)
def test_a_skipped_step_leaves_no_trace(strategy, fuse):
    x, y = data(bad=(0, 3, 9))
    trainer, reference = (make(strategy, nonfinite="skip") for _ in range(2))
    history = fit(trainer, x, y, steps_per_execution=fuse)
    good = [i for i in range(SIZE) if i // BATCH not in (0, 3, 9)]
    wanted = fit(reference, x[good], y[good], steps_per_execution=fuse)
    assert trainer.skipped_steps == 6
    assert reference.skipped_steps == 0
    assert (trainer.step, reference.step) == (20, 14)
    np.testing.assert_allclose(history["loss"], wanted["loss"], rtol=1e-6)  # float32, other loops
    for one, other in zip(*map(jax.tree.leaves, (weights(trainer), weights(reference))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)  # float32, other loops
    assert trainer.state.optimizer.state[0].count == 14


@pytest.mark.parametrize("fuse", [1, "auto"])
def test_the_guard_changes_no_bit_of_a_finite_run_on_a_cpu(fuse):
    """A CPU computes the update in a branch of its own, which XLA compiles as it does without a guard."""
    x, y = data()
    plain, guarded = make(), make(nonfinite="skip")
    options = {"steps_per_execution": fuse}
    assert fit(plain, x, y, **options) == fit(guarded, x, y, **options)
    for one, other in zip(*map(jax.tree.leaves, (weights(plain), weights(guarded))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_a_policy_nothing_is_checked():
    x, y = data()
    texts = {}
    for policy in ("ignore", "skip"):
        trainer = make(nonfinite=policy)
        fit(trainer, x, y, epochs=1)
        (program,) = {id(p): p for key, p in trainer._session.executor._programs.items() if key[0] == "train"}.values()
        texts[policy] = str(program.closed)
    # Of the compensated sums of the logs, and of loss, gradients and update.
    assert texts["ignore"].count("is_finite") == 1 < texts["skip"].count("is_finite")


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not training)(nn.Dense(4)(x)))


def test_batch_statistics_metrics_and_the_users_fields_stay():
    x, y = data(bad=(2,))
    trainer = eg.Trainer(
        Normed(),
        loss=eg.losses.MeanSquaredError(),
        metrics=eg.metrics.MeanAbsoluteError(),
        optimizer=optax.adam(0.1),
        nonfinite="skip",
    )
    history = fit(trainer, x, y)
    assert_finite((trainer.state.params, trainer.state.batch_stats, trainer.state.optimizer.state))
    assert_finite((history["loss"], history["mean_absolute_error"]))


def test_the_key_moves_on():
    x, y = data(bad=(0,))
    trainer = make(nonfinite="skip")
    trainer.init_on_batch(x, y)
    before = jax.random.key_data(trainer.state.key)
    trainer.train_on_batch(x[:BATCH], y[:BATCH])
    assert trainer.skipped_steps == 1
    assert (jax.random.key_data(trainer.state.key) != before).any()


class Cusp(eg.ElegyModule):
    """Its loss is finite everywhere, its gradient is not at zero."""

    def managed_init_step(self, key, batch):
        return self.replace(params={"layer": {"root": jnp.zeros(()), "scale": jnp.ones(())}})

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        params = self.params["layer"]
        return jnp.sqrt(params["root"] * params["scale"]) * 0 + params["scale"], self


@pytest.mark.parametrize(("strategy", "fuse"), RUNS)
@pytest.mark.some(3)
def test_raising_names_step_epoch_loss_and_leaves(strategy, fuse):
    x, y = data(bad=(7,))
    trainer = make(strategy, nonfinite="raise")
    with pytest.raises(
        NonFiniteError, match=r"step 8, in epoch 1, .*the loss is nan, the gradients of b, w hold NaN"
    ) as error:
        fit(trainer, x, y, steps_per_execution=fuse)
    assert isinstance(error.value, FloatingPointError)
    assert trainer.step == 10
    assert_finite(trainer.state.params)
    fit(trainer, *data())


def test_gradients_count_where_the_loss_is_finite():
    trainer = make(module=Cusp, loss=None, nonfinite="raise")
    with pytest.raises(NonFiniteError, match=r"the loss is 1\.0, the gradients of layer/root, layer/scale hold NaN"):
        fit(trainer, *data())
    assert_finite(trainer.state.params)


def test_a_long_epoch_is_not_trained_to_its_end():
    x, y = regression(400)
    x[5] = np.inf
    trainer = make(nonfinite="raise")
    with pytest.raises(NonFiniteError, match="step 2, in epoch 1"):
        fit(trainer, x, y, steps_per_execution=1)
    assert trainer.step < 30


@pytest.mark.parametrize("policy", ["raise", "rollback"])
def test_one_step_raises_at_once(policy):
    x, y = data(bad=(0,))
    trainer = make(nonfinite=policy)
    with pytest.raises(NonFiniteError, match="step 1, in epoch 1"):
        trainer.train_on_batch(x[:BATCH], y[:BATCH])
    trainer.train_on_batch(x[BATCH:], y[BATCH:])


def test_the_first_skipped_step_is_reported_once(caplog):
    x, y = data(bad=(1, 2, 3))
    trainer = make(nonfinite="skip")
    with caplog.at_level(logging.WARNING, "elegy"):
        fit(trainer, x, y)
        assert trainer.skipped_steps == 6
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("step 2, in epoch 1, is not finite: the loss is nan")


def test_terminate_on_nan_looks_at_the_guard():
    x, y = data(bad=(1,))
    trainer = make(nonfinite="skip")
    with pytest.warns(RuntimeWarning, match="1 step of this run was not finite"):
        fit(trainer, x, y, epochs=5, callbacks=[TerminateOnNaN()])
    assert trainer.epoch == 1


def test_skipped_steps_are_saved(tmp_path):
    x, y = data(bad=(1,))
    trainer = make(nonfinite="skip")
    fit(trainer, x, y)
    trainer.save(tmp_path / "run")
    trainer.save_pickle(tmp_path / "all")
    other = make()
    other.restore(tmp_path / "run")
    other.init_on_batch(x, y)
    assert other.skipped_steps == eg.load(tmp_path / "all", allow_code=True).skipped_steps == 2


# Rolling back


class Fragile(High):
    """Not finite where a certain example comes first in a certain batch: another order of the data helps."""

    poison: jax.Array = eg.field(default_factory=lambda: jnp.zeros((), jnp.float32))

    def managed_init_step(self, key, batch):
        return self.init(key, batch[0])

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        x, y = batch
        outputs, module = self.apply(key, x, True)
        loss = jnp.mean((outputs - y) ** 2)
        bad = (batch_idx == 6) & (epoch_idx == 1) & (x[0, 0] == self.poison)
        module = module.log("ids", y[:, 0].sum(), reduce="sum").log("squares", (y[:, 0] ** 2).sum(), reduce="sum")
        return loss + jnp.where(bad, jnp.nan, 0), module


def fragile(tmp_path, every, **kwargs):
    """A trainer, and its data: labels number the examples."""
    x = np.random.default_rng(0).normal(size=(SIZE, 3)).astype(np.float32)
    y = np.repeat(np.arange(SIZE, dtype=np.float32)[:, None], 2, 1)
    first = epoch_permutation(5, 1, SIZE)[6 * BATCH]
    module = Fragile(poison=jnp.asarray(x[first, 0]))
    callbacks = [ModelCheckpoint(tmp_path, every=every), EarlyStopping("loss", patience=100)]
    options = {"nonfinite": "rollback", "optimizer": optax.sgd(1e-4), "seed": 5, "callbacks": callbacks, **kwargs}
    return eg.Trainer(module, **options), x, y


EVERY = [eg.Every(epochs=1), eg.Every(steps=4), eg.Every(steps=5)]


@pytest.mark.parametrize("every", EVERY)
def test_the_run_goes_back_and_on_with_another_order(tmp_path, every, caplog):
    trainer, x, y = fragile(tmp_path, every)
    with caplog.at_level(logging.WARNING, "elegy"):
        history = fit(trainer, x, y, epochs=3, shuffle=True)
    assert "step 17, in epoch 2, is not finite" in caplog.messages[0]
    assert "goes back to" in caplog.messages[0]
    assert (trainer.step, trainer.epoch) == (30, 3)
    assert len(history["loss"]) == 3
    # Every example of every epoch was seen exactly once in what the run kept.
    ids = np.arange(SIZE)
    np.testing.assert_array_equal(history["ids"], 3 * [ids.sum()])
    np.testing.assert_array_equal(history["squares"], 3 * [(ids**2).sum()])


def test_a_run_that_went_back_resumes_with_the_same_bits(tmp_path):
    whole, x, y = fragile(tmp_path / "a", eg.Every(steps=4))
    history = fit(whole, x, y, epochs=3, shuffle=True)
    first, x, y = fragile(tmp_path / "b", eg.Every(steps=4))
    fit(first, x, y, epochs=3, shuffle=True, max_steps=20)
    second, x, y = fragile(tmp_path / "b", eg.Every(steps=4))
    assert fit(second, x, y, epochs=3, shuffle=True, resume=tmp_path / "b") == history
    for one, other in zip(*map(jax.tree.leaves, (weights(whole), weights(second))), strict=True):
        np.testing.assert_array_equal(one, other)


PAIR = (7, 8)


class Quarrel(High):
    """Not finite where two examples share a batch."""

    def managed_init_step(self, key, batch):
        return self.init(key, batch[0])

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        x, y = batch
        outputs, module = self.apply(key, x, True)
        both = (y[:, 0] == PAIR[0]).any() & (y[:, 0] == PAIR[1]).any()
        module = module.log("ids", y[:, 0].sum(), reduce="sum").log("squares", (y[:, 0] ** 2).sum(), reduce="sum")
        return jnp.mean((outputs - y) ** 2) + jnp.where(both, jnp.nan, 0), module


def first_quarrel(seed):
    """The first epoch in whose plain order the two share a batch."""
    for epoch in range(100):
        place = np.argsort(epoch_permutation(seed, epoch, SIZE)) // BATCH
        if place[PAIR[0]] == place[PAIR[1]]:
            return epoch
    return None


@pytest.mark.parametrize("seed", [seed for seed in range(400) if first_quarrel(seed) == 3][:4])
def test_epochs_after_the_one_of_the_checkpoint_get_another_order_too(tmp_path, seed, caplog):
    x, y = fragile(tmp_path, EVERY[0])[1:]
    callbacks = [ModelCheckpoint(tmp_path, every=eg.Every(epochs=2))]
    trainer = make(module=Quarrel, loss=None, optimizer=optax.sgd(1e-4), seed=seed, nonfinite="rollback")
    with caplog.at_level(logging.WARNING, "elegy"):
        history = fit(trainer, x, y, epochs=4, shuffle=True, callbacks=callbacks)
    assert "in epoch 4, is not finite" in caplog.messages[0]
    ids = np.arange(SIZE)
    np.testing.assert_array_equal(history["ids"], 4 * [ids.sum()])
    np.testing.assert_array_equal(history["squares"], 4 * [(ids**2).sum()])


def test_going_back_in_vain_raises(tmp_path):
    x, y = data()
    x[:] = np.inf
    trainer = make(nonfinite="rollback", callbacks=[ModelCheckpoint(tmp_path)])
    with pytest.raises(NonFiniteError) as error:
        fit(trainer, x, y, shuffle=True)
    assert error.value.__notes__ == ["There is no checkpoint to go back to yet."]

    good, _ = data()
    fit(trainer, good, y, shuffle=True, epochs=1)
    with pytest.raises(NonFiniteError) as error:
        fit(trainer, x, y, shuffle=True, resume=tmp_path)
    assert "3 times, each time with another order" in error.value.__notes__[0]
    assert_finite(trainer.state.params)


@pytest.mark.parametrize(
    ("options", "module", "given", "message"),
    [
        ({"nonfinite": "stop"}, High, {}, "nonfinite='stop': it must be one of 'ignore', 'raise', 'skip', 'rollback'"),
        ({"nonfinite": "skip"}, Core, {}, "Core.train_step does both itself"),
        ({"nonfinite": "rollback"}, High, {"shuffle": True}, "there is none among the callbacks"),
        ({"nonfinite": "rollback"}, High, {"callbacks": True}, "takes arrays and `shuffle=True`"),
    ],
)
def test_mistakes_are_said(tmp_path, options, module, given, message):
    if "callbacks" in given:
        given = {"callbacks": [ModelCheckpoint(tmp_path)]}
    x, y = data()

    def run():
        extra = {"loss": None, "optimizer": None} if module is Core else {}
        fit(make(module=module, **extra, **options), x, y, **given)

    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.parametrize(("strategy", "fuse"), RUNS)
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.some(5)
def test_ignore_warns_once_of_a_loss_that_is_read(strategy, fuse, reads):
    class Reads(eg.Callback):
        batch_hooks_read = "logs"

        def on_train_batch_end(self, event):
            dict(event.logs)

    x, y = data(bad=[3, 6])
    trainer = make(strategy)
    with pytest.warns(RuntimeWarning, match="the loss is nan at step") as caught:
        history = fit(trainer, x, y, steps_per_execution=fuse, callbacks=[Reads()] if reads else [])
    assert trainer.step == 20
    assert np.isnan(history["loss"]).all()
    (text,) = [str(warning.message) for warning in caught]
    step = 4 if reads or fuse == "auto" else 9 if fuse in (2, 4) else 10  # the first of the execution that is read
    assert f"at step {step} of epoch 1, or since an earlier one" in text


def test_what_looks_at_the_loss_reads_nothing_itself():
    fetched = []
    logs = LazyLogs(lambda: fetched.append(1) or {"loss": np.inf})
    watch = LossWatch(active=True)
    assert watch.watch(logs, 7, 0) is logs
    assert fetched == []
    with pytest.warns(RuntimeWarning, match="the loss is inf at step 7 of epoch 1"):
        assert logs["loss"] == np.inf
    watch.watch(LazyLogs(lambda: {"loss": np.nan}), 8, 0).copy()  # warned already
    LossWatch(active=False).watch(LazyLogs(lambda: {"loss": np.nan}), 8, 0).copy()


def test_terminate_on_nan_is_the_only_one_to_warn():
    x, y = data(bad=[3])
    with pytest.warns(RuntimeWarning) as caught:
        fit(make(), x, y, callbacks=[TerminateOnNaN()])
    assert [str(warning.message)[:20] for warning in caught] == ["training is stopped:"]


@pytest.mark.parametrize("strategy", ["eager", "jit"])
def test_debug_nans_of_jax_finds_nothing_in_a_finite_run(strategy):
    x, y = data()
    trainer = eg.Trainer(
        nn.Dense(3), eg.losses.CrossEntropy(), eg.metrics.Accuracy(), optax.sgd(0.1), strategy=strategy
    )
    with jax.debug_nans(True):
        trainer.fit(x, (y[:, 0] > 0).astype(np.int32), batch_size=16, verbose=0)
        assert np.isfinite(trainer.evaluate(x, (y[:, 0] > 0).astype(np.int32), verbose=0)["loss"])

"""A resumed run is the uninterrupted run: the same bits of state, logs and history."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.callbacks import Callback, ModelCheckpoint
from elegy.errors import CheckpointError

SIZE, EPOCHS, BATCH = 101, 3, 8
STEPS = -(-90 // BATCH)  # a validation split of 0.1 leaves 90 rows


class Noisy(eg.ElegyModule):
    """A linear model with dropout, so that a lost key would show."""

    def init(self, key, inputs):
        return self.replace(params={"w": jax.random.normal(key, (inputs.shape[-1], 3))})

    def apply(self, key, inputs, training):
        if training:
            inputs = inputs * jax.random.bernoulli(key, 0.8, inputs.shape)
        return inputs @ self.params["w"], self


class Managed(Noisy):
    best: jax.Array = eg.field(default_factory=lambda: jnp.zeros((), jnp.float32))

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        x, y = batch
        logits, module = self.apply(key, x, True)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        module = module.replace(best=jnp.maximum(module.best, loss) + 0 * epoch_idx)
        return loss, module.log("spread", logits.std(), reduce="max")


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(SIZE, 5)).astype(np.float32), rng.integers(0, 3, SIZE)


def trainer(kind="high", seed=1, strategy="jit"):
    if kind == "managed":
        return eg.Trainer(
            Managed(), loss=eg.losses.CrossEntropy(), optimizer=optax.adam(0.01), seed=seed, strategy=strategy
        )
    return eg.Trainer(Noisy(), loss=eg.losses.CrossEntropy(), optimizer=optax.adam(0.01), seed=seed, strategy=strategy)


def fit(trainer, **kwargs):
    x, y = data()
    options = {"epochs": EPOCHS, "batch_size": BATCH, "validation_split": 0.1, "verbose": 0}
    return trainer.fit(x, y, **{**options, **kwargs})


def bits(trainer):
    def raw(leaf):
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return {jax.tree_util.keystr(p): raw(v) for p, v in jax.tree_util.tree_leaves_with_path(trainer.state)}


def assert_same_run(one, other):
    assert one.history.history == other.history.history
    assert one.history.epoch == other.history.epoch
    assert (one.step, one.epoch) == (other.step, other.epoch)
    first, second = bits(one), bits(other)
    assert first.keys() == second.keys()
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path], err_msg=path)


@pytest.mark.parametrize("stop", [1, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS + 5])
@pytest.mark.parametrize(("kind", "fuse"), [("high", "auto"), ("high", 1), ("managed", 4)])
@pytest.mark.some(6)
def test_resuming_gives_the_bits_of_the_uninterrupted_run(tmp_path, stop, kind, fuse):
    whole = trainer(kind)
    fit(whole, steps_per_execution=fuse)
    cut = trainer(kind)
    fit(cut, max_steps=stop, steps_per_execution=fuse)
    cut.save(tmp_path / "step_00000001")
    resumed = trainer(kind)
    fit(resumed, resume=tmp_path, steps_per_execution=fuse)
    assert_same_run(whole, resumed)


def test_the_eager_strategy_resumes_too(tmp_path):
    whole, cut, resumed = (trainer("managed", strategy="eager") for _ in range(3))
    fit(whole, epochs=2)
    fit(cut, epochs=2, max_steps=STEPS + 2)
    cut.save(tmp_path / "step_00000001")
    fit(resumed, epochs=2, resume=tmp_path)
    assert_same_run(whole, resumed)


def test_auto_starts_fresh_and_then_goes_on(tmp_path):
    whole = trainer()
    fit(whole)
    cut = trainer()
    fit(cut, epochs=EPOCHS, max_steps=2 * STEPS, resume="auto", callbacks=[ModelCheckpoint(tmp_path)])
    assert cut.step == 2 * STEPS
    resumed = trainer()
    fit(resumed, resume="auto", callbacks=[ModelCheckpoint(tmp_path)])
    assert_same_run(whole, resumed)


def test_a_run_that_was_complete_stays_as_it_is(tmp_path):
    whole = trainer()
    fit(whole, callbacks=[ModelCheckpoint(tmp_path)])
    again = trainer()
    fit(again, resume="auto", callbacks=[ModelCheckpoint(tmp_path)])
    assert_same_run(whole, again)


def test_another_batch_size_sees_every_example_of_the_epoch_once(tmp_path):
    x = np.arange(90, dtype=np.float32)[:, None]
    seen = []

    class Recorder(eg.ElegyModule):
        def init_step(self, key, batch):
            return self.replace(key=key)

        def train_step(self, batch, batch_idx, epoch_idx):
            seen.extend(np.asarray(batch[0])[:, 0].astype(int).tolist())
            return {"loss": 0.0}, self

    first = eg.Trainer(Recorder())
    first.fit(x, x, batch_size=8, max_steps=4, verbose=0)
    first.save(tmp_path / "step_00000004")
    second = eg.Trainer(Recorder())
    second.fit(x, x, batch_size=7, resume=tmp_path, verbose=0)
    assert sorted(seen) == list(range(90))
    assert second.epoch == 1


def test_max_steps_counts_from_the_beginning_of_the_run(tmp_path):
    cut = trainer()
    fit(cut, max_steps=5)
    cut.save(tmp_path / "step_00000005")
    resumed = trainer()
    fit(resumed, max_steps=9, resume=tmp_path)
    assert resumed.step == 9


def test_max_time_counts_from_the_beginning_of_the_run(tmp_path):
    class Slow(Callback):
        def on_epoch_end(self, event):
            time.sleep(0.1)

    cut, resumed = trainer(), trainer()
    fit(cut, epochs=2, callbacks=[Slow(), ModelCheckpoint(tmp_path)])
    fit(resumed, epochs=10, resume=tmp_path, max_time=0.1)  # the first two epochs took longer than that
    assert (resumed.step, resumed.epoch) == (cut.step, 2)


def test_callbacks_go_on_where_they_were(tmp_path):
    class Count(Callback):
        def __init__(self):
            self.epochs = 0

        def on_epoch_end(self, event):
            self.epochs += 1

        def state_dict(self):
            return {"epochs": self.epochs}

        def load_state_dict(self, state):
            self.epochs = state["epochs"]

    first = Count()
    fit(trainer(), epochs=3, max_steps=2 * STEPS, callbacks=[first, ModelCheckpoint(tmp_path)])
    second = Count()
    fit(trainer(), epochs=3, resume=tmp_path, callbacks=[second])
    assert (first.epochs, second.epochs) == (2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "seed was 1, now it is 7"),
        ({"validation_split": 0.5}, "the number of examples was 90, now it is 50"),
        ({"shuffle": False}, "shuffle was True, now it is False"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    cut = trainer()
    fit(cut, max_steps=3)
    cut.save(tmp_path / "step_00000003")
    other = trainer(seed=change.pop("seed", 1))
    with pytest.raises(CheckpointError, match=message):
        fit(other, resume=tmp_path, **change)
    assert other.step == 0


def test_auto_needs_a_model_checkpoint():
    with pytest.raises(ValueError, match="ModelCheckpoint"):
        fit(trainer(), resume="auto")


@pytest.mark.parametrize("resume", [True, False, 3])
def test_resuming_takes_a_path_or_auto(resume):
    with pytest.raises(TypeError, match=f"resume must be 'auto' or the path of a checkpoint, not {resume}"):
        fit(trainer(), resume=resume)


def test_restore_before_the_first_state_is_matched_when_it_exists(tmp_path):
    x, y = data()
    first = trainer()
    fit(first, max_steps=5)
    first.save(tmp_path / "step_00000005")
    second = trainer(seed=9)
    second.restore(tmp_path)
    np.testing.assert_array_equal(second.predict(x), first.predict(x))
    assert second.step == 5
    assert second.evaluate(x, y, verbose=0) == first.evaluate(x, y, verbose=0)


def test_a_checkpoint_of_another_model_is_named_and_leaves_the_state_alone(tmp_path):
    first = trainer()
    fit(first, max_steps=2)
    first.save(tmp_path / "step_00000002")
    x, y = data()
    other = trainer()
    other.fit(x[:, :4], y, max_steps=1, verbose=0)
    before = bits(other)
    with pytest.raises(CheckpointError, match=r"params/w"):
        other.restore(tmp_path)
    for path, value in bits(other).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)

"""Several data sets of validation, each with its own names and rhythm."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from some_cases import some

import elegy as eg
from elegy.callbacks import EarlyStopping, ModelCheckpoint

X = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 3.0], np.float32))[:, None]
NEAR, FAR = (X[:10], Y[:10]), (3 * X[10:30], 3 * Y[10:30])


def trainer(strategy="jit"):
    return eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.05), strategy=strategy)


def fit(made, sets, epochs=4, **options):
    return made.fit(X, Y, batch_size=16, epochs=epochs, validation_data=sets, verbose=0, **options).history


class Losses(eg.Callback):
    """Computes the loss of both sets by hand after each epoch."""

    def __init__(self):
        self.near, self.far = [], []

    def on_epoch_end(self, event):
        params = event.trainer.state.params
        for (x, y), losses in ((NEAR, self.near), (FAR, self.far)):
            losses.append(float(np.mean((x @ np.asarray(params["kernel"]) + np.asarray(params["bias"]) - y) ** 2)))


@pytest.mark.parametrize("strategy", some(["jit", "eager", "sharded", "data_parallel"], 2))
def test_each_set_has_its_own_values_and_rhythm(strategy):
    by_hand = Losses()
    sets = {"near": NEAR, "far": eg.Evaluation(FAR, every=eg.Every(epochs=2), batch_size=7)}
    history = fit(trainer(strategy), sets, callbacks=[by_hand])
    assert history["val_near_loss"] == pytest.approx(by_hand.near, rel=1e-5)
    assert history["val_far_loss"] == pytest.approx(by_hand.far[1::2], rel=1e-5)
    assert not {"val_loss", "near_loss"} & history.keys()


def test_a_set_in_a_dict_changes_nothing_but_its_name():
    one = fit(trainer(), NEAR, validation_freq=2)
    other = fit(trainer(), {"a": NEAR}, validation_freq=2)
    assert other == {name.replace("val_", "val_a_"): values for name, values in one.items()}


def test_iterables_and_numbers_of_batches_are_those_of_the_set():
    batches = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 20, 4)]
    sets = {"all": batches, "two": eg.Evaluation(batches, steps=2), "arrays": (X[:8], Y[:8])}
    history = fit(trainer(), sets)
    assert history["val_two_loss"] == pytest.approx(history["val_arrays_loss"], rel=1e-6)
    assert history["val_two_loss"] != pytest.approx(history["val_all_loss"], rel=1e-3)


def test_a_dict_of_arrays_is_one_set_of_inputs():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Dense(1)(inputs["a"]) + nn.Dense(1)(inputs["b"])

    def made():
        return eg.Trainer(Two(), lambda preds: jnp.mean(preds**2, axis=-1), optimizer=optax.sgd(0.1))

    inputs = {"a": X, "b": X}
    alone = made().fit(inputs, batch_size=16, validation_data={"a": X[:8], "b": X[:8]}, verbose=0).history
    named = made().fit(inputs, batch_size=16, validation_data={"s": ({"a": X[:8], "b": X[:8]},)}, verbose=0).history
    assert alone["val_loss"] == named["val_s_loss"]


def test_stops_and_checkpoints_follow_the_set_of_their_log(tmp_path):
    seen = []

    class Begins(eg.Callback):
        def on_test_begin(self, event):
            seen.append(event.evaluation)

    sets = {"near": NEAR, "far": eg.Evaluation(FAR, every=eg.Every(epochs=2))}
    by_hand = Losses()
    stop = EarlyStopping("val_far_loss", min_delta=1e9, patience=2, restore_best_weights=True)
    keep = ModelCheckpoint(tmp_path, monitor="val_far_loss")
    made = trainer()
    fit(made, sets, epochs=20, callbacks=[Begins(), stop, keep, by_hand])
    assert seen == ["val_near_", "val_near_", "val_far_"] * 3  # two further evaluations of the set without improvement
    assert (stop.best_epoch, made.epoch) == (1, 6)
    assert stop.best == pytest.approx(by_hand.far[1], rel=1e-5)
    assert made.evaluate(*FAR, verbose=0)["loss"] == stop.best
    best = trainer()
    best.init_on_batch(X[:4], Y[:4])
    best.restore(keep.best_path)
    assert best.evaluate(*FAR, verbose=0)["loss"] == pytest.approx(min(by_hand.far[1::2]), rel=1e-5)


def test_a_resumed_run_goes_on_in_each_sets_iterable(tmp_path):
    def sets():
        numbers = iter(range(1000))  # each validation takes the batches that follow
        endless = ((X[i % 40 : i % 40 + 4], Y[i % 40 : i % 40 + 4]) for i in numbers)
        return {"stream": eg.Evaluation(endless, steps=3), "near": NEAR}

    def callbacks():
        return [ModelCheckpoint(tmp_path / "run", every=eg.Every(epochs=1))]

    whole = fit(trainer(), sets(), epochs=4)
    fit(trainer(), sets(), epochs=4, max_steps=6, callbacks=callbacks())
    with pytest.warns(UserWarning, match="generator given to validation is not known: 6 batches of it were read"):
        history = fit(trainer(), sets(), epochs=4, resume="auto", callbacks=callbacks())
    assert history == whole


@pytest.mark.parametrize(
    ("sets", "error", "message"),
    [
        (lambda: {"a": NEAR, 3: FAR}, TypeError, "has the name 3"),
        (lambda: {"": NEAR}, TypeError, "has the name ''"),
        (lambda: {"a": (X[:3], Y[:2])}, ValueError, "data set 'a' of validation_data"),
        (lambda: {"a": eg.Evaluation(NEAR, every=3)}, TypeError, "every=3"),
        (lambda: {"a": eg.Evaluation(NEAR, batch_size=0)}, ValueError, "batch_size"),
    ],
)
def test_mistakes_are_named_before_anything_runs(sets, error, message):
    made = trainer()
    with pytest.raises(error) as caught:
        fit(made, sets())
    assert message in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert made.step == 0


def test_a_log_that_no_set_has_is_named():
    with pytest.raises(ValueError, match=r"'val_loss' will not exist.*val_near_\.\.\., val_far_\.\.\."):
        fit(trainer(), {"near": NEAR, "far": FAR}, callbacks=[EarlyStopping("val_loss")])


def test_evaluations_leave_no_trace_in_the_training():
    plain, watched = trainer(), trainer()
    plain.fit(X, Y, batch_size=16, epochs=4, verbose=0)
    fit(watched, {"near": NEAR, "far": FAR})
    jax.tree.map(np.testing.assert_array_equal, plain.state.params, watched.state.params)


def test_an_evaluation_inside_of_a_validation_leaves_the_validated_state():
    """The best state is the one that was validated, also if a callback evaluates other data meanwhile."""

    class Average(eg.Callback):
        def on_test_begin(self, event):
            if event.evaluation is not None:
                self.trained = event.trainer.state
                event.trainer.state = self.trained.replace(
                    params=jax.tree.map(lambda leaf: 0.5 * leaf, self.trained.params)
                )

        def on_test_end(self, event):
            if event.evaluation is not None:
                event.trainer.state = self.trained

    class Nested(eg.Callback):
        def on_test_begin(self, event):
            if event.evaluation is not None:
                event.trainer.evaluate(*FAR, verbose=0)

    stop = EarlyStopping("val_loss", patience=9, restore_best_weights=True)
    made = trainer()
    fit(made, NEAR, callbacks=[Average(), stop, Nested()])
    assert made.evaluate(*NEAR, verbose=0)["loss"] == pytest.approx(stop.best)


def test_a_trainer_that_is_pickled_in_an_evaluation_can_be_used(tmp_path):
    class Saves(eg.Callback):
        def on_test_batch_end(self, event):
            event.trainer.save_pickle(tmp_path / "one")

    made = trainer()
    made.fit(X, Y, verbose=0)
    made.evaluate(*NEAR, callbacks=[Saves()], verbose=0)
    loaded = eg.load(tmp_path / "one", allow_code=True)
    loaded.state = loaded.state.reset_step()
    assert loaded.step == made.step


def test_a_log_of_a_callback_is_no_sign_of_a_validation():
    class Gap(eg.Callback):
        def on_epoch_end(self, event):
            event.log("val_gap", float(event.epoch))

    stop = EarlyStopping("val_loss", patience=1, min_delta=1e9)
    made = trainer()
    fit(made, NEAR, epochs=9, validation_freq=2, callbacks=[stop, Gap()])
    assert made.epoch == 4  # the second validation does not improve

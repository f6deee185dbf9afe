"""Every kind of data trains, evaluates and predicts as the same arrays do, and is resumed to the same bits."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from sources import BATCH, KEYS, KINDS, SOURCES, W, X, Y, stream

import elegy as eg


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    """One trainer, whose compiled steps serve all kinds, and a function that puts it back to its beginning."""
    trainer = eg.Trainer(nn.Dense(1), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    trainer.init_on_batch(X[:1], Y[:1], sample_weight=W[:1])
    path = tmp_path_factory.mktemp("beginning") / "saved"
    trainer.save(path)

    def begin():
        trainer.restore(path)
        assert (trainer.step, trainer.epoch) == (0, 0)
        return trainer

    return begin


def numbers(one):
    return jax.tree.map(np.asarray, one.state.params)


def named(data):
    """The arguments of `predict`: the data, and names of what is left out."""
    names = {"inputs", "labels", "sample_weight"}
    strings = {name: data[name] for name in names & set(data) if isinstance(data[name], (str, list))}
    return {"data": data["data"], **strings}


def validation(data):
    """Tables, data sets and loaders come as they are; arrays as a tuple."""
    if "labels" not in data or named(data).keys() - {"data"}:
        return data["data"]
    return data["data"], data["labels"], data["sample_weight"]


@pytest.fixture(scope="module")
def whole(beginning):
    """What arrays give, shuffled or in order."""

    def run(shuffle):
        # Steps of an iterable run one by one; a scan over steps differs from them in the last bits.
        steps = "auto" if shuffle else 1
        options = {
            "batch_size": BATCH,
            "shuffle": shuffle,
            "validation_data": (X, Y, W),
            "steps_per_execution": steps,
        }
        trainer = beginning()
        history = trainer.fit(X, Y, sample_weight=W, epochs=2, verbose=0, **options).history
        return history, numbers(trainer), trainer.evaluate(X, Y, sample_weight=W, verbose=0), trainer.predict(X)

    return {shuffle: run(shuffle) for shuffle in (True, False)}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_equals_the_arrays_given_whole(kind, whole, beginning, tmp_path):
    row, trainer = SOURCES[kind], beginning()
    data = row.make(tmp_path)
    options = {**row.options, "verbose": 0}
    history = trainer.fit(**data, epochs=2, validation_data=validation(data), **options).history
    expected, params, values, outputs = whole[row.shuffled]
    jax.tree.map(np.testing.assert_array_equal, numbers(trainer), params)
    assert history == {name: pytest.approx(column, rel=1e-6) for name, column in expected.items()}
    assert trainer.evaluate(**data, **options) == pytest.approx(values, rel=1e-6)
    np.testing.assert_array_equal(trainer.predict(**named(data), **options), outputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.some(10)
def test_each_kind_is_resumed_in_the_middle_to_the_same_bits(kind, whole, beginning, tmp_path):
    row = SOURCES[kind]
    for steps in (4, None):  # an epoch has 3
        saving = eg.callbacks.ModelCheckpoint(tmp_path / "saved", every=eg.Every(steps=4))
        options = {**row.options, "callbacks": [saving], "resume": "auto", "max_steps": steps, "verbose": 0}
        trainer = beginning()
        folder = tmp_path / f"until {steps}"
        folder.mkdir()
        trainer.fit(**row.make(folder), epochs=2, **options)
    assert trainer.step == 6
    jax.tree.map(np.testing.assert_array_equal, numbers(trainer), whole[row.shuffled][1])


def test_a_shuffled_stream_has_another_order_in_each_epoch_and_is_resumed_exactly(beginning, tmp_path):
    def run(folder, steps=None):
        saving = eg.callbacks.ModelCheckpoint(tmp_path / folder, every=eg.Every(steps=4))
        data, options = stream(seed=3, buffer_size=6), {"callbacks": [saving], "resume": "auto", "verbose": 0}
        trainer = beginning()
        trainer.fit(data, **KEYS, batch_size=BATCH, epochs=2, max_steps=steps, **options)
        return numbers(trainer)

    orders, trainer = [], beginning()
    for epoch in range(2):
        data = stream(seed=3, buffer_size=6)
        data.set_epoch(epoch)
        rows = list(data)
        x, y, w = (np.float32([row[name] for row in rows]) for name in ("x", "y", "w"))
        trainer.fit(x, y, sample_weight=w, batch_size=BATCH, shuffle=False, steps_per_execution=1, verbose=0)
        orders.append(x)
    assert (orders[0] != orders[1]).any()
    expected = numbers(trainer)
    jax.tree.map(np.testing.assert_array_equal, run("whole"), expected)
    run("cut", steps=4)
    jax.tree.map(np.testing.assert_array_equal, run("cut"), expected)

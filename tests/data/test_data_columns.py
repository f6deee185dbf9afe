"""Names of inputs, labels and weights in dicts, tables and data sets."""

import flax.linen as nn
import numpy as np
import optax
import pandas
import polars
import pyarrow
import pytest

import elegy as eg
from elegy.data import as_source
from elegy.data.columns import Columns, Given

rng = np.random.default_rng(0)
X = rng.normal(size=(20, 2)).astype(np.float32)
Y, W = X.sum(1), rng.random(20).astype(np.float32)
FRAME = pandas.DataFrame({"a": X[:, 0], "b": X[:, 1], "y": Y, "w": W})
TABLES = {"pandas": FRAME, "polars": polars.from_pandas(FRAME), "pyarrow": pyarrow.Table.from_pandas(FRAME)}


def equal(batch, expected):
    assert len(batch) == len(expected)
    for ours, theirs in zip(batch, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_names_pick_columns_of_tables(table):
    equal(as_source(table, columns=Columns(labels="y", sample_weight="w")).batch, (X, Y, W))
    equal(as_source(table, columns=Columns("b", ["y", "w"])).batch, (X[:, 1], np.stack([Y, W], 1)))
    equal(as_source(table, columns=Columns(("b", "a"), "y"), what="predict").batch[None], (X[:, ::-1],))


def test_one_key_is_the_array_and_several_are_a_dict():
    data = {"image": X, "mask": X > 0, "label": Y}
    rest, labels = as_source(data, columns=Columns(labels="label")).batch
    assert list(rest) == ["image", "mask"]
    assert labels is data["label"]
    assert as_source(data, columns=Columns("image", "label")).batch[0] is X
    assert list(as_source(data, columns=Columns(["mask"], ["label"])).batch[0]) == ["mask"]


def test_structured_arrays_and_archives_have_names(tmp_path):
    records = np.array([(1.0, 2), (3.0, 4)], [("x", "f4"), ("y", "i4")])
    equal(as_source(records, columns=Columns("x", "y")).batch, (np.float32([1, 3]), np.int32([2, 4])))
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    with np.load(tmp_path / "a.npz") as archive:
        equal(as_source(archive, columns=Columns("x", "y")).batch, (X, Y))


def test_arrays_go_with_names():
    given = Given.of("fit", FRAME[["a", "b", "w"]], None, Y, "w")
    assert given.columns == Columns(sample_weight="w")
    equal(as_source(given.data, given.labels, columns=given.columns).batch, (X, Y, W))


BAD = [
    (FRAME, {"labels": "z"}, ValueError, r"labels='z': .* no key or column 'z'. It has \['a', 'b', 'y', 'w'\]"),
    (FRAME, {"labels": ("y", "a", "b", "w")}, ValueError, "none is left for the inputs"),
    (FRAME, {"labels": "y", "inputs": X}, TypeError, "`inputs` must be the names"),
    (X, {"labels": "y"}, TypeError, r"\(labels='y'\), but the data of fit is a ndarray, which has no names"),
    ([(X, Y)], {"labels": "y"}, TypeError, "is a list, which has no names"),
    (lambda: iter([(X, Y)]), {"labels": "y"}, TypeError, "batch 0 is a tuple, which has no names"),
    ([{"x": X}], {"labels": "y"}, ValueError, "batch 0 has no key or column 'y'"),
    (X, {"labels": ["u"] * 20}, TypeError, r"labels .* holds text"),
]


@pytest.mark.parametrize(("data", "names", "error", "message"), BAD)
def test_wrong_names_are_told_before_anything_is_made(data, names, error, message):
    trainer = eg.Trainer(nn.Dense(1), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    with pytest.raises(error, match=message):
        trainer.fit(data, verbose=0, **names)
    assert "not initialised" in repr(trainer)


def test_dict_batches_train_as_tuples_do():
    def run(data, **names):
        trainer = eg.Trainer(nn.Dense(1), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
        history = trainer.fit(data, epochs=2, validation_data=data, verbose=0, **names).history
        return history, trainer.evaluate(data, verbose=0, **names), trainer.predict(data, **names)

    parts = [slice(0, 8), slice(8, 20)]
    expected = run([(X[p], Y[p, None], W[p]) for p in parts])
    dicts = [{"x": X[p], "y": Y[p, None], "w": W[p]} for p in parts]
    names = {"inputs": "x", "labels": "y", "sample_weight": "w"}
    for data in (dicts, lambda: iter(dicts)):
        ours = run(data, **names)
        assert ours[:2] == expected[:2]
        np.testing.assert_array_equal(ours[2], expected[2])


def test_validation_data_follows_the_names():
    def history(validation_data):
        trainer = eg.Trainer(nn.Dense(1), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
        return trainer.fit(FRAME, ["y"], sample_weight="w", validation_data=validation_data, verbose=0).history

    expected = history((X, Y[:, None], W))
    assert history(FRAME) == history(eg.Evaluation(FRAME)) == history([(X, Y[:, None], W)]) == expected
    both = history({"all": FRAME, "few": (X[:5], Y[:5, None], W[:5])})
    assert both["val_all_loss"] == expected["val_loss"] != both["val_few_loss"]


def test_predict_takes_tables_without_the_labels():
    trainer = eg.Trainer(nn.Dense(1), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    trainer.fit(FRAME, ["y"], sample_weight="w", verbose=0)
    for table in (FRAME, FRAME[["a", "b"]], FRAME.assign(y="unknown")):
        np.testing.assert_array_equal(trainer.predict(table, labels="y", sample_weight="w"), trainer.predict(X))
    np.testing.assert_array_equal(next(trainer.predict_iter(FRAME, inputs=("a", "b"))), trainer.predict(X))


def test_inputs_is_the_data_where_nothing_comes_first():
    trainer = eg.Trainer(nn.Dense(1), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    trainer.fit(inputs=X, labels=Y[:, None], verbose=0)
    np.testing.assert_array_equal(trainer.predict(inputs=X), trainer.predict(X))
    with pytest.raises(TypeError, match="the inputs of fit are None"):
        trainer.fit(labels=Y)


ONE_BATCH = {
    "table": (FRAME, {"labels": ["y"], "sample_weight": "w"}),
    "dict": (
        {"x": X, "y": Y[:, None], "w": W, "text": ["a"] * 20},
        {"inputs": "x", "labels": "y", "sample_weight": "w"},
    ),
}


@pytest.mark.parametrize(("data", "names"), ONE_BATCH.values(), ids=ONE_BATCH)
def test_methods_that_take_one_batch_take_names(data, names):
    loss = eg.losses.MeanSquaredError()
    named, arrays = (eg.Trainer(nn.Dense(1), loss=loss, optimizer=optax.sgd(0.1)) for _ in range(2))
    calls = {
        "train_on_batch": {},
        "test_on_batch": {},
        "cost": {"batch_size": 8},
        "check": {"batch_size": 6, "steps": 1},
        "find_learning_rate": {"steps": 4, "batch_size": 16},
        "find_batch_size": {"budget": 100_000, "trial": False},
    }
    named.init_on_batch(data, **names)
    arrays.init_on_batch(X, Y[:, None], sample_weight=W)
    for method, options in calls.items():
        expected = getattr(arrays, method)(X, Y[:, None], sample_weight=W, **options)
        assert getattr(named, method)(data, **names, **options) == expected, method
    np.testing.assert_array_equal(named.predict_on_batch(data, **names), arrays.predict_on_batch(X))
    assert named.summary(data, **names, return_repr=True) == arrays.summary(X, return_repr=True)


def test_one_batch_without_the_name_is_told_and_changes_nothing():
    trainer = eg.Trainer(nn.Dense(1), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    for method in ("init_on_batch", "train_on_batch", "test_on_batch", "check", "cost", "find_batch_size"):
        with pytest.raises(ValueError, match=rf"labels='z': the batch of {method} has no key or column 'z'"):
            getattr(trainer, method)(FRAME, labels="z")
    with pytest.raises(TypeError, match="the batch of predict_on_batch is a ndarray, which has no names"):
        trainer.predict_on_batch(X, labels="y")
    assert "not initialised" in repr(trainer)

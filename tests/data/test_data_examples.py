"""Single examples of a map-style data set: the same bits as arrays, errors that name the example, workers that end."""

import collections
import signal
import threading

import numpy as np
import optax
import psutil
import pytest
from boring_modules import High, assert_same_bits, host, regression
from map_style import Captioned, Pairs, broken, gone

import elegy as eg
from elegy.callbacks import ModelCheckpoint
from elegy.data import Examples, as_source
from elegy.data.aligned import ALIGNMENT
from elegy.errors import ExampleError

X, Y = regression(22)
WORKERS = [(0, "threads"), (2, "threads"), (2, "processes")]
Pair = collections.namedtuple("Pair", "a b")


def pairs(x=X, y=Y, **kwargs):
    return Pairs(x, y, **kwargs)


def children():
    return [one for one in psutil.Process().children() if "example_worker" in " ".join(one.cmdline())]


def trainer():
    return eg.Trainer(High(), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.05))


@pytest.mark.parametrize(("workers", "kind"), WORKERS)
def test_rows_are_those_of_the_arrays(workers, kind):
    source, arrays = as_source(Examples(pairs(), workers=workers, kind=kind)), as_source(X, Y)
    assert (source.size, source.nbytes, source.workers) == (22, arrays.nbytes, workers)
    with source.reading():
        for indices in (np.array([3, 1, 2]), np.array([[5, 5], [0, 21]]), np.arange(22)):
            for ours, theirs in zip(source.take(indices), arrays.take(indices), strict=True):
                np.testing.assert_array_equal(ours, theirs, strict=True)
        # The CPU backend computes with memory that is aligned, without a copy.
        assert [leaf.ctypes.data % ALIGNMENT for _ in range(9) for leaf in source.take(np.arange(7))] == [0] * 18
        part = source.part(4, 9)
        np.testing.assert_array_equal(part.take(np.array([4, 0]))[1], Y[[8, 4]])
        np.testing.assert_array_equal(part.slice(3, 9)[0], X[7:9])
        assert len(children()) == (workers if kind == "processes" else 0)
    assert not children()


def test_a_repeated_row_is_read_once():
    read = []

    class Counted(Pairs):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    source = as_source(Examples(Counted(X, Y)))
    read.clear()
    source.take(np.array([[4, 7], [7, 7]]))
    assert sorted(read) == [4, 7]


def test_examples_may_be_trees():
    class Trees(Pairs):
        def __getitem__(self, i):
            return {"z": [i, i + 1], "a": Pair(np.float32(i), None)}, [np.uint8(i), {"t": True}], 0.5 * i

    inputs, labels, weights = as_source(Examples(Trees(X, Y))).take(np.array([3, 1]))
    assert set(inputs) == {"z", "a"}
    np.testing.assert_array_equal(inputs["z"], [[3, 4], [1, 2]])
    assert type(inputs["a"]) is Pair
    np.testing.assert_array_equal(inputs["a"].a, np.float32([3, 1]), strict=True)
    np.testing.assert_array_equal(labels[0], np.uint8([3, 1]), strict=True)
    np.testing.assert_array_equal(labels[1]["t"], [True, True], strict=True)
    np.testing.assert_array_equal(weights, [1.5, 0.5])


@pytest.fixture(scope="module")
def reference():
    one = trainer()
    history = one.fit(X, Y, epochs=3, batch_size=4, validation_split=0.2, verbose=0).history
    return history, one.evaluate(X, Y, batch_size=5, verbose=0), one.predict(X, batch_size=5), host(one.state)


@pytest.mark.parametrize("kind", ["threads", "processes", None])
def test_fit_evaluate_and_predict_equal_those_of_the_arrays(kind, reference):
    data = pairs() if kind is None else Examples(pairs(), workers=2, kind=kind)
    one = trainer()
    history = one.fit(data, epochs=3, batch_size=4, validation_split=0.2, verbose=0).history
    assert (history, one.evaluate(data, batch_size=5, verbose=0)) == reference[:2]
    np.testing.assert_array_equal(one.predict(data, batch_size=5), reference[2])
    assert_same_bits(host(one.state), reference[3])
    assert not children()


def test_a_run_resumes_in_the_middle_with_the_same_bits(tmp_path, reference):
    options = {"epochs": 3, "batch_size": 4, "validation_split": 0.2, "verbose": 0}
    callbacks = [ModelCheckpoint(tmp_path, every=eg.Every(steps=1), save_top_k=-1)]
    trainer().fit(Examples(pairs(), workers=2), callbacks=callbacks, max_steps=7, **options)
    one = trainer()
    history = one.fit(Examples(pairs(), workers=2), callbacks=callbacks, resume="auto", **options).history
    assert history["loss"] == reference[0]["loss"]
    assert_same_bits(host(one.state), reference[3])


def test_validation_data_is_examples_if_the_training_data_is():
    first = trainer().fit(pairs(), batch_size=4, validation_data=pairs(), verbose=0)
    second = trainer().fit(X, Y, batch_size=4, validation_data=(X, Y), verbose=0)
    assert first.history == second.history


def test_without_a_batch_size_the_items_of_a_sequence_are_batches():
    class Batches(Pairs):
        def __getitem__(self, i):
            return X[2 * i : 2 * i + 2], Y[2 * i : 2 * i + 2]

        def __len__(self):
            return 11

    one, other = trainer(), trainer()
    one.fit(Batches(X, Y), verbose=0)
    other.fit(X, Y, batch_size=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(one.predict(X), other.predict(X), rtol=1e-5)


@pytest.mark.parametrize(("workers", "kind"), WORKERS)
def test_the_error_of_an_example_names_it_and_leaves_the_state(workers, kind):
    one = trainer()
    one.init_on_batch(X[:2], Y[:2])
    before = host(one.state)
    data = Examples(pairs(faulty=17, how=broken), workers=workers, kind=kind)
    with pytest.raises(
        ExampleError, match=r"reading example 17 of the Pairs failed: FileNotFoundError: image.png"
    ) as e:
        one.predict(data, batch_size=4)
    assert isinstance(e.value.__cause__, FileNotFoundError)
    assert ("In the worker process" in str(getattr(e.value.__cause__, "__notes__", ""))) == (kind == "processes")
    assert_same_bits(host(one.state), before)
    assert not children()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda: (X[0, :2], Y[0]), r"inputs has the shape \(2,\), but in example 0 it has \(3,\): pad"),
        (lambda: (X[0].astype(np.float64), Y[0]), "inputs has the dtype float64, but in example 0 it has float32"),
        (lambda: X[0], "it has 1 arrays, but example 0 has 2"),
        (lambda: ({"a": "text"}, Y[0]), "inputs has the shape"),
    ],
)
def test_an_example_unlike_the_first_is_refused(how, message):
    with pytest.raises(ExampleError, match=f"reading example 5 of the Pairs failed: ValueError: {message}"):
        trainer().fit(pairs(faulty=5, how=how), batch_size=4, verbose=0)


@pytest.mark.parametrize(("workers", "kind"), WORKERS)
@pytest.mark.parametrize("labelled", [True, False])
def test_keys_that_are_not_used_may_hold_anything(workers, kind, labelled):
    data = Examples(Captioned(X, Y, labelled), workers=workers, kind=kind)
    names = {"inputs": "image", "labels": "label"} if labelled else {"inputs": "image"}
    ours, theirs = trainer(), trainer()
    found = ours.fit(data, **names, batch_size=4, validation_split=0.2, verbose=0).history
    assert found == theirs.fit(X, Y, batch_size=4, validation_split=0.2, verbose=0).history
    assert_same_bits(host(ours.state.params), host(theirs.state.params))
    np.testing.assert_array_equal(ours.predict(data, **names, batch_size=4), theirs.predict(X, batch_size=4))
    with pytest.raises(TypeError, match=r"example 0: inputs/caption has the dtype .*`inputs=` takes the names of"):
        ours.fit(data, labels=names.get("labels"), batch_size=4, verbose=0)


def test_a_worker_that_ends_is_an_error():
    with pytest.raises(
        RuntimeError, match=r"worker process that read examples \[.*17.*\] of the Pairs ended with exit code 3"
    ):
        trainer().evaluate(Examples(pairs(faulty=17, how=gone), workers=1, kind="processes"), batch_size=4, verbose=0)
    assert not children()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Examples([]), ValueError, "the list is empty"),
        (lambda: Examples(3), TypeError, "the data set is an int, which has no"),
        (lambda: Examples(pairs(), workers=-1), ValueError, "workers=-1 is negative"),
        (lambda: Examples(pairs(), workers=1.0), TypeError, "workers must be an integer"),
        (lambda: Examples(pairs(), kind="fork"), ValueError, "kind='fork' is unknown.*'processes'"),
        (lambda: Examples(pairs(faulty=0, how=broken)), ExampleError, "reading example 0 of the Pairs failed"),
        (lambda: Examples([("a", 1)]), TypeError, "example 0: inputs"),
        (
            lambda: as_source(Examples(pairs()), Y),
            TypeError,
            "labels were given to fit with examples that contain them",
        ),
        (lambda: as_source(Examples(pairs()), class_weight={0: 2.0}), TypeError, "class_weight needs labels in memory"),
        (lambda: trainer().fit(Examples(pairs()), batch_size=99), ValueError, "batch_size=99 is larger than the data"),
        (lambda: trainer().fit(Examples(pairs(x=X + np.nan)), check_inputs=True), ValueError, "inputs has 66 of 66"),
    ],
)
def test_what_cannot_be_read_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_data_set_that_cannot_be_copied_is_refused_for_processes():
    data = Examples(pairs(how=threading.Lock()), workers=1, kind="processes")
    with pytest.raises(TypeError, match=r"the Pairs cannot be sent to worker processes.*kind='threads'"):
        trainer().fit(data, batch_size=4, verbose=0)


SCRIPT = """
    import sys, time, numpy as np, optax
    import elegy as eg

    class Slow:
        def __len__(self):
            return 8

        def __getitem__(self, i):
            if i == 7:
                print("hangs", flush=True)
                time.sleep(600)
            return np.ones(3, np.float32), np.ones(1, np.float32)

    class Line(eg.ElegyModule):
        def init(self, key, inputs):
            return self.replace(params=np.zeros((3, 1), np.float32))

        def apply(self, key, inputs, training):
            return inputs @ self.params, self

    trainer = eg.Trainer(Line(), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    trainer.fit(eg.data.Examples(Slow(), workers=2, kind=sys.argv[1]), batch_size=2, shuffle=False, verbose=0)
"""


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("processes", signal.SIGINT),
        pytest.param("processes", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("threads", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_run_that_waits_for_an_example_and_leaves_no_process(start, kind, number):
    process = start(1, SCRIPT, kind)
    assert process.stdout.readline() == "hangs\n"
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == (2 if kind == "processes" else 0)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == (0 if number != signal.SIGKILL else -number), (out, err)
    _, alive = psutil.wait_procs(workers, timeout=300)
    assert not alive


def test_an_example_with_other_keys_is_told():
    class Other:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return {"a": np.float32([i]), ("b" if i < 2 else "A"): np.float32([-i])}

    for workers in (0, 1):
        examples = Examples(Other(), workers=workers)
        with examples.reader.reading():
            np.testing.assert_array_equal(examples.rows()["b"].take(np.array([1, 0])), [[-1], [0]])
            with pytest.raises(
                eg.errors.ExampleError, match=r"example 2 .*its arrays have the keys \[\('A',\), \('a',\)\]"
            ):
                examples.rows()["a"].take(np.array([0, 2]))

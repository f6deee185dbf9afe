"""An interrupted pass goes on where it stopped: the rest is what an uninterrupted source would have given."""

import json
import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from elegy.data import iteration
from elegy.data.foreign_state import decode, encode
from elegy.data.iterables import IterableSource
from elegy.errors import CheckpointError


class Positioned:
    """An iterator in the manner of Grain: bytes in and out."""

    def __init__(self, order):
        self.order, self.i = order, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.i == len(self.order):
            raise StopIteration
        self.i += 1
        return np.array([self.order[self.i - 1]])

    def get_state(self):
        return json.dumps(self.i).encode()

    def set_state(self, state):
        self.i = json.loads(state.decode())


class PositionedLoader:
    """Its iterators know their position; each pass has the same order."""

    def __iter__(self):
        return Positioned(range(5))


class StatefulLoader:
    """In the manner of stateful torch loaders: the loader has the state, each pass an order of its own."""

    def __init__(self):
        self.passes, self.yielded, self.finished, self.resumes = 0, 0, False, False

    def __iter__(self):
        if not self.resumes or self.finished:
            self.passes, self.yielded, self.finished = self.passes + 1, 0, False
        self.resumes = False
        return self._rest()

    def _rest(self):
        while self.yielded < 5:
            self.yielded += 1
            yield np.array([100 * self.passes + self.yielded])
        self.finished = True

    def state_dict(self):
        return {"passes": self.passes, "yielded": self.yielded, "finished": self.finished}

    def load_state_dict(self, state):
        self.__dict__.update(state, resumes=True)


class Sequence:
    def __init__(self):
        self.asked = []

    def __len__(self):
        return 5

    def __getitem__(self, i):
        self.asked.append(i)
        return np.array([i])


class Restarting(Positioned):
    """Begins again in `__iter__`, and cannot be asked for its position."""

    get_state = set_state = None

    def __iter__(self):
        self.i = 0
        return self


def generator():
    return (np.array([i]) for i in range(40))


KINDS = {
    "list": lambda: [np.array([i]) for i in range(5)],
    "function": lambda: lambda: (np.array([i]) for i in range(5)),
    "sequence": Sequence,
    "generator": generator,
    "positioned iterator": lambda: Positioned(range(40)),
    "positioned loader": PositionedLoader,
    "stateful loader": StatefulLoader,
    "restarting": lambda: Restarting(range(5)),
}


LIMITS: dict[str, tuple] = dict.fromkeys(KINDS, (None, 4)) | {
    "generator": (4,),
    "positioned iterator": (4,),
    "restarting": (None,),  # 4 would leave one batch for the second pass: an error in any run
}


# The k-th batch of a run, where it is known without reading it.
EXPECTED = {kind: lambda k: k % 5 for kind in ("list", "function", "sequence", "positioned loader")} | {
    "generator": lambda k: k,
    "positioned iterator": lambda k: k,
    "stateful loader": lambda k: 100 * (k // 5 + 1) + k % 5 + 1,
}


def place(iterable, count):
    """The state of a run that has seen some batches of a first pass."""
    source = IterableSource(iterable)
    batches = source.batches()
    for _ in range(count):
        next(batches)
    return source.state(count)


def numbers(source, passes, limit, count=None, on_stop=None):
    """The batches of some passes; the last one is left after `count` batches, without asking for another."""
    found = []
    for number in range(passes):
        for i, batch in enumerate(source.batches(limit), 1):
            found.append(int(batch[0]))
            if number == passes - 1 and i == count:
                on_stop(i)
                return found
    on_stop(0)
    return found


@pytest.mark.filterwarnings("ignore:.*is not known: ")
@pytest.mark.parametrize("read_first", [False, True], ids=["untouched", "first batch read"])
@pytest.mark.parametrize(("passes", "count"), [(1, 1), (1, 3), (2, 2), (2, None), (2, "all"), (3, 4)])
@pytest.mark.parametrize(("kind", "limit"), [(kind, limit) for kind, limits in LIMITS.items() for limit in limits])
def test_the_rest_is_what_an_uninterrupted_run_sees(kind, limit, passes, count, read_first):
    length = limit or 5
    count = length if count == "all" else count
    whole = numbers(IterableSource(KINDS[kind]()), 5, limit, on_stop=lambda i: None)
    source, states = IterableSource(KINDS[kind]()), []
    seen = numbers(source, passes, limit, count, lambda i: states.append(source.state(i)))
    state = json.loads(json.dumps(states[0]))

    resumed = IterableSource(KINDS[kind]())
    if read_first:
        next(resumed.batches(limit))
    resumed.load_state(state)
    done = passes - (count is not None)
    rest = [int(b[0]) for _ in range(5 - done) for b in resumed.batches(limit)]
    assert seen + rest == whole
    if kind in EXPECTED:
        assert whole == [EXPECTED[kind](k) for k in range(len(whole))]


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("kind", ["positioned loader", "stateful loader", "positioned iterator"])
def test_a_batch_that_was_read_and_not_used_is_read_again(kind, passes):
    limit = 4 if kind == "positioned iterator" else None
    whole = numbers(IterableSource(KINDS[kind]()), 4, limit, on_stop=lambda i: None)
    source, states = IterableSource(KINDS[kind]()), []
    seen = numbers(source, passes, limit, 4, lambda i: states.append(source.state(i - 1)))[:-1]
    resumed = IterableSource(KINDS[kind]())
    resumed.load_state(json.loads(json.dumps(states[0])))
    assert seen + [int(b[0]) for _ in range(5 - passes) for b in resumed.batches(limit)] == whole


@pytest.mark.parametrize("kind", ["positioned loader", "stateful loader"])
def test_a_pass_that_was_cut_by_a_limit_counts_as_over(kind):
    whole = numbers(IterableSource(KINDS[kind]()), 4, 3, on_stop=lambda i: None)
    source = IterableSource(KINDS[kind]())
    passes = source.batches(3)
    seen = [int(next(passes)[0]) for _ in range(3)]  # the loop that is told its last batch asks for no other
    source.end()
    resumed = IterableSource(KINDS[kind]())
    resumed.load_state(source.state(0))
    assert seen + [int(b[0]) for _ in range(3) for b in resumed.batches(3)] == whole


@pytest.mark.filterwarnings("ignore:.*is not known: ")
@pytest.mark.parametrize(
    ("kind", "done"),
    # The stateful loader's passes differ, so that its batches cannot be counted.
    [
        (kind, done)
        for kind in LIMITS
        for done in (2, 4)
        if (kind, done) != ("stateful loader", 2) and 4 in LIMITS[kind]
    ],
)
def test_batches_that_are_not_done_when_a_pass_was_read_to_its_end_come_again(kind, done):
    """So it is where several steps make one execution, and in a process whose share ended before the others'."""
    whole = numbers(IterableSource(KINDS[kind]()), 4, 4, on_stop=lambda i: None)
    source = IterableSource(KINDS[kind]())
    for _ in range(2):
        list(source.batches(4))
    resumed = IterableSource(KINDS[kind]())
    resumed.load_state(json.loads(json.dumps(source.state(done))))
    assert whole[: 4 + done] + [int(b[0]) for _ in range(3) for b in resumed.batches(4)] == whole


def test_what_knows_its_position_is_not_read_to_get_there():
    iterator = Positioned(range(40))
    source = IterableSource(Positioned(range(40)))
    list(source.batches(30))
    resumed = IterableSource(iterator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load_state(source.state(0))
    assert iterator.i == 30


def test_a_sequence_is_not_read_to_get_there():
    sequence = Sequence()
    source = IterableSource(sequence)
    source.load_state(place(Sequence(), 3))
    assert len(list(source.batches())) == 2
    assert sequence.asked == [3, 4]


def test_batches_that_were_read_and_not_used_are_counted_if_no_state_fits():
    source = IterableSource(Positioned(range(40)))
    batches = source.batches(10)
    for _ in range(5):
        next(batches)
    resumed = IterableSource(Positioned(range(40)))
    with pytest.warns(UserWarning, match="3 batches of it were read and dropped"):
        resumed.load_state(source.state(3))
    assert int(next(resumed.batches(10))[0]) == 3


def test_slow_reading_is_said(monkeypatch):
    monkeypatch.setattr(iteration, "SLOW_SECONDS", -1.0)
    source = IterableSource(lambda: generator())
    with pytest.warns(UserWarning, match="reading the 7 batches .* `state_dict`"):
        source.load_state(place(generator, 7))


@pytest.mark.parametrize("iterable", [generator, Sequence(), generator()], ids=["function", "sequence", "iterator"])
def test_data_that_ends_before_the_position_is_other_data(iterable):
    reiterable = not isinstance(iterable, Iterator)
    with pytest.raises(ValueError, match=r"had read 50 batches, but the \w+ given to fit ended after (40|5)\."):
        IterableSource(iterable).load_state(place([np.zeros(1)] * 60 if reiterable else iter([np.zeros(1)] * 60), 50))


def test_a_state_that_nobody_takes_is_an_error():
    source = IterableSource(Positioned(range(40)))
    next(source.batches())
    with pytest.raises(CheckpointError, match="the generator that was given now has neither"):
        IterableSource(generator()).load_state(source.state(1))


def test_a_state_that_cannot_be_stored_is_named():
    class Odd(Positioned):
        def get_state(self):
            return {"workers": [{"lock": object()}]}

    source = IterableSource(Odd(range(3)))
    next(source.batches())
    with pytest.raises(CheckpointError, match=r"state of the Odd\['workers'\]\[0\]\['lock'\] is an object"):
        source.state(1)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2.5,
        "text",
        b"\x00\xff",
        [1, [2, b"x"]],
        (1, ("a",)),
        {"a": {"b": (1,)}},
        {1: "one", "elegy": "tag", (2, 3): None},
        {"elegy": "bytes", "data": "not base64"},
    ],
)
def test_values_survive_json(value):
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [np.arange(6.0).reshape(2, 3), np.zeros((0, 2), bool), np.uint8(7), np.float32(0.1)])
def test_arrays_survive_json(value):
    back = decode(json.loads(json.dumps(encode(value))))
    np.testing.assert_array_equal(back, value)
    assert back.dtype == value.dtype
    assert type(back) is type(value)

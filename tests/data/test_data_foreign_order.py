"""Loaders of other libraries: reseeded by epoch where there is a way, a warning where there is none."""

import itertools
import json
import multiprocessing
import warnings

import datasets
import grain
import numpy as np
import pytest
from absl import flags
from map_style import Rows

from elegy.data.foreign_order import is_reseeded, reseeded
from elegy.data.iterables import IterableSource
from elegy.distributed import Split

SIZE, BATCH = 10, 4


def ids(batch):
    return np.asarray(batch).ravel().tolist()


def epochs(source, count, limit=None):
    return [[i for batch in source.batches(limit) for i in ids(batch)] for _ in range(count)]


def shuffled():
    return grain.MapDataset.source(list(range(SIZE))).shuffle(seed=3).batch(BATCH)


class Source:
    def __len__(self):
        return SIZE

    def __getitem__(self, i):
        return i

    def __repr__(self):
        return "Source()"


def grain_loader(**kwargs):
    sampler = grain.samplers.IndexSampler(SIZE, **kwargs)
    return grain.DataLoader(data_source=Source(), sampler=sampler, operations=[grain.transforms.Batch(BATCH)])


class Numbered:
    """As Hugging Face's iterable data sets, and loaders with a distributed sampler."""

    def __init__(self):
        self.epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        yield np.array([100 * self.epoch])
        yield np.array([100 * self.epoch + 1])


def test_a_grain_map_dataset_is_shuffled_anew_in_every_epoch_as_by_repeat():
    expected = [ids(batch) for batch in shuffled().repeat(3)]
    rows = [i for batch in expected for i in batch]
    found = epochs(IterableSource(shuffled()), 3)
    assert [i for epoch in found for i in epoch] == rows
    assert [sorted(epoch) for epoch in found] == [list(range(SIZE))] * 3
    assert found[0] != found[1] != found[2]


def test_grain_reads_its_flags_in_a_program_that_parses_none_and_others_stay_unparsed():
    if "elegy_of_a_test" not in flags.FLAGS:
        flags.DEFINE_bool("elegy_of_a_test", True, "")
    flags.FLAGS.unparse_flags()
    epochs(IterableSource([np.arange(2)]), 1)
    epochs(IterableSource(shuffled()), 1)
    assert flags.FLAGS.grain_enable_multiprocess_worker_profiling is False
    with pytest.raises(flags.UnparsedFlagAccessError):
        _ = flags.FLAGS.elegy_of_a_test
    flags.FLAGS(["program", "--grain_enable_multiprocess_worker_profiling"])
    assert flags.FLAGS.grain_enable_multiprocess_worker_profiling is True
    flags.FLAGS.unparse_flags()
    flags.FLAGS["grain_enable_multiprocess_worker_profiling"].unparse()


@pytest.mark.slow
def test_a_grain_loader_with_worker_processes_has_every_example_and_resumes_exactly():
    def make():
        flags.FLAGS.unparse_flags()
        flags.FLAGS["grain_enable_multiprocess_worker_profiling"].present = 0
        sampler = grain.samplers.IndexSampler(SIZE, num_epochs=1, shuffle=True, seed=3)
        rows = Rows(np.arange(SIZE))  # of a module that imports little, because workers import it
        operations = [grain.transforms.Batch(BATCH)]
        return IterableSource(
            grain.DataLoader(data_source=rows, sampler=sampler, operations=operations, worker_count=2)
        )

    source = make()
    batches = source.batches()
    seen = ids(next(batches))
    state = json.loads(json.dumps(source.state(1)))
    whole = [*seen, *(i for batch in batches for i in ids(batch))]
    assert sorted(whole) == list(range(SIZE))
    resumed = make()
    resumed.load_state(state)
    assert [*seen, *epochs(resumed, 1)[0]] == whole


def test_a_grain_map_dataset_resumes_in_a_later_epoch():
    whole = epochs(IterableSource(shuffled()), 3)
    source = IterableSource(shuffled())
    epochs(source, 1)
    seen = ids(next(source.batches()))
    state = json.loads(json.dumps(source.state(1)))
    resumed = IterableSource(shuffled())
    next(resumed.batches())
    resumed.load_state(state)
    assert [seen + epochs(resumed, 1)[0], *epochs(resumed, 1)] == whole[1:]


def test_a_repeated_grain_dataset_is_endless():
    source = IterableSource(shuffled().repeat())
    assert source.steps is None
    rows = [i for batch in shuffled().repeat(2) for i in ids(batch)]
    assert [i for epoch in epochs(source, 3, 2) for i in epoch] == rows


def test_validation_sees_the_first_order_each_time():
    assert len(set(map(tuple, epochs(IterableSource(shuffled(), what="validation"), 2)))) == 1


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: shuffled().to_iter_dataset(), "PrefetchIterDataset"),
        (lambda: shuffled().to_iter_dataset().map(lambda x: x), "MapIterDataset"),
        (lambda: lambda: shuffled().to_iter_dataset(), "PrefetchIterDataset"),
        (lambda: grain_loader(shuffle=True, seed=0, num_epochs=1), "DataLoader"),
    ],
    ids=["iter dataset", "mapped", "function", "loader"],
)
def test_what_repeats_its_random_order_is_warned_of_once(make, kind):
    source = IterableSource(make())
    epochs(source, 1)
    with pytest.warns(UserWarning, match=f"the Grain {kind} given to fit repeats the order.*steps_per_epoch") as caught:
        epochs(source, 2)
    assert len(caught) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: grain.MapDataset.source(list(range(SIZE))).batch(BATCH).to_iter_dataset(),
        lambda: grain_loader(shuffle=False, num_epochs=1),
        lambda: [np.arange(BATCH)],
    ],
    ids=["iter dataset", "loader", "list"],
)
def test_what_is_not_random_is_not_warned_of(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epochs(IterableSource(make()), 3)


def test_set_epoch_is_called_with_the_number_of_each_epoch():
    assert epochs(IterableSource(Numbered(), epoch=2), 2) == [[200, 201], [300, 301]]
    assert epochs(IterableSource(Numbered()), 3, 1) == [[0], [1], [100]]
    assert is_reseeded(Numbered())


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize(("passes", "done"), [(1, 2), (2, 0)])
def test_a_hugging_face_data_set_is_shuffled_by_epoch_and_goes_on(limit, passes, done):
    rows = datasets.Dataset.from_dict({"x": list(range(20))}).to_iterable_dataset(num_shards=2)

    def make():
        return rows.shuffle(seed=3, buffer_size=8).with_format("numpy").batch(4)

    def read(batches):
        return [int(i) for batch in batches for i in batch["x"]]

    expected, told = [], make()
    for epoch in range(4):
        told.set_epoch(epoch)
        expected += read(told)
    source = IterableSource(make())
    seen = [i for _ in range(passes) for i in read(source.batches(limit))]
    batches = source.batches(limit)
    seen += read(itertools.islice(batches, done))
    resumed = IterableSource(make())
    next(resumed.batches(limit))  # as fit does before it resumes
    resumed.load_state(json.loads(json.dumps(source.state(done))))
    seen += [i for _ in range(2) for i in read(resumed.batches(limit))]
    assert seen == expected[: len(seen)]
    assert len(seen) == (passes + 2) * 4 * (limit or 5)


def test_the_number_of_the_epoch_may_be_known_late():
    source = IterableSource(Numbered())
    next(source.batches())
    assert source.start_at(5)
    assert epochs(source, 2) == [[500, 501], [600, 601]]


def test_what_cannot_be_reseeded_is_left_alone():
    data = [1, 2]
    assert reseeded(data, 3) is data
    assert not is_reseeded(data)
    source = IterableSource([np.zeros(1)])
    next(source.batches())
    assert not source.start_at(5)


def test_a_split_loader_is_reseeded_too():
    source = IterableSource(Split(Numbered()))
    assert epochs(source, 2) == [[0, 1], [100, 101]]


def test_a_tensorflow_data_set_is_warned_of_when_a_run_goes_on_inside_of_an_epoch():
    kind = type("Dataset", (list,), {"__module__": "tensorflow.python.data.ops.dataset_ops"})
    data = kind([np.zeros(1)] * 3)
    source = IterableSource(data)
    next(source.batches())
    with pytest.warns(UserWarning, match=r"as if the tf.data.Dataset given to fit.*reshuffle_each_iteration=False"):
        IterableSource(data).load_state(source.state(1))


# PyTorch


def torch_loader(**kwargs):
    import torch
    from torch.utils import data

    return data.DataLoader(data.TensorDataset(torch.arange(SIZE)), **{"batch_size": BATCH, "shuffle": True, **kwargs})


def seeded(kind):
    import torch
    from torch.utils import data

    generator = torch.Generator().manual_seed(7)
    if kind == "global":
        return torch_loader()
    if kind == "generator":
        return torch_loader(generator=generator)
    dataset = data.TensorDataset(torch.arange(SIZE))
    return torch_loader(shuffle=False, sampler=data.RandomSampler(dataset, generator=generator))


@pytest.mark.needs(library="torch")
@pytest.mark.parametrize("kind", ["global", "generator", "sampler"])
@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize(("passes", "done"), [(1, 1), (2, 1), (2, 0)])
def test_a_shuffled_torch_loader_goes_on_exactly_in_another_process(kind, limit, passes, done):
    import torch

    torch.manual_seed(1)
    source = IterableSource(seeded(kind))
    epochs(source, passes, limit)
    batches = source.batches(limit)
    seen = [ids(next(batches)) for _ in range(done)]
    state = json.loads(json.dumps(source.state(done)))
    rest = [ids(batch) for batch in batches] if done else []
    whole = [seen + rest, *([ids(b) for b in source.batches(limit)] for _ in range(2))][0 if done else 1 :]

    torch.manual_seed(2)
    resumed = IterableSource(seeded(kind))
    next(resumed.batches(limit))  # as fit does before it resumes
    resumed.load_state(state)
    found = [[ids(b) for b in resumed.batches(limit)] for _ in range(len(whole))]
    assert [seen + found[0], *found[1:]] == whole
    if limit is None:
        assert sorted(i for batch in seen + found[0] for i in batch) == list(range(SIZE))


@pytest.mark.needs(library="torch")
def test_a_distributed_sampler_is_told_the_epoch():
    import torch
    from torch.utils import data

    dataset = data.TensorDataset(torch.arange(SIZE))
    samplers = [data.DistributedSampler(dataset, num_replicas=1, rank=0, seed=5) for _ in range(2)]
    found = epochs(IterableSource(torch_loader(shuffle=False, sampler=samplers[0])), 3)
    for epoch, rows in enumerate(found):
        samplers[1].set_epoch(epoch)
        assert rows == list(samplers[1])
    assert found[0] != found[1]


@pytest.mark.needs(library="torch")
def test_a_sampler_of_unknown_order_is_warned_of_when_a_run_goes_on_inside_of_an_epoch():
    class Sampler:
        def __len__(self):
            return SIZE

        def __iter__(self):
            return iter(np.random.default_rng().permutation(SIZE).tolist())

    loader = torch_loader(shuffle=False, sampler=Sampler())
    source = IterableSource(loader)
    next(source.batches())
    with pytest.warns(UserWarning, match=r"as if the sampler Sampler of the DataLoader.*StatefulDataLoader"):
        IterableSource(loader).load_state(source.state(1))


def looked_at(loader):
    """The loader, without workers that start."""

    class Idle(type(loader)):
        def __init__(self):
            self.__dict__.update(loader.__dict__)

        def __iter__(self):
            return iter([np.zeros(1)])

    return Idle()


@pytest.mark.needs(library="torch")
@pytest.mark.parametrize("what", ["fit", "evaluate"])
@pytest.mark.parametrize("context", ["fork", None])
def test_workers_that_are_forked_are_warned_of(monkeypatch, what, context):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["fork", "spawn"])
    loader = looked_at(torch_loader(num_workers=2, multiprocessing_context=context))
    with pytest.warns(UserWarning, match=f'given to {what} forks its 2 worker.*multiprocessing_context="spawn"'):
        next(IterableSource(loader, what=what).batches())


@pytest.mark.needs(library="torch")
@pytest.mark.parametrize(
    ("options", "default"),
    [
        ({"num_workers": 2, "multiprocessing_context": "spawn"}, "fork"),
        ({"num_workers": 2}, "forkserver"),
        ({"num_workers": 0}, "fork"),
    ],
)
def test_workers_that_are_not_forked_are_not(monkeypatch, options, default):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: default)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(IterableSource(looked_at(torch_loader(**options))).batches())

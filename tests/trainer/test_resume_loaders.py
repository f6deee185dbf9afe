"""Loaders of other libraries go on where a checkpoint left them, by their own state."""

from __future__ import annotations

import time

import grain
import numpy as np
import optax
import pytest
from boring_modules import High, host, regression

import elegy as eg
from elegy.callbacks import ModelCheckpoint
from elegy.checkpoint import find_checkpoints

SIZE, BATCH, STEPS, EPOCHS = 22, 4, 6, 3


def grain_dataset():
    """Reads by several threads; its iterators hold the position, and each epoch has another order."""
    x, y = regression(SIZE)
    dataset = grain.MapDataset.source([(a, b) for a, b in zip(x, y, strict=True)]).shuffle(seed=3)
    return dataset.batch(BATCH, batch_fn=_stacked)


def grain_loader():
    """Its iterators hold the position; every epoch repeats the order, which is warned of."""
    return grain_dataset().to_iter_dataset()


def grain_iterator():
    """Every pass of a run goes on where the last one stopped, each in another order."""
    x, y = regression(SIZE)
    dataset = grain.MapDataset.source([(a, b) for a, b in zip(x, y, strict=True)]).shuffle(seed=3).repeat()
    return iter(dataset.batch(BATCH, batch_fn=_stacked).to_iter_dataset())


def torch_loader():
    """The loader itself holds the state, and each pass draws another order."""
    import torch
    from torchdata import stateful_dataloader as stateful

    x, y = map(torch.from_numpy, regression(SIZE))
    torch.manual_seed(0)
    return stateful.StatefulDataLoader(torch.utils.data.TensorDataset(x, y), batch_size=BATCH, shuffle=True)


def torch_loader_with_a_generator():
    """The loader draws its order and the seeds of its workers from one generator of the user."""
    return _stateful(lambda own: {"shuffle": True, "generator": own})


def torch_loader_with_a_sampler():
    """The sampler has no state of its own, and draws from a generator that the loader does not know."""
    import torch

    weights = torch.arange(1, SIZE + 1)
    sampler = torch.utils.data.WeightedRandomSampler
    return _stateful(lambda own: {"sampler": sampler(weights, SIZE, generator=own)})


def torch_loader_with_noise():
    """Its batches have noise from PyTorch's generator, which is elsewhere in another process."""
    import torch

    def noisy(rows):
        return [torch.stack(column) + torch.rand(()) for column in zip(*rows, strict=True)]

    torch.manual_seed(time.monotonic_ns() % 2**32)
    return _stateful(lambda own: {"shuffle": True, "collate_fn": noisy})


def _stateful(options):
    import torch
    from torchdata import stateful_dataloader as stateful

    examples = torch.utils.data.TensorDataset(*map(torch.from_numpy, regression(SIZE)))
    own = torch.Generator().manual_seed(5)
    return stateful.StatefulDataLoader(examples, batch_size=BATCH, **options(own))


def plain_torch_loader():
    """Has no state; each pass draws its order from PyTorch's generator, which is elsewhere in another process."""
    import torch

    x, y = map(torch.from_numpy, regression(SIZE))
    torch.manual_seed(time.monotonic_ns() % 2**32)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=BATCH, shuffle=True)


def _stacked(rows):
    return tuple(np.stack(column) for column in zip(*rows, strict=True))


LOADERS = {
    "grain dataset": (grain_dataset, None),
    "grain dataset, limited": (grain_dataset, 4),
    "grain loader": (grain_loader, None),
    "grain iterator": (grain_iterator, STEPS),
    "torch loader": (torch_loader, None),
    "torch loader, limited": (torch_loader, 4),
    "torch loader with a generator": (torch_loader_with_a_generator, None),
    "torch loader with a generator, limited": (torch_loader_with_a_generator, 4),
    "torch loader with a sampler": (torch_loader_with_a_sampler, None),
    "torch loader with noise": (torch_loader_with_noise, None),
    "plain torch loader": (plain_torch_loader, None),
    "plain torch loader, limited": (plain_torch_loader, 4),
}


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # what torchdata calls in torch
@pytest.mark.filterwarnings("ignore:the Grain PrefetchIterDataset given to fit repeats")
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.needs(library="torch")] if "torch" in kind else []) for kind in LOADERS],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, kind):
    make, steps = LOADERS[kind]

    def fit(**kwargs):
        trainer = eg.Trainer(High(), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.05))
        trainer.fit(make(), epochs=EPOCHS, steps_per_epoch=steps, verbose=0, **kwargs)  # a warning would be an error
        return trainer

    whole = fit(callbacks=[ModelCheckpoint(tmp_path, every=eg.Every(steps=1), save_top_k=-1)])
    paths = find_checkpoints(tmp_path)
    length = steps or STEPS
    assert len(paths) == EPOCHS * length
    for path in (paths[1], paths[length - 1], paths[length + 2]):
        resumed = fit(resume=path)
        assert resumed.history.history == whole.history.history
        for one, other in zip(host(resumed.state), host(whole.state), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_batch_size_beside_single_examples_of_grain_names_its_method():
    x, y = regression(SIZE)
    examples = grain.MapDataset.source([(a, b) for a, b in zip(x, y, strict=True)])
    trainer = eg.Trainer(High(), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    for dataset in (examples, examples.to_iter_dataset()):
        with pytest.raises(ValueError, match=r"write `dataset\.batch\(8\)` instead"):
            trainer.fit(dataset, batch_size=8, verbose=0)
    trainer.fit(examples.batch(11, batch_fn=_stacked), verbose=0)
    with pytest.raises(ValueError, match=r"their size already\.$"):
        trainer.fit([(x, y)], batch_size=8, verbose=0)

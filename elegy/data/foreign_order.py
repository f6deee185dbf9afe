"""Reseeds loaders of PyTorch, Grain and Hugging Face for each epoch, and warns if their order is unknown.

Libraries are recognised without being imported.
"""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from elegy.callers import stacklevel_of_caller
from elegy.data.foreign_state import decode, encode, has_state
from elegy.lazy import is_instance_of, require


def reseeded(iterable: Any, epoch: int) -> Any:
    """Passes the number of the epoch to an iterable, so that its order and augmentation change.

    Calls `set_epoch` of the iterable, and of the samplers and the dataset of a PyTorch `DataLoader`. A finite Grain
    `MapDataset` is repeated, which reseeds it.

    Args:
        iterable: anything that can be iterated.
        epoch: the number of the epoch, from 0.

    Returns:
        The iterable for this epoch.

    Example:
        >>> reseeded([1, 2], 3)
        [1, 2]
    """
    for setter in _epoch_setters(iterable):
        setter(epoch)
    if epoch and _is_finite_grain_map(iterable):
        length = len(iterable)
        return iterable.repeat()[epoch * length : (epoch + 1) * length]
    return iterable


def is_reseeded(iterable: Any) -> bool:
    """True if `reseeded` changes the order from epoch to epoch.

    Example:
        >>> is_reseeded([1, 2])
        False
    """
    return bool(_epoch_setters(iterable)) or _is_finite_grain_map(iterable)


def warn_if_repeated(iterable: Any, iterator: Any, what: str) -> None:
    """Warns if the order and augmentation of a Grain dataset are random, but the same in every epoch.

    Args:
        iterable: the iterable of the second epoch.
        iterator: its iterator.
        what: the call, for the message.

    Warns:
        UserWarning: if the dataset repeats its order and cannot be reseeded from outside.
    """
    if is_instance_of(iterable, "grain", "IterDataset"):
        if not any("Shuffle" in (name := type(node).__name__) or "Random" in name for node in _nodes(iterable)):
            return
        remedy = (
            "Call `.repeat()` on the MapDataset, before `.to_iter_dataset()`, and give steps_per_epoch; or give the "
            "MapDataset itself to fit, which reseeds it in every epoch."
        )
    elif is_instance_of(iterable, "grain", "DataLoader"):
        if b"seed=None" in iterator.get_state():  # without a seed the sampler is not random
            return
        remedy = (
            "Give its sampler `num_epochs=None`, which draws another order in each repetition, and steps_per_epoch."
        )
    else:
        return
    warnings.warn(
        f"the Grain {type(iterable).__name__} given to {what} repeats the order and the random transformations of its "
        f"first epoch in every epoch, because its seed is fixed. {remedy}",
        stacklevel=stacklevel_of_caller(),
    )


def let_grain_read_its_flags() -> None:
    """Gives the flags of Grain their defaults in a program that does not parse flags with absl.

    Grain reads one when it starts worker processes, which is an error of absl before flags are parsed. Other flags stay
    as they are, and a later `absl.app.run` parses those of Grain, too.
    """
    if "grain" not in sys.modules or (absl := sys.modules.get("absl.flags")) is None or absl.FLAGS.is_parsed():
        return
    for name in absl.FLAGS:
        if name.startswith("grain_"):
            absl.FLAGS[name].present = max(absl.FLAGS[name].present, 1)  # given: `FLAGS` returns its value


def random_state(iterable: Any) -> Any:
    """Returns the state of the random generators for the next epoch of a PyTorch `DataLoader`, as JSON values.

    Returns:
        The encoded state; None for other iterables.

    Example:
        >>> random_state([1, 2])
    """
    if not _is_torch_loader(iterable):
        return None
    torch = require("torch", "the state of a DataLoader")
    return encode([torch.get_rng_state(), *(generator.get_state() for generator in _generators(iterable))])


def random_state_within(iterable: Any) -> Any:
    """Returns the state of the random generators within an epoch of a `DataLoader` that restores its own position.

    torchdata's loader stores the state that its sampler's generator had at the beginning of the epoch, and draws the
    order again. A generator that is given to the loader also draws a seed after the order, which the restored loader
    leaves out, and so its next epochs would have another order.

    Returns:
        The encoded state; None for other iterables, for loaders with worker processes, and for samplers that draw the
        order again only when the next batch is read.

    Example:
        >>> random_state_within([1, 2])
    """
    if not (_is_torch_loader(iterable) and has_state(iterable)) or iterable.num_workers:
        return None
    sampler = iterable.sampler if iterable.batch_sampler is None else iterable.batch_sampler
    known = not is_map_style(iterable) or has_state(sampler) or type(sampler).__module__.startswith("torchdata.")
    return random_state(iterable) if known else None


def is_map_style(loader: Any) -> bool:
    """True if a `DataLoader` of PyTorch reads its dataset by index."""
    return not is_instance_of(loader.dataset, "torch.utils.data", "IterableDataset")


def set_random_state(iterable: Any, state: Any) -> None:
    """Restores the result of `random_state` or `random_state_within`; the next iterator repeats the order."""
    if not _is_torch_loader(iterable):
        return
    first, *others = decode(state)
    require("torch", "the state of a DataLoader").set_rng_state(first)
    for generator, one in zip(_generators(iterable), others, strict=False):
        generator.set_state(one)


def warn_of_unknown_order(iterable: Any, what: str) -> None:
    """Warns that a resumed run skips batches by count in a loader whose order may have changed.

    Args:
        iterable: the data of the resumed run.
        what: the call, for the message.

    Warns:
        UserWarning: if it is a PyTorch `DataLoader` with a sampler that is neither one of PyTorch's nor has
            `set_epoch`, or a data set of `tf.data`.
    """
    if _is_torch_loader(iterable):
        samplers = (one for one in _samplers(iterable) if not hasattr(one, "set_epoch"))
        unknown = [one for one in samplers if not type(one).__module__.startswith("torch.utils.data")]
        who = f"the sampler {type(unknown[0]).__name__} of the DataLoader" if unknown else None
        remedy = "use torchdata's StatefulDataLoader, or give the sampler `set_epoch`"
    else:
        tensorflow = any(cls.__module__.startswith("tensorflow.python.data") for cls in type(iterable).__mro__)
        who = "the tf.data.Dataset" if tensorflow else None
        remedy = "shuffle with a seed and `reshuffle_each_iteration=False`, or save at the end of epochs only"
    if who is not None:
        warnings.warn(
            f"the interrupted epoch goes on after as many batches as were seen, as if {who} given to {what} had the "
            f"same order again. If its order has changed, some examples come twice and others never: {remedy}.",
            stacklevel=stacklevel_of_caller(),
        )


def warn_of_fork(iterable: Any, what: str) -> None:
    """Warns if the worker processes of a PyTorch `DataLoader` are forked.

    A forked process copies the locks of all threads, but only one thread. If a thread of JAX had acquired a lock at
    the fork, the worker waits for it for ever.

    Args:
        iterable: anything that can be iterated.
        what: the call, for the message.

    Warns:
        UserWarning: if the loader forks its workers.
    """
    if not _is_torch_loader(iterable) or not iterable.num_workers:
        return
    context = iterable.multiprocessing_context
    method = context.get_start_method() if context is not None else multiprocessing.get_start_method(allow_none=True)
    if (method or multiprocessing.get_all_start_methods()[0]) == "fork":  # the first is the platform's default
        warnings.warn(
            f"the DataLoader given to {what} forks its {iterable.num_workers} worker processes. JAX runs threads, and "
            "a process that is forked from one with threads can deadlock. Write "
            '`DataLoader(..., multiprocessing_context="spawn")`, or `num_workers=0`.',
            stacklevel=stacklevel_of_caller(),
        )


def is_endless(iterable: Any) -> bool:
    """True if `len()` of an iterable is `sys.maxsize`, which Grain returns for endless data.

    Example:
        >>> is_endless([1, 2])
        False
    """
    try:
        return len(iterable) >= sys.maxsize
    except (TypeError, NotImplementedError, OverflowError):
        return False


def _is_finite_grain_map(iterable: Any) -> bool:
    return is_instance_of(iterable, "grain", "MapDataset") and not is_endless(iterable) and len(iterable) > 0


def _nodes(dataset: Any) -> Iterator[Any]:
    yield dataset
    for parent in dataset.parents:
        yield from _nodes(parent)


def _is_torch_loader(iterable: Any) -> bool:
    return is_instance_of(iterable, "torch.utils.data", "DataLoader")


def _samplers(loader: Any) -> list[Any]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    return list({id(sampler): sampler for sampler in found if sampler is not None}.values())


def _generators(loader: Any) -> list[Any]:
    found = (getattr(part, "generator", None) for part in (loader, *_samplers(loader)))
    return list({id(generator): generator for generator in found if generator is not None}.values())


def _epoch_setters(iterable: Any) -> list[Callable[[int], Any]]:
    parts = [iterable]
    if _is_torch_loader(iterable):
        parts += [*_samplers(iterable), iterable.dataset]
    return [part.set_epoch for part in parts if callable(getattr(part, "set_epoch", None))]

"""Batches of sequences of similar lengths, padded to a few lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from elegy.data.convert import as_arrays
from elegy.data.permutation import epoch_permutation
from elegy.data.sequences import as_padding, as_sequences, check_lengths, lengths_of, padded_to, rounded_up
from elegy.integers import positive_int
from elegy.types import Batch, PyTree

_CANDIDATES = 512
"""The largest number of lengths among which the best ones are searched."""


class BucketedBatches:
    """Batches of sequences of similar lengths, each padded to one of a few lengths, so that few shapes are compiled.

    Every sequence is in one batch of an epoch. A bucket's last sequences that do not fill a batch join the next longer
    bucket, so only the last batch of an epoch can have fewer rows. `fit` calls `set_epoch`, which changes the order,
    and resumes inside of an epoch exactly, without reading what came before.

    A batch is the inputs, `(inputs, labels)` or `(inputs, labels, sample_weight)`. Inputs are a dict of the padded
    sequences and `"mask"`, `bool[rows, length]`, True for positions of the sequences.

    Args:
        sequences: n arrays of shape (length_i, ...), which become the input `"tokens"`; or a dict of several lists of
            sequences, whose lengths are the same in all of them.
        labels: a tree of arrays of shape (n, ...): labels of whole sequences.
        token_labels: n arrays of shape (length_i, ...): labels of each position, padded with 0. The sample weights are
            0 where they are padded.
        sample_weight: `float[n]`, the weights of the sequences.
        batch_size: sequences in a batch.
        max_shapes: the largest number of shapes of batches. The lengths are chosen to need the least padding; a short
            last batch has a shape of its own, which counts.
        lengths: lengths to pad to instead; a short last batch adds a shape to theirs.
        multiple_of: lengths are multiples of this.
        value: what padding of the inputs holds.
        shuffle: True to shuffle the sequences and the batches of each epoch.
        seed: an integer; the order depends only on the seed and the epoch.
        drop_remaining: True to leave out a short last batch.

    Attributes:
        lengths: the lengths of batches, increasing.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if lists have different numbers of sequences, lengths differ between them, a sequence is longer than
            the lengths allow, or one shape is not enough for the short last batch.

    Example:
        >>> batches = BucketedBatches([[1], [2, 3], [4, 5, 6], [7]], [0, 1, 0, 1], batch_size=2, max_shapes=2)
        >>> [inputs["tokens"].shape for inputs, labels in batches], batches.lengths
        ([(2, 1), (2, 3)], (1, 3))
    """

    def __init__(
        self,
        sequences: Any,
        labels: PyTree | None = None,
        *,
        token_labels: Any = None,
        sample_weight: Any = None,
        batch_size: int = 32,
        max_shapes: int = 8,
        lengths: Sequence[int] | None = None,
        multiple_of: int = 1,
        value: float = 0,
        shuffle: bool = True,
        seed: int = 0,
        drop_remaining: bool = False,
    ):
        named = isinstance(sequences, Mapping)
        if named and ("mask" in sequences or not sequences):
            raise ValueError(
                f"a dict of sequences has the keys {list(sequences)}: it must have at least one, and none may be "
                "'mask', which is the name of the mask."
            )
        given = {str(key): part for key, part in sequences.items()} if named else {"tokens": sequences}
        self._inputs = {
            key: as_sequences(part, f"sequences[{key!r}]" if named else "sequences") for key, part in given.items()
        }
        self._token_labels = None if token_labels is None else as_sequences(token_labels, "token_labels")
        if labels is not None and token_labels is not None:
            raise ValueError("labels and token_labels were both given: use one of them.")
        first = next(iter(self._inputs))
        self._sizes = lengths_of(self._inputs[first])
        self._check_alike(first)
        self._labels = None if labels is None else as_arrays(labels, "labels")
        self._weights = None if sample_weight is None else np.asarray(as_arrays(sample_weight, "sample_weight"))
        self._check_rows()
        for part in self._inputs.values():
            as_padding(value, part[0].dtype)
        self.batch_size = positive_int("batch_size", batch_size)
        self._value, self._shuffle, self._drop = value, shuffle, drop_remaining
        self._seed, self._epoch = seed, 0
        self.lengths = self._lengths(
            lengths, positive_int("max_shapes", max_shapes), positive_int("multiple_of", multiple_of)
        )
        if not len(self):
            raise ValueError(f"drop_remaining leaves no batch of {batch_size} out of {self._sizes.size} sequences.")

    def _check_alike(self, first: str) -> None:
        others = {f"sequences[{key!r}]": part for key, part in self._inputs.items() if key != first}
        if self._token_labels is not None:
            others["token_labels"] = self._token_labels
        for name, part in others.items():
            sizes = lengths_of(part)
            if sizes.shape != self._sizes.shape:
                raise ValueError(f"{name} has {sizes.size} sequences, but {first!r} has {self._sizes.size}.")
            if (wrong := np.flatnonzero(sizes != self._sizes)).size:
                i = int(wrong[0])
                raise ValueError(
                    f"{name}[{i}] has the length {sizes[i]}, but sequence {i} of {first!r} has {self._sizes[i]}: each "
                    "position needs one value."
                )

    def _check_rows(self) -> None:
        for name, tree in (("labels", self._labels), ("sample_weight", self._weights)):
            for leaf in jax.tree.leaves(tree):
                if leaf.shape[:1] != self._sizes.shape:
                    raise ValueError(f"{name} has the shape {leaf.shape}, but there are {self._sizes.size} sequences.")

    def _lengths(self, given: Sequence[int] | None, max_shapes: int, multiple: int) -> tuple[int, ...]:
        if given is not None:
            lengths = tuple(sorted({rounded_up(positive_int("lengths", one), multiple) for one in given}))
            if not lengths:
                raise ValueError("lengths is empty: give at least one length, or leave it out.")
            check_lengths(self._sizes, lengths[-1], "the largest of lengths", "Add a longer one.")
            return lengths
        short = self._sizes.size % self.batch_size > 0 and not self._drop
        # All batches may be one short batch, whose shape is the only one.
        most = max_shapes - (short and self._sizes.size > self.batch_size)
        if not most:
            raise ValueError(
                f"max_shapes=1, but {self._sizes.size} sequences do not divide into batches of {self.batch_size}: the "
                "short last batch has another shape. Use max_shapes=2, drop_remaining=True, or another batch_size."
            )
        return best_lengths(self._sizes, most, multiple)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, on which the order of the next iteration depends."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        whole, rest = divmod(self._sizes.size, self.batch_size)
        return whole + (rest > 0 and not self._drop)

    def __repr__(self) -> str:
        return f"BucketedBatches({self._sizes.size} sequences, batch_size={self.batch_size}, lengths={self.lengths})"

    def rows(self, epoch: int = 0) -> list[np.ndarray]:
        """Returns the indices of the sequences of each batch of an epoch, for example to sort predictions.

        Example:
            >>> [rows.tolist() for rows in BucketedBatches([[1, 2], [3], [4]], batch_size=2, shuffle=False).rows()]
            [[1, 2], [0]]
        """
        return [rows for rows, _ in self._plan(epoch)]

    def _plan(self, epoch: int) -> list[tuple[np.ndarray, int]]:
        """Returns the rows and the length of each batch."""
        size = self._sizes.size
        order = epoch_permutation(self._seed, epoch, size) if self._shuffle else np.arange(size)
        bucket = np.searchsorted(self.lengths, self._sizes[order])
        full: list[tuple[np.ndarray, int]] = []
        carried = np.zeros(0, np.int64)  # places in the order
        for k, length in enumerate(self.lengths):
            places = np.sort(np.concatenate([carried, np.flatnonzero(bucket == k)]))
            count = len(places) // self.batch_size
            rows = order[places[: count * self.batch_size]].reshape(count, self.batch_size)
            full += [(one, length) for one in rows]
            carried = places[count * self.batch_size :]
        if self._shuffle and full:
            full = [full[i] for i in epoch_permutation(self._seed, epoch, len(full), 1)]
        return [*full, (order[carried], self.lengths[-1])] if carried.size and not self._drop else full

    def __iter__(self) -> BucketedIterator:
        """Returns an iterator over one epoch, with `state_dict` and `load_state_dict`."""
        return BucketedIterator(self, self._epoch)

    def batch(self, rows: np.ndarray, length: int) -> Batch:
        """Returns the batch of some sequences, padded to a length."""
        sizes = self._sizes[rows]
        mask = np.arange(length) < sizes[:, None]
        inputs = {
            key: padded_to([part[i] for i in rows], sizes, length, self._value)[0] for key, part in self._inputs.items()
        }
        inputs["mask"] = mask
        weights = None if self._weights is None else self._weights[rows]
        if self._token_labels is not None:
            of_tokens, _ = padded_to([self._token_labels[i] for i in rows], sizes, length)
            own = mask.astype(np.float32)
            return inputs, of_tokens, own if weights is None else own * weights.reshape(len(rows), 1)
        labels = None if self._labels is None else jax.tree.map(lambda leaf: leaf[rows], self._labels)
        if weights is not None:
            return inputs, labels, weights
        return inputs if labels is None else (inputs, labels)


class BucketedIterator(Iterator[Batch]):
    """Iterates the batches of one epoch of `BucketedBatches`.

    Args:
        batches: the batches.
        epoch: the epoch.
    """

    def __init__(self, batches: BucketedBatches, epoch: int):
        self._batches = batches
        self._begin(epoch, 0)

    def _begin(self, epoch: int, done: int) -> None:
        self._epoch, self._done, self._plan = epoch, done, self._batches._plan(epoch)

    def __next__(self) -> Batch:
        """Returns the next batch."""
        if self._done >= len(self._plan):
            raise StopIteration
        self._done += 1
        return self._batches.batch(*self._plan[self._done - 1])

    def state_dict(self) -> dict[str, int]:
        """Returns the position: the epoch, and the number of batches that were read."""
        return {"epoch": self._epoch, "batches": self._done, "sequences": self._batches._sizes.size}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues at a position.

        Raises:
            ValueError: if the position is of other data.
        """
        if state["sequences"] != self._batches._sizes.size:
            raise ValueError(
                f"the interrupted run had {state['sequences']} sequences, now there are {self._batches._sizes.size}. "
                "Resume with the data that the run began with."
            )
        self._begin(state["epoch"], state["batches"])


def best_lengths(sizes: np.ndarray, count: int, multiple_of: int = 1) -> tuple[int, ...]:
    """Returns the lengths that need the least padding, if each sequence is padded to the next one.

    They are exact for up to 512 different lengths, and chosen among 512 quantiles of more.

    Args:
        sizes: `int[n]`, the lengths of the sequences.
        count: the largest number of lengths.
        multiple_of: lengths are multiples of this.

    Example:
        >>> best_lengths(np.array([1, 1, 1, 9, 10]), 2)
        (1, 10)
    """
    rounded = np.maximum(-(-sizes // multiple_of), 1) * multiple_of
    lengths, weights = np.unique(rounded, return_counts=True)
    if len(lengths) > _CANDIDATES:
        quantiles = np.quantile(rounded, np.linspace(0, 1, _CANDIDATES), method="higher")
        lengths = np.unique(quantiles)
        weights = np.bincount(np.searchsorted(lengths, rounded), minlength=len(lengths))
    below = np.concatenate([[0], np.cumsum(weights)])  # sequences up to each length
    # cost[j]: the padded size of the sequences up to lengths[j], the last of the lengths in use.
    cost = below[1:] * lengths
    chosen: list[np.ndarray] = []  # for each number of lengths: the length before the last, -1 for none
    for _ in range(min(count, len(lengths)) - 1):
        through = cost[:, None] + (below[None, 1:] - below[1:, None]) * lengths[None, :]
        through[np.tril_indices(len(lengths), 0)] = np.iinfo(np.int64).max
        before = through.argmin(0)
        better = through[before, np.arange(len(lengths))] < cost
        cost = np.where(better, through[before, np.arange(len(lengths))], cost)
        chosen.append(np.where(better, before, -1))
    return _traced(lengths, chosen)


def _traced(lengths: np.ndarray, chosen: list[np.ndarray]) -> tuple[int, ...]:
    last, found = len(lengths) - 1, [int(lengths[-1])]
    for before in reversed(chosen):
        if before[last] >= 0:
            last = int(before[last])
            found.append(int(lengths[last]))
    return tuple(sorted(found))

"""Sources that read batches from iterables."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from elegy.callers import stacklevel_of_caller
from elegy.data.columns import Columns
from elegy.data.convert import as_batch, copied
from elegy.data.foreign_order import is_endless, is_map_style, set_random_state, warn_of_unknown_order
from elegy.data.foreign_state import has_state, set_state
from elegy.data.hugging_face import StreamBatches, has_scalars, is_stream
from elegy.data.iteration import REMEDY, Reader, is_sequence
from elegy.data.plan import DEFAULT_BATCH_SIZE, LIMIT_NAMES
from elegy.data.reading import Reading
from elegy.data.weights import weigh_classes
from elegy.distributed import Split
from elegy.integers import positive_int
from elegy.types import Batch


class IterableSource:
    """Reads an iterable of batches. In a `reading` block a thread reads ahead, as far as `read_ahead_to` allows.

    A pass has a limit or reads to the end. In fit, a pass with a limit (`steps_per_epoch`) continues where the last
    one stopped, and starts again at the end of the iterable. Elsewhere every pass starts at the beginning. A pass over
    an iterator always continues.

    A batch that is a list, `[inputs, labels]`, is treated as a tuple, because PyTorch's collate function makes lists.

    Args:
        iterable: an iterable or an iterator; a sequence with `__len__` and `__getitem__`; or a function without
            arguments that returns an iterator.
        class_weight: weights by class, multiplied into each batch's sample weights.
        what: the call, for messages: `"fit"`, `"validation"`, `"evaluate"` or `"predict"`.
        epoch: the index of the first epoch, with which loaders are reseeded.
        columns: the names of inputs, labels and sample weights in batches that are dicts or tables.
        batch_size: the rows of a full batch over all processes, if the batches were made for one; otherwise None.
        reading: the block in which the data is read, shared with the source of its rows; None for one of its own.

    Attributes:
        steps: the number of batches, `len(iterable)`; None if the iterable has no length.
        one_shot: True for an iterator.
        class_weight: the class weights.
        may_end: True to let a pass over an iterator have fewer batches than its limit, or none.
        at_most: True to let a pass over all of the data have fewer batches than its limit.
        taken: how many batches of the running pass have been taken; 0 after its end.

    Example:
        >>> source = IterableSource([[1.0], [2.0], [3.0]])
        >>> [float(batch[0]) for _ in range(2) for batch in source.batches(limit=2)]
        [1.0, 2.0, 3.0, 1.0]
    """

    def __init__(
        self,
        iterable: Any,
        *,
        class_weight: Mapping[int, float] | None = None,
        what: str = "fit",
        epoch: int = 0,
        columns: Columns | None = None,
        batch_size: int | None = None,
        reading: Reading | None = None,
    ):
        self._given = iterable
        self._reading = Reading() if reading is None else reading
        self._options: dict[str, Any] = {"class_weight": class_weight, "what": what, "epoch": epoch, "columns": columns}
        self._columns, self.batch_size = columns, batch_size
        self._part: Callable[[Any], Any] | None = None
        if isinstance(iterable, Split):
            iterable, self._part = iterable.batches, iterable.part
        self._reader = Reader(iterable, what, epoch, self._reading)
        self.one_shot = self._reader.one_shot
        self.steps = _length(iterable)
        self.class_weight = class_weight
        self._what = what
        self.may_end = self.at_most = False
        self.taken = 0
        self._passed = 0  # the number of batches of the last complete pass
        self._goes_on = self.one_shot
        self._resumed = 0, False  # how many batches of the next pass are done; True if it is complete

    def __repr__(self) -> str:
        return f"IterableSource({self._reader.kind}, steps={self.steps}, one_shot={self.one_shot})"

    def reading(self, prefetch: int = 0) -> contextlib.AbstractContextManager[None]:
        """A block in which a thread may read ahead.

        Args:
            prefetch: the number of batches that may be ready ahead; 0 reads every batch when it is needed.
        """
        return self._reading.block(prefetch)

    def read_ahead_to(self, count: float | None) -> None:
        """Allows to read ahead in the pass that runs or is about to begin.

        Args:
            count: the number of batches of the pass after which nothing is read ahead; None for all of the data.
        """
        done = max(self.taken, self._resumed[0])
        until = math.inf if count is None else self._reader.seen - done + count
        self._reader.read_ahead_to(until, self._prepared)

    @property
    def of_rows(self) -> bool:
        """True if the data yields single examples, which can be batched: a streaming data set of Hugging Face."""
        return is_stream(self._given)

    def how_to_batch(self, batch_size: int) -> str:
        """Returns a sentence on how to batch single examples, if the data has a method for it, as Grain's has."""
        if not callable(getattr(self._given, "batch", None)):
            return ""
        return f" If the {self._reader.kind} yields single examples, write `dataset.batch({batch_size})` instead."

    def in_batches(self, batch_size: int | None, drop_remaining: bool, processes: int = 1) -> IterableSource:
        """Returns a source of batches of rows.

        Args:
            batch_size: the rows of a batch over all processes; None for 32, or, if rows may be batches, for the rows as
                they are.
            drop_remaining: True to leave out a short last batch.
            processes: the number of processes, each of which reads its own rows.

        Raises:
            ValueError: if there are more processes than rows in a batch.
        """
        if not self.of_rows or (batch_size is None and not has_scalars(self._given)):
            return self
        size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        if size < processes:
            raise ValueError(f"batch_size={size} is smaller than the number of processes, {processes}.")
        here = jax.process_index() if processes > 1 else 0
        own = size * (here + 1) // processes - size * here // processes
        batched = StreamBatches(self._given, own, drop_remaining)
        source = IterableSource(batched, **self._options, batch_size=size, reading=self._reading)
        source.at_most = self.at_most
        return source

    def batches(self, limit: int | None = None) -> Iterator[Batch]:
        """Yields the batches of one pass.

        Args:
            limit: the number of batches to read; None reads to the end.

        Raises:
            TypeError: if the limit is not an integer, a leaf of a batch is not an array, or the function did not
                return an iterator.
            ValueError: if the limit is not positive or exceeds the data, or the pass has no batches.
        """
        name = LIMIT_NAMES.get(self._what, "steps")
        if limit is not None:
            limit = positive_int(name, limit)
            if self.steps is not None and limit > self.steps and not self.one_shot:
                raise ValueError(self._too_short(name, limit, self.steps))
        self._reader.until = 0
        return self._pass(limit, name)

    def _pass(self, limit: int | None, name: str) -> Iterator[Batch]:
        reader = self._reader
        self._goes_on = self.one_shot or (self._what == "fit" and limit is not None)
        (self.taken, over), self._resumed = self._resumed, (0, False)
        begun_here = not over and not (reader.is_open and (self._goes_on or self.taken))
        if begun_here:
            reader.begin()
        while not over and (limit is None or self.taken < limit):
            try:
                prepared = reader.read(self._prepared)
            except StopIteration:
                if begun_here or not self._goes_on or (self.one_shot and self.taken):
                    break
                reader.begin()
                begun_here = True
                continue
            self.taken += 1
            batch = prepared()
            del prepared
            yield batch
            del batch
        taken = self.taken
        self.end()
        if self.may_end and (taken or self._reader.seen):
            return
        if not taken:
            raise ValueError(self._no_batch())
        if limit is not None and taken < limit and not (over or self.at_most):
            raise ValueError(self._too_short(name, limit, taken))

    def end(self) -> None:
        """Ends the running pass after its last batch, without trying to read another one."""
        if self.taken:
            self._passed, self.taken = self.taken, 0
            if self._reader.now is not None and not self._goes_on:
                self._reader.leave()

    def start_at(self, epoch: int) -> bool:
        """Sets the index of the first epoch.

        Args:
            epoch: the index, with which loaders are reseeded.

        Returns:
            True if a pass that has begun has the order of another epoch, so that it must start again.
        """
        if not self._reader.renumber(epoch):
            return False
        self._reader.seen, self.taken = self._reader.seen - self.taken, 0
        return True

    def state(self, taken: int, *, own: bool = True) -> dict[str, Any]:
        """Returns the position in the data as JSON values, for `load_state`.

        It is the iterable's own state if it has `state_dict` and `load_state_dict`, or `get_state` and `set_state`,
        and a count of batches otherwise.

        Args:
            taken: how many batches of the running pass count as seen; 0 between passes. If more than one other was
                read, the position is always a count of batches.
            own: True to use the iterable's own state. It must be False if a signal stopped the iterable while it read
                a batch, because its position is unknown then.

        Raises:
            CheckpointError: if the iterable's own state cannot be read or stored.
        """
        reader = self._reader
        read_to_end = taken > 0 and not self.taken
        over = read_to_end and taken >= self._passed  # greater: the data of this process ended before that of others
        ahead = 0 if over else (self._passed if read_to_end else self.taken) - taken
        number, read, random = reader.place(ahead)
        state: dict[str, Any] = {
            "taken": min(taken, self._passed) if over else taken,
            "seen": reader.seen - ahead,
            "over": over,
            "iteration": number,
            "read": read,
            "random": random,
        }
        if reader.interrupted:
            state["left"] = True
        elif own:
            now = reader.own_state(ahead)
            state["iterator"] = now.iterator
            if not self.one_shot:
                state["iterable"] = now.iterable
                state["cut"] = reader.now is not None and reader.now.left
                state["random_within"] = now.random
        return state

    def load_state(self, state: Mapping[str, Any]) -> bool:
        """Moves the data to a position, so that the next pass continues there.

        Args:
            state: the result of `state`, for the same data.

        Returns:
            True if a new pass must begin; False if the data is at the position already.

        Raises:
            CheckpointError: if the state has the iterable's own state, and the iterable has no method to restore it.
            ValueError: if the data ends before the position.

        Warns:
            UserWarning: if skipping batches took long; if the data is an iterator, whose position is unknown; if its
                order may have changed; or if its own state is missing because a signal ended the run while it read a
                batch.
        """
        reader = self._reader
        own, of_iterable = state.get("iterator"), state.get("iterable")
        taken, number, read, random = state["taken"], state["iteration"], state["read"], state["random"]
        done = state["seen"] if self.one_shot else taken or read
        if left := state.get("left", False) and has_state(reader.iterable):
            self._warn_counted(read)
        if own is of_iterable is random is None and not done and not self.start_at(number):
            reader.seen += state["seen"]
            return False
        read_here, self.taken = reader.seen, 0
        self._passed, self._resumed = taken, (taken, state["over"])
        if self.one_shot:
            now = reader.now if reader.now is not None and reader.is_open else reader.begin()
            if own is not None:
                reader.set_own_state(own)
            else:
                reader.skip(max(state["seen"] - read_here, 0), begun=read_here > 0)
                self._warn_unknown(state["seen"])
            reader.seen = state["seen"]
            return True
        reader.go_to(number, random)
        if of_iterable is not None:
            set_state(reader.iterable, of_iterable)
            # The run had begun this pass, so its next pass uses another iterator. That of PyTorch draws from generators
            # when it takes up the state of a pass that has ended, so it is dropped, and they are restored afterwards.
            if state["cut"] or (random is not None and not read and is_map_style(reader.iterable)):
                reader.begin()
                reader.go_to(number, random)
        if read:
            if is_sequence(reader.iterable) and read > len(reader.iterable):
                raise reader.other_data(read, len(reader.iterable))
            now = reader.begin(read)
            if own is not None and (of_iterable is None or random is None):  # PyTorch's iterator has it already
                reader.set_own_state(own)
            elif of_iterable is None and read > now.read:
                if state.get("left", False) and not left and has_state(now.iterator):
                    self._warn_counted(read)
                warn_of_unknown_order(now.iterable, self._what)
                reader.skip(read)
            now.read = read
            if (within := state.get("random_within")) is not None:
                set_random_state(reader.iterable, within)
        reader.seen = state["seen"]
        return True

    def _warn_counted(self, read: int) -> None:
        warnings.warn(
            f"the interrupted run was stopped while the {self._reader.kind} given to {self._what} read a batch, so its "
            f"own state is not in the checkpoint: the first {read} batches of the pass are read and dropped. That is "
            "exact if every pass gives the same batches; otherwise resume from an older checkpoint.",
            stacklevel=stacklevel_of_caller(),
        )

    def _warn_unknown(self, seen: int) -> None:
        remedy = f" {REMEDY}" if self._what == "fit" else ""
        warnings.warn(
            f"the position of the {self._reader.kind} given to {self._what} is not known: {seen} batches of it were "
            f"read and dropped, as if it began where the interrupted run's did.{remedy}",
            stacklevel=stacklevel_of_caller(),
        )

    def _prepared(self, item: Any, number: int) -> Batch:
        where = f"batch {number}: "
        if self._columns is not None:
            item = self._columns.pick(item, where.rstrip(": "), only_inputs=self._what == "predict")
        item = item if self._part is None else self._part(item)
        # A loader may write its next batch to the same buffers before this one is on the device.
        batch = copied(as_batch(item, where, listed=True))
        return batch if self.class_weight is None else weigh_classes(batch, self.class_weight, where)

    def _no_batch(self) -> str:
        kind, seen = self._reader.kind, self._reader.seen
        if not seen:
            return f"the data of {self._what} is empty: the {kind} yielded no batch."
        return (
            f"the {kind} given to {self._what} is exhausted: it yielded {seen} batches before and has none for another "
            "pass. Give something that can be iterated again, such as a list, a data loader, or a function that "
            "returns a new generator, or limit the steps of each pass."
        )

    def _too_short(self, name: str, limit: int, found: int) -> str:
        return (
            f"{name}={limit} is beyond the data: the {self._reader.kind} had {found} batches for this pass. Lower "
            f"{name}, leave it out to read to the end, or give data that is longer."
        )


def _length(iterable: Any) -> int | None:
    try:
        return None if is_endless(iterable) else len(iterable)
    # There is no `__len__`, or the length is unknown: libraries raise different errors.
    except (TypeError, NotImplementedError):
        return None

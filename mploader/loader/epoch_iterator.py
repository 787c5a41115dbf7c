"""One pass over one epoch: what ``iter(loader)`` returns, and what the streams of a dataset read."""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mploader._util.checks import whole_number
from mploader._util.trees import flatten, pack_as
from mploader.engine.ipc.sample_report import BadSample, SampleReport
from mploader.engine.supervisor.pool import Pool
from mploader.errors import ArgumentError, WorkerError
from mploader.loader.bad_samples import NAMED, TRACEBACKS_KEPT
from mploader.loader.epoch_description import EpochDescription
from mploader.loader.position import Position
from mploader.loader.progress import Progress


def _nothing() -> None:
    """What happens at the end of an epoch whose source needs no call then."""


class EpochIterator:
    """One pass over an epoch of a loader, or over its rest. As an iterator it yields batches in order.

    An epoch iterator that is dropped half-way is cancelled: its batches are forgotten, and nothing else changes.
    Without a batch size, a batch is a block of elements here. It keeps the workers alive, not the loader.

    Args:
        description: what an epoch consists of.
        progress: of the loader; told what is consumed.
        pool: the workers.
        start: where it starts.
        series: the pool's number for it.
        end_epoch: called once, when everything was delivered.
        source: kept as long as this object: the source of this epoch, where it changes between epochs.
    """

    def __init__(
        self,
        description: EpochDescription,
        progress: Progress,
        pool: Pool,
        start: Position,
        series: int,
        end_epoch: Callable[[], None] = _nothing,
        source: object = None,
    ) -> None:
        self._description = description
        self._progress = progress
        self._pool = pool
        self._series = series
        self._end_epoch = end_epoch
        self._source = source
        self._is_over = False
        self.epoch = start.epoch
        self.num_batches = max(0, description.num_batches - start.batch)
        """Batches from the start to the end of the epoch; elements, for a loader without a batch size."""
        self.first = start.batch if description.is_batched else 0
        self.length = self.first + description.num_tasks(start)
        """:meth:`get` takes the indices from ``first`` to below this."""
        self.delivered = 0
        """Batches, or elements, handed out so far."""
        self._start = self._consumed = start
        self._next = self.first
        self._batch: Any = None
        """The batch with the index ``_next``, from when it is taken until it is returned."""
        self._dropped: list[int] = []
        """Elements that were left out, by their number in the epoch, sorted."""
        self._num_bad = progress.bad_before(start)
        """Bad samples of the epoch so far."""
        self._first_bad: list[BadSample] = []
        self._previous_ns: int | None = None
        # The finalizer must not refer to this object, and takes no lock.
        self._finalizer = weakref.finalize(self, pool.cancel_series, series)
        self._finalizer.atexit = False

    def get(self, batch_index: int) -> Any:
        """Waits for one batch and returns it. Each can be asked for once, in any order.

        All batches before it are made, too. Those that were skipped wait in slots, and beyond the slots in memory of
        this process.

        Raises:
            ArgumentError: there is no such batch, or it was returned before.
            LoaderError: the batch cannot be made, or too many samples are bad; every later call raises it again.
        """
        if whole_number("batch_index", batch_index, self.first) >= self.length:
            raise ArgumentError(f"batch_index={batch_index}: expected one from {self.first} to {self.length - 1}")
        delivery = self._pool.next_batch(self._series, batch_index, self._previous_ns)
        try:
            self._previous_ns = delivery.got_ns
            if delivery.reports:
                self._record_bad(batch_index, delivery.reports)
            self.delivered += 1 if self._description.is_batched else self._description.block_size
            # Here and not when the consumer asks for more: one that counts the batches never does.
            self.settle()
        except BaseException as error:
            # Ctrl-C at this moment, say, or what the source raises at the end of an epoch. The batch cannot be given
            # again, and an epoch with a hole in it must not look like one without. An error before this one stays.
            self._pool.fail(WorkerError(f"batch {batch_index} was lost on its way to the consumer ({error!r})"))
            raise
        return delivery.batch

    def batches(self, first: int = 0, step: int = 1) -> Iterator[Any]:
        """Returns an iterator of every ``step``-th batch, beginning ``first`` batches after the start.

        Unlike a generator it goes on after an exception: an error is raised again, and a wait that Ctrl-C interrupted
        is taken up again.
        """
        return _Batches(self, self.first + first, step)

    @property
    def countable(self) -> int:
        """How many batches (or elements) it yields; what is not delivered yet may turn out to be dropped."""
        return self.num_batches - len(self._dropped)

    def position_after(self, count: int) -> Position:
        """The position after the first ``count`` batches (or elements); at the end, the start of the next epoch."""
        batch = self._start.batch + count
        for dropped in self._dropped:
            batch += dropped <= batch
        return self._description.position(self.epoch, batch)

    def elements(self) -> Iterator[Any]:
        """Returns an iterator of elements, for a loader without a batch size, which counts each as consumed."""
        return Elements(self.batches(), self)

    def consume(self, count: int) -> None:
        """Notes that the first ``count`` batches (or elements) were consumed here, and not by way of TensorFlow."""
        self._progress.consumption.note_direct()
        self._consumed = self.position_after(count)
        self._progress.consume(self._consumed)

    def finish(self) -> None:
        """The consumer has come to the end, where the position is the start of the next epoch on every host."""
        if self._progress.consumed == self._consumed:  # otherwise another epoch is read by now
            self._consumed = Position(self.epoch + 1, 0)
            self._progress.consume(self._consumed)

    def close(self) -> None:
        """Cancels what is left; if everything was delivered, the epoch is over."""
        self._finalizer()
        self.settle()

    def end(self) -> None:
        """The consumer asks for more than there is, so it is done with the last batch that it got."""
        self._pool.note_end(self._previous_ns)
        self._previous_ns = None

    def settle(self) -> None:
        """Calls ``end_epoch``, once, if everything was delivered."""
        if not self._is_over and self.delivered >= self.num_batches:
            self._is_over = True
            self._end_epoch()

    def __iter__(self) -> EpochIterator:
        """Returns the object itself."""
        return self

    def __next__(self) -> Any:
        """Returns the next batch, which counts as consumed from then on."""
        if self._next >= self.length:
            self.end()
            self.close()
            raise StopIteration
        if self._batch is None:
            self._batch = self.get(self._next)
        self.consume(self._next + 1 - self.first)
        # Last, and without a call in between: what Ctrl-C interrupts above is returned by the next call.
        batch, self._batch = self._batch, None
        self._next += 1
        return batch

    def __repr__(self) -> str:
        return f"<EpochIterator: epoch {self.epoch}, batch {self._next} of {self.length}>"

    def _record_bad(self, batch_index: int, reports: Sequence[SampleReport]) -> None:
        bad = [
            BadSample.of(report, keep_traceback=number < TRACEBACKS_KEPT)
            for number, report in enumerate(reports, self._num_bad)
        ]
        self._num_bad += len(bad)
        self._first_bad = (self._first_bad + bad)[:NAMED]
        if self._description.is_batched:
            self._progress.record_bad(bad, Position(self.epoch, batch_index + 1))
        else:
            start = self._start.batch + batch_index * self._description.block_size
            for sample, report in zip(bad, reports, strict=True):
                assert report.offset is not None, "the sample was read for a block"
                self._progress.record_bad([sample], Position(self.epoch, start + report.offset + 1))
                if self._description.on_bad_sample.drops:
                    bisect.insort(self._dropped, start + report.offset)
        if self._description.max_bad.is_exceeded(self._num_bad):
            error = self._description.max_bad.error(self.epoch, self._num_bad, self._first_bad, bad[-1])
            self._pool.fail(error)
            raise error.again()


class _Batches(Iterator[Any]):
    """See :meth:`EpochIterator.batches`."""

    def __init__(self, epoch: EpochIterator, batch_index: int, step: int) -> None:
        self._epoch = epoch
        self._batch_index = batch_index
        self._step = step

    def __next__(self) -> Any:
        if self._batch_index >= self._epoch.length:
            self._epoch.end()
            raise StopIteration
        batch = self._epoch.get(self._batch_index)
        self._batch_index += self._step
        return batch


class Elements(Iterator[Any]):
    """The elements in blocks, one by one, as views of the blocks that they travel in.

    Args:
        blocks: the blocks; asked again after an exception.
        epoch: counts each element as consumed; None: elements are counted elsewhere.
    """

    def __init__(self, blocks: Iterator[Any], epoch: EpochIterator | None = None) -> None:
        self._blocks = blocks
        self._epoch = epoch
        self._block: Any = None
        self._leaves: list[Any] = []
        self._size = 0
        self._offset = 0
        """Of the next element in the block."""
        self._count = 0
        """Elements yielded so far."""

    def __next__(self) -> Any:
        """Returns the next element; an error is raised again at every further call."""
        while self._offset >= self._size:  # a block without an element has lost all of them as bad samples
            self._block, self._leaves, self._size, self._offset = None, [], 0, 0
            self._block = self._next_block()
            self._leaves = flatten(self._block)
            self._size = len(self._leaves[0])
        element = pack_as(self._block, [leaf[self._offset] for leaf in self._leaves])
        if self._epoch is not None:
            self._epoch.consume(self._count + 1)
        # Last, and without a call in between: what Ctrl-C interrupts above is returned by the next call.
        self._count += 1
        self._offset += 1
        return element

    def _next_block(self) -> Any:
        try:
            return next(self._blocks)
        except StopIteration:
            if self._epoch is not None:
                self._epoch.finish()
            raise

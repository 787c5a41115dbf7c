"""One pass over one epoch: what ``iter(loader)`` returns, and what the streams of a dataset read."""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mploader._util.checks import whole_number
from mploader._util.trees import flatten, pack_as
from mploader.engine.ipc.sample_report import BadSample, SampleReport
from mploader.engine.supervisor.pool import Pool
from mploader.errors import ArgumentError, WorkerError
from mploader.loader.bad_samples import TRACEBACKS_KEPT
from mploader.loader.checkpoint import Position
from mploader.loader.max_bad import NAMED

if TYPE_CHECKING:
    from mploader.loader.loader import Loader


class Run:
    """One pass over one epoch of a loader, or over its rest. As an iterator it yields batches in order.

    A run that is dropped half-way is given up: its batches are forgotten, and nothing else changes. Without a batch
    size a batch is a block of elements here.
    """

    def __init__(self, loader: Loader, pool: Pool, start: Position, number: int, source: object = None) -> None:
        self._source = source  # what the workers read the source of this epoch from, where it changes
        self._is_over = False
        self.epoch = start.epoch
        self.num_batches = max(0, len(loader) - start.batch)
        """Batches from the start to the end of the epoch; elements, for a loader without a batch size."""
        self.first = start.batch if loader.is_batched else 0
        self.length = len(loader) if loader.is_batched else -(-self.num_batches // loader.block_size)
        """Positions from ``first`` to here can be asked for."""
        self.delivered = 0
        """Batches, or elements, handed out so far."""
        self._start = self._consumed = start
        self._loader = loader
        self._pool = pool
        self._number = number
        self._position = self.first
        self._batch: Any = None
        """The batch at this position, from when it is taken until it is returned."""
        self._dropped: list[int] = []
        """Elements that were left out, by their place in the epoch, sorted."""
        self._bad = loader.bad_before(start)
        """Bad samples of the epoch so far."""
        self._first_bad: list[BadSample] = []
        self._left_ns = 0
        # The finalizer must not refer to the run, and takes no lock.
        self._finalizer = weakref.finalize(self, pool.cancel_series, number)
        self._finalizer.atexit = False

    def get(self, position: int) -> Any:
        """Waits for the batch at one position and returns it. Each position can be asked for once, in any order.

        All batches before it are made, too. Those that were skipped wait in slots, and beyond the slots in memory of
        this process.

        Raises:
            ArgumentError: the run has no such position, or it was given before.
            LoaderError: the batch cannot be made, or too many samples are bad; every later call raises it again.
        """
        if whole_number("position", position, self.first) >= self.length:
            raise ArgumentError(f"position={position}: this run goes from {self.first} to below {self.length}")
        delivery = self._pool.next_batch(self._number, position, self._left_ns)
        try:
            self._left_ns = delivery.got_ns
            if delivery.reports:
                self._record_bad(position, delivery.reports)
                self._check_bad()
            self.delivered += 1 if self._loader.is_batched else self._loader.block_size
            # Here and not when the consumer asks for more: one that counts the batches never does.
            self.settle()
        except BaseException as error:
            # Ctrl-C at this moment, say, or what the source does at the end of an epoch. The batch cannot be given
            # again, and an epoch with a hole in it must not look like one without. An error before this one stays.
            self._pool.fail(WorkerError(f"batch {position} was lost on its way to the consumer ({error!r})"))
            raise
        return delivery.batch

    def batches(self, first: int = 0, step: int = 1) -> Iterator[Any]:
        """Returns an iterator of every ``step``-th batch, from ``first`` behind the start on.

        Unlike a generator it goes on after an exception: an error is raised again, and what was interrupted by Ctrl-C
        is waited for again.
        """
        return _Batches(self, self.first + first, step)

    @property
    def countable(self) -> int:
        """How many batches (or elements) the run yields; what is not delivered yet may turn out to be dropped."""
        return self.num_batches - len(self._dropped)

    def place_after(self, count: int) -> Position:
        """The place behind the first ``count`` batches (or elements) of the run; at the end, the next epoch's start."""
        place = self._start.batch + count
        for dropped in self._dropped:
            place += dropped <= place
        # Not len(loader): without a batch size other hosts may have one element more.
        return Position(self.epoch, place) if place < self._loader.num_places else Position(self.epoch + 1, 0)

    def elements(self) -> Iterator[Any]:
        """Returns an iterator of the elements of a run without a batch size, which counts each as consumed."""
        return Elements(self.batches(), self)

    def consume(self, count: int) -> None:
        """Notes that the first ``count`` batches (or elements) were consumed here, and not by way of TensorFlow."""
        self._loader.consumption.note_direct()
        self._consumed = self.place_after(count)
        self._loader.consume(self._consumed)

    def finish(self) -> None:
        """The consumer has come to the end, where the place is the next epoch's start on every host."""
        if self._loader.position == self._consumed:  # otherwise another run is read by now
            self._consumed = Position(self.epoch + 1, 0)
            self._loader.consume(self._consumed)

    def close(self) -> None:
        """Gives the run up; if all of it was delivered, its epoch is over."""
        self._finalizer()
        self.settle()

    def end(self) -> None:
        """The consumer asks for more than there is, so it is done with the last batch that it got."""
        self._pool.note_end(self._left_ns)
        self._left_ns = 0

    def settle(self) -> None:
        """Tells the loader, once, that the epoch is over if everything was delivered."""
        if not self._is_over and self.delivered >= self.num_batches:
            self._is_over = True
            self._loader.end_epoch()

    def __iter__(self) -> Run:
        """Returns the run itself."""
        return self

    def __next__(self) -> Any:
        """Returns the next batch, which counts as consumed from then on."""
        if self._position >= self.length:
            self.end()
            self.close()
            raise StopIteration
        if self._batch is None:
            self._batch = self.get(self._position)
        self.consume(self._position + 1 - self.first)
        # Last, and without a call in between: what Ctrl-C interrupts above is given by the next call.
        batch, self._batch = self._batch, None
        self._position += 1
        return batch

    def __repr__(self) -> str:
        return f"<Run: epoch {self.epoch}, batch {self._position} of {self.length}>"

    def _check_bad(self) -> None:
        limit = self._loader.bad_limit
        if limit.is_exceeded(self._bad):
            self._pool.fail(limit.error(self.epoch, self._bad, self._first_bad))
            raise limit.error(self.epoch, self._bad, self._first_bad)

    def _record_bad(self, position: int, reports: Sequence[SampleReport]) -> None:
        bad = [
            BadSample(
                report.index, report.where, f"{report.kind}: {report.error}",
                report.traceback if number < TRACEBACKS_KEPT else "",
            )
            for number, report in enumerate(reports, self._bad)
        ]
        self._bad += len(bad)
        self._first_bad = (self._first_bad + bad)[:NAMED]
        if self._loader.is_batched:
            self._loader.record_bad(bad, Position(self.epoch, position + 1))
            return
        start = self._start.batch + position * self._loader.block_size
        stop = min(start + self._loader.block_size, len(self._loader))
        for sample, place in zip(bad, self._places_of(bad, start, stop), strict=True):
            self._loader.record_bad([sample], Position(self.epoch, place + 1))
            if self._loader.drops_bad:
                bisect.insort(self._dropped, place)

    def _places_of(self, bad: list[BadSample], start: int, stop: int) -> list[int]:
        """The place in the epoch that each bad sample of a block was read for.

        They come in the order of the block. Behind one come those that were to replace it and were bad too; such a
        sample may have a place of its own in the block, where it is told of again.
        """
        samples = self._loader.samples_of(self.epoch, start, stop)
        own = {index: at for at, index in enumerate(samples)}
        places: list[int] = []
        at = attempt = 0
        for index in (sample.index for sample in bad):
            is_stand_in = attempt > 0 and index == self._loader.replacement_of(self.epoch, samples[at], attempt)
            if is_stand_in and not self._loader.drops_bad:
                attempt += 1
            else:
                at, attempt = own.get(index, at), 1
            places.append(start + at)
        return places


class _Batches(Iterator[Any]):
    """See :meth:`Run.batches`."""

    def __init__(self, run: Run, position: int, step: int) -> None:
        self._run = run
        self._position = position
        self._step = step

    def __next__(self) -> Any:
        if self._position >= self._run.length:
            self._run.end()
            raise StopIteration
        batch = self._run.get(self._position)
        self._position += self._step
        return batch


class Elements(Iterator[Any]):
    """The elements of a run without a batch size, one by one, as views of the blocks that they travel in.

    Args:
        blocks: these blocks; asked again after an exception.
        run: the run that counts each element as consumed; None: somebody else counts.
    """

    def __init__(self, blocks: Iterator[Any], run: Run | None = None) -> None:
        self._blocks = blocks
        self._run = run
        self._block: Any = None
        self._leaves: list[Any] = []
        self._size = 0
        self._place = 0
        """Of the next element in the block."""
        self._count = 0
        """Elements yielded so far."""

    def __next__(self) -> Any:
        """Returns the next element; an error is raised again at every further call."""
        while self._place >= self._size:  # a block without an element has lost all of them as bad samples
            self._block, self._leaves, self._size, self._place = None, [], 0, 0
            self._block = self._next_block()
            self._leaves = flatten(self._block)
            self._size = len(self._leaves[0])
        element = pack_as(self._block, [leaf[self._place] for leaf in self._leaves])
        if self._run is not None:
            self._run.consume(self._count + 1)
        # Last, and without a call in between: what Ctrl-C interrupts above is given by the next call.
        self._count += 1
        self._place += 1
        return element

    def _next_block(self) -> Any:
        try:
            return next(self._blocks)
        except StopIteration:
            if self._run is not None:
                self._run.finish()
            raise

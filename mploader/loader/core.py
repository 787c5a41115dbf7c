"""The core of a loader: its workers, its progress, and the iterators over its epochs.

:class:`mploader.loader.loader.Loader` is what users hold, and :mod:`mploader.tfdata` the hand-off to TensorFlow. Both
work on a :class:`LoaderCore`.

Locks, in the order in which a thread may take them (one that holds a lock takes only those behind it):

1. ``Progress.lock``: where the loader is in its stream, its bad samples, and the series that is made ahead.
2. ``Consumption``'s lock: what training has consumed of epochs that TensorFlow reads.
3. ``PoolState.lock`` of the pool: the schedule, results and the error that ended the pool.
4. the lock of the pool's counters, and behind it that of a trace.

The first three are reentrant: a signal handler or a finalizer may call the loader while its thread holds them. User
code (``begin_epoch``, ``end_epoch``, the source, the transform) is called without any of them.

It is longer than 300 lines: what takes the first two of these locks stands together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mploader._util.trees import map_structure
from mploader.batching.layout import BatchLayout
from mploader.engine.ipc import serialization
from mploader.engine.ipc.job import SampleJob
from mploader.engine.supervisor.pool import Pool
from mploader.engine.supervisor.ready_batch import ReadyBatch
from mploader.errors import ArgumentError
from mploader.loader import checkpoint, open_pools, sizing
from mploader.loader.declared_element import DeclaredElement
from mploader.loader.epoch_description import EpochDescription
from mploader.loader.epoch_iterator import EpochIterator
from mploader.loader.options import Options
from mploader.loader.position import Position
from mploader.loader.probing import ProbedElement
from mploader.loader.progress import Progress
from mploader.sampling.plan import Plan
from mploader.sources.lengths import LengthsOf, Measured
from mploader.sources.protocols import changes_between_epochs, yields_batches


class LoaderCore:
    """Loads batches with worker processes.

    Args:
        source: as of :class:`mploader.Loader`.
        transform: as of :class:`mploader.Loader`.
        options: its other arguments.

    Attributes:
        description: what an epoch consists of.
        layout: how a batch lies in a slot.
        slots: the slots.
        pool: the workers.
        progress: where the loader is in its stream.

    Raises:
        LoaderError: see :class:`mploader.Loader`.
    """

    def __init__(self, source: Any, transform: Callable[..., Any] | None, options: Options) -> None:
        self.options = options
        self.progress = Progress()
        self._source = source
        self._changes = changes_between_epochs(source)
        """Whether the source may change between epochs, and is sent to the workers anew."""
        self._ahead: tuple[Position, int] | None = None
        """(start, series) of the series that is made ahead of time."""
        self._last_epoch: weakref.ref[EpochIterator] | None = None
        """The newest iterator over an epoch of a source that changes."""
        served, plan = source, options.plan
        if options.bucket_by is not None:
            served, plan = _deal_to_buckets(source, options)
        job = SampleJob(
            source=served, transform=transform, plan=plan, on_bad_sample=options.on_bad_sample,
            is_batched=options.batch_size is not None,
        )  # fmt: skip
        self.pool = Pool(job, options.num_workers, options.stall_timeout_s)
        open_pools.add(self.pool)
        try:
            if options.trace is not None:
                self.pool.start_trace(options.trace)
            self.layout, self.slots = self._lay_out(plan, is_whole=yields_batches(source))
            # The first batches are begun when they are asked for and not here: a saved position may be loaded next, and
            # each worker would first finish those that it has begun. Measured with batches of 0.4 s, on two busy cores:
            # a position that was loaded 2 s after this gave its first batch in 2.0 s, and now does in 1.1 s, as a start
            # does. The price is the head start where iter() comes late: a batch that was ready then takes 0.9 s, once.
            self.pool.allocate(
                self.layout, self.slots.batch_bytes, self.slots.count, self.slots.reserved, self.slots.wanted
            )
        except BaseException:
            self.close()
            raise
        self.description = EpochDescription(
            plan=plan,
            batch_size=options.batch_size,
            block_size=self.layout.capacity,
            sizes_vary=options.sizes_vary,
            on_bad_sample=options.on_bad_sample,
            max_bad=dataclasses.replace(options.max_bad, samples=plan.num_host_samples),
        )

    def _lay_out(self, plan: Plan, is_whole: bool) -> tuple[BatchLayout, sizing.Slots]:
        """Learns what elements look like and decides on the slots."""
        options = self.options
        is_batched = options.batch_size is not None
        element: ProbedElement | DeclaredElement
        if options.element_spec is not None:
            element = DeclaredElement(options.element_spec)
        else:
            element = ProbedElement(self.pool.probe, plan.num_samples, options.on_bad_sample, is_whole)
        if is_whole:
            layout = element.whole_layout()
        else:
            layout = element.layout(options.pad, options.ragged, plan.longest_batch if is_batched else None)
        varying_bytes = None
        if not layout.is_fixed:
            samples_with = plan.batch_size_with if is_batched else lambda _: layout.capacity
            varying_bytes = element.varying_bytes(layout, samples_with)
        contents = f"a batch of {layout.capacity} samples of {max(1, sum(element.component_bytes)):,} bytes"
        batch_bytes = sizing.room_for_batch(layout.fixed_bytes, varying_bytes)
        return layout, sizing.slots_for_batches(batch_bytes, options.num_workers, options.memory_bytes, contents)

    @property
    def element_spec(self) -> Any:
        """The structure of :class:`ArraySpec` that the loader yields; see :attr:`mploader.Loader.element_spec`."""
        if not self.description.is_batched:
            return map_structure(lambda codec: codec.spec, self.layout.structure)
        return map_structure(lambda codec: codec.batch_spec(self.description.full_batch), self.layout.structure)

    # Epochs

    def open_epoch(self) -> EpochIterator:
        """Starts one pass over the next epoch, whose batches can be asked for by index.

        Raises:
            ClosedError: the loader is closed.
        """
        if self._changes:
            return self._open_changing_epoch()
        with self.progress.lock:
            start = self.progress.next
            if self._ahead is not None and self._ahead[0] == start:
                series = self._ahead[1]
                self.pool.claim(series)
            else:
                series = self._open_series(start, claimed=True)
            self.progress.next = Position(start.epoch + 1, 0)
            self._ahead = None
        self._make_ahead()
        return EpochIterator(self.description, self.progress, self.pool, start, series)

    def _open_changing_epoch(self) -> EpochIterator:
        """The same for a source that changes between epochs: workers get it anew, and nothing is made ahead."""
        last = None if self._last_epoch is None else self._last_epoch()
        if last is not None:
            last.settle()  # its last batch may have come before its end was noticed
        with self.progress.lock:
            start = self.progress.next
            self.progress.next = Position(start.epoch + 1, 0)
        self.pool.check_process()  # before the source hears of an epoch that is not read
        self._source.begin_epoch()
        renewal = self.pool.renew(start.epoch, self._source)
        series = self._open_series(start, claimed=True)
        epoch = EpochIterator(
            self.description, self.progress, self.pool, start, series, self._source.end_epoch, renewal
        )  # fmt: skip
        self._last_epoch = weakref.ref(epoch)
        return epoch

    def _open_series(self, start: Position, *, claimed: bool) -> int:
        """Opens a series of the pool from a position to the end of its epoch."""
        tasks = self.description.num_tasks(start)
        if self.description.is_batched:
            return self.pool.open_series(start.epoch, start.batch + tasks, start.batch, claimed=claimed)
        return self.pool.open_series(start.epoch, tasks, first=start.batch, claimed=claimed)

    def _make_ahead(self) -> None:
        """Lets the workers begin with the next epoch as soon as the present one leaves them time."""
        with self.progress.lock:
            if self._ahead is None and not self._changes:
                self._ahead = self.progress.next, self._open_series(self.progress.next, claimed=False)

    def _cancel_ahead(self) -> None:
        """Forgets what is made ahead; called with the lock held."""
        if self._ahead is not None:
            self.pool.cancel_series(self._ahead[1])
            self._ahead = None

    def rewind(self, position: Position) -> None:
        """Lets the next epoch iterator start at a position again. A source that changes cannot be rewound."""
        if self._changes:
            return
        with self.progress.lock:
            if self._ahead is not None and self._ahead[0] != position:
                self._cancel_ahead()
            self.progress.next = position

    # One batch

    def batch(self, epoch: int, index: int) -> Any:
        """Makes one batch again; see :meth:`mploader.Loader.batch`."""
        if index >= self.description.num_batches:
            unit = "batches" if self.description.is_batched else "elements"
            raise ArgumentError(
                f"batch({epoch}, {index}): expected n below {self.description.num_batches}, the {unit} of an epoch"
            )
        if self._changes:
            current = None if self._last_epoch is None else self._last_epoch()
            if current is None or current.epoch != epoch:
                raise ArgumentError(
                    f"batch({epoch}, {index}): this source changes between epochs, so only batches of an epoch that is "
                    "being read can be made again"
                )
        if self.description.is_batched:
            return self.pool.make_batch(epoch, index).batch
        return self._element_of(self.pool.make_batch(epoch, 0, first=index))

    def _element_of(self, block: ReadyBatch) -> Any:
        """Returns the first element of a block.

        Raises:
            LoaderError: it was dropped; says why.
        """
        for report in block.reports:
            if report.offset == 0 and self.description.on_bad_sample.drops:
                raise report.to_error("a worker", self.description.on_bad_sample.advice)
        return map_structure(lambda leaf: leaf[0], block.batch)

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """Returns the position of the last consumed batch; see :meth:`mploader.Loader.state_dict`."""
        consumption = self.progress.consumption
        if consumption.opened and not consumption.is_counted:
            raise ArgumentError(
                "TensorFlow takes batches ahead of training, so the loader does not know which were trained on. Count "
                "them: make position = mploader.tfdata.Position(loader) before the first batch and call "
                "position.advance() after each training step, or give fit() a mploader.tfdata.ResumeCallback(loader)"
            )
        consumed, (count, indices, in_epoch) = self.progress.snapshot()
        return checkpoint.save(
            consumed, self.description.plan, self.description.is_batched, self._source_facts,
            bad_count=count, bad_indices=indices, bad_in_epoch=in_epoch,
        )  # fmt: skip

    def load(self, state: Mapping[str, Any], *, strict: bool) -> None:
        """Continues at a saved position; see :meth:`mploader.Loader.load_state_dict`."""
        start = checkpoint.restore(
            state, self.description.plan, self.description.is_batched, self._source_facts, strict
        )  # fmt: skip
        with self.progress.lock:
            self._cancel_ahead()
            self.progress.load(
                start, state.get("bad_samples", 0), state.get("bad_indices", []), state.get("bad_in_epoch", 0)
            )
        self._make_ahead()

    @functools.cached_property
    def _source_facts(self) -> dict[str, str | int]:
        return checkpoint.facts_of(self._source)

    def close(self) -> None:
        """Ends the workers and waits for them; see :meth:`mploader.Loader.close`."""
        self.pool.close()


class CoreOwner:
    """Base of what users hold: a public object with a core behind it."""

    _core: LoaderCore


def core_of(name: str, loader: Any) -> LoaderCore:
    """Returns the core of the loader that a class or function of this package was given.

    Args:
        name: the class or function.
        loader: what it was given.

    Raises:
        ArgumentError: it is something else, such as the dataset.
    """
    if not isinstance(loader, CoreOwner):
        raise ArgumentError(f"{name}({type(loader).__name__}): expected the mploader.Loader whose as_dataset() is read")
    return loader._core


def _deal_to_buckets(source: Any, options: Options) -> tuple[Any, Plan]:
    """Returns the source as workers read it, and the plan of batches of samples of similar length."""
    assert options.bucket_by is not None
    lengths, served = options.bucket_by.length, source
    if callable(lengths):
        measured = _measure_lengths(source, lengths, options)
        without = frozenset(np.flatnonzero(measured < 0).tolist())
        served = Measured(source, lengths, without) if without else source
        lengths = measured
    return served, options.bucket_by.plan(options.plan, lengths)


def _measure_lengths(source: Any, length: Callable[[Any], int], options: Options) -> Any:
    """Asks for the length of every sample, in workers of its own. Returns int64 (samples,)."""
    serialization.check_picklable("length", length)
    raises = options.on_bad_sample.raises
    inner = Options.of(
        source,
        batch_size=min(1024, -(-len(source) // options.num_workers)),
        num_workers=options.num_workers,
        # A sample that kills workers is replaced here and reported when its turn comes.
        on_bad_sample="raise" if raises else "replace",
        stall_timeout=options.stall_timeout_s,
    )
    with contextlib.closing(LoaderCore(LengthsOf(source, length, raises=raises), None, inner)) as core:
        return np.concatenate([batch.copy() for batch in core.open_epoch()])

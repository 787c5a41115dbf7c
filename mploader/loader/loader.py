"""The loader: the object that users hold."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import html
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from mploader._util import resources
from mploader._util.checks import check_source, check_transform, path_text, seconds, whole_number
from mploader._util.trees import component_names, map_structure
from mploader.batching.choose_layout import make_layout, make_whole_layout, varying_bytes
from mploader.engine.ipc import serialization
from mploader.engine.ipc.job import ProbedElement as Description
from mploader.engine.ipc.job import SampleJob
from mploader.engine.ipc.sample_report import ADVICE, BadSample
from mploader.engine.ipc.worker_status import TEXT_BYTES
from mploader.engine.scheduler.crash_policy import MAX_HANGS_IN_A_ROW
from mploader.engine.supervisor.pool import Pool
from mploader.errors import ArgumentError, LoaderError, ResourceError, SampleError, SpecError, StallError
from mploader.loader import checkpoint as positions
from mploader.loader.bad_samples import BadSamples
from mploader.loader.checkpoint import Consumption, Position
from mploader.loader.epoch_iterator import Run
from mploader.loader.max_bad import MaxBad
from mploader.monitoring.bottleneck import Diagnosis, explain
from mploader.monitoring.statistics import Statistics
from mploader.monitoring.trace import MAX_EVENTS, Trace
from mploader.sampling.bucketing import BucketBy
from mploader.sampling.plan import Plan
from mploader.sampling.samplers import ShardShuffle, arrange
from mploader.sources.lengths import LengthsOf, Measured

if TYPE_CHECKING:
    import tensorflow as tf

POLICIES = ("raise", "drop", "replace")
SLOTS_IN_HAND = 6
"""Slots beyond those of the workers: what tf.data holds of a run (prefetch of 2, three in transfer) and one spare."""
MEMORY_SHARE = 0.5
"""The part of the memory still available that slots may take unless ``memory=`` says otherwise."""
SAMPLES_TO_DESCRIBE = 8
"""How many samples are tried before a loader gives up finding one good element to learn the spec from."""


class Loader:
    """Loads batches with worker processes: see the package's docstring for the path of a batch.

    Args:
        source: anything with ``__len__`` and ``__getitem__(int)``, or one of :mod:`mploader.sources`.
        transform: ``(sample) -> element``, or ``(sample, rng) -> element`` where ``rng`` is a
            ``numpy.random.Generator`` that depends on (seed, epoch, sample index) alone. None: samples are elements.
        batch_size: samples in a batch of this host. None: elements come one by one.
        shuffle: True: a fresh permutation of all samples in every epoch, in constant memory. A
            :class:`~mploader.ShardShuffle`: shards in random order, a window of them at a time, each read in order.
        seed: from 0. The same seed gives the same order and the same random numbers in every run.
        drop_remainder: whether the last batch of an epoch is left out where it is not full.
        num_workers: processes. None: as many as CPUs that this process may use.
        shard: (index, count): this host's share of every global batch of ``batch_size * count`` samples.
        on_bad_sample: "raise"; "drop": the batch gets shorter; "replace": another sample, chosen by the seed.
        max_bad_samples: how many may be dropped or replaced in one epoch of this host: a count, or as a float the share
            of its samples. One more is a :class:`SampleError`, raised in place of the batch that holds it. None: any.
        pad: how components of varying shape are padded: None (shapes are equal), a pad value or a
            :class:`~mploader.Pad` for every component, or a structure of these as the element has it. Without a
            batch size elements are padded each by itself.
        ragged: True for components whose first dimension varies, a number n for those whose first n do, or a
            structure of these: batches hold a :class:`~mploader.Ragged`, datasets a ``tf.RaggedTensor``.
        bucket_by: a :class:`~mploader.BucketBy`: batches of samples of similar length. Their number is the same in
            every epoch.
        memory: bytes that slots may take, as an int or text such as "512MiB". None: chosen and reported.
        stall_timeout: seconds without progress before a worker is replaced.
        trace: a file to write a timeline to, from the start until the loader is closed; see :meth:`trace`.

    Raises:
        ArgumentError: an argument cannot be meant, or cannot be sent to a worker.
        SampleError: none of the first samples can be made into an element.
        StallError: workers hang at their start, or on the first sample (several of them, if bad samples are skipped).
        ResourceError: the machine does not grant memory, processes or descriptors.
        WorkerError: no worker can be kept alive.
    """

    def __init__(
        self,
        source: Any,
        transform: Callable[..., Any] | None = None,
        *,
        batch_size: int | None,
        shuffle: bool | ShardShuffle = False,
        seed: int = 0,
        drop_remainder: bool = False,
        num_workers: int | None = None,
        shard: tuple[int, int] = (0, 1),
        on_bad_sample: str = "raise",
        max_bad_samples: int | float | None = None,
        pad: Any = None,
        ragged: Any = False,
        bucket_by: BucketBy | None = None,
        memory: int | str | None = None,
        stall_timeout: float = 300.0,
        trace: str | os.PathLike[str] | None = None,
    ) -> None:
        num_samples = check_source(source)
        check_transform(transform)
        if bucket_by is not None and not isinstance(bucket_by, BucketBy):
            raise ArgumentError(f"bucket_by={bucket_by!r}: wants a mploader.BucketBy, or None")
        trace = None if trace is None else path_text("trace", trace, "the name of a file")
        self._batch_size = None if batch_size is None else whole_number("batch_size", batch_size, 1)
        self._sizes_vary = bucket_by is not None and len(set(bucket_by.batch_sizes or ())) > 1
        if bucket_by is not None:
            self._batch_size = bucket_by.largest_batch(self._batch_size)
        self._num_workers = (
            resources.usable_cpus() if num_workers is None else whole_number("num_workers", num_workers, 1)
        )
        if on_bad_sample not in POLICIES:
            raise ArgumentError(f"on_bad_sample={on_bad_sample!r}: wants one of {', '.join(POLICIES)}")
        stall_timeout_s = seconds("stall_timeout", stall_timeout)
        budget = None if memory is None else resources.parse_bytes(memory, "memory")
        plan = Plan(num_samples, self._batch_size or 1, seed, bool(shuffle), drop_remainder, shard)
        self._plan = dataclasses.replace(plan, own_order=arrange(source, num_samples, plan.seed, shuffle))
        if not self._plan.num_batches:
            raise ArgumentError(
                f"an epoch would be empty: {num_samples} samples do not fill one batch of "
                f"{self._plan.global_batch_size}, and drop_remainder=True leaves out what does not"
            )
        self._on_bad_sample = on_bad_sample
        self.bad_limit = MaxBad.of(max_bad_samples, on_bad_sample, self._plan.num_host_samples)
        serialization.check_picklable("source", source)
        serialization.check_picklable("transform", transform)
        served = source
        if bucket_by is not None:
            lengths = bucket_by.length
            if callable(lengths):
                lengths = _measure_lengths(source, lengths, self._num_workers, on_bad_sample, stall_timeout_s)
                without = frozenset(np.flatnonzero(lengths < 0).tolist())
                served = Measured(source, bucket_by.length, without) if without else source
            self._plan = bucket_by.plan(self._plan, lengths)
            self.bad_limit = dataclasses.replace(self.bad_limit, samples=self._plan.num_host_samples)

        self._lock = threading.RLock()  # a signal handler may come back while it is held
        self._next = self._consumed = Position(0, 0)
        """Where the next run starts; the place behind the last batch that was consumed."""
        self._ahead: tuple[Position, int] | None = None
        """(start, run) of the run that is made ahead of time."""
        self.consumption = Consumption()
        self._source = source
        self._changes = hasattr(source, "begin_epoch")
        """Whether the source is told of epochs in this process, may change then, and is sent to the workers anew."""
        self._is_whole = bool(getattr(source, "yields_batches", False))
        """Whether the samples of the source are batches already."""
        self._described: dict[int, Description] = {}
        self._last_run: weakref.ref[Run] | None = None
        self._bad = BadSamples()
        job = SampleJob(
            source=served, transform=transform, plan=self._plan, on_bad_sample=on_bad_sample,
            is_batched=self.is_batched,
        )  # fmt: skip
        self._pool = Pool(job, self._num_workers, stall_timeout_s)
        # Whatever happens to the loader, its workers end: on close(), when it is collected, or at exit.
        self._finalizer = weakref.finalize(self, self._pool.request_stop)
        self._finalizer.atexit = False
        _open_loaders.add(self)
        try:
            if trace is not None:
                self._pool.start_trace(trace)
            description = self._describe_element()
            if self._is_whole:
                self._layout = make_whole_layout([other.structure for other in self._describe_spread().values()])
            else:
                capacity = self._plan.longest_batch if self.is_batched else None
                self._layout = make_layout(description.structure, description.component_bytes, pad, ragged, capacity)
            # The first batches are begun when they are asked for and not here: a saved position may be loaded next, and
            # each worker would first finish those that it has begun. Measured with batches of 0.4 s, on two busy cores:
            # a position that was loaded 2 s after this gave its first batch in 2.0 s, and now does in 1.1 s, as a start
            # does. The price is the head start where iter() comes late: a batch that was ready then takes 0.9 s, once.
            self._allocate(description, budget)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Batches in an epoch of this host; elements, for a loader without a batch size."""
        return self._plan.num_host_samples if self._batch_size is None else self.num_places

    @property
    def element_spec(self) -> Any:
        """The structure of :class:`ArraySpec` that the loader yields.

        With a batch size the first dimension is the batch: its size if every batch is full, otherwise None.
        """
        if self._batch_size is None:
            return map_structure(lambda codec: codec.spec, self._layout.structure)
        is_full = self._plan.drop_remainder and self._on_bad_sample != "drop" and not self._sizes_vary
        batch = self._batch_size if is_full else None
        return map_structure(lambda codec: codec.batch_spec(batch), self._layout.structure)

    def __iter__(self) -> Iterator[Any]:
        """Starts one run over the next epoch and returns its iterator of NumPy batches."""
        run = self.open_run()
        return iter(run) if self._batch_size is not None else run.elements()

    def open_run(self) -> Run:
        """Starts one run over the next epoch, whose batches can be asked for by position.

        Raises:
            ClosedError: the loader is closed.
        """
        if self._changes:
            return self._open_changing_run()
        with self._lock:
            start = self._next
            if self._ahead is not None and self._ahead[0] == start:
                number = self._ahead[1]
                self._pool.claim(number)
            else:
                number = self._open(start, claimed=True)
            self._next = Position(start.epoch + 1, 0)
            self._ahead = None
        self._make_ahead()
        return Run(self, self._pool, start, number)

    def _open_changing_run(self) -> Run:
        """The same for a source that changes between epochs: workers get it anew, and nothing is made ahead."""
        last = None if self._last_run is None else self._last_run()
        if last is not None:
            last.settle()  # its last batch may have come before its end was noticed
        with self._lock:
            start = self._next
            self._next = Position(start.epoch + 1, 0)
        # Outside the lock, since this is the user's code.
        self._source.begin_epoch()
        renewal = self._pool.renew(start.epoch, self._source)
        run = Run(self, self._pool, start, self._open(start, claimed=True), renewal)
        self._last_run = weakref.ref(run)
        return run

    def end_epoch(self) -> None:
        """All batches of an epoch were delivered."""
        if self._changes:
            self._source.end_epoch()

    def as_dataset(self) -> tf.data.Dataset:
        """Returns a ``tf.data.Dataset`` of the same batches, adopted by TensorFlow without a copy.

        Each iteration of it is one run over the next epoch. Its cardinality is known, but for a loader without a batch
        size that drops bad samples: nobody knows before how many elements are left.
        """
        from mploader import tfdata  # the only place where this module meets TensorFlow

        return tfdata.as_dataset(self)

    def statistics(self) -> Statistics:
        """Returns a frozen snapshot of the counters."""
        return self._pool.statistics()

    def explain(self) -> Diagnosis:
        """Tells what limits the last minute (training, decoding, reading, ...) and what to change; print it."""
        return explain(self._pool.recent_statistics(), resources.usable_cpus())

    def trace(self, path: str | os.PathLike[str], *, max_events: int = MAX_EVENTS) -> Trace:
        """Writes a timeline of workers, slots and consumers from now on, for https://ui.perfetto.dev.

        Use it in a ``with`` block, or call ``stop()`` on what it returns; closing the loader stops it too.

        Args:
            path: the file, in the JSON format of Chrome traces; replaced if it exists.
            max_events: how many events the file may hold, about 130 bytes each; a batch makes eight or so.

        Raises:
            ArgumentError: the file cannot be written, or a trace is under way.
        """
        return self._pool.start_trace(path, max_events)

    @property
    def current_trace(self) -> Trace | None:
        """The timeline that is being written, if there is one."""
        return self._pool.trace

    def bad_samples(self) -> list[BadSample]:
        """Returns the samples that were dropped or replaced in the batches delivered so far, oldest first.

        A sample that is bad in every epoch is listed for every epoch. A long training lists the last four epochs, and
        at least the last 1,000 bad samples; ``statistics().bad_samples`` counts all.
        """
        with self._lock:
            return self._bad.samples()

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of the last consumed batch: a plain dict for JSON, below 4 kB for any dataset.

        A batch is consumed once ``next()`` has returned it; what was prepared ahead does not count. Where several runs
        are read in turn, the one that gave the last batch counts. TensorFlow takes batches ahead of training, so with
        :meth:`as_dataset` a :class:`mploader.tfdata.Position` or :class:`mploader.tfdata.ResumeCallback` counts what
        training has consumed.

        Raises:
            ArgumentError: a dataset of this loader is read and nobody counts.
        """
        if self.consumption.opened and not self.consumption.is_counted:
            raise ArgumentError(
                "TensorFlow takes batches ahead of training, so the loader does not know which were trained on. Count "
                "them: make position = mploader.tfdata.Position(loader) before the first batch and call "
                "position.advance() after each training step, or give fit() a mploader.tfdata.ResumeCallback(loader)"
            )
        with self._lock:
            consumed = self._consumed
            count, indices, in_epoch = self._bad.until(consumed)
        return positions.save(consumed, self._plan, self.is_batched, self._source_facts, count, indices, in_epoch)

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Continues at a saved position: the next ``iter()``, or iteration of a dataset, starts there.

        Nothing is read or decoded to get there. Workers, slots and hosts may be other ones than when the state was
        saved, as long as ``batch_size * hosts`` is the same; runs that are under way are not affected. The epoch that
        the position lies in is the shorter by what was consumed of it, every later one is whole.

        Args:
            state: from :meth:`state_dict`, as it was or through JSON.
            strict: refuse the position of other data, or of another order. False: take it all the same.

        Raises:
            ArgumentError: this is no state, or it does not fit this loader; the message lists what differs.
        """
        start = positions.restore(state, self._plan, self.is_batched, self._source_facts, strict)
        with self._lock:
            if self._ahead is not None:
                self._pool.cancel_series(self._ahead[1])
                self._ahead = None
            self._next = self._consumed = start
            self._bad.load(
                start, state.get("bad_samples", 0), state.get("bad_indices", []), state.get("bad_in_epoch", 0)
            )
            self.consumption.clear()
        self._make_ahead()

    def rewind(self, place: Position) -> None:
        """Lets the next run start at a place again. A source that changes between epochs cannot be rewound."""
        if self._changes:
            return
        with self._lock:
            if self._ahead is not None and self._ahead[0] != place:
                self._pool.cancel_series(self._ahead[1])
                self._ahead = None
            self._next = place

    @property
    def start(self) -> Position:
        """Where the next run starts: ``(epoch, batch)``."""
        return self._next

    @property
    def epoch(self) -> int:
        """The epoch that the next run reads, from 0."""
        return self._next.epoch

    @property
    def position(self) -> Position:
        """The place behind the last consumed batch: ``(epoch, batch)``; the place 0 of the next epoch at an end."""
        return self._consumed

    @property
    def is_batched(self) -> bool:
        """Whether it yields batches; otherwise it yields elements one by one."""
        return self._batch_size is not None

    @property
    def num_places(self) -> int:
        """Places of a position in an epoch, the same on every host.

        Without a batch size a host of several may have one element less than places.
        """
        return self._plan.num_batches

    @property
    def num_workers(self) -> int:
        """How many worker processes the loader keeps alive."""
        return self._num_workers

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the living workers."""
        return self._pool.worker_pids

    def close(self) -> None:
        """Ends the workers and waits for them, at most a few seconds. Batches that somebody holds stay valid.

        May be called again, from any thread. Never needed for correctness: a loader that is collected, and an
        interpreter that exits, end the workers as well.
        """
        self._pool.close()

    def __enter__(self) -> Loader:
        """Returns the loader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the loader."""
        self.close()

    def __reduce__(self) -> Any:
        """Refuses to be pickled: a loader owns processes."""
        raise TypeError("a Loader cannot be pickled or sent to another process; make one there")

    def __repr__(self) -> str:
        size = "unbatched" if self._batch_size is None else f"batches of {self._batch_size}"
        return (
            f"<Loader: {self._plan.num_samples} samples, {size}, {len(self)} an epoch, {self._num_workers} workers, "
            f"{self._num_slots} slots of {self._slot_bytes / 2**20:.1f} MiB, next epoch {self.epoch}>"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f"<div><code>{html.escape(repr(self))}</code></div>{self.statistics()._repr_html_()}"

    # Inside

    def _open(self, start: Position, *, claimed: bool) -> int:
        """Opens a run of the pool from a place on."""
        if self.is_batched:
            return self._pool.open_series(start.epoch, len(self), start.batch, claimed=claimed)
        blocks = -(-(len(self) - start.batch) // self.block_size)
        return self._pool.open_series(start.epoch, max(0, blocks), first=start.batch, claimed=claimed)

    @property
    def drops_bad(self) -> bool:
        """Whether bad samples are left out."""
        return self._on_bad_sample == "drop"

    @property
    def block_size(self) -> int:
        """Samples in a batch; without a batch size, elements in the blocks that they travel in."""
        return self._layout.capacity

    @functools.cached_property
    def _source_facts(self) -> dict[str, str | int]:
        return positions.facts_of(self._source)

    def samples_of(self, epoch: int, start: int, stop: int) -> list[int]:
        """The samples of some batches of an epoch (elements, without a batch size), in order."""
        return list(map(int, self._plan.batches(epoch, start, stop)))

    def replacement_of(self, epoch: int, index: int, attempt: int) -> int:
        """The sample that stands in for a bad one."""
        return self._plan.replacement(epoch, index, attempt)

    def bad_before(self, start: Position) -> int:
        """How many samples were bad in the epoch of a run before the place where the run starts."""
        return self._bad.before(start)

    def consume(self, place: Position) -> None:
        """Notes that everything before a place was consumed."""
        self._consumed = place

    def _describe_element(self) -> Description:
        """Learns what an element looks like from the first sample that is good."""
        last = self._plan.num_samples - 1
        first_error: LoaderError | None = None
        hung = 0
        for index in sorted({*self._spread_samples(), *range(min(last + 1, SAMPLES_TO_DESCRIBE))}):
            try:
                return self._describe(index)
            except SampleError as error:
                first_error, hung = first_error or error, 0
            except StallError as error:
                first_error, hung = first_error or error, hung + 1
                # What has ended all workers comes again each time.
                if self._on_bad_sample == "raise" or hung == MAX_HANGS_IN_A_ROW:
                    raise
        assert first_error is not None
        if self._on_bad_sample == "raise":
            raise first_error
        first = str(first_error).replace(f"{ADVICE}\n", "")  # it was followed
        raise SampleError(
            f"none of the samples that were tried could be made into an element, and on_bad_sample="
            f"{self._on_bad_sample!r} needs a good one to learn shapes and dtypes from. The first of them:\n\n"
            f"{first}"
        )

    def _spread_samples(self) -> list[int]:
        last = self._plan.num_samples - 1
        if self._is_whole:
            return [0, min(1, last), last]  # two as Keras does, and the last, which tends to be shorter
        return [round(last * part / SAMPLES_TO_DESCRIBE) for part in range(SAMPLES_TO_DESCRIBE)]

    def _describe(self, index: int) -> Description:
        if index not in self._described:
            self._described[index] = self._pool.probe(index)
        return self._described[index]

    def _describe_spread(self) -> dict[int, Description]:
        """Describes samples here and there, those that are good; of the others a run tells when they come up."""
        bad = (SampleError, SpecError) if self._on_bad_sample == "raise" else (SampleError, SpecError, StallError)
        for index in self._spread_samples():
            with suppress(*bad):
                self._describe(index)
        return dict(sorted(self._described.items()))

    def _largest_varying_bytes(self, description: Description) -> int:
        """Estimates what varies of a batch from the largest of some samples, each as if its batch were like it."""
        names = component_names(description.structure)
        return max(
            (self._plan.batch_size_with(index) if self.is_batched else self._layout.capacity)
            * varying_bytes(self._layout, other.component_bytes)
            for index, other in self._describe_spread().items() if component_names(other.structure) == names
        )  # fmt: skip

    def _allocate(self, description: Description, budget: int | None) -> None:
        element_bytes = max(1, sum(description.component_bytes))
        batch_bytes = self._layout.fixed_bytes
        if not self._layout.is_fixed:
            # With room for larger ones; a batch beyond that travels outside the slots.
            batch_bytes += int(1.5 * self._largest_varying_bytes(description)) + TEXT_BYTES
        self._slot_bytes = batch_bytes + TEXT_BYTES
        wanted = 2 * self._num_workers + SLOTS_IN_HAND
        allowed = int(resources.available_memory() * MEMORY_SHARE) if budget is None else budget
        self._num_slots = min(wanted, allowed // self._slot_bytes)
        if self._num_slots < 2:
            source = "memory=" if budget else "half of the free memory, "
            raise ResourceError(
                f"{source}{allowed / 2**20:.1f} MiB holds {allowed // self._slot_bytes} slots of "
                f"{self._slot_bytes / 2**20:.1f} MiB, and a loader needs at least 2 (a slot holds a batch of "
                f"{self._layout.capacity} samples of {element_bytes:,} bytes). Pass a smaller batch_size=, or "
                f'memory="{math.ceil(2 * self._slot_bytes / 2**20)}MiB" or more'
            )
        reserved = max(1, min(2 * self._num_workers, self._num_slots // 2))
        self._pool.allocate(self._layout, batch_bytes, self._num_slots, reserved, wanted)

    def _make_ahead(self) -> None:
        """Lets the workers begin with the next epoch as soon as the present one leaves them time."""
        with self._lock:
            if self._ahead is None and not self._changes:
                self._ahead = self._next, self._open(self._next, claimed=False)

    def record_bad(self, bad: list[BadSample], place: Position) -> None:
        """Keeps what a delivered batch says of its bad samples; ``place`` is the one behind the batch."""
        with self._lock:
            self._bad.add(bad, place)


def check_loader(name: str, loader: Any) -> Loader:
    """Returns what a class of this package was given as its loader.

    Raises:
        ArgumentError: it is something else, such as the dataset.
    """
    if not isinstance(loader, Loader):
        raise ArgumentError(f"{name}({type(loader).__name__}): wants the mploader.Loader whose as_dataset() is read")
    return loader


def _measure_lengths(
    source: Any, length: Callable[[Any], int], num_workers: int, on_bad_sample: str, stall_timeout_s: float
) -> Any:
    """Asks for the length of every sample, in workers of its own. Returns int64 (samples,)."""
    serialization.check_picklable("length", length)
    lengths = LengthsOf(source, length, raises=on_bad_sample == "raise")
    # A sample that kills workers is replaced here and reported when its turn comes.
    policy = "raise" if on_bad_sample == "raise" else "replace"
    batch_size = min(1024, -(-len(source) // num_workers))
    with Loader(
        lengths, batch_size=batch_size, num_workers=num_workers, on_bad_sample=policy, stall_timeout=stall_timeout_s
    ) as loader:
        return np.concatenate([batch.copy() for batch in loader])


_open_loaders: weakref.WeakSet[Loader] = weakref.WeakSet()


def close_all() -> None:
    """Closes every loader that is still open; called when the interpreter exits."""
    for loader in list(_open_loaders):
        loader.close()


atexit.register(close_all)

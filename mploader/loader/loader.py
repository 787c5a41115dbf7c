"""The loader: the object that users hold."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mploader._util import resources
from mploader._util.checks import whole_number
from mploader.engine.ipc.sample_report import BadSample
from mploader.loader.core import CoreOwner, LoaderCore
from mploader.loader.options import Options
from mploader.loader.position import Position
from mploader.monitoring.bottleneck import Diagnosis, explain
from mploader.monitoring.statistics import Statistics
from mploader.monitoring.trace import MAX_EVENTS, Trace
from mploader.sampling.bucketing import BucketBy
from mploader.sampling.samplers import ShardShuffle


class Loader(CoreOwner):
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
        element_spec: what one element looks like, as the transform returns it: a structure (tuples, dicts) of
            :class:`~mploader.ArraySpec` or pairs (shape, dtype), with ``bytes`` as the dtype of strings and None for a
            size that varies; with a batch size such a component needs ``pad`` or ``ragged``. Nothing is read before the
            first batch then, and an element that does not fit is a :class:`SpecError`. None: some elements are made to
            find out.
        memory: bytes that slots may take, as an int or text such as "512MiB". None: chosen and reported.
        stall_timeout: seconds without progress before a worker is replaced.
        trace: a file to write a timeline to, from the start until the loader is closed; see :meth:`trace`.

    Raises:
        ArgumentError: an argument is invalid, or cannot be sent to a worker.
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
        element_spec: Any = None,
        memory: int | str | None = None,
        stall_timeout: float = 300.0,
        trace: str | os.PathLike[str] | None = None,
    ) -> None:
        options = Options.of(
            source, transform, batch_size=batch_size, shuffle=shuffle, seed=seed, drop_remainder=drop_remainder,
            num_workers=num_workers, shard=shard, on_bad_sample=on_bad_sample, max_bad_samples=max_bad_samples, pad=pad,
            ragged=ragged, bucket_by=bucket_by, element_spec=element_spec, memory=memory, stall_timeout=stall_timeout,
            trace=trace,
        )  # fmt: skip
        self._core = LoaderCore(source, transform, options)

    def __len__(self) -> int:
        """Batches in an epoch of this host; elements, for a loader without a batch size."""
        return self._core.description.num_batches

    @property
    def element_spec(self) -> Any:
        """The structure of :class:`ArraySpec` that the loader yields.

        With a batch size the first dimension is the batch: its size if every batch is full, otherwise None.
        """
        return self._core.element_spec

    def __iter__(self) -> Iterator[Any]:
        """Starts one pass over the next epoch and returns its iterator of NumPy batches."""
        epoch = self._core.open_epoch()
        return iter(epoch) if self._core.description.is_batched else epoch.elements()

    def as_dataset(self) -> Any:
        """Returns a ``tf.data.Dataset`` of the same batches, adopted by TensorFlow without a copy.

        Each iteration of it is one pass over the next epoch. Its cardinality is known, except for a loader without a
        batch size that drops bad samples, where it is unknown how many elements are left.
        """
        from mploader import tfdata  # imports TensorFlow

        return tfdata.as_dataset(self)

    def batch(self, epoch: int, n: int) -> Any:
        """Makes any one batch again, for debugging: workers read, transform and batch its samples as they did before.

        Nothing counts as consumed, no bad sample is recorded, and iterations that are under way go on as if this had
        not been called. An error that the batch raises does not end the loader.

        Args:
            epoch: from 0.
            n: the number of the batch in the epoch, from 0; without a batch size that of the element.

        Raises:
            ArgumentError: there is no such batch, or the source changes between epochs and this one is not being read.
            LoaderError: the batch cannot be made, or the element was dropped.
        """
        return self._core.batch(whole_number("epoch", epoch, 0), whole_number("n", n, 0))

    def statistics(self) -> Statistics:
        """Returns a frozen snapshot of the counters."""
        return self._core.pool.statistics()

    def explain(self) -> Diagnosis:
        """Says what limits the last minute (training, decoding, reading, ...) and what to change; print it."""
        return explain(self._core.pool.recent_statistics(), resources.usable_cpus())

    def trace(self, path: str | os.PathLike[str], *, max_events: int = MAX_EVENTS) -> Trace:
        """Writes a timeline of workers, slots and consumers from now on, for https://ui.perfetto.dev.

        Use it in a ``with`` block, or call ``stop()`` on what it returns; closing the loader stops it too.

        Args:
            path: the file, in the JSON format of Chrome traces; replaced if it exists.
            max_events: how many events the file may hold, about 130 bytes each; a batch makes about eight.

        Raises:
            ArgumentError: the file cannot be written, or a trace is under way.
        """
        return self._core.pool.start_trace(path, max_events)

    def bad_samples(self) -> list[BadSample]:
        """Returns the samples that were dropped or replaced in the batches delivered so far, oldest first.

        A sample that is bad in every epoch is listed for every epoch. A long training lists the last four epochs, and
        at least the last 1,000 bad samples; ``statistics().bad_samples`` counts all.
        """
        return self._core.progress.bad_samples()

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of the last consumed batch: a plain dict for JSON, below 4 kB for any dataset.

        A batch is consumed once ``next()`` has returned it; what was prepared ahead does not count. Where several
        epochs are read in turn, the one that gave the last batch counts. TensorFlow takes batches ahead of training, so
        with :meth:`as_dataset` a :class:`mploader.tfdata.Position` or :class:`mploader.tfdata.ResumeCallback` counts
        what training has consumed.

        Raises:
            ArgumentError: a dataset of this loader is read, and its batches are not counted.
        """
        return self._core.state()

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Continues at a saved position: the next ``iter()``, or iteration of a dataset, starts there.

        Nothing is read or decoded to get there. Workers, slots and hosts may be other ones than when the state was
        saved, as long as ``batch_size * hosts`` is the same; iterations that are under way are not affected. The epoch
        of the position is shorter by what was consumed of it, every later one is whole.

        Args:
            state: from :meth:`state_dict`, as it was or through JSON.
            strict: refuse the position of other data, or of another order. False: continue there anyway.

        Raises:
            ArgumentError: ``state`` is not a state, or does not fit this loader; the message lists what differs.
        """
        self._core.load(state, strict=strict)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration reads, from 0."""
        return self._core.progress.next.epoch

    @property
    def position(self) -> Position:
        """The position after the last consumed batch, (epoch, batch); at the end of an epoch, the start of the next."""
        return self._core.progress.consumed

    @property
    def num_workers(self) -> int:
        """How many worker processes the loader keeps alive."""
        return self._core.options.num_workers

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the living workers."""
        return self._core.pool.worker_pids

    def close(self) -> None:
        """Ends the workers and waits for them, at most a few seconds. Batches that you hold stay valid.

        May be called again, from any thread. Never needed for correctness: a loader that is collected, and an
        interpreter that exits, end the workers as well.
        """
        self._core.close()

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
        description, slots = self._core.description, self._core.slots
        size = "unbatched" if description.batch_size is None else f"batches of {description.batch_size}"
        return (
            f"<Loader: {description.plan.num_samples} samples, {size}, {len(self)} an epoch, "
            f"{self.num_workers} workers, {slots.count} slots of {slots.slot_bytes / 2**20:.1f} MiB, "
            f"next epoch {self.epoch}>"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f"<div><code>{html.escape(repr(self))}</code></div>{self.statistics()._repr_html_()}"

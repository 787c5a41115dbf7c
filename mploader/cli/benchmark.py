"""Measures how fast this machine loads some files: the library behind ``mploader bench``.

The decoder's limit is measured before and after the loaders, because the speed of a machine changes within a minute.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mploader._util.resources import usable_cpus
from mploader.cli.decoder_limit import decoder_limit
from mploader.errors import ArgumentError
from mploader.loader.loader import Loader
from mploader.monitoring.bottleneck import Bottleneck, Diagnosis, explain

ENOUGH = 0.95
"""Fewer workers are recommended if they reach this share of the highest throughput."""


@dataclass(frozen=True)
class Measured:
    """The result for one number of workers.

    Attributes:
        workers: how many.
        samples_per_s: throughput of the loader.
        diagnosis: what limited it.
    """

    workers: int
    samples_per_s: float
    diagnosis: Diagnosis


@dataclass(frozen=True)
class BenchReport:
    """The results of a benchmark.

    Attributes:
        cpus: processors that may be used.
        decoder_limit_samples_per_s: throughput of as many bare processes, which only read and transform.
        measured: one entry for each number of workers.
        batch_size: samples in a batch.
        has_bad: whether bad samples were left out.
    """

    cpus: int
    decoder_limit_samples_per_s: float
    measured: tuple[Measured, ...]
    batch_size: int
    has_bad: bool = False

    @property
    def best(self) -> Measured:
        """The fastest."""
        return max(self.measured, key=lambda one: one.samples_per_s)

    @property
    def recommended(self) -> Measured:
        """The fewest workers that are about as fast as the fastest."""
        enough = [one for one in self.measured if one.samples_per_s >= ENOUGH * self.best.samples_per_s]
        return min(enough, key=lambda one: one.workers)

    @property
    def _diagnosis(self) -> Diagnosis:
        """For the recommended number of workers; advises no number that was measured and is not faster."""
        diagnosis = self.recommended.diagnosis
        if diagnosis.bottleneck is not Bottleneck.TOO_FEW_WORKERS:
            return diagnosis
        if self.recommended.workers == max(one.workers for one in self.measured):
            return dataclasses.replace(diagnosis, change=f"{diagnosis.change} (measure it: --workers)")
        return dataclasses.replace(
            diagnosis, change="none", effect="more workers were measured and are not faster",
            expected=diagnosis.samples_per_s,
        )  # fmt: skip

    def __str__(self) -> str:
        rows = [f"{'workers':>7}  {'samples/s':>9}  of the decoder's limit  bottleneck"]
        for one in self.measured:
            share = one.samples_per_s / self.decoder_limit_samples_per_s
            bottleneck = one.diagnosis.bottleneck.value
            rows.append(f"{one.workers:>7}  {one.samples_per_s:>9,.0f}  {share:>22.0%}  {bottleneck}")
        processes = "1 bare process that only reads and transforms"
        if self.cpus > 1:
            processes = f"{self.cpus} bare processes that only read and transform"
        return "\n".join([
            *rows,
            "",
            f"the decoder's limit: {self.decoder_limit_samples_per_s:,.0f} samples/s ({processes})",
            *(["bad samples were left out: `mploader verify PATH` lists them"] if self.has_bad else []),
            "",
            str(self._diagnosis),
            "",
            f"recommended: Loader(source, transform, batch_size={self.batch_size}, "
            f"num_workers={self.recommended.workers})",
        ])  # fmt: skip


def bench(
    source: Any,
    transform: Callable[..., Any] | None,
    *,
    batch_size: int = 64,
    workers: Sequence[int] | None = None,
    seconds: float = 5.0,
) -> BenchReport:
    """Measures a source and a transform with several numbers of workers.

    Args:
        source: see :class:`mploader.Loader`.
        transform: see :class:`mploader.Loader`.
        batch_size: samples in a batch.
        workers: numbers of workers to try. None: 1, the processors that may be used, and twice as many.
        seconds: how long each number is measured, and the decoder's limit twice.

    Bad samples are left out.

    Raises:
        ArgumentError: an argument is invalid.
        SampleError: the first samples cannot be made into elements.
        WorkerError: a bare process ended early or hangs.
    """
    cpus = usable_cpus()
    counts = sorted({1, cpus, 2 * cpus} if workers is None else set(workers))
    if not counts or counts[0] < 1 or seconds <= 0:
        raise ArgumentError(f"workers={counts}, seconds={seconds}: expected integers >= 1 and a number of seconds > 0")
    # A transform that fails with every sample is reported here, with the sample's name.
    Loader(source, transform, batch_size=batch_size, num_workers=1, on_bad_sample="drop").close()
    before = decoder_limit(source, transform, cpus, seconds)
    measured = tuple(_measure(source, transform, batch_size, count, cpus, seconds) for count in counts)
    after = decoder_limit(source, transform, cpus, seconds)
    has_bad = any(one.diagnosis.statistics.bad_samples for one in measured)
    return BenchReport(cpus, (before + after) / 2, measured, batch_size, has_bad)


def _measure(
    source: Any, transform: Callable[..., Any] | None, batch_size: int, count: int, cpus: int, seconds: float
) -> Measured:
    with Loader(
        source, transform, batch_size=batch_size, shuffle=True, num_workers=count, on_bad_sample="drop"
    ) as loader:
        batches = _endless(loader)
        for _ in range(count):
            next(batches)  # every worker has started
        start, end_s = loader.statistics(), time.monotonic() + seconds
        while time.monotonic() < end_s or loader.statistics().batches < start.batches + 2:
            next(batches)
        window = loader.statistics().since(start)
        return Measured(count, window.samples / window.seconds, explain(window, cpus))


def _endless(loader: Loader) -> Iterator[Any]:
    while True:
        yield from loader

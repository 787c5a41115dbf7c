"""The checks of a stress test: conditions that the loader must meet, with the numbers."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Sequence

import psutil

from mploader import BadSample, Statistics
from stress.background import Background
from stress.chaos import Chaos
from stress.checker import Checker, Tally
from stress.report import FEWEST_VALUES, Check, growth
from stress.sampling import Sample

GROWTH_BYTES = 48 * 2**20
"""How much the trainer may grow between the second and the last quarter of the test: noise of the allocator."""
DESCRIPTORS_A_WORKER = 3
AHEAD = 6
"""Batches that tf.data may have taken and not given on; see ``mploader.loader.sizing.SLOTS_IN_HAND``."""


def content(tally: Tally, checker: Checker) -> list[Check]:
    """Checks of the content of the batches."""
    wrong, unreadable = checker.wrongly_left_out(), checker.unreadable()
    bad = f"{tally.bad} bad; {len(unreadable)} that cannot be read: {unreadable[:5]}; wrongly left out: {wrong[:5]}"
    return [
        Check("no sample is lost", tally.lost == 0, f"{tally.lost} of {tally.samples:,}. {tally.first_fault}"),
        Check("no sample comes twice", tally.duplicated == 0, f"{tally.duplicated}"),
        Check("no sample is corrupted", tally.corrupted == 0, f"{tally.corrupted}"),
        Check("only bad samples are left out", not wrong, bad),
        Check("batches were delivered", tally.batches > 0, f"{tally.batches:,}"),
    ]


def statistics_agree(statistics: Statistics, tally: Tally, is_tensorflow: bool) -> Check:
    """The loader's counts must equal those of the checker. Only tf.data may hold a few batches more."""
    counted = statistics.batches, statistics.samples, statistics.bad_samples
    checked = tally.batches, tally.samples, tally.bad
    ahead = counted[0] - checked[0]
    is_held = is_tensorflow and 0 < ahead <= AHEAD
    why = f": TensorFlow holds the rest in {ahead} batches that are not consumed yet" if is_held else ""
    return Check("statistics agree", counted == checked or is_held,
                 f"batches, samples and bad samples {counted}, checked {checked}{why}")  # fmt: skip


def resources(samples: Sequence[Sample], reported: Sequence[BadSample], workers: int) -> list[Check]:
    """Checks of what may not grow.

    Args:
        samples: the measurements.
        reported: the bad samples that the loader keeps a report of. The trainer's memory grows by these as expected.
        workers: number of worker processes.
    """
    if len(samples) < FEWEST_VALUES:
        detail = f"{len(samples)} measurements are too few, at least {FEWEST_VALUES} are needed"
        return [Check(name, None, detail) for name in ("the trainer's memory is flat", "descriptors are flat")]
    each = sum(map(report_bytes, reported)) / max(1, len(reported))
    reports = growth([sample.bad_samples * each for sample in samples])
    memory = growth([sample.trainer_pss - sample.bad_samples * each for sample in samples])
    descriptors = growth([sample.descriptors for sample in samples])
    return [
        Check("the trainer's memory is flat", memory <= GROWTH_BYTES,
              f"{memory / 2**20:+.1f} MiB, in addition to {reports / 2**20:.1f} MiB of reports of bad samples"),
        Check("descriptors are flat", descriptors <= DESCRIPTORS_A_WORKER * workers, f"{descriptors:+.0f}"),
    ]  # fmt: skip


def report_bytes(bad: BadSample) -> int:
    """The memory of one report of a bad sample."""
    fields = vars(bad)
    return sys.getsizeof(bad) + sys.getsizeof(fields) + sum(map(sys.getsizeof, fields.values()))


def faults(chaos: Chaos, sampler: Background, restarts: int) -> list[Check]:
    """Checks that the test itself worked, without which the others say little, and that lost workers were replaced."""
    replaced = restarts - chaos.recovered
    return [
        Check(f"the {name} ran to the end", not thread.failure, thread.failure or "yes")
        for name, thread in (("sampler", sampler), ("chaos", chaos))
    ] + [Check("killed workers are replaced", replaced >= chaos.killed, f"{replaced} for {chaos.killed} killed"),
         _recoveries(chaos)]  # fmt: skip


def _recoveries(chaos: Chaos) -> Check:
    """Checks that the loader replaced the workers that hang. A worker without work needs no replacement."""
    is_tested = chaos.recovered or chaos.overdue
    late = f"; {chaos.overdue} had work and were not replaced within {chaos.patience_s:g} s" if chaos.overdue else ""
    return Check("stopped workers are replaced", not chaos.overdue if is_tested else None,
                 f"{chaos.recovered} of {chaos.stopped} stopped{late}")  # fmt: skip


def held() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return psutil.Process().num_fds(), threading.active_count()


def leftovers(before: tuple[int, int], is_tensorflow: bool) -> list[Check]:
    """Checks that nothing is left after the loader was closed.

    Args:
        before: :func:`held` before the loader was made.
        is_tensorflow: whether TensorFlow was used, which keeps threads and descriptors of its own.
    """
    gc.collect()
    children = psutil.Process().children(recursive=True)
    checks = [Check("no worker is left", not children, f"{len(children)}")]
    if not is_tensorflow:
        after = held()
        checks.append(Check("descriptors and threads are as before", after == before, f"{before} and {after}"))
    return checks

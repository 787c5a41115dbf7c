"""The conditions of the diagnosis: what a stress test asks of the loader, and the numbers that answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mploader import BadSample, Statistics
from stress.background import Background
from stress.chaos import Chaos
from stress.checker import Checker, Tally
from stress.report import FEWEST_VALUES, Check, growth
from stress.sampling import Sample

GROWTH_BYTES = 48 * 2**20
"""What the trainer may grow by between the second and the last quarter of the test: noise of the allocator."""
DESCRIPTORS_A_WORKER = 3
AHEAD = 6
"""Batches that tf.data may have taken and not given on; see ``mploader.loader.sizing.SLOTS_IN_HAND``."""


def content(tally: Tally, checker: Checker) -> list[Check]:
    """What the batches must have held."""
    wrong, unreadable = checker.wrongly_left_out(), checker.unreadable()
    bad = f"{tally.bad} bad ones; {len(unreadable)} samples cannot be read: {unreadable[:5]}; wrongly: {wrong[:5]}"
    return [
        Check("no sample is lost", tally.lost == 0, f"{tally.lost} of {tally.samples:,}. {tally.first_fault}"),
        Check("no sample comes twice", tally.duplicated == 0, f"{tally.duplicated}"),
        Check("no sample is corrupted", tally.corrupted == 0, f"{tally.corrupted}"),
        Check("only bad samples are left out", not wrong, bad),
        Check("batches were delivered", tally.batches > 0, f"{tally.batches:,}"),
    ]


def statistics_agree(statistics: Statistics, tally: Tally, is_tensorflow: bool) -> Check:
    """What the loader has counted must be what was checked; only tf.data takes batches ahead, and but a few."""
    counted = statistics.batches, statistics.samples, statistics.bad_samples
    checked = tally.batches, tally.samples, tally.bad
    ahead = counted[0] - checked[0]
    is_held = is_tensorflow and 0 < ahead <= AHEAD
    why = f": TensorFlow holds what is more, in batches that were not consumed yet ({ahead})" if is_held else ""
    return Check("statistics agree", counted == checked or is_held,
                 f"batches, samples and bad samples {counted}, checked {checked}{why}")  # fmt: skip


def resources(samples: Sequence[Sample], reported: Sequence[BadSample], workers: int) -> list[Check]:
    """What may not grow.

    Args:
        samples: what was measured.
        reported: the bad samples that the loader keeps a report of: the trainer's memory grows by these, as it should.
        workers: how many processes.
    """
    if len(samples) < FEWEST_VALUES:
        detail = f"{len(samples)} looks at the processes are too few to tell, it takes {FEWEST_VALUES}"
        return [Check(name, None, detail) for name in ("the trainer's memory is flat", "descriptors are flat")]
    each = sum(map(report_bytes, reported)) / max(1, len(reported))
    reports = growth([sample.bad_samples * each for sample in samples])
    memory = growth([sample.trainer_pss - sample.bad_samples * each for sample in samples])
    descriptors = growth([sample.descriptors for sample in samples])
    return [
        Check("the trainer's memory is flat", memory <= GROWTH_BYTES,
              f"{memory / 2**20:+.1f} MiB, besides {reports / 2**20:.1f} MiB of reports of bad samples"),
        Check("descriptors are flat", descriptors <= DESCRIPTORS_A_WORKER * workers, f"{descriptors:+.0f}"),
    ]  # fmt: skip


def report_bytes(bad: BadSample) -> int:
    """The memory of one report of a bad sample."""
    fields = vars(bad)
    return sys.getsizeof(bad) + sys.getsizeof(fields) + sum(map(sys.getsizeof, fields.values()))


def faults(chaos: Chaos, sampler: Background, restarts: int) -> list[Check]:
    """What the test itself must have done, without which the other checks say little, and what must follow."""
    replaced = restarts - chaos.recovered
    return [
        Check(f"the {name} ran to the end", not thread.failure, thread.failure or "yes")
        for name, thread in (("sampler", sampler), ("chaos", chaos))
    ] + [Check("killed workers are replaced", replaced >= chaos.killed, f"{replaced} for {chaos.killed} killed"),
         _recoveries(chaos)]  # fmt: skip


def _recoveries(chaos: Chaos) -> Check:
    """Whether the loader has replaced the workers that hang. One that had no work needs no replacement."""
    is_tested = chaos.recovered or chaos.overdue
    late = f"; {chaos.overdue} had work and were not within {chaos.patience_s:g} s" if chaos.overdue else ""
    return Check("stopped workers are replaced", not chaos.overdue if is_tested else None,
                 f"{chaos.recovered} of {chaos.stopped} stopped{late}")  # fmt: skip

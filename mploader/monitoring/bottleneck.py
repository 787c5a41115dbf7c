"""What limits the throughput of a loader, and what to change: a diagnosis from its statistics.

The consumer's time comes first. A consumer that hardly waits is the bottleneck itself. If it waits, the workers' time
decides: workers that are always busy are the bottleneck, and their stages and processor time say why; workers that idle
while the consumer waits lack slots, or keep being lost, or the trainer's process cannot hand over their batches fast
enough.

It is longer than 300 lines: half of them are the texts that say what to change, each beside its rule.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

from mploader.monitoring.shares import FULL, Shares
from mploader.monitoring.statistics import Statistics

WAITING = 0.05
"""A consumer that waits for a smaller part of its time gains nothing from a faster loader."""
BUSY = 0.8
"""Workers that are busy for a greater part of the time gain only from faster work or more workers."""
BLOCKED = 0.5
"""If workers wait for storage, network or the like for a greater part of their busy time, more workers help, more
processors do not."""
QUEUED = 0.25
"""If workers queue for a processor for a greater part of their busy time, others use the processors."""
UNUSED = 0.1
"""Workers that wait for storage or the like for a smaller part of their busy time need a processor each."""
FEW = 4
"""Fewer batches say nothing if most of the time was not counted."""
UNSEEN = 10.0
"""Most of the time was not counted if this multiple of what was counted passed in an unfinished step or a pause."""
COPYING = 0.1
"""A consumer that copies batches out for a greater part of its time holds too many slots."""
HANDED_OVER = 250
"""From this rate on, in batches a second, handing over may be the bottleneck: each costs the trainer about a
millisecond."""
LOST_BATCHES = 20
"""If more than one worker was lost for this number of batches, idle workers may have stalled for long before."""
LOSING = 0.1
"""If workers are being replaced for a greater part of the time, that is the bottleneck."""

CHEAPER_READING = "make reading cheaper: shards instead of many files, and no work in the source's __getitem__"
CHEAPER_TRANSFORM = (
    "make the transform cheaper: decode no larger than needed (mploader.images does), store smaller pictures; or use a "
    "machine with more processors"
)
CHEAPER_WRITING = "make elements smaller: uint8 that the model converts, fewer pixels, no component that is not used"


class Bottleneck(enum.Enum):
    """The part that limits the throughput."""

    TRAINING = "training"
    DECODING = "decoding"
    READING = "reading"
    WRITING = "writing"
    TOO_FEW_WORKERS = "too few workers for the cores"
    SLOTS_HELD = "slots held downstream"
    TOO_LITTLE_MEMORY = "too little memory"
    WORKERS_LOST = "workers keep being lost"
    HANDING_OVER = "handing over batches"
    NOTHING_MEASURED = "nothing measured yet"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What limits the throughput of a loader, and what to change.

    Attributes:
        bottleneck: the part that limits the throughput.
        reason: why, with the numbers.
        change: one concrete change.
        effect: what to expect of it.
        expected: samples a second after the change, at best; never more than training can take.
        samples_per_s: samples a second now.
        waiting: the part of its time that the consumer waits for data, from 0 to 1.
        busy: the part of their time that the workers work, from 0 to 1.
        cpu: the part of the workers' busy time in which they use a processor, from 0 to 1.
        queued: the part in which they are ready to run and others have the processors. For the rest they wait for
            storage, the network or the like.
        reading: the part of the workers' busy time spent in the source. With ``transforming`` and ``writing`` it makes
            up the busy time, except for what belongs to no stage.
        transforming: the part spent in the transform.
        writing: the part spent writing into slots.
        full: the part of the consumer's time in which no slot was free.
        statistics: the statistics that were examined.
    """

    bottleneck: Bottleneck
    reason: str
    change: str
    effect: str
    expected: float
    samples_per_s: float
    waiting: float
    busy: float
    cpu: float
    queued: float
    reading: float
    transforming: float
    writing: float
    full: float
    statistics: Statistics

    def __str__(self) -> str:
        return (
            f"bottleneck: {self.bottleneck.value}\n"
            f"why:        {self.reason}\n"
            f"change:     {self.change}\n"
            f"expect:     {self.effect}\n"
            f"numbers:    {self.samples_per_s:,.0f} samples/s; consumer waits {self.waiting:.0%}; workers busy "
            f"{self.busy:.0%} (reading {self.reading:.0%}, transforming {self.transforming:.0%}, writing "
            f"{self.writing:.0%} of it; on a processor {self.cpu:.0%}, queueing for one "
            f"{self.queued:.0%}); no slot free {self.full:.0%} of the time"
        )

    def _repr_html_(self) -> str:
        """Returns HTML for a notebook."""
        rows = (("bottleneck", f"<b>{self.bottleneck.value}</b>"), ("why", self.reason), ("change", self.change),
                ("expect", self.effect))  # fmt: skip
        return "<table>" + "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in rows) + "</table>"


def explain(statistics: Statistics, cpus: int) -> Diagnosis:
    """Finds what limited the throughput of a loader.

    Args:
        statistics: what the loader did, at best in a minute of steady work: one snapshot ``since`` another.
        cpus: processors that this process and its workers may use.
    """
    numbers = Shares(statistics, cpus)
    if statistics.batches < 2 or statistics.active_s <= 0:
        left_out = "" if statistics.started_s > 0 else ", the first of all left out"
        reason = f"{_count(statistics.batches, 'batch', 'batches')} delivered{left_out}; the time between two is needed"
        return _diagnosis(numbers, Bottleneck.NOTHING_MEASURED, reason, "take some batches first", "a diagnosis", 1.0)
    unseen_s = statistics.seconds - statistics.active_s
    if statistics.batches < FEW and unseen_s > UNSEEN * statistics.active_s and not statistics.started_s:
        reason = f"{statistics.active_s:.2f} of {statistics.seconds:.1f} s are counted; a step counts when it has ended"
        return _diagnosis(numbers, Bottleneck.NOTHING_MEASURED, reason, "take more batches first", "a diagnosis", 1.0)
    if statistics.waiting < WAITING:
        return _training(numbers)
    if numbers.losing > LOSING and not numbers.is_ahead:
        return _lost(numbers)
    diagnosis = _slots_or_workers(numbers)
    if statistics.restarts and diagnosis.bottleneck is not Bottleneck.WORKERS_LOST:
        lost = f"{_count(statistics.restarts, 'worker', 'workers')} lost, which costs little"
        diagnosis = dataclasses.replace(diagnosis, reason=f"{diagnosis.reason}; {lost}")
    return diagnosis


def _slots_or_workers(numbers: Shares) -> Diagnosis:
    """The consumer waits, but not for workers that are being replaced."""
    statistics = numbers.statistics
    if statistics.copied_s >= COPYING * statistics.active_s:
        return _slots(numbers)
    if numbers.busy >= BUSY:
        return _workers(numbers)
    # With fewer slots, some worker has none while the consumer holds one and another is on its way.
    too_few = statistics.slots < min(statistics.slots_wanted, numbers.num_workers + 2)
    if too_few or statistics.batches_copied * 2 > statistics.batches:
        return _slots(numbers)
    # At many batches a second the consumer waits a little for each while it is handed over.
    hands_over_many = statistics.batches >= HANDED_OVER * statistics.active_s
    if numbers.is_ahead:
        return _training(numbers) if hands_over_many else _uneven_training(numbers)
    if statistics.restarts * LOST_BATCHES > statistics.batches:
        return _lost(numbers)
    if numbers.full >= FULL:
        return _slots(numbers)
    if hands_over_many:
        return _handing_over(numbers)
    return _workers(numbers)  # they idle now and then because the machine is busy with something else


def _training(numbers: Shares) -> Diagnosis:
    needed = max(1, min(numbers.num_workers, round(numbers.num_workers * numbers.busy * 1.25 + 0.5)))
    reason = (
        f"the consumer waits for data {numbers.statistics.waiting:.1%} of its time, and the workers are busy "
        f"{numbers.busy:.0%} of theirs"
    )
    if needed < numbers.num_workers:
        change = f"speed up the training step; the loader is fast enough, num_workers={needed} is enough"
    else:
        change = "speed up the training step; the loader needs no change"
    room = numbers.room
    now = numbers.statistics.samples_per_s
    effect = f"the step may become {room:.1f} times as fast before it waits for data"
    if numbers.statistics.waiting >= WAITING:
        per_s = numbers.mean(numbers.statistics.batches)
        reason += f"; batches are ready, and the wait is for handing over {per_s:,.0f} batches/s"
        change += ", and a larger batch_size= shortens the waits"
        effect = f"the workers could make {room:.1f} times as many samples"
    effect += f" ({now:,.0f} to {now * room:,.0f} samples/s)"
    return _diagnosis(numbers, Bottleneck.TRAINING, reason, change, effect, room)


def _uneven_training(numbers: Shares) -> Diagnosis:
    """The slots fill up in long steps, and are too few for the short steps that follow."""
    statistics = numbers.statistics
    reason = (
        f"no slot was free {numbers.full:.0%} of the time, mostly while the consumer computed, and it waits "
        f"{statistics.waiting:.0%} of its time: its steps are uneven, and the slots too few for a row of short ones"
    )
    change = "spread the slow work over the steps, or speed it up"
    if statistics.slots < statistics.slots_wanted:
        change += f"; {_wanted_memory(statistics)} makes more slots"
    gain = numbers.gain(numbers.room)
    return _diagnosis(numbers, Bottleneck.TRAINING, reason, change, f"even steps: {_up_to(numbers, gain)}", gain)


def _lost(numbers: Shares) -> Diagnosis:
    statistics = numbers.statistics
    reason = (
        f"{_count(statistics.restarts, 'worker', 'workers')} lost while {statistics.batches} batches were made, which "
        f"cost at least {numbers.losing:.0%} of the workers' time; the consumer waits {statistics.waiting:.0%} of its "
        f"time, and the workers are busy {numbers.busy:.0%} of theirs"
    )
    change = "see the log for how the workers ended: killed for lack of memory, by a crash, or because they stalled"
    gain = numbers.gain(numbers.room)
    return _diagnosis(numbers, Bottleneck.WORKERS_LOST, reason, change, _up_to(numbers, gain), gain)


def _workers(numbers: Shares) -> Diagnosis:
    """The workers are busy: which stage takes their time?"""
    share, bottleneck, what, cheaper = max(
        (numbers.reading, Bottleneck.READING, "reading", CHEAPER_READING),
        (numbers.transforming, Bottleneck.DECODING, "the transform", CHEAPER_TRANSFORM),
        (numbers.writing, Bottleneck.WRITING, "writing", CHEAPER_WRITING),
        key=lambda stage: stage[0],
    )
    count, cpus = numbers.num_workers, numbers.cpus
    waits = 1 - numbers.cpu - numbers.queued
    reason = f"the workers are busy {numbers.busy:.0%} of the time, {share:.0%} of it with {what}"
    if waits > BLOCKED:
        reason += f", and wait {waits:.0%} of it for storage, the network or the like"
        gain = numbers.gain(2.0)
        change = f"num_workers={2 * count}: workers that wait need no processor"
        return _diagnosis(numbers, bottleneck, reason, change, _up_to(numbers, gain), gain)
    if count < cpus and numbers.queued < QUEUED:
        reason += f"; num_workers is {count}, and {cpus} processors are available"
        gain = numbers.gain(cpus / count)
        change = f"num_workers={cpus}"
        return _diagnosis(numbers, Bottleneck.TOO_FEW_WORKERS, reason, change, _up_to(numbers, gain), gain)
    among_themselves = max(0.0, 1 - cpus / count)
    fewer = ""
    if count > cpus and numbers.queued >= QUEUED and waits < UNUSED:
        reason += f"; {count} workers are more than the {f'{cpus} processors' if cpus > 1 else 'processor'}"
        fewer = f"num_workers={cpus} is as fast; "
    if numbers.queued - among_themselves >= QUEUED:
        reason += (
            f"; they queue for a processor {numbers.queued:.0%} of it, because training or other programs use them too"
        )
        gain = numbers.gain((1 - among_themselves) / (1 - numbers.queued))
        change = fewer + "leave the loader more processors: fewer threads elsewhere, or a machine with more of them"
        return _diagnosis(numbers, bottleneck, reason, change, _up_to(numbers, gain), gain)
    gain = numbers.gain(1 / (1 - share / 2))
    if not fewer:
        reason += f"; {count} workers use {cpus} processors"
    effect = f"{what} in half the time: {_up_to(numbers, gain)}"
    return _diagnosis(numbers, bottleneck, reason, fewer + cheaper, effect, gain)


def _slots(numbers: Shares) -> Diagnosis:
    """The workers idle because no slot is free."""
    statistics = numbers.statistics
    gain = numbers.gain(numbers.room)
    reason = (
        f"no slot was free {numbers.full:.0%} of the time and the workers were busy {numbers.busy:.0%} of it; of "
        f"{statistics.slots} slots {numbers.borrowed:.1f} were borrowed on average, and {statistics.batches_copied} of "
        f"{statistics.batches} batches had to be copied out"
    )
    if statistics.slots < statistics.slots_wanted:
        reason += f"; {statistics.slots_wanted} slots were needed"
        change = f"{_wanted_memory(statistics)} or more, or a smaller batch_size="
        return _diagnosis(numbers, Bottleneck.TOO_LITTLE_MEMORY, reason, change, _up_to(numbers, gain), gain)
    if statistics.batches_copied == 0 and numbers.borrowed * 2 < statistics.slots:
        reason += "; the others held batches that waited for an earlier one, which took longer"
        change = "even out the work: a larger batch_size=, or the cause of the few samples that take so long"
        return _diagnosis(numbers, Bottleneck.DECODING, reason, change, _up_to(numbers, gain), gain)
    change = (
        "keep fewer batches (no cache(), shuffle() or list of batches behind the loader; a fixed, small prefetch), or "
        "copy those that are kept"
    )
    return _diagnosis(numbers, Bottleneck.SLOTS_HELD, reason, change, _up_to(numbers, gain), gain)


def _handing_over(numbers: Shares) -> Diagnosis:
    statistics = numbers.statistics
    per_s = numbers.mean(statistics.batches)
    reason = (
        f"the consumer waits {statistics.waiting:.0%} of its time, the workers are busy {numbers.busy:.0%} of theirs, "
        f"and slots are free: {per_s:,.0f} batches/s keep the trainer's process busy handing them over"
    )
    gain = numbers.gain(numbers.room)
    change = "a larger batch_size=, or less Python work in the trainer's other threads"
    return _diagnosis(numbers, Bottleneck.HANDING_OVER, reason, change, _up_to(numbers, gain), gain)


def _wanted_memory(statistics: Statistics) -> str:
    wanted = -(-statistics.slots_wanted * statistics.slot_bytes // 2**20)
    return f'memory="{wanted}MiB"'


def _count(number: int, one: str, more: str) -> str:
    return f"1 {one} was" if number == 1 else f"{number} {more} were"


def _up_to(numbers: Shares, gain: float) -> str:
    now = numbers.statistics.samples_per_s
    end = ", where training becomes the bottleneck" if gain >= numbers.most else ""
    return f"up to {gain:.1f} times as many samples a second ({now:,.0f} to {now * gain:,.0f}){end}"


def _diagnosis(
    numbers: Shares, bottleneck: Bottleneck, reason: str, change: str, effect: str, gain: float
) -> Diagnosis:
    """The record; ``gain``: how many times as many samples a second the change brings."""
    statistics = numbers.statistics
    return Diagnosis(
        bottleneck=bottleneck, reason=reason, change=change, effect=effect,
        expected=statistics.samples_per_s * gain, samples_per_s=statistics.samples_per_s, waiting=statistics.waiting,
        busy=numbers.busy, cpu=numbers.cpu, queued=numbers.queued, reading=numbers.reading,
        transforming=numbers.transforming, writing=numbers.writing, full=numbers.full, statistics=statistics,
    )  # fmt: skip

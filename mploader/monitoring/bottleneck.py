"""What limits a loader, and what to change: a diagnosis from its statistics.

The consumer's time tells first. A consumer that hardly waits is the limit itself. If it waits, the workers' time
tells: workers that are always busy are the limit, and their stages and processor time say why; workers that idle while
the consumer waits lack slots, or keep being lost, or the hand-off in the trainer's process cannot keep up with them.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

from mploader.monitoring.statistics import Statistics

WAITING = 0.05
"""A consumer that waits for a smaller part of its time is not helped by a faster loader."""
BUSY = 0.8
"""Workers that are busy for a greater part of the time leave nothing to gain but faster work or more workers."""
BLOCKED = 0.5
"""Workers that wait for storage, network or the like for a greater part of their busy time need company, not cores."""
QUEUED = 0.25
"""Workers that queue for a processor for a greater part of their busy time: others use the processors."""
UNUSED = 0.1
"""Workers that wait for storage or the like for a smaller part of their busy time need a processor each."""
FEW = 4
"""Fewer batches say nothing if most of the time was not counted."""
UNSEEN = 10.0
"""Most of it: so many times what was counted went by in a step that is not over, or in a pause."""
COPYING = 0.1
"""A consumer that copies batches out for a greater part of its time holds too many slots."""
FULL = 0.4
"""Slots are scarce if none is free for a greater part of the time."""
HANDED_OVER = 250
"""Handing over is thought of from so many batches a second on: each costs the trainer a millisecond or so."""
LOST_BATCHES = 20
"""Idle workers of which more than one was lost for so many batches may have stalled for long before."""
LOSING = 0.1
"""Workers that are being replaced for a greater part of the time are what limits."""


CHEAPER_READING = "make reading cheaper: shards instead of many files, and no work in the source's __getitem__"
CHEAPER_TRANSFORM = (
    "make the transform cheaper: decode no larger than needed (mploader.images does), store smaller pictures; or use a "
    "machine with more processors"
)
CHEAPER_WRITING = "make elements smaller: uint8 that the model converts, fewer pixels, no component that nobody uses"


class Bottleneck(enum.Enum):
    """The part that limits the whole."""

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


@dataclass(frozen=True)
class Diagnosis:
    """What limits a loader, and what to change.

    Attributes:
        limit: the limiting part.
        reason: why, with the numbers.
        change: one concrete change.
        effect: what to expect of it.
        expected: samples a second after the change, at best; never more than training can take.
        samples_per_s: samples a second now.
        waiting: the part of its time that the consumer waits for data, from 0 to 1.
        busy: the part of their time that the workers work, from 0 to 1.
        cpu: the part of the workers' busy time in which they use a processor, from 0 to 1.
        queued: the part in which they are ready to run and others have the processors. The rest they wait for storage,
            the network or the like.
        reading: the part of the workers' busy time spent in the source; the rest of four parts are the next two and
            what belongs to no stage.
        transforming: the part spent in the transform.
        writing: the part spent writing into slots.
        full: the part of the consumer's time in which no slot was free.
        statistics: what all this was worked out from.
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
            f"limit:   {self.bottleneck.value}\n"
            f"why:     {self.reason}\n"
            f"change:  {self.change}\n"
            f"expect:  {self.effect}\n"
            f"numbers: {self.samples_per_s:,.0f} samples/s; consumer waits {self.waiting:.0%}; workers busy "
            f"{self.busy:.0%} (reading {self.reading:.0%}, transforming {self.transforming:.0%}, writing "
            f"{self.writing:.0%} of it; on a processor {self.cpu:.0%}, queueing for one "
            f"{self.queued:.0%}); no slot free {self.full:.0%} of the time"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = (("limit", f"<b>{self.bottleneck.value}</b>"), ("why", self.reason), ("change", self.change),
                ("expect", self.effect))  # fmt: skip
        return "<table>" + "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in rows) + "</table>"


@dataclass(frozen=True)
class _Numbers:
    """The shares that the diagnosis rests on."""

    statistics: Statistics
    cpus: int

    @property
    def num_workers(self) -> int:
        return len(self.statistics.workers)

    @property
    def busy(self) -> float:
        # While nobody consumes, the slots are soon full and the workers idle: that time says nothing.
        active_s = self.num_workers * self.statistics.active_s
        return min(1.0, self.statistics.busy_s / active_s) if active_s > 0 else 0.0

    def share(self, seconds: float) -> float:
        """A part of the workers' busy time."""
        return min(1.0, seconds / self.statistics.busy_s) if self.statistics.busy_s > 0 else 0.0

    @property
    def reading(self) -> float:
        return self.share(sum(worker.read_s for worker in self.statistics.workers))

    @property
    def transforming(self) -> float:
        return self.share(sum(worker.transform_s for worker in self.statistics.workers))

    @property
    def writing(self) -> float:
        return self.share(sum(worker.write_s for worker in self.statistics.workers))

    @property
    def cpu(self) -> float:
        return self.share(sum(worker.cpu_s for worker in self.statistics.workers))

    @property
    def queued(self) -> float:
        # It is told with a delay, and a worker that has nothing to do may have queued when it was woken.
        queued_s = sum(worker.queued_s for worker in self.statistics.workers)
        return min(self.share(queued_s), 1 - self.cpu)

    @property
    def full(self) -> float:
        return self.mean(self.statistics.full_s)

    @property
    def stuck(self) -> float:
        """The part of the consumer's time in which it waited although no slot was free."""
        return self.mean(self.statistics.full_waited_s)

    @property
    def borrowed(self) -> float:
        """Slots that were borrowed, on average."""
        return self.mean(self.statistics.borrowed_slot_s)

    @property
    def losing(self) -> float:
        """The part of the workers' time that losses cost at least: each a start, and the batch that was in hand."""
        made = sum(worker.batches for worker in self.statistics.workers)
        lost_s = self.statistics.start_s + self.statistics.busy_s / max(1, made)
        active_s = self.num_workers * self.statistics.active_s
        return min(1 - self.busy, self.statistics.restarts * lost_s / active_s) if active_s > 0 else 0.0

    @property
    def is_ahead(self) -> bool:
        """Whether ready batches fill the slots while the consumer computes.

        Batches that wait for an earlier one fill them while the consumer waits for that.
        """
        return self.full >= FULL and self.stuck * 2 <= self.full

    def mean(self, total: float) -> float:
        """A sum over the consumer's time, a second of it."""
        return total / self.statistics.active_s if self.statistics.active_s > 0 else 0.0

    @property
    def most(self) -> float:
        """How many times faster the consumer could be served before it is the limit itself."""
        computing_s = self.statistics.computing_s
        return self.statistics.active_s / computing_s if computing_s > 0 else float("inf")

    def gain(self, factor: float) -> float:
        """What a loader that is ``factor`` times as fast would bring."""
        return min(factor, self.most)


def explain(statistics: Statistics, cpus: int) -> Diagnosis:
    """Tells what limited a loader in the time that some statistics speak of.

    Args:
        statistics: best of a minute of steady work: a snapshot's difference to an earlier one (``since``).
        cpus: processors that this process and its workers may use.
    """
    numbers = _Numbers(statistics, cpus)
    if statistics.batches < 2 or numbers.statistics.active_s <= 0:
        left_out = "" if statistics.started_s > 0 else ", the first of all left out"
        reason = f"{_count(statistics.batches, 'batch', 'batches')} delivered{left_out}; a time between two is needed"
        return _verdict(numbers, Bottleneck.NOTHING_MEASURED, reason, "take some batches first", "a diagnosis", 1.0)
    unseen_s = statistics.seconds - statistics.active_s
    if statistics.batches < FEW and unseen_s > UNSEEN * statistics.active_s and not statistics.started_s:
        reason = f"{statistics.active_s:.2f} s of {statistics.seconds:.1f} s are counted; a step counts when it is over"
        return _verdict(numbers, Bottleneck.NOTHING_MEASURED, reason, "take some batches more", "a diagnosis", 1.0)
    if statistics.waiting < WAITING:
        return _training(numbers)
    if numbers.losing > LOSING and not numbers.is_ahead:
        return _lost(numbers)
    diagnosis = _slots_or_workers(numbers)
    if statistics.restarts and diagnosis.bottleneck is not Bottleneck.WORKERS_LOST:
        lost = f"{_count(statistics.restarts, 'worker', 'workers')} lost, which takes little"
        diagnosis = dataclasses.replace(diagnosis, reason=f"{diagnosis.reason}; {lost}")
    return diagnosis


def _slots_or_workers(numbers: _Numbers) -> Diagnosis:
    """The consumer waits, and not for workers that are replaced."""
    statistics = numbers.statistics
    if statistics.copied_s >= COPYING * statistics.active_s:
        return _slots(numbers)
    if numbers.busy >= BUSY:
        return _workers(numbers)
    # With fewer slots than that a worker has none while the consumer holds one and another is on its way.
    too_few = statistics.slots < min(statistics.slots_wanted, numbers.num_workers + 2)
    if too_few or statistics.batches_copied * 2 > statistics.batches:
        return _slots(numbers)
    # Of many batches a second the consumer waits a little for each while it is handed over.
    hands_over_many = statistics.batches >= HANDED_OVER * statistics.active_s
    if numbers.is_ahead:
        return _training(numbers) if hands_over_many else _uneven_training(numbers)
    if statistics.restarts * LOST_BATCHES > statistics.batches:
        return _lost(numbers)
    if numbers.full >= FULL:
        return _slots(numbers)
    if hands_over_many:
        return _handing_over(numbers)
    return _workers(numbers)  # which idle now and then because the machine is busy with something else


def _training(numbers: _Numbers) -> Diagnosis:
    needed = max(1, min(numbers.num_workers, round(numbers.num_workers * numbers.busy * 1.25 + 0.5)))
    reason = (
        f"the consumer waits for data {numbers.statistics.waiting:.1%} of its time, and the workers are busy "
        f"{numbers.busy:.0%} of theirs"
    )
    if needed < numbers.num_workers:
        change = f"speed up the training step; the loader is fast enough, num_workers={needed} would do"
    else:
        change = "speed up the training step; the loader needs no change"
    room = 1 / numbers.busy if numbers.busy > 0 else 1.0
    now = numbers.statistics.samples_per_s
    effect = f"the step may become {room:.1f} times as fast before it waits for data"
    if numbers.statistics.waiting >= WAITING:
        per_s = numbers.mean(numbers.statistics.batches)
        reason += f"; batches are ready, and the wait is for passing on {per_s:,.0f} batches/s"
        change += ", and a larger batch_size= shortens the waits"
        effect = f"the workers could make {room:.1f} times as many samples"
    effect += f" ({now:,.0f} to {now * room:,.0f} samples/s)"
    return _verdict(numbers, Bottleneck.TRAINING, reason, change, effect, room)


def _uneven_training(numbers: _Numbers) -> Diagnosis:
    """The slots are full in the long steps, and not enough for the short ones that follow."""
    statistics = numbers.statistics
    reason = (
        f"no slot was free {numbers.full:.0%} of the time, mostly while the consumer computed, and it waits "
        f"{statistics.waiting:.0%} of its time: its steps are uneven, and the slots too few for many short ones running"
    )
    change = "spread what takes long over the steps, or speed it up"
    if statistics.slots < statistics.slots_wanted:
        change += f"; {_wanted_memory(statistics)} makes more slots"
    gain = numbers.gain(1 / numbers.busy if numbers.busy > 0 else 1.0)
    return _verdict(numbers, Bottleneck.TRAINING, reason, change, f"even steps: {_up_to(numbers, gain)}", gain)


def _lost(numbers: _Numbers) -> Diagnosis:
    statistics = numbers.statistics
    reason = (
        f"{_count(statistics.restarts, 'worker', 'workers')} lost while {statistics.batches} batches were made, which "
        f"cost at least {numbers.losing:.0%} of the workers' time; the consumer waits {statistics.waiting:.0%} of its "
        f"time, and the workers are busy {numbers.busy:.0%} of theirs"
    )
    change = "see the log for how the workers ended: killed for want of memory, by a crash, or because they stalled"
    gain = numbers.gain(1 / numbers.busy if numbers.busy > 0 else 1.0)
    return _verdict(numbers, Bottleneck.WORKERS_LOST, reason, change, _up_to(numbers, gain), gain)


def _workers(numbers: _Numbers) -> Diagnosis:
    """The workers have no time to spare: on what do they spend it?"""
    share, limit, what, cheaper = max(
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
        change = f"num_workers={2 * count}: what waits needs no processor"
        return _verdict(numbers, limit, reason, change, _up_to(numbers, gain), gain)
    if count < cpus and numbers.queued < QUEUED:
        reason += f"; num_workers is {count}, and {cpus} processors may be used"
        gain = numbers.gain(cpus / count)
        return _verdict(numbers, Bottleneck.TOO_FEW_WORKERS, reason, f"num_workers={cpus}", _up_to(numbers, gain), gain)
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
        return _verdict(numbers, limit, reason, change, _up_to(numbers, gain), gain)
    gain = numbers.gain(1 / (1 - share / 2))
    if not fewer:
        reason += f"; {count} workers use {cpus} processors"
    return _verdict(numbers, limit, reason, fewer + cheaper, f"{what} in half the time: {_up_to(numbers, gain)}", gain)


def _slots(numbers: _Numbers) -> Diagnosis:
    """The workers idle because no slot is free."""
    statistics = numbers.statistics
    gain = numbers.gain(1 / numbers.busy if numbers.busy > 0 else 1.0)
    reason = (
        f"no slot was free {numbers.full:.0%} of the time and the workers were busy {numbers.busy:.0%} of it; of "
        f"{statistics.slots} slots {numbers.borrowed:.1f} were borrowed on average, and {statistics.batches_copied} of "
        f"{statistics.batches} batches had to be copied out"
    )
    if statistics.slots < statistics.slots_wanted:
        reason += f"; {statistics.slots_wanted} slots were wanted"
        change = f"{_wanted_memory(statistics)} or more, or a smaller batch_size="
        return _verdict(numbers, Bottleneck.TOO_LITTLE_MEMORY, reason, change, _up_to(numbers, gain), gain)
    if statistics.batches_copied == 0 and numbers.borrowed * 2 < statistics.slots:
        reason += "; the rest held batches that waited for an earlier one, which took longer than the others"
        change = "even out the work: a larger batch_size=, or the cause of the few samples that take so long"
        return _verdict(numbers, Bottleneck.DECODING, reason, change, _up_to(numbers, gain), gain)
    change = (
        "keep fewer batches (no cache(), shuffle() or list of batches behind the loader; a fixed, small prefetch), or "
        "copy what is kept"
    )
    return _verdict(numbers, Bottleneck.SLOTS_HELD, reason, change, _up_to(numbers, gain), gain)


def _handing_over(numbers: _Numbers) -> Diagnosis:
    statistics = numbers.statistics
    per_s = numbers.mean(statistics.batches)
    reason = (
        f"the consumer waits {statistics.waiting:.0%} of its time, the workers are busy {numbers.busy:.0%} of theirs, "
        f"and slots are free: {per_s:,.0f} batches/s keep the trainer's process busy with passing them on"
    )
    gain = numbers.gain(1 / numbers.busy if numbers.busy > 0 else 1.0)
    change = "a larger batch_size=, or less Python work in the trainer's other threads"
    return _verdict(numbers, Bottleneck.HANDING_OVER, reason, change, _up_to(numbers, gain), gain)


def _wanted_memory(statistics: Statistics) -> str:
    wanted = -(-statistics.slots_wanted * statistics.slot_bytes // 2**20)
    return f'memory="{wanted}MiB"'


def _count(number: int, one: str, more: str) -> str:
    return f"1 {one} was" if number == 1 else f"{number} {more} were"


def _up_to(numbers: _Numbers, gain: float) -> str:
    now = numbers.statistics.samples_per_s
    end = ", where training becomes the limit" if gain >= numbers.most else ""
    return f"up to {gain:.1f} times as many samples a second ({now:,.0f} to {now * gain:,.0f}){end}"


def _verdict(numbers: _Numbers, limit: Bottleneck, reason: str, change: str, effect: str, gain: float) -> Diagnosis:
    return Diagnosis(
        limit, reason, change, effect, numbers.statistics.samples_per_s * gain, numbers.statistics.samples_per_s,
        numbers.statistics.waiting, numbers.busy, numbers.cpu, numbers.queued, numbers.reading, numbers.transforming,
        numbers.writing, numbers.full, numbers.statistics,
    )  # fmt: skip

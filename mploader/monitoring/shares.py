"""How consumers and workers spend their time: the numbers on which a diagnosis rests."""

from __future__ import annotations

from dataclasses import dataclass

from mploader.monitoring.statistics import Statistics

FULL = 0.4
"""Slots are scarce if none is free for a greater part of the time."""


@dataclass(frozen=True)
class Shares:
    """What the time was spent on, as parts of a whole from 0 to 1.

    Args:
        statistics: what the loader did.
        cpus: processors that this process and its workers may use.
    """

    statistics: Statistics
    cpus: int

    @property
    def num_workers(self) -> int:
        """How many workers there are."""
        return len(self.statistics.workers)

    @property
    def busy(self) -> float:
        """The part of their time that the workers work."""
        # Without a consumer the slots are soon full and the workers idle, so that time does not count.
        active_s = self.num_workers * self.statistics.active_s
        return min(1.0, self.statistics.busy_s / active_s) if active_s > 0 else 0.0

    def share(self, seconds: float) -> float:
        """Seconds of all workers as a part of their busy time."""
        return min(1.0, seconds / self.statistics.busy_s) if self.statistics.busy_s > 0 else 0.0

    @property
    def reading(self) -> float:
        """The part of the workers' busy time in the source."""
        return self.share(sum(worker.read_s for worker in self.statistics.workers))

    @property
    def transforming(self) -> float:
        """The part of the workers' busy time in the transform."""
        return self.share(sum(worker.transform_s for worker in self.statistics.workers))

    @property
    def writing(self) -> float:
        """The part of the workers' busy time writing into slots."""
        return self.share(sum(worker.write_s for worker in self.statistics.workers))

    @property
    def cpu(self) -> float:
        """The part of the workers' busy time on a processor."""
        return self.share(sum(worker.cpu_s for worker in self.statistics.workers))

    @property
    def queued(self) -> float:
        """The part of the workers' busy time in which they were ready to run and had no processor."""
        # It is reported with a delay, and an idle worker may have queued when it was woken.
        queued_s = sum(worker.queued_s for worker in self.statistics.workers)
        return min(self.share(queued_s), 1 - self.cpu)

    @property
    def full(self) -> float:
        """The part of the consumer's time in which no slot was free."""
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
        """The part of the workers' time that losses cost at least: a start each, and the batch that was being made."""
        made = sum(worker.batches for worker in self.statistics.workers)
        lost_s = self.statistics.start_s + self.statistics.busy_s / max(1, made)
        active_s = self.num_workers * self.statistics.active_s
        return min(1 - self.busy, self.statistics.restarts * lost_s / active_s) if active_s > 0 else 0.0

    @property
    def is_ahead(self) -> bool:
        """Whether ready batches fill the slots while the consumer computes.

        Batches that wait for an earlier one fill the slots, too, but while the consumer waits for that batch.
        """
        return self.full >= FULL and self.stuck * 2 <= self.full

    def mean(self, total: float) -> float:
        """A sum over the consumer's time, divided by that time in seconds."""
        return total / self.statistics.active_s if self.statistics.active_s > 0 else 0.0

    @property
    def room(self) -> float:
        """How many times as much the workers could do if they were always busy."""
        return 1 / self.busy if self.busy > 0 else 1.0

    @property
    def most(self) -> float:
        """How many times as fast the loader could be before the consumer is the bottleneck."""
        computing_s = self.statistics.computing_s
        return self.statistics.active_s / computing_s if computing_s > 0 else float("inf")

    def gain(self, factor: float) -> float:
        """How many times as many samples a second a loader brings that is ``factor`` times as fast."""
        return min(factor, self.most)

"""How the consumers of a loader spend their time, where there may be several at once (``zip``, a peek, threads)."""

from __future__ import annotations

import threading

from mploader.monitoring.events import SlotCounts


class ConsumerTime:
    """Sums of time, in nanoseconds on the monotonic clock. The caller holds a lock, except for :meth:`stop_waiting`.

    A consumer asks for a batch, gets it, asks for the next, and at its end asks for one more than there is. The time
    between two such events, of any consumers, was waiting if any consumer waited; it was computing if none did and the
    consumer of the later event had a batch. Otherwise there was no consumer, and it counts as nothing: a pause between
    epochs, or a batch that is kept. So no second counts twice, however many consumers there are.

    Attributes:
        waited_ns: time in which a consumer waited for a batch.
        copied_ns: time in which a consumer's batch was copied out of its slot.
        computed_ns: time in which no consumer waited and at least one had a batch.
        started_ns: the part of ``waited_ns`` before the first batch of all.
        full_ns: of these three, without ``started_ns``, the time in which no slot was free.
        full_waited_ns: of that, the time in which a consumer waited: the slots held other batches.
        borrowed_slot_ns: of these three, without ``started_ns``, the time multiplied by the number of borrowed slots.
        slots: how many slots are in each state.
    """

    def __init__(self, now_ns: int) -> None:
        self.waited_ns = self.copied_ns = self.computed_ns = self.started_ns = 0
        self.full_ns = self.full_waited_ns = self.borrowed_slot_ns = 0
        self.slots = SlotCounts()
        self._waiting: set[int] = set()
        """The threads that wait. Not a count: an entry that Ctrl-C leaves behind goes when the thread asks again."""
        self._has_started = False
        self._made_ns = self._event_ns = self._slots_ns = now_ns
        self._full_ns = self._borrowed_slot_ns = 0
        """Since the last event."""

    @property
    def age_ns(self) -> int:
        """Time from the start until the slots were last seen."""
        return self._slots_ns - self._made_ns

    def ask(self, now_ns: int, previous_ns: int | None) -> None:
        """This thread begins to wait.

        Args:
            now_ns: the time.
            previous_ns: when its consumer got the batch before; None for the first of an epoch.
        """
        self._pass(now_ns, previous_ns is not None)
        self._waiting.add(threading.get_ident())

    def get(self, now_ns: int, copied_ns: int) -> None:
        """This thread has got its batch; during the last ``copied_ns`` it was being copied."""
        self._pass(now_ns, False, copied_ns)
        if not self._has_started:
            self._has_started = True
            self.started_ns = self.waited_ns
            self.full_ns = self.full_waited_ns = self.borrowed_slot_ns = 0

    def stop_waiting(self) -> None:
        """This thread no longer waits: it has got a batch or an exception. Takes no lock."""
        self._waiting.discard(threading.get_ident())

    def end(self, now_ns: int, previous_ns: int | None) -> None:
        """A consumer asks for more than there is; the arguments are those of :meth:`ask`."""
        self._pass(now_ns, previous_ns is not None)

    def see_slots(self, now_ns: int, slots: SlotCounts) -> None:
        """From now on the slots are in these states."""
        seen, passed_ns = self.slots, now_ns - self._slots_ns
        self.slots = slots
        if passed_ns > 0:
            self._slots_ns = now_ns
            self._borrowed_slot_ns += passed_ns * seen.borrowed
            if not seen.free and any(seen):
                self._full_ns += passed_ns

    def _pass(self, now_ns: int, has_batch: bool, copied_ns: int = 0) -> None:
        """Counts the time since the last event; ``has_batch``: the consumer had a batch meanwhile."""
        self.see_slots(now_ns, self.slots)
        passed_ns = max(0, now_ns - self._event_ns)
        if self._waiting:
            copied_ns = min(copied_ns, passed_ns)
            self.copied_ns += copied_ns
            self.waited_ns += passed_ns - copied_ns
            self.full_waited_ns += self._full_ns
        elif has_batch:
            self.computed_ns += passed_ns
        if self._waiting or has_batch:
            self.full_ns += self._full_ns
            self.borrowed_slot_ns += self._borrowed_slot_ns
        self._full_ns = self._borrowed_slot_ns = 0
        self._event_ns = max(now_ns, self._event_ns)

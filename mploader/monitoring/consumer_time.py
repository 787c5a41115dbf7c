"""What the time of a loader's consumers goes to, where there may be several at once (``zip``, a peek, threads)."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from mploader.engine.scheduler.states import SlotState

SlotCounts = Mapping[SlotState, int]


class ConsumerTime:
    """Sums of time, in nanoseconds on the monotonic clock. Whoever calls holds a lock, but for :meth:`stop_waiting`.

    A consumer asks for a batch, gets it, asks for the next, and at its end asks for one more than there is. What lies
    between two such events, of whichever consumers, was spent waiting if any consumer waited; computing if none did and
    the consumer of the later event had a batch; otherwise nobody consumed, and it counts as nothing: a pause between
    epochs, or a batch that somebody keeps. So no second counts twice, however many consume.

    Attributes:
        waited_ns: in which somebody waited for a batch.
        copied_ns: in which somebody got it copied out of its slot.
        computed_ns: in which nobody waited and somebody had a batch.
        started_ns: the part of ``waited_ns`` before the first batch of all.
        full_ns: of the three, without ``started_ns``, in which no slot was free.
        full_waited_ns: of that, in which somebody waited: the slots held other batches.
        lent_ns: the same, times the slots that were lent.
        slots: how many slots are in each state.
    """

    def __init__(self, now_ns: int) -> None:
        self.waited_ns = self.copied_ns = self.computed_ns = self.started_ns = 0
        self.full_ns = self.full_waited_ns = self.lent_ns = 0
        self.slots: SlotCounts = {}
        self._waiting: set[int] = set()
        """The threads that wait. Not a count: what Ctrl-C leaves behind goes when the thread asks again."""
        self._has_started = False
        self._event_ns = self._slots_ns = now_ns
        self._full_ns = self._lent_ns = 0
        """Since the last event."""

    def ask(self, now_ns: int, left_ns: int) -> None:
        """This thread begins to wait; ``left_ns``: when its consumer got the batch before, 0 for the first of a run."""
        self._pass(now_ns, left_ns)
        self._waiting.add(threading.get_ident())

    def get(self, now_ns: int, copied_ns: int) -> None:
        """This thread has got its batch; the last ``copied_ns`` of the time it was being copied."""
        self._pass(now_ns, 0, copied_ns)
        if not self._has_started:
            self._has_started = True
            self.started_ns = self.waited_ns
            self.full_ns = self.full_waited_ns = self.lent_ns = 0

    def stop_waiting(self) -> None:
        """This thread no longer waits, whether it has got a batch or an exception. Takes no lock."""
        self._waiting.discard(threading.get_ident())

    def end(self, now_ns: int, left_ns: int) -> None:
        """A consumer asks for more than there is; ``left_ns`` as in :meth:`ask`."""
        self._pass(now_ns, left_ns)

    def see_slots(self, now_ns: int, slots: SlotCounts) -> None:
        """From now on the slots are in these states."""
        passed_ns = max(0, now_ns - self._slots_ns)
        self._lent_ns += passed_ns * self.slots.get(SlotState.BORROWED, 0)
        if self.slots and not self.slots.get(SlotState.FREE, 0):
            self._full_ns += passed_ns
        self._slots_ns = max(now_ns, self._slots_ns)
        self.slots = slots

    def _pass(self, now_ns: int, left_ns: int, copied_ns: int = 0) -> None:
        """Counts the time since the last event."""
        self.see_slots(now_ns, self.slots)
        passed_ns = max(0, now_ns - self._event_ns)
        if self._waiting:
            copied_ns = min(copied_ns, passed_ns)
            self.copied_ns += copied_ns
            self.waited_ns += passed_ns - copied_ns
            self.full_waited_ns += self._full_ns
        elif left_ns:
            self.computed_ns += passed_ns
        if self._waiting or left_ns:
            self.full_ns += self._full_ns
            self.lent_ns += self._lent_ns
        self._full_ns = self._lent_ns = 0
        self._event_ns = max(now_ns, self._event_ns)

"""The slots of a pool: the state of each, how many are in each state, and which are free."""

from __future__ import annotations

from dataclasses import dataclass

from mploader.engine.scheduler.states import SLOT_MOVES, IllegalEventError, SlotState


@dataclass
class Slot:
    """One slot: its state, how often it was assigned, and the task whose bytes it holds."""

    state: SlotState = SlotState.FREE
    generation: int = 0
    task: int | None = None


class SlotTable:
    """All slots of one scheduler, by number.

    Args:
        count: how many, at least 1.
        reserved: the low-water mark: how many slots are never borrowed, from 1 to ``count``.
    """

    def __init__(self, count: int, reserved: int) -> None:
        if not 1 <= reserved <= count:
            raise IllegalEventError(f"reserved={reserved}: expected 1 to {count}, the number of slots")
        self._reserved = reserved
        self._slots: list[Slot] = []
        self._counts = dict.fromkeys(SlotState, 0)
        self._free: list[int] = []  # a stack: the slot used last is still in the caches
        self.add(count)

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, count: int) -> None:
        """Adds free slots, numbered behind those that there are. Borrowing may use all of them."""
        first = len(self._slots)
        self._slots += [Slot() for _ in range(count)]
        self._counts[SlotState.FREE] += count
        self._free[:0] = range(first + count - 1, first - 1, -1)

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]

    @property
    def counts(self) -> dict[SlotState, int]:
        """How many slots are in each state."""
        return dict(self._counts)

    def count(self, state: SlotState) -> int:
        """How many slots are in a state."""
        return self._counts[state]

    @property
    def has_free(self) -> bool:
        """Whether a slot is free."""
        return bool(self._free)

    @property
    def must_copy(self) -> bool:
        """Whether one more borrowed slot would leave the workers fewer than the low-water mark."""
        away = self._counts[SlotState.BORROWED] + self._counts[SlotState.QUARANTINED]
        return away >= len(self._slots) - self._reserved

    def assign(self, task: int) -> int:
        """Assigns a free slot to a task and returns its number."""
        number = self._free.pop()
        self.move(number, "assign", task)
        return number

    def move(self, number: int, event: str, task: int | None = None) -> None:
        """Brings a slot to its next state, or raises IllegalEventError and changes nothing."""
        slot = self._slots[number]
        if (slot.state, event) not in SLOT_MOVES:
            raise IllegalEventError(f"slot {number} is {slot.state.name}: {event} is impossible")
        self._counts[slot.state] -= 1
        slot.state = SLOT_MOVES[slot.state, event]
        self._counts[slot.state] += 1
        if event == "assign":
            slot.generation += 1
        if event != "made":
            slot.task = task
        if slot.state is SlotState.FREE:
            self._free.append(number)

"""The states of tasks and slots, what moves them, and the records that leave the schedule.

States of a slot, and what moves it::

    FREE --lease--> LEASED --filled--> READY --take--> LENT --release--> FREE
                      |                  '--spill, cancel--> FREE
                      |--lost, failed--> FREE
                      '--abandon--> QUARANTINED --lost--> FREE

States of a task (a delivered or cancelled task is forgotten)::

    PENDING --lease--> LEASED --filled--> READY --take--> (delivered)
       ^                 |  '---failed--> FAILED --take--> (delivered)
       '----lost---------'
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class IllegalEventError(Exception):
    """The event cannot happen in this state: a fault of mploader itself. Nothing was changed."""


class SlotState(enum.Enum):
    """Who may touch a slot: see the module's docstring."""

    FREE = enum.auto()
    LEASED = enum.auto()
    READY = enum.auto()
    LENT = enum.auto()
    QUARANTINED = enum.auto()


class TaskState(enum.Enum):
    """How far a batch is: see the module's docstring."""

    PENDING = enum.auto()
    LEASED = enum.auto()
    READY = enum.auto()
    FAILED = enum.auto()


SLOT_MOVES = {
    (SlotState.FREE, "lease"): SlotState.LEASED,
    (SlotState.LEASED, "filled"): SlotState.READY,
    (SlotState.LEASED, "failed"): SlotState.FREE,
    (SlotState.LEASED, "lost"): SlotState.FREE,
    (SlotState.LEASED, "abandon"): SlotState.QUARANTINED,
    (SlotState.QUARANTINED, "lost"): SlotState.FREE,
    (SlotState.READY, "take"): SlotState.LENT,
    (SlotState.READY, "spill"): SlotState.FREE,
    (SlotState.READY, "cancel"): SlotState.FREE,
    (SlotState.LENT, "release"): SlotState.FREE,
}

TASK_MOVES = {
    (TaskState.PENDING, "lease"): TaskState.LEASED,
    (TaskState.LEASED, "filled"): TaskState.READY,
    (TaskState.LEASED, "failed"): TaskState.FAILED,
    (TaskState.LEASED, "lost"): TaskState.PENDING,
}


@dataclass(frozen=True)
class Lease:
    """The right of one worker to write one task into one slot."""

    worker: int
    task: int
    attempt: int
    slot: int
    generation: int
    run: int
    epoch: int
    position: int
    stream: int = -1
    """The generator to draw from; -1 for a batch of the plan."""
    skip: int = -1
    """How many elements of the generator were drawn before; -1: the worker knows, it has drawn them."""
    checksum: int = 0
    """Checksum of these elements, if ``skip`` is not -1."""
    spilled: int = -1
    """A ready task whose bytes are still in this slot: copy them out before the lease is sent; -1 for none."""
    first: int = 0
    """Of a run without a batch size: the element of the epoch with which position 0 begins."""


@dataclass(frozen=True)
class Taken:
    """A batch that leaves the schedule.

    Attributes:
        task: its number.
        failed: the batch could not be made; there is no slot.
        slot: where it lies; the slot stays lent until :meth:`Scheduler.release`. -1: in memory of the trainer.
        copy: too many slots are lent or quarantined already: copy the batch out and release the slot at once.
        stream: the generator that it is from; -1 for a batch of the plan.
    """

    task: int
    failed: bool
    slot: int = -1
    generation: int = -1
    copy: bool = False
    stream: int = -1


@dataclass(frozen=True)
class Lost:
    """What the loss of a worker meant for one of its leases."""

    lease: Lease
    failed: bool = False
    """The task has lost its last attempt outside any sample, or in a generator, and is FAILED."""


@dataclass
class Task:
    """One batch of one run."""

    number: int
    run: int
    position: int
    state: TaskState = TaskState.PENDING
    attempt: int = 0
    slot: int = -1
    crashes: list[int] = field(default_factory=list)
    """For each worker lost with the task outside any sample of a batch: -1, or the element of the generator."""

    def move(self, event: str) -> None:
        """Goes to the next state, or raises and stays."""
        if (self.state, event) not in TASK_MOVES:
            raise IllegalEventError(f"task {self.number} is {self.state.name}: {event} is impossible")
        self.state = TASK_MOVES[self.state, event]


@dataclass
class Slot:
    """One slot: its state, how often it was leased, and the task whose bytes it holds."""

    state: SlotState = SlotState.FREE
    generation: int = 0
    task: int = -1


@dataclass
class StreamPass:
    """One pass over the outputs of many generators, which are opened in their order."""

    streams: int
    """How many there are."""
    limit: int
    """Of each: see :attr:`Run.limit`."""
    window: int
    """So many are opened ahead whose generators have not ended."""
    most_made: int
    """So many may be open besides, of which all is made that may be, before no more are opened ahead."""
    opened: int = 0
    takes_any: bool = False
    """Its consumer takes whichever is ready, also of streams that are opened while it waits."""
    runs: dict[int, int] = field(default_factory=dict)
    """The stream of each open run; the one that was delivered from least recently first."""


@dataclass
class Run:
    """One pass over an epoch, or over the output of one generator."""

    epoch: int
    length: float
    """One more than the last position; infinite for a stream that has not ended."""
    claimed: bool
    limit: int
    """Most batches that may be under way or ready, unless more are wanted."""
    frontier: int
    """The first position that was never leased."""
    pending: list[int] = field(default_factory=list)
    """Heap of positions before the frontier that have to be made again."""
    tasks: dict[int, int] = field(default_factory=dict)
    """Task numbers of the positions before the frontier that are not delivered."""
    waiting: set[int] = field(default_factory=set)
    delivered: int = 0
    stream: int = -1
    worker: int | None = None
    """Of a stream: the worker where its generator lives."""
    drawn: int = 0
    """Of a stream: elements in its committed batches."""
    checksum: int = 0
    """Of a stream: the checksum of these elements."""
    first: int = 0
    """See :attr:`Lease.first`."""
    part_of: StreamPass | None = None

    @property
    def is_unbound(self) -> bool:
        """Whether it is a stream whose generator lives nowhere: not yet, or not any more."""
        return self.stream >= 0 and self.worker is None

    def next_pending(self) -> int | None:
        """The position to make next; None if there is none, or enough are under way."""
        if self.pending:
            return self.pending[0]
        if self.frontier < self.length and (len(self.tasks) < self.limit or self.is_wanted(self.frontier)):
            return self.frontier
        return None

    def is_wanted(self, position: int) -> bool:
        """Whether somebody waits for a position, or for one that is leased after it."""
        return position in self.waiting or any(
            other > position and (other >= self.frontier or other in self.pending) for other in self.waiting
        )

"""The states of tasks and slots, the events that change them, and the records that leave the scheduler.

States of a slot, and its events::

    FREE --assign--> ASSIGNED --made--> READY --take--> BORROWED --release--> FREE
                      |                  '--spill, cancel--> FREE
                      |--lost, failed--> FREE
                      '--abandon--> QUARANTINED --lost--> FREE

States of a task, and its events (a delivered or cancelled task is forgotten)::

    PENDING --assign--> ASSIGNED --made--> READY --take--> (delivered)
       ^                   |  '---failed--> FAILED --take--> (delivered)
       '-------lost--------'
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


class IllegalEventError(Exception):
    """The event is impossible in this state: a fault of mploader itself. Nothing was changed."""


class SlotState(enum.Enum):
    """Who may touch a slot: see the module's docstring."""

    FREE = enum.auto()
    ASSIGNED = enum.auto()
    READY = enum.auto()
    BORROWED = enum.auto()
    QUARANTINED = enum.auto()


class TaskState(enum.Enum):
    """How far a batch is: see the module's docstring."""

    PENDING = enum.auto()
    ASSIGNED = enum.auto()
    READY = enum.auto()
    FAILED = enum.auto()


SLOT_MOVES = {
    (SlotState.FREE, "assign"): SlotState.ASSIGNED,
    (SlotState.ASSIGNED, "made"): SlotState.READY,
    (SlotState.ASSIGNED, "failed"): SlotState.FREE,
    (SlotState.ASSIGNED, "lost"): SlotState.FREE,
    (SlotState.ASSIGNED, "abandon"): SlotState.QUARANTINED,
    (SlotState.QUARANTINED, "lost"): SlotState.FREE,
    (SlotState.READY, "take"): SlotState.BORROWED,
    (SlotState.READY, "spill"): SlotState.FREE,
    (SlotState.READY, "cancel"): SlotState.FREE,
    (SlotState.BORROWED, "release"): SlotState.FREE,
}

TASK_MOVES = {
    (TaskState.PENDING, "assign"): TaskState.ASSIGNED,
    (TaskState.ASSIGNED, "made"): TaskState.READY,
    (TaskState.ASSIGNED, "failed"): TaskState.FAILED,
    (TaskState.ASSIGNED, "lost"): TaskState.PENDING,
}


@dataclass(frozen=True)
class Replay:
    """How much of a generator's output is committed, so that another worker can go on behind it.

    Attributes:
        elements: how many.
        checksum: over all of them.
    """

    elements: int = 0
    checksum: int = 0


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The right of one worker to write one task into one slot.

    Attributes:
        worker: number of the worker's incarnation.
        task: number of the task.
        attempt: from 1; one more for each worker that was lost with the task.
        slot: number of the slot.
        generation: number of the slot's use.
        series: number of the series that the task belongs to.
        epoch: of the series; 0 for a generator.
        batch_index: place of the batch in its series.
        first: of a series of single elements, the element of the epoch with which batch 0 begins.
        input: number of the generator's input; None for a batch of the plan.
        replay: open the generator anew and skip these elements. None: it stands where this batch begins.
        spilled: a ready task whose bytes are still in the slot. They must be copied out, and the scheduler told by
            :meth:`Scheduler.moved_out`, before the worker hears of the assignment.
    """

    worker: int
    task: int
    attempt: int
    slot: int
    generation: int
    series: int
    epoch: int
    batch_index: int
    first: int = 0
    input: int | None = None
    replay: Replay | None = None
    spilled: int | None = None


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A batch that leaves the scheduler.

    Attributes:
        task: its number.
        result: what :meth:`Scheduler.made` or :meth:`Scheduler.failed` was given.
        failed: the batch could not be made.
        slot: where the batch lies; the slot is borrowed until :meth:`Scheduler.release`. None: in no slot.
        generation: number of the slot's use.
        copy: too many slots are borrowed or quarantined: copy the batch out and release the slot at once.
    """

    task: int
    result: Any
    failed: bool = False
    slot: int | None = None
    generation: int = 0
    copy: bool = False


@dataclass(frozen=True)
class Lost:
    """What the loss of a worker meant for one of its assignments.

    Attributes:
        assignment: which.
        failed: the task has lost its last attempt outside any sample, or in a generator, and is FAILED.
    """

    assignment: Assignment
    failed: bool = False


@dataclass
class Task:
    """One batch of one series.

    Attributes:
        number: never used twice.
        series: number of its series.
        batch_index: its place there.
        state: how far it is.
        attempt: how often it was assigned.
        slot: where it is written or lies.
        result: what the pool keeps with a READY or FAILED task.
        is_moving: its bytes are being copied out of the slot, which belongs to another task already.
        crashes: for each worker that was lost with the task outside any sample: None, or the element of the generator.
    """

    number: int
    series: int
    batch_index: int
    state: TaskState = TaskState.PENDING
    attempt: int = 0
    slot: int | None = None
    result: Any = None
    is_moving: bool = False
    crashes: list[int | None] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether it can be delivered now."""
        return self.state in (TaskState.READY, TaskState.FAILED) and not self.is_moving

    def move(self, event: str) -> None:
        """Goes to the next state, or raises IllegalEventError and stays."""
        if (self.state, event) not in TASK_MOVES:
            raise IllegalEventError(f"task {self.number} is {self.state.name}: {event} is impossible")
        self.state = TASK_MOVES[self.state, event]

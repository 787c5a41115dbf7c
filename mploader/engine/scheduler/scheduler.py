"""Who makes which batch in which slot: the state machine of the pool, without I/O, threads or a clock.

Every decision about a task or a slot is made in :class:`Scheduler`. The supervisor reports events to it and carries
out what it says. So a test can drive it without a process, and search every interleaving of events.

A *task* is one batch of a *series* (see :mod:`mploader.engine.scheduler.series`). A *worker* here is one incarnation of
a process: a replacement has another number. An *assignment* lets one worker write one task into one slot. The states,
and the events that change them, stand as tables in :mod:`mploader.engine.scheduler.states`.

Guarantees, each searched exhaustively in small worlds by ``tests/engine/scheduler/test_search.py``:

* A batch of a series is delivered exactly once. It leaves ASSIGNED only by a result that matches its current
  assignment, or by the loss of its worker, which makes it pending again with the next attempt.
* No slot has two writers. A slot whose worker may still be alive is ASSIGNED or QUARANTINED, never FREE.
* No state is stuck. Batches are assigned in order, so a batch is *needed* if a consumer waits for it, or for one that
  is assigned after it. If every slot holds batches that no consumer waits for, the one that is needed last is
  *spilled*: its bytes are copied into memory of the trainer, and its slot goes to the task that is needed. At most
  ``slots - reserved`` slots are borrowed or quarantined when another one is borrowed, so the consumer can never hold
  them all; beyond that a batch is to be copied out. A series has at most ``max_ahead`` batches that are not delivered,
  and as many more as its consumers skip: only that bounds what is spilled. Workers that do not die may take even the
  reserved slots: a consumer that waits then is *starved*, until it drops a batch or such a worker dies.
* A series of unknown length ends at the first result that is marked as the last. Tasks beyond it are cancelled, and
  their slots become free when their workers have answered.
* No generator begins behind the batch of another while a worker may become free: it goes to a worker that has nothing
  in hand. While one is waited for, workers get no second assignment, so that the first to finish takes it.

It is longer than 300 lines: the moves of one state machine are proved together, and are read together.
"""

from __future__ import annotations

import heapq
from typing import Any

from mploader.engine.scheduler.series import Group, Series
from mploader.engine.scheduler.series_table import SeriesTable
from mploader.engine.scheduler.slot_table import SlotTable
from mploader.engine.scheduler.states import (
    Assignment,
    IllegalEventError,
    Lost,
    Replay,
    SlotState,
    Taken,
    Task,
    TaskState,
)

MAX_ATTEMPTS = 3
"""How many workers may be lost with a task outside any sample, or to one sample or element, before it is given up."""


class Scheduler:
    """The owner of all tasks and slots of one pool. Not thread-safe: the pool calls it under its lock.

    Args:
        slots: how many slots there are, at least 1.
        reserved: the low-water mark: how many slots are never borrowed, from 1 to ``slots``.
        backlog: how many assignments a worker may hold; the second one hides the way of a message.
    """

    def __init__(self, slots: int, reserved: int, backlog: int = 2) -> None:
        self.slots = SlotTable(slots, reserved)
        self._backlog = backlog
        self._tasks: dict[int, Task] = {}
        self._workers: dict[int, list[Assignment]] = {}
        self._abandoned: dict[int, list[Assignment]] = {}
        self._dying: set[int] = set()
        self._series = SeriesTable()
        self._cancelled: list[tuple[int, int]] = []
        self.is_ahead_held = False
        """Nothing of unclaimed series is assigned. For the time in which a sample is suspect: it may be in hand in one
        epoch only, or it would kill further workers while it is being judged."""
        self._next_task = 0

    def add_slots(self, count: int) -> None:
        """Adds free slots, numbered behind those that there are."""
        self.slots.add(count)
        for series in self._series.open.values():
            if not series.is_bound:
                series.max_ahead = len(self.slots)

    # Series and groups

    def open_series(self, epoch: int, length: int, start: int = 0, *, first: int = 0, claimed: bool = True) -> int:
        """Opens the batches of an epoch from ``start`` to ``length`` and returns the number of the series.

        A series that is not ``claimed`` is made ahead of time: it gets what no claimed series needs. ``first`` goes
        into every assignment.
        """
        return self._series.add(
            Series(epoch=epoch, length=length, max_ahead=len(self.slots), claimed=claimed, frontier=start,
                   delivered=start, first=first)
        )  # fmt: skip

    def open_input(self, number: int, max_ahead: int) -> int:
        """Opens the output of a generator and returns the number of the series.

        Args:
            number: which input, from 0.
            max_ahead: how many batches may be made ahead of the consumer, at least 1.
        """
        return self._series.add_input(number, max_ahead)

    def open_group(self, inputs: int, max_ahead: int, window: int, max_idle: int) -> int:
        """Opens a pass over inputs, numbered from 0, and returns the number of the group; see :class:`Group`."""
        return self._series.add_group(Group(inputs=inputs, max_ahead=max_ahead, window=window, max_idle=max_idle))

    def series_of(self, group: int, number: int) -> int:
        """Returns the series over one input of a group; opens it, and those before it, if that is still to be done."""
        return self._series.of_input(group, number)

    def heads(self, group: int) -> dict[int, int]:
        """Opens what may be open of a group whose consumer takes any batch; returns the next batch of each series.

        The series that was served least recently comes first. Empty if everything was delivered.
        """
        found = self._series.group(group)
        found.takes_any = True
        self._series.open_ahead(found)
        return {series: self._series[series].delivered for series in found.members}

    def has_group(self, group: int) -> bool:
        """Whether the group is open."""
        return group in self._series.groups

    def close_group(self, group: int) -> None:
        """Forgets a group and its series."""
        closed = self._series.groups.pop(group, None)
        for series in () if closed is None else closed.members:
            self.close_series(series)

    def claim(self, series: int) -> None:
        """A consumer asks for the batches of a series from now on."""
        self._series[series].claimed = True

    def close_series(self, series: int) -> None:
        """Forgets a series. Its ready batches are dropped; what workers still write for it will be."""
        closed = self._series.remove(series)
        if closed is not None:
            for number in closed.tasks.values():
                self._drop(number)
            self._cancel(series, closed)

    def has_series(self, series: int) -> bool:
        """Whether the series is open and not completely delivered."""
        return series in self._series

    def cancelled(self) -> list[tuple[int, int]]:
        """Returns, once, which workers can close the generators of which series, as (worker, series)."""
        cancelled, self._cancelled = self._cancelled, []
        return cancelled

    # Workers

    def worker_ready(self, worker: int) -> None:
        """A worker can be given assignments."""
        if worker in self._workers:
            raise IllegalEventError(f"worker {worker} is ready already")
        self._workers[worker] = []

    def worker_dying(self, worker: int) -> None:
        """A worker was killed and is not dead yet: it gets no more assignments."""
        self._dying.add(worker)

    def worker_lost(self, worker: int, *, has_begun: bool, offset: int | None = None) -> list[Lost]:
        """A worker is dead for certain: nothing writes to its slots any more.

        Args:
            worker: the worker; unknown ones are ignored, as a worker may die before it was ready.
            has_begun: it had taken up the first of its assignments.
            offset: the sample of that batch, or the element of the generator, that it had in hand; None outside any.
        """
        self._dying.discard(worker)
        for assignment in self._abandoned.pop(worker, ()):
            self.slots.move(assignment.slot, "lost")
        return self._give_back(worker, "lost", has_begun, offset)

    def worker_abandoned(self, worker: int, *, has_begun: bool, offset: int | None = None) -> list[Lost]:
        """A worker was killed but does not die. Its tasks go to others; its slots stay closed until it is lost."""
        self._abandoned[worker] = list(self._workers.get(worker, ()))
        return self._give_back(worker, "abandon", has_begun, offset)

    def assignments(self, worker: int) -> tuple[Assignment, ...]:
        """What a worker holds, the one in hand first."""
        return tuple(self._workers.get(worker, ()))

    @property
    def has_room(self) -> bool:
        """Whether a worker holds fewer assignments than it may. If none does, :meth:`assign` returns None."""
        return any(len(held) < self._backlog for held in self._workers.values())

    # Tasks

    def assign(self) -> Assignment | None:
        """Assigns the task that is needed most to the worker with the least to do; None if there is nothing to do."""
        for group in self._series.groups.values():
            self._series.open_ahead(group)
        backlog = self._backlog
        for number, batch_index in self._series.needs(is_ahead_held=self.is_ahead_held):
            series = self._series[number]
            is_needed = series.is_needed(batch_index)
            worker = self._worker_for(series, backlog)
            if worker is None:
                if series.is_unbound and is_needed:
                    backlog = 1  # the first worker to finish takes it
                continue  # a generator may have to wait for its own worker while others are idle
            spilled = self._spill() if is_needed and not self.slots.has_free else None
            if not self.slots.has_free:
                return None
            return self._assign(worker, number, batch_index, spilled)
        return None

    def _assign(self, worker: int, number: int, batch_index: int, spilled: int | None) -> Assignment:
        series = self._series[number]
        task = self._task_for(number, batch_index)
        task.move("assign")
        task.attempt += 1
        task.slot = self.slots.assign(task.number)
        replay = None
        if series.is_unbound:
            # Everything before this batch is committed: the worker that had the rest is lost.
            series.worker, replay = worker, series.replay
        assignment = Assignment(
            worker=worker, task=task.number, attempt=task.attempt, slot=task.slot,
            generation=self.slots[task.slot].generation, series=number, epoch=series.epoch, batch_index=batch_index,
            first=series.first, input=series.input, replay=replay, spilled=spilled,
        )  # fmt: skip
        self._workers[worker].append(assignment)
        return assignment

    def moved_out(self, task: int, result: Any) -> None:
        """The bytes of a spilled task are copied out of its former slot; ``result`` refers to the copy."""
        found = self._tasks.get(task)
        if found is not None:
            found.is_moving, found.result = False, result

    def result_of(self, task: int) -> Any:
        """What the pool keeps with a task that is ready; None if the task is not to be delivered any more."""
        found = self._tasks.get(task)
        return None if found is None else found.result

    def current(self, worker: int, task: int, attempt: int, slot: int, generation: int) -> Assignment | None:
        """The assignment that has exactly these numbers, if a worker holds it now."""
        for assignment in self._workers.get(worker, ()):
            if (assignment.task, assignment.attempt, assignment.slot, assignment.generation) == (
                task, attempt, slot, generation
            ):  # fmt: skip
                return assignment
        return None

    def made(self, assignment: Assignment, result: Any, *, replay: Replay | None = None, is_last: bool = False) -> bool:
        """A worker has made a batch. Returns False, and changes nothing, if the assignment is not current.

        Args:
            assignment: what the worker was to do.
            result: kept with the task for its consumer.
            replay: of a generator, what it has given with this batch: number and checksum of all its elements so far.
            is_last: the generator has ended.
        """
        if not self._finish(assignment, "made", result):
            return False
        task = self._tasks.get(assignment.task)
        if task is not None:
            series = self._series[task.series]
            if series.is_bound:
                series.replay = replay
            if is_last:
                self._end(series, task.batch_index + 1)
        return True

    def continues(self, assignment: Assignment, replay: Replay, samples: int) -> bool:
        """Whether a generator can have given these elements in all, with a batch of ``samples`` behind the last one."""
        task = self._tasks.get(assignment.task)
        before = None if task is None else self._series[task.series].replay
        return before is None or replay.elements == before.elements + samples or (samples == 0 and not replay.elements)

    def failed(self, assignment: Assignment, result: Any) -> bool:
        """A worker reports that the batch cannot be made. Returns False if the assignment is not current."""
        return self._finish(assignment, "failed", result)

    def give_up(self, task: int, result: Any) -> None:
        """Sets what the consumer of a task gets that has lost its last attempt."""
        self._tasks[task].result = result

    def drop_results(self) -> None:
        """Forgets what the pool keeps with tasks: no consumer will take them."""
        for task in self._tasks.values():
            task.result = None

    def take(self, series: int, batch_index: int) -> Taken | None:
        """Delivers a batch; None if it is not there yet, and then it is what the scheduler has made first."""
        found = self._series[series]
        number = found.tasks.get(batch_index)
        task = None if number is None else self._tasks[number]
        if task is None and batch_index < found.frontier:
            raise IllegalEventError(f"batch {batch_index} of series {series} was delivered before")
        if task is None or not task.is_done:
            found.waiting.add(batch_index)
            return None
        del self._tasks[task.number], found.tasks[batch_index]
        found.waiting.discard(batch_index)
        if self._series.served(series):
            self._cancel(series, found)
        if task.state is TaskState.FAILED or task.slot is None:
            return Taken(task=task.number, result=task.result, failed=task.state is TaskState.FAILED)
        copy = self.slots.must_copy
        self.slots.move(task.slot, "take", task.number)
        return Taken(task=task.number, result=task.result, slot=task.slot,
                     generation=self.slots[task.slot].generation, copy=copy)  # fmt: skip

    def release(self, slot: int, generation: int) -> None:
        """Nothing refers to a borrowed slot any more."""
        if self.slots[slot].generation != generation:
            raise IllegalEventError(f"slot {slot} is in use {self.slots[slot].generation}, not {generation}")
        self.slots.move(slot, "release")

    # What the pool asks

    def has_task(self, task: int) -> bool:
        """Whether a task is still to be delivered."""
        return task in self._tasks

    def is_delivered(self, series: int, batch_index: int) -> bool:
        """Whether a batch was taken; True for a series that is over."""
        found = self._series.open.get(series)
        return found is None or (batch_index < found.frontier and batch_index not in found.tasks)

    def is_waited_for(self, task: int) -> bool:
        """Whether a consumer waits for this task right now."""
        found = self._tasks.get(task)
        if found is None:
            return False
        series = self._series[found.series]
        return found.batch_index in series.waiting or (series.group is not None and series.group.takes_any)

    @property
    def is_starved(self) -> bool:
        """Whether a consumer waits for a batch and no slot is left to make it in: some are held by workers that do not
        die, and the others by the consumer."""
        in_use = (SlotState.FREE, SlotState.ASSIGNED, SlotState.READY)  # a ready one is taken soon, or makes room
        return (
            self.slots.count(SlotState.QUARANTINED) > 0
            and not any(map(self.slots.count, in_use))
            and any(series.waiting for series in self._series.open.values())
        )

    def __repr__(self) -> str:
        slots = ", ".join(f"{count} {state.name.lower()}" for state, count in self.slots.counts.items() if count)
        return f"<Scheduler: slots {slots}; {len(self._workers)} workers, {len(self._series.open)} series>"

    # Inside

    def _worker_for(self, series: Series, backlog: int) -> int | None:
        """The worker that can take a task of a series now, where none may hold more than ``backlog`` assignments."""
        worker = series.worker
        if series.is_unbound:
            backlog = 1  # a generator stays where it begins: behind another's batch it would wait while others idle
        if worker is None:
            fit = self._workers.keys() - self._dying
            worker = min(fit, key=lambda number: (len(self._workers[number]), number), default=None)
        if worker is None or worker in self._dying or len(self._workers[worker]) >= backlog:
            return None
        return worker

    def _spill(self) -> int | None:
        """Frees the slot of the ready batch that is needed last and that no consumer waits for; None if there is none.

        The batch cannot be taken until :meth:`moved_out`.
        """
        ready = [
            (not self._series[task.series].claimed, task.batch_index - self._series[task.series].delivered, task.number)
            for task in self._tasks.values()
            if task.state is TaskState.READY
            and task.slot is not None
            and task.batch_index not in self._series[task.series].waiting
        ]
        if not ready:
            return None
        task = self._tasks[max(ready)[2]]
        assert task.slot is not None
        self.slots.move(task.slot, "spill")
        task.slot, task.is_moving = None, True
        return task.number

    def _end(self, series: Series, length: int) -> None:
        """A generator has ended: cancels the tasks that were made ahead beyond its end."""
        series.length = length
        for batch_index in [batch_index for batch_index in series.tasks if batch_index >= length]:
            self._drop(series.tasks.pop(batch_index))
        series.pending = [batch_index for batch_index in series.pending if batch_index < length]
        heapq.heapify(series.pending)

    def _drop(self, number: int) -> None:
        """Forgets a task. A slot that is still written becomes free when the worker answers or is lost."""
        task = self._tasks.pop(number)
        if task.state is TaskState.READY and task.slot is not None:
            self.slots.move(task.slot, "cancel")

    def _cancel(self, number: int, series: Series) -> None:
        """Has the generator of a series closed that is still open in a worker."""
        if series.worker is not None and series.length is None:
            self._cancelled.append((series.worker, number))

    def _task_for(self, number: int, batch_index: int) -> Task:
        series = self._series[number]
        if batch_index < series.frontier:
            heapq.heappop(series.pending)
            return self._tasks[series.tasks[batch_index]]
        series.frontier += 1
        task = Task(self._next_task, number, batch_index)
        self._next_task += 1
        self._tasks[task.number] = task
        series.tasks[batch_index] = task.number
        return task

    def _finish(self, assignment: Assignment, event: str, result: Any) -> bool:
        held = self._workers.get(assignment.worker, [])
        if assignment not in held:
            return False
        held.remove(assignment)
        self.slots.move(assignment.slot, event)
        task = self._tasks.get(assignment.task)
        if task is not None:
            task.move(event)
            task.result = result
            if event == "failed":
                task.slot = None
        elif event == "made":
            self.slots.move(assignment.slot, "cancel")  # its series was closed, or had ended before, meanwhile
        return True

    def _give_back(self, worker: int, event: str, has_begun: bool, offset: int | None) -> list[Lost]:
        """Takes everything from a worker: its slots move by ``event``, its tasks become pending again or fail."""
        for series in self._series.open.values():
            if series.worker == worker:
                series.worker = None  # the generators of a worker are gone with it
        lost = []
        for place, assignment in enumerate(self._workers.pop(worker, ())):
            self.slots.move(assignment.slot, event)
            lost.append(self._return_task(assignment, has_begun and place == 0, offset))
        return lost

    def _return_task(self, assignment: Assignment, has_begun: bool, offset: int | None) -> Lost:
        """Makes a lost task pending again, unless it has been lost too often.

        A task that the worker had not begun is not to blame for the loss.
        """
        task = self._tasks.get(assignment.task)
        if task is None:
            return Lost(assignment)
        task.slot = None
        series = self._series[task.series]
        is_hopeless = False
        # A sample of a batch can be left out, which the crash policy judges. A generator cannot skip an element.
        if has_begun and (offset is None or series.is_bound):
            task.crashes.append(offset)
            is_hopeless = task.crashes.count(offset) >= MAX_ATTEMPTS
        if is_hopeless:
            task.move("failed")
        else:
            task.move("lost")
            heapq.heappush(series.pending, task.batch_index)
        return Lost(assignment, is_hopeless)

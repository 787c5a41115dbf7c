"""Who owns which task and which slot: the state machine of the pool, without I/O, threads or a clock.

Everything that decides about a task or a slot happens in :class:`Scheduler`; the pool only reports events to it and
carries out what it says. So a test can drive it without a process, and search every interleaving of events.

A *run* is one pass over one epoch. Its *tasks* are its batches, known by their position. A *worker* here is one
incarnation of a process: a replacement has another number. A *lease* lets one worker write one task into one slot.
A run over a *stream*, the output of a generator, is bound to one worker, where the generator lives; its length is not
known before the generator ends. The streams of a *pass* are opened one after the other.

The states, and the events that move them, stand as tables in :mod:`mploader.engine.scheduler.states`.

Guarantees, each searched exhaustively in small worlds by ``tests/test_schedule_search.py``:

* A position of a run is delivered exactly once. It leaves LEASED only by a result that matches its current lease, or
  by the loss of its worker, which makes it pending again with the next attempt.
* No slot has two writers. A slot whose worker may still be alive is LEASED or QUARANTINED, never FREE.
* No state is stuck. Positions are leased in order, so a position is *wanted* if somebody waits for it, or for one that
  is leased after it. If every slot holds batches that nobody waits for, the one that is needed last is *spilled*:
  copied into memory of the trainer, and its slot given to the one that is wanted. At most ``slots - reserved`` slots
  are lent or quarantined when another one is lent, so the consumer can never hold them all; beyond that a batch is to
  be copied out. A run has at most ``limit`` batches that are not delivered, and as many more as its consumers skip:
  only that bounds what is spilled. Workers that do not die may take even the reserved slots: whoever waits then is
  *starved*, until the consumer drops a batch or such a worker dies.
* No stream begins behind another's batch while a worker may get free: it is bound to a worker that has nothing in
  hand. While one is waited for, workers get no second lease, so that the first to finish takes it.
"""

from __future__ import annotations

import heapq
import math

from mploader.engine.scheduler.states import (
    SLOT_MOVES,
    IllegalEventError,
    Lease,
    Lost,
    Run,
    Slot,
    SlotState,
    StreamPass,
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
        reserved: the low-water mark: how many slots are never lent, from 1 to ``slots``.
        backlog: how many leases a worker may hold; the second one hides the way of a message.
    """

    def __init__(self, slots: int, reserved: int, backlog: int = 2) -> None:
        if not 1 <= reserved <= slots:
            raise IllegalEventError(f"reserved is {reserved}, with {slots} slots it must be from 1 to {slots}")
        self._reserved = reserved
        self._backlog = backlog
        self._slots = [Slot() for _ in range(slots)]
        self._counts = dict.fromkeys(SlotState, 0) | {SlotState.FREE: slots}
        self._free = list(range(slots))[::-1]  # a stack: the slot used last is still in the caches
        self._tasks: dict[int, Task] = {}
        self._workers: dict[int, list[Lease]] = {}
        self._abandoned: dict[int, list[Lease]] = {}
        self._dying: set[int] = set()
        self._runs: dict[int, Run] = {}
        self._passes: dict[int, StreamPass] = {}
        self._partings: list[tuple[int, int]] = []
        self.is_ahead_held = False
        """Nothing of unclaimed runs is leased. For the time in which a sample is suspect: it may be in hand in one
        epoch only, or it would kill further workers while it is being judged."""
        self._next_task = 0
        self._next_run = 0
        self._next_pass = 0

    # Runs

    def open_run(self, epoch: int, length: int, start: int = 0, *, first: int = 0, claimed: bool = True) -> int:
        """Opens a run over the positions from ``start`` to ``length`` and returns its number.

        A run that is not ``claimed`` is made ahead of time: it gets what no claimed run needs. ``first`` goes into
        every lease of the run.
        """
        run = self._next_run
        self._next_run += 1
        self._runs[run] = Run(epoch, length, claimed, len(self._slots), frontier=start, delivered=start, first=first)
        return run

    def open_stream(self, stream: int, limit: int) -> int:
        """Opens a run over the output of a generator and returns its number.

        Args:
            stream: which generator, from 0.
            limit: how many batches may be made ahead of the consumer, at least 1.
        """
        run = self._next_run
        self._next_run += 1
        self._runs[run] = Run(0, math.inf, True, limit, frontier=0, stream=stream)
        return run

    def open_pass(self, streams: int, limit: int, window: int, most_made: int) -> int:
        """Opens a pass over streams, numbered from 0, and returns its number.

        Args:
            streams: how many.
            limit: how many batches of each may be made ahead of the consumer, at least 1.
            window: how many are opened ahead of the consumer whose generators have not ended. While it waits, those do
                not count of which ``limit`` batches are made or being made: they keep no worker busy.
            most_made: how many of those that do not count may be open before no more are opened ahead, at least 1;
                bounds what is made ahead.
        """
        number = self._next_pass
        self._next_pass += 1
        self._passes[number] = StreamPass(streams, limit, window, most_made)
        return number

    def run_of(self, number: int, stream: int) -> int:
        """Returns the run over one stream of a pass; opens it, and those before it, if that is still to be done."""
        found = self._pass(number)
        while found.opened <= stream:
            self._open_next(found)
        for run, other in found.runs.items():
            if other == stream:
                return run
        raise IllegalEventError(f"stream {stream} of pass {number} was delivered before")

    def heads(self, number: int) -> dict[int, int]:
        """Opens what may be open of a pass, for a consumer that takes any, and returns the next position of each run.

        The run that was served least recently comes first. Empty if everything was delivered.
        """
        found = self._pass(number)
        found.takes_any = True
        self._open_ahead(found)
        return {run: self._runs[run].delivered for run in found.runs}

    def has_pass(self, number: int) -> bool:
        """Whether the pass is open."""
        return number in self._passes

    def close_pass(self, number: int) -> None:
        """Forgets a pass and its runs."""
        closed = self._passes.pop(number, None)
        for run in () if closed is None else closed.runs:
            self.close_run(run)

    def claim(self, run: int) -> None:
        """Somebody asks for the batches of ``run`` from now on."""
        self._run(run).claimed = True

    def close_run(self, run: int) -> None:
        """Forgets a run. Its ready batches are dropped; what workers still write for it will be."""
        closed = self._runs.pop(run, None)
        if closed is None:
            return
        for number in closed.tasks.values():
            task = self._tasks.pop(number)
            if task.state is TaskState.READY and task.slot >= 0:
                self._move_slot(task.slot, "cancel")
        self._part(run, closed)

    def partings(self) -> list[tuple[int, int]]:
        """Returns, once, which workers can forget the generators of which runs, as (worker, run)."""
        partings, self._partings = self._partings, []
        return partings

    def has_run(self, run: int) -> bool:
        """Whether the run is open and not completely delivered."""
        return run in self._runs

    # Workers

    def worker_ready(self, worker: int) -> None:
        """A worker can be given leases."""
        if worker in self._workers:
            raise IllegalEventError(f"worker {worker} is ready already")
        self._workers[worker] = []

    def worker_dying(self, worker: int) -> None:
        """A worker was killed and is not dead yet: it gets no more leases."""
        self._dying.add(worker)

    def worker_lost(self, worker: int, ordinal: int | None) -> list[Lost]:
        """A worker is dead for certain: nothing writes to its slots any more.

        Args:
            worker: the worker; unknown ones are ignored, as a worker may die before it was ready.
            ordinal: the sample that it had in hand, -1 for none; None: it had not taken up any of its leases.
        """
        self._dying.discard(worker)
        for lease in self._abandoned.pop(worker, ()):
            self._move_slot(lease.slot, "lost")
        self._unbind(worker)
        lost = []
        for place, lease in enumerate(self._workers.pop(worker, ())):
            self._move_slot(lease.slot, "lost")
            lost.append(self._return_task(lease, ordinal if place == 0 else None))
        return lost

    def worker_abandoned(self, worker: int, ordinal: int | None) -> list[Lost]:
        """A worker was killed but does not die. Its tasks go to others; its slots stay closed until it is lost."""
        leases = self._workers.pop(worker, [])
        self._abandoned[worker] = leases
        self._unbind(worker)
        for lease in leases:
            self._move_slot(lease.slot, "abandon")
        return [self._return_task(lease, ordinal if place == 0 else None) for place, lease in enumerate(leases)]

    def leases(self, worker: int) -> tuple[Lease, ...]:
        """What a worker holds, the one in hand first."""
        return tuple(self._workers.get(worker, ()))

    @property
    def has_room(self) -> bool:
        """Whether a worker holds fewer leases than it may. If none does, :meth:`lease` returns None."""
        return any(len(held) < self._backlog for held in self._workers.values())

    # Tasks

    def lease(self) -> Lease | None:
        """Leases the task that is needed most to the worker with the least to do; None if there is nothing to do."""
        for found in self._passes.values():
            self._open_ahead(found)
        backlog = self._backlog
        for run_number, position in self._needs():
            run = self._runs[run_number]
            worker = self._worker_for(run, backlog)
            if worker is None:
                if run.is_unbound and run.is_wanted(position):
                    backlog = 1  # the first worker to finish takes it
                continue  # a stream may have to wait for its own worker while others are idle
            slot, spilled = self._find_slot(wanted=run.is_wanted(position))
            if slot is None:
                return None
            return self._lease(worker, run_number, position, slot, spilled)
        return None

    def _lease(self, worker: int, run_number: int, position: int, slot: int, spilled: int) -> Lease:
        run = self._runs[run_number]
        task = self._task_for(run_number, position)
        task.move("lease")
        task.attempt += 1
        task.slot = slot
        self._move_slot(slot, "lease", task.number)
        skip = -1
        if run.stream >= 0 and run.worker is None:
            # Everything before this position is committed: the worker that had the rest is lost.
            run.worker, skip = worker, run.drawn
        lease = Lease(
            worker, task.number, task.attempt, slot, self._slots[slot].generation, run_number, run.epoch, position,
            run.stream, skip, run.checksum if skip >= 0 else 0, spilled,
            run.first,
        )  # fmt: skip
        self._workers[worker].append(lease)
        return lease

    def current(self, worker: int, task: int, attempt: int, slot: int, generation: int) -> Lease | None:
        """The lease that has exactly these numbers, if a worker holds it now."""
        for lease in self._workers.get(worker, ()):
            if (lease.task, lease.attempt, lease.slot, lease.generation) == (task, attempt, slot, generation):
                return lease
        return None

    def filled(self, lease: Lease) -> bool:
        """A worker's result. Returns False, and changes nothing, if the lease is not current."""
        return self._finish(lease, "filled")

    def drawn(self, lease: Lease, *, elements: int, is_last: bool, checksum: int) -> bool:
        """A worker's result for a stream; like :meth:`filled`.

        Args:
            lease: what the worker was to do.
            elements: how many elements were drawn.
            is_last: the generator has ended.
            checksum: of all elements of the generator so far.
        """
        if not self._finish(lease, "filled"):
            return False
        found = self._tasks.get(lease.task)
        if found is not None:
            run = self._runs[found.run]
            run.drawn += elements
            run.checksum = checksum
            if is_last:
                self._end_stream(found.run, found.position + 1)
        return True

    def failed(self, lease: Lease) -> bool:
        """A worker says that the batch cannot be made. Returns False if the lease is not current."""
        return self._finish(lease, "failed")

    def take(self, run: int, position: int) -> Taken | None:
        """Delivers a batch; None if it is not there yet, and then it is what the schedule makes first."""
        current = self._run(run)
        number = current.tasks.get(position)
        task = None if number is None else self._tasks[number]
        if task is None or task.state not in (TaskState.READY, TaskState.FAILED):
            if task is None and position < current.frontier:
                raise IllegalEventError(f"position {position} of run {run} was delivered before")
            current.waiting.add(position)
            return None
        del self._tasks[task.number], current.tasks[position]
        current.waiting.discard(position)
        current.delivered += 1
        self._served(run, current)
        if task.state is TaskState.FAILED:
            return Taken(task.number, failed=True, stream=current.stream)
        if task.slot < 0:
            return Taken(task.number, failed=False, stream=current.stream)
        away = self.count(SlotState.LENT) + self.count(SlotState.QUARANTINED)
        copy = away >= len(self._slots) - self._reserved
        self._move_slot(task.slot, "take", task.number)
        return Taken(task.number, False, task.slot, self._slots[task.slot].generation, copy, current.stream)

    def release(self, slot: int, generation: int) -> None:
        """Nothing refers to a lent slot any more."""
        if self._slots[slot].generation != generation:
            raise IllegalEventError(f"slot {slot} is in use {self._slots[slot].generation}, not {generation}")
        self._move_slot(slot, "release")

    # What the pool and the statistics ask

    def count(self, state: SlotState) -> int:
        """How many slots are in a state."""
        return self._counts[state]

    def counts(self) -> dict[SlotState, int]:
        """How many slots are in each state."""
        return dict(self._counts)

    def has_task(self, task: int) -> bool:
        """Whether a task is still to be delivered."""
        return task in self._tasks

    def is_delivered(self, run: int, position: int) -> bool:
        """Whether a position of a run was taken; True for a run that is over."""
        found = self._runs.get(run)
        return found is None or (position < found.frontier and position not in found.tasks)

    def is_waited_for(self, task: int) -> bool:
        """Whether a consumer waits for this task right now."""
        found = self._tasks.get(task)
        if found is None:
            return False
        run = self._runs[found.run]
        return found.position in run.waiting or (run.part_of is not None and run.part_of.takes_any)

    @property
    def is_starved(self) -> bool:
        """Whether somebody waits for a batch and no slot is left to make it in: some are held by workers that do not
        die, and the others by the consumer."""
        in_use = (SlotState.FREE, SlotState.LEASED, SlotState.READY)  # a ready one is taken soon, or makes room
        return (
            self.count(SlotState.QUARANTINED) > 0
            and not any(map(self.count, in_use))
            and any(run.waiting for run in self._runs.values())
        )

    def snapshot(self) -> tuple[object, ...]:
        """Everything that decides about the future, hashable: two schedules with one snapshot behave alike.

        Attempts, generations and the next free numbers are left out: they tell one use from another, and decide
        nothing.
        """
        return (
            tuple((slot.state, slot.task) for slot in self._slots),
            tuple(self._free),
            self.is_ahead_held,
            tuple(sorted(self._dying)),
            tuple(self._partings),
            tuple(
                (task.number, task.run, task.position, task.state, task.slot, tuple(task.crashes))
                for task in self._tasks.values()
            ),
            tuple((worker, tuple(lease.task for lease in held)) for worker, held in sorted(self._workers.items())),
            tuple((worker, tuple(lease.slot for lease in held)) for worker, held in sorted(self._abandoned.items())),
            tuple(
                (number, run.epoch, run.length, run.claimed, run.limit, run.frontier, tuple(sorted(run.pending)),
                 tuple(sorted(run.waiting)), run.delivered, run.stream, run.worker, run.drawn, run.checksum, run.first)
                for number, run in self._runs.items()
            ),
            tuple((number, found.opened, found.takes_any, tuple(found.runs)) for number, found in self._passes.items()),
        )  # fmt: skip

    def __repr__(self) -> str:
        slots = ", ".join(f"{self.count(state)} {state.name.lower()}" for state in SlotState if self.count(state))
        return f"<Scheduler: slots {slots}; {len(self._workers)} workers, {len(self._runs)} runs>"

    # Inside

    def _run(self, run: int) -> Run:
        if run not in self._runs:
            raise IllegalEventError(f"run {run} is not open")
        return self._runs[run]

    def _pass(self, number: int) -> StreamPass:
        if number not in self._passes:
            raise IllegalEventError(f"pass {number} is not open")
        return self._passes[number]

    def _open_ahead(self, found: StreamPass) -> None:
        """Opens streams of a pass, as many as it may have open before they are asked for."""
        while found.opened < found.streams:
            runs = [self._runs[run] for run in found.runs]
            if any(run.waiting for run in runs):
                counted = sum(run.next_pending() is not None for run in runs)
            else:  # the workers are ahead of the consumer: no generator more than needed is kept open
                counted = sum(run.length == math.inf for run in runs)
            if counted >= found.window or len(runs) - counted >= found.most_made:
                return
            self._open_next(found)

    def _open_next(self, found: StreamPass) -> None:
        run = self.open_stream(found.opened, found.limit)
        self._runs[run].part_of = found
        found.runs[run] = found.opened
        found.opened += 1

    def _served(self, number: int, run: Run) -> None:
        """A batch of a run was delivered."""
        if run.part_of is not None:
            run.part_of.runs[number] = run.part_of.runs.pop(number)
        if run.delivered < run.length:
            return
        del self._runs[number]
        self._part(number, run)
        if run.part_of is not None:
            del run.part_of.runs[number]

    def _move_slot(self, slot: int, event: str, task: int = -1) -> None:
        found = self._slots[slot]
        if (found.state, event) not in SLOT_MOVES:
            raise IllegalEventError(f"slot {slot} is {found.state.name}: {event} is impossible")
        self._counts[found.state] -= 1
        found.state = SLOT_MOVES[found.state, event]
        self._counts[found.state] += 1
        if event == "lease":
            found.generation += 1
        if event != "filled":
            found.task = task
        if found.state is SlotState.FREE:
            self._free.append(slot)

    def _needs(self) -> list[tuple[int, int]]:
        """The run and position that each run needs next, the most urgent first.

        A position comes first that a consumer waits for, or that stands before one; of a stream that has no worker
        before others, or it might never find one free. Then the claimed run with the fewest batches under way or ready,
        so that runs side by side share the slots evenly. Then what is made ahead of time.
        """
        ranked = []
        for number, run in self._runs.items():
            position = run.next_pending()
            if position is not None and (run.claimed or not self.is_ahead_held):
                is_wanted, under_way = run.is_wanted(position), len(run.tasks) - len(run.pending)
                rank = (not is_wanted, not run.claimed, is_wanted and not run.is_unbound, under_way, number)
                ranked.append((rank, (number, position)))
        return [need for _, need in sorted(ranked)]

    def _worker_for(self, run: Run, backlog: int) -> int | None:
        """The worker that can take a task of this run now, where none is to hold more than ``backlog`` leases."""
        worker = run.worker
        if run.is_unbound:
            backlog = 1  # its generator stays where it begins: behind another's batch it would wait while others idle
        if worker is None:
            fit = self._workers.keys() - self._dying
            worker = min(fit, key=lambda number: (len(self._workers[number]), number), default=None)
        if worker is None or worker in self._dying or len(self._workers[worker]) >= backlog:
            return None
        return worker

    def _find_slot(self, *, wanted: bool) -> tuple[int | None, int]:
        """A free slot; for a position that is wanted if need be that of a ready batch, with the task's number."""
        spilled = self._spill() if not self._free and wanted else -1
        return (self._free.pop() if self._free else None), spilled

    def _spill(self) -> int:
        """Frees the slot of the ready batch that is needed last and that nobody waits for; -1 if there is none."""
        ready = [
            (not self._runs[task.run].claimed, task.position - self._runs[task.run].delivered, task.number)
            for task in self._tasks.values()
            if task.state is TaskState.READY
            and task.slot >= 0
            and task.position not in self._runs[task.run].waiting
        ]
        if not ready:
            return -1
        task = self._tasks[max(ready)[2]]
        self._move_slot(task.slot, "spill")
        task.slot = -1
        return task.number

    def _end_stream(self, run_number: int, length: int) -> None:
        """A stream has ended: forgets the tasks that were made ahead behind its end."""
        run = self._runs[run_number]
        run.length = length
        for position in [position for position in run.tasks if position >= length]:
            del self._tasks[run.tasks.pop(position)]
        run.pending = [position for position in run.pending if position < length]
        heapq.heapify(run.pending)

    def _unbind(self, worker: int) -> None:
        """The generators of a worker are gone with it."""
        for run in self._runs.values():
            if run.worker == worker:
                run.worker = None

    def _part(self, number: int, run: Run) -> None:
        if run.worker is not None and run.length == math.inf:
            self._partings.append((run.worker, number))

    def _task_for(self, run_number: int, position: int) -> Task:
        run = self._runs[run_number]
        if position < run.frontier:
            heapq.heappop(run.pending)
            return self._tasks[run.tasks[position]]
        run.frontier += 1
        task = Task(self._next_task, run_number, position)
        self._next_task += 1
        self._tasks[task.number] = task
        run.tasks[position] = task.number
        return task

    def _finish(self, lease: Lease, event: str) -> bool:
        held = self._workers.get(lease.worker, [])
        if lease not in held:
            return False
        held.remove(lease)
        self._move_slot(lease.slot, event)
        found = self._tasks.get(lease.task)
        if found is not None:
            found.move(event)
        elif event == "filled":
            self._move_slot(lease.slot, "cancel")  # its run was closed meanwhile
        return True

    def _return_task(self, lease: Lease, ordinal: int | None) -> Lost:
        """Makes a lost task pending again, unless it has killed too many workers.

        ``ordinal`` is None for a lease that the worker had not taken up: the loss says nothing about that batch.
        """
        task = self._tasks.get(lease.task)
        if task is None:
            return Lost(lease)
        is_stream = self._runs[task.run].stream >= 0
        hopeless = False
        # A sample of a batch can be left out, which is for others to judge; a generator cannot go on behind an element.
        if ordinal is not None and (ordinal < 0 or is_stream):
            task.crashes.append(ordinal)
            hopeless = task.crashes.count(ordinal) >= MAX_ATTEMPTS
        if hopeless:
            task.move("failed")
        else:
            task.move("lost")
            heapq.heappush(self._runs[task.run].pending, task.position)
        return Lost(lease, hopeless)

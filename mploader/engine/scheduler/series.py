"""Series of tasks: what one consumer reads in order, batch after batch.

A *series* is the batches of one epoch, whose number is known, or the output of one generator, whose end is known when
a result is marked as the last. The tasks of a generator stay with one worker, where the generator lives. A *group* is
the generators of one pass over all inputs, which are opened in the order of the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mploader.engine.scheduler.states import Replay


@dataclass(kw_only=True)
class Series:
    """One pass over an epoch, or over the output of one generator.

    Attributes:
        epoch: which; 0 for a generator.
        length: number of batches; None: not known yet.
        max_ahead: most batches that may be assigned or ready, unless more are needed.
        claimed: a consumer asks for its batches; otherwise it is made ahead of time.
        frontier: the first batch that was never assigned.
        delivered: batches that were taken.
        first: see :attr:`Assignment.first`.
        input: of a generator, the number of its input.
        replay: of a generator, what is committed of its output; None for an epoch, which needs no replay.
        worker: of a generator, the worker where it lives; None while it lives nowhere.
        group: the group that it belongs to.
        pending: heap of batches before the frontier that must be made again.
        tasks: task numbers of the batches before the frontier that are not delivered.
        waiting: batches that a consumer waits for.
    """

    epoch: int = 0
    length: int | None = None
    max_ahead: int
    claimed: bool = True
    frontier: int = 0
    delivered: int = 0
    first: int = 0
    input: int | None = None
    replay: Replay | None = None
    worker: int | None = None
    group: Group | None = None
    pending: list[int] = field(default_factory=list)
    tasks: dict[int, int] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)

    @property
    def is_bound(self) -> bool:
        """Whether its tasks stay with one worker."""
        return self.input is not None

    @property
    def is_unbound(self) -> bool:
        """Whether its tasks must stay with one worker, and it has none: not yet, or not any more."""
        return self.input is not None and self.worker is None

    @property
    def is_over(self) -> bool:
        """Whether every batch was delivered."""
        return self.length is not None and self.delivered >= self.length

    def has(self, batch_index: int) -> bool:
        """Whether there may be a batch with this index."""
        return self.length is None or batch_index < self.length

    def next_pending(self) -> int | None:
        """The batch to make next; None if there is none, or enough are under way."""
        if self.pending:
            return self.pending[0]
        if self.has(self.frontier) and (len(self.tasks) < self.max_ahead or self.is_needed(self.frontier)):
            return self.frontier
        return None

    def is_needed(self, batch_index: int) -> bool:
        """Whether a consumer waits for a batch, or for one that is assigned after it."""
        return batch_index in self.waiting or any(
            other > batch_index and (other >= self.frontier or other in self.pending) for other in self.waiting
        )


@dataclass(kw_only=True)
class Group:
    """One pass over many inputs, whose generators are opened in the order of the inputs.

    Attributes:
        inputs: how many there are.
        max_ahead: of each series, see :attr:`Series.max_ahead`.
        window: how many are opened ahead of the consumer whose generators have not ended. While the consumer waits,
            those do not count of which all is made that may be: they keep no worker busy.
        max_idle: how many of those that do not count may be open before no more are opened ahead.
        opened: how many were opened so far.
        takes_any: its consumer takes whichever batch is ready, also of generators that are opened while it waits.
        members: the input of each open series; the one that was delivered from least recently comes first.
    """

    inputs: int
    max_ahead: int
    window: int
    max_idle: int
    opened: int = 0
    takes_any: bool = False
    members: dict[int, int] = field(default_factory=dict)

    def may_open(self, members: list[Series]) -> bool:
        """Whether one more generator may be opened ahead of the consumer."""
        if self.opened >= self.inputs:
            return False
        if any(series.waiting for series in members):
            counted = sum(series.next_pending() is not None for series in members)
        else:  # the workers are ahead of the consumer: no generator more than needed is kept open
            counted = sum(series.length is None for series in members)
        return counted < self.window and len(members) - counted < self.max_idle

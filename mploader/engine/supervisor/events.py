"""What the engine knows, as the event records of monitoring."""

from __future__ import annotations

import operator
import time

from mploader.engine.ipc.messages import Made
from mploader.engine.scheduler.slot_table import SlotTable
from mploader.engine.scheduler.states import Assignment, SlotState
from mploader.monitoring.events import BatchMade, SlotCounts

# These records are made for each batch, and building one by keyword would take half as long again. So the names of the
# fields are looked up here, once. A field that is added to BatchMade is taken from the message.
_OWN = "worker", "at_ns", "slots"
_ASSIGNMENT = "attempt", "slot", "epoch", "batch_index", "input"
_MESSAGE = BatchMade._fields[len(_OWN) + len(_ASSIGNMENT) :]
assert BatchMade._fields == (*_OWN, *_ASSIGNMENT, *_MESSAGE)
assert SlotCounts._fields == tuple(state.name.lower() for state in SlotState)

_of_assignment = operator.attrgetter(*_ASSIGNMENT)
_of_message = operator.attrgetter(*_MESSAGE)


def slot_counts(slots: SlotTable) -> SlotCounts:
    """Returns how many slots are in each state."""
    return SlotCounts._make(slots.counts.values())


def batch_made(worker: int, assignment: Assignment, message: Made, slots: SlotTable) -> BatchMade:
    """Returns the event of a batch that the worker with this index has just reported."""
    own = worker, time.monotonic_ns(), slot_counts(slots)
    return BatchMade._make((*own, *_of_assignment(assignment), *_of_message(message)))

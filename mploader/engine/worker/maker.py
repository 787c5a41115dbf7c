"""What the loop of a worker asks of the code that makes batches, whatever they are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from mploader.batching.writer import BatchWriter
from mploader.engine.ipc.messages import Condemn, Make, Renew
from mploader.engine.ipc.sample_report import SampleReport
from mploader.engine.scheduler.states import Replay
from mploader.engine.worker.stage_timer import StageTimer


class TaskFailedError(Exception):
    """A task cannot be done; carries the report."""

    def __init__(self, report: SampleReport) -> None:
        super().__init__(report)
        self.report = report


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is to be said of a batch beside its bytes.

    Attributes:
        reports: the bad samples that were dropped or replaced.
        replay: of a generator, what it has given so far, with this batch.
        is_last: the generator has ended.
    """

    reports: tuple[SampleReport, ...] = ()
    replay: Replay = field(default_factory=Replay)
    is_last: bool = False


class Maker(Protocol):
    """Makes batches in one worker. Called by its loop alone, in one thread."""

    def make(self, task: Make, writer: BatchWriter, timer: StageTimer) -> Outcome:
        """Adds the elements of one batch to ``writer`` and their times to ``timer``.

        Raises:
            TaskFailedError: the batch cannot be made.
            Exception: the batch as a whole cannot be stored.
        """
        ...

    def name_of(self, task: Make) -> str:
        """Names the batch of a task, for the report on an exception that concerns the whole batch."""
        ...

    def cancel(self, series: int) -> None:
        """The rest of a series is not wanted."""
        ...

    def condemn(self, sentence: Condemn) -> None:
        """One sample is to be treated as bad from now on."""
        ...

    def renew(self, message: Renew, file: int) -> None:
        """The source of another epoch is in a file, whose descriptor now belongs to the maker."""
        ...

    def probe(self, sample_index: int) -> bytes:
        """Makes one element and returns its pickled ``ProbeResult``.

        Raises:
            TaskFailedError: it cannot be made, or is not an element.
        """
        ...
